"""Token embeddings from co-occurrences, against loops, numpy and what is already kept."""

import numpy as np
import pytest
import torch

from lab.data import spectral
from lab.data.corpus import Corpus
from tests.corpus import make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(make_corpus(tmp_path_factory.mktemp("data") / "toy", documents=120), "train")


def test_counts_equal_a_loop(corpus):
    V, window = corpus.vocab_size, 3
    expected = np.zeros((V, V))
    ends = [*corpus.sentences[1:], corpus.count]
    for start, end in zip(corpus.sentences, ends, strict=True):
        tokens = [int(t) for t in corpus.tokens[start:end] if t not in corpus.special_ids]
        for i, a in enumerate(tokens):
            for b in tokens[max(0, i - window) : i] + tokens[i + 1 : i + 1 + window]:
                expected[a, b] += 1
    assert np.array_equal(spectral.count_pairs(corpus, 10**9, window).toarray(), expected)


def test_ppmi_equals_its_definition(corpus):
    counts = spectral.count_pairs(corpus, 10**9)
    n = counts.toarray().astype(np.float64)
    context = n.sum(0) ** 0.75 / (n.sum(0) ** 0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.nan_to_num(np.maximum(np.log(n / n.sum(1, keepdims=True) / context), 0), posinf=0)
    assert np.allclose(spectral.ppmi(counts).toarray(), expected, atol=1e-5)


@pytest.mark.parametrize("dense", [True, False])
def test_factors_equal_the_svd_but_for_signs_and_rotations(corpus, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(spectral, "DENSE", 0)
    matrix = spectral.ppmi(spectral.count_pairs(corpus, 10**9))
    U, S, _ = np.linalg.svd(matrix.toarray().astype(np.float64))
    width = 1 + int(np.argmax(S[:40] / S[1:41]))  # cut where the spectrum falls most, so that the subspace is sure
    expected = U[:, :width] * S[:width] ** 0.25
    vectors = spectral.truncated_svd(matrix, width)
    assert np.allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-3)
    assert torch.equal(vectors, spectral.truncated_svd(matrix, width))  # the same bits when repeated


def test_vectors_are_kept_and_made_again_when_damaged(corpus, capsys, monkeypatch):
    torch.manual_seed(5)
    first, seconds = spectral.token_vectors(corpus, 16, 10**9)
    (path,) = corpus.folder.glob("spectral_*.safetensors")
    known = first.any(1)
    assert 0.05 < known.float().mean() < 1 and not known[list(corpus.special_ids)].any()
    assert torch.allclose(first[known].norm(dim=1), torch.full((int(known.sum()),), 4.0))
    path.write_bytes(b"damaged")
    torch.manual_seed(6)  # the vectors do not depend on it
    again, longer = spectral.token_vectors(corpus, 16, 10**9)
    assert torch.equal(again, first) and min(seconds, longer) > 0
    assert spectral.token_vectors(corpus, 16, 10**9)[1] == pytest.approx(longer)  # of the making, not of the reading
    assert "few for spectral" in capsys.readouterr().err
    assert len(list(corpus.folder.glob("spectral_*"))) == 1
    monkeypatch.setattr(spectral, "sources", lambda *more: "edited")
    spectral.token_vectors(corpus, 16, 10**9)
    monkeypatch.setitem(corpus.meta, "created", "later")  # other text with the same tokenizer, as long
    spectral.token_vectors(corpus, 16, 10**9)
    assert len(made := list(corpus.folder.glob("spectral_*"))) == 3
    for path in made:
        path.unlink()
