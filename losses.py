"""Losses: a vocabulary cross-entropy that never holds all its logits, and a contrastive loss of pooled concepts."""

import torch
import torch.nn.functional as F

# Rows of logits held at once. On the CPU 256 x 50,368 floats are 50 MB; a GPU wants larger products.
CPU_CHUNK, GPU_CHUNK = 256, 4096


def cross_entropy(hidden, weight, targets, *, weights=None, chunk=0, smoothing=0.0):
    """Cross-entropy of the logits `hidden @ weight.T` in nats, as a float32 scalar (float64 for float64 input).

    hidden [M, T], weight [V, T], targets [M] int64, or [M, n]: a bag of n targets for one softmax; weights like targets
    or None: the mean over targets; otherwise sum(weights * ce), so the weights carry the normaliser. smoothing: so much
    of a target is shared by all V tokens alike.
    At most `chunk` rows of logits exist at any one time (0: a default for the device).
    """
    rows, device = hidden.shape[0], hidden.device.type
    limit = chunk or (CPU_CHUNK if device == "cpu" else GPU_CHUNK)
    chunk = -(-rows // -(-rows // limit))  # chunks of nearly equal size
    if weights is None:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        weights = torch.full(targets.shape, 1.0 / targets.numel(), device=hidden.device, dtype=wide)
    targets, weights = targets.view(rows, -1), weights.view(rows, -1)  # [M, n]
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _ChunkedCrossEntropy.apply(hidden, weight, targets, weights, chunk, smoothing)
    dtype = _matmul_dtype(hidden)
    return _loss_and_gradients(hidden.to(dtype), weight.to(dtype), targets, weights, chunk, smoothing=smoothing)[0]


def _matmul_dtype(hidden):
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _wide(x):
    """The softmax and the sums are never done in half precision."""
    return x if x.dtype == torch.float64 else x.float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Each chunk's gradient is taken while its logits are there, so backward recomputes nothing.

    A checkpointed chunk would do the logits' product twice: a third more work for the head, at the same peak memory.
    The price: the two gradients ([M, T] and [V, T]) are held from here to backward. What is frozen costs none.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, weights, chunk, smoothing):
        dtype = _matmul_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            needed, h, w = ctx.needs_input_grad[:2], hidden.to(dtype), weight.to(dtype)
            total, grad_hidden, grad_weight = _loss_and_gradients(
                h, w, targets, weights, chunk, weight.dtype, needed, smoothing
            )
        ctx.save_for_backward(None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad):
        # In place: [V, T] is large. (So a second backward through the same graph is an error.)
        return *(saved if saved is None else saved.mul_(grad) for saved in ctx.saved_tensors), *[None] * 4


def _loss_and_gradients(hidden, weight, targets, weights, chunk, accumulate=None, needed=(False, False), smoothing=0.0):
    total, grad_hidden, grad_weight = 0.0, [], None
    for i in range(0, hidden.shape[0], chunk):
        part = slice(i, i + chunk)
        h, w, target = hidden[part], _wide(weights[part]), targets[part]
        logits = _wide(F.linear(h, weight))  # [chunk, V]
        logits = logits.sub_(logits.amax(1, keepdim=True))  # in place: a chunk of logits is the largest thing here
        at_target = logits.gather(1, target)
        if smoothing:
            at_target = at_target.mul_(1 - smoothing).add_(logits.mean(1, keepdim=True), alpha=smoothing)
        norm = logits.exp_().sum(1, keepdim=True)
        total = total + ((norm.log() - at_target) * w).sum()
        if not any(needed):
            del logits  # before the next chunk's are made
            continue
        softmax = logits.mul_(w.sum(1, keepdim=True) / norm)  # times the row's weight
        if smoothing:
            softmax = softmax.sub_(w.sum(1, keepdim=True), alpha=smoothing / weight.shape[0])
            w = w * (1 - smoothing)
        delta = softmax.scatter_add_(1, target, -w.to(logits.dtype)).to(h.dtype)  # w (softmax - onehot)
        if needed[0]:
            grad_hidden.append(delta @ weight)
        if needed[1] and grad_weight is None:
            grad_weight = (delta.T @ h).to(accumulate)
        elif needed[1] and h.dtype == accumulate:
            grad_weight = grad_weight.addmm_(delta.T, h)
        elif needed[1]:
            grad_weight = grad_weight.add_(delta.T @ h)  # bf16 products, summed in float32
        del logits, softmax, delta  # before the next chunk's are made
    return total, torch.cat(grad_hidden) if needed[0] else None, grad_weight


def contrastive(pooled, group, temperature, gather=None, rank=0):
    """Symmetric InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) with the batch as negatives (SimCSE,
    arXiv:2104.08821).

    pooled [B, H]: row i and row i + B/2 are two views of one text; group [B] int64: its document. The other view of a
    row is told from those of all other rows, but for rows of the same document. Mean over rows, nats; 0 where nothing
    is left to be told from. Over several ranks `gather` joins [n, ...] of every rank to [ranks * n, ...], with
    gradients, and each rank takes the mean over its own rows.
    """
    gather = gather or (lambda x: x)
    views, group = F.normalize(_wide(pooled), dim=-1).chunk(2), group.chunk(2)[0]  # [P, H] each, [P]
    own = torch.arange(len(group), device=group.device) + rank * len(group)
    same = group[:, None] == gather(group)
    same = same.scatter(1, own[:, None], False)  # the positive stays
    total = 0.0
    for mine, other in (views, views[::-1]):
        scores = mine @ gather(other).T / temperature  # [P, P over all ranks]
        total = total + F.cross_entropy(scores.masked_fill(same, -torch.inf), own)
    return total / 2
