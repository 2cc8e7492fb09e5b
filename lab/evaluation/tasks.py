"""
Sentence tasks without any model: reads task files into rows and labels.

    pairs = Pairs("stsb", load_task("stsb", "data/glue"))
    answers = predict(vectors, pairs, "dev")               # vectors: one row per sentence of pairs.sentences
    task_scores(pairs.task, answers, pairs.labels["dev"])  # {"pearson": [..], "spearman": [..], ..}

`answers` are the predictions of F seeds of a method for n rows: {"cosines", "centred", "adapted": [F, n]} where the
label is a score, {"cosines", "predictions": [F, n]} for paraphrase tasks, whose label is yes or no. Models and floors
(baselines) are treated alike: each is one vector per sentence.

To add a task, add a row to TASKS, and a reader if its files have a new layout.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from lab.configurator import UserError, nearest, show, warn
from lab.report import HEADLINE, HEADLINE_ADAPTED

# ---------------------------------------------------------------------------------------------------------------------
# Readers: (path, columns, split) -> list of ("file:line", texts of these columns). A column is a name in the file's
# header, or a number where the file has no header; None: the task has single sentences.


def read_table(path: Path, columns, split: str, quoted: bool = False, skip_damaged: bool = False):
    """A tab-separated file. quoted: comma-separated with CSV quotes; skip_damaged: leaves out damaged lines instead of
    refusing them. Trailing columns that are not read may be missing."""
    name, lines = show(path), read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    if quoted:
        reader = csv.reader((f"{line}\n" for line in lines), strict=True)
        try:
            table = [(f"{name}:{reader.line_num}", fields) for fields in reader]
        except csv.Error as error:
            raise UserError(f"{name}:{reader.line_num}: {error}; correct the line") from None
    else:
        table = [(f"{name}:{i}", line.split("\t") if line else []) for i, line in enumerate(lines, 1)]
    named = [column for column in columns if isinstance(column, str)]
    titles = [title.strip().lower() for title in table.pop(0)[1]] if table and named else []
    if not table:
        raise UserError(f"{name} has no rows; put the original file there")
    for column in named:
        if column.lower() not in titles:
            raise UserError(f"{name}:1: no column named {column!r}; put the original file with its header")
    columns = [titles.index(column.lower()) if column in named else column for column in columns]
    needed = 1 + max(column for column in columns if column is not None)
    rows = []
    for where, fields in table:
        complete = needed <= len(fields) and not (titles and len(fields) > len(titles))
        texts = [None if i is None else fields[i].strip() for i in columns] if complete else [""]
        if "" not in (texts if skip_damaged else texts[:2]):
            rows.append((where, texts))
        elif not skip_damaged:
            what = (
                "an empty sentence" if complete else f"{len(fields)} columns where {len(titles) or needed} are expected"
            )
            raise UserError(f"{where}: {what}; correct or delete the line")
    if len(rows) < len(table):
        warn(f"{name}: {len(table) - len(rows)} damaged rows are left out")
    return rows


def read_mrpc(path: Path, columns, split: str):
    """MRPC's own files: GLUE's dev split is the part of the training file whose pairs of ids are in dev_ids.tsv."""
    rows = read_table(path, (*columns, "#1 ID", "#2 ID"), split)
    if split == "test":
        return [(where, texts[:3]) for where, texts in rows]
    ids = beside(path.parent, "dev_ids.tsv")
    if not ids.is_file():
        raise UserError(f"{show(ids)} is missing; it names the pairs of {path.name} that are GLUE's dev")
    dev = {tuple(texts) for _, texts in read_table(ids, (0, 1), split)}
    chosen = [(where, texts[:3]) for where, texts in rows if (tuple(texts[3:]) in dev) == (split == "dev")]
    if not chosen:
        raise UserError(f"{show(ids)} leaves no pair of {path.name} for {split}; put MRPC's own file there")
    return chosen


def read_sick(path: Path, columns, split: str):
    """SICK.txt: all pairs, with a column for the SemEval split."""
    name = {"train": "train", "dev": "trial", "test": "test"}[split]
    rows = read_table(path, (*columns, "SemEval_set"), split)
    return [(where, texts[:3]) for where, texts in rows if texts[3].lower() == name]


def read_sts(path: Path, columns, split: str):
    """A folder as SemEval published it: STS.input.NAME.txt (two sentences per line) and STS.gs.NAME.txt (a score per
    line), or NAME.test.tsv (`columns`). Pairs without a score are left out; each row's fourth text is NAME."""
    rows = []
    for file in sorted([*path.glob("STS*.input.*.txt"), *path.glob(f"*.{split}.tsv")]):
        if file.suffix == ".tsv":
            name, table = file.name.removesuffix(f".{split}.tsv"), read_table(file, columns, split)
        else:
            name, table = file.stem.split(".input.")[1], read_table(file, (0, 1), split)
            gold = file.with_name(file.name.replace(".input.", ".gs.", 1))
            scores = read_lines(gold)
            if len(scores) != len(table):
                line, counts = min(len(scores), len(table)) + 1, f"{len(scores)} scores for {len(table)} pairs"
                raise UserError(f"{show(gold)}:{line}: {counts} of {file.name}; put the original file")
            pairs = (texts for _, texts in table)
            table = [(f"{show(gold)}:{i + 1}", [*texts, scores[i].strip()]) for i, texts in enumerate(pairs)]
        scored = [(where, [*texts, name]) for where, texts in table if texts[2]]
        if not scored:
            raise UserError(f"{show(file)} has no pair with a score; put the original files or delete it")
        rows += scored
    return rows


