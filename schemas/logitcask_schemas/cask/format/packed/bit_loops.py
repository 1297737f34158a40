"""The loops that read packed documents bit by bit, compiled to machine code by Numba.

They trust nothing: words are looked up within the words there are, every id, count and place is compared with its limit
before it is used, and nothing outside the document's own part of the outputs is written. What does not fit, such as
bits read beyond the document's end, is a fault of the document, and the next one is read.

Lookup tables lie end to end, `TABLE` numbers each: those of token ids, ids of heads and `GAP_CONTEXTS` of draws, which
are tables of numbers (`number_table`); then those of places of next tokens, counts of draws, and the columns of one
byte, see `PrefixCode.lookup`.

Shape legend: D documents, W words of 64 bits, B columns of one byte; L tokens, P positions, H head entries, N draws of
all documents.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import NullCache
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Int: TypeAlias = Any
"""An integer of 64 bits, in the arithmetic of Numba."""

THREADS: Final[int] = vars(numba.config)["NUMBA_NUM_THREADS"]
"""How many to decode on: the processors this process may use, unless the environment says NUMBA_NUM_THREADS."""
UNKNOWN_CODE: Final = 1
OUT_OF_BITS: Final = 2
OUTSIDE_VOCABULARY: Final = 3
WRONG_COUNTS: Final = 4
OUTSIDE_HEAD: Final = 5
BITS_LEFT: Final = 6

# Numba keeps what it compiled until this file changes, whatever others do: numbers in the loops are this file's own.
MAX_BITS: Final = 10
"""As `prefix_code.MAX_BITS`."""
NO_CODE: Final = 15
"""As `prefix_code.NO_CODE`."""
GAP_CONTEXTS: Final = 16
"""As `streams.GAP_CONTEXTS`."""
TABLE: Final = 1 << MAX_BITS
_CODE_MASK: Final = np.uint64(TABLE - 1)
_TOKENS, _HEADS, _GAPS = 0, TABLE, 2 * TABLE
_PLACES: Final = _GAPS + GAP_CONTEXTS * TABLE
_COUNTS: Final = _PLACES + TABLE
_BYTES: Final = _COUNTS + TABLE
_TOKEN, _POSITION, _HEAD, _TAIL = 0, 1, 2, 3
_NO_NUMBER: Final = 63
"""Stands for the bits of a number in a lookup table where no code starts with these bits."""
_ZERO: Final[Int] = np.int64(0)
_PER_WINDOW: Final = 6
"""Symbols that 64 bits hold at least."""
_SIZES: Final = np.array([number.bit_length() for number in range(256)], dtype=np.int64)
"""Bits of each number; 0 for 0."""


_WITHOUT_CACHE: Final = (
    "Packed shards are read all the same, and what reads them is compiled again in every process, for some seconds. "
    "NUMBA_CACHE_DIR may name a folder that can be written; a damaged one may be removed."
)
_LOOPS: Final[list[Any]] = []
"""What was compiled, or will be when it is called first."""
_log = logging.getLogger(__name__)


def prepare(*arguments: Any) -> None:
    """Compile `unpack_documents` for arguments of these types, or read it from Numba's cache, so that threads need not.

    Args:
        arguments: Of `unpack_documents` behind the first two.
    """
    try:
        unpack_documents(0, 0, *arguments)
    except Exception as error:  # noqa: BLE001 - the loops raise nothing; the cache raises what a torn file makes of it
        _log.warning("Numba's cache cannot be used (%s: %s). %s", type(error).__name__, error, _WITHOUT_CACHE)
        for loop in _LOOPS:
            loop._cache = NullCache()
        unpack_documents(0, 0, *arguments)


def number_table(table: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """From a code's table, one of numbers: all their bits, 64 times those of the code, 1024 times the size.

    Args:
        table: Of `PrefixCode.lookup`, whose symbols are sizes of numbers.
    """
    lengths, sizes = table & np.uint16(15), table >> np.uint16(4)
    bits = lengths + np.maximum(sizes, 1) - np.uint16(1)
    return np.where(lengths == NO_CODE, _NO_NUMBER, bits | lengths << 6 | sizes << 10).astype(np.uint16)


def compiled(function: F) -> F:
    """The function as machine code, kept on disk for the next process; other threads run meanwhile."""
    loop: Any
    try:
        loop = numba.njit(cache=True, nogil=True, boundscheck=False)(function)
    except RuntimeError as error:  # no folder for it
        _log.warning("%s %s", error, _WITHOUT_CACHE)
        loop = numba.njit(nogil=True, boundscheck=False)(function)
    _LOOPS.append(loop)
    return cast("F", loop)


@compiled
def _window(words_W: NDArray[np.uint64], at: Int) -> Int:
    """The next 64 bits; any where there are no more. The last word is no document's."""
    # Unsigned indices, which Numba need not compare with 0.
    word, shift = np.uint64(min(at >> 6, len(words_W) - 2)), np.uint64(at & 63)
    # In two steps, as a shift by 64 bits means nothing.
    return (words_W[word] >> shift) | ((words_W[word + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - shift))


@compiled
def _read_bytes(
    words_W: NDArray[np.uint64],
    at: Int,
    tables: NDArray[np.uint16],
    table: Int,
    out: NDArray[np.uint8],
    begin: Int,
    end: Int,
) -> Int:
    """Read a symbol for each of the values [begin, end) of `out`; returns where the next one starts, or -1."""
    unknown, number = False, begin
    while number < end:
        bits = _window(words_W, at)
        for place in range(number, min(number + _PER_WINDOW, end)):
            entry = np.int64(tables[np.uint64(table) + (bits & _CODE_MASK)])
            length = entry & 15
            unknown |= length == NO_CODE
            out[np.uint64(place)] = np.uint8(entry >> 4)
            bits >>= np.uint64(length)
            at += length
        number += _PER_WINDOW
    return -1 if unknown else at


@compiled
def _read_number(words_W: NDArray[np.uint64], at: Int, tables: NDArray[np.uint16], table: Int) -> tuple[Int, Int, Int]:
    """Read a number; returns where it ends, or -1, how many bits it has, and it."""
    bits = _window(words_W, at)
    entry = np.int64(tables[np.uint64(table) + (bits & _CODE_MASK)])
    both = entry & 63
    if both == _NO_NUMBER:
        return -1, 0, 0
    length, size = (entry >> 6) & 15, entry >> 10
    extra = np.uint64(both - length)
    low = (bits >> np.uint64(length)) & ((np.uint64(1) << extra) - np.uint64(1))
    return at + both, size, (np.int64(size > 0) << np.int64(extra)) | np.int64(low)


@compiled
def unpack_documents(
    begin: Int,
    end: Int,
    words_W: NDArray[np.uint64],
    word_offsets_D1: NDArray[np.int64],
    offsets_4D1: NDArray[np.int64],
    next_P: NDArray[np.int64],
    id_of_rank_V: NDArray[Any],
    vocab_size: Int,
    tables: NDArray[np.uint16],
    expected: NDArray[np.uint8],
    levels_B: NDArray[np.int64],
    starts_B: NDArray[np.int64],
    mass_column: Int,
    bytes_out: NDArray[np.uint8],
    token_ids_L: NDArray[Any],
    head_ids_H: NDArray[Any],
    tail_counts_P: NDArray[np.uint8],
    tail_ids_N: NDArray[Any],
    faults_D: NDArray[np.uint8],
) -> None:
    """Read documents [begin, end) into their parts of the outputs; other threads may read others meanwhile.

    Args:
        begin: the first of them.
        end: one past the last.
        words_W: of all documents, and one more.
        word_offsets_D1: where each document's start; ascending, the last one is W - 1.
        offsets_4D1: where each document starts among tokens, positions, head entries and draws; ascending.
        next_P: where among all tokens the one after each position stands; within the position's document.
        id_of_rank_V: of the rank table; empty where the ids are the ranks.
        vocab_size: V.
        tables: lookup tables, see the module.
        expected: count of draws by code of log r, [256]; not looked at where no column is log r.
        levels_B: 1 where a column of one byte has a value per position, 2 per head entry, 3 per draw; the first column
            is that of the heads' counts.
        starts_B: where each column's values start in `bytes_out`.
        mass_column: which of them is log r; -1 where none is.
        bytes_out: takes the columns of one byte.
        token_ids_L: takes ids, as the next but one and the last but one do.
        head_ids_H: of heads.
        tail_counts_P: takes counts of draws.
        tail_ids_N: of draws.
        faults_D: takes 0 for each document that was read, else a number of this module's.
    """
    longest = np.int64(1)
    for document in range(begin, end):
        longest = max(longest, offsets_4D1[_POSITION, document + 1] - offsets_4D1[_POSITION, document])
    places = np.empty(longest, dtype=np.uint8)
    for document in range(begin, end):
        faults_D[document] = _unpack_document(
            document, words_W, word_offsets_D1[document] << 6, word_offsets_D1[document + 1] << 6, offsets_4D1, next_P,
            id_of_rank_V, vocab_size, tables, expected, levels_B, starts_B, mass_column, places, bytes_out,
            token_ids_L, head_ids_H, tail_counts_P, tail_ids_N,
        )  # fmt: skip


@compiled
def _unpack_document(
    document: Int,
    words_W: NDArray[np.uint64],
    at: Int,
    stop: Int,
    offsets_4D1: NDArray[np.int64],
    next_P: NDArray[np.int64],
    id_of_rank_V: NDArray[Any],
    vocab_size: Int,
    tables: NDArray[np.uint16],
    expected: NDArray[np.uint8],
    levels_B: NDArray[np.int64],
    starts_B: NDArray[np.int64],
    mass_column: Int,
    places: NDArray[np.uint8],
    bytes_out: NDArray[np.uint8],
    token_ids_L: NDArray[Any],
    head_ids_H: NDArray[Any],
    tail_counts_P: NDArray[np.uint8],
    tail_ids_N: NDArray[Any],
) -> Int:
    ranked = len(id_of_rank_V) > 0
    for token in range(offsets_4D1[_TOKEN, document], offsets_4D1[_TOKEN, document + 1]):
        at, _, rank = _read_number(words_W, at, tables, _TOKENS)
        if at < 0:
            return UNKNOWN_CODE
        if rank >= vocab_size:
            return OUTSIDE_VOCABULARY
        token_ids_L[token] = id_of_rank_V[np.uint64(rank)] if ranked else rank

    first, last = offsets_4D1[_POSITION, document], offsets_4D1[_POSITION, document + 1]
    for column in range(len(starts_B)):
        if levels_B[column] == _POSITION:
            start, table = starts_B[column], _BYTES + column * TABLE
            at = _read_bytes(words_W, at, tables, table, bytes_out, start + first, start + last)
            if at < 0:
                return UNKNOWN_CODE
    at = _read_bytes(words_W, at, tables, _COUNTS, tail_counts_P, first, last)
    if at < 0:
        return UNKNOWN_CODE
    heads, draws = np.int64(0), np.int64(0)
    for position in range(first, last):
        if mass_column >= 0:
            count = np.int64(tail_counts_P[position]) + np.int64(expected[bytes_out[starts_B[mass_column] + position]])
            tail_counts_P[position] = np.uint8(count & 255)
        entries = np.int64(bytes_out[starts_B[0] + position])
        if entries == 0:
            return WRONG_COUNTS
        heads += entries
        draws += np.int64(tail_counts_P[position])
    head, tail = offsets_4D1[_HEAD, document], offsets_4D1[_TAIL, document]
    if heads != offsets_4D1[_HEAD, document + 1] - head or draws != offsets_4D1[_TAIL, document + 1] - tail:
        return WRONG_COUNTS

    for position in range(first, last):
        entries = np.int64(bytes_out[starts_B[0] + position])
        place: Int = np.int64(0)
        if entries > 1:
            entry = np.int64(tables[np.uint64(_PLACES) + (_window(words_W, at) & _CODE_MASK)])
            length, symbol = entry & 15, entry >> 4
            if length == NO_CODE:
                return UNKNOWN_CODE
            at += length
            if symbol == 1:
                place = entries - 1
            elif symbol > 1:
                place = symbol - 1
            if place >= entries:
                return OUTSIDE_HEAD
        places[position - first] = place
    for position in range(first, last):
        place = np.int64(places[position - first])
        for number in range(np.int64(bytes_out[starts_B[0] + position])):
            if number == place:
                head_ids_H[head] = token_ids_L[next_P[position]]
            else:
                at, _, rank = _read_number(words_W, at, tables, _HEADS)
                if at < 0:
                    return UNKNOWN_CODE
                if rank >= vocab_size:
                    return OUTSIDE_VOCABULARY
                head_ids_H[head] = id_of_rank_V[np.uint64(rank)] if ranked else rank
            head += 1

    for position in range(first, last):
        rank, largest = _ZERO, _ZERO
        begin = tail
        for left in range(np.int64(tail_counts_P[position]), 0, -1):
            # As `streams.gap_contexts`.
            context: Int = min(max(largest - _SIZES[np.uint64(left)] + 3, 0), GAP_CONTEXTS - 1)
            at, size, gap = _read_number(words_W, at, tables, _GAPS + context * TABLE)
            if at < 0:
                return UNKNOWN_CODE
            rank += gap
            largest = max(largest, size)
            if rank >= vocab_size:
                return OUTSIDE_VOCABULARY
            drawn = np.int64(id_of_rank_V[np.uint64(rank)]) if ranked else rank
            # Sorted in as they come: draws of a position are few.
            slot: Int = tail
            while slot > begin and np.int64(tail_ids_N[np.uint64(slot - 1)]) > drawn:
                tail_ids_N[np.uint64(slot)] = tail_ids_N[np.uint64(slot - 1)]
                slot -= 1
            tail_ids_N[np.uint64(slot)] = drawn
            tail += 1

    for column in range(len(starts_B)):
        level = levels_B[column]
        if level != _POSITION:
            start, table = starts_B[column], _BYTES + column * TABLE
            begin, end = start + offsets_4D1[level, document], start + offsets_4D1[level, document + 1]
            at = _read_bytes(words_W, at, tables, table, bytes_out, begin, end)
            if at < 0:
                return UNKNOWN_CODE
    if at > stop:
        return OUT_OF_BITS
    # Fewer than a word's, and zeros: what fills up the last word.
    padding = np.uint64(stop - at)
    if padding > np.uint64(63) or (_window(words_W, at) & ((np.uint64(1) << padding) - np.uint64(1))) != np.uint64(0):
        return BITS_LEFT
    return 0
