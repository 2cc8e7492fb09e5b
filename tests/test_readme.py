"""Every command and every piece of code of the README runs, the long ones shortened by flags; every config loads."""

import ast
import importlib.util
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import train
from lab.configurator import read_layers
from model import ModelConfig
from tests.corpus import make_corpus, sentence
from tests.test_eval_glue import write_tasks

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "config").rglob("*.py"))
spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
spec.loader.exec_module(generate := importlib.util.module_from_spec(spec))


RECIPES = {  # title -> text
    part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in (ROOT / "docs/RECIPES.md").read_text().split("\n## ")[1:]
}


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


COMMANDS = [line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines() if line]
COMMANDS += re.findall(r"`(python [^`]*)`", README)  # within a sentence


def test_the_two_commands():
    first, second = (line for line in COMMANDS if line.startswith("python3 -m venv"))
    assert first.endswith("pip install -r requirements.txt && python train.py config/quickstart.py")
    assert second.endswith("pip install -r requirements-dev.txt && python -m pytest")
    assert "torch==2.13.0" in (ROOT / "requirements.txt").read_text()
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text()


SMALL = "--max_steps=5 --warmup=0 --eval_interval=0 --hidden=32 --intermediate=32 --layers=1 --eval_tokens=256"
SHORTER = {  # words of a command -> the flags that make it short; train.py has SMALL besides
    "nano.py": "--steps=3 --file=notes.txt --hidden=32",
    "data/glue/prepare.py": "--from=tasks",
    "eval_glue.py": "--seeds=1 --epochs=1",
    "eval_long.py": "--most=60 --lengths=32",
    "bench.py": "--batch=2 --repeats=1 --dense=False",
    "analyze.py": "--quick",
    "torchrun": "--dataset=pydocs --vocab_size=0 --lengths=16 --batch_size=8 --final_report=losses --compile=False",
    "--objective": "--out_dir=out/own --batch_size=8 --final_report=losses",
}
# All in one process, since importing torch takes longer than most of them; the runs of a grid too. Fewer seeds,
# resamples and pairs.
RUN = """
import contextlib, importlib, json, pathlib, subprocess, sys
from unittest.mock import patch

def run(words):
    print("$", *words, flush=True)
    if words[0].startswith("data/"):  # whose processes import it by its path
        code = subprocess.run([sys.executable, *words]).returncode
    else:
        code = importlib.import_module(pathlib.Path(words[0]).stem).main(words[1:])
    assert not code, words
    return 0

def of_a_grid(self, words, **options):
    with patch("train.cost", return_value=(1, 1.0)):
        return run([*map(str, words)])

undrawn = patch("lab.report.panels", side_effect=RuntimeError("pictures take longer than all the rest"))
patches = [patch("compare.Children.run", of_a_grid), patch("bench.in_fresh_process", return_value=1), undrawn]
patches += [patch("lab.distributed.on_stop")]  # for a grid's runs are of a thread
patches += [patch(f"lab.evaluation.{name}.UNTRAINED_SEEDS", 1) for name in ("floors", "order", "retrieval")]
patches += [patch("lab.evaluation.scores.bootstrap.__defaults__", (0, 100))]
patches += [patch("lab.evaluation.order.make_pairs.__defaults__", (200, 0))]
with contextlib.ExitStack() as stack:
    for one in patches:
        stack.enter_context(one)
    for words in json.loads(sys.argv[1]):
        run(words) if isinstance(words, list) else exec(words)
"""


