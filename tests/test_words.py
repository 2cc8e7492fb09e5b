"""Types of tokens against text tagged by hand; words of tokens, and which of them are wrong; TF-IDF."""

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lab import report
from lab.analysis import words
from lab.data import pmi
from lab.data.tokenizers import encode_texts, load_tokenizer, word_ends, word_starts
from noise import Noise
from problem import Rows, Vocabulary

# word/tag; noun n, name N, verb v, adjective a, adverb r, determiner d, pronoun p, preposition i, conjunction c,
# auxiliary x, number m, punctuation . Written and tagged when the rules stood, and the rules
# were not changed for it.
TAGGED = """
The/d museum/n shows/v paintings/n by/i local/a artists/n ./.
After/i the/d war/n he/p returned/v to/i Paris/N and/c opened/v a/d small/a shop/n ./.
Wolves/n hunt/v deer/n in/i large/a forests/n ./.
The/d court/n rejected/v the/d appeal/n on/i technical/a grounds/n ./.
Each/d thread/n keeps/v a/d private/a copy/n of/i the/d buffer/n ./.
My/p sister/n plays/v the/d violin/n and/c sings/v beautifully/r ./.
Oil/n prices/n fell/v sharply/r in/i March/N ./.
This/d method/n must/x not/x change/v the/d order/n of/i keys/n ./.
Two/m brothers/n founded/v the/d firm/n in/i 1887/m ./.
The/d lake/n freezes/v every/d winter/n ./.
Critics/n praised/v her/p honest/a performance/n ./.
The/d train/n to/i Oslo/N leaves/v at/i noon/n ./.
A/d strange/a noise/n woke/v the/d guests/n ./.
He/p never/r finished/v the/d third/m volume/n ./.
Farmers/n use/v the/d canal/n for/i irrigation/n ./.
When/c the/d index/n is/x negative/a ,/. count/v from/i the/d end/n ./.
The/d queen/n gave/v the/d island/n to/i her/p younger/a son/n ./.
Thousands/n of/i workers/n joined/v the/d strike/n ,/. which/p lasted/v nine/m days/n ./.
Rare/a metals/n make/v these/d magnets/n strong/a ./.
The/d valley/n has/x a/d mild/a climate/n and/c fertile/a soil/n ./.
Pilots/n train/v for/i many/d years/n ./.
The/d word/n comes/v from/i an/d old/a Greek/a root/n ./.
I/p thought/v that/c the/d answer/n was/x wrong/a ./.
Parliament/n passed/v a/d new/a law/n against/i pollution/n ./.
Students/n who/p speak/v German/N often/r visit/v Berlin/N ./.
"""
TYPES = dict.fromkeys("nvar", "content") | dict.fromkeys("dpicx", "function") | {"N": "name", ".": "punctuation"}


def test_types_are_those_of_text_tagged_by_hand():
    right = total = 0
    for line in TAGGED.split("\n")[1:-1]:
        pairs = [pair.rsplit("/", 1) for pair in line.split()]
        types = [TYPES.get(tag, "number" if word[0].isdigit() else "content") for word, tag in pairs]
        found = words.token_types([word for word, _ in pairs], range(len(pairs)))
        right += sum(a == b for a, b in zip(found, types, strict=True))
        total += len(pairs)
    assert total == 211 and right / total > 0.95 and set(found) <= set(words.TYPES)


def test_pieces_go_on_with_a_word():
    types = words.token_types(["The", "unseen", ",", "cats", "2024"], [0, 1, 1, 2, 3, 3, 4, 4])
    assert types == "function content piece punctuation content piece number number".split()
    types = words.token_types(["of", "Oslo", ".", "Wolves"], [0, 1, 2, 3])
    assert types == "function name punctuation content".split()


