"""Two folders are one teacher exactly where they give the same numbers; code in a folder never runs."""

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig

from logitcask_schemas.errors import ModelError
from logitcask_services.engines.factory import load_engine
from logitcask_services.engines.model_config import numeric_fields
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.vllm.arguments import numeric_options

FACTS: dict[str, Any] = {"dtype": "float32", "vocab_size": 300, "engine": "transformers", "engine_version": "1"}


@pytest.fixture
def copy(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "copy")


def edited(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: v for name, v in (config | changes).items() if v != "gone"}))


def differences(folder, other):
    return set(ModelFolder.open(folder).identity(**FACTS).differences(ModelFolder.open(other).identity(**FACTS)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
            {"config.rope_parameters.rope_type", "config.rope_parameters.factor"},
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": "gone"},
            {"config.rope_parameters.factor"},
        ),
        ({"rms_norm_eps": 1e-5}, {"config.rms_norm_eps"}),
        ({"hidden_act": "gelu"}, {"config.hidden_act"}),
        ({"num_key_value_heads": 4}, {"config.num_key_value_heads"}),
        ({"unheard_of": 3}, {"config.unheard_of"}),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"config.quantization_config.bits"}),
    ],
)
def test_a_field_that_changes_numbers_is_named(tiny_llama, copy, changes, named):
    edited(copy, **changes)
    assert named <= differences(tiny_llama, copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": 256},
        {"_name_or_path": "elsewhere", "transformers_version": "4.40.0"},
        {"dtype": "gone", "torch_dtype": "float32"},
        {"bos_token_id": 7, "eos_token_id": [1, 2], "pad_token_id": 5, "use_cache": False},
        {"attention_dropout": 0.1, "initializer_range": 0.5},
        {"rope_parameters": "gone", "rope_theta": 10000.0},
        {"rope_scaling": None, "attention_bias": False, "mlp_bias": False, "head_dim": 8},
    ],
)
def test_a_field_that_changes_none_is_not_compared(tiny_llama, copy, changes):
    edited(copy, **changes)
    assert differences(tiny_llama, copy) == set()


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "yarn"])
def test_positions_count_where_the_rotary_embedding_depends_on_them(tmp_path, rope_type):
    factors = {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4} if rope_type == "longrope" else {}
    digests = []
    for positions in (128, 256):
        rope = {"rope_type": rope_type, "factor": 2.0, "rope_theta": 10000.0, **factors}
        config = LlamaConfig(
            hidden_size=32, num_attention_heads=4, max_position_embeddings=positions, rope_parameters=rope
        )
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(tmp_path / str(positions))
        digests.append(
            numeric_fields(
                tmp_path / str(positions), json.loads((tmp_path / str(positions) / "config.json").read_text())
            )
        )
    assert digests[0] != digests[1]


def test_a_configuration_saved_again_with_every_default_is_equal(tiny_llama, copy):
    whole = AutoConfig.from_pretrained(tiny_llama).to_dict()
    (copy / "config.json").write_text(json.dumps(whole))
    assert differences(tiny_llama, copy) == set()


def test_fields_are_json_without_infinity(tmp_path):
    config = {"model_type": "odd", "architectures": ["OddForCausalLM"], "time_step_limit": [0.0, float("inf")]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert numeric_fields(tmp_path, config)["time_step_limit"] == [0.0, "inf"]


def test_another_folder_name_a_symlink_and_weights_saved_again_are_the_same_teacher(tiny_llama, copy, tmp_path):
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    (copy / "model.safetensors").unlink()
    files = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, copy / file, metadata={"saved": "again"})
    weight_map = {name: file for file, part in files.items() for name in part}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert differences(tiny_llama, copy) == set()
    (tmp_path / "link").symlink_to(tiny_llama)
    assert differences(tiny_llama, tmp_path / "link") == set()
    # A file that the index does not name is not loaded, and changes nothing.
    save_file({"model.norm.weight": torch.zeros(32)}, copy / "consolidated.safetensors")
    assert differences(tiny_llama, copy) == set()


