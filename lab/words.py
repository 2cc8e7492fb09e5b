"""
What a text is made of, without labels: its words, their classes, its sentences, the topics of its documents.

Classes are guessed: by a list where a class is closed, else by the end of a word and its neighbours. ACCURACY says how
often that is right on text tagged by hand, which stands in tests/test_words.py.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab import dataset
from lab.configurator import UserError
from lab.floors import idf, scale_columns, word_counts
from lab.runs import LoadedRun

CLOSED = {
    "determiner": "the a an this that these those each every some any no all both either neither another such many "
    "few several most more much other",
    "pronoun": "i you he she it we they me him us them my your his her its our their mine yours hers ours theirs "
    "myself himself herself itself themselves who whom whose which what something anything nothing "
    "everyone someone there",
    "preposition": "of in to for with on at by from as into about over after under between through during before "
    "against among within without upon toward towards until near across behind beyond along around "
    "above below off out up down like per via",
    "conjunction": "and or but nor so yet if because since while although though than when where whether unless how "
    "why",
    "auxiliary": "is are was were be been being am has have had having do does did will would can could may might "
    "shall should must not n't 's 're 've",
    "adverb": "also only then now here very often never always still even later again however too just soon once "
    "already almost ever far away together rather quite",
    "verb": "said made came went took got gave found told became left felt began kept held wrote stood heard met "
    "ran paid sat spoke led grew lost fell sent built understood drew broke spent rose drove bought wore "
    "chose sold won taught know think see make take come go get give find say tell become become use want "
    "need seem let",
    "adjective": "new old good great high small large long short young early late big little own same different "
    "last next best better main major local full free open low common single red blue white black "
    "green cold hot warm dry wet heavy light dark strong weak true false empty certain clear similar "
    "able",
    "number": "one two three four five six seven eight nine ten eleven twelve twenty thirty hundred thousand "
    "million billion first second third half",
}
CLOSED = {word: name for name, words in CLOSED.items() for word in words.split()}
CLASSES = ("noun", "name", "verb", "adjective", "adverb", "determiner", "pronoun", "preposition")
CLASSES += ("conjunction", "auxiliary", "number", "punctuation")
TAGGED, ACCURACY = 211, 0.90  # words tagged by hand, the share guessed right; what is missed becomes a noun, mostly
ADJECTIVE = re.compile(r".{2,}(ous|ful|ive|able|ible|ical|ional|ic|less|ish|ary|al|ern|ian|ese)")
NOUN = re.compile(r".{2,}(tion|sion|ness|ment|ity|ism|ist|ship|hood|ance|ence|er|or|ers|ors)s?")
INFINITIVE = set("to will would can could may might shall should must not do does did".split())
SUBJECT = set("i you he she it we they who".split())
VERB = re.compile(r".{2,}(ed|ing|ize|ise|ify)")


class Words:
    """Token ids -> the words that they write."""

    def __init__(self, tokenizer):
        self.starts, self.ends = dataset.word_starts(tokenizer), dataset.word_ends(tokenizer)
        prefix, suffix = dataset.subword_marks(tokenizer)
        pieces = (tokenizer.decode([i], skip_special_tokens=False) for i in range(len(self.starts)))
        self.pieces = [piece.strip().removeprefix(prefix).removesuffix(suffix) for piece in pieces]

    def __call__(self, ids: list[int]) -> tuple[list[str], list[int]]:
        """The words, and of which of them each token is a part. Letters and digits on one side and signs on the other
        are different words."""
        words, numbers = [], []
        for before, i in zip([None, *ids], ids, strict=False):
            piece = self.pieces[i]
            changes = bool(words) and bool(piece) and words[-1][-1:].isalnum() != piece[:1].isalnum()
            if not words or self.starts[i] or self.ends[before] or changes:
                words.append("")
            words[-1] += piece
            numbers.append(len(words) - 1)
        return words, numbers


def classes_of(words: list[str]) -> list[str]:
    """The class of each word of a text, one of CLASSES."""
    found, lower = [], [word.lower() for word in words]
    for i, word in enumerate(lower):
        before, after = found[-1] if found else "", CLOSED.get(lower[i + 1]) if i + 1 < len(words) else None
        if not any(c.isalnum() for c in word):
            kind = "punctuation"
        elif any(c.isdigit() for c in word):
            kind = "number"
        elif word in CLOSED:
            kind = CLOSED[word]
        elif words[i][0].isupper() and i and words[i - 1][-1:] not in (".", "!", "?", ""):
            kind = "name"
        elif word.endswith("ly") and len(word) > 4:
            kind = "adverb"
        elif VERB.fullmatch(word) and before not in ("determiner", "adjective"):
            kind = "verb"
        elif NOUN.fullmatch(word):
            kind = "noun"
        elif ADJECTIVE.fullmatch(word) or re.fullmatch(".{3,}(er|est)", word) and after is None:
            kind = "adjective"
        elif i and lower[i - 1] in INFINITIVE and word[-1:] != "s" or i and lower[i - 1] in SUBJECT:
            kind = "verb"
        elif before in ("noun", "name", "adverb") and after in ("determiner", "pronoun"):
            kind = "verb"
        else:
            kind = "noun"
        found.append(kind)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Sentences and topics


@dataclass
class Sentences:
    """texts [n], the document of each [n], and where they are from, in words."""

    texts: list[str]
    documents: list[int]
    source: str


SHORTEST, LONGEST = 6, 48  # tokens of a sentence
FEWEST = 100  # sentences; with fewer the rows of the run are taken


def sentences(run: LoadedRun, folder: Path, count: int) -> Sentences:
    """About `count` sentences of the validation text in `folder`, as many of each document as that takes, none twice;
    where that gives hardly any, is not there or has another tokenizer, the rows that the run keeps, each its own
    document."""
    try:
        corpus = dataset.Corpus(folder, "val")
        found = drawn(run, corpus, count) if corpus.tokenizer_hash == run.config["tokenizer_hash"] else {}
    except UserError:
        found = {}
    if len(found) >= FEWEST:
        return Sentences(list(found), list(found.values()), f"{len(found)} sentences of the validation text")
    texts = list(dict.fromkeys(run.tokenizer.decode(row).strip() for row in run.rows[:count].tolist()))
    source = f"{len(texts)} rows that the run keeps (no sentences of its text in {folder})"
    return Sentences(texts, list(range(len(texts))), source)


def drawn(run: LoadedRun, corpus: dataset.Corpus, count: int, seed: int = 20250101) -> dict[str, int]:
    """{sentence: its document}, in random order."""
    rng, found = np.random.default_rng(seed), {}
    most, each = min(LONGEST, run.max_length), max(5, -(-2 * count // (len(corpus.documents) - 1)))
    for document in rng.permutation(len(corpus.documents) - 1):
        first, last = np.searchsorted(corpus.sentences, corpus.documents[document : document + 2])
        start, end = corpus.sentence_spans(np.arange(first, last))
        end = end - (corpus.tokens[end - 1] == corpus.eod)
        good = np.flatnonzero((end - start >= SHORTEST) & (end - start <= most))
        for i in rng.permutation(good)[:each]:
            text = run.tokenizer.decode(corpus.tokens[start[i] : end[i]].tolist()).strip()
            found.setdefault(text, int(document))
        if len(found) >= count:
            break
    texts = list(found)
    return {texts[i]: found[texts[i]] for i in rng.permutation(len(texts))[:count]}


def topics(texts: list[str], documents: list[int], count: int = 6, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Topic of each text [n], and its name: three words. Spherical k-means (Dhillon & Modha 2001) of the documents'
    TF-IDF, where a document is the texts of one number; words of less than four letters are left out."""
    number = {document: i for i, document in enumerate(dict.fromkeys(documents))}
    joined = [""] * len(number)
    for text, document in zip(texts, documents, strict=True):
        joined[number[document]] += " " + " ".join(re.findall(r"[^\W\d_]{4,}", text))
    counts, words = word_counts(joined)
    seen = np.asarray((counts > 0).sum(0)).ravel()
    keep = np.flatnonzero((seen > 1) & (seen <= max(2, 0.2 * len(joined))))
    if len(keep) < count:
        return np.zeros(len(texts), np.int64), ["all"]
    counts, words = counts[:, keep], [words[i] for i in keep]
    counts.data = 1 + np.log(counts.data)
    x = scale_columns(counts, idf(counts)).toarray()
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    rng = np.random.default_rng(seed)
    best = -1.0
    for _ in range(5):
        centres = x[rng.choice(len(x), min(count, len(x)), replace=False)]
        for _ in range(30):
            topic = (x @ centres.T).argmax(1)
            sums = np.stack([x[topic == k].sum(0) for k in range(len(centres))])
            centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        if (agree := (x @ centres.T).max(1).sum()) > best:
            best, found = agree, centres
    topic = (x @ found.T).argmax(1)
    names = [", ".join(words[i] for i in np.argsort(-centre)[:3]) for centre in found]
    return topic[[number[document] for document in documents]], names
