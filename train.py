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
import math
import os
import signal
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lab import dataset, distributed, optim, plan, report, runs
from lab.command import NonFinite, say
from lab.configurator import Parsed, PathStr, UserError, convert, fields_of, parse, show, warn
from lab.distributed import Signals, World
from lab.plan import HORIZONS, Clock, cost, count_shapes, decide_compile, drawn_options, make_plan, part_of, rehearse
from lab.runs import RunFolder
from lab.validation import Validation, final_report, learned
from lab.vocabulary import make_vocabulary, token_vectors
from losses import Balance, ConceptLossConfig
from model import ConceptModel, ModelConfig
from noise import Noise
from objectives import ObjectiveConfig, Objectives
from problem import Rows

ROOT = Path(__file__).resolve().parent


@dataclass
class TrainConfig:
    dataset: Annotated[str, "folder of prepared data under data_dir"] = "pydocs"
    data_dir: Annotated[PathStr, "where the prepared data are; empty: data/ beside this script"] = ""
    out_dir: Annotated[PathStr, "run folder; empty: out/<name of the config>"] = ""
    tag: Annotated[str, "a word of yours, kept in config.json"] = ""
    lengths: Annotated[tuple[int, ...], "row lengths in tokens; each step draws one of them"] = (16, 32, 128, 512)
    length_mix: Annotated[
        tuple[float, ...] | tuple[tuple[float, ...], tuple[float, ...]],
        "how often steps draw each of `lengths`, as 1,1,2; a pair, as (1,0,0),(1,1,2): see mask_rate; empty: all alike",
    ] = ()
    batch_size: Annotated[int, "rows of the longest length in an optimizer step, over all ranks"] = 64
    micro_batch: Annotated[int, "rows of the longest length per rank and forward; 0: as many as there are"] = 0
    lr: Annotated[float, "peak learning rate"] = 1e-3
    schedule: Annotated[
        Literal["cosine", "linear", "constant", "wsd"],
        "what follows the warm-up; wsd: constant, linear in the last fifth",
    ] = "cosine"
    warmup: Annotated[int, "steps of linear warm-up"] = 200
    lr_end: Annotated[float, "learning rate at the horizon, as a share of the peak"] = 0.1
    weight_decay: Annotated[float, "AdamW's, on matrices of linear layers only"] = 0.05
    beta1: Annotated[float, "AdamW's first-moment decay"] = 0.9
    beta2: Annotated[float, "AdamW's second-moment decay"] = 0.98
    clip: Annotated[float, "gradients are scaled down to this norm; 0: never"] = 1.0
    max_steps: Annotated[int, "horizon in optimizer steps"] = 0
    max_tokens: Annotated[float, "horizon in tokens drawn"] = 0.0
    max_epochs: Annotated[float, "horizon in corpus-tokens drawn"] = 0.0
    max_flops: Annotated[float, "horizon in training FLOPs by the model's own count: what compares arms fairly"] = 0.0
    max_minutes: Annotated[
        float, "horizon in minutes of training steps (no evaluations), turned into steps once timed"
    ] = 0.0
    eval_interval: Annotated[int, "steps between evaluations; 0: only at the start and the end"] = 500
    eval_tokens: Annotated[int, "validation tokens a length"] = 32768
    ckpt_interval: Annotated[int, "steps between checkpoints besides those of the best evaluations; 0: none"] = 1000
    ckpt_steps: Annotated[tuple[int, ...], "steps whose checkpoints are kept for ever"] = ()
    keep: Annotated[int, "how many of the last checkpoints are kept, besides the best"] = 2
    log_interval: Annotated[int, "steps between log lines"] = 20
    compile: Annotated[
        bool | Literal["auto"], "torch.compile; auto: on a GPU, and on a CPU where the run is long enough to gain by it"
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], "of matrix products; auto: bfloat16 where the device is fast at it"
    ] = "auto"
    spectral_tokens: Annotated[float, "token_init=spectral: tokens whose neighbours are counted, at most"] = 5e7
    deterministic: Annotated[bool, "bit-exact repeats on a GPU too, at a price"] = False
    seed: Annotated[int, "of initial weights, rows and noise"] = 0
    device: Annotated[str, "auto, cpu or cuda"] = "auto"
    resume: Annotated[
        Literal["auto", "must", "never"], "go on with what out_dir holds; must: there is something; never: it is empty"
    ] = "auto"
    init_from: Annotated[PathStr, "warm start from this run folder's latest checkpoint"] = ""
    init_part: Annotated[Literal["encoder", "all"], "which tensors a warm start takes"] = "encoder"
    frozen_decoder: Annotated[
        PathStr, "run folder whose decoder, head and token table this run takes as they are: its encoder alone trains"
    ] = ""
    wandb: Annotated[bool, "also log to Weights & Biases (WANDB_MODE=offline: to disk alone)"] = False
    remove_directions: Annotated[
        Literal[0, 1], "embed: the validation rows' first principal direction is removed (Mu & Viswanath 2018)"
    ] = 0
    whitening: Annotated[
        float, "embed: principal directions are scaled by sigma^-whitening; 0: not, 0.25: a quarter, 1: all (Su 2021)"
    ] = 0.0
    final_report: Annotated[
        Literal["losses", "retrieval"],
        "the table printed at the end; retrieval: also how often a held-out document is found by its first sentence",
    ] = "losses"
    print_config: Annotated[bool, "print the whole configuration as JSON and stop"] = False

    def __post_init__(self):
        if not 0 < self.lr < 1e3:
            raise ValueError(f"lr={self.lr} cannot train; take something like 1e-3")
        for key in ("batch_size", "log_interval", "keep", "eval_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        for key in ("warmup", "micro_batch", "eval_interval", "ckpt_interval", "clip", "weight_decay", *HORIZONS):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}={getattr(self, key)} is negative; take 0 or more")
        if not self.lengths or not 2 <= min(self.lengths) <= max(self.lengths) <= 1 << 20:
            raise ValueError(f"lengths={self.lengths} must be numbers of 2 to 1048576 tokens")
        if len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths={self.lengths} must be different numbers")
        if len(self.lengths) > 32:
            raise ValueError(f"{len(self.lengths)} lengths are as many shapes to compile; take at most 32")
        if not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1 or not 0 <= self.lr_end <= 1:
            raise ValueError("beta1 and beta2 must lie in [0, 1), lr_end in [0, 1]")
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"whitening={self.whitening} is no power to scale by; take 0, 0.25 or at most 1")
        if not any(getattr(self, key) for key in HORIZONS):
            raise ValueError(f"no end is set; give one of {', '.join(HORIZONS)}")
        if self.frozen_decoder and self.init_from:
            raise ValueError("frozen_decoder and init_from both give the token table; leave one of them out")
        dataset.check_name(self.dataset)


