"""
Floors: the baselines that every score is compared with.

    floors = task_floors(run, pairs, cache)             # {"word_tfidf": {"dev": answers, ..}, .., "untrained": ..}
    lifts("pearson", ours, {"untrained": theirs}, labels)       # the difference, with its 95 % interval
    beyond_words(ours, labels, word_controls(pairs, "dev", theirs))     # partial rank correlations

Words are `[a-z0-9']+` of the lower-cased text; character n-grams (3, 4, 5) are taken within words padded with one space
on each side; tf is the raw count, idf = ln((1 + n) / (1 + df)) + 1 over both sentences of the task's train pairs. If a
task has no train split, idf, centring and thresholds are fitted on the other labelled split; if it has a single split,
on that split's own sentences, without labels.
"""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from lab.command import log
from lab.configurator import warn
from lab.data.tokenizers import pad_batch
from lab.evaluation.scores import cosine, dot, load_arrays, predict, save_arrays, stack
from lab.evaluation.tasks import Pairs
from lab.runs import ADAPTED, LoadedRun
from lab.sources import sources, weights
from model import AFTER_CONCEPTS

WORD = re.compile(r"[a-z0-9']+")
RANDOM_WIDTH, RANDOM_SEEDS, UNTRAINED_SEEDS = 256, 8, 5
SIF = 1e-3  # a of token_sif

# ---------------------------------------------------------------------------------------------------------------------
# Floors computed from the texts alone


def count_matrix(rows, width: int) -> sparse.csr_array:
    """n lists of ids below `width` -> counts of each id in each list, float64 [n, width]."""
    ends = np.cumsum([0] + [len(row) for row in rows])
    ids = np.fromiter((i for row in rows for i in row), np.int64, ends[-1])
    counts = sparse.csr_array((np.ones(len(ids)), ids, ends), shape=(len(rows), width))
    counts.sum_duplicates()
    return counts


def word_counts(sentences) -> tuple[sparse.csr_array, list[str]]:
    """Counts [n, W] of words, and the W words."""
    number = {}
    rows = [[number.setdefault(word, len(number)) for word in WORD.findall(text.lower())] for text in sentences]
    return count_matrix(rows, len(number)), list(number)


def char_counts(counts, words) -> sparse.csr_array:
    """Word counts [n, W] -> counts [n, G] of the character 3-, 4- and 5-grams within the words."""
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
    """A [n, W] such that A @ vectors [W, D] is the weighted mean of the vectors of the items counted in each row of
    counts [n, W], with weights [W]; 0 for an empty row."""
    weighted = scale_columns(counts, weights)
    total = np.asarray(weighted.sum(1)).ravel()
    return scale_rows(weighted, 1 / np.where(total > 0, total, 1))


def random_vectors(words, seed: int, width: int = RANDOM_WIDTH) -> np.ndarray:
    """A Gaussian vector per word [W, width], a function of word and seed alone: splitmix64 of a hash of the word, then
    Box-Muller."""
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
    """Split -> answers: always the most frequent class of that split, the best constant prediction."""
    labels = {split: pairs.labels[split] for split in pairs.scored}
    return {split: {"predictions": np.full((1, len(x)), np.bincount(x).argmax())} for split, x in labels.items()}


def each_idf(counts, pairs: Pairs) -> dict[str, np.ndarray]:
    """Fitting split -> idf [W] over both sentences of its pairs, repeated sentences included."""
    return {other: idf(counts[pairs.index[other].ravel()]) for other in set(pairs.fitted_on.values())}


def predictions(vectors, pairs: Pairs, adapted=ADAPTED["static"], probe=False) -> dict[str, dict]:
    """Split -> answers of `vectors` [U, D], or of a dict {fitting split: vectors} if they depend on it."""
    return {
        split: predict(vectors[other] if isinstance(vectors, dict) else vectors, pairs, split, adapted, probe)
        for split, other in pairs.fitted_on.items()
    }


def text_floors(pairs: Pairs) -> dict[str, dict[str, dict]]:
    """Floor -> split -> answers: majority (not for scores), word_tfidf, char_tfidf, random_vectors."""
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
    """Split -> surface features [n, F]. Pairs: overlap of words and characters, lengths, negations, standardised on the
    training split. Single sentences: TF-IDF, in rows of norm 1."""
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
        columns += [cosine(x, index) for x in (tfidf, chars)] + [np.abs(lengths[a] - lengths[b]), lengths[a]]
        columns += [negations[a], negations[b], np.abs(negations[a] - negations[b])]
        features[split] = np.stack(columns, 1)
    known = features[pairs.trained_on]
    mean, scale = known.mean(0), np.maximum(known.std(0), 1e-9)
    return {split: (x - mean) / scale for split, x in features.items()}


