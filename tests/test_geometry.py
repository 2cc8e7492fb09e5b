"""Geometry against planted concepts whose answers are known, and against slow loops in numpy."""

import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import geometry
from geometry import ROWS, ablations, concept_geometry, effective_rank, isotropic, verdict
from model import ConceptModel, ModelConfig
from problem import Problem

B, C, H = ROWS, 8, 32
IN_USE = {"delta_shuffle": 5.0}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthogonal(n, seed=0):
    return torch.linalg.qr(normal(n, n, seed=seed))[0]


def concept_use(loss, concepts):
    """What a text's loss gains without its own concepts; loss: concepts -> the mean loss of the same texts."""
    own = float(loss(concepts))
    return {f"delta_{name}": float(loss(c)) - own for name, c in ablations(concepts).items()}


def balanced(content):
    """content [B/2, C, H] and its negative: concepts whose mean over the batch is exactly 0."""
    return torch.cat([content, -content])


def entropy_rank(sigma):
    p = np.array([x for x in sigma if x > 0])
    p = p / p.sum() if len(p) else p
    return math.exp(-sum(x * math.log(x) for x in p)) if len(p) else 0.0


# ---- the slow reference: numpy, SVDs, loops


def slow(concepts):
    c = concepts.numpy().astype(np.float64)
    B, C, _ = c.shape
    zero = 1e-3 * np.sqrt(np.mean([np.sum(c[b, s] ** 2) for b in range(B) for s in range(C)]))
    constant = sum(c[b] for b in range(B)) / B
    own, raw = [], []
    for b in range(B):
        sigma = np.linalg.svd(c[b] - constant, compute_uv=False)
        own.append(entropy_rank(sigma[sigma >= zero]))
        raw.append(entropy_rank(np.linalg.svd(c[b], compute_uv=False)))
    pooled = np.stack([c[b].mean(0) for b in range(B)])
    sigma = np.linalg.svd(pooled - pooled.mean(0), compute_uv=False)
    varies = [np.mean([np.sum((c[b, s] - constant[s]) ** 2) for b in range(B)]) for s in range(C)]
    cosines = [
        c[b, i] @ c[b, j] / np.linalg.norm(c[b, i]) / np.linalg.norm(c[b, j])
        for b in range(B)
        for i in range(C)
        for j in range(C)
        if i != j
    ]
    mean_sigma = np.linalg.svd(constant, compute_uv=False)
    return {
        "rank_slot_centred": np.mean(own),
        "rank_raw": np.mean(raw),
        "rank_pooled": entropy_rank(sigma[sigma >= zero]),
        "input_share": sum(varies) * B / np.sum((c - c.mean((0, 1))) ** 2),
        "dead_slots": sum(v < 0.01 * np.mean(varies) for v in varies),
        "sim_mean": np.mean(np.abs(cosines)),
        "sim_max": np.max(cosines),
        "rank_original": mean_sigma.sum() / mean_sigma[0],
    }


def mixed():
    """Static parts, an offset, slots of unequal size and a dead one: nothing in it is round."""
    size = torch.tensor([1.0, 2.0, 0.5, 0.01, 1.0, 3.0, 0.7, 1.0])[:, None]
    return normal(B, C, H) * size + 2 * normal(C, H, seed=1) + normal(H, seed=2)


def test_equals_the_slow_reference():
    for concepts in (mixed(), mixed().float(), normal(B, C, H), normal(B, 6, 4)):
        numbers, expected = concept_geometry(concepts), slow(concepts)
        assert numbers.keys() == expected.keys()
        assert numbers == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 128), (128, 8), (7, 7), (3, 5, 4)])