# ---------------------------------------------------------------------------------------------------------------------
# All that the user sets


@dataclass
class Settings:
    """What the command line and its config say, checked as far as it can be without data."""

    parsed: Parsed
    train: TrainConfig
    objective: ObjectiveConfig
    model: ModelConfig
    regulariser: ConceptLossConfig

    GROUPS = (TrainConfig, ObjectiveConfig, ModelConfig, ConceptLossConfig)

    @classmethod
    def read(cls, argv: list[str]) -> "Settings":
        """Raises UserError; warns of keys that are given and not used, and builds no decoder where none is trained."""
        parsed = parse(argv, *cls.GROUPS, prog="train.py", doc=__doc__, root=ROOT, exclusive=(HORIZONS,))
        if parsed.config is None:
            raise UserError("no config is given; try: python train.py config/quickstart.py")
        settings = cls(parsed, *(parsed.make(group) for group in cls.GROUPS))
        config, shape, objectives = settings.train, settings.model, settings.objectives
        if objectives.predicts != "positions" and shape.decoder != objectives.predicts:
            warn(f"objective={objectives.text!r} trains no decoder, so decoder={shape.decoder!r} is not built")
            shape.decoder = objectives.predicts
        shape.predictor = objectives.predictor
        if shape.pooling == "attention" and not objectives.pools:
            raise UserError(
                f"objective={objectives.text!r} trains no pooling; write pooling='mean', or add '+ 0.1*bow'"
            )
        if config.frozen_decoder:
            if objectives.predicts != "positions":
                what = f"objective={objectives.text!r} trains through no decoder, so none is frozen"
                raise UserError(f"{what}; add 'tsdae'")
            shape.token_init = "random"  # the table is the other run's
        for text in settings.regulariser.warnings(shape.concepts, shape.hidden):
            warn(text)
        try:
            settings.warn_unused()
        except ValueError as error:
            raise UserError(str(error)) from None
        if objectives.predicts == "positions" and shape.predicts != "positions":
            raise UserError(f"decoder={shape.decoder!r} predicts no single position; write --decoder=posonly")
        if "contrastive" in objectives.names and settings.objective.views == "dropout" and not shape.dropout:
            raise UserError("views='dropout' are one without dropout; write --dropout=0.1")
        if (longest := max(config.lengths)) > shape.max_length:
            raise UserError(f"lengths={config.lengths} reach past max_length={shape.max_length}; write {longest}")
        if not shape.vocab_size and (settings.data / "meta.json").is_file():
            shape.vocab_size = dataset.load_meta(settings.data)["vocab_size"]
        plan = make_plan(config, objectives, 1)
        if config.max_minutes and max(len(objectives.plateaus()), len(plan.mixes)) > 1:
            raise UserError("a schedule needs the number of steps, which max_minutes leaves open; write --max_steps")
        return settings

    @property
    def objectives(self) -> Objectives:
        return Objectives(self.objective)

    @property
    def preset(self) -> str:
        return self.parsed.config.stem

    @property
    def data(self) -> Path:
        return Path(self.train.data_dir or ROOT / "data") / self.train.dataset

    def values(self) -> dict:
        """Every key but print_config."""
        groups = (self.train, self.objective, self.model, self.regulariser)
        values = {key: value for group in groups for key, value in asdict(group).items()}
        del values["print_config"]
        return values

    def defaults(self) -> dict:
        """Of every key whose value is not found out when a run begins: what a run of older code had without the key."""
        groups = {key: field.default for group in self.GROUPS for key, field in fields_of(group).items()}
        found_out = {"print_config", "dtype", "compile", "vocab_size"}
        return json.loads(json.dumps({key: value for key, value in groups.items() if key not in found_out}))

    def resolved(self) -> dict:
        """What --print_config prints: JSON values, and what follows from them; null where the vocabulary is unknown."""
        plan = make_plan(self.train, self.objectives, 1)
        known, frozen = self.model.vocab_size > 0, bool(self.train.frozen_decoder)
        parameters, flops = cost(plan, self.model, self.objectives, frozen, self.regulariser) if known else (None, None)
        derived = {"parameters": parameters, "train_flops_per_token": flops}
        derived |= {"tokens_per_step": plan.tokens, "shapes": plan.shapes()}
        return json.loads(json.dumps(self.values() | derived))

    def warn_unused(self):
        reasons = {key: f"(objective = {self.objective.objective!r})" for key in fields_of(ObjectiveConfig)}
        unused = reasons.keys() - self.objectives.uses
        parts = f"(encoder = {self.model.encoder!r}, decoder = {self.model.decoder!r})"
        reasons |= dict.fromkeys(self.model.unused(), parts) | {"init_part": "(there is no init_from)"}
        reasons |= {"predictor": "(the objective says it)", "token_init": "(the token table is the frozen decoder's)"}
        unused |= {"predictor"} | ({"token_init"} if self.train.frozen_decoder else set())
        unused |= self.model.unused() | (set() if self.train.init_from else {"init_part"}) | self.regulariser.unused()
        balance = f"(concept_loss = {self.regulariser.concept_loss!r}, "
        balance += f"concept_balance = {self.regulariser.concept_balance!r})"
        reasons |= dict.fromkeys(self.regulariser.unused(), balance)
        own = ("--", show(self.parsed.config))  # what a base says may serve its other heirs
        for key, where in self.parsed.given.items():
            if key in unused and where.startswith(own):
                self.parsed.unused([key], reasons[key])


