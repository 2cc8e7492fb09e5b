"""Losses: chunked cross-entropy over the vocabulary, InfoNCE of pooled concepts, regularisers of the concepts and
their balance with the task."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

# Rows of logits held at once. On the CPU 256 x 50,368 floats are 50 MB; a GPU wants larger products.
CPU_CHUNK, GPU_CHUNK = 256, 4096


def cross_entropy(hidden, weight, targets, *, weights=None, chunk=0, smoothing=0.0):
    """Cross-entropy of the logits `hidden @ weight.T` in nats, as a float32 scalar (float64 for float64 input).

    hidden [M, T], weight [V, T]; targets [M] int64, or [M, n]: n targets for one softmax. weights, shaped like targets:
    the loss is sum(weights * ce), so they carry the normaliser; None: the mean over targets. smoothing: label
    smoothing, the share of a target spread over all V tokens.
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


def autocast_device(x):
    """The device type of x for autocast, which has none for meta tensors (they only count FLOPs)."""
    return "cpu" if x.is_meta else x.device.type


def _matmul_dtype(hidden):
    device = autocast_device(hidden)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _wide(x):
    """At least float32: softmax and sums never run in half precision."""
    return x if x.dtype == torch.float64 else x.float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Takes each chunk's gradient in the forward, while its logits exist, so backward recomputes nothing.

    Checkpointing would compute the logits twice: a third more work for the head, at the same peak memory. The price:
    both gradients ([M, T] and [V, T]) are kept until backward. Frozen inputs have none.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, weights, chunk, smoothing):
        dtype = _matmul_dtype(hidden)
        with torch.autocast(autocast_device(hidden), enabled=False):
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
            torch.addmm(grad_weight, delta.T, h, out=grad_weight)  # (torch's FLOP counter knows no addmm_)
        elif needed[1]:
            grad_weight = grad_weight.add_(delta.T @ h)  # bf16 products, summed in float32
        del logits, softmax, delta  # before the next chunk's are made
    return total, torch.cat(grad_hidden) if needed[0] else None, grad_weight


def centred_cosine(predicted, target):
    """1 - cosine of predicted and target [B, ..., W], the mean over all but the last dimension, as a float32 scalar.

    The target is first centred over the batch, so a prediction that ignores the text has a loss of about 1 (a constant
    reaches 0.985 where the centred targets differ in norm). A centred target shorter than a thousandth of the target is
    rounding error, and counts less in proportion. No gradient reaches the target."""
    target = _wide(target.detach())
    change = target - target.mean(0)
    least = 1e-3 * torch.linalg.vector_norm(target, dim=-1, keepdim=True)
    change = change / torch.maximum(torch.linalg.vector_norm(change, dim=-1, keepdim=True), least).clamp_min(1e-12)
    return 1 - (F.normalize(_wide(predicted), dim=-1) * change).sum(-1).mean()


def maxsim(cosines):
    """Cosines of two sets of vectors [..., n, m] -> [...]: the mean over a set's vectors of the largest cosine with one
    of the other set, averaged over both directions (Khattab & Zaharia 2020, arXiv:2004.12832)."""
    return (cosines.amax(-1).mean(-1) + cosines.amax(-2).mean(-1)) / 2


def contrastive(sets, group, temperature, gather=None, rank=0):
    """Symmetric InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) with the batch as negatives (SimCSE,
    arXiv:2104.08821).

    sets [B, H] or [B, n, H]: one vector per row, or n; rows i and i + B/2 are two views of one text; group [B] int64:
    its document. Similarity is the cosine, of n vectors `maxsim`. The negatives of a row are the other views of all
    rows of other documents. Mean over rows, in nats; 0 where there are no negatives. Over several ranks `gather` joins
    [n, ...] of every rank to [ranks * n, ...], with gradients, and each rank takes the mean over its own rows.
    """
    gather = gather or (lambda x: x)
    views, group = F.normalize(_wide(sets), dim=-1).chunk(2), group.chunk(2)[0]  # [P, (n,) H] each, [P]
    own = torch.arange(len(group), device=group.device) + rank * len(group)
    same = group[:, None] == gather(group)
    same = same.scatter(1, own[:, None], False)  # the positive stays
    total = 0.0
    for mine, other in (views, views[::-1]):
        if sets.dim() == 2:
            scores = mine @ gather(other).T / temperature  # [P, P over all ranks]
        else:
            scores = maxsim(torch.einsum("pnh,qmh->pqnm", mine, gather(other))) / temperature
        total = total + F.cross_entropy(scores.masked_fill(same, -torch.inf), own)
    return total / 2


