"""Streams of symbols as bits, document by document; vectorised over all symbols of a stream.

Shape legend: D documents, S items of a stream, W words of 64 bits.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.format.columns import Offsets
from logitcask_schemas.cask.format.packed.prefix_code import PrefixCode
from logitcask_schemas.cask.format.packed.streams import BYTES, Stream

WORD_BITS: Final = 64
_BLOCK: Final = 1 << 20
"""Symbols written at a time, which bounds memory."""


def fitted_codes(streams: Sequence[Stream], contexts: Mapping[str, int]) -> dict[str, tuple[PrefixCode, ...]]:
    """The best codes of each stream.

    Args:
        streams: Of a shard.
        contexts: How many codes a stream has, by name; one where it is not named.
    """
    codes = {}
    for stream in streams:
        number = contexts.get(stream.name, 1)
        keys = stream.symbols_S.astype(np.int64)
        if stream.contexts_S is not None:
            keys += stream.contexts_S.astype(np.int64) * BYTES
        counts = np.bincount(keys, minlength=number * BYTES).reshape(number, BYTES)
        # Nothing but zeros takes no bits; a number keeps one, so that bits bound how many there can be.
        silent = stream.extra_bits_S is None and not stream.symbols_S.any()
        codes[stream.name] = tuple(PrefixCode.of_counts(row * (not silent)) for row in counts)
    return codes


def written(
    streams: Sequence[Stream], codes: Mapping[str, Sequence[PrefixCode]], documents: int
) -> tuple[NDArray[np.uint64], Offsets]:
    """The words of all documents end to end, and where each document's start, [D + 1]; each starts with a new word."""
    tables = {name: _tables(of_stream) for name, of_stream in codes.items()}
    sizes_D = np.zeros(documents, dtype=np.int64)
    starts = []
    for stream in streams:
        starts.append(sizes_D.copy())
        bits = np.concatenate([[0], np.cumsum(_bits(stream, tables[stream.name][1]), dtype=np.int64)])
        sizes_D += np.diff(bits[stream.offsets_D1])
    word_offsets = np.concatenate([[0], np.cumsum(-(-sizes_D // WORD_BITS))])
    # One word more: what does not reach into the next word is added to it all the same, as nothing.
    words = np.zeros(int(word_offsets[-1]) + 1, dtype=np.uint64)
    for stream, start_D in zip(streams, starts, strict=True):
        _write(words, stream, start_D + word_offsets[:-1] * WORD_BITS, *tables[stream.name])
    return words[:-1], word_offsets


def _tables(codes: Sequence[PrefixCode]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """What is written for each symbol, and its number of bits, [contexts * 256]."""
    bits = np.zeros((len(codes), BYTES), dtype=np.uint64)
    lengths = np.zeros((len(codes), BYTES), dtype=np.uint8)
    for context, code in enumerate(codes):
        bits[context, : len(code.lengths_S)] = code.bits_S
        lengths[context, : len(code.lengths_S)] = code.lengths_S
    return bits.reshape(-1), lengths.reshape(-1)


def _keys(stream: Stream, span: slice) -> NDArray[np.int64]:
    keys = stream.symbols_S[span].astype(np.int64)
    return keys if stream.contexts_S is None else keys + stream.contexts_S[span].astype(np.int64) * BYTES


def _bits(stream: Stream, lengths: NDArray[np.uint8], span: slice = slice(None)) -> NDArray[np.uint8]:
    """Bits of each item."""
    bits: NDArray[np.uint8] = lengths[_keys(stream, span)]
    return bits if stream.extra_bits_S is None else bits + stream.extra_bits_S[span]


def _write(
    words: NDArray[np.uint64],
    stream: Stream,
    start_D: NDArray[np.int64],
    codes: NDArray[np.uint64],
    lengths: NDArray[np.uint8],
) -> None:
    """Put a stream's items where they belong; nothing is written there yet."""
    document_S = np.repeat(np.arange(len(start_D)), np.diff(stream.offsets_D1))
    before, first_D = 0, np.zeros(len(start_D), dtype=np.int64)
    for begin in range(0, len(stream.symbols_S), _BLOCK):
        span = slice(begin, begin + _BLOCK)
        bits = _bits(stream, lengths, span).astype(np.int64)
        ends = before + np.cumsum(bits)
        document = document_S[span]
        is_first = np.flatnonzero(np.diff(document, prepend=document_S[begin - 1] if begin else -1))
        first_D[document[is_first]] = (ends - bits)[is_first]
        at = start_D[document] + (ends - bits) - first_D[document]
        keys = _keys(stream, span)
        values = codes[keys]
        if stream.extras_S is not None:
            values |= stream.extras_S[span].astype(np.uint64) << lengths[keys].astype(np.uint64)
        word, shift = at >> 6, (at & 63).astype(np.uint64)
        # No two items share a bit, so that adding is the same as setting.
        np.add.at(words, word, values << shift)
        np.add.at(words, word + 1, (values >> np.uint64(1)) >> (np.uint64(63) - shift))
        before = int(ends[-1])
