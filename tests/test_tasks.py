"""Task files, metrics and answers: against scipy and scikit-learn, against naive loops, and on the real data."""

import math
import shutil

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn import metrics as sk

from lab.command import NonFinite
from lab.configurator import UserError
from lab.evaluation import tasks
from lab.evaluation.metrics import accuracy, f1, mcc, pearson, spearman
from lab.evaluation.scores import best_threshold, cosine, predict, stack, task_scores
from lab.evaluation.tasks import TASKS, Pairs, Split, load_task, task_names

# ---- metrics


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scipy_and_scikit_learn(seed):
    chance = np.random.default_rng(seed)
    x = chance.normal(size=200)
    y = np.round(x + chance.normal(size=200))  # many ties
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    assert pearson(x * 1e-6 + 1, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-6)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
    a, b = (x > 0).astype(int), (y > 0.5).astype(int)
    assert accuracy(a, b) == sk.accuracy_score(b, a)
    assert f1(a, b) == pytest.approx(sk.f1_score(b, a), abs=1e-12)
    assert mcc(a, b) == pytest.approx(sk.matthews_corrcoef(b, a), abs=1e-12)
    a, b = chance.integers(0, 3, 200), chance.integers(0, 4, 200)
    assert mcc(a, b) == pytest.approx(sk.matthews_corrcoef(b, a), abs=1e-12)


@pytest.mark.parametrize("present", [(0, 1, 2), (0, 1), (1, 2)])
def test_f1_of_three_classes_is_the_mean_over_them(present):
    chance = np.random.default_rng(0)
    a, b = chance.choice(present, (2, 100))
    for task in ("mnli", "sick_e"):
        found = task_scores(TASKS[task], {"predictions": a[None]}, b)
        assert found["f1"] == pytest.approx(sk.f1_score(b, a, average="macro"), abs=1e-12)
        assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(b, a), abs=1e-12)
    a, b = chance.integers(0, 2, (2, 100))
    assert task_scores(TASKS["rte"], {"predictions": a[None]}, b)["f1"] == pytest.approx(sk.f1_score(b, a))


def test_what_is_not_finite_has_no_correlation():
    x, y = np.arange(4.0), np.array([1.0, 3, 2, 4])
    for bad in (np.nan, np.inf, -np.inf):
        for a, b in ((np.array([1, 2, bad, 3]), y), (x, np.array([1, 2, bad, 3]))):
            for metric in (pearson, spearman):
                with pytest.raises(ValueError, match="value 2 of 4 is not finite"):
                    metric(a, b)


def test_a_vector_that_is_not_finite_is_named():
    for name in ("stsb", "mrpc"):
        splits, pairs = make_pairs(name)
        vectors = np.random.default_rng(0).normal(size=(len(pairs.sentences), 8)).astype(np.float32)
        for bad, split in ((np.nan, "dev"), (np.inf, "dev"), (np.nan, "train")):
            text, damaged = splits[split].rows[3][1], vectors.copy()
            damaged[pairs.sentences.index(text), 2] = bad
            with pytest.raises(NonFinite, match=f"the vector of '{text}' is not finite; take another checkpoint"):
                predict(damaged, pairs, "dev")
        answers = predict(vectors * 0, pairs, "dev")  # a constant answer is one
        assert not answers["cosines"].any() and "nan" not in str(answers)


def test_a_constant_answer_scores_zero():
    labels = np.array([0, 1, 1, 0, 1])
    for constant in (np.zeros(5), np.full(5, 0.1), np.full(5, 1 / 3)):
        assert pearson(constant, labels) == spearman(constant, labels) == 0
        assert pearson(labels, constant) == 0
    assert mcc(np.ones(5), labels) == 0
    assert f1(np.zeros(5), labels) == 0 == f1(np.zeros(5), np.zeros(5))


