"""
Streams text files in constant memory; used by all commands. The format is detected from the first bytes, not from
the name: plain text or JSON lines (an object with a "text" per line), optionally compressed by gzip, xz, bzip2 or
Zstandard, in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark; lines end in LF, CR LF or CR. Anything else is
refused.
"""

import bz2
import codecs
import gzip
import json
import lzma
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from lab.configurator import UserError, show
from lab.data.tokenizers import clean

HEAD = 1 << 16  # bytes from which the format is detected
PIECE = 1 << 20  # bytes read at a time, and characters of a piece of a long document


def open_zstd(file):
    try:
        import pyarrow  # late: only these files need it
    except ImportError:
        raise UserError(f"{show(file.name)} is packed by Zstandard; unpack it, or pip install pyarrow") from None
    return pyarrow.CompressedInputStream(open(file.name, "rb"), "zstd")  # it closes what it reads


PACKED = {  # first bytes of a compressed file -> function that opens it
    rb"\x1f\x8b\x08": gzip.open,
    rb"\xfd7zXZ\0|\x5d\0\0": lzma.open,
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": bz2.open,
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": open_zstd,
}
PACKED_NAMES = ".gz", ".xz", ".lzma", ".bz2", ".zst"
REFUSED = {  # first bytes of a file that is no text -> what it is; what to do
    rb"PAR1\x15": 'a parquet file; make it JSON lines: pandas.read_parquet(A).to_json(B, orient="records", lines=True)',
    rb"%PDF-\d|\{\\rtf\d": "a document with a layout; save it as plain text (pdftotext does)",
    rb"PK\x03\x04|7z\xbc\xaf|Rar!\x1a|.{257}ustar": "an archive, as docx and epub are; unpack it, and give its texts",
    b"|".join(PACKED): "packed twice; unpack it",
}
ENCODINGS = {  # byte-order mark -> encoding; UTF-32 first, since its mark begins like that of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
JSON_NAME = re.compile(r"\.(json|jsonl|jsonlines|ndjson)(\.\w+)?$", re.IGNORECASE)
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # bytes that no text has, in any encoding of single bytes


def unpacked(file) -> Iterator[bytes]:
    """A binary file -> its decompressed content, first HEAD bytes, then PIECEs."""
    head, size = file.read(HEAD), HEAD
    file.seek(0)
    unpack = next((unpack for begin, unpack in PACKED.items() if re.match(begin, head)), None)
    if head and not unpack and Path(file.name).suffix in PACKED_NAMES:
        what = f"{show(file.name)} is damaged (it does not begin as its name says)"
        raise UserError(f"{what}; fetch or pack it again, or rename it where it is plain text")
    stream = unpack(file) if unpack else file
    try:
        while block := stream.read(size):
            yield block
            size = PIECE
    except Exception as error:  # of five libraries
        if isinstance(error, MemoryError) or getattr(error, "errno", None):  # not the file's fault
            raise
        raise UserError(f"{show(file.name)} is damaged ({error}); fetch or pack it again") from None


def encoding_of(head: bytes) -> str:
    """The encoding by byte-order mark; without one UTF-8 or, if there are zero bytes, the one that gives most text; ""
    if none does."""
    if found := next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), None):
        return found
    if b"\0" not in head:
        return "utf-8"
    score = {}
    for name in ENCODINGS.values():
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(name)().decode(head[:4096])
            if sum(c.isprintable() or c.isspace() for c in text) > 0.95 * len(text):
                score[name] = sum(map(str.isascii, text))  # in the wrong byte order hardly any character is ASCII
    return max(score, key=score.get, default="")


def decoded(file) -> Iterator[str]:
    """A binary file -> its text in blocks, without byte-order marks, and with LF for line ends of CR alone."""
    name, blocks = show(file.name), unpacked(file)
    head, at, cr = next(blocks, b""), 0, None
    for begin, what in REFUSED.items():
        if re.match(begin, head, re.DOTALL):
            raise UserError(f"{name} is {what}")
    encoding = encoding_of(head)
    if not encoding:
        raise UserError(f"{name} is no text but a binary file; give files of text")
    decoder, held = codecs.getincrementaldecoder(encoding)(), ""
    for block in chain([head], blocks, [b""]):
        at += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            what = f"{name} is not {encoding.upper()} at byte {at - len(error.object) + error.start:,}"
            if encoding != "utf-8":
                remedy = "it is cut off or damaged, fetch it again"
            elif len(CONTROL.findall(error.object)) > len(error.object) / 200:
                remedy = "it seems to be no text at all; give files of text"
            else:
                remedy = "convert it from the encoding it has, such as latin1: iconv -f latin1 -t utf-8"
            raise UserError(f"{what}; {remedy}") from None
        text, held = held + text, ""
        if cr is None and re.search(r"\n|\r(?!\Z)", text):
            cr = "\n" not in text
        elif cr is None and block and text.endswith("\r"):  # which may begin a CR LF
            text, held = text[:-1], "\r"
        text = text.replace("\ufeff", "")
        yield text.replace("\r", "\n") if cr else text


