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
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from lab import dataset  # noqa: E402
from lab import prepare as common  # noqa: E402
from lab.configurator import UserError, parse, show  # noqa: E402


@dataclass
class Text:
    name: Annotated[str, "name of the dataset: its folder in data_dir"] = ""
    files: Annotated[tuple[str, ...], "text files: .txt or .jsonl, as they are or packed (.xz, .gz)"] = ()
    tokenizer: Annotated[str, "bpe:SIZE is trained on the text; or tiktoken:NAME, or a tokenizer.json"] = "bpe:8192"
    val_fraction: Annotated[float, "share of the documents kept for validation (at least one)"] = 0.01
    max_mb: Annotated[float, "stop after this many million characters; 0: read all"] = 0.0

    def __post_init__(self):
        if not self.name:
            raise ValueError("the dataset has no name; add --name=NAME")
        if not self.files:
            raise ValueError("there are no files to read; add --files FILE ...")
        if not 0 <= self.val_fraction <= 0.5:
            raise ValueError(f"val_fraction must be 0 to 0.5, not {self.val_fraction:g}; write --val_fraction=0.01")


class Files(common.Source):
    """Documents of text files, streamed; the bar counts bytes on disk."""

    def __init__(self, config: Text):
        self.paths = [Path(file) for file in config.files]
        self.fraction = config.val_fraction
        self.limit = config.max_mb * 1e6 or float("inf")
        for path in self.paths:
            if not path.is_file():
                raise UserError(f"{show(path)} does not exist or is no file; correct --files")
        self.total = sum(path.stat().st_size for path in self.paths)

    def __iter__(self) -> Iterator[common.Piece]:
        self.done, read, number = 0, 0, 0
        for path in self.paths:
            documents = json_documents if ".jsonl" in path.suffixes else text_documents
            before = self.done
            with open(path, "rb") as packed:
                for text, first, last in documents(unpack(path, packed), path):
                    self.done = before + packed.tell()
                    if first:
                        val = number > 0 and common.in_val(self.fraction, number)
                        number += 1
                    read += len(text)
                    yield common.Piece("val" if val else "train", text, first, last or read >= self.limit)
                    if read >= self.limit:
                        return
            self.done = before + path.stat().st_size


def unpack(path: Path, packed):
    if path.suffix == ".xz":
        return lzma.open(packed)
    return gzip.open(packed) if path.suffix == ".gz" else packed


def read_bytes(read, path: Path, size: int) -> bytes:
    """`read(size)`, a damaged archive being the user's mistake."""
    try:
        return read(size)
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{show(path)} is damaged ({error}); fetch or pack it again") from None


def not_utf8(path: Path, byte: int) -> UserError:
    return UserError(f"{show(path)} is not UTF-8 at byte {byte:,}; convert it: iconv -f latin1 -t utf-8")


def blocks(file, path: Path) -> Iterator[str]:
    """A file as strings that end where a line ends. A line longer than a block is cut after a sentence or a word."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    kept, at = "", 0
    while data := read_bytes(file.read, path, common.PIECE):
        pending = len(decoder.getstate()[0])
        try:
            text = kept + decoder.decode(data)
        except UnicodeDecodeError as error:
            raise not_utf8(path, at - pending + error.start) from None
        at += len(data)
        cut = text.rfind("\n") + 1
        if not cut and len(text) > common.PIECE:
            cut = max(text.rfind(end) for end in (". ", "! ", "? ")) + 1 or text.rfind(" ") + 1 or len(text)
        if cut:
            yield text[:cut]
        kept = text[cut:]
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise not_utf8(path, at) from None
    yield kept


def text_documents(file, path: Path) -> Iterator[tuple[str, bool, bool]]:
    """(text, a document starts here, ends here); a blank line ends a document, and so does the end of the file."""
    lines, size, first = [], 0, True
    for block in blocks(file, path):
        for line in block.removesuffix("\n").split("\n"):
            if line.strip():
                if size > common.PIECE:  # a long document goes out in pieces
                    yield "\n".join(lines), first, False
                    lines, size, first = [], 0, False
                lines.append(line)
                size += len(line)
            elif lines:
                yield "\n".join(lines), first, True
                lines, size, first = [], 0, True
    if lines:
        yield "\n".join(lines), first, True


def json_documents(file, path: Path) -> Iterator[tuple[str, bool, bool]]:
    number = 0
    while line := read_bytes(file.readline, path, -1):
        number += 1
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            text.encode()
        except UnicodeEncodeError:  # half a character, written as \ud800
            text = text.encode("utf-8", "replace").decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{show(path)}:{number} is not UTF-8 (byte {error.start:,} of the line); convert the file"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(f'{show(path)}:{number} is no JSON object with a "text"; write {{"text": "..."}}') from None
        if text.strip():
            yield text, True, True


def main(argv):
    parsed = parse(argv, Text, common.Output, prog="data/text/prepare.py", doc=__doc__, root=ROOT, positional=False)
    config, output = parsed.make(Text), parsed.make(common.Output)
    dataset.check_name(config.name)
    common.check_spec(config.tokenizer)
    common.check_folder(config.name, output)
    files = Files(config)
    if next(iter(files), None) is None:
        raise UserError("there is no text in the files; name files that hold some")
    common.build(files, config.name, config.tokenizer, output, {"files": [path.name for path in files.paths]})


if __name__ == "__main__":
    common.run(main)
