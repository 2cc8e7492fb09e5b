"""The model against the slow reference, against loops, and against what it says about its own cost and start."""

import copy
import itertools
import lzma
import math
from dataclasses import fields
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import torch.nn.functional as F
from conftest import real_data
from registries import SMALL, STRUCTURES, name
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import layers as layers_file
from decoders import DECODERS
from encoders import ENCODERS
from geometry import input_share, rank_slot_centred
from lab.configurator import read_config
from lab.reference import ReferenceMLM, copy_weights, reference_inputs
from layers import attention, keys_values, rotate
from model import ConceptModel, ModelConfig, measure
from noise import Noise
from objectives import OBJECTIVES, ObjectiveConfig, Objectives, Problem, Rows, Vocabulary

ROOT = Path(__file__).resolve().parent.parent
MASK = 3
ENCODING = [keys for keys in STRUCTURES if keys["decoder"] == ModelConfig.decoder]


def build(seed=0, dtype=torch.float64, **keys):
    return ConceptModel(ModelConfig(**{**SMALL, **keys}), MASK, seed).to(dtype)


def make_problems(B=4, N=12, vocab=40, seed=1, **keys):
    """The objective that the keys say, on random text -> (Objectives, one Problem a part)."""
    objectives = Objectives(ObjectiveConfig(**keys))
    ids = torch.randint(MASK + 1, vocab, (B, N), generator=torch.Generator().manual_seed(seed))
    vocabulary = Vocabulary(vocab, MASK, idf=torch.linspace(0.5, 3, vocab))
    rows = Rows(ids, Noise(seed, 0, torch.arange(B)), vocabulary, documents=torch.arange(B))
    return objectives, objectives.problems(rows)


def masked_problem(B=3, N=12, K=4, vocab=40, seed=1, **fields):
    """An MLM problem: K columns of each row are hidden and scored."""
    noise = torch.Generator().manual_seed(seed)
    ids = torch.randint(MASK + 1, vocab, (B, N), generator=noise)
    scored = torch.rand(B, N, generator=noise).argsort(1)[:, :K].sort(1).values
    source = ids.scatter(1, scored, MASK)
    given = dict(source=source, targets=ids, query_pos=torch.arange(N)[None], query_ids=source, scored=scored)
    return Problem(**{**given, **fields})


