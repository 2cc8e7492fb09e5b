"""
Trains a concept encoder on one device, on several, or on several nodes.

    python train.py config/quickstart.py
    python train.py config/tsdae_cpu.py --out_dir=out/try --lr=1e-3 --max_steps=500
    torchrun --nproc_per_node=8 train.py config/tsdae_l6.py
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train.py config/tsdae_l6.py

Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 saves and stops; the same command goes on where it stopped, bit for bit.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import gc
import json
import os
import signal
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from lab import distributed, report
from lab.command import NonFinite, log
from lab.configurator import PathStr, UserError, convert, warn
from lab.data.corpus import check_name, prepare
from lab.data.sampler import Sampler
from lab.distributed import Signals, World
from lab.evaluation.final_report import final_report
from lab.sources import weights
from lab.training import optim, run_folder
from lab.training.compilation import Trained, decide_compile
from lab.training.horizon import Clock, StepTimer, find_horizon, warn_of_horizon
from lab.training.plan import HORIZONS, cost, count_shapes, make_plan, sample_options, schedule_stage
from lab.training.run_folder import RunFolder
from lab.training.settings import Settings
from lab.training.validation import Validation, learned
from lab.training.vocabulary import make_vocabulary, open_splits, token_vectors
from losses import Balance
from model import PRETRAINED, ConceptModel
from noise import Noise
from objectives import SHARE, Bounds, Group, check_bounds
from problem import Rows

TEXT, OPTIMIZER, HORIZON = Group("text and rows"), Group("optimizer"), Group("horizon, one of these")
LOGGED, RUN, EMBED = Group("evaluation and checkpoints"), Group("run and machine"), Group("embed")


@dataclass
class TrainConfig:
    dataset: Annotated[str, "folder of prepared data under data_dir", TEXT] = "pydocs"
    data_dir: Annotated[PathStr, "where the prepared data are; empty: data/ beside this script", TEXT] = ""
    out_dir: Annotated[PathStr, "run folder; empty: out/<name of the config>", RUN] = ""
    tag: Annotated[str, "a word of yours, kept in config.json", RUN] = ""
    lengths: Annotated[
        tuple[int, ...], "row lengths in tokens; each step draws one of them", Bounds(2, 1 << 20), TEXT
    ] = (16, 32, 128, 512)
    length_mix: Annotated[
        tuple[float, ...] | tuple[tuple[float, ...], tuple[float, ...]],
        "how often steps draw each of `lengths`, as 1,1,2; a pair, as (1,0,0),(1,1,2): see mask_rate; empty: all alike",
        TEXT,
    ] = ()
    batch_size: Annotated[int, "rows of the longest length in an optimizer step, over all ranks", Bounds(1), TEXT] = 64
    micro_batch: Annotated[
        int, "rows of the longest length per rank and forward; 0: as many as there are", Bounds(0), TEXT
    ] = 0
    lr: Annotated[float, "peak learning rate", Bounds(0, 1000, open="both"), OPTIMIZER] = 1e-3
    schedule: Annotated[
        Literal["cosine", "linear", "constant", "wsd"],
        "what follows the warm-up; wsd: constant, linear in the last fifth",
        OPTIMIZER,
    ] = "cosine"
    warmup: Annotated[int, "steps of linear warm-up", Bounds(0), OPTIMIZER] = 200
    lr_end: Annotated[float, "learning rate at the horizon, as a share of the peak", Bounds(0, 1), OPTIMIZER] = 0.1
    weight_decay: Annotated[float, "AdamW's, on matrices of linear layers only", Bounds(0), OPTIMIZER] = 0.05
    beta1: Annotated[float, "AdamW's first-moment decay", SHARE, OPTIMIZER] = 0.9
    beta2: Annotated[float, "AdamW's second-moment decay", SHARE, OPTIMIZER] = 0.98
    clip: Annotated[float, "gradients are scaled down to this norm; 0: never", Bounds(0), OPTIMIZER] = 1.0
    max_steps: Annotated[int, "horizon in optimizer steps", Bounds(0), HORIZON] = 0
    max_tokens: Annotated[float, "horizon in tokens drawn", Bounds(0), HORIZON] = 0.0
    max_epochs: Annotated[float, "horizon in corpus-tokens drawn", Bounds(0), HORIZON] = 0.0
    max_flops: Annotated[
        float, "horizon in training FLOPs by the model's own count: what compares arms fairly", Bounds(0), HORIZON
    ] = 0.0
    max_minutes: Annotated[
        float, "horizon in minutes of training steps (no evaluations), turned into steps once timed", Bounds(0), HORIZON
    ] = 0.0
    eval_interval: Annotated[int, "steps between evaluations; 0: only at the start and the end", Bounds(0), LOGGED] = (
        500
    )
    eval_tokens: Annotated[int, "validation tokens a length", Bounds(1), LOGGED] = 32768
    ckpt_interval: Annotated[
        int, "steps between checkpoints besides those of the best evaluations; 0: none", Bounds(0), LOGGED
    ] = 1000
    ckpt_steps: Annotated[tuple[int, ...], "steps whose checkpoints are kept for ever", LOGGED] = ()
    keep: Annotated[int, "how many of the last checkpoints are kept, besides the best", Bounds(1), LOGGED] = 2
    log_interval: Annotated[int, "steps between log lines", Bounds(1), LOGGED] = 20
    compile: Annotated[
        bool | Literal["auto"],
        "torch.compile; auto: on a GPU, and on a CPU where the run is long enough to gain by it",
        RUN,
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], "of matrix products; auto: bfloat16 where the device is fast at it", RUN
    ] = "auto"
    spectral_tokens: Annotated[
        float, "token_init=spectral: tokens whose neighbours are counted, at most", Bounds(0, open="low"), TEXT
    ] = 5e7
    deterministic: Annotated[bool, "bit-exact repeats on a GPU too, at a price", RUN] = False
    seed: Annotated[int, "of initial weights, rows and noise", RUN] = 0
    device: Annotated[str, "auto, cpu, cuda or mps", RUN] = "auto"
    resume: Annotated[
        Literal["auto", "must", "never"],
        "go on with what out_dir holds; must: there is something; never: it is empty",
        RUN,
    ] = "auto"
    init_from: Annotated[PathStr, "warm start from this run folder's latest checkpoint", RUN] = ""
    init_part: Annotated[Literal["encoder", "all"], "which tensors a warm start takes", RUN] = "encoder"
    frozen_decoder: Annotated[
        PathStr,
        "run folder whose decoder, head and token table this run takes as they are: its encoder alone trains",
        RUN,
    ] = ""
    wandb: Annotated[bool, "also log to Weights & Biases (WANDB_MODE=offline: to disk alone)", LOGGED] = False
    remove_directions: Annotated[
        Literal[0, 1], "embed: the validation rows' first principal direction is removed (Mu & Viswanath 2018)", EMBED
    ] = 0
    whitening: Annotated[
        float,
        "embed: principal directions are scaled by sigma^-whitening; 0: not, 0.25: a quarter, 1: all (Su 2021)",
        Bounds(0, 1),
        EMBED,
    ] = 0.0
    final_report: Annotated[
        Literal["losses", "retrieval"],
        "the table printed at the end; retrieval: also how often a held-out document is found by its first sentence",
        LOGGED,
    ] = "losses"
    print_config: Annotated[bool, "print the whole configuration as JSON and stop", RUN] = False

    def __post_init__(self):
        check_bounds(self)
        if not 0 < len(self.lengths) <= 32 or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths={self.lengths} must be one to 32 different numbers")
        if not any(getattr(self, key) for key in HORIZONS):
            raise ValueError(f"no end is set; give one of {', '.join(HORIZONS)}")
        if self.frozen_decoder and self.init_from:
            raise ValueError("frozen_decoder and init_from both give the token table; leave one of them out")
        check_name(self.dataset)


def read_settings(argv: list[str]) -> Settings:
    """All that the command line and its config say; UserError."""
    return Settings.read(argv, TrainConfig, __doc__)


def main(argv) -> int:
    settings = read_settings(argv)
    config = settings.train
    if config.print_config:
        if not settings.model.vocab_size:
            warn("vocab_size is 0 and there are no data, so parameters and FLOPs are null; give --vocab_size")
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(settings.resolved(), indent=1))
        return 0
    world = distributed.start(config.device, config.dtype, config.deterministic)
    make_plan(config, settings.objectives, world.size)  # says what does not divide
    out = RunFolder(config.out_dir or Path("out") / settings.preset)
    with out.lock:
        taken = config.init_from or config.frozen_decoder
        there = world.on_rank0(lambda: out.inspect(config.resume, taken, settings.defaults()))
        if config.frozen_decoder and there["fresh"]:
            world.on_rank0(lambda: run_folder.check_frozen(config.frozen_decoder, settings.model))
        if there["config"] and config.dtype == "auto" and "dtype" in there["config"]:
            world = replace(world, dtype=there["config"]["dtype"])  # decided once, when the run began
        signals = Signals(world)
        if stopped := prepare(settings.data, world, signals):
            return 128 + stopped
        run = Run(settings, world, out, signals)
        start_or_resume(run, there)
        if stopped := train(run):
            what = f"saved step {run.step}" if run.step else "nothing is lost"
            log(f"{what} in {out.path}; the same command goes on")
            return 128 + stopped
        run.numbers = run.numbers or run.validation.run(signals.agreed)
        if run.numbers is None:
            log(f"stopped before the tables of {out.path}; the same command prints them")
            return 128 + signals.stopped
        if world.rank == 0:
            print(final_report(run, config.final_report == "retrieval"), flush=True)
        world.barrier()
        stopped = world.on_rank0(lambda: signals.received)
        return 128 + stopped if stopped else 0


# ---------------------------------------------------------------------------------------------------------------------
# What a run is made of


class Run:
    """Text, sampler, model, optimizer and evaluator of a run, and where it stands."""

    # What a checkpoint keeps of it: name -> types
    STATE = {"step": (int,), "seconds": (float,), "horizon": (int,), "seconds_per_step": (float,)}
    STATE |= {"best": (float, NoneType), "best_step": (int, NoneType)}

    def __init__(self, settings: Settings, world: World, out: RunFolder, signals: Signals):
        config, shape, objectives = settings.train, settings.model, settings.objectives
        self.settings, self.config, self.objectives = settings, config, objectives
        self.world, self.out, self.signals = world, out, signals
        self.train_text, self.val_text = open_splits(settings.data, world)
        text = self.train_text
        settings.check_text(text)
        shape.vocab_size = text.vocab_size
        self.plan, self.plateaus = make_plan(config, objectives, world.size), objectives.plateaus()
        rules = {"one_document": objectives.one_document, "pairs": objectives.adjacent_rows}
        self.sampler = Sampler(text, config.lengths, seed=config.seed, **rules)

        frozen = world.on_rank0(
            lambda: run_folder.frozen_weights(config.frozen_decoder, shape, text.tokenizer_hash, out)
        )
        vectors, self.spectral_seconds = world.on_rank0(lambda: token_vectors(self))
        self.vocab = make_vocabulary(text, objectives, vectors, world.device)
        begins = vectors if shape.token_init == "spectral" else None
        try:
            self.model = ConceptModel(shape, text.mask, config.seed, begins)
        except ValueError as error:  # of a backbone
            raise UserError(str(error)) from None
        self.backbone_hash = weights(self.model, PRETRAINED) if shape.backbone else None
        self.model.to(world.device)
        if self.model.fixed_backbone:
            self.model.backbone.to(getattr(torch, world.dtype))  # once, not at each use
        if config.frozen_decoder:
            self.model.freeze_decoder(frozen)
        self.shapes = count_shapes(self.plan, shape, objectives)
        what = self.plan, shape, objectives, bool(config.frozen_decoder), settings.regulariser
        self.parameters, self.flops_per_token = cost(*what)
        self.forward = Trained(self.model, world, self.shapes)
        self.balance = Balance(settings.regulariser, world.device)
        betas, others = (config.beta1, config.beta2), self.balance.parameters()
        slow = [] if self.model.fixed_backbone else self.model.pretrained_parameters()
        rate = config.lr, config.weight_decay
        self.optimizer = optim.adamw(self.model, *rate, betas, others, slow, shape.backbone_lr)
        self.validation = Validation(self.val_text, config.lengths, config.eval_tokens, self)

        self.step, self.horizon = 0, 0
        self.seconds, self.seconds_per_step = 0.0, 0.0  # of training; of a step, once timed for a horizon in minutes
        self.best: float | None = None  # validation loss
        self.best_step: int | None = None
        self.evaluated_steps: set[int] = set()  # steps whose evaluation is in the metrics
        self.numbers: dict | None = None  # the evaluation of this step
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=world.device)  # the first that was not finite

    def fit_tower(self):
        """What standardises the states of a backbone, from the first rows of the training text; the same on all
        ranks."""
        if (tower := self.model.tower) is None:
            return
        n = max(self.config.lengths)
        ids = torch.from_numpy(self.sampler.batch(0, n, np.arange(max(16, 8192 // n)))[0]).to(self.world.device)
        tower.fit(self.model.backbone, self.model.embed_backbone, ids)
        for buffer in tower.buffers():
            buffer.copy_(self.world.on_rank0(buffer.cpu))

    def unfreeze_backbone(self):
        """From its step on."""
        model = self.model
        if model.backbone is None or model.trains_backbone or model.fixed_backbone:
            return
        if self.step >= model.config.backbone_freeze * self.horizon:
            model.train_backbone(True)
            self.forward.wrap()

    def find_horizon(self) -> int:
        """Steps to the end; 0 while minutes are not yet timed."""
        known = self.train_text.count, self.flops_per_token, self.seconds_per_step, self.step
        return find_horizon(self.config, self.plan, *known)

    def length(self, step: int) -> int:
        """Of the rows of a step."""
        return self.sampler.length(step, self.plan.mix(step, self.horizon))

    def rows_to_come(self):
        """(step, length, row numbers) of every micro-batch of this rank, from here on."""
        step = self.step
        while True:
            n = self.length(step)
            for part in range(self.plan.parts):
                yield step, n, self.plan.rows(n, self.world.rank, part)
            step += 1

    def check_finite(self):
        """Waits for the device; called before anything is logged, evaluated or saved."""
        if (step := int(self.bad_step)) >= 0:
            raise NonFinite(
                f"loss or gradient of step {step} is not finite; the checkpoints before it are untouched, "
                "take a smaller --lr or a longer --warmup"
            )


def start_or_resume(run: Run, there: dict):
    """Puts the run that is there, or a new one, in place: weights, folder, horizon. there: see RunFolder.inspect."""
    config, world, out, old = run.config, run.world, run.out, there["config"]
    wanted = old.get("compile", "auto") if old and config.compile == "auto" else config.compile
    flops = run.find_horizon() * run.plan.tokens * run.flops_per_token / world.size
    compiled = decide_compile(wanted, world, run.shapes, flops, config.max_minutes, run.signals)
    if compiled and run.shapes > 32:
        raise UserError(
            f"{run.shapes} shapes (lengths x plateaus x what a step may run with) to compile; write compile=False"
        )
    text, now = run.train_text, {"machine": distributed.machine(world.device), "ranks": world.size}
    found = {"dtype": world.dtype, "compile": compiled, **now}
    found |= {"mask_id": text.mask, "pad_id": text.pad, "tokenizer_hash": text.tokenizer_hash}
    resolved = run.settings.record(out, old, found)  # says what is wrong before anything is loaded
    resolved |= {"parameters": run.parameters, "train_flops_per_token": run.flops_per_token}
    resolved |= {"tokens_per_step": run.plan.tokens, "spectral_seconds": run.spectral_seconds}
    resolved |= {"backbone_hash": run.backbone_hash} if run.settings.model.backbone else {}
    resolved["segments"] = [*resolved.get("segments", []), {"step": 0, "commit": resolved["commit"], **now}]
    if not there["fresh"]:
        if old.get("backbone_hash") != resolved.get("backbone_hash"):
            raise UserError(f"backbone={old['backbone']} is another than {out.path} began with; put that one back")
        load(run)
        resolved["segments"][-1]["step"] = run.step
    else:
        run.fit_tower()
    if there["fresh"] and config.init_from:
        theirs = world.on_rank0(lambda: run_folder.load_tensors(run_folder.warm_start_file(config.init_from)))
        found = run_folder.load_part(run.model, theirs, config.init_part, config.init_from)
        for kind, tensors in found.items():
            log(f"warm start, {len(tensors)} tensors {kind}: {', '.join(tensors) or '-'}")
    horizon = run.find_horizon()
    if world.rank == 0 and not 0 < horizon <= run.step:
        out.truncate(-1 if there["fresh"] else run.step, run.best_step)
        vectors = run.vocab.vectors if run.objectives.needs_token_vectors else run.model.token_vectors
        out.create(resolved, run.settings.data / "tokenizer.json", run.validation.rows(), vectors)
        if config.wandb:
            out.mirror_to_wandb()
    run.evaluated_steps = world.on_rank0(lambda: {record["step"] for record in out.metrics() if "val_loss" in record})
    if horizon and run.horizon not in (0, horizon):
        warn(f"the horizon moves from {run.horizon} to {horizon} steps; the schedule is computed anew")
    run.horizon = horizon
    if world.rank == 0 and horizon > run.step:
        warn_of_horizon(config, run.plan, run.sampler, horizon)
    if compiled:
        run.forward.compile()
    log(
        f"{run.settings.preset}: {run.parameters:,} parameters, {run.flops_per_token / 1e6:.2f} MFLOP a token; "
        f"{world.size} x {resolved['machine']['device']}, {world.dtype}, {'compiled' if compiled else 'eager'}; "
        f"{run.train_text.count:,} tokens of text, {run.plan.tokens:,} a step in {world.size} x {run.plan.parts} "
        f"parts -> {out.path}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def train(run: Run) -> int:
    """Trains to the horizon; returns the signal that stopped it, or 0."""
    config = run.config
    loader = distributed.Loader(run.sampler, run.rows_to_come(), run.world.device)
    batches, clock = iter(loader), Clock(run.world.device, run.seconds, run.step)
    timer = StepTimer() if config.max_minutes and not run.horizon else None
    stopped = 0
    try:
        if due(run) and run.step not in run.evaluated_steps and not evaluate(run):
            stopped = run.signals.stopped
        gc.collect()
        gc.freeze()  # a collection in the middle of a step walks all of torch, half a second
        clock.start()
        while not stopped and (run.step < run.horizon or not run.horizon):
            if stopped := run.signals.agreed():
                break
            try:
                result = train_step(run, batches)
            except KeyboardInterrupt:  # of what compiles, on all ranks; nothing of the step is done
                stopped = run.signals.received or signal.SIGINT
                break
            if timer:
                timer = time_step(run, clock, timer)
            last = run.step == run.horizon
            if run.step % config.log_interval == 0 or last:
                log_step(run, *result, clock, last)
            saved = last or run.step in config.ckpt_steps
            saved = saved or bool(config.ckpt_interval and run.step % config.ckpt_interval == 0)
            if due(run) or saved:
                run.check_finite()
                clock.pause()
                run.seconds = clock.seconds
                if due(run) and not evaluate(run):
                    stopped = run.signals.stopped
                elif saved:
                    save(run)
                clock.start()
    finally:
        loader.close()
    if stopped:
        clock.pause()
        run.seconds = clock.seconds
        run.check_finite()
        if run.step:
            save(run)
        run.world.barrier()
    return stopped


def train_step(run: Run, batches) -> tuple[Tensor, Tensor, Tensor]:
    """Takes this step's micro-batches from `batches`; returns (losses of the objective's parts, loss, gradient norm),
    all on the device. A step whose loss or gradient is not finite changes nothing and leaves its number in bad_step."""
    config, world, parts = run.config, run.world, run.plan.parts
    run.unfreeze_backbone()
    if run.model.config.dropout or run.model.config.word_dropout:
        torch.manual_seed(int(Noise(config.seed, run.step, world.rank).key))  # the one use of a generator
    options = sample_options(run.model.config, config.seed, run.step)
    objectives = run.plateaus[schedule_stage(run.step, run.horizon, len(run.plateaus))]
    losses = torch.zeros(len(run.objectives.parts), device=world.device)
    for i in range(parts):
        step, numbers, ids, documents = next(batches)
        assert step == run.step
        rows = Rows(ids, Noise(config.seed, step, numbers), run.vocab, documents)
        if i == 0:
            rehearse(run, objectives, rows, options)
        with run.forward.no_sync() if i < parts - 1 else nullcontext():  # gradients are reduced once
            losses += optim.forward_backward(run.forward, objectives, rows, world, parts, options, run.balance)
    world.all_sum(losses).div_(world.size)
    if run.balance:
        run.balance.finish(lambda x: world.all_sum(x).div_(world.size))
    loss = run.objectives.total(losses)
    rate = optim.learning_rate(config.schedule, config.lr, run.step, run.horizon, config.warmup, config.lr_end)
    norm, bad = optim.clipped_step(run.model, run.optimizer, rate, config.clip, loss)
    run.bad_step = torch.where(bad & (run.bad_step < 0), run.step, run.bad_step)
    run.step += 1
    run.numbers = None
    return losses, loss, norm


def rehearse(run: Run, objectives, rows: Rows, options):
    """Compiles a kind of step before the first of it counts; where that fails, config.json says so."""
    kind = objectives, options, rows.ids.shape, run.step % objectives.shape_count
    alone = replace(run.world, rank=0, size=1)

    def attempt():
        balance = deepcopy(run.balance)
        optim.forward_backward(run.forward, objectives, rows, alone, run.plan.parts, options, balance)

    compiled = run.forward.rehearse(kind, attempt, run.signals)
    run.optimizer.zero_grad(set_to_none=True)
    if not compiled and run.world.rank == 0:
        run.out.write_config(run.out.config() | {"compile": False})


def time_step(run: Run, clock: Clock, timer: StepTimer) -> StepTimer | None:
    """A horizon in minutes becomes one in steps once enough of them are timed: then there is nothing more to time."""
    kind = run.length(run.step - 1), run.step % run.objectives.shape_count
    seconds = timer.add(kind, clock.pause())
    if not seconds:
        return timer
    run.seconds_per_step = run.world.on_rank0(lambda: seconds)
    run.horizon = run.find_horizon()
    if run.world.rank == 0:
        warn_of_horizon(run.config, run.plan, run.sampler, run.horizon)
    log(
        f"{run.config.max_minutes:g} minutes are {run.horizon} steps of {run.seconds_per_step:.3f} s "
        f"({timer.excluded:.1f} s of first steps are left out, and so are evaluations)"
    )
    return None


def due(run: Run) -> bool:
    """This step is to be evaluated."""
    interval = run.config.eval_interval
    return run.step in (0, run.horizon) or bool(interval and run.step % interval == 0)


def evaluate(run: Run) -> bool:
    """False after a signal: it is made when the run goes on."""
    numbers = run.numbers = run.validation.run(run.signals.agreed)
    if numbers is None:
        return False
    best = run.step > 0 and (run.best is None or numbers["val_loss"] < run.best)
    if best:
        run.best, run.best_step = numbers["val_loss"], run.step
    if run.world.rank == 0:
        numbers |= learned(run, numbers)
        run.out.log(step=run.step, **numbers)
        floors = run.validation.floors(run.train_text, run.val_text)
        report.curves(run.out.metrics(), floors, run.out.path / "curves.png", run.objectives.unit)
        run.out.draw_geometry()
        report.weight_curves(run.out.metrics(), run.out.path / "weights.png")
    log(f"step {run.step}: {', '.join(v if isinstance(v, str) else f'{k} {v:.4g}' for k, v in numbers.items())}")
    if best:
        save(run, best=True)
    return True


def log_step(run: Run, losses: Tensor, loss: Tensor, norm: Tensor, clock: Clock, last: bool):
    """A line of metrics and of status."""
    run.check_finite()
    speed = clock.steps_per_second(run.step) * run.plan.tokens
    run.seconds = clock.seconds
    step, tokens = run.step, run.step * run.plan.tokens
    numbers = {"loss": float(loss), "lr": run.optimizer.param_groups[0]["lr"], "grad_norm": float(norm)}
    if len(losses) > 1:
        numbers |= {f"loss_{name}": float(x) for name, x in zip(run.objectives.names, losses, strict=True)}
    if run.balance:
        numbers |= run.balance.numbers()
    if run.world.rank == 0:
        spent = {"flops": tokens * run.flops_per_token, "seconds": run.seconds}
        run.out.log(step=step, tokens=tokens, **numbers, tokens_per_s=speed, **spent)
    left = int(max(0, run.horizon - step) * run.plan.tokens / speed)
    command.status(
        f"step {step}/{run.horizon or '?'}  loss {numbers['loss']:.4f}  lr {numbers['lr']:.2e}  "
        f"norm {numbers['grad_norm']:.2f}  {speed:,.0f} tok/s  {speed * run.flops_per_token / 1e9:,.1f} model GFLOP/s  "
        f"ETA {f'{left // 60}:{left % 60:02d}' if run.horizon else '?'}",
        last,
    )


def save(run: Run, best: bool = False):
    if run.world.rank == 0:
        state = {"tokens": run.step * run.plan.tokens} | {key: getattr(run, key) for key in run.STATE}
        state |= run.balance.state()
        run.out.save(run.step, run.model, run.optimizer, state, run.config.keep, run.config.ckpt_steps, best)


def load(run: Run):
    """Takes over the latest checkpoint; rank 0 reads, so that all ranks stand at one step whatever their disks."""
    there = run.world.on_rank0(lambda: run.out.read("latest"))
    run_folder.load_weights(run.model, there["weights"], there["folder"])
    try:
        run.optimizer.load_state_dict(there["optimizer"])
        for key, kinds in run.STATE.items():
            setattr(run, key, convert(there["state"][key], kinds))
        run.balance.load(there["state"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"optim.pt or state.json is of another model, or of older code ({error})"
        raise UserError(f"{there['folder']}: {why}; take another checkpoint") from None
    if run.best_step not in run.world.on_rank0(run.out.steps):
        run.best = run.best_step = None
    run.out.saved = run.step
    log(f"going on at step {run.step} of {run.out.path}")


if __name__ == "__main__":
    command.command(main)
