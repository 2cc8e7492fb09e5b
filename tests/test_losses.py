"""The chunked cross-entropy and the contrastive loss against plain loops, and the latter on two ranks."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import losses
from tests.training import on_two_ranks


def example(rows=37, width=8, vocab=50, dtype=torch.float64):
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, width, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(vocab, (rows,)), torch.rand(rows)


def slow_cross_entropy(hidden, weight, targets, weights, smoothing):
    """targets [M, n]: the mean, or the sum weighted by weights [M, n]."""
    total = 0.0
    for log_p, row, w in zip(torch.log_softmax(hidden @ weight.T, 1), targets, weights, strict=True):
        ce = -(1 - smoothing) * log_p[row] - smoothing * log_p.mean()
        total = total + (w * ce).sum()
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bag", [1, 6])
@pytest.mark.parametrize("chunk", [1, 8, 1000, 0])
def test_equals_a_loop(chunk, bag, smoothing):
    """One target a row, or a bag of them; with and without weights, and gradients."""
    hidden, weight, _, _ = example()
    targets, weights = torch.randint(50, (37, bag)), torch.rand(37, bag, dtype=torch.float64)
    if bag > 1:
        targets[:, 4] = targets[:, 1]  # a word that stands in the bag twice counts twice
    weights[3] = 0  # nothing of this row counts
    for given in weights, None:
        mean = torch.full_like(weights, 1 / weights.numel())
        slow = slow_cross_entropy(hidden, weight, targets, mean if given is None else weights, smoothing)
        keys = {"weights": given, "chunk": chunk, "smoothing": smoothing}
        chunked = losses.cross_entropy(hidden, weight, targets, **keys)
        torch.testing.assert_close(chunked, slow)
        with torch.no_grad():
            torch.testing.assert_close(losses.cross_entropy(hidden, weight, targets, **keys), slow)
        expected = torch.autograd.grad(3 * slow, (hidden, weight))  # the upstream gradient counts, too
        torch.testing.assert_close(torch.autograd.grad(3 * chunked, (hidden, weight)), expected)


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


# ---- what it costs


@pytest.mark.parametrize("frozen", ["hidden", "weight", None])
def test_what_is_frozen_costs_no_gradient(frozen):
    hidden, weight, targets, _ = example()
    expected = torch.autograd.grad(losses.cross_entropy(hidden, weight, targets), (hidden, weight))
    learnt = [x for name, x in (("hidden", hidden), ("weight", weight)) if name != frozen]
    for x in (hidden, weight):
        x.requires_grad_(any(x is one for one in learnt))
    with FlopCounterMode(display=False) as counter:
        found = torch.autograd.grad(losses.cross_entropy(hidden, weight, targets), learnt)
    both = zip((hidden, weight), expected, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(found, [b for x, b in both if x.requires_grad], strict=True))
    assert counter.get_total_flops() == (1 + len(learnt)) * 2 * 37 * 8 * 50  # the logits, and a product a gradient


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside held at any one time."""

    def __init__(self):
        super().__init__()
        self.alive, self.bytes = {}, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for storage in (x.untyped_storage() for x in tree_leaves(result) if torch.is_tensor(x)):
            self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.bytes = max(self.bytes, sum(size for _, size in self.alive.values()))
        return result


@pytest.mark.parametrize("chunk, dtype", [(32, torch.float32), (128, torch.bfloat16)])
def test_one_chunk_of_logits_is_there_at_a_time(chunk, dtype):
    """In training: besides it the two gradients, each once more while it is made. (bfloat16: with its float32 copy.)"""
    rows, width, vocab = 512, 16, 4000
    hidden, weight, targets, _ = example(rows, width, vocab, torch.float32)
    with Peak() as peak, torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        losses.cross_entropy(hidden, weight, targets, chunk=chunk).backward()
    with Peak() as plain:
        F.cross_entropy(hidden @ weight.T, targets).backward()
    logits, gradients = 4 * vocab * rows, 4 * width * (rows + vocab)
    assert plain.bytes > 3 * logits  # of all rows
    assert peak.bytes < (1.6 if dtype == torch.bfloat16 else 1.1) * logits * chunk / rows + 2.5 * gradients