def test_effective_rank_of_known_spectra(shape):
    *batch, n, D = shape
    sigma = torch.linspace(1, 3, min(n, D), dtype=torch.float64) ** 2
    x = orthogonal(n)[:, : len(sigma)] * sigma @ orthogonal(D, seed=1)[: len(sigma)]
    x = x.expand(*batch, n, D)
    expected = torch.full(batch, entropy_rank(sigma.tolist()), dtype=torch.float64)
    torch.testing.assert_close(effective_rank(x), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(geometry.singular_values(x), sigma.expand(*batch, -1), rtol=1e-9, atol=0)
    kept = [s for s in sigma.tolist() if s >= 2.0]
    torch.testing.assert_close(effective_rank(x, 2.0), torch.full_like(expected, entropy_rank(kept)), rtol=1e-9, atol=0)
    assert not effective_rank(x, 100.0).any() and not effective_rank(0 * x).any()


def test_ranks_do_not_depend_on_rotation_scale_or_order():
    c, expected = mixed(), concept_geometry(mixed())
    rows, slots = torch.randperm(B), torch.randperm(C)
    for other in (c @ orthogonal(H), 1e-6 * c, 1e6 * c, -c, c[rows], c[:, slots]):
        assert concept_geometry(other) == pytest.approx(expected, rel=1e-6)


# ---- planted cases


def static(noise, B=B, C=C, H=H):
    """Orthogonal slots that never change, but for rounding noise."""
    return (orthogonal(H)[:C] * H**0.5 + noise * normal(B, C, H, seed=1)).float()


def test_static_slots_have_rank_and_share_0():
    for noise in (0.0, 1e-7, 1e-6):  # exact, and as float32 rounds
        c = static(noise)
        numbers = concept_geometry(c)
        assert numbers["rank_slot_centred"] == numbers["rank_pooled"] == numbers["input_share"] == 0
        assert numbers["dead_slots"] == C
        assert numbers["rank_original"] == pytest.approx(C, rel=1e-5)  # the original number calls this perfect
        assert numbers["rank_raw"] == pytest.approx(C, rel=1e-5)
        assert verdict(numbers | IN_USE, C).startswith("slots are static")


def test_rounding_noise_is_no_content():
    c = static(1e-7, B=32, C=128, H=512)
    assert geometry.rank_slot_centred(c) == geometry.input_share(c) == 0
    assert 123 < effective_rank(geometry.centred(c)).mean() < 125  # without the threshold
    assert 0 < geometry.rank_slot_centred(static(1e-3, B=32, C=128, H=512))  # a thousandth of a slot is content


def test_static_slots_through_a_real_encoder_in_float32_and_bfloat16():
    torch.manual_seed(0)
    model = ConceptModel(ModelConfig(layers=2, hidden=32, heads=2, intermediate=48, concepts=8, vocab_size=50))
    for layer in model.encoder.layers:
        layer.cross.out.weight.data.mul_(1e-7)  # a read that is closed: what comes through is of rounding's size
    ids = torch.randint(50, (B, 16))
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            numbers = concept_geometry(model.encode(ids))
        assert verdict(numbers, 8).startswith("slots are static") and numbers["input_share"] < 1e-4
        assert enabled or numbers["rank_slot_centred"] == 0


def test_equal_constant_slots_are_static_not_all_content():
    c = (5 + 1e-6 * normal(B, C, H)).float()  # no variance at all but rounding, so its shares mean nothing
    numbers = concept_geometry(c)
    assert numbers["rank_slot_centred"] == numbers["input_share"] == 0
    assert verdict(numbers | IN_USE, C).startswith("slots are static")
    assert concept_geometry(torch.zeros(B, C, H)) | {"dead_slots": 0} == dict.fromkeys(numbers, 0)


def test_rich_content_beside_an_offset_is_rich():
    c = normal(B, 32, 256, dtype=torch.float32) + 8 * normal(256, seed=1, dtype=torch.float32)
    numbers = concept_geometry(c)
    assert numbers["rank_original"] < 1.2  # the original project's number calls this collapsed
    assert numbers["rank_slot_centred"] > 31 and numbers["input_share"] > 0.99
    assert numbers["rank_pooled"] > 150 and numbers["dead_slots"] == 0
    plain = verdict(numbers | IN_USE, 32)
    assert numbers["sim_max"] > 0.9 and plain.startswith("not collapsed")
    c = normal(B, C, H)
    numbers, strong = concept_geometry(c), concept_geometry(c + 50)
    assert strong["rank_raw"] < 2 and strong["rank_slot_centred"] == pytest.approx(numbers["rank_slot_centred"])
    assert verdict(strong | IN_USE, C).startswith("not collapsed once centred: one direction")


def test_input_share_is_what_was_planted():
    for share in (0.02, 0.2, 0.8):
        slots = orthogonal(H)[:C]
        slots = (slots - slots.mean(0)) * (C / (C - 1)) ** 0.5  # of unit variance a slot
        content = F.normalize(normal(B // 2, C, H, seed=1), dim=-1)
        c = balanced(content) * share**0.5 + slots * (1 - share) ** 0.5 + 3.0
        numbers = concept_geometry(c)
        assert numbers["input_share"] == pytest.approx(share, rel=1e-9)
        assert verdict(numbers | IN_USE, C).startswith("slots are static") == (share < 0.05)


def test_dead_slots_are_counted():
    c = normal(B, C, H)
    for dead, left in ((1, 0.05), (3, 0.0)):
        x = c.clone()
        x[:, :dead] = left * c[:, :dead] + normal(dead, H, seed=1)
        numbers = concept_geometry(x)
        assert numbers["dead_slots"] == dead
        assert f"{dead} of {C} slots are dead" in verdict(numbers | IN_USE, C)
    x[:, :3] = 0.2 * c[:, :3]  # 4 % of the variance: weak, alive
    assert concept_geometry(x)["dead_slots"] == 0


def test_duplicated_slots_are_found():
    half = normal(B, C // 2, H)
    pairs = concept_geometry(half.repeat(1, 2, 1))
    assert pairs["sim_max"] == pytest.approx(1, abs=1e-6) and C / 2 - 0.5 < pairs["rank_slot_centred"] <= C / 2
    all_one = concept_geometry(half[:, :1].expand(-1, C, -1))
    assert all_one["sim_mean"] == pytest.approx(1, abs=1e-6) and all_one["rank_slot_centred"] == pytest.approx(1)
    for numbers in (pairs, all_one):
        assert verdict(numbers | IN_USE, C).startswith("slots are duplicates")


def test_one_direction_is_named():
    line = normal(B, C, 1) * normal(H, seed=1)  # all content on one line, in slots and texts
    noisy = line + 0.01 * normal(B, C, H, seed=2)
    opposed = normal(B, C, H)
    opposed = opposed - opposed.mean(1, keepdim=True) + line  # rich in the slots, but their mean moves on a line
    for c in (line, noisy, opposed):
        assert verdict(concept_geometry(c) | IN_USE, C).startswith("one direction dominates")
    assert concept_geometry(line)["rank_slot_centred"] == concept_geometry(line)["rank_pooled"] == pytest.approx(1)


def test_healthy_at_every_number_of_concepts():
    for C in (1, 2, 4, 8, 32):
        numbers = concept_geometry(normal(B, C, 64))
        assert verdict(numbers | IN_USE, C) == verdict(numbers, C) == "not collapsed"


def test_few_rows_are_refused():
    with pytest.raises(ValueError, match="255 rows mislead; give at least 256"):
        concept_geometry(normal(ROWS - 1, C, H))


def test_autocast_changes_nothing():
    c = normal(B, C, H, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inside = concept_geometry(c)
    assert inside == concept_geometry(c)
    assert all(type(value) in (int, float) for value in inside.values())


# ---- use by the decoder


def test_ablations():
    c = normal(B, C, H)
    changed = ablations(c)
    assert torch.equal(changed["shuffle"][1:], c[:-1]) and torch.equal(changed["shuffle"][0], c[-1])
    assert not changed["zero"].any() and changed["zero"].shape == c.shape
    assert torch.equal(changed["mean"], c.mean(0).expand(B, C, H))


def test_a_decoder_that_ignores_concepts_loses_nothing():
    use = concept_use(lambda c: 1.2345, normal(B, C, H))
    assert use == {"delta_shuffle": 0, "delta_zero": 0, "delta_mean": 0}
    numbers = concept_geometry(normal(B, C, H)) | use
    assert verdict(numbers, C).startswith("decoder ignores the concepts")
    both = concept_geometry(static(0)) | use
    assert "static" in verdict(both, C) and "ignores" in verdict(both, C)


def copy_problem(seed, rows=B, N=6, V=40):
    ids = torch.randint(1, V, (rows, N), generator=torch.Generator().manual_seed(seed))
    return Problem(source=ids, targets=ids, query_pos=torch.arange(N)[None])


def test_a_real_model_before_and_after_it_learns_to_copy():
    shape = ModelConfig(layers=1, hidden=32, heads=2, intermediate=32, concepts=6, max_length=6, vocab_size=40)
    model = ConceptModel(shape)
    problem = copy_problem(10**6)

    def numbers():
        with torch.no_grad():
            concepts = model.encode(problem.source)
            return concept_geometry(concepts) | concept_use(lambda c: model.loss(c, problem), concepts)

    before = numbers()
    assert before["rank_slot_centred"] > 3 and before["input_share"] > 0.05
    assert abs(before["delta_shuffle"]) < 0.05 and verdict(before, 6).startswith("decoder ignores the concepts")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(200):
        (loss,), _ = model(copy_problem(step, rows=64))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = numbers()
    assert min(after["delta_shuffle"], after["delta_zero"], after["delta_mean"]) > 1
    assert verdict(after, 6) == "not collapsed"
    for cross in model.decoder.cross:
        cross.out.weight.data.zero_()  # cut off
    cut = numbers()
    assert cut["delta_shuffle"] == cut["delta_zero"] == cut["delta_mean"] == 0
    assert cut["rank_slot_centred"] == after["rank_slot_centred"]


# ---- post-processing


def test_isotropic():
    """Whole whitening makes all variances equal; a removed direction is gone, the others are as they were."""
    x = normal(4000, 6) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64) + 7
    mean, matrix = isotropic(x, 0, 1.0)
    covariance = torch.cov(((x - mean) @ matrix).T)
    assert torch.allclose(covariance / covariance[0, 0], torch.eye(6, dtype=torch.float64), atol=1e-6)
    first = torch.linalg.svd(x - x.mean(0)).Vh[0]
    mean, matrix = isotropic(x, 1, 0.0)
    y = (x - mean) @ matrix
    assert (y @ first).abs().max() < 1e-9
    assert torch.allclose(y, x - x.mean(0) - torch.outer((x - x.mean(0)) @ first, first))
    mean, matrix = isotropic(torch.ones(10, 3, dtype=torch.float64), 1, 0.25)  # nothing varies
    assert matrix.isfinite().all()


# ---- cost


def test_cost():
    """Far above what is measured (0.02 s of one busy core): only a change of its order fails."""
    c = normal(ROWS, 8, 128, dtype=torch.float32)
    start = time.process_time()
    concept_geometry(c)
    assert time.process_time() - start < 1.0


def test_eigenvalues_of_many_matrices_are_the_cpus(monkeypatch):
    """A GPU takes one after the other."""
    devices, true = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda x: devices.append(x.device.type) or true(x))
    with FakeTensorMode():
        assert geometry.singular_values(torch.empty(4, 5, 6, device="cuda")).device.type == "cuda"
    assert devices == ["cpu"]


def test_long_rows_are_fewer():
    counts = {n: geometry.rows_of(n) for n in (16, 1024, 2048, 8192, 65536)}
    assert counts == {16: 256, 1024: 256, 2048: 128, 8192: 32, 65536: 32}
