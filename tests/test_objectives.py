"""Noise, exact counts, and the leak test: what is hidden can reach nothing but the targets."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from registries import OBJECTIVE_SETTINGS, name
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from noise import Noise, count
from objectives import OBJECTIVES, ObjectiveConfig, Objectives
from problem import Problem, Rows, Vocabulary

V, B, N = 512, 64, 32
SPECIAL = (508, 509, 510, 511)


def vocabulary():
    idf = 8 * torch.rand(V, generator=torch.Generator().manual_seed(9))
    starts, phrases = torch.arange(V) % 3 > 0, torch.arange(9)  # no row has these: where a phrase is tells of its words
    return Vocabulary(V, 511, SPECIAL, idf.scatter(0, torch.tensor(SPECIAL), 0.0), starts, phrases, torch.ones(V, 8))


VOCAB = vocabulary()
EVERY = pytest.mark.parametrize("keys", OBJECTIVE_SETTINGS, ids=name)


def text(rows=B, n=N, seed=0, specials=True):
    ids = torch.randint(0, 508, (rows, n), generator=torch.Generator().manual_seed(seed))
    if specials:
        ids[:, 5] = 508  # an end of document in every row
    return ids


def noise(rows=B, seed=3, step=7):
    return Noise(seed, step, torch.arange(rows))


def problems(ids=None, numbers=None, vocab=VOCAB, documents=None, **keys):
    """The problem of each part of the objective that the keys say. numbers: the rows', for their noise."""
    ids = text() if ids is None else ids
    numbers = torch.arange(len(ids)) if numbers is None else numbers
    documents = numbers // 4 if documents is None else documents
    rows = Rows(ids, Noise(3, 7, numbers), vocab, documents)
    return Objectives(ObjectiveConfig(**keys)).problems(rows)


def format_range(problem, x):
    """What stands at the scored positions, as `scored` lies, over the span: [B, T], zero elsewhere."""
    if problem.scored is None:
        return x
    flat = problem.scored.ndim == 1
    zeros = torch.zeros(problem.targets.numel() if flat else problem.targets.shape, dtype=x.dtype)
    return zeros.scatter(0 if flat else 1, problem.scored, x).view(problem.targets.shape)


def origins_of(part, keys):
    """[B, T] where in the rows, flat, each target of a part of the objective stands."""
    V = 10**6  # of the same words and phrases as VOCAB's
    vocab = Vocabulary(V, V - 1, (V - 2,), torch.ones(V), torch.ones(V, dtype=torch.bool), VOCAB.phrases)
    return problems(torch.arange(B * N).view(B, N), vocab=vocab, **keys)[part].targets


def problem(ids=None, **keys):
    (only,) = problems(ids, **keys)
    return only


# ---- noise


def slow_bits(seed, step, row, call, column):
    """The same number, by plain Python integers."""

    def mix(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return x ^ (x >> 16)

    key = mix((mix((mix(seed % 2**32) + step) % 2**32) + row) % 2**32)
    return mix(column ^ mix((key + call * 0x9E3779B9) % 2**32))


@given(st.integers(0, 2**40), st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 20))
@settings(max_examples=50)
def test_noise_is_the_stated_function(seed, step, row, call):
    bits = Noise(seed, step, torch.tensor([row])).bits(call, 17)[0]
    assert bits.tolist() == [slow_bits(seed, step, row, call, column) for column in range(17)]


def test_noise_is_uniform_and_without_ties():
    bits = Noise(1, 2, torch.arange(4000)).bits(0, 128)
    assert all(len(set(row)) == 128 for row in bits.tolist())
    assert stats.kstest((bits.double() / 2**32).flatten().numpy(), "uniform").pvalue > 1e-3
    # first column chosen, over rows, steps, calls and seeds
    for axis in (
        noise(8000).order(0, torch.zeros(8000, 16, dtype=torch.bool))[:, 0],
        torch.stack([Noise(0, s, torch.zeros(1, dtype=torch.int64)).bits(0, 16).argmin() for s in range(1000)]),
        torch.stack([Noise(0, 0, torch.zeros(1, dtype=torch.int64)).bits(c, 16).argmin() for c in range(1000)]),
        torch.stack([Noise(s, 0, torch.zeros(1, dtype=torch.int64)).bits(0, 16).argmin() for s in range(1000)]),
    ):
        assert stats.chisquare(torch.bincount(axis, minlength=16).numpy()).pvalue > 1e-4


