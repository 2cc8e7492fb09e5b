"""The road that a GPU takes, on the CPU: torch.compile, bfloat16, chunked loss, two ranks and accumulation at once; and
where compiling fails."""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import losses as loss_functions
from lab.training import compilation, optim
from lab.training.run_folder import RunFolder
from tests.training import (
    BRIEF,
    ROOT,
    Process,
    arguments,
    assert_same_run,
    losses,
    run,
    run_ranks,
    small_buckets,
)

LENGTHS = (16, 32)
ROAD = [*BRIEF, "--objective=tsdae", "--lengths=16,32", "--batch_size=16", "--max_steps=6", "--compile=True"]
ROAD += ["--eval_tokens=64"]


def recorded(folder, backend, chunk):
    """Called before training: torch.compile by this backend, so many rows of logits at once; writes the first two
    steps' gradients, and how many graphs there are after each step."""
    folder.mkdir(parents=True, exist_ok=True)
    loss_functions.CPU_CHUNK = chunk
    small_buckets(folder / "buckets")
    compile, step, graphs = torch.compile, optim.clipped_step, []

    def with_backend(forward, **keys):
        assert keys.get("dynamic") is False or not isinstance(forward, torch.nn.Module)
        return compile(forward, backend=backend, **keys)

    def clipped_step(model, *args):
        if len(graphs) < 2:
            save_file({name: p.grad for name, p in model.named_parameters()}, folder / f"{len(graphs)}.safetensors")
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        (folder / "graphs.json").write_text(json.dumps(graphs))
        return step(model, *args)

    torch.compile, optim.clipped_step = with_backend, clipped_step


@pytest.fixture(scope="module")
def eager(data, tmp_path_factory):
    """One rank, no compilation, float32, whole logits."""
    folder = tmp_path_factory.mktemp("eager")
    words = arguments(data, folder / "run", *ROAD, "--compile=False", "--dtype=float32")
    before = functools.partial(recorded, folder, "eager", 100_000)
    with Process(words, folder / "log", before=before) as process:
        assert process.wait(110).code == 0
    assert json.loads((folder / "graphs.json").read_text()) == [0] * 6
    return folder


def assert_same_numbers(folder, eager):
    for (step, a), (_, b) in zip(losses(folder / "run"), losses(eager / "run"), strict=True):
        assert a == pytest.approx(b, rel=1e-2), step
    for step in ("0", "1"):
        one, two = (load_file(x / f"{step}.safetensors") for x in (folder, eager))
        assert one.keys() == two.keys()
        for name in one:
            a, b = one[name].flatten().double(), two[name].flatten().double()
            assert torch.cosine_similarity(a, b, dim=0) > 0.999, (step, name)
            assert a.norm() / b.norm() == pytest.approx(1, abs=0.02), (step, name)


SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "ranks, backend",
    [(2, "eager")]  # the graphs alone: tests/test_concept_losses.py derives gradients by aot_eager
    + [pytest.param(ranks, backend, marks=SLOW) for ranks in (1, 2) for backend in ("aot_eager", "inductor")],
)
def test_the_whole_road(ranks, backend, data, eager, tmp_path):
    """On two ranks DDP reduces after the last of two parts alone, in several buckets. A graph for each length, and not
    one more."""
    words = arguments(data, tmp_path / "run", *ROAD, "--dtype=bfloat16", "--micro_batch=4")
    before = functools.partial(recorded, tmp_path, backend, 48)
    done = run_ranks([words] * ranks, tmp_path, before=before, timeout=110 if backend == "eager" else 580)
    assert [rank.code for rank in done] == [0] * ranks, done[0].err[-2000:]
    assert f"bfloat16, compiled; 142,000 tokens of text, 512 a step in {ranks} x {4 // ranks} parts" in done[0].err
    assert "torch.compile" not in done[0].err  # that it failed
    assert_same_numbers(tmp_path, eager)
    assert ranks == 1 or len((tmp_path / "buckets").read_text().split()) > 2
    graphs = json.loads((tmp_path / "graphs.json").read_text())
    probe = 1  # what finds out whether torch.compile works at all
    assert graphs[3:] == [probe + len(LENGTHS)] * 3  # both lengths have been seen by then


