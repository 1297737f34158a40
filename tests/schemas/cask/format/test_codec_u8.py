"""The one-byte codec: unbiased in probability, within its bounds, the same bytes every time."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.format.codec_u8 import LEVELS, SCALES, decode_u8, encode_u8, philox4x32, random_words
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import make_document, make_teacher

DOCUMENT = hashlib.sha256(b"document").digest()
SPEC = CaptureSpec(logprob_codec="u8", tail_logprobs=True)
STEPS = -np.diff(LEVELS)


def coded(logprobs: NDArray, seed: int = 0, document: bytes = DOCUMENT, column: str = "head_logprobs") -> NDArray:
    return encode_u8(logprobs, column=column, seed=seed, document_id=document)


def test_levels() -> None:
    assert LEVELS.shape == (256,)
    assert LEVELS[[0, 128, 192, 224, 255]].tolist() == [0.0, -2.0, -4.0, -8.0, -23.5]
    assert (STEPS > 0).all()
    np.testing.assert_array_equal(LEVELS.astype(np.float16).astype(np.float64), LEVELS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_level_keeps_its_code(dtype: type) -> None:
    codes = np.arange(256, dtype=np.uint8)
    for seed in range(50):
        np.testing.assert_array_equal(coded(decode_u8(codes).astype(dtype), seed), codes)


def test_values_beyond_the_ends() -> None:
    decoded = decode_u8(coded(np.array([1e-7, -23.6, -80.0, -np.inf], np.float32)))
    assert decoded.tolist() == [0.0, -23.5, -23.5, -23.5]
    assert np.exp(-23.5) < 6.3e-11


@given(st.lists(st.floats(-23.5, 0.0), min_size=1, max_size=50), st.integers(0, 2**63 - 1))
def test_a_value_goes_to_one_of_its_neighbours(values: list[float], seed: int) -> None:
    logprobs = np.array(values)
    decoded = decode_u8(coded(logprobs, seed)).astype(np.float64)
    below = np.searchsorted(-LEVELS, -logprobs, side="right") - 1
    assert ((decoded == LEVELS[below]) | (decoded == LEVELS[np.minimum(below + 1, 255)])).all()


def test_documented_bounds() -> None:
    """Relative and absolute error and standard deviation of t, worst over a fine grid, against docs/format.md."""
    fine = np.linspace(LEVELS[:-1], LEVELS[1:], 203)[1:-1]
    upper, lower, t = np.exp(LEVELS[:-1]), np.exp(LEVELS[1:]), np.exp(fine)
    deviation = np.sqrt((upper - t) * (t - lower))
    assert (deviation / t <= np.sinh(STEPS / 2)).all()
    worst = np.maximum(upper - t, t - lower)
    assert (worst / t < np.expm1(STEPS)).all()
    assert worst.max() < 0.0156
    assert deviation.max() < 0.0079
    chance = (upper - t) / (upper - lower)
    mean_log = (1 - chance) * LEVELS[:-1] + chance * LEVELS[1:]
    assert (np.abs(mean_log - fine) <= STEPS**2 / 8).all()
    for first, last, relative_sd, relative in (
        (0, 128, 0.0079, 0.016),
        (128, 192, 0.016, 0.032),
        (192, 224, 0.063, 0.14),
        (224, 255, 0.26, 0.65),
    ):
        assert np.sinh(STEPS[first:last] / 2).max() < relative_sd
        assert np.expm1(STEPS[first:last]).max() < relative


def z_scores(encode, samples: int = 20_000) -> NDArray:
    """Of the mean of exp(decoded) against t, in standard errors, for values all over the range."""
    logprobs = np.array([-0.0071, -0.3, -1.99, -2.013, -3.01, -5.1, -7.95, -9.3, -15.21, -23.1])
    decoded = np.exp(decode_u8(encode(np.repeat(logprobs, samples))).astype(np.float64)).reshape(len(logprobs), samples)
    t = np.exp(logprobs)
    below = np.searchsorted(-LEVELS, -logprobs, side="right") - 1
    deviation = np.sqrt((np.exp(LEVELS[below]) - t) * (t - np.exp(LEVELS[below + 1])))
    return (decoded.mean(1) - t) / (deviation / np.sqrt(samples))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("column", ["head_logprobs", "tail_logprobs"])
def test_probabilities_are_right_on_average(seed: int, column: str) -> None:
    assert np.abs(z_scores(lambda values: coded(values, seed, column=column))).max() < 4.5


def test_control_rounding_to_the_nearest_level_is_not() -> None:
    def nearest(values: NDArray) -> NDArray:
        return np.abs(values[:, None] - LEVELS).argmin(1).astype(np.uint8)

    assert np.abs(z_scores(nearest, 2000)).max() > 4.5


def test_control_rounding_that_keeps_the_logarithm_is_not() -> None:
    def linear_in_log(values: NDArray) -> NDArray:
        below = np.searchsorted(-LEVELS, -values, side="right") - 1
        chance = (LEVELS[below] - values) / STEPS[below]
        return (below + (random_words(1, DOCUMENT, 1, len(values)) * 2.0**-32 < chance)).astype(np.uint8)

    assert np.abs(z_scores(linear_in_log)).max() > 4.5


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    decoded = philox4x32([np.array([word], np.uint64) for word in counter], key)
    assert tuple(int(word[0]) for word in decoded) == expected


def test_random_words_are_a_function_of_their_key() -> None:
    whole = random_words(7, DOCUMENT, 1, 1001)
    np.testing.assert_array_equal(random_words(7, DOCUMENT, 1, 10), whole[:10])
    assert len(np.unique(whole)) > 990
    for other in (
        random_words(8, DOCUMENT, 1, 1001),
        random_words(7 + 2**32, DOCUMENT, 1, 1001),
        random_words(7, DOCUMENT, 2, 1001),
        random_words(7, DOCUMENT[::-1], 1, 1001),
    ):
        assert (other == whole).mean() < 0.01


def unrounded(length: int, seed: int) -> DocumentRecords:
    """A document with float32 values, as capture hands them over for this codec."""
    return make_document(length, seed, spec=CaptureSpec(logprob_codec="f32", tail_logprobs=True))


def number_of(cask: Cask, document_id: bytes) -> int:
    number = cask.find(document_id)
    assert number is not None
    return number


def test_a_cask_of_codes_reads_as_float16_and_ignores_company(tmp_path: Path) -> None:
    documents = [unrounded(length, length) for length in (2, 50, 400)]
    for name, order in (("one", documents), ("other", documents[::-1])):
        with CaskWriter.create(tmp_path / name, teacher=make_teacher(), capture=SPEC) as writer:
            writer.publish(order)
    one, other = Cask.open(tmp_path / "one"), Cask.open(tmp_path / "other")
    for document in documents:
        decoded, again = (cask.read(number_of(cask, document.id)).records for cask in (one, other))
        for name in ("head_logprobs_H", "tail_logprobs_N"):
            mine, stored = getattr(document.records, name), getattr(decoded, name)
            assert stored.dtype == np.float16
            np.testing.assert_array_equal(stored, getattr(again, name))
            assert (np.abs(stored - mine) <= 0.125).all()
        assert decoded.entropy_P.dtype == decoded.log_tail_mass_P.dtype == np.float16
    assert one.shard(0).columns.arrays["head_logprobs"].dtype == np.uint8
    codes = decode_u8(np.asarray(one.shard(0).columns.arrays["head_logprobs"][:3]))
    np.testing.assert_array_equal(codes, one.read(0).records.head_logprobs_H[:3])


def test_storing_again_what_was_read_changes_nothing(tmp_path: Path) -> None:
    with CaskWriter.create(tmp_path / "first", teacher=make_teacher(), capture=SPEC) as writer:
        first = writer.publish([unrounded(300, 1), unrounded(20, 2)])
    cask = Cask.open(tmp_path / "first")
    with CaskWriter.create(tmp_path / "second", teacher=make_teacher(), capture=SPEC) as writer:
        assert writer.publish([cask.read(0), cask.read(1)]) == first


def test_the_seed_is_part_of_the_identity_in_every_mode() -> None:
    for mode in ("threshold", "topk", "sampled"):
        spec = CaptureSpec(mode=mode, logprob_codec="u8")
        assert spec.digest() != spec.model_copy(update={"seed": 1}).digest()
    assert CaptureSpec(mode="topk").digest() == CaptureSpec(mode="topk", seed=1).digest()


def test_entropy_is_unbiased_within_its_bounds() -> None:
    """The levels of docs/format.md, and over many random numbers the value itself."""
    levels = SCALES["entropy"].levels
    assert levels[[0, 128, 192, 255]].tolist() == [0.0, 4.0, 8.0, 23.75]
    np.testing.assert_array_equal(levels.astype(np.float16).astype(np.float64), levels)
    for value, step in ((0.3, 1 / 32), (2.017, 1 / 32), (6.3, 1 / 16), (11.9, 1 / 4)):
        draws = decode_u8(coded(np.full(40_000, value), column="entropy"), "entropy").astype(np.float64)
        assert np.abs(draws - value).max() < step
        assert abs(draws.mean() - value) < 4 * (step / 2) / np.sqrt(len(draws))


def test_tail_mass_is_unbiased_in_probability_and_keeps_that_there_is_none() -> None:
    for value in (-0.02, -1.007, -3.3, -7.2, -12.4):
        draws = np.exp(decode_u8(coded(np.full(40_000, value), column="log_tail_mass"), "log_tail_mass").astype(float))
        assert abs(draws.mean() - np.exp(value)) < 4 * draws.std() / np.sqrt(len(draws)) + 1e-12
    ends = decode_u8(coded(np.array([-np.inf, -22.9999, -300.0, 1e-9]), column="log_tail_mass"), "log_tail_mass")
    assert ends[0] == -np.inf
    assert ends[2:].tolist() == [-23.0, 0.0]
    assert np.isfinite(ends[1])


@pytest.mark.parametrize("column", SCALES)
def test_every_column_keeps_the_codes_of_its_levels(column: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(coded(decode_u8(codes, column), column=column), codes)


def test_columns_are_rounded_by_random_numbers_of_their_own() -> None:
    assert len({scale.stream for scale in SCALES.values()}) == len(SCALES)
