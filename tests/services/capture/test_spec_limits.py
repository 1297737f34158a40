"""Specs at and beyond the limits: draws are counted right, log Z_T is right to 1 %, and nothing depends on repeats."""

import numpy as np
import pytest
import torch

from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.capture_spec import MAX_TEMPERATURE, MIN_TAU, MIN_TEMPERATURE, CaptureSpec, stored_spec
from logitcask_services.capture import RecordCapture

ROWS, VOCAB = 48, 1000


def logits(scale=3.0):
    generator = torch.Generator().manual_seed(0)
    return torch.randn((ROWS, VOCAB), generator=generator) * torch.linspace(0.01, scale, ROWS)[:, None]


def captured(spec, logits_RV):
    places_R = torch.arange(ROWS)
    return RecordCapture(spec, VOCAB)(logits_RV.clone(), places_R % VOCAB, places_R, places_R)


@pytest.mark.parametrize("tau", [MIN_TAU, 1.36e-20, 1e-300])
def test_draws_of_a_tiny_tau_are_the_most_there_may_be(tau):
    # The smaller ones are refused today, and stand in casks that were made before.
    columns = captured(stored_spec({"tau": tau, "head_max": 4}), logits())
    assert (columns.tail_counts_R == 255).all()


@pytest.mark.parametrize("codec", ["f16", "f32", "u8"])
@pytest.mark.parametrize("temperature", [MIN_TEMPERATURE, 0.5, 0.99, 1.01, 2.0, 20.0, MAX_TEMPERATURE])
def test_log_z_is_right_to_one_percent_over_the_whole_range(codec, temperature):
    logits_RV = logits(scale=12.0)
    spec = CaptureSpec(temperatures=(temperature,), logprob_codec=codec)
    expected_R = torch.logsumexp(torch.log_softmax(logits_RV.double(), -1) / temperature, -1).numpy()
    found_R = captured(spec, logits_RV).position_columns["log_z"][:, 0].double().numpy()
    np.testing.assert_allclose(found_R, expected_R, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("temperatures", [(2.0, 2.0, 3.0), (3.0, 2.0, 2.0), (3.0, 3.0), (2.0, 0.5, 2.0)])
def test_every_temperature_has_its_own_column_repeats_included(temperatures):
    columns = captured(stored_spec({"temperatures": temperatures, "logprob_codec": "f32"}), logits())
    logprobs_RV = torch.log_softmax(logits().double(), -1)
    expected_RT = torch.stack([torch.logsumexp(logprobs_RV / t, -1) for t in temperatures], 1)
    np.testing.assert_allclose(columns.position_columns["log_z"].numpy(), expected_RT.numpy(), rtol=1e-4, atol=1e-5)


def test_a_pinned_id_outside_the_vocabulary_is_the_specs_fault():
    with pytest.raises(CaptureSpecError, match=r"pinned ids \[1000\] are outside the teacher's vocabulary of 1000"):
        RecordCapture(CaptureSpec(pinned_ids=(1, 1000)), VOCAB)