# ---------------------------------------------------------------------------------------------------------------------
# Concept losses: functions of the concepts [B, C, H] alone, against their collapse. To add one: a function of points
# under @of_points, or of samples under @of_samples; it is found by its name in `concept_loss = "..."` and in --help.

CONCEPT_LOSSES: dict[str, Callable] = {}  # name -> function of (concepts [B, C, H], axis) -> scalar


def of_points(function):
    """Registers a loss of groups of points [G, n, H]: axis "slots": the C concepts of each of B samples; "samples": one
    group, the B means over concepts. 0 where a group has one point."""

    @wraps(function)
    def loss(concepts, axis="slots"):
        points = _wide(concepts) if axis == "slots" else _wide(concepts).mean(1)[None]
        return function(points) if points.shape[1] > 1 else 0.0 * points.sum()

    CONCEPT_LOSSES[function.__name__] = loss
    return loss


def of_samples(function):
    """Registers a loss of samples [B, C, H], whose statistics are over the batch; axis "samples": of [B, 1, H], their
    means over concepts. 0 where there is one sample."""

    @wraps(function)
    def loss(concepts, axis="slots"):
        samples = _wide(concepts) if axis == "slots" else _wide(concepts).mean(1, keepdim=True)
        return function(samples) if len(samples) > 1 else 0.0 * samples.sum()

    CONCEPT_LOSSES[function.__name__] = loss
    return loss


def _cosines(points):
    """[G, n, H] -> cosines [G, n, n] with 0 on the diagonal, and how many pairs there are (both ways)."""
    unit = F.normalize(points, dim=-1)
    groups, n = points.shape[:2]
    other = ~torch.eye(n, dtype=torch.bool, device=points.device)
    return (unit @ unit.mT) * other, groups * n * (n - 1)


@of_points
def orthogonality(points):
    """Mean squared cosine of two points (the original project's).

    0: all orthogonal; 1: all parallel."""
    cosines, pairs = _cosines(points)
    return cosines.square().sum() / pairs


@of_points
def soft_orthogonality(points):
    """Mean squared excess of a cosine's absolute value over 0.1 (the original project's)."""
    cosines, pairs = _cosines(points)
    return F.relu(cosines.abs() - 0.1).square().sum() / pairs


@of_points
def uniformity(points):
    """Mean exp(-2 d^2) over pairs of points of unit norm at distance d (the original project's).

    0.0183 for orthogonal points, 1 for equal ones. The paper takes the logarithm: log_uniformity."""
    cosines, pairs = _cosines(points)
    n = points.shape[1]
    diagonal = len(points) * n * math.exp(-4)  # where `cosines` has 0
    return (torch.exp(4 * cosines - 4).sum() - diagonal) / pairs


@of_points
def log_uniformity(points):
    """The logarithm of uniformity, per group (Wang & Isola 2020, arXiv:2005.10242).

    Negative, so it has no minimum under kendall_gal."""
    cosines, _ = _cosines(points)
    n = points.shape[1]
    itself = torch.eye(n, dtype=torch.bool, device=points.device)
    exponents = (4 * cosines - 4).masked_fill(itself, -torch.inf)
    return (exponents.flatten(1).logsumexp(1) - math.log(n * (n - 1))).mean()


def _short_of_one(x):
    """x [n, ...] -> mean over the other dimensions of max(0, 1 - standard deviation over n), as in VICReg."""
    return F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean()


def _covariances(x):
    """x [n, C, H] -> sum of squared off-diagonal covariances (over n) divided by H: mean over C."""
    x = (x - x.mean(0)).transpose(0, 1)  # [C, n, H]
    n, width = x.shape[1:]
    gram = x @ x.mT if n < width else x.mT @ x  # the smaller one: both have the same sum of squares
    own = x.square().sum(1).square().sum()
    return (gram.square().sum() - own) / ((n - 1) ** 2 * width * len(x))


