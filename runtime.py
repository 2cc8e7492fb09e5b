"""
What a run needs around the mathematics: devices and ranks, signals, reading ahead, the run folder with its checkpoints
and metrics log, and `load_run`, which turns a run folder back into a model that embeds text.
"""

import errno
import json
import math
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import dataset
from configurator import UserError, error_line, warn
from model import ConceptModel, ModelConfig

ROOT = Path(__file__).resolve().parent


def status(text: str, last: bool = True):
    """A line that the next one replaces on a terminal, and a line of its own in a file."""
    if os.environ.get("RANK", "0") == "0":
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{text[:width]}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def say(*words):
    """Progress and warnings go to standard error, from rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        clear = "\r\033[K" if sys.stderr.isatty() else ""  # the status line, if there is one
        print(clear + " ".join(map(str, words)), file=sys.stderr, flush=True)


class Unbreakable:
    """Standard error that outlives its reader: Ctrl-C ends the `tee` of a pipe too, and the save must go on."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self.attempt(self.stream.write, text)

    def flush(self):
        return self.attempt(self.stream.flush)

    def attempt(self, function, *arguments):
        try:
            return function(*arguments)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


# -----------------------------------------------------------------------------------------------------------------
# the end of a command: exit codes and the one error line


class NonFinite(RuntimeError):
    """A loss or gradient stopped being finite: exit 1, nothing of it saved."""


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
AT_EXIT = []  # called with the exit code: what must not be cut off by an early end


def interrupt(number, frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


def command(main):
    """Runs `main(argv) -> exit code`; a user's mistake ends in exit 2 and one line, printed once over all ranks.
    SIGTERM ends a command as Ctrl-C does, tidily (train.py has its own way)."""
    sys.stderr = Unbreakable(sys.stderr)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        code = main(sys.argv[1:]) or 0
    except UserError as error:
        code = fail(str(error), 2)
    except NonFinite as error:
        code = fail(str(error), 1)
    except KeyboardInterrupt as stop:
        say("stopped; what is finished is kept")
        code = 143 if str(stop) == "SIGTERM" else 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = error.filename or "a file"
        code = fail(
            f"{where} cannot be used ({error.strerror}); check its permissions and the free space, then go on", 2
        )
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(s in str(error) for s in OUT_OF_MEMORY):
            wait_for_rank0()  # whose end may be why this rank failed
            traceback.print_exc()
            code = 1
        else:
            code = fail("out of memory; take fewer rows at a time (train.py: a smaller --micro_batch)", 2)
    for finish in AT_EXIT:
        try:
            finish(code)
        except Exception as error:
            warn(f"at the end: {error}")
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_initialized() or threading.active_count() > 1:
        os._exit(code)  # no waiting for collectives or threads that will never end
    sys.exit(code)


def wait_for_rank0():
    """Rank 0 says what is wrong and ends, at which the launcher ends this rank too. Still here: it was ours alone."""
    if os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)


def fail(message: str, code: int) -> int:
    wait_for_rank0()
    print(error_line(message), file=sys.stderr, flush=True)
    return code


# -----------------------------------------------------------------------------------------------------------------
# devices and ranks


@dataclass
class World:
    """Where this process stands: rank of size, its device, and the number format of matrix products."""

    rank: int
    size: int
    device: torch.device
    dtype: str

    def autocast(self):
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """[n, ...] of every rank -> [ranks * n, ...] on every rank; gradients go back to where the rows come from."""
        return Gather.apply(tensor, self.rank, self.size) if self.size > 1 else tensor

    def from_rank0(self, value):
        """Rank 0's value of any picklable object, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self):
        if self.size > 1:
            dist.barrier()


class Gather(torch.autograd.Function):
    """[n, ...] of every rank -> [ranks * n, ...] on every rank. The gradient of a rank's rows is the sum over ranks.
    (torch.distributed.nn.functional has the same, deprecated.)"""

    @staticmethod
    def forward(ctx, tensor, rank, size):
        ctx.rows = slice(rank * len(tensor), (rank + 1) * len(tensor))
        whole = tensor.new_empty(size * len(tensor), *tensor.shape[1:])
        dist.all_gather(list(whole.chunk(size)), tensor.contiguous())
        return whole

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # not ours to change
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None, None


def pick_device(name: str) -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name!r} is no device; write auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device='cuda', but this torch sees no GPU; write --device=cpu, or install a CUDA build of torch"
        )
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise UserError(
            f"there is no GPU {device.index}, only {torch.cuda.device_count()}; start as many ranks as GPUs"
        )
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name!r} is not supported; write auto, cpu or cuda")
    return device


def pick_dtype(name: str, device: torch.device) -> str:
    """'auto' takes bfloat16 where the device multiplies it fast, by capability and not by trial."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        fast = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return "bfloat16" if fast else "float32"


