"""
Word order: which of two texts with the same words is the original held-out sentence?

    order = Order(run)                      # sentences of the run's own held-out text, changed by four rules
    ours = order.answers(run)               # {"dev": {"pooled": [1, n], "concepts": [1, n]}}: 1 if correct

A linear probe of frozen vectors decides: ridge regression on the difference of the two vectors, trained on half of the
pairs (penalty by leave-one-out error) and tested on the other half. A mean of token vectors is the same for both texts,
so its accuracy is 50 % by construction; anything else would be a leak.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable

import numpy as np

from lab.configurator import UserError, warn
from lab.evaluation.floors import NEGATIONS, UNTRAINED_SEEDS, averages, count_matrix, idf
from lab.evaluation.metrics import wilson
from lab.evaluation.scores import SUFFIX, stack
from lab.evaluation.tasks import TASKS
from lab.runs import LoadedRun

COUNT, FEWEST = 1500, 100  # pairs per rule, at most and at least
WORDS = 8, 16  # words of a text, at least and at most
APART = 3  # least distance in words of an exchange or a move
SENTENCES = 9000  # that the pairs are made from
STRENGTHS = 10.0 ** np.arange(-4, 3)  # ridge penalties, as multiples of the mean squared norm of a difference
ROUNDING = 1e-5  # differences below this share of a vector's norm count as zero

NUMBERS = {"two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "hundred", "thousand", "million"}


def is_content(word: str) -> bool:
    """A word of four or more letters that is no stop word."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # late: `--help` does without

    return word.isalpha() and len(word) > 3 and word.lower() not in ENGLISH_STOP_WORDS


def exchange(words: list[str], chance: random.Random) -> list[str] | None:
    """Exchanges two content words that are three or more places apart."""
    places = [i for i, word in enumerate(words) if is_content(word)]
    pairs = [(i, j) for i, j in itertools.combinations(places, 2) if j - i >= APART]
    if not pairs:
        return None
    i, j = chance.choice(pairs)
    return [*words[:i], words[j], *words[i + 1 : j], words[i], *words[j + 1 :]]


def halves(words: list[str], chance: random.Random) -> list[str]:
    """Exchanges the two halves."""
    middle = len(words) // 2
    return words[middle:] + words[:middle]


def move(words: list[str], chance: random.Random) -> list[str] | None:
    """Moves a negation or a number in front of another content word, three or more places away."""
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
    """Shuffles the words within windows of three."""
    windows = (words[i : i + 3] for i in range(0, len(words), 3))
    orders = ([list(order) for order in itertools.permutations(w) if list(order) != w] or [w] for w in windows)
    return [word for choices in orders for word in chance.choice(choices)]


RULES: dict[str, Callable] = {rule.__name__: rule for rule in (exchange, halves, move, shuffle)}


