"""The token strip: which colour class a token gets, what stands in it, and what a screen reader says of it.

Colours are seven steps of one lightness ramp, so that they mean the same to people who see hues differently; every
step has a line in the legend.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, get_args

from logitcask_services.http.pages.viewer.documents import DocumentWindow, Token
from logitcask_services.http.pages.viewer.rendering import figure_text, probability_text

Measure = Literal["entropy", "probability", "kl"]
MEASURES: Final[tuple[Measure, ...]] = get_args(Measure)
ENTROPY_EDGES: Final = (0.1, 0.5, 1.0, 2.0, 3.0, 4.5)
"""Nats."""
PROBABILITY_EDGES: Final = (0.9, 0.5, 0.2, 0.05, 0.01, 0.001)
"""Descending: a strong colour is a token that nobody expected."""
KL_EDGES: Final = (0.01, 0.05, 0.1, 0.3, 0.7, 2.0)
"""Nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownToken:
    """A token of the strip."""

    at: int
    text: str
    """With control characters made visible."""
    classes: str
    label: str
    """For screen readers."""


def steps_of(edges: tuple[float, ...]) -> list[str]:
    """What each of the seven steps means, for the legend; edges ascend or descend."""
    first, last = f"{edges[0]:g}", f"{edges[-1]:g}"
    between = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    below, above = ("under", "over") if edges[0] < edges[-1] else ("over", "under")
    return [f"{below} {first}", *between, f"{above} {last}"]


LEGENDS: Final[dict[Measure, list[str]]] = {
    "entropy": steps_of(ENTROPY_EDGES),
    "probability": steps_of(PROBABILITY_EDGES),
    "kl": steps_of(KL_EDGES),
}
TITLES: Final[dict[Measure, str]] = {
    "entropy": "Entropy of the teacher, in nats",
    "probability": "Probability of the token that came",
    "kl": "KL of the student from the teacher, in nats",
}


def strip_of(window: DocumentWindow) -> list[ShownToken]:
    """The tokens of a window as the strip shows them."""
    return [_shown(row) for row in window.rows]


def visible(text: str) -> str:
    """Text in which nothing is hidden or turns the direction of what follows; lines break where they did."""
    return "".join(
        "↵\n"
        if character == "\n"
        else character
        if character == "\t" or character.isprintable()
        else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    return ascii(character)[1:-1]


def _shown(row: Token) -> ShownToken:
    classes = ["tok"]
    if row.entropy is None:
        classes.append("none")
    else:
        classes.append(f"e{bisect_right(ENTROPY_EDGES, row.entropy)}")
        # Of an imported record that lacks the token, the mass outside the head bounds its probability.
        known = row.probability if row.probability is not None else row.tail_mass or 0.0
        classes.append(f"p{bisect_right([-edge for edge in PROBABILITY_EDGES], -known)}")
    if row.kl is not None:
        classes.append(f"k{bisect_right(KL_EDGES, row.kl)}")
    if row.answer:
        classes.append("answer")
    return ShownToken(at=row.at, text=visible(row.text) or "⋯", classes=" ".join(classes), label=_label(row))


def _label(row: Token) -> str:
    name = visible(row.text).strip() or ("space" if row.text else "part of a character")
    if row.entropy is None:
        return f"{row.at}: {name}, not recorded"
    parts = [f"{row.at}: {name}", f"probability {probability_text(row.probability)}"]
    parts.append(f"entropy {figure_text(row.entropy)}")
    if row.kl is not None:
        parts.append(f"KL {figure_text(row.kl, 3)}")
    if row.answer:
        parts.append("answer")
    return ", ".join(parts)
