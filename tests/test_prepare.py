"""The prepare scripts: equal encoders, every kind of file, interruption, bad input."""

import bz2
import gzip
import importlib.util
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow
import pytest
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lab.command import command
from lab.configurator import UserError
from lab.data import prepare, text_files
from lab.data.corpus import Corpus
from lab.data.tokenizers import (
    add_special_tokens,
    encode_texts,
    load_tokenizer,
    special_ids,
    split_sentences,
    tokenizer_hash,
    vocab_size,
)

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("NANOCONCEPT_DATA", ROOT.parent / "shared" / "data"))
WORDS = "the a old cat dog river mountain sees hears likes finds green quickly don't and with 1984 Été 東京".split()
HARD = [
    "Ünïcode – naïve café, 東京 is 大きい! It's we'll DON'T 3.14 1,000,000 e.g. (a) [b] {c} \t tab\tand  two   spaces",
    "<|endoftext|> [MASK] [SEP] </s> <pad> |||EMAIL|||",
    "a" * 3000 + " " + "=-" * 700 + " \u200b\u00a0\u2003x\x00\x1f ﬁ İstanbul ΌΔΟΣ 🤗👩‍👩‍👧 e\u0301 \ufeff",
    "no end",
]


def document(random):
    sentence = lambda: " ".join(random.choices(WORDS, k=random.randint(2, 25))).capitalize() + "."  # noqa: E731
    return "\n".join(" ".join(sentence() for _ in range(random.randint(1, 4))) for _ in range(random.randint(1, 5)))


def documents(count, seed=0):
    chooser = random.Random(seed)
    return [document(chooser) for _ in range(count)]


class Texts(prepare.Source):
    def __init__(self, texts, split="train"):
        self.texts, self.split = texts, split

    def __iter__(self):
        return (prepare.Piece(self.split, text) for text in self.texts)


@pytest.fixture(scope="session")
def bpe(tmp_path_factory):
    """The path of a small tokenizer.json."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    prepare.make_tokenizer("bpe:600", Texts(documents(300) + HARD), False, path)
    return path


def script(name):
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", ROOT / "data" / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """run("text", "--key=value") in this process -> (exit code, stdout, stderr)"""

    def call(name, *flags, module=None):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, flags), f"--data_dir={tmp_path / 'data'}"])
        monkeypatch.setattr(sys, "stderr", sys.stderr)
        monkeypatch.setattr(os, "_exit", sys.exit)
        before = signal.getsignal(signal.SIGTERM)
        try:
            command((module or script(name)).main)
        except SystemExit as end:
            return end.code, *capfd.readouterr()
        finally:
            signal.signal(signal.SIGTERM, before)

    return call


def start(name, *flags, cores=None, **kwargs):
    """The same as a process."""

    def before():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as at a terminal: jobs in the background of a script ignore it
        if cores:
            os.sched_setaffinity(0, cores)

    command = [sys.executable, str(ROOT / "data" / name / "prepare.py"), *map(str, flags)]
    kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": before} | kwargs
    return subprocess.Popen(command, **kwargs)


def ids_of(text, tokenizer):
    (ids,) = encode_texts(tokenizer, [text])
    return ids


def all_tokens(texts, tokenizer):
    eod = special_ids(tokenizer)["eod"]
    return [i for text in texts for i in [*ids_of(text, tokenizer), eod]]


# -----------------------------------------------------------------------------------------------------------------
# tokenizers


@pytest.mark.parametrize("lowercase", [False, True])
def test_tiktoken_gives_the_ids_of_the_tokenizer(tmp_path, lowercase):
    texts = documents(300) + HARD
    prepare.make_tokenizer("bpe:700", Texts(texts), lowercase, tmp_path / "t.json")
    encoder = prepare.Encoder(tmp_path / "t.json")
    assert encoder.twin is not None
    sentences = [s for text in texts for s in split_sentences(text)]
    normalize = encoder.tokenizer.normalizer.normalize_str if lowercase else str
    assert [encoder.twin.encode_ordinary(normalize(s)) for s in sentences] == encoder.slow(sentences)
    assert encoder(sentences) == encoder.slow(sentences)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}")
def test_tiktoken_gives_the_ids_of_the_tokenizer_on_real_text(tmp_path):
    text = "".join(
        lzma.open(DATA / "text" / name, "rt").read(600_000) for name in ("wiki_00.txt.xz", "books_00.txt.xz")
    )
    prepare.make_tokenizer("bpe:4096", Texts([text]), False, tmp_path / "t.json")
    encoder = prepare.Encoder(tmp_path / "t.json")
    sentences = split_sentences(text)
    assert [encoder.twin.encode_ordinary(sentence) for sentence in sentences] == encoder.slow(sentences)


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
LLAMA3 += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE = pre_tokenizers
PIECES = {  # how the field's byte-level tokenizers cut text before they merge
    "gpt2": PRE.ByteLevel(add_prefix_space=False),
    "smollm2": PRE.Sequence([PRE.Digits(individual_digits=True), PRE.ByteLevel(add_prefix_space=False)]),
    "digits together": PRE.Sequence([PRE.Digits(individual_digits=False), PRE.ByteLevel(add_prefix_space=False)]),
    "llama3": PRE.Sequence([PRE.Split(Regex(LLAMA3), "isolated"), PRE.ByteLevel(False, use_regex=False)]),
    "qwen2.5": PRE.Sequence(
        [PRE.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), PRE.ByteLevel(False, use_regex=False)]
    ),
    "letters only": PRE.Sequence([PRE.Split(Regex(r"\p{L}+"), "isolated"), PRE.ByteLevel(False, use_regex=False)]),
}
ODD = ["5's 12 3a  4  b   7", "x  \t 9\u00a0\u0663 \u2167 \u00bd1", "it'S we'RE 1,234,567.89%", "   ", " 1", "a1 2b  c"]


def pieces_tokenizer(name, texts, path, size=700):
    """A tokenizer.json of byte-level BPE with these pieces, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = PIECES[name], decoders.ByteLevel()
    if name == "qwen2.5":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = PRE.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    add_special_tokens(tokenizer)
    tokenizer.save(str(path))
    return prepare.Encoder(path)


