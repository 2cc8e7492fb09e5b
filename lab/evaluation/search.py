"""What is near to what: cosines and MaxSim of stored vectors, and the order that words alone would give."""

import numpy as np
import torch
from torch.nn.functional import normalize

import losses
from lab.evaluation.floors import idf, scale_columns, word_counts

VALUES = 1 << 24  # that are in memory at a time


def unit(vectors) -> torch.Tensor:
    """Vectors of any dtype [..., D], an array or a tensor -> float32, of norm 1."""
    given = isinstance(vectors, torch.Tensor)
    return normalize(vectors.float() if given else torch.from_numpy(np.array(vectors, np.float32)), dim=-1)


def similarities(vectors, queries: torch.Tensor) -> np.ndarray:
    """vectors [n, D], such as a .npy that is mapped, queries [q, D] of norm 1 -> cosines float32 [q, n]; of sets of
    vectors [n, C, D] and [q, C, D] `losses.maxsim`."""
    size, found = max(1, VALUES // vectors[0].size), []
    for i in range(0, len(vectors), size):
        x = unit(vectors[i : i + size])
        if queries.ndim == 2:
            found.append(queries @ x.T)
        else:
            found.append(torch.stack([losses.maxsim(torch.einsum("ch,ndh->ncd", query, x)) for query in queries]))
    return torch.cat(found, 1).numpy()


def tfidf_ranks(texts: list[str], queries: list[str]) -> np.ndarray:
    """int64 [q, n]: the place of each text in the order of cosines of TF-IDF of words, equal ones share the first; 0
    where no word is shared. idf is that of the texts."""
    counts, _ = word_counts([*texts, *queries])
    weighted = scale_columns(counts, idf(counts[: len(texts)]))
    own = weighted[: len(texts)]
    norm = np.sqrt(np.asarray(own.multiply(own).sum(1)).ravel())
    products = np.asarray((weighted[len(texts) :] @ own.T).todense())
    cosines = products / np.where(norm > 0, norm, 1)
    above = [len(texts) - np.searchsorted(np.sort(row), row, "right") for row in cosines]
    return np.where(cosines > 0, np.array(above) + 1, 0)
