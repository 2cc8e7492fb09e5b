"""
Do the concepts mean anything? Numbers about concepts c [B, C, H]: B texts (rows of one length), C slots, width H.
Each number is defined once, here, and has its name in metrics.jsonl; training, analysis and comparison all use it.

Two traps they avoid. The rank of the batch's mean, the original project's (`rank_original`), knows the static
slots and a common offset, and nothing of the content: slots that never change score 127 of 128, rich content beside an
offset 1.1. And rounding noise has full rank: what is static in float32 scores 123.6 of 128 once centred. Hence ranks of
what changes with the text, a threshold for "zero", and never a rank without `input_share`.

Ranks are Roy and Vetterli's (EUSIPCO 2007): exp(entropy of the singular values divided by their sum), in float64.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

ROWS = 256  # the least number of rows, and the usual one: `rank_pooled` grows with it, so compare runs of one number
ZERO = 1e-3  # of a centred matrix, what is smaller than this share of an uncentred slot's size is zero (see `floor`)

# What `verdict` calls wrong.
STATIC_SHARE = 0.05  # input share below: the slots are learned constants, whatever their rank
IGNORED_NATS = 0.05  # concepts of another text cost less: the decoder goes by something else (step 0: by nothing)
DEAD_SHARE = 0.01  # a slot that varies by less than this share of the mean slot does nothing
LOW_RANK = 1 / 8  # of C, but at least 2 directions: collapsed runs fell to 5 of 128, live ones kept 31 and more
SAME_COSINE = 0.99  # two slots of one text that agree so well hold one content

# ---------------------------------------------------------------------------------------------------------------------
# ranks


def singular_values(x: Tensor) -> Tensor:
    """x [..., n, D] -> its singular values [..., min(n, D)] in float64, ascending: roots of the eigenvalues of the
    smaller Gram matrix, several times as fast as an SVD. Squaring costs half of the digits: values below 1e-7 of the
    largest come out as 0. No number here looks at those."""
    x = x.double()
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    squares = torch.linalg.eigvalsh(gram.cpu()).to(x.device)  # CUDA takes one matrix after the other
    rounding = squares.amax(-1, keepdim=True) * gram.shape[-1] * torch.finfo(torch.float64).eps
    return torch.where(squares > rounding, squares, 0.0).sqrt()


def isotropic(x: Tensor, remove: int, whitening: float) -> tuple[Tensor, Tensor]:
    """x [n, D] in float64 -> (mean [D], matrix [D, D]), to be applied as (y - mean) @ matrix.

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
    """1e-3 of the root-mean-square norm of a slot, uncentred: below it a change is rounding, not content."""
    return ZERO * torch.linalg.vector_norm(c, dtype=torch.float64).item() / (c.shape[0] * c.shape[1]) ** 0.5


def centred(c: Tensor) -> Tensor:
    """c[b, s] - mean over b of c[., s], in float64: what is left of each slot without its constant part."""
    return c - c.mean(0, dtype=torch.float64)


def rank_slot_centred(c: Tensor) -> float:
    """How many directions a text's slots use between them for what is its own: mean over b of the effective rank of
    the C x H matrix centred(c)[b]. 0: the slots are static; 1: they all say one thing; at most C."""
    mean, unit = c.mean(0, dtype=torch.float64), floor(c)
    return torch.cat([effective_rank(part - mean, unit) for part in c.split(ROWS)]).mean().item()


# ---------------------------------------------------------------------------------------------------------------------
# shares and similarities


def variances(c: Tensor) -> Tensor:
    """[C]: mean over b of |c[b, s] - mean_b c[., s]|^2, how much each slot changes with the text. As E|c|^2 - |E c|^2,
    whose rounding in float64 is far below the floor."""
    squares = torch.linalg.vector_norm(c, dim=-1, dtype=torch.float64).square().mean(0)
    return squares - c.mean(0, dtype=torch.float64).square().sum(-1)


def input_share(c: Tensor) -> float:
    """Share of the concepts' variance that the input makes: sum |c - mean_b c|^2 / sum |c - mean_bs c|^2.
    0: static slots; 1: the slots differ by nothing but content. A change below the floor is none."""
    own = variances(c).mean().item()
    slots = c.mean(0, dtype=torch.float64)  # [C, H], what is constant; it makes the rest of the variance
    between = (slots - slots.mean(0)).square().sum(-1).mean().item()
    return own / (own + between) if own > floor(c) ** 2 else 0.0


def cosines(c: Tensor) -> Tensor:
    """Those of all pairs of different slots of one text, uncentred. A single slot, or one of length 0, resembles
    nothing: 0."""
    unit = normalize(c.double(), dim=-1)
    one, other = torch.triu_indices(c.shape[1], c.shape[1], 1)
    return (unit @ unit.mT)[:, one, other] if len(one) else torch.zeros(len(c), 1)


