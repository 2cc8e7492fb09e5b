"""The concept encoder: N tokens are read into C concept vectors, and text is said again from those alone.

    encode   ids [B, S]      -> concepts [B, C, H]     cross-attention of C learned slots to the tokens, O(C S)
    decode   concepts        -> hidden [B, K, width]   one query per scored position, cross-attention to the concepts
    loss     hidden, targets -> nats                   a vocabulary head, tied to the token embedding

B rows, S source tokens, C concepts, H width of a concept, T width of a token, h heads of width d = H / h, L layers,
V vocabulary, K scored positions. What is read and what must be said stands in a `Problem` (objectives.py); the model
never knows which objective made it. Structure: Perceiver (Jaegle et al. 2021, arXiv:2103.03206) and Perceiver IO
(arXiv:2107.14795), with the tokens read again in each layer.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import losses
from objectives import Problem


@dataclass
class ModelConfig:
    encoder: Annotated[Literal["perceiver"], "how tokens become concepts"] = "perceiver"
    decoder: Annotated[
        Literal["input", "posonly", "weighted", "bag", "none"],
        "how concepts become tokens: queries of token + position, of position alone, or a learned mixture of concepts; "
        "bag: their mean says a bag of words (bow alone); none: not at all (contrastive alone)",
    ] = "posonly"
    layers: Annotated[int, "encoder layers; each reads the tokens, mixes the concepts, and has a gated FFN"] = 6
    decoder_layers: Annotated[int, "decoder blocks of cross-attention and FFN (input, posonly)"] = 1
    hidden: Annotated[int, "width of a concept"] = 512
    heads: Annotated[int, "attention heads"] = 8
    intermediate: Annotated[int, "inner width of the FFNs"] = 2048
    concepts: Annotated[int, "number of concepts"] = 128
    token_dim: Annotated[int, "width of the token embeddings (0: hidden)"] = 0
    token_position: Annotated[Literal["learned", "rope"], "positions the encoder sees: added to tokens, or rotary"] = (
        "learned"
    )
    concept_position: Annotated[Literal["none", "learned", "sinusoidal"], "positions added to the slots"] = "none"
    max_length: Annotated[int, "longest row: size of the learned position tables"] = 512
    dropout: Annotated[float, "dropout of embeddings, attention weights and inner FFN states"] = 0.0
    tied: Annotated[bool, "the vocabulary head shares the token embedding"] = True
    init: Annotated[
        Literal["fan_in", "fan_in_positions", "fan_in_depth", "gpt2"],
        "fan_in: unit-scale embeddings, linears N(0, 1/fan_in); fan_in_positions: the encoder's positions at std 0.1; "
        "fan_in_depth: residual outputs scaled by depth; gpt2: that with std 0.02 everywhere",
    ] = "fan_in_positions"
    seeds_faithful: Annotated[
        bool, "the seeds' structure: biases, un-normalised tokens, un-gated decoder FFN, no gain in the last norm"
    ] = False
    vocab_size: Annotated[int, "size of the vocabulary (0: the data's)"] = 0

    def __post_init__(self):
        for key in ("layers", "decoder_layers", "hidden", "heads", "intermediate", "concepts", "max_length"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} = {getattr(self, key)} is below 1; write {key} = 1 or more")
        if self.vocab_size < 0:
            raise ValueError(f"vocab_size = {self.vocab_size} is negative; write 0 to take the data's")
        if self.hidden % self.heads:
            near = next(n for n in range(self.heads, 0, -1) if self.hidden % n == 0)
            raise ValueError(f"hidden = {self.hidden} does not divide into heads = {self.heads}; write heads = {near}")
        if not 0 <= self.token_dim <= self.hidden:
            raise ValueError(f"token_dim = {self.token_dim} is not within 0 and hidden; write 0 for the same width")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout} is not a share; write a number from 0 to below 1")
        if self.token_position == "rope" and (self.hidden // self.heads) % 2:
            raise ValueError("token_position = 'rope' needs an even hidden / heads; write another number of heads")
        if self.seeds_faithful:
            if self.token_position == "rope":
                raise ValueError("seeds_faithful has absolute positions; write token_position = 'learned'")
            if self.tied and self.decoder == "weighted":
                raise ValueError("seeds_faithful never ties the head of decoder = 'weighted'; write tied = False")
            if self.tied and self.token_width != self.hidden:
                raise ValueError("seeds_faithful ties no head to thin tokens; write tied = False or token_dim = 0")

    @property
    def token_width(self):
        return self.token_dim or self.hidden

    @property
    def decodes(self):
        """Concepts are decoded position by position."""
        return self.decoder not in ("bag", "none")

    def unused(self):
        """Keys the chosen parts do not read -> why; the commands warn where one was given."""
        reasons = {}
        if self.decoder == "weighted":
            reasons["decoder_layers"] = "decoder = 'weighted' is one learned mixture"
        if self.token_position == "rope" and self.init == "fan_in_positions":
            reasons["init"] = "token_position = 'rope' has no positions to draw, so it is as fan_in"
        if not self.decodes:
            reasons["decoder_layers"] = f"decoder = {self.decoder!r} has no layers"
        return reasons


# ---------------------------------------------------------------------------------------------------------------------
# Attention


def plain_products(q, k):
    """On a CPU in bfloat16, up to 128 x 128 scores a head, SDPA's backward takes 4 times as long as plain products.
    (In float32 SDPA is as fast or faster at every size measured, and keeps less.)"""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] * k.shape[2] <= 128 * 128


def attention(q, k, v, mask=None, dropout=0.0):
    """softmax(q k' / sqrt(d)) v: q [B|1, h, Q, d], k and v [B, h, S, d], mask [B, S] (True: keep) -> [B, Q, h d]."""
    if mask is not None:
        mask = mask[:, None, None, :]
    if plain_products(q, k):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, h, Q, S]
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32).to(v.dtype)
        out = F.dropout(weights, dropout) @ v
    else:
        q = q.expand(k.shape[0], -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)


