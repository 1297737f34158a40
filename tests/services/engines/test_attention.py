"""The reference engine computes what the configuration says: equal to plain attention, whatever transformers picks."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from logitcask_services.engines import attention
from logitcask_services.engines.factory import load_engine

FUNCTIONS: Any = modeling_llama.__dict__["ALL_ATTENTION_FUNCTIONS"]
IDS_L = np.random.default_rng(0).integers(2, 300, 200).astype(np.uint32)
SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.4,
}


def made(folder, kind, save_tokenizer, **more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **more))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def error_against_eager(engine, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        plain = model(torch.from_numpy(IDS_L.astype(np.int64))[None]).logits[0, :-1].softmax(-1)
    return float((engine.logits(IDS_L).softmax(-1) - plain).abs().max())


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gemma2", {"attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 1, "sliding_window": 64}),
        ("vaultgemma", {"attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 1, "sliding_window": 64}),
        ("gemma3_text", {"sliding_window": 32}),
        ("gpt_oss", {"num_local_experts": 4, "sliding_window": 32}),
        ("mistral", {"sliding_window": 32}),
    ],
)
def test_soft_caps_sinks_and_windows_are_computed(tmp_path, tokenizer_saver, kind, more):
    folder = made(tmp_path / kind, kind, tokenizer_saver, **more)
    assert error_against_eager(load_engine("transformers", folder), folder) < 1e-5


def test_an_attention_that_drops_something_is_found_and_replaced(tiny_llama, monkeypatch, caplog):
    real = FUNCTIONS["sdpa"]

    def drops_the_scale(module, query, key, value, mask, scaling=None, **more):
        return real(module, query, key, value, mask, scaling=scaling * 0.9, **more)

    monkeypatch.setitem(FUNCTIONS, "sdpa", drops_the_scale)
    with caplog.at_level(logging.WARNING, logger=attention.logger.name):
        engine: Any = load_engine("transformers", tiny_llama)
    assert "'sdpa' computes something else" in caplog.text
    assert engine._model.config._attn_implementation == "eager"


def test_a_sound_fused_attention_stays(tiny_llama, caplog):
    engine: Any = load_engine("transformers", tiny_llama)
    assert engine._model.config._attn_implementation == "sdpa"
    assert not caplog.text
