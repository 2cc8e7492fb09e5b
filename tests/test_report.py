"""Pictures of a run: what is drawn, not only that a file is there."""

import json
import math
from contextlib import contextmanager

import pytest

from lab import report
from lab.training.run_folder import RunFolder

STEPS = (0, 10, 20)


@pytest.fixture
def drawn(monkeypatch):
    """What stands in the axes of each picture: file name -> panel title -> label of a line -> its y values."""
    seen, panels = {}, report.panels

    @contextmanager
    def kept(path, *args, **options):
        with panels(path, *args, **options) as every:
            yield every
            seen[path.name] = {
                one.get_title(): {line.get_label(): list(line.get_ydata()) for line in one.lines}
                for one in every
                if one.get_visible()
            }

    monkeypatch.setattr(report, "panels", kept)
    return seen


def planted(**keys):
    """Records of training at each second step, and of three evaluations; key -> its three values."""
    records = [{"step": step, "loss": 9 - step / 10} for step in range(2, 21, 2)]
    records += [{"step": s} | {key: values[i] for key, values in keys.items()} for i, s in enumerate(STEPS)]
    return sorted(records, key=lambda record: record["step"])


def test_losses_stand_beside_their_floors(drawn, tmp_path):
    losses = {
        "val_loss_16": [9, 6, 5],
        "val_loss_32": [8, 5, 4],
        "val_loss_tsdae": [5, 3, 2],
        "val_loss_bow": [3, 2, 2],
    }
    floors = {"val_loss_16": 7.5, "val_loss_32": 7.0, "val_loss_tsdae": 4.5, "val_loss_bow": 2.5}
    report.curves(planted(**losses, delta_shuffle=[0, 1, 2]), floors, tmp_path / "curves.png")
    total, parts, shuffled = drawn["curves.png"].values()
    assert total["validation, 32"] == [8, 5, 4] and total["training"][-1] == 7 and len(total["training"]) == 10
    assert total["floor, 32"] == [7, 7] and "floor, 16" not in total
    assert parts == {
        "validation, tsdae": [5, 3, 2],
        "floor, tsdae": [4.5, 4.5],
        "validation, bow": [3, 2, 2],
        "floor, bow": [2.5, 2.5],
    }
    assert [0, 1, 2] in shuffled.values()


def test_a_loss_and_its_floor_share_a_colour(monkeypatch, tmp_path):
    colours = {}
    monkeypatch.setattr(
        report, "legend", lambda axes: colours.update({x.get_label(): x.get_color() for x in axes.lines})
    )
    keys = ("val_loss_16", "val_loss_tsdae", "val_loss_bow")
    report.curves(planted(**dict.fromkeys(keys, [3, 2, 1])), dict.fromkeys(keys, 2), tmp_path / "curves.png")
    assert all(colours[f"floor, {name}"] == colours[f"validation, {name}"] for name in ("16", "tsdae", "bow"))
    assert colours["floor, tsdae"] != colours["floor, bow"]


def test_a_chance_floor_alone(drawn, tmp_path):
    floors = {"val_loss_16": math.log(64)}
    report.curves(planted(val_loss_16=[4, 3, 2]), floors, tmp_path / "curves.png")  # nothing is decoded: no shuffle
    assert list(drawn["curves.png"]) == ["loss"]
    assert drawn["curves.png"]["loss"]["floor, 16"] == [math.log(64)] * 2


def test_no_picture_of_nothing(tmp_path):
    report.curves([], {}, tmp_path / "curves.png")
    report.curves([{"step": 0, "verdict": "not collapsed"}], {"val_loss_16": 3.0}, tmp_path / "curves.png")
    report.geometry_curves([{"step": 1, "loss": 2.0}], {}, {}, tmp_path / "geometry.png")
    assert not list(tmp_path.iterdir())


def test_geometry_and_what_is_known_beyond_words(drawn, tmp_path):
    out = RunFolder(tmp_path)
    (tmp_path / "config.json").write_text('{"run_id": "ours", "concepts": 8, "hidden": 512}')
    for record in planted(rank_slot_centred=[1, 4, 7], rank_pooled=[9, 80, 90], input_share=[0.1, 0.5, 0.7]):
        out.log(**record)
    out.draw_geometry()
    without = drawn.pop("geometry.png")
    most = [{"largest possible: 8": [8, 8]}, {"largest possible: 255": [255, 255]}, {"largest possible: 1": [1, 1]}]
    for lines, values, line in zip(without.values(), ([1, 4, 7], [9, 80, 90], [0.1, 0.5, 0.7]), most, strict=True):
        assert values in lines.values() and line.items() <= lines.items() and len(lines) == 2

    evaluation = {"task": "stsb", "run_id": "ours", "checkpoint": "ckpt_20"}
    evaluation["splits"] = {"dev": {"metrics": {report.HEADLINE: 0.25}}}
    others = {"stsb": {}, "sick_r": {"task": "sick_r", "run_id": "another"}, "stsb_concepts2": {}}
    (tmp_path / "eval").mkdir()
    for name, change in others.items():
        (tmp_path / "eval" / f"zero_shot_{name}.json").write_text(json.dumps(evaluation | change))
    (tmp_path / "eval" / "zero_shot_mrpc.json").write_text('{"task": "mr')
    assert out.beyond_words() == {"stsb": (20, 0.25)}
    out.draw_geometry()
    (title,) = drawn["geometry.png"].keys() - without.keys()
    assert "beyond words" in title and drawn["geometry.png"][title]["stsb"] == [25]


