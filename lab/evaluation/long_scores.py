"""Scores of a run and of its floors on the tasks of long.py."""

import numpy as np
from scipy import sparse

import geometry
from lab.configurator import UserError
from lab.evaluation.floors import averages, count_matrix, dot, idf, scale_columns, word_counts
from lab.evaluation.long import BINS, Classes, Search
from lab.evaluation.order import STRENGTHS
from lab.evaluation.retrieval import TIE
from lab.evaluation.scores import lifts
from lab.runs import ADAPTED, LoadedRun

TWINS = 2  # untrained models
FEWEST = 20  # questions


def unit(x):
    """Rows [n, D] of norm 1, or zero."""
    norm = np.sqrt(dot(x, x))
    scale = 1 / np.where(norm > 0, norm, 1)
    return sparse.csr_array(sparse.diags_array(scale) @ x) if sparse.issparse(x) else x * scale[:, None]


def adapted(x, kind: str):
    """Dense vectors [n, D] less what they have in common; counts as they are."""
    if sparse.issparse(x):
        return x
    mean, matrix = (part.numpy() for part in geometry.isotropic(as_tensor(x), *ADAPTED[kind]))
    return (x - mean) @ matrix


def as_tensor(x):
    import torch

    return torch.from_numpy(np.ascontiguousarray(x, np.float64))


def maxsims(query: np.ndarray, sets: list[np.ndarray]) -> np.ndarray:
    """`losses.maxsim` of vectors [C, H] of norm 1 and each of n sets [*, H] -> [n]."""
    cosines = query @ np.concatenate(sets).T  # [C, M]
    starts = np.cumsum([0, *map(len, sets[:-1])])
    theirs = np.maximum.reduceat(cosines, starts, axis=1).mean(0)
    ours = np.add.reduceat(cosines.max(0), starts) / [len(x) for x in sets]
    return (theirs + ours) / 2


def ranks_of(task: Search, similar) -> np.ndarray:
    """similar(query) -> similarities of its candidates [n] -> of each query that counts: how many wrong texts are at
    least as similar as the most similar right one."""
    found = []
    for i in range(task.mapped, len(task.queries)):
        values, right = similar(i), task.right[i]
        found.append((values[~right] >= values[right].max() - TIE).sum())
    return np.array(found)


def recalls(ranks: np.ndarray) -> dict[str, np.ndarray]:
    return {f"recall_{k}": (ranks < k).astype(np.int64)[None] for k in (1, 5)}


def search(task: Search, vectors, kind: str) -> dict[str, np.ndarray]:
    """Hits [1, n] by cosine. vectors: of task.documents."""
    n = len(task.queries)
    vectors = adapted(vectors, kind)
    queries, texts = vectors[:n], vectors[n:]
    if task.mapped:
        from sklearn.linear_model import RidgeCV  # late: `--help` does without

        target = np.stack([texts[own[right]][0] for own, right in zip(task.candidates, task.right, strict=True)])
        fit = slice(0, task.mapped)
        strengths = STRENGTHS * np.mean((queries[fit] ** 2).sum(1))
        queries = RidgeCV(strengths).fit(queries[fit], target[fit]).predict(queries)
    queries, texts = unit(queries), unit(texts)

    def similar(i):
        values = texts[task.candidates[i]] @ queries[[i]].T
        return np.asarray(values.todense() if sparse.issparse(values) else values).ravel()

    return recalls(ranks_of(task, similar))


