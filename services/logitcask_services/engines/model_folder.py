"""A teacher on disk: is the folder a model, what is in it, and whose fingerprints does it carry."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from logitcask_schemas.errors import ModelError
from logitcask_schemas.identity import TeacherIdentity
from logitcask_schemas.tokenizer_fingerprint import tokenizer_fingerprint

_HASHING_THREADS = 8
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


@dataclass(frozen=True)
class ModelFolder:
    """A folder in the Hugging Face layout, checked on opening. Expensive facts are computed once, in memory."""

    path: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "ModelFolder":
        """Check the folder.

        Raises:
            ModelError: it lacks config.json with an architecture, safetensors weights, or tokenizer files.
        """
        if not path.is_dir():
            raise _not_a_model(path, "no such folder" if not path.exists() else "a file")
        names = sorted(file.name for file in path.iterdir())
        if not (path / "config.json").is_file():
            raise _not_a_model(path, f"no config.json among {names}")
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise _not_a_model(path, f"a config.json that is not JSON ({error})") from error
        if not isinstance(config, dict) or not config.get("architectures"):
            raise _not_a_model(path, "a config.json without `architectures`")
        if not any(path.glob("*.safetensors")):
            raise _not_a_model(path, f"no *.safetensors among {names}")
        if not any((path / name).is_file() for name in _TOKENIZER_FILES):
            raise _not_a_model(path, f"none of {', '.join(_TOKENIZER_FILES)} among {names}")
        return cls(path.resolve(), config)

    @property
    def architecture(self) -> str:
        """Class name of the model, such as LlamaForCausalLM."""
        return str(self.config["architectures"][0])

    @property
    def quantization(self) -> str | None:
        """Quantisation method of the weights, where the configuration names one."""
        method = (self.config.get("quantization_config") or {}).get("quant_method")
        return None if method is None else str(method)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 (hex) over name, size and SHA-256 of every safetensors file, in order of name."""
        files = sorted(self.path.glob("*.safetensors"))
        digest = hashlib.sha256()
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:  # hashing releases the interpreter lock
            for file, found in zip(files, pool.map(_file_digest, files), strict=True):
                digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + found)
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, by transformers."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path, local_files_only=True)

    def identity(self, *, dtype: str, vocab_size: int, engine: str, engine_version: str) -> TeacherIdentity:
        """The teacher's identity, given what the engine decided."""
        template = self.tokenizer.chat_template
        text = template if template is None or isinstance(template, str) else json.dumps(template, sort_keys=True)
        return TeacherIdentity(
            model=self.path.name,
            weights_digest=self.weights_digest,
            dtype=dtype,
            quantization=self.quantization,
            vocab_size=vocab_size,
            tokenizer_fingerprint=tokenizer_fingerprint(self.tokenizer),
            template_hash=None if text is None else hashlib.sha256(text.encode()).hexdigest(),
            engine=engine,
            engine_version=engine_version,
        )


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _not_a_model(path: Path, found: str) -> ModelError:
    return ModelError(
        f"{path} is not a teacher: expected a folder with config.json (naming its architecture), *.safetensors weights "
        f"and tokenizer files, found {found}. A small teacher to start with: logitcask models fetch smollm2-135m"
    )
