"""Words and spans that are hidden or deleted whole: a slow reference, exact counts, and statistics of many rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from noise import Noise, count, span_lengths
from objectives import ObjectiveConfig, Objectives
from problem import Rows, Vocabulary

V, MASK, EOD, STARTS = 600, 599, 598, 400  # of ids below 598 those below 400 begin a word
VOCAB = Vocabulary(V, MASK, (EOD,), idf=torch.ones(V), starts=torch.arange(V) < STARTS)
UNITS = {"word": "", "geometric": "geometric", "uniform": "uniform"}


def geometric(longest):
    """P(1 ... longest words)"""
    return [0.8**i * 0.2 / (1 - 0.8**longest) for i in range(longest)]


def text(rows, n, seed=0, eod=0.02, starts=0.7):
    """Rows of words of about 1/starts tokens, cut out of a longer text, with some ends of documents."""
    random = torch.Generator().manual_seed(seed)
    begins, ends = (torch.rand(rows, n, generator=random) < p for p in (starts, eod))
    ids = torch.randint(0, 198, (rows, n), generator=random) + torch.where(begins, 0, STARTS)
    return torch.where(ends, EOD, ids)


def problem(ids, step=3, numbers=None, **keys):
    numbers = torch.arange(len(ids)) if numbers is None else numbers
    unit = keys.pop("unit", None)
    if unit:
        keys |= {"mask_unit": "span", "span": unit} if UNITS[unit] else {"mask_unit": "word"}
    (only,) = Objectives(ObjectiveConfig(**keys)).problems(Rows(ids, Noise(5, step, numbers), VOCAB))
    return only


def hidden_of(made, ids):
    return torch.zeros_like(ids, dtype=torch.bool).scatter(1, made.scored, True)


# ---- the slow reference


def words_of(row):
    """Lists of columns; an end of document is a word by itself."""
    words = []
    for column, token in enumerate(row):
        if not words or token < STARTS or token == EOD or row[column - 1] == EOD:
            words.append([])
        words[-1].append(column)
    return words


def spans_of(words, row, span, draws):
    """The words, or tokens, as a ring from a random one on, in spans of drawn lengths: lists of words."""
    n = len(row)
    if span == "uniform":
        words = [[column] for column in range(n)]
    first = max(range(len(words)), key=lambda i: draws[n + words[i][0]])
    lengths, spans, left = iter(span_lengths(span, torch.tensor(draws[:n])).tolist()), [], 0
    for word in words[first:] + words[:first]:
        special = row[word[0]] == EOD
        if left == 0:
            left, fresh = next(lengths), True
        if fresh or special or row[spans[-1][-1][0]] == EOD:
            spans.append([])
        spans[-1].append(word)
        left, fresh = left - 1, False
    return spans


def slow(row, k, call, noise, number, span):
    """The columns hidden of a row, a set of exactly k."""
    n = len(row)
    bits, draws = (noise.bits(call + i, m)[number].tolist() for i, m in ((0, n), (2, 2 * n)))
    words = words_of(row)
    units = spans_of(words, row, span, draws) if span else [[word] for word in words]
    place = {c: i for i, c in enumerate(c for unit in units for word in unit for c in word)}  # in the ring
    units.sort(key=lambda unit: (row[unit[0][0]] == EOD, bits[place[unit[0][0]]]))
    text, special = ([word for u in units for word in u if (row[word[0]] == EOD) is end] for end in (False, True))
    hidden = []
    while text and len(hidden) + len(text[0]) <= k:
        hidden += text.pop(0)
    for word in [word for word in text if len(word) == 1]:
        if len(hidden) < k:
            hidden += word
            text.remove(word)
    rest = [column for word in text + special for column in word]  # of one word
    return set(hidden + rest[: k - len(hidden)])


@pytest.mark.parametrize("unit", UNITS)
@given(st.floats(0.02, 0.98), st.integers(2, 40), st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.9]))
@settings(max_examples=60)
def test_hidden_are_those_of_the_slow_reference(unit, rate, n, seed, eod):
    ids = text(6, n, seed, eod, starts=0.3 + 0.7 * (seed % 3) / 2)
    made = problem(ids, objective="mlm", mask_rate=rate, unit=unit)
    noise, k = Noise(5, 3, torch.arange(6)), count(rate, n)
    assert made.scored.shape == (6, k)
    for number, row in enumerate(ids.tolist()):
        assert set(made.scored[number].tolist()) == slow(row, k, 0, noise, number, UNITS[unit])


# ---- statistics

PLACES = [("word", 0.3), ("geometric", 0.15), ("geometric", 0.8), ("uniform", 0.3)]


def word_columns(ids):
    """[B, N] the first column of each token's word; [B, N] tokens of the word."""
    special = ids == EOD
    starts = (ids < STARTS) | special
    starts[:, 1:] |= special[:, :-1]
    starts[:, 0] = True
    number = starts.cumsum(1) - 1
    return number, torch.zeros_like(ids).scatter_add(1, number, torch.ones_like(ids)).gather(1, number)


