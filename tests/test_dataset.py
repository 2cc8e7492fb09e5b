"""The token file format and its damage, sentences and special strings, the sampler against a slow reference."""

import json
import re
import shutil
import struct

import numpy as np
import pytest
from scipy import stats
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lab.configurator import UserError
from lab.data import corpus as dataset
from lab.data.corpus import CHECKED, MAGIC, Corpus, CorpusWriter, TokenFile, check_name, prepare_command, unigram_floor
from lab.data.sampler import LENGTH, Sampler, choose, hash64
from lab.data.tokenizers import (
    add_special_tokens,
    encode_texts,
    load_tokenizer,
    pad_batch,
    special_ids,
    split_sentences,
    tokenizer_hash,
    vocab_size,
)
from tests.corpus import make_corpus

TEXT = """The river is old. It was here before us! Who knows why?
A line break ends a sentence, too
He said: "No." They left at 3.14 p.m. and came back   late. Ünïcode – naïve café, 東京."""
EOD = 65_535


def byte_level(vocab=400, lowercase=False):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase() if lowercase else None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    add_special_tokens(tokenizer)
    return tokenizer


def write(folder, documents, vocab=65_536, tokenizer=None, eod=EOD, split="train"):
    """documents: lists of sentences, which are lists of ids."""
    folder.mkdir(exist_ok=True)
    (tokenizer or byte_level()).save(str(folder / "tokenizer.json"))
    special = {"eod": eod, "mask": 1, "pad": 2, "sep": 3}
    writer = CorpusWriter(
        folder / f"{split}.bin", vocab, special, tokenizer_hash(folder / "tokenizer.json")
    )  # fmt: skip
    for document in documents:
        starts = np.cumsum([0, *map(len, document)])
        writer.append(np.array([i for s in document for i in s] + [eod]), starts[:-1], [0])
    writer.close()
    (folder / "meta.json").write_text(json.dumps({"name": folder.name, "vocab_size": vocab}))
    return folder


def numbered(rng, count, longest=80):
    """Documents whose ids count up, so that an id tells its place (ends of documents aside)."""
    documents, place = [], 0
    while place < count:
        document = []
        for _ in range(rng.integers(1, 9)):
            n = int(rng.choice([1, 2, 5, 15, 16, 17, 31, 32, 33, longest]))
            document.append(list(range(place, place + n)))
            place += n
        documents.append(document)
        place += 1
    return documents


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    documents = numbered(np.random.default_rng(0), 40_000)
    return Corpus(write(tmp_path_factory.mktemp("data") / "numbers", documents), "train"), documents


# -----------------------------------------------------------------------------------------------------------------
# the file


def test_round_trip(corpus):
    corpus, documents = corpus
    flat = [i for d in documents for i in [*(i for s in d for i in s), EOD]]
    assert corpus.tokens.tolist() == flat and corpus.count == len(flat)
    assert corpus.tokens.dtype == np.uint16 and isinstance(corpus.tokens.base.base, np.memmap)
    assert [corpus.tokens[a] for a in corpus.sentences] == [s[0] for d in documents for s in d]
    assert [corpus.tokens[a] for a in corpus.documents[:-1]] == [d[0][0] for d in documents]
    assert corpus.documents[-1] == corpus.count
    assert (corpus.eod, corpus.mask, corpus.pad, corpus.sep) == (EOD, 1, 2, 3)
    assert corpus.special_ids == (1, 2, 3, EOD)
    assert sorted(p.name for p in corpus.folder.iterdir()) == ["meta.json", "tokenizer.json", "train.bin"]