def start(device: str = "auto", dtype: str = "auto", deterministic: bool = False) -> World:
    """Joins the ranks that torchrun started, if it did."""
    device = pick_device(device)
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return World(rank, size, device, pick_dtype(dtype, device))


@contextmanager
def exact_matmul():
    """Matrix products in full float32, for what is compared or measured."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def machine(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit this code stands at, marked when files differ from it; None outside a repository."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# -----------------------------------------------------------------------------------------------------------------
# signals


class Signals:
    """
    The first Ctrl-C or SIGTERM only sets a flag; a second Ctrl-C ends at once. `agreed()` is asked once a step: the
    flags are all-reduced, the answer is a step old, so every rank stops at the same step and none waits for it.
    """

    def __init__(self, world: World):
        self.received, self.since, self.work = 0, 0.0, None
        self.stopped = 0  # what `agreed` said last
        self.group = dist.new_group(backend="gloo") if world.size > 1 else None
        self.flag = torch.zeros(1, dtype=torch.int64)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        now = time.monotonic()
        if number == signal.SIGINT and self.received == signal.SIGINT:
            if now - self.since > 1:  # a launcher passes on the Ctrl-C that the terminal has already sent
                os._exit(130)
        if not self.received:
            self.received, self.since = number, now
            if os.environ.get("RANK", "0") == "0":  # os.write: a print may be what was interrupted
                with suppress(OSError):
                    os.write(
                        2, f"\n{signal.Signals(number).name}: stopping and saving (Ctrl-C again: at once)\n".encode()
                    )

    def agreed(self) -> int:
        """The signal to stop for, or 0; the same on every rank."""
        if self.group is None:
            self.stopped = self.received
        if self.stopped or self.group is None:
            return self.stopped
        if self.work is not None:
            self.work.wait()
            self.stopped = int(self.flag)
        if not self.stopped:
            self.flag.fill_(int(self.received))
            self.work = dist.all_reduce(self.flag, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return self.stopped


# -----------------------------------------------------------------------------------------------------------------
# reading ahead


class Loader:
    """
    Gathers the rows of the next micro-batch in a background thread while the device works on this one, into two
    alternating buffers. On a GPU they are pinned, and one is filled again only after the event of its copy.

    plan: iterator of (step, length, rows), rows an int64 array of global row numbers.
    Yields (step, rows [B], ids [B, n], documents [B]), int64 tensors on the device.
    """

    def __init__(self, sampler, plan, device: torch.device):
        self.device = device
        self.ready, self.free = queue.Queue(), threading.Semaphore(2)
        self.copied = [torch.cuda.Event() for _ in range(2)] if device.type == "cuda" else None
        self.pinned: list[Tensor | None] = [None, None]
        self.closed = False
        threading.Thread(target=self._gather, args=(sampler, plan), daemon=True).start()

    def _gather(self, sampler, plan):
        try:
            for i, (step, n, rows) in enumerate(plan):
                self.free.acquire()
                if self.closed:
                    return
                ids, documents = sampler.batch(step, n, rows)
                flat = torch.from_numpy(np.concatenate([rows, documents, ids.reshape(-1)]))
                if self.copied:
                    self.copied[i % 2].synchronize()
                    if self.pinned[i % 2] is None or self.pinned[i % 2].numel() < flat.numel():
                        self.pinned[i % 2] = torch.empty(flat.numel(), dtype=torch.int64, pin_memory=True)
                    flat = self.pinned[i % 2][: flat.numel()].copy_(flat)
                self.ready.put((step, n, len(rows), flat))
            self.ready.put(StopIteration())
        except BaseException as error:  # handed to the thread that trains
            self.ready.put(error)

    def close(self):
        """Ends the thread."""
        self.closed = True
        self.free.release()

    def __iter__(self):
        turn = 0
        while True:
            item = self.ready.get()
            if isinstance(item, StopIteration):
                return
            if isinstance(item, BaseException):
                raise item
            step, n, rows, flat = item
            flat = flat.to(self.device, non_blocking=True)
            if self.copied:
                self.copied[turn % 2].record()
            turn += 1
            self.free.release()
            yield step, flat[:rows], flat[2 * rows :].view(rows, n), flat[rows : 2 * rows]


# -----------------------------------------------------------------------------------------------------------------
# the run folder


def write_atomic(path: Path, text: str):
    """The file is either the old one or the whole new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
        dataset.sync_and_rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # Ctrl-C


