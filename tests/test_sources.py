"""The hash of the code that a number depends on: what it follows, and what it does not."""

import pytest
import torch

from lab import sources


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of small files; `write` changes one, `now` is the hash from start.py on."""
    monkeypatch.setattr(sources, "ROOT", tmp_path / "project")

    def write(name, code):
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
        sources.digest.cache_clear()

    yield write, lambda *models: sources.sources("start.py", *models)
    sources.digest.cache_clear()


def test_everything_imported_counts_and_nothing_else(project):
    write, now = project
    write("start.py", "import plain, numpy\nfrom lab import (\n    inner,\n    CONSTANT,\n)\n")
    write("plain.py", "def f():\n    from late import *\n    import own.deep as x\n")
    write("lab/__init__.py", "CONSTANT = 1\n")
    write("lab/inner.py", "from . import beside\nfrom ..plain import f\nfrom .deeper.deepest import y\n")
    for name in ("lab/beside", "lab/deeper/deepest", "late", "own/__init__", "own/deep", "other", "numpy/x"):
        write(f"{name}.py", "y = 1\n")
    first = now()
    assert now() == first
    for name in "start plain late lab/__init__ lab/inner lab/beside lab/deeper/deepest own/__init__ own/deep".split():
        path = sources.ROOT / f"{name}.py"
        kept = path.read_text()
        write(f"{name}.py", kept + "# a comment\n")
        assert now() != first, name
        write(f"{name}.py", kept)
        assert now() == first
    write("other.py", "y = 2\n")  # imported by none
    assert now() == first


def test_the_file_of_a_model_s_class_counts_wherever_it_lies(project, tmp_path, monkeypatch):
    write, now = project
    write("start.py", "")
    (tmp_path / "mine.py").write_text("import torch\nclass Mine(torch.nn.Linear): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    model = torch.nn.Sequential(torch.nn.Linear(1, 1), mine.Mine(1, 1))
    assert now(torch.nn.Linear(1, 1)) == now()
    first = now(model)
    assert first != now()
    (tmp_path / "mine.py").write_text("import torch\nclass Mine(torch.nn.Bilinear): pass\n")
    sources.digest.cache_clear()
    assert now(model) != first


def test_versions_of_the_libraries_count(project, monkeypatch):
    write, now = project
    write("start.py", "")
    first = now()
    monkeypatch.setattr(sources, "version", lambda name: "0.0.1")
    sources.digest.cache_clear()
    assert now() != first
