"""
Building blocks of encoders and decoders: attention, rotary positions, pre-norm residual blocks, initial weights.

Shapes: B rows, S tokens read, C concepts, Q queries, H width of a concept, T width of a token, h heads, d = H / h.
Pre-norm, residual: z + block(norm(z)). `original_structure` gives every norm and linear its bias.
"""

import math
from hashlib import blake2b

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from losses import autocast_device

# ---------------------------------------------------------------------------------------------------------------------
# Attention


def plain_products(q, k):
    """On a CPU in bfloat16, up to 128 x 128 scores a head, SDPA's backward takes 4 times as long as plain products.
    (In float32 SDPA is as fast or faster at every size measured, and keeps less.)"""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] * k.shape[2] <= 128 * 128


def attention(q, k, v, mask=None, dropout=0.0, causal=False):
    """softmax(q k' / sqrt(d)) v: q [B|1, h, Q, d], k and v [B, h, S, d], mask [B, S] or [B|1, 1, Q, S] (True: keep), or
    causal instead of a mask -> [B, Q, h d]."""
    if mask is not None and mask.dim() == 2:
        mask = mask[:, None, None, :]
    if plain_products(q, k):
        if causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, h, Q, S]
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        out = F.dropout(weights, dropout) @ v
    else:
        q = q.expand(k.shape[0], -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


def append_past(past, k, v):
    """Cached keys and values of earlier positions (a list, empty at first), those of k and v added -> all of them."""
    past[:] = [torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True)] if past else [k, v]
    return past


def window_attention(q, k, v, window, mask=None, dropout=0.0):
    """As `attention`, but token i attends only to tokens i - window ... i + window: q, k, v [B, h, S, d], in O(S
    window). Blocks of `window` queries attend to their own block and to its two neighbours."""
    B, h, S, d = q.shape
    blocks = -(-S // window)
    after = blocks * window - S
    q = F.pad(q, (0, 0, 0, after)).unflatten(2, (blocks, window))
    k, v = (F.pad(x, (0, 0, window, window + after)).unfold(2, 3 * window, window).mT for x in (k, v))
    i = torch.arange(blocks * window, device=q.device).view(blocks, window, 1)
    j = torch.arange(blocks, device=q.device).view(blocks, 1, 1) * window - window
    j = j + torch.arange(3 * window, device=q.device)  # [blocks, 1, 3 window]
    keep = ((j >= 0) & (j < S))[None]
    if mask is not None:
        keep = F.pad(mask, (window, window + after)).unfold(1, 3 * window, window)[:, :, None]
    keep = ((i - j).abs() <= window) & keep | (i == j)  # itself always: no row without a key
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [B blocks, h, ...]
    keep = keep.expand(B, -1, -1, -1).flatten(0, 1)[:, None]
    return attention(q, k, v, keep, dropout).unflatten(0, (B, blocks)).flatten(1, 2)[:, :S]


def cope_attention(q, k, v, table, dropout=0.0):
    """Contextual position encoding (CoPE, arXiv:2405.18719): for each query, key j has position p_j = sum over i <= j
    of sigmoid(q k_i / sqrt(d)), and q e[p_j] is added to its score. q [B|1, h, Q, d], k and v [B, h, S, d], table e [h,
    P, d], linearly interpolated between rows -> [B, Q, h d]."""
    q = q * q.shape[-1] ** -0.5
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.mT).to(precise)  # [B, h, Q, S]
    with torch.autocast(autocast_device(q), enabled=False):  # no cumsum: on a GPU it is not deterministic
        place = scores.sigmoid() @ scores.new_ones(2 * scores.shape[-1:]).triu()
    place = place.clamp(max=table.shape[1] - 1)
    at = (q @ table.mT).to(precise).expand(*scores.shape[:3], -1)  # the term at every integer position
    low = place.detach().floor().clamp(max=table.shape[1] - 2).long()
    share = place - low
    scores = scores + at.gather(-1, low) * (1 - share) + at.gather(-1, low + 1) * share
    weights = F.dropout(scores.softmax(-1).to(v.dtype), dropout)
    return (weights @ v).transpose(1, 2).flatten(2)


def split_heads(x, parts, heads):
    """x [B, S, parts * H] -> `parts` tensors [B, h, S, d]. By unbind: the gradient of a slice is full-size."""
    return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def keys_values(x, readers, heads, fused=None):
    """Keys and values of x [B, S, W] for several layers, in one product.

    readers: their `kv` linears (W -> 2H) -> a list of (k, v), each [B, h, S, d]. fused: None: not on the CPU, where
    separate products are as fast and need less memory in backward.
    """
    if fused is False or (fused is None and x.device.type == "cpu"):
        return [split_heads(kv(x), 2, heads) for kv in readers]
    weight = torch.cat([kv.weight for kv in readers])
    bias = torch.cat([kv.bias for kv in readers]) if readers[0].bias is not None else None
    parts = split_heads(F.linear(x, weight, bias), 2 * len(readers), heads)
    return list(zip(parts[0::2], parts[1::2], strict=True))


