"""LoRA adapters of teachers: the merged teacher says what base and adapter say together, and nothing else is loaded."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from logitcask_schemas.errors import MissingExtraError, ModelError
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.cli.serve import require_teachers
from logitcask_services.engines.engine import CaptureTask
from logitcask_services.engines.factory import load_engine
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.settings import ServiceSettings
from logitcask_services.teachers import adapters, merging
from logitcask_services.teachers.adapters import merged_teacher

IDS = np.arange(3, 43, dtype=np.uint32)
SPEC = CaptureSpec(tau=0.001, logprob_codec="f32")


def write_adapter(base, folder, **options):
    """A random LoRA adapter whose sum differs from its base."""
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, **options
    )
    torch.manual_seed(3)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_llama, tmp_path_factory):
    return write_adapter(tiny_llama, tmp_path_factory.mktemp("adapters") / "mine")


@pytest.fixture
def base(tiny_llama):
    return ModelSource(folder=tiny_llama, name="tiny")


@pytest.fixture
def own(adapter, tmp_path):
    """A copy of the adapter that a test may damage."""
    return shutil.copytree(adapter, tmp_path / "own")


@pytest.fixture(scope="module")
def merged_once(tiny_llama, adapter, tmp_path_factory):
    root = tmp_path_factory.mktemp("state") / "merged"
    return merged_teacher(ModelSource(folder=tiny_llama, name="tiny"), adapter, root)


def dense_logprobs(model):
    with torch.no_grad():
        return torch.log_softmax(
            model(torch.from_numpy(IDS.astype(np.int64))[None]).logits[0, :-1].double(), -1
        ).numpy()


def recorded_logprobs(source):
    """[L - 1, V] of the head; NaN elsewhere."""
    engine = load_engine("transformers", source)
    (result,) = engine.capture([CaptureTask(key=0, token_ids_L=IDS)], SPEC)
    engine.close()
    records = result.document.records
    dense = np.full((len(IDS) - 1, 300), np.nan)
    rows = np.repeat(np.arange(len(IDS) - 1), records.head_counts_P)
    dense[rows, records.head_ids_H] = records.head_logprobs_H
    return dense


def test_the_records_are_those_of_model_and_adapter(tiny_llama, adapter, merged_once):
    told = recorded_logprobs(merged_once)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    plain = dense_logprobs(model)
    expected = dense_logprobs(peft.PeftModel.from_pretrained(model, adapter).eval())
    recorded = ~np.isnan(told)
    assert recorded.sum(axis=1).min() > 10
    np.testing.assert_allclose(told[recorded], expected[recorded], atol=1e-4)
    assert np.abs(told - plain)[recorded].max() > 0.1, "a negative control: the base says something else"


def test_its_identity_is_that_of_the_merged_weights(tiny_llama, merged_once):
    merged, base = ModelFolder.open(merged_once), ModelFolder.open(tiny_llama)
    assert merged_once.name == "tiny+mine"
    assert merged.tensors_digest != base.tensors_digest
    assert merged.weights_digest != base.weights_digest
    assert merged.numeric_fields == base.numeric_fields
    assert merged.checkpoint_dtype == base.checkpoint_dtype
    assert merged.tokenizer_fingerprint == base.tokenizer_fingerprint


def test_it_is_made_once(base, adapter, merged_once, monkeypatch, tmp_path):
    def make_again(*_arguments):
        raise AssertionError("made again")

    monkeypatch.setattr(adapters, "_make", make_again)
    assert merged_teacher(base, adapter, merged_once.folder.parent) == merged_once
    other = shutil.copytree(base.folder, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")  # whatever is copied makes another teacher
    with pytest.raises(AssertionError, match="made again"):
        merged_teacher(ModelSource(folder=other, name="tiny"), adapter, merged_once.folder.parent)


def test_half_precision_stays_half_precision(base, tmp_path):
    folder = shutil.copytree(base.folder, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.bfloat16).save_pretrained(folder)
    target = tmp_path / "target"
    target.mkdir()
    merging.write_merged(ModelFolder.open(folder), write_adapter(folder, tmp_path / "lora"), target)
    assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {torch.bfloat16}
    assert (target / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_a_merged_folder_that_was_changed_is_refused(base, adapter, merged_once, tmp_path):
    root = shutil.copytree(merged_once.folder.parent, tmp_path / "merged")
    weights = root / merged_once.folder.name / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"is damaged \(it was changed\); remove the folder"):
        merged_teacher(base, adapter, root)
    weights.unlink()
    with pytest.raises(ModelError, match=r"is damaged .*; remove the folder"):
        merged_teacher(base, adapter, root)
    shutil.rmtree(root / merged_once.folder.name)
    left = root / ".making-killed"
    left.mkdir()
    assert merged_teacher(base, adapter, root).folder.name == merged_once.folder.name
    assert not left.exists()


def change_config(folder, **fields):
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))


def change_tensors(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def narrower(tensors):
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    tensors[name] = tensors[name][:, :16].contiguous()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "is no folder"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
            "has no adapter_model.safetensors .*such as .bin, are never loaded",
        ),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "peft_type None; expected LORA"),
        (lambda folder: change_config(folder, peft_type="IA3"), "peft_type 'IA3'; expected LORA"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 100), "is damaged or no safetensors"),
        (lambda folder: change_tensors(folder, narrower), "does not fit"),
        (lambda folder: change_tensors(folder, lambda tensors: tensors.popitem()), "is not this model's"),
        (
            lambda folder: change_tensors(folder, lambda tensors: tensors.update({"more": torch.ones(2)})),
            "is not this model's",
        ),
        (lambda folder: change_config(folder, target_modules=["c_attn"]), "does not fit"),
        (
            lambda folder: change_tensors(folder, lambda tensors: next(iter(tensors.values())).fill_(float("nan"))),
            "does not fit|cannot be merged",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_what_is_refused(base, own, tmp_path, damage, words, monkeypatch):
    monkeypatch.setattr(adapters, "ProcessPoolExecutor", HerePool)
    damage(own)
    with pytest.raises(ModelError, match=words):
        merged_teacher(base, own, tmp_path / "merged")
    assert list((tmp_path / "merged").glob("*")) == [], "nothing is left"


class HerePool:
    """Calls in this process: starting one takes seconds."""

    def __init__(self, *_arguments, **_options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def submit(self, function, *arguments):
        self.call = lambda: function(*arguments)
        return self

    def result(self):
        return self.call()


def test_an_adapter_of_another_repository_is_refused(tiny_llama, own, tmp_path):
    of_hub = ModelSource(folder=tiny_llama, name="org/tiny", revision="0" * 40)
    change_config(own, base_model_name_or_path="org/other")
    with pytest.raises(ModelError, match="is of org/other, and the model is org/tiny"):
        merged_teacher(of_hub, own, tmp_path / "merged")


def test_without_peft(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r'needs the module \'peft\'.*"\.\[adapters\]"'):
        merged_teacher(base, adapter, tmp_path / "merged")


def test_a_file_of_teachers_names_it(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "ProcessPoolExecutor", HerePool)
    file = tmp_path / "teachers.toml"
    model = f"model = {json.dumps(str(base.folder))}\nengine = 'transformers'\n"
    file.write_text(f"[teachers.plain]\n{model}[teachers.tuned]\n{model}adapter = {json.dumps(str(adapter))}\n")
    settings = ServiceSettings(teachers=file, cask_root=tmp_path / "casks", engine_process=False)
    roster = require_teachers(settings)
    digests = {name: roster.load(name, "capture", None).identity.tensors_digest for name in roster.names}
    assert digests["plain"] == ModelFolder.open(base).tensors_digest
    (folder,) = (settings.state_dir / "merged").iterdir()
    assert digests["tuned"] == ModelFolder.open(folder).tensors_digest != digests["plain"]
