"""The variance over all draws that could have been made, against formulas and against draws that are made."""

import numpy as np
import pytest

from logitcask_services.fidelity.divergence import draw_variance


def systematic(tail, values, draws, u):
    """One systematic estimate: points at equal distances on the running sum."""
    running = tail.cumsum()
    share = running[-1] / draws
    at = np.searchsorted(running, (u + np.arange(draws)) * share, side="right")
    return share * values[np.minimum(at, len(tail) - 1)].sum()


@pytest.mark.parametrize("draws", [1, 2, 7, 40])
def test_systematic_draws_scatter_as_the_integral_over_their_one_number_says(draws):
    generator = np.random.default_rng(draws)
    tail = generator.dirichlet(np.full(50, 0.3)) * 0.4
    tail[generator.integers(0, 50, 20)] = 0.0
    values = generator.normal(size=50)
    grid = (np.arange(200_000) + 0.5) / 200_000
    found = np.array([systematic(tail, values, draws, u) for u in grid[::20]])
    assert found.mean() == pytest.approx(float(tail @ values), abs=1e-3)
    assert draw_variance(tail, values, draws, "systematic") == pytest.approx(found.var(), rel=5e-3)


def test_multinomial_draws_scatter_by_their_formula():
    generator = np.random.default_rng(1)
    tail, values = generator.dirichlet(np.full(30, 0.5)) * 0.3, generator.normal(size=30)
    found = [0.3 / 8 * values[generator.choice(30, 8, p=tail / tail.sum())].sum() for _ in range(20_000)]
    assert draw_variance(tail, values, 8, "multinomial") == pytest.approx(np.var(found), rel=0.05)


def test_the_indicator_of_a_token_scatters_as_its_hits_can():
    """Var of a token's weight is the known (r/n)² f (1 - f), f what is left of t n/r beside whole hits."""
    tail = np.array([0.11, 0.02, 0.05, 0.07])
    for token in range(4):
        fraction = (tail[token] * 6 / tail.sum()) % 1
        expected = (tail.sum() / 6) ** 2 * fraction * (1 - fraction)
        assert draw_variance(tail, np.eye(4, dtype=np.float64)[token], 6, "systematic") == pytest.approx(
            expected, abs=1e-15
        )


def test_what_cannot_vary_does_not():
    assert draw_variance(np.array([0.2, 0.3]), np.array([1.0, 2.0]), 0, "systematic") == 0
    assert draw_variance(np.zeros(3), np.ones(3), 4, "systematic") == 0
    assert draw_variance(np.array([0.2, 0.3]), np.array([2.0, 2.0]), 3, "systematic") == pytest.approx(0, abs=1e-30)
    # Equal tokens, a draw each: every point has its token, always, and edges lie on u = 0.
    assert draw_variance(np.full(4, 0.25), np.arange(4, dtype=np.float64), 4, "systematic") == pytest.approx(
        0, abs=1e-20
    )


def test_tokens_too_small_to_raise_the_sum_change_nothing():
    tail = np.array([0.1, 0.2, 0.3, 0.0, 0.0])
    tiny = tail.copy()
    tiny[3:] = 1e-25
    values = np.array([1.0, -1.0, 2.0, 50.0, -70.0])
    expected = draw_variance(tail, values, 5, "systematic")
    assert draw_variance(tiny, values, 5, "systematic") == pytest.approx(expected, rel=1e-9)
