"""The token strip of `logitcask cask show`: a text in which colour says how sure the teacher was of every token."""

import json
from typing import Any, Final, Literal

from rich.text import Text

Measure = Literal["entropy", "probability"]

_SURE: Final = (46, 160, 67)
_UNSURE: Final = (215, 58, 73)
_FULL_ENTROPY: Final = 5.0
"""Nats at which the colour is that of an unsure teacher; the entropy of 150 equally likely tokens."""


def token_strip(positions: list[dict[str, Any]], measure: Measure, *, texts: bool) -> Text:
    """The tokens of consecutive positions on one strip, each in the colour of the teacher's prediction of it.

    Tokens of answers are underlined.

    Args:
        positions: From `describe_positions`.
        measure: Entropy of the distribution that predicted the token, or the probability it gave the token.
        texts: Whether tokens are JSON strings of text; otherwise they are ids.
    """
    strip = Text(_shown(positions[0]["token"], texts), style="dim")
    for position in positions:
        mark = "underline " if position.get("answer") else ""
        strip.append(_shown(position["next"], texts), style=mark + _style(position, measure))
    return strip


def _shown(token: str, texts: bool) -> str:
    if not texts:
        return f"{token} "
    # What a document holds must not steer the terminal: escape sequences are shown, not obeyed.
    return "".join(one if one in "\n\t" or one.isprintable() else ascii(one)[1:-1] for one in json.loads(token))


def _style(position: dict[str, Any], measure: Measure) -> str:
    if measure == "entropy":
        doubt = min(max(position["entropy"], 0.0) / _FULL_ENTROPY, 1.0)
    else:
        doubt = 1.0 - min(max(position["probability"], 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * doubt) for a, b in zip(_SURE, _UNSURE, strict=True))
    return f"black on rgb({red},{green},{blue})"
