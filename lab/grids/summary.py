"""
The report of a grid: tables of its finished runs, paired differences between arms, pictures, and the page.

A run is its entry in compare.py's results.json: arm, seed, folder, `numbers`, and in `tasks` its scores.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np

from lab import report
from lab.command import log
from lab.configurator import UserError, warn
from lab.evaluation import scores
from lab.evaluation.floors import text_floors, word_controls
from lab.evaluation.scores import read_answers
from lab.evaluation.tasks import TASKS, Pairs, load_task
from lab.files import write_atomic
from lab.report import HEADLINE_ADAPTED, LIFTS, format_range, lift_text, over_seeds, score_rows, verdicts
from lab.training.run_folder import RunFolder
from objectives import ObjectiveConfig


def summary(runs: list[dict]) -> dict[str, dict]:
    """Median, minimum and maximum over runs of every number."""
    keys = dict.fromkeys(key for run in runs for key in run["numbers"])
    values = {key: over_seeds([run["numbers"][key] for run in runs if key in run["numbers"]]) for key in keys}
    numbers = {name: {key: values[key][i] for key in keys} for i, name in enumerate(("median", "min", "max"))}
    return {"runs": len(runs), **numbers}


def score_lines(runs: list[dict], arm: str, task: str) -> list[dict]:
    """`score_rows` of an arm, aggregated over its seeds; only metrics that have a lift."""
    seeds = [run["tasks"][task] for run in runs if run["arm"] == arm]
    lifts = TASKS[task].lifts
    return [row for row in score_rows(task, seeds, lifts, arm=arm) if row["metric"] in lifts]


# ---------------------------------------------------------------------------------------------------------------------
# Tables

COLUMNS = (  # title, key of `numbers`, format, scale
    ("Mtokens", "tokens", ".2f", 1e-6),
    ("TFLOP", "flops", ".4g", 1e-12),
    ("seconds", "seconds", ".0f", 1),
    ("spectral tokens, seconds once", "spectral_seconds", ".0f", 1),
    ("slot rank", "rank_slot_centred", ".2f", 1),
    ("raw rank", "rank_raw", ".2f", 1),
    ("pooled rank", "rank_pooled", ".2f", 1),
    ("input share", "input_share", ".3f", 1),
    ("dead slots", "dead_slots", "g", 1),
    ("Δshuffle", "delta_shuffle", ".2f", 1),
    ("slot rank@0", "rank_slot_centred@0", ".2f", 1),
    ("share@0", "input_share@0", ".3f", 1),
    ("val loss", "val_loss", ".3f", 1),
    ("loss, mlm 15 %", "val_loss_mlm15", ".3f", 1),
)


def arm_rows(arms: dict[str, dict], scores: list[dict]) -> list[dict]:
    """One row per arm: each task's dev scores, the lifts of the last (adapted, if there is one) and the scores beyond
    words; then geometry and losses."""
    known = {key for arm in arms.values() for key in arm["median"]}
    lengths = sorted(int(key[9:]) for key in known if re.fullmatch(r"val_loss_\d+", key))
    by_length = [(f"loss, {n}", f"val_loss_{n}", ".3f", 1) for n in lengths if len(lengths) > 1]
    rows = []
    for name, arm in arms.items():
        dev = [score for score in scores if (score["arm"], score["split"]) == (name, "dev")]
        plain = [score for score in dev if not is_beyond(score["metric"])]
        row = {"arm": name, "seeds": str(arm["runs"])}
        row |= {f"{score['task']} {score['metric']}": score["score"] for score in dev}
        row |= {f"{score['task']} over {floor}": score[f"over {floor}"] for score in plain for floor in LIFTS}
        for title, key, form, scale in (*COLUMNS, *by_length):
            if key in known or title == "val loss":
                values = [arm[which][key] for which in ("median", "min", "max") if key in arm[which]]
                row[title] = format_range(values, form, scale) if values else None
        rows.append(row)
    return rows


def losses_compare(resolved: dict[str, dict]) -> bool:
    """Whether the arms' losses are comparable: same objective and same data."""
    keys = [field.name for field in fields(ObjectiveConfig)] + ["lengths", "dataset"]
    return len({json.dumps([values[key] for key in keys]) for values in resolved.values()}) == 1


