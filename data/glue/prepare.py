"""
Sentence tasks in their original layouts, for eval_glue.py: from the Hugging Face hub, or from a local folder.

    python data/glue/prepare.py [--tasks=stsb,mrpc]
    python data/glue/prepare.py --from=DIR          # as published (lab/evaluation/tasks.py), or the hub's parquet files

The hub's parquet files are read (of the branch refs/convert/parquet, else of main), never a script. Row counts and
labels are compared with the official ones, and a difference is said. STS-B's test and SICK are not GLUE's; the test
labels of QQP, MNLI and QNLI are not public.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.command import command, log  # isort: skip  (first: it tells an older Python)
from typing import Annotated

from lab.configurator import PathStr, UserError, parse, show, warn
from lab.data import prepare
from lab.evaluation.tasks import TASKS, beside, load_task
from lab.files import locked, replacing, write_atomic

ROOT = Path(__file__).resolve().parents[2]
PARQUET = "refs/convert/parquet"

# Rows of a split, and of each class; scores: rows alone. Counted in the official files.
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

SICK_TXT = {  # which leaves out the pairs that occur twice
    "sick_r": {"train": 4439, "dev": 495, "test": 4906},
    "sick_e": {"train": (1274, 2524, 641), "dev": (143, 281, 71), "test": (1404, 2790, 712)},
}
MADE_OF = {"sick": ("sick_r", "sick_e"), "stsb": ("stsb", "stsb_v2")}  # tasks of the same files


@dataclass(frozen=True)
class Hub:
    """Where a task lies on the hub, and how its rows become the lines of our files. names: of the classes, in the order
    of the hub's numbers (none: scores); splits: ours -> the hub's."""

    repository: str
    config: str
    splits: dict[str, str]
    line: Callable  # (number, row, name of the label) -> fields
    header: tuple = ()
    names: tuple = ()


GLUE, TWO = "nyu-mll/glue", {"train": "train", "dev": "validation"}
THREE = TWO | {"test": "test"}
NLI = ("entailment", "neutral", "contradiction")
PAIR = ("index", "sentence1", "sentence2", "label")
NOT = ("entailment", "not_entailment")


def plain_pair(number, row, label):
    return number, row["sentence1"], row["sentence2"], label


HUB = {
    "stsb": Hub(GLUE, "stsb", TWO, lambda i, r, _: ("-", "-", "-", i, r["label"], r["sentence1"], r["sentence2"])),
    "sick": Hub(
        "RobZamp/sick",
        "default",
        THREE,
        lambda i, r, label: (i, r["sentence_A"], r["sentence_B"], r["relatedness_score"], label.upper()),
        ("pair_ID", "sentence_A", "sentence_B", "relatedness_score", "entailment_judgment"),
        NLI,
    ),
    "mrpc": Hub(
        GLUE,
        "mrpc",
        THREE,
        lambda i, r, label: (int(label == "equivalent"), i, i, r["sentence1"], r["sentence2"]),
        ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
        ("not_equivalent", "equivalent"),
    ),
    "paws": Hub("google-research-datasets/paws", "labeled_final", THREE, plain_pair, PAIR, ("0", "1")),
    "qqp": Hub(
        GLUE,
        "qqp",
        TWO,
        lambda i, r, label: (i, r["question1"], r["question2"], int(label == "duplicate")),
        ("id", "question1", "question2", "is_duplicate"),
        ("not_duplicate", "duplicate"),
    ),
    "cola": Hub(
        GLUE,
        "cola",
        TWO,
        lambda i, r, label: ("-", int(label == "acceptable"), "", r["sentence"]),
        (),
        ("unacceptable", "acceptable"),
    ),
    "sst2": Hub(
        GLUE,
        "sst2",
        TWO,
        lambda i, r, label: (r["sentence"], int(label == "positive")),
        ("sentence", "label"),
        ("negative", "positive"),
    ),
    "rte": Hub(GLUE, "rte", TWO, plain_pair, PAIR, NOT),
    "wnli": Hub(
        GLUE,
        "wnli",
        TWO,
        lambda i, r, label: (i, r["sentence1"], r["sentence2"], int(label == "entailment")),
        PAIR,
        ("not_entailment", "entailment"),
    ),
    "qnli": Hub(
        GLUE,
        "qnli",
        TWO,
        lambda i, r, label: (i, r["question"], r["sentence"], label),
        ("index", "question", "sentence", "label"),
        NOT,
    ),
    "mnli": Hub(
        GLUE,
        "mnli",
        {"train": "train", "dev": "validation_matched", "dev_mismatched": "validation_mismatched"},
        lambda i, r, label: (i, r["premise"], r["hypothesis"], label),
        ("index", "sentence1", "sentence2", "gold_label"),
        NLI,
    ),
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
    """Of file names those that hold a split, as the converter (CONFIG/SPLIT/0000.parquet) or an author (CONFIG/SPLIT-*)
    names them, in order."""
    pattern = rf"(.*/)?{re.escape(hub.config)}/{hub.splits[split]}(/[^/]*|-[^/]*)?\.parquet"
    return sorted(name for name in names if re.fullmatch(pattern, name))


def find(hub: Hub, split: str, folder: Path | None) -> list[Path]:
    """The parquet files of a split; none where the local folder has none."""
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
    """The rows of a file, each with the name of its label."""
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


def lines(hub: Hub, rows: list[dict], quoted: bool) -> str:
    """Rows as a file in the original layout; tabs and line ends inside a sentence become spaces."""
    table = [hub.header] if hub.header else []
    table += [hub.line(i, row, row["name"]) for i, row in enumerate(rows)]
    cells = [[" ".join(str("" if field is None else field).split()) for field in fields] for fields in table]
    if quoted:
        quote = '"'
        cells = [[f'"{field.replace(quote, quote * 2)}"' for field in fields] for fields in cells]
    return "".join(("," if quoted else "\t").join(fields) + "\n" for fields in cells)


def from_parquet(name: str, folder: Path | None, to: Path) -> bool:
    """Writes the files of a task; False where the local folder has none of its splits."""
    hub, task = HUB[name], TASKS[MADE_OF.get(name, [name])[0]]
    found = {split: [row for path in find(hub, split, folder) for row in rows_of(hub, path)] for split in hub.splits}
    found = {split: rows for split, rows in found.items() if rows}
    if not found:
        return False
    target = to / task.folder
    target.mkdir(parents=True, exist_ok=True)
    for split, rows in found.items():
        write_atomic(target / task.file(split), lines(hub, rows, quoted=name == "paws"))
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Files in the original layouts


def copy_files(name: str, folder: Path, to: Path) -> bool:
    """Copies what there is of a task; False where its folder is not there."""
    task = TASKS[MADE_OF.get(name, [name])[0]]
    own, target = beside(folder, task.folder), to / task.folder
    wanted = {file for files, *_ in task.layouts for file in files.values()} | {"dev_ids.tsv"}
    there = {file: path for file in sorted(wanted) if (path := beside(own, file)).is_file()}
    if there and own.resolve() != target.resolve():
        target.mkdir(parents=True, exist_ok=True)
        for file, path in there.items():
            with replacing(target / file) as temporary:
                shutil.copyfile(path, temporary)
    return bool(there)


def differences(name: str, folder: Path) -> list[str]:
    """What is not as in the official files, in a sentence each."""
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
    """Makes the files of these tasks and says how they differ from the official ones; returns the exit code."""
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
