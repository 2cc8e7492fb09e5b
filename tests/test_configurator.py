"""Configuration: what is read, what is refused, and that every refusal is one sentence that names the place."""

import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lab import configurator
from lab.configurator import UserError, error_line, parse, read_config

HORIZONS = ("max_steps", "max_tokens", "max_minutes")


@dataclass
class Train:
    """The run: data and optimiser.

    A second paragraph that help does not show.
    """

    dataset: Annotated[str, "folder below data/"] = "pydocs"
    tag: Annotated[str, "a word for the run"] = ""
    lengths: Annotated[tuple[int, ...], "row lengths, one of which is drawn for every step, all equally likely"] = (
        16,
        32,
    )
    files: Annotated[tuple[str, ...], "text files"] = ()
    betas: Annotated[tuple[float, float], "of AdamW"] = (0.9, 0.95)
    lr: Annotated[float, "peak learning rate"] = 1e-3
    max_steps: Annotated[int, "horizon in steps"] = 1000
    max_tokens: Annotated[int, "horizon in tokens"] = 0
    max_minutes: Annotated[float, "horizon in minutes"] = 0.0
    compile: Annotated[bool | Literal["auto"], "torch.compile"] = "auto"
    wandb: Annotated[bool, "log to wandb"] = False
    limit: Annotated[int | None, "rows at most"] = None
    extra: Annotated[dict, "anything"] = field(default_factory=dict)


@dataclass
class Model:
    encoder: Annotated[Literal["perceiver", "bixt", "slot"], "which encoder"] = "perceiver"
    hidden: Annotated[int, "concept width"] = 512
    size: int = field(init=False, default=0)

    def __post_init__(self):
        if self.hidden % 8:
            raise ValueError("hidden must divide by 8; write hidden = 512")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config").mkdir()
    return tmp_path


def write(text, name="config/x.py"):
    Path(name).write_text(text)
    return name


def read(*argv, **options):
    options = {"prog": "train.py", "doc": "Train it.\n\nMore.", "root": ".", "exclusive": (HORIZONS,)} | options
    return parse(list(argv), Train, Model, **options)


def value_of(key, expression):
    return read(write(f"{key} = {expression}")).values[key]


def refused(*argv, **options):
    with pytest.raises(UserError) as caught:
        read(*argv, **options)
    line = str(caught.value)
    assert "\n" not in line and "; " in line, f"not 'what happened; what to do': {line}"
    return line


# values


def test_defaults_config_and_flags_in_this_order():
    parsed = read(write('"""Doc."""\nlr = 0.5\nhidden = 64\n'), "--hidden=128")
    assert (parsed.values["dataset"], parsed.values["lr"], parsed.values["hidden"]) == ("pydocs", 0.5, 128)
    assert parsed.given == {"lr": "config/x.py:2", "hidden": "--hidden"}
    assert parsed.config == Path("config/x.py") and parsed.configs == [Path("config/x.py")]
    assert parsed.make(Train).lr == 0.5 and parsed.make(Model).hidden == 128
    assert read().config is None and read().given == {}


