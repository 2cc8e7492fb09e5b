"""
Floors: what a score must be compared with before it means anything, what it knows beyond words, and the bootstrap that
says whether it is above.

    floors = task_floors(run, pairs, cache)             # {"word_tfidf": {"dev": answers, ..}, .., "untrained": ..}
    lifts("pearson", ours, {"untrained": theirs}, labels)       # the difference, with its 95 % interval
    beyond_words(ours, labels, word_controls(pairs, "dev", theirs))     # partial rank correlations
    print(retrieval_table(run, corpus))

Words are `[a-z0-9']+` of the lower-cased text; character n-grams (3, 4, 5) lie inside one word padded with a space on
each side; tf is the raw count, idf = ln((1 + n) / (1 + df)) + 1 over both sentences of the task's train pairs. Where a
task has no train split, the other labelled split serves for idf, centring and thresholds alike; where it has one split,
that one's own sentences do, without their labels.
"""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import logsumexp

from lab import tasks
from lab.command import log
from lab.configurator import UserError, warn
from lab.dataset import Corpus
from lab.files import read_json, reading, replacing
from lab.report import format_range, interval, table
from lab.runs import LoadedRun
from lab.sources import sources, weights
from lab.tasks import HEADLINE, Pairs, dot, predict, stack, standardised
from model import AFTER_CONCEPTS

WORD = re.compile(r"[a-z0-9']+")
RANDOM_WIDTH, RANDOM_SEEDS, UNTRAINED_SEEDS = 256, 8, 5

# ---------------------------------------------------------------------------------------------------------------------
# Floors of a task that need its texts alone


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


def scale_rows(counts, weights) -> sparse.csr_array:
    return sparse.csr_array(sparse.diags_array(weights) @ counts)


def averages(counts, weights) -> sparse.csr_array:
    """A [n, W] such that A @ vectors is the mean of vectors [W, D] over the items of each row of counts [n, W], item w
    having the weight weights[w]; 0 where there is no item."""
    weighted = scale_columns(counts, weights)
    total = np.asarray(weighted.sum(1)).ravel()
    return scale_rows(weighted, 1 / np.where(total > 0, total, 1))


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


def majority(pairs: Pairs) -> dict[str, dict]:
    """Split -> answers: always the commonest class of the split itself, what no constant answer can beat."""
    labels = {split: pairs.labels[split] for split in pairs.scored}
    return {split: {"predictions": np.full((1, len(x)), np.bincount(x).argmax())} for split, x in labels.items()}


def each_idf(counts, pairs: Pairs) -> dict[str, np.ndarray]:
    """Fitting split -> idf over both sentences of its pairs, as often as they occur."""
    return {other: idf(counts[pairs.index[other].ravel()]) for other in set(pairs.fitted_on.values())}


def predictions(vectors, pairs: Pairs) -> dict[str, dict]:
    """Split -> answers; `vectors` [U, D], or a dict of them where they depend on the fitting split."""
    return {
        split: predict(vectors[other] if isinstance(vectors, dict) else vectors, pairs, split)
        for split, other in pairs.fitted_on.items()
    }


def text_floors(pairs: Pairs) -> dict[str, dict[str, dict]]:
    """Floor -> split -> answers: majority (of classes), word_tfidf, char_tfidf, random_vectors."""
    words, vocabulary = word_counts(pairs.sentences)
    floors = {} if pairs.task.kind == "score" else {"majority": majority(pairs)}
    for floor, counts in (("word_tfidf", words), ("char_tfidf", char_counts(words, vocabulary))):
        tfidf = {other: scale_columns(counts, weights) for other, weights in each_idf(counts, pairs).items()}
        floors[floor] = predictions(tfidf, pairs)
    plain = averages(words, np.ones(len(vocabulary)))
    runs = [predictions(plain @ random_vectors(vocabulary, seed), pairs) for seed in range(RANDOM_SEEDS)]
    return floors | {"random_vectors": stack(runs)}


NEGATIONS = {"no", "not", "never", "nobody", "nothing", "none", "n't", "without", "isn't", "don't", "doesn't", "can't"}


