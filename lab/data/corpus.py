"""
The token file format: prepared corpora, written and read.

A data folder is `data/NAME/{train.bin, val.bin, tokenizer.json, meta.json}`; meta.json is written last, so a folder
without it is not finished. `train.bin` and `val.bin` are token files. All numbers are little-endian:

    byte  0   8 bytes    magic "NCONCEPT"
          8   uint32     version, 1
         12   uint32     vocabulary size V
         16   4 x uint32 ids of end-of-document, mask, pad, separator
         32   uint64     N, tokens
         40   uint64     D, documents
         48   uint64     S, sentences
         56   8 bytes    zero
         64   32 bytes   sha256 of the folder's tokenizer.json
         96   32 bytes   zero
        128   uint16 [N] tokens (uint32 where V is above 65,536), then zeros up to the next multiple of 8
          +   int64 [D+1] where each document starts, and N
          +   int64 [S]  where each sentence starts

A document is its sentences, then one end-of-document token, which belongs to the document but to no sentence.
A sentence ends at [.!?] followed by white space, or at a line break. It is stripped, prefixed with one space and
encoded on its own, here and in `embed` alike, so that a sentence has the same tokens in training and alone.
"""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lab.command import log
from lab.configurator import UserError, show, warn
from lab.data.tokenizers import SPECIAL_NAMES, tokenizer_hash
from lab.files import reading

MAGIC, VERSION = b"NCONCEPT", 1
HEADER = struct.Struct("<8s6I3Q8x32s32x")  # the 128 bytes above
MAX_VOCAB = 1 << 24  # a larger one means a damaged header
MIN_WINDOWS = 1000  # rows of a length needed for training: fewer would be memorised
ENTRY_TOKENS = 50  # training tokens per vocabulary entry below which there is a warning
CHUNK = 1 << 22  # items of a file that are processed at a time
CHECKED = 1 << 27  # bytes at both ends of tokens and tables that are checked when a file is opened: 0.1 s


HUB_CORPORA = {  # name -> its repositories on the Hugging Face hub: name, how the files of train and of val begin
    "minipile": [("JeanKaddour/minipile", "data/train-", "data/validation-")],
    "openwebtext_wikipedia": [  # which have no val
        ("Skylion007/openwebtext", "plain_text/train-", ""),
        ("wikimedia/wikipedia", "20231101.en/train-", ""),
    ],
    "wikipedia_sample": [("wikimedia/wikipedia", "20231101.en/train-", "")],
    "fineweb_edu": [("HuggingFaceFW/fineweb-edu", "sample/10BT/", "")],
    "c4": [("allenai/c4", "en/c4-train.", "en/c4-validation.")],
    "c4_realnewslike": [("allenai/c4", "realnewslike/c4-train.", "realnewslike/c4-validation.")],
    "pile_dedup": [("EleutherAI/the_pile_deduplicated", "data/train-", "")],
}
HUB_SAMPLES = {"wikipedia_sample": 200_000_000}  # characters, of the corpora of which only a sample is taken