@pytest.mark.parametrize(
    "key, expression, expected",
    [
        ("lr", "1", 1.0),
        ("lr", "3e-4 * 2", 6e-4),
        ("lr", "-1 / 4", -0.25),
        ("max_steps", "1e6", 1_000_000),
        ("max_steps", "(2**20 + 1) // 3 % 1000 - +7 << 2 >> 1", (((2**20 + 1) // 3 % 1000 - 7) << 2) >> 1),
        ("max_steps", "2**-1 * 4", 2),
        ("lengths", "[16] + [32] * 2", (16, 32, 32)),
        ("lengths", "(16,) + (32,) * 2", (16, 32, 32)),
        ("lengths", "[16, 32]", (16, 32)),
        ("lengths", "()", ()),
        ("betas", "(0, 1)", (0.0, 1.0)),
        ("compile", "True", True),
        ("compile", '"auto"', "auto"),
        ("encoder", '"bi" + "xt"', "bixt"),
        ("dataset", '"a" "b" * 2', "abab"),
        ("limit", "None", None),
        ("limit", "3", 3),
        ("extra", '{"a": [1, (2, None)], 3: {"b": -1.5}}', {"a": [1, (2, None)], 3: {"b": -1.5}}),
    ],
)
def test_values_of_a_config(key, expression, expected):
    value = value_of(key, expression)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    "argv, key, expected",
    [
        (["--lr=3e-4"], "lr", 3e-4),
        (["--lr", "-0.5"], "lr", -0.5),
        (["--lr=2"], "lr", 2.0),
        (["--max_steps=1e3"], "max_steps", 1000),
        (["--max_steps=2**4"], "max_steps", 16),
        (["--dataset=5"], "dataset", "5"),
        (["--dataset=a=b"], "dataset", "a=b"),
        (["--dataset=a", "--dataset=b"], "dataset", "b"),
        (["--tag="], "tag", ""),
        (["--lengths=32,128"], "lengths", (32, 128)),
        (["--lengths=512"], "lengths", (512,)),
        (["--lengths=512,"], "lengths", (512,)),
        (["--lengths=(16, 32)"], "lengths", (16, 32)),
        (["--lengths", "16", "32"], "lengths", (16, 32)),
        (["--lengths="], "lengths", ()),
        (["--files=a,b"], "files", ("a", "b")),
        (["--files", "a", "b,c", "--lr=1"], "files", ("a", "b,c")),
        (["--files=('a,b',)"], "files", ("a,b",)),
        (["--betas=0,1"], "betas", (0.0, 1.0)),
        (["--compile"], "compile", True),
        (["--compile", "auto"], "compile", "auto"),
        (["--compile=false"], "compile", False),
        (["--wandb", "--lr=1"], "wandb", True),
        (["--wandb", "False"], "wandb", False),
        (["--wandb=True"], "wandb", True),
        (["--encoder=bixt"], "encoder", "bixt"),
        (["--limit=None"], "limit", None),
        (["--limit=7"], "limit", 7),
        (["--extra={'a': 1}"], "extra", {"a": 1}),
    ],
)
def test_values_of_the_command_line(argv, key, expected):
    parsed = read(*argv)
    assert parsed.values[key] == expected and type(parsed.values[key]) is type(expected)
    assert parsed.given[key] == f"--{key}"


def test_a_config_may_stand_anywhere():
    name = write("lr = 2.0")
    for argv in (["--wandb", name], [name, "--wandb"], ["--lengths", "16", "32", name], ["--wandb", "true", name]):
        assert read(*argv).values["lr"] == 2.0, argv


# errors


@pytest.mark.parametrize(
    "line, words",
    [
        ("hiden = 3", ["config/x.py:2", "unknown key hiden", "did you mean hidden?"]),
        ("lr = 'abc'", ["config/x.py:2", "lr must be a finite number, not 'abc'", "lr = 0.001"]),
        ("lr = 1e999", ["config/x.py:2", "not inf"]),
        ("lr = 1e999 - 1e999", ["not nan"]),
        ("lr = True", ["not True"]),
        ("hidden = True", ["hidden must be a whole number, not True"]),
        ("hidden = 1.5", ["not 1.5"]),
        ("hidden = 1e999", ["not inf"]),
        ("hidden = 2**63", ["not 9223372036854775808"]),
        ("hidden = None", ["not None"]),
        ("wandb = 1", ["wandb must be True or False, not 1"]),
        ("lengths = 512", ["a tuple of whole numbers, not 512", "lengths = (512,)"]),
        ("lengths = (1, 'a')", ["not (1, 'a')"]),
        ("betas = (1, 2, 3)", ["a tuple of 2 finite numbers"]),
        ("dataset = 5", ["dataset must be text", "dataset = '5'"]),
        ("encoder = 'percever'", ["one of perceiver, bixt, slot", "did you mean perceiver?"]),
        ("compile = 'Auto'", ["True or False or auto", "did you mean auto?"]),
        ("encoder = bixt", ["bixt is not assigned above", 'write "bixt" in quotes']),
    ],
)
def test_errors_of_a_config_name_the_line(line, words):
    message = refused(write(f"tag = 'a'\n{line}\n"))
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--hiden=3"], ["--hiden", "did you mean hidden?"]),
        (["--max-steps=3"], ["did you mean max_steps?"]),
        (["--lr=abc"], ["--lr=abc", "a finite number, not 'abc'", "--lr=0.001"]),
        (["--lr=nan"], ["not 'nan'"]),
        (["--lr=1e999"], ["finite"]),
        (["--lr="], ["not ''"]),
        (["--lr"], ["--lr has no value; write --lr=0.001"]),
        (["--lr", "--wandb"], ["--lr has no value"]),
        (["--dataset"], ["--dataset has no value"]),
        (["--hidden=1.5"], ["whole number"]),
        (["--hidden=True"], ["whole number"]),
        (["--hidden=2**10**9"], ["whole number"]),
        (["--hidden=__import__('os')"], ["whole number"]),
        (["--lengths=a,b"], ["--lengths=16,32"]),
        (["--lengths", "config/x.py"], ["whole numbers"]),
        (["--wandb=1"], ["True or False"]),
        (["--encoder=bixd"], ["did you mean bixt?"]),
        (["-lr=3"], ["write --lr=3"]),
        (["lr=3"], ["lr=3 is no flag; write --lr=3"]),
        (["--=3"], ["unknown key"]),
    ],
)
def test_errors_of_the_command_line_name_the_flag(argv, words):
    message = refused(*argv)
    for word in words:
        assert word in message, message


