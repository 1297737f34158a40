"""Rows of other trainers give the loss and the gradient that this trainer has from the same cask."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.losses import Objective, SparseTarget
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.exchange.row_files import RowOptions, export_rows, largest_width
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import VOCAB, build_cask, random_documents, tiny_model

HIDDEN = 7
SPECS = {
    "threshold": CaptureSpec(tau=0.02),
    "sampled": CaptureSpec(mode="sampled", draws=20),
    "f32": CaptureSpec(tau=0.05, logprob_codec="f32"),
}


@pytest.fixture(scope="module", params=SPECS)
def cask(request, tmp_path_factory):
    """Documents of which some are recorded in part, and some say which tokens are answers."""
    documents = random_documents(6, low=9, high=40)
    recorded = [None] * 6
    recorded[1], recorded[4] = (np.arange(len(documents[n]) - 1) % 3 != n % 3 for n in (1, 4))
    answers = [None, [[2, 6]], [], [[1, 3], [5, 8]], None, None]
    folder = tmp_path_factory.mktemp("casks") / "cask"
    build_cask(
        folder, tiny_model(), documents, spec=SPECS[request.param], per_shard=4, recorded=recorded, answers=answers
    )
    return Cask.open(folder)


def rows_of(cask, folder, **options):
    list(export_rows(cask, folder, RowOptions(**({"width": largest_width(cask)} | options))))
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def student(length):
    generator = torch.Generator().manual_seed(length)
    hidden = torch.randn(length, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, weight


def loss_of_rows(row, *, shift=0):
    """What any trainer does with the columns: weighted cross-entropy at every token, summed."""
    hidden, weight = student(len(row["input_ids"]))
    logprobs = torch.log_softmax(hidden @ weight.T, -1)
    ids = torch.tensor(row["target_ids"]).roll(shift, 0)
    weights = torch.tensor(row["target_weights"], dtype=torch.float64).roll(shift, 0)
    loss = -(weights * logprobs.gather(1, ids)).sum()
    return loss, torch.autograd.grad(loss, [hidden, weight])


def loss_of_axolotl(row):
    """Its kd loss with kd_temperature 1, kd_beta 0 and kd_normalize_topk false, as its kernel defines it."""
    hidden, weight = student(len(row["input_ids"]))
    logprobs = torch.log_softmax(hidden @ weight.T, -1)
    mask = torch.tensor(row["target_mask"], dtype=torch.bool)
    on_slots = logprobs.gather(1, torch.tensor(row["target_token_ids"]))[mask]
    target = torch.tensor(row["target_logprobs"], dtype=torch.float64)[mask]
    loss = (target.exp() * (target - on_slots)).sum()
    return loss, torch.autograd.grad(loss, [hidden, weight])


def own_loss(document, spec):
    """The loss that `logitcask train` has by default, of one document."""
    hidden, weight = student(len(document.token_ids_L))
    records, at = document.records, document.extent.positions(len(document.token_ids_L))
    target = SparseTarget.from_columns(
        head_ids_H=torch.from_numpy(records.head_ids_H.astype(np.int64)),
        head_logprobs_H=torch.from_numpy(records.head_logprobs_H.copy()),
        head_offsets_R1=np.append(0, np.cumsum(records.head_counts_P, dtype=np.int64)),
        tail_ids_N=torch.from_numpy(records.tail_ids_N.astype(np.int64)),
        tail_offsets_R1=np.append(0, np.cumsum(records.tail_counts_P, dtype=np.int64)),
        log_tail_mass_R=torch.from_numpy(records.log_tail_mass_P.copy()),
        next_ids_R=torch.from_numpy(document.token_ids_L[at + 1].astype(np.int64)),
        sampled_tail=spec.mode != "topk",
        dtype=torch.float64,
    )
    terms = Objective.parse("forward_kl").with_cross_entropy(0.0).terms(0.0)
    loss = distillation_loss(hidden[torch.from_numpy(at)], LMHead(weight_VD=weight), target, terms).loss
    return loss, torch.autograd.grad(loss, [hidden, weight])


def by_id(cask):
    return {cask.read(number).id.hex(): cask.read(number) for number in range(len(cask))}


def test_cross_entropy_with_rows_is_the_own_loss(cask, tmp_path):
    documents, rows = by_id(cask), rows_of(cask, tmp_path / "rows")
    assert {row["document_id"] for row in rows} == documents.keys()
    for row in rows:
        expected, expected_gradients = own_loss(documents[row["document_id"]], cask.manifest.capture)
        loss, gradients = loss_of_rows(row)
        assert loss.item() == pytest.approx(expected.item(), rel=2e-7)
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [-1, 1])
def test_negative_control_shifted_by_one_fails(cask, tmp_path, shift):
    documents = by_id(cask)
    for row in rows_of(cask, tmp_path / "rows"):
        expected, expected_gradients = own_loss(documents[row["document_id"]], cask.manifest.capture)
        loss, gradients = loss_of_rows(row, shift=shift)
        assert abs(loss.item() - expected.item()) > 1e-3
        assert (gradients[0] - expected_gradients[0]).abs().max() > 1e-2


def test_axolotl_columns_have_the_same_gradient(cask, tmp_path):
    documents = by_id(cask)
    for row in rows_of(cask, tmp_path / "rows", form="axolotl"):
        gradients = loss_of_axolotl(row)[1]
        expected = own_loss(documents[row["document_id"]], cask.manifest.capture)[1]
        for gradient, other in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-6)
        assert row["attention_mask"] == [1] * len(row["input_ids"])


def test_fewer_slots_are_right_on_average(cask, tmp_path):
    """Over seeds, within what their number allows; `test_target_table` has the exact average over the uniform."""
    width, documents = max(2, largest_width(cask) // 4), by_id(cask)
    losses = {identity: [] for identity in documents}
    for seed in range(20):
        for row in rows_of(cask, tmp_path / str(seed), width=width, seed=seed):
            losses[row["document_id"]].append(loss_of_rows(row)[0].item())
    for identity, values in losses.items():
        expected = own_loss(documents[identity], cask.manifest.capture)[0].item()
        assert abs(np.mean(values) - expected) < 5 * np.std(values) / np.sqrt(len(values)) + 1e-6
        assert np.std(values) > 0
