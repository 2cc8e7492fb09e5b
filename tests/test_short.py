"""The table that an evaluation prints by default, from the records of a run, against their own numbers."""

import re

import pytest

from lab.evaluation.short import short_table, stands
from lab.evaluation.tasks import TASKS
from lab.report import over_seeds, score_rows


def lift(value, low, high, **more):
    return {"value": value, "low": low, "high": high, "verdict": "above floor" if low > 0 else "at floor"} | more


def record(kind: str, floor: str, by: dict) -> dict:
    """splits of a record, with numbers of the largest width; by: the lift over the best floor."""
    best = {"best_floor": by | {"floor": floor}, "untrained": lift(0.2, 0.11111, 0.33333), "token_idf": by}
    if kind == "score":
        metrics = {"pearson": 0.1, "pearson_adapted": 0.787, "partial_lexical": 0.11, "partial_lexical_adapted": 0.261}
        floors = {floor: dict.fromkeys(metrics, 0.75), "untrained": dict.fromkeys(metrics, 0.5)}
        floors.setdefault("token_idf", dict.fromkeys(metrics, 0.15))
        beyond = {
            name: {"value": metrics[name], "low": 0.2, "high": 0.3}
            for name in ("partial_lexical", "partial_lexical_adapted")
        }
        return {"metrics": metrics, "floors": floors, "beyond": beyond, "lift": best, "lift_adapted": best}
    metrics = {"accuracy": 0.7}
    floors = {floor: {"accuracy": 0.75}, "untrained": {"accuracy": 0.5}, "majority": {"accuracy": 0.664}}
    return {"metrics": metrics, "floors": floors, "lift": best}


def test_where_a_score_stands():
    assert stands(lift(0.022, 0.004, 0.041), "token_sif", 0.674) == "above token_sif 67.4 by 2.2 [0.4, 4.1]"
    assert stands(lift(-0.04, -0.058, -0.023), "char_tfidf", 0.715) == "below char_tfidf 71.5 by 4.0 [2.3, 5.8]"
    assert stands(lift(0, -0.0004, 0.012), "char_tfidf", 0.781) == "level with char_tfidf 78.1 [0.0, 1.2]"


def test_four_rows_a_task_under_120_columns():
    rows = []
    for task, floor in (("sick_r", "random_vectors"), ("mrpc", "token_ngrams")):
        by = lift(-0.22222, -0.33333, -0.11111)
        splits = {split: record(TASKS[task].kind, floor, by) for split in ("dev", "test")}
        rows += score_rows(task, [splits], TASKS[task].lifts)
    rows[-1]["score"] = over_seeds([0.7111, 0.7222, 0.7333])
    table = short_table(rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert max(map(len, table.splitlines())) <= 120 and lines[0] == ["x100", "dev", "test"]
    best = "below random_vectors 75.0 by 22.2 [11.1, 33.3]"
    twin = "above it 50.0 by 20.0 [11.1, 33.3]"
    beyond = "26.1 [20.0, 30.0]; token_idf 15.0"
    assert lines[2:6] == [
        ["sick_r pearson", "78.7", "78.7"],
        ["best floor", best, best],
        ["untrained twin", twin, twin],
        ["beyond words", beyond, beyond],
    ]
    assert [line[0] for line in lines[6:]] == ["mrpc accuracy", "best floor", "untrained twin", "commonest class"]
    assert lines[6][1:] == ["70.0", "72.2 (71.1..73.3)"] and lines[9][1:] == ["66.4", "66.4"]


def test_a_task_with_one_split_beside_one_with_two():
    by = lift(0.1, 0.05, 0.2)
    rows = score_rows("mnli", [{"dev": record("classes", "word_tfidf", by)}], TASKS["mnli"].lifts)
    rows += score_rows("stsb", [{"test": record("score", "word_tfidf", by)}], TASKS["stsb"].lifts)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in short_table(rows).splitlines()[2:]]
    assert len(lines) == 8 and all(line[2] == "-" for line in lines[:4]) and all(line[1] == "-" for line in lines[4:])


@pytest.mark.parametrize("value", [0.1, -0.1, 0.0])
def test_words_follow_the_interval(value):
    said = stands(lift(value, value - 0.01, value + 0.01), "x", 0.5)
    assert re.match("above|below|level with", said)[0] == {0.1: "above", -0.1: "below", 0.0: "level with"}[value]
