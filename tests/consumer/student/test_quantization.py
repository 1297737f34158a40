"""Rounded weights and their gradients against hand formulas in float64; which layers are rounded; what is refused."""

import copy
import json
from typing import Any

import pytest
import torch

from logitcask_consumer.run_document import write_run
from logitcask_consumer.student import quantization
from logitcask_consumer.student.quantization import (
    Fp8,
    Int4,
    QuantizationError,
    Scheme,
    as_stored,
    fake_quantize,
    quantized_layers,
    read_scheme,
    require_same_weights,
    require_unquantized,
    require_unrounded,
    round_weights,
    scheme_of_checkpoint,
)
from logitcask_schemas.errors import MissingExtraError, ModelError
from tests.support.consumer.cask_builder import tiny_model

pytest.importorskip("torchao")
IDS = torch.arange(3, 30)[None]
SCHEMES: list[Scheme] = [Int4(group=16), Fp8()]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def by_hand(weight_RC, group):
    """Rounded weights, and which are no tie, in float64.

    The scale of a group is its largest weight over 7.5. That weight lies between two levels, and float32 decides.
    """
    w_RGC = weight_RC.double().unflatten(1, (-1, group))
    scale_RG1 = w_RGC.abs().amax(-1, keepdim=True) / 7.5
    ratio_RGC = w_RGC / scale_RG1
    steps_RGC = ratio_RGC.round()
    clear_RGC = (ratio_RGC - ratio_RGC.floor() - 0.5).abs() > 1e-5
    return (steps_RGC.clamp(-8, 7) * scale_RG1).flatten(1), clear_RGC.flatten(1)


@pytest.mark.parametrize("group", [8, 16, 32])
def test_int4_weights_lie_on_sixteen_levels_of_their_group(group):
    model = tiny_model(layers=2, intermediate_size=64)
    before = {name: layer.weight.clone() for name, layer in quantized_layers(model).items()}
    round_weights(model, Int4(group=group))
    for name, layer in quantized_layers(model).items():
        expected_RC, clear_RC = by_hand(before[name], group)
        assert float(clear_RC.double().mean()) > 0.8
        torch.testing.assert_close(layer.weight.double()[clear_RC], expected_RC[clear_RC], rtol=1e-6, atol=0)
        w_RGC, original_RGC = (w.detach().unflatten(1, (-1, group)).double() for w in (layer.weight, before[name]))
        scale_RG1 = original_RGC.abs().amax(-1, keepdim=True) / 7.5
        steps_RGC = w_RGC / scale_RG1
        torch.testing.assert_close(steps_RGC, steps_RGC.round(), rtol=0, atol=1e-5)
        assert -8.1 < float(steps_RGC.min()) < float(steps_RGC.max()) < 7.1
        assert float(((w_RGC - original_RGC).abs() / scale_RG1).max()) <= 0.5 + 1e-5, "half a level at most"
    assert max(len(group_C.unique()) for group_C in w_RGC.flatten(0, 1)) <= 16


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gradients_go_straight_through(scheme):
    """Of y = x W': dL/dW = (dL/dy)' x as if nothing was rounded, dL/dx = dL/dy W' of the rounded weights."""
    model = tiny_model(layers=2)
    fake_quantize(model, scheme)
    layer: Any = quantized_layers(model)["model.layers.1.mlp.down_proj"]
    weight_RC = layer.weight.detach().clone()
    x_TC = torch.randn(5, layer.in_features, requires_grad=True)
    grad_TR = torch.randn(5, layer.out_features)
    layer(x_TC).backward(grad_TR)
    expected_RC = grad_TR.double().T @ x_TC.detach().double()
    torch.testing.assert_close(layer.weight.grad.double(), expected_RC, rtol=1e-5, atol=1e-6)
    if scheme == Fp8():
        scale_R1 = weight_RC.double().abs().amax(1, keepdim=True) / 448
        rounded_RC = (weight_RC.double() / scale_R1).float().to(torch.float8_e4m3fn).double() * scale_R1
    else:
        by_hand_RC, clear_RC = by_hand(weight_RC, 16)
        rounded_RC = torch.where(clear_RC, by_hand_RC, layer.weight_fake_quantizer(layer.weight).detach().double())
    torch.testing.assert_close(x_TC.grad.double(), grad_TR.double() @ rounded_RC, rtol=1e-5, atol=1e-5)
    assert float((x_TC.grad.double() - grad_TR.double() @ weight_RC.double()).abs().max()) > 1e-3, "rounding shows"
    assert torch.equal(weight_RC, layer.weight), "the weight itself is not rounded"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_rounding_after_training_is_what_a_forward_pass_rounds(scheme, tied):
    model = tiny_model(layers=2, tie_word_embeddings=tied)
    plain, fake, rounded = model, copy.deepcopy(model), copy.deepcopy(model)
    fake_quantize(fake, scheme)
    round_weights(rounded, scheme)
    assert torch.equal(logits(fake), logits(rounded))
    assert float((logits(fake) - logits(plain)).abs().max()) > 1e-3, "rounding shows"
    before, after = plain.state_dict(), rounded.state_dict()
    assert before.keys() == after.keys() == fake.state_dict().keys()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same == {name for name in before if "norm" in name or "embed" in name or "lm_head" in name}
    assert (rounded.lm_head.weight is rounded.model.embed_tokens.weight) == tied
    assert all(torch.equal(value, fake.state_dict()[name]) for name, value in before.items())