def search_sets(task: Search, sets: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Hits [1, n] by MaxSim of all concepts, less their mean. sets: of task.documents."""
    mean = np.concatenate(sets).mean(0)
    sets, n = [unit(x - mean) for x in sets], len(task.queries)
    return recalls(ranks_of(task, lambda i: maxsims(sets[i], [sets[n + j] for j in task.candidates[i]])))


def probe(task: Classes, x) -> dict[str, np.ndarray]:
    """Hits [1, n] of a ridge classifier of features [N, D], its penalty chosen by leave-one-out error."""
    from sklearn.linear_model import RidgeClassifierCV  # late, as above

    if sparse.issparse(x):
        x, strengths = unit(x), (0.1, 1.0, 10.0)
    else:
        known = x[: task.train]
        x = (x - known.mean(0)) / np.maximum(known.std(0), 1e-9)
        strengths = STRENGTHS * x.shape[1]
    model = RidgeClassifierCV(strengths).fit(x[: task.train], task.labels[: task.train])
    predicted = model.predict(x[task.train :])
    return {"accuracy": (predicted == task.labels[task.train :]).astype(np.int64)[None]}


def of_model(run: LoadedRun, task: Search | Classes, merge: str) -> dict[str, np.ndarray]:
    """merge: what is made of the parts of a document that is longer than a row. "mean": of their vectors (of a probe:
    of all concepts, each the mean of its own); "maxsim": all concepts of all parts."""
    if isinstance(task, Classes):
        return probe(task, run.pooled(task.texts, every=True).flatten(1).numpy())
    if merge == "maxsim" and not task.mapped:
        return search_sets(task, run.concept_sets(task.documents))
    return search(task, run.pooled(task.documents).numpy(), "model")


def floors(run: LoadedRun, task: Search | Classes, merge: str) -> dict[str, dict[str, np.ndarray]]:
    """Floor -> metric -> hits [seeds, n]. word_tfidf; token_idf: the idf-weighted mean of the twins' token embeddings;
    untrained: the same model at TWINS initial seeds."""
    words, vocabulary = word_counts(task.documents)
    tokens = count_matrix(run.encode_texts(task.documents), run.model.config.vocab_size)
    means, twins = averages(tokens, idf(tokens)), [run.twin(seed) for seed in range(TWINS)]
    tables = [means @ twin.model.tokens.weight.detach().cpu().double().numpy() for twin in twins]

    def static(x):
        return probe(task, x) if isinstance(task, Classes) else search(task, x, "static")

    found = {}
    if not getattr(task, "mapped", 0):  # a ridge regression of counts on counts would say nothing
        found["word_tfidf"] = static(scale_columns(words, idf(words)))
    found["token_idf"] = stacked([static(x) for x in tables])
    found["untrained"] = stacked([of_model(twin, task, merge) for twin in twins])
    return found


def stacked(hits: list[dict]) -> dict[str, np.ndarray]:
    return {metric: np.concatenate([one[metric] for one in hits]) for metric in hits[0]}


def evaluated(run: LoadedRun, task: Search | Classes, merge: str, known: dict) -> dict:
    """{"n", "metrics", "floors", "lift", "verdict", "by_depth"} of a task, as eval_glue.py's records have them, and
    its hits under "hits". known: further floors, as `floors` has them, of the same rows."""
    counted = len(task.documents) if isinstance(task, Classes) else len(task.queries) - task.mapped
    if counted < FEWEST:
        raise UserError(f"{counted} questions are too few; write a larger --most, or take other --tasks")
    ours, theirs = of_model(run, task, merge), floors(run, task, merge) | known
    n = next(iter(ours.values())).shape[1]
    means = {floor: {metric: float(hits.mean()) for metric, hits in each.items()} for floor, each in theirs.items()}
    means["chance"] = task.chance
    lift = {
        metric: lifts("accuracy", hits, {floor: each[metric] for floor, each in theirs.items()}, np.ones(n))
        for metric, hits in ours.items()
    }
    main = next(iter(ours))
    best = max((floor for floor in theirs), key=lambda floor: means[floor][main])
    found = {
        "n": n,
        "metrics": {metric: float(hits.mean()) for metric, hits in ours.items()},
        "floors": means,
        "lift": lift[main] | {"best_floor": lift[main][best] | {"floor": best}},
        "verdict": lift[main][best]["verdict"],
    }
    if task.depth is not None:
        depth = task.depth[-n:]
        hits = ours[main][0]
        found["by_depth"] = [float(hits[depth == i].mean()) if (depth == i).any() else None for i in range(BINS)]
    return found | {"hits": ours}
