"""
Collocations of a prepared corpus: n-grams of two to five words that `mask_unit = "pmi"` masks as a whole.

    python -m lab.data.pmi --dataset=wiki

An n-gram's score is the minimum of log p(n-gram) / product of p(part) over all segmentations into parts (PMI-Masking,
Levine et al. 2021, arXiv:2010.01825); half of those kept are bigrams, a quarter trigrams, an eighth each 4- and
5-grams. At most `most` counts per n are in memory: the rarest are dropped, so rare n-grams may be missed. In training a
row is segmented greedily from left to right into the longest collocations and single words (the paper chooses at random
where two overlap).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from lab.command import command, log
from lab.configurator import PathStr, UserError, parse, show
from lab.data.corpus import Corpus, check_name
from lab.data.tokenizers import load_tokenizer, word_ends, word_starts
from lab.files import reading, replacing
from noise import LONGEST_PHRASE, phrase_hashes
from objectives import Bounds, check_bounds

FILE = "pmi.npz"  # beside train.bin: the hashes of what is kept, int64 [M], sorted
SHARES = {2: 0.5, 3: 0.25, 4: 0.125, 5: 0.125}  # n -> share of the n-grams that are kept
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class PMI:
    dataset: Annotated[str, "folder of prepared data under data_dir"] = "pydocs"
    data_dir: Annotated[PathStr, "where the prepared data are; empty: data/ beside the scripts"] = ""
    size: Annotated[int, "n-grams that are kept, at most", Bounds(8)] = 800_000
    min_count: Annotated[int, "how often an n-gram must be there", Bounds(1)] = 10
    most: Annotated[
        int, "n-grams of a size whose counts are in memory (16 bytes each, 16 more to sort)", Bounds(1000)
    ] = 20_000_000

    def __post_init__(self):
        check_bounds(self)


class Counts:
    """Counts of hashes, of at most `most` frequent ones."""

    def __init__(self, most: int):
        self.most, self.hashes, self.counts, self.total = most, np.zeros(0, np.int64), np.zeros(0, np.int64), 0

    def add(self, hashes: np.ndarray):
        new, times = np.unique(hashes, return_counts=True)
        self.total += len(hashes)
        self.hashes, back = np.unique(np.concatenate([self.hashes, new]), return_inverse=True)
        times = np.concatenate([self.counts, times])
        self.counts = np.bincount(back, weights=times, minlength=len(self.hashes)).astype(np.int64)
        if len(self.hashes) > self.most:
            keep = self.counts > np.partition(self.counts, -self.most)[-self.most]
            self.hashes, self.counts = self.hashes[keep], self.counts[keep]

    def log_share(self, hashes: np.ndarray) -> np.ndarray:
        """Log relative frequency of each hash; -inf if it is unknown."""
        at = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        known = self.hashes[at] == hashes
        return np.where(known, np.log(self.counts[at] / self.total), -np.inf)


def phrases(tokens: np.ndarray, starts: np.ndarray, special: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Hashes [W - n + 1] of the n-grams of the W words of a piece of text, n = 1 ... 5; 0 for those with a special
    token. starts, special, ends [V] bool: tokens that begin a word, special tokens, tokens after which a word
    begins."""
    ids = tokens.astype(np.int64)
    apart = special[ids]
    begins = starts[ids] | apart
    begins[1:] |= apart[:-1] | ends[ids[:-1]]
    begins[0] = True
    edges = np.append(np.flatnonzero(begins), len(ids))
    before = np.concatenate([[0], np.cumsum(apart)])
    found = []
    for n in range(1, LONGEST_PHRASE + 1):
        a, b = edges[:-n], edges[n:]
        hashes = phrase_hashes(*(torch.from_numpy(x)[None] for x in (ids, a, b)))[0].numpy()
        found.append(np.where(before[b] > before[a], 0, hashes))
    return found


def scores(shares: list[np.ndarray]) -> list[np.ndarray]:
    """Log relative frequencies of the n-grams, n = 1 ... 5 -> their PMI, n = 2 ... 5: minimum over all
    segmentations."""
    whole, found = list(shares[:1]), []  # whole[n - 1]: the largest sum over all segmentations, or none
    for n in range(2, len(shares) + 1):
        m = len(shares[n - 1])
        parts = np.max([shares[k - 1][:m] + whole[n - k - 1][k : k + m] for k in range(1, n)], axis=0)
        with np.errstate(invalid="ignore"):  # unknown n-grams have no score
            found.append(np.nan_to_num(shares[n - 1] - parts, nan=-np.inf))
        whole.append(np.maximum(parts, shares[n - 1]))
    return found


def collocations(text: Corpus, starts: np.ndarray, config: PMI, ends: np.ndarray | None = None) -> np.ndarray:
    """Sorted hashes of the collocations, int64 [M]. Two passes over the training text: counts, then scores."""
    special = np.isin(np.arange(text.vocab_size), text.special_ids)
    ends = special if ends is None else ends
    counts = [Counts(config.most) for _ in range(LONGEST_PHRASE)]
    for tokens, _ in text.pieces(text.count):
        for n, hashes in enumerate(phrases(tokens, starts, special, ends)):
            counts[n].add(hashes[hashes != 0])
    known = [{} for _ in SHARES]
    frequent = [c.hashes[c.counts >= config.min_count] for c in counts]
    for tokens, _ in text.pieces(text.count):
        hashes = phrases(tokens, starts, special, ends)
        found = scores([c.log_share(h) for c, h in zip(counts, hashes, strict=True)])
        for table, own, score, often in zip(known, hashes[1:], found, frequent[1:], strict=True):
            unique, first = np.unique(own, return_index=True)
            keep = np.isin(unique, often) & (score[first] > 0)
            table.update(zip(unique[keep].tolist(), score[first][keep].tolist(), strict=True))
    kept = []
    for table, share in zip(known, SHARES.values(), strict=True):
        kept += sorted(table, key=table.get, reverse=True)[: round(share * config.size)]
    return np.unique(np.array(kept, np.int64))


def main(argv) -> int:
    config = parse(argv, PMI, prog="-m lab.data.pmi", doc=__doc__, root=ROOT, positional=False).make(PMI)
    folder = Path(config.data_dir or ROOT / "data") / check_name(config.dataset)
    text = Corpus(folder, "train")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    kept = collocations(text, word_starts(tokenizer), config, word_ends(tokenizer))
    if not len(kept):
        raise UserError(f"{show(text.path)} has no collocation; write a smaller --min_count, or use more text")
    with replacing(folder / FILE) as path, open(path, "wb") as file:
        np.savez(file, hashes=kept, text=text.digest())
    log(f"{len(kept):,} collocations in {show(folder / FILE)}; train with --objective=mlm --mask_unit=pmi")
    return 0


def load(text: Corpus) -> np.ndarray:
    """The hashes that `main` wrote; UserError if they are missing, or of another text."""
    path, remedy = text.folder / FILE, f"run python -m lab.data.pmi --dataset={text.folder.name}"
    if not path.is_file():
        raise UserError(f"{show(path)} does not exist; {remedy}")
    with reading(path, remedy), open(path, "rb") as file, np.load(file) as kept:
        if str(kept["text"]) != text.digest():
            raise UserError(f"{show(path)} is of other text; {remedy}")
        return kept["hashes"]


if __name__ == "__main__":
    command(main)
