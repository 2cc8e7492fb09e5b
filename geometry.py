"""
Do the concepts mean anything? Numbers about concepts c [B, C, H]: B texts (rows of one length), C slots, width H.
Each number is defined once, here, under its name in metrics.jsonl; training, analysis and comparison all use it.

Two traps are avoided. The rank of the batch mean, the original project's (`rank_original`), measures constant slots and
a common offset, not content: constant slots score 127 of 128, rich content with an offset 1.1. And rounding noise has
full rank: constant slots in float32 score 123.6 of 128 once centred. Hence ranks are of what changes with the text,
with a threshold for zero, and are never shown without `input_share`.

Ranks are Roy and Vetterli's (EUSIPCO 2007): exp(entropy of the singular values divided by their sum), in float64.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

TOKENS, FEWEST = 1 << 18, 32  # of long rows fewer are taken, so that they have no more tokens
ROWS = 256  # minimal and usual number of rows: `rank_pooled` grows with it, so compare runs with the same
ZERO = 1e-3  # singular values of a centred matrix below this share of an uncentred slot's norm are zero (see `floor`)

# Thresholds of `verdict`.
STATIC_SHARE = 0.05  # below this input share the slots are learned constants, whatever their rank
IGNORED_NATS = 0.05  # if concepts of another text cost less, the decoder ignores them
DEAD_SHARE = 0.01  # a slot whose variance is below this share of the mean slot's is dead
LOW_RANK = 1 / 8  # of C, but at least 2 directions: collapsed runs fell to 5 of 128, live ones kept 31 and more
SAME_COSINE = 0.99  # two slots of one text with a larger cosine are duplicates

# ---------------------------------------------------------------------------------------------------------------------
# ranks


def singular_values(x: Tensor) -> Tensor:
    """x [..., n, D] -> its singular values [..., min(n, D)] in float64, ascending: roots of the eigenvalues of the
    smaller Gram matrix, several times as fast as an SVD. Squaring loses half of the digits: values below 1e-7 of the
    largest become 0, which matters to no number here."""
    x = x.double()
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    squares = torch.linalg.eigvalsh(gram.cpu()).to(x.device)  # CUDA solves one matrix after the other
    rounding = squares.amax(-1, keepdim=True) * gram.shape[-1] * torch.finfo(torch.float64).eps
    return torch.where(squares > rounding, squares, 0.0).sqrt()


def isotropic(x: Tensor, remove: int, whitening: float) -> tuple[Tensor, Tensor]:
    """x [n, D] in float64 -> (mean [D], matrix [D, D]), to apply as (y - mean) @ matrix.

    The first `remove` principal directions of x are removed (Mu & Viswanath, arXiv:1702.01417); the others, of standard
    deviation sigma, are scaled by sigma^-whitening (1: Su et al., arXiv:2103.15316), relative to the largest.
    """
    mean = x.mean(0)
    variance, directions = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))  # ascending
    scale = (variance / variance[-1].clamp_min(1e-30)).clamp_min(ZERO**2) ** (-whitening / 2)
    scale[len(scale) - remove :] = 0.0
    return mean, directions * scale @ directions.T


def effective_rank(x: Tensor, unit: float = 0.0) -> Tensor:
    """x [..., n, D] -> [...]: exp(-sum p log p) with p = sigma / sum(sigma), from 1 to min(n, D). Singular values below
    `unit` count as zero; a matrix that has no others is of rank 0."""
    sigma = singular_values(x)
    p = normalize(torch.where(sigma < unit, 0.0, sigma), p=1, dim=-1, eps=1e-300)
    return torch.special.entr(p).sum(-1).exp() * p.any(-1)


def floor(c: Tensor) -> float:
    """1e-3 of the root-mean-square norm of an uncentred slot: smaller changes are rounding, not content."""
    return ZERO * torch.linalg.vector_norm(c, dtype=torch.float64).item() / (c.shape[0] * c.shape[1]) ** 0.5


def rows_of(length: int) -> int:
    """How many rows of `length` tokens the numbers are taken of: ROWS up to 1,024 tokens, fewer beyond."""
    return max(FEWEST, min(ROWS, TOKENS // length))


def centred(c: Tensor) -> Tensor:
    """c[b, s] - mean over b of c[., s], in float64: each slot without its constant part."""
    return c - c.mean(0, dtype=torch.float64)


def rank_slot_centred(c: Tensor) -> float:
    """How many directions a text's slots span with what is specific to the text: mean over b of the effective rank of
    the C x H matrix centred(c)[b]. 0: the slots are constant; 1: all carry the same content; at most C."""
    mean, unit = c.mean(0, dtype=torch.float64), floor(c)
    return torch.cat([effective_rank(part - mean, unit) for part in c.split(ROWS)]).mean().item()


# ---------------------------------------------------------------------------------------------------------------------
# shares and similarities


def variances(c: Tensor) -> Tensor:
    """[C]: mean over b of |c[b, s] - mean_b c[., s]|^2, how much each slot changes with the text. Computed as E|c|^2 -
    |E c|^2, whose rounding in float64 is far below `floor`."""
    squares = torch.linalg.vector_norm(c, dim=-1, dtype=torch.float64).square().mean(0)
    return squares - c.mean(0, dtype=torch.float64).square().sum(-1)


def input_share(c: Tensor) -> float:
    """Share of the concepts' variance that is due to the input: sum |c - mean_b c|^2 / sum |c - mean_bs c|^2.
    0: constant slots; 1: the slots differ in content alone. A change below `floor` counts as none."""
    own = variances(c).mean().item()
    slots = c.mean(0, dtype=torch.float64)  # [C, H], the constant part, with the rest of the variance
    between = (slots - slots.mean(0)).square().sum(-1).mean().item()
    return own / (own + between) if own > floor(c) ** 2 else 0.0


def cosines(c: Tensor) -> Tensor:
    """Cosines of all pairs of different slots of one text, uncentred; 0 for a single slot, or one of norm 0."""
    unit = normalize(c.double(), dim=-1)
    one, other = torch.triu_indices(c.shape[1], c.shape[1], 1)
    return (unit @ unit.mT)[:, one, other] if len(one) else torch.zeros(len(c), 1)


def concept_geometry(concepts: Tensor, least: int = ROWS, pooled: Tensor | None = None) -> dict[str, float]:
    """All numbers about concepts [B, C, H] of B >= 256 rows of one length, by their names in metrics.jsonl. least: the
    minimal B, less than 256 for a rough check. pooled [B, H]: what `embed` returns for them; None: their means.

    The texts must be random, encoded without dropout and in float32 (bfloat16's rounding is as large as `floor`). With
    few rows each is a large part of the mean that it is compared with."""
    if len(concepts) < least:
        raise ValueError(f"ranks of {len(concepts)} rows mislead; give at least {least} rows of one length")
    c = concepts.detach()
    c = c.cpu() if c.device.type == "mps" else c  # which has no float64
    pooled = c.mean(1, dtype=torch.float64) if pooled is None else pooled.to(c.device)
    own, parts = variances(c), c.split(ROWS)  # to save memory: float64, and C x C numbers per row
    pairs = [(x.abs().mean(1), x.max().item()) for x in map(cosines, parts)]
    static = singular_values(c.mean(0, dtype=torch.float64))
    return {
        "rank_slot_centred": rank_slot_centred(c),
        # Of the uncentred c[b]. Near 1 with a high slot-centred rank: an offset common to all slots, so cosines need
        # centring.
        "rank_raw": torch.cat([effective_rank(part) for part in parts]).mean().item(),
        # How many directions distinguish texts: of the B x H matrix of embeddings, centred over texts. At most
        # min(B - 1, H); compare only runs of the same B and H.
        "rank_pooled": effective_rank(centred(pooled), floor(c)).item(),
        "input_share": input_share(c),
        # Slots whose variance is below 1 % of the mean slot's, or below the floor.
        "dead_slots": int((own < max(DEAD_SHARE * own.mean().item(), floor(c) ** 2)).sum()),
        "sim_mean": torch.cat([mean for mean, _ in pairs]).mean().item(),
        "sim_max": max(most for _, most in pairs),
        # The original project's "effective rank", to compare with its logs. It does not measure content.
        "rank_original": (static.sum() / static.max()).item() if static.any() else 0.0,
    }


def nearer_halves(first: Tensor, second: Tensor) -> dict[str, float]:
    """Vectors [B, H] of the first and of the second halves of B rows -> `halves`: the share of other rows' halves to
    which a half is less similar than to the other half of its own row (cosines, centred on the mean of all; chance:
    0.5, for every B), and its standard error over rows, `halves_error`."""
    x = torch.cat([first, second])
    x = x.cpu() if x.device.type == "mps" else x
    x, unit = centred(x), floor(x[:, None])
    x, y = normalize(torch.where(torch.linalg.vector_norm(x, dim=-1, keepdim=True) < unit, 0.0, x), dim=-1).chunk(2)
    cosines, shares = x @ y.mT, 0.0
    for one in (cosines, cosines.mT):
        own = one.diagonal()[:, None]
        shares = shares + ((one < own).sum(1) + ((one == own).sum(1) - 1) / 2) / (2 * (len(x) - 1))
    return {"halves": shares.mean().item(), "halves_error": (shares.std() / len(x) ** 0.5).item()}


# ---------------------------------------------------------------------------------------------------------------------
# use by the decoder: numbers that do not depend on geometry


def ablations(concepts: Tensor) -> dict[str, Tensor]:
    """concepts [B, C, H] without their content, in three ways: those of the next text, zeros, the mean over texts.

    The rise of a text's loss with them (delta_shuffle, delta_zero, delta_mean, in nats) is what its own concepts are
    worth to the decoder; 0: it ignores them. If shuffle costs much more than mean, the decoder trusts their content.
    Use a whole batch: in a mean of few texts each still finds a part of its own."""
    return {
        "shuffle": concepts.roll(1, 0),
        "zero": torch.zeros_like(concepts),
        "mean": concepts.mean(0, keepdim=True).expand_as(concepts),
    }


# ---------------------------------------------------------------------------------------------------------------------
# in words


def line(numbers: dict, concepts: int) -> str:
    """The most important numbers of an evaluation, and the verdict."""
    shown = [f"slot-centred rank {numbers['rank_slot_centred']:.1f} of {concepts}"]
    shown += [f"pooled rank {numbers['rank_pooled']:.1f}", f"input share {numbers['input_share']:.2f}"]
    shown += [f"dead slots {numbers['dead_slots']}"]
    if "delta_shuffle" in numbers:
        shown.append(f"another row's concepts cost {numbers['delta_shuffle']:.2f} nats")
    return f"geometry: {', '.join(shown)}: {numbers['verdict']}"


def low_rank(concepts: int) -> float:
    """The lowest healthy rank: one slot has rank 1, two have at most 2."""
    return min(max(2.0, LOW_RANK * concepts), concepts / 2)


def verdict(numbers: dict, concepts: int) -> str:
    """What is wrong, in words, from the numbers of `concept_geometry` and, if there, of `ablations`: findings joined by
    "; ", or a text that begins with "not collapsed"."""
    C, slot, pooled, raw = concepts, *(numbers[f"rank_{kind}"] for kind in ("slot_centred", "pooled", "raw"))
    low = low_rank(C)
    offset = raw < low <= slot
    found = []
    if numbers["input_share"] < STATIC_SHARE or slot == 0:
        share = 100 * numbers["input_share"]
        found.append(f"slots are static: the input makes {share:.2g} % of the concepts' variance")
    else:
        if numbers["dead_slots"]:
            found.append(f"{numbers['dead_slots']} of {C} slots are dead: they hardly change with the text")
        if numbers["sim_max"] > SAME_COSINE and slot <= C / 2 and pooled >= low and not offset:
            found.append(f"slots are duplicates: their cosines reach {numbers['sim_max']:.3f}, rank {slot:.1f} of {C}")
        elif slot < low or pooled < low:
            found.append(f"one direction dominates: slot-centred rank {slot:.1f} of {C}, pooled rank {pooled:.1f}")
    if numbers.get("delta_shuffle", IGNORED_NATS) < IGNORED_NATS:
        nats = numbers["delta_shuffle"]
        found.append(f"decoder ignores the concepts: those of another text cost it {nats:.3f} nats")
    if not found and offset:
        return f"not collapsed once centred: one direction, alike in all texts, dominates (raw rank {raw:.1f} of {C})"
    return "; ".join(found) or "not collapsed"


def learned(numbers: dict, twin: dict, loss: tuple[float, float, str] | None = None) -> str:
    """What training added, in words. numbers, twin: `nearer_halves` of a model and of its untrained twin ({}: unknown),
    which are level unless the 95 % interval of their difference excludes 0; loss: (the validation loss, its floor,
    their unit), None: unknown."""
    parts = []
    if loss:
        value, least, unit = loss
        parts.append(f"{abs(least - value):.2f} {unit} {'under' if value < least else 'above'} the floor of guessing")
    if "halves" in twin:
        more, error = numbers["halves"] - twin["halves"], math.hypot(numbers["halves_error"], twin["halves_error"])
        place = "level with" if abs(more) <= 1.96 * error else "above" if more > 0 else "below"
        what = f"half a row is nearer to its other half than to {numbers['halves']:.1%} of others, the twin's to"
        parts.append(f"{place} the untrained twin ({what} {twin['halves']:.1%})")
    return "; ".join(parts)
