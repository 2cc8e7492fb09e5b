"""
How much of a row its concepts keep, by the length of the row and the number of concepts.

A rate-distortion curve: the rate is tokens per concept, the distortion what the decoder cannot predict. Published
ratios are of other models and measures: a vector of a frozen decoder of 160 M parameters holds up to 80 tokens when it
is optimised for that text alone (Kuratov et al. 2025, arXiv:2502.13063), ICAE keeps 4 tokens a slot (arXiv:2307.06945),
500xCompressor 6 to 480 (arXiv:2408.03094), both with a decoder of billions of parameters.
"""

import math

import numpy as np
import torch

from lab.analysis.measure import to_write, written
from lab.configurator import UserError
from lab.data.sampler import Sampler
from lab.distributed import exact_matmul
from lab.runs import LoadedRun

SEED = 20250101  # of the rows
TOKENS = 1 << 15  # of the rows of one length, at most
FEWEST = 4  # rows
AT_ONCE = 1 << 14  # tokens of a batch


def counts_of(run: LoadedRun, length: int) -> list[int]:
    """Numbers of concepts that a row of `length` tokens can be read into: one, or of a nested run 1, 2, 4 ... all."""
    most = run.model.options.concepts or run.model.config.concepts_of(length)
    smaller = [1 << i for i in range((most - 1).bit_length())] if run.model.config.nested else []
    return [*smaller, most]


def validation_rows(run: LoadedRun, length: int, most: int) -> torch.Tensor | None:
    """At most `most` rows [n, length] of the validation text, of TOKENS tokens in all; None where there are none."""
    if (corpus := run.corpus("val")) is None:
        return None
    sampler = Sampler(corpus, (length,), seed=SEED)
    if sampler.windows(length) < FEWEST:
        return None
    return torch.from_numpy(sampler.batch(0, length, np.arange(min(most, max(FEWEST, TOKENS // length))))[0])


@torch.no_grad()
def kept(run: LoadedRun, ids: torch.Tensor, count: int) -> dict[str, float]:
    """ids [B, n], read whole into `count` concepts -> bits_per_token: by how many bits a token's cross-entropy is lower
    than with the mean concepts of all rows; share_kept: of the bits it has with those; and the shares of right tokens,
    given the true ones before (teacher_forced) or the decoder's own (free_running)."""
    options = run.model.options._replace(concepts=count if run.model.config.nested else 0)
    parts = ids.split(max(1, AT_ONCE // ids.shape[1]))
    own = without = 0.0  # nats of all tokens
    right = dict.fromkeys(("teacher_forced", "free_running"), 0)
    with exact_matmul():
        concepts = [run.model.encode(part.to(run.device), options=options) for part in parts]
        mean = torch.cat(concepts).mean(0, keepdim=True)
        for part, c in zip(parts, concepts, strict=True):
            part = part.to(run.device)
            own += part.numel() * run.model.loss(c, to_write(part)).item()
            without += part.numel() * run.model.loss(mean.expand_as(c), to_write(part)).item()
            for key, tokens in zip(right, written(run.model, c, part).values(), strict=True):
                right[key] += (tokens == part).sum().item()
    bits = (without - own) / ids.numel() / math.log(2)
    found = {"bits_per_token": bits, "share_kept": 1 - own / without}
    return found | {key: count / ids.numel() for key, count in right.items()}


def rate(run: LoadedRun, length: int, most: int) -> dict[str, dict]:
    """Number of concepts -> `kept` and tokens_per_concept, of at most `most` validation rows of `length` tokens; of the
    untrained twin at all concepts under "untrained"."""
    if run.model.decoder is None:
        raise UserError(f"{run.config['run_id']} has no decoder, so nothing is reconstructed; leave reconstruction out")
    if length > run.max_length:
        raise UserError(f"the run's longest row has {run.max_length} tokens; give --lengths of that or less")
    if (ids := validation_rows(run, length, most)) is None:
        what = f"no validation text with rows of {length} tokens is at hand"
        raise UserError(f"{what}; give --data_dir's folder back, shorter --lengths, or other --tasks")
    counts = counts_of(run, length)
    found = {str(c): kept(run, ids, c) | {"tokens_per_concept": length / c, "n": len(ids)} for c in counts}
    return found | {"untrained": kept(run.twin(0), ids, counts[-1])}
