"""
Which tokens a model's concepts attend to, and of which types.

The model is not changed: its attention weights are recorded during a forward pass.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lab.analysis.words import TYPES, Words, token_types
from lab.data.tokenizers import pad_batch
from lab.distributed import exact_matmul
from lab.runs import LoadedRun

SEEN = 5  # tokens that occur less often are not listed
WEIGHTS = 1 << 19  # of a head, at once
BINS = 16  # of a row


class Watch(TorchFunctionMode):
    """Records the weights [B, C, S], mean over heads, with which the first C of C or C + R queries attend to S keys,
    wherever attention of this size is computed: softmax over keys, or over queries (slot attention)."""

    def __init__(self, mask: Tensor, concepts: int, registers: int):
        """mask [B, S]: True for tokens, False for padding."""
        super().__init__()
        rows, keys = mask.shape
        self.sizes, self.concepts = [(rows, n, keys) for n in (concepts, concepts + registers)], concepts
        self.mask, self.found = mask[:, None, None], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is F.scaled_dot_product_attention:
            q, k = args[:2]
            scores = (q @ k.mT) * q.shape[-1] ** -0.5
            if (mask := (kwargs or {}).get("attn_mask")) is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            self.keep(scores.softmax(-1))
        elif function is Tensor.softmax and out.dim() == 4 and args[1:2] == (2,):
            self.keep(out)
        return out

    def keep(self, weights: Tensor):
        """weights [B, h, queries, keys]"""
        if (len(weights), *weights.shape[2:]) in self.sizes:
            weights = weights[:, :, : self.concepts] * self.mask
            self.found.append((weights / weights.sum(-1, keepdim=True)).mean(1))


@dataclass
class Attention:
    """Attention of the concepts of n texts: weights [n, C, S] float32, mean over all layers that read the tokens, rows
    of sum 1, 0 at padding; ids: the tokens of each text."""

    weights: Tensor
    ids: list[list[int]]


def attention(run: LoadedRun, texts: list[str]) -> Attention | None:
    """`attention_of` their tokens, of a longer text the first max(lengths)."""
    return attention_of(run, [ids[: run.max_length] for ids in run.encode_texts(texts)])


@torch.no_grad()
def attention_of(run: LoadedRun, rows: list[list[int]]) -> Attention | None:
    """rows: ids of each text. None if the encoder's concepts do not attend to tokens (funnel: they attend to means of
    tokens; chunked: chunk by chunk), or if the texts are too short to distinguish tokens from latents."""
    config = run.model.config
    R, longest = config.registers, max(map(len, rows))
    C = run.model.options.concepts or config.concepts_of(longest)
    while longest in (C, C + R):  # latents attend to each other, too: a different number of keys distinguishes the two
        longest -= 1
    if longest < 1:
        return None
    rows = [row[:longest] for row in rows]
    ids, mask = (torch.from_numpy(x).to(run.device) for x in pad_batch(rows, run.config["pad_id"]))
    parts = []
    size = max(1, min(64, WEIGHTS // ((C + R) * longest)))
    for at in range(0, len(rows), size):
        some = ids[at : at + size], mask[at : at + size]
        with exact_matmul(), Watch(some[1], C, R) as watch:
            run.model.encode(some[0], mask=some[1], row_length=longest)
        if not watch.found:
            return None
        parts.append(torch.stack(watch.found).mean(0).float().cpu())
    return Attention(torch.cat(parts), rows)


def top_tokens(read: Attention, vocab: int, count: int = 8) -> list[list[tuple[int, float]]]:
    """For each concept its most distinctive tokens: (id, its attention to the token divided by the other concepts' mean
    attention), ordered by their contribution to the KL divergence between the two (share x log ratio), of tokens that
    occur SEEN times or more. A single concept is compared with uniform attention."""
    C = read.weights.shape[1]
    sums, seen = torch.zeros(vocab, C, dtype=torch.float64), torch.zeros(vocab)
    even = torch.zeros(vocab, 1, dtype=torch.float64)
    for weights, ids in zip(read.weights, read.ids, strict=True):
        index = torch.tensor(ids)
        sums.index_add_(0, index, weights[:, : len(ids)].T.double())
        times = torch.bincount(index, minlength=vocab)
        seen += times
        even += times[:, None].double() / len(ids)
    others = (sums.sum(1, keepdim=True) - sums) / (C - 1) if C > 1 else even
    ratio = sums / others.clamp_min(1e-12)
    tells = torch.where(seen[:, None] >= SEEN, torch.xlogy(sums, ratio), 0.0)
    values, tokens = tells.topk(min(count, vocab), 0)  # [count, C]
    return [
        [(int(t), ratio[t, c].item()) for t, v in zip(tokens[:, c], values[:, c], strict=True) if v > 0]
        for c in range(C)
    ]


def type_shares(run: LoadedRun, read: Attention) -> Tensor:
    """[C, kinds]: the share of each concept's attention that goes to each of the TYPES of tokens."""
    words_of, sums = Words(run.tokenizer), torch.zeros(read.weights.shape[1], len(TYPES), dtype=torch.float64)
    for weights, ids in zip(read.weights, read.ids, strict=True):
        types = torch.tensor([TYPES.index(name) for name in token_types(*words_of(ids))])
        sums.index_add_(1, types, weights[:, : len(ids)].double())
    return sums / len(read.ids)


def by_position(read: Attention) -> Tensor:
    """[C, BINS]: how much of its attention each concept gives to each part of the rows, where 1 is an even share. Rows
    of one length."""
    S = read.weights.shape[2]
    shares = torch.zeros(read.weights.shape[1], BINS)
    shares.index_add_(1, torch.arange(S) * BINS // S, read.weights.mean(0))
    even = torch.bincount(torch.arange(S) * BINS // S, minlength=BINS) / S
    return shares / even
