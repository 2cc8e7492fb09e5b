"""Hashes of source files and weights, for the keys of caches."""

import ast
import hashlib
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = "numpy", "scikit-learn", "scipy", "tokenizers", "torch"
INSTALLED = {"site-packages", "dist-packages"}  # of such files the version is enough


def sources(start: str, *models) -> str:
    """Hash of the file `start` (path below the root), of all files of this project that it imports, directly or
    indirectly, of the files that define the classes of `models`, and of the versions of PACKAGES."""
    names = {type(module).__module__ for model in models for module in model.modules()}
    files = {Path(file) for name in names if (file := getattr(sys.modules.get(name), "__file__", None))}
    if not (ROOT / start).is_file():
        raise FileNotFoundError(ROOT / start)  # it was renamed, and what is kept would be of any code
    return digest(ROOT / start, *sorted(file for file in files if not INSTALLED & set(file.parts)))


@cache
def digest(*starts: Path) -> str:
    found, waiting = {}, list(starts)
    while waiting:
        path = waiting.pop().resolve()
        if path not in found and path.is_file():
            found[path] = path.read_bytes()
            waiting += imported(path, found[path])
    whole = hashlib.sha256(" ".join(f"{name} {version(name)}" for name in PACKAGES).encode())
    for path in sorted(found):
        whole.update(path.name.encode() + hashlib.sha256(found[path]).digest())
    return whole.hexdigest()


@cache
def imported(path: Path, code: bytes) -> list[Path]:
    """Paths of the modules that a file imports (late imports too), if they were part of this project; `from lab import
    x` may be lab/__init__.py or lab/x.py."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            base, names = ROOT, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else ROOT
            names = [f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                place = base.joinpath(*parts[:end])
                found += [place.with_suffix(".py"), place / "__init__.py"]
    return found


def weights(model, prefix="") -> str:
    """Hash of the model's weights whose names begin with `prefix`, one or several."""
    whole = hashlib.sha256()
    for path, weight in model.state_dict().items():
        if path.startswith(prefix):
            whole.update(path.encode() + weight.cpu().numpy().tobytes())
    return whole.hexdigest()
