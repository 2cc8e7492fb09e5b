"""Numbers that surprise are said before they cost a run: warm-up, epochs, the size of the vocabulary."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from registries import read_config

import train
from lab.data.corpus import MIN_WINDOWS, Corpus, CorpusWriter, warn_of_vocabulary
from lab.data.sampler import Sampler
from lab.data.tokenizers import SPECIAL_NAMES
from lab.training import horizon
from lab.training.horizon import warn_of_horizon
from lab.training.plan import make_plan
from objectives import ObjectiveConfig, Objectives
from tests.training import PRESETS, run

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("n", [3, 16, 24, 32, 40, 90])
@pytest.mark.parametrize("rule", [(False, False), (True, False), (True, True)], ids=["any", "one document", "pairs"])
def test_what_rows_can_hold_is_what_a_loop_marks(n, rule, data):
    corpus = Corpus(data / "toy", "train")
    sampler, held = Sampler(corpus, (), 0, *rule), np.zeros(corpus.count, bool)
    sentences = np.arange(corpus.sentences.size)
    for second in (0, 1) if rule[1] else (0,):
        for start, rows in zip(*sampler.places(n, sentences, second), strict=True):
            held[start : start + rows + n - 1] |= rows > 0
    expected = held.sum()
    assert sampler.reach(n) == pytest.approx(max(expected, MIN_WINDOWS), rel=0.15 if rule[1] else 0.06, abs=60)


def test_it_is_estimated_from_some_sentences(data, monkeypatch):
    sampler = Sampler(Corpus(data / "toy", "train"), (), 0)
    whole, linspace = sampler.reach(32), np.linspace
    monkeypatch.setattr(np, "linspace", lambda first, last, count: linspace(first, last, 500))
    assert sampler.reach(32) == pytest.approx(whole, rel=0.15)


def said(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def of_horizon(capsys, corpus, steps, lengths=(16, 32), batch_size=8, **keys):
    config = train.TrainConfig(lengths=lengths, batch_size=batch_size, max_steps=steps, **keys)
    made = make_plan(config, Objectives(ObjectiveConfig()), 1)
    sampler = Sampler(corpus, lengths, 0)
    warn_of_horizon(config, made, sampler, steps)
    return said(capsys)


@pytest.mark.parametrize(
    "steps, warmup, rises",
    [(100, 3000, "3%"), (10, 300, "3%"), (10, 10, "100%"), (10, 5, "100%"), (10, 4, ""), (1, 0, "")],
)
def test_a_warm_up_that_takes_most_of_the_run(steps, warmup, rises, data, capsys):
    found = of_horizon(capsys, Corpus(data / "toy", "train"), steps, warmup=warmup)
    assert len(found) == bool(rises)
    for line in found:
        assert f"warmup={warmup} of {steps} steps: the learning rate rises to {rises} of lr=0.001" in line
        assert line.endswith(f"; write --warmup={steps // 10}")


@pytest.mark.parametrize("horizon", ["max_tokens=1280", "max_minutes=0.005"])
def test_it_is_said_when_the_steps_are_known(horizon, data, tmp_path, capsys):
    assert run(data, tmp_path / "run", "--token_init=random", f"--{horizon}", "--warmup=9999") == 0
    (found,) = said(capsys)
    assert re.search(r"warmup=9999 of \d+ steps: .* to \d% of", found)
    assert run(data, tmp_path / "run", "--token_init=random", f"--{horizon}", "--warmup=9999") == 0
    assert not said(capsys)  # nothing is left to be trained


def few_long_sentences(data, folder):
    """The toy corpus with a hundredth of its sentences: those are all there are of 32 tokens."""
    source = Corpus(data / "toy", "train")
    starts, ends = source.sentence_spans(np.arange(source.sentences.size))
    long, kept = 0, []
    for i, length in enumerate(ends - starts):
        if length < 32 or long < 60:
            kept.append(i)
            long += length >= 32
    folder.mkdir()
    for name in ("tokenizer.json", "val.bin", "meta.json"):
        (folder / name).write_bytes((data / "toy" / name).read_bytes())
    special = dict(zip(SPECIAL_NAMES, (source.eod, source.mask, source.pad, source.sep), strict=True))
    writer = CorpusWriter(folder / "train.bin", source.vocab_size, special, source.tokenizer_hash)
    for i in kept:
        ids = np.append(source.tokens[starts[i] : ends[i]][: ends[i] - starts[i]], source.eod)
        writer.append(ids[: len(ids) - (ids[-2] == source.eod)], [0], [0])
    writer.close()
    return Corpus(folder, "train")


def test_epochs_count_what_rows_of_a_length_can_hold(data, tmp_path, monkeypatch, capsys):
    """Half of the tokens are drawn from the few sentences of 32 tokens; by corpus tokens it would be one epoch."""
    corpus = few_long_sentences(data, tmp_path / "toy")
    monkeypatch.setattr("lab.data.sampler.MIN_WINDOWS", 1)
    starts, ends = corpus.sentence_spans(np.arange(corpus.sentences.size))
    long = int((ends - starts)[ends - starts - 1 >= 32].sum())
    steps = 100
    expected = steps * 256 / 2 / long + steps * 256 / 2 / corpus.count
    assert steps * 256 < 2 * corpus.count and expected > 3
    monkeypatch.setattr(horizon, "EPOCHS", 3)
    (found,) = of_horizon(capsys, corpus, steps, warmup=0)
    assert float(re.search(r"drawn for (\d+) epochs", found)[1]) == pytest.approx(expected, abs=0.6)
    assert int(re.search(r"write --max_steps=(\d+)", found)[1]) == pytest.approx(steps * 3 / expected, rel=0.1)
    assert not of_horizon(capsys, corpus, steps, warmup=0, length_mix=(1.0, 0.0))
    monkeypatch.setattr(horizon, "EPOCHS", 50)
    assert not of_horizon(capsys, corpus, steps, warmup=0)
    plain = Corpus(data / "toy", "train")
    for epochs, least in (51, 1), (45, 0):
        found = of_horizon(capsys, plain, -(-epochs * plain.count // 128), (16,), warmup=0)
        assert len(found) == least and all("drawn for 5" in line for line in found)


def test_a_vocabulary_too_large_for_its_text(data, tmp_path, capsys, monkeypatch):
    corpus = Corpus(data / "toy", "train")
    monkeypatch.setattr("lab.data.corpus.ENTRY_TOKENS", corpus.count // corpus.vocab_size + 1)
    assert run(data, tmp_path / "run", "--max_steps=1", "--warmup=0", "--token_init=random") == 0
    (found,) = said(capsys)
    made = json.loads((tmp_path / "run" / "config.json").read_text())["vocab_size"]
    assert made == corpus.vocab_size  # the preset leaves it to the data
    assert f"{corpus.count:,} tokens of training text" in found and re.search("with --tokenizer=bpe:260$", found)
    monkeypatch.setattr("lab.data.corpus.ENTRY_TOKENS", corpus.count // corpus.vocab_size)
    warn_of_vocabulary(corpus)
    assert capsys.readouterr().err == ""


def test_only_the_originals_exact_sizes_set_a_vocabulary():
    for path in PRESETS:
        values = {key: value for key, (value, _) in read_config(path, ROOT).items()}
        assert values.get("vocab_size", 0) == (50368 if values.get("original_structure") else 0), path
        assert not values.get("original_structure") or "tied" in values
    for path in (ROOT / "config/grids").glob("*.py"):
        values = {key: value for key, (value, _) in read_config(path, ROOT).items()}
        assert values.get("vocab_size", 0) == (50368 if values.get("original_structure") else 0), path
