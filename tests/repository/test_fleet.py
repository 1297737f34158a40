"""The simulated fleet: against closed forms, exact small cases, and leases that are wrong."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitcask_schemas.planning.failures import failure_costs

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from fleet import FleetSpec, expected_over_ideal, simulate


def test_without_failures_it_is_ideal() -> None:
    result = simulate(FleetSpec(workers=10, chunks=200, chunk_seconds=7.0))
    assert result.seconds == pytest.approx(result.ideal_seconds) == pytest.approx(140.0)
    assert (result.failures, result.duplicates, result.lost_seconds) == (0, 0, 0.0)


def test_equal_seeds_give_equal_figures() -> None:
    spec: dict[str, Any] = {
        "workers": 20,
        "chunks": 400,
        "chunk_seconds": 10.0,
        "mtbf_seconds": 100.0,
        "lease_seconds": 5.0,
    }
    assert simulate(FleetSpec(**spec, seed=1)) == simulate(FleetSpec(**spec, seed=1))
    assert simulate(FleetSpec(**spec, seed=1)) != simulate(FleetSpec(**spec, seed=2))


@pytest.mark.parametrize("mtbf", [40.0, 100.0, 1000.0])
def test_it_agrees_with_the_closed_form(mtbf: float) -> None:
    """Many chunks per worker, so that its end does not matter."""
    spec = FleetSpec(
        workers=20,
        chunks=20_000,
        chunk_seconds=20.0,
        mtbf_seconds=mtbf,
        restart_seconds=8.0,
        lease_seconds=1.0,
        renew_seconds=0.5,
        seed=3,
    )
    result, costs = simulate(spec), failure_costs(20.0, mtbf, 8.0)
    assert result.over_ideal == pytest.approx(costs.slowdown, rel=0.02)
    assert expected_over_ideal(spec) == costs.slowdown
    assert result.lost_seconds / result.failures == pytest.approx(costs.lost_seconds, rel=0.03)
    assert result.duplicates == 0


def test_the_closed_form_in_small_and_large() -> None:
    assert failure_costs(100.0, math.inf, 60.0).slowdown == 1.0
    gentle = failure_costs(100.0, 1e6, 60.0)
    assert gentle.slowdown == pytest.approx(1 + 50 / 1e6 + 60 / 1e6, rel=1e-6)
    assert gentle.lost_seconds == pytest.approx(50.0, rel=1e-3)
    assert math.isinf(failure_costs(1e6, 1.0, 0.0).slowdown)


def lives(seed: int, mtbf: float) -> list[float]:
    """Of the only worker of a fleet, as the fleet draws them."""
    random = np.random.default_rng(seed)
    random.random(1)
    return [float(random.exponential(mtbf)) for _ in range(2)]


@pytest.mark.parametrize("lease", [0.0, 30.0, 300.0])
def test_an_orphan_waits_for_its_lease(lease: float) -> None:
    """One worker that dies once: the chunk is captured again when both the worker is back and the lease is over."""
    first, second = lives(1, 100.0)
    chunk = first + 1
    assert second > 300 + chunk
    spec = FleetSpec(
        workers=1, chunks=1, chunk_seconds=chunk, mtbf_seconds=100.0, restart_seconds=20.0, lease_seconds=lease, seed=1
    )
    result = simulate(spec)
    # The only sign of life came when the lease was taken.
    free = max(first + 20.0, lease)
    assert result.seconds == pytest.approx(free + chunk)
    assert result.failures == 1
    assert result.lost_seconds == pytest.approx(first)


def test_workers_that_die_need_leases_that_run_out() -> None:
    """What a dead one had would never be done, and the simulation never end."""
    with pytest.raises(ValueError, match="give lease_seconds"):
        simulate(FleetSpec(workers=2, chunks=4, chunk_seconds=10.0, mtbf_seconds=8.0))


def test_renewal_starts_the_lease_anew() -> None:
    first, _ = lives(1, 100.0)
    spec: dict[str, Any] = {"workers": 1, "chunks": 1, "chunk_seconds": first + 1, "mtbf_seconds": 100.0, "seed": 1}
    result = simulate(FleetSpec(**spec, lease_seconds=50.0, renew_seconds=10.0))
    assert result.seconds == pytest.approx(first - math.fmod(first, 10.0) + 50.0 + first + 1)


def test_a_lease_that_living_workers_lose_captures_twice() -> None:
    """The negative control: leases shorter than a chunk, which nobody renews."""
    spec: dict[str, Any] = {"workers": 50, "chunks": 1000, "chunk_seconds": 100.0, "seed": 1}
    good = simulate(FleetSpec(**spec, lease_seconds=30.0, renew_seconds=10.0))
    assert good.duplicates == 0
    assert good.over_ideal == pytest.approx(1.0)
    bad = simulate(FleetSpec(**spec, lease_seconds=30.0))
    assert bad.duplicates > 900
    assert bad.over_ideal > 1.9
    assert bad.duplicate_seconds == pytest.approx(100.0 * bad.duplicates)


def test_a_long_lease_costs_time_at_the_end() -> None:
    """And only there: as long as other chunks are free, nobody waits for an orphan."""
    fields: dict[str, Any] = {
        "workers": 100,
        "chunk_seconds": 100.0,
        "mtbf_seconds": 2000.0,
        "renew_seconds": 10.0,
        "seed": 2,
    }
    short = simulate(FleetSpec(**fields, chunks=1000, lease_seconds=20.0))
    long = simulate(FleetSpec(**fields, chunks=1000, lease_seconds=5000.0))
    assert long.seconds > short.seconds + 4000
    assert long.lost_seconds == pytest.approx(short.lost_seconds, rel=1.0)
    assert long.idle_seconds > 10 * short.idle_seconds


def test_idle_workers_end_what_stragglers_hold_up() -> None:
    fields: dict[str, Any] = {
        "workers": 100,
        "chunks": 2000,
        "chunk_seconds": 10.0,
        "stragglers": 0.02,
        "straggler_factor": 30.0,
    }
    held_up = simulate(FleetSpec(**fields, seed=5))
    helped = simulate(FleetSpec(**fields, seed=5, steal_after=20.0))
    assert helped.seconds < held_up.seconds
    assert helped.seconds <= 200.0 * 1.25
    assert held_up.duplicates == 0
