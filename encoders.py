"""
Encoders: one class each, from token vectors x [B, S, T] to concepts [B, C, H].

To add one: a subclass of `Encoder`. It is found by its name in snake_case, in `encoder = "..."` and in `--help`.
"""

import re
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from layers import (
    CrossAttention,
    FeedForward,
    ResidualOutput,
    SelfAttention,
    Slots,
    TransformerLayer,
    attention,
    keys_values,
    linear,
    norm,
    projection,
    rotate,
    split_heads,
)

ENCODERS: dict[str, type["Encoder"]] = {}  # name -> class


class Options(NamedTuple):
    """What may differ per call, for the encoders that support it; 0: as configured."""

    concepts: int = 0  # only the first this many (`nested`)
    iterations: int = 0  # of a shared layer


AS_CONFIGURED = Options()


class Encoder(nn.Module):
    options: tuple[str, ...] = ()  # the fields of Options that it supports
    concept_positions = "none", "learned", "sinusoidal", "rope", "cope"  # those that it supports

    def __init_subclass__(cls):
        ENCODERS[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()] = cls

    def forward(self, x, pos, mask=None, options=AS_CONFIGURED):
        """x [B, S, T]: token embeddings with learned positions and dropout applied; pos [1|B, S]: positions, for rotary
        ones; mask [B, S] (True: keep; padding comes last) or None; options: of this call -> concepts [B, C, H]."""
        raise NotImplementedError

    @staticmethod
    def check(config):
        """ValueError where this encoder cannot be built from the configuration."""


# ---------------------------------------------------------------------------------------------------------------------
# Latents read tokens, which stay as they are


def token_norm(config):
    """With a gain of sqrt(2), as of token + unit position: attention is sharper, the input share 3 times as high."""
    module = norm(config.token_width, config)
    if config.init != "gpt2":
        nn.init.constant_(module.weight, 2**0.5)
    return module


class PerceiverLayer(nn.Module):
    """
    tokens x (unchanged)
           |  keys, values
    z -> CrossAttention -> SelfAttention -> FeedForward -> z
    """

    def __init__(self, config, width):
        super().__init__()
        self.cross = self.make_cross(config, width)
        self.self_attention = SelfAttention(config, rotary=config.concept_position == "rope")
        self.ffn = FeedForward(config)

    def make_cross(self, config, width):
        return CrossAttention(config, width)

    def forward(self, z, k, v, mask):
        return self.ffn(self.self_attention(self.cross(z, k, v, mask)))


class Perceiver(Encoder):
    """C learned slots read the tokens again in each layer.

    Jaegle et al. 2021, arXiv:2103.03206.

    slots -> [PerceiverLayer] x layers -> norm -> concepts
    """

    options = ("concepts",)

    def __init__(self, config):
        super().__init__()
        H, T, faithful = config.hidden, config.token_width, config.original_structure
        self.config, self.heads, self.rotary = config, config.heads, config.token_position == "rope"
        self.slots = Slots(config)
        # The original project first projects narrow tokens to H and does not normalise them.
        self.widen = projection(T, H if faithful else T, config)
        self.norm_tokens = nn.Identity() if faithful else token_norm(config)
        self.layers = nn.ModuleList(self.make_layers(config, H if faithful else T))
        self.norm = norm(H, config)

    def make_layers(self, config, width):
        return [PerceiverLayer(config, width) for _ in range(config.layers)]

    def read(self, x, pos, readers):
        """Keys and values [B, h, S, d] of the tokens for these CrossAttentions."""
        x = self.norm_tokens(self.widen(x))
        pairs = keys_values(x, [cross.kv for cross in readers], self.heads)  # all layers read the same tokens
        return [(rotate(k, pos), v) for k, v in pairs] if self.rotary else pairs

    def concepts(self, z, options):
        """Latents -> the concepts that decoders see."""
        return self.norm(self.slots.without_registers(z, options.concepts))

    def forward(self, x, pos, mask=None, options=AS_CONFIGURED):
        pairs = self.read(x, pos, [layer.cross for layer in self.layers])
        z = self.slots(options.concepts)
        for layer, (k, v) in zip(self.layers, pairs, strict=True):
            z = layer(z, k, v, mask)
        return self.concepts(z, options)


