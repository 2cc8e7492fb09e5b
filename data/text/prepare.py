"""
Prepares local text files: writes data/NAME/{train.bin, val.bin, tokenizer.json, meta.json}.

    python data/text/prepare.py --name=wiki --files wiki_*.txt.xz --tokenizer=bpe:16384

Files are plain text or JSON lines (an object with a "text" per line), optionally compressed (gzip, xz, bzip2,
Zstandard); the format is detected from their content, not from their names. In plain text a blank line ends a document.
A pseudo-random choice of documents is held out for validation, at least one; of a single document its last 5 %.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.command import command  # isort: skip  (first: it tells an older Python)
from typing import Annotated

from lab.configurator import PathStr, UserError, show
from lab.data import prepare, text_files


@dataclass
class Text(prepare.Output):
    files: Annotated[tuple[PathStr, ...], "files of plain text or JSON lines, compressed or not"] = ()
    val_fraction: Annotated[float, "share of the documents held out for validation (at least one)"] = 0.01

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
            with open(path, "rb") as file:
                text_files.opened(file)  # refused now, not hours later
        self.total = sum(path.stat().st_size for path in self.paths)
        self.meta = {"files": [path.name for path in self.paths]}
        if next(iter(self), None) is None:
            raise UserError("there is no text in the files; name files that hold some")

    def __iter__(self) -> Iterator[prepare.Piece]:
        self.done, number = 0, 0
        for path in self.paths:
            before = self.done
            with open(path, "rb") as file:
                for text, first, last in text_files.documents(file):
                    self.done = before + file.tell()
                    if first:
                        val = number > 0 and prepare.in_val(self.fraction, number)
                        number += 1
                    yield prepare.Piece("val" if val else "train", text, first, last)
            self.done = before + path.stat().st_size


def main(argv):
    prepare.build(prepare.configure(argv, Text, "data/text/prepare.py", __doc__), Files)


if __name__ == "__main__":
    command(main)
