"""The judge on small task files and a run of two steps: every number of its JSON is found again by another way."""

import json
import random
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy import sparse, stats
from sklearn import metrics as sk
from sklearn.decomposition import PCA

import eval_glue
from encoders import Options
from lab import sources
from lab.command import NonFinite
from lab.configurator import UserError
from lab.evaluation import floors, order
from lab.evaluation.floors import cache_key, model_floors, predictions, text_floors, word_controls
from lab.evaluation.retrieval import retrieval_hits
from lab.evaluation.scores import BEYOND, PARTIALS, best_threshold, beyond_words, bootstrap
from lab.evaluation.tasks import Pairs, load_task
from lab.runs import ADAPTED, load_run
from model import ConceptModel
from tests import training
from tests.corpus import make_corpus, sentence


def variant(text, chance):
    """A sentence with some of its words lost, and the share that is left."""
    words = text.split()
    kept = [w for w in words if chance.random() > 0.3] or words[:1]
    return " ".join(kept), len(kept) / len(words)


def write_tasks(folder):
    chance = random.Random(1)

    def pairs(n):
        for i in range(n):
            a = sentence(chance)
            b, share = variant(a, chance) if chance.random() < 0.7 else (sentence(chance), 0.2)
            yield i, a, b, share

    def write(name, *lines):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*lines, ""]))

    for split, n in (("train", 60), ("dev", 40), ("test", 30)):
        rows = [f"g\tf\ty\t{i}\t{5 * s:.2f}\t{a}\t{b}" for i, a, b, s in pairs(n)]
        write(f"STS-B/sts-{split}.csv", *rows)
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    for split, n in (("train", 50), ("trial", 20), ("test_annotated", 30)):
        rows = [f"{i}\t{a}\t{b}\t{1 + 4 * s:.1f}\tNEUTRAL" for i, a, b, s in pairs(n)]
        write(f"SICK/SICK_{split}.txt", header, *rows)
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    for split, n in (("train", 80), ("test", 40)):
        rows = [f"{int(s > 0.6)}\t{i}\t{i}\t{a}\t{b}" for i, a, b, s in pairs(n)]
        write(f"MRPC/msr_paraphrase_{split}.txt", header, *rows)
    write("MRPC/dev_ids.tsv", *[f"{i}\t{i}" for i in range(0, 80, 4)])
    for split, n in (("val", 50), ("test", 40)):
        write(f"PAWS/{split}.csv", ",sentence1,sentence2,label", *[f'{i},"{a}",{b},{i % 2}' for i, a, b, s in pairs(n)])
    return folder


