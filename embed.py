"""
Vectors of many texts, and what is near to what.

    python embed.py --run=out/quickstart --file=notes.txt --to=vectors.npy
    python embed.py --run=out/quickstart --file=notes.txt --to=vectors.npy --query="ships and harbours" --top=5
    python embed.py --run=out/quickstart --file=notes.jsonl.gz --cluster=20
    python embed.py --run=out/quickstart --file=notes.txt --duplicates=0.95
    cat notes.txt | python embed.py --run=out/quickstart --to=vectors.npy --dtype=float16

A text a line, or JSON lines with "text" (packed by gzip, xz, bzip2, Zstandard or not); row i of the .npy is text i, an
empty line too. Texts are read and vectors written a few thousand at a time: memory does not grow with the file. A text
longer than the run's longest row is read in chunks of whole sentences, its vector is their mean by tokens. The command
goes on where it was stopped; vectors that are whole and of these texts are not made again. VECTORS.npy.json says what
they are.

--query prints the nearest texts by cosine, with --concepts by MaxSim of all concepts; beside each stands the rank that
cosines of TF-IDF of words give it ("-": it shares no word with the query), which needs no model. --cluster prints the
texts nearest to each centre of k-means, --duplicates the pairs of texts whose cosine is as large; both hold the vectors
in memory.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import hashlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from encoders import Options
from lab.command import log
from lab.configurator import PathStr, UserError, parse, show
from lab.data import text_files
from lab.data.tokenizers import clean
from lab.evaluation.huggingface import load
from lab.evaluation.search import VALUES, similarities, tfidf_ranks, unit
from lab.files import locked, read_json, reading, replacing, sync, write_atomic
from lab.report import table
from lab.runs import LoadedRun, OneRun
from objectives import Bounds

TEXTS, CHARACTERS = 4096, 1 << 21  # that are in memory at a time, at most
SHOWN, LINE = 3, 100  # texts of a cluster, and characters of a text, that are printed


@dataclass
class EmbedConfig(OneRun):
    run: Annotated[PathStr, "run folder, a folder of export.py, or one with a Hugging Face encoder"] = ""
    file: Annotated[
        PathStr, 'file of a text a line or JSON lines with "text"; - or empty: standard input; .npy: vectors to search'
    ] = ""
    to: Annotated[PathStr, "the .npy file to be written; empty: vectors are not kept"] = ""
    concepts: Annotated[
        bool | int, "write all vectors of each text, not their mean; a number: use the first so many, nested=True"
    ] = False
    normalize: Annotated[bool, "vectors of norm 1"] = False
    dtype: Annotated[
        Literal["float32", "float16", "int8"], "of the .npy; int8: each vector scaled to 127, its direction is kept"
    ] = "float32"
    query: Annotated[str, "print the texts nearest to this one; several lines are several queries"] = ""
    top: Annotated[int, "query: how many", Bounds(1)] = 10
    cluster: Annotated[int, "print so many clusters", Bounds(0)] = 0
    duplicates: Annotated[float, "print the pairs of at least this cosine; 0: none", Bounds(0, 1)] = 0.0

    def __post_init__(self):
        self.every = self.concepts is True
        if self.every and (self.cluster or self.duplicates):
            raise ValueError("clusters and duplicates are of one vector a text; leave --concepts out")
        self.concepts = 0 if self.every else int(self.concepts)
        super().__post_init__()
        asked = self.query or self.cluster or self.duplicates
        if not self.to and not asked:
            raise ValueError("nothing is to be written; write --to=vectors.npy, or --query=TEXT")
        if self.to and not self.to.endswith(".npy"):
            raise ValueError(f"to = {self.to!r} is no .npy; write --to={self.to}.npy")
        if self.file.endswith(".npy") and (self.to or not asked):
            raise ValueError("file is a .npy, which can only be searched; write --query=TEXT and leave --to out")

    def load(self) -> LoadedRun:
        return load(self.run, self.ckpt, self.device, Options(self.concepts, self.iterations))


@contextmanager
def opened(path: str):
    """The file of texts, open; standard input is copied to one first."""
    if path in ("", "-"):
        if sys.stdin.isatty():
            raise UserError("no text is given; write --file=notes.txt, or pipe texts in")
        with NamedTemporaryFile(prefix="stdin.") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
            yield file
        return
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); write the path of a file of text") from None
    with file:
        yield file


def batches(file, most: int) -> Iterator[tuple[int, str, list[str]]]:
    """The texts of a file, `most` at a time, fewer of long ones; the same at each call: (how many so far, their hash,
    the batch)."""
    file.seek(0)
    batch, n, size, digest = [], 0, 0, hashlib.sha256()
    for text in chain(map(clean, text_files.lines(file)), [None]):
        if batch and (text is None or len(batch) == most or size > CHARACTERS):
            n += len(batch)
            yield n, digest.hexdigest(), batch
            batch, size = [], 0
        if text is not None:
            digest.update(f"{len(text)} {text}".encode())
            batch.append(text)
            size += len(text)


class Vectors:
    """A .npy that grows in a folder beside its place, .NAME.npy, and moves there when it is whole."""

    def __init__(self, run: LoadedRun, config: EmbedConfig, to: Path):
        self.run, self.config, self.to = run, config, to
        hidden = run.config["hidden"]
        self.shape = (run.count, hidden) if config.every else (hidden,)
        self.most = max(64, min(TEXTS, VALUES // int(np.prod(self.shape))))
        self.about = {"run_id": run.config["run_id"], "step": run.step, "tokenizer": run.config["tokenizer_hash"]}
        self.about |= {**run.model.options._asdict(), "shape": list(self.shape), "dtype": config.dtype}
        self.about |= {
            "normalize": config.normalize,
            "isotropic": [run.config["remove_directions"], run.config["whitening"]],
        }
        self.whole = to.with_name(f"{to.name}.json")

    def exact(self, texts: list[str]) -> Tensor:
        """Of texts of any length: float32 [n, *shape]."""
        if self.config.every:
            return self.run.pooled(texts, by_sentence=True, every=True).float()
        return self.run.embed(texts, by_sentence=True)

    def of(self, texts: list[str]) -> np.ndarray:
        """[n, *shape] as they are written."""
        x = self.exact(texts)
        x = normalize(x, dim=-1) if self.config.normalize else x
        if self.config.dtype == "int8":
            x = (x * (127 / x.abs().amax(-1, keepdim=True).clamp_min(1e-30))).round()
        return x.numpy().astype(self.config.dtype)

    def write(self, file):
        """The vectors of all texts of a file, those that are not there yet."""
        work = self.to.parent / f".{self.to.name}"
        rows, state = work / "rows.npy", work / "state.json"
        with locked(work, "give another --to"), ExitStack() as stack:
            if self.to.exists():
                return self.check(file)
            done = self.record(state, rows)
            out = stack.enter_context(open(rows, "r+b" if done else "w+b"))
            start, going_on, n = self.header(out, 0), bool(done), 0
            bar = stack.enter_context(tqdm(total=os.stat(file.name).st_size, unit="B", unit_scale=True))
            for n, digest, batch in batches(file, self.most):
                if not going_on:
                    out.write(self.of(batch).tobytes())
                    out.flush()
                    os.fsync(out.fileno())
                    write_atomic(state, json.dumps(self.about | {"texts": n, "sha256": digest}))
                elif (n, digest) == (done["texts"], done["sha256"]):
                    going_on = False
                    log(f"going on behind text {n:,}")
                    out.truncate(start + n * int(np.prod(self.shape)) * np.dtype(self.config.dtype).itemsize)
                    out.seek(0, os.SEEK_END)
                bar.update(file.tell() - bar.n)
                bar.set_postfix_str(f"{n:,} texts")
            if going_on or not n:
                began = f"{show(work)} was begun of other texts; delete it, or give another --to"
                raise UserError(
                    began if going_on else f"{show(file.name)} holds no text; give a file with a text a line"
                )
            self.header(out, n)
            out.close()
            sync(rows)
            write_atomic(self.whole, json.dumps(self.about | {"texts": n, "sha256": digest}, indent=1) + "\n")
            os.replace(rows, self.to)
            state.unlink()
        with suppress(OSError):  # it was there before: this has gone on
            work.rmdir()
        log(f"{self.config.to or 'not kept'}: {n:,} vectors, {' x '.join(map(str, self.shape))} {self.config.dtype}")

    def check(self, file):
        """UserError where the vectors that are there are of other texts, or made otherwise."""
        done, last = self.record(self.whole, self.to), deque(batches(file, self.most), 1)
        ((n, digest, _),) = last or [(0, "", [])]
        if (n, digest) != (done.get("texts"), done.get("sha256")):
            raise UserError(f"{self.to} holds other vectors than these; give another --to, or delete it")
        log(f"{self.to} is there already, {n:,} vectors")

    def record(self, path: Path, rows: Path) -> dict:
        """What is written: {"texts", "sha256"} and more; {} where it is nothing, or made otherwise."""
        done = read_json(path, "what the vectors are") if path.is_file() and rows.is_file() else {}
        return done if done | self.about == done and {"texts", "sha256"} <= done.keys() else {}

    def header(self, out, n: int) -> int:
        """Writes what a .npy of n rows begins with, of the same size for any n -> that size."""
        out.seek(0)
        about = {"descr": np.lib.format.dtype_to_descr(np.dtype(self.config.dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(out, about | {"shape": (n, *self.shape)})
        return out.tell()


# ---- what is near to what


def shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LINE else text[: LINE - 3] + "..."


def search(maker: Vectors, vectors, texts: list[str], config: EmbedConfig) -> str:
    """A table for each query."""
    queries = clean(config.query).splitlines()
    if vectors.shape[1:] != maker.shape:
        what, ours = (" x ".join(map(str, shape)) for shape in (vectors.shape[1:], maker.shape))
        raise UserError(f"{config.file or config.to} holds vectors of {what}, the run's are {ours}; give the run's own")
    cosines = similarities(vectors, unit(maker.exact(queries)))
    ranks, parts = tfidf_ranks(texts, queries), []
    head = ["MaxSim" if config.every else "cosine", "row", "TF-IDF", "text"]
    for q, query in enumerate(queries):
        nearest = np.argsort(-cosines[q], kind="stable")[: config.top].tolist()
        rows = [[float(cosines[q, i]), i, ranks[q, i] or "-", shorten(texts[i])] for i in nearest]
        parts.append(f"{shorten(query)}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def clusters(vectors, texts: list[str], config: EmbedConfig) -> str:
    from sklearn.cluster import MiniBatchKMeans  # late: it takes a second

    if config.cluster > len(x := unit(vectors).numpy()):
        raise UserError(f"{len(x)} texts make no {config.cluster} clusters; write --cluster={len(x)} or less")
    means = MiniBatchKMeans(config.cluster, n_init=3, random_state=0).fit(x)
    away, lines = means.transform(x), []
    for k in np.argsort(-np.bincount(means.labels_, minlength=config.cluster), kind="stable"):
        own = np.flatnonzero(means.labels_ == k)
        near = own[np.argsort(away[own, k], kind="stable")[:SHOWN]]
        lines += [f"{len(own):,} texts", *(f"  {i}: {shorten(texts[i])}" for i in near)]
    if config.to:
        with replacing(Path(config.to).with_suffix(".clusters.npy")) as path, open(path, "wb") as file:
            np.save(file, means.labels_)
        lines.append(f"\nthe cluster of each text: {Path(config.to).with_suffix('.clusters.npy')}")
    return "\n".join(lines)


def duplicates(vectors, texts: list[str], config: EmbedConfig) -> Iterator[str]:
    x, count = unit(vectors), 0
    for start in range(0, len(x), 1024):
        cosines = x[start : start + 1024] @ x[start:].T
        for i, j in (cosines.triu(1) >= config.duplicates).nonzero().tolist():  # a row's own cosine is on the diagonal
            count += 1
            said = " | ".join(f"{k}: {shorten(texts[k])}" for k in (start + i, start + j))
            yield f"{cosines[i, j]:.3f}  {said}"
    yield f"{count:,} pairs of a cosine of {config.duplicates:g} or more among {len(x):,} texts"


def main(argv) -> int:
    about = {"prog": "embed.py", "doc": __doc__, "root": Path(__file__).resolve().parent, "positional": False}
    config = parse(argv, EmbedConfig, **about).make(EmbedConfig)
    searched = config.file.endswith(".npy")
    with ExitStack() as stack:
        file = None if searched else stack.enter_context(opened(config.file))
        run = config.load()
        to = Path(config.to or Path(stack.enter_context(TemporaryDirectory())) / "vectors.npy")
        maker = Vectors(run, config, to)
        if not searched:
            maker.write(file)
        if not (config.query or config.cluster or config.duplicates):
            return 0
        with reading(config.file if searched else to, "give a .npy of embed.py"):
            vectors = np.load(config.file if searched else to, mmap_mode="r")
        texts = [""] * len(vectors)  # a .npy holds none
        if not searched:
            texts = [text for _, _, batch in batches(file, TEXTS) for text in batch]
        if config.query:
            print(search(maker, vectors, texts, config))
        if config.cluster:
            print(clusters(vectors, texts, config))
        for line in duplicates(vectors, texts, config) if config.duplicates else ():
            print(line)
    return 0


if __name__ == "__main__":
    command.command(main)
