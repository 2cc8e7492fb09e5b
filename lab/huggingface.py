"""
A Hugging Face encoder (BERT, ModernBERT, MiniLM, ...) in the place of a run, so that one code judges both: a text has
one concept, the mean over its tokens' last states.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from encoders import AS_CONFIGURED
from heads import mean_over
from lab.configurator import UserError
from lab.dataset import clean
from lab.distributed import pick_device
from lab.runs import LoadedRun, one_or_many
from model import ModelConfig


class ReferenceModel(nn.Module):
    """What judges use of a ConceptModel."""

    decoder = token_vectors = None
    frozen = False

    def __init__(self, model, mask_id: int, length: int):
        super().__init__()
        self.model, self.mask_id = model, mask_id
        given = model.config
        self.config = ModelConfig(
            hidden=given.hidden_size,
            heads=given.num_attention_heads,
            layers=given.num_hidden_layers,
            intermediate=getattr(given, "intermediate_size", 4 * given.hidden_size),
            vocab_size=given.vocab_size,
            max_length=length,
            concepts=1,
            decoder="none",
        )

    options = AS_CONFIGURED

    @property
    def tokens(self):
        return self.model.get_input_embeddings()

    def encode(self, ids, pos=None, mask=None):
        """ids [B, S], mask [B, S] (True: keep) -> [B, 1, H]."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return mean_over(states, mask)[:, None]

    def embed(self, ids, mask=None):
        return self.encode(ids, mask=mask)[:, 0]

    def twin(self, seed: int) -> "ReferenceModel":
        """The same architecture, untrained."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = type(self.model)(self.model.config)
        return ReferenceModel(model, self.mask_id, self.config.max_length).to(self.tokens.weight.device).eval()


class ReferenceRun(LoadedRun):
    """Its texts have the tokenizer's own special tokens around them."""

    added = 2, 3

    @one_or_many
    def encode_texts(self, texts):
        texts = [clean(text) for text in texts]
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def wrap(self, a, b=None):
        begin, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        return [begin, *a, end] if b is None else [begin, *a, end, *b, end]


def is_reference(path) -> bool:
    """A folder as `save_pretrained` writes it?"""
    try:
        return "model_type" in json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def load_reference(path, device: str = "auto") -> ReferenceRun:
    """Folder -> ReferenceRun, in evaluation mode; nothing is downloaded, and no code of the folder's is run."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise UserError(f"{path} is a Hugging Face checkpoint; pip install transformers to judge it") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype=torch.float32)
        if None in (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id):
            raise ValueError("its tokenizer has no [CLS], [SEP] or padding")
        positions = getattr(model.config, "max_position_embeddings", 512)
        length = min(512, positions - (2 if model.config.model_type == "roberta" else 0))
        reference = ReferenceModel(model, tokenizer.mask_token_id or 0, length)
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} cannot be loaded ({reason}); give a folder with model.safetensors and tokenizer"
        ) from None
    digest = hashlib.sha256()
    for file in sorted(file for file in Path(path).iterdir() if file.is_file()):
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    config = {"run_id": Path(path).resolve().name, "hidden": reference.config.hidden, "pad_id": tokenizer.pad_token_id}
    config |= {"lengths": (length,), "tokenizer_hash": digest.hexdigest(), "remove_directions": 0, "whitening": 0.0}
    return ReferenceRun(reference.to(pick_device(device)).eval(), tokenizer, config, step=0)
