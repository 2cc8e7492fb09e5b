"""Noise, exact counts, and the leak test: what is hidden can reach nothing but the targets."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from objectives import (
    Noise,
    ObjectiveConfig,
    Vocabulary,
    bow,
    contrastive,
    count,
    make_problems,
    mlm,
    names,
    needed_decoder,
    needs_idf,
    needs_pairs,
    parse_objective,
    tsdae,
    unused_keys,
)

V = 512
SPECIAL = (508, 509, 510, 511)
IDF = 8 * torch.rand(V, generator=torch.Generator().manual_seed(9)).index_fill(0, torch.tensor(SPECIAL), 0.0)
VOCAB = Vocabulary(V, 511, SPECIAL, IDF)
CONFIGS = [
    dict(objective="mlm"),
    dict(objective="mlm", mask_rate=0.5, visible_only=True),
    dict(objective="mlm", mask_rate=0.15, replace="80_10_10"),
    dict(objective="tsdae", positions="compact"),
    dict(objective="tsdae", positions="original", delete_rate=0.3),
    dict(objective="tsdae", score_rate=0.25),
    dict(objective="tsdae + 0.1*mlm"),
    dict(objective="mlm", token_weight="idf"),
    dict(objective="tsdae", token_weight="idf", score_rate=0.25),
    dict(objective="bow"),
    dict(objective="tsdae + bow", token_weight="idf"),
]


def text(rows=64, n=32, seed=0, specials=True):
    ids = torch.randint(0, 508, (rows, n), generator=torch.Generator().manual_seed(seed))
    if specials:
        ids[:, 5] = 508  # an end of document in every row
    return ids


def noise(rows=64, seed=3, step=7):
    return Noise(seed, step, torch.arange(rows))


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
@settings(max_examples=50, deadline=None)
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
        torch.stack([Noise(0, s, torch.zeros(1, dtype=torch.int64)).bits(0, 16).argmin() for s in range(4000)]),
        torch.stack([Noise(0, 0, torch.zeros(1, dtype=torch.int64)).bits(c, 16).argmin() for c in range(4000)]),
        torch.stack([Noise(s, 0, torch.zeros(1, dtype=torch.int64)).bits(0, 16).argmin() for s in range(4000)]),
    ):
        assert stats.chisquare(torch.bincount(axis, minlength=16).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("kw", CONFIGS)
def test_noise_does_not_depend_on_the_micro_batch(kw):
    """Rows 0...63 in one go equal rows 0...15, 16...31 and so on, and any other order of them."""
    ids, config = text(), ObjectiveConfig(**kw)
    whole = make_problems(ids, noise(), VOCAB, config)
    for rows in (torch.arange(16, 32), torch.tensor([40, 3, 17])):
        for a, b in zip(whole, make_problems(ids[rows], Noise(3, 7, rows), VOCAB, config), strict=True):
            for name in ("source", "source_pos", "targets", "query_ids", "scored"):
                x, y = getattr(a, name), getattr(b, name)
                assert (x is None) == (y is None)
                assert x is None or torch.equal(x[rows], y)
            if a.weights is not None:  # they carry the normaliser: the mean of the parts is the whole
                torch.testing.assert_close(b.weights * len(rows), a.weights[rows] * 64)


# ---- exact counts


@given(st.floats(0.01, 0.99), st.integers(2, 64))
@settings(max_examples=60, deadline=None)
def test_mlm_counts(rate, n):
    ids = text(8, n, specials=False)
    problem = mlm(ids, noise(8), VOCAB, ObjectiveConfig(objective="mlm", mask_rate=rate))
    k = max(1, min(round(rate * n), n - 1))
    assert problem.scored.shape == (8, k)
    hidden = torch.zeros_like(ids, dtype=torch.bool).scatter(1, problem.scored, True)
    assert hidden.sum(1).eq(k).all()
    assert torch.equal(problem.source == 511, hidden) and torch.equal(problem.source[~hidden], ids[~hidden])
    assert torch.equal(problem.source, problem.query_ids)


def test_mlm_80_10_10_statistics():
    ids = text(4000, 100, specials=False)
    config = ObjectiveConfig(objective="mlm", mask_rate=0.2, replace="80_10_10")
    problem = mlm(ids, noise(4000), VOCAB, config)
    was, now = ids.gather(1, problem.scored), problem.source.gather(1, problem.scored)
    masked, kept = now == 511, now == was
    # 16 masked, 2 random, 2 kept of 20, but for random tokens that happen to be [MASK] or the token itself
    assert 16 <= masked.sum(1).min() and masked.double().sum(1).mean() == pytest.approx(16 + 2 / V, abs=0.01)
    assert 2 <= kept.sum(1).min() and kept.double().sum(1).mean() == pytest.approx(2 + 2 / V, abs=0.01)
    drawn = now[~masked & ~kept]
    assert stats.kstest(drawn.numpy() / V, "uniform").statistic < 0.02
    where = torch.bincount(problem.scored[masked], minlength=100)  # replacement is independent of the position
    assert stats.chisquare(where.numpy()).pvalue > 1e-4


def test_visible_only_reads_what_is_not_hidden():
    ids = text()
    problem = mlm(ids, noise(), VOCAB, ObjectiveConfig(objective="mlm", mask_rate=0.4, visible_only=True))
    for row in range(64):
        visible = [c for c in range(32) if c not in problem.scored[row].tolist()]
        assert problem.source_pos[row].tolist() == visible
        assert problem.source[row].tolist() == ids[row, visible].tolist()


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.6, 0.99])
def test_tsdae_counts(rate, positions):
    ids = torch.arange(32).repeat(64, 1)  # a token is its column
    problem = tsdae(ids, noise(), VOCAB, ObjectiveConfig(delete_rate=rate, positions=positions))
    assert problem.source.shape == (64, 32 - max(1, min(round(rate * 32), 31)))
    assert (problem.source.diff(dim=1) > 0).all()  # in order, none twice
    assert torch.equal(problem.targets, ids) and problem.query_ids is None and problem.scored is None
    assert problem.source_pos is None if positions == "compact" else torch.equal(problem.source_pos, problem.source)


def test_tsdae_deletes_every_column_alike():
    ids = torch.arange(32).repeat(8000, 1)
    kept = torch.bincount(tsdae(ids, noise(8000), VOCAB, ObjectiveConfig()).source.flatten(), minlength=32)
    assert stats.chisquare(kept.numpy()).pvalue > 1e-4


def test_scored_share_is_exact_and_independent_of_deletion():
    ids = torch.arange(32).repeat(8000, 1)
    problem = tsdae(ids, noise(8000), VOCAB, ObjectiveConfig(score_rate=0.25, delete_rate=0.5))
    assert problem.scored.shape == (8000, 8) and (problem.scored.diff(dim=1) > 0).all()
    survived = torch.zeros_like(ids, dtype=torch.bool).scatter(1, problem.source, True)
    assert survived.gather(1, problem.scored).double().mean() == pytest.approx(0.5, abs=0.01)


def test_special_tokens_are_chosen_last():
    ids = text()
    problem = mlm(ids, noise(), VOCAB, ObjectiveConfig(objective="mlm", mask_rate=0.95))
    assert not (problem.scored == 5).any()
    problem = tsdae(ids, noise(), VOCAB, ObjectiveConfig(delete_rate=0.95))
    assert (problem.source == 508).sum(1).eq(1).all()
    problem = mlm(torch.full((4, 8), 508), noise(4), VOCAB, ObjectiveConfig(objective="mlm", mask_rate=0.5))
    assert problem.scored.shape == (4, 4)  # nothing else to choose: the count stays exact


def test_count():
    assert [count(r, 10) for r in (0.01, 0.3, 0.99)] == [1, 3, 9]


# ---- weights by idf


@pytest.mark.parametrize("kw", [kw for kw in CONFIGS if "idf" in kw.values() or "bow" in kw["objective"]])
def test_weights_are_as_idf_and_sum_to_one_over_rows(kw):
    ids, config = text(), ObjectiveConfig(**kw)
    ids[3] = 508  # a row in which no token tells anything
    for problem in make_problems(ids, noise(), VOCAB, config):
        assert torch.equal(problem.targets, ids)
        for row in range(64):
            columns = range(32) if problem.scored is None else problem.scored[row].tolist()
            idf = [0.0 if ids[row, c] in SPECIAL else IDF[ids[row, c]].item() for c in columns]
            expected = [x / sum(idf) / 64 if row != 3 else 0.0 for x in idf]
            assert problem.weights[row].tolist() == pytest.approx(expected, abs=1e-7)
            assert problem.weights[row].sum().item() == pytest.approx(1 / 64 if row != 3 else 0, abs=1e-6)


def test_bow_reads_and_says_the_whole_row():
    ids = text()
    problem = bow(ids, noise(), VOCAB, ObjectiveConfig(objective="bow"))
    assert torch.equal(problem.source, ids) and torch.equal(problem.targets, ids)
    assert problem.query_pos is problem.query_ids is problem.scored is problem.source_pos is None
    assert problem.weights[:, 5].eq(0).all() and problem.weights[:, 6:].gt(0).all()


# ---- views

PLACES = Vocabulary(10**6, 999_999, (999_998,))


def places(rows=16, n=20):
    """Ids that tell their row and column, and the rows' documents: 0 0 0 0 1 1 1 1 ..."""
    return torch.arange(rows)[:, None] * 100 + torch.arange(n), torch.arange(rows) // 4


