"""Devices and ranks, signals on which all ranks stop at the same step, and a thread that loads rows ahead."""

import os
import platform
import signal
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lab.command import on_stop
from lab.configurator import UserError

# ---------------------------------------------------------------------------------------------------------------------
# devices and ranks

TIMEOUT = timedelta(hours=1)  # of collectives: rank 0 may prepare data while the others wait


@dataclass
class World:
    """This process: its rank, the number of ranks, its device, and the number format of matrix products."""

    rank: int
    size: int
    device: torch.device
    dtype: str

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """[n, ...] of every rank -> [ranks * n, ...] on every rank; differentiable."""
        return Gather.apply(tensor, self.rank, self.size) if self.size > 1 else tensor

    def on_rank0(self, function):
        """Calls a function on rank 0 and returns its result on every rank; a UserError is raised on all. For what is
        only on rank 0's disk if nodes share none."""
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
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = None
    with suppress(RuntimeError):
        device = torch.device(name)
    if not device or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name!r} is no device; write auto, cpu, cuda or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device='mps', but this torch sees no GPU of a Mac; write --device=cpu")
    if device.type != "cuda":
        return device
    if not (there := torch.cuda.device_count()):
        raise UserError("device='cuda', but this torch sees no GPU; write --device=cpu, or install torch with CUDA")
    index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
    if index >= there:
        raise UserError(f"there is no GPU {index}, only {there}; start as many ranks as GPUs")
    # cuDNN's attention makes a plan for each new shape, and some versions refuse queries that are expanded
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda", index)


def pick_dtype(name: str, device: torch.device) -> str:
    """'auto': bfloat16 if the device's capabilities say that its products are fast, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "mps":
        fast = False
    else:
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        fast = any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return "bfloat16" if fast else "float32"


def start(device: str = "auto", dtype: str = "auto", deterministic: bool = False) -> World:
    """Sets up the device and, under torchrun, the process group."""
    device = pick_device(device)
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)  # of compiled kernels too: torch._inductor.config.deterministic
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    world = World(rank, size, device, "float32")
    return replace(world, dtype=world.on_rank0(lambda: pick_dtype(dtype, device)))


@contextmanager
def exact_matmul():
    """Matrix products in full float32 (no TensorFloat-32) within the block."""
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
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


# ---------------------------------------------------------------------------------------------------------------------
# signals


class Signals:
    """
    The first of command.STOPS (Ctrl-C, SIGTERM ...) only sets a flag; a second Ctrl-C ends at once. `agreed()` is
    called once per step: flags are all-reduced asynchronously and the result of the previous step is returned, so that
    every rank stops at the same step and none waits.
    """

    def __init__(self, world: World):
        self.received, self.since, self.work = 0, 0.0, None
        self.stopped = 0  # the last result of `agreed`
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT) if world.size > 1 else None
        self.flag = torch.zeros(1, dtype=torch.int64)
        on_stop(self.handle)

    def handle(self, number, frame):
        now = time.monotonic()
        if not self.received:
            self.received, self.since = number, now
            if os.environ.get("RANK", "0") == "0":
                text = f"\n{signal.Signals(number).name}: stopping and saving (Ctrl-C again: at once)\n"
                with suppress(OSError):
                    os.write(2, text.encode())  # a print may be what was interrupted
        elif number == self.received == signal.SIGINT and now - self.since > 1:  # earlier: the launcher's copy
            os._exit(130)

    def agreed(self) -> int:
        """The signal to stop for, or 0; the same on every rank."""
        if self.group is None:
            self.stopped = self.received
        elif not self.stopped:
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
    Loads rows in a background thread, two micro-batches ahead of the device.

    plan: iterator of (step, length, rows), rows an int64 array of global row numbers.
    Yields (step, rows [B], ids [B, n], documents [B]), int64 tensors on the device.
    """

    def __init__(self, sampler, plan, device: torch.device):
        self.sampler, self.plan, self.device = sampler, plan, device
        self.thread = ThreadPoolExecutor(1)

    def gather(self, step, n, rows):
        ids, documents = self.sampler.batch(step, n, rows)
        flat = torch.from_numpy(np.concatenate([rows, documents, ids.reshape(-1)]))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a thread begins with GPU 0
            flat = flat.pin_memory()  # torch gives this memory away only after the copy to the device
        return step, n, len(rows), flat

    def close(self):
        """Ends the thread."""
        self.thread.shutdown(cancel_futures=True)

    def __iter__(self):
        gathered = (self.thread.submit(self.gather, *micro_batch) for micro_batch in self.plan)
        ahead = deque(islice(gathered, 2))
        while ahead:
            ahead.extend(islice(gathered, 1))
            step, n, rows, flat = ahead.popleft().result()
            flat = flat.to(self.device, non_blocking=True)
            yield step, flat[:rows], flat[2 * rows :].view(rows, n), flat[rows : 2 * rows]