def overlap_features(pairs: Pairs, splits: list[str]) -> dict[str, sparse.csr_array | np.ndarray]:
    """Split -> [n, F] of what a pair shows without being understood: overlap of its words and characters, lengths,
    negations, less their means and in units of their deviations in the training split; of a single sentence its TF-IDF,
    in rows of norm 1."""
    words, vocabulary = word_counts(pairs.sentences)
    fitting = pairs.index[pairs.trained_on].ravel()
    tfidf = scale_columns(words, idf(words[fitting]))
    if pairs.index[splits[0]].shape[1] == 1:
        unit = scale_rows(tfidf, 1 / np.maximum(np.sqrt(dot(tfidf, tfidf)), 1e-12))
        return {split: unit[pairs.index[split][:, 0]] for split in splits}
    chars = char_counts(words, vocabulary)
    chars = scale_columns(chars, idf(chars[fitting]))
    present = (words > 0).astype(np.float64)
    sizes, lengths = np.maximum(present.sum(1), 1), np.log(np.maximum(words.sum(1), 1))
    negations = present[:, [i for i, word in enumerate(vocabulary) if word in NEGATIONS]].sum(1)
    features = {}
    for split in splits:
        index = pairs.index[split]
        a, b = index.T
        shared = dot(present[a], present[b])
        columns = [shared / (sizes[a] + sizes[b] - shared), shared / sizes[a], shared / sizes[b]]
        columns += [tasks.cosine(x, index) for x in (tfidf, chars)] + [np.abs(lengths[a] - lengths[b]), lengths[a]]
        columns += [negations[a], negations[b], np.abs(negations[a] - negations[b])]
        features[split] = np.stack(columns, 1)
    known = features[pairs.trained_on]
    mean, scale = known.mean(0), np.maximum(known.std(0), 1e-9)
    return {split: (x - mean) / scale for split, x in features.items()}


def linear_fit(x, labels, classes: int) -> np.ndarray:
    """x [n, F], dense or sparse -> weights [F, K] of logistic regression (ridge regression where classes is 0), each
    with a penalty of half the squared weights; x has a column for the constant."""
    if not classes:
        return np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ labels)[:, None]
    truth = np.eye(classes)[labels]

    def loss(w):
        w = w.reshape(-1, classes)
        scores = x @ w
        log_sum = logsumexp(scores, axis=1, keepdims=True)
        gradient = x.T @ (np.exp(scores - log_sum) - truth) + w
        return (log_sum.sum() - (scores * truth).sum()) + (w * w).sum() / 2, gradient.ravel()

    start = np.zeros(x.shape[1] * classes)
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x.reshape(-1, classes)


