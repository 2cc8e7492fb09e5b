"""Floors, lifts, retrieval: against scikit-learn, slow loops and known numbers; planted answers, ties, little text."""

import json
import math
import random
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer

from lab.data.corpus import Corpus, CorpusWriter
from lab.data.tokenizers import encode_texts, load_tokenizer, special_ids, split_sentences, tokenizer_hash
from lab.evaluation import floors, retrieval, scores
from lab.evaluation.floors import (
    RANDOM_SEEDS,
    UNTRAINED_SEEDS,
    averages,
    char_counts,
    count_matrix,
    majority,
    random_vectors,
    scale_columns,
    text_floors,
    word_controls,
    word_counts,
)
from lab.evaluation.metrics import accuracy, mcc, pearson
from lab.evaluation.retrieval import (
    LONGEST,
    RANDOM,
    TFIDF,
    TOKENS,
    UNTRAINED,
    answered,
    retrieval_hits,
    retrieval_pairs,
    retrieval_table,
)
from lab.evaluation.scores import (
    BEYOND,
    PARTIALS,
    TERCILES,
    beyond_intervals,
    beyond_words,
    bootstrap,
    lifts,
    resampled,
    task_scores,
)
from lab.evaluation.tasks import Pairs, Split, load_task
from lab.runs import LoadedRun
from model import ConceptModel, ModelConfig
from tests.corpus import make_corpus
from tests.test_tasks import make_pairs

# ---- floors


def test_word_tfidf_equals_scikit_learn():
    _, pairs = make_pairs()
    rows = pairs.index["train"].ravel()
    counts, vocabulary = word_counts([text.upper() + "!" for text in pairs.sentences])
    assert vocabulary[0].islower()
    ours = scale_columns(counts, floors.idf(counts[rows]))
    theirs = TfidfVectorizer(token_pattern="[a-z0-9']+").fit([pairs.sentences[i] for i in rows])
    theirs = theirs.transform(pairs.sentences)
    for name in ("train", "dev"):
        x, y = (theirs[pairs.index[name][:, i]] for i in (0, 1))
        assert np.allclose(scores.cosine(ours, pairs.index[name]), np.asarray(x.multiply(y).sum(1)).ravel())


def test_idf_counts_sentences_and_knows_words_it_never_saw():
    counts, words = word_counts(["a b b", "a c", "a", "d"])
    expected = {"a": math.log(4 / 4) + 1, "b": math.log(4 / 2) + 1, "c": math.log(4 / 2) + 1, "d": math.log(4) + 1}
    assert dict(zip(words, floors.idf(counts[:3]), strict=True)) == pytest.approx(expected)


def test_character_ngrams_stay_inside_padded_words():
    text = "It's a cat, a CAT"
    grams = Counter()
    for word in ["it's", "a", "cat", "a", "cat"]:
        for n in (3, 4, 5):
            grams.update(f" {word} "[i : i + n] for i in range(len(word) + 3 - n))
    counts = char_counts(*word_counts([text, "no", "..."])).toarray()
    assert sorted(counts[0][counts[0] > 0]) == sorted(grams.values())
    assert " a " in grams and counts[1].sum() == 3 and counts[2].sum() == 0  # ' no', 'no ', ' no '


def test_random_vectors_are_a_function_of_word_and_seed():
    words = [f"w{i}" for i in range(400)]
    vectors = random_vectors(words, seed=3)
    assert vectors.shape == (400, 256)
    assert np.array_equal(random_vectors(words[7:9], seed=3), vectors[7:9])
    assert np.abs(vectors - random_vectors(words, seed=4)).mean() > 1
    assert stats.kstest(vectors.ravel(), "norm").pvalue > 0.001
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(400, 1)]
    assert np.std(cosines) == pytest.approx(256**-0.5, rel=0.05) and abs(cosines.mean()) < 0.001


def test_weighted_means_of_a_table():
    counts = count_matrix([[0, 1, 1], [], [2]], 3)
    table, weights = np.array([[1.0, 0], [0, 1], [5, 5]]), np.array([2.0, 1, 7])
    assert np.allclose(averages(counts, weights) @ table, [[0.5, 0.5], [0, 0], [5, 5]])


