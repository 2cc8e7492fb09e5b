"""How a model begins: weights by name, at the scales it says, neither collapsed nor saturated."""

import itertools
import lzma
import math
from dataclasses import fields
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import torch.nn.functional as F
from registries import MASK, SMALL, STRUCTURES, build, masked_problem, one_part, read_config
from registries import OWN_DECODERS as DECODERS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from encoders import ENCODERS
from geometry import input_share, rank_slot_centred
from model import ConceptModel, ModelConfig
from problem import Problem
from tests.conftest import real_data

ROOT = Path(__file__).resolve().parent.parent

# ---- weights begin by name


def shared(model):
    parts = "tokens.", "positions.", "encoder."
    return {path: p for path, p in model.named_parameters() if path.startswith(parts)}


def same_weights(a, b):
    """The names that both have, where every tensor is equal to the bit."""
    both = a.keys() & b.keys()
    assert both and all(torch.equal(a[path], b[path]) for path in both)
    return both


@pytest.mark.parametrize("init", ["fan_in_positions", "gpt2"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_arms_of_one_seed_share_the_weights_of_what_they_share(encoder, init):
    ours = shared(build(encoder=encoder, init=init))
    for more in *(dict(decoder=decoder) for decoder in DECODERS), dict(predicts=("none",)), dict(tied=False):
        other = shared(build(encoder=encoder, init=init, decoder_layers=3, **more))
        assert same_weights(ours, other) == ours.keys() == other.keys()
    for other in ENCODERS:  # whatever reads them, the tokens are the same
        tokens = {path: p for path, p in ours.items() if not path.startswith("encoder.")}
        assert same_weights(tokens, shared(build(encoder=other, init=init))) == {"tokens.weight", "positions.weight"}
    seeds = dict(build(encoder=encoder, init=init, seed=1).named_parameters())
    drawn = [path for path, p in ours.items() if p.std() > 0]
    assert drawn and not any(torch.equal(ours[path], seeds[path]) for path in drawn)


def test_models_of_two_depths_share_their_first_layers():
    two, six = (dict(build(layers=layers, decoder="input").named_parameters()) for layers in (2, 6))
    assert same_weights(two, six) == two.keys()
    assert any(path.startswith("encoder.layers.5.") for path in six)


@pytest.mark.parametrize("keys", [one_part(part) for part in (*ENCODERS, *DECODERS)], ids=str)
def test_no_two_tensors_begin_alike_or_are_the_same(keys):
    model = build(**keys, decoder_layers=2)
    state = model.state_dict()
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    assert sum(t.numel() for t in state.values()) == model.num_parameters()
    drawn = [t.flatten()[:16] / t.std() for t in state.values() if t.std() > 0 and t.numel() >= 16]
    assert all(abs(F.cosine_similarity(a, b, dim=0)) < 0.999 for a, b in itertools.combinations(drawn, 2))
    other = build(**keys, decoder_layers=2, seed=2)
    other.load_state_dict(state)
    assert torch.equal(other.eval()(masked_problem())[0][0], model.eval()(masked_problem())[0][0])


def test_inits_have_the_scales_they_say():
    """As multiples of fan_in's: tokens, encoder positions, a residual output of the encoder and of the decoder."""
    depth = (3 * 2) ** -0.5
    small = 0.02 * 16**0.5  # of a linear with 16 inputs
    expected = {
        "fan_in": (1, 1, 1, 1),
        "fan_in_positions": (1, 0.1, 1, 1),
        "gpt2": (0.02, 0.02, small * depth, small * 2**-0.5),
    }

    def weights(init):
        model = build(init=init)
        assert model.logit_scale == (1 if init == "gpt2" else 0.25)
        outputs = model.encoder.layers[1].self_attention.out, model.decoder.cross[0].out
        return [module.weight for module in (model.tokens, model.positions, *outputs)]

    for init, ratios in expected.items():
        for ratio, weight, unit in zip(ratios, weights(init), weights("fan_in"), strict=True):
            torch.testing.assert_close(weight, ratio * unit)
    stds = [weight.std().item() for weight in (*weights("fan_in")[:2], *(4 * w for w in weights("fan_in")[2:]))]
    assert stds == pytest.approx([1, 1, 1, 1], rel=0.15)


@pytest.mark.parametrize("init", ["fan_in", "fan_in_positions", "gpt2"])
def test_slots_are_of_unit_scale_and_tokens_are_read_at_that_of_token_and_position(init):
    for kind in ("none", "learned"):
        encoder = build(hidden=64, concepts=64, concept_position=kind, init=init).encoder
        slots = 0.02 * (2**0.5 if kind == "learned" else 1) if init == "gpt2" else 1  # with their positions
        assert encoder.slots().std().item() == pytest.approx(slots, rel=0.05)
        assert encoder.norm_tokens.weight.square().mean().item() == pytest.approx(1 if init == "gpt2" else 2)


@pytest.mark.parametrize("init,scale", [("fan_in", 1.0), ("gpt2", 0.02)])
def test_token_vectors_are_mixed_in_at_the_scale_of_the_init(init, scale):
    """share * vectors + sqrt(1 - share^2) * random, where there is a vector; [MASK] stays small, all else as it was."""
    vectors = F.normalize(torch.randn(40, 16, generator=torch.Generator().manual_seed(1)), dim=1) * 4
    vectors[7:11] = 0
    config = ModelConfig(**SMALL, init=init, token_init="spectral", spectral_share=0.6)
    plain = ConceptModel(ModelConfig(**SMALL, init=init), MASK)
    model = ConceptModel(config, MASK, token_vectors=vectors)
    known = [i for i in range(40) if i != MASK and not 7 <= i < 11]
    random = plain.tokens.weight[known]
    size = model.tokens.weight[known] - 0.8 * random
    torch.testing.assert_close(size, 0.6 * scale * vectors[known], rtol=0.1, atol=0.0)
    for i in range(7, 11):
        assert torch.equal(model.tokens.weight[i], plain.tokens.weight[i])
    assert model.tokens.weight[MASK].norm() < 0.5 * model.tokens.weight[known].norm(dim=1).min()
    others = {path: p for path, p in model.named_parameters() if path != "tokens.weight"}
    assert same_weights(others, dict(plain.named_parameters())) == others.keys()


# ---- the start: what is neither collapsed nor saturated learns

V, TEXTS = 4096, 64


def tokens(text):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=V, special_tokens=["[MASK]"], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return torch.tensor(tokenizer.encode(text[:200_000]).ids)


@pytest.fixture(scope="module")
def manual():
    """Python's own reference manual, which is in every installation."""
    return tokens(" ".join(topics.values()))


@pytest.fixture(scope="module")
def wikipedia():
    with lzma.open(real_data("text", "wiki_00.txt.xz"), "rt", encoding="utf-8") as file:
        return tokens(file.read(700_000))


def check_start(keys, N, text):
    model = ConceptModel(ModelConfig(vocab_size=V, **keys), 0)
    noise = torch.Generator().manual_seed(0)
    ids = text[torch.randint(len(text) - N, (TEXTS, 1), generator=noise) + torch.arange(N)]
    scored = torch.rand(TEXTS, N, generator=noise).argsort(1)[:, : max(4, N // 8)]
    source = ids.scatter(1, scored, 0)
    problem = Problem(source=source, targets=ids, query_pos=torch.arange(N)[None], query_ids=source, scored=scored)
    with torch.no_grad():
        (loss,), (concepts,) = model(problem)
    share = input_share(concepts)
    assert -0.05 <= loss - math.log(V) <= 0.8
    assert rank_slot_centred(concepts) >= model.config.concepts / 2
    assert share >= (0.05 if model.config.layers >= 6 or N <= 128 else 0.015)


SHRUNK = dict(hidden=128, heads=4, intermediate=256, concepts=16, max_length=64)


DEEP = [one_part(part) | {"layers": 6} for part in (*ENCODERS, *DECODERS)]


@pytest.mark.parametrize("keys", [*STRUCTURES, *DEEP], ids=str)
def test_every_structure_starts_well(keys, manual):
    keys = keys | ({"token_dim": 64} if keys.get("token_dim") else {})
    check_start(SHRUNK | {"layers": 2} | keys, 64, manual)


QUICK = dict(layers=2, hidden=128, heads=4, intermediate=512, concepts=8)
MIDDLE = dict(layers=6, hidden=256, heads=4, intermediate=1024, concepts=32)
STARTS = [
    (QUICK, 16),
    (dict(MIDDLE, decoder="input", original_structure=True), 128),
    (dict(MIDDLE, concept_position="sinusoidal", concepts=64, layers=2), 128),
]


@pytest.mark.parametrize("keys,N", STARTS, ids=str)
def test_larger_ones_start_well(keys, N, wikipedia):
    check_start(keys, N, wikipedia)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.py")), ids=lambda path: path.stem)
def test_presets_start_well(path, wikipedia):
    values = {key: value for key, (value, _) in read_config(path, ROOT).items()}
    keys = {f.name: values[f.name] for f in fields(ModelConfig) if f.name in values and f.name != "vocab_size"}
    check_start(keys | {"dropout": 0.0}, max(values["lengths"]), wikipedia)