@of_samples
def variance(samples):
    """Mean of max(0, 1 - standard deviation over the batch) of each concept's dimensions (arXiv:2105.04906)."""
    return _short_of_one(samples)


@of_samples
def covariance(samples):
    """Squared covariances over the batch between each concept's dimensions (arXiv:2105.04906)."""
    return _covariances(samples)


@of_samples
def vicreg(samples):
    """25 variance + covariance, both over the batch, without invariance (Bardes et al. 2021, arXiv:2105.04906).

    Constant differences between slots do not count; in vicreg_flat they do."""
    return 25 * _short_of_one(samples) + _covariances(samples)


@of_points
def vicreg_flat(points):
    """variance + covariance over all concepts of the batch as one set (the original project's vicreg).

    Constant slots satisfy it, and after a LayerNorm its variance term is almost always 0."""
    flat = points.flatten(0, 1)
    return _short_of_one(flat) + _covariances(flat[:, None])


@of_points
def combined(points):
    """variance as in vicreg_flat + uniformity (the original project's combined)."""
    return _short_of_one(points.flatten(0, 1)) + uniformity(points)


EXACT = "donot_use_mm_for_euclid_dist"  # TensorFloat-32 products would choose neighbours by rounding error


@torch.no_grad()
def minimum_spanning_tree(points):
    """points [G, n, H] -> the two ends of the n - 1 edges of each group's tree: int64 [G, n - 1] twice. Prim's
    algorithm, on all groups at once; nothing waits for the device."""
    groups, n = points.shape[:2]
    if points.is_meta:  # FLOPs are counted: it has none
        return (points.new_empty(groups, n - 1, dtype=torch.int64),) * 2
    points = points - points.mean(1, keepdim=True)  # a common offset would cost precision
    distances = torch.cdist(points, points, compute_mode=EXACT)
    nearest = torch.zeros(groups, n, dtype=torch.int64, device=points.device)  # in the tree, which begins with point 0
    gap, outside = distances[:, 0], torch.ones(groups, n, dtype=torch.bool, device=points.device)
    outside[:, 0] = False
    ends = []
    for _ in range(n - 1):
        new = gap.masked_fill(~outside, torch.inf).argmin(1, keepdim=True)  # [G, 1]
        ends.append((nearest.gather(1, new), new))
        outside.scatter_(1, new, False)
        row = distances.gather(1, new[..., None].expand(-1, 1, n))[:, 0]
        nearest, gap = torch.where(row < gap, new, nearest), torch.minimum(row, gap)
    return tuple(torch.cat(end, 1) for end in zip(*ends, strict=True))


def _distance(points, one, other):
    """Of points [G, n, H] numbered one and other, [G, m] each: [G, m]. Its gradient is 0 where they are equal."""
    one, other = (points.gather(1, i[..., None].expand(-1, -1, points.shape[2])) for i in (one, other))
    return torch.linalg.vector_norm(one - other, dim=-1)


@of_points
def tregs(points):
    """Minus the minimum spanning tree's length per point, plus mean (norm - 1)^2 (arXiv:2510.23484).

    T-REGS, Mordacq et al. 2025, scaled so that a layer-normed concept has norm 1. Only the tree's edges get gradients.
    Unlike with nearest neighbours, separate clusters push each other apart, too."""
    points = points / points.shape[2] ** 0.5
    tree = _distance(points, *minimum_spanning_tree(points)).sum(1) / points.shape[1]
    return (torch.linalg.vector_norm(points, dim=-1) - 1).square().mean() - tree.mean()


@of_points
def t_regs_mst(points):
    """Minus the mean distance to the nearest neighbour, of points of unit norm (the original project's).

    Equal points have no gradient."""
    unit = F.normalize(points, dim=-1)
    itself = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    distances = torch.cdist(unit.detach(), unit.detach(), compute_mode=EXACT)
    near = distances.masked_fill(itself, torch.inf).argmin(2)  # [G, n]
    own = torch.arange(points.shape[1], device=points.device).expand_as(near)
    return -_distance(unit, own, near).mean()


