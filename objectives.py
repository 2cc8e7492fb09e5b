"""
Pre-training objectives. Every one turns clean rows of token ids into a `Problem`: what the encoder may read, what the
decoder has to say, and which of it counts. The model never knows which objective made the Problem.

Counts are fixed in advance (exactly round(rate * N) tokens of a row are masked, deleted or scored), so a row length has
one static shape: no padding, no mask tensor, no wait for the device. Notation: B rows, N tokens a row, S tokens read,
T tokens of the span to be said, K of them scored.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

# -----------------------------------------------------------------------------------------------------------------
# configuration


@dataclass
class ObjectiveConfig:
    objective: Annotated[str, "what is learnt: mlm, tsdae, bow, contrastive, or a sum: 'tsdae + 0.1*bow'"] = "tsdae"
    mask_rate: Annotated[float, "mlm: share of a row's tokens that is hidden and scored"] = 0.3
    mask_unit: Annotated[Literal["token"], "mlm: what is hidden as a whole"] = "token"
    replace: Annotated[
        Literal["mask", "80_10_10"], "mlm: hidden tokens become [MASK], or 80 % [MASK], 10 % random, 10 % kept (BERT)"
    ] = "mask"
    visible_only: Annotated[bool, "mlm: the encoder reads only the tokens left visible, no [MASK] (MAE-LM)"] = False
    delete_rate: Annotated[float, "tsdae: share of a row's tokens that is deleted"] = 0.6
    positions: Annotated[
        Literal["compact", "original"], "tsdae: survivors close up (the paper), or keep their positions (the seeds)"
    ] = "compact"
    score_rate: Annotated[float, "tsdae: share of a row's positions that is scored, chosen at random; 1: all"] = 1.0
    token_weight: Annotated[
        Literal["none", "idf"], "mlm, tsdae: all scored tokens count alike, or by their idf in the training sentences"
    ] = "none"
    views: Annotated[
        Literal["adjacent", "deletion", "both"],
        "contrastive: two spans in a row of one document, a row with different tokens deleted, or some of both",
    ] = "both"
    view_delete_rate: Annotated[float, "contrastive: share of a view's tokens that is deleted (deletion, both)"] = 0.4
    temperature: Annotated[float, "contrastive: what cosines are divided by"] = 0.05

    def __post_init__(self):
        parse_objective(self.objective)
        for key in ("mask_rate", "delete_rate", "view_delete_rate"):
            if not 0 < getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} leaves nothing to hide or to read; take 0 < {key} < 1")
        if not 0 < self.score_rate <= 1:
            raise ValueError(f"score_rate={self.score_rate} is no share; take 0 < score_rate <= 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} divides cosines; take a number above 0, such as 0.05")
        if self.visible_only and self.replace != "mask":
            raise ValueError("visible_only=True never shows a hidden token, replaced or not; write replace='mask'")


ROWS_OF_VIEWS = {"adjacent": 2, "deletion": 1, "both": 4}  # contrastive: rows come in groups of so many

KEYS = {  # the keys each objective uses; a key given and used by none of them is worth a warning
    "mlm": {"mask_rate", "mask_unit", "replace", "visible_only", "token_weight"},
    "tsdae": {"delete_rate", "positions", "score_rate", "token_weight"},
    "bow": set(),
    "contrastive": {"views", "view_delete_rate", "temperature"},
}


def parse_objective(text: str) -> list[tuple[float, str]]:
    """'tsdae + 0.1*mlm' -> [(1.0, 'tsdae'), (0.1, 'mlm')]; ValueError with a sentence for anything else."""
    parts = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d*\.?\d+(?:[eE]-?\d+)?)\s*\*\s*)?(\w+)\s*", term)
        if not match or match[2] not in KEYS or not 0 < float(match[1] or 1) < 1e6:
            raise ValueError(
                f"objective {text!r}: cannot read {term.strip()!r}; "
                f"write one of {', '.join(KEYS)}, or a sum such as 'tsdae + 0.1*mlm'"
            )
        parts.append((float(match[1] or 1), match[2]))
    names = [name for _, name in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"objective {text!r} names a part twice; give it one weight")
    return parts


def names(config: ObjectiveConfig) -> list[str]:
    """The parts of the objective, without their weights."""
    return [name for _, name in parse_objective(config.objective)]


def weights(config: ObjectiveConfig) -> list[float]:
    return [weight for weight, _ in parse_objective(config.objective)]


def unused_keys(config: ObjectiveConfig) -> set[str]:
    """Keys of ObjectiveConfig that the chosen objective does not look at."""
    used = set().union(*(KEYS[name] for name in names(config)))
    if "contrastive" in names(config) and config.views == "adjacent":
        used.remove("view_delete_rate")
    return set().union(*KEYS.values()) - used


def needs_idf(config: ObjectiveConfig) -> bool:
    parts = names(config)
    return "bow" in parts or (config.token_weight == "idf" and bool({"mlm", "tsdae"} & set(parts)))


def needs_pairs(config: ObjectiveConfig) -> bool:
    """Rows 2i and 2i + 1 must be adjacent spans of one document."""
    return "contrastive" in names(config) and config.views != "deletion"


def needed_decoder(config: ObjectiveConfig) -> str | None:
    """What a model must be built with where nothing is said position by position; None: any real decoder."""
    parts = set(names(config))
    return None if parts & {"mlm", "tsdae"} else "bag" if "bow" in parts else "none"


@dataclass(frozen=True)
class Vocabulary:
    """Size V of the vocabulary, the id of [MASK], all ids that are no text (chosen last by every noise), and how much
    each token tells: idf [V] float32 on the device, for the objectives that ask for it."""

    size: int
    mask_id: int
    special_ids: tuple[int, ...] = ()
    idf: Tensor | None = field(default=None, compare=False)

    def is_special(self, ids: Tensor) -> Tensor:
        """[B, N] ids -> [B, N] bool. Compared with plain numbers: no tensor to send."""
        found = ids == self.mask_id
        for i in self.special_ids:
            found = found | (ids == i)
        return found


# -----------------------------------------------------------------------------------------------------------------
# the record every objective makes


@dataclass
class Problem:
    source: Tensor  # [B, S] ids the encoder reads
    source_pos: Tensor | None = None  # [1|B, S] where they stood; None: 0 ... S-1
    targets: Tensor | None = None  # [B, T] the clean span to be said, whole and in order; None: nothing is decoded
    query_pos: Tensor | None = None  # [1|B, T] its positions; None: a bag, said at once by the pooled concepts
    query_ids: Tensor | None = None  # [B, T] what a decoder may see of it ([MASK] where hidden); None: nothing
    scored: Tensor | None = None  # [B, K] columns of T, or [M] flat into B*T; None: all T
    weights: Tensor | None = None  # like scored; they carry the normaliser; None: the mean
    t: Tensor | None = None  # [B] noise level
    views: int = 1  # rows i and i + B/views read the same text
    group: Tensor | None = None  # [B] document, against false negatives


# -----------------------------------------------------------------------------------------------------------------
# noise

MASK32 = 0xFFFFFFFF


def _mix(x):
    """The 32-bit finaliser of MurmurHash3, a bijection, for a Python int or an int64 tensor holding 0 ... 2^32-1.
    A product overflows int64, but its low 32 bits, all that is kept, are right on every device."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK32
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK32
    return x ^ (x >> 16)


