"""Prefix to suffix: splits, their turns, what they cost, and that nothing of the suffix is read."""

import pytest
import torch
from registries import MASK, build
from registries import OWN_DECODERS as DECODERS

from lab.data.corpus import Corpus
from lab.data.sampler import Sampler
from lab.training.validation import Batch, Evaluator
from noise import Noise
from objectives import ObjectiveConfig, Objectives
from problem import Rows, Vocabulary
from tests.corpus import make_corpus

VOCAB = Vocabulary(10_000, MASK)


def prefix(**keys):
    return Objectives(ObjectiveConfig(objective="prefix", **keys))


def problem(ids, step=0, seed=0, **keys):
    numbers = torch.arange(len(ids))
    (made,) = prefix(**keys).problems(Rows(ids, Noise(seed, step, numbers), VOCAB, numbers))
    return made


IDS = torch.arange(8)[:, None] * 100 + torch.arange(20) + 10  # a token tells its row and column


def test_a_step_splits_all_rows_alike_in_turn():
    for step in range(9):
        made, split = problem(IDS, step, seed=5), (6, 8, 10)[(5 + step) % 3]
        assert torch.equal(made.source, IDS[:, :split]) and torch.equal(made.targets, IDS[:, split:])
        assert made.query_pos.tolist() == [list(range(20 - split))] and made.query_ids is made.scored is None
    assert problem(IDS, prefix_rate=(0.25,)).source.shape[1] == 5
    assert problem(IDS[:, :2], prefix_rate=(0.01,)).source.shape[1] == 1  # something is left on both sides


def test_the_next_span_is_predicted_whole():
    made = problem(IDS, prefix_source="next")
    assert torch.equal(made.source, IDS[0::2]) and torch.equal(made.targets, IDS[1::2])
    assert made.query_pos.tolist() == [list(range(20))]


def test_what_it_asks_for():
    o = prefix()
    assert (o.one_document, o.adjacent_rows, o.group, o.shape_count) == (True, False, 1, 3)
    o = prefix(prefix_source="next")
    assert (o.one_document, o.adjacent_rows, o.group, o.shape_count) == (True, True, 2, 1)
    assert Objectives(ObjectiveConfig(objective="tsdae + prefix", prefix_rate=(0.3, 0.5))).shape_count == 2


def test_rows_and_their_next_are_of_one_document(tmp_path):
    corpus = Corpus(make_corpus(tmp_path / "toy"), "train")
    for source, length in (("row", 48), ("next", 16)):
        o = prefix(prefix_source=source)
        sampler = Sampler(corpus, (length,), 0, one_document=o.one_document, pairs=o.adjacent_rows)
        ids, documents = sampler.batch(0, length, torch.arange(64).numpy())
        assert not (ids[:, :-1] == corpus.eod).any()
        assert source == "row" or (documents[0::2] == documents[1::2]).all()


@pytest.mark.parametrize("source", ["row", "next"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_what_is_predicted_reaches_only_what_teacher_forcing_shows(decoder, source):
    """The gradient of each position's state with respect to the token embeddings: of the targets' tokens a causal
    decoder sees those before the position, no other any."""
    model = build(decoder=decoder, vocab_size=60, max_length=16)
    ids = torch.randperm(48, generator=torch.Generator().manual_seed(0)).view(4, 12) + MASK + 1  # all different
    made = problem(ids, prefix_source=source)
    states = model.decode(model.encode(made.source), made)
    for i in range(made.targets.shape[1]):
        (gradient,) = torch.autograd.grad(states[0, i].square().sum(), model.tokens.weight, retain_graph=True)
        reached = set(gradient.any(1).nonzero().flatten().tolist()) - {MASK}
        before = set(made.targets[0, :i].tolist()) if decoder == "causal" else set()
        assert reached - set(made.source[0].tolist()) == before


def test_validation_batches_take_their_turns_whatever_the_rank():
    objectives, world = prefix(), type("World", (), {"device": torch.device("cpu")})
    judge = Evaluator(None, objectives, VOCAB, world, [])
    rows = torch.arange(24).split(8)
    made = [judge.problem(objectives.parts[0], Batch(r, IDS, r)) for r in rows]
    assert [p.source.shape[1] for p in made] == [6, 8, 10]
