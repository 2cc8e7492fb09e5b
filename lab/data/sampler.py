"""The sampler: rows of token ids as a pure function of (seed, step, row), and the hashes that draw them."""

import numpy as np

from lab.configurator import UserError, show
from lab.data.corpus import CHUNK, MIN_WINDOWS, Corpus

# ---------------------------------------------------------------------------------------------------------------------
# the sampler: rows as a pure function of (seed, step, row)

LENGTH, SENTENCE, OFFSET, VARIANT = 1, 2, 3, 4  # streams of random numbers that share nothing


def hash32(salt: int, *keys) -> np.ndarray:
    """uint32 from integers or integer arrays (broadcast): MurmurHash3's finaliser over each half of each key."""
    state = np.full(1, salt, np.uint32)
    for key in keys:
        key = np.asarray(key, np.int64).view(np.uint64) if not isinstance(key, int) else np.uint64(key & (1 << 64) - 1)
        for half in (key & np.uint64(0xFFFFFFFF), key >> np.uint64(32)):
            state = (state ^ half.astype(np.uint32)) + np.uint32(0x9E3779B9)
            state = (state ^ state >> np.uint32(16)) * np.uint32(0x85EBCA6B)
            state = (state ^ state >> np.uint32(13)) * np.uint32(0xC2B2AE35)
            state = state ^ state >> np.uint32(16)
    return state


def hash64(*keys) -> np.ndarray:
    """uint64 of two 32-bit hashes, enough to address 10^11 tokens uniformly."""
    high, low = hash32(0x243F6A88, *keys), hash32(0x85A308D3, *keys)
    return high.astype(np.uint64) << np.uint64(32) | low


def choose(shares, *keys) -> np.ndarray:
    """Indices drawn with probabilities proportional to `shares`, as a function of the keys (broadcast)."""
    ends = np.cumsum(shares)
    return np.searchsorted(ends / ends[-1], hash64(*keys) / 2.0**64, side="right").clip(max=len(ends) - 1)


