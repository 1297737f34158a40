"""`auto` is never less exact than the checkpoint, and never left to an engine's own rules."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from logitcask_schemas.errors import ModelError
from logitcask_services.engines.dtypes import Platform, checkpoint_dtype, choose_dtype
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.vllm.arguments import vllm_arguments

PLAIN_CPU = Platform(accelerator=False, bfloat16=False)
AVX512_BF16 = Platform(accelerator=False, bfloat16=True)
OLD_GPU = Platform(accelerator=True, bfloat16=False)
GPU = Platform(accelerator=True, bfloat16=True)


@pytest.mark.parametrize(
    ("checkpoint", "plain_cpu", "avx512_bf16", "old_gpu", "gpu"),
    [
        ("float32", "float32", "float32", "float32", "float32"),
        ("bfloat16", "float32", "bfloat16", "float32", "bfloat16"),
        ("float16", "float32", "float32", "float16", "float16"),
        (None, "float32", "float32", "float32", "float32"),
    ],
)
def test_auto_on_every_platform(checkpoint, plain_cpu, avx512_bf16, old_gpu, gpu):
    chosen = [choose_dtype("auto", checkpoint, platform) for platform in (PLAIN_CPU, AVX512_BF16, OLD_GPU, GPU)]
    assert chosen == [plain_cpu, avx512_bf16, old_gpu, gpu]


def test_what_is_asked_for_is_taken():
    assert choose_dtype("float16", "float32", AVX512_BF16) == "float16"
    with pytest.raises(ModelError, match="dtype 'int8' is not one of auto"):
        choose_dtype("int8", "float32", GPU)


@pytest.mark.parametrize(
    ("declared", "stored", "expected"),
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float32", "float32"),  # the weights are wider than what the configuration says
        ("float32", "bfloat16", "float32"),
        ("bfloat16", "float16", "float32"),  # neither holds the other
        (None, "float16", "float16"),
        ("half", None, "float16"),
        ("auto", None, None),
        (None, None, None),
    ],
)
def test_the_checkpoint_has_the_dtype_that_holds_it(declared, stored, expected):
    assert checkpoint_dtype(declared, stored) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_knows_its_checkpoints_dtype_from_the_weights(tiny_llama, tmp_path, dtype):
    folder = shutil.copytree(tiny_llama, tmp_path / "cast")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert ModelFolder.open(folder).checkpoint_dtype == str(dtype).removeprefix("torch.")


def arguments(folder, **options):
    return vllm_arguments(
        ModelFolder.open(folder), dtype="float32", max_model_len=None, options=options, defaults={"enforce_eager": True}
    )


def test_vllm_is_told_dtype_format_and_that_no_code_runs(tiny_llama):
    options = arguments(tiny_llama, max_num_seqs=8, enforce_eager=False, hf_overrides={"rope_theta": 5.0})
    assert (options["dtype"], options["load_format"], options["trust_remote_code"]) == ("float32", "safetensors", False)
    assert (options["max_num_seqs"], options["enforce_eager"]) == (8, False)
    assert options["hf_overrides"]["rope_theta"] == 5.0
    assert options["hf_overrides"]["architectures"][0] == "LogitcaskLlamaForCausalLM"


@pytest.mark.parametrize(
    "option", ["trust_remote_code", "load_format", "model", "dtype", "enable_lora", "logprobs_mode"]
)
def test_an_option_that_would_get_around_the_identity_is_refused(tiny_llama, option):
    with pytest.raises(ModelError, match=f"'{option}' cannot be set"):
        arguments(tiny_llama, **{option: "auto"})
