"""
Trains a concept encoder on one device, on several, or on several nodes.

    python train.py config/quickstart.py
    python train.py config/tsdae_cpu.py --out_dir=out/try --lr=1e-3 --max_steps=500
    torchrun --nproc_per_node=8 train.py config/tsdae_l6.py
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train.py config/tsdae_l6.py

Ctrl-C or SIGTERM saves and stops; the same command goes on where it stopped, bit for bit.
"""

import gc
import json
import math
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import geometry
import losses
import objectives
from lab import command, dataset, distributed, files, runs
from lab.command import NonFinite, say
from lab.configurator import UserError, parse, show, warn
from lab.distributed import World
from lab.runs import RunFolder
from lab.validation import Validation, final_table, reconstructions
from model import ConceptModel, ModelConfig, flops
from objectives import Noise, ObjectiveConfig, Problem, Vocabulary, make_problems

ROOT = Path(__file__).resolve().parent
HORIZONS = ("max_steps", "max_tokens", "max_epochs", "max_minutes")


@dataclass
class TrainConfig:
    dataset: Annotated[str, "folder of prepared data under data_dir"] = "pydocs"
    data_dir: Annotated[str, "where the prepared data are; empty: data/ beside this script"] = ""
    out_dir: Annotated[str, "run folder; empty: out/<name of the config>"] = ""
    tag: Annotated[str, "a word of yours, kept in config.json"] = ""
    lengths: Annotated[tuple[int, ...], "row lengths in tokens; each step draws one of them"] = (16, 32, 128, 512)
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
    max_minutes: Annotated[
        float, "horizon in minutes of training steps (no evaluations), turned into steps once timed"
    ] = 0.0
    eval_interval: Annotated[int, "steps between evaluations; 0: only at the start and the end"] = 500
    eval_tokens: Annotated[int, "validation tokens a length"] = 32768
    ckpt_interval: Annotated[int, "steps between checkpoints besides those of the best evaluations; 0: none"] = 1000
    ckpt_steps: Annotated[tuple[int, ...], "steps whose checkpoints are kept for ever"] = ()
    keep: Annotated[int, "how many of the last checkpoints are kept, besides the best"] = 2
    log_interval: Annotated[int, "steps between log lines"] = 20
    compile: Annotated[bool | Literal["auto"], "torch.compile; auto: on a GPU"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], "of matrix products; auto: bfloat16 where the device is fast at it"
    ] = "auto"
    deterministic: Annotated[bool, "bit-exact repeats on a GPU too, at a price"] = False
    seed: Annotated[int, "of initial weights, rows and noise"] = 0
    device: Annotated[str, "auto, cpu or cuda"] = "auto"
    resume: Annotated[
        Literal["auto", "must", "never"], "go on with what out_dir holds; must: there is something; never: it is empty"
    ] = "auto"
    init_from: Annotated[str, "warm start from this run folder's latest checkpoint"] = ""
    init_part: Annotated[Literal["encoder", "all"], "which tensors a warm start takes"] = "encoder"
    wandb: Annotated[bool, "also log to Weights & Biases (WANDB_MODE=offline: to disk alone)"] = False
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
        if not self.lengths or min(self.lengths) < 2 or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths={self.lengths} must be different numbers of at least 2 tokens")
        if not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1 or not 0 <= self.lr_end <= 1:
            raise ValueError("beta1 and beta2 must lie in [0, 1), lr_end in [0, 1]")
        if not any(getattr(self, key) for key in HORIZONS):
            raise ValueError(f"no end is set; give one of {', '.join(HORIZONS)}")
        dataset.check_name(self.dataset)


# Keys that may differ when a run goes on, and those of them that end bit-exactness.
FREE = {*HORIZONS, "eval_interval", "ckpt_interval", "log_interval", "device", "resume", "out_dir", "data_dir", "tag"}
FREE |= {"keep", "ckpt_steps", "final_report", "wandb"}
INEXACT = {"micro_batch", "compile", "dtype", "machine", "ranks"}


# -----------------------------------------------------------------------------------------------------------------
# how a step is cut into rows


