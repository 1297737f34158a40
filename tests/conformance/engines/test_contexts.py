"""Captures under a context and of some positions, on a real teacher: the records of context and document."""

import numpy as np
import pytest

from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.engine import CaptureTask
from tests.support.services.engine_captures import MAX_LENGTH, SPEC, captured, dense_logprobs, rows_of

CONTEXT, OWN_START = 40, 3
"""Tokens of context, and how many of a document's first ones it stands in place of."""


def under_context(documents):
    """Tasks that read the beginning of one document before others, some in place of their beginning, or in part."""
    shared = documents[0][:CONTEXT].astype(np.uint32)
    halves = np.array([[10, 14], [30, 31]], np.uint32)
    shapes = [
        (ContextTokens(token_ids_C=shared), None),
        (ContextTokens(token_ids_C=shared, replaced=1), halves),
        (ContextTokens(token_ids_C=shared, replaced=OWN_START), np.array([[OWN_START - 1, 50]], np.uint32)),
        (ContextTokens(token_ids_C=documents[0][:300].astype(np.uint32)), halves),
        (None, halves),
        (ContextTokens(token_ids_C=documents[0][:300].astype(np.uint32)), None),
    ]
    ids = documents[5]
    return [
        CaptureTask(key=f"shape {number}", token_ids_L=ids, context=context, recorded_R2=recorded)
        for number, (context, recorded) in enumerate(shapes)
    ]


@pytest.fixture(scope="session")
def dense_under_context(teacher_folder, documents):
    """A plain forward pass over context and document, float64, all rows."""
    tasks = under_context(documents)
    read = [task.token_ids_L if task.context is None else task.read_ids for task in tasks]
    return dense_logprobs(teacher_folder, read)


def worst_difference(document, logprobs_RV, shift):
    """Between the stored log-probability of each next token and the dense one in the row `shift` behind."""
    records, positions = document.records, document.extent.positions(len(document.token_ids_L))
    next_ids = document.token_ids_L[positions + 1]
    at_next = records.head_ids_H == next_ids[rows_of(records.head_counts_P)]
    stored = records.head_logprobs_H[at_next]
    assert len(stored) == len(positions)
    return np.abs(stored - logprobs_RV[positions + shift, next_ids]).max()


def test_records_under_a_context_are_those_of_context_and_document(engine, documents, dense_under_context):
    """The first document under each context fills vLLM's prefix cache, later ones may read it."""
    tasks = under_context(documents)
    for _ in range(2 if engine.identity.engine == "vllm" else 1):
        done = captured(engine, tasks)
        for task, logprobs in zip(tasks, dense_under_context, strict=True):
            document = done[task.key]
            assert document.extent == task.extent or np.array_equal(document.extent.recorded_R2, task.recorded_R2)
            assert worst_difference(document, logprobs, task.shift) < 2e-4
            if len(document.records.head_counts_P) > 10:
                assert worst_difference(document, logprobs, task.shift - 1) > 1, "shifted by one is seen"
    alone = captured(engine, [CaptureTask(key="alone", token_ids_L=documents[5])])["alone"]
    assert worst_difference(alone, dense_under_context[5], tasks[5].shift) > 0.5, "the context makes a difference"


def test_records_of_some_positions_are_those_of_a_whole_capture(engine, documents):
    """Byte for byte in draws: they are keyed by the document's tokens and the position, whatever else is recorded."""
    ids = documents[1]
    ranges = np.array([[0, 1], [5, 6], [100, 180], [200, 201], [330, 332]], np.uint32)
    whole = captured(engine, [CaptureTask(key=0, token_ids_L=ids)])[0].records
    part = captured(engine, [CaptureTask(key=0, token_ids_L=ids, recorded_R2=ranges)])[0].records
    keep = np.zeros(len(ids) - 1, dtype=np.bool_)
    keep[np.concatenate([np.arange(start, stop) for start, stop in ranges])] = True
    same = whole.select(keep)
    assert np.array_equal(part.tail_ids_N, same.tail_ids_N)
    assert np.array_equal(part.head_ids_H, same.head_ids_H)
    np.testing.assert_allclose(part.head_logprobs_H, same.head_logprobs_H, atol=1e-4)


def test_what_lies_in_the_prefix_cache_is_computed_again_where_it_is_recorded(engine, documents):
    """Documents that go on alike behind their context: a cached prefix reaches into what must be recorded."""
    context = ContextTokens(token_ids_C=documents[0][:300].astype(np.uint32))
    ids = documents[1][:300]
    other = ids.copy()
    other[-1] = 17
    tasks = [CaptureTask(key=n, token_ids_L=row, context=context) for n, row in enumerate([ids, other, ids])]
    done = [captured(engine, [task])[task.key].records for task in tasks]
    for records in done[1:]:
        assert records.num_positions == 299
        assert np.array_equal(records.head_ids_H[:500], done[0].head_ids_H[:500])


def test_a_context_that_leaves_no_room_is_refused(engine, documents):
    context = ContextTokens(token_ids_C=np.resize(documents[0], MAX_LENGTH - 10).astype(np.uint32))
    wide = ContextTokens(token_ids_C=np.array([engine.identity.vocab_size], np.uint32))
    tasks = [CaptureTask(key=n, token_ids_L=documents[6], context=each) for n, each in enumerate([context, wide])]
    errors = {result.key: result.error for result in engine.capture(tasks, SPEC)}
    assert f"20 tokens under a context of {MAX_LENGTH - 10} exceeds the teacher's {MAX_LENGTH}" in errors[0]
    assert "outside the teacher's vocabulary" in errors[1]