def read_jsonl(path: Path, columns, split: str):
    """JSON lines as data/glue/prepare.py writes them: sentences (one or two), label, set (a name, or null)."""
    rows, count = [], 1 if columns[1] is None else 2
    for i, line in enumerate(read_lines(path), 1):
        where = f"{show(path)}:{i}"
        try:
            row = json.loads(line)
            texts, label, name = [text.strip() for text in row["sentences"]], str(row["label"]), row.get("set")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(f"{where}: no JSON object with sentences and label; correct or delete the line") from None
        if len(texts) != count or "" in texts:
            raise UserError(f"{where}: {count} sentences that are not empty are expected; correct or delete the line")
        rows.append((where, [*texts, None][:2] + [label] + ([] if name is None else [name])))
    if len({len(texts) for _, texts in rows}) != 1:
        raise UserError(f"{show(path)} has no rows, or a set in some of them only; run data/glue/prepare.py again")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a file, ended by LF, CR LF or CR alone; rarer line ends are part of a sentence."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{show(path)} cannot be read ({error.strerror}); check --data") from None
    try:
        text = data.decode("utf-8-sig")  # MRPC begins with a byte-order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{show(path)}:{line}: this is not UTF-8; save the file as UTF-8") from None
    lines = text.split("\n") if "\n" in text else text.split("\r")
    lines = [line.removesuffix("\r") for line in lines]
    return lines if lines[-1] else lines[:-1]  # the file may end in a line end


def beside(folder: Path, name: str) -> Path:
    """The file or folder of this name in `folder`, whatever its case."""
    path = folder / name
    if path.exists() or not folder.is_dir():
        return path
    return next((other for other in sorted(folder.iterdir()) if other.name.lower() == name.lower()), path)


@dataclass(frozen=True)
class Task:
    """kind: score: the label is a number, predicted by the cosine; paraphrase: yes or no, predicted by a threshold on
    the cosine; classification: needs a trained head; order: made from the run's own text (order.py)."""

    folder: str
    files: dict[str, str]  # split -> file; test splits without public labels are left out
    columns: tuple  # of the first sentence, the second sentence or None, the label
    kind: Literal["score", "paraphrase", "classification", "order"]
    labels: tuple  # score: (lowest, highest); else class names in lower case; of two classes the second is positive
    primary: str = "accuracy"  # the metric whose lift over the floors is computed
    reader: Callable = read_table
    layout: str = ""  # what to put into the folder, if it is not these files
    also: tuple = ()  # further layouts (files, columns, reader), tried in turn where a split's file is missing
    unique: bool = False  # drop pairs that occur more than once, see `without_repeats`

    @property
    def layouts(self) -> tuple:
        return ((self.files, self.columns, self.reader), *self.also)

    def file(self, split: str) -> str:
        """Name of the split's file; "" if no layout has that split."""
        return next((files[split] for files, *_ in self.layouts if split in files), "")

    def jsonl(self, split: str) -> str:
        """Name of the split's file from data/glue/prepare.py; tasks that share a folder differ in kind."""
        return f"{self.kind}.{split}.jsonl"

    @property
    def lifts(self) -> dict[str, str]:
        """Metric -> key of its lift (difference to a floor) in an evaluation record."""
        if self.kind == "order":
            return {"order_concepts": "lift_concepts", "order": "lift"}
        beyond = {f"{self.primary}_centred": "lift_centred", f"{self.primary}_adapted": "lift_adapted"}
        beyond |= {HEADLINE: "lift_beyond", HEADLINE_ADAPTED: "lift_beyond_adapted"}
        probe = {"accuracy_probe": "lift_probe"} if self.kind == "paraphrase" else {}
        return probe | {self.primary: "lift"} | (beyond if self.kind == "score" else {})

    def label(self, text: str, where: str) -> float:
        if self.kind != "score":
            if text.lower() not in self.labels:
                raise UserError(f"{where}: the label {text!r} is none of {', '.join(self.labels)}; correct the line")
            return self.labels.index(text.lower())
        low, high = self.labels
        try:
            score = float(text)
        except ValueError:
            raise UserError(f"{where}: the score {text!r} is no number; correct the line") from None
        if not low <= score <= high:
            raise UserError(f"{where}: the score {text} is outside {low} ... {high}; correct the line")
        return score