def test_words_of_tokens_in_both_kinds_of_tokenizer():
    bytes_ = Tokenizer(models.BPE({"Ġthe": 0, "Ġun": 1, "seen": 2, ",": 3, "Ġcat": 4, "s": 5, "<|endoftext|>": 6}, []))
    bytes_.decoder = decoders.ByteLevel()
    found, numbers = words.Words(bytes_)([2, 0, 1, 2, 3, 4, 5])
    assert found == ["seen", "the", "unseen", ",", "cats"] and numbers == [0, 1, 2, 2, 3, 4, 4]
    pieces = Tokenizer(models.WordPiece({"the": 0, "un": 1, "##seen": 2, ",": 3, "cat": 4, "##s": 5}, unk_token=","))
    pieces.decoder = decoders.WordPiece()
    assert words.Words(pieces)([0, 1, 2, 3, 4, 5])[0] == ["the", "unseen", ",", "cats"]


def of(model, pre=None, normalizer=None, decoder=None):
    tokenizer = Tokenizer(model)
    for name, part in (("pre_tokenizer", pre), ("normalizer", normalizer), ("decoder", decoder)):
        if part:
            setattr(tokenizer, name, part)
    tokenizer.add_special_tokens(["[MASK]"])
    return tokenizer


def bpe(*tokens, **about):
    """Each token is merged from left to right."""
    marks = about.get("continuing_subword_prefix", "")
    vocab, merges = {}, []
    for token in tokens:
        suffix = about.get("end_of_word_suffix", "") if token.endswith("</w>") else ""
        parts = [*token.removesuffix("</w>").removeprefix(marks)]
        parts[-1] += suffix
        parts[0] = marks * token.startswith(marks) + parts[0]
        for part in parts:
            vocab.setdefault(part, len(vocab))
        for i in range(1, len(parts)):
            pair = "".join(parts[:i]), marks + parts[i] if marks and not parts[i].startswith(marks) else parts[i]
            vocab.setdefault(pair[1], len(vocab))
            vocab.setdefault(pair[0] + pair[1].removeprefix(marks), len(vocab))
            merges.append(pair)
    return models.BPE(vocab, list(dict.fromkeys(merges)), **about)


def pieces(*tokens, **about):
    return models.WordPiece(vocab={token: i for i, token in enumerate(tokens)}, **about)


