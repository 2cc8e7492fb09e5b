"""eval_long.py: readers and controls against what they say, scores against slow references, the command."""

import json
import lzma
import math
import random
import re

import numpy as np
import pyarrow.parquet
import pytest
import torch

import eval_long
import losses
from encoders import Options
from lab.analysis.measure import to_write
from lab.analysis.rate import kept
from lab.configurator import UserError
from lab.data.tokenizers import split_sentences
from lab.evaluation import long, long_scores
from lab.evaluation.long import CONTROLS, TASKS, Classes, Context, Search
from lab.runs import load_run
from tests.corpus import sentence
from tests.training import BRIEF, run


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("long") / "run"
    run(data, out, *BRIEF, "--max_steps=2")
    return out


@pytest.fixture
def context(trained, tmp_path):
    return Context(load_run(trained, device="cpu"), tmp_path, 60)


# ---- scores


def test_maxsim_of_many_sets_is_that_of_each():
    draw = np.random.default_rng(0)
    query = long_scores.unit(draw.normal(size=(3, 5)))
    sets = [long_scores.unit(draw.normal(size=(n, 5))) for n in (1, 4, 2)]
    expected = [losses.maxsim(torch.from_numpy(query @ x.T)).item() for x in sets]
    assert long_scores.maxsims(query, sets) == pytest.approx(expected, abs=1e-12)


def test_ranks_count_wrong_texts_that_are_as_similar():
    every = np.arange(4)
    right = [np.array(x, bool) for x in ([0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1])]
    task = Search(["a", "b", "c"], ["x"] * 4, [every] * 3, right)
    values = [[0.1, 0.5, 0.5, 0.2], [0.9, 0.1, 0.3, 0.2], [0.4, 0.3, 0.2, 0.1]]
    ranks = long_scores.ranks_of(task, lambda i: np.array(values[i]))
    assert ranks.tolist() == [1, 0, 3]
    assert long_scores.recalls(ranks)["recall_1"].tolist() == [[0, 1, 0]]
    tried = np.mean([[right[i][random.Random(s).randrange(4)] for i in range(3)] for s in range(4000)])
    assert task.chance["recall_1"] == pytest.approx(tried, abs=0.02) and task.chance["recall_5"] == 1


def test_a_text_that_is_its_own_answer_is_found():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(300, 30))
    task = long.one_to_one(["q"] * 300, ["t"] * 300)
    hits = long_scores.search(task, np.concatenate([x + 0.01 * draw.normal(size=x.shape), x]), "model")
    assert hits["recall_1"].all()
    turned = np.concatenate([x @ draw.normal(size=(30, 30)), x])
    assert long_scores.search(task, turned, "model")["recall_1"].mean() < 0.1
    task.mapped = 200  # a linear map turns one into the other
    hits = long_scores.search(task, turned, "model")
    assert hits["recall_1"].shape == (1, 100) and hits["recall_1"].mean() > 0.9


def test_a_probe_answers_what_is_in_the_features():
    draw = np.random.default_rng(2)
    labels = draw.integers(0, 3, 300)
    x = np.eye(3)[labels] + 0.1 * draw.normal(size=(300, 3))
    task = Classes(["t"] * 300, labels, 200)
    assert long_scores.probe(task, x)["accuracy"].mean() > 0.97
    assert abs(long_scores.probe(task, draw.normal(size=(300, 3)))["accuracy"].mean() - 1 / 3) < 0.15
    assert task.chance["accuracy"] == np.bincount(labels[200:]).max() / 100


# ---- controls


@pytest.mark.parametrize("length", [64, 200])
def test_controls_are_what_they_say(context, length):
    made = {name: task(context, length) for name, task in CONTROLS.items()}
    for name in ("passkey", "needle", "order", "count"):
        task = made[name]
        assert len(task.texts) == 60 and task.train == 40
        sizes = [len(ids) for ids in context.run.encode_texts(task.texts)]
        assert max(sizes) <= length + 60 and np.mean(sizes) > 0.6 * length
    for text, digit, depth in zip(made["passkey"].texts, made["passkey"].labels, made["passkey"].depth, strict=True):
        assert re.findall(r"The pass key is (\d)\.", text) == [str(digit)]
        place = text.index("The pass key") / len(text)
        assert abs(place - (depth + 0.5) / long.BINS) < 0.5
    for text, label in zip(made["needle"].texts, made["needle"].labels, strict=True):
        assert ("elephant" in text) == label
    for text, label in zip(made["order"].texts, made["order"].labels, strict=True):
        assert (text.index("A dog ate") < text.index("The doctor")) == label
    for text, times in zip(made["count"].texts, made["count"].labels, strict=True):
        assert text.count("The trumpet sounded.") == times
    task = made["contains"]
    for own, right in zip(task.candidates, task.right, strict=True):
        assert len(own) == 10 and right.sum() == 1
    task = made["third"]
    for query, own, right in zip(task.queries, task.candidates, task.right, strict=True):
        assert query == " ".join(task.texts[i] for i in own) and np.flatnonzero(right).tolist() == [2]


