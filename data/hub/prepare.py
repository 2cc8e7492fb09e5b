"""
Prepares a corpus of the Hugging Face hub, streamed: only tokens are stored.

    python data/hub/prepare.py --name=minipile [--tokenizer=bpe:16384] [--local=DIR]
    python data/hub/prepare.py --name=openwebtext_wikipedia
    python data/hub/prepare.py --name=wikipedia_sample --tokenizer=bpe:16384 --lowercase

Each file, parquet or packed JSON lines, becomes a part in data/NAME/.parts; after an interruption the same command
continues with the first missing part. --local reads the files from a folder with the hub's layout, without a network;
if a corpus has several repositories, each is in DIR/OWNER/NAME.

If a repository has no validation split, about every thousandth document is held out, by a hash of its text: duplicates,
also in other repositories, are in the same split.

wikipedia_sample is 200 million characters: an equal number from each file, of documents that a hash of their text and
--seed draws; of a file no more is downloaded than that takes.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lab.command import command  # isort: skip  (first: it tells an older Python)
from typing import Annotated

from lab import files
from lab.configurator import PathStr, UserError, show
from lab.data import prepare
from lab.data.corpus import HUB_CORPORA, HUB_SAMPLES, TokenFile
from lab.data.tokenizers import clean

NAMES = ", ".join(HUB_CORPORA)
KINDS = ".parquet", ".json.gz"
HELD_OUT = 0.001  # share of the documents, if the hub has no validation split
DRAWN = 4  # of a sample: one document of so many


@dataclass
class Hub(prepare.Output):
    name: Annotated[str, f"the corpus: {NAMES}"] = ""
    tokenizer: Annotated[PathStr, prepare.TOKENIZER] = "hub:answerdotai/ModernBERT-base"
    local: Annotated[
        PathStr,
        "folder with the corpus' files as on the hub (data/train-*.parquet); of several: OWNER/NAME/...",
    ] = ""

    seed: Annotated[int, "of a sample: which documents are drawn"] = 0

    def __post_init__(self):
        if self.name not in HUB_CORPORA:
            raise ValueError(f"there is no corpus {self.name!r}; write --name=NAME, one of {NAMES}")


def find_shards(repository: str, train: str, val: str, local: str) -> list[tuple[str, str]]:
    """(split, url) of the files of a repository, in order; split "" if there is no validation split."""
    if local:
        folder = Path(local)
        if not folder.is_dir():
            raise UserError(f"{local} is no folder; name another --local, so that it holds {train}*")
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        root = str(folder.resolve())
    else:
        from huggingface_hub import HfApi

        try:
            names = [file.rfilename for file in HfApi().dataset_info(repository, timeout=8).siblings]
        except Exception as error:  # of many libraries
            remedy = f"connect to the network, or give --local=DIR that holds {train}*"
            raise prepare.offline(repository, error, remedy) from None
        root = f"hf://datasets/{repository}"
    shards = []
    for split, prefix in (("train", train), ("val", val)) if val else (("", train),):
        own = sorted(name for name in names if name.startswith(prefix) and name.endswith(KINDS))
        if not own:
            raise UserError(
                f"{local or repository} has no file {prefix}*{' or *'.join(KINDS)}; give --local=DIR that has them"
            )
        shards += [(split, f"{root}/{name}") for name in own]
    return shards


def hash_text(text: str, salt: bytes = b"") -> int:
    return int.from_bytes(hashlib.blake2b(clean(text).encode(), digest_size=8, salt=salt).digest(), "little")


def drawn_split(text: str) -> str:
    """The split of a document, if the repository has no validation split."""
    return "val" if prepare.in_val(HELD_OUT, hash_text(text)) else "train"


def text_of(value, where: str) -> str:
    """The text of a cell of the column `text`: a string, its bytes, or None."""
    try:
        text = value.decode() if isinstance(value, bytes) else "" if value is None else value
        if isinstance(text, str):
            return text
        reason = f"is of the type {type(value).__name__}, not text"
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 at byte {error.start:,}"
    raise UserError(f"{where} {reason}; write this column as strings, then run this again to go on")


class Rows(prepare.Source):
    """The documents of some shards, streamed; the bar counts characters. most: characters of a shard, of documents that
    the seed draws; 0: all."""

    unit = "chars"

    def __init__(self, shards: list[tuple[str, str]], most: int = 0, seed: int = 0):
        self.shards, self.most, self.salt = shards, most, f"draw {seed}".encode()[:16]

    def __iter__(self) -> Iterator[prepare.Piece]:
        self.done = 0
        for split, url in self.shards:
            end = self.done + self.most
            try:
                for number, cell in enumerate(cells(url)):
                    text = text_of(cell, f"{url}: text of row {number}")
                    if self.most and hash_text(text, self.salt) % DRAWN:
                        continue
                    self.done += len(text)
                    if text.strip():
                        yield prepare.Piece(split or drawn_split(text), text)
                    if self.most and self.done >= end:
                        break
            except UserError:
                raise
            except Exception as error:  # pyarrow's and the network's are of many kinds
                reason = " ".join(str(error).split())[:160]
                raise UserError(f"{url} cannot be read ({reason}); mend that, then run this again to go on") from None


def cells(url: str) -> Iterator:
    """The column `text` of a file, row by row."""

    def check(columns):
        if "text" not in columns:
            what = f"{url} has no column text (but {', '.join(columns)})"
            raise UserError(f"{what}; rename the one that holds the text, then run this again to go on")

    if url.endswith(".parquet"):
        from datasets import load_dataset, logging

        logging.set_verbosity(logging.CRITICAL)  # what is wrong is said by the caller, once
        about = {"data_files": [url], "split": "train", "streaming": True}
        rows = load_dataset("parquet", batch_size=1000, **about)  # by itself the first row group's, which may be 0
        check(rows.features)
        return (row["text"] for row in rows.select_columns(["text"]))
    return json_cells(url, check)


def json_cells(url: str, check) -> Iterator:
    """`cells` of packed JSON lines. check: of the keys of each."""
    import fsspec  # knows hf://

    with fsspec.open(url, "rt", compression="gzip", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = {**json.loads(line)}
            except (ValueError, TypeError):
                raise UserError(f"{url}:{number} is no JSON object; mend that, then run this again to go on") from None
            check(row)
            yield row["text"]


def encode_part(source: Rows, part: Path, tokenizer: Path, about: str):
    """Encodes one shard into a folder with train.bin and val.bin (those with text), moved into place when complete."""
    with prepare.temporary_folder(part.with_name(".making")) as temporary:
        with closing(prepare.Splits(temporary, tokenizer)) as splits:
            splits.encode(source, about)
            for writer in splits.writers.values():
                if writer.sentences:
                    writer.close()
                    files.sync(writer.path)
        os.replace(temporary, part)


def encode_parts(config: Hub, shards: list[tuple[str, str]], parts: Path):
    """Encodes each shard into a folder 00000, 00001, ...; those completed by an earlier run are kept."""
    tokenizer, journal = parts / "tokenizer.json", parts / "job.json"
    sample = HUB_SAMPLES.get(config.name, 0) // len(shards), config.seed
    job = {"tokenizer": config.tokenizer, "lowercase": config.lowercase, "shards": [url for _, url in shards]}
    job = json.dumps(job | ({"sample": sample} if sample[0] else {}))
    if not journal.exists() or journal.read_text() != job:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        prepare.make_tokenizer(config.tokenizer, Rows(shards, *sample), config.lowercase, tokenizer)
        files.sync(tokenizer)
        files.write_atomic(journal, job)  # parts made from now on belong to this job

    if done := len([*parts.glob("?????")]):
        print(f"going on: {done} of {len(shards)} parts are there", file=sys.stderr)
    for number, shard in enumerate(shards):
        part = parts / f"{number:05d}"
        if not part.exists():
            encode_part(Rows([shard], *sample), part, tokenizer, f"part {number + 1}/{len(shards)}")


def main(argv):
    config = prepare.configure(argv, Hub, "data/hub/prepare.py", __doc__)
    repositories, parts = HUB_CORPORA[config.name], config.folder / ".parts"

    def work(temporary):
        shards = []
        for repository, *beginnings in repositories:
            own = "" if len(repositories) == 1 else repository
            shards += find_shards(repository, *beginnings, config.local and str(Path(config.local) / own))
        encode_parts(config, shards, parts)
        tokenizer = shutil.copy(parts / "tokenizer.json", temporary)
        with closing(prepare.Splits(temporary, tokenizer)) as splits:
            for path in sorted(parts.glob("?????/*.bin")):
                text = TokenFile(path, f"delete {show(path.parent)} and run this again")
                splits.writers[path.stem].copy(text, 0, text.count)
            about = {"repository": " + ".join(name for name, *_ in repositories), "shards": len(shards)}
            prepare.finish(splits, config, about)
        shutil.rmtree(parts)

    prepare.make(config, work)


if __name__ == "__main__":
    command(main)
