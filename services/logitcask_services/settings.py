"""Settings of the service and of its client, from arguments and `LOGITCASK_*` variables. Read only at the edge."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from logitcask_schemas.api.server_url import DEFAULT_PORT
from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.record.identity import Accept

MIN_KEY_CHARACTERS = 8


class SettingsError(LogitcaskError, ValueError):
    """The settings do not make a service that may start."""


class ServiceSettings(BaseSettings):
    """What `logitcask serve` runs with. Arguments win over the environment."""

    model_config = SettingsConfigDict(env_prefix="LOGITCASK_", frozen=True)

    teacher: Path
    """Folder of the teacher (configuration, tokenizer, weights), or a Hub id: ORG/NAME or ORG/NAME@REVISION."""
    cask_root: Path
    """Folder under which each cask is a folder of its own."""
    data_dir: Path | None = None
    """Job database, corpora and token stores; default: `.logitcask-service` inside the cask root."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT
    templates: Path | None = None
    """Folder with the operator's own templates and recipes of generations."""
    resident: Literal["one", "both"] = "one"
    """Whether what captures and what writes are in memory by turns, or both at once."""
    engine: Literal["vllm", "transformers"] = "vllm"
    dtype: str = "auto"
    accept_teacher: tuple[Accept, ...] = ()
    """What may differ between a cask's teacher and this one, because the operator says so."""
    max_model_len: Annotated[int | None, Field(ge=2)] = None
    """Most tokens of a document; default: the teacher's own context."""
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    """One Bearer key per line; empty lines and lines that start with # are left out."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 64 << 30
    """Most bytes of one uploaded corpus."""
    max_line_bytes: Annotated[int, Field(ge=2)] = 8 << 20
    """Most bytes of one line; a longer one is reported as a bad line."""
    disk_floor_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """Free bytes below which nothing is accepted and running extractions pause."""
    chunk_positions: Annotated[int | None, Field(ge=1)] = None
    """Positions in one chunk, which is one shard; default: a share of the corpus, see `jobs.plan`."""
    engine_restarts: Annotated[int, Field(ge=0)] = 5
    """Restarts of a dead teacher, without progress between them, before the process ends with exit code 4."""
    engine_backoff_seconds: Annotated[float, Field(ge=0)] = 1.0
    """Pause before the first restart; doubles up to one minute."""
    engine_hang_seconds: Annotated[float, Field(ge=0)] = 1800.0
    """Silence of the teacher, with documents in hand, after which it counts as dead; 0: never."""
    cancel_grace_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Silence of the teacher after which a cancelled extraction ends without waiting for it; 0: waits."""
    load_deadline_seconds: Annotated[float, Field(ge=0)] = 3600.0
    """Longest time that the teacher may take to load; 0: any."""
    pause_poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    """First pause of an extraction that waits for disk, cask or database; doubles up to half a minute."""
    keepalive_seconds: Annotated[float, Field(gt=0)] = 15.0
    """Silence after which an event stream sends a comment."""

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("api_key and api_key_file are both set; keep one")
        return self

    @property
    def state_dir(self) -> Path:
        """Folder of everything the service writes besides casks."""
        return self.data_dir or self.cask_root / ".logitcask-service"

    def api_keys(self) -> tuple[str, ...]:
        """The accepted Bearer keys; empty when the service runs without. Raises SettingsError on unusable ones."""
        if self.api_key is not None:
            keys: tuple[str, ...] = (self.api_key.get_secret_value(),)
        elif self.api_key_file is not None:
            keys = read_keys(self.api_key_file)
        else:
            return ()
        for key in keys:
            if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
                raise SettingsError(
                    f"an API key must be at least {MIN_KEY_CHARACTERS} printable ASCII characters without spaces"
                )
        return keys


class ClientSettings(BaseSettings):
    """Where `logitcask submit` and `logitcask jobs` find the service, and how they identify themselves."""

    model_config = SettingsConfigDict(env_prefix="LOGITCASK_", frozen=True)

    server: str = f"http://127.0.0.1:{DEFAULT_PORT}"
    api_key: SecretStr | None = None
    api_key_file: Path | None = None

    def key(self) -> str | None:
        """The Bearer key to send, or None."""
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        return read_keys(self.api_key_file)[0] if self.api_key_file is not None else None


def read_keys(path: Path) -> tuple[str, ...]:
    """Keys of a key file. Raises SettingsError where it cannot be read or holds none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the API key file {path} cannot be read: {error}") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise SettingsError(f"the API key file {path} holds no key; put one key on a line of its own")
    return keys
