"""The columns of a shard as packed documents, and back: a bijection of what is stored, bit by bit.

Shape legend: D documents, W words of 64 bits, V ids of the vocabulary; L tokens, P positions, H head entries and
N draws of all documents.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.format.columns import Offsets, ShardColumns
from logitcask_schemas.cask.format.layout import HIGH_SUFFIX, LEVELS, Level, RecordLayout
from logitcask_schemas.cask.format.lists import ShardLists
from logitcask_schemas.cask.format.packed.bit_writer import WORD_BITS, fitted_codes, written
from logitcask_schemas.cask.format.packed.prefix_code import PrefixCode
from logitcask_schemas.cask.format.packed.streams import (
    BYTES,
    GAP_CONTEXTS,
    HEAD_IDS,
    ID_COLUMNS,
    NEXT_TOKEN,
    SIZES,
    TAIL_COUNTS,
    TAIL_IDS,
    TAIL_MASS,
    TOKEN_IDS,
    byte_columns,
    expected_counts,
    next_tokens,
    streams_of,
)
from logitcask_schemas.errors import CaskCorruptionError, MissingExtraError

_EXPECTED: Final = "expected"
_CONTEXTS: Final = {TAIL_IDS: GAP_CONTEXTS}
_FAULTS: Final = (
    "",
    "its bits begin no code of this shard",
    "its bits end before it does",
    "an id lies outside the vocabulary",
    "its counts do not add up to its entries",
    "the next token's place lies outside its head",
    "bits are left over",
)
"""By number, see `bit_loops`."""
_WORDS_PER_THREAD: Final = 1 << 15
"""At least: 256 kB, a few milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCodes:
    """What has to be known to read a shard's bits."""

    by_stream: Mapping[str, tuple[PrefixCode, ...]]
    """The codes of each stream."""
    expected: NDArray[np.uint8]
    """Count of draws by code of log r, [256]; empty where log r is no code."""

    _tables: dict[str, NDArray[np.uint16]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def tables(self, byte_names: Sequence[str], loops: Any) -> NDArray[np.uint16]:
        """The lookup tables in the order of `bit_loops`, made once."""
        key = " ".join(byte_names)
        if key not in self._tables:
            numbers = [code for name in ID_COLUMNS for code in self.by_stream[name]]
            symbols = [self.by_stream[name][0] for name in (NEXT_TOKEN, TAIL_COUNTS, *byte_names)]
            self._tables[key] = np.concatenate(
                [
                    *(loops.number_table(code.lookup(empty_is_zero=False)) for code in numbers),
                    *(code.lookup(empty_is_zero=True) for code in symbols),
                ]
            )
        return self._tables[key]

    @property
    def text(self) -> str:
        """As JSON: per stream a list of codes, and the expected counts in hex."""
        members: dict[str, Any] = {name: [code.text for code in codes] for name, codes in self.by_stream.items()}
        return json.dumps({**members, _EXPECTED: self.expected.tobytes().hex()}, separators=(",", ":"))

    @classmethod
    def parsed(cls, text: str, layout: RecordLayout) -> Self:
        """From `text`; CaskCorruptionError where it is not what a shard of this layout needs."""
        try:
            members = json.loads(text)
            expected = np.frombuffer(bytes.fromhex(members.pop(_EXPECTED)), dtype=np.uint8)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CaskCorruptionError(f"codes of streams were expected as JSON, got {text[:64]!r}") from error
        names = _stream_names(layout)
        if members.keys() != set(names) or len(expected) != (BYTES if TAIL_MASS in layout.coded else 0):
            raise CaskCorruptionError(f"codes of the streams {', '.join(names)} were expected, got {text[:64]!r}")
        by_stream = {}
        for name in names:
            number, symbols = _CONTEXTS.get(name, 1), SIZES if name in ID_COLUMNS else BYTES
            texts = members[name]
            if not isinstance(texts, list) or len(texts) != number or not all(isinstance(text, str) for text in texts):
                raise CaskCorruptionError(f"{number} codes of the stream {name} were expected, got {str(texts)[:64]}")
            by_stream[name] = tuple(PrefixCode.parsed(code, symbols=symbols) for code in texts)
        return cls(by_stream=by_stream, expected=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """Packed documents."""

    codes: ShardCodes
    words_W: NDArray[np.uint64]
    word_offsets_D1: Offsets
    """Where each document's words start."""

    def select(self, rows: Sequence[int]) -> "PackedShard":
        """Some documents, in the order given."""
        cut = self.word_offsets_D1
        words = [self.words_W[int(cut[row]) : int(cut[row + 1])] for row in rows]
        return PackedShard(
            codes=self.codes,
            words_W=np.concatenate(words),
            word_offsets_D1=np.cumsum([0, *map(len, words)], dtype=np.int64),
        )


def pack(columns: ShardColumns, layout: RecordLayout) -> PackedShard:
    """Pack the documents of a shard; columns of `streams.plain_columns` are left to the caller.

    Raises:
        InvalidRecordError: See `streams_of`.
    """
    expected = expected_counts(columns, layout)
    ranks = None if layout.ranks is None else layout.ranks.rank_of_id_V
    streams = streams_of(columns, layout, expected, ranks)
    codes = fitted_codes(streams, _CONTEXTS)
    words, word_offsets = written(streams, codes, len(columns.document_ids))
    return PackedShard(
        codes=ShardCodes(by_stream=codes, expected=expected), words_W=words, word_offsets_D1=word_offsets
    )


def unpack(
    packed: PackedShard, offsets: Mapping[Level, Offsets], lists: ShardLists, layout: RecordLayout
) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]:
    """The columns that were packed.

    Args:
        packed: Documents; its offsets ascend from 0 to W.
        offsets: Where each document starts, by level; ascending from 0.
        lists: Of the documents.
        layout: Of the cask that the shard is in.

    Returns:
        The columns by name; and of each document what is wrong with its bits, see `fault`, 0 where nothing is. What
        the columns hold of a document with a fault means nothing.

    Raises:
        CaskCorruptionError: Numbers of tokens, positions, entries or draws that so many bits cannot hold.
        MissingExtraError: Numba is not installed.
    """
    _require_possible(packed, offsets)
    next_P = next_tokens(lists, offsets)
    loops = _bit_loops()
    codes, documents = packed.codes, len(packed.word_offsets_D1) - 1
    columns = byte_columns(layout, "position", "head", "tail")
    sizes = {level: int(offsets[level][-1]) for level in LEVELS}
    starts = np.cumsum([0, *(sizes[column.level] for column in columns)], dtype=np.int64)
    bytes_out = np.zeros(int(starts[-1]), dtype=np.uint8)
    tail_counts = np.zeros(sizes["position"], dtype=np.uint8)
    id_dtype = np.uint32 if layout.wide_ids else np.uint16
    ids = {name: np.zeros(sizes[level], dtype=id_dtype) for name, level in _ID_LEVELS.items()}
    faults_D = np.zeros(documents, dtype=np.uint8)
    names = [column.name for column in columns]
    arguments = (
        np.append(packed.words_W, np.zeros(1 if len(packed.words_W) else 2, dtype=np.uint64)),
        packed.word_offsets_D1,
        np.stack([offsets[level] for level in LEVELS]),
        next_P,
        np.empty(0, id_dtype) if layout.ranks is None else layout.ranks.id_of_rank_V.astype(id_dtype),
        layout.vocab_size,
        codes.tables(names, loops),
        codes.expected,
        np.array([LEVELS.index(column.level) for column in columns], dtype=np.int64),
        starts[:-1],
        names.index(TAIL_MASS) if TAIL_MASS in names else -1,
        bytes_out,
        ids[TOKEN_IDS],
        ids[HEAD_IDS],
        tail_counts,
        ids[TAIL_IDS],
        faults_D,
    )
    loops.prepare(*arguments)
    _on_threads(lambda part: loops.unpack_documents(*part, *arguments), _parts(packed.word_offsets_D1, loops.THREADS))
    arrays: dict[str, NDArray[Any]] = {TAIL_COUNTS: tail_counts}
    for number, column in enumerate(columns):
        arrays[column.name] = bytes_out[starts[number] : starts[number + 1]]
    for name, values in ids.items():
        arrays[name] = values.astype(np.uint16, copy=False)
        if layout.wide_ids:
            arrays[name + HIGH_SUFFIX] = (values.astype(np.uint32, copy=False) >> np.uint32(16)).astype(np.uint8)
    return arrays, faults_D


def _parts(word_offsets_D1: Offsets, threads: int) -> list[tuple[int, int]]:
    """Documents [begin, end) for each thread, about as many words each; fewer threads where there is little to do."""
    documents, words = len(word_offsets_D1) - 1, int(word_offsets_D1[-1])
    number = max(1, min(threads, words // _WORDS_PER_THREAD))
    cuts = [0, *np.searchsorted(word_offsets_D1, np.arange(1, number) * (words // number)).tolist(), documents]
    return list(itertools.pairwise(cuts))


def _on_threads(decode: Callable[[tuple[int, int]], None], parts: list[tuple[int, int]]) -> None:
    """Decode each part on a thread of its own; on this one where there is one part, or no thread to spare."""
    if len(parts) > 1:
        try:
            with ThreadPoolExecutor(len(parts)) as threads:
                list(threads.map(decode, parts))
            return
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
    # A part that some thread has decoded becomes what it is once more.
    for part in parts:
        decode(part)


def fault(number: int) -> str:
    """What is wrong with a document's bits."""
    return _FAULTS[number]


_ID_LEVELS: Final[dict[str, Level]] = {TOKEN_IDS: "token", HEAD_IDS: "head", TAIL_IDS: "tail"}


def _bit_loops() -> Any:
    # Importing Numba takes half a second, which casks of other carriers need not pay.
    try:
        from logitcask_schemas.cask.format.packed import bit_loops
    except ImportError as error:
        raise MissingExtraError("reading packed shards", "packed", error.name or "numba") from error
    return bit_loops


def _stream_names(layout: RecordLayout) -> tuple[str, ...]:
    position, rest = byte_columns(layout, "position"), byte_columns(layout, "head", "tail")
    return (
        TOKEN_IDS,
        *(column.name for column in position),
        TAIL_COUNTS,
        NEXT_TOKEN,
        HEAD_IDS,
        TAIL_IDS,
        *(column.name for column in rest),
    )


def _require_possible(packed: PackedShard, offsets: Mapping[Level, Offsets]) -> None:
    """Before anything of these sizes is made: every token, entry that is not the next token, and draw takes a bit."""
    bits_D = np.diff(packed.word_offsets_D1) * WORD_BITS
    tokens_D, positions_D, heads_D, draws_D = (np.diff(offsets[level]) for level in LEVELS)
    impossible = tokens_D + np.maximum(heads_D - positions_D, 0) + draws_D > bits_D
    if impossible.any():
        row = int(np.argmax(impossible))
        raise CaskCorruptionError(
            f"document {row} should have {int(tokens_D[row])} tokens, {int(heads_D[row])} head entries and "
            f"{int(draws_D[row])} draws, more than its {int(bits_D[row])} bits can hold"
        )