@pytest.fixture(scope="module", autouse=True)
def fewer_resamples():
    """Of each interval, which tests/test_floors.py compares with loops; and fewer seeds."""
    with patch.object(bootstrap, "__defaults__", (0, 200)), patch.multiple(floors, RANDOM_SEEDS=2, UNTRAINED_SEEDS=2):
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, out/run, and task files, glue."""
    here = tmp_path_factory.mktemp("judge")
    make_corpus(here / "data" / "toy")
    assert training.run(here / "data", here / "out/run", "--layers=2", "--max_steps=2") == 0
    write_tasks(here / "glue")
    return here


def judge(place, *more, run="run"):
    words = [f"--run={place / 'out' / run}", f"--data={place / 'glue'}", "--device=cpu", "--full", *more]
    return eval_glue.main(words)


@pytest.fixture(scope="module")
def records(place):
    assert judge(place) == 0  # `concept` is the default
    names = ["mrpc", "paws", "sick_r", "stsb"]
    files = [f"zero_shot_{name}.{kind}" for name in names for kind in ("json", "npz")]
    assert sorted(p.name for p in (place / "out/run/eval").iterdir()) == files
    return {name: json.loads((place / f"out/run/eval/zero_shot_{name}.json").read_text()) for name in names}


CORRELATIONS = {f"{name}{kind}" for name in ("pearson", "spearman") for kind in ("", "_centred", "_adapted")}
CORRELATIONS |= {"pearson_maxsim", *BEYOND}
SHARES = {"accuracy", "f1", "mcc", "average_precision", "accuracy_probe"}
PROBED = {"token_idf", "token_sif", "untrained"}
FLOORS = {"word_tfidf", "char_tfidf", "random_vectors", "token_idf", "token_sif", "untrained"}


def test_the_record_of_each_task(place, records):
    for name, record in records.items():
        metrics = SHARES if name in ("mrpc", "paws") else CORRELATIONS
        assert (record["task"], record["mode"], record["checkpoint"]) == (name, "zero_shot", "ckpt_2")
        assert record["run_id"] == load_run(place / "out/run", device="cpu").config["run_id"]
        assert record["seeds"] == [0] and record["per_seed"][0].keys() == record["splits"].keys() == {"dev", "test"}
        for split, found in record["splits"].items():
            assert found["metrics"].keys() == metrics and record["per_seed"][0][split] == found["metrics"]
            assert found["floors"].keys() == (FLOORS | {"majority"} if metrics is SHARES else FLOORS)
            for floor, values in found["floors"].items():
                absent = {"pearson_maxsim"} | ({"average_precision"} if floor == "majority" else set())
                absent |= set() if floor in PROBED else {"accuracy_probe"}
                assert values.keys() == metrics - absent
            primary = "accuracy" if metrics is SHARES else "pearson"
            best = found["lift"]["best_floor"]
            assert best["floor"] == max(found["floors"], key=lambda floor: found["floors"][floor][primary])  # noqa: B023
            assert ("lift_probe" in found) == (metrics is SHARES)
            named = [(found["lift"][floor], floor) for floor in ("token_idf", "untrained")]
            for lift, floor in ((best, best["floor"]), *named):
                difference = found["metrics"][primary] - found["floors"][floor][primary]
                assert lift["value"] == pytest.approx(difference, abs=1e-9)
                assert lift["low"] <= lift["value"] <= lift["high"]
                assert lift["verdict"] == ("above floor" if lift["low"] > 0 else "at floor")
            low, high = found["untrained_range"][primary]
            assert low <= found["floors"]["untrained"][primary] <= high
            assert ("lift_adapted" in found) == ("beyond" in found) == (metrics is CORRELATIONS)
            assert found["verdict"].split()[0] in ("above", "below", "not")
        protocol = {"head", "pooling", "lr", "epochs", "batch", "max_length", "selection", "pairs"}
        assert record["protocol"].keys() >= protocol | {"train_rows", "eval_rows"}
    assert records["mrpc"]["protocol"]["train_rows"] == {"dev": 60, "test": 60}
    assert records["mrpc"]["protocol"]["eval_rows"] == {"dev": 20, "test": 40}
    assert records["paws"]["protocol"]["fitted_on"] == {"dev": "test", "test": "dev"}


def cosines(vectors, split, mean=0):
    x, y = (np.stack([vectors[text] for text in side]) - mean for side in zip(*split.rows, strict=True))
    return (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def embed(run, splits):
    texts = sorted({text for split in splits.values() for row in split.rows for text in row})
    return dict(zip(texts, run.pooled(texts, batch_tokens=48).numpy(), strict=True))  # small batches


def test_scores_by_hand_and_in_other_batches(place, records):
    run = load_run(place / "out/run", device="cpu")
    splits = load_task("stsb", place / "glue")
    vectors = embed(run, splits)
    head = [vectors[text] for pair in splits["train"].rows for text in pair]
    for name in ("dev", "test"):
        metrics, gold = records["stsb"]["splits"][name]["metrics"], splits[name].labels
        for mean, suffix in ((0, ""), (np.mean(head, 0), "_centred")):
            x = cosines(vectors, splits[name], mean)
            assert metrics[f"pearson{suffix}"] == pytest.approx(stats.pearsonr(x, gold)[0], abs=1e-4)
            assert metrics[f"spearman{suffix}"] == pytest.approx(stats.spearmanr(x, gold)[0], abs=1e-4)

    splits = load_task("paws", place / "glue")
    vectors = embed(run, splits)
    threshold = best_threshold(cosines(vectors, splits["test"]), splits["test"].labels)
    predicted = (cosines(vectors, splits["dev"]) >= threshold).astype(int)
    metrics, gold = records["paws"]["splits"]["dev"]["metrics"], splits["dev"].labels
    assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(gold, predicted), abs=1e-4)
    assert metrics["f1"] == pytest.approx(sk.f1_score(gold, predicted), abs=1e-4)
    assert metrics["mcc"] == pytest.approx(sk.matthews_corrcoef(gold, predicted), abs=1e-4)


def test_beyond_words_in_the_record(place, records):
    pairs = Pairs("stsb", load_task("stsb", place / "glue"))
    with np.load(place / "out/run/eval/zero_shot_stsb.npz") as rows:
        ours = rows["dev/centred"]
    theirs = {floor: answers["dev"] for floor, answers in text_floors(pairs).items()}
    run = load_run(place / "out/run", device="cpu")
    theirs |= {floor: answers["dev"] for floor, answers in model_floors(run, pairs).items()}
    known, dev = word_controls(pairs, "dev", theirs), records["stsb"]["splits"]["dev"]
    own = {floor: {m for m, controls in PARTIALS.items() if floor in controls} for floor in FLOORS}
    assert own["token_idf"] == {"partial_token_idf"} and "partial_lexical" in own["word_tfidf"]
    centred = [metric for metric in BEYOND if not metric.endswith("_adapted")]
    for name, answers, metrics in (
        ("", ours, dev["metrics"]),
        *((f, theirs[f]["centred"], dev["floors"][f]) for f in own),
    ):
        expected = beyond_words(answers, pairs.labels["dev"], known, metrics=centred)
        for metric, value in expected.items():
            null = metric in own.get(name, ())
            assert metrics[metric] == (None if null else pytest.approx(value.mean(), abs=1e-6))
    for metric, one in dev["beyond"].items():
        assert one["value"] == dev["metrics"][metric] and one["low"] < one["value"] < one["high"]
    lift, best = dev["lift_beyond"], max(dev["floors"][floor]["partial_lexical"] or -1 for floor in FLOORS)
    assert dev["floors"][lift["best_floor"]["floor"]]["partial_lexical"] == best
    assert lift["token_idf"]["value"] == pytest.approx(
        dev["metrics"]["partial_lexical"] - dev["floors"]["token_idf"]["partial_lexical"]
    )


def test_a_year_of_semeval(place, capsys):
    here = place / "glue" / "STS14"
    here.mkdir()
    for i, split in enumerate(("dev", "test")):
        rows = [line.split("\t") for line in (place / f"glue/STS-B/sts-{split}.csv").read_text().splitlines()]
        (here / f"STS.input.{split}.txt").write_text("".join(f"{a}\t{b}\n" for *_, a, b in rows))
        (here / f"STS.gs.{split}.txt").write_text(
            "".join(f"{row[4] if j != i else ''}\n" for j, row in enumerate(rows))
        )
    assert judge(place, "--tasks=sts") == 0
    shutil.rmtree(here)
    out = capsys.readouterr().out
    record = json.loads((place / "out/run/eval/zero_shot_sts14.json").read_text())
    judged, protocol = record["splits"]["test"], record["protocol"]
    assert judged["metrics"].keys() == CORRELATIONS | {
        f"pearson_{name}" for name in ("by_set", "by_set_centred", "by_set_adapted", "dev", "test")
    }
    assert protocol["eval_rows"] == {"test": 68} and protocol["fitted_on"] == {"test": "test"}
    assert "its own sentences, unlabelled" in protocol["fitting"] and protocol["fitting"] in out
    assert f"sts14 test: {judged['verdict']}\n" in out and "| pearson_by_set " in out


def test_answers_of_each_row_are_kept(place, records):
    """Paired tests start from them: metrics and lifts can be had again."""
    with np.load(place / "out/run/eval/zero_shot_stsb.npz") as rows:
        kinds = ("cosines", "centred", "adapted", "maxsim", "labels")
        assert set(rows.files) == {f"{s}/{kind}" for s in ("dev", "test") for kind in kinds}
        dev = records["stsb"]["splits"]["dev"]["metrics"]
        for kind, metric in (("cosines", "pearson"), ("centred", "pearson_centred"), ("adapted", "pearson_adapted")):
            assert rows[f"dev/{kind}"].shape == (1, 40)
            assert stats.pearsonr(rows[f"dev/{kind}"][0], rows["dev/labels"])[0] == pytest.approx(dev[metric])
    with np.load(place / "out/run/eval/zero_shot_mrpc.npz") as rows:
        right = rows["test/predictions"][0] == rows["test/labels"]
        assert right.mean() == records["mrpc"]["splits"]["test"]["metrics"]["accuracy"]
        assert rows["test/cosines"].shape == (1, 40)


def test_maxsim_by_loops(place):
    run = load_run(place / "out/run", device="cpu")
    with np.load(place / "out/run/eval/zero_shot_sick_r.npz") as rows:
        answers = rows["dev/maxsim"][0]

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for i, (a, b) in enumerate(load_task("sick_r", place / "glue")["dev"].rows):
        x, y = (run.concepts([text])[0].double().numpy() for text in (a, b))
        likest = [max(cosine(u, v) for v in y) for u in x], [max(cosine(u, v) for u in x) for v in y]
        assert answers[i] == pytest.approx(np.mean(likest), abs=1e-4)


def test_adapted_equals_principal_components(place, records):
    """scikit-learn's, of the train sentences: of the run, of its token_idf and of sparse word TF-IDF."""
    splits = load_task("stsb", place / "glue")
    run, pairs = load_run(place / "out/run", device="cpu"), Pairs("stsb", splits)
    train, gold = pairs.index["train"].ravel(), splits["dev"].labels
    texts = [text for row in splits["train"].rows for text in row]

    def pearson(vectors, remove, power):
        found = PCA().fit(vectors[train])
        kept = slice(remove, None)
        values = (vectors - found.mean_) @ found.components_[kept].T
        values = values * np.maximum(found.explained_variance_[kept] / found.explained_variance_[0], 1e-6) ** (
            -power / 2
        )
        x, y = values[pairs.index["dev"].T]
        return stats.pearsonr((x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1), gold)[0]

    found = records["stsb"]["splits"]["dev"]
    ours = run.pooled(pairs.sentences).numpy()
    assert found["metrics"]["pearson_adapted"] == pytest.approx(pearson(ours, *ADAPTED["model"]), abs=1e-4)
    adapted = run.embed([row[0] for row in splits["dev"].rows], adapt_to=texts).double().numpy()
    other = run.embed([row[1] for row in splits["dev"].rows], adapt_to=texts).double().numpy()
    cosine = (adapted * other).sum(1) / np.linalg.norm(adapted, axis=1) / np.linalg.norm(other, axis=1)
    assert stats.pearsonr(cosine, gold)[0] == pytest.approx(found["metrics"]["pearson_adapted"], abs=1e-3)
    for sentences in ([], "one text"):
        with pytest.raises(UserError, match="adapt_to is a list of sentences"):
            run.embed(texts[:2], adapt_to=sentences)
    counts = floors.count_matrix(run.encode_texts(pairs.sentences), run.model.config.vocab_size)
    weights = floors.idf(counts[train])
    tables = [run.twin(seed).model.tokens.weight.detach().double().numpy() for seed in range(5)]
    for floor, weight in ("token_idf", weights), ("token_sif", 1e-3 / (1e-3 + run.token_frequency())):
        each = [pearson(floors.averages(counts, weight) @ table, *ADAPTED["static"]) for table in tables]
        assert found["floors"][floor]["pearson_adapted"] == pytest.approx(np.mean(each), abs=1e-4)
    words = floors.word_counts(pairs.sentences)[0]
    tfidf = (words @ sparse.diags_array(floors.idf(words[train]))).toarray()
    expected = pearson(tfidf, ADAPTED["static"][0], 0)
    assert found["floors"]["word_tfidf"]["pearson_adapted"] == pytest.approx(expected, abs=1e-3)