def test_impossible_combination_is_a_user_error():
    with pytest.raises(UserError, match="write hidden = 512"):
        read("--hidden=7").make(Model)


def test_missing_configs_name_the_nearest_file():
    write("", "config/quickstart.py")
    assert "did you mean config/quickstart.py?" in refused("config/quikstart.py")
    assert "did you mean config/quickstart.py?" in refused("config/quickstart")
    assert "is a folder" in refused("config")
    assert "nor does its folder" in refused("nowhere/x.py")
    assert "look in config" in refused("config/zzz.py")
    assert "second config" in refused("config/quickstart.py", "config/quickstart.py")


def test_paths_are_taken_as_the_command_asks():
    names = [write("arms = {}", "config/a.py"), write("", "config/b.py")]
    parsed = read(*names, positional="many")
    assert parsed.configs == [Path(name) for name in names] and parsed.config is None and parsed.given == {}
    assert "does not exist" in refused("config/none.py", positional="many")
    assert "not understood" in refused("config/a.py", positional=False)


# configs that are built on others


def test_base_chain_and_earlier_names(folder):
    write('"""Deep."""\n_rows = 16\nhidden = 64\nlr = 1.0', "config/a.py")
    write('base = "config/a.py"\nlr = lr * 2\nlengths = (_rows, hidden)', "config/b.py")
    write('"""Top."""\nbase = "config/b.py"\nlr = lr + hidden\ntag = "t"', "config/c.py")
    parsed = read("config/c.py")
    assert (parsed.values["lr"], parsed.values["lengths"], parsed.values["hidden"]) == (66.0, (16, 64), 64)
    places = {"hidden": "config/a.py:3", "lengths": "config/b.py:3", "lr": "config/c.py:3", "tag": "config/c.py:4"}
    assert parsed.given == places
    assert read_config("config/b.py", ".") == {
        "hidden": (64, "config/a.py:3"),
        "lr": (2.0, "config/b.py:2"),
        "lengths": ((16, 64), "config/b.py:3"),
    }


def test_base_is_relative_to_the_root_and_the_config_to_the_working_directory(folder, monkeypatch):
    write("lr = 7.0", "config/a.py")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    write('base = "config/a.py"', "mine.py")
    assert read("mine.py", root=folder).values["lr"] == 7.0
    assert "does not exist" in refused("config/a.py", root=folder)