def test_thresholds_are_the_best_of_all():
    chance = np.random.default_rng(0)
    for n in (1, 2, 5, 40):
        for _ in range(20):
            x, labels = np.round(chance.normal(size=n), 1), chance.integers(0, 2, n)
            t = best_threshold(x, labels)
            every = [-math.inf, math.inf, *x, *(x + 0.05)]
            assert accuracy(x >= t, labels) == max(accuracy(x >= other, labels) for other in every)
    assert best_threshold([0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1]) == pytest.approx(0.4)
    assert best_threshold([0.5, 0.5], [0, 1]) == -math.inf  # equal values cannot be parted
    for low in (0.7, 0.1, 0.9999999999999999):  # no number lies between
        x = np.array([low, np.nextafter(low, 2)])
        assert (x >= best_threshold(x, [0, 1])).tolist() == [False, True]


# ---- vectors


def make_split(chance, n, kind="score", vocabulary=12):
    def sentence():
        return " ".join(f"word{i}" for i in chance.integers(0, vocabulary, chance.integers(1, 6)))

    labels = chance.uniform(0, 5, n) if kind == "score" else chance.integers(0, 2, n)
    return Split([(sentence(), sentence()) for _ in range(n)], labels)


def make_pairs(name="stsb", seed=0, names=("train", "dev", "test")):
    chance, kind = np.random.default_rng(seed), TASKS[name].kind
    splits = {split: make_split(chance, n, kind) for split, n in zip(names, (30, 20, 25), strict=False)}
    return splits, Pairs(name, splits)


def test_pairs_keep_every_sentence_once():
    splits, pairs = make_pairs()
    assert len(set(pairs.sentences)) == len(pairs.sentences)
    for name, split in splits.items():
        assert [(pairs.sentences[i], pairs.sentences[j]) for i, j in pairs.index[name]] == split.rows
    assert pairs.scored == ["dev", "test"] and pairs.fitted_on == {"dev": "train", "test": "train"}
    assert make_pairs(names=("dev", "test"))[1].fitted_on == {"dev": "test", "test": "dev"}
    with pytest.raises(UserError, match="only the dev split"):
        make_pairs(names=("dev",))


def test_single_sentences_stand_alone():
    texts = [("Good.",), ("Bad.",), ("Good.",)]
    pairs = Pairs("sst2", {name: Split(texts, np.array([1, 0, 1])) for name in ("train", "dev")})
    assert pairs.sentences == ["Good.", "Bad."] and pairs.index["dev"].tolist() == [[0], [1], [0]]
    assert pairs.needed().tolist() == [0, 1]


def test_lifts_are_of_the_primary_metric():
    lifts = {f"pearson{kind}": f"lift{kind}" for kind in ("", "_centred", "_adapted")}
    beyond = {"partial_lexical": "lift_beyond", "partial_lexical_adapted": "lift_beyond_adapted"}
    assert TASKS["stsb"].lifts == lifts | beyond
    assert TASKS["mrpc"].lifts == {"accuracy_probe": "lift_probe", "accuracy": "lift"} and TASKS["cola"].lifts == {
        "mcc": "lift"
    }


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
        assert np.allclose(cosine(vectors, index, m), naive, atol=1e-12)
        assert np.allclose(cosine(sparse.csr_array(vectors), index, m), naive, atol=1e-12)
    assert cosine(vectors, index)[0] == 0

    # centred on sentences of the fitting split, drawn at random, the same each time
    splits, pairs = make_pairs()
    vectors = chance.normal(size=(len(pairs.sentences), 8)).astype(np.float32) + 3
    assert np.array_equal(pairs.fitting_sentences("dev"), pairs.index["train"].ravel())  # there are only few
    monkeypatch.setattr(tasks, "FITTED_ON", 6)
    drawn = pairs.fitting_sentences("dev")
    assert np.array_equal(drawn, pairs.fitting_sentences("test")) and len(drawn) == 6
    assert set(drawn) <= set(pairs.index["train"].ravel()) and max(drawn) > 12  # not the first ones
    expected = cosine(vectors, pairs.index["dev"], vectors[drawn].astype(np.float64).mean(0))
    answers = predict(vectors, pairs, "dev")
    assert answers.keys() == {"cosines", "centred", "adapted"} and np.allclose(answers["centred"], expected)
    needed = set(pairs.needed())  # no more is embedded than is looked at
    assert needed == {*drawn, *pairs.index["dev"].ravel(), *pairs.index["test"].ravel()}
    hidden = vectors.copy()
    hidden[[i for i in range(len(hidden)) if i not in needed]] = np.nan
    assert np.array_equal(predict(hidden, pairs, "dev")["centred"], answers["centred"])


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_nothing_is_removed_where_nothing_differs(form):
    """Sentences of one word, or all alike: adapted cosines are the centred ones."""
    split = Split([("same", "same"), ("same", "same")], np.array([1.0, 2.0]))
    pairs = Pairs("stsb", {"train": split, "dev": split})
    for width in (1, 5):
        answers = predict(form(np.ones((1, width))), pairs, "dev")
        assert np.isfinite(answers["adapted"]).all() and np.allclose(answers["adapted"], answers["centred"])


