"""Corpora of the hub, from local files in its layout: interruption, held-out documents, mistakes."""

import gzip
import json
import shutil
import subprocess
import sys
from itertools import accumulate

import numpy as np
import pyarrow.parquet
import pytest

from lab.data.corpus import Corpus
from lab.data.tokenizers import load_tokenizer, split_sentences
from tests import test_prepare
from tests.test_prepare import ROOT, all_tokens, documents, ids_of, script

bpe, run = test_prepare.bpe, test_prepare.run  # fixtures
FINISHED = ["meta.json", "tokenizer.json", "train.bin", "val.bin"]


@pytest.fixture
def minipile(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    texts = {name: documents(60, seed) + [" "] for seed, name in enumerate(("train-0", "train-1", "validation-0"))}
    for name, rows in texts.items():
        table = pa.table({"text": rows, "meta": [1] * len(rows)})
        parquet.write_table(table, folder / f"{name}0000-of-00002-0123abcd.parquet")
    return folder.parent, {name: rows[:-1] for name, rows in texts.items()}


def test_hub_goes_on_where_it_stopped(run, bpe, tmp_path, minipile, monkeypatch):
    folder, texts = minipile
    flags = ("--name=minipile", f"--local={folder}", f"--tokenizer={bpe}")
    hub, encoded = script("hub"), []

    def encode_part(*arguments, original=hub.encode_part):
        if len(encoded) == 1:
            encoded.append("interrupted")
            raise KeyboardInterrupt
        encoded.append(arguments)
        original(*arguments)

    monkeypatch.setattr(hub, "encode_part", encode_part)
    code, _, err = run("hub", *flags, module=hub)
    assert code == 130 and [path.name for path in (tmp_path / "data/minipile").iterdir()] == [".parts"], err
    assert (tmp_path / "data/minipile/.parts/00000/train.bin").exists()
    code, out, err = run("hub", *flags, module=hub)
    assert code == 0 and "1 of 3 parts" in err and len(encoded) == 4, err

    tokenizer = load_tokenizer(bpe)
    train, val = (Corpus(tmp_path / "data" / "minipile", split) for split in ("train", "val"))
    assert train.tokens.tolist() == all_tokens(texts["train-0"] + texts["train-1"], tokenizer)
    assert val.tokens.tolist() == all_tokens(texts["validation-0"], tokenizer)
    assert train.tokens[train.documents[:-1]].tolist() == [
        ids_of(text, tokenizer)[0] for text in texts["train-0"] + texts["train-1"]
    ]
    assert len(train.sentences) == sum(len(split_sentences(t)) for t in texts["train-0"] + texts["train-1"])
    assert train.meta["counts"] == np.bincount(train.tokens, minlength=train.vocab_size).tolist()
    assert sorted(path.name for path in train.folder.iterdir()) == FINISHED


@pytest.fixture
def two_repositories(tmp_path):
    """(folder, texts of each of three shards): a text of the first repository stands in the second again."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    shards = {
        "Skylion007/openwebtext/plain_text/train-00000-of-00080.parquet": documents(80, 1),
        "Skylion007/openwebtext/plain_text/train-00001-of-00080.parquet": documents(80, 2),
        "wikimedia/wikipedia/20231101.en/train-00000-of-00041.parquet": documents(80, 3) + documents(80, 1)[:40],
        "wikimedia/wikipedia/20231101.de/train-00000-of-00020.parquet": ["Ein anderer Text. Und noch einer."],
    }
    for name, texts in shards.items():
        path = tmp_path / "hub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {"text": texts} | ({"id": texts, "url": texts, "title": texts} if "wiki" in name else {})
        parquet.write_table(pa.table(columns), path)
    return tmp_path / "hub", list(shards.values())[:3]


def test_hub_of_two_repositories_holds_documents_out(run, bpe, tmp_path, two_repositories, monkeypatch):
    """After an interruption, too: all documents in order, each on the side that its text says."""
    folder, shards = two_repositories
    flags = ("--name=openwebtext_wikipedia", f"--local={folder}", f"--tokenizer={bpe}")
    hub, done = script("hub"), []
    monkeypatch.setattr(hub, "HELD_OUT", 0.2)

    def encode_part(*arguments, original=hub.encode_part):
        done.append(arguments)
        if len(done) == 3:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(hub, "encode_part", encode_part)
    code, _, err = run("hub", *flags, module=hub)
    assert code == 130 and not (tmp_path / "data/openwebtext_wikipedia/meta.json").exists(), err
    code, out, err = run("hub", *flags, module=hub)
    assert code == 0 and "2 of 3 parts" in err and len(done) == 4, err

    tokenizer, sides = load_tokenizer(bpe), {"train": [], "val": []}
    for text in sum(shards, []):
        sides[hub.drawn_split(text)].append(text)
    texts = {split: Corpus(tmp_path / "data" / "openwebtext_wikipedia", split) for split in sides}
    for split, own in sides.items():
        assert texts[split].tokens.tolist() == all_tokens(own, tokenizer)
    assert not set(sides["train"]) & set(sides["val"]) and 30 < len(sides["val"]) < 90
    again = [text for text in shards[0] if text in shards[2]]
    assert len(again) == 40 and {hub.drawn_split(text) for text in again} == {"train", "val"}
    meta = texts["train"].meta
    assert meta["repository"] == "Skylion007/openwebtext + wikimedia/wikipedia" and meta["shards"] == 3
    assert sorted(path.name for path in (tmp_path / "data/openwebtext_wikipedia").iterdir()) == FINISHED

    shutil.rmtree(folder / "wikimedia")
    code, out, err = run("hub", *flags, "--overwrite")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ") and "wikimedia/wikipedia is no folder; name another --local" in err
    assert "20231101.en/train-*" in err and texts["train"].meta == Corpus(texts["train"].folder, "train").meta


LAYOUTS = {  # as on the hub
    "fineweb_edu": ("sample/10BT/000_00000.parquet", "sample/10BT/013_00000.parquet", ""),
    "c4": (
        "en/c4-train.00000-of-01024.json.gz",
        "en/c4-train.00001-of-01024.json.gz",
        "en/c4-validation.00000-of-00008.json.gz",
    ),
    "c4_realnewslike": (
        "realnewslike/c4-train.00000-of-00512.json.gz",
        "realnewslike/c4-train.00001-of-00512.json.gz",
        "realnewslike/c4-validation.00000-of-00001.json.gz",
    ),
    "pile_dedup": ("data/train-00000-of-01650-f70471ee3deb09c0.parquet", "data/train-00001-of-01650-0a.parquet", ""),
}


def write_shard(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "url": "http://a.b", "timestamp": "2019"} for text in texts]
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_corpora_of_the_hub(run, bpe, tmp_path, name, monkeypatch):
    """Files of other splits and languages beside theirs are left alone."""
    hub, *files = script("hub"), *LAYOUTS[name]
    monkeypatch.setattr(hub, "HELD_OUT", 0.2)
    shards = [documents(40, seed) for seed in range(3)]
    for path, texts in zip(files, shards, strict=True):
        if path:
            write_shard(tmp_path / "hub" / path, texts)
    for other in ("data/CC-MAIN-2013-20/train-00000.parquet", "en.noclean/c4-train.00000-of-07168.json.gz"):
        write_shard(tmp_path / "hub" / other, ["Something else."])
    code, _, err = run("hub", f"--name={name}", f"--local={tmp_path / 'hub'}", f"--tokenizer={bpe}", module=hub)
    assert code == 0, err
    tokenizer, sides = load_tokenizer(bpe), {"train": shards[0] + shards[1], "val": shards[2]}
    if not files[2]:
        drawn = {split: [t for t in sides["train"] if hub.drawn_split(t) == split] for split in sides}
        sides = drawn
    for split, own in sides.items():
        assert Corpus(tmp_path / "data" / name, split).tokens.tolist() == all_tokens(own, tokenizer)


def test_damaged_json_of_the_hub_is_named(run, bpe, tmp_path):
    path = tmp_path / "hub" / LAYOUTS["c4"][0]
    write_shard(path.with_name("c4-validation.00000-of-00008.json.gz"), documents(20, 1))
    flags = ("--name=c4", f"--local={tmp_path / 'hub'}", f"--tokenizer={bpe}")
    for content, said in (
        (gzip.compress(b'{"text": "One."}\n{"text"'), "json.gz:2 is no JSON object; mend that"),
        (gzip.compress(b'{"content": "One."}\n'), "has no column text (but content)"),
        (gzip.compress(b'{"text": "One."}\n' * 99)[:-9], "cannot be read"),
        (gzip.compress(b'{"text": 1}\n'), "text of row 0 is of the type int"),
    ):
        path.write_bytes(content)
        code, _, err = run("hub", *flags)
        assert code == 2 and said in err.splitlines()[-1], err


def test_a_sample_takes_as_much_of_each_file(run, bpe, tmp_path, two_repositories, monkeypatch):
    """Documents that the seed draws, in order, until a file's share of the characters is reached."""
    folder, hub = two_repositories[0] / "wikimedia/wikipedia", script("hub")
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    shards = [documents(400, 3), documents(400, 4)]
    for number, texts in enumerate(shards):
        parquet.write_table(pa.table({"text": texts}), folder / f"20231101.en/train-{number:05d}-of-00041.parquet")
    monkeypatch.setattr(hub, "HELD_OUT", 0.3)
    monkeypatch.setattr(hub, "HUB_SAMPLES", {"wikipedia_sample": 5_000})
    found = []
    for seed in (0, 0, 1):
        flags = "--name=wikipedia_sample", f"--local={folder}", f"--tokenizer={bpe}", f"--seed={seed}", "--overwrite"
        code, _, err = run("hub", *flags, module=hub)
        assert code == 0, err
        found.append([Corpus(tmp_path / "data/wikipedia_sample", split).tokens.tolist() for split in ("train", "val")])
    assert found[0] == found[1] != found[2]
    expected = {"train": [], "val": []}
    for texts in shards:
        drawn = [text for text in texts if hub.hash_text(text, b"draw 1") % 4 == 0]
        sizes = list(accumulate(map(len, drawn)))
        taken = 1 + next(i for i, size in enumerate(sizes) if size >= 2_500)
        assert 2 < taken < len(drawn) < 150
        for text in drawn[:taken]:
            expected[hub.drawn_split(text)].append(text)
    tokenizer = load_tokenizer(bpe)
    assert found[2] == [all_tokens(own, tokenizer) for own in expected.values()]


def test_about_a_thousandth_is_held_out():
    hub = script("hub")
    found = sum(hub.drawn_split(f"Document {i} of many.") == "val" for i in range(50_000))
    assert hub.HELD_OUT == 0.001 and 30 < found < 75
    assert hub.drawn_split("half a character \ud800") in ("train", "val")


def shards_of(tables, folder):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number, groups in enumerate(tables):
        path = folder / "data" / f"train-{number:05d}.parquet"
        groups = groups if isinstance(groups, list) else [groups]
        with parquet.ParquetWriter(path, groups[0].schema) as writer:
            for group in groups:
                writer.write_table(group)
    parquet.write_table(pa.table({"text": ["Held out. Text."]}), folder / "data" / "validation-0.parquet")


def test_shards_and_row_groups_without_rows_and_text_in_bytes(run, bpe, tmp_path):
    pa = pytest.importorskip("pyarrow")
    texts = documents(30)

    def table(rows, kind=None):
        return pa.table({"id": pa.array(range(len(rows)), pa.int64()), "text": pa.array(rows, kind or pa.string())})

    none, null = table([]), table([None, ""])
    shards = [none, table(texts[:10]), null, [none, table(texts[10:20]), none, null], pa.table({"text": pa.nulls(2)})]
    shards += [table([text.encode() for text in texts[20:]] + [None], pa.binary()), pa.table({"text": pa.nulls(0)})]
    shards_of(shards, tmp_path / "hub")
    code, _, err = run("hub", "--name=minipile", f"--local={tmp_path / 'hub'}", f"--tokenizer={bpe}")
    assert code == 0, err
    tokenizer = load_tokenizer(bpe)
    assert Corpus(tmp_path / "data/minipile", "train").tokens.tolist() == all_tokens(texts, tokenizer)
    assert Corpus(tmp_path / "data/minipile", "val").tokens.tolist() == all_tokens(["Held out. Text."], tokenizer)


def test_columns_that_hold_no_text_are_said(run, bpe, tmp_path):
    pa = pytest.importorskip("pyarrow")
    for table, words in {
        "train-00000.parquet has no column text (but content, id); rename": {"content": ["One."], "id": [1]},
        "text of row 1 is not UTF-8 at byte 3; write this column as strings": {"text": [b"One.", b"caf\xe9"]},
        "text of row 0 is of the type int, not text; ": {"text": [0, 3]},
        "text of row 0 is of the type list, not text; ": {"text": [["One."]]},
    }.items():
        table, words = pa.table(words), table
        shards_of([table], tmp_path / "hub")
        code, out, err = run("hub", "--name=minipile", f"--local={tmp_path / 'hub'}", f"--tokenizer={bpe}")
        lines = [line for line in err.splitlines() if line and "part 1/" not in line]
        assert code == 2 and out == "" and len(lines) == 1, err
        assert lines[0].startswith("error: ") and words in lines[0], err


def test_mistakes_about_the_hub(run, tmp_path, minipile, bpe, monkeypatch):
    folder, _ = minipile
    local = f"--local={folder}"
    for flags, words in {
        ("--name=nope",): "write --name=NAME, one of minipile",
        ("--name=../x",): "there is no corpus '../x'",
        ("--name=minipile", "--local=/nowhere"): "is no folder",
        ("--name=minipile", f"--local={tmp_path}"): "has no file data/train-*.parquet",
        ("--name=minipile", local, "--tokenizer=hub:a b"): "names no repository",
    }.items():
        code, _, err = run("hub", *flags)
        assert code == 2 and words in err and err.count("\n") == 1, err

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    command = [sys.executable, str(ROOT / "data/hub/prepare.py"), "--name=minipile", f"--data_dir={tmp_path / 'data'}"]
    for flags, words in {
        (): "give --local=DIR",
        (local, "--tokenizer=hub:a/b"): "hub:a/b could not be downloaded",
    }.items():
        done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=10)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr

    damaged = next(folder.rglob("train-1*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:500])
    code, _, err = run("hub", "--name=minipile", local, f"--tokenizer={bpe}")
    line = err.splitlines()[-1]
    assert code == 2 and line.startswith("error: ") and damaged.name in line, err
    assert (tmp_path / "data/minipile/.parts/00000").is_dir()
