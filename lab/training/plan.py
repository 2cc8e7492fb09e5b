"""How a step is cut into rows over ranks and micro-batches, and what it costs."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from encoders import AS_CONFIGURED, Options
from lab.configurator import UserError
from lab.data.sampler import VARIANT, choose
from lab.distributed import World
from lab.training import optim
from losses import Balance, ConceptLossConfig
from model import CountedProducts, ModelConfig, count_flops, imagined, no_overflow
from objectives import PLATEAUS, RATES, Objectives
from problem import blank_rows

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
        return self.mixes[schedule_stage(step, horizon, len(self.mixes))] if self.mixes else ()

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


def schedule_stage(step: int, horizon: int, parts: int) -> int:
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
        if objectives.centers_targets and rows < 2 * objectives.group:
            raise UserError(
                f"objective={objectives.text!r} tells the next spans of a forward apart, but a rank has {rows} rows of "
                f"length {n}; write a batch_size and micro_batch of which it has {2 * objectives.group}"
            )
    if objectives.in_batch_negatives and share > micro:
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
    losses included; mean over lengths by their shares, plateaus of a rate, shapes in turn, what a step may run
    with, and the share of training in which a backbone trains)."""
    total, turns, plateaus = 0, range(objectives.shape_count), len(objectives.plateaus())
    here = World(0, 1, torch.device("cpu"), "float32")
    fixed = model.backbone_freeze if model.backbone else 1.0
    phases = [(share, trained) for share, trained in ((fixed, False), (1 - fixed, True)) if share]  # of a backbone
    every = itertools.product(phases, plan.drawn(objectives), turns, model.variants())
    try:
        with no_overflow(), imagined(model) as fake_model:
            if frozen:
                fake_model.freeze_decoder()
            for (phase, trained), (shape, now, often), shape_index, (share, options) in every:
                if model.backbone:
                    fake_model.train_backbone(trained)
                balance = Balance(regulariser or ConceptLossConfig(), "meta")
                rows = blank_rows(*shape, shape_index, model.vocab_size, model.token_width)
                with CountedProducts() as counter:
                    optim.forward_backward(fake_model, now, rows, here, options=options, balance=balance)
                fake_model.zero_grad()
                total += phase * share * often / (len(turns) * plateaus) * counter.flops
    except ValueError as error:
        raise UserError(str(error)) from None
    return fake_model.num_parameters(), total / (plan.micro_tokens * len(plan.lengths))


def count_shapes(plan: Plan, model: ModelConfig, objectives: Objectives) -> int:
    """How many a run compiles."""
    return len(plan.drawn(objectives)) * len(model.variants()) * objectives.shape_count


def encoding_flops(model: ModelConfig, length: int, options: Options = AS_CONFIGURED) -> float:
    """FLOPs a token of encoding a row of `length` tokens."""

    def encode(concept_model):
        concept_model.encode(torch.zeros(1, length, dtype=torch.int64), options=options)

    return count_flops(model, encode)[1]["Global"] / length


def sample_options(model: ModelConfig, seed: int, step: int) -> Options:
    """What a training step runs with."""
    shares, options = zip(*model.variants(), strict=True)
    return options[choose(shares, seed, VARIANT, step)[0]]
