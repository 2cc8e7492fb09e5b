"""export.py: what other libraries load gives the run's vectors; the folder stays a run; the card's code runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from registries import OWN_DECODERS as DECODERS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import normalize

import eval_glue
import export
import losses
import sample
from encoders import ENCODERS, Options
from lab.configurator import UserError, fields_of
from lab.data.tokenizers import add_special_tokens, encode_texts
from lab.evaluation.huggingface import is_reference, load
from lab.export import card, flat, folder
from lab.runs import LoadedRun, load_run
from model import ConceptModel, ModelConfig
from tests.test_backbone import make_theirs
from tests.test_eval_glue import write_tasks
from tests.training import BRIEF, run

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).resolve().parent.parent
TEXTS = [
    "The old ship sees the red tree. And a dog!",
    "",
    "the  small dog\nfinds\r\n\r\nthe [MASK] ",
    "a warm stone " * 30,
]


@pytest.fixture(scope="module")
def place(data, tmp_path_factory):
    """A run, judged on a task, and what was exported of it."""
    here = tmp_path_factory.mktemp("export")
    run(data, here / "run", *BRIEF, "--max_steps=2", "--whitening=0.5", "--nested=True", "--encoder=recursive")
    write_tasks(here / "glue")
    eval_glue.main([f"--run={here / 'run'}", "--tasks=stsb", f"--data={here / 'glue'}", "--device=cpu"])
    words = [f"--run={here / 'run'}", f"--to={here / 'out'}", "--device=cpu", "--licence=CC0"]
    assert export.main(words) == 0
    return SimpleNamespace(here=here, out=here / "out", run=load_run(here / "run", device="cpu"))


def from_transformers(path, texts):
    """(concepts, vectors) by AutoModel and AutoTokenizer."""
    keys = {"trust_remote_code": True, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, **keys)
    model = transformers.AutoModel.from_pretrained(path, **keys).eval()
    with torch.no_grad():
        out = model(**tokenizer(texts, padding=True, return_tensors="pt"))
    return out.last_hidden_state, out.pooler_output


# ---- transformers


def test_transformers_give_concepts_and_vectors(place):
    concepts, vectors = from_transformers(place.out, TEXTS)
    assert torch.allclose(vectors, place.run.embed(TEXTS), atol=1e-5)
    assert torch.allclose(concepts, place.run.concepts(TEXTS), atol=1e-5)
    for text in TEXTS:  # alone, so without padding
        concepts, vectors = from_transformers(place.out, [text])
        assert torch.allclose(vectors[0], place.run.embed(text), atol=1e-5)


SHAPES = {
    **{name: {"encoder": name} for name in ENCODERS},
    **{f"decoder {name}": {"decoder": name} for name in DECODERS},
    "original": {"original_structure": True, "token_dim": 16, "tied": False},
    "positions": {"token_position": "rope", "concept_position": "cope", "registers": 2},
    "windows": {"token_layers": 1, "token_window": 2},
    "options": {"encoder": "recursive", "nested": True, "options": Options(3, 2)},
    "as it is": {"whitening": 0.0},
    "backbone": {"backbone": "llama", "backbone_layers": 2},
    "backbone, mixture, both directions": {"backbone": "qwen2", "backbone_read": "mix", "backbone_causal": False},
    "decoder backbone": {"backbone": "llama", "backbone_layers": 1, "decoder": "backbone", "tied": True},
}


def another(place, changes) -> LoadedRun:
    """As a run of another kind of model, with other weights than a new one has."""
    changes = {"encoder": "perceiver", "nested": False, "token_init": "random"} | changes
    options = changes.pop("options", Options())
    if kind := changes.get("backbone"):
        folder, size = place.here / f"backbone_{kind}", place.run.config["vocab_size"]
        make_theirs(folder, model_type=kind, vocab_size=size, tie_word_embeddings=True, hidden_size=32)
        changes |= {"backbone": str(folder), "token_dim": 0}
    config = place.run.config | changes
    shape = ModelConfig(
        **{key: config[key] for key in fields_of(ModelConfig)}, predicts=place.run.model.config.predicts
    )
    model = ConceptModel(shape, config["mask_id"], seed=3).eval()
    model.options = options
    return LoadedRun(model, place.run.tokenizer, config, 7, place.run.rows)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_every_kind_of_model_exports(place, changes, tmp_path):
    """The flat file against ours."""
    own = another(place, changes)
    alone = folder.write_model(own, tmp_path, False)
    concepts, vectors = from_transformers(tmp_path, TEXTS)
    assert alone and torch.allclose(vectors, own.embed(TEXTS), atol=1e-5)
    assert torch.allclose(concepts, own.concepts(TEXTS), atol=1e-5)
    back = load_run(tmp_path, device="cpu")
    assert (
        torch.equal(back.embed(TEXTS), own.embed(TEXTS)) and back.step == 7 and back.model.options == own.model.options
    )


def test_remote_code_is_ours_word_for_word(place):
    """Every definition of the flat file stands in one of our files, but for the names of modules before a name."""
    text = (place.out / "modeling_nanoconcept.py").read_text()
    parts = re.split(r"\n\n# ---- (\S+)\n", text)
    assert {"model.py", "encoders.py", "layers.py", "lab/export/remote.py", "lab/data/tokenizers.py"} <= set(
        parts[1::2]
    )
    for path, content in zip(parts[1::2], parts[2::2], strict=True):
        ours = {line.replace("losses.", "") for line in (ROOT / path).read_text().splitlines()}
        assert [line for line in content.splitlines() if line.replace("losses.", "") not in ours] == [], path
    assert "import lab" not in text and "class Recursive(" in text and "class Dense(" not in text
    compile(text, "modeling_nanoconcept.py", "exec")


def test_flat_files_refuse_what_they_cannot_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(flat, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("import math\nfrom b import size as n\nfrom c import one\nx = one(n, math.pi)\n")
    (tmp_path / "b.py").write_text("import c\nsize = c.two()\nunused = 1\n")
    (tmp_path / "c.py").write_text(
        "def one(*x):\n    return x\n\n\ndef two():\n    return 2\n\n\ndef three():\n    pass\n"
    )
    with pytest.raises(ValueError, match="another name"):
        flat.flatten("a")
    (tmp_path / "a.py").write_text("import math\nfrom b import size\nfrom c import one\nx = one(size, math.pi)\n")
    made = {}
    exec(flat.flatten("a"), made)
    assert made["x"] == (2, np.pi) and {"unused", "three"}.isdisjoint(made)
    (tmp_path / "b.py").write_text("import c\nsize = c.two()\n\n\ndef two():\n    return size\n\n\nsize = two\n")
    with pytest.raises(ValueError, match="two is in .* rename one"):
        flat.flatten("a")
    (tmp_path / "b.py").write_text("size = 1\nprint(size)\n")
    with pytest.raises(ValueError, match="b.py:2"):
        flat.flatten("a")


# ---- the tokenizer by itself


PIECES = [*"aB.!? \n\r\t\u3000\x85\x1f\xa0\u2028é", "[MASK]", "the"]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_tokenizer_cuts_sentences_by_itself(place, text):
    changed = Tokenizer.from_str(folder.split_by_itself(place.run.tokenizer.to_str()))
    changed.encode_special_tokens = True
    assert (changed.encode(text).ids or place.run.encode_texts("")) == place.run.encode_texts(text)
    assert encode_texts(changed, [text]) == place.run.encode_texts([text])


def test_a_tokenizer_that_cannot_is_left_as_it_is(place, tmp_path):
    """One that reads over the ends of sentences: AutoTokenizer differs, which is said; the model does not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Replace(" ", "_"), pre_tokenizers.Split("x", "isolated")
    texts = [place.run.tokenizer.decode(row.tolist()) for row in place.run.rows.long()]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=350, show_progress=False))
    add_special_tokens(tokenizer)
    assert tokenizer.get_vocab_size() <= place.run.config["vocab_size"]
    own = LoadedRun(place.run.model, tokenizer, place.run.config, 2, place.run.rows)
    assert not folder.write_model(own, tmp_path, True)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["normalizer"]["type"] == "Replace"
    assert folder.difference(own, tmp_path, False) < 1e-5
    said = card.card(own, str(place.here / "run"), "x", "", ["sentence_transformers"], False, "")
    assert "AutoTokenizer does not cut sentences" in said


