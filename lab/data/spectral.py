"""
Token embeddings from co-occurrence counts of the corpus, without labels and without training.

Co-occurrences within a window and a sentence are counted symmetrically with equal weights and turned into positive
pointwise mutual information (PPMI) with context counts to the power 0.75; the rows of U S^0.25 of its truncated SVD,
minus their mean, are the token vectors (Levy & Goldberg 2014; Levy, Goldberg & Dagan 2015, Q15-1016).
"""

import hashlib
import json
import signal
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy import sparse
from scipy.special import logsumexp
from tqdm import tqdm

from lab.command import log
from lab.configurator import warn
from lab.data.corpus import Corpus
from lab.files import replacing
from lab.sources import sources

WINDOW = 8  # tokens on each side
SMOOTHING = 0.75  # power of the context counts
POWER = 0.25  # of the singular values
FEWEST = 50  # co-occurrences below which a token keeps its random vector
OVERSAMPLED, ITERATIONS = 32, 2  # of the randomised SVD
DENSE = 20_000  # largest vocabulary with a dense matrix (1.6 GB), which is several times as fast
SENTENCES = 10_000  # below which there is a warning


def count_pairs(corpus: Corpus, most: int, window: int = WINDOW, stop=lambda: 0) -> sparse.csr_array:
    """Counts of token b within `window` tokens of token a in the same sentence: float32 [V, V], symmetric; without
    special tokens. stop: called repeatedly; returns the number of a signal that stops this, or 0."""
    V = corpus.vocab_size
    total = sparse.csr_array((V, V), dtype=np.float32)
    with tqdm(total=min(most, corpus.count), unit="tok", unit_scale=True, desc="counting pairs", mininterval=1) as bar:
        for tokens, lengths in corpus.pieces(most):
            if number_of_signal := stop():
                raise KeyboardInterrupt(signal.Signals(number_of_signal).name)
            bar.update(len(tokens))
            text = ~np.isin(tokens, corpus.special_ids)
            tokens, number = tokens[text], np.repeat(np.arange(len(lengths)), lengths)[text]
            piece = sparse.csr_array((V, V), dtype=np.float32)
            for distance in range(1, window + 1):
                same = number[:-distance] == number[distance:]
                pairs = tokens[:-distance][same], tokens[distance:][same]
                piece += sparse.csr_array((np.ones(same.sum(), np.float32), pairs), shape=(V, V))
            total += piece
    return sparse.csr_array(total + total.T)


def ppmi(counts: sparse.csr_array, smoothing: float = SMOOTHING) -> sparse.csr_array:
    """max(0, ln p(a, b) / (p(a) p'(b))) of counts [V, V], where p'(b) is proportional to count(b) ** smoothing. In
    place, since there may be 10^8 counts."""
    of_token = np.asarray(counts.sum(1), np.float64).ravel()
    with np.errstate(divide="ignore"):  # tokens without co-occurrences
        log_token, log_context = np.log(of_token), smoothing * np.log(of_token)
    log_context -= logsumexp(log_context)
    values = np.log(counts.data, out=counts.data)
    values -= np.repeat(log_token.astype(np.float32), np.diff(counts.indptr))
    values -= log_context.astype(np.float32)[counts.indices]
    np.maximum(values, 0, out=values)
    counts.eliminate_zeros()
    return counts


def matmul(matrix, x: torch.Tensor) -> torch.Tensor:
    """matrix @ x for a tensor or a sparse array."""
    return matrix @ x if isinstance(matrix, torch.Tensor) else torch.from_numpy(matrix @ x.numpy())


def truncated_svd(matrix: sparse.csr_array, width: int) -> torch.Tensor:
    """U S^POWER of the truncated SVD of a matrix [V, V] -> float32 [V, width], by randomised subspace iteration (Halko,
    Martinsson & Tropp 2011). Deterministic."""
    V = matrix.shape[0]
    if V <= DENSE:
        matrix = torch.from_numpy(matrix.toarray())
    Q = torch.randn(V, min(width + OVERSAMPLED, V), generator=torch.Generator().manual_seed(0))
    Q = torch.linalg.qr(matmul(matrix, Q)).Q
    for _ in range(ITERATIONS):
        Q = torch.linalg.qr(matmul(matrix.T, Q)).Q
        Q = torch.linalg.qr(matmul(matrix, Q)).Q
    U, S, _ = torch.linalg.svd(matmul(matrix.T, Q).T, full_matrices=False)  # of Q' matrix
    vectors = Q @ U[:, :width] * S[:width] ** POWER
    return torch.nn.functional.pad(vectors, (0, width - vectors.shape[1]))  # a vocabulary smaller than the width


def make_vectors(corpus: Corpus, width: int, most: int, stop=lambda: 0) -> torch.Tensor:
    """float32 [V, width]: rows of norm sqrt(width), or zero for tokens with too few co-occurrences."""
    if corpus.sentences.size < SENTENCES:
        warn(f"{corpus.sentences.size:,} sentences are few for spectral token embeddings ({SENTENCES:,} are wanted)")
    counts = count_pairs(corpus, most, stop=stop)
    known = torch.from_numpy(np.asarray(counts.sum(1)).ravel() >= FEWEST)
    vectors = truncated_svd(ppmi(counts), width)
    vectors[known] -= vectors[known].mean(0)
    vectors = torch.nn.functional.normalize(vectors, dim=1) * width**0.5
    return vectors * known[:, None]


def token_vectors(corpus: Corpus, width: int, most: int, stop=lambda: 0) -> tuple[torch.Tensor, float]:
    """(`make_vectors`, seconds that they took), cached beside the data under a hash of all that they depend on."""
    settings = [sources("lab/data/spectral.py"), width, min(most, corpus.count), corpus.digest()]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = Path(corpus.folder) / f"spectral_{digest}.safetensors"
    try:
        kept = load_file(path)
        if kept["vectors"].shape == (corpus.vocab_size, width):
            return kept["vectors"], float(kept["seconds"])
    except (OSError, SafetensorError, KeyError):  # absent or damaged
        pass
    start = time.monotonic()
    vectors = make_vectors(corpus, width, int(most), stop)
    seconds = time.monotonic() - start
    log(f"spectral token embeddings: {seconds:.0f} s")
    try:
        with replacing(path) as temporary:
            save_file({"vectors": vectors, "seconds": torch.tensor(seconds, dtype=torch.float64)}, temporary)
    except (OSError, SafetensorError) as error:
        warn(f"{path} cannot be written ({error}); the token embeddings will be computed again next time")
    return vectors, seconds