def overlap_floor(pairs: Pairs) -> dict[str, dict]:
    """Split -> answers of a linear model of `overlap_features`, fitted on the training split."""
    x = overlap_features(pairs, [pairs.trained_on, *pairs.scored])
    stacked = sparse.hstack if sparse.issparse(x[pairs.trained_on]) else np.hstack
    x = {split: stacked([rows, np.ones((rows.shape[0], 1))]) for split, rows in x.items()}
    classes = 0 if pairs.task.kind == "score" else len(pairs.task.labels)
    weights = linear_fit(x[pairs.trained_on], pairs.labels[pairs.trained_on], classes)
    outputs = {split: x[split] @ weights for split in pairs.scored}
    if classes:
        return {split: {"predictions": y.argmax(1)[None]} for split, y in outputs.items()}
    return {split: {"cosines": y.T} for split, y in outputs.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Floors of a task that need a model, and where all of them are kept


def embed(run: LoadedRun, pairs: Pairs) -> np.ndarray:
    """Vectors [U, H] of pairs.sentences; zero where nobody will look."""
    needed = pairs.needed()
    vectors = np.zeros((len(pairs.sentences), run.config["hidden"]), np.float32)
    vectors[needed] = run.embed([pairs.sentences[i] for i in needed]).numpy()
    return vectors


def model_floors(run: LoadedRun, pairs: Pairs) -> dict[str, dict[str, dict]]:
    """Floor -> split -> answers at 5 initial seeds. untrained: the same architecture and init; token_idf: the
    idf-weighted mean of its token embeddings."""
    counts = count_matrix(run.encode_texts(pairs.sentences), run.model.config.vocab_size)
    means = {other: averages(counts, weights) for other, weights in each_idf(counts, pairs).items()}
    seeds = []
    for seed in range(UNTRAINED_SEEDS):
        twin = run.twin(seed)
        tokens = twin.model.tokens.weight.detach().cpu().double().numpy()  # [V, T]
        lexical = predictions({other: mean @ tokens for other, mean in means.items()}, pairs)
        seeds.append({"token_idf": lexical, "untrained": predictions(embed(twin, pairs), pairs)})
    return stack(seeds)


def cache_key(run: LoadedRun, pairs: Pairs) -> str:
    """Hash of all that the floors of a task depend on, code too."""
    model = asdict(run.model.config) | {"mask_id": run.model.mask_id, "chunk": run.max_length}
    model |= run.model.options._asdict()
    settings = [sources("lab/floors.py", run.model), model, run.config["tokenizer_hash"], pairs.digest()]
    if run.config["remove_directions"] or run.config["whitening"]:
        settings += [run.config["remove_directions"], run.config["whitening"], run.rows.tolist()]
    digest = hashlib.sha256(json.dumps(settings).encode())
    if run.model.token_vectors is not None:  # untrained twins begin with them
        digest.update(run.model.token_vectors.cpu().numpy().tobytes())
    if run.model.frozen:  # and with these
        digest.update(weights(run.model, AFTER_CONCEPTS).encode())
    return digest.hexdigest()[:16]


def version(pairs: Pairs) -> str:
    """What a record is of, besides its run: the code and the rows."""
    return f"{sources('eval_glue.py')[:16]}_{pairs.digest()}"


def task_floors(run: LoadedRun, pairs: Pairs, cache: Path) -> dict[str, dict[str, dict]]:
    """Floor -> split -> answers, read from the folder `cache`, or computed and put there."""
    path = cache / f"{pairs.name}_{cache_key(run, pairs)}.npz"
    if arrays := load_arrays(path):
        floors = {}
        for name, array in arrays.items():
            floor, split, kind = name.split("/")
            floors.setdefault(floor, {}).setdefault(split, {})[kind] = array
        return floors
    log(f"{pairs.name}: floors, and the untrained model at {UNTRAINED_SEEDS} seeds")
    floors = text_floors(pairs) | model_floors(run, pairs)
    try:
        cache.mkdir(exist_ok=True)
        save_arrays(path, {f"{f}/{s}/{k}": v for f, d in floors.items() for s, a in d.items() for k, v in a.items()})
    except OSError as error:
        warn(f"{cache} cannot be written ({error.strerror}); the floors will be computed again next time")
    return floors


def fine_tune_floors(run: LoadedRun, pairs: Pairs, cache: Path) -> dict[str, dict[str, dict]]:
    """Floor -> split -> answers, for a head that is trained: the zero-shot ones of a question of similarity, majority,
    overlap_features."""
    if pairs.task.kind == "classification":
        floors = {"majority": majority(pairs)}
    else:
        floors = task_floors(run, pairs, cache)
        del floors["untrained"]  # the twin is trained, too
    return floors | {"overlap_features": overlap_floor(pairs)}


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote; nothing where it cannot be read: it is computed anew then."""
    with suppress(UserError):
        return read_arrays(path)
    return {}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote, or a UserError."""
    with reading(path, "judge that run again"), open(path, "rb") as file, np.load(file) as arrays:
        return dict(arrays)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]):
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


# ---------------------------------------------------------------------------------------------------------------------
# Beyond words: how a score agrees with the gold where the overlap of words is known already
#
# A partial rank correlation: Pearson of what is left of the ranks of answer and gold after least squares on the ranks
# of the controls and a constant. Ranks, so that no monotone copy of a control passes for knowledge.

PARTIALS = {  # metric -> its controls; a method that is one of them has no such number
    HEADLINE: ("char_tfidf", "word_tfidf", "jaccard", "length"),
    "partial_char_tfidf": ("char_tfidf",),
    "partial_token_idf": ("token_idf",),
}
TERCILES = ("spearman_low_overlap", "spearman_mid_overlap", "spearman_high_overlap")  # of the Jaccard of word sets
BEYOND = (*PARTIALS, *TERCILES)


