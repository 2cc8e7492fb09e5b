"""The model against the slow reference, against loops, and against what it says about its own size, cost and start."""

import itertools
import lzma
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import real_data
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import losses
import model as model_file
from geometry import input_share, rank_slot_centred
from lab.configurator import read_config
from lab.reference import ReferenceMLM, copy_weights
from model import ConceptModel, ModelConfig, attention, flops, rotate
from objectives import Problem

ROOT = Path(__file__).resolve().parent.parent
MASK = 3
SMALL = dict(layers=2, hidden=16, heads=2, intermediate=24, concepts=6, max_length=12, vocab_size=40)
SEEDS = dict(seeds_faithful=True, vocab_size=50368)


def build(seed=0, dtype=torch.float64, **keys):
    torch.manual_seed(seed)
    return ConceptModel(ModelConfig(**{**SMALL, **keys}), MASK).to(dtype)


def masked_problem(B=3, N=12, K=4, vocab=40, seed=1, **fields):
    """An MLM problem: K columns of each row are hidden and scored."""
    noise = torch.Generator().manual_seed(seed)
    ids = torch.randint(MASK + 1, vocab, (B, N), generator=noise)
    scored = torch.rand(B, N, generator=noise).argsort(1)[:, :K].sort(1).values
    source = ids.scatter(1, scored, MASK)
    given = dict(source=source, targets=ids, query_pos=torch.arange(N)[None], query_ids=source, scored=scored)
    return Problem(**{**given, **fields})


def bow_problem(B=3, N=12, vocab=40, seed=2):
    """The whole row is read, and said at once; its tokens do not count alike."""
    noise = torch.Generator().manual_seed(seed)
    ids = torch.randint(MASK + 1, vocab, (B, N), generator=noise)
    weights = torch.rand(B, N, generator=noise, dtype=torch.float64)
    return Problem(source=ids, targets=ids, weights=weights / weights.sum(1, keepdim=True) / B)


def views_problem(texts=3, S=7, vocab=40, seed=3):
    """Two views of each text, and nothing to be said."""
    source = torch.randint(MASK + 1, vocab, (2 * texts, S), generator=torch.Generator().manual_seed(seed))
    return Problem(source=source, views=2, group=torch.arange(texts).repeat(2))


def structures():
    """Every decoder x token width x head x positions that may be built, faithful and ours."""
    axes = dict(
        decoder=("input", "posonly", "weighted"),
        token_dim=(0, 8),
        tied=(True, False),
        token_position=("learned", "rope"),
        concept_position=("none", "learned", "sinusoidal"),
        seeds_faithful=(False, True),
    )
    for values in itertools.product(*axes.values()):
        keys = dict(zip(axes, values, strict=True))
        try:
            ModelConfig(**SMALL, **keys)
        except ValueError:
            continue
        yield keys


