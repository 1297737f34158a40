"""Hints of the reference engine are what plain Hugging Face says: layers, projections, contexts, batches, ranges."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from logitcask_schemas.errors import CaptureSpecError, ModelError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.factory import load_engine
from tests.support.services.engine_hints import hidden_of, projections_of, relative_error

TASKS = [
    CaptureTask(key=i, token_ids_L=np.random.default_rng(i).integers(2, 300, length).astype(np.uint32))
    for i, length in enumerate([5, 40, 2, 90])
]


@pytest.fixture(scope="module")
def engine(tiny_llama):
    engine = load_engine("transformers", tiny_llama, options={"batch_documents": 3})
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")


def hints_of(engine, spec, tasks=TASKS):
    results = list(engine.capture(tasks, CaptureSpec(tau=0.02, hints=spec)))
    assert [result.error for result in results] == [None] * len(tasks)
    return [result.document.hints for result in results]


def test_hidden_states_are_those_of_hugging_face(engine, model):
    blocks = model.config.num_hidden_layers
    spec = HintSpec(layers=tuple(range(blocks + 1)))
    for task, rows in zip(TASKS, hints_of(engine, spec), strict=True):
        expected = hidden_of(model, task.token_ids_L, spec.layers)
        assert relative_error(rows, expected[:-1]) <= 1e-3
        # The control: those of the token before are others.
        assert len(expected) < 4 or relative_error(rows, np.roll(expected[:-1], 1, axis=0)) > 0.1


@pytest.mark.parametrize("of", ["v", "qkv"])
def test_projections_are_those_of_hugging_face(engine, model, of):
    spec = HintSpec(layers=(1, 2), of=of)
    for task, rows in zip(TASKS, hints_of(engine, spec), strict=True):
        expected = projections_of(model, task.token_ids_L, spec.layers, of)
        assert rows.width == expected.shape[2] == engine.hint_shape.width(of)
        assert relative_error(rows, expected[:-1]) <= 1e-3


def test_the_last_token_alone(engine, model):
    spec = HintSpec(layers=(1, 2), positions="last")
    for task, rows in zip(TASKS, hints_of(engine, spec), strict=True):
        assert relative_error(rows, hidden_of(model, task.token_ids_L, spec.layers)[-1:]) <= 1e-3


@pytest.mark.parametrize("positions", ["all", "last"])
def test_some_positions_only(engine, model, positions):
    spec = HintSpec(layers=(1,), positions=positions)
    recorded = np.array([[1, 3], [7, 12]], dtype=np.uint32)
    task = CaptureTask(key=0, token_ids_L=TASKS[1].token_ids_L, recorded_R2=recorded)
    (rows,) = hints_of(engine, spec, [task])
    wanted = [-1] if positions == "last" else [1, 2, 7, 8, 9, 10, 11]
    assert relative_error(rows, hidden_of(model, task.token_ids_L, spec.layers)[wanted]) <= 1e-3


def test_codecs_code_what_f16_keeps(engine):
    exact = hints_of(engine, HintSpec(layers=(1, 2), codec="f16"))
    for codec, bound in (("i8", 0.02), ("proj:4096", 0.2)):
        for rows, same in zip(hints_of(engine, HintSpec(layers=(1, 2), codec=codec)), exact, strict=True):
            values = same.decode()
            if codec == "i8":
                assert relative_error(rows, values) <= bound
            else:
                products = np.einsum("rkd,rkd->rk", rows.decode(), rows.decode())
                assert np.allclose(products, (values**2).sum(2), rtol=bound)


def test_without_hints_there_are_none(engine):
    (result,) = engine.capture(TASKS[:1], CaptureSpec(tau=0.02))
    assert result.document.hints is None


def test_tasks_of_other_hints_stand_side_by_side(engine, model):
    own = CaptureSpec(tau=0.02, hints=HintSpec(layers=(2,), of="v"))
    tasks = [TASKS[0], CaptureTask(key=9, token_ids_L=TASKS[1].token_ids_L, spec=own)]
    spec = HintSpec(layers=(1,), codec="f16")
    first, second = hints_of(engine, spec, tasks)
    assert relative_error(first, hidden_of(model, TASKS[0].token_ids_L, (1,))[:-1]) <= 1e-3
    assert relative_error(second, projections_of(model, TASKS[1].token_ids_L, (2,), "v")[:-1]) <= 1e-3


def test_layers_that_are_not_resolved_are_refused(engine):
    with pytest.raises(CaptureSpecError, match="counted from 0"):
        next(engine.capture(TASKS, CaptureSpec(hints=HintSpec(layers=(-1,)))))


def test_layers_that_the_teacher_has_not_are_refused(tiny_llama):
    with pytest.raises(CaptureSpecError, match="layers"):
        load_engine("transformers", tiny_llama, hints=HintSpec(layers=(77,)))


def test_hidden_states_that_are_not_finite_are_a_fault_of_the_document(engine, monkeypatch):
    def broken(self, *args):
        heard, logits = plain(self, *args)
        return {key: torch.full_like(rows, float("inf")) for key, rows in heard.items()}, logits

    plain = type(engine)._heard
    monkeypatch.setattr(type(engine), "_heard", broken)
    (result,) = engine.capture(TASKS[:1], CaptureSpec(hints=HintSpec(layers=(1,), codec="i8")))
    assert result.document is None
    assert "not finite" in result.error


def test_an_attention_without_known_projections_is_refused(engine, monkeypatch):
    from logitcask_services.engines import projections

    monkeypatch.setattr(projections, "_SEPARATE", ("q_proj", "k_proj", "w_proj"))
    with pytest.raises(ModelError, match="cannot be told apart"):
        next(engine.capture(TASKS, CaptureSpec(hints=HintSpec(layers=(1,), of="v"))))


@pytest.mark.parametrize("fused", ["qkv_proj", "c_attn"])
def test_fused_projections_are_cut(fused):
    from logitcask_services.engines.hint_shape import HintShape
    from logitcask_services.engines.projections import listen

    block = torch.nn.Module()
    block.attn = torch.nn.Module()
    setattr(block.attn, fused, torch.nn.Linear(3, 8))
    model = torch.nn.Module()
    model.h = torch.nn.ModuleList([block])
    shape = HintShape(num_blocks=1, hidden_width=3, num_heads=2, num_kv_heads=1, head_dim=2)
    heard = {}
    listen(model, 1, "v", shape, lambda layer, rows: heard.update({("v", layer): rows}))
    listen(model, 1, "qkv", shape, lambda layer, rows: heard.update({("qkv", layer): rows}))
    made = getattr(block.attn, fused)(torch.ones(5, 3))
    assert torch.equal(heard["qkv", 1], made)
    assert torch.equal(heard["v", 1], made[:, 6:])
    assert isinstance(HintRows.encode(made.detach().numpy()[:, None], HintSpec(layers=(1,))), HintRows)