# ---------------------------------------------------------------------------------------------------------------------
# Their balance with the task


def _described():
    return "; ".join(f"{name}: {loss.__doc__.splitlines()[0].rstrip('.')}" for name, loss in CONCEPT_LOSSES.items())


@dataclass
class ConceptLossConfig:
    concept_loss: Annotated[
        str, lambda: f"regularisers, one or more, as 'variance,tregs'; empty: none. {_described()}"
    ] = ""
    concept_loss_axis: Annotated[
        Literal["slots", "samples"], "applied to the concepts of each text, or to a batch's texts (mean concepts)"
    ] = "slots"
    concept_balance: Annotated[
        Literal["gradient_share", "fixed", "kendall_gal"],
        "gradient_share: a concept loss's gradient at the concepts is concept_share of the task's in norm, each step; "
        "fixed: weight concept_weight; kendall_gal: the original's learnt weights, for study (they mute the task)",
    ] = "gradient_share"
    concept_share: Annotated[float, "gradient_share: norm of each loss's gradient, as a share of the task's"] = 0.05
    concept_weight: Annotated[float, "fixed: weight of each concept loss; the task's is 1"] = 0.1

    def __post_init__(self):
        self.names = [name.strip() for name in self.concept_loss.split(",")] if self.concept_loss.strip() else []
        if wrong := [name for name in self.names if name not in CONCEPT_LOSSES]:
            known = ", ".join(CONCEPT_LOSSES)
            raise ValueError(f"concept_loss {self.concept_loss!r}: {wrong[0]!r} is none; write one or more of {known}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"concept_loss {self.concept_loss!r} names one twice; name it once")
        if not 0 < self.concept_share or self.concept_share * max(1, len(self.names)) >= 1:
            raise ValueError(
                f"concept_share={self.concept_share} of each concept loss can outweigh the task; "
                "take shares above 0 whose sum is below 1"
            )
        if not 0 <= self.concept_weight < math.inf:
            raise ValueError(f"concept_weight={self.concept_weight} is no weight; take a number of 0 or more")

    def unused(self) -> set[str]:
        """Keys that make no difference."""
        keys = {"concept_loss_axis", "concept_balance", "concept_share", "concept_weight"}
        read = {"gradient_share": {"concept_share"}, "fixed": {"concept_weight"}, "kendall_gal": set()}
        return keys - ({"concept_loss_axis", "concept_balance"} | read[self.concept_balance] if self.names else set())

    def warnings(self, concepts: int, hidden: int) -> list[str]:
        found = []
        if self.names and self.concept_balance == "kendall_gal":
            found.append(
                "concept_balance='kendall_gal' drives each loss L to the weight 1/(2L): a task at 4.3 nats to 0.12, a "
                "concept loss near 0 to any size (the original's lost 46 % on STS-B); gradient_share cannot mute "
                "the task"
            )
        if "orthogonality" in self.names and self.concept_loss_axis == "slots" and concepts > hidden:
            found.append(f"{concepts} concepts of width {hidden} cannot all be orthogonal")
        return found


class _SplitGradient(torch.autograd.Function):
    """Copies, not views: torch.compile gives wrong gradients for outputs that share memory (2.13)."""

    @staticmethod
    def forward(ctx, concepts, norms, share):
        ctx.share = share
        return tuple(concepts.clone() for _ in range(len(norms)))

    @staticmethod
    def backward(ctx, task, *others):
        norms = torch.stack([torch.linalg.vector_norm(_wide(gradient)) for gradient in (task, *others)])
        total = task
        for gradient, norm in zip(others, norms[1:], strict=True):
            scale = 1.0 if ctx.share is None else torch.where(norm > 0, ctx.share * norms[0] / norm, 0.0)
            total = total + (scale * gradient).to(task.dtype)
        return total, norms, None


def split_gradient(concepts, norms, share: float | None):
    """concepts -> one copy for each number in `norms`: the first for the task, then one per concept loss.

    Backward scales the gradient of each concept loss to `share` times the norm of the task's (None: no scaling; a zero
    gradient stays 0) and adds it to the task's. While the shares sum to less than 1, the sum never opposes the task.
    (Norms are of one micro-batch, so another micro_batch gives another sum.) The value of `norms` [1 + n] is not used;
    its gradient is the norms of the gradients that came back.
    """
    return _SplitGradient.apply(concepts, norms, share)


class Balance:
    """The concept losses of a run, weighted against its task. False where there are none."""

    def __init__(self, config: ConceptLossConfig, device="cpu"):
        self.config, n = config, len(config.names)
        self.losses = [CONCEPT_LOSSES[name] for name in config.names]
        shares = config.concept_balance == "gradient_share"
        self.norms = torch.zeros(1 + n, device=device, requires_grad=True)
        self.split = (self.norms, config.concept_share if shares else None)  # what the model's forward takes
        # kendall_gal: log variances of the task and of each loss
        learnt = n and config.concept_balance == "kendall_gal"
        self.log_variances = torch.nn.Parameter(torch.zeros(1 + n, device=device)) if learnt else None
        self.sums = torch.zeros(2 * n + 1, device=device)  # over the step so far: losses; weights, the task's first
        self.step = None  # of the last step: sums and gradient norms

    def __bool__(self):
        return bool(self.losses)

    def parameters(self) -> list:
        return [] if self.log_variances is None else [self.log_variances]

    def total(self, task, passes, parts: int = 1):
        """task: its loss; passes: for each encoder pass, one copy of the concepts per concept loss -> the scalar to
        differentiate. A concept loss is the mean over passes."""
        config, axis = self.config, self.config.concept_loss_axis
        losses = [sum(f(c[i], axis) for c in passes) / len(passes) for i, f in enumerate(self.losses)]
        losses = torch.stack([task, *losses])  # [1 + n]
        weights, rest = torch.ones_like(losses), 0.0
        if config.concept_balance == "kendall_gal":  # Kendall et al. 2018, arXiv:1705.07115; at ds = 0 1/(2L)
            weights, rest = 0.5 * torch.exp(-self.log_variances), 0.5 * self.log_variances.sum()
        elif config.concept_balance == "fixed":
            weights = torch.cat([weights[:1], config.concept_weight * weights[1:]])
        self.sums += torch.cat([losses[1:], weights]).detach() / parts
        return (weights * losses).sum() + rest

    def finish(self, mean: Callable):
        """Ends a step; mean: a function that averages a tensor over ranks. Does not wait for the device."""
        learnt = self.log_variances is not None
        parts = [self.sums, self.norms.grad, *([self.log_variances.grad] if learnt else [])]
        self.step = mean(torch.cat(parts)).split([len(part) for part in parts])
        if learnt:
            self.log_variances.grad = self.step[2]
        self.norms.grad, self.sums = None, torch.zeros_like(self.sums)

    def numbers(self) -> dict[str, float]:
        """Metrics of the last step: losses, their weights, and the norms of their weighted gradients at the concepts;
        means over micro-batches and ranks."""
        names, (sums, norms) = self.config.names, (x.tolist() for x in self.step[:2])
        losses, weights = sums[: len(names)], sums[len(names) :]
        if self.config.concept_balance == "gradient_share":
            share = self.config.concept_share
            weights[1:] = [share * norms[0] / norm if norm else 0.0 for norm in norms[1:]]
            norms[1:] = [weight * norm for weight, norm in zip(weights[1:], norms[1:], strict=True)]
        found = {"concept_weight_task": weights[0], "grad_task": norms[0]}
        for name, loss, weight, norm in zip(names, losses, weights[1:], norms[1:], strict=True):
            found |= {f"concept_loss_{name}": loss, f"concept_weight_{name}": weight, f"grad_concept_{name}": norm}
        return found

    def state(self) -> dict[str, list[float]]:
        return {} if self.log_variances is None else {"log_variances": self.log_variances.tolist()}

    @torch.no_grad()
    def load(self, state: dict):
        if self.log_variances is not None:
            self.log_variances.copy_(torch.tensor(state["log_variances"]))
