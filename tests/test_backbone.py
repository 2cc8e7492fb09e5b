"""Pretrained backbones: exact to transformers, refused where they are not known, and runs whose tokens they read."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sample
from backbone import KNOWN, LanguageModel, read_shape, read_weights
from lab.analysis import measure
from lab.configurator import UserError
from lab.evaluation import floors
from lab.evaluation.finetune import PRETRAINED_LR, FineTuning
from lab.evaluation.states import KeptStates
from lab.evaluation.tasks import Pairs, load_task
from lab.runs import load_run
from lab.training.run_folder import RunFolder
from model import PRETRAINED, ConceptModel, ModelConfig
from problem import Problem
from tests.training import BRIEF, arguments, assert_same_run, run, run_ranks

transformers = pytest.importorskip("transformers")

SIZES = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
SIZES |= dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=128, initializer_range=0.2)
KINDS = {
    "llama": dict(model_type="llama", vocab_size=50),
    "llama, tied, theta, head_dim": dict(model_type="llama", vocab_size=50, tie_word_embeddings=True, head_dim=8)
    | dict(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    "llama, biases": dict(model_type="llama", vocab_size=50, attention_bias=True, mlp_bias=True),
    "llama, no shared heads": dict(model_type="llama", vocab_size=50, num_key_value_heads=4, rms_norm_eps=1e-3),
    "qwen2": dict(model_type="qwen2", vocab_size=50),
    "qwen2, tied": dict(model_type="qwen2", vocab_size=50, tie_word_embeddings=True),
}


def make_theirs(folder, seed=0, **keys):
    """A random model, saved by transformers in several shards."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(**{**SIZES, **keys})
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias") or "norm" in name:  # zeros and ones test nothing
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    theirs.save_pretrained(folder, max_shard_size="20KB")
    return theirs


def load_ours(folder, layers=0):
    shape = read_shape(str(folder))
    weights = read_weights(str(folder), layers or shape.layers)
    ours, table = LanguageModel(shape, layers), weights.pop("tokens")
    ours.load_state_dict(weights)
    return ours.eval(), table


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_states_of_every_layer_equal_those_of_transformers(tmp_path, kind):
    theirs = make_theirs(tmp_path, **KINDS[kind])
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours, table = load_ours(tmp_path)
    ids = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    expected = theirs(input_ids=ids, output_hidden_states=True).hidden_states
    found = ours(table[ids])
    assert len(found) == len(expected) == 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for side in ("left", "right"):  # padding changes nothing of what is kept
        mask = torch.ones(3, 9, dtype=torch.bool)
        mask[1, :4] = mask[2, :7] = False
        mask = mask if side == "left" else mask.flip(1)
        pos = (mask.cumsum(1) - 1).clamp_min(0)
        given = dict(input_ids=ids, attention_mask=mask.long(), position_ids=pos, output_hidden_states=True)
        for a, b in zip(ours(table[ids], pos, mask), theirs(**given).hidden_states, strict=True):
            torch.testing.assert_close(a[mask], b[mask], atol=1e-5, rtol=1e-5)
    half = ours(table[ids].bfloat16())[-1].float()
    assert 0 < (half - expected[-1]).norm() / expected[-1].norm() < 0.03


