"""nano.py is train.py in small: the same text, model, losses and optimiser, written again in one file.

What must be equal is held equal by loading and comparing; what differs is only what is drawn: nano.py draws rows,
deletions and first weights from torch's generator, train.py from hashes of (seed, step, row). So two whole runs are
alike only as two seeds are.
"""

import ast
import re
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import nano
from lab.data.corpus import Corpus
from lab.data.sampler import Sampler
from lab.training import optim
from lab.training.run_folder import RunFolder
from model import ConceptModel, ModelConfig
from noise import Noise
from objectives import ObjectiveConfig, Objectives
from problem import Rows, Vocabulary
from tests import training
from tests.corpus import sentence

ROOT = Path(__file__).resolve().parents[1]
TINY = nano.Config(
    vocab_size=320, hidden=32, heads=2, intermediate=32, layers=1, steps=150, batch_size=16, lr=0.01, warmup=10
)
OBJECTIVE = {"objective": "tsdae + bow", "bow_source": "survivors", "positions": "original", "delete_rate": 0.3}


def changed(config, **keys):
    return nano.Config(**asdict(config) | keys)


def write_text(path, paragraphs=400):
    """One document, so that both keep its last twentieth for validation."""
    chance = Random(0)
    path.write_text("\n".join(" ".join(sentence(chance) for _ in range(5)) for _ in range(paragraphs)))
    return path


def prepare(path, config):
    """data/text/prepare.py on a file -> the data folder beside it."""
    script = runpy.run_path(str(ROOT / "data/text/prepare.py"), run_name="prepare_text")
    flags = ["--name=toy", "--files", str(path), f"--data_dir={path.parent}", f"--tokenizer=bpe:{config.vocab_size}"]
    script["main"](flags)
    return path.parent / "toy"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def data(text):
    return prepare(text, TINY)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(TINY, data, tmp_path_factory.mktemp("out") / "run")


def train(config, data, out):
    """train.py with nano.py's configuration -> its run folder."""
    keys = asdict(config) | OBJECTIVE
    for ours, theirs in {"length": "max_length", "steps": "max_steps"}.items():
        keys[theirs] = keys.pop(ours)
    keys |= {"lengths": config.length, "vocab_size": 0, "token_init": "random", "whitening": 0.0}
    keys |= {"dataset": data.name, "data_dir": data.parent, "out_dir": out, "dtype": "float32", "device": "cpu"}
    keys |= {"compile": False, "eval_interval": 0, "final_report": "losses", "eval_tokens": 16 * 512}
    flags = [f"--{key}={value}" for key, value in keys.items() if key != "file"]
    assert training.main([str(ROOT / "config/quickstart.py"), *flags]) == 0
    return RunFolder(out)


def real_model(config, vocab_size, mask_id=0):
    keys = {key: value for key, value in asdict(config).items() if key in ("concepts", "hidden", "heads", "layers")}
    keys |= {"intermediate": config.intermediate, "max_length": config.length, "vocab_size": vocab_size}
    return ConceptModel(ModelConfig(**keys), mask_id, config.seed)


RENAMED = {  # in turn
    r"^norm": "decoder.2",
    r"^decoder\.positions": "queries",
    r"^decoder\.cross\.0": "decoder.0",
    r"^decoder\.ffns\.0": "decoder.1",
    r"^encoder\.slots\.content": "slots.weight",
    r"^encoder\.norm_tokens": "norm_tokens",
    r"^encoder\.norm\b": "norm_concepts",
    r"^encoder\.layers": "encoder",
    r"\.cross\.": ".0.",
    r"\.self_attention\.": ".1.",
    r"\.ffn\.": ".2.",
}


def as_nano(weights):
    """ConceptModel's tensors under nano.py's names; it has q, k and v of self-attention in one."""
    found = {}
    for name, tensor in weights.items():
        for theirs, ours in RENAMED.items():
            name = re.sub(theirs, ours, name)
        if name.endswith("qkv.weight"):
            width = tensor.shape[1]
            found[name.replace("qkv", "q")], found[name.replace("qkv", "kv")] = tensor.split([width, 2 * width])
        else:
            found[name] = tensor
    return found


# ---- equal parts


def test_it_is_small_and_imports_nothing_of_ours():
    source = (ROOT / "nano.py").read_text()
    assert len(source.splitlines()) <= 250
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.name for node in found if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in found if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names <= {"torch", "numpy", "tokenizers"}


