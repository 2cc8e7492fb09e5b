"""Shared by all commands: progress on standard error, exit codes, the one-line error message."""

import errno
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.configurator import UserError, error_line, warn


def status(text: str, last: bool = True):
    """A progress line; on a terminal the next one replaces it."""
    if sys.stderr.isatty():
        log(text[: shutil.get_terminal_size().columns - 1], end="\n" if last else "")
    else:
        log(text)


def log(*words, end: str = "\n"):
    """Prints progress to standard error, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        clear = "\r\033[K" if sys.stderr.isatty() else ""  # the status line, if there is one
        print(clear + " ".join(map(str, words)), end=end, file=sys.stderr, flush=True)


class ReaderGone(BrokenPipeError):
    """Standard output is closed: `| head` has read enough, or the terminal is gone."""


class Stream:
    """A standard stream whose reader may disappear: Ctrl-C also ends the `tee` of a pipe, and saving must go on. What
    cannot be written is dropped; if the output is `wanted`, ReaderGone ends the command."""

    def __init__(self, stream, wanted: bool):
        self.stream, self.wanted = stream, wanted

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self.attempt(self.stream.write, text)

    def flush(self):
        return self.attempt(self.stream.flush)

    def attempt(self, function, *arguments):
        try:
            return function(*arguments)
        except OSError as error:
            gone = error.errno in (errno.EPIPE, errno.EIO)
            if gone:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if self.wanted:
                raise (ReaderGone() if gone else error) from None


TOLD = set()  # optional outputs whose failure has been reported


@contextmanager
def optional(what: str):
    """Context manager or decorator for side products (pictures, pages, mirrors): any error in it becomes a warning,
    once for each `what`, and the work goes on."""
    try:
        yield
    except ReaderGone:
        raise
    except Exception as error:  # libraries, services and disks raise anything
        if what not in TOLD:
            TOLD.add(what)
            warn(f"{what} failed ({reason(error)}); going on without")


def reason(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class Failure(RuntimeError):
    """Ends a command with exit code 1 and this sentence."""


class NonFinite(Failure):
    """A loss, a gradient or a text's vector is not finite; nothing of it is saved."""


def check_finite(values, texts, what: str = "vector", remedy: str = "take another checkpoint (--ckpt)"):
    """values [n, K, ...] of n texts, a tensor or an array: NonFinite names the first text whose values are not
    finite."""
    for number, total in enumerate(values.sum(tuple(range(1, values.ndim))).tolist()):
        if not math.isfinite(total):
            raise NonFinite(f"the {what} of {texts[number][:100]!r} is not finite; {remedy}, or leave that text out")


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")
AT_EXIT = []  # functions called with the exit code before the process ends
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
CODES = {128 + number for number in STOPS}  # exit codes of commands that they ended


def on_stop(handler, numbers=STOPS):
    """Installs a handler for the signals that ask a process to end (Windows has two of them)."""
    for number in numbers:
        # Under nohup SIGHUP stays ignored, except by torchrun, which passes it on to its ranks and kills those that
        # have not ended 30 s later.
        nohup = number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN
        if not nohup or "TORCHELASTIC_RUN_ID" in os.environ:
            signal.signal(number, handler)


def interrupt(number, frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


def out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


def command(main):
    """Runs `main(argv) -> exit code`. A user's mistake ends with exit code 2 and one line, printed once over all ranks.
    SIGTERM and the like end a command as Ctrl-C does (train.py installs handlers of its own)."""
    sys.stdout, sys.stderr = Stream(sys.stdout, True), Stream(sys.stderr, False)
    on_stop(interrupt, STOPS[1:])
    code = 0
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        code = 2 if getattr(error, "told", False) else fail(str(error), 2)
    except Failure as error:
        code = fail(str(error), 1)
    except KeyboardInterrupt as stop:
        log("stopped; what is finished is kept")
        code = 128 + signal.Signals.__members__.get(str(stop), signal.SIGINT)
    except ReaderGone:
        pass
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            what = f"{error.filename or 'a file'} cannot be used ({error.strerror})"
            code = fail(f"{what}; check its permissions and the free space, then go on", 2)
        elif out_of_memory(error):
            code = fail("out of memory; take fewer rows at a time (train.py: a smaller --micro_batch)", 2)
        elif isinstance(error, (NotImplementedError, TypeError)) and " MPS " in str(error):
            how = "write --device=cpu, or set PYTORCH_ENABLE_MPS_FALLBACK=1"
            code = fail(f"this torch lacks something on device='mps' ({reason(error)}); {how}", 2)
        else:
            wait_for_rank0()  # whose exit may be the cause
            traceback.print_exc()
            leave(reason(error))
            code = 1
    for finish in AT_EXIT:
        try:
            finish(code)
        except Exception as error:
            warn(f"at the end: {error}")
    with suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    dist = sys.modules.get("torch.distributed")
    if (dist and dist.is_initialized()) or threading.active_count() > 1:
        os._exit(code)  # do not wait for collectives or threads that never end
    sys.exit(code)


def leave(message: str):
    """Tells the parent command why this one failed, in the file that it named."""
    if path := os.environ.get("NANOCONCEPT_REASON"):
        with suppress(OSError):
            Path(path).write_text(message, encoding="utf-8")


def wait_for_rank0():
    """On other ranks: waits until rank 0 has reported the error and the launcher ends this rank. If this returns, the
    error is this rank's alone."""
    if os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)


def fail(message: str, code: int) -> int:
    wait_for_rank0()
    print(error_line(message), file=sys.stderr, flush=True)
    leave(message)
    return code
