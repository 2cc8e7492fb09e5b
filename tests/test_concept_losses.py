"""Concept losses against loops and scipy, in float64, and on planted concepts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import minimum_spanning_tree

import losses
from losses import CONCEPT_LOSSES

B, C, H = 5, 6, 7
EVERY = pytest.mark.parametrize("name", CONCEPT_LOSSES)
AXES = pytest.mark.parametrize("axis", ["slots", "samples"])


def concepts(seed=0, shape=(B, C, H), offset=0.3):
    return offset + torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- each loss, slowly


def pairs(group):
    return [(i, j) for i in range(len(group)) for j in range(len(group)) if i != j]


def unit(x):
    return x / np.linalg.norm(x)


def mean_over_pairs(of):
    def loss(groups):
        return np.mean([of(unit(x[i]), unit(x[j])) for x in groups for i, j in pairs(x)])

    return loss


def slow_log_uniformity(groups):
    of = mean_over_pairs(lambda a, b: math.exp(-2 * ((a - b) ** 2).sum()))
    return np.mean([math.log(of([x])) for x in groups])


def slow_variance(x):
    """x [n, H]."""
    return np.mean([max(0, 1 - math.sqrt(np.var(column, ddof=1) + 1e-4)) for column in x.T])


def slow_covariance(x):
    cov = np.cov(x.T)
    return sum(cov[i, j] ** 2 for i in range(len(cov)) for j in range(len(cov)) if i != j) / len(cov)


def slow_tree(x):
    far = np.linalg.norm(x[:, None] - x[None], axis=-1)
    return minimum_spanning_tree(far).sum()


def slow_tregs(groups):
    groups = [x / math.sqrt(x.shape[1]) for x in groups]
    sphere = np.mean([(np.linalg.norm(point) - 1) ** 2 for x in groups for point in x])
    return sphere - np.mean([slow_tree(x) / len(x) for x in groups])


def slow_t_regs_mst(groups):
    units = [np.stack([unit(point) for point in x]) for x in groups]
    return -np.mean(
        [min(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i) for x in units for i in range(len(x))]
    )


OF_POINTS = {  # of groups of points
    "orthogonality": mean_over_pairs(lambda a, b: (a @ b) ** 2),
    "soft_orthogonality": mean_over_pairs(lambda a, b: max(0, abs(a @ b) - 0.1) ** 2),
    "uniformity": mean_over_pairs(lambda a, b: math.exp(-2 * (2 - 2 * a @ b))),
    "log_uniformity": slow_log_uniformity,
    "vicreg_flat": lambda groups: slow_variance(np.concatenate(groups)) + slow_covariance(np.concatenate(groups)),
    "tregs": slow_tregs,
    "t_regs_mst": slow_t_regs_mst,
}
OF_POINTS["combined"] = lambda groups: slow_variance(np.concatenate(groups)) + OF_POINTS["uniformity"](groups)
OF_SAMPLES = {  # of each concept over the batch
    "variance": slow_variance,
    "covariance": slow_covariance,
    "vicreg": lambda x: 25 * slow_variance(x) + slow_covariance(x),
}


def slow(name, c, axis):
    c = c.numpy() if axis == "slots" else c.numpy().mean(1, keepdims=True)
    if name in OF_SAMPLES:
        return np.mean([OF_SAMPLES[name](c[:, i]) for i in range(c.shape[1])])
    return OF_POINTS[name](list(c) if axis == "slots" else [c[:, 0]])


def test_every_loss_has_a_slow_one():
    assert OF_POINTS.keys() | OF_SAMPLES.keys() == CONCEPT_LOSSES.keys()


@AXES
@EVERY
@pytest.mark.parametrize("shape", [(B, C, H), (12, 9, 4)], ids=str)  # fewer points than dimensions, and more
def test_equals_the_slow_one(name, axis, shape):
    c = concepts(shape=shape)
    found = CONCEPT_LOSSES[name](c, axis)
    assert found.dtype == torch.float64 and found.shape == ()
    assert found.item() == pytest.approx(slow(name, c, axis), rel=1e-9, abs=1e-12)
    half = CONCEPT_LOSSES[name](c.bfloat16(), axis)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(slow(name, c, axis), rel=0.05, abs=0.02)


@AXES
@EVERY
def test_gradients(name, axis):
    c = concepts(seed=3, shape=(4, 5, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CONCEPT_LOSSES[name](x, axis), c)


@AXES
@EVERY
def test_of_one_point_nothing_can_be_said(name, axis):
    """A nested model runs with one concept, too; and nothing is ever not finite."""
    for shape in ((4, 1, 3), (1, 4, 3), (1, 1, 3)):
        for c in (concepts(shape=shape), torch.zeros(shape, dtype=torch.float64), torch.ones(shape)):
            c.requires_grad_()
            loss = CONCEPT_LOSSES[name](c, axis)
            assert loss.isfinite() and torch.autograd.grad(loss, c)[0].isfinite().all()


# ---- known values


def test_equal_and_orthogonal_slots():
    equal, apart = torch.ones(B, 4, 4), math.sqrt(4) * torch.eye(4).expand(B, 4, 4)
    expected = {  # of equal slots, of orthogonal ones of norm sqrt(H)
        "orthogonality": (1, 0),
        "soft_orthogonality": (0.81, 0),
        "uniformity": (1, math.exp(-4)),
        "log_uniformity": (0, -4),
        "tregs": (0, -0.75 * math.sqrt(2)),
        "t_regs_mst": (0, -math.sqrt(2)),
        "variance": (0.99, 0.99),  # nothing changes with the text, whatever the slots are
        "covariance": (0, 0),
    }
    for name, (same, other) in expected.items():
        assert CONCEPT_LOSSES[name](equal).item() == pytest.approx(same, abs=1e-6), name
        assert CONCEPT_LOSSES[name](apart).item() == pytest.approx(other, abs=1e-6), name


def test_static_slots_satisfy_the_seeds_variance_and_not_ours():
    static = concepts(shape=(1, 64, H), offset=0).expand(20, -1, -1) * 2
    assert CONCEPT_LOSSES["combined"](static) - CONCEPT_LOSSES["uniformity"](static) < 0.01
    assert CONCEPT_LOSSES["variance"](static) == pytest.approx(0.99)


def test_near_pairs_far_apart_are_pushed_by_the_tree_alone():
    """Points 0 and 1 near each other, 2 and 3 too, the pairs far apart."""
    c = torch.tensor([[[1, -0.01, 0], [1, 0.01, 0], [0, -0.01, 1], [0, 0.01, 1]]], dtype=torch.float64)
    push = {}
    for name in ("tregs", "t_regs_mst"):
        c.requires_grad_()
        (gradient,) = torch.autograd.grad(CONCEPT_LOSSES[name](c), c)
        if name == "tregs":  # without the sphere's part
            length = torch.linalg.vector_norm(c / math.sqrt(3), dim=-1)
            gradient = gradient - torch.autograd.grad((length - 1).square().mean(), c)[0]
        apart = F.normalize((c[0, :2].mean(0) - c[0, 2:].mean(0)).detach(), dim=0)
        # what each pair does as a whole along the line that joins them: a nearest neighbour hardly pulls there
        push[name] = -(gradient[0, :2].sum(0) - gradient[0, 2:].sum(0)) @ apart
    assert push["tregs"] > 0.2 and abs(push["t_regs_mst"]) < 0.05 * push["tregs"]


@pytest.mark.parametrize("offset", [0, 1e3])
@pytest.mark.parametrize("n", [2, 3, 40])
def test_spanning_trees_of_a_batch(n, offset):
    """Edges join all points, and are as long as scipy's; in float32 beside a common offset too."""
    x = concepts(shape=(6, n, 5), offset=offset)
    if offset:
        x = x.float()
    one, other = losses.minimum_spanning_tree(x)
    assert one.shape == other.shape == (6, n - 1)
    for points, a, b in zip(x.double().numpy(), one.tolist(), other.tolist(), strict=True):
        tree = {0}
        for i, j in zip(a, b, strict=True):
            assert i in tree and j not in tree
            tree.add(j)
        length = sum(np.linalg.norm(points[i] - points[j]) for i, j in zip(a, b, strict=True))
        assert length == pytest.approx(slow_tree(points), rel=1e-6)


def test_duplicates_have_a_tree_and_no_gradient_between_them():
    c = torch.ones(2, 4, 3, dtype=torch.float64, requires_grad=True)
    one, other = losses.minimum_spanning_tree(c)
    assert other.sort(1).values.tolist() == [[1, 2, 3]] * 2
    assert not torch.autograd.grad(CONCEPT_LOSSES["tregs"](c), c)[0].abs().gt(1e-12).any()
