"""Bytes of a cask that does not exist yet: from the layout of its records and the entries of a position."""

import math
from dataclasses import dataclass
from typing import Final

from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.errors import OptionError
from logitcask_schemas.planning.entries import ExpectedEntries, expected_entries
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec

PACKED_RATIO: Final = 0.62
"""Bytes of a packed shard over those of a flat one, codec u8all: 0.615 to 0.625 at tau 1/20, 1/50 and 1/95."""
ENTRY_BYTES: Final = 420
"""Of an entry file; the index repeats nearly as much."""
DOCUMENT_BYTES: Final = 32 + 8
"""Id and checksum of a document in its shard; an offset per column comes to it."""
OFFSET_BYTES: Final = 4
TABLE_BYTES: Final = 32 + 4 + 4
"""Of a document in documents.bin: id, length, place in the order."""
MAX_SHARD_POSITIONS: Final = 8_388_608
MAX_SHARD_DOCUMENTS: Final = 4_096
MAX_SHARD_HINT_BYTES: Final = 256 << 20
"""Limits of a shard as the service plans them."""
_LEAST_SHARDS: Final = 64
_LEAST_POSITIONS: Final = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class CaskSize:
    """Of a whole cask."""

    documents: int
    positions: int
    entries: ExpectedEntries
    """Per position, within the limits of the spec."""
    bytes_per_token: float
    hint_bytes_per_position: float
    shards: int
    shard_tokens: float

    @property
    def tokens(self) -> float:
        """Sum of lengths."""
        return self.shards * self.shard_tokens

    @property
    def record_bytes(self) -> float:
        """Of all shards without hints."""
        return self.tokens * self.bytes_per_token

    @property
    def hint_bytes(self) -> float:
        """Of the files of hints."""
        return self.positions * self.hint_bytes_per_position

    @property
    def index_bytes(self) -> float:
        """Of index.json, which a reader reads."""
        return self.shards * float(ENTRY_BYTES)

    @property
    def table_bytes(self) -> float:
        """Of documents.bin, which a reader maps."""
        return self.documents * float(TABLE_BYTES)


def bytes_per_token(
    spec: CaptureSpec, vocab_size: int, entries: ExpectedEntries, document_tokens: float, *, packed: bool
) -> float:
    """Of a shard's columns, per token, documents' ids and offsets included.

    Args:
        spec: Of the cask.
        vocab_size: Of the teacher.
        entries: Per position.
        document_tokens: Mean length L.
        packed: In carrier `packed`, which codec u8all has.

    Raises:
        OptionError: Packed shards of another codec.
    """
    if packed and spec.logprob_codec != "u8all":
        raise OptionError(f"packed shards have codec u8all, this plan has {spec.logprob_codec}: give --codec u8all")
    layout = RecordLayout.for_capture(spec, vocab_size)
    units = layout.bytes_per_unit
    per_position = units["position"] + units["head"] * entries.head + units["tail"] * entries.draws
    per_document = DOCUMENT_BYTES + OFFSET_BYTES * len(layout.columns)
    positions = 1 - 1 / document_tokens
    flat = units["token"] + positions * per_position + per_document / document_tokens
    return flat * (PACKED_RATIO if packed else 1.0)


def cask_size(
    tokens: float,
    spec: CaptureSpec,
    *,
    vocab_size: int,
    document_tokens: float,
    entropy: float,
    packed: bool = False,
    measured_bytes_per_token: float | None = None,
    hints: HintSpec | None = None,
    hint_width: int = 0,
    shard_tokens: float | None = None,
) -> CaskSize:
    """The size of a cask.

    Args:
        tokens: Of the corpus.
        spec: Mode `threshold`.
        vocab_size: Of the teacher.
        document_tokens: Mean length of a document.
        entropy: Mean of the teacher's distributions, nats.
        packed: Whether its shards are packed.
        measured_bytes_per_token: From a pilot; takes the place of the formula.
        hints: What is kept beside the records.
        hint_width: Numbers of one vector of hints.
        shard_tokens: Of a shard; None: as the service plans them.

    Raises:
        OptionError: An entropy outside the formula's range, or packed shards of another codec than u8all.
    """
    expected = expected_entries(spec.tau, entropy)
    entries = ExpectedEntries(
        head=min(expected.head, spec.head_max + 1.0),
        draws=min(expected.draws, float(spec.tail_max)),
        tail_mass=expected.tail_mass,
    )
    documents = max(1, round(tokens / document_tokens))
    positions = max(1, round(tokens) - documents)
    hint_bytes = 0.0
    if hints is not None:
        hint_bytes = hints.bytes_per_row(hint_width) / (1 if hints.positions == "all" else document_tokens - 1)
    if shard_tokens is None:
        shard_tokens = service_shard_tokens(tokens, document_tokens, hint_bytes)
    shards = max(1, math.ceil(tokens / shard_tokens))
    by_formula = bytes_per_token(spec, vocab_size, entries, document_tokens, packed=packed)
    return CaskSize(
        documents=documents,
        positions=positions,
        entries=entries,
        bytes_per_token=by_formula if measured_bytes_per_token is None else measured_bytes_per_token,
        hint_bytes_per_position=hint_bytes,
        shards=shards,
        shard_tokens=tokens / shards,
    )


def service_shard_tokens(tokens: float, document_tokens: float, hint_bytes_per_position: float = 0.0) -> float:
    """Tokens of a shard as the service plans a corpus.

    1/64 of the corpus, at least 4,096 positions; at most 8,388,608 positions, 4,096 documents and 256 MiB of hints.
    """
    positions = min(max(tokens / _LEAST_SHARDS, _LEAST_POSITIONS), MAX_SHARD_POSITIONS)
    if hint_bytes_per_position:
        positions = min(positions, max(1.0, MAX_SHARD_HINT_BYTES / hint_bytes_per_position))
    documents = min(max(1.0, positions / (document_tokens - 1)), MAX_SHARD_DOCUMENTS)
    return documents * document_tokens
