"""
Any local text as training data: files in, data/NAME/{train.bin, val.bin, tokenizer.json, meta.json} out.

    python data/text/prepare.py --name=wiki --files wiki_*.txt.xz --tokenizer=bpe:16384

Files are plain text (.txt, or any other ending) or one JSON object with a "text" a line (.jsonl), either of them packed
(.xz, .gz) or not. In plain text a blank line ends a document. A seeded choice of documents is kept for validation, at
least one; of a single document its last twentieth.
"""

import codecs
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab import prepare
from lab.command import command
from lab.configurator import UserError, show

UNPACK = {".xz": lzma.open, ".gz": gzip.open}


@dataclass
class Text(prepare.Output):
    files: Annotated[tuple[str, ...], "text files: .txt or .jsonl, as they are or packed (.xz, .gz)"] = ()
    val_fraction: Annotated[float, "share of the documents kept for validation (at least one)"] = 0.01

    def __post_init__(self):
        if not 0 <= self.val_fraction <= 0.5:
            raise ValueError(f"val_fraction must be 0 to 0.5, not {self.val_fraction:g}; write --val_fraction=0.01")


class Files(prepare.Source):
    """Documents of text files, streamed; the bar counts bytes on disk."""

    def __init__(self, config: Text):
        self.paths = [Path(file) for file in config.files]
        self.fraction = config.val_fraction
        if not self.paths:
            raise UserError("there are no files to read; add --files FILE ...")
        for path in self.paths:
            if not path.is_file():
                raise UserError(f"{show(path)} does not exist or is no file; correct --files")
        self.total = sum(path.stat().st_size for path in self.paths)
        self.meta = {"files": [path.name for path in self.paths]}
        if next(iter(self), None) is None:
            raise UserError("there is no text in the files; name files that hold some")

    def __iter__(self) -> Iterator[prepare.Piece]:
        self.done, number = 0, 0
        for path in self.paths:
            unpack = UNPACK.get(path.suffix, lambda file: file)
            documents = json_documents if ".jsonl" in path.suffixes else text_documents
            before = self.done
            try:
                with open(path, "rb") as packed:
                    for text, first, last in documents(unpack(packed), path):
                        self.done = before + packed.tell()
                        if first:
                            val = number > 0 and prepare.in_val(self.fraction, number)
                            number += 1
                        yield prepare.Piece("val" if val else "train", text, first, last)
            except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
                raise UserError(f"{show(path)} is damaged ({error}); fetch or pack it again") from None
            self.done = before + path.stat().st_size


def blocks(file, path: Path) -> Iterator[str]:
    """A file as strings that end where a line ends. A line longer than a block is cut after a sentence or a word."""
    kept = ""
    try:
        for text in codecs.iterdecode(iter(lambda: file.read(prepare.PIECE), b""), "utf-8-sig"):
            kept += text
            cut = kept.rfind("\n") + 1
            if not cut and len(kept) > prepare.PIECE:
                cut = max(kept.rfind(end) for end in (". ", "! ", "? ")) + 1 or kept.rfind(" ") + 1 or len(kept)
            if cut:
                yield kept[:cut]
                kept = kept[cut:]
    except UnicodeDecodeError as error:
        at = file.tell() - len(error.object) + error.start
        raise UserError(f"{show(path)} is not UTF-8 at byte {at:,}; convert it: iconv -f latin1 -t utf-8") from None
    yield kept


def text_documents(file, path: Path) -> Iterator[tuple[str, bool, bool]]:
    """(text, a document starts here, ends here); a blank line ends a document, and so does the end of the file."""
    lines, size, first = [], 0, True
    for block in chain(blocks(file, path), [""]):
        for line in block.removesuffix("\n").split("\n"):
            blank = not line.strip()
            if lines and (blank or size > prepare.PIECE):  # a long document goes out in pieces
                yield "\n".join(lines), first, blank
                lines, size, first = [], 0, blank
            if not blank:
                lines.append(line)
                size += len(line)


def json_documents(file, path: Path) -> Iterator[tuple[str, bool, bool]]:
    for number, line in enumerate(file, 1):
        try:
            text = prepare.clean(json.loads(line)["text"]) if line.strip() else ""
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            what = f'{show(path)}:{number} is no JSON object with a "text" in UTF-8'
            raise UserError(f'{what}; write {{"text": "..."}}') from None
        if text.strip():
            yield text, True, True


def main(argv):
    prepare.build(prepare.configure(argv, Text, "data/text/prepare.py", __doc__), Files)


if __name__ == "__main__":
    command(main)
