"""The original project's perceiver MLM as plainly as it can be: slow, readable, the reference of tests and bench.py.

`nn.MultiheadAttention` with a padding mask, token keys and values projected anew in every layer, the decoder run at all
N positions, the vocabulary head at the masked rows found by a boolean mask.
Same structure as `original_structure = True`.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F


def attend(module, query, tokens, padding=None):
    return module(query, tokens, tokens, key_padding_mask=padding, need_weights=False)[0]


class EncoderLayer(nn.Module):
    def __init__(self, H, heads, inner, dropout):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(H), nn.LayerNorm(H), nn.LayerNorm(H)
        self.cross = nn.MultiheadAttention(H, heads, dropout, batch_first=True)
        self.self_attention = nn.MultiheadAttention(H, heads, dropout, batch_first=True)
        self.wi, self.wo = nn.Linear(H, 2 * inner), nn.Linear(inner, H)

    def forward(self, z, x, padding):
        z = z + attend(self.cross, self.norm1(z), x, padding)
        y = self.norm2(z)
        z = z + attend(self.self_attention, y, y)
        a, g = self.wi(self.norm3(z)).chunk(2, -1)
        return z + self.wo(self.dropout(F.gelu(a) * g))


class ReferenceMLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        H, V, inner, N = config.hidden, config.vocab_size, config.intermediate, config.max_length
        sizes = H, config.heads, inner, config.dropout
        self.config, self.dropout = config, nn.Dropout(config.dropout)
        self.tokens, self.positions = nn.Embedding(V, config.token_width), nn.Embedding(N, config.token_width)
        thin = config.token_width != H
        self.project = nn.Linear(config.token_width, H) if thin else nn.Identity()
        self.slots = nn.Parameter(torch.randn(config.concepts, H))
        self.layers = nn.ModuleList([EncoderLayer(*sizes) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(H)
        if config.decoder == "weighted":
            self.mixture = nn.Parameter(torch.randn(N, config.concepts))
            self.mixture_norm, self.dense = nn.LayerNorm(H), nn.Linear(H, H)
        else:
            self.query_positions = nn.Embedding(N, H)
            if config.decoder == "input":
                self.query_project = nn.Linear(config.token_width, H) if thin else nn.Identity()
            self.norm_a, self.norm_b = nn.LayerNorm(H), nn.LayerNorm(H)
            self.read = nn.MultiheadAttention(H, config.heads, config.dropout, batch_first=True)
            self.w1, self.w2 = nn.Linear(H, inner), nn.Linear(inner, H)
        self.head = nn.Linear(H, V, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight

    def encode(self, ids, keep):
        """ids [B, N], keep [B, N] (True: a token, False: padding) -> concepts [B, C, H]."""
        pos = torch.arange(ids.shape[1], device=ids.device)
        x = self.project(self.dropout(self.tokens(ids) + self.positions(pos)))
        z = self.slots.expand(ids.shape[0], -1, -1)
        for layer in self.layers:
            z = layer(z, x, ~keep)
        return self.norm(z)

    def decode(self, concepts, ids):
        """Hidden states [B, N, H] at every position, before the last norm."""
        pos = torch.arange(ids.shape[1], device=ids.device)
        if self.config.decoder == "weighted":
            x = self.mixture[pos].softmax(-1) @ concepts
            return self.dropout(F.gelu(self.dense(self.mixture_norm(x))))
        x = self.query_positions(pos).expand(ids.shape[0], -1, -1)
        if self.config.decoder == "input":
            x = x + self.query_project(self.tokens(ids))
        x = x + attend(self.read, self.norm_a(x), concepts)
        return x + self.w2(self.dropout(F.gelu(self.w1(self.norm_b(x)))))

    def head_logits(self, x):
        x = F.layer_norm(x, x.shape[-1:])
        return self.head(x) * (self.config.hidden**-0.5 if self.config.tied else 1.0)

    def forward(self, ids, keep, labels):
        """Mean cross-entropy at the positions whose label is not -100."""
        hidden = self.decode(self.encode(ids, keep), ids)
        masked = labels != -100
        return F.cross_entropy(self.head_logits(hidden[masked]).float(), labels[masked])


def reference_inputs(problem):
    """(ids, keep, labels) of a Problem as the reference wants it: whole rows, a padding mask on what the encoder does
    not read, labels of -100 where none is scored."""
    ids = problem.targets if problem.query_ids is None else problem.query_ids
    keep, labels = torch.ones_like(ids, dtype=torch.bool), problem.targets
    if problem.source_pos is not None:
        keep = torch.zeros_like(keep).scatter(1, problem.source_pos.expand(problem.source.shape), True)
    if problem.scored is not None:
        labels = torch.full_like(labels, -100).scatter(1, problem.scored, labels.gather(1, problem.scored))
    return ids, keep, labels


def copy_weights(model, reference):
    """Give the reference the weights of an original_structure ConceptModel with one decoder layer."""

    def attention(module, q, kv, out):
        qkv = torch.cat([q.weight, kv.weight]), torch.cat([q.bias, kv.bias])
        for mine, theirs in zip((module.in_proj_weight, module.in_proj_bias), qkv, strict=True):
            mine.copy_(theirs)
        module.out_proj.load_state_dict(out.state_dict())

    def same(mine, theirs):
        mine.load_state_dict(theirs.state_dict())

    encoder, decoder = model.encoder, model.decoder
    with torch.no_grad():
        same(reference.tokens, model.tokens)
        same(reference.positions, model.positions)
        if isinstance(encoder.widen, nn.Linear):
            same(reference.project, encoder.widen)
        reference.slots.copy_(encoder.slots()[0])
        for mine, theirs in zip(reference.layers, encoder.layers, strict=True):
            cross, between, ffn = theirs.cross, theirs.self_attention, theirs.ffn
            attention(mine.cross, cross.q, cross.kv, cross.out)
            mine.self_attention.in_proj_weight.copy_(between.qkv.weight)
            mine.self_attention.in_proj_bias.copy_(between.qkv.bias)
            same(mine.self_attention.out_proj, between.out)
            for a, b in (mine.norm1, cross.norm), (mine.norm2, between.norm), (mine.norm3, ffn.norm):
                same(a, b)
            same(mine.wi, ffn.wi)
            same(mine.wo, ffn.wo)
        same(reference.norm, encoder.norm)
        if model.config.decoder == "weighted":
            reference.mixture.copy_(decoder.mixture.weight)
            same(reference.mixture_norm, decoder.norm)
            same(reference.dense, decoder.dense)
        else:
            cross, ffn = decoder.cross[0], decoder.ffns[0]
            same(reference.query_positions, decoder.positions)
            if model.config.decoder == "input" and isinstance(decoder.widen, nn.Linear):
                same(reference.query_project, decoder.widen)
            attention(reference.read, cross.q, cross.kv, cross.out)
            for a, b in (reference.norm_a, cross.norm), (reference.norm_b, ffn.norm), (reference.w1, ffn.wi):
                same(a, b)
            same(reference.w2, ffn.wo)
        reference.head.weight.copy_(model.head_weight())
