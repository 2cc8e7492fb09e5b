"""
Encoders: one class each, from token vectors x [B, S, T] to concepts [B, C, H].

To add one: a subclass of `Encoder`. It is found by its name in lower case, in `encoder = "..."` and in `--help`.
"""

import torch.nn as nn

from layers import CrossAttention, FeedForward, SelfAttention, Slots, keys_values, linear, norm, rotate

ENCODERS: dict[str, type["Encoder"]] = {}  # name -> class


class Encoder(nn.Module):
    uses: frozenset | set = frozenset()  # keys of ModelConfig that it reads, besides those that ConceptModel reads

    def __init_subclass__(cls):
        ENCODERS[cls.__name__.lower()] = cls

    def forward(self, x, pos, mask=None):
        """x [B, S, T]: token embeddings with learned positions and dropout applied; pos [1|B, S]: where they stand, for
        rotary positions; mask [B, S] (True: keep) or None -> concepts [B, C, H]."""
        raise NotImplementedError


class PerceiverLayer(nn.Module):
    """
    tokens x (never changed)
           |  keys, values
    z -> CrossAttention -> SelfAttention -> FeedForward -> z
    """

    def __init__(self, config, width):
        super().__init__()
        self.cross = CrossAttention(config, width)
        self.self_attention = SelfAttention(config)
        self.ffn = FeedForward(config)

    def forward(self, z, k, v, mask):
        return self.ffn(self.self_attention(self.cross(z, k, v, mask)))


class Perceiver(Encoder):
    """C learned slots read the tokens anew in each layer.

    Jaegle et al. 2021, arXiv:2103.03206.

    slots -> [PerceiverLayer] x layers -> norm -> concepts
    """

    uses = {"layers", "heads", "intermediate", "concepts", "concept_position"}

    def __init__(self, config):
        super().__init__()
        H, T, faithful = config.hidden, config.token_width, config.seeds_faithful
        self.heads, self.rotary = config.heads, config.token_position == "rope"
        self.slots = Slots(config)
        # The seeds widen narrow tokens first and read them un-normalised; ours go straight from T to keys and values.
        self.widen = linear(T, H, config) if faithful and T != H else None
        self.norm_tokens = None if faithful else norm(T, config)
        if self.norm_tokens is not None and config.init != "gpt2":
            # The scale of token + unit position: reads are sharper, with those the input's share is 3 times as high.
            nn.init.constant_(self.norm_tokens.weight, 2**0.5)
        self.layers = nn.ModuleList([PerceiverLayer(config, H if faithful else T) for _ in range(config.layers)])
        self.norm = norm(H, config)

    def forward(self, x, pos, mask=None):
        if self.widen is not None:
            x = self.widen(x)
        if self.norm_tokens is not None:
            x = self.norm_tokens(x)
        pairs = keys_values(x, [layer.cross.kv for layer in self.layers], self.heads)  # the tokens never change
        z = self.slots()
        for layer, (k, v) in zip(self.layers, pairs, strict=True):
            z = layer(z, rotate(k, pos) if self.rotary else k, v, mask)
        return self.norm(z)
