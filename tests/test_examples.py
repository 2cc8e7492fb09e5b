"""The scripts of examples/ run in another folder, and say what is so."""

import csv
import importlib.util
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train
from lab.evaluation.search import tfidf_ranks
from lab.runs import load_run
from tests.corpus import sentence
from tests.training import BRIEF, run

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SMALL = "--max_steps=4 --warmup=0 --eval_interval=0 --hidden=32 --heads=2 --intermediate=32 --layers=1 --concepts=4"
SMALL += " --lengths=16 --batch_size=8 --eval_tokens=256 --final_report=losses --compile=False --device=cpu"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("examples") / "run"
    run(data, out, *BRIEF, "--max_steps=2")
    return out


def example(name, folder, *words) -> str:
    words = [sys.executable, EXAMPLES / f"{name}.py", *map(str, words)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_they_are_short_and_there_are_three():
    files = sorted(EXAMPLES.glob("*.py"))
    assert [path.stem for path in files] == ["compare_objectives", "csv_duplicates", "search_notes"]
    assert all(len(path.read_text().splitlines()) <= 60 for path in files)


def test_search_notes(trained, tmp_path):
    chance = random.Random(1)
    texts = [sentence(chance) for _ in range(40)]
    (tmp_path / "notes.txt").write_text("\n\n".join(texts))
    head, *lines = example("search_notes", tmp_path, trained, "notes.txt", texts[5]).splitlines()
    assert head == texts[5] and len(lines) == 10
    places = tfidf_ranks(texts, [texts[5]])[0]
    for i, line in enumerate(lines):
        cosine, place, text = re.match(r"  (\S+)  by words: +(\S+)  (.*)", line).groups()
        assert place == str(places[[t[:90] for t in texts].index(text)] or "-")
        assert i or (cosine, text) == ("1.00", texts[5][:90])


def test_csv_duplicates(trained, tmp_path):
    chance = random.Random(2)
    texts = [sentence(chance) for _ in range(30)]
    texts[17] = texts[4]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "text, all"), *enumerate(texts)])
    said = example("csv_duplicates", tmp_path, trained, "rows.csv", "text, all", 0.9999)
    with open(tmp_path / "rows.duplicates.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    x = load_run(trained, device="cpu").embed(texts).double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = [next((str(j + 1) for j in range(i) if x[i] @ x[j] >= 0.9999), "") for i in range(30)]
    assert [row["duplicate_of"] for row in rows] == expected and expected[17] == "5" and rows[17]["cosine"] == "1.000"
    assert [row["text, all"] for row in rows] == texts
    assert said.endswith(f"{30 - expected.count('')} of 30 rows are duplicates\n")


def test_compare_objectives(tmp_path, monkeypatch, capsys):
    """In this process, but for the preparation."""
    chance = random.Random(0)
    documents = (" ".join(sentence(chance) for _ in range(6)) for _ in range(800))
    (tmp_path / "notes.txt").write_text("\n\n".join(documents))
    spec = importlib.util.spec_from_file_location("compare_objectives", EXAMPLES / "compare_objectives.py")
    spec.loader.exec_module(script := importlib.util.module_from_spec(spec))
    by_process = script.python

    def python(path, *words):
        return train.main([*map(str, words)]) if path.stem == "train" else by_process(path, *words)

    monkeypatch.setattr(script, "python", python)
    monkeypatch.chdir(tmp_path)
    script.main("notes.txt", "tsdae", "mlm", *SMALL.split())
    said = capsys.readouterr().out.splitlines()
    shares = [
        re.match(r"(tsdae|mlm): finds ([\d.]+)% of (\d+) bodies by their first sentence$", line) for line in said[-3:-1]
    ]
    number = r"([+-][\d.]+)%"
    last = re.match(rf"difference {number} \[{number}, {number}\]; better: (.*)$", said[-1])
    value, low, high = map(float, last.groups()[:3])
    assert [match[1] for match in shares] == ["tsdae", "mlm"] and int(shares[0][3]) > 50
    assert value == pytest.approx(float(shares[0][2]) - float(shares[1][2]), abs=0.11) and low <= value <= high
    assert last[4] == ("tsdae" if low > 0 else "mlm" if high < 0 else "neither, as far as this tells")
