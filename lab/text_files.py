"""
Files of text as streams, in constant memory: the one reader of all commands. What a file is say its first bytes, not
its name: plain text or JSON lines (an object with a "text" a line), packed by gzip, xz, bzip2 or Zstandard or not, in
UTF-8, UTF-16 or UTF-32; lines end in LF, CR LF or CR, and byte-order marks are no text. Anything else is refused.
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

HEAD = 1 << 16  # bytes that tell what a file is
PIECE = 1 << 20  # bytes that are read in one go, and characters of a document that come in one piece


def open_zstd(file):
    try:
        import pyarrow  # late: only these files need it
    except ImportError:
        raise UserError(f"{show(file.name)} is packed by Zstandard; unpack it, or pip install pyarrow") from None
    return pyarrow.CompressedInputStream(open(file.name, "rb"), "zstd")  # it closes what it reads


PACKED = {  # how a packed file begins -> how it is opened
    rb"\x1f\x8b\x08": gzip.open,
    rb"\xfd7zXZ\0|\x5d\0\0": lzma.open,
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": bz2.open,
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": open_zstd,
}
PACKED_NAMES = ".gz", ".xz", ".lzma", ".bz2", ".zst"
REFUSED = {  # how a file begins that is no text -> what it is; what to do
    rb"PAR1\x15": 'a parquet file; make it JSON lines: pandas.read_parquet(A).to_json(B, orient="records", lines=True)',
    rb"%PDF-\d|\{\\rtf\d": "a document with a layout; save it as plain text (pdftotext does)",
    rb"PK\x03\x04|7z\xbc\xaf|Rar!\x1a|.{257}ustar": "an archive, as docx and epub are; unpack it, and give its texts",
    b"|".join(PACKED): "packed twice; unpack it",
}
ENCODINGS = {  # by byte-order mark; that of UTF-32 begins as that of UTF-16 does
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
JSON_NAME = re.compile(r"\.(json|jsonl|jsonlines|ndjson)(\.\w+)?$", re.IGNORECASE)
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # bytes that no text has, in any encoding of single bytes


def unpacked(file) -> Iterator[bytes]:
    """A binary file, its name for messages in `name` -> what is packed in it, first HEAD bytes, then PIECEs."""
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
    """By the byte-order mark; without one UTF-8, or of bytes with zeros what makes most of them text; "": nothing."""
    if found := next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), None):
        return found
    if b"\0" not in head:
        return "utf-8"
    score = {}
    for name in ENCODINGS.values():
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(name)().decode(head[:4096])
            if sum(c.isprintable() or c.isspace() for c in text) > 0.95 * len(text):
                score[name] = sum(map(str.isascii, text))  # of bytes in the wrong order hardly any is
    return max(score, key=score.get, default="")


def decoded(file) -> Iterator[str]:
    """A binary file -> its text in blocks; line ends of CR alone become LF, byte-order marks go."""
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
    """The type of a JSON value; of what is none NoneType. cut: the end may be missing."""
    try:
        return type(json.loads(text))
    except json.JSONDecodeError as error:
        at_end = error.pos > len(text) - 9 or error.msg.startswith("Unterminated string")
        return dict if cut and at_end else type(None)
    except (ValueError, RecursionError):  # numbers of thousands of digits; deep nesting
        return type(None)


def is_json(head: str) -> bool:
    """Most of the first lines are JSON objects, or all is one JSON value, as far as it goes."""
    if head.lstrip()[:1] not in ("{", "["):
        return False
    lines = [line for line in head.split("\n")[:-1] if line.strip()][:20]
    objects = sum(json_kind(line) is dict for line in lines)
    return 2 * objects > len(lines) or json_kind(head, len(head) >= HEAD // 4) in (dict, list)


def opened(file) -> tuple[bool, Iterator[str]]:
    """A binary file -> (is it JSON lines?, its text in blocks). UserError where it cannot be read."""
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
    """A binary file -> a text a line; of JSON lines the "text" of each."""
    as_json, blocks = opened(file)
    return json_texts(blocks, file.name) if as_json else (line.rstrip("\r") for line in whole_lines(blocks))


def pieces(blocks: Iterator[str]) -> Iterator[str]:
    """Blocks -> strings that end where a line ends. A line longer than a PIECE is cut after a sentence or a word."""
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
    """A binary file -> (text, a document starts here, ends here). In plain text a blank line ends a document, as does
    the end of the file; an object of JSON lines is one. A long document comes in pieces."""
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
