"""A file with keys, as far as clients and the service read it alike: TOML, or plainly one key a line.

A client sends the first key that the file tells. The service's own file mostly holds SHA-256 of keys, of which none can
be sent.
"""

import tomllib
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.errors import LogitcaskError

TABLE: Final = "[[key]]"
"""What the first line of the TOML form is."""


class KeyFileError(LogitcaskError, ValueError):
    """A key file cannot be read, or holds no usable keys. The message never holds a key."""


def key_to_send(path: Path) -> str:
    """The first key of a file, for a client. Raises KeyFileError where it cannot be read or has digests alone."""
    text = text_of(path)
    if not is_toml(path, text):
        return lines_of(path, text)[0]
    told = (table.get("key") for table in tables_of(path, text) if isinstance(table, dict))
    if (key := next((key for key in told if isinstance(key, str)), None)) is None:
        raise KeyFileError(
            f"{path} holds digests of keys and no key to send; put the key that `logitcask keys new` showed "
            "into a file of its own, or into LOGITCASK_API_KEY"
        )
    return key


def text_of(path: Path) -> str:
    """What the file holds. Raises KeyFileError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"the API key file {path} cannot be read: {error}") from error


def is_toml(path: Path, text: str) -> bool:
    """By its name, or by its first line, as a secret that is mounted often has a name of its own."""
    return path.suffix == ".toml" or _significant(text)[:1] == [TABLE]


def lines_of(path: Path, text: str) -> list[str]:
    """The keys of the plain form, at least one. Raises KeyFileError."""
    if not (lines := _significant(text)):
        raise KeyFileError(f"the API key file {path} holds no key; put one key on a line of its own")
    return lines


def tables_of(path: Path, text: str) -> list[Any]:
    """The entries of the TOML form as they came, at least one. Raises KeyFileError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise KeyFileError(f"the API key file {path} is not TOML: {error}") from error
    if strange := sorted(document.keys() - {"key"}):
        raise KeyFileError(f"{path}: {', '.join(strange)}: not known here; a key file holds {TABLE} tables alone")
    tables = document.get("key", [])
    if not isinstance(tables, list) or not tables:
        raise KeyFileError(f"the API key file {path} holds no key; begin each with {TABLE}")
    return tables


def _significant(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