def word_controls(pairs: Pairs, split: str, theirs: dict[str, dict]) -> dict[str, np.ndarray]:
    """Control -> [n]: cosines of three floors, the mean of their runs (raw; token_idf's centred, like those that are
    judged: given its raw ones, centring alone would look like knowledge); Jaccard of the word sets; |ln of the ratio
    of lengths in words|, where no word counts as one. theirs: floor -> answers to the split."""
    counts = word_counts(pairs.sentences)[0]
    present, lengths = (counts > 0).astype(np.float64), np.maximum(counts.sum(1), 1)
    a, b = pairs.index[split].T
    shared, sizes = dot(present[a], present[b]), present.sum(1)
    jaccard = shared / np.maximum(sizes[a] + sizes[b] - shared, 1)
    ratio = np.maximum(lengths[a], lengths[b]) / np.minimum(lengths[a], lengths[b])  # equal ratios are equal bits
    kinds = {"char_tfidf": "cosines", "word_tfidf": "cosines", "token_idf": "centred"}
    cosines = {floor: theirs[floor][kind].mean(0) for floor, kind in kinds.items() if floor in theirs}
    return cosines | {"jaccard": jaccard, "length": np.log(ratio)}


def ranks(x, times) -> np.ndarray:
    """Ranks of x [n] in resamples that hold its items times [n, R]; ties share their average, the mean is taken off."""
    order = np.argsort(x, kind="stable")
    first = np.flatnonzero(np.diff(x[order], prepend=np.nan) != 0)  # of each run of equal values
    group = np.empty(len(x), np.int64)
    group[order] = np.repeat(np.arange(len(first)), np.diff(first, append=len(x)))
    held = times[order] if len(first) == len(x) else np.add.reduceat(times[order], first)
    middle = held.cumsum(0)
    middle -= held / 2
    middle -= times.sum(0) / 2
    return middle[group]


def partial(controls: list, label, answers: list, times) -> np.ndarray:
    """Pearson [R, K] of the residuals of a label and of each of K answers after least squares on the controls: all of
    them ranks [n, R] in resamples that hold the items times [n, R]. 0 where nothing is left."""
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
    """Metric -> [R, K] of the centred cosines answers [K, n], on resamples counts [R, n] (None: the rows as they are).
    known: `word_controls`. A tercile holds the same rows in every resample; ties go by the order of rows."""
    times = np.ones((len(labels), 1)) if counts is None else np.ascontiguousarray(counts.T)
    label, ours = ranks(labels, times), [ranks(row, times) for row in answers]
    needed = {name for metric in metrics for name in PARTIALS.get(metric, ())}
    controls = {name: ranks(known[name], times) for name in needed}
    values = {}
    for metric, rows in zip(TERCILES, np.array_split(np.argsort(known["jaccard"], kind="stable"), 3), strict=True):
        if metric in metrics:
            inside = [ranks(row[rows], times[rows]) for row in (labels, *answers)]
            values[metric] = partial([], inside[0], inside[1:], times[rows])
    for metric in PARTIALS:
        if metric in metrics:
            values[metric] = partial([controls[name] for name in PARTIALS[metric]], label, ours, times)
    return {metric: values[metric] for metric in metrics}


def metric_values(pairs: Pairs, split: str, answers: dict, known=None) -> dict[str, np.ndarray]:
    """Every metric of answers [F, n] to a split -> [F]; with `word_controls` also what goes beyond words."""
    values = tasks.task_scores(pairs.task, answers, pairs.labels[split], pairs.sets[split])
    beyond = beyond_words(answers[answer_kind(HEADLINE, answers)], pairs.labels[split], known) if known else {}
    return values | {metric: value[0] for metric, value in beyond.items()}


def answer_kind(metric: str, answers: dict) -> str:
    """Which of the answers a metric judges. Scores of a trained head are not centred."""
    if metric in BEYOND:
        return "centred" if "centred" in answers else "cosines"
    return tasks.METRICS[metric][1] if metric in tasks.METRICS else "cosines"


