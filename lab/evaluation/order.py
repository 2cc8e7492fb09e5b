"""
Order: of two texts with the same words, one as it was written in held-out text, which is it?

    pairs = of_same_tokens(make_pairs(sentences), run)      # {"exchange": [(as written, changed), ...], "halves": ...}
    ours = answers(run, pairs)                              # {"pooled": {"exchange": [1, n], ...}, "concepts": ...}
    print(judge_order(ours, floors(run, pairs)))

A linear probe of frozen vectors answers: ridge regression on the difference of the two, each pair judged by a probe of
all the other pairs (closed leave-one-out error, Allen 1974). A mean of token vectors is the same for both texts and
stands at 50 % by construction; should it not, the task gives something away.
"""

import itertools
import random
from collections.abc import Callable

import numpy as np
from scipy import sparse
from scipy.stats import binomtest

from lab.evaluation.floors import UNTRAINED_SEEDS, averages, count_matrix, idf
from lab.evaluation.scores import bootstrap, stack
from lab.runs import LoadedRun

COUNT, FEWEST = 1000, 50  # pairs of a rule, at most and at least
WORDS = 8, 16  # of a text
APART = 3  # places between what is exchanged or moved
LIFTS = {"order": "lift", "order_concepts": "lift_concepts"}  # metric -> its lift in a record
STRENGTHS = 10.0 ** np.arange(-4, 3)  # of the ridge, x the mean square of a difference
ROUNDING = 1e-5  # of a vector's length: a smaller difference is none

NEGATIONS = {"no", "not", "never", "none", "without", "cannot", "neither", "nor"}
NUMBERS = {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "hundred", "thousand", "million"}


def is_content(word: str) -> bool:
    """A word of letters, four or more, that stands in no list of function words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # late: `--help` does without

    return word.isalpha() and len(word) > 3 and word.lower() not in ENGLISH_STOP_WORDS


def exchange(words: list[str], chance: random.Random) -> list[str] | None:
    """Two content words, three or more places apart, are exchanged."""
    places = [i for i, word in enumerate(words) if is_content(word)]
    pairs = [(i, j) for i, j in itertools.combinations(places, 2) if j - i >= APART]
    if not pairs:
        return None
    i, j = chance.choice(pairs)
    return [*words[:i], words[j], *words[i + 1 : j], words[i], *words[j + 1 :]]


def halves(words: list[str], chance: random.Random) -> list[str]:
    """The two halves are exchanged."""
    middle = len(words) // 2
    return words[middle:] + words[:middle]


def move(words: list[str], chance: random.Random) -> list[str] | None:
    """A negation or a number goes to another content word, three or more places away."""
    asked = [i for i, word in enumerate(words) if word.lower() in NEGATIONS | NUMBERS or word.isdigit()]
    if not asked:
        return None
    i = chance.choice(asked)
    others = words[:i] + words[i + 1 :]
    places = [j for j, word in enumerate(others) if is_content(word) and abs(j - i) >= APART]
    if not places:
        return None
    j = chance.choice(places)
    return [*others[:j], words[i], *others[j:]]


def shuffle(words: list[str], chance: random.Random) -> list[str]:
    """The words are shuffled within windows of three."""
    windows = (words[i : i + 3] for i in range(0, len(words), 3))
    orders = ([list(order) for order in itertools.permutations(w) if list(order) != w] or [w] for w in windows)
    return [word for choices in orders for word in chance.choice(choices)]


RULES: dict[str, Callable] = {rule.__name__: rule for rule in (exchange, halves, move, shuffle)}


def make_pairs(sentences: list[str], count: int = COUNT, seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Rule -> at most `count` pairs of a sentence and the same words otherwise arranged. Its last mark and its first
    capital are dropped: they would give its end and its beginning away."""
    chance, pairs = random.Random(seed), {rule: [] for rule in RULES}
    for sentence in sentences:
        words = sentence.rstrip(" .!?;:\"')").split()
        if not WORDS[0] <= len(words) <= WORDS[1]:
            continue
        words[0] = words[0][:1].lower() + words[0][1:]
        for rule, change in RULES.items():
            changed = change(words, chance) if len(pairs[rule]) < count else None
            if changed and changed != words:
                pairs[rule].append((" ".join(words), " ".join(changed)))
    return pairs