@torch.no_grad()
def test_first_layers_cached_keys_and_both_directions(tmp_path):
    make_theirs(tmp_path, **KINDS["qwen2"])
    (whole, table), (first, _) = load_ours(tmp_path), load_ours(tmp_path, 2)
    ids = torch.randint(3, 50, (2, 8), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(first(table[ids])[2], whole(table[ids])[2])
    torch.testing.assert_close(whole(table[ids], layers=2)[-1], first(table[ids])[-1])
    pasts = [[] for _ in whole.layers]
    one_by_one = [whole(table[ids[:, i : i + 1]], torch.tensor([[i]]), pasts=pasts)[-1] for i in range(8)]
    torch.testing.assert_close(torch.cat(one_by_one, 1), whole(table[ids])[-1], atol=1e-5, rtol=1e-5)
    changed = ids.clone()
    changed[:, -1] = 3
    causal, both = ([whole(table[x], causal=c)[-1][:, 0] for x in (ids, changed)] for c in (True, False))
    assert torch.equal(*causal) and not torch.allclose(*both, atol=1e-3)


def test_known_shapes_are_what_their_files_say(tmp_path):
    """Those of presets; SmolLM2 has 134,515,008 parameters, Qwen2.5-0.5B 494,032,768."""
    for name, count in zip(KNOWN, (134_515_008, 494_032_768), strict=True):
        with torch.device("meta"):
            backbone = LanguageModel(KNOWN[name])
        parameters = sum(p.numel() for p in backbone.parameters())
        assert parameters + KNOWN[name].vocab_size * KNOWN[name].width == count


REFUSED = {
    "model_type = 'gpt2'": dict(model_type="gpt2"),
    "rope_scaling": dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
    "use_sliding_window": dict(use_sliding_window=True),
    "hidden_act": dict(hidden_act="gelu"),
    "quantization_config": dict(quantization_config={"bits": 4}),
    "KeyError: 'hidden_size'": dict(hidden_size=None),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_known_is_refused_by_name(tmp_path, what):
    make_theirs(tmp_path, **KINDS["llama"])
    config = json.loads((tmp_path / "config.json").read_text()) | REFUSED[what]
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=what):
        read_shape(str(tmp_path))


def break_shard(folder):
    sorted(folder.glob("*.safetensors"))[0].write_bytes(b"damaged")


def drop_tensor(folder):
    path = max(folder.glob("*.safetensors"))
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path)


def leave_pickle(folder):
    for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


