"""Where a run ends: its horizon in steps, minutes that become steps once these are timed, and the clock of training."""

import math
import time

import numpy as np
import torch

from lab.configurator import warn
from lab.data.corpus import warn_of_vocabulary
from lab.data.sampler import Sampler
from lab.training.plan import Plan

TIMED = 20  # steps that tell how long one takes
EPOCHS = 50  # the same text seen more often is learned by heart


def find_horizon(config, plan: Plan, text_tokens: int, flops_per_token: float, seconds: float, step: int) -> int:
    """Steps to the end; 0 while minutes are not yet timed. config: of training; seconds: that a step takes (0: not yet
    known); step: where the run is."""
    if config.max_steps:
        return config.max_steps
    if config.max_minutes:
        return max(1, step, int(config.max_minutes * 60 / seconds)) if seconds else 0
    tokens = config.max_tokens or config.max_epochs * text_tokens or config.max_flops / flops_per_token
    return max(1, math.ceil(tokens / plan.tokens))


def warn_of_horizon(config, plan: Plan, sampler: Sampler, steps: int):
    """Of a warm-up that takes most of the steps, and of text that is too little, now that all are known."""
    warn_of_vocabulary(sampler.corpus)
    if config.warmup >= steps / 2 > 0 and config.warmup:
        share = min(1, steps / config.warmup)
        warn(
            f"warmup={config.warmup} of {steps} steps: the learning rate rises to {share:.0%} of lr={config.lr:g} and "
            f"{'never' if share < 1 else 'hardly'} falls; write --warmup={steps // 10}"
        )
    shares = np.mean(plan.mixes, 0) if plan.mixes else np.full(len(plan.lengths), 1 / len(plan.lengths))
    reach = {n: sampler.reach(n) for n in plan.lengths}
    epochs = {n: share * steps * plan.tokens / reach[n] for n, share in zip(plan.lengths, shares, strict=True)}
    if (total := sum(epochs.values())) > EPOCHS:
        each = ", ".join(f"rows of {n} {epochs[n]:,.0f} of {reach[n]:,} tokens" for n in plan.lengths)
        warn(
            f"the text is drawn for {total:,.0f} epochs ({each}), and may be learned by heart; write "
            f"--max_steps={max(1, int(steps * EPOCHS / total))} or so, other --lengths, or prepare more text"
        )


class Clock:
    """Seconds of training, evaluations and checkpoints apart. Only what is read waits for the device."""

    def __init__(self, device: torch.device, seconds: float, step: int):
        """seconds: of training before `step`."""
        self.device, self.seconds, self.began = device, seconds, time.monotonic()
        self.logged = step, seconds

    def start(self):
        self.began = time.monotonic()

    def pause(self) -> float:
        """Adds the seconds since the last start or pause, in which the device has finished what it was given; returns
        them."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        now = time.monotonic()
        added, self.began = now - self.began, now
        self.seconds += added
        return added

    def steps_per_second(self, step: int) -> float:
        """Since it was asked last."""
        self.pause()
        (before, seconds), self.logged = self.logged, (step, self.seconds)
        return (step - before) / max(self.seconds - seconds, 1e-9)


class StepTimer:
    """How long a step takes: the first of each kind (allocation, compilation) is left out, then TIMED are timed."""

    def __init__(self):
        self.seen, self.timed, self.excluded = set(), [], 0.0

    def add(self, kind, seconds: float) -> float:
        """Seconds of a step, once TIMED are known; 0 before."""
        if kind in self.seen:
            self.timed.append(seconds)
        else:
            self.seen.add(kind)
            self.excluded += seconds
        return sum(self.timed) / TIMED if len(self.timed) == TIMED else 0.0