# ---- sentence-transformers

SCRIPT = """
import sys, warnings
import numpy as np
from sentence_transformers import SentenceTransformer

if __name__ == "__main__":  # which a process of the pool is not
    texts = sys.argv[2:]
    model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
    vectors = model.encode(texts)
    pool = model.start_multi_process_pool(["cpu"])
    both = model.encode(texts, pool=pool)
    model.stop_multi_process_pool(pool)
    model.save("saved")
    again = SentenceTransformer("saved", trust_remote_code=True, device="cpu").encode(texts)
    short = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu", truncate_dim=9).encode(texts)
    similar = model.similarity(vectors, vectors).numpy()
    np.savez("st.npz", vectors=vectors, both=both, again=again, short=short, similar=similar)
    try:
        from sentence_transformers import MultiVectorEncoder
    except ImportError:
        sys.exit()
    model = MultiVectorEncoder(sys.argv[1], trust_remote_code=True, device="cpu", similarity_fn_name="meanmaxsim")
    concepts = model.encode(texts)
    scores = model.similarity(concepts, concepts)
    np.savez("concepts.npz", concepts=np.stack([c.numpy() for c in concepts]), scores=scores.numpy())
"""


def test_sentence_transformers(place, tmp_path):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "script.py", place.out, *TEXTS]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = np.load(tmp_path / "st.npz"), place.run.embed(TEXTS).numpy()
    for name in ("vectors", "both", "again"):
        assert np.abs(found[name] - expected).max() < 1e-5, name
    assert np.abs(found["short"] - expected[:, :9]).max() < 1e-5
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(found["similar"], unit @ unit.T, atol=1e-5)
    if not (tmp_path / "concepts.npz").exists():
        return
    found, concepts = np.load(tmp_path / "concepts.npz"), normalize(place.run.concepts(TEXTS), dim=-1)
    assert np.abs(found["concepts"] - concepts.numpy()).max() < 1e-5
    ours = losses.maxsim(torch.einsum("ach,bdh->abcd", concepts, concepts))
    assert np.abs((found["scores"] + found["scores"].T) / 2 - ours.numpy()).max() < 1e-5


