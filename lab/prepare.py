"""
What the prepare scripts share: documents in, a finished data folder out (its files: see dataset.py).

A script gives a source of pieces of text; `build` makes the tokenizer, encodes on all cores in constant memory and in
the order of the source, and puts the folder in place. All files are made in a temporary folder beside it, and moved at
the end, meta.json last: a killed preparation leaves nothing that looks finished.
"""

import errno
import glob
import json
import multiprocessing
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm

from lab import dataset, files
from lab.configurator import UserError, error_line, show

ROOT = Path(__file__).resolve().parent.parent
TRAINING_TEXT = 100_000_000  # characters a tokenizer is trained on, at most
BATCH = 1_000_000  # characters that a process encodes in one go
PIECE = 1 << 20  # characters of a document that are read in one go


@dataclass
class Output:
    """Keys that every prepare script has."""

    data_dir: Annotated[str, "folder that holds the data folders"] = str(ROOT / "data")
    lowercase: Annotated[bool, "lower-case all text (stands in tokenizer.json, so it holds later too)"] = False
    overwrite: Annotated[bool, "replace a finished data folder of this name"] = False


class Piece(NamedTuple):
    """A document or, of a long one, some of its lines."""

    split: str  # "train" or "val"
    text: str
    first: bool = True  # a document starts here
    last: bool = True  # a document ends here


class Source:
    """Pieces of text that can be read more than once; `done` of `total` is what the bar shows."""

    total, done, unit = None, 0, "B"

    def __iter__(self) -> Iterator[Piece]:
        raise NotImplementedError


def in_val(fraction: float, *keys: int) -> bool:
    """A seeded choice that puts this fraction of all keys into the validation split."""
    return bool(dataset.hash32(0x0DA7A, *keys)[0] < fraction * 2**32)


# -----------------------------------------------------------------------------------------------------------------
# the end of a command


