"""Packing is a bijection, as a slow reader of the specification sees it too; every damaged bit is noticed."""

import json
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask.format.columns import ShardColumns, assemble, document_checksum, document_slices
from logitcask_schemas.cask.format.layout import HIGH_SUFFIX, LEVELS, RecordLayout
from logitcask_schemas.cask.format.packed import packed_shard
from logitcask_schemas.cask.format.packed.packed_shard import PackedShard, ShardCodes, fault, pack, unpack
from logitcask_schemas.cask.format.packed.rank_table import RankTable
from logitcask_schemas.cask.format.packed.streams import byte_columns, next_tokens, plain_columns
from logitcask_schemas.errors import CaskCorruptionError, InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.schemas.cask_samples import make_documents, specs
from tests.support.schemas.packed_reference import EndOfBits, read_document

pytest.importorskip("numba", reason="packed shards need the extra `packed`")
bit_loops = pytest.importorskip("logitcask_schemas.cask.format.packed.bit_loops")
BYTES = CaptureSpec(logprob_codec="u8all", tail_logprobs=True)


def a_table(vocab_size: int, seed: int) -> RankTable:
    return RankTable.fitted(np.random.default_rng(seed).integers(0, 1000, vocab_size), "b" * 64)


def sample(
    lengths: list[int],
    seed: int = 1,
    *,
    vocab_size: int = 300,
    spec: CaptureSpec = BYTES,
    ranked: bool = True,
    **options: Any,
) -> tuple[ShardColumns, RecordLayout]:
    documents = make_documents(lengths, seed, vocab_size=vocab_size, spec=spec, **options)
    layout = RecordLayout.for_capture(spec, vocab_size)
    layout = replace(layout, ranks=a_table(vocab_size, seed) if ranked else None)
    return assemble(documents, [document.id for document in documents], layout), layout


def packed_names(layout: RecordLayout) -> set[str]:
    return {column.name for column in layout.columns} - {column.name for column in plain_columns(layout)}