def id_type(vocab_size: int) -> np.dtype:
    """The type of the ids in a token file."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


# ---------------------------------------------------------------------------------------------------------------------
# writing


class CorpusWriter:
    """Streams one token file to disk in constant memory; `close` appends the two tables and writes the header."""

    def __init__(self, path, vocab_size: int, special: dict[str, int], tokenizer_hash: str):
        if vocab_size > MAX_VOCAB:
            raise UserError(f"the vocabulary has {vocab_size:,} entries, more than {MAX_VOCAB:,}; use a smaller one")
        self.path = Path(path)
        self.vocab_size, self.special, self.tokenizer_hash = vocab_size, special, tokenizer_hash
        self.count = self.documents = self.sentences = 0
        self.file = open(self.path, "wb")
        self.file.write(bytes(HEADER.size))
        self.tables = [tempfile.TemporaryFile(dir=self.path.parent) for _ in ("documents", "sentences")]

    def append(self, tokens, sentence_starts, document_starts):
        """Tokens, and where in them sentences and documents start. A document may go on in the next call."""
        if len(tokens) and int(tokens.max()) >= self.vocab_size:
            raise ValueError(f"token id {tokens.max()} in a vocabulary of {self.vocab_size}")
        self.file.write(np.asarray(tokens, id_type(self.vocab_size)).tobytes())
        for table, starts in zip(self.tables, (document_starts, sentence_starts), strict=True):
            table.write((np.asarray(starts, "<i8") + self.count).tobytes())
        self.count += len(tokens)
        self.documents += len(document_starts)
        self.sentences += len(sentence_starts)

    def copy(self, source: "TokenFile", first: int, last: int):
        """Appends the tokens first..last-1 of another file, with the sentences and documents that start there."""
        for at in range(first, last, CHUNK):
            span = at, min(at + CHUNK, last)
            sentences = source.sentences[slice(*np.searchsorted(source.sentences, span))]
            documents = source.documents[slice(*np.searchsorted(source.documents[:-1], span))]
            self.append(source.tokens[slice(*span)], sentences - at, documents - at)

    def close(self):
        if self.sentences == 0:
            raise UserError("there is no text in the input; name files that hold some")
        self.file.write(bytes(-self.file.tell() % 8))
        self.tables[0].write(struct.pack("<q", self.count))
        for table in self.tables:
            table.seek(0)
            shutil.copyfileobj(table, self.file, 1 << 20)
            table.close()
        ids = (self.special[role] for role in SPECIAL_NAMES)
        counts = self.count, self.documents, self.sentences
        self.file.seek(0)
        self.file.write(HEADER.pack(MAGIC, VERSION, self.vocab_size, *ids, *counts, bytes.fromhex(self.tokenizer_hash)))
        self.file.close()

    def discard(self):
        """Deletes the file, if it is not complete."""
        if not self.file.closed:
            for file in (self.file, *self.tables):
                file.close()
            self.path.unlink()


# ---------------------------------------------------------------------------------------------------------------------
# reading


def check_name(name: str) -> str:
    """The name of a dataset is the name of its folder, never a path."""
    if not re.fullmatch(r"\w[\w.+-]*", name) or ".." in name:
        raise UserError(f"{name!r} is no name for a dataset; use letters, digits, _ . + and -, without / or ..")
    return name


def prepare_command(folder) -> str:
    """The command that prepares a data folder."""
    name = Path(folder).name
    if name in HUB_CORPORA:
        return f"python data/hub/prepare.py --name={name}"
    if name not in ("text", "hub") and (Path(__file__).parents[2] / f"data/{name}/prepare.py").exists():
        return f"python data/{name}/prepare.py"
    return f"python data/text/prepare.py --name={name} --files FILES"


def again(folder) -> str:
    """The remedy for a damaged data folder."""
    return f"prepare it again: {prepare_command(folder)} --overwrite"


def load_meta(folder) -> dict:
    """meta.json of a finished data folder."""
    path = Path(folder) / "meta.json"
    if not path.is_file():
        raise UserError(f"{show(folder)} holds no prepared data; run {prepare_command(folder)}")
    with reading(path, again(folder)):
        meta = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(meta["vocab_size"], int) or meta["vocab_size"] < 1:
            raise ValueError(f"vocab_size = {meta['vocab_size']}")
    return meta


def prepare(data: Path, world, signals) -> int:
    """Prepares the corpus pydocs if it is missing, on each node; UserError with the command to run if another corpus is
    missing. world, signals: see lab/distributed.py. Returns the signal that stopped it, or 0."""
    if data.name == "pydocs" and not (data / "meta.json").is_file() and os.environ.get("LOCAL_RANK", "0") == "0":
        log("preparing the embedded corpus once: docstrings of this Python's packages, at most 90 s")
        script = [
            sys.executable,
            str(Path(__file__).resolve().parents[2] / "data/pydocs/prepare.py"),
            f"--data_dir={data.parent}",
        ]
        process = subprocess.Popen(script)
        while process.poll() is None and not signals.received:
            time.sleep(0.1)
        if signals.received:
            process.terminate()  # it tidies up
            process.wait()
        elif process.returncode and not (data / "meta.json").is_file():  # another node may have made it meanwhile
            raise UserError(f"preparing {data} failed (see above); run {prepare_command(data)} by itself")
    world.barrier()
    stopped = world.on_rank0(lambda: signals.received)
    if not stopped:
        load_meta(data)
    return stopped


def both_ends(array: np.ndarray) -> Iterator[np.ndarray]:
    """The first and last CHECKED bytes of an array, in pieces; each begins with the last item of the one before."""
    most = CHECKED // array.itemsize
    for end in (array[:most], array[max(most - 1, array.size - most) :]):
        for at in range(0, end.size, CHUNK):
            yield end[at : at + CHUNK + 1]


class TokenFile:
    """One memory-mapped token file, checked.

    tokens uint16 or uint32 [N], documents int64 [D+1], sentences int64 [S]. Of a very long file only both ends are
    checked here, the rest when it is used. remedy: what the user should do if the file is damaged.
    """

    def __init__(self, path, remedy: str):
        self.path, self.remedy = Path(path), remedy
        if not self.path.is_file():
            raise self.error("is missing")
        size = self.path.stat().st_size
        with reading(self.path, remedy), open(self.path, "rb") as file:
            packed = file.read(HEADER.size)
        if packed[:8] != MAGIC:
            raise self.error("is not a token file of this project")
        if size < HEADER.size:
            raise self.error(f"is cut off after {size} bytes")
        _, version, self.vocab_size, *ids, self.count, documents, sentences, digest = HEADER.unpack(packed)
        if version != VERSION:
            raise self.error(f"has format version {version}, this code reads {VERSION}")
        if not max(ids) < self.vocab_size <= MAX_VOCAB:
            raise self.error("has a damaged header")
        kind = id_type(self.vocab_size)
        begin = HEADER.size + (kind.itemsize * self.count + 7) // 8 * 8
        middle = begin + 8 * (documents + 1)
        if size != middle + 8 * sentences:
            raise self.error(f"has {size:,} bytes where its header says {middle + 8 * sentences:,}")
        self.eod, self.mask, self.pad, self.sep = ids
        self.special_ids = tuple(sorted(set(ids)))
        self.tokenizer_hash = digest.hex()

        # plain arrays over the mapping: the memmap class itself slows every small index down
        raw = np.asarray(np.memmap(self.path, np.uint8, "r"))
        self.tokens = raw[HEADER.size : HEADER.size + kind.itemsize * self.count].view(kind)
        self.documents = raw[begin:middle].view("<i8")
        self.sentences = raw[middle:].view("<i8")
        for part in both_ends(self.tokens):
            self.check_ids(part)
        self.check_tables(
            sentences > 0
            and self.documents[0] == 0
            and self.documents[-1] == self.count
            and self.sentences[0] >= 0
            and self.sentences[-1] < self.count
            and all((part[1:] > part[:-1]).all() for a in (self.documents, self.sentences) for part in both_ends(a))
        )

    def error(self, what: str) -> UserError:
        return UserError(f"{show(self.path)} {what}; {self.remedy}")

    def check_ids(self, tokens):
        if tokens.size and (largest := int(tokens.max())) >= self.vocab_size:
            raise self.error(f"holds token id {largest} in a vocabulary of {self.vocab_size}")

    def check_tables(self, good):
        if not good:
            raise self.error("has damaged tables")

    def sentence_spans(self, sentence) -> tuple[np.ndarray, np.ndarray]:
        """Sentence numbers -> where each starts, and the next one (or the end of the file)."""
        last = sentence + 1 == self.sentences.size
        start, end = self.sentences[sentence], self.sentences[np.where(last, 0, sentence + 1)]
        end = np.where(last, self.count, end)
        self.check_tables(((0 <= start) & (start < end) & (end <= self.count)).all())
        return start, end

    def pieces(self, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens and the lengths of the sentences in them (with the end of a document), about CHUNK tokens at a time;
        of a file of more than `most` tokens the first part of each piece."""
        cuts = np.unique([*np.searchsorted(self.sentences, np.arange(0, self.count, CHUNK)), self.sentences.size])
        for first, last in zip(cuts, cuts[1:], strict=False):
            wanted = max(1, round((last - first) * min(1.0, most / self.count)))
            starts, ends = self.sentence_spans(np.arange(first, first + wanted))
            yield self.tokens[starts[0] : ends[-1]], ends - starts


