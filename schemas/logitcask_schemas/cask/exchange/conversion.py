"""A cache of another tool made into a cask, shard by shard; run again, it goes on where it stopped."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from logitcask_schemas.cask.exchange.top_k_rows import Alignment, TopKRules, TopKSource
from logitcask_schemas.cask.format.columns import assemble
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.cask.format.manifest import MAX_VOCAB_SIZE
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.writer import CaskWriter
from logitcask_schemas.errors import CaptureSpecError, CaskError, OptionError
from logitcask_schemas.record.capture_spec import MAX_ENTRIES, CaptureSpec, capture_spec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords

POSITIONS_PER_SHARD: Final = 1 << 17
"""A shard is published once it has as many, so memory does not grow with the cache: 64 MB at k = 128."""
EXCESS_MASS: Final = 0.01
LOST: Final = (
    "no draws from the tail: losses that need them are refused (ghost_kl and topk_renorm are not)",
    "no probability of a token that came and is not among the entries: alm, uld and reports are refused",
    "the teacher's entropy is a lower bound: the weights teacher_entropy and teacher_confidence are refused",
    "the tail mass is 1 less the entries' sum, so it is as exact as these are",
    "temperatures other than 1 cannot be asked for",
)
"""What a converted cask lacks, a sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTeacher:
    """What a person says of the teacher behind a cache, which does not say it."""

    model: str
    revision: str | None = None
    dtype: str = "unknown"
    vocab_size: int
    """Width of its logits."""
    tokenizer_size: int
    tokenizer_fingerprint: str

    def __post_init__(self) -> None:
        """Raise OptionError for what no teacher has."""
        if not 1 <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise OptionError(
                f"expected a vocabulary of 1 to {MAX_VOCAB_SIZE:,} ids, got {self.vocab_size}; name the width of the "
                "teacher's logits with --vocab-size"
            )
        for option, name in (("--model", self.model), ("--revision", self.revision), ("--dtype", self.dtype)):
            if name is not None and not (name.strip() and name.isprintable()):
                raise OptionError(f"{option}: expected a name on one line, got {name!r}")

    def identity(self, tool: str, version: str, options: Mapping[str, Any]) -> TeacherIdentity:
        """The identity of records that a tool made of this teacher.

        The weights are not known: `weights_digest` is the SHA-256 of name and revision under a prefix of its own, so
        caches of one named teacher may be joined, and none of them with what logitcask captured.
        """
        named = "\0".join(["logitcask-imported-teacher-1", self.model, self.revision or ""])
        return TeacherIdentity(
            model=self.model,
            revision=self.revision,
            weights_digest=hashlib.sha256(named.encode()).hexdigest(),
            engine_options=dict(options) or None,
            dtype=self.dtype,
            vocab_size=self.vocab_size,
            tokenizer_size=self.tokenizer_size,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            engine=tool,
            engine_version=version,
        )


