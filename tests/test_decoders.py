"""Decoders against slow references: what each sees, and what it begins as."""

import math

import pytest
import torch
import torch.nn.functional as F
from registries import MASK, build, masked_problem
from test_encoders import heads, norm
from test_model import perturb, slow_attention

from layers import ZeroLinear
from problem import Problem


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- diffusion


def test_diffusion_equals_its_formula():
    """AdaLN-Zero of the share that is hidden, 4 of 12 positions."""
    model, problem = perturb(build(decoder="diffusion", decoder_layers=2)), masked_problem()
    decoder, concepts = model.decoder, model.encode(problem.source)
    half = torch.tensor([1000 * 4 / 12 * 10000 ** (-i / 8) for i in range(8)], dtype=torch.float64)
    wave = torch.cat([half.sin(), half.cos()])
    time = decoder.time[2](F.silu(decoder.time[0](wave)))
    x = decoder.positions(problem.scored) + model.tokens(problem.query_ids.gather(1, problem.scored))
    for cross, ffn, modulation in zip(decoder.cross, decoder.ffns, decoder.modulations, strict=True):
        scale, shift, gate, scale2, shift2, gate2 = modulation(F.silu(time)).view(6, 16)
        q = heads((F.layer_norm(x, (16,)) * (1 + scale) + shift) @ cross.q.weight.T)
        k, v = (heads(t) for t in (concepts @ cross.kv.weight.T).chunk(2, -1))
        read = slow_attention(q, k, v, torch.ones(3, 6, dtype=torch.bool)) @ cross.out.weight.T
        x = x + (1 + gate.tanh() / 2) * read
        a, g = ((F.layer_norm(x, (16,)) * (1 + scale2) + shift2) @ ffn.wi.weight.T).chunk(2, -1)
        x = x + gate2 * ((F.gelu(a) * g) @ ffn.wo.weight.T)
    torch.testing.assert_close(model.decode(concepts, problem), model.norm(x), atol=1e-4, rtol=1e-4)  # float32 waves


def test_diffusion_begins_with_its_concepts_open():
    """Modulations are zero whatever the init; the concepts' gate is then 1, and never leaves 0.5 ... 1.5."""
    for init in ("fan_in_positions", "gpt2"):
        model = build(decoder="diffusion", init=init)
        zero = [module for module in model.modules() if isinstance(module, ZeroLinear)]
        assert zero and not any(p.any() for module in zero for p in module.parameters())
    problem = masked_problem()
    concepts = model.encode(problem.source)
    assert not torch.allclose(model.decode(concepts[[1, 2, 0]], problem), model.decode(concepts, problem))
    with torch.no_grad():
        for size in (-1e6, 1e6):
            for modulation in model.decoder.modulations:
                modulation.bias.view(6, 16)[2] = size
            assert not torch.allclose(model.decode(concepts[[1, 2, 0]], problem), model.decode(concepts, problem))


def test_local_layers_let_visible_tokens_inform_hidden_ones():
    problem = masked_problem()
    for window in (0, 2):
        model = perturb(build(decoder="diffusion", decoder_window=window))
        concepts, shown = model.encode(problem.source), problem.query_ids.clone()
        shown[problem.query_ids != MASK] = 7
        same = torch.equal(
            model.decode(concepts, masked_problem(query_ids=shown)), model.decode(concepts, masked_problem())
        )
        assert same == (window == 0)


def test_diffusion_of_the_seeds_has_its_own_tokens():
    model, problem = perturb(build(decoder="diffusion", original_structure=True)), masked_problem()
    concepts = model.encode(problem.source)
    before = model.decode(concepts, problem)
    with torch.no_grad():
        model.tokens.weight += 1
    assert torch.equal(model.decode(concepts, problem), before)
    with torch.no_grad():
        model.decoder.tokens.weight += torch.randn(40, 16)
    assert not torch.allclose(model.decode(concepts, problem), before)


# ---- causal


