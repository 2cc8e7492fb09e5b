"""
The whole idea in one file: N tokens of text are read into C concept vectors, and predicted from those alone.

    python nano.py                              # Python's own docstrings, about a minute on two cores
    python nano.py --file=any.txt --steps=2000

    a row of tokens -> some are deleted -> encoder -> C concepts -> decoder -> all tokens in order      (TSDAE)
                                                           |
                                                       their mean -> which tokens there are     (bag of words)

Shapes: B rows of N tokens, S of them left to read, C concepts of width H, h heads of width d = H / h, V vocabulary.
"""

import argparse
import ast
import math
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer


@dataclass
class Config:  # --key=value changes any of these
    file: str = ""  # UTF-8 text, of which the first 10 MB are read; empty: Python's docstrings
    vocab_size: int = 4096  # V
    length: int = 16  # N
    concepts: int = 8  # C
    hidden: int = 256  # H
    heads: int = 4  # h
    intermediate: int = 512  # inner width of the feed-forward blocks
    layers: int = 2  # of the encoder
    delete_rate: float = 0.3
    steps: int = 500
    batch_size: int = 32  # B
    lr: float = 3e-3
    warmup: int = 100  # steps
    weight_decay: float = 0.05
    seed: int = 0


def fail(message):
    print("error:", message, file=sys.stderr)
    sys.exit(2)


def docstrings():
    """The prose in the docstrings of the standard library's modules, which are parsed and not imported."""
    files, kinds = sorted(Path(ast.__file__).parent.glob("*.py")), (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, kinds))
    paragraphs = (part for node in nodes for part in (ast.get_docstring(node) or "").split("\n\n"))
    prose = (" ".join(part.split()) for part in paragraphs if part.endswith(".") and ">>>" not in part)
    return "\n".join(dict.fromkeys(prose))  # each once


def read_text(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read(10_000_000)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path} cannot be read ({error}); name a text file in UTF-8")


def prepare(text, config):
    """-> tokenizer, (tokens, where sentences start and the last ends) for training and for validation, idf [V]."""
    sentences = [s.strip() for s in re.split(r"(?<=[.!?])\s+|[\r\n]+", text) if s.strip()]
    tokenizer = ByteLevelBPETokenizer(add_prefix_space=True)
    tokenizer.train_from_iterator(sentences, config.vocab_size, min_frequency=0, show_progress=False)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    tokens, starts = torch.tensor([i for row in ids for i in row]), torch.tensor([0, *map(len, ids)]).cumsum(0)
    cut = int(torch.searchsorted(starts, 0.95 * len(tokens)))  # the first sentence for validation
    train_split = tokens[: starts[cut]], starts[: cut + 1]
    val_split = tokens[starts[cut] :], starts[cut:] - starts[cut]
    if len(val_split[0]) < 10 * config.length:
        fail(f"{len(sentences)} sentences, which end at .!? or with the line, are too few; give a longer text")
    # Inverse document frequency, each sentence a document: a rare token tells more.
    frequency = torch.tensor([i for row in ids[:cut] for i in set(row)]).bincount(minlength=tokenizer.get_vocab_size())
    return tokenizer, train_split, val_split, ((1 + cut) / (1 + frequency)).log()


def draw(split, size, config):
    """-> rows [B, N], a window of each of `size` random sentences (a short one runs on into the next); what is left of
    them when round(delete_rate * N) tokens of each are deleted, and where that stood: [B, S] twice."""
    (tokens, starts), N = split, config.length
    i = torch.randint(len(starts) - 1, (size,))
    windows = (starts[i + 1] - starts[i] - N + 1).clamp(min=1)  # that the sentence has
    start = starts[i] + (torch.rand(size) * windows).long()
    rows = tokens[start.clamp(max=len(tokens) - N)[:, None] + torch.arange(N)]
    left = max(1, N - round(config.delete_rate * N))
    positions = torch.rand(size, N).argsort(1)[:, :left].sort(1).values
    return rows, rows.gather(1, positions), positions


class Attention(nn.Module):
    """z += softmax(q k' / sqrt(d)) v: queries from z, keys and values from x, or from z itself."""

    def __init__(self, H, heads):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(H, bias=False)
        self.q = nn.Linear(H, H, bias=False)
        self.kv = nn.Linear(H, 2 * H, bias=False)
        self.out = nn.Linear(H, H, bias=False)

    def forward(self, z, x=None):  # z [B, Q, H], x [B, S, H] -> [B, Q, H]
        normed = self.norm(z)
        k, v = self.kv(normed if x is None else x).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(normed), k, v))  # [B, h, ., d]
        return z + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """z += Wo(GELU(a) * g) with [a, g] = Wi z (GEGLU, arXiv:2002.05202)."""

    def __init__(self, H, intermediate):
        super().__init__()
        self.norm = nn.LayerNorm(H, bias=False)
        self.wi = nn.Linear(H, 2 * intermediate, bias=False)
        self.wo = nn.Linear(intermediate, H, bias=False)

    def forward(self, z):  # [B, Q, H] -> [B, Q, H]
        a, g = self.wi(self.norm(z)).chunk(2, -1)
        return z + self.wo(F.gelu(a) * g)