# ---- where compiling fails


def failing(times, monkeypatch=None, rank="0"):
    """torch.compile works but for the first calls of the model on this rank, which fail as a damaged cache makes them.
    Returns the emptied caches."""
    left, emptied = [times], []

    def compile(forward, **_):
        def compiled(*args, **keys):
            if isinstance(forward, torch.nn.Module) and os.environ.get("RANK", "0") == rank and left[0]:
                left[0] -= 1
                raise ImportError("/tmp/torchinductor_me/ab/cab.main.so: file too short")
            return forward(*args, **keys)

        return compiled

    put = monkeypatch.setattr if monkeypatch else setattr
    put(torch, "compile", compile)
    put(compilation, "empty_cache", lambda: emptied.append(left[0]))
    return emptied


BROKEN = [*BRIEF, "--objective=tsdae", "--lengths=16,32", "--max_steps=6", "--dropout=0.1", "--eval_interval=3"]


@pytest.mark.parametrize("times, compiled", [(1, True), (2, False)])
def test_a_damaged_cache_is_left_and_then_compiling_is(times, compiled, data, tmp_path, monkeypatch, capsys):
    """Tried once more with an empty cache; where that fails too all goes on uncompiled, and so it does when resumed.
    What is tried leaves no trace in the run."""
    run(data, tmp_path / "eager", *BROKEN)
    emptied = failing(times, monkeypatch)
    assert run(data, tmp_path / "run", *BROKEN, "--compile=True") == 0
    told = capsys.readouterr().err
    assert emptied == [times - 1]
    assert told.count(" is damaged: delete it when no run uses it. torch.compile failed by it (Imp") == compiled
    assert told.count("training goes on uncompiled, and no longer bit for bit") == (not compiled)
    assert RunFolder(tmp_path / "run").config()["compile"] is compiled
    assert_same_run(tmp_path / "run", tmp_path / "eager", 6)
    words = ["--compile=auto", "--max_steps=7"]
    assert run(data, tmp_path / "run", *BROKEN, *words) == 0
    assert RunFolder(tmp_path / "run").config()["compile"] is compiled


def test_ranks_leave_compiling_together(data, tmp_path):
    """Where one of them fails, twice: no rank waits for it in a collective. Contrastive gathers, too."""
    words = [*BROKEN, "--objective=tsdae + 0.3*contrastive", "--dropout=0", "--lengths=16"]
    both = [arguments(data, tmp_path / "run", *words, "--compile=True")] * 2
    done = run_ranks(both, tmp_path, before=functools.partial(failing, 2, rank="1"))
    assert [rank.code for rank in done] == [0, 0], done[1].err
    assert "torch.compile does not work (on another rank); training goes on uncompiled" in done[0].err
    run(data, tmp_path / "eager", *words)
    two, one = losses(tmp_path / "run"), losses(tmp_path / "eager")
    assert [x for _, x in two] == pytest.approx([x for _, x in one], rel=1e-4)


DAMAGE = """
import os, pathlib, sys
import torch
from lab import command, distributed
from lab.training import compilation
world, x = distributed.World(0, 1, torch.device("cpu"), "float32"), torch.ones(16, 16, requires_grad=True)
compiled = torch.compile(lambda x: (x @ x).softmax(-1).sin().sum(), dynamic=False)
assert not compilation.compiles(world, lambda: compiled(x).backward())
for finish in command.AT_EXIT:
    finish(0)
for library in pathlib.Path(sys.argv[1]).rglob("*.so"):
    library.write_bytes(library.read_bytes()[:100])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_libraries_that_are_cut_off(tmp_path):
    """As a compiler leaves them that Ctrl-C has killed."""
    for attempt in range(2):
        words = [sys.executable, "-c", DAMAGE, str(tmp_path)]
        environ = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(words, capture_output=True, text=True, env=environ, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert (f"warning: {tmp_path} is damaged: delete it" in done.stderr) == bool(attempt)
