"""
Pre-training objectives. Each is one class that turns clean rows of token ids into a `Problem` (problem.py): what the
encoder may read, what must be predicted from the concepts, and which of it counts.

Counts are fixed in advance (exactly round(rate * N) tokens of a row are masked, deleted or scored), so a row length has
one static shape: no padding, no mask tensor, no wait for the device. Notation: B rows, N tokens a row, S tokens read,
T tokens of the span to be predicted, K of them scored.

To add one: a subclass of `Objective`. It is found by its name in lower case, in `objective = "..."` and in `--help`.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Literal, get_type_hints

import torch
from torch import Tensor

import losses
from noise import count
from problem import Problem, Rows, blank_rows

# ---------------------------------------------------------------------------------------------------------------------
# Configuration


@dataclass(frozen=True)
class Bounds:
    """In the annotation of a key: the range of its value, or of each value of a tuple; open: the ends that are not in
    it, "low", "high" or "both"."""

    low: float
    high: float = math.inf
    open: Literal["", "low", "high", "both"] = ""

    def __contains__(self, value) -> bool:
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        return above and (value < self.high if self.open in ("high", "both") else value <= self.high)

    def __str__(self):
        if self.high == math.inf:
            return f"above {self.low}" if self.open == "low" else f"{self.low} or more"
        if self.open == "both":
            return f"between {self.low} and {self.high:,}"
        low = f"above {self.low}" if self.open == "low" else self.low
        return f"{low} to {'below ' * (self.open == 'high')}{self.high:,}"


@dataclass(frozen=True)
class Group:
    """In the annotation of a key: the heading that it has in `--help=all`."""

    name: str


@cache
def bounds_of(config: type) -> dict[str, Bounds]:
    """The keys of a dataclass that have Bounds."""
    hints = get_type_hints(config, include_extras=True).items()
    marks = ((key, mark) for key, hint in hints for mark in getattr(hint, "__metadata__", ()))
    return {key: mark for key, mark in marks if isinstance(mark, Bounds)}


def check_bounds(config):
    """ValueError names a key of a configuration whose value, or one of whose values, is out of its Bounds."""

    def numbers(value):
        return [x for part in value for x in numbers(part)] if isinstance(value, tuple | list) else [value]

    for key, bounds in bounds_of(type(config)).items():
        value = getattr(config, key)
        if not all(x in bounds for x in numbers(value)):
            raise ValueError(f"{key}={value} is out of range; write a number in this range: {bounds}")


SHARE, INSIDE = Bounds(0, 1, open="high"), Bounds(0, 1, open="both")
PLATEAUS = 6  # of what changes over training
RATES = ("mask_rate", "delete_rate")  # may be pairs: each plateau makes one more static shape of a row length
SCHEDULED = (*RATES, "max_span")  # may be pairs


@dataclass
class ObjectiveConfig:
    objective: Annotated[
        str, lambda: f"what is learnt, of {', '.join(OBJECTIVES)}, or a sum: 'tsdae + 0.1*bow'. {described(OBJECTIVES)}"
    ] = "tsdae"
    mask_rate: Annotated[
        float | tuple[float, float],
        "mlm: share of a row's tokens that is hidden and scored; a pair, such as 0.15,0.4: from the first to the last "
        f"in {PLATEAUS} equal parts of training, evaluated at the last",
        INSIDE,
    ] = 0.3
    encoder_mask_rate: Annotated[
        float,
        "mlm: a mask rate of the encoder's own, while mask_rate is the decoder's; both masks are independent. "
        "RetroMAE: 0.15 with mask_rate=0.5 to 0.9, decoder=diffusion with a window; 0: one mask for both",
        SHARE,
    ] = 0.0
    mask_unit: Annotated[
        Literal["token", "word", "span", "pmi"],
        "mlm: unit of masking, at an exact number of tokens; pmi: collocations, see python -m lab.data.pmi",
    ] = "token"
    span: Annotated[
        Literal["geometric", "uniform"],
        "mask_unit=span: 1 to 10 words, 3.8 on average (SpanBERT), or 3 to 10 tokens, all as likely",
    ] = "geometric"
    max_span: Annotated[
        int | tuple[int, int],
        "mask_unit=span: longest span, in words (geometric) or tokens (uniform); a pair: see mask_rate",
        Bounds(1, 64),
    ] = 10
    replace: Annotated[
        Literal["mask", "80_10_10"],
        "mlm: hidden tokens become [MASK], or 80 % [MASK], 10 % random, 10 % kept (BERT; spans as a whole, SpanBERT)",
    ] = "mask"
    visible_only: Annotated[bool, "mlm: the encoder reads only the tokens left visible, no [MASK] (MAE-LM)"] = False
    delete_rate: Annotated[
        float | tuple[float, float], "tsdae: share of a row's tokens that is deleted; a pair: see mask_rate", INSIDE
    ] = 0.6
    delete_unit: Annotated[Literal["token", "word"], "tsdae: unit of deletion, at an exact number of tokens"] = "token"
    positions: Annotated[
        Literal["compact", "original"], "tsdae: survivors close up (the paper), or keep their positions (original)"
    ] = "compact"
    score_rate: Annotated[
        float, "tsdae: share of a row's positions that is scored, chosen at random; 1: all", Bounds(0, 1, open="low")
    ] = 1.0
    bow_source: Annotated[
        Literal["row", "survivors"],
        "bow: the encoder reads the whole row, or what tsdae's deletion leaves of it (one encoder pass serves both)",
    ] = "row"
    token_weight: Annotated[
        Literal["none", "idf"], "mlm, tsdae: equal weights of scored tokens, or their inverse document frequency (idf)"
    ] = "none"
    bow_target: Annotated[
        Literal["row", "next", "both"],
        "bow: the words of the row that is read, of its document's next span, or both",
    ] = "row"
    views: Annotated[
        Literal["adjacent", "deletion", "both", "dropout"],
        "contrastive: two adjacent spans of one document; a row with different tokens deleted; some of both; a row "
        "twice (with dropout, SimCSE)",
    ] = "both"
    view_delete_rate: Annotated[float, "contrastive: share of a view's tokens deleted (deletion, both)", INSIDE] = 0.4
    view_similarity: Annotated[
        Literal["mean", "maxsim"],
        "contrastive: cosine of the pooled concepts, or mean over concepts of the best cosine with one of the other's",
    ] = "mean"
    temperature: Annotated[float, "contrastive: what cosines are divided by", Bounds(0, open="low")] = 0.05
    diffusion_source: Annotated[
        Literal["row", "next"],
        "diffusion: the encoder reads the row itself, clean; next: the span before it, of the same document",
    ] = "row"
    t_min: Annotated[float, "diffusion: least share hidden in training (0: one token); not in val_loss_elbo", SHARE] = (
        0.0
    )
    diffusion_weight: Annotated[
        Literal["elbo", "none"],
        "diffusion: hidden tokens weigh N / hidden tokens of their row, which is the ELBO; none: all 1, no bound",
    ] = "elbo"
    label_smoothing: Annotated[
        float, "diffusion: share of a target spread over all tokens; not in val_loss_elbo", SHARE
    ] = 0.0
    prefix_rate: Annotated[
        tuple[float, ...],
        "prefix: share of a row that is read, the rest is predicted; several: steps take them in turn",
        INSIDE,
    ] = (0.3, 0.4, 0.5)
    prefix_source: Annotated[
        Literal["row", "next"],
        "prefix: the first part of a row is read, the rest predicted; next: a span, and the next of its document",
    ] = "row"
    next_target: Annotated[
        Literal["concepts", "spectral"],
        "nextconcept: of the next span the concepts, or the idf-weighted mean of its tokens' frozen spectral vectors",
    ] = "concepts"

    def __post_init__(self):
        for key in SCHEDULED:
            if isinstance(getattr(self, key), list):  # a pair, out of config.json
                setattr(self, key, tuple(getattr(self, key)))
        check_bounds(self)
        if self.span == "uniform" and min(pair(self.max_span)) < 3:
            raise ValueError(f"max_span={self.max_span}: uniform spans end at 3 to 64; take 10")
        if not 0 < len(self.prefix_rate) <= 6:
            raise ValueError(f"prefix_rate={self.prefix_rate}: take one to six shares")
        if self.visible_only and self.replace != "mask":
            raise ValueError("visible_only=True never shows a hidden token, replaced or not; write replace='mask'")
        Objectives(self)  # the sum can be read

    def plateau(self, i: int = PLATEAUS - 1) -> "ObjectiveConfig":
        """In the i-th of PLATEAUS equal parts of training, where each pair is one number between its two."""
        pairs, share = {key: getattr(self, key) for key in SCHEDULED}, i / (PLATEAUS - 1)
        now = {key: (1 - share) * p[0] + share * p[1] for key, p in pairs.items() if isinstance(p, tuple)}
        now |= {key: round(value) for key, value in now.items() if key not in RATES}
        return dataclasses.replace(self, **now) if now else self


def pair(value) -> tuple:
    """The two ends of a key that may be a pair."""
    return value if isinstance(value, tuple) else (value, value)


def described(registry: dict[str, type]) -> str:
    """The names of a registry, each with the first line of its class's docstring."""
    first_lines = {name: (part.__doc__ or name).strip().splitlines()[0].rstrip(".") for name, part in registry.items()}
    return "; ".join(f"{name}: {line}" for name, line in first_lines.items())