def test_weights_are_drawn_beside_the_closed_form(tmp_path, drawn):
    """1/(2L) of the task and of a concept loss above 0, where weights are learnt; nothing where none is logged."""
    weights = {"concept_weight_task": [0.5, 0.3, 0.2], "concept_weight_tregs": [0.5, 0.6, 0.7]}
    others = {"grad_task": [3, 2, 1], "grad_concept_tregs": [1, 1, 1], "concept_loss_tregs": [0.25, -1.0, 0.5]}
    report.weight_curves(planted(**weights, **others), tmp_path / "weights.png")
    left, right = drawn["weights.png"].values()
    assert left["task"] == [0.5, 0.3, 0.2] and left["1/(2L), tregs"] == [2, 1]
    assert left["1/(2L), task"][0] == pytest.approx(1 / (2 * 8.8))
    assert right == {"task": [3, 2, 1], "tregs": [1, 1, 1]}
    report.weight_curves(planted(concept_weight_task=[1, 1, 1], **others), tmp_path / "fixed.png")
    assert drawn["fixed.png"]["weight"].keys() == {"task"}
    report.weight_curves(planted(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_forest_has_a_panel_a_group_and_a_row_an_arm(monkeypatch, tmp_path):
    panels, seen = report.panels, {}

    @contextmanager
    def kept(*args, **options):
        with panels(*args, **options) as every:
            yield every
            for axes in every:
                names = [label.get_text() for label in axes.get_yticklabels()]
                bars = [
                    (bar.lines[0].get_xdata()[0], bar.lines[2][0].get_segments()[0][:, 0]) for bar in axes.containers
                ]
                colours = [bar.lines[0].get_color() for bar in axes.containers]
                seen[axes.get_title()] = dict(zip(names, zip(bars, colours, strict=True), strict=True)), axes.get_xlim()

    monkeypatch.setattr(report, "panels", kept)
    good = {"value": 0.05, "low": 0.02, "high": 0.09, "verdict": "better"}
    unsure, bad = good | {"low": -0.02, "verdict": "undecided"}, good | {"value": -0.3, "low": -0.4, "verdict": "worse"}
    report.forest({("stsb", "x"): {"a": good, "b": unsure}, ("mrpc", "y"): {"a": bad}}, "x100", tmp_path / "paired.png")
    (first, limits), (second, same) = seen.values()
    assert list(first) == ["a", "b"] and limits == same and limits[0] <= -40  # one scale for all
    (middle, ends), colour = first["a"]
    assert middle == 5 and ends.tolist() == pytest.approx([2, 9]) and colour == "tab:blue"
    assert (first["b"][1], second["a"][1]) == ("0.5", "tab:red")


def test_a_page_says_its_verdict_first_and_escapes_what_is_no_html():
    page = report.page("<t>", [("Good & short.", True), ("Bad.", False)], "small", ["<p>part</p>"])
    title, good, bad, small, part = (page.index(x) for x in ("<h1>", "Good &amp; short.", "Bad.", "small<", "part"))
    assert title < good < bad < small < part and page.count("class='verdict wrong'") == 1 and "<t>" not in page
    table = report.html_table(["a", "<b>"], [["<script>", report.marked([("x", True)])]])
    assert "&lt;script&gt;" in table and "><span class=wrong>x</span><" in table and "data-of='&lt;b&gt;'" in table
    assert "class=cards" not in table and "class=cards" in report.html_table(["long name"] * 6, [["1"] * 6])


def test_several_seeds_in_a_cell():
    lifts = [{"value": v, "low": v - 0.1, "high": v + 0.02, "verdict": ""} for v in (0.3, 0.1, 0.2)]
    assert report.cell(report.over_seeds(lifts)) == "+20.0 [+0.0, +32.0] at floor"
    assert report.cell(report.over_seeds([lift | {"low": 0.01, "floor": "x"} for lift in lifts])) == (
        "+20.0 [+1.0, +32.0] above floor (x)"
    )
    assert report.cell(report.over_seeds([0.3, 0.1, 0.2])) == "20.0 (10.0..30.0)" and report.cell((0.25,)) == "25.0"
    assert [report.cell(value) for value in (None, "a|b", 0.123456)] == ["-", "a|b", "0.1235"]
    assert "| a\\|b c |" in report.dict_table([{"text": "a|b\nc"}])


def test_a_verdict_says_both_halves():
    def row(metric, score, lift, **more):
        return {
            "arm": "a",
            "task": "stsb",
            "split": "dev",
            "metric": metric,
            "score": score,
            "over best_floor": lift,
        } | more

    lift = {"floor": "char_tfidf", "value": -0.012, "low": -0.021, "high": -0.003, "verdict": "at floor"}
    rows = [
        row("pearson", (0.7,), lift | {"value": 0}),
        row("spearman", (0.7,), None),
        row("pearson_centred", (0.7,), lift),
    ]
    beyond = row("partial_lexical", {"value": 0.237, "low": -0.201, "high": 0.28}, lift, token_idf=(0.19, 0.1, 0.2))
    below = "below char_tfidf by 1.2 [0.3, 2.1]"
    assert report.verdicts(rows) == {"a stsb dev": below}
    assert report.verdicts([*rows, beyond]) == {"a stsb dev": f"{below}; beyond words .24 [-.20, .28], token_idf .19"}
    rows[2]["over best_floor"] = lift | {"high": 0.03}
    assert report.verdicts(rows)["a stsb dev"] == "not above char_tfidf: -1.2 [-2.1, 3.0]"
    rows[2]["over best_floor"] = {"floor": "word_tfidf", "value": 0.5, "low": 0.004, "high": 1}
    assert report.verdicts(rows)["a stsb dev"] == "above word_tfidf by 50.0 [0.4, 100.0]"
    assert [report.fraction(x) for x in (1.0, -0.001, 0.999, 0)] == ["1.00", ".00", "1.00", ".00"]
