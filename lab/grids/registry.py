"""
The experiment log, read from run folders: a table of training runs and a table of evaluations.

The only file written by hand is a run's NOTE.md, whose first paragraph is its conclusion.
"""

import csv
import re
import statistics
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from lab import report
from lab.command import log, optional
from lab.configurator import UserError, show, warn
from lab.evaluation.tasks import TASKS
from lab.files import read_json, replacing, write_atomic
from lab.report import lift_text, score_rows
from lab.training.plan import HORIZONS
from lab.training.run_folder import RunFolder, completed

LOGGED = ("seconds", "loss", "val_loss", "val_loss_mlm15", "rank_slot_centred", "rank_raw", "rank_pooled")
LOGGED += ("input_share", "dead_slots", "delta_shuffle", "verdict", "learned", "tokens_per_s")


def run_numbers(out: RunFolder) -> dict:
    """The last value of each number in metrics.jsonl (step, tokens, losses, geometry, verdict); the median of the
    speeds; as KEY@0 the numbers before training."""
    metrics, numbers = out.metrics(), {}
    for record in metrics:
        numbers |= record
    if metrics and metrics[0]["step"] == 0:
        numbers |= {f"{key}@0": value for key, value in metrics[0].items() if key != "step"}
    if speeds := [record["tokens_per_s"] for record in metrics if "tokens_per_s" in record]:
        numbers["tokens_per_s"] = statistics.median(speeds)
    return numbers


def run_rows(folder: Path) -> tuple[dict, list[dict]]:
    """A run folder -> (its row in the table of runs, its rows in the table of evaluations)."""
    out = RunFolder(folder)
    config, numbers = completed(out.config(), folder), run_numbers(out)
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
    shown([row])
    evaluations = read_all(sorted((folder / "eval").glob("*.json")), eval_rows, "evaluation")
    return row, [line for lines in evaluations for line in lines]


def eval_rows(path: Path) -> list[dict]:
    """A row for each split and metric of an evaluation."""
    record = read_json(path, "an evaluation")
    lead = {"run": str(path.parent.parent)} | {key: record[key] for key in ("run_id", "checkpoint", "mode")}
    protocol = record["protocol"]
    lead["head"] = protocol["head"]
    lead |= {key: protocol[key] for key in ("concepts", "iterations") if protocol.get(key)}
    return shown(score_rows(record["task"], [record["splits"]], TASKS[record["task"]].lifts, **lead))


def shown(rows: list[dict]) -> list[dict]:
    """The rows, after checking that they can be printed: a row that cannot comes from a damaged or foreign file."""
    report.columns(rows), [plain(value) for row in rows for value in row.values()]
    return rows


def read_all(paths: list[Path], read, what: str) -> Iterator:
    """read(path) of each path, with a warning for each that cannot be read."""
    for path in paths:
        try:
            yield read(path)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, OSError) as error:
            reason = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            warn(f"{show(path)} is no {what} that can be read ({reason}); it is left out")


def conclusion(path: Path) -> str | None:
    """The first paragraph of a note that is not a heading, in one line."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    paragraphs = re.split(r"\n\s*\n", re.sub("^#.*\n?", "", text, flags=re.MULTILINE).strip())
    return " ".join(paragraphs[0].split()) or None


def plain(value):
    """A cell of a CSV file: scores and lifts from 0 to 1; the median of several seeds."""
    if isinstance(value, dict):
        return lift_text(value, "+.3f", 1) if "verdict" in value else value["value"]
    return value[0] if isinstance(value, tuple) else value


def write_csv(path: Path, rows: list[dict]):
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, report.keys_of(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: plain(value) for key, value in row.items()} for row in rows)


def registry(out: Path) -> int:
    """Prints the log of all run folders below `out` (primary metrics only), and writes it as a page with sortable
    columns, and with all metrics as CSV files."""
    if not out.is_dir():
        raise UserError(f"no folder {out}; give --out=DIR, the folder that holds the runs")
    folders = {path.parent for name in ("config.json", "metrics.jsonl") for path in out.rglob(name)}
    found = list(read_all(sorted(folders), run_rows, "run"))
    runs = sorted((row for row, _ in found), key=lambda row: (row["date"], row["run"]))
    evaluations = [line for _, lines in found for line in lines]
    primary = [row for row in evaluations if row["metric"] in TASKS[row["task"]].lifts]
    sections = [("Training runs", runs, []), ("Evaluations, x100", report.drop_empty_columns(primary), [])]
    print(report.sections_text(sections), end="")
    parts = report.sections_html([section for section in sections if section[1]])
    about = f"{len(runs)} runs and {len(primary)} scores below {out}. A click on a title sorts by its column."
    with optional("the registry's page or a CSV file"):
        write_csv(out / "registry_runs.csv", runs)
        write_csv(out / "registry_evals.csv", evaluations)
        write_atomic(out / "registry.html", report.page("All runs", [], about, [*parts, report.SORTING]))
        log(f"{out}: registry.html, registry_runs.csv, registry_evals.csv")
    return 0
