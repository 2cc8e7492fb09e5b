"""Configuration: what is read, what is refused, and that every refusal is one sentence that names the place."""

import random
import subprocess
import sys
import time
from argparse import ArgumentError
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from registries import read_config

from lab import configurator
from lab.configurator import UserError, error_line, parse

HORIZONS = ("max_steps", "max_tokens", "max_minutes")


@dataclass
class Train:
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


ENCODERS = {"perceiver": None, "bixt": None, "slot": None}


@dataclass
class Model:
    encoder: Annotated[Literal[tuple(ENCODERS)], "which encoder, 100 %"] = "perceiver"
    hidden: Annotated[int, "concept width"] = 512

    def __post_init__(self):
        if self.hidden < 1 or self.hidden % 8:
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
        ("max_steps", "(2**20 + 1) // 3 - +7", (2**20 + 1) // 3 - 7),
        ("max_steps", "2**-1 * 4", 2),
        ("lengths", "[16, 32]", (16, 32)),
        ("lengths", "()", ()),
        ("betas", "(0, 1)", (0.0, 1.0)),
        ("compile", "True", True),
        ("compile", '"auto"', "auto"),
        ("dataset", '"a" "b"', "ab"),
        ("limit", "None", None),
        ("limit", "3", 3),
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
        (["--files=a"], "files", ("a",)),
        (["--files", "a,b"], "files", ("a", "b")),
        (["--files=1,2"], "files", ("1", "2")),
        (["--betas=0,1"], "betas", (0.0, 1.0)),
        (["--compile"], "compile", True),
        (["--compile=auto"], "compile", "auto"),
        (["--compile=false"], "compile", False),
        (["--wandb", "--lr=1"], "wandb", True),
        (["--wandb=True"], "wandb", True),
        (["--encoder=bixt"], "encoder", "bixt"),
        (["--limit=None"], "limit", None),
        (["--limit=7"], "limit", 7),
    ],
)
def test_values_of_the_command_line(argv, key, expected):
    parsed = read(*argv)
    assert parsed.values[key] == expected and type(parsed.values[key]) is type(expected)
    assert parsed.given[key] == f"--{key}"


def test_a_config_may_stand_anywhere():
    name = write("lr = 2.0")
    for argv in (["--wandb", name], [name, "--wandb"], [name, "--lengths", "16", "32"], ["--lengths=16,32", name]):
        assert read(*argv).values["lr"] == 2.0, argv


# errors


