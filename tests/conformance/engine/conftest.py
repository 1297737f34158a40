"""Teachers and engines of the conformance suite, each started once.

The real teacher comes from `logitcask models fetch`; set LOGITCASK_TEST_MODELS to a folder to keep it elsewhere than in
the user's cache. Engines are small on purpose: 160 tokens a step make vLLM cut every longer document into chunks.
"""

import inspect
import os
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

MAX_LENGTH = 700
STEP_TOKENS = 160


@pytest.fixture(scope="session")
def teacher_folder():
    pytest.importorskip("gguf")
    from logitcask_services.models import default_folder, fetch_model

    name = "smollm2-135m"
    where = os.environ.get("LOGITCASK_TEST_MODELS")
    return fetch_model(name, Path(where) / name if where else default_folder(name))


@pytest.fixture(scope="session")
def texts():
    """Token ids of real text: sources and docstrings of the standard library, 20 to 600 tokens."""

    def tokenized(folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        source = inspect.getsource(textwrap)
        lengths = [600, 333, 161, 160, 159, 64, 20]
        starts = [0, 900, 2500, 4000, 6000, 8000, 10000]
        return [
            np.array(tokenizer(source[start:]).input_ids[:length], dtype=np.uint16)
            for start, length in zip(starts, lengths, strict=True)
        ]

    return tokenized


@pytest.fixture(scope="session")
def documents(teacher_folder, texts):
    return texts(teacher_folder)


@pytest.fixture(scope="session")
def dense(teacher_folder, documents):
    """Log-probabilities of a plain Hugging Face forward pass, float64 [L - 1, V] per document."""
    return dense_logprobs(teacher_folder, documents)


def dense_logprobs(folder, documents):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return [
            torch.log_softmax(model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].double(), -1).numpy()
            for ids in documents
        ]


def start_engine(kind, folder, max_model_len):
    from logitcask_services.engines.factory import load_engine

    options = {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 8} if kind == "vllm" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's imports warn of their own accord
        return load_engine(kind, folder, max_model_len=max_model_len, options=options)


@pytest.fixture(scope="session", params=["transformers", pytest.param("vllm", marks=pytest.mark.engine)])
def engine(request, teacher_folder):
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


@pytest.fixture(scope="session")
def helpers():
    """Functions for the tests of this folder."""

    class Helpers:
        dense_logprobs = staticmethod(dense_logprobs)

    return Helpers
