"""The README's "Add your own": its encoder and its objective, appended as it says, train and are found by name."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import make_corpus

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--vocab_size=0 --max_steps=5 --warmup=0 --eval_interval=0 --eval_tokens=256 --hidden=32 --layers=1"
SMALL += " --batch_size=8 --final_report=losses --device=cpu --dtype=float32 --dataset=tiny"


def snippets():
    """The first two blocks of Python below the heading: code of a subclass of Encoder, and of Objective."""
    section = (ROOT / "README.md").read_text().partition("\n## Add your own\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)[:2]


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A copy of the repository with both appended, and a small corpus: (folder, {base class: name})."""
    folder, names = tmp_path_factory.mktemp("fork"), {}
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for name in ("lab", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for code in snippets():
        name, base = re.search(r"^class (\w+)\((\w+)\):", code, re.M).groups()
        names[base] = name.lower()
        with open(folder / f"{base.lower()}s.py", "a") as file:
            file.write("\n\n" + code)
    make_corpus(folder / "data" / "tiny", documents=200)
    return folder, names


def python(folder, *words):
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_they_are_short_and_named_in_help(fork):
    folder, names = fork
    assert names.keys() == {"Encoder", "Objective"}
    assert all(len(code.strip().splitlines()) <= 20 for code in snippets())
    text = python(folder, "train.py", "--help")
    assert all(re.search(rf"\b{name}\b", text) for name in names.values())


TRAIN = """
import json, sys, train
from unittest.mock import patch
with patch("lab.report.curves"), patch("lab.report.geometry_curves"):  # which take longer than all the rest
    for words in json.loads(sys.argv[1]):
        train.main(words)
"""


@pytest.fixture(scope="module")
def out(fork):
    """The folder of both runs, each with its class by name."""
    folder, names = fork
    flags = [[f"--{base.lower()}={name}", f"--out_dir=out/{base}"] for base, name in names.items()]
    text = python(folder, "-c", TRAIN, json.dumps([["config/quickstart.py", *own, *SMALL.split()] for own in flags]))
    assert text.count("unigram floor") == 2
    return folder / "out"


@pytest.mark.parametrize("base", ["Encoder", "Objective"])
def test_they_train(out, base):
    out = out / base
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    before, after = (record["val_loss"] for record in records if "val_loss" in record)
    assert records[-1]["step"] == 5 and after < before
    assert json.loads((out / "config.json").read_text())["train_flops_per_token"] > 0
