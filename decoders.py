"""
Decoders: one class each, from concepts [B, C, H] to one hidden state a scored position [B, K, H].

To add one: a subclass of `Decoder`. It is found by its name in lower case, in `decoder = "..."` and in `--help`.
"""

import torch.nn as nn
import torch.nn.functional as F

from layers import CrossAttention, FeedForward, keys_values, linear, norm
from objectives import Problem

DECODERS: dict[str, type["Decoder"]] = {}  # name -> class


class Decoder(nn.Module):
    uses: frozenset | set = frozenset()  # keys of ModelConfig that it reads, besides those that ConceptModel reads

    def __init_subclass__(cls):
        DECODERS[cls.__name__.lower()] = cls

    def forward(self, concepts, problem: Problem, embed):
        """concepts [B, C, H], a problem that predicts positions -> hidden [B, K, H] at its scored positions. embed: ids
        -> their embeddings [..., T]; of None that of [MASK], [1, 1, T]."""
        raise NotImplementedError


def scored_positions(problem: Problem):
    """The positions to be predicted, [1|B, K], and the ids that may be seen there, [B, K] or None."""
    pos, ids, scored = problem.query_pos, problem.query_ids, problem.scored
    if scored is not None:
        pos = pos.expand(scored.shape[0], -1).gather(1, scored)
        ids = None if ids is None else ids.gather(1, scored)
    return pos, ids


class Posonly(Decoder):
    """One learned query a position reads the concepts.

    Perceiver IO, arXiv:2107.14795.

    position -> [CrossAttention to the concepts -> FeedForward] x decoder_layers -> hidden
    """

    uses = {"decoder_layers", "heads", "intermediate"}

    def __init__(self, config):
        super().__init__()
        H, layers = config.hidden, range(config.decoder_layers)
        self.heads = config.heads
        self.positions = nn.Embedding(config.max_length, H)
        self.cross = nn.ModuleList([CrossAttention(config, H) for _ in layers])
        self.ffns = nn.ModuleList([FeedForward(config, gated=not config.seeds_faithful) for _ in layers])

    def queries(self, problem, embed):
        """[1|B, K, H]"""
        return self.positions(scored_positions(problem)[0])

    def forward(self, concepts, problem, embed):
        x = self.queries(problem, embed)
        pairs = keys_values(concepts, [cross.kv for cross in self.cross], self.heads)
        for cross, ffn, (k, v) in zip(self.cross, self.ffns, pairs, strict=True):
            x = ffn(cross(x, k, v))
        return x


class Input(Posonly):
    """As posonly, with the token that may be seen at the position ([MASK], or what a mask left) in the query.

    position + token -> [CrossAttention to the concepts -> FeedForward] x decoder_layers -> hidden
    """

    def __init__(self, config):
        super().__init__(config)
        H, T = config.hidden, config.token_width
        self.widen = linear(T, H, config) if T != H else None

    def queries(self, problem, embed):
        pos, ids = scored_positions(problem)
        tokens = embed(ids)
        return self.positions(pos) + (tokens if self.widen is None else self.widen(tokens))


class Weighted(Decoder):
    """Each position is a fixed, learned mixture of the concepts, whatever they hold.

    softmax(mixture[position]) @ concepts -> norm -> linear -> GELU -> hidden
    """

    def __init__(self, config):
        super().__init__()
        H = config.hidden
        self.mixture = nn.Embedding(config.max_length, config.concepts)
        self.norm = norm(H, config)
        self.dense = linear(H, H, config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, concepts, problem, embed):
        share = self.mixture(scored_positions(problem)[0]).softmax(-1)  # [1|B, K, C]
        return self.dropout(F.gelu(self.dense(self.norm(share @ concepts))))
