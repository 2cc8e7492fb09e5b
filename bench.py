"""
Benchmarks the training step of a preset as train.py runs it: speed, share of peak FLOP/s, memory.

    python bench.py                               # the original six-layer MLM step: 512 tokens, vocabulary 50,368
    python bench.py config/tsdae_cpu.py config/perceiver_mlm_l2.py --threads=2 --json=bench.json
    python bench.py config/bixt_cpu.py --lengths=512,2048,8192 --batch=1    # how the cost grows with the length
    python bench.py config/long_cpu.py --encoders=perceiver,dense --lengths=512,2048,8192 --batch=1 --figure=cost.png
    python bench.py --costs                       # parameters and FLOPs of the original project's presets, no timing

Compared on the same rows, in alternation: our step, a dense encoder of the same sizes and, for `original_structure`
presets, a plain implementation of the same mathematics (lab/reference.py, never compiled); ratios are of median times.
Peak memory is that of a fresh process for each, in which freed memory is returned to the system at once, so that it is
what the step needs, not what an allocator keeps. Tokens are random. Dropout is off on a CPU; on a GPU it is the
preset's, since it decides which attention kernel runs.
"""

from lab import command  # isort: skip  (first: it tells an older Python)
import gc
import json
import multiprocessing
import os
import re
import resource
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch.utils.benchmark import Timer, timer

from encoders import ENCODERS
from lab import distributed, files
from lab.configurator import PathStr, UserError, parse
from lab.distributed import World
from lab.reference import ReferenceMLM, copy_weights, reference_inputs
from lab.report import length_figure, table
from lab.training import optim
from lab.training.plan import cost, encoding_flops, make_plan
from lab.training.run_folder import commit
from losses import Balance
from model import ConceptModel, ModelConfig
from noise import Noise
from objectives import Bounds, check_bounds
from problem import Rows, Vocabulary

ROOT = Path(__file__).resolve().parent


@dataclass
class BenchConfig:
    json: Annotated[PathStr, "file for the results; empty: none"] = ""
    batch: Annotated[int, "rows of the longest length in a step; shorter ones get as many tokens", Bounds(1)] = 16
    threads: Annotated[int, "CPU threads (0: torch's choice)", Bounds(0)] = 0
    repeats: Annotated[int, "timed blocks of steps of each arm: one step on a CPU, ten on a GPU", Bounds(1)] = 7
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], "number format of matrix products"] = "auto"
    device: Annotated[str, "auto, cpu, cuda or mps"] = "auto"
    compile: Annotated[bool | Literal["auto"], "compile our arm; auto: on a GPU only"] = "auto"
    lengths: Annotated[tuple[int, ...], "row lengths to measure, in the place of the preset's own", Bounds(2)] = ()
    encoders: Annotated[tuple[str, ...], "each preset is measured with each of these, in the place of its own"] = ()
    figure: Annotated[PathStr, "file for a picture of seconds and memory against the length; empty: none"] = ""
    dense: Annotated[bool, "also time a dense encoder of the same sizes"] = True
    costs: Annotated[bool, "count only: parameters, and FLOPs a token beside a dense encoder's"] = False

    def __post_init__(self):
        check_bounds(self)


def read_preset(path: Path, batch: int, lengths: tuple[int, ...] = (), encoder: str = ""):
    """The settings that train.py makes of a config, with this many rows of the longest length per step."""
    from train import read_settings  # late: only its configuration

    words = [str(path), f"--batch_size={batch}", "--micro_batch=0"]
    if lengths:
        words += [f"--lengths={','.join(map(str, lengths))}", f"--max_length={max(lengths)}", "--length_mix=()"]
    words += [f"--encoder={encoder}"] if encoder else []
    settings = read_settings(words)
    if not settings.model.vocab_size:  # no data: the vocabulary that the corpus has by default
        settings.model.vocab_size = 4096 if settings.train.dataset == "pydocs" else 50_368
    return settings


def timed(settings, world: World):
    """The settings with all concepts, all iterations and the final rates in every step, so that steps take equally
    long."""
    dropout = settings.model.dropout if world.device.type == "cuda" else 0.0
    model = replace(settings.model, nested=False, min_iterations=0, dropout=dropout)
    return replace(settings, model=model, objective=settings.objective.plateau())


