"""Whether a text that was written with drafts is the teacher's: speculative decoding must not change what is said.

At temperature 0 each token is the teacher's most likely one, but for ties in the last digits. At temperature 1 each is
a sample from t, so that -log t of the token less the entropy H(t) is zero on average, whatever came before: a text
that leaves it was not sampled from the teacher. Where the control fails, what was counted says nothing of a sound
engine, and is withheld.

Shape legend: N tokens of all texts.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_services.pilot.extrapolation import document_mean

TIE: Final = 0.1
"""Nats that a token may lie below the most likely one: engines differ by less, in bfloat16 too."""
FOLLOWED: Final = 0.99
"""Share of tokens that must be the teacher's."""
_WIDER: Final = 1.5
"""Times half of a 95 % interval: three standard errors, so that a sound engine fails once in 400 runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What was found."""

    passed: bool
    says: str
    """One sentence."""
    value: float
    """At temperature 0 the share of tokens that are the teacher's, at 1 the nats from the entropy."""


def greedy_control(gaps_N: NDArray[np.float64]) -> Control:
    """Of texts at temperature 0.

    Args:
        gaps_N: log-probability of the teacher's most likely token less that of the written one, in nats.
    """
    share = float((gaps_N <= TIE).mean())
    return Control(
        passed=share >= FOLLOWED,
        says=f"{share:.2%} of the written tokens are the teacher's most likely ones ({FOLLOWED:.0%} are needed)",
        value=share,
    )


def sampled_control(excess_N: NDArray[np.float64], documents_N: NDArray[np.int64]) -> Control:
    """Of texts at temperature 1.

    Args:
        excess_N: -log t of the written token less H(t), in nats.
        documents_N: number of the text of each.
    """
    mean = document_mean(excess_N, documents_N)
    if mean.high is None:
        return Control(passed=False, says="too few texts to tell whether they follow the teacher", value=mean.value)
    room = _WIDER * (mean.high - mean.value)
    return Control(
        passed=abs(mean.value) <= room,
        says=f"-log t of the written tokens lies {mean.value:+.3f} nats from the teacher's entropy (three standard "
        f"errors are {room:.3f})",
        value=mean.value,
    )
