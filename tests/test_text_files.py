"""The reader of all text files: what they are packed in, their encoding, JSON or not, line ends, what is refused."""

import bz2
import gzip
import json
import lzma
import os
import random

import numpy as np
import pytest

from lab import text_files
from lab.configurator import UserError

TEXTS = [
    "One café. Two – 東京 three!",
    "A second text\u2028of\x85three. Lines \x0c here.",
    'Third "text" {with} [signs].',
]
PLAIN = "\n\n".join(TEXTS) + "\n"
JSON = "".join(json.dumps({"text": text, "url": "x"}, ensure_ascii=False) + "\n" for text in TEXTS)


def zstd(data):
    return pytest.importorskip("pyarrow").compress(data, codec="zstd", asbytes=True)


PACK = {"": bytes, "gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstd}
PACK["lzma"] = lambda data: lzma.compress(data, lzma.FORMAT_ALONE)


def read(path, data, function=text_files.documents):
    path.write_bytes(data)
    with open(path, "rb") as file:
        return list(function(file))


def whole(path, data):
    """The documents, of their pieces."""
    found = []
    for text, first, last in read(path, data):
        found.append(text) if first else found.append(found.pop() + "\n" + text)
        assert last or len(text) > text_files.PIECE
    return found


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("content", [PLAIN, JSON], ids=["plain", "json"])
def test_packed_files_are_read_whatever_their_name(tmp_path, kind, content):
    data = PACK[kind](content.encode())
    for name in ("corpus", "c4-train.00000-of-01024.json.gz" if content is JSON and kind == "gz" else "x.TXT"):
        assert whole(tmp_path / name, data) == TEXTS
    texts = TEXTS if content is JSON else PLAIN.removesuffix("\n").split("\n")
    assert read(tmp_path / "corpus", data, text_files.lines) == texts
    assert whole(tmp_path / "twice", PACK[kind](content.encode()) * 2) == TEXTS * 2 or content is PLAIN


@pytest.mark.parametrize("name", ["x.json", "x.ndjson", "x.JSONL", "x.txt", "x", "x.jsonl.gz", "x.json.xz"])
@pytest.mark.parametrize("head", ["", "\ufeff", "\n \n"])
def test_json_lines_are_seen_by_their_content(tmp_path, name, head):
    pack = gzip.compress if name.endswith("gz") else lzma.compress if name.endswith("xz") else bytes
    assert whole(tmp_path / name, pack((head + JSON).encode())) == TEXTS
    long = json.dumps({"id": 1, "text": "A long one. " * 20_000}) + "\n"  # longer than what is looked at first
    assert whole(tmp_path / name, pack((head + long + JSON).encode()))[1:] == TEXTS
    assert whole(tmp_path / name, pack((head + JSON[:-1]).encode())) == TEXTS  # no line end at the end
    null = '{"text": null}\n{"text": " "}\n{"text": "\\ud83d half"}\n'
    assert read(tmp_path / name, pack((null + JSON).encode()), text_files.lines)[:4] == [
        "",
        " ",
        "\ud83d half",
        TEXTS[0],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "{foo} is a word.\nThe next line.",
        '{"a": 1} is an object.',
        '{"a": 1}\nis an object of JSON,\nand this is prose.',
        "{\n  code();\n}",
        '{"never closed": ' + "but it is prose. " * 5000,
        "[Music] Hello.\nAnd so on.",
        "Send this:\n" + JSON.replace("\n\n", "\n").strip(),
        "[" * 70_000,
    ],
    ids=range(8),
)
def test_plain_text_that_looks_like_json_at_first_stays_text(tmp_path, text):
    assert "".join(whole(tmp_path / "a.txt", text.encode())).replace("\n", "") == text.replace("\n", "")


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "content", [PLAIN, JSON, "東京は大きい。\n\n" * 900 + "one", "一二三\n" * 50_000], ids=range(4)
)
def test_encodings_are_seen_with_and_without_a_byte_order_mark(tmp_path, encoding, content):
    expected = whole(tmp_path / "a", content.encode())
    assert whole(tmp_path / "b", content.encode(encoding)) == expected
    assert whole(tmp_path / "c", gzip.compress(content.encode(encoding))) == expected
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b"\xff\xfe"
    if encoding in ("utf-16-le", "utf-16-be"):
        assert whole(tmp_path / "d", mark + content.encode(encoding)) == expected


