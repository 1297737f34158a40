"""What vLLM is asked for where it writes; above all, that a CPU never cuts a prompt with a seed into chunks."""

import pytest

from logitcask_schemas.errors import ModelError
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.vllm.arguments import cpu_generating, vllm_arguments


def test_one_that_writes_is_not_wrapped(tiny_llama):
    options = vllm_arguments(
        ModelFolder.open(tiny_llama), runner="generate", dtype="float32", max_model_len=9, options={}, defaults={}
    )
    assert (options["runner"], options["max_model_len"], options["logprobs_mode"]) == ("generate", 9, "raw_logprobs")
    assert "architectures" not in options["hf_overrides"]


@pytest.mark.parametrize(
    ("options", "asked", "declared", "window", "step"),
    [
        ({}, None, 512, 512, 1024),
        ({}, None, 8192, 4096, 4096),
        ({}, 8192, 8192, 8192, 8192),
        ({"max_num_batched_tokens": 160}, 700, 8192, 700, 700),
        ({"max_num_batched_tokens": 2048}, 700, 8192, 700, 2048),
    ],
)
def test_a_cpu_that_writes_takes_prompts_whole(options, asked, declared, window, step):
    found = cpu_generating(options, asked=asked, declared=declared, step=1024)
    assert found == {"max_model_len": window, "enable_chunked_prefill": False, "max_num_batched_tokens": step}


def test_chunks_are_refused_where_a_cpu_writes():
    with pytest.raises(ModelError, match="'enable_chunked_prefill' cannot be set where a CPU writes"):
        cpu_generating({"enable_chunked_prefill": True}, asked=700, declared=8192, step=1024)
