"""
The log of experiments, from run folders alone: one table of training runs, one of evaluations.

Nothing is kept by hand but a run's NOTE.md, whose first paragraph is its conclusion.
"""

import csv
import io
import re
import statistics
from datetime import datetime
from pathlib import Path

from lab.command import say
from lab.configurator import UserError, show, warn
from lab.files import read_json, write_atomic
from lab.plan import HORIZONS
from lab.report import dict_table, lift_text, score_rows, score_table
from lab.runs import RunFolder
from lab.tasks import TASKS

LOGGED = ("seconds", "loss", "val_loss", "val_loss_mlm15", "rank_slot_centred", "rank_raw", "rank_pooled")
LOGGED += ("input_share", "dead_slots", "delta_shuffle", "verdict", "tokens_per_s")
DAMAGED = (UserError, LookupError, TypeError, AttributeError, ValueError)  # what reading a file not of ours ends in


def run_numbers(out: RunFolder) -> dict:
    """The last of each number in metrics.jsonl: step, tokens, losses, geometry, verdict; of the speeds the median; as
    KEY@0 what was measured before training."""
    metrics, numbers = out.metrics(), {}
    for record in metrics:
        numbers |= record
    if metrics and metrics[0]["step"] == 0:
        numbers |= {f"{key}@0": value for key, value in metrics[0].items() if key != "step"}
    if speeds := [record["tokens_per_s"] for record in metrics if "tokens_per_s" in record]:
        numbers["tokens_per_s"] = statistics.median(speeds)
    return numbers


def run_rows(folder: Path) -> tuple[dict, list[dict]]:
    """A run folder -> its row of the table of runs, and its rows of the table of evaluations."""
    out = RunFolder(folder)
    config, numbers = out.config(), run_numbers(out)
    stamp = datetime.strptime(config["run_id"][-15:], "%Y%m%d_%H%M%S")
    try:
        state = read_json(out.checkpoint("latest", ("state.json",)) / "state.json", "the state of training")
    except UserError:  # no checkpoint yet, or deleted to save room
        state = {}
    row = {
        "date": f"{stamp:%Y-%m-%d %H:%M}",
        "run": str(folder),
        "run_id": config["run_id"],
        "architecture": f"{config['encoder']}-{config['decoder']} H{config['hidden']} L{config['layers']} "
        f"C{config['concepts']}, {config['parameters'] / 1e6:.2f} M",
        "objective": config["objective"],
        "data": f"{config['dataset']} {','.join(map(str, config['lengths']))}",
        "machine": f"{config['ranks']} x {config['machine']['device']}",
        "horizon": next((f"{key}={config[key]:g}" for key in HORIZONS if config.get(key)), None),
        "steps": f"{numbers.get('step', 0)}/{state.get('horizon') or '?'}",
        "Mtokens": numbers.get("tokens", 0) / 1e6,
        "TFLOP": numbers.get("flops", 0) / 1e12,
        **{key: numbers.get(key) for key in LOGGED},
        "tag": config["tag"],
        "commit": config["commit"],
        "wandb": config.get("wandb_url"),
        "conclusion": conclusion(folder / "NOTE.md"),
    }
    return row, [line for path in sorted((folder / "eval").glob("*.json")) for line in eval_rows(folder, path)]


def eval_rows(folder: Path, path: Path) -> list[dict]:
    """A row for each split and metric of an evaluation. A damaged file is worth a warning."""
    try:
        record = read_json(path, "an evaluation")
        lead = {"run": str(folder)} | {key: record[key] for key in ("run_id", "checkpoint", "mode")}
        lead["head"] = record["protocol"]["head"]
        return score_rows(record["task"], [record["splits"]], TASKS[record["task"]].lifts, **lead)
    except DAMAGED as error:
        warn(f"{show(path)} is no evaluation ({reason(error)}); it is left out")
        return []


def conclusion(path: Path) -> str | None:
    """The first paragraph of a note that is no heading, in one line."""
    if not path.is_file():
        return None
    paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace"))
    texts = [" ".join(line for line in part.split("\n") if not line.startswith("#")) for part in paragraphs]
    return next((" ".join(text.split()) for text in texts if text.strip()), None)


def reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def write_csv(path: Path, rows: list[dict]):
    """Scores and lifts as they are, 0-1; of several seeds the middle."""

    def plain(value):
        if isinstance(value, dict):
            return lift_text(value, "+.3f", 1) if "verdict" in value else value["value"]
        return value[0] if isinstance(value, tuple) else value

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: plain(value) for key, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue())


def registry(out: Path) -> int:
    """Prints the log of all run folders below `out`, primary metrics only; all metrics go into the CSV files."""
    if not out.is_dir():
        raise UserError(f"no folder {out}; give --out=DIR, the folder that holds the runs")
    runs, evaluations = [], []
    folders = {path.parent for name in ("config.json", "metrics.jsonl") for path in out.rglob(name)}
    for folder in sorted(folders):
        try:
            row, lines = run_rows(folder)
        except (*DAMAGED, OSError) as error:
            warn(f"{folder} is damaged or no run ({reason(error)}); it is left out")
            continue
        runs.append(row)
        evaluations += lines
    runs.sort(key=lambda row: (row["date"], row["run"]))
    primary = [row for row in evaluations if row["metric"] in TASKS[row["task"]].lifts]
    print(f"## Training runs\n\n{dict_table(runs)}\n")
    print(f"## Evaluations, x100\n\n{score_table(primary)}")
    write_csv(out / "registry_runs.csv", runs)
    write_csv(out / "registry_evals.csv", evaluations)
    say(f"{out}: registry_runs.csv, registry_evals.csv")
    return 0
