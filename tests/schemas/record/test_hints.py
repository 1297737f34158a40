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


LARGEST = float(np.finfo(np.float32).max)
ANY_FLOAT32 = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    # Where a code that is rounded up may leave float32, or float16 before its scale.
    st.sampled_from([LARGEST, LARGEST * (1 - 2.0**-13), LARGEST * (1 - 2.0**-12), LARGEST * (1 - 2.0**-11), 65_519.0]),
    st.sampled_from([2.0**-149, 190 * 2.0**-149, 2.0**-126, 2.0**-119]),
).flatmap(lambda value: st.sampled_from([value, -value]))


@given(arrays.arrays(np.float32, (3, 2, 9), elements=ANY_FLOAT32), st.sampled_from(["f16", "i8"]))
def test_whatever_is_finite_comes_back_finite_and_within_the_bound(values: np.ndarray, codec: str) -> None:
    spec = HintSpec(layers=(0, 5), codec=codec)
    rows = HintRows.encode(values, spec)
    rows.check(spec, 3, where="here")
    decoded, exact = rows.decode().astype(np.float64), values.astype(np.float64)
    assert np.isfinite(decoded).all()
    assert rows.num_bytes == 3 * spec.bytes_per_row(9)
    if codec == "f16":
        largest = np.abs(exact).max(axis=2, keepdims=True)
        assert (np.abs(decoded - exact) <= np.maximum(np.abs(exact) * 2.0**-11, largest * 2.0**-39)).all()
    else:
        fifth = np.sort(np.abs(exact), axis=2)[:, :, -5][..., None]
        assert (np.abs(decoded - exact) <= fifth / 254 * 1.001 + 2.0**-149).all()


@given(arrays.arrays(np.float32, (3, 2, 9), elements=ANY_FLOAT32))
def test_a_projection_is_refused_or_finite(values: np.ndarray) -> None:
    spec = HintSpec(layers=(0, 5), codec="proj:16")
    exact = np.abs(values.astype(np.float64) @ projection_DN(0, 9, 16).astype(np.float64)).max()
    try:
        rows = HintRows.encode(values, spec)
    except InvalidRecordError:
        assert np.abs(values.astype(np.float64)).sum(axis=2).max() / 4 > LARGEST * 0.99  # entries are +-1/4
        return
    assert exact < LARGEST * 1.01
    rows.check(spec, 3, where="here")
    assert np.isfinite(rows.decode()).all()


@pytest.mark.parametrize("codec", ["f16", "i8"])
@pytest.mark.parametrize("fraction", [1, 1 - 2.0**-13, 1 - 2.0**-12, 1 - 2.0**-11])
def test_rows_of_the_largest_numbers_of_float32_keep_their_bound(codec: str, fraction: float) -> None:
    """Half a unit below 2^128 rounds to it, and 127 times a rounded scale may lie beyond it as well."""
    values = np.full((1, 2, 200), LARGEST * fraction, np.float32)
    values[:, 1] *= -1
    decoded = HintRows.encode(values, HintSpec(layers=(1, 2), codec=codec)).decode()
    assert (np.abs(decoded.astype(np.float64) / values - 1) <= 2.0**-11).all()


@pytest.mark.parametrize("codec", CODECS)
def test_what_float32_cannot_hold_is_refused(codec: str) -> None:
    with pytest.raises(InvalidRecordError, match="not a finite number"):
        HintRows.encode(np.full((1, 2, 9), 1e39), HintSpec(layers=(1, 2), codec=codec))


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
    ("asked", "stored", "fits"),
    [
        ((2, -1), (2, 6), True),
        ((-1, 2), (2, 2), False),  # no teacher has two layers 2
        ((2, -1), (1, 6), False),
        ((2, -1), (1, 3, 6), False),
        ((-3, 2, -1), (2, 4, 6), True),
        ((-3, 2, -1), (2, 5, 6), False),
        ((-1,), (0,), False),  # it would have no blocks
        ((6, 2), (2, 6), True),
        ((2, 6), (2, 7), False),
    ],
)
def test_layers_that_some_teacher_would_have(asked: tuple[int, ...], stored: tuple[int, ...], fits: bool) -> None:
    assert HintSpec(layers=asked).may_be(stored) == fits
    by_trying = [depth for depth in range(1, 12) if resolves(asked, depth) == stored]
    assert bool(by_trying) == fits


def resolves(asked: tuple[int, ...], depth: int) -> tuple[int, ...] | None:
    try:
        return HintSpec(layers=asked).resolved(depth).layers
    except CaptureSpecError:
        return None


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
