"""
Pre-training objectives. Each is one class that turns clean rows of token ids into a `Problem`: what the encoder may
read, what must be predicted from the concepts, and which of it counts. The model never knows which objective made the
Problem.

Counts are fixed in advance (exactly round(rate * N) tokens of a row are masked, deleted or scored), so a row length has
one static shape: no padding, no mask tensor, no wait for the device. Notation: B rows, N tokens a row, S tokens read,
T tokens of the span to be predicted, K of them scored.

To add one: a subclass of `Objective`. It is found by its name in lower case, in `objective = "..."` and in `--help`.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor

import losses
from noise import Noise, count, phrase_starts

# ---------------------------------------------------------------------------------------------------------------------
# Configuration

PLATEAUS = 6  # of a rate that changes over training: each makes one more static shape of a row length
SCHEDULED = ("mask_rate", "delete_rate")  # may be pairs


@dataclass
class ObjectiveConfig:
    objective: Annotated[
        str, lambda: f"what is learnt, alone or in a sum such as 'tsdae + 0.1*bow'. {described(OBJECTIVES)}"
    ] = "tsdae"
    mask_rate: Annotated[
        float | tuple[float, float],
        "mlm: share of a row's tokens that is hidden and scored; a pair, such as 0.15,0.4: from the first to the last "
        f"in {PLATEAUS} equal parts of training, judged at the last",
    ] = 0.3
    encoder_mask_rate: Annotated[
        float,
        "mlm: share that is hidden from the encoder, mask_rate then being that of the decoder, which sees a row of its "
        "own: 0.15 beside mask_rate=0.5 to 0.9 (RetroMAE), decoder=input or diffusion; 0: both see the same row",
    ] = 0.0
    mask_unit: Annotated[
        Literal["token", "word", "span", "pmi"],
        "mlm: what is hidden as a whole, an exact count of tokens; pmi: collocations, see python -m lab.pmi",
    ] = "token"
    span: Annotated[
        Literal["geometric", "uniform"],
        "mask_unit=span: 1 to 10 words, 3.8 on average (SpanBERT), or 3 to 10 tokens, all as likely (the seeds' plan)",
    ] = "geometric"
    replace: Annotated[
        Literal["mask", "80_10_10"],
        "mlm: hidden tokens become [MASK], or 80 % [MASK], 10 % random, 10 % kept (BERT; spans as a whole, SpanBERT)",
    ] = "mask"
    visible_only: Annotated[bool, "mlm: the encoder reads only the tokens left visible, no [MASK] (MAE-LM)"] = False
    delete_rate: Annotated[
        float | tuple[float, float], "tsdae: share of a row's tokens that is deleted; a pair: see mask_rate"
    ] = 0.6
    delete_unit: Annotated[
        Literal["token", "word"], "tsdae: what is deleted as a whole; the count of deleted tokens stays exact"
    ] = "token"
    positions: Annotated[
        Literal["compact", "original"], "tsdae: survivors close up (the paper), or keep their positions (the seeds)"
    ] = "compact"
    score_rate: Annotated[float, "tsdae: share of a row's positions that is scored, chosen at random; 1: all"] = 1.0
    bow_source: Annotated[
        Literal["row", "survivors"],
        "bow: the encoder reads the whole row, or what tsdae's deletion leaves of it (one encoder pass serves both)",
    ] = "row"
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
        for key in ("mask_rate", "delete_rate", "view_delete_rate"):
            if isinstance(getattr(self, key), list):  # a pair, out of config.json
                setattr(self, key, tuple(getattr(self, key)))
            rates = getattr(self, key)
            if not all(0 < rate < 1 for rate in (rates if isinstance(rates, tuple) else (rates,))):
                raise ValueError(f"{key}={getattr(self, key)} leaves nothing to hide or to read; take 0 < {key} < 1")
        if not 0 <= self.encoder_mask_rate < 1:
            raise ValueError(f"encoder_mask_rate={self.encoder_mask_rate} is no share; take 0 (off) or less than 1")
        if not 0 < self.score_rate <= 1:
            raise ValueError(f"score_rate={self.score_rate} is no share; take 0 < score_rate <= 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} divides cosines; take a number above 0, such as 0.05")
        if self.visible_only and self.replace != "mask":
            raise ValueError("visible_only=True never shows a hidden token, replaced or not; write replace='mask'")
        Objectives(self)  # the sum can be read

    def plateau(self, i: int = PLATEAUS - 1) -> "ObjectiveConfig":
        """In the i-th of PLATEAUS equal parts of training, where each pair of rates is one number between its two."""
        pairs, share = {key: getattr(self, key) for key in SCHEDULED}, i / (PLATEAUS - 1)
        rates = {key: (1 - share) * p[0] + share * p[1] for key, p in pairs.items() if isinstance(p, tuple)}
        return dataclasses.replace(self, **rates) if rates else self


def described(registry: dict[str, type]) -> str:
    """The names of a registry, each with the first line of its class's docstring."""
    first_lines = {name: (part.__doc__ or name).strip().splitlines()[0].rstrip(".") for name, part in registry.items()}
    return "; ".join(f"{name}: {line}" for name, line in first_lines.items())


