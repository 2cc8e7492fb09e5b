"""
Shared by the prepare scripts: documents in, a finished data folder out (format: lab/data/corpus.py).

    config = configure(argv, Text, "data/text/prepare.py", __doc__)  # Text: a dataclass derived from Output
    build(config, Files)  # Files(config): a Source of pieces of text

`build` makes the tokenizer and encodes on all cores, in constant memory and in the order of the source. Files are
written to a hidden folder inside the data folder (so on the same file system) and moved at the end, meta.json last: a
killed preparation leaves nothing that looks finished. The folder is locked meanwhile.
"""

import json
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tiktoken
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from lab import files
from lab.command import STOPS, log
from lab.configurator import PathStr, UserError, parse, show
from lab.data.corpus import CorpusWriter, TokenFile, check_name, load_meta, warn_of_vocabulary
from lab.data.sampler import hash32
from lab.data.tokenizers import (
    PASSED_ON,
    SPECIAL_NAMES,
    add_special_tokens,
    encode_sentences,
    load_tokenizer,
    special_ids,
    split_sentences,
    tokenizer_hash,
    vocab_size,
)

ROOT = Path(__file__).resolve().parents[2]
TRAINING_TEXT = 100_000_000  # characters that a tokenizer is trained on, at most
BATCH = 1_000_000  # characters that a process encodes at a time
FILES = ("tokenizer.json", "train.bin", "val.bin", "meta.json")  # of a finished folder, in the order they are moved
LONG = 100_000  # longer sentences are not given to tiktoken, which fails on a million spaces
TOKENIZER = "bpe:SIZE is trained on the text; or tiktoken:NAME, hub:OWNER/NAME, or a tokenizer.json"


@dataclass
class Output:
    """Keys of every prepare script."""

    name: Annotated[str, "name of the dataset: its folder in data_dir"] = ""
    tokenizer: Annotated[PathStr, TOKENIZER] = "bpe:8192"
    lowercase: Annotated[bool, "lower-case all text (stands in tokenizer.json, so it holds later too)"] = False
    data_dir: Annotated[PathStr, "folder that holds the data folders"] = str(ROOT / "data")
    overwrite: Annotated[bool, "replace a finished data folder of this name"] = False

    @property
    def folder(self) -> Path:
        return Path(self.data_dir) / self.name


def configure(argv: list[str], kind: type[Output], script: str, doc: str):
    """argv -> the configuration of a script; UserError for mistakes, before anything takes long."""
    config = parse(argv, kind, prog=script, doc=doc, root=ROOT, positional=False).make(kind)
    if not config.name:
        raise UserError("the dataset has no name; add --name=NAME")
    check_name(config.name)
    check_free(config)
    check_spec(config.tokenizer)
    return config


def check_free(config: Output):
    """UserError if the finished files must not or cannot be written to the folder."""
    if (config.folder / "meta.json").exists() and not config.overwrite:
        raise UserError(f"{show(config.folder)} is prepared already; add --overwrite, or take another name")
    for name in FILES:
        if (config.folder / name).is_dir():
            raise UserError(f"{show(config.folder / name)} is a folder; remove it, or take another name")


class Piece(NamedTuple):
    """A document or, of a long one, some of its lines."""

    split: str  # "train" or "val"
    text: str
    first: bool = True  # a document starts here
    last: bool = True  # a document ends here


class Source:
    """An iterable of pieces of text that can be iterated more than once."""

    total, done, unit = None, 0, "B"  # for the progress bar
    meta = {}  # the source's entries of meta.json


def in_val(fraction: float, *keys: int) -> bool:
    """Whether a key belongs to the validation split: a pseudo-random choice of this fraction of all keys."""
    return bool(hash32(0x0DA7A, *keys)[0] < fraction * 2**32)


def progress(*items, **about) -> tqdm:
    """A progress bar; in a log file a line every ten seconds."""
    return tqdm(*items, mininterval=0.2 if sys.stderr.isatty() else 10, **about)


