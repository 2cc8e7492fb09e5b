"""
Measures one training step (forward, backward, AdamW) of a preset: speed, share of the machine's best, memory.

    python bench.py                               # the seeds' six-layer MLM step: 512 tokens, vocabulary 50,368
    python bench.py config/tsdae_cpu.py config/perceiver_mlm_l2.py --threads=2 --json=bench.json

Where a plain reference of the same mathematics exists (lab/reference.py, for `seeds_faithful` presets), both take
turns in one run on the same rows, and the ratio is that of the median times. Peak memory is that of a fresh process
for each, everything included, in which what is freed is given back at once: what the step needs, not what an allocator
keeps. Tokens are random, dropout is off, and compilation (on a GPU) is ours alone.
"""

import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import torch

import losses
from lab import command, distributed, files, runs
from lab.configurator import UserError, parse, read_config
from model import ConceptModel, ModelConfig, flops
from objectives import (
    ROWS_OF_VIEWS,
    Noise,
    ObjectiveConfig,
    Problem,
    Vocabulary,
    make_problems,
    needed_decoder,
    weights,
)

ROOT = Path(__file__).resolve().parent


@dataclass
class BenchConfig:
    json: Annotated[str, "file for the results; empty: none"] = ""
    batch: Annotated[int, "rows of the longest length in a step; shorter ones get as many tokens"] = 16
    threads: Annotated[int, "CPU threads (0: torch's choice)"] = 0
    repeats: Annotated[int, "timed steps of each arm"] = 7
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], "number format of matrix products"] = "auto"
    reference_dtype: Annotated[Literal["same", "float32"], "the reference's; float32: what our dtype gains too"] = (
        "same"
    )
    device: Annotated[str, "auto, cpu or cuda"] = "auto"
    compile: Annotated[bool | Literal["auto"], "compile our arm; auto: on a GPU only"] = "auto"

    def __post_init__(self):
        for key, least in ("batch", 1), ("repeats", 1), ("threads", 0):
            if getattr(self, key) < least:
                raise ValueError(f"{key} = {getattr(self, key)} is too few; write --{key}={least} or more")


@dataclass
class Preset:
    """What is measured of a config file: its model, its objective, its row lengths."""

    name: str
    model: ModelConfig
    objective: ObjectiveConfig
    lengths: tuple[int, ...]


def read_preset(path: Path) -> Preset:
    values = {key: value for key, (value, _) in read_config(path, ROOT).items()}
    values["dropout"] = 0.0
    try:
        parts = [
            group(**{f.name: values[f.name] for f in fields(group) if f.name in values})
            for group in (ModelConfig, ObjectiveConfig)
        ]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from None
    parts[0].decoder = needed_decoder(parts[1]) or parts[0].decoder
    if not needed_decoder(parts[1]) and not parts[0].decodes:
        raise UserError(f"{path}: decoder = {parts[0].decoder!r} says nothing at a position; write decoder = 'posonly'")
    if not parts[0].vocab_size:
        raise UserError(f"{path} leaves vocab_size to the data; give bench.py a config that sets it")
    lengths = values.get("lengths", (parts[0].max_length,))
    return Preset(path.stem, *parts, tuple(lengths) if isinstance(lengths, tuple | list) else (lengths,))


# ---------------------------------------------------------------------------------------------------------------------
# One arm: a model, its optimizer, and a step


def make_problem(preset, rows, length, device) -> list[Problem]:
    size = preset.model.vocab_size
    ids = torch.randint(size - 1, (rows, length), generator=torch.Generator().manual_seed(0)).to(device)
    noise = Noise(0, 0, torch.arange(rows, device=device))
    vocab = Vocabulary(size, size - 1, (size - 1,), torch.ones(size, device=device))
    return make_problems(ids, noise, vocab, preset.objective)