@dataclass(frozen=True)
class Plan:
    """Tokens a step are constant: a step of length n has batch_size * max(lengths) / n rows, cut into `parts`."""

    lengths: tuple[int, ...]
    tokens: int  # a step
    micro_tokens: int  # a forward of one rank
    parts: int  # forwards a step on each rank

    def rows(self, n: int, rank: int, part: int) -> np.ndarray:
        """Global numbers of the rows of length n that this rank reads in this part of the step."""
        size, block = self.micro_tokens // n, rank * self.parts + part
        return np.arange(block * size, (block + 1) * size, dtype=np.int64)

    def shapes(self) -> list[tuple[int, int]]:
        """(rows, tokens) of every forward there can be."""
        return [(self.micro_tokens // n, n) for n in self.lengths]


def make_plan(config: TrainConfig, ranks: int) -> Plan:
    longest = max(config.lengths)
    if config.batch_size % ranks:
        raise UserError(
            f"batch_size={config.batch_size} cannot be shared by {ranks} ranks; "
            f"write batch_size={nearest_multiple(config.batch_size, ranks)}"
        )
    share = config.batch_size // ranks
    micro = config.micro_batch or share
    if share % micro:
        fit = min((d for d in range(1, share + 1) if share % d == 0), key=lambda d: abs(d - micro))
        raise UserError(f"micro_batch={micro} does not divide the {share} rows a rank has; write micro_batch={fit}")
    for n in config.lengths:
        if micro * longest % n:
            step = n // math.gcd(n, longest)
            raise UserError(
                f"micro_batch={micro} rows of {longest} tokens are no whole number of rows of length {n}; "
                f"write micro_batch={nearest_multiple(micro, step)}, and a batch_size it divides"
            )
    if len(config.lengths) > 32:
        raise UserError(f"{len(config.lengths)} lengths are as many shapes to compile; take at most 32")
    return Plan(config.lengths, config.batch_size * longest, micro * longest, share // micro)


def nearest_multiple(x: int, of: int) -> int:
    return max(1, round(x / of)) * of


def check_views(objective: ObjectiveConfig, plan: Plan):
    """What a contrastive loss asks of the rows of a forward."""
    if "contrastive" not in objectives.names(objective):
        return
    if plan.parts > 1:
        raise UserError("contrastive tells a row from all others of one forward; write micro_batch=0")
    group = objectives.ROWS_OF_VIEWS[objective.views]
    for rows, n in plan.shapes():
        if rows % group:
            raise UserError(
                f"views={objective.views!r} needs rows in groups of {group}, but a rank has {rows} rows of length {n}; "
                f"write a batch_size of which every rank has a multiple of {group}"
            )


def fit_decoder(objective: ObjectiveConfig, shape: ModelConfig):
    """Builds no decoder where none would be trained."""
    needed = objectives.needed_decoder(objective)
    if needed is None and not shape.decodes:
        raise UserError(f"decoder={shape.decoder!r} says nothing at a position; write --decoder=posonly")
    if needed not in (None, shape.decoder):
        warn(f"objective={objective.objective!r} trains no decoder, so decoder={shape.decoder!r} is not built")
        shape.decoder = needed


def step_flops(plan: Plan, model: ModelConfig, objective: ObjectiveConfig) -> float:
    """Training FLOPs a token, mean over lengths: three times the forward's (backward is twice the forward)."""
    vocab, total = Vocabulary(model.vocab_size, 0, idf=torch.ones(model.vocab_size)), 0
    for rows, n in plan.shapes():
        ids = torch.zeros(rows, n, dtype=torch.int64)
        for problem in make_problems(ids, Noise(0, 0, torch.arange(rows)), vocab, objective):
            total += 3 * sum(flops(model, problem).values())
    return total / (plan.micro_tokens * len(plan.lengths))


# -----------------------------------------------------------------------------------------------------------------
# training


def learning_rate(config: TrainConfig, step: int, horizon: int) -> float:
    """step counts from 0; before the horizon is known (max_minutes) the rate stays at its peak."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, horizon - config.warmup)) if horizon else 0.0
    left = {
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
        "constant": 1.0,
        "wsd": min(1.0, (1 - done) / 0.2),
    }[config.schedule]
    return config.lr * (config.lr_end + (1 - config.lr_end) * left)


def make_optimizer(model: ConceptModel, config: TrainConfig) -> torch.optim.Optimizer:
    """Only matrices of linear layers decay: no embedding, slot, position, norm or bias."""
    decay = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    groups = [
        {"params": [p for p in model.parameters() if id(p) in decay], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if id(p) not in decay], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


class Trainer:
    """Model, optimizer and counters, and the one step they take together."""

    def __init__(self, world: World, model: ConceptModel, settings, plan: Plan, vocab: Vocabulary):
        self.config, self.objective, _ = settings
        self.world, self.model, self.plan, self.vocab = world, model, plan, vocab
        self.weights = objectives.weights(self.objective)
        self.optimizer = make_optimizer(model, self.config)
        self.forward: nn.Module = model
        self.step, self.horizon = 0, 0
        self.best, self.best_step = math.inf, None
        self.numbers: dict | None = None  # the evaluation of this step
        self.seconds_per_step = 0.0  # once timed, when the horizon is given in minutes
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=world.device)

    def prepare(self, compiled: bool):
        """Wraps the model for its ranks and compiles it; what compiles is exactly what trains."""
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.model, ids, gradient_as_bucket_view=True)
        if compiled:
            torch._dynamo.config.cache_size_limit = max(8, min(32, len(self.plan.lengths)) + 1)
            self.forward = torch.compile(self.forward, dynamic=False)

    def problems(self, ids: Tensor, rows: Tensor, documents: Tensor, step: int) -> list[Problem]:
        return make_problems(ids, Noise(self.config.seed, step, rows), self.vocab, self.objective, documents)

    def train_step(self, batches) -> tuple[Tensor, Tensor, Tensor]:
        """Takes this step's micro-batches from `batches`; returns (losses of the parts, loss, gradient norm), all on
        the device. A step whose loss or gradient is not finite changes nothing and leaves its number in bad_step."""
        config, rate = self.config, learning_rate(self.config, self.step, self.horizon)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.model.config.dropout:  # the one use of a generator, seeded anew each step
            torch.manual_seed(hash((config.seed, self.step, self.world.rank)) & 0x7FFFFFFF)
        parts = torch.zeros(len(self.weights), device=self.world.device)
        for i in range(self.plan.parts):
            step, rows, ids, documents = next(batches)
            assert step == self.step
            problems = self.problems(ids, rows, documents, step)
            waits = self.world.size > 1 and i < self.plan.parts - 1  # gradients are reduced once, after the last part
            with self.forward_of_ranks().no_sync() if waits else nullcontext():
                with self.world.autocast():
                    said, concepts = self.forward(*problems)
                temperature, world = self.objective.temperature, self.world
                found = [
                    losses.complete(*part, temperature, world.gather, world.rank)
                    for part in zip(said, concepts, problems, strict=True)
                ]
                loss = sum(w * x for w, x in zip(self.weights, found, strict=True)) / self.plan.parts
                loss.backward()
            parts += torch.stack([x.detach() for x in found]) / self.plan.parts
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
        self.world.all_sum(parts).div_(self.world.size)
        total = sum(w * x for w, x in zip(self.weights, parts, strict=True))
        bad = ~(torch.isfinite(norm) & torch.isfinite(total))
        self.optimizer.found_inf = bad.float()  # fused AdamW leaves parameters and state as they are
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.bad_step = torch.where(bad & (self.bad_step < 0), self.step, self.bad_step)
        self.step += 1
        return parts, total, norm

    def forward_of_ranks(self) -> DistributedDataParallel:
        return getattr(self.forward, "_orig_mod", self.forward)

    def check_finite(self):
        """Waits for the device; called before anything is logged, judged or saved."""
        if (step := int(self.bad_step)) >= 0:
            raise NonFinite(
                f"loss or gradient of step {step} is not finite; the checkpoints before it are untouched, "
                "take a smaller --lr or a longer --warmup"
            )

    def state(self) -> dict:
        return {
            "step": self.step,
            "tokens": self.step * self.plan.tokens,
            "horizon": self.horizon,
            "seconds_per_step": self.seconds_per_step,
            "best_val_loss": self.best if math.isfinite(self.best) else None,
            "best_step": self.best_step,
        }


def find_horizon(trainer: Trainer, corpus_tokens: int) -> int:
    """Steps to the end; 0 while minutes are not yet timed."""
    config, tokens = trainer.config, trainer.plan.tokens
    if config.max_steps:
        return config.max_steps
    if config.max_minutes:
        seconds = trainer.seconds_per_step
        return max(1, trainer.step, int(config.max_minutes * 60 / seconds)) if seconds else 0
    return max(1, math.ceil((config.max_tokens or config.max_epochs * corpus_tokens) / tokens))


class Stopwatch:
    """
    Seconds a step, for a horizon in minutes: each length's first step (allocation, compilation) is left out,
    then 20 steps are timed.
    """

    def __init__(self, world: World):
        self.world, self.seen, self.seconds, self.excluded = world, set(), [], 0.0

    def lap(self, length: int, start: float) -> float:
        """Called after a step; returns the mean seconds of a step once they are known, else 0."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - start
        if length in self.seen:
            self.seconds.append(seconds)
        else:
            self.excluded += seconds
        self.seen.add(length)
        return sum(self.seconds) / len(self.seconds) if len(self.seconds) >= 20 else 0.0


# -----------------------------------------------------------------------------------------------------------------
# the command


def main(argv) -> int:
    groups = (TrainConfig, ObjectiveConfig, ModelConfig)
    parsed = parse(argv, *groups, prog="train.py", doc=__doc__, root=ROOT, exclusive=(HORIZONS,))
    if parsed.config is None:
        raise UserError("no config is given; try: python train.py config/quickstart.py")
    settings = config, objective, shape = tuple(parsed.make(group) for group in groups)
    unused = {key: f"objective = {objective.objective!r} does not use it" for key in objectives.unused_keys(objective)}
    fit_decoder(objective, shape)
    unused |= shape.unused() | ({} if config.init_from else {"init_part": "there is no init_from"})
    own = ("--", show(parsed.config))  # what a base says may serve its other heirs
    for key in unused.keys() & {key for key, where in parsed.given.items() if where.startswith(own)}:
        parsed.unused([key], f"({unused[key]})")
    if max(config.lengths) > shape.max_length:
        raise UserError(
            f"lengths={config.lengths} reach past max_length={shape.max_length}; write max_length={max(config.lengths)}"
        )
    data = Path(config.data_dir or ROOT / "data") / config.dataset
    if config.print_config:
        return print_config(settings, data)

    world = distributed.start(config.device, config.dtype, config.deterministic)
    plan = make_plan(config, world.size)
    check_views(objective, plan)
    out = RunFolder(config.out_dir or Path("out") / parsed.config.stem)
    old = check_run_folder(out, config)
    fresh = out.pointer("latest") is None  # nothing to go on from
    if fresh and config.init_from:
        runs.warm_start_file(config.init_from)
    signals = distributed.Signals(world)
    if stopped := prepare_data(data, world, signals):
        return 128 + stopped
    train_text, val_text = dataset.Corpus(data, "train"), dataset.Corpus(data, "val")
    size = train_text.vocab_size
    if shape.vocab_size not in (0, size):
        raise UserError(f"vocab_size={shape.vocab_size}, but {data} has {size}; write --vocab_size=0 to take its own")
    shape.vocab_size = size
    small = [n for n in config.lengths if n <= shape.concepts]
    if small:
        warn(f"rows of length {', '.join(map(str, small))} have no bottleneck: concepts={shape.concepts}")
    rule = {"one_document": "contrastive" in objectives.names(objective), "pairs": objectives.needs_pairs(objective)}
    if rule["one_document"] and len(train_text.documents) < 3:  # starts, and the end
        raise UserError(f"contrastive tells documents apart, but {show(train_text.path)} has one; take objective='bow'")
    sampler = dataset.Sampler(train_text, config.lengths, seed=config.seed, **rule)

    torch.manual_seed(config.seed)
    idf = torch.from_numpy(train_text.idf()).to(world.device) if objectives.needs_idf(objective) else None
    vocab = Vocabulary(shape.vocab_size, train_text.mask, tuple(train_text.special_ids), idf)
    model = ConceptModel(shape, vocab.mask_id).to(world.device)
    per_token = step_flops(plan, shape, objective)
    trainer = Trainer(world, model, settings, plan, vocab)
    compiled = decide_compile(config.compile, world)
    resolved = {
        **{key: value for group in settings for key, value in asdict(group).items() if key != "print_config"},
        "dtype": world.dtype,
        "compile": compiled,
        "ranks": world.size,
        "machine": distributed.machine(world.device),
        "mask_id": train_text.mask,
        "pad_id": train_text.pad,
        "tokenizer_hash": train_text.tokenizer_hash,
    }
    if old is not None:
        resolved = old | check_config(out, old, resolved, world, parsed)
    if fresh and config.init_from:
        for kind, tensors in runs.load_part(model, config.init_from, config.init_part).items():
            say(f"warm start, {len(tensors)} tensors {kind}: {', '.join(tensors) or '-'}")
    elif not fresh:
        resume(out, trainer)
    resolved |= {
        "run_id": resolved.get("run_id") or runs.run_id(parsed.config.stem, shape),
        "preset": parsed.config.stem,
        "commit": runs.commit(),
        "parameters": model.num_parameters(),
        "train_flops_per_token": per_token,
        "tokens_per_step": plan.tokens,
    }
    horizon = find_horizon(trainer, train_text.count)
    finished = 0 < horizon <= trainer.step
    world.barrier()  # all ranks have read before rank 0 writes
    if world.rank == 0 and not finished:
        out.cut(-1 if fresh else trainer.step, trainer.best_step)
        out.create(resolved, data / "tokenizer.json")
        if config.wandb:
            out.mirror_to_wandb()
    world.barrier()
    if horizon and trainer.horizon not in (0, horizon):
        warn(f"the horizon moves from {trainer.horizon} to {horizon} steps; the schedule is computed anew")
    trainer.horizon = horizon
    trainer.prepare(compiled)
    say(
        f"{parsed.config.stem}: {model.num_parameters():,} parameters, {per_token / 1e6:.2f} MFLOP a token; "
        f"{world.size} x {distributed.machine(world.device)['device']}, {world.dtype}, "
        f"{'compiled' if compiled else 'eager'}; {train_text.count:,} tokens of text, {plan.tokens:,} a step "
        f"in {world.size} x {plan.parts} parts -> {out.path}"
    )
    validation = Validation(val_text, config.lengths, config.eval_tokens, model, objective, vocab, world)
    stopped = train_loop(trainer, out, sampler, validation, signals, per_token)
    if stopped:
        saved = f"saved step {trainer.step} in" if trainer.step else "nothing is lost in"
        say(f"{saved} {out.path}; the same command goes on")
        return 128 + stopped

    numbers = trainer.numbers or validation.run(signals.agreed)
    if numbers is None:
        say(f"stopped before the tables of {out.path}; the same command prints them")
        return 128 + signals.stopped
    if world.rank == 0:
        tokenizer = dataset.load_tokenizer(data / "tokenizer.json")
        print(f"\n{final_table(numbers, validation, train_text, val_text)}\n")
        print(f"{geometry.line(numbers, shape.concepts)}\n")
        if config.final_report == "retrieval" and not signals.received:
            from lab.retrieval import retrieval_table  # late: scipy

            print(f"{retrieval_table(model, val_text, tokenizer, max(config.lengths))}\n")
        if said := reconstructions(validation, tokenizer):
            print(f"held-out rows (text, read by the encoder, said):\n\n{said}")
        print(f"run: {out.path} (curves.png, metrics.jsonl)", flush=True)
    world.barrier()
    stopped = world.from_rank0(signals.received)
    return 128 + stopped if stopped else 0


def print_config(settings, data: Path) -> int:
    """One JSON object on stdout; needs no data, but says null where a vocabulary size is missing."""
    config, objective, shape = settings
    plan = make_plan(config, 1)
    check_views(objective, plan)
    if not shape.vocab_size and (data / "meta.json").is_file():
        shape.vocab_size = json.loads((data / "meta.json").read_text())["vocab_size"]
    values = {key: value for group in settings for key, value in asdict(group).items() if key != "print_config"}
    values |= {"parameters": None, "train_flops_per_token": None}
    if shape.vocab_size:
        with torch.device("meta"):
            values["parameters"] = ConceptModel(shape).num_parameters()
        values["train_flops_per_token"] = step_flops(plan, shape, objective)
    else:
        warn("vocab_size is 0 and there are no data, so parameters and FLOPs are null; give --vocab_size")
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(values | {"tokens_per_step": plan.tokens, "shapes": plan.shapes()}, indent=1))
    return 0


def check_run_folder(out: RunFolder, config: TrainConfig) -> dict | None:
    """The configuration of the run that is there, or None where a new one starts."""
    there = out.exists()
    if config.resume == "must" and not there:
        raise UserError(f"resume='must', but {out.path} holds no run; leave it out to start one")
    if config.resume == "never" and there:
        raise UserError(f"resume='never', but {out.path} holds a run; give another --out_dir")
    out.check_writable()
    return out.config() if there else None


def prepare_data(data: Path, world: World, signals) -> int:
    """The embedded corpus is made on the spot; for any other the command that makes it is printed. Returns the signal
    that stopped it, or 0."""
    if data.name == "pydocs" and not (data / "meta.json").is_file() and world.rank == 0:
        say("preparing the embedded corpus once: docstrings of this Python's packages, at most 90 s")
        script = [sys.executable, str(ROOT / "data/pydocs/prepare.py"), f"--data_dir={data.parent}"]
        process = subprocess.Popen(script)
        while process.poll() is None and not signals.received:
            time.sleep(0.1)
        if signals.received:
            process.terminate()  # it tidies up
            process.wait()
        elif process.returncode:
            raise UserError(f"preparing {data} failed (see above); run {dataset.prepare_command(data)} by itself")
    stopped = world.from_rank0(signals.received)
    if not stopped:
        dataset.load_meta(data)
    return stopped


def decide_compile(wanted, world: World) -> bool:
    if wanted is False or (wanted == "auto" and world.device.type == "cpu"):
        return False
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=world.device))
    except Exception as error:  # no compiler, no Triton: many ways to fail, one way on
        warn(f"torch.compile does not work here ({str(error).splitlines()[0]}); training goes on uncompiled")
        return False
    return True