def overlap_floor(pairs: Pairs) -> dict[str, dict]:
    """Split -> answers of a linear model of `overlap_features` fitted on the training split: ridge regression for
    scores, logistic regression for classes. The penalty is half the squared weights, the intercept included."""
    from sklearn.dummy import DummyClassifier  # late: they take a second
    from sklearn.linear_model import LogisticRegression, Ridge

    x = overlap_features(pairs, [pairs.trained_on, *pairs.scored])
    stacked = sparse.hstack if sparse.issparse(x[pairs.trained_on]) else np.hstack
    x = {split: stacked([rows, np.ones((rows.shape[0], 1))]) for split, rows in x.items()}
    labels, kind, model = pairs.labels[pairs.trained_on], "predictions", DummyClassifier()  # for a single class
    if pairs.task.kind == "score":
        kind, model = "cosines", Ridge(fit_intercept=False)
    elif (classes := len(np.unique(labels))) > 1:  # with two classes only one has weights, which halves the penalty
        model = LogisticRegression(C=2 if classes == 2 else 1, fit_intercept=False, max_iter=2000)
    model.fit(x[pairs.trained_on], labels)
    return {split: {kind: model.predict(x[split])[None]} for split in pairs.scored}


# ---------------------------------------------------------------------------------------------------------------------
# Floors that need the untrained model, and the cache of all floors


def embed(run: LoadedRun, pairs: Pairs) -> np.ndarray:
    """Vectors [U, H] of pairs.sentences, unadapted (adapting is fitted on the task later, for every method separately);
    zero for sentences that `predict` does not use."""
    needed = pairs.needed()
    vectors = np.zeros((len(pairs.sentences), run.config["hidden"]), np.float32)
    vectors[needed] = run.pooled([pairs.sentences[i] for i in needed]).float().numpy()
    return vectors