def test_the_same_documents_each_time(context, trained):
    again = Context(load_run(trained, device="cpu"), context.folder, 60)
    assert TASKS["passkey"](context, 64).texts == TASKS["passkey"](again, 64).texts


def test_documents_end_where_they_should(context):
    long_text = " ".join(sentence(random.Random(0)) for _ in range(40))
    short, cut = context.truncated(["A dog.", long_text], 32)
    assert short == "A dog." and long_text.lower().replace(" ", "").startswith(cut.lower().replace(" ", ""))
    n = len(context.run.encode_texts(long_text))
    assert abs(len(context.run.encode_texts(cut)) - 32) <= 2 and context.cut == n - 32


def test_duplicates_keep_half_of_their_sentences(context, monkeypatch):
    texts = [" ".join(f"Sentence {j} of {i}." for j in range(10)) for i in range(30)]
    monkeypatch.setattr(long, "held_out_documents", lambda *_: texts)
    task = TASKS["duplicates"](context, 512)
    kept = [sum(s.endswith(f"of {i}.") for s in split_sentences(q)) for i, q in enumerate(task.queries)]
    assert set(kept) == {5} and task.texts == texts


# ---- files


def write_files(folder):
    chance = random.Random(0)
    for split in ("train", "test"):
        rows = [f"{i}\t{i % 10}\t{i % 2}\t{sentence(chance)} {'good' if i % 2 else 'bad'}" for i in range(60)]
        with lzma.open(folder / f"imdb_{split}.tsv.xz", "wt") as file:
            file.write("\n".join(rows))
    race = [
        dict(id=str(i), article=sentence(chance), questions=["Who?", "What?"], options=[list("wxyz")] * 2, answers="AC")
        for i in range(30)
    ]
    (folder / "race_test.jsonl").write_text("\n".join(map(json.dumps, race)))
    turns = [{"speaker": "A", "content": sentence(chance) * 5} for _ in range(60)]
    asked = [{"query": f"What about {i}?", "relevant_text_span": [[str(i), str(i + 1)]]} for i in range(30)]
    meeting = dict(split="test", meeting_transcripts=turns, specific_query_list=asked)
    other = dict(meeting, split="train", specific_query_list=[dict(asked[0], query="of training")])
    (folder / "qmsum.jsonl").write_text(json.dumps(other) + "\n" + json.dumps(meeting))


