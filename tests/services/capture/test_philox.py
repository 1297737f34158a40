"""Philox against the known answers published with Random123, and the numbers made of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask.format.codec_u8 import philox4x32 as philox4x32_numpy
from logitcask_services.capture.draws import draw_uniforms, philox4x32, position_uniforms

CASES = settings(deadline=None, max_examples=60)
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    first, second, third, fourth = (torch.tensor([word]) for word in counter)
    words = philox4x32((first, second, third, fourth), key)
    assert tuple(int(word) for word in words) == expected


def test_uniform_of_the_pi_vector():
    # The same known answer, reached through the public function: position, document and seed are the pi digits.
    signed = (0x0370734413198A2E + 2**63) % 2**64 - 2**63
    position = (0x85A308D3243F6A88 + 2**63) % 2**64 - 2**63
    seed = 0x299F31D0A4093822
    expected = ((0xD16CFE09 << 21) | (0x94FDCCEB >> 11)) * 2.0**-53
    assert float(position_uniforms(seed, torch.tensor([signed]), torch.tensor([position]))) == expected


@CASES
@given(st.integers(0, 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_in_range_and_independent_of_the_batch(seed, doc_key, start):
    keys, positions = torch.full((64,), doc_key), torch.arange(start, start + 64)
    uniforms = position_uniforms(seed, keys, positions)
    assert uniforms.dtype == torch.float64
    assert bool(((uniforms >= 0) & (uniforms < 1)).all())
    assert torch.equal(uniforms[13:14], position_uniforms(seed, keys[13:14], positions[13:14]))


def test_uniform_and_distinct_over_positions_documents_and_seeds():
    positions, keys = torch.arange(400).repeat(50), torch.arange(-25, 25).repeat_interleave(400)
    first, second = (position_uniforms(seed, keys, positions).numpy() for seed in (0, 1))
    assert len(np.unique(np.concatenate([first, second]))) == 40_000
    counts = np.histogram(first, bins=20, range=(0, 1))[0]
    assert (((counts - 1000) ** 2) / 1000).sum() < 50  # chi-squared, 19 degrees of freedom: p < 1e-4 beyond 50


@CASES
@given(st.integers(0, 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31), st.integers(1, 255))
def test_numbers_of_draws_are_words_as_documented(seed, doc_key, position, count):
    uniforms = draw_uniforms(seed, torch.tensor([doc_key]), torch.tensor([position]), count)
    assert uniforms.shape == (1, count)
    assert uniforms.dtype == torch.float64
    for number in {0, count // 2, count - 1}:
        counter = [position, 2**31 + number // 2, doc_key % 2**32, (doc_key >> 32) % 2**32]
        words = philox4x32_numpy([np.array([word], dtype=np.uint64) for word in counter], (seed % 2**32, seed >> 32))
        first, second = (int(word[0]) for word in words[2 * (number % 2) :][:2])
        assert float(uniforms[0, number]) == ((first << 21) | (second >> 11)) * 2.0**-53
    # Number i is the same whatever the count, and no number of a draw is the one of systematic sampling.
    assert torch.equal(draw_uniforms(seed, torch.tensor([doc_key]), torch.tensor([position]), 255)[:, :count], uniforms)
    assert position_uniforms(seed, torch.tensor([doc_key]), torch.tensor([position])) not in uniforms


def test_numbers_of_draws_are_uniform_and_independent():
    uniforms = draw_uniforms(5, torch.full((4000,), 77), torch.arange(4000), 10).numpy()
    assert len(np.unique(uniforms)) == uniforms.size
    counts = np.histogram(uniforms, bins=20, range=(0, 1))[0]
    assert (((counts - 2000) ** 2) / 2000).sum() < 50
    correlations = np.corrcoef(uniforms.T)[np.triu_indices(10, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)