@torch.no_grad()
def state_means(run: LoadedRun, texts: list[str], idfs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fitting split -> the idf-weighted mean of the states of the run's backbone, as its encoder reads them (each
    dimension standardised), float64 [n, W]; of a longer text over its first max(lengths) tokens. idfs: split -> [V]."""
    rows = [run.wrap(ids[: run.max_length - run.added[0]]) for ids in run.encode_texts(texts)]
    order = np.argsort([len(row) for row in rows])
    means = {split: np.zeros((len(rows), run.model.config.token_width)) for split in idfs}
    for part in np.array_split(order, range(256, len(order), 256)):
        ids, mask = (
            torch.from_numpy(x).to(run.device) for x in pad_batch([rows[i] for i in part], run.config["pad_id"])
        )
        states = run.model.read_backbone(ids, None, mask).cpu().double()
        for split, known in idfs.items():
            weights = torch.from_numpy(known)[ids.cpu()] * mask.cpu()
            mean = torch.einsum("bs, bsw -> bw", weights, states) / weights.sum(1, keepdim=True).clamp_min(1e-12)
            means[split][part] = mean.numpy()
    return means


def model_floors(run: LoadedRun, pairs: Pairs) -> dict[str, dict[str, dict]]:
    """Floor -> split -> answers at 5 initial seeds, of a reference 1. untrained: the same architecture and init;
    token_idf: the idf-weighted mean of its token embeddings; token_sif: their mean weighted by a / (a + p(token)), p
    the token's frequency in the run's corpus (Arora et al. 2017, ICLR), if the corpus is available. And of a frozen
    backbone state_idf: `state_means`, without a seed."""
    counts = count_matrix(run.encode_texts(pairs.sentences), run.model.config.vocab_size)
    idfs, frequency = each_idf(counts, pairs), run.token_frequency()
    means = {"token_idf": {other: averages(counts, weights) for other, weights in idfs.items()}}
    if frequency is not None:
        means["token_sif"] = dict.fromkeys(idfs, averages(counts, SIF / (SIF + frequency)))
    fixed = {}
    if run.model.fixed_backbone:
        states = state_means(run.twin(0), pairs.sentences, idfs)
        fixed["state_idf"] = predictions(states, pairs, probe=True)
    seeds = []
    for seed in range(min(UNTRAINED_SEEDS, run.most_twins)):
        twin = run.twin(seed)
        tokens = twin.model.tokens.weight.detach().cpu().double().numpy()  # [V, T]
        lexical = {
            floor: predictions({other: mean @ tokens for other, mean in own.items()}, pairs, probe=True)
            for floor, own in means.items()
        }
        seeds.append(lexical | {"untrained": predictions(embed(twin, pairs), pairs, ADAPTED["model"], True)})
    return fixed | stack(seeds)


def cache_key(run: LoadedRun, pairs: Pairs) -> str:
    """Hash of everything that the floors of a task depend on, including code."""
    model = asdict(run.model.config) | {"mask_id": run.model.mask_id, "chunk": run.max_length}
    model |= run.model.options._asdict()
    settings = [sources(pairs.floors_of, run.model), model, run.config["tokenizer_hash"], pairs.digest()]
    digest = hashlib.sha256(json.dumps(settings).encode())
    if run.model.token_vectors is not None:  # they initialise the untrained twins
        digest.update(run.model.token_vectors.cpu().numpy().tobytes())
    if run.model.frozen:  # and so do these weights
        digest.update(weights(run.model, AFTER_CONCEPTS).encode())
    return digest.hexdigest()[:16]


def version(pairs) -> str:
    """Version of a record: the code and the rows that it was computed from. pairs: Pairs, Order or the class Order."""
    return f"{sources('eval_glue.py')[:16]}_{pairs.version()}"


def task_floors(run: LoadedRun, pairs: Pairs, cache: Path, make=None) -> dict[str, dict[str, dict]]:
    """Floor -> split -> answers, from the folder `cache`, or computed and stored there. make: computes floors that
    are not those of similarity."""
    frequency = run.token_frequency()  # of token_sif
    if frequency is None:
        log(f"{pairs.name}: the run's text is not at hand, so there is no floor token_sif")
    corpus = "" if frequency is None else hashlib.sha256(frequency.tobytes()).hexdigest()[:8]
    path = cache / f"{pairs.name}_{cache_key(run, pairs)}{corpus}.npz"
    if arrays := load_arrays(path):
        floors = {}
        for name, array in arrays.items():
            floor, split, kind = name.split("/")
            floors.setdefault(floor, {}).setdefault(split, {})[kind] = array
        return floors
    log(f"{pairs.name}: floors, and the untrained model, seeds: {min(UNTRAINED_SEEDS, run.most_twins)}")
    floors = make(run) if make else text_floors(pairs) | model_floors(run, pairs)
    try:
        cache.mkdir(exist_ok=True)
        save_arrays(path, {f"{f}/{s}/{k}": v for f, d in floors.items() for s, a in d.items() for k, v in a.items()})
    except OSError as error:
        warn(f"{cache} cannot be written ({error.strerror}); the floors will be computed again next time")
    return floors


def fine_tune_floors(run: LoadedRun, pairs: Pairs, cache: Path) -> dict[str, dict[str, dict]]:
    """Floor -> split -> answers for comparison with a trained head: the zero-shot floors of similarity tasks, majority,
    overlap_features."""
    if pairs.task.kind == "classification":
        floors = {"majority": majority(pairs)}
    else:
        floors = task_floors(run, pairs, cache)
        del floors["untrained"]  # the untrained twin is fine-tuned instead
    return floors | {"overlap_features": overlap_floor(pairs)}


def word_controls(pairs: Pairs, split: str, theirs: dict[str, dict]) -> dict[str, np.ndarray]:
    """Control -> [n]: cosines of three floors, averaged over seeds (raw; those of token_idf are centred, as the
    evaluated cosines are, else centring alone would count as knowledge); Jaccard similarity of the word sets; |ln of
    the ratio of lengths in words| (an empty sentence counts as one word). theirs: floor -> answers to the split."""
    counts = word_counts(pairs.sentences)[0]
    present, lengths = (counts > 0).astype(np.float64), np.maximum(counts.sum(1), 1)
    a, b = pairs.index[split].T
    shared, sizes = dot(present[a], present[b]), present.sum(1)
    jaccard = shared / np.maximum(sizes[a] + sizes[b] - shared, 1)
    ratio = np.maximum(lengths[a], lengths[b]) / np.minimum(lengths[a], lengths[b])  # the same float for equal ratios
    kinds = {"char_tfidf": "cosines", "word_tfidf": "cosines", "token_idf": "centred"}
    cosines = {floor: theirs[floor][kind].mean(0) for floor, kind in kinds.items() if floor in theirs}
    return cosines | {"jaccard": jaccard, "length": np.log(ratio)}
