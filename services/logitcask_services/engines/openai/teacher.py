"""A connection to a remote teacher, with what is known of it: its window, its name, its tokenizer, and little else.

Its weights cannot be seen. The identity says so: `weights_digest` is a digest of the name alone, under a prefix of its
own, `dtype` and `quantization` are "unknown", `config` and `tensors_digest` are absent, and `engine` is "openai". ADR
0026.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from logitcask_schemas.errors import ModelError
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.identity import TeacherIdentity, tokenizer_fingerprint
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer, load_tokenizer
from logitcask_services.engines.model_config import CONFIG_NAME
from logitcask_services.engines.openai.answers import ScoredPrompt
from logitcask_services.engines.openai.dialect import Dialect, Models, Version, parsed
from logitcask_services.engines.openai.faults import AnswerError, RefusedError
from logitcask_services.engines.openai.options import DialectName, RemoteOptions
from logitcask_services.engines.openai.remote_client import RemoteClient
from logitcask_services.engines.openai.sglang_dialect import SglangDialect
from logitcask_services.engines.openai.tokenizer_check import require_same_tokenizer
from logitcask_services.engines.openai.vllm_dialect import VllmDialect

UNKNOWN: Final = "unknown"
_NAMED: Final = 5
"""Models that an error names."""
_MODELS, _VERSION = TypeAdapter(Models), TypeAdapter(Version)


def dialect_of(name: DialectName) -> Dialect:
    """How servers of a kind are asked."""
    return VllmDialect() if name == "vllm" else SglangDialect()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTeacher:
    """What engine and generator share. Close its client when done."""

    client: RemoteClient
    dialect: Dialect
    model: str
    """As the server names it."""
    window: int
    """Most tokens of a prompt with what is written after it."""
    tokenizer: Any
    """The tokenizer, by transformers."""
    identity: TeacherIdentity

    @classmethod
    def connect(cls, source: ModelSource, options: RemoteOptions, *, max_model_len: int | None) -> "RemoteTeacher":
        """Find out who is there, and whether it has our tokenizer.

        Args:
            source: folder with the tokenizer; weights are not needed.
            options: where the server is.
            max_model_len: most tokens of a prompt; None: what the server says.

        Raises:
            ModelError: there is no tokenizer, or the server serves another model, or one with another tokenizer.
            EngineError: it lets nobody in, or does not answer for as long as patience lasts.
        """
        words = HuggingFaceTokenizer.load(source.folder)
        tokenizer = load_tokenizer(source.folder)
        dialect = dialect_of(options.dialect)
        client = RemoteClient(options)
        try:
            model, window = client.run(_model(client, options, max_model_len))
            version = client.run(_version(client, dialect))
            size = max(tokenizer.get_vocab().values(), default=-1) + 1
            try:
                client.run(require_same_tokenizer(client, dialect, model, words, size, window - 1))
            except (AnswerError, RefusedError) as error:
                raise ModelError(f"the server at {options.url} could not be asked for its tokens: {error}") from error
            identity = _identity(source, tokenizer, options, model=model, version=version, tokenizer_size=size)
        except BaseException:
            client.close()
            raise
        return cls(client=client, dialect=dialect, model=model, window=window, tokenizer=tokenizer, identity=identity)

    async def score(self, ids_L: NDArray[np.int64], k: int, pinned_ids: Sequence[int] = ()) -> ScoredPrompt:
        """The server's log-probabilities for a prompt. Raises AnswerError, RefusedError, EngineError."""
        request = self.dialect.score(self.model, ids_L, k, pinned_ids)
        return await self.client.ask(
            request.path,
            request.body,
            lambda content: self._read(content, ids_L, k, pinned_ids),
            most_bytes=request.most_bytes,
        )

    async def probe_scores(self, ids_L: NDArray[np.int64], k: int, pinned_ids: Sequence[int]) -> ScoredPrompt:
        """The same, once. Raises what `RemoteClient.once` does."""
        request = self.dialect.score(self.model, ids_L, k, pinned_ids)
        content = await self.client.once("POST", request.path, request.body, most_bytes=request.most_bytes)
        return self._read(content, ids_L, k, pinned_ids)

    def _read(self, content: bytes, ids_L: NDArray[np.int64], k: int, pinned_ids: Sequence[int]) -> ScoredPrompt:
        return self.dialect.read_scores(content, ids_L, k, pinned_ids, self.identity.vocab_size)


async def _model(client: RemoteClient, options: RemoteOptions, max_model_len: int | None) -> tuple[str, int]:
    """The model's name and its window."""
    try:
        models = parsed(_MODELS, await client.get("/v1/models")).data
    except (AnswerError, RefusedError) as error:
        raise ModelError(f"{options.url} is no such server (/v1/models: {error}); check --remote-url") from error
    names = [model.id for model in models]
    listing = ", ".join(names[:_NAMED]) or "nothing"
    if options.model is None and len(models) != 1:
        raise ModelError(f"the server at {options.url} serves {listing}; choose one with --remote-model")
    chosen = next((model for model in models if options.model in (None, model.id)), None)
    if chosen is None:
        raise ModelError(f"the server at {options.url} does not serve {options.model!r}, it serves {listing}")
    window = max_model_len if chosen.max_model_len is None else chosen.max_model_len
    if window is None:
        raise ModelError(f"the server at {options.url} does not say its window; give it with --max-model-len")
    if max_model_len is not None and max_model_len > window:
        raise ModelError(f"max_model_len {max_model_len} exceeds the {window} tokens that {chosen.id} is served with")
    window = window if max_model_len is None else max_model_len
    if window < 3:
        raise ModelError(f"a window of {window} tokens has no room for a document of two and one that is written")
    return chosen.id, window


async def _version(client: RemoteClient, dialect: Dialect) -> str:
    for path in dialect.version_paths:
        try:
            return parsed(_VERSION, await client.get(path)).version
        except (AnswerError, RefusedError):
            continue  # not every server says it
    return UNKNOWN


def _identity(
    source: ModelSource,
    tokenizer: Any,
    options: RemoteOptions,
    *,
    model: str,
    version: str,
    tokenizer_size: int,
) -> TeacherIdentity:
    name = model.rstrip("/").rsplit("/", 1)[-1] if model.startswith("/") else model  # never a path of a machine
    template = tokenizer.chat_template
    text = template if template is None or isinstance(template, str) else json.dumps(template, sort_keys=True)
    return TeacherIdentity(
        model=name,
        weights_digest=hashlib.sha256(f"logitcask-remote-teacher-1\0{name}".encode()).hexdigest(),
        engine_options={"dialect": options.dialect},
        dtype=UNKNOWN,
        quantization=UNKNOWN,
        vocab_size=max(_logits(source, tokenizer_size), tokenizer_size),
        tokenizer_size=tokenizer_size,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        template_hash=None if text is None else hashlib.sha256(text.encode()).hexdigest(),
        engine="openai",
        engine_version=f"{options.dialect} {version}",
    )


def _logits(source: ModelSource, tokenizer_size: int) -> int:
    """Width of the logits, where the folder has a configuration that says it; the tokenizer's size otherwise."""
    try:
        config = json.loads((source.folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return tokenizer_size
    except (OSError, ValueError) as error:
        raise ModelError(f"{source.folder / CONFIG_NAME} cannot be read: {error}") from error
    fields = config if isinstance(config, dict) else {}
    text = fields.get("text_config")
    declared = (text if isinstance(text, dict) else fields).get("vocab_size", tokenizer_size)
    if not isinstance(declared, int):
        raise ModelError(f"{source.folder / CONFIG_NAME}: vocab_size should be a number, it is {declared!r}")
    return declared
