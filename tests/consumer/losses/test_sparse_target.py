"""The sparse target: exact mass after any codec, slices, and columns that are refused."""

from typing import Any

import numpy as np
import pytest
import torch

from logitcask_consumer.losses import SparseTarget
from logitcask_schemas.errors import InvalidRecordError
from tests.support.consumer.reference_sampler import random_positions, sample, to_target, total_mass

VOCAB = 60


@pytest.mark.parametrize("codec", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("spec", [{}, {"mode": "sampled"}, {"tau": 0.9}, {"tau": 1e-3}], ids=str)
def test_mass_is_one_after_the_codec(codec, spec):
    dense = random_positions(50, VOCAB, seed=3, sharpness=3.0)
    target = to_target(sample(dense, np.full(50, 0.1), **spec), dense.next_ids_R, codec=codec)
    assert float((total_mass(target) - 1).abs().max()) < 1e-12
    single = to_target(sample(dense, np.full(50, 0.1), **spec), dense.next_ids_R, codec=codec, dtype=torch.float32)
    assert float((total_mass(single) - 1).abs().max()) < 1e-6


def test_columns_that_do_not_fit_are_refused():
    one = torch.zeros(1)
    good: dict[str, Any] = {
        "head_ids_H": torch.zeros(1, dtype=torch.int64),
        "head_logprobs_H": one,
        "head_offsets_R1": np.array([0, 1]),
        "tail_ids_N": torch.zeros(0, dtype=torch.int64),
        "tail_offsets_R1": np.array([0, 0]),
        "log_tail_mass_R": one,
        "next_ids_R": torch.zeros(1, dtype=torch.int64),
        "sampled_tail": True,
    }
    assert SparseTarget.from_columns(**good).num_rows == 1
    with pytest.raises(InvalidRecordError, match="head_ids"):
        SparseTarget.from_columns(**{**good, "head_ids_H": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(InvalidRecordError, match="tail_offsets"):
        SparseTarget.from_columns(**{**good, "tail_offsets_R1": np.array([0])})
    empty = {"head_ids_H": torch.zeros(0, dtype=torch.int64), "head_logprobs_H": torch.zeros(0)}
    with pytest.raises(InvalidRecordError, match="empty head"):
        SparseTarget.from_columns(**{**good, **empty, "head_offsets_R1": np.array([0, 0])})