def perturb(model, seed=5):
    """Biases, gains and everything else away from their initial zeros and ones."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=noise, dtype=p.dtype))
    return model


# ---- against the reference


FAITHFUL = [
    ("input", True, 0),
    ("input", False, 8),
    ("posonly", True, 0),
    ("posonly", False, 8),
    ("weighted", False, 0),
]


@pytest.mark.parametrize("decoder,tied,token_dim", FAITHFUL)
def test_equals_reference(decoder, tied, token_dim):
    model = perturb(build(decoder=decoder, tied=tied, token_dim=token_dim, seeds_faithful=True))
    reference = ReferenceMLM(model.config).double()
    copy_weights(model, reference)
    assert sum(p.numel() for p in reference.parameters()) == model.num_parameters()
    problem = masked_problem()
    keep = torch.ones_like(problem.source, dtype=torch.bool)
    labels = torch.full_like(problem.source, -100)
    labels = labels.scatter(1, problem.scored, problem.targets.gather(1, problem.scored))

    (loss,), (concepts,) = model(problem)
    torch.testing.assert_close(concepts, reference.encode(problem.source, keep))
    hidden = reference.decode(concepts, problem.source)  # [B, N, H]
    hidden = F.layer_norm(hidden, hidden.shape[-1:])
    at_scored = hidden.gather(1, problem.scored[..., None].expand(-1, -1, hidden.shape[-1]))
    torch.testing.assert_close(model.decode(concepts, problem), at_scored)

    expected = torch.log_softmax(reference.head_logits(reference.decode(concepts, problem.source)), -1)
    expected = -expected.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100].mean()
    torch.testing.assert_close(loss, expected)
    (reference_loss := reference(problem.source, keep, labels)).backward()
    torch.testing.assert_close(loss.float(), reference_loss)
    loss.backward()
    torch.testing.assert_close(model.encoder.tokens.weight.grad, reference.tokens.weight.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(model.encoder.slots.grad, reference.slots.grad, atol=1e-6, rtol=1e-4)


def slow_attention(q, k, v, mask):
    out = torch.empty_like(q)
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        scores = torch.stack([q[b, h, i] @ key for key in k[b, h]]) / math.sqrt(q.shape[-1])
        weights = torch.where(mask[b], scores, -math.inf).softmax(0)
        out[b, h, i] = sum(w * value for w, value in zip(weights, v[b, h], strict=True))
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("explicit", [True, False])
def test_attention_equals_loop(explicit, monkeypatch):
    monkeypatch.setattr(model_file, "plain_products", lambda q, k: explicit)
    torch.manual_seed(0)
    q, k, v = [torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7)]
    mask = torch.rand(2, 7) < 0.6
    mask[:, 0] = True
    torch.testing.assert_close(attention(q, k, v, mask), slow_attention(q, k, v, mask))
    shared = attention(q[:1], k, v)  # queries that are equal for all rows
    torch.testing.assert_close(shared, slow_attention(q[:1].expand(2, -1, -1, -1), k, v, torch.ones_like(mask)))


def test_thin_tokens_and_rope_equal_a_loop():
    """Ours, straight from the formulas: norm(E + P) -> K, V from T; rotated keys; a read by hand, one layer."""
    for position in ("learned", "rope"):
        model = perturb(build(token_dim=8, token_position=position, layers=1))
        encoder, ids = model.encoder, torch.randint(40, (2, 9))
        x, read = encoder.tokens.weight[ids], encoder.layers[0].read
        if position == "learned":
            x = x + encoder.positions.weight[:9]
        x = F.layer_norm(x, (8,), encoder.norm_tokens.weight)
        k, v = [(x @ w.T).view(2, 9, 2, 8).transpose(1, 2) for w in read.kv.weight.chunk(2)]
        if position == "rope":
            for n in range(9):
                for j in range(4):  # plane (j, j + 4) of the head turns by n * 10000^(-j / 4)
                    c, s = math.cos(n * 10000 ** (-j / 4)), math.sin(n * 10000 ** (-j / 4))
                    a, b = k[:, :, n, j].clone(), k[:, :, n, j + 4].clone()
                    k[:, :, n, j], k[:, :, n, j + 4] = a * c - b * s, b * c + a * s
        z = encoder.slots.expand(2, -1, -1)
        q = (F.layer_norm(z, (16,), read.norm.weight) @ read.q.weight.T).view(2, 6, 2, 8).transpose(1, 2)
        z = z + slow_attention(q, k, v, torch.ones(2, 9, dtype=torch.bool)) @ read.out.weight.T
        z = encoder.norm(encoder.layers[0].ffn(encoder.layers[0].mix(z)))
        torch.testing.assert_close(model.encode(ids), z, atol=1e-5, rtol=1e-5)  # angles are float32


# ---- properties


@pytest.mark.parametrize("keys", [dict(), dict(token_position="rope"), dict(seeds_faithful=True), dict(token_dim=8)])
def test_padding_changes_nothing(keys):
    model = build(dtype=torch.float32, **keys)
    ids, lengths = torch.randint(40, (4, 12)), (12, 5, 1, 8)
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    batch = model.encode(ids, mask=mask)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(batch[row], model.encode(ids[row : row + 1, :n])[0], atol=1e-5, rtol=0)
        vector = model.embed(ids, mask)[row]
        torch.testing.assert_close(vector, model.embed(ids[row : row + 1, :n])[0], atol=1e-5, rtol=0)


def test_order_of_tokens_counts_only_through_positions():
    for position in ("learned", "rope"):
        model, ids, order = build(token_position=position), torch.randint(40, (2, 9)), torch.randperm(9)
        concepts = model.encode(ids)
        assert not torch.allclose(model.encode(ids[:, order]), concepts)
        torch.testing.assert_close(model.encode(ids[:, order], order[None]), concepts)


def test_rope_scores_depend_on_the_distance():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(i, j):
        return (rotate(q, torch.tensor([[i]])) * rotate(k, torch.tensor([[j]]))).sum()

    torch.testing.assert_close(score(5, 2), score(105, 102), atol=1e-4, rtol=0)
    torch.testing.assert_close(rotate(q, torch.tensor([[0]])), q)
    torch.testing.assert_close(rotate(q, torch.tensor([[77]])).norm(), q.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("keys", list(structures()), ids=lambda keys: "-".join(map(str, keys.values())))
def test_every_parameter_learns_and_flops_are_exact(keys):
    model = build(**keys, decoder_layers=2)
    problems = [
        masked_problem(),
        masked_problem(query_ids=None, scored=None),
        masked_problem(scored=None, source_pos=torch.arange(1, 10)[None].expand(3, -1), source=torch.full((3, 9), 7)),
        masked_problem(query_ids=None),
    ]
    for problem in problems:
        model.zero_grad()
        with sdpa_kernel(SDPBackend.MATH):  # other kernels count as nothing on the CPU
            with FlopCounterMode(display=False) as forward:
                (loss,), _ = model(problem)
            with FlopCounterMode(display=False) as backward:
                loss.backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without
        counts = flops(model.config, problem)
        product = 2 * problem.source.shape[0] * (problem.targets if problem.scored is None else problem.scored).shape[1]
        product *= model.head_weight().numel()  # the vocabulary's product, whose gradients are taken in its forward
        assert forward.get_total_flops() == sum(counts.values()) + 2 * product
        assert backward.get_total_flops() == 2 * (sum(counts.values()) - product)


PARTS = dict(tsdae=lambda: masked_problem(query_ids=None), bow=bow_problem, contrastive=views_problem)
SUMS = {  # parts of an objective -> the decoders it may have
    ("bow",): ("bag",),
    ("contrastive",): ("none",),
    ("bow", "contrastive"): ("bag",),
    ("tsdae", "bow"): ("input", "posonly", "weighted"),
    ("contrastive", "tsdae"): ("input", "posonly", "weighted"),
    ("tsdae", "bow", "contrastive"): ("input", "posonly", "weighted"),
}
WIDTHS = dict(token_dim=(0, 8), tied=(True, False), seeds_faithful=(False, True))


def sums():
    """Every sum of the three parts x its decoders x token width x head, faithful and ours, that may be built."""
    for parts, decoders in SUMS.items():
        for decoder, *values in itertools.product(decoders, *WIDTHS.values()):
            keys = dict(zip(WIDTHS, values, strict=True), decoder=decoder)
            try:
                ModelConfig(**SMALL, **keys)
            except ValueError:
                continue
            yield pytest.param(parts, keys, id="+".join(parts) + "-" + "-".join(map(str, keys.values())))


@pytest.mark.parametrize("parts,keys", list(sums()))
def test_sums_with_bags_and_views_train_every_parameter_and_flops_are_exact(parts, keys):
    model, problems = build(**keys), [PARTS[part]() for part in parts]
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            said, concepts = model(*problems)
        found = [c.pow(3).sum() if loss is None else loss for loss, c in zip(said, concepts, strict=True)]
        with FlopCounterMode(display=False) as backward:
            sum(found).backward()
    assert [loss is None for loss in said] == [part == "contrastive" for part in parts]
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    rows = dict(tsdae=3 * 4, bow=3, contrastive=0)  # of the vocabulary's product
    head = 2 * sum(rows[part] for part in parts) * model.head_weight().numel()
    total = sum(sum(flops(model.config, problem).values()) for problem in problems)
    assert forward.get_total_flops() == total + 2 * head
    assert backward.get_total_flops() == 2 * (total - head)


@pytest.mark.parametrize("keys", [dict(), dict(token_dim=8), dict(tied=False), dict(tied=False, token_dim=8)])
def test_models_without_a_decoder_hold_only_what_they_train(keys):
    """The contrastive loss itself, as training takes it, reaches all of the encoder, and a bag its head."""
    head = {"narrow"} if keys == dict(token_dim=8) else set() if keys.get("tied", True) else {"head"}
    for decoder, problem, more in ("bag", bow_problem(), head), ("none", views_problem(), set()):
        model = build(decoder=decoder, **keys)
        (said,), (concepts,) = model(problem)
        losses.complete(said, concepts, problem, 0.05).backward()
        assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"encoder"} | more
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert model.embed(problem.source).shape == (len(problem.source), 16)


@pytest.mark.parametrize("keys", [dict(), dict(token_dim=8), dict(tied=False), dict(init="gpt2")])
def test_a_bag_equals_its_formula(keys):
    """Mean of the concepts, RMS-norm, (thin tokens: narrowed,) tied embeddings / sqrt(T); whatever decoder there is."""
    problem = bow_problem()
    for decoder in ("bag", "posonly", "weighted"):
        model = perturb(build(decoder=decoder, **keys))
        (loss,), (concepts,) = model(problem)
        expected = 0.0
        for row in range(3):
            x = sum(concepts[row]) / len(concepts[row])
            x = x / x.square().mean().sqrt()
            if "token_dim" in keys:
                x = model.narrow.weight @ x
            head = model.head.weight if "tied" in keys else model.encoder.tokens.weight
            scores = head @ x / (1 if "tied" in keys or "init" in keys else math.sqrt(len(x)))
            log_p = scores - scores.exp().sum().log()
            expected -= sum(w * log_p[i] for w, i in zip(problem.weights[row], problem.targets[row], strict=True))
        torch.testing.assert_close(loss, expected)


def test_recomputing_large_ffns_changes_no_gradient(monkeypatch):
    model, problem = build(decoder="input"), masked_problem()
    grads = []
    for limit in (model_file.RECOMPUTED, 0):
        monkeypatch.setattr(model_file, "RECOMPUTED", limit)
        (loss,), _ = model(problem)
        with FlopCounterMode(display=False) as counter:
            grads.append(torch.autograd.grad(loss, list(model.parameters())))
        grads[-1] = (counter.get_total_flops(), grads[-1])
    assert all(torch.equal(a, b) for a, b in zip(grads[0][1], grads[1][1], strict=True))
    B, K = problem.scored.shape
    layer = model.encoder.layers[0].ffn.wi.weight.numel() * B * model.config.concepts
    again = 2 * (2 * layer + model.decoder.ffns[0].wi.weight.numel() * B * K)  # two layers, one decoder block
    assert grads[1][0] - grads[0][0] == again


def test_scored_positions_equal_all_positions():
    """The decoder at K positions is the decoder at all of them, then gathered; so is the loss."""
    for decoder in ("input", "posonly", "weighted"):
        model, problem = build(decoder=decoder), masked_problem()
        concepts = model.encode(problem.source)
        dense = model.decode(concepts, masked_problem(scored=None))
        index = problem.scored[..., None].expand(-1, -1, dense.shape[-1])
        torch.testing.assert_close(model.decode(concepts, problem), dense.gather(1, index))
        ce = F.cross_entropy(model.logits(dense).flatten(0, 1), problem.targets.flatten(), reduction="none").view(3, 12)
        torch.testing.assert_close(model.loss(concepts, problem), ce.gather(1, problem.scored).mean())
        weights = torch.rand(3, 4)
        weighted = model.loss(concepts, masked_problem(weights=weights))
        torch.testing.assert_close(weighted, (ce.gather(1, problem.scored) * weights).sum())


def test_decoders_see_only_what_they_may():
    problem, other = masked_problem(), masked_problem(query_ids=torch.full((3, 12), 9))
    for decoder, looks in ("input", True), ("posonly", False), ("weighted", False):
        model = build(decoder=decoder)
        concepts = model.encode(problem.source)
        assert torch.equal(model.decode(concepts, problem), model.decode(concepts, other)) != looks
        hidden = model.decode(concepts, masked_problem(query_ids=torch.full((3, 12), MASK)))
        torch.testing.assert_close(model.decode(concepts, masked_problem(query_ids=None)), hidden)
        assert not torch.allclose(model.decode(concepts[[1, 2, 0]], problem), model.decode(concepts, problem))


def test_say_is_the_argmax_of_every_position():
    model, ids = build(), torch.randint(40, (2, 9))
    concepts = model.encode(ids)
    hidden = model.decode(concepts, Problem(source=ids, query_pos=torch.arange(5)[None]))
    assert torch.equal(model.generate(concepts, 5), model.logits(hidden).argmax(-1))


def test_dropout_only_in_training():
    for decoder in ("input", "posonly", "weighted"):
        model, problem = build(decoder=decoder, dropout=0.2), masked_problem()
        assert model(problem)[0][0] != model(problem)[0][0]
        model.eval()
        assert torch.equal(model(problem)[0][0], model(problem)[0][0])
        assert torch.equal(model(problem)[0][0], build(decoder=decoder)(problem)[0][0])


def test_autocast_stays_close():
    for decoder in ("input", "posonly", "weighted"):
        model, problem = build(dtype=torch.float32, decoder=decoder), masked_problem()
        (exact,), _ = model(problem)
        with torch.autocast("cpu", torch.bfloat16):
            (loss,), _ = model(problem)
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in model.parameters())
        torch.testing.assert_close(loss, exact, atol=0.1, rtol=0)


def test_state_dict_holds_each_tensor_once():
    for keys in structures():
        state = build(**keys).state_dict()
        assert len({t.data_ptr() for t in state.values()}) == len(state)
        assert sum(t.numel() for t in state.values()) == build(**keys).num_parameters()
    model, problem = build(seed=1), masked_problem()
    copy = build(seed=2)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(problem)[0][0], model(problem)[0][0])


def test_sums_of_objectives_run_in_one_forward():
    model, a, b = build(), masked_problem(), masked_problem(B=2, N=8, seed=2)
    (first, second), concepts = model(a, b)
    assert torch.equal(first, model(a)[0][0]) and torch.equal(second, model(b)[0][0])
    assert [c.shape for c in concepts] == [(3, 6, 16), (2, 6, 16)]


@pytest.mark.parametrize("bias", [True, False])
def test_one_product_for_all_readers_equals_one_each(bias):
    x, readers = torch.randn(2, 5, 16), [torch.nn.Linear(16, 32, bias=bias) for _ in range(3)]
    pairs = [model_file.keys_values(x, readers, 2, fused=fused) for fused in (True, False)]
    torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(backend):
    for decoder in ("input",) if backend == "aot_eager" else ("input", "posonly", "weighted"):
        model, problem = build(dtype=torch.float32, decoder=decoder), masked_problem()
        (eager,), _ = model(problem)
        eager_grads = torch.autograd.grad(eager, list(model.parameters()))
        (loss,), _ = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)(problem)
        torch.testing.assert_close(loss, eager)
        torch.testing.assert_close(
            torch.autograd.grad(loss, list(model.parameters())), eager_grads, atol=1e-4, rtol=1e-3
        )


# ---- size


@pytest.mark.parametrize(
    "keys,parameters",
    [
        (dict(decoder="input"), 61_059_584),
        (dict(decoder="posonly"), 61_059_584),
        (dict(decoder="input", tied=False), 86_848_000),
        (dict(decoder="posonly", tied=False), 86_848_000),
        (dict(decoder="weighted", tied=False), 83_762_688),
        (dict(decoder="input", tied=False, token_dim=64), 64_120_320),
        (dict(decoder="posonly", tied=False, token_dim=64), 64_087_040),
        (dict(decoder="posonly", concept_position="learned"), 61_059_584 + 65_536),
    ],
)
def test_parameters_of_the_seeds(keys, parameters):
    with torch.device("meta"):
        model = ConceptModel(ModelConfig(**SEEDS, **keys))
    assert model.num_parameters() == parameters
    assert all(p.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize(
    "keys,word",
    [
        (dict(hidden=100, heads=8), "heads = 5"),
        (dict(token_dim=600), "token_dim"),
        (dict(layers=0), "layers"),
        (dict(dropout=1.0), "dropout"),
        (dict(seeds_faithful=True, token_position="rope"), "learned"),
        (dict(seeds_faithful=True, decoder="weighted"), "tied = False"),
        (dict(seeds_faithful=True, token_dim=64), "tied = False"),
        (dict(token_position="rope", hidden=24, heads=8), "even"),
    ],
)
def test_impossible_configurations_say_what_to_write(keys, word):
    with pytest.raises(ValueError, match=word):
        ModelConfig(**keys)


# ---- the start: what is neither collapsed nor saturated learns


@pytest.fixture(scope="module")
def real_ids():
    with lzma.open(real_data("text", "wiki_00.txt.xz"), "rt", encoding="utf-8") as file:
        text = file.read(700_000)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["[MASK]"], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return torch.tensor(tokenizer.encode(text[:200_000]).ids)


QUICK = dict(layers=2, hidden=128, heads=4, intermediate=512, concepts=8)
MIDDLE = dict(layers=6, hidden=256, heads=4, intermediate=1024, concepts=32)
STARTS = [
    (QUICK, 16),
    (QUICK, 32),
    (dict(MIDDLE, decoder="input"), 128),
    (dict(MIDDLE, decoder="input", seeds_faithful=True), 128),
    (dict(MIDDLE, decoder="weighted"), 128),
    (dict(MIDDLE, token_dim=64, layers=2), 128),
    (dict(MIDDLE, token_position="rope", concept_position="learned", tied=False), 128),
    (dict(MIDDLE, concept_position="sinusoidal", concepts=64, layers=2), 128),
]


def preset_start(path):
    """The shape and longest row of a config file."""
    values = {key: value for key, (value, _) in read_config(path, ROOT).items()}
    keys = {f.name: values[f.name] for f in fields(ModelConfig) if f.name in values and f.name != "vocab_size"}
    return pytest.param(keys | {"dropout": 0.0}, max(values["lengths"]), marks=pytest.mark.slow, id=path.stem)


PRESETS = [preset_start(path) for path in sorted((ROOT / "config").glob("*.py"))]


@pytest.mark.parametrize("keys,N", STARTS + PRESETS, ids=str)
def test_start(keys, N, real_ids):
    B, V = 64, 4096
    torch.manual_seed(0)
    model = ConceptModel(ModelConfig(vocab_size=V, **keys), 0)
    starts = torch.randint(len(real_ids) - N, (B, 1))
    ids = real_ids[starts + torch.arange(N)]
    scored = torch.rand(B, N).argsort(1)[:, : max(4, N // 8)]
    source = ids.scatter(1, scored, 0)
    problem = Problem(source=source, targets=ids, query_pos=torch.arange(N)[None], query_ids=source, scored=scored)
    with torch.no_grad():
        (loss,), (concepts,) = model(problem)
    assert -0.05 <= loss - math.log(V) <= 0.8
    assert rank_slot_centred(concepts) >= model.config.concepts / 2
    assert input_share(concepts) >= (0.05 if model.config.layers >= 6 or N <= 128 else 0.015)


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
    ours = build(init="fan_in")
    for init, ratios in expected.items():
        model = build(init=init)
        weights = [
            (
                m.encoder.tokens.weight,
                m.encoder.positions.weight,
                m.encoder.layers[1].mix.out.weight,
                m.decoder.reads[0].out.weight,
            )
            for m in (model, ours)
        ]
        for ratio, weight, unit in zip(ratios, *weights, strict=True):
            torch.testing.assert_close(weight, ratio * unit)
        assert model.logit_scale == (1 if init == "gpt2" else 0.25)
