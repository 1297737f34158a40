"""Folders that are no model are refused with what was expected, found, and what to do; the rest is fingerprinted."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from logitcask_schemas.errors import ModelError
from logitcask_services.engines.factory import load_engine, load_generator
from logitcask_services.engines.model_folder import ModelFolder

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def copy(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "copy")


def without(pattern):
    def spoil(folder):
        for file in folder.glob(pattern):
            file.unlink()

    return spoil


def with_field(name, value):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {name: value}))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (shutil.rmtree, "no such folder"),
        (without("config.json"), "no config.json among"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "without `architectures`"),
        (lambda folder: (folder / "config.json").write_text("{}"), "without `architectures`"),
        (with_field("architectures", "LlamaForCausalLM"), '`architectures` is "LlamaForCausalLM", not a list of names'),
        (with_field("architectures", [None]), r"`architectures` is \[null\], not a list of names"),
        (with_field("quantization_config", ["torchao"]), r'`quantization_config` is \["torchao"\], not an object'),
        (with_field("quantization_config", "fp8"), '`quantization_config` is "fp8", not an object'),
        (with_field("text_config", [1]), r"`text_config` is \[1\], not an object"),
        (without("*.safetensors"), r"no \*.safetensors among"),
        (without("tokenizer.json"), "none of tokenizer.json"),
    ],
)
@pytest.mark.parametrize("kind", ["vllm", "transformers"])
@pytest.mark.parametrize("load", [load_engine, load_generator])
def test_a_folder_that_is_no_model(copy, spoil, found, kind, load):
    spoil(copy)
    with pytest.raises(
        ModelError, match=rf"(?s)copy is not a teacher: expected .* found .*{found}.* demo.fetch_teacher"
    ):
        load(kind, copy)


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        ({"eos_token_id": 7}, 5, [7]),
        ({"eos_token_id": [9, 7]}, 5, [7, 9]),
        ({"eos_token_id": None}, [6, 5], [5, 6]),
        (None, 5, [5]),
        (None, None, []),
    ],
)
def test_ids_that_end_a_text(copy, generation, config, ids):
    own = ModelFolder.open(copy).tokenizer.eos_token_id
    (copy / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (copy / "generation_config.json").write_text(json.dumps(generation))
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**fields, "eos_token_id": config}))
    assert ModelFolder.open(copy).end_ids == tuple(sorted({*ids, *([] if own is None else [own])}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"eos_token_id": "</s>"}', "expected a token id"),
        ('{"eos_token_id": {"</s>": 2}}', "expected a token id"),
        ('{"eos_token_id": [[2]]}', "expected a token id"),
        ('{"eos_token_id": true}', "expected a token id"),
        ("[2]", r"generation_config.json holds \[2\]; expected an object"),
    ],
)
def test_ends_that_are_no_ids(copy, text, message):
    (copy / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        ModelFolder.open(copy).end_ids  # noqa: B018


def test_a_tokenizer_of_a_kind_that_is_not_known_is_refused(copy):
    """The Rust backend raises bare Exception there."""
    written = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps(written | {"model": {"type": "Newer", "vocab": {}}}))
    with pytest.raises(ModelError, match="copy has no tokenizer that loads: Exception: data did not match"):
        ModelFolder.open(copy).tokenizer_fingerprint  # noqa: B018


def test_a_config_that_transformers_refuses_counts_as_it_stands(copy):
    with_field("rope_scaling", [1])(copy)
    assert ModelFolder.open(copy).numeric_fields["rope_scaling"] == [1]


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"found a file.*demo.fetch_teacher"):
        ModelFolder.open(tmp_path / "model.safetensors")


@pytest.mark.parametrize("beside", [[], ["config.json", "tokenizer.json"]], ids=["alone", "in a folder"])
@pytest.mark.parametrize("named", ["model.gguf", "."])
def test_gguf_is_refused_with_what_to_do_about_it(tmp_path, named, beside):
    """As a file, or a folder with nothing else to load, as Hugging Face repositories of GGUF files are."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for name in beside:
        (tmp_path / name).write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelError, match=r"as GGUF, which is no teacher: .*gguf_file, then save_pretrained") as refused:
        ModelFolder.open(tmp_path / named)
    assert "\n" not in str(refused.value)


def test_safetensors_beside_gguf_are_the_model(copy):
    (copy / "model.gguf").write_bytes(b"GGUF")
    assert [file.name for file in ModelFolder.open(copy).weight_files] == ["model.safetensors"]


@pytest.fixture
def hub(tiny_llama, tmp_path, monkeypatch):
    """A Hub that has org/tiny, downloaded into its cache's layout; what was asked of it."""
    asked = []

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision))
        if repository != "org/tiny":
            raise RepositoryNotFoundError(
                "401 Client Error", response=httpx2.Response(401, request=httpx2.Request("GET", "http://x"))
            )
        folder = tmp_path / "models--org--tiny" / "snapshots" / COMMIT
        if not folder.exists():
            shutil.copytree(tiny_llama, folder)
            assert all(any(file.match(pattern) for pattern in allow_patterns) for file in folder.iterdir())
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.mark.parametrize("revision", [None, "v1.0", "refs/pr/3"])
def test_a_hub_id_is_downloaded_and_its_commit_is_part_of_the_identity(hub, tiny_llama, revision):
    folder = ModelFolder.open(Path("org/tiny" if revision is None else f"org/tiny@{revision}"))
    assert hub == [("org/tiny", revision)]
    facts: dict[str, Any] = {"dtype": "float32", "vocab_size": 300, "engine": "transformers", "engine_version": "1"}
    of_hub, of_folder = folder.identity(**facts), ModelFolder.open(tiny_llama).identity(**facts)
    assert (of_hub.model, of_hub.revision) == ("org/tiny", COMMIT)
    assert (of_folder.model, of_folder.revision) == (tiny_llama.name, None)
    of_hub.require_same(of_folder, where="a cask")  # who a teacher is does not depend on where it was found


def test_a_folder_goes_before_the_hub(hub, tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "org" / "tiny")
    assert ModelFolder.open(Path("org/tiny")).revision is None
    assert hub == []


def test_a_mistyped_folder_is_told_what_is_there(hub, tiny_llama, tmp_path):
    """A folder of the organisation's name may be there all the same, as a run's own output: the Hub is asked."""
    shutil.copytree(tiny_llama, tmp_path / "models" / "teacher")
    with pytest.raises(ModelError, match=r"models/techer is no folder here \(models holds teacher\), and the Hugging"):
        ModelFolder.open(Path("models/techer"))
    assert hub == [("models/techer", None)]


def test_what_is_neither_a_folder_nor_on_the_hub(hub):
    with pytest.raises(ModelError, match=r"models/teacher is no folder here, and .* Hub did not give .*RepositoryNot"):
        load_engine("transformers", Path("models/teacher"))
    with pytest.raises(ModelError, match="no such folder"):
        ModelFolder.open(Path("/models/teacher"))
    assert hub == [("models/teacher", None)]


def test_an_unknown_engine(tiny_llama):
    name: Any = "sglang"
    with pytest.raises(ModelError, match="choose vllm, transformers or openai"):
        load_engine(name, tiny_llama)


def test_identity_follows_weights_tokenizer_and_template(copy):
    facts: dict[str, Any] = {"dtype": "float32", "vocab_size": 300, "engine": "transformers", "engine_version": "1"}
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