class Noise:
    """
    Random numbers as a function of (seed, step, global row, call, column) and of nothing else: the corruption of a row
    is the same on any rank, micro-batch or device, and no generator has a state to save.
    """

    def __init__(self, seed: int, step: int, rows: Tensor):
        """rows [B] int64: the rows' numbers in the global batch of this step."""
        self.key = _mix((_mix((_mix(seed & MASK32) + step) & MASK32) + rows) & MASK32)  # [B]

    def bits(self, call: int, columns: int) -> Tensor:
        """[B, columns] int64 in 0 ... 2^32-1. The last step is a bijection of the column, so a row has no ties and
        its argsort is the same on every device."""
        key = _mix((self.key + call * 0x9E3779B9) & MASK32)
        return _mix(torch.arange(columns, device=key.device) ^ key[:, None])

    def order(self, call: int, last: Tensor) -> Tensor:
        """A random order of each row's columns, [B, N]; those in `last` [B, N] bool come after all others."""
        bits = self.bits(call, last.shape[1])
        return torch.argsort(bits + (last.long() << 32), dim=1)


def count(rate: float, n: int) -> int:
    """How many of n tokens a rate below 1 takes: round(rate * n), at least one and not all."""
    return max(1, min(round(rate * n), n - 1))


# -----------------------------------------------------------------------------------------------------------------
# objectives. `call` is the first number of noise calls they may use; each has eight of them.


def idf_weights(tokens: Tensor, vocab: Vocabulary) -> Tensor:
    """tokens [B, K] -> [B, K] float32: a row's weights are as its tokens' idf and sum to 1/B."""
    weights = vocab.idf[tokens]
    return weights / weights.sum(1, keepdim=True).clamp_min(1e-6) / len(tokens)


def token_weights(tokens: Tensor, vocab: Vocabulary, config: ObjectiveConfig) -> Tensor | None:
    """Weights of scored tokens [B, K], or None: all alike."""
    return idf_weights(tokens, vocab) if config.token_weight == "idf" else None


def delete(ids: Tensor, noise: Noise, vocab: Vocabulary, rate: float, call: int) -> Tensor:
    """The columns, in order, that are left of ids [B, N] when exactly round(rate * N) tokens are deleted: [B, S]."""
    n = ids.shape[1]
    return noise.order(call, ~vocab.is_special(ids))[:, : n - count(rate, n)].sort(dim=1).values


