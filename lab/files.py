"""Atomic and durable writes, locked folders, and reading files with errors that say what to do."""

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

NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}  # errors of a file system without locks


@contextmanager
def replacing(path):
    """Yields a temporary path beside `path`, to be written in the block. At its end the file is synced to disk and
    replaces `path`, with the mode of a new file; after an error or Ctrl-C the old file stays."""
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
    """Flushes this file or folder to disk."""
    if os.name == "nt":  # it opens no folders, and flushes no file that is opened for reading
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
    """Creates and locks a folder for the block. A second process gets a UserError or, with `wait`, waits; yields
    whether it waited. The lock is the operating system's, on an open file: it ends with its holder, however that ends.
    Failure if the folder is deleted meanwhile.

    remedy: what to do if nothing can be written, or instead of waiting."""
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
                os.unlink(file.name)  # before it is released: waiting processes notice that it is gone
        file.close()
        if new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def take(folder: Path, remedy: str, wait: bool):
    """(the lock file, open and locked; whether this process had to wait)"""
    waited = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "ab")
        try:
            with tempfile.TemporaryFile(dir=folder):  # the lock file may be writable although the folder is not
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
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.stat(file.name), os.fstat(file.fileno()))
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@contextmanager
def reading(path, remedy: str, what: str = ""):
    """For a block that reads a file: UserError if the file cannot be read, or if it is damaged, which any other error
    in the block means. remedy: what to do about damage; what: the file, in words."""
    try:
        with open(path, "rb"):  # libraries report missing permissions as damage
            pass
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = "ask its owner for the permission to read it"
        cannot = f"{show(path)}: cannot read {what}" if what else f"{show(path)} cannot be read"
        raise UserError(f"{cannot} ({error.strerror or error}); {remedy}") from None
    except Exception as error:  # libraries raise many kinds
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{show(path)}{what and f': {what}'} is damaged ({reason}); {remedy}") from None


def read_json(path: Path, what: str) -> dict:
    with reading(path, "take another run, or delete its folder", what):
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("no JSON object")
    return values