@dataclass(slots=True, kw_only=True)
class ConversionReport:
    """What was done."""

    shards: int = 0
    documents: int = 0
    """Stored by this run."""
    present: int = 0
    """Stored before, or twice in the cache."""
    differing: int = 0
    """Of these, those whose record differs from the one that the cask keeps."""
    alignment: Alignment = field(default_factory=Alignment)
    """Over all documents that were read."""
    tail_mass: float = 0.0
    """Sum of r over all positions read."""
    skipped: dict[str, int] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What people should look at before they train."""
        differing = (
            f"{self.differing:,} documents have the tokens of another one and other distributions; a cask holds a "
            "document once, and kept the first"
        )
        return [*self.alignment.notes(), *([differing] if self.differing else [])]


def imported_spec(source: TopKSource, *, k: int | None, codec: str) -> CaptureSpec:
    """The capture spec of a cache's records.

    Raises:
        CaptureSpecError: there is no such codec, or the cache has more entries than a record can have and nobody said
            how many to keep.
    """
    kept = source.k if k is None else min(k, source.k)
    if kept > MAX_ENTRIES - 1:
        raise CaptureSpecError(
            f"the cache has {source.k} entries a position, a record holds at most {MAX_ENTRIES - 1}; say how many of "
            "the largest to keep with --k (the rest joins the tail mass)"
        )
    return capture_spec(mode="topk", k=kept, logprob_codec=codec, imported=True)


def convert(
    source: TopKSource,
    destination: Path,
    *,
    teacher: NamedTeacher,
    spec: CaptureSpec,
    excess_mass: float = EXCESS_MASS,
    positions_per_shard: int = POSITIONS_PER_SHARD,
    progress: Callable[[float], None] = lambda size: None,
) -> ConversionReport:
    """Store a cache's documents in a cask, which is made where it does not exist.

    Documents that the cask has are left out, so a run that was stopped is finished by running it again.

    Args:
        source: the cache.
        destination: folder of the cask.
        teacher: who it is from.
        spec: from `imported_spec`.
        excess_mass: see `TopKRules`.
        positions_per_shard: a shard is published once it has as many.
        progress: is told the bytes read for each document.

    Raises:
        CaskError: the cache cannot be read, holds no position at all, or rows and tokens look shifted; what was
            published before stays.
        InvalidRecordError: a row is impossible; as above.
        IdentityMismatchError: the cask is another teacher's, or of another spec.
    """
    value: np.dtype[np.floating[Any]] = np.dtype("float32" if spec.logprob_codec == "f32" else "float16")
    rules = TopKRules(k=spec.k, vocab_size=teacher.vocab_size, excess_mass=excess_mass, dtype=value)
    report, waiting, positions = ConversionReport(), list[DocumentRecords](), 0
    identity = teacher.identity(source.tool, source.version, source.options)
    writer: CaskWriter | None = None

    def publish() -> None:
        nonlocal writer, positions
        # Before a cask exists: a cache that cannot be used leaves nothing behind.
        report.alignment.require_plain(str(destination))
        writer = writer or CaskWriter.create(destination, teacher=identity, capture=spec)
        report.differing += _differing(writer, waiting)
        entry = writer.publish(waiting)
        stored = 0 if entry is None else entry.documents
        report.shards += entry is not None
        report.documents += stored
        report.present += len(waiting) - stored
        waiting.clear()
        positions = 0

    for rows, size in source.documents():
        document = rules.records_of(rows)
        report.alignment.add(document)
        report.tail_mass += float(np.exp(document.records.log_tail_mass_P.astype(np.float64)).sum())
        waiting.append(document)
        positions += document.records.num_positions
        if positions >= positions_per_shard:
            publish()
        progress(size)
    report.skipped = dict(source.skipped)
    if not report.alignment.positions:
        left_out = [f"{reason.replace('_', ' ')}: {count}" for reason, count in report.skipped.items() if count]
        raise CaskError(
            f"the cache of {source.tool} holds no position to store ({', '.join(left_out) or 'no rows'}), so there is "
            f"nothing for {destination}; look at how it was captured"
        )
    if waiting:
        publish()
    if writer is not None:
        writer.close()
    return report


def _differing(writer: CaskWriter, documents: Sequence[DocumentRecords]) -> int:
    """How many documents the cask, or an earlier one of these, has with another record."""
    ids = [document.id for document in documents]
    times, layout = Counter(ids), RecordLayout.of(writer.manifest)
    stored: dict[bytes, int] = {}
    if ids_in_cask := [identity for identity in times if writer.has(identity)]:
        cask = Cask.open(writer.path)
        for identity in ids_in_cask:
            if (number := cask.find(identity)) is not None:
                shard, row = cask.locate(number)
                stored[identity] = int(cask.shard(shard).columns.checksums[row])
    differing = 0
    for identity, document in zip(ids, documents, strict=True):
        if identity in stored or times[identity] > 1:
            checksum = int(assemble([document], [identity], layout).checksums[0])
            differing += stored.setdefault(identity, checksum) != checksum
    return differing
