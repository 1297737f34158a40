"""Heads that peft wraps, and frozen ones: the chunked loss gives the loss and gradients of the model's own logits."""

from typing import Any

import pytest
import torch
from torch import nn

from logitcask_consumer.data import CaskDataset, Collator, open_casks, target_of
from logitcask_consumer.head import LMHead, LogitTransform, check_head, distillation_loss
from logitcask_consumer.head.lm_head import LowRank
from logitcask_consumer.losses import Objective
from logitcask_consumer.methods import DistillTask
from logitcask_consumer.student.forward import attach, check_packing
from logitcask_schemas.errors import ModelError
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model

peft = pytest.importorskip("peft")

STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "softcap": ("gemma2", {"final_logit_softcapping": 2.0, "attn_implementation": "eager"}),
    "scale": ("granite", {"logits_scaling": 4.0}),
    "bias": ("phi", {}),
}
# peft warns of an adapter on tied weights; the base stays frozen and tied here, which is what the test is about. And it
# reads a property that transformers has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    path = build_cask(folder / "cask", save_teacher(folder / "teacher"), random_documents(8))
    dataset = CaskDataset(open_casks([path], tokenizer_fingerprint=None), seq_len=64)
    return Collator(seq_len=64)(dataset.read(range(len(dataset))))


def adapted(name, **more):
    """A float64 student with large logits and an adapter on the head that changes them."""
    kind, config = STUDENTS[name]
    model = tiny_model(kind, layers=2, **config).double()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_()
    options = {"r": 3, "lora_alpha": 12, "target_modules": ["q_proj", "lm_head"], "init_lora_weights": False, **more}
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).double().eval()


def dense(model, batch, target):
    """Forward KL from the model's own logits."""
    out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    logp = torch.log_softmax(out.flatten(0, 1)[batch["slots"]], -1)
    head = target.head_weights_H * logp[target.head_rows_H, target.head_ids_H]
    return -head.sum() - (target.tail_weights_N * logp[target.tail_rows_N, target.tail_ids_N]).sum()


def chunked(model, batch, target):
    task = DistillTask(
        target=target, slots_T=batch["slots"], terms=Objective.parse("forward_kl").terms(0.0), block_rows=7
    )
    return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)["loss"]


def assert_same_gradients(model, batch):
    target = target_of(batch, sampled_tail=True).to_dtype(torch.float64)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    expected = dense(model, batch, target)
    want = torch.autograd.grad(expected, list(trained.values()))
    attach(model)
    got = chunked(model, batch, target)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    for name, mine, theirs in zip(trained, torch.autograd.grad(got, list(trained.values())), want, strict=True):
        assert float(theirs.abs().max()) > 0, name
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10 * float(theirs.abs().max()), msg=name)
    return set(trained)


@pytest.mark.parametrize("name", STUDENTS)
def test_an_adapter_of_the_head_has_the_gradients_of_dense_logits(batch, name):
    model = adapted(name)
    check_head(model, relative_tolerance=1e-10)
    check_packing(model)
    trained = assert_same_gradients(model, batch)
    assert {f"lm_head.lora_{part}.default.weight" for part in "AB"} <= {
        n.removeprefix("base_model.model.") for n in trained
    }
    assert len(trained) == 6, "A and B of the head and of two layers; the base is frozen"


def test_the_adapter_matters():
    """Negative control: without it the head's logits are others, and the check says so."""
    model = adapted("untied")
    layer = model.get_output_embeddings()
    model.get_output_embeddings = lambda: layer.get_base_layer()
    with pytest.raises(ModelError, match="LogitTransform"):
        check_head(model)


def test_a_trained_copy_of_the_head_is_the_head(batch):
    model = adapted("untied", target_modules=["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        LMHead.from_model(model).weight_VD.mul_(1.3)
    trained = assert_same_gradients(model, batch)
    assert any("modules_to_save" in name for name in trained)


def test_a_head_without_adapter_under_a_body_with_one_is_frozen(batch):
    trained = assert_same_gradients(adapted("tied", target_modules=["q_proj"]), batch)
    assert not any("lm_head" in name for name in trained)


def test_merged_and_disabled_adapters_are_not_applied_twice():
    model = adapted("untied")
    layer = model.get_output_embeddings()
    assert LMHead.from_model(model).low_rank is not None
    with model.disable_adapter():
        assert LMHead.from_model(model).low_rank is None
        check_head(model, relative_tolerance=1e-10)
    layer.merge()
    assert LMHead.from_model(model).low_rank is None
    check_head(model, relative_tolerance=1e-10)


@pytest.mark.parametrize("option", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_that_are_not_plain_lora_are_refused(option):
    with pytest.raises(ModelError, match="plain LoRA"):
        LMHead.from_model(adapted("bias", **option))


def test_dropout_of_the_adapter_is_that_of_its_layer(batch):
    layer, rows = adapted("untied", lora_dropout=0.5).train().get_output_embeddings(), len(batch["slots"])
    model: Any = nn.Module()
    model.config, model.get_output_embeddings = tiny_model(layers=1).config, lambda: layer
    head, target = LMHead.from_model(model), target_of(batch, sampled_tail=True).to_dtype(torch.float64)
    hidden = torch.randn(rows, 32, dtype=torch.float64)
    torch.manual_seed(7)
    logits = layer(hidden)
    torch.manual_seed(7)
    loss = distillation_loss(hidden, head, target, Objective.parse("cross_entropy").terms(0.0), block_rows=9).loss
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, target.next_ids_R, reduction="sum"))


@pytest.mark.parametrize("trained", [("hidden",), ("down", "up"), ("hidden", "weight", "bias", "down", "up")])
def test_nothing_is_computed_for_what_is_frozen(batch, trained):
    target = target_of(batch, sampled_tail=True).to_dtype(torch.float64).rows(0, 5)
    shapes = {"hidden": (5, 4), "weight": (97, 4), "bias": (97,), "down": (2, 4), "up": (97, 2)}
    v = {
        name: torch.randn(shape, dtype=torch.float64).requires_grad_(name in trained) for name, shape in shapes.items()
    }
    head = LMHead(
        weight_VD=v["weight"],
        bias_V=v["bias"],
        low_rank=LowRank(down_KD=v["down"], up_VK=v["up"], scale=0.7),
        transform=LogitTransform(softcap=5.0, scale=0.5),
    )
    products = v["hidden"] @ (v["weight"] + 0.7 * v["up"] @ v["down"]).T + v["bias"]
    logits = 5.0 * torch.tanh(0.5 * products / 5.0)
    expected = nn.functional.cross_entropy(logits, target.next_ids_R, reduction="sum")
    wanted = [v[name] for name in trained]
    want = torch.autograd.grad(expected, wanted)
    terms = Objective.parse("cross_entropy").terms(0.0)
    loss = distillation_loss(v["hidden"], head, target, terms, block_rows=2).loss
    made = [gradient is not None for gradient in loss.grad_fn.grads]
    low = "down" in trained or "hidden" in trained
    assert made == ["hidden" in trained, "weight" in trained, "bias" in trained, low, "up" in trained]
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(torch.autograd.grad(loss, wanted), want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