# ---- ONNX


def onnx_libraries():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")


def test_onnx(place, tmp_path, capsys):
    onnx_libraries()
    words = ["--format=onnx", "--quantize=int8", f"--data={place.here / 'glue'}", "--device=cpu"]
    assert export.main([f"--run={place.here / 'run'}", f"--to={tmp_path / 'out'}", *words]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(r"STS-B dev, Spearman x100 of cosines: float32 \S+, int8 \S+ \(\S+ lost to int8\)\n", said)
    assert said.strip() in (tmp_path / "out/README.md").read_text()
    assert len((tmp_path / "out/example.py").read_text().splitlines()) <= 25
    script = "import example, numpy, sys; numpy.save('v', numpy.stack([example.embed(t) for t in sys.argv[1:]]))"
    script += "; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, *TEXTS], cwd=tmp_path / "out", check=True)
    assert np.abs(np.load(tmp_path / "out/v.npy") - place.run.embed(TEXTS).numpy()).max() < 1e-4
    from lab.export.onnx import onnx_vectors, session

    by_padding = onnx_vectors(session(tmp_path / "out/model.onnx"), place.run, TEXTS * 9)
    assert np.abs(by_padding - place.run.embed(TEXTS * 9).numpy()).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_onnx_of_every_kind_of_model(place, changes, tmp_path):
    onnx_libraries()
    from lab.export.onnx import onnx_vectors, session, write_onnx

    own = another(place, changes)
    if own.config["token_layers"]:
        with pytest.raises(UserError, match="token_layers=1 is not exported to ONNX"):
            write_onnx(own, *folder.isotropic(own), tmp_path / "model.onnx")
        return
    write_onnx(own, *folder.isotropic(own), tmp_path / "model.onnx")
    found = onnx_vectors(session(tmp_path / "model.onnx"), own, TEXTS)
    assert np.abs(found - own.embed(TEXTS).numpy()).max() < 1e-4


def test_missing_libraries_are_named(place, tmp_path, monkeypatch):
    real = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if "onnx" in name else real(name))
    with pytest.raises(UserError, match="onnx, onnxscript, onnxruntime is not installed; pip install onnx"):
        export.main([f"--run={place.here / 'run'}", f"--to={tmp_path / 'out'}", "--format=all"])


# ---- the folder stays a run


def test_round_trip(place, data, tmp_path, capsys):
    back, ours = load(place.out, device="cpu"), place.run
    assert not is_reference(place.out) and torch.equal(back.embed(TEXTS), ours.embed(TEXTS))
    assert torch.equal(back.twin(1).embed(TEXTS), ours.twin(1).embed(TEXTS)) and back.step == ours.step
    runs = [place.here / "run", shutil.copytree(place.out, tmp_path / "out")]
    printed = []
    for path in runs:
        sample.main([f"--run={path}", "--text=the red ship", "--device=cpu"])
        words = [
            f"--run={path}",
            "--tasks=stsb",
            f"--data={place.here / 'glue'}",
            f"--data_dir={data}",
            "--device=cpu",
            "--full",
        ]
        eval_glue.main(words)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "predicted" in printed[0]
    assert export.main([f"--run={runs[1]}", f"--to={tmp_path / 'again'}", "--device=cpu"]) == 0
    assert (tmp_path / "again/model.safetensors").read_bytes() == (place.out / "model.safetensors").read_bytes()
    assert "pearson adapted" in (tmp_path / "again/README.md").read_text()