def of_same_tokens(pairs: dict[str, list], run: LoadedRun) -> dict[str, list]:
    """The pairs whose texts the run reads whole and as the same tokens; no rule with fewer than FEWEST."""
    kept, longest = {}, run.max_length - run.added[0]
    for rule, both in pairs.items():
        ids = zip(*(run.encode_texts(list(texts)) for texts in zip(*both, strict=True)), strict=True)
        good = [len(a) <= longest and sorted(a) == sorted(b) for a, b in ids]
        if sum(good) >= FEWEST:
            kept[rule] = list(itertools.compress(both, good))
    return kept


def right_ones(written, changed) -> np.ndarray:
    """Features [n, D] of texts as written and of the changed ones, dense or sparse -> [n]: 1 where a linear probe of
    the other pairs prefers the one that was written, 0.5 where both are alike."""
    from sklearn.linear_model import RidgeCV  # late: `--help` does without

    change = written - changed
    lengths = [np.sqrt(np.asarray((x * x).sum(1), np.float64)).ravel() for x in (written, change)]
    differ = lengths[1] > ROUNDING * lengths[0]
    if differ.sum() < 2:
        return np.full(len(differ), 0.5)
    change = change[differ] if sparse.issparse(change) else change[differ].astype(np.float64)
    strengths = STRENGTHS * np.mean(lengths[1][differ] ** 2)
    probe = RidgeCV(strengths, fit_intercept=False, scoring="neg_mean_squared_error", store_cv_results=True)
    probe.fit(change, np.ones(change.shape[0]))
    told = probe.cv_results_.reshape(change.shape[0], -1)[:, strengths == probe.alpha_][:, 0]
    right = np.full(len(differ), 0.5)
    right[differ] = np.where(told == 0, 0.5, told > 0)
    return right


def probed(pairs: dict[str, list], features: Callable) -> dict[str, np.ndarray]:
    """Rule -> `right_ones` [1, n]; features: list of 2 n texts -> [2 n, D]."""
    found = {}
    for rule, both in pairs.items():
        values = features([text for side in zip(*both, strict=True) for text in side])  # the written ones first
        found[rule] = right_ones(values[: len(both)], values[len(both) :])[None]
    return found


def answers(run: LoadedRun, pairs: dict[str, list]) -> dict[str, dict[str, np.ndarray]]:
    """What the probe reads, the pooled vector or all concepts -> rule -> [1, n]."""

    def concepts(texts):
        return np.concatenate([run.concepts(texts[i : i + 64]).flatten(1).numpy() for i in range(0, len(texts), 64)])

    return {"pooled": probed(pairs, lambda texts: run.embed(texts).numpy()), "concepts": probed(pairs, concepts)}


def floors(run: LoadedRun, pairs: dict[str, list]) -> dict[str, dict[str, dict]]:
    """Floor -> way to read -> rule -> [F, n]: the untrained twin; the idf-weighted mean of its token embeddings, which
    knows no order; which tokens follow which (counts of pairs and triples)."""
    size = run.model.config.vocab_size

    def grams(texts):
        encoded = run.encode_texts(texts)
        rows = [[tuple(ids[i : i + n]) for n in (2, 3) for i in range(len(ids) - n + 1)] for ids in encoded]
        number = {gram: i for i, gram in enumerate(dict.fromkeys(gram for row in rows for gram in row))}
        return count_matrix([[number[gram] for gram in row] for row in rows], len(number))

    def token_mean(texts):
        counts = count_matrix(run.encode_texts(texts), size)
        return averages(counts, idf(counts)) @ twin.model.tokens.weight.detach().cpu().double().numpy()

    ngrams, seeds = probed(pairs, grams), []
    for seed in range(UNTRAINED_SEEDS):
        twin = run.twin(seed)
        mean, untrained = probed(pairs, token_mean), answers(twin, pairs)
        seeds.append({"token_idf": dict.fromkeys(untrained, mean), "untrained": untrained})
    return {"token_ngrams": dict.fromkeys(untrained, ngrams)} | stack(seeds)


