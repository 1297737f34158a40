"""Numbers of a report as text: in the form of their row, with their interval."""

HUGE = 1e5
"""From here on numbers are written with an exponent."""


def escaped(text: str) -> str:
    """A text that does not end a cell of a table."""
    return text.replace("|", "\\|")


def number(value: float, form: str) -> str:
    """A value in its row's form; a huge one, as perplexities of untrained students are, in three digits."""
    return form.format(value) if abs(value) < HUGE else f"{value:.2e}"


def cell(estimate: dict[str, float | None] | None, form: str) -> str:
    """An estimate with the ends of its interval; empty where there is none."""
    if estimate is None or estimate["value"] is None:
        return ""
    value = number(estimate["value"], form)
    if estimate["low"] is None or estimate["high"] is None:
        return value
    return f"{value} [{number(estimate['low'], form)}, {number(estimate['high'], form)}]"


def short_cell(estimate: dict[str, float | None] | None, form: str) -> str:
    """An estimate with half the width of its interval; empty where there is none."""
    if estimate is None or estimate["value"] is None:
        return ""
    value = number(estimate["value"], form)
    if estimate["low"] is None or estimate["high"] is None:
        return value
    return f"{value} ± {number((estimate['high'] - estimate['low']) / 2, form.replace('+', ''))}"


def signed(form: str) -> str:
    """The form of a difference of two such numbers."""
    return form.replace("{:,", "{:").replace("{:+", "{:").replace("{:", "{:+")


def table(heading: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [heading, *rows]
    return "\n".join(
        f"| {' | '.join(line)} |" for line in [lines[0], ["---", *["---:"] * (len(heading) - 1)], *lines[1:]]
    )
