"""The documents of a cask: its manifest (cask.json), and the index that repeats the entries of its shards."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from logitcask_schemas.cask.format.packed.rank_table import RankTable
from logitcask_schemas.cask.format.sealed_json import require_checksum, seal, unseal
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskVersionError, IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec, stored_spec
from logitcask_schemas.record.identity import Accept, TeacherIdentity

RESTORE: Final = "Restore it from a copy of the cask"
"""Advice for a damaged document that nothing else repeats."""
_DROP_INDEX: Final = "It only repeats the entry files: delete it, the next writer makes it anew"


FORMAT_VERSION: Final = 1
"""Of a cask whose documents are recorded whole; what other programs can read."""
EXTENT_VERSION: Final = 2
"""Of a cask that may hold documents of which some positions are recorded, or that were read under a context."""
PACKED_VERSION: Final = 3
"""Of a cask with a rank table, or with codec `u8all`; it may hold what version 2 may."""
MAX_VOCAB_SIZE: Final = 1 << 24
"""Ids are stored in at most 16 + 8 bits."""


def _as_stored(capture: object, validate: ValidatorFunctionWrapHandler) -> object:
    # A spec that an older version stored is outside today's limits, also when it is handed on from cask to cask.
    if isinstance(capture, CaptureSpec):
        return capture
    return stored_spec(capture) if isinstance(capture, Mapping) else validate(capture)


class CaskManifest(BaseModel):
    """cask.json: what every shard of the cask has in common. Written once, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["logitcask"] = "logitcask"
    version: Literal[1, 2, 3] = FORMAT_VERSION
    teacher: TeacherIdentity
    capture: Annotated[CaptureSpec, WrapValidator(_as_stored)]
    created_by: str
    """Program and version that created the cask."""
    created_at: str
    """UTC time of creation, ISO 8601."""
    rank_table: Annotated[RankTable | None, Field(exclude_if=lambda table: table is None)] = None
    """How frequent each id is, for shards of carrier `packed`; not written where there is none."""

    @model_validator(mode="after")
    def _storable(self) -> Self:
        if not 0 < self.teacher.vocab_size <= MAX_VOCAB_SIZE:
            raise ValueError(f"vocabulary of {self.teacher.vocab_size}; format 1 stores 1 to {MAX_VOCAB_SIZE} ids")
        if self.version < (needed := version_for(self.capture, self.rank_table)):
            raise ValueError(f"a rank table or codec u8all needs version {needed}, this is version {self.version}")
        if self.capture.hints is not None and not self.capture.hints.is_resolved:
            raise ValueError(
                f"hints of layers {list(self.capture.hints.layers)}: a cask has them ascending, counted from 0 on "
                "(HintSpec.resolved)"
            )
        if self.rank_table is not None:
            self._require_own_ids(self.rank_table)
        return self

    def _require_own_ids(self, table: RankTable) -> None:
        if table.tokenizer_fingerprint != self.teacher.tokenizer_fingerprint:
            raise ValueError(
                f"the rank table is for tokenizer {table.tokenizer_fingerprint}, the teacher's is "
                f"{self.teacher.tokenizer_fingerprint}: its ids mean other tokens"
            )
        if len(table.classes_V) != self.teacher.vocab_size:
            raise ValueError(
                f"the rank table has {len(table.classes_V)} ids, the teacher's vocabulary {self.teacher.vocab_size}"
            )

    def identity_digest(self) -> str:
        """SHA-256 (hex) over teacher and capture spec; every shard carries it, so a foreign one is noticed."""
        both = {"teacher": self.teacher.model_dump(mode="json"), "capture": self.capture.canonical()}
        return hashlib.sha256(json.dumps(both, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def require_same(
        self, teacher: TeacherIdentity, capture: CaptureSpec, *, where: str, accept: Collection[Accept] = ()
    ) -> None:
        """Raise IdentityMismatchError naming every field of teacher or spec that differs, with both values.

        Args:
            teacher: the identity offered.
            capture: the spec offered.
            where: the cask, for the message.
            accept: see `TeacherIdentity.require_same`.
        """
        self.teacher.require_same(teacher, where=where, accept=accept)
        mine, theirs = self.capture.canonical(), capture.canonical()
        if mine != theirs:
            listing = "; ".join(
                f"{name}: {mine.get(name)!r} here, {theirs.get(name)!r} offered"
                for name in sorted(mine.keys() | theirs.keys())
                if mine.get(name) != theirs.get(name)
            )
            raise IdentityMismatchError(
                f"{where} is for records of another capture spec ({listing}). {_way_on(mine, theirs)}"
            )

    def require_extents(self, where: str, what: str) -> None:
        """Raise CaskVersionError where the cask may only hold documents that are recorded whole, without a context.

        Args:
            where: the cask, for the message.
            what: who has other documents.
        """
        if self.version < EXTENT_VERSION:
            raise CaskVersionError(
                f"{where} is of version {self.version}, which holds records of all positions of a document, made "
                f"without a context; {what} others. "
                f"Use another cask, created for such documents (CaskWriter.create(..., version={EXTENT_VERSION}))"
            )


def version_for(
    capture: CaptureSpec, rank_table: RankTable | None = None, *, extents: bool = False
) -> Literal[1, 2, 3]:
    """The lowest version of a cask that stores this.

    Args:
        capture: Its spec.
        rank_table: Its table.
        extents: Whether documents may be recorded in part, or under a context.
    """
    if rank_table is not None or capture.logprob_codec == "u8all":
        return PACKED_VERSION
    return EXTENT_VERSION if extents else FORMAT_VERSION


def require_same_ranks(mine: CaskManifest, offered: CaskManifest, *, where: str) -> None:
    """Raise IdentityMismatchError unless both casks write the ids of packed shards by the same rank table.

    Args:
        mine: A cask's manifest.
        offered: That of another cask, whose packed shards are to become the first one's as they are.
        where: The first cask, for the message.
    """
    if mine.rank_table != offered.rank_table:
        digests = [table.digest if table else "no rank table" for table in (mine.rank_table, offered.rank_table)]
        raise IdentityMismatchError(
            f"{where}: rank_table: {digests[0]} here, {digests[1]} offered. Packed shards cannot be read by another "
            "table. A source that has grown since it was packed needs a new folder; packed casks may be merged, which "
            "packs anew."
        )


def _way_on(mine: dict[str, object], theirs: dict[str, object]) -> str:
    """What to do about two specs that differ."""
    if {**mine, "tail_logprobs": None} != {**theirs, "tail_logprobs": None}:
        return "Use another cask for this spec."
    here, there, go_on = ("with", "without", "with") if mine["tail_logprobs"] else ("without", "with", "without")
    return (
        f"Here it is {here} --held-out (or --tail-logprobs), offered is {there}: capture {go_on} it to go on here, or "
        "use another cask."
    )


class _Index(BaseModel):
    """index.json."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["logitcask-index"] = "logitcask-index"
    version: Literal[1] = FORMAT_VERSION
    entries: list[ShardEntry]


class _SealedIndex(_Index):
    """index.json as it is stored."""

    checksum: str


def parse_manifest(content: bytes, *, where: Path | str) -> CaskManifest:
    """The bytes of a cask.json, validated.

    Raises:
        CaskCorruptionError: It is damaged.
        CaskError: It is of a newer version, or not logitcask's.
    """
    document = unseal(content, where=where, advice=RESTORE)
    _require_version(where, document, "logitcask", newest=PACKED_VERSION)
    try:
        return CaskManifest.model_validate(document)
    except ValidationError as error:
        raise CaskCorruptionError(f"{where}: {_first_fault(error)}. {RESTORE}.") from error


def manifest_bytes(manifest: CaskManifest) -> bytes:
    """What cask.json holds."""
    return seal(manifest.model_dump(mode="json"))


def parse_entry(content: bytes, *, where: Path | str, name: str | None = None) -> ShardEntry:
    """The bytes of an entry file, validated; CaskCorruptionError when damaged, or not of the shard of this name."""
    try:
        entry = ShardEntry.model_validate(unseal(content, where=where, advice=RESTORE))
    except ValidationError as error:
        raise CaskCorruptionError(f"{where}: {_first_fault(error)}. {RESTORE}.") from error
    if name is not None and entry.name != name:
        raise CaskCorruptionError(f"{where}: holds the entry of shard {entry.name}. {RESTORE}.")
    return entry


def entry_bytes(entry: ShardEntry) -> bytes:
    """What an entry file holds."""
    return seal(entry.model_dump(mode="json"))


def parse_index(content: bytes, *, where: Path | str) -> dict[str, ShardEntry]:
    """The entries in the bytes of an index.json by name; CaskCorruptionError when damaged."""
    require_checksum(content, where=where, advice=_DROP_INDEX)
    try:
        # Without Python's objects in between: of 100,000 entries that is a quarter of the time.
        return {entry.name: entry for entry in _SealedIndex.model_validate_json(content).entries}
    except ValidationError:
        pass  # once more, for an error that says what is wrong
    document = unseal(content, where=where, advice=_DROP_INDEX)
    _require_version(where, document, "logitcask-index", newest=FORMAT_VERSION)
    try:
        return {entry.name: entry for entry in _Index.model_validate(document).entries}
    except ValidationError as error:
        raise CaskCorruptionError(f"{where}: {_first_fault(error)}. {_DROP_INDEX}.") from error


def index_bytes(entries: Iterable[ShardEntry]) -> bytes:
    """What index.json holds for these entries."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    return seal(_Index(entries=ordered).model_dump(mode="json"))


def _require_version(path: Path | str, document: dict[str, Any], expected: str, *, newest: int) -> None:
    kind, version = document.get("format"), document.get("version")
    if kind != expected:
        raise CaskError(f"{path}: format is {json.dumps(kind)}, expected {json.dumps(expected)}")
    if type(version) is not int or version not in range(FORMAT_VERSION, newest + 1):
        known = f"version {FORMAT_VERSION}" if newest == FORMAT_VERSION else f"versions {FORMAT_VERSION} to {newest}"
        raise CaskError(
            f"{path}: format version {json.dumps(version)}; this program reads {known}. Upgrade logitcask to read it."
        )


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'document'}: {fault['msg']}"
