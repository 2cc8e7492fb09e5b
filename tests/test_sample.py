"""What a run makes of text, as it is printed."""

import bz2
import gzip
import json

import numpy as np
import pytest
import torch

import sample
from lab.configurator import UserError
from lab.runs import load_run
from tests import training


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("sample") / "run"
    assert training.run(data, out, "--layers=2", "--max_steps=2") == 0
    return out


def test_a_part_of_the_concepts_is_refused_where_it_means_nothing(run):
    with pytest.raises(UserError, match="nested=True"):
        sample.main([f"--run={run}", "--device=cpu", "--text=a river", "--concepts=2"])


def printed(run, capsys, *flags):
    assert sample.main([f"--run={run}", "--device=cpu", *flags]) == 0
    return capsys.readouterr().out.splitlines()


def test_neighbours_are_the_nearest_rows_of_the_token_table(run, capsys):
    loaded = load_run(run, device="cpu")
    lines = printed(run, capsys, "--mode=neighbours", "--text=river  xylophone\ntree")
    assert [line.split(":")[0].split()[0] for line in lines] == ["river", "xylophone", "tree"]
    assert " tokens the first, ' ')" in lines[1] and "tokens" not in lines[0]
    table = loaded.model.tokens.weight.detach()
    (token,) = loaded.encode_texts(["river"])[0]
    cosines = torch.cosine_similarity(table, table[token][None])
    order = [i for i in cosines.argsort(descending=True).tolist() if i != token]
    special = {loaded.config["mask_id"], loaded.config["pad_id"]}
    expected = [f"{loaded.tokenizer.decode([i]).strip()} {cosines[i]:.2f}" for i in order if i not in special]
    assert lines[0].startswith(f"river: {', '.join(expected[:3])}") and lines[0].count(".") == sample.NEIGHBOURS


def test_the_other_modes(run, capsys):
    text = "--text=The old dog sees the tree.\nThe man sees the ship."
    vectors = [json.loads(line) for line in printed(run, capsys, "--mode=embed", text)]
    expected = load_run(run, device="cpu").embed(text[7:].splitlines())
    assert torch.allclose(torch.tensor(vectors), expected, atol=1e-5)
    lines = printed(run, capsys, text)
    assert (
        lines[0] == "text:      The old dog sees the tree."
        and sum("of the tokens are the same" in line for line in lines) == 2
    )


@pytest.fixture(scope="module")
def others(data, tmp_path_factory):
    """Runs of the other objectives, by name."""
    here, runs = tmp_path_factory.mktemp("others"), {}
    for name, flags in {
        "diffusion": ["--objective=diffusion", "--decoder=diffusion", "--decoder_window=2"],
        "diffusion_next": ["--objective=diffusion", "--decoder=diffusion", "--diffusion_source=next"],
        "prefix": ["--objective=prefix", "--decoder=causal"],
        "prefix_next": ["--objective=prefix", "--prefix_source=next"],
        "contrastive": ["--objective=contrastive"],
    }.items():
        runs[name] = here / name
        assert training.run(data, runs[name], "--max_steps=2", *flags) == 0
    return runs


TWO = "--text=The old dog sees the tree.\nThe man sees the ship."


def records(run, capsys, *flags):
    return [json.loads(line) for line in printed(run, capsys, "--json=True", *flags)]


def test_between_two_texts(run, capsys):
    """The ends are the texts' own reconstructions, and their truth is known."""
    line, own = (records(run, capsys, TWO, f"--mode={m}") for m in ("interpolate", "reconstruct"))
    assert [r["share"] for r in line] == [0, 0.25, 0.5, 0.75, 1] and "text" not in line[2]
    for end, text in ((line[0], own[0]), (line[4], own[1])):
        assert all(end[key] == text[key] for key in ("text", "predicted", "teacher_forced", "free_running"))
    assert len(records(run, capsys, TWO, "--mode=interpolate", "--steps=2")) == 2