# ---------------------------------------------------------------------------------------------------------------------
# Training


class Trainer:
    """Model, optimizer, text and run folder, and what is done with them: steps, evaluations, checkpoints."""

    # What a checkpoint keeps of it: name -> types
    STATE = {"step": (int,), "seconds": (float,), "horizon": (int,), "seconds_per_step": (float,)}
    STATE |= {"best": (float, NoneType), "best_step": (int, NoneType)}

    def __init__(self, settings: Settings, world: World, out: RunFolder, signals: Signals):
        config, shape = settings.train, settings.model
        self.settings, self.config, self.world, self.out, self.signals = settings, config, world, out, signals
        self.objectives = settings.objectives
        self.plan = make_plan(config, self.objectives, world.size)
        self.train_text, self.val_text = (dataset.Corpus(settings.data, split) for split in ("train", "val"))
        text = self.train_text
        text.counts()  # found wanting now, not at the end
        files = [(x.tokenizer_hash, x.count, x.documents.size, x.sentences.size) for x in (text, self.val_text)]
        differs = torch.tensor(files != world.on_rank0(lambda: files), dtype=torch.int32, device=world.device)
        if count := int(world.all_sum(differs)):
            raise UserError(f"{count} ranks have another {show(settings.data)} than rank 0; copy it to each node")
        if shape.vocab_size not in (0, text.vocab_size):
            raise UserError(
                f"vocab_size={shape.vocab_size}, but {settings.data} has {text.vocab_size}; "
                "write --vocab_size=0 to take its own"
            )
        shape.vocab_size = text.vocab_size
        if self.objectives.negatives and len(text.documents) < 3:  # starts, and the end
            raise UserError(f"{self.objectives.text} tells documents apart, but {show(text.path)} has one; take bow")
        rules = {"one_document": self.objectives.one_document, "pairs": self.objectives.pairs}
        self.sampler = dataset.Sampler(text, config.lengths, seed=config.seed, **rules)
        frozen = world.on_rank0(lambda: runs.frozen_weights(config.frozen_decoder, shape, text.tokenizer_hash, out))
        vectors, self.spectral_seconds = world.on_rank0(lambda: token_vectors(self))
        self.vocab = make_vocabulary(text, self.objectives, vectors, world.device)
        begins = vectors if shape.token_init == "spectral" else None
        self.model = ConceptModel(shape, text.mask, config.seed, begins).to(world.device)
        if config.frozen_decoder:
            self.model.freeze_decoder(frozen)
        self.forward: nn.Module = self.model  # what trains, compiled or not
        self.wrapped, self.rehearsed = self.model, set()  # the same uncompiled; kinds of steps
        self.plateaus = self.objectives.plateaus()
        self.shapes = count_shapes(self.plan, shape, self.objectives)
        what = self.plan, shape, self.objectives, bool(config.frozen_decoder), settings.regulariser
        self.parameters, self.flops_per_token = cost(*what)
        self.balance = Balance(settings.regulariser, world.device)
        betas, others = (config.beta1, config.beta2), self.balance.parameters()
        self.optimizer = optim.adamw(self.model, config.lr, config.weight_decay, betas, others)
        self.validation = Validation(self.val_text, config.lengths, config.eval_tokens, self)
        self.step, self.seconds, self.horizon = 0, 0.0, 0
        self.seconds_per_step = 0.0  # once timed, when the horizon is given in minutes
        self.best: float | None = None  # validation loss
        self.best_step: int | None = None
        self.judged: set[int] = set()  # steps whose evaluation is in the metrics
        self.numbers: dict | None = None  # the evaluation of this step
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=world.device)

    # What there is to go on from

    def load(self):
        """Takes over the latest checkpoint; rank 0 reads, so that all ranks stand at one step whatever their disks."""
        there = self.world.on_rank0(lambda: self.out.read("latest"))
        runs.load_weights(self.model, there["weights"], there["folder"])
        try:
            self.optimizer.load_state_dict(there["optimizer"])
            for key, kinds in self.STATE.items():
                setattr(self, key, convert(there["state"][key], kinds))
            self.balance.load(there["state"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"optim.pt or state.json is of another model, or of older code ({error})"
            raise UserError(f"{there['folder']}: {why}; take another checkpoint") from None
        if self.best_step not in self.world.on_rank0(self.out.steps):
            self.best = self.best_step = None
        self.out.saved = self.step
        say(f"going on at step {self.step} of {self.out.path}")

    def state(self) -> dict:
        own = {key: getattr(self, key) for key in self.STATE}
        return {"tokens": self.step * self.plan.tokens} | own | self.balance.state()

    def save(self, best: bool = False):
        if self.world.rank == 0:
            keep = (self.config.keep, self.config.ckpt_steps)
            self.out.save(self.step, self.model, self.optimizer, self.state(), *keep, best)

    def find_horizon(self) -> int:
        """Steps to the end; 0 while minutes are not yet timed."""
        config, tokens = self.config, self.plan.tokens
        if config.max_steps:
            return config.max_steps
        if config.max_minutes:
            seconds = self.seconds_per_step
            return max(1, self.step, int(config.max_minutes * 60 / seconds)) if seconds else 0
        wanted = config.max_tokens or config.max_epochs * self.train_text.count
        wanted = wanted or config.max_flops / self.flops_per_token
        return max(1, math.ceil(wanted / tokens))

    # One step

    def wrap(self, compiled: bool):
        """Wraps the model for its ranks and compiles it; what compiles is exactly what trains."""
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.model, ids, gradient_as_bucket_view=True)
        self.forward = self.wrapped
        if compiled:
            torch._dynamo.config.cache_size_limit = max(8, self.shapes + 1)
            self.forward = torch.compile(self.wrapped, dynamic=False)

    def train_step(self, batches) -> tuple[Tensor, Tensor, Tensor]:
        """Takes this step's micro-batches from `batches`; returns (losses of the parts, loss, gradient norm), all on
        the device. A step whose loss or gradient is not finite changes nothing and leaves its number in bad_step."""
        config, world, plan = self.config, self.world, self.plan
        if self.model.config.dropout or self.model.config.word_dropout:
            # the one use of a generator, seeded anew each step
            torch.manual_seed(int(Noise(config.seed, self.step, world.rank).key))
        options = drawn_options(self.model.config, config.seed, self.step)
        objectives = self.plateaus[part_of(self.step, self.horizon, len(self.plateaus))]
        parts = torch.zeros(len(self.objectives.parts), device=world.device)
        for i in range(plan.parts):
            step, numbers, ids, documents = next(batches)
            assert step == self.step
            rows = Rows(ids, Noise(config.seed, step, numbers), self.vocab, documents)
            if i == 0:
                rehearse(self, objectives, rows, options)
            waits = world.size > 1 and i < plan.parts - 1  # gradients are reduced once, after the last part
            with self.wrapped.no_sync() if waits else nullcontext():
                what = (objectives, rows, world, plan.parts, options, self.balance)
                parts += optim.add_gradients(self.forward, *what)
        world.all_sum(parts).div_(world.size)
        if self.balance:
            self.balance.finish(lambda x: world.all_sum(x).div_(world.size))
        loss = self.objectives.total(parts)
        rate = optim.learning_rate(config.schedule, config.lr, self.step, self.horizon, config.warmup, config.lr_end)
        norm, bad = optim.clipped_step(self.model, self.optimizer, rate, config.clip, loss)
        self.bad_step = torch.where(bad & (self.bad_step < 0), self.step, self.bad_step)
        self.step += 1
        self.numbers = None
        return parts, loss, norm

    def check_finite(self):
        """Waits for the device; called before anything is logged, judged or saved."""
        if (step := int(self.bad_step)) >= 0:
            raise NonFinite(
                f"loss or gradient of step {step} is not finite; the checkpoints before it are untouched, "
                "take a smaller --lr or a longer --warmup"
            )

    # All steps

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

    def due(self) -> bool:
        """This step is to be evaluated."""
        interval = self.config.eval_interval
        return self.step in (0, self.horizon) or bool(interval and self.step % interval == 0)

    def train(self) -> int:
        """Trains to the horizon; returns the signal that stopped it, or 0."""
        loader = distributed.Loader(self.sampler, self.rows_to_come(), self.world.device)
        try:
            stopped = self.train_on(iter(loader))
        finally:
            loader.close()
        if stopped:
            self.check_finite()
            if self.step:
                self.save()
            self.world.barrier()
        return stopped

    def train_on(self, batches) -> int:
        config, clock = self.config, Clock(self)
        if self.due() and self.step not in self.judged and not self.evaluate():
            return self.signals.stopped
        gc.collect()
        gc.freeze()  # a collection in the middle of a step walks all of torch, half a second
        clock.start()
        while self.step < self.horizon or not self.horizon:
            if self.signals.agreed():
                clock.pause()
                return self.signals.stopped
            try:
                result = self.train_step(batches)
            except KeyboardInterrupt:  # of what compiles, on all ranks; nothing of the step is done
                clock.pause()
                return self.signals.received or signal.SIGINT
            clock.stepped()
            last = self.step == self.horizon
            if self.step % config.log_interval == 0 or last:
                self.log(*result, clock.speed(), last)
            saved = last or self.step in config.ckpt_steps
            saved = saved or bool(config.ckpt_interval and self.step % config.ckpt_interval == 0)
            if self.due() or saved:
                self.check_finite()
                clock.pause()
                if self.due() and not self.evaluate():
                    return self.signals.stopped
                if saved:
                    self.save()
                clock.start()
        return 0

    def evaluate(self) -> bool:
        """False after a signal: it is made when the run goes on."""
        numbers = self.numbers = self.validation.run(self.signals.agreed)
        if numbers is None:
            return False
        best = self.step > 0 and (self.best is None or numbers["val_loss"] < self.best)
        if best:
            self.best, self.best_step = numbers["val_loss"], self.step
        if self.world.rank == 0:
            numbers |= learned(self, numbers)
            self.out.log(step=self.step, **numbers)
            floors = self.validation.floors(self.train_text, self.val_text)
            report.curves(self.out.metrics(), floors, self.out.path / "curves.png", self.objectives.unit)
            self.out.draw_geometry()
            report.weight_curves(self.out.metrics(), self.out.path / "weights.png")
        shown = ", ".join(v if isinstance(v, str) else f"{k} {v:.4g}" for k, v in numbers.items())
        say(f"step {self.step}: {shown}")
        if best:
            self.save(best=True)
        return True

    def log(self, parts: Tensor, loss: Tensor, norm: Tensor, speed: float, last: bool):
        """A line of metrics and of status. speed: tokens a second since the last one."""
        self.check_finite()
        step, tokens = self.step, self.step * self.plan.tokens
        numbers = {"loss": float(loss), "lr": self.optimizer.param_groups[0]["lr"], "grad_norm": float(norm)}
        if len(parts) > 1:
            numbers |= {f"loss_{name}": float(x) for name, x in zip(self.objectives.names, parts, strict=True)}
        if self.balance:
            numbers |= self.balance.numbers()
        if self.world.rank == 0:
            spent = {"flops": tokens * self.flops_per_token, "seconds": self.seconds}
            self.out.log(step=step, tokens=tokens, **numbers, tokens_per_s=speed, **spent)
        left = int(max(0, self.horizon - step) * self.plan.tokens / speed)
        command.status(
            f"step {step}/{self.horizon or '?'}  loss {numbers['loss']:.4f}  lr {numbers['lr']:.2e}  "
            f"norm {numbers['grad_norm']:.2f}  {speed:,.0f} tok/s  "
            f"{speed * self.flops_per_token / 1e9:,.1f} model GFLOP/s  "
            f"ETA {f'{left // 60}:{left % 60:02d}' if self.horizon else '?'}",
            last,
        )


# ---------------------------------------------------------------------------------------------------------------------
# The command


def resolve(trainer: Trainer, old: dict | None, compiled: bool) -> dict:
    """config.json: every key as it is in force, and what follows from them; `segments` has an entry for each time the
    run was started or went on."""
    settings, world, text = trainer.settings, trainer.world, trainer.train_text
    now = {"machine": distributed.machine(world.device), "ranks": world.size}
    values = settings.values() | {"dtype": world.dtype, "compile": compiled} | now
    values |= {"mask_id": text.mask, "pad_id": text.pad, "tokenizer_hash": text.tokenizer_hash}
    values = json.loads(json.dumps(values))  # tuples become lists, as in the file
    if old is not None:
        trainer.out.check_same(old, values, HORIZONS)
        if "tag" not in settings.parsed.given:
            values["tag"] = old.get("tag", "")
        values = old | values
    commit = runs.commit()
    return values | {
        "run_id": values.get("run_id") or runs.run_id(settings.preset, settings.model),
        "preset": settings.preset,
        "commit": commit,
        "parameters": trainer.parameters,
        "train_flops_per_token": trainer.flops_per_token,
        "tokens_per_step": trainer.plan.tokens,
        "spectral_seconds": trainer.spectral_seconds,
        "segments": [*values.get("segments", []), {"step": trainer.step, "commit": commit, **now}],
    }


def begin(trainer: Trainer, there: dict):
    """Puts the run that is there, or a new one, in place: weights, folder, horizon."""
    config, world, out, old = trainer.config, trainer.world, trainer.out, there["config"]
    wanted = old.get("compile", "auto") if old and config.compile == "auto" else config.compile
    flops = trainer.find_horizon() * trainer.plan.tokens * trainer.flops_per_token / world.size
    compiled = decide_compile(wanted, world, trainer.shapes, flops, config.max_minutes, trainer.signals)
    if compiled and trainer.shapes > 32:
        raise UserError(
            f"{trainer.shapes} shapes (lengths x plateaus x what a step may run with) to compile; write compile=False"
        )
    resolved = resolve(trainer, old, compiled)  # says what is wrong before anything is loaded
    if not there["fresh"]:
        trainer.load()
        resolved["segments"][-1]["step"] = trainer.step
    elif config.init_from:
        theirs = world.on_rank0(lambda: runs.load_tensors(runs.warm_start_file(config.init_from)))
        for kind, tensors in runs.load_part(trainer.model, theirs, config.init_part, config.init_from).items():
            say(f"warm start, {len(tensors)} tensors {kind}: {', '.join(tensors) or '-'}")
    horizon = trainer.find_horizon()
    if world.rank == 0 and not 0 < horizon <= trainer.step:
        out.cut(-1 if there["fresh"] else trainer.step, trainer.best_step)
        rows = trainer.validation.rows()
        vectors = trainer.vocab.vectors if trainer.objectives.by_vectors else trainer.model.token_vectors
        out.create(resolved, trainer.settings.data / "tokenizer.json", rows, vectors)
        if config.wandb:
            out.mirror_to_wandb()
    trainer.judged = world.on_rank0(lambda: {record["step"] for record in out.metrics() if "val_loss" in record})
    if horizon and trainer.horizon not in (0, horizon):
        warn(f"the horizon moves from {trainer.horizon} to {horizon} steps; the schedule is computed anew")
    trainer.horizon = horizon
    if world.rank == 0 and horizon > trainer.step:
        plan.warn_of_horizon(trainer)
    trainer.wrap(compiled)
    say(
        f"{trainer.settings.preset}: {trainer.parameters:,} parameters, {trainer.flops_per_token / 1e6:.2f} MFLOP a "
        f"token; {world.size} x {resolved['machine']['device']}, {world.dtype}, "
        f"{'compiled' if compiled else 'eager'}; {trainer.train_text.count:,} tokens of text, "
        f"{trainer.plan.tokens:,} a step in {world.size} x {trainer.plan.parts} parts -> {out.path}"
    )


def main(argv) -> int:
    settings = Settings.read(argv)
    if settings.train.print_config:
        if not settings.model.vocab_size:
            warn("vocab_size is 0 and there are no data, so parameters and FLOPs are null; give --vocab_size")
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(settings.resolved(), indent=1))
        return 0
    config = settings.train
    world = distributed.start(config.device, config.dtype, config.deterministic)
    make_plan(config, settings.objectives, world.size)
    out = RunFolder(config.out_dir or Path("out") / settings.preset)
    with out.lock:
        return run(settings, world, out)