def perturb(model, seed=5):
    """Biases, gains and everything else away from their initial zeros and ones."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=noise, dtype=p.dtype))
    return model


def without_gradient(model):
    return [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


# ---- against the reference


FAITHFUL = [
    ("input", True, 0),
    ("input", False, 8),
    ("posonly", True, 0),
    ("posonly", False, 8),
    ("weighted", False, 0),
]


@pytest.mark.parametrize("objective", [dict(objective="mlm"), dict(objective="mlm", visible_only=True), dict(
    objective="tsdae", positions="original", score_rate=0.5)], ids=name)  # fmt: skip
@pytest.mark.parametrize("decoder,tied,token_dim", FAITHFUL)
def test_equals_reference(decoder, tied, token_dim, objective):
    if decoder == "input" and objective["objective"] == "tsdae":
        pytest.skip("its queries are [MASK], the reference's the row itself")
    model = perturb(build(decoder=decoder, tied=tied, token_dim=token_dim, seeds_faithful=True))
    reference = ReferenceMLM(model.config).double()
    copy_weights(model, reference)
    assert sum(p.numel() for p in reference.parameters()) == model.num_parameters()
    _, (problem,) = make_problems(**objective)
    ids, keep, labels = reference_inputs(problem)

    (loss,), (concepts,) = model(problem)
    torch.testing.assert_close(concepts, reference.encode(ids, keep))
    hidden = reference.decode(concepts, ids)  # [B, N, H]
    hidden = F.layer_norm(hidden, hidden.shape[-1:])
    at_scored = hidden.gather(1, problem.scored[..., None].expand(-1, -1, hidden.shape[-1]))
    torch.testing.assert_close(model.decode(concepts, problem), at_scored)

    (reference_loss := reference(ids, keep, labels)).backward()  # a float32 cross-entropy
    torch.testing.assert_close(loss.float(), reference_loss)
    loss.backward()
    torch.testing.assert_close(model.tokens.weight.grad, reference.tokens.weight.grad, atol=1e-6, rtol=1e-4)
    slots = model.encoder.slots.content.grad
    torch.testing.assert_close(slots, reference.slots.grad, atol=1e-6, rtol=1e-4)


def slow_attention(q, k, v, mask):
    out = torch.empty_like(q)
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        scores = torch.stack([q[b, h, i] @ key for key in k[b, h]]) / math.sqrt(q.shape[-1])
        weights = torch.where(mask[b], scores, -math.inf).softmax(0)
        out[b, h, i] = sum(w * value for w, value in zip(weights, v[b, h], strict=True))
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("explicit", [True, False])
def test_attention_equals_loop(explicit, monkeypatch):
    monkeypatch.setattr(layers_file, "plain_products", lambda q, k: explicit)
    torch.manual_seed(0)
    q, k, v = [torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7)]
    mask = torch.rand(2, 7) < 0.6
    mask[:, 0] = True
    close = dict(atol=1e-6, rtol=0) if explicit else {}  # its softmax is float32: it is for bfloat16
    torch.testing.assert_close(attention(q, k, v, mask), slow_attention(q, k, v, mask), **close)
    shared = attention(q[:1], k, v)  # queries that are equal for all rows
    expected = slow_attention(q[:1].expand(2, -1, -1, -1), k, v, torch.ones_like(mask))
    torch.testing.assert_close(shared, expected, **close)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_thin_tokens_and_positions_equal_a_loop(position):
    """Ours, straight from the formulas: norm(E + P) -> K, V from T; turned keys, unturned queries; reads by hand."""
    model = perturb(build(token_dim=8, token_position=position))
    encoder, ids = model.encoder, torch.randint(40, (2, 9))
    pos = torch.tensor([0, 1, 2, 4, 5, 6, 7, 10, 11])
    x, z = model.tokens.weight[ids], encoder.slots.content.expand(2, -1, -1)
    if position == "learned":
        x = x + model.positions.weight[pos]
    x = F.layer_norm(x, (8,), encoder.norm_tokens.weight)
    for layer in encoder.layers:
        cross = layer.cross
        k, v = [(x @ w.T).view(2, 9, 2, 8).transpose(1, 2) for w in cross.kv.weight.chunk(2)]
        if position == "rope":
            for n, j in itertools.product(range(9), range(4)):  # plane (j, j + 4) turns by pos * 10000^(-j / 4)
                angle = int(pos[n]) * 10000 ** (-j / 4)
                a, b = k[:, :, n, j].clone(), k[:, :, n, j + 4].clone()
                k[:, :, n, j] = a * math.cos(angle) - b * math.sin(angle)
                k[:, :, n, j + 4] = b * math.cos(angle) + a * math.sin(angle)
        q = (F.layer_norm(z, (16,), cross.norm.weight) @ cross.q.weight.T).view(2, 6, 2, 8).transpose(1, 2)
        z = z + slow_attention(q, k, v, torch.ones(2, 9, dtype=torch.bool)) @ cross.out.weight.T
        z = layer.ffn(layer.self_attention(z))
    torch.testing.assert_close(model.encode(ids, pos[None]), encoder.norm(z), atol=1e-5, rtol=1e-5)  # float32 angles


def test_sinusoidal_slots_equal_a_loop():
    encoder = build(concept_position="sinusoidal").encoder
    for c, j in itertools.product(range(6), range(16)):
        angle = c * 10000 ** -((j - j % 2) / 16)
        expected = encoder.slots.content[c, j] + (math.cos(angle) if j % 2 else math.sin(angle))
        torch.testing.assert_close(encoder.slots()[0, c, j], expected, atol=1e-6, rtol=0)


# ---- positions


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_the_order_of_tokens_counts_only_through_positions(position):
    model, ids, order = build(token_position=position), torch.randint(40, (2, 9)), torch.randperm(9)
    concepts = model.encode(ids)
    assert not torch.allclose(model.encode(ids[:, order]), concepts)
    torch.testing.assert_close(model.encode(ids[:, order], order[None]), concepts)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_positions_are_absolute_for_concepts(position):
    """With rotary positions, too: a latent query stands nowhere, so a shift of all tokens turns every score."""
    model, ids = build(token_position=position), torch.randint(40, (2, 9))
    pos = torch.arange(9)[None]
    assert torch.equal(model.encode(ids, pos), model.encode(ids))
    assert (model.encode(ids, pos + 3) - model.encode(ids)).norm() > 1e-2 * model.encode(ids).norm()


def test_turned_queries_and_keys_score_by_their_distance():
    """What self-attention would turn. A query that is not turned scores by where its key stands."""
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def at(i):
        return torch.tensor([[i]])

    def score(i, j):
        return (rotate(q, at(i)) * rotate(k, at(j))).sum()

    torch.testing.assert_close(score(5, 2), score(105, 102), atol=1e-4, rtol=0)
    assert abs(score(5, 2) - score(5, 3)) > 1e-2
    torch.testing.assert_close(rotate(q, at(0)), q)
    torch.testing.assert_close(rotate(q, at(77)).norm(), q.norm(), atol=1e-6, rtol=0)


# ---- every encoder and decoder


@pytest.mark.parametrize("keys", ENCODING, ids=name)
def test_neither_padding_nor_other_rows_change_anything(keys):
    model = perturb(build(**keys))
    ids, lengths = torch.randint(40, (4, 12)), (12, 7, 1, 9)
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    batch, vectors = model.encode(ids, mask=mask), model.embed(ids, mask)
    for row, n in enumerate(lengths):
        alone = ids[row : row + 1, :n]
        torch.testing.assert_close(batch[row], model.encode(alone)[0], atol=1e-10, rtol=0)
        torch.testing.assert_close(vectors[row], model.embed(alone)[0], atol=1e-10, rtol=0)
    assert batch.shape == (4, 6, 16) and torch.equal(model.encode(ids, mask=torch.ones_like(mask)), model.encode(ids))


@pytest.mark.parametrize("keys", STRUCTURES, ids=name)
def test_every_structure_trains_under_every_objective(keys):
    """One step: every parameter has a gradient (DDP waits for it), and the loss of the same rows falls."""
    first = build(**keys, decoder_layers=2)
    for objective, part in OBJECTIVES.items():
        model = copy.deepcopy(first)
        if part.predicts != "positions":
            model = build(**keys | {"decoder": part.predicts})
        objectives, problems = make_problems(objective=objective)
        losses = []
        for _ in range(2):
            model.zero_grad()
            loss = objectives.total(objectives.losses(*model(*problems), problems))
            loss.backward()
            assert not without_gradient(model), objective
            norm = sum(p.grad.square().sum() for p in model.parameters())
            with torch.no_grad():
                for p in model.parameters():
                    p -= 1e-3 / norm.sqrt() * p.grad
            losses.append((loss.item(), norm.item()))
        (before, norm), (after, _) = losses
        assert after - before == pytest.approx(-1e-3 * norm**0.5, rel=0.1), objective


def one_part(part):
    """Keys of a model with this encoder or decoder, and the other by default."""
    return dict(encoder=part) if part in ENCODERS else dict(decoder=part)


@pytest.mark.parametrize("part", [*ENCODERS, *DECODERS])
def test_training_takes_three_times_the_measured_flops(part):
    """Of the sum of all objectives: what a counter sees in the forward and the backward of a real model is three times
    what `measure` counts in a forward of none."""

    def work(model):
        objectives, problems = make_problems(objective=" + ".join(OBJECTIVES))
        return objectives.total(objectives.losses(*model(*problems), problems))

    model = build(**one_part(part), decoder_layers=2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # others count as nothing on the CPU
        work(model).backward()
    parameters, modules = measure(model.config, work)
    assert counter.get_total_flops() == 3 * modules["Global"] > 0
    assert parameters == sum(p.numel() for p in model.parameters()) == model.num_parameters()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("keys", [dict(), dict(token_dim=8), dict(tied=False, token_dim=8)], ids=name)
def test_scored_positions_equal_all_positions(decoder, keys):
    """The decoder at K positions is the decoder at all of them, then gathered; so is the loss."""
    model, problem = build(decoder=decoder, **keys), masked_problem()
    concepts = model.encode(problem.source)
    dense = model.decode(concepts, masked_problem(scored=None))
    index = problem.scored[..., None].expand(-1, -1, dense.shape[-1])
    torch.testing.assert_close(model.decode(concepts, problem), dense.gather(1, index))
    ce = F.cross_entropy(model.logits(dense).flatten(0, 1), problem.targets.flatten(), reduction="none").view(3, 12)
    torch.testing.assert_close(model.loss(concepts, problem), ce.gather(1, problem.scored).mean())
    weights = torch.rand(3, 4, dtype=torch.float64)
    weighted = model.loss(concepts, masked_problem(weights=weights))
    torch.testing.assert_close(weighted, (ce.gather(1, problem.scored) * weights).sum())


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_see_only_what_they_may(decoder):
    model, problem = build(decoder=decoder), masked_problem()
    concepts = model.encode(problem.source)

    def decode(concepts=concepts, **fields):
        return model.decode(concepts, masked_problem(**fields))

    hidden = decode()
    other = torch.full((3, 12), 9)
    assert torch.equal(decode(targets=other), hidden) and torch.equal(decode(source=other), hidden)
    torch.testing.assert_close(decode(query_ids=None), decode(query_ids=torch.full((3, 12), MASK)))
    assert not torch.allclose(decode(concepts[[1, 2, 0]]), hidden)
    if decoder in ("posonly", "weighted"):
        assert torch.equal(decode(query_ids=other), hidden)
    if decoder == "input":
        assert not torch.allclose(decode(query_ids=other), hidden)


@pytest.mark.parametrize("part", [*ENCODERS, *DECODERS])
def test_dropout_only_in_training(part):
    model, problem = build(dropout=0.2, **one_part(part)), masked_problem()
    assert model(problem)[0][0] != model(problem)[0][0]
    model.eval()
    assert torch.equal(model(problem)[0][0], build(**one_part(part))(problem)[0][0])


@pytest.mark.parametrize("decoder", DECODERS)
def test_generate_takes_the_likeliest_token_of_every_position(decoder):
    model, ids = build(decoder=decoder), torch.randint(40, (2, 9))
    concepts = model.encode(ids)
    hidden = model.decode(concepts, Problem(source=ids, query_pos=torch.arange(5)[None]))
    assert torch.equal(model.generate(concepts, 5), model.logits(hidden).argmax(-1).expand(2, -1))


def test_what_is_predicted_is_said_by_predicts_alone():
    """Not by which fields are None."""
    model = build()
    concepts = model.encode(masked_problem().source)
    assert model.loss(concepts, masked_problem(predicts="none")) is None
    pooled = masked_problem(predicts="pooled", scored=None)
    assert model.decode(concepts, pooled).shape == (3, 1, 16)
    assert torch.equal(
        model.loss(concepts, pooled),
        model.loss(concepts, masked_problem(predicts="pooled", scored=None, query_pos=None)),
    )


# ---- the pooled prediction, and models without a decoder


@pytest.mark.parametrize("keys", [dict(), dict(token_dim=8), dict(tied=False), dict(init="gpt2")], ids=name)
@pytest.mark.parametrize("decoder", ["pooled", *DECODERS])
def test_a_pooled_prediction_equals_its_formula(decoder, keys):
    """Mean of the concepts, RMS-norm, (thin tokens: narrowed,) tied embeddings / sqrt(T); whatever decoder there is."""
    _, (problem,) = make_problems(objective="bow")
    model = perturb(build(decoder=decoder, **keys))
    (loss,), (concepts,) = model(problem)
    expected = 0.0
    for row in range(4):
        x = sum(concepts[row]) / len(concepts[row])
        x = x / x.square().mean().sqrt()
        if "token_dim" in keys:
            x = model.narrow.weight @ x
        head = model.head.weight if "tied" in keys else model.tokens.weight
        scores = head @ x / (1 if "tied" in keys or "init" in keys else math.sqrt(len(x)))
        log_p = scores - scores.exp().sum().log()
        expected -= sum(w * log_p[i] for w, i in zip(problem.weights[row], problem.targets[row], strict=True))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("keys", [dict(), dict(token_dim=8), dict(tied=False)], ids=name)
def test_models_without_a_decoder_hold_only_what_they_train(keys):
    head = {"narrow"} if "token_dim" in keys else {"head"} if "tied" in keys else set()
    for decoder, more in ("pooled", head), ("none", set()):
        parts = {path.split(".")[0] for path, _ in build(decoder=decoder, **keys).named_parameters()}
        assert parts == {"tokens", "positions", "encoder"} | more


# ---- sums


def test_parts_of_a_sum_run_in_one_forward():
    model, a, b = build(), masked_problem(), masked_problem(B=2, N=8, seed=2)
    (first, second), concepts = model(a, b)
    assert torch.equal(first, model(a)[0][0]) and torch.equal(second, model(b)[0][0])
    assert [c.shape for c in concepts] == [(3, 6, 16), (2, 6, 16)]


SHARING = [
    (dict(objective="tsdae + bow", bow_source="survivors"), 1),
    (dict(objective="bow + tsdae", bow_source="survivors", positions="original"), 1),
    (dict(objective="tsdae + bow", bow_source="row"), 2),
]


@pytest.mark.parametrize("keys,passes,compiled", [*((*case, False) for case in SHARING), (*SHARING[0], True)])
def test_parts_that_read_the_same_share_one_encoder_pass(keys, passes, compiled):
    model, calls = build(layers=1), []
    objectives, problems = make_problems(**keys)
    apart = [copy.deepcopy(problem) for problem in problems]  # equal tensors, but not the same
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for given in problems, apart:
        calls.clear()
        run = model if given is apart or not compiled else torch.compile(model, backend="aot_eager", fullgraph=True)
        losses, concepts = run(*given)
        gradients = torch.autograd.grad(objectives.total(losses), list(model.parameters()))
        found.append((len(calls), losses, concepts, gradients))
    (shared, *ours), (two, *theirs) = found
    assert (shared, two) == (passes, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


# ---- weights begin by name


def shared(model):
    parts = "tokens.", "positions.", "encoder."
    return {path: p for path, p in model.named_parameters() if path.startswith(parts)}


def same_weights(a, b):
    """The names that both have, where every tensor is equal to the bit."""
    both = a.keys() & b.keys()
    assert both and all(torch.equal(a[path], b[path]) for path in both)
    return both


@pytest.mark.parametrize("init", ["fan_in_positions", "fan_in_depth", "gpt2"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_arms_of_one_seed_share_the_weights_of_what_they_share(encoder, init):
    ours = shared(build(encoder=encoder, init=init))
    for decoder, tied in itertools.product([*DECODERS, "pooled", "none"], [True, False]):
        for more in dict(), dict(decoder_layers=3):
            other = shared(build(encoder=encoder, init=init, decoder=decoder, tied=tied, **more))
            assert same_weights(ours, other) == ours.keys() == other.keys()
    for other in ENCODERS:  # whatever reads them, the tokens are the same
        assert {"tokens.weight", "positions.weight"} <= same_weights(ours, shared(build(encoder=other, init=init)))
    seeds = dict(build(encoder=encoder, init=init, seed=1).named_parameters())
    drawn = [path for path, p in ours.items() if p.std() > 0]
    assert drawn and not any(torch.equal(ours[path], seeds[path]) for path in drawn)


def test_models_of_two_depths_share_their_first_layers():
    two, six = (dict(build(layers=layers, decoder="input").named_parameters()) for layers in (2, 6))
    assert same_weights(two, six) == two.keys()
    assert any(path.startswith("encoder.layers.5.") for path in six)


@pytest.mark.parametrize("keys", STRUCTURES, ids=name)
def test_no_two_tensors_begin_alike_or_are_the_same(keys):
    model = build(**keys, decoder_layers=2)
    state = model.state_dict()
    assert len({t.data_ptr() for t in state.values()}) == len(state)
    assert sum(t.numel() for t in state.values()) == model.num_parameters()
    drawn = [t.flatten()[:16] / t.std() for t in state.values() if t.std() > 0 and t.numel() >= 16]
    assert all(abs(F.cosine_similarity(a, b, dim=0)) < 0.999 for a, b in itertools.combinations(drawn, 2))
    other = build(**keys, decoder_layers=2, seed=2)
    other.load_state_dict(state)
    assert torch.equal(other(masked_problem())[0][0], model(masked_problem())[0][0])


def test_inits_have_the_scales_they_say():
    """As multiples of fan_in's: tokens, encoder positions, a residual output of the encoder and of the decoder."""
    depth = (3 * 2) ** -0.5
    small = 0.02 * 16**0.5  # of a linear with 16 inputs
    expected = {
        "fan_in": (1, 1, 1, 1),
        "fan_in_positions": (1, 0.1, 1, 1),
        "fan_in_depth": (1, 1, depth, 2**-0.5),
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


# ---- cost


def flops_by_hand(config, B, S, K, queries, sees):
    """Forward FLOPs (a multiply and an add are 2) of (encoder, decoder, head) for the perceiver, straight from the
    formulas. queries: for how many rows the first decoder layer makes queries; sees: tokens that `input` widens."""
    H, T, V, L, C = config.hidden, config.token_width, config.vocab_size, config.layers, config.concepts
    inner, faithful, thin = config.intermediate, config.seeds_faithful, T != H
    encoder = 2 * B * S * T * H if thin and faithful else 0
    encoder += 2 * B * S * (H if faithful else T) * 2 * H * L  # keys and values
    encoder += 2 * C * H * H * (1 + (L - 1) * B + L * B)  # queries (the first equal for all rows) and outputs
    encoder += 4 * L * B * C * S * H  # scores and mixtures
    encoder += L * B * (8 * C * H * H + 4 * C * C * H + 6 * C * H * inner)  # self-attention and FFN
    if config.decoder == "weighted":
        decoder = 2 * B * K * C * H + 2 * B * K * H * H
    else:
        D = config.decoder_layers
        decoder = 2 * K * H * H * (queries + (D - 1) * B + D * B)
        decoder += D * B * (4 * C * H * H + 4 * K * C * H + (4 if faithful else 6) * K * H * inner)
        decoder += 2 * T * H * sees if config.decoder == "input" and thin else 0
    head = 2 * B * K * ((T if config.tied else H) * V + (H * T if config.tied and thin else 0))
    return encoder, decoder, head


@pytest.mark.parametrize("widths", [dict(), dict(token_dim=8), dict(token_dim=8, tied=False, seeds_faithful=True)])
@pytest.mark.parametrize("decoder", ["input", "posonly", "weighted"])
def test_measured_flops_equal_the_formulas(decoder, widths):
    config = ModelConfig(**SMALL, decoder=decoder, decoder_layers=2, **widths)
    N, B, K, S = 12, 3, 4, 9
    zeros = lambda n: torch.zeros(B, n, dtype=torch.long)  # noqa: E731
    cases = [  # fields of the problem, (S, K, queries, sees)
        (lambda: dict(source=zeros(N), query_ids=zeros(N), scored=zeros(K)), (N, K, B, B * K)),
        (lambda: dict(source=zeros(S), scored=zeros(K)), (S, K, B, 1)),
        (lambda: dict(source=zeros(S)), (S, N, 1, 1)),  # all positions are scored: one set of queries for all rows
        (lambda: dict(source=zeros(N), query_ids=zeros(N)), (N, N, B if decoder == "input" else 1, B * N)),
    ]
    for given, sizes in cases:
        pos = lambda: dict(targets=zeros(N), query_pos=torch.arange(N)[None])  # noqa: E731
        _, modules = measure(config, lambda model, given=given, pos=pos: model(Problem(**given(), **pos())))
        encoder, decoder_flops, head = flops_by_hand(config, B, *sizes)
        assert modules["encoder"] == encoder and modules["decoder"] == decoder_flops
        assert modules["Global"] == encoder + decoder_flops + head


def test_measuring_holds_no_model():
    """A hundred billion parameters."""
    config = ModelConfig(layers=96, hidden=12288, heads=96, intermediate=12288, concepts=16, vocab_size=50000)
    assert measure(config, lambda model: None)[0] > 1e11


def test_recomputing_large_ffns_changes_no_gradient(monkeypatch):
    model, problem = build(decoder="input"), masked_problem()
    grads, flops = [], []
    for limit in (layers_file.RECOMPUTED, 0):
        monkeypatch.setattr(layers_file, "RECOMPUTED", limit)
        (loss,), _ = model(problem)
        with FlopCounterMode(display=False) as counter:
            grads.append(torch.autograd.grad(loss, list(model.parameters())))
        flops.append(counter.get_total_flops())
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    B, K = problem.scored.shape
    layer = model.encoder.layers[0].ffn.wi.weight.numel() * B * model.config.concepts
    again = 2 * (2 * layer + model.decoder.ffns[0].wi.weight.numel() * B * K)  # two layers, one decoder block
    assert flops[1] - flops[0] == again


@pytest.mark.parametrize("bias", [True, False])
def test_one_product_for_all_readers_equals_one_each(bias):
    x, readers = torch.randn(2, 5, 16), [torch.nn.Linear(16, 32, bias=bias) for _ in range(3)]
    torch.testing.assert_close(*[keys_values(x, readers, 2, fused=fused) for fused in (True, False)])


# ---- compiled, in bfloat16


def gradients(model, losses):
    return dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(sum(losses), [*model.parameters()]), strict=True)
    )


