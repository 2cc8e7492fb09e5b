"""
Checkpoints of the original project as run folders of ours: the same logits, from the same weights.

Its models are a folder with config.json, model.safetensors or pytorch_model.bin, and tokenizer.json. Which model it is
stands in the names of its tensors; what they become is said by NAMES. Text is then read as ours is: without its [CLS].
"""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from backbone import find
from lab.configurator import UserError, show
from lab.data.tokenizers import load_tokenizer, special_ids, tokenizer_hash
from lab.files import reading, write_atomic
from lab.training.run_folder import OLDER, commit, run_id
from model import ConceptModel, ModelConfig
from objectives import ObjectiveConfig, Objectives

NAMES = {  # theirs -> ours; * is an index, or "weight" or "bias"
    "encoder.token_embeddings.weight": "tokens.weight",
    "encoder.token_position_embeddings.weight": "positions.weight",
    "encoder.token_projection.*": "encoder.widen.{}",
    "encoder.concept_embeddings.weight": "encoder.slots.content",
    "encoder.concept_position_emb.weight": "encoder.slots.positions",
    "encoder.layers.*.pre_cross_attn_norm.*": "encoder.layers.{}.cross.norm.{}",
    "encoder.layers.*.pre_self_attn_norm.*": "encoder.layers.{}.self_attention.norm.{}",
    "encoder.layers.*.pre_reverse_cross_norm.*": "encoder.layers.{}.reverse.norm.{}",
    "encoder.layers.*.pre_ff_norm.*": "encoder.layers.{}.ffn.norm.{}",
    "encoder.layers.*.Wi.*": "encoder.layers.{}.ffn.wi.{}",
    "encoder.layers.*.Wo.*": "encoder.layers.{}.ffn.wo.{}",
    "encoder.output_layer_norm.*": "encoder.norm.{}",
    "lm_head.weight": "head.weight",
    # weighted
    "concept_weights": "decoder.mixture.weight",
    "pre_lm_projection.0.*": "decoder.norm.{}",
    "pre_lm_projection.1.*": "decoder.dense.{}",
    # perceiver, posonly, recursive
    "decoder_query_embeddings.weight": "decoder.positions.weight",
    "decoder_input_projection.*": "decoder.widen.{}",
    "decoder_norm.*": "decoder.cross.0.norm.{}",
    "post_cross_norm.*": "decoder.ffns.0.norm.{}",
    "decoder_ffn.0.*": "decoder.ffns.0.wi.{}",
    "decoder_ffn.2.*": "decoder.ffns.0.wo.{}",
    # diffusion
    "decoder.token_embed.weight": "decoder.tokens.weight",
    "decoder.pos_embed.weight": "decoder.positions.weight",
    "decoder.token_proj.*": "decoder.widen.{}",
    "decoder.t_embed.proj.*": "decoder.time.{}",
    "decoder.layers.*.norm_cross.*": "decoder.cross.{}.norm.{}",
    "decoder.layers.*.norm_ff.*": "decoder.ffns.{}.norm.{}",
    "decoder.layers.*.ff_in.*": "decoder.ffns.{}.wi.{}",
    "decoder.layers.*.ff_out.*": "decoder.ffns.{}.wo.{}",
    "decoder.layers.*.adaLN.*": "decoder.modulations.{}.{}",
    "decoder.out_norm.*": "decoder.norm.{}",
}
ATTENTIONS = {  # nn.MultiheadAttention: of queries, keys and values in one matrix -> ours, which splits queries off
    "encoder.layers.*.concept_token_attn": "encoder.layers.{}.cross",
    "encoder.layers.*.token_concept_attn": "encoder.layers.{}.reverse",
    "encoder.layers.*.concept_self_attn": "encoder.layers.{}.self_attention",
    "decoder_cross_attn": "decoder.cross.0",
    "decoder.layers.*.cross_attn": "decoder.cross.{}",
}


def name_of(theirs: str, names: dict) -> str | None:
    """What a name becomes; None where it is unknown."""
    for pattern, ours in names.items():
        if match := re.fullmatch(re.escape(pattern).replace(r"\*", "(.+?)"), theirs):
            return ours.format(*match.groups())
    return None


