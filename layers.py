"""
What encoders and decoders are built of: attention, rotary positions, pre-norm residual blocks, and how weights begin.

Shapes: B rows, S tokens read, C concepts, Q queries, H width of a concept, T width of a token, h heads, d = H / h.
Pre-norm, residual: z + block(norm(z)). `seeds_faithful` gives every norm and linear its bias.
"""

import math
from hashlib import blake2b

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

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
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
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
    """Rotary position embedding (RoFormer, arXiv:2104.09864): x [B, h, S, d] turned by pos [1|B, S].

    Self-attention turns its queries and its keys. Where concepts read tokens only the keys are turned: a latent query
    stands at no position, and each head learns which turns it answers to.
    """
    half = x.shape[-1] // 2
    freq = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
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
    return nn.LayerNorm(width, bias=config.seeds_faithful)


def linear(inputs, outputs, config):
    return nn.Linear(inputs, outputs, bias=config.seeds_faithful)


class ResidualOutput(nn.Linear):
    """The last linear of a residual block; how it begins decides how the residual stream grows with depth."""


class CrossAttention(nn.Module):
    """z += attention of z to a sequence whose keys and values `keys_values` has already made."""

    def __init__(self, config, width):
        super().__init__()
        H = config.hidden
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = norm(H, config)
        self.q = linear(H, H, config)
        self.kv = linear(width, 2 * H, config)
        self.out = ResidualOutput(H, H, bias=config.seeds_faithful)

    def forward(self, z, k, v, mask=None):
        # z [1, Q, H] (equal for all rows: norm and queries are then made once) or [B, Q, H] -> [B, Q, H]
        (q,) = split_heads(self.q(self.norm(z)), 1, self.heads)
        return z + self.out(attention(q, k, v, mask, self.dropout if self.training else 0.0))


class SelfAttention(nn.Module):
    """z += self-attention of z [B, C, H]."""

    def __init__(self, config):
        super().__init__()
        H = config.hidden
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = norm(H, config)
        self.qkv = linear(H, 3 * H, config)
        self.out = ResidualOutput(H, H, bias=config.seeds_faithful)

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
        self.wo = ResidualOutput(inner, H, bias=config.seeds_faithful)

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


class Slots(nn.Module):
    """C learned latents [1, C, H], the same for every row until they first read; with or without positions."""

    def __init__(self, config):
        super().__init__()
        self.kind = config.concept_position
        self.content = nn.Parameter(torch.empty(config.concepts, config.hidden))
        self.positions = nn.Parameter(torch.empty_like(self.content)) if self.kind == "learned" else None
        self.init_scale = 1.0 if self.kind == "none" else 0.5**0.5  # content and positions: of unit scale together

    def forward(self):
        z = self.content
        if self.kind == "learned":
            z = z + self.positions
        if self.kind == "sinusoidal":
            z = z + sinusoid(*z.shape, device=z.device, dtype=z.dtype)
        return z[None]


# ---------------------------------------------------------------------------------------------------------------------
# How weights begin


def generator(seed: int, name: str) -> torch.Generator:
    """Of random numbers that depend on the seed and a name alone."""
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@torch.no_grad()
def begin(model: nn.Module, init: str, seed: int):
    """Draws every parameter from a generator of (seed, its name), so that models which share a part share its first
    weights to the bit, whatever else they are made of.

    Embeddings and slots are N(0, 1), linears N(0, 1/fan_in), or with init = "gpt2" all N(0, 0.02^2); a module's
    `init_scale` multiplies that, but not with "gpt2". Biases are 0, norms stay as they were made. With "gpt2" and
    "fan_in_depth" the residual outputs of a part (encoder, decoder) are divided by the root of their number.
    """
    outputs = {}  # residual output -> how many there are in its part
    for part in model.children():
        inside = [module for module in part.modules() if isinstance(module, ResidualOutput)]
        outputs |= dict.fromkeys(inside, len(inside))
    for path, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias"):
                parameter.zero_()
                continue
            std = 0.02 if init == "gpt2" else module.in_features**-0.5 if isinstance(module, nn.Linear) else 1.0
            if init in ("gpt2", "fan_in_depth"):
                std *= outputs.get(module, 1) ** -0.5
            if init != "gpt2":
                std *= getattr(module, "init_scale", 1.0)
            parameter.normal_(std=std, generator=generator(seed, f"{path}.{name}"))