@pytest.mark.parametrize("unit, rate", PLACES)
def test_counts_are_exact_and_no_place_is_hidden_more_often(unit, rate):
    """40,000 rows. But words that an end of the row cuts are shorter, and fit a little more often."""
    n, at_place, cut, rows = 64, torch.zeros(64), 0, 20_000
    for step in range(2):
        ids = text(rows, n, seed=step)
        made = problem(ids, step, objective="mlm", mask_rate=rate, unit=unit)
        hidden = hidden_of(made, ids)
        assert hidden.sum(1).eq(round(rate * n)).all()
        assert torch.equal(made.source, torch.where(hidden, MASK, ids)) and torch.equal(made.source, made.query_ids)
        assert not hidden[ids == EOD].any()  # there is enough else
        number, size = word_columns(ids)
        of_word = torch.zeros_like(ids).scatter_add(1, number, hidden.long()).gather(1, number)
        cut_here = ((of_word > 0) & (of_word < size)).long() / size  # each such word adds up to one
        cut += cut_here.sum().item()
        assert unit == "uniform" or cut_here.sum(1).max() < 1.01  # at most one word of a row
        at_place += hidden.sum(0) / ids.ne(EOD).sum(0)
    off = (at_place / at_place.mean() - 1).abs()
    assert off[1:-1].max() < 0.05 and off.max() < (0.03 if unit == "uniform" else 0.12)
    assert unit == "uniform" or cut / 4e4 < (0.001 if rate < 0.5 else 0.1)  # while one-token words are left


@pytest.mark.parametrize("span, longest", [("geometric", 2), ("geometric", 10), ("uniform", 10)])
def test_lengths_of_spans(span, longest):
    """As drawn, and as they are hidden."""
    lengths = span_lengths(span, Noise(1, 2, torch.arange(100_000)).bits(0, 4), longest).flatten()
    expected = geometric(longest) if span == "geometric" else [0, 0] + [1 / (longest - 2)] * (longest - 2)
    expected = torch.tensor(expected, dtype=torch.float64)
    assert expected.sum().item() == pytest.approx(1)
    found = torch.bincount(lengths, minlength=longest + 1)[1:]
    keep = expected > 0
    assert stats.chisquare(found[keep].numpy(), (expected[keep] * len(lengths)).numpy()).pvalue > 1e-3
    assert found[~keep].sum() == 0
    mean = sum(p * i for i, p in enumerate(expected.tolist(), 1))
    assert lengths.double().mean().item() == pytest.approx(mean, abs=0.02)
    assert longest != 10 or mean == pytest.approx(6.5 if span == "uniform" else 3.797, abs=1e-3)

    words = torch.ones(10_000, 128, dtype=torch.bool)
    rows = [Noise(7, i, torch.arange(10_000)) for i in range(3)]
    units = torch.cat([noise.order_units(0, words, ~words, 64, span, longest)[1] for noise in rows])
    spans = torch.zeros_like(units).scatter_add(1, units[:, :64], torch.ones_like(units))
    assert spans.sum().item() / (spans > 0).sum().item() == pytest.approx(mean, rel=0.08)  # one of a row is cut


def test_spans_grow_over_training():
    """In six parts, and as long as they say: one word at first. Without a pair ten is the longest."""
    config = ObjectiveConfig(objective="mlm", mask_unit="span", max_span=(1, 10))
    every = Objectives(config).plateaus()
    assert [x.parts[0].config.max_span for x in every] == [1, 3, 5, 6, 8, 10] and len(every) == 6
    assert len(Objectives(ObjectiveConfig(objective="mlm", max_span=(1, 10))).plateaus()) == 1  # no spans
    ids = text(50, 64)
    rows = [Rows(ids, Noise(5, 3, torch.arange(50)), VOCAB) for _ in range(3)]
    first, last = (every[i].problems(rows[i])[0] for i in (0, -1))
    plain = ObjectiveConfig(objective="mlm", mask_unit="span")
    assert torch.equal(last.source, Objectives(plain).problems(rows[2])[0].source)
    number, size = word_columns(ids)
    words = torch.zeros_like(ids).scatter_add(1, number, hidden_of(first, ids).long())
    runs = [((made.source == MASK).long().diff(dim=1) == 1).sum().item() for made in (first, last)]
    assert runs[0] > 1.5 * runs[1] and (words.gather(1, number) == size)[hidden_of(first, ids)].float().mean() > 0.9


