"""Training as its users meet it: real processes, killed and resumed, on one rank and two; mistakes in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sample
import train
from lab import distributed
from lab.command import NonFinite
from lab.configurator import UserError
from lab.runs import RunFolder, load_run
from model import ConceptModel
from objectives import parse_objective
from tests.corpus import make_corpus

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted((ROOT / "config").glob("*.py"))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "train.py")]
SMALL = ["--hidden=64", "--heads=2", "--intermediate=64", "--layers=2", "--concepts=8", "--vocab_size=0"]
SMALL += ["--lengths=16", "--max_length=64", "--batch_size=8", "--micro_batch=0", "--eval_tokens=256", "--device=cpu"]
SMALL += ["--final_report=losses"]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data_dir with the corpus `toy`."""
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "toy")
    return folder


def arguments(data, out, *more, preset="quickstart"):
    config = str(ROOT / "config" / f"{preset}.py")
    return [config, *SMALL, f"--data_dir={data}", "--dataset=toy", f"--out_dir={out}", *more]


def run(data, out, *more, preset="quickstart"):
    """Trains in this process."""
    return train.main(arguments(data, out, *more, preset=preset))


def command(*words):
    return [sys.executable, str(ROOT / "train.py"), *map(str, words)]


def finish(words, timeout=90):
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


def losses(out):
    return [(r["step"], r["loss"]) for r in RunFolder(out).metrics() if "loss" in r]


def same_checkpoint(a, b):
    for name in ("model.safetensors", "optim.pt"):
        one, two = (RunFolder(x).checkpoint("latest") / name for x in (a, b))
        load = load_file if name.startswith("model") else lambda p: torch.load(p, weights_only=True)["state"]
        one, two = flat(load(one)), flat(load(two))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one), name


def flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: torch.as_tensor(tree)}
    return {k: v for name, branch in tree.items() for k, v in flat(branch, f"{prefix}/{name}").items()}


# ---- one run, from start to end


