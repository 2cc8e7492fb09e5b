"""embed.py: vectors of files of texts, against one text at a time; it goes on where it was stopped; what is near."""

import io
import json
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn.functional import cosine_similarity

import embed
from lab.configurator import UserError
from lab.data.tokenizers import split_sentences
from lab.evaluation.search import similarities, tfidf_ranks, unit
from lab.runs import load_run
from tests.corpus import sentence
from tests.training import BRIEF, run


@pytest.fixture(scope="module")
def place(data, tmp_path_factory):
    """A run whose rows are 16 tokens, a file of 200 texts of many lengths, some longer, some empty."""
    here, chance = tmp_path_factory.mktemp("embed"), random.Random(0)
    run(data, here / "run", *BRIEF, "--max_steps=2", "--whitening=0.5", "--nested=True")
    texts = [" ".join(sentence(chance) for _ in range(chance.randint(0, 3))) for _ in range(198)]
    texts += ["the red ship, " * 30, texts[0] or "the dog"]  # one sentence longer than a row; twice the same
    (here / "texts.txt").write_text("\n".join(texts) + "\n")
    some = next(i for i, text in enumerate(texts) if text and texts.count(text) == 1)
    return SimpleNamespace(here=here, texts=texts, some=some, run=load_run(here / "run", device="cpu"))


@pytest.fixture
def made(place, tmp_path, capsys):
    """Runs the command -> (vectors, stdout)."""

    def make(*words, file=place.here / "texts.txt", to=tmp_path / "v.npy"):
        words = [
            f"--run={place.here / 'run'}",
            f"--file={file}",
            "--device=cpu",
            *([f"--to={to}"] if to else []),
            *words,
        ]
        assert embed.main([str(word) for word in words]) == 0
        return np.load(to) if to else None, capsys.readouterr().out

    return make


def slowly(run, text) -> tuple[torch.Tensor, torch.Tensor]:
    """(vector before whitening [H], concepts [C, H]) of one text: whole sentences as long as they fit, one row each."""
    rows = [[]]
    for part in split_sentences(text) or [""]:
        ids = run.encode_texts(part)
        while ids:
            if rows[-1] and len(rows[-1]) + min(len(ids), run.max_length) > run.max_length:
                rows.append([])
            rows[-1] += ids[: run.max_length]
            ids = ids[run.max_length :]
    with torch.no_grad():
        each = [run.model.encode(torch.tensor([row]))[0].double() for row in rows]
    concepts = sum(len(row) * c for row, c in zip(rows, each, strict=True)) / sum(map(len, rows))
    return concepts.mean(0), concepts


def test_vectors_in_order_of_texts_of_any_length(place, made):
    vectors, _ = made()
    mean, matrix = place.run.fitted()
    expected = torch.stack([(slowly(place.run, text)[0] - mean) @ matrix for text in place.texts])
    assert vectors.dtype == np.float32 and vectors.shape == (200, 64)
    assert np.abs(vectors - expected.numpy()).max() < 1e-5 and np.array_equal(vectors[0], vectors[-1])
    short = [i for i, text in enumerate(place.texts) if len(place.run.encode_texts(text)) <= 16]
    assert 20 < len(short) < 190  # of the others `embed` cuts wherever a row is full
    assert np.allclose(vectors[short], place.run.embed([place.texts[i] for i in short]), atol=1e-5)


def test_all_concepts(place, made):
    vectors, _ = made("--concepts")
    expected = torch.stack([slowly(place.run, text)[1] for text in place.texts])
    assert vectors.shape == (200, 8, 64) and np.abs(vectors - expected.numpy()).max() < 1e-5


def test_the_first_concepts_alone(place, made, tmp_path):
    vectors, _ = made("--concepts=2")
    place.run.model.options = place.run.model.options._replace(concepts=2)
    expected = place.run.embed(place.texts, by_sentence=True)
    place.run.model.options = place.run.model.options._replace(concepts=0)
    assert np.allclose(vectors, expected, atol=1e-5)
    other, _ = made(to=tmp_path / "other.npy")
    assert not np.allclose(vectors, other, atol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_kinds_of_numbers(place, made, dtype, tmp_path):
    whole, _ = made(to=tmp_path / "whole.npy")
    vectors, _ = made("--normalize", f"--dtype={dtype}")
    assert vectors.dtype == dtype
    if dtype == "int8":
        assert (np.abs(vectors).max(1) == 127).all()
    else:
        assert np.allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=1e-3)
    cosines = cosine_similarity(torch.tensor(vectors).float(), torch.tensor(whole), dim=1)
    assert cosines.min() > 0.999


