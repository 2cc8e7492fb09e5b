"""Run folders that are damaged, old, or not what they seem: one sentence of what to do, and nothing is lost."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from lab.configurator import UserError
from lab.runs import load_run
from lab.training.run_folder import ROWS, TOKEN_VECTORS, RunFolder
from model import ConceptModel
from tests.training import BRIEF, losses, run


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A run of two steps, not to be changed."""
    out = tmp_path_factory.mktemp("base") / "run"
    run(data, out, *BRIEF, "--max_steps=2")
    return out


@pytest.fixture
def out(base, tmp_path):
    """A copy of it that may be."""
    return shutil.copytree(base, tmp_path / "run")


def edit(path, **changes):
    """Changes a JSON file; None removes a key."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


# ---- damage, at random


JSON = ["config.json", "ckpt_2/state.json", "tokenizer.json"]
BINARY = ["ckpt_2/model.safetensors", "ckpt_2/optim.pt", "latest"]
ODD = [None, -1, 0, 3, 2.5, "x", [], {}, True, [1, "x"]]


def damage(path, chance: random.Random):
    whole = path.read_bytes()
    kind = chance.choice(["flip", "flip the head", "cut", "empty", "zeros", "more", "keys", "keys"])
    if kind == "keys" and path.suffix == ".json":
        values = json.loads(whole)
        key = chance.choice(sorted(values))
        values[key] = chance.choice(ODD)
        if chance.random() < 0.3:
            del values[key]
        whole = json.dumps(chance.choice(ODD) if chance.random() < 0.05 else values).encode()
    elif kind == "cut":
        whole = whole[: chance.randrange(len(whole))]
    elif kind in ("empty", "zeros"):
        whole = bytes(len(whole) if kind == "zeros" else 0)
    elif kind == "more":
        whole += chance.randbytes(9)
    else:
        whole = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            whole[chance.randrange(min(len(whole), 2000 if kind == "flip the head" else 10**9))] = chance.randrange(256)
    path.write_bytes(whole)
    return kind


@pytest.mark.filterwarnings("ignore:Defining your")  # torch, of a damaged pickle
@pytest.mark.parametrize("name", [*JSON, *BINARY])
def test_damage_is_said_or_does_no_harm(name, out):
    """A few hundred damaged folders: read as if whole (a flipped bit of a weight), or a UserError of one sentence."""
    chance, refused = random.Random(name), 0
    whole = (out / name).read_bytes()
    for i in range(40):
        kind = damage(out / name, chance)
        try:
            load_run(out, device="cpu")
            RunFolder(out).read()
        except UserError as error:
            refused += 1
            assert 10 < len(str(error)) < 900
        except Exception as error:
            damaged = (out / name).read_bytes()[:300]
            pytest.fail(f"{name}, {kind} (case {i}): {type(error).__name__}: {error}\n{damaged}")
        (out / name).write_bytes(whole)
    assert refused > 5
    load_run(out, device="cpu").embed(["The dog."])


@pytest.mark.parametrize("name", ["model.safetensors", "optim.pt", "state.json"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_damaged_checkpoint(name, how, data, out):
    path = out / "ckpt_2" / name
    whole = path.read_bytes()
    path.unlink() if how == "missing" else path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"lacks {name}" if how == "missing" else "damaged"):
        run(data, out, *BRIEF, "--max_steps=4")
    path.write_bytes(whole)  # nothing else was lost
    assert run(data, out, *BRIEF, "--max_steps=4") == 0


def test_a_damaged_checkpoint_is_replaced(data, tmp_path):
    """What its error advises: name the one before in `latest`, and train on over the damaged one."""
    out, more = tmp_path / "run", [*BRIEF, "--ckpt_interval=2"]
    run(data, out, "--max_steps=4", *more)
    whole = (out / "ckpt_4/model.safetensors").read_bytes()
    (out / "ckpt_4/model.safetensors").write_bytes(whole[:999])
    (out / "latest").write_text("ckpt_2\n")
    assert run(data, out, "--max_steps=4", *more) == 0
    assert (out / "ckpt_4/model.safetensors").read_bytes() == whole


def test_nothing_is_lost_without_latest(data, tmp_path):
    """Go on from the newest checkpoint, and keep the best one, whatever happened to the two small files."""
    out, more = tmp_path / "run", [*BRIEF, "--ckpt_interval=3", "--eval_interval=3", "--ckpt_steps=3"]
    run(data, out, "--max_steps=6", *more)
    (out / "latest").unlink()
    run(data, out, "--max_steps=8", *more)
    assert {3, 6, 8} <= set(RunFolder(out).steps()) and [s for s, _ in losses(out)] == [*range(1, 9)]
    (out / "latest").write_text("ckpt_3\n")  # the user goes back; what was best later is forgotten
    (out / "best").write_text("ckpt_8\n")
    run(data, out, "--max_steps=4", *more)
    assert RunFolder(out).steps() == [3, 4] and RunFolder(out).checkpoint("best").is_dir()
    (out / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: cannot read"):
        run(data, out, "--max_steps=4", *more)


@pytest.mark.parametrize("text", ["ckpt_", "ckpt_²", "ckpt_-2", "../ckpt_2", "", "ckpt_7"])
def test_latest_names_no_checkpoint(text, out):
    (out / "latest").write_text(text + "\n")
    with pytest.raises(UserError, match="names no checkpoint|no checkpoint of step 7"):
        load_run(out, device="cpu")


@pytest.fixture(scope="module")
def spectral(data, tmp_path_factory):
    """A run that keeps the token vectors it began with; not to be changed."""
    out = tmp_path_factory.mktemp("spectral") / "run"
    run(data, out, *BRIEF, "--max_steps=1", "--token_init=spectral")
    return out


def test_token_vectors_are_those_of_the_run(spectral, tmp_path):
    model = load_run(spectral, device="cpu").model
    twin = model.twin(0)
    assert torch.equal(twin.token_vectors, RunFolder(spectral).load_tensor(TOKEN_VECTORS)) and twin.token_vectors.any()
    assert not torch.equal(twin.tokens.weight, ConceptModel(model.config, model.mask_id).tokens.weight)
    (shutil.copytree(spectral, tmp_path / "cut") / "token_vectors.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="token_vectors.safetensors is damaged"):
        load_run(tmp_path / "cut", device="cpu")


@pytest.mark.parametrize("name", [TOKEN_VECTORS, ROWS])
def test_kept_tensors_that_are_gone(spectral, tmp_path, name):
    (shutil.copytree(spectral, tmp_path / "run") / name).unlink()
    with pytest.raises(UserError, match=name):
        load_run(tmp_path / "run", device="cpu")


def test_embed_is_fitted_on_validation_rows_alone(spectral):
    """As a slow loop over the run's own rows says."""
    r = load_run(spectral, device="cpu")
    texts = ["The dog.", "The red ship sees the old house."]
    plain = r.embed(texts).double().numpy()
    assert r.rows.shape == (2048, r.max_length)
    rows = r.model.embed(r.rows.long()).detach().double().numpy()
    mean = rows.mean(0)
    _, sigma, directions = np.linalg.svd((rows - mean) / len(rows) ** 0.5)
    expected = np.zeros_like(plain)
    for i in range(1, len(sigma)):  # the first direction is removed
        scale = max(sigma[i] / sigma[0], 1e-3) ** -0.25
        expected += np.outer((plain - mean) @ directions[i], directions[i] * scale)
    r.config |= {"remove_directions": 1, "whitening": 0.25}
    assert np.allclose(r.embed(texts).numpy(), expected, atol=1e-5)
    assert torch.allclose(r.embed(texts)[:1], r.embed(texts[:1]), atol=1e-4)  # whatever other texts there are
    assert not np.allclose(r.twin(0).embed(texts).numpy(), expected, atol=1e-2)  # fitted on its own
    r.config |= {"remove_directions": 0, "whitening": 0.0}
    assert np.allclose(r.embed(texts).numpy(), plain)


