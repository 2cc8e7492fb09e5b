"""analyze.py on small runs: its numbers against loops, planted faults that the health check must find, and its page."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_eval_glue import SMALL

import analyze
import train
from lab.configurator import UserError
from lab.report import html_table
from lab.runs import load_run
from tests.corpus import make_corpus

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    here = tmp_path_factory.mktemp("analyze")
    make_corpus(here / "data" / "toy")
    return here


def trained(place, name, *flags):
    where = [f"--data_dir={place / 'data'}", "--dataset=toy", f"--out_dir={place / name}", "--max_steps=2"]
    if not (place / name).exists():
        assert train.main([str(ROOT / "config" / "quickstart.py"), *SMALL, *where, *flags]) == 0
    return place / name


def changed(run, **tensors):
    """Writes tensors of the checkpoint anew: name -> function of the old one."""
    path = run / "ckpt_2" / "model.safetensors"
    state = load_file(path)
    for name, function in tensors.items():
        state[name] = function(state[name])
    save_file(state, path)


def look(run, *flags):
    return analyze.main([f"--run={run}", "--device=cpu", *flags])


def test_numbers_and_page(place, capsys):
    run = trained(place, "run")
    look(run)
    found = json.loads((run / "analysis" / "metrics.json").read_text())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {
        key
        for record in logged
        for key in record
        if key.startswith(("rank", "sim", "delta", "input", "dead", "verdict"))
    }
    assert names <= found.keys() and all({"trained", "untrained"} == entry.keys() for entry in found.values())
    page = (run / "analysis" / "report.html").read_text()
    assert len(page) < 5e6 and "http" not in page and page.count("<img") == 5
    assert {path.name for path in (run / "analysis").iterdir()} == {
        *(
            "report.html",
            "metrics.json",
            "spectrum.png",
            "pooled.png",
            "similarity.png",
            "concepts.png",
            "positions.png",
        )
    }
    assert (
        html_table(["<b>"], [["<script>"]])
        == "<table><tr><th>&lt;b&gt;</th></tr><tr><td>&lt;script&gt;</td></tr></table>"
    )
    capsys.readouterr()


def test_knock_outs_and_positions_equal_loops(place):
    run = load_run(trained(place, "run"), device="cpu")
    judge = analyze.judge_of(run, 256)
    use = analyze.use_of_concepts(judge)
    part = judge.judged()
    total, rises, by_position = 0.0, torch.zeros(8), torch.zeros(16, dtype=torch.float64)
    problems = [judge.problem(part, batch) for batch in judge.fixed]
    with torch.no_grad():
        concepts = [run.model.encode(p.source, p.source_pos) for p in problems]
        mean = torch.cat(concepts).mean(0)
        for c, p in zip(concepts, problems, strict=True):
            own = run.model.loss(c, p)
            for k in range(8):
                other = c.clone()
                other[:, k] = mean[k]
                rises[k] += (run.model.loss(other, p) - own) / len(problems)
            total += (run.model.loss(mean.expand_as(c), p) - own) / len(problems)
            for sign, which in ((1, mean.expand_as(c)), (-1, c)):
                logits = run.model.logits(run.model.decode(which, p))
                for i in range(16):
                    each = torch.nn.functional.cross_entropy(logits[:, i], p.targets[:, i])
                    by_position[i] += sign * each.double() / len(problems)
    torch.testing.assert_close(torch.tensor(use["knock_out"]), rises, atol=1e-5, rtol=1e-3)
    assert use["bits"] == pytest.approx(float(total) * 16 / (8 * 0.6931471805599453), abs=1e-4)
    expected = by_position.view(8, 2).mean(1)
    assert use["position"] == list(range(0, 16, 2))
    torch.testing.assert_close(torch.tensor(use["delta_mean"], dtype=torch.float64), expected, atol=1e-5, rtol=1e-3)


FAULTS = {  # what is planted -> what must be found
    "not a number": ({"encoder.norm.weight": lambda w: w * float("nan")}, "tensors are not finite"),
    "static": ({"encoder.norm.weight": lambda w: w * 0}, "slots are static"),
    "ignored": ({"decoder.cross.0.out.weight": lambda w: w * 0}, "decoder ignores the concepts"),
    "dimensions": ({"encoder.norm.weight": lambda w: torch.cat([w[:32], w[32:] * 1e-6])}, "32 of 64 dimensions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_health_check_finds_what_is_wrong(fault, place, capsys):
    run = trained(place, fault)
    change, finding = FAULTS[fault]
    changed(run, **change)
    capsys.readouterr()
    assert look(run, "--quick") == 3
    lines = capsys.readouterr().out.splitlines()
    assert any(finding in line and ("; try " in line or "; go back" in line) for line in lines)
    assert not (run / "analysis").exists()


def test_a_healthy_run_and_one_without_a_decoder(place, capsys):
    run = trained(place, "contrastive", "--objective=contrastive", "--batch_size=16", "--max_steps=1")
    capsys.readouterr()
    found = look(run, "--quick")
    lines = capsys.readouterr().out.splitlines()
    assert found == (0 if lines == ["healthy"] else 3)
    look(run)
    page = (run / "analysis" / "report.html").read_text()
    assert "no decoder" in page and "No position is decoded" in page


def test_one_concept_and_fewer_of_a_nested_run(place):
    look(trained(place, "one", "--concepts=1"))
    run = trained(place, "nested", "--nested=True")
    look(run, "--concepts=2")
    assert len(json.loads((run / "analysis" / "metrics.json").read_text())["variance"]["trained"]) == 2


def test_mistakes(place, tmp_path):
    run = trained(place, "run")
    with pytest.raises(UserError, match="no run folder"):
        look(tmp_path / "nothing")
    with pytest.raises(UserError, match="no run is given"):
        analyze.main([])
    with pytest.raises(UserError, match="has no checkpoint of step 7"):
        look(run, "--ckpt=7")
    other = trained(place, "unwritable")
    (other / "analysis").write_text("a file")
    with pytest.raises(UserError, match="analysis cannot be made"):
        look(other)
