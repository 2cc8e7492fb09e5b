"""Whether compiling a run pays, and what happens where it fails: once more with an empty cache, then uncompiled."""

import functools
import gc
import os
import shutil
import signal
import tempfile
from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lab.command import AT_EXIT, log, out_of_memory, reason
from lab.configurator import warn
from lab.distributed import World

# Seen on an AVX512_BF16 machine: what compiling a shape costs without torch's cache, the share of a step's time that it
# saves, and the speed of eager bfloat16 steps on a thread (30 to 130 GFLOP/s: where in doubt, nothing is compiled).
COMPILE_SECONDS, COMPILE_SAVES, EAGER_FLOPS = 40.0, 0.35, 100e9


def decide_compile(wanted, world: World, shapes: int, flops: float, minutes: float, signals=None) -> bool:
    """Compiled or not, the same on all ranks: `wanted` True, False or "auto", which on a CPU goes by a rank's FLOPs (or
    minutes) in the whole run, so that the same run decides the same again. False, with a warning, where torch.compile
    does not work on some rank."""
    if wanted == "auto" and world.device.type == "cpu":
        gain = COMPILE_SAVES * (minutes * 60 or flops / (EAGER_FLOPS * torch.get_num_threads()))
        price = COMPILE_SECONDS * shapes
        wanted = world.on_rank0(lambda: gain > price)
        log(f"compile={wanted}: about {gain:.0f} s to gain, {price:.0f} s to compile {shapes} shapes")
    if wanted is False:
        return False
    why = compiles(world, lambda: torch.compile(lambda x: x + 1)(torch.zeros(2, device=world.device)), signals)
    if why:
        warn(f"torch.compile does not work ({why}); training goes on uncompiled")
    return not why


def compiles(world: World, attempt, signals=None) -> str:
    """
    Calls attempt(), which compiles something, on every rank; where that fails on any, all try once more with an empty
    cache: torch's may hold libraries whose compiler was killed. Returns why it failed again, or "". KeyboardInterrupt,
    on all ranks, where it failed after a signal: Ctrl-C reaches the processes that compile, too.
    """
    first = place = ""
    for again in (True, False):
        why = ""
        try:
            attempt()
        except Exception as error:  # no compiler, no Triton, damaged files: many ways to fail, one way on
            if out_of_memory(error):
                raise
            why = reason(error)
        number = signals.received if why and signals else 0
        failed, stopped = world.all_sum(torch.tensor([bool(why), bool(number)]).float().to(world.device)).tolist()
        if stopped:
            raise KeyboardInterrupt(signal.Signals(number or signal.SIGINT).name)
        if not failed:
            if first:
                warn(f"{place} is damaged: delete it when no run uses it. torch.compile failed by it ({first})")
            return ""
        why = why or "on another rank"
        if again:
            first, place = why, os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torch's cache of what is compiled")
            empty_cache()
    return why


def empty_cache():
    """From here on torch compiles all anew, into a folder that goes when the command ends."""
    folder = tempfile.mkdtemp(prefix="torchinductor_")
    AT_EXIT.append(lambda code: shutil.rmtree(folder, ignore_errors=True))
    os.environ.update(TORCHINDUCTOR_CACHE_DIR=folder, TRITON_CACHE_DIR=os.path.join(folder, "triton"))
    import torch._inductor.utils

    torch._inductor.config.cpp_cache_precompile_headers = False  # these are kept elsewhere
    torch._dynamo.reset()
    torch._inductor.utils.clear_caches()
    gc.unfreeze()  # else what is frozen is not listed
    for found in gc.get_objects():  # what torch has learnt from the damaged files, such as what vectors the CPU has
        if type(found) is type(functools.cache(id)) and str(found.__module__).startswith("torch._inductor"):
            found.cache_clear()
    gc.freeze()


class Trained:
    """The model as it trains: wrapped for its ranks, which reduce gradients, and compiled or not. Called as the model
    is."""

    def __init__(self, model: nn.Module, world: World, shapes: int):
        """shapes: how many are compiled, if any is."""
        self.model, self.world, self.shapes = model, world, shapes
        self.compiled = False
        self.wrap()

    def wrap(self):
        """Anew where other parameters train from here on: DDP reduces the gradients of those that did when it was
        made."""
        self.kinds = set()
        self.wrapped = self.model
        if self.world.size > 1:
            devices = [self.world.device.index] if self.world.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.model, devices, gradient_as_bucket_view=True)
        self.forward = self.wrapped
        if self.compiled:
            self.compile()

    def compile(self):
        """What compiles is exactly what trains."""
        torch._dynamo.config.cache_size_limit = max(8, self.shapes + 1)
        self.forward, self.compiled = torch.compile(self.wrapped, dynamic=False), True

    def __call__(self, *problems, **keys):
        return self.forward(*problems, **keys)

    def no_sync(self):
        """Gradients of backward passes in this context stay on their rank."""
        return self.wrapped.no_sync() if self.world.size > 1 else nullcontext()

    def rehearse(self, kind, attempt, signals) -> bool:
        """Before the first step of a kind counts, each rank alone calls attempt(), which compiles it; False, with a
        warning, where that fails on any of them: from here on none is compiled."""
        if not self.compiled or kind in self.kinds:
            return True
        self.kinds.add(kind)
        devices = [self.world.device] if self.world.device.type == "cuda" else []

        def alone():
            with torch.random.fork_rng(devices), self.no_sync():
                attempt()

        if why := compiles(self.world, alone, signals):
            warn(f"torch.compile does not work ({why}); training goes on uncompiled, and no longer bit for bit")
            self.forward, self.compiled = self.wrapped, False
        return not why
