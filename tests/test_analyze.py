"""analyze.py on small runs: its numbers against loops, planted faults that the health check must find, and its page."""

import json
import re
import shutil
from html import escape
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

import analyze
import geometry
from lab import report
from lab.analysis import measure as analysis
from lab.analysis.words import Words
from lab.configurator import UserError
from lab.report import html_table, shaded
from lab.runs import load_run
from lab.training.run_folder import RunFolder
from tests import training
from tests.browser import assert_fits
from tests.corpus import make_corpus


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    here = tmp_path_factory.mktemp("analyze")
    make_corpus(here / "data" / "toy")
    return here


FEWER = {"POOL": 600, "READ": 60, "PLOTTED": 200, "ROWS": 256}  # texts


@pytest.fixture(autouse=True)
def fewer_texts():
    with patch.multiple(analyze, **FEWER):
        yield


def trained(place, name, *flags, again=False):
    if again or not (place / name).exists():
        assert training.run(place / "data", place / name, "--layers=2", "--max_steps=2", *flags) == 0
    return place / name


def changed(run, **tensors):
    """Writes tensors of the checkpoint anew: name -> function of the old one."""
    path = run / "ckpt_2" / "model.safetensors"
    state = load_file(path)
    for name, function in tensors.items():
        state[name] = function(state[name])
    save_file(state, path)


def look(run, *flags):
    with training.unrendered():
        return analyze.main([f"--run={run}", "--device=cpu", *flags])


@pytest.fixture(scope="module")
def page(place):
    """(the run's folder, its page), whose numbers and pictures are all made."""
    run = trained(place, "run")
    floors = {"val_loss_16": 3.0}
    report.curves(RunFolder(run).metrics(), floors, run / "curves.png")  # which `training.main` leaves out
    RunFolder(run).draw_geometry()
    with patch.multiple(analyze, **FEWER):
        assert analyze.main([f"--run={run}", "--device=cpu"]) == 0
    return run, (run / "analysis" / "report.html").read_text()


def test_numbers_and_page(page):
    run, page = page
    found = json.loads((run / "analysis" / "metrics.json").read_text())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {
        key
        for record in logged
        for key in record
        if key.startswith(("rank", "sim", "delta", "input", "dead", "verdict", "learned"))
    }
    assert names <= found.keys() and all({"trained", "untrained"} == entry.keys() for entry in found.values())
    assert len(page) < 5e6 and "http" not in page and page.count("<span title=") > 100
    pictures = ["positions", "spectrum", "pooled", "similarity"]
    assert re.findall("<img alt='(.*?)'", page) == ["curves", "geometry", *pictures]
    files = {"report.html", "metrics.json", *(f"{name}.png" for name in pictures)}
    assert {path.name for path in (run / "analysis").iterdir()} == files
    length = found["probes"]["trained"]["length"]
    assert length.keys() == {"value", "low", "high", "majority", "bag_of_words"} and length["value"] > 0.3
    assert "<b>" not in html_table(["<b>"], [["<script>"]]) + shaded(["<b>"], [("<i>", [1.0])])


def test_the_page_says_what_a_newcomer_asks(page):
    run, page = page
    found = json.loads((run / "analysis" / "metrics.json").read_text())
    one = {key: value["trained"] for key, value in found.items()}
    said = re.search("<p class='verdict.*?'>(.*?)</p>", page)[1]
    assert said.startswith("run: ") and f" Learned: {escape(one['learned'])}." in said and "healthy" not in page
    assert page.index(said) < page.index("<table")
    assert "input share (good: 0.05 or more)<br>" in page and "slot-centred rank (good: 2 to 8)<br>" in page
    assert "nearer halves (good: clearly above untrained)" in page and f">{one['halves']:.3g}<" in page
    assert "pooled rank (good: 2 to 64)" in page and f">{one['input_share']:.3g}<" in page
    untrained = f"{found['delta_shuffle']['untrained']:.3g}"  # an untrained decoder makes nothing of concepts
    assert f"<span class=wrong>{untrained}</span>" in page
    assert "<details><summary>Configuration</summary>" in page and ">&quot;tsdae + bow&quot;<" in page
    assert page.index("<h2>Training") < page.index("<h2>Reconstructions") < page.index("<h2>What each concept reads")
    assert "<th>predicted</th>" in page and "free-running</th>" not in page  # posonly sees no tokens: both are one
    assert page.count("<th>word TF-IDF</th>") == 1
    rows = re.findall(r"data-of='tokens'[^>]*>(.*?)<", page)
    assert len(rows) == 8 and len({*rows}) > 4 and all(" x" in row for row in rows)  # concepts told apart


