"""eval_glue.py --mteb: MTEB's own numbers of a run, on local rows in its format, against ours."""

import builtins
import json

import numpy as np
import pytest
from scipy.stats import spearmanr

import eval_glue
from lab.configurator import UserError
from lab.runs import load_run
from tests.corpus import sentence
from tests.training import BRIEF, run


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("mteb") / "run"
    run(data, out, *BRIEF, "--max_steps=2")
    return out


def test_the_library_and_we_agree(trained, monkeypatch, capsys):
    mteb = pytest.importorskip("mteb", reason="mteb is not installed")
    import random

    from datasets import Dataset, DatasetDict

    chance, gold = random.Random(0), [i % 6 for i in range(60)]
    rows = {f"sentence{k}": [sentence(chance) for _ in gold] for k in (1, 2)} | {"score": [float(x) for x in gold]}

    def load_data(self, *_, **__):
        self.dataset, self.data_loaded = DatasetDict(test=Dataset.from_dict(rows)), True

    monkeypatch.setattr(type(mteb.get_task("STSBenchmark")), "load_data", load_data)
    assert eval_glue.main([f"--run={trained}", "--mteb=STSBenchmark", "--device=cpu"]) == 0
    vectors = [load_run(trained, device="cpu").encode(rows[f"sentence{k}"], normalize_embeddings=True) for k in (1, 2)]
    expected = spearmanr((vectors[0] * vectors[1]).sum(1), gold).statistic
    record = json.loads((trained / "eval/mteb_STSBenchmark.json").read_text())
    assert record["scores"]["test"][0]["cosine_spearman"] == pytest.approx(expected, abs=1e-4)
    assert f"{100 * record['scores']['test'][0]['main_score']:.1f}" in capsys.readouterr().out
    assert np.isclose(record["scores"]["test"][0]["main_score"], expected, atol=1e-4)

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(type(mteb.get_task("STSBenchmark")), "load_data", unreachable)
    with pytest.raises(
        UserError, match="the data of MTEB's STSBenchmark cannot be loaded .* run it once with a network"
    ):
        eval_glue.main([f"--run={trained}", "--mteb=STSBenchmark", "--device=cpu"])
    with pytest.raises(UserError, match="MTEB has no such task"):
        eval_glue.main([f"--run={trained}", "--mteb=NothingOfTheKind", "--device=cpu"])


def test_without_the_library_it_says_what_to_do(trained, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name == "mteb":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="mteb is not installed; pip install mteb"):
        eval_glue.main([f"--run={trained}", "--mteb=STSBenchmark"])
