"""ONNX: the encoder as one graph, from token ids to concepts and to the vector of the text."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from lab.command import reason
from lab.configurator import UserError
from lab.data.tokenizers import SENTENCE_END, pad_batch, special_ids
from lab.evaluation.tasks import load_task
from lab.runs import LoadedRun

OPSET = 20
NEEDS = "onnx", "onnxscript", "onnxruntime"
EXAMPLE = '''"""python example.py "one text" "another text": needs onnxruntime, tokenizers and numpy alone."""
import re
import sys

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer, session = Tokenizer.from_file("tokenizer.json"), onnxruntime.InferenceSession("model.onnx")
tokenizer.encode_special_tokens = True  # [MASK] in a text is text


def embed(text):  # of any length -> float32 [{hidden}]: the mean by tokens over rows of at most {longest}
    parts = [" " + part.strip() for part in re.split(r"{pattern}", text) if part.strip()]
    ids = [i for part in parts for i in tokenizer.encode(part, add_special_tokens=False).ids] or [{sep}]
    rows = [np.array([ids[i : i + {longest}]]) for i in range(0, len(ids), {longest})]
    feeds = [{{"input_ids": row, "attention_mask": np.ones_like(row)}} for row in rows]
    vectors = [session.run(["sentence_embedding"], feed)[0][0] for feed in feeds]
    return np.average(vectors, axis=0, weights=[row.size for row in rows]).astype(np.float32)


if __name__ == "__main__":
    print(np.stack([embed(text) for text in sys.argv[1:]]))
'''


class OneRow(nn.Module):
    """input_ids, attention_mask int64 [B, S], padding behind, S at most the longest row -> concepts [B, C, H] and the
    vectors of the texts [B, H]."""

    def __init__(self, model, mean, matrix):
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    def forward(self, input_ids, attention_mask):
        concepts = self.model.encode(input_ids, mask=attention_mask.bool())
        return concepts, (self.model.pool(concepts) - self.mean) @ self.matrix


def check_installed():
    if missing := [name for name in NEEDS if not importlib.util.find_spec(name)]:
        raise UserError(f"{', '.join(missing)} is not installed; pip install {' '.join(missing)}, or another --format")


def write_onnx(run: LoadedRun, mean, matrix, path: Path):
    """Writes the graph. UserError where this model cannot be one."""
    if run.model.config.token_layers:
        what = f"token_layers={run.model.config.token_layers} is not exported to ONNX: its windows need a fixed length"
        raise UserError(f"{what}; write --format=sentence_transformers")
    if run.model.config.concepts_per_token:
        what = "concepts_per_token is not exported to ONNX: its number of concepts is not fixed"
        raise UserError(f"{what}; write --format=sentence_transformers")
    ids = torch.ones(2, min(7, run.max_length), dtype=torch.int64)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=1, max=run.max_length)
    sizes = {0: batch, 1: length} if run.max_length > 1 else {0: batch}
    try:
        with torch.no_grad():
            torch.onnx.export(
                OneRow(run.model, mean, matrix).eval(),
                (ids, torch.ones_like(ids)),
                path,
                dynamo=True,
                opset_version=OPSET,
                input_names=["input_ids", "attention_mask"],
                output_names=["token_embeddings", "sentence_embedding"],
                dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of many kinds
        what = f"encoder={run.config['encoder']} is not exported to ONNX ({reason(error.__cause__ or error)})"
        raise UserError(f"{what}; write --format=sentence_transformers") from None


def session(path: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def onnx_vectors(graph, run: LoadedRun, texts: list[str]) -> np.ndarray:
    """`LoadedRun.embed` by an onnxruntime session."""
    found = np.empty((len(texts), run.config["hidden"]))
    rows = [run.chunks(text, ids) for text, ids in zip(texts, run.encode_texts(texts), strict=True)]
    order = sorted(range(len(texts)), key=lambda i: len(rows[i][0]))
    for batch in (order[i : i + 64] for i in range(0, len(order), 64)):
        parts = [row for i in batch for row in rows[i]]
        ids, mask = pad_batch(parts, run.config["pad_id"])
        (vectors,) = graph.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask.astype(np.int64)})
        sizes, at = mask.sum(1), 0
        for i in batch:
            own = slice(at, at + len(rows[i]))
            found[i], at = np.average(vectors[own], axis=0, weights=sizes[own]), own.stop
    return found


def write_int8(path: Path, to: Path):
    """Weights of matrix products and embeddings in 8 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, to, weight_type=QuantType.QInt8)


def loss_in_stsb(run: LoadedRun, graphs: dict, data: Path) -> str:
    """A sentence: Spearman of cosines on STS-B's dev of each graph; where its files are not at hand, that."""
    try:
        dev = load_task("stsb", data)["dev"]
    except (UserError, LookupError):
        return f"what int8 costs was not measured: STS-B's dev is not in {data}; write --data=DIR"
    sentences = [text for row in dev.rows for text in row]
    scores = {}
    for name, graph in graphs.items():
        x = onnx_vectors(graph, run, sentences)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        scores[name] = 100 * spearmanr((x[0::2] * x[1::2]).sum(1), dev.labels).statistic
    said = ", ".join(f"{name} {score:.1f}" for name, score in scores.items())
    lost = scores["float32"] - scores["int8"]
    return f"STS-B dev, Spearman x100 of cosines: {said} ({lost:+.1f} lost to int8)"


def example(run: LoadedRun) -> str:
    keys = {"hidden": run.config["hidden"], "longest": run.max_length, "pattern": SENTENCE_END.pattern}
    keys["sep"] = special_ids(run.tokenizer)["sep"]
    return EXAMPLE.format(**keys)
