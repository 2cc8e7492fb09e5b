"""
Evaluation without a model: task files -> rows, metrics, the floors a score must be compared with, and the paired
bootstrap that says whether it is above them.

    splits = load_task("stsb", "data/glue")            # {"train": Split, "dev": Split, "test": Split}
    pairs = Pairs(splits)
    answers = answer(vectors, pairs, "dev", fit=False)  # vectors: one row per sentence of pairs.sentences
    scores("stsb", answers, splits["dev"].labels)       # {"pearson": .., "spearman": .., ..}

`answers` holds what a method says of each pair, by F runs of it (seeds) and n pairs: {"cosine", "centred": [F, n]} for
tasks of scores, {"class": [F, n]} for others. A floor and a model are the same thing here: one vector a sentence.

Definitions. Words are `[a-z0-9']+` of the lower-cased text; character n-grams (3, 4, 5) lie inside one word padded with
a space on each side; tf is the raw count, idf = ln((1 + n) / (1 + df)) + 1 over both sentences of the train pairs.
Where a task has no train split, the other labelled split serves for idf, centring and thresholds alike.
"""

import csv
import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from lab.configurator import UserError, nearest, show, warn

# ---------------------------------------------------------------------------------------------------------------------
# The tasks and their files


@dataclass(frozen=True)
class Task:
    """columns: first sentence, second sentence or None, label: by the name in the header, or by number where the files
    have none. Test sets whose labels are not published are left alone."""

    folder: str
    files: dict[str, str]  # split -> name
    columns: tuple
    classes: tuple[str, ...] = ()  # label texts, in the order of the class numbers; 1 is the positive class of two
    range: tuple[float, float] | None = None  # or: the label is a score in this range
    primary: str = "accuracy"  # the metric the lift is about
    zero_shot: bool = False  # cosines answer it: scores, and yes/no questions of likeness
    fields: int | None = None  # columns of files without header, at least