def test_the_page_fits_a_telephone_and_a_screen(page, tmp_path):
    assert_fits([page[0] / "analysis" / "report.html"], tmp_path)


def test_what_is_free_running_stands_beside_what_is_teacher_forced(place):
    run = load_run(trained(place, "causal", "--objective=tsdae", "--decoder=causal", "--max_steps=1"), device="cpu")
    evaluator = analysis.evaluator_of(run, run.rows[:256])
    said, rows = analysis.samples(run, evaluator, 3)
    assert "teacher-forced" in said and "free-running" in said
    assert list(rows[0]) == ["text", "what the encoder read", "teacher-forced", "free-running"]
    problem = evaluator.problem(evaluator.decoded(), evaluator.fixed[0])
    concepts = run.model.encode(problem.source, problem.source_pos)
    for name, ids in analysis.written(run.model, concepts, problem.targets).items():
        for i, row in enumerate(rows):
            pieces = Words(run.tokenizer).marked(ids[i].tolist(), (ids[i] != problem.targets[i]).tolist())
            assert row[name].count("class=wrong") == sum(wrong for _, wrong in pieces) > 0
            assert re.sub("<.*?>", "", row[name]) == escape("".join(text for text, _ in pieces))


def test_what_was_learned_is_said_alike(place, capsys):
    """In metrics.jsonl, at the end of training, by the health check and on the page."""
    run = trained(place, "run")
    first, last = (record for record in RunFolder(run).metrics() if "val_loss" in record)
    gap = last["val_loss"] - last["val_floor"]
    loss = f"{abs(gap):.2f} nats {'above' if gap > 0 else 'under'} the floor of guessing; "
    assert first["learned"].split("; ")[1].startswith("level with the untrained twin (")
    assert last["learned"] == geometry.learned(last, first, (last["val_loss"], last["val_floor"], "nats"))
    assert last["learned"].startswith(loss)
    trained(place, "run", again=True)
    assert f": {last['verdict']}\nlearned: {last['learned']}\n" in capsys.readouterr().out
    look(run, "--quick")
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith(f"learned: {loss}") and " the untrained twin (half a row is nearer to its " in line
    logged = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(logged.replace('"val_floor"', '"once"'))  # no evaluation of this checkpoint
    look(run, "--quick")
    (run / "metrics.jsonl").write_text(logged)
    *_, line = capsys.readouterr().out.splitlines()
    assert "floor" not in line and line.startswith("learned: ") and "the untrained twin" in line


def test_a_warm_start_has_no_untrained_twin(place):
    run = trained(place, "warm", f"--init_from={trained(place, 'run')}", "--lr=1e-9")
    last = [record for record in RunFolder(run).metrics() if "learned" in record][-1]
    assert "the floor of guessing" in last["learned"] and "twin" not in last["learned"]


def test_capacity_and_no_probes(place):
    run = trained(place, "run")
    with patch.object(analysis.capacity, "__defaults__", (60,)):  # steps
        look(run, "--capacity", "--probes=0", f"--data_dir={place}")  # no data there: the rows that the run keeps
    found = json.loads((run / "analysis" / "metrics.json").read_text())
    page = (run / "analysis" / "report.html").read_text()
    assert "rows that the run keeps (" in page and "probes" not in found
    capacity = found["capacity"]["trained"]
    assert capacity["free"]["loss"] < capacity["encoder"]["loss"] and found["capacity"]["untrained"] is None


