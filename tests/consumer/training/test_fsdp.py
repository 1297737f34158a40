"""FSDP2 over gloo on two processes: loss and gradients are those of one process, and a run leaves the same student."""

import pytest
import torch

from logitcask_consumer.student.forward import attach
from logitcask_consumer.weights import EntropyTop
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher
from tests.support.consumer.fsdp_worker import loss_of, student
from tests.support.consumer.two_processes import run_in_two_processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    build_cask(folder / "cask", save_teacher(folder / "teacher"), random_documents(30), per_shard=16)
    return folder


@pytest.fixture(scope="module")
def sharded(place):
    """The folder with what two processes found for each way to shard; they start once for all."""
    run_in_two_processes("fsdp_worker", place / "cask", place, "root", "head", "tail", "mixed")
    return place


def found_by(sharded, groups):
    return [torch.load(sharded / f"{groups}-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("groups", ["root", "head", "tail"])
def test_a_sharded_student_has_the_loss_and_gradients_of_one_process(place, sharded, groups):
    """The head in the root's group, in one of its own, and, tied, in one with the embeddings."""
    first, second = found_by(sharded, groups)
    model = student(tied=groups == "tail")
    attach(model)
    for name, selection in (("all", None), ("chosen", EntropyTop(keep=0.3))):
        loss = loss_of(model, place / "cask", [0, 1, 2, 3], selection)
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
        torch.testing.assert_close(first[name] + second[name], loss.detach(), rtol=1e-10, atol=1e-10)
        for key, expected in zip(names, gradients, strict=True):
            torch.testing.assert_close(first[f"{name}:{key}"], expected, rtol=1e-8, atol=1e-10, msg=f"{name} {key}")


def test_mixed_precision_errs_as_one_process_in_bfloat16(place, sharded):
    """Parameters float32, gathered and multiplied in bfloat16, gradients reduced in float32."""
    found = found_by(sharded, "mixed")[0]
    exact, plain = gradients_of(place, torch.float64), gradients_of(place, torch.bfloat16)
    for name, expected in exact.items():
        gradient = found[f"all:{name}"]
        assert gradient.dtype == torch.float32
        error, usual = (float((one.double() - expected).norm()) for one in (gradient, plain[name]))
        # The lower end: in float32 they would err a thousandth of it.
        assert 0.1 * usual < error <= 2.0 * usual + 1e-3 * float(expected.norm()), name


def gradients_of(place, dtype):
    """Of all four sequences, in one process."""
    model = student(tied=False, dtype=dtype)
    attach(model)
    loss_of(model, place / "cask", [0, 1, 2, 3], None).backward()
    return {name: value.grad for name, value in model.named_parameters()}