def test_order_beside_other_tasks(place, capsys, monkeypatch):
    monkeypatch.setattr(order, "UNTRAINED_SEEDS", 2)
    monkeypatch.setattr(order.make_pairs, "__defaults__", (120, 0))
    shutil.copytree(place / "out/run", place / "out/ordered", dirs_exist_ok=True)
    assert judge(place, "--tasks=order,sick_r", run="ordered") == 0
    record = json.loads((place / "out/ordered/eval/zero_shot_order.json").read_text())
    split, shown = record["splits"]["dev"], capsys.readouterr().out
    rules = [rule for rule in order.RULES if rule in split["metrics"]]
    assert "halves" in rules and record["protocol"]["pairs"].keys() == {*rules}
    assert split["floors"].keys() == {"token_idf", "token_ngrams", "untrained"}
    assert split["floors"]["token_idf"]["order"] == split["floors"]["token_idf"]["order_concepts"] == 0
    assert {"lift", "lift_concepts", "verdict", "untrained_range"} <= split.keys()
    assert f"order dev: {split['verdict']}" in shown and "| order_concepts " in shown
    low, high = (100 * split["intervals"]["halves"][end] for end in ("low", "high"))
    assert f"{100 * split['metrics']['halves']:.1f} [{low:.1f}, {high:.1f}]" in shown
    shutil.copytree(place / "out/ordered", place / "out/run2", dirs_exist_ok=True)
    assert judge(place, "--tasks=order", f"--against={place / 'out/ordered'}", run="ordered") == 0
    assert "order dev: order +0.0 [+0.0, +0.0] over" in capsys.readouterr().out
    lines = [sentence(random.Random(1000 + i)) for i in range(1200)]
    (place / "lines.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match="evaluated on other rows"):
        judge(place, "--tasks=order", f"--text={place / 'lines.txt'}", f"--against={place / 'out/run2'}", run="ordered")
    with pytest.raises(UserError, match="order is evaluated on frozen vectors; leave --mode out"):
        judge(place, "--tasks=order", "--mode=fine_tune", run="ordered")


def test_untrained_and_token_idf_by_hand(place, records):
    run = load_run(place / "out/run", device="cpu")
    splits = load_task("sick_r", place / "glue")
    untrained, lexical, first = [], [], run.model
    train_texts = [text for row in splits["train"].rows for text in row]
    sets = [set(ids) for ids in run.encode_texts(train_texts)]
    for seed in range(2):
        run.model = ConceptModel(first.config, first.mask_id, seed, first.token_vectors).eval()
        untrained.append(stats.pearsonr(cosines(embed(run, splits), splits["test"]), splits["test"].labels)[0])
        vectors = {}
        for text in {text for row in splits["test"].rows for text in row}:
            (ids,) = run.encode_texts([text])
            weight = [np.log((1 + len(sets)) / (1 + sum(i in s for s in sets))) + 1 for i in ids]
            table = run.model.tokens.weight.detach().double().numpy()
            vectors[text] = np.average(table[ids], axis=0, weights=weight)
        lexical.append(stats.pearsonr(cosines(vectors, splits["test"]), splits["test"].labels)[0])
    found = records["sick_r"]["splits"]["test"]
    assert found["floors"]["untrained"]["pearson"] == pytest.approx(np.mean(untrained), abs=1e-4)
    assert found["untrained_range"]["pearson"] == pytest.approx([min(untrained), max(untrained)], abs=1e-4)
    assert found["floors"]["token_idf"]["pearson"] == pytest.approx(np.mean(lexical), abs=1e-4)


def test_the_table_and_the_floors_kept_beside_the_run(place, records, capsys, monkeypatch):
    shutil.copytree(place / "out/run", place / "out/twin", dirs_exist_ok=True)
    shutil.rmtree(place / "out/twin/eval")
    monkeypatch.setattr(floors, "model_floors", lambda *_: pytest.fail("the floors are there already"))
    assert judge(place, "--tasks=stsb,mrpc", run="twin") == 0
    assert json.loads((place / "out/twin/eval/zero_shot_stsb.json").read_text()) == records["stsb"]
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if "|" in line]
    columns = {name: i for i, name in enumerate(rows[0])}
    assert [row[:3] for row in rows[2:4]] == [["stsb", "dev", "pearson"], ["stsb", "dev", "spearman"]]
    dev = records["stsb"]["splits"]["dev"]
    assert rows[2][columns["score"]] == f"{100 * dev['metrics']['pearson']:.1f}"
    assert rows[2][columns["token_idf"]] == f"{100 * dev['floors']['token_idf']['pearson']:.1f}"
    assert rows[2][columns["majority"]] == rows[3][columns["over untrained"]] == "-"
    assert next(row for row in rows if row[2] == "mcc")[columns["majority"]] == "0.0"
    lift = dev["lift"]["best_floor"]
    assert f"[{100 * lift['low']:+.1f}, {100 * lift['high']:+.1f}]" in rows[2][columns["over best_floor"]]
    assert "floors" not in err and len(rows) == 2 + 2 * 14 + 2 * 5
    one, beyond = rows[2 + 7], dev["beyond"]["partial_lexical"]
    shown = [f"{100 * beyond[key]:.1f}" for key in ("value", "low", "high")]
    assert one[columns["metric"]] == "partial_lexical" and one[columns["char_tfidf"]] == "-"
    assert one[columns["score"]] == f"{shown[0]} [{shown[1]}, {shown[2]}]"
    assert f"\nstsb dev: {dev['verdict']}\n" in out and "; beyond words " in dev["verdict"]

    judge(place, "--tasks=paws")
    assert "paws has no train split" in capsys.readouterr().out