def notes(results: dict, resolved: dict[str, dict]) -> str:
    """Notes for the reader of the table."""
    lines = ["Medians over seeds (min..max); @0: before training; Δshuffle: nats lost with another row's concepts."]
    if results["tasks"]:
        lines += ["Scores x100 on dev; over a floor: of the adapted score where there is one, with the widest 95 %"]
        lines += ["interval of the seeds; untrained: the same architecture and init; partial_lexical: rank correlation"]
        lines += ["with the labels beyond words, given what overlap of words and characters and the lengths know;"]
        lines += ["order: which of two texts of the same words was written, mean over the rules of 2 x right - 1."]
    if not losses_compare(resolved):
        lines.append("The arms differ in objective, noise or rows: their losses do not compare, their scores do.")
    commits = sorted({str(run["commit"]) for run in results["runs"].values()})
    if len(commits) > 1:
        lines.append(f"Trained at different commits ({', '.join(commits)}): compare with care.")
    if results["failed"]:
        failures = results["failed"].items()
        failed = (f"{run} (exit {one['code']}{one['reason'] and ': '}{one['reason']})" for run, one in failures)
        lines.append(f"Failed: {', '.join(failed)}.")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Paired differences: is an arm better than the first one on the same rows?


def shown(splits: dict) -> str:
    """The split that arms are compared on: dev, if there is one."""
    return "dev" if "dev" in splits else next(iter(splits))


@cache
def lexical_controls(task: str, split: str, data: Path) -> dict[str, np.ndarray]:
    """`word_controls` without token_idf: the same for all models."""
    pairs = Pairs(task, load_task(task, data))
    log(f"{task}: overlap of words, for what is known beyond it")
    theirs = {floor: splits[split] for floor, splits in text_floors(pairs).items()}
    return word_controls(pairs, split, theirs)


def paired_rows(results: dict, data: Path) -> list[dict]:
    """Rows {arm, task, split, metric, seeds, over FIRST}: the difference between an arm's score and the first arm's,
    means over seeds, for each metric that has a lift, with the 95 % interval over resampled rows of the split."""
    rows, (first, *others) = [], results["arms"]
    for task in results["tasks"]:
        answers = {arm: [] for arm in results["arms"]}
        for run in results["runs"].values():
            answers[run["arm"]].append(read_answers(record_path(run["folder"], task))[1])
        compared = {arm: answers[arm] for arm in others if answers[arm]}
        if not answers[first] or not compared:
            continue
        splits = next(run["tasks"][task] for run in results["runs"].values())
        split = shown(splits)
        for metric in [metric for metric in TASKS[task].lifts if metric in splits[split]["metrics"]]:
            known = lexical_controls(task, split, data) if is_beyond(metric) else None
            try:
                under = scores.paired(metric, split, answers[first], compared, np.mean, known)
            except UserError as error:  # the task's files have changed since
                warn(f"no paired difference in {task}: {error}")
                break
            for arm, lift in under.items():
                value, low, high = (-lift[key] for key in ("value", "high", "low"))  # theirs minus the first's
                word = "better" if low > 0 else "worse" if high < 0 else "undecided"
                row = {"arm": arm, "task": task, "split": split, "metric": metric}
                row["seeds"] = f"{len(answers[arm])} and {len(answers[first])}"
                rows.append(row | {f"over {first}": {"value": value, "low": low, "high": high, "verdict": word}})
    return rows


def headline(metrics: Iterable[str]) -> str:
    """The metric of a task that arms are compared by: adapted, if there is one."""
    return [metric for metric in metrics if not is_beyond(metric)][-1]


def is_beyond(metric: str) -> bool:
    return metric.startswith("partial")