def beyond_intervals(ours, labels, known) -> dict[str, dict[str, float]]:
    """Metric -> {"value", "low", "high"}: the median over our runs [S, n], with its 95 % percentile interval."""

    def medians(counts):
        values = beyond_words(ours, labels, known, counts)
        return np.stack([np.median(values[metric], axis=1) for metric in BEYOND], 1)

    return dict(zip(BEYOND, bootstrap(medians, len(labels)), strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Lift: is the difference more than luck in the choice of items?


def bootstrap(statistic, n: int, seed: int = 0, resamples: int = 2000) -> list[dict[str, float]]:
    """M times {"value", "low", "high"}: of the n items as they are, and the 95 % percentile interval over paired
    resamples. statistic: counts [R, n] of how often a resample holds an item -> [R, M]."""
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
    """The metric of each answer [K, n] on each resample, counts [R, n] of how often it holds an item -> [R, K].
    known: `word_controls`, for what goes beyond words."""
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
    if metric == "accuracy":
        return counts @ (answers == labels).T.astype(np.float64) / total
    raise ValueError(f"no bootstrap of {metric}")


def lifts(metric: str, ours, others: dict, labels, known=None, middle=np.mean, own=np.median, **resampling):
    """
    By how much `ours` [S, n] is above each of others {floor: [F, n]}: `own` of our S runs, the median, minus the
    `middle` of the floor's F. {floor: {"value", "low", "high", "verdict"}} with the 95 % percentile interval over
    paired resamples of the items. "above floor" only where all of it lies above 0. known: for `resampled`.
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
        raise UserError(f"{path} is missing; judge that run first, with the same --mode and --tasks")
    return read_json(path, "an evaluation"), read_arrays(path.with_suffix(".npz"))


def paired(metric: str, split: str, ours: list[dict], others: dict[str, list[dict]], middle, known=None):
    """`lifts` of runs over other runs, name -> runs, on the same rows of a split: of the `middle` of the seeds. A run
    is its answers, as `read_answers` returns them."""
    labels, kinds = ours[0][f"{split}/labels"], {key.removeprefix(f"{split}/") for key in ours[0]}
    kind = kind if (kind := answer_kind(metric, kinds)) in kinds else "predictions"  # of a trained head
    for name, runs in others.items():
        if not all(np.array_equal(labels, run.get(f"{split}/labels")) for run in (*ours, *runs)):
            raise UserError(f"{name} was judged on other rows of {split}; judge it again")
    rows = {name: np.concatenate([run[f"{split}/{kind}"] for run in runs]) for name, runs in others.items()}
    mine = np.concatenate([run[f"{split}/{kind}"] for run in ours])
    return lifts(metric, mine, rows, labels, known, middle, middle)


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval without labels, for the end of a run: which of 500 held-out bodies belongs to this first sentence?
#
# A query is the first sentence of a validation document, its answer what follows in it. Vectors are means of concepts,
# as in `LoadedRun.embed`; similarity is the cosine, raw and centred (less the mean over all queries and bodies). A
# query is answered where its own body is strictly the most similar: a tie is a miss. Intervals are of the difference to
# a floor, over paired resamples of the queries; the bodies they choose among stay.

PAIRS, FEWEST = 500, 20  # how many are asked for; fewer than these tell nothing
SEED = 20250101  # of the choice of documents: the same in every run
SHORTEST = 3, 8  # tokens of a first sentence and of a body; what is shorter hardly tells anything
LONGEST = 128  # tokens that are read of either: what bounds the cost on a corpus of long documents
TIE = 1e-9  # cosines that differ by less are equal: the order of a sum must not decide
KINDS = "raw", "centred"
RANDOM, TFIDF, TOKENS, UNTRAINED = "random vectors", "word TF-IDF", "token_idf", "the untrained twin"


def retrieval_pairs(corpus: Corpus, tokenizer, count: int = PAIRS) -> list[tuple[str, str]]:
    """
    Up to `count` (first sentence, rest of the document, without end-of-document), in a fixed pseudo-random order.
    No first sentence and no body comes twice, whatever its case and spaces: each query has one answer.
    """
    chosen, seen = [], set()
    for document in np.random.default_rng(SEED).permutation(len(corpus.documents) - 1):
        if len(chosen) == count:
            break
        start, end = corpus.documents[document : document + 2]
        second = np.searchsorted(corpus.sentences, start) + 1
        if second == len(corpus.sentences) or (cut := corpus.sentences[second]) >= end:
            continue
        end -= corpus.tokens[end - 1] == corpus.eod
        if cut - start < SHORTEST[0] or end - cut < SHORTEST[1]:
            continue
        ids = corpus.tokens[start:cut], corpus.tokens[cut:end]
        pair = [tokenizer.decode(x[:LONGEST].tolist(), skip_special_tokens=False).strip() for x in ids]
        keys = {(side, " ".join(text.lower().split())) for side, text in enumerate(pair)}
        if all(key for _, key in keys) and not keys & seen:
            chosen.append(tuple(pair))
            seen |= keys
    return chosen


def answered(queries: np.ndarray, bodies: np.ndarray) -> np.ndarray:
    """Vectors [n, D] of queries and of their bodies -> bool [n]: is a query's own body strictly the most alike? The
    cosine of a row of zeros is 0."""
    norms = (np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, bodies))
    x, y = (v / np.where(norm > 0, norm, 1) for v, norm in zip((queries, bodies), norms, strict=True))
    cosines = x @ y.T  # [n, n]
    own = cosines.diagonal().copy()
    np.fill_diagonal(cosines, -np.inf)
    return own > cosines.max(1) + TIE


def hits(vectors) -> dict[str, np.ndarray]:
    """Vectors [2n, D] of n queries, then their n bodies -> {"raw", "centred": int64 [1, n]}, 1 where answered."""
    vectors = np.asarray(vectors, np.float64)
    n = len(vectors) // 2
    both = vectors, vectors - vectors.mean(0)
    return {kind: answered(v[:n], v[n:])[None].astype(np.int64) for kind, v in zip(KINDS, both, strict=True)}


def retrieval_hits(run: LoadedRun, texts: list[str]):
    """(hits of the model, {floor: hits of its runs}); texts: n queries, then their n bodies."""
    words, vocabulary = word_counts(texts)
    plain = averages(words, np.ones(len(vocabulary)))
    tokens = count_matrix(run.encode_texts(texts), run.model.config.vocab_size)
    means, twins = averages(tokens, idf(tokens)), [run.twin(seed) for seed in range(UNTRAINED_SEEDS)]
    floors = {
        RANDOM: [hits(plain @ random_vectors(vocabulary, seed)) for seed in range(RANDOM_SEEDS)],
        TFIDF: [hits(scale_columns(words, idf(words)).toarray())],  # dense: LONGEST bounds it
        TOKENS: [hits(means @ twin.model.tokens.weight.detach().cpu().double().numpy()) for twin in twins],
        UNTRAINED: [hits(twin.embed(texts).numpy()) for twin in twins],
    }
    return hits(run.embed(texts).numpy()), {name: stack(runs) for name, runs in floors.items()}


def retrieval_verdict(lifts: dict[str, dict]) -> str:
    """Differences to the floors -> where retrieval stands. Its floor is what knows nothing that training taught."""
    groups = {"above": [], "not above": [], "below": []}
    for name, lift in lifts.items():
        groups["above" if lift["low"] > 0 else "below" if lift["high"] < 0 else "not above"].append(name)
    where = ", ".join(f"{how} {' and '.join(names)}" for how, names in groups.items() if names)
    at_floor = not {RANDOM, TOKENS, UNTRAINED} <= set(groups["above"])
    return f"retrieval is at its floor: {where}" if at_floor else f"retrieval is {where}"


def retrieval_table(run: LoadedRun, corpus: Corpus) -> str:
    """The table in Markdown with its verdict, or a sentence where there is too little text. corpus: held out."""
    pairs = retrieval_pairs(corpus, run.tokenizer)
    n = len(pairs)
    if n < FEWEST:
        return f"retrieval: {n} held-out documents have a first sentence and a body of their own, {FEWEST} are needed"
    texts = [query for query, _ in pairs] + [body for _, body in pairs]
    ours, floors = retrieval_hits(run, texts)
    over = {k: lifts("accuracy", ours[k], {f: runs[k] for f, runs in floors.items()}, np.ones(n)) for k in KINDS}

    def score(runs):  # [F, n]
        each = runs.mean(1)
        return format_range((each.mean(), each.min(), each.max()))

    rows = [["chance", *[format_range((1 / n,))] * 2, "", ""]]
    for name, runs in floors.items():
        rows.append([name, *(score(runs[k]) for k in KINDS), *(interval(over[k][name]) for k in KINDS)])
    rows.append(["this model", *(score(ours[k]) for k in KINDS), "", ""])
    header = [f"first sentence -> its body among {n}, % right", *KINDS, "this model less it, raw", "centred"]
    verdicts = {k: retrieval_verdict(over[k]) for k in KINDS}
    agree = len(set(verdicts.values())) == 1
    notes = [f"{verdicts['raw']} (raw and centred)"] if agree else [f"{k}: {text}" for k, text in verdicts.items()]
    few = "" if n == PAIRS else f"; {n} pairs are all that the validation text has"
    notes.append(
        f"[95 % interval over queries]; (least..most of {RANDOM_SEEDS} seeds of random vectors, {UNTRAINED_SEEDS} of "
        f"the twin and of token_idf, the idf-weighted mean of its token embeddings); texts end at {LONGEST} tokens and "
        f"are read {run.max_length} at a time{few}"
    )
    return "\n".join([table(header, rows), "", *notes])