def recorded(config) -> tuple:
    """(A copy of a configuration, the set of the names that are read from the copy from now on)."""
    read = set()

    class Recorded(type(config)):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    copy = object.__new__(Recorded)
    vars(copy).update(vars(config))
    return copy, read


# ---------------------------------------------------------------------------------------------------------------------
# Objectives

OBJECTIVES: dict[str, type["Objective"]] = {}  # name -> class


class Objective:
    """Clean rows -> a Problem, and its loss."""

    predicts = "positions"  # the kind of prediction that it trains, see Problem
    group = 1  # rows come in groups of this size
    shape_count = 1  # static shapes per row length, which steps take in turn (Noise.shape_index)
    one_document = False  # a row holds text of one document
    adjacent_rows = False  # rows 2i and 2i + 1 are adjacent spans of one document
    in_batch_negatives = False  # its negatives are the other rows of one forward, over all ranks
    centers_targets = False  # its targets are centred over the rows of one forward
    needs_idf = False  # tokens are weighted by idf
    needs_word_starts = False
    needs_collocations = False
    needs_token_vectors = False
    floor_name, unit = "unigram floor", "nats"

    def __init_subclass__(cls):
        cls.name = cls.__name__.lower()
        OBJECTIVES[cls.name] = cls

    def __init__(self, config: ObjectiveConfig, stream: int = 0):
        """stream: the first of the eight streams of random numbers that are its own."""
        self.config, self.stream = config, stream

    def problem(self, rows: Rows) -> Problem:
        raise NotImplementedError

    def whole_problem(self, rows: Rows) -> Problem:
        """`problem`, and the length of the clean rows."""
        return dataclasses.replace(self.problem(rows), row_length=rows.ids.shape[1])

    def loss(self, predicted: Tensor, concepts: Tensor, problem: Problem, gather=None, rank: int = 0) -> Tensor:
        """The loss as a scalar. predicted: what the model's forward returns: a loss, or the pooled concepts [B, H]
        where the problem predicts nothing; concepts [B, C, H]; gather, rank: see losses.contrastive."""
        return predicted

    def floor(self, problem: Problem, unigram: Callable[[bool], float]) -> float:
        """The loss, in nats, of a model that ignores the text. unigram(needs_idf): the cross-entropy of the unigram
        distribution."""
        return unigram(self.needs_idf)

    def reported(self) -> dict[str, "Objective"]:
        """Standard settings to evaluate as well, as the literature reports them: name in metrics -> objective."""
        return {}


