"""Random numbers that are functions of (seed, step, row), and the exact counts every noise takes from a row."""

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
    Random numbers as a function of (seed, step, global row, call, column) and of nothing else: the corruption of a row
    is the same on any rank, micro-batch or device, and no generator has a state to save.
    """

    def __init__(self, seed: int, step: int, rows: Tensor, turn: int | None = None):
        """rows [B] int64: the rows' numbers in the global batch of this step; turn: which of a few shapes all of them
        take, in turn, known to the host; None: it follows from seed and step."""
        self.turn = seed + step if turn is None else turn
        self.rows, self.start = rows, _mix((_mix(seed & MASK32) + step) & MASK32)
        self.key = _mix((self.start + rows) & MASK32)  # [B]

    def bits(self, call: int, columns: int) -> Tensor:
        """[B, columns] int64 in 0 ... 2^32-1. The last step is a bijection of the column, so a row has no ties and
        its argsort is the same on every device."""
        key = _mix((self.key + call * 0x9E3779B9) & MASK32)
        return _mix(torch.arange(columns, device=key.device) ^ key[:, None])

    def order(self, call: int, last: Tensor) -> Tensor:
        """A random order of each row's columns, [B, N]; those in `last` [B, N] bool come after all others."""
        bits = self.bits(call, last.shape[1])
        return torch.argsort(bits + (last.long() << 32), dim=1)

    def levels(self, call: int, rows: Tensor, n: int) -> Tensor:
        """rows [B] int64, their numbers -> [B] int64, each uniform on 0 ... n-1 and all of them evenly spread. Rows 2i
        and 2i + 1 are mirrored, they get k and n-1-k. From pair to pair k goes round by the golden ratio (Weyl), from a
        start that is the step's: any block of rows, be it a micro-batch or a rank's, covers the levels alike."""
        start = _mix((self.start + (call + 1) * 0x9E3779B9) & MASK32)
        k = (((start + rows // 2 * 0x9E3779B9) & MASK32) * n) >> 32
        return torch.where(rows % 2 == 0, k, n - 1 - k)


def count(rate: float, n: int) -> int:
    """How many of n tokens a rate below 1 takes: round(rate * n), at least one and not all."""
    return max(1, min(round(rate * n), n - 1))