def test_files_of_scrolls_and_longbench_are_read(context):
    folder, kinds = context.folder, ["Entailment", "Contradiction", "Not mentioned"]
    (folder / "contract_nli").mkdir()
    (folder / "quality").mkdir()
    for split in ("train", "validation"):
        rows = [
            dict(id=str(i), pid=f"{i}_0", input=f"It is {i}.\n\nA contract.", output=kinds[i % 3]) for i in range(30)
        ]
        (folder / f"contract_nli/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "Who came?\n\n (A) The cook\n (B) A king\n (C) Nobody\n (D) The dog\n\n\nOnce (A) came.\nThe end."
    rows = [dict(id=str(i), pid=f"{i}_0", input=text, output="A king") for i in range(20)]
    (folder / "quality/validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paragraphs = "\n\n".join(f"Paragraph {i}: Text {i}." for i in range(1, 31))
    (folder / "qasper").mkdir()
    rows = [dict(input=f"What is {i}?\n\nPaper {i // 2}.", output=f"Number {i}") for i in range(30)]
    (folder / "qasper/validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kinds = ["Food", "Animal"]
    rows = [
        dict(input=f"Who is {i}?", context="Examples.", answers=[kinds[i % 2]], all_classes=kinds) for i in range(30)
    ]
    (folder / "trec.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [dict(input="It is about seven.", context=paragraphs, answers=["Paragraph 7"]) for i in range(20)]
    (folder / "passage_retrieval_en.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = TASKS["contract_nli"](context, 512)
    assert (task.train, len(task.texts)) == (30, 60)
    for text, label in zip(task.texts, task.labels, strict=True):
        assert int(re.search(r"\d+", text)[0]) % 3 == label
    assert {"contract_nli", "quality", "halves", *CONTROLS} <= {*long.there(folder)}
    assert not {"race", "imdb", "qmsum"} & {*long.there(folder)}
    task = TASKS["quality"](context, 512)
    assert task.texts[:4] == ["The cook", "A king", "Nobody", "The dog"] and task.right[0].tolist() == [0, 1, 0, 0]
    assert task.queries[0].endswith("The end.\nWho came?")
    task = TASKS["qasper"](context, 512)
    for query, own, right in zip(task.queries, task.candidates, task.right, strict=True):
        number, paper = int(re.search(r"What is (\d+)", query)[1]), int(re.match(r"Paper (\d+)", query)[1])
        texts = [task.texts[i] for i in own]
        assert [texts[i] for i in np.flatnonzero(right)] == [f"Number {number}"] and len(texts) == long.AMONG
        assert not any(int(text[7:]) // 2 == paper for text in texts if text != f"Number {number}")
    task = TASKS["trec"](context, 512)
    assert (task.train, len(task.texts)) == (20, 30)
    for text, label in zip(task.texts, task.labels, strict=True):
        assert int(re.match(r"Who is (\d+)", text)[1]) % 2 == label
    task = TASKS["passage_retrieval_en"](context, 512)
    assert len(task.right[0]) == 30 and task.texts[task.right[0].argmax()].strip() == "Text 7."


def test_files_are_read(context):
    write_files(context.folder)
    task = TASKS["imdb"](context, 512)
    assert (task.train, len(task.texts)) == (60, 90)
    assert all(text.endswith("good") == label for text, label in zip(task.texts, task.labels, strict=True))
    task = TASKS["race"](context, 512)
    assert len(task.queries) == 60 and {tuple(task.texts[i] for i in own) for own in task.candidates} == {tuple("wxyz")}
    answers = {query.rsplit("\n")[-1]: right.argmax() for query, right in zip(task.queries, task.right, strict=True)}
    assert answers == {"Who?": 0, "What?": 2} and task.chance["recall_1"] == 0.25
    task = TASKS["qmsum"](context, 64)
    assert "of training" not in task.queries and len(task.queries) == 30
    for i, right in enumerate(task.right):
        texts = [task.texts[j] for j in task.candidates[i][right]]
        assert 1 <= len(texts) <= 2


def test_parquet_is_read(context):
    """As the Hub's repositories hold it: of RACE a question a row."""
    write_files(context.folder)
    expected = {name: TASKS[name](context, 512) for name in ("imdb", "race", "qmsum")}
    rows = [json.loads(line) for line in (context.folder / "race_test.jsonl").read_text().splitlines()]
    each = [
        dict(example_id=row["id"], article=row["article"], question=question, options=options, answer=answer)
        for row in rows
        for question, options, answer in zip(row["questions"], row["options"], row["answers"], strict=True)
    ]
    files = {
        "race_test": each,
        "qmsum": list(map(json.loads, (context.folder / "qmsum.jsonl").read_text().splitlines())),
    }
    for split in ("train", "test"):
        lines = lzma.decompress((context.folder / f"imdb_{split}.tsv.xz").read_bytes()).decode().splitlines()
        files[f"imdb_{split}"] = [dict(text=line.split("\t")[3], label=int(line.split("\t")[2])) for line in lines]
    for path in context.folder.glob("*.*"):
        path.unlink()
    for stem, rows in files.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), context.folder / f"{stem}.parquet")
    for name, task in expected.items():
        again = TASKS[name](context, 512)
        assert again.texts == task.texts
        if name == "imdb":
            assert (again.labels == task.labels).all()
        else:
            assert again.queries == task.queries
    (context.folder / "qmsum.parquet").write_bytes((context.folder / "qmsum.parquet").read_bytes()[:-20])
    with pytest.raises(UserError, match="qmsum.parquet is damaged"):
        TASKS["qmsum"](context, 64)


@pytest.mark.parametrize(
    "name, task, text, said",
    [
        ("imdb_train.tsv", "imdb", "1\t2\t1\tfine\n1\t2\tgood", "imdb_train.tsv:2: no id, rating, label and text"),
        ("race_test.jsonl", "race", '{"article": "a"}', "race_test.jsonl:1 is not of this task"),
        ("race_test.jsonl", "race", "{", "race_test.jsonl:1 is not of this task"),
        ("qmsum.jsonl", "qmsum", "[1]", "qmsum.jsonl:1 is not of this task"),
        ("qmsum.jsonl.xz", "qmsum", "no xz", "qmsum.jsonl.xz is damaged"),
    ],
)
def test_damaged_files_are_named(context, name, task, text, said):
    (context.folder / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        TASKS[task](context, 64)


def test_missing_files_are_named(context):
    with pytest.raises(UserError, match="imdb_train is missing; put the file there, give --data=DIR"):
        TASKS["imdb"](context, 64)


# ---- the command


@pytest.mark.parametrize("merge", ["mean", "maxsim"])
def test_the_command(trained, tmp_path, capsys, merge, monkeypatch):
    monkeypatch.setattr("lab.evaluation.scores.bootstrap.__defaults__", (0, 100))
    write_files(tmp_path)
    words = [f"--run={trained}", f"--data={tmp_path}", "--tasks=race,contains,needle,imdb", "--lengths=32,64"]
    assert eval_long.main([*words, "--most=60", f"--merge={merge}", "--device=cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"merge={merge}" in printed and printed.count("| contains") == printed.count("| needle") == 2
    record = json.loads((trained / "eval/long_imdb.json").read_text())
    for length, split in record["splits"].items():
        assert split["floors"].keys() >= {"chance", "word_tfidf", "token_idf", "untrained"}
        best = split["lift"]["best_floor"]
        value = split["metrics"]["accuracy"] - split["floors"][best["floor"]]["accuracy"]
        assert best["value"] == pytest.approx(value) and best["low"] <= value <= best["high"]
        assert 0 <= record["protocol"]["cut"][length] < 1
    assert (trained / "eval/long_depth.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "flag, said",
    [
        ("--tasks=haves", "did you mean halves?"),
        ("--lengths=512,128", "numbers of tokens that grow"),
        ("--lengths=8", "lengths"),
        ("--merge=perceiver", "no perceiver that merges chunks"),
        ("--tasks=reconstruct", "did you mean reconstruction?"),
    ],
)
def test_mistakes(trained, flag, said):
    with pytest.raises(UserError, match=re.escape(said)):
        eval_long.main([f"--run={trained}", flag])


# ---- reconstruction


@pytest.fixture(scope="module")
def nested(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("rate") / "run"
    run(data, out, *BRIEF, "--max_steps=2", "--nested=True", "--concepts=4", "--lengths=32", "--max_length=32")
    return out


def test_bits_kept_equal_a_loop(nested):
    """Of each row by itself, in float64, from its logits."""
    one = load_run(nested, device="cpu")
    ids = torch.from_numpy(np.random.default_rng(0).integers(5, 60, (5, 12)))
    found = kept(one, ids, 2)
    model, every = one.model.double(), []
    for row in ids:
        every.append(model.encode(row[None], options=Options(2)))
    mean, losses_of, right = torch.cat(every).mean(0, keepdim=True), {"own": [], "mean": []}, []
    for row, own in zip(ids, every, strict=True):
        for name, concepts in (("own", own), ("mean", mean)):
            logits = model.logits(model.decode(concepts, to_write(row[None]))[0])
            chances = logits.softmax(-1)
            losses_of[name] += [-math.log2(chances[i, t].item()) for i, t in enumerate(row)]
        right += (model.logits(model.decode(own, to_write(row[None]))[0]).argmax(-1) == row).tolist()
    assert found["bits_per_token"] == pytest.approx(np.mean(losses_of["mean"]) - np.mean(losses_of["own"]), abs=1e-5)
    assert found["share_kept"] == pytest.approx(1 - np.mean(losses_of["own"]) / np.mean(losses_of["mean"]), abs=1e-5)
    assert found["teacher_forced"] == found["free_running"] == np.mean(right)


def test_reconstruction_by_the_command(nested, capsys):
    assert eval_long.main([f"--run={nested}", "--tasks=reconstruction", "--lengths=32", "--most=30"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((nested / "eval/long_reconstruction.json").read_text())
    (split,) = record["splits"].values()
    assert [*split] == ["1", "2", "4", "untrained"]
    assert [split[c]["tokens_per_concept"] for c in "124"] == [32, 16, 8]
    assert printed.count("\n| 32 ") == 3 and f"{split['4']['bits_per_token']:.3f}" in printed
    with pytest.raises(UserError, match="longest row has 32 tokens"):
        eval_long.main([f"--run={nested}", "--tasks=reconstruction", "--lengths=64"])