@pytest.mark.parametrize("name", PIECES)
def test_tiktoken_cuts_text_as_each_kind_of_tokenizer_does(name, tmp_path):
    """Also text of every 97th character there is, with spaces, letters and digits about it."""
    chance = random.Random(0)
    every = [chr(i) for i in range(chance.randrange(97), 0x110000, 97) if not 0xD800 <= i < 0xE000]
    odd = [
        "".join(c + chance.choice(["", " ", "  ", "a", "7", "\n"]) for c in every[i : i + 60])
        for i in range(0, len(every), 60)
    ]
    encoder = pieces_tokenizer(name, documents(300) + HARD + ODD, tmp_path / "t.json")
    sentences = [s for text in documents(100) + HARD + ODD + odd for s in split_sentences(text)]
    normalize = encoder.tokenizer.normalizer.normalize_str if encoder.tokenizer.normalizer else str
    assert [encoder.twin.encode_ordinary(normalize(s)) for s in sentences] == encoder.slow(sentences)


def test_every_way_to_make_a_token_may_be_listed(tmp_path):
    """As Llama-3's tokenizer.json does, and takes a piece that is a token whole."""
    texts = documents(300) + HARD
    pieces_tokenizer("llama3", texts, tmp_path / "t.json")
    spec = json.loads((tmp_path / "t.json").read_text())
    vocab = spec["model"]["vocab"]
    known = [token for token in sorted(vocab, key=vocab.get) if not token.startswith(("<|", "["))]
    merges = [
        [token[:i], token[i:]]
        for token in known
        for i in range(1, len(token))
        if {token[:i], token[i:]} <= vocab.keys()
    ]
    assert len(merges) > len(spec["model"]["merges"])
    spec["model"] |= {"merges": merges, "ignore_merges": True}
    (tmp_path / "t.json").write_text(json.dumps(spec))
    encoder = prepare.Encoder(tmp_path / "t.json")
    sentences = [s for text in texts for s in split_sentences(text)]
    assert [encoder.twin.encode_ordinary(s) for s in sentences] == encoder.slow(sentences)


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}")
@pytest.mark.parametrize("name", PIECES)
def test_tiktoken_cuts_real_text_as_each_kind_of_tokenizer_does(name, tmp_path):
    text = "".join(lzma.open(DATA / "text" / f"{kind}_00.txt.xz", "rt").read(12_000_000) for kind in ("wiki", "books"))
    every = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    encoder = pieces_tokenizer(name, [text[:1_000_000]], tmp_path / "t.json", 8192)
    sentences = split_sentences(text) + [every[i : i + 100] for i in range(0, len(every), 100)]
    normalize = encoder.tokenizer.normalizer.normalize_str if encoder.tokenizer.normalizer else str
    ours = [encoder.twin.encode_ordinary(normalize(s)) for s in sentences]
    assert sum(map(len, ours)) > 5e6 and ours == encoder.slow(sentences)


