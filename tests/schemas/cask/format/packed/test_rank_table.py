"""The rank table: frequent ids first, refused where it is damaged or another tokenizer's."""

import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from logitcask_schemas.cask.format.manifest import CaskManifest, manifest_bytes, parse_manifest
from logitcask_schemas.cask.format.packed.rank_table import RankTable
from logitcask_schemas.errors import CaskCorruptionError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.schemas.cask_samples import make_teacher

FINGERPRINT = "b" * 64


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=300))
def test_ids_are_ranked_by_class_then_by_id(counts: list[int]) -> None:
    table = RankTable.fitted(np.array(counts), FINGERPRINT)
    expected = sorted(range(len(counts)), key=lambda one: (-int(2 * np.log2(1 + counts[one])), one))
    assert table.id_of_rank_V.tolist() == expected
    np.testing.assert_array_equal(table.rank_of_id_V[table.id_of_rank_V], np.arange(len(counts)))


def manifest(table: RankTable | None, vocab_size: int = 5, **changes) -> CaskManifest:
    version = 1 if table is None else 3
    fields = {"version": version, "capture": CaptureSpec(), "created_by": "", "created_at": "", **changes}
    return CaskManifest(teacher=make_teacher(vocab_size), rank_table=table, **fields)


def test_the_manifest_keeps_it_and_is_as_before_without_one() -> None:
    table = RankTable.fitted(np.arange(5), FINGERPRINT)
    assert parse_manifest(manifest_bytes(manifest(table)), where="here").rank_table == table
    assert b"rank_table" not in manifest_bytes(manifest(None))
    # Neither is it part of what makes records of one cask records of another.
    assert manifest(table).identity_digest() == manifest(None).identity_digest()


def test_a_table_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(ValidationError, match=f"for tokenizer {'c' * 64}, the teacher's is {FINGERPRINT}"):
        manifest(RankTable.fitted(np.arange(5), "c" * 64))
    with pytest.raises(ValidationError, match="has 4 ids, the teacher's vocabulary 5"):
        manifest(RankTable.fitted(np.arange(4), FINGERPRINT))


def test_a_version_too_low_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs version 3"):
        manifest(RankTable.fitted(np.arange(5), FINGERPRINT), version=2)
    with pytest.raises(ValidationError, match="needs version 3"):
        manifest(None, capture=CaptureSpec(logprob_codec="u8all"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"classes": "?"}, "cannot be decoded"),
        ({"classes": base64.b64encode(b"no zlib").decode()}, "cannot be decoded"),
        ({"classes": base64.b64encode(zlib.compress(b"")).decode()}, "1 to 16777216 ids"),
        ({"classes": base64.b64encode(zlib.compress(b"12") + b"more").decode()}, "1 to 16777216 ids"),
        ({"classes": base64.b64encode(zlib.compress(b"\1" * 5)).decode()}, "digest is"),
        ({"tokenizer_fingerprint": "c" * 64}, "digest is"),
    ],
)
def test_a_damaged_table_is_refused(changes: dict[str, str], match: str) -> None:
    fields = RankTable.fitted(np.arange(5), FINGERPRINT).model_dump() | changes
    with pytest.raises(ValidationError, match=match):
        RankTable(**fields)


def test_a_manifest_with_one_bit_flipped_is_refused() -> None:
    content = bytearray(manifest_bytes(manifest(RankTable.fitted(np.arange(5), FINGERPRINT))))
    content[content.index(b'"classes":"') + 14] ^= 1
    with pytest.raises(CaskCorruptionError, match=r"cask\.json"):
        parse_manifest(bytes(content), where="cask.json")
