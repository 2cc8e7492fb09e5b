"""Masked diffusion: its bound against a sum over all subsets, its statistics, what decoders see, and unmasking."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from registries import MASK, build, one_part
from registries import OWN_DECODERS as DECODERS
from scipy import stats
from test_model import perturb

from noise import Noise
from objectives import ObjectiveConfig, Objectives
from problem import Rows, Vocabulary

V, N = 40, 6
VOCAB = Vocabulary(V, MASK)


def diffusion(**keys):
    (part,) = Objectives(ObjectiveConfig(objective="diffusion", **keys)).parts
    return part


def problem(ids, step=0, numbers=None, **keys):
    numbers = torch.arange(len(ids)) if numbers is None else numbers
    return diffusion(**keys).problem(Rows(ids, Noise(1, step, numbers), VOCAB, numbers))


def text(rows, n=N, seed=0):
    return torch.randint(MASK + 1, V, (rows, n), generator=torch.Generator().manual_seed(seed))


def hidden(made):
    """[B, T] bool"""
    flat = torch.zeros(made.targets.numel(), dtype=torch.bool).scatter(0, made.scored, True)
    return flat.view(made.targets.shape)


# ---- the bound


def toy_loss(where):
    """[..., N] bool, what is hidden -> [..., N] a loss of each position that depends on all the others' state."""
    place = torch.arange(N, dtype=torch.float64)
    return 1 + 0.1 * place + 0.5 * where.sum(-1, keepdim=True) + torch.sin(where.double() @ (1 + place))[..., None]


def exact(least=1):
    """The plain estimator's expectation: the number of hidden tokens uniform, its subsets alike, the mean over them."""
    total = 0.0
    for level in range(least, N + 1):
        subsets = list(itertools.combinations(range(N), level))
        for subset in subsets:
            where = torch.zeros(N, dtype=torch.bool)
            where[list(subset)] = True
            total += N / level * toy_loss(where)[where].sum().item() / len(subsets) / N
    return total / (N + 1 - least)


def estimate(steps=50, rows=4000, **keys):
    """[steps] what the objective's weights make of the toy."""
    found = []
    for step in range(steps):
        made = problem(text(rows), step, **keys)
        each = toy_loss(hidden(made)).flatten()[made.scored]
        found.append(each.mean() if made.weights is None else (made.weights.double() * each).sum())
    return torch.stack(found)


def test_the_loss_is_the_bound_and_its_options_are_not():
    """200,000 rows against the sum over all 63 subsets: within four standard errors of 0.1 %; with t_min it is another
    known number, and with weight 1 neither."""
    found = estimate()
    error = (found.std() / len(found) ** 0.5).item()
    assert error < 2e-3 and found.mean().item() == pytest.approx(exact(), abs=4 * error)
    found = estimate(t_min=0.5)
    assert found.mean().item() == pytest.approx(exact(least=3), abs=0.01)
    assert abs(exact(least=3) - exact()) > 0.1 and abs(estimate(10, diffusion_weight="none").mean() - exact()) > 0.1


def test_the_reported_bound_takes_no_option():
    keys = dict(t_min=0.5, diffusion_weight="none", label_smoothing=0.1)
    (name, part), *others = diffusion(**keys).reported().items()
    assert name == "elbo" and not others
    rows = Rows(text(64), Noise(1, 0, torch.arange(64)), VOCAB)
    made, plain = part.problem(rows), diffusion().problem(rows)
    assert torch.equal(made.scored, plain.scored) and torch.equal(made.weights, plain.weights)
    assert made.smoothing == 0 and len(made.scored) == 64 * (N + 1) // 2
    assert diffusion(diffusion_source="next", **keys).reported()["elbo"].adjacent_rows


def test_mirrored_pairs_lower_the_error():
    """Of a loss that grows with what is hidden: nearly to half of that of rows that each draw their own number."""
    mirrored = estimate(100, 64)
    levels = torch.randint(1, N + 1, (100, 64), generator=torch.Generator().manual_seed(0))
    order = torch.rand(100, 64, N, generator=torch.Generator().manual_seed(1)).argsort(-1)
    where = order < levels[..., None]
    plain = ((toy_loss(where) * where).sum(-1) / levels).mean(1)
    assert plain.mean().item() == pytest.approx(exact(), abs=0.1) and mirrored.std() < 0.7 * plain.std()


