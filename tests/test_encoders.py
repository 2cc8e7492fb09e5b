"""Every encoder, and what it is built of, against slow references; and what may change from call to call."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from registries import MASK, SMALL, build, keys_of, make_problems, masked_problem, one_part
from test_model import perturb, slow_attention
from torch.autograd import gradcheck

from encoders import ENCODERS, Options, adaptive_mean
from layers import SelfAttention, attention, cope_attention, window_attention
from model import ModelConfig, count_flops

LINEAR = [name for name in ENCODERS if name not in ("dense", "funnel")]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def everything(ids):
    return torch.ones(ids.shape[:2], dtype=torch.bool)


# ---- attention


@pytest.mark.parametrize("S,window", [(11, 3), (9, 3), (2, 5), (1, 1), (7, 1)])
def test_window_attention_equals_a_mask(S, window):
    q, k, v = randn(3, 2, 3, S, 4)
    near = (torch.arange(S)[:, None] - torch.arange(S)).abs() <= window
    torch.testing.assert_close(window_attention(q, k, v, window), attention(q, k, v, near[None, None]))
    mask = torch.arange(S) < torch.tensor([[S], [max(1, S - 2)]])
    ours = window_attention(q, k, v, window, mask)
    theirs = attention(q, k, v, (near & mask[:, None] | torch.eye(S, dtype=torch.bool))[:, None])
    torch.testing.assert_close(ours, theirs)
    assert gradcheck(lambda *x: window_attention(*x, window, mask)[mask], (q, k, v))


def test_cope_attention_equals_a_loop():
    q, k, v = randn(1, 2, 3, 4), randn(2, 2, 5, 4), randn(2, 2, 5, 4)
    table = randn(2, 6, 4)
    expected = torch.empty(2, 2, 3, 4, dtype=torch.float64)
    for b, h, i in itertools.product(range(2), range(2), range(3)):
        scores, place = [], 0.0
        for j in range(5):
            score = q[0, h, i] @ k[b, h, j] / 2
            place = place + score.sigmoid()
            low = int(place)
            position = (1 - (place - low)) * table[h, low] + (place - low) * table[h, low + 1]
            scores.append(score + q[0, h, i] @ position / 2)
        expected[b, h, i] = torch.stack(scores).softmax(0) @ v[b, h]
    ours = cope_attention(q, k, v, table)
    torch.testing.assert_close(ours, expected.transpose(1, 2).flatten(2))
    assert gradcheck(cope_attention, (q, k, v, table))


def test_causal_self_attention_with_kept_keys_equals_the_whole():
    block, x = SelfAttention(ModelConfig(**SMALL), causal=True, rotary=True).double(), randn(2, 7, 16)
    whole, past = block(x), []
    for i in range(7):
        torch.testing.assert_close(block(x[:, i : i + 1], torch.tensor([[i]]), past=past)[:, 0], whole[:, i])
    later = x.detach().clone()
    later[:, 4:] += 1
    torch.testing.assert_close(block(later)[:, :4], whole[:, :4])


def test_adaptive_means_have_the_bins_of_adaptive_pooling():
    for n, m in itertools.product(range(1, 14), range(1, 9)):
        x = torch.randn(2, n + 3, 3, dtype=torch.float64)
        expected = F.adaptive_avg_pool1d(x[:, :n].mT, m).mT
        torch.testing.assert_close(adaptive_mean(x[:, :n], n, m, m), expected)
        if n / m <= (n + 3) / (m + 1):  # rows of their own lengths in a wider batch
            rows = torch.tensor([[n], [n]]), torch.tensor([[m], [m]])
            torch.testing.assert_close(adaptive_mean(x, *rows, m + 1)[:, :m], expected)


# ---- encoders, straight from their formulas


def heads(x):
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def norm(x, module):
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias)


def inputs(**keys):
    """A model, ids [2, 9], and x [2, 9, T] as the encoder is given it."""
    model, ids = perturb(build(**keys)), torch.randint(40, (2, 9))
    return model, ids, model.tokens.weight[ids] + model.positions.weight[:9]


def test_bixt_is_one_matrix_of_similarities():
    model, ids, x = inputs(encoder="bixt", layers=3, token_dim=8)
    z = model.encoder.slots().expand(2, -1, -1)
    for layer in model.encoder.layers:
        from_z = norm(z, layer.norm_z) @ layer.from_z.weight.T
        r_z, v_z = from_z[..., :16], from_z[..., 16:]
        r_x, v_x = (norm(x, layer.norm_x) @ layer.from_x.weight.T).chunk(2, -1)
        S = heads(r_z) @ heads(r_x).mT / math.sqrt(8)  # [B, h, C, N]
        read = (S.softmax(-1) @ heads(v_x)).transpose(1, 2).flatten(2) @ layer.out_z.weight.T
        if not layer.last:
            x = x + (S.mT.softmax(-1) @ heads(v_z)).transpose(1, 2).flatten(2) @ layer.out_x.weight.T
            x = layer.ffn_x(x)
        z = layer.latent(layer.ffn_z(z + read))
    torch.testing.assert_close(model.encode(ids), model.encoder.norm(z))
    assert model.encoder.layers[-1].from_z.out_features == 16  # nothing without a gradient


def multihead(block, queries, keys):
    """Cross-attention of torch with the weights of ours."""
    H, T = block.out.in_features, block.kv.in_features
    theirs = torch.nn.MultiheadAttention(H, 2, batch_first=True, dtype=torch.float64)
    assert T == H
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([block.q.weight, block.kv.weight]))
        theirs.in_proj_bias.copy_(torch.cat([block.q.bias, block.kv.bias]))
        theirs.out_proj.weight.copy_(block.out.weight)
        theirs.out_proj.bias.copy_(block.out.bias)
    return theirs(norm(queries, block.norm), keys, keys, need_weights=False)[0]


def test_two_way_is_the_seeds_layer():
    """Tokens are read un-normalised; they read the concepts as just updated; the last reverse attention is left out."""
    model, ids, x = inputs(encoder="two_way", layers=3, original_structure=True)
    z = model.encoder.slots().expand(2, -1, -1)
    for i, layer in enumerate(model.encoder.layers):
        z = z + multihead(layer.cross, z, x)
        if i < 2:
            x = x + multihead(layer.reverse, x, z)
        z = layer.ffn(layer.self_attention(z))
    torch.testing.assert_close(model.encode(ids), model.encoder.norm(z))


def test_perceiver_io_reads_in_its_first_layers():
    model, ids, x = inputs(encoder="perceiver_io", layers=3, reads=2)
    z, encoder = model.encoder.slots().expand(2, -1, -1), model.encoder
    x = norm(x, encoder.norm_tokens)
    for i, layer in enumerate(encoder.layers):
        if i < 2:
            k, v = (heads(t) for t in (x @ layer.cross.kv.weight.T).chunk(2, -1))
            q = heads(norm(z, layer.cross.norm) @ layer.cross.q.weight.T)
            z = layer.read_ffn(z + slow_attention(q, k, v, everything(ids)) @ layer.cross.out.weight.T)
        q, k, v = (
            heads(t)
            for t in (norm(z, layer.latent.self_attention.norm) @ layer.latent.self_attention.qkv.weight.T).chunk(3, -1)
        )
        z = z + slow_attention(q, k, v, everything(z)) @ layer.latent.self_attention.out.weight.T
        z = layer.latent.ffn(z)
    torch.testing.assert_close(model.encode(ids), encoder.norm(z))


def test_slots_compete_for_tokens():
    model, ids, x = inputs(encoder="slot")
    z, encoder = model.encoder.slots().expand(2, -1, -1), model.encoder
    x = norm(x, encoder.norm_tokens)
    for layer in encoder.layers:
        cross = layer.cross
        k, v = (heads(t) for t in (x @ cross.kv.weight.T).chunk(2, -1))
        q = heads(norm(z, cross.norm) @ cross.q.weight.T)
        read = torch.zeros(2, 2, 6, 8, dtype=torch.float64)
        for b, h in itertools.product(range(2), range(2)):
            share = torch.stack([(q[b, h] @ key / math.sqrt(8)).softmax(0) for key in k[b, h]], 1)  # [C, N]
            read[b, h] = (share / share.sum(1, keepdim=True)) @ v[b, h]
        z = z + read.transpose(1, 2).flatten(2) @ cross.out.weight.T
        z = layer.ffn(layer.self_attention(z))
    torch.testing.assert_close(model.encode(ids), encoder.norm(z), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("token_position", ["learned", "rope"])
def test_dense_is_a_transformer_whose_tokens_are_pooled(token_position):
    """Rotary positions turn queries and keys: a shift of all tokens changes nothing."""
    model, ids = perturb(build(encoder="dense", token_position=token_position)), torch.randint(40, (2, 9))
    pos, encoder = torch.arange(9)[None], model.encoder
    if token_position == "rope":
        torch.testing.assert_close(model.encode(ids, pos + 50), model.encode(ids, pos), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model.encode(ids, pos * 2), model.encode(ids, pos), atol=1e-3)
        return
    x = model.tokens.weight[ids] + model.positions.weight[:9]
    for layer in encoder.layers:
        q, k, v = (
            heads(t) for t in (norm(x, layer.self_attention.norm) @ layer.self_attention.qkv.weight.T).chunk(3, -1)
        )
        x = layer.ffn(x + slow_attention(q, k, v, everything(ids)) @ layer.self_attention.out.weight.T)
    k, v = (heads(t) for t in (norm(x, encoder.norm_tokens) @ encoder.pool.kv.weight.T).chunk(2, -1))
    z = encoder.slots.weight.expand(2, -1, -1)
    q = heads(norm(z, encoder.pool.norm) @ encoder.pool.q.weight.T)
    z = z + slow_attention(q, k, v, everything(ids)) @ encoder.pool.out.weight.T
    torch.testing.assert_close(model.encode(ids), norm(z, encoder.norm))


@pytest.mark.parametrize("N", [1, 5, 9, 12])
def test_funnel_pools_in_two_stages(N):
    model, ids = perturb(build(encoder="funnel", concepts=3)), torch.randint(40, (2, N))
    x = model.tokens.weight[ids] + model.positions.weight[:N]
    for stage, m in zip(model.encoder.stages, (max(3, (N + 1) // 2), 3), strict=True):
        pooled = F.adaptive_avg_pool1d(x.mT, m).mT
        k, v = (heads(t) for t in (norm(x, stage.norm) @ stage.cross.kv.weight.T).chunk(2, -1))
        q = heads(norm(pooled, stage.cross.norm) @ stage.cross.q.weight.T)
        x = stage.ffn(pooled + slow_attention(q, k, v, everything(x)) @ stage.cross.out.weight.T)
    for layer in model.encoder.layers:
        x = layer(x)
    torch.testing.assert_close(model.encode(ids), model.encoder.norm(x))


# ---- recursion


def test_recursion_is_one_layer_many_times():
    """As a perceiver whose layers are all the same; a standard run's first layer fits by its names."""
    recursive = perturb(build(encoder="recursive", iterations=3))
    perceiver, ids = build(layers=3), torch.randint(40, (2, 9))
    state = recursive.state_dict()
    for name in perceiver.state_dict():
        if name.startswith("encoder.layers."):
            state[name] = state["encoder.layers.0." + name.split(".", 3)[3]]
    perceiver.load_state_dict(state)
    torch.testing.assert_close(recursive.encode(ids), perceiver.encode(ids))
    five = build(encoder="recursive", iterations=5)
    five.load_state_dict(recursive.state_dict())
    torch.testing.assert_close(recursive.encode(ids, options=Options(iterations=5)), five.encode(ids))