def test_halves_are_swapped(run, capsys):
    loaded, texts = load_run(run, device="cpu"), TWO[7:].splitlines()
    a, b = (loaded.model.encode(loaded.read(text)) for text in texts)
    found = records(run, capsys, TWO, "--mode=swap")
    for record, x, y in zip(found, (a, b), (b, a), strict=True):
        ids = loaded.model.generate(torch.cat([x[:, :4], y[:, 4:]], 1), loaded.read(record["first"]).shape[1])
        assert record["predicted"] == loaded.show(ids[0])
    assert [r["second"] for r in found] == texts[::-1]


@pytest.mark.parametrize("order", ["confidence", "ancestral"])
def test_masks_are_filled_in(others, capsys, order):
    loaded = load_run(others["diffusion"], device="cpu")
    flags = ["--mode=unmask", f"--order={order}", "--steps=3"]
    (record,) = records(others["diffusion"], capsys, *flags, "--text=The [MASK] dog sees [MASK][MASK].")
    ids = sample.masked(loaded, "The [MASK] dog sees [MASK][MASK].")[0]
    mask = loaded.model.mask_id
    assert (ids == mask).sum() == 3 and loaded.show(ids[ids != mask]) == "The dog sees."
    assert "[MASK]" not in record["predicted"] and "free_running" not in record
    assert record["predicted"].startswith("The") and record["predicted"].endswith(".")
    (record,) = records(others["diffusion"], capsys, *flags, "--text=The old dog.")
    assert 0 <= record["teacher_forced"] <= 1 and 0 <= record["free_running"] <= 1
    (record,) = records(others["diffusion_next"], capsys, *flags, "--text=The old dog.", "--length=5")
    assert "free_running" not in record


def test_a_prefix_is_continued(others, capsys):
    loaded = load_run(others["prefix"], device="cpu")
    for length in (3, 0):  # rows of 16 were read to the 8th token at most
        (record,) = records(others["prefix"], capsys, "--mode=continue", "--text=The old dog", f"--length={length}")
        ids = loaded.read("The old dog")
        expected = loaded.model.generate(loaded.model.encode(ids), length or 16 - max(5, ids.shape[1]))
        assert record == {"mode": "continue", "text": "The old dog", "predicted": loaded.show(expected[0])}
    assert (
        sample.main([f"--run={others['prefix']}", "--device=cpu", "--mode=continue", "--text=" + 9 * "the dog "]) == 0
    )
    assert "only the last 8 are read" in capsys.readouterr().err
    (record,) = records(others["prefix_next"], capsys, "--mode=continue", "--text=The old dog")
    assert record["predicted"]


def test_a_file_in_and_a_line_a_text_out(run, capsys, tmp_path):
    path = tmp_path / "texts"
    path.write_text("The old dog.\n\nThe red ship sees the dog.\n")
    lines = printed(run, capsys, f"--file={path}")
    assert len(lines) == 3 and lines[1] == "" and "text:" not in lines[0] + lines[2]
    predicted = [" ".join(r["predicted"].split()) for r in records(run, capsys, f"--file={path}")]
    assert predicted == lines
    assert len(printed(run, capsys, f"--file={path}", "--mode=embed")) == 3
    assert records(run, capsys, f"--file={path}", "--mode=embed")[0].keys() == {"text", "vector"}
    assert records(run, capsys, "--text=river", "--mode=neighbours")[0]["word"] == "river"


def test_a_file_is_read_as_preparation_reads_it(run, capsys, tmp_path):
    texts = ["The old dog.", "A café", "half"]
    lines = printed(run, capsys, "--mode=embed", "--text=" + "\n".join(texts))
    plain = "\ufeff" + "".join(f"{text}\r\n" for text in texts)
    objects = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    for data in (
        plain.encode(),
        plain.encode("utf-16-le"),
        gzip.compress(plain.encode()),
        bz2.compress(objects.encode()),
    ):
        (tmp_path / "a.csv").write_bytes(data)
        assert printed(run, capsys, "--mode=embed", f"--file={tmp_path / 'a.csv'}") == lines
    for data, words in (b"caf\xe9", "not UTF-8 at byte 3"), (gzip.compress(b"a" * 99)[:-9], "is damaged"):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(UserError, match=words):
            sample.main([f"--run={run}", f"--file={tmp_path / 'a'}"])
    (tmp_path / "a").write_bytes(b"")
    assert printed(run, capsys, f"--file={tmp_path / 'a'}") == []