def shortened(command):
    """The words of a README command, without those that make the environment, and with the flags that shorten it."""
    words = shlex.split(command.rpartition("&& ")[2])
    words = words[words.index("python") + 1 :] if "python" in words else words
    words += [flag for name, flags in SHORTER.items() if name in command for flag in flags.split()]
    return words + (SMALL.split() if "train.py" in command else [])


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A copy of the repository with both classes of "Add your own" appended, and texts and task files beside it ->
    (folder, {base class: name})."""
    folder, names, chance = tmp_path_factory.mktemp("fork"), {}, random.Random(0)
    for pattern in ("README.md", "*.py", "lab/**/*.py", "config/**/*.py", "data/*/prepare.py"):
        for path in ROOT.glob(pattern):
            (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to(ROOT))
    for code in blocks("python")[1:]:
        name, base = re.search(r"^class (\w+)\((\w+)\):", code, re.M).groups()
        assert len(code.strip().splitlines()) <= 20
        names[base] = name.lower()
        with open(folder / f"{base.lower()}s.py", "a") as file:
            file.write("\n\n" + code)
    make_corpus(folder / "data/pydocs")  # which train.py would make of docstrings: tests/test_prepare.py does
    documents = (" ".join(sentence(chance) for _ in range(10)) for _ in range(900))
    (folder / "notes.txt").write_text("\n\n".join(documents))
    write_tasks(folder / "tasks")
    return folder, names


def test_every_command_runs(fork):
    folder, names = fork
    assert names.keys() == {"Encoder", "Objective"}
    here = [command for command in COMMANDS if not command.endswith("pytest") and "torchrun" not in command]
    script = [*map(shortened, here)]
    run = [text for text in RECIPES.values() if text.startswith("Run by the tests.\n")]
    for line in (line for text in run for block in blocks("bash", text) for line in block.splitlines()):
        script.append(shortened(line) if line.startswith("python") else f"subprocess.run({line.split()}, check=True)")
    if importlib.util.find_spec("tensorboard"):
        script += blocks("python", RECIPES["TensorBoard"])
    script += [blocks("python")[0], "print('vectors', *vectors.shape)"]
    words = [sys.executable, "-c", RUN, json.dumps(script)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    printed = dict(part.split("\n", 1) for part in done.stdout.split("$ ")[1:])
    first = next(text for command, text in printed.items() if command.startswith("train.py config/quickstart.py"))
    assert "unigram floor" in first and first.count("predicted:") == 3
    told = next(text for command, text in printed.items() if command.startswith("sample.py"))
    assert re.match(r"text: +a sentence to be predicted again\.\npredicted: ", told, re.I)
    assert done.stdout.endswith("vectors 2 32\n") and len(run) == 4
    assert not importlib.util.find_spec("tensorboard") or any((folder / "out/notes/tensorboard").iterdir())
    config = json.loads((folder / "out/own/config.json").read_text())
    assert config["encoder"] == names["Encoder"] and names["Objective"] in config["objective"]


def test_the_launchers(fork):
    """Two ranks for four; srun's line, which needs Slurm, ends in the same words."""
    folder, _ = fork
    local, slurm = (command for command in COMMANDS if "torchrun" in command)
    words = shortened(local.replace("=4", "=2"))
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *words[1:]], cwd=folder, check=True, timeout=110)
    assert json.loads((folder / "out/tsdae_l6/config.json").read_text())["ranks"] == 2
    assert slurm.split()[-2:] == local.split()[-2:]
    assert all(re.match(r"(Not run|Run) by the tests\b", text) for text in RECIPES.values())
    for title in ("Several GPUs", "Slurm", "Two nodes"):
        assert blocks("bash", RECIPES[title])[0].rstrip('"\n').endswith(" ".join(local.split()[-2:]))


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 150


def test_options_are_what_the_code_says():
    """docs/OPTIONS.md; config/README.md takes half a minute to count: `python docs/generate.py --check`."""
    assert (ROOT / "docs/OPTIONS.md").read_text() == generate.options(), "run python docs/generate.py"
    presets = (ROOT / "config/README.md").read_text()
    named = {path.stem for path in CONFIGS if path.parent.name == "config"}
    assert set(re.findall(r"^\| `(\w+)` \|", presets, re.M)) == named, "run python docs/generate.py"


MATHEMATICS = "losses noise problem objectives layers encoders decoders heads backbone model geometry".split()
LAB = "configurator command files report distributed sources reference data training runs evaluation".split()
LAB += ["analysis", "grids", "export"]


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
def test_every_config_loads(path, monkeypatch):
    """As train.py reads it (of grids tests/test_compare.py reads each arm); it begins with what it is for."""
    monkeypatch.setattr(ModelConfig, "unused", lambda self: set())  # which takes long, for warnings
    assert path.read_text().startswith('"""\n')
    if "arms" not in {name for layer in read_layers(path, ROOT) for name in layer}:
        assert train.read_settings([str(path)]).preset == path.stem
        assert re.search(generate.EXPECTED, ast.get_docstring(ast.parse(path.read_text())), re.S)
