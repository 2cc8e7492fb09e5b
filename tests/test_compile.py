"""The road that a GPU takes, on the CPU: torch.compile, bfloat16, chunked loss, two ranks and accumulation at once."""

import functools
import json

import pytest
import torch
from corpus import make_corpus
from safetensors.torch import load_file, save_file

import losses as loss_functions
from lab import optim
from tests.training import BRIEF, Process, arguments, losses, run_ranks

LENGTHS = (16, 32)
ROAD = [*BRIEF, "--objective=tsdae", "--lengths=16,32", "--batch_size=16", "--max_steps=6", "--compile=True"]
ROAD += ["--eval_tokens=64"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "toy")
    return folder


def recorded(folder, backend, chunk):
    """Called before training: torch.compile by this backend, so many rows of logits at once; writes the first two
    steps' gradients, and how many graphs there are after each step."""
    folder.mkdir(parents=True, exist_ok=True)
    loss_functions.CPU_CHUNK = chunk
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
    [(2, "aot_eager"), pytest.param(1, "aot_eager", marks=SLOW)]
    + [pytest.param(ranks, "inductor", marks=SLOW) for ranks in (1, 2)],
)
def test_the_whole_road(ranks, backend, data, eager, tmp_path):
    """On two ranks DDP reduces after the last of two parts alone. A graph for each length, and not one more."""
    words = arguments(data, tmp_path / "run", *ROAD, "--dtype=bfloat16", "--micro_batch=4")
    before = functools.partial(recorded, tmp_path, backend, 48)
    done = run_ranks([words] * ranks, tmp_path, before=before, timeout=110 if backend == "aot_eager" else 580)
    assert [rank.code for rank in done] == [0] * ranks, done[0].err[-2000:]
    assert f"bfloat16, compiled; 142,000 tokens of text, 512 a step in {ranks} x {4 // ranks} parts" in done[0].err
    assert_same_numbers(tmp_path, eager)
    graphs = json.loads((tmp_path / "graphs.json").read_text())
    probe = 1  # what finds out whether torch.compile works at all
    assert graphs[3:] == [probe + len(LENGTHS)] * 3  # both lengths have been seen by then
