"""Devices and ranks, signals that all ranks answer at one step, and a thread that gathers rows ahead."""

import os
import platform
import queue
import signal
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lab.configurator import UserError

# ---------------------------------------------------------------------------------------------------------------------
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

    def on_rank0(self, function):
        """What a function returns on rank 0, on every rank; a UserError that it raises there is raised on all. What it
        reads stands on rank 0's disk alone where nodes share none."""
        box = [None]
        if self.rank == 0:
            try:
                box = [function()]
            except UserError as error:
                box = [error]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))  # gloo: no GPU memory, no watchdog
        if isinstance(box[0], UserError):
            box[0].told = self.rank > 0  # rank 0 prints it
            raise box[0]
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
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=1))  # rank 0 may prepare data while others wait
    world = World(rank, size, device, "float32")
    return replace(world, dtype=world.on_rank0(lambda: pick_dtype(dtype, device)))


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


# ---------------------------------------------------------------------------------------------------------------------
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


# ---------------------------------------------------------------------------------------------------------------------
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
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a thread begins with GPU 0
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
