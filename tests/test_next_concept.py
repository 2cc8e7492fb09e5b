"""Next-concept prediction: its loss against a loop, no gradient at its targets, its cost, and its runs."""

import pytest
import torch
from registries import build, built_for, make_problems

import losses
from encoders import Options
from lab.configurator import UserError
from lab.data import spectral
from lab.data.corpus import Corpus
from lab.runs import load_run
from lab.training.plan import make_plan
from lab.training.run_folder import TOKEN_VECTORS, RunFolder
from objectives import ObjectiveConfig, Objectives
from tests.training import BRIEF, arguments, assert_same_checkpoint, assert_same_run, run, run_ranks
from train import TrainConfig

SPECTRAL = dict(objective="nextconcept", next_target="spectral")
CONCEPTS = dict(objective="nextconcept")


def slow_centred_cosine(predicted, target):
    """predicted and target: lists of rows, each a list of vectors."""
    total, count = 0.0, 0
    for row in range(len(target)):
        for slot in range(len(target[row])):
            mean = sum(other[slot] for other in target) / len(target)
            a, b = predicted[row][slot], target[row][slot] - mean
            total += 1 - (a @ b) / ((a @ a) * (b @ b)) ** 0.5
            count += 1
    return total / count


@pytest.mark.parametrize("shape", [(5, 3, 8), (5, 1, 8)])
def test_the_loss_equals_a_loop(shape):
    predicted, target = torch.randn(2, *shape, dtype=torch.float64)
    target = (target + 3).requires_grad_()
    loss = losses.centred_cosine(predicted.requires_grad_(), target)
    torch.testing.assert_close(loss, slow_centred_cosine(predicted, target.detach()))
    loss.backward()
    assert predicted.grad.any() and target.grad is None
    half = losses.centred_cosine(predicted.bfloat16(), target.bfloat16())
    assert half.dtype == torch.float32 and half.item() == pytest.approx(loss.item(), abs=0.02)


def test_without_any_text_the_loss_is_one():
    """Of a constant prediction; of targets that never change, which nothing can foretell; of one row alone."""
    target = torch.randn(4000, 3, 16, generator=torch.Generator().manual_seed(0)) + 2
    constant = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1)).expand_as(target)
    assert losses.centred_cosine(constant, target).item() == pytest.approx(1, abs=0.01)
    static = target[:1].expand_as(target)
    rounding = (static - static.mean(0))[:1].expand_as(target)  # the same in all rows
    assert losses.centred_cosine(rounding, static).item() == pytest.approx(1, abs=1e-3)
    assert losses.centred_cosine(target[:1], target[:1]) == 1
    assert losses.centred_cosine(target - target.mean(0), target).item() == pytest.approx(0, abs=1e-6)
    (part,) = Objectives(ObjectiveConfig(**CONCEPTS)).parts
    assert part.floor(None, None) == 1


def test_it_predicts_the_concepts_of_the_next_row():
    objectives, (problem,) = make_problems(**CONCEPTS)
    model = build(**built_for(objectives))
    (loss,), (concepts,) = model(problem)
    theirs = model.encode(problem.targets)
    assert len(concepts) == 2 and torch.equal(concepts, model.encode(problem.source))
    torch.testing.assert_close(loss, slow_centred_cosine(model.predictor(concepts), theirs))
    (fewer,), (concepts,) = model(problem, options=Options(2, 0))  # nested: as many on both sides
    theirs = model.encode(problem.targets, options=Options(2, 0))
    torch.testing.assert_close(fewer, slow_centred_cosine(model.predictor(concepts), theirs))


def test_it_predicts_the_mean_vector_of_the_next_row():
    objectives, (problem,) = make_problems(**SPECTRAL)
    model = build(**built_for(objectives))
    (loss,), (concepts,) = model(problem)
    means, idf = [], torch.linspace(0.5, 3, 40, dtype=torch.float64)
    for row in problem.targets.tolist():
        means.append([sum(idf[i] * problem.vectors[i].double() for i in row) / sum(idf[i] for i in row)])
    predicted = model.predictor.weight @ concepts.mean(1)[..., None]
    torch.testing.assert_close(loss, slow_centred_cosine(predicted.mT, means), rtol=1e-6, atol=0)