@pytest.mark.parametrize("weighted", [False, True])
def test_a_bag_of_one_is_a_target_bit_for_bit(weighted):
    hidden, weight, targets, weights = example(dtype=torch.float32)
    found = []
    for shape in ((37,), (37, 1)):
        given = {"weights": weights.view(shape) if weighted else None, "chunk": 8}
        loss = losses.cross_entropy(hidden, weight, targets.view(shape), **given)
        with torch.no_grad():
            unlearnt = losses.cross_entropy(hidden, weight, targets.view(shape), **given)
        found.append((loss, unlearnt, *torch.autograd.grad(loss, (hidden, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# ---- contrastive


def slow_contrastive(pooled, group, temperature):
    """Row by row: a view's other one among the other ones of all texts but those of the same document."""
    unit = [x / x.norm() for x in pooled]
    total, texts = 0.0, len(pooled) // 2
    for i in range(len(pooled)):
        other = (i + texts) % len(pooled)
        among = range(0, texts) if i >= texts else range(texts, 2 * texts)
        scores = [unit[i] @ unit[j] / temperature for j in among if j == other or group[j] != group[i]]
        total = total + torch.stack(scores).logsumexp(0) - unit[i] @ unit[other] / temperature
    return total / len(pooled)


def views(texts=7, width=5, dtype=torch.float64, seed=0):
    return torch.randn(2 * texts, width, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("group", [range(7), [4, 4, 9, 2, 9, 4, 0]])
def test_contrastive_equals_a_loop(group, temperature):
    pooled, group = views(), torch.tensor(list(group)).repeat(2)
    expected = slow_contrastive(pooled, group, temperature)
    loss = losses.contrastive(pooled, group, temperature)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, pooled), torch.autograd.grad(3 * expected, pooled))
    half = losses.contrastive(pooled.bfloat16(), group, temperature)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, losses.contrastive(pooled.bfloat16().float(), group, temperature))


def test_contrastive_of_sets_equals_a_loop():
    sets = torch.randn(10, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    unit, total = sets / sets.norm(dim=-1, keepdim=True), 0.0
    for i in range(10):
        scores = []
        for j in range(5) if i >= 5 else range(5, 10):
            cosines = torch.tensor([[a @ b for b in unit[j]] for a in unit[i]])
            scores.append((cosines.max(0).values.mean() + cosines.max(1).values.mean()) / 2 / 0.1)
        total = total + torch.stack(scores).logsumexp(0) - scores[i % 5]
    loss = losses.contrastive(sets, torch.arange(5).repeat(2), 0.1)
    torch.testing.assert_close(loss, total / 10)
    torch.testing.assert_close(
        losses.contrastive(sets[:, :1], torch.arange(5).repeat(2), 0.1),
        losses.contrastive(sets[:, 0], torch.arange(5).repeat(2), 0.1),
    )


def test_contrastive_without_negatives_is_nothing():
    for texts in (1, 7):
        pooled = views(texts)
        loss = losses.contrastive(pooled, torch.full((2 * texts,), 3), 0.05)
        assert loss == 0 and not torch.autograd.grad(loss, pooled)[0].any()


def test_contrastive_at_its_ends():
    group = torch.arange(7).repeat(2)
    assert losses.contrastive(torch.eye(7).repeat(2, 1), group, 0.01) < 1e-6  # views agree, texts do not
    opposed = torch.eye(7).roll(1, 0)  # each view is the other view of the next text
    assert losses.contrastive(torch.cat([torch.eye(7), opposed]), group, 0.01) == pytest.approx(100, abs=1e-3)
    assert losses.contrastive(views().detach(), group, 1e9) == pytest.approx(math.log(7))  # chance


GROUPS = torch.tensor([[5, 5, 8], [8, 1, 5]])  # of the three texts of each rank


def step_of_a_rank(world):
    """What a training step does with the loss: mean gradient of DDP, mean loss."""
    model = linear()
    ranks = DistributedDataParallel(model)
    mine, group = rank_rows(world.rank), GROUPS[world.rank].repeat(2)
    loss = losses.contrastive(ranks(mine), group, 0.1, world.gather, world.rank)
    loss.backward()
    gathered = world.gather(group)
    mean = world.all_sum(loss.detach().clone()) / 2
    return {"loss": mean, "gradient": model.weight.grad, "gathered": gathered}


def linear():
    torch.manual_seed(1)
    return torch.nn.Linear(5, 4, bias=False, dtype=torch.float64)


def rank_rows(rank):
    return views(texts=3, seed=10 + rank).detach()


def test_contrastive_on_two_ranks_equals_one(tmp_path):
    found = [SimpleNamespace(**rank) for rank in on_two_ranks(step_of_a_rank, tmp_path)]
    first, second = zip(*(rank_rows(rank).chunk(2) for rank in range(2)), strict=True)
    model = linear()
    loss = slow_contrastive(model(torch.cat(first + second)), GROUPS.flatten().repeat(2), 0.1)
    loss.backward()
    for rank in found:
        torch.testing.assert_close(rank.loss, loss.detach(), atol=1e-9, rtol=0)
        torch.testing.assert_close(rank.gradient, model.weight.grad, atol=1e-9, rtol=0)
        assert torch.equal(rank.gathered, torch.cat([GROUPS[0].repeat(2), GROUPS[1].repeat(2)]))
