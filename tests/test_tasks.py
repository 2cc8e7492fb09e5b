"""Task files, metrics and floors: against scipy and scikit-learn, against naive loops, and on the real data."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn import metrics as sk
from sklearn.feature_extraction.text import TfidfVectorizer

from lab import tasks
from lab.configurator import UserError

# ---- metrics


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scipy_and_scikit_learn(seed):
    chance = np.random.default_rng(seed)
    x = chance.normal(size=200)
    y = np.round(x + chance.normal(size=200))  # many ties
    assert tasks.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    assert tasks.pearson(x * 1e-6 + 1, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-6)
    assert tasks.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    a, b = (x > 0).astype(int), (y > 0.5).astype(int)
    assert tasks.accuracy(a, b) == sk.accuracy_score(b, a)
    assert tasks.f1(a, b) == pytest.approx(sk.f1_score(b, a), abs=1e-12)
    assert tasks.mcc(a, b) == pytest.approx(sk.matthews_corrcoef(b, a), abs=1e-12)
    a, b = chance.integers(0, 3, 200), chance.integers(0, 4, 200)
    assert tasks.mcc(a, b) == pytest.approx(sk.matthews_corrcoef(b, a), abs=1e-12)


def test_a_constant_answer_scores_zero():
    labels = np.array([0, 1, 1, 0, 1])
    for constant in (np.zeros(5), np.full(5, 0.1), np.full(5, 1 / 3)):
        assert tasks.pearson(constant, labels) == tasks.spearman(constant, labels) == 0
        assert tasks.pearson(labels, constant) == 0
    assert tasks.mcc(np.ones(5), labels) == 0
    assert tasks.f1(np.zeros(5), labels) == 0 == tasks.f1(np.zeros(5), np.zeros(5))
    assert tasks.majority(labels, 2)["class"].tolist() == [[1] * 5]


def test_thresholds_are_the_best_of_all():
    chance = np.random.default_rng(0)
    for n in (1, 2, 5, 40):
        for _ in range(20):
            x, labels = np.round(chance.normal(size=n), 1), chance.integers(0, 2, n)
            t = tasks.best_threshold(x, labels)
            every = [-math.inf, math.inf, *x, *(x + 0.05)]
            assert tasks.accuracy(x >= t, labels) == max(tasks.accuracy(x >= other, labels) for other in every)
    assert tasks.best_threshold([0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1]) == pytest.approx(0.4)
    assert tasks.best_threshold([0.5, 0.5], [0, 1]) == -math.inf  # equal values cannot be parted


# ---- vectors


def make_split(chance, n, vocabulary=12, classes=0):
    def sentence():
        return " ".join(f"word{i}" for i in chance.integers(0, vocabulary, chance.integers(1, 6)))

    labels = chance.integers(0, 2, n) if classes else chance.uniform(0, 5, n)
    return tasks.Split([sentence() for _ in range(n)], [sentence() for _ in range(n)], labels)


def make_pairs(seed=0, names=("train", "dev", "test"), classes=0):
    chance = np.random.default_rng(seed)
    splits = {name: make_split(chance, n, classes=classes) for name, n in zip(names, (30, 20, 25), strict=False)}
    return splits, tasks.Pairs(splits)


def test_pairs_keep_every_sentence_once():
    splits, pairs = make_pairs()
    assert len(set(pairs.sentences)) == len(pairs.sentences)
    for name, split in splits.items():
        assert [pairs.sentences[i] for i in pairs.index[name][:, 0]] == split.a
        assert [pairs.sentences[i] for i in pairs.index[name][:, 1]] == split.b
    assert pairs.scored == ["dev", "test"] and pairs.fitted_on == {"dev": "train", "test": "train"}
    assert make_pairs(names=("dev", "test"))[1].fitted_on == {"dev": "test", "test": "dev"}
    with pytest.raises(UserError, match="only the dev split"):
        make_pairs(names=("dev",))


def test_cosines_dense_sparse_and_centred(monkeypatch):
    chance = np.random.default_rng(0)
    vectors = chance.poisson(0.7, (40, 15)).astype(float) + (np.arange(15) == 3)
    vectors[7] = 0
    index = chance.integers(0, 40, (50, 2))
    index[0] = 7, 8
    mean = vectors[:10].mean(0)
    for m in (None, mean):
        x, y = (vectors[index[:, i]] - (0 if m is None else m) for i in (0, 1))
        with np.errstate(invalid="ignore"):
            naive = np.nan_to_num((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1))
        assert np.allclose(tasks.cosine(vectors, index, m), naive, atol=1e-12)
        assert np.allclose(tasks.cosine(sparse.csr_array(vectors), index, m), naive, atol=1e-12)
    assert tasks.cosine(vectors, index)[0] == 0

    # centred on the first sentences of the fitting split, first and second of each pair by turns
    splits, pairs = make_pairs()
    vectors = chance.normal(size=(len(pairs.sentences), 8)).astype(np.float32) + 3
    monkeypatch.setattr(tasks, "CENTRED_ON", 6)
    place = {text: i for i, text in enumerate(pairs.sentences)}
    first = [place[t] for pair in zip(splits["train"].a[:3], splits["train"].b[:3], strict=True) for t in pair]
    expected = tasks.cosine(vectors, pairs.index["dev"], vectors[first].astype(np.float64).mean(0))
    said = tasks.answer(vectors, pairs, "dev", fit=False)
    assert said.keys() == {"cosine", "centred"} and np.allclose(said["centred"], expected)
    needed = set(pairs.needed(fit=False))  # no more is embedded than is looked at
    assert needed == {*first, *pairs.index["dev"].ravel(), *pairs.index["test"].ravel()}
    hidden = vectors.copy()
    hidden[[i for i in range(len(hidden)) if i not in needed]] = np.nan
    assert np.array_equal(tasks.answer(hidden, pairs, "dev", fit=False)["centred"], said["centred"])
    assert set(pairs.needed(fit=True)) == set(range(len(pairs.sentences)))


# ---- floors


def test_word_tfidf_equals_scikit_learn():
    _, pairs = make_pairs()
    rows = pairs.index["train"].ravel()
    counts, vocabulary = tasks.word_counts([text.upper() + "!" for text in pairs.sentences])
    assert vocabulary[0].islower()
    ours = tasks.scale_columns(counts, tasks.idf(counts[rows]))
    theirs = TfidfVectorizer(token_pattern="[a-z0-9']+").fit([pairs.sentences[i] for i in rows])
    theirs = theirs.transform(pairs.sentences)
    for name in ("train", "dev"):
        x, y = (theirs[pairs.index[name][:, i]] for i in (0, 1))
        assert np.allclose(tasks.cosine(ours, pairs.index[name]), np.asarray(x.multiply(y).sum(1)).ravel())


def test_idf_counts_sentences_and_knows_words_it_never_saw():
    counts, words = tasks.word_counts(["a b b", "a c", "a", "d"])
    expected = {"a": math.log(4 / 4) + 1, "b": math.log(4 / 2) + 1, "c": math.log(4 / 2) + 1, "d": math.log(4) + 1}
    assert dict(zip(words, tasks.idf(counts[:3]), strict=True)) == pytest.approx(expected)


def test_character_ngrams_stay_inside_padded_words():
    text = "It's a cat, a CAT"
    grams = Counter()
    for word in ["it's", "a", "cat", "a", "cat"]:
        for n in (3, 4, 5):
            grams.update(f" {word} "[i : i + n] for i in range(len(word) + 3 - n))
    counts = tasks.char_counts(*tasks.word_counts([text, "no", "..."])).toarray()
    assert sorted(counts[0][counts[0] > 0]) == sorted(grams.values())
    assert " a " in grams and counts[1].sum() == 3 and counts[2].sum() == 0  # ' no', 'no ', ' no '


def test_random_vectors_are_a_function_of_word_and_seed():
    words = [f"w{i}" for i in range(400)]
    vectors = tasks.random_vectors(words, seed=3)
    assert vectors.shape == (400, 256)
    assert np.array_equal(tasks.random_vectors(words[7:9], seed=3), vectors[7:9])
    assert np.abs(vectors - tasks.random_vectors(words, seed=4)).mean() > 1
    assert stats.kstest(vectors.ravel(), "norm").pvalue > 0.001
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(400, 1)]
    assert np.std(cosines) == pytest.approx(256**-0.5, rel=0.05) and abs(cosines.mean()) < 0.001


def test_weighted_means_of_a_table():
    counts = tasks.count_matrix([[0, 1, 1], [], [2]], 3)
    table, weights = np.array([[1.0, 0], [0, 1], [5, 5]]), np.array([2.0, 1, 7])
    assert np.allclose(tasks.averages(counts, weights) @ table, [[0.5, 0.5], [0, 0], [5, 5]])


def test_floors_of_a_task_of_scores_and_one_of_classes():
    splits, pairs = make_pairs()
    floors = tasks.floors("stsb", pairs)
    assert floors.keys() == {"word_tfidf", "char_tfidf", "random_vectors"}
    assert {a["cosine"].shape for a in floors["random_vectors"].values()} == {(8, 20), (8, 25)}
    found = tasks.scores("stsb", floors["random_vectors"]["dev"], splits["dev"].labels)
    assert found.keys() == {"pearson", "spearman", "pearson_centred", "spearman_centred"}
    expected = stats.spearmanr(floors["random_vectors"]["dev"]["centred"][5], splits["dev"].labels)[0]
    assert found["spearman_centred"][5] == pytest.approx(expected)
    again = tasks.floors("stsb", tasks.Pairs({name: splits[name] for name in ("train", "test")}))  # without dev
    assert np.allclose(again["random_vectors"]["test"]["cosine"], floors["random_vectors"]["test"]["cosine"])

    splits, pairs = make_pairs(classes=2)
    floors = tasks.floors("mrpc", pairs)
    assert floors.keys() == {"majority", "word_tfidf", "char_tfidf", "random_vectors"}
    common = max(splits["dev"].labels.mean(), 1 - splits["dev"].labels.mean())
    found = tasks.scores("mrpc", floors["majority"]["dev"], splits["dev"].labels)
    assert found["accuracy"] == [common] and found["mcc"] == [0]


# ---- lift


def naive_lift(metric, ours, floor, labels, counts):
    items = np.repeat(np.arange(len(labels)), counts.astype(int))
    value = {"pearson": tasks.pearson, "accuracy": tasks.accuracy, "mcc": tasks.mcc}[metric]
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
    kept, plain = [], tasks.resampled
    monkeypatch.setattr(tasks, "resampled", lambda m, a, y, counts: kept.append(counts) or plain(m, a, y, counts))
    lift = tasks.lifts(metric, ours, {"floor": floor}, labels, resamples=250)["floor"]
    counts = np.concatenate(kept[1:] if metric != "mcc" else kept[2::2])  # the first is the plain value's
    assert counts.shape == (250, 60) and (counts.sum(1) == 60).all()
    drawn = [naive_lift(metric, ours, floor, labels, row) for row in counts]
    assert [lift["low"], lift["high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=1e-9)
    assert lift["value"] == pytest.approx(naive_lift(metric, ours, floor, labels, np.ones(60)), abs=1e-9)


def test_verdicts_and_seeds():
    chance = np.random.default_rng(0)
    labels = chance.normal(size=1000)
    good, bad = labels + chance.normal(size=(1, 1000)), labels + 3 * chance.normal(size=(1, 1000))
    found = tasks.lifts("pearson", good, {"bad": bad, "itself": good, "constant": np.ones((1, 1000))}, labels)
    assert found["bad"]["verdict"] == "above floor" and found["bad"]["low"] > 0.3
    assert found["itself"] == {"value": 0, "low": 0, "high": 0, "verdict": "at floor"}
    assert found["constant"]["value"] == pytest.approx(tasks.pearson(good[0], labels))
    assert found == tasks.lifts("pearson", good, {"bad": bad, "itself": good, "constant": np.ones((1, 1000))}, labels)
    assert tasks.lifts("pearson", bad, {"good": good}, labels)["good"]["verdict"] == "at floor"
    # the interval is as wide as theory has it: Fisher's z of one correlation against a constant
    half = (found["constant"]["high"] - found["constant"]["low"]) / 2
    assert half == pytest.approx(1.96 * (1 - found["constant"]["value"] ** 2) / 1000**0.5, rel=0.15)


# ---- files


def write(folder, name, *lines, end="\n", encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(end.join([*lines, ""]).encode(encoding))


def sts(score, a, b, *more):
    return "\t".join(["main-captions", "MSRvid", "2012test", "0001", str(score), a, b, *more])


def test_original_layouts(tmp_path):
    here = tmp_path / "STS-B"
    write(here, "sts-train.csv", sts(5, 'a "quoted', "b, c"), sts(0.25, "d", "e", "x", "y"))
    write(here, "sts-dev.csv", sts("2.500", "\u2028 u", " f "))
    splits = tasks.load_task("stsb", tmp_path)
    assert list(splits) == ["train", "dev"]
    assert splits["train"].a == ['a "quoted', "d"] and splits["train"].b == ["b, c", "e"]
    assert splits["train"].labels.tolist() == [5, 0.25] and splits["dev"].b == ["f"]

    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    write(tmp_path / "SICK", "SICK_trial.txt", header, "1\ta\tb\t4.5\tNEUTRAL", "2\tc\td\t1\tCONTRADICTION", end="\r\n")
    assert tasks.load_task("sick_r", tmp_path)["dev"].labels.tolist() == [4.5, 1]
    assert tasks.load_task("sick_e", tmp_path)["dev"].labels.tolist() == [1, 2]

    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = [f'{i % 2}\t{i}\t{i + 1}\tone {i} " x\ttwo {i}' for i in range(5)]
    write(tmp_path / "MRPC", "msr_paraphrase_train.txt", header, *rows)
    write(tmp_path / "MRPC", "msr_paraphrase_test.txt", header, rows[0])
    write(tmp_path / "MRPC", "dev_ids.tsv", "1\t2", "3\t4")
    splits = tasks.load_task("mrpc", tmp_path)
    assert list(splits) == ["train", "dev", "test"]
    assert splits["train"].b == ["two 0", "two 2", "two 4"] and splits["dev"].labels.tolist() == [1, 1]

    write(tmp_path / "PAWS", "val.csv", ",sentence1,sentence2,label", '0,"a ""b"", c",d,1', "1,e,f,0")
    paws = tasks.load_task("paws", tmp_path)["dev"]
    assert paws.a == ['a "b", c', "e"] and paws.labels.tolist() == [1, 0] and paws.labels.dtype == np.int64

    write(tmp_path / "CoLA", "dev.tsv", "gj04\t1\t\tGood.", "gj04\t0\t*\tBad a.")
    cola = tasks.load_task("cola", tmp_path)["dev"]
    assert cola.a == ["Good.", "Bad a."] and cola.b is None and cola.labels.tolist() == [1, 0]
    write(tmp_path / "SST-2", "train.tsv", "sentence\tlabel", "fine \t1")
    assert tasks.load_task("sst2", tmp_path)["train"].a == ["fine"]
    write(tmp_path / "RTE", "dev.tsv", "index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment")
    write(tmp_path / "RTE", "test.tsv", "index\tsentence1\tsentence2", "0\ta\tb")  # no labels, not read
    assert list(tasks.load_task("rte", tmp_path)) == ["dev"]


def test_damaged_rows_of_qqp_are_left_out(tmp_path, capsys):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    write(tmp_path / "QQP", "dev.tsv", header, "1\t2\t3\ta\tb\t1", "1\t2\t3\t\tb\t1", "broken\t3")
    assert len(tasks.load_task("qqp", tmp_path)["dev"]) == 1
    assert "2 damaged rows are left out" in capsys.readouterr().err


GOOD = sts(1, "a", "b")


@pytest.mark.parametrize(
    "lines, said",
    [
        ([GOOD, sts(6, "a", "b")], "sts-dev.csv:2: the score 6 is outside 0 ... 5"),
        ([GOOD, sts(-0.1, "a", "b")], ":2: the score -0.1 is outside"),
        ([sts("nan", "a", "b")], ":1: the score nan is outside"),
        ([sts("", "a", "b")], ":1: the score '' is no number"),
        ([GOOD, GOOD, sts(1, "a", " ")], ":3: an empty sentence"),
        ([GOOD, "main-captions\tx\ty\t1\t2.0\tonly one"], ":2: 6 columns where 7 are expected"),
        ([GOOD, ""], ":2: 1 columns where 7 are expected"),
        ([], "is empty"),
    ],
)
def test_mistakes_in_a_task_file_name_the_line(lines, said, tmp_path):
    write(tmp_path / "STS-B", "sts-dev.csv", *lines, *([GOOD] if lines[1:] == [""] else []))
    with pytest.raises(UserError) as error:
        tasks.load_task("stsb", tmp_path)
    assert said in str(error.value) and "; " in str(error.value) and "\n" not in str(error.value)


def test_more_mistakes_in_task_files(tmp_path):
    def refuses(name, said):
        with pytest.raises(UserError, match=said):
            tasks.load_task(name, tmp_path)

    refuses("stsb", "stsb has no files in .*; put there: sts-train.csv")
    write(tmp_path / "STS-B", "sts-dev.csv", GOOD, sts(1, "caf\xe9", "b"), encoding="latin-1")
    refuses("stsb", "sts-dev.csv:2: this is not UTF-8")
    write(tmp_path / "STS-B", "sts-dev.csv", GOOD, encoding="utf-16")
    refuses("stsb", "sts-dev.csv:1: this is not UTF-8")
    write(tmp_path / "RTE", "dev.tsv", "index\tsentence1\tlabel", "0\ta\tentailment")
    refuses("rte", "dev.tsv:1: no column named 'sentence2'")
    write(tmp_path / "RTE", "dev.tsv", "index\tsentence1\tsentence2\tlabel", "0\ta\tb\tmaybe")
    refuses("rte", "dev.tsv:2: the label 'maybe' is none of not_entailment, entailment")
    write(tmp_path / "PAWS", "val.csv", ",sentence1,sentence2,label", '0,"open,d,1')
    refuses("paws", "val.csv:.: unexpected end of data")
    write(tmp_path / "MRPC", "msr_paraphrase_train.txt", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t1\t2\ta\tb")
    refuses("mrpc", "dev_ids.tsv is missing")
    with pytest.raises(UserError, match="no folder .*; give --data="):
        tasks.load_task("stsb", tmp_path / "nothing")


def test_task_names(tmp_path):
    assert tasks.task_names(("stsb", "concept"), tmp_path) == ["stsb", "sick_r", "mrpc", "paws"]
    (tmp_path / "SICK").mkdir()
    assert tasks.task_names(("all",), tmp_path) == ["sick_r", "sick_e"]
    with pytest.raises(UserError, match="--tasks=sstb is no task; did you mean stsb?"):
        tasks.task_names(("sstb",), tmp_path)
    with pytest.raises(UserError, match="--tasks=nope is no task; "):
        tasks.task_names(("nope",), tmp_path)


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
    pairs, floors = real_floors(name)
    found = tasks.scores(name, floors[floor][split], pairs.labels[split])
    tolerance = 1.5 if floor == "random_vectors" else 0.5
    for one, value in zip(metric, expected, strict=True):
        assert 100 * found[one].mean() == pytest.approx(value, abs=tolerance)


@pytest.fixture(scope="module")
def real_floors(real_data):
    done = {}

    def get(name):
        if name not in done:
            pairs = tasks.Pairs(tasks.load_task(name, real_data("glue")))
            done[name] = pairs, tasks.floors(name, pairs)
        return done[name]

    return get


def test_majorities_and_sizes_of_the_real_tasks(real_data):
    sizes = {
        "stsb": (5749, 1500, 1379),
        "sick_r": (4500, 500, 4927),
        "sick_e": (4500, 500, 4927),
        "mrpc": (3668, 408, 1725),
        "paws": (None, 8000, 8000),
        "cola": (8551, 1043, None),
        "sst2": (67349, 872, None),
        "rte": (2490, 277, None),
        "wnli": (635, 71, None),
        "qnli": (None, 5463, None),
        "mnli": (None, 9815, None),
    }
    found = {name: tasks.load_task(name, real_data("glue")) for name in sizes}
    for name, counts in sizes.items():
        assert tuple(len(found[name][s]) if s in found[name] else None for s in ("train", "dev", "test")) == counts
    for name, split, share in [
        ("sick_e", "test", 56.69),
        ("paws", "test", 55.8),
        ("sst2", "dev", 50.9),
        ("qnli", "dev", 50.5),
        ("mnli", "dev", 35.4),
        ("rte", "dev", 52.7),
    ]:
        labels = found[name][split].labels
        said = tasks.majority(labels, len(tasks.TASKS[name].classes))["class"][0]
        assert 100 * tasks.accuracy(said, labels) == pytest.approx(share, abs=0.06)