PLAIN = {"▁": -9.0, "▁the": -1.0, "▁un": -2.0, "seen": -2.0, "▁cat": -2.0, "s": -3.0, ",": -3.0, "Ġun": -3.0, "?": -9.0}
SUFFIXED = {"end_of_word_suffix": "</w>"}
BYTES = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
REPLACE = normalizers.Replace(" ", "▁")
KINDS = {
    "cased WordPiece with Maltese": of(
        pieces("the", "un", "##seen", ",", "cat", "##s", "Ġan", "▁", "?", unk_token="?"),
        pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    ),
    "WordPiece with another mark": of(
        pieces("the", "un", "@@seen", ",", "cat", "@@s", "##", unk_token=",", continuing_subword_prefix="@@"),
        pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece("@@"),
    ),
    "BPE with ##": of(
        bpe("the", "un", "##seen", "cat", "##s", ",", continuing_subword_prefix="##"), pre_tokenizers.BertPreTokenizer()
    ),
    "Unigram with Metaspace": of(
        models.Unigram([*PLAIN.items()], 8), pre_tokenizers.Metaspace(), decoder=decoders.Metaspace()
    ),
    "Unigram with another mark": of(
        models.Unigram([(token.replace("▁", "_"), p) for token, p in PLAIN.items()] + [("▁un", -9.0)], 8),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("_")]),
        decoder=decoders.Metaspace("_"),
    ),
    "Unigram with its normalizer": of(models.Unigram([*PLAIN.items()], 8), None, REPLACE, BYTES),
    "BPE with Ġ": of(
        bpe("Ġthe", "Ġun", "seen", "Ġcat", "s", ",", "▁x", "##"),
        pre_tokenizers.ByteLevel(False),
        None,
        decoders.ByteLevel(),
    ),
    "BPE with Ġ of the normalizer": of(
        bpe("Ġthe", "Ġun", "seen", "Ġcat", "s", ",", "▁x"), None, normalizers.ByteLevel(), decoders.ByteLevel()
    ),
    "BPE with spaces": of(
        bpe(" the", " un", "seen", " cat", "s", ",", "Ġx"), pre_tokenizers.Split(" ", "merged_with_next")
    ),
    "BPE with </w>": of(
        bpe("the</w>", "un", "seen</w>", "cat", "s</w>", "un</w>", ",</w>", "Ġx", **SUFFIXED),
        pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.BPEDecoder(),
    ),
    "CLIP": of(
        bpe("the</w>", "un", "seen</w>", "cat", "s</w>", ",</w>", **SUFFIXED),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "removed", True), pre_tokenizers.ByteLevel(False)]
        ),
        decoder=decoders.ByteLevel(),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_words_begin_where_the_kind_of_tokenizer_says(kind, tmp_path):
    """Not where some entry of the vocabulary looks like a mark. In every reader of it: words, noise, collocations."""
    KINDS[kind].save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(tmp_path / "t.json")
    (ids,) = encode_texts(tokenizer, ["the unseen cats, the cats"])
    found, numbers = words.Words(tokenizer)(ids)
    assert found == ["the", "unseen", "cats", ",", "the", "cats"], tokenizer.encode(" the unseen cats").tokens
    assert len(ids) > len(found) == numbers[-1] + 1
    written = [text for text, _ in words.Words(tokenizer).marked(ids, [False] * len(ids))]
    assert "".join("".join(written).split()) == "".join(tokenizer.decode(ids).split())  # CLIP's has </w> in it
    assert all(text[0] == " " for text in written[1:] if not text.startswith(","))

    mask = tokenizer.token_to_id("[MASK]")
    starts, ends = (f(tokenizer) for f in (word_starts, word_ends))
    size, row = len(starts), torch.tensor([*ids, mask, *ids])
    vocab = Vocabulary(size, mask, (), None, torch.from_numpy(starts), ends=torch.from_numpy(ends))
    apart = "##" in kind or "WordPiece" in kind or "</w>" in kind or kind == "CLIP"  # the comma is a word of its own
    words_of = [["the"], ["un", "seen"], ["cat", "s"] + [","] * (not apart)] + [[","]] * apart + [["the"], ["cat", "s"]]
    sizes = [*map(len, words_of), 1, *map(len, words_of)]
    assert sum(sizes) == len(row)
    _, units = Rows(row[None], Noise(0, 0, torch.arange(1)), vocab).order(0, 4, "word")
    assert sorted(units[0].unique(return_counts=True)[1].tolist()) == sorted(sizes)
    hashes = pmi.phrases(row.numpy(), starts, np.arange(size) == mask, ends)[0]
    assert len(hashes) == len(sizes) and hashes[len(words_of)] == 0


def test_where_no_word_is_marked_every_token_is_one():
    level = models.WordLevel({"the": 0, "Ġun": 1, "▁a": 2}, "the")
    for tokenizer in (
        of(level),
        of(level, pre_tokenizers.ByteLevel()),
        of(bpe("the", "Ġx"), pre_tokenizers.Whitespace()),
    ):
        assert word_starts(tokenizer).all() and not word_ends(tokenizer).any()


def test_a_word_is_wrong_where_one_of_its_tokens_is():
    made = Tokenizer(models.BPE({"Ġthe": 0, "Ġun": 1, "seen": 2, ",": 3, "Ġcat": 4, "s": 5, "<|endoftext|>": 6}, []))
    made.decoder = decoders.ByteLevel()
    ids, wrong = [0, 1, 2, 3, 4, 5], [False, False, True, False, False, False]
    found = words.Words(made).marked(ids, wrong)
    assert found == [(" the", False), (" unseen", True), (",", False), (" cats", False)]
    assert report.marked(found) == " the<span class=wrong> unseen</span>, cats"
    assert "&lt;b&gt;" in report.marked([("<b>", True)]) and report.cell(report.marked(found)) == report.marked(found)


def test_tfidf_by_hand():
    x = words.tfidf(["The cat, the dog.", "a DOG"])
    idf = np.log(3 / np.array([2, 2, 3, 2])) + 1  # a, cat, dog, the
    expected = np.array([[0, 1, 1, 2], [1, 0, 1, 0]]) * idf
    np.testing.assert_allclose(x, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
    assert words.tfidf(["красный дом", "дом"]).shape == (2, 2)