def test_truncated_back_propagation():
    """The value is that of all iterations, the gradient that of the last ones; the slots get the state's."""
    model, problem = perturb(build(encoder="recursive", iterations=5)), masked_problem()
    cut = copy.deepcopy(model)
    cut.encoder.config = ModelConfig(**SMALL, encoder="recursive", iterations=5, backprop_iterations=2)
    assert torch.equal(model.encode(problem.source), cut.encode(problem.source))
    (loss,), _ = cut(problem)
    loss.backward()
    encoder = model.encoder
    x = model.tokens(problem.source) + model.positions.weight
    ((k, v),) = encoder.read(x, None, [encoder.layers[0].cross])
    with torch.no_grad():
        z = encoder.slots().expand(3, -1, -1)
        for _ in range(3):
            z = encoder.layers[0](z, k, v, None)
    z = begun = z.requires_grad_()
    for _ in range(2):
        z = encoder.layers[0](z, k, v, None)
    model.loss(encoder.norm(z), problem).backward()
    torch.testing.assert_close(cut.encoder.slots.content.grad, begun.grad.sum(0))
    for (name, ours), theirs in zip(cut.named_parameters(), model.parameters(), strict=True):
        if name != "encoder.slots.content":
            torch.testing.assert_close(ours.grad, theirs.grad)


