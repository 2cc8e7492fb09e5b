"""
A corpus of the Hugging Face hub as training data, streamed: nothing but the tokens is stored.

    python data/hub/prepare.py --name=minipile [--tokenizer=bpe:16384] [--local=DIR]

Each parquet file of the corpus becomes a part in data/.NAME.parts; when interrupted, the same command goes on with the
first part that is missing. --local reads the files from a folder with the hub's layout, without a network.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from lab import dataset, files  # noqa: E402
from lab import prepare as common  # noqa: E402
from lab.configurator import UserError, parse, show  # noqa: E402


class Repository(NamedTuple):
    path: str  # owner/name on the hub
    train: str  # start of the names of its parquet files
    val: str | None  # None: it has none, a share of the documents is taken
    text: str = "text"  # the column
    val_fraction: float = 0.001


CORPORA = {"minipile": Repository("JeanKaddour/minipile", "data/train-", "data/validation-")}
assert tuple(CORPORA) == dataset.HUB_CORPORA


@dataclass
class Hub:
    name: Annotated[str, f"the corpus: {', '.join(CORPORA)}"] = ""
    tokenizer: Annotated[str, "hub:OWNER/NAME, a tokenizer.json, or bpe:SIZE, trained on it"] = (
        "hub:answerdotai/ModernBERT-base"
    )
    local: Annotated[str, "folder that holds the corpus' parquet files as the hub does (data/train-*.parquet)"] = ""

    def __post_init__(self):
        if not self.name:
            raise ValueError(f"the corpus has no name; write --name=NAME, one of {', '.join(CORPORA)}")
        dataset.check_name(self.name)
        if self.name not in CORPORA:
            raise ValueError(f"there is no corpus {self.name}; write --name=NAME, one of {', '.join(CORPORA)}")


class Shard(NamedTuple):
    split: str  # "train" or "val"
    url: str


def find_shards(repository: Repository, local: str) -> list[Shard]:
    """The parquet files of a corpus, in order."""
    prefixes = {"train": repository.train} | ({"val": repository.val} if repository.val else {})
    if local:
        folder = Path(local)
        if not folder.is_dir():
            raise UserError(f"--local={local} is no folder; name the one that holds {repository.train}*.parquet")
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")]
        root = str(folder.resolve())
    else:
        from huggingface_hub import HfApi

        try:
            names = [file.rfilename for file in HfApi().dataset_info(repository.path, timeout=8).siblings]
        except Exception as error:  # of many libraries
            raise common.offline(repository.path, error, LOCAL.format(repository.train)) from None
        root = f"hf://datasets/{repository.path}"
    shards = []
    for split, prefix in prefixes.items():
        found = sorted(name for name in names if name.startswith(prefix) and name.endswith(".parquet"))
        if not found:
            raise UserError(f"{local or repository.path} has no file {prefix}*.parquet; give --local=DIR that has them")
        shards += [Shard(split, f"{root}/{name}") for name in found]
    return shards


LOCAL = "connect to the network, or download it elsewhere and give --local=DIR that holds its {}*.parquet"


class Rows(common.Source):
    """The documents of some shards, streamed; the bar counts characters."""

    unit = "chars"

    def __init__(self, repository: Repository, shards: list[Shard]):
        self.repository, self.shards = repository, shards

    def __iter__(self) -> Iterator[common.Piece]:
        from datasets import load_dataset

        self.done = 0
        for shard in self.shards:
            fraction = self.repository.val_fraction if not self.repository.val else 0
            key = int(dataset.hash64(0, *shard.url.rpartition("/")[2].encode())[0])
            try:
                rows = load_dataset("parquet", data_files=[shard.url], split="train", streaming=True)
                for number, row in enumerate(rows.select_columns([self.repository.text])):
                    text = row[self.repository.text]
                    self.done += len(text)
                    split = "val" if fraction and common.in_val(fraction, key, number) else shard.split
                    if text.strip():
                        yield common.Piece(split, text)
            except (UserError, GeneratorExit):
                raise
            except Exception as error:  # pyarrow's and the network's are of many kinds
                reason = " ".join(str(error).split())[:160]
                raise UserError(
                    f"{show_url(shard.url)} cannot be read ({reason}); mend that, then run this again to go on here"
                ) from None


def show_url(url: str) -> str:
    return url if url.startswith("hf://") else show(url)


def encode_part(repository: Repository, shard: Shard, part: Path, tokenizer: Path, about: str):
    """One shard -> a folder with train.bin, val.bin (where not empty) and counts.npy, in place when complete."""
    temporary = part.with_name(part.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with common.open_writers(temporary, tokenizer) as writers:
        counts = np.zeros((2, writers["train"].vocab_size), np.int64)
        common.encode(Rows(repository, [shard]), tokenizer, writers, counts, about)
        np.save(temporary / "counts.npy", counts)
        for writer in writers.values():
            if writer.sentences:
                writer.close()
    os.replace(temporary, part)


def merge(parts: list[Path], writers: dict) -> np.ndarray:
    """Appends all parts to the writers; returns the sum of their counts."""
    counts = np.zeros((2, writers["train"].vocab_size), np.int64)
    for part in parts:
        counts += np.load(part / "counts.npy")
        for split, writer in writers.items():
            if (part / f"{split}.bin").exists():
                remedy = f"delete {show(part)} and run this again"
                _, tokens, documents, sentences = dataset.open_tokens(part / f"{split}.bin", remedy)
                for at in range(0, len(tokens), dataset.CHUNK):
                    end = min(at + dataset.CHUNK, len(tokens))
                    low, high = np.searchsorted(sentences, (at, end))
                    first, last = np.searchsorted(documents[:-1], (at, end))
                    writer.append(tokens[at:end], sentences[low:high] - at, documents[first:last] - at)
    return counts


def main(argv):
    parsed = parse(argv, Hub, common.Output, prog="data/hub/prepare.py", doc=__doc__, root=ROOT, positional=False)
    config, output = parsed.make(Hub), parsed.make(common.Output)
    common.check_spec(config.tokenizer)
    folder = common.check_folder(config.name, output)
    repository = CORPORA[config.name]
    shards = find_shards(repository, config.local)

    parts = folder.with_name(f".{config.name}.parts")
    job = {"tokenizer": config.tokenizer, "lowercase": output.lowercase, "shards": [shard.url for shard in shards]}
    tokenizer, journal = parts / "tokenizer.json", parts / "job.json"
    if not journal.exists() or json.loads(journal.read_text()) != job:
        shutil.rmtree(parts, ignore_errors=True)
        with common.temporary_folder(folder) as temporary:
            source = Rows(repository, shards)
            common.make_tokenizer(config.tokenizer, source, output.lowercase, temporary / "tokenizer.json")
            (temporary / "job.json").write_text(json.dumps(job))
            parts.mkdir()
            for path in (tokenizer, journal):  # from here on the parts fit together
                files.sync(temporary / path.name)
                os.replace(temporary / path.name, path)

    done = [parts / f"{number:05d}" for number in range(len(shards))]
    if left := sum(part.exists() for part in done):
        print(f"going on: {left} of {len(shards)} parts are there", file=sys.stderr)
    for number, (shard, part) in enumerate(zip(shards, done, strict=True), 1):
        if not part.exists():
            encode_part(repository, shard, part, tokenizer, f"part {number}/{len(shards)}")

    with common.temporary_folder(folder) as temporary:
        shutil.copy(tokenizer, temporary)
        with common.open_writers(temporary, tokenizer) as writers:
            counts = merge(done, writers)
            common.close_writers(writers, counts)
        more = {"repository": repository.path, "shards": len(shards)}
        common.finish(temporary, folder, config.tokenizer, output.lowercase, writers, counts, more)
    shutil.rmtree(parts)


if __name__ == "__main__":
    common.run(main)