def start_worker():
    """Initialises a worker, which ends with its parent however that ends."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (multiprocessing.connection.wait([parent]), os._exit(1)), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process per core


def ordered_map(function, items: Iterable) -> Iterator:
    """map() over all cores, in order, with a bounded number of pending items; one or two items without processes."""
    items = iter(items)
    head = list(islice(items, 3))
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if len(head) < 3 or workers == 1:
        yield from map(function, chain(head, items))
        return
    # "spawn": a fork of a process whose tokenizer library has threads may hang
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    # A thread with blocked signals starts the workers, so that Ctrl-C cannot interrupt a start and the workers inherit
    # the mask (without SIGTERM, by which the pool ends them): they end with us.
    blocked = {*STOPS} - {signal.SIGTERM}
    here = hasattr(signal, "pthread_sigmask")  # not on Windows
    starter = ThreadPoolExecutor(1, "", *([signal.pthread_sigmask, (signal.SIG_BLOCK, blocked)] if here else []))
    pending = deque()
    try:
        for item in chain(head, items):
            pending.append(starter.submit(pool.submit, function, item))
            if len(pending) > 3 * workers:
                yield pending.popleft().result().result()
        while pending:
            yield pending.popleft().result().result()
    except BrokenProcessPool:
        what = "a process of the preparation was killed, most likely because the machine is out of memory"
        raise UserError(f"{what}; free some, or use fewer cores (taskset -c 0,1 python ...)") from None
    finally:
        starter.shutdown()
        pool.shutdown(cancel_futures=True)  # waits for what is under way, a second at the most


# ---------------------------------------------------------------------------------------------------------------------
# tokenizers

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
REPOSITORY = r"[\w-][\w.-]*(/[\w.-]+)?"  # of the hub
TIKTOKEN = "gpt2", "r50k_base", "p50k_base", "p50k_edit"  # those with this pattern
CHARS = sorted(pre_tokenizers.ByteLevel.alphabet())  # printable bytes as themselves, then the others
BYTE_OF = dict(zip(CHARS, sorted(range(256), key=lambda byte: chr(byte) not in CHARS), strict=True))
CHAR_OF = {byte: char for char, byte in BYTE_OF.items()}


def check_spec(spec: str):
    """UserError for a --tokenizer that cannot work."""
    kind, _, rest = spec.partition(":")
    if kind == "bpe":
        least, most = 256 + len(SPECIAL_NAMES), 1 << 16
        if not (rest.isascii() and rest.isdigit() and least <= int(rest) <= most):
            raise UserError(f"--tokenizer={spec} names no vocabulary size of {least} to {most}; write bpe:8192")
    elif kind == "tiktoken":
        if rest not in TIKTOKEN:
            raise UserError(f"tiktoken has no encoding {rest!r} that is known here; take one of {', '.join(TIKTOKEN)}")
    elif kind == "hub":
        if not re.fullmatch(REPOSITORY, rest):
            raise UserError(f"--tokenizer={spec} names no repository; write hub:owner/name")
    elif not Path(spec).exists() and re.fullmatch(REPOSITORY, spec) and not spec.endswith(".json"):
        kind = "bpe" if spec.isdigit() else "tiktoken" if spec in TIKTOKEN else "hub"
        raise UserError(f"{spec} does not exist; write --tokenizer={kind}:{spec}, or name a tokenizer.json")
    else:
        load_tokenizer(spec)


def byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def cut_words(sentence: str) -> list[str]:
    """Splits the words of a long sentence into parts of at most 100 characters: BPE training is quadratic in them."""
    return re.sub(r"\S{100}|\s{100}", "\\g<0>\n", sentence).split("\n") if len(sentence) > 1000 else [sentence]


def train_bpe(tokenizer: Tokenizer, source: Source, size: int):
    """Trains `size` entries, special tokens first, on the source's first 100 MB of training text."""
    special = [names[0] for names in SPECIAL_NAMES.values()]
    about = {"vocab_size": size, "special_tokens": special, "initial_alphabet": CHARS}

    def sentences():
        read = 0
        for piece in source:
            if piece.split == "train":
                read += len(piece.text)
                yield [part for sentence in split_sentences(piece.text) for part in cut_words(sentence)]
            if read >= TRAINING_TEXT:
                return

    print(f"training a tokenizer of {size} entries", file=sys.stderr)
    tokenizer.train_from_iterator(sentences(), trainers.BpeTrainer(show_progress=False, **about))


