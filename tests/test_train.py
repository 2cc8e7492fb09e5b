"""Training as its users meet it: a run and its folder, presets, objectives and their sums, mistakes in one line."""

import json
import resource
import signal
import subprocess
import sys
import time
from dataclasses import fields
from unittest.mock import MagicMock, patch

import pytest
import torch
from registries import read_config
from safetensors.torch import load_file

import sample
import train
from lab import distributed
from lab.command import NonFinite
from lab.configurator import UserError
from lab.runs import load_run
from lab.training import optim
from lab.training.run_folder import RunFolder
from losses import ConceptLossConfig
from model import ConceptModel, ModelConfig
from objectives import ObjectiveConfig, Objectives
from tests.training import BRIEF, PRESETS, ROOT, Process, arguments, assert_same_checkpoint, main, run, unrendered


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A run of 20 steps, not to be changed."""
    out = tmp_path_factory.mktemp("base") / "run"
    run(data, out, "--max_steps=20")
    return out


CHOICES = {f.name for group in (ModelConfig, ObjectiveConfig, ConceptLossConfig) for f in fields(group)}

# ---- one run, from start to end


def test_a_run_and_its_folder(data, tmp_path, capsys):
    out = tmp_path / "run"
    words = arguments(data, out, "--max_steps=60", "--eval_interval=20", "--ckpt_interval=25", "--ckpt_steps=5")
    words += ["--warmup=10"]
    with unrendered():
        assert train.main(words) == 0
    names = {p.name for p in out.iterdir()}
    assert {"config.json", "tokenizer.json", "metrics.jsonl", "latest", "best", "curves.png", "geometry.png"} <= names
    assert RunFolder(out).pointer("latest") == 60 and RunFolder(out).pointer("best") == 60
    assert set(RunFolder(out).steps()) == {5, 50, 60}  # kept for ever; keep = 2; best
    config = json.loads((out / "config.json").read_text())
    assert config["run_id"].startswith("quickstart_H64L1C8_") and config["dtype"] in ("float32", "bfloat16")
    metrics = RunFolder(out).metrics()
    first, last = metrics[0], [r for r in metrics if "val_loss" in r][-1]
    assert first["step"] == 0 and last["val_loss"] < first["val_loss"] - 1
    assert last["val_loss"] == last["val_loss_16"] and last["delta_shuffle"] > 0
    logged = [r for r in metrics if "loss" in r][-1]
    names = "step tokens loss loss_tsdae loss_bow lr grad_norm tokens_per_s flops seconds"
    assert set(names.split()) == logged.keys() and logged["tokens"] == 60 * 8 * 16 and logged["seconds"] > 0
    assert logged["flops"] == pytest.approx(logged["tokens"] * config["train_flops_per_token"], rel=1e-6)
    printed = capsys.readouterr().out
    assert "unigram floor" in printed and printed.count("predicted:") == 3

    # the same command again prints the same table; a model comes back from the folder
    before = (out / "config.json").read_bytes(), (out / "metrics.jsonl").read_bytes()
    assert main(words) == 0
    assert capsys.readouterr().out == printed
    assert before == ((out / "config.json").read_bytes(), (out / "metrics.jsonl").read_bytes())
    vectors = load_run(out, device="cpu").embed(["The red ship sees the old house."])
    assert vectors.shape == (1, 64) and vectors.dtype == torch.float32


def test_embed_does_not_depend_on_padding_or_batch(base, capsys):
    r = load_run(base, device="cpu")
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


def with_a_new_choice(paths):
    """Those that set a switch or a word, of the model or of what is predicted, as none before them does."""
    seen, found = set(), []
    for path in paths:
        given = {key: value for key, (value, _) in read_config(path, ROOT).items() if key in CHOICES}
        made = {(key, value) for key, value in given.items() if isinstance(value, str | bool)}
        made |= {(key, bool(value)) for key, value in given.items() if not isinstance(value, str | bool)}
        found += [] if made <= seen else [path]
        seen |= made
    return found


OWN = [path for path in PRESETS if "backbone" not in read_config(path, ROOT)]  # others: tests/test_backbone.py


@pytest.mark.parametrize("path", with_a_new_choice(OWN), ids=lambda p: p.stem)
def test_presets_train_shrunk(path, data, tmp_path):
    """H 64, N 64: two steps, after which AdamW has seen a gradient for every parameter. Every choice of a preset is
    trained in one (tests/test_readme.py loads them all)."""
    lengths = ["--lengths=64", "--delete_rate=0.3", "--max_steps=2", "--eval_interval=0", "--warmup=0", "--init_from="]
    given = read_config(path, ROOT)
    lengths += ["--token_dim=16"] if given.get("token_dim", (0,))[0] else []
    lengths += ["--length_mix=1"] if "length_mix" in given else []
    assert run(data, tmp_path / "run", *lengths, preset=path.stem) == 0
    optimizer = torch.load(tmp_path / "run/ckpt_2/optim.pt", weights_only=True)
    shape = json.loads((tmp_path / "run/config.json").read_text())
    assert len(optimizer["state"]) == sum(len(g["params"]) for g in optimizer["param_groups"])
    assert all(state["exp_avg"].abs().sum() > 0 for state in optimizer["state"].values())
    assert shape["hidden"] == 64 and shape["lengths"] == [64]


@pytest.mark.parametrize("name, size", [("tsdae_l6", 86_848_000), ("perceiver_mlm_l6", 61_059_584)])
def test_a_preset_prints_its_configuration(name, size, capsys, tmp_path):
    """No data are needed; the sizes are the original system's (tests/test_presets.py has them all)."""
    assert train.main([str(ROOT / f"config/{name}.py"), "--print_config", f"--data_dir={tmp_path}"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["parameters"] == size and printed["train_flops_per_token"] > 1e7
    assert printed["tokens_per_step"] == printed["batch_size"] * max(printed["lengths"])
    micro = printed["micro_batch"] * max(printed["lengths"]) or printed["tokens_per_step"]
    assert printed["shapes"] == [[micro // n, n] for n in printed["lengths"]]


def test_counts_are_null_where_the_vocabulary_is_unknown(capsys, tmp_path):
    words = [str(ROOT / "config/quickstart.py"), "--print_config", f"--data_dir={tmp_path}"]
    assert train.main(words) == 0
    printed = capsys.readouterr()
    counts = [json.loads(printed.out)[key] for key in ("parameters", "train_flops_per_token", "tokens_per_step")]
    assert counts == [None, None, 512] and "give --vocab_size" in printed.err


# ---- objectives that predict nothing, or not position by position

RUNS = {
    "bow": ["--objective=bow"],
    "adjacent": ["--objective=contrastive", "--views=adjacent"],
    "bow + contrastive": ["--objective=bow + 0.5*contrastive", "--lengths=16,40"],
    "words": ["--objective=tsdae + bow", "--delete_unit=word", "--bow_source=survivors"],
    "spans": ["--objective=mlm", "--mask_unit=span", "--replace=80_10_10", "--lengths=16,40"],
    "two rows": ["--objective=mlm", "--mask_rate=0.7", "--encoder_mask_rate=0.2"],
    "contrastive + mlm": ["--objective=0.3*contrastive + mlm", "--token_weight=idf"],
}


@pytest.mark.parametrize("name", RUNS)
def test_bags_and_views_train(name, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(data, out, *BRIEF, "--max_steps=6", *RUNS[name]) == 0
    config, metrics = json.loads((out / "config.json").read_text()), RunFolder(out).metrics()
    printed, objectives = capsys.readouterr().out, Objectives(ObjectiveConfig(config["objective"]))
    names, predicts = objectives.names, not {"tsdae", "mlm"}.isdisjoint(objectives.names)
    assert "predicts" not in config and (load_run(out, device="cpu").model.decoder is not None) == predicts
    optimizer = torch.load(out / "ckpt_6/optim.pt", weights_only=True)["state"]
    assert all(state["exp_avg"].any() for state in optimizer.values())
    assert len(optimizer) == len(load_file(out / "ckpt_6/model.safetensors"))
    for record in metrics:
        for loss, part in (("loss", "loss_"), ("val_loss", "val_loss_")):
            found = [record.get(part + name) for name in names]
            if loss in record and len(names) > 1:
                assert record[loss] == pytest.approx(objectives.total(found), rel=1e-5)
            assert len(names) > 1 or found == [None]
        deltas = {f"delta_{kind}" for kind in ("shuffle", "zero", "mean")} & record.keys()
        assert len(deltas) == (3 if "val_loss" in record and names != ["contrastive"] else 0)
    assert ("chance" in printed) == ("contrastive" in names) and ("predicted:" in printed) == predicts
    assert all(f"of it {name}, longest rows" in printed for name in names if len(names) > 1)
    embedded = load_run(out, device="cpu").embed(["The red ship sees the old house."])
    assert embedded.shape == (1, 64) and embedded.isfinite().all()


def test_a_pair_of_rates_is_a_schedule(data, tmp_path, monkeypatch):
    """In six equal parts, judged at the last; a run that goes on has the rates of one that was never stopped."""
    rates, shapes, gradients = [], [], optim.forward_backward

    def seen(forward, objectives, *rest, **keys):
        if not keys:  # a step; FLOPs are counted by the same function
            rates.append(objectives.parts[0].config.mask_rate)
            if len(rates) == 17:
                signal.raise_signal(signal.SIGTERM)
        return gradients(forward, objectives, *rest, **keys)

    monkeypatch.setattr(optim, "forward_backward", seen)
    monkeypatch.setattr(train, "decide_compile", lambda wanted, world, count, *_: shapes.append(count))
    words = [*BRIEF, "--objective=mlm", "--mask_rate=0.2,0.7", "--max_steps=12", "--ckpt_interval=0"]
    run(data, tmp_path / "whole", *words)
    assert rates == pytest.approx([0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6, 0.7, 0.7])
    assert run(data, tmp_path / "cut", *words) == 143
    assert run(data, tmp_path / "cut", *words) == 0
    assert rates[12:] == rates[:12] and set(shapes) == {6}
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "cut")
    loaded = load_run(tmp_path / "cut", device="cpu")
    assert loaded.config["mask_rate"] == (0.2, 0.7) and ObjectiveConfig(mask_rate=[0.2, 0.7]).mask_rate == (0.2, 0.7)


def test_a_mix_of_lengths_is_a_schedule(data, tmp_path, monkeypatch):
    """In six equal parts, together with the rates; all lengths are judged, also those that are no longer drawn."""
    seen, gradients = [], optim.forward_backward

    def see(forward, objectives, rows, *rest, **keys):
        if not keys:  # a step; FLOPs are counted by the same function
            seen.append((rows.ids.shape[1], round(objectives.parts[0].config.mask_rate, 6)))
        return gradients(forward, objectives, rows, *rest, **keys)

    monkeypatch.setattr(optim, "forward_backward", see)
    words = ["--objective=mlm", "--mask_rate=0.2,0.7", "--lengths=8,16", "--length_mix=(1,0),(0,1)", "--max_steps=60"]
    run(data, tmp_path / "run", *BRIEF, *words)
    parts = [seen[i : i + 10] for i in range(0, 60, 10)]
    assert [{rate for _, rate in part} for part in parts] == [{0.2}, {0.3}, {0.4}, {0.5}, {0.6}, {0.7}]
    long = [sum(n == 16 for n, _ in part) for part in parts]
    assert long[0] == 0 and long[5] == 10 and 10 < sum(long[1:5]) < 30
    last = [r for r in RunFolder(tmp_path / "run").metrics() if "val_loss" in r][-1]
    assert {"val_loss_8", "val_loss_16"} <= last.keys()


def test_a_schedule_needs_steps(data, tmp_path):
    words = ["--objective=mlm", "--mask_rate=0.2,0.7"]
    for schedule in words, ["--lengths=16,32", "--length_mix=(1,0),(0,1)"]:
        with pytest.raises(UserError, match="write --max_steps"):
            run(data, tmp_path / "run", "--max_minutes=1", *schedule)
    with pytest.raises(UserError, match="mask_rate=.0.2, 1.7"):
        run(data, tmp_path / "run", "--max_steps=2", "--objective=mlm", "--mask_rate=0.2,1.7")
    with pytest.raises(UserError, match="mask_rate must be float or tuple"):
        run(data, tmp_path / "run", "--max_steps=2", "--mask_rate=0.2,0.3,0.4")


@pytest.mark.parametrize("objective", ["bow", "contrastive"])
def test_bags_and_views_learn(objective, data, tmp_path):
    """Two deletions of a row have words in common; adjacent sentences of this corpus have nothing."""
    more = [f"--objective={objective}", "--views=deletion", "--batch_size=32", "--eval_tokens=1024"]
    run(data, tmp_path / "run", *BRIEF, *more, "--max_steps=60", "--dtype=float32")
    first, last = [r["val_loss"] for r in RunFolder(tmp_path / "run").metrics() if "val_loss" in r]
    assert last < first - 0.5


VIEW_MISTAKES = {
    "--objective=tsdae + contrastive --micro_batch=4": "write micro_batch=0",
    "--objective=contrastive --views=adjacent --batch_size=7": "groups of 2, but a rank has 7 rows of length 16",
    "--decoder=none": "decoder=none was removed (it follows from the objective); leave it out",
    "--objective=mlm + bow --decoder=pooled": "--decoder: decoder=pooled was removed",
    "--lengths=16,32 --length_mix=1": "length_mix=(1.0,) has 1 shares for lengths=(16, 32); write 2",
    "--lengths=16,32 --length_mix=(1,1),1": "length_mix must be tuple",
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
        assert any(f"decoder is not used (encoder = 'perceiver', objective = '{name}')" in line for line in found)
        assert any("decoder_layers is not used" in line for line in found)
        assert not any("decoder" in line for line in warnings(f"--objective=tsdae + {name}", "--decoder=input"))


def test_a_run_without_a_decoder_embeds_and_predicts_nothing(data, tmp_path, capsys):
    out = tmp_path / "run"
    run(data, out, *BRIEF, "--objective=bow", "--max_steps=1")
    capsys.readouterr()
    assert sample.main([f"--run={out}", "--mode=embed", "--text=The dog.\nThe red ship."]) == 0
    assert [len(json.loads(line)) for line in capsys.readouterr().out.splitlines()] == [64, 64]
    with pytest.raises(UserError, match="was trained without a decoder, so it predicts no text"):
        sample.main([f"--run={out}", "--text=The dog."])
    assert capsys.readouterr().out == ""


# ---- warm start


def weights(out):
    return load_file(RunFolder(out).checkpoint() / "model.safetensors")


def test_warm_start(base, data, tmp_path, capsys):
    old, more = weights(base), ["--max_steps=1", "--lr=1e-12", "--warmup=0", f"--init_from={base}"]
    run(data, tmp_path / "new", *more, "--decoder=input", "--seed=1")
    new = weights(tmp_path / "new")
    assert all(torch.allclose(new[k], old[k]) for k in old if k.startswith(("tokens.", "positions.", "encoder.")))
    assert not any(torch.allclose(new[k], old[k]) for k in old if k.startswith("decoder.") and "norm" not in k)
    assert "tensors new" in capsys.readouterr().err
    run(data, tmp_path / "all", *more, "--init_part=all", "--seed=1")
    assert all(torch.allclose(w, old[k]) for k, w in weights(tmp_path / "all").items())
    run(data, tmp_path / "shared", *more, "--init_part=all", "--encoder=recursive", "--iterations=2", "--seed=1")
    shared = weights(tmp_path / "shared")  # takes the first layer, and all that is no layer
    assert shared.keys() <= old.keys() and all(torch.allclose(w, old[k]) for k, w in shared.items())
    n = len(old["positions.weight"])
    run(data, tmp_path / "long", *more, f"--max_length={2 * n - 1}", "--seed=1")
    found, table = weights(tmp_path / "long")["positions.weight"], old["positions.weight"]
    assert torch.allclose(found[::2], table, atol=1e-6)  # stretched: each second position is one of theirs
    assert torch.allclose(found[1::2], (table[1:] + table[:-1]) / 2, atol=1e-6)
    with pytest.raises(UserError, match="no tensor fits"):
        run(data, tmp_path / "wide", *more, "--hidden=128", "--intermediate=32", "--concepts=4")


def test_a_warm_start_outlives_a_kill_before_the_first_checkpoint(base, data, tmp_path):
    more = ["--max_steps=1", "--lr=1e-12", "--warmup=0", f"--init_from={base}", "--seed=1"]
    run(data, tmp_path / "new", *more)
    for name in ("model.safetensors", "optim.pt", "state.json"):
        (tmp_path / "new/ckpt_1" / name).unlink()
    (tmp_path / "new/ckpt_1").rmdir()
    (tmp_path / "new/latest").unlink()
    (tmp_path / "new/best").unlink()
    run(data, tmp_path / "new", *more)
    old, new = weights(base), weights(tmp_path / "new")
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
        if self.training and value.requires_grad and not value.is_meta:  # no count of FLOPs
            calls[0] += 1
            if calls[0] == 8:
                value = value * float("nan") if where == "loss" else Spoil.apply(value)
        return value

    monkeypatch.setattr(ConceptModel, "loss", loss)
    more = ["--objective=tsdae", "--max_steps=12", "--ckpt_interval=5", "--log_interval=10", "--eval_interval=0"]
    with pytest.raises(NonFinite, match="step 7 is not finite"):
        run(data, tmp_path / "run", *more)
    assert RunFolder(tmp_path / "run").steps() == [5]
    monkeypatch.undo()
    run(data, tmp_path / "run", *more)  # goes on from the last good one
    run(data, tmp_path / "clean", *more)
    assert_same_checkpoint(tmp_path / "run", tmp_path / "clean")


# ---- mistakes


MISTAKES = {
    "--lr=abc": "lr must be",
    "--lern=1": "unknown key lern",
    "--dataset=../toy": "no name for a dataset",
    "--dataset=nothing": "holds no prepared data; run python data/text/prepare.py --name=nothing",
    "--dataset=minipile": "run python data/hub/prepare.py --name=minipile",
    "--objective=nope": "objective 'nope'",
    "--vocab_size=77": "vocab_size=77",
    "--lengths=16,24": "write micro_batch=",
    "--lengths=128": "reach past max_length",
    "--heads=7": "heads",
    "--max_steps=0": "no end is set",
    "--device=tpu": "device='tpu'",
    "--init_from=nowhere": "no run folder",
    "--remove_directions=3": "must be one of [0, 1], not '3'",
    "--out_dir=/dev/null/x": "cannot be written to",
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_mistakes(flag, data, tmp_path):
    with pytest.raises(UserError) as caught:
        run(data, tmp_path / "run", "--max_steps=2", flag, *(["--micro_batch=1"] if flag == "--lengths=16,24" else []))
    assert MISTAKES[flag] in str(caught.value)
    assert not (tmp_path / "run" / "latest").exists()


def test_a_mistake_is_one_line_and_exit_2():
    """Training needs torch, numpy, tokenizers, safetensors and matplotlib, and imports nothing else that is slow."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    code = "import sys, train\nfrom lab import command\n"
    code += "print([m for m in ('scipy', 'datasets', 'tiktoken', 'wandb', 'matplotlib') if m in sys.modules])\n"
    words = [code + "command.command(train.main)", "config/quickstart.py"]
    words += ["--objective=tsdae + contrastive", "--micro_batch=8"]
    done = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - spent < 10
    assert done.returncode == 2 and done.stdout == "[]\n", done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# ---- pieces


@pytest.mark.slow
def test_wandb_offline(data, tmp_path):
    """The library itself; nothing is contacted."""
    words = arguments(data, tmp_path / "run", "--wandb", "--max_steps=2")
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = Process(words, tmp_path / "log", environ=offline).wait(110)
    assert done.code == 0, done.err
    name = json.loads((tmp_path / "run/config.json").read_text())["wandb_id"]
    assert name and list((tmp_path / "run/wandb").glob(f"offline-run-*-{name}"))


def test_a_resumed_run_goes_on_in_wandb(data, tmp_path):
    """Its id is kept in config.json."""
    words = arguments(data, tmp_path / "run", "--wandb")
    for steps, given, resume in (2, None, None), (4, "abc", "allow"):
        fake = MagicMock(**{"init.return_value.id": "abc", "init.return_value.url": None})
        with patch.dict(sys.modules, wandb=fake):
            assert main([*words, f"--max_steps={steps}"]) == 0
        assert [fake.init.call_args.kwargs[key] for key in ("id", "resume")] == [given, resume]
        assert [call.kwargs["step"] for call in fake.init.return_value.log.call_args_list][-1] == steps
    assert json.loads((tmp_path / "run/config.json").read_text())["wandb_id"] == "abc"


def test_the_loader_hands_on_errors():
    class Broken:
        def batch(self, *_):
            raise UserError("the text is damaged; prepare it again")

    with pytest.raises(UserError, match="damaged"):
        next(iter(distributed.Loader(Broken(), [(0, 4, torch.arange(2).numpy())], torch.device("cpu"))))


def test_the_loader_stays_two_batches_ahead_until_it_is_closed():
    asked = []

    class Sampler:
        def batch(self, step, n, rows):
            asked.append(step)
            return torch.zeros(len(rows), n, dtype=torch.int64).numpy(), rows

    plan = ((step, 4, torch.arange(2).numpy()) for step in range(100))
    loader = distributed.Loader(Sampler(), plan, torch.device("cpu"))
    batches = iter(loader)
    for step in range(3):
        assert next(batches)[0] == step
    time.sleep(0.2)
    assert max(asked) <= 5
    loader.close()
    time.sleep(0.2)
    assert len(asked) <= 6
