"""The run folder: configuration, checkpoints, metrics; and `load_run`, from it back to a model that embeds text."""

from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

import geometry
from encoders import AS_CONFIGURED, ENCODERS, Options
from lab.command import check_finite
from lab.configurator import PathStr, UserError, convert, fields_of, warn
from lab.data import tokenizers
from lab.data.corpus import Corpus
from lab.data.tokenizers import load_tokenizer, pad_batch, special_ids
from lab.distributed import exact_matmul, pick_device
from lab.sources import weights
from lab.training.run_folder import ROWS, TOKEN_VECTORS, RunFolder, check_removed, completed, load_tensors, load_weights
from model import PRETRAINED, ConceptModel, ModelConfig, exported_backbone
from objectives import Bounds, ObjectiveConfig, Objectives, check_bounds

ROOT = Path(__file__).resolve().parent.parent

SENTENCE, FEWEST = (6, 48), 100  # tokens of a held-out sentence; with fewer sentences the rows of the run are taken

# How vectors of texts are adapted to sentences of the texts' own kind: this many first principal directions are removed
# (Mu & Viswanath, arXiv:1702.01417), the others scaled by sigma^-p. One choice for all sets, made on dev: docs/LOG.md.
ADAPTED = {"model": (1, 0.0), "static": (2, 0.0)}  # of a model; of counts and means of token vectors

# ---------------------------------------------------------------------------------------------------------------------
# from a run folder back to a model


def one_or_many(method):
    """A method of a list of texts, for one text as well: a str gives the one result."""

    @wraps(method)
    def either(self, texts, *arguments, **options):
        if isinstance(texts, str):
            return method(self, [texts], *arguments, **options)[0]
        return method(self, list(texts), *arguments, **options)

    return either


