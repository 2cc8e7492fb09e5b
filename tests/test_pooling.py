"""How concepts become one vector of a text: against a loop, in all that uses it."""

import pytest
import torch
import torch.nn.functional as F
from corpus import make_corpus
from registries import build, built_for, make_problems, name

from geometry import concept_geometry
from heads import HEADS
from lab.configurator import UserError
from lab.runs import load_run
from objectives import OBJECTIVES, ObjectiveConfig, Objectives
from tests.training import BRIEF, run


def attending(seed=0, **keys):
    """A small model whose query is no longer zero."""
    model = build(pooling="attention", **keys)
    with torch.no_grad():
        model.pooling.query.normal_(std=2, generator=torch.Generator().manual_seed(seed))
    return model


def slow_pool(concepts, query):
    """[C, H] -> [H]"""
    weights = [(sum(q * x for q, x in zip(query, c, strict=True)) / len(c) ** 0.5).exp() for c in concepts]
    return sum(w * c for w, c in zip(weights, concepts, strict=True)) / sum(weights)


@pytest.mark.parametrize("C", [1, 6])
def test_attention_equals_a_loop_and_begins_as_the_mean(C):
    model, concepts = attending(), torch.randn(3, C, 16, dtype=torch.float64)
    expected = torch.stack([slow_pool(c, model.pooling.query.detach()) for c in concepts])
    torch.testing.assert_close(model.pool(concepts), expected)
    for init in ("fan_in", "gpt2"):
        new = build(pooling="attention", init=init)
        assert not new.pooling.query.any() and torch.equal(build(init=init).pool(concepts), concepts.mean(1))
        torch.testing.assert_close(new.pool(concepts), concepts.mean(1))


def test_one_vector_of_a_text_is_the_pooled_one_everywhere():
    model, ids = attending(), torch.randint(40, (4, 9))
    mask = torch.ones_like(ids, dtype=torch.bool)
    concepts = model.encode(ids)
    vectors = model.pool(concepts)
    assert not torch.allclose(vectors, concepts.mean(1)) and torch.equal(model.embed(ids, mask), vectors)
    cosine = HEADS["cosine"](model.config, 1, 2)
    found = cosine(model, (ids[:2], mask[:2]), (ids[2:], mask[2:]))[:, 0].double()
    torch.testing.assert_close(found, F.cosine_similarity(vectors[:2], vectors[2:]), rtol=1e-5, atol=0)
    assert torch.equal(HEADS["linear"](model.config, 1, 2).pool(model, ids, mask), vectors)
    concepts = torch.randn(256, 6, 16, dtype=torch.float64)
    one = concept_geometry(concepts, pooled=torch.randn(256, 1).double() @ torch.randn(1, 16).double())
    assert one["rank_pooled"] == pytest.approx(1) and concept_geometry(concepts)["rank_pooled"] > 10


def test_the_loss_of_a_bag_reads_the_pooled_vector():
    model = attending()
    objectives, (problem,) = make_problems(objective="bow")
    (loss,), (concepts,) = model(problem)
    expected = 0.0
    for row in range(4):
        x = slow_pool(concepts[row], model.pooling.query.detach())
        log_p = F.log_softmax(model.tokens.weight @ (x / x.square().mean().sqrt()) / 4, -1)
        expected -= sum(w * log_p[i] for w, i in zip(problem.weights[row], problem.targets[row], strict=True))
    torch.testing.assert_close(loss, expected)


SETTINGS = [dict(objective=x) for x in OBJECTIVES] + [dict(objective="tsdae + 0.1*bow")]
SETTINGS += [dict(objective="contrastive", view_similarity="maxsim")]
SETTINGS += [dict(objective="nextconcept", next_target="spectral")]


@pytest.mark.parametrize("keys", SETTINGS, ids=name)
def test_the_query_has_a_gradient_where_the_objective_says_so(keys):
    objectives, problems = make_problems(**keys)
    model = attending(**built_for(objectives))
    objectives.total(objectives.losses(*model(*problems), problems)).backward()
    gradient = model.pooling.query.grad
    assert (gradient is not None and bool(gradient.any())) == objectives.pools


def test_compiled_in_one_graph():
    objectives, problems = make_problems(objective="bow + contrastive + nextconcept")
    model = attending(**built_for(objectives))
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = [objectives.losses(*forward(*problems), problems) for forward in (model, run)]
    torch.testing.assert_close(*found)


# ---- in train.py


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_corpus(folder / "toy")
    return folder


def test_a_run_trains_its_query_and_embeds_with_it(data, tmp_path):
    out, more = tmp_path / "run", ["--objective=contrastive", "--pooling=attention", "--nested=True", "--max_steps=8"]
    assert run(data, out, *BRIEF, *more, "--lr=0.01") == 0
    loaded = load_run(out, device="cpu")
    query = loaded.model.pooling.query.detach()
    assert query.any() and not loaded.twin(0).model.pooling.query.any()
    texts = ["The red ship sees the old house.", "The dog."]
    expected = torch.stack([slow_pool(c.double(), query.double()) for c in loaded.concepts(texts)])
    torch.testing.assert_close(loaded.embed(texts).double(), expected, rtol=1e-4, atol=1e-5)
    loaded.model.options = loaded.model.options._replace(concepts=2)
    expected = torch.stack([slow_pool(c[:2].double(), query.double()) for c in loaded.concepts(texts)])
    torch.testing.assert_close(loaded.embed(texts).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_query_that_nothing_trains_is_refused(data, tmp_path):
    for more in ["--objective=tsdae"], ["--objective=contrastive", "--view_similarity=maxsim"]:
        with pytest.raises(UserError, match="trains no pooling; write pooling='mean', or add"):
            run(data, tmp_path / "run", "--max_steps=1", "--pooling=attention", *more)
    assert not Objectives(ObjectiveConfig(objective="tsdae + nextconcept")).pools