def test_token_vectors_of_a_run_that_was_killed_before_it_was_one(data, spectral, tmp_path):
    """RunFolder.create writes them first, config.json last."""
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(spectral / "token_vectors.safetensors", out)
    assert run(data, out, *BRIEF, "--max_steps=1", "--token_init=spectral", "--token_dim=32") == 0


# ---- other code, other data


STATE = ["step", "seconds", "horizon", "seconds_per_step", "best", "best_step"]
OLD = {  # what older code wrote -> what is said when the run should go on, and when it is loaded
    "a decoder that is gone": (
        {"decoder": "bag"},
        r"decoder \(bag there, posonly now\)",
        "describes no model .decoder = 'bag'",
    ),
    "another value than the default, which was in force": ({"lr": None}, r"lr \(0.001 there, 0.003 now\)", None),
    "no run_id": ({"run_id": None}, "config.json lacks run_id", "describes no model"),
    "no layers": ({"layers": None}, r"layers \(6 there, 1 now\)", "of another model, or of older code"),
    "no lengths": ({"lengths": None}, None, "describes no model"),
    "other shape": ({"layers": 3}, r"layers \(3 there, 1 now\)", "of another model, or of older code"),
}


@pytest.mark.parametrize("kind", [kind for kind in OLD if OLD[kind][1]])
def test_the_config_of_older_code_does_not_go_on(kind, data, out):
    changes, says, _ = OLD[kind]
    edit(out / "config.json", **changes)
    with pytest.raises(UserError, match=says):
        run(data, out, *BRIEF, "--max_steps=4", "--compile=auto")


