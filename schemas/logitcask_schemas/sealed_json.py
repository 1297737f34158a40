"""Small JSON documents that prove their own bytes: cask.json, index.json and the shard entries.

The member `checksum` is the SHA-256 (hex) of the file's bytes with the checksum's own 64 digits replaced by zeros.
That covers every byte, needs no canonical form of JSON, and takes three lines in any language.
"""

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


def unseal(data: bytes, *, where: Path | str, advice: str) -> dict[str, Any]:
    """The members of a sealed document without its checksum.

    Args:
        data: The file's bytes.
        where: The file or object, for the error.
        advice: What the user can do when the file is damaged.

    Raises:
        CaskCorruptionError: No JSON object, no checksum, or bytes that do not match it.
    """
    start = data.find(_MARK)
    stored = data[start + len(_MARK) : start + len(_MARK) + 64]
    if start < 0 or len(stored) != 64:
        raise CaskCorruptionError(f"{where}: no checksum in a file of {len(data)} bytes. {advice}")
    blank = data[: start + len(_MARK)] + _BLANK.encode() + data[start + len(_MARK) + 64 :]
    computed = hashlib.sha256(blank).hexdigest().encode()
    if stored != computed:
        raise CaskCorruptionError(
            f"{where}: the checksum inside says {stored.decode(errors='replace')}, "
            f"its {len(data)} bytes give {computed.decode()}. {advice}"
        )
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CaskCorruptionError(f"{where}: not JSON although its checksum matches ({error}). {advice}") from error
    if not isinstance(document, dict):
        raise CaskCorruptionError(f"{where}: expected a JSON object, got {type(document).__name__}. {advice}")
    document.pop("checksum", None)
    return document