def test_a_row_of_zeros_stays_zeros():
    model = tiny_model(layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = 0
    for scheme in SCHEMES:
        rounded = copy.deepcopy(model)
        round_weights(rounded, scheme)
        assert not rounded.model.layers[0].mlp.up_proj.weight[3].any()
        assert bool(logits(rounded).isfinite().all())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_torchao_stores_is_what_was_rounded(scheme, tmp_path):
    model = tiny_model(layers=2, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    stored, rounded = as_stored(tmp_path, model, scheme), copy.deepcopy(model)
    with pytest.raises(ModelError, match=r"stores model\.layers\.0\.self_attn\.q_proj otherwise"):
        require_same_weights(stored, model)
    round_weights(rounded, scheme)
    require_same_weights(stored, rounded)
    torch.testing.assert_close(logits(stored), logits(rounded), rtol=1e-5, atol=1e-5)


def test_schemes_are_read_as_they_are_written(monkeypatch):
    assert read_scheme("int4") == Int4(group=32)
    assert read_scheme("int4:group=64") == Int4(group=64)
    assert read_scheme("fp8") == Fp8()
    for text, message in (
        ("int3", "there is no quantisation 'int3' of weights; there are: fp8, int4"),
        ("int4:group=1", "at least 2, got 1"),
        ("int4:size=32", "its parameters are: group"),
        ("int4:group=many", "group is a whole number"),
        ("fp8:group=32", "its parameters are: none"),
    ):
        with pytest.raises(QuantizationError, match=message):
            read_scheme(text)
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'train --quantize`.*torchao.*pip install "\.\[quantization\]"'):
        read_scheme("int4")


def test_groups_that_do_not_divide_a_row_are_refused_with_one_that_does():
    """Rows of 32 and of 48 weights."""
    model = tiny_model(layers=2)
    for work in (fake_quantize, round_weights):
        with pytest.raises(QuantizationError, match=r"mlp\.down_proj, which have 48 weights\. Take int4:group=16"):
            work(model, Int4(group=32))
    odd = tiny_model(layers=1, intermediate_size=49)
    with pytest.raises(QuantizationError, match=r"down_proj, which have 49 weights\. Take fp8"):
        round_weights(odd, Int4(group=16))


def test_a_model_without_linear_layers_is_refused():
    """GPT-2 keeps its weights the other way round."""
    model = tiny_model("gpt2", layers=1, n_embd=32, n_head=2, n_layer=1, n_positions=64)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel has no torch\.nn\.Linear in its layers"):
        quantized_layers(model)


def test_models_that_are_quantised_already_are_refused(tmp_path):
    require_unquantized(tmp_path, what="student")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelError, match=r"the student .* is quantised already \(gptq\): name the model that it was"):
        require_unquantized(tmp_path, what="student")
    for written in (["gptq"], "gptq", [], 4):
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": written}))
        with pytest.raises(
            ModelError, match=r"`quantization_config` should be an object that names a quant_method, got"
        ):
            require_unquantized(tmp_path, what="student")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not the JSON of a model's config"):
        require_unquantized(tmp_path, what="student")
    require_unrounded(tmp_path, what="student")
    write_run(tmp_path, "finished", {"settings": {"quantize": "int4"}})
    with pytest.raises(ModelError, match=r"was quantised by its run already \(int4\).*checkpoints, which hold the"):
        require_unrounded(tmp_path, what="student")
    assert scheme_of_checkpoint(tmp_path) is None, "the student's weights are rounded"
    checkpoint = tmp_path / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    assert scheme_of_checkpoint(checkpoint) == Int4()
    write_run(tmp_path, "finished", {"settings": {"quantize": None}})
    assert scheme_of_checkpoint(checkpoint) is None