@pytest.mark.parametrize("keys", [CONCEPTS, SPECTRAL], ids=str)
def test_no_gradient_reaches_the_targets(keys):
    """That of the whole is that of the prediction, the target given as plain numbers."""
    objectives, (problem,) = make_problems(**keys)
    model = build(**built_for(objectives))
    parameters = list(model.parameters())
    found = torch.autograd.grad(model(problem)[0][0], parameters)
    if keys is CONCEPTS:
        numbers = torch.tensor(model.encode(problem.targets).tolist(), dtype=torch.float64)
        loss = losses.centred_cosine(model.predictor(model.encode(problem.source)), numbers)
        expected = torch.autograd.grad(loss, parameters)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    only = problem.targets.unique()
    only = only[~torch.isin(only, problem.source)]  # tokens of the targets alone
    assert len(only) and not found[0][only].any() and found[0][problem.source].any()
    assert not problem.targets.is_floating_point() and (keys is CONCEPTS or not problem.vectors.requires_grad)


def test_parts_of_a_sum_read_the_span_in_one_pass():
    calls = []
    objectives, problems = make_problems(
        objective="prefix + bow + nextconcept + diffusion",
        prefix_source="next",
        bow_target="next",
        diffusion_source="next",
    )
    model = build(**built_for(objectives))
    model.encoder.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    model(*problems)
    assert calls == [True, False]  # and the targets


def test_one_pair_a_forward_is_refused():
    """Less its mean, its one target is nothing."""
    objectives = make_problems(B=4, N=12, **CONCEPTS)[0]
    with pytest.raises(UserError, match="write a batch_size and micro_batch of which it has 4"):
        make_plan(TrainConfig(lengths=(16,), batch_size=4, micro_batch=2, max_steps=1), objectives, 1)
    assert make_plan(TrainConfig(lengths=(16,), batch_size=4, max_steps=1), objectives, 1).tokens == 64


# ---- in train.py


SUM = ["--objective=tsdae + bow + 0.5*nextconcept", "--max_steps=6"]


@pytest.mark.parametrize("target", ["concepts", "spectral"])
def test_a_run_and_what_it_prints(target, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(data, out, *BRIEF, *SUM, f"--next_target={target}", "--token_init=random") == 0
    printed = capsys.readouterr().out
    assert "of it nextconcept (1 - cosine), longest rows" in printed and "unigram floor, chance" in printed
    record = [r for r in RunFolder(out).metrics() if "val_loss" in r][-1]
    assert 0 < record["val_loss_nextconcept"] < 1.2 and "delta_shuffle" in record
    loaded = load_run(out, device="cpu")
    assert loaded.model.predictor is not None and loaded.model.token_vectors is None
    kept = RunFolder(out).load_tensor(TOKEN_VECTORS)
    assert (kept is None) == (target == "concepts")
    if kept is not None:
        text = Corpus(data / "toy", "train")
        assert torch.equal(kept, spectral.token_vectors(text, 64, 5e7)[0])
    state = torch.load(RunFolder(out).checkpoint() / "optim.pt", weights_only=True)["state"]
    assert all(x["exp_avg"].any() for x in state.values()) and len(state) == len(loaded.model.state_dict())


def test_it_alone_trains_without_a_decoder_and_goes_on_bit_for_bit(data, tmp_path):
    more = [*BRIEF, "--objective=nextconcept", "--dropout=0.1", "--dtype=float32"]
    assert run(data, tmp_path / "whole", *more, "--max_steps=8", "--eval_interval=4") == 0
    for steps in 4, 8:
        assert run(data, tmp_path / "cut", *more, f"--max_steps={steps}", "--eval_interval=4") == 0
    assert_same_checkpoint(tmp_path / "whole", tmp_path / "cut")


def test_two_ranks_equal_one_rank_with_two_micro_batches(data, tmp_path):
    """The pass without gradients is inside what DDP wraps; each forward has the mean of its own rows."""
    more = [*BRIEF, *SUM]
    ranks = run_ranks([arguments(data, tmp_path / "two", *more)] * 2, tmp_path)
    assert [r.code for r in ranks] == [0, 0], ranks[0].err
    run(data, tmp_path / "one", *more, "--micro_batch=4")
    assert_same_run(tmp_path / "two", tmp_path / "one", 6)
