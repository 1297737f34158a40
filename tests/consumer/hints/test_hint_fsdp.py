"""FSDP2 over gloo on two processes: hint losses, and gradients of student and projections, are those of one process."""

import torch

from logitcask_consumer.hints.bound import HINTS_NAME
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher
from tests.support.consumer.hint_fsdp_worker import hinted_student
from tests.support.consumer.two_processes import run_in_two_processes


def test_a_sharded_student_has_the_gradients_of_one_process(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    spec = CaptureSpec(tau=0.05, hints=HintSpec(layers=(0, 2, 4)))
    build_cask(tmp_path / "cask", teacher, random_documents(30), spec=spec, per_shard=16)
    run_in_two_processes("hint_fsdp_worker", tmp_path / "cask", tmp_path / "teacher", tmp_path)
    first, second = (torch.load(tmp_path / f"hints-{rank}.pt", weights_only=True) for rank in (0, 1))
    model, loss, dataset = hinted_student(tmp_path / "cask", tmp_path / "teacher")
    value = loss.value(model, loss.collator(dataset.read([0, 1, 2, 3])), 0.0).loss
    value.backward()
    torch.testing.assert_close(first["loss"] + second["loss"], value.detach(), rtol=1e-6, atol=1e-6)
    learned = 0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(first[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
        if name.startswith(HINTS_NAME):
            learned += 1
            saved = first[f"saved:{name.removeprefix(HINTS_NAME + '.')}"]
            torch.testing.assert_close(saved, parameter.detach(), rtol=0, atol=0)
            assert float(parameter.grad.abs().max()) > 0
    assert learned == 2