def test_base_errors():
    write('base = "config/b.py"', "config/a.py")
    write('base = "config/a.py"', "config/b.py")
    assert "config/b.py:1: base: config/a.py leads back to itself" in refused("config/a.py")
    assert "config/x.py:1: base: config/x.py leads back to itself" in refused(write('base = "config/x.py"'))
    assert "config/x.py:1: base: config config/bb.py" in refused(write('base = "config/bb.py"'))
    assert "config/x.py:2: base must stand first" in refused(write('lr = 1\nbase = "config/b.py"'))
    assert "base must be a file name" in refused(write("base = 3"))
    write("lr = 1 +", "config/b.py")
    assert "config/b.py:1" in refused("config/a.py")
    assert "unknown key" in refused("config/a.py", "--base=x")


def test_grid_keys_are_read_by_read_config():
    write("hidden = 64", "config/a.py")
    name = write('base = "config/a.py"\narms = {"one": {"hidden": hidden * 2}}\nseeds = (0, 1)', "config/grid.py")
    grid = read_config(name, ".")
    assert grid["arms"] == ({"one": {"hidden": 128}}, "config/grid.py:2") and grid["hidden"] == (64, "config/a.py:1")
    assert "unknown key arms" in refused(name)


# one horizon


def test_a_later_horizon_replaces_an_earlier_one():
    write("max_tokens = 1e6", "config/a.py")
    name = write('base = "config/a.py"\nmax_minutes = 5')

    def horizon(*argv):
        parsed = read(*argv)
        return [(key, parsed.values[key]) for key in HORIZONS if parsed.values[key]], parsed.given.keys() & set(
            HORIZONS
        )

    assert horizon() == ([("max_steps", 1000)], set())
    assert horizon("config/a.py") == ([("max_tokens", 1_000_000)], {"max_tokens"})
    assert horizon(name) == ([("max_minutes", 5.0)], {"max_minutes"})
    assert horizon(name, "--max_steps=7") == ([("max_steps", 7)], {"max_steps"})
    assert horizon(name, "--max_steps=7", "--max_minutes=0") == ([("max_steps", 7)], {"max_steps"})
    assert type(read(name).values["max_steps"]) is int and type(read("--max_steps=1").values["max_minutes"]) is float


def test_two_horizons_in_one_source_are_refused():
    message = refused("--max_steps=1", "--max_tokens=1")
    assert "--max_steps" in message and "--max_tokens" in message and "keep one" in message
    message = refused(write("max_steps = 1\nmax_minutes = 1"))
    assert "config/x.py:1" in message and "config/x.py:2" in message


# syntax that is refused


