"""Configuration: a dataclass with one help line per field goes in; values, `--help` and clear errors come out.

    @dataclass
    class Train:
        lr: Annotated[float, "peak learning rate"] = 1e-3

    parsed = parse(sys.argv[1:], Train, prog="train.py", doc=__doc__, root=ROOT)
    config = parsed.make(Train)

Values come from the dataclass, then from a config file (`train.py config/x.py`), then from `--key=value`. A config
file is Python syntax with nothing but a docstring and assignments; it is read with `ast` and never executed. Names that
start with an underscore are the file's own helpers, all others must be keys. This file knows no key.
"""

import ast
import dataclasses
import difflib
import os
import re
import reprlib
import shlex
import shutil
import sys
import textwrap
import types
import typing
import warnings
from pathlib import Path

MAX_FILE = 256 * 1024  # bytes of a config file
MAX_BITS = 1024  # of a whole number anywhere in a config
MAX_WEIGHT = 10_000  # items of one value, nested ones counted; ten characters of text are one item


class UserError(ValueError):
    """The user's mistake, in one sentence: what happened; what to do."""


def error_line(error):
    """The one line a command prints on standard error before it ends with exit code 2."""
    return "error: " + " ".join(str(error).split())


def warn(message):
    """Print a warning on standard error, once over all ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {message}", file=sys.stderr)


def show(path):
    """A path as a person would type it: relative to the working directory where it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def nearest(name, names, cutoff=0.5):
    """The one of `names` that `name` was probably meant to be, or None."""
    folded = {n.lower(): n for n in names}
    found = difflib.get_close_matches(name.lower().replace("-", "_"), folded, 1, cutoff)
    return folded[found[0]] if found else None


# ---------------------------------------------------------------------------------------------------------------------
# Literals and bounded arithmetic: an expression tree -> its value


OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
    ast.Pow: lambda a, b: a**b,
    ast.LShift: lambda a, b: a << b,
    ast.RShift: lambda a, b: a >> b,
}
REFUSED = {  # what people try first; anything else is named by its syntax node
    ast.Call: "a function call",
    ast.Attribute: "an attribute (a.b)",
    ast.Subscript: "an index (a[i])",
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.JoinedStr: "an f-string",
    ast.NamedExpr: "an assignment inside an expression (:=)",
    ast.Lambda: "a lambda",
    ast.FunctionDef: "a function",
    ast.ClassDef: "a class",
    ast.IfExp: "a conditional expression",
    ast.Compare: "a comparison",
    ast.Starred: "unpacking (*a)",
    ast.Expr: "a bare expression",
    ast.AugAssign: "an augmented assignment (a += b)",
    ast.AnnAssign: "an annotated assignment (a: int = b)",
    ast.Set: "a set",
} | dict.fromkeys((ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp), "a comprehension")


def refuse(node):
    what = REFUSED.get(type(node), f"'{type(node).__name__}'")
    return UserError(f"{what} is not allowed in a config; write name = value with literals, arithmetic, earlier names")


def weight(value):
    """Items of a value, nested ones counted. The parts were checked when they were built, so this stays cheap."""
    if isinstance(value, str):
        return 1 + len(value) // 10
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return MAX_WEIGHT + 1
    total = 1
    if isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            total += weight(item)
            if total > MAX_WEIGHT:
                break
    return total


def operate(operator, a, b):
    """`a operator b`, refused before the work where the result would be huge."""
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    whole = isinstance(a, int) and isinstance(b, int)
    if operator in (ast.Add, ast.Mult) and not numbers:
        if operator is ast.Mult:
            count, piece = (a, b) if isinstance(a, int) else (b, a)
            if isinstance(count, int) and isinstance(piece, (str, tuple, list)):
                if max(count, 0) * max(weight(piece), len(piece)) > MAX_WEIGHT:
                    raise UserError("a repetition is too long; write the value out or make it shorter")
    elif not numbers:
        raise UserError("arithmetic needs numbers; write text and tuples as they are")
    elif operator is ast.Pow and whole and b > 0 and a.bit_length() * b > MAX_BITS + b:
        raise UserError("a power is too large; use a smaller exponent")
    elif operator is ast.LShift and whole and not 0 <= b <= MAX_BITS:
        raise UserError("a shift is too far; use a smaller one")
    return OPERATORS[operator](a, b)


