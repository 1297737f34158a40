"""FSDP2 over gloo on two processes: hint losses, and gradients of student and projections, are those of one process.

A run goes on from a checkpoint as if it had not been interrupted, and one process can go on from it as well.
"""

import pytest
import torch

from logitcask_consumer.hints.bound import HINTS_NAME
from logitcask_consumer.hints.checkpoints import PROJECTIONS_NAME, learned_projections, load_projections
from logitcask_consumer.run_document import RunFolderError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher
from tests.support.consumer.hint_fsdp_worker import hinted_student
from tests.support.consumer.two_processes import run_in_two_processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hint_fsdp")
    spec = CaptureSpec(tau=0.05, hints=HintSpec(layers=(0, 2, 4)))
    build_cask(folder / "cask", save_teacher(folder / "teacher"), random_documents(30), spec=spec, per_shard=16)
    return folder


def test_a_sharded_student_has_the_gradients_of_one_process(place):
    run_in_two_processes("hint_fsdp_worker", place / "cask", place / "teacher", place)
    first, second = (torch.load(place / f"hints-{rank}.pt", weights_only=True) for rank in (0, 1))
    model, loss, dataset = hinted_student(place / "cask", place / "teacher")
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


def test_a_sharded_student_goes_on_with_its_projections(place):
    run_in_two_processes("hint_resume_worker", place / "cask", place / "teacher", place)
    first, second = (torch.load(place / f"resumed-{rank}.pt", weights_only=True) for rank in (0, 1))
    learned = [name for name in first["whole"] if name.startswith(HINTS_NAME)]
    assert len(learned) == 2
    for name, expected in first["whole"].items():
        for found in (first, second):
            torch.testing.assert_close(found["resumed"][name], expected, rtol=0, atol=0, msg=name)
    # The controls: steps move the projections, and a run that had forgotten them ends elsewhere.
    for name in learned:
        assert not torch.equal(first["half"][name], first["whole"][name])
    assert any(not torch.equal(first["forgetful"][name], expected) for name, expected in first["whole"].items())
    # One process reads what two have written.
    model, _, _ = hinted_student(place / "cask", place / "teacher")
    load_projections(model, place / "checkpoint")
    for name, value in learned_projections(model).items():
        assert torch.equal(value, first["half"][f"{HINTS_NAME}.{name}"]), name
    (place / "checkpoint" / PROJECTIONS_NAME).unlink()
    with pytest.raises(RunFolderError, match="cannot be read"):
        load_projections(model, place / "checkpoint")
