"""The frame of every command: progress on standard error, and how a command ends: its exit code, its one error line."""

import errno
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress

from lab.configurator import UserError, error_line, warn


def status(text: str, last: bool = True):
    """A line that the next one replaces on a terminal, and a line of its own in a file."""
    if sys.stderr.isatty():
        say(text[: shutil.get_terminal_size().columns - 1], end="\n" if last else "")
    else:
        say(text)


def say(*words, end: str = "\n"):
    """Progress goes to standard error, from rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        clear = "\r\033[K" if sys.stderr.isatty() else ""  # the status line, if there is one
        print(clear + " ".join(map(str, words)), end=end, file=sys.stderr, flush=True)


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


class Failure(RuntimeError):
    """What ends a command with exit 1 and this sentence."""


class NonFinite(Failure):
    """A loss or gradient stopped being finite; nothing of it is saved."""


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
        code = 2 if getattr(error, "told", False) else fail(str(error), 2)
    except Failure as error:
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
        what = f"{error.filename or 'a file'} cannot be used ({error.strerror})"
        code = fail(f"{what}; check its permissions and the free space, then go on", 2)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY):
            code = fail("out of memory; take fewer rows at a time (train.py: a smaller --micro_batch)", 2)
        else:
            wait_for_rank0()  # whose end may be why this rank failed
            traceback.print_exc()
            code = 1
    for finish in AT_EXIT:
        try:
            finish(code)
        except Exception as error:
            warn(f"at the end: {error}")
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    dist = sys.modules.get("torch.distributed")
    if (dist and dist.is_initialized()) or threading.active_count() > 1:
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
