"""A student's hint losses against both live models: values, gradients, selections, and the trainer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from logitcask_consumer.data import open_casks
from logitcask_consumer.hints import HintMismatchError, HintObjective
from logitcask_consumer.hints.bound import HintPlan, hint_modules
from logitcask_consumer.hints.teacher_folder import TeacherShape
from logitcask_consumer.methods import TokenMethod
from logitcask_consumer.student.forward import attach
from logitcask_consumer.student.layer_states import StatePlace, noted_states, state_rows
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_consumer.weights import Weights
from logitcask_schemas.record.hint_spec import HintSpec
from tests.consumer.hints.test_hint_formulas import relation_of_document
from tests.support.consumer.cask_builder import save_teacher, tiny_model, tiny_tokenizer
from tests.support.consumer.hinted_casks import DOCUMENTS, HIDDEN, dataset_of, documents_in, positions_of
from tests.support.consumer.live_states import live_states

LIVE = {
    "cosine": lambda s, t: 1 - torch.nn.functional.cosine_similarity(s, t, dim=-1),
    "pkd": lambda s, t: ((s / s.norm(dim=-1, keepdim=True) - t / t.norm(dim=-1, keepdim=True)) ** 2).sum(-1),
    "mse": lambda s, t: ((s - t) ** 2).mean(-1),
}


def loss_and_task(place, hints, teacher, student, sequences, **options):
    """Values [L, T] of hint losses on a student, by its own forward, and the batch."""
    dataset = dataset_of(place, **options)
    attach(student)
    shape = TeacherShape.read(teacher[0])
    plan = HintPlan.of(HintObjective.parse(hints), student, dataset, shape)
    on = plan.on(student, dataset, shape)
    method = TokenMethod(hints=hints, teacher=teacher[0])
    loss = method.on(student, dataset)
    batch = loss.collator(dataset.read(sequences))
    task = on.task(batch["hints"], batch["documents"], 0.0)
    return loss, batch, task, dataset


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_a_students_loss_is_that_of_both_live_models(casks, teacher, name, packing):
    """Layer 2 of 2 of the student from 4 of 4, and 1 from 2; one layer or one position off is another value."""
    student = tiny_model(layers=2, seed=5).double()
    which = {"cosine": "cosine:layer=1:2", "pkd": "pkd:map=1:2/2:4", "mse": "mse:map=1:2/2:4"}[name]
    pairs = [(1, 1)] if name == "cosine" else [(1, 1), (2, 2)]
    loss, batch, task, dataset = loss_and_task(casks / "f16", which, teacher, student, [0, 1, 2], packing=packing)
    with torch.no_grad():
        out = student(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            distill=task_with(loss, batch, task),
        )
    starts, documents = positions_of(dataset, batch), documents_in(dataset)
    expected = torch.zeros(len(batch["slots"]), dtype=torch.float64)
    wrong_layer, wrong_position = expected.clone(), expected.clone()
    for row, (number, at) in enumerate(zip(batch["documents"].tolist(), starts.tolist(), strict=True)):
        ours = live_states(student, documents[number], HintSpec(layers=(0, 1, 2)))
        theirs = live_states(teacher[1], documents[number], HIDDEN).double()
        for mine, column in pairs:
            expected[row] += LIVE[name](ours[at, mine], theirs[at, column])
            wrong_layer[row] += LIVE[name](ours[at, mine - 1], theirs[at, column])
            wrong_position[row] += LIVE[name](ours[at, mine], theirs[at + 1, column])
    torch.testing.assert_close(out["states_LT"][0], expected, rtol=3e-3, atol=3e-3)
    for wrong in (wrong_layer, wrong_position):
        assert float((out["states_LT"][0] - wrong).abs().mean()) > 0.05 * float(expected.mean())


def task_with(loss, batch, states):
    return replace(loss.loss.task(batch, 0.0), states=states)


@pytest.mark.parametrize("of", ["v", "qkv"])
def test_relations_are_those_of_both_live_models(casks, teacher, of):
    """A student with other heads and widths; documents lie packed, and are compared each by itself."""
    student = tiny_model(layers=2, seed=5, num_key_value_heads=2).double()
    loss, batch, task, dataset = loss_and_task(casks / of, "relation:heads=4", teacher, student, [0, 1])
    documents = documents_in(dataset)
    with torch.no_grad():
        out = student(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task_with(loss, batch, task)
        )
    parts = ((32,), (16,)) if of == "v" else ((32, 32, 32), (32, 16, 16))
    for number in batch["documents"].unique().tolist():
        ours = live_states(student, documents[number], HintSpec(layers=(2,), of=of))[:-1, 0]
        theirs = live_states(teacher[1], documents[number], HintSpec(layers=(4,), of=of))[:-1, 0].double()
        expected = relation_of_document(ours, theirs, *parts, heads=4)
        got = out["states_LT"][0][batch["documents"] == number]
        torch.testing.assert_close(got, expected, rtol=5e-3, atol=5e-3)
        other_layer = live_states(student, documents[number], HintSpec(layers=(1,), of=of))[:-1, 0]
        wrong = relation_of_document(other_layer, theirs, *parts, heads=4)
        assert float((got - wrong).abs().mean()) > 0.05 * float(expected.mean())


def test_projections_lie_side_by_side_in_whatever_order_an_attention_makes_them():
    """Queries, keys, values, as the teacher's hints have them, also where the values are made first."""
    model = tiny_model()
    place, ids = StatePlace(of="qkv", layer=2), torch.arange(2, 9)[None]
    attention = model.model.layers[1].self_attn

    def noted():
        with noted_states(model, [place]) as states:
            model.model(input_ids=ids)
        return state_rows(states, place, torch.arange(7))

    expected, plain = noted(), attention.forward

    def values_first(hidden_states, *args, **kwargs):
        made, v_proj = attention.v_proj(hidden_states), attention.v_proj
        del attention.v_proj
        attention.v_proj = lambda _: made
        try:
            return plain(hidden_states, *args, **kwargs)
        finally:
            del attention.v_proj
            attention.v_proj = v_proj

    attention.forward = values_first
    torch.testing.assert_close(noted(), expected)


