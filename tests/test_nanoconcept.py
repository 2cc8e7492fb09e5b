"""The installed module: it works in any folder, beside files of the same names, and gives what the checkout gives."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.runs import load_run
from tests.training import BRIEF, run

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["The old ship sees the red tree.", "", "the small dog"]
SCRIPT = """
import site, sys
site.addsitedir(sys.argv[1])  # as at the start of an environment
import nanoconcept
import lab, model, train
assert lab.mine and model.mine and train.mine and "encoders" not in sys.modules
import numpy as np
run = nanoconcept.load(sys.argv[2], device="cpu")
assert isinstance(run, nanoconcept.LoadedRun) and isinstance(run.model, nanoconcept.ConceptModel)
assert type(run.twin(0).model) is nanoconcept.ConceptModel and run.twin(0).embed("a").ndim == 1  # of its own classes
assert nanoconcept.load_run(sys.argv[2], device="cpu").step == run.step
np.save("vectors.npy", run.encode(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("module") / "run"
    run(data, out, *BRIEF, "--max_steps=2", "--whitening=0.5")
    return out


def test_installed_it_works_in_any_folder(trained, tmp_path):
    checkout, elsewhere, place = (tmp_path / name for name in ("checkout", "elsewhere", "place"))
    for pattern in ("*.py", "*.toml", "LICENSE", "README.md", "lab/**/*.py"):
        for path in ROOT.glob(pattern):
            (checkout / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, checkout / path.relative_to(ROOT))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    if not (find_spec("pip") and find_spec("setuptools")):
        pytest.skip("pip or setuptools is not installed")
    subprocess.run([*pip, f"--prefix={place}", "-e", checkout], check=True, capture_output=True)
    (packages,) = place.rglob("site-packages")
    elsewhere.mkdir()
    for name in ("lab", "model", "train"):
        (elsewhere / f"{name}.py").write_text("mine = True")
    (elsewhere / "script.py").write_text(SCRIPT)
    words = [sys.executable, "script.py", packages, trained, *TEXTS]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=elsewhere, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = load_run(trained, device="cpu").embed(TEXTS).numpy()
    assert np.array_equal(np.load(elsewhere / "vectors.npy"), ours)


def test_without_its_checkout_it_says_what_to_do(tmp_path):
    shutil.copy(ROOT / "nanoconcept.py", tmp_path)
    done = subprocess.run([sys.executable, "-c", "import nanoconcept"], cwd=tmp_path, capture_output=True, text=True)
    assert "ImportError" in done.stderr and "pip install -e ." in done.stderr


def test_one_name_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"] == {"py-modules": ["nanoconcept"]}
    needed = (ROOT / "requirements.txt").read_text()
    assert all(f"\n{name}==" in needed for name in project["project"]["dependencies"])


def test_vectors_as_numpy_and_as_tensors(trained):
    run = load_run(trained, device="cpu")
    vectors = run.embed(TEXTS)
    assert isinstance(vectors, torch.Tensor) and vectors.shape == (3, 64)
    for array in (run.encode(TEXTS), run.embed(TEXTS, convert_to_numpy=True)):
        assert isinstance(array, np.ndarray) and array.dtype == np.float32 and np.array_equal(array, vectors)
    assert torch.equal(run.encode(TEXTS, convert_to_numpy=False), vectors)
    one = run.encode(TEXTS[0])
    assert one.shape == (64,) and np.allclose(one, vectors[0], atol=1e-5)
    assert np.allclose(np.linalg.norm(run.encode(TEXTS, normalize_embeddings=True), axis=1), 1)
