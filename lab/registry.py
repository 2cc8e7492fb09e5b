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

from lab import files, tasks
from lab.command import say
from lab.configurator import UserError, show, warn
from lab.files import write_atomic
from lab.report import table
from lab.runs import RunFolder

HORIZONS = ("max_steps", "max_tokens", "max_epochs", "max_minutes")
FLOORS = ("majority", "word_tfidf", "char_tfidf", "random_vectors", "token_idf", "untrained")
LOGGED = (
    *("val_loss", "val_loss_mlm15", "rank_slot_centred", "rank_raw", "rank_pooled", "input_share", "dead_slots"),
    *("delta_shuffle", "verdict"),
)
RUN_COLUMNS = ["date", "run", "run_id", "architecture", "objective", "data", "machine", "horizon", "steps", "Mtokens"]
RUN_COLUMNS += ["loss", *LOGGED, "tokens_per_s", "tag", "commit", "wandb", "conclusion"]
EVAL_COLUMNS = ["run", "run_id", "checkpoint", "mode", "head", "task", "split", "metric", "score", *FLOORS]
LIFTS = ("best_floor", "token_idf", "untrained")
EVAL_COLUMNS += [f"over {floor}" for floor in LIFTS]


def primaries(name: str) -> list[str]:
    """The primary metric of a task, and the centred one where there is one."""
    primary = tasks.TASKS[name].primary
    return [metric for metric in (primary, f"{primary}_centred") if metric in tasks.METRICS]


def run_rows(folder: Path) -> tuple[dict, list[dict]]:
    """A run folder -> its row of the table of runs, and its rows of the table of evaluations."""
    out = RunFolder(folder)
    config, metrics = out.config(), out.metrics()
    stamp = datetime.strptime(config["run_id"][-15:], "%Y%m%d_%H%M%S")
    training = [record for record in metrics if "loss" in record]
    evaluation = next((record for record in reversed(metrics) if "val_loss" in record), {})
    try:
        state = files.read_json(out.checkpoint("latest", ("state.json",)) / "state.json", "the state of training")
    except UserError:  # no checkpoint yet, or deleted to save room
        state = {}
    step = state.get("step", metrics[-1]["step"] if metrics else 0)
    horizon = next((f"{key}={config[key]:g}" for key in HORIZONS if config[key]), "")
    row = {
        "date": f"{stamp:%Y-%m-%d %H:%M}",
        "run": str(folder),
        "run_id": config["run_id"],
        "architecture": f"{config['encoder']}-{config['decoder']} H{config['hidden']} L{config['layers']} "
        f"C{config['concepts']}, {config['parameters'] / 1e6:.2f} M",
        "objective": config["objective"],
        "data": f"{config['dataset']} {','.join(map(str, config['lengths']))}",
        "machine": f"{config['ranks']} x {config['machine']['device']}",
        "horizon": horizon,
        "steps": f"{step}/{state.get('horizon') or '?'}",
        "Mtokens": step * config["tokens_per_step"] / 1e6,
        "loss": training[-1]["loss"] if training else None,
        **{key: evaluation.get(key) for key in LOGGED},
        "tokens_per_s": statistics.median(record["tokens_per_s"] for record in training) if training else None,
        "tag": config["tag"],
        "commit": config["commit"],
        "wandb": config.get("wandb_url"),
        "conclusion": conclusion(folder / "NOTE.md"),
    }
    return row, [line for path in sorted((folder / "eval").glob("*.json")) for line in eval_rows(folder, path)]


def eval_rows(folder: Path, path: Path) -> list[dict]:
    """A row for each split and metric of an evaluation; scores and floors 0-1. A damaged file is worth a warning."""
    rows = []
    try:
        record = files.read_json(path, "an evaluation")
        for split, found in record["splits"].items():
            for metric, value in found["metrics"].items():
                kind = {tasks.TASKS[record["task"]].primary: "lift"}.get(metric, f"lift_{metric.rpartition('_')[2]}")
                lift = found.get(kind, {}) if metric in primaries(record["task"]) else {}
                rows.append(
                    {
                        "run": str(folder),
                        "run_id": record["run_id"],
                        "checkpoint": record["checkpoint"],
                        "mode": record["mode"],
                        "head": record["protocol"]["head"],
                        "task": record["task"],
                        "split": split,
                        "metric": metric,
                        "score": value,
                        **{floor: found["floors"].get(floor, {}).get(metric) for floor in FLOORS},
                        **{f"over {key}": short_lift(lift[key]) if key in lift else None for key in LIFTS},
                    }
                )
    except (UserError, LookupError, TypeError, AttributeError, ValueError) as error:
        warn(f"{show(path)} is no evaluation ({reason(error)}); it is left out")
    return rows


def short_lift(lift: dict) -> str:
    floor = f" ({lift['floor']})" if "floor" in lift else ""
    return f"{lift['value']:+.3f} [{lift['low']:+.3f}, {lift['high']:+.3f}] {lift['verdict']}{floor}"


def conclusion(path: Path) -> str | None:
    """The first paragraph of a note that is no heading, in one line."""
    if not path.is_file():
        return None
    paragraphs = re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace"))
    texts = [" ".join(line for line in part.split("\n") if not line.startswith("#")) for part in paragraphs]
    return next((" ".join(text.split()) for text in texts if text.strip()), None)


def reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def markdown(rows: list[dict], columns: list[str]) -> str:
    """Rows as a table; numbers to four digits, nothing as a dash, no bar inside a cell."""

    def cell(value):
        text = "-" if value in (None, "") else f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    return table(columns, [[cell(row[column]) for column in columns] for row in rows])


def write_csv(path: Path, rows: list[dict], columns: list[str]):
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
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
        except (UserError, LookupError, TypeError, AttributeError, ValueError, OSError) as error:
            warn(f"{folder} is damaged or no run ({reason(error)}); it is left out")
            continue
        runs.append(row)
        evaluations += lines
    runs.sort(key=lambda row: (row["date"], row["run"]))
    primary = [row for row in evaluations if row["metric"] in primaries(row["task"])]
    print(f"## Training runs\n\n{markdown(runs, RUN_COLUMNS)}\n")
    print(f"## Evaluations\n\n{markdown(primary, EVAL_COLUMNS)}")
    try:
        write_csv(out / "registry_runs.csv", runs, RUN_COLUMNS)
        write_csv(out / "registry_evals.csv", evaluations, EVAL_COLUMNS)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); free it for registry_*.csv") from None
    say(f"{out}: registry_runs.csv, registry_evals.csv")
    return 0
