"""Configuration: dataclasses with a help line per field -> values, `--help` and clear error messages.

    @dataclass
    class Train:
        lr: Annotated[float, "peak learning rate"] = 1e-3
        out_dir: Annotated[PathStr, "run folder"] = "out"

    config = parse(sys.argv[1:], Train, prog="train.py", doc=__doc__, root=ROOT).make(Train)

Values come from the dataclass, then from a config file (`train.py config/x.py`), then from `--key=value`. A config
file is Python syntax, but it is only read, never executed. In it, names that start with an underscore are helpers.
"""

import argparse
import ast
import difflib
import math
import os
import reprlib
import sys
from collections import namedtuple
from contextlib import suppress
from dataclasses import dataclass, fields
from operator import add, floordiv, mul, neg, pos, sub, truediv
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

MAX_FILE = 256 * 1024  # bytes of a config file
MAX_NUMBER = 1e300  # so that no number overflows, and no power takes forever
UNREADABLE = (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError)  # errors of reading a config


class UserError(ValueError):
    """The user's mistake, in one sentence: what happened; what to do."""


def error_line(error):
    """The line that a command prints on standard error before it ends with exit code 2."""
    return "error: " + " ".join(str(error).split())


def warn(message):
    """Prints a warning on standard error, once over all ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)


def show(path):
    """A path as a person would type it: relative if it is below the working directory."""
    return str(path) if os.path.relpath(path).startswith("..") else os.path.relpath(path)


def nearest(name, names, cutoff=0.5):
    """The most similar of `names`, or None."""
    return next(iter(difflib.get_close_matches(name.lower().replace("-", "_"), names, 1, cutoff)), None)


# ---------------------------------------------------------------------------------------------------------------------
# Config files

SIGNS = {ast.USub: neg, ast.UAdd: pos}
OPERATORS = {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv, ast.FloorDiv: floordiv, ast.Pow: pow}


def evaluate(tree, names):
    """The value of an assignment or expression; raises UserError or another of UNREADABLE."""
    match tree:
        case ast.Assign(targets=[ast.Name()], value=expression):
            return evaluate(expression, names)
        case ast.Constant(value=None | bool() | int() | float() | str()):
            value = tree.value
        case ast.Name(id=name) if name in names:
            value = names[name]
        case ast.Tuple(elts=items) | ast.List(elts=items):
            value = tuple(evaluate(item, names) for item in items)
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            value = {evaluate(key, names): evaluate(value, names) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in SIGNS:
            value = compute(SIGNS[type(sign)], evaluate(operand, names))
        case ast.BinOp(op=sign, left=left, right=right) if type(sign) in OPERATORS:
            value = compute(OPERATORS[type(sign)], evaluate(left, names), evaluate(right, names))
        case _:
            what = ast.unparse(tree).splitlines()[0][:60]
            raise UserError(f"{what} is not allowed; write literals (text in quotes), + - * / // **, names from above")
    if isinstance(value, complex) or (isinstance(value, int | float) and not abs(value) <= MAX_NUMBER):
        raise OverflowError(f"a number beyond {MAX_NUMBER:g}, or none")
    return value


def compute(function, *numbers):
    """Arithmetic. The size of a power is checked before it is computed."""
    if not all(type(number) in (int, float) for number in numbers):
        raise UserError("arithmetic needs numbers; write text and tuples as they are")
    if function is pow and numbers[0] and numbers[1] * math.log10(abs(numbers[0])) > math.log10(MAX_NUMBER):
        return math.inf
    return function(*numbers)


def find_config(word, folder):
    """The config file `word`, as given or in `folder`, with or without .py; UserError if there is none."""
    path = Path(word).expanduser()
    for found in (path, folder / path, folder / f"{path}.py", Path(f"{path}.py")):
        if os.path.isfile(found):
            return found
    raise UserError(missing_file(path, folder))


def missing_file(path, *folders):
    """The error message for a missing config, with the most similar file name of its folder and of `folders`."""
    there = {file.stem: file for folder in (*folders, path.parent) for file in folder.glob("*.py")}
    near = nearest(path.stem, there, 0.6)
    hint = f"did you mean {show(there[near])}?" if near else f"look into {show(path.parent)}"
    return f"config {show(path)} does not exist; {hint}"


def read_layers(path, root, _above=()):
    """A config and its chain of bases -> list of {name: (value, "file:line")}, the deepest base first."""
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(missing_file(path))
    if os.path.getsize(path) > MAX_FILE:
        raise UserError(f"{show(path)} is longer than {MAX_FILE // 1024} KiB; name a config file")
    if path.resolve() in _above:
        raise UserError(f"{show(path)} leads back to itself; remove one base of the circle")
    layers, layer, names, line = [], {}, {}, 1  # names: that expressions may use
    try:
        tree = ast.parse(path.read_bytes())
        for statement in tree.body[ast.get_docstring(tree, clean=False) is not None :]:
            line = statement.lineno
            value = evaluate(statement, names)
            name = statement.targets[0].id
            if name != "base":
                names[name], layer[name] = value, (value, f"{show(path)}:{line}")
            elif layer or layers or not isinstance(value, str):
                raise UserError('base must stand first, and name a file; write base = "config/x.py" at the top')
            else:
                layers = read_layers(Path(root) / os.path.expanduser(value), root, (*_above, path.resolve()))
                names = {name: value for below in layers for name, (value, _) in below.items()}
    except UNREADABLE as error:
        line = getattr(error, "lineno", None) or line
        what = error if isinstance(error, UserError) else f"this cannot be read ({error}); write a literal value"
        raise UserError(f"{show(path)}:{line}: {what}") from None
    return [*layers, layer]


# ---------------------------------------------------------------------------------------------------------------------
# Keys and their types: int, float, str, PathStr, bool, None, Literal[...], tuple[x, ...], tuple[x, y], and unions

# kinds: the types of a union, or the only one; bounds, group: None, or Bounds and Group of objectives.py
Field = namedtuple("Field", "kinds help default bounds group")


def fields_of(group):
    """A dataclass whose fields have defaults -> {key: Field}. Fields without a help line are not options."""
    found, hints = {}, get_type_hints(group, include_extras=True)
    for field in fields(group):
        if get_origin(hints[field.name]) is not Annotated:
            continue
        kind, about, *marks = get_args(hints[field.name])
        marks = {type(mark).__name__: mark for mark in marks}
        kinds = (kind,) if get_origin(kind) in (None, tuple, Literal) else get_args(kind)
        # a help line may be a function, if it depends on classes that are defined later
        about = about() if callable(about) else about
        found[field.name] = Field(kinds, about, field.default, marks.get("Bounds"), marks.get("Group"))
    return found


class PathStr(str):
    """The type of keys that name a file or folder: a leading ~ is expanded to the home folder."""


def describe(kinds):
    """Types as a person would write them: tuple[int, ...], bool or one of ['auto']."""
    words = [str(kind) if get_origin(kind) else kind.__name__ for kind in kinds]
    text = " or ".join(words).replace("typing.Literal", "one of ").replace("NoneType", "None")
    return text.replace(f"{__name__}.", "").replace("PathStr", "path")


def convert(value, kinds):
    """A Python value converted to the first type that it fits; ValueError if there is none."""
    is_number = type(value) in (int, float)  # a bool is not
    for kind in kinds:
        args = get_args(kind)
        if kind is float and is_number:
            return float(value)
        if kind is int and is_number and abs(value) < 2**63 and value == int(value):  # 1e6 is a whole number
            return int(value)
        if kind is PathStr and type(value) is str:
            return os.path.expanduser(value)
        if (kind is type(value) and not is_number) or (get_origin(kind) is Literal and value in args):
            return value
        if get_origin(kind) is tuple and isinstance(value, tuple):
            wanted = args[:1] * len(value) if args[-1] is ... else args
            with suppress(ValueError):  # another kind of tuple may fit
                return tuple(convert(item, [one]) for item, one in zip(value, wanted, strict=True))
    raise ValueError


def from_words(words, kinds):
    """The word or words after `--key`, converted to the first type that they fit; ValueError if there is none."""
    text = words if isinstance(words, str) else ",".join(words)
    tries = [text] if isinstance(words, str) or len(words) == 1 else [tuple(words)]
    with suppress(*UNREADABLE):
        value = evaluate(ast.parse(text.strip() or "()", mode="eval").body, {"true": True, "false": False})
        tries += [value, (value,)]
    for value in [*tries, tuple(part.strip() for part in text.split(",") if part.strip())]:
        with suppress(ValueError):
            return convert(value, kinds)
    raise ValueError


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action):
        return f"{action.option_strings[0]}={action.metavar}"


class Parser(argparse.ArgumentParser):
    def __init__(self, groups, prog, doc, positional, root, only=(), epilog=""):
        """only: the keys that the help shows, if not all."""
        config = {True: "[CONFIG.py] ", "many": "[CONFIG.py ...] ", False: ""}[positional]
        usage, about = f"python {prog} {config}[--key=value ...]", (doc or "").strip().split("\n\n")[0]
        keys = {"formatter_class": HelpFormatter, "add_help": False, "allow_abbrev": False}
        super().__init__(prog, usage, about, epilog, **keys)
        fields, sections = [(group.__name__, *item) for group in groups for item in fields_of(group).items()], {}
        for title, key, (kinds, about, default, bounds, group) in sorted(
            (one for one in fields if not only or one[1] in only), key=lambda one: only and only.index(one[1])
        ):
            title = "everyday keys" if only else group.name if group else title
            if title not in sections:
                sections[title] = self.add_argument_group(title)
            origins = [get_origin(kind) for kind in kinds]
            if isinstance(default, str) and default.startswith(str(root)):
                default = os.path.relpath(default, root)
            about = about.split(". ")[0] if only else about
            allowed = describe(kinds) if Literal in origins else bounds
            sections[title].add_argument(
                f"--{key.rstrip('_')}",  # from_ is --from
                dest=key,
                default=argparse.SUPPRESS,
                nargs="*" if tuple in origins else "?",
                metavar=",".join(map(str, default)) if isinstance(default, tuple) else default,
                help=(f"{about} ({allowed})" if allowed else about).replace("%", "%%"),
            )

    def error(self, message):
        raise UserError(f"{message}; write --key=value")


def read_flags(parser, argv, keys, positional, folder):
    """argv -> ({key: (words, "--key")}, paths of configs). Words are not converted yet."""
    switches = [f"--{key}" for key, field in keys.items() if bool in field.kinds]
    argv = [f"{word}=True" if word in switches else word for word in argv]  # the next word is not its value
    found, words = parser.parse_known_args(argv)
    paths = []
    for word in words:
        key = word.lstrip("-").partition("=")[0]
        if key in keys:
            raise UserError(f"{word} is no flag; write --{word.lstrip('-')}")
        if word.startswith("-"):
            raise unknown_key(key, f"--{key}", keys)
        if not positional or (positional != "many" and paths):
            raise UserError(f"{word} is one word too many; write --key=value")
        paths.append(find_config(word, folder))
    return {key: ([] if words is None else words, f"--{key}") for key, words in vars(found).items()}, paths


ELSEWHERE = {  # a key -> what nanoGPT and Hugging Face call it; used where a command has the key, the first one first
    "lr": "learning_rate",
    "lr_end": "min_lr",
    "schedule": "lr_scheduler_type decay_lr",
    "warmup": "warmup_iters warmup_steps warmup_ratio",
    "clip": "grad_clip max_grad_norm",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "max_steps": "max_iters lr_decay_iters",
    "max_epochs": "epochs num_epochs num_train_epochs",
    "epochs": "num_epochs num_train_epochs max_epochs max_iters max_steps",
    "micro_batch": "per_device_train_batch_size gradient_accumulation_steps device_batch_size",
    "batch": "batch_size per_device_train_batch_size",
    "lengths": "block_size max_seq_length seq_len context_length",
    "max_length": "block_size max_seq_length max_position_embeddings n_positions",
    "layers": "n_layer num_layers num_hidden_layers",
    "heads": "n_head num_heads num_attention_heads",
    "hidden": "n_embd hidden_size d_model d_latents",
    "intermediate": "intermediate_size d_ff ffn_dim",
    "concepts": "num_latents",
    "dropout": "hidden_dropout_prob attention_probs_dropout_prob",
    "tied": "tie_word_embeddings",
    "vocab_size": "vocab n_vocab",
    "mask_rate": "mlm_probability",
    "eval_tokens": "eval_iters per_device_eval_batch_size",
    "eval_interval": "eval_steps",
    "log_interval": "logging_steps",
    "ckpt_interval": "save_steps always_save_checkpoint",
    "keep": "save_total_limit",
    "resume": "resume_from_checkpoint",
    "init_from": "model_name_or_path",
    "run": "model_name_or_path out_dir",
    "out_dir": "output_dir",
    "out": "output_dir out_dir",
    "tag": "run_name wandb_run_name",
    "wandb": "wandb_log report_to",
    "dtype": "bf16 fp16 torch_dtype",
    "compile": "torch_compile",
    "dataset": "dataset_name",
    "tasks": "task_name",
    "text": "start prompt",
    "length": "max_new_tokens",
    "files": "train_file",
}


RENAMED = {"seeds_faithful": "original_structure", "least_iterations": "min_iterations", "span_longest": "max_span"}
REMOVED = dict.fromkeys(("pooling", "gru", "hinge_rank", "interpolate"), "its result: docs/LOG.md")
REMOVED |= dict.fromkeys(("views=disjoint", "views=unshared", "init=fan_in_depth"), "its result: docs/LOG.md")
REMOVED |= dict.fromkeys(("predictor", "decoder=pooled", "decoder=none"), "it follows from the objective")


def unknown_key(key, where, keys):
    if RENAMED.get(key) in keys:
        return UserError(f"{where}: {key} is now called {RENAMED[key]}; write {RENAMED[key]}")
    if key in REMOVED:
        return UserError(f"{where}: {key} was removed ({REMOVED[key]}); leave it out")
    theirs = {name: own for own, names in reversed(ELSEWHERE.items()) if own in keys for name in names.split()}
    meant = nearest(key, theirs.keys() - keys.keys(), 0.85)
    near = nearest(key, [*keys, *([meant] if meant else [])])
    hint = f"did you mean {near}? " if near else ""
    if near and near == meant:
        hint = f"here it is {theirs[near]} ({keys[theirs[near]].help}); "
    return UserError(f"{where}: unknown key {key}; {hint}--help=all lists every key")


def wrong_type(key, value, where, field):
    if isinstance(value, str) and (choice := f"{key}={value}") in REMOVED:
        return UserError(f"{where}: {choice} was removed ({REMOVED[choice]}); leave it out")
    choices = [choice for kind in field.kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    near = nearest(value, [c for c in choices if isinstance(c, str)]) if isinstance(value, str) else None
    like = "see --help" if field.default == () else f"write a value like {field.default!r}"
    hint = f"did you mean {near}?" if near else like
    return UserError(f"{where}: {key} must be {describe(field.kinds)}, not {reprlib.repr(value)}; {hint}")


@dataclass
class Arguments:
    """The result of `parse`. given: only the keys that were set, and where ("config/x.py:12" or "--lr")."""

    values: dict
    given: dict
    config: Path | None
    configs: list

    def make(self, group):
        """An instance of one of the groups; its ValueErrors become UserErrors."""
        try:
            return group(**{key: self.values[key] for key in fields_of(group)})
        except ValueError as error:
            raise UserError(str(error)) from error

    def unused(self, names, why):
        """Warn of each of `names` that was given although it is not used, e.g. why='by objective="tsdae"'."""
        for name in [name for name in self.given if name in names]:
            warn(f"{self.given[name]}: {name} is not used {why}")


def parse(argv, *groups, prog, doc, root, exclusive=(), positional=True, configs="config", everyday=(), more=None):
    """Defaults of `groups`, then the config file, then the flags of `argv` -> Arguments; UserError for a mistake.

    exclusive: tuples of keys of which one source sets at most one; setting one clears the others (to 0 of their type).
    positional: True: at most one CONFIG, which is read; "many": paths for `configs`, only looked up; False: none.
    configs: folder below `root` whose files may be named without it.
    everyday: the keys that `--help` shows, where `--help=all` shows every key by its group; more: makes a text
    that stands under them.
    """
    if asked := {"-h", "--help", "--help=all"}.intersection(argv):
        short = everyday and "--help=all" not in asked
        about = f"{more() if more else ''}--help=all: every key, by its group" if short else ""
        Parser(groups, prog, doc, positional, root, everyday if short else (), about).print_help()
        sys.exit(0)
    keys = {key: field for group in groups for key, field in fields_of(group).items()}
    flags, paths = read_flags(Parser(groups, prog, doc, positional, root), argv, keys, positional, Path(root) / configs)
    values, given = {key: field.default for key, field in keys.items()}, {}
    layers = [(layer, convert) for path in paths if positional is True for layer in read_layers(path, root)]
    for layer, read in [*layers, (flags, from_words)]:
        for key, (value, where) in layer.items():
            if key in keys:
                try:
                    values[key], given[key] = read(value, keys[key].kinds), where
                except ValueError:
                    raise wrong_type(key, value, where, keys[key]) from None
            elif not key.startswith("_"):
                raise unknown_key(key, where, keys)
        for names in exclusive:
            chosen = [key for key in names if key in layer and values[key]]  # max_steps = 0 chooses nothing
            if len(chosen) > 1:
                raise UserError(f"{given[chosen[1]]}: {' and '.join(chosen)} exclude each other; keep one")
            for key in names:
                if chosen and key != chosen[0]:
                    values[key] = type(values[key])()
                    given.pop(key, None)
    return Arguments(values, given, paths[0] if paths else None, paths)
