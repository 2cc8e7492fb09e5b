"""Scores of predictions: metrics, partial correlations given word overlap, bootstrap intervals, lifts over floors."""

import itertools
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

import geometry
from lab.command import check_finite
from lab.configurator import UserError
from lab.evaluation.metrics import KINDS, METRICS, METRICS_OF, macro_f1, pearson, standardised
from lab.evaluation.tasks import Pairs, Task
from lab.files import read_json, reading, replacing
from lab.report import HEADLINE, HEADLINE_ADAPTED
from lab.runs import ADAPTED


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote; {} if it cannot be read, so that it is computed again."""
    with suppress(UserError):
        return read_arrays(path)
    return {}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote; UserError if it cannot be read."""
    with reading(path, "evaluate that run again"), open(path, "rb") as file, np.load(file) as arrays:
        return dict(arrays)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]):
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


# ---------------------------------------------------------------------------------------------------------------------
# Beyond words: agreement with the labels that word overlap does not explain
#
# A partial rank correlation: Pearson correlation of the residuals of the ranks of cosine and label after least squares
# on the ranks of the controls and a constant. With ranks a monotone function of one control scores 0.

PARTIALS = {  # metric -> its controls; undefined (null) for a method that is itself a control
    HEADLINE: ("char_tfidf", "word_tfidf", "jaccard", "length"),
    "partial_char_tfidf": ("char_tfidf",),
    "partial_token_idf": ("token_idf",),
    HEADLINE_ADAPTED: ("char_tfidf", "word_tfidf", "jaccard", "length"),
}
TERCILES = ("spearman_low_overlap", "spearman_mid_overlap", "spearman_high_overlap")  # of the Jaccard of word sets
BEYOND = (*PARTIALS, *TERCILES)


def ranks(x, times) -> np.ndarray:
    """Centred ranks [n, R] of x [n] in R resamples, in which item i occurs times[i, r] times; ties get their mean."""
    order = np.argsort(x, kind="stable")
    first = np.flatnonzero(np.diff(x[order], prepend=np.nan) != 0)  # of each run of equal values
    group = np.empty(len(x), np.int64)
    group[order] = np.repeat(np.arange(len(first)), np.diff(first, append=len(x)))
    held = times[order] if len(first) == len(x) else np.add.reduceat(times[order], first)
    middle = held.cumsum(0)
    middle -= held / 2
    middle -= times.sum(0) / 2
    return middle[group]


def partial_correlations(controls: list, label, answers: list, times) -> np.ndarray:
    """Partial correlations [R, K] of a label with each of K answers given the controls. All are ranks [n, R] in R
    resamples, in which item i occurs times[i, r] times. 0 where the controls explain everything."""
    known, every, C = [*controls, label], [*controls, label, *answers], len(controls)
    moments = np.array([[np.einsum("nr,nr->r", x, y) for y in every] for x in (x * times for x in known)])
    squares = np.array([np.einsum("nr,nr->r", x * times, x) for x in every])  # [C + 1 + K, R]
    unit = np.divide(1, np.sqrt(squares), out=np.zeros_like(squares), where=squares > 0)
    correlations = (moments * unit[: C + 1, None] * unit).transpose(2, 0, 1)  # [R, C + 1, C + 1 + K]
    among, ours = correlations[:, :C, :C], correlations[:, :C, C:]
    fit = np.linalg.pinv(among, rcond=1e-9, hermitian=True) @ ours
    left = correlations[:, C, C:] - np.einsum("rc,rck->rk", ours[:, :, 0], fit)
    own = 1 - np.einsum("rck,rck->rk", ours, fit)  # [R, 1 + K], the label first
    safe = (own[:, 1:] > 1e-9) & (own[:, :1] > 1e-9)
    return np.divide(left[:, 1:], np.sqrt(np.where(safe, own[:, 1:] * own[:, :1], 1)), where=safe, out=0 * left[:, 1:])


