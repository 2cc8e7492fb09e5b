"""Retrieval without labels: how often a held-out document is found by its first sentence."""

import numpy as np

from lab.data.corpus import Corpus
from lab.evaluation.floors import (
    RANDOM_SEEDS,
    SIF,
    UNTRAINED_SEEDS,
    averages,
    count_matrix,
    idf,
    random_vectors,
    scale_columns,
    word_counts,
)
from lab.evaluation.scores import lifts, stack
from lab.report import format_range, interval, table
from lab.runs import ADAPTED, LoadedRun

# ---------------------------------------------------------------------------------------------------------------------
# A query is the first sentence of a validation document, its answer the rest of that document (its body), among 500.
# Vectors are means of concepts, as in `LoadedRun.pooled`; similarity is the cosine: raw; centred, after subtracting the
# mean over all queries and bodies; adapted to these texts. A query is a hit if its own body is strictly the most
# similar. Intervals are of the difference to a floor, over paired resamples of the queries; the bodies stay the same.

PAIRS, FEWEST = 500, 20  # queries at most; with fewer than FEWEST there is no table
SEED = 20250101  # of the choice of documents, the same for every run
SHORTEST = 3, 8  # fewest tokens of a first sentence and of a body
LONGEST = 128  # tokens read of each, which bounds the cost
TIE = 1e-9  # cosines that differ by less are equal: rounding must not decide
KINDS = "raw", "centred", "adapted"
RANDOM, TFIDF, TOKENS, UNTRAINED = "random vectors", "word TF-IDF", "token_idf", "the untrained twin"


def retrieval_pairs(corpus: Corpus, tokenizer, count: int = PAIRS) -> list[tuple[str, str]]:
    """
    Up to `count` (first sentence, rest of the document), in a fixed pseudo-random order. No first sentence and no body
    occurs twice, ignoring case and spaces, so that each query has exactly one answer.
    """
    chosen, seen = [], set()
    for document in np.random.default_rng(SEED).permutation(len(corpus.documents) - 1):
        if len(chosen) == count:
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
        keys = {(side, " ".join(text.lower().split())) for side, text in enumerate(pair)}
        if all(key for _, key in keys) and not keys & seen:
            chosen.append(tuple(pair))
            seen |= keys
    return chosen


def answered(queries: np.ndarray, bodies: np.ndarray) -> np.ndarray:
    """Vectors [n, D] of queries and of their bodies -> bool [n]: is the query's own body strictly the most similar? The
    cosine of a zero vector is 0."""
    norms = (np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, bodies))
    x, y = (v / np.where(norm > 0, norm, 1) for v, norm in zip((queries, bodies), norms, strict=True))
    cosines = x @ y.T  # [n, n]
    own = cosines.diagonal().copy()
    np.fill_diagonal(cosines, -np.inf)
    return own > cosines.max(1) + TIE


def hits(vectors, adapted=ADAPTED["static"]) -> dict[str, np.ndarray]:
    """Vectors [2n, D] of n queries, then of their n bodies -> {"raw", "centred", "adapted": int64 [1, n]}, 1 for a hit.
    adapted: (directions removed, power) as in ADAPTED, fitted on these texts themselves."""
    vectors = np.asarray(vectors, np.float64)
    n, (remove, power) = len(vectors) // 2, adapted
    centred = vectors - vectors.mean(0)
    squares, left = np.linalg.eigh(centred @ centred.T)  # ascending; left * sigma: principal components
    sigma = np.sqrt(np.maximum(squares, 1e-12 * squares[-1]))[: len(squares) - remove]
    every = vectors, centred, left[:, : len(sigma)] * sigma ** (1 - power)
    return {kind: answered(v[:n], v[n:])[None].astype(np.int64) for kind, v in zip(KINDS, every, strict=True)}


def retrieval_hits(run: LoadedRun, texts: list[str]):
    """(hits of the model, {floor: hits of its seeds}); texts: n queries, then their n bodies."""
    words, vocabulary = word_counts(texts)
    plain = averages(words, np.ones(len(vocabulary)))
    tokens, frequency = count_matrix(run.encode_texts(texts), run.model.config.vocab_size), run.token_frequency()
    twins = [run.twin(seed) for seed in range(UNTRAINED_SEEDS)]
    tables = [twin.model.tokens.weight.detach().cpu().double().numpy() for twin in twins]
    means = {TOKENS: averages(tokens, idf(tokens))}
    if frequency is not None:
        means["token_sif"] = averages(tokens, SIF / (SIF + frequency))
    floors = {
        RANDOM: [hits(plain @ random_vectors(vocabulary, seed)) for seed in range(RANDOM_SEEDS)],
        TFIDF: [hits(scale_columns(words, idf(words)).toarray())],  # dense: LONGEST bounds it
        **{floor: [hits(mean @ table) for table in tables] for floor, mean in means.items()},
        UNTRAINED: [hits(twin.pooled(texts).numpy(), ADAPTED["model"]) for twin in twins],
    }
    return hits(run.pooled(texts).numpy(), ADAPTED["model"]), {name: stack(runs) for name, runs in floors.items()}


def retrieval_table(run: LoadedRun, corpus: Corpus) -> str:
    """The table in Markdown, or a sentence if there is too little text. corpus: the validation text."""
    pairs = retrieval_pairs(corpus, run.tokenizer)
    n = len(pairs)
    if n < FEWEST:
        return f"retrieval: {n} held-out documents have a first sentence and a body of their own, {FEWEST} are needed"
    texts = [query for query, _ in pairs] + [body for _, body in pairs]
    ours, floors = retrieval_hits(run, texts)
    over = {k: lifts("accuracy", ours[k], {f: runs[k] for f, runs in floors.items()}, np.ones(n)) for k in KINDS}

    def score(runs):  # [F, n]
        each = runs.mean(1)
        return format_range((each.mean(), each.min(), each.max()))

    rows = [["chance", *[format_range((1 / n,))] * len(KINDS), *[""] * len(KINDS)]]
    for name, runs in floors.items():
        rows.append([name, *(score(runs[k]) for k in KINDS), *(interval(over[k][name]) for k in KINDS)])
    rows.append(["this model", *(score(ours[k]) for k in KINDS), *[""] * len(KINDS)])
    header = [f"first sentence -> its body among {n}, % right", *KINDS, "this model less it, raw", *KINDS[1:]]
    few = "" if n == PAIRS else f"; {n} pairs are all that the validation text has"
    note = (
        f"[95 % interval over queries]: the model is above a floor where the low end is above 0; (least..most of "
        f"{RANDOM_SEEDS} seeds of random vectors, {UNTRAINED_SEEDS} of the twin, token_idf and token_sif, which are "
        f"means of its token embeddings by idf and by frequency); texts end at {LONGEST} tokens and "
        f"are read {run.max_length} at a time{few}"
    )
    return "\n".join([table(header, rows), "", note])
