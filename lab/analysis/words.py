"""Words of tokenized texts, and the types of their tokens, without labels."""

import numpy as np

from lab.data.tokenizers import subword_marks, word_ends, word_starts

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
    """Token ids -> words."""

    def __init__(self, tokenizer):
        self.starts, self.ends = word_starts(tokenizer), word_ends(tokenizer)
        self.decode = tokenizer.decode
        prefix, suffix = subword_marks(tokenizer)
        pieces = (tokenizer.decode([i], skip_special_tokens=False) for i in range(len(self.starts)))
        self.pieces = [piece.strip().removeprefix(prefix).removesuffix(suffix) for piece in pieces]

    def begins(self, ids: list[int]) -> list[bool]:
        """For each token, whether a word begins with it."""
        return [bool(self.starts[i] or n and self.ends[ids[n - 1]]) for n, i in enumerate(ids)]

    def __call__(self, ids: list[int]) -> tuple[list[str], list[int]]:
        """The words, and the number of the word that each token belongs to. Punctuation is separated from letters and
        digits."""
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
    """The result of `Words` -> the type of each token. piece: continues a word; function: in the list above; name: has
    a capital within a sentence; number: has a digit; content: all others."""
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


def tfidf(texts: list[str]) -> np.ndarray:
    """[n, W] float32: counts of words (of any script) times ln((1 + n) / (1 + df)) + 1, rows of norm 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # late: the health check does without

    return TfidfVectorizer(token_pattern=r"[\w']+", dtype=np.float32).fit_transform(texts).toarray()