GLUE = {"train": "train.tsv", "dev": "dev.tsv"}
STSB = {split: f"sts-{split}.csv" for split in ("train", "dev", "test")}
SICK = {"train": "SICK_train.txt", "dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}
MRPC = {"train": "msr_paraphrase_train.txt", "test": "msr_paraphrase_test.txt"}  # dev is part of train
PAWS = {"train": "train.csv", "dev": "val.csv", "test": "test.csv"}
MNLI = {"train": "train.tsv", "dev": "dev_matched.tsv"}
RELATED = ("sentence_A", "sentence_B", "relatedness_score")
JUDGED = ("sentence_A", "sentence_B", "entailment_judgment")
PAIR = ("sentence1", "sentence2", "label")
YES_NO = ("0", "1")
ENTAILS = ("not_entailment", "entailment")
NLI = ("entailment", "neutral", "contradiction")

TASKS = {
    "stsb": Task("STS-B", STSB, (5, 6, 4), range=(0, 5), primary="pearson", zero_shot=True, fields=7),
    "sick_r": Task("SICK", SICK, RELATED, range=(1, 5), primary="pearson", zero_shot=True),
    "mrpc": Task("MRPC", MRPC, ("#1 String", "#2 String", "Quality"), YES_NO, zero_shot=True),
    "paws": Task("PAWS", PAWS, PAIR, YES_NO, zero_shot=True),
    "qqp": Task("QQP", GLUE, ("question1", "question2", "is_duplicate"), YES_NO, zero_shot=True),
    "sick_e": Task("SICK", SICK, JUDGED, tuple(name.upper() for name in NLI)),
    "cola": Task("CoLA", GLUE, (3, None, 1), YES_NO, primary="mcc", fields=4),
    "sst2": Task("SST-2", GLUE, ("sentence", None, "label"), YES_NO),
    "rte": Task("RTE", GLUE, PAIR, ENTAILS),
    "wnli": Task("WNLI", GLUE, PAIR, YES_NO),
    "qnli": Task("QNLI", GLUE, ("question", "sentence", "label"), ENTAILS),
    "mnli": Task("MNLI", MNLI, ("sentence1", "sentence2", "gold_label"), NLI),
}
CONCEPT = ("stsb", "sick_r", "mrpc", "paws")  # what `--tasks=concept` means: likeness, without any training


def task_names(wanted, folder) -> list[str]:
    """("stsb", "concept", ...) -> task names, each once; `all` is every task whose folder lies below `folder`."""
    found = []
    for name in wanted:
        if name not in TASKS and name not in ("concept", "all"):
            near = nearest(name, [*TASKS, "concept", "all"])
            hint = f"did you mean {near}?" if near else f"there are: {', '.join(TASKS)}, concept, all"
            raise UserError(f"--tasks={name} is no task; {hint}")
        found += CONCEPT if name == "concept" else [name]
    if "all" in found:
        found += [name for name in TASKS if (Path(folder) / TASKS[name].folder).is_dir()]
    return [name for name in dict.fromkeys(found) if name != "all"]


# ---------------------------------------------------------------------------------------------------------------------
# Reading. Every mistake in a file is a UserError that names file:line.


@dataclass
class Split:
    """n rows: a sentence or a pair of them, and labels [n]: float64 scores or int64 classes."""

    a: list[str]
    b: list[str] | None
    labels: np.ndarray

    def __len__(self):
        return len(self.a)


def read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{show(path)} cannot be read ({error.strerror}); check --data") from None
    try:
        return data.decode("utf-8-sig")  # MRPC begins with a byte-order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{show(path)}:{line}: this is not UTF-8; save the file as UTF-8") from None


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Rows of a file with their line numbers: comma-separated and quoted in PAWS, else tab-separated, quotes are text.
    STS-B's .csv are tab-separated too."""
    text = read_text(path)
    if path.suffix == ".csv" and "\t" not in text.partition("\n")[0]:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            return [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise UserError(f"{show(path)}:{reader.line_num}: {error}; correct the quoting") from None
    lines = text.split("\n")  # not splitlines: sentences may hold its rarer line ends
    if not lines[-1].strip():
        lines.pop()
    return [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, 1)]


def read_rows(path: Path, columns, fields=None, lenient=False):
    """The named (or numbered) columns of each row -> list of (line, texts). `lenient` leaves out rows with too few or
    empty columns, which the published QQP has, with a warning."""
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{show(path)} is empty; put the original file there")
    exact = None
    if any(isinstance(column, str) for column in columns):
        (_, header), lines = lines[0], lines[1:]
        header, exact = [name.strip() for name in header], len(header)
        for column in columns:
            if column is not None and column not in header:
                raise UserError(f"{show(path)}:1: no column named {column!r}; put the original file with its header")
        columns = [None if column is None else header.index(column) for column in columns]
    needed = exact or fields
    rows = []
    for number, row in lines:
        texts = [None if i is None else row[i].strip() if i < len(row) else "" for i in columns]
        complete = len(row) == exact if exact else len(row) >= needed
        if lenient and not (complete and all(text != "" for text in texts)):
            continue
        if not complete:
            raise UserError(
                f"{show(path)}:{number}: {len(row)} columns where {needed} are expected; correct or delete the line"
            )
        if any(text == "" for text in texts[:2]):
            raise UserError(f"{show(path)}:{number}: an empty sentence; write the sentence or delete the line")
        rows.append((number, texts))
    if not rows:
        raise UserError(f"{show(path)} has no rows; put the original file there")
    if lenient and len(rows) < len(lines):
        warn(f"{show(path)}: {len(lines) - len(rows)} damaged rows are left out")
    return rows


def read_label(text: str, task: Task, where: str):
    if task.classes:
        if text not in task.classes:
            raise UserError(f"{where}: the label {text!r} is none of {', '.join(task.classes)}; correct the line")
        return task.classes.index(text)
    low, high = task.range
    try:
        score = float(text)
    except ValueError:
        raise UserError(f"{where}: the score {text!r} is no number; correct the line") from None
    if not low <= score <= high:
        raise UserError(f"{where}: the score {text} is outside {low} ... {high}; correct the line")
    return score


def make_split(path: Path, rows, task: Task) -> Split:
    labels = [read_label(label, task, f"{show(path)}:{number}") for number, (_, _, label) in rows]
    return Split(
        [a for _, (a, _, _) in rows],
        None if task.columns[1] is None else [b for _, (_, b, _) in rows],
        np.array(labels, np.int64 if task.classes else np.float64),
    )


def load_task(name: str, folder) -> dict[str, Split]:
    """The splits of a task that lie below `folder`, in the original layout: some of train, dev, test."""
    task, folder = TASKS[name], Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {show(folder)}; give --data=DIR with the task files below it")
    here, splits = folder / task.folder, {}
    for split, file in task.files.items():
        path = here / file
        if not path.is_file():
            continue
        rows = read_rows(path, task.columns, task.fields, lenient=name == "qqp")
        if name == "mrpc" and split == "train":
            dev = dev_rows(path, here / "dev_ids.tsv")
            splits["dev"] = make_split(path, [row for row in rows if row[0] in dev], task)
            rows = [row for row in rows if row[0] not in dev]
        splits[split] = make_split(path, rows, task)
    if not splits:
        raise UserError(f"{name} has no files in {show(here)}; put there: {', '.join(task.files.values())}")
    return {split: splits[split] for split in ("train", "dev", "test") if split in splits}


def dev_rows(path: Path, ids: Path) -> set[int]:
    """Line numbers of MRPC's training file that GLUE takes for dev: those whose pair of ids stands in dev_ids.tsv."""
    if not ids.is_file():
        raise UserError(f"{show(ids)} is missing; it names the pairs of {path.name} that are GLUE's dev")
    wanted = {tuple(texts) for _, texts in read_rows(ids, (0, 1), fields=2)}
    found = {number for number, texts in read_rows(path, ("#1 ID", "#2 ID")) if tuple(texts) in wanted}
    if not found:
        raise UserError(f"{show(ids)} names no pair of {path.name}; put MRPC's own file there")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def pearson(x, y) -> float:
    """Correlation of x [n] and y [n]; 0 where one of them is constant."""
    return float(np.mean(standardised(x) * standardised(y)))


def standardised(x):
    x = np.asarray(x, np.float64)
    deviation = x - x.mean()
    scale = np.sqrt(np.mean(deviation**2))
    return deviation / scale if scale > 1e-13 * np.abs(x).max() else np.zeros_like(x)


def spearman(x, y) -> float:
    """Pearson of the ranks; ties share their average rank."""
    return pearson(rankdata(x), rankdata(y))


def accuracy(said, labels) -> float:
    return float(np.mean(np.asarray(said) == np.asarray(labels)))


def f1(said, labels) -> float:
    """Of class 1; 0 where it is neither said nor there."""
    said, labels = np.asarray(said) == 1, np.asarray(labels) == 1
    both = said.sum() + labels.sum()
    return float(2 * (said & labels).sum() / both) if both else 0.0


def mcc(said, labels) -> float:
    """Matthews correlation, for any number of classes (Gorodkin 2004); 0 where one of them is constant."""
    said, labels = np.asarray(said), np.asarray(labels)
    classes = np.union1d(said, labels)[:, None]
    x, y = (said == classes).astype(float), (labels == classes).astype(float)  # [K, n]
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


METRICS = {  # name -> (function, the kind of answer it judges)
    "pearson": (pearson, "cosine"),
    "spearman": (spearman, "cosine"),
    "pearson_centred": (pearson, "centred"),
    "spearman_centred": (spearman, "centred"),
    "accuracy": (accuracy, "class"),
    "f1": (f1, "class"),
    "mcc": (mcc, "class"),
}


def metric_names(name: str) -> list[str]:
    kinds = ("class",) if TASKS[name].classes else ("cosine", "centred")
    return [metric for metric, (_, kind) in METRICS.items() if kind in kinds]


def scores(name: str, answers: dict, labels) -> dict[str, np.ndarray]:
    """Every metric of the task -> [F], one number a run of the method."""
    table = {metric: METRICS[metric] for metric in metric_names(name)}
    return {m: np.array([f(answer, labels) for answer in answers[kind]]) for m, (f, kind) in table.items()}


# ---------------------------------------------------------------------------------------------------------------------
# From vectors to answers


class Pairs:
    """The sentences of a task's splits, each once, and where the two of each pair stand among them."""

    def __init__(self, splits: dict[str, Split]):
        number = {}
        for split in splits.values():
            for text in (*split.a, *split.b):
                number.setdefault(text, len(number))
        self.sentences = list(number)
        self.index = {  # split -> [n, 2]
            name: np.array([[number[a], number[b]] for a, b in zip(split.a, split.b, strict=True)])
            for name, split in splits.items()
        }
        self.labels = {name: split.labels for name, split in splits.items()}
        self.scored = [name for name in splits if name != "train"]
        self.fitted_on = {}  # scored split -> the split for idf, centring and threshold
        for name in self.scored:
            others = [other for other in splits if other != name]  # train comes first
            if not others:
                raise UserError(f"only the {name} split is there, nothing to fit on; add the train split or another")
            self.fitted_on[name] = others[0]

    def needed(self, fit: bool) -> np.ndarray:
        """Sentences whose vectors are looked at: those scored, those of the mean and, to fit a threshold, all."""
        parts = [self.index[name].ravel() for name in self.scored]
        parts += [self.index[name].ravel()[: None if fit else CENTRED_ON] for name in self.fitted_on.values()]
        return np.unique(np.concatenate(parts))


CENTRED_ON = 2000  # sentences whose mean vector is taken off


def dot(x, y):
    """Row by row: x, y [n, D], dense or sparse -> [n]."""
    return np.asarray(x.multiply(y).sum(1)).ravel() if sparse.issparse(x) else np.einsum("nd,nd->n", x, y)


def cosine(vectors, index, mean=None):
    """Cosines of the pairs index [n, 2] of rows of vectors [U, D], dense or sparse; with mean [D], of what is left
    when it is taken off. A row of zeros is like nothing: 0."""
    x, y = vectors[index[:, 0]], vectors[index[:, 1]]
    if not sparse.issparse(vectors):
        x, y = x.astype(np.float64), y.astype(np.float64)
        if mean is not None:
            x, y = x - mean, y - mean
    xy, xx, yy = dot(x, y), dot(x, x), dot(y, y)
    if mean is not None and sparse.issparse(vectors):  # the difference would be dense
        xm, ym, mm = x @ mean, y @ mean, mean @ mean
        xy, xx, yy = xy - xm - ym + mm, xx - 2 * xm + mm, yy - 2 * ym + mm
    scale = np.sqrt(xx * yy)
    return np.divide(xy, scale, out=np.zeros_like(xy), where=scale > 0)


def best_threshold(x, labels) -> float:
    """The t for which "1 where x >= t" is right most often: half-way between two neighbouring values of x, or beyond
    them all; of several the lowest."""
    x, labels = np.asarray(x, np.float64), np.asarray(labels)
    order = np.argsort(x, kind="stable")
    x, labels = x[order], labels[order]
    # right[i]: answers that are right if the i lowest are 0 and the others 1
    right = np.concatenate([[0], np.cumsum(labels == 0)]) + np.concatenate([np.cumsum((labels == 1)[::-1])[::-1], [0]])
    between = np.concatenate([[True], x[1:] > x[:-1], [True]])  # equal values cannot be parted
    cut = int(np.flatnonzero(between)[right[between].argmax()])
    if cut in (0, len(x)):
        return -np.inf if cut == 0 else np.inf
    return float((x[cut - 1] + x[cut]) / 2)


def answer(vectors, pairs: Pairs, split: str, fit: bool) -> dict[str, np.ndarray]:
    """What vectors [U, D] of pairs.sentences say of a split: {"cosine", "centred": [1, n]}, or with `fit` {"class":
    [1, n]}, the cosine cut at the threshold that is best on the split's fitting split."""
    cosines, other = cosine(vectors, pairs.index[split])[None], pairs.fitted_on[split]
    if fit:
        threshold = best_threshold(cosine(vectors, pairs.index[other]), pairs.labels[other])
        return {"class": (cosines >= threshold).astype(np.int64)}
    mean = np.asarray(vectors[pairs.index[other].ravel()[:CENTRED_ON]].mean(0, dtype=np.float64)).ravel()
    return {"cosine": cosines, "centred": cosine(vectors, pairs.index[split], mean)[None]}


def stack(runs: list[dict]) -> dict[str, np.ndarray]:
    """The answers of several runs of a method, as one."""
    return {kind: np.concatenate([run[kind] for run in runs]) for kind in runs[0]}


# ---------------------------------------------------------------------------------------------------------------------
# Floors

WORD = re.compile(r"[a-z0-9']+")
RANDOM_WIDTH, RANDOM_SEEDS = 256, 8


def count_matrix(rows, width: int) -> sparse.csr_array:
    """Lists of ids below `width` -> how often each occurs in each list, float64 [n, width]."""
    ends = np.cumsum([0] + [len(row) for row in rows])
    ids = np.fromiter((i for row in rows for i in row), np.int64, ends[-1])
    counts = sparse.csr_array((np.ones(len(ids)), ids, ends), shape=(len(rows), width))
    counts.sum_duplicates()
    return counts


def word_counts(sentences) -> tuple[sparse.csr_array, list[str]]:
    """Counts [n, W] and the W words of its columns."""
    number = {}
    rows = [[number.setdefault(word, len(number)) for word in WORD.findall(text.lower())] for text in sentences]
    return count_matrix(rows, len(number)), list(number)


def char_counts(counts, words) -> sparse.csr_array:
    """Word counts [n, W] -> counts of the character 3-, 4- and 5-grams inside the words [n, G]."""
    number = {}
    rows = []
    for word in words:
        padded = f" {word} "
        grams = [padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded) - n + 1)]
        rows.append([number.setdefault(gram, len(number)) for gram in grams])
    return sparse.csr_array(counts @ count_matrix(rows, len(number)))