def test_counts_leave_something_on_both_sides():
    assert [count(rate, 10) for rate in (0.01, 0.3, 0.99)] == [1, 3, 9]


# ---- every objective


@EVERY
def test_noise_does_not_depend_on_the_micro_batch(keys):
    """Rows 0...63 in one go equal rows 16...31 alone, and any other order of their groups (of views see below)."""
    ids, whole = text(), problems(**keys)
    group = Objectives(ObjectiveConfig(**keys)).group
    others = torch.arange(B).view(-1, group)[[B // group - 1, 1, 0]].flatten()
    for numbers in (torch.arange(16, 32), others, *([torch.tensor([40, 3, 17, 18])] if group == 1 else [])):
        for a, b in zip(whole, problems(ids[numbers], numbers, **keys), strict=True):
            if a.targets is None:
                continue
            two = B // len(a.targets)  # rows that make one of the problem's
            at = numbers[::two] // two
            for field in ("source", "source_pos", "targets", "query_ids", "t"):
                x, y = getattr(a, field), getattr(b, field)
                assert (x is None) == (y is None)
                assert x is None or torch.equal(x[at], y)
            if a.scored is not None:
                ones = [format_range(p, torch.ones(p.scored.shape)) for p in (a, b)]
                assert torch.equal(ones[0][at], ones[1])
            if a.weights is not None:  # they carry the normaliser: the mean of the parts is the whole
                torch.testing.assert_close(
                    format_range(b, b.weights) * len(numbers), format_range(a, a.weights)[at] * B
                )


def shapes(problem: Problem):
    values = {field.name: getattr(problem, field.name) for field in fields(problem)}
    return {key: (v.shape, v.dtype) if torch.is_tensor(v) else v for key, v in values.items()}


@EVERY
def test_shapes_depend_on_the_row_length_alone(keys):
    """Made of fake tensors, too, which hold no numbers: nothing waits for the device."""
    expected = [shapes(p) for p in problems(**keys)]
    other = text(seed=1)
    other[::2] = 508
    assert [shapes(p) for p in problems(other, torch.arange(100, 164), **keys)] == expected
    with FakeTensorMode():
        assert [shapes(p) for p in problems(text(), vocab=vocabulary(), **keys)] == expected


def hidden_and_scored(problem: Problem, part, keys):
    """[B, N] bool: the columns of the rows that are predicted."""
    nothing = torch.zeros(B, N, dtype=torch.bool)
    if problem.predicts == "none":
        return nothing
    scored = torch.ones(problem.targets.shape if problem.scored is None else problem.scored.shape, dtype=torch.bool)
    return nothing.flatten().scatter(0, origins_of(part, keys)[format_range(problem, scored)], True).view(B, N)


def survivors(problem, keys, part):
    """Where the survivors stood; of compact ones the same noise tells it when it is asked to keep their positions."""
    original = problems(**keys | {"positions": "original"})[part]
    assert torch.equal(original.source, problem.source)
    read = torch.zeros(len(original.source), N, dtype=torch.bool).scatter(1, original.source_pos, True)
    return read if len(read) == B else torch.stack([read, torch.zeros_like(read)], 1).flatten(0, 1)


def shown(objective, problem, keys, part):
    """[B, N] bool: the columns that are read by design. These are all exceptions to the leak test."""
    nothing, config = torch.zeros(B, N, dtype=torch.bool), objective.config
    if objective.name == "mlm":
        kept = problem.query_ids == text()  # with 80_10_10 a tenth of what is hidden
        if not config.encoder_mask_rate:
            return kept & hidden_and_scored(problem, part, keys)
        if not config.visible_only:
            return kept | (problem.source == text())  # the encoder reads most of what is hidden from the decoder
        return kept | nothing.scatter(1, problem.source_pos, True)
    if objective.name == "tsdae" or (objective.name == "bow" and config.bow_source == "survivors"):
        return survivors(problem, keys, part)  # they are predicted like the rest
    if objective.name == "bow":  # it reads the row that it predicts, or the row before it, too
        return ~nothing if config.bow_target == "row" else (torch.arange(B) % 2 == 0)[:, None] | nothing
    if objective.name == "contrastive":
        return ~nothing  # it predicts nothing
    if objective.name == "diffusion" and config.diffusion_source == "row":
        return ~nothing  # the encoder reads the row, the decoder must not: test_diffusion.py
    return nothing


@EVERY
def test_nothing_leaks(keys):
    """With the noise fixed, clean tokens at hidden scored positions are changed to others of the same class (special or
    not, word start or not): all of the Problem but its targets and their weights stays bit-equal."""
    ids = text()
    other = torch.where(ids < 508, (ids + 3 + torch.arange(N) * 7 * 3 % 480) % 507, 508 + (ids + 1) % 3)
    objectives = Objectives(ObjectiveConfig(**keys))
    for part, (objective, before) in enumerate(zip(objectives.parts, problems(**keys), strict=True)):
        given = shown(objective, before, keys, part)
        hidden = hidden_and_scored(before, part, keys) & ~given
        assert hidden.any() or given.all(), objective.name
        changed = torch.where(hidden, other, ids)
        after = problems(changed, **keys)[part]
        if before.targets is not None:
            differs = (changed != ids).flatten()[origins_of(part, keys)]
            assert torch.equal(before.targets != after.targets, differs)
        assert unequal(before, after) <= {"targets", "weights"}


def unequal(a: Problem, b: Problem):
    """The fields in which they differ."""
    pairs = {field.name: (getattr(a, field.name), getattr(b, field.name)) for field in fields(Problem)}
    same = {key: torch.equal(x, y) if torch.is_tensor(x) else x is y or x == y for key, (x, y) in pairs.items()}
    return {key for key in same if not same[key]}


@EVERY
def test_what_an_objective_says_of_itself_is_so(keys):
    config, made = ObjectiveConfig(**keys), problems(**keys)
    objectives = Objectives(config)
    for part, problem in zip(objectives.parts, made, strict=True):
        assert problem.predicts == part.predicts and (problem.targets is None) == (part.predicts == "none")
        assert problem.weights is not None or not part.needs_idf
        assert part.floor(problem, lambda needs_idf: 3.0 + needs_idf) > 0
    for key in {field.name for field in fields(config)} - objectives.uses:  # what it does not use makes no difference
        value = getattr(config, key)
        setattr(config, key, not value if isinstance(value, bool) else 0.5 if isinstance(value, float) else "nothing")
        again = Objectives(config).problems(Rows(text(), noise(), VOCAB, torch.arange(B) // 4))
        assert not any(unequal(a, b) for a, b in zip(made, again, strict=True)), key


# ---- exact counts


@given(st.floats(0.01, 0.99), st.integers(2, 64))
@settings(max_examples=60)
def test_mlm_counts(rate, n):
    ids = text(8, n, specials=False)
    made = problem(ids, objective="mlm", mask_rate=rate)
    k = max(1, min(round(rate * n), n - 1))
    assert made.scored.shape == (8, k)
    hidden = torch.zeros_like(ids, dtype=torch.bool).scatter(1, made.scored, True)
    assert hidden.sum(1).eq(k).all()
    assert torch.equal(made.source == 511, hidden) and torch.equal(made.source[~hidden], ids[~hidden])
    assert torch.equal(made.source, made.query_ids)


def test_80_10_10_replaces_exactly_so_many_by_text():
    """Of 20 hidden tokens 16 by [MASK], 2 by random text, 2 by themselves."""
    ids = text(4000, 100, specials=False)
    made = problem(ids, objective="mlm", mask_rate=0.2, replace="80_10_10")
    was, now = ids.gather(1, made.scored), made.source.gather(1, made.scored)
    masked, kept = now == 511, now == was
    assert masked.sum(1).eq(16).all()
    assert kept.sum(1).min() == 2 and kept.sum(1).double().mean() == pytest.approx(2 + 2 / 508, abs=0.01)
    drawn = now[~masked & ~kept]
    assert set(drawn.tolist()) == set(range(508))  # every token of text, and none that is special
    assert stats.kstest((drawn.double() / 508).numpy(), "uniform").statistic < 0.02
    where = torch.bincount(made.scored[masked], minlength=100)  # replacement is independent of the position
    assert stats.chisquare(where.numpy()).pvalue > 1e-4
    assert torch.equal(made.source, made.query_ids)


@given(st.sets(st.integers(0, 29), max_size=12), st.integers(0, 29))
@settings(max_examples=60)
def test_random_tokens_are_all_of_text_alike(special, mask_id):
    """Wherever the special ids stand: bits 0 ... n-1 are the n tokens of text, in order."""
    expected = [i for i in range(30) if i not in special | {mask_id}]
    bits = torch.arange(2 * len(expected))
    assert Vocabulary(30, mask_id, tuple(special)).text_token(bits).tolist() == 2 * expected


def test_visible_only_reads_what_is_not_hidden():
    ids = text()
    made = problem(ids, objective="mlm", mask_rate=0.4, visible_only=True)
    for row in range(B):
        visible = [c for c in range(N) if c not in made.scored[row].tolist()]
        assert made.source_pos[row].tolist() == visible
        assert made.source[row].tolist() == ids[row, visible].tolist()


@pytest.mark.parametrize(
    "rate, positions", [(0.05, "original"), (0.3, "compact"), (0.6, "original"), (0.99, "compact")]
)
def test_tsdae_counts(rate, positions):
    ids = torch.arange(N).repeat(B, 1)  # a token is its column
    made = problem(ids, delete_rate=rate, positions=positions)
    assert made.source.shape == (B, N - max(1, min(round(rate * N), N - 1)))
    assert (made.source.diff(dim=1) > 0).all()  # in order, none twice
    assert torch.equal(made.targets, ids) and made.query_ids is None and made.scored is None
    assert made.source_pos is None if positions == "compact" else torch.equal(made.source_pos, made.source)


def test_tsdae_deletes_every_column_alike():
    kept = torch.bincount(problem(torch.arange(N).repeat(8000, 1)).source.flatten(), minlength=N)
    assert stats.chisquare(kept.numpy()).pvalue > 1e-4


def test_scored_share_is_exact_and_independent_of_deletion():
    ids = torch.arange(N).repeat(8000, 1)
    made = problem(ids, score_rate=0.25, delete_rate=0.5)
    assert made.scored.shape == (8000, 8) and (made.scored.diff(dim=1) > 0).all()
    survived = torch.zeros_like(ids, dtype=torch.bool).scatter(1, made.source, True)
    assert survived.gather(1, made.scored).double().mean() == pytest.approx(0.5, abs=0.01)


def test_special_tokens_are_chosen_last():
    assert not problem(objective="mlm", mask_rate=0.95).scored.eq(5).any()
    assert problem(delete_rate=0.95).source.eq(508).sum(1).eq(1).all()
    made = problem(torch.full((4, 8), 508), objective="mlm", mask_rate=0.5)
    assert made.scored.shape == (4, 4)  # nothing else to choose: the count stays exact


# ---- weights by idf

BY_IDF = [keys for keys in OBJECTIVE_SETTINGS if Objectives(ObjectiveConfig(**keys)).needs_idf]


@pytest.mark.parametrize("keys", BY_IDF, ids=name)
def test_weights_are_as_idf_and_sum_to_one_over_rows(keys):
    ids = text()
    ids[3] = 508  # a row in which no token tells anything
    for part, made in zip(Objectives(ObjectiveConfig(**keys)).parts, problems(ids, **keys), strict=True):
        if not part.needs_idf:
            continue
        rows = len(made.targets)
        for row in range(0, rows, 3):
            columns = range(made.targets.shape[1]) if made.scored is None else made.scored[row].tolist()
            idf = [VOCAB.idf[made.targets[row, c]].item() for c in columns]
            expected = [x / sum(idf) / rows if any(idf) else 0.0 for x in idf]
            assert made.weights[row].tolist() == pytest.approx(expected, abs=1e-7)
            assert made.weights[row].sum().item() == pytest.approx(1 / rows if any(idf) else 0, abs=1e-6)
        assert rows < B or made.weights[3].sum() == 0


@pytest.mark.parametrize("objective, positions", [("tsdae + bow", "compact"), ("bow + tsdae", "original")])
def test_bow_of_survivors_reads_the_very_tensors_of_tsdae(objective, positions):
    """The same tensors, not equal ones: the model goes by that."""
    a, b = problems(objective=objective, bow_source="survivors", positions=positions)
    assert a.source is b.source and a.source_pos is b.source_pos
    alone = problem(objective=objective.split()[0], bow_source="survivors", positions=positions)
    assert torch.equal(a.source, alone.source)  # the first one's noise
    a, b = problems(objective=objective, bow_source="row")
    assert a.source is not b.source


# ---- views

PLACES = Vocabulary(10**6, 999_999, (999_998,))


def places(rows=16, n=20):
    """Ids that tell their row and column, and the rows' documents: 0 0 1 1 2 2 ..."""
    return torch.arange(rows)[:, None] * 100 + torch.arange(n), torch.arange(rows) // 2


def origins(views, rows=16):
    """Which rows of ids each text's two views come from."""
    pairs, same = [(i, i + 1) for i in range(0, rows, 2)], [(i, i) for i in range(rows)]
    if views == "both":  # of each four rows two are a pair, and two stand for themselves
        return pairs[0::2] + same[2::4] + same[3::4]
    return pairs if views == "adjacent" else same


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("views", ["adjacent", "deletion", "both"])
def test_views(views, rate):
    ids, documents = places()
    made = problem(ids, vocab=PLACES, documents=documents, objective="contrastive", views=views, view_delete_rate=rate)
    assert made.predicts == "none" and made.targets is made.query_pos is made.source_pos is None
    row, column = made.source // 100, made.source % 100
    assert [tuple(pair) for pair in torch.stack(row[:, 0].chunk(2), 1).tolist()] == origins(views)
    assert row.eq(row[:, :1]).all()
    left = 20 if views == "adjacent" else 20 - max(1, round(rate * 20))
    assert column.shape[1] == left and (column.diff(dim=1) > 0).all()  # the exact count; in order, none twice
    assert torch.equal(made.group, documents[row[:, 0]]) and len(made.group) == len(made.source)
    if views != "adjacent" and rate == 0.4:  # no two views of a text, and no two texts, lose the same
        assert len({tuple(c) for c in column.tolist()}) == len(column)


def test_views_delete_every_column_alike_and_special_tokens_last():
    keys = dict(objective="contrastive", views="deletion")
    ids = torch.arange(20).repeat(8000, 1)
    a, b = problem(ids, vocab=PLACES, view_delete_rate=0.5, **keys).source.chunk(2)
    assert stats.chisquare(torch.bincount(a.flatten(), minlength=20).numpy()).pvalue > 1e-4
    kept = torch.zeros_like(ids, dtype=torch.bool).scatter(1, a, True)
    assert kept.gather(1, b).double().mean() == pytest.approx(0.5, abs=0.01)  # the two deletions are independent
    assert problem(view_delete_rate=0.95, **keys).source.eq(508).sum(1).eq(1).all()


@pytest.mark.parametrize("target", ["row", "next", "both"])
def test_bow_of_the_row_and_of_the_next_span(target):
    vocab = Vocabulary(2000, 1999, (), torch.rand(2000))
    ids = torch.arange(8)[:, None] * 100 + torch.arange(10)
    made = problem(ids, vocab=vocab, objective="bow", bow_target=target)
    assert torch.equal(made.source, ids if target == "row" else ids[0::2])
    expected = {"row": ids, "next": ids[1::2], "both": torch.cat([ids[0::2], ids[1::2]], 1)}[target]
    assert torch.equal(made.targets, expected) and made.weights.sum() == pytest.approx(1)
    assert made.query_pos is made.query_ids is made.scored is made.source_pos is None
    assert Objectives(ObjectiveConfig(objective="bow", bow_target=target)).adjacent_rows == (target != "row")


@pytest.mark.parametrize("views", ["adjacent", "deletion", "both", "dropout"])
def test_views_do_not_depend_on_the_micro_batch(views):
    keys, (ids, documents) = dict(objective="contrastive", views=views, vocab=PLACES), places()

    def pairs(rows):
        made = problem(ids[rows], numbers=rows, documents=documents[rows], **keys)
        return {
            (tuple(a), tuple(b))
            for a, b in zip(*made.source.chunk(2), strict=True)
            for a, b in [(a.tolist(), b.tolist())]
        }

    whole = pairs(torch.arange(16))
    parts = [torch.arange(8, 16), torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])]
    assert whole == pairs(parts[0]) | pairs(parts[1])


# ---- sums


def test_a_part_of_a_sum_has_noise_of_its_own():
    """The first one that which it has alone, the second another."""
    alone = {name: problem(objective=name).source for name in ("mlm", "tsdae")}
    first, second = problems(objective="mlm + tsdae")
    assert torch.equal(first.source, alone["mlm"]) and not torch.equal(second.source, alone["tsdae"])
    first, second = problems(objective="tsdae + mlm")
    assert torch.equal(first.source, alone["tsdae"]) and not torch.equal(second.source, alone["mlm"])


def test_losses_and_their_weighted_sum():
    """Token losses are the model's, the contrastive one is made of the concepts."""
    objectives = Objectives(ObjectiveConfig(objective="0.5*tsdae + contrastive + 2*bow", views="deletion"))
    made = objectives.problems(Rows(text(), noise(), VOCAB, torch.arange(B)))
    concepts = [torch.randn(len(p.source), 4, 8, dtype=torch.float64, requires_grad=True) for p in made]
    losses = objectives.losses([torch.tensor(3.0), concepts[1].mean(1), torch.tensor(5.0)], concepts, made)
    assert losses[0] == 3 and losses[2] == 5
    a, b = torch.nn.functional.normalize(concepts[1].mean(1), dim=1).chunk(2)
    scores = a @ b.T / 0.05
    rows = torch.arange(B)
    expected = (torch.nn.functional.cross_entropy(s, rows) for s in (scores, scores.T))
    torch.testing.assert_close(losses[1], sum(expected) / 2)
    torch.testing.assert_close(objectives.total(losses), 0.5 * 3 + losses[1] + 2 * 5)


def test_objectives_are_read():
    def parts(text):
        objectives = Objectives(ObjectiveConfig(objective=text))
        return list(zip(objectives.weights, objectives.names, strict=True))

    assert parts("tsdae + 0.1*mlm") == [(1.0, "tsdae"), (0.1, "mlm")]
    assert parts("2 * mlm+1e-3*bow") == [(2.0, "mlm"), (0.001, "bow")]
    for objective in OBJECTIVES:
        assert parts(objective) == [(1.0, objective)] and objective == objective.lower()
    for wrong in ("", "tsdae +", "nope", "0*mlm", "mlm*2", "mlm + mlm", "-1*mlm", "1e9*mlm", "TSDAE"):
        with pytest.raises(ValueError, match="objective"):
            ObjectiveConfig(objective=wrong)


NEEDS = {  # objective, keys: needs_idf, adjacent_rows, group, one_document, in_batch_negatives, *predicts
    ("mlm", ""): (False, False, 1, False, False, "positions"),
    ("tsdae", "token_weight=idf"): (True, False, 1, False, False, "positions"),
    ("bow", ""): (True, False, 1, False, False, "pooled"),
    ("contrastive", ""): (False, True, 4, True, True, "none"),
    ("contrastive", "views=deletion"): (False, False, 1, True, True, "none"),
    ("bow + 0.5*contrastive", "views=adjacent"): (True, True, 2, True, True, "none", "pooled"),
    ("tsdae + bow", ""): (True, False, 1, False, False, "pooled", "positions"),
    ("0.3*contrastive + mlm", ""): (False, True, 4, True, True, "none", "positions"),
    ("nextconcept + contrastive", ""): (False, True, 4, True, True, "concepts", "none"),
    ("bow + nextconcept", "next_target=spectral"): (True, True, 2, True, False, "pooled", "vectors"),
    ("diffusion + mlm", ""): (False, False, 2, False, False, "positions"),
    ("diffusion + mlm", "diffusion_source=next"): (False, True, 4, False, False, "positions"),
}


@pytest.mark.parametrize("case", NEEDS, ids=str)
def test_a_sum_asks_for_what_its_strictest_part_does(case):
    objective, key = case
    o = Objectives(ObjectiveConfig(objective=objective, **dict([key.split("=")] if key else [])))
    assert (o.needs_idf, o.adjacent_rows, o.group, o.one_document, o.in_batch_negatives, *o.predicts) == NEEDS[case]


def test_floors():
    def floors(objective, **keys):
        parts = Objectives(ObjectiveConfig(objective=objective, **keys)).parts
        made = problems(objective=objective, **keys)
        return [part.floor(p, lambda needs_idf: 8.0 if needs_idf else 7.0) for part, p in zip(parts, made, strict=True)]

    assert floors("mlm + tsdae + bow") == [7, 7, 8]
    assert floors("mlm", token_weight="idf") == [8]
    assert floors("contrastive", views="deletion") == [pytest.approx(math.log(B))]
    assert floors("contrastive", views="adjacent") == [pytest.approx(math.log(B / 2))]
    assert floors("nextconcept", next_target="spectral") == floors("nextconcept") == [1]


REPORTED = [dict(), dict(mask_rate=0.5, replace="80_10_10"), dict(token_weight="idf"), dict(mask_unit="span")]


@pytest.mark.parametrize("keys", [*REPORTED, dict(mask_rate=0.7, encoder_mask_rate=0.3)], ids=name)
def test_masked_lm_is_reported_at_15_percent(keys):
    (objective,) = Objectives(ObjectiveConfig(objective="mlm", **keys)).parts
    (reported,) = objective.reported().items()
    rows = Rows(text(), noise(), VOCAB)
    assert reported[0] == "mlm15"
    made, expected = reported[1].problem(rows), problem(objective="mlm", mask_rate=0.15)
    assert torch.equal(made.source, expected.source) and made.weights is None


IMPOSSIBLE = dict(mask_rate=0), dict(prefix_rate=()), dict(prefix_rate=(0.3, 1.0)), dict(prefix_rate=7 * (0.3,))


@pytest.mark.parametrize("keys", IMPOSSIBLE, ids=str)
def test_impossible_rates(keys):
    with pytest.raises(ValueError, match="take|write"):
        ObjectiveConfig(**keys)
    with pytest.raises(ValueError, match="visible_only"):
        ObjectiveConfig(visible_only=True, replace="80_10_10")


def test_keys_that_are_used():
    def uses(**keys):
        return Objectives(ObjectiveConfig(**keys)).uses - {"objective"}

    mlm = {"mask_rate", "encoder_mask_rate", "mask_unit", "replace", "visible_only", "token_weight"}
    assert uses(objective="mlm", mask_unit="word") == mlm
    assert uses(objective="mlm", mask_unit="span") == mlm | {"span", "max_span"}
    tsdae = {"delete_rate", "delete_unit", "positions", "score_rate", "token_weight"}
    views = {"views", "view_delete_rate", "view_similarity", "temperature"}
    assert uses(objective="mlm") == mlm and uses(objective="tsdae") == tsdae
    assert uses(objective="tsdae + mlm + contrastive") == mlm | tsdae | views
    assert uses(objective="contrastive", views="adjacent") == views - {"view_delete_rate"}
    assert uses(objective="bow") == {"bow_source", "bow_target"} and uses(objective="nextconcept") == {"next_target"}
    deletes = {"delete_rate", "delete_unit", "positions"}
    assert uses(objective="bow", bow_source="survivors") == {"bow_source", "bow_target"} | deletes
    used = set().union(*(uses(**keys) for keys in OBJECTIVE_SETTINGS))
    assert used == {field.name for field in fields(ObjectiveConfig)} - {"objective"}
