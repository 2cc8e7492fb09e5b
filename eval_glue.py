"""
Judges a run on sentence tasks, next to the floors it must beat.

    python eval_glue.py --run=out/quickstart --tasks=concept

zero_shot: nothing is trained. A sentence's vector is the mean of its concepts; likeness is the cosine, raw and centred
(less the mean over the task's first 2,000 train sentences); yes/no questions are answered by a threshold fitted on the
train split. Writes RUN/eval/zero_shot_TASK.json and prints one table. `concept` is stsb, sick_r, mrpc and paws.

What the floors say does not depend on the training, so it is kept in `.floors/` beside the run folder, under a hash of
the architecture, the tokenizer, the task's rows and the code: runs that share those compute it once.
"""

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from lab import command, files, runs, tasks
from lab.command import say
from lab.configurator import UserError, parse, warn
from lab.report import table
from lab.runs import LoadedRun

ROOT = Path(__file__).resolve().parent
UNTRAINED_SEEDS = 5


@dataclass
class EvalConfig:
    run: Annotated[str, "run folder that train.py wrote"] = ""
    tasks: Annotated[tuple[str, ...], "tasks, or concept (stsb, sick_r, mrpc, paws), or all that are there"] = (
        "concept",
    )
    mode: Annotated[Literal["zero_shot", "fine_tune"], "judge the vectors as they are, or train a head"] = "zero_shot"
    seeds: Annotated[int, "fine_tune: seeds 0 ... N-1"] = 3
    data: Annotated[str, "folder of the task files, in their original layout"] = "data/glue"
    ckpt: Annotated[str, "latest, best or a step"] = "latest"
    device: Annotated[str, "auto, cpu or cuda"] = "auto"

    def __post_init__(self):
        if not self.run:
            raise ValueError("no run is given; write --run=out/quickstart")
        if not self.tasks:
            raise ValueError("no task is given; write --tasks=concept")
        if self.seeds < 1:
            raise ValueError(f"seeds = {self.seeds} is below 1; write --seeds=3")
        if self.mode == "fine_tune":
            raise ValueError("mode = 'fine_tune' is not there yet; write --mode=zero_shot")


def choose_tasks(wanted, data: Path) -> list[str]:
    names = tasks.task_names(wanted, data)
    for name in names:
        if not tasks.TASKS[name].zero_shot and name in wanted:
            able = ", ".join(n for n, task in tasks.TASKS.items() if task.zero_shot)
            raise UserError(f"{name} has no zero-shot score, it needs a trained head; take of {able}")
    names = [name for name in names if tasks.TASKS[name].zero_shot]
    if not names:
        raise UserError(f"no task with a zero-shot score lies below {data}; give --data=DIR with the task files")
    return names


# ---------------------------------------------------------------------------------------------------------------------
# The floors that need a model


class Twin(LoadedRun):
    """The architecture of a run with the weights of an initial seed; texts come as ids that are already there."""

    def __init__(self, run: LoadedRun, seed: int, ids: dict[str, list[int]]):
        super().__init__(runs.untrained(run.model, seed), run.tokenizer, run.config, step=0)
        self.ids, self.warned = ids, True

    def encode_texts(self, texts):
        return [self.ids[text] for text in texts]


def embed(run: LoadedRun, pairs: tasks.Pairs, fit: bool) -> np.ndarray:
    """Vectors [U, H] of pairs.sentences; zero where nobody will look."""
    needed = pairs.needed(fit)
    vectors = np.zeros((len(pairs.sentences), run.config["hidden"]), np.float32)
    vectors[needed] = run.embed([pairs.sentences[i] for i in needed]).numpy()
    return vectors


