"""The README's commands exist and run, shortened; its code does what it says; every config loads."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import compare
import sample
import train
from decoders import DECODERS
from encoders import ENCODERS
from heads import HEADS
from lab.configurator import read_layers
from objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "config").rglob("*.py"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line]


def python(*words, folder=ROOT):
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=folder, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_the_two_commands():
    first, second = (line for line in COMMANDS if line.startswith("python3 -m venv"))
    assert first.endswith("pip install -r requirements.txt && python train.py config/quickstart.py")
    assert second.endswith("pip install -r requirements-dev.txt && python -m pytest")
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text()
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text()


def test_the_table_of_parts_says_what_their_classes_say():
    registries = {"objective": OBJECTIVES, "encoder": ENCODERS, "decoder": DECODERS}
    for name, line in re.findall(r"^\| `(\w+)` \| (.*) \|$", README.split("| head |")[1].split("\n\n")[0], re.M):
        assert line == HEADS[name].__doc__
    rows = re.findall(r"^\| `(\w+)=(\w+)` \| (.*) \|$", README, re.M)
    assert {key for key, _, _ in rows} == registries.keys()
    for key, name, line in rows:
        assert line == registries[key][name].__doc__.strip().splitlines()[0]


HELP = """
import contextlib, io, json, runpy, sys
found = {}
for path in sys.argv[1:]:
    sys.argv, out = [path, "--help"], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(path, run_name="__main__")
    found[path] = out.getvalue()
print(json.dumps(found))
"""


def test_every_command_names_files_and_keys_that_exist():
    scripts = {}
    for line in COMMANDS:
        for words in (shlex.split(part, comments=True) for part in line.split("&&")):
            path = next((word for word in words if word.endswith(".py")), None)
            if path is None:
                continue
            scripts.setdefault(path, set()).update(re.findall(r" --(\w+)", line))
            assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
    assert {"train.py", "sample.py", "data/text/prepare.py", "data/hub/prepare.py"} <= scripts.keys()
    helps = json.loads(python("-c", HELP, *scripts).stdout)
    for path, keys in scripts.items():
        assert all(f"--{key}=" in helps[path] for key in keys - {"nproc_per_node"}), path


def test_the_file_table_is_the_tree():
    named = set(re.findall(r"`(\w+\.py)`", README))
    there = [*ROOT.glob("*.py"), *(ROOT / "lab").glob("*.py")]
    assert {path.name for path in there} - {"__init__.py"} == named


def test_files_import_files_above_them():
    """In the table of the mathematics and in that of the lab; a row's files may import each other."""
    for folder, prefix in ((ROOT, ""), (ROOT / "lab", "lab.")):
        rows = [re.findall(r"`(\w+)\.py`", row.split("|")[1]) for row in README.splitlines() if row.startswith("| `")]
        above = set()
        for row in rows:
            row = [name for name in row if (folder / f"{name}.py").is_file()]
            above |= set(row)
            for name in row:
                text = (folder / f"{name}.py").read_text()
                found = re.findall(
                    rf"^from {re.escape(prefix)}(\w+) import|^import {re.escape(prefix)}(\w+)", text, re.M
                )
                found += [
                    (x.strip(), "")
                    for names in re.findall(r"^from lab import (.*)", text, re.M)
                    for x in names.split(",")
                ]
                own = {a or b for a, b in found if (folder / f"{a or b}.py").is_file()}
                assert own <= above, (name, own - above)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "config")))
def test_every_config_loads(path):
    """As train.py reads it, or compare.py each arm of a grid; it begins with what it is for."""
    assert path.read_text().startswith('"""\n')
    names = {name for layer in read_layers(path, ROOT) for name in layer}
    if "arms" not in names:
        assert train.read_settings([str(path)]).preset == path.stem
        return
    grid = compare.read_grid(path)
    for arm in grid.arms:
        assert train.read_settings(grid.arguments(arm, "")).preset == Path(grid.base).stem


def test_the_quickstart_shortened(tmp_path, capsys):
    python("data/pydocs/prepare.py", "--max_mb=1", f"--data_dir={tmp_path}")
    out = tmp_path / "run"
    assert (
        train.main([str(ROOT / "config/quickstart.py"), "--max_steps=20", f"--data_dir={tmp_path}", f"--out_dir={out}"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "unigram floor" in printed and printed.count("predicted:") == 3
    assert sample.main([f"--run={out}", "--mode=reconstruct", "--text=Return the list."]) == 0
    assert re.match(r"text: +Return the list\.\npredicted: ", capsys.readouterr().out)
