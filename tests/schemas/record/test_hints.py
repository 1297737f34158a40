"""The codecs of hints: what they keep, within which bounds, and what they refuse."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from logitcask_schemas.errors import CaptureSpecError, InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec, capture_spec
from logitcask_schemas.record.hint_spec import HintSpec, parse_hints
from logitcask_schemas.record.hints import HintRows, hint_layout, projection_DN
from tests.support.schemas.hint_samples import assert_same_rows

CODECS = ("f16", "i8", "proj:16")


def rows_of(width: int = 576, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(40, 2, width)).astype(np.float32)


def relative_errors(values: np.ndarray, spec: HintSpec) -> np.ndarray:
    """Per row and layer: length of the difference by length of the vector."""
    decoded = HintRows.encode(values, spec).decode()
    return np.linalg.norm(decoded - values, axis=2) / np.linalg.norm(values, axis=2)


@pytest.mark.parametrize("largest", [1.0, 25_800.0, 65_504.0, 1e6, 1e18])
@pytest.mark.parametrize(("codec", "bound"), [("f16", 1e-3), ("i8", 1e-2)])
def test_a_row_is_kept_within_its_bound_also_with_channels_that_stand_out(
    codec: str, bound: float, largest: float
) -> None:
    values = rows_of()
    values[:, :, 7], values[:, 1, 100], values[:, 0, 3] = largest, -largest / 3, largest / 50
    assert relative_errors(values, HintSpec(layers=(1, 2), codec=codec)).max() <= bound


def test_the_rest_of_a_row_survives_beside_its_outliers() -> None:
    """Four channels of 25,800: without them apart the other 572 would be rounded to nothing."""
    values = rows_of()
    values[:, :, [7, 90, 200, 500]] = 25_800 * np.array([1, -1, 1, -1])
    spec = HintSpec(layers=(1, 2), codec="i8")
    rest = np.delete(np.arange(576), [7, 90, 200, 500])
    decoded = HintRows.encode(values, spec).decode()
    errors = np.linalg.norm((decoded - values)[:, :, rest], axis=2) / np.linalg.norm(values[:, :, rest], axis=2)
    assert errors.max() <= 1e-2
    assert (decoded[:, :, 7] == 25_800).all()


def test_a_fifth_outlier_shows_that_the_bound_of_i8_is_no_matter_of_course() -> None:
    """The control: the levels of its group are 25,800 / 127 apart, and the rest of the group is gone."""
    values = rows_of()
    values[:, :, [7, 90, 200, 400, 500]] = 25_800
    decoded = HintRows.encode(values, HintSpec(layers=(1, 2), codec="i8")).decode()
    assert (decoded[:, :, 448:500] == 0).all()
    assert decoded[:, :, 384:400].any(axis=2).all()  # other groups are as they should be


@given(
    arrays.arrays(np.float32, (3, 2, 9), elements=st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False)),
    st.sampled_from(CODECS),
)
def test_whatever_is_finite_is_coded_into_finite_numbers(values: np.ndarray, codec: str) -> None:
    spec = HintSpec(layers=(0, 5), codec=codec)
    rows = HintRows.encode(values / 16 if codec.startswith("proj") else values, spec)  # so that no sum overflows
    rows.check(spec, 3, where="here")
    assert np.isfinite(rows.decode()).all()
    assert rows.num_bytes == 3 * spec.bytes_per_row(9)
    if codec == "f16":
        largest = np.abs(values).max(axis=2, keepdims=True)
        assert (np.abs(rows.decode() - values) <= np.maximum(largest * 2.0**-11, 2.0**-140)).all()
    if codec == "i8":
        fifth = np.sort(np.abs(values), axis=2)[:, :, -5][..., None]
        assert (np.abs(rows.decode() - values) <= fifth / 127 * 0.501 + 1e-38).all()


def test_rows_are_coded_each_by_itself() -> None:
    values = rows_of()
    for codec in ("f16", "i8"):
        spec = HintSpec(layers=(1, 2), codec=codec)
        whole = HintRows.encode(values, spec)
        parts = [HintRows.encode(values[at : at + 1], spec) for at in range(len(values))]
        assert_same_rows(HintRows.join(parts), whole)
        assert_same_rows(whole.slice(slice(3, 5)), HintRows.join(parts[3:5]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_not_finite_is_refused(codec: str, value: float) -> None:
    values = rows_of(9)
    values[3, 1, 2] = value
    with pytest.raises(InvalidRecordError, match="not a finite number"):
        HintRows.encode(values, HintSpec(layers=(1, 2), codec=codec))


def test_vectors_that_channels_cannot_number_are_refused() -> None:
    with pytest.raises(InvalidRecordError, match="65536"):
        HintRows.encode(np.zeros((1, 1, 65_537)), HintSpec(layers=(1,), codec="i8"))


def projected_products(seed: int, vectors: np.ndarray, size: int) -> float:
    """The inner product of two vectors as codec proj:N keeps it."""
    spec = HintSpec(layers=(1,), codec=f"proj:{size}", seed=seed)
    first, second = HintRows.encode(vectors[:, None], spec).decode()[:, 0].astype(np.float64)
    return float(first @ second)


def test_a_projection_keeps_inner_products_unbiased_within_johnson_lindenstrauss() -> None:
    random = np.random.default_rng(3)
    first = random.normal(size=300)
    second = 0.7 * first + 0.5 * random.normal(size=300)
    vectors, size, draws = np.stack([first, second]).astype(np.float32), 64, 400
    exact, lengths = float(first @ second), float(np.linalg.norm(first) * np.linalg.norm(second))
    products = np.array([projected_products(seed, vectors, size) for seed in range(draws)])
    # Var <= (|x|^2 |y|^2 + <x, y>^2) / N for entries of +-1 / sqrt(N).
    deviation = np.sqrt((lengths**2 + exact**2) / size)
    assert products.std() <= 1.15 * deviation
    assert abs(products.mean() - exact) <= 4 * deviation / np.sqrt(draws)
    # The control: without the factor 1 / sqrt(N) the mean is 64 times as large, which the bound above would notice.
    assert abs(size * products.mean() - exact) > 4 * size * deviation / np.sqrt(draws)


def test_a_projection_is_made_of_seed_and_width_and_is_the_same_everywhere() -> None:
    matrix = projection_DN(5, 7, 4)
    assert matrix.shape == (7, 4)
    assert np.array_equal(np.abs(matrix), np.full((7, 4), 0.5, np.float32))
    signs = ["".join("+" if value > 0 else "-" for value in row) for row in matrix]
    assert signs == SIGNS
    assert not np.array_equal(matrix, projection_DN(6, 7, 4))


SIGNS = ["-+++", "+-++", "-++-", "-+--", "-++-", "+-+-", "-+++"]


def test_layers_are_counted_from_the_end_and_sorted() -> None:
    spec = HintSpec(layers=(-1, 3, -31)).resolved(30)
    assert spec.layers == (0, 3, 30)
    assert spec.is_resolved
    assert not HintSpec(layers=(-1,)).is_resolved
    assert HintSpec(layers=(-30,), of="v").resolved(30).layers == (1,)


@pytest.mark.parametrize(
    ("layers", "of", "message"),
    [((31,), "hidden", "0 to 30"), ((-32,), "hidden", "-31"), ((30, -1), "hidden", "twice"), ((-31,), "v", "1 to 30")],
)
def test_layers_that_the_teacher_has_not_are_refused(layers: tuple[int, ...], of: Any, message: str) -> None:
    with pytest.raises(CaptureSpecError, match=message):
        HintSpec(layers=layers, of=of).resolved(30)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": ()}, "at least 1"),
        ({"layers": (1, 1)}, "twice"),
        ({"layers": tuple(range(65))}, "at most 64"),
        ({"layers": (0,), "of": "v"}, "embeddings"),
        ({"layers": (1,), "codec": "i4"}, "pattern"),
        ({"layers": (1,), "codec": "proj:0"}, "pattern"),
        ({"layers": (1,), "codec": "proj:5000"}, "4096"),
        ({"layers": (1,), "seed": 3}, "proj:N only"),
        ({"layers": (1,), "positions": "first"}, "all"),
    ],
)
def test_specs_that_mean_nothing_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptureSpecError, match=message):
        capture_spec(hints=fields)


def test_a_spec_without_hints_is_what_it_was() -> None:
    assert "hints" not in CaptureSpec().canonical()
    assert CaptureSpec(hints=HintSpec(layers=(1,))).digest() != CaptureSpec().digest()
    assert "seed" not in HintSpec(layers=(1,)).model_dump()


@pytest.mark.parametrize(
    "text", ["layers=1,2,-1 of=v codec=i8", "layers=3 codec=proj:64 positions=last seed=9", "layers=1"]
)
def test_the_notation_gives_the_spec_back(text: str) -> None:
    spec = parse_hints(text)
    assert parse_hints(spec.notation) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "layers"),
        ("layers", "'layers'"),
        ("layers=1 layers=2", "once"),
        ("layers=a", "layers.0"),
        ("layers=1 depth=2", "'depth=2'"),
        ("codec=i8", "layers"),
        ("layers=1 codec=zip", "codec"),
    ],
)
def test_a_notation_that_is_wrong_says_where(text: str, message: str) -> None:
    with pytest.raises(CaptureSpecError, match=message):
        parse_hints(text)


@pytest.mark.parametrize("codec", CODECS)
def test_rows_that_are_not_as_the_spec_has_them_are_refused(codec: str) -> None:
    spec = HintSpec(layers=(1, 2), codec=codec)
    rows = HintRows.encode(rows_of(9), spec)
    rows.check(spec, 40, where="here")
    for other, positions in ((spec, 39), (HintSpec(layers=(1,), codec=codec), 40)):
        with pytest.raises(InvalidRecordError, match="here"):
            rows.check(other, positions, where="here")
    with pytest.raises(InvalidRecordError, match="here"):
        rows.check(HintSpec(layers=(1, 2), codec="f16" if codec == "i8" else "i8"), 40, where="here")
    damaged = {name: array.copy() for name, array in rows.arrays.items()}
    damaged["scales"][0, 0] = np.inf
    with pytest.raises(InvalidRecordError, match="scales"):
        HintRows.of_arrays(damaged, 9).check(spec, 40, where="here")
    assert list(hint_layout(spec, 9)) == list(rows.arrays)
