"""What a step is said to cost, against torch's own counter around real steps, to the digit."""

from types import SimpleNamespace

import pytest
import torch
from registries import SMALL, built_for
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import losses
from encoders import ENCODERS
from lab.distributed import World
from lab.training import optim
from lab.training.plan import Plan, cost
from losses import CONCEPT_LOSSES, Balance, ConceptLossConfig
from model import ConceptModel, ModelConfig
from noise import Noise
from objectives import ObjectiveConfig, Objectives
from problem import Rows, Vocabulary

B, N, V = 4, 12, 60


def counted(model, objectives, regulariser, options, turn):
    """FLOPs of the forward and backward of one micro-batch, as train.py takes it."""
    ids, rows = torch.randint(4, V, (B, N), generator=torch.Generator().manual_seed(1)), torch.arange(B)
    idf, starts, vectors = torch.ones(V), torch.arange(V) % 3 > 0, torch.rand(V, model.config.token_width)
    vocab = Vocabulary(V, 3, (0,), idf, starts, ids[0], vectors)
    given = objectives, Rows(ids, Noise(5, 0, rows, turn), vocab, documents=rows)
    counter = FlopCounterMode(display=False)
    # its lists by module, which break where a module is called without gradients
    counter.mod_tracker = SimpleNamespace(parents={"Global"}, __enter__=lambda: None, __exit__=lambda *_: None)
    with sdpa_kernel(SDPBackend.MATH), counter:  # other kernels count as nothing on the CPU
        world = World(0, 1, torch.device("cpu"), "float32")
        optim.forward_backward(model, *given, world, 1, options, Balance(regulariser))
    model.zero_grad()
    return counter.get_total_flops()


def check(objective, shape=None, frozen=False, **regulariser):
    """Of every way to run a step: the mean is what `cost` says."""
    objectives = Objectives(ObjectiveConfig(**{"objective": objective} if isinstance(objective, str) else objective))
    keys = SMALL | {"vocab_size": V} | built_for(objectives) | (shape or {})
    config, regulariser = ModelConfig(**keys), ConceptLossConfig(**regulariser)
    model = ConceptModel(config, 3)
    if frozen:
        model.freeze_decoder()
    found = 0
    for turn in range(objectives.shape_count):
        for share, options in config.variants():
            found += share * counted(model, objectives, regulariser, options, turn) / objectives.shape_count
    parameters, flops = cost(Plan((N,), B * N, B * N, 1), config, objectives, frozen, regulariser)
    assert flops == pytest.approx(found / (B * N), rel=1e-14) and parameters == model.num_parameters()
    return flops


STEPS = {
    "mlm": dict(objective="mlm"),
    "survivors": dict(objective=dict(objective="tsdae + bow", bow_source="survivors")),
    "idf": dict(objective=dict(objective="tsdae", token_weight="idf", score_rate=0.5)),
    "views": dict(objective="contrastive"),
    "maxsim": dict(objective=dict(objective="bow + contrastive", view_similarity="maxsim")),
    "elbo": dict(objective="diffusion", shape=dict(decoder="diffusion", decoder_window=2, decoder_layers=2)),
    "prefix": dict(objective="prefix", shape=dict(decoder="causal")),
    "next": dict(objective="bow + nextconcept"),
    "vectors": dict(objective=dict(objective="bow + nextconcept", next_target="spectral")),
    "deep": dict(objective="tsdae", shape=dict(encoder="recursive", iterations=4, backprop_iterations=2)),
    "deep targets": dict(objective="nextconcept", shape=dict(encoder="recursive", iterations=3, backprop_iterations=1)),
    "random depth": dict(objective="tsdae", shape=dict(encoder="recursive", iterations=3, min_iterations=1)),
    "nested": dict(objective="mlm", shape=dict(nested=True, registers=2)),
    "dropout": dict(objective="tsdae", shape=dict(dropout=0.2, decoder="causal", word_dropout=0.3)),
    "window": dict(objective="mlm", shape=dict(token_layers=1, token_window=3, decoder="input", token_dim=8)),
    "cope": dict(objective="tsdae", shape=dict(concept_position="cope")),
    "faithful": dict(objective="mlm", shape=dict(original_structure=True, tied=False, decoder="weighted")),
    "rope": dict(objective="bow", shape=dict(token_position="rope")),
}
STEPS |= {f"frozen {decoder}": dict(objective="tsdae + bow", shape=dict(decoder=decoder), frozen=True)
          for decoder in ("causal", "posonly", "diffusion")}  # fmt: skip
STEPS |= {name: dict(objective="mlm", shape=dict(encoder=name)) for name in ENCODERS}
EVERY_LOSS = dict(concept_loss=",".join(CONCEPT_LOSSES), concept_share=0.01)
for balance, axis in zip(("gradient_share", "fixed", "kendall_gal"), ("slots", "samples", "samples"), strict=True):
    STEPS[balance] = dict(objective="mlm", concept_balance=balance, concept_loss_axis=axis, **EVERY_LOSS)


@pytest.mark.parametrize("step", STEPS)
def test_the_cost_is_what_a_counter_sees_in_real_steps(step):
    check(**STEPS[step])


def test_concept_losses_and_what_passes_no_gradient_are_in_it():
    plain = check("tsdae")
    assert check("tsdae", concept_loss="covariance,uniformity") > plain
    deep = [check("tsdae", dict(encoder="recursive", iterations=3, backprop_iterations=k)) for k in (1, 2, 0)]
    assert deep == sorted(set(deep)) and check("tsdae", frozen=True) < plain


def test_chunks_of_the_logits_count_once(monkeypatch):
    """Their gradients are taken in the forward."""
    whole = check("tsdae")
    monkeypatch.setattr(losses, "CPU_CHUNK", 7)
    assert check("tsdae") == whole


def test_an_ffn_made_again_in_backward_counts_once(monkeypatch):
    shape = ModelConfig(**SMALL | {"vocab_size": V})
    whole = check("tsdae")
    monkeypatch.setattr("layers.RECOMPUTED", 0)
    assert cost(Plan((N,), B * N, B * N, 1), shape, Objectives(ObjectiveConfig()))[1] == whole