def beyond_words(answers, labels, known: dict[str, np.ndarray], counts=None, metrics=BEYOND) -> dict[str, np.ndarray]:
    """Metric -> [R, K] for cosines answers [K, n] on resamples counts [R, n] (None: one, the rows as they are).
    known: from `word_controls`. Terciles are fixed over resamples; ties are split by row order."""
    times = np.ones((len(labels), 1)) if counts is None else np.ascontiguousarray(counts.T)
    label, ours = ranks(labels, times), [ranks(row, times) for row in answers]
    needed = {name for metric in metrics for name in PARTIALS.get(metric, ())}
    controls = {name: ranks(known[name], times) for name in needed}
    values = {}
    for metric, rows in zip(TERCILES, np.array_split(np.argsort(known["jaccard"], kind="stable"), 3), strict=True):
        if metric in metrics:
            inside = [ranks(row[rows], times[rows]) for row in (labels, *answers)]
            values[metric] = partial_correlations([], inside[0], inside[1:], times[rows])
    for metric in PARTIALS:
        if metric in metrics:
            values[metric] = partial_correlations([controls[name] for name in PARTIALS[metric]], label, ours, times)
    return {metric: values[metric] for metric in metrics}


def metric_values(pairs: Pairs, split: str, answers: dict, known=None) -> dict[str, np.ndarray]:
    """Metric -> [F], for answers [F, n] to a split. known: from `word_controls`, for the partial correlations."""
    values = task_scores(pairs.task, answers, pairs.labels[split], pairs.sets[split])
    for kind, metrics in by_kind(BEYOND, answers).items() if known else ():
        beyond = beyond_words(answers[kind], pairs.labels[split], known, metrics=metrics)
        values |= {metric: value[0] for metric, value in beyond.items()}
    return values


def answer_kind(metric: str, answers: dict) -> str:
    """Which of the answers a metric is computed from. Scores of a trained head are not centred."""
    if metric in METRICS:
        return METRICS[metric][1]
    kind = "adapted" if metric.endswith("_adapted") else "centred"
    return kind if kind in answers and metric in BEYOND else "cosines"


def by_kind(metrics, answers: dict) -> dict[str, tuple[str, ...]]:
    """Kind of answer -> the metrics computed from it; adapted metrics are left out if there are no adapted answers."""
    metrics = [metric for metric in metrics if "adapted" in answers or not metric.endswith("_adapted")]
    kinds = [answer_kind(metric, answers) for metric in metrics]
    return {kind: tuple(itertools.compress(metrics, (k == kind for k in kinds))) for kind in dict.fromkeys(kinds)}


