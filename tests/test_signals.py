"""Ctrl-C, SIGTERM and their like, at good and bad moments: what is trained is saved, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import train
from lab.distributed import Signals, World
from lab.training.compilation import compiles
from lab.training.run_folder import RunFolder
from lab.training.validation import Validation
from tests.training import (
    BRIEF,
    ENDLESS,
    ROOT,
    Process,
    arguments,
    assert_same_checkpoint,
    assert_same_run,
    losses,
    run,
    timeless,
)

ALL = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]


def test_a_signal_saves_and_stops(data, tmp_path):
    out = tmp_path / "run"
    with Process(arguments(data, out, *ENDLESS), tmp_path / "log") as process:
        process.wait_until(lambda: losses(out))
        process.signal(signal.SIGTERM)
        done = process.wait(30)
    step = RunFolder(out).pointer("latest")
    assert done.code == 143 and step == losses(out)[-1][0]
    assert "SIGTERM: stopping and saving" in done.err and f"saved step {step} in" in done.err
    for folder in (tmp_path / "whole", out):
        run(data, folder, *BRIEF, f"--max_steps={step + 5}", "--ckpt_interval=0")
    assert_same_run(out, tmp_path / "whole", step + 5)


@pytest.mark.parametrize("number, code", ALL[1:])
def test_other_signals_save_too(number, code, data, tmp_path, monkeypatch):
    """Ctrl-C, and what a closed terminal and Slurm send."""
    step = train.train_step

    def struck(run, batches):
        if run.step == 2:
            signal.raise_signal(number)
        return step(run, batches)

    monkeypatch.setattr(train, "train_step", struck)
    assert run(data, tmp_path / "run", *BRIEF, "--max_steps=9") == code
    assert RunFolder(tmp_path / "run").pointer("latest") == 3


def test_that_ends_the_compiler_too(data, tmp_path, monkeypatch):
    """Ctrl-C reaches the processes that compile, which then fail before a step: the run stops as it should."""

    def rehearse(run, *_):
        def attempt():
            if run.step == 3:
                signal.raise_signal(signal.SIGINT)
                raise RuntimeError("the compiler was killed")

        assert not compiles(run.world, attempt, run.signals)

    monkeypatch.setattr(train, "rehearse", rehearse)
    assert run(data, tmp_path / "run", *BRIEF, "--max_steps=5") == 130
    assert RunFolder(tmp_path / "run").pointer("latest") == 3
    monkeypatch.undo()
    for name in ("run", "whole"):
        assert run(data, tmp_path / name, *BRIEF, "--max_steps=5") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole", 5)


STEPS = ["--max_steps=30", "--eval_interval=10", "--warmup=5", "--ckpt_interval=20"]


def test_in_an_evaluation_of_training(data, tmp_path, monkeypatch):
    """Before the first step, in between and after the last: the run that goes on makes the evaluation that was broken
    off, and equals one that nothing disturbed."""
    assert run(data, tmp_path / "whole", *STEPS) == 0
    geometry, calls = Validation.geometry, []

    def interrupted(self, whole):
        calls.append(0)
        if len(calls) in (1, 3, 6):  # of step 0; of step 10, after 0 is made anew; of step 30
            signal.raise_signal(signal.SIGTERM)
        return geometry(self, whole)

    monkeypatch.setattr(Validation, "geometry", interrupted)
    for step in (None, 10, 30):
        assert run(data, tmp_path / "broken", *STEPS) == 143
        assert RunFolder(tmp_path / "broken").pointer("latest") == step
        assert all(r["step"] != (step or 0) for r in RunFolder(tmp_path / "broken").metrics() if "val_loss" in r)
    assert run(data, tmp_path / "broken", *STEPS) == 0
    broken, whole = (RunFolder(tmp_path / name) for name in ("broken", "whole"))
    assert len(calls) == 7 and [*map(timeless, broken.metrics())] == [*map(timeless, whole.metrics())]
    assert broken.pointer("best") == whole.pointer("best")
    assert_same_checkpoint(broken.path, whole.path)
    states = [json.loads((folder.path / "ckpt_30/state.json").read_text()) for folder in (broken, whole)]
    assert timeless(states[0]) == timeless(states[1])  # the best evaluation, too, though it came after its checkpoint


def test_a_closed_pipe_does_not_cost_the_save(data, tmp_path):
    """`train.py ... 2>&1 | tee log`, and Ctrl-C: tee is gone first."""
    out, pipes = tmp_path / "run", [tmp_path / "log.out", tmp_path / "log.err"]
    for pipe in pipes:
        os.mkfifo(pipe)
    with Process(arguments(data, out, *ENDLESS), tmp_path / "log") as process:
        readers = [os.open(pipe, os.O_RDONLY) for pipe in pipes]
        process.wait_until(lambda: losses(out))
        for reader in readers:
            os.close(reader)
        process.signal(signal.SIGINT)
        process.process.join(30)
        assert process.process.exitcode == 130
    assert RunFolder(out).pointer("latest") == losses(out)[-1][0]


def test_a_second_ctrl_c_ends_at_once(data, tmp_path):
    """In the midst of a save that takes for ever; the launcher's copy of the first Ctrl-C, right after it, is none."""
    out = tmp_path / "run"
    with Process(arguments(data, out, *ENDLESS), tmp_path / "log", before=endless_save) as process:
        process.wait_until(lambda: losses(out))
        process.signal(signal.SIGINT)
        process.signal(signal.SIGINT)
        time.sleep(1.2)
        assert process.process.is_alive()
        process.signal(signal.SIGINT)
        assert process.wait(5).code == 130
    assert not RunFolder(out).steps()


