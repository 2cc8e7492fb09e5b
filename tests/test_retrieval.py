"""Retrieval of bodies by first sentences: planted answers, a slow reference, ties, and texts that are too small."""

import json
import math
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch

from lab import dataset, retrieval, tasks
from model import ConceptModel, ModelConfig
from tests.corpus import make_corpus

SHAPE = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 16, "concepts": 2, "max_length": 16, "dropout": 0.5}
WORDS = "alder birch cedar elder hazel holly larch maple rowan aspen".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("retrieval") / "toy", documents=300)  # 60 of them for validation


def tokenizer_of(folder):
    return dataset.load_tokenizer(folder / "tokenizer.json")


def write_corpus(folder, place, documents):
    """The data folder `place` with these validation documents, lists of sentences."""
    folder.mkdir()
    for name in ("tokenizer.json", "meta.json"):
        (folder / name).write_bytes((place / name).read_bytes())
    tokenizer, digest = tokenizer_of(place), dataset.tokenizer_hash(place / "tokenizer.json")
    special, size = dataset.special_ids(tokenizer), json.loads((place / "meta.json").read_text())["vocab_size"]
    writer = dataset.CorpusWriter(folder / "val.bin", size, special, digest)
    for sentences in documents:
        ids = [dataset.encode_text(tokenizer, sentence) for sentence in sentences]
        starts = np.cumsum([0] + [len(row) for row in ids])[:-1]
        writer.append(np.array([*(i for row in ids for i in row), special["eod"]]), starts, [0])
    writer.close()
    return dataset.Corpus(folder, "val")


def make_model(corpus, **more):
    torch.manual_seed(7)
    return ConceptModel(ModelConfig(vocab_size=corpus.vocab_size, **SHAPE | more), corpus.mask)


