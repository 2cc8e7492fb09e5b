"""The concept encoder: N tokens are read into C concept vectors, and text is predicted from those alone.

    embed    ids [B, S]      -> x [B, S, T]            token embeddings, learned positions
    encode   x               -> concepts [B, C, H]     cross-attention of C learned slots to the tokens, O(C S)
    decode   concepts        -> hidden [B, K, width]   one query per scored position, cross-attention to the concepts
    loss     hidden, targets -> nats                   a vocabulary head, tied to the token embedding
    pool     concepts        -> [B, H]                 one vector per text

B rows, S source tokens, C concepts, H width of a concept, T width of a token, h heads of width d = H / h, L layers,
V vocabulary, K scored positions. A `Problem` (problem.py) holds what to read and what to predict; the model never knows
which objective made it. Encoders are in encoders.py, decoders in decoders.py.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import losses
from backbone import KNOWN, LanguageModel, Shape, read_shape, read_weights
from decoders import DECODERS
from encoders import AS_CONFIGURED, ENCODERS, Options
from layers import CrossAttention, TransformerLayer, init_weights, linear, norm
from objectives import SHARE, Bounds, check_bounds, described, recorded
from problem import Problem


@dataclass
class ModelConfig:
    encoder: Annotated[Literal[tuple(ENCODERS)], f"how tokens become concepts. {described(ENCODERS)}"] = "perceiver"
    decoder: Annotated[
        Literal[tuple(DECODERS)],
        f"how concepts become tokens, where the objective predicts tokens one by one. {described(DECODERS)}",
    ] = "posonly"
    layers: Annotated[int, "encoder layers", Bounds(1, 64)] = 6
    iterations: Annotated[int, "recursive: how often the shared layer is applied", Bounds(1, 64)] = 6
    min_iterations: Annotated[
        int, "recursive: each step draws a number from this one to `iterations`; 0: always those", Bounds(0)
    ] = 0
    backprop_iterations: Annotated[
        int, "recursive: back-propagation through only the last so many; 0: all", Bounds(0)
    ] = 0
    reads: Annotated[int, "perceiver_io: how many layers, the first ones, read the tokens", Bounds(1)] = 1
    chunk: Annotated[int, "chunked: tokens that are read at once", Bounds(1)] = 512
    merge: Annotated[Literal["mean", "perceiver"], "chunked: what is made of the chunks' concepts"] = "mean"
    merge_layers: Annotated[int, "chunked: layers of merge = 'perceiver'", Bounds(1, 64)] = 1
    token_layers: Annotated[
        int, "layers of windowed self-attention over the tokens, before any encoder", Bounds(0, 64)
    ] = 0
    token_window: Annotated[int, "token_layers: tokens to either side that a token attends to", Bounds(1)] = 8
    decoder_layers: Annotated[int, "decoder blocks of cross-attention and FFN", Bounds(1, 64)] = 1
    decoder_window: Annotated[
        int, "diffusion: tokens to either side that a position attends to; 0: none", Bounds(0)
    ] = 0
    timestep: Annotated[bool, "diffusion: blocks are conditioned on the share that is predicted (AdaLN-Zero)"] = True
    word_dropout: Annotated[float, "causal: share of input tokens replaced by [MASK] in training", SHARE] = 0.0
    hidden: Annotated[int, "width of a concept", Bounds(1)] = 512
    heads: Annotated[int, "attention heads", Bounds(1)] = 8
    intermediate: Annotated[int, "inner width of the FFNs", Bounds(1)] = 2048
    concepts: Annotated[int, "number of concepts", Bounds(1)] = 128
    nested: Annotated[
        bool, "half of the steps train all concepts, the others the first 1, 2, 4 ... alone (--concepts=C later)"
    ] = False
    concepts_per_token: Annotated[float, "a row has concepts by its tokens, the first of all; 0: all", Bounds(0, 1)] = (
        0.0
    )
    min_concepts: Annotated[
        int, "concepts_per_token: those of a short row; longer ones have 2, 4 ... times as many", Bounds(1)
    ] = 8
    registers: Annotated[int, "additional latents, which no decoder sees", Bounds(0)] = 0
    token_dim: Annotated[int, "width of the token embeddings (0: hidden)", Bounds(0)] = 0
    token_position: Annotated[Literal["learned", "rope"], "positions the encoder sees: added to tokens, or rotary"] = (
        "learned"
    )
    concept_position: Annotated[
        Literal["none", "learned", "sinusoidal", "rope", "cope"],
        "positions of concepts: added to the slots; rope: in their self-attention; cope: in cross-attention to them",
    ] = "none"
    max_length: Annotated[int, "longest row: size of the learned position tables", Bounds(1)] = 512
    dropout: Annotated[float, "dropout of embeddings, attention weights and inner FFN states", SHARE] = 0.0
    tied: Annotated[bool, "the vocabulary head shares the token embedding"] = True
    init: Annotated[
        Literal["fan_in", "fan_in_positions", "gpt2"],
        "fan_in: unit-scale embeddings, linears N(0, 1/fan_in); fan_in_positions: the encoder's positions at std 0.1; "
        "gpt2: std 0.02 everywhere, residual outputs scaled by depth",
    ] = "fan_in_positions"
    token_init: Annotated[
        Literal["random", "spectral"],
        "initial token embeddings: random, or from the SVD of the corpus's co-occurrences (lab/data/spectral.py)",
    ] = "random"
    spectral_share: Annotated[float, "spectral: m in m * spectral + sqrt(1 - m^2) * random", Bounds(0, 1)] = 1.0
    original_structure: Annotated[
        bool,
        "the original project's structure: biases, un-normalised tokens, un-gated decoder FFN, no gain in last norm",
    ] = False
    original_exact: Annotated[
        bool, "original_structure for its own checkpoints: no norm before the head, its times and gates of diffusion"
    ] = False
    backbone: Annotated[
        str, "pretrained model (Llama, Qwen2) that reads the tokens before the encoder: its folder, or hub:ORG/NAME"
    ] = ""
    backbone_layers: Annotated[int, "how many of its layers, the first ones; 0: all", Bounds(0)] = 0
    backbone_causal: Annotated[bool, "its tokens attend to earlier ones alone, as in its pre-training"] = True
    backbone_freeze: Annotated[float, "share of training in which it stays as it is; 1: for ever", Bounds(0, 1)] = 1.0
    backbone_lr: Annotated[float, "its learning rate after that, as a share of the others'", Bounds(0, 1, "low")] = 0.1
    backbone_read: Annotated[
        Literal["last", "mix"], "the states that the encoder reads: the last ones, or a learned mixture of all layers'"
    ] = "last"
    vocab_size: Annotated[int, "size of the vocabulary (0: the data's)", Bounds(0)] = 0
    # The kinds of prediction (Problem.predicts) that the model is built for. Not a user's key: it follows from the
    # objective (Objectives.predicts).
    predicts: tuple[str, ...] = ("positions",)

    def __post_init__(self):
        check_bounds(self)
        for key in ("encoder", "decoder"):
            names = (*ENCODERS,) if key == "encoder" else (*DECODERS,)
            if getattr(self, key) not in names:
                raise ValueError(f"{key} = {getattr(self, key)!r} is unknown; write one of {', '.join(names)}")
        if self.hidden % self.heads:
            near = next(n for n in range(min(self.heads, self.hidden), 0, -1) if self.hidden % n == 0)
            raise ValueError(f"hidden = {self.hidden} does not divide into heads = {self.heads}; write heads = {near}")
        if self.backbone and self.backbone_layers > (most := read_shape(self.backbone).layers):
            raise ValueError(
                f"backbone_layers = {self.backbone_layers}, but {self.backbone} has {most}; write 0 for all"
            )
        if self.backbone and self.original_structure:
            raise ValueError("original_structure has no backbone; leave one of them out")
        if self.decoder == "backbone":
            wanted = {"backbone": bool(self.backbone), "tied": self.tied, "backbone_freeze": self.backbone_freeze == 1}
            if missing := [key for key, fine in wanted.items() if not fine]:
                what = f"decoder = 'backbone' predicts with a frozen backbone and its own table, but {missing[0]} = "
                remedy = "write --backbone=FOLDER" if missing[0] == "backbone" else "leave it as it is by default"
                raise ValueError(f"{what}{getattr(self, missing[0])!r}; {remedy}")
            if not read_shape(self.backbone).tied:
                raise ValueError(f"{self.backbone} has a head of its own, not its table; take another decoder")
        if self.token_dim > self.hidden and not self.backbone:
            raise ValueError(f"token_dim = {self.token_dim} is above hidden; write 0 for the same width")
        if len(self.variants()) > 32:
            raise ValueError(f"{len(self.variants())} ways to run a step are too many; write a larger min_iterations")
        if self.concept_position not in (kinds := ENCODERS[self.encoder].concept_positions):
            what = f"concept_position = {self.concept_position!r} means nothing to encoder = {self.encoder!r}"
            raise ValueError(f"{what}; write one of {', '.join(kinds)}")
        if self.concepts_per_token:
            if self.nested or "concepts" not in ENCODERS[self.encoder].options:
                other = "nested steps take" if self.nested else f"encoder = {self.encoder!r} takes"
                raise ValueError(f"{other} a number of concepts for all rows; leave concepts_per_token out")
            if self.min_concepts << self.doublings != self.concepts:
                near = self.min_concepts << self.doublings
                what = f"concepts = {self.concepts} is not min_concepts = {self.min_concepts} times 1, 2, 4 ..."
                raise ValueError(f"{what}; write concepts = {near}")
        ENCODERS[self.encoder].check(self)
        for key in ("min_iterations", "backprop_iterations"):
            if getattr(self, key) > self.iterations:
                raise ValueError(f"{key} = {getattr(self, key)} is above iterations; write {self.iterations} or less")
        for key in ("token_position", "concept_position"):
            if getattr(self, key) == "rope" and (self.hidden // self.heads) % 2:
                raise ValueError(f"{key} = 'rope' needs an even hidden / heads; write another number of heads")
        if self.token_layers and self.token_position == "rope" and self.token_width % 2:
            raise ValueError(f"token_layers turn pairs of columns; write an even token_dim, not {self.token_width}")
        if self.original_exact and not self.original_structure:
            raise ValueError("original_exact is a kind of original_structure; write original_structure = True, too")
        if self.original_structure:
            if self.token_position == "rope":
                raise ValueError("original_structure has absolute positions; write token_position = 'learned'")
            if self.tied and self.decoder == "weighted":
                raise ValueError("original_structure never ties the head of decoder = 'weighted'; write tied = False")
            if self.tied and self.token_width != self.hidden:
                raise ValueError(
                    "original_structure ties no head to narrower tokens; write tied = False or token_dim = 0"
                )

    @property
    def token_width(self):
        if self.backbone:
            return read_shape(self.backbone).width
        return self.token_dim or self.hidden

    @property
    def doublings(self) -> int:
        """How often min_concepts is doubled at most."""
        return max(0, (self.concepts // self.min_concepts).bit_length() - 1)

    def concepts_of(self, tokens: int) -> int:
        """How many concepts a row of so many tokens is read into: with `concepts_per_token` the largest of 1, 2, 4 ...
        times min_concepts that has no more a token, so that longer rows have a multiple of what shorter ones have."""
        if not self.concepts_per_token:
            return self.concepts
        times = int(tokens * self.concepts_per_token / self.min_concepts + 1e-6)
        return self.min_concepts << min(self.doublings, max(0, times.bit_length() - 1))

    def unused(self) -> set[str]:
        """Keys that nothing reads while the model is built and run once, on no device. ValueError: see no_overflow."""
        with no_overflow():
            return {field.name for field in fields(self)} - keys_read(astuple(self)) - {"max_length", "token_init"}

    def variants(self) -> list[tuple[float, Options]]:
        """The options of a training step, with their probabilities: all concepts in half of the steps, else the first
        1, 2, 4 ... (`nested`); any number from `min_iterations` to `iterations`."""
        options = ENCODERS[self.encoder].options
        nested = "concepts" in options and self.nested
        smaller = [1 << i for i in range((self.concepts - 1).bit_length())] if nested else []
        counts = [(0.5 / len(smaller), m) for m in smaller] + [(0.5, 0)] if smaller else [(1.0, 0)]
        recursive = "iterations" in options and self.min_iterations
        depths = range(self.min_iterations, self.iterations + 1) if recursive else [0]
        return [(share / len(depths), Options(m, k)) for share, m in counts for k in depths]


@contextmanager
def no_overflow():
    """ValueError where a tensor that the block makes on the meta device is too large for any real one."""
    try:
        yield
    except (RuntimeError, TypeError, OverflowError) as error:
        if "verflow" not in str(error) and not isinstance(error, OverflowError):
            raise
        raise ValueError("a tensor of this model would have more than 2^63 bytes; write smaller sizes") from None


@cache
def keys_read(values: tuple) -> frozenset[str]:
    """The keys that a model of this ModelConfig reads."""
    config, read = recorded(replace(ModelConfig(*values), vocab_size=1))
    with torch.device("meta"):
        vectors = torch.empty(1, config.token_width) if config.token_init == "spectral" else None
        model, ids = ConceptModel(config, token_vectors=vectors), torch.zeros(2, 2, dtype=torch.int64)
        kinds = {"positions", "pooled"}.intersection(config.predicts) or {"none"}
        model(*(Problem(ids, targets=ids, predicts=kind) for kind in kinds))
    config.variants()
    counted = any(isinstance(part, CrossAttention) and part.positions is not None for part in model.modules())
    if config.concept_position == "cope" and not counted:  # no decoder uses it
        read.discard("concept_position")
    return frozenset(read)


class Tower(nn.Module):
    """What the encoder reads: the states of a backbone, each dimension standardised; the last ones, or with
    `backbone_read` = "mix" a learned mixture of those of all layers (ELMo, arXiv:1802.05365).

    A few dimensions of a few tokens are thousands of times as large as others (Sun et al. 2024, arXiv:2402.17762), most
    at the first position; hence the token that begins texts is put before them, and left out afterwards."""

    def __init__(self, config, shape: Shape):
        super().__init__()
        self.causal, self.bos = config.backbone_causal, shape.bos
        self.layers = config.backbone_layers or shape.layers
        count = self.layers + 1 if config.backbone_read == "mix" else 1
        self.mix = nn.Parameter(torch.zeros(count)) if count > 1 else None
        self.register_buffer("mean", torch.zeros(count, shape.width))
        self.register_buffer("deviation", torch.ones(count, shape.width))

    kept = None  # (compute, ids, mask) -> states, where a frozen backbone's are kept

    def states(self, backbone: LanguageModel, embed, ids, pos=None, mask=None):
        """embed: ids -> embeddings; ids [B, S], pos [1|B, S], mask [B, S] -> [1 or k + 1, B, S, W]."""
        if self.kept is not None and pos is None:
            return self.kept(lambda ids, mask: self.compute(backbone, embed, ids, None, mask), ids, mask)
        return self.compute(backbone, embed, ids, pos, mask)

    def compute(self, backbone, embed, ids, pos, mask):
        first = 0 if self.bos is None else 1
        if first:
            ids = F.pad(ids, (1, 0), value=self.bos)
            pos = None if pos is None else F.pad(pos + 1, (1, 0))
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        mask = None if self.causal else mask  # padding comes last: what is before does not see it
        states = backbone(embed(ids), pos, mask, self.causal, layers=self.layers)
        states = states[-1:] if self.mix is None else states
        return torch.stack([state[:, first:].to(self.mean.dtype) for state in states])

    def forward(self, states):
        """What `states` returns -> [B, S, W], of unit scale."""
        states = (states - self.mean[:, None, None]) / self.deviation[:, None, None]
        return states[0] if self.mix is None else torch.einsum("k, kbsw -> bsw", self.mix.softmax(0), states)

    @torch.no_grad()
    def fit(self, backbone: LanguageModel, embed, ids):
        """Mean and deviation of each dimension on rows of text [R, N]."""
        start = 1 if self.bos is None else 0
        parts = [
            self.states(backbone, embed, part)[:, :, start:].flatten(1, 2).cpu().double() for part in ids.split(16)
        ]
        states = torch.cat(parts, 1)
        self.mean.copy_(states.mean(1))
        self.deviation.copy_(states.std(1).clamp_min(1e-6))


def exported_backbone(name: str, shape: dict, layers: int, vocab_size: int, unit: float) -> SimpleNamespace:
    """A backbone whose weights are those of the checkpoint, not of a folder of its own: what ConceptModel takes as
    `shared`, before they are loaded. shape: backbone.Shape; layers: 0: all."""
    KNOWN[name] = shape = Shape(**shape)
    return SimpleNamespace(
        backbone=LanguageModel(shape, layers), tokens=nn.Embedding(vocab_size, shape.width), unit=unit
    )


PRETRAINED = ("backbone.", "tokens.")  # tensors that a backbone brings along
AFTER_CONCEPTS = ("tokens.", "decoder.", "norm.", "narrow.", "head.")  # what freeze_decoder freezes


class ConceptModel(nn.Module):
    def __init__(self, config: ModelConfig, mask_id: int = 0, seed: int = 0, token_vectors=None, shared=None):
        """seed: of the initial weights (layers.init_weights); token_vectors [V, T]: for token_init = "spectral", the
        initial token embeddings, rows of norm sqrt(T), or zero where they are random; shared: a model whose backbone
        and token table this one uses (None: its own are read). ValueError where the backbone cannot be read."""
        super().__init__()
        self.config, self.mask_id, self.token_vectors = config, mask_id, token_vectors
        self.options = AS_CONFIGURED  # of a call that gives none
        self.chunk = 0  # rows of logits at once, see losses.cross_entropy
        H, T, V = config.hidden, config.token_width, config.vocab_size
        self.tokens = nn.Embedding(V, T)
        learned = not config.backbone and config.token_position == "learned"  # a backbone's states have positions
        self.positions = nn.Embedding(config.max_length, T) if learned else None
        if self.positions is not None and config.init == "fan_in_positions":
            self.positions.init_scale = 0.1  # so that content outweighs position
        self.dropout = nn.Dropout(config.dropout)
        rotary, count = config.token_position == "rope", range(config.token_layers)
        local = [TransformerLayer(config, T, rotary=rotary, window=config.token_window) for _ in count]
        self.token_layers = nn.ModuleList(local)  # tokens see their neighbours before they are read
        self.encoder = ENCODERS[config.encoder](config)
        # Only what the objective trains is built: DDP waits for the gradient of every parameter.
        decodes = "positions" in config.predicts
        pretrained = decodes and config.decoder == "backbone"
        self.decoder = DECODERS[config.decoder](config) if decodes else None
        # Without this norm the initial loss is up to 2.9 nats too high. The original has none: no parameters.
        final_norm = nn.LayerNorm(H, elementwise_affine=False) if config.original_structure else norm(H, config)
        final_norm = nn.Identity() if config.original_exact else final_norm
        self.norm = final_norm if decodes and not pretrained else None
        # Tokens narrower than concepts: the tied head is factorised, H -> T -> V.
        headed = self.norm is not None or "pooled" in config.predicts
        self.narrow = nn.Linear(H, T, bias=False) if headed and config.tied and T != H else nn.Identity()
        self.head = nn.Linear(H, V, bias=False) if headed and not config.tied else None
        # Unit-scale embeddings would give logits of size sqrt(T).
        self.logit_scale = 1.0 if not config.tied or config.init == "gpt2" or config.original_exact else T**-0.5
        self.predictor = None  # of the next span
        if "concepts" in config.predicts:
            self.predictor = nn.Sequential(TransformerLayer(config), linear(H, H, config))
        if "vectors" in config.predicts:
            self.predictor = linear(H, T, config)
        self.frozen = False
        init_weights(self, config.init, seed)
        if token_vectors is not None:
            blend_rows(self.tokens.weight, token_vectors, config.spectral_share)
        self.backbone = self.tower = None
        self.unit = 1.0  # of the embeddings that a backbone reads; those of the table have a scale of about 1
        if config.backbone:
            self.add_backbone(read_shape(config.backbone), shared)
            if decodes and pretrained:
                self.decoder.attach(self.backbone, self.unit, self.logit_scale)
            return
        # [MASK] starts small: `input` makes the queries of hidden positions from it, and a tied head would predict it
        # everywhere (2.8 nats more at step 0). Not zero, so that what reads it has gradients from the first step.
        with torch.no_grad():
            for table in {self.tokens, getattr(self.decoder, "tokens", None)} - {None}:
                table.weight[mask_id] *= T**-0.5

    def forward(self, *problems: Problem, options: Options | None = None, split=None):
        """(losses, concepts), one of each per problem: the only entry for training, through DDP and torch.compile. In
        the place of a loss stand the pooled concepts where a problem predicts nothing. Problems that read the same
        tensors share one encoder pass. split: arguments of losses.split_gradient; a third result is then, for each
        encoder pass, one copy of the concepts per concept loss."""
        concepts, copies = [], []
        for i, p in enumerate(problems):
            first = next(j for j, q in enumerate(problems) if q.source is p.source and q.source_pos is p.source_pos)
            known = first < i
            concepts.append(
                concepts[first] if known else self.encode(p.source, p.source_pos, None, options, p.row_length)
            )
            if split and first == i:
                concepts[i], *rest = losses.split_gradient(concepts[i], *split)
                copies.append(tuple(rest))
        values = tuple(self.loss(c, p, options) for c, p in zip(concepts, problems, strict=True))
        return (values, tuple(concepts), tuple(copies)) if split else (values, tuple(concepts))

    def encode(self, ids, pos=None, mask=None, options: Options | None = None, row_length: int = 0):
        """ids [B, S], pos [1|B, S] (None: 0 ... S-1), mask [B, S] (True: keep) -> concepts [B, C, H]. options: None:
        `self.options`. row_length: the tokens that `concepts_per_token` counts (0: those of each row). Rows with fewer
        concepts than others of the batch have them several times, which changes no mean and no MaxSim."""
        options = options or self.options
        if not self.config.concepts_per_token:
            return self.encode_all(ids, pos, mask, options)
        lengths = [row_length or ids.shape[1]] if row_length or mask is None else mask.sum(1).tolist()
        counts = [self.config.concepts_of(n) for n in lengths]
        if len(set(counts)) == 1:
            return self.encode_all(ids, pos, mask, options._replace(concepts=counts[0]))
        parts, order = [], []
        for count in sorted(set(counts)):
            index = [i for i, own in enumerate(counts) if own == count]
            own_pos = pos if pos is None or len(pos) == 1 else pos[index]
            z = self.encode_all(ids[index], own_pos, mask[index], options._replace(concepts=count))
            parts.append(z.repeat(1, max(counts) // count, 1))
            order += index
        return torch.cat(parts)[torch.tensor(order, device=ids.device).argsort()]

    def encode_all(self, ids, pos, mask, options: Options):
        """`encode` of rows that have equally many concepts."""
        x = self.tokens(ids) if self.backbone is None else self.read_backbone(ids, pos, mask)
        if pos is None:
            pos = torch.arange(ids.shape[1], device=ids.device)[None]
        if self.positions is not None:
            x = x + self.positions(pos)
        x = self.dropout(x)
        for layer in self.token_layers:
            x = layer(x, pos, mask)
        return self.encoder(x, pos, mask, options)

    def read_backbone(self, ids, pos, mask):
        """The standardised states of a backbone, [B, S, T]; without gradients while it does not train."""
        with torch.set_grad_enabled(self.trains_backbone and torch.is_grad_enabled()):
            states = self.tower.states(self.backbone, self.embed_backbone, ids, pos, mask)
        return self.tower(states)

    def embed_backbone(self, ids):
        """ids [B, S] -> embeddings [B, S, T], as the backbone knows them."""
        return self.tokens(ids) * self.unit

    def add_backbone(self, shape: Shape, shared: "ConceptModel | None"):
        """The pretrained model, and its table as the token embeddings: at a scale of about 1, by a power of two, so
        that nothing is rounded. Tokens that it does not know get the mean of its own."""
        config, table = self.config, self.tokens.weight
        whole = self.decoder is not None and config.decoder == "backbone"
        layers = 0 if whole else config.backbone_layers
        self.tower = Tower(config, shape)
        if shared is not None:
            self.backbone, self.tokens, self.unit = shared.backbone, shared.tokens, shared.unit
        elif table.is_meta:
            self.backbone = LanguageModel(shape, layers)
        else:
            weights = read_weights(config.backbone, layers or shape.layers)
            known = weights.pop("tokens").to(table)[: len(table)]
            with torch.device("meta"):
                self.backbone = LanguageModel(shape, layers)
            try:
                self.backbone.load_state_dict(weights, assign=True)
            except RuntimeError as error:
                what = f"backbone={config.backbone} is not what its config.json says ({str(error).splitlines()[-1]})"
                raise ValueError(f"{what}; give another folder") from None
            self.backbone.to(table.dtype)
            self.unit = 2.0 ** round(math.log2(known.square().mean().sqrt()))
            with torch.no_grad():
                table[: len(known)] = known / self.unit
                table[len(known) :] = known.mean(0) / self.unit
        self.train_backbone(config.backbone_freeze == 0)

    def train_backbone(self, trained: bool):
        """Whether the backbone and its table get gradients."""
        self.trains_backbone = trained
        for part in (self.backbone, self.tokens):
            part.requires_grad_(trained)

    @property
    def fixed_backbone(self) -> bool:
        """There is a backbone, and it never trains."""
        return self.backbone is not None and self.config.backbone_freeze == 1

    def pretrained_parameters(self) -> list:
        """Those of a backbone and its table."""
        return [] if self.backbone is None else [*self.backbone.parameters(), *self.tokens.parameters()]

    def saved_tensors(self) -> dict:
        """The tensors of a checkpoint: all but those of a backbone that stays as it is in its own folder."""
        fixed = PRETRAINED if self.fixed_backbone else ()
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(fixed)}

    def decode(self, concepts, problem: Problem):
        """The head's input at the scored positions (None: all): [B, K, T if tied else H], or [1, M, ...] if scored is
        flat; for a pooled prediction the normalised pooled concepts [B, 1, T or H]."""
        if problem.predicts == "pooled":
            x = F.rms_norm(self.pool(concepts)[:, None], (concepts.shape[-1],))
        else:
            span = replace(problem, scored=None) if problem.flat else problem
            x = self.decoder(concepts, span, self.embed_visible)
            return self.finish(problem.at_scored(x) if problem.flat else x)
        return self.narrow(x)

    def finish(self, x):
        """A decoder's hidden states -> the head's input; those of a pretrained decoder are that already."""
        return x if self.norm is None else self.narrow(self.norm(x))

    def embed_visible(self, ids, table=None):
        """Embeddings of tokens that a decoder may see: ids [...] -> [..., T]; None: that of [MASK], [1, 1, T]."""
        ids = torch.full((1, 1), self.mask_id, device=self.tokens.weight.device) if ids is None else ids
        return (table or self.tokens)(ids)

    def loss(self, concepts, problem: Problem, options: Options | None = None):
        """Cross-entropy of the scored targets in nats: the mean, or the sum weighted by problem.weights. For concepts
        and vectors losses.centred_cosine; for a problem that predicts nothing the pooled concepts [B, H]."""
        if problem.predicts == "none":
            return self.pool(concepts)
        if problem.predicts == "concepts":
            with torch.no_grad():
                targets = self.encode(problem.targets, options=options, row_length=problem.row_length)
            return losses.centred_cosine(self.predictor(concepts), targets)
        if problem.predicts == "vectors":
            mean = (problem.weights[..., None] * problem.vectors[problem.targets]).sum(1)  # [B, T], of any length
            return losses.centred_cosine(self.predictor(self.pool(concepts)), mean)
        hidden = self.decode(concepts, problem).flatten(0, 1) * self.logit_scale
        targets, weights = problem.targets, problem.weights
        if problem.scored is not None:
            targets = problem.at_scored(targets)
        if problem.predicts == "positions":  # one softmax per token, else one per row
            targets, weights = targets.flatten(), None if weights is None else weights.flatten()
        keys = {"weights": weights, "smoothing": problem.smoothing, "chunk": self.chunk}
        return losses.cross_entropy(hidden, self.head_weight(), targets, **keys)

    def logits(self, hidden):
        """hidden as `decode` returns it, [..., width] -> [..., V]."""
        return F.linear(hidden * self.logit_scale, self.head_weight())

    def head_weight(self):
        return self.tokens.weight if self.head is None else self.head.weight

    def pool(self, concepts):
        """One vector per text: the mean of its concepts, [B, C, H] -> [B, H]."""
        return concepts.mean(1)

    def embed(self, ids, mask=None):
        """One vector per text, its pooled concepts: [B, H]."""
        return self.pool(self.encode(ids, mask=mask))

    def freeze_decoder(self, weights: dict | None = None):
        """Freezes decoder, norm, vocabulary head and the token table, which the encoder reads too, after loading them
        from `weights` (None: as they are). Gradients still flow through them to the concepts.

        A pretrained decoder from elsewhere has to be a `Decoder`, with its token table [V, T] as `tokens` and its
        vocabulary head.
        """
        self.frozen = True
        if weights is not None:
            self.load_state_dict({k: v for k, v in weights.items() if k.startswith(AFTER_CONCEPTS)}, strict=False)
        for path, parameter in self.named_parameters():
            if path.startswith(AFTER_CONCEPTS):
                parameter.requires_grad_(False)

    @torch.no_grad()
    def generate(self, concepts, length, temperature=0.0, continues=False):
        """Tokens at `length` positions, from concepts [B, C, H] alone: ids [B, length]. See sample_tokens. continues:
        they follow the text that was read."""

        def choose(hidden):  # [..., width] -> [...]
            return sample_tokens(self.logits(hidden), temperature)

        if self.decoder.generate:
            predict = lambda x: choose(self.finish(x))  # noqa: E731
            return self.decoder.generate(concepts, length, self.embed_visible, predict, continues)
        pos = torch.arange(length, device=concepts.device)[None]
        hidden = self.decode(concepts, Problem(source=pos, query_pos=pos))
        return torch.stack([choose(row) for row in hidden.expand(len(concepts), -1, -1)])  # one row's logits at a time

    @torch.no_grad()
    def unmask(self, concepts, ids, passes=0, order="confidence", temperature=0.0, truth=None):
        """Predicts every [MASK] of ids [B, n] in several passes, which see concepts [B, C, H] and the tokens so far
        -> ids [B, n]. passes: their number, each predicts an equal share; 0: one token per row and pass.

        order: "confidence": the likeliest tokens first (MaskGIT, Chang et al. 2022, arXiv:2202.04200; LLaDA,
        arXiv:2502.09992); "ancestral": in random order (MDLM, arXiv:2406.07524; a sample of the model at temperature
        1). truth [B, n]: teacher forcing, later passes see the true tokens instead of the predicted ones.
        """
        seen = answer = ids
        pos = torch.arange(ids.shape[1], device=ids.device)[None]
        for left in range(passes or int((ids == self.mask_id).sum(1).max()), 0, -1):
            hidden = seen == self.mask_id
            t = hidden.float().mean(1)
            logits = self.logits(self.decode(concepts, Problem(ids, None, seen, pos, seen, t=t))).float()
            logits[..., self.mask_id] = -torch.inf
            found = sample_tokens(logits, temperature)  # [B, n]
            sure = logits.softmax(-1).gather(-1, found[..., None])[..., 0]
            sure = sure if order == "confidence" else torch.rand_like(sure)
            rank = sure.masked_fill(~hidden, -1).argsort(1, descending=True).argsort(1)
            now = hidden & (rank < -(-hidden.sum(1, keepdim=True) // left))
            answer = torch.where(now, found, answer)
            seen = torch.where(now, found if truth is None else truth, seen)
        return answer

    def twin(self, seed: int) -> "ConceptModel":
        """The untrained model of this seed, in evaluation mode."""
        shared = self if self.fixed_backbone else None
        twin = ConceptModel(self.config, self.mask_id, seed, self.token_vectors, shared)
        if self.tower is not None:
            for name, buffer in self.tower.named_buffers():
                getattr(twin.tower, name).copy_(buffer)
            twin.tower.kept = self.tower.kept if shared is not None else None
        twin.options = self.options
        if self.frozen:
            twin.freeze_decoder(self.state_dict())
        return twin.to(self.tokens.weight.device).eval()

    def num_parameters(self):
        return sum(p.numel() for p in self.parameters())


def sample_tokens(logits, temperature):
    """logits [..., V] -> ids [...]: the likeliest, or if temperature > 0 a sample of softmax(logits / temperature)."""
    if not temperature:
        return logits.argmax(-1)
    chances = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(chances.flatten(0, -2), 1).view(logits.shape[:-1])


@torch.no_grad()
def blend_rows(weight, vectors, share: float):
    """Rows of weight [V, T] become share * vectors + sqrt(1 - share^2) * weight, at its scale, where vectors [V, T]
    (of unit scale) are not zero."""
    known = vectors.any(1, keepdim=True)
    mixed = share * weight.std() * vectors + (1 - share**2) ** 0.5 * weight
    weight.copy_(torch.where(known, mixed, weight))


class CountedProducts(TorchDispatchMode):
    """Counts the FLOPs of all matrix products, forward and backward, as FlopCounterMode does, which cannot follow a
    module that is called without gradients. A multiply-add is two; lookups, norms and softmax are none."""

    flops = 0

    def __torch_dispatch__(self, function, types, args=(), keys=None):
        out = function(*args, **keys or {})
        if count := flop_registry.get(function._overloadpacket):
            self.flops += count(*args, **keys or {}, out_val=out)
        return out


@contextmanager
def imagined(config: ModelConfig):
    """A model on the meta device, where all tensors of the block are made, too: it needs no memory. Attention runs as
    plain products, and no FFN is recomputed in backward."""
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
        model = ConceptModel(config)
        model.chunk = 1 << 62  # one chunk: it needs no memory here, and many take long
        yield model


def count_flops(config: ModelConfig, work: Callable[[ConceptModel], object]) -> tuple[int, dict[str, int]]:
    """(number of parameters, forward FLOPs of work(model) by module), on the meta device.

    "Global" is the total; what it exceeds the modules' by is the losses'.
    """
    with imagined(config) as model, torch.no_grad(), FlopCounterMode(display=False) as counter:
        work(model.requires_grad_(False))
    modules = {path.removeprefix("ConceptModel."): sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
    return model.num_parameters(), modules
