"""
Sentence tasks for eval_glue.py, from the Hugging Face hub or from a local folder.

    python data/glue/prepare.py [--tasks=stsb,mrpc]
    python data/glue/prepare.py --from=DIR          # as published (lab/evaluation/tasks.py), or the hub's parquet files

The hub's parquet files (branch refs/convert/parquet, else main; never a script) are written as JSON lines, one object
per row: {"sentences": [..], "label": .., "set": null}. Files in original layouts are copied. Differences to the
official row and label counts are reported. STS-B's test split and SICK are not part of GLUE; the test labels of QQP,
MNLI and QNLI are not public.
"""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.command import command, log  # isort: skip  (first: it tells an older Python)
from typing import Annotated

from lab.configurator import PathStr, UserError, parse, show, warn
from lab.data import prepare
from lab.evaluation.tasks import TASKS, Task, beside, load_task
from lab.files import locked, replacing, write_atomic

ROOT = Path(__file__).resolve().parents[2]
PARQUET = "refs/convert/parquet"

# Rows of each class in the official files; for score tasks: rows.
OFFICIAL = {
    "stsb": {"train": 5749, "dev": 1500, "test": 1379},
    "stsb_v2": {"train": 5631, "dev": 1485, "test": 1362},  # MTEB's STSBenchmark.v2, made of the files of stsb
    "sick_r": {"train": 4500, "dev": 500, "test": 4927},
    "sick_e": {"train": (1299, 2536, 665), "dev": (144, 282, 74), "test": (1414, 2793, 720)},
    "mrpc": {"train": (1194, 2474), "dev": (129, 279), "test": (578, 1147)},
    "paws": {"train": (27572, 21829), "dev": (4461, 3539), "test": (4464, 3536)},
    "qqp": {"train": (229468, 134378), "dev": (25545, 14885)},
    "cola": {"train": (2528, 6023), "dev": (322, 721)},
    "sst2": {"train": (29780, 37569), "dev": (428, 444)},
    "rte": {"train": (1241, 1249), "dev": (131, 146)},
    "wnli": {"train": (323, 312), "dev": (40, 31)},
    "qnli": {"train": (52377, 52366), "dev": (2761, 2702)},
    "mnli": {"train": (130899, 130900, 130903), "dev": (3479, 3123, 3213), "dev_mismatched": (3463, 3129, 3240)},
}

SICK_TXT = {  # counts of SICK.txt, which leaves out pairs that occur twice
    "sick_r": {"train": 4439, "dev": 495, "test": 4906},
    "sick_e": {"train": (1274, 2524, 641), "dev": (143, 281, 71), "test": (1404, 2790, 712)},
}
MADE_OF = {"sick": ("sick_r", "sick_e"), "stsb": ("stsb", "stsb_v2")}  # tasks that share files


@dataclass(frozen=True)
class Hub:
    """A task on the hub. splits: our name -> the hub's; sentences, score: columns; names: of the classes, in the order
    of the hub's numbers."""

    repository: str
    config: str
    splits: dict[str, str]
    sentences: tuple[str, ...]
    names: tuple[str, ...] = ()
    score: str = "label"


GLUE, TWO = "nyu-mll/glue", {"train": "train", "dev": "validation"}
THREE = TWO | {"test": "test"}
MATCHED = {"train": "train", "dev": "validation_matched", "dev_mismatched": "validation_mismatched"}
NLI = ("entailment", "neutral", "contradiction")
PAIR, SINGLE, QUESTIONS = ("sentence1", "sentence2"), ("sentence",), ("question1", "question2")
NOT = ("entailment", "not_entailment")

