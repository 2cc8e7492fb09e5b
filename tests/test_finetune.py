"""Heads and fine-tuning: shapes, padding, losses against loops, selection that sees no test label, kill and go on."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from registries import OWN_DECODERS as DECODERS
from scipy.optimize import minimize
from scipy.special import logsumexp

import eval_glue
from heads import HEADS
from lab.command import NonFinite
from lab.data.tokenizers import pad_batch
from lab.evaluation import finetune, floors
from lab.evaluation.finetune import FineTuning, batches, loss_of, shorten
from lab.evaluation.metrics import METRICS
from lab.evaluation.tasks import TASKS, Pairs, load_task
from lab.runs import load_run
from model import ConceptModel, ModelConfig
from tests import training
from tests.corpus import make_corpus
from tests.test_eval_glue import fewer_resamples, write_tasks  # noqa: F401

SHAPE = {"layers": 1, "hidden": 32, "heads": 2, "intermediate": 32, "concepts": 4, "max_length": 12, "vocab_size": 50}
PAIRED = [name for name, head in HEADS.items() if head.apart]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, out/run, and task files, glue; CoLA has single sentences."""
    here = tmp_path_factory.mktemp("tune")
    make_corpus(here / "data" / "toy")
    assert training.run(here / "data", here / "out/run", "--layers=2", "--max_steps=2") == 0
    write_tasks(here / "glue")
    (here / "glue/CoLA").mkdir()
    for split, n in (("train", 60), ("dev", 30)):
        rows = [f"g\t{i % 2}\t\t{'The dog sees.' if i % 2 else 'A ship the.'} {i}" for i in range(n)]
        (here / f"glue/CoLA/{split}.tsv").write_text("\n".join([*rows, ""]))
    return here


def judge(place, *more, run="run"):
    words = [f"--run={place / 'out' / run}", f"--data={place / 'glue'}", "--device=cpu", "--mode=fine_tune", "--full"]
    return eval_glue.main([*words, "--seeds=2", "--epochs=2", *more])


# ---- heads


def texts_of(rows):
    return tuple(torch.from_numpy(x) for x in pad_batch(rows, 0))


@pytest.mark.parametrize(
    "name,decoder", [*((name, "posonly") for name in HEADS), *(("via_decoder", d) for d in DECODERS)]
)
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_head_reads_its_text_alone(name, decoder, outputs):
    """Whatever stands beside it in the batch, and however long the padding is; all of it is trained."""
    model = ConceptModel(ModelConfig(**SHAPE | {"decoder": decoder})).eval()
    head = HEADS[name](model.config, outputs, 2 if HEADS[name].apart else 1).eval()
    rows = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16]]
    texts = [texts_of(rows), texts_of(rows[::-1])][: 2 if HEADS[name].apart else 1]
    together = head(model, *texts)
    assert together.shape == (3, outputs if HEADS[name].linear else 1) and together.isfinite().all()
    for i in range(3):
        alone = head(model, *[texts_of([r[i]]) for r in (rows, rows[::-1])][: len(texts)])
        assert torch.allclose(alone[0], together[i], atol=1e-5)
    head.train()(model, *texts).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())
    read = any(p.grad is not None for p in model.decoder.parameters())
    assert read == HEADS[name].keeps_decoder


def test_a_head_begins_by_its_seed():
    config = ModelConfig(**SHAPE)
    a, b, c = (HEADS["attention_pool"](config, 2, seed=seed).out.weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


# ---- losses


def test_losses_against_loops():
    outputs = torch.randn(7, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0.0, 1, 2, 2, 5, 4, 1], dtype=torch.float64)
    total = sum(
        torch.exp(20 * (outputs[j, 0] - outputs[i, 0])) for i in range(7) for j in range(7) if labels[i] > labels[j]
    )
    assert torch.allclose(loss_of(outputs, labels, "score", False), torch.log(1 + total))
    assert loss_of(outputs[:1], labels[:1], "score", False) == 0
    # [N, 1] outputs against [N] labels: a broadcast to [N, N] would give another number
    expected = sum((outputs[i, 0] - labels[i]) ** 2 for i in range(7)) / 7
    assert torch.allclose(loss_of(outputs.float(), labels, "score", True).double(), expected, atol=1e-5)
    assert loss_of(labels[:, None].float(), labels, "score", True) == 0


