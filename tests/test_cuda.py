"""The road a GPU takes, on a GPU: skipped where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.corpus import make_corpus

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.timeout(300),
]
SMALL = ["--lengths=16,32", "--max_length=32", "--batch_size=32", "--warmup=5", "--eval_interval=0", "--log_interval=1"]
SMALL += ["--dataset=tiny", "--vocab_size=0", "--final_report=losses", "--eval_tokens=1024", "--device=cuda"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "tiny", documents=3000)
    return folder


def train(data, out, *flags):
    words = ["config/concepts_cpu.py", f"--data_dir={data}", f"--out_dir={out}", *SMALL, *flags]
    done = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = map(json.loads, (Path(out) / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


STEPS = [dict(objective="tsdae + bow"), dict(objective="mlm"), dict(objective="contrastive")]
STEPS += [dict(objective="tsdae", delete_unit="word"), dict(objective="bow + nextconcept")]
STEPS += [dict(objective="nextconcept", next_target="spectral")]
STEPS += [dict(objective="mlm", mask_unit="span", span=s, replace="80_10_10") for s in ("geometric", "uniform")]
STEPS += [dict(objective="mlm", mask_unit="word", replace="80_10_10", mask_rate=0.7, encoder_mask_rate=0.2)]


@pytest.mark.parametrize("keys", STEPS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_a_training_step_never_waits_for_the_device(keys):
    from registries import built_for

    from lab import distributed
    from lab.training import optim
    from model import ConceptModel, ModelConfig
    from noise import Noise
    from objectives import ObjectiveConfig, Objectives
    from problem import Rows, Vocabulary

    world = distributed.start("cuda")
    objectives = Objectives(ObjectiveConfig(**keys))
    shape = dict(layers=2, hidden=64, heads=2, intermediate=64, concepts=8, max_length=32, vocab_size=500)
    shape = ModelConfig(**shape | built_for(objectives))
    model = ConceptModel(shape, 3).to(world.device)
    optimizer = optim.adamw(model, 1e-3, 0.01, (0.9, 0.98))
    ones = torch.ones(500, device=world.device)
    starts, vectors = torch.arange(500, device=world.device) % 3 > 0, torch.rand(500, 64, device=world.device)
    vocab = Vocabulary(500, 3, (0, 1, 2), ones, starts=starts, vectors=vectors)
    ids, numbers = torch.randint(4, 500, (16, 32), device=world.device), torch.arange(16, device=world.device)

    def step(i):
        rows = Rows(ids, Noise(0, i, numbers), vocab, documents=numbers)
        loss = objectives.total(optim.forward_backward(model, objectives, rows, world))
        return optim.clipped_step(model, optimizer, 1e-3, 1.0, loss)

    step(0)  # the first one makes handles and states
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm, bad = step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert norm > 0 and not bad


@pytest.mark.parametrize("span", ["", "geometric", "uniform"])
def test_units_are_the_same_on_every_device(span):
    from noise import Noise

    words, rows = torch.rand(64, 128, generator=torch.Generator().manual_seed(0)) < 0.7, torch.arange(64)
    words[:, 0] = True
    last = words & (torch.arange(128) % 40 == 39)
    here = Noise(1, 2, rows).order_units(0, words, last, 40, span)
    there = Noise(1, 2, rows.cuda()).order_units(0, words.cuda(), last.cuda(), 40, span)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))


def test_compiled_bfloat16_losses_are_those_of_eager_float32(data, tmp_path):
    eager = train(data, tmp_path / "a", "--max_steps=20", "--dtype=float32", "--compile=False")
    compiled = train(data, tmp_path / "b", "--max_steps=20", "--dtype=bfloat16", "--compile=True")
    assert all(abs(compiled[step] / eager[step] - 1) < 0.02 for step in eager)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_resumed_run_equals_an_uninterrupted_one(data, tmp_path, deterministic, compiled):
    flags = [f"--deterministic={deterministic}", f"--compile={compiled}", "--concept_position=cope"]
    whole = train(data, tmp_path / "a", "--max_steps=20", *flags)
    train(data, tmp_path / "b", "--max_steps=10", "--schedule=constant", *flags)
    flat = train(data, tmp_path / "c", "--max_steps=20", "--schedule=constant", *flags)
    resumed = train(data, tmp_path / "b", "--max_steps=20", "--schedule=constant", *flags)
    assert len(whole) == 20
    for step, loss in flat.items():
        assert resumed[step] == loss if deterministic else abs(resumed[step] / loss - 1) < 1e-3
