"""Order tasks: what the rules change, the probe against a loop, and that a bag of words stands at chance."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

from lab.evaluation import order
from tests.corpus import sentence

CHANCE = random.Random(3)
SENTENCES = list(dict.fromkeys(sentence(CHANCE) for _ in range(700)))
NEGATED = ["people in large cities do not always remember the narrow streets near rivers.", "two dogs ran past."]


def test_the_rules_keep_the_words():
    for text in [*SENTENCES[:100], *NEGATED]:
        words = text.split()
        for rule in order.RULES.values():
            changed = rule(words, CHANCE)
            assert changed is None or sorted(changed) == sorted(words)
    words = "the cautious painter never finished another portrait".split()
    assert sum(a != b for a, b in zip(order.exchange(words, CHANCE), words, strict=True)) == 2
    assert order.exchange("the cautious painter is here".split(), CHANCE) is None  # no two are three places apart
    assert order.halves("a b c d e".split(), CHANCE) == "c d e a b".split()
    moved = order.move(NEGATED[0].split(), CHANCE)
    assert [w for w in moved if w != "not"] == [w for w in NEGATED[0].split() if w != "not"]
    assert abs(moved.index("not") - 5) >= 3 and order.is_content(moved[moved.index("not") + 1])
    assert order.move("nothing of that kind is here".split(), CHANCE) is None
    shuffled = order.shuffle([*"abcdefgh"], CHANCE)
    assert [sorted(shuffled[i : i + 3]) for i in (0, 3, 6)] == [[*"abc"], [*"def"], [*"gh"]]
    assert all(shuffled[i : i + 3] != [*"abcdefgh"][i : i + 3] for i in (0, 3, 6))


def test_pairs_are_plain_and_repeat():
    pairs = order.make_pairs([*SENTENCES, "Short one.", *NEGATED], count=50)
    assert pairs == order.make_pairs([*SENTENCES, "Short one.", *NEGATED], count=50)
    assert [len(pairs[rule]) for rule in ("exchange", "halves", "move", "shuffle")] == [50, 50, 1, 50]
    assert all(8 <= len(a.split()) <= 16 and a[-1] not in ".!?" and a != b for both in pairs.values() for a, b in both)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_the_probe_equals_a_loop_over_left_out_pairs(form):
    chance = np.random.default_rng(0)
    written = chance.normal(size=(120, 30))
    changed = written - chance.normal(size=(120, 30)) - 0.2 * chance.normal(size=30)
    changed[7] = written[7]  # nothing to go by
    change, best = np.delete(written - changed, 7, 0), (np.inf, None)
    for strength in order.STRENGTHS * (change**2).sum(1).mean():
        told = []
        for i in range(len(change)):
            x = np.delete(change, i, 0)
            told.append(change[i] @ np.linalg.solve(x.T @ x + strength * np.eye(30), x.sum(0)))
        best = min(best, (((np.array(told) - 1) ** 2).mean(), told))
    right = order.right_ones(form(written), form(changed))
    assert right[7] == 0.5 and np.delete(right, 7).tolist() == [float(x > 0) for x in best[1]]


class Bag:
    """A run whose vectors are means of token vectors, or those of tokens in their places."""

    max_length, added = 40, (0, 1)

    def __init__(self, seed=0, placed=False):
        self.table, self.placed = np.random.default_rng(seed).normal(size=(40, 300, 12)), placed
        tokens = SimpleNamespace(weight=torch.from_numpy(self.table[0]))
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=300), tokens=tokens)
        self.words = {}

    def encode_texts(self, texts):
        return [[self.words.setdefault(word, len(self.words)) for word in text.split()] for text in texts]

    def embed(self, texts):
        rows = self.encode_texts(texts)
        places = [range(len(row)) if self.placed else [0] * len(row) for row in rows]
        means = [self.table[place, row].mean(0) for place, row in zip(map(list, places), rows, strict=True)]
        return torch.from_numpy(np.stack(means)).float()

    def concepts(self, texts):
        return self.embed(texts)[:, None]

    def twin(self, seed):
        twin = Bag(seed + 1, self.placed)
        twin.words = self.words
        return twin


def test_a_mean_of_token_vectors_stands_at_chance_and_a_leak_is_found():
    run = Bag()
    pairs = order.of_same_tokens(order.make_pairs(SENTENCES, count=200), run)
    assert pairs.keys() == {"exchange", "halves", "shuffle"}  # nothing to move in these sentences
    ours, theirs = order.answers(run, pairs), order.floors(run, pairs)
    judged = order.judge_order(ours, theirs)
    assert set(judged["metrics"].values()) == {0.0, 0.5}
    assert judged["floors"]["token_idf"] == judged["metrics"]
    assert judged["lift"]["token_idf"] == {"value": 0, "low": 0, "high": 0, "verdict": "at floor"}
    leaking = {"halves": [(f"{a} indeed", b) for a, b in pairs["halves"]]}
    assert order.of_same_tokens(leaking, run) == {}
    assert order.values(order.floors(run, leaking)["token_idf"])["order"].min() > 0.95


def test_a_model_that_knows_order_is_above_chance():
    run = Bag(placed=True)
    pairs = order.of_same_tokens(order.make_pairs(SENTENCES, count=300), run)
    judged = order.judge_order(order.answers(run, pairs), order.floors(run, pairs))
    metrics, lift = judged["metrics"], judged["lift"]
    assert metrics["order"] == pytest.approx(np.mean([2 * metrics[rule] - 1 for rule in pairs]))
    assert metrics["halves"] > 0.6 and judged["floors"]["token_ngrams"]["order"] > 0.2
    low, high = (judged["intervals"]["halves"][end] for end in ("low", "high"))
    assert low < metrics["halves"] < high
    assert lift["token_idf"]["value"] == pytest.approx(metrics["order"]) and lift["token_idf"]["low"] > 0
    assert lift["best_floor"]["floor"] in ("token_ngrams", "untrained")
    assert np.isclose(lift["untrained"]["value"], metrics["order"] - judged["floors"]["untrained"]["order"])