class PerceiverIOLayer(nn.Module):
    """z -> (CrossAttention to the tokens -> FeedForward, in the first `reads` layers) -> TransformerLayer -> z"""

    def __init__(self, config, width, reads):
        super().__init__()
        self.cross = CrossAttention(config, width) if reads else None
        self.read_ffn = FeedForward(config) if reads else None
        self.latent = TransformerLayer(config, rotary=config.concept_position == "rope")

    def forward(self, z, pairs, mask):
        """pairs: an iterator over (keys, values); a layer that reads takes the next pair."""
        return self.latent(self.read_ffn(self.cross(z, *next(pairs), mask)) if self.cross else z)


class PerceiverIO(Perceiver):
    """One read of the tokens, or a few, then self-attention of the latents alone.

    Jaegle et al. 2022, arXiv:2107.14795.

    slots -> [PerceiverIOLayer] x layers -> norm -> concepts
    """

    @staticmethod
    def check(config):
        if config.reads > config.layers:
            what = f"reads = {config.reads} are more than layers = {config.layers}"
            raise ValueError(f"{what}; write reads = {config.layers}")

    def make_layers(self, config, width):
        return [PerceiverIOLayer(config, width, i < config.reads) for i in range(config.layers)]

    def forward(self, x, pos, mask=None, options=AS_CONFIGURED):
        pairs = iter(self.read(x, pos, [layer.cross for layer in self.layers if layer.cross]))
        z = self.slots(options.concepts)
        for layer in self.layers:
            z = layer(z, pairs, mask)
        return self.concepts(z, options)


class Recursive(Perceiver):
    """One shared layer, applied `iterations` times; inference may use another number.

    Weights are shared as in ALBERT (arXiv:1909.11942); keys and values of the tokens are computed once. With
    `backprop_iterations`, back-propagation is truncated to the last so many iterations, as in Geiping et al. 2025
    (arXiv:2502.05171); the slots get the gradient of the state before these (straight-through).

    slots -> PerceiverLayer, iterations times -> norm -> concepts
    """

    options = ("concepts", "iterations")

    def make_layers(self, config, width):
        return [PerceiverLayer(config, width)]  # named as a Perceiver's first: a warm start takes that one

    def forward(self, x, pos, mask=None, options=AS_CONFIGURED):
        (layer,) = self.layers
        ((k, v),) = self.read(x, pos, [layer.cross])
        iterations = options.iterations or self.config.iterations
        z = slots = self.slots(options.concepts)
        with_gradient = min(iterations, self.config.backprop_iterations or iterations)
        if iterations > with_gradient:
            with torch.no_grad():
                for _ in range(iterations - with_gradient):
                    z = layer(z, k, v, mask)
            z = z + (slots - slots.detach())
        for _ in range(with_gradient):
            z = layer(z, k, v, mask)
        return self.concepts(z, options)


class SlotAttention(CrossAttention):
    """Latents compete for the tokens: softmax over latents, then each latent takes the weighted mean of its tokens."""

    def attend(self, q, k, v, mask, dropout):
        precise = torch.promote_types(q.dtype, torch.float32)
        weights = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(2, dtype=precise) + 1e-8  # [B, h, C, S]
        if mask is not None:
            weights = weights * mask[:, None, None, :]
        weights = F.dropout((weights / weights.sum(-1, keepdim=True)).to(v.dtype), dropout)
        return (weights @ v).transpose(1, 2).flatten(2)


class SlotLayer(PerceiverLayer):
    """z -> SlotAttention to the tokens -> SelfAttention -> FeedForward -> z"""

    def make_cross(self, config, width):
        return SlotAttention(config, width)


