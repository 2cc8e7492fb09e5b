"""Collocations: their scores against a plain loop over all cuts, the phrases of a row against a plain greedy search."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from lab.configurator import UserError
from lab.data import pmi
from lab.data.corpus import Corpus
from lab.data.tokenizers import load_tokenizer, word_starts
from noise import PRIME, phrase_hashes, phrase_starts
from tests.training import run


def test_hashes_of_phrases_do_not_depend_on_their_place():
    ids = torch.randint(0, 60_000, (4, 300), generator=torch.Generator().manual_seed(0))
    ids[1, 200:240] = ids[0, 7:47]
    begin, end = torch.tensor([[7], [200], [7], [7]]), torch.tensor([[47], [240], [47], [46]])
    found = phrase_hashes(ids, begin, end).flatten().tolist()
    assert found[0] == found[1] and len(set(found)) == 3
    by_hand = sum((t + 1) * pow(PRIME, i, 1 << 64) for i, t in enumerate(ids[0, 7:47].tolist())) % (1 << 64)
    assert found[0] % (1 << 64) == by_hand


def words_of(ids, words):
    """Tuples of tokens."""
    found = []
    for token, begins in zip(ids, words, strict=True):
        found = [*found, (token,)] if begins else [*found[:-1], found[-1] + (token,)]
    return found


def test_phrases_are_the_longest_from_left_to_right():
    """Tokens 0 ... 5, few enough for many matches; 5 stands for a special token, a word by itself."""
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 6, (200, 24), generator=chance)
    words, last = torch.rand(200, 24, generator=chance) < 0.7, ids == 5
    words |= last
    words[:, 1:] |= last[:, :-1]
    words[:, 0] = True
    every = [words_of(*row) for row in zip(ids.tolist(), words.tolist(), strict=True)]
    known, hashes = set(), []
    for row, (text, own) in enumerate(zip(every, zip(ids, words, strict=True), strict=True)):
        edges = [*own[1].nonzero().flatten().tolist(), 24]
        for i in range(0, len(text) - 5, 4):
            m = 2 + (row + i) % 4
            known.add(tuple(text[i : i + m]))
            hashes.append(
                phrase_hashes(own[0][None], torch.tensor([[edges[i]]]), torch.tensor([[edges[i + m]]])).item()
            )
    table = torch.tensor(sorted(set(hashes)))
    flat = {sum(words, ()) for words in known}  # a phrase is known by its tokens
    assert len(table) == len(flat)
    found = phrase_starts(ids, words, last, table)
    for row, text in enumerate(every):
        expected, i = [], 0
        while i < len(text):
            sizes = [m for m in range(2, 6) if i + m <= len(text) and sum(text[i : i + m], ()) in flat]
            sizes = [m for m in sizes if 5 not in sum(text[i : i + m], ())]
            expected.append(sum(map(len, text[:i])))
            i += max(sizes, default=1)
        assert found[row].nonzero().flatten().tolist() == expected


def test_scores_are_the_least_over_all_cuts(data):
    """Of every n-gram of words of the corpus that is there often enough, by plain counting."""
    text = Corpus(data / "toy", "train")
    starts = word_starts(load_tokenizer(data / "toy" / "tokenizer.json"))
    grams = [{} for _ in range(5)]
    tokens = text.tokens.tolist()
    begins, row = [], []  # row: its words
    for i, token in enumerate(tokens):
        begins.append(i == 0 or bool(starts[token]) or token in text.special_ids or tokens[i - 1] in text.special_ids)
    for token, begin in zip(tokens, begins, strict=True):
        if begin:
            row.append([])
        row[-1].append(token)
    row = [tuple(word) for word in row]
    special = [word[0] in text.special_ids for word in row]
    for n, i in itertools.product(range(1, 6), range(len(row))):
        if i + n <= len(row) and not any(special[i : i + n]):
            own = tuple(row[i : i + n])
            grams[n - 1][own] = grams[n - 1].get(own, 0) + 1
    totals = [sum(table.values()) for table in grams]

    def share(own):
        return math.log(grams[len(own) - 1][own] / totals[len(own) - 1])

    def score(own):
        n, least = len(own), math.inf
        for cuts in itertools.product([False, True], repeat=n - 1):
            if any(cuts):
                edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
                parts = [own[a:b] for a, b in itertools.pairwise(edges)]
                least = min(least, share(own) - sum(map(share, parts)))
        return least

    expected = []
    for n, part in pmi.SHARES.items():
        found = {own: score(own) for own, times in grams[n - 1].items() if times >= 10}
        best = sorted((s for s in found.values() if s > 0), reverse=True)[: round(part * 200)]
        expected.append((len(best), {sum(own, ()) for own, s in found.items() if s > best[-1] + 1e-9}))
    kept = pmi.collocations(text, starts, pmi.PMI(size=200, min_count=10))
    assert len(kept) == sum(count for count, _ in expected) and (np.diff(kept) > 0).all()
    for _, sure in expected:  # ties at the end of the list may fall either way
        for own in sure:
            ids = torch.tensor([own])
            assert phrase_hashes(ids, torch.tensor([[0]]), torch.tensor([[len(own)]])).item() in kept


def test_counts_in_bounded_memory_keep_what_is_frequent():
    counts, chance = pmi.Counts(1000), np.random.default_rng(0)
    for _ in range(20):
        counts.add(np.concatenate([np.repeat(np.arange(100), 5), chance.integers(1000, 1 << 60, 3000)]))
        assert len(counts.hashes) <= 1000
    assert counts.total == 20 * 3500 and counts.counts[:100].tolist() == [100] * 100


def test_a_run_with_collocations(data, tmp_path):
    words = ["--objective=mlm", "--mask_unit=pmi", "--max_steps=2", "--eval_interval=0", "--warmup=0"]
    with pytest.raises(UserError, match="run python -m lab.data.pmi --dataset=toy"):
        run(data, tmp_path / "run", *words)
    assert pmi.main(["--dataset=toy", f"--data_dir={data}", "--size=100"]) == 0
    assert run(data, tmp_path / "run", *words) == 0
    meta = data / "toy" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"created": "later"}))
    with pytest.raises(UserError, match="of other text; run python -m lab.data.pmi --dataset=toy"):
        run(data, tmp_path / "other", *words)
    (data / "toy" / pmi.FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        run(data, tmp_path / "other", *words)
