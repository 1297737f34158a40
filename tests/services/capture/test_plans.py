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
from tests.support.services.operation_counts import Operations


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


COUNTED = {
    "threshold": (CaptureSpec(), 165, 5),
    "threshold 1/50, multinomial": (CaptureSpec(tau=1 / 50, sampler="multinomial"), 170, 5),
    "threshold, one temperature": (CaptureSpec(temperatures=(2.0,), pinned_ids=(4,)), 175, 5),
    "topk": (CaptureSpec(mode="topk", k=8), 118, 3),
    "sampled": (CaptureSpec(mode="sampled"), 115, 3),
}
PHILOX = 90
"""Kernels of the numbers that a call draws with, however many rows it has."""


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("runs", [1, 3])
def test_a_run_on_an_accelerator_launches_little_and_waits_seldom(oracle, name, runs):
    """Bounds a little above what it takes: one run of any number of rows, and the uniforms once for all runs."""
    spec, kernels, waits = COUNTED[name]
    rows = 150
    logits = torch.from_numpy(oracle.logits_rows(1, rows * runs, 1024))
    arguments = (torch.zeros(rows * runs, dtype=torch.int64), torch.zeros(rows * runs, dtype=torch.int64))
    capture = RecordCapture(spec, 1024, plan=replace(accelerator_plan(1024), rows=rows, rows_of_passes=rows))
    capture(logits[:2].clone(), *(column[:2] for column in arguments), torch.arange(2))  # constants go over once
    given = logits.clone()
    with Operations() as counted:
        capture(given, *arguments, torch.arange(rows * runs))
    joins = 12  # of the runs' columns
    assert counted.kernels.total() <= PHILOX + runs * kernels + (joins if runs > 1 else 0), str(counted)
    assert counted.waits == {"nonzero": waits * runs}, str(counted)


def test_the_plan_of_a_cpu_waits_often_there():
    """The control: counts do tell a plan that looks at values from one that does not."""
    capture = RecordCapture(CaptureSpec(), 1024, plan=cpu_plan(1024))
    column, logits = torch.arange(64), torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    with Operations() as counted:
        capture(logits, column, column, column)
    assert counted.waits["_local_scalar_dense"] >= 8


def test_hidden_waits_are_counted():
    with Operations() as counted:
        column = torch.arange(4)
        column[column > 1]
        column.clone()[column > 1] = 0
        torch.bincount(column)
        column.repeat_interleave(column)
        torch.tensor([1, 2])
    assert counted.waits == {"index": 1, "index_put_": 1, "bincount": 1, "repeat_interleave": 1, "tensor": 1}


@pytest.mark.parametrize("spec", [CaptureSpec(tail_logprobs=True, temperatures=(2.0, 0.5)), CaptureSpec(mode="topk")])
def test_columns_come_home_in_one_copy(oracle, spec):
    logits = torch.from_numpy(oracle.logits_rows(1, 20, 300))
    column = torch.arange(20)
    columns = RecordCapture(spec, 300)(logits, column, column, column)
    copies = []

    def copied(buffer):
        copies.append(buffer)
        return buffer.clone()

    moved = columns.in_one_copy(copied)
    assert len(copies) == 1
    assert torch.equal(pack_wire(moved, 300), pack_wire(columns, 300))
    assert list(moved.position_columns) == list(columns.position_columns)
    assert columns.on_host() is columns