# ---- what may change from call to call


FEWER = [name for name, part in ENCODERS.items() if "concepts" in part.options]


@pytest.mark.parametrize("part", [*FEWER, "weighted", "causal"])
def test_the_first_concepts_are_a_model_of_so_many(part):
    model, problem = perturb(build(**one_part(part), nested=True, registers=2)), masked_problem()
    few, state = build(**one_part(part), concepts=4, registers=2), model.state_dict()
    for name, tensor in few.state_dict().items():
        if state[name].shape != tensor.shape:
            state[name] = state[name][:4] if len(tensor) == 4 else state[name][:, :4]
    few.load_state_dict(state)
    (ours,), (concepts,) = model(problem, options=Options(concepts=4))
    (theirs,), (expected,) = few(problem)
    assert concepts.shape == (3, 4, 16)
    torch.testing.assert_close(concepts, expected)
    torch.testing.assert_close(ours, theirs)
    model.options = Options(concepts=4)
    assert torch.equal(model.encode(problem.source), concepts)
    assert torch.equal(model.twin(0).encode(problem.source)[:, :4], model.twin(0).encode(problem.source))


def test_what_a_step_may_run_with():
    assert ModelConfig(**SMALL).variants() == [(1.0, Options())]
    nested = ModelConfig(**SMALL | {"concepts": 8}, nested=True).variants()
    assert nested == [*((1 / 6, Options(concepts=m)) for m in (1, 2, 4)), (0.5, Options())]
    both = ModelConfig(**SMALL, encoder="recursive", iterations=4, min_iterations=2, nested=True).variants()
    assert sum(share for share, _ in both) == pytest.approx(1) and len(both) == 4 * 3
    assert {options.iterations for _, options in both} == {2, 3, 4}