def test_causal_equals_a_loop():
    """Position i sees [MASK], then the clean tokens 0 ... i - 1, and the concepts."""
    model, problem = perturb(build(decoder="causal", decoder_layers=2)), masked_problem(scored=None)
    decoder, concepts = model.decoder, model.encode(problem.source)
    before = torch.cat([torch.full((3, 1), MASK), problem.targets[:, :-1]], 1)
    x = model.tokens(before) + decoder.positions.weight
    for layer in decoder.layers:
        block, cross, out = layer.self_attention, layer.cross, []
        q, k, v = (heads(t) for t in (norm(x, block.norm) @ block.qkv.weight.T).chunk(3, -1))
        for i in range(12):
            scores = (q[:, :, i : i + 1] @ k[:, :, : i + 1].mT / math.sqrt(8)).softmax(-1)
            out.append(scores @ v[:, :, : i + 1])
        x = x + torch.cat(out, 2).transpose(1, 2).flatten(2) @ block.out.weight.T
        q = heads(norm(x, cross.norm) @ cross.q.weight.T)
        k, v = (heads(t) for t in (concepts @ cross.kv.weight.T).chunk(2, -1))
        x = x + slow_attention(q, k, v, torch.ones(3, 6, dtype=torch.bool)) @ cross.out.weight.T
        x = layer.ffn(x)
    torch.testing.assert_close(model.decode(concepts, problem), model.norm(x))


def test_words_are_dropped_in_training_alone():
    model = build(decoder="causal", word_dropout=0.5)
    plain, problem = build(decoder="causal"), masked_problem()
    concepts = model.encode(problem.source)
    assert not torch.equal(model.decode(concepts, problem), plain.decode(concepts, problem))
    assert torch.equal(model.eval().decode(concepts, problem), plain.decode(concepts, problem))
    model.train().decoder.word_dropout = 1.0  # all: the span is [MASK] throughout
    hidden = masked_problem(targets=torch.full((3, 12), MASK))
    torch.testing.assert_close(model.decode(concepts, problem), plain.decode(concepts, hidden))


# ---- concepts in order


@pytest.mark.parametrize("decoder", ["posonly", "input", "diffusion", "causal"])
def test_the_order_of_concepts_counts_with_cope(decoder):
    for kind in ("none", "cope"):
        model, problem = perturb(build(decoder=decoder, concept_position=kind)), masked_problem()
        concepts = model.encode(problem.source)
        turned = model.decode(concepts.flip(1), problem)
        assert torch.allclose(turned, model.decode(concepts, problem)) == (kind == "none")


def test_the_order_of_concepts_counts_with_rope():
    for kind in ("none", "rope"):
        model, ids = perturb(build(concept_position=kind)), torch.randint(40, (2, 9))
        concepts = model.encode(ids)
        with torch.no_grad():
            model.encoder.slots.content.copy_(model.encoder.slots.content.flip(0))
        assert torch.allclose(model.encode(ids).flip(1), concepts) == (kind == "none")


@pytest.mark.parametrize("decoder", ["posonly", "causal"])
def test_sampling_follows_the_softmax(decoder):
    """Of the first position: counts of 4,000 draws against its probabilities; the same seed, the same draws."""
    model = perturb(build(decoder=decoder))
    concepts = model.encode(torch.randint(40, (1, 9)))
    problem = Problem(source=concepts, targets=torch.zeros(1, 1, dtype=torch.int64), query_pos=torch.zeros(1, 1).long())
    expected = (model.logits(model.decode(concepts, problem)) / 0.7).softmax(-1)[0, 0]
    draws = [
        model.generate(concepts.expand(4000, -1, -1), 1, temperature=0.7) for _ in map(torch.manual_seed, (1, 1, 2))
    ]
    found = torch.bincount(draws[0][:, 0], minlength=40) / 4000
    assert (found - expected).abs().max() < 0.04
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_generation_needs_no_target():
    model = build(decoder="causal")
    concepts = model.encode(torch.randint(40, (2, 9)))
    ids = model.generate(concepts, 12)
    hidden = model.decode(concepts, Problem(source=ids, targets=ids, query_pos=torch.arange(12)[None]))
    assert torch.equal(ids, model.logits(hidden).argmax(-1))
