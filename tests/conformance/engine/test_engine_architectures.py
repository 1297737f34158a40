"""The capturing wrapper on an architecture that is nothing like a Llama: its own logits, not a guess at them."""

import numpy as np
import pytest

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_services.engines.protocol import CaptureTask

pytestmark = pytest.mark.engine


def test_soft_capped_and_tied_logits_are_the_models_own(odd_engine, odd_teacher, helpers):
    generator = np.random.default_rng(1)
    documents = [generator.integers(3, 1000, length).astype(np.uint16) for length in (250, 100, 30)]
    spec = CaptureSpec(mode="topk", k=20, logprob_codec="f32")
    tasks = [CaptureTask(key=i, token_ids_L=ids) for i, ids in enumerate(documents)]
    found = {result.key: result for result in odd_engine.capture(tasks, spec)}
    dense = helpers.dense_logprobs(odd_teacher, documents)
    spreads = np.concatenate([logprobs.max(-1) - logprobs.min(-1) for logprobs in dense])
    assert 6 < spreads.max() <= 8  # the cap of 4 is at work
    for i, logprobs in enumerate(dense):
        assert found[i].error is None
        records = found[i].document.records
        rows = np.repeat(np.arange(records.num_positions), records.head_counts_P)
        np.testing.assert_allclose(records.head_logprobs_H, logprobs[rows, records.head_ids_H], atol=1e-3)