def test_standard_input_and_json_lines(place, made, monkeypatch, tmp_path):
    vectors, _ = made()
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in place.texts))
    assert np.array_equal(made(file=tmp_path / "texts.jsonl", to=tmp_path / "json.npy")[0], vectors)
    piped = SimpleNamespace(buffer=io.BytesIO("\n".join(place.texts).encode()), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", piped)
    assert np.array_equal(made(file="-", to=tmp_path / "piped.npy")[0], vectors)


# ---- stopped, and started again


def stop_after(monkeypatch, batches):
    """Ctrl-C strikes while the next batch is embedded; -> the sizes of the batches that were."""
    sizes, of = [], embed.Vectors.of

    def broken(self, texts):
        if len(sizes) == batches:
            raise KeyboardInterrupt
        sizes.append(len(texts))
        return of(self, texts)

    monkeypatch.setattr(embed, "TEXTS", 64)
    monkeypatch.setattr(embed.Vectors, "of", broken)
    return sizes


def test_it_goes_on_where_it_was_stopped(place, made, monkeypatch, tmp_path):
    whole, _ = made(to=tmp_path / "whole.npy")
    assert stop_after(monkeypatch, 2) == []
    with pytest.raises(KeyboardInterrupt):
        made()
    rows = tmp_path / ".v.npy" / "rows.npy"
    with open(rows, "ab") as file:
        file.write(b"half a batch")
    assert not (tmp_path / "v.npy").exists()
    monkeypatch.undo()
    sizes = stop_after(monkeypatch, 99)
    assert np.allclose(made()[0], whole, atol=1e-6) and sizes == [64, 8]
    assert {path.name for path in tmp_path.glob("*v.npy*")} == {"v.npy", "v.npy.json"}
    before = (tmp_path / "v.npy").stat().st_mtime_ns
    made()
    assert sizes == [64, 8] and (tmp_path / "v.npy").stat().st_mtime_ns == before


def test_other_texts_or_other_keys_take_nothing_away(place, made, monkeypatch, tmp_path):
    (tmp_path / "other.txt").write_text("\n".join(place.texts[::-1]))
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        made()
    monkeypatch.undo()
    monkeypatch.setattr(embed, "TEXTS", 64)
    with pytest.raises(UserError, match=r"\.v\.npy was begun of other texts; delete it"):
        made(file=tmp_path / "other.txt")
    vectors, _ = made("--normalize")  # what was begun otherwise is begun anew
    for words in ((), ("--dtype=int8",)):
        with pytest.raises(UserError, match="holds other vectors than these; give another --to"):
            made(*words)
    with pytest.raises(UserError, match="holds other vectors"):
        made("--normalize", file=tmp_path / "other.txt")
    assert np.array_equal(np.load(tmp_path / "v.npy"), vectors)


def test_few_texts_are_in_memory(tmp_path):
    lengths = [10] * 100 + [embed.CHARACTERS + 1] + [10] * 5
    (tmp_path / "texts").write_text("\n".join("x" * n for n in lengths))
    with open(tmp_path / "texts", "rb") as file:
        assert [(n, len(batch)) for n, _, batch in embed.batches(file, 64)] == [(64, 64), (101, 37), (106, 5)]


# ---- what is near


def test_queries(place, made):
    query = "the green bird sees the stone"
    vectors, out = made(f"--query={query}\n{place.texts[place.some]}", "--top=3")
    first, second = out.split("\n\n")[1::2]
    exact = cosine_similarity(torch.tensor(vectors), place.run.embed(query)[None], dim=1)
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in first.splitlines()[2:]]
    assert [int(row[1]) for row in rows] == exact.argsort(descending=True, stable=True)[:3].tolist()
    for cosine, i, rank, text in rows:
        assert float(cosine) == pytest.approx(float(exact[int(i)]), abs=6e-4)
        assert text == embed.shorten(place.texts[int(i)])
        assert rank == str(tfidf_ranks(place.texts, [query])[0, int(i)] or "-")
    best = second.splitlines()[2].split("|")
    assert best[1].strip() == "1.000" and best[4].strip() == embed.shorten(place.texts[place.some])


