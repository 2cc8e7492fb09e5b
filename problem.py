"""
The input and the output of an objective: clean `Rows` of token ids become a `Problem`. The model sees only the
Problem, and never knows which objective made it.

Notation: B rows, N tokens a row, S tokens read, T tokens of the span to be predicted, K of them scored.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from noise import Noise, count, phrase_starts


@dataclass(frozen=True)
class Vocabulary:
    """size: V; special_ids: all ids that are not text (masking and deletion choose them last). On the device, for the
    objectives that need them: idf [V] float32, inverse document frequency; starts [V] bool, the tokens that start a
    word; phrases [M], sorted hashes of collocations; vectors [V, T] float32, of lab/data/spectral.py; ends [V] bool,
    tokens after which a word starts (None: none)."""

    size: int
    mask_id: int
    special_ids: tuple[int, ...] = ()
    idf: Tensor | None = field(default=None, compare=False)
    starts: Tensor | None = field(default=None, compare=False)
    phrases: Tensor | None = field(default=None, compare=False)
    vectors: Tensor | None = field(default=None, compare=False)
    ends: Tensor | None = field(default=None, compare=False)

    def is_special(self, ids: Tensor) -> Tensor:
        """[B, N] ids -> [B, N] bool. Compares with Python numbers: no copy to the device."""
        special = ids == self.mask_id
        for i in self.special_ids:
            special = special | (ids == i)
        return special

    def text_token(self, bits: Tensor) -> Tensor:
        """Random numbers [B, K] -> ids of text tokens, all equally likely."""
        special = sorted({self.mask_id, *self.special_ids})
        ids = bits % (self.size - len(special))
        for i in special:
            ids = ids + (ids >= i)
        return ids


@dataclass
class Rows:
    """Clean rows of one length, and what an objective needs to corrupt them."""

    ids: Tensor  # [B, N] int64
    noise: Noise
    vocab: Vocabulary
    documents: Tensor | None = None  # [B] the document each row starts in
    made: dict = field(default_factory=dict)  # cache of `survivors` and `spans`

    def survivors(self, rate: float, positions: str, stream: int, unit: str = "token") -> tuple[Tensor, Tensor | None]:
        """The tokens left after deleting exactly round(rate * N) of each row: ids [B, S] and their positions (None: 0
        ... S-1). Parts of a sum that ask for the same get the same tensors, and share one encoder pass."""
        key = rate, positions, unit
        if key not in self.made:
            columns = self.kept_columns(rate, stream, unit)
            kept = columns if positions == "original" else None
            self.made[key] = self.ids.gather(1, columns), kept
        return self.made[key]

    def kept_columns(self, rate: float, stream: int, unit: str = "token") -> Tensor:
        """The columns left after deleting exactly round(rate * N) of each row, ascending: [B, S]."""
        n = self.ids.shape[1]
        k = count(rate, n)
        if unit != "token":
            return self.order(stream, k, unit)[0][:, k:].sort(dim=1).values
        special_first = self.noise.order(stream, ~self.vocab.is_special(self.ids))
        return special_first[:, : n - k].sort(dim=1).values

    def order(
        self, stream: int, take: int, unit: str = "token", span: str = "", longest: int = 10
    ) -> tuple[Tensor, Tensor | None]:
        """A random order of each row's columns [B, N], special tokens last, whose first `take` hold whole units as far
        as possible; and the unit's number of each [B, N] (None where units are tokens). See Noise.order_units."""
        special = self.vocab.is_special(self.ids)
        if unit == "token":
            return self.noise.order(stream, special), None
        starts = self.vocab.starts[self.ids] | special
        ends = special if self.vocab.ends is None else self.vocab.ends[self.ids] | special
        starts = torch.cat([torch.ones_like(special[:, :1]), starts[:, 1:] | ends[:, :-1]], dim=1)
        units = phrase_starts(self.ids, starts, special, self.vocab.phrases) if unit == "pmi" else None
        span = span if unit == "span" else ""
        return self.noise.order_units(stream, starts, special, take, span, longest, units)

    def spans(self) -> tuple[Tensor, Tensor]:
        """Of adjacent rows (2i, 2i + 1) the first, and the second, which follows it in the document: ids [B/2, N] each.
        The same tensors at each call: parts of a sum share one encoder pass."""
        if "spans" not in self.made:
            self.made["spans"] = self.ids[0::2], self.ids[1::2]
        return self.made["spans"]

    def idf_weights(self, tokens: Tensor) -> Tensor:
        """tokens [B, K] -> [B, K] float32, proportional to idf; each row sums to 1/B."""
        weights = self.vocab.idf[tokens]
        return weights / weights.sum(1, keepdim=True).clamp_min(1e-6) / len(tokens)


