"""Which rows a prompt shows as examples.

Everything here is a function of the candidates, the row and the job's seed; of equals, the earlier candidate is taken.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.api.generation_steps import Demonstrations
from logitcask_services.generation.rows import Refusal, Row

_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class DemonstrationChooser:
    """Chooses among candidates, see `Demonstrations`."""

    wanted: Demonstrations
    candidates: Sequence[Row]
    job_seed: int

    def choose(self, row: Row, *, where: str) -> tuple[Row, ...] | Refusal:
        """`k` candidates for a row, nearest or first ones first; never the row itself.

        Args:
            row: what is asked about. A candidate of the job's own corpus that is of the same line is left out.
            where: begins messages: which row, which step.

        Returns:
            A refusal where there are fewer than k, or the field `query` is not as it should be.
        """
        own = self._by_line.get(row.line) if self.wanted.corpus_id is None else None
        others = len(self.candidates) - (own is not None)
        if self.wanted.choose == "field":
            return self._by_field(row, own, where)
        if others < self.wanted.k:
            return Refusal(
                code="too_few_demonstrations",
                message=f"{where}: {self.wanted.k} demonstrations are asked for, and there are {others} besides the "
                "row; lower k, or give a larger corpus",
            )
        match self.wanted.choose:
            case "first":
                chosen = [at for at in range(min(self.wanted.k + 1, len(self.candidates))) if at != own]
            case "seeded":
                drawn = _drawn(others, self.wanted.k, f"{row.id}/{self.job_seed}")
                chosen = [at + (own is not None and at >= own) for at in drawn]
            case "bm25":
                text = row.fields.get(self.wanted.query)
                if not isinstance(text, str):
                    return self._no_query(row, where, "a text, which the candidates' is compared with")
                chosen = self._index.nearest(text, self.wanted.k, own)
        return tuple(self.candidates[at] for at in chosen[: self.wanted.k])

    def _by_field(self, row: Row, own: int | None, where: str) -> tuple[Row, ...] | Refusal:
        ids = row.fields.get(self.wanted.query)
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            return self._no_query(row, where, "a list of ids of rows, as score steps write it")
        unknown = [name for name in ids if name not in self._by_id or self._by_id[name] == own]
        if unknown:
            return Refusal(
                code="unknown_demonstration",
                message=f"{where}: the field `{self.wanted.query}` names the row {unknown[0][:64]!r}, which is not "
                "among the candidates; let both steps take them from the same corpus",
            )
        if len(ids) < self.wanted.k:
            return Refusal(
                code="too_few_demonstrations",
                message=f"{where}: {self.wanted.k} demonstrations are asked for, and the field `{self.wanted.query}` "
                f"names {len(ids)}; lower k, or let the score step keep more",
            )
        return tuple(self.candidates[self._by_id[name]] for name in ids[: self.wanted.k])

    def _no_query(self, row: Row, where: str, expected: str) -> Refusal:
        name = self.wanted.query
        got = f"is a {type(row.fields[name]).__name__}" if name in row.fields else "is not there"
        return Refusal(
            code="unknown_field",
            message=f"{where}: the field `{name}`, by which demonstrations are chosen, {got}; expected {expected}. The "
            f"row has {', '.join(sorted(row.fields)[:32]) or 'no fields'}",
        )

    @cached_property
    def _by_line(self) -> Mapping[int, int]:
        return {row.line: at for at, row in enumerate(self.candidates) if row.line}

    @cached_property
    def _by_id(self) -> Mapping[str, int]:
        return {row.id: at for at, row in enumerate(self.candidates)}

    @cached_property
    def _index(self) -> "_Bm25":
        return _Bm25([row.fields.get(self.wanted.query) for row in self.candidates])


class _Bm25:
    """Texts by BM25 (Lucene's form, k1 1.5, b 0.75) on lower-case words."""

    def __init__(self, texts: Sequence[Any]) -> None:
        """Index texts; what is none is like nothing."""
        import bm25s

        words = [_words(text) if isinstance(text, str) else [] for text in texts]
        self._size = len(words)
        self._index: Any = None
        if any(words):
            self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
            self._index.index(words, show_progress=False)

    def nearest(self, text: str, k: int, left_out: int | None) -> list[int]:
        """The `k` nearest, best first, of equals the first."""
        scores = self._scores(_words(text))
        if left_out is not None:
            scores[left_out] = -np.inf
        # All above the k-th largest, then as many as needed of those that equal it.
        bound = np.partition(scores, len(scores) - k)[len(scores) - k]
        above, equal = np.flatnonzero(scores > bound), np.flatnonzero(scores == bound)
        chosen = np.concatenate([above, equal[: k - len(above)]])
        ordered: list[int] = chosen[np.lexsort((chosen, -scores[chosen]))].tolist()
        return ordered

    def _scores(self, words: list[str]) -> NDArray[np.float32]:
        known = self._index.get_tokens_ids(words) if self._index is not None and words else []
        if not known:
            return np.zeros(self._size, dtype=np.float32)
        return np.array(self._index.get_scores(known), dtype=np.float32)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _drawn(num: int, k: int, seed: str) -> list[int]:
    """`k` different numbers of 0 .. num - 1: the first k steps of Fisher and Yates's shuffle, fed by SHA-256.

    The standard libraries promise no stream of random numbers over their versions.
    """
    moved: dict[int, int] = {}
    drawn = list[int]()
    for at in range(k):
        digest = hashlib.sha256(f"demonstrations/{seed}/{at}".encode()).digest()
        other = at + int.from_bytes(digest, "big") % (num - at)
        drawn.append(moved.get(other, other))
        moved[other] = moved.get(at, at)
    return drawn