def origins(views, rows=16):
    """Which rows of ids each text's two views come from."""
    pairs, same = [(i, i + 1) for i in range(0, rows, 2)], [(i, i) for i in range(rows)]
    if views == "both":  # of each four rows two are a pair, and two stand for themselves
        return pairs[0::2] + same[2::4] + same[3::4]
    return pairs if views == "adjacent" else same


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("views", ["adjacent", "deletion", "both"])
def test_views(views, rate):
    config = ObjectiveConfig(objective="contrastive", views=views, view_delete_rate=rate)
    ids, documents = places()
    problem = contrastive(ids, noise(16), PLACES, config, documents=documents)
    assert problem.views == 2 and problem.targets is problem.query_pos is problem.source_pos is None
    row, column = problem.source // 100, problem.source % 100
    found = [tuple(pair) for pair in torch.stack(row[:, 0].chunk(2), 1).tolist()]
    assert found == origins(views) and row.eq(row[:, :1]).all()
    left = 20 if views == "adjacent" else 20 - max(1, round(rate * 20))
    assert column.shape[1] == left and (column.diff(dim=1) > 0).all()  # the exact count; in order, none twice
    assert torch.equal(problem.group, documents[row[:, 0]]) and len(problem.group) == len(problem.source)
    if views != "adjacent" and rate == 0.4:  # no two views of a text, and no two texts, lose the same
        assert len({tuple(c) for c in column.tolist()}) == len(column)
    unknown = contrastive(ids, noise(16), PLACES, config).group.chunk(2)
    apart = 8 if views != "deletion" else 16  # a pair is of one document, whichever it is
    assert torch.equal(*unknown) and len(unknown[0].unique()) == apart


