"""Prefix codes: as short as can be, told by their lengths alone, and refused where the lengths are no code."""

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.cask.format.packed.prefix_code import MAX_BITS, NO_CODE, PrefixCode
from logitcask_schemas.errors import CaskCorruptionError

counts_of_symbols = st.lists(st.integers(0, 10**9) | st.just(0), min_size=1, max_size=256)


def written(code: PrefixCode) -> dict[int, str]:
    """By symbol, its bits in the order in which they are written."""
    return {
        symbol: f"{int(bits):0{length}b}"[::-1]
        for symbol, (bits, length) in enumerate(zip(code.bits_S, code.lengths_S, strict=True))
        if length
    }


@given(counts_of_symbols)
def test_no_code_begins_another_and_every_symbol_has_one(counts: list[int]) -> None:
    code = PrefixCode.of_counts(np.array(counts, dtype=np.int64))
    bits = sorted(written(code).values())
    assert {symbol for symbol, count in enumerate(counts) if count} == written(code).keys()
    assert all(len(code) <= MAX_BITS for code in bits)
    assert not any(later.startswith(earlier) for earlier, later in itertools.pairwise(bits))


def huffman_cost(counts: list[int]) -> tuple[int, int]:
    """Bits that an unlimited Huffman code takes, and its longest code."""
    heap = [(count, number, 0) for number, count in enumerate(counts)]
    heapq.heapify(heap)
    cost, number = 0, len(counts)
    while len(heap) > 1:
        (low, _, low_depth), (high, _, high_depth) = heapq.heappop(heap), heapq.heappop(heap)
        cost += low + high
        heapq.heappush(heap, (low + high, number, max(low_depth, high_depth) + 1))
        number += 1
    return cost, heap[0][2]


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=60))
def test_it_is_as_short_as_huffmans_where_that_is_allowed(counts: list[int]) -> None:
    cost, depth = huffman_cost(counts)
    code = PrefixCode.of_counts(np.array(counts, dtype=np.int64))
    mine = int((code.lengths_S * np.array(counts)).sum())
    assert mine >= cost
    if depth <= MAX_BITS:
        assert mine == cost


def test_it_is_as_short_as_the_limit_allows() -> None:
    """Powers of two want one bit more each; a search over all lengths of a full code says what is best."""
    counts = [1 << number for number in range(MAX_BITS + 2)]
    code = PrefixCode.of_counts(np.array(counts, dtype=np.int64))
    # Descending counts have ascending lengths; the cheapest such full code by dynamic programming over its parts.
    best: dict[int, int] = {0: 0}
    for count in reversed(counts):
        step: dict[int, int] = {}
        for filled, cost in best.items():
            for length in range(1, MAX_BITS + 1):
                total = filled + (1 << (MAX_BITS - length))
                if total <= 1 << MAX_BITS:
                    step[total] = min(step.get(total, 1 << 62), cost + count * length)
        best = step
    assert int((code.lengths_S * np.array(counts)).sum()) == best[1 << MAX_BITS]


@given(counts_of_symbols)
def test_its_text_says_all(counts: list[int]) -> None:
    code = PrefixCode.of_counts(np.array(counts, dtype=np.int64))
    again = PrefixCode.parsed(code.text, symbols=256)
    np.testing.assert_array_equal(again.lengths_S, code.lengths_S)


@given(counts_of_symbols)
def test_the_lookup_table_finds_each_code_whatever_follows(counts: list[int]) -> None:
    code = PrefixCode.of_counts(np.array(counts, dtype=np.int64))
    table, codes = code.lookup(empty_is_zero=False), written(code)
    for index in range(0, 1 << MAX_BITS, 7):
        bits = f"{index:0{MAX_BITS}b}"[::-1]
        begun = [symbol for symbol, one in codes.items() if bits.startswith(one)]
        if begun:
            assert divmod(int(table[index]), 16) == (begun[0], len(codes[begun[0]]))
        else:
            assert table[index] == NO_CODE


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("1g", "hex digits"),
        ("2", "fill"),
        ("12", "fill"),
        ("111", "fill"),
        ("110", "symbols"),
        ("1" * 26, "symbols"),
        ("1c", "symbols"),
        ("-1", "hex digits"),
    ],
)
def test_what_is_no_code_is_refused(text: str, match: str) -> None:
    with pytest.raises(CaskCorruptionError, match=match):
        PrefixCode.parsed(text, symbols=25)


def test_an_empty_code() -> None:
    code = PrefixCode.of_counts(np.zeros(5, dtype=np.int64))
    assert code.text == ""
    assert not code.lookup(empty_is_zero=True).any()
    assert (code.lookup(empty_is_zero=False) == NO_CODE).all()