def planted(n=40):
    """Documents whose body repeats the two words of the first sentence that no other document has in this pair."""
    named = [(WORDS[i % 10], WORDS[(i + 1 + i // 10) % 10]) for i in range(n)]
    return [[f"Plant {a} near {b}.", f"Now {a} and {b} grow well.", "They like rain and sun."] for a, b in named]


# ---- the pairs


def test_pairs_are_first_sentences_and_the_rest(place):
    corpus, tokenizer = dataset.Corpus(place, "val"), tokenizer_of(place)
    found = retrieval.pairs(corpus, tokenizer)
    assert 50 < len(found) <= 60 and found == retrieval.pairs(corpus, tokenizer)
    assert found[:7] == retrieval.pairs(corpus, tokenizer, 7)  # one order, whatever the count
    parts = np.split(corpus.tokens, corpus.documents[1:-1])
    documents = [tokenizer.decode(part[:-1].tolist()).strip() for part in parts]
    for query, body in found:
        assert len(dataset.split_sentences(query)) == 1 and "endoftext" not in body
        (document,) = (text for text in documents if text.startswith(f"{query} {body[:40]}"))
        assert document == f"{query} {body}" or len(dataset.encode_text(tokenizer, body)) == retrieval.LONGEST


def test_pairs_are_distinct_and_long_enough(tmp_path, place):
    documents = [
        ["The man sees the bird.", "The red ship sees the old house.", "The dog takes the stone."],
        ["The MAN  sees the bird.", "The tree holds the cold river and the child."],  # the same query
        ["The house makes the stone.", "The cold man leaves the green road and the ship."],
        ["The child sees the road.", "The cold  man leaves the green road", "and the ship."],  # the same body
        ["The dog.", "The dry stone likes the warm road and the tree."],
        ["The new house finds the road."],  # no body
        ["The cold river keeps the tree.", "Yes."],  # hardly a body
        ["x", "The small bird moves the large house and the dog."],  # hardly a query
    ]
    corpus, tokenizer = write_corpus(tmp_path / "val", place, documents), tokenizer_of(place)
    found = retrieval.pairs(corpus, tokenizer)
    assert len(found) == 3 and ("The dog.", documents[4][1]) in found
    queries, bodies = ({text.lower() for text in column} for column in zip(*found, strict=True))
    assert len(queries) == len(bodies) == 3 and not queries & {"x", "the new house finds the road."}


# ---- accuracy


def test_a_tie_is_a_miss_and_so_is_a_vector_of_zeros():
    queries = np.array([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    bodies = np.array([[2.0, 0], [0, 3], [1, 1], [0, 0]])
    assert retrieval.answered(queries, bodies).tolist() == [True, True, True, False]
    bodies[1] = 5, 0  # as like the first query as its own body
    assert retrieval.answered(queries, bodies).tolist() == [False, False, True, False]
    rows = np.random.default_rng(0).normal(size=(100, 9))
    twice = np.concatenate([rows, rows * 3])  # every body is there twice, but for rounding
    assert not retrieval.answered(twice, twice).any() and retrieval.answered(rows, rows).all()
    assert not retrieval.answered(rows * np.nan, rows).any()


def test_centring_takes_off_one_mean_of_all():
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(60, 5)) + 9
    vectors[30:] += chance.normal(size=(30, 5)) / 2 + [3, 0, -3, 0, 0]  # bodies lie elsewhere
    vectors[:30] += vectors[30:]
    found = retrieval.hits(vectors)
    mean = np.mean(vectors, axis=0)
    for kind, off in (("raw", 0), ("centred", mean)):
        x = [(v - off) / np.linalg.norm(v - off) for v in vectors]
        slow = [all(x[i] @ x[30 + i] > x[i] @ x[30 + j] for j in range(30) if j != i) for i in range(30)]
        assert found[kind].tolist() == [slow]


def slow_tfidf(found):
    """Which query's own body has the strictly largest cosine of TF-IDF, by dictionaries and loops."""
    texts = [Counter(re.findall(r"[a-z0-9']+", text.lower())) for pair in found for text in pair]
    df = Counter(word for text in texts for word in text)
    idf = {word: math.log((1 + len(texts)) / (1 + n)) + 1 for word, n in df.items()}

    def cosine(a, b):
        def dot(x, y):
            return sum(n * y[word] * idf[word] ** 2 for word, n in x.items())

        return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))

    queries, bodies = texts[::2], texts[1::2]
    right = []
    for i, query in enumerate(queries):
        likeness = [cosine(query, body) for body in bodies]
        right.append(all(likeness[i] > other + 1e-9 for j, other in enumerate(likeness) if j != i))
    return right


def zipfian(chance, n=100):
    """Documents of rare and common words, some of them in query and body alike."""
    words = [f"w{i}" for i in range(120)]
    for _ in range(n):
        query = chance.choices(words, [1 / (i + 1) for i in range(120)], k=6)
        yield [" ".join(query), " ".join(chance.sample(query, 3) + chance.choices(words[:30], k=8))]


@pytest.mark.parametrize("text", ["planted", "zipfian", "toy"])
def test_tfidf_equals_a_slow_loop(tmp_path, place, text):
    corpus, tokenizer = dataset.Corpus(place, "val"), tokenizer_of(place)
    if text != "toy":
        documents = planted() if text == "planted" else list(zipfian(random.Random(0)))
        corpus = write_corpus(tmp_path / "val", place, documents)
    found = retrieval.pairs(corpus, tokenizer)
    texts = [q for q, _ in found] + [body for _, body in found]
    _, floors = retrieval.judge(make_model(corpus), corpus, tokenizer, 16, texts)
    assert {name: runs["raw"].shape for name, runs in floors.items()} == {
        retrieval.RANDOM: (tasks.RANDOM_SEEDS, len(found)),
        retrieval.TFIDF: (1, len(found)),
        retrieval.UNTRAINED: (retrieval.TWIN_SEEDS, len(found)),
    }
    right = floors[retrieval.TFIDF]["raw"][0]
    assert right.tolist() == slow_tfidf(found)
    assert right.all() or text != "planted"
    assert 0.05 < right.mean() < 0.95 or text != "zipfian"


# ---- the table


def test_the_table_and_what_it_leaves_as_it_was(tmp_path, place):
    corpus, tokenizer = write_corpus(tmp_path / "val", place, planted()), tokenizer_of(place)
    model = make_model(corpus).train()
    state = torch.get_rng_state()
    said = retrieval.retrieval_table(model, corpus, tokenizer, 16)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert said == retrieval.retrieval_table(model.eval(), corpus, tokenizer, 16) and not model.training
    lines = said.splitlines()
    assert lines[0].startswith("| first sentence -> its body among 40,") and "40 pairs are all" in lines[-1]
    cells = {row[0]: row[1:] for row in ([c.strip() for c in line.split("|")[1:-1]] for line in lines[2:7])}
    assert cells["chance"][:2] == ["2.5", "2.5"] and cells["word TF-IDF"][0] == "100.0"
    assert "retrieval is at its floor: " in said and "below" in said


def test_the_twin_is_what_training_begins_with(place):
    corpus = dataset.Corpus(place, "val")
    model = make_model(corpus)
    state = torch.get_rng_state()
    twin = retrieval.untrained(model, 7)
    assert torch.equal(torch.get_rng_state(), state) and not twin.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    other = retrieval.untrained(model, 8).encoder.tokens.weight
    assert not torch.equal(other, twin.encoder.tokens.weight)


def test_an_untrained_model_is_at_its_floor_and_a_better_one_is_not(place, monkeypatch):
    corpus, tokenizer = dataset.Corpus(place, "val"), tokenizer_of(place)
    judge = retrieval.judge
    assert "retrieval is at its floor: " in retrieval.retrieval_table(make_model(corpus), corpus, tokenizer, 16)

    def better(*args):
        ours, floors = judge(*args)
        return {"raw": np.ones_like(ours["raw"]), "centred": ours["centred"]}, floors

    monkeypatch.setattr(retrieval, "judge", better)
    said = retrieval.retrieval_table(make_model(corpus), corpus, tokenizer, 16).splitlines()
    assert said[-3] == "raw: retrieval is above random vectors and word TF-IDF and the untrained twin"
    assert said[-2].startswith("centred: retrieval is at its floor: ")


def test_the_sentence():
    above, not_above, below = ({"low": a, "high": b} for a, b in ((0.1, 0.2), (0.0, 0.2), (-0.2, -0.1)))
    names = retrieval.RANDOM, retrieval.TFIDF, retrieval.UNTRAINED
    assert retrieval.sentence(dict(zip(names, (above, below, above), strict=True))) == (
        "retrieval is above random vectors and the untrained twin, below word TF-IDF"
    )
    assert retrieval.sentence(dict(zip(names, (below, not_above, above), strict=True))) == (
        "retrieval is at its floor: above the untrained twin, not above word TF-IDF, below random vectors"
    )


def test_too_small_a_text_is_said(tmp_path, place):
    corpus = write_corpus(tmp_path / "val", place, planted(19))
    said = retrieval.retrieval_table(make_model(corpus), corpus, tokenizer_of(place), 16)
    assert "\n" not in said and "19 held-out documents" in said and "20 are needed" in said


def test_a_text_without_a_latin_word_has_a_table(tmp_path, place):
    letters = [chr(ord("α") + i) * 3 for i in range(10)]
    documents = [[f"{a} {b}.", f"{b} {a} {a}."] for a in letters[:5] for b in letters[5:]]
    corpus = write_corpus(tmp_path / "val", place, documents)
    said = retrieval.retrieval_table(make_model(corpus), corpus, tokenizer_of(place), 16)
    assert "among 25," in said and re.search(r"word TF-IDF +\| +0\.0 +\| +0\.0 ", said)
