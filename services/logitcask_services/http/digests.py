"""Digests of what is sent and answered: `Repr-Digest` and `Content-Digest` of RFC 9530, with sha-256."""

import base64
import binascii
import hmac
import re

from starlette.datastructures import Headers

from logitcask_services.http.problems import Problem

HEADERS = ("repr-digest", "content-digest")
WANTED = {"Want-Repr-Digest": "sha-256=10"}
_MEMBER = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):\s*")


def digest_header(sha256: str) -> str:
    """The value of `Repr-Digest` for a digest in hex."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def declared_sha256(headers: Headers) -> list[tuple[str, str]]:
    """Header and digest in hex, for each that a request declares. Raises Problem 400 where one cannot be checked."""
    # A list may come in several lines (RFC 9110, 5.3).
    return [(name, _sha256_of(name, ", ".join(headers.getlist(name)))) for name in HEADERS if name in headers]


def require_digests(declared: list[tuple[str, str]], sha256: str) -> None:
    """Raise Problem 400 where what came has another digest (in hex) than was declared."""
    for name, digest in declared:
        if not hmac.compare_digest(digest, sha256):
            raise Problem(
                400,
                "digest_mismatch",
                f"the body has the SHA-256 {sha256}, {name.title()} says {digest}: it was damaged on its way, or "
                "changed while it was read. Nothing was kept; send it again",
                param=name.title(),
            )


def _sha256_of(name: str, value: str) -> str:
    members = [_MEMBER.fullmatch(part) for part in value.split(",")]
    known = [member[2] for member in members if member is not None and member[1] == "sha-256"]
    if None not in members and len(known) == 1:
        try:
            digest = base64.b64decode(known[0], validate=True)
        except binascii.Error:
            digest = b""
        if len(digest) == 32:
            return digest.hex()
    raise Problem(
        400,
        "invalid_digest",
        f"{name.title()} is {value[:100]!r}; expected `sha-256=:...:` with 32 bytes in base64 (RFC 9530)",
        param=name.title(),
        headers=WANTED,
    )