def beyond_intervals(ours: dict, labels, known) -> dict[str, dict[str, float]]:
    """Metric -> {"value", "low", "high"}: median over S seeds and its 95 % percentile interval. ours: kind of answer ->
    answers [S, n]."""

    def medians(counts):
        values = {}
        for kind, metrics in by_kind(BEYOND, ours).items():
            values |= beyond_words(ours[kind], labels, known, counts, metrics)
        return np.stack([np.median(value, axis=1) for value in values.values()], 1)

    metrics = [metric for own in by_kind(BEYOND, ours).values() for metric in own]
    return dict(zip(metrics, bootstrap(medians, len(labels)), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Lift: the difference to a floor, with a confidence interval over the choice of items


def bootstrap(statistic, n: int, seed: int = 0, resamples: int = 2000) -> list[dict[str, float]]:
    """M times {"value", "low", "high"}: the statistic on the n items, and its 95 % percentile interval over resamples.
    statistic: counts [R, n] (how often a resample contains each item) -> [R, M]."""
    chance = np.random.default_rng(seed)
    value = statistic(np.ones((1, n)))[0]
    drawn = []
    for at in range(0, resamples, 100):  # a hundred at a time: 6 MB of counts for 8,000 items
        rows = min(100, resamples - at)
        items = chance.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        drawn.append(statistic(np.bincount(items.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)))
    ends = np.percentile(np.concatenate(drawn), [2.5, 97.5], axis=0)
    return [dict(zip(("value", "low", "high"), column.tolist(), strict=True)) for column in np.stack([value, *ends], 1)]


def resampled(metric: str, answers, labels, counts, known=None) -> np.ndarray:
    """The metric [R, K] of K answers [K, n] on R resamples counts [R, n], vectorised. known: from `word_controls`, for
    partial correlations."""
    if metric in BEYOND:
        return beyond_words(answers, labels, known, counts, (metric,))[metric]
    total = counts.sum(1, keepdims=True)
    if metric == "mcc" or metric.startswith("pearson"):  # mcc of two classes is the correlation of their numbers
        x, y = np.stack([standardised(a) for a in answers], 1), standardised(labels)  # [n, K], [n]
        mean_x, mean_y = counts @ x / total, counts @ y[:, None] / total
        var_x, var_y = counts @ x**2 / total - mean_x**2, counts @ y[:, None] ** 2 / total - mean_y**2
        covariance = counts @ (x * y[:, None]) / total - mean_x * mean_y
        safe = (var_x > 1e-12) & (var_y > 1e-12)
        return np.divide(
            covariance, np.sqrt(np.where(safe, var_x * var_y, 1)), where=safe, out=np.zeros_like(covariance)
        )
    if metric.startswith("order"):
        kinds = (np.unique(labels)[:, None] == labels).astype(np.float64)  # [K, n]
        right = np.stack([counts @ (kind * answers).T / (counts @ kind)[:, None] for kind in kinds])
        return (2 * right - 1).mean(0)
    if metric.startswith("accuracy"):
        return counts @ (answers == labels).T.astype(np.float64) / total
    raise ValueError(f"no bootstrap of {metric}")


def lifts(metric: str, ours, others: dict, labels, known=None, middle=np.mean, own=np.median, **resampling):
    """
    Difference of a metric between `ours` [S, n] and each of `others` {floor: [F, n]}: `own` (the median) over our S
    seeds minus `middle` (the mean) over the floor's F -> {floor: {"value", "low", "high", "verdict"}}, with the 95 %
    percentile interval over paired resamples of the items; "above floor" if low > 0. known: see `resampled`.
    """
    every = np.concatenate([ours, *others.values()])
    ends = np.cumsum([len(ours)] + [len(other) for other in others.values()])

    def differences(counts):
        metrics = resampled(metric, every, labels, counts, known)
        mine = own(metrics[:, : ends[0]], 1)
        return np.stack([mine - middle(metrics[:, a:b], 1) for a, b in zip(ends[:-1], ends[1:], strict=True)], 1)

    found = dict(zip(others, bootstrap(differences, len(labels), **resampling), strict=True))
    return {name: one | {"verdict": "above floor" if one["low"] > 0 else "at floor"} for name, one in found.items()}


def read_answers(path: Path) -> tuple[dict, dict]:
    """MODE_TASK.json of eval_glue.py -> the record, and the answers beside it: "SPLIT/KIND" -> [S, n]."""
    if not path.is_file():
        raise UserError(f"{path} is missing; evaluate that run first, with the same --mode and --tasks")
    return read_json(path, "an evaluation"), read_arrays(path.with_suffix(".npz"))


def paired(metric: str, split: str, ours: list[dict], others: dict[str, list[dict]], middle, known=None):
    """`lifts` of our runs over other runs {name: runs} on the same rows of a split; `middle` aggregates seeds. A run is
    its answers as `read_answers` returns them. UserError if rows differ."""
    labels, kinds = ours[0][f"{split}/labels"], {key.removeprefix(f"{split}/") for key in ours[0]}
    kind = kind if (kind := answer_kind(metric, kinds)) in kinds else "predictions"  # of a trained head
    keys = f"{split}/labels", f"{split}/texts"
    for name, runs in others.items():
        same = (np.array_equal(ours[0].get(key), run.get(key)) for run in (*ours, *runs) for key in keys)
        if not all(same):
            raise UserError(f"{name} was evaluated on other rows of {split}; evaluate it again")
    rows = {name: np.concatenate([run[f"{split}/{kind}"] for run in runs]) for name, runs in others.items()}
    mine = np.concatenate([run[f"{split}/{kind}"] for run in ours])
    return lifts(metric, mine, rows, labels, known, middle, middle)


SUFFIX = {"pooled": "", "concepts": "_concepts"}  # of the metrics of order, by the features of the probe


def task_scores(task: Task, answers: dict, labels, sets=None) -> dict[str, np.ndarray]:
    """Metric -> [F], one value per seed of the method. f1: of the positive class of two, macro-F1 of more. sets [n]:
    subsets such as genres; adds the Pearson correlation within each and their mean."""
    functions = {metric: how for metric, how in METRICS_OF[task.kind].items() if how[1] in answers}
    if len(task.labels) > 2 and "f1" in functions:
        functions["f1"] = macro_f1, "predictions"
    if task.kind == "score" and sets is not None and len(np.unique(sets)) > 1:

        def inside(name):
            return lambda x, y: pearson(x[sets == name], y[sets == name])

        def by_set(x, y):
            return float(np.mean([inside(name)(x, y) for name in np.unique(sets)]))

        functions |= {f"pearson_by_set{end}": (by_set, kind) for end, kind in KINDS.items()}
        functions |= {f"pearson_{name}": (inside(name), "cosines") for name in np.unique(sets)}
        functions = {metric: (f, kind) for metric, (f, kind) in functions.items() if kind in answers}
    values = {metric: np.array([f(row, labels) for row in answers[kind]]) for metric, (f, kind) in functions.items()}
    if task.kind == "order":  # also the accuracy of each rule
        for kind, number in itertools.product(answers, np.unique(labels)):
            values[sets[labels == number][0] + SUFFIX[kind]] = answers[kind][:, labels == number].mean(1)
    return values


def dot(x, y):
    """Row-wise dot products: x, y [n, D], dense or sparse -> [n]."""
    return np.asarray(x.multiply(y).sum(1)).ravel() if sparse.issparse(x) else np.einsum("nd,nd->n", x, y)


def cosine(vectors, index, mean=None, directions=None):
    """Cosines [n] of the pairs index [n, 2] of rows of vectors [U, D], dense or sparse, after subtracting mean [D] and
    (sparse only) the components along unit directions [k, D]; 0 for a zero row."""
    x, y = vectors[index[:, 0]], vectors[index[:, 1]]
    if not sparse.issparse(vectors):
        x, y = x.astype(np.float64), y.astype(np.float64)
        if mean is not None:
            x, y = x - mean, y - mean
    xy, xx, yy = dot(x, y), dot(x, x), dot(y, y)
    if mean is not None and sparse.issparse(vectors):  # the difference would be dense
        xm, ym, mm = x @ mean, y @ mean, mean @ mean
        xy, xx, yy = xy - xm - ym + mm, xx - 2 * xm + mm, yy - 2 * ym + mm
    if directions is not None:
        xd, yd = (v @ directions.T - mean @ directions.T for v in (x, y))
        xy, xx, yy = xy - dot(xd, yd), xx - dot(xd, xd), yy - dot(yd, yd)
    scale = np.sqrt(np.maximum(xx, 0) * np.maximum(yy, 0))
    return np.divide(xy, scale, out=np.zeros_like(xy), where=scale != 0)  # not "> 0": a NaN stays one


def best_threshold(x, labels) -> float:
    """The lowest threshold t that maximises the accuracy of x >= t: the midpoint between two values of x (the upper
    value if there is no number between them), or infinite."""
    order = np.argsort(x, kind="stable")
    x, labels = np.asarray(x, np.float64)[order], np.asarray(labels)[order]
    # gained[i]: correct predictions if the i lowest are 0 and the others 1, relative to all being 1
    gained = np.cumsum([0, *np.where(labels == 0, 1, -1)])
    gained[1:-1][x[1:] == x[:-1]] = -len(x) - 1  # equal values cannot be parted
    cut = gained.argmax()
    ends = [-np.inf, *x, np.inf]
    middle = (ends[cut] + ends[cut + 1]) / 2
    return float(ends[cut + 1] if middle == ends[cut] > -np.inf else middle)


def adapted_cosine(vectors, index, fitting, remove: int, whitening: float) -> np.ndarray:
    """`cosine` after removing the mean and the first `remove` principal directions of the rows `fitting`, and scaling
    the other directions by sigma^-whitening (geometry.isotropic). Sparse vectors are not scaled: they have thousands
    of small directions."""
    if not sparse.issparse(vectors):
        values = torch.from_numpy(np.asarray(vectors, np.float64))
        mean, matrix = geometry.isotropic(values[fitting], min(remove, values.shape[1] - 1), whitening)
        return cosine(((values - mean) @ matrix).numpy(), index)
    from sklearn.decomposition import PCA  # late: it takes a second

    x = vectors[fitting]
    mean, most = np.asarray(x.mean(0)).ravel(), min(remove, min(x.shape) - 1)
    spread = (x.multiply(x)).sum() / x.shape[0] - mean @ mean
    if most < 1 or spread <= 1e-9 * (mean @ mean):  # there is nothing to remove
        return cosine(vectors, index, mean)
    principal = PCA(most, svd_solver="arpack", random_state=0).fit(x)
    return cosine(vectors, index, principal.mean_, principal.components_)


def linear_probe(vectors, pairs: Pairs, split: str, most: int = 4000) -> np.ndarray:
    """Predictions [1, n] of a ridge classifier with features |a - b| and a * b, trained on at most `most` pairs of the
    split's fitting split; its penalty is chosen by leave-one-out error."""
    from sklearn.linear_model import RidgeClassifierCV  # late: it takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(index):
        a, b = (vectors[column].astype(np.float64) for column in index.T)
        return np.concatenate([abs(a - b), a * b], 1)

    other = pairs.fitted_on[split]
    rows = np.random.default_rng(0).permutation(len(pairs.labels[other]))[:most]
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(10.0 ** np.arange(0, 6)))
    probe.fit(features(pairs.index[other][rows]), pairs.labels[other][rows])
    return probe.predict(features(pairs.index[split]))[None]


def predict(vectors, pairs: Pairs, split: str, adapted=ADAPTED["static"], probe=False) -> dict[str, np.ndarray]:
    """Answers [1, n] of vectors [U, D] of pairs.sentences to the rows of a split. Score tasks: cosines, also centred
    and adapted (see ADAPTED). Paraphrase tasks: cosines, predictions by the threshold that is best on the split's
    fitting split and, with `probe`, those of `linear_probe`. NonFinite names a sentence whose vector is not finite."""
    other, fitting = pairs.fitted_on[split], pairs.fitting_sentences(split)
    if not sparse.issparse(vectors):
        used = np.union1d(pairs.index[split], fitting)
        check_finite(vectors.sum(1, keepdims=True)[used], [pairs.sentences[i] for i in used])
    cosines = cosine(vectors, pairs.index[split])[None]
    if pairs.task.kind == "paraphrase":
        threshold = best_threshold(cosine(vectors, pairs.index[other]), pairs.labels[other])
        answers = {"cosines": cosines, "predictions": (cosines >= threshold).astype(np.int64)}
        return answers | ({"probe": linear_probe(vectors, pairs, split)} if probe else {})
    mean = np.asarray(vectors[fitting].mean(0, dtype=np.float64)).ravel()
    centred = cosine(vectors, pairs.index[split], mean)[None]
    return {
        "cosines": cosines,
        "centred": centred,
        "adapted": adapted_cosine(vectors, pairs.index[split], fitting, *adapted)[None],
    }


def stack(runs: list):
    """Concatenates the answers of several seeds, in equally nested dicts: F times [1, n] -> [F, n]."""
    if isinstance(runs[0], dict):
        return {key: stack([run[key] for run in runs]) for key in runs[0]}
    return np.concatenate(runs)
