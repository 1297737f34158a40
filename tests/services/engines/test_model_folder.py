"""Folders that are no model are refused with what was expected, found, and what to do; the rest is fingerprinted."""

import json
import shutil

import pytest

from logitcask_schemas.errors import ModelError
from logitcask_services.engines.factory import load_engine
from logitcask_services.engines.model_folder import ModelFolder


@pytest.fixture
def copy(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "copy")


def without(pattern):
    def spoil(folder):
        for file in folder.glob(pattern):
            file.unlink()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (shutil.rmtree, "no such folder"),
        (without("config.json"), "no config.json among"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "without `architectures`"),
        (lambda folder: (folder / "config.json").write_text("{}"), "without `architectures`"),
        (without("*.safetensors"), r"no \*.safetensors among"),
        (without("tokenizer.json"), "none of tokenizer.json"),
    ],
)
@pytest.mark.parametrize("kind", ["vllm", "transformers"])
def test_a_folder_that_is_no_model(copy, spoil, found, kind):
    spoil(copy)
    with pytest.raises(ModelError, match=rf"(?s)copy is not a teacher: expected .* found .*{found}.* models fetch"):
        load_engine(kind, copy)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"found a file.*models fetch smollm2-135m"):
        ModelFolder.open(tmp_path / "model.gguf")


def test_an_unknown_engine(tiny_llama):
    with pytest.raises(ModelError, match="choose vllm or transformers"):
        load_engine("sglang", tiny_llama)


def test_identity_follows_weights_tokenizer_and_template(copy):
    facts = {"dtype": "float32", "vocab_size": 300, "engine": "transformers", "engine_version": "1"}
    before = ModelFolder.open(copy).identity(**facts)
    assert before == ModelFolder.open(copy).identity(**facts)
    assert len(before.weights_digest) == 64
    assert before.model == "copy"
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    after = ModelFolder.open(copy).identity(**facts)
    assert set(before.differences(after)) == {"tensors_digest", "template_hash"}
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["w5"], vocabulary["w6"] = vocabulary["w6"], vocabulary["w5"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert set(after.differences(ModelFolder.open(copy).identity(**facts))) == {"tokenizer_fingerprint"}


def test_renamed_weights_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "weights.safetensors")
    with pytest.raises(ModelError, match=r"found weights\.safetensors\. Rename a single file to model\.safetensors"):
        ModelFolder.open(copy)
