"""What the tests of training share: a small model's flags, train.py here or in processes of its own, comparisons."""

import multiprocessing
import os
import socket
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from safetensors.torch import load_file

import train
from lab import command
from lab.configurator import UserError
from lab.distributed import World
from lab.training import compilation, optim
from lab.training.run_folder import RunFolder
from model import ConceptModel
from problem import blank_rows

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted((ROOT / "config").glob("*.py"))
SMALL = ["--hidden=64", "--heads=2", "--intermediate=64", "--layers=1", "--concepts=8", "--vocab_size=0"]
SMALL += ["--lengths=16", "--max_length=64", "--batch_size=8", "--micro_batch=0", "--eval_tokens=256", "--device=cpu"]
SMALL += ["--final_report=losses", "--compile=False", "--whitening=0"]
BRIEF = ["--log_interval=1", "--warmup=0", "--schedule=constant", "--eval_interval=0"]  # and every step in the metrics
ENDLESS = [*BRIEF, "--max_steps=100000", "--ckpt_interval=0"]
TIMES = {"seconds", "tokens_per_s", "seconds_per_step"}  # all that may differ between equal runs

# ---------------------------------------------------------------------------------------------------------------------
# train.py


def arguments(data, out, *more, preset="quickstart"):
    """Its flags for a small model on the corpus `toy` of `data`."""
    config = str(ROOT / "config" / f"{preset}.py")
    return [config, *SMALL, f"--data_dir={data}", "--dataset=toy", f"--out_dir={out}", *map(str, more)]


def guessed_cost(plan, model, objectives, *_):
    """In the place of plan.cost, whose count takes longer than most of these runs: it refuses the same rows."""
    for shape, now, _ in plan.drawn(objectives):
        try:
            now.problems(blank_rows(*shape, 0, model.vocab_size, model.token_width))
        except ValueError as error:
            raise UserError(str(error)) from None
    with torch.device("meta"):
        parameters = ConceptModel(model).num_parameters()
    return parameters, 6.0 * parameters


@contextmanager
def bare():
    """train.py neither counts FLOPs nor draws curves, which take longer than all the rest."""
    with patch("lab.report.curves"), patch("lab.report.geometry_curves"), patch("train.cost", guessed_cost):
        yield


def main(words):
    """train.py in this process."""
    with bare():
        return train.main(words)


def run(data, out, *more, preset="quickstart"):
    return main(arguments(data, out, *more, preset=preset))


def unrendered():
    """Pictures are made, but not rendered: their files hold the time instead."""

    def write(figure, path, **_):
        Path(path).write_text(str(time.monotonic_ns()))

    return patch("matplotlib.figure.Figure.savefig", write)


def forkserver():
    """Forks processes from one that has imported torch already."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.training", "torch._dynamo"])
    return server


class Process:
    """A command, train.py or that of another `main`, in a process forked from one that has imported torch already."""

    def __init__(self, words, log: Path, environ=None, folder=ROOT, before=None, main=train.main):
        """log: where it writes, log.out and log.err; before: called in it before it starts."""
        self.log, self.began = log, time.monotonic()
        args = (words, log, environ or {}, folder, before, main)
        self.process = forkserver().Process(target=in_process, args=args, daemon=True)
        self.process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Nothing goes on when a test has failed."""
        self.process.kill()

    def wait(self, timeout=60):
        """Its exit code, and what it wrote."""
        self.process.join(timeout)
        late = self.process.exitcode is None
        if late:
            self.process.kill()
            self.process.join()
        out, err = (Path(f"{self.log}.{name}").read_text() for name in ("out", "err"))
        assert not late, f"still there after {timeout} s:\n{err}"
        return SimpleNamespace(code=self.process.exitcode, out=out, err=err)

    def signal(self, number):
        os.kill(self.process.pid, number)

    def wait_until(self, condition):
        while not condition():
            assert self.process.is_alive(), Path(f"{self.log}.err").read_text()
            time.sleep(0.005)


def in_process(words, log, environ, folder, before, main):
    for fd, name in (1, "out"), (2, "err"):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    os.environ.update(environ)
    os.chdir(folder)
    sys.argv = [f"{main.__module__}.py", *words]
    with bare():
        if before:
            before()
        command.command(main)


@contextmanager
def start_ranks(words_of_each, logs: Path, **keys):
    """One process a rank, each with its own words, as a launcher on several nodes starts them -> list of them."""
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    where["WORLD_SIZE"] = str(len(words_of_each))
    environs = [where | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(len(words_of_each))]
    with ExitStack() as stack:
        yield [
            stack.enter_context(Process(words, logs / f"rank{i}", environ, **keys))
            for i, (words, environ) in enumerate(zip(words_of_each, environs, strict=True))
        ]


def run_ranks(words_of_each, logs: Path, timeout=60, **keys) -> list[SimpleNamespace]:
    with start_ranks(words_of_each, logs, **keys) as ranks:
        return [rank.wait(timeout) for rank in ranks]


def on_two_ranks(function, folder: Path) -> list:
    """What function(World) returns on each of two ranks, saved and loaded."""
    ranks = [forkserver().Process(target=one_of_two_ranks, args=(rank, function, folder)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def one_of_two_ranks(rank, function, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"), "float32")
    torch.save(function(world), folder / f"{rank}.pt")
    world.barrier()
    os._exit(0)  # as command.command: taking the process group down while DDP holds it now and then never ends


def small_buckets(sizes: Path):
    """Called before training: DDP reduces in buckets of 50 kB, as large models have several; `sizes` says how large."""
    wrap, step, wrapped = compilation.DistributedDataParallel, optim.clipped_step, []
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 50_000

    def small(*args, **keys):
        wrapped.append(wrap(*args, bucket_cap_mb=0.05, **keys))
        return wrapped[0]

    def clipped_step(*args):
        if wrapped:
            sizes.write_text(wrapped[0]._get_ddp_logging_data().get("rebuilt_bucket_sizes", "").replace(",", " "))
        return step(*args)

    compilation.DistributedDataParallel, optim.clipped_step = small, clipped_step


# ---------------------------------------------------------------------------------------------------------------------
# What it left


def losses(out):
    return [(r["step"], r["loss"]) for r in RunFolder(out).metrics() if "loss" in r]


def timeless(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in TIMES}


def flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: torch.as_tensor(tree)}
    return {k: v for name, branch in tree.items() for k, v in flat(branch, f"{prefix}/{name}").items()}


def assert_same_checkpoint(a, b):
    for name in ("model.safetensors", "optim.pt"):
        one, two = (RunFolder(x).checkpoint("latest") / name for x in (a, b))
        load = load_file if name.startswith("model") else lambda p: torch.load(p, weights_only=True)["state"]
        one, two = flat(load(one)), flat(load(two))
        assert one.keys() == two.keys() and len(one) > 10
        assert all(torch.equal(one[k], two[k]) for k in one), name


def assert_same_run(a, b, steps: int):
    """Every metric (evaluations too), weight and optimizer state of two runs that logged each step, to the bit."""
    one, two = ([timeless(record) for record in RunFolder(x).metrics()] for x in (a, b))
    assert one == two and [step for step, _ in losses(a)] == list(range(1, steps + 1))
    assert_same_checkpoint(a, b)