# ---- statistics


def test_the_noise_of_a_hundred_thousand_rows():
    rows, n = 100_000, 20
    made = problem(torch.full((rows, n), 7), step=3)
    where = hidden(made)
    level = where.sum(1)
    assert torch.equal(made.t, level / n) and level.min() == 1
    assert torch.equal(level[0::2] + level[1::2], torch.full((rows // 2,), n + 1))  # mirrored
    counts = torch.bincount(level, minlength=n + 1)[1:]
    assert (counts - rows / n).abs().max() < 0.002 * rows / n  # spread far more evenly than chance would
    for block in level.split(64):  # so is each micro-batch
        assert len(set(block.tolist())) >= n - 2
    where = where[level == 5]  # any five columns alike: each a quarter of the time, any two in 5 * 4 of 20 * 19
    assert stats.chisquare(where.sum(0).numpy()).pvalue > 1e-4
    both = (where[:, 3] & where[:, 11]).double().mean()
    assert both.item() == pytest.approx(20 / 380, abs=0.01)
    assert torch.equal(made.query_ids == MASK, hidden(made)) and made.query_ids[~hidden(made)].eq(7).all()
    weights = torch.zeros(rows * n).scatter(0, made.scored, made.weights).view(rows, n).double()
    torch.testing.assert_close(weights.sum(1), torch.full((rows,), 1 / rows, dtype=torch.float64), rtol=1e-5, atol=0)


def test_a_row_draws_every_number_alike_over_steps():
    level = torch.stack([Noise(5, step, torch.arange(6)).levels(0, torch.arange(6), 10) for step in range(10_000)])
    for row in level.T:
        assert stats.chisquare(torch.bincount(row, minlength=10).numpy()).pvalue > 1e-4
    first, third = level[:, 0], level[:, 2]
    assert not torch.equal(first, third) and not torch.equal(level[0], level[1])
    assert torch.equal(level[:, 0::2] + level[:, 1::2], torch.full((10_000, 3), 9))


def test_at_least_so_many_are_hidden():
    made = problem(text(400, 20), t_min=0.3)
    level = hidden(made).sum(1)
    assert level.min() == 6 and level.max() == 20 and torch.equal(level[0::2] + level[1::2], torch.full((200,), 26))


# ---- what is seen


@pytest.mark.parametrize("source", ["row", "next"])
def test_hidden_tokens_reach_neither_the_decoder_nor_another_row(source):
    ids = text(64, 12)
    made = problem(ids, diffusion_source=source)
    rows = torch.arange(64) if source == "row" else torch.arange(1, 64, 2)
    assert torch.equal(made.targets, ids[rows]) and torch.equal(made.source, ids if source == "row" else ids[0::2])
    changed = ids.clone()
    changed[rows] = torch.where(hidden(made), (ids[rows] - MASK) % (V - MASK - 1) + MASK + 1, ids[rows])
    assert (changed != ids).sum() == len(made.scored)
    after = problem(changed, diffusion_source=source)
    for field in ("query_ids", "query_pos", "scored", "weights", "t"):
        assert torch.equal(getattr(made, field), getattr(after, field))
    assert torch.equal(made.source, after.source) == (source == "next")  # else it is read, that is the point


@pytest.mark.parametrize("keys", [*map(one_part, DECODERS), dict(decoder="diffusion", decoder_window=3)], ids=str)
def test_flat_positions_equal_a_loop_over_rows(keys):
    """Loss and prediction of each row alone, at all its positions, with its own share of what is hidden."""
    model, made = perturb(build(**keys)), problem(text(8, 12), label_smoothing=0.1)
    concepts, where, total, flat = model.encode(made.source), hidden(made), 0.0, []
    for row in range(8):
        one = problem(text(8, 12), label_smoothing=0.1)
        for field in ("source", "targets", "query_ids", "t"):
            setattr(one, field, getattr(one, field)[row : row + 1])
        one.scored = None
        states = model.decode(concepts[row : row + 1], one)[0]
        ce = F.cross_entropy(model.logits(states), made.targets[row], reduction="none", label_smoothing=0.1)
        total += ce[where[row]].mean() / 8
        flat.append(states[where[row]])
    torch.testing.assert_close(model.decode(concepts, made)[0], torch.cat(flat))
    torch.testing.assert_close(model.loss(concepts, made).double(), total)


def test_blocks_know_each_rows_share():
    model, made = perturb(build(decoder="diffusion")), problem(text(8, 12))
    concepts, states = model.encode(made.source), model.decode(model.encode(made.source), made)
    made.t = made.t.flip(0)
    assert not torch.allclose(model.decode(concepts, made), states)
    made.t = None  # all positions, so the share is 1
    whole = model.decode(concepts, made)
    made.t = torch.ones(8)
    torch.testing.assert_close(model.decode(concepts, made), whole)


# ---- unmasking


def slow_unmask(model, concepts, ids, passes, truth=None):
    """One row, the surest first."""
    seen, answer = ids.clone(), ids.clone()
    for left in range(passes, 0, -1):
        at = [i for i in range(ids.shape[1]) if seen[0, i] == MASK]
        made = problem(seen.expand(2, -1))
        made.source, made.targets, made.query_ids, made.scored = seen, seen, seen, None
        made.t = torch.tensor([len(at) / ids.shape[1]])
        chances = model.logits(model.decode(concepts, made))[0]
        chances[:, MASK] = -math.inf
        best, token = chances.softmax(-1).max(-1)
        for i in sorted(at, key=lambda i: -best[i])[: math.ceil(len(at) / left)]:
            answer[0, i] = token[i]
            seen[0, i] = token[i] if truth is None else truth[0, i]
    return answer


@pytest.mark.parametrize("passes, forced", [(1, False), (3, False), (3, True), (0, False)])
@pytest.mark.parametrize("decoder", ["posonly", "diffusion", "causal"])
def test_unmasking_equals_a_loop(decoder, passes, forced):
    model = perturb(build(decoder=decoder, decoder_window=2))
    truth = text(3, 10, seed=4)
    ids = truth.clone()
    ids[0, 2:7], ids[1, :], ids[2, 1::2] = MASK, MASK, MASK
    concepts, truth = model.encode(truth), truth if forced else None
    found = model.unmask(concepts, ids, passes, truth=truth)
    assert not found.eq(MASK).any() and torch.equal(found[ids != MASK], ids[ids != MASK])
    for row in range(3):
        one = slice(row, row + 1)
        expected = slow_unmask(model, concepts[one], ids[one], passes or 10, None if truth is None else truth[one])
        assert torch.equal(found[one], expected)


def test_a_row_without_masks_stays():
    model, ids = build(decoder="diffusion"), text(2, 8)
    assert torch.equal(model.unmask(model.encode(ids), ids), ids)


def test_ancestral_order_is_random_and_its_tokens_are_drawn():
    """Each of four positions is the first as often; at temperature 1 the first token is drawn from the softmax."""
    model, ids = perturb(build(decoder="diffusion")), torch.full((4000, 4), MASK)
    concepts, firsts = model.encode(text(1, 8)).expand(4000, -1, -1), []
    torch.manual_seed(0)
    decode, calls = model.decode, []
    model.decode = lambda c, p: calls.append(p.query_ids) or decode(c, p)
    found = model.unmask(concepts, ids, order="ancestral", temperature=1.0)
    model.decode = decode
    firsts = (calls[1] != MASK).double().argmax(1)
    assert len(calls) == 4 and (calls[1] != MASK).sum(1).eq(1).all()
    assert stats.chisquare(torch.bincount(firsts, minlength=4).numpy()).pvalue > 1e-4
    made = problem(ids[:2])
    made.query_ids, made.scored, made.t = ids[:1], None, torch.ones(1)
    chances = model.logits(model.decode(concepts[:1], made))[0]
    chances[:, MASK] = -math.inf
    drawn = torch.bincount(found[firsts == 0, 0], minlength=V) / (firsts == 0).sum()
    assert (drawn - chances.softmax(-1)[0]).abs().max() < 0.05
