"""
Decoders: one class each, from concepts [B, C, H] to one hidden state a scored position [B, K, H].

To add one: a subclass of `Decoder`. It is found by its name in lower case, in `decoder = "..."` and in `--help`.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

from layers import (
    CrossAttention,
    FeedForward,
    SelfAttention,
    TransformerLayer,
    ZeroLinear,
    keys_values,
    linear,
    norm,
    projection,
)
from problem import Problem

DECODERS: dict[str, type["Decoder"]] = {}  # name -> class


class Decoder(nn.Module):
    def __init_subclass__(cls):
        DECODERS[cls.__name__.lower()] = cls

    reads_ahead = False  # a position sees later ones of the span, padding included
    generate = None  # (concepts, length, embed, predict, continues) -> ids, where that takes more than one pass

    def forward(self, concepts, problem: Problem, embed):
        """concepts [B, C, H], a problem that predicts positions (scored not flat) -> hidden [B, K, H] there. embed: ids
        (and a table other than the encoder's) -> embeddings [..., T]; None -> that of [MASK], [1, 1, T]."""
        raise NotImplementedError


def scored_positions(problem: Problem):
    """The scored positions [1|B, K], and the ids that a decoder may see there, [B, K] or None."""
    pos, ids, scored = problem.query_pos, problem.query_ids, problem.scored
    if scored is not None:
        pos = pos.expand(scored.shape[0], -1).gather(1, scored)
        ids = None if ids is None else ids.gather(1, scored)
    return pos, ids


class Posonly(Decoder):
    """One learned query per position reads the concepts.

    Perceiver IO, arXiv:2107.14795.

    position -> [CrossAttention to the concepts -> FeedForward] x decoder_layers -> hidden
    """

    def __init__(self, config):
        super().__init__()
        H, layers = config.hidden, range(config.decoder_layers)
        self.heads = config.heads
        self.positions = nn.Embedding(config.max_length, H)
        self.cross = nn.ModuleList([CrossAttention(config, H, ordered=True) for _ in layers])
        self.ffns = nn.ModuleList([self.make_ffn(config) for _ in layers])

    def make_ffn(self, config):
        return FeedForward(config, gated=not config.original_structure)

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
    """As posonly, with the position's visible token, or [MASK], added to the query.

    position + token -> [CrossAttention to the concepts -> FeedForward] x decoder_layers -> hidden
    """

    def __init__(self, config):
        super().__init__(config)
        H, T = config.hidden, config.token_width
        self.widen = projection(T, H, config)

    def queries(self, problem, embed):
        pos, ids = scored_positions(problem)
        return self.positions(pos) + self.widen(embed(ids))


class Weighted(Decoder):
    """Each position is a learned mixture of the concepts, the same for all texts.

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
        mixture = self.mixture(scored_positions(problem)[0])[..., : concepts.shape[1]]
        share = mixture.softmax(-1)  # [1|B, K, C]
        return self.dropout(F.gelu(self.dense(self.norm(share @ concepts))))


class Diffusion(Input):
    """As input, with blocks conditioned on the share of the span that is predicted.

    AdaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748): scale, shift and gate of each sublayer are computed from that
    share t, embedded as 0 ... 1000, and start as the identity. The gate of the cross-attention stays between 0.5 and
    1.5, since the concepts are all that the model has. `timestep = False` leaves this out.

    position + token -> [(local TransformerLayer) -> CrossAttention to the concepts -> FeedForward] x decoder_layers
    """

    def __init__(self, config):
        super().__init__(config)
        H, T, layers, faithful = (
            config.hidden,
            config.token_width,
            range(config.decoder_layers),
            config.original_structure,
        )
        self.tokens = nn.Embedding(config.vocab_size, T) if faithful else None  # the original has its own
        self.norm = norm(H, config) if faithful else None
        window = config.decoder_window
        self.reads_ahead = window > 0
        self.local = nn.ModuleList([TransformerLayer(config, window=window) for _ in layers if window])
        self.time, self.modulations, self.exact = None, None, config.original_exact
        if config.timestep:
            for block in (*self.cross, *self.ffns):
                block.norm = nn.LayerNorm(H, elementwise_affine=faithful)
            self.time = nn.Sequential(nn.Linear(H, 2 * H), nn.SiLU(), nn.Linear(2 * H, H))
            self.modulations = nn.ModuleList([ZeroLinear(H, 6 * H) for _ in layers])

    def make_ffn(self, config):
        return FeedForward(config)

    def forward(self, concepts, problem, embed):
        if self.tokens is not None:
            embed = partial(embed, table=self.tokens)
        # local layers need the whole span: visible tokens inform hidden ones
        x = self.queries(replace(problem, scored=None) if self.local else problem, embed)
        pairs = keys_values(concepts, [cross.kv for cross in self.cross], self.heads)
        scored, total = problem.scored, problem.query_pos.shape[1]
        share = 1.0 if scored is None else scored.shape[1] / total
        modulations = self.modulation(share if problem.t is None else problem.t[:, None, None], x)
        for i, (cross, ffn, (k, v)) in enumerate(zip(self.cross, self.ffns, pairs, strict=True)):
            if self.local:
                x = self.local[i](x)
            if self.time is None:
                x = ffn(cross(x, k, v))
                continue
            scale, shift, gate, scale2, shift2, gate2 = modulations[i].chunk(6, -1)
            gate = gate if self.exact else 1 + gate.tanh() / 2
            x = x + gate * cross.update(cross.norm(x) * (1 + scale) + shift, k, v)
            x = x + gate2 * ffn.update(ffn.norm(x) * (1 + scale2) + shift2)
        x = x if self.norm is None else self.norm(x)
        return problem.at_scored(x) if self.local else x

    def modulation(self, share, x):
        """share: of the span that is predicted, a number or [B, 1, 1] -> [1|B, 1, 6 H] for each block."""
        if self.time is None:
            return []
        half = x.shape[-1] // 2
        angles = (1 if self.exact else 1000) * share * 10000.0 ** (-torch.arange(half, device=x.device) / half)
        time = F.pad(torch.cat([angles.sin(), angles.cos()], -1), (0, x.shape[-1] - 2 * half))
        time = self.time(time.to(x.dtype).view(-1, 1, x.shape[-1]))
        time = time if self.exact else F.silu(time)
        return [modulation(time) for modulation in self.modulations]


class CausalLayer(nn.Module):
    """x -> causal SelfAttention -> CrossAttention to the concepts -> FeedForward -> x"""

    def __init__(self, config):
        super().__init__()
        self.self_attention = SelfAttention(config, causal=True)
        self.cross = CrossAttention(config, config.hidden, ordered=True)
        self.ffn = FeedForward(config)

    def forward(self, x, k, v, past=None):
        return self.ffn(self.cross(self.self_attention(x, past=past), k, v))


class Causal(Decoder):
    """Each token is predicted from the concepts and from the tokens before it (teacher forcing).

    With `word_dropout` this share of them is replaced by [MASK], which makes it use the concepts (Bowman et al. 2016,
    arXiv:1511.06349).

    position + token before -> [CausalLayer] x decoder_layers -> hidden
    """

    def __init__(self, config):
        super().__init__()
        H, T = config.hidden, config.token_width
        self.heads, self.word_dropout = config.heads, config.word_dropout
        self.positions = nn.Embedding(config.max_length, H)
        self.widen = projection(T, H, config)
        self.layers = nn.ModuleList([CausalLayer(config) for _ in range(config.decoder_layers)])

    def run(self, pairs, tokens, pos, pasts=None):
        """tokens [B, S, T], each before its position in pos [1|B, S] -> hidden [B, S, H]. pairs: keys and values of the
        concepts for each layer; pasts: each layer's cache, see SelfAttention."""
        x = self.positions(pos) + self.widen(tokens)
        for layer, (k, v), past in zip(self.layers, pairs, pasts or [None] * len(pairs), strict=True):
            x = layer(x, k, v, past)
        return x

    def read(self, concepts):
        return keys_values(concepts, [layer.cross.kv for layer in self.layers], self.heads)

    def forward(self, concepts, problem, embed):
        mask = embed(None)  # [1, 1, T], also the start token
        before = embed(problem.targets[:, :-1])
        if self.training and self.word_dropout:
            dropped = torch.rand(before.shape[:2], device=before.device) < self.word_dropout
            before = torch.where(dropped[..., None], mask, before)
        tokens = torch.cat([mask.expand(len(before), -1, -1), before], 1)
        return problem.at_scored(self.run(self.read(concepts), tokens, problem.query_pos))

    def generate(self, concepts, length, embed, predict, continues=False):
        """Autoregressive, with cached keys and values: ids [B, length]. predict: hidden [B, 1, H] -> ids [B, 1]."""
        tokens, ids = embed(None).expand(len(concepts), -1, -1), []
        pairs, pasts = self.read(concepts), [[] for _ in self.layers]
        for i in range(length):
            hidden = self.run(pairs, tokens, torch.full((1, 1), i, device=concepts.device), pasts)
            ids.append(predict(hidden))
            tokens = embed(ids[-1])
        return torch.cat(ids, 1)