def compared(paired: list[dict], first: str) -> dict[tuple[str, str], dict[str, dict]]:
    """(task, metric) -> arm -> its difference to the first arm, for the `headline` metric and the one beyond words."""
    groups = {}
    for row in paired:
        if row["metric"] in (HEADLINE_ADAPTED, headline(TASKS[row["task"]].lifts)):
            groups.setdefault((row["task"], row["metric"]), {})[row["arm"]] = row[f"over {first}"]
    return groups


def verdict(arms: dict[str, dict], groups: dict[tuple[str, str], dict[str, dict]], same_loss: bool) -> str:
    """The result in a sentence: for each task the best arm, and its difference to the first with its interval."""
    said, first = [], next(iter(arms))
    for (task, metric), lifts in groups.items():
        if not is_beyond(metric):
            best = max(lifts, key=lambda arm: lifts[arm]["value"])
            highest = f"{first} itself is highest, then" if lifts[best]["verdict"] == "worse" else "the highest is"
            said.append(f"on {task} {highest} {best} ({lift_text(lifts[best])})")
    losses = {arm: known["median"]["val_loss"] for arm, known in arms.items() if known["runs"]}
    if said:
        return f"Difference to {first}'s score, x100 [95 % interval]: {'; '.join(said)}."
    if same_loss and len(losses) > 1:
        return f"No scores to compare; the lowest validation loss is that of {min(losses, key=losses.get)}."
    return "No scores to compare, and no losses that compare."


def record_path(folder, task: str) -> Path:
    return Path(folder) / "eval" / f"zero_shot_{task}.json"


def long_path(folder, task: str) -> Path:
    return Path(folder) / "eval" / f"long_{task}.json"


# ---------------------------------------------------------------------------------------------------------------------
# Long documents

LONG_FLOORS = "chance", "word_tfidf", "token_idf", "untrained"


def long_scores(runs: list[dict]) -> dict[str, dict[str, dict[int, list[dict]]]]:
    """Task -> arm -> length -> the records of its seeds; without reconstruction, whose records are `rate_rows`'."""
    found = {}
    for run in runs:
        for task, splits in run.get("long", {}).items():
            splits = {} if task == "reconstruction" else splits
            for length, split in splits.items():
                found.setdefault(task, {}).setdefault(run["arm"], {}).setdefault(int(length), []).append(split)
    return found


def long_rows(runs: list[dict]) -> list[dict]:
    """A row for each task, length and arm: median of its seeds with their range, beside the floors' medians."""
    rows = []
    for task, arms in long_scores(runs).items():
        for length in sorted({n for lengths in arms.values() for n in lengths}):
            for arm, seeds in ((arm, lengths[length]) for arm, lengths in arms.items() if length in lengths):
                main = next(iter(seeds[0]["metrics"]))
                row = {"task": task, "metric": main, "tokens": f"{length:,}", "arm": arm, "seeds": str(len(seeds))}
                row["score"] = format_range(over_seeds([one["metrics"][main] for one in seeds]))
                for floor in LONG_FLOORS:
                    theirs = [one["floors"][floor][main] for one in seeds if floor in one["floors"]]
                    row[floor] = f"{100 * np.median(theirs):.1f}" if theirs else ""
                rows.append(row)
    return rows


def rate_rows(splits: dict[str, dict], **lead) -> list[dict]:
    """A row for each length and number of concepts of one run's reconstruction (lab/analysis/rate.py)."""
    rows = []
    for length, counts in splits.items():
        twin = counts["untrained"]
        for count, one in ((count, one) for count, one in counts.items() if count != "untrained"):
            row = {"tokens": f"{int(length):,}", "concepts": count} | lead
            row |= {
                "tokens a concept": f"{one['tokens_per_concept']:g}",
                "bits a token": f"{one['bits_per_token']:.3f}",
            }
            row |= {"untrained": f"{twin['bits_per_token']:.3f}", "kept %": f"{100 * one['share_kept']:.1f}"}
            row |= {name: f"{100 * one[name.replace('-', '_')]:.1f}" for name in ("teacher-forced", "free-running")}
            rows.append(row)
    return rows