def split_heads(x, parts, heads):
    """x [B, S, parts * H] -> `parts` tensors [B, h, S, d]. By unbind: each slice would fill a full-size gradient."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def keys_values(x, readers, heads, fused=None):
    """Keys and values of x [B, S, W] for several readers, which all read the same x, in one product.

    readers: the `kv` linears (W -> 2H) -> a list of (k, v), each [B, h, S, d]. fused: None: not on the CPU, where one
    by one is as fast and no gradient waits for the last of them.
    """
    if fused is False or (fused is None and x.device.type == "cpu"):
        return [split_heads(kv(x), 2, heads) for kv in readers]
    weight = torch.cat([kv.weight for kv in readers])
    bias = torch.cat([kv.bias for kv in readers]) if readers[0].bias is not None else None
    parts = split_heads(F.linear(x, weight, bias), 2 * len(readers), heads)
    return list(zip(parts[0::2], parts[1::2], strict=True))


def rotate(x, pos):
    """Rotary position embedding (RoFormer, arXiv:2104.09864): x [B, h, S, d] turned by pos [1|B, S]."""
    half = x.shape[-1] // 2
    freq = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = pos[:, None, :, None] * freq  # [1|B, 1, S, d/2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks: pre-norm, residual. `faithful` gives every norm and linear its bias.


def norm(width, config):
    return nn.LayerNorm(width, bias=config.seeds_faithful)


def linear(inputs, outputs, config):
    return nn.Linear(inputs, outputs, bias=config.seeds_faithful)


class Read(nn.Module):
    """z += attention of z to a sequence whose keys and values `keys_values` has already made."""

    def __init__(self, config, width):
        super().__init__()
        H = config.hidden
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = norm(H, config)
        self.q = linear(H, H, config)
        self.kv = linear(width, 2 * H, config)
        self.out = linear(H, H, config)

    def forward(self, z, k, v, mask=None):
        # z [1, Q, H] (equal for all rows: norm and queries are then made once) or [B, Q, H] -> [B, Q, H]
        (q,) = split_heads(self.q(self.norm(z)), 1, self.heads)
        return z + self.out(attention(q, k, v, mask, self.dropout if self.training else 0.0))


class Mix(nn.Module):
    """z += self-attention of z [B, C, H]."""

    def __init__(self, config):
        super().__init__()
        H = config.hidden
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = norm(H, config)
        self.qkv = linear(H, 3 * H, config)
        self.out = linear(H, H, config)

    def forward(self, z):
        q, k, v = split_heads(self.qkv(self.norm(z)), 3, self.heads)
        return z + self.out(attention(q, k, v, None, self.dropout if self.training else 0.0))


RECOMPUTED = 1 << 21  # numbers in an FFN's inner state from which on the CPU makes it again in backward


class FeedForward(nn.Module):
    """z += Wo(GELU(a) * g) with [a; g] = Wi z (GEGLU, arXiv:2002.05202), or without the gate g."""

    def __init__(self, config, gated=True):
        super().__init__()
        H, inner = config.hidden, config.intermediate
        self.gated, self.dropout = gated, nn.Dropout(config.dropout)
        self.norm = norm(H, config)
        self.wi = linear(H, 2 * inner if gated else inner, config)
        self.wo = linear(inner, H, config)

    def forward(self, z):
        # Wi's output is the largest state of a layer. On the CPU a large one is made again in backward: a sixth less
        # memory for 7 % more products. (A GPU has memory for this, and a compiler that keeps what pays.)
        large = z.shape[0] * z.shape[1] * self.wi.out_features >= RECOMPUTED
        if large and z.device.type == "cpu" and torch.is_grad_enabled():
            return z + checkpoint(self.inner, z, use_reentrant=False, preserve_rng_state=self.dropout.p > 0)
        return z + self.inner(z)

    def inner(self, z):
        x = self.wi(self.norm(z))
        if self.gated:
            a, g = x.chunk(2, -1)
            x = F.gelu(a) * g
        else:
            x = F.gelu(x)
        return self.wo(self.dropout(x))


# ---------------------------------------------------------------------------------------------------------------------
# Encoder


class PerceiverLayer(nn.Module):
    """Read the tokens, mix the concepts, think."""

    def __init__(self, config):
        super().__init__()
        token_width = config.hidden if config.seeds_faithful else config.token_width
        self.read = Read(config, token_width)
        self.mix = Mix(config)
        self.ffn = FeedForward(config)

    def forward(self, z, k, v, mask):
        return self.ffn(self.mix(self.read(z, k, v, mask)))


class PerceiverEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        H, T, faithful = config.hidden, config.token_width, config.seeds_faithful
        self.heads = config.heads
        self.tokens = nn.Embedding(config.vocab_size, T)
        self.positions = nn.Embedding(config.max_length, T) if config.token_position == "learned" else None
        self.slots = nn.Parameter(torch.empty(config.concepts, H))
        self.slot_position = config.concept_position
        self.slot_positions = nn.Parameter(torch.empty_like(self.slots)) if self.slot_position == "learned" else None
        self.dropout = nn.Dropout(config.dropout)
        # The seeds widen thin tokens first and read them un-normalised; ours go straight from T to keys and values.
        self.widen = linear(T, H, config) if faithful and T != H else None
        self.norm_tokens = None if faithful else norm(T, config)
        self.layers = nn.ModuleList([PerceiverLayer(config) for _ in range(config.layers)])
        self.norm = norm(H, config)

    def forward(self, ids, pos=None, mask=None):
        """ids [B, S], pos [1|B, S] or None (0 ... S-1), mask [B, S] (True: keep) or None -> concepts [B, C, H]."""
        if pos is None:
            pos = torch.arange(ids.shape[1], device=ids.device)[None]
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions(pos)
        x = self.dropout(x)
        if self.widen is not None:
            x = self.widen(x)
        if self.norm_tokens is not None:
            x = self.norm_tokens(x)
        pairs = keys_values(x, [layer.read.kv for layer in self.layers], self.heads)  # the tokens never change
        z = self.first_concepts()
        for layer, (k, v) in zip(self.layers, pairs, strict=True):
            if self.positions is None:
                k = rotate(k, pos)  # concepts stand nowhere: their queries are not turned
            z = layer(z, k, v, mask)
        return self.norm(z)

    def first_concepts(self):
        """[1, C, H]: the same for every row, until the first read."""
        z = self.slots
        if self.slot_position == "learned":
            z = z + self.slot_positions
        if self.slot_position == "sinusoidal":
            z = z + sinusoid(*z.shape, device=z.device, dtype=z.dtype)
        return z[None]


def sinusoid(length, width, device, dtype):
    """Fixed positions [length, width] of Vaswani et al. 2017: sines in the even columns, cosines in the odd ones."""
    column = torch.arange(width, device=device)
    angle = torch.arange(length, device=device)[:, None] * 10000.0 ** (-(column - column % 2) / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Decoders: (concepts [B, C, H], pos [1|B, K], tokens [1|B, 1|K, T]) -> hidden [B, K, H]. None of them mixes positions,
# so they run at the scored positions only.


class QueryDecoder(nn.Module):
    """One query a position reads the concepts: `posonly` the position's own, `input` adds the token seen there."""

    def __init__(self, config):
        super().__init__()
        H, T = config.hidden, config.token_width
        self.heads, self.sees_tokens = config.heads, config.decoder == "input"
        self.positions = nn.Embedding(config.max_length, H)
        self.widen = linear(T, H, config) if self.sees_tokens and T != H else None
        self.reads = nn.ModuleList([Read(config, H) for _ in range(config.decoder_layers)])
        self.ffns = nn.ModuleList(
            [FeedForward(config, gated=not config.seeds_faithful) for _ in range(config.decoder_layers)]
        )

    def forward(self, concepts, pos, tokens):
        x = self.positions(pos)
        if self.sees_tokens:
            x = x + (tokens if self.widen is None else self.widen(tokens))
        pairs = keys_values(concepts, [read.kv for read in self.reads], self.heads)
        for read, ffn, (k, v) in zip(self.reads, self.ffns, pairs, strict=True):
            x = ffn(read(x, k, v))
        return x