def test_predictions_are_by_the_threshold_of_the_fitting_split():
    splits, pairs = make_pairs("mrpc")
    vectors = np.random.default_rng(0).normal(size=(len(pairs.sentences), 8))
    answers = predict(vectors, pairs, "dev", probe=True)
    threshold = best_threshold(cosine(vectors, pairs.index["train"]), splits["train"].labels)
    assert answers.keys() == {"cosines", "predictions", "probe"} and answers["probe"].shape == (1, 20)
    assert answers["predictions"].tolist() == (answers["cosines"] >= threshold).astype(int).tolist()
    assert set(pairs.needed()) == set(range(len(pairs.sentences)))


def test_answers_of_runs_are_stacked():
    one, two = ({"dev": {"cosines": np.full((1, 3), x)}} for x in (1.0, 2.0))
    assert stack([one, two])["dev"]["cosines"].tolist() == [[1] * 3, [2] * 3]


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
    splits = load_task("stsb", tmp_path)
    assert list(splits) == ["train", "dev"]
    assert splits["train"].rows == [('a "quoted', "b, c"), ("d", "e")]
    assert splits["train"].labels.tolist() == [5, 0.25] and splits["dev"].rows == [("u", "f")]

    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    write(tmp_path / "SICK", "SICK_trial.txt", header, "1\ta\tb\t4.5\tNEUTRAL", "2\tc\td\t1\tCONTRADICTION", end="\r\n")
    assert load_task("sick_r", tmp_path)["dev"].labels.tolist() == [4.5, 1]
    assert load_task("sick_e", tmp_path)["dev"].labels.tolist() == [1, 2]

    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = [f'{i % 2}\t{i}\t{i + 1}\tone {i} " x\ttwo {i}' for i in range(5)]
    write(tmp_path / "MRPC", "msr_paraphrase_train.txt", header, *rows)
    write(tmp_path / "MRPC", "msr_paraphrase_test.txt", header, rows[0])
    write(tmp_path / "MRPC", "dev_ids.tsv", "1\t2", "3\t4")
    splits = load_task("mrpc", tmp_path)
    assert list(splits) == ["train", "dev", "test"]
    assert [b for _, b in splits["train"].rows] == ["two 0", "two 2", "two 4"]
    assert splits["dev"].labels.tolist() == [1, 1] and len(splits["test"].rows) == 1

    write(tmp_path / "PAWS", "val.csv", ",sentence1,sentence2,label", '0,"a ""b"", c",d,1', "1,e,f,0")
    paws = load_task("paws", tmp_path)["dev"]
    assert (
        paws.rows == [('a "b", c', "d"), ("e", "f")]
        and paws.labels.tolist() == [1, 0]
        and paws.labels.dtype == np.int64
    )

    write(tmp_path / "CoLA", "dev.tsv", "gj04\t1\t\tGood.", "gj04\t0\t*\tBad a.")
    cola = load_task("cola", tmp_path)["dev"]
    assert cola.rows == [("Good.",), ("Bad a.",)] and cola.labels.tolist() == [1, 0]
    write(tmp_path / "SST-2", "train.tsv", "sentence\tlabel", "fine \t1")
    assert load_task("sst2", tmp_path)["train"].rows == [("fine",)]
    write(tmp_path / "RTE", "dev.tsv", "index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment")
    write(tmp_path / "RTE", "test.tsv", "index\tsentence1\tsentence2", "0\ta\tb")  # no labels, not read
    assert list(load_task("rte", tmp_path)) == ["dev"]