def test_pieces_that_no_expression_gives_are_cut_by_the_tokenizer(tmp_path):
    for pre in (
        PRE.Sequence([PRE.Punctuation(), PRE.ByteLevel(False)]),
        PRE.Sequence([PRE.Split(" ", "isolated"), PRE.ByteLevel(False, use_regex=False)]),
        PRE.Sequence([PRE.Split(Regex(" "), "removed"), PRE.ByteLevel(False, use_regex=False)]),
        PRE.Sequence([PRE.Digits(), PRE.Digits(), PRE.ByteLevel(False)]),
        PRE.ByteLevel(False, use_regex=False),
    ):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre
        assert prepare.pieces_pattern(json.loads(tokenizer.to_str())["pre_tokenizer"]) is None


def test_an_encoder_falls_back_where_tiktoken_differs(bpe):
    encoder = prepare.Encoder(bpe)
    sentences = [s for text in documents(50) for s in split_sentences(text)]
    encoder.twin = tiktoken.Encoding(
        "bytes", pat_str=r"(?s).", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )
    assert encoder(sentences) == encoder.slow(sentences)


class Panic(BaseException):
    """As the panics of Rust libraries are no Exception."""


def test_a_fast_encoder_that_fails_falls_back(bpe, monkeypatch):
    encoder, sentences = prepare.Encoder(bpe), [" One.", " x" + "\t" * 500 + "y", " Last."]
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "twin", Mock(encode_ordinary=Mock(side_effect=encoder.twin.encode_ordinary)))
        patch.setattr(prepare, "LONG", 400)  # of which tiktoken is not asked
        assert encoder(sentences) == encoder.slow(sentences)
        assert [call.args for call in encoder.twin.encode_ordinary.mock_calls] == [(" One.",), (" Last.",)]
    for error in (Panic("stack overflow"), ValueError("of tiktoken"), RecursionError()):
        twin = types.SimpleNamespace(encode_ordinary=Mock(side_effect=error))
        monkeypatch.setattr(encoder, "twin", twin)
        assert encoder(sentences) == encoder.slow(sentences) and twin.encode_ordinary.called
    twin.encode_ordinary.side_effect = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        encoder(sentences)


def test_a_text_that_no_encoder_can_read_is_named(run, tmp_path):
    texts = documents(40)
    words = sorted({word for text in texts for s in split_sentences(text) for word in s.split()})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="none"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    add_special_tokens(tokenizer)
    tokenizer.save(str(tmp_path / "t.json"))
    texts[25] += " Unheard-of words."
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    code, _, err = run("text", "--name=a", "--files", tmp_path / "a.txt", f"--tokenizer={tmp_path / 't.json'}")
    line = err.splitlines()[-1]
    assert code == 2 and line.startswith("error: the tokenizer cannot encode 'Unheard-of words.' (18 characters: "), err
    assert "; leave that text out, or take another tokenizer" in line

    broken = types.SimpleNamespace(encode_batch_fast=Mock(side_effect=Panic("stack overflow")))
    with pytest.raises(UserError, match="cannot encode 'One.' .5 characters: stack overflow"):
        encode_texts(broken, ["One. Two."])


def test_only_the_words_of_long_sentences_are_cut_for_training():
    short, long = " " + "a" * 900, " x" + "a" * 950 + " " * 250 + "b c" * 9
    assert prepare.cut_words(short) == [short]
    parts = prepare.cut_words(long)
    assert "".join(parts) == long and max(len(word) for part in parts for word in part.split()) <= 100


