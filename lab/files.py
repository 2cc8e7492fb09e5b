"""Files that are whole or not there, also after Ctrl-C, `kill -9` or a power cut; folders that one process works in."""

import errno
import json
import os
import secrets
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from lab.command import Failure, log
from lab.configurator import UserError, show, warn

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}  # what a file system without locks answers


@contextmanager
def replacing(path):
    """A temporary path beside `path`, to be written in the block: at its end the file is made durable and takes the
    place of `path`, with the mode of a new file whatever wrote it; after an error or Ctrl-C the old one stays."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # another host may have the same process id
    try:
        open(temporary, "xb").close()
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(mode)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_atomic(path, text: str):
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path):
    """Everything written to this file or folder is on disk."""
    if os.name == "nt":  # opens no folder, and flushes no file that is opened to read it
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------------------------------------------
# One process at a time


@contextmanager
def locked(folder, remedy: str, wait: bool = False):
    """Makes a folder and works in it alone while the block lasts: a second process is told so by a UserError or, with
    `wait`, waits. Yields whether it did. The lock is the system's, of an open file: it ends with its holder, however
    that ends and whatever its host. Failure where the folder is deleted meanwhile.

    remedy: what to do where nothing can be written, or as an alternative to waiting."""
    folder = Path(folder).absolute()
    new = not folder.exists()
    try:
        file, waited = take(folder, remedy, wait)
    except OSError as error:
        where = Path(error.filename or folder)
        reason = "a link to nothing" if where.is_symlink() and not where.exists() else error.strerror
        raise UserError(f"{show(where)} cannot be written to ({reason}); {remedy}") from None
    try:
        yield waited
    except Exception as error:
        if folder.is_dir() or isinstance(error, Failure):
            raise
        raise Failure(f"{show(folder)} was deleted or moved while this worked there; start it again") from None
    finally:
        if in_place(file):
            with suppress(OSError):  # Windows keeps an open file
                os.unlink(file.name)  # before it is let go: whoever waits for it sees that it is no longer there
        file.close()
        if new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def take(folder: Path, remedy: str, wait: bool):
    """The lock file, open and locked, and whether that took waiting."""
    waited = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "ab")
        try:
            with tempfile.TemporaryFile(dir=folder):  # a file that was there before may be open to us, not its folder
                pass
            if not lock_descriptor(file.fileno(), blocking=False):
                if not wait:
                    raise UserError(f"another process works in {show(folder)}; wait for its end, or {remedy}")
                if not waited:
                    log(f"another process works in {show(folder)}; waiting for its end")
                waited = lock_descriptor(file.fileno(), poll_interval=0.2)
            if in_place(file):
                return file, waited
        except OSError as error:
            if error.errno in NO_LOCKS:
                warn(f"{show(folder)} is on a file system without locks; let no second process work there")
                return file, waited
            file.close()
            raise
        except BaseException:
            file.close()
            raise
        file.close()  # the one before us deleted it


def in_place(file) -> bool:
    """An open file is still the one of its name."""
    try:
        return os.path.samestat(os.stat(file.name), os.fstat(file.fileno()))
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@contextmanager
def reading(path, remedy: str, what: str = ""):
    """Around what reads a file: UserError where it may not or cannot be read, and where it is damaged, which is any
    other error of the block. remedy: against damage; what: the file, in words."""
    try:
        with open(path, "rb"):  # libraries say of what may not be read that it is damaged, or not there
            pass
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = "ask its owner for the permission to read it"
        cannot = f"{show(path)}: cannot read {what}" if what else f"{show(path)} cannot be read"
        raise UserError(f"{cannot} ({error.strerror or error}); {remedy}") from None
    except Exception as error:  # of many libraries
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{show(path)}{what and f': {what}'} is damaged ({reason}); {remedy}") from None


def read_json(path: Path, what: str) -> dict:
    with reading(path, "take another run, or delete its folder", what):
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no JSON object")
    return values
