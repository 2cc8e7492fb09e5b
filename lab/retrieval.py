"""
Retrieval without labels, for the end of a run: which of 500 held-out bodies belongs to this first sentence?

    print(retrieval_table(model, dataset.Corpus(folder, "val"), tokenizer, max_length=16))

A query is the first sentence of a validation document, its answer what follows in it. Vectors are means of concepts, as
in `LoadedRun.embed`; likeness is the cosine, raw and centred (less the mean over all queries and bodies). A query is
answered where its own body is strictly the most alike: a tie is a miss.

The floors: chance; the mean of random word vectors; word TF-IDF (idf over these texts); and the untrained twin, the
same architecture with initial weights. Intervals are of the difference, over paired resamples of the queries; the
bodies they choose among stay.
"""

import numpy as np

from lab import tasks
from lab.dataset import Corpus
from lab.report import table
from lab.runs import LoadedRun, untrained
from model import ConceptModel

PAIRS, FEWEST = 500, 20  # how many are asked for; fewer than these say nothing
SEED = 20250101  # of the choice of documents: the same in every run
SHORTEST = 3, 8  # tokens of a first sentence and of a body; what is shorter hardly says anything
LONGEST = 128  # tokens that are read of either: what bounds the cost on a corpus of long documents
TWIN_SEEDS = 5
TIE = 1e-9  # cosines that differ by less are equal: the order of a sum must not decide
KINDS = "raw", "centred"
RANDOM, TFIDF, UNTRAINED = "random vectors", "word TF-IDF", "the untrained twin"


def pairs(corpus: Corpus, tokenizer, count: int = PAIRS) -> list[tuple[str, str]]:
    """
    Up to `count` (first sentence, rest of the document, without end-of-document), in a fixed pseudo-random order.
    No first sentence and no body comes twice, whatever its case and spaces: each query has one answer.
    """
    found, seen = [], (set(), set())
    for document in np.random.default_rng(SEED).permutation(len(corpus.documents) - 1):
        if len(found) == count:
            break
        start, end = corpus.documents[document : document + 2]
        second = np.searchsorted(corpus.sentences, start) + 1
        if second == len(corpus.sentences) or (cut := corpus.sentences[second]) >= end:
            continue
        end -= corpus.tokens[end - 1] == corpus.eod
        if cut - start < SHORTEST[0] or end - cut < SHORTEST[1]:
            continue
        ids = corpus.tokens[start:cut], corpus.tokens[cut:end]
        pair = [tokenizer.decode(x[:LONGEST].tolist(), skip_special_tokens=False).strip() for x in ids]
        keys = [" ".join(text.lower().split()) for text in pair]
        if not any(key in known or not key for key, known in zip(keys, seen, strict=True)):
            found.append(tuple(pair))
            for key, known in zip(keys, seen, strict=True):
                known.add(key)
    return found


def answered(queries: np.ndarray, bodies: np.ndarray) -> np.ndarray:
    """Vectors [n, D] of queries and of their bodies -> bool [n]: is a query's own body strictly the most alike? The
    cosine of a row of zeros is 0."""
    norms = (np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, bodies))
    x, y = (v / np.where(norm > 0, norm, 1) for v, norm in zip((queries, bodies), norms, strict=True))
    cosines = x @ y.T  # [n, n]
    own = cosines.diagonal().copy()
    np.fill_diagonal(cosines, -np.inf)
    return own > cosines.max(1) + TIE


def hits(vectors) -> dict[str, np.ndarray]:
    """Vectors [2n, D] of n queries, then their n bodies -> {"raw", "centred": int64 [1, n]}, 1 where answered."""
    vectors = np.asarray(vectors, np.float64)
    n = len(vectors) // 2
    both = vectors, vectors - vectors.mean(0)
    return {kind: answered(v[:n], v[n:])[None].astype(np.int64) for kind, v in zip(KINDS, both, strict=True)}