@pytest.mark.parametrize("kind", [kind for kind in OLD if OLD[kind][2]])
def test_the_config_of_older_code_is_not_loaded(kind, out):
    changes, _, says = OLD[kind]
    edit(out / "config.json", **changes)
    with pytest.raises(UserError, match=says):
        load_run(out, device="cpu")


def test_the_state_of_older_code(data, out):
    path = out / "ckpt_2/state.json"
    whole = path.read_text()
    for key, value in [*((key, None) for key in STATE), ("step", "x"), ("seconds", "x")]:
        edit(path, **{key: value})
        with pytest.raises(UserError, match="state.json"):
            run(data, out, *BRIEF, "--max_steps=4")
        path.write_text(whole)


def test_weights_of_older_code(data, out):
    from safetensors.torch import load_file, save_file

    path = out / "ckpt_2/model.safetensors"
    save_file({f"old.{name}": weight for name, weight in load_file(path).items()}, path)
    for use in (lambda: load_run(out, device="cpu"), lambda: run(data, out, *BRIEF, "--max_steps=4")):
        with pytest.raises(UserError, match="of another model, or of older code"):
            use()


def test_the_optimizer_of_another_model(data, out):
    path = out / "ckpt_2/optim.pt"
    state = torch.load(path, weights_only=True)
    state["param_groups"][0]["params"] = state["param_groups"][0]["params"][1:]
    torch.save(state, path)
    with pytest.raises(UserError, match="optim.pt or state.json is of another model"):
        run(data, out, *BRIEF, "--max_steps=4")


def test_damaged_data_and_a_foreign_tokenizer(data, out, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    toy = tmp_path / "data" / "toy"
    whole = (toy / "train.bin").read_bytes()
    (toy / "train.bin").write_bytes(whole[:-1000])
    with pytest.raises(UserError, match="train.bin has .* bytes where its header says"):
        run(tmp_path / "data", tmp_path / "other", *BRIEF)
    (toy / "train.bin").write_bytes(whole)
    (out / "tokenizer.json").write_text((toy / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match="not the one the run was trained with"):
        load_run(out, device="cpu")
    (toy / "tokenizer.json").write_text((toy / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match="another tokenizer"):
        run(tmp_path / "data", out, *BRIEF, "--max_steps=4")


def test_load_run_names_what_is_wrong(base, tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(UserError, match="no checkpoint of step 7; name one that there is: 2"):
        load_run(base, ckpt="7")
    with pytest.raises(UserError, match="write latest, best or a step"):
        load_run(base, ckpt="newest")


# ---- what a folder keeps


def test_a_save_is_whole_or_not_there(out, monkeypatch):
    """Broken off before its last rename, a checkpoint has not happened; the next save tidies up."""
    folder, before = RunFolder(out), sorted(p.name for p in out.iterdir())
    model = load_run(out, device="cpu").model
    optimizer = torch.optim.AdamW(model.parameters())

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lab.training.run_folder.sync", broken)
    with pytest.raises(KeyboardInterrupt):
        folder.save(3, model, optimizer, {"step": 3}, keep=1)
    assert folder.steps() == [2] and folder.pointer("latest") == 2
    monkeypatch.undo()
    folder.save(3, model, optimizer, {"step": 3}, keep=1)
    after = sorted(p.name for p in out.iterdir())
    assert folder.pointer("latest") == 3 and set(after) ^ set(before) == {"ckpt_3"}  # ckpt_2 is the best


def test_metrics_are_cut_to_the_restored_step(out):
    folder = RunFolder(out)
    folder.log(step=3, loss=1.0)
    with open(out / "metrics.jsonl", "a") as f:
        f.write('{"step": 4, "lo')
    folder.truncate(2, best=2)
    assert {r["step"] for r in folder.metrics()} == {0, 1, 2}
    assert (out / "metrics.jsonl").read_text().endswith("}\n")
