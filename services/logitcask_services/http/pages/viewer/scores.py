"""A student's figures at each token, from a file with a JSON object per line; `report --token-scores` writes it.

    {"id": "<SHA-256 of the document, hex>", "kl": [0.013, null, ...]}

`kl` holds KL(teacher || student) in nats for each recorded position of the document, in their order; null where there
is no finite value. Beside a document of another number of recorded positions a line is refused.
"""

import json
import math
from pathlib import Path
from typing import Any

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.http.pages.viewer.documents import DocumentWindow


class ScoresError(LogitcaskError, ValueError):
    """A file of scores cannot be read, or is of other documents."""


class TokenScores:
    """Scores by document. Raises ScoresError where the file is not as the module's docstring has it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kl: dict[str, list[float | None]] = {}
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    document, values = self._parsed(line, number)
                    self._kl[document] = values
        except (OSError, UnicodeDecodeError) as error:
            raise ScoresError(f"the scores {path} cannot be read: {error}") from error

    def _parsed(self, line: str, number: int) -> tuple[str, list[float | None]]:
        try:
            entry: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ScoresError(f"{self._path}, line {number} is no JSON: {error}") from error
        document, values = (entry.get("id"), entry.get("kl")) if isinstance(entry, dict) else (None, None)
        if not isinstance(document, str) or not isinstance(values, list) or not all(map(_is_score, values)):
            raise ScoresError(
                f'{self._path}, line {number}: expected {{"id": "...", "kl": [numbers or null]}}, got {line[:80]!r}'
            )
        return document, [None if value is None or not math.isfinite(value) else float(value) for value in values]

    def added(self, window: DocumentWindow) -> DocumentWindow:
        """A window with the scores of its tokens. Raises ScoresError where they are not of its document."""
        if (values := self._kl.get(window.id)) is None:
            return window
        if len(values) != window.recorded:
            raise ScoresError(
                f"{self._path} has {len(values)} scores of document {window.id[:12]}, which has {window.recorded} "
                "recorded positions"
            )
        place = window.recorded_before
        rows = []
        for row in window.rows:
            if row.entropy is None:
                rows.append(row)
                continue
            rows.append(row.model_copy(update={"kl": values[place]}))
            place += 1
        return window.model_copy(update={"rows": rows})


def _is_score(value: object) -> bool:
    # JSON bounds no whole number, and no float holds all of them.
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return value is None or isinstance(value, float) or is_whole