class Sampler:
    """Draws rows of n tokens, one length per step; all sentences that offer a row are equally likely.

    n <= 16: n tokens of a sentence from a random offset; a shorter sentence is joined with the next ones of its
    document. n <= 32: n tokens of a sentence at least that long, from a random offset. Neither contains an
    end-of-document token. n > 32: from the start of a sentence, across documents unless `one_document` (then up to its
    end-of-document token).

    pairs: rows 2i and 2i + 1 are adjacent spans of one document: for n <= 32, n tokens of each of two consecutive
    sentences (only the second may be joined with what follows it); else the halves of 2n tokens.
    UserError if a length has fewer than 1,000 windows in a training split; for other splits see `windows`.
    """

    def __init__(self, corpus: Corpus, lengths, seed: int, one_document: bool = False, pairs: bool = False):
        self.corpus, self.lengths, self.seed = corpus, tuple(lengths), seed
        self.one_document, self.pairs = one_document or pairs, pairs
        for n in self.lengths if corpus.split == "train" else ():
            if self.windows(n) < MIN_WINDOWS:
                raise UserError(self.refusal(n))

    def refusal(self, n: int) -> str:
        what = f"{show(self.corpus.path)} has only {self.windows(n)} rows of length {n}, fewer than {MIN_WINDOWS:,}"
        shorter = {m for m in self.lengths if m < n} | {1 << k for k in range(1, n.bit_length()) if 1 << k < n}
        for m in sorted(shorter, reverse=True):
            if self.windows(m) >= MIN_WINDOWS:
                return f"{what}; use length {m} instead, or more text"
        return f"{what}, nor enough of any shorter length; use more text"

    def length(self, step: int, mix: tuple[float, ...] = ()) -> int:
        """The row length of a step, drawn with probabilities proportional to `mix`; (): uniform."""
        if mix:
            return self.lengths[choose(mix, self.seed, LENGTH, step)[0]]
        return self.lengths[int(hash64(self.seed, LENGTH, step)[0] % np.uint64(len(self.lengths)))]

    def places(self, n: int, sentence: np.ndarray, second=0) -> tuple[np.ndarray, np.ndarray]:
        """For sentence numbers: (start of the first row of n tokens, number of rows that the sentence offers). With
        pairs: of the first rows or, where `second` is 1 (broadcast), of the second ones; a pair is offered as a
        whole."""
        if not self.pairs:
            return self.single_places(n, sentence)
        if n > 32:
            start, rows = self.single_places(2 * n, sentence)
            return start + second * n, rows
        corpus, following = self.corpus, np.minimum(sentence + 1, self.corpus.sentences.size - 1)
        start, rows = self.single_places(n, sentence, join=False)
        start2, rows2 = self.single_places(n, following)
        both = (following > sentence) & (corpus.document_of(start) == corpus.document_of(start2))
        both &= (rows > 0) & (rows2 > 0)
        return np.where(second, start2, start), np.where(second, rows2, rows) * both

    def single_places(self, n: int, sentence: np.ndarray, join: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """`places` without pairs. join: a short sentence may be joined with the next ones."""
        corpus = self.corpus
        start, end = corpus.sentence_spans(sentence)
        if n > 32:
            limit = corpus.documents[corpus.document_of(start) + 1] if self.one_document else corpus.count
            return start, (start + n <= limit).astype(np.int64)
        end = end - (corpus.tokens[end - 1] == corpus.eod)  # of a document's last sentence
        rows = np.maximum(end - start - n + 1, 0)
        if n <= 16 and join:
            text_end = corpus.documents[corpus.document_of(start) + 1] - 1
            rows = np.maximum(rows, start + n <= text_end)
        return start, rows

    def windows(self, n: int) -> int:
        """Number of rows of n tokens in the corpus, at most 1,000."""
        count, size = 0, self.corpus.sentences.size
        for at in range(0, size, CHUNK // 16):
            count += int(self.places(n, np.arange(at, min(at + CHUNK // 16, size)))[1].sum())
            if count >= MIN_WINDOWS:
                return MIN_WINDOWS
        return count

    def reach(self, n: int) -> int:
        """About how many tokens of the corpus occur in rows of n tokens, estimated from 131,072 sentences."""
        size, span = self.corpus.sentences.size, 2 * n if self.pairs else n
        sentences = np.linspace(0, size - 1, min(size, 1 << 17)).astype(np.int64)
        start, end = self.corpus.sentence_spans(sentences)
        first, next_ = (self.places(n, np.minimum(sentences + i, size - 1))[1] > 0 for i in (0, 1))
        held = first * np.where(next_ & (sentences < size - 1), end - start, np.maximum(end - start, span))
        return int(np.clip(held.mean() * size, MIN_WINDOWS, self.corpus.count))

    def batch(self, step: int, n: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global row numbers [R] -> (ids int64 [R, n], document of each row int64 [R]). For each row sentences are
        drawn until one offers a row, more per round for the rows that are left."""
        rows = np.asarray(rows, np.int64)
        sentences = np.uint64(self.corpus.sentences.size)
        starts = np.zeros(rows.size, np.int64)
        left = np.arange(rows.size)
        tried, ahead = 0, 2
        while left.size:
            row, draws = rows[left], np.arange(tried, tried + ahead)
            text, second = (row // 2, row % 2) if self.pairs else (row, row * 0)
            drawn = (hash64(self.seed, SENTENCE, step, text[:, None], draws) % sentences).astype(np.int64)  # [r, ahead]
            start, offered = self.places(n, drawn, second[:, None])
            hit = (offered > 0).any(1)
            first = (offered > 0).argmax(1)[hit, None]  # the draw that counts does not depend on `ahead`
            start, offered = (np.take_along_axis(a[hit], first, 1)[:, 0] for a in (start, offered))
            offset = hash64(self.seed, OFFSET, step, row[hit]) % offered.astype(np.uint64)
            starts[left[hit]] = start + offset.astype(np.int64)
            left = left[~hit]
            tried, ahead = tried + ahead, min(2 * ahead, 512)
            if tried > 1_000_000 and left.size:
                raise UserError(f"{show(self.corpus.path)} has hardly a row of length {n}; leave this length out")
        return self.corpus.gather(starts, n), self.corpus.document_of(starts)
