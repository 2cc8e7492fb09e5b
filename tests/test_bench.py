"""bench.py end to end on a tiny preset: both arms run, and the JSON is the one that others script against."""

import json

import pytest

import bench
from lab.configurator import UserError

TINY = """
objective = "mlm"
mask_rate = 0.15
decoder = "input"
seeds_faithful = True
layers = 1
hidden = 32
heads = 2
intermediate = 32
concepts = 4
vocab_size = 300
max_length = 32
lengths = (16, 32)
"""


def test_bench(tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(TINY)
    words = [str(tmp_path / "tiny.py"), f"--json={tmp_path / 'bench.json'}", "--batch=2", "--repeats=3", "--device=cpu"]
    assert bench.main(words) == 0
    assert "tiny" in capsys.readouterr().out
    results = json.loads((tmp_path / "bench.json").read_text())
    assert {"machine", "torch", "commit", "ceiling", "presets"} <= results.keys()
    (preset,) = results["presets"]
    names = "name tokens_per_s flops_per_token share_of_ceiling peak_bytes ratio_to_reference by_length"
    assert set(names.split()) <= preset.keys() and preset["name"] == "tiny"
    assert all(preset[name] > 0 for name in names.split()[1:-1])
    assert [(r["length"], r["rows"]) for r in preset["by_length"]] == [(16, 4), (32, 2)]


def test_mistakes(tmp_path):
    (tmp_path / "open.py").write_text(TINY.replace("vocab_size = 300", ""))
    with pytest.raises(UserError, match="leaves vocab_size to the data"):
        bench.main([str(tmp_path / "open.py")])
    with pytest.raises(UserError, match="batch"):
        bench.main(["--batch=0"])
    with pytest.raises(UserError, match="folder does not exist"):
        bench.main(["--json=/nowhere/at/all.json"])