class MLM(Objective):
    """Masked language modelling, exactly round(mask_rate * N) tokens of each row are hidden and predicted.

    `visible_only` is MAE-LM (Meng et al. 2023): the encoder never sees a [MASK]. `encoder_mask_rate` is RetroMAE (Xiao
    et al. 2022, arXiv:2205.12035): two independent masks, a light one for the encoder and a heavy one for the decoder,
    which is scored.
    """

    def __init__(self, config, stream=0):
        super().__init__(config, stream)
        self.needs_idf = config.token_weight == "idf"
        self.needs_word_starts = config.mask_unit != "token"
        self.needs_collocations = config.mask_unit == "pmi"

    def hide(self, rows: Rows, rate: float, stream: int) -> tuple[Tensor, Tensor, Tensor]:
        """Hides exactly K = round(rate * N) tokens of each row: (rows with these replaced [B, N], hidden columns [B, K]
        in random order, the others [B, N - K]). stream: the first of four streams of random numbers."""
        ids, vocab, config = rows.ids, rows.vocab, self.config
        k = count(rate, ids.shape[1])
        spans = (config.span, config.max_span) if config.mask_unit == "span" else ()
        order, units = rows.order(stream, k, config.mask_unit, *spans)
        hidden, others = order[:, :k], order[:, k:]
        shown = torch.full_like(hidden, vocab.mask_id)
        if config.replace == "80_10_10" and config.mask_unit in ("span", "pmi"):
            drawn = vocab.text_token(rows.noise.bits(stream + 1, k))
            chance = rows.noise.bits(stream + 3, ids.shape[1]).gather(1, units[:, :k])  # one number per unit
            shown = torch.where(chance < round(0.8 * 2**32), shown, drawn)
            shown = torch.where(chance < round(0.9 * 2**32), shown, ids.gather(1, hidden))
        elif config.replace == "80_10_10":
            if units is not None:  # each token on its own, whatever its word
                hidden = hidden.gather(1, rows.noise.order(stream + 3, torch.zeros_like(hidden, dtype=torch.bool)))
            masked, random = round(0.8 * k), round(0.1 * k)
            drawn = vocab.text_token(rows.noise.bits(stream + 1, k)[:, masked : masked + random])
            kept = ids.gather(1, hidden[:, masked + random :])
            shown = torch.cat([shown[:, :masked], drawn, kept], dim=1)
        return ids.scatter(1, hidden, shown), hidden, others

    def problem(self, rows):
        ids = rows.ids
        corrupted, hidden, others = self.hide(rows, self.config.mask_rate, self.stream)
        read = corrupted
        if self.config.encoder_mask_rate:
            read, _, others = self.hide(rows, self.config.encoder_mask_rate, self.stream + 4)
        visible = others.sort(dim=1).values if self.config.visible_only else None
        scored = hidden.sort(dim=1).values
        return Problem(
            source=read if visible is None else ids.gather(1, visible),
            source_pos=visible,
            targets=ids,
            query_ids=corrupted,
            scored=scored,
            weights=rows.idf_weights(ids.gather(1, scored)) if self.needs_idf else None,
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

    def __init__(self, config, stream=0):
        super().__init__(config, stream)
        self.needs_idf = config.token_weight == "idf"
        self.needs_word_starts = config.delete_unit == "word"

    def problem(self, rows):
        ids, n, config = rows.ids, rows.ids.shape[1], self.config
        source, source_pos = rows.survivors(config.delete_rate, config.positions, self.stream, config.delete_unit)
        scored = None
        if self.config.score_rate < 1:
            everywhere = torch.zeros_like(ids, dtype=torch.bool)
            scored = rows.noise.order(self.stream + 1, everywhere)[:, : count(self.config.score_rate, n)]
            scored = scored.sort(dim=1).values
        return Problem(
            source=source,
            source_pos=source_pos,
            targets=ids,
            scored=scored,
            weights=rows.idf_weights(ids if scored is None else ids.gather(1, scored)) if self.needs_idf else None,
        )


class Bow(Objective):
    """Bag of words, one softmax of the pooled concepts predicts all tokens of the row, each weighted by its idf.

    The auxiliary loss of text VAEs (Zhao et al. 2017, arXiv:1703.10960).
    """

    predicts = "pooled"
    needs_idf = True

    def __init__(self, config, stream=0):
        super().__init__(config, stream)
        deletes, self.adjacent_rows = config.bow_source == "survivors", config.bow_target != "row"
        self.needs_word_starts = deletes and config.delete_unit == "word"
        self.group = 2 if self.adjacent_rows else 1

    def problem(self, rows):
        source, source_pos, targets, config = rows.ids, None, rows.ids, self.config
        if config.bow_source == "survivors":
            source, source_pos = rows.survivors(config.delete_rate, config.positions, self.stream, config.delete_unit)
        if self.adjacent_rows:
            first, second = rows.spans()
            source = first if source is rows.ids else source[0::2]
            source_pos = None if source_pos is None else source_pos[0::2]
            targets = second if config.bow_target == "next" else torch.cat([first, second], 1)
        return Problem(source, source_pos, targets=targets, weights=rows.idf_weights(targets), predicts="pooled")


class Contrastive(Objective):
    """InfoNCE of two views of one text, with other documents of the batch as negatives; nothing is decoded.

    The key `views`:
    adjacent: rows 2i and 2i + 1, adjacent spans of one document (Giorgi et al. 2021, arXiv:2006.03659).
    deletion: each row twice, with different tokens deleted and the positions closed up.
    both: of four rows the first two as adjacent spans, the other two each twice, all with deletions. (With adjacent
    spans alone, all with deletions, the loss stayed at chance for 1.6 million tokens: docs/LOG.md.)
    dropout: a row twice (SimCSE, arXiv:2104.08821).
    """

    predicts = "none"
    one_document = True
    in_batch_negatives = True
    floor_name = "chance"

    def __init__(self, config, stream=0):
        super().__init__(config, stream)
        self.group = {"adjacent": 2, "both": 4}.get(config.views, 1)
        self.adjacent_rows = self.group > 1

    def problem(self, rows):
        ids, documents, views = rows.ids, rows.documents, self.config.views
        first, second, group = ids, ids, documents
        if views == "adjacent":
            (first, second), group = rows.spans(), documents[0::2]
        if views in ("deletion", "both"):
            rate = self.config.view_delete_rate
            a, b = first, second = [ids.gather(1, rows.kept_columns(rate, self.stream + i)) for i in range(2)]
        if views == "both":
            first, second = torch.cat([a[0::4], a[2::4], a[3::4]]), torch.cat([a[1::4], b[2::4], b[3::4]])
            group = torch.cat([documents[0::4], documents[2::4], documents[3::4]])
        return Problem(source=torch.cat([first, second]), group=group.repeat(2), predicts="none")

    def loss(self, predicted, concepts, problem, gather=None, rank=0):
        sets = predicted if self.config.view_similarity == "mean" else concepts
        return losses.contrastive(sets, problem.group, self.config.temperature, gather, rank)

    def floor(self, problem, unigram):
        return math.log(len(problem.source) / 2)


class Diffusion(Objective):
    """Masked diffusion, from one to all tokens of a row are hidden and predicted: an upper bound on -ln p per token.

    MDLM (Sahoo et al. 2024, arXiv:2406.07524) and LLaDA (Nie et al. 2025, arXiv:2502.09992), given the concepts. Of a
    row's N tokens l are hidden, l uniform on 1 ... N, all subsets of that size equally likely (special tokens too:
    choosing them last would break the bound). A hidden token has weight N / l; the sum is divided by B * N. Rows come
    in mirrored pairs with l and N + 1 - l hidden tokens, so every batch scores M = B (N + 1) / 2 positions: one static
    shape, and low variance.
    """

    def __init__(self, config, stream=0):
        super().__init__(config, stream)
        self.adjacent_rows = config.diffusion_source == "next"
        self.group = 4 if self.adjacent_rows else 2

    def problem(self, rows):
        source = targets = rows.ids
        numbers, order = rows.noise.rows, rows.noise.order(self.stream, torch.zeros_like(rows.ids, dtype=torch.bool))
        if self.adjacent_rows:
            (source, targets), order, numbers = rows.spans(), order[1::2], numbers[1::2] // 2
        B, N = targets.shape
        columns = torch.arange(N, device=targets.device)[None]
        least = max(1, round(self.config.t_min * N))
        level = least + rows.noise.levels(self.stream, numbers, N + 1 - least)[:, None]  # [B, 1] how many are hidden
        hidden = torch.zeros_like(targets, dtype=torch.bool).scatter(1, order, columns < level)
        scored = hidden.flatten().nonzero_static(size=B // 2 * (N + least)).squeeze(1)  # [M]
        by_level = self.config.diffusion_weight == "elbo"
        return Problem(
            source=source,
            targets=targets,
            query_ids=targets.masked_fill(hidden, rows.vocab.mask_id),
            scored=scored,
            weights=(1 / (B * level)).expand(B, N).flatten().index_select(0, scored) if by_level else None,
            t=level[:, 0] / N,
            smoothing=self.config.label_smoothing,
            continues=self.adjacent_rows,
        )

    def reported(self):
        """The bound itself, whatever the weights in training."""
        plain = {"objective": "diffusion", "t_min": 0.0, "diffusion_weight": "elbo", "label_smoothing": 0.0}
        return {"elbo": Diffusion(dataclasses.replace(self.config, **plain))}


class Prefix(Objective):
    """Prefix to suffix, the first 30 to 50 % of a row are read and the rest is predicted, or the next span whole.

    What is predicted was not read, so copying does not help (SODA, Hudson et al. 2024, arXiv:2311.17901; in text
    Skip-Thought, Kiros et al. 2015, arXiv:1506.06726). All rows of a step are split at one share, and steps take those
    of `prefix_rate` in turn: each is one static shape per row length. Positions of the suffix start at 0.
    """

    one_document = True

    def __init__(self, config, stream=0):
        super().__init__(config, stream)
        self.adjacent_rows = config.prefix_source == "next"
        self.group, self.shape_count = (2, 1) if self.adjacent_rows else (1, len(config.prefix_rate))

    def problem(self, rows):
        ids, rates = rows.ids, self.config.prefix_rate
        if self.adjacent_rows:
            source, targets = rows.spans()
        else:
            split = count(rates[rows.noise.shape_index % len(rates)], ids.shape[1])
            source, targets = ids[:, :split], ids[:, split:]
        return Problem(source, targets=targets, continues=True)


class NextConcept(Objective):
    """Next-concept prediction, the concepts of the document's next span, or the mean vector of its tokens.

    LCM (Barrault et al. 2024, arXiv:2412.08821), by regression and with a trained encoder. The key `next_target`:
    concepts: a predictor's output [B, C, H] against the same encoder's concepts of the next span, without a gradient
    there (as in SimSiam, Chen & He 2021, arXiv:2011.10566).
    spectral: a linear of the pooled concepts against the idf-weighted mean of the next span's frozen token vectors
    (lab/data/spectral.py).
    The loss is losses.centred_cosine over the rows of one forward, so it depends on micro_batch. With concepts as
    targets the encoder may collapse to what is easy to predict: the loss falls, and rank_slot_centred, rank_pooled and
    input_share fall with it. Hence it is meant for sums, such as bow + 2*nextconcept.
    """

    predicts = "concepts"
    group, one_document, adjacent_rows, centers_targets = 2, True, True, True
    floor_name, unit = "chance", "1 - cosine"

    def __init__(self, config, stream=0):
        super().__init__(config, stream)
        if config.next_target == "spectral":
            self.predicts, self.needs_idf, self.needs_token_vectors = "vectors", True, True

    def problem(self, rows):
        source, targets = rows.spans()
        if self.predicts == "concepts":
            return Problem(source, targets=targets, predicts="concepts")
        weights, vectors = rows.idf_weights(targets), rows.vocab.vectors
        return Problem(source, targets=targets, weights=weights, vectors=vectors, predicts="vectors")

    def floor(self, problem, unigram):
        return 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Sums


class Objectives:
    """All parts of `objective = "tsdae + 0.1*contrastive"`, and the strictest of their requirements."""

    def __init__(self, config: ObjectiveConfig):
        """ValueError where the sum cannot be parsed. Of a pair the last value is used."""
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
            self.parts.append(OBJECTIVES[match[2]](config, stream=8 * len(self.parts)))
        self.names = [part.name for part in self.parts]
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"objective {config.objective!r} names a part twice; give it one weight")
        self.predicts = tuple(sorted({part.predicts for part in self.parts}))  # what a model is built for
        self.group = math.lcm(*(part.group for part in self.parts))
        self.shape_count = math.lcm(*(part.shape_count for part in self.parts))
        self.one_document = any(part.one_document for part in self.parts)
        self.adjacent_rows = any(part.adjacent_rows for part in self.parts)
        self.in_batch_negatives = any(part.in_batch_negatives for part in self.parts)
        self.centers_targets = any(part.centers_targets for part in self.parts)
        self.unit = " + ".join(dict.fromkeys(part.unit for part in self.parts))
        self.needs_idf = any(part.needs_idf for part in self.parts)
        self.needs_word_starts = any(part.needs_word_starts for part in self.parts)
        self.needs_collocations = any(part.needs_collocations for part in self.parts)
        self.needs_token_vectors = any(part.needs_token_vectors for part in self.parts)

    @cached_property
    def uses(self) -> set[str]:
        """The keys that the parts read, recorded while they make problems of a few rows and compute their losses."""
        config, read = recorded(self.config.plateau())
        for part in self.parts:
            own, rows = type(part)(config, part.stream), blank_rows(2 * self.group, 16)
            problem = own.problem(rows)
            own.loss(torch.zeros(len(problem.source), 2), torch.zeros(len(problem.source), 2, 2), problem)
        return {"objective"} | (read & {field.name for field in dataclasses.fields(config)})

    def plateaus(self) -> list["Objectives"]:
        """The objectives of each of PLATEAUS equal parts of training; only one where no pair is used."""
        scheduled = any(isinstance(getattr(self.config, key), tuple) for key in self.uses.intersection(SCHEDULED))
        return [Objectives(self.config.plateau(i)) for i in range(PLATEAUS)] if scheduled else [self]

    def problems(self, rows: Rows) -> list[Problem]:  # one per part
        return [part.whole_problem(rows) for part in self.parts]

    def losses(self, predicted, concepts, problems, gather=None, rank=0) -> list[Tensor]:
        """One loss per part, from what the model returns for the problems; see Objective.loss."""
        columns = zip(self.parts, predicted, concepts, problems, strict=True)
        return [part.loss(p, c, problem, gather, rank) for part, p, c, problem in columns]

    def total(self, values):
        """The weighted sum of one number (or tensor) per part."""
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))
