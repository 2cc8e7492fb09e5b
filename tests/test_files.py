"""Folders that one process works in, modes of files, and what may not be read: on files, and through the commands."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

import analyze
from lab import files
from lab.command import Failure
from lab.configurator import UserError
from lab.data import corpus, pmi, prepare
from lab.data.corpus import Corpus
from lab.data.tokenizers import load_tokenizer
from lab.files import locked, replacing
from lab.runs import load_run
from lab.training.run_folder import RunFolder
from tests import test_prepare
from tests.corpus import make_corpus
from tests.test_eval_glue import judge, write_tasks
from tests.test_prepare import documents
from tests.training import BRIEF, ROOT, Process, arguments, losses, run

bpe, prepared = test_prepare.bpe, test_prepare.run  # fixtures


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """data/toy, glue, and a run of two steps with spectral tokens, out/run, made under another umask."""
    here, old = tmp_path_factory.mktemp("files"), os.umask(0o027)
    try:
        make_corpus(here / "data" / "toy")
        write_tasks(here / "glue")
        assert run(here / "data", here / "out/run", *BRIEF, "--max_steps=2", "--token_init=spectral") == 0
        assert pmi.main([f"--data_dir={here / 'data'}", "--dataset=toy", "--min_count=5"]) == 0
        yield here
    finally:
        os.umask(old)


@pytest.fixture
def out(place, tmp_path):
    return shutil.copytree(place / "out/run", tmp_path / "run")


# ---- locks


def test_a_second_process_waits_or_is_refused(tmp_path, capsys):
    folder, order = tmp_path / "a" / "b", []

    def second():
        with locked(folder, "take another", wait=True) as waited:
            order.append(("second", waited))

    with locked(folder, "take another") as waited:
        assert not waited
        with pytest.raises(UserError, match="another process works in .*b; wait for its end, or take another"):
            with locked(folder, "take another"):
                pass
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append(("first", waited))
        (folder / "made").touch()
    thread.join()
    assert order == [("first", False), ("second", True)] and capsys.readouterr().err.count("waiting for its end") == 1
    assert [path.name for path in folder.iterdir()] == ["made"]
    with locked(tmp_path / "c", "take another"):
        pass
    assert not (tmp_path / "c").exists()


HOLDER = (
    "import sys, time; from lab.files import locked\nwith locked(sys.argv[1], ''): print(flush=True); time.sleep(60)"
)


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "a"], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match="another process"), locked(tmp_path / "a", "wait"):
            pass
        holder.kill()
        holder.wait()
        began = time.monotonic()
        with locked(tmp_path / "a", "wait", wait=True) as waited:
            assert not waited and time.monotonic() - began < 1
    assert list((tmp_path / "a").iterdir()) == []


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def none(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files, "lock_descriptor", none)
    with locked(tmp_path / "a", "wait"):
        (tmp_path / "a/made").touch()
    assert "file system without locks" in capsys.readouterr().err


def test_a_folder_that_goes_away_meanwhile(tmp_path):
    with pytest.raises(Failure, match="a was deleted or moved while this worked there"), locked(tmp_path / "a", "wait"):
        shutil.rmtree(tmp_path / "a")
        files.write_atomic(tmp_path / "a/x", "text")
    with locked(tmp_path / "a", "wait"):
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "a").mkdir()
        (tmp_path / "a/.lock").touch()
    assert (tmp_path / "a/.lock").exists()  # that of who made the folder anew


def test_temporaries_have_names_of_their_own(tmp_path):
    """Two hosts may have the same process id."""
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as two:
        one.write_text("one")
        two.write_text("two")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "one"


def test_one_run_in_two_processes(place, tmp_path):
    """Who comes second is refused, who reads is not; the run ends with a sentence where its folder is moved away, and
    the lock that stays in it keeps nobody out."""
    out, moved = tmp_path / "run", tmp_path / "moved"
    words = [*BRIEF, "--ckpt_interval=5"]
    with Process(arguments(place / "data", out, *words, "--max_steps=100000"), tmp_path / "log") as first:
        first.wait_until(lambda: RunFolder(out).steps() and losses(out))
        with pytest.raises(UserError, match="another process works in .*run; wait for its end, or give another --out"):
            run(place / "data", out, *words, "--max_steps=100000")
        assert load_run(out, device="cpu").step > 0
        out.rename(moved)
        done = first.wait()
    assert done.code == 1 and "Traceback" not in done.err, done.err
    assert done.err.splitlines()[-1].startswith("error: ") and "run was deleted or moved while" in done.err
    last = RunFolder(moved).pointer("latest")
    assert (moved / ".lock").exists() and run(place / "data", moved, *words, f"--max_steps={last + 1}") == 0
    assert [step for step, _ in losses(moved)] == list(range(1, last + 2))


def test_a_run_folder_that_is_replaced(out):
    folder = RunFolder(out)
    folder.write_config(folder.config())
    folder.log(step=3)
    config = folder.config() | {"run_id": "another"}
    (out / "config.json").write_text(json.dumps(config))
    before = (out / "metrics.jsonl").read_text()
    for write in (lambda: folder.log(step=4), lambda: folder.save(4, None, None, {}, 1)):
        with pytest.raises(Failure, match="has become that of another run .another."):
            write()
    assert (out / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("name", ["eval", "analysis"])
def test_one_judge_at_a_time(name, place):
    """Two that write the same; reading a run while another writes is free."""
    use = {
        "eval": lambda: judge(place, "--tasks=mrpc"),
        "analysis": lambda: analyze.main([f"--run={place / 'out/run'}", "--device=cpu"]),
    }
    folder = place / "out/run" / name
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"), pytest.raises(UserError, match=f"another process works in .*{name}; wait"):
        use[name]()
    with FileLock(place / "out/run/.lock"):
        assert analyze.main([f"--run={place / 'out/run'}", "--device=cpu", "--quick"]) in (0, 3)


# ---- data folders


@pytest.fixture
def text(bpe, tmp_path):
    """Flags that prepare a data folder a."""
    (tmp_path / "a.txt").write_text("\n\n".join(documents(50)))
    return "--name=a", "--files", tmp_path / "a.txt", f"--tokenizer={bpe}"


@pytest.mark.parametrize("same", [True, False])
def test_a_second_preparation_waits(same, prepared, text, place, tmp_path):
    """The living folder of the first is left alone, whatever its process id; what it made is used or kept."""
    folder, ready = tmp_path / "data" / "a", threading.Event()

    def first():
        with locked(folder, "wait"):
            (folder / ".making").mkdir()
            ready.set()
            time.sleep(0.5)
            (folder / ".making").rmdir()
            shutil.copytree(place / "data/toy", folder, dirs_exist_ok=True)
            command = prepare.command_line() if same else "another"
            meta = json.loads((folder / "meta.json").read_text()) | {"command": command}
            (folder / "meta.json").write_text(json.dumps(meta))

    thread = threading.Thread(target=first)
    thread.start()
    ready.wait()
    code, _, err = prepared("text", *text)
    thread.join()
    assert err.count("another process works in") == 1, err
    assert (code, "prepared meanwhile" in err, "is prepared already" in err) == (
        (0, True, False) if same else (2, False, True)
    )
    assert (folder / "train.bin").read_bytes() == (place / "data/toy/train.bin").read_bytes()


def test_another_node_prepared_the_same_data(place, tmp_path, monkeypatch):
    data = tmp_path / "pydocs"
    ended = SimpleNamespace(poll=lambda: 2, returncode=2)
    monkeypatch.setattr(corpus.subprocess, "Popen", lambda words: [shutil.copytree(place / "data/toy", data), ended][1])
    world = SimpleNamespace(barrier=lambda: None, on_rank0=lambda function: function())
    assert corpus.prepare(data, world, SimpleNamespace(received=0)) == 0


def finished(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_data_on_another_file_system(prepared, text, tmp_path):
    """A link to a folder there, also as data_dir: all is made there, and the old set stays till the new one stands."""
    there = os.path.realpath("/dev/shm")
    if not os.path.isdir(there) or os.stat(there).st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=there) as name:
        target = tmp_path.joinpath(name)
        (tmp_path / "data").mkdir()
        (tmp_path / "data/a").symlink_to(target)
        assert prepared("text", *text)[0] == 0
        before = finished(target)
        assert sorted(before) == sorted(prepare.FILES) and (tmp_path / "data/a").is_symlink()
        (tmp_path / "a.txt").write_text("One sentence only, which is too little.")
        assert prepared("text", *text, "--overwrite")[0] == 2 and finished(target) == before
        (tmp_path / "a.txt").write_text("\n\n".join(documents(50, seed=1)))
        assert prepared("text", *text, "--overwrite")[0] == 0
        assert Corpus(tmp_path / "data/a", "train").count > 0 and finished(target) != before
        shutil.rmtree(tmp_path / "data")
        (tmp_path / "data").symlink_to(target)
        assert prepared("text", *text)[0] == 0 and sorted(finished(target / "a")) == sorted(prepare.FILES)


UNFIT = {
    "a link to nothing": lambda path: path.symlink_to(path.parent / "gone"),
    "File exists": lambda path: path.write_text("a file"),
    "val.bin is a folder": lambda path: (path / "val.bin").mkdir(parents=True),
}


@pytest.mark.parametrize("why", UNFIT)
def test_a_target_that_is_unfit_is_refused_first(why, prepared, text, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "make_tokenizer", lambda *_: pytest.fail("work has begun"))
    (tmp_path / "data").mkdir()
    UNFIT[why](tmp_path / "data" / "a")
    code, _, err = prepared("text", *text)
    assert code == 2 and err.startswith("error: ") and why in err and err.count("\n") == 1


# ---- modes, and what may not be read


def test_modes_of_all_that_is_written(place, tmp_path):
    judge(place, "--tasks=mrpc")
    wrong = [
        (path, oct(path.stat().st_mode))
        for path in (place / "out").rglob("*")
        if path.stat().st_mode & 0o777 != (0o750 if path.is_dir() else 0o640)
    ]
    wrong += [path for path in (place / "data").rglob("*.*") if path.stat().st_mode & 0o777 != 0o640]
    names = {path.name for path in place.rglob("*.*")}
    assert wrong == [] and {"model.safetensors", "token_vectors.safetensors", "zero_shot_mrpc.npz"} <= names


@contextmanager
def unreadable(path):
    """A file that may not be read, by root either: of its rights it does without those to read and search all."""
    libc, header, rights = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and libc.capget(header, rights) != 0:
        pytest.skip("root reads all here")
    old, mode = rights[0], path.stat().st_mode
    path.chmod(0)
    rights[0] &= ~0b110
    try:
        libc.capset(header, rights)
        yield
    finally:
        rights[0] = old
        libc.capset(header, rights)
        path.chmod(mode)


def goes_on(place, out):
    return run(place / "data", out, *BRIEF, "--max_steps=3", "--token_init=spectral")


LOADED = ("config.json", "tokenizer.json", "embed_rows.safetensors", "token_vectors.safetensors")
LOADED += ("ckpt_2/model.safetensors",)
DENIED = {f"run/{name}": lambda place, out: load_run(out, device="cpu") for name in LOADED}
DENIED |= {f"run/ckpt_2/{name}": goes_on for name in ("model.safetensors", "optim.pt", "state.json")}
DENIED |= {f"toy/{name}": lambda place, out: Corpus(out.parent / "toy", "train") for name in ("meta.json", "train.bin")}
DENIED["toy/tokenizer.json"] = lambda place, out: load_tokenizer(out.parent / "toy/tokenizer.json")
DENIED[f"toy/{pmi.FILE}"] = lambda place, out: pmi.load(Corpus(out.parent / "toy", "train"))
DENIED["x.json"] = lambda place, out: files.read_json(out.parent / "x.json", "an evaluation")


@pytest.mark.parametrize("name", DENIED)
def test_permission_denied_is_no_damage(name, place, out, tmp_path):
    shutil.copytree(place / "data/toy", tmp_path / "toy")
    (tmp_path / "x.json").write_text("{}")
    with unreadable(tmp_path / name), pytest.raises(UserError) as caught:
        DENIED[name](place, out)
    said = str(caught.value)
    assert name.rpartition("/")[2] in said and "Permission denied" in said and "damaged" not in said


# ---- keys of older and of later code


def edit(out, remove=(), **more):
    path = out / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in remove} | more
    path.write_text(json.dumps(config))


ADDED = ("reads", "registers", "dropout", "whitening", "data_dir", "frozen_decoder", "tag", "token_position")


def test_keys_that_older_code_had_not(out, capsys):
    texts = ["the red dog sees the man.", "a blue ship."]
    before = load_run(out, device="cpu").embed(texts)
    edit(out, ADDED, key_of_later_code=[1, 2], another={"x": 1})
    capsys.readouterr()
    torch.testing.assert_close(load_run(out, device="cpu").embed(texts), before, rtol=0, atol=0)
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1 and "is of older code" in err and all(f"{key} = " in err for key in ADDED)


def test_a_run_of_older_code_goes_on(place, out, capsys):
    edit(out, (*ADDED, "schedule", "dtype", "compile", "beta2", "ckpt_steps"), key_of_later_code=1)
    with pytest.raises(UserError, match=r"schedule \(cosine there, constant now\)"):
        goes_on(place, out)
    edit(out, schedule="constant")
    assert goes_on(place, out) == 0
    assert "beta2 = 0.98" in capsys.readouterr().err
    assert RunFolder(out).pointer("latest") == 3 and RunFolder(out).config().keys() >= {*ADDED, "dtype", "beta2"}