def evaluate(node, names):
    """Value of an expression tree; raises UserError (no place named) for all that is no literal or arithmetic."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            value = node.value
        case ast.Name():
            if node.id not in names:
                raise UserError(f'{node.id} is not assigned above; write "{node.id}" in quotes if it is text')
            return names[node.id]
        case ast.Tuple():
            value = tuple(evaluate(item, names) for item in node.elts)
        case ast.List():
            value = [evaluate(item, names) for item in node.elts]
        case ast.Dict():
            if None in node.keys:
                raise UserError("unpacking (**a) is not allowed in a config; write the entries out")
            keys = [evaluate(key, names) for key in node.keys]
            if not all(isinstance(key, (str, int, float)) for key in keys):
                raise UserError('the keys of a dict must be text or numbers; write {"name": value}')
            value = dict(zip(keys, [evaluate(item, names) for item in node.values], strict=True))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            value = evaluate(node.operand, names)
            if not isinstance(value, (int, float)):
                raise UserError("a sign needs a number; write for example -1")
            value = -value if isinstance(node.op, ast.USub) else value
        case ast.BinOp() if type(node.op) in OPERATORS:
            value = operate(type(node.op), evaluate(node.left, names), evaluate(node.right, names))
            if isinstance(value, complex):
                raise UserError("a root of a negative number is not a number; check the signs")
        case ast.UnaryOp() | ast.BinOp() | ast.BoolOp():
            raise UserError("only the operators + - * / // % ** << >> are allowed in a config; write the value")
        case _:
            raise refuse(node)
    if weight(value) > MAX_WEIGHT:
        raise UserError("a value is too large; write a smaller one")
    return value


def evaluate_safely(node, names):
    """`evaluate` with every other failure of arithmetic or depth turned into UserError too."""
    try:
        return evaluate(node, names)
    except UserError:
        raise
    except (ArithmeticError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"this cannot be computed ({error}); write the value itself") from None


def parse_python(source, mode):
    """Source -> syntax tree, without the compiler's warnings; raises UserError with `.line`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source, mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        wrong = UserError(f"this is not valid Python syntax ({getattr(error, 'msg', None) or error}); correct the line")
        wrong.line = getattr(error, "lineno", None) or 1
        raise wrong from None


# ---------------------------------------------------------------------------------------------------------------------
# Config files


def missing_file(path):
    """The sentence for a config that is not there, with the nearest file of its folder."""
    path = Path(path)
    if os.path.isdir(path):
        return f"{show(path)} is a folder; name one .py file in it"
    if os.path.isdir(path.parent):
        near = nearest(path.stem, [file.stem for file in path.parent.glob("*.py")], 0.6)
        if near:
            return f"config {show(path)} does not exist; did you mean {show(path.parent / near)}.py?"
        return f"config {show(path)} does not exist; look in {show(path.parent)} for the files that do"
    return f"config {show(path)} does not exist, nor does its folder; start in the folder that holds it"


def read_layers(path, root, _above=()):
    """A config and its chain of bases -> list of {name: (value, "file:line")}, the deepest base first."""
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(missing_file(path))
    try:
        with open(path, "rb") as file:
            source = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UserError(f"config {show(path)} cannot be read ({error.strerror}); check its permissions") from None
    if len(source) > MAX_FILE:
        raise UserError(f"config {show(path)} is longer than {MAX_FILE // 1024} KiB; name a config file")
    try:
        tree = parse_python(source, "exec")
    except UserError as error:
        raise UserError(f"{show(path)}:{error.line}: {error}") from None

    layers, layer = [], {}
    names = {}  # what an expression may refer to
    body = tree.body[1:] if ast.get_docstring(tree, clean=False) is not None else tree.body
    for position, statement in enumerate(body):
        where = f"{show(path)}:{statement.lineno}"
        try:
            if not isinstance(statement, ast.Assign):
                raise refuse(statement)
            if len(statement.targets) != 1 or not isinstance(statement.targets[0], ast.Name):
                raise UserError("only name = value is allowed in a config; assign one name a line")
            name = statement.targets[0].id
            value = evaluate_safely(statement.value, names)
            if name == "base" and position > 0:
                raise UserError("base must stand first; move it to the top of the file")
            if name == "base" and not isinstance(value, str):
                raise UserError('base must be a file name; write base = "config/x.py"')
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if name == "base":
            parent = Path(root) / value
            if not os.path.isfile(parent):
                raise UserError(f"{where}: base: {missing_file(parent)}")
            above = (*_above, path.resolve())
            if parent.resolve() in above:
                raise UserError(f"{where}: base: {show(parent)} leads back to itself; remove one base of the circle")
            layers = read_layers(parent, root, above)
            names = {name: value for base in layers for name, (value, _) in base.items()}
        else:
            names[name] = value
            layer[name] = (value, where)
    return [*layers, layer]