def translate(theirs: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Their tensors -> (ours, names that became nothing)."""
    ours, left = {}, []
    for name, tensor in theirs.items():
        name = name.replace("encoder.shared_layer.", "encoder.layers.0.")  # the recursive encoder's one layer
        module, _, kind = name.rpartition(".")
        if found := name_of(name, NAMES):
            ours[found] = tensor
        elif kind.startswith("in_proj_") and (found := name_of(module, ATTENTIONS)):
            kind, H = kind.removeprefix("in_proj_"), len(tensor) // 3
            if found.endswith("self_attention"):
                ours[f"{found}.qkv.{kind}"] = tensor
            else:
                ours |= {f"{found}.q.{kind}": tensor[:H], f"{found}.kv.{kind}": tensor[H:]}
        elif module.endswith(".out_proj") and (found := name_of(module.removesuffix(".out_proj"), ATTENTIONS)):
            ours[f"{found}.out.{kind}"] = tensor
        else:
            left.append(name)
    return {name: tensor.float().contiguous() for name, tensor in ours.items()}, left


def shape_of(given: dict, tensors: dict[str, Tensor]) -> tuple[ModelConfig, str]:
    """(the model, its objective) that their config.json and our names of their tensors say."""
    decoder = "input"
    if "decoder.mixture.weight" in tensors:
        decoder = "weighted"
    elif "decoder.tokens.weight" in tensors:
        decoder = "diffusion"
    elif given.get("decoder_posonly"):
        decoder = "posonly"
    encoder = "two_way" if "encoder.layers.0.reverse.norm.weight" in tensors else "perceiver"
    layers = len({name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")})
    recursive = layers == 1 and "num_iterations" in given
    table, head = tensors["tokens.weight"], tensors.get("head.weight")
    V, T = table.shape
    C, H = tensors["encoder.slots.content"].shape
    config = ModelConfig(
        encoder="recursive" if recursive else encoder,
        decoder=decoder,
        layers=layers,
        iterations=(given["num_iterations"] or given["num_hidden_layers"]) if recursive else ModelConfig.iterations,
        decoder_layers=len({name for name in tensors if re.fullmatch(r"decoder\.cross\.\d+\.q\.weight", name)}) or 1,
        hidden=H,
        heads=given["num_attention_heads"],
        intermediate=given["intermediate_size"],
        concepts=C,
        token_dim=0 if T == H else T,
        concept_position=given.get("concept_position_type", "none"),
        max_length=len(tensors["positions.weight"]),
        dropout=given.get("hidden_dropout_prob", 0.1),
        tied=decoder != "weighted" and T == H and (head is None or torch.equal(head, table)),
        init="gpt2",
        vocab_size=V,
        original_structure=True,
        original_exact=True,
    )
    return config, {"posonly": "tsdae", "diffusion": "diffusion"}.get(decoder, "mlm")


def read_original(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """Their config.json and tensors; UserError."""
    with reading(folder / "config.json", "give a folder of the original project"):
        given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(given, dict) or "concept_num" not in given:
            raise ValueError("it has no concept_num")
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = folder / name
        if path.is_file():
            with reading(path, "download it again"):
                if path.suffix == ".safetensors":
                    return given, load_file(path)
                return given, torch.load(path, map_location="cpu", weights_only=True)
    raise UserError(f"{show(folder)} has neither model.safetensors nor pytorch_model.bin; give a folder that has one")


def import_original(source: str, target: Path) -> str:
    """A folder of the original project, or hub:ORG/NAME -> the run folder `target`, which load_run reads; returns what
    became of the tensors, in words. UserError; nothing is written then."""
    try:
        folder = find(source)
    except ValueError as error:
        raise UserError(str(error).replace("backbone=", "").replace("--backbone=", "--from_original=")) from None
    if (target / "config.json").exists():
        raise UserError(f"{show(target)} holds a run already; give another --to=DIR")
    given, theirs = read_original(folder)
    tensors, left = translate(theirs)
    try:
        shape, objective = shape_of(given, tensors)
        objective = ObjectiveConfig(objective=objective)
        shape.predicts = Objectives(objective).predicts
        model = ConceptModel(shape)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{show(folder)} is no model of the original project ({error}); give another folder") from None
    own = model.state_dict()
    if shape.tied:
        tensors.pop("head.weight", None)
    last = f"encoder.layers.{shape.layers - 1}.reverse."  # what it computes is thrown away
    left += [name for name in tensors if name not in own and name.startswith(last)]
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(last)}
    wrong = sorted(n for n in own.keys() | tensors.keys() if n not in tensors or n not in own)
    wrong += sorted(n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape)
    if wrong:
        missing = [name for name in wrong if name not in tensors]
        what = f"{len(wrong)} tensors do not fit ({', '.join(wrong[:4])}), {len(missing)} of them are missing"
        raise UserError(f"{show(folder)}: {what}; give a checkpoint of a pre-training model")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    special = special_ids(tokenizer)
    config = OLDER | asdict(shape) | asdict(objective) | {"lengths": [shape.max_length], "predicts": None}
    config |= {"run_id": run_id("original", shape), "preset": "original", "commit": commit()}
    config |= {"mask_id": special["mask"], "pad_id": special["pad"], "imported_from": folder.resolve().name}
    config |= {"tokenizer_hash": tokenizer_hash(folder / "tokenizer.json"), "parameters": model.num_parameters()}
    del config["predicts"]
    (target / "ckpt_0").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "tokenizer.json", target / "tokenizer.json")
    save_file(tensors, target / "ckpt_0" / "model.safetensors")
    write_atomic(target / "latest", "ckpt_0\n")
    write_atomic(target / "config.json", json.dumps(config, indent=1) + "\n")  # last: now it is a run
    lines = [f"{len(tensors)} tensors of {len(theirs)} taken: {shape.encoder}, decoder {shape.decoder}"]
    lines += [f"left over, {len(left)}: {', '.join(sorted(left))}"] if left else []
    return "\n".join(lines)