def test_the_text_is_that_of_prepare(text, data):
    """Tokens, sentences, split and idf, to the last one; prepare.py's vocabulary begins with four special tokens."""
    special = 4
    _, *splits, idf = nano.prepare(text.read_text(), changed(TINY, vocab_size=TINY.vocab_size - special))
    for (tokens, starts), name in zip(splits, ("train", "val"), strict=True):
        corpus = Corpus(data, name)
        assert corpus.tokens[-1] == corpus.eod and len(corpus.documents) == 2
        assert np.array_equal(corpus.tokens[:-1] - special, tokens)
        assert np.array_equal(corpus.sentences, starts[:-1]) and starts[-1] == len(tokens)
    assert np.allclose(Corpus(data, "train").idf()[special:], idf)


def test_the_model_is_the_real_one():
    """As many parameters, by the same names; with the same weights the same concepts and losses."""
    config = changed(TINY, layers=3, heads=4, concepts=6)
    real, model = real_model(config, 300), nano.ConceptModel(config, 300)
    assert sum(p.numel() for p in model.parameters()) == real.num_parameters()
    fresh = model.state_dict()
    for name, tensor in as_nano(real.state_dict()).items():
        spread, expected = (float(x.std(correction=0)) for x in (fresh[name], tensor))
        assert spread == pytest.approx(expected, rel=5 * tensor.numel() ** -0.5)
        assert "norm" not in name or torch.equal(fresh[name], tensor)
    model.load_state_dict(as_nano(real.state_dict()))
    vocab = Vocabulary(300, 0, idf=torch.rand(300))
    rows = Rows(torch.randint(1, 300, (8, config.length)), Noise(0, 0, torch.arange(8)), vocab)
    problems = Objectives(ObjectiveConfig(**OBJECTIVE)).problems(rows)
    read = problems[0].source, problems[0].source_pos
    losses, (concepts, _) = real(*problems)
    assert torch.allclose(model.encode(*read), concepts, atol=1e-5)
    assert torch.allclose(torch.stack(model.losses(rows.ids, *read, vocab.idf)), torch.stack(losses), rtol=1e-5)


def test_rows_and_deletions():
    """Rows of one sentence where it is long enough, all of its windows; exactly round(rate * N) are deleted."""
    config = nano.Config(length=16, delete_rate=0.3)
    tokens, starts = torch.arange(100), torch.tensor([0, 5, 40, 97, 100])
    rows, ids, positions = nano.draw((tokens, starts), 4000, config)
    assert torch.equal(rows, rows[:, :1] + torch.arange(16)) and ids.shape == (4000, 16 - 5)
    assert torch.equal(rows.gather(1, positions), ids) and (positions[:, 1:] > positions[:, :-1]).all()
    firsts = {0, *range(5, 40 - 15), *range(40, 97 - 15), 100 - 16}  # the short ones run on; the last has no room to
    assert set(rows[:, 0].tolist()) == firsts
    assert positions.flatten().bincount().float().std() < 60  # of 2,750 each: none is spared


@pytest.mark.parametrize("warmup", [1, 10, 50])
def test_the_rate_is_that_of_train(warmup):
    config = nano.Config(steps=50, warmup=warmup)
    for step in range(50):
        expected = optim.learning_rate("cosine", config.lr, step, config.steps, warmup, 0.1)
        assert nano.learning_rate(step, config) == pytest.approx(expected)


# ---- equal runs


def test_with_the_same_draws_the_same_run(data, run, monkeypatch):
    """First weights, rows and deletions of train.py: after as many steps its weights."""
    corpus, objectives = Corpus(data, "train"), Objectives(ObjectiveConfig(**OBJECTIVE))
    idf, numbers = torch.from_numpy(corpus.idf()), np.arange(TINY.batch_size)
    vocab, sampler = Vocabulary(corpus.vocab_size, corpus.mask, corpus.special_ids, idf), Sampler(corpus, (16,), seed=0)
    model, steps = nano.ConceptModel(TINY, corpus.vocab_size), iter(range(TINY.steps))
    model.load_state_dict(as_nano(real_model(TINY, corpus.vocab_size, corpus.mask).state_dict()))
    begin = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def draw(split, size, config):
        step = next(steps) if split == "train" else 0
        ids = torch.from_numpy(sampler.batch(step, 16, numbers)[0])
        problem = objectives.problems(Rows(ids, Noise(0, step, torch.from_numpy(numbers)), vocab))[0]
        return ids, problem.source, problem.source_pos

    monkeypatch.setattr(nano, "draw", draw)
    monkeypatch.setattr(nano, "ConceptModel", lambda *_: model)
    nano.train(TINY, "train", "val", idf)
    for name, tensor in as_nano(load_file(run.checkpoint("latest") / "model.safetensors")).items():
        moved, apart = (tensor - begin[name]).norm(), (tensor - model.state_dict()[name]).norm()
        assert apart < 1e-3 * moved, name


