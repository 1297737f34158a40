"""The table of `logitcask cask show`: a line per position, with as many alternatives as the terminal holds."""

import json
from typing import Any, Final, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from logitcask_schemas.cli.output import fit, print_line

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
    return "".join(
        character if character in "\n\t" or character.isprintable() else ascii(character)[1:-1]
        for character in json.loads(token)
    )


def _style(position: dict[str, Any], measure: Measure) -> str:
    if measure == "entropy":
        doubt = min(max(position["entropy"], 0.0) / _FULL_ENTROPY, 1.0)
    else:
        # Of an imported record that lacks the token, the probability of all that is not stored is a bound.
        known = position["probability"]
        doubt = 1.0 - min(max(1.0 - position["captured"] if known is None else known, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * doubt) for a, b in zip(_SURE, _UNSURE, strict=True))
    return f"black on rgb({red},{green},{blue})"


_GAP: Final = "  "
_TOKEN_CELLS: Final = 14
_WIDE_TOKEN_CELLS: Final = 24
_WIDE: Final = 120
"""Cells of a terminal that has room for the token before, too."""
LEGEND: Final = (
    "p: probability of the token that came; entropy: of the whole, in nats",
    "(of imported records at least); tail: probability outside the stored head;",
    "draws: tokens that stand for it.",
)


def print_positions(out: Console, positions: list[dict[str, Any]]) -> None:
    """Print positions from `describe_positions`, then what the columns mean."""
    wide = out.width >= _WIDE
    columns: list[tuple[str, list[str], bool]] = [
        ("at", [str(position["position"]) for position in positions], True),
        *([("after", [position["token"] for position in positions], False)] if wide else []),
        ("token", [position["next"] for position in positions], False),
        ("p", [_percent_or_bound(position) for position in positions], True),
        ("entropy", [f"{position['entropy']:.2f}" for position in positions], True),
        ("tail", [percent(1 - position["captured"]) for position in positions], True),
        ("draws", [str(position["draws"]) for position in positions], True),
    ]
    max_cells = _WIDE_TOKEN_CELLS if wide else _TOKEN_CELLS
    widths = [
        min(max(map(cell_len, [name, *cells])), out.width if right else max_cells) for name, cells, right in columns
    ]
    room = out.width - sum(widths) - len(_GAP) * len(widths)
    lines = [[name for name, _, _ in columns], *([cells[i] for _, cells, _ in columns] for i in range(len(positions)))]
    last = ["most probable", *(_alternatives(position["head"], room, max_cells) for position in positions)]
    for at, (line, rest) in enumerate(zip(lines, last, strict=True)):
        cells = [
            fit(cell, width, right=right) for cell, width, (_, _, right) in zip(line, widths, columns, strict=True)
        ]
        print_line(out, Text(_GAP.join([*cells, rest]).rstrip(), style="bold" if at == 0 else ""))
    for explanation in LEGEND:
        print_line(out, Text(explanation, style="dim"))


def _percent_or_bound(position: dict[str, Any]) -> str:
    """The probability of the token that came; of one that an imported record lacks, what it cannot exceed."""
    known: float | None = position["probability"]
    return f"≤{percent(1 - position['captured'])}" if known is None else percent(known)


def percent(probability: float) -> str:
    """A probability for people: three digits, in percent."""
    value = 100 * max(probability, 0.0)
    if value and value < 0.1:
        return "<0.1%"
    return f"{value:.0f}%" if value >= 99.95 else f"{value:.1f}%"


def _alternatives(head: list[tuple[str, float]], room: int, max_cells: int) -> str:
    """As many entries as fit, then how many there are besides."""
    cut = [fit(token, min(cell_len(token), max_cells)) for token, _ in head]
    entries = [f"{token} {percent(probability)}" for token, (_, probability) in zip(cut, head, strict=True)]
    for shown in range(len(entries), 0, -1):
        rest = [f"+{len(entries) - shown}"] if shown < len(entries) else []
        text = _GAP.join([*entries[:shown], *rest])
        if cell_len(text) <= room or shown == 1:
            return text
    return ""