def json_kind(text: str, cut: bool = False) -> type:
    """The type of a JSON value; NoneType if it is none. cut: the text may be truncated."""
    try:
        return type(json.loads(text))
    except json.JSONDecodeError as error:
        at_end = error.pos > len(text) - 9 or error.msg.startswith("Unterminated string")
        return dict if cut and at_end else type(None)
    except (ValueError, RecursionError):  # numbers of thousands of digits; deep nesting
        return type(None)


def is_json(head: str) -> bool:
    """Whether most of the first lines are JSON objects, or the whole is (the beginning of) one JSON value."""
    if head.lstrip()[:1] not in ("{", "["):
        return False
    lines = [line for line in head.split("\n")[:-1] if line.strip()][:20]
    objects = sum(json_kind(line) is dict for line in lines)
    return 2 * objects > len(lines) or json_kind(head, len(head) >= HEAD // 4) in (dict, list)


def opened(file) -> tuple[bool, Iterator[str]]:
    """A binary file -> (whether it is JSON lines, its text in blocks). UserError if it cannot be read."""
    blocks = decoded(file)
    head = next(blocks)
    return bool(JSON_NAME.search(file.name)) or is_json(head), chain([head], blocks)


def whole_lines(blocks: Iterator[str]) -> Iterator[str]:
    kept = []
    for block in blocks:
        *ended, rest = block.split("\n")
        if ended:
            yield "".join([*kept, ended[0]])
            yield from ended[1:]
            kept = []
        kept.append(rest)
    if last := "".join(kept):
        yield last


def json_texts(blocks: Iterator[str], name: str) -> Iterator[str]:
    for number, line in enumerate(whole_lines(blocks), 1):
        if line.strip():
            try:
                text = json.loads(line)["text"]
                if not isinstance(text, str | None):
                    raise TypeError
            except (ValueError, TypeError, KeyError, RecursionError):
                what = f'{show(name)}:{number} is no JSON object with a "text"'
                raise UserError(f'{what}; write one a line, {{"text": "..."}} (of an array: jq -c ".[]")') from None
            yield text or ""


def lines(file) -> Iterator[str]:
    """A binary file -> one text per line; the "text" of each line of JSON lines."""
    as_json, blocks = opened(file)
    return json_texts(blocks, file.name) if as_json else (line.rstrip("\r") for line in whole_lines(blocks))


def read_lines(path) -> list[str]:
    """The `lines` of a file, clean; UserError if it cannot be opened."""
    try:
        with open(path, "rb") as file:
            return [clean(text) for text in lines(file)]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); write the path of a file of text") from None


def pieces(blocks: Iterator[str]) -> Iterator[str]:
    """Blocks -> strings that end at line ends. A line longer than a PIECE is split after a sentence or a word."""
    kept = ""
    for block in blocks:
        kept += block
        cut = kept.rfind("\n") + 1
        if not cut and len(kept) > PIECE:
            cut = max(kept.rfind(end) for end in (". ", "! ", "? ")) + 1 or kept.rfind(" ") + 1 or len(kept)
        if cut:
            yield kept[:cut]
            kept = kept[cut:]
    yield kept


def documents(file) -> Iterator[tuple[str, bool, bool]]:
    """A binary file -> (text, whether a document starts here, whether it ends here). Documents are separated by blank
    lines in plain text; in JSON lines each object is one. A long document is split into pieces."""
    as_json, blocks = opened(file)
    if as_json:
        yield from ((text, True, True) for text in json_texts(blocks, file.name) if text.strip())
        return
    found, size, first = [], 0, True
    for piece in chain(pieces(blocks), [""]):
        for line in piece.removesuffix("\n").split("\n"):
            blank = not line.strip()
            if found and (blank or size > PIECE):
                yield "\n".join(found), first, blank
                found, size, first = [], 0, blank
            if not blank:
                found.append(line)
                size += len(line)
