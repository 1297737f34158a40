"""Keys of the service: who may call, what for, and how much. Read from a file: TOML, or plainly one key a line.

```toml
[[key]]
name = "alice"
sha256 = "…"                          # of the key, in hex; or `key = "…"`, the key itself
scope = "read"                        # or "full", which is the default
requests_per_minute = 600
body_bytes = 1_000_000_000            # of one request
upload_bytes_per_day = 50_000_000_000
waiting_jobs = 10
```

Names and scopes are for people who share a service; whoever can read the disk or the memory of the process is no
stranger to it.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from logitcask_schemas.api.key_file import TABLE, KeyFileError, is_toml, lines_of, tables_of, text_of

MIN_KEY_CHARACTERS: Final = 8
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Scope = Literal["full", "read"]
Count = Annotated[int, Field(ge=1, le=2**63 - 1, strict=True)]


class KeyLimits(BaseModel):
    """How much the bearer of a key may ask for; None: as much as anybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: Count | None = None
    """So many at once, too; the allowance comes back evenly."""
    body_bytes: Count | None = None
    """Most bytes of the body of one request."""
    upload_bytes_per_day: Count | None = None
    """Most bytes of bodies from midnight to midnight, UTC."""
    waiting_jobs: Count | None = None
    """Most jobs that have not ended."""


NO_LIMITS: Final = KeyLimits()


class KeyEntry(KeyLimits):
    """A key as the TOML file has it."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    key: SecretStr | None = None
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-fA-F]{64}$")] = None
    scope: Scope = "full"

    @model_validator(mode="after")
    def _told_once(self) -> Self:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("expected exactly one of `key` and `sha256`")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key that the service accepts; of the key itself it knows the SHA-256 alone."""

    name: str
    digest: bytes
    """SHA-256 of the key, 32 bytes."""
    scope: Scope = "full"
    limits: KeyLimits = NO_LIMITS

    @classmethod
    def nameless(cls, key: str) -> Self:
        """A key of the plain form; its name is the beginning of its digest. Raises KeyFileError."""
        digest = digest_of(key)
        return cls(name=digest.hex()[:16], digest=digest)


ANONYMOUS: Final = ApiKey(name="anonymous", digest=b"")
"""Whoever calls a service without keys."""


def digest_of(key: str) -> bytes:
    """SHA-256 of a key, 32 bytes. Raises KeyFileError where no header could carry the key, or it is too short."""
    if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
        raise KeyFileError(
            f"an API key must be at least {MIN_KEY_CHARACTERS} printable ASCII characters without spaces"
        )
    return hashlib.sha256(key.encode()).digest()


def match(keys: Sequence[ApiKey], presented: str | None) -> ApiKey | None:
    """The key that was presented, or None; as fast for a nearly right one as for a wrong one."""
    digest = hashlib.sha256((presented or "").encode()).digest()
    equal = [hmac.compare_digest(digest, key.digest) for key in keys]
    return keys[equal.index(True)] if any(equal) else None


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file in either form. Raises KeyFileError."""
    text = text_of(path)
    if not is_toml(path, text):
        return tuple(ApiKey.nameless(line) for line in lines_of(path, text))
    keys = []
    for number, entry in enumerate(_entries(path, text), 1):
        try:
            digest = bytes.fromhex(entry.sha256) if entry.sha256 else digest_of(_secret(entry))
        except KeyFileError as error:
            raise KeyFileError(f"{path}, {TABLE} number {number} ({entry.name}): {error}") from error
        limits = KeyLimits.model_validate({field: getattr(entry, field) for field in KeyLimits.model_fields})
        keys.append(ApiKey(name=entry.name, digest=digest, scope=entry.scope, limits=limits))
    _require_single(path, "name", [(key.name, key.name) for key in keys])
    _require_single(path, "key", [(key.name, key.digest.hex()) for key in keys])
    return tuple(keys)


def new_key() -> str:
    """A key that nobody guesses: 256 random bits in 43 characters after `lck_`."""
    return f"lck_{secrets.token_urlsafe(32)}"


def toml_entry(name: str, key: str, scope: Scope, limits: KeyLimits) -> str:
    """The lines of a key file for a key. Raises KeyFileError on a name that none can have."""
    sha256 = digest_of(key).hex()
    try:
        KeyEntry(name=name, sha256=sha256)
    except ValidationError as error:
        raise KeyFileError(
            f"{name!r} cannot name a key; expected up to 64 letters, digits, `.`, `-` and `_`, a letter or digit first"
        ) from error
    members = {"name": f'"{name}"', "sha256": f'"{sha256}"', "scope": f'"{scope}"'}
    members |= {field: str(value) for field, value in limits.model_dump(exclude_none=True).items()}
    return "\n".join([TABLE, *(f"{field} = {value}" for field, value in members.items())]) + "\n"


def _entries(path: Path, text: str) -> list[KeyEntry]:
    entries = []
    for number, table in enumerate(tables_of(path, text), 1):
        try:
            entries.append(KeyEntry.model_validate(table))
        except ValidationError as error:
            faults = "; ".join(
                ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"]))) for fault in error.errors()
            )
            raise KeyFileError(f"{path}, {TABLE} number {number}: {faults}") from error
    return entries


def _require_single(path: Path, what: str, values: list[tuple[str, str]]) -> None:
    """Raise KeyFileError where two of (name, value) have the same value."""
    seen: set[str] = set()
    for name, value in values:
        if value in seen:
            raise KeyFileError(f"{path}: two entries have the {what} of {name!r}; keep one of them")
        seen.add(value)


def _secret(entry: KeyEntry) -> str:
    assert entry.key is not None  # the model says so where there is no digest
    return entry.key.get_secret_value()
