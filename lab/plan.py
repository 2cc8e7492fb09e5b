"""How a step is cut into rows over ranks and micro-batches, what it costs, and whether compiling it pays."""

import functools
import gc
import itertools
import math
import os
import shutil
import signal
import tempfile
import time
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch

from encoders import AS_CONFIGURED, Options
from lab import dataset, optim
from lab.command import AT_EXIT, out_of_memory, reason, say
from lab.configurator import UserError, warn
from lab.distributed import World
from losses import Balance, ConceptLossConfig
from model import CountedProducts, ModelConfig, imagined, measure, no_overflow
from objectives import PLATEAUS, RATES, Objectives
from problem import Rows, blank_rows

HORIZONS = ("max_steps", "max_tokens", "max_epochs", "max_flops", "max_minutes")  # keys of training; one ends a run


@dataclass(frozen=True)
class Plan:
    """Tokens a step are constant: a step of length n has batch_size * max(lengths) / n rows, cut into `parts`."""

    lengths: tuple[int, ...]
    tokens: int  # a step
    micro_tokens: int  # a forward of one rank
    parts: int  # forwards a step on each rank
    mixes: tuple[tuple[float, ...], ...] = ()  # see length_mixes

    def rows(self, n: int, rank: int, part: int) -> np.ndarray:
        """Global numbers of the rows of length n that this rank reads in this part of the step."""
        size, block = self.micro_tokens // n, rank * self.parts + part
        return np.arange(block * size, (block + 1) * size, dtype=np.int64)

    def shapes(self) -> list[tuple[int, int]]:
        """(rows, tokens) of every forward there can be."""
        return [(self.micro_tokens // n, n) for n in self.lengths]

    def mix(self, step: int, horizon: int) -> tuple[float, ...]:
        """Shares of the lengths in a step; (): all alike."""
        return self.mixes[part_of(step, horizon, len(self.mixes))] if self.mixes else ()

    def drawn(self, objectives: Objectives) -> list[tuple[tuple[int, int], Objectives, float]]:
        """(shape, what is trained, how often: 1 a part of training on average) of each length at each rate it is drawn
        with: as many static shapes."""
        plateaus, L = objectives.plateaus(), len(self.lengths)
        often = L * np.array(self.mixes or [[1 / L] * L])
        often = np.broadcast_to(often, (PLATEAUS, L)).reshape(len(plateaus), -1, L).mean(1)
        cells = {}
        for (i, shape), (j, now) in itertools.product(enumerate(self.shapes()), enumerate(plateaus)):
            key = shape, *(getattr(now.config, rate) for rate in RATES if rate in objectives.uses)
            cells[key] = shape, now, cells.get(key, (0, 0, 0.0))[2] + float(often[j, i])
        return [cell for cell in cells.values() if cell[2] > 0]


def part_of(step: int, horizon: int, parts: int) -> int:
    """Which of equal parts of training a step is in. horizon 0: not yet known, then there is one part."""
    return min(step * parts // (horizon or step + 1), parts - 1)


def length_mixes(lengths: tuple[int, ...], mix: tuple) -> tuple[tuple[float, ...], ...]:
    """The key length_mix -> shares of the lengths, their sum 1, in each of PLATEAUS parts of training; one entry where
    they do not change, none where all are alike. UserError."""
    ends = [np.array(shares) for shares in (mix if mix and isinstance(mix[0], tuple) else (mix,) if mix else ())]
    for shares in ends:
        if len(shares) != len(lengths):
            raise UserError(f"length_mix={mix} has {len(shares)} shares for lengths={lengths}; write {len(lengths)}")
        if shares.min() < 0 or not shares.any():
            raise UserError(f"length_mix={mix}: {tuple(shares.tolist())} are no shares; write 0 or more, not all 0")
    ends = [shares / shares.sum() for shares in ends]
    if len(ends) == 2:
        ends = [(1 - x) * ends[0] + x * ends[1] for x in np.linspace(0, 1, PLATEAUS)]
    return tuple(tuple(shares.tolist()) for shares in ends)


def make_plan(config, objectives: Objectives, ranks: int) -> Plan:
    """config: of training, its lengths, length_mix, batch_size and micro_batch. UserError, with the nearest number that
    divides."""
    longest = max(config.lengths)
    if config.batch_size % ranks:
        fit = nearest_multiple(config.batch_size, ranks)
        raise UserError(f"batch_size={config.batch_size} cannot be shared by {ranks} ranks; write batch_size={fit}")
    share = config.batch_size // ranks
    micro = min(config.micro_batch or share, share)
    if share % micro:
        fit = min((d for d in range(1, share + 1) if share % d == 0), key=lambda d: abs(d - micro))
        raise UserError(f"micro_batch={micro} does not divide the {share} rows a rank has; write micro_batch={fit}")
    for n in config.lengths:
        if micro * longest % n:
            fit = nearest_multiple(micro, n // math.gcd(n, longest))
            raise UserError(
                f"micro_batch={micro} rows of {longest} tokens are no whole number of rows of length {n}; "
                f"write micro_batch={fit}, and a batch_size it divides"
            )
        if (rows := micro * longest // n) % objectives.group:
            raise UserError(
                f"objective={objectives.text!r} needs rows in groups of {objectives.group}, but a rank has {rows} rows "
                f"of length {n}; write a batch_size of which every rank has a multiple"
            )
        if objectives.centres and rows < 2 * objectives.group:
            raise UserError(
                f"objective={objectives.text!r} tells the next spans of a forward apart, but a rank has {rows} rows of "
                f"length {n}; write a batch_size and micro_batch of which it has {2 * objectives.group}"
            )
    if objectives.negatives and share > micro:
        raise UserError(f"{objectives.text} tells a row from all others of one forward; write micro_batch=0")
    mixes = length_mixes(config.lengths, config.length_mix)
    return Plan(config.lengths, config.batch_size * longest, micro * longest, share // micro, mixes)


def nearest_multiple(x: int, of: int) -> int:
    return max(1, round(x / of)) * of


def cost(
    plan: Plan,
    model: ModelConfig,
    objectives: Objectives,
    frozen: bool = False,
    regulariser: ConceptLossConfig | None = None,
) -> tuple[int, float]:
    """(parameters, training FLOPs a token: those of the forward and the backward of a step as it is taken, concept
    losses included; mean over lengths by their shares, plateaus of a rate, shapes in turn and what a step may run
    with)."""
    total, turns, plateaus = 0, range(objectives.cycle), len(objectives.plateaus())
    here = World(0, 1, torch.device("cpu"), "float32")
    every = itertools.product(plan.drawn(objectives), turns, model.variants())
    try:
        with no_overflow(), imagined(model) as fake_model:
            if frozen:
                fake_model.freeze_decoder()
            for (shape, now, often), turn, (share, options) in every:
                balance = Balance(regulariser or ConceptLossConfig(), "meta")
                rows = blank_rows(*shape, turn, model.vocab_size, model.token_width)
                with CountedProducts() as counter:
                    optim.add_gradients(fake_model, now, rows, here, options=options, balance=balance)
                fake_model.zero_grad()
                total += share * often / (len(turns) * plateaus) * counter.flops
    except ValueError as error:
        raise UserError(str(error)) from None
    return fake_model.num_parameters(), total / (plan.micro_tokens * len(plan.lengths))


def count_shapes(plan: Plan, model: ModelConfig, objectives: Objectives) -> int:
    """How many a run compiles."""
    return len(plan.drawn(objectives)) * len(model.variants()) * objectives.cycle


def encoding_flops(model: ModelConfig, length: int, options: Options = AS_CONFIGURED) -> float:
    """FLOPs a token of encoding a row of `length` tokens."""

    def encode(concept_model):
        concept_model.encode(torch.zeros(1, length, dtype=torch.int64), options=options)

    return measure(model, encode)[1]["Global"] / length


def drawn_options(model: ModelConfig, seed: int, step: int) -> Options:
    """What a training step runs with."""
    shares, options = zip(*model.variants(), strict=True)
    return options[dataset.choose(shares, seed, dataset.VARIANT, step)[0]]


# Seen on an AVX512_BF16 machine: what compiling a shape costs without torch's cache, the share of a step's time that it
# saves, and the speed of eager bfloat16 steps on a thread (30 to 130 GFLOP/s: where in doubt, nothing is compiled).
COMPILE_SECONDS, COMPILE_SAVES, EAGER_FLOPS = 40.0, 0.35, 100e9


def decide_compile(wanted, world: World, shapes: int, flops: float, minutes: float, signals=None) -> bool:
    """Compiled or not, the same on all ranks: `wanted` True, False or "auto", which on a CPU goes by a rank's FLOPs (or
    minutes) in the whole run, so that the same run decides the same again. False, with a warning, where torch.compile
    does not work on some rank."""
    if wanted == "auto" and world.device.type == "cpu":
        gain = COMPILE_SAVES * (minutes * 60 or flops / (EAGER_FLOPS * torch.get_num_threads()))
        price = COMPILE_SECONDS * shapes
        wanted = world.on_rank0(lambda: gain > price)
        say(f"compile={wanted}: about {gain:.0f} s to gain, {price:.0f} s to compile {shapes} shapes")
    if wanted is False:
        return False
    why = compiles(world, lambda: torch.compile(lambda x: x + 1)(torch.zeros(2, device=world.device)), signals)
    if why:
        warn(f"torch.compile does not work ({why}); training goes on uncompiled")
    return not why


def compiles(world: World, attempt, signals=None) -> str:
    """
    Calls attempt(), which compiles something, on every rank; where that fails on any, all try once more with an empty
    cache: torch's may hold libraries whose compiler was killed. Returns why it failed again, or "". KeyboardInterrupt,
    on all ranks, where it failed after a signal: Ctrl-C reaches the processes that compile, too.
    """
    first = place = ""
    for again in (True, False):
        why = ""
        try:
            attempt()
        except Exception as error:  # no compiler, no Triton, damaged files: many ways to fail, one way on
            if out_of_memory(error):
                raise
            why = reason(error)
        number = signals.received if why and signals else 0
        failed, stopped = world.all_sum(torch.tensor([bool(why), bool(number)]).float().to(world.device)).tolist()
        if stopped:
            raise KeyboardInterrupt(signal.Signals(number or signal.SIGINT).name)
        if not failed:
            if first:
                warn(f"{place} is damaged: delete it when no run uses it. torch.compile failed by it ({first})")
            return ""
        why = why or "on another rank"
        if again:
            first, place = why, os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torch's cache of what is compiled")
            empty_cache()
    return why


def empty_cache():
    """From here on torch compiles all anew, into a folder that goes when the command ends."""
    folder = tempfile.mkdtemp(prefix="torchinductor_")
    AT_EXIT.append(lambda code: shutil.rmtree(folder, ignore_errors=True))
    os.environ.update(TORCHINDUCTOR_CACHE_DIR=folder, TRITON_CACHE_DIR=os.path.join(folder, "triton"))
    import torch._inductor.utils

    torch._inductor.config.cpp_cache_precompile_headers = False  # these are kept elsewhere
    torch._dynamo.reset()
    torch._inductor.utils.clear_caches()
    gc.unfreeze()  # else what is frozen is not listed
    for found in gc.get_objects():  # what torch has learnt from the damaged files, such as what vectors the CPU has
        if type(found) is type(functools.cache(id)) and str(found.__module__).startswith("torch._inductor"):
            found.cache_clear()
    gc.freeze()


def rehearse(trainer, objectives: Objectives, rows: Rows, options: Options):
    """Forward and backward of a kind of step before the first of it counts, by each rank alone: it compiles on all of
    them, or from here on none is compiled."""
    kind = objectives, options, rows.ids.shape, trainer.step % objectives.cycle
    if trainer.forward is trainer.wrapped or kind in trainer.rehearsed:
        return
    trainer.rehearsed.add(kind)
    world, alone = trainer.world, replace(trainer.world, rank=0, size=1)

    def attempt():
        devices = [world.device] if world.device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.wrapped.no_sync() if world.size > 1 else nullcontext():
            balance = deepcopy(trainer.balance)
            optim.add_gradients(trainer.forward, objectives, rows, alone, trainer.plan.parts, options, balance)

    why = compiles(world, attempt, trainer.signals)
    trainer.optimizer.zero_grad(set_to_none=True)
    if why:
        warn(f"torch.compile does not work ({why}); training goes on uncompiled, and no longer bit for bit")
        trainer.forward = trainer.wrapped
        if world.rank == 0:
            trainer.out.write_config(trainer.out.config() | {"compile": False})


EPOCHS = 50  # the same text seen more often is learned by heart


def warn_of_horizon(trainer):
    """Of a warm-up that takes most of the steps, and of text that is too little, now that all are known."""
    config, plan, steps = trainer.config, trainer.plan, trainer.horizon
    dataset.warn_of_vocabulary(trainer.train_text)
    if config.warmup >= steps / 2 > 0 and config.warmup:
        share = min(1, steps / config.warmup)
        warn(
            f"warmup={config.warmup} of {steps} steps: the learning rate rises to {share:.0%} of lr={config.lr:g} and "
            f"{'never' if share < 1 else 'hardly'} falls; write --warmup={steps // 10}"
        )
    shares = np.mean(plan.mixes, 0) if plan.mixes else np.full(len(plan.lengths), 1 / len(plan.lengths))
    reach = {n: trainer.sampler.reach(n) for n in plan.lengths}
    epochs = {n: share * steps * plan.tokens / reach[n] for n, share in zip(plan.lengths, shares, strict=True)}
    if (total := sum(epochs.values())) > EPOCHS:
        each = ", ".join(f"rows of {n} {epochs[n]:,.0f} of {reach[n]:,} tokens" for n in plan.lengths)
        warn(
            f"the text is drawn for {total:,.0f} epochs ({each}), and may be learned by heart; write "
            f"--max_steps={max(1, int(steps * EPOCHS / total))} or so, other --lengths, or prepare more text"
        )


class Clock:
    """Seconds of training, evaluations and checkpoints apart; and a horizon in minutes, turned into steps: each
    shape's first step (allocation, compilation) is left out, then 20 steps are timed. Only what is read waits for the
    device."""

    def __init__(self, trainer):
        self.trainer, self.began = trainer, time.monotonic()
        self.logged = (trainer.step, trainer.seconds)
        self.timing = bool(trainer.config.max_minutes and not trainer.horizon)
        self.seen, self.timed, self.excluded = set(), [], 0.0

    def start(self):
        self.began = time.monotonic()

    def pause(self):
        """Adds the seconds since the last start or pause, in which the device has finished what it was given."""
        if self.trainer.world.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.world.device)
        now = time.monotonic()
        self.trainer.seconds += now - self.began
        self.began = now

    def stepped(self):
        trainer = self.trainer
        if not self.timing:
            return
        before = trainer.seconds
        self.pause()
        length = trainer.length(trainer.step - 1), trainer.step % trainer.objectives.cycle
        if length in self.seen:
            self.timed.append(trainer.seconds - before)
        else:
            self.excluded += trainer.seconds - before
        self.seen.add(length)
        if len(self.timed) == 20:
            self.timing = False
            trainer.seconds_per_step = trainer.world.on_rank0(lambda: sum(self.timed) / len(self.timed))
            trainer.horizon = trainer.find_horizon()
            if trainer.world.rank == 0:
                warn_of_horizon(trainer)
            say(
                f"{trainer.config.max_minutes:g} minutes are {trainer.horizon} steps of "
                f"{trainer.seconds_per_step:.3f} s ({self.excluded:.1f} s of first steps are left out, and so are "
                "evaluations)"
            )

    def speed(self) -> float:
        """Tokens a second since it was asked last."""
        self.pause()
        (step, seconds), trainer = self.logged, self.trainer
        self.logged = (trainer.step, trainer.seconds)
        return (trainer.step - step) * trainer.plan.tokens / max(trainer.seconds - seconds, 1e-9)
