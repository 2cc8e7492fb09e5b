"""Not collapsed is not learned: nats under the floor, vectors above or level with the untrained twin's, in words."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from geometry import learned, nearer_halves

B, H = 40, 24


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_nearer_halves_equal_a_loop():
    x, y = normal(2, B, H) + 3
    y = y + 0.4 * x
    mean = (x.mean(0) + y.mean(0)) / 2
    shares = []
    for i in range(B):
        for one, others in ((x[i], y), (y[i], x)):
            own = cosine_similarity(one - mean, others[i] - mean, 0)
            less = [cosine_similarity(one - mean, others[j] - mean, 0) < own for j in range(B) if j != i]
            shares.append(sum(map(float, less)) / (B - 1))
    found = nearer_halves(x, y)
    rows = torch.tensor(shares).view(B, 2).mean(1)
    assert found["halves"] == pytest.approx(rows.mean().item(), abs=1e-6) and 0.55 < found["halves"] < 0.95
    assert found["halves_error"] == pytest.approx(rows.std().item() / B**0.5, rel=1e-4)


def test_the_same_vector_nothing_and_noise():
    x = normal(B, H)
    assert nearer_halves(x, x) == {"halves": 1.0, "halves_error": 0.0}
    static = torch.ones(B, H) + 1e-6 * normal(B, H)  # rounding, not content
    assert nearer_halves(static, static) == {"halves": 0.5, "halves_error": 0.0}
    assert nearer_halves(*normal(2, 400, H))["halves"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("ours, twins, place", [(0.8, 0.6, "above"), (0.6, 0.8, "below"), (0.62, 0.6, "level with")])
def test_in_words(ours, twins, place):
    numbers, twin = ({"halves": value, "halves_error": 0.02} for value in (ours, twins))
    text = learned(numbers, twin, (7.0, 7.1, "nats"))
    assert text.startswith(f"0.10 nats under the floor of guessing; {place} the untrained twin (")
    assert f"than to {ours:.1%} of others, the twin's to {twins:.1%})" in text
    assert learned(numbers, {}, (7.5, 7.1, "nats")) == "0.40 nats above the floor of guessing"
    assert learned(numbers, twin).startswith(place)