def idf(counts) -> np.ndarray:
    """ln((1 + n) / (1 + df)) + 1 of each column of counts [n, W]."""
    n, seen = counts.shape[0], (counts > 0).sum(0)
    return np.log((1 + n) / (1 + np.asarray(seen).ravel())) + 1


def scale_columns(counts, weights) -> sparse.csr_array:
    return sparse.csr_array(counts @ sparse.diags_array(weights))


def averages(counts, weights) -> sparse.csr_array:
    """A [n, W] such that A @ table is the mean of table's rows over the items of each row of counts [n, W], item w
    having the weight weights[w]; 0 where there is no item."""
    weighted = scale_columns(counts, weights)
    total = np.asarray(weighted.sum(1)).ravel()
    return sparse.csr_array(sparse.diags_array(1 / np.where(total > 0, total, 1)) @ weighted)


def random_vectors(words, seed: int, width: int = RANDOM_WIDTH) -> np.ndarray:
    """A Gaussian vector for each word [W, width], a function of the word and the seed alone: splitmix64 over a hash
    of the word, then Box-Muller."""
    digests = b"".join(
        hashlib.blake2b(w.encode(), digest_size=8, salt=seed.to_bytes(8, "little")).digest() for w in words
    )
    key = np.frombuffer(digests, "<u8")
    z = key[:, None] + np.arange(1, width // 2 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z = z ^ z >> np.uint64(31)
    radius = np.sqrt(-2 * np.log(((z >> np.uint64(32)).astype(np.float64) + 0.5) / 2**32))
    angle = (z & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2 * np.pi / 2**32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)


def majority(labels, classes: int) -> dict[str, np.ndarray]:
    """Always the commonest class of the split itself: what no constant answer can beat."""
    return {"class": np.full((1, len(labels)), np.bincount(labels, minlength=classes).argmax())}


def floors(name: str, pairs: Pairs) -> dict[str, dict[str, dict]]:
    """What needs no model, floor -> split -> answers: majority (of classes), word_tfidf, char_tfidf, random_vectors."""
    fit = bool(TASKS[name].classes)
    words, vocabulary = word_counts(pairs.sentences)
    characters = char_counts(words, vocabulary)
    found = {"majority": {}, "word_tfidf": {}, "char_tfidf": {}, "random_vectors": {}}
    for split in pairs.scored:
        rows = pairs.index[pairs.fitted_on[split]].ravel()  # both sentences, as often as they occur
        for floor, counts in (("word_tfidf", words), ("char_tfidf", characters)):
            found[floor][split] = answer(scale_columns(counts, idf(counts[rows])), pairs, split, fit)
        if fit:
            found["majority"][split] = majority(pairs.labels[split], len(TASKS[name].classes))
    plain, runs = averages(words, np.ones(len(vocabulary))), {split: [] for split in pairs.scored}
    for seed in range(RANDOM_SEEDS):
        vectors = plain @ random_vectors(vocabulary, seed)
        for split in pairs.scored:
            runs[split].append(answer(vectors, pairs, split, fit))
    found["random_vectors"] = {split: stack(several) for split, several in runs.items()}
    return {floor: answers for floor, answers in found.items() if answers}


# ---------------------------------------------------------------------------------------------------------------------
# Lift: is the difference more than luck in the choice of items?


def resampled(metric: str, answers, labels, counts) -> np.ndarray:
    """The metric of each answer [K, n] on each resample, counts [R, n] of how often it holds an item -> [R, K]."""
    total = counts.sum(1, keepdims=True)
    if metric.startswith("pearson"):
        x, y = np.stack([standardised(a) for a in answers], 1), standardised(labels)  # [n, K], [n]
        mean_x, mean_y = counts @ x / total, counts @ y[:, None] / total
        var_x, var_y = counts @ x**2 / total - mean_x**2, counts @ y[:, None] ** 2 / total - mean_y**2
        covariance = counts @ (x * y[:, None]) / total - mean_x * mean_y
        safe = (var_x > 1e-12) & (var_y > 1e-12)
        return np.divide(
            covariance, np.sqrt(np.where(safe, var_x * var_y, 1)), where=safe, out=np.zeros_like(covariance)
        )
    if metric == "accuracy":
        return counts @ (answers == labels).T.astype(np.float64) / total
    if metric == "mcc":  # for two classes it is the correlation of the class numbers
        return resampled("pearson", answers, labels, counts)
    raise ValueError(f"no bootstrap of {metric}")


def lifts(metric: str, ours, others: dict, labels, seed: int = 0, resamples: int = 2000) -> dict[str, dict]:
    """
    By how much `ours` [S, n] is above each of others {floor: [F, n]}: the median over our S runs minus the mean over
    the floor's F, {"value", "low", "high", "verdict"} with the 95 % percentile interval over paired resamples of the
    items. "above floor" only where all of it lies above 0.
    """
    every = np.concatenate([ours, *others.values()])
    ends = np.cumsum([len(ours)] + [len(other) for other in others.values()])

    def differences(counts):
        found = resampled(metric, every, labels, counts)
        middle = np.median(found[:, : ends[0]], 1)
        return np.stack([middle - found[:, a:b].mean(1) for a, b in zip(ends[:-1], ends[1:], strict=True)], 1)

    n, chance = len(labels), np.random.default_rng(seed)
    value = differences(np.ones((1, n)))[0]
    drawn = []
    for at in range(0, resamples, 100):  # a hundred at a time: 6 MB of counts for 8,000 items
        rows = min(100, resamples - at)
        items = chance.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        drawn.append(differences(np.bincount(items.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5], axis=0)
    verdict = ["above floor" if bound > 0 else "at floor" for bound in low]
    columns = zip(others, value, low, high, verdict, strict=True)
    return {name: {"value": float(v), "low": float(a), "high": float(b), "verdict": w} for name, v, a, b, w in columns}