class WeightedDecoder(nn.Module):
    """Each position is a fixed, learned mixture of the concepts, whatever they hold."""

    def __init__(self, config):
        super().__init__()
        H = config.hidden
        self.mixture = nn.Embedding(config.max_length, config.concepts)
        self.norm = norm(H, config)
        self.dense = linear(H, H, config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, concepts, pos, tokens):
        share = self.mixture(pos).softmax(-1)  # [1|B, K, C]
        x = share @ concepts
        return self.dropout(F.gelu(self.dense(self.norm(x))))


# ---------------------------------------------------------------------------------------------------------------------
# The model


class ConceptModel(nn.Module):
    def __init__(self, config: ModelConfig, mask_id: int = 0):
        super().__init__()
        self.config, self.mask_id = config, mask_id
        H, T, V = config.hidden, config.token_width, config.vocab_size
        self.encoder = PerceiverEncoder(config)
        # Only what the objective trains is there: DDP waits for the gradient of every parameter.
        decoders = {"input": QueryDecoder, "posonly": QueryDecoder, "weighted": WeightedDecoder}
        self.decoder = decoders[config.decoder](config) if config.decodes else None
        # Without a norm here the initial loss is up to 2.9 nats too high. The seeds have none: no parameters there.
        final_norm = nn.LayerNorm(H, elementwise_affine=False) if config.seeds_faithful else norm(H, config)
        self.norm = final_norm if config.decodes else None
        # Thin tokens: the tied head is factorised, H -> T -> V.
        says = config.decoder != "none"
        self.narrow = nn.Linear(H, T, bias=False) if says and config.tied and T != H else None
        self.head = nn.Linear(H, V, bias=False) if says and not config.tied else None
        # Unit-scale embeddings would give logits of size sqrt(T).
        self.logit_scale = T**-0.5 if config.tied and config.init != "gpt2" else 1.0
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        config, init, gpt2 = self.config, self.config.init, self.config.init == "gpt2"
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(std=0.02 if gpt2 else 1.0)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(std=0.02 if gpt2 else module.in_features**-0.5)
                if module.bias is not None:
                    module.bias.zero_()
        # [MASK] is small: `input` makes the queries of hidden positions from it, and a tied head would answer [MASK]
        # everywhere (2.8 nats more at step 0). Not zero, so that all that reads it learns from the first step on.
        self.encoder.tokens.weight[self.mask_id] *= config.token_width**-0.5
        slots = [p for p in (self.encoder.slots, self.encoder.slot_positions) if p is not None]
        for p in slots:  # slots and their positions are of unit scale together
            p.normal_(std=0.02 if gpt2 else 1.0 if config.concept_position == "none" else 0.5**0.5)
        if self.encoder.norm_tokens is not None and not gpt2:
            # The scale of token + unit position: reads are sharper, with those the input's share is 3 times as high.
            self.encoder.norm_tokens.weight.fill_(2**0.5)
        if init == "fan_in_positions" and self.encoder.positions is not None:  # what a token is outweighs where it is
            self.encoder.positions.weight.mul_(0.1)
        if init in ("gpt2", "fan_in_depth"):  # outputs into the residual stream: its size does not grow with depth
            branches = [(self.encoder, 3 * config.layers)]
            branches += [(self.decoder, 2 * config.decoder_layers)] if config.decodes else []
            for part, count in branches:
                for name, weight in part.named_parameters():
                    if name.endswith(("out.weight", "wo.weight")):
                        weight.mul_(count**-0.5)

    def forward(self, *problems: Problem):
        """(the loss of each, the concepts of each): the one entry for training, through DDP and torch.compile. The loss
        of a problem in which nothing is said is None: it is a matter of all ranks' concepts (losses.contrastive)."""
        concepts = tuple(self.encode(p.source, p.source_pos) for p in problems)
        return tuple(self.loss(c, p) for c, p in zip(concepts, problems, strict=True)), concepts

    def encode(self, ids, pos=None, mask=None):
        """ids [B, S], pos [1|B, S] (None: 0 ... S-1), mask [B, S] (True: keep) -> concepts [B, C, H]."""
        return self.encoder(ids, pos, mask)

    def decode(self, concepts, problem: Problem):
        """Hidden states for the head at the scored positions (None: all): [B, K, T if tied else H]; for a bag
        the normalised mean of the concepts, [B, 1, T or H]."""
        if problem.query_pos is None:
            return self.to_head(F.rms_norm(concepts.mean(1, keepdim=True), (concepts.shape[-1],)))
        pos, ids, scored = problem.query_pos, problem.query_ids, problem.scored
        if ids is None:
            ids = torch.full((1, 1), self.mask_id, device=concepts.device)  # nothing may be seen: [MASK] everywhere
        elif scored is not None:
            ids = ids.gather(1, scored)
        if scored is not None:
            pos = pos.expand(scored.shape[0], -1).gather(1, scored)
        x = self.decoder(concepts, pos, self.encoder.tokens(ids))
        return self.to_head(self.norm(x))

    def to_head(self, x):
        return x if self.narrow is None else self.narrow(x)

    def loss(self, concepts, problem: Problem):
        """Mean cross-entropy in nats of the scored targets (or their sum weighted by problem.weights); None where
        nothing is said."""
        if problem.targets is None:
            return None
        hidden = self.decode(concepts, problem).flatten(0, 1) * self.logit_scale
        targets, weights = problem.targets, problem.weights
        if problem.scored is not None:
            targets = targets.gather(1, problem.scored)
        if problem.query_pos is not None:  # one softmax a token, else one a row
            targets, weights = targets.flatten(), None if weights is None else weights.flatten()
        return losses.cross_entropy(hidden, self.head_weight(), targets, weights=weights)

    def logits(self, hidden):
        """hidden as `decode` returns it, [..., width] -> [..., V]."""
        return F.linear(hidden * self.logit_scale, self.head_weight())

    def head_weight(self):
        return self.encoder.tokens.weight if self.head is None else self.head.weight

    def embed(self, ids, mask=None):
        """One vector a text: the mean of its concepts, [B, H]."""
        return self.encode(ids, mask=mask).mean(1)

    @torch.no_grad()
    def generate(self, concepts, length):
        """The likeliest token at each of `length` positions, from concepts [B, C, H] alone: ids [B, length]."""
        pos = torch.arange(length, device=concepts.device)[None]
        hidden = self.decode(concepts, Problem(source=pos, query_pos=pos))
        hidden = hidden.expand(concepts.shape[0], -1, -1)
        return torch.stack([self.logits(row).argmax(-1) for row in hidden])  # one row's logits at a time

    def num_parameters(self):
        return sum(p.numel() for p in self.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Cost


def flops(config: ModelConfig, problem: Problem):
    """Forward FLOPs (a multiply and an add are 2) of every matrix product, by component, for the problem's shapes.

    Training is 3 times the sum: each product has two of its size in backward. A counter sees something else in two
    places: the head takes its two in its forward (losses.py), and on the CPU backward makes the first product of large
    FFNs once more. Norms, softmax, GELU and lookups are left out.
    """
    H, T, V, L, C = config.hidden, config.token_width, config.vocab_size, config.layers, config.concepts
    inner, faithful, thin = config.intermediate, config.seeds_faithful, T != H
    B, S = problem.source.shape
    slots = 1 + (L - 1) * B  # the first layer's queries are equal for all rows
    counts = {
        "tokens": 2 * B * S * T * H if thin and faithful else 0,
        "keys_values": 2 * B * S * (H if faithful else T) * 2 * H * L,
        "read": 2 * C * H * H * (slots + L * B) + 4 * L * B * C * S * H,
        "mix": L * B * (8 * C * H * H + 4 * C * C * H),
        "ffn": 6 * L * B * C * H * inner,
    }
    if problem.targets is None:  # nothing is said
        return counts
    if problem.query_pos is None:
        K, counts["decoder"] = 1, 0
    else:
        K = problem.query_pos.shape[1] if problem.scored is None else problem.scored.shape[1]
        counts["decoder"] = decoder_flops(config, problem, K)
    counts["head"] = 2 * B * K * ((T if config.tied else H) * V + (H * T if config.tied and thin else 0))
    return counts


def decoder_flops(config: ModelConfig, problem: Problem, K):
    B, C, H, T = len(problem.source), config.concepts, config.hidden, config.token_width
    if config.decoder == "weighted":
        return 2 * B * K * C * H + 2 * B * K * H * H
    D, sees = config.decoder_layers, config.decoder == "input"
    same = problem.scored is None and problem.query_pos.shape[0] == 1 and not (sees and problem.query_ids is not None)
    queries = (1 if same else B) + (D - 1) * B  # those that are equal for all rows are made once
    ffn = 4 if config.seeds_faithful else 6
    total = 2 * K * H * H * (queries + D * B)
    total += D * B * (4 * C * H * H + 4 * K * C * H + ffn * K * H * config.intermediate)
    if sees and T != H:
        total += 2 * T * H * (1 if problem.query_ids is None else B * K)
    return total