BROKEN = {
    "is missing": lambda folder: sorted(folder.glob("*.safetensors"))[0].unlink(),
    "cannot be read": break_shard,
    "lacks tensors": drop_tensor,
    "pytorch_model.bin is not read": leave_pickle,
    "is damaged": lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_damaged_weights_are_refused(tmp_path, what):
    make_theirs(tmp_path, **KINDS["llama"])
    BROKEN[what](tmp_path)
    with pytest.raises(ValueError, match=what):
        read_weights(str(tmp_path), 3)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A backbone with the tokenizer of the corpus `toy`, but for the special tokens that preparing adds."""
    folder = tmp_path_factory.mktemp("backbone")
    size = json.loads((data / "toy" / "meta.json").read_text())["vocab_size"]
    make_theirs(folder, model_type="llama", vocab_size=size - 2, tie_word_embeddings=True, hidden_size=32)
    shutil.copy(data / "toy" / "tokenizer.json", folder)
    return folder


def flags(folder, *more, steps=6, objective="tsdae + bow"):
    given = [f"--backbone={folder}", "--backbone_layers=2", f"--objective={objective}", "--token_init=random"]
    return [*given, *BRIEF, f"--max_steps={steps}", "--spectral_tokens=1e5", *more]


def test_the_tower_reads_what_the_backbone_says(data, folder, tmp_path):
    """Concepts are those of an encoder that is given the states of transformers, standardised; the token that begins
    texts stands before them."""
    run(data, tmp_path / "a", *flags(folder))
    loaded = load_run(tmp_path / "a")
    theirs = transformers.AutoModel.from_pretrained(folder)
    ids = torch.tensor([loaded.encode_texts("The red ship sees the dog.")])
    with torch.no_grad():
        states = theirs(torch.nn.functional.pad(ids, (1, 0), value=1), output_hidden_states=True).hidden_states[2]
        tower = loaded.model.tower
        x = (states[:, 1:] - tower.mean[0]) / tower.deviation[0]
        expected = loaded.model.encoder(x, torch.arange(ids.shape[1])[None])
    torch.testing.assert_close(loaded.concepts(["The red ship sees the dog."]), expected, atol=1e-5, rtol=1e-4)
    standardised = tower(tower.states(loaded.model.backbone, loaded.model.embed_backbone, loaded.rows[:500].long()))
    assert abs(standardised.mean()) < 0.1 and 0.8 < standardised.std() < 1.2
    table = theirs.get_input_embeddings().weight
    assert torch.equal(loaded.model.embed_backbone(torch.arange(len(table))), table)


def test_frozen_weights_stay_and_are_not_saved(data, folder, tmp_path):
    run(data, tmp_path / "a", *flags(folder, "--backbone_read=mix"))
    saved = load_file(RunFolder(tmp_path / "a").checkpoint("latest") / "model.safetensors")
    assert not [name for name in saved if name.startswith(("backbone.", "tokens."))]
    assert {"tower.mean", "tower.deviation", "tower.mix"} <= saved.keys() and saved["tower.mix"].std() > 0
    loaded = load_run(tmp_path / "a")
    twin = loaded.twin(5).model
    assert twin.backbone is loaded.model.backbone and torch.equal(twin.tower.mean, loaded.model.tower.mean)
    assert not torch.equal(twin.encoder.slots.content, loaded.model.encoder.slots.content)
    with pytest.raises(UserError, match="is not the one the run was trained with"):
        other = shutil.copytree(folder, tmp_path / "other")
        make_theirs(other, 1, model_type="llama", vocab_size=loaded.model.backbone.shape.vocab_size, hidden_size=32)
        config = json.loads((tmp_path / "a" / "config.json").read_text()) | {"backbone": str(other)}
        (tmp_path / "a" / "config.json").write_text(json.dumps(config))
        load_run(tmp_path / "a")


def test_half_frozen_it_begins_to_train_at_its_share_of_the_rate(data, folder, tmp_path):
    more = ["--backbone_freeze=0.5", "--backbone_lr=0.05", "--ckpt_steps=3,4", "--keep=9", "--lr=1e-3", "--clip=0"]
    run(data, tmp_path / "a", *flags(folder, *more, steps=4))
    first, theirs = (
        (load_file(tmp_path / "a" / f"ckpt_{step}" / "model.safetensors") for step in (3, 4)),
        load_ours(folder, 2),
    )
    three, four = first
    name = "backbone.layers.1.wo.weight"
    before = theirs[0].state_dict()[name.removeprefix("backbone.")]
    moved = (three[name] - before).abs()
    assert 0 < moved.max() < 1.01 * 0.05e-3 and (four[name] - three[name]).abs().max() > 0
    assert load_run(tmp_path / "a").twin(0).model.state_dict()[name].equal(before)


@pytest.mark.parametrize("more", [(), ("--backbone_freeze=0.5", "--backbone_causal=False", "--backbone_read=mix")])
def test_resumed_it_equals_the_uninterrupted_run(data, folder, tmp_path, more):
    given = flags(folder, *more, "--ckpt_steps=2,4")
    run(data, tmp_path / "whole", *given)
    for step in (2, 4):
        part = shutil.copytree(tmp_path / "whole", tmp_path / f"from_{step}")
        (part / "latest").write_text(f"ckpt_{step}")
        run(data, part, *given)
        assert_same_run(tmp_path / "whole", part, 6)


def test_two_ranks_agree(data, folder, tmp_path):
    """Every rank reads the backbone; DDP reduces the gradients of what trains, before and after it does."""
    more = flags(folder, "--backbone_freeze=0.5", steps=4)
    words = [[*arguments(data, tmp_path / "two", *more)]] * 2
    for rank in run_ranks(words, tmp_path):
        assert rank.code == 0, rank.err
    run(data, tmp_path / "one", *more)
    one, two = ([r["loss"] for r in RunFolder(tmp_path / x).metrics() if "loss" in r] for x in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=1e-4)


@pytest.mark.parametrize("freeze", [1.0, 0.25])
def test_flops_count_frozen_parts_once(folder, freeze):
    """Against a count by hand of what the layers add to a model without any."""
    from lab.training.plan import cost, make_plan
    from objectives import ObjectiveConfig, Objectives
    from tests.test_plan import Config

    objectives = Objectives(ObjectiveConfig(objective="bow"))
    plan = make_plan(Config(lengths=(16,)), objectives, 1)
    keys = dict(backbone=str(folder), hidden=64, heads=2, layers=1, concepts=4, vocab_size=400, predicts=("pooled",))

    def count(layers):
        return cost(plan, ModelConfig(**keys, backbone_layers=layers, backbone_freeze=freeze), objectives)[1]

    S, W, d, h, g, inner = 17, 32, 8, 4, 2, 40
    layer = 2 * S * W * (h + 2 * g) * d + 2 * S * h * d * W + 2 * 2 * h * S * S * d + 6 * S * W * inner
    assert count(2) - count(1) == pytest.approx((freeze + 3 * (1 - freeze)) * layer / 16, rel=1e-3)


def test_a_tokenizer_of_other_text_is_refused(data, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="is not the tokenizer of backbone=.*prepare the text with its own"):
        run(data, tmp_path / "a", *flags(other))


def test_offline_a_hub_name_is_refused_with_what_to_do(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="could not be downloaded.*give its folder: --backbone=DIR"):
        read_shape("hub:nobody/nothing")


def test_the_real_model_is_exact(tmp_path):
    """SmolLM2, where NANOCONCEPT_SMOLLM2 names its folder."""
    import os

    if not (name := os.environ.get("NANOCONCEPT_SMOLLM2")):
        pytest.skip("set NANOCONCEPT_SMOLLM2 to the folder of SmolLM2-135M")
    ours, table = load_ours(name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    ids = torch.arange(100, 130)[None]
    with torch.no_grad():
        expected = theirs(input_ids=ids, output_hidden_states=True).hidden_states
        found = ours.float()(table.float()[ids])
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() / b.norm() < 1e-3


def test_a_model_is_built_from_a_backbone_without_a_run(folder):
    model = ConceptModel(ModelConfig(backbone=str(folder), hidden=64, heads=2, layers=1, concepts=4, vocab_size=400))
    assert model.encode(torch.ones(2, 5, dtype=torch.int64)).shape == (2, 4, 64)


# ---------------------------------------------------------------------------------------------------------------------
# As the decoder


def decoding(folder, **keys):
    small = dict(hidden=64, heads=2, layers=1, concepts=4, vocab_size=400, decoder="backbone", backbone_layers=1)
    return ModelConfig(backbone=str(folder), **small, **keys)


def test_the_frozen_decoder_is_the_pretrained_model(folder):
    """Its logits are those of transformers, given the same vectors and tokens; gradients reach the encoder alone."""
    model = ConceptModel(decoding(folder), seed=1)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(5, 300, (3, 7), generator=torch.Generator().manual_seed(0))
    concepts = model.encode(ids)
    for continues in (False, True):
        problem = Problem(ids, targets=ids, continues=continues)
        found = model.logits(model.decode(concepts, problem))
        prompt = model.decoder.prompt(concepts, continues) * model.unit
        given = torch.cat([prompt, theirs.get_input_embeddings()(ids[:, :-1])], 1)
        expected = theirs(inputs_embeds=given).logits[:, prompt.shape[1] - 1 :]
        torch.testing.assert_close(found[..., : expected.shape[-1]], expected, atol=1e-4, rtol=1e-4)
    model.loss(concepts, problem).backward()
    assert not [name for name, p in model.named_parameters() if name.startswith(PRETRAINED) and p.grad is not None]
    assert model.encoder.slots.content.grad.abs().sum() > 0 and model.decoder.project.weight.grad.abs().sum() > 0
    assert not torch.equal(model.decoder.start.weight.grad[1], torch.zeros(32))


@torch.no_grad()
def test_the_frozen_decoder_writes_what_it_would_without_a_cache(folder):
    model = ConceptModel(decoding(folder), seed=1).eval()
    concepts = model.encode(torch.randint(5, 300, (2, 7), generator=torch.Generator().manual_seed(0)))
    written = model.generate(concepts, 6, continues=True)
    for i in range(6):
        targets = torch.cat([written[:, :i], torch.zeros(2, 6 - i, dtype=torch.int64)], 1)
        problem = Problem(written, targets=targets, continues=True)
        assert torch.equal(model.logits(model.decode(concepts, problem))[:, i].argmax(-1), written[:, i])
    for continues in (True, False):  # as pages and reports show it
        own = model.generate(concepts, 6, continues=continues)
        found = measure.written(model, concepts, own, continues=continues)
        assert torch.equal(found["free-running"], own) and torch.equal(found["teacher-forced"], own)
    assert not torch.equal(own, written)


def test_a_run_with_the_frozen_decoder(data, folder, tmp_path, capsys):
    """Auto-encoding and continuation in one run, which resumes, is sampled from in both ways and embeds."""
    given = flags(folder, "--decoder=backbone", "--ckpt_steps=2", steps=4, objective="tsdae + prefix")
    run(data, tmp_path / "a", *given)
    part = shutil.copytree(tmp_path / "a", tmp_path / "b")
    (part / "latest").write_text("ckpt_2")
    run(data, part, *given)
    assert_same_run(tmp_path / "a", part, 4)
    saved = load_file(RunFolder(tmp_path / "a").checkpoint("latest") / "model.safetensors")
    assert {"decoder.start.weight", "decoder.project.weight"} <= saved.keys()
    capsys.readouterr()
    for mode in ("reconstruct", "continue"):
        assert sample.main([f"--run={tmp_path / 'a'}", f"--mode={mode}", "--text=The red ship sees"]) == 0
        assert "predicted:" in capsys.readouterr().out


NOT_DECODING = {"backbone = ''": dict(backbone=""), "tied = False": dict(tied=False)}
NOT_DECODING |= {"backbone_freeze = 0.5": dict(backbone_freeze=0.5)}


@pytest.mark.parametrize("what", NOT_DECODING)
def test_what_cannot_decode_is_refused(folder, what):
    with pytest.raises(ValueError, match=what):
        replace(decoding(folder), **NOT_DECODING[what])


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning


def test_states_are_kept_and_the_same(folder, tmp_path):
    model = ConceptModel(replace(decoding(folder), decoder="posonly"), seed=1).eval()
    ids = torch.randint(5, 300, (4, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 7])[:, None]
    with torch.no_grad():
        expected = model.encode(ids, mask=mask)
        kept = model.tower.kept = KeptStates(tmp_path, most=4 * 32 * 13)
        torch.testing.assert_close(model.encode(ids, mask=mask), expected)
        assert [n for n, _ in kept.places.values()] == [0, 4 * 32 * 7] and kept.used == 4 * 32 * 10
        with patch.object(model.backbone, "forward", wraps=model.backbone.forward) as called:
            torch.testing.assert_close(model.encode(ids, mask=mask), expected)
            assert len(called.call_args.args[0]) == 2  # rows that had no room
            torch.testing.assert_close(model.encode(ids[:2], mask=mask[:2]), expected[:2])
            assert called.call_count == 1
        assert list(tmp_path.iterdir()) == []


def test_the_mean_of_its_states_is_a_floor(data, folder, tmp_path):
    """Weighted by idf, of what the encoder reads; of each text by itself."""
    run(data, tmp_path / "a", *flags(folder, steps=2))
    loaded = load_run(tmp_path / "a")
    texts = ["the red ship sees the dog .", "", "a dog", "the dog " * 20]
    known = np.random.default_rng(0).random(loaded.model.config.vocab_size)
    found = floors.state_means(loaded, texts, {"train": known})["train"]
    for text, mean in zip(texts, found, strict=True):
        ids = loaded.wrap(loaded.encode_texts([text])[0][: loaded.max_length])
        states = loaded.model.read_backbone(torch.tensor([ids]), None, None)[0].double().numpy()
        expected = sum(known[i] * x for i, x in zip(ids, states, strict=True)) / sum(known[i] for i in ids)
        np.testing.assert_allclose(mean, expected, atol=1e-5)


@pytest.mark.parametrize("freeze", [1.0, 0.5])
def test_fine_tuning_leaves_a_frozen_backbone_alone(data, folder, tmp_path, freeze):
    run(data, tmp_path / "a", *flags(folder, steps=2))
    tests = tmp_path / "glue" / "SICK"
    tests.mkdir(parents=True)
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"
    for name, count in (("train", 40), ("trial", 12), ("test_annotated", 12)):
        lines = [f"{i}\tthe red ship {i}\tthe dog {i % 3}\t{1 + i % 5}\tNEUTRAL\n" for i in range(count)]
        (tests / f"SICK_{name}.txt").write_text(header + "".join(lines))
    loaded = load_run(tmp_path / "a")
    loaded.model.tower.kept = KeptStates(tmp_path)  # as eval_glue.py does
    before = {name: x.clone() for name, x in loaded.model.state_dict().items()}
    pairs = Pairs("sick_r", load_task("sick_r", tmp_path / "glue"), "train")
    config = SimpleNamespace(
        head="pair", recipe="ours", epochs=2, lr=1e-3, batch=8, max_length=0, backbone_freeze=freeze
    )
    work = FineTuning(loaded, pairs, config, tmp_path / "cache")
    made, new_head = [], work.new_head
    work.new_head = lambda model, seed: made.append(model) or new_head(model, seed)
    work.predictions(0, 1e-3)
    after = made[0].state_dict()
    moved = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert "encoder.slots.content" in moved and ("backbone.layers.0.wo.weight" in moved) == (freeze < 1)
    for name in moved & {n for n in moved if n.startswith("backbone.")}:
        assert (after[name] - before[name]).abs().max() < PRETRAINED_LR * 20
    assert all(torch.equal(x, before[name]) for name, x in loaded.model.state_dict().items())
