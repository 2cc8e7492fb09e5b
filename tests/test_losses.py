"""The chunked cross-entropy against the plain one."""

import pytest
import torch
import torch.nn.functional as F

import losses


def example(rows=37, width=8, vocab=50, dtype=torch.float64):
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, width, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(vocab, (rows,)), torch.rand(rows)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 8, 37, 1000, 0])
def test_equals_plain(chunk, weighted):
    hidden, weight, targets, weights = example()
    ce = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    plain = (ce * weights).sum() if weighted else ce.mean()
    given = {"weights": weights if weighted else None, "chunk": chunk}
    chunked = losses.cross_entropy(hidden, weight, targets, **given)
    torch.testing.assert_close(chunked, plain)
    with torch.no_grad():
        torch.testing.assert_close(losses.cross_entropy(hidden, weight, targets, **given), chunked)
    expected = torch.autograd.grad(3 * plain, (hidden, weight))  # the upstream gradient counts, too
    gradient = torch.autograd.grad(3 * chunked, (hidden, weight))
    torch.testing.assert_close(gradient, expected)


def test_a_second_backward_is_refused_not_wrong():
    hidden, weight, targets, _ = example()
    loss = losses.cross_entropy(hidden, weight, targets)
    torch.autograd.grad(2 * loss, hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(2 * loss, hidden)


def test_large_logits_stay_finite():
    hidden, weight, targets, _ = example(dtype=torch.float32)
    loss = losses.cross_entropy(hidden * 1e4, weight, targets, chunk=8)
    torch.testing.assert_close(loss, F.cross_entropy(1e4 * hidden @ weight.T, targets))
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (hidden, weight)))


def test_autocast_sums_in_float32():
    hidden, weight, targets, _ = example(rows=64, dtype=torch.float32)
    exact = losses.cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        half = losses.cross_entropy(hidden, weight, targets, chunk=16)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.03, rtol=0)
    for g, h in zip(
        torch.autograd.grad(exact, (hidden, weight)), torch.autograd.grad(half, (hidden, weight)), strict=True
    ):
        assert h.dtype == torch.float32
        torch.testing.assert_close(h, g, atol=0.02 * g.abs().max().item(), rtol=0.1)


def test_repeats_bit_for_bit():
    def run():
        hidden, weight, targets, _ = example(dtype=torch.float32)
        loss = losses.cross_entropy(hidden, weight, targets, chunk=8)
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
