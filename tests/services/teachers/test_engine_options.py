"""Options of the engine: those that are vLLM's reach it, all others are refused before anything is loaded."""

import dataclasses
import json
import warnings
from typing import Any

import pytest

from logitcask_schemas.errors import OptionError
from logitcask_services.cli.serve import require_teachers
from logitcask_services.engines.process import door, loading
from logitcask_services.engines.vllm.arguments import numeric_options
from logitcask_services.settings import ServiceSettings
from logitcask_services.teachers.engine_options import engine_argument_names, require_engine_options

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what vLLM imports
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

OPTIONS: dict[str, Any] = {
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 3,
    "gpu_memory_utilization": 0.5,
    "max_num_batched_tokens": 256,
    "quantization": "fp8",
    "enforce_eager": False,
}


class ReachedVllmError(Exception):
    """Instead of an engine that starts."""


@pytest.fixture
def asked(monkeypatch):
    """The `EngineArgs` that vLLM would have started an engine with; none is started."""
    seen = []

    def no_engine(engine_args):
        seen.append(engine_args)
        raise ReachedVllmError

    def loaded_here(entry, document, environment=None):
        # What the engine's own process does with what it is sent.
        return getattr(loading, entry.rpartition(":")[2])(json.loads(json.dumps(document)))

    monkeypatch.setattr(LLMEngine, "from_engine_args", no_engine)
    monkeypatch.setattr(door, "EngineProcess", loaded_here)
    return seen


@pytest.mark.parametrize("way", ["command", "environment", "file"])
def test_engine_options_reach_vllm(way, asked, tiny_llama, tmp_path, monkeypatch):
    """From where an operator writes them to vLLM's own `EngineArgs`; of the file, those of each teacher alone."""
    if way == "environment":
        monkeypatch.setenv("LOGITCASK_ENGINE_OPTIONS", json.dumps(OPTIONS))
    if way == "file":
        path = tmp_path / "teachers.toml"
        listed = "".join(f"{name} = {json.dumps(value)}\n" for name, value in OPTIONS.items())
        model = json.dumps(str(tiny_llama))
        path.write_text(
            f"[teachers.a]\nmodel = {model}\nmax_model_len = 64\n[teachers.a.options]\n{listed}"
            f"[teachers.b]\nmodel = {model}\ndtype = 'bfloat16'\n"
        )
        settings, name = ServiceSettings(teachers=path, cask_root=tmp_path), "a"
    else:
        given: dict[str, Any] = {"engine_options": OPTIONS} if way == "command" else {}
        settings = ServiceSettings(teacher=tiny_llama, cask_root=tmp_path, max_model_len=64, **given)
        name = "tiny-llama"
    roster = require_teachers(settings)
    with pytest.raises(ReachedVllmError):
        roster.load(name, "capture", None)
    (arguments,) = asked
    assert {option: getattr(arguments, option) for option in OPTIONS} == OPTIONS
    assert (arguments.max_model_len, arguments.runner) == (64, "pooling")
    if way == "file":
        with pytest.raises(ReachedVllmError):
            roster.load("b", "generate", None)
        other = asked[1]
        assert (other.tensor_parallel_size, other.quantization, other.dtype) == (1, None, "bfloat16")


@pytest.mark.parametrize("kept", [False, True])
def test_metrics_are_kept_where_they_are_asked_for(kept, asked, tiny_llama, tmp_path):
    """In the engine's process, under the model's name and not its path; what one teacher's options say goes first."""
    settings = ServiceSettings(teacher=tiny_llama, cask_root=tmp_path, engine_metrics=kept)
    for role in ("capture", "generate"):
        with pytest.raises(ReachedVllmError):
            require_teachers(settings).load("tiny-llama", role, None)
    assert [(each.disable_log_stats, each.served_model_name) for each in asked] == [(not kept, "tiny-llama")] * 2
    own = settings.model_copy(update={"engine_options": {"disable_log_stats": kept, "served_model_name": "mine"}})
    with pytest.raises(ReachedVllmError):
        require_teachers(own).load("tiny-llama", "capture", None)
    assert (asked[-1].disable_log_stats, asked[-1].served_model_name) == (kept, "mine")


def test_what_changes_numbers_is_part_of_the_identity():
    counted = numeric_options(OPTIONS, rope=set(), longest=64, config={})
    assert counted == {"quantization": "fp8"}


def test_the_names_are_those_of_vllms_own_class():
    assert engine_argument_names() == {field.name for field in dataclasses.fields(EngineArgs)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensor_paralel_size": 2}, "vLLM has no option 'tensor_paralel_size'; did you mean tensor_parallel_size"),
        ({"xyzzy": 2}, "vLLM has no option 'xyzzy'; see vLLM's `EngineArgs`"),
        ({"model": "/etc"}, "the vLLM option 'model' cannot be set: the model folder is"),
        ({"trust_remote_code": True}, "code from a model folder never runs"),
        ({"load_format": "gguf"}, "weights are safetensors, which the identity covers"),
        ({"enable_lora": True}, "an adapter is no part of the identity"),
        ({"pooler_config": {}}, "the capture has a pooler of its own"),
        ({"quantization": "gguf"}, "'quantization' cannot be gguf"),
        ({"data_parallel_size": 2}, "the first of its data-parallel ranks"),
        ({"data_parallel_backend": "ray"}, "'data_parallel_backend' cannot be set"),
    ],
)
def test_options_that_are_refused(options, words):
    with pytest.raises(OptionError) as told:
        require_engine_options("vllm", options, where="--engine-option")
    assert str(told.value).startswith("--engine-option: ")
    assert words in str(told.value)


def test_options_that_are_taken():
    require_engine_options("vllm", {**OPTIONS, "data_parallel_size": 1, "quantization": "awq"}, where="here")
    require_engine_options("transformers", {}, where="here")
    with pytest.raises(OptionError, match="max_num_seqs are options of vLLM, and the engine is transformers"):
        require_engine_options("transformers", {"max_num_seqs": 1}, where="here")