# ---------------------------------------------------------------------------------------------------------------------
# What an objective is given, and what it makes


@dataclass(frozen=True)
class Vocabulary:
    """Size V of the vocabulary, the id of [MASK], all ids that are no text (chosen last by every noise), and on the
    device, for the objectives that ask for it: how much each token tells, idf [V] float32; starts [V] bool, the tokens
    that begin a word; phrases [M], sorted hashes of collocations."""

    size: int
    mask_id: int
    special_ids: tuple[int, ...] = ()
    idf: Tensor | None = field(default=None, compare=False)
    starts: Tensor | None = field(default=None, compare=False)
    phrases: Tensor | None = field(default=None, compare=False)

    def is_special(self, ids: Tensor) -> Tensor:
        """[B, N] ids -> [B, N] bool. Compared with plain numbers: no tensor to send."""
        special = ids == self.mask_id
        for i in self.special_ids:
            special = special | (ids == i)
        return special

    def text_token(self, bits: Tensor) -> Tensor:
        """Random numbers [B, K] -> ids that are text, all equally likely."""
        special = sorted({self.mask_id, *self.special_ids})
        ids = bits % (self.size - len(special))
        for i in special:
            ids = ids + (ids >= i)
        return ids


@dataclass
class Rows:
    """Clean rows of one length, and what is needed to corrupt them."""

    ids: Tensor  # [B, N] int64
    noise: Noise
    vocab: Vocabulary
    documents: Tensor | None = None  # [B] the document each row starts in
    deletions: dict = field(default_factory=dict)  # (rate, positions, unit) -> what `survivors` made of them

    def survivors(self, rate: float, positions: str, call: int, unit: str = "token") -> tuple[Tensor, Tensor | None]:
        """What is left when exactly round(rate * N) tokens of each row are deleted: ids [B, S] and their positions
        (None: closed up). Parts of a sum that ask for the same get the same tensors, and share one encoder pass."""
        key = rate, positions, unit
        if key not in self.deletions:
            columns = self.left(rate, call, unit)
            kept = columns if positions == "original" else None
            self.deletions[key] = self.ids.gather(1, columns), kept
        return self.deletions[key]

    def left(self, rate: float, call: int, unit: str = "token") -> Tensor:
        """The columns, in order, that exactly round(rate * N) deletions leave of each row: [B, S]."""
        n = self.ids.shape[1]
        k = count(rate, n)
        if unit != "token":
            return self.order(call, k, unit)[0][:, k:].sort(dim=1).values
        special_first = self.noise.order(call, ~self.vocab.is_special(self.ids))
        return special_first[:, : n - k].sort(dim=1).values

    def order(self, call: int, take: int, unit: str = "token", span: str = "") -> tuple[Tensor, Tensor | None]:
        """A random order of each row's columns, [B, N], special tokens last, of which the first `take` are as many
        whole units as can be; and the unit of each [B, N], a number (None: tokens). See Noise.order_units."""
        special = self.vocab.is_special(self.ids)
        if unit == "token":
            return self.noise.order(call, special), None
        starts = self.vocab.starts[self.ids] | special
        starts = torch.cat([torch.ones_like(special[:, :1]), starts[:, 1:] | special[:, :-1]], dim=1)
        units = phrase_starts(self.ids, starts, special, self.vocab.phrases) if unit == "pmi" else None
        return self.noise.order_units(call, starts, special, take, span if unit == "span" else "", units)

    def idf_weights(self, tokens: Tensor) -> Tensor:
        """tokens [B, K] -> [B, K] float32: a row's weights are as its tokens' idf and sum to 1/B."""
        weights = self.vocab.idf[tokens]
        return weights / weights.sum(1, keepdim=True).clamp_min(1e-6) / len(tokens)