def make_pairs(sentences: list[str], count: int = COUNT, seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Rule -> at most `count` pairs (sentence, the same words rearranged). Final punctuation and the initial capital
    are dropped, as they would mark the end and the beginning."""
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


def right_ones(written, changed) -> np.ndarray:
    """Features [n, D] of the original and of the changed texts, dense or sparse -> [n // 2]: for the second half of the
    pairs, 1 if a linear probe trained on the first half prefers the original, 0.5 if the features are equal, else 0."""
    from sklearn.linear_model import RidgeCV  # late: `--help` does without

    change = written - changed
    lengths = [np.sqrt(np.asarray((x * x).sum(1), np.float64)).ravel() for x in (written, change)]
    n, differ = change.shape[0], lengths[1] > ROUNDING * lengths[0]
    test = np.arange(n) >= n - n // 2
    right, train = np.full(test.sum(), 0.5), differ & ~test
    if train.any():
        strengths = STRENGTHS * np.mean(lengths[1][train] ** 2)
        probe = RidgeCV(strengths, fit_intercept=False).fit(change[train], np.ones(train.sum()))
        right[differ[test]] = (np.sign(probe.predict(change[differ & test])) + 1) / 2 if (differ & test).any() else ()
    return right


class Order:
    """The task `order` of a run, with the interface of `Pairs`. Its only split is "dev"."""

    name, task, scored, fitted_on = "order", TASKS["order"], ["dev"], {}
    floors_of = "lab/evaluation/order.py"

    def __init__(self, run: LoadedRun, sentences: list[str] | None = None):
        """sentences: default: the run's own held-out ones. Leaves out pairs that do not fit into the run's rows or
        whose two texts differ in tokens, and, with a warning, rules with fewer than FEWEST pairs. UserError if no rule
        is left."""
        sentences, self.source = (sentences, "the given text") if sentences else run.held_out(SENTENCES)
        longest, self.rules, self.sides, few = run.max_length - run.added[0], {}, ([], []), []
        for rule, pairs in make_pairs(sentences).items():
            ids = zip(*(run.encode_texts(list(side)) for side in zip(*pairs, strict=True)), strict=True)
            good = [len(a) <= longest and sorted(a) == sorted(b) for a, b in ids]
            if sum(good) < FEWEST:
                few.append(f"{rule} ({sum(good)})")
                continue
            self.rules[rule] = slice(len(self.sides[0]), len(self.sides[0]) + sum(good))
            for side, texts in zip(self.sides, zip(*itertools.compress(pairs, good), strict=True), strict=True):
                side.extend(texts)
        if not self.rules:
            what = f"order needs {FEWEST} sentences of {WORDS[0]} to {WORDS[1]} words that the run reads whole"
            raise UserError(f"{what}, not {self.source}; give --data_dir, where its prepared data are, or --text")
        if few:
            warn(f"order is of {len(self.rules)} rules: fewer than {FEWEST} pairs of {', '.join(few)}")
        numbers = [np.full((at.stop - at.start) // 2, i) for i, at in enumerate(self.rules.values())]
        self.labels = {"dev": np.concatenate(numbers)}
        self.sets = {"dev": np.array([*self.rules])[self.labels["dev"]]}

    def digest(self) -> str:
        """Hash of the texts."""
        return hashlib.sha256(json.dumps(self.sides).encode()).hexdigest()[:16]

    @staticmethod
    def version() -> str:
        """The rows' part of a record's version: constant, since the rows follow from the run."""
        return "order"

    def probed(self, features: Callable) -> np.ndarray:
        """`right_ones` of each rule's pairs, [1, n]; features: texts [m] -> [m, D]."""
        found = []
        for at in self.rules.values():
            written, changed = (side[at] for side in self.sides)
            values = features([*written, *changed])
            found.append(right_ones(values[: len(written)], values[len(written) :]))
        return np.concatenate(found)[None]

    def answers(self, run: LoadedRun) -> dict[str, dict[str, np.ndarray]]:
        """Probes of the pooled vector, and of all concepts concatenated."""
        pooled = self.probed(lambda texts: run.pooled(texts).numpy())
        return {"dev": {"pooled": pooled, "concepts": self.probed(run.all_concepts)}}

    def intervals(self, answers: dict) -> dict[str, dict[str, float]]:
        """Accuracy of each rule with its 95 % interval (Wilson 1927): {"value", "low", "high"}."""
        found = {}
        for kind, (number, rule) in itertools.product(answers, enumerate(self.rules)):
            found[rule + SUFFIX[kind]] = wilson(answers[kind][0, self.labels["dev"] == number])
        return found

    def floors(self, run: LoadedRun) -> dict[str, dict[str, dict]]:
        """Floor -> split -> answers. untrained: the same model at 5 initial seeds; token_idf: the idf-weighted mean of
        its token embeddings, which has no order; token_ngrams: counts of token bigrams and trigrams."""

        def grams(texts):
            encoded = run.encode_texts(texts)
            rows = [[tuple(ids[i : i + n]) for n in (2, 3) for i in range(len(ids) - n + 1)] for ids in encoded]
            number = {gram: i for i, gram in enumerate(dict.fromkeys(gram for row in rows for gram in row))}
            return count_matrix([[number[gram] for gram in row] for row in rows], len(number))

        def token_mean(texts):
            counts = count_matrix(run.encode_texts(texts), run.model.config.vocab_size)
            return averages(counts, idf(counts)) @ twin.model.tokens.weight.detach().cpu().double().numpy()

        seeds = []
        for twin in map(run.twin, range(UNTRAINED_SEEDS)):
            mean = self.probed(token_mean)
            static = {"dev": {"pooled": mean, "concepts": mean}}
            seeds.append({"token_idf": static, "untrained": self.answers(twin)})
        ngrams = self.probed(grams)
        return {"token_ngrams": {"dev": {"pooled": ngrams, "concepts": ngrams}}} | stack(seeds)
