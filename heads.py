"""
Fine-tuning heads: one class each, from the texts of a task to outputs [B, K] through a pretrained model.

A text is (ids [B, S], mask [B, S], True: a token, not padding). Heads read one text: a sentence, or a pair joined by a
separator; those with `apart` encode the two sentences of a pair separately. K is 1 for scores, else the number of
classes. C concepts of width H.

To add one: a subclass of `Head`. It is found by its name, in `--head=...` and in `--help`.
"""

import re

import torch
import torch.nn as nn
import torch.nn.functional as F

from layers import CrossAttention, FeedForward, SelfAttention, init_weights, keys_values, norm
from problem import Problem

HEADS: dict[str, type["Head"]] = {}  # name -> class


class Head(nn.Module):
    """A linear of the vector that `pool` makes of a text."""

    apart = False  # encodes the sentences of a pair separately
    frozen = False  # the pretrained model is not trained
    keeps_decoder = False  # uses the pretrained decoder
    linear = True  # ends in a linear; else in a cosine

    def __init_subclass__(cls):
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        HEADS[cls.name] = cls

    def __init__(self, config, outputs: int, texts: int = 1, dropout: float = 0.1, seed: int = 0):
        """config: the model's; texts: how many `forward` takes, 2 for a pair that is encoded apart."""
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        width = self.build(config) or config.hidden
        self.out = None
        if self.linear:
            self.out = nn.Linear(width * (4 if texts == 2 else 1), outputs)
            self.out.init_scale = 0.1  # outputs begin near 0
        init_weights(self, "fan_in", seed)

    def build(self, config) -> int | None:
        """Builds its modules; returns the width of `pool`'s result, if that is not H."""

    def pool(self, model, ids, mask):
        """-> [B, width]"""
        raise NotImplementedError

    def forward(self, model, *texts):
        """texts: one (ids, mask), or two -> outputs [B, K]. Two become [u; v; |u - v|; u v] (Mou et al. 2016)."""
        pooled = [self.pool(model, *text) for text in texts]
        if len(pooled) == 2:
            u, v = pooled
            pooled = [u, v, (u - v).abs(), u * v]
        return self.out(self.dropout(torch.cat(pooled, -1)))


class ClsQuery(Head):
    """One learned query reads the concepts by cross-attention and an FFN."""

    queries = 1

    def build(self, config):
        self.query = nn.Parameter(torch.empty(self.queries, config.hidden))
        self.cross, self.ffn = CrossAttention(config, config.hidden), FeedForward(config, gated=False)
        self.norm = norm(config.hidden, config)
        return self.queries * config.hidden

    def pool(self, model, ids, mask):
        ((k, v),) = keys_values(model.encode(ids, mask=mask), [self.cross.kv], self.cross.heads)
        return self.norm(self.ffn(self.cross(self.query[None], k, v))).flatten(1)


class MultiQuery(ClsQuery):
    """As cls_query with four queries, concatenated."""

    queries = 4


class AttentionPool(Head):
    """Attention pooling: the mean of the concepts, weighted by a softmax of a learned score of each."""

    def build(self, config):
        self.score, self.norm = nn.Linear(config.hidden, 1, bias=False), norm(config.hidden, config)

    def pool(self, model, ids, mask):
        concepts = model.encode(ids, mask=mask)  # [B, C, H]
        return self.norm((self.score(concepts).softmax(1) * concepts).sum(1))


class SelfAttentionPool(Head):
    """The mean of the concepts after one more layer of self-attention."""

    def build(self, config):
        self.attention, self.norm = SelfAttention(config), norm(config.hidden, config)

    def pool(self, model, ids, mask):
        return self.norm(self.attention(model.encode(ids, mask=mask)).mean(1))


class SequenceWeighted(Head):
    """Each position is a learned mixture of the concepts, then a linear and GELU; the mean over positions."""

    def build(self, config):
        self.mixture = nn.Embedding(config.max_length, config.concepts)
        self.norm, self.dense = norm(config.hidden, config), nn.Linear(config.hidden, config.hidden)

    def pool(self, model, ids, mask):
        concepts = model.encode(ids, mask=mask)
        share = self.mixture.weight[: ids.shape[1], : concepts.shape[1]].softmax(-1)  # [S, C]
        x = self.dropout(F.gelu(self.dense(self.norm(share @ concepts))))
        return mean_over(x, mask)


class ViaDecoder(Head):
    """The mean of the pretrained decoder's hidden states over the text's positions."""

    keeps_decoder = True

    def build(self, config):
        self.norm = norm(config.hidden, config)

    def pool(self, model, ids, mask):
        pos = torch.arange(ids.shape[1], device=ids.device)[None]
        problem = Problem(source=ids, targets=ids, query_pos=pos, query_ids=ids)
        x = model.decoder(model.encode(ids, mask=mask), problem, model.embed_visible)
        return mean_over(self.norm(x.expand(len(ids), -1, -1)), mask)


class Pair(AttentionPool):
    """As attention_pool, with the sentences of a pair encoded separately."""

    apart = True


class Cosine(Head):
    """The cosine of the sentences' pooled concepts; only the encoder is trained."""

    apart, linear = True, False

    def forward(self, model, first, second):
        u, v = (model.embed(*text) for text in (first, second))
        return F.cosine_similarity(u.float(), v.float(), dim=-1)[:, None]


class Linear(Head):
    """A linear probe of the sentences' pooled concepts; the encoder is frozen."""

    apart, frozen = True, True

    def pool(self, model, ids, mask):
        return model.embed(ids, mask)


def mean_over(x, mask):
    """x [B, S, H], mask [B, S] -> the mean of the kept positions [B, H]."""
    keep = mask[..., None].to(x.dtype)
    return (x * keep).sum(1) / keep.sum(1).clamp_min(1)