class Corpus(TokenFile):
    """The token file of one split ("train", "val") of a finished data folder, whose meta.json is `meta`."""

    def __init__(self, folder, split: str):
        self.folder, self.split = Path(folder), split
        self.meta = load_meta(folder)
        super().__init__(self.folder / f"{split}.bin", again(folder))
        tokenizer = self.folder / "tokenizer.json"
        if not tokenizer.is_file():
            raise UserError(f"{show(tokenizer)} is missing; {self.remedy}")
        if tokenizer_hash(tokenizer) != self.tokenizer_hash:
            raise self.error(f"was made with another tokenizer than {show(tokenizer)}")
        if self.meta["vocab_size"] != self.vocab_size:
            raise self.error(f"has another vocabulary than {show(self.folder / 'meta.json')} says")

    def digest(self) -> str:
        """Hash of meta.json, which identifies the data: it contains the time of creation and all token counts."""
        return hashlib.sha256(json.dumps(self.meta).encode()).hexdigest()

    def counts(self, kind: str = "counts") -> list[int]:
        """Count of each token in the training text; "document_counts": of the sentences that contain it: [V]."""
        counts = self.meta.get(kind)
        if not isinstance(counts, list) or len(counts) != self.vocab_size:
            raise UserError(f"{show(self.folder / 'meta.json')} has no count for every token; {self.remedy}")
        return counts

    def gather(self, starts, n: int) -> np.ndarray:
        """Rows of n tokens from these starts [R] -> int64 [R, n]."""
        self.check_tables(((0 <= starts) & (starts <= self.count - n)).all())
        rows = self.tokens[starts[:, None] + np.arange(n)]  # [R, n]
        self.check_ids(rows)
        return rows.astype(np.int64)

    def document_of(self, starts) -> np.ndarray:
        return np.searchsorted(self.documents, starts, side="right") - 1

    def idf(self) -> np.ndarray:
        """float32 [V]: ln((1 + n) / (1 + df)) for n training sentences, df of which contain the token; 0 for special
        tokens."""
        idf = np.log((1 + self.sentences.size) / (1 + np.array(self.counts("document_counts"), np.float64)))
        idf[list(self.special_ids)] = 0
        return idf.astype(np.float32)


