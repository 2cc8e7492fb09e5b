"""What a grid's runs say together: planted answers, whose better arm must be found, and the page that holds it all."""

import json
import re
from contextlib import contextmanager

import numpy as np
import pytest

from lab import report
from lab.evaluation.metrics import pearson
from lab.grids import summary as grids
from lab.report import HEADLINE_ADAPTED
from lab.training.run_folder import RunFolder
from tests.browser import assert_fits

NOISE = {"first": 0.5, "same": 0.5, "good": 0.1, "bad": 3.0}  # an arm's answers: the labels and so much noise


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(folder, results of a grid of four arms and two seeds that were judged on stsb)"""
    folder, chance = tmp_path_factory.mktemp("grid"), np.random.default_rng(0)
    labels, runs = chance.random(300), {}
    for arm, noise in NOISE.items():
        for seed in (0, 1):
            out = RunFolder(folder / f"{arm}_s{seed}")
            (out.path / "eval").mkdir(parents=True)
            for step in (0, 10, 20):
                if step:
                    out.log(step=step, loss=3.0, flops=step * 1e9, seconds=step / 2)
                out.log(step=step + 5 * (step == 10), val_loss=9 - step / 10 + seed, rank_slot_centred=2.0)
            answers = labels + noise * chance.normal(size=(1, 300))
            arrays = {"dev/labels": labels} | {f"dev/{kind}": answers for kind in ("cosines", "centred", "adapted")}
            np.savez(grids.record_path(out.path, "stsb").with_suffix(".npz"), **arrays)
            value = pearson(answers[0], labels)
            lift = {"best_floor": {"floor": "char_tfidf"}, "untrained": {}, "token_idf": {}}
            lift = {name: {**one, "value": value - 0.5, "low": 0.0, "high": 1.0} for name, one in lift.items()}
            metrics = {"pearson": value, "pearson_adapted": value, HEADLINE_ADAPTED: value / 2}
            split = {"metrics": metrics, "lift": lift, "lift_adapted": lift, "lift_beyond_adapted": lift}
            split |= {"floors": {"char_tfidf": {"pearson": 0.5}}, "beyond": {}}
            record = {"task": "stsb", "splits": {"dev": split}}
            grids.record_path(out.path, "stsb").write_text(json.dumps(record))
            runs[out.path.name] = {
                "arm": arm,
                "seed": seed,
                "folder": str(out.path),
                "tasks": {"stsb": record["splits"]},
            }
            runs[out.path.name] |= {"commit": "c", "numbers": {"val_loss": 7.0, "flops": 2e10, "seconds": 10.0}}
    results = {"grid": "toy", "base": "<b>|base", "seeds": (0, 1), "tasks": ["stsb"], "runs": runs, "failed": {}}
    results["arms"] = {a: grids.summary([run for run in runs.values() if run["arm"] == a]) for a in NOISE}
    return folder, results


@pytest.fixture
def controls(monkeypatch):
    chance = np.random.default_rng(1)
    known = {name: chance.random(300) for name in ("char_tfidf", "word_tfidf", "jaccard", "length")}
    monkeypatch.setattr(grids, "lexical_controls", lambda *_: known)


RESOLVED = {
    arm: dict.fromkeys([f.name for f in grids.fields(grids.ObjectiveConfig)] + ["lengths", "dataset"]) for arm in NOISE
}


def test_the_better_arm_is_found(planted, controls):
    rows = grids.paired_rows(planted[1], None)
    assert [row["metric"] for row in rows if row["arm"] == "good"] == ["pearson", "pearson_adapted", HEADLINE_ADAPTED]
    assert {row["arm"] for row in rows} == {"same", "good", "bad"} and {row["seeds"] for row in rows} == {"2 and 2"}
    words = {arm: {row["over first"]["verdict"] for row in rows if row["arm"] == arm} for arm in NOISE}
    assert (words["good"], words["bad"], words["same"]) == ({"better"}, {"worse"}, {"undecided"})
    runs = planted[1]["runs"].values()
    means = {
        a: np.mean([r["tasks"]["stsb"]["dev"]["metrics"]["pearson"] for r in runs if r["arm"] == a]) for a in NOISE
    }
    for row in rows:
        lift = row["over first"]
        assert lift["low"] < lift["value"] < lift["high"]
        if row["metric"] != HEADLINE_ADAPTED:
            assert lift["value"] == pytest.approx(means[row["arm"]] - means["first"])


def test_an_arm_judged_on_other_rows_is_not_compared(planted, controls, capsys):
    folder, results = planted
    path = grids.record_path(folder / "good_s1", "stsb").with_suffix(".npz")
    kept, arrays = path.read_bytes(), dict(np.load(path))
    np.savez(path, **arrays | {"dev/labels": arrays["dev/labels"][::-1]})
    assert grids.paired_rows(results, None) == [] and "good was evaluated on other rows" in capsys.readouterr().err
    path.write_bytes(kept)


def test_what_was_spent_at_an_evaluation(planted):
    metrics = RunFolder(planted[0] / "good_s1").metrics()
    assert grids.spent(metrics, "val_loss") == [(0, 0, 10), (15e9, 7.5, 9), (20e9, 10, 8)]


def test_points_of_one_cost_stand_side_by_side():
    assert report.dodge([100.0, 10.0]) == [100, 10]
    assert report.dodge([100.0, 50.0, 100.0]) == [99.25, 50, 100.75] and report.dodge([0.0]) == [0]


def test_the_page(planted, controls, tmp_path):
    folder, results = planted
    text = grids.write(folder, results, RESOLVED, None)
    page, files = (folder / "report.html").read_text(), {path.stem for path in folder.glob("*.png")}
    assert files == {"loss", "slot_rank", "stsb_over_best_floor", "stsb_over_untrained", "stsb_beyond_words", "paired"}
    shown = re.findall(r"<img alt='(\w+)' style='[^']*' src='data:image/png;base64,", page)
    assert {*shown} == files and shown[0] == "paired" and shown[-1] == "loss"
    assert not re.search(r"https?:|<link|<script|@import", page) and len(page) < 5e6
    assert "&lt;b&gt;|base" in page and "<b>" not in page
    assert (folder / "report.md").read_text() == f"# toy\n\n{text}"
    said = text.partition("\n")[0]
    assert said.startswith("Difference to first's score, x100 [95 % interval]: on stsb the highest is good (+")
    places = [page.index(what) for what in (said.replace("'", "&#x27;"), "<img", "<td")]
    assert said.endswith(" better).") and places == sorted(places)
    found = json.loads((folder / "results.json").read_text())["paired"]
    for row in found:
        cell = report.cell(row["over first"])
        assert cell.split()[-1] in ("better", "worse", "undecided") and cell in page and cell in text
    for line in text.splitlines():
        if line.startswith("| ") and set(line) - set("|-: "):
            assert all(f">{cell.strip()}<" in page for cell in line.strip("|").split("|")), line
    header = next(line for line in text.splitlines() if line.startswith("| arm"))
    assert header.index("stsb pearson") < header.index("TFLOP") < header.index("val loss")
    assert_fits([folder / "report.html"], tmp_path)


def test_the_sentence_of_a_grid():
    def groups(**arms):
        lifts = {
            name: {"value": v, "low": v - 0.02, "high": v + 0.02, "verdict": word} for name, (v, word) in arms.items()
        }
        return {("stsb", "pearson_adapted"): lifts, ("stsb", HEADLINE_ADAPTED): {}}

    arms = {"a": {"runs": 1, "median": {"val_loss": 3.0}}, "b": {"runs": 1, "median": {"val_loss": 2.0}}}
    arms["c"] = {"runs": 0, "median": {}}
    better = groups(b=(0.05, "better"), c=(0.01, "undecided"))
    assert "on stsb the highest is b (+5.0 [+3.0, +7.0] better)." in grids.verdict(arms, better, True)
    worse = grids.verdict(arms, groups(b=(-0.05, "worse"), c=(-0.09, "worse")), True)
    assert "on stsb a itself is highest, then b (-5.0 [-7.0, -3.0] worse)." in worse
    assert grids.verdict(arms, {}, True).endswith("the lowest validation loss is that of b.")
    assert "no losses that compare" in grids.verdict(arms, {}, False)


def test_an_arm_has_one_colour_in_all_pictures(monkeypatch, tmp_path):
    """Also where another arm has nothing to show; and a score is drawn as its median, with its least and greatest."""
    panels, seen = report.panels, []

    @contextmanager
    def kept(*args, **options):
        with panels(*args, **options) as every:
            yield every
            (legend,) = every[0].figure.legends
            names = [text.get_text() for text in legend.get_texts()]
            bar = every[0].containers[0]
            seen.append(dict(zip(names, (line.get_color() for line in legend.get_lines()), strict=True)))
            seen.append((bar.lines[0].get_ydata().tolist(), bar.lines[2][0].get_segments()[0][:, 1].tolist()))

    monkeypatch.setattr(report, "panels", kept)
    scores = {"a": [[(1e9, 2.0, 3.0)], [(1e9, 2.0, 7.0)], [(1e9, 2.0, 4.0)]], "_b": [[(2e9, 2.0, 4.0)]]}
    report.cost_figure(scores, "y", tmp_path / "x.png")
    report.cost_figure(scores | {"a": []}, "y", tmp_path / "x.png")
    both, bar, alone, _ = seen
    assert bar == ([4], [3, 7]) and both.keys() == {"a", "_b"} and alone == {"_b": both["_b"]}
