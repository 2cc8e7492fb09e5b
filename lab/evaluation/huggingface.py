"""
A Hugging Face encoder (BERT, ModernBERT, MiniLM, ...) in the place of a run, so that one code judges both: a text has
one concept, the mean over its tokens' last states.

What stands around a text, between two and which segment each is in is asked of the tokenizer. A token in segment s is
written as id + s V, V the size of the vocabulary, so that a row of ids is all that anyone need carry.
"""

import hashlib
import inspect
import json
from pathlib import Path

import torch
from torch import nn

from encoders import AS_CONFIGURED, Options
from heads import mean_over
from lab.configurator import UserError
from lab.data.tokenizers import clean
from lab.distributed import pick_device
from lab.files import reading
from lab.runs import LoadedRun, load_run, one_or_many
from model import ModelConfig


class ReferenceModel(nn.Module):
    """What judges use of a ConceptModel."""

    decoder = token_vectors = backbone = None
    frozen = fixed_backbone = False

    def __init__(self, model, mask_id: int, length: int, segments: bool):
        """length: the most tokens of a text; segments: the model is told them."""
        super().__init__()
        self.model, self.mask_id, self.segments = model, mask_id, segments
        given = model.config
        self.config = ModelConfig(
            hidden=given.hidden_size,
            heads=given.num_attention_heads,
            layers=given.num_hidden_layers,
            intermediate=getattr(given, "intermediate_size", 4 * given.hidden_size),
            vocab_size=given.vocab_size,
            max_length=length,
            concepts=1,
            predicts=("none",),
        )

    options = AS_CONFIGURED

    @property
    def tokens(self):
        return self.model.get_input_embeddings()

    def encode(self, ids, pos=None, mask=None):
        """ids [B, S] with their segments, mask [B, S] (True: keep) -> [B, 1, H]."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        ids, segments = ids % self.tokens.num_embeddings, ids // self.tokens.num_embeddings
        more = {"token_type_ids": segments} if self.segments else {}
        states = self.model(input_ids=ids, attention_mask=mask.long(), **more).last_hidden_state
        return mean_over(states, mask)[:, None]

    def embed(self, ids, mask=None):
        return self.encode(ids, mask=mask)[:, 0]

    def twin(self, seed: int) -> "ReferenceModel":
        """The same architecture, untrained."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = type(self.model)(self.model.config)
        model = ReferenceModel(model, self.mask_id, self.config.max_length, self.segments)
        return model.to(self.tokens.weight.device).eval()


class ReferenceRun(LoadedRun):
    """Its texts have the tokenizer's own special tokens around them."""

    most_twins = 1  # of many parameters each

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.around = [self.surroundings(*texts) for texts in (("a",), ("a", "b"))]
        self.added = tuple(sum(map(len, between)) for between, _ in self.around)

    @one_or_many
    def encode_texts(self, texts):
        texts = [clean(text) for text in texts]
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def surroundings(self, *texts: str) -> tuple[list[list[int]], list[int]]:
        """(what the tokenizer puts before, between and behind these texts, what is to be added to each one's ids)."""
        whole = self.tokenizer(*texts)
        ids, segments = whole["input_ids"], whole.get("token_type_ids", [0] * len(whole["input_ids"]))
        more = [segment * self.model.tokens.num_embeddings for segment in segments]
        between, shifts, at = [], [], 0
        for own in self.encode_texts(texts):
            start = next(i for i in range(at, len(ids)) if own and ids[i : i + len(own)] == own)
            between.append([ids[i] + more[i] for i in range(at, start)])
            shifts.append(more[start])
            at = start + len(own)
        return [*between, [ids[i] + more[i] for i in range(at, len(ids))]], shifts

    def wrap(self, a, b=None):
        (first, *between), shifts = self.around[b is not None]
        row = [*first]
        for ids, shift, after in zip((a, b), shifts, between, strict=False):
            row += [token + shift for token in ids] + after
        return row or [self.config["pad_id"]]  # an empty text


def is_reference(path) -> bool:
    """A folder as `save_pretrained` writes it, of another model than ours?"""
    try:
        return json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["model_type"] != "nanoconcept"
    except (OSError, LookupError, ValueError, TypeError):
        return False


def load(path, ckpt: str = "latest", device: str = "auto", options: Options = AS_CONFIGURED) -> LoadedRun:
    """A run folder, a folder that export.py wrote, or one with a Hugging Face encoder, which has no checkpoints and no
    options."""
    return load_reference(path, device) if is_reference(path) else load_run(path, ckpt, device, options)


def load_reference(path, device: str = "auto") -> ReferenceRun:
    """Folder -> ReferenceRun, in evaluation mode; nothing is downloaded, and no code of the folder's is run."""
    try:
        import transformers
    except ImportError:
        raise UserError(f"{path} is a Hugging Face checkpoint; pip install transformers to judge it") from None
    for file in Path(path).glob("*.safetensors"):
        with reading(file, "give another folder"):  # the library says of what may not be read that it is not there
            pass
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
        positions = getattr(model.config, "max_position_embeddings", -1)
        positions = 512 if positions < 0 else positions  # without a limit
        for name, table in model.named_modules():  # RoBERTa and its kin count from behind the padding
            if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
                positions -= table.padding_idx + 1
        length = min(512, positions)
        told = "token_type_ids" in tokenizer("a") and "token_type_ids" in inspect.signature(model.forward).parameters
        reference = ReferenceModel(model, tokenizer.mask_token_id or 0, length, told).to(pick_device(device)).eval()
        pad = tokenizer.pad_token_id or 0  # masked, whatever it is
        config = {"run_id": Path(path).resolve().name, "hidden": reference.config.hidden, "pad_id": pad}
        config |= {"lengths": (length,), "remove_directions": 0, "whitening": 0.0}
        run = ReferenceRun(reference, tokenizer, config, 0)
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} cannot be loaded ({reason}); give a folder with model.safetensors and tokenizer"
        ) from None
    digest = hashlib.sha256(transformers.__version__.encode())
    for file in sorted(file for file in Path(path).iterdir() if file.is_file()):
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    config["tokenizer_hash"] = digest.hexdigest()
    return run