def rotate(x, pos, theta=10000.0):
    """Rotary position embedding (RoFormer, arXiv:2104.09864): x [B, h, S, d] rotated by pos [1|B, S].

    Self-attention rotates queries and keys. Where latents read tokens only the keys are rotated: a latent query has no
    position, and each head learns which rotations it responds to.
    """
    half = x.shape[-1] // 2
    freq = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = pos[:, None, :, None] * freq  # [1|B, 1, S, d/2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def sinusoid(length, width, device, dtype):
    """Fixed positions [length, width] of Vaswani et al. 2017: sines in the even columns, cosines in the odd ones."""
    column = torch.arange(width, device=device)
    angle = torch.arange(length, device=device)[:, None] * 10000.0 ** (-(column - column % 2) / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).to(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks


def norm(width, config):
    return nn.LayerNorm(width, bias=config.original_structure)


def linear(inputs, outputs, config):
    return nn.Linear(inputs, outputs, bias=config.original_structure)


def projection(narrow, wide, config):
    """A linear between two widths; the identity where they are equal."""
    return nn.Identity() if narrow == wide else linear(narrow, wide, config)


class ZeroLinear(nn.Linear):
    """Zero at first, whatever the init, so that what it gates or modulates starts as if it were absent."""


class ResidualOutput(nn.Linear):
    """The last linear of a residual block; its scale decides how the residual stream grows with depth."""


class CrossAttention(nn.Module):
    """z += attention of z to a sequence, given its keys and values (from `keys_values`).

    width: of that sequence; queries: width of z (0: hidden); ordered: the sequence is the concepts, which CoPE numbers
    if concept_position = "cope"."""

    def __init__(self, config, width, queries=0, ordered=False):
        super().__init__()
        H = config.hidden
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = norm(queries or H, config)
        self.q = linear(queries or H, H, config)
        self.kv = linear(width, 2 * H, config)
        self.out = ResidualOutput(H, queries or H, bias=config.original_structure)
        cope = ordered and config.concept_position == "cope"
        self.positions = nn.Parameter(torch.empty(self.heads, config.concepts + 1, H // self.heads)) if cope else None

    def forward(self, z, k, v, mask=None):
        # z [1, Q, H] (the same for all rows: norm and queries are computed once) or [B, Q, H] -> [B, Q, H]
        return z + self.update(self.norm(z), k, v, mask)

    def update(self, z, k, v, mask=None):
        """What is added to the residual stream, from z normalised."""
        (q,) = split_heads(self.q(z), 1, self.heads)
        return self.out(self.attend(q, k, v, mask, self.dropout if self.training else 0.0))

    def attend(self, q, k, v, mask, dropout):
        if self.positions is not None:
            return cope_attention(q, k, v, self.positions, dropout)
        return attention(q, k, v, mask, dropout)


class SelfAttention(nn.Module):
    """z += self-attention of z [B, S, W].

    width: W (0: hidden), with heads as wide as those of concepts; rotary: rotary positions; window: attention to this
    many neighbours on each side (0: to all); causal: only to earlier positions and its own."""

    def __init__(self, config, width=0, rotary=False, window=0, causal=False):
        super().__init__()
        W = width or config.hidden
        most = max(1, config.heads * W // config.hidden)
        # the nearest number that divides the width, for rotary positions into even parts
        self.heads = next(n for n in range(most, 0, -1) if W % n == 0 and not (rotary and W // n % 2))
        self.dropout, self.rotary, self.window, self.causal = config.dropout, rotary, window, causal
        self.norm = norm(W, config)
        self.qkv = linear(W, 3 * W, config)
        self.out = ResidualOutput(W, W, bias=config.original_structure)

    def forward(self, z, pos=None, mask=None, past=None):
        """pos [1|B, S]: positions (None: 0 ... S-1); mask [B, S] (True: keep); past: a list with the cached keys and
        values of earlier positions, or empty, to which those of z are appended."""
        q, k, v = split_heads(self.qkv(self.norm(z)), 3, self.heads)
        if self.rotary:
            pos = torch.arange(z.shape[1], device=z.device)[None] if pos is None else pos
            q, k = rotate(q, pos), rotate(k, pos)
        dropout = self.dropout if self.training else 0.0
        if past is not None:
            k, v = append_past(past, k, v)
        if self.window:
            return z + self.out(window_attention(q, k, v, self.window, mask, dropout))
        return z + self.out(attention(q, k, v, mask, dropout, self.causal and past is None))


RECOMPUTED = 1 << 21  # size of an FFN's inner state from which the CPU recomputes it in backward


class FeedForward(nn.Module):
    """z += Wo(GELU(a) * g) with [a; g] = Wi z (GEGLU, arXiv:2002.05202), or without the gate g.

    width: of z (0: hidden); the inner width is proportional to it."""

    def __init__(self, config, gated=True, width=0):
        super().__init__()
        W = width or config.hidden
        inner = max(1, config.intermediate * W // config.hidden)
        self.gated, self.dropout = gated, nn.Dropout(config.dropout)
        self.norm = norm(W, config)
        self.wi = linear(W, 2 * inner if gated else inner, config)
        self.wo = ResidualOutput(inner, W, bias=config.original_structure)

    def forward(self, z):
        # Wi's output is the largest activation of a layer. On the CPU a large one is recomputed in backward: a sixth
        # less memory for 7 % more FLOPs. (A GPU has the memory, and a compiler that decides.)
        large = z.shape[0] * z.shape[1] * self.wi.out_features >= RECOMPUTED
        if torch.is_grad_enabled() and z.device.type == "cpu" and large:  # in this order: no guard for an exporter
            return z + checkpoint(self.inner, z, use_reentrant=False, preserve_rng_state=self.dropout.p > 0)
        return z + self.inner(z)

    def inner(self, z):
        return self.update(self.norm(z))

    def update(self, z):
        """What is added to the residual stream, from z normalised."""
        x = self.wi(z)
        if self.gated:
            a, g = x.chunk(2, -1)
            x = F.gelu(a) * g
        else:
            x = F.gelu(x)
        return self.wo(self.dropout(x))


class TransformerLayer(nn.Module):
    """x -> SelfAttention -> FeedForward -> x; the keys are those of SelfAttention."""

    def __init__(self, config, width=0, **keys):
        super().__init__()
        self.self_attention = SelfAttention(config, width, **keys)
        self.ffn = FeedForward(config, width=width)

    def forward(self, x, pos=None, mask=None):
        return self.ffn(self.self_attention(x, pos, mask))


class Slots(nn.Module):
    """Learned initial latents [1, C + R, H], the same for every row: concepts, with or without positions, and R
    registers, which no decoder sees (Darcet et al. 2024, arXiv:2309.16588)."""

    def __init__(self, config):
        super().__init__()
        self.kind, self.count = config.concept_position, config.concepts
        self.content = nn.Parameter(torch.empty(config.concepts, config.hidden))
        self.positions = nn.Parameter(torch.empty_like(self.content)) if self.kind == "learned" else None
        added = self.kind in ("learned", "sinusoidal")
        self.registers = nn.Parameter(torch.empty(config.registers, config.hidden)) if config.registers else None
        self.init_scale = 0.5**0.5 if added else 1.0  # the sum of content and positions has unit scale

    def forward(self, concepts=0):
        """concepts: only the first this many (0: all)."""
        z = self.content
        if self.kind == "learned":
            z = z + self.positions
        if self.kind == "sinusoidal":
            z = z + sinusoid(*z.shape, device=z.device, dtype=z.dtype)
        z = z[: concepts or self.count]
        return (z if self.registers is None else torch.cat([z, self.registers]))[None]

    def without_registers(self, z, concepts=0):
        """The concepts among latents z."""
        return z[:, : concepts or self.count]


# ---------------------------------------------------------------------------------------------------------------------
# Initial weights


def generator(seed: int, name: str) -> torch.Generator:
    """Random numbers that depend only on the seed and a name."""
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@torch.no_grad()
def init_weights(model: nn.Module, init: str, seed: int):
    """Draws every parameter from a generator of (seed, its name), so that models which share a part share its first
    weights to the bit, whatever else they are made of.

    Embeddings and slots are N(0, 1), linears N(0, 1/fan_in), or with init = "gpt2" all N(0, 0.02^2); a module's
    `init_scale` multiplies that, but not with "gpt2". Biases are 0, norms stay as they were made. With "gpt2" the
    residual outputs of a part (encoder, decoder) are divided by the root of their number.
    """
    outputs = {}  # residual output -> how many there are in its part
    for part in model.children():
        inside = [module for module in part.modules() if isinstance(module, ResidualOutput)]
        outputs |= dict.fromkeys(inside, len(inside))
    for path, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias") or isinstance(module, ZeroLinear):
                parameter.zero_()
                continue
            std = 0.02 if init == "gpt2" else module.in_features**-0.5 if isinstance(module, nn.Linear) else 1.0
            std *= outputs.get(module, 1) ** -0.5 if init == "gpt2" else getattr(module, "init_scale", 1.0)
            parameter.normal_(std=std, generator=generator(seed, f"{path}.{name}"))
