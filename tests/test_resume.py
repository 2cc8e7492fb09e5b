"""A run that goes on: bit for bit what an uninterrupted one is; its horizon, its clock, and what may change."""

import json
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch

import train
from lab.configurator import UserError
from lab.data.corpus import Corpus
from lab.training import compilation, horizon
from lab.training.run_folder import RunFolder
from lab.training.validation import Validation
from tests.training import BRIEF, Process, arguments, assert_same_run, losses, run


def config_of(out):
    return json.loads((out / "config.json").read_text())


# ---- bit for bit


def test_kill_and_resume_equals_an_uninterrupted_run(data, tmp_path):
    more = ["--max_steps=60", "--log_interval=1", "--ckpt_interval=7", "--eval_interval=20", "--warmup=10"]
    run(data, tmp_path / "whole", *more)
    out = tmp_path / "killed"
    with Process(arguments(data, out, *more), tmp_path / "log") as process:
        process.wait_until(lambda: (out / "latest").exists() and RunFolder(out).pointer("latest") >= 14)
        process.signal(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
    assert 14 <= RunFolder(out).pointer("latest") < 60
    with open(out / "metrics.jsonl", "a") as f:
        f.write('{"step": 1000, "lo')  # half a line, as a kill may leave
    assert run(data, out, *more) == 0
    assert_same_run(out, tmp_path / "whole", 60)


KINDS = {
    "dropout, spectral": [
        "--dropout=0.1",
        "--dtype=float32",
        "--decoder=causal",
        "--word_dropout=0.3",
        "--token_init=spectral",
        "--schedule=wsd",
    ],
    "micro-batches": ["--micro_batch=4", "--lengths=16,32"],
    "a sum with views": [
        "--objective=tsdae + 0.3*contrastive",
        "--lengths=16,40",
        "--concept_loss=vicreg",
        "--concept_loss_axis=samples",
    ],
    "nested, any depth, next concepts": [
        "--objective=bow + nextconcept",
        "--encoder=recursive",
        "--iterations=3",
        "--min_iterations=1",
        "--nested=True",
    ],
    "curricula": [
        "--lengths=16,32",
        "--length_mix=(1,0),(0,1)",
        "--objective=mlm",
        "--mask_rate=0.2,0.5",
        "--mask_unit=span",
        "--max_span=1,10",
    ],
    "learnt weights": ["--concept_loss=uniformity,tregs", "--concept_balance=kendall_gal", "--lr=0.01"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_back_to_a_checkpoint_and_on(kind, data, tmp_path):
    """As after a kill at step 5, of which everything later is forgotten; the learning rate falls all the while."""
    more = ["--max_steps=10", "--log_interval=1", "--warmup=2", "--ckpt_steps=4", "--eval_interval=6", *KINDS[kind]]
    run(data, tmp_path / "whole", *more)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again/latest").write_text("ckpt_4\n")
    run(data, tmp_path / "again", *more)
    assert [s["step"] for s in config_of(tmp_path / "again")["segments"]] == [0, 4]
    assert_same_run(tmp_path / "again", tmp_path / "whole", 10)


# ---- the horizon


def test_horizons_in_tokens_epochs_and_flops(data, tmp_path):
    def steps(name, *flags):
        run(data, tmp_path / name, *BRIEF, *flags)
        return RunFolder(tmp_path / name).pointer("latest")

    assert steps("tokens", "--max_tokens=1000") == 8  # ceil(1000 / 128)
    text = Corpus(data / "toy", "train").count
    assert steps("epochs", "--max_epochs=0.01") == -(-0.01 * text // 128)
    config = config_of(tmp_path / "tokens")
    a_step = config["train_flops_per_token"] * config["tokens_per_step"]
    assert steps("flops", f"--max_flops={4.5 * a_step}") == 5
    assert losses(tmp_path / "flops") == losses(tmp_path / "tokens")[:5]  # the rate is constant
    *_, last, _ = RunFolder(tmp_path / "flops").metrics()
    assert last["flops"] == pytest.approx(5 * a_step, rel=1e-6)


@pytest.fixture
def clock(monkeypatch):
    """A clock of its own for training: `now` moves only where a test says so."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(horizon, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def takes(owner, name, seconds):
        original = getattr(owner, name)

        def timed(*args, **keys):
            clock.now += seconds(*args) if callable(seconds) else seconds
            return original(*args, **keys)

        monkeypatch.setattr(owner, name, timed)

    clock.takes = takes
    return clock


def test_seconds_are_those_of_training(data, tmp_path, clock):
    """Neither evaluations nor checkpoints count; a run that goes on adds up."""
    clock.takes(train, "train_step", 2.0)
    clock.takes(Validation, "run", 1000.0)
    clock.takes(RunFolder, "save", 100.0)
    out, more = tmp_path / "run", ["--eval_interval=2", "--ckpt_interval=3", "--schedule=constant", "--log_interval=1"]
    for steps in (4, 7):
        run(data, out, *more, f"--max_steps={steps}")
    logged = [r for r in RunFolder(out).metrics() if "loss" in r]
    assert [r["seconds"] for r in logged] == [2.0 * step for step in range(1, 8)]
    assert all(r["tokens_per_s"] == 8 * 16 / 2 for r in logged)
    assert json.loads((RunFolder(out).checkpoint() / "state.json").read_text())["seconds"] == 14


def test_minutes_become_steps(data, tmp_path, clock, capsys):
    """A length's first step is left out, as it compiles; then 20 steps are timed, once; the result is kept."""
    seen = set()

    def seconds(run, batches):
        length = run.sampler.length(run.step)
        first = length not in seen
        seen.add(length)
        return 30.0 if first else 1.5

    clock.takes(train, "train_step", seconds)
    clock.takes(Validation, "run", 1000.0)
    out, more = tmp_path / "run", ["--lengths=16,32", "--log_interval=1", "--eval_interval=10"]
    run(data, out, *more, "--max_minutes=0.75")
    state = json.loads((RunFolder(out).checkpoint() / "state.json").read_text())
    assert state["step"] == state["horizon"] == 30 and state["seconds_per_step"] == 1.5  # 45 s
    assert "0.75 minutes are 30 steps of 1.500 s (60.0 s of first steps are left out" in capsys.readouterr().err
    run(data, out, *more, "--max_minutes=0.8")  # goes on without timing anew
    assert RunFolder(out).pointer("latest") == 32 and "0.8 minutes are" not in capsys.readouterr().err


# ---- what may change when a run goes on


def test_a_longer_horizon_goes_on_and_another_config_does_not(data, tmp_path, capsys):
    out = tmp_path / "run"
    run(data, out, "--max_steps=5", "--schedule=constant", "--tag=mine")
    assert run(data, out, "--max_steps=9", "--schedule=constant", "--log_interval=1") == 0
    assert "horizon moves from 5 to 9" in capsys.readouterr().err
    assert [s for s, _ in losses(out)] == [5, 6, 7, 8, 9]
    assert config_of(out)["max_steps"] == 9 and config_of(out)["tag"] == "mine"
    for flag, says in ("--layers=3", r"layers \(1 there, 3 now\)"), ("--lr=1e-5", r"lr \("), ("--seed=1", r"seed \("):
        with pytest.raises(UserError, match=rf"differs in {says}.*--out_dir"):
            run(data, out, "--max_steps=9", "--schedule=constant", flag)
    with pytest.raises(UserError, match="resume='never'.*--out_dir"):
        run(data, out, "--max_steps=9", "--resume=never")
    with pytest.raises(UserError, match="resume='must'"):
        run(data, tmp_path / "other", "--max_steps=9", "--resume=must")
    capsys.readouterr()
    run(data, out, "--max_steps=10", "--schedule=constant", "--micro_batch=4", "--keep=1", "--eval_interval=3")
    assert "micro_batch changed: the run goes on, but no longer bit for bit" in capsys.readouterr().err


def test_segments_say_when_a_run_was_started_and_went_on(data, tmp_path, monkeypatch):
    out, commits = tmp_path / "run", iter(["one", "two", "three"])
    monkeypatch.setattr(train.run_folder, "commit", lambda: next(commits))
    for steps in (2, 3, 3):  # the last time there is nothing to do
        run(data, out, *BRIEF, f"--max_steps={steps}")
    config = config_of(out)
    assert [(s["step"], s["commit"], s["ranks"]) for s in config["segments"]] == [(0, "one", 1), (2, "two", 1)]
    assert all(s["machine"] == config["machine"] and s["machine"]["torch"] for s in config["segments"])


def test_a_decision_to_compile_is_kept(data, tmp_path, monkeypatch, capsys):
    """Also where the present machine, or a longer horizon, would decide otherwise."""
    monkeypatch.setattr(torch, "compile", lambda forward, **keys: forward)
    pays = 1e-30  # FLOP/s of eager steps: so slow that any run gains by it
    monkeypatch.setattr(compilation, "EAGER_FLOPS", pays)
    auto = [*BRIEF, "--compile=auto"]
    run(data, tmp_path / "compiled", *auto, "--max_steps=1")
    monkeypatch.setattr(compilation, "EAGER_FLOPS", 1e30)
    run(data, tmp_path / "eager", *auto, "--max_steps=1")
    assert config_of(tmp_path / "compiled")["compile"] is True and config_of(tmp_path / "eager")["compile"] is False
    capsys.readouterr()
    run(data, tmp_path / "compiled", *auto, "--max_steps=2")
    assert ", compiled; " in capsys.readouterr().err and config_of(tmp_path / "compiled")["compile"] is True
    monkeypatch.setattr(compilation, "EAGER_FLOPS", pays)
    run(data, tmp_path / "eager", *auto, "--max_steps=2")
    says = capsys.readouterr().err
    assert ", eager; " in says and "changed" not in says
    run(data, tmp_path / "eager", *BRIEF, "--max_steps=3", "--compile=True")
    assert "compile changed: the run goes on, but no longer bit for bit" in capsys.readouterr().err


def test_the_number_format_is_kept(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train.distributed, "pick_dtype", lambda name, device: "bfloat16" if name == "auto" else name)
    run(data, tmp_path / "run", *BRIEF, "--max_steps=1", "--dtype=float32")
    run(data, tmp_path / "run", *BRIEF, "--max_steps=2")  # auto, on a machine fast at bfloat16
    assert config_of(tmp_path / "run")["dtype"] == "float32"