def test_a_million_spaces_are_prepared(run, bpe, tmp_path):
    text = "One.\n\nx" + " " * 1_000_000 + "y\n\nLast.\n"
    (tmp_path / "a.txt").write_text(text)
    code, _, err = run("text", "--name=a", "--files", tmp_path / "a.txt", f"--tokenizer={bpe}")
    assert code == 0 and "panicked" not in err, err
    tokens = [Corpus(tmp_path / "data" / "a", split).tokens.tolist() for split in ("train", "val")]
    assert sum(tokens, []) == all_tokens(text.strip().split("\n\n"), load_tokenizer(bpe))


def test_added_tokens_that_are_ordinary_text_are_kept(bpe, tmp_path):
    tokenizer = Tokenizer.from_file(str(bpe))
    tokenizer.add_tokens([AddedToken("   "), AddedToken("|||EMAIL|||", normalized=False)])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(tmp_path / "t.json"))
    encoder = prepare.Encoder(tmp_path / "t.json")
    sentences = [s for text in HARD for s in split_sentences(text)] + [" plain"] * 60
    assert encoder.twin is not None and encoder(sentences) == encoder.slow(sentences)
    assert encoder.tokenizer.token_to_id("|||EMAIL|||") in sum(encoder(sentences), [])


def test_other_kinds_of_tokenizers_have_no_twin():
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert prepare.fast_twin(words) is None
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert prepare.fast_twin(words) is None


