"""Sentences of the evaluation sets that occur, token for token, in a prepared corpus."""

import numpy as np

from lab.data.corpus import Corpus
from lab.data.sampler import hash64
from lab.data.tokenizers import encode_texts, load_tokenizer, split_sentences
from lab.evaluation.tasks import Split
from lab.report import table

SHORTEST = 5  # tokens: shorter sentences occur in any large corpus
LISTED = 20  # sentences printed per task


def digests(tokens, lengths) -> np.ndarray:
    """Consecutive texts of these lengths (above 0) in tokens [N] -> a hash of each, uint64."""
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(tokens)) - np.repeat(starts, lengths)
    return np.add.reduceat(hash64(np.asarray(tokens, np.int64), place), starts)


def found_in(corpus: Corpus, texts: list[str]) -> np.ndarray:
    """bool [n]: does every sentence of the text, of SHORTEST tokens or more each, occur in the corpus?"""
    sentences = [split_sentences(text) or [text] for text in texts]
    rows = encode_texts(load_tokenizer(corpus.folder / "tokenizer.json"), [one for own in sentences for one in own])
    lengths = np.array([len(row) for row in rows])
    ours, there = digests(np.concatenate(rows), lengths), np.zeros(len(rows), bool)
    for tokens, spans in corpus.pieces(corpus.count):
        ends = tokens[np.cumsum(spans) - 1] == corpus.eod  # of a document: not part of its last sentence
        spans = spans - ends
        there |= np.isin(ours, digests(tokens[tokens != corpus.eod], spans[spans > 0]))
    there &= lengths >= SHORTEST
    return np.logical_and.reduceat(there, np.cumsum([0, *map(len, sentences)])[:-1])


def contamination(corpus: Corpus, tasks: dict[str, dict[str, Split]]) -> str:
    """A table of how many rows of each split contain a sentence of the corpus, and some of these sentences. tasks:
    name -> splits."""
    counts, lines = [], []
    for name, splits in tasks.items():
        texts = list(dict.fromkeys(text for split in splits.values() for row in split.rows for text in row))
        held = dict.fromkeys(text for text, there in zip(texts, found_in(corpus, texts), strict=True) if there)
        for split, content in splits.items():
            own = {text for row in content.rows for text in row}
            rows = sum(any(text in held for text in row) for row in content.rows)
            counts.append([name, split, len(own), len(own & held.keys()), len(content.rows), rows])
        lines += [f"{name}: {text}" for text in list(held)[:LISTED]]
        lines += [f"{name}: and {len(held) - LISTED} more"] if len(held) > LISTED else []
    header = ["task", "split", "sentences", "in the corpus", "rows", "with one in the corpus"]
    return "\n".join([table(header, counts), "", *lines])