def test_a_part_of_a_file_is_copied(tmp_path, monkeypatch):
    digest, special = "00" * 32, {"eod": 9, "mask": 1, "pad": 2, "sep": 3}
    first, second = (CorpusWriter(tmp_path / name, 10, special, digest) for name in "ab")
    first.append(np.array([4, 5, 9]), [0], [0])
    first.append(np.array([6, 6, 7, 9]), [0, 2], [0])
    first.append(np.array([8, 9]), [0], [0])
    first.close()
    monkeypatch.setattr(dataset, "CHUNK", 2)  # in several pieces
    text = TokenFile(tmp_path / "a", "")
    second.copy(text, 3, text.count)
    second.copy(text, 0, 3)
    second.close()
    text = TokenFile(tmp_path / "b", "")
    assert text.tokens.tolist() == [6, 6, 7, 9, 8, 9, 4, 5, 9]
    assert (text.documents.tolist(), text.sentences.tolist()) == ([0, 4, 6, 9], [0, 2, 4, 6])


def test_writing_refuses(tmp_path):
    special = {"eod": 0, "mask": 1, "pad": 2, "sep": 3}
    with pytest.raises(UserError, match="16,777,217"):
        CorpusWriter(tmp_path / "a.bin", (1 << 24) + 1, special, "00" * 32)
    writer = CorpusWriter(tmp_path / "a.bin", 10, special, "00" * 32)
    with pytest.raises(ValueError, match="10"):
        writer.append(np.array([10]), [0], [0])
    with pytest.raises(UserError, match="no text"):
        writer.close()
    writer.discard()
    assert list(tmp_path.iterdir()) == []
    writer = CorpusWriter(tmp_path / "a.bin", 10, special, "00" * 32)
    writer.append(np.array([5, 0]), [0], [0])
    writer.file.flush()
    with pytest.raises(UserError, match="not a token file"):  # as long as it is not closed
        TokenFile(tmp_path / "a.bin", "")
    writer.close()
    writer.discard()  # does nothing to a complete file
    assert TokenFile(tmp_path / "a.bin", "").tokens.tolist() == [5, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def patch(path, at, data):
    raw = bytearray(path.read_bytes())
    raw[at : at + len(data)] = data
    path.write_bytes(raw)


DAMAGE = {
    "where its header says": lambda folder: cut(folder / "train.bin"),
    "cut off": lambda folder: (folder / "train.bin").write_bytes(MAGIC + b"12"),
    "not a token file": lambda folder: patch(folder / "train.bin", 0, b"PK"),
    "empty|not a token file": lambda folder: (folder / "train.bin").write_bytes(b""),
    "version 7": lambda folder: patch(folder / "train.bin", 8, b"\7"),
    "token id 60000 in a vocabulary of 500": lambda folder: patch(folder / "train.bin", 128, b"\x60\xea"),
    "damaged tables": lambda folder: patch(folder / "train.bin", (folder / "train.bin").stat().st_size - 1, b"\x7f"),
    "damaged header": lambda folder: patch(folder / "train.bin", 15, b"\1"),
    "another vocabulary than": lambda folder: patch(folder / "train.bin", 12, b"\xf5"),
    "another tokenizer": lambda folder: byte_level(300).save(str(folder / "tokenizer.json")),
    "tokenizer.json is missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "train.bin is missing": lambda folder: (folder / "train.bin").unlink(),
    "meta.json is damaged": lambda folder: (folder / "meta.json").write_text("{"),
    "meta.json is .*damaged": lambda folder: (folder / "meta.json").write_text("[]"),
    "holds no prepared data; run python data/text/prepare.py --name=x": lambda folder: (folder / "meta.json").unlink(),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_damage_is_refused_in_one_sentence(tmp_path, words):
    folder = write(tmp_path / "x", [[[5, 6, 7], [8, 9]], [[10] * 30]], vocab=500, eod=0)
    Corpus(folder, "train")
    DAMAGE[words](folder)
    with pytest.raises(UserError, match=words) as error:
        Corpus(folder, "train")
    assert "; " in str(error.value) and "prepare.py" in str(error.value) and "\n" not in str(error.value)


def damage(raw: bytearray, rng) -> bytearray:
    """A token file with random bytes, random table entries, another length, or parts exchanged."""
    count, documents, sentences = struct.unpack_from("<3Q", raw, 32)
    tables = len(raw) - 8 * (documents + 1 + sentences)
    places = {"header": (8, 64), "tokens": (128, tables), "tables": (tables, len(raw)), "all": (0, len(raw))}
    begin, end = places[rng.choice(list(places))]
    kind = rng.choice(["bits", "bytes", "entries", "counts", "cut", "extended", "exchanged"])
    if kind == "bits":
        raw[rng.integers(begin, end)] ^= 1 << rng.integers(8)
    elif kind == "bytes":
        for at in rng.integers(begin, end, rng.integers(1, 20)):
            raw[at] = rng.integers(256)
    elif kind == "entries":  # of the tables: near, far, negative and huge
        for at in rng.integers(0, documents + 1 + sentences, rng.integers(1, 4)):
            value = rng.choice([0, 1, -1, count, count - 1, rng.integers(count), 2**62, -(2**63), 2**63 - 1])
            struct.pack_into("<q", raw, tables + 8 * at, value)
    elif kind == "counts":  # that keep the length of the file: the border between tokens and tables moves
        more = int(rng.integers(-min(documents, sentences), min(documents, sentences)))
        struct.pack_into("<3Q", raw, 32, *(max(n, 0) for n in (count - 4 * more, documents + more, sentences)))
        if rng.integers(2):
            struct.pack_into("<3Q", raw, 32, count, documents + more, sentences - more)
    elif kind == "cut":
        del raw[rng.integers(len(raw)) :]
    elif kind == "extended":
        raw += rng.bytes(8 * rng.integers(1, 9))
    else:
        a, b = sorted(rng.integers(begin, end, 2))
        raw[a:b] = raw[a:b][::-1]
    return raw


@pytest.mark.parametrize("checked", [CHECKED, 64])  # 64 bytes: most damage is found only where it is used
def test_a_damaged_file_works_or_is_refused(tmp_path, monkeypatch, checked):
    monkeypatch.setattr(dataset, "CHECKED", checked)
    folder = make_corpus(tmp_path / "toy", documents=500)
    rows = np.arange(64)

    def use():
        corpus = Corpus(folder, "train")
        for flags in ({}, {"one_document": True}, {"pairs": True}):
            sampler = Sampler(corpus, (5, 16, 24, 40), 0, **flags)
            for n in sampler.lengths:
                ids, document = sampler.batch(0, n, rows)
                assert ids.shape == (64, n) and 0 <= ids.min() and ids.max() < corpus.vocab_size
                assert 0 <= document.min() and document.max() < len(corpus.documents) - 1
        assert corpus.idf().shape == (corpus.vocab_size,)

    use()
    whole, refused = (folder / "train.bin").read_bytes(), 0
    for seed in range(400):
        (folder / "train.bin").write_bytes(damage(bytearray(whole), np.random.default_rng(seed)))
        try:
            use()
        except UserError as error:
            refused += 1
            assert re.search(r"; (prepare it again: |use length|leave this length)|more text$", str(error)), error
    assert 150 < refused < 390  # a flipped bit of a token may be another token


def test_an_id_beyond_the_checked_ends_is_found_when_sampled(corpus, monkeypatch):
    corpus, _ = corpus
    monkeypatch.setattr(corpus, "vocab_size", 100)
    with pytest.raises(UserError, match="vocabulary of 100"):
        corpus.gather(np.array([500]), 4)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", ".hidden", "a..b", "a\\b", "-x", "a b"])
def test_names_that_are_paths_are_refused(name):
    with pytest.raises(UserError, match="; "):
        check_name(name)


def test_prepare_commands():
    assert prepare_command("data/pydocs") == "python data/pydocs/prepare.py"
    assert prepare_command("/d/minipile") == "python data/hub/prepare.py --name=minipile"
    assert prepare_command("data/wiki") == "python data/text/prepare.py --name=wiki --files FILES"


# -----------------------------------------------------------------------------------------------------------------
# text


def test_sentences():
    assert split_sentences(TEXT)[:4] == [
        " The river is old.", " It was here before us!", " Who knows why?", " A line break ends a sentence, too",
    ]  # fmt: skip
    assert split_sentences("3.14 is a.b\r\n\r\n  x  \n") == [" 3.14 is a.b", " x"]
    assert split_sentences(" \n\t ") == []


def test_a_sentence_has_the_same_ids_in_a_text_and_alone():
    tokenizer = byte_level()
    sentences = split_sentences(TEXT)
    text, *alone = encode_texts(tokenizer, [TEXT, *sentences])
    assert text == [i for ids in alone for i in ids]
    assert [encode_texts(tokenizer, [sentence])[0] for sentence in sentences] == alone
    assert tokenizer.decode(alone[1]) == " It was here before us!"


def test_an_empty_text_is_one_separator():
    tokenizer = byte_level()
    sep = tokenizer.token_to_id("[SEP]")
    assert encode_texts(tokenizer, ["", "It was.", " \n"])[::2] == [[sep], [sep]]
    assert encode_texts(tokenizer, []) == []


def test_special_strings_in_text_are_text(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    text = "<|endoftext|> [MASK] and [SEP] [PAD]"
    (ids,) = encode_texts(tokenizer, [text])
    assert not set(ids) & set(special_ids(tokenizer).values())
    assert tokenizer.decode(ids, skip_special_tokens=True) == " " + text


def test_special_ids_first_name_wins_and_missing_ones_are_appended():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<pad>": 2, "[PAD]": 3, "<mask>": 4}, unk_token="a"))
    add_special_tokens(tokenizer)
    assert special_ids(tokenizer) == {"eod": 1, "mask": 4, "pad": 3, "sep": 1}
    assert vocab_size(tokenizer) == 5
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[SEP]": 7}, unk_token="a"))
    with pytest.raises(UserError, match="endoftext"):
        special_ids(tokenizer)
    add_special_tokens(tokenizer)
    assert special_ids(tokenizer)["sep"] == 7
    assert len(set(special_ids(tokenizer).values())) == 4
    assert vocab_size(tokenizer) == 1 + max(tokenizer.get_vocab().values())


def test_lowercase_holds_for_later_text(tmp_path):
    byte_level(lowercase=True).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    upper, lower = encode_texts(tokenizer, ["THE RIVER ÉTÉ.", "the river été."])
    assert upper == lower


def test_tokenizers_that_are_none(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    for path in (tmp_path / "t.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(UserError, match="; "):
            load_tokenizer(path)


def test_pad_batch():
    ids, mask = pad_batch([[5], [6, 7, 8], [9, 9]], pad=2)
    assert ids.tolist() == [[5, 2, 2], [6, 7, 8], [9, 9, 2]] and ids.dtype == np.int64
    assert mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]


def test_unigram_floor():
    counts, tokens = [3, 0, 4, 1, 100], np.array([0, 0, 1, 4, 2, 4], np.uint16)
    p = np.array([4, 1, 5, 2]) / 12
    assert unigram_floor(counts, tokens, eod=4) == pytest.approx(-np.log(p[[0, 0, 1, 2]]).mean())


def test_weighted_unigram_floor(monkeypatch):
    """Each token by its weight; the best guess is as weight times count, and no other guess is better."""
    counts, tokens, weights = [3, 0, 4, 1, 100], np.array([0, 0, 1, 4, 2, 4], np.uint16), [0.5, 2.0, 0.0, 3.0, 7.0]
    guess = [w * (c + 1) for w, c in zip(weights[:4], counts, strict=False)]
    said = [(weights[t], guess[t] / sum(guess)) for t in tokens if t != 4]
    expected = sum(-w * np.log(p) for w, p in said if w) / sum(w for w, _ in said)
    monkeypatch.setattr(dataset, "CHUNK", 4)  # in several pieces
    assert unigram_floor(counts, tokens, 4, weights) == pytest.approx(expected)
    assert unigram_floor(counts, tokens, 4, np.ones(5)) == unigram_floor(counts, tokens, 4)
    own = np.bincount(tokens, minlength=5) * 1000 - 1  # the guess from the counts of the text itself
    for other in np.random.default_rng(0).integers(1, 1000, (20, 5)):
        assert unigram_floor(own, tokens, 4, weights) <= unigram_floor(other, tokens, 4, weights)


def test_idf(tmp_path, corpus):
    text = Corpus(make_corpus(tmp_path / "toy", documents=60), "train")
    ends = [*text.sentences[1:], text.count]
    sentences = [set(text.tokens[a:b].tolist()) for a, b in zip(text.sentences, ends, strict=True)]
    expected = np.log([(1 + len(sentences)) / (1 + sum(t in s for s in sentences)) for t in range(text.vocab_size)])
    expected[list(text.special_ids)] = 0
    assert text.idf() == pytest.approx(expected, rel=1e-6) and text.idf().dtype == np.float32
    assert text.idf()[text.tokens[text.tokens != text.eod]].min() >= 0 and text.idf()[text.eod] == 0
    with pytest.raises(UserError, match="has no count for every token; .*prepare.py") as error:
        corpus[0].idf()
    assert "\n" not in str(error.value)


# -----------------------------------------------------------------------------------------------------------------
# the sampler


def legal_rows(documents, n, one_document):
    """{start id: sentence number} of every row of n tokens, and their number: the rules, slow and obvious."""
    total = sum(len(s) for d in documents for s in d) + len(documents)
    legal, number, place = {}, 0, 0
    for document in documents:
        text_end = place + sum(map(len, document))
        for sentence in document:
            end = place + len(sentence)
            if n > 32:
                starts = [place] if place + n <= (text_end + 1 if one_document else total) else []
            elif len(sentence) >= n:
                starts = range(place, end - n + 1)
            else:
                starts = [place] if n <= 16 and place + n <= text_end else []
            legal |= dict.fromkeys(starts, number)
            number, place = number + 1, end
        place += 1
    return legal


@pytest.mark.parametrize("one_document", [False, True])
@pytest.mark.parametrize("n", [1, 7, 16, 17, 32, 33, 70, 256])
def test_rows_obey_the_rules_of_their_length(corpus, n, one_document):
    corpus, documents = corpus
    legal = legal_rows(documents, n, one_document)
    corpus.split = "val"  # so that rare lengths are not refused
    sampler = Sampler(corpus, (n,), seed=3, one_document=one_document)
    assert sampler.windows(n) == min(len(legal), 1000)
    if not legal:
        with pytest.raises(UserError, match=f"length {n}"):
            sampler.batch(0, n, np.arange(4))
        return
    ids, document = sampler.batch(5, n, np.arange(3000))
    assert ids.shape == (3000, n) and ids.dtype == document.dtype == np.int64
    starts = ids[:, 0]
    assert set(starts.tolist()) <= legal.keys()
    assert (ids == corpus.tokens[starts[:, None] + np.arange(n)]).all()
    assert (corpus.documents[document] <= starts).all() and (starts < corpus.documents[document + 1]).all()
    if n <= 32:
        assert (ids != EOD).all()
    if one_document:
        assert (starts + n <= corpus.documents[document + 1]).all()

    # every sentence that offers a row is as likely as any other, and so is every row inside it
    sentences = np.unique(list(legal.values()))
    seen = np.bincount([legal[s] for s in starts.tolist()], minlength=sentences.max() + 1)[sentences]
    expected = 3000 / len(sentences)
    chi2 = ((seen - expected) ** 2 / expected).sum()
    assert chi2 < len(sentences) + 6 * (2 * len(sentences)) ** 0.5 + 6


def test_rows_are_a_pure_function_of_seed_step_and_row(corpus):
    corpus, _ = corpus
    corpus.split = "train"
    sampler = Sampler(corpus, (16, 32, 64), seed=1)
    rows = np.random.default_rng(1).permutation(200)
    for n in (16, 32, 64):
        ids, documents = sampler.batch(7, n, np.arange(200))
        some, their = Sampler(corpus, (16, 64), seed=1).batch(7, n, rows[:31])
        assert (some == ids[rows[:31]]).all() and (their == documents[rows[:31]]).all()
        assert (sampler.batch(8, n, np.arange(200))[0] != ids).any(1).mean() > 0.9
        assert (Sampler(corpus, (16,), seed=2).batch(7, n, np.arange(200))[0] != ids).any(1).mean() > 0.9
        assert (sampler.batch(7, n, np.array([10**11]))[0] >= 0).all()


def test_lengths_are_uniform_and_pure(corpus):
    corpus, _ = corpus
    corpus.split = "train"
    sampler = Sampler(corpus, (8, 16, 64), seed=1)
    drawn = [sampler.length(step) for step in range(3000)]
    other = Sampler(corpus, (8, 16, 64), seed=1)
    assert drawn[2900:] == [other.length(step) for step in range(2900, 3000)]
    assert all(900 < drawn.count(n) < 1100 for n in (8, 16, 64))
    assert Sampler(corpus, (8,), seed=1).length(5) == 8


def test_lengths_have_their_shares(corpus):
    """Of 10^5 steps; the draw is a function of seed and step; what has no share is never drawn."""
    corpus, _ = corpus
    corpus.split = "val"
    steps, lengths = np.arange(100_000), np.array([8, 16, 32, 64])
    drawn = lengths[choose((0.1, 0.0, 0.6, 0.3), 1, LENGTH, steps)].tolist()
    found = [drawn.count(n) for n in (8, 32, 64)]
    assert drawn.count(16) == 0 and stats.chisquare(found, [10_000, 60_000, 30_000]).pvalue > 1e-3
    sampler = Sampler(corpus, lengths.tolist(), seed=1)
    assert drawn[7000:7100] == [sampler.length(step, (1, 0, 6, 3)) for step in range(7000, 7100)]
    for i in range(4):
        assert (choose(np.eye(4)[i], 1, LENGTH, steps) == i).all()


def test_hashes_are_even_and_independent():
    values = hash64(1, 2, 3, np.arange(100_000))
    assert len(np.unique(values)) == 100_000
    for shift in range(64):  # every bit is fair, and neighbours share half of their bits
        bits = values >> np.uint64(shift) & np.uint64(1)
        assert abs(bits.mean() - 0.5) < 0.01
        assert abs((bits[1:] == bits[:-1]).mean() - 0.5) < 0.01
    assert (hash64(1, 2, 3, np.arange(9)) == [hash64(1, 2, 3, i)[0] for i in range(9)]).all()


def test_a_length_without_enough_rows_is_refused_with_the_next_shorter(tmp_path):
    documents = numbered(np.random.default_rng(2), 12_000, longest=40)
    corpus = Corpus(write(tmp_path / "small", documents), "train")
    works = [m for m in (8, 16, 32, 64) if min(len(legal_rows(documents, m, True)), 1000) == 1000]
    with pytest.raises(UserError, match=f"rows of length 128, .* use length {works[-1]} instead"):
        Sampler(corpus, (8, 128), seed=0, one_document=True)
    tiny = Corpus(write(tmp_path / "tiny", documents[:3]), "train")
    with pytest.raises(UserError, match="nor enough of any shorter length; use more text"):
        Sampler(tiny, (512,), seed=0)
    shutil.copy(tmp_path / "tiny" / "train.bin", tmp_path / "tiny" / "val.bin")
    assert Sampler(Corpus(tmp_path / "tiny", "val"), (512,), seed=0).windows(512) == 0


# -----------------------------------------------------------------------------------------------------------------
# pairs


def legal_pairs(documents, n):
    """{start id of a first row: start ids of the second rows it may have}: the rules, slow and obvious."""
    legal, place = {}, 0
    for document in documents:
        ends = np.cumsum([place, *map(len, document)]).tolist()
        text_end = ends[-1]
        if n > 32:
            legal |= {a: {a + n} for a in ends[:-1] if a + 2 * n <= text_end + 1}
        else:
            for a, b, c in zip(ends, ends[1:], ends[2:], strict=False):  # sentences a to b and b to c
                seconds = set(range(b, c - n + 1))
                if n <= 16 and b + n <= text_end:  # a short one is joined with the next ones
                    seconds.add(b)
                if seconds:
                    legal |= dict.fromkeys(range(a, b - n + 1), seconds)
        place = text_end + 1
    return legal


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Too few for thousands of windows, so that all of them are counted."""
    documents = numbered(np.random.default_rng(4), 2500, longest=150)
    return Corpus(write(tmp_path_factory.mktemp("data") / "few", documents), "train"), documents


@pytest.mark.parametrize("n", [1, 7, 16, 17, 32, 33, 70])
def test_pairs_are_adjacent_spans_of_one_document(corpus, few, n):
    for text, documents in (corpus, few):
        text.split = "val"  # so that rare lengths are not refused
        legal = legal_pairs(documents, n)
        sampler = Sampler(text, (n,), seed=3, pairs=True)
        assert sampler.windows(n) == min(len(legal), 1000)
        ids, document = sampler.batch(5, n, np.arange(3000))
        starts = ids[:, 0]
        assert (ids == text.tokens[starts[:, None] + np.arange(n)]).all()
        first, second = starts[0::2], starts[1::2]
        assert all(b in legal[a] for a, b in zip(first.tolist(), second.tolist(), strict=True))
        assert (document[0::2] == document[1::2]).all() and (document == text.document_of(starts)).all()
        assert (second >= first + n).all() and (second + n <= text.documents[document[1::2] + 1]).all()
        if n <= 32:
            assert (ids != EOD).all()
        if len(legal) < 500:  # of few pairs all are found
            assert len(set(first.tolist())) > 0.9 * len(legal)
        if len(legal) < 1000:
            text.split = "train"
            with pytest.raises(UserError, match=f"only {len(legal)} rows of length {n}, fewer than 1,000"):
                Sampler(text, (n,), seed=3, pairs=True)


@pytest.mark.parametrize("n", [16, 32, 64])
def test_pairs_are_a_pure_function_of_seed_step_and_row(corpus, n):
    corpus, _ = corpus
    corpus.split = "val"
    ids, documents = Sampler(corpus, (n,), seed=1, pairs=True).batch(7, n, np.arange(200))
    rows = np.random.default_rng(1).permutation(200)
    for part in (rows[:31], rows[31:], np.array([7])):  # halves of pairs, in any order
        some, their = Sampler(corpus, (8, n), seed=1, pairs=True).batch(7, n, part)
        assert (some == ids[part]).all() and (their == documents[part]).all()
    for seed, step in ((1, 8), (2, 7)):
        other, _ = Sampler(corpus, (n,), seed=seed, pairs=True).batch(step, n, np.arange(200))
        assert (other != ids).any(1).mean() > (0.9 if n < 64 else 0.5)


def test_the_offsets_of_a_pair_are_uniform_and_independent(tmp_path):
    lines = [[list(range(70 * (2 * d + s) + d, 70 * (2 * d + s) + d + 70)) for s in range(2)] for d in range(40)]
    corpus = Corpus(write(tmp_path / "even", lines), "train")  # 40 documents of two sentences of 70 tokens
    ids, document = Sampler(corpus, (20,), seed=0, pairs=True).batch(0, 20, np.arange(20_000))
    first, second = ids[0::2, 0] - 141 * document[0::2], ids[1::2, 0] - 141 * document[0::2] - 70
    for offset in (first, second):
        seen = np.bincount(offset, minlength=51)
        assert len(seen) == 51 and ((seen - seen.mean()) ** 2 / seen.mean()).sum() < 51 + 6 * 102**0.5
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert np.bincount(document[0::2], minlength=40).min() > 150  # of 250
