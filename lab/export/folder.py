"""The exported folder: weights, configuration, tokenizer and remote code, by which other libraries load a run, and with
which it stays a run."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from decoders import DECODERS
from lab.configurator import UserError, warn
from lab.data.tokenizers import encode_texts, special_ids
from lab.export.flat import flatten
from lab.runs import LoadedRun
from lab.training.run_folder import ROWS, TOKEN_VECTORS

CODE = "modeling_nanoconcept"
PATHS = "data_dir", "out_dir", "init_from", "frozen_decoder"  # of this machine, in a run's configuration
SPACE = (
    r"[\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"  # as str.isspace
)
PROBES = [
    "",
    " ",
    "One text. Another!  A third?\nAnd  two lines\r\n\r\n of it. ",
    "\u3000a\x1fb.\x85C [MASK] [PAD].",
    "...a",
]


def isotropic(run: LoadedRun) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean [H], matrix [H, H]) in float32, by which `embed` maps pooled concepts."""
    if run.isotropic:
        mean, matrix = run.fitted()
        return mean.float(), matrix.float()
    hidden = run.config["hidden"]
    return torch.zeros(hidden), torch.eye(hidden)


def configuration(run: LoadedRun) -> dict:
    """config.json: ours as the run has it, under "nanoconcept", and what other libraries ask for."""
    own = {key: value for key, value in run.config.items() if key != "segments"}
    own |= {key: "" if key.endswith("_dir") else Path(own[key]).name for key in PATHS if own.get(key)}
    if (pretrained := run.model.backbone) is not None:
        name = own["backbone"]
        own["backbone"] = name if name.startswith("hub:") else f"exported:{Path(name).name.removeprefix('exported:')}"
        own |= {"backbone_shape": asdict(pretrained.shape), "backbone_unit": run.model.unit}
    own |= {"step": run.step, "options": run.model.options._asdict(), "sep_id": special_ids(run.tokenizer)["sep"]}
    return {
        "model_type": "nanoconcept",
        # The second by sentence-transformers alone: without it a MultiVectorEncoder would append a random projection.
        "architectures": ["ConceptEncoder", "HF_ColBERT"],
        "auto_map": {"AutoConfig": f"{CODE}.ConceptConfig", "AutoModel": f"{CODE}.ConceptEncoder"},
        "dtype": "float32",
        "hidden_size": own["hidden"],
        "vocab_size": own["vocab_size"],
        "nanoconcept": own,
    }


def code(run: LoadedRun) -> str:
    """The remote code: lab/export/remote.py, and of our files what it needs for this run."""
    keep = [(part.__module__, part.__name__) for part in (type(run.model.encoder), DECODERS[run.config["decoder"]])]
    try:
        return flatten("lab.export.remote", [(module.removeprefix("nanoconcept."), name) for module, name in keep])
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"encoder={run.config['encoder']} cannot be exported ({error}); keep its run folder") from None


def split_by_itself(given: str) -> str:
    """tokenizer.json with our cutting into sentences and the space before each as its own first step, so that it alone
    gives the ids of `encode_texts`; without what it would put around a text."""
    content = json.loads(given)
    ends = rf"{SPACE}*[\r\n]{SPACE}*|(?<=[.!?]){SPACE}+"
    steps = [
        {"type": "Replace", "pattern": {"Regex": ends}, "content": " "},
        {"type": "Replace", "pattern": {"Regex": rf"\A{SPACE}+|{SPACE}+\z"}, "content": ""},
        {"type": "Prepend", "prepend": " "},
    ]
    old = [content["normalizer"]] if content.get("normalizer") else []
    content |= {"normalizer": {"type": "Sequence", "normalizers": steps + old}, "post_processor": None}
    return json.dumps(content, ensure_ascii=False)


def tokenizer_file(run: LoadedRun) -> tuple[str, bool]:
    """(tokenizer.json, does it by itself give the ids that the model was trained on?)"""
    given = run.tokenizer.to_str()
    shown = [] if run.rows is None else [run.tokenizer.decode(row.tolist()) for row in run.rows[:200].long()]
    texts = [*PROBES, *shown, *(f"{a}\n{b}" for a, b in zip(shown[::2], shown[1::2], strict=False))]
    try:
        found = Tokenizer.from_str(changed := split_by_itself(given))
        found.encode_special_tokens = True
        alone = [found.encode(text).ids or encode_texts(run.tokenizer, [""])[0] for text in texts]
        if alone == encode_texts(run.tokenizer, texts) == encode_texts(found, texts):
            return changed, True
    except Exception as error:  # of a tokenizer of another kind
        warn(f"the tokenizer cannot cut sentences by itself ({' '.join(str(error).split())[:100]})")
    return given, False


def tokenizer_config(run: LoadedRun) -> dict:
    names = {role: run.tokenizer.id_to_token(i) for role, i in special_ids(run.tokenizer).items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": names[role] for role in ("pad", "mask", "sep")},
        "split_special_tokens": True,  # [MASK] in a text is text
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
    }


def write_model(run: LoadedRun, folder: Path, sentence_transformers: bool) -> bool:
    """Writes what `transformers` and, if asked, `sentence-transformers` load -> whether AutoTokenizer gives the run's
    ids."""
    mean, matrix = isotropic(run)
    tensors = {f"model.{name}": tensor.cpu().contiguous() for name, tensor in run.model.state_dict().items()}
    save_file(tensors | {"mean": mean, "matrix": matrix}, folder / "model.safetensors", {"format": "pt"})
    for name, tensor in ((ROWS, run.rows), (TOKEN_VECTORS, run.model.token_vectors)):
        if tensor is not None:
            save_file({"data": tensor.cpu().contiguous()}, folder / name)
    tokenizer, alone = tokenizer_file(run)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / f"{CODE}.py").write_text(code(run), encoding="utf-8")
    files = {"config.json": configuration(run), "tokenizer_config.json": tokenizer_config(run)}
    if sentence_transformers:
        files["modules.json"] = [{"idx": 0, "name": "0", "path": "", "type": f"{CODE}.ConceptEmbedder"}]
        files["config_sentence_transformers.json"] = {"prompts": {}, "default_prompt_name": None}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return alone


def difference(run: LoadedRun, folder: Path, alone: bool) -> float:
    """The largest difference of a value of `embed` and of what `transformers` makes of the folder, on a few texts."""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, local_files_only=True).eval()
    texts = [probe for probe in PROBES if re.search(r"\w", probe)]
    if not alone:
        rows = run.encode_texts(texts)
        given = [{"input_ids": torch.tensor([row])} for row in rows]
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
        given = [tokenizer(texts, return_tensors="pt", padding=True)]
    with torch.no_grad():
        vectors = torch.cat([model(**one).pooler_output for one in given])
    return (vectors - run.embed(texts)).abs().max().item()
