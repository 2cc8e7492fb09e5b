"""data/glue/prepare.py: the hub's parquet files and original layouts become files that the judge reads; differences are
said."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from httpx import Request, Response
from huggingface_hub.errors import RevisionNotFoundError

from lab.configurator import UserError
from lab.evaluation.tasks import TASKS, load_task

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = runpy.run_path(str(ROOT / "data/glue/prepare.py"), run_name="prepare_glue")
main, HUB = SCRIPT["main"], SCRIPT["HUB"]

SENTENCES = {
    "mnli": ("premise", "hypothesis"),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    "sick": ("sentence_A", "sentence_B"),
    "cola": ("sentence",),
    "sst2": ("sentence",),
}


def write(path, rows, names=None, column="label"):
    table = pa.Table.from_pylist(rows)
    if names:
        features = {"info": {"features": {column: {"names": list(names), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def rows_of(name, split, n=6):
    rows = []
    for i in range(n):
        row = {c: f'{split} {c} {i}\twith a "quote", a comma' for c in SENTENCES.get(name, ("sentence1", "sentence2"))}
        row |= {"label": i % len(HUB[name].names) if HUB[name].names else 5 * i / n, "idx": i}
        rows.append(row | ({"relatedness_score": 1 + i / 2} if name == "sick" else {}))
    return rows


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder with every task as the hub's converter writes it."""
    folder = tmp_path_factory.mktemp("hub")
    for name, hub in HUB.items():
        for split in hub.splits.values():
            file = folder / hub.repository.split("/")[1] / hub.config / split / "0000.parquet"
            write(file, rows_of(name, split), hub.names)
    return folder


def test_every_task_from_parquet(hub, tmp_path, capsys):
    assert main([f"--from={hub}", f"--data_dir={tmp_path}"]) == 0
    told = capsys.readouterr().err
    for name, source in HUB.items():
        for task in ("sick_r", "sick_e") if name == "sick" else (name,):
            splits = load_task(task, tmp_path / "glue")
            assert splits.keys() == source.splits.keys()
            for split, content in splits.items():
                rows = rows_of(name, source.splits[split])
                columns = SENTENCES.get(name, ("sentence1", "sentence2"))
                assert content.rows == [tuple(" ".join(row[c].split()) for c in columns) for row in rows]
                if TASKS[task].kind == "score":
                    key = "relatedness_score" if name == "sick" else "label"
                    assert content.labels.tolist() == pytest.approx([row[key] for row in rows])
                else:
                    wanted = [source.names[row["label"]] for row in rows]
                    own = [TASKS[task].labels[label].lower() for label in content.labels]
                    numbers = [str(row["label"]) for row in rows]
                    assert own in (wanted, numbers)
    assert "mrpc train: rows (3, 3), officially (1194, 2474)" in told
    assert "stsb: there is no test split" in told


def test_labels_in_another_order_go_by_their_names(tmp_path, capsys):
    rows = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2} for i in range(4)]
    write(tmp_path / "hub/glue/rte/validation/0000.parquet", rows, ("not_entailment", "entailment"))
    main([f"--from={tmp_path / 'hub'}", f"--data_dir={tmp_path / 'to'}", "--tasks=rte"])
    told = capsys.readouterr().err
    assert "numbers its labels ['not_entailment', 'entailment']" in told and "rte: there is no train split" in told
    assert load_task("rte", tmp_path / "to/glue")["dev"].labels.tolist() == [0, 1, 0, 1]


def test_hidden_labels_and_damage(tmp_path):
    path = tmp_path / "hub/glue/rte/validation/0000.parquet"
    write(path, [{"sentence1": "a", "sentence2": "b", "label": -1}])
    words = [f"--from={tmp_path / 'hub'}", f"--data_dir={tmp_path / 'to'}", "--tasks=rte"]
    with pytest.raises(UserError, match="label -1 is none of entailment, not_entailment"):
        main(words)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read"):
        main(words)
    assert not (tmp_path / "to/glue/RTE").exists()