def endless_save():
    RunFolder.save = lambda *_, **__: [time.sleep(0.1) for _ in range(600)]


@pytest.mark.parametrize("number, code", ALL)
def test_a_command_ends_tidily(number, code):
    """eval_glue.py and the others end by their exit code and one line."""
    done = in_command(f"signal.raise_signal({int(number)})")
    assert done.returncode == code and done.stderr == "stopped; what is finished is kept\n"


def in_command(body, **options):
    """command.command of a main with this body, in a process of its own."""
    script = "import errno, os, signal, sys\nfrom lab import command\nfrom lab.configurator import UserError\n"
    script += f"def main(argv):\n    {body}\ncommand.command(main)"
    options = {"capture_output": True, "text": True, "timeout": 60, "cwd": ROOT} | options
    return subprocess.run([sys.executable, "-c", script], **options)


def test_nohup_is_obeyed_but_under_torchrun():
    """Which passes SIGHUP on all the same, and kills what has not ended 30 s later."""
    try:
        old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert in_command("signal.raise_signal(signal.SIGHUP)").returncode == 0
        environ = os.environ | {"TORCHELASTIC_RUN_ID": "x"}
        assert in_command("signal.raise_signal(signal.SIGHUP)", env=environ).returncode == 129
    finally:
        signal.signal(signal.SIGHUP, old)


def test_only_a_broken_standard_output_is_the_end_of_reading(tmp_path):
    """`| head` has read enough, exit 0; any other pipe or socket that breaks is a failure."""
    reading, writing = os.pipe()
    os.close(reading)
    body = "print('x' * 100_000); raise SystemError('nobody stopped us')"
    done = in_command(body, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    done = in_command("raise BrokenPipeError(errno.EPIPE, 'of a socket')")
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk to write to")
def test_what_cannot_be_written(tmp_path):
    """Progress that is lost costs nothing, a result does."""
    with open("/dev/full", "w") as full:
        keys = {"capture_output": False, "stdout": subprocess.PIPE, "stderr": full}
        done = in_command("command.log('progress' * 2000); print('result'); return 3", **keys)
        assert (done.returncode, done.stdout) == (3, "result\n")
        done = in_command("print('result')", capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2 and done.stderr.startswith("error: a file cannot be used (No space left")


def test_a_command_tells_its_starter_why_it_failed(tmp_path):
    environ = os.environ | {"NANOCONCEPT_REASON": str(tmp_path / "reason")}
    for body, code, reason in (
        ("raise UserError('no such thing; take another')", 2, "no such thing; take another"),
        ("raise RuntimeError('CUDA out of memory. Tried')", 2, "out of memory; take fewer rows at a time"),
        ("raise ValueError('one\\ntwo')", 1, "ValueError: one two"),
    ):
        assert in_command(body, env=environ).returncode == code
        assert (tmp_path / "reason").read_text().startswith(reason)


def test_the_first_signal_is_the_one_that_counts(monkeypatch):
    old = [signal.getsignal(number) for number, _ in ALL]
    try:
        signals = Signals(World(0, 1, None, "float32"))
        assert signals.agreed() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.agreed() == signals.received == signal.SIGTERM
    finally:
        for (number, _), handler in zip(ALL, old, strict=True):
            signal.signal(number, handler)
