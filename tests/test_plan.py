"""How a step is cut into rows, what it costs, its learning rate, and whether compiling pays."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import losses
from lab.configurator import UserError
from lab.distributed import World
from lab.training import compilation, horizon, optim
from lab.training.compilation import COMPILE_SAVES, COMPILE_SECONDS, EAGER_FLOPS, decide_compile
from lab.training.plan import (
    Plan,
    cost,
    count_shapes,
    length_mixes,
    make_plan,
    sample_options,
    schedule_stage,
)
from model import ConceptModel, ModelConfig
from noise import Noise
from objectives import ObjectiveConfig, Objectives
from problem import Rows, Vocabulary

CPU = torch.device("cpu")
HERE = World(0, 1, CPU, "float32")
TSDAE = Objectives(ObjectiveConfig(objective="tsdae"))


@dataclass
class Config:
    lengths: tuple = (16, 64)
    batch_size: int = 24
    micro_batch: int = 0
    length_mix: tuple = ()


# ---- rows


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [0, 1, 2, 100])
def test_every_row_of_a_step_is_read_once_in_order(ranks, micro):
    """Whoever reads it; a micro-batch of more rows than a rank has means all of them."""
    share = 24 // ranks
    made = make_plan(Config(micro_batch=micro), TSDAE, ranks)
    assert made.tokens == 24 * 64 and made.parts == (share // micro if 0 < micro < share else 1)
    for count, n in made.shapes():
        rows = [made.rows(n, rank, part).tolist() for rank in range(ranks) for part in range(made.parts)]
        assert sum(rows, []) == list(range(24 * 64 // n)) and {len(part) for part in rows} == {count}


REFUSED = {  # ranks, config, objective -> what is advised
    "ranks": (5, Config(), "tsdae", "write batch_size=25"),
    "micro-batch": (1, Config(micro_batch=5), "tsdae", "write micro_batch=4"),
    "of a rank": (3, Config(micro_batch=3), "tsdae", "does not divide the 8 rows a rank has; write micro_batch=2"),
    "length": (1, Config((16, 24), 24, 1), "tsdae", "write micro_batch=2"),
    "groups": (4, Config((16,)), "contrastive", "rows in groups of 4, but a rank has 6"),
    "negatives": (1, Config(micro_batch=4), "contrastive", "write micro_batch=0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_divide_is_refused_with_what_does(kind):
    ranks, config, objective, advice = REFUSED[kind]
    with pytest.raises(UserError, match=advice):
        make_plan(config, Objectives(ObjectiveConfig(objective=objective)), ranks)


# ---- cost


H, V, C, B, N = 8, 50, 2, 4, 16
BOW = Objectives(ObjectiveConfig(objective="bow"))
BAGS = dict(hidden=H, heads=1, layers=1, concepts=C, intermediate=16, max_length=N, vocab_size=V, predicts=("pooled",))
BAGS = ModelConfig(**BAGS)


def by_hand(n):
    """Training FLOPs a token of bow on rows of n tokens, B * N in a step: a mean of concepts, one softmax a row; every
    product has two of its size in backward."""
    slots, rows = 2 * C * H * H, B * N // n  # the first queries are the same for all rows
    read = 2 * (n * H * 2 * H + 2 * C * n * H + C * H * H)  # keys and values, scores and sums, out
    mix = 2 * (C * H * 3 * H + 2 * C * C * H + C * H * H)
    ffn = 2 * (C * H * 2 * 16 + C * 16 * H)
    head = 2 * H * V
    return 3 * (slots + rows * (read + mix + ffn + head)) / (B * N)


def test_the_cost_is_the_mean_over_lengths():
    parameters, flops = cost(Plan((N,), B * N, B * N, 1), BAGS, BOW)
    assert parameters == ConceptModel(BAGS).num_parameters() and flops == by_hand(N)
    both = cost(Plan((8, N), B * N, B * N, 1), BAGS, BOW)[1]
    assert both == pytest.approx((by_hand(8) + by_hand(N)) / 2, rel=1e-12)


# ---- the mix of lengths


def test_the_cost_follows_the_mix_of_lengths():
    """By hand; of a schedule the mean over six parts, each beside the rates that are in force in it."""

    def flops(mix, objectives=BOW, shape=BAGS):
        return cost(make_plan(Config((8, N), B, 0, mix), objectives, 1), shape, objectives)[1]

    assert flops((1, 3)) == pytest.approx((by_hand(8) + 3 * by_hand(N)) / 4, rel=1e-12)
    assert flops((0, 2)) == by_hand(N) and flops(()) == flops((5, 5))
    assert flops(((1, 0), (1, 3))) == pytest.approx(sum((1 - i / 5 * 0.75) * by_hand(8) + i / 5 * 0.75 * by_hand(N)
                                                        for i in range(6)) / 6, rel=1e-12)  # fmt: skip

    shape = replace(BAGS, predicts=("positions",))
    both = Objectives(ObjectiveConfig(objective="mlm", mask_rate=(0.25, 0.75)))
    expected = 0
    for i, now in enumerate(both.plateaus()):
        at = [cost(Plan((n,), B * N, B * N, 1), shape, now)[1] for n in (8, N)]
        expected += ((1 - i / 5) * at[0] + i / 5 * at[1]) / 6
    assert flops(((1, 0), (0, 1)), both, shape) == pytest.approx(expected, rel=1e-12)


def test_what_is_compiled():
    """A shape for each length and rate that meet; spans that grow have the shapes of those that do not."""

    def shapes(mix, **keys):
        objectives = Objectives(ObjectiveConfig(objective="mlm", **keys))
        return count_shapes(make_plan(Config((8, N), B, 0, mix), objectives, 1), BAGS, objectives)

    assert shapes(()) == 2 and shapes((0, 1)) == 1 and shapes(((1, 0), (0, 1))) == 2
    assert shapes((), mask_rate=(0.1, 0.9)) == 12 and shapes(((1, 0), (0, 1)), mask_rate=(0.1, 0.9)) == 10
    assert shapes((), mask_unit="span", max_span=(1, 10)) == 2


def test_the_mix_of_a_step():
    mixes = length_mixes((8, 16), ((1, 0), (1, 4)))
    assert [round(5 * mix[1], 9) for mix in mixes] == [0, 0.8, 1.6, 2.4, 3.2, 4]
    plan = Plan((8, 16), 64, 64, 1, mixes)
    assert [plan.mix(step, 13) for step in range(13)] == [mixes[step * 6 // 13] for step in range(13)]
    assert plan.mix(99, 13) == mixes[-1] and Plan((8,), 8, 8, 1).mix(3, 0) == ()
    assert schedule_stage(5, 0, 1) == 0 and Plan((8, 16), 64, 64, 1, ((0.5, 0.5),)).mix(3, 0) == (0.5, 0.5)


@pytest.mark.parametrize(
    "mix", [(1,), (1, 2, 3), (0, 0), (1, -1), ((1, 0), (0, 0)), ((1, 0), (1,)), ((1, 1, 1), (1, 1))]
)
def test_a_mix_that_is_none(mix):
    with pytest.raises(UserError, match="length_mix=.*; write [02]"):
        make_plan(Config((8, 16), 4, 0, mix), BOW, 1)


def test_the_cost_is_the_mean_over_what_a_step_may_run_with():
    """Fewer concepts, fewer iterations."""
    shape = dict(hidden=8, heads=1, concepts=2, intermediate=16, max_length=16, vocab_size=50, encoder="recursive")
    plan = Plan((16,), 64, 64, 1)

    def flops(**keys):
        return cost(plan, ModelConfig(**shape | keys), TSDAE)[1]

    one, two, three = (flops(iterations=k) for k in (1, 2, 3))
    assert flops(iterations=3, min_iterations=1) == pytest.approx((one + two + three) / 3, rel=1e-12)
    assert flops(nested=True, iterations=1) == pytest.approx((one + flops(concepts=1, iterations=1)) / 2, rel=1e-12)


def test_the_cost_is_the_mean_over_the_plateaus_of_a_rate():
    """Of a pair of rates; a pair that is not used, or a single rate, is one plateau."""
    shape = ModelConfig(hidden=8, heads=1, layers=1, concepts=2, intermediate=16, max_length=32, vocab_size=50)

    def flops(objective="mlm", **keys):
        return cost(Plan((32,), 128, 128, 1), shape, Objectives(ObjectiveConfig(objective=objective, **keys)))[1]

    rates = [0.15, 0.20, 0.25, 0.30, 0.35, 0.40]
    each = [flops(mask_rate=rate) for rate in rates]
    assert each == sorted(set(each)) and flops(mask_rate=(0.15, 0.40)) == pytest.approx(sum(each) / 6, rel=1e-12)
    assert flops("tsdae", mask_rate=(0.15, 0.4)) == flops("tsdae")

    objectives = Objectives(ObjectiveConfig(objective="mlm", mask_rate=(0.15, 0.4)))
    found = [x.parts[0].config.mask_rate for x in objectives.plateaus()]
    assert found == pytest.approx(rates) and found[0] == 0.15 and found[-1] == 0.4
    assert objectives.parts[0].config.mask_rate == 0.4  # what is judged
    objectives = Objectives(ObjectiveConfig(objective="tsdae", delete_rate=(0.6, 0.3)))
    deleted = [x.parts[0].config.delete_rate for x in objectives.plateaus()]
    assert deleted == pytest.approx([0.6, 0.54, 0.48, 0.42, 0.36, 0.3])
    assert len(TSDAE.plateaus()) == 1 and TSDAE.plateaus()[0] is TSDAE


def test_sizes_that_no_machine_counts():
    sizes = dict(hidden=884_390_654, heads=1, layers=1, intermediate=8, concepts=2, max_length=16, vocab_size=50)
    with pytest.raises(UserError, match="write smaller sizes"):
        cost(Plan((16,), 64, 64, 1), ModelConfig(**sizes), TSDAE)


def test_a_large_batch_is_counted_as_one_product(monkeypatch):
    sizes = dict(hidden=32, heads=2, layers=2, concepts=4, intermediate=32, max_length=16, vocab_size=100)
    chunks, whole = [], losses._loss_and_gradients
    monkeypatch.setattr(
        losses, "_loss_and_gradients", lambda *args, **keys: chunks.append(args[4]) or whole(*args, **keys)
    )
    cost(Plan((16,), 1 << 16, 1 << 16, 1), ModelConfig(**sizes), TSDAE)
    assert chunks == [1 << 16]  # tokens


def test_what_a_step_runs_with_is_drawn_from_seed_and_step():
    model = ModelConfig(encoder="recursive", iterations=4, min_iterations=3, nested=True, concepts=4)
    drawn = [sample_options(model, 7, step) for step in range(4000)]
    for share, options in model.variants():
        assert drawn.count(options) == pytest.approx(4000 * share, rel=0.15)
    assert drawn[:50] == [sample_options(model, 7, step) for step in range(50)]
    assert drawn[:50] != [sample_options(model, 8, step) for step in range(50)]


def test_the_cost_does_not_depend_on_micro_batches():
    shape = ModelConfig(hidden=32, heads=2, layers=2, concepts=4, intermediate=32, max_length=16, vocab_size=100)
    costs = {cost(Plan((16,), 512, micro, 512 // micro), shape, TSDAE)[1] for micro in (64, 512)}
    assert max(costs) == pytest.approx(min(costs), rel=0.02)  # what is shared by all rows of a forward


# ---- the learning rate, and the step


def rates(schedule):
    return [optim.learning_rate(schedule, 1.0, step, 110, warmup=10, end=0.1) for step in range(111)]


def test_learning_rate():
    assert rates("constant")[10:] == [1.0] * 101
    for schedule in ("cosine", "linear", "wsd"):
        found = rates(schedule)
        assert found[0] == pytest.approx(0.1) and found[9] == found[10] == 1.0 and found[110] == pytest.approx(0.1)
        assert all(a >= b for a, b in zip(found[10:], found[11:], strict=False))
        assert optim.learning_rate(schedule, 1.0, 500, 0, 10, 0.1) == 1.0  # the horizon is not yet known
        assert optim.learning_rate(schedule, 1.0, 500, 110, 10, 0.1) == pytest.approx(0.1)
    assert rates("cosine")[60] == rates("linear")[60] == pytest.approx(0.55)
    assert rates("wsd")[90] == pytest.approx(1.0) and rates("wsd")[100] == pytest.approx(0.55)


def test_only_matrices_of_linear_layers_decay():
    model = nn.ModuleDict({"linear": nn.Linear(3, 3), "tokens": nn.Embedding(3, 3), "norm": nn.LayerNorm(3)})
    decayed, rest = optim.adamw(model, 1e-3, 0.5, (0.9, 0.98)).param_groups
    assert decayed["params"] == [model["linear"].weight] and decayed["weight_decay"] == 0.5
    assert len(rest["params"]) == 4 and rest["weight_decay"] == 0.0


@pytest.mark.parametrize("clip", [0.0, 1.0, 100.0])
def test_a_step_scales_gradients_down_to_the_clip(clip):
    model = nn.Linear(4, 4, bias=False)
    model.weight.grad = torch.full((4, 4), 3.0)
    seen = []
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    optimizer.register_step_pre_hook(lambda *_: seen.append(model.weight.grad.norm().item()))
    norm, bad = optim.clipped_step(model, optimizer, 0.1, clip, torch.tensor(1.0))
    assert norm == 12 and not bad and model.weight.grad is None and optimizer.param_groups[0]["lr"] == 0.1
    assert seen == [pytest.approx(1.0 if clip == 1 else 12.0)]


@pytest.mark.parametrize("loss, gradient", [(1.0, float("nan")), (1.0, float("inf")), (float("nan"), 1.0)])
def test_a_bad_step_changes_nothing(loss, gradient):
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step(loss, gradient):
        model.weight.grad = torch.full((4, 4), gradient)
        return optim.clipped_step(model, optimizer, 0.1, 1.0, torch.tensor(loss))[1]

    def everything():
        return [model.weight.detach(), *optimizer.state[model.weight].values()]

    assert not step(1.0, 1.0)
    before = [x.clone() for x in everything()]
    assert step(loss, gradient)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert not step(1.0, 1.0) and not torch.equal(before[0], model.weight)


def test_gradients_of_micro_batches_add_up_to_those_of_the_step():
    shape = ModelConfig(hidden=16, heads=2, layers=1, concepts=2, intermediate=16, max_length=16, vocab_size=60)
    objectives = Objectives(ObjectiveConfig(objective="tsdae + 0.5*mlm"))
    model, world, vocab = ConceptModel(shape, 3), HERE, Vocabulary(60, 3)
    ids, numbers = torch.randint(4, 60, (8, 16), generator=torch.Generator().manual_seed(0)), torch.arange(8)

    def gradients(parts):
        model.zero_grad()
        values = 0
        for part in numbers.chunk(parts):
            rows = Rows(ids[part], Noise(0, 5, part), vocab, documents=part)
            values = values + optim.forward_backward(model, objectives, rows, world, parts)
        return values, torch.cat([p.grad.flatten() for p in model.parameters()])

    whole, cut = gradients(1), gradients(4)
    for a, b in zip(whole, cut, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


# ---- seconds


def test_the_clock_waits_for_a_device_when_it_is_read_and_only_then(monkeypatch):
    """A GPU works on when the host has given it a step: 1 s a step here, of which the host takes 0.1."""
    now, done = [0.0], [0.0]  # of the host; when the device has finished

    def synchronize(device):
        now[0] = max(now[0], done[0])

    monkeypatch.setattr(horizon, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    clock, step = horizon.Clock(torch.device("cuda", 0), 0.0, 0), 0
    clock.start()
    for _ in range(2):
        for _ in range(10):
            done[0] = max(now[0], done[0]) + 1
            now[0] += 0.1
            step += 1
        assert now[0] <= done[0] - 8.9  # no step has waited
        assert clock.steps_per_second(step) == pytest.approx(1)
        assert clock.seconds == pytest.approx(step)
    done[0] = now[0] + 1
    clock.pause()
    assert clock.seconds == pytest.approx(21)


# ---- to compile or not


def test_a_cpu_compiles_only_what_gains_by_it(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    gains = COMPILE_SECONDS / COMPILE_SAVES * EAGER_FLOPS * torch.get_num_threads()  # FLOPs that pay for one shape
    for shapes in (1, 3):
        assert not decide_compile("auto", HERE, shapes, 0.99 * gains * shapes, 0)
        assert decide_compile("auto", HERE, shapes, 1.01 * gains * shapes, 0)
        pays = COMPILE_SECONDS / COMPILE_SAVES / 60  # minutes
        assert not decide_compile("auto", HERE, shapes, 0, 0.99 * pays * shapes)
        assert decide_compile("auto", HERE, shapes, 0, 1.01 * pays * shapes)
    assert decide_compile(True, HERE, 9, 1, 0) and not decide_compile(False, HERE, 1, 1e30, 0)


def test_where_compiling_fails_training_goes_on_without(monkeypatch, capsys):
    def broken(function):
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(compilation, "empty_cache", lambda: None)
    assert not decide_compile(True, HERE, 1, 1e30, 0)
    assert capsys.readouterr().err == (
        "warning: torch.compile does not work (RuntimeError: no C++ compiler was found); training goes on uncompiled\n"
    )