@pytest.mark.parametrize("classes", [0, 1, 2, 3])
def test_the_overlap_floor_minimises_its_loss(classes, monkeypatch):
    """One row of weights per class, each with a penalty of half its square, found by a general minimiser."""
    chance = np.random.default_rng(0)
    x = np.hstack([chance.normal(size=(80, 5)), np.ones((80, 1))])
    y = chance.integers(0, classes, 80) if classes else chance.normal(size=80)
    monkeypatch.setattr(floors, "overlap_features", lambda pairs, splits: {"train": x[:, :5]})
    task = SimpleNamespace(kind="classification" if classes else "score")
    pairs = SimpleNamespace(trained_on="train", scored=["train"], task=task, labels={"train": y})
    (found,) = floors.overlap_floor(pairs)["train"].values()

    def loss(w):
        scores = x @ w.reshape(6, -1)
        known = scores[np.arange(80), y] if classes else 0
        fit = (logsumexp(scores, axis=1) - known).sum() if classes else ((scores[:, 0] - y) ** 2).sum() / 2
        return fit + (w**2).sum() / 2

    outputs = x @ minimize(loss, np.zeros(6 * max(classes, 1))).x.reshape(6, -1)
    if classes:
        assert found[0].tolist() == outputs.argmax(1).tolist()
    else:
        assert np.allclose(found[0], outputs[:, 0], atol=1e-4)


# ---- rows


@pytest.mark.parametrize("lengths", [(9, 2), (2, 9), (9, 9), (3, 4), (20, 5), (1, 1)])
def test_the_longer_sentence_is_cut_first(lengths):
    a, b = (list(range(n)) for n in lengths)
    expected = list(lengths)
    while sum(expected) > 8:  # one token at a time, of the longer one
        expected[1 if expected[1] >= expected[0] else 0] -= 1
    cut = shorten(a, b, 8)
    assert [len(x) for x in cut] == expected and cut == (a[: expected[0]], b[: expected[1]])