def rate_picture(runs: list[dict], path: Path) -> Path | None:
    """Bits that a token keeps against the tokens of a concept: a line per arm and length, its first seed."""
    lines = {}
    for run in sorted((run for run in runs if "reconstruction" in run.get("long", {})), key=lambda run: run["seed"]):
        for length, counts in run["long"]["reconstruction"].items():
            points = [
                (one["tokens_per_concept"], one["bits_per_token"]) for n, one in counts.items() if n != "untrained"
            ]
            lines.setdefault(f"{run['arm']}, {int(length):,}", sorted(points))
    label = "bits a token keeps"
    return report.length_figure({label: (lines, {})}, path, xlabel="tokens a concept") if lines else None


def long_picture(runs: list[dict], path: Path) -> Path | None:
    """Scores against the length of documents: a panel per task, a line per arm, its median of the seeds; dotted: chance
    and TF-IDF of words."""
    found = {}
    for task, arms in long_scores(runs).items():
        lines, floors = {}, {}
        for arm, lengths in arms.items():
            main = next(iter(next(iter(lengths.values()))[0]["metrics"]))
            lines[arm] = [(n, 100 * np.median([one["metrics"][main] for one in lengths[n]])) for n in sorted(lengths)]
            for floor in ("chance", "word_tfidf"):
                known = [(n, 100 * lengths[n][0]["floors"].get(floor, {}).get(main, np.nan)) for n in sorted(lengths)]
                floors[floor] = known
        found[f"{task}, {main} x100"] = lines, floors
    return report.length_figure(found, path) if found else None


# ---------------------------------------------------------------------------------------------------------------------
# Pictures against FLOPs and seconds

CURVES = {  # file -> key in metrics.jsonl, label
    "slot_rank": ("rank_slot_centred", "slot-centred rank"),
    "input_share": ("input_share", "input share"),
    "delta_shuffle": ("delta_shuffle", "nats added by another row's concepts"),
    "loss": ("val_loss", "validation loss, nats"),
}


def spent(metrics: list[dict], key: str) -> list[tuple[float, float, float]]:
    """(FLOPs, seconds, value) of each record that has the key. FLOPs and seconds are logged with the training loss, and
    interpolated between."""
    logged = [record for record in metrics if {"flops", "seconds"} <= record.keys()]
    axes = [[0.0, *(record[name] for record in logged)] for name in ("step", "flops", "seconds")]
    having = [record for record in metrics if key in record and logged]
    return [(*(float(np.interp(r["step"], axes[0], axis)) for axis in axes[1:]), r[key]) for r in having]


def pictures(results: dict, folder: Path) -> list[Path]:
    """Draws the finished runs, a line or a point per arm, losses last -> paths."""
    by_arm = {arm: [run for run in results["runs"].values() if run["arm"] == arm] for arm in results["arms"]}
    metrics = {run["folder"]: RunFolder(run["folder"]).metrics() for runs in by_arm.values() for run in runs}
    drawn = {}  # file -> (label, arm -> points of each seed)
    for task in results["tasks"]:
        lifts = TASKS[task].lifts
        lift = lifts[headline(lifts)]
        wanted = {  # file -> label, path of keys to the value in a split's record
            "over_best_floor": ("over the best floor", lift, "best_floor", "value"),
            "over_untrained": ("over the untrained twin", lift, "untrained", "value"),
            "beyond_words": ("beyond words", "metrics", HEADLINE_ADAPTED),
        }
        for name, (label, *keys) in wanted.items():
            points = {
                arm: [[point] for run in runs if (point := scored(run, task, keys))] for arm, runs in by_arm.items()
            }
            drawn[f"{task}_{name}"] = f"{task} {label}, x100", points
    for name, (key, label) in CURVES.items():
        drawn[name] = label, {arm: [spent(metrics[run["folder"]], key) for run in runs] for arm, runs in by_arm.items()}
    paths = []
    for name, (label, arms) in drawn.items():
        arms = {arm: [run for run in seeds if run] for arm, seeds in arms.items()}
        if any(arms.values()):
            paths.append(report.cost_figure(arms, label, folder / f"{name}.png"))
    return paths