# ---------------------------------------------------------------------------------------------------------------------
# An arm: a model, its optimizer, and a step


def has_reference(settings) -> bool:
    """Whether lab/reference.py implements these settings: the original project's masked LM or TSDAE, without token
    layers, registers, weights or further decoder layers."""
    model, parts = settings.model, settings.objectives.parts
    plain = model.original_structure and model.decoder_layers == 1 and model.concept_position == "none"
    plain = plain and model.encoder == "perceiver" and model.decoder in ("input", "posonly", "weighted")
    plain = plain and not (model.token_layers or model.registers)
    one = len(parts) == 1 and parts[0].predicts == "positions" and not parts[0].needs_idf
    one = one and not settings.objective.encoder_mask_rate
    whole = settings.objective.positions == "original" and settings.objective.score_rate == 1
    return plain and one and (parts[0].name == "mlm" or (whole and model.decoder != "input"))


def as_dense(model: ModelConfig) -> ModelConfig:
    """A dense encoder of the same sizes; of a recursive one with as many layers as it has iterations."""
    layers = model.iterations if "iterations" in ENCODERS[model.encoder].options else model.layers
    return replace(model, encoder="dense", layers=layers, concept_position="none", token_layers=0)


class Arm:
    """One of `ours`, `reference` and `dense`, with its training step."""

    def __init__(self, name: str, settings, world: World, compiled: bool):
        config = settings.train
        self.name, self.world, self.objectives, self.clip = name, world, settings.objectives, config.clip
        self.size, self.step = settings.model.vocab_size, 0
        ones = torch.ones(self.size, device=world.device)
        vectors = ones[:, None].expand(-1, settings.model.token_width)
        self.vocab = Vocabulary(self.size, self.size - 1, (), ones, ones.bool(), ones.long(), vectors)
        self.ids = {}  # shape -> tokens, sent to the device once
        self.model = ConceptModel(as_dense(settings.model) if name == "dense" else settings.model, self.vocab.mask_id)
        if name == "reference":
            ours, self.model = self.model, ReferenceMLM(settings.model)
            copy_weights(ours, self.model)
        elif config.frozen_decoder:
            self.model.freeze_decoder()
        self.model.to(world.device)
        self.forward = torch.compile(self.model, dynamic=False) if compiled and name != "reference" else self.model
        self.optimizer = optim.adamw(self.model, 1e-4, config.weight_decay, (config.beta1, config.beta2))
        self.balance = Balance(settings.regulariser, world.device)

    def rows(self, count: int, length: int) -> Rows:
        if (count, length) not in self.ids:
            ids = torch.randint(self.size - 1, (count, length), generator=torch.Generator().manual_seed(0))
            self.ids[count, length] = ids.to(self.world.device)
        numbers = torch.arange(count, device=self.world.device)
        return Rows(self.ids[count, length], Noise(0, self.step, numbers), self.vocab, documents=numbers)

    def train(self, count: int, length: int) -> torch.Tensor:
        """One training step -> loss, a tensor on the device."""
        rows = self.rows(count, length)
        self.step += 1
        if self.name != "reference":
            what = self.objectives, rows, self.world
            loss = self.objectives.total(optim.forward_backward(self.forward, *what, balance=self.balance))
            if self.balance:
                self.balance.finish(lambda x: x)
        else:
            with self.world.autocast():
                loss = self.forward(*reference_inputs(self.objectives.problems(rows)[0]))
            loss.backward()
            loss = loss.detach()
        optim.clipped_step(self.model, self.optimizer, 1e-4, self.clip, loss)
        return loss


# ---------------------------------------------------------------------------------------------------------------------
# Measurements


def ceiling(world: World, seconds: float = 1.0) -> float:
    """Peak FLOP/s: of products of large square matrices, over `seconds` after half as long a warm-up."""
    n = 8192 if world.device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=world.device, dtype=getattr(torch, world.dtype))
    product = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    product.blocked_autorange(min_run_time=seconds / 2)
    return 2 * n**3 / product.blocked_autorange(min_run_time=seconds).mean