class Backbone(Decoder):
    """The pretrained model of `backbone` with all its layers, frozen: concepts are C vectors before its tokens.

    As ICAE (Ge et al. 2024, arXiv:2307.06945) and SONAR-LLM (Dragunov et al. 2025, arXiv:2508.05305): the loss flows
    back through it to the concepts. A learned vector behind them says what is predicted: the text that was read, or
    what follows it.

    concepts -> linear -> RMS norm -> vectors; vectors, start, tokens before -> layers of the backbone -> hidden
    """

    def __init__(self, config):
        super().__init__()
        T = config.token_width
        self.project, self.norm = nn.Linear(config.hidden, T, bias=False), nn.RMSNorm(T)
        self.start = nn.Embedding(2, T)

    def attach(self, backbone, unit, logit_scale):
        """backbone: of model.py, which has it as a module of its own; unit: of the embeddings that it reads."""
        self.backbone, self.unit, self.scale = (backbone,), unit, unit / logit_scale

    def run(self, x, pos=None, pasts=None):
        """x [B, S, T] embeddings -> the head's input [B, S, T]."""
        return self.backbone[0](x * self.unit, pos, pasts=pasts)[-1].float() * self.scale

    def prompt(self, concepts, continues):
        """-> [B, C + 1, T]"""
        start = self.start.weight[int(continues)].expand(len(concepts), 1, -1)
        return torch.cat([self.norm(self.project(concepts).to(start.dtype)), start], 1)

    def forward(self, concepts, problem, embed):
        prompt = self.prompt(concepts, problem.continues)
        hidden = self.run(torch.cat([prompt, embed(problem.targets[:, :-1])], 1))
        return problem.at_scored(hidden[:, prompt.shape[1] - 1 :])

    def generate(self, concepts, length, embed, predict, continues=False):
        """Autoregressive, with cached keys and values: ids [B, length]. predict: hidden [B, 1, T] -> ids [B, 1]."""
        x, at, pasts, ids = self.prompt(concepts, continues), 0, [[] for _ in self.backbone[0].layers], []
        for _ in range(length):
            hidden = self.run(x, torch.arange(at, at + x.shape[1], device=x.device)[None], pasts)
            at += x.shape[1]
            ids.append(predict(hidden[:, -1:]))
            x = embed(ids[-1])
        return torch.cat(ids, 1)
