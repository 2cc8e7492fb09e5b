"""Reference encoders: a tiny random BERT through the same judge."""

import json

import numpy as np
import pytest
import torch

import eval_glue
from lab import tasks
from lab.configurator import UserError
from lab.finetune import token_rows
from lab.huggingface import is_reference, load_reference
from lab.tasks import Pairs
from tests.test_eval_glue import write_tasks

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    here = tmp_path_factory.mktemp("reference")
    write_tasks(here / "glue")
    words = {word.strip(".,") for file in (here / "glue").rglob("*.*") for word in file.read_text().lower().split()}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *sorted(words - {""})]
    (here / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizer(str(here / "vocab.txt"))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = transformers.BertModel(
        transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)
    )
    model.save_pretrained(here / "bert")
    tokenizer.save_pretrained(here / "bert")
    return here


def test_embeddings_are_the_mean_over_tokens(place):
    run = load_reference(place / "bert", "cpu")
    texts = ["the red ship sees the old house .", "a ship", ""]
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "bert")
    model = transformers.AutoModel.from_pretrained(place / "bert").eval()
    for text, vector in zip(texts, run.embed(texts), strict=True):
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert torch.allclose(states[0].mean(0), vector, atol=1e-5)
    assert torch.allclose(run.embed(texts[1]), run.embed(texts)[1], atol=1e-6) and run.embed("a ship").ndim == 1
    assert run.concepts("a ship").shape == (1, 32) and run.encode_texts("a ship") == run.encode_texts(["a ship"])[0]
    assert torch.equal(run.embed(["a \ud83d ship"]), run.embed(["a ? ship"]))
    a, b = run.encode_texts(["a ship", "the house"])
    assert run.wrap(a, b) == tokenizer("a ship", "the house")["input_ids"]
    pairs = Pairs("mrpc", tasks.load_task("mrpc", place / "glue"), "train")
    rows, cut = token_rows(run, pairs, apart=False, most=9)
    end = tokenizer.sep_token_id
    assert cut > 0 and all(len(row[0]) <= 9 and (row[0] == end).sum() == 2 and row[0][-1] == end for row in rows["dev"])
    twins = [run.twin(seed).embed(texts) for seed in (0, 0, 1)]
    assert torch.equal(twins[0], twins[1]) and not torch.allclose(twins[0], twins[2])


def test_the_judge(place, capsys):
    words = [f"--run={place / 'bert'}", f"--data={place / 'glue'}", "--device=cpu", "--tasks=stsb,mrpc"]
    assert eval_glue.main(words) == 0
    assert eval_glue.main([*words, "--mode=fine_tune", "--seeds=1", "--epochs=1", "--head=pair"]) == 0
    assert "bert, ckpt_0, zero-shot" in capsys.readouterr().out
    for mode in ("zero_shot", "fine_tune"):
        record = json.loads((place / f"bert/eval/{mode}_stsb.json").read_text())
        assert np.isfinite(record["splits"]["dev"]["metrics"]["pearson"]) and record["run_id"] == "bert"
        assert "untrained" in record["splits"]["dev"]["floors"]


def test_mistakes(place, tmp_path):
    assert is_reference(place / "bert") and not is_reference(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="cannot be loaded .*; give a folder with model.safetensors and tokenizer"):
        load_reference(tmp_path, "cpu")