def concept_geometry(concepts: Tensor, least: int = ROWS, pooled: Tensor | None = None) -> dict[str, float]:
    """All numbers about concepts [B, C, H] of B >= 256 rows of one length, by their names in metrics.jsonl. (`least`:
    fewer will do where the numbers are not kept, only what is grossly wrong is looked for.) pooled [B, H]: what `embed`
    makes of them; None: their means.

    Give it texts drawn at random, encoded without dropout and in float32: bfloat16's rounding is as large as the floor.
    Of fewer rows each is a good part of the mean it is compared with."""
    if len(concepts) < least:
        raise ValueError(f"ranks of {len(concepts)} rows mislead; give at least {least} rows of one length")
    c = concepts.detach()
    pooled = c.mean(1, dtype=torch.float64) if pooled is None else pooled
    own, parts = variances(c), c.split(ROWS)  # many rows in float64, or C x C numbers of each, would fill the memory
    pairs = [(x.abs().mean(1), x.max().item()) for x in map(cosines, parts)]
    static = singular_values(c.mean(0, dtype=torch.float64))
    return {
        "rank_slot_centred": rank_slot_centred(c),
        # Of c[b], constant parts and all. Near 1 with a high slot-centred rank: an offset common to all slots, which
        # cosines must be centred against.
        "rank_raw": torch.cat([effective_rank(part) for part in parts]).mean().item(),
        # How many directions tell texts apart: of the B x H matrix of what `embed` returns, minus its mean over texts.
        # At most min(B - 1, H); compare only runs of one B and one H.
        "rank_pooled": effective_rank(centred(pooled), floor(c)).item(),
        "input_share": input_share(c),
        # Slots that change with the text by less than 1 % of what the mean slot does, or by less than the floor.
        "dead_slots": int((own < max(DEAD_SHARE * own.mean().item(), floor(c) ** 2)).sum()),
        "sim_mean": torch.cat([mean for mean, _ in pairs]).mean().item(),
        "sim_max": max(most for _, most in pairs),
        # The original project's "effective rank", kept so that their logs can be read. It says nothing of content.
        "rank_original": (static.sum() / static.max()).item() if static.any() else 0.0,
    }


def nearer_halves(first: Tensor, second: Tensor) -> dict[str, float]:
    """Vectors [B, H] of the first and of the second halves of B rows -> `halves`: to what share of the other rows'
    halves a half is less similar than to its own other half (cosines, centred on the mean of all; by chance 0.5,
    whatever B), and the standard error of this mean over rows, `halves_error`."""
    x = torch.cat([first, second])
    x, unit = centred(x), floor(x[:, None])
    x, y = normalize(torch.where(torch.linalg.vector_norm(x, dim=-1, keepdim=True) < unit, 0.0, x), dim=-1).chunk(2)
    cosines, shares = x @ y.mT, 0.0
    for one in (cosines, cosines.mT):
        own = one.diagonal()[:, None]
        shares = shares + ((one < own).sum(1) + ((one == own).sum(1) - 1) / 2) / (2 * (len(x) - 1))
    return {"halves": shares.mean().item(), "halves_error": (shares.std() / len(x) ** 0.5).item()}


# ---------------------------------------------------------------------------------------------------------------------
# use by the decoder: the one kind of number that no trick of geometry can move


def ablations(concepts: Tensor) -> dict[str, Tensor]:
    """concepts [B, C, H] without their content, three ways: those of the next text, zeros, the mean over texts.

    By how much a text's loss rises with them (delta_shuffle, delta_zero, delta_mean, in nats) says what its own
    concepts are worth to the decoder; 0: it does not use them. A shuffle that costs much more than the mean: it
    believes what they say. Take a whole batch at a time: in a mean of few texts each still finds a part of its own."""
    return {
        "shuffle": concepts.roll(1, 0),
        "zero": torch.zeros_like(concepts),
        "mean": concepts.mean(0, keepdim=True).expand_as(concepts),
    }


# ---------------------------------------------------------------------------------------------------------------------
# in words


def line(numbers: dict, concepts: int) -> str:
    """The numbers of an evaluation that matter first, and the verdict."""
    shown = [f"slot-centred rank {numbers['rank_slot_centred']:.1f} of {concepts}"]
    shown += [f"pooled rank {numbers['rank_pooled']:.1f}", f"input share {numbers['input_share']:.2f}"]
    shown += [f"dead slots {numbers['dead_slots']}"]
    if "delta_shuffle" in numbers:
        shown.append(f"another row's concepts cost {numbers['delta_shuffle']:.2f} nats")
    return f"geometry: {', '.join(shown)}: {numbers['verdict']}"


def low_rank(concepts: int) -> float:
    """Ranks below are too low: one slot has rank 1, two have at most 2."""
    return min(max(2.0, LOW_RANK * concepts), concepts / 2)


def verdict(numbers: dict, concepts: int) -> str:
    """What is wrong, in plain words, from the numbers of `concept_geometry` and, where there are any, of `ablations`.
    Begins with "not collapsed" if nothing is; several findings are joined by "; ". What was learned: see `learned`."""
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
    """What training added, in words, from `nearer_halves` of a model and of what it was before training (empty: not
    known), to which it is level unless the 95 % interval of the difference is all above or below 0; loss: (the
    validation loss, its floor, their unit), None: not known."""
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