def test_a_tiktoken_encoding_becomes_a_tokenizer(bpe, tmp_path, monkeypatch):
    twin = prepare.fast_twin(Tokenizer.from_file(str(bpe)))
    ranks = {token: rank - 4 for token, rank in twin._mergeable_ranks.items()}  # tiktoken's start at 0
    special = {"<|endoftext|>": len(ranks)}
    encoding = tiktoken.Encoding("gpt2", pat_str=prepare.GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": encoding}.get)
    prepare.make_tokenizer("tiktoken:gpt2", Texts([]), False, tmp_path / "t.json")
    tokenizer = load_tokenizer(tmp_path / "t.json")
    special = special_ids(tokenizer)
    assert sorted(special.values()) == list(range(len(ranks), len(ranks) + 4)) and special["eod"] == len(ranks)
    for text in HARD + documents(30):
        expected = [i for s in split_sentences(text) for i in encoding.encode_ordinary(s)]
        assert ids_of(text, tokenizer) == expected
    assert prepare.fast_twin(tokenizer) is not None


@pytest.mark.parametrize("name", prepare.TIKTOKEN)
def test_tiktoken_encodings_have_the_pattern_of_the_twin(name, monkeypatch):
    """Without their vocabularies, which are on the network."""
    from tiktoken_ext import openai_public

    for load in ("data_gym_to_mergeable_bpe_ranks", "load_tiktoken_bpe"):
        monkeypatch.setattr(openai_public, load, lambda *_, **__: {})
    assert openai_public.ENCODING_CONSTRUCTORS[name]()["pat_str"] == prepare.GPT2_PATTERN


# -----------------------------------------------------------------------------------------------------------------
# text


def test_every_kind_of_file_gives_the_same_corpus(run, bpe, tmp_path):
    texts = [*documents(40), HARD[0], HARD[1]]
    plain = "\n\n".join(texts[:20]) + "\r\n \t\r\n\r\n" + "\n \n".join(texts[20:]) + "\n\n"
    lines = "".join(json.dumps({"text": text, "id": 3}) + "\n" for text in texts)
    files = {
        "a.txt": plain.encode(),
        "b.txt.xz": lzma.compress(b"\xef\xbb\xbf" + plain.encode()),
        "c.gz": gzip.compress(plain.encode()),
        "d.jsonl": lines.encode(),
        "e.jsonl.gz": gzip.compress(lines.encode()),
        "c4-train.00000-of-01024.json.gz": gzip.compress(lines.encode()),
        "f.JSONL": b"\xef\xbb\xbf" + lines.encode(),
        "g.ndjson.bz2": bz2.compress(lines.encode()),
        "h.txt": plain.encode("utf-16"),
        "i.txt": plain.replace("\r\n", "\n").replace("\n", "\r").encode(),  # as old Macs wrote
        "j.txt.zst": pyarrow.compress(plain.encode(), codec="zstd", asbytes=True),
    }
    tokenizer = load_tokenizer(bpe)
    flags = (f"--tokenizer={bpe}", "--val_fraction=0")
    results = []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        code, out, err = run("text", f"--name={name}", "--files", tmp_path / name, *flags)
        assert code == 0 and "tokens" in out, err
        folder = tmp_path / "data" / name
        results.append([(folder / f"{split}.bin").read_bytes() for split in ("train", "val")])
    assert all(result == results[0] for result in results)

    train, val = Corpus(folder, "train"), Corpus(folder, "val")
    assert val.tokens.tolist() == all_tokens(texts[-1:], tokenizer)  # none is chosen: the last one
    assert train.tokens.tolist() == all_tokens(texts[:-1], tokenizer)
    assert not set(train.tokens.tolist()) & {train.mask, train.pad, train.sep}  # HARD[1] spells them out
    sentences = [s for text in texts[:-1] for s in split_sentences(text)]
    ends = np.append(train.sentences[1:], train.count)
    assert len(sentences) == len(ends)
    for sentence, begin, end in zip(sentences, train.sentences, ends, strict=True):
        ids = train.tokens[begin:end].tolist()
        assert (ids[:-1] if ids[-1] == train.eod else ids) == ids_of(sentence, tokenizer)

    meta = train.meta
    assert meta["counts"] == np.bincount(train.tokens, minlength=train.vocab_size).tolist()
    holds = np.zeros(train.vocab_size, int)
    for sentence in sentences:
        holds[list(set(ids_of(sentence, tokenizer)))] += 1
    assert meta["document_counts"] == holds.tolist()
    assert (meta["train_tokens"], meta["val_tokens"]) == (train.count, val.count)
    assert (meta["train_documents"], meta["val_documents"]) == (len(texts) - 1, 1)
    assert meta["vocab_size"] == train.vocab_size == vocab_size(tokenizer)
    assert meta["tokenizer_hash"] == tokenizer_hash(folder / "tokenizer.json") and meta["lowercase"] is False
    assert set(tmp_path.glob("data/.*")) == set()


def test_validation_documents_are_a_seeded_share(run, bpe, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(documents(1000)))
    flags = ("--files", tmp_path / "a.txt", f"--tokenizer={bpe}", "--val_fraction=0.2")
    assert run("text", "--name=a", *flags)[0] == run("text", "--name=b", *flags)[0] == 0
    a, b = (Corpus(tmp_path / "data" / name, "val") for name in "ab")
    assert a.tokens.tolist() == b.tokens.tolist()
    assert 150 < len(a.documents) - 1 < 250
    assert Corpus(tmp_path / "data" / "a", "train").meta["train_documents"] == 1001 - len(a.documents)


def test_one_long_document_streams_and_is_split_at_a_sentence(run, bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE", 5000)  # read, and put out, in many pieces
    text = "\n".join(documents(300)) + "\n" + " ".join(["Word."] * 9000) + "\n" + "nothing ends here " * 300
    (tmp_path / "a.txt").write_text(text)
    assert run("text", "--name=a", "--files", tmp_path / "a.txt", f"--tokenizer={bpe}")[0] == 0
    train, val = (Corpus(tmp_path / "data" / "a", split) for split in ("train", "val"))
    assert len(train.documents) == len(val.documents) == 2
    assert 0.94 < train.count / (train.count + val.count) < 0.96
    assert train.tokens[-1] == val.tokens[-1] == train.eod and val.sentences[0] == 0
    ids = train.tokens[:-1].tolist() + val.tokens[:-1].tolist()
    tokenizer = load_tokenizer(bpe)
    unending = len(ids_of("nothing ends here " * 300, tokenizer))  # its line is cut at spaces
    assert ids[:-unending] == ids_of(text.rpartition("\n")[0], tokenizer)
    assert train.meta["counts"] == np.bincount(train.tokens, minlength=train.vocab_size).tolist()
    assert sum(train.meta["document_counts"]) < train.count


def test_lowercase_is_saved_and_applied(run, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(documents(60)))
    code, _, err = run("text", "--name=a", "--files", tmp_path / "a.txt", "--tokenizer=bpe:300", "--lowercase")
    assert code == 0, err
    corpus = Corpus(tmp_path / "data" / "a", "train")
    tokenizer = load_tokenizer(corpus.folder / "tokenizer.json")
    assert corpus.meta["lowercase"] is True and vocab_size(tokenizer) == 300
    text = tokenizer.decode(corpus.tokens.tolist())
    assert text == text.lower() and "été" in text
    assert ids_of("THE OLD CAT.", tokenizer) == ids_of("the old cat.", tokenizer)


def test_a_finished_folder_is_only_replaced_on_demand(run, bpe, tmp_path):
    flags = ("--name=a", "--files", tmp_path / "a.txt", f"--tokenizer={bpe}")
    (tmp_path / "a.txt").write_text("\n\n".join(documents(50)))
    assert run("text", *flags)[0] == 0
    train = tmp_path / "data" / "a" / "train.bin"
    before = train.read_bytes()
    code, _, err = run("text", *flags)
    assert code == 2 and "--overwrite" in err
    (tmp_path / "a.txt").write_text("One sentence only, which is too little.")
    assert run("text", *flags, "--overwrite")[0] == 2
    assert train.read_bytes() == before and Corpus(train.parent, "train").count > 0  # a failed one harms nothing
    (tmp_path / "a.txt").write_text("\n\n".join(documents(50, seed=1)))
    assert run("text", *flags, "--overwrite")[0] == 0
    assert train.read_bytes() != before and Corpus(train.parent, "train").count > 0


# -----------------------------------------------------------------------------------------------------------------
# real processes: several cores, signals


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Some megabytes of text, enough for several processes."""
    path = tmp_path_factory.mktemp("large") / "large.txt"
    path.write_text("\n\n".join(documents(1000) * 8))
    return path


def test_killed_it_leaves_nothing_that_looks_finished(large, bpe, tmp_path):
    flags = ("--name=a", "--files", large, f"--tokenizer={bpe}", f"--data_dir={tmp_path}")
    process = start("text", *flags)
    wait_for(lambda: (tmp_path / "a/.making/train.bin").exists() and children(process.pid))
    workers = children(process.pid)
    process.kill()
    process.communicate()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".lock", ".making"]
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}/status") for pid in workers))

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start("text", *flags, start_new_session=True)
        wait_for(lambda: children(process.pid))  # noqa: B023
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # Ctrl-C reaches the workers, too, which have hardly begun
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert process.returncode == code and "Traceback" not in err, err
        assert list((tmp_path / "a").iterdir()) == []  # what the killed one left is gone too

    process = start("text", *flags)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(prepare.FILES)
    several = (tmp_path / "a" / "train.bin").read_bytes()
    process = start("text", *flags, "--overwrite", cores={min(os.sched_getaffinity(0))})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (tmp_path / "a" / "train.bin").read_bytes() == several  # the number of cores changes nothing


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_pydocs(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)  # no further processes
    code, _, err = run("pydocs", "--max_mb=0.6", "--tokenizer=bpe:1024")
    assert code == 0, err
    folder = tmp_path / "data" / "pydocs"
    train, val = (Corpus(folder, split) for split in ("train", "val"))
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    texts = [
        tokenizer.decode(corpus.tokens[a:b].tolist())
        for corpus in (train, val)
        for a, b in zip(corpus.documents, corpus.documents[1:], strict=False)
    ]
    assert len(set(texts)) == len(texts) > 500
    assert ">>>" not in "".join(texts)
    assert 0.005 < val.count / train.count < 0.25
    assert train.meta["versions"]["numpy"] == np.__version__ and train.vocab_size == 1024
    assert 0.59e6 < train.meta["characters"] < 0.8e6


def test_prose_of_a_docstring():
    prose = script("pydocs").prose(
        """Summary line that is
        wrapped, with :class:`~a.B` and ``code``.

        Parameters
        ----------
        x : array_like, optional
            The values to
            be summed.

        Args:
            name (str): Its name, which
                is long.

        * First item of
          a list.
        * Second item of it.

        ===  ===
        a b  c d
        ===  ===

        Use it like this::

            code = that_is(dropped)

        .. note::
            But this is kept.

        >>> doctest(1)
        result of the doctest
        """
    )
    assert prose.split("\n") == [
        "Summary line that is wrapped, with a.B and code.",
        "The values to be summed.",
        "Its name, which is long.",
        "First item of a list.",
        "Second item of it.",
        "Use it like this",
        "But this is kept.",
    ]


# -----------------------------------------------------------------------------------------------------------------
# mistakes


def bad_file(name, data):
    def make(folder):
        (folder / name).write_bytes(data)
        return ["--name=x", "--files", folder / name]

    return make


def good(*flags, name="x"):
    return lambda folder: [*bad_file("good.txt", b"One. Two.\n\nThree. Four.\n")(folder), f"--name={name}", *flags]


MISTAKES = {
    "no name": lambda folder: [],
    "no files": lambda folder: ["--name=x"],
    "missing.txt does not exist": lambda folder: ["--name=x", "--files", folder / "missing.txt"],
    "is no file": lambda folder: ["--name=x", "--files", folder],
    "not UTF-8 at byte 3;": bad_file("a.txt", b"abc\xff\xfe"),
    "not UTF-8 at byte 1,048,577;": bad_file("a.txt", b"a" * 1_048_577 + b"\xe9 cole"),
    "no text in the files": bad_file("a.txt", b" \n\n\t\n"),
    "only one sentence": bad_file("a.txt", b"Just this."),
    "a.jsonl:2 is no JSON": bad_file("a.jsonl", b'{"text": "a. b."}\n{"txt": 1}\n'),
    "b.txt is a parquet file": lambda folder: [
        *bad_file("b.txt", b"PAR1\x15\x04")(folder)[:1],
        f"--files={good()(folder)[2]},{folder / 'b.txt'}",
    ],
    "a.txt.gz is damaged": bad_file("a.txt.gz", gzip.compress(b"a. " * 9999)[:-9]),
    "'../x' is no name": good(name="../x"),
    "'a/b' is no name": good(name="a/b"),
    "bpe:abc names no vocabulary size of 260 to 65536": good("--tokenizer=bpe:abc"),
    "bpe:100 names no vocabulary size of 260 to 65536": good("--tokenizer=bpe:100"),
    "bpe:65537 names no vocabulary size of 260 to 65536": good("--tokenizer=bpe:65537"),
    "words does not exist": good("--tokenizer=words"),
    "missing.json does not exist": good("--tokenizer=missing.json"),
    "good.txt is not a tokenizer": lambda folder: [*good()(folder), f"--tokenizer={folder / 'good.txt'}"],
    "tiktoken has no encoding 'nope'": good("--tokenizer=tiktoken:nope"),
    "take one of gpt2": good("--tokenizer=tiktoken:o200k_base"),
    "val_fraction must be": good("--val_fraction=0.9"),
    "val_fraction must": good("--val_fraction=abc"),
    "did you mean": good("--tokeniser=bpe:300"),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_end_in_one_line(run, tmp_path, words):
    begin = time.monotonic()
    code, out, err = run("text", *MISTAKES[words](tmp_path))
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and out == "" and len(lines) == 1, err
    assert words in lines[0] and "; " in lines[0] and "Traceback" not in err
    assert time.monotonic() - begin < 10
    assert not list(tmp_path.glob("data/*")) and not list(tmp_path.glob("data/.*"))


def test_a_folder_that_cannot_be_made(run, tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    code, _, err = run("text", *good()(tmp_path))
    assert code == 2 and "cannot be written to" in err


def test_help_and_exit_codes_of_the_processes(tmp_path):
    for name in ("text", "pydocs", "hub"):
        process = start(name, "--help")
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0 and "--data_dir" in out and "--tokenizer" in out, err
    process = start("text", "--name=x", "--files", tmp_path / "none.txt", f"--data_dir={tmp_path}")
    out, err = process.communicate(timeout=10)
    assert process.returncode == 2 and err.startswith("error: ") and err.count("\n") == 1 and out == ""


def test_a_killed_worker_is_a_sentence_about_memory(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with pytest.raises(UserError, match="was killed, most likely because the machine is out of memory"):
        list(prepare.ordered_map(os._exit, [9, 9, 9]))