def cosine(a, b):
    return F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]
COMPILED = [("input", "aot_eager"), *(pytest.param(decoder, "inductor", marks=SLOW) for decoder in DECODERS)]


@pytest.mark.parametrize("decoder,backend", COMPILED)
def test_compiled_bfloat16_is_one_graph_a_length_and_close_to_eager_float32(decoder, backend):
    """As training calls it: two lengths, a sum, several chunks of logits."""
    lengths = (16, 32)
    shape = dict(layers=1, hidden=64, heads=4, intermediate=128, concepts=8, max_length=32, vocab_size=500)
    model = ConceptModel(ModelConfig(decoder=decoder, **shape), MASK)
    torch._dynamo.reset()
    counters.clear()
    run = torch.compile(model, backend=backend, dynamic=False)
    for repeat, n in itertools.product(range(2), lengths):
        _, problems = make_problems(B=512 // n, N=n, vocab=500, seed=repeat, objective="tsdae + bow")
        losses, _ = model(*problems)
        with torch.autocast("cpu", torch.bfloat16):
            compiled, _ = run(*problems)
        for a, b in zip(losses, compiled, strict=True):
            assert b.dtype == torch.float32 and b.item() == pytest.approx(a.item(), rel=1e-2)
        exact, close = gradients(model, losses), gradients(model, compiled)
        low = {path: cosine(exact[path], close[path]) for path in exact}
        assert min(low.values()) > 0.999, min(low.items(), key=lambda item: item[1])
        assert all(gradient.dtype == torch.float32 for gradient in close.values())
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == len(lengths)


# ---- configuration


@pytest.mark.parametrize(
    "keys,word",
    [
        (dict(encoder="nope"), "perceiver"),
        (dict(decoder="nope"), "posonly"),
        (dict(hidden=100, heads=8), "heads = 5"),
        (dict(token_dim=600), "token_dim"),
        (dict(layers=0), "layers"),
        (dict(dropout=1.0), "dropout"),
        (dict(vocab_size=-1), "vocab_size"),
        (dict(seeds_faithful=True, token_position="rope"), "learned"),
        (dict(seeds_faithful=True, decoder="weighted"), "tied = False"),
        (dict(seeds_faithful=True, token_dim=64), "tied = False"),
        (dict(token_position="rope", hidden=24, heads=8), "even"),
    ],
)
def test_impossible_configurations_say_what_to_write(keys, word):
    with pytest.raises(ValueError, match=word):
        ModelConfig(**keys)


def test_keys_that_the_chosen_parts_do_not_read():
    assert ModelConfig().unused() == set()
    assert ModelConfig(decoder="weighted").unused() == {"decoder_layers"}
    assert ModelConfig(decoder="none").unused() == {"decoder_layers"}
    known = {field.name for field in fields(ModelConfig)}
    assert all(part.uses <= known for part in (*ENCODERS.values(), *DECODERS.values()))


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


@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("keys", STRUCTURES, ids=name)
def test_every_structure_starts_well(keys, layers, manual):
    keys = keys | ({"token_dim": 64} if keys.get("token_dim") else {})
    check_start(SHRUNK | keys | {"layers": layers}, 64, manual)


QUICK = dict(layers=2, hidden=128, heads=4, intermediate=512, concepts=8)
MIDDLE = dict(layers=6, hidden=256, heads=4, intermediate=1024, concepts=32)
STARTS = [
    (QUICK, 16),
    (dict(MIDDLE, decoder="input", seeds_faithful=True), 128),
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
