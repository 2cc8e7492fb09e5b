"""One evaluation: the losses of a plain loop over the same rows, broken off at any batch, equal on any ranks."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from registries import built_for

from lab.configurator import UserError
from lab.data import corpus as dataset
from lab.data.corpus import Corpus, unigram_floor
from lab.data.sampler import Sampler
from lab.distributed import World
from lab.training.validation import SEED, Evaluator, Validation
from model import ConceptModel, ModelConfig
from noise import Noise
from objectives import ObjectiveConfig, Objectives
from problem import Rows, Vocabulary
from tests.corpus import make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(make_corpus(tmp_path_factory.mktemp("data") / "toy"), "val")


def make(corpus, objective="tsdae + 0.5*mlm", lengths=(16, 40), tokens=20_000, world=None, **keys):
    objectives = Objectives(ObjectiveConfig(objective=objective, token_weight="idf", **keys))
    shape = dict(layers=1, hidden=16, heads=2, intermediate=16, concepts=4, max_length=40)
    shape = ModelConfig(**shape | built_for(objectives))
    shape.vocab_size = corpus.vocab_size
    idf, vectors = torch.from_numpy(corpus.idf()), torch.randn(shape.vocab_size, 16)
    vocab = Vocabulary(shape.vocab_size, corpus.mask, corpus.special_ids, idf, vectors=vectors)
    trainer = SimpleNamespace(model=ConceptModel(shape, corpus.mask), objectives=objectives, vocab=vocab)
    trainer.world = world or World(0, 1, torch.device("cpu"), "float32")
    return Validation(corpus, lengths, tokens, trainer)


@torch.no_grad()
def plain_loss(judge, corpus, part, n, tokens=20_000, concepts_of=lambda own: own):
    """Batch by batch, with all logits: what `val_loss_<n>` of a part should be."""
    sampler = Sampler(corpus, (n,), seed=SEED)
    size = min(8192 // n, max(8, tokens // n)) // 4 * 4
    found = []
    for i in range(max(8, tokens // n) // size):
        numbers = torch.arange(i * size, (i + 1) * size)
        ids, documents = (torch.from_numpy(x) for x in sampler.batch(0, n, numbers.numpy()))
        problem = part.problem(Rows(ids, Noise(SEED, 0, numbers), judge.vocab, documents))
        concepts = concepts_of(judge.model.encode(problem.source, problem.source_pos))
        logits = judge.model.logits(judge.model.decode(concepts, problem))
        targets = problem.targets if problem.scored is None else problem.targets.gather(1, problem.scored)
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        weights = torch.full_like(each, 1 / each.numel()) if problem.weights is None else problem.weights.flatten()
        found.append((each * weights).sum().item())
    assert len(found) > 1
    return sum(found) / len(found)


def test_losses_are_those_of_a_plain_loop(corpus):
    judge = make(corpus)
    numbers = judge.run()
    tsdae, mlm = judge.objectives.parts
    each = {n: [plain_loss(judge, corpus, part, n) for part in (tsdae, mlm)] for n in (16, 40)}
    for n, (first, second) in each.items():
        assert numbers[f"val_loss_{n}"] == pytest.approx(first + 0.5 * second, rel=1e-5)
    assert numbers["val_loss"] == numbers["val_loss_40"]
    assert [numbers["val_loss_tsdae"], numbers["val_loss_mlm"]] == pytest.approx(each[40], rel=1e-5)
    standard = mlm.reported()["mlm15"]
    assert standard.config.mask_rate == 0.15
    assert numbers["val_loss_mlm15"] == pytest.approx(plain_loss(judge, corpus, standard, 40), rel=1e-5)
    assert judge.run() == numbers  # the rows and their noise are fixed


def test_another_rows_concepts_cost_what_a_plain_loop_says(corpus):
    """delta_zero, over the 256 rows of the geometry, in one batch."""
    judge = make(corpus, "tsdae", lengths=(16,), tokens=16 * 256)
    with torch.no_grad():
        judge.model.tokens.weight.mul_(3)  # so that there is something to lose
    numbers, (part,) = judge.run(), judge.objectives.parts
    (batch,) = judge.fixed
    problem = judge.problem(part, batch)
    with torch.no_grad():
        concepts = judge.model.encode(problem.source, problem.source_pos)
        own, zero = (judge.model.loss(c, problem).item() for c in (concepts, torch.zeros_like(concepts)))
    assert abs(own - zero) > 1e-3 and numbers["delta_zero"] == pytest.approx(zero - own, rel=1e-3)


def test_it_stops_before_any_batch(corpus):
    """Asked once before each; broken off it says nothing, leaves the model in training, and may be made again."""
    judge, asked = make(corpus, tokens=9000), []
    whole = judge.run(lambda: asked.append(0))
    batches = sum(len(judge.batches_of(part, n)) for part in judge.objectives.parts for n in (16, 40))
    assert len(asked) > batches + len(judge.fixed)
    for last in range(1, len(asked) + 1, 3):
        calls = iter(range(1, last + 1))
        assert judge.run(lambda calls=calls, last=last: int(next(calls) == last)) is None
        assert next(calls, None) is None and judge.model.training
    assert judge.run() == whole and judge.model.training


def test_batches_shared_out_over_ranks_sum_to_the_same_bits(corpus):
    """Each rank fills in its own batches, and zeros for the rest."""

    class Ranks(World):
        def all_sum(self, tensor):
            sums.append(tensor.clone())
            return tensor

    @torch.no_grad()
    def loss(world):
        judge = make(corpus, "mlm", world=world)
        return judge.loss(judge.objectives.parts[0], 16)

    sums, cpu = [], torch.device("cpu")
    for rank in (0, 1):
        loss(Ranks(rank, 2, cpu, "float32"))
    assert len(sums[0]) > 1 and (sums[0] * sums[1] == 0).all()
    assert (sums[0] + sums[1]).mean().item() == loss(World(0, 1, cpu, "float32"))


@pytest.mark.parametrize(
    "objective, deltas", [("bow", 3), ("contrastive", 0), ("bow + contrastive", 3), ("nextconcept", 0)]
)
def test_what_predicts_no_positions_is_judged_too(objective, deltas, corpus):
    judge = make(corpus, objective, tokens=2000)
    numbers = judge.run()
    assert len([key for key in numbers if key.startswith("delta_")]) == deltas
    assert all(math.isfinite(x) for key, x in numbers.items() if key != "verdict") and numbers["verdict"]
    assert numbers["rank_slot_centred"] > 0 and numbers["input_share"] > 0


def test_a_length_without_enough_rows_is_left_out(corpus, capsys):
    assert make(corpus, "tsdae", lengths=(16, 40, 100)).lengths == [16, 40, 100]
    short = make(corpus, "contrastive", lengths=(16, 40, 100), tokens=2000)  # 200 tokens of one document
    assert "the validation text has only" in capsys.readouterr().err and short.lengths == [16, 40]
    assert short.longest == 40 and "val_loss_100" not in short.run()
    with pytest.raises(UserError, match="has no row of any length"):
        make(corpus, "contrastive", lengths=(2000,), tokens=2000)


@pytest.mark.parametrize("objective", ["tsdae + 0.5*mlm", "mlm", "contrastive", "bow + nextconcept"])
def test_every_loss_has_its_floor_which_is_computed_once(objective, corpus, monkeypatch):
    judge, counted, unigram = make(corpus, objective, tokens=2000), [], unigram_floor
    monkeypatch.setattr(dataset, "unigram_floor", lambda *x: counted.append(x[3]) or unigram(*x))
    train = Corpus(corpus.folder, "train")
    known, parts = judge.floors(train, corpus), judge.objectives.parts
    assert known.keys() == {key for key in judge.run() if key.startswith("val_loss_")}
    assert judge.floors(train, corpus) is known and len(counted) == len({x is None for x in counted})
    if len(parts) > 1:
        assert known["val_loss_40"] == pytest.approx(
            judge.objectives.total([known[f"val_loss_{p.name}"] for p in parts])
        )


def test_the_bound_of_diffusion_is_reported_whatever_it_is_trained_with(corpus):
    """Row by row: the mean loss of a row's hidden tokens, and the mean of the rows."""
    judge = make(corpus, "diffusion", (16,), t_min=0.4, diffusion_weight="none", label_smoothing=0.2)
    numbers, (part,), rows = judge.run(), judge.objectives.parts, []
    plain = Objectives(ObjectiveConfig(objective="diffusion")).parts[0]
    with torch.no_grad():
        for batch in judge.batches_of(part, 16):
            made = judge.problem(plain, batch)
            logits = judge.model.logits(judge.model.decode(judge.model.encode(batch.ids), made))[0]
            each = F.cross_entropy(logits, batch.ids.flatten()[made.scored], reduction="none")
            rows += [each[made.scored // 16 == row].mean().item() for row in range(len(batch.ids))]
    assert numbers["val_loss_elbo"] == pytest.approx(sum(rows) / len(rows), rel=1e-5)
    assert abs(numbers["val_loss"] - numbers["val_loss_elbo"]) > 1e-3


def test_what_concepts_tell_of_the_next_span_is_asked_of_adjacent_rows(corpus):
    judge = make(corpus, "prefix", (16,), prefix_source="next")
    (part,) = judge.objectives.parts
    for batch in judge.rows_of(part):
        assert torch.equal(batch.documents[0::2], batch.documents[1::2])
    assert sum(len(batch.ids) for batch in judge.rows_of(part)) == 256 and judge.primary_part() is part
    assert Evaluator.rows_of(judge, part) == [] and "delta_shuffle" in judge.run()
    other = make(corpus, "prefix + tsdae", (16,))
    assert [part.one_document for part in other.objectives.parts] == [True, False]
    assert other.rows_of(other.objectives.parts[1]) is other.fixed