def from_tiktoken(name: str) -> Tokenizer:
    """A tiktoken encoding as a tokenizer; the merges of byte-level BPE are recovered from its ranks."""
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # of the network
        raise offline(f"tiktoken:{name}", error, "connect to the network, or take --tokenizer=bpe:8192") from None
    ranks = encoding._mergeable_ranks
    vocab = {"".join(CHAR_OF[b] for b in token): rank for token, rank in ranks.items()}
    merges = []
    for token in sorted((t for t in ranks if len(t) > 1), key=ranks.get):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:  # merge as the encoder would, up to the last merge
            pairs = [ranks.get(a + b, 1 << 31) for a, b in zip(parts, parts[1:], strict=False)]
            at = min(range(len(pairs)), key=pairs.__getitem__)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append(tuple("".join(CHAR_OF[b] for b in part) for part in parts))
    tokenizer = byte_level(models.BPE(vocab=vocab | encoding._special_tokens, merges=merges, ignore_merges=True))
    tokenizer.add_special_tokens(list(encoding._special_tokens))
    return tokenizer


def from_hub(name: str) -> Tokenizer:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    try:
        path = try_to_load_from_cache(name, "tokenizer.json")
        if not isinstance(path, str):
            HfApi().model_info(name, timeout=8)  # fails at once offline; the download would retry for long
            path = hf_hub_download(name, "tokenizer.json")
    except Exception as error:  # of many libraries
        remedy = "connect to the network, or give --tokenizer=PATH.json or --tokenizer=bpe:8192"
        raise offline(f"hub:{name}", error, remedy) from None
    return load_tokenizer(path)


def offline(what: str, error: Exception, remedy: str) -> UserError:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return UserError(f"{what} could not be downloaded ({reason}); {remedy}")


def make_tokenizer(spec: str, source: Source, lowercase: bool, path: Path):
    """Saves the tokenizer specified by --tokenizer to `path`, with all special tokens."""
    kind, _, rest = spec.partition(":")
    load = {"bpe": lambda size: byte_level(models.BPE()), "tiktoken": from_tiktoken, "hub": from_hub}.get(kind)
    tokenizer = load(rest) if load else load_tokenizer(spec)
    if lowercase:
        own, lower = tokenizer.normalizer, normalizers.Lowercase()
        tokenizer.normalizer = normalizers.Sequence([own, lower]) if own else lower
    if kind == "bpe":
        train_bpe(tokenizer, source, int(rest))
    add_special_tokens(tokenizer)
    tokenizer.save(str(path))


# With digits split off before: white space in front of one is a piece of its own.
DIGITS_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}%s| ?[^\s\p{L}\p{N}]++|\s++$|\s++(?=\p{N})|\s+(?!\S)|\s"


def pieces_pattern(pre: dict | None) -> str | None:
    """The pre_tokenizer of a byte-level tokenizer.json -> the regular expression of its pieces; None where it is not
    one. GPT-2 and ModernBERT: ByteLevel; SmolLM2: Digits, ByteLevel; Llama-3 and Qwen2.5: Split, ByteLevel."""
    pre = pre or {}
    *first, last = pre["pretokenizers"] if pre.get("type") == "Sequence" and pre["pretokenizers"] else [pre]
    if last.get("type") != "ByteLevel" or len(first) > 1:
        return None
    if not first or first[0]["type"] == "Digits":
        digits = {} if not first else first[0]
        each = "" if digits.get("individual_digits") else "++"
        return (DIGITS_PATTERN % each if first else GPT2_PATTERN) if last.get("use_regex") else None
    own = first[0]
    regex = own["pattern"].get("Regex") if own["type"] == "Split" and own["behavior"] == "Isolated" else None
    if not regex or own["invert"] or last.get("use_regex"):
        return None
    return rf"{regex}|(?:(?!(?:{regex}))[\s\S])+"  # what it does not match is a piece, too


