"""bench.py end to end on a tiny preset: both arms run and agree, and the JSON is the one that others script against."""

import functools
import json
import weakref

import pytest
import torch

import bench
from lab.configurator import UserError
from lab.distributed import World
from model import ConceptModel
from tests.training import forkserver

TINY = """
objective = "mlm"
mask_rate = 0.15
decoder = "input"
original_structure = True
layers = 1
hidden = 32
heads = 2
intermediate = 32
concepts = 4
vocab_size = 300
max_length = 32
lengths = (16, 32)
max_steps = 10
"""
WORLD = World(0, 1, torch.device("cpu"), "float32")


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path / "tiny.py"


def test_bench(tiny, tmp_path, capsys, monkeypatch):
    """Memory is measured in another process, here for one arm alone, and forked, which is sooner there."""
    monkeypatch.setattr(bench, "ceiling", functools.partial(bench.ceiling, seconds=0.2))
    context = forkserver()
    monkeypatch.setattr(bench.multiprocessing, "get_context", lambda _: context)
    fresh = bench.in_fresh_process
    monkeypatch.setattr(
        bench, "in_fresh_process", lambda f, name, *rest: fresh(f, name, *rest) if name == "ours" else 1
    )
    words = [str(tiny), f"--json={tmp_path / 'bench.json'}", "--batch=2", "--repeats=1", "--device=cpu"]
    assert bench.main([*words, "--lengths=32"]) == 0
    assert "| tiny" in capsys.readouterr().out
    results = json.loads((tmp_path / "bench.json").read_text())
    assert {"machine", "torch", "commit", "ceiling", "presets"} <= results.keys()
    (preset,) = results["presets"]
    names = "tokens_per_s flops_per_token share_of_ceiling peak_bytes ratio_to_reference ratio_to_dense".split()
    assert {"name", "by_length", *names} <= preset.keys() and preset["name"] == "tiny"
    assert all(preset[name] > 0 for name in names) and preset["peak_bytes"] > 1e7
    assert [(r["length"], r["rows"]) for r in preset["by_length"]] == [(32, 2)]
    share = preset["tokens_per_s"] * preset["flops_per_token"] / results["ceiling"]
    assert preset["share_of_ceiling"] == pytest.approx(share) and share < 1


def test_other_lengths(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ceiling", functools.partial(bench.ceiling, seconds=0.2))
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, name, shape, *rest: shape[1])
    words = [
        str(tiny),
        f"--json={tmp_path / 'bench.json'}",
        "--batch=1",
        "--repeats=1",
        "--device=cpu",
        "--dense=False",
    ]
    assert bench.main([*words, "--lengths=64,128"]) == 0
    (preset,) = json.loads((tmp_path / "bench.json").read_text())["presets"]
    assert [(r["length"], r["rows"]) for r in preset["by_length"]] == [(64, 2), (128, 1)]
    assert preset["ratio_to_dense"] is None and [r["peak_bytes"] for r in preset["by_length"]] == [64, 128]


def test_other_encoders_and_a_picture(tiny, tmp_path, monkeypatch):
    tiny.write_text(TINY.replace("original_structure = True", ""))
    monkeypatch.setattr(bench, "ceiling", functools.partial(bench.ceiling, seconds=0.2))
    monkeypatch.setattr(bench, "in_fresh_process", lambda function, name, shape, path, encoder, *rest: len(encoder))
    words = [
        str(tiny),
        f"--json={tmp_path / 'bench.json'}",
        f"--figure={tmp_path / 'cost.png'}",
        "--encoders=bixt,slot",
    ]
    words += ["--batch=1", "--repeats=1", "--device=cpu", "--dense=False", "--lengths=16,32"]
    assert bench.main(words) == 0
    presets = json.loads((tmp_path / "bench.json").read_text())["presets"]
    assert [(preset["name"], preset["peak_bytes"]) for preset in presets] == [("tiny/bixt", 4), ("tiny/slot", 4)]
    assert presets[0]["flops_per_token"] != presets[1]["flops_per_token"]
    assert (tmp_path / "cost.png").stat().st_size > 1000
    with pytest.raises(UserError, match="bixt"):
        bench.main([str(tiny), "--encoders=bixtt"])


def test_arms_are_gone_where_memory_is_measured(tiny, monkeypatch):
    """What they hold would be lacking to the process that measures."""
    arms = []

    class Counted(bench.Arm):
        def __init__(self, *about):
            super().__init__(*about)
            arms.append(weakref.ref(self.model))

    def measured(function, *_):
        assert len(arms) == 3 and not any(arm() for arm in arms)
        return 1

    monkeypatch.setattr(bench, "Arm", Counted)
    monkeypatch.setattr(bench, "in_fresh_process", measured)
    bench.benchmark(tiny, bench.BenchConfig(batch=1, repeats=1), WORLD, 1e9)


