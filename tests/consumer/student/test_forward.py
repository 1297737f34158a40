"""The forward pass with the loss in it: packed equals alone, and the loss equals one computed by hand."""

import pytest
import torch

from logitcask_consumer.data import CaskDataset, Collator, open_casks, target_of
from logitcask_consumer.losses import Objective
from logitcask_consumer.methods import DistillTask
from logitcask_consumer.student.forward import attach, check_packing
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import VOCAB, build_cask, random_documents, save_teacher, tiny_model

GPT2 = {"n_embd": 32, "n_head": 2, "n_layer": 4, "n_positions": 256}
KINDS = {"llama": {}, "qwen3": {}, "gemma2": {"sliding_window": 16}, "gpt2": GPT2}


@pytest.fixture(scope="module")
def cask(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    teacher = save_teacher(folder / "teacher")
    return open_casks([build_cask(folder / "cask", teacher, random_documents(12))], tokenizer_fingerprint=None)[0]


# transformers runs Gemma 2 with eager attention only.
WAYS = [(kind, way) for kind in KINDS for way in ("sdpa", "eager") if (kind, way) != ("gemma2", "sdpa")]


@pytest.mark.parametrize(("kind", "attention"), WAYS)
def test_logits_of_a_packed_document_are_those_it_has_alone(cask, kind, attention):
    student = tiny_model(kind, attn_implementation=attention, **KINDS[kind])
    check_packing(student)
    dataset = CaskDataset([cask], seq_len=128)
    windows = [dataset[b] for b in range(len(dataset))]
    assert max(map(len, windows)) > 1, "nothing was packed"
    batch = Collator(seq_len=128)(windows)
    with torch.no_grad():
        packed = student(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        rows = packed.flatten(0, 1)[batch["slots"]]
        for document in range(len(cask)):
            tokens = torch.from_numpy(cask.read(document).token_ids_L.astype("int64"))
            alone = student(input_ids=tokens[None, :-1], use_cache=False).logits[0]
            torch.testing.assert_close(rows[batch["documents"] == document], alone, rtol=1e-4, atol=1e-5)


def test_negative_control_without_position_ids_packed_documents_mix(cask):
    student = tiny_model()
    dataset = CaskDataset([cask], seq_len=128)
    batch = Collator(seq_len=128)([dataset[0]])
    with torch.no_grad():
        kept = student(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        mixed = student(input_ids=batch["input_ids"]).logits
    assert float((kept - mixed).abs().max()) > 1e-2


def test_a_student_that_ignores_position_ids_and_masks_is_refused():
    student = tiny_model()
    body, forward = student.model, student.model.forward
    body.forward = lambda *args, position_ids=None, attention_mask=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(ModelError, match="--packing none"):
        check_packing(student)


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_loss_and_gradients_equal_those_of_the_models_own_logits(cask, packing):
    dataset = CaskDataset([cask], seq_len=64, packing=packing)
    batch = Collator(seq_len=64)([dataset[b] for b in range(len(dataset))])
    target = target_of(batch, sampled_tail=True)
    student = tiny_model(seed=3).double()
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    logits = student(**inputs, use_cache=False).logits.flatten(0, 1)[batch["slots"]]
    logp = torch.log_softmax(logits, -1)
    head = target.head_weights_H.double() * logp[target.head_rows_H, target.head_ids_H]
    tail = target.tail_weights_N.double() * logp[target.tail_rows_N, target.tail_ids_N]
    expected = -head.sum() - tail.sum()
    want = torch.autograd.grad(expected, list(student.parameters()))
    attach(student)
    task = DistillTask(
        target=target, slots_T=batch["slots"], terms=Objective.parse("forward_kl").terms(0.0), block_rows=17
    )
    out = student(**inputs, distill=task)
    got = torch.autograd.grad(out["loss"], list(student.parameters()))
    torch.testing.assert_close(out["loss"], expected, rtol=1e-6, atol=0)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    plain = student(**inputs, use_cache=False).logits
    assert plain.shape[-1] == VOCAB, "without a task the forward is the model's own"