def mlm(ids: Tensor, noise: Noise, vocab: Vocabulary, config: ObjectiveConfig, call: int = 0) -> Problem:
    """Masked language modelling: hide exactly round(mask_rate * N) tokens of each row of ids [B, N], score those.
    `visible_only` is MAE-LM (Meng et al. 2023): the encoder never meets a [MASK]."""
    n = ids.shape[1]
    k = count(config.mask_rate, n)
    order = noise.order(call, vocab.is_special(ids))
    hidden = order[:, :k]  # [B, K], in random order
    shown = torch.full_like(hidden, vocab.mask_id)
    if config.replace == "80_10_10":
        masked, random = round(0.8 * k), round(0.1 * k)
        drawn = noise.bits(call + 1, k)[:, masked : masked + random] % vocab.size
        kept = ids.gather(1, hidden[:, masked + random :])
        shown = torch.cat([shown[:, :masked], drawn, kept], dim=1)
    corrupted = ids.scatter(1, hidden, shown)
    positions = torch.arange(n, device=ids.device)[None]
    visible = order[:, k:].sort(dim=1).values if config.visible_only else None
    scored = hidden.sort(dim=1).values
    return Problem(
        source=corrupted if visible is None else ids.gather(1, visible),
        source_pos=visible,
        targets=ids,
        query_pos=positions,
        query_ids=corrupted,
        scored=scored,
        weights=token_weights(ids.gather(1, scored), vocab, config),
    )


def tsdae(ids: Tensor, noise: Noise, vocab: Vocabulary, config: ObjectiveConfig, call: int = 0) -> Problem:
    """Denoising auto-encoder (TSDAE, Wang et al. 2021): delete exactly round(delete_rate * N) tokens of each row of
    ids [B, N], say the whole row. The decoder sees nothing of it but the concepts."""
    n = ids.shape[1]
    survivors = delete(ids, noise, vocab, config.delete_rate, call)  # [B, S]
    scored = None
    if config.score_rate < 1:
        everywhere = torch.zeros_like(ids, dtype=torch.bool)
        scored = noise.order(call + 1, everywhere)[:, : count(config.score_rate, n)].sort(dim=1).values
    return Problem(
        source=ids.gather(1, survivors),
        source_pos=survivors if config.positions == "original" else None,
        targets=ids,
        query_pos=torch.arange(n, device=ids.device)[None],
        scored=scored,
        weights=token_weights(ids if scored is None else ids.gather(1, scored), vocab, config),
    )


def bow(ids: Tensor, noise: Noise, vocab: Vocabulary, config: ObjectiveConfig, call: int = 0) -> Problem:
    """Bag of words: the whole row ids [B, N] is read, and one softmax of the pooled concepts says its tokens, whatever
    their order, each counting by its idf (the auxiliary loss of text VAEs, Zhao et al. 2017, arXiv:1703.10960)."""
    return Problem(source=ids, targets=ids, weights=idf_weights(ids, vocab))


def contrastive(
    ids: Tensor,
    noise: Noise,
    vocab: Vocabulary,
    config: ObjectiveConfig,
    call: int = 0,
    documents: Tensor | None = None,
) -> Problem:
    """Two views of one text, which pooled concepts must tell from those of other documents; nothing is said.

    adjacent: rows 2i and 2i + 1 of ids [B, N], spans in a row of one document (Giorgi et al. 2021, arXiv:2006.03659).
    deletion: each row twice, with different tokens deleted and the rest closed up.
    both: of four rows the first two as spans, the other two each twice, all with deletions. (With spans alone, all
    with deletions, the loss stayed at chance for 1.6 million tokens: docs/LOG.md.)
    documents [B]: the document of each row; None: all differ.
    """
    if documents is None:
        documents = torch.arange(len(ids), device=ids.device) // (2 if needs_pairs(config) else 1)
    if config.views == "adjacent":
        first, second, group = ids[0::2], ids[1::2], documents[0::2]
    else:
        a, b = (ids.gather(1, delete(ids, noise, vocab, config.view_delete_rate, call + i)) for i in range(2))
        first, second, group = a, b, documents
    if config.views == "both":
        first, second = torch.cat([a[0::4], a[2::4], a[3::4]]), torch.cat([a[1::4], b[2::4], b[3::4]])
        group = torch.cat([documents[0::4], documents[2::4], documents[3::4]])
    return Problem(source=torch.cat([first, second]), views=2, group=group.repeat(2))


def make_problems(
    ids: Tensor, noise: Noise, vocab: Vocabulary, config: ObjectiveConfig, documents: Tensor | None = None
) -> list[Problem]:
    """One Problem a part of the objective, in the order of `parse_objective`. ids [B, N] int64 and the documents they
    start in [B], on the device."""
    functions = {"mlm": mlm, "tsdae": tsdae, "bow": bow, "contrastive": partial(contrastive, documents=documents)}
    return [functions[name](ids, noise, vocab, config, call=8 * i) for i, name in enumerate(names(config))]