def test_longer_rows_have_more_concepts():
    model = ModelConfig(concepts=512, concepts_per_token=1 / 32)
    counts = {1: 8, 32: 8, 511: 8, 512: 16, 1000: 16, 1024: 32, 4096: 128, 16383: 256, 16384: 512, 10**6: 512}
    assert {n: model.concepts_of(n) for n in counts} == counts
    assert ModelConfig(concepts=6).concepts_of(1) == 6


@pytest.mark.parametrize("encoder", FEWER)
def test_concepts_by_the_row_do_not_depend_on_the_batch(encoder):
    """Of padded rows each has those it has alone, several times where others have more; the mean is the same."""
    keys = dict(encoder=encoder, concepts=8, concepts_per_token=0.5, min_concepts=2)
    model, ids = perturb(build(**keys)), torch.randint(4, 40, (4, 12))
    lengths = torch.tensor([12, 3, 9, 8])
    mask = torch.arange(12) < lengths[:, None]
    together = model.encode(ids, mask=mask)
    assert together.shape == (4, 4, 16)
    for row, length, concepts in zip(ids, lengths, together, strict=True):
        (alone,) = model.encode(row[None, :length])
        assert len(alone) == model.config.concepts_of(length)
        torch.testing.assert_close(concepts, alone.repeat(4 // len(alone), 1))
        torch.testing.assert_close(model.pool(concepts[None]), model.pool(alone[None]))


def test_concepts_by_the_row_are_those_of_the_clean_row():
    """Of a row of 12 tokens TSDAE leaves five; it is trained with the concepts of twelve."""
    model = build(concepts=8, concepts_per_token=0.5, min_concepts=2)
    _, problems = make_problems(3, objective="tsdae")
    assert problems[0].source.shape == (3, 5)
    _, (concepts,) = model(*problems)
    assert concepts.shape == (3, 4, 16) and model.config.concepts_of(5) == 2


@pytest.mark.parametrize("merge", ["mean", "perceiver"])
def test_chunks_are_read_one_by_one(merge):
    """Each as a perceiver reads a row; their mean by tokens, which then reads all."""
    model = perturb(build(encoder="chunked", chunk=5, merge=merge, merge_layers=2, decoder="posonly"))
    part, alone = model.encoder, perturb(build(encoder="perceiver"))
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if ".merge" not in k})
    ids, n = torch.randint(4, 40, (2, 12)), 12
    pos = torch.arange(n)[None]
    spans = [(0, 5), (5, 10), (10, 12)]
    each = [alone.encode(ids[:, a:b], pos[:, a:b]) for a, b in spans]
    expected = sum((b - a) / n * z for (a, b), z in zip(spans, each, strict=True))
    if merge == "perceiver":
        seen = torch.cat(each, 1)
        for layer in part.merge:
            k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in layer.cross.kv(seen).chunk(2, -1))
            expected = layer(expected, k, v, None)
        expected = part.merge_norm(expected)
    torch.testing.assert_close(model.encode(ids), expected)
    if merge == "mean":
        torch.testing.assert_close(model.encode(ids[:, :4]), alone.encode(ids[:, :4]))


