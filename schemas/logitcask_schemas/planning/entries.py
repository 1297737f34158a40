"""How many entries a position is expected to have, from tau and the teacher's mean entropy alone.

The assumption: averaged over positions, the mass that lies in tokens of probability at most x is

    M(x) = a H x^a   for x < 1,   and the rest, 1 - a H, lies in tokens that are as good as certain.

Its mean entropy is the integral of -log x dM(x) = H, so H in nats is the only thing that is asked of teacher and text;
a is one number, fitted to a small teacher and checked on other texts (docs/planning.md). Everything else follows:

    tail mass          R = M(tau)
    tokens t >= tau    N = 1 - a H + a^2 H / (1 - a) (tau^(a - 1) - 1)     the integral of dM(x) / x from tau to 1
    head entries       max(N, 1) + R     the most probable token is always there; the next token is outside N with
                                         probability R where the text is such as the teacher would write
    draws              R / tau + 1/2     ceil adds a half on average
"""

from dataclasses import dataclass
from typing import Final

from logitcask_schemas.errors import OptionError

TAIL_EXPONENT: Final = 0.31
"""a: least largest error in bytes over tau = 1/5 to 1/400 of SmolLM2-135M on Python sources (docs/capture.md)."""
MEASURED_ENTROPY: Final = 2.2
"""H in nats that fits the same figures."""
MAX_ENTROPY: Final = 1 / TAIL_EXPONENT
"""Beyond it the assumption would put more than all mass into the tail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedEntries:
    """Means over positions."""

    head: float
    """Entries stored exactly, the next token among them."""
    draws: float
    tail_mass: float
    """Probability outside the tokens that reach tau."""


def expected_entries(tau: float, entropy: float) -> ExpectedEntries:
    """Head entries and draws of a position in mode `threshold`, before its limits.

    Args:
        tau: The threshold, a probability.
        entropy: Mean of the teacher's distributions over the text, nats.

    Raises:
        OptionError: An entropy that the assumption cannot have.
    """
    if not 0 < entropy <= MAX_ENTROPY:
        raise OptionError(
            f"a mean entropy of {entropy:g} nats: the formula holds above 0 and up to {MAX_ENTROPY:.2f}. Give a value "
            "within, or measure bytes per token in a pilot and give them with --bytes-per-token"
        )
    a = TAIL_EXPONENT
    spread = a * entropy
    tail_mass = spread * tau**a
    reaching = 1 - spread + spread * a / (1 - a) * (tau ** (a - 1) - 1)
    return ExpectedEntries(head=max(reaching, 1.0) + tail_mass, draws=tail_mass / tau + 0.5, tail_mass=tail_mass)