class ConceptModel(nn.Module):
    def __init__(self, config, vocab_size):
        super().__init__()
        C, N, H, h, inner = config.concepts, config.length, config.hidden, config.heads, config.intermediate
        self.tokens, self.positions = nn.Embedding(vocab_size, H), nn.Embedding(N, H)
        self.slots, self.queries = nn.Embedding(C, H), nn.Embedding(N, H)
        self.norm_tokens, self.norm_concepts = nn.LayerNorm(H, bias=False), nn.LayerNorm(H, bias=False)
        layers = [(Attention(H, h), Attention(H, h), FeedForward(H, inner)) for _ in range(config.layers)]
        self.encoder = nn.ModuleList(map(nn.ModuleList, layers))
        self.decoder = nn.ModuleList([Attention(H, h), FeedForward(H, inner), nn.LayerNorm(H, bias=False)])
        for module in self.modules():  # tables begin as N(0, 1), linears as N(0, 1/inputs)
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.normal_(module.weight, std=getattr(module, "in_features", 1) ** -0.5)
        nn.init.normal_(self.positions.weight, std=0.1)  # what a token is counts more than where it stands
        nn.init.constant_(self.norm_tokens.weight, 2**0.5)  # larger keys: sharper attention from the start

    def encode(self, ids, positions):
        """[B, S] twice -> concepts [B, C, H]. In each layer C learned slots read the tokens, at C x S products and not
        S x S, then each other (Perceiver, arXiv:2103.03206)."""
        x = self.norm_tokens(self.tokens(ids) + self.positions(positions))  # [B, S, H]
        z = self.slots.weight.expand(len(ids), -1, -1)
        for cross_attention, self_attention, feed_forward in self.encoder:
            z = feed_forward(self_attention(cross_attention(z, x)))
        return self.norm_concepts(z)

    def decode(self, concepts):
        """[B, C, H] -> logits [B, N, V]. A learned query a position reads the concepts, and nothing else."""
        cross_attention, feed_forward, norm = self.decoder
        z = self.queries.weight.expand(len(concepts), -1, -1)
        return self.head(norm(feed_forward(cross_attention(z, concepts))))

    def head(self, x):  # [..., H] -> [..., V]: the token table again, whose rows have norm sqrt(H)
        return F.linear(x * x.shape[-1] ** -0.5, self.tokens.weight)

    def losses(self, rows, ids, positions, idf):
        """What `draw` returns, idf [V] -> two losses in nats a token: TSDAE (arXiv:2104.06979) predicts each position,
        the bag of words (arXiv:1703.10960) from the mean concept which tokens there are, rare ones counting more."""
        concepts = self.encode(ids, positions)
        tsdae = F.cross_entropy(self.decode(concepts).flatten(0, 1), rows.flatten())
        log_p = self.head(F.rms_norm(concepts.mean(1), concepts.shape[2:])).log_softmax(1)  # [B, V]
        weights = idf[rows] / idf[rows].sum(1, keepdim=True).clamp_min(1e-6)  # [B, N], each row's sum is 1
        return tsdae, -(weights * log_p.gather(1, rows)).sum(1).mean()


def make_optimizer(model, config):
    decayed = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    others = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.LayerNorm)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def learning_rate(step, config):
    """Linear warm-up, then a cosine down to a tenth."""
    warm = min(1, (step + 1) / config.warmup)
    done = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * warm * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def train(config, train_split, val_split, idf):
    """-> model, validation losses of TSDAE and bag of words"""
    held_out = [draw(val_split, 32, config) for _ in range(32)]  # the same for every evaluation
    model = ConceptModel(config, len(idf))
    optimizer = make_optimizer(model, config)
    for step in range(config.steps + 1):
        if step % 200 == 0 or step == config.steps:
            with torch.no_grad():
                tsdae, bow = torch.tensor([model.losses(*batch, idf) for batch in held_out]).mean(0).tolist()
            print(f"step {step}: validation loss tsdae {tsdae:.3f}, bow {bow:.3f}", file=sys.stderr)
        if step == config.steps:
            return model, tsdae + bow
        loss = sum(model.losses(*draw(train_split, config.batch_size, config), idf))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def show(model, tokenizer, train_split, val_split, config):
    """Prints what becomes of held-out rows, and the nearest to each of 4,096 training rows."""
    (rows, ids, positions), (others, _, _) = draw(val_split, 3, config), draw(train_split, 4096, config)
    predicted = model.decode(model.encode(ids, positions)).argmax(2)
    vectors = [model.encode(x, torch.arange(config.length).expand_as(x)).mean(1) for x in (rows, others)]
    vectors = [F.normalize(x - vectors[1].mean(0), dim=1) for x in vectors]  # less what all texts share
    cosines, nearest = (vectors[0] @ vectors[1].T).topk(3)  # [3, 3]
    for i in range(3):
        lines = [("text", rows[i]), ("read", ids[i]), ("predicted", predicted[i])]
        lines += [(f"near {cosine:.2f}", others[j]) for cosine, j in zip(cosines[i], nearest[i], strict=True)]
        for name, line in lines:
            print(f"{name:<10}", " ".join(tokenizer.decode(line.tolist()).split()))
        print()


def main(argv):
    parser = argparse.ArgumentParser("nano.py", description=__doc__.strip().splitlines()[0], allow_abbrev=False)
    parser.error = lambda message: fail(f"{message}; --help lists the keys")
    for key in fields(Config):
        parser.add_argument(f"--{key.name}", type=key.type, default=key.default, help=f"default: {key.default}")
    config = Config(**vars(parser.parse_args(argv)))
    for key, value in vars(config).items():
        least, most = (0, 1) if isinstance(value, float) else (0 if key in ("steps", "seed") else 1, 10**9)
        if key != "file" and not least <= value <= most:
            fail(f"--{key}={value} is out of range; take {least} to {most}")
    if config.hidden % config.heads:
        fail(f"--hidden={config.hidden} does not divide into --heads={config.heads}; change one of them")
    torch.manual_seed(config.seed)
    tokenizer, train_split, val_split, idf = prepare(read_text(config.file) if config.file else docstrings(), config)
    model, val_loss = train(config, train_split, val_split, idf)
    show(model, tokenizer, train_split, val_split, config)
    print(f"val_loss {val_loss:.4f}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