def test_a_run_and_its_folder(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(data, out, "--max_steps=150", "--eval_interval=50", "--ckpt_interval=60", "--ckpt_steps=10") == 0
    names = {p.name for p in out.iterdir()}
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "latest", "best", "curves.png"} <= names
    assert RunFolder(out).pointer("latest") == 150 and RunFolder(out).pointer("best") == 150
    assert set(RunFolder(out).steps()) == {10, 120, 150}  # kept for ever; keep = 2; best
    config = json.loads((out / "config.json").read_text())
    assert config["run_id"].startswith("quickstart_H64L2C8_") and config["dtype"] in ("float32", "bfloat16")
    metrics = RunFolder(out).metrics()
    first, last = metrics[0], [r for r in metrics if "val_loss" in r][-1]
    assert first["step"] == 0 and last["val_loss"] < first["val_loss"] - 1
    assert last["val_loss"] == last["val_loss_16"] and last["delta_shuffle"] > 0
    logged = [r for r in metrics if "loss" in r][-1]
    assert {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s"} <= logged.keys()
    assert logged["tokens"] == 150 * 8 * 16
    printed = capsys.readouterr().out
    assert "unigram floor" in printed and printed.count("said:") == 3

    # the same command again prints the same table; a model comes back from the folder
    assert run(data, out, "--max_steps=150", "--eval_interval=50", "--ckpt_interval=60", "--ckpt_steps=10") == 0
    assert capsys.readouterr().out == printed
    vectors = load_run(out, device="cpu").embed(["The red ship sees the old house."])
    assert vectors.shape == (1, 64) and vectors.dtype == torch.float32


def test_embed_does_not_depend_on_padding_or_batch(data, tmp_path, capsys):
    run(data, tmp_path / "run", "--max_steps=20")
    r = load_run(tmp_path / "run", device="cpu")
    texts = ["The red ship sees.", "", "A " + "very " * 60 + "long one. And more.", "The dog.", "[MASK] <|endoftext|>"]
    together = r.embed(texts)
    assert "embedded in chunks" in capsys.readouterr().err
    alone = torch.cat([r.embed([text]) for text in texts])
    assert torch.isfinite(together).all() and (together - alone).abs().max() < 1e-5
    assert (r.embed(texts, batch_tokens=1) - together).abs().max() < 1e-5
    ids = r.encode_texts(texts)[2]  # by hand: chunks of 16, each weighted by its tokens
    parts = [ids[i : i + 16] for i in range(0, len(ids), 16)]
    by_hand = sum(r.model.embed(torch.tensor([p]))[0] * len(p) for p in parts) / len(ids)
    assert (by_hand - together[2]).abs().max() < 1e-5


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_trains_shrunk(path, data, tmp_path):
    """H 64, N 64: two steps, after which AdamW has seen a gradient for every parameter."""
    lengths = ["--lengths=64", "--delete_rate=0.3", "--max_steps=2", "--eval_interval=0", "--warmup=0"]
    assert run(data, tmp_path / "run", *lengths, preset=path.stem) == 0
    optimizer = torch.load(tmp_path / "run/ckpt_2/optim.pt", weights_only=True)
    shape = json.loads((tmp_path / "run/config.json").read_text())
    assert len(optimizer["state"]) == sum(len(g["params"]) for g in optimizer["param_groups"])
    assert all(state["exp_avg"].abs().sum() > 0 for state in optimizer["state"].values())
    assert shape["hidden"] == 64 and shape["lengths"] == [64]


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_prints_its_configuration(path, capsys, tmp_path):
    assert train.main([str(path), "--print_config", f"--data_dir={tmp_path}"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parameters"] > 0 and printed["train_flops_per_token"] > 0 and printed["shapes"]
    expected = {  # parameters of the original system's models
        "perceiver_mlm_l6": 61_059_584,
        "posonly_mlm_l6": 61_059_584,
        "weighted_mlm_l6": 83_762_688,
        "tsdae_l6": 86_848_000,
    }
    assert printed["parameters"] == expected.get(path.stem, printed["parameters"])


# ---- objectives that say nothing, or not position by position

RUNS = {
    "bow": ["--objective=bow"],
    "adjacent": ["--objective=contrastive", "--views=adjacent"],
    "deletion": ["--objective=contrastive", "--views=deletion", "--lengths=16,40"],
    "both": ["--objective=contrastive", "--final_report=retrieval"],
    "bow + contrastive": ["--objective=bow + 0.5*contrastive", "--lengths=16,40"],
    "tsdae + bow": ["--objective=tsdae + 0.5*bow", "--token_weight=idf"],
    "contrastive + mlm": ["--objective=0.3*contrastive + mlm", "--token_weight=idf", "--lengths=16,40"],
}
BRIEF = ["--log_interval=1", "--warmup=0", "--schedule=constant", "--eval_interval=0"]


@pytest.mark.parametrize("name", RUNS)
def test_bags_and_views_train(name, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(data, out, *BRIEF, "--max_steps=6", *RUNS[name]) == 0
    config, metrics = json.loads((out / "config.json").read_text()), RunFolder(out).metrics()
    printed, parts = capsys.readouterr().out, parse_objective(config["objective"])
    names = [part for _, part in parts]
    says = not {"tsdae", "mlm"}.isdisjoint(names)
    assert config["decoder"] == ("posonly" if says else "bag" if "bow" in names else "none")
    optimizer = torch.load(out / "ckpt_6/optim.pt", weights_only=True)["state"]
    assert all(state["exp_avg"].any() for state in optimizer.values())
    assert len(optimizer) == len(load_file(out / "ckpt_6/model.safetensors"))
    for record in metrics:
        for loss, part in (("loss", "loss_"), ("val_loss", "val_loss_")):
            found = [record.get(part + name) for name in names]
            if loss in record and len(parts) > 1:
                total = sum(weight * x for (weight, _), x in zip(parts, found, strict=True))
                assert record[loss] == pytest.approx(total, rel=1e-5)
            assert len(parts) > 1 or found == [None]
        deltas = {f"delta_{kind}" for kind in ("shuffle", "zero", "mean")} & record.keys()
        assert len(deltas) == (3 if "val_loss" in record and names != ["contrastive"] else 0)
    assert ("chance |" in printed) == ("contrastive" in names) and ("said:" in printed) == says
    assert all(f"of it {name}, longest rows" in printed for name in names if len(parts) > 1)
    embedded = load_run(out, device="cpu").embed(["The red ship sees the old house."])
    assert embedded.shape == (1, 64) and embedded.isfinite().all()


@pytest.mark.parametrize("objective", ["bow", "contrastive"])
def test_bags_and_views_learn(objective, data, tmp_path):
    """Two deletions of a row have words in common; adjacent sentences of this corpus have nothing."""
    more = [f"--objective={objective}", "--views=deletion", "--batch_size=32", "--eval_tokens=1024"]
    run(data, tmp_path / "run", *BRIEF, *more, "--max_steps=60", "--dtype=float32")
    first, last = [r["val_loss"] for r in RunFolder(tmp_path / "run").metrics() if "val_loss" in r]
    assert last < first - 0.5


def test_a_sum_with_views_goes_on_bit_for_bit(data, tmp_path):
    more = [*BRIEF, "--objective=tsdae + 0.3*contrastive", "--lengths=16,40", "--ckpt_interval=0"]
    run(data, tmp_path / "whole", *more, "--max_steps=7")
    for steps in (4, 7):
        run(data, tmp_path / "halves", *more, f"--max_steps={steps}")
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == 7
    same_checkpoint(tmp_path / "halves", tmp_path / "whole")


def test_a_sum_with_views_on_two_ranks_equals_one(data, tmp_path):
    """Negatives are all rows of the step, whichever rank they are on."""
    more = [*BRIEF, "--objective=tsdae + 0.3*contrastive", "--dtype=float32", "--max_steps=4"]
    done = finish([*TORCHRUN, *arguments(data, tmp_path / "two", *more)])
    assert done.returncode == 0, done.stderr[-2000:]
    run(data, tmp_path / "one", *more)
    two, one = (RunFolder(tmp_path / name).metrics() for name in ("two", "one"))
    assert [r["step"] for r in two] == [r["step"] for r in one] == [0, 1, 2, 3, 4, 4]
    for a, b in zip(two, one, strict=True):
        keys = ("loss", "loss_tsdae", "loss_contrastive", "grad_norm", "val_loss", "val_loss_contrastive")
        for key in a.keys() & set(keys):
            assert a[key] == pytest.approx(b[key], rel=1e-4)
    assert "Warning" not in done.stderr  # of torch's, once a rank


VIEW_MISTAKES = {
    "--objective=contrastive --micro_batch=4": "write micro_batch=0",
    "--objective=tsdae + contrastive --micro_batch=4": "write micro_batch=0",
    "--objective=contrastive --views=adjacent --batch_size=7": "groups of 2, but a rank has 7 rows of length 16",
    "--objective=contrastive --batch_size=6": "groups of 4, but a rank has 6 rows of length 16",
    "--objective=bow + contrastive --lengths=16,64 --batch_size=2": "groups of 4, but a rank has 2 rows of",
    "--decoder=none": "decoder='none' says nothing at a position; write --decoder=posonly",
    "--objective=mlm + bow --decoder=bag": "decoder='bag' says nothing at a position; write --decoder=posonly",
    "--objective=contrastive --temperature=0": "take a number above 0",
    "--objective=contrastive --view_delete_rate=1": "0 < view_delete_rate < 1",
}


@pytest.mark.parametrize("flags", VIEW_MISTAKES)
def test_mistakes_of_views_and_decoders(flags, data, tmp_path):
    with pytest.raises(UserError) as caught:
        run(data, tmp_path / "run", "--max_steps=2", *("--" + flag.strip() for flag in flags.split("--")[1:]))
    assert VIEW_MISTAKES[flags] in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_deletion_needs_no_even_number_of_rows(data, tmp_path):
    more = ["--objective=contrastive", "--views=deletion", "--batch_size=7", "--max_steps=1"]
    assert run(data, tmp_path / "run", *BRIEF, *more) == 0


def test_a_decoder_that_is_not_built_is_warned_of(capsys, data, tmp_path):
    def warnings(*flags):
        train.main(arguments(data, tmp_path, "--print_config", *flags))
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]

    for name in ("bow", "contrastive"):
        found = warnings(f"--objective={name}", "--decoder=input", "--decoder_layers=2")
        assert any(f"objective='{name}' trains no decoder, so decoder='input' is not built" in line for line in found)
        assert any("decoder_layers is not used" in line for line in found)
        assert not any("decoder" in line for line in warnings(f"--objective=tsdae + {name}", "--decoder=input"))


def test_a_run_without_a_decoder_embeds_and_says_nothing(data, tmp_path, capsys):
    out = tmp_path / "run"
    run(data, out, *BRIEF, "--objective=bow", "--max_steps=1")
    capsys.readouterr()
    assert sample.main([f"--run={out}", "--mode=embed", "--text=The dog.\nThe red ship."]) == 0
    assert [len(json.loads(line)) for line in capsys.readouterr().out.splitlines()] == [64, 64]
    with pytest.raises(UserError, match="was trained without a decoder, so it says nothing"):
        sample.main([f"--run={out}", "--text=The dog."])
    assert capsys.readouterr().out == ""


# ---- bit for bit


def test_kill_and_resume_equals_an_uninterrupted_run(data, tmp_path):
    more = ["--max_steps=140", "--log_interval=1", "--ckpt_interval=7", "--eval_interval=40", "--warmup=10"]
    run(data, tmp_path / "whole", *more)
    out = tmp_path / "killed"
    process = subprocess.Popen(command(*arguments(data, out, *more)), stderr=subprocess.DEVNULL, cwd=ROOT)
    while not (out / "latest").exists() or RunFolder(out).pointer("latest") < 14:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    there = RunFolder(out).pointer("latest")
    assert 14 <= there < 140
    with open(out / "metrics.jsonl", "a") as f:
        f.write('{"step": 1000, "lo')  # half a line, as a kill may leave
    assert run(data, out, *more) == 0
    assert losses(out) == losses(tmp_path / "whole") and [s for s, _ in losses(out)] == list(range(1, 141))
    same_checkpoint(out, tmp_path / "whole")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(number, code, data, tmp_path):
    more = ["--max_steps=100000", "--log_interval=1", "--ckpt_interval=0", "--eval_interval=0", "--schedule=constant"]
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(*arguments(data, out, *more)), stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    while not losses(out):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == code
    step = RunFolder(out).pointer("latest")
    assert step == losses(out)[-1][0]
    run(data, tmp_path / "whole", *more, f"--max_steps={step + 5}")
    run(data, out, *more, f"--max_steps={step + 5}")
    assert losses(out) == losses(tmp_path / "whole")
    same_checkpoint(out, tmp_path / "whole")


def test_two_ranks_equal_one_rank_with_two_micro_batches(data, tmp_path):
    more = ["--max_steps=12", "--log_interval=1", "--eval_interval=6", "--lengths=16,32", "--objective=tsdae + 0.5*mlm"]
    done = finish([*TORCHRUN, *arguments(data, tmp_path / "two", *more)])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("unigram floor") == 1
    run(data, tmp_path / "one", *more, "--micro_batch=4")
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    same_checkpoint(tmp_path / "two", tmp_path / "one")
    two, one = (
        [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in RunFolder(tmp_path / name).metrics()]
        for name in ("two", "one")
    )
    assert two == one  # evaluations too

    # other cuts of the same rows: the same numbers but for rounding
    run(data, tmp_path / "whole", *more)
    for (_, a), (_, b) in zip(losses(tmp_path / "whole"), losses(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_signal_stops_two_ranks_at_one_step(data, tmp_path):
    more = ["--max_steps=100000", "--log_interval=1", "--ckpt_interval=0", "--eval_interval=0", "--schedule=constant"]
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*TORCHRUN, *arguments(data, out, *more)], stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    while not losses(out):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=40)
    assert process.returncode != 0  # the launcher's own
    step = RunFolder(out).pointer("latest")
    assert step == losses(out)[-1][0]
    run(data, out, *more, f"--max_steps={step + 3}", "--schedule=constant", "--micro_batch=4", "--warmup=100")
    assert [s for s, _ in losses(out)] == list(range(1, step + 4))


# ---- the horizon, and what may change when a run goes on


def test_horizons(data, tmp_path):
    run(data, tmp_path / "tokens", "--max_tokens=1000")
    assert RunFolder(tmp_path / "tokens").pointer("latest") == 8  # ceil(1000 / 128)
    run(data, tmp_path / "epochs", "--max_epochs=0.01")
    text = train.dataset.Corpus(data / "toy", "train").count
    assert RunFolder(tmp_path / "epochs").pointer("latest") == -(-0.01 * text // 128)
    run(data, tmp_path / "minutes", "--max_minutes=0.02", "--lengths=16,32")
    state = json.loads((RunFolder(tmp_path / "minutes").checkpoint() / "state.json").read_text())
    expected = int(1.2 / state["seconds_per_step"])
    assert RunFolder(tmp_path / "minutes").metrics()[0]["step"] == 0
    assert state["step"] == state["horizon"] >= expected and state["seconds_per_step"] > 0


def test_a_longer_horizon_goes_on_and_another_config_does_not(data, tmp_path, capsys):
    out = tmp_path / "run"
    run(data, out, "--max_steps=5", "--schedule=constant")
    assert run(data, out, "--max_steps=9", "--schedule=constant", "--log_interval=1") == 0
    assert "horizon moves from 5 to 9" in capsys.readouterr().err
    assert [s for s, _ in losses(out)] == [5, 6, 7, 8, 9]
    assert json.loads((out / "config.json").read_text())["max_steps"] == 9
    with pytest.raises(UserError, match=r"layers \(2 there, 3 now\).*--out_dir"):
        run(data, out, "--max_steps=9", "--schedule=constant", "--layers=3")
    with pytest.raises(UserError, match="resume='never'.*--out_dir"):
        run(data, out, "--max_steps=9", "--resume=never")
    with pytest.raises(UserError, match="resume='must'"):
        run(data, tmp_path / "other", "--max_steps=9", "--resume=must")
    run(data, out, "--max_steps=10", "--schedule=constant", "--micro_batch=4")
    assert "micro_batch changed: the run goes on, but no longer bit for bit" in capsys.readouterr().err


def test_warm_start(data, tmp_path, capsys):
    run(data, tmp_path / "old", "--max_steps=3")
    old = load_file(RunFolder(tmp_path / "old").checkpoint() / "model.safetensors")
    more = ["--max_steps=1", "--lr=1e-12", "--warmup=0", "--decoder=input", f"--init_from={tmp_path / 'old'}"]
    run(data, tmp_path / "new", *more)
    new = load_file(RunFolder(tmp_path / "new").checkpoint() / "model.safetensors")
    assert all(torch.allclose(new[k], old[k]) for k in old if k.startswith("encoder."))
    assert not any(torch.allclose(new[k], old[k]) for k in old if k.startswith("decoder.") and "norm" not in k)
    assert "tensors new" in capsys.readouterr().err
    with pytest.raises(UserError, match="no tensor fits"):
        run(data, tmp_path / "wide", *more, "--hidden=128", "--vocab_size=0", "--intermediate=32", "--concepts=4")


def test_a_warm_start_outlives_a_kill_before_the_first_checkpoint(data, tmp_path):
    run(data, tmp_path / "old", "--max_steps=3")
    more = ["--max_steps=1", "--lr=1e-12", "--warmup=0", f"--init_from={tmp_path / 'old'}"]
    run(data, tmp_path / "new", *more)
    for name in ("ckpt_1", "latest", "best"):
        shutil.rmtree(tmp_path / "new" / name) if name == "ckpt_1" else (tmp_path / "new" / name).unlink()
    run(data, tmp_path / "new", *more)
    old, new = (load_file(RunFolder(tmp_path / x).checkpoint() / "model.safetensors") for x in ("old", "new"))
    assert all(torch.allclose(new[k], old[k]) for k in old if k.startswith("encoder."))


# ---- what is not finite is never saved


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite(where, data, tmp_path, monkeypatch):
    calls, original = [0], ConceptModel.loss

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * float("inf")

    def loss(self, *args):
        value = original(self, *args)
        if self.training:
            calls[0] += 1
            if calls[0] == 8:
                value = value * float("nan") if where == "loss" else Spoil.apply(value)
        return value

    monkeypatch.setattr(ConceptModel, "loss", loss)
    more = ["--objective=tsdae", "--max_steps=40", "--ckpt_interval=5", "--log_interval=10", "--eval_interval=0"]
    with pytest.raises(NonFinite, match="step 7 is not finite"):
        run(data, tmp_path / "run", *more)
    assert RunFolder(tmp_path / "run").steps() == [5]
    monkeypatch.undo()
    run(data, tmp_path / "run", *more)  # goes on from the last good one
    run(data, tmp_path / "clean", *more)
    same_checkpoint(tmp_path / "run", tmp_path / "clean")


def test_a_bad_step_changes_nothing():
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([p], fused=True)
    p.grad = torch.ones(4)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    before, state = p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items()}
    p.grad = torch.full((4,), float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(before, p) and all(torch.equal(v, optimizer.state[p][k]) for k, v in state.items())


# ---- mistakes


MISTAKES = {
    "--batch_size=0": "batch_size=0",
    "--lr=abc": "lr must be",
    "--lr=-1": "lr=-1",
    "--lern=1": "unknown key lern",
    "--dataset=../toy": "no name for a dataset",
    "--dataset=nothing": "holds no prepared data; run python data/text/prepare.py --name=nothing",
    "--dataset=minipile": "run python data/hub/prepare.py --name=minipile",
    "--objective=nope": "objective 'nope'",
    "--vocab_size=77": "vocab_size=77",
    "--micro_batch=3": "write micro_batch=",
    "--lengths=16,24": "write micro_batch=",
    "--lengths=128": "reach past max_length",
    "--heads=7": "heads",
    "--max_steps=0": "no end is set",
    "--delete_rate=1.5": "0 < delete_rate < 1",
    "--device=tpu": "device='tpu'",
    "--init_from=nowhere": "no run folder",
    "--out_dir=/dev/null/x": "cannot be made",
    "--mask_rate=0": "mask_rate",
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_mistakes(flag, data, tmp_path):
    with pytest.raises(UserError) as caught:
        run(data, tmp_path / "run", "--max_steps=2", flag, *(["--micro_batch=1"] if flag == "--lengths=16,24" else []))
    assert MISTAKES[flag] in str(caught.value)
    assert not (tmp_path / "run" / "latest").exists()


FATAL = ["config/quikstart.py"], ["config/quickstart.py", "--lr=abc"], []
FATAL += (["config/quickstart.py", "--objective=tsdae + contrastive", "--micro_batch=8"],)


@pytest.mark.parametrize("words", FATAL, ids=" ".join)
def test_a_mistake_is_one_line_and_exit_2(words):
    began = time.monotonic()
    done = finish(command(*words))
    assert done.returncode == 2 and time.monotonic() - began < 10
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_two_ranks_say_a_mistake_once(data, tmp_path):
    done = finish([*TORCHRUN, *arguments(data, tmp_path / "run", "--batch_size=7")])
    assert done.returncode == 1 and done.stderr.count("error: batch_size=7 cannot be shared by 2 ranks") == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optim.pt", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_checkpoint(name, damage, data, tmp_path):
    out = tmp_path / "run"
    run(data, out, "--max_steps=2")
    path = out / "ckpt_2" / name
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"lacks {name}" if damage == "missing" else "damaged"):
        run(data, out, "--max_steps=4")
    path.write_bytes(whole)  # nothing else was lost
    assert run(data, out, "--max_steps=4") == 0


def test_a_damaged_checkpoint_is_replaced(data, tmp_path):
    """What its error advises: name the one before in `latest`, and train on over the damaged one."""
    out = tmp_path / "run"
    more = ["--ckpt_interval=2", "--eval_interval=0", "--schedule=constant"]
    run(data, out, "--max_steps=4", *more)
    whole = (out / "ckpt_4/model.safetensors").read_bytes()
    (out / "ckpt_4/model.safetensors").write_bytes(whole[:999])
    (out / "latest").write_text("ckpt_2\n")
    assert run(data, out, "--max_steps=4", *more) == 0
    assert (out / "ckpt_4/model.safetensors").read_bytes() == whole


def test_nothing_is_lost_without_latest(data, tmp_path):
    """Go on from the newest checkpoint, and keep the best one, whatever happened to the two small files."""
    out, more = tmp_path / "run", ["--ckpt_interval=3", "--eval_interval=3", "--schedule=constant", "--warmup=0"]
    run(data, out, "--max_steps=6", "--ckpt_steps=3", *more)
    (out / "latest").unlink()
    run(data, out, "--max_steps=8", "--ckpt_steps=3", *more)
    assert {3, 6, 8} <= set(RunFolder(out).steps()) and [s for s, _ in losses(out)] == [6, 8]
    (out / "latest").write_text("ckpt_3\n")  # the user goes back; what was best later is forgotten
    (out / "best").write_text("ckpt_8\n")
    run(data, out, "--max_steps=4", "--ckpt_steps=3", *more)
    assert RunFolder(out).steps() == [3, 4] and RunFolder(out).checkpoint("best").is_dir()
    (out / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: cannot read"):
        run(data, out, "--max_steps=4", *more)


def test_a_closed_pipe_does_not_cost_the_save(data, tmp_path):
    """`train.py ... 2>&1 | tee log`, and Ctrl-C: tee is gone first."""
    out = tmp_path / "run"
    more = ["--max_steps=100000", "--log_interval=1", "--ckpt_interval=0", "--eval_interval=0"]
    process = subprocess.Popen(
        command(*arguments(data, out, *more)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
    )
    while not losses(out):
        assert process.poll() is None
        time.sleep(0.05)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert RunFolder(out).pointer("latest") == losses(out)[-1][0]


def test_damaged_data_and_a_foreign_tokenizer(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    toy = tmp_path / "data" / "toy"
    whole = (toy / "train.bin").read_bytes()
    (toy / "train.bin").write_bytes(whole[:-1000])
    with pytest.raises(UserError, match="train.bin has .* bytes where its header says"):
        run(tmp_path / "data", tmp_path / "run")
    (toy / "train.bin").write_bytes(whole)
    run(tmp_path / "data", tmp_path / "run", "--max_steps=2")
    (tmp_path / "run" / "tokenizer.json").write_text((toy / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match="not the one the run was trained with"):
        load_run(tmp_path / "run", device="cpu")
    (toy / "tokenizer.json").write_text((toy / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match="another tokenizer"):
        run(tmp_path / "data", tmp_path / "run", "--max_steps=4")


def test_load_run_names_what_is_wrong(data, tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        load_run(tmp_path / "nothing")
    run(data, tmp_path / "run", "--max_steps=2")
    with pytest.raises(UserError, match="no checkpoint of step 7; name one that there is: 2"):
        load_run(tmp_path / "run", ckpt="7")
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"layers": 3}))
    with pytest.raises(UserError, match="of another model"):
        load_run(tmp_path / "run", device="cpu")


# ---- pieces


def test_rows_do_not_depend_on_ranks():
    class Config:
        lengths, batch_size, micro_batch = (16, 64), 12, 0

    for n in (16, 64):
        every = 12 * 64 // n
        for ranks in (1, 2, 3, 4):
            for micro in (0, 1, 3):
                config = Config()
                config.micro_batch = micro
                if 12 // ranks % (micro or 1):
                    continue
                plan = train.make_plan(config, ranks)
                rows = [plan.rows(n, rank, part).tolist() for rank in range(ranks) for part in range(plan.parts)]
                assert sum(rows, []) == list(range(every))


def test_learning_rate():
    config = train.TrainConfig(lr=1.0, warmup=10, lr_end=0.1, max_steps=110)
    rates = [train.learning_rate(config, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert train.learning_rate(config, 500, 0) == 1.0  # not yet timed
    config.schedule = "wsd"
    rates = [train.learning_rate(config, step, 110) for step in range(111)]
    assert (
        rates[10] == 1.0 == pytest.approx(rates[90])
        and rates[100] == pytest.approx(0.55)
        and rates[110] == pytest.approx(0.1)
    )


def test_wandb_offline(data, tmp_path, monkeypatch):
    """Nothing is contacted; the id is kept, and a resumed run logs to the same one."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for steps in (2, 4):
        done = finish(command(*arguments(data, tmp_path / "run", "--wandb=True", f"--max_steps={steps}")))
        assert done.returncode == 0, done.stderr
        ids.append(json.loads((tmp_path / "run/config.json").read_text())["wandb_id"])
    assert ids[0] and ids[0] == ids[1] and list((tmp_path / "run/wandb").glob("offline-run-*"))


def test_the_loader_hands_on_errors():
    class Broken:
        def batch(self, *_):
            raise UserError("the text is damaged; prepare it again")

    with pytest.raises(UserError, match="damaged"):
        next(iter(distributed.Loader(Broken(), [(0, 4, torch.arange(2).numpy())], torch.device("cpu"))))


def test_no_secret_imports():
    """Training needs torch, numpy, tokenizers, safetensors and matplotlib, and nothing else that is slow to import."""
    code = "import sys, train; print([m for m in ('scipy', 'datasets', 'tiktoken', 'wandb', 'matplotlib') "
    code += "if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert done.stdout.strip() == "[]"