def test_half_characters_are_cleaned_as_in_preparation(run, capsys, tmp_path):
    loaded = load_run(run, device="cpu")
    clean, dirty = ["half ?", "caf? and ?", "whole"], ["half \ud83d", "caf\udce9 and \udc00", "whole"]
    assert loaded.encode_texts(dirty) == loaded.encode_texts(clean)
    assert torch.equal(loaded.embed(dirty), loaded.embed(clean))
    assert torch.equal(loaded.concepts(dirty), loaded.concepts(clean))
    for flags in (), ("--mode=embed",), ("--mode=neighbours",):
        assert printed(run, capsys, f"--text={dirty[1]}", *flags) == printed(run, capsys, f"--text={clean[1]}", *flags)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": dirty[0]}))
    assert records(run, capsys, f"--file={tmp_path / 'a.jsonl'}") == records(run, capsys, f"--text={clean[0]}")
    for wrong in (None, 3, b"bytes", float("nan")):
        with pytest.raises(UserError, match="a text is a str, not "):
            loaded.embed(["good", wrong])


def test_one_text_gives_one_vector(run):
    loaded = load_run(run, device="cpu")
    texts = ["hello", "The old dog."]
    vectors, concepts = loaded.embed(texts), loaded.concepts(texts)
    for i, text in enumerate(texts):
        assert (
            torch.allclose(loaded.embed(text), vectors[i], atol=1e-6) and loaded.embed(text).shape == vectors[i].shape
        )
        assert torch.allclose(loaded.concepts(np.str_(text)), concepts[i], atol=1e-6)
        assert loaded.encode_texts(text) == loaded.encode_texts(texts)[i]
    for many in (tuple(texts), iter(texts), np.array(texts)):
        assert torch.equal(loaded.embed(many), vectors)
    assert loaded.embed([]).shape == (0, vectors.shape[1]) and loaded.embed("").shape == vectors[0].shape


WRONG = {  # (run, flags): what the error says
    ("diffusion", "--mode=continue"): "--mode=unmask, or train config/prefix_cpu.py",
    ("prefix", "--mode=unmask"): "--mode=continue, or train config/diffusion_elbo_cpu.py",
    ("prefix_next", "--mode=reconstruct"): "--mode=continue, or train config/quickstart.py",
    ("diffusion_next", "--mode=swap"): "--mode=unmask",
    ("contrastive", "--mode=interpolate"): "without a decoder",
    ("diffusion", "--mode=swap"): "takes two texts",
    ("prefix", "--mode=continue --length=65"): "write 64 or less",
    ("diffusion", "--mode=interpolate --steps=1"): "two ends",
    ("diffusion", "--file=nothing/there"): "leave one out",
    ("diffusion", "--text= --file=nothing/there"): "cannot be read",
    ("diffusion", "--mode=unmask --text=[MASK][MASK]"): "some words",
    ("diffusion_next", "--mode=unmask --text=a[MASK]"): "leave .MASK. out",
}


@pytest.mark.parametrize("name, flags", WRONG, ids=str)
def test_a_mode_that_was_not_trained_says_what_to_do(others, name, flags):
    with pytest.raises(UserError, match=WRONG[name, flags]):
        sample.main([f"--run={others[name]}", "--device=cpu", "--text=The old dog.", *flags.split()])


def test_mistakes(run):
    for flags, message in (["--text="], "no text is given"), (["--text=a", "--mode=neighbour"], "neighbours"):
        with pytest.raises(UserError, match=message):
            sample.main([f"--run={run}", *flags])