def read_config(path, root):
    """A config with its bases merged -> {name: (value, "file:line")}; helpers (_name) are left out."""
    merged = {name: entry for layer in read_layers(path, root) for name, entry in layer.items()}
    return {name: entry for name, entry in merged.items() if not name.startswith("_")}


# ---------------------------------------------------------------------------------------------------------------------
# Types: int, float, str, bool, dict, None, Literal[...], tuple[x, ...], tuple[x, y] and unions of these


def arms(kind):
    """The alternatives of a type; text last, since any word is text."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    found = [arm for part in typing.get_args(kind) for arm in arms(part)] if union else [kind]
    return sorted(found, key=lambda arm: arm is str)


def convert(value, kind):
    """A Python value as the type `kind` wants it; ValueError if it does not fit."""
    for arm in arms(kind):
        origin, args = typing.get_origin(arm), typing.get_args(arm)
        if origin is typing.Literal:
            if any(type(value) is type(choice) and value == choice for choice in args):
                return value
        elif origin is tuple:
            if isinstance(value, (tuple, list)) and (args[-1] is ... or len(args) == len(value)):
                parts = args[:1] * len(value) if args[-1] is ... else args
                try:
                    return tuple(convert(item, part) for item, part in zip(value, parts, strict=True))
                except ValueError:
                    pass
        elif arm is float and type(value) in (int, float):
            if abs(value) < 2.0**1023:  # neither inf nor nan
                return float(value)
        elif arm is int and type(value) in (int, float):
            if abs(value) < 2**63 and value == int(value):  # 1e6 is a whole number
                return int(value)
        elif type(value) is arm:
            return value
    raise ValueError


def from_text(text, kind):
    """A word of the command line as the type `kind` wants it; ValueError if it does not fit."""
    for arm in arms(kind):
        origin, args = typing.get_origin(arm), typing.get_args(arm)
        try:
            if arm is str:
                return text
            elif origin is typing.Literal:
                return {str(choice): choice for choice in args}[text]
            elif arm in (bool, type(None)):
                return convert({"true": True, "false": False, "none": None}[text.lower()], arm)
            elif origin is tuple and text.strip()[:1] not in ("(", "["):
                if not text.strip():
                    return convert((), arm)
                elif args[0] is str:
                    return convert(tuple(part.strip() for part in text.split(",") if part.strip()), arm)
                value = evaluate_safely(parse_python(text.strip(), "eval").body, {})
                return convert(value if isinstance(value, tuple) else (value,), arm)
            return convert(evaluate_safely(parse_python(text.strip(), "eval").body, {}), arm)
        except (KeyError, ValueError):
            pass
    raise ValueError


WORDS = {int: "whole number", float: "finite number", bool: "True or False", str: "text", dict: "dict"}


def describe(kind):
    """A type in words."""
    words = []
    for arm in arms(kind):
        args = typing.get_args(arm)
        if typing.get_origin(arm) is typing.Literal:
            words.append(("one of " if len(args) > 1 else "") + ", ".join(str(choice) for choice in args))
        elif typing.get_origin(arm) is tuple:
            plural = WORDS.get(args[0], str(args[0])) + ("" if args[0] is str else "s")
            words.append(f"a tuple of {plural}" if args[-1] is ... else f"a tuple of {len(args)} {plural}")
        else:
            words.append(("" if arm in (bool, str, type(None)) else "a ") + WORDS.get(arm, "None"))
    return " or ".join(words)


def wrong_type(key, value, kind, default, flag):
    """The sentence for a value that does not fit; `flag` is True for the command line."""
    literals = [arm for arm in arms(kind) if typing.get_origin(arm) is typing.Literal]
    choices = [str(choice) for arm in literals for choice in typing.get_args(arm)]
    near = nearest(value, choices) if isinstance(value, str) else None
    got = reprlib.repr(value)
    if near:
        return f"{key} must be {describe(kind)}, not {got}; did you mean {near}?"
    example = choices[0] if choices and not flag and default in (None, "") else default
    if not flag:
        for attempt in ((value,), str(value) if isinstance(value, (int, float)) else None):
            try:  # a forgotten comma or forgotten quotes: show the line as it should be
                example = convert(attempt, kind)
            except ValueError:
                pass
    written = f"--{key}={as_text(example)}" if flag else f"{key} = {reprlib.repr(example)}"
    return f"{key} must be {describe(kind)}, not {got}; write for example {written}"


def as_text(value):
    """A value as it is typed after `--key=` in a shell."""
    if isinstance(value, (tuple, list)):
        value = ",".join(str(item) for item in value)
    return shlex.quote(str(value)) if value != "" else ""


# ---------------------------------------------------------------------------------------------------------------------
# The command line


@dataclasses.dataclass
class Field:
    kind: object
    help: str
    default: object


def fields_of(group):
    """A dataclass -> {key: Field}; fields with init=False are no keys."""
    hints = typing.get_type_hints(group, include_extras=True)
    found = {}
    for field in dataclasses.fields(group):
        if field.init:
            hint = hints[field.name]
            assert typing.get_origin(hint) is typing.Annotated, f"{group.__name__}.{field.name} needs a help line"
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            assert default is not dataclasses.MISSING, f"{group.__name__}.{field.name} needs a default"
            found[field.name] = Field(hint.__origin__, hint.__metadata__[0], default)
    return found


def fits(text, kind):
    try:
        from_text(text, kind)
        return True
    except ValueError:
        return False


def unknown_key(key, where, keys):
    near = nearest(key, keys)
    return UserError(f"{where}: unknown key {key}; " + (f"did you mean {near}? " if near else "") + "--help lists all")


def read_flags(argv, fields):
    """argv -> ({key: (value, "--key")}, the words that belong to no flag)."""
    flags, words = {}, []
    argv = list(argv)

    def is_value(word):  # -1 and -0.5 are values, not flags
        return not word.startswith("-") or re.match(r"-\.?\d", word)

    while argv:
        word = argv.pop(0)
        if not word.startswith("-"):
            words.append(word)
            continue
        key, equals, text = word.lstrip("-").partition("=")
        if key not in fields:
            raise unknown_key(key, f"--{key}", fields)
        if not word.startswith("--"):
            raise UserError(f"{word} starts with one dash; write --{word[1:]}")
        kind, shown = fields[key].kind, f"--{key}={text}"
        several = next((arm for arm in arms(kind) if typing.get_origin(arm) is tuple), None)
        parts = [text]
        if not equals and bool in arms(kind):
            parts = [argv.pop(0) if argv and fits(argv[0], kind) else "True"]
        elif not equals:
            if not argv or not is_value(argv[0]):
                raise UserError(f"--{key} has no value; write --{key}={as_text(fields[key].default) or 'VALUE'}")
            parts = [argv.pop(0)]
            of_text = several and str in arms(typing.get_args(several)[0])
            while several and argv and (is_value(argv[0]) if of_text else re.match(r"[-+]?\.?\d", argv[0])):
                parts.append(argv.pop(0))
            shown = f"--{key} {shlex.join(parts)}"
        try:
            if len(parts) > 1 and of_text:
                value = convert(tuple(parts), kind)  # file names: their commas are their own
            else:
                value = from_text(",".join(parts), kind)
        except ValueError:
            sentence = wrong_type(key, ",".join(parts), kind, fields[key].default, flag=True)
            raise UserError(f"{shown}: {sentence}") from None
        flags[key] = (value, f"--{key}")
    return flags, words


def stray_word(word, positional, fields):
    key = word.partition("=")[0]
    if key in fields:
        return UserError(f"{word} is no flag; write --{word}")
    if positional:
        return UserError(f"{word} is a second config; give one, and the rest as --key=value")
    return UserError(f"{word} is not understood, as no config file is taken here; give --key=value")


def help_text(groups, prog, doc, positional):
    """The doc's first paragraph, usage, and every key with default and meaning."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    config = {True: "[CONFIG.py] ", "many": "[CONFIG.py ...] ", False: ""}[positional]
    first = " ".join(textwrap.dedent(doc or "").strip().split("\n\n")[0].split())
    lines = [textwrap.fill(first, width), ""] if first else []
    lines += [f"usage: python {prog} {config}[--key=value ...]", ""]
    for group in groups:
        about = (group.__doc__ or "").strip().split("\n\n")[0]
        about = "" if about.startswith(f"{group.__name__}(") else " ".join(about.split())  # dataclass writes its own
        lines += [*textwrap.wrap(f"{group.__name__}: {about}" if about else group.__name__, width)]
        for key, field in fields_of(group).items():
            flag = f"  --{key}={as_text(field.default)}"
            literals = [arm for arm in arms(field.kind) if typing.get_origin(arm) is typing.Literal]
            about = field.help + (f" ({describe(field.kind)})" if literals else "")
            body = textwrap.wrap(about, width - 30, break_long_words=False, break_on_hyphens=False) or [""]
            if len(flag) > 28:
                lines.append(flag)
                flag = ""
            lines += [f"{flag if i == 0 else '':<30}{line}".rstrip() for i, line in enumerate(body)]
        lines.append("")
    return "\n".join(lines).rstrip()


