"""What every engine must do, on a real teacher: agree with a plain forward pass, stream, stop, name faults."""

import itertools
import os
import signal

import numpy as np
import pytest

from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.engines.engine import CaptureTask, EngineError
from tests.support.services.engine_captures import SPEC, captured, dense_logprobs, rows_of, tasks_of


@pytest.fixture(scope="module")
def records(engine, documents):
    found = captured(engine, tasks_of(documents))
    return [found[f"document {i}"].records for i in range(len(documents))]


def test_every_document_has_one_position_less_than_tokens(records, documents):
    assert [r.num_positions for r in records] == [len(ids) - 1 for ids in documents]
    for r in records:
        r.check(49_152, where="conformance")


def test_head_ids_agree_with_a_plain_forward_pass(records, documents, dense):
    agreeing = entries = 0
    for r, ids, logprobs in zip(records, documents, dense, strict=True):
        expected = logprobs >= np.log(SPEC.tau)
        rows = np.arange(len(logprobs))
        expected[rows, logprobs.argmax(-1)] = True
        expected[rows, ids[1:]] = True
        expected[:, SPEC.pinned_ids] = True
        got = np.zeros_like(expected)
        got[rows_of(r.head_counts_P), r.head_ids_H] = True
        assert got.sum() == len(r.head_ids_H)
        agreeing += int((got & expected).sum())
        entries += int((got | expected).sum())
    assert agreeing / entries >= 0.999, f"{entries - agreeing} of {entries} head entries differ"


def test_values_agree_with_a_plain_forward_pass(records, dense):
    for r, logprobs in zip(records, dense, strict=True):
        head, tail = rows_of(r.head_counts_P), rows_of(r.tail_counts_P)
        t = np.exp(logprobs)
        np.testing.assert_allclose(r.head_logprobs_H, logprobs[head, r.head_ids_H], atol=1e-3)
        np.testing.assert_allclose(r.tail_logprobs_N, logprobs[tail, r.tail_ids_N], atol=1e-3)
        np.testing.assert_allclose(r.entropy_P, -(t * logprobs).sum(-1), atol=1e-3)
        np.testing.assert_allclose(r.log_z_PT[:, 0], np.log((t**0.5).sum(-1)), atol=1e-3)
        covered = t.copy()
        covered[head, r.head_ids_H] = 0
        np.testing.assert_allclose(np.exp(r.log_tail_mass_P), covered.sum(-1), atol=1e-4)


def test_the_next_token_and_pinned_ids_are_in_every_head(records, documents):
    for r, ids in zip(records, documents, strict=True):
        rows = rows_of(r.head_counts_P)
        for next_ids in (ids[1:], np.zeros(len(ids) - 1), np.full(len(ids) - 1, 2)):
            assert len(np.unique(rows[r.head_ids_H == next_ids[rows]])) == len(ids) - 1


def test_draws_do_not_depend_on_company_or_chunks(engine, records, documents):
    """Alone, a document meets other chunk boundaries than among others; ids and draws stay, but for logit noise."""
    same = total = 0
    for i in (0, 1, 3):
        alone = captured(engine, [CaptureTask(key="alone", token_ids_L=documents[i])])["alone"].records
        for a, b in ((alone.head_ids_H, records[i].head_ids_H), (alone.tail_ids_N, records[i].tail_ids_N)):
            if len(a) == len(b):
                same += int((a == b).sum())
            total += max(len(a), len(b))
    assert same / total >= 0.999


def test_tasks_with_specs_of_their_own_stand_among_others(engine, documents):
    """And None between them, which is no end."""
    specs = [CaptureSpec(mode="topk", k=5), None, CaptureSpec(mode="sampled", draws=9)]
    wanted = {f"{i} {j}": (ids, spec) for i, spec in enumerate(specs) for j, ids in enumerate(documents[-3:])}
    tasks = [CaptureTask(key=key, token_ids_L=ids, spec=spec) for key, (ids, spec) in wanted.items()]
    mixed = [each for task in tasks for each in (None, task)]
    found = {result.key: result for result in engine.capture(mixed, SPEC)}
    assert {key: result.error for key, result in found.items()} == dict.fromkeys(wanted)
    for key, (ids, spec) in wanted.items():
        alone = captured(engine, [CaptureTask(key=key, token_ids_L=ids)], spec or SPEC)[key].records
        assert found[key].document.records.position_columns.keys() == alone.position_columns.keys()
        same = found[key].document.records.head_ids_H
        assert len(same) == len(alone.head_ids_H)
        assert (same == alone.head_ids_H).mean() > 0.99
    outside = CaptureTask(key="outside", token_ids_L=documents[-1], spec=CaptureSpec(pinned_ids=(50_000,)))
    (refused,) = engine.capture([outside], SPEC)
    assert "pinned ids [50000] are outside" in refused.error


def test_specs_change_from_one_capture_to_the_next(engine, documents):
    tasks = tasks_of(documents[-3:])
    topk = captured(engine, tasks, CaptureSpec(mode="topk", k=5))
    sampled = captured(engine, tasks, CaptureSpec(mode="sampled", draws=9))
    other_seed = captured(engine, tasks, CaptureSpec(mode="sampled", draws=9, seed=1))
    for task in tasks:
        assert set(topk[task.key].records.head_counts_P.tolist()) <= {5, 6}
        assert len(topk[task.key].records.tail_ids_N) == 0
        assert topk[task.key].records.head_logprobs_H.dtype == np.float16
        assert set(sampled[task.key].records.tail_counts_P.tolist()) == {9}
        assert (sampled[task.key].records.tail_ids_N != other_seed[task.key].records.tail_ids_N).mean() > 0.2


