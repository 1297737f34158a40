"""A student as a draft model: tokens that a step of speculative decoding gives, from the share of drafts that is kept.

With g drafted tokens, each kept with probability a whatever became of those before, a step gives 1 + a + ... + a^g
tokens on average: the kept ones and one of the teacher's own (Leviathan et al., arXiv 2211.17192, equation 1). It grows
with a, so ends of intervals and brackets go through it; where drafts fail in clusters, a step gives more than it says.
"""

from collections.abc import Sequence
from typing import Any

from logitcask_consumer.report.estimates import Estimate

DRAFTS = {"sampled": "acceptance", "greedy": "greedy_acceptance"}
"""How drafts are chosen -> the metric that says which share of them is kept."""


def tokens_per_step(acceptance: float, drafted: int) -> float:
    """Expected tokens of a step with so many drafted tokens, 1 to `drafted` + 1."""
    return sum(acceptance**kept for kept in range(drafted + 1))


def speculative(
    estimates: dict[str, Estimate], brackets: dict[str, dict[str, float]], lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """Expected tokens of a step for each draft length, of drafts that the student samples and of greedy ones.

    Args:
        estimates: of the metrics that have one which is no bound.
        brackets: metric -> `low` and `high`, of those that are known between two ends.
        lengths: tokens that are drafted for a step.

    Returns:
        One object for each length: `drafted`, and for `sampled` and `greedy` an estimate, or `low` and `high` alone.
    """
    return [
        {
            "drafted": length,
            **{way: _step(estimates.get(name), brackets.get(name), length) for way, name in DRAFTS.items()},
        }
        for length in lengths
    ]


def _step(estimate: Estimate | None, bracket: dict[str, float] | None, length: int) -> dict[str, float | None]:
    if estimate is not None:
        return estimate.map(lambda acceptance: tokens_per_step(acceptance, length)).as_dict()
    assert bracket is not None, "an acceptance without an estimate has a bracket"
    return {end: tokens_per_step(bracket[end], length) for end in ("low", "high")}
