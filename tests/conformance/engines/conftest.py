"""Engines on a real teacher and on an odd one, real text, and what a plain forward pass says of it."""

import inspect
import textwrap
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.services.engine_captures import (
    MAX_LENGTH,
    dense_logprobs,
    real_teacher,
    start_engine,
    start_in_process,
)


@pytest.fixture(scope="session")
def teacher_folder():
    pytest.importorskip("gguf")
    return real_teacher()


@pytest.fixture(scope="session")
def documents(teacher_folder):
    """Token ids of real text: sources and docstrings of the standard library, 20 to 600 tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    source = inspect.getsource(textwrap)
    lengths = [600, 333, 161, 160, 159, 64, 20]
    starts = [0, 900, 2500, 4000, 6000, 8000, 10000]
    return [
        np.array(tokenizer(source[start:]).input_ids[:length], dtype=np.uint16)
        for start, length in zip(starts, lengths, strict=True)
    ]


@pytest.fixture(scope="session")
def dense(teacher_folder, documents):
    """Log-probabilities of a plain Hugging Face forward pass, float64 [L - 1, V] per document."""
    return dense_logprobs(teacher_folder, documents)


@pytest.fixture(scope="session", params=["transformers", "process", pytest.param("vllm", marks=pytest.mark.engine)])
def engine(request, teacher_folder):
    """`process`: transformers in a process of its own."""
    if request.param == "process":
        engine: Any = start_in_process("transformers", teacher_folder, MAX_LENGTH)
    else:
        pytest.importorskip(request.param)
        engine = start_engine(request.param, teacher_folder, MAX_LENGTH)
    yield engine
    engine.close()
    engine.close()  # idempotent


@pytest.fixture(scope="session")
def odd_teacher(tmp_path_factory):
    """A tiny random Gemma 2: soft-capped logits, tied and scaled embeddings, sliding windows; nothing like a Llama."""
    from tokenizers import Tokenizer, models
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("odd") / "tiny-gemma2"
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=512,
        sliding_window=64,
        query_pre_attn_scalar=64,
        final_logit_softcapping=4.0,
        initializer_range=0.3,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def odd_engine(odd_teacher):
    pytest.importorskip("vllm")
    engine = start_engine("vllm", odd_teacher, 256)
    yield engine
    engine.close()