def blank_rows(count: int, length: int, shape_index: int = 0, size: int = 8, width: int = 1) -> Rows:
    """Placeholder rows, each of its own document, with all that an objective may need, for problems of the right
    shapes. shape_index: see Noise; size: of the vocabulary; width: of its vectors."""
    ids, numbers = torch.ones(count, length, dtype=torch.int64), torch.arange(count)
    starts, vectors = torch.ones(size, dtype=torch.bool), torch.ones(size, width)
    vocab = Vocabulary(size, 0, (), torch.ones(size), starts, ids[0], vectors)
    return Rows(ids, Noise(0, 0, numbers, shape_index), vocab, documents=numbers)


@dataclass
class Problem:
    source: Tensor  # [B, S] ids the encoder reads
    source_pos: Tensor | None = None  # [1|B, S] their positions; None: 0 ... S-1
    targets: Tensor | None = None  # [B, T] the clean span to be predicted, whole and in order; None: nothing is
    query_pos: Tensor | None = None  # [1|B, T] its positions; None: 0 ... T-1 where positions are predicted
    query_ids: Tensor | None = None  # [B, T] what a decoder may see of it ([MASK] where hidden); None: nothing
    scored: Tensor | None = None  # [B, K] columns of T, or [M] flat into B * T; None: all T
    weights: Tensor | None = None  # like scored; they carry the normaliser; None: the mean
    group: Tensor | None = None  # [B] document of two views, rows i and i + B/2, against false negatives
    # What is predicted: each position's token; "pooled": all tokens in one softmax of the pooled concepts; "concepts":
    # the encoder's concepts of the targets; "vectors": the targets' mean token vector; "none".
    predicts: str = "positions"
    vectors: Tensor | None = None  # [V, T] of every token, where they are predicted
    continues: bool = False  # the span is what follows the text that is read
    t: Tensor | None = None  # [B] share of the span that is hidden; None: that which is scored
    smoothing: float = 0.0  # of the targets: losses.cross_entropy
    row_length: int = 0  # tokens of the clean rows; 0: those of the source

    def __post_init__(self):
        if self.query_pos is None and self.targets is not None and self.predicts == "positions":
            self.query_pos = torch.arange(self.targets.shape[1], device=self.targets.device)[None]

    @property
    def flat(self) -> bool:
        """Rows have different numbers of scored positions; decoders run over the whole span."""
        return self.scored is not None and self.scored.ndim == 1

    def at_scored(self, x: Tensor) -> Tensor:
        """x [B, T] or [1|B, T, W] -> its values at the scored positions: [B, K] or [B, K, W]; flat: [1, M] or
        [1, M, W]."""
        if self.scored is None:
            return x
        if self.flat:
            return x.expand(len(self.targets), *x.shape[1:]).flatten(0, 1).index_select(0, self.scored)[None]
        if x.ndim == 2:
            return x.gather(1, self.scored)
        return x.expand(len(self.scored), -1, -1).gather(1, self.scored[..., None].expand(-1, -1, x.shape[-1]))
