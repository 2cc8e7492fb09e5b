"""
Which tokens a model's concepts read, and whether a concept prefers a class of words.

Nothing of the model is changed: the products of its attention are watched while it reads.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lab import dataset
from lab.distributed import exact_matmul
from lab.runs import LoadedRun
from lab.words import CLASSES, Words, classes_of

ROUNDS = 200  # permutations of a test
SEEN = 5  # times that a token must occur to be told as one that a concept reads


class Watch(TorchFunctionMode):
    """Keeps the weights [B, C, S] with which the first C of C or C + R queries attend to S keys, mean over heads,
    wherever an attention of such a size is computed: softmax over keys, or over queries where slots compete."""

    def __init__(self, mask: Tensor, concepts: int, registers: int):
        """mask [B, S]: True where there is a token."""
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
    """What the concepts of texts read: weights [n, C, S] float32, each row of sum 1, mean over all reads of the tokens;
    0 where a text has ended; ids: the tokens of each text."""

    weights: Tensor
    ids: list[list[int]]


@torch.no_grad()
def attention(run: LoadedRun, texts: list[str]) -> Attention | None:
    """None where the encoder's concepts do not attend to tokens (funnel: they read means of them), or texts are too
    short to tell tokens from latents."""
    rows = [ids[: run.max_length] for ids in run.encode_texts(texts)]
    config = run.model.config
    C, R, longest = run.model.options.concepts or config.concepts, config.registers, max(map(len, rows))
    while longest in (C, C + R):  # latents attend to each other too: another number of columns tells the two apart
        longest -= 1
    if longest < 1:
        return None
    rows = [row[:longest] for row in rows]
    ids, mask = (torch.from_numpy(x).to(run.device) for x in dataset.pad_batch(rows, run.config["pad_id"]))
    parts = []
    for at in range(0, len(rows), 64):
        some = ids[at : at + 64], mask[at : at + 64]
        with exact_matmul(), Watch(some[1], C, R) as watch:
            run.model.encode(some[0], mask=some[1])
        if not watch.found:
            return None
        parts.append(torch.stack(watch.found).mean(0).float().cpu())
    return Attention(torch.cat(parts), rows)


def top_tokens(read: Attention, vocab: int, count: int = 8) -> list[list[tuple[int, float]]]:
    """For each concept the tokens that it reads most beyond their share: (id, mean weight over what it would have if
    the concept read all positions of a text alike), of those that occur often enough."""
    sums = torch.zeros(vocab, read.weights.shape[1], dtype=torch.float64)
    seen, even = torch.zeros(vocab), torch.zeros(vocab, dtype=torch.float64)
    for weights, ids in zip(read.weights, read.ids, strict=True):
        index = torch.tensor(ids)
        sums.index_add_(0, index, weights[:, : len(ids)].T.double())
        seen += torch.bincount(index, minlength=vocab)
        even += torch.bincount(index, minlength=vocab).double() / len(ids)
    lift = torch.where(seen[:, None] >= SEEN, sums / even.clamp_min(1e-12)[:, None], 0.0)
    values, tokens = lift.topk(min(count, vocab), 0)  # [count, C]
    columns = zip(tokens.T.tolist(), values.T.tolist(), strict=True)
    return [[(t, v) for t, v in zip(*column, strict=True) if v > 0] for column in columns]


def class_numbers(run: LoadedRun, ids: list[list[int]]) -> Tensor:
    """[n, S] int64: the class of the word that each token is of, -1 where a text has ended."""
    numbers, words_of = torch.full((len(ids), max(map(len, ids))), -1), Words(run.tokenizer)
    for row, own in zip(numbers, ids, strict=True):
        words, word = words_of(own)
        classes = [CLASSES.index(name) for name in classes_of(words)]
        row[: len(own)] = torch.tensor([classes[w] for w in word])
    return numbers


def preferences(run: LoadedRun, read: Attention) -> tuple[Tensor, Tensor, Tensor]:
    """The `specialisation` of a run's concepts for the CLASSES of words."""
    return specialisation(read.weights, class_numbers(run, read.ids), len(CLASSES))


def specialisation(weights: Tensor, classes: Tensor, kinds: int, rounds: int = ROUNDS, seed: int = 0):
    """
    weights [n, C, S], classes [n, S] below `kinds` or -1 -> share of its attention that each concept gives to each
    class [C, kinds]; the same share when the classes are those of other texts of the same length, at the same
    positions, mean over permutations of these [C, kinds]; p [C]: how often a permutation differs from that mean as
    much, by the sum of (share - mean)^2 / mean. (Of the same length: all texts end in a full stop.)
    """
    n, C, _ = weights.shape
    flat = weights.transpose(0, 1).reshape(C, -1).double()
    marks = F.one_hot(classes.clamp_min(0), kinds).double() * (classes >= 0)[..., None]  # [n, S, kinds]

    def share(order):
        sums = flat @ marks[order].flatten(0, 1)
        return sums / sums.sum(1, keepdim=True)

    generator, lengths = torch.Generator().manual_seed(seed), (classes >= 0).sum(1)
    own, sorted_ = share(torch.arange(n)), lengths.argsort(stable=True)

    def permuted():
        """Texts of one length change places."""
        order = torch.empty_like(sorted_)
        order[sorted_] = (lengths + torch.rand(n, generator=generator, dtype=torch.float64)).argsort()
        return order

    others = torch.stack([share(permuted()) for _ in range(rounds)])
    mean = others.mean(0)

    def distance(x):
        return ((x - mean).square() / mean.clamp_min(1e-6)).sum(-1)

    p = (1 + (distance(others) >= distance(own) - 1e-12).sum(0)) / (1 + rounds)
    return own, mean, p
