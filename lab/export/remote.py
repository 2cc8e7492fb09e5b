"""The classes by which `transformers` and `sentence-transformers` load an exported model. export.py writes this file
and what it needs of ours as one file into the exported folder; without it nothing here is used."""

from dataclasses import fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import cached_file

from encoders import Options
from lab.data.tokenizers import encode_texts, pad_batch
from model import ConceptModel, ModelConfig, exported_backbone


class ConceptConfig(transformers.PretrainedConfig):
    """nanoconcept: the config.json of the run."""

    model_type = "nanoconcept"

    def __init__(self, nanoconcept=None, **keys):
        super().__init__(**keys)
        self.nanoconcept = nanoconcept or {}


class ConceptEncoder(transformers.PreTrainedModel):
    """Token ids -> concepts (`last_hidden_state` [B, C, H]) and one vector a text (`pooler_output` [B, H]): the mean of
    its concepts, less what the run's validation text has in common where the run was trained to give that."""

    config_class = ConceptConfig
    # What predicts text is in the file, for nanoconcept itself, and is not loaded.
    _keys_to_ignore_on_load_unexpected = [r"^model\.(decoder|norm|narrow|head|predictor|backbone)\."]

    def __init__(self, config):
        super().__init__(config)
        run = config.nanoconcept
        pretrained = None
        if "backbone_shape" in run:
            keys = (
                run[key] for key in ("backbone", "backbone_shape", "backbone_layers", "vocab_size", "backbone_unit")
            )
            pretrained = exported_backbone(*keys)
        shape = {f.name: run[f.name] for f in fields(ModelConfig) if f.name in run}
        shape = ModelConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in shape.items()}, predicts=("none",))
        self.model = ConceptModel(shape, run["mask_id"], shared=pretrained)
        self.longest, self.empty = max(run["lengths"]), run["sep_id"]
        self.model.options = Options(**run["options"])
        self.register_buffer("mean", torch.zeros(shape.hidden))
        self.register_buffer("matrix", torch.eye(shape.hidden))
        self.post_init()

    def _init_weights(self, module):
        """The constructor has drawn them."""

    def forward(self, input_ids, attention_mask=None, **_):
        """input_ids [B, S], attention_mask [B, S], padding behind. Of a text longer than the longest row the vector is
        the mean of its parts by tokens; its concepts are those of the first."""
        ids = input_ids
        mask = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if not ids.shape[1]:
            ids, mask = ids.new_zeros(len(ids), 1), mask.new_zeros(len(ids), 1)
        none = ~mask.any(1, keepdim=True) & (torch.arange(ids.shape[1], device=ids.device) == 0)
        ids, mask = torch.where(none, self.empty, ids), mask | none  # an empty text is one separator
        first, total = None, 0
        for start in range(0, ids.shape[1], self.longest):
            part, keep = (x[:, start : start + self.longest] for x in (ids, mask))
            there = keep.any(1)
            concepts = self.model.encode(part[there], mask=keep[there])
            first = concepts if first is None else first
            weighted = self.model.pool(concepts) * keep[there].sum(1, keepdim=True)
            total = total + torch.zeros_like(first[:, 0]).masked_scatter(there[:, None], weighted)
        vectors = (total / mask.sum(1, keepdim=True) - self.mean) @ self.matrix
        return BaseModelOutputWithPooling(last_hidden_state=first, pooler_output=vectors)


class ConceptEmbedder(nn.Module):
    """The one module of a SentenceTransformer: texts -> `sentence_embedding`; and of a MultiVectorEncoder (version 6):
    the concepts, of norm 1, as `token_embeddings`. Its "meanmaxsim" in both directions, averaged, is our MaxSim."""

    max_seq_length = None  # tokens that are read of a text; None: all, in parts
    save_in_root = True

    def __init__(self, model: ConceptEncoder, tokenizer: Tokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, path, subfolder="", token=None, cache_folder=None, revision=None, local_files_only=False, **more):
        where = {"token": token, "cache_dir": cache_folder, "revision": revision, "local_files_only": local_files_only}
        model = ConceptEncoder.from_pretrained(path, **where, **(more.get("model_kwargs") or {}))
        return cls(model, Tokenizer.from_file(cached_file(path, "tokenizer.json", **where)))

    def save(self, path, *_, **__):
        self.model.save_pretrained(path)
        self.tokenizer.save(str(Path(path) / "tokenizer.json"))

    def tokenize(self, texts, prompt=None, **_):
        self.tokenizer.encode_special_tokens = True  # which a copy of it in another process has forgotten
        rows = encode_texts(self.tokenizer, [(prompt or "") + text for text in texts])
        ids, mask = pad_batch([row[: self.max_seq_length] for row in rows], self.model.config.nanoconcept["pad_id"])
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask).long()}

    preprocess = tokenize

    def forward(self, features, **_):
        out = self.model(features["input_ids"], features["attention_mask"])
        features["sentence_embedding"] = out.pooler_output
        features["token_embeddings"] = F.normalize(out.last_hidden_state, dim=-1)
        features["attention_mask"] = features["attention_mask"].new_ones(out.last_hidden_state.shape[:2])
        return features

    def get_embedding_dimension(self):
        return self.model.mean.shape[0]

    get_sentence_embedding_dimension = get_embedding_dimension