def test_floors_of_a_task_of_scores_and_one_of_paraphrase():
    splits, pairs = make_pairs()
    found = text_floors(pairs)
    assert found.keys() == {"word_tfidf", "char_tfidf", "random_vectors"}
    assert {a["cosines"].shape for a in found["random_vectors"].values()} == {(8, 20), (8, 25)}
    scores = task_scores(pairs.task, found["random_vectors"]["dev"], splits["dev"].labels)
    assert scores.keys() == {
        f"{name}{kind}" for name in ("pearson", "spearman") for kind in ("", "_centred", "_adapted")
    }
    expected = stats.spearmanr(found["random_vectors"]["dev"]["centred"][5], splits["dev"].labels)[0]
    assert scores["spearman_centred"][5] == pytest.approx(expected)
    without_dev = text_floors(Pairs("stsb", {name: splits[name] for name in ("train", "test")}))
    assert np.allclose(without_dev["random_vectors"]["test"]["cosines"], found["random_vectors"]["test"]["cosines"])

    splits, pairs = make_pairs("mrpc")
    found = text_floors(pairs)
    assert found.keys() == {"majority", "word_tfidf", "char_tfidf", "random_vectors"}
    common = max(splits["dev"].labels.mean(), 1 - splits["dev"].labels.mean())
    scores = task_scores(pairs.task, found["majority"]["dev"], splits["dev"].labels)
    assert scores["accuracy"] == [common] and scores["mcc"] == [0]


def test_idf_comes_from_the_split_that_is_fitted_on():
    _, pairs = make_pairs("paws", names=("dev", "test"))
    counts, _ = word_counts(pairs.sentences)
    found = text_floors(pairs)["word_tfidf"]
    for split, other in (("dev", "test"), ("test", "dev")):
        tfidf = scale_columns(counts, floors.idf(counts[pairs.index[other].ravel()]))
        assert np.array_equal(found[split]["cosines"][0], scores.cosine(tfidf, pairs.index[split]))


# ---- lift


def naive_lift(metric, ours, floor, labels, counts):
    items = np.repeat(np.arange(len(labels)), counts.astype(int))
    value = {"pearson": pearson, "accuracy": accuracy, "mcc": mcc}[metric]
    return np.median([value(a[items], labels[items]) for a in ours]) - np.mean(
        [value(a[items], labels[items]) for a in floor]
    )