def scored(run: dict, task: str, keys: list[str]) -> tuple[float, float, float] | None:
    """(FLOPs, seconds, 100 x the value at these keys of the compared split), or None if it is absent."""
    try:
        value = run["tasks"][task][shown(run["tasks"][task])]
        for key in keys:
            value = value[key]
        return run["numbers"]["flops"], run["numbers"]["seconds"], 100 * value
    except KeyError:
        return None


# ---------------------------------------------------------------------------------------------------------------------
# The page


def write(folder: Path, results: dict, resolved: dict[str, dict], data: Path) -> str:
    """Writes results.json, report.md, report.html and *.png for the runs so far; returns the report. results: the
    content of results.json without "paired"; resolved: arm -> every key of training."""
    named, runs = results["runs"].items(), list(results["runs"].values())
    scores = [row for arm in results["arms"] for task in results["tasks"] for row in score_lines(runs, arm, task)]
    results["paired"] = paired = paired_rows(results, data)
    save(folder, results)
    first = next(iter(results["arms"]))
    rule = f"An arm's score less {first}'s, means of their seeds, on the same pairs of texts: x100 [95 % interval over "
    rule += "resampled pairs]; undecided: it holds 0. It knows nothing of the luck of seeds: see their spread."
    sentences = [f"{name}: {sentence}" for name, sentence in verdicts(scores).items()]
    arms = ("Arms", arm_rows(results["arms"], scores), [notes(results, resolved)])
    sections = [(f"Paired with {first}", paired, [rule])] if paired else []
    sections += [("Scores beside their floors", report.drop_empty_columns(scores), sentences)] if scores else []
    long = long_rows(runs)
    rates = [
        row
        for one in runs
        for row in rate_rows(one.get("long", {}).get("reconstruction", {}), arm=one["arm"], seed=str(one["seed"]))
    ]
    about = "Of validation rows read whole, by the run's own decoder."
    sections += [("Reconstruction", rates, [about])] if rates else []
    sections += [("Long documents", long, ["x100, zero-shot, by eval_long.py."])] if long else []
    words = [{"run": name, "verdict": one.get("verdict"), "learned": one.get("learned")} for name, one in named]
    groups = compared(paired, first)
    said = verdict(results["arms"], groups, losses_compare(resolved))
    text = f"{said}\n\n{report.sections_text([arms, *sections])}"
    write_atomic(folder / "report.md", f"# {results['grid']}\n\n{text}")
    caption = "A colour an arm. Points: the median of its seeds, the bar from the least to the greatest; those of one "
    caption += "cost stand side by side. Curves: a thin line a seed. Seconds are of training steps alone."
    parts = report.sections_html([*sections, ("Collapsed? Learned?", words, []), arms])
    parts.append(report.paragraphs([caption]))
    drawn = [long_picture(runs, folder / "long.png"), rate_picture(runs, folder / "rate.png")]
    parts += map(report.picture, [*pictures(results, folder), *(path for path in drawn if path)])
    if groups:
        parts.insert(0, report.picture(report.forest(groups, f"score less {first}'s, x100", folder / "paired.png")))
    about = f"{len(runs)} finished runs of {len(results['arms'])} arms on {results['base']}, seeds "
    about += f"{', '.join(map(str, results['seeds']))}; the same numbers: report.md and results.json."
    page = report.page(f"{results['grid']}: a comparison", [(said, True)], about, parts)
    write_atomic(folder / "report.html", page)
    return text


def save(folder: Path, results: dict):
    write_atomic(folder / "results.json", json.dumps(results, indent=1) + "\n")
