"""Concept losses against loops and scipy, in float64, and on planted concepts; their balance with the task."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from registries import build, built_for, make_problems
from scipy.sparse.csgraph import minimum_spanning_tree
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel

import losses
from lab.distributed import World
from lab.training import optim
from losses import CONCEPT_LOSSES, Balance, ConceptLossConfig
from tests.training import on_two_ranks

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


# ---- the balance with the task


def balance(names="uniformity", device="cpu", **keys):
    return Balance(ConceptLossConfig(concept_loss=names, **keys), device)


def gradients(model, objectives, problems, made, parts=1):
    """What a step leaves in the parameters, and the numbers that it logs."""
    model.zero_grad()
    predicted, concepts, *copies = model(*problems, split=made.split)
    values = objectives.losses(predicted, concepts, problems)
    (made.total(objectives.total(values), *copies, parts) / parts).backward()
    made.finish(lambda x: x)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, made.numbers()


def two_backwards(model, objectives, problems, names, share):
    """The same by separate backward passes from the concepts of each encoder pass."""
    model.zero_grad()
    predicted, concepts = model(*problems)
    task = objectives.total(objectives.losses(predicted, concepts, problems))
    passes = list({id(c): c for c in concepts}.values())
    at_task = torch.autograd.grad(task, passes, retain_graph=True)
    others = [torch.autograd.grad(CONCEPT_LOSSES[name](c), c, retain_graph=True)[0] for name in names for c in passes]
    added = [torch.zeros_like(c) for c in passes]
    for i, gradient in enumerate(others):
        mine = at_task[i % len(passes)]
        added[i % len(passes)] += share * mine.norm() / gradient.norm() * gradient
    predicted, concepts = model(*problems)  # anew: the vocabulary loss can be derived once
    task = objectives.total(objectives.losses(predicted, concepts, problems))
    passes = list({id(c): c for c in concepts}.values())
    torch.autograd.backward([task, *passes], [None, *added])
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("objective", ["tsdae", "mlm + 0.5*bow", "tsdae + bow", "tsdae + contrastive", "contrastive"])
def test_share_equals_two_backwards(objective):
    """Parts that share an encoder pass (tsdae + bow of survivors), and parts that do not."""
    names = "variance,tregs"
    shared = {"bow_source": "survivors"} if objective == "tsdae + bow" else {}
    objectives, problems = make_problems(objective=objective, **shared)
    model = build(seed=1, **built_for(objectives))
    made = balance(names, concept_share=0.3)
    found, numbers = gradients(model, objectives, problems, made)
    expected = two_backwards(model, objectives, problems, names.split(","), 0.3)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12)
    for name in names.split(","):
        assert numbers[f"grad_concept_{name}"] == pytest.approx(0.3 * numbers["grad_task"], rel=1e-5)
        assert numbers[f"concept_loss_{name}"] != 0
    assert numbers["concept_weight_task"] == 1


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
@pytest.mark.parametrize("share", [0.05, 0.9])
def test_the_task_is_never_turned_round(share, scale):
    """Also where a concept loss's gradient is its opposite, and where it is huge."""
    for seed in range(20):
        c = concepts(seed).requires_grad_()
        target = concepts(seed + 100)
        made = balance(concept_share=share)
        task, other = losses.split_gradient(c, *made.split)
        alone = torch.autograd.grad((c * target).sum(), c)[0]
        against = -scale * (target if seed % 2 else target + concepts(seed + 200))
        ((task * target).sum() + (other * against).sum()).backward()
        assert (c.grad * alone).sum() >= (1 - share - 1e-9) * alone.square().sum()


def test_without_a_gradient_nothing_is_added():
    c = concepts().requires_grad_()
    made = balance("uniformity,tregs")
    task, *others = losses.split_gradient(c, *made.split)
    (task.sum() + 0 * others[0].sum()).backward()  # of the second there is no gradient at all
    assert torch.equal(c.grad, torch.ones_like(c))
    assert made.norms.grad.tolist() == pytest.approx([math.sqrt(c.numel()), 0, 0])