def test_batches_hold_every_row_once():
    rows = [[[0] * n] for n in np.random.default_rng(0).integers(1, 30, 1000)]
    lengths = np.array([len(row[0]) for row in rows])
    for chance in (None, np.random.default_rng(1)):
        parts = batches(rows, 16, chance)
        assert sorted(np.concatenate(parts)) == list(range(1000)) and max(map(len, parts)) == 16
        assert np.mean([np.ptp(lengths[part]) for part in parts]) < 3  # of like lengths
    again = batches(rows, 16, np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


# ---- the command


def mrpc(place):
    return Pairs("mrpc", load_task("mrpc", place / "glue"), "train")


def record(place, name, run="run"):
    return json.loads((place / f"out/{run}/eval/fine_tune_{name}.json").read_text())


def test_the_record_of_each_task(place, capsys):
    assert judge(place, "--tasks=stsb,mrpc,sick_e,cola") == 0
    printed = capsys.readouterr().out
    for name, splits in (("stsb", 2), ("mrpc", 2), ("sick_e", 2), ("cola", 1)):
        made = record(place, name)
        assert made["mode"] == "fine_tune" and made["seeds"] == [0, 1] and len(made["splits"]) == splits
        protocol = made["protocol"]
        assert protocol["epochs"] == 2 and protocol["train_rows"] + protocol["held_out_rows"] in (60, 50)
        with np.load(place / f"out/run/eval/fine_tune_{name}.npz") as rows:
            for split, judged in made["splits"].items():
                assert {"overlap_features", "untrained"} <= judged["floors"].keys()
                assert ("majority" in judged["floors"]) == (name != "stsb")
                primary = TASKS[name].primary
                labels = rows[f"{split}/labels"]
                assert rows[f"{split}/predictions"].shape == (2, len(labels))
                scores = [METRICS[primary][0](p, labels) for p in rows[f"{split}/predictions"]]
                assert judged["metrics"][primary] == pytest.approx(np.median(scores))
                assert [seed[split][primary] for seed in made["per_seed"]] == pytest.approx(scores)
                lift = judged["lift"]["best_floor"]
                assert lift["verdict"] in ("above floor", "at floor")
                having = {f: m[primary] for f, m in judged["floors"].items() if m.get(primary) is not None}
                assert lift["floor"] == max(having, key=having.get)
                assert lift["value"] == pytest.approx(np.median(scores) - max(having.values()))
        assert f"{name} dev: " in printed
    assert "overlap_features" in printed and "protocol: {" in printed


def test_a_second_time_nothing_is_trained(place, monkeypatch, capsys):
    judge(place, "--tasks=mrpc")
    printed = capsys.readouterr().out
    monkeypatch.setattr(FineTuning, "fit", None)
    judge(place, "--tasks=mrpc")
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("head", ["cosine", "via_decoder"])  # pair and linear: above and below
def test_other_heads(place, head):
    assert judge(place, "--tasks=stsb,mrpc", f"--head={head}", "--seeds=1") == 0
    assert record(place, "mrpc")["protocol"]["pairs"] == f"encoded {'apart' if HEADS[head].apart else 'together'}"


def test_a_frozen_model_stays_as_it_is(place, monkeypatch):
    seen = []
    old = FineTuning.outputs
    monkeypatch.setattr(FineTuning, "outputs", lambda self, model, *more: seen.append(model) or old(self, model, *more))
    judge(place, "--tasks=stsb", "--head=linear", "--seeds=1", "--lr=0.123")
    before = load_run(place / "out/run", device="cpu").model.state_dict()
    assert all(torch.equal(before[k], v) for k, v in seen[0].state_dict().items())


def test_labels_that_are_judged_choose_nothing(place, tmp_path):
    """With other dev and test labels the outputs are the same to the bit, so the same epoch was chosen."""
    run = load_run(place / "out/run", device="cpu")
    made = []
    for turned in (False, True):
        splits = load_task("stsb", place / "glue")
        if turned:  # what is best by them would be worst
            for split in ("dev", "test"):
                splits[split].labels = 5 - splits[split].labels
        pairs = Pairs("stsb", splits, "train")
        config = eval_glue.EvalConfig(run="x", mode="fine_tune", epochs=3, seeds=1, grid="lr")
        work = FineTuning(run, pairs, config, tmp_path / str(turned))
        made.append(work.all_seeds(config))
    assert made[0][1] == made[1][1]
    for split in ("dev", "test"):
        assert np.array_equal(made[0][0][split]["cosines"], made[1][0][split]["cosines"])


def test_the_best_epoch_is_kept(place, tmp_path, monkeypatch):
    run, pairs = (
        load_run(place / "out/run", device="cpu"),
        Pairs("mrpc", load_task("mrpc", place / "glue"), "train"),
    )
    config = eval_glue.EvalConfig(run="x", mode="fine_tune", epochs=4, seeds=1)
    work, seen = FineTuning(run, pairs, config, tmp_path), []
    scores = iter([0.3, 0.7, 0.7, 0.5])
    old = work.outputs
    monkeypatch.setattr(work, "held_out_score", lambda outputs: seen.append(outputs) or next(scores))
    monkeypatch.setattr(work, "outputs", lambda *a: old(*a))
    assert np.array_equal(work.predictions(0, 1e-3)["held_out"], seen[1])


def test_killed_and_gone_on(place, tmp_path, monkeypatch):
    """Stopped in its third epoch it goes on with the third, to the same bits."""
    run, pairs = (
        load_run(place / "out/run", device="cpu"),
        Pairs("mrpc", load_task("mrpc", place / "glue"), "train"),
    )
    config = eval_glue.EvalConfig(run="x", mode="fine_tune", epochs=4, seeds=1)
    whole = FineTuning(run, pairs, config, tmp_path / "whole").predictions(0, 1e-3)
    work, epochs = FineTuning(run, pairs, config, tmp_path / "cut"), []

    def stopping(rows, size, chance=None):
        if chance is not None:
            epochs.append(1)
            if len(epochs) == 3:
                raise KeyboardInterrupt
        return batches(rows, size, chance)

    monkeypatch.setattr(finetune, "batches", stopping)
    with pytest.raises(KeyboardInterrupt):
        work.predictions(0, 1e-3)
    assert [path.suffix for path in (tmp_path / "cut").iterdir()] == [".pt"]
    again = work.predictions(0, 1e-3)
    assert len(epochs) == 5 and again.keys() == whole.keys()
    assert all(np.array_equal(again[k], whole[k]) for k in whole)
    assert [path.suffix for path in (tmp_path / "cut").iterdir()] == [".npz"]

    next((tmp_path / "cut").iterdir()).rename(tmp_path / "cut/gone")
    (tmp_path / "cut" / next((tmp_path / "whole").iterdir()).with_suffix(".pt").name).write_bytes(b"damaged")
    assert all(np.array_equal(v, whole[k]) for k, v in work.predictions(0, 1e-3).items())


def test_what_is_kept_is_of_these_weights_and_this_code(place, tmp_path, monkeypatch):
    """Two runs may be of one second, and so of one run_id."""
    run, config = load_run(place / "out/run", device="cpu"), eval_glue.EvalConfig(run="x", mode="fine_tune", seeds=1)
    monkeypatch.setattr(FineTuning, "fit", lambda *more: {"dev": np.zeros(1)})

    def made():
        work = FineTuning(run, mrpc(place), config, tmp_path)
        work.predictions(0, 1e-3), work.predictions(0, 1e-3, twin=True)
        return len(list(tmp_path.iterdir()))

    assert made() == made() == 2
    with torch.no_grad():
        run.model.tokens.weight.add_(1e-3)
    assert made() == 3  # the twin's is the same
    monkeypatch.setattr(finetune, "sources", lambda *more: "edited")
    assert made() == 5


def test_a_loss_that_is_not_finite_ends_it(place, tmp_path, monkeypatch):
    """In one step of the first epoch; nothing is kept."""
    run, pairs = load_run(place / "out/run", device="cpu"), mrpc(place)
    config, steps = eval_glue.EvalConfig(run="x", mode="fine_tune", epochs=1, seeds=1, batch=8), []

    def once(outputs, *more):
        steps.append(1)
        return loss_of(outputs, *more) * (float("nan") if len(steps) == 2 else 1)

    monkeypatch.setattr(finetune, "loss_of", once)
    with pytest.raises(NonFinite, match="mrpc, run, .*not finite"):
        FineTuning(run, pairs, config, tmp_path / "cache").predictions(0, 1e-3)
    assert len(steps) > 2 and not list((tmp_path / "cache").iterdir())


def test_an_answer_that_is_not_finite_is_named(place, tmp_path, monkeypatch):
    run, pairs, old = load_run(place / "out/run", device="cpu"), mrpc(place), FineTuning.outputs

    def one(self, model, head, rows, *more):
        made = old(self, model, head, rows, *more)
        made[4, 0] = np.nan if rows is self.rows["test"] else made[4, 0]
        return made

    monkeypatch.setattr(FineTuning, "outputs", one)
    config = eval_glue.EvalConfig(run="x", mode="fine_tune", epochs=1, seeds=1)
    named = " / ".join(pairs.sentences[i] for i in pairs.index["test"][4])[:100]
    with pytest.raises(NonFinite, match=f"the answer of '{re.escape(named)}' is not finite; take a smaller --lr"):
        FineTuning(run, pairs, config, tmp_path).predictions(0, 1e-3)


def test_all_leaves_out_what_cannot_be_trained(place, capsys):
    assert judge(place, "--tasks=all", "--seeds=1", "--epochs=1", "--head=linear") == 0
    err = capsys.readouterr().err
    assert "paws has no train split" in err and "it is left out" in err


def test_against_another_run(place, capsys):
    shutil.copytree(place / "out/run", place / "out/other", ignore=shutil.ignore_patterns("eval"))
    config = json.loads((place / "out/other/config.json").read_text())
    (place / "out/other/config.json").write_text(json.dumps(config | {"run_id": "other"}))
    judge(place, "--tasks=mrpc", run="other")
    judge(place, "--tasks=mrpc", f"--against={place / 'out/other'}")
    assert "mrpc dev: accuracy +0.0 [+0.0, +0.0] over other, paired\n" in capsys.readouterr().out
    judge(place, "--tasks=mrpc", f"--against={place / 'out/other'}", "--head=linear")
    assert "paired (another head)" in capsys.readouterr().out