GLUE = {"train": "train.tsv", "dev": "dev.tsv"}
STSB = {split: f"sts-{split}.csv" for split in ("train", "dev", "test")}  # tab-separated, in spite of its name
SICK = {"train": "SICK_train.txt", "dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}
WHOLE = dict.fromkeys(SICK, "SICK.txt")
MRPC = {"train": "msr_paraphrase_train.txt", "dev": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"}
PAWS = {"train": "train.csv", "dev": "val.csv", "test": "test.csv"}
THREE = GLUE | {"test": "test.tsv"}
IMDB = {"train": "imdb_train.tsv", "test": "imdb_test.tsv"}
MNLI = {"train": "train.tsv", "dev": "dev_matched.tsv", "dev_mismatched": "dev_mismatched.tsv"}
SCORED, RELATED = ("sentence1", "sentence2", "score", "genre"), ("sentence_A", "sentence_B", "relatedness_score")
JUDGED, LABELLED = (*RELATED[:2], "entailment_judgment"), (*RELATED[:2], "entailment_label")
STRINGS = ("#1 String", "#2 String", "Quality")
QUESTIONS = ("question1", "question2", "is_duplicate")
PAIR = ("sentence1", "sentence2", "label")
YES_NO = ("0", "1")
ENTAILS = ("not_entailment", "entailment")
NLI = ("entailment", "neutral", "contradiction")
SEMEVAL = "STS.input.NAME.txt and STS.gs.NAME.txt, or NAME.test.tsv"

OF_STSB = Task("STS-B", STSB, (5, 6, 4, 0), "score", (0, 5), "pearson", also=((GLUE, SCORED, read_table),))

TASKS = {
    "stsb": OF_STSB,
    "stsb_v2": replace(OF_STSB, unique=True),
    "sick_r": Task("SICK", SICK, RELATED, "score", (1, 5), "pearson", also=((WHOLE, RELATED, read_sick),)),
    **{
        f"sts{year}": Task(f"STS{year}", {"test": "."}, (1, 2, 0), "score", (0, 5), "pearson", read_sts, SEMEVAL)
        for year in range(12, 17)
    },
    "mrpc": Task("MRPC", GLUE, STRINGS, "paraphrase", YES_NO, also=((MRPC, STRINGS, read_mrpc),)),
    "paws": Task(
        *("PAWS", PAWS, PAIR, "paraphrase", YES_NO),
        reader=partial(read_table, quoted=True),
        also=((THREE, PAIR, read_table),),
    ),
    "qqp": Task("QQP", GLUE, QUESTIONS, "paraphrase", YES_NO, reader=partial(read_table, skip_damaged=True)),
    "sick_e": Task("SICK", SICK, JUDGED, "classification", NLI, also=((WHOLE, LABELLED, read_sick),)),
    "cola": Task("CoLA", GLUE, (3, None, 1), "classification", YES_NO, "mcc"),
    "sst2": Task("SST-2", GLUE, ("sentence", None, "label"), "classification", YES_NO),
    "imdb": Task("IMDb", IMDB, (3, None, 2), "classification", YES_NO),
    "rte": Task("RTE", GLUE, PAIR, "classification", ENTAILS),
    "wnli": Task("WNLI", GLUE, PAIR, "classification", YES_NO),
    "qnli": Task("QNLI", GLUE, ("question", "sentence", "label"), "classification", ENTAILS),
    "mnli": Task("MNLI", MNLI, ("sentence1", "sentence2", "gold_label"), "classification", NLI),
    "order": Task("", {}, (), "order", (), "order", layout="nothing: it is made of the run's own held-out text"),
}
SEEDS = ("mrpc", "qqp", "stsb", "mnli")  # what `--tasks=seeds` means
CONCEPT = ("stsb", "sick_r", "mrpc", "paws")  # what `--tasks=concept` means
GROUPS = ("concept", "seeds", "sts", "all")
FETCH = "fetch them: python data/glue/prepare.py"


def check_names(wanted, zero_shot: bool = False):
    """UserError for an unknown task or group, or one without a zero-shot score."""
    for name in wanted:
        if name not in TASKS and name not in GROUPS:
            near = nearest(name, TASKS) or nearest(name, GROUPS)
            hint = f"did you mean {near}?" if near else f"there are: {', '.join([*TASKS, *GROUPS])}"
            raise UserError(f"--tasks={name} is no task; {hint}")
        if zero_shot and name in TASKS and TASKS[name].kind == "classification":
            able = [name for name, task in TASKS.items() if task.kind != "classification"]
            raise UserError(f"{name} has no zero-shot score, it needs a trained head; take of {', '.join(able)}")


def task_names(wanted, folder, zero_shot: bool = False) -> list[str]:
    """("stsb", "concept", ...) -> task names, each once; `all`: every task whose folder is in `folder`. zero_shot:
    leaves out classification tasks, and refuses one that is named."""
    able = [name for name, task in TASKS.items() if not zero_shot or task.kind != "classification"]
    there = [name for name in able if TASKS[name].folder and beside(Path(folder), TASKS[name].folder).is_dir()]
    groups = {"concept": CONCEPT, "seeds": [name for name in SEEDS if name in able], "all": there}
    groups["sts"] = [name for name in there if TASKS[name].reader is read_sts]
    names = []
    check_names(wanted, zero_shot)
    for name in wanted:
        if name == "sts" and not groups[name]:
            raise UserError(f"none of STS12 ... STS16 lies below {show(Path(folder))}; give --data=DIR that has some")
        names += groups.get(name, [name])
    return list(dict.fromkeys(names))


@dataclass
class Split:
    rows: list[tuple[str, ...]]  # n times a sentence or a pair of them
    labels: np.ndarray  # [n]: float64 scores or int64 classes
    sets: np.ndarray | None = None  # [n]: name of each row's subset, such as its genre


def load_task(name: str, folder) -> dict[str, Split]:
    """The splits of a task (some of train, dev, test) from its files below `folder`. JSON lines of
    data/glue/prepare.py are preferred to a file in an original layout."""
    task, folder = TASKS[name], Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {show(folder)}; give --data=DIR with the task files below it, or {FETCH}")
    splits, own = {}, beside(folder, task.folder)
    for split in dict.fromkeys(split for files, *_ in task.layouts for split in files):
        there = [(beside(own, files[split]), *how) for files, *how in task.layouts if split in files]
        there = [(own / task.jsonl(split), there[0][1], read_jsonl), *there]
        path, columns, reader = next((one for one in there if one[0].exists()), there[-1])
        if path.exists() and (rows := reader(path, columns, split)):
            labels = [task.label(texts[2], where) for where, texts in rows]
            sentences = [tuple(text for text in texts[:2] if text is not None) for _, texts in rows]
            sets = np.array([texts[3] for _, texts in rows]) if len(rows[0][1]) > 3 else None
            splits[split] = Split(sentences, np.array(labels, np.float64 if task.kind == "score" else np.int64), sets)
    if not splits:
        files = task.layout or " or ".join(", ".join(dict.fromkeys(files.values())) for files, *_ in task.layouts)
        also = "" if task.layout else f"; or {FETCH}"  # what has a layout of its own is not on the hub
        raise UserError(f"{name} has no files in {show(folder / task.folder)}; put there: {files}{also}")
    return without_repeats(splits) if task.unique else splits


def without_repeats(splits: dict[str, Split]) -> dict[str, Split]:
    """Drops every pair that occurs more than once, in either order, within or across splits."""
    times = Counter(frozenset(row) for split in splits.values() for row in split.rows)
    for name, split in splits.items():
        once = np.array([times[frozenset(row)] == 1 for row in split.rows])
        rows = [row for row, kept in zip(split.rows, once, strict=True) if kept]
        splits[name] = Split(rows, split.labels[once], None if split.sets is None else split.sets[once])
    return splits


# ---------------------------------------------------------------------------------------------------------------------
# Rows as numbers of sentences

FITTED_ON = 4000  # sentences that centring and adapting are fitted on, drawn at random from another split


class Pairs:
    """The distinct sentences of a task's splits, and each row as indices into them."""

    floors_of = "lab/evaluation/floors.py"  # the code of the floors, part of their cache key

    def __init__(self, name: str, splits: dict[str, Split], trained_on: str = ""):
        """trained_on: the split that a head is fine-tuned on, which is not evaluated; "": nothing is trained."""
        self.name, self.task, self.trained_on = name, TASKS[name], trained_on
        if trained_on and trained_on not in splits:
            file, other = self.task.file(trained_on), {"dev", "test"} <= splits.keys()
            remedy = f"put {self.task.folder}/{file} below --data" if file else "evaluate it with --mode=zero_shot"
            also = ", or write --train_on=dev, to be evaluated on test" if other and trained_on == "train" else ""
            raise UserError(f"{name} has no {trained_on} split; {remedy}{also}")
        number = {}
        self.index = {  # split -> [n, 2]; [n, 1] for tasks of single sentences
            name: np.array([[number.setdefault(text, len(number)) for text in row] for row in split.rows])
            for name, split in splits.items()
        }
        self.sentences = list(number)
        self.labels = {name: split.labels for name, split in splits.items()}
        self.sets = {name: split.sets for name, split in splits.items()}
        self.scored = [split for split in splits if split not in ("train", trained_on)]
        if not self.scored:
            raise UserError(f"{name} has no split to evaluate beside {', '.join(splits)}; put its other files there")
        self.fitted_on = {}  # evaluated split -> the split that idf, centring and threshold are fitted on
        for split in self.scored:
            others = [other for other in splits if other != split or len(self.task.files) == 1]  # train comes first
            if not others:
                raise UserError(f"only the {split} split is there, nothing to fit on; add the train split or another")
            self.fitted_on[split] = others[0]

    @property
    def fitting(self) -> str:
        """What idf, centring and threshold are fitted on, in words."""
        if len(self.task.files) == 1:
            return "has one split: idf and centring come from its own sentences, unlabelled"
        if "train" in self.index:
            return "has a train split: idf, centring and threshold come from it"
        return "has no train split: idf, centring and threshold come from the other labelled split"

    def digest(self) -> str:
        """Hash of the rows, labels and subsets of all splits, and of which splits are evaluated."""
        whole = hashlib.sha256(json.dumps([self.name, self.sentences, self.scored, self.trained_on]).encode())
        for split, index in self.index.items():
            sets = "" if self.sets[split] is None else "\n".join(self.sets[split])
            whole.update(f"{split} {index.shape} {sets}".encode() + index.tobytes() + self.labels[split].tobytes())
        return whole.hexdigest()[:16]

    def version(self) -> str:
        """The rows' part of a record's version."""
        return self.digest()

    def fitting_sentences(self, split: str) -> np.ndarray:
        """Indices [m] of the unlabelled sentences that centring and adapting are fitted on for an evaluated split:
        FITTED_ON sentences of its fitting split, drawn at random with a fixed seed (the first of STS-B are one genre).
        All of them if there are fewer, if the split is fitted on itself, and for paraphrase tasks."""
        other = self.fitted_on[split]
        rows = self.index[other].ravel()
        if len(rows) <= FITTED_ON or other == split or self.task.kind == "paraphrase":
            return rows
        return np.random.default_rng(0).choice(rows, FITTED_ON, replace=False)

    def needed(self) -> np.ndarray:
        """Indices of the sentences whose vectors `predict` uses."""
        parts = [self.index[split].ravel() for split in self.scored]
        return np.unique(np.concatenate(parts + [self.fitting_sentences(split) for split in self.scored]))
