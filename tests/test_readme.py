"""The README's commands exist and run, shortened; its code does what it says; every config loads."""

import ast
import importlib.util
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
from lab.configurator import read_layers

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "config").rglob("*.py"))
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
spec.loader.exec_module(generate := importlib.util.module_from_spec(spec))


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
            scripts.setdefault(path, set()).update(re.findall(r" --(\w+)", line.partition(path)[2]))
            assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
    assert {"train.py", "sample.py", "data/text/prepare.py", "data/glue/prepare.py"} <= scripts.keys()
    helps = json.loads(python("-c", HELP, *scripts).stdout)
    for path, keys in scripts.items():
        assert all(f"--{key}=" in helps[path] for key in keys - {"nproc_per_node"}), path


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 150


def test_options_are_what_the_code_says():
    """docs/OPTIONS.md; config/README.md takes half a minute to count: `python docs/generate.py --check`."""
    assert (ROOT / "docs/OPTIONS.md").read_text() == generate.options(), "run python docs/generate.py"
    presets = (ROOT / "config/README.md").read_text()
    named = {path.stem for path in CONFIGS if path.parent.name == "config"}
    assert set(re.findall(r"^\| `(\w+)` \|", presets, re.M)) == named, "run python docs/generate.py"


MATHEMATICS = "losses noise problem objectives layers encoders decoders heads model geometry".split()
LAB = "configurator command files report distributed sources reference data training runs evaluation analysis".split()
LAB.append("grids")


def imports(path):
    """Modules of this project that a file imports, late too: "model", "lab.data.corpus"."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if (ROOT / f"{name.replace('.', '/')}.py").is_file())


def test_files_import_files_above_them():
    """Arrows run down only: commands -> lab -> mathematics, in the order above; in a room of the lab files may import
    each other."""
    for i, name in enumerate(MATHEMATICS):
        assert set(imports(ROOT / f"{name}.py")) <= set(MATHEMATICS) - set(MATHEMATICS[i:]) | {name}, name
    assert {path.stem for path in (ROOT / "lab").iterdir()} - {"__init__", "__pycache__"} == set(LAB)
    for path in (ROOT / "lab").rglob("*.py"):
        room = path.relative_to(ROOT / "lab").parts[0].removesuffix(".py")
        for name in imports(path):
            kind, _, rest = name.partition(".")
            above = kind in MATHEMATICS or (kind == "lab" and LAB.index(rest.split(".")[0]) <= LAB.index(room))
            assert above or room == "__init__", (path, name)


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