def peak_bytes(name: str, shape, path: Path, encoder: str, config: BenchConfig, world: World, compiled: bool) -> int:
    """To be called in a fresh process: peak memory in bytes of two steps of a shape (the second one has the optimizer's
    state)."""
    if config.threads:
        torch.set_num_threads(config.threads)
    settings = timed(read_preset(path, config.batch, config.lengths, encoder), world)
    arm = Arm(name, settings, world, compiled)
    for _ in range(2):
        arm.train(*shape)
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux's ru_maxrss would begin with the size of the parent
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def in_fresh_process(function, *args):
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # glibc: freed blocks of 1 MB or more go back to the system
        result = process.submit(function, *args)
        del os.environ["MALLOC_MMAP_THRESHOLD_"]
        try:
            return result.result()
        except BrokenProcessPool:
            raise RuntimeError("out of memory? the process that measures memory was killed") from None


def time_steps(arms: dict[str, Arm], rows: int, length: int, repeats: int) -> dict[str, float]:
    """Median seconds per step of each arm, in alternation, after two blocks each to warm up."""
    steps = 10 if arms["ours"].world.device.type == "cuda" else 1
    times = {name: [] for name in arms}
    for block in range(repeats + 2):
        losses = {}
        for name, arm in arms.items():
            start = timer()  # waits for the device
            for _ in range(steps):
                losses[name] = arm.train(rows, length)
            times[name].append((timer() - start) / steps)
        command.log(f"length {length}:", *(f"{name} {seconds[-1]:.3f} s" for name, seconds in times.items()))
        same = not arms["ours"].model.config.dropout  # the same mathematics up to rounding
        if same and block == 0 and "reference" in arms and abs(losses["ours"] / losses["reference"] - 1) > 0.01:
            raise AssertionError(f"ours and the reference do not agree: {losses}")
    return {name: statistics.median(seconds[2:]) for name, seconds in times.items()}


def time_arms(settings, shapes, repeats: int, names: list[str], world: World, compiled) -> list[dict[str, float]]:
    """`time_steps` of each shape; frees the arms' memory afterwards."""
    arms = {name: Arm(name, settings, world, compiled) for name in names}
    seconds = [time_steps(arms, *shape, repeats) for shape in shapes]
    del arms
    torch._dynamo.reset()
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    return seconds


def benchmark(path: Path, config: BenchConfig, world: World, best: float, encoder: str = "") -> dict:
    settings = timed(read_preset(path, config.batch, config.lengths, encoder), world)
    called = f"{settings.preset}/{encoder}" if encoder else settings.preset
    compiled = world.device.type == "cuda" if config.compile == "auto" else config.compile
    names = ["ours"] + ["reference"] * has_reference(settings)
    names += ["dense"] * (config.dense and settings.model.encoder != "dense")
    plan, frozen = make_plan(settings.train, settings.objectives, 1), bool(settings.train.frozen_decoder)
    by_length, shapes = [], sorted(plan.shapes(), key=lambda shape: shape[1])
    every = time_arms(settings, shapes, config.repeats, names, world, compiled)
    for (rows, length), seconds in zip(shapes, every, strict=True):
        alone = replace(plan, lengths=(length,), mixes=())
        now = settings.objectives.plateaus()[-1]  # the rates that are timed
        _, flops = cost(alone, settings.model, now, frozen, settings.regulariser)
        speed = rows * length / seconds["ours"]
        row = {"length": length, "rows": rows, "tokens_per_s": speed, "flops_per_token": flops}
        row |= {"share_of_ceiling": speed * flops / best}
        command.log(f"{called}: memory of {', '.join(names)} ...")
        for name in ("ours", "reference", "dense"):
            if name != "ours":
                row[f"ratio_to_{name}"] = seconds[name] / seconds["ours"] if name in seconds else None
            place = (name, (rows, length), path, encoder, config, world, compiled)
            key = "peak_bytes" if name == "ours" else f"peak_bytes_{name}"
            row[key] = in_fresh_process(peak_bytes, *place) if name in names else None
        by_length.append(row)
    longest = {key: value for key, value in by_length[-1].items() if key not in ("length", "rows")}
    return {"name": called, **longest, "by_length": by_length}


