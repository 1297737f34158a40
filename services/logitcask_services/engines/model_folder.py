"""A teacher on disk: whether its folder is a model, and whose fingerprints it carries."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import ModelSource, find_model
from logitcask_schemas.record.identity import TeacherIdentity, tokenizer_fingerprint
from logitcask_services.corpora.tokenizer import load_tokenizer
from logitcask_services.engines.dtypes import checkpoint_dtype
from logitcask_services.engines.model_config import CONFIG_NAME, numeric_fields
from logitcask_services.engines.weight_files import (
    StoredTensor,
    files_digest,
    floating_dtype,
    stored_tensors,
    tensors_digest,
    weight_files,
)

_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_PACKAGES: Final = frozenset({"torchao", "bitsandbytes"})
"""Quantisation methods that are packages: transformers and vLLM read such weights by them, and bring neither along."""
_OBJECTS: Final = ("quantization_config", "text_config")
"""Fields of config.json that are objects where they are there."""
_QUOTED: Final = 60
"""Characters of what is quoted from a file."""
_GGUF_SUFFIX: Final = ".gguf"
NO_GGUF: Final = (
    "weights are safetensors, which the identity covers. Convert the file (transformers: from_pretrained with "
    "gguf_file, then save_pretrained, for model and tokenizer), or take an AWQ, GPTQ or FP8 checkpoint, which vLLM "
    "finds by its config.json."
)
"""Why GGUF is refused, and what to do; ends a sentence."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder in the Hugging Face layout, checked on opening. Expensive facts are computed once, in memory."""

    path: Path
    name: str
    """For people, see `ModelSource`."""
    revision: str | None
    """Commit of the repository it comes from, or None."""
    config: dict[str, Any]
    weight_files: tuple[Path, ...]
    """The safetensors files that engines load, in order of name."""

    @classmethod
    def open(cls, model: Path | ModelSource) -> "ModelFolder":
        """Check the folder, which is downloaded first where the path is that of a repository of the Hub.

        Raises:
            ModelError: it lacks config.json with an architecture, safetensors weights, or tokenizer files, or does not
                say which weights are the model's; or a field of config.json is of another kind than it should be.
        """
        source = find_model(model) if isinstance(model, Path) else model
        path = source.folder
        if path.is_file() and path.suffix == _GGUF_SUFFIX:
            raise _gguf(path)
        if not path.is_dir():
            raise _not_a_model(path, "no such folder" if not path.exists() else "a file")
        names = sorted(file.name for file in path.iterdir())
        if any(name.endswith(_GGUF_SUFFIX) for name in names) and not any(path.glob("*.safetensors")):
            raise _gguf(path)
        if not (path / CONFIG_NAME).is_file():
            raise _not_a_model(path, f"no config.json among {names}")
        try:
            config = json.loads((path / CONFIG_NAME).read_text(encoding="utf-8"))
        except ValueError as error:
            raise _not_a_model(path, f"a config.json that is not JSON ({error})") from error
        if not isinstance(config, dict) or not config.get("architectures"):
            raise _not_a_model(path, "a config.json without `architectures`")
        _require_kinds(path, config)
        if not any(path.glob("*.safetensors")):
            raise _not_a_model(path, f"no *.safetensors among {names}")
        if not any((path / name).is_file() for name in _TOKENIZER_FILES):
            raise _not_a_model(path, f"none of {', '.join(_TOKENIZER_FILES)} among {names}")
        return cls(
            path=path.resolve(),
            name=source.name,
            revision=source.revision,
            config=config,
            weight_files=tuple(weight_files(path.resolve())),
        )

    @property
    def architecture(self) -> str:
        """Class name of the model, such as LlamaForCausalLM."""
        return str(self.config["architectures"][0])

    @property
    def quantization(self) -> str | None:
        """Quantisation method of the weights, where the configuration names one."""
        method = (self.config.get("quantization_config") or {}).get("quant_method")
        return None if method is None else str(method)

    @property
    def missing_package(self) -> str | None:
        """The package that the weights cannot be read without and that is not installed here; None where all is."""
        method = self.quantization
        return method if method is not None and method in _PACKAGES and find_spec(method) is None else None

    @cached_property
    def weights_digest(self) -> str:
        """Digest of the files, see `files_digest`; casks made before `tensors_digest` existed hold this one alone."""
        return files_digest(self.weight_files)

    @cached_property
    def tensors_digest(self) -> str:
        """Digest of the tensors, whatever files they lie in; see `logitcask_services.engines.weight_files`."""
        return tensors_digest(self._tensors)

    @cached_property
    def checkpoint_dtype(self) -> str | None:
        """The narrowest compute dtype that holds the weights, see `dtypes.checkpoint_dtype`."""
        text = self.config.get("text_config") or {}
        declared = [fields.get(name) for fields in (self.config, text) for name in ("dtype", "torch_dtype")]
        named = next((str(dtype).removeprefix("torch.") for dtype in declared if dtype), None)
        # Quantised weights keep scales in other dtypes than they are computed in.
        return checkpoint_dtype(named, None if self.quantization else floating_dtype(self._tensors))

    @cached_property
    def numeric_fields(self) -> dict[str, Any]:
        """Fields of the configuration that can change numbers, see `model_config.numeric_fields`."""
        return numeric_fields(self.path, self.config)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, by transformers. Raises ModelError where there is none that loads."""
        return load_tokenizer(self.path)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 (hex) of the vocabulary, see `record.identity.tokenizer_fingerprint`."""
        return tokenizer_fingerprint(self.tokenizer)

    @property
    def template_hash(self) -> str | None:
        """SHA-256 (hex) of the chat template; None where there is none."""
        template = self.tokenizer.chat_template
        text = template if template is None or isinstance(template, str) else json.dumps(template, sort_keys=True)
        return None if text is None else hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end a text, ascending.

        Those of generation_config.json, or of config.json where it has none, and the tokenizer's own.

        Raises:
            ModelError: generation_config.json is not JSON, or an id is no number.
        """
        path = self.path / "generation_config.json"
        try:
            generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ModelError(f"{path} is not JSON ({error}); download it again, or remove it") from error
        if not isinstance(generation, dict):
            raise ModelError(f"{path} holds {_quoted(generation)}; expected an object, or no such file")
        text = self.config.get("text_config") or {}
        declared = [fields.get("eos_token_id") for fields in (generation, self.config, text)]
        named: Any = next((ids for ids in declared if ids is not None), [])
        ids = named if isinstance(named, list) else [named]
        if not all(type(number) is int for number in ids):
            raise ModelError(f"{self.path} declares eos_token_id {named!r}; expected a token id, or a list of them")
        own = self.tokenizer.eos_token_id
        return tuple(sorted({*ids} if own is None else {*ids, own}))

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens, control tokens left out."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def identity(
        self,
        *,
        dtype: str,
        vocab_size: int,
        engine: str,
        engine_version: str,
        engine_options: dict[str, Any] | None = None,
    ) -> TeacherIdentity:
        """The teacher's identity, given what the engine decided."""
        return TeacherIdentity(
            model=self.name,
            revision=self.revision,
            weights_digest=self.weights_digest,
            tensors_digest=self.tensors_digest,
            config=self.numeric_fields,
            engine_options=engine_options or None,
            dtype=dtype,
            quantization=self.quantization,
            vocab_size=vocab_size,
            tokenizer_size=max(self.tokenizer.get_vocab().values(), default=-1) + 1,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            template_hash=self.template_hash,
            engine=engine,
            engine_version=engine_version,
        )

    @cached_property
    def _tensors(self) -> list[StoredTensor]:
        return stored_tensors(self.weight_files)


def _require_kinds(path: Path, config: dict[str, Any]) -> None:
    """Refuse fields of config.json that are read and are of another kind than they should be."""
    names = config["architectures"]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise _not_a_model(path, f"a config.json whose `architectures` is {_quoted(names)}, not a list of names")
    for field in _OBJECTS:
        if not isinstance(config.get(field) or {}, dict):
            raise _not_a_model(path, f"a config.json whose `{field}` is {_quoted(config[field])}, not an object")


def _quoted(value: Any) -> str:
    """A value as it stands in the file, or its beginning."""
    return json.dumps(value)[:_QUOTED]


def _gguf(path: Path) -> ModelError:
    return ModelError(f"{path} holds its weights as GGUF, which is no teacher: {NO_GGUF}")


def _not_a_model(path: Path, contents: str) -> ModelError:
    return ModelError(
        f"{path} is not a teacher: expected a folder with config.json (naming its architecture), *.safetensors weights "
        f"and tokenizer files, found {contents}. A small teacher to start with: "
        "HuggingFaceTB/SmolLM2-135M-Instruct, from the Hugging Face Hub, or `python -m demo.fetch_teacher`"
    )