SICK_HEADER = "pair_ID sentence_A sentence_B entailment_label relatedness_score entailment_AB SemEval_set".split()


def test_further_layouts_as_published(tmp_path):
    paws = ["id\tsentence1\tsentence2\tlabel", '1\tThe "a" , b\tc "\t1', "2\td\te\t0"]
    for split in ("train", "dev", "test"):
        write(tmp_path / "PAWS", f"{split}.tsv", *paws)
    found = load_task("paws", tmp_path)
    assert list(found) == ["train", "dev", "test"] and found["dev"].labels.tolist() == [1, 0]
    assert found["dev"].rows == [('The "a" , b', 'c "'), ("d", "e")]
    write(tmp_path / "PAWS", "val.csv", ",sentence1,sentence2,label", '0,"a, ""b""",d,1', end="\r\n")
    assert load_task("paws", tmp_path)["dev"].rows == [('a, "b"', "d")]  # what stands first in the table

    sick = [
        f"{i}\ta {i}\tb\tNEUTRAL\t{1 + i / 2}\tA_neutral_B\t{s}"
        for i, s in enumerate(["TRAIN", "TEST", "TRIAL", "TEST"])
    ]
    write(tmp_path / "SICK", "SICK.txt", "\t".join(SICK_HEADER), *sick, end="\r\n")
    for name, labels in (("sick_r", [1.5, 2.5]), ("sick_e", [1, 1])):
        found = load_task(name, tmp_path)
        assert {split: len(content.rows) for split, content in found.items()} == {"train": 1, "dev": 1, "test": 2}
        assert found["test"].rows == [("a 1", "b"), ("a 3", "b")] and found["test"].labels.tolist() == labels

    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
    row = '0\tmain-news\tMSRvid\t2012test\t0000\tnone\tnone\ta "b\tc'
    for split in ("train", "dev"):
        write(tmp_path / "STS-B", f"{split}.tsv", f"{header}\tscore", f"{row}\t2.500")
    write(tmp_path / "STS-B", "test.tsv", header, row)  # without scores: not read
    found = load_task("stsb", tmp_path)
    assert list(found) == ["train", "dev"] and found["dev"].sets.tolist() == ["main-news"]
    assert found["dev"].rows == [('a "b', "c")] and found["dev"].labels.tolist() == [2.5]

    write(
        tmp_path / "MRPC", "train.tsv", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t1\t2\ta\tb", end="\r\n"
    )
    write(tmp_path / "MRPC", "dev.tsv", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\tc\td")
    write(tmp_path / "MRPC", "test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\ta\tb")
    found = load_task("mrpc", tmp_path)
    assert list(found) == ["train", "dev"] and found["train"].rows == [("a", "b")]


def test_neighbouring_files(tmp_path):
    """Line ends of other systems and inside a question, capitals, columns that are missing or to spare."""
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    write(tmp_path / "QQP", "dev.tsv", header, '1\t2\t3\tone\rline "\tb\t1', "1\t2\t3\tc\td\t0", "", "")
    assert load_task("qqp", tmp_path)["dev"].rows == [('one\rline "', "b"), ("c", "d")]
    for end in ("\r\n", "\r"):
        write(tmp_path / "QQP", "dev.tsv", "\ufeff" + header, "1\t2\t3\ta\tb\t1", "1\t2\t3\tc\td\t0", end=end)
        assert load_task("qqp", tmp_path)["dev"].labels.tolist() == [1, 0]
    write(tmp_path / "rte", "DEV.TSV", "INDEX\tSentence1\tSentence2\tLabel", "0\ta\tb\tNot_Entailment")
    assert load_task("rte", tmp_path)["dev"].labels.tolist() == [0]
    assert {"rte", "qqp"} == set(task_names(("all",), tmp_path))
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    write(tmp_path / "SICK", "SICK_trial.txt", header, "1\ta\tb\t4.5")
    assert load_task("sick_r", tmp_path)["dev"].labels.tolist() == [4.5]
    with pytest.raises(UserError, match="SICK_trial.txt:2: 4 columns where 5 are expected"):
        load_task("sick_e", tmp_path)
    write(tmp_path / "SICK", "SICK_trial.txt", header, "1\ta\tone\ttoo many\t4.5\tNEUTRAL")
    with pytest.raises(UserError, match="6 columns where 5 are expected"):
        load_task("sick_r", tmp_path)


def test_json_lines_come_before_an_original_layout(tmp_path):
    folder = tmp_path / "STS-B"
    folder.mkdir()
    (folder / "dev.tsv").write_text("sentence1\tsentence2\tscore\tgenre\na\tb\t1.0\tnews\n")
    assert load_task("stsb", tmp_path)["dev"].rows == [("a", "b")]
    file = folder / "score.dev.jsonl"
    rows = [
        '{"sentences": ["c", "d"], "label": 2.5, "set": "news"}',
        '{"sentences": ["e", "f"], "label": 5, "set": "x"}',
    ]
    file.write_text("\n".join(rows))
    found = load_task("stsb", tmp_path)["dev"]
    assert (
        found.rows == [("c", "d"), ("e", "f")] and found.labels.tolist() == [2.5, 5] and [*found.sets] == ["news", "x"]
    )
    bad = {"{": ":1: no JSON", "[]": ":1: no JSON", '{"sentences": [1, 2], "label": 1}': ":1: no JSON"}
    bad |= {'{"sentences": ["a"], "label": 1}': ":1: 2 sentences", '{"sentences": ["a", " "], "label": 1}': ":1: 2 sen"}
    bad |= {'{"sentences": ["a", "b"], "label": 6}': ":1: the score 6 is outside", "": "has no rows"}
    bad |= {rows[0] + '\n{"sentences": ["a", "b"], "label": 1}': "a set in some of them only"}
    for text, message in bad.items():
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            load_task("stsb", tmp_path)


def test_stsb_without_repeats(tmp_path):
    rows = {
        "train": [("a", "b"), ("c", "d"), ("e", "f"), ("e", "f"), ("s", "s")],
        "dev": [("d", "c"), ("g", "h"), ("h", "g"), ("i", "j"), ("A", "b")],
        "test": [("k", "l"), ("m", "n"), ("j", "i"), ("k", "n")],
    }
    for split, pairs in rows.items():
        write(tmp_path / "STS-B", f"sts-{split}.csv", *(sts(i, *pair) for i, pair in enumerate(pairs)))
    found = load_task("stsb_v2", tmp_path)
    kept = {split: (content.rows, content.labels.tolist(), len(content.sets)) for split, content in found.items()}
    assert kept == {
        "train": ([("a", "b"), ("s", "s")], [0, 4], 2),
        "dev": ([("A", "b")], [4], 1),
        "test": ([("k", "l"), ("m", "n"), ("k", "n")], [0, 1, 3], 3),
    }
    assert len(load_task("stsb", tmp_path)["dev"].rows) == 5


def test_damaged_rows_of_qqp_are_left_out(tmp_path, capsys):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    write(tmp_path / "QQP", "dev.tsv", header, "1\t2\t3\ta\tb\t1", "1\t2\t3\t\tb\t1", "broken\t3")
    assert len(load_task("qqp", tmp_path)["dev"].rows) == 1
    assert "2 damaged rows are left out" in capsys.readouterr().err


GOOD = sts(1, "a", "b")


@pytest.mark.parametrize(
    "lines, message",
    [
        ([GOOD, sts(6, "a", "b")], "sts-dev.csv:2: the score 6 is outside 0 ... 5"),
        ([GOOD, sts(-0.1, "a", "b")], ":2: the score -0.1 is outside"),
        ([sts("nan", "a", "b")], ":1: the score nan is outside"),
        ([sts("", "a", "b")], ":1: the score '' is no number"),
        ([GOOD, GOOD, sts(1, "a", " ")], ":3: an empty sentence"),
        ([GOOD, "main-captions\tx\ty\t1\t2.0\tonly one"], ":2: 6 columns where 7 are expected"),
        ([GOOD, ""], ":2: 0 columns where 7 are expected"),
        ([], "has no rows"),
    ],
)
def test_mistakes_in_a_task_file_name_the_line(lines, message, tmp_path):
    write(tmp_path / "STS-B", "sts-dev.csv", *lines, *([GOOD] if lines[1:] == [""] else []))
    with pytest.raises(UserError) as error:
        load_task("stsb", tmp_path)
    assert message in str(error.value) and "; " in str(error.value) and "\n" not in str(error.value)


def test_more_mistakes_in_task_files(tmp_path):
    def refuses(name, message):
        with pytest.raises(UserError, match=message):
            load_task(name, tmp_path)

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
        load_task("stsb", tmp_path / "nothing")


# ---- STS12-16: a folder a year, one split of several sets


def write_years(folder):
    """STS12 as published, with unscored pairs, and STS16 as one file a set."""
    here = folder / "STS12"
    write(here, "STS.input.MSRpar.txt", 'a "b\tc', "d e\tf\ta source\tanother", "g\th")
    write(here, "STS.gs.MSRpar.txt", "4.500", "", "0")
    write(here, "STS.input.surprise.OnWN.txt", "i\tj", "k\tl", end="\r\n")
    write(here, "STS.gs.surprise.OnWN.txt", "2", "", end="\r\n")
    write(here, "STS.gs.ALL.txt", "1")
    write(folder / "STS16", "plagiarism.test.tsv", "5\tm n\to", "\tp\tq", "1.25\tr\ts")


def test_a_year_is_one_split_of_several_sets(tmp_path):
    write_years(tmp_path)
    assert task_names(("sts",), tmp_path, zero_shot=True) == ["sts12", "sts16"]
    (split,) = (load_task("sts12", tmp_path)[name] for name in ("test",))
    assert split.rows == [('a "b', "c"), ("g", "h"), ("i", "j")] and split.labels.tolist() == [4.5, 0, 2]
    assert split.sets.tolist() == ["MSRpar", "MSRpar", "surprise.OnWN"]
    split = load_task("sts16", tmp_path)["test"]
    assert split.rows == [("m n", "o"), ("r", "s")] and split.sets.tolist() == ["plagiarism"] * 2
    shutil.copyfile(tmp_path / "STS12/STS.gs.MSRpar.txt", tmp_path / "STS12/STS2016.gs.x.txt")
    shutil.copyfile(tmp_path / "STS12/STS.input.MSRpar.txt", tmp_path / "STS12/STS2016.input.x.txt")
    assert len(load_task("sts12", tmp_path)["test"].rows) == 5


def test_idf_and_centre_of_a_year_come_from_itself(tmp_path):
    write_years(tmp_path)
    splits = load_task("sts12", tmp_path)
    pairs = Pairs("sts12", splits)
    assert pairs.scored == ["test"] and pairs.fitted_on == {"test": "test"} and "unlabelled" in pairs.fitting
    vectors = np.random.default_rng(0).normal(size=(len(pairs.sentences), 8)) + 2
    answers = predict(vectors, pairs, "test")
    assert np.allclose(answers["centred"], cosine(vectors, pairs.index["test"], vectors.mean(0)))
    assert set(pairs.needed()) == set(range(len(pairs.sentences)))


def test_the_mean_over_the_sets_and_the_whole():
    chance = np.random.default_rng(0)
    sets, labels = np.array(["b"] * 30 + ["a"] * 50 + ["b"] * 20), chance.normal(size=100)
    answers = {kind: labels + chance.normal(size=(2, 100)) for kind in ("cosines", "centred")}
    answers["cosines"] += 5 * (sets == "a")
    found = task_scores(TASKS["sts14"], answers, labels, sets)
    assert found.keys() == {
        *("pearson", "spearman", "pearson_centred", "spearman_centred"),  # the others have no answers here
        *("pearson_by_set", "pearson_by_set_centred", "pearson_a", "pearson_b"),
    }
    for kind, suffix in (("cosines", ""), ("centred", "_centred")):
        for i, row in enumerate(answers[kind]):
            each = [stats.pearsonr(row[sets == name], labels[sets == name])[0] for name in "ab"]
            assert found[f"pearson_by_set{suffix}"][i] == pytest.approx(np.mean(each))
            assert found[f"pearson{suffix}"][i] == pytest.approx(stats.pearsonr(row, labels)[0])
    assert found["pearson_by_set"][0] > found["pearson"][0] + 0.2


def test_mistakes_in_the_files_of_a_year(tmp_path):
    def refuses(message, name="STS.gs.a.txt", *lines):
        here = tmp_path / "STS13"
        shutil.rmtree(here, ignore_errors=True)
        write(here, "STS.input.a.txt", "a\tb", "c\td")
        write(here, "STS.gs.a.txt", "1", "2")
        write(here, name, *lines)
        with pytest.raises(UserError, match=message) as error:
            load_task("sts13", tmp_path)
        assert "; " in str(error.value) and "\n" not in str(error.value)

    refuses("STS.gs.a.txt:2: the score '2,5' is no number", "STS.gs.a.txt", "1", "2,5")
    refuses("STS.gs.a.txt:1: the score 6 is outside 0 ... 5", "STS.gs.a.txt", "6", "")
    refuses("STS.gs.a.txt:2: 1 scores for 2 pairs of STS.input.a.txt", "STS.gs.a.txt", "1")
    refuses("STS.gs.a.txt:3: 4 scores for 2 pairs", "STS.gs.a.txt", "1", "2", "3", "4")
    refuses("STS.input.a.txt has no pair with a score", "STS.gs.a.txt", "", "")
    refuses("STS.input.a.txt:2: 1 columns where 2 are expected", "STS.input.a.txt", "a\tb", "c d")
    refuses("STS.input.a.txt:1: an empty sentence", "STS.input.a.txt", "a\t", "c\td")
    refuses("STS.gs.b.txt cannot be read", "STS.input.b.txt", "a\tb")
    refuses("b.test.tsv:2: the score 'x' is no number", "b.test.tsv", "1\ta\tb", "x\tc\td")
    refuses("b.test.tsv:1: 2 columns where 3 are expected", "b.test.tsv", "a\tb")
    for folder in (tmp_path / "STS14", tmp_path):
        folder.mkdir(exist_ok=True)
        with pytest.raises(UserError, match="sts14 has no files in .*; put there: STS.input.NAME.txt and"):
            load_task("sts14", tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="none of STS12 ... STS16 lies below .*; give --data="):
        task_names(("sts",), tmp_path)


def test_task_names(tmp_path):
    assert task_names(("stsb", "concept"), tmp_path) == ["stsb", "sick_r", "mrpc", "paws"]
    (tmp_path / "SICK").mkdir()
    assert task_names(("all",), tmp_path) == ["sick_r", "sick_e"]
    assert task_names(("all",), tmp_path, zero_shot=True) == ["sick_r"]
    with pytest.raises(UserError, match="rte has no zero-shot score, .*; take of stsb"):
        task_names(("all", "rte"), tmp_path, zero_shot=True)
    with pytest.raises(UserError, match="--tasks=sstb is no task; did you mean stsb?"):
        task_names(("sstb",), tmp_path)
    with pytest.raises(UserError, match="--tasks=nope is no task; "):
        task_names(("nope",), tmp_path)


# ---- the real data


def test_sizes_of_the_real_tasks(real_data, tmp_path):
    sizes = {
        "stsb": (5749, 1500, 1379),
        "stsb_v2": (5631, 1485, 1362),  # dev and test as MTEB's STSBenchmark.v2
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
    found = {name: load_task(name, real_data("glue")) for name in sizes}
    for name, counts in sizes.items():
        assert tuple(len(found[name][s].rows) if s in found[name] else None for s in ("train", "dev", "test")) == counts

    for task, files in (("SICK", ("SICK.txt",)), ("STS-B", ("train.tsv", "dev.tsv", "test.tsv"))):
        (tmp_path / task).mkdir()
        for file in files:
            shutil.copy(real_data("glue") / task / file, tmp_path / task)
    for name, counts in (("sick_r", [4439, 495, 4906]), ("sick_e", [4439, 495, 4906]), ("stsb", [5749, 1500])):
        other = load_task(name, tmp_path)
        assert [len(split.rows) for split in other.values()] == counts
        for split, content in other.items():
            assert set(content.rows) <= set(found[name][split].rows)