class LoadedRun:
    """A trained model with its tokenizer; `embed` is the one path from text to vectors."""

    def __init__(self, model: ConceptModel, tokenizer, config: dict, step: int, rows: Tensor | None = None):
        """rows [n, N]: ids of the validation text, on which remove_directions and whitening are fitted."""
        self.model, self.tokenizer, self.config, self.step, self.rows = model, tokenizer, config, step, rows
        self.device = next(model.parameters()).device
        self.max_length = max(config["lengths"])
        self.warned = False
        self.fit = None  # (settings, what `fitted` made of them)

    @one_or_many
    def encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, as training encoded it; never empty."""
        return tokenizers.encode_texts(self.tokenizer, texts)

    most_twins = 5  # untrained models that stand beside it
    added = 0, 1  # tokens that `wrap` adds to one text, to a pair

    def wrap(self, a: list[int], b: list[int] | None = None) -> list[int]:
        """The ids of a text, or of a pair that is read as one text, as the model reads them."""
        return a if b is None else [*a, special_ids(self.tokenizer)["sep"], *b]

    @one_or_many
    def embed(
        self,
        texts: list[str],
        batch_tokens: int = 16384,
        adapt_to: list[str] | None = None,
        convert_to_numpy: bool = False,
        by_sentence: bool = False,
    ) -> Tensor | np.ndarray:
        """
        list of n strings -> float32 [n, hidden] on the CPU: each text's concepts pooled; one string -> [hidden]. A text
        longer than max(lengths) is cut into chunks, its vector is their token-weighted mean.
        convert_to_numpy: an array in place of a tensor. by_sentence: see `chunks`.
        adapt_to: sentences of the kind of text that is compared, thousands if there are; vectors lose what these have
        in common (ADAPTED); UserError where they are too few. Without it, and where config has remove_directions or
        whitening, geometry.isotropic is applied, fitted on the training corpus's validation rows.
        """
        vectors = self.pooled(texts, batch_tokens, by_sentence)
        if adapt_to is not None:
            if isinstance(adapt_to, str) or len(adapt_to) < 2:
                raise UserError("adapt_to is a list of sentences, best of thousands; leave it out if there are none")
            mean, matrix = geometry.isotropic(self.pooled(list(adapt_to), batch_tokens), *ADAPTED["model"])
            vectors = (vectors - mean) @ matrix
        elif self.isotropic:
            mean, matrix = self.fitted()
            vectors = (vectors - mean) @ matrix
        return vectors.float().numpy() if convert_to_numpy else vectors.float()

    @one_or_many
    def encode(self, texts: list[str], convert_to_numpy: bool = True, normalize_embeddings: bool = False, **options):
        """`embed` under the name and with the defaults of sentence-transformers: float32 [n, hidden], numpy."""
        vectors = self.embed(texts, **options)
        vectors = torch.nn.functional.normalize(vectors, dim=-1) if normalize_embeddings else vectors
        return vectors.numpy() if convert_to_numpy else vectors

    @property
    def isotropic(self) -> bool:
        """Is something fitted on the validation rows?"""
        return bool(self.config["remove_directions"] or self.config["whitening"])

    def chunks(self, text: str, ids: list[int], by_sentence: bool = False) -> list[list[int]]:
        """The ids of a text in rows that the model can read, wrapped. by_sentence: each of as many whole sentences as
        fit in, where a text is longer than a row; only a sentence that is longer itself is cut."""
        room = self.max_length - self.added[0]
        rows = [ids[j : j + room] for j in range(0, len(ids) or 1, room)]
        if len(rows) > 1 and by_sentence:
            rows = [[]]
            for own in self.encode_texts(tokenizers.split_sentences(text)):
                for part in (own[j : j + room] for j in range(0, len(own), room)):
                    rows += [[]] if len(rows[-1]) + len(part) > room else []
                    rows[-1] += part
        return [self.wrap(row) for row in rows]

    @torch.no_grad()
    def pooled(
        self, texts: list[str], batch_tokens: int = 16384, by_sentence: bool = False, every: bool = False
    ) -> Tensor:
        """`embed` as the model makes it, without what is fitted: float64 [n, hidden]; every: all concepts of each text
        [n, C, hidden], each the mean of its own over the chunks."""
        size = (self.count, self.config["hidden"]) if every else (self.config["hidden"],)
        total = torch.zeros(len(texts), *size, dtype=torch.float64)
        tokens = torch.zeros(len(texts), *[1] * len(size), dtype=torch.float64)
        for index, vectors, weight in self.encoded_chunks(texts, batch_tokens, by_sentence, every):
            weight = weight.view(-1, *[1] * len(size))
            total.index_add_(0, index, vectors * weight)
            tokens.index_add_(0, index, weight)
        vectors = total / tokens
        check_finite(vectors, texts)
        return vectors

    @torch.no_grad()
    def concept_sets(self, texts: list[str], batch_tokens: int = 16384) -> list[np.ndarray]:
        """All concepts of all chunks of each text, float32 [C chunks, hidden]; without order."""
        found = [[] for _ in texts]
        for index, vectors, _ in self.encoded_chunks(texts, batch_tokens, False, True):
            check_finite(vectors, texts)
            for i, own in zip(index.tolist(), vectors.float().numpy(), strict=True):
                found[i].append(own)
        return [np.concatenate(own) for own in found]

    def encoded_chunks(self, texts: list[str], batch_tokens: int, by_sentence: bool, every: bool):
        """Yields (numbers of texts [b], float64 vectors [b, hidden] or concepts [b, C, hidden], tokens [b]) of the
        chunks of all texts, the longest first."""
        pieces = []  # (text, ids)
        for i, ids in enumerate(self.encode_texts(texts)):
            pieces += [(i, row) for row in self.chunks(texts[i], ids, by_sentence)]
        if len(pieces) > len(texts) and not self.warned:
            self.warned = True
            warn(f"texts longer than {self.max_length} tokens are embedded in chunks and averaged")
        pieces.sort(key=lambda piece: -len(piece[1]))  # neighbours in length share a batch: little padding
        at = 0
        while at < len(pieces):
            batch = pieces[at : at + max(1, batch_tokens // len(pieces[at][1]))]
            at += len(batch)
            ids, mask = pad_batch([ids for _, ids in batch], self.config["pad_id"])
            ids, mask = torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
            with exact_matmul():
                vectors = (self.encode_ids(ids, mask) if every else self.model.embed(ids, mask)).cpu().double()
            yield torch.tensor([i for i, _ in batch]), vectors, mask.sum(1).cpu().double()

    @torch.no_grad()
    def fitted(self) -> tuple[Tensor, Tensor]:
        """geometry.isotropic of the embeddings of `rows`."""
        settings = self.config["remove_directions"], self.config["whitening"]
        if self.fit is None or self.fit[0] != (settings, self.model.options):
            with exact_matmul():
                parts = [self.model.embed(ids.to(self.device)) for ids in self.rows.long().split(256)]
            vectors = torch.cat(parts).cpu().double()
            check_finite(vectors, [f"validation row {i}" for i in range(len(vectors))])
            found = geometry.isotropic(vectors, *settings)
            self.fit = (settings, self.model.options), found
        return self.fit[1]

    def encode_ids(self, ids, mask) -> Tensor:
        """Ids and mask [B, S] -> [B, count, hidden]; a text with fewer concepts has them several times."""
        concepts = self.model.encode(ids, mask=mask)
        return concepts.repeat(1, self.count // concepts.shape[1], 1)

    @property
    def count(self) -> int:
        """How many concepts a text is read into, at most."""
        return self.model.options.concepts or self.model.config.concepts

    def twin(self, seed: int) -> "LoadedRun":
        """The untrained model of this seed, embedding as the run does."""
        twin = type(self)(self.model.twin(seed), self.tokenizer, self.config, 0, self.rows)
        twin.warned = True  # of texts in chunks: the run itself says it
        return twin

    @one_or_many
    @torch.no_grad()
    def concepts(self, texts: list[str]) -> Tensor:
        """list of n strings -> float32 [n, C, hidden], one string -> [C, hidden]; of a longer text the first
        max(lengths) tokens."""
        rows = [self.wrap(ids[: self.max_length - self.added[0]]) for ids in self.encode_texts(texts)]
        ids, mask = (torch.from_numpy(x).to(self.device) for x in pad_batch(rows, self.config["pad_id"]))
        with exact_matmul():
            concepts = self.encode_ids(ids, mask).float().cpu()
        check_finite(concepts, texts)
        return concepts

    def corpus(self, split: str) -> Corpus | None:
        """The prepared text of the run; None where it is not at hand or has another tokenizer."""
        folder = Path(self.config.get("data_dir") or ROOT / "data") / self.config.get("dataset", "")
        with suppress(UserError):
            corpus = Corpus(folder, split)
            return corpus if corpus.tokenizer_hash == self.config["tokenizer_hash"] else None

    def token_frequency(self) -> np.ndarray | None:
        """Share of each token in the training text, float64 [V]; None where that is not at hand."""
        if (corpus := self.corpus("train")) is None:
            return None
        counts = np.array(corpus.counts(), np.float64)
        return counts / counts.sum()

    def held_out(self, count: int, seed: int = 20250101) -> tuple[list[str], str]:
        """About `count` sentences of the validation text, none twice, in random order; where that gives hardly any or
        is not at hand, the rows that the run keeps. And which it is, in words."""
        if (corpus := self.corpus("val")) is not None:
            numbers = np.random.default_rng(seed).permutation(corpus.sentences.size)[: 20 * count]  # many are too long
            start, end = corpus.sentence_spans(numbers)
            end = end - (corpus.tokens[end - 1] == corpus.eod)
            fits = (end - start >= SENTENCE[0]) & (end - start <= min(SENTENCE[1], self.max_length))
            spans = [(start[i], end[i]) for i in np.flatnonzero(fits)[: 2 * count]]
            texts = [self.tokenizer.decode(corpus.tokens[first:last].tolist()).strip() for first, last in spans]
            if len(found := list(dict.fromkeys(texts))[:count]) >= FEWEST:
                return found, f"{len(found)} sentences of the validation text"
        rows = [] if self.rows is None else self.rows[:count].tolist()
        texts = list(dict.fromkeys(self.tokenizer.decode(row).strip() for row in rows))
        return texts, f"{len(texts)} rows that the run keeps (its validation text is not at hand)"

    def all_concepts(self, texts: list[str]) -> np.ndarray:
        """Texts [n] -> all concepts of each beside each other, float32 [n, C hidden]."""
        return np.concatenate([self.concepts(texts[i : i + 64]).flatten(1).numpy() for i in range(0, len(texts), 64)])

    def read(self, text: str) -> Tensor:
        """Text -> ids [1, n] of at most max(lengths) tokens, the first."""
        (ids,) = self.encode_texts([text])
        if len(ids) > self.max_length:
            warn(f"the text has {len(ids)} tokens; only the first {self.max_length} are read, as in training")
        return torch.tensor([ids[: self.max_length]], device=self.device)

    def show(self, ids: Tensor) -> str:
        """ids [n] -> text, special tokens too."""
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=False).strip()


def check_options(shape: ModelConfig, options: Options):
    """UserError for what this model cannot be run with."""
    if options.iterations and "iterations" not in ENCODERS[shape.encoder].options:
        raise UserError(f"encoder {shape.encoder!r} has no iterations; leave --iterations out")
    if options.concepts and not shape.nested:
        raise UserError(
            "the run was not trained with nested=True, its first concepts mean nothing alone; leave --concepts out"
        )
    if not 0 <= options.concepts <= shape.concepts:
        raise UserError(f"concepts = {options.concepts} is not within 1 and {shape.concepts}; write another --concepts")


@dataclass
class OneRun:
    """Keys of a command that takes one run."""

    run: Annotated[PathStr, "run folder that train.py wrote, or a folder of export.py"] = ""
    ckpt: Annotated[str, "latest, best or a step"] = "latest"
    concepts: Annotated[int, "the first so many of a run with nested=True; 0: all", Bounds(0)] = 0
    iterations: Annotated[int, "of a recursive encoder; 0: as trained", Bounds(0)] = 0
    device: Annotated[str, "auto, cpu, cuda or mps"] = "auto"

    def __post_init__(self):
        if not self.run:
            raise ValueError("no run is given; write --run=out/quickstart")
        check_bounds(self)

    def load(self, path: str = "") -> LoadedRun:
        return load_run(path or self.run, self.ckpt, self.device, Options(self.concepts, self.iterations))


def load_run(path, ckpt: str = "latest", device: str = "auto", options: Options = AS_CONFIGURED) -> LoadedRun:
    """
    Run folder, or a folder that export.py wrote -> LoadedRun, in evaluation mode.
    ckpt: 'latest', 'best' or a step; options: what the model is run with. Raises UserError when a file is missing,
    damaged or of another model.
    """
    run = RunFolder(path)
    config = completed(run.config(), path)
    check_removed(config, path)
    folder = run.checkpoint(str(ckpt), needs=("model.safetensors",))
    try:
        groups = ModelConfig, ObjectiveConfig
        kinds = {key: field.kinds for group in groups for key, field in fields_of(group).items()}
        kinds |= {"run_id": (str,), "tokenizer_hash": (str,), "mask_id": (int,), "pad_id": (int,)}  # used later
        shared = None
        if "backbone_shape" in config:
            layers = 0 if config["decoder"] == "backbone" else config["backbone_layers"]
            rest = (config["backbone_shape"], layers, config["vocab_size"], config["backbone_unit"])
            shared = exported_backbone(config["backbone"], *rest)
        kinds |= {"lengths": (tuple[int, ...],), "remove_directions": (int,), "whitening": (float,)}
        for key, kind in kinds.items():
            value = config[key]
            try:
                config[key] = convert(tuple(value) if isinstance(value, list) else value, kind)
            except ValueError:
                raise ValueError(f"{key} = {value!r}") from None
        shape, objective = (group(**{key: config[key] for key in fields_of(group)}) for group in groups)
        shape.predicts = Objectives(objective).predicts
        if not config["lengths"] or min(config["lengths"]) < 1 or not shape.vocab_size:
            raise ValueError("no lengths, or no vocabulary")
        if config["remove_directions"] not in (0, 1) or not 0 <= config["whitening"] <= 1:
            raise ValueError("remove_directions or whitening")
        if not all(0 <= config[key] < shape.vocab_size for key in ("mask_id", "pad_id")):
            raise ValueError("special ids outside the vocabulary")
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}/config.json describes no model ({error}); was it edited, or by older code?") from None
    tokenizer = load_tokenizer(run.path / "tokenizer.json")
    exported = folder == run.path
    if not exported and tokenizers.tokenizer_hash(run.path / "tokenizer.json") != config["tokenizer_hash"]:
        raise UserError(f"{path}/tokenizer.json is not the one the run was trained with; put that one back")
    vectors = run.load_tensor(TOKEN_VECTORS) if shape.token_init == "spectral" else None
    if shape.token_init == "spectral" and (vectors is None or vectors.shape != (shape.vocab_size, shape.token_width)):
        what = "missing, what an untrained twin begins with" if vectors is None else "of another model"
        raise UserError(f"{run.path / TOKEN_VECTORS} is {what}; put the run's own file back")
    rows = run.load_tensor(ROWS)
    imported = rows is None and "imported_from" in config  # it has no validation text
    if not imported and (rows is None or rows.ndim != 2 or not 0 <= rows.min() <= rows.max() < shape.vocab_size):
        raise UserError(f"{run.path / ROWS} is missing or of another run; put the run's own file back")
    try:
        model = ConceptModel(shape, config["mask_id"], token_vectors=vectors, shared=shared)
    except ValueError as error:  # of a backbone
        raise UserError(str(error)) from None
    except (RuntimeError, MemoryError):
        raise UserError(f"{path}/config.json describes a model too large for this machine; was it edited?") from None
    if shape.backbone and not shared and weights(model, PRETRAINED) != config.get("backbone_hash"):
        raise UserError(f"backbone={shape.backbone} is not the one the run was trained with; put that one back")
    path = folder / "model.safetensors"
    tensors = load_tensors(path)
    if exported:
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        options = Options(**config["options"]) if options == AS_CONFIGURED else options
    load_weights(model, tensors, path, whole=exported)
    check_options(shape, options)
    model.options = options
    if config.get("frozen_decoder"):
        model.freeze_decoder()
    step = config["step"] if exported else int(folder.name[5:])
    return LoadedRun(model.to(pick_device(device)).eval(), tokenizer, config, step, rows)
