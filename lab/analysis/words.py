"""What a text is made of, without labels: its words, the types of its tokens, its sentences."""

from pathlib import Path

import numpy as np

from lab.configurator import UserError
from lab.data.corpus import Corpus
from lab.data.tokenizers import subword_marks, word_ends, word_starts
from lab.runs import LoadedRun

FUNCTION = set(
    "the a an this that these those each every some any no all both either neither another such many few several most "
    "more much other i you he she it we they me him us them my your his her its our their mine yours hers ours theirs "
    "myself himself herself itself themselves who whom whose which what something anything nothing everyone someone "
    "there of in to for with on at by from as into about over after under between through during before against among "
    "within without upon toward towards until near across behind beyond along around above below off out up down like "
    "per via and or but nor so yet if because since while although though than when where whether unless how why is "
    "are was were be been being am has have had having do does did will would can could may might shall should must "
    "not n't 's 're 've".split()
)
TYPES = ("function", "content", "name", "number", "punctuation", "piece")  # of tokens


class Words:
    """Token ids -> the words that they write."""

    def __init__(self, tokenizer):
        self.starts, self.ends = word_starts(tokenizer), word_ends(tokenizer)
        self.decode = tokenizer.decode
        prefix, suffix = subword_marks(tokenizer)
        pieces = (tokenizer.decode([i], skip_special_tokens=False) for i in range(len(self.starts)))
        self.pieces = [piece.strip().removeprefix(prefix).removesuffix(suffix) for piece in pieces]

    def begins(self, ids: list[int]) -> list[bool]:
        """Of each token, whether a space is before it."""
        return [bool(self.starts[i] or n and self.ends[ids[n - 1]]) for n, i in enumerate(ids)]

    def __call__(self, ids: list[int]) -> tuple[list[str], list[int]]:
        """The words, and of which of them each token is a part. Letters and digits on one side and signs on the other
        are different words."""
        words, numbers = [], []
        for i, begins in zip(ids, self.begins(ids), strict=True):
            piece = self.pieces[i]
            changes = bool(words) and bool(piece) and words[-1][-1:].isalnum() != piece[:1].isalnum()
            if not words or begins or changes:
                words.append("")
            words[-1] += piece
            numbers.append(len(words) - 1)
        return words, numbers

    def marked(self, ids: list[int], wrong: list[bool]) -> list[tuple[str, bool]]:
        """[(word as it is written, whether one of its tokens is wrong)]"""
        groups, begins = {}, self.begins(ids)
        for i, number in enumerate(self(ids)[1]):
            groups.setdefault(number, []).append(i)
        texts = [self.decode([ids[i] for i in own], skip_special_tokens=False).strip() for own in groups.values()]
        spaces = [" " * begins[own[0]] for own in groups.values()]
        marks = [any(wrong[i] for i in own) for own in groups.values()]
        return [(space + text, mark) for space, text, mark in zip(spaces, texts, marks, strict=True)]


def token_types(words: list[str], numbers: list[int]) -> list[str]:
    """What `Words` made of ids -> the type of each token. A piece goes on with a word that an earlier token began; a
    function word stands in a list, a name has a capital inside a sentence, a number a digit; the rest is content."""
    found = []
    for i, number in enumerate(numbers):
        word = words[number]
        if not any(c.isalnum() for c in word):
            kind = "punctuation"
        elif any(c.isdigit() for c in word):
            kind = "number"
        elif i and numbers[i - 1] == number:
            kind = "piece"
        elif word.lower() in FUNCTION:
            kind = "function"
        else:
            inside = number and words[number - 1][-1:] not in (".", "!", "?", "")
            kind = "name" if inside and word[0].isupper() else "content"
        found.append(kind)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


SHORTEST, LONGEST = 6, 48  # tokens of a sentence
FEWEST = 100  # sentences; with fewer the rows of the run are taken


def sentences(run: LoadedRun, folder: Path, count: int) -> tuple[list[str], str]:
    """About `count` sentences of the validation text in `folder`, none twice, in random order; where that gives hardly
    any, is not there or has another tokenizer, the rows that the run keeps. And which it is, in words."""
    try:
        corpus = Corpus(folder, "val")
        found = drawn(run, corpus, count) if corpus.tokenizer_hash == run.config["tokenizer_hash"] else []
    except UserError:
        found = []
    if len(found) >= FEWEST:
        return found, f"{len(found)} sentences of the validation text"
    texts = list(dict.fromkeys(run.tokenizer.decode(row).strip() for row in run.rows[:count].tolist()))
    return texts, f"{len(texts)} rows that the run keeps (no sentences of its text in {folder})"


def drawn(run: LoadedRun, corpus: Corpus, count: int, seed: int = 20250101) -> list[str]:
    numbers = np.random.default_rng(seed).permutation(corpus.sentences.size)[: 20 * count]  # many are too long
    start, end = corpus.sentence_spans(numbers)
    end = end - (corpus.tokens[end - 1] == corpus.eod)
    good = np.flatnonzero((end - start >= SHORTEST) & (end - start <= min(LONGEST, run.max_length)))[: 2 * count]
    texts = (run.tokenizer.decode(corpus.tokens[start[i] : end[i]].tolist()).strip() for i in good)
    return list(dict.fromkeys(texts))[:count]


def tfidf(texts: list[str]) -> np.ndarray:
    """[n, W] float32: counts of words times ln((1 + n) / (1 + df)) + 1, each row of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # late: the health check does without

    return TfidfVectorizer(token_pattern=r"[\w']+", dtype=np.float32).fit_transform(texts).toarray()
