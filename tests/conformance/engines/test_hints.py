"""Hints of every engine on a real teacher are those of plain Hugging Face, however prompts are cut and batched.

The teacher's residual stream has channels of some ten thousand, so the codecs are tried on what they were made for.
"""

import numpy as np
import pytest
import torch

from logitcask_schemas.errors import CaptureSpecError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.engine import CaptureTask
from tests.support.services.engine_captures import MAX_LENGTH, SPEC, captured, start_engine, tasks_of
from tests.support.services.engine_hints import hidden_of, projections_of, relative_error

LAYERS = (0, 1, 15, 29, 30)
F16 = HintSpec(layers=LAYERS)
VALUES = HintSpec(layers=(1, 16, 30), of="qkv")
ENGINES = ["transformers", pytest.param("vllm", marks=pytest.mark.engine)]


@pytest.fixture(scope="module", params=ENGINES)
def hint_engine(request, teacher_folder):
    pytest.importorskip(request.param)
    engine = start_engine(request.param, teacher_folder, MAX_LENGTH, hints=F16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def model(teacher_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32, attn_implementation="eager")


@pytest.fixture(scope="module")
def hidden(model, documents):
    return [hidden_of(model, ids, LAYERS) for ids in documents]


def spec_of(hints):
    return SPEC.model_copy(update={"hints": hints})


def test_hidden_states_are_those_of_hugging_face(hint_engine, documents, hidden):
    """The longest documents come in several steps."""
    done = captured(hint_engine, tasks_of(documents), spec_of(F16))
    assert max(np.abs(states).max() for states in hidden) > 5_000  # it has the outliers that it is known for
    for task, expected in zip(tasks_of(documents), hidden, strict=True):
        rows = done[task.key].hints
        assert rows.width == 576
        assert relative_error(rows, expected[:-1]) <= 1e-3
    # The control: layers are not mixed up, nor positions.
    first = done["document 0"].hints
    assert relative_error(first, np.roll(hidden[0][:-1], 1, axis=1)) > 0.5
    assert relative_error(first, hidden[0][1:]) > 0.5


def test_one_byte_a_number_keeps_them_to_a_hundredth(hint_engine, documents, hidden):
    done = captured(hint_engine, tasks_of(documents), spec_of(F16.model_copy(update={"codec": "i8"})))
    for task, expected in zip(tasks_of(documents), hidden, strict=True):
        assert relative_error(done[task.key].hints, expected[:-1]) <= 1e-2


def test_records_are_those_without_hints(hint_engine, documents):
    tasks = tasks_of(documents[4:])
    plain, beside = captured(hint_engine, tasks), captured(hint_engine, tasks, spec_of(F16))
    for task in tasks:
        assert plain[task.key].hints is None
        np.testing.assert_array_equal(plain[task.key].records.head_ids_H, beside[task.key].records.head_ids_H)
        np.testing.assert_allclose(
            plain[task.key].records.head_logprobs_H, beside[task.key].records.head_logprobs_H, atol=2e-5
        )


def test_some_layers_and_the_last_token_of_what_was_loaded(hint_engine, documents, hidden):
    last = HintSpec(layers=(15, 30), positions="last")
    done = captured(hint_engine, tasks_of(documents), spec_of(last))
    for task, expected in zip(tasks_of(documents), hidden, strict=True):
        assert relative_error(done[task.key].hints, expected[-1:, [2, 4]]) <= 1e-3


def test_company_does_not_change_them(hint_engine, documents):
    task = tasks_of(documents)[4]
    alone = captured(hint_engine, [task], spec_of(F16))[task.key].hints
    together = captured(hint_engine, tasks_of(documents), spec_of(F16))[task.key].hints
    assert relative_error(alone, together.decode()) <= 1e-4


def test_contexts_and_ranges(hint_engine, model, documents):
    context = ContextTokens(token_ids_C=documents[0][:40].astype(np.uint32), replaced=1)
    long = ContextTokens(token_ids_C=documents[0][:300].astype(np.uint32))
    some = np.array([[10, 14], [30, 31]], np.uint32)
    ids = documents[5]
    tasks = [
        CaptureTask(key=key, token_ids_L=ids, context=context, recorded_R2=recorded)
        for key, (context, recorded) in enumerate([(context, None), (long, some), (None, some), (long, some)])
    ]
    for positions in ("all", "last"):
        spec = F16.model_copy(update={"positions": positions})
        done = captured(hint_engine, tasks, spec_of(spec))
        for task in tasks:
            expected = hidden_of(model, task.read_ids, LAYERS)
            rows = task.extent.positions(len(ids)) + task.shift if positions == "all" else [-1]
            assert relative_error(done[task.key].hints, expected[rows]) <= 1e-3


def test_what_was_not_loaded_is_refused(hint_engine):
    if hint_engine.identity.engine == "transformers":
        pytest.skip("it gives every layer, whatever it was loaded with")
    assert not hint_engine.gives_hints(HintSpec(layers=(2,)))
    with pytest.raises(CaptureSpecError, match="loaded without hints"):
        next(hint_engine.capture([], CaptureSpec(hints=HintSpec(layers=(2,)))))


@pytest.mark.parametrize("kind", ENGINES)
def test_projections_are_those_of_hugging_face(kind, teacher_folder, model, documents):
    pytest.importorskip(kind)
    engine = start_engine(kind, teacher_folder, MAX_LENGTH, hints=VALUES)
    try:
        for hints in (VALUES, HintSpec(layers=VALUES.layers, of="v")) if kind == "transformers" else (VALUES,):
            done = captured(engine, tasks_of(documents[2:]), spec_of(hints))
            for task in tasks_of(documents[2:]):
                expected = projections_of(model, task.token_ids_L, hints.layers, hints.of)
                assert relative_error(done[task.key].hints, expected[:-1]) <= 1e-3
    finally:
        engine.close()
