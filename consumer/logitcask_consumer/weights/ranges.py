"""Token ranges of documents from a side file: for what no token sequence can tell.

Shape legend: R ranges of a document, P positions.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.answer_mask import inside_ranges
from logitcask_consumer.weights.weight import Positions, RecordWeight, StoredAnswers, WeightParameterError, register


@register
@dataclass(frozen=True, kw_only=True)
class Ranges(RecordWeight):
    """1 for tokens in the ranges that a JSONL file lists for their document, 0 for all others.

    One line per document: {"document_id": "<64 hex digits>", "ranges": [[start, stop], ...]}, token indices from 0,
    stop excluded. The identity is the SHA-256 that the cask stores (`logitcask_schemas.record.records.document_id`). A
    position counts by the token it predicts. A document that the file does not name is not trained. The file's SHA-256
    binds a resumed run to it.
    """

    name: ClassVar[str] = "ranges"
    file: str = ""
    sha256: str = field(default="", repr=False)
    ranges_of: dict[bytes, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)
    """Identity of a document -> its ranges, [R, 2]."""

    def bind(self, tokenizer: Any, answers: StoredAnswers | None = None) -> Self:
        """Read the file; see `Weight.bind`."""
        del tokenizer, answers
        if not self.file:
            raise WeightParameterError("weight 'ranges' needs file=\"PATH\", a JSONL file of token ranges")
        try:
            content = Path(self.file).read_bytes()
        except OSError as error:
            raise WeightParameterError(f"weight 'ranges': {self.file} cannot be read: {error}") from error
        lines = [_line(f"{self.file}:{number}", line) for number, line in enumerate(content.splitlines(), start=1)]
        ranges_of = dict(lines)
        if len(ranges_of) < len(lines):
            raise WeightParameterError(f"weight 'ranges': {self.file} names a document twice")
        return replace(self, sha256=hashlib.sha256(content).hexdigest(), ranges_of=ranges_of)

    def content(self) -> str | None:
        """The file's SHA-256."""
        return self.sha256

    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """Whether the next token lies in a range of its document, [P]."""
        assert self.sha256, "bind comes first"
        ranges_W = [self.ranges_of.get(identity.tobytes()) for identity in positions.document_ids_W]
        return inside_ranges(ranges_W, positions.token_offsets_W1)[positions.targets_P]

    def why_nothing(self, answers: StoredAnswers) -> str:
        """That the file names none of the documents' tokens."""
        return f"{self.file} gives no tokens of the {answers.documents:,} documents"


def _line(where: str, line: bytes) -> tuple[bytes, NDArray[np.int64]]:
    """Identity and ranges of one line."""
    try:
        row = json.loads(line)
        identity = bytes.fromhex(row["document_id"])
        ranges_R2 = np.array(row["ranges"], dtype=np.int64).reshape(-1, 2)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise WeightParameterError(
            f'weight \'ranges\': {where} should be {{"document_id": "64 hex digits", "ranges": [[start, stop], ...]}}, '
            f"got {line[:80]!r} ({error})"
        ) from error
    if len(identity) != 32 or (ranges_R2 < 0).any() or (ranges_R2[:, 0] > ranges_R2[:, 1]).any():
        raise WeightParameterError(
            f"weight 'ranges': {where}: an identity has 64 hex digits, a range 0 <= start <= stop; got {line[:80]!r}"
        )
    return identity, ranges_R2
