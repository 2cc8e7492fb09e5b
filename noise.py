"""Stateless noise: random numbers as functions of (seed, step, row), and exact counts of tokens to take from a row."""

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF


def _mix(x):
    """The 32-bit finaliser of MurmurHash3, a bijection, for a Python int or an int64 tensor holding 0 ... 2^32-1.
    A product overflows int64, but its low 32 bits, all that is kept, are right on every device."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK32
    return x ^ (x >> 16)


class Noise:
    """
    Random numbers as a function of (seed, step, global row, stream, column) and nothing else: the corruption of a row
    is the same on any rank, micro-batch or device, and no generator has a state to save.
    """

    def __init__(self, seed: int, step: int, rows: Tensor, shape_index: int | None = None):
        """rows [B] int64: the rows' numbers in the global batch of this step; shape_index: which of an objective's
        static shapes all of them take; None: it follows from seed and step."""
        self.shape_index = seed + step if shape_index is None else shape_index
        self.rows, self.start = rows, _mix((_mix(seed & MASK32) + step) & MASK32)
        self.key = _mix((self.start + rows) & MASK32)  # [B]

    def bits(self, stream: int, columns: int) -> Tensor:
        """[B, columns] int64 in 0 ... 2^32-1. The last step is a bijection of the column, so a row has no ties and
        its argsort is the same on every device."""
        key = _mix((self.key + stream * 0x9E3779B9) & MASK32)
        return _mix(torch.arange(columns, device=key.device) ^ key[:, None])

    def order(self, stream: int, last: Tensor) -> Tensor:
        """A random order of each row's columns, [B, N]; those in `last` [B, N] bool come after all others."""
        bits = self.bits(stream, last.shape[1])
        return torch.argsort(bits + (last.long() << 32), dim=1)

    def order_units(
        self,
        stream: int,
        words: Tensor,
        last: Tensor,
        take: int,
        span: str = "",
        longest: int = 10,
        units: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        As `order`, but the first `take` columns hold whole units as far as possible: complete units in random order
        while they fit; of the first span that does not fit, its first complete words; then one-token words in random
        order; then the first tokens of one word. Returns the order [B, N], and the unit's number of each of its columns
        [B, N].

        words [B, N] bool: columns that start a word (the first column does; each in `last` is a word of its own). span:
        "": a unit is a word; "geometric", "uniform": a span of at most `longest` consecutive words, or tokens, see
        `span_lengths`. The row is treated as a ring, cut at a random word and tiled with spans, so that every column is
        taken equally often. (But words cut by the row's ends are shorter and fit more often: in rows of 64, at 10 %,
        the first and the last column are taken 9 % more often.) units [B, N] bool: words that start a unit, if units
        are not spans.
        """
        n = words.shape[1]
        place = torch.arange(n, device=words.device).expand_as(words)
        column, units = place, words if units is None else units
        if span:
            draws = self.bits(stream + 2, 2 * n)
            words = torch.ones_like(words) if span == "uniform" else words
            column = (place + torch.where(words, draws[:, n:], -1).argmax(1, keepdim=True)) % n
            words, last = words.gather(1, column), last.gather(1, column)
            ends = span_lengths(span, draws[:, :n], longest).cumsum(1)
            tile = torch.searchsorted(ends, words.cumsum(1) - 1, right=True)
            changes = (tile[:, 1:] != tile[:, :-1]) | last[:, 1:] | last[:, :-1]  # no span holds a special token
            units = words & torch.cat([words[:, :1], changes], dim=1)
        ending = torch.cat([words[:, 1:], words[:, :1]], dim=1)  # a word ends before the next
        unit = torch.where(units, place, 0).cummax(1).values  # the column of its first token
        left = torch.where(ending, place, n).flip(1).cummin(1).values.flip(1) - place  # of its word, after it
        key = self.bits(stream, n).gather(1, unit) * n + place + (last.long() << 60)  # no ties
        order = key.argsort(1)
        kind = torch.where(place + left.gather(1, order) < take, 0, 2 - (words & ending).gather(1, order).long())
        kind = torch.where(last.gather(1, order), 3, kind)
        order = order.gather(1, (kind * n + place).argsort(1))
        return column.gather(1, order), unit.gather(1, order)

    def levels(self, stream: int, rows: Tensor, n: int) -> Tensor:
        """Row numbers [B] int64 -> [B] int64, each uniform on 0 ... n-1. Rows 2i and 2i + 1 are mirrored: k and n-1-k.
        From pair to pair k advances by the golden ratio (a Weyl sequence), from a start of the step's own, so that any
        block of rows, of a micro-batch or a rank, covers the levels evenly."""
        start = _mix((self.start + (stream + 1) * 0x9E3779B9) & MASK32)
        k = (((start + rows // 2 * 0x9E3779B9) & MASK32) * n) >> 32
        return torch.where(rows % 2 == 0, k, n - 1 - k)


def count(rate: float, n: int) -> int:
    """How many of n tokens a rate below 1 takes: round(rate * n), at least one and not all."""
    return max(1, min(round(rate * n), n - 1))


def span_lengths(span: str, bits: Tensor, longest: int = 10) -> Tensor:
    """Random numbers -> lengths of spans. geometric: 1 ... longest words, p = 0.2, truncated and renormalised, mean 3.8
    at 10 (SpanBERT, Joshi et al. 2020, arXiv:1907.10529); uniform: 3 ... longest tokens (the original's plan)."""
    if span == "uniform":
        return 3 + bits % (longest - 2)
    at_most = [(1 - 0.8**length) / (1 - 0.8**longest) for length in range(1, longest)]
    return sum(((bits >= round(share * 2**32)).long() for share in at_most), torch.ones_like(bits))


PRIME = 0x5851F42D4C957F2D  # any odd number has an inverse modulo 2^64
LONGEST_PHRASE = 5  # words


def phrase_hashes(ids: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """Hashes [B, K] int64 of the tokens begin ... end - 1 [B, K] of rows [B, N], wherever in the row they stand: a
    polynomial modulo 2^64, from differences of prefix sums."""
    sign = 1 << 63
    inverse = (pow(PRIME, -1, 1 << 64) ^ sign) - sign  # as an int64
    ones = torch.ones(ids.shape[1] + 1, dtype=torch.int64, device=ids.device)
    powers, back = ((ones * number).cumprod(0) for number in (PRIME, inverse))
    sums = torch.nn.functional.pad(((ids + 1) * powers[:-1]).cumsum(1), (1, 0))
    return (sums.gather(1, end) - sums.gather(1, begin)) * back[begin]


def phrase_starts(ids: Tensor, words: Tensor, last: Tensor, known: Tensor) -> Tensor:
    """words [B, N] bool -> those that start a phrase: greedily from left to right the longest run of words whose hash
    is in `known` [M] (sorted) and that holds no column of `last`; else one word."""
    n, longest = ids.shape[1], LONGEST_PHRASE
    place = torch.arange(n, device=ids.device).expand_as(ids)
    number = words.cumsum(1) - 1
    first = torch.full((len(ids), n + longest + 1), n, device=ids.device)  # column of each word, N where there is none
    first = first.scatter(1, torch.where(words, number, n + longest), torch.where(words, place, n))
    before = torch.nn.functional.pad(last.long().cumsum(1), (1, 0))
    begin, size = first[:, :n], torch.ones_like(ids)
    for m in range(2, longest + 1):
        end = first[:, m : n + m]
        hashes = phrase_hashes(ids, begin, end)
        found = known[torch.searchsorted(known, hashes).clamp(max=len(known) - 1)] == hashes
        found &= (first[:, m - 1 : n + m - 1] < n) & (before.gather(1, end) == before.gather(1, begin))
        size = torch.where(found, m, size)
    jump = torch.nn.functional.pad((place + size).clamp(max=n), (0, 1), value=n)  # the word after its phrase
    reached = torch.zeros_like(jump, dtype=torch.bool)
    reached[:, 0] = True
    for _ in range(n.bit_length()):  # after i rounds: all that up to 2^i jumps reach
        reached = reached.scatter(1, torch.where(reached, jump, n), True)
        jump = jump.gather(1, jump)
    return words & reached.gather(1, number)