def run(settings: Settings, world: World, out: RunFolder) -> int:
    """Begins or goes on with what `out` holds, and trains to the end; returns the exit code."""
    config, taken = settings.train, settings.train.init_from or settings.train.frozen_decoder
    there = world.on_rank0(lambda: out.look(config.resume, taken, settings.defaults()))
    if config.frozen_decoder and there["fresh"]:
        world.on_rank0(lambda: runs.check_frozen(config.frozen_decoder, settings.model))
    if there["config"] and config.dtype == "auto" and "dtype" in there["config"]:
        world = replace(world, dtype=there["config"]["dtype"])  # decided once, when the run began
    signals = Signals(world)
    if stopped := dataset.prepare(settings.data, world, signals):
        return 128 + stopped
    trainer = Trainer(settings, world, out, signals)
    begin(trainer, there)
    if stopped := trainer.train():
        saved = f"saved step {trainer.step} in" if trainer.step else "nothing is lost in"
        say(f"{saved} {out.path}; the same command goes on")
        return 128 + stopped
    trainer.numbers = trainer.numbers or trainer.validation.run(signals.agreed)
    if trainer.numbers is None:
        say(f"stopped before the tables of {out.path}; the same command prints them")
        return 128 + signals.stopped
    if world.rank == 0:
        print(final_report(trainer, config.final_report == "retrieval"), flush=True)
    world.barrier()
    stopped = world.on_rank0(lambda: signals.received)
    return 128 + stopped if stopped else 0


if __name__ == "__main__":
    command.command(main)
