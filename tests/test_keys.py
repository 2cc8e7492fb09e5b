"""Keys of all commands: ~ in those that are paths, names that people bring from elsewhere, configs named briefly; and
an older Python."""

import ast
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from registries import OWN_DECODERS as DECODERS

import compare
import train
from lab.configurator import REMOVED, RENAMED, PathStr, UserError, fields_of, parse
from lab.data import prepare
from lab.runs import load_run
from lab.training.run_folder import RunFolder
from lab.training.settings import MATHEMATICS
from model import ConceptModel, ModelConfig
from noise import Noise
from objectives import OBJECTIVES, Objective, ObjectiveConfig, Objectives, bounds_of
from problem import Problem, Rows, Vocabulary

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [path for path in ROOT.glob("*.py") if "command.command(main)" in path.read_text()]
PREPARE = sorted(ROOT.glob("data/*/prepare.py"))
NAMES = {"dataset", "name", "contamination", "backbone"}  # of a folder, and no path; or of the hub


def configurations():
    """Every dataclass of keys that some command reads: (file, class)."""
    for path in [*ROOT.glob("*.py"), *ROOT.glob("lab/**/*.py"), *PREPARE]:
        if path.parent.parent.name == "data":
            spec = importlib.util.spec_from_file_location(f"{path.parent.name}_prepare", path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        elif "Annotated[" not in path.read_text():
            continue
        else:
            module = importlib.import_module(
                path.stem if path.parent == ROOT else ".".join(path.relative_to(ROOT).with_suffix("").parts)
            )
        for kind in vars(module).values():
            if is_dataclass(kind) and kind.__module__ == module.__name__ and "Annotated" in str(fields(kind)):
                yield f"{path.relative_to(ROOT)}: {kind.__name__}", kind


KINDS = dict(configurations())


BOUNDED = [(name, key) for name, kind in KINDS.items() for key in bounds_of(kind)]


@pytest.mark.parametrize("name, key", BOUNDED)
def test_a_number_out_of_its_range_is_refused_and_one_at_its_end_is_not(name, key):
    group = KINDS[name]
    bounds, default = bounds_of(group)[key], fields_of(group)[key].default
    step = 1 if isinstance((default or (1,))[0] if isinstance(default, tuple) else default, int) else 1e-9
    given = {k: v for k, v in {"max_steps": 1, "run": "out/x", "text": "x"}.items() if k in fields_of(group)}

    def refused(number):
        value = (number,) if isinstance(default, tuple) else number
        try:
            group(**(given | {key: value}))
        except ValueError as error:  # or for what other keys are
            return f"{key}={value} is out of range; write a number in this range: {bounds}" in str(error)
        return False

    ends = [(bounds.low, -step, "low"), (bounds.high, step, "high")]
    for end, outward, name in ends[: 1 + (bounds.high < math.inf)]:
        is_open = bounds.open in (name, "both")
        assert refused(end + outward) and refused(end) == is_open and not refused(end - outward), (end, outward)


TEXTS = (str, tuple[str, ...])
PATHS = (PathStr, tuple[PathStr, ...])


def test_every_key_that_speaks_of_files_is_a_path():
    assert len(KINDS) >= 15
    words = ("folder", "file", "where the prepared data are", "tokenizer.json")
    for where, kind in KINDS.items():
        for key, field in fields_of(kind).items():
            if field.kinds[0] in TEXTS + PATHS and key not in NAMES:
                speaks = any(word in field.help for word in words)
                assert (field.kinds[0] in PATHS) == speaks, f"{where}: {key} ({field.help})"


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """As a flag and in a config, one path or several; nothing else in a path changes, and nothing that is no path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("X", "y")
    count = 0
    for where, kind in KINDS.items():
        for key, field in fields_of(kind).items():
            (kind_of, *_), path = field.kinds, field.kinds[0] in PATHS
            if kind_of not in TEXTS + PATHS:
                continue
            many = kind_of in (TEXTS[1], PATHS[1])
            (tmp_path / "x.py").write_text(f"{key} = {('~/a', 'b') if many else '~/a'!r}")
            for words in ([f"--{key.rstrip('_')}=~/a{',b' if many else ''}"], [str(tmp_path / "x.py")]):
                found = parse(words, kind, prog="", doc="", root=tmp_path).values[key]
                home = f"{tmp_path}/a" if path else "~/a"
                assert found == ((home, "b") if many else home), (where, key)
            count += path
    assert count >= 20
    for text in ("a/~/b", "$X/a", "~nobody-here/a", "./~"):
        assert parse([f"--out_dir={text}"], train.TrainConfig, prog="", doc="", root=".").values["out_dir"] == text


def test_the_base_of_a_config_may_lie_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text('out_dir = "~/run"')
    (tmp_path / "x.py").write_text('base = "~/mine.py"')
    values = parse([str(tmp_path / "x.py")], train.TrainConfig, prog="", doc="", root=ROOT).values
    assert values["out_dir"] == f"{tmp_path}/run"


ABROAD = {  # what nanoGPT and Hugging Face call it -> ours
    "train.py": "learning_rate=lr max_iters=max_steps n_embd=hidden n_head=heads n_layer=layers block_size=lengths "
    "eval_iters=eval_tokens epochs=max_epochs num_train_epochs=max_epochs per_device_train_batch_size=micro_batch "
    "gradient_accumulation_steps=micro_batch warmup_steps=warmup warmup_iters=warmup lr_decay_iters=max_steps "
    "min_lr=lr_end grad_clip=clip max_grad_norm=clip hidden_size=hidden num_hidden_layers=layers n_layers=layers "
    "num_attention_heads=heads intermediate_size=intermediate output_dir=out_dir logging_steps=log_interval "
    "save_steps=ckpt_interval bf16=dtype vocab=vocab_size learning-rate=lr max_iter=max_steps Learning_Rate=lr "
    "max_position_embeddings=max_length tie_word_embeddings=tied wandb_log=wandb eval_steps=eval_interval",
    "eval_glue.py": "learning_rate=lr num_train_epochs=epochs per_device_train_batch_size=batch batch_size=batch "
    "max_seq_length=max_length task_name=tasks",
    "sample.py": "start=text max_new_tokens=length out_dir=run",
    "compare.py": "out_dir=out",
}
GROUPS = {Path(where.partition(":")[0]).name: kind for where, kind in KINDS.items()}


@pytest.mark.parametrize("command", ABROAD)
def test_names_from_elsewhere_get_the_key(command, tmp_path):
    groups = (train.TrainConfig, *MATHEMATICS) if command == "train.py" else [GROUPS[command]]
    keys = {key: field for group in groups for key, field in fields_of(group).items()}
    for theirs, ours in (pair.split("=") for pair in ABROAD[command].split()):
        (tmp_path / "x.py").write_text(f"{theirs.replace('-', '_')} = 1")
        for words, place in ([f"--{theirs}=1"], f"--{theirs}"), ([str(tmp_path / "x.py")], "x.py:1"):
            with pytest.raises(UserError) as error:
                parse(words, *groups, prog=command, doc="", root=ROOT)
            known = f"did you mean {ours}? ", f"here it is {ours} ({keys[ours].help}); "
            assert place in str(error.value) and any(hint in str(error.value) for hint in known), str(error.value)


def test_a_name_from_elsewhere_is_named_only_where_the_command_has_the_key():
    with pytest.raises(UserError) as error:
        parse(["--n_embd=3"], compare.CompareConfig, prog="", doc="", root=ROOT)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("word", ["quickstart", "quickstart.py", "config/quickstart", "config/quickstart.py"])
def test_a_config_is_found_by_its_name(word, monkeypatch, tmp_path):
    for folder in (ROOT, tmp_path) if "/" not in word else (ROOT,):
        monkeypatch.chdir(folder)
        assert train.read_settings([word]).preset == "quickstart"
    parsed = parse([word.replace("config", "config/grids").replace("quickstart", "smoke")], prog="", doc="", root=ROOT,
                   positional="many", configs="config/grids")  # fmt: skip
    assert parsed.configs[0].resolve() == ROOT / "config/grids/smoke.py"


def test_a_config_that_is_not_there_names_the_nearest(monkeypatch):
    monkeypatch.chdir(ROOT)
    for word in ("quikstart", "config/quikstart", "quickstrat.py"):
        with pytest.raises(UserError, match=r"does not exist; did you mean config/quickstart.py\?"):
            train.read_settings([word])


@pytest.mark.parametrize(
    "spec, hint",
    [
        ("bert-base-uncased", "hub:bert-base-uncased"),
        ("answerdotai/ModernBERT-base", "hub:answerdotai/ModernBERT-base"),
        ("gpt2", "tiktoken:gpt2"),
        ("8192", "bpe:8192"),
    ],
)
def test_a_tokenizer_without_its_kind(spec, hint):
    with pytest.raises(UserError, match=f"does not exist; write --tokenizer={hint},"):
        prepare.check_spec(spec)


def test_a_tokenizer_file_that_is_not_there():
    for spec in ("tokenizer.json", "a/b.json", "~/b", "a/b/c", "/nowhere"):
        with pytest.raises(UserError, match="name a tokenizer.json"):
            prepare.check_spec(spec)


OLD = [path for path in (shutil.which(f"python3.{minor}") for minor in (10, 9, 8)) if path]


def test_an_older_python_reads_as_far_as_the_sentence():
    """Its grammar is kept; before lab/__init__.py nothing is imported that came after 3.8."""
    for path in [*COMMANDS, *PREPARE, ROOT / "lab/__init__.py"]:
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        first = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in first if path.name != "__init__.py" else ():
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if names[0].split(".")[0] == "lab":
                break
            assert path in PREPARE and not {"typing", "types"} & set(names), (path, names)
            assert names[0].split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("python", OLD)
def test_an_older_python_gets_the_sentence(python):
    if subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip("no such Python behind this name")
    for words in ([ROOT / "train.py"], [ROOT / "data/text/prepare.py"], ["-m", "lab.data.pmi"]):
        done = subprocess.run([python, *words], cwd=ROOT, capture_output=True, text=True, timeout=20)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: Python 3.") and "is too old; write: python3.11 -m venv" in done.stderr


def test_keys_that_have_a_new_name_say_so(tmp_path):
    for old, new in RENAMED.items():
        with pytest.raises(UserError, match=f"{old} is now called {new}; write {new}"):
            train.read_settings(["quickstart", f"--{old}=1"])
    (tmp_path / "config.json").write_text('{"seeds_faithful": true, "run_id": "x"}')
    assert RunFolder(tmp_path).config() == {"original_structure": True, "run_id": "x"}


def test_keys_and_choices_that_were_removed_say_so(tmp_path):
    for key, why in REMOVED.items():
        word = f"--{key}" if "=" in key else f"--{key}=1"
        with pytest.raises(UserError, match=rf"{key} was removed \({re.escape(why)}\); leave it out"):
            train.read_settings(["quickstart", word])
    older = {"pooling": "mean", "gru": False, "hinge_rank": 3.0, "predictor": "none", "decoder": "none", "run_id": "x"}
    older["views"] = "unshared"
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert RunFolder(tmp_path).config() == {"decoder": "posonly", "views": "both", "run_id": "x"}
    for key, value in ("pooling", "attention"), ("gru", True):
        (tmp_path / "config.json").write_text(json.dumps(older | {key: value}))
        with pytest.raises(UserError, match=f"is a run with {key}={value!r}, which was removed .*; take another run"):
            load_run(tmp_path)


@pytest.mark.parametrize("key", ["intermediate", "max_length", "hidden", "concepts", "vocab_size"])
def test_sizes_beyond_all_memory_are_answered(key):
    with pytest.raises(UserError, match="more than 2.63 bytes; write smaller sizes"):
        train.main(["quickstart", f"--{key}={2**62}", "--print_config"])


def test_what_is_read_is_recorded_and_the_query_begins_at_0():
    """No class declares its keys; a problem that says no positions has 0 ... T - 1."""

    class Forgetful(Objective):
        """Its source is the row less its first round(delete_rate N) tokens; keys and positions are left out."""

        def problem(self, rows):
            return Problem(source=rows.ids[:, round(self.config.delete_rate * rows.ids.shape[1]) :], targets=rows.ids)

    try:
        config = ObjectiveConfig(objective="forgetful", delete_rate=(0.25, 0.5))
        made = Objectives(config)
        assert made.uses == {"objective", "delete_rate"} and len(made.plateaus()) == 6
        ids = torch.randint(8, (2, 8), generator=torch.Generator().manual_seed(0))
        (problem,) = made.problems(Rows(ids, Noise(0, 0, torch.arange(2)), Vocabulary(8, 0)))
        assert torch.equal(problem.query_pos, torch.arange(8)[None])
        for decoder in DECODERS:
            shape = dict(decoder=decoder, hidden=8, heads=2, intermediate=8, layers=1, concepts=2, max_length=8)
            (loss,), _ = ConceptModel(ModelConfig(**shape, vocab_size=8))(problem)
            assert loss.isfinite()
    finally:
        del OBJECTIVES["forgetful"]
    spans = Objectives(ObjectiveConfig(objective="mlm", mask_unit="span")).uses
    assert spans - Objectives(ObjectiveConfig(objective="mlm")).uses == {"span", "max_span"}
