"""Hints coded on the device are those that numpy codes, bit for bit, and survive the way home."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hint_wire import decode_hints
from logitcask_schemas.record.hints import HintRows
from logitcask_services.capture.hint_tensors import HintTensors, encode_hints, pack_hints
from tests.support.schemas.hint_samples import assert_same_rows

CODECS = ("f16", "i8", "proj:16")


def coded(values: np.ndarray, spec: HintSpec) -> HintRows:
    return decode_hints(pack_hints(encode_hints(torch.from_numpy(values), spec)).numpy(), spec)


LARGEST = float(np.finfo(np.float32).max)
ANY_FLOAT32 = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([LARGEST, -LARGEST, LARGEST * (1 - 2.0**-12), 2.0**-149, 190 * 2.0**-149, -(2.0**-126)]),
)


@given(arrays.arrays(np.float32, (3, 2, 7), elements=ANY_FLOAT32), st.sampled_from(["f16", "i8"]))
def test_the_same_bytes_as_numpy(values: np.ndarray, codec: str) -> None:
    spec = HintSpec(layers=(1, 2), codec=codec)
    assert_same_rows(coded(values, spec), HintRows.encode(values, spec))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(0, 2, 70), (1, 64, 3), (1, 1, 1), (2, 1, 65)])
def test_no_rows_one_channel_and_a_last_group_that_is_short(codec: str, shape: tuple[int, int, int]) -> None:
    spec = HintSpec(layers=tuple(range(shape[1])), codec=codec)
    values = np.full(shape, 3.5, dtype=np.float32)
    rows = coded(values, spec)
    rows.check(spec, shape[0], where="here")
    if codec != "proj:16":
        assert_same_rows(rows, HintRows.encode(values, spec))
        assert np.array_equal(rows.decode(), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("codec", ["f16", "i8"])
def test_the_same_bytes_of_a_residual_stream(codec: str, dtype: torch.dtype) -> None:
    values = torch.randn(50, 2, 576, generator=torch.Generator().manual_seed(0))
    values[:, :, 3] = 25_800
    spec = HintSpec(layers=(1, 2), codec=codec)
    rounded = values.to(dtype)
    on_device = decode_hints(pack_hints(encode_hints(rounded, spec)).numpy(), spec)
    assert_same_rows(on_device, HintRows.encode(rounded.float().numpy(), spec))


def test_projections_agree_but_for_the_last_bit_of_their_sums() -> None:
    values = torch.randn(50, 2, 576, generator=torch.Generator().manual_seed(0)).numpy()
    spec = HintSpec(layers=(1, 2), codec="proj:16", seed=4)
    mine, theirs = coded(values, spec).decode(), HintRows.encode(values, spec).decode()
    largest = np.abs(theirs).max(axis=2, keepdims=True)
    assert (np.abs(mine - theirs) <= largest * 2.0**-10).all()
    other = HintRows.encode(values, spec.model_copy(update={"seed": 5})).decode()
    assert (np.abs(mine - other) > largest * 2.0**-10).any()  # the control


@pytest.mark.parametrize("codec", CODECS)
def test_rows_are_cut_and_joined(codec: str) -> None:
    values = torch.randn(9, 2, 20, generator=torch.Generator().manual_seed(0))
    spec = HintSpec(layers=(1, 2), codec=codec)
    whole = encode_hints(values, spec)
    parts = whole.split([2, 0, 7])
    assert [len(part.arrays["codes"]) for part in parts] == [2, 0, 7]
    assert parts[0].num_bytes == 2 * spec.bytes_per_row(20) + (2 * 2 * 4 * 2 if codec == "i8" else 0)  # int32 channels
    assert torch.equal(pack_hints(HintTensors.join(parts)), pack_hints(whole))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_not_finite_is_noticed_by_whoever_checks(codec: str, value: float) -> None:
    values = torch.ones(3, 2, 20)
    values[1, 1, 4] = value
    spec = HintSpec(layers=(1, 2), codec=codec)
    rows = decode_hints(pack_hints(encode_hints(values, spec)).numpy(), spec)
    with pytest.raises(InvalidRecordError, match="not finite"):
        rows.check(spec, 3, where="here")


@pytest.mark.parametrize("damage", [lambda b: b[:8], lambda b: b[:-8], lambda b: np.append(b, np.zeros(8, np.uint8))])
def test_a_buffer_of_another_length_is_refused(damage) -> None:
    spec = HintSpec(layers=(1, 2), codec="i8")
    content = pack_hints(encode_hints(torch.ones(3, 2, 20), spec)).numpy()
    with pytest.raises(InvalidRecordError, match="hints"):
        decode_hints(damage(content), spec)
    foreign = content.copy()
    foreign[0] ^= 1
    with pytest.raises(InvalidRecordError, match="LCHINT01"):
        decode_hints(foreign, spec)