def test_faults_belong_to_their_document(engine, documents):
    assert engine.max_model_len == 700
    faulty = {
        "long": (np.ones(701, np.uint32), "701 tokens exceeds the teacher's 700"),
        "foreign": (np.array([5, 49_152, 6], np.uint32), "token id 49152 is outside the teacher's vocabulary of 49152"),
        "single": (np.array([5], np.uint32), "needs at least 2 tokens"),
        "empty": (np.array([], np.uint32), "needs at least 2 tokens"),
    }
    tasks = [CaptureTask(key=key, token_ids_L=ids) for key, (ids, _) in faulty.items()]
    tasks.insert(1, CaptureTask(key="good", token_ids_L=documents[-1]))
    tasks.append(CaptureTask(key="shortest", token_ids_L=np.array([5, 6], np.uint32)))
    results = {result.key: result for result in engine.capture(tasks, SPEC)}
    for key, (_, reason) in faulty.items():
        assert results[key].document is None
        assert reason in results[key].error
    assert results["good"].document.records.num_positions == len(documents[-1]) - 1
    assert results["shortest"].document.records.num_positions == 1


def test_the_longest_document_fits(engine):
    document = np.random.default_rng(0).integers(3, 49_000, 700).astype(np.uint16)
    found = captured(engine, [CaptureTask(key="longest", token_ids_L=document)])
    assert found["longest"].records.num_positions == 699


def test_tasks_are_drawn_as_needed_and_closing_aborts(engine, documents):
    drawn = itertools.count()

    def endless():
        for i in drawn:
            yield CaptureTask(key=i, token_ids_L=documents[-1])

    stream = engine.capture(endless(), SPEC)
    first = {next(stream).key for _ in range(3)}
    stream.close()
    assert len(first) == 3
    assert next(drawn) < 1000
    # Nothing of the aborted capture turns up in the next one.
    assert captured(engine, tasks_of(documents[-2:])).keys() == {"document 0", "document 1"}


def test_one_capture_at_a_time(engine, documents):
    if engine.identity.engine != "vllm":
        pytest.skip("plain forward passes do not mind")
    stream = engine.capture(tasks_of(documents[-2:]), SPEC)
    next(stream)
    with pytest.raises(EngineError, match="another capture of this engine is still open"):
        next(engine.capture(tasks_of(documents[-1:]), SPEC))
    assert len(list(stream)) == 1


def test_no_tasks_no_results(engine):
    assert list(engine.capture([], SPEC)) == []


def test_pinned_ids_outside_the_vocabulary_are_refused(engine, documents):
    with pytest.raises(CaptureSpecError, match=r"pinned ids \[50000\] are outside"):
        list(engine.capture(tasks_of(documents[:1]), CaptureSpec(pinned_ids=(50_000,))))


def test_identity(engine, teacher_folder):
    identity = engine.identity
    assert identity.model == teacher_folder.name
    assert identity.vocab_size == 49_152
    assert identity.dtype in ("float32", "bfloat16")
    assert identity.template_hash is not None
    assert identity.engine in ("vllm", "transformers")


@pytest.mark.engine
def test_soft_capped_and_tied_logits_are_the_models_own(odd_engine, odd_teacher):
    """The wrapper on an architecture that is nothing like a Llama: its own logits, not a guess at them."""
    generator = np.random.default_rng(1)
    documents = [generator.integers(3, 1000, length).astype(np.uint16) for length in (250, 100, 30)]
    spec = CaptureSpec(mode="topk", k=20, logprob_codec="f32")
    tasks = [CaptureTask(key=i, token_ids_L=ids) for i, ids in enumerate(documents)]
    found = {result.key: result for result in odd_engine.capture(tasks, spec)}
    dense = dense_logprobs(odd_teacher, documents)
    spreads = np.concatenate([logprobs.max(-1) - logprobs.min(-1) for logprobs in dense])
    assert 6 < spreads.max() <= 8  # the cap of 4 is at work
    for i, logprobs in enumerate(dense):
        assert found[i].error is None
        records = found[i].document.records
        rows = np.repeat(np.arange(records.num_positions), records.head_counts_P)
        np.testing.assert_allclose(records.head_logprobs_H, logprobs[rows, records.head_ids_H], atol=1e-3)


@pytest.mark.engine
def test_a_killed_engine_process_is_reported_and_not_waited_for(odd_engine):
    """Last, since it ends the engine: what the kernel does to a process that takes too much memory."""
    ids = np.random.default_rng(2).integers(3, 1000, 200).astype(np.uint16)
    stream = odd_engine.capture((CaptureTask(key=i, token_ids_L=ids) for i in itertools.count()), CaptureSpec())
    assert next(stream).error is None
    (process,) = odd_engine._engine.engine_core.resources.engine_manager.processes
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="engine process died"):
        list(stream)
    with pytest.raises(EngineError, match="engine process died"):
        next(odd_engine.capture([CaptureTask(key="late", token_ids_L=ids)], CaptureSpec()))