@pytest.mark.parametrize(
    "line, word",
    [
        ("lr = float('1')", "function call"),
        ("lr = __import__('os').system('touch hacked')", "function call"),
        ("tag = ''.__class__", "attribute"),
        ("tag = 'abc'[0]", "index"),
        ("lengths = [i for i in (1, 2)]", "comprehension"),
        ("lengths = (i for i in (1, 2))", "comprehension"),
        ("lengths = (*(1, 2), 3)", "unpacking"),
        ("extra = {**{}}", "unpacking"),
        ("extra = {(1, 2): 3}", "keys of a dict"),
        ("extra = {[]: 3}", "keys of a dict"),
        ("extra = {1, 2}", "a set"),
        ("tag = f'{1}'", "f-string"),
        ("tag = b'x'", "Constant"),
        ("lr = 1j", "Constant"),
        ("lr = ...", "Constant"),
        ("lr = (x := 1)", ":="),
        ("lr = lambda: 1", "lambda"),
        ("lr = 1 if True else 2", "conditional"),
        ("lr = 1 < 2", "comparison"),
        ("lr = not 1", "operators"),
        ("lr = ~1", "operators"),
        ("lr = 1 | 2", "operators"),
        ("lr = 1 and 2", "operators"),
        ("lr: float = 1", "annotated"),
        ("hidden += 1", "augmented"),
        ("lr = hidden = 1", "one name a line"),
        ("lr, hidden = 1, 2", "one name a line"),
        ("lengths[0] = 1", "one name a line"),
        ("import os", "import"),
        ("from os import path", "import"),
        ("def f(): pass", "function"),
        ("class A: pass", "class"),
        ("if True: lr = 1", "If"),
        ("while True: pass", "While"),
        ("'a string'", "bare expression"),
        ("del tag", "Delete"),
        ("lr = -'a'", "sign needs a number"),
        ("tag = '%09999999999d' % 1", "needs numbers"),
        ("lr = 'a' - 1", "needs numbers"),
        ("lr = 1 / 0", "cannot be computed"),
        ("lr = 1 << -1", "shift"),
        ("lr = 1 >> -1", "cannot be computed"),
        ("lr = 1.5 << 2", "cannot be computed"),
        ("lr = 'a' + 1", "cannot be computed"),
        ("lr = 'a' * 1.5", "cannot be computed"),
        ("lr = 10.0 ** 400", "cannot be computed"),
        ("lr = (-1) ** 0.5", "negative number"),
        ("lr = (1", "syntax"),
        ("lr = 08", "syntax"),
        ("  lr = 1", "syntax"),
        ("base = 'config/y.py'", "base must stand first"),
    ],
)
def test_all_else_is_refused_and_never_executed(line, word):
    message = refused(write(f"tag = 'a'\n{line}\n"))
    assert message.startswith("config/x.py:2: ") and word in message, message
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    "text",
    [
        "hidden = 2**10**9",
        "hidden = 2**(2**31)",
        "hidden = (-3)**10**9",
        "hidden = 1 << 10**12",
        "hidden = 9**300 * 9**300",
        "tag = 'a' * 10**9",
        "tag = 10**9 * 'a'",
        "lengths = (1,) * 10**9",
        "lengths = [()] * 10**9",
        "lengths = ((1,) * 5000,) * 5000",
        "hidden = " + "9" * 4000,
        "hidden = " + "9" * 5000,
        "tag = 'a'\n" + "tag = tag + tag\n" * 60,
        "_a = (1, 1)\n" + "_a = (_a, _a)\n" * 60 + "lr = _a",
        "_a = (1, 1)\n" + "_a = (_a, _a)\n" * 60 + "extra = {_a: 1}",
        "_a = 1\n" + "_a = (_a,)\n" * 5000 + "lr = _a",
        "lr = " + "(" * 500 + "1" + ")" * 500,
        "lr = " + "-" * 20_000 + "1",
        "lr = " + "1+" * 20_000 + "1",
        "lr = 1\n" * 100_000,
        "lr = 1\0",
        "lr = '\ud800'".encode("utf-8", "surrogatepass").decode("latin-1"),
        "# coding: nonsense\nlr = 1",
        'base = "\\0"',
        'base = "\\ud800"',
        'base = ""',
        f'base = "{"a" * 5000}"',
    ],
)
def test_nothing_hangs_or_crashes(text):
    start = time.perf_counter()
    refused(write(text))
    assert time.perf_counter() - start < 2


atoms = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "2",
        "1e300",
        "1e999",
        "10**9",
        "True",
        "None",
        "'a'",
        "''",
        "()",
        "[1]",
        "{'a': 1}",
        "lr",
        "_a",
        "x.y",
    ]
    + ["f()", "x[0]", "...", "b'a'", "1j", "(", "*a", "99999999999999999999", "'%d'", "'\\x00'", "lambda: 1"]
)
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+ - * / // % ** << >> @ | < and".split()), inner).map(" ".join),
        inner.map("({})".format),
        inner.map("-{}".format),
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(inner, max_size=3).map(lambda items: "(" + "".join(item + ", " for item in items) + ")"),
        st.tuples(inner, inner).map("{{{0[0]}: {0[1]}}}".format),
    ),
    max_leaves=12,
)
names = st.sampled_from(
    ["lr", "_a", "_b", "base", "extra", "lengths", "tag", "max_steps", "nope", "a.b", "a, b", "lr: float"]
)
lines = st.tuples(names, st.sampled_from([" = ", " += ", " = lr = "]), expressions).map("".join)
configs = st.lists(lines, max_size=5).map("\n".join) | st.text(max_size=60) | st.binary(max_size=60)