HUB = {
    "stsb": Hub(GLUE, "stsb", TWO, PAIR),
    "sick": Hub("RobZamp/sick", "default", THREE, ("sentence_A", "sentence_B"), NLI, "relatedness_score"),
    "mrpc": Hub(GLUE, "mrpc", THREE, PAIR, ("not_equivalent", "equivalent")),
    "paws": Hub("google-research-datasets/paws", "labeled_final", THREE, PAIR, ("0", "1")),
    "qqp": Hub(GLUE, "qqp", TWO, QUESTIONS, ("not_duplicate", "duplicate")),
    "cola": Hub(GLUE, "cola", TWO, SINGLE, ("unacceptable", "acceptable")),
    "sst2": Hub(GLUE, "sst2", TWO, SINGLE, ("negative", "positive")),
    "rte": Hub(GLUE, "rte", TWO, PAIR, NOT),
    "wnli": Hub(GLUE, "wnli", TWO, PAIR, ("not_entailment", "entailment")),
    "qnli": Hub(GLUE, "qnli", TWO, ("question", "sentence"), NOT),
    "mnli": Hub(GLUE, "mnli", MATCHED, ("premise", "hypothesis"), NLI),
}


@dataclass
class Glue:
    tasks: Annotated[tuple[str, ...], f"which of {', '.join(HUB)}; all: those that can be had"] = ("all",)
    from_: Annotated[
        PathStr, "local folder, in the original layouts or with the hub's parquet files; empty: the hub"
    ] = ""
    data_dir: Annotated[PathStr, "the files go into its folder glue; empty: data/ beside the scripts"] = ""

    def __post_init__(self):
        for name in self.tasks:
            if name != "all" and name not in HUB:
                raise ValueError(f"there is no task {name!r}; write --tasks= with some of {', '.join(HUB)}")


# ---------------------------------------------------------------------------------------------------------------------
# The hub's parquet files


def choose(names: list[str], hub: Hub, split: str) -> list[str]:
    """The file names of a split, in order, as named by the converter (CONFIG/SPLIT/0000.parquet) or by an author
    (CONFIG/SPLIT-*)."""
    pattern = rf"(.*/)?{re.escape(hub.config)}/{hub.splits[split]}(/[^/]*|-[^/]*)?\.parquet"
    return sorted(name for name in names if re.fullmatch(pattern, name))


def find(hub: Hub, split: str, folder: Path | None) -> list[Path]:
    """The parquet files of a split; [] if the local folder has none."""
    if folder:
        root = folder / hub.repository.split("/")[1]
        names = [path.relative_to(root).as_posix() for path in root.rglob("*.parquet")]
        return [root / name for name in choose(names, hub, split)]
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RevisionNotFoundError

    for revision in (PARQUET, "main"):
        try:
            info = HfApi().dataset_info(hub.repository, revision=revision, timeout=8)  # a listing would try for minutes
            names = choose([file.rfilename for file in info.siblings], hub, split)
            options = {"repo_type": "dataset", "revision": revision, "etag_timeout": 8}
            if names:
                return [Path(hf_hub_download(hub.repository, name, **options)) for name in names]
        except RevisionNotFoundError:
            continue
        except Exception as error:  # no network, and more
            remedy = "connect to the network, or give --from=DIR with the files"
            raise prepare.offline(f"{hub.repository} {hub.config}", error, remedy) from None
    raise UserError(f"{hub.repository} has no {hub.config} {split}, neither on {PARQUET} nor on main; give --from=DIR")


