"""Linear probes: shares and intervals, labels against their texts, planted knowledge; the capacity meter."""

import numpy as np
import pytest
import torch
from scipy import sparse

from lab.analysis import probes
from lab.analysis.measure import capacity
from tests.test_attention import TEXTS, run_of, tokenizer  # noqa: F401


def test_shares_and_their_intervals():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20)) + 3
    labels = ((x - 3) @ rng.normal(size=(20, 3)) + 4 * rng.normal(size=(300, 3))).argmax(1)
    test = np.arange(300) < 100
    probe = probes.Probe("planted", "", [""] * 300, labels, test)
    found = probes.accuracy(x + 1e6, probe)  # an offset that all have in common says nothing
    share = found["value"]
    assert share == probes.accuracy(sparse.csr_array(x), probe)["value"]
    for end in (found["low"], found["high"]):  # Wilson's: the shares of which ours is 1.96 deviations away
        assert (share - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / 100, rel=1e-3)
    assert found["low"] < share < found["high"] and share > 0.5


def sentences():
    rng = np.random.default_rng(0)
    nouns = "river house garden forest station window letter market engine island".split()
    rest = "near the old town and a small dark road by some water".split()
    texts = []
    for _ in range(2500):
        words = rng.choice(rest, rng.integers(3, 12)).tolist()
        words.insert(1, rng.choice(["is", "are", "was", "were", "with"]))
        texts.append(" ".join(["the", str(rng.choice(nouns)), *words]))
    return texts


def test_labels_are_what_they_say():
    texts = sentences()
    found = probes.probes(texts, 400)
    own = set(texts)
    for text, label in zip(found["word_order"].texts, found["word_order"].labels, strict=True):
        assert label == 1 or text in own
    swapped = [t for t, y in zip(found["word_order"].texts, found["word_order"].labels, strict=True) if y]
    assert 0.35 < len(swapped) / len(found["word_order"].texts) < 0.65 and sum(t in own for t in swapped) < 0.1 * 400
    length = [len(text.split()) for text in found["length"].texts]
    sizes = [[n for n, y in zip(length, found["length"].labels, strict=True) if y == k] for k in range(3)]
    assert max(sizes[0]) < min(sizes[2]) and max(sizes[0]) <= min(sizes[1])
    past, plural = {"was", "were"}, {"are", "were"}
    for name, train, side in (("tense", {"is", "was"}, past), ("number", {"is", "are"}, plural)):
        test = {"is", "are", "was", "were"} - train
        probe = found[name]
        for text, label, held in zip(probe.texts, probe.labels, probe.test, strict=True):
            (form,) = set(text.split()) & {"is", "are", "was", "were"}
            assert form in (test if held else train) and label == (form in side)
        assert probe.labels[probe.test].mean() == probe.labels[~probe.test].mean() == 0.5


def test_judged_beside_floors_and_told_when_planted():
    texts = sentences()
    found = probes.probes(texts, 400)

    def knows_order(given):
        """One number: whether the text is one of those that were given."""
        return np.array([[float(text in own), 1.0] for text in given])

    own = set(texts)
    scores = probes.score(found["word_order"], {"knows": knows_order})
    assert scores["knows"]["low"] > 0.8 and abs(scores["bag_of_words"]["value"] - 0.5) < 0.15
    assert probes.score(found["number"], {})["bag_of_words"]["value"] < 0.65  # no form of the test was seen
    assert 0.4 < scores["majority"] < 0.65
    assert probes.probes(texts[:30], 400)["tense"] is None


def test_concepts_of_texts(tokenizer):  # noqa: F811
    run = run_of(tokenizer)
    vectors = run.all_concepts(TEXTS[:70])
    assert vectors.shape == (70, 3 * 16)
    np.testing.assert_allclose(vectors[66:], run.all_concepts(TEXTS[66:70]), atol=1e-5)


def test_capacity_is_an_upper_bound_that_free_concepts_reach(tokenizer):  # noqa: F811
    run = run_of(tokenizer)
    ids = torch.randint(0, 9, (4, 6))
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    found = capacity(run, ids, steps=150)
    assert found["free"]["loss"] < found["encoder"]["loss"] and found["free"]["loss"] < 0.7 * found["mean"]["loss"]
    assert found["free"]["free-running"] >= found["encoder"]["free-running"]
    ways = found["free"]["loss"] - found["mean"]["loss"]
    saved = found["mean"]["loss"] - found["free"]["loss"]
    assert found["free"]["bits"] == pytest.approx(saved * 6 / (3 * 0.6931471805599453))
    assert found["share"]["loss"] == pytest.approx((found["encoder"]["loss"] - found["mean"]["loss"]) / ways)
    for name, p in run.model.named_parameters():
        assert torch.equal(before[name], p) and p.requires_grad and p.grad is None
    alone = capacity(run, ids[:1].expand(2, -1), steps=5)  # each text is optimised alone: two of one are as one
    once = capacity(run, ids[:1].expand(4, -1), steps=5)
    assert alone["free"]["loss"] == pytest.approx(once["free"]["loss"], rel=1e-3)