@pytest.mark.parametrize("encoder", [name for name, part in ENCODERS.items() if "registers" in keys_of(part)])
def test_no_decoder_sees_registers(encoder):
    """They change the concepts, not how many there are."""
    model, problem = perturb(build(encoder=encoder, registers=3)), masked_problem()
    concepts = model.encode(problem.source)
    assert concepts.shape == (3, 6, 16)
    with torch.no_grad():
        model.encoder.slots.registers += torch.randn(3, 16)
    assert not torch.allclose(model.encode(problem.source), concepts)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_tokens_know_their_neighbours_before_they_are_read(encoder):
    """Local layers change what is read, at a cost that is linear in the tokens; padding stays invisible."""
    model = perturb(build(encoder=encoder, token_layers=2, token_window=2, token_dim=8, token_position="rope"))
    _, problems = make_problems(objective="tsdae", positions="original")
    (loss,), _ = model(*problems)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    ids = torch.randint(40, (2, 12))
    mask = torch.arange(12) < torch.tensor([[12], [5]])
    torch.testing.assert_close(model.encode(ids, mask=mask)[1], model.encode(ids[1:, :5])[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_residual_stream_stays_float32_under_autocast(encoder):
    model, found = build(dtype=torch.float32, token_dim=8, token_layers=1, encoder=encoder), []
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model.encode(torch.randint(40, (2, 9)))
    assert set(found) == {torch.float32}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_cost_grows_linearly_with_the_tokens(encoder):
    config = ModelConfig(**SMALL | {"max_length": 4096}, encoder=encoder, token_layers=1, token_window=8)
    costs = [
        count_flops(config, lambda model, n=n: model.encode(torch.zeros(1, n, dtype=torch.int64)))[1]["Global"]
        for n in (1024, 2048, 4096)
    ]
    growth = (costs[2] - costs[1]) / (costs[1] - costs[0])
    assert growth == pytest.approx(2, abs=0.01) if encoder in LINEAR else growth > 3


def test_mask_id_is_what_the_first_causal_position_sees():
    model = build(decoder="causal")
    assert torch.equal(model.embed_visible(None)[0, 0], model.tokens.weight[MASK])