def rows_of(hub: Hub, path: Path) -> list[dict]:
    """The rows of a file, each with the name of its class."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except Exception as error:  # pyarrow's are of many kinds
        raise UserError(f"{show(path)} cannot be read ({error}); download it again") from None
    features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    rows = table.to_pylist()
    if not hub.names:
        return [row | {"name": ""} for row in rows]
    column = next((c for c in ("label", "entailment_judgment") if c in table.column_names), None)
    if column is None:
        raise UserError(f"{show(path)} has no column label; take the file of {hub.repository}")
    declared = features.get(column, {}).get("names")
    if declared and tuple(declared) != hub.names:
        warn(f"{hub.repository} {hub.config} numbers its labels {declared}, not {list(hub.names)}; its order is taken")
    names = tuple(declared or hub.names)
    for row in rows:
        value = row[column]
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise UserError(
                f"{show(path)}: label {value!r} is none of {', '.join(names)}; a split without public labels?"
            )
        row["name"] = names[value]
    return rows


def json_lines(task: Task, hub: Hub, rows: list[dict]) -> str:
    """Rows of the hub as JSON lines of the task; rows with an empty sentence are left out."""
    lines = []
    for row in rows:
        sentences = [" ".join(str(row[column] or "").split()) for column in hub.sentences]
        name = row["name"]
        label = row[hub.score] if task.kind == "score" else name if name in task.labels else str(hub.names.index(name))
        if all(sentences):
            lines.append(json.dumps({"sentences": sentences, "label": label, "set": None}, ensure_ascii=False) + "\n")
    if len(lines) < len(rows):
        warn(f"{task.folder}: {len(rows) - len(lines)} rows with an empty sentence are left out")
    return "".join(lines)


def from_parquet(name: str, folder: Path | None, to: Path) -> bool:
    """Writes the files of a task; False if the local folder has none of its splits."""
    hub, tasks = HUB[name], [TASKS[made] for made in MADE_OF.get(name, [name])]
    found = {split: [row for path in find(hub, split, folder) for row in rows_of(hub, path)] for split in hub.splits}
    for split, rows in found.items():
        for task in {task.kind: task for task in tasks}.values() if rows else ():
            path = to / task.folder / task.jsonl(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json_lines(task, hub, rows))
    return any(found.values())


# ---------------------------------------------------------------------------------------------------------------------
# Files of a local folder


def copy_files(name: str, folder: Path, to: Path) -> bool:
    """Copies a task's files, JSON lines or original layout; False if there are none. Deletes JSON lines of an earlier
    call, which would be preferred."""
    tasks = [TASKS[made] for made in MADE_OF.get(name, [name])]
    own, target = beside(folder, tasks[0].folder), to / tasks[0].folder
    files = [files for files, *_ in tasks[0].layouts]
    ours = {task.jsonl(split) for task in tasks for layout in files for split in layout}
    wanted = ours | {file for layout in files for file in layout.values()} | {"dev_ids.tsv"}
    there = {file: path for file in sorted(wanted) if (path := beside(own, file)).is_file()}
    if there and own.resolve() != target.resolve():
        target.mkdir(parents=True, exist_ok=True)
        for file, path in there.items():
            with replacing(target / file) as temporary:
                shutil.copyfile(path, temporary)
        for file in ours - there.keys():
            (target / file).unlink(missing_ok=True)
    return bool(there)


def differences(name: str, folder: Path) -> list[str]:
    """Differences to the official files, one sentence each."""
    found, sentences = load_task(name, folder), []
    for split, official in OFFICIAL[name].items():
        if split not in found:
            sentences.append(f"{name}: there is no {split} split")
            continue
        labels = found[split].labels
        own, other = len(labels), SICK_TXT.get(name, {}).get(split)
        if isinstance(official, tuple):
            own = tuple(int((labels == number).sum()) for number in range(len(official)))
            if own != official and sorted(own) == sorted(official):
                sentences.append(
                    f"{name} {split}: classes {own}, officially {official}: is the order of labels another?"
                )
                continue
        if own not in (official, other):
            sentences.append(f"{name} {split}: rows {own}, officially {official}")
    return sentences


def main(argv):
    config = parse(argv, Glue, prog="data/glue/prepare.py", doc=__doc__, root=ROOT, positional=False).make(Glue)
    folder = Path(config.from_) if config.from_ else None
    if folder and not folder.is_dir():
        raise UserError(f"--from={config.from_} is no folder; name the one with the task files")
    to = Path(config.data_dir or ROOT / "data") / "glue"
    with locked(to, "name another --data_dir", wait=True):
        return make(config.tasks, folder, to)


def make(names: tuple[str, ...], folder: Path | None, to: Path) -> int:
    """Makes the files of these tasks and reports differences to the official ones -> exit code."""
    everything, done = "all" in names, []
    for name in HUB if everything else names:
        try:
            if not ((folder and copy_files(name, folder, to)) or from_parquet(name, folder, to)):
                raise UserError(f"{name} is not in {show(folder)}, neither in its original layout nor as parquet")
            done += MADE_OF.get(name, [name])
        except UserError as error:
            if not folder or not everything or (name == [*HUB][-1] and not done):
                raise
            warn(f"{error}; it is left out")
    for name in done:
        told = differences(name, to)
        log("\n".join(told) or f"{name}: rows and labels as in the official files")
    return 0


if __name__ == "__main__":
    command(main)