def test_relations_need_whole_documents(casks, teacher):
    longest = max(map(len, DOCUMENTS)) - 1
    method = TokenMethod(hints="relation:heads=4", teacher=teacher[0], tokenizer=tiny_tokenizer()).bound(
        open_casks(casks / "v", tokenizer_fingerprint=None)
    )
    options: dict[str, Any] = {"overlap": 0, "packing": "best_fit", "seed": 0}
    with pytest.raises(HintMismatchError, match=f"longest has {longest}, .*give --seq-len {longest}"):
        method.dataset(open_casks(casks / "v", tokenizer_fingerprint=None), seq_len=longest - 1, **options)
    assert len(method.dataset(open_casks(casks / "v", tokenizer_fingerprint=None), seq_len=longest, **options))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_a_plain_forward_pass(casks, teacher, checkpointing):
    """Of the formulas over `output_hidden_states` of each document alone; with and without recomputed activations."""
    student = tiny_model(layers=2, seed=5).double()
    loss, batch, _, dataset = loss_and_task(
        casks / "f16", "pkd:map=1:2/2:4@0.7 + cosine:layer=0:0@0.3", teacher, student, [0, 1]
    )
    if checkpointing:
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
        student.train()
    loss.value(student, batch, 0.0).loss.backward()
    plain = tiny_model(layers=2, seed=5).double()
    attach(plain)
    total = TokenMethod().on(plain, dataset).value(plain, batch, 0.0).loss
    for number in batch["documents"].unique().tolist():
        document = documents_in(dataset)[number]
        ids = torch.from_numpy(document.astype(np.int64))[None]
        ours = plain(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        theirs = live_states(teacher[1], document, HIDDEN)[:-1].double()
        total = total + 0.7 * LIVE["pkd"](ours[1][0, :-1], theirs[:, 1]).sum()
        total = total + 0.7 * LIVE["pkd"](ours[2][0, :-1], theirs[:, 2]).sum()
        total = total + 0.3 * LIVE["cosine"](ours[0][0, :-1], theirs[:, 0]).sum()
    total.backward()
    for (name, mine), (_, expected) in zip(student.named_parameters(), plain.named_parameters(), strict=True):
        size = float(expected.grad.abs().max())
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-3, atol=1e-3 * size, msg=name)