@settings(max_examples=60)
@given(configs)
@example(b"\xef\xbb\xbflr = 1")
@example("\tlr = 1\r\n")
def test_any_text_is_read_or_refused_with_a_sentence(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_bytes(config if isinstance(config, bytes) else config.encode("utf-8", "surrogatepass"))
    try:
        read(str(path))
    except UserError as error:
        assert str(error) and error_line(error).startswith("error: ") and "\n" not in error_line(error)


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(["--lr", "--lengths", "--files", "--wandb", "--compile", "--hidden", "lr", "-x", "--"]),
        max_size=4,
    ),
    st.data(),
)
def test_any_command_line_is_read_or_refused_with_a_sentence(flags, data):
    argv = [
        flag + data.draw(st.sampled_from(["", "="])) + data.draw(expressions | st.text(max_size=9)) for flag in flags
    ]
    try:
        read(*argv)
    except UserError as error:
        assert str(error)
    except SystemExit:
        assert {"--help", "-h"} & set(argv)


@settings(max_examples=40)
@given(
    st.integers(1 - 2**63, 2**63 - 1),
    st.floats(-1e300, 1e300),
    st.text(max_size=20),
    st.lists(st.integers(-99, 99), max_size=5),
)
def test_what_python_writes_is_read_back(tmp_path_factory, whole, number, text, row):
    path = tmp_path_factory.getbasetemp() / "back.py"
    path.write_text(f"hidden = {whole!r}\nlr = {number!r}\ntag = {text!r}\nlengths = {row!r}\n", encoding="utf-8")
    values = read(str(path)).values
    assert [values[key] for key in ("hidden", "lr", "tag", "lengths")] == [whole, number, text, tuple(row)]
    flags = read(f"--hidden={whole}", f"--lr={number}", f"--tag={text}", "--lengths=" + ",".join(map(str, row))).values
    assert flags == values


def test_arithmetic_agrees_with_python():
    rng = random.Random(0)
    for _ in range(300):
        expression = str(rng.randint(0, 9))
        for _ in range(rng.randint(1, 5)):
            expression = f"({expression} {rng.choice(['+', '-', '*', '/', '//', '%'])} {rng.randint(1, 9)})"
        assert value_of("lr", expression) == float(eval(expression)), expression


# help and warnings


def test_help_shows_every_key_with_default_and_meaning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for argv in (["--help"], ["-h"], ["config/missing.py", "--nonsense", "--help"]):
        with pytest.raises(SystemExit) as stop:
            read(*argv)
        assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("Train it.\n\nusage: python train.py [CONFIG.py] [--key=value ...]\n")
    assert "More." not in out and "second paragraph" not in out and "Train: The run: data and optimiser." in out
    assert "\n  --lr=0.001                  peak learning rate\n" in out
    assert "--lengths=16,32 " in out and "one of perceiver, bixt, slot" in out and "--size" not in out
    assert max(map(len, out.splitlines())) <= 80
    for group in (Train, Model):
        for key in configurator.fields_of(group):
            assert f"\n  --{key}=" in out


def test_nothing_but_help_is_printed(capsys):
    read(write("lr = 1"), "--wandb")
    refused("--lr=abc")
    assert capsys.readouterr() == ("", "")


def test_unused_keys_are_warned_of_once_with_their_place(capsys, monkeypatch):
    parsed = read(write("lr = 1"), "--wandb")
    parsed.unused({"lr", "wandb", "tag"}, "by objective = 'tsdae'")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "warning: config/x.py:1: lr is not used by objective = 'tsdae'",
        "warning: --wandb: wandb is not used by objective = 'tsdae'",
    ]
    monkeypatch.setenv("RANK", "1")
    parsed.unused({"lr"}, "at all")
    assert capsys.readouterr().err == ""


def test_keys_are_unique_over_groups():
    with pytest.raises(AssertionError, match="two groups"):
        parse([], Train, Train, prog="", doc="", root=".")


def test_imports_nothing_but_the_standard_library():
    code = "import sys, configurator; print(sorted({'torch', 'numpy', 'model', 'dataset'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(configurator.__file__).parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