shards = st.builds(
    sample,
    st.lists(st.integers(2, 40), min_size=1, max_size=5),
    st.integers(0, 999),
    vocab_size=st.sampled_from((1, 2, 300, 65_536, 65_537)),
    spec=specs() | st.just(BYTES),
    ranked=st.booleans(),
    tails=st.booleans(),
    extents=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(shards)
def test_what_is_packed_is_unpacked(shard: tuple[ShardColumns, RecordLayout]) -> None:
    columns, layout = shard
    packed = pack(columns, layout)
    packed = replace(packed, codes=ShardCodes.parsed(packed.codes.text, layout))
    arrays, faults_D = unpack(packed, columns.offsets, columns.lists, layout)
    assert not faults_D.any()
    assert arrays.keys() == packed_names(layout)
    for name, array in arrays.items():
        assert array.dtype == columns.arrays[name].dtype, name
        np.testing.assert_array_equal(array, columns.arrays[name], err_msg=name)


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 50])
def test_threads_share_the_documents(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, layout = sample([2, 30, 3, 4, 120, 2, 2, 9, 17])
    packed = pack(columns, layout)
    monkeypatch.setattr(packed_shard, "_WORDS_PER_THREAD", 1)
    monkeypatch.setattr(bit_loops, "THREADS", threads)
    parts = packed_shard._parts(packed.word_offsets_D1, threads)
    assert [row for begin, end in parts for row in range(begin, end)] == list(range(9)), "each document once, in order"
    assert len(parts) == min(threads, int(packed.word_offsets_D1[-1]))
    damaged = packed.words_W.copy()
    damaged[packed.word_offsets_D1[5] - 1] ^= np.uint64(1 << 63)  # of what fills up the last word
    for words, faulty in ((packed.words_W, False), (damaged, True)):
        arrays, faults_D = unpack(replace(packed, words_W=words), columns.offsets, columns.lists, layout)
        assert np.flatnonzero(faults_D).tolist() == [4] * faulty, "a fault stays with its document"
        behind = int(columns.offsets["token"][5]) if faulty else 0
        np.testing.assert_array_equal(arrays["token_ids"][behind:], columns.arrays["token_ids"][behind:])


@pytest.mark.parametrize("to_spare", [0, 1])
def test_a_system_without_threads_to_spare_decodes_all_the_same(to_spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, layout = sample([2, 30, 3, 4, 120, 2, 2, 9, 17])
    packed = pack(columns, layout)
    monkeypatch.setattr(packed_shard, "_WORDS_PER_THREAD", 1)
    monkeypatch.setattr(bit_loops, "THREADS", 4)
    started, system_start = [], threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if len(started) == to_spare:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        system_start(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    arrays, faults_D = unpack(packed, columns.offsets, columns.lists, layout)
    assert not faults_D.any()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, columns.arrays[name], err_msg=name)


def read_slowly(packed: PackedShard, columns: ShardColumns, layout: RecordLayout, row: int) -> dict[str, list[int]]:
    """A document as the reference reads it."""
    cut = {level: columns.offsets[level][row : row + 2].tolist() for level in LEVELS}
    following = next_tokens(columns.lists, columns.offsets)[slice(*cut["position"])] - cut["token"][0]
    ranks = np.arange(layout.vocab_size) if layout.ranks is None else layout.ranks.id_of_rank_V
    return read_document(
        packed.words_W[slice(*packed.word_offsets_D1[row : row + 2].tolist())].tolist(),
        json.loads(packed.codes.text),
        tuple(stop - start for start, stop in cut.values()),
        following.tolist(),
        ranks.tolist(),
        {level: [column.name for column in byte_columns(layout, level)] for level in ("position", "head", "tail")},
        "log_tail_mass" in layout.coded,
    )


def slices_of(columns: ShardColumns, layout: RecordLayout, row: int, name: str) -> list[int]:
    level = next(column.level for column in layout.columns if column.name == name)
    part = slice(*columns.offsets[level][row : row + 2].tolist())
    values = columns.arrays[name][part].astype(np.int64)
    if name + HIGH_SUFFIX in columns.arrays:
        values += columns.arrays[name + HIGH_SUFFIX][part].astype(np.int64) << 16
    return values.tolist()


@settings(deadline=None, max_examples=30)
@given(shards)
def test_a_slow_reader_of_the_specification_sees_the_same(shard: tuple[ShardColumns, RecordLayout]) -> None:
    columns, layout = shard
    packed = pack(columns, layout)
    for row in range(len(columns.document_ids)):
        read = read_slowly(packed, columns, layout, row)
        assert read.keys() == {name for name in packed_names(layout) if not name.endswith(HIGH_SUFFIX)}
        for name, values in read.items():
            assert values == slices_of(columns, layout, row, name), name


def is_caught(arrays: dict[str, Any], columns: ShardColumns, layout: RecordLayout, row: int) -> bool:
    """Whether the document's checksum differs from that of the decoded columns."""
    both = {**columns.arrays, **arrays}
    sizes = [int(columns.offsets[level][row + 1] - columns.offsets[level][row]) for level in LEVELS]
    identity = columns.document_ids[row].tobytes()
    computed = document_checksum(identity, sizes, document_slices(both, columns.offsets, layout, row, columns.lists))
    return computed != int(columns.checksums[row])


def test_every_flipped_bit_is_a_fault_or_caught_by_the_checksum_and_hits_no_other_document() -> None:
    columns, layout = sample([7, 9, 5])
    packed = pack(columns, layout)
    first, stop = packed.word_offsets_D1[1:3].tolist()
    for bit in range(64 * first, 64 * stop):
        words = packed.words_W.copy()
        words[bit >> 6] ^= np.uint64(1) << np.uint64(bit & 63)
        damaged = replace(packed, words_W=words)
        arrays, faults_D = unpack(damaged, columns.offsets, columns.lists, layout)
        assert faults_D[[0, 2]].tolist() == [0, 0]
        assert not is_caught(arrays, columns, layout, 0)
        assert not is_caught(arrays, columns, layout, 2)
        assert faults_D[1] or is_caught(arrays, columns, layout, 1), bit
        # The reference refuses exactly what the compiled loops refuse, and reads the same where neither does.
        try:
            read = read_slowly(damaged, columns, layout, 1)
        except EndOfBits:
            assert faults_D[1], bit
        else:
            assert not faults_D[1], (bit, fault(faults_D[1]))
            mine = replace(columns, arrays={**columns.arrays, **arrays})
            for name, values in read.items():
                assert values == slices_of(mine, layout, 1, name), name


@settings(deadline=None, max_examples=80)
@given(data=st.data(), shard=shards)
def test_any_words_are_read_without_leaving_their_document(
    data: st.DataObject, shard: tuple[ShardColumns, RecordLayout]
) -> None:
    """Random words, cut short or long: every document before and after is what it was."""
    columns, layout = shard
    packed = pack(columns, layout)
    row = data.draw(st.integers(0, len(columns.document_ids) - 1))
    first, stop = packed.word_offsets_D1[row : row + 2].tolist()
    noise = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=stop - first, max_size=stop - first + 3))
    words = np.concatenate([packed.words_W[:first], np.array(noise, dtype=np.uint64), packed.words_W[stop:]])
    offsets = packed.word_offsets_D1 + np.where(
        np.arange(len(packed.word_offsets_D1)) > row, len(noise) - stop + first, 0
    )
    damaged = replace(packed, words_W=words, word_offsets_D1=offsets)
    arrays, faults_D = unpack(damaged, columns.offsets, columns.lists, layout)
    for other in range(len(columns.document_ids)):
        if other != row:
            assert not faults_D[other]
            assert not is_caught(arrays, columns, layout, other)
    if not faults_D[row] and not np.array_equal(words[first : first + len(noise)], packed.words_W[first:stop]):
        assert is_caught(arrays, columns, layout, row)