class Slot(Perceiver):
    """As perceiver, but the slots compete for the tokens.

    Slot attention, Locatello et al. 2020, arXiv:2006.15055, inside each layer's read.

    slots -> [SlotLayer] x layers -> norm -> concepts
    """

    def make_layers(self, config, width):
        return [SlotLayer(config, width) for _ in range(config.layers)]


class Chunked(Perceiver):
    """Chunks of the row are read one by one, each as a perceiver reads a row, and their concepts are merged.

    `merge` = "mean": each concept is the mean of its own over the chunks, by their tokens. "perceiver": these means
    read the concepts of all chunks in `merge_layers` more layers. Weights of a perceiver that was trained on short rows
    fit (init_from).

    tokens -> Perceiver of each `chunk` tokens -> mean -> ([PerceiverLayer] x merge_layers -> norm) -> concepts
    """

    def __init__(self, config):
        super().__init__(config)
        count = config.merge_layers if config.merge == "perceiver" else 0
        self.chunk, self.merge = (
            config.chunk,
            nn.ModuleList([PerceiverLayer(config, config.hidden) for _ in range(count)]),
        )
        self.merge_norm = norm(config.hidden, config) if count else None

    def forward(self, x, pos, mask=None, options=AS_CONFIGURED):
        B, S, _ = x.shape
        size = min(self.chunk, S)
        n, filled = -(-S // size), None
        gap = n * size - S
        weights = x.new_full((1, n), 1 / n)
        if gap or mask is not None:
            mask = x.new_ones(B, S, dtype=torch.bool) if mask is None else mask
            mask = F.pad(mask, (0, gap)).view(B, n, size)
            weights, filled = mask.sum(2) / mask.sum((1, 2))[:, None].to(x.dtype), mask[:, :, 0]
            first = torch.arange(size, device=x.device) == 0  # an empty chunk is read, too, and counts nothing
            mask = (mask | first).flatten(0, 1)
        x = F.pad(x, (0, 0, 0, gap)).view(B * n, size, -1)
        pos = F.pad(pos.expand(B, -1), (0, gap)).view(B * n, size)
        parts = super().forward(x, pos, mask, options).unflatten(0, (B, n))  # [B, n, C, H]
        z = torch.einsum("bn, bnch -> bch", weights.expand(B, -1).to(parts.dtype), parts)
        if self.merge_norm is None:
            return z
        if filled is not None:
            filled = filled.repeat_interleave(parts.shape[2], 1)
        pairs = keys_values(parts.flatten(1, 2), [layer.cross.kv for layer in self.merge], self.heads)
        for layer, (k, v) in zip(self.merge, pairs, strict=True):
            z = layer(z, k, v, filled)
        return self.merge_norm(z)


# ---------------------------------------------------------------------------------------------------------------------
# Latents and tokens attend to each other


class TwoWayLayer(PerceiverLayer):
    """
    z -> CrossAttention to x -> z' -> SelfAttention -> FeedForward -> z
    x -> CrossAttention to z' -> x   (not in the last layer)
    """

    def __init__(self, config, width, last):
        super().__init__(config, width)
        faithful = config.original_structure
        self.norm_tokens = nn.Identity() if faithful else token_norm(config)
        self.norm_z = nn.Identity() if last or faithful else norm(config.hidden, config)
        self.reverse = None if last else CrossAttention(config, config.hidden, queries=width)

    def forward(self, z, x, pos, mask):
        heads = self.cross.heads
        ((k, v),) = keys_values(self.norm_tokens(x), [self.cross.kv], heads)
        z = self.cross(z, k if pos is None else rotate(k, pos), v, mask)
        if self.reverse is not None:
            x = self.reverse(x, *keys_values(self.norm_z(z), [self.reverse.kv], heads)[0])
        return self.ffn(self.self_attention(z)), x


class TwoWay(Perceiver):
    """As perceiver, and the tokens read the slots in turn: the original project's two-way layers, without a token FFN.

    The original project normalises neither the keys that the slots read nor those that the tokens read; ours does.

    slots, tokens -> [TwoWayLayer] x layers -> norm -> concepts
    """

    def __init__(self, config):
        super().__init__(config)
        self.norm_tokens = nn.Identity()  # each layer has its own: the tokens change

    def make_layers(self, config, width):
        return [TwoWayLayer(config, width, i == config.layers - 1) for i in range(config.layers)]

    def forward(self, x, pos, mask=None, options=AS_CONFIGURED):
        z, x = self.slots(options.concepts), self.widen(x).to(x.dtype)
        for layer in self.layers:
            z, x = layer(z, x, pos if self.rotary else None, mask)
        return self.concepts(z, options)


class BixtLayer(nn.Module):
    """
    S = R_z(z) R_x(x)', one score matrix for both directions; both read the other's state before this layer
    z += softmax(S) V_x(x)   -> FeedForward -> TransformerLayer -> z
    x += softmax(S') V_z(z)  -> FeedForward -> x                  (not in the last layer)
    """

    def __init__(self, config, last):
        super().__init__()
        H, T, self.last = config.hidden, config.token_width, last
        self.heads, self.dropout = config.heads, config.dropout
        self.norm_z, self.norm_x = norm(H, config), token_norm(config)
        self.from_z = linear(H, H if last else 2 * H, config)  # R; and V, if the tokens read
        self.from_x = linear(T, 2 * H, config)
        self.out_z = ResidualOutput(H, H, bias=config.original_structure)
        self.ffn_z = FeedForward(config)
        self.latent = TransformerLayer(config, rotary=config.concept_position == "rope")
        self.out_x = None if last else ResidualOutput(H, T, bias=config.original_structure)
        self.ffn_x = None if last else FeedForward(config, width=T)

    def forward(self, z, x, pos, mask):
        r_z, *v_z = split_heads(self.from_z(self.norm_z(z)), 1 if self.last else 2, self.heads)
        r_x, v_x = split_heads(self.from_x(self.norm_x(x)), 2, self.heads)
        if pos is not None:
            r_x = rotate(r_x, pos)
        dropout = self.dropout if self.training else 0.0
        z = z + self.out_z(attention(r_z, r_x, v_x, mask, dropout))
        if not self.last:  # the same matrix transposed; no slot is padding, so no mask
            r_z, v_z = (t.expand(len(x), -1, -1, -1) for t in (r_z, *v_z))
            x = self.ffn_x(x + self.out_x(attention(r_x, r_z, v_z, None, dropout)))
        return self.latent(self.ffn_z(z)), x


class Bixt(Encoder):
    """Slots and tokens read each other through one attention matrix.

    BiXT, Hiller et al. 2024, arXiv:2402.12138. Use narrow tokens (token_dim below hidden): at full width their FFN
    costs as much as a dense layer's. In the paper heads of width 32 did better than of 64.

    slots, tokens -> [BixtLayer] x layers -> norm -> concepts
    """

    options = ("concepts",)

    def __init__(self, config):
        super().__init__()
        self.rotary = config.token_position == "rope"
        self.slots = Slots(config)
        self.layers = nn.ModuleList([BixtLayer(config, i == config.layers - 1) for i in range(config.layers)])
        self.norm = norm(config.hidden, config)

    def forward(self, x, pos, mask=None, options=AS_CONFIGURED):
        z = self.slots(options.concepts)
        for layer in self.layers:
            z, x = layer(z, x, pos if self.rotary else None, mask)
        return self.norm(self.slots.without_registers(z, options.concepts))


# ---------------------------------------------------------------------------------------------------------------------
# Tokens attend to tokens: quadratic in their number


class Dense(Encoder):
    """A plain Transformer over the tokens, pooled by C learned queries: the control, quadratic in the tokens.

    tokens -> [TransformerLayer] x layers -> norm -> CrossAttention of the slots -> norm -> concepts
    """

    options = ("concepts",)
    concept_positions = "none", "cope"

    def __init__(self, config):
        super().__init__()
        H, T, self.heads, self.count = config.hidden, config.token_width, config.heads, config.concepts
        rotary = config.token_position == "rope"
        self.widen = projection(T, H, config)
        self.layers = nn.ModuleList([TransformerLayer(config, rotary=rotary) for _ in range(config.layers)])
        self.norm_tokens = norm(H, config)
        self.slots = nn.Embedding(config.concepts, H)
        self.pool = CrossAttention(config, H)
        self.norm = norm(H, config)

    def forward(self, x, pos, mask=None, options=AS_CONFIGURED):
        x = self.widen(x).to(x.dtype)
        for layer in self.layers:
            x = layer(x, pos, mask)
        ((k, v),) = keys_values(self.norm_tokens(x), [self.pool.kv], self.heads)
        z = self.slots.weight[None, : options.concepts or self.count]
        return self.norm(self.pool(z, k, v, mask))


def adaptive_mean(x, n, m, most):
    """`adaptive_avg_pool1d` of the first n of x [B, S, H] to m means, padded to `most`: [B, most, H], in O(S). Bin i is
    [floor(i n / m), ceil((i + 1) n / m)), never empty. n, m: numbers, or [B, 1] int64, one per row; n / m is at most
    S / most, rounded up."""
    B, S, _ = x.shape
    i = torch.arange(most, device=x.device)[None]
    start, end = i * n // m, ((i + 1) * n + m - 1) // m  # [1|B, most]
    columns = start[..., None] + torch.arange(-(-S // most) + 1, device=x.device)
    inside = (columns < end[..., None]) & (i < m)[..., None]
    rows = torch.arange(B, device=x.device)[:, None, None]
    gathered = x[rows, columns.clamp(max=S - 1)] * inside[..., None]  # [B, most, bin, H]
    return gathered.sum(2) / inside.sum(-1).clamp_min(1)[..., None]


class FunnelStage(nn.Module):
    """The means query the unpooled x: CrossAttention -> FeedForward."""

    def __init__(self, config):
        super().__init__()
        self.norm, self.cross = norm(config.hidden, config), CrossAttention(config, config.hidden)
        self.ffn = FeedForward(config)

    def forward(self, x, means, pos, mask):
        """means [B, M, H] of x [B, S, H] -> [B, M, H]; pos: for rotary keys (a mean has no position), or None."""
        ((k, v),) = keys_values(self.norm(x), [self.cross.kv], self.cross.heads)
        return self.ffn(self.cross(means, k if pos is None else rotate(k, pos), v, mask))


class Funnel(Encoder):
    """The tokens are pooled to C ordered concepts in two stages, the first of which costs N x N / 2.

    As Funnel-Transformer's pooled queries and un-pooled keys (Dai et al. 2020, arXiv:2006.03236).

    tokens -> FunnelStage to max(C, N/2) -> FunnelStage to C -> [TransformerLayer] x layers -> norm -> concepts
    """

    options = ("concepts",)
    concept_positions = "none", "rope", "cope"

    def __init__(self, config):
        super().__init__()
        H, T, self.count = config.hidden, config.token_width, config.concepts
        self.rotary = config.token_position == "rope"
        self.widen = projection(T, H, config)
        self.stages = nn.ModuleList([FunnelStage(config) for _ in range(2)])
        rotary = config.concept_position == "rope"
        self.layers = nn.ModuleList([TransformerLayer(config, rotary=rotary) for _ in range(config.layers)])
        self.norm = norm(H, config)

    def forward(self, x, pos, mask=None, options=AS_CONFIGURED):
        C, S = options.concepts or self.count, x.shape[1]
        most = max(C, (S + 1) // 2)
        n, half, kept = S, most, None
        if mask is not None:
            n = mask.sum(1)[:, None]
            half = ((n + 1) // 2).clamp_min(C)
            kept = torch.arange(most, device=x.device) < half
        x = self.widen(x).to(x.dtype)
        x = self.stages[0](x, adaptive_mean(x, n, half, most), pos if self.rotary else None, mask)
        x = self.stages[1](x, adaptive_mean(x, half, C, C), None, kept)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)
