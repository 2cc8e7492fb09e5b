"""
Text as tokens: the token file format, tokenizers, text -> padded batch, and the sampler of training rows.

A data folder is `data/NAME/{train.bin, val.bin, tokenizer.json, meta.json}`; meta.json is written last, so a folder
without it is not finished. `train.bin` and `val.bin` are token files. All numbers are little-endian:

    byte  0   8 bytes    magic "NCONCEPT"
          8   uint32     version, 1
         12   uint32     vocabulary size V, at most 65,536
         16   4 x uint32 ids of end-of-document, mask, pad, separator
         32   uint64     N, tokens
         40   uint64     D, documents
         48   uint64     S, sentences
         56   8 bytes    zero
         64   32 bytes   sha256 of the folder's tokenizer.json
         96   32 bytes   zero
        128   uint16 [N] tokens, then zeros up to the next multiple of 8
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
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from lab.command import log
from lab.configurator import UserError, show, warn
from lab.files import reading

MAGIC, VERSION = b"NCONCEPT", 1
HEADER = struct.Struct("<8s6I3Q8x32s32x")  # the 128 bytes above
MAX_VOCAB = 1 << 16  # ids are uint16
MIN_WINDOWS = 1000  # fewer rows of a length than this would be learned by heart
ENTRY_TOKENS = 50  # of training text for each entry of the vocabulary, at the least
CHUNK = 1 << 22  # items of a file that are looked at in one go
CHECKED = 1 << 27  # bytes at either end of tokens and tables that are checked when a file is opened: 0.1 s

SPECIAL_NAMES = {  # the first name that a tokenizer has is taken; where it has none, the first is appended
    "eod": ("<|endoftext|>", "</s>", "[EOS]"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>", "<|padding|>"),
    "sep": ("[SEP]", "</s>"),
}


HUB_CORPORA = {  # name -> its repositories on the Hugging Face hub: name, how parquet files of train and of val begin
    "minipile": [("JeanKaddour/minipile", "data/train-", "data/validation-")],
    "openwebtext_wikipedia": [  # which have no val
        ("Skylion007/openwebtext", "plain_text/train-", ""),
        ("wikimedia/wikipedia", "20231101.en/train-", ""),
    ],
}


# ---------------------------------------------------------------------------------------------------------------------
# tokenizers, and text -> ids


def add_special_tokens(tokenizer: Tokenizer):
    """Appends the special tokens that a tokenizer lacks."""
    for names in SPECIAL_NAMES.values():
        name = next((name for name in names if tokenizer.token_to_id(name) is not None), names[0])
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """{"eod", "mask", "pad", "sep"} -> id, each by the first of its names that the tokenizer has."""
    special = {}
    for role, names in SPECIAL_NAMES.items():
        ids = [i for i in map(tokenizer.token_to_id, names) if i is not None]
        if not ids:
            raise UserError(f"the tokenizer has no token named {' or '.join(names)}; prepare the data again with it")
        special[role] = ids[0]
    return special


def vocab_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id (a vocabulary may have holes)."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def subword_marks(tokenizer: Tokenizer) -> tuple[str, str]:
    """(before a token that continues a word, such as ##; behind one that ends a word, such as </w>); "": none."""
    keys = "continuing_subword_prefix", "end_of_word_suffix"
    return tuple(getattr(tokenizer.model, key, None) or "" for key in keys)


def space_mark(tokenizer: Tokenizer) -> str:
    """What the space before a word is in its first token: Ġ (byte-level), ▁ (SentencePiece), itself; "": not kept."""
    text = tokenizer.normalizer.normalize_str("a b") if tokenizer.normalizer else "a b"
    if tokenizer.pre_tokenizer:
        text = "".join(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    mark = text[-2:-1].replace("a", "")
    if mark == " " and tokenizer.decoder:  # which alone may tell
        return next((m for m in ("Ġ", "▁") if tokenizer.decoder.decode(["a", f"{m}b"]) == "a b"), mark)
    return mark


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """[V] bool: tokens that begin a word, by the kind of the tokenizer: those without the mark of a continued word
    (WordPiece: ##); none where only ends are marked (see `word_ends`); else those with the space before it. All, where
    tokens are whole words or keep no spaces."""
    tokens = [tokenizer.id_to_token(i) or "" for i in range(vocab_size(tokenizer))]
    (prefix, suffix), mark = subword_marks(tokenizer), space_mark(tokenizer)
    if prefix or suffix:
        return np.array([bool(prefix) and not token.startswith(prefix) for token in tokens])
    whole = isinstance(tokenizer.model, WordLevel) or not mark
    return np.array([whole or token.startswith((mark, " ")) for token in tokens])  # added tokens keep their space


def word_ends(tokenizer: Tokenizer) -> np.ndarray:
    """[V] bool: tokens behind which a word begins, where ends of words are marked (</w>); else none."""
    _, suffix = subword_marks(tokenizer)
    tokens = [tokenizer.id_to_token(i) or "" for i in range(vocab_size(tokenizer))]
    return np.array([bool(suffix) and token.endswith(suffix) for token in tokens])


def load_tokenizer(path) -> Tokenizer:
    """tokenizer.json -> a tokenizer to which special strings inside text are ordinary text."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{show(path)} does not exist; name a tokenizer.json, or prepare the data again")
    with reading(path, "name a tokenizer.json"):
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{show(path)} is not a tokenizer ({error}); name a tokenizer.json") from None
    tokenizer.encode_special_tokens = True  # not saved in the file
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenizer_hash(path) -> str:
    """sha256 of the file's bytes, in hex."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[\r\n]+")


def clean(text: str) -> str:
    """The text with ? for half characters (written as \\ud800, or bytes that are no UTF-8), which have no bytes."""
    if not isinstance(text, str):
        raise UserError(f"a text is a str, not {type(text).__name__} ({text!r:.40}); leave it out, or make it one")
    return text.encode("utf-8", "replace").decode()


def split_sentences(text: str) -> list[str]:
    """Text -> its sentences as they are encoded: clean, stripped, one space in front; empty ones are dropped."""
    return [" " + stripped for part in SENTENCE_END.split(clean(text)) if (stripped := part.strip())]


PASSED_ON = KeyboardInterrupt, SystemExit, MemoryError  # errors that are not of the text


def encode_sentences(tokenizer: Tokenizer, sentences: list[str]) -> list[list[int]]:
    """Sentences -> ids of each. UserError that names the one that the tokenizer cannot encode."""
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(sentences, add_special_tokens=False)]
    except PASSED_ON:
        raise
    except BaseException as error:  # a panic of the library is no Exception
        if len(sentences) > 1:
            return [encode_sentences(tokenizer, [sentence])[0] for sentence in sentences]
        reason, (text,) = " ".join(str(error).split())[:100], sentences
        what = f"the tokenizer cannot encode {text.strip()[:60]!r} ({len(text):,} characters: {reason})"
        raise UserError(f"{what}; leave that text out, or take another tokenizer") from None


def encode_texts(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Texts -> ids of each, exactly as in the training files. A text without any token is one separator."""
    sentences = [split_sentences(text) for text in texts]
    flat = [sentence for own in sentences for sentence in own]
    encoded = iter(encode_sentences(tokenizer, flat))
    rows = [[i for ids in islice(encoded, len(own)) for i in ids] for own in sentences]
    return [row or [special_ids(tokenizer)["sep"]] for row in rows]


def pad_batch(rows: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of ids -> ids [B, n] int64, mask [B, n] bool (True: a token), n the longest of them."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]  # [B, n]
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = np.fromiter((i for row in rows for i in row), np.int64, lengths.sum())
    return ids, mask


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
        self.file.write(np.asarray(tokens, "<u2").tobytes())
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
    if name not in ("text", "hub") and (Path(__file__).parents[1] / f"data/{name}/prepare.py").exists():
        return f"python data/{name}/prepare.py"
    return f"python data/text/prepare.py --name={name} --files FILES"


def again(folder) -> str:
    """What to do about a damaged data folder."""
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
    """The embedded corpus is made on the spot, on each node; for any other the command that makes it is printed.
    world, signals: see lab/distributed.py. Returns the signal that stopped it, or 0."""
    if data.name == "pydocs" and not (data / "meta.json").is_file() and os.environ.get("LOCAL_RANK", "0") == "0":
        log("preparing the embedded corpus once: docstrings of this Python's packages, at most 90 s")
        script = [
            sys.executable,
            str(Path(__file__).resolve().parent.parent / "data/pydocs/prepare.py"),
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

    tokens uint16 [N], documents int64 [D+1], sentences int64 [S]. Of a very long file both ends are checked here, the
    rest where it is used. remedy: what the user does about a file that is damaged.
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
        begin = HEADER.size + (2 * self.count + 7) // 8 * 8
        middle = begin + 8 * (documents + 1)
        if size != middle + 8 * sentences:
            raise self.error(f"has {size:,} bytes where its header says {middle + 8 * sentences:,}")
        self.eod, self.mask, self.pad, self.sep = ids
        self.special_ids = tuple(sorted(set(ids)))
        self.tokenizer_hash = digest.hex()
        if not max(ids) < self.vocab_size <= MAX_VOCAB:
            raise self.error("has a damaged header")

        # plain arrays over the mapping: the memmap class itself slows every small index down
        raw = np.asarray(np.memmap(self.path, np.uint8, "r"))
        self.tokens = raw[HEADER.size : HEADER.size + 2 * self.count].view("<u2")
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
        """Hash of meta.json: of these data, made at this time, with these counts of every token."""
        return hashlib.sha256(json.dumps(self.meta).encode()).hexdigest()

    def counts(self, kind: str = "counts") -> list[int]:
        """How often each token stands in the training text ("document_counts": in how many sentences): [V]."""
        counts = self.meta.get(kind)
        if not isinstance(counts, list) or len(counts) != self.vocab_size:
            raise UserError(f"{show(self.folder / 'meta.json')} has no count for every token; {self.remedy}")
        return counts

    def gather(self, starts, n: int) -> np.ndarray:
        """Rows of n tokens from these starts [R] -> int64 [R, n]."""
        self.check_tables(((0 <= starts) & (starts <= self.count - n)).all())
        rows = self.tokens[starts[:, None] + np.arange(n)]  # uint16 [R, n]
        self.check_ids(rows)
        return rows.astype(np.int64)

    def document_of(self, starts) -> np.ndarray:
        return np.searchsorted(self.documents, starts, side="right") - 1

    def idf(self) -> np.ndarray:
        """float32 [V]: ln((1 + n) / (1 + df)), df of the n training sentences hold the token; 0 for special tokens."""
        idf = np.log((1 + self.sentences.size) / (1 + np.array(self.counts("document_counts"), np.float64)))
        idf[list(self.special_ids)] = 0
        return idf.astype(np.float32)


def warn_of_vocabulary(text: TokenFile):
    """Where the training text is too little for its vocabulary."""
    if text.count < ENTRY_TOKENS * text.vocab_size:
        fit = max(256 + len(SPECIAL_NAMES), 1 << (text.count // ENTRY_TOKENS).bit_length() >> 1)
        warn(
            f"the {text.count:,} tokens of training text are {text.count / text.vocab_size:.0f} for each of the "
            f"{text.vocab_size:,} entries of the vocabulary, too few to learn them; prepare more text, or with "
            f"--tokenizer=bpe:{fit}"
        )


def unigram_floor(counts, tokens, eod: int, weights=None) -> float:
    """Cross-entropy (nats) of tokens under add-one-smoothed training counts [V], both without end-of-document: the loss
    of knowing only how common tokens are. weights [V]: of each token (the best guess is as weight times count)."""
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


# ---------------------------------------------------------------------------------------------------------------------
# the sampler: rows as a pure function of (seed, step, row)

LENGTH, SENTENCE, OFFSET, VARIANT = 1, 2, 3, 4  # streams of random numbers that share nothing


def hash32(salt: int, *keys) -> np.ndarray:
    """uint32 from integers or integer arrays (broadcast): MurmurHash3's finaliser over each half of each key."""
    state = np.full(1, salt, np.uint32)
    for key in keys:
        key = np.asarray(key, np.int64).view(np.uint64) if not isinstance(key, int) else np.uint64(key & (1 << 64) - 1)
        for half in (key & np.uint64(0xFFFFFFFF), key >> np.uint64(32)):
            state = (state ^ half.astype(np.uint32)) + np.uint32(0x9E3779B9)
            state = (state ^ state >> np.uint32(16)) * np.uint32(0x85EBCA6B)
            state = (state ^ state >> np.uint32(13)) * np.uint32(0xC2B2AE35)
            state = state ^ state >> np.uint32(16)
    return state


def hash64(*keys) -> np.ndarray:
    """Two joined 32-bit hashes: uint64, enough to address 10^11 tokens evenly."""
    high, low = hash32(0x243F6A88, *keys), hash32(0x85A308D3, *keys)
    return high.astype(np.uint64) << np.uint64(32) | low


def choose(shares, *keys) -> np.ndarray:
    """Indices, drawn with these shares (of their sum) as functions of the keys (broadcast)."""
    ends = np.cumsum(shares)
    return np.searchsorted(ends / ends[-1], hash64(*keys) / 2.0**64, side="right").clip(max=len(ends) - 1)


class Sampler:
    """Rows of one length a step, from sentence starts that are all equally likely.

    n <= 16: n tokens of a sentence from a random offset; a shorter one is joined with the next ones of its document.
    n <= 32: n tokens of a sentence at least that long, from a random offset. Neither holds an end-of-document token.
    n > 32: from a sentence start on, across documents unless `one_document` (then up to its end-of-document token).

    `pairs`: rows 2i and 2i + 1 are adjacent spans of one document: n <= 32 tokens of each of two sentences in a row
    (only the second may be joined with what follows it), or the halves of 2n tokens.
    Raises UserError where a length of a training split has fewer than 1,000 windows; elsewhere ask `windows`.
    """

    def __init__(self, corpus: Corpus, lengths, seed: int, one_document: bool = False, pairs: bool = False):
        self.corpus, self.lengths, self.seed = corpus, tuple(lengths), seed
        self.one_document, self.pairs = one_document or pairs, pairs
        for n in self.lengths if corpus.split == "train" else ():
            if self.windows(n) < MIN_WINDOWS:
                raise UserError(self.refusal(n))

    def refusal(self, n: int) -> str:
        what = f"{show(self.corpus.path)} has only {self.windows(n)} rows of length {n}, fewer than {MIN_WINDOWS:,}"
        shorter = {m for m in self.lengths if m < n} | {1 << k for k in range(1, n.bit_length()) if 1 << k < n}
        for m in sorted(shorter, reverse=True):
            if self.windows(m) >= MIN_WINDOWS:
                return f"{what}; use length {m} instead, or more text"
        return f"{what}, nor enough of any shorter length; use more text"

    def length(self, step: int, mix: tuple[float, ...] = ()) -> int:
        """The row length of a step, drawn with the shares `mix`; (): all alike."""
        if mix:
            return self.lengths[choose(mix, self.seed, LENGTH, step)[0]]
        return self.lengths[int(hash64(self.seed, LENGTH, step)[0] % np.uint64(len(self.lengths)))]

    def places(self, n: int, sentence: np.ndarray, second=0) -> tuple[np.ndarray, np.ndarray]:
        """For sentence numbers: where the first row of n tokens starts, and how many rows the sentence offers. Of pairs
        the first rows, or where `second` (1, broadcast) the second ones, which are offered together or not at all."""
        if not self.pairs:
            return self.single_places(n, sentence)
        if n > 32:
            start, rows = self.single_places(2 * n, sentence)
            return start + second * n, rows
        corpus, following = self.corpus, np.minimum(sentence + 1, self.corpus.sentences.size - 1)
        start, rows = self.single_places(n, sentence, join=False)
        start2, rows2 = self.single_places(n, following)
        both = (following > sentence) & (corpus.document_of(start) == corpus.document_of(start2))
        both &= (rows > 0) & (rows2 > 0)
        return np.where(second, start2, start), np.where(second, rows2, rows) * both

    def single_places(self, n: int, sentence: np.ndarray, join: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The same for rows that are no pairs; join: a short sentence may be joined with the next ones."""
        corpus = self.corpus
        start, end = corpus.sentence_spans(sentence)
        if n > 32:
            limit = corpus.documents[corpus.document_of(start) + 1] if self.one_document else corpus.count
            return start, (start + n <= limit).astype(np.int64)
        end = end - (corpus.tokens[end - 1] == corpus.eod)  # of a document's last sentence
        rows = np.maximum(end - start - n + 1, 0)
        if n <= 16 and join:
            text_end = corpus.documents[corpus.document_of(start) + 1] - 1
            rows = np.maximum(rows, start + n <= text_end)
        return start, rows

    def windows(self, n: int) -> int:
        """Rows of n tokens the corpus offers, counted until 1,000 are sure."""
        count, size = 0, self.corpus.sentences.size
        for at in range(0, size, CHUNK // 16):
            count += int(self.places(n, np.arange(at, min(at + CHUNK // 16, size)))[1].sum())
            if count >= MIN_WINDOWS:
                return MIN_WINDOWS
        return count

    def reach(self, n: int) -> int:
        """How many tokens of the corpus rows of n can hold, about: by at most 131,072 sentences, evenly spread."""
        size, span = self.corpus.sentences.size, 2 * n if self.pairs else n
        sentences = np.linspace(0, size - 1, min(size, 1 << 17)).astype(np.int64)
        start, end = self.corpus.sentence_spans(sentences)
        first, next_ = (self.places(n, np.minimum(sentences + i, size - 1))[1] > 0 for i in (0, 1))
        held = first * np.where(next_ & (sentences < size - 1), end - start, np.maximum(end - start, span))
        return int(np.clip(held.mean() * size, MIN_WINDOWS, self.corpus.count))

    def batch(self, step: int, n: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Global row numbers [R] -> ids int64 [R, n] and the document each row starts in, int64 [R]: sentences are
        drawn until one offers a row, in each round more for the rows still without one."""
        rows = np.asarray(rows, np.int64)
        sentences = np.uint64(self.corpus.sentences.size)
        starts = np.zeros(rows.size, np.int64)
        left = np.arange(rows.size)
        tried, ahead = 0, 2
        while left.size:
            row, draws = rows[left], np.arange(tried, tried + ahead)
            text, second = (row // 2, row % 2) if self.pairs else (row, row * 0)
            drawn = (hash64(self.seed, SENTENCE, step, text[:, None], draws) % sentences).astype(np.int64)  # [r, ahead]
            start, offered = self.places(n, drawn, second[:, None])
            hit = (offered > 0).any(1)
            first = (offered > 0).argmax(1)[hit, None]  # the draw that counts does not depend on `ahead`
            start, offered = (np.take_along_axis(a[hit], first, 1)[:, 0] for a in (start, offered))
            offset = hash64(self.seed, OFFSET, step, row[hit]) % offered.astype(np.uint64)
            starts[left[hit]] = start + offset.astype(np.int64)
            left = left[~hit]
            tried, ahead = tried + ahead, min(2 * ahead, 512)
            if tried > 1_000_000 and left.size:
                raise UserError(f"{show(self.corpus.path)} has hardly a row of length {n}; leave this length out")
        return self.corpus.gather(starts, n), self.corpus.document_of(starts)
