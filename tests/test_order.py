"""Order tasks: what the rules change, the probe against a loop, and that a bag of words stands at chance."""

import random
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import sparse

from eval_glue import compare_with_floors
from lab.configurator import UserError
from lab.evaluation import order
from lab.evaluation.metrics import above_chance
from lab.evaluation.order import Order
from lab.evaluation.scores import resampled
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
    """Its strength has the least squared error of the first half's pairs, each left out in turn."""
    chance = np.random.default_rng(0)
    written = chance.normal(size=(241, 30))
    changed = written - chance.normal(size=(241, 30)) - 0.2 * chance.normal(size=30)
    changed[[7, 130]] = written[[7, 130]]  # nothing to go by
    change, best = np.delete(written - changed, (7, 130), 0), (np.inf, None)
    train, test = change[:120], change[120:]
    for strength in order.STRENGTHS * (train**2).sum(1).mean():
        told = []
        for i in range(len(train)):
            x = np.delete(train, i, 0)
            told.append(train[i] @ np.linalg.solve(x.T @ x + strength * np.eye(30), x.sum(0)))
        best = min(best, (((np.array(told) - 1) ** 2).mean(), strength))
    weights = np.linalg.solve(train.T @ train + best[1] * np.eye(30), train.sum(0))
    right = order.right_ones(form(written), form(changed))
    assert len(right) == 120 and right[130 - 121] == 0.5
    assert np.delete(right, 130 - 121).tolist() == [float(x > 0) for x in test @ weights]


class Bag:
    """A run whose vectors are means of token vectors, or those of tokens in their places."""

    max_length, added = 40, (0, 1)

    def __init__(self, seed=0, placed=False):
        self.table, self.placed, self.words = np.random.default_rng(seed).normal(size=(40, 300, 12)), placed, {}
        tokens = SimpleNamespace(weight=torch.from_numpy(self.table[0]))
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=300), tokens=tokens)

    def held_out(self, count):
        return SENTENCES[:count], "all of them"

    def encode_texts(self, texts):
        return [[self.words.setdefault(word, len(self.words)) for word in text.split()] for text in texts]

    def pooled(self, texts):
        rows = self.encode_texts(texts)
        places = [[*range(len(row))] if self.placed else [0] * len(row) for row in rows]
        means = [self.table[place, row].mean(0) for place, row in zip(places, rows, strict=True)]
        return torch.from_numpy(np.stack(means))

    def all_concepts(self, texts):
        return self.pooled(texts).float().numpy()

    def twin(self, seed):
        twin = Bag(seed + 1, self.placed)
        twin.words = self.words
        return twin


def judged(run, task):
    ours, theirs = task.answers(run), task.floors(run)
    splits, each = compare_with_floors(ours, theirs, task)
    return splits["dev"], task.intervals(ours["dev"]), theirs


def test_a_mean_of_token_vectors_stands_at_chance():
    run = Bag()
    task = Order(run)
    assert [*task.rules] == ["exchange", "halves", "shuffle"]  # nothing to move in these sentences
    split, intervals, _ = judged(run, task)
    assert split["floors"]["token_idf"] == split["metrics"] and set(split["metrics"].values()) == {0.0, 0.5}
    assert split["lift"]["token_idf"] == {"value": 0, "low": 0, "high": 0, "verdict": "at floor"}
    assert len(task.labels["dev"]) == sum(len(task.sides[0][at]) // 2 for at in task.rules.values())
    assert task.digest() != Order(run, SENTENCES[:650]).digest() and Order.version() == "order"
    with pytest.raises(UserError, match="order needs 100 sentences .*; give --data_dir"):
        Order(run, SENTENCES[:20])


def test_a_rule_of_too_few_pairs_is_named(capsys):
    few = {**order.make_pairs(SENTENCES), "move": [("a b", "b a")] * 3}
    with patch.object(order, "make_pairs", lambda sentences: few):
        assert "move" not in Order(Bag()).rules
    assert "order is of 3 rules: fewer than 100 pairs of move (3)" in capsys.readouterr().err


def test_a_planted_leak_is_found_by_the_static_floor():
    """Texts of other tokens are left out; put in by force, they lift the floor that knows no order."""
    leaking = {"halves": [(f"{a} indeed", b) for a, b in order.make_pairs(SENTENCES)["halves"]]}
    with patch.object(order, "make_pairs", lambda sentences: leaking):
        with pytest.raises(UserError):
            Order(Bag())
        with patch("lab.evaluation.order.sorted", lambda ids: 0, create=True):
            task = Order(run := Bag())
    split, _, _ = judged(run, task)
    assert split["floors"]["token_idf"]["order"] > 0.95


def test_a_model_that_knows_order_is_above_chance():
    run = Bag(placed=True)
    task = Order(run)
    split, intervals, theirs = judged(run, task)
    metrics, floors, lift = split["metrics"], split["floors"], split["lift"]
    assert metrics["order"] == pytest.approx(np.mean([2 * metrics[rule] - 1 for rule in task.rules]))
    assert metrics["halves"] > 0.6 and floors["token_ngrams"]["order"] > 0.2
    low, value, high = (intervals["halves"][key] for key in ("low", "value", "high"))
    assert low < value == metrics["halves"] < high
    assert intervals["halves_concepts"]["value"] == metrics["halves_concepts"]
    assert lift["token_idf"]["value"] == pytest.approx(metrics["order"]) and lift["token_idf"]["low"] > 0
    assert lift["best_floor"]["floor"] in ("token_ngrams", "untrained")
    assert np.isclose(lift["untrained"]["value"], metrics["order"] - floors["untrained"]["order"])
    right = theirs["untrained"]["dev"]["pooled"]  # a resample that holds every pair twice changes nothing
    twice = resampled("order", right, task.labels["dev"], np.full((1, right.shape[1]), 2.0))
    assert np.allclose(twice[0], [above_chance(row, task.labels["dev"]) for row in right])
