"""Files that are whole or not there: also after Ctrl-C, `kill -9` or a power cut."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

from lab.configurator import UserError, show


@contextmanager
def replacing(path):
    """A temporary path beside `path`, to be written in the block: at its end the file is made durable and takes the
    place of `path`; after an error or Ctrl-C the old one stays."""
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path, text: str):
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path):
    """Everything written to this file or folder is on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_json(path: Path, what: str) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{show(path)}: cannot read {what} ({error.strerror}); is this a run folder?") from None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{show(path)}: {what} is damaged; take another run or delete the folder") from None
    return values