def test_views_delete_every_column_alike_and_special_tokens_last():
    ids = torch.arange(20).repeat(8000, 1)
    config = ObjectiveConfig(objective="contrastive", views="deletion", view_delete_rate=0.5)
    a, b = contrastive(ids, noise(8000), PLACES, config).source.chunk(2)
    assert stats.chisquare(torch.bincount(a.flatten(), minlength=20).numpy()).pvalue > 1e-4
    kept = torch.zeros_like(ids, dtype=torch.bool).scatter(1, a, True)
    assert kept.gather(1, b).double().mean() == pytest.approx(0.5, abs=0.01)  # the two deletions are independent
    config = ObjectiveConfig(objective="contrastive", views="deletion", view_delete_rate=0.95)
    assert contrastive(text(), noise(), VOCAB, config).source.eq(508).sum(1).eq(1).all()


@pytest.mark.parametrize("views", ["adjacent", "deletion", "both"])
def test_views_do_not_depend_on_the_micro_batch(views):
    """Of a sum only the number of the noise's calls is another."""
    config, (ids, documents) = ObjectiveConfig(objective="contrastive", views=views), places()
    whole = contrastive(ids, noise(16), PLACES, config, documents=documents)
    by_rows = {tuple(pair): (a.tolist(), b.tolist()) for pair, a, b in zip(
        origins(views), *whole.source.chunk(2), strict=True)}  # fmt: skip
    for rows in (torch.arange(8, 16), torch.tensor([12, 13, 14, 15, 4, 5, 6, 7])):
        (part,) = make_problems(ids[rows], Noise(3, 7, rows), PLACES, config, documents[rows])
        for a, b in zip(*part.source.chunk(2), strict=True):
            assert by_rows[int(a[0]) // 100, int(b[0]) // 100] == (a.tolist(), b.tolist())
        assert torch.equal(part.group, documents[part.source[:, 0] // 100])
    summed = ObjectiveConfig(objective="bow + contrastive", views=views)
    vocab = Vocabulary(10**6, 999_999, idf=torch.ones(10**6))
    second = make_problems(ids, noise(16), vocab, summed, documents)[1]
    assert torch.equal(second.source, contrastive(ids, noise(16), vocab, summed, call=8, documents=documents).source)


# ---- the leak test


@pytest.mark.parametrize("kw", CONFIGS)
def test_nothing_leaks(kw):
    """
    With the noise fixed, clean tokens at hidden scored positions are changed to others of the same class: all of the
    Problem but its targets, and their weights, stays bit-equal. Exceptions: mlm's kept 10 % (shown by design), TSDAE's
    survivors, and bow, which hides nothing: it reads the very row it says.
    """
    ids, config = text(), ObjectiveConfig(**kw)
    before = make_problems(ids, noise(), VOCAB, config)
    for part, problem in enumerate(before):
        scored = torch.zeros_like(ids, dtype=torch.bool)
        scored = scored.scatter(1, problem.scored, True) if problem.scored is not None else ~scored
        name = names(config)[part]
        if name == "bow":
            assert torch.equal(problem.source, ids) and problem.query_ids is None
            continue
        if name == "tsdae":
            where = problem.source_pos
            if where is None:  # compact: ask the same noise where the survivors stood
                original = ObjectiveConfig(**{**kw, "positions": "original"})
                where = make_problems(ids, noise(), VOCAB, original)[part].source_pos
            scored = scored.scatter(1, where, False)
        if config.replace == "80_10_10":
            scored &= problem.source != ids
        hidden = scored & (ids < 508)
        assert hidden.any()
        changed = torch.where(hidden, (ids + 1 + torch.arange(32) * 7) % 508, ids)
        after = make_problems(changed, noise(), VOCAB, config)[part]
        for field in fields(problem):
            a, b = getattr(problem, field.name), getattr(after, field.name)
            if field.name == "targets":
                assert torch.equal(a != b, changed != ids)
            elif field.name == "weights":
                assert (a is None) == (b is None) == (config.token_weight == "none")
            elif torch.is_tensor(a):
                assert torch.equal(a, b), field.name
            else:
                assert a is b or a == b, field.name


# ---- configuration


def test_parse_objective():
    assert parse_objective("tsdae + 0.1*mlm") == [(1.0, "tsdae"), (0.1, "mlm")]
    assert parse_objective("2 * mlm") == [(2.0, "mlm")]
    for wrong in ("", "tsdae +", "nope", "0*mlm", "mlm*2", "mlm + mlm", "-1*mlm"):
        with pytest.raises(ValueError, match="objective"):
            parse_objective(wrong)


IMPOSSIBLE = dict(mask_rate=0), dict(delete_rate=1.0), dict(score_rate=0), dict(score_rate=1.1)
IMPOSSIBLE += dict(view_delete_rate=0), dict(view_delete_rate=1.0), dict(temperature=0), dict(temperature=-0.05)


@pytest.mark.parametrize("kw", IMPOSSIBLE)
def test_impossible_rates(kw):
    with pytest.raises(ValueError, match="take"):
        ObjectiveConfig(**kw)


def test_unused_keys():
    views, tsdae = {"views", "view_delete_rate", "temperature"}, {"delete_rate", "positions", "score_rate"}
    mlm = {"mask_rate", "mask_unit", "replace", "visible_only"}
    assert unused_keys(ObjectiveConfig(objective="mlm")) == tsdae | views
    assert unused_keys(ObjectiveConfig(objective="tsdae")) == mlm | views
    assert unused_keys(ObjectiveConfig(objective="tsdae + mlm + contrastive")) == set()
    everything = mlm | tsdae | views | {"token_weight"}
    assert everything | {"objective"} == {field.name for field in fields(ObjectiveConfig)}
    assert unused_keys(ObjectiveConfig(objective="bow")) == everything
    assert unused_keys(ObjectiveConfig(objective="contrastive + bow")) == everything - views
    given = ObjectiveConfig(objective="tsdae + contrastive", views="adjacent")
    assert unused_keys(given) == mlm | {"view_delete_rate"}


NEEDS = {  # objective: idf if token_weight is none, idf if it is idf, pairs, decoder
    "mlm": (False, True, False, None),
    "tsdae": (False, True, False, None),
    "bow": (True, True, False, "bag"),
    "contrastive": (False, False, True, "none"),
    "bow + 0.5*contrastive": (True, True, True, "bag"),
    "tsdae + bow": (True, True, False, None),
    "0.3*contrastive + mlm": (False, True, True, None),
}


@pytest.mark.parametrize("objective", NEEDS)
def test_needs(objective):
    config = ObjectiveConfig(objective=objective)
    weighted = ObjectiveConfig(objective=objective, token_weight="idf")
    assert (needs_idf(config), needs_idf(weighted), needs_pairs(config), needed_decoder(config)) == NEEDS[objective]
    assert needs_pairs(ObjectiveConfig(objective=objective, views="adjacent")) == needs_pairs(config)
    assert not needs_pairs(ObjectiveConfig(objective=objective, views="deletion"))
    assert names(config) == [name for _, name in parse_objective(objective)]