def test_one_changed_byte_of_a_tensor_is_another_teacher(tiny_llama, copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert differences(tiny_llama, copy) == {"tensors_digest"}


def spoil_decoy_and_bin(folder):
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"weights")


def spoil_index_and_single(folder):
    shutil.copy(folder / "model.safetensors", folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def spoil_index_outside(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')


def spoil_index_missing(folder):
    (folder / "model.safetensors").unlink()
    save_file({"x": torch.zeros(1)}, folder / "stray.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def spoil_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_decoy_and_bin, "does not say which weights .* found decoy.safetensors"),
        (lambda folder: save_file({"x": torch.zeros(1)}, folder / "extra.safetensors"), "ambiguous: extra.safetensors"),
        (spoil_index_and_single, "ambiguous: .* names model-1.safetensors"),
        (spoil_index_outside, "should name .safetensors files beside it"),
        (spoil_index_missing, "lacks model-1.safetensors"),
        (spoil_adapter, "holds an adapter"),
    ],
)
@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_a_folder_whose_weights_are_not_certain_is_refused(copy, spoil, words, kind):
    spoil(copy)
    with pytest.raises(ModelError, match=f"(?s){words}"):
        load_engine(kind, copy)


def test_weights_cut_short_are_refused(copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(ModelError, match="damaged or no safetensors"):
        ModelFolder.open(copy).identity(**FACTS)


@pytest.mark.parametrize(("longest", "factors"), [(64, "short"), (65, "long")])
def test_a_context_that_switches_longrope_factors_is_part_of_the_identity(longest, factors):
    config = {"rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 64}
    assert numeric_options({}, rope={"longrope"}, longest=longest, config=config) == {"longrope_factors": factors}


def test_options_that_change_numbers_are_kept_and_others_are_not():
    options = {
        "kv_cache_dtype": "fp8",
        "tensor_parallel_size": 2,
        "max_num_seqs": 8,
        "hf_overrides": {"rope_theta": 1.0},
    }
    kept = numeric_options(options, rope={"default"}, longest=64, config={})
    assert kept == {"kv_cache_dtype": "fp8", "hf_overrides": {"rope_theta": 1.0}}


EVIL = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()
pathlib.Path({flag!r}).touch()
class Evil: pass
"""
USES = {
    "tokenizer": "from logitcask_services.engines.model_folder import ModelFolder as F; F.open(p).tokenizer",
    "serve": "from logitcask_services.engines.factory import load_engine; load_engine('transformers', p)",
    "corpus": "from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer as T; T.load(p)",
    "train": "from logitcask_consumer.student.loading import load_model; load_model(p)",
    "cask show": "from logitcask_schemas.cli.cask import _text_of_ids; _text_of_ids(p, '')",
    "students": "from logitcask_consumer.student.loading import load_tokenizer; load_tokenizer(p)",
}


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_code_of_a_model_folder_never_runs_whatever_is_answered(copy, tmp_path, model_type):
    names = {"AutoConfig": "evil_code.Evil", "AutoModelForCausalLM": "evil_code.Evil"}
    edited(copy, model_type=model_type, auto_map=names)
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["evil_code.Evil", None]}, "tokenizer_class": "EvilTokenizer"}
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    flag = tmp_path / "ran"
    (copy / "evil_code.py").write_text(EVIL.format(flag=str(flag)))
    uses = "".join(
        f"\ntry:\n    {use}\nexcept Exception as error:\n    print(type(error).__name__)" for use in USES.values()
    )
    script = f"import pathlib\np = pathlib.Path({str(copy)!r}){uses}\n"
    script += "from logitcask_services.engines.model_folder import ModelFolder\nModelFolder.open(p).numeric_fields\n"
    done = subprocess.run([sys.executable, "-c", script], input="y\n" * 50, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "custom code? [y/N]" not in done.stdout + done.stderr
    assert not flag.exists()