def run(main):
    """`main(argv)`; a user's mistake ends in exit 2 and one line, Ctrl-C in 130, SIGTERM in 143."""

    def terminate(number, frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(error_line(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind that looks finished", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        print(error_line(f"{error.filename or 'writing'}: {error.strerror}; name another --data_dir"), file=sys.stderr)
        sys.exit(2)


# -----------------------------------------------------------------------------------------------------------------
# several processes


def nothing():
    pass


def start_worker(initialize, arguments):
    """A worker leaves signals to its parent, and ends with it however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process().sentinel
    end_with_parent = threading.Thread(
        target=lambda: (multiprocessing.connection.wait([parent]), os._exit(1)), daemon=True
    )
    end_with_parent.start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    initialize(*arguments)


@contextmanager
def signals_later():
    """Ctrl-C and SIGTERM wait for the end of the block; processes that it starts never see Ctrl-C."""
    caught = []
    both = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, frame: caught.append(number)) for number in both}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in caught:
        signal.raise_signal(number)


def ordered_map(function, items: Iterable, initialize=nothing, arguments=(), inline: int = 2) -> Iterator:
    """map() over all cores, in order, with a bounded number of items under way; at most `inline` items: right here."""
    items = iter(items)
    head = list(islice(items, inline + 1))
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if len(head) <= inline or workers == 1:
        initialize(*arguments)
        yield from map(function, chain(head, items))
        return
    # "spawn": a fork of a process whose tokenizer library has threads may hang
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, (initialize, arguments))
    pending = deque()
    try:
        with signals_later():
            pending.append(pool.submit(function, head[0]))  # starts all workers
        for item in chain(head[1:], items):
            pending.append(pool.submit(function, item))
            if len(pending) > 3 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # waits for what is under way, a second at the most


# -----------------------------------------------------------------------------------------------------------------
# tokenizers

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level BPE writes as themselves
BYTE_OF = {chr(b): b for b in PRINTABLE}
BYTE_OF |= {chr(256 + i): b for i, b in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}
CHAR_OF = {b: c for c, b in BYTE_OF.items()}


def check_spec(spec: str) -> str:
    """Refuses a --tokenizer that cannot work, before anything takes long."""
    kind, _, rest = spec.partition(":")
    usage = "write bpe:8192, tiktoken:gpt2 or the path of a tokenizer.json"
    if kind == "bpe":
        least = 256 + len(dataset.SPECIAL_NAMES)
        if not rest.isascii() or not rest.isdigit():
            raise UserError(f"--tokenizer={spec} names no vocabulary size; {usage}")
        if not least <= int(rest) <= dataset.MAX_VOCAB:
            raise UserError(f"--tokenizer={spec} is out of range; take {least} to {dataset.MAX_VOCAB} entries")
    elif kind == "tiktoken":
        if rest not in tiktoken.list_encoding_names():
            names = ", ".join(sorted(tiktoken.list_encoding_names()))
            raise UserError(f"tiktoken has no encoding {rest!r}; take one of {names}")
    elif kind == "hub":
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest):
            raise UserError(f"--tokenizer={spec} names no repository; write hub:owner/name")
    elif not Path(spec).exists() and not spec.endswith(".json"):
        raise UserError(f"--tokenizer={spec} is neither a kind of tokenizer nor a file; {usage}")
    else:
        dataset.load_tokenizer(spec)
    return spec


def train_bpe(source: Source, size: int, lowercase: bool) -> Tokenizer:
    """Byte-level BPE with `size` entries, special tokens first, from the source's first 100 MB of training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase() if lowercase else None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[names[0] for names in dataset.SPECIAL_NAMES.values()],
        initial_alphabet=sorted(BYTE_OF),
        show_progress=False,
    )

    def sentences():
        read = 0
        for piece in source:
            if piece.split == "train" and read < TRAINING_TEXT:
                read += len(piece.text)
                yield [" " + sentence for sentence in dataset.split_sentences(piece.text)]
            if read >= TRAINING_TEXT:
                return

    tokenizer.train_from_iterator(sentences(), trainer)
    return tokenizer


def from_tiktoken(encoding: tiktoken.Encoding, byte_level_pattern: bool) -> Tokenizer:
    """A tiktoken encoding as a tokenizer. Its ranks are undone into the pairs that byte-level BPE merges."""
    ranks = encoding._mergeable_ranks
    vocab = {"".join(CHAR_OF[b] for b in token): rank for token, rank in ranks.items()}
    merges = []
    for token in sorted((t for t in ranks if len(t) > 1), key=ranks.get):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:  # merge as the encoder would, short of the last merge
            pairs = [ranks.get(a + b, 1 << 31) for a, b in zip(parts, parts[1:], strict=False)]
            at = min(range(len(pairs)), key=pairs.__getitem__)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        merges.append(tuple("".join(CHAR_OF[b] for b in part) for part in parts))
    tokenizer = Tokenizer(models.BPE(vocab=vocab | encoding._special_tokens, merges=merges, ignore_merges=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=byte_level_pattern)
    split = pre_tokenizers.Split(Regex(encoding._pat_str), "isolated")
    tokenizer.pre_tokenizer = byte_level if byte_level_pattern else pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(encoding._special_tokens))
    return tokenizer


def offline(what: str, error: Exception, remedy: str) -> UserError:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return UserError(f"{what} could not be downloaded ({reason}); {remedy}")


def make_tokenizer(spec: str, source: Source, lowercase: bool, path: Path):
    """Saves the tokenizer that --tokenizer names as `path`, with all special tokens."""
    kind, _, rest = spec.partition(":")
    if kind == "bpe":
        print(f"training a tokenizer of {rest} entries", file=sys.stderr)
        tokenizer = train_bpe(source, int(rest), lowercase)
    else:
        if kind == "tiktoken":
            try:
                encoding = tiktoken.get_encoding(rest)
            except Exception as error:
                remedy = "connect to the network once, or take --tokenizer=bpe:8192"
                raise offline(f"tiktoken:{rest}", error, remedy) from None
            tokenizer = from_tiktoken(encoding, rest in ("gpt2", "r50k_base", "p50k_base"))
        elif kind == "hub":
            from huggingface_hub import HfApi, hf_hub_download

            try:
                file = hf_hub_download(rest, "tokenizer.json", local_files_only=True)
            except Exception:
                file = None  # not in the cache
            try:
                if file is None:
                    HfApi().model_info(rest, timeout=8)  # fails at once where the download would try for long
                    file = hf_hub_download(rest, "tokenizer.json")
            except Exception as error:  # of many libraries
                remedy = "connect to the network, or give --tokenizer=PATH.json or --tokenizer=bpe:8192"
                raise offline(f"hub:{rest}", error, remedy) from None
            tokenizer = dataset.load_tokenizer(file)
        else:
            tokenizer = dataset.load_tokenizer(spec)
        if lowercase:
            lower = normalizers.Lowercase()
            own = tokenizer.normalizer
            tokenizer.normalizer = normalizers.Sequence([own, lower]) if own else lower
    dataset.add_special_tokens(tokenizer)
    size = dataset.vocab_size(tokenizer)
    if size > dataset.MAX_VOCAB:
        most = f"{dataset.MAX_VOCAB:,}"
        raise UserError(f"the vocabulary of {spec} has {size:,} entries, more than {most}; use a smaller one")
    tokenizer.save(str(path))


def fast_twin(tokenizer: Tokenizer) -> tiktoken.Encoding | None:
    """tiktoken's encoder with the same merges, 3 to 7 times as fast; None where a tokenizer is of another kind."""
    spec = json.loads(tokenizer.to_str())
    model, pre = spec["model"], spec["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    regex = steps[0].get("pattern", {}).get("Regex")
    split = len(steps) == 2 and steps[0].get("behavior") == "Isolated" and not steps[0].get("invert") and regex
    pattern = GPT2_PATTERN if len(steps) == 1 and steps[0].get("use_regex") else split and regex
    plain = not any(model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] != "BPE" or steps[-1].get("type") != "ByteLevel" or not pattern or not plain:
        return None
    vocab = model["vocab"]
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    made = [vocab["".join(pair)] for pair in pairs]
    bytes_first = all(c in vocab for c in BYTE_OF) and (not made or max(vocab[c] for c in BYTE_OF) < made[0])
    if not bytes_first or any(a >= b for a, b in zip(made, made[1:], strict=False)):
        return None  # tiktoken merges in the order of ids
    ranks = {bytes(BYTE_OF[c] for c in token): vocab[token] for token in [*BYTE_OF, *map("".join, pairs)]}
    return tiktoken.Encoding("twin", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


class Encoder:
    """Sentences -> ids, by tiktoken where it agrees with the tokenizer on a sample of every batch."""

    def __init__(self, path):
        self.tokenizer = dataset.load_tokenizer(path)
        self.size = dataset.vocab_size(self.tokenizer)
        self.eod = dataset.special_ids(self.tokenizer)["eod"]
        self.twin = fast_twin(self.tokenizer)
        added = self.tokenizer.get_added_tokens_decoder().values()
        ordinary = [re.escape(token.content) for token in added if not token.special]  # tiktoken does not know these
        self.ordinary = re.compile("|".join(ordinary)) if ordinary else None

    def slow(self, sentences: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(sentences, add_special_tokens=False)]

    def __call__(self, sentences: list[str]) -> list[list[int]]:
        if self.twin is None:
            return self.slow(sentences)
        texts, normalizer = sentences, self.tokenizer.normalizer
        if normalizer:
            texts = [normalizer.normalize_str(sentence) for sentence in sentences]
        ids = [self.twin.encode_ordinary(text) for text in texts]
        if self.ordinary:
            odd = [
                i for i, text in enumerate(texts) if self.ordinary.search(text) or self.ordinary.search(sentences[i])
            ]
            for i, own in zip(odd, self.slow([sentences[i] for i in odd]), strict=True):
                ids[i] = own
        step = max(len(sentences) // 50, 1)
        return ids if ids[::step] == self.slow(sentences[::step]) else self.slow(sentences)


# -----------------------------------------------------------------------------------------------------------------
# encoding

ENCODER = None  # of this process


def start_encoder(path):
    global ENCODER
    ENCODER = Encoder(path)


def batches(source: Source) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for piece in source:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def count_tokens(tokens: np.ndarray, lengths: np.ndarray, size: int, eod: int) -> np.ndarray:
    """Consecutive sentences -> int64 [2, V]: how often each token occurs, and in how many of the sentences."""
    pairs = np.unique(np.repeat(np.arange(len(lengths)) * size, lengths) + tokens)
    counts = np.stack([np.bincount(tokens, minlength=size), np.bincount(pairs % size, minlength=size)])
    counts[:, eod] = 0  # known from the number of documents
    return counts


def encode_pieces(batch: list[Piece]) -> dict:
    """{split: (tokens uint16, sentence starts, document starts)}, and "counts" of the training tokens."""
    sentences = [[" " + sentence for sentence in dataset.split_sentences(piece.text)] for piece in batch]
    ids = iter(ENCODER([sentence for own in sentences for sentence in own]))
    encoded = [[one for one in islice(ids, len(own)) if one] for own in sentences]
    result = {}
    for split in {piece.split for piece in batch}:
        rows, spoken, documents = [], [], []  # sentences and end-of-document tokens; which is which
        for piece, own in zip(batch, encoded, strict=True):
            if piece.split != split or (piece.first and piece.last and not own):
                continue
            if piece.first:
                documents.append(len(rows))
            end = [[ENCODER.eod]] if piece.last else []
            rows += own + end
            spoken += [True] * len(own) + [False] * len(end)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        tokens = np.fromiter(chain.from_iterable(rows), np.uint16, lengths.sum())
        starts = np.cumsum(lengths) - lengths
        result[split] = tokens, starts[np.array(spoken, bool)], starts[np.array(documents, np.int64)]
        if split == "train":
            result["counts"] = count_tokens(tokens, lengths, ENCODER.size, ENCODER.eod).astype(np.int32)
    return result


def encode(source: Source, tokenizer: Path, writers: dict, counts: np.ndarray, about: str = "encoding"):
    """Streams a source into its writers {split: CorpusWriter}; `counts` [2, V] grows."""
    tty = sys.stderr.isatty()
    with tqdm(total=source.total, desc=about, unit=source.unit, unit_scale=True, mininterval=0.2 if tty else 10) as bar:
        with closing(ordered_map(encode_pieces, batches(source), start_encoder, (tokenizer,))) as results:
            for result in results:
                for split, writer in writers.items():
                    if split in result:
                        writer.append(*result[split])
                counts += result.get("counts", 0)
                bar.update(min(source.done, source.total or source.done) - bar.n)


@contextmanager
def open_writers(folder: Path, tokenizer: Path) -> Iterator[dict]:
    """{split: CorpusWriter}; those that are not closed at the end leave nothing."""
    loaded = dataset.load_tokenizer(tokenizer)
    size, special = dataset.vocab_size(loaded), dataset.special_ids(loaded)
    digest = dataset.tokenizer_hash(tokenizer)
    paths = {split: folder / f"{split}.bin" for split in ("train", "val")}
    writers = {split: dataset.CorpusWriter(path, size, special, digest) for split, path in paths.items()}
    try:
        yield writers
    finally:
        for writer in writers.values():
            writer.discard()


def close_writers(writers: dict, counts: np.ndarray):
    """Completes the files; an empty validation split gets the last document (or the end of the only one)."""
    train, val = writers["train"], writers["val"]
    if val.sentences == 0 and train.sentences > 0:
        train.move_tail(val)
        for at in range(0, val.sentences, 100_000):
            starts = val.table(2, at, min(at + 100_000, val.sentences) + 1)
            ends = np.append(starts[1:], val.count) if at + 100_000 >= val.sentences else starts[1:]
            starts = starts[: len(ends)]
            tokens = val.table(0, int(starts[0]), int(ends[-1]))
            counts -= count_tokens(tokens, ends - starts, val.vocab_size, val.special["eod"])
    train.close()
    val.close()
    counts[0, train.special["eod"]] = train.documents


# -----------------------------------------------------------------------------------------------------------------
# the data folder


def check_folder(name: str, output: Output) -> Path:
    """The folder to make; refused if it is finished already and not to be overwritten."""
    folder = Path(output.data_dir) / dataset.check_name(name)
    if (folder / "meta.json").exists() and not output.overwrite:
        raise UserError(f"{show(folder)} is prepared already; add --overwrite to replace it, or take another name")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        what = f"{show(folder.parent)} cannot be written to ({error.strerror})"
        raise UserError(f"{what}; name another --data_dir") from None
    return folder


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def temporary_folder(folder: Path):
    """A folder beside `folder` that goes away however this ends; what dead processes left is removed first."""
    stem = f".{folder.name}.tmp-"
    for left in folder.parent.glob(glob.escape(stem) + "*"):
        number = left.name.removeprefix(stem)
        if number.isdigit() and not alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f"{stem}{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish(temporary: Path, folder: Path, spec: str, lowercase: bool, writers: dict, counts: np.ndarray, more: dict):
    """Writes meta.json and moves all files into place: the old meta.json goes first, the new one comes last."""
    train, val = writers["train"], writers["val"]
    meta = {
        "name": folder.name,
        "vocab_size": train.vocab_size,
        "tokenizer": spec,
        "tokenizer_hash": train.tokenizer_hash,
        "lowercase": lowercase,
        "command": shlex.join([show(sys.argv[0]), *sys.argv[1:]]),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    for split, writer in (("train", train), ("val", val)):
        meta |= {f"{split}_{what}": getattr(writer, name) for what, name in WHAT.items()}
    libraries = {name: version(name) for name in ("numpy", "tokenizers", "tiktoken")}
    meta["versions"] = {"python": platform.python_version()} | libraries | more.pop("versions", {})
    meta |= more | {"counts": counts[0].tolist(), "document_counts": counts[1].tolist()}
    (temporary / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")

    folder.mkdir(exist_ok=True)
    (folder / "meta.json").unlink(missing_ok=True)
    for name in ("tokenizer.json", "train.bin", "val.bin", "meta.json"):
        files.sync(temporary / name)
        os.replace(temporary / name, folder / name)
    parts = [f"{split} {w.count:,} tokens in {w.documents:,} documents" for split, w in writers.items()]
    print(f"{show(folder)}: {', '.join(parts)}; vocabulary {train.vocab_size:,}")


WHAT = {"tokens": "count", "documents": "documents", "sentences": "sentences"}


def build(source: Source, name: str, spec: str, output: Output, more: dict | None = None):
    """The whole preparation of a source that can be read twice: first for the tokenizer, then to encode it."""
    folder = check_folder(name, output)
    with temporary_folder(folder) as temporary:
        tokenizer = temporary / "tokenizer.json"
        make_tokenizer(spec, source, output.lowercase, tokenizer)
        with open_writers(temporary, tokenizer) as writers:
            counts = np.zeros((2, writers["train"].vocab_size), np.int64)
            encode(source, tokenizer, writers, counts)
            close_writers(writers, counts)
        finish(temporary, folder, spec, output.lowercase, writers, counts, more or {})