def test_the_loss_is_the_weighted_sum_and_metrics_name_each(casks, teacher):
    student = tiny_model(layers=2, seed=5).double()
    hints = "pkd:map=uniform@0.7 + mse:map=1:2,projection=learned@linear(0.5,0)"
    loss, batch, _, dataset = loss_and_task(casks / "f16", hints, teacher, student, [0, 1])
    plain = TokenMethod().on(tiny_model(layers=2, seed=5).double(), dataset)
    with torch.no_grad():
        both, half = loss.value(student, batch, 0.0), loss.value(student, batch, 0.5)
        attach(bare := tiny_model(layers=2, seed=5).double())
        alone = plain.value(bare, batch, 0.0)
    assert loss.num_sums == len(both.sums)
    metrics = loss.metrics(both.sums.tolist())
    pkd, mse = metrics["hint/pkd"], metrics['hint/mse:map="1:2",projection=learned']
    count = len(batch["slots"])
    assert float(both.loss - alone.loss) == pytest.approx((0.7 * pkd + 0.5 * mse) * count, rel=1e-6)
    assert float(half.loss - alone.loss) == pytest.approx((0.7 * pkd + 0.25 * mse) * count, rel=1e-6)
    for name in ("kd", "ce", "kl", "teacher_entropy", "positions"):
        assert metrics[name] == pytest.approx(plain.metrics(alone.sums.tolist())[name], rel=1e-6)


def test_a_selection_of_positions_selects_their_hints(casks, teacher):
    """entropy_top trains a share of the positions; hints count there and nowhere else."""
    student = tiny_model(layers=2, seed=5).double()
    attach(student)
    dataset = dataset_of(casks / "f16", weights=Weights.parse("entropy_top:keep=0.25"))
    method = TokenMethod(hints="pkd:map=2:4", teacher=teacher[0])
    loss = method.on(student, dataset)
    batch = loss.collator(dataset.read([0, 1]))
    whole = TokenMethod(hints="pkd:map=2:4", teacher=teacher[0]).on(student, dataset_of(casks / "f16"))
    with torch.no_grad():
        task = task_with(loss, batch, loss.hints.task(batch["hints"], batch["documents"], 0.0))
        chosen = student(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        all_task = task_with(whole, batch, whole.hints.task(batch["hints"], batch["documents"], 0.0))
        everything = student(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=all_task)
    rows = chosen["rows_T"]
    assert 0 < len(rows) < len(batch["slots"])
    torch.testing.assert_close(chosen["states_LT"], everything["states_LT"][:, rows])


def test_modules_are_made_once_and_not_mixed(casks, teacher):
    student = tiny_model(layers=2, seed=5)
    attach(student)
    dataset = dataset_of(casks / "f16")
    TokenMethod(hints="mse:projection=learned", teacher=teacher[0]).on(student, dataset)
    first = hint_modules(student)
    TokenMethod(hints="mse:projection=learned", teacher=teacher[0]).on(student, dataset_of(casks / "f16", seq_len=32))
    assert hint_modules(student) is first
    with pytest.raises(HintMismatchError, match="projections of other hint losses"):
        TokenMethod(hints="pkd", teacher=teacher[0]).on(student, dataset)


@pytest.mark.parametrize("options", [{"hints": "pkd"}, {"target": "dense"}])
def test_a_dataset_that_reads_no_hints_is_refused(casks, teacher, options):
    student = tiny_model(layers=2)
    attach(student)
    with pytest.raises(HintMismatchError, match=r"hints=True\), also to evaluate"):
        TokenMethod(teacher=teacher[0], **options).on(student, dataset_of(casks / "f16", hints=False))


def test_a_trainer_trains_and_evaluates_with_hints(casks, teacher, tmp_path):
    """The documentation's lines of Python."""
    student = tiny_model(layers=2, seed=5)
    args = DistillConfig(output_dir=str(tmp_path), max_steps=2, report_to="none", use_cpu=True, logging_steps=1)
    trainer = DistillTrainer(
        student,
        args,
        dataset_of(casks / "f16"),
        eval_dataset=dataset_of(casks / "f16", seq_len=32),
        method=TokenMethod(hints="pkd:map=uniform@0.5", teacher=teacher[0]),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_hint/pkd"] > after["eval_hint/pkd"] > 0
    assert before["eval_loss"] == pytest.approx(before["eval_kd"] + 0.5 * before["eval_hint/pkd"], rel=1e-5)


def test_a_folder_that_is_not_the_teachers_is_refused(casks, tmp_path):
    save_teacher(tmp_path / "other", hidden_size=48)
    student = tiny_model(layers=2)
    with pytest.raises(
        HintMismatchError, match=r"has 4 layers and hidden vectors of 48 numbers; the cask has hints of"
    ):
        TokenMethod(hints="pkd", teacher=tmp_path / "other").check(student, dataset_of(casks / "f16"))
    with pytest.raises(HintMismatchError, match="where each begins says the teacher's config"):
        TokenMethod(hints="relation:heads=4").check(student, dataset_of(casks / "qkv"))
