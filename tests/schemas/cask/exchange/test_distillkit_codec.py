"""DistillKit's bytes: bits, floats, curves and residuals, against an encoder that goes value by value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.cask.exchange.distillkit_codec import CompressionConfig, unpack
from logitcask_schemas.errors import CaskError
from tests.support.schemas.other_caches import BINNED, EXACT, RECOMMENDED, compress, dense_documents, pack_bits


@given(st.data())
def test_integers_come_back_whatever_their_width(data):
    bits = data.draw(st.integers(1, 32))
    count = data.draw(st.integers(1, 40))
    rows = data.draw(st.lists(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count), min_size=1))
    packed = np.frombuffer(b"".join(pack_bits(row, bits) for row in rows), dtype=np.uint8).reshape(len(rows), -1)
    assert unpack(packed, bits, count).tolist() == rows


@pytest.mark.parametrize(
    ("fields", "tolerance"),
    [
        (EXACT, 2e-5),  # float32, summed over twelve differences
        (EXACT | {"delta_encoding": False}, 5e-7),
        (EXACT | {"exact_dtype": "bfloat16", "delta_encoding": False}, 0.04),
        (EXACT | {"exact_dtype": "float64"}, 1e-12),
    ],
)
def test_exact_values_come_back(fields, tolerance):
    (document,) = dense_documents([40])
    _, logprobs = document.top(fields["k"])
    config = CompressionConfig.model_validate(fields)
    content = np.frombuffer(b"".join(compress(row, fields) for row in logprobs), dtype=np.uint8)
    decoded = config.logprobs(content.reshape(len(logprobs), config.logprob_bytes))
    assert np.abs(decoded - logprobs).max() < tolerance


def test_a_curve_is_the_least_squares_fit():
    (document,) = dense_documents([40])
    _, logprobs = document.top(RECOMMENDED["k"])
    config = CompressionConfig.model_validate(RECOMMENDED)
    content = np.frombuffer(b"".join(compress(row, RECOMMENDED) for row in logprobs), dtype=np.uint8)
    decoded = config.logprobs(content.reshape(len(logprobs), config.logprob_bytes))
    ranks = np.arange(24.0)
    curve = np.stack([np.ones(24), ranks, np.sqrt(ranks)], axis=1)
    fitted = (curve @ np.linalg.pinv(curve) @ logprobs[:, 8:].T).T
    assert np.abs(decoded[:, 8:] - fitted).max() < 1e-5  # coefficients are float32
    assert np.abs(decoded[:, :8] - logprobs[:, :8]).max() < 0.04
    shifted = np.roll(content.reshape(len(logprobs), -1), 2, axis=1).reshape(-1)  # negative control
    assert np.abs(config.logprobs(shifted.reshape(len(logprobs), -1))[:, 8:] - fitted).max() > 0.1


def test_residuals_of_every_width_come_back_within_their_step():
    """Ranks in bins are off by half a step of their scale; the rest follows the curve."""
    fields = BINNED | {"delta_encoding": False}
    (document,) = dense_documents([60])
    _, logprobs = document.top(fields["k"])
    config = CompressionConfig.model_validate(fields)
    content = np.frombuffer(b"".join(compress(row, fields) for row in logprobs), dtype=np.uint8)
    decoded = config.logprobs(content.reshape(len(logprobs), config.logprob_bytes))
    points = np.linspace(0, 1, 20)
    curve = np.stack([points**0, points, points**2], axis=1)
    residuals = logprobs[:, 4:] - (curve @ np.linalg.pinv(curve) @ logprobs[:, 4:].T).T
    errors = np.abs(decoded[:, 4:] - logprobs[:, 4:])
    for columns, bits in ((slice(0, 9), 7), (slice(9, 15), 3)):
        step = np.abs(residuals[:, columns]).max(axis=1, keepdims=True) / 2 ** (bits - 1)
        assert (errors[:, columns] <= 1.05 * step).all()  # a step at the upper end, which is cut; the scale is float16
    np.testing.assert_allclose(errors[:, 17:], np.abs(residuals[:, 17:]), atol=1e-9)


def test_one_bit_is_a_sign():
    signs = {"scale_dtype": "float32", "element_bits": 1, "num_elements": 3}
    fields = {"d": 98, "k": 3, "exact_k": 0, "residual_bins": [signs], "delta_encoding": False}
    content = np.frombuffer(np.float32(2.5).tobytes() + pack_bits([1, 0, 1], 1), dtype=np.uint8)[None]
    assert CompressionConfig.model_validate(fields).logprobs(content).tolist() == [[2.5, -2.5, 2.5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exact_k": 13}, "k = 12 ranks cannot hold 13 exact ones"),
        ({"exact_k": 3, "polynomial_terms": [0, 1], "term_dtype": "float16"}, "a curve in float16"),
        ({"polynomial_terms": ["cos"]}, "polynomial_terms"),
        ({"codebook": 3}, "codebook"),
        ({"d": 0}, "d: Input should be"),
    ],
)
def test_a_config_that_cannot_be_decoded_is_refused_by_its_fields(tmp_path, change, message):
    import yaml

    path = tmp_path / "compression_config.yaml"
    path.write_text(yaml.safe_dump(EXACT | change))
    with pytest.raises(CaskError, match=message):
        CompressionConfig.read(path)


def test_a_missing_config_is_told_what_to_do(tmp_path):
    with pytest.raises(CaskError, match="--compression-config"):
        CompressionConfig.read(tmp_path / "compression_config.yaml")
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(CaskError, match="no YAML"):
        CompressionConfig.read(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{" * 100_000, "no YAML"),
        (b"d: 2000-13-45\n", "no YAML: month must be in"),
        (b"\x80\x00", "no YAML"),
        (b"\xff\xfe\x00\x01", "holds str, expected the fields"),
        (b"", "holds nothing, expected the fields"),
        (b"hello", "holds str, expected the fields"),
        (b"- 1", "holds list, expected the fields"),
    ],
)
def test_files_that_are_no_config_are_told_apart(tmp_path, content, message):
    path = tmp_path / "compression_config.yaml"
    path.write_bytes(content)
    with pytest.raises(CaskError, match=message) as error:
        CompressionConfig.read(path)
    assert str(path) in str(error.value)