@pytest.mark.parametrize("metric", ["pearson", "accuracy", "mcc"])
def test_lift_equals_a_plain_loop_over_resamples(metric, monkeypatch):
    chance = np.random.default_rng(1)
    labels = chance.normal(size=60)
    ours, floor = labels + chance.normal(size=(3, 60)), labels + 2 * chance.normal(size=(4, 60))
    if metric != "pearson":
        labels, ours, floor = ((a > 0).astype(int) for a in (labels, ours, floor))
    kept, plain = [], resampled
    monkeypatch.setattr(
        scores, "resampled", lambda m, a, y, counts, known: kept.append(counts) or plain(m, a, y, counts)
    )
    lift = lifts(metric, ours, {"floor": floor}, labels, resamples=250)["floor"]
    counts = np.concatenate(kept[1:])  # the first is the plain value's
    assert counts.shape == (250, 60) and (counts.sum(1) == 60).all()
    drawn = [naive_lift(metric, ours, floor, labels, row) for row in counts]
    assert [lift["low"], lift["high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=1e-9)
    assert lift["value"] == pytest.approx(naive_lift(metric, ours, floor, labels, np.ones(60)), abs=1e-9)


def test_verdicts_and_seeds():
    chance = np.random.default_rng(0)
    labels = chance.normal(size=1000)
    good, bad = labels + chance.normal(size=(1, 1000)), labels + 3 * chance.normal(size=(1, 1000))
    found = lifts("pearson", good, {"bad": bad, "itself": good, "constant": np.ones((1, 1000))}, labels)
    assert found["bad"]["verdict"] == "above floor" and found["bad"]["low"] > 0.3
    assert found["itself"] == {"value": 0, "low": 0, "high": 0, "verdict": "at floor"}
    assert found["constant"]["value"] == pytest.approx(pearson(good[0], labels))
    assert found == lifts("pearson", good, {"bad": bad, "itself": good, "constant": np.ones((1, 1000))}, labels)
    assert lifts("pearson", bad, {"good": good}, labels)["good"]["verdict"] == "at floor"
    # the interval is as wide as theory has it: Fisher's z of one correlation against a constant
    half = (found["constant"]["high"] - found["constant"]["low"]) / 2
    assert half == pytest.approx(1.96 * (1 - found["constant"]["value"] ** 2) / 1000**0.5, rel=0.15)


# ---- beyond words


def slow_partial(x, y, controls):
    """Ranks by scipy, residuals by numpy's least squares."""
    design = np.column_stack([np.ones(len(x)), *map(stats.rankdata, controls)])
    residuals = (stats.rankdata(v) - design @ np.linalg.lstsq(design, stats.rankdata(v), rcond=None)[0] for v in (x, y))
    return stats.pearsonr(*residuals)[0]


def slow_beyond(x, y, known, items=slice(None)):
    """Metric -> number, of these items; terciles hold the rows that they have in the whole."""
    metrics = {
        metric: slow_partial(x[items], y[items], [known[name][items] for name in names])
        for metric, names in PARTIALS.items()
    }
    order = sorted(range(len(x)), key=lambda i: (known["jaccard"][i], i))
    for metric, part in zip(TERCILES, np.array_split(order, 3), strict=True):
        own = np.arange(len(x))[items]
        own = own[np.isin(own, part)]
        metrics[metric] = stats.spearmanr(x[own], y[own])[0]
    return metrics


def overlaps(seed=0, n=80):
    """Labels, two answers and controls that share something, with many ties."""
    chance = np.random.default_rng(seed)
    common = chance.normal(size=n)
    known = {name: np.round(common + chance.normal(size=n), 1) for name in ("char_tfidf", "word_tfidf", "token_idf")}
    known |= {"jaccard": np.round(common + chance.normal(size=n)), "length": np.abs(np.round(chance.normal(size=n)))}
    labels = np.round(common + chance.normal(size=n), 1)
    return np.stack([labels + common, common]) + chance.normal(size=(2, n)), labels, known


@pytest.mark.parametrize("seed", range(3))
def test_beyond_words_equals_a_slow_reference(seed):
    answers, labels, known = overlaps(seed)
    chance = np.random.default_rng(seed)
    counts = np.concatenate([np.ones((1, 80)), chance.multinomial(80, [1 / 80] * 80, 5)])
    found = beyond_words(answers, labels, known, counts)
    assert list(found) == list(BEYOND)
    for r, row in enumerate(counts):
        for k, answer in enumerate(answers):
            expected = slow_beyond(answer, labels, known, np.repeat(np.arange(80), row.astype(int)))
            assert {metric: value[r, k] for metric, value in found.items()} == pytest.approx(expected, abs=1e-9)


def test_intervals_beyond_words_equal_a_plain_loop(monkeypatch):
    answers, labels, known = overlaps()
    monkeypatch.setattr(bootstrap, "__defaults__", (0, 150))
    found = beyond_intervals({"centred": answers[:1]}, labels, known)
    lift = lifts("partial_lexical", answers[:1], {"other": answers[1:]}, labels, known)["other"]
    items = [row for row in np.random.default_rng(0).integers(0, 80, (150, 80))]
    drawn = [[slow_beyond(answer, labels, known, row) for row in items] for answer in answers]
    for metric, one in found.items():
        each = [values[metric] for values in drawn[0]]
        assert one["value"] == pytest.approx(slow_beyond(answers[0], labels, known)[metric])
        assert [one["low"], one["high"]] == pytest.approx(np.percentile(each, [2.5, 97.5]).tolist())
    each = [a["partial_lexical"] - b["partial_lexical"] for a, b in zip(*drawn, strict=True)]
    assert [lift["low"], lift["high"]] == pytest.approx(np.percentile(each, [2.5, 97.5]).tolist())


def test_what_is_a_control_or_constant_knows_nothing_beyond_words():
    _, labels, known = overlaps()
    for answer in (known["char_tfidf"], np.exp(known["char_tfidf"]), np.ones(80)):
        found = beyond_words(answer[None], labels, known)
        assert found["partial_lexical"] == found["partial_char_tfidf"] == 0
    found = beyond_words(known["word_tfidf"][None], labels, known | {"length": np.zeros(80)})
    assert found["partial_lexical"] == 0 and abs(found["partial_char_tfidf"]) > 0.1
    tiny = {name: x[:2] for name, x in known.items()}
    assert all(np.isfinite(v).all() for v in beyond_words(labels[None, :2], labels[:2], tiny).values())


def test_controls_by_hand():
    rows = [("A b b c", "b c d"), ("a, B!", "c d e f"), ("...", "a b"), ("a", "a")]
    split = Split(rows, np.arange(4.0))
    pairs = Pairs("stsb", {"train": split, "dev": split})
    cosines = {"char_tfidf": np.zeros((2, 4)), "token_idf": np.array([[0.0] * 4, [1.0] * 4])}
    theirs = {floor: {"cosines": x, "centred": x} for floor, x in cosines.items()}
    known = word_controls(pairs, "dev", theirs | {"word_tfidf": theirs["token_idf"]})
    assert known["jaccard"].tolist() == [0.5, 0, 0, 1] and known["token_idf"].tolist() == [0.5] * 4
    assert known["length"] == pytest.approx([math.log(4 / 3), math.log(2), math.log(2), 0])


@pytest.mark.parametrize("name, split", [("stsb", "dev"), ("stsb", "test"), ("sick_r", "dev"), ("sick_r", "test")])
def test_a_copy_of_the_overlap_is_nothing_beyond_words(name, split, real_floors):
    """METHODS 1.18: what merely bends TF-IDF's cosine scores 0; order decides where most words are shared."""
    pairs, found = real_floors(name)
    theirs = {floor: answers[split] for floor, answers in found.items()}
    known = word_controls(pairs, split, theirs | {"token_idf": theirs["random_vectors"]})
    labels, tfidf = pairs.labels[split], theirs["char_tfidf"]
    bent = beyond_words(np.sqrt(np.maximum(tfidf["cosines"], 0)), labels, known)
    assert abs(bent["partial_lexical"]) < 0.02 and abs(bent["partial_char_tfidf"]) < 0.02
    if (name, split) == ("sick_r", "test"):
        terciles = [100 * beyond_words(tfidf["centred"], labels, known)[metric][0, 0] for metric in TERCILES]
        assert terciles == pytest.approx([61, 36, -7], abs=2)


# ---- the published numbers, x100


@pytest.mark.parametrize(
    "name, split, floor, metric, expected",
    [
        ("stsb", "dev", "word_tfidf", ("pearson", "spearman"), (73.9, 74.2)),
        ("stsb", "test", "word_tfidf", ("pearson", "spearman"), (68.2, 67.0)),
        ("stsb", "dev", "char_tfidf", ("pearson", "spearman"), (77.7, 77.8)),
        ("stsb", "test", "char_tfidf", ("pearson", "spearman"), (71.5, 69.7)),
        ("stsb", "dev", "random_vectors", ("pearson",), (56.5,)),
        ("stsb", "test", "random_vectors", ("pearson",), (46.1,)),
        ("sick_r", "test", "word_tfidf", ("pearson", "spearman"), (61.8, 58.7)),
        ("sick_r", "test", "char_tfidf", ("pearson", "spearman"), (62.6, 58.0)),
        ("sick_r", "test", "random_vectors", ("pearson",), (55.6,)),
        ("mrpc", "dev", "majority", ("accuracy", "f1"), (68.38, 81.22)),
        ("mrpc", "test", "majority", ("accuracy", "f1"), (66.49, 79.87)),
        ("mrpc", "dev", "char_tfidf", ("accuracy", "f1"), (73.0, 82.4)),
        ("mrpc", "test", "char_tfidf", ("accuracy", "f1"), (72.2, 80.9)),
        ("mrpc", "dev", "word_tfidf", ("accuracy", "f1"), (70.34, 79.7)),
    ],
)
def test_floors_are_the_known_ones(name, split, floor, metric, expected, real_floors):
    pairs, found = real_floors(name)
    scores = task_scores(pairs.task, found[floor][split], pairs.labels[split])
    tolerance = 1.5 if floor == "random_vectors" else 0.5
    for one, value in zip(metric, expected, strict=True):
        assert 100 * scores[one].mean() == pytest.approx(value, abs=tolerance)


@pytest.fixture(scope="module")
def real_floors(real_data):
    done = {}

    def get(name):
        if name not in done:
            pairs = Pairs(name, load_task(name, real_data("glue")))
            done[name] = pairs, text_floors(pairs)
        return done[name]

    return get


def test_majorities_of_the_real_tasks(real_data):
    for name, split, share in [
        ("sick_e", "test", 56.69),
        ("paws", "test", 55.8),
        ("sst2", "dev", 50.9),
        ("qnli", "dev", 50.5),
        ("mnli", "dev", 35.4),
        ("rte", "dev", 52.7),
    ]:
        labels = load_task(name, real_data("glue"))[split].labels
        pairs = SimpleNamespace(scored=[split], labels={split: labels})  # of some tasks no other split is there
        predictions = majority(pairs)[split]["predictions"][0]
        assert 100 * accuracy(predictions, labels) == pytest.approx(share, abs=0.06)


# ---- retrieval

SHAPE = {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 16, "concepts": 2, "max_length": 16, "dropout": 0.5}
WORDS = "alder birch cedar elder hazel holly larch maple rowan aspen".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("retrieval") / "toy", documents=300)  # 60 of them for validation


def tokenizer_of(folder):
    return load_tokenizer(folder / "tokenizer.json")


def write_corpus(folder, place, documents):
    """The data folder `place` with these validation documents, lists of sentences."""
    folder.mkdir()
    for name in ("tokenizer.json", "meta.json"):
        (folder / name).write_bytes((place / name).read_bytes())
    tokenizer, digest = tokenizer_of(place), tokenizer_hash(place / "tokenizer.json")
    special, size = special_ids(tokenizer), json.loads((place / "meta.json").read_text())["vocab_size"]
    writer = CorpusWriter(folder / "val.bin", size, special, digest)
    for sentences in documents:
        ids = [encode_texts(tokenizer, [sentence])[0] for sentence in sentences]
        starts = np.cumsum([0] + [len(row) for row in ids])[:-1]
        writer.append(np.array([*(i for row in ids for i in row), special["eod"]]), starts, [0])
    writer.close()
    return Corpus(folder, "val")


def make_model(corpus, **more):
    return ConceptModel(ModelConfig(vocab_size=corpus.vocab_size, **SHAPE | more), corpus.mask, seed=7)


def make_run(corpus):
    model = make_model(corpus).eval()
    config = {"lengths": (16,), "hidden": model.config.hidden, "pad_id": corpus.pad}
    config |= {"remove_directions": 0, "whitening": 0.0}
    return LoadedRun(model, tokenizer_of(corpus.folder), config, step=0)


def planted(n=40):
    """Documents whose body repeats the two words of the first sentence that no other document has in this pair."""
    named = [(WORDS[i % 10], WORDS[(i + 1 + i // 10) % 10]) for i in range(n)]
    return [[f"Plant {a} near {b}.", f"Now {a} and {b} grow well.", "They like rain and sun."] for a, b in named]


# ---- the pairs


def test_pairs_are_first_sentences_and_the_rest(place):
    corpus, tokenizer = Corpus(place, "val"), tokenizer_of(place)
    found = retrieval_pairs(corpus, tokenizer)
    assert 50 < len(found) <= 60 and found == retrieval_pairs(corpus, tokenizer)
    assert found[:7] == retrieval_pairs(corpus, tokenizer, 7)  # one order, whatever the count
    parts = np.split(corpus.tokens, corpus.documents[1:-1])
    documents = [tokenizer.decode(part[:-1].tolist()).strip() for part in parts]
    for query, body in found:
        assert len(split_sentences(query)) == 1 and "endoftext" not in body
        (document,) = (text for text in documents if text.startswith(f"{query} {body[:40]}"))
        assert document == f"{query} {body}" or len(encode_texts(tokenizer, [body])[0]) == LONGEST


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
    found = retrieval_pairs(corpus, tokenizer)
    assert len(found) == 3 and ("The dog.", documents[4][1]) in found
    queries, bodies = ({text.lower() for text in column} for column in zip(*found, strict=True))
    assert len(queries) == len(bodies) == 3 and not queries & {"x", "the new house finds the road."}


# ---- accuracy


def test_a_tie_is_a_miss_and_so_is_a_vector_of_zeros():
    queries = np.array([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    bodies = np.array([[2.0, 0], [0, 3], [1, 1], [0, 0]])
    assert answered(queries, bodies).tolist() == [True, True, True, False]
    bodies[1] = 5, 0  # as like the first query as its own body
    assert answered(queries, bodies).tolist() == [False, False, True, False]
    rows = np.random.default_rng(0).normal(size=(100, 9))
    twice = np.concatenate([rows, rows * 3])  # every body is there twice, but for rounding
    assert not answered(twice, twice).any() and answered(rows, rows).all()
    assert not answered(rows * np.nan, rows).any()


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
        similarity = [cosine(query, body) for body in bodies]
        right.append(all(similarity[i] > other + 1e-9 for j, other in enumerate(similarity) if j != i))
    return right


def zipfian(chance, n=100):
    """Documents of rare and common words, some of them in query and body alike."""
    words = [f"w{i}" for i in range(120)]
    for _ in range(n):
        query = chance.choices(words, [1 / (i + 1) for i in range(120)], k=6)
        yield [" ".join(query), " ".join(chance.sample(query, 3) + chance.choices(words[:30], k=8))]


@pytest.mark.parametrize("text", ["planted", "zipfian", "toy"])
def test_tfidf_equals_a_slow_loop(tmp_path, place, text):
    corpus, tokenizer = Corpus(place, "val"), tokenizer_of(place)
    if text != "toy":
        documents = planted() if text == "planted" else list(zipfian(random.Random(0)))
        corpus = write_corpus(tmp_path / "val", place, documents)
    found = retrieval_pairs(corpus, tokenizer)
    texts = [q for q, _ in found] + [body for _, body in found]
    _, hits = retrieval_hits(make_run(corpus), texts)
    assert {name: runs["raw"].shape for name, runs in hits.items()} == {
        RANDOM: (RANDOM_SEEDS, len(found)),
        TFIDF: (1, len(found)),
        TOKENS: (UNTRAINED_SEEDS, len(found)),
        UNTRAINED: (UNTRAINED_SEEDS, len(found)),
    }
    right = hits[TFIDF]["raw"][0]
    assert right.tolist() == slow_tfidf(found)
    assert right.all() or text != "planted"
    assert 0.05 < right.mean() < 0.95 or text != "zipfian"


# ---- the table


def test_the_table_and_what_it_leaves_as_it_was(tmp_path, place):
    corpus = write_corpus(tmp_path / "val", place, planted())
    run = make_run(corpus)
    printed = retrieval_table(run, corpus)
    assert printed == retrieval_table(run, corpus)
    lines, cells = printed.splitlines(), rows(printed)
    assert lines[0].startswith("| first sentence -> its body among 40,") and "40 pairs are all" in lines[-1]
    assert cells["chance"][:2] == ["2.5", "2.5"] and cells["word TF-IDF"][0] == "100.0"


def test_the_twin_is_what_training_begins_with(place):
    corpus = Corpus(place, "val")
    model = make_model(corpus)
    twin = model.twin(7)
    assert not twin.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(model.twin(8).tokens.weight, twin.tokens.weight)


def test_the_table_shows_the_difference_to_each_floor(place, monkeypatch):
    corpus, hits = Corpus(place, "val"), retrieval_hits
    assert len(rows(retrieval_table(make_run(corpus), corpus))) == 6

    def better(*args):
        ours, theirs = hits(*args)
        return ours | {"raw": np.ones_like(ours["raw"])}, theirs

    monkeypatch.setattr(retrieval, "retrieval_hits", better)
    found = rows(retrieval_table(make_run(corpus), corpus))
    for name in (RANDOM, TFIDF, TOKENS, UNTRAINED):
        low = float(found[name][3].partition("[")[2].partition(",")[0])
        assert low > 0 and found[name][3].startswith("+")


def rows(printed):
    """First cell -> the others."""
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line[:2] == "| ")
    return {row[0]: row[1:] for row in [*cells][1:]}


def test_too_small_a_text_is_said(tmp_path, place):
    corpus = write_corpus(tmp_path / "val", place, planted(19))
    printed = retrieval_table(make_run(corpus), corpus)
    assert "\n" not in printed and "19 held-out documents" in printed and "20 are needed" in printed


def test_a_text_without_a_latin_word_has_a_table(tmp_path, place):
    letters = [chr(ord("α") + i) * 3 for i in range(10)]
    documents = [[f"{a} {b}.", f"{b} {a} {a}."] for a in letters[:5] for b in letters[5:]]
    corpus = write_corpus(tmp_path / "val", place, documents)
    printed = retrieval_table(make_run(corpus), corpus)
    assert "among 25," in printed and re.search(r"word TF-IDF +\| +0\.0 +\| +0\.0 ", printed)
