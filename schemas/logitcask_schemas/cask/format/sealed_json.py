"""Sealed JSON: one document in a file, with its own checksum as the first member; see docs/format.md, section 3."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.errors import CaskCorruptionError

_BLANK: Final = "0" * 64
_MARK: Final = b'"checksum":"'


def seal(document: dict[str, Any]) -> bytes:
    """The document as compact JSON with its checksum as first member.

    The order of members is kept, so the same document always gives the same bytes.
    """
    text = json.dumps({"checksum": _BLANK, **document}, separators=(",", ":"), ensure_ascii=True)
    blank = text.encode() + b"\n"
    return blank.replace(_BLANK.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)


def unseal(content: bytes, *, where: Path | str, advice: str) -> dict[str, Any]:
    """The members of a sealed document without its checksum.

    Args:
        content: The file's bytes.
        where: The file or object, for the error.
        advice: What the user can do when the file is damaged.

    Raises:
        CaskCorruptionError: No JSON object, no checksum, or bytes that do not match it.
    """
    require_checksum(content, where=where, advice=advice)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CaskCorruptionError(f"{where}: not JSON although its checksum matches ({error}). {advice}") from error
    if not isinstance(document, dict):
        raise CaskCorruptionError(f"{where}: expected a JSON object, got {type(document).__name__}. {advice}")
    document.pop("checksum", None)
    return document


def require_checksum(content: bytes, *, where: Path | str, advice: str) -> None:
    """Raise CaskCorruptionError unless there is a checksum that the bytes match."""
    start = content.find(_MARK)
    stored = content[start + len(_MARK) : start + len(_MARK) + 64]
    if start < 0 or len(stored) != 64:
        raise CaskCorruptionError(f"{where}: no checksum in a file of {len(content)} bytes. {advice}")
    blank = content[: start + len(_MARK)] + _BLANK.encode() + content[start + len(_MARK) + 64 :]
    computed = hashlib.sha256(blank).hexdigest().encode()
    if stored != computed:
        raise CaskCorruptionError(
            f"{where}: the checksum inside says {stored.decode(errors='replace')}, "
            f"its {len(content)} bytes give {computed.decode()}. {advice}"
        )