def test_dropout_is_the_presets_on_a_gpu(tiny):
    """It decides which attention is taken there."""
    tiny.write_text(f"{TINY}\ndropout = 0.25\n")
    settings = bench.read_preset(tiny, 4)
    gpu = World(0, 1, torch.device("cuda", 0), "float32")
    assert [bench.timed(settings, world).model.dropout for world in (WORLD, gpu)] == [0, 0.25]
    arms = {name: bench.Arm(name, bench.timed(settings, gpu), WORLD, compiled=False) for name in ("ours", "reference")}
    assert bench.time_steps(arms, 4, 32, repeats=1).keys() == arms.keys()
    model = arms["reference"].model
    assert model.dropout.p == model.layers[0].dropout.p == model.layers[0].cross.dropout == 0.25


def test_costs_are_counted(tiny, capsys):
    """By the formulas, of encoding a row; the parameters as the model has them."""
    assert bench.main([str(tiny), "--costs"]) == 0
    row = capsys.readouterr().out.splitlines()[2].split("|")
    model = bench.read_preset(tiny, 16).model
    assert row[3].strip() == f"{ConceptModel(model).num_parameters():,}"
    H, C, inner = 32, 4, 32
    for cell, N in zip(row[5:8], bench.COUNTED, strict=True):
        latents = 2 * C * H * H * 2 + 8 * C * H * H + 4 * C * C * H + 6 * C * H * inner
        ours = 4 * N * H * H + 4 * C * N * H + latents
        dense = 8 * N * H * H + 4 * N * N * H + 6 * N * H * inner  # its tokens; and their pooling
        dense += 4 * N * H * H + 4 * C * N * H + 2 * C * H * H * 2
        assert cell.strip() == f"{ours / N / 1e6:.1f} ({dense / ours:.1f}x)"


@pytest.mark.parametrize("model", ["input", "posonly", "weighted, untied", "tsdae"])
def test_ours_and_the_reference_agree(model, tiny):
    """Over the steps of an optimizer, not only at the first weights; new noise in every step."""
    decoder = {"tsdae": "posonly"}.get(model, model.partition(",")[0])
    text = TINY.replace('decoder = "input"', f'decoder = "{decoder}"\ntied = {model != "weighted, untied"}')
    if model == "tsdae":
        text = text.replace('"mlm"', '"tsdae"').replace("mask_rate = 0.15", 'positions = "original"')
    tiny.write_text(text)
    settings = bench.read_preset(tiny, 4)
    assert bench.has_reference(settings)
    ours, reference = (bench.Arm(name, settings, WORLD, compiled=False) for name in ("ours", "reference"))
    losses = [(ours.train(8, 16).item(), reference.train(8, 16).item()) for _ in range(5)]
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in losses) and len(set(losses)) == 5


def test_arms_that_do_not_agree_are_not_compared(tiny, monkeypatch):
    monkeypatch.setattr(bench, "copy_weights", lambda ours, reference: reference.head.weight.data.mul_(9))
    settings = bench.read_preset(tiny, 4)
    arms = {name: bench.Arm(name, settings, WORLD, compiled=False) for name in ("ours", "reference")}
    with pytest.raises(AssertionError, match="ours and the reference do not agree"):
        bench.time_steps(arms, 4, 32, repeats=1)


def test_what_has_no_reference_is_measured_alone(tiny):
    changes = ["original_structure = False", 'objective = "tsdae"', 'objective = "mlm + bow"', "decoder_layers = 2"]
    changes += [
        'encoder = "recursive"',
        'encoder = "two_way"',
        'decoder = "causal"',
        "token_layers = 1",
        "registers = 1",
    ]
    for change in changes:
        tiny.write_text(f"{TINY}\n{change}\n")
        assert not bench.has_reference(bench.read_preset(tiny, 4))


def test_mistakes(tiny):
    tiny.write_text(TINY.replace("vocab_size = 300", ""))
    (tiny.parent / "more.py").write_text(tiny.read_text() + f"dataset = 'minipile'\ndata_dir = '{tiny.parent}'\n")
    assert bench.read_preset(tiny.parent / "more.py", 4).model.vocab_size == 50_368  # as prepared by default
    with pytest.raises(UserError, match="batch"):
        bench.main(["--batch=0"])
    with pytest.raises(UserError, match="folder does not exist"):
        bench.main(["--json=/nowhere/at/all.json"])