@dataclass
class Problem:
    source: Tensor  # [B, S] ids the encoder reads
    source_pos: Tensor | None = None  # [1|B, S] where they stood; None: 0 ... S-1
    targets: Tensor | None = None  # [B, T] the clean span to be predicted, whole and in order; None: nothing is
    query_pos: Tensor | None = None  # [1|B, T] its positions
    query_ids: Tensor | None = None  # [B, T] what a decoder may see of it ([MASK] where hidden); None: nothing
    scored: Tensor | None = None  # [B, K] columns of T; None: all T
    weights: Tensor | None = None  # like scored; they carry the normaliser; None: the mean
    group: Tensor | None = None  # [B] document of two views, rows i and i + B/2, against false negatives
    predicts: str = (
        "positions"  # each position's token; or "pooled": all tokens at once, from the pooled concepts; "none"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Objectives

OBJECTIVES: dict[str, type["Objective"]] = {}  # name -> class


class Objective:
    """Clean rows -> a Problem, and its loss."""

    uses: frozenset | set = frozenset()  # keys of ObjectiveConfig that it reads
    predicts = "positions"  # the kind of prediction that it trains: "positions", "pooled" or "none"
    group = 1  # rows come in groups of so many
    one_document = False  # a row holds text of one document
    pairs = False  # rows 2i and 2i + 1 are adjacent spans of one document
    negatives = False  # the other rows of a forward, over all ranks, are its negatives
    by_idf = False  # tokens count by their idf
    by_words = False  # it needs to know which tokens begin a word
    by_phrases = False  # it needs to know the collocations
    floor_name = "unigram floor"

    def __init_subclass__(cls):
        cls.name = cls.__name__.lower()
        OBJECTIVES[cls.name] = cls

    def __init__(self, config: ObjectiveConfig, call: int = 0):
        """call: the first of eight numbers of noise calls that are its own in a sum."""
        self.config, self.call = config, call

    def problem(self, rows: Rows) -> Problem:
        raise NotImplementedError

    def loss(self, predicted: Tensor | None, concepts: Tensor, problem: Problem, gather=None, rank: int = 0) -> Tensor:
        """The loss as a scalar. predicted: the model's cross-entropy, None where the problem predicts nothing; concepts
        [B, C, H]; gather, rank: see losses.contrastive."""
        return predicted

    def floor(self, problem: Problem, unigram: Callable[[bool], float]) -> float:
        """Its loss, in nats, without any text: unigram(by_idf) is the cross-entropy of knowing only how common tokens
        are."""
        return unigram(self.by_idf)

    def reported(self) -> dict[str, "Objective"]:
        """Fixed settings that are evaluated beside it, as others report them: name in the metrics -> objective."""
        return {}


class MLM(Objective):
    """Masked language modelling, exactly round(mask_rate * N) tokens of each row are hidden and predicted.

    `visible_only` is MAE-LM (Meng et al. 2023): the encoder never meets a [MASK]. `encoder_mask_rate` is RetroMAE (Xiao
    et al. 2022, arXiv:2205.12035): what is hidden is drawn twice, little for the encoder, much for the decoder, and the
    latter is scored.
    """

    def __init__(self, config, call=0):
        super().__init__(config, call)
        self.uses = {"mask_rate", "encoder_mask_rate", "mask_unit", "replace", "visible_only", "token_weight"}
        self.uses |= {"span"} if config.mask_unit == "span" else set()
        self.by_idf = config.token_weight == "idf"
        self.by_words = config.mask_unit != "token"
        self.by_phrases = config.mask_unit == "pmi"

    def hide(self, rows: Rows, rate: float, call: int) -> tuple[Tensor, Tensor, Tensor]:
        """(rows whose hidden tokens are replaced [B, N], hidden columns [B, K] in random order, the others [B, N - K])
        of exactly K = round(rate * N) hidden tokens a row. call: the first of four numbers of noise calls."""
        ids, vocab, config = rows.ids, rows.vocab, self.config
        k = count(rate, ids.shape[1])
        order, units = rows.order(call, k, config.mask_unit, config.span)
        hidden, others = order[:, :k], order[:, k:]
        shown = torch.full_like(hidden, vocab.mask_id)
        if config.replace == "80_10_10" and config.mask_unit in ("span", "pmi"):
            drawn = vocab.text_token(rows.noise.bits(call + 1, k))
            chance = rows.noise.bits(call + 3, ids.shape[1]).gather(1, units[:, :k])  # of a unit
            shown = torch.where(chance < round(0.8 * 2**32), shown, drawn)
            shown = torch.where(chance < round(0.9 * 2**32), shown, ids.gather(1, hidden))
        elif config.replace == "80_10_10":
            if units is not None:  # each token by itself, whatever its word
                hidden = hidden.gather(1, rows.noise.order(call + 3, torch.zeros_like(hidden, dtype=torch.bool)))
            masked, random = round(0.8 * k), round(0.1 * k)
            drawn = vocab.text_token(rows.noise.bits(call + 1, k)[:, masked : masked + random])
            kept = ids.gather(1, hidden[:, masked + random :])
            shown = torch.cat([shown[:, :masked], drawn, kept], dim=1)
        return ids.scatter(1, hidden, shown), hidden, others

    def problem(self, rows):
        ids, n = rows.ids, rows.ids.shape[1]
        corrupted, hidden, others = self.hide(rows, self.config.mask_rate, self.call)
        read = corrupted
        if self.config.encoder_mask_rate:
            read, _, others = self.hide(rows, self.config.encoder_mask_rate, self.call + 4)
        visible = others.sort(dim=1).values if self.config.visible_only else None
        scored = hidden.sort(dim=1).values
        return Problem(
            source=read if visible is None else ids.gather(1, visible),
            source_pos=visible,
            targets=ids,
            query_pos=torch.arange(n, device=ids.device)[None],
            query_ids=corrupted,
            scored=scored,
            weights=rows.idf_weights(ids.gather(1, scored)) if self.by_idf else None,
        )

    def reported(self):
        """Masked LM at 15 %, tokens hidden one by one from both sides, whatever the training rates and unit."""
        standard = {"objective": "mlm", "mask_rate": 0.15, "replace": "mask", "token_weight": "none"}
        standard |= {"mask_unit": "token", "encoder_mask_rate": 0.0}
        return {"mlm15": MLM(dataclasses.replace(self.config, **standard))}


class TSDAE(Objective):
    """Denoising auto-encoder, exactly round(delete_rate * N) tokens are deleted and the whole row is predicted.

    The decoder sees nothing of the row but the concepts (Wang et al. 2021, arXiv:2104.06979).
    """

    uses = {"delete_rate", "delete_unit", "positions", "score_rate", "token_weight"}

    def __init__(self, config, call=0):
        super().__init__(config, call)
        self.by_idf = config.token_weight == "idf"
        self.by_words = config.delete_unit == "word"

    def problem(self, rows):
        ids, n, config = rows.ids, rows.ids.shape[1], self.config
        source, source_pos = rows.survivors(config.delete_rate, config.positions, self.call, config.delete_unit)
        scored = None
        if self.config.score_rate < 1:
            everywhere = torch.zeros_like(ids, dtype=torch.bool)
            scored = rows.noise.order(self.call + 1, everywhere)[:, : count(self.config.score_rate, n)]
            scored = scored.sort(dim=1).values
        return Problem(
            source=source,
            source_pos=source_pos,
            targets=ids,
            query_pos=torch.arange(n, device=ids.device)[None],
            scored=scored,
            weights=rows.idf_weights(ids if scored is None else ids.gather(1, scored)) if self.by_idf else None,
        )


class Bow(Objective):
    """Bag of words, one softmax of the pooled concepts predicts all tokens of the row, each counting by its idf.

    The auxiliary loss of text VAEs (Zhao et al. 2017, arXiv:1703.10960).
    """

    predicts = "pooled"
    by_idf = True

    def __init__(self, config, call=0):
        super().__init__(config, call)
        deletes = config.bow_source == "survivors"
        self.uses = {"bow_source"} | ({"delete_rate", "delete_unit", "positions"} if deletes else set())
        self.by_words = deletes and config.delete_unit == "word"

    def problem(self, rows):
        source, source_pos, config = rows.ids, None, self.config
        if config.bow_source == "survivors":
            source, source_pos = rows.survivors(config.delete_rate, config.positions, self.call, config.delete_unit)
        weights = rows.idf_weights(rows.ids)
        return Problem(source, source_pos, targets=rows.ids, weights=weights, predicts="pooled")


class Contrastive(Objective):
    """Two views of one text, which pooled concepts must tell from those of other documents.

    Nothing is decoded. `views` says what they are:
    adjacent: rows 2i and 2i + 1, spans in a row of one document (Giorgi et al. 2021, arXiv:2006.03659).
    deletion: each row twice, with different tokens deleted and the rest closed up.
    both: of four rows the first two as spans, the other two each twice, all with deletions. (With spans alone, all
    with deletions, the loss stayed at chance for 1.6 million tokens: docs/LOG.md.)
    """

    predicts = "none"
    one_document = True
    negatives = True
    floor_name = "chance"

    def __init__(self, config, call=0):
        super().__init__(config, call)
        self.uses = {"views", "temperature"} | ({"view_delete_rate"} if config.views != "adjacent" else set())
        self.group = {"adjacent": 2, "deletion": 1, "both": 4}[config.views]
        self.pairs = config.views != "deletion"

    def problem(self, rows):
        ids, documents, views = rows.ids, rows.documents, self.config.views
        if views == "adjacent":
            first, second, group = ids[0::2], ids[1::2], documents[0::2]
        else:
            a, b = (ids.gather(1, rows.left(self.config.view_delete_rate, self.call + i)) for i in range(2))
            first, second, group = a, b, documents
        if views == "both":
            first, second = torch.cat([a[0::4], a[2::4], a[3::4]]), torch.cat([a[1::4], b[2::4], b[3::4]])
            group = torch.cat([documents[0::4], documents[2::4], documents[3::4]])
        return Problem(source=torch.cat([first, second]), group=group.repeat(2), predicts="none")

    def loss(self, predicted, concepts, problem, gather=None, rank=0):
        return losses.contrastive(concepts.mean(1), problem.group, self.config.temperature, gather, rank)

    def floor(self, problem, unigram):
        return math.log(len(problem.source) / 2)


# ---------------------------------------------------------------------------------------------------------------------
# Sums


class Objectives:
    """All parts of `objective = "tsdae + 0.1*contrastive"`, and what they ask for together: of rows, the strictest."""

    def __init__(self, config: ObjectiveConfig):
        """ValueError with a sentence where the sum cannot be read. Of a pair of rates the last is in force."""
        self.text, self.parts, self.weights = config.objective, [], []
        self.config, config = config, config.plateau()
        for term in config.objective.split("+"):
            match = re.fullmatch(r"\s*(?:(\d*\.?\d+(?:[eE]-?\d+)?)\s*\*\s*)?(\w+)\s*", term)
            if not match or match[2] not in OBJECTIVES or not 0 < float(match[1] or 1) < 1e6:
                raise ValueError(
                    f"objective {config.objective!r}: cannot read {term.strip()!r}; "
                    f"write one of {', '.join(OBJECTIVES)}, or a sum such as 'tsdae + 0.1*mlm'"
                )
            self.weights.append(float(match[1] or 1))
            self.parts.append(OBJECTIVES[match[2]](config, call=8 * len(self.parts)))
        self.names = [part.name for part in self.parts]
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"objective {config.objective!r} names a part twice; give it one weight")
        kinds = {part.predicts for part in self.parts}
        self.predicts = next(kind for kind in ("positions", "pooled", "none") if kind in kinds)
        self.group = math.lcm(*(part.group for part in self.parts))
        self.one_document = any(part.one_document for part in self.parts)
        self.pairs = any(part.pairs for part in self.parts)
        self.negatives = any(part.negatives for part in self.parts)
        self.by_idf = any(part.by_idf for part in self.parts)
        self.by_words = any(part.by_words for part in self.parts)
        self.by_phrases = any(part.by_phrases for part in self.parts)
        self.uses = {"objective"}.union(*(part.uses for part in self.parts))

    def plateaus(self) -> list["Objectives"]:
        """What is trained in each of equal parts of training, in turn: one part, unless a pair of rates is used."""
        scheduled = any(isinstance(getattr(self.config, key), tuple) for key in self.uses.intersection(SCHEDULED))
        return [Objectives(self.config.plateau(i)) for i in range(PLATEAUS)] if scheduled else [self]

    def problems(self, rows: Rows) -> list[Problem]:
        """One Problem a part."""
        return [part.problem(rows) for part in self.parts]

    def losses(self, predicted, concepts, problems, gather=None, rank=0) -> list[Tensor]:
        """Of each part, from what the model returns for the problems; see Objective.loss."""
        columns = zip(self.parts, predicted, concepts, problems, strict=True)
        return [part.loss(p, c, problem, gather, rank) for part, p, c, problem in columns]

    def total(self, values):
        """The weighted sum of one number (or tensor) a part."""
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))
