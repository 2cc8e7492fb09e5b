"""What training and fine-tuning share of optimisation: gradients, the rate over steps, a safe step."""

import math

import torch
from torch import Tensor, nn

from lab.distributed import World
from objectives import Objectives
from problem import Rows


def learning_rate(schedule: str, peak: float, step: int, horizon: int, warmup: int, end: float) -> float:
    """The rate of a step, counted from 0: linear warm-up, then from `peak` down to `end` times that at the horizon (0:
    not known yet, the rate stays at its peak). wsd: constant, linear in the last fifth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, horizon - warmup)) if horizon else 0.0
    left = {
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
        "constant": 1.0,
        "wsd": min(1.0, (1 - done) / 0.2),
    }[schedule]
    return peak * (end + (1 - end) * left)


def adamw(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float], others=(), pretrained=(), share=1.0
) -> torch.optim.Optimizer:
    """Only matrices of linear layers decay: no embedding, slot, position, norm or bias, and none of `others`. What is
    frozen is left out, but not `pretrained`: parameters that train at `share` times the rate, now or later."""
    slow = {id(p) for p in pretrained}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in slow]
    decay = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    groups = [
        {"params": [p for p in trained if id(p) in decay], "weight_decay": weight_decay},
        {"params": [*(p for p in trained if id(p) not in decay), *others], "weight_decay": 0.0},
    ]
    if slow:
        groups.append({"params": list(pretrained), "weight_decay": 0.0, "share": share})
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def clipped_step(model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, clip: float, loss: Tensor):
    """One step at a learning rate with the gradients that are there, scaled down to norm `clip` (0: never), which are
    then dropped -> (their norm, bad), both on the device; where norm or loss is not finite the step changes nothing,
    and bad is True. Nothing waits for the device."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    bad = ~(torch.isfinite(norm) & torch.isfinite(loss))
    optimizer.found_inf = bad.float()  # fused AdamW leaves parameters and state as they are
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, bad


def forward_backward(
    forward, objectives: Objectives, rows: Rows, world: World, parts: int = 1, options=None, balance=None
) -> Tensor:
    """Forward and backward of one of a step's `parts` micro-batches; gradients add up in the parameters.

    forward: the model, or what wraps it for ranks or compilation; options: encoders.Options; balance: losses.Balance.
    Returns the loss of each objective of the sum, a share of the step's: [parts of the objective], on the device.
    """
    problems = objectives.problems(rows)
    split = {"split": balance.split} if balance else {}
    with world.autocast():
        predicted, concepts, *copies = forward(*problems, options=options, **split)
    values = objectives.losses(predicted, concepts, problems, world.gather, world.rank)
    total = objectives.total(values)
    if balance:
        total = balance.total(total, *copies, parts)
    (total / parts).backward()
    return torch.stack([value.detach() for value in values]) / parts