def test_runs_side_by_side(place, tmp_path, capsys):
    """A run without a decoder and one of another tokenizer and shorter rows beside the first, on the first's text."""
    make_corpus(tmp_path / "data" / "other", vocab_size=330)
    run, bag = trained(place, "run"), trained(place, "bag", "--objective=bow")
    other = tmp_path / "other"
    assert training.run(tmp_path / "data", other, "--dataset=other", "--lengths=10", "--max_steps=2") == 0
    capsys.readouterr()
    with training.unrendered():
        assert analyze.main(["--compare", str(run), str(bag), str(other), "--device=cpu", "--probes=100"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in (run, bag, other))
    found = json.loads((run / "analysis" / "compare" / "metrics.json").read_text())
    assert all(entry.keys() == {str(run), str(bag), str(other)} for entry in found.values())
    loaded = load_run(run, device="cpu")
    evaluator = analysis.evaluator_of(loaded, loaded.rows[: analyze.ROWS, :10])
    ranks = geometry.concept_geometry(evaluator.whole())
    assert found["rank_pooled"][str(run)] == pytest.approx(ranks["rank_pooled"])
    assert found["position"][str(run)] == found["position"][str(other)]
    assert (
        found["knock_out"][str(bag)] is None
        and "no position is decoded" in (run / "analysis" / "compare" / "report.html").read_text()
    )
    with pytest.raises(UserError, match="two different run folders"):
        analyze.main(["--compare", str(run)])


def test_knock_outs_and_positions_equal_loops(place):
    run = load_run(trained(place, "run"), device="cpu")
    evaluator = analysis.evaluator_of(run, run.rows[:256])
    use = analysis.use_of_concepts(evaluator)
    part = evaluator.primary_part()
    total, rises, by_position = 0.0, torch.zeros(8), torch.zeros(16, dtype=torch.float64)
    problems = [evaluator.problem(part, batch) for batch in evaluator.fixed]
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
    "one direction": ({"encoder.norm.weight": lambda w: w * (torch.arange(64) < 1)}, "one direction dominates"),
    "duplicates": (
        {
            "encoder.slots.content": lambda w: w[:1].expand_as(w).contiguous(),
            "encoder.norm.weight": lambda w: w * 1.0,
        },
        "slots are duplicates",
    ),
    "dimensions": ({"encoder.norm.weight": lambda w: torch.cat([w[:32], w[32:] * 1e-6])}, "32 of 64 dimensions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_health_check_finds_what_is_wrong(fault, place, capsys):
    run = Path(shutil.copytree(trained(place, "run"), place / fault, dirs_exist_ok=True))
    shutil.rmtree(run / "analysis", ignore_errors=True)  # of another test
    change, finding = FAULTS[fault]
    changed(run, **change)
    capsys.readouterr()
    assert look(run, "--quick") == 3
    lines = capsys.readouterr().out.splitlines()
    assert any(finding in line and ("; try " in line or "; go back" in line) for line in lines)
    assert not (run / "analysis").exists()


def test_concepts_that_overflow_are_a_finding(place, capsys):
    run = Path(shutil.copytree(trained(place, "run"), place / "overflow", dirs_exist_ok=True))
    shutil.rmtree(run / "analysis", ignore_errors=True)
    changed(run, **{"encoder.norm.weight": lambda w: torch.full_like(w, 3e38)})
    capsys.readouterr()
    assert look(run, "--quick") == 3 and "concepts are not finite" in capsys.readouterr().out
    assert look(run) == 3 and not (run / "analysis" / "report.html").exists()


def test_a_healthy_run_and_one_without_a_decoder(place, capsys):
    assert look(trained(place, "learned", "--max_steps=80", "--eval_interval=0"), "--quick") == 0
    run = trained(place, "contrastive", "--objective=contrastive", "--batch_size=16", "--max_steps=1")
    capsys.readouterr()
    found = look(run, "--quick")
    lines = capsys.readouterr().out.splitlines()
    assert found == (0 if lines[0] == "not collapsed" else 3)
    look(run, "--probes=0")
    page = (run / "analysis" / "report.html").read_text()
    assert "no decoder" in page and "no position is decoded" in page


def test_one_concept_and_fewer_of_a_nested_run(place):
    one = trained(place, "one", "--concepts=1")
    look(one, "--probes=0")
    assert "a single concept" in (one / "analysis" / "report.html").read_text()
    run = trained(place, "nested", "--nested=True")
    look(run, "--concepts=2", "--probes=0", f"--data_dir={place}")
    verdict = json.loads((run / "analysis" / "metrics.json").read_text())["verdict"]["trained"]
    assert " of 8" not in verdict
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
    with pytest.raises(UserError, match="analysis cannot be written"):
        look(other)
