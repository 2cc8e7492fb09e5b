"""The model against the slow reference, against loops, and against what it says about its own cost."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from registries import MASK, STRUCTURES, build, built_for, make_problems, masked_problem, name, one_part
from registries import OWN_DECODERS as DECODERS
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

import layers as layers_file
from encoders import ENCODERS
from lab.reference import ReferenceMLM, copy_weights, reference_inputs
from layers import attention, keys_values, rotate
from model import ConceptModel, ModelConfig, count_flops
from objectives import OBJECTIVES
from problem import Problem

ENCODING = [keys for keys in STRUCTURES if keys["decoder"] == ModelConfig.decoder]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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


FAITHFUL = [  # decoder, tied, token_dim
    ("input", True, 0),
    ("input", False, 8),
    ("posonly", True, 0),
    ("posonly", False, 8),
    ("weighted", False, 0),
]
PLAIN = [
    dict(objective="mlm", replace="80_10_10"),
    dict(objective="mlm", visible_only=True),
    dict(objective="tsdae", positions="original", score_rate=0.5),
]
CASES = itertools.product(FAITHFUL, PLAIN)


@pytest.mark.parametrize(
    "shape,objective",  # where tsdae shows the queries [MASK], the reference shows them the row itself
    [(shape, keys) for shape, keys in CASES if not (shape[0] == "input" and keys["objective"] == "tsdae")],
    ids=str,
)
def test_equals_reference(shape, objective):
    model = perturb(build(**dict(zip(("decoder", "tied", "token_dim"), shape, strict=True)), original_structure=True))
    reference = ReferenceMLM(model.config).double()
    copy_weights(model, reference)
    assert sum(p.numel() for p in reference.parameters()) == model.num_parameters()
    _, (problem,) = make_problems(**objective)
    ids, keep, labels = reference_inputs(problem)

    (loss,), (concepts,) = model(problem)
    torch.testing.assert_close(concepts, reference.encode(ids, keep))
    hidden = reference.decode(reference.encode(ids, keep), ids)  # [B, N, H]
    at_scored = problem.scored[..., None].expand(-1, -1, hidden.shape[-1])
    expected = F.layer_norm(hidden, hidden.shape[-1:]).gather(1, at_scored)
    torch.testing.assert_close(model.decode(concepts, problem), expected)

    masked = labels != -100
    expected = F.cross_entropy(reference.head_logits(hidden[masked]), labels[masked])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss.float(), reference(ids, keep, labels))
    loss.backward()
    expected.backward()
    torch.testing.assert_close(model.tokens.weight.grad, reference.tokens.weight.grad)
    torch.testing.assert_close(model.encoder.slots.content.grad, reference.slots.grad)


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
    """One step: every parameter has a gradient (DDP waits for it), and the loss of the same rows falls by as much as
    they say. Every objective with every encoder and decoder, one with their pairs and settings."""
    alone = sum(keys[key] != getattr(ModelConfig, key) for key in keys) <= 1
    for objective in OBJECTIVES if alone and len(keys) == 2 else ["tsdae"]:
        objectives, problems = make_problems(objective=objective)
        more = built_for(objectives, keys["decoder"]) | {"decoder_layers": 2}
        model = perturb(build(**keys | more))  # what begins at zero is not there
        losses = []
        for _ in range(2):
            model.zero_grad()
            torch.manual_seed(0)  # of words dropped
            loss = objectives.total(objectives.losses(*model(*problems), problems))
            loss.backward()
            assert not without_gradient(model), objective
            norm = sum(p.grad.square().sum() for p in model.parameters())
            with torch.no_grad():
                for p in model.parameters():
                    p -= 1e-5 / norm.sqrt() * p.grad
            losses.append((loss.item(), norm.item()))
        (before, norm), (after, _) = losses
        if "concepts" in objectives.predicts:
            continue  # its targets move too, without a gradient
        assert after - before == pytest.approx(-1e-5 * norm**0.5, rel=0.01), objective


@pytest.mark.parametrize("keys", [*map(one_part, DECODERS), dict(token_dim=8), dict(tied=False, token_dim=8)], ids=name)
def test_scored_positions_equal_all_positions(keys):
    """The decoder at K positions is the decoder at all of them, then gathered; so is the loss."""
    model, problem = build(**keys), masked_problem()
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
    assert torch.equal(decode(source=other), hidden)
    assert torch.equal(decode(targets=other), hidden) == (decoder != "causal")  # teacher forcing
    torch.testing.assert_close(decode(query_ids=None), decode(query_ids=torch.full((3, 12), MASK)))
    assert not torch.allclose(decode(concepts[[1, 2, 0]]), hidden)
    if decoder in ("posonly", "weighted", "causal"):
        assert torch.equal(decode(query_ids=other), hidden)
    if decoder in ("input", "diffusion"):
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
    predicted = model.generate(concepts, 5)
    hidden = model.decode(concepts, Problem(source=ids, targets=predicted, query_pos=torch.arange(5)[None]))
    assert torch.equal(predicted, model.logits(hidden).argmax(-1).expand(2, -1))


def test_what_is_predicted_is_said_by_predicts_alone():
    """Not by which fields are None."""
    model = build()
    concepts = model.encode(masked_problem().source)
    assert torch.equal(model.loss(concepts, masked_problem(predicts="none")), concepts.mean(1))
    pooled = masked_problem(predicts="pooled", scored=None)
    assert model.decode(concepts, pooled).shape == (3, 1, 16)
    assert torch.equal(
        model.loss(concepts, pooled),
        model.loss(concepts, masked_problem(predicts="pooled", scored=None, query_pos=None)),
    )


# ---- the pooled prediction, and models without a decoder


@pytest.mark.parametrize("keys", [dict(), dict(token_dim=8), dict(tied=False), dict(init="gpt2")], ids=name)
@pytest.mark.parametrize("predicts", [("pooled",), ("pooled", "positions")], ids=str)
def test_a_pooled_prediction_equals_its_formula(predicts, keys):
    """Mean of the concepts, RMS-norm, (thin tokens: narrowed,) tied embeddings / sqrt(T), with or without a decoder."""
    _, (problem,) = make_problems(objective="bow")
    model = perturb(build(predicts=predicts, **keys))
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
    for kind, more in ("pooled", head), ("none", set()), ("vectors", {"predictor"}):
        parts = {path.split(".")[0] for path, _ in build(predicts=(kind,), **keys).named_parameters()}
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


@pytest.mark.parametrize("keys,passes", SHARING)
def test_parts_that_read_the_same_share_one_encoder_pass(keys, passes):
    """Compiled: tests/test_concept_losses.py."""
    model, calls = build(layers=1), []
    objectives, problems = make_problems(**keys)
    apart = [copy.deepcopy(problem) for problem in problems]  # equal tensors, but not the same
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for given in problems, apart:
        calls.clear()
        losses, concepts = model(*given)
        gradients = torch.autograd.grad(objectives.total(losses), list(model.parameters()))
        found.append((len(calls), losses, concepts, gradients))
    (shared, *ours), (two, *theirs) = found
    assert (shared, two) == (passes, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


# ---- cost


def test_measuring_holds_no_model():
    """A hundred billion parameters."""
    config = ModelConfig(layers=4, hidden=49152, heads=512, intermediate=49152, concepts=16, vocab_size=50000)
    assert count_flops(config, lambda model: None)[0] > 1e11


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
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(sum(losses), parameters), strict=True))


def cosine(a, b):
    return F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]
# (keys, the least cosine of a gradient): deeper ones round more
PARTS = [(dict(decoder=d, layers=1), 0.999) for d in DECODERS]
PARTS += [(dict(encoder=e), 0.99) for e in ENCODERS if e != ModelConfig.encoder]
PARTS += [(dict(encoder="slot"), 0.98), (dict(token_layers=1, token_window=4, concept_position="cope"), 0.98)]
MANY = dict(encoder="bixt", token_dim=32, decoder="diffusion", decoder_window=2)
COMPILED = [(MANY | {"layers": 1}, 0.98, "eager", (16,))]  # two lengths: tests/test_compile.py
COMPILED += [pytest.param(*part, b, (16, 32), marks=SLOW) for part in PARTS for b in ("aot_eager", "inductor")]


@pytest.mark.parametrize("keys,least,backend,lengths", COMPILED, ids=str)
def test_compiled_bfloat16_is_one_graph_a_length_and_close_to_eager_float32(keys, least, backend, lengths):
    """As training calls it: two lengths, a sum, several chunks of logits."""
    shape = dict(layers=2, iterations=2, hidden=64, heads=4, intermediate=128, concepts=8, max_length=32)
    model = ConceptModel(ModelConfig(**shape | keys, vocab_size=500), MASK)
    if keys.get("decoder") == "diffusion":
        perturb(model)  # what begins at zero passes no gradient on
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
        assert min(low.values()) > least, min(low.items(), key=lambda item: item[1])
        assert all(gradient.dtype == torch.float32 for gradient in close.values())
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == len(lengths)


@pytest.mark.parametrize(
    "keys", [dict(nested=True, concepts=2), dict(encoder="recursive", iterations=2, min_iterations=1)]
)
def test_compiled_once_for_all_that_a_step_may_run_with(keys):
    model = build(dtype=torch.float32, layers=1, **keys)
    variants = [options for _, options in model.config.variants()]
    torch._dynamo.reset()
    counters.clear()
    run = torch.compile(model, backend="eager", dynamic=False)
    with torch._dynamo.config.patch(cache_size_limit=len(variants) + 1):
        for options in variants * 2:
            (loss,), _ = run(masked_problem(), options=options)
            assert loss.item() == pytest.approx(model(masked_problem(), options=options)[0][0].item(), rel=1e-5)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == len(variants)


# ---- configuration


@pytest.mark.parametrize(
    "keys,word",
    [
        (dict(encoder="nope"), "perceiver"),
        (dict(decoder="nope"), "posonly"),
        (dict(hidden=100, heads=8), "heads = 5"),
        (dict(token_dim=600), "token_dim"),
        (dict(original_structure=True, token_position="rope"), "learned"),
        (dict(original_structure=True, decoder="weighted"), "tied = False"),
        (dict(original_structure=True, token_dim=64), "tied = False"),
        (dict(token_position="rope", hidden=24, heads=8), "even"),
        (dict(concept_position="rope", hidden=24, heads=8), "even"),
        (dict(encoder="funnel", concept_position="learned"), "rope"),
        (dict(encoder="perceiver_io", layers=2, reads=3), "reads = 2"),
        (dict(encoder="recursive", iterations=2, backprop_iterations=3), "2 or less"),
        (dict(encoder="recursive", iterations=64, min_iterations=1), "larger min_iterations"),
        (dict(concepts=100, concepts_per_token=0.1), "write concepts = 64"),
        (dict(concepts=4, concepts_per_token=0.1), "write concepts = 8"),
        (dict(concepts=8, concepts_per_token=0.1, nested=True), "leave concepts_per_token out"),
    ],
)
def test_impossible_configurations_say_what_to_write(keys, word):
    with pytest.raises(ValueError, match=word):
        ModelConfig(**keys)


def test_keys_that_the_chosen_parts_do_not_read():
    others = {"iterations", "min_iterations", "backprop_iterations", "reads", "token_window"}
    others |= {"decoder_window", "timestep", "word_dropout", "chunk", "merge", "merge_layers", "min_concepts"}
    others |= {f"backbone_{key}" for key in ("layers", "causal", "freeze", "lr", "read")}
    assert ModelConfig(token_init="spectral").unused() == others
    assert ModelConfig().unused() == others | {"spectral_share"}
    assert ModelConfig(decoder="weighted").unused() == others | {"decoder_layers", "spectral_share"}
    for kind in "pooled", "none", "concepts", "vectors":
        found = ModelConfig(predicts=(kind,)).unused()
        assert found == others | {"decoder", "decoder_layers", "spectral_share"}
    assert ModelConfig(encoder="dense").unused() == others | {"spectral_share", "registers"}
    assert ModelConfig(encoder="recursive", token_layers=1).unused() & {"layers", "iterations", "token_window"} == {
        "layers"
    }


def test_absurd_heads_are_answered_at_once():
    with pytest.raises(ValueError, match="write heads = 512"):
        ModelConfig(heads=10**12)
