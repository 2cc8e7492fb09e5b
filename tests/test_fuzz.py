"""Whatever a config file and flags hold, train.py reads it or refuses it with one sentence, soon."""

import contextlib
import io
import json
import resource
import signal
import typing
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import train
from lab.configurator import UserError, error_line, fields_of
from lab.training.settings import MATHEMATICS

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(ROOT.glob("config/**/*.py"))
LINES = {path: path.read_text(encoding="utf-8").splitlines() for path in FILES}
FIELDS = {key: field for group in (train.TrainConfig, *MATHEMATICS) for key, field in fields_of(group).items()}
KEYS = [key for key in FIELDS if key != "print_config"]  # which is always given, so that nothing is trained

SECONDS = 30  # of the processor, for one command line: 64 layers take 3, what takes longer hangs
MEMORY = 4 << 30  # bytes that it may take

# Drawn often: what is right, nearly right, or large.
WORDS = r"""
0 1 -1 2 7 8 16 0.5 1e-3 1e300 1e999 -1e400 2**62 2**63 10**6 10**9 10**12 99999999999999999999 10**400 9**9**9 08 1j
2**-10**9 1/0 0**-1 (-1)**0.5 nan inf True False None true none () (16,) (2,10**9) [16,32] 16,32 (0.1,0.3) ((1,),)
{'a':1} {1:2} {} '' 'auto' "mlm" 'tsdae+bow' 'tsdae+1e300*bow' '0*mlm' '%d' b'x' f'{1}' f() x[0] x.y lambda:1 ... lr _a
base -'a' 'a'*9 'a'+'b' True+1 mlm bow contrastive cpu cuda perceiver none posonly idf both ' \0 '\ud800' auto must
""".split()
NAMES = KEYS + KEYS + ["base", "_a", "__class__", "print_config", "lr2", "Lr", "é", "lr.a", "lr, seed", "lr: int", "if"]
OPERATORS = "+ - * / // ** % << | < and ,".split()

value = st.one_of(
    st.sampled_from(WORDS),
    st.tuples(st.sampled_from(WORDS), st.sampled_from(OPERATORS), st.sampled_from(WORDS)).map(" ".join),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.text(max_size=6),
)
character = st.sampled_from(list("=()[]{}'\"\\#,.-+*/:%_ \n\t\0é0a"))
place = st.integers(0, 99)
# Keys with values of their type get far; any name with any value is seldom more than read.
likely = st.sampled_from(KEYS).flatmap(lambda key: st.tuples(st.just(key), of_type(key)))
anything = st.tuples(st.sampled_from(NAMES), value)
change = st.one_of(
    st.tuples(st.just("add"), place, place, likely | anything),
    st.tuples(st.sampled_from(["drop", "double", "swap"]), place, place, st.none()),
    st.tuples(st.just("character"), place, place, character),
    st.tuples(st.just("value"), place, place, value),
)
flag = st.one_of(
    likely.map("--{0[0]}={0[1]}".format),
    st.tuples(
        st.sampled_from(["--"] * 9 + ["-", "", "--no_"]),
        st.sampled_from([*NAMES, "help", ""]),
        st.sampled_from(["=", "=", "=", " ", ""]),
        value,
    ).map("".join),
)


def of_type(key: str):
    """Texts that are right for a key, or nearly: its choices, numbers of all sizes, small ones more often."""
    kinds, _, default, *_ = FIELDS[key]
    choices = [repr(choice) for kind in kinds for choice in typing.get_args(kind) if isinstance(choice, str)]
    return st.one_of(
        st.sampled_from([repr(default), *choices]),
        st.sampled_from(["True", "False"] if bool in kinds else ["0.5", "1e-3", "0.1", "3", "10**12"]),
        st.integers(0, 9).map(lambda n: str(2**n)),
        st.integers(1, 2**63).map(str),
    )


def changed(lines: list[str], changes: list) -> str:
    """The text of a config file after some changes."""
    lines = list(lines)
    for what, i, j, new in changes:
        i, j = i % max(1, len(lines)), j % max(1, len(lines))
        if what == "add":
            lines.insert(i, f"{new[0]} = {new[1]}")
        elif not lines:
            pass
        elif what == "drop":
            del lines[i]
        elif what == "double":
            lines.insert(j, lines[i])
        elif what == "swap":
            lines[i], lines[j] = lines[j], lines[i]
        elif what == "value":
            lines[i] = f"{lines[i].partition('=')[0]}= {new}"
        else:
            k = j % max(1, len(lines[i]))
            lines[i] = lines[i][:k] + new + lines[i][k + 1 :]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for the config; memory that a wrong size cannot fill, and time that it cannot use up."""

    def stop(number, frame):
        raise AssertionError(f"not done in {SECONDS} s")

    train.main([str(ROOT / "config/quickstart.py"), "--print_config"])  # what torch loads late
    before = signal.signal(signal.SIGVTALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    yield tmp_path_factory.mktemp("fuzz")
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.signal(signal.SIGVTALRM, before)


any_file = st.sampled_from([ROOT / "config/quickstart.py"] * (3 * len(FILES)) + FILES)  # mostly the quickest


def check(folder, path, changes, flags):
    config = folder / "x.py"
    config.write_bytes(changed(LINES[path], changes).encode("utf-8", "surrogatepass"))
    words = [word for flag in flags for word in flag.split(" ", 1)]
    argv = [str(config), f"--data_dir={folder}", *words, "--print_config"]
    printed = io.StringIO()
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            assert train.main(argv) == 0
        assert isinstance(json.loads(printed.getvalue()), dict)
    except UserError as error:
        assert len(error_line(error).splitlines()) == 1 and str(error).strip()
        assert printed.getvalue() == ""
    except SystemExit as stop:
        assert stop.code == 0 and {"-h", "--help"} & set(argv)
        assert printed.getvalue().startswith("usage: ")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


# Failures are not made smaller: they are small, and one that hangs would hang a hundred times.
@pytest.mark.timeout(300)
@settings(max_examples=60, phases=[Phase.generate])
@given(path=any_file, changes=st.lists(change, max_size=4), flags=st.lists(flag, max_size=2))
def test_any_config_and_flags(folder, path, changes, flags):
    check(folder, path, changes, flags)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=10_000, phases=[Phase.generate])
@given(path=any_file, changes=st.lists(change, max_size=4), flags=st.lists(flag, max_size=3))
def test_any_config_and_flags_at_length(folder, path, changes, flags):
    check(folder, path, changes, flags)
