"""
Linear probes: what a linear classifier can predict from frozen concepts (Conneau et al. 2018, arXiv:1805.01070).

Labels are derived from the text itself. The baselines are the same probe of the untrained model, a probe of a bag of
words, and the most frequent class: only what exceeds all three was learned in training.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from scipy import sparse

from lab.evaluation.floors import word_counts
from lab.evaluation.metrics import wilson

STRENGTHS = 10.0 ** np.arange(-5, 3)  # ridge penalties, as multiples of the mean diagonal of the Gram matrix
FEWEST = 10  # texts of the rarest class that a probe needs in training and test


@dataclass
class Probe:
    """texts [n], labels [n], and which are the test set [n]; about: the question, in a sentence."""

    name: str
    about: str
    texts: list[str]
    labels: np.ndarray
    test: np.ndarray


def accuracy(features, probe: Probe) -> dict[str, float]:
    """features [n, D], dense or sparse -> test accuracy with its 95 % interval (Wilson 1927). A ridge classifier, its
    penalty chosen by leave-one-out error."""
    from sklearn.linear_model import RidgeClassifierCV  # late: it takes a second

    train = features[~probe.test]
    if sparse.issparse(features):
        energy = train.multiply(train).sum() - len(probe.labels[~probe.test]) * np.square(train.mean(0)).sum()
    else:  # a large common mean would cost precision
        features = features.astype(np.float64) - train.mean(0, dtype=np.float64)
        train = features[~probe.test]
        energy = (train**2).sum()
    strengths = STRENGTHS * max(energy / train.shape[0], 1e-30)
    model = RidgeClassifierCV(strengths).fit(train, probe.labels[~probe.test])
    right = model.predict(features[probe.test]) == probe.labels[probe.test]
    return wilson(right)


def score(probe: Probe, embedders: dict[str, Callable[[list[str]], np.ndarray]]) -> dict[str, dict | float]:
    """{"majority": accuracy of the most frequent class, "bag_of_words" and each embedder's name: `accuracy`}."""
    test = probe.labels[probe.test]
    common = max(np.unique(probe.labels[~probe.test]), key=lambda c: (probe.labels[~probe.test] == c).sum())
    scores = {"majority": float((test == common).mean())}
    scores["bag_of_words"] = accuracy(word_counts(probe.texts)[0], probe)
    return scores | {name: accuracy(embed(probe.texts), probe) for name, embed in embedders.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The questions


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]+", text)


def parted(name: str, about: str, chosen: list[tuple[str, int]], count: int, random: Random) -> Probe | None:
    """A probe of at most `count` of these (text, label), a quarter of them for the test; None if a class has too
    few."""
    random.shuffle(chosen)
    texts, labels = [text for text, _ in chosen[:count]], np.array([label for _, label in chosen[:count]], np.int64)
    test = np.arange(len(texts)) < len(texts) // 4
    return checked(Probe(name, about, texts, labels, test))


def checked(probe: Probe) -> Probe | None:
    rarest = [np.unique(probe.labels[part], return_counts=True)[1] for part in (probe.test, ~probe.test)]
    kinds = len(np.unique(probe.labels))
    enough = all(len(counts) == kinds > 1 and counts.min() >= FEWEST for counts in rarest)
    return probe if enough else None


def length(texts, count, random):
    """Into which third of all texts, by its number of words, does a text fall?"""
    sizes = np.array([len(words(text)) for text in texts])
    cuts = np.quantile(sizes, [1 / 3, 2 / 3])
    return list(zip(texts, np.searchsorted(cuts, sizes, side="left").tolist(), strict=True))


def word_content(texts, count, random, kinds: int = 10):
    """Which one of ten words, none of them rare or very common, does a text hold?"""
    sets = [set(re.findall(r"[a-z]{4,}", text.lower())) for text in texts]
    seen = {}
    for own in sets:
        for word in own:
            seen[word] = seen.get(word, 0) + 1
    rare = sorted((n, word) for word, n in seen.items() if n <= 0.02 * len(texts))
    asked = [word for _, word in rare[-kinds:]]
    held = [[i for i, word in enumerate(asked) if word in own] for own in sets]
    return [(text, own[0]) for text, own in zip(texts, held, strict=True) if len(own) == 1]


def word_order(texts, count, random):
    """Were two neighbouring words of a text swapped?"""
    chosen = []
    for text in texts[: 2 * count]:
        own = text.split()
        places = [i for i in range(len(own) - 1) if own[i].isalpha() and own[i + 1].isalpha() and own[i] != own[i + 1]]
        if places:
            swapped = random.random() < 0.5
            if swapped:
                i = random.choice(places)
                own[i], own[i + 1] = own[i + 1], own[i]
            chosen.append((" ".join(own), int(swapped)))
    return chosen


COPULAS = {"is": (0, 0), "are": (0, 1), "was": (1, 0), "were": (1, 1)}  # past, plural


def across_forms(name: str, about: str, texts, asked: int, held: int, count: int, random: Random) -> Probe | None:
    """Texts with exactly one form of "to be". The class is one property of the form (tense or number); training and
    test differ in the other property, so that the form itself does not reveal the class. Classes are balanced."""
    groups = {}
    for text in texts:
        if len(found := [w for w in re.findall(r"[a-z]+", text.lower()) if w in COPULAS]) == 1:
            form = COPULAS[found[0]]
            groups.setdefault((form[held], form[asked]), []).append((text, form[asked]))
    if len(groups) < 4:
        return None
    chosen, test = [], []
    for kind, most in ((0, count), (1, count // 3)):
        size = min(most // 2, *(len(groups[kind, label]) for label in (0, 1)))
        for label in (0, 1):
            chosen += random.sample(groups[kind, label], size)
            test += [kind == 1] * size
    texts, labels = zip(*chosen, strict=True)
    return checked(Probe(name, about, list(texts), np.array(labels), np.array(test)))


def probes(texts: list[str], count: int, seed: int = 0) -> dict[str, Probe | None]:
    """The five probes, of at most `count` of these texts each; None if too few texts are suitable."""
    random, found = Random(seed), {}
    for ask in (length, word_content, word_order):
        name = ask.__name__
        found[name] = parted(name, ask.__doc__, ask(texts, count, random), count, random)
    past = "Is a text in the past? Learned from is and was, asked of are and were."
    found["tense"] = across_forms("tense", past, texts, 0, 1, count, random)
    plural = "Is its subject in the plural? Learned from is and are, asked of was and were."
    found["number"] = across_forms("number", plural, texts, 1, 0, count, random)
    return found