def sync(path: Path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def read_json(path: Path, what: str) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read {what} ({error.strerror}); is this a run folder?") from None
    except ValueError:
        raise UserError(f"{path}: {what} is damaged; take another run or delete the folder") from None


FILES = ("model.safetensors", "optim.pt", "state.json")


class RunFolder:
    """out/NAME: config.json, tokenizer.json, metrics.jsonl, ckpt_<step>/, `latest` and `best` naming one of them."""

    def __init__(self, path):
        self.path = Path(path)
        self.saved = None  # the step whose folder this process wrote
        self.mirror = None

    def exists(self) -> bool:
        return any((self.path / name).exists() for name in ("config.json", "latest", "best"))

    def create(self, config: dict, tokenizer: Path):
        copy = self.path / ".tokenizer.json"
        shutil.copyfile(tokenizer, copy)
        dataset.sync_and_rename(copy, self.path / "tokenizer.json")
        self.write_config(config)

    def check_writable(self):
        """Makes the folder; UserError where nothing could be written into it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(f"out_dir {self.path} cannot be made ({error.strerror}); give another --out_dir") from None

    def config(self) -> dict:
        if not self.path.is_dir():
            raise UserError(
                f"no run folder at {self.path}; give the folder that train.py wrote, such as out/quickstart"
            )
        return read_json(self.path / "config.json", "the run's configuration")

    def write_config(self, config: dict):
        write_atomic(self.path / "config.json", json.dumps(config, indent=1) + "\n")

    def steps(self) -> list[int]:
        """Steps with a checkpoint folder, ascending."""
        return sorted(int(p.name[5:]) for p in self.path.glob("ckpt_*") if p.name[5:].isdigit())

    def pointer(self, name: str) -> int | None:
        """The step that `latest` or `best` names; without `latest`, the newest (a folder with that name is whole)."""
        path = self.path / name
        if not path.is_file():
            return max(self.steps(), default=None) if name == "latest" else None
        text = path.read_text(errors="replace").strip()
        if not (text.startswith("ckpt_") and text[5:].isdigit()):
            raise UserError(f"{path} names no checkpoint; write the name of a ckpt_ folder into it")
        return int(text[5:])

    def checkpoint(self, which: str = "latest", needs=FILES) -> Path:
        """The folder of checkpoint 'latest', 'best' or a step, complete, or a UserError."""
        if which in ("latest", "best"):
            step = self.pointer(which)
            if step is None:
                raise UserError(f"{self.path} has no {which} checkpoint; train it first")
        elif str(which).isdigit():
            step = int(which)
        else:
            raise UserError(f"ckpt={which!r} is no checkpoint; write latest, best or a step")
        folder = self.path / f"ckpt_{step}"
        there = ", ".join(map(str, self.steps())) or "none"
        if not folder.is_dir():
            raise UserError(f"{self.path} has no checkpoint of step {step}; name one that there is: {there}")
        for name in needs:
            if not (folder / name).is_file():
                raise UserError(
                    f"checkpoint {folder} lacks {name}; name another in {self.path}/latest (steps there: {there}), "
                    "or start anew with another --out_dir"
                )
        return folder

    def save(self, step: int, model: ConceptModel, optimizer, state: dict, keep: int, keep_steps=(), best=False):
        """Writes ckpt_<step> as a whole or not at all: a temporary name, everything on disk, then the rename."""
        folder, temporary = self.path / f"ckpt_{step}", self.path / f".ckpt_{step}"
        for rest in self.path.glob(".ckpt_*"):  # of a process that was killed
            shutil.rmtree(rest)
        if step != self.saved:
            temporary.mkdir()
            try:
                save_file(model.state_dict(), temporary / "model.safetensors")
                torch.save(optimizer.state_dict(), temporary / "optim.pt")
            except (SafetensorError, RuntimeError) as error:  # what they make of a full disk
                reason = str(error).splitlines()[0]
                raise UserError(f"{temporary} cannot be written ({reason}); make room, then go on") from None
            write_atomic(temporary / "state.json", json.dumps(state, indent=1) + "\n")
            for name in FILES:
                sync(temporary / name)
            if folder.exists():  # left there by a process that was killed, or damaged
                folder.rename(self.path / f".ckpt_{step}_old")
            temporary.rename(folder)
            shutil.rmtree(self.path / f".ckpt_{step}_old", ignore_errors=True)
            sync(self.path)
            self.saved = step
        else:  # saved before its evaluation, which a signal broke off
            write_atomic(folder / "state.json", json.dumps(state, indent=1) + "\n")
        if best:
            write_atomic(self.path / "best", folder.name + "\n")
        write_atomic(self.path / "latest", folder.name + "\n")
        wanted = {*self.steps()[-keep:], *keep_steps, self.pointer("best"), step}
        for old in self.steps():
            if old not in wanted:
                shutil.rmtree(self.path / f"ckpt_{old}")

    def mirror_to_wandb(self):
        """From here on `log` also writes to the Weights & Biases run whose id and link config.json keeps."""
        config = self.config()
        try:
            import wandb

            run = wandb.init(
                project="nanoconcept",
                name=config["run_id"],
                id=config.get("wandb_id"),
                resume="allow" if "wandb_id" in config else None,
                dir=str(self.path),
                config=config,
            )
        except ImportError:
            raise UserError("wandb is not installed; pip install wandb, or leave --wandb out") from None
        except Exception as error:  # no key, no network: many classes
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"wandb cannot start ({reason}); set WANDB_MODE=offline, or leave --wandb out") from None
        self.write_config(config | {"wandb_id": run.id, "wandb_url": run.url})
        self.mirror = run.log
        AT_EXIT.append(lambda code: run.finish(exit_code=code))

    def log(self, **numbers):
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps({k: rounded(v) for k, v in numbers.items()}) + "\n")
        if self.mirror:
            self.mirror(numbers, step=numbers["step"])

    def metrics(self) -> list[dict]:
        path = self.path / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:  # the last line of a process that was killed
                break
        return records

    def cut(self, step: int, best: int | None):
        """Forgets what came after `step`, and will come again: metrics, checkpoints. best: the best until then."""
        named = self.pointer("best")
        if named is not None and named > step:
            write_atomic(self.path / "best", f"ckpt_{best}\n") if best else (self.path / "best").unlink()
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.path / f"ckpt_{later}")
        kept = [record for record in self.metrics() if record["step"] <= step]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))


def rounded(value):
    """Seven digits say all that a float32 knows."""
    return float(f"{value:.7g}") if isinstance(value, float) and math.isfinite(value) else value


def load_tensors(path: Path, device="cpu") -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); take another checkpoint") from None


def load_weights(model: ConceptModel, path: Path):
    """Strictly: every tensor there, none left over, every shape right."""
    tensors, own = load_tensors(path), model.state_dict()
    wrong = sorted(k for k in own.keys() | tensors.keys() if k not in own or k not in tensors)
    wrong += sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    if wrong:
        raise UserError(
            f"{path} is of another model ({wrong[0]} differs, {len(wrong)} in all); take the checkpoint of this config"
        )
    model.load_state_dict(tensors)


def load_optimizer(optimizer, path: Path):
    try:
        optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file fails in many ways, all of them the file's fault
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or of another model ({reason}); take another checkpoint") from None


def warm_start_file(run: str) -> Path:
    """The tensors of another run's latest checkpoint."""
    folder = RunFolder(run)
    folder.config()
    return folder.checkpoint("latest", needs=("model.safetensors",)) / "model.safetensors"


def load_part(model: ConceptModel, run: str, part: str) -> dict[str, list[str]]:
    """
    Warm start: takes tensors by name and shape from the latest checkpoint of another run.
    part: 'encoder' or 'all'. Returns the names taken, new (kept as initialised) and left over.
    """
    theirs, ours = load_tensors(warm_start_file(run)), model.state_dict()
    wanted = {k: v for k, v in theirs.items() if part == "all" or k.startswith("encoder.")}
    taken = {k: v for k, v in wanted.items() if k in ours and ours[k].shape == v.shape}
    if not taken:
        raise UserError(f"init_from={run}: no tensor fits this model; take a run of the same shape")
    model.load_state_dict(taken, strict=False)
    return {
        "taken": sorted(taken),
        "new": sorted(ours.keys() - taken.keys()),
        "left over": sorted(theirs.keys() - taken.keys()),
    }


def run_id(preset: str, model: ModelConfig) -> str:
    shape = f"H{model.hidden}L{model.layers}C{model.concepts}"
    return f"{preset}_{shape}_{datetime.now():%Y%m%d_%H%M%S}"


# -----------------------------------------------------------------------------------------------------------------
# from a run folder back to a model


class LoadedRun:
    """A trained model with its tokenizer; `embed` is the one path from text to vectors."""

    def __init__(self, model: ConceptModel, tokenizer, config: dict, step: int):
        self.model, self.tokenizer, self.config, self.step = model, tokenizer, config, step
        self.device = next(model.parameters()).device
        self.max_length = max(config["lengths"])
        self.warned = False

    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, as training encoded it; never empty."""
        return [dataset.encode_text(self.tokenizer, text) for text in texts]

    @torch.no_grad()
    def embed(self, texts: list[str], batch_tokens: int = 16384) -> Tensor:
        """
        list of n strings -> float32 [n, hidden] on the CPU: the mean of each text's concepts. A text longer than
        max(lengths) is cut into chunks, its vector is their token-weighted mean.
        """
        pieces = []  # (text, ids)
        for i, ids in enumerate(self.encode_texts(texts)):
            pieces += [(i, ids[j : j + self.max_length]) for j in range(0, len(ids), self.max_length)]
        if len(pieces) > len(texts) and not self.warned:
            self.warned = True
            warn(f"texts longer than {self.max_length} tokens are embedded in chunks and averaged")
        pieces.sort(key=lambda piece: len(piece[1]))  # neighbours in length share a batch: little padding
        total = torch.zeros(len(texts), self.config["hidden"], dtype=torch.float64)
        tokens = torch.zeros(len(texts), 1, dtype=torch.float64)
        with exact_matmul():
            while pieces:
                rows = max(1, batch_tokens // len(pieces[-1][1]))
                batch, pieces = pieces[-rows:], pieces[:-rows]
                ids, mask = dataset.pad_batch([ids for _, ids in batch], self.config["pad_id"])
                ids, mask = torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
                vectors = self.model.embed(ids, mask).double().cpu()
                index = torch.tensor([i for i, _ in batch])
                weight = mask.sum(1, keepdim=True).double().cpu()
                total.index_add_(0, index, vectors * weight)
                tokens.index_add_(0, index, weight)
        return (total / tokens).float()

    @torch.no_grad()
    def generate(self, text: str) -> tuple[str, float]:
        """Text -> (what the decoder says from its concepts alone, share of tokens that are the same)."""
        if not self.model.config.decodes:
            raise UserError("the run was trained without a decoder, so it says nothing; use its embeddings")
        (ids,) = self.encode_texts([text])
        if len(ids) > self.max_length:
            warn(f"the text has {len(ids)} tokens; only the first {self.max_length} are read, as in training")
        ids = torch.tensor([ids[: self.max_length]], device=self.device)
        said = self.model.generate(self.model.encode(ids), ids.shape[1])
        same = float((said == ids).double().mean())
        return self.tokenizer.decode(said[0].tolist(), skip_special_tokens=False).strip(), same


def untrained(model: ConceptModel, seed: int) -> ConceptModel:
    """What train.py begins with at this seed, on the model's device; torch's generators stay as they were."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, and the seed set for it alone
        torch.default_generator.manual_seed(seed)
        twin = ConceptModel(model.config, model.mask_id)
    return twin.to(next(model.parameters()).device).eval()


def load_run(path, ckpt: str = "latest", device: str = "auto") -> LoadedRun:
    """
    Run folder -> LoadedRun, in evaluation mode.
    ckpt: 'latest', 'best' or a step. Raises UserError when a file is missing, damaged or of another model.
    """
    run = RunFolder(path)
    config = run.config()
    folder = run.checkpoint(str(ckpt), needs=("model.safetensors",))
    try:
        shape = ModelConfig(**{f.name: config[f.name] for f in fields(ModelConfig)})
        mask_id = config["mask_id"]
        max(config["lengths"]), [config[key] for key in ("run_id", "pad_id", "tokenizer_hash")]  # used later
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}/config.json does not describe a model ({error}); was it edited?") from None
    tokenizer = dataset.load_tokenizer(run.path / "tokenizer.json")
    if dataset.tokenizer_hash(run.path / "tokenizer.json") != config["tokenizer_hash"]:
        raise UserError(f"{path}/tokenizer.json is not the one the run was trained with; put that one back")
    model = ConceptModel(shape, mask_id)
    load_weights(model, folder / "model.safetensors")
    return LoadedRun(model.to(pick_device(device)).eval(), tokenizer, config, int(folder.name[5:]))