def model_floors(run: LoadedRun, name: str, pairs: tasks.Pairs) -> dict[str, dict[str, dict]]:
    """token_idf and untrained: floor -> split -> answers of 5 initial seeds."""
    fit = bool(tasks.TASKS[name].classes)
    rows = run.encode_texts(pairs.sentences)
    ids = dict(zip(pairs.sentences, rows, strict=True))
    counts = tasks.count_matrix(rows, run.model.config.vocab_size)
    fitting = set(pairs.fitted_on.values())
    means = {other: tasks.averages(counts, tasks.idf(counts[pairs.index[other].ravel()])) for other in fitting}
    found = {floor: {split: [] for split in pairs.scored} for floor in ("token_idf", "untrained")}
    for seed in range(UNTRAINED_SEEDS):
        twin = Twin(run, seed, ids)
        vectors = embed(twin, pairs, fit)
        tokens = twin.model.encoder.tokens.weight.detach().cpu().double().numpy()  # [V, T]
        lexical = {other: mean @ tokens for other, mean in means.items()}
        for split, other in pairs.fitted_on.items():
            found["token_idf"][split].append(tasks.answer(lexical[other], pairs, split, fit))
            found["untrained"][split].append(tasks.answer(vectors, pairs, split, fit))
    return {floor: {split: tasks.stack(runs) for split, runs in splits.items()} for floor, splits in found.items()}


def floors_key(run: LoadedRun, name: str, pairs: tasks.Pairs) -> str:
    """Hash of all that the floors depend on, the code included: an edited model never meets another's floors."""
    digest = hashlib.sha256()
    for file in ("model.py", "lab/dataset.py", "lab/runs.py", "lab/tasks.py", "eval_glue.py"):
        digest.update((ROOT / file).read_bytes())
    shape = asdict(run.model.config) | {"mask_id": run.model.mask_id, "chunk": run.max_length}
    digest.update(json.dumps([shape, run.config["tokenizer_hash"], name, pairs.sentences]).encode())
    for split, index in pairs.index.items():
        digest.update(split.encode() + index.tobytes() + pairs.labels[split].tobytes())
    return digest.hexdigest()[:16]


def all_floors(run: LoadedRun, name: str, pairs: tasks.Pairs, folder: Path) -> dict[str, dict[str, dict]]:
    """floor -> split -> answers, from `folder` or computed and put there."""
    path = folder / f"{name}_{floors_key(run, name, pairs)}.npz"
    found = {}
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            for key in arrays.files:
                floor, split, kind = key.split("/")
                found.setdefault(floor, {}).setdefault(split, {})[kind] = arrays[key]
        return found
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # absent or damaged
        pass
    say(f"{name}: floors, and the untrained model at {UNTRAINED_SEEDS} seeds")
    found = tasks.floors(name, pairs) | model_floors(run, name, pairs)
    try:
        folder.mkdir(exist_ok=True)
        with files.replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(
                file, **{f"{f}/{s}/{k}": v for f, d in found.items() for s, a in d.items() for k, v in a.items()}
            )
    except OSError as error:
        warn(f"{folder} cannot be written ({error.strerror}); the floors will be computed again next time")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Zero-shot


def judge(name: str, ours: dict[str, dict], floors: dict[str, dict], pairs: tasks.Pairs) -> dict[str, dict]:
    """split -> {metrics, floors, untrained_range, lift}; for scores also lift_centred."""
    result = {}
    for split, labels in pairs.labels.items():
        if split not in pairs.scored:
            continue
        answers = {floor: splits[split] for floor, splits in floors.items()}
        runs = {floor: tasks.scores(name, answer, labels) for floor, answer in answers.items()}  # floor: metric: [F]
        means = {floor: {metric: float(v.mean()) for metric, v in found.items()} for floor, found in runs.items()}
        metrics = {metric: float(np.median(v)) for metric, v in tasks.scores(name, ours[split], labels).items()}
        untrained_range = {metric: [float(v.min()), float(v.max())] for metric, v in runs["untrained"].items()}
        result[split] = {"metrics": metrics, "floors": means, "untrained_range": untrained_range}
        primary = tasks.TASKS[name].primary
        for key, metric in (("lift", primary), ("lift_centred", f"{primary}_centred")):
            if metric in metrics:
                kind = tasks.METRICS[metric][1]
                best = max(means, key=lambda floor: means[floor][metric])  # noqa: B023
                others = {floor: answers[floor][kind] for floor in (best, "token_idf", "untrained")}
                lifts = tasks.lifts(metric, ours[split][kind], others, labels)
                named = {floor: lifts[floor] for floor in ("token_idf", "untrained")}
                result[split][key] = {"best_floor": {"floor": best, **lifts[best]}, **named}
    return result


