"""A decoder that never changes: what is frozen, what is not, its gradients, its cost, and its runs."""

import shutil

import pytest
import torch
from registries import OWN_DECODERS as DECODERS
from registries import build, built_for, make_problems, one_part
from safetensors.torch import load_file

from lab.configurator import UserError
from lab.runs import load_run
from lab.training import optim
from lab.training.run_folder import RunFolder
from model import AFTER_CONCEPTS
from tests.corpus import make_corpus
from tests.training import BRIEF, arguments, assert_same_checkpoint, assert_same_run, run, run_ranks

SHAPES = [*map(one_part, DECODERS), dict(token_dim=8), dict(tied=False), dict(original_structure=True, tied=False)]


def frozen_of(state):
    return {path: x.clone() for path, x in state.items() if path.startswith(AFTER_CONCEPTS)}


@pytest.mark.parametrize("keys", SHAPES, ids=str)
def test_only_the_encoder_trains_and_with_the_gradients_it_had(keys):
    """Those of a model in which nothing is frozen; after steps the frozen weights are bit-equal, all others are not."""
    objectives, problems = make_problems(objective="tsdae + 0.5*bow + nextconcept")
    keys = built_for(objectives) | keys
    old, model, free = (build(seed=seed, **keys) for seed in (1, 2, 2))
    if keys["decoder"] == "diffusion":  # what begins at zero shuts the path
        torch.nn.init.normal_(old.decoder.modulations[0].weight)
    model.freeze_decoder(old.state_dict())
    free.load_state_dict(frozen_of(old.state_dict()), strict=False)
    for m in (model, free):
        torch.manual_seed(0)
        objectives.total(objectives.losses(*m(*problems), problems)).backward()
    expected = {path: p.grad for path, p in free.named_parameters() if not path.startswith(AFTER_CONCEPTS)}
    found = {path: p.grad for path, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)
    optimizer = optim.adamw(model, 0.1, 0.5, (0.9, 0.98))
    before = {path: x.clone() for path, x in model.state_dict().items()}
    optim.clipped_step(model, optimizer, 0.1, 1.0, torch.tensor(1.0))
    same = {path for path, x in model.state_dict().items() if torch.equal(x, before[path])}
    assert same == {path for path in before if path.startswith(AFTER_CONCEPTS)} == frozen_of(old.state_dict()).keys()
    assert all(torch.equal(model.state_dict()[path], x) for path, x in frozen_of(old.state_dict()).items())
    assert len(optimizer.state) == len(before) - len(same)


def test_an_untrained_twin_has_the_same_decoder():
    old, model = build(seed=1), build(seed=2)
    assert not model.twin(5).frozen
    model.freeze_decoder(old.state_dict())
    state, twin = model.state_dict(), model.twin(5).state_dict()
    same = {path for path in state if torch.equal(state[path], twin[path])}
    assert frozen_of(state).keys() <= same and "encoder.slots.content" not in same


# ---- in train.py


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "toy")
    make_corpus(folder / "other", vocab_size=300)
    return folder


CAUSAL = ["--decoder=causal", "--word_dropout=0.2", "--log_interval=1", "--warmup=0", "--schedule=constant"]
NEXT = ["--objective=prefix", "--prefix_source=next"]


@pytest.fixture(scope="module")
def old(data, tmp_path_factory):
    """A run of a causal decoder, not to be changed."""
    out = tmp_path_factory.mktemp("old") / "run"
    run(data, out, *BRIEF, "--objective=tsdae", "--decoder=causal", "--max_steps=20")
    return out


def weights(out):
    return load_file(RunFolder(out).checkpoint() / "model.safetensors")


def test_a_new_encoder_for_an_old_decoder(old, data, tmp_path, capsys):
    """Killed and gone on with while the other run is away: as one that was not; it loads, embeds and has a twin."""
    place = tmp_path / "there"
    shutil.copytree(old, place)
    more = [*BRIEF, *CAUSAL, *NEXT, f"--frozen_decoder={place}", "--dropout=0.1"]
    assert run(data, tmp_path / "whole", *more, "--max_steps=12", "--lr=0.01") == 0
    assert "token_init is not used (the token table is the frozen decoder's)" in capsys.readouterr().err
    assert run(data, tmp_path / "cut", *more, "--max_steps=5", "--lr=0.01") == 0
    shutil.rmtree(place)
    assert run(data, tmp_path / "cut", *more, "--max_steps=12", "--lr=0.01") == 0
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "cut")
    ours, theirs = weights(tmp_path / "cut"), weights(old)
    assert frozen_of(ours).keys() == {path for path in ours if path in theirs and torch.equal(ours[path], theirs[path])}
    loaded = load_run(tmp_path / "cut", device="cpu")
    assert loaded.embed(["The dog."]).isfinite().all()
    assert all(torch.equal(loaded.twin(3).model.state_dict()[path], x) for path, x in frozen_of(theirs).items())
    losses = [r["val_loss"] for r in RunFolder(tmp_path / "cut").metrics() if "val_loss" in r]
    assert losses[-1] < losses[0]


def test_two_ranks_equal_one_rank_with_two_micro_batches(old, data, tmp_path):
    more = [*BRIEF, *CAUSAL, "--objective=tsdae", "--word_dropout=0", f"--frozen_decoder={old}", "--max_steps=4"]
    ranks = run_ranks([arguments(data, tmp_path / "two", *more)] * 2, tmp_path)
    assert [r.code for r in ranks] == [0, 0], ranks[0].err
    run(data, tmp_path / "one", *more, "--micro_batch=4")
    assert_same_run(tmp_path / "two", tmp_path / "one", 4)


MISTAKES = {
    "--frozen_decoder=nowhere": "no run folder at nowhere; give the folder",
    "--decoder=posonly": "has decoder=causal, this run posonly; write --decoder=causal",
    "--hidden=32": "has hidden=64, this run 32; write --hidden=64",
    "--tied=False": "has tied=True, this run False; write --tied=True",
    "--dataset=other": "has another tokenizer; write --dataset=toy",
    "--objective=bow": "trains through no decoder, so none is frozen; add 'tsdae'",
    "--concept_position=cope": "does not fit this model; take a run of the same decoder",
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_a_run_that_does_not_fit_is_refused(flag, old, data, tmp_path):
    with pytest.raises(UserError) as caught:
        run(data, tmp_path / "run", "--max_steps=1", *CAUSAL, f"--frozen_decoder={old}", flag)
    assert MISTAKES[flag] in str(caught.value) and "\n" not in str(caught.value)


def test_one_run_gives_the_token_table(old, data, tmp_path):
    with pytest.raises(UserError, match="leave one of them out"):
        run(data, tmp_path / "run", "--max_steps=1", f"--frozen_decoder={old}", f"--init_from={old}")
