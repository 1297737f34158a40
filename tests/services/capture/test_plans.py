"""Both plans of capture: the same bytes, and on an accelerator few operations and fewer waits, whatever the rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.capture import RecordCapture, pack_wire
from logitcask_services.capture.plan import CPU_BYTES, Scratch, accelerator_plan, cpu_plan, plan_for


@given(data=st.data(), seed=st.integers(0, 2**32 - 1), masked=st.sampled_from([0.0, 0.0, 0.6, 0.99]))
@settings(deadline=None, max_examples=60)
def test_both_plans_give_the_same_bytes(oracle, data, seed, masked):
    vocab = data.draw(st.sampled_from([300, 1024, 4096]))
    spec = data.draw(oracle.specs(vocab)).model_copy(
        update={"logprob_codec": data.draw(st.sampled_from(["f16", "f32"]))}
    )
    scale = data.draw(st.sampled_from([0.01, 2.0, 12.0]))
    logits = torch.from_numpy(
        oracle.logits_rows(seed, 24, vocab, scale=scale, ties=data.draw(st.booleans()), masked=masked)
    )
    for row, bad in enumerate(data.draw(st.lists(st.sampled_from([np.nan, np.inf, -np.inf, None]), max_size=3))):
        if bad == -np.inf:
            logits[row] = bad
        elif bad is not None:
            logits[row, seed % vocab] = bad
    logits = logits.to(data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    generator = torch.Generator().manual_seed(seed)
    next_ids = torch.randint(0, vocab, (24,), generator=generator)
    keys = torch.randint(-(2**62), 2**62, (24,), generator=generator)
    positions = torch.randint(0, 5000, (24,), generator=generator)
    whole = accelerator_plan(vocab)
    packed = [
        pack_wire(RecordCapture(spec, vocab, plan=plan)(logits.clone(), next_ids, keys, positions), vocab)
        for plan in (cpu_plan(vocab), whole, replace(whole, rows=7, rows_of_passes=7, gathered=1024))
    ]
    assert torch.equal(packed[0], packed[1])
    assert torch.equal(packed[0], packed[2])


@pytest.mark.parametrize("vocab", [32_000, 49_152, 128_256, 151_936, 262_144])
def test_rows_of_a_run_follow_a_budget(vocab):
    cpu, accelerator = cpu_plan(vocab), accelerator_plan(vocab)
    assert plan_for(torch.device("cpu"), vocab) == cpu
    assert plan_for(torch.device("cuda"), vocab) == accelerator
    assert 32 <= cpu.rows <= 256
    assert 4 * vocab * cpu.rows <= CPU_BYTES
    # As wide as they may be, a run is long enough that its launches are no more than its passes.
    assert accelerator.rows >= 300
    assert 0.9 * 2**30 < 12 * vocab * accelerator.rows <= 2**30
    assert accelerator.rows_of_passes == accelerator.rows
    assert not accelerator.reads_back


def test_captures_that_share_scratch_give_the_same_bytes_and_hold_one_set(oracle):
    logits = torch.from_numpy(oracle.logits_rows(3, 20, 300))
    arguments = (torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.int64), torch.arange(20))
    scratch, specs = Scratch(), [CaptureSpec(), CaptureSpec(mode="topk", k=5), CaptureSpec(tau=0.02, seed=4)]
    sizes = set()
    for spec in specs * 2:
        alone = RecordCapture(spec, 300)(logits.clone(), *arguments)
        shared = RecordCapture(spec, 300, scratch=scratch)(logits.clone(), *arguments)
        assert torch.equal(pack_wire(alone, 300), pack_wire(shared, 300))
        sizes.add(sum(buffer.nbytes for buffer in scratch._buffers.values()))
    assert len(sizes) == 1