def val_losses(config, text, run):
    """Validation losses of nano.py and train.py, each with its own draws."""
    torch.manual_seed(config.seed)
    _, *splits, idf = nano.prepare(text, config)
    real = [record["val_loss"] for record in run.metrics() if "val_loss" in record]
    return nano.train(config, *splits, idf)[1], real[0], real[-1]


def test_the_loss_is_that_of_train(text, run):
    """Same text, sizes and steps: the same loss of rows of one length, to 3 %."""
    ours, before, after = val_losses(TINY, text.read_text(), run)
    assert ours == pytest.approx(after, rel=0.03) and after < 0.6 * before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_loss_is_that_of_train_on_english(tmp_path):
    """The default text, until the decoder reads the concepts."""
    path = tmp_path / "text.txt"
    config = changed(nano.Config(), hidden=64, intermediate=128, vocab_size=2048, steps=1000)
    path.write_text(nano.docstrings())
    run = train(config, prepare(path, config), tmp_path / "run")
    ours, before, after = val_losses(config, path.read_text(), run)
    assert ours == pytest.approx(after, rel=0.03) and after < 0.65 * before


# ---- the command


TINY_FLAGS = [f"--{key}={value}" for key, value in asdict(changed(TINY, steps=2)).items() if key != "file"]


def test_the_command(text, capsys):
    """val_loss is last; the same seed prints the same."""
    outs = []
    for _ in range(2):
        nano.main([*TINY_FLAGS, f"--file={text}"])
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1]
    assert re.fullmatch(r"val_loss \d+\.\d{4}", outs[0].splitlines()[-1])
    names = [line.split()[0] for line in outs[0].splitlines() if line]
    assert names == ["text", "read", "predicted", "near", "near", "near"] * 3 + ["val_loss"]


def test_the_default_text_is_parsed_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text('"""First.  One\nline.\n\nNo end\n\n>>> f()\nAn example.\n"""\nraise SystemExit\n')
    (tmp_path / "b.py").write_text('def f():\n    """In f."""\n\n    class C:\n        """First. One line."""\n')
    monkeypatch.setattr(ast, "__file__", str(tmp_path / "ast.py"))
    assert nano.docstrings() == "First. One line.\nIn f."


MISTAKES = {
    "--file=none.txt": "cannot be read",
    "--file=.": "cannot be read",
    "--file=empty.txt": "0 sentences, which end at .!? or with the line, are too few",
    "--file=tiny.txt": "3 sentences, which",
    "--file=latin.txt": "name a text file in UTF-8",
    "--stesp=3": "unrecognized arguments: --stesp=3; --help",
    "--step=3": "unrecognized arguments: --step=3; --help",  # no abbreviations
    "any.txt": "unrecognized arguments: any.txt; --help",
    "--steps=many": "argument --steps: invalid int value: 'many'; --help",
    "--steps": "argument --steps: expected one argument; --help",
    "--steps=-1": "--steps=-1 is out of range; take 0 to",
    "--hidden=0": "--hidden=0 is out of range; take 1 to",
    "--lr=nan": "--lr=nan is out of range; take 0 to 1",
    "--delete_rate=1.5": "--delete_rate=1.5 is out of range",
    "--heads=3": "--hidden=256 does not divide into --heads=3; change",
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_a_mistake_ends_in_one_line(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in {"empty": b"", "tiny": b"One. Two.\nThree.", "latin": "Été. ".encode("latin1") * 1000}.items():
        Path(f"{name}.txt").write_bytes(content)
    with pytest.raises(SystemExit) as end:
        nano.main([flag])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and not out
    assert re.fullmatch(r"error: .+; .+\n", err) and MISTAKES[flag] in err


def test_ctrl_c_ends_it(text, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    monkeypatch.setattr(sys, "argv", ["nano.py", *TINY_FLAGS, f"--file={text}"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "nano.py"), run_name="__main__")
    assert end.value.code == 130 and not capsys.readouterr().out