def test_a_text_whose_vector_is_not_finite_is_named(place, tmp_path):
    run = load_run(place / "out/run", device="cpu")
    good, bad = "the red ship", "a dog loses the tree"
    (only,) = ids = list(set(run.encode_texts([bad])[0]) - set(run.encode_texts([good])[0]))[:1]
    with torch.no_grad():
        run.model.tokens.weight[only] = float("nan")
    assert ids and run.embed([good]).isfinite().all()
    named = "the vector of 'a dog loses the tree' is not finite; take another checkpoint"
    for read in (run.embed, run.concepts):
        with pytest.raises(NonFinite, match=named):
            read([good, bad, good])
    assert run.embed([]).shape == (0, run.config["hidden"])
    with pytest.raises(NonFinite, match=named):
        retrieval_hits(run, [good, good + ".", bad, good + "!"])
    run.rows = torch.tensor([[only] * 4, [2] * 4])
    run.config["whitening"] = 0.5
    with pytest.raises(NonFinite, match="validation row 0"):
        run.embed([good])


def test_damaged_or_other_floors_are_computed_anew(place, records, monkeypatch):
    run = load_run(place / "out/run", device="cpu")
    pairs = Pairs("sick_r", load_task("sick_r", place / "glue"))
    key = cache_key(run, pairs)
    (kept,) = (place / "out/.floors").glob("sick_r_*.npz")
    assert key in kept.name
    kept.write_bytes(kept.read_bytes()[:1000])
    judge(place, "--tasks=sick_r")
    assert json.loads((place / "out/run/eval/zero_shot_sick_r.json").read_text()) == records["sick_r"]

    def changed(place, name, value):
        with monkeypatch.context() as patch:
            (patch.setitem if isinstance(place, dict) else patch.setattr)(place, name, value)
            return cache_key(run, pairs) != key

    assert changed(pairs.labels, "dev", pairs.labels["dev"] + 1) and changed(pairs, "sentences", pairs.sentences[1:])
    assert changed(run.model.config, "init", "gpt2") and changed(run, "max_length", 8)
    assert changed(run.config, "tokenizer_hash", "x")
    assert not changed(run, "step", 7)  # floors know nothing of the training
    assert changed(run.model, "token_vectors", torch.ones(3, 2))  # untrained twins begin with them

    def edited(*names):
        read = Path.read_bytes
        sources.digest.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", lambda self: read(self) + b"# new" * (self.name in names))
            found = cache_key(run, pairs) != key, floors.version(pairs) != version
        sources.digest.cache_clear()
        return found

    version = floors.version(pairs)
    for name in ("layers", "encoders", "decoders", "model", "noise", "floors", "tasks", "runs", "tokenizers"):
        assert edited(f"{name}.py") == (True, True), name
    assert edited("eval_glue.py") == (False, True)  # how floors are compared, not what they are
    assert edited("train.py", "plan.py", "prepare.py", "README.md")[0] is False


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tasks=nope"], "--tasks=nope is no task; "),
        (["--tasks=stbs"], r"did you mean stsb\?"),
        (["--tasks=cola"], "cola has no zero-shot score, .*; take of stsb"),
        (["--tasks="], "no task is given; "),
        (["--tasks=sts"], "none of STS12 ... STS16 lies below .*; give --data="),
        (["--mode=fine_tune", "--tasks=paws"], "paws has no train split; .*--train_on=dev"),
        (["--mode=fine_tune", "--tasks=stsb,sick_e", "--head=cosine"], "sick_e is no question of similarity"),
        (["--mode=fine_tune", "--tasks=stsb", "--max_length=65"], "but the run read 16 tokens; leave it out"),
        (["--mode=fine_tune", "--tasks=sick_e", "--head=cosine"], "no question of similarity"),
        (["--mode=fine_tune", "--grid=lr", "--lr=1e-3"], "grid = 'lr' chooses"),
        (["--mode=fine_tune", "--head=pairs"], "head"),
        (["--against=nowhere", "--tasks=stsb"], "nowhere.* is missing; evaluate that run first"),
        (["--seeds=0"], "seeds=0 is out of range; write a number in this range: 1 or more"),
        (["--ckpt=7"], "has no checkpoint of step 7; name one that there is: 2"),
        (["--tasks=qqp"], "qqp has no files in .*; put there: train.tsv"),
        (["--tasks=qqp"], "; or fetch them: python data/glue/prepare.py"),
        (["--data=nothing"], "no folder nothing; give --data=.*, or fetch them: python data/glue/prepare.py"),
        (["--tasks=all", "--data=nothing"], "no task .* lies below nothing; .*python data/glue/prepare.py"),
        (["--run=glue"], "no run folder at glue; "),
        (["--run=glue", "--data=nothing"], "no run folder at glue; "),
        (["--run=glue", "--tasks=sts"], "no run folder at glue; "),
        (["--run=glue", "--tasks=nope"], "--tasks=nope is no task; "),
        (["--iterations=4"], "has no iterations; leave --iterations out"),
        (["--concepts=4"], "not trained with nested=True"),
        (["--concepts=0,4"], "out of range; write a number in this range: 1 or more"),
        (["--iterations=2,4", "--mode=fine_tune", "--tasks=stsb"], "a sweep .* is zero-shot"),
    ],
)
def test_mistakes(flags, message, place, monkeypatch):
    monkeypatch.chdir(place.parent)
    with pytest.raises(UserError, match=message):
        judge(place, *flags)


