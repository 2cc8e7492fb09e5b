"""
What C x H numbers could tell a decoder, and how much of it the encoder does.

Concepts of a text are optimised, each text's alone, against the frozen decoder until it writes the text as well as it
can: so much, at least, an encoder could give this decoder. (As prefixes and memory tokens are optimised to hold a
text: Kuratov et al. 2025, arXiv:2502.13063.)
"""

import math

import torch
from torch import Tensor

from lab.analysis import to_write, written
from lab.runs import LoadedRun

STEPS, RATE = 300, 0.05  # of Adam; the rate x the root-mean-square of the encoder's concepts


def worth(run: LoadedRun, concepts: Tensor, ids: Tensor) -> dict[str, float]:
    """Of concepts [B, C, H] for ids [B, n]: the loss (nats a token), and the shares of right tokens."""
    with torch.no_grad():
        loss = run.model.loss(concepts, to_write(ids)).item()
    right = {name: (x == ids).double().mean().item() for name, x in written(run.model, concepts, ids).items()}
    return {"loss": loss} | right


def capacity(run: LoadedRun, ids: Tensor, steps: int = STEPS) -> dict[str, dict[str, float]]:
    """ids [B, n] -> {"mean": `worth` of the mean concepts, "encoder": of the encoder's, "free": of those optimised from
    the encoder's on, "share": what of the way from mean to free the encoder goes, by each number}; with "bits", what a
    concept saves of the loss with the mean ones."""
    model = run.model
    with torch.no_grad():
        concepts = model.encode(ids)
        mean = concepts.mean(0, keepdim=True).expand_as(concepts)
    found = {"mean": worth(run, mean, ids), "encoder": worth(run, concepts, ids)}
    free = concepts.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=RATE * concepts.square().mean().sqrt().item(), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    try:
        model.requires_grad_(False)
        for _ in range(steps):
            optimizer.zero_grad()
            (len(ids) * model.loss(free, to_write(ids))).backward()  # each text's own step, whatever their number
            optimizer.step()
            schedule.step()
    finally:
        model.requires_grad_(True)
    found["free"] = worth(run, free.detach(), ids)
    ways = {key: found["free"][key] - found["mean"][key] for key in found["free"]}
    found["share"] = {
        key: (found["encoder"][key] - found["mean"][key]) / way if abs(way) > 1e-6 else None
        for key, way in ways.items()
    }
    for kind in ("mean", "encoder", "free"):  # that a concept carries
        gain = found["mean"]["loss"] - found[kind]["loss"]
        found[kind]["bits"] = gain * ids.shape[1] / (concepts.shape[1] * math.log(2))
    return found