def test_fixed_is_a_weighted_sum():
    objectives, problems = make_problems(objective="tsdae + bow", bow_source="survivors")
    model = build(seed=1)
    found, numbers = gradients(
        model, objectives, problems, balance("vicreg", concept_balance="fixed", concept_weight=0.7)
    )
    model.zero_grad()
    predicted, concepts = model(*problems)
    (objectives.total(predicted) + 0.7 * CONCEPT_LOSSES["vicreg"](concepts[0])).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-8, atol=1e-12)
    assert numbers["concept_weight_vicreg"] == pytest.approx(0.7)


def test_kendall_gal_mutes_the_task_and_a_share_does_not():
    """At losses that stay where they are, as the original project's did: 4.3 nats of the task, 0.05 of the concepts."""
    made = balance(concept_balance="kendall_gal")
    optimizer = torch.optim.Adam(made.parameters(), lr=0.03)
    held = torch.zeros(1, 2, 3, requires_grad=True)
    made.losses = [lambda c, axis: 0.05 + 0 * c.sum()]
    seen = []
    for _ in range(800):
        task, other = losses.split_gradient(held, *made.split)
        made.total(4.3 + 0 * task.sum(), [(other,)]).backward()
        made.finish(lambda x: x)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(made.numbers())
    assert seen[0]["concept_weight_task"] == seen[0]["concept_weight_uniformity"] == 0.5
    assert seen[-1]["concept_weight_task"] == pytest.approx(1 / (2 * 4.3), rel=1e-3)  # 0.116
    assert seen[-1]["concept_weight_uniformity"] == pytest.approx(1 / (2 * 0.05), rel=1e-3)  # 10
    objectives, problems = make_problems(objective="tsdae")
    numbers = gradients(build(), objectives, problems, balance())[1]
    assert numbers["concept_weight_task"] == 1
    assert numbers["grad_concept_uniformity"] / numbers["grad_task"] == pytest.approx(0.05, rel=1e-5)


@AXES
@pytest.mark.parametrize("how", ["gradient_share", "fixed", "kendall_gal"])
def test_nothing_waits_for_the_device(how, axis):
    """Fake tensors hold no numbers: whoever asks for one fails."""
    with FakeTensorMode():
        made = balance(",".join(CONCEPT_LOSSES), concept_balance=how, concept_loss_axis=axis)
        c = torch.randn(4, 5, 6, requires_grad=True)
        task, *copies = losses.split_gradient(c, *made.split)
        made.total(task.square().sum(), [copies, copies]).backward()
        made.finish(lambda x: x)


def test_compiled_whole():
    """fullgraph, aot_eager: the same gradients and numbers. (With views in place of copies they were others.)"""
    objectives, problems = make_problems(objective="tsdae + bow", bow_source="survivors")
    model, keys = build(seed=1), dict(names="orthogonality,tregs")
    expected, numbers = gradients(model, objectives, problems, balance(**keys))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    made = balance(**keys)
    model.zero_grad()
    predicted, concepts, *copies = compiled(*problems, split=made.split)
    made.total(objectives.total(objectives.losses(predicted, concepts, problems)), *copies).backward()
    made.finish(lambda x: x)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-8, atol=1e-12)
    assert made.numbers() == pytest.approx(numbers, rel=1e-5)


