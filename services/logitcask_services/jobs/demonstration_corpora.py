"""Corpora of demonstrations in memory: read once for all who show them at the same time, and of bounded size."""

import threading
from pathlib import Path
from weakref import WeakValueDictionary

from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.rows import Row
from logitcask_services.generation.source import source_rows


class CorpusRows(list[Row]):
    """The rows of one corpus, in order; lines that give none are left out. Kept while anyone holds it."""


class DemonstrationCorpora:
    """For all threads.

    Args:
        max_bytes: Most bytes of a corpus. Its rows take several times as much memory.
        max_line_bytes: Longer lines give no row.
    """

    def __init__(self, max_bytes: int, max_line_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_line_bytes = max_line_bytes
        self._lock = threading.Lock()
        self._loaded: WeakValueDictionary[str, CorpusRows] = WeakValueDictionary()

    def require_fits(self, size: int, *, where: str) -> None:
        """Raise RecipeError where a corpus of `size` bytes is too large; `where` begins the message."""
        if size > self._max_bytes:
            raise RecipeError(
                f"{where}: the corpus that demonstrations are chosen from has {size:,} bytes, and at most "
                f"{self._max_bytes:,} are taken into memory; give a smaller corpus as `demonstrations`, or raise "
                "LOGITCASK_MAX_DEMONSTRATION_BYTES of the service"
            )

    def rows(self, path: Path, sha256: str) -> CorpusRows:
        """The rows of a corpus. Raises RecipeError where it is too large, NotJsonLinesError, OSError."""
        self.require_fits(path.stat().st_size, where=f"corpus {sha256[:12]}")
        with self._lock:
            rows = self._loaded.get(sha256)
            if rows is None:
                staged = source_rows(path, sha256, self._max_line_bytes)
                rows = self._loaded[sha256] = CorpusRows(row for row in staged if isinstance(row, Row))
            return rows