def zero_shot(run: LoadedRun, name: str, pairs: tasks.Pairs, cache: Path) -> dict:
    """The record of a task, as it is written to RUN/eval/zero_shot_<task>.json."""
    fit = bool(tasks.TASKS[name].classes)
    floors = all_floors(run, name, pairs, cache)
    say(f"{name}: {len(pairs.sentences):,} sentences")
    vectors = embed(run, pairs, fit)
    ours = {split: tasks.answer(vectors, pairs, split, fit) for split in pairs.scored}
    splits = judge(name, ours, floors, pairs)
    protocol = {
        "head": "threshold on the cosine" if fit else "cosine",
        "pooling": "mean of concepts",
        "lr": None,
        "epochs": None,
        "batch": None,
        "max_length": run.max_length,
        "selection": "best accuracy on the fitting split" if fit else "none",
        "pairs": "encoded apart",
        "train_rows": {split: len(pairs.labels[other]) for split, other in pairs.fitted_on.items()},
        "eval_rows": {split: len(pairs.labels[split]) for split in pairs.scored},
        "fitted_on": pairs.fitted_on,  # idf, centring and threshold
        "dtype": "float32",
    }
    return {
        "task": name,
        "mode": "zero_shot",
        "run_id": run.config["run_id"],
        "checkpoint": f"ckpt_{run.step}",
        "splits": splits,
        "protocol": protocol,
        "seeds": [0],
        "per_seed": [{split: found["metrics"] for split, found in splits.items()}],
    }


# ---------------------------------------------------------------------------------------------------------------------
# The table


def number(x: float) -> str:
    return f"{100 * x:5.1f}"


def interval(lift: dict) -> str:
    return f"{100 * lift['value']:+.1f} [{100 * lift['low']:+.1f}, {100 * lift['high']:+.1f}] {lift['verdict']}"


def score_table(records: list[dict]) -> str:
    """One line a task, split and metric, everything x100; lift where it is defined."""
    present = {floor for record in records for split in record["splits"].values() for floor in split["floors"]}
    order = ("majority", "word_tfidf", "char_tfidf", "random_vectors", "token_idf", "untrained")
    columns = [floor for floor in order if floor in present]
    rows = []
    for record in records:
        for split, found in record["splits"].items():
            for metric, value in found["metrics"].items():
                row = [record["task"], split, metric.replace("_", " "), number(value)]
                for floor in columns:
                    cell = number(found["floors"][floor][metric]) if floor in found["floors"] else "-"
                    if floor == "untrained":
                        cell += " ({}..{})".format(*(number(x).strip() for x in found["untrained_range"][metric]))
                    row.append(cell)
                lift = {tasks.TASKS[record["task"]].primary: "lift", "pearson_centred": "lift_centred"}.get(metric)
                if lift:
                    best = found[lift]["best_floor"]
                    row.append(f"{interval(best)} ({best['floor']})")
                    row += [interval(found[lift][floor]) for floor in ("token_idf", "untrained")]
                rows.append(row + [""] * (len(columns) + 7 - len(row)))
    lifts = ["over the best floor", "over token_idf", "over untrained"]
    return table(["task", "split", "metric", "score", *columns, *lifts], rows)


def main(argv) -> int:
    parsed = parse(argv, EvalConfig, prog="eval_glue.py", doc=__doc__, root=ROOT, positional=False)
    config = parsed.make(EvalConfig)
    parsed.unused(["seeds"], "by mode = 'zero_shot', in which nothing is drawn")
    data = Path(config.data) if "data" in parsed.given else ROOT / "data" / "glue"
    names = choose_tasks(config.tasks, data)
    loaded = {name: tasks.Pairs(tasks.load_task(name, data)) for name in names}  # all mistakes in files first
    run = runs.load_run(config.run, config.ckpt, config.device)
    folder = Path(config.run) / "eval"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); copy the run to where you may write") from None
    records = []
    for name, pairs in loaded.items():
        record = zero_shot(run, name, pairs, Path(config.run).resolve().parent / ".floors")
        files.write_atomic(folder / f"zero_shot_{name}.json", json.dumps(record, indent=1) + "\n")
        records.append(record)
    print(f"{run.config['run_id']}, ckpt_{run.step}, zero-shot, x100; lift with 95 % intervals\n")
    print(score_table(records))
    for name, pairs in loaded.items():
        others = {other for other in pairs.fitted_on.values() if other != "train"}
        if others:
            print(f"\n{name} has no train split: idf, centring and threshold come from the other labelled split")
    return 0


if __name__ == "__main__":
    command.command(main)