def has_reference(preset, problems):
    config, problem = preset.model, problems[0]
    plain = config.seeds_faithful and config.decoder_layers == 1 and config.concept_position == "none"
    blind = config.decoder != "input" or problem.query_ids is not None
    said = problem.query_pos is not None
    in_place = said and (problem.source_pos is not None or problem.source.shape == problem.targets.shape)
    return plain and blind and in_place and len(problems) == 1 and problem.weights is None


def reference_inputs(problem: Problem):
    """The same problem as the reference wants it: whole rows, a padding mask, labels of -100 where none is scored."""
    ids = problem.source
    keep = torch.ones_like(problem.targets, dtype=torch.bool)
    if problem.source_pos is not None:  # the source is what survives; the reference reads all and masks the rest
        ids = problem.targets
        keep = torch.zeros_like(keep).scatter(1, problem.source_pos.expand(problem.source.shape), True)
    labels = problem.targets
    if problem.scored is not None:
        labels = torch.full_like(labels, -100).scatter(1, problem.scored, labels.gather(1, problem.scored))
    return ids, keep, labels


def make_arm(name, preset, device, dtype, compiled):
    """A function step(problems) -> loss that trains `name` ("ours" or "reference") by one step."""
    torch.manual_seed(0)
    with device:
        model = ConceptModel(preset.model, preset.model.vocab_size - 1)
        if name == "reference":
            from lab.reference import ReferenceMLM, copy_weights

            ours, model = model, ReferenceMLM(preset.model)
            copy_weights(ours, model)
    run = torch.compile(model, dynamic=False) if compiled and name == "ours" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    factors = weights(preset.objective)

    def step(problems):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            if name == "reference":
                loss = run(*reference_inputs(problems[0]))
            else:
                said, concepts = run(*problems)
        if name == "ours":  # a contrastive loss is no matter of bfloat16
            parts = zip(factors, said, concepts, problems, strict=True)
            loss = sum(w * losses.complete(x, c, p, preset.objective.temperature) for w, x, c, p in parts)
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the device

    return step


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def ceiling(device, dtype):
    """The best FLOP/s seen in ten products of large square matrices."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=getattr(torch, dtype))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def peak_bytes(name, preset, rows, length, device, dtype, compiled, threads, results):
    """In a fresh process: the most memory two steps held at once (the second has the optimizer's state)."""
    if threads:
        torch.set_num_threads(threads)
    step, problems = make_arm(name, preset, device, dtype, compiled), make_problem(preset, rows, length, device)
    for _ in range(2):
        step(problems)
    if device.type == "cuda":
        results.put(torch.cuda.max_memory_allocated(device))
        return
    try:  # this program's own peak; ru_maxrss would begin with the size of its parent
        lines = Path("/proc/self/status").read_text().splitlines()
        results.put(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        results.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def in_fresh_process(function, *args):
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # glibc: freed blocks of 1 MB or more go back to the system
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    process = spawn.Process(target=function, args=(*args, results))
    process.start()
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    while process.is_alive() and results.empty():
        process.join(0.1)
    if results.empty():
        raise RuntimeError(f"out of memory? the process that measures memory ended with code {process.exitcode}")
    value = results.get()
    process.join()
    return value


def measure(preset: Preset, config: BenchConfig, device, dtype, best):
    longest = max(preset.lengths)
    compiled = device.type == "cuda" if config.compile == "auto" else config.compile
    names = ["ours"]
    if has_reference(preset, make_problem(preset, config.batch, longest, device)):
        names.append("reference")
    dtypes = {"ours": dtype, "reference": dtype if config.reference_dtype == "same" else config.reference_dtype}
    memory = {}
    for name in names:
        command.say(f"{preset.name}: memory of {name} ...")
        where = (config.batch, longest, device, dtypes[name], compiled, config.threads)
        memory[name] = in_fresh_process(peak_bytes, name, preset, *where)

    steps = {name: make_arm(name, preset, device, dtypes[name], compiled) for name in names}
    by_length = []
    for length in sorted(preset.lengths):
        rows = config.batch * longest // length
        group = ROWS_OF_VIEWS[preset.objective.views] if "contrastive" in preset.objective.objective else 1
        if rows % group:
            raise UserError(
                f"{preset.name}: {rows} rows of length {length} do not make groups of {group}; give --batch=8"
            )
        problems = make_problem(preset, rows, length, device)
        times = {name: [] for name in names}
        for i in range(config.repeats + 2):
            found = {}
            for name in names:
                start = time.perf_counter()
                found[name] = steps[name](problems)
                times[name].append(time.perf_counter() - start)
            command.say(f"{preset.name}, length {length}:", *(f"{n} {t[-1]:.3f} s" for n, t in times.items()))
            if i == 0 and len(found) == 2 and abs(found["ours"] / found["reference"] - 1) > 0.01:
                raise AssertionError(f"ours and the reference do not agree: {found}")
        median = {name: statistics.median(t[2:]) for name, t in times.items()}  # two steps to warm up
        work = 3 * sum(sum(flops(preset.model, p).values()) for p in problems) / (rows * length)
        speed = rows * length / median["ours"]
        by_length.append(
            {
                "length": length,
                "rows": rows,
                "tokens_per_s": speed,
                "flops_per_token": work,
                "share_of_ceiling": speed * work / best,
                "ratio_to_reference": median["reference"] / median["ours"] if len(names) == 2 else None,
            }
        )
    result = {"name": preset.name, **{k: v for k, v in by_length[-1].items() if k not in ("length", "rows")}}
    result["peak_bytes"] = memory["ours"]
    result["peak_bytes_reference"] = memory.get("reference")
    result["by_length"] = by_length
    return result


def table(results):
    head = f"{'preset':<22}{'length':>7}{'rows':>7}{'tokens/s':>12}{'MFLOP/token':>13}{'of best':>9}{'x reference':>13}"
    lines = [head + f"{'peak MB':>9}{'reference':>11}"]
    for preset in results["presets"]:
        for row in preset["by_length"]:
            ratio = f"{row['ratio_to_reference']:.2f}" if row["ratio_to_reference"] else "-"
            line = f"{preset['name']:<22}{row['length']:>7}{row['rows']:>7}{row['tokens_per_s']:>12,.0f}"
            line += f"{row['flops_per_token'] / 1e6:>13.1f}{row['share_of_ceiling']:>9.0%}{ratio:>13}"
            if row["length"] == max(r["length"] for r in preset["by_length"]):
                other = preset["peak_bytes_reference"]
                line += f"{preset['peak_bytes'] / 1e6:>9,.0f}{f'{other / 1e6:,.0f}' if other else '-':>11}"
            lines.append(line)
    return "\n".join(lines)


def main(argv) -> int:
    parsed = parse(argv, BenchConfig, prog="bench.py", doc=__doc__, root=ROOT, positional="many")
    config = parsed.make(BenchConfig)
    presets = [read_preset(path) for path in parsed.configs] or [read_preset(ROOT / "config/perceiver_mlm_l6.py")]
    if config.json and not Path(config.json).absolute().parent.is_dir():
        raise UserError(f"--json={config.json}: its folder does not exist; make it first")
    if config.threads:
        torch.set_num_threads(config.threads)
    world = distributed.start(config.device, config.dtype)
    best = ceiling(world.device, world.dtype)
    machine = distributed.machine(world.device)
    command.say(
        f"{machine['device']}, {machine['threads']} threads, {world.dtype}: products at {best / 1e9:,.0f} GFLOP/s"
    )
    results = {
        "machine": machine | {"dtype": world.dtype, "reference_dtype": config.reference_dtype},
        "torch": torch.__version__,
        "commit": runs.commit(),
        "ceiling": best,
        "presets": [measure(preset, config, world.device, world.dtype, best) for preset in presets],
    }
    print(table(results))
    if config.json:
        files.write_atomic(Path(config.json), json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    command.command(main)