def test_nothing_of_this_machine_is_in_it(place):
    for path in ("config.json", "README.md", "tokenizer_config.json"):
        text = (place.out / path).read_text().replace(str(place.out), "")  # by which the card loads it
        assert str(place.here) not in text, path


# ---- the card


def test_the_card(place, tmp_path, monkeypatch):
    text = (place.out / "README.md").read_text()
    record = json.loads((place.here / "run/eval/zero_shot_stsb.json").read_text())
    for split, judged in record["splits"].items():
        best = judged["lift_adapted"]["best_floor"]["floor"]
        cells = ["stsb", split, "pearson adapted", f"{100 * judged['metrics']['pearson_adapted']:.1f}"]
        cells += [f"{100 * judged['floors'][best]['pearson_adapted']:.1f} ({best})"]
        assert re.search(r" *\| *".join(map(re.escape, cells)), text)
    assert "Licence of the text: CC0." in text and "## Health" in text and "FLOPs" in text and "@misc" in text
    assert json.loads(
        re.search(r"^tags: (.*)$", text, re.M)[1].replace("[", '["').replace("]", '"]').replace(", ", '", "')
    )
    codes = re.findall(r"^([^\n]*):\n\n```python\n(.*?)```", text, re.M | re.S)
    assert len(codes) == 4
    expected = place.run.embed(["one text", "another text"]).numpy()
    monkeypatch.syspath_prepend(str(ROOT))
    for title, code in codes:
        if "sentence" in title:
            pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
            if "6, all" in title and not hasattr(sys.modules["sentence_transformers"], "MultiVectorEncoder"):
                continue
        exec(code, made := {})
        if "vectors" in made:
            assert (
                np.abs(np.asarray(made["vectors"].detach() if "out" in made else made["vectors"]) - expected).max()
                < 1e-5
            )
        else:
            assert [tuple(c.shape) for c in made["concepts"]] == [(8, 64)] * 2


# ---- mistakes, and the Hub


def test_mistakes(place, tmp_path, monkeypatch):
    made = lambda *words: export.main([f"--run={place.here / 'run'}", *words])  # noqa: E731
    for words, said in (
        ([], "write --to=out/exported"),
        ([f"--to={place.out}"], "is there already; give another --to"),
        ([f"--to={tmp_path / 'x'}", "--quantize=int8"], "write --format=all"),
        ([f"--to={tmp_path / 'x'}", "--push=name"], "write --push=ORG/NAME"),
        ([f"--to={tmp_path / 'x'}", "--concepts=99"], "not within 1 and 8"),
    ):
        with pytest.raises(UserError, match=said):
            made(*words)
    monkeypatch.setattr(folder, "flatten", lambda *_: flat.flatten("nothing"))
    with pytest.raises(UserError, match="encoder=recursive cannot be exported"):
        made(f"--to={tmp_path / 'x'}")
    assert list(tmp_path.iterdir()) == []


def test_push(place, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    words = [f"--run={place.here / 'run'}", "--push=me/model", "--device=cpu"]
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no token .* write: hf auth login"):
        export.main([*words, f"--to={tmp_path / 'no'}"])
    monkeypatch.setattr(hub, "get_token", lambda: "secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        export.main([*words, f"--to={tmp_path / 'no'}"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    calls = []
    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, name, **keys: calls.append((self.token, name, keys)))
    monkeypatch.setattr(hub.HfApi, "upload_folder", lambda self, **keys: calls.append(keys))
    assert export.main([*words, f"--to={tmp_path / 'out'}"]) == 0
    assert calls[0] == ("secret", "me/model", {"exist_ok": True})
    assert calls[1]["folder_path"] == tmp_path / "out" and calls[1]["repo_id"] == "me/model"
    assert "'me/model'" in (tmp_path / "out/README.md").read_text()

    def broken(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub.HfApi, "create_repo", broken)
    with pytest.raises(UserError, match="is whole, but was not pushed .* hf upload me/model"):
        export.main([*words, f"--to={tmp_path / 'late'}"])
    assert (tmp_path / "late/model.safetensors").is_file()
