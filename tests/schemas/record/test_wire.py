"""The wire form: round trips without copies, and errors for everything that is not one."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from logitcask_schemas.record.wire import WIRE_HEADER_BYTES, WIRE_MAGIC, decode_wire
from tests.support.schemas.cask_samples import SPEC, columns_of, make_document, specs
from tests.support.wire_encoding import encode_wire


@given(spec=specs(), length=st.integers(1, 60), vocab=st.sampled_from([300, 65_537]), tails=st.booleans())
def test_round_trip_is_bit_exact(spec: CaptureSpec, length: int, vocab: int, tails: bool) -> None:
    document = make_document(length, 7, vocab_size=vocab, spec=spec, tails=tails)
    back = decode_wire(encode_wire(document.records, spec).tobytes(), spec)
    mine = columns_of(DocumentRecords(token_ids_L=document.token_ids_L, records=back))
    for name, column in columns_of(document).items():
        assert mine[name].dtype == column.dtype
        assert mine[name].shape == column.shape
        assert mine[name].tobytes() == column.tobytes()


def test_columns_are_views_of_the_buffer() -> None:
    spec = CaptureSpec(tail_logprobs=True, temperatures=(2.0,))
    buffer = encode_wire(make_document(50, 1, spec=spec).records, spec)
    records = decode_wire(buffer, spec)
    for name, column in columns_of(DocumentRecords(token_ids_L=np.zeros(50, np.uint16), records=records)).items():
        if name != "token_ids_L":
            assert np.shares_memory(column, buffer), name


def test_layout_is_the_documented_one() -> None:
    """Bytes by hand, so that an engine writing them on a device has something to agree with."""
    spec = CaptureSpec(tail_logprobs=True, temperatures=(2.0, 4.0))
    document = make_document(3, 5, spec=spec)
    records = document.records
    heads, draws = len(records.head_ids_H), len(records.tail_ids_N)
    expected = struct.pack("<8sIIIIIIQQQQ", WIRE_MAGIC, 64, 2, 2, 1, 2, 0, 2, heads, draws, 0)
    for column in (
        records.head_counts_P,
        records.head_ids_H,
        records.head_logprobs_H,
        records.tail_counts_P,
        records.tail_ids_N,
        records.tail_logprobs_N,
        records.log_tail_mass_P,
        records.entropy_P,
        records.log_z_PT,
    ):
        assert column is not None
        expected += column.tobytes() + b"\0" * (-column.nbytes % 8)
    assert encode_wire(records, spec).tobytes() == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:10], "header"),
        (lambda data: data[:-1], "bytes"),
        (lambda data: data + b"\0" * 8, "bytes"),
        (lambda data: b"LCWIRE02" + data[8:], "starts with"),
        (lambda data: data[:12] + b"\3\0\0\0" + data[16:], "2 or 4"),
        (lambda data: data[:20] + b"\2\0\0\0" + data[24:], "flags"),
        (lambda data: data[:28] + b"\1\0\0\0" + data[32:], "reserved"),
        (lambda data: data[:32] + b"\xff" * 8 + data[40:], "announces"),
        (lambda data: data[:24] + b"\7\0\0\0" + data[28:], "announces 7 temperatures, the capture spec has 0"),
    ],
)
def test_broken_buffers_are_refused(damage, message: str) -> None:
    data = encode_wire(make_document(9, 1).records, SPEC).tobytes()
    with pytest.raises(InvalidRecordError, match=message):
        decode_wire(damage(data), SPEC)


@given(header=st.binary(min_size=WIRE_HEADER_BYTES - 8, max_size=300))
def test_random_bytes_never_crash(header: bytes) -> None:
    with pytest.raises(InvalidRecordError):
        decode_wire(WIRE_MAGIC + header[:8].replace(b"@", b"\0") + header[8:] + b"\1", SPEC)


def test_other_dtypes_are_refused() -> None:
    records = make_document(9, 1).records
    columns = {name: getattr(records, name) for name in type(records).__dataclass_fields__}
    entropy = records.entropy_P.astype(np.float64)
    wide = type(records)(**{**columns, "position_columns": {**records.position_columns, "entropy": entropy}})
    with pytest.raises(InvalidRecordError, match="entropy"):
        encode_wire(wide, SPEC)
    signed = type(records)(**{**columns, "head_ids_H": records.head_ids_H.astype(np.int16)})
    with pytest.raises(InvalidRecordError, match="int16"):
        encode_wire(signed, SPEC)