def judge(model: ConceptModel, corpus: Corpus, tokenizer, max_length: int, texts: list[str]):
    """(hits of the model, {floor: hits of its runs}); texts: n queries, then their n bodies."""
    config = {"lengths": (max_length,), "hidden": model.config.hidden, "pad_id": corpus.pad}

    def concepts(model):
        run = LoadedRun(model, tokenizer, config, step=0)
        run.warned = True  # of texts in chunks: the table says it
        return hits(run.embed(texts).numpy())

    words, vocabulary = tasks.word_counts(texts)
    plain = tasks.averages(words, np.ones(len(vocabulary)))
    floors = {
        RANDOM: [hits(plain @ tasks.random_vectors(vocabulary, seed)) for seed in range(tasks.RANDOM_SEEDS)],
        TFIDF: [hits(tasks.scale_columns(words, tasks.idf(words)).toarray())],  # dense: LONGEST bounds it
        UNTRAINED: [concepts(untrained(model, seed)) for seed in range(TWIN_SEEDS)],
    }
    training = model.training
    model.eval()
    ours = concepts(model)
    model.train(training)
    return ours, {name: tasks.stack(runs) for name, runs in floors.items()}


def sentence(lifts: dict[str, dict]) -> str:
    """Differences to the floors -> where retrieval stands. Its floor is what knows nothing that training taught."""
    groups = {"above": [], "not above": [], "below": []}
    for name, lift in lifts.items():
        groups["above" if lift["low"] > 0 else "below" if lift["high"] < 0 else "not above"].append(name)
    where = ", ".join(f"{how} {' and '.join(names)}" for how, names in groups.items() if names)
    at_floor = not {RANDOM, UNTRAINED} <= set(groups["above"])
    return f"retrieval is at its floor: {where}" if at_floor else f"retrieval is {where}"


def retrieval_table(model: ConceptModel, corpus: Corpus, tokenizer, max_length: int) -> str:
    """
    The table in Markdown, and what it says; never fails for want of text.
    corpus: the validation text; max_length: tokens the model reads at once, longer texts are the mean of chunks.
    """
    found = pairs(corpus, tokenizer)
    n = len(found)
    if n < FEWEST:
        return f"retrieval: {n} held-out documents have a first sentence and a body of their own, {FEWEST} are needed"
    ours, floors = judge(model, corpus, tokenizer, max_length, [q for q, _ in found] + [body for _, body in found])
    lifts = {k: tasks.lifts("accuracy", ours[k], {f: runs[k] for f, runs in floors.items()}, np.ones(n)) for k in KINDS}

    def score(runs):  # [F, n] -> the mean over runs, and where it lies in each
        each = 100 * runs.mean(1)
        return f"{each.mean():5.1f}" + (f" ({each.min():.1f}..{each.max():.1f})" if len(each) > 1 else "")

    def difference(lift):
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * lift[key] for key in ("value", "low", "high")))

    rows = [["chance", *[f"{100 / n:5.1f}"] * 2, "", ""]]
    for name, runs in floors.items():
        rows.append([name, *(score(runs[k]) for k in KINDS), *(difference(lifts[k][name]) for k in KINDS)])
    rows.append(["this model", *(score(ours[k]) for k in KINDS), "", ""])
    header = [f"first sentence -> its body among {n}, % right", *KINDS, "this model less it, raw", "centred"]
    said = {k: sentence(lifts[k]) for k in KINDS}
    agree = len(set(said.values())) == 1
    notes = [f"{said['raw']} (raw and centred)"] if agree else [f"{kind}: {text}" for kind, text in said.items()]
    few = "" if n == PAIRS else f"; {n} pairs are all that the validation text has"
    notes.append(
        f"[95 % interval over queries]; (least..most of {tasks.RANDOM_SEEDS} seeds of random vectors, {TWIN_SEEDS} of "
        f"the twin); texts end at {LONGEST} tokens and are read {max_length} at a time{few}"
    )
    return "\n".join([table(header, rows), "", *notes])
