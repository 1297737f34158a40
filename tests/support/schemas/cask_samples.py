"""Made-up teachers, specs and documents for the tests: valid in every respect the format checks, random otherwise."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.format.codec_u8 import decode_u8
from logitcask_schemas.cask.integrity.verify import survey
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Context, Extent
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords, Records
from tests.support.record_arrays import record_arrays

SPEC = CaptureSpec(tau=0.05)
VOCABS = (300, 65_536, 65_537, 262_144, 1 << 24)


def make_teacher(vocab_size: int = 49_152, **changes: Any) -> TeacherIdentity:
    fields = {
        "model": "made-up",
        "weights_digest": "a" * 64,
        "dtype": "float32",
        "vocab_size": vocab_size,
        "tokenizer_fingerprint": "b" * 64,
        "engine": "transformers",
        "engine_version": "0",
    }
    return TeacherIdentity(**(fields | changes))


def make_document(
    length: int,
    seed: int,
    *,
    vocab_size: int = 49_152,
    spec: CaptureSpec = SPEC,
    tails: bool = True,
    extents: bool = False,
) -> DocumentRecords:
    """A document of `length` tokens; with tails=False no position has a draw, with extents some have no record."""
    random = np.random.default_rng([seed, length])
    positions = length - 1
    ids: type[np.unsignedinteger[Any]] = np.uint16 if vocab_size <= 65_536 else np.uint32
    coded = spec.logprob_codec == "u8"
    value = np.float32 if spec.logprob_codec == "f32" else np.float16
    head_counts = random.integers(1, 20, positions).astype(np.uint8)
    tail_counts = random.integers(0, 9, positions).astype(np.uint8) * np.uint8(tails)
    heads, draws = int(head_counts.sum()), int(tail_counts.sum())

    def values(*shape: int) -> np.ndarray:
        return (-8 * random.random(shape)).astype(value)

    def logprobs(count: int) -> np.ndarray:
        # Values of codec u8 are levels, which it stores as they are: what is read is then what was written.
        return decode_u8(random.integers(0, 256, count).astype(np.uint8)) if coded else values(count)

    log_tail_mass = values(positions)
    log_tail_mass[tail_counts == 0] = -np.inf
    token_ids = random.integers(0, vocab_size, length).astype(ids)
    head_ids = random.integers(0, vocab_size, heads).astype(ids)
    head_ids[np.cumsum(head_counts, dtype=np.int64) - 1] = token_ids[1:]
    tail_ids = random.integers(0, vocab_size, draws).astype(ids)
    # Ascending within each position: sort by (position, id).
    tail_ids = tail_ids[np.lexsort((tail_ids, np.repeat(np.arange(positions), tail_counts)))]
    document = DocumentRecords(
        token_ids_L=token_ids,
        records=Records(
            head_counts_P=head_counts,
            head_ids_H=head_ids,
            head_logprobs_H=logprobs(heads),
            tail_counts_P=tail_counts,
            tail_ids_N=tail_ids,
            position_columns={
                "log_tail_mass": log_tail_mass,
                "entropy": -values(positions),
                **({"log_z": values(positions, len(spec.temperatures))} if spec.temperatures else {}),
            },
            tail_logprobs_N=logprobs(draws) if spec.tail_logprobs else None,
        ),
        answer_ranges_R2=make_answers(length, seed),
    )
    return with_extent(document, seed) if extents else document


def with_extent(document: DocumentRecords, seed: int) -> DocumentRecords:
    """Of four documents in a row one is whole, one has a context, one lacks records, and one is both."""
    random = np.random.default_rng([seed, 2])
    context = Context.of(random.integers(0, 300, random.integers(1, 9)).astype(np.uint32)) if seed % 2 else None
    keep_P = np.ones(document.records.num_positions, dtype=np.bool_)
    if seed % 4 >= 2:
        keep_P = random.random(len(keep_P)) < 0.5
        keep_P[random.integers(len(keep_P))] = True
    extent = Extent.of_mask(keep_P, context)
    return replace(document, records=document.records.select(keep_P), extent=extent)


def make_answers(length: int, seed: int) -> np.ndarray | None:
    """Of three documents in a row one has answers, one has none, and of one nobody knows."""
    if seed % 3 == 2:
        return None
    edges = np.sort(np.random.default_rng([seed, 1]).choice(length + 1, 2 * min(3, (length + 1) // 2), replace=False))
    return edges.reshape(-1, 2).astype(np.uint32)[: None if seed % 3 == 0 else 0]


def make_documents(lengths: Sequence[int], seed: int, **options: Any) -> list[DocumentRecords]:
    return [make_document(length, seed * 1000 + i, **options) for i, length in enumerate(lengths)]


def specs() -> st.SearchStrategy[CaptureSpec]:
    return st.builds(
        CaptureSpec,
        mode=st.sampled_from(["threshold", "sampled"]),
        logprob_codec=st.sampled_from(["f16", "f32", "u8"]),
        tail_logprobs=st.booleans(),
        temperatures=st.sampled_from([(), (2.0,), (0.5, 2.0, 4.0)]),
    )


def columns_of(document: DocumentRecords) -> dict[str, np.ndarray]:
    """Tokens and every column of a document's records by name, absent ones left out."""
    return {"token_ids_L": document.token_ids_L, **record_arrays(document.records)}


def assert_same(actual: DocumentRecords, expected: DocumentRecords) -> None:
    """Equal columns, dtypes, shapes and bits."""
    mine, theirs = columns_of(actual), columns_of(expected)
    assert mine.keys() == theirs.keys()
    for name, column in theirs.items():
        assert mine[name].dtype == column.dtype, name
        assert mine[name].shape == column.shape, name
        assert mine[name].tobytes() == column.tobytes(), name
    ranges = [None if one.answer_ranges_R2 is None else one.answer_ranges_R2.tolist() for one in (actual, expected)]
    assert ranges[0] == ranges[1]
    assert actual.id == expected.id


def unlisted(cask: Cask) -> list[str]:
    """Files among the shards of a cask that no entry names."""
    return survey(LocalFolder(folder=cask.path)).unlisted_files
