"""Grids as their users meet them: trained, skipped when done, stopped and continued; the registry."""

import csv
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

import compare
from lab import report
from lab.command import STOPS
from lab.configurator import UserError
from lab.evaluation.scores import bootstrap
from lab.evaluation.tasks import TASKS, Pairs
from lab.files import locked
from lab.grids import registry
from lab.grids import summary as grids
from lab.training import settings
from lab.training.run_folder import RunFolder
from model import ModelConfig
from tests import training
from tests.corpus import make_corpus
from tests.test_eval_glue import write_tasks

ROOT = Path(__file__).resolve().parent.parent
GRIDS = sorted((ROOT / "config" / "grids").glob("*.py"))
COMMON = """
dataset = "toy"
vocab_size = 0
hidden = 32
heads = 2
intermediate = 32
max_length = 64
batch_size = 8
max_steps = 30
warmup = 5
log_interval = 5
eval_interval = 0
ckpt_interval = 0
eval_tokens = 256
final_report = "losses"
device = "cpu"
"""


def grid_file(folder, arms='{"wide": {"concepts": 6}, "narrow": {"concepts": 3, "lengths": (16, 24)}}', more=""):
    path = folder / "toy.py"
    path.write_text(f'base = "config/quickstart.py"\narms = {arms}\n{more}{COMMON}')
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with data/toy, and task files in glue."""
    here = tmp_path_factory.mktemp("compare")
    make_corpus(here / "data" / "toy")
    write_tasks(here / "glue")
    return here


@pytest.fixture(scope="module")
def place(files):
    """The same, and a grid that was run to its end in whole/, all in this process."""
    here, printed = files, io.StringIO()
    grid = grid_file(here, more="seeds = (0, 1)\n")
    with patch("compare.Children", InProcess), training.unrendered(), redirect_stdout(printed):
        assert compare.main(arguments(here, grid, "whole")) == 0
    (here / "stdout").write_text(printed.getvalue())
    return here


class InProcess:
    """Runs commands in this process, and keeps their names."""

    def __init__(self):
        self.received, self.started = 0, []

    def run(self, words, **options):
        name = Path(words[0]).stem
        self.started.append(name)
        with redirect_stdout(sys.stderr), patch("signal.signal"):  # which is for the main thread alone
            return self.call(training.main if name == "train" else importlib.import_module(name).main, words[1:])

    def call(self, main, words):
        return main(words)


def arguments(place, grid, out):
    return [str(grid), f"--out={place / out}", f"--data={place / 'glue'}", f"--data_dir={place / 'data'}"]


@pytest.fixture
def started(monkeypatch):
    """compare.main in this process: the list of the commands it starts."""
    children = InProcess()
    monkeypatch.setattr(compare, "Children", lambda: children)
    return children.started


def results(place, out):
    return json.loads((place / out / "compare" / "toy" / "results.json").read_text())


def numbers(results):
    """What has to be the same in a grid that was stopped and continued."""
    return {
        run: {key: value for key, value in found["numbers"].items() if key not in ("tokens_per_s", "seconds")}
        for run, found in results["runs"].items()
    }


# ---- a grid from start to end


def test_a_grid_and_its_folder(place):
    found = results(place, "whole")
    assert set(found["runs"]) == {"wide_s0", "wide_s1", "narrow_s0", "narrow_s1"} and not found["failed"]
    for run, record in found["runs"].items():
        folder = RunFolder(place / "whole" / "compare" / "toy" / run)
        config, metrics = folder.config(), folder.metrics()
        assert config["seed"] == record["seed"] and config["concepts"] == (6 if record["arm"] == "wide" else 3)
        assert config["lengths"] == ([16] if record["arm"] == "wide" else [16, 24])  # a tuple in an arm
        first, last = ([r for r in metrics if "val_loss" in r][i] for i in (0, -1))
        for key in ("val_loss", "rank_slot_centred", "rank_raw", "rank_pooled", "input_share", "delta_shuffle"):
            assert record["numbers"][key] == last[key]
        assert record["numbers"]["rank_slot_centred@0"] == first["rank_slot_centred"]
        assert record["numbers"]["input_share@0"] == first["input_share"] and record["step"] == 30
        assert record["numbers"]["tokens"] == 30 * 8 * max(config["lengths"])
        expected = record["numbers"]["tokens"] * config["train_flops_per_token"]
        assert record["numbers"]["flops"] == pytest.approx(expected) and record["numbers"]["seconds"] > 0


def test_medians_and_spread(place):
    found = results(place, "whole")
    for arm, summary in found["arms"].items():
        runs = [run["numbers"] for run in found["runs"].values() if run["arm"] == arm]
        assert summary["runs"] == len(runs) == 2 and summary["median"].keys() == runs[0].keys()
        for key in runs[0]:
            values = np.array([run[key] for run in runs])
            assert summary["median"][key] == pytest.approx(np.median(values))
            assert (summary["min"][key], summary["max"][key]) == (values.min(), values.max())
    three = grids.summary([{"numbers": {"x": x}} for x in (3.0, 1.0, 7.0)])
    assert (three["median"], three["min"], three["max"]) == ({"x": 3.0}, {"x": 1.0}, {"x": 7.0})


def test_the_table(place):
    printed = (place / "stdout").read_text()
    arms = printed.partition("## Collapsed? Learned?")[0]
    lines = [line for line in arms.splitlines() if line.startswith("|")]
    header, wide, narrow = ([cell.strip() for cell in lines[i].strip("|").split("|")] for i in (0, 2, 3))
    assert len(lines) == 4 and (wide[0], narrow[0]) == ("wide", "narrow")
    summary = results(place, "whole")["arms"]["wide"]
    low, middle, high = (summary[which]["val_loss"] for which in ("min", "median", "max"))
    assert wide[header.index("val loss")] == f"{middle:.3f} ({low:.3f}..{high:.3f})"
    geometry = {"slot rank", "raw rank", "pooled rank", "input share", "dead slots", "Δshuffle", "share@0"}
    assert geometry | {"TFLOP", "seconds"} <= set(header)
    assert "their losses do not compare" in printed  # the arms have other rows
    report = (place / "whole" / "compare" / "toy" / "report.md").read_text()
    assert report.startswith("# toy\n\nNo scores to compare, and no losses that compare.\n\n") and lines[0] in report


# ---- skipped, stopped, continued


def test_what_is_done_is_skipped_and_new_tasks_are_judged(place, started, capsys, monkeypatch):
    shutil.copytree(place / "whole", place / "again")
    old = numbers(results(place, "again"))
    with training.unrendered():
        assert compare.main(arguments(place, place / "toy.py", "again")) == 0
    assert started == [] and numbers(results(place, "again")) == old
    assert capsys.readouterr().out == (place / "stdout").read_text()

    run = RunFolder(place / "again/compare/toy/wide_s0")
    with training.unrendered():
        run.draw_geometry()
    before = (run.path / "geometry.png").read_bytes()
    (place / "judged").mkdir()
    monkeypatch.setattr(bootstrap, "__defaults__", (0, 200))
    grid = grid_file(place / "judged", '{"wide": {"concepts": 6}}', more='seeds = 0\ntasks = "stsb"\n')
    with training.unrendered():
        assert compare.main(arguments(place, grid, "again")) == 0
    assert started == ["eval_glue"]
    printed = capsys.readouterr().out
    tables = [[c.strip() for c in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    cells = dict(zip(tables[0], tables[2], strict=True))
    record = json.loads((place / "again/compare/toy/wide_s0/eval/zero_shot_stsb.json").read_text())
    dev = record["splits"]["dev"]
    lift = dev["lift_adapted"]["untrained"]
    assert cells["stsb pearson"] == f"{100 * dev['metrics']['pearson']:.1f}"
    assert cells["stsb pearson_centred"] == f"{100 * dev['metrics']['pearson_centred']:.1f}"
    shown = [f"{100 * lift[key]:+.1f}" for key in ("value", "low", "high")]
    assert cells["stsb over untrained"] == f"{shown[0]} [{shown[1]}, {shown[2]}] {lift['verdict']}"
    assert cells["stsb over token_idf"].split()[0] == f"{100 * dev['lift_adapted']['token_idf']['value']:+.1f}"
    assert cells["stsb over best_floor"].endswith(f"({dev['lift_adapted']['best_floor']['floor']})")
    headlines = ("pearson", "pearson_centred", "pearson_adapted", "partial_lexical", "partial_lexical_adapted")
    assert [row[:4] for row in tables[5:10]] == [["wide", "stsb", "dev", m] for m in headlines]
    shown = [f"{100 * dev['beyond']['partial_lexical'][key]:.1f}" for key in ("value", "low", "high")]
    assert cells["stsb partial_lexical"] == tables[8][4] == f"{shown[0]} [{shown[1]}, {shown[2]}]"
    assert f"\n* wide stsb dev: {dev['verdict']}\n" in printed
    assert dict(zip(tables[3], tables[5], strict=True))["untrained"].startswith(
        f"{100 * dev['floors']['untrained']['pearson']:.1f} ("
    )
    assert "## Scores beside their floors" in printed
    assert (place / "again/compare/toy/report.md").read_text() == f"# toy\n\n{printed}"
    page = (place / "again/compare/toy/report.html").read_text()
    assert all(f">{cell}<" in page for cell in tables[2]) and page.count("<img") == 7  # a lone arm has no pair
    assert (run.path / "geometry.png").read_bytes() != before  # what is known beyond words has come

    monkeypatch.setattr(InProcess, "call", lambda *_: 0)
    with training.unrendered():
        assert compare.main(arguments(place, grid, "again")) == 0  # judged already
        assert started == ["eval_glue"]
        (run.path / "eval/zero_shot_stsb.json").write_text(json.dumps(record | {"version": 1}))
        assert compare.main(arguments(place, grid, "again")) == 0  # by older definitions
    assert started == ["eval_glue"] * 2
    (run.path / "eval/zero_shot_stsb.json").write_text(json.dumps(record))
    present = compare.check_tasks(compare.read_grid(grid), place / "glue")["stsb"]
    assert compare.is_evaluated(run, "stsb", present)
    monkeypatch.setattr(Pairs, "digest", lambda self: "other rows")
    assert compare.check_tasks(compare.read_grid(grid), place / "glue")["stsb"] != present
    assert not compare.is_evaluated(run, "stsb", "another")


def test_long_documents_of_a_grid(place, started, capsys, tmp_path):
    """Judged once; a table beside the floors, and a picture against the length."""
    shutil.copytree(place / "whole", place / "long")
    flags = 'long = {"tasks": ("needle", "halves"), "lengths": (32, 64), "most": 60}\n'
    grid = grid_file(tmp_path, '{"wide": {"concepts": 6}}', f"seeds = (0, 1)\n{flags}")
    with training.unrendered():
        assert compare.main(arguments(place, grid, "long")) == 0
    assert started == ["eval_long"] * 2
    printed = capsys.readouterr().out
    section = printed.partition("## Long documents")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    assert [row[:5] for row in rows[2:4]] == [["needle", "accuracy", n, "wide", "2"] for n in ("32", "64")]
    splits = [one["long"]["needle"]["64"] for one in results(place, "long")["runs"].values()]
    ours = [100 * split["metrics"]["accuracy"] for split in splits]
    cells = dict(zip(rows[0], rows[3], strict=True))
    assert cells["score"].split()[0] == f"{np.mean(ours):.1f}"
    assert cells["chance"] == f"{100 * splits[0]['floors']['chance']['accuracy']:.1f}"
    with training.unrendered():
        assert compare.main(arguments(place, grid, "long")) == 0
        assert started == ["eval_long"] * 2
        grid.write_text(grid.read_text().replace("(32, 64)", "(32,)"))
        assert compare.main(arguments(place, grid, "long")) == 0
    assert started == ["eval_long"] * 4


@pytest.mark.parametrize(
    "flags, said",
    [
        ("'controls'", "long = controls has no flags"),
        ("{'tasks': 'neddle'}", "did you mean needle?"),
        ("{'length': 512}", "did you mean lengths"),
        ("{'run': 'out/x'}", "no flags"),
    ],
)
def test_mistakes_in_the_flags_of_long_documents(flags, said, files, tmp_path):
    grid = grid_file(tmp_path, more=f"long = {flags}\n")
    with pytest.raises(UserError, match=re.escape(said)) as error:
        compare.main(arguments(files, grid, "mistakes"))
    assert "toy.py" in str(error.value)


def test_a_stopped_grid_continues_to_the_same_results(place, tmp_path):
    grid = grid_file(tmp_path, '{"wide": {"concepts": 6}}')
    out = RunFolder(place / "stopped" / "compare" / "toy" / "wide_s0")
    words = arguments(place, grid, "stopped")
    with training.Process(words, tmp_path / "log", main=compare.main) as process:
        process.wait_until(lambda: any("loss" in record for record in out.metrics()))
        process.signal(signal.SIGTERM)  # only compare.py itself: it passes the signal on
        assert process.wait(30).code == 143
    assert 5 <= out.pointer("latest") < 30  # the child has saved
    with patch("compare.Children", InProcess), training.unrendered():
        assert compare.main(arguments(place, grid, "stopped")) == 0
    assert numbers(results(place, "stopped")) == {"wide_s0": numbers(results(place, "whole"))["wide_s0"]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_child(number, tmp_path):
    old = {n: signal.getsignal(n) for n in STOPS}
    try:
        children = compare.Children()
        threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
        began = time.monotonic()
        assert children.run(["-c", "import time; time.sleep(30)"], stderr=subprocess.DEVNULL) == 128 + number
        assert time.monotonic() - began < 10
        assert children.run(["-c", "open('made', 'w')"], cwd=tmp_path) == 128 + number  # nothing new is started
        assert not (tmp_path / "made").exists()
    finally:
        for n, handler in old.items():
            signal.signal(n, handler)


@pytest.fixture
def two_gpus(files, monkeypatch, tmp_path):
    """A grid of two arms and two seeds as if there were two GPUs, with a script in the place of each run -> its exit
    code, from main; RUN is the script's first argument."""
    monkeypatch.setattr(compare.torch.cuda, "device_count", lambda: 2)
    old = {n: signal.getsignal(n) for n in STOPS}
    grid = grid_file(tmp_path, '{"a": {}, "b": {}}', "seeds = (0, 1)\n")
    grid.write_text(grid.read_text().replace('device = "cpu"', 'device = "auto"'))

    def start(script):
        monkeypatch.setattr(compare.Comparison, "do", lambda c, run, arm, seed, gpu: c.start(gpu, "-c", script, run))
        monkeypatch.chdir(tmp_path)
        return compare.main([*arguments(files, grid, "."), f"--out={tmp_path / 'out'}"])

    yield start
    for n, handler in old.items():
        signal.signal(n, handler)


