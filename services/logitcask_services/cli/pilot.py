"""`logitcask submit --dry-run --pilot N`: N lines of a corpus are really captured, and what all would take is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console
from rich.text import Text

from logitcask_schemas.api.pilots import Expected, Pilot
from logitcask_schemas.terminal import bytes_text, counted, printable
from logitcask_services.cli.connection import duration
from logitcask_services.corpora.corpus_lines import CorpusLines

MOST_LINES: Final = 1024
"""As a request to score has them."""
MOST_BYTES: Final = 16 << 20
MAX_LINE_BYTES: Final = 8 << 20
"""Longer ones are bad lines for a service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnLines:
    """Lines of a corpus, evenly spread over it."""

    content: bytes
    """With line ends."""
    corpus_lines: int
    """That are not blank."""
    corpus_bytes: int
    """Of these, without line ends."""


def draw_lines(path: Path, count: int) -> DrawnLines:
    """The middle lines of `count` equal parts of a corpus; all of them where it has no more. Blank ones do not count.

    The file is read twice, as nobody knows before how many lines it has.

    Raises typer.BadParameter where they are too large to be sent, or there is none.
    """
    lines = size = 0
    for _, _, content in CorpusLines(path, MAX_LINE_BYTES):
        lines, size = lines + (content is not None), size + len(content or b"")
    if not lines:
        raise typer.BadParameter("there is no line to draw for a pilot", param_hint="CORPUS")
    wanted = {(2 * part + 1) * lines // (2 * min(count, lines)) for part in range(min(count, lines))}
    drawn = bytearray()
    fitting = (content for _, _, content in CorpusLines(path, MAX_LINE_BYTES) if content is not None)
    for place, content in enumerate(fitting):
        if place in wanted:
            drawn += content + b"\n"
        if len(drawn) > MOST_BYTES:
            raise typer.BadParameter(
                f"{count} lines of this corpus are more than {MOST_BYTES:,} bytes; take fewer", param_hint="--pilot"
            )
    return DrawnLines(content=bytes(drawn), corpus_lines=lines, corpus_bytes=size)


def pilot_json(pilot: Pilot, price_per_hour: float | None) -> dict[str, Any]:
    """What was measured, with the price of the time that is estimated; null where no price per hour is known."""
    price = None
    if pilot.estimate is not None and price_per_hour is not None:
        hours = pilot.estimate.seconds.model_dump(mode="json")
        price = {name: None if value is None else value / 3600 * price_per_hour for name, value in hours.items()}
    return {**pilot.model_dump(mode="json"), "price": price}


def show_pilot(pilot: Pilot, price_per_hour: float | None, out: Console) -> None:
    """What was measured, and what follows for all lines."""
    out.rule(Text(f"a pilot of {counted(pilot.lines, 'line')}"), align="left", style="dim")
    bad = f", {pilot.bad_lines:,} bad or skipped" if pilot.bad_lines else ""
    _line(out, f"{counted(pilot.documents, 'document')}, {counted(pilot.tokens, 'token')}{bad}")
    _line(
        out,
        f"{pilot.bytes_per_position:.1f} bytes per recorded position in {pilot.carrier} shards: "
        f"{pilot.head_entries_per_position:.2f} head entries, {pilot.draws_per_position:.2f} draws; "
        f"mean entropy {pilot.mean_entropy:.2f} nats",
    )
    beside = f", beside {pilot.beside}, which slowed it down" if pilot.beside else ""
    _line(out, f"{pilot.tokens_per_second:,.0f} tokens a second over {pilot.seconds:,.1f} s{beside}")
    if (estimate := pilot.estimate) is None:
        return
    out.rule(Text("the whole corpus, from that"), align="left", style="dim")
    _line(out, f"tokens: {_told(estimate.tokens, lambda count: f'{count:,.0f}')}")
    _line(out, f"cask: {_told(estimate.cask_bytes, bytes_text)}")
    if estimate.hint_bytes.expected:
        _line(out, f"hints beside it: {_told(estimate.hint_bytes, bytes_text)}")
    _line(out, f"the teacher's time: {_told(estimate.seconds, duration)}")
    if price_per_hour is not None:
        hourly = price_per_hour / 3600
        _line(out, f"price: {_told(estimate.seconds, lambda seconds: f'{seconds * hourly:,.2f}')}")


def _told(value: Expected, text: Any) -> str:
    """A figure with its interval."""
    if value.low is None or value.high is None:
        return f"about {text(value.expected)} (too few lines to say how surely)"
    if value.low == value.high:
        return f"{text(value.expected)}"
    return f"about {text(value.expected)}, 95 % between {text(value.low)} and {text(value.high)}"


def _line(out: Console, text: str) -> None:
    out.print(Text(printable(text)), highlight=False)