def as_table(results: dict) -> str:
    header = ["preset", "length", "rows", "tokens/s", "MFLOP/token", "% of ceiling"]
    header += ["x reference", "x dense", "peak MB"]
    rows = []
    for preset in results["presets"]:
        for row in preset["by_length"]:
            peaks = [row[key] for key in ("peak_bytes", "peak_bytes_reference", "peak_bytes_dense") if row[key]]
            ratios = [row[f"ratio_to_{name}"] for name in ("reference", "dense")]
            cells = [preset["name"], row["length"], row["rows"], f"{row['tokens_per_s']:,.0f}"]
            cells += [f"{row['flops_per_token'] / 1e6:.2f}", f"{100 * row['share_of_ceiling']:.1f}"]
            cells += [f"{ratio:.2f}" if ratio else "-" for ratio in ratios]
            rows.append([*cells, " / ".join(f"{peak / 1e6:,.0f}" for peak in peaks)])
    return table(header, rows)


def draw_costs(results: dict, path: Path):
    """Milliseconds per 1,000 tokens of a training step, and its peak memory, against the length of the row."""
    time, memory = {}, {}
    for preset in results["presets"]:
        rows = preset["by_length"]
        time[preset["name"]] = [(row["length"], 1e6 / row["tokens_per_s"]) for row in rows]
        memory[preset["name"]] = [(row["length"], row["peak_bytes"] / 1e6) for row in rows]
    length_figure({"ms for 1,000 tokens": (time, {}), "peak MB": (memory, {})}, path, "log")


COUNTED = 512, 4096, 32768  # row lengths


def costs(paths: list[Path]) -> str:
    """A table of parameters, training FLOPs per token, and encoding FLOPs per token relative to a dense encoder's."""
    header = ["preset", "encoder", "parameters", "training, MFLOP/token", *(f"encoding {n:,}" for n in COUNTED)]
    rows = []
    for path in paths:
        settings = read_preset(path, 16)
        model = settings.model
        plan, frozen = make_plan(settings.train, settings.objectives, 1), bool(settings.train.frozen_decoder)
        parameters, training = cost(plan, model, settings.objectives, frozen, settings.regulariser)
        cells = [settings.preset, model.encoder, f"{parameters:,}", f"{training / 1e6:.1f}"]
        for n in COUNTED:
            ours, dense = (encoding_flops(replace(shape, max_length=n), n) for shape in (model, as_dense(model)))
            cells.append(f"{ours / 1e6:.1f} ({dense / ours:.1f}x)")
        rows.append(cells)
    return table(header, rows)


def main(argv) -> int:
    parsed = parse(argv, BenchConfig, prog="bench.py", doc=__doc__, root=ROOT, positional="many")
    config = parsed.make(BenchConfig)
    paths = parsed.configs or [ROOT / "config/perceiver_mlm_l6.py"]
    if config.costs and not parsed.configs:
        paths = [path for path in sorted((ROOT / "config").glob("*.py")) if re.search(r"_[lk]\d$|_h\d+$", path.stem)]
    every = [(path, encoder) for path in paths for encoder in config.encoders or ("",)]
    for path, encoder in every:
        read_preset(path, config.batch, config.lengths, encoder)  # what is wrong is said before anything is measured
    if config.costs:
        print(costs(paths))
        return 0
    for key in "json", "figure":
        if (given := getattr(config, key)) and not Path(given).absolute().parent.is_dir():
            raise UserError(f"--{key}={given}: its folder does not exist; make it first")
    if config.threads:
        torch.set_num_threads(config.threads)
    world = distributed.start(config.device, config.dtype)
    best = ceiling(world)
    machine = distributed.machine(world.device)
    speed = f"products at {best / 1e9:,.0f} GFLOP/s"
    command.log(f"{machine['device']}, {machine['threads']} threads, {world.dtype}: {speed}")
    results = {
        "machine": machine | {"dtype": world.dtype},
        "torch": torch.__version__,
        "commit": commit(),
        "ceiling": best,
        "presets": [benchmark(path, config, world, best, encoder) for path, encoder in every],
    }
    print(as_table(results))
    if config.json:
        files.write_atomic(Path(config.json), json.dumps(results, indent=1) + "\n")
    if config.figure:
        draw_costs(results, Path(config.figure))
    return 0


if __name__ == "__main__":
    command.command(main)