def test_official_counts_and_original_layouts(real_data, tmp_path, capsys):
    assert main([f"--from={real_data('glue')}", f"--data_dir={tmp_path}"]) == 0
    told = capsys.readouterr().err
    for name in ("stsb", "stsb_v2", "sick_r", "sick_e", "mrpc", "cola", "sst2", "rte", "wnli"):
        assert f"{name}: rows and labels as in the official files" in told
    assert "qnli: there is no train split" in told and "qqp is not in " in told
    assert (tmp_path / "glue/MRPC/dev_ids.tsv").is_file()

    other = tmp_path / "other"  # in capitals or not, and SICK.txt alone, which has fewer pairs
    for task, file in (("sick", "SICK.TXT"), ("STS-B", "train.tsv"), ("STS-B", "dev.tsv"), ("STS-B", "test.tsv")):
        (other / task).mkdir(parents=True, exist_ok=True)
        original = {"sick": "SICK/SICK.txt"}.get(task, f"{task}/{file}")
        (other / task / file).write_bytes((real_data("glue") / original).read_bytes())
    assert main([f"--from={other}", f"--data_dir={tmp_path / 'made'}", "--tasks=sick,stsb"]) == 0
    told = capsys.readouterr().err
    assert all(f"{name}: rows and labels as in the official files" in told for name in ("sick_r", "sick_e"))
    assert told.splitlines()[2] == "stsb: there is no test split"
    assert {path.name for path in (tmp_path / "made/glue").rglob("*.*")} == {"SICK.txt", "train.tsv", "dev.tsv"}

    # labels exchanged: only their counts can tell
    file = tmp_path / "glue/RTE/dev.tsv"
    lines = file.read_text().splitlines(keepends=True)
    other = {"entailment": "not_entailment", "not_entailment": "entailment"}
    exchanged = [lines[0]]
    for line in lines[1:]:
        start, _, label = line.rstrip("\n").rpartition("\t")
        exchanged.append(f"{start}\t{other[label]}\n")
    file.write_text("".join(exchanged))
    main([f"--from={tmp_path / 'glue'}", f"--data_dir={tmp_path}", "--tasks=rte"])
    assert "is the order of labels another?" in capsys.readouterr().err


def test_files_are_found_on_the_converter_s_branch_and_on_main(hub, tmp_path, monkeypatch):
    """Names as they are there; downloads are stood in for by local files."""
    asked = []

    def listed(self, repository, revision, timeout):
        asked.append(revision)
        if revision != "main":
            raise RevisionNotFoundError("no such branch", response=Response(404, request=Request("GET", "http://x")))
        names = [
            "README.md",
            "rte/train-00000-of-00001.parquet",
            "rte/validation-00000-of-00001.parquet",
            "x/train.parquet",
        ]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def fetched(repository, name, **options):
        return str(hub / "glue/rte" / name.split("/")[1].split("-")[0] / "0000.parquet")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", listed)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    assert main([f"--data_dir={tmp_path}", "--tasks=rte"]) == 0
    assert asked == ["refs/convert/parquet", "main"] * 2
    assert load_task("rte", tmp_path / "glue").keys() == {"train", "dev"}


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no task 'nope'"):
        main(["--tasks=nope"])
    with pytest.raises(UserError, match="--from=nowhere is no folder"):
        main(["--from=nowhere"])
    with pytest.raises(UserError, match="rte is not in "):
        main([f"--from={tmp_path}", "--tasks=rte"])

    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    with pytest.raises(
        UserError, match=r"nyu-mll/glue rte could not be downloaded \(no network\); connect .*--from=DIR"
    ):
        main(["--tasks=rte", f"--data_dir={tmp_path}"])


def test_one_task_twice(hub, tmp_path):
    """Over files of an earlier version; then from files in an original layout, which are read from then on."""
    folder = tmp_path / "glue/CoLA"
    folder.mkdir(parents=True)
    (folder / "dev.tsv").write_text("x\t1\t\told\n")
    for _ in range(2):
        assert main([f"--from={hub}", f"--data_dir={tmp_path}", "--tasks=cola"]) == 0
    names = {"classification.dev.jsonl", "classification.train.jsonl"}
    assert {path.name for path in folder.iterdir()} == {*names, "dev.tsv"}
    assert len(load_task("cola", tmp_path / "glue")["dev"].rows) == 6
    assert main([f"--from={tmp_path / 'glue'}", f"--data_dir={tmp_path / 'copy'}", "--tasks=cola"]) == 0
    assert {path.name for path in (tmp_path / "copy/glue/CoLA").iterdir()} == {*names, "dev.tsv"}
    (tmp_path / "other/CoLA").mkdir(parents=True)
    (tmp_path / "other/CoLA/dev.tsv").write_text("x\t1\t\tnew\n")
    assert main([f"--from={tmp_path / 'other'}", f"--data_dir={tmp_path}", "--tasks=cola"]) == 0
    assert [row for split in load_task("cola", tmp_path / "glue").values() for row in split.rows] == [("new",)]


def test_rows_with_an_empty_sentence_are_left_out(tmp_path, capsys):
    rows = [{"question1": "a", "question2": b, "label": 1} for b in ("b", " ", None)]
    write(tmp_path / "hub/glue/qqp/validation/0000.parquet", rows, HUB["qqp"].names)
    assert main([f"--from={tmp_path / 'hub'}", f"--data_dir={tmp_path}", "--tasks=qqp"]) == 0
    assert "2 rows with an empty sentence are left out" in capsys.readouterr().err
    assert load_task("qqp", tmp_path / "glue")["dev"].rows == [("a", "b")]