def test_sizes_that_the_bits_cannot_hold_are_refused_before_anything_is_made() -> None:
    columns, layout = sample([7, 9])
    packed = pack(columns, layout)
    offsets = dict(columns.offsets)
    offsets["tail"] = offsets["tail"] + np.array([0, 0, 1 << 40])
    with pytest.raises(CaskCorruptionError, match=r"document 1 should have 9 tokens, .* more than its \d+ bits"):
        unpack(packed, offsets, columns.lists, layout)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda arrays: arrays["token_ids"].__setitem__(0, 301), "vocabulary has 300"),
        (lambda arrays: arrays["head_ids"].fill(0), "lacks the next token"),
        (lambda arrays: arrays["tail_ids"].__setitem__(slice(None), arrays["tail_ids"][::-1].copy()), "do not ascend"),
        (lambda arrays: arrays["tail_counts"].__setitem__(0, 255), "do not add up"),
    ],
)
def test_records_that_break_the_format_are_refused(change, match: str) -> None:
    columns, layout = sample([30, 9])
    change(columns.arrays)
    with pytest.raises(InvalidRecordError, match=match):
        pack(columns, layout)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "as JSON"),
        ("[]", "as JSON"),
        ('{"expected":""}', "of the streams token_ids, head_counts"),
        ('{"expected":"0g"}', "as JSON"),
    ],
)
def test_codes_that_are_none_are_refused(text: str, match: str) -> None:
    with pytest.raises(CaskCorruptionError, match=match):
        ShardCodes.parsed(text, RecordLayout.for_capture(BYTES, 300))


def test_codes_of_another_number_are_refused() -> None:
    columns, layout = sample([7])
    codes = json.loads(pack(columns, layout).codes.text)
    codes["tail_ids"].pop()
    with pytest.raises(CaskCorruptionError, match="16 codes of the stream tail_ids"):
        ShardCodes.parsed(json.dumps(codes), layout)


def test_counts_of_draws_that_follow_from_log_r_take_no_bits() -> None:
    columns, layout = sample([50], tails=True)
    mass, counts = (np.asarray(columns.arrays[name]) for name in ("log_tail_mass", "tail_counts"))
    by_mass = pack(columns, layout)
    assert by_mass.codes.by_stream["tail_counts"][0].text
    # One log r for each count: the shard then knows every count.
    derivable = replace(columns, arrays={**columns.arrays, "log_tail_mass": np.where(mass == 255, 255, counts)})
    assert pack(derivable, layout).codes.by_stream["tail_counts"][0].text == ""


def test_the_compiled_loops_have_the_numbers_of_the_rest() -> None:
    """They are their own, because Numba does not look at other files when it reuses what it compiled."""
    from logitcask_schemas.cask.format.packed import bit_loops, prefix_code, streams

    assert bit_loops.MAX_BITS == prefix_code.MAX_BITS
    assert bit_loops.NO_CODE == prefix_code.NO_CODE
    assert bit_loops.GAP_CONTEXTS == streams.GAP_CONTEXTS
