"""Commands that docs/survey.md names for the methods of the survey."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/survey.md"


def survey_commands(program: str) -> list[str]:
    """All commands of a program (such as `train`) with options, in the page's order, each once.

    Raises:
        ValueError: there is none; has the page another form?
    """
    named = re.findall(rf"`({program} -[^`]+)`", PAGE.read_text(encoding="utf-8"))
    if not named:
        raise ValueError(f"expected commands of {program} in {PAGE}, got none")
    return list(dict.fromkeys(named))