@pytest.mark.parametrize("keys", [{"max_span": 0}, {"max_span": (1, 65)}, {"max_span": 2, "span": "uniform"}])
def test_spans_that_are_none(keys):
    with pytest.raises(ValueError, match="max_span"):
        ObjectiveConfig(**keys)


@pytest.mark.parametrize("unit", UNITS)
def test_80_10_10_is_decided_for_each_span_and_for_each_token_of_words(unit):
    ids = text(20_000, 64, eod=0.0)
    made = problem(ids, objective="mlm", mask_rate=0.3, replace="80_10_10", unit=unit)
    hidden = hidden_of(made, ids)
    masked, kept = (made.source == MASK) & hidden, (made.source == ids) & hidden
    assert torch.equal(made.source[~hidden], ids[~hidden])
    drawn = made.source[hidden & ~masked & ~kept]
    assert (drawn < EOD).all() and drawn.unique().numel() == EOD
    assert [x.sum().item() / hidden.sum().item() for x in (masked, kept)] == pytest.approx([0.8, 0.1], abs=0.012)
    both = hidden[:, 1:] & hidden[:, :-1]
    alike = (masked[:, 1:] == masked[:, :-1])[both].double().mean().item()
    if unit == "word":
        assert masked.sum(1).eq(round(0.8 * 19)).all() and alike == pytest.approx(222 / 342, abs=0.01)
    else:
        assert alike > 0.85  # but where two spans touch


# ---- deletion


@given(st.floats(0.02, 0.98), st.integers(2, 40), st.integers(0, 1000), st.sampled_from([0.0, 0.1, 0.9]))
@settings(max_examples=60)
def test_deleted_words_are_those_of_the_slow_reference(rate, n, seed, eod):
    """The count is exact; compact and original read the same tokens, and a bag of survivors the very tensors."""
    ids = text(6, n, seed, eod)
    keys = dict(objective="tsdae", delete_rate=rate, delete_unit="word")
    made, noise, k = problem(ids, positions="original", **keys), Noise(5, 3, torch.arange(6)), count(rate, n)
    assert made.source_pos.shape == (6, n - k) and torch.equal(made.source, problem(ids, **keys).source)
    for number, row in enumerate(ids.tolist()):
        assert set(range(n)) - set(made.source_pos[number].tolist()) == slow(row, k, 0, noise, number, "")
    both = ObjectiveConfig(**keys | {"objective": "tsdae + bow", "bow_source": "survivors"})
    a, b = Objectives(both).problems(Rows(ids, Noise(5, 3, torch.arange(6)), VOCAB))
    assert a.source is b.source and torch.equal(a.source, made.source)


# ---- the encoder reads another row than the decoder sees


@pytest.mark.parametrize("visible_only", [False, True])
@pytest.mark.parametrize("unit", [None, "geometric"])
def test_what_is_hidden_from_the_encoder_and_from_the_decoder(unit, visible_only):
    """Exact counts of both, drawn independently; a token hidden from both reaches nothing but the targets, one hidden
    from the decoder alone its own place in the encoder's row and no other."""
    ids, keys = text(4000, 40, eod=0.0), dict(objective="mlm", mask_rate=0.7, encoder_mask_rate=0.2, unit=unit)
    made = problem(ids, visible_only=visible_only, **keys)
    decoder = hidden_of(made, ids)
    encoder = problem(ids, **keys).source == MASK
    assert decoder.sum(1).eq(28).all() and encoder.sum(1).eq(8).all()
    assert torch.equal(made.query_ids, torch.where(decoder, MASK, ids))
    if visible_only:
        assert torch.equal(torch.zeros_like(encoder).scatter(1, made.source_pos, True), ~encoder)
    else:
        assert torch.equal(made.source, torch.where(encoder, MASK, ids))
    assert (encoder & decoder).sum().item() / encoder.sum().item() == pytest.approx(0.7, abs=0.02)
    alone = problem(ids, **keys | {"encoder_mask_rate": 0.0})  # the decoder's row and what is scored are as without
    assert torch.equal(alone.scored, made.scored) and torch.equal(alone.query_ids, made.query_ids)

    other = torch.where(ids < STARTS, (ids + 1) % 198, STARTS + (ids + 1 - STARTS) % 198)
    both = problem(torch.where(decoder & encoder, other, ids), visible_only=visible_only, **keys)
    assert torch.equal(both.source, made.source) and torch.equal(both.query_ids, made.query_ids)
    only = problem(torch.where(decoder & ~encoder, other, ids), visible_only=visible_only, **keys)
    assert torch.equal(only.query_ids, made.query_ids) and torch.equal(only.scored, made.scored)
    changed = decoder & ~encoder if not visible_only else (decoder & ~encoder).gather(1, made.source_pos)
    assert torch.equal(only.source != made.source, changed)
