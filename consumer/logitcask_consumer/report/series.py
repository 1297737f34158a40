"""How any number of models share a plot: their names, colours and strokes, and a legend that has the room it needs."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

COLOURS: Final = ("#c2410c", "#2563eb", "#15803d", "#7c3aed", "#b45309", "#0e7490")
_STROKES: Final[tuple[tuple[Any, str], ...]] = (
    ("-", "o"),
    ((0, (4, 2)), "s"),
    ((0, (1, 1.5)), "^"),
    ((0, (6, 2, 1, 2)), "D"),
    ((0, (3, 1, 1, 1, 1, 1)), "v"),
)
"""Line and mark of the first six series, of the next six, and so on."""
_LABEL_CHARACTERS: Final = 28
_COLUMN_INCHES, _ROW_INCHES = 2.4, 0.19
"""Of a legend whose names are as long as they may be."""
INSIDE: Final = 6
"""Most series whose legend, or marks, stand inside a plot."""


class Look(NamedTuple):
    """Of a series; no two of thirty are alike."""

    colour: str
    line: Any
    mark: str


def looks(count: int) -> list[Look]:
    """One for each of some series, in their order."""
    return [
        Look(COLOURS[number % len(COLOURS)], *_STROKES[number // len(COLOURS) % len(_STROKES)])
        for number in range(count)
    ]


def shortened(label: str) -> str:
    """A name, without its middle where it is long: names of a report often begin, or end, alike."""
    if len(label) <= _LABEL_CHARACTERS:
        return label
    before = (_LABEL_CHARACTERS - 1) // 2
    return f"{label[:before]}…{label[before + 1 - _LABEL_CHARACTERS :]}"


def add_legend(figure: Any, axes: Any, named: Sequence[tuple[str, Any]], *, inside: str | None = "best") -> None:
    """Name what is drawn: inside the plot where it is little, else below, and the figure grows by that.

    Args:
        figure: of constrained layout.
        axes: of the plot.
        named: name and handle of each series.
        inside: where in the plot; None for below in any case.
    """
    if inside is not None and len(named) <= INSIDE:
        _named(axes.legend, named, loc=inside)
        return
    width, height = figure.get_size_inches()
    columns = max(1, min(len(named), int(width / _COLUMN_INCHES)))
    figure.set_size_inches(width, height + _ROW_INCHES * -(-len(named) // columns))
    _named(figure.legend, named, loc="outside lower center", ncols=columns, fontsize=8)


def _named(legend_of: Any, named: Sequence[tuple[str, Any]], **place: Any) -> None:
    """A legend of all that is named: matplotlib itself leaves out whatever has a name that begins with `_`."""
    legend = legend_of([handle for _, handle in named], [str(number) for number in range(len(named))], **place)
    for text, (name, _) in zip(legend.get_texts(), named, strict=True):
        text.set_text(shortened(name))