def check_config(out: RunFolder, old: dict, new: dict, world: World, parsed) -> dict:
    """The configuration to go on with, or a UserError that says why it is not the run's that is there."""
    new = json.loads(json.dumps(new))  # tuples become lists, as in the file
    differs = sorted(key for key in new if key in old and old[key] != new[key])
    if "tag" not in parsed.given:
        new["tag"] = old.get("tag", "")
    if "dtype" in differs and parsed.values["dtype"] == "auto":
        differs.remove("dtype")  # decided once, when the run began
        world.dtype = new["dtype"] = old["dtype"]
    fatal = [key for key in differs if key not in FREE | INEXACT]
    if fatal:
        what = ", ".join(f"{key} ({old[key]} there, {new[key]} now)" for key in fatal)
        raise UserError(f"{out.path} holds a run that differs in {what}; give another --out_dir=")
    if inexact := [key for key in differs if key in INEXACT]:
        warn(f"{', '.join(inexact)} changed: the run goes on, but no longer bit for bit")
    return new


def resume(out: RunFolder, trainer: Trainer):
    """Puts the latest checkpoint into the trainer."""
    folder = out.checkpoint("latest")
    runs.load_weights(trainer.model, folder / "model.safetensors")
    runs.load_optimizer(trainer.optimizer, folder / "optim.pt")
    state = files.read_json(folder / "state.json", "the state of training")
    trainer.step, trainer.horizon = state["step"], state["horizon"]
    trainer.seconds_per_step = state["seconds_per_step"]
    if state["best_step"] in out.steps():
        trainer.best, trainer.best_step = state["best_val_loss"], state["best_step"]
    out.saved = trainer.step
    say(f"going on at step {trainer.step} of {out.path}")


