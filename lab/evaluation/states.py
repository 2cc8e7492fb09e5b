"""The states of a frozen backbone, computed once for each text of an evaluation: its twins and every epoch of a
fine-tuning read the same."""

import os
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lab.distributed import exact_matmul

MOST = 8 << 30  # bytes on disk; what is beyond is computed each time


class KeptStates:
    """Called in the place of model.Tower's backbone. Its file has no name: it is gone when the process is."""

    def __init__(self, folder, most: int = MOST):
        self.file, self.most, self.used = tempfile.TemporaryFile(dir=folder), most, 0
        self.places: dict[bytes, tuple[int, tuple[int, ...]]] = {}  # ids of a text -> (where in the file, shape)

    def __deepcopy__(self, memo):
        return self  # a copy of a model reads the same states

    def __call__(self, compute: Callable, ids: Tensor, mask: Tensor | None) -> Tensor:
        """compute(ids [R, n], mask [R, n]) -> states [k, R, n, W]; ids [B, S], mask [B, S] (True: keep; padding comes
        last) -> [k, B, S, W] in float32, zero at padding."""
        lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
        keys = [row[:n].astype(np.int32).tobytes() for row, n in zip(ids.cpu().numpy(), lengths, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self.places]
        made = {}
        if new:
            with torch.no_grad(), exact_matmul(), torch.autocast(ids.device.type, enabled=False):
                states = compute(ids[new], None if mask is None else mask[new]).float().cpu()
            made = {i: states[:, row, : lengths[i]] for row, i in enumerate(new)}
            for i, own in made.items():
                self.keep(keys[i], own.numpy())
        rows = [made[i] if i in made else self.read(key) for i, key in enumerate(keys)]
        padded = rows[0].new_zeros(len(rows[0]), len(rows), ids.shape[1], rows[0].shape[-1])
        for i, own in enumerate(rows):
            padded[:, i, : own.shape[1]] = own
        return padded.to(ids.device)

    def keep(self, key: bytes, states: np.ndarray):
        if key not in self.places and self.used + states.nbytes <= self.most:
            self.file.write(np.ascontiguousarray(states).tobytes())
            self.places[key] = self.used, states.shape
            self.used += states.nbytes

    def read(self, key: bytes) -> Tensor:
        self.file.flush()
        place, shape = self.places[key]
        content = os.pread(self.file.fileno(), 4 * int(np.prod(shape)), place)
        return torch.from_numpy(np.frombuffer(content, np.float32).reshape(shape).copy())
