"""What a run makes of text, as it is printed."""

import json
from pathlib import Path

import pytest
import torch

import sample
import train
from lab.configurator import UserError
from lab.runs import load_run
from tests.corpus import make_corpus
from tests.test_eval_glue import SMALL

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    here = tmp_path_factory.mktemp("sample")
    make_corpus(here / "data" / "toy")
    where = [f"--data_dir={here / 'data'}", "--dataset=toy", f"--out_dir={here / 'run'}"]
    assert train.main([str(ROOT / "config" / "quickstart.py"), *SMALL, *where, "--max_steps=2"]) == 0
    return here / "run"


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


def test_mistakes(run):
    for flags, message in (["--text="], "no text is given"), (["--text=a", "--mode=neighbour"], "neighbours"):
        with pytest.raises(UserError, match=message):
            sample.main([f"--run={run}", *flags])