def test_byte_order_marks_inside_and_stray_zeros(tmp_path):
    mark = b"\xef\xbb\xbf"
    assert whole(tmp_path / "a", mark + b"One.\n" + mark + b"\n" + mark + b"Two.\n") == ["One.", "Two."]
    assert whole(tmp_path / "a", JSON.encode() + mark + JSON.encode()) == TEXTS * 2
    assert read(tmp_path / "a", mark + b"One.\n" + mark + b"Two.", text_files.lines) == ["One.", "Two."]
    assert whole(tmp_path / "a", b"One\0 zero among many letters.") == ["One\0 zero among many letters."]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"], ids=repr)
def test_line_ends(tmp_path, end):
    plain = PLAIN.replace("\n", end).encode()
    assert [text.strip() for text in whole(tmp_path / "a", plain)] == TEXTS
    assert whole(tmp_path / "a", JSON.replace("\n", end).encode()) == TEXTS
    assert read(tmp_path / "a", plain, text_files.lines) == PLAIN.removesuffix("\n").split("\n")
    assert read(tmp_path / "a", b"\n\nx\n\n", text_files.lines) == ["", "", "x", ""]
    assert whole(tmp_path / "a", b"One\r\rlone. Two.\nThree.") == ["One\r\rlone. Two.\nThree."]  # inside a line


REFUSED = {
    "parquet file; make it JSON lines": (b"PAR1\x15\x04\x15", "a.txt"),
    "an archive, as docx": (b"PK\x03\x04" + bytes(50), "a.docx"),
    "an archive, ": (gzip.compress(b"a.txt" + bytes(252) + b"ustar\0" + bytes(300)), "a.tar.gz"),
    "packed twice": (gzip.compress(lzma.compress(b"One.")), "a.gz"),
    "save it as plain text": (b"%PDF-1.7\n%\xe2\xe3", "a.pdf"),
    "a binary file; give files of text": (np.arange(3000, dtype=np.uint16).tobytes(), "a.bin"),
    "no text at all; give files of text": (bytes(random.Random(0).choices(range(1, 256), k=3000)), "a.txt"),
    "not UTF-8 at byte 70,003; convert it from the encoding it has": (b"abc" * 20_000 + b" " * 10_003 + b"\xe9t", "a"),
    "not UTF-16-LE at byte 8; it is cut off": ("\ufeffOne.".encode("utf-16-le")[:-1], "a"),
    "a.gz is damaged": (gzip.compress(os.urandom(9999))[:-900], "a.gz"),
    "a.zst is damaged": (lambda: zstd(os.urandom(9999))[:-900], "a.zst"),
    "b.bz2 is damaged": (bz2.compress(os.urandom(9999))[:-900], "b.bz2"),
    "c.bz2 is damaged": (bz2.compress(b"One. Two.")[:20] + b"garbage" * 9, "c.bz2"),
    "rename it where it is plain text": (b"plain text", "a.xz"),
    'a.json:1 is no JSON object with a "text"': (b'[{"text": "One."}, {"text": "Two."}]', "a.json"),
    "a:1 is no JSON object": (b'[\n {"text": "One.", "n": [1, 2]},\n {"text": "Two."}\n]\n', "a"),
    "b:1 is no JSON object": (b"[\n" + b' {"text": "One.", "n": [1, 2]},\n' * 9000, "b"),
    "c:1 is no JSON object": (b'{\n "text": "One."\n}\n', "c"),
    'of an array: jq -c ".[]"': (b'{"content": "One."}\n' * 3, "a.txt"),
    "a:4 is no JSON": (JSON.encode() + b'{"text": "cut', "a"),
    "b:4 is no JSON": (JSON.encode() + b'{"text": 5}\n', "b"),
    "a.jsonl:1 is no JSON": (b"plain text\n", "a.jsonl"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_no_text_is_refused_with_what_to_do(tmp_path, words):
    data, name = REFUSED[words]
    with pytest.raises(UserError) as error:
        read(tmp_path / name, data() if callable(data) else data)
    assert words in str(error.value) and "; " in str(error.value)
    assert "latin1" not in str(error.value) or "encoding it has" in words


@pytest.mark.parametrize("long", [text_files.HEAD - 1, text_files.HEAD, 3 * text_files.HEAD])
def test_line_ends_behind_the_first_block(tmp_path, long):
    """Which kind they are is seen at the first of them, also where a block ends between CR and LF."""
    for end in ("\r", "\r\n", "\n"):
        text = f"{'a' * long}{end}b{end}{end}c{end}"
        found = [document.replace("\r", "") for document in whole(tmp_path / "file.txt", text.encode())]
        assert found == ["a" * long + "\nb", "c"], end