def test_a_sweep_over_concepts_and_iterations(place, capsys):
    """Each point is what one call with it alone gives; the twin is run in the same way."""
    out = place / "out" / "sweep"
    shape = ["--encoder=recursive", "--iterations=3", "--nested=True", "--whitening=0.25"]
    assert training.run(place / "data", out, "--max_steps=2", *shape) == 0
    capsys.readouterr()
    assert judge(place, "--tasks=stsb,mrpc", "--concepts=1,8", "--iterations=2", run="sweep") == 0
    header, _, *rows = (line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert "stsb dev pearson_adapted" in header and "mrpc dev accuracy" in header and len(rows) == 2
    assert (out / "eval" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    cells = [cell.strip() for cell in rows[0].split("|")]
    assert cells[1:3] == ["1", "2"]
    path = out / "eval" / "zero_shot_stsb_concepts1_iterations2.json"
    swept = json.loads(path.read_text())
    path.unlink()
    assert judge(place, "--tasks=stsb", "--concepts=1", "--iterations=2", run="sweep") == 0
    alone = json.loads(path.read_text())
    assert alone == swept and alone["protocol"]["concepts"] == 1
    dev = alone["splits"]["dev"]
    assert cells[4] == f"{100 * dev['metrics']['pearson_adapted']:.4g}"
    assert cells[5] == f"{100 * dev['floors']['untrained']['pearson_adapted']:.4g}"
    run = load_run(out, device="cpu", options=Options(1, 2))
    pairs = Pairs("stsb", load_task("stsb", place / "glue"))
    twin = [floors.embed(run.twin(seed), pairs) for seed in range(2)]
    answers = [predictions(vectors, pairs)["dev"]["centred"][0] for vectors in twin]
    expected = np.mean([stats.pearsonr(answer, pairs.labels["dev"])[0] for answer in answers])
    assert dev["floors"]["untrained"]["pearson_centred"] == pytest.approx(expected, abs=1e-6)
    other = json.loads((out / "eval" / "zero_shot_stsb_concepts8_iterations2.json").read_text())
    assert other["splits"]["dev"]["metrics"] != dev["metrics"]


def test_a_mistake_ends_in_one_line_and_exit_2(place, tmp_path):
    """The last task's file is at fault: nothing is computed, nothing written."""
    shutil.copytree(place / "glue", tmp_path / "glue")
    shutil.copytree(place / "out/run", tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    file = tmp_path / "glue/SICK/SICK_trial.txt"
    file.write_text(file.read_text() + "21\tA ship.\t\t3.0\tNEUTRAL\n")
    words = [f"--run={tmp_path / 'run'}", "--tasks=stsb,sick_r", f"--data={tmp_path / 'glue'}"]
    found = training.Process(words, tmp_path / "log", main=eval_glue.main).wait()
    assert found.code == 2 and found.out == ""
    assert found.err.startswith("error: ") and found.err.count("\n") == 1
    assert "SICK_trial.txt:22: an empty sentence; " in found.err
    assert not (tmp_path / "run/eval").exists()


def test_an_interruption_leaves_whole_files(place, monkeypatch):
    """What was judged before Ctrl-C is kept; of what was being written there is no trace."""
    shutil.copytree(place / "out" / "run", place / "stopped" / "run", ignore=shutil.ignore_patterns("eval"))

    def stopped(file, **arrays):
        if len(list((place / "stopped" / "run" / "eval").glob("*.json"))) == 1:
            file.write(b"half of it")
            raise KeyboardInterrupt
        np.savez(file, **arrays)

    monkeypatch.setattr(np, "savez_compressed", stopped)
    with pytest.raises(KeyboardInterrupt):
        eval_glue.main([f"--run={place / 'stopped' / 'run'}", f"--data={place / 'glue'}", "--tasks=stsb,sick_r"])
    judged = sorted(path.name for path in (place / "stopped" / "run" / "eval").iterdir())
    kept = [path.name for path in (place / "stopped" / ".floors").iterdir()]
    assert judged == ["zero_shot_stsb.json", "zero_shot_stsb.npz"] and len(kept) == 1 and kept[0].startswith("stsb_")