@pytest.mark.parametrize(
    "line, words",
    [
        ("hiden = 3", ["unknown key hiden", "did you mean hidden?"]),
        ("lr = 'abc'", ["lr must be float, not 'abc'", "a value like 0.001"]),
        ("lr = 1e999", ["a number beyond 1e+300"]),
        ("lr = True", ["not True"]),
        ("hidden = True", ["hidden must be int, not True"]),
        ("hidden = 1.5", ["not 1.5"]),
        ("hidden = 2**63", ["not 9223372036854775808"]),
        ("hidden = None", ["not None"]),
        ("wandb = 1", ["wandb must be bool, not 1"]),
        ("lengths = 512", ["lengths must be tuple[int, ...], not 512", "a value like (16, 32)"]),
        ("lengths = (1, 'a')", ["not (1, 'a')"]),
        ("betas = (1, 2, 3)", ["tuple[float, float]"]),
        ("dataset = 5", ["dataset must be str, not 5"]),
        ("encoder = 'percever'", ["one of ['perceiver', 'bixt', 'slot']", "did you mean perceiver?"]),
        ("compile = 'Auto'", ["bool or one of ['auto']", "did you mean auto?"]),
        ("limit = 'x'", ["limit must be int or None"]),
        ("encoder = bixt", ["bixt is not allowed", "text in quotes"]),
    ],
)
def test_errors_of_a_config_name_the_line(line, words):
    message = refused(write(f"tag = 'a'\n{line}\n"))
    assert message.startswith("config/x.py:2: ")
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--hiden=3"], ["--hiden", "did you mean hidden?"]),
        (["--max-steps=3"], ["did you mean max_steps?"]),
        (["--lr=abc"], ["--lr: lr must be float, not 'abc'", "a value like 0.001"]),
        (["--lr=nan"], ["not 'nan'"]),
        (["--lr=1e999"], ["not '1e999'"]),
        (["--lr="], ["not ''"]),
        (["--lr"], ["--lr: lr must be float"]),
        (["--lr", "--wandb"], ["--lr: lr must be float"]),
        (["--lr", "-a"], ["unknown key a"]),
        (["--lr=-a"], ["not '-a'"]),
        (["--dataset"], ["--dataset: dataset must be str"]),
        (["--hidden=1.5"], ["must be int"]),
        (["--hidden=True"], ["must be int"]),
        (["--hidden=2**10**9"], ["must be int"]),
        (["--hidden=1e20"], ["must be int"]),
        (["--hidden=__import__('os')"], ["must be int"]),
        (["--lengths=a,b"], ["not ['a,b']"]),
        (["--lengths", "a", "b"], ["not ['a', 'b']"]),
        (["--wandb=1"], ["must be bool"]),
        (["--wandb", "False"], ["config False does not exist"]),
        (["--encoder=bixd"], ["did you mean bixt?"]),
        (["--enc=bixt"], ["unknown key enc"]),
        (["-lr=3"], ["write --lr=3"]),
        (["-hidden=3"], ["write --hidden=3"]),
        (["--=3"], ["unknown key"]),
        (["--"], ["unknown key"]),
        (["lr=3"], ["lr=3 is no flag; write --lr=3"]),
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
    assert read("config/quickstart").config == read("quickstart").config == Path("config/quickstart.py")
    assert "config config does not exist; look into ." in refused("config")
    assert "config nowhere/x.py does not exist; look into nowhere" in refused("nowhere/x.py")
    assert "look into config" in refused("config/zzz.py")
    assert "one word too many" in refused("config/quickstart.py", "config/quickstart.py")


def test_paths_are_taken_as_the_command_asks():
    names = [write("arms = {}", "config/a.py"), write("", "config/b.py")]
    parsed = read(*names, positional="many")
    assert parsed.configs == [Path(name) for name in names] and parsed.given == {}
    assert "does not exist" in refused("config/none.py", positional="many")
    assert "one word too many" in refused("config/a.py", positional=False)


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
    write("", "config/c.py")
    assert refused("config/a.py").startswith("config/a.py:1: config/b.py:1: config/a.py leads back to itself")
    assert "config/x.py:1: config/x.py leads back to itself" in refused(write('base = "config/x.py"'))
    assert "config/x.py:1: config config/bb.py does not exist; did you mean" in refused(write('base = "config/bb.py"'))
    assert "config/x.py:2: base must stand first" in refused(write('lr = 1\nbase = "config/b.py"'))
    assert "config/x.py:2: base must stand first" in refused(write('base = "config/c.py"\nbase = "config/c.py"'))
    assert "and name a file" in refused(write("base = 3"))
    write("lr = 1 +", "config/b.py")
    assert "config/b.py:1: " in refused("config/a.py")
    assert "unknown key" in refused("config/a.py", "--base=x")


def test_grid_keys_are_read_by_read_config():
    write("hidden = 64", "config/a.py")
    name = write('base = "config/a.py"\narms = {"one": {"hidden": hidden * 2}}\nseeds = [0, 1]', "config/grid.py")
    grid = read_config(name, ".")
    assert grid["arms"] == ({"one": {"hidden": 128}}, "config/grid.py:2") and grid["hidden"] == (64, "config/a.py:1")
    assert grid["seeds"] == ((0, 1), "config/grid.py:3")  # a list is read as a tuple
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
    assert refused("--max_steps=1", "--max_tokens=1").startswith("--max_tokens: max_steps and max_tokens exclude each")
    assert refused(write("max_steps = 1\nmax_minutes = 1")).startswith("config/x.py:2: max_steps and max_minutes")


