"""
Prepares the default corpus, without a network: docstrings of the standard library and of installed packages.

    python data/pydocs/prepare.py [--max_mb=2]

A document is the prose of one docstring with its lines joined; examples, code, tables and types of parameters are
dropped, as are duplicate documents. Files are read in sorted order; 5 % of them are held out for validation. The corpus
depends on what is installed: versions are in meta.json. About a minute on two cores.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.command import command  # isort: skip  (first: it tells an older Python)
from typing import Annotated

from lab.configurator import PathStr, UserError
from lab.data import prepare
from lab.data.tokenizers import clean

VAL_FRACTION = 0.05  # of the files
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests"}
FILES = 32  # that a process reads at a time


@dataclass
class Pydocs(prepare.Output):
    name: Annotated[str, "name of the dataset: its folder in data_dir"] = "pydocs"
    tokenizer: Annotated[PathStr, prepare.TOKENIZER] = "bpe:4096"
    max_mb: Annotated[float, "stop after this many million characters; 0: read all"] = 0.0


NO_PROSE = "math|code|code-block|sourcecode|plot|testcode|testsetup|testoutput|doctest|parsed-literal|table"
DIRECTIVE = re.compile(rf"\s*\.\. (?:(?P<code>{NO_PROSE})\b)?")
UNDERLINE = re.compile(r"\s*([-=~^*\"#+.])\1{2,}\s*$")
TABLE = re.compile(r"\s*(?:[|+].*[|+]|=+(?: +=+)+|-+(?: +-+)+)\s*$")
PARAMETER = re.compile(r"\s*[\w*., {}]{1,60} : \S|\s*[\w ]{1,30}:\s*$")  # numpy's "x : array_like"; "Returns:"
LABEL = re.compile(r"(\s*)(?:[-*•]\s+|\d+[.)]\s+|[:@]\w+[^:`]*:\s+|\*{0,2}\w+ ?\([^)]*\):\s+)")  # lists, ":param x:"
ROLE = re.compile(r"(?::[\w:+-]+:)?`+~?([^`<]*)(?:<[^`]*>)?`+_*")  # :class:`~torch.Tensor` and ``code``
WORD = re.compile(r"[A-Za-z]{2,}")


def prose(docstring: str) -> str:
    """The prose of a docstring, one paragraph or list item per line; "" if there is none."""
    paragraphs, lines = [], []
    margin = None  # the paragraph's indent; None: any, since a list item or label has just begun it
    hidden = None  # indent of the line whose deeper lines are code
    doctest = False

    def end_paragraph():
        text = ROLE.sub(r"\1", " ".join(lines)).strip().removesuffix("::").strip()
        lines.clear()
        if len(WORD.findall(text)) >= 3 and sum(c.isalpha() or c == " " for c in text) >= 0.8 * len(text):
            paragraphs.append(text)

    for line in inspect.cleandoc(docstring).split("\n"):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if not text:
            doctest = False
            end_paragraph()
            continue
        if hidden is not None and indent > hidden:
            continue
        hidden = None
        doctest = doctest or text.startswith((">>>", "In ["))
        directive = DIRECTIVE.match(line)
        if UNDERLINE.match(line):
            lines.clear()  # the heading
        elif doctest or directive or TABLE.match(line) or PARAMETER.match(line):
            end_paragraph()
            hidden = indent if directive and directive["code"] else None
        else:
            label = LABEL.match(line)
            if label or (lines and margin is not None and indent != margin):
                end_paragraph()
            margin = None if label else indent
            lines.append(line[label.end() :].strip() if label else text)
            if text.endswith("::"):
                hidden = indent
                end_paragraph()
    end_paragraph()
    return "\n".join(paragraphs)


def docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module and of everything defined in it, in order."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        yield ast.get_docstring(node, clean=False) or ""
    for block in ("body", "handlers", "orelse", "finalbody"):  # statements only: expressions hold no definitions
        for inner in getattr(node, block, ()):
            yield from docstrings(inner)


def read_files(files: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """(name, path) of files -> (name, the prose of each docstring) of files that Python can parse."""
    found = []
    for name, path in files:
        # templates, Python 2, bad encodings: not ours to mend
        with suppress(OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            source = Path(path).read_bytes()
            with warnings.catch_warnings(action="ignore"):  # of the parser, about other people's escapes
                tree = ast.parse(source if b'"""' in source or b"'''" in source else "")
            found.append((name, [text for docstring in docstrings(tree) if (text := prose(docstring))]))
    return found


def walk() -> Iterator[tuple[str, str]]:
    """(name, path) of the Python files of the standard library, then of the installed packages, sorted."""
    paths = sysconfig.get_paths()
    roots = {os.path.realpath(paths[kind]): kind for kind in ("platlib", "purelib", "stdlib")}
    for root, kind in sorted(roots.items(), key=lambda item: item[1] != "stdlib"):
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(set(folders) - SKIPPED)
            for file in sorted(files):
                if file.endswith(".py"):
                    path = os.path.join(folder, file)
                    yield f"{kind}/{os.path.relpath(path, root)}", path


class Docstrings(prepare.Source):
    """All documents, in memory (about 30 MB); the progress bar counts characters."""

    unit = "chars"

    def __init__(self, config: Pydocs):
        limit = config.max_mb * 1e6 or float("inf")
        files = list(walk())
        groups = [files[at : at + FILES] for at in range(0, len(files), FILES)]
        self.pieces, self.total, duplicates, seen = [], 0, 0, set()
        with closing(prepare.ordered_map(read_files, groups)) as results:
            for name, texts in chain.from_iterable(prepare.progress(results, "docstrings", len(groups))):
                key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
                split = "val" if prepare.in_val(VAL_FRACTION, key) else "train"
                for text in texts:
                    text = clean(text)
                    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                    if digest in seen:
                        duplicates += 1
                    elif self.total < limit:
                        seen.add(digest)
                        self.pieces.append(prepare.Piece(split, text))
                        self.total += len(text)
                if self.total >= limit:
                    break
        if not self.pieces:
            raise UserError("this Python has no docstrings; run it without -OO and with its standard library")
        versions = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions()}
        self.meta = {"characters": self.total, "duplicates": duplicates, "versions": dict(sorted(versions.items()))}

    def __iter__(self) -> Iterator[prepare.Piece]:
        self.done = 0
        for piece in self.pieces:
            self.done += len(piece.text)
            yield piece


def main(argv):
    prepare.build(prepare.configure(argv, Pydocs, "data/pydocs/prepare.py", __doc__), Docstrings)


if __name__ == "__main__":
    command(main)
