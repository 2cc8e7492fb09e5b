"""What is not the run itself costs a warning, once, and never the run: mirrors, pictures."""

import sys
from types import SimpleNamespace

import pytest

import train
from lab import command, report
from lab.training.run_folder import RunFolder
from tests.training import BRIEF, arguments, losses, run


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(command, "TOLD", set())
    monkeypatch.setattr(command, "AT_EXIT", command.AT_EXIT[:])


@pytest.mark.parametrize("where", ["init", "log"])
def test_a_mirror_that_breaks_costs_a_warning(where, data, tmp_path, monkeypatch, capsys):
    """Whatever wandb raises (its service was killed: BrokenPipeError), and not only at the first line."""
    calls = []

    def init(**_):
        calls.append("init")
        if where == "init":
            raise ConnectionError("no network")
        return SimpleNamespace(log=log, id="abc", url=None, finish=lambda **_: calls.append("finish"))

    def log(numbers, step):
        calls.append(step)
        if step == 2:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    assert run(data, tmp_path / "run", *BRIEF, "--max_steps=5", "--wandb") == 0
    assert calls == (["init"] if where == "init" else ["init", 0, 1, 2])
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert RunFolder(tmp_path / "run").pointer("latest") == 5
    assert capsys.readouterr().err.count("warning: Weights & Biases failed") == 1
    for finish in command.AT_EXIT:
        finish(0)
    assert "finish" not in calls  # one that is broken is left alone


def test_a_picture_that_fails_costs_a_warning(data, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert train.main(arguments(data, tmp_path / "run", *BRIEF, "--max_steps=4", "--eval_interval=2")) == 0
    assert len(losses(tmp_path / "run")) == 4 and not list((tmp_path / "run").rglob("*.png"))
    assert capsys.readouterr().err.count("warning: a picture failed (OSError: [Errno 28] No space left") == 1
    drawn = report.lines({"a": ([1, 2], [1.0, 2.0])}, "x", "y", tmp_path / "lines.png")
    assert drawn is None and "could not be made" in report.picture(drawn)


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.lines({"a": ([1, 2], [1.0, 2.0])}, "x", "y", tmp_path / "a.png") is None
    assert "warning: a picture failed (ModuleNotFoundError" in capsys.readouterr().err


def test_a_config_that_cannot_be_read_costs_the_picture_of_geometry(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{")  # it is being edited
    RunFolder(tmp_path).draw_geometry()
    assert "warning: a picture failed (UserError" in capsys.readouterr().err


def test_an_optional_block_passes_on_what_ends_a_command():
    with pytest.raises(KeyboardInterrupt), command.optional("a thing"):
        raise KeyboardInterrupt
