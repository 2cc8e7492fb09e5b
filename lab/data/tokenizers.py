"""Tokenizers, and splitting and encoding of text: the same for training data and for `embed`."""

import hashlib
import re
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from lab.configurator import UserError, show
from lab.files import reading

SPECIAL_NAMES = {  # the first of these names that a tokenizer has is used; if it has none, the first is added
    "eod": ("<|endoftext|>", "</s>", "[EOS]"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>", "<|padding|>"),
    "sep": ("[SEP]", "</s>"),
}


# ---------------------------------------------------------------------------------------------------------------------
# tokenizers, and text -> ids


def add_special_tokens(tokenizer: Tokenizer):
    """Adds the special tokens that a tokenizer lacks."""
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
    """(prefix of tokens that continue a word, such as ##; suffix of tokens that end one, such as </w>); "": none."""
    keys = "continuing_subword_prefix", "end_of_word_suffix"
    return tuple(getattr(tokenizer.model, key, None) or "" for key in keys)


def space_mark(tokenizer: Tokenizer) -> str:
    """The character for the space before a word: Ġ (byte-level), ▁ (SentencePiece), a space; "": spaces are dropped."""
    text = tokenizer.normalizer.normalize_str("a b") if tokenizer.normalizer else "a b"
    if tokenizer.pre_tokenizer:
        text = "".join(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    mark = text[-2:-1].replace("a", "")
    if mark == " " and tokenizer.decoder:  # the decoder may know better
        return next((m for m in ("Ġ", "▁") if tokenizer.decoder.decode(["a", f"{m}b"]) == "a b"), mark)
    return mark


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """[V] bool: tokens that begin a word. With a prefix for continuations (WordPiece: ##): tokens without it; if only
    ends are marked: none (see `word_ends`); else tokens that begin with a space. All, if tokens are whole words or
    spaces are dropped."""
    tokens = [tokenizer.id_to_token(i) or "" for i in range(vocab_size(tokenizer))]
    (prefix, suffix), mark = subword_marks(tokenizer), space_mark(tokenizer)
    if prefix or suffix:
        return np.array([bool(prefix) and not token.startswith(prefix) for token in tokens])
    whole = isinstance(tokenizer.model, WordLevel) or not mark
    return np.array([whole or token.startswith((mark, " ")) for token in tokens])  # added tokens keep their space


def word_ends(tokenizer: Tokenizer) -> np.ndarray:
    """[V] bool: tokens after which a word begins, if ends of words are marked (</w>); else none."""
    _, suffix = subword_marks(tokenizer)
    tokens = [tokenizer.id_to_token(i) or "" for i in range(vocab_size(tokenizer))]
    return np.array([bool(suffix) and token.endswith(suffix) for token in tokens])


def load_tokenizer(path) -> Tokenizer:
    """Loads tokenizer.json; special tokens that occur in texts are encoded as ordinary text."""
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
    """The text with lone surrogates (such as \\ud800), which UTF-8 cannot encode, replaced by ?."""
    if not isinstance(text, str):
        raise UserError(f"a text is a str, not {type(text).__name__} ({text!r:.40}); leave it out, or make it one")
    return text.encode("utf-8", "replace").decode()


def split_sentences(text: str) -> list[str]:
    """Text -> its sentences as they are encoded: stripped, with one space in front; empty ones are dropped."""
    return [" " + stripped for part in SENTENCE_END.split(clean(text)) if (stripped := part.strip())]


PASSED_ON = KeyboardInterrupt, SystemExit, MemoryError  # errors that the text does not cause


def encode_sentences(tokenizer: Tokenizer, sentences: list[str]) -> list[list[int]]:
    """Sentences -> ids of each. UserError names a sentence that the tokenizer cannot encode."""
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
    """Texts -> ids of each, exactly as in the training files. An empty text becomes one separator."""
    sentences = [split_sentences(text) for text in texts]
    flat = [sentence for own in sentences for sentence in own]
    encoded = iter(encode_sentences(tokenizer, flat))
    rows = [[i for ids in islice(encoded, len(own)) for i in ids] for own in sentences]
    return [row or [special_ids(tokenizer)["sep"]] for row in rows]


def pad_batch(rows: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """B lists of ids -> (ids [B, n] int64, mask [B, n] bool, True for tokens), n the longest list's length."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]  # [B, n]
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = np.fromiter((i for row in rows for i in row), np.int64, lengths.sum())
    return ids, mask