def fast_twin(tokenizer: Tokenizer) -> tiktoken.Encoding | None:
    """A tiktoken encoder with the same merges, 3 to 7 times as fast; None for other kinds of tokenizers."""
    spec = json.loads(tokenizer.to_str())
    model, pattern = spec["model"], pieces_pattern(spec["pre_tokenizer"])
    vocab = model["vocab"] if model["type"] == "BPE" else {}
    special = any(model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if special or not BYTE_OF.keys() <= vocab.keys() or pattern is None:
        return None
    merges = dict.fromkeys(map("".join, model["merges"]))  # Llama-3 lists every way to make a token
    tokens = [*sorted(CHARS, key=vocab.get), *merges]
    ids = [vocab[token] for token in tokens]
    if ids != sorted(set(ids)):
        return None  # tiktoken merges in the order of ids
    ranks = {bytes(BYTE_OF[c] for c in token): vocab[token] for token in tokens}
    return tiktoken.Encoding("twin", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


class Encoder:
    """Sentences -> ids, by tiktoken if it agrees with the tokenizer on a sample of every batch."""

    def __init__(self, path, digest: str = ""):
        """digest: of the file, which may have been replaced since a process made its encoder."""
        self.tokenizer = load_tokenizer(path)
        self.eod = special_ids(self.tokenizer)["eod"]
        self.twin, self.composes = fast_twin(self.tokenizer), isinstance(self.tokenizer.normalizer, normalizers.NFC)
        added = self.tokenizer.get_added_tokens_decoder().values()
        ordinary = [re.escape(token.content) for token in added if not token.special]  # tiktoken does not know these
        self.ordinary = re.compile("|".join(ordinary)) if ordinary else None

    def slow(self, sentences: list[str]) -> list[list[int]]:
        return encode_sentences(self.tokenizer, sentences)

    def __call__(self, sentences: list[str]) -> list[list[int]]:
        try:
            return self.fast(sentences) if self.twin else self.slow(sentences)
        except PASSED_ON:
            raise
        except BaseException:  # a panic of tiktoken's is no Exception
            return self.slow(sentences)

    def fast(self, sentences: list[str]) -> list[list[int]]:
        """By tiktoken, except for sentences that it may encode differently; all by the tokenizer if a sample
        differs."""
        texts, normalizer = sentences, self.tokenizer.normalizer
        if normalizer:  # NFC leaves ASCII as it is
            texts = [s if self.composes and s.isascii() else normalizer.normalize_str(s) for s in sentences]
        ids, easy = [None] * len(texts), []
        has = self.ordinary.search if self.ordinary else lambda text: False
        for i, text in enumerate(texts):
            if len(text) < LONG and not has(text) and not has(sentences[i]):
                easy.append(i)
                ids[i] = self.twin.encode_ordinary(text)
        sample = easy[:: max(len(easy) // 50, 1)]
        if [ids[i] for i in sample] != self.slow([sentences[i] for i in sample]):
            return self.slow(sentences)
        hard = [i for i, own in enumerate(ids) if own is None]
        for i, own in zip(hard, self.slow([sentences[i] for i in hard]), strict=True):
            ids[i] = own
        return ids


encoder = lru_cache(1)(Encoder)  # one per process


def batches(source: Source) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for piece in source:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def encode_pieces(tokenizer: Path, digest: str, batch: list[Piece]) -> list[tuple]:
    """(split, tokens, sentence starts, document starts) of each piece; empty documents are left out."""
    encode = encoder(tokenizer, digest)
    sentences = [split_sentences(piece.text) for piece in batch]
    ids = iter(encode([sentence for own in sentences for sentence in own]))
    result = []
    for piece, own in zip(batch, sentences, strict=True):
        rows = [row for row in islice(ids, len(own)) if row]
        if rows or not (piece.first and piece.last):
            starts = np.cumsum([0, *map(len, rows)])
            end = [encode.eod] if piece.last else []
            tokens = np.fromiter(chain(*rows, end), np.uint32, starts[-1] + len(end))
            result.append((piece.split, tokens, starts[:-1], [0] if piece.first else []))
    return result


class Splits:
    """train.bin and val.bin of a folder while they are written; `close` deletes incomplete files."""

    def __init__(self, folder: Path, tokenizer: Path):
        self.folder, self.tokenizer, self.hash = folder, tokenizer, tokenizer_hash(tokenizer)
        loaded = load_tokenizer(tokenizer)
        self.about = vocab_size(loaded), special_ids(loaded), self.hash
        if not fast_twin(loaded):
            log("tiktoken cannot encode as this tokenizer does: expect 0.3 M tokens/s a core, not 1 M")
        paths = {split: folder / f"{split}.bin" for split in ("train", "val")}
        self.writers = {split: CorpusWriter(path, *self.about) for split, path in paths.items()}

    def encode(self, source: Source, about: str = "encoding"):
        """Appends a whole source."""
        bar = progress(total=source.total, desc=about, unit=source.unit, unit_scale=True)
        function = partial(encode_pieces, self.tokenizer, self.hash)
        with bar, closing(ordered_map(function, batches(source))) as results:
            for result in results:
                for split, *arrays in result:
                    self.writers[split].append(*arrays)
                bar.update(source.done - bar.n)

    def complete(self):
        """Completes both files; an empty validation split first gets the end of the training text."""
        if self.writers["val"].sentences == 0 and self.writers["train"].sentences > 0:
            self.hold_out()
        for writer in self.writers.values():
            writer.close()

    def close(self):
        for writer in self.writers.values():
            writer.discard()

    def hold_out(self):
        """Moves the last document to the validation split; if there is only one, its last 5 % in whole sentences."""
        whole, val = self.writers["train"], self.writers["val"]
        if whole.sentences < 2:
            raise UserError("the text has only one sentence, too little to train and validate on; give more text")
        whole.close()
        text = TokenFile(whole.path.rename(self.folder / "whole.bin"), "prepare it again")
        self.writers["train"] = train = CorpusWriter(whole.path, *self.about)
        if whole.documents > 1:
            cut = int(text.documents[-2])
            train.copy(text, 0, cut)
        else:
            twentieth = int(np.searchsorted(text.sentences, int(text.count * 0.95)))
            cut = int(text.sentences[min(max(twentieth, 1), whole.sentences - 1)])
            train.copy(text, 0, cut)
            train.append(np.array([text.eod]), [], [])
            val.append(np.array([], int), [], [0])
        val.copy(text, cut, text.count)


def count_tokens(size: int, part: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """int64 [2, size]: count of each token, and of the sentences that contain it."""
    tokens, lengths = part
    pairs = np.repeat(np.arange(len(lengths)) * size, lengths) + tokens
    pairs.sort()
    first = np.append(True, pairs[1:] != pairs[:-1])
    return np.stack([np.bincount(ids, minlength=size) for ids in (tokens, pairs[first] % size)])


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """An empty folder inside a locked one, deleted at the end of the block."""
    shutil.rmtree(path, ignore_errors=True)  # what a killed process left
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def command_line() -> str:
    return shlex.join([show(sys.argv[0]), *sys.argv[1:]])


def make(config: Output, work):
    """Calls work(temporary folder), which ends with `finish`, with the data folder locked. Does nothing if another
    process has made it meanwhile by the same command (nodes that share a disk)."""
    folder = config.folder
    with files.locked(folder, "name another --data_dir", wait=True) as waited:
        if waited and (folder / "meta.json").exists() and load_meta(folder).get("command") == command_line():
            print(f"{show(folder)}: prepared meanwhile by the same command", file=sys.stderr)
            return
        check_free(config)
        with temporary_folder(folder / ".making") as temporary:
            work(temporary)


def finish(splits: Splits, config: Output, more: dict):
    """Completes the files and moves them into place: deletes the old meta.json first, moves the new one last. more:
    further entries of meta.json."""
    splits.complete()
    text = TokenFile(splits.folder / "train.bin", "prepare it again")
    warn_of_vocabulary(text)
    counts = sum(ordered_map(partial(count_tokens, text.vocab_size), text.pieces(text.count)))
    counts[:, text.eod] = len(text.documents) - 1, 0
    meta = {
        "name": config.name,
        "vocab_size": text.vocab_size,
        "tokenizer": config.tokenizer,
        "tokenizer_hash": text.tokenizer_hash,
        "lowercase": config.lowercase,
        "command": command_line(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    made = []
    for split, w in splits.writers.items():
        meta |= {f"{split}_tokens": w.count, f"{split}_documents": w.documents, f"{split}_sentences": w.sentences}
        made.append(f"{split} {w.count:,} tokens in {w.documents:,} documents")
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in ("numpy", "tokenizers", "tiktoken")} | more.get("versions", {})
    meta |= more | {"versions": versions}
    meta |= {"counts": counts[0].tolist(), "document_counts": counts[1].tolist()}
    (splits.folder / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")

    folder = config.folder
    for name in FILES:
        files.sync(splits.folder / name)
    (folder / "meta.json").unlink(missing_ok=True)
    for name in FILES:
        os.replace(splits.folder / name, folder / name)
    files.sync(folder)
    print(f"{show(folder)}: {', '.join(made)}; vocabulary {text.vocab_size:,}")


def build(config: Output, source_kind):
    """The whole preparation of the source `source_kind(config)`, which is read twice: for the tokenizer, and to
    encode."""

    def work(temporary):
        source = source_kind(config)
        tokenizer = temporary / "tokenizer.json"
        make_tokenizer(config.tokenizer, source, config.lowercase, tokenizer)
        with closing(Splits(temporary, tokenizer)) as splits:
            splits.encode(source)
            finish(splits, config, source.meta)

    make(config, work)