# ---------------------------------------------------------------------------------------------------------------------
# What is made of the answers


def above_chance(right: dict[str, np.ndarray], counts=None) -> np.ndarray:
    """Rule -> [F, n of the rule] -> [R, F]: the mean over rules of 2 x the share that is right - 1, 0 at chance, 1 if
    all are right. counts [R, n of all rules]: how often each of R resamples holds a pair."""
    total, at = 0.0, 0
    for answers in right.values():
        n = answers.shape[1]
        weight = np.ones((1, n)) if counts is None else counts[:, at : at + n]
        total, at = total + 2 * (weight @ answers.T / weight.sum(1, keepdims=True)) - 1, at + n
    return total / len(right)


def order_lifts(ours: dict[str, np.ndarray], others: dict[str, dict[str, np.ndarray]]) -> dict[str, dict]:
    """By how much our `above_chance` is above each floor's mean: floor -> {"value", "low", "high", "verdict"}; the 95 %
    interval is over resamples of the pairs."""
    n = sum(answers.shape[1] for answers in ours.values())

    def differences(counts):
        mine = above_chance(ours, counts).mean(1)
        return np.stack([mine - above_chance(other, counts).mean(1) for other in others.values()], 1)

    found = dict(zip(others, bootstrap(differences, n), strict=True))
    return {name: one | {"verdict": "above floor" if one["low"] > 0 else "at floor"} for name, one in found.items()}


def named(way: str, what: str) -> str:
    """A metric's name: "order", "exchange" of the pooled vector, "order_concepts" of all concepts."""
    return what if way == "pooled" else f"{what}_{way}"


def values(by_way: dict[str, dict]) -> dict[str, np.ndarray]:
    """Way to read -> rule -> [F, n] -> metric -> [F]."""
    found = {}
    for way, right in by_way.items():
        found[named(way, "order")] = above_chance(right)[0]
        found |= {named(way, rule): answers.mean(1) for rule, answers in right.items()}
    return found


def judge_order(ours: dict[str, dict], theirs: dict[str, dict]) -> dict:
    """ours: way to read -> rule -> [1, n]; theirs: floor -> the same -> what a record says of a split: {metrics,
    floors, untrained_range, intervals (Wilson's, of the shares that are right), lift, lift_concepts}."""
    each = {floor: values(by_way) for floor, by_way in theirs.items()}
    result = {
        "metrics": {metric: float(value[0]) for metric, value in values(ours).items()},
        "floors": {floor: {metric: float(v.mean()) for metric, v in own.items()} for floor, own in each.items()},
        "untrained_range": {metric: [float(v.min()), float(v.max())] for metric, v in each["untrained"].items()},
        "intervals": {},
    }
    for way, right in ours.items():
        for rule, answers in right.items():
            low, high = binomtest(int(answers.sum()), answers.size).proportion_ci(method="wilson")
            result["intervals"][named(way, rule)] = {"value": float(answers.mean()), "low": low, "high": high}
        found = order_lifts(right, {floor: by_way[way] for floor, by_way in theirs.items()})
        best = max(found, key=lambda floor: result["floors"][floor][named(way, "order")])  # noqa: B023
        best_floor = {"best_floor": {"floor": best, **found[best]}}
        result[LIFTS[named(way, "order")]] = best_floor | {name: found[name] for name in ("token_idf", "untrained")}
    return result
