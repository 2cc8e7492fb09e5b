"""Signals that come at a bad moment: in the middle of an evaluation, in training and in the judge."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.runs import RunFolder
from lab.validation import Validation
from tests.corpus import make_corpus
from tests.test_train import run, same_checkpoint

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "toy")
    return folder


STEPS = ["--max_steps=30", "--eval_interval=10", "--warmup=5", "--ckpt_interval=20"]


def timeless(out):
    return [{k: v for k, v in record.items() if k != "tokens_per_s"} for record in RunFolder(out).metrics()]


def test_in_an_evaluation_of_training(data, tmp_path, monkeypatch):
    """Before the first step, in between and after the last: the run that goes on makes the evaluation that was broken
    off, and equals one that nothing disturbed."""
    assert run(data, tmp_path / "whole", *STEPS) == 0
    geometry, calls = Validation.geometry, []

    def interrupted(self):
        calls.append(0)
        if len(calls) in (1, 3, 6):  # of step 0; of step 10, after 0 is made anew; of step 30
            signal.raise_signal(signal.SIGTERM)
        return geometry(self)

    monkeypatch.setattr(Validation, "geometry", interrupted)
    for step in (None, 10, 30):
        assert run(data, tmp_path / "broken", *STEPS) == 143
        assert RunFolder(tmp_path / "broken").pointer("latest") == step
        assert all(r["step"] != (step or 0) for r in RunFolder(tmp_path / "broken").metrics() if "val_loss" in r)
    assert run(data, tmp_path / "broken", *STEPS) == 0
    assert len(calls) == 7 and timeless(tmp_path / "broken") == timeless(tmp_path / "whole")
    assert RunFolder(tmp_path / "broken").pointer("best") == RunFolder(tmp_path / "whole").pointer("best")
    same_checkpoint(tmp_path / "broken", tmp_path / "whole")
    states = [(tmp_path / name / "ckpt_30" / "state.json").read_text() for name in ("broken", "whole")]
    assert states[0] == states[1]  # the best evaluation, too, though it came after its checkpoint


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_ends_tidily(number, code):
    """eval_glue.py and the others end by their exit code and one line."""
    script = f"from lab import command; import signal; command.command(lambda argv: signal.raise_signal({int(number)}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == code and done.stderr == "stopped; what is finished is kept\n"