def warn_of_vocabulary(text: TokenFile):
    """Warns if there is too little training text for the vocabulary."""
    if text.count < ENTRY_TOKENS * text.vocab_size:
        fit = max(256 + len(SPECIAL_NAMES), 1 << (text.count // ENTRY_TOKENS).bit_length() >> 1)
        warn(
            f"the {text.count:,} tokens of training text are {text.count / text.vocab_size:.0f} for each of the "
            f"{text.vocab_size:,} entries of the vocabulary, too few to learn them; prepare more text, or with "
            f"--tokenizer=bpe:{fit}"
        )


def unigram_floor(counts, tokens, eod: int, weights=None) -> float:
    """Cross-entropy (nats) of tokens under the add-one-smoothed unigram distribution of training counts [V], without
    end-of-document. weights [V]: of each token's loss; the optimal prediction is then as weight times count."""
    weights = np.ones(len(counts)) if weights is None else np.asarray(weights, np.float64)
    smoothed = (np.asarray(counts, np.float64) + 1) * weights
    smoothed[eod] = 0
    seen = np.zeros(len(smoothed), np.int64)
    for at in range(0, len(tokens), CHUNK):
        seen += np.bincount(tokens[at : at + CHUNK], minlength=len(seen))
    seen[eod] = 0
    used = (seen > 0) & (weights > 0)
    seen = seen[used] * weights[used]
    return float(-(seen * np.log(smoothed[used] / smoothed.sum())).sum() / seen.sum())