def test_tfidf_ranks_are_those_of_scikit_learn(place):
    queries = ["the Green bird sees the stone.", "xyzzy", "red ship"]
    model = TfidfVectorizer(token_pattern="[a-z0-9']+").fit(place.texts)
    cosines = (model.transform(queries) @ model.transform(place.texts).T).toarray().round(12)
    expected = [[1 + (row > x).sum() if x > 0 else 0 for x in row] for row in cosines]
    assert np.mean(tfidf_ranks(place.texts, queries) == expected) > 0.99  # sums of another order part a few equal ones
    assert not tfidf_ranks(place.texts, ["xyzzy"]).any()


def test_maxsim_of_concepts(place, made, monkeypatch):
    vectors, out = made("--concepts", "--query=the red ship", "--top=200")
    query = slowly(place.run, "the red ship")[1].numpy()
    cosines = [[[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in text] for a in query] for text in vectors[:20]]
    exact = [(np.max(x, 1).mean() + np.max(x, 0).mean()) / 2 for x in map(np.array, cosines)]
    rows = [line.split("|") for line in out.splitlines()[4:]]
    printed = {int(row[2]): float(row[1]) for row in rows}
    assert len(printed) == 200 and all(printed[i] == pytest.approx(x, abs=6e-4) for i, x in enumerate(exact))
    monkeypatch.setattr("lab.evaluation.search.VALUES", 1)  # a text at a time
    assert np.allclose(similarities(vectors[:20], unit(query[None])), exact, atol=1e-5)


def test_clusters_and_duplicates(place, made, tmp_path):
    vectors, out = made("--cluster=4", "--duplicates=0.9999")
    labels = np.load(tmp_path / "v.clusters.npy")
    sizes = [int(line.split()[0]) for line in out.splitlines() if line.endswith(" texts") and "pairs" not in line]
    assert sizes == sorted(np.bincount(labels), reverse=True) and sum(sizes) == 200
    x = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = {(i, j) for i in range(200) for j in range(i) if x[i] @ x[j] >= 0.9999}
    found = [
        [int(part.split(":")[0].split()[-1]) for part in line.split(" | ")]
        for line in out.splitlines()
        if " | " in line
    ]
    assert {(j, i) for i, j in found} == expected and (199, 0) in expected
    assert f"{len(expected):,} pairs of a cosine of 0.9999 or more among 200 texts" in out


def test_a_npy_is_searched_without_its_texts(place, made, tmp_path):
    made()
    _, out = made(f"--query={place.texts[place.some]}", "--top=1", file=tmp_path / "v.npy", to="")
    assert [cell.strip() for cell in out.splitlines()[-1].split("|")[1:4]] == ["1.000", str(place.some), "-"]
    with pytest.raises(UserError, match="holds vectors of 64, the run's are 8 x 64"):
        made("--query=a", "--concepts", file=tmp_path / "v.npy", to="")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--to="], "nothing is to be written; write --to=vectors.npy"),
        (["--to=v.txt"], "is no .npy; write --to=v.txt.npy"),
        (["--file=v.npy"], "can only be searched; write --query"),
        (["--concepts", "--cluster=3"], "leave --concepts out"),
        (["--top=0"], "top=0 is out of range"),
        (["--file=nothing.txt"], "nothing.txt cannot be read"),
        (["--concepts=9"], "not within 1 and 8"),
        (["--cluster=201"], "write --cluster=200 or less"),
    ],
)
def test_mistakes(made, words, said):
    with pytest.raises(UserError, match=said):
        made(*words)


def test_no_text_at_all(made, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UserError, match="holds no text"):
        made(file=tmp_path / "empty")
