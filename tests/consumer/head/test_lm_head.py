"""The LM head taken out of a model gives the model's own logits, whatever the architecture does to them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from logitcask_consumer.head import LMHead, LogitTransform, base_model, check_head
from logitcask_schemas.errors import ModelError

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "llama": {},
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 5.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "phi": {},  # its head has a bias
}


def tiny(kind, **more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **more}))
    with torch.no_grad():  # large logits, so that soft-capping and scaling are far from the identity
        model.get_output_embeddings().weight.mul_(30)
    return model


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_head_gives_the_models_logits(kind):
    model = tiny(kind, **ARCHITECTURES[kind])
    check_head(model)
    head = LMHead.from_model(model)
    assert head.vocab_size == 97
    assert head.weight_VD is model.get_output_embeddings().weight
    assert (head.bias_V is not None) == (kind == "phi")
    assert (head.transform == LogitTransform()) == (kind in ("llama", "qwen3", "phi"))


def test_transforms_are_read_from_the_config():
    assert LogitTransform.from_config(tiny("gemma2", final_logit_softcapping=5.0).config).softcap == 5.0
    assert LogitTransform.from_config(tiny("granite", logits_scaling=4.0).config).scale == 0.25
    assert LogitTransform.from_config(tiny("cohere", logit_scale=0.25).config).scale == 0.25


def test_check_leaves_the_model_in_its_mode_and_works_in_bfloat16():
    model = tiny("llama").to(torch.bfloat16).train()
    check_head(model)
    assert model.training


def test_an_architecture_that_changes_its_logits_unseen_is_refused():
    model = tiny("llama")
    forward = model.forward

    def louder(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 1.1
        return out

    model.forward = louder
    with pytest.raises(ModelError, match="LogitTransform"):
        check_head(model)


def test_a_model_without_a_linear_head_is_refused():
    model = tiny("llama")
    with pytest.raises(ModelError, match="linear LM head"):
        LMHead.from_model(base_model(model))


def test_a_model_that_gives_no_numbers_says_which_weights_are_none():
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight hold NaN or infinity. Its training diverged"):
        check_head(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(1e38)
    with pytest.raises(ModelError, match="what it computes of them overflows"):
        check_head(model)
