"""A small corpus with something to learn, made in a second: what tests train on."""

import json
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lab.data import tokenizers
from lab.data.corpus import CorpusWriter
from lab.data.tokenizers import add_special_tokens, special_ids, tokenizer_hash

WORDS = "red green blue old new small large cold warm dry ship house river stone road tree dog bird man child".split()
VERBS = "sees finds takes leaves likes makes moves holds keeps loses".split()


def sentence(chance: random.Random) -> str:
    def thing():
        return f"the {chance.choice(WORDS[:10])} {chance.choice(WORDS[10:])}"

    parts = [f"{thing()} {chance.choice(VERBS)} {thing()}" for _ in range(chance.randint(1, 4))]
    return " and ".join(parts).capitalize() + "."


def make_corpus(folder: Path, documents: int = 1200, vocab_size: int = 400) -> Path:
    """Writes a finished data folder of `documents` documents, of which a fifth is for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files_of_a_corpus(documents, vocab_size).items():
        (folder / name).write_bytes(content)
    return folder


@cache
def files_of_a_corpus(documents: int, vocab_size: int) -> dict[str, bytes]:
    """Made once for all tests of a process."""
    with TemporaryDirectory() as folder:
        write_corpus(Path(folder), documents, vocab_size)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_corpus(folder: Path, documents: int, vocab_size: int):
    chance = random.Random(0)
    texts = [[sentence(chance) for _ in range(chance.randint(3, 12))] for _ in range(documents)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" " + s for text in texts for s in text], trainer)
    add_special_tokens(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    digest, special = tokenizer_hash(folder / "tokenizer.json"), special_ids(tokenizer)
    size = tokenizers.vocab_size(tokenizer)
    for split, part in (("val", texts[::5]), ("train", [t for i, t in enumerate(texts) if i % 5])):
        writer = CorpusWriter(folder / f"{split}.bin", size, special, digest)
        counts, holds = np.zeros((2, size), np.int64)  # of tokens, and of sentences that hold each; last of train
        for text in part:
            encoded = [e.ids for e in tokenizer.encode_batch_fast([" " + s for s in text], add_special_tokens=False)]
            starts = np.cumsum([0] + [len(ids) for ids in encoded])
            ids = np.array([i for row in encoded for i in row] + [special["eod"]])
            counts += np.bincount(ids, minlength=size)
            for row in encoded:
                holds[list(set(row))] += 1
            writer.append(ids, starts[:-1], [0])
        writer.close()
    meta = {"vocab_size": size, "tokenizer_hash": digest, "counts": counts.tolist(), "document_counts": holds.tolist()}
    (folder / "meta.json").write_text(json.dumps(meta))