def train_loop(trainer: Trainer, out: RunFolder, sampler, validation: Validation, signals, per_token: float) -> int:
    """Trains to the horizon; returns the signal that stopped it, or 0."""
    config, world, plan = trainer.config, trainer.world, trainer.plan

    def rows_to_come(step):
        while True:
            n = sampler.length(step)
            for part in range(plan.parts):
                yield step, n, plan.rows(n, world.rank, part)
            step += 1

    def save(best=False):
        if world.rank == 0:
            out.save(
                trainer.step, trainer.model, trainer.optimizer, trainer.state(), config.keep, config.ckpt_steps, best
            )

    def due(step) -> bool:
        return step in (0, trainer.horizon) or bool(config.eval_interval and step % config.eval_interval == 0)

    def evaluate() -> bool:
        """False after a signal: it is made when the run goes on."""
        numbers = trainer.numbers = validation.run(signals.agreed)
        if numbers is None:
            return False
        best = trainer.step > 0 and numbers["val_loss"] < trainer.best
        if best:
            trainer.best, trainer.best_step = numbers["val_loss"], trainer.step
        if world.rank == 0:
            out.log(step=trainer.step, **numbers)
            from lab import report  # matplotlib, late

            report.curves(out.metrics(), out.path / "curves.png")
        shown = ", ".join(f"{k} {v:.4g}" if k != "verdict" else v for k, v in numbers.items())
        say(f"step {trainer.step}: {shown}")
        if best:
            save(best=True)
        return True

    def stop() -> int:
        trainer.check_finite()
        if trainer.step:
            save()
        loader.close()
        world.barrier()
        return signals.stopped

    loader = distributed.Loader(sampler, rows_to_come(trainer.step), world.device)
    batches = iter(loader)
    watch = Stopwatch(world) if config.max_minutes and not trainer.horizon else None
    judged = {record["step"] for record in out.metrics() if "val_loss" in record}
    if due(trainer.step) and trainer.step not in judged and not evaluate():
        return stop()
    clock, clock_step = time.monotonic(), trainer.step
    gc.collect()
    gc.freeze()  # a collection in the middle of a step walks all of torch, half a second
    while trainer.step < trainer.horizon or not trainer.horizon:
        if signals.agreed():
            return stop()
        began, length = time.monotonic(), sampler.length(trainer.step)
        parts, loss, norm = trainer.train_step(batches)
        trainer.numbers = None
        step, last = trainer.step, trainer.step == trainer.horizon
        if watch and (seconds := watch.lap(length, began)):
            trainer.seconds_per_step = world.from_rank0(seconds)
            trainer.horizon = find_horizon(trainer, 0)
            last = trainer.step == trainer.horizon
            say(
                f"{config.max_minutes:g} minutes are {trainer.horizon} steps of {trainer.seconds_per_step:.3f} s "
                f"({watch.excluded:.1f} s of first steps are left out, and so are evaluations)"
            )
            watch = None
        if step % config.log_interval == 0 or last:
            trainer.check_finite()
            speed = (step - clock_step) * plan.tokens / (time.monotonic() - clock)
            clock, clock_step = time.monotonic(), step
            numbers = {"loss": float(loss), "lr": trainer.optimizer.param_groups[0]["lr"], "grad_norm": float(norm)}
            if len(parts) > 1:
                names = objectives.names(trainer.objective)
                numbers |= {f"loss_{name}": float(x) for name, x in zip(names, parts, strict=True)}
            if world.rank == 0:
                out.log(step=step, tokens=step * plan.tokens, **numbers, tokens_per_s=speed)
            left = max(0, trainer.horizon - step) * plan.tokens / speed
            clock_left = f"{int(left) // 60}:{int(left) % 60:02d}" if trainer.horizon else "?"
            command.status(
                f"step {step}/{trainer.horizon or '?'}  loss {numbers['loss']:.4f}  lr {numbers['lr']:.2e}  "
                f"norm {numbers['grad_norm']:.2f}  {speed:,.0f} tok/s  {speed * per_token / 1e9:,.1f} model GFLOP/s  "
                f"ETA {clock_left}",
                last,
            )
        if due(step):
            paused = time.monotonic()
            trainer.check_finite()
            if not evaluate():
                return stop()
            clock += time.monotonic() - paused
        if last or step in config.ckpt_steps or (config.ckpt_interval and step % config.ckpt_interval == 0):
            paused = time.monotonic()
            trainer.check_finite()
            save()
            clock += time.monotonic() - paused
    loader.close()
    return 0


if __name__ == "__main__":
    command.command(main)