TOGETHER = """
import os, sys, time
run = sys.argv[1]
open(run, "w").write(os.environ["CUDA_VISIBLE_DEVICES"])
ends = time.monotonic() + 20
while run.endswith("0") and not (os.path.exists("a_s0") and os.path.exists("b_s0")):
    assert time.monotonic() < ends
    time.sleep(0.01)
sys.exit(run == "b_s0")
"""


@pytest.mark.parametrize("given, gpus", [(None, {"0", "1"}), ("5,GPU-7", {"5", "GPU-7"})])
def test_a_run_on_each_gpu_at_a_time(given, gpus, two_gpus, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert two_gpus(TOGETHER) == 1
    assert {(tmp_path / run).read_text() for run in ("a_s0", "b_s0")} == gpus
    assert {(tmp_path / run).read_text() for run in ("a_s1", "b_s1")} <= gpus  # they went on after the failure
    assert "Failed: b_s0 (exit 1)." in capsys.readouterr().out
    found = json.loads((tmp_path / "out/compare/toy/results.json").read_text())
    assert found["failed"] == {"b_s0": {"code": 1, "reason": ""}}


def test_a_signal_reaches_the_runs_of_all_gpus(two_gpus, tmp_path):
    def strike():
        while not ((tmp_path / "a_s0").exists() and (tmp_path / "b_s0").exists()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=strike, daemon=True).start()
    script = "import sys, time\ntry:\n open(sys.argv[1], 'w'); time.sleep(30)\n"
    began = time.monotonic()
    assert two_gpus(script + "except KeyboardInterrupt: open(sys.argv[1], 'w').write('saved')") == 130
    assert {path.name: path.read_text() for path in tmp_path.glob("?_s?")} == {"a_s0": "saved", "b_s0": "saved"}
    assert time.monotonic() - began < 15


def test_runs_on_the_cpu_go_one_by_one(two_gpus, monkeypatch):
    assert compare.devices({"a": {"device": "auto"}, "b": {"device": "cpu"}}) == [""]
    monkeypatch.setattr(compare.torch.cuda, "device_count", lambda: 1)
    assert compare.devices({"a": {"device": "cuda"}}) == [""]


def test_one_grid_in_two_processes(files, tmp_path):
    grid = grid_file(tmp_path)
    folder = tmp_path / "out/compare/toy"
    with locked(folder, "wait"), pytest.raises(UserError, match="another process works in .*; wait for its end, or"):
        compare.main([*arguments(files, grid, "."), f"--out={tmp_path / 'out'}"])
    assert not folder.exists()  # nothing of it stays


def test_a_failed_arm_does_not_end_the_others(place, monkeypatch, tmp_path, capsys):
    """Out of memory, as the command says it or as the system does; a folder that is damaged; a report that fails."""

    class Failing(InProcess):
        def run(self, words, **options):
            if "--seed=3" in words:
                raise AssertionError("not reached: its folder is damaged")
            if "--seed=2" in words:
                Path(options["env"]["NANOCONCEPT_REASON"]).write_text("out of memory; take fewer rows")
            return {"--seed=0": 0, "--seed=1": -9, "--seed=2": 2}[words[-3]]

    monkeypatch.setattr(compare, "Children", Failing)
    write = grids.write

    def failing(*results):
        monkeypatch.setattr(grids, "write", write)
        raise ValueError("of pictures")

    monkeypatch.setattr(grids, "write", failing)
    grid = grid_file(tmp_path, arms='{"wide": {"concepts": 6}}', more="seeds = (1, 2, 3, 0)\n")
    shutil.copytree(place / "whole", tmp_path / "out")
    shutil.rmtree(tmp_path / "out/compare/toy/wide_s1")
    (tmp_path / "out/compare/toy/wide_s3").mkdir()
    (tmp_path / "out/compare/toy/wide_s3/latest").write_text("nothing")
    (tmp_path / "out/compare/toy/results.json").unlink()  # what is trained is looked at anew
    with training.unrendered():
        assert compare.main([*arguments(place, grid, "."), f"--out={tmp_path / 'out'}"]) == 1
    (printed, told), found = capsys.readouterr(), results(tmp_path, "out")
    assert "warning: the report so far failed (ValueError: of pictures); going on without" in told
    assert "Failed: wide_s1 (exit -9: killed by SIGKILL, as where memory is short), wide_s2 (exit 2: out of" in printed
    assert found["failed"]["wide_s2"] == {"code": 2, "reason": "out of memory; take fewer rows"}
    assert "names no checkpoint" in found["failed"]["wide_s3"]["reason"] and set(found["runs"]) == {"wide_s0"}


def test_a_killed_evaluation_does_not_end_the_others(place, monkeypatch, tmp_path, capsys):
    """No run is left, and the report says so."""
    shutil.copytree(place / "whole", tmp_path / "out")
    grid = grid_file(tmp_path, arms='{"wide": {"concepts": 6}}', more='seeds = (0, 1)\ntasks = "stsb"\n')
    monkeypatch.setattr(compare, "Children", InProcess)
    monkeypatch.setattr(InProcess, "call", lambda *_: -9)
    assert compare.main([*arguments(place, grid, "."), f"--out={tmp_path / 'out'}"]) == 1
    assert "wide_s1 (exit -9: killed by SIGKILL" in capsys.readouterr().out
    found = results(tmp_path, "out")
    assert found["failed"].keys() == {"wide_s0", "wide_s1"} and not found["runs"]


# ---- mistakes


MISTAKES = {  # arms, more -> the message, and its name
    ('{"a": {}, "b": {"hiden": 32}}', ""): (":2: arm b: --hiden: unknown key hiden; did you mean hidden?", "unknown"),
    ('{"a": {}}', "seedz = (0, 1)\n"): (":2: arm a: --seedz: unknown key seedz", "unknown key of the grid"),
    ('{"a": {}, "b": {"heads": 7}}', ""): (":2: arm b: hidden = 32 does not divide", "impossible combination"),
    ('{"a": {"lr": "fast"}}', ""): (":2: arm a: --lr: lr must be", "wrong type"),
    ('{"a": {"lengths": (16, 128)}}', ""): ("reach past max_length", "impossible rows"),
    ('{"a": {"seed": 3}}', ""): ("seed is set by compare.py; write seeds = (0, 1)", "the seed"),
    ('{"a": {"dataset": "none"}}', ""): ("holds no prepared data; run python data/text/prepare.py", "no data"),
    ('{"a": {"vocab_size": 77}}', ""): ("vocab_size = 77, but", "other vocabulary"),
    ('{"a": {3: 4}}', ""): (":2: arm a: --3: unknown key 3", "a number as a key"),
    ('{"a/b": {}}', ""): ("arm 'a/b' cannot name a folder", "a path as a name"),
    ('{"a": 3}', ""): ("arms is not a dict of dicts", "an arm that is none"),
    ("{}", ""): ("arms is not a dict of dicts", "no arms"),
    ('{"a": {}}', "seeds = (0, 0)\n"): (":3: seeds = (0, 0) are not different", "a seed twice"),
    ('{"a": {}}', 'tasks = "stbs"\n'): (":3: --tasks=stbs is no task; did you mean stsb?", "unknown task"),
    ('{"a": {}}', 'tasks = "rte"\n'): ("rte has no zero-shot score", "a task for heads"),
    ('{"a": {}}', 'tasks = "qqp"\n'): ("qqp has no files", "no task files"),
}


@pytest.mark.parametrize("arms, more", MISTAKES, ids=[name for _, name in MISTAKES.values()])
def test_mistakes_come_before_anything_runs(arms, more, place, started, tmp_path):
    grid = grid_file(tmp_path, arms, more)
    with pytest.raises(UserError) as caught:
        compare.main([*arguments(place, grid, "."), f"--out={tmp_path / 'out'}"])
    assert MISTAKES[arms, more][0] in str(caught.value)
    assert not (tmp_path / "out").exists() and started == []


def test_a_mistake_is_one_line_and_exit_2(place, tmp_path):
    words = arguments(place, grid_file(tmp_path, '{"a": {"hiden": 32}}'), "never")
    done = training.Process(words, tmp_path / "log", main=compare.main).wait()
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and "toy.py:2" in done.err


@pytest.mark.parametrize("flags", [[], ["--registry", str(GRIDS[0])], ["config/grids/nope.py"], ["--regstry"]])
def test_mistakes_of_the_command_line(flags):
    with pytest.raises(UserError, match="give one grid|takes no grid|nope.py|did you mean registry"):
        compare.main(flags)


def test_a_grid_on_a_grid(place, tmp_path):
    top = tmp_path / "top.py"
    below = Path(os.path.relpath(grid_file(tmp_path, '{"a": {"max_minutes": 3}, "b": {}}'), ROOT))
    top.write_text(f'base = "{below}"\nseeds = (3, 4)\nmax_tokens = 1e6\ntag = "x y"\n')
    grid = compare.read_grid(top)
    assert Path(grid.base).resolve() == ROOT / "config/quickstart.py" and grid.name == "top" and grid.seeds == (3, 4)
    assert grid.runs()[:2] == [("a_s3", "a", 3), ("b_s3", "b", 3)]
    assert grid.arms["a"]["max_minutes"] == 3 and not {"max_tokens", "max_steps"} & grid.arms["a"].keys()
    assert grid.arms["b"]["max_tokens"] == 1e6 and not {"max_minutes", "max_steps"} & grid.arms["b"].keys()
    resolved = compare.check_arms(grid, str(place / "data"))
    assert resolved["a"]["tag"] == "x y" and resolved["a"]["max_minutes"] == 3 and resolved["b"]["max_tokens"] == 1e6


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_grid_loads(path, monkeypatch):
    sizes = {"minipile": 50368}  # no data needed
    monkeypatch.setattr(compare, "load_meta", lambda folder: {"vocab_size": sizes.get(folder.name, 0)})
    monkeypatch.setattr(settings, "cost", lambda *_: (1, 1.0))  # what takes long, as do warnings, which nobody sees
    monkeypatch.setattr(ModelConfig, "unused", lambda self: set())
    grid = compare.read_grid(path)
    resolved = compare.check_arms(grid, "")
    assert resolved.keys() == grid.arms.keys() and len(grid.runs()) == len(grid.arms) * len(grid.seeds)
    for arm, keys in grid.arms.items():
        assert {key: resolved[arm][key] for key in keys} == json.loads(json.dumps(keys))
        assert sum(bool(resolved[arm][key]) for key in registry.HORIZONS) == 1
    assert all(name in TASKS for name in grid.tasks)


# ---- the registry


def test_the_registry(place, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(place / "whole", out)
    runs = out / "compare" / "toy"
    record = evaluation(runs / "wide_s0")
    (runs / "wide_s0" / "eval").mkdir(exist_ok=True)
    (runs / "wide_s0" / "eval" / "zero_shot_stsb.json").write_text(json.dumps(record))
    (runs / "narrow_s0" / "eval").mkdir(exist_ok=True)
    (runs / "narrow_s0" / "eval" / "zero_shot_stsb.json").write_text('{"splits": {"dev"')
    (runs / "wide_s0" / "NOTE.md").write_text("# A note\n\nSix concepts | are\nenough.\n\nMore of it.\n")
    (runs / "narrow_s1" / "config.json").write_text('{"run_id": "x"')
    shutil.rmtree(runs / "narrow_s0" / "ckpt_30")  # deleted to save room: still a run
    (out / "lost").mkdir()
    (out / "lost" / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
    assert compare.main(["--registry", f"--out={out}"]) == 0
    printed = capsys.readouterr()
    warned = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 3 and all(any(f"{name}" in line for line in warned) for name in ("narrow_s1", "lost", "eval"))
    assert "Six concepts \\| are enough." in printed.out and "More of it" not in printed.out

    with open(out / "registry_runs.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == sorted(rows, key=lambda run: (rows[run]["date"], run)) and len(rows) == 3
    row = rows[str(runs / "wide_s0")]
    config, last = RunFolder(runs / "wide_s0").config(), RunFolder(runs / "wide_s0").metrics()[-1]
    assert row["run_id"] == config["run_id"] and row["conclusion"] == "Six concepts | are enough."
    flops = last["tokens"] * config["train_flops_per_token"] if "tokens" in last else None
    assert flops is None or float(row["TFLOP"]) == pytest.approx(flops / 1e12)
    assert row["steps"] == "30/30" and row["horizon"] == "max_steps=30" and row["data"] == "toy 16"
    assert "H32 L2 C6" in row["architecture"] and row["commit"] == (config["commit"] or "")
    assert float(row["val_loss"]) == last["val_loss"] and float(row["tokens_per_s"]) > 0
    assert float(row["rank_slot_centred"]) == last["rank_slot_centred"] and row["wandb"] == ""
    assert rows[str(runs / "narrow_s0")]["steps"] == "30/?"

    with open(out / "registry_evals.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == ["pearson", "pearson_centred", "spearman"]
    assert (rows[0]["score"], rows[0]["untrained"], rows[0]["majority"]) == ("0.5", "0.4", "")
    assert rows[1]["over best_floor"] == "-0.100 [-0.200, +0.000] at floor (token_idf)"
    assert printed.out.count("| pearson") == 2 and "| spearman" not in printed.out

    page = (out / "registry.html").read_text()
    assert page.count("<table") == 2 and page.count("<tr>") == 2 + 3 + 2 and report.SORTING in page
    assert ">Six concepts | are enough.<" in page and not re.search("https?:|<link|<script src", page)


def test_the_registry_after_a_sweep_and_beside_what_is_no_evaluation(place, tmp_path, capsys):
    run = tmp_path / "wide_s0"
    shutil.copytree(place / "whole/compare/toy/wide_s0", run)
    (run / "eval").mkdir(exist_ok=True)
    record = evaluation(run)

    def write(name, content):
        (run / "eval" / name).write_text(content if isinstance(content, str) else json.dumps(content))

    write("zero_shot_stsb.json", record)  # first: no columns for the options
    for k in (1, 2):
        write(f"zero_shot_stsb_iterations{k}.json", record | {"protocol": {"head": "cosine", "iterations": k}})
    write("zero_shot_stsb_concepts4.json", record | {"protocol": {"head": "cosine", "concepts": 4}})
    dev = record["splits"]["dev"]
    odd = [[], {}, {"a": 1}, "{", "", record | {"task": "other"}, record | {"task": []}, record | {"splits": [1]}]
    odd += [record | {"protocol": None}, record | {"protocol": {"head": {"a": 1}}}]
    odd += [record | {"splits": {"dev": dev | {"metrics": {"pearson": "high"}}}}]
    odd += [record | {"splits": {"dev": dev | {"floors": {"untrained": {"pearson": [1]}}}}}]
    odd += [record | {"splits": {"dev": dev | {"lift": {"untrained": {"value": 10**400, "low": 0, "high": 1}}}}}]
    for i, content in enumerate(odd):
        write(f"odd{i}.json", content)
    assert compare.main(["--registry", f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr()
    warned = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == len(odd) and all(f"odd{i}.json" in "".join(warned) for i in range(len(odd)))
    with open(tmp_path / "registry_evals.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    options = [(row["concepts"], row["iterations"]) for row in rows if row["metric"] == "pearson"]
    assert options == [("", ""), ("4", ""), ("", "1"), ("", "2")] and len(rows) == 4 * 3
    assert "| iterations |" in printed.out and "| concepts |" in printed.out


def evaluation(folder):
    def lift(value, **more):
        return {**more, "value": value, "low": value - 0.1, "high": value + 0.1, "verdict": "at floor"}

    lifts = {"best_floor": lift(-0.1, floor="token_idf"), "untrained": lift(0.1)}
    split = {
        "metrics": {"pearson": 0.5, "pearson_centred": 0.6, "spearman": 0.4},
        "floors": {
            "token_idf": {"pearson": 0.6, "pearson_centred": 0.7, "spearman": 0.5},
            "untrained": {"pearson": 0.4, "pearson_centred": 0.5, "spearman": 0.3},
        },
        "lift": lifts,
        "lift_centred": lifts,
    }
    return {
        "task": "stsb",
        "mode": "zero_shot",
        "run_id": RunFolder(folder).config()["run_id"],
        "checkpoint": "ckpt_60",
        "splits": {"dev": split},
        "protocol": {"head": "cosine"},
    }


def test_an_empty_registry_and_one_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    assert compare.main(["--registry", f"--out={tmp_path}"]) == 0
    assert capsys.readouterr().out == "## Training runs\n\nnone\n\n## Evaluations, x100\n\nnone\n"
    with pytest.raises(UserError, match="no folder"):
        compare.main(["--registry", f"--out={tmp_path / 'nothing'}"])
    monkeypatch.setattr(registry, "write_csv", lambda *_: open("/nowhere/at/all"))
    assert compare.main(["--registry", f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("## Training runs") and "warning: the registry's page or a CSV file" in printed.err


def test_conclusions(tmp_path):
    note = tmp_path / "NOTE.md"
    assert registry.conclusion(note) is None
    for text, first in (("One.\nTwo.\n\nThree.", "One. Two."), ("# Title\nOne.", "One."), ("\n# Only a title\n", None)):
        note.write_text(text)
        assert registry.conclusion(note) == first