def test_under_autocast():
    """Norms and concept losses are float32's; what is added keeps its share."""
    objectives, problems = make_problems(objective="tsdae + bow", bow_source="survivors")
    model, world = build(seed=1, dtype=torch.float32), World(0, 1, torch.device("cpu"), "bfloat16")
    exact, numbers = gradients(model, objectives, problems, balance("orthogonality,tregs"))
    model.zero_grad()
    made = balance("orthogonality,tregs")
    rows = SimpleNamespace()
    objectives.problems = lambda _: problems
    optim.forward_backward(model, objectives, rows, world, 1, None, made)
    made.finish(lambda x: x)
    for name, p in model.named_parameters():
        assert p.grad.dtype == torch.float32 and p.grad.isfinite().all()
        if exact[name].norm() > 1e-4:
            assert torch.cosine_similarity(p.grad.flatten(), exact[name].flatten(), dim=0) > 0.99, name
    assert made.numbers() == pytest.approx(numbers, rel=0.05)


def step_of_a_rank(world):
    model = build(seed=1)
    objectives, problems = make_problems(objective="tsdae + bow", bow_source="survivors", seed=world.rank)
    made = balance("variance,tregs", device="cpu")
    objectives.problems = lambda _: problems
    optim.forward_backward(DistributedDataParallel(model), objectives, None, world, 1, None, made)
    made.finish(lambda x: world.all_sum(x).div_(2))
    return {"gradients": {name: p.grad for name, p in model.named_parameters()}, "numbers": made.numbers()}


def test_two_ranks_take_the_mean_of_their_own_shares(tmp_path):
    found = on_two_ranks(step_of_a_rank, tmp_path)
    alone, model = [], build(seed=1)
    for rank in range(2):
        objectives, problems = make_problems(objective="tsdae + bow", bow_source="survivors", seed=rank)
        alone.append(gradients(model, objectives, problems, balance("variance,tregs")))
    for rank in found:
        for name, gradient in rank["gradients"].items():
            torch.testing.assert_close(gradient, (alone[0][0][name] + alone[1][0][name]) / 2, rtol=1e-8, atol=1e-12)
        assert rank["numbers"]["concept_loss_tregs"] == found[0]["numbers"]["concept_loss_tregs"]
    assert found[0]["numbers"]["grad_task"] == pytest.approx(sum(n["grad_task"] for _, n in alone) / 2, rel=1e-5)


# ---- what is said


@pytest.mark.parametrize(
    "keys, says",
    [
        (dict(concept_loss="vicrag"), "'vicrag' is none; write one or more of orthogonality"),
        (dict(concept_loss="tregs, tregs"), "names one twice"),
        (dict(concept_loss="variance,tregs", concept_share=0.5), "can outweigh the task"),
        (dict(concept_share=0.0), "above 0"),
        (dict(concept_weight=-1.0), "no weight"),
        (dict(concept_weight=math.nan), "no weight"),
    ],
    ids=str,
)
def test_mistakes_are_said(keys, says):
    with pytest.raises(ValueError, match=says):
        ConceptLossConfig(**keys)


def test_warnings_and_unused_keys():
    assert ConceptLossConfig().unused() >= {"concept_balance", "concept_share", "concept_weight"}
    assert ConceptLossConfig("tregs").unused() == {"concept_weight"}
    assert not ConceptLossConfig("orthogonality").warnings(8, 8) and not Balance(ConceptLossConfig())
    (muted,) = ConceptLossConfig("tregs", concept_balance="kendall_gal").warnings(8, 8)
    assert "1/(2L)" in muted and "0.12" in muted
    (narrow,) = ConceptLossConfig("orthogonality").warnings(9, 8)
    assert "cannot all be orthogonal" in narrow


@pytest.mark.parametrize("name", ["tregs", "t_regs_mst"])
def test_near_points_far_from_others_choose_their_true_neighbours(name):
    """Not by the rounding of a product of the norms."""
    points = (3 * concepts(0, (2, 1, 16)) + 1e-4 * concepts(1, (2, 20, 16))).flatten(0, 1)[None]
    for ours, true in zip(*map(losses.minimum_spanning_tree, (points.float(), points)), strict=True):
        assert torch.equal(ours, true)
    assert CONCEPT_LOSSES[name](points.float()).item() == pytest.approx(CONCEPT_LOSSES[name](points).item(), rel=1e-3)
