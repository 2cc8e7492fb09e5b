"""
Pretrained language models of the Llama and Qwen2 families, to read tokens with (model.Tower) or to write them.

    embeddings -> [RMSNorm -> attention -> RMSNorm -> SwiGLU] x layers -> RMSNorm

Rotary positions, grouped-query attention (several heads share keys and values), causal or not. A folder in Hugging
Face's layout gives config.json and *.safetensors; the states of all layers equal those of `transformers`. What differs
in any other way is refused by name.

Shapes: B rows, S tokens, W width, V vocabulary, h heads and g pairs of keys and values of width d, L layers.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from layers import append_past, attention, rotate
from losses import autocast_device

# ---------------------------------------------------------------------------------------------------------------------
# The folder


@dataclass(frozen=True)
class Shape:
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    theta: float  # of rotary positions
    eps: float
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    tied: bool
    bos: int | None = None  # the token that begins every text


# So that presets can be counted before anything is downloaded.
KNOWN = {
    "hub:HuggingFaceTB/SmolLM2-135M": Shape(49152, 576, 30, 9, 3, 64, 1536, 1e5, 1e-5, False, False, False, True, 0),
    "hub:Qwen/Qwen2.5-0.5B": Shape(151936, 896, 24, 14, 2, 64, 4864, 1e6, 1e-6, True, False, False, True, 151643),
}


@cache
def find(name: str) -> Path:
    """A folder, or "hub:ORG/NAME" -> where its files are, once downloaded; ValueError."""
    kind, _, repository = name.partition(":")
    if kind != "hub":
        return Path(name).expanduser()
    from huggingface_hub import HfApi, snapshot_download  # late: who names no hub needs none

    files = ["config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        with suppress(FileNotFoundError):
            return Path(snapshot_download(repository, allow_patterns=files, local_files_only=True))
        HfApi().model_info(repository, timeout=8)  # fails at once where the download would try for long
        return Path(snapshot_download(repository, allow_patterns=files))
    except Exception as error:  # of many libraries
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        remedy = "connect to the network, or give its folder: --backbone=DIR"
        raise ValueError(f"backbone={name} could not be downloaded ({reason}); {remedy}") from None


@cache
def read_shape(name: str) -> Shape:
    """config.json of a folder, or of "hub:ORG/NAME" -> Shape; ValueError where it is no model that is known here."""
    if name in KNOWN:
        return KNOWN[name]
    path = find(name) / "config.json"
    if not path.is_file():
        kinds = {".gguf": "GGUF", ".bin": "a pickle", ".pt": "a pickle"}
        what = f"backbone={name} is {kinds.get(path.parent.suffix, 'no folder with a config.json')}"
        raise ValueError(f"{what}; give a folder with config.json and *.safetensors")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        kind = given.get("model_type")
        if kind not in ("llama", "qwen2"):
            raise ValueError(f"{name} has model_type = {kind!r}; give a model of type llama or qwen2")
        check_known(name, given)
        heads, width, bias = given["num_attention_heads"], given["hidden_size"], given.get("attention_bias", False)
        return Shape(
            vocab_size=given["vocab_size"],
            width=width,
            layers=given["num_hidden_layers"],
            heads=heads,
            kv_heads=given.get("num_key_value_heads") or heads,
            head_width=given.get("head_dim") or width // heads,
            inner=given["intermediate_size"],
            theta=float(given.get("rope_theta") or (given.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
            eps=given.get("rms_norm_eps", 1e-6),
            qkv_bias=bias or kind == "qwen2",
            out_bias=bias and kind == "llama",
            mlp_bias=given.get("mlp_bias", False),
            tied=given.get("tie_word_embeddings", False),
            bos=given.get("bos_token_id"),
        )
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        what = f"config.json cannot be understood ({type(error).__name__}: {error})"
        raise ValueError(f"{name}: {what}; give a folder that `save_pretrained` wrote") from None


def check_known(folder: str, given: dict):
    """ValueError names what a config.json asks for and this file does not do."""
    rope = given.get("rope_scaling") or given.get("rope_parameters") or {}
    known = {
        "hidden_act": given.get("hidden_act", "silu") == "silu",
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) == "default",
        "use_sliding_window": not given.get("use_sliding_window"),
        "layer_types": set(given.get("layer_types") or ()) <= {"full_attention"},
        "partial_rotary_factor": given.get("partial_rotary_factor", 1.0) == 1.0,
        "quantization_config": not given.get("quantization_config"),
    }
    for key in (key for key, fine in known.items() if not fine):
        what = f"{key} = {json.dumps(given.get(key) or rope)[:80]}"
        raise ValueError(f"{folder} has {what}, which is not supported; give another model")


def read_weights(folder: str, layers: int) -> dict[str, torch.Tensor]:
    """Embeddings, the first `layers` layers and, with all of them, the last norm, by the names of this file, in the
    format they are stored in; ValueError."""
    from safetensors import SafetensorError, safe_open  # late: who builds no backbone needs none

    shape, root = read_shape(folder), find(folder)
    index = root / "model.safetensors.index.json"
    try:
        files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    except (ValueError, KeyError, AttributeError, TypeError, OSError):
        raise ValueError(f"{index} is damaged; download the folder again") from None
    found = {}
    for name in sorted(files):
        if not (root / name).is_file():
            other = next((path.name for path in sorted(root.iterdir()) if path.suffix in (".bin", ".gguf", ".pt")), "")
            other = f" ({other} is not read: only safetensors are)" if other else ""
            raise ValueError(f"{folder}: {name} is missing{other}; give a folder with all of its *.safetensors")
        try:
            with safe_open(root / name, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (no dict)
                    part, number = (*key.removeprefix("model.").split("."), "")[:2]
                    if part != "layers" or int(number) < layers:
                        found[key.removeprefix("model.")] = file.get_tensor(key)
        except (SafetensorError, OSError, ValueError, IndexError) as error:
            raise ValueError(f"{root / name} cannot be read ({error}); download it again") from None
    try:
        return renamed(found, shape, layers)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} lacks tensors, or they do not fit ({error}); give one with all its parts") from None


def renamed(found: dict, shape: Shape, layers: int) -> dict[str, torch.Tensor]:
    """Tensors by the names of Hugging Face -> by those of this file, where queries, keys and values are one matrix, and
    so are the two of SwiGLU."""
    tensors = {"tokens": found["embed_tokens.weight"]}
    if layers == shape.layers:
        tensors["norm.weight"] = found["norm.weight"]
    parts = {"qkv": ("self_attn", "qkv"), "out": ("self_attn", "o"), "wi": ("mlp", ("gate", "up"))}
    parts["wo"] = "mlp", ("down",)
    biased = {"qkv": shape.qkv_bias, "out": shape.out_bias, "wi": shape.mlp_bias, "wo": shape.mlp_bias}
    for at in (f"layers.{i}." for i in range(layers)):
        tensors[f"{at}norm.weight"] = found[f"{at}input_layernorm.weight"]
        tensors[f"{at}norm_ffn.weight"] = found[f"{at}post_attention_layernorm.weight"]
        for name, (block, each) in parts.items():
            for kind in ("weight", "bias")[: 1 + biased[name]]:
                tensors[f"{at}{name}.{kind}"] = torch.cat([found[f"{at}{block}.{x}_proj.{kind}"] for x in each])
    return tensors


# ---------------------------------------------------------------------------------------------------------------------
# The model


class Linear(nn.Linear):
    """Computes in the number format of x, whatever that of its weights is."""

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class RMSNorm(nn.RMSNorm):
    def forward(self, x):
        precise = F.rms_norm(x.float(), self.normalized_shape, None, self.eps)
        return precise.to(x.dtype) * self.weight.to(x.dtype)


class Layer(nn.Module):
    """x -> attention -> SwiGLU -> x, pre-norm and residual."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, W, d = shape, shape.width, shape.head_width
        self.norm, self.norm_ffn = RMSNorm(W, shape.eps), RMSNorm(W, shape.eps)
        self.qkv = Linear(W, (shape.heads + 2 * shape.kv_heads) * d, bias=shape.qkv_bias)
        self.out = Linear(shape.heads * d, W, bias=shape.out_bias)
        self.wi = Linear(W, 2 * shape.inner, bias=shape.mlp_bias)
        self.wo = Linear(shape.inner, W, bias=shape.mlp_bias)

    def forward(self, x, pos, mask, causal, past=None):
        h, g = self.shape.heads, self.shape.kv_heads
        heads = self.qkv(self.norm(x)).unflatten(-1, (h + 2 * g, -1)).transpose(1, 2)  # [B, h + 2 g, S, d]
        q, k, v = heads.split((h, g, g), 1)
        q, k = rotate(q, pos, self.shape.theta), rotate(k, pos, self.shape.theta)
        if past is not None:
            k, v = append_past(past, k, v)
        k, v = (t.repeat_interleave(h // g, 1) for t in (k, v))
        x = x + self.out(attention(q, k, v, mask, causal=causal and mask is None and (past is None or q.shape[2] > 1)))
        a, b = self.wi(self.norm_ffn(x)).chunk(2, -1)
        return x + self.wo(F.silu(a) * b)


class LanguageModel(nn.Module):
    """The first `layers` layers (0: all, and the norm behind them)."""

    def __init__(self, shape: Shape, layers: int = 0):
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList(Layer(shape) for _ in range(layers or shape.layers))
        self.norm = RMSNorm(shape.width, shape.eps) if len(self.layers) == shape.layers else None

    def forward(self, x, pos=None, mask=None, causal=True, pasts=None, layers=0):
        """x [B, S, W] embeddings, pos [1|B, S] (None: 0 ... S-1), mask [B, S] (True: keep), layers: only the first so
        many (0: all) -> the states before the first layer and behind each, [B, S, W]; that behind the last of all is
        normalised. pasts: of each layer a list, empty or with the keys and values of earlier positions, to which those
        of x are added. Under autocast all is in its number format."""
        S, device = x.shape[1], autocast_device(x)
        if torch.is_autocast_enabled(device):  # whose casts of every weight cost more than one
            with torch.autocast(device, enabled=False):
                return self(x.to(torch.get_autocast_dtype(device)), pos, mask, causal, pasts, layers)
        pos = torch.arange(S, device=x.device)[None] if pos is None else pos
        if mask is not None:
            mask = mask[:, None, None, :]
            if causal:
                mask = mask & torch.ones(S, S, dtype=torch.bool, device=x.device).tril()
            mask = mask | torch.eye(S, dtype=torch.bool, device=x.device)  # no row without a key: padding sees itself
        states = [x]
        for i, layer in enumerate(self.layers[: layers or len(self.layers)]):
            states.append(layer(states[-1], pos, mask, causal, pasts[i] if pasts else None))
        if self.norm is not None and len(states) == self.shape.layers + 1:
            states[-1] = self.norm(states[-1])
        return states