# syntax that is refused


@pytest.mark.parametrize(
    "line, word",
    [
        ("lr = float('1')", "float('1') is not allowed"),
        ("lr = __import__('os').system('touch hacked')", "is not allowed"),
        ("tag = 'abc'[0]", "is not allowed"),
        ("lengths = [i for i in (1, 2)]", "is not allowed"),
        ("_a = {**{}}", "is not allowed"),
        ("tag = f'{1}'", "is not allowed"),
        ("lr = 1j", "is not allowed"),
        ("lr = lambda: 1", "is not allowed"),
        ("lr = 1 < 2", "is not allowed"),
        ("lr = ~1", "is not allowed"),
        ("lr = 1 % 2", "is not allowed"),
        ("lr: float = 1", "is not allowed"),
        ("hidden += 1", "is not allowed"),
        ("lr, hidden = 1, 2", "is not allowed"),
        ("lengths[0] = 1", "is not allowed"),
        ("import os", "import os is not allowed"),
        ("if True: lr = 1", "is not allowed"),
        ("'a string'", "is not allowed"),
        ("lr = tags", "is not allowed"),
        ("lr = -'a'", "needs numbers"),
        ("lr = True + 1", "needs numbers"),
        ("tag = 'a' * 10**9", "needs numbers"),
        ("lengths = (1,) * 10**9", "needs numbers"),
        ("lr = 1 / 0", "division by zero"),
        ("lr = 0 ** -1", "negative power"),
        ("lr = (-1) ** 0.5", "a number beyond 1e+300, or none"),
        ("lr = (1", "cannot be read"),
        ("lr = 08", "cannot be read"),
        ("  lr = 1", "cannot be read"),
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
        "hidden = (-3)**10**9",
        "hidden = 0.5 ** -(10**9)",
        "lr = 10**400",
        "lr = 10**300 * 10",
        "lr = 1e300 / 1e-300",
        "lr = 1" + "0" * 400,
        "hidden = 2**-10**9",  # 0.0 is a whole number, but no width
        "hidden = " + "9" * 5000,
        "_a = (1, 1)\n" + "_a = (_a, _a)\n" * 60 + "lr = _a",
        "_a = 1\n" + "_a = (_a,)\n" * 5000 + "lr = _a",
        "lr = " + "(" * 500 + "1" + ")" * 500,
        "lr = " + "-" * 20_000 + "1",
        "lr = " + "f." * 900 + "g",
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
    with pytest.raises(UserError):
        read(write(text)).make(Model)
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
        st.sampled_from(["--lr", "--lengths", "--files", "--wandb", "--compile", "--hidden", "lr", "-x", "-h", "--"]),
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
    except SystemExit as stop:
        assert stop.code == 0 and {"--help", "-h"} & set(argv)


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
            expression = f"({expression} {rng.choice(['+', '-', '*', '/', '//', '**'])} {rng.randint(1, 3)})"
        assert value_of("lr", expression) == float(eval(expression)), expression


# help and warnings


def test_help_shows_every_key_with_default_and_meaning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for argv in (["--help"], ["-h"], ["config/missing.py", "--nonsense", "--lr=x", "--help"]):
        with pytest.raises(SystemExit) as stop:
            read(*argv)
        assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("usage: python train.py [CONFIG.py] [--key=value ...]\n\nTrain it.\n")
    assert "More." not in out and "\nTrain:\n" in out and "\nModel:\n" in out
    assert "\n  --lr=0.001           peak learning rate\n" in out
    assert "--lengths=16,32 " in out and "which encoder, 100 % (one of ['perceiver', 'bixt'," in out
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
    with pytest.raises(ArgumentError, match="conflicting option"):
        parse([], Train, Train, prog="", doc="", root=".")


def test_imports_nothing_but_the_standard_library():
    code = "import sys, configurator; print(sorted({'torch', 'numpy', 'model', 'dataset'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(configurator.__file__).parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