@dataclasses.dataclass
class Parsed:
    """What `parse` found: `given` holds only the keys that were set, and where ("config/x.py:12" or "--lr")."""

    values: dict
    given: dict
    config: Path | None = None
    configs: list = dataclasses.field(default_factory=list)

    def make(self, group):
        """An instance of one of the groups; its ValueErrors become UserErrors."""
        try:
            return group(**{field.name: self.values[field.name] for field in dataclasses.fields(group) if field.init})
        except UserError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from error

    def unused(self, names, why):
        """Warn of each of `names` that was given although it is not used, e.g. why='by objective="tsdae"'."""
        for name in self.given:
            if name in names:
                warn(f"{self.given[name]}: {name} is not used {why}")


def parse(argv, *groups, prog, doc, root, exclusive=(), positional=True):
    """Defaults of `groups`, then the config file, then the flags of `argv` -> Parsed; UserError for a mistake.

    exclusive: tuples of keys of which one source sets at most one; setting one clears the others (to 0 of their type).
    positional: True: at most one CONFIG, which is read; "many": paths for `configs`, only looked up; False: none.
    """
    fields = {}
    for group in groups:
        found = fields_of(group)
        assert not found.keys() & fields.keys(), f"keys in two groups: {found.keys() & fields.keys()}"
        fields |= found
    if "--help" in argv or "-h" in argv:
        print(help_text(groups, prog, doc, positional))
        raise SystemExit(0)

    flags, words = read_flags(argv, fields)
    for number, word in enumerate(words):
        if not positional or (number > 0 and positional != "many") or ("=" in word and not Path(word).exists()):
            raise stray_word(word, positional, fields)
        if not os.path.isfile(word):
            raise UserError(missing_file(word))
    configs = [Path(word) for word in words]
    config = configs[0] if configs and positional != "many" else None

    values, given = {key: field.default for key, field in fields.items()}, {}
    for layer in [*(read_layers(config, root) if config else []), flags]:
        for key, (value, where) in layer.items():
            if layer is flags:
                values[key], given[key] = value, where
            elif key in fields:
                try:
                    values[key], given[key] = convert(value, fields[key].kind), where
                except ValueError:
                    sentence = wrong_type(key, value, fields[key].kind, fields[key].default, flag=False)
                    raise UserError(f"{where}: {sentence}") from None
            elif not key.startswith("_"):
                raise unknown_key(key, where, fields)
        for keys in exclusive:
            chosen = [key for key in keys if key in layer and values[key]]  # max_steps = 0 chooses nothing
            if len(chosen) > 1:
                where = " and ".join(f"{key} ({given[key]})" for key in chosen)
                raise UserError(f"{where} exclude each other; keep one")
            for key in keys:
                if chosen and key != chosen[0]:
                    values[key] = type(values[key])()
                    given.pop(key, None)
    return Parsed(values, given, config, configs)
