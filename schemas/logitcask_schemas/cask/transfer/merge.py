"""Several casks of one teacher and capture spec into one.

A shard none of whose documents is in the target yet is taken over as it is, under its own name: by a hard link where
the file system has them, which costs no space and no time, and is safe because shards never change and `repair`
renames instead of rewriting. A shard that shares documents with the target is rewritten without them. Run again after a
crash, or with one more source, a merge goes on where it stopped.

Of a document that several sources have, the first is kept; shards whose documents say which tokens are answers come
first, in whatever order the sources are named.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from logitcask_schemas.cask.carriers.packed import PackedCarrier
from logitcask_schemas.cask.documents import ShardDocuments
from logitcask_schemas.cask.format.columns import gather_rows
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.hint_publication import copy_hints
from logitcask_schemas.cask.integrity.verify import sha256_of
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.files import FileOperations
from logitcask_schemas.cask.transfer.export import absolute_place, open_source
from logitcask_schemas.cask.writer import CaskWriter
from logitcask_schemas.errors import CaskCorruptionError, CaskError


@dataclass(slots=True, kw_only=True)
class MergeReport:
    """What became of the sources' shards and documents."""

    linked: int = 0
    """Shards that share their bytes on disk with the source."""
    copied: int = 0
    rewritten: int = 0
    """Shards of which the target had some documents already."""
    skipped: int = 0
    """Shards of which the target had every document already."""
    documents: int = 0
    """New in the target."""
    duplicates: int = 0
    """Stored in the target already, left out."""
    answers_left_out: int = 0
    """Of the duplicates: those that say which tokens are answers, while the document in the target does not."""


def merge_casks(
    target: Path | str,
    sources: Sequence[Path | str],
    *,
    link: bool = True,
    verify: bool = True,
    single_writer: bool = False,
    files: FileOperations | None = None,
    planned: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> MergeReport:
    """Bring the documents of the sources into the target, each document once.

    Args:
        target: A cask, or a folder or URL that is to become one.
        sources: Casks, as folders or URLs; they stay as they are. Of a URL one shard at a time is fetched.
        link: Share whole shards with the sources where possible; False copies them.
        verify: Prove the SHA-256 of every shard that is taken over whole.
        single_writer: Of a target in an object store: see `CaskWriter.create`.
        files: The file system, for tests.
        planned: Called once with the bytes of all sources.
        progress: Called with the bytes of every finished shard.

    Raises:
        IdentityMismatchError: Sources or target differ in teacher or capture spec; names the fields.
        CaskNotFoundError, CaskCorruptionError: A source is missing or damaged. What was merged before stays.
        CaskError: The target is one of the sources.
        CaskWriteError, StoreError: File system or store refuses; run again when it does not.
    """
    if not sources:
        raise CaskError(f"nothing to merge into {target}: name at least one source")
    with ExitStack() as held:
        opened = [held.enter_context(open_source(str(source))) for source in sources]
        first = opened[0].manifest
        for source, cask in zip(sources, opened, strict=True):
            first.require_same(cask.manifest.teacher, cask.manifest.capture, where=opened[0].place)
            if absolute_place(source) == absolute_place(target):
                raise CaskError(f"{target}: is a source of the merge as well; name another folder for the result")
        if planned is not None:
            planned(sum(cask.num_bytes for cask in opened))
        report = MergeReport()
        writer = held.enter_context(
            CaskWriter.create(
                target,
                teacher=first.teacher,
                capture=first.capture,
                files=files,
                version=max(cask.manifest.version for cask in opened),
                rank_table=first.rank_table,
                single_writer=single_writer,
            )
        )
        saying = list[bytes]()
        for says_answers in (True, False):
            for cask in opened:
                for number, documents in enumerate(cask.shard_documents()):
                    if (cask.entries[number].answer_documents > 0) != says_answers:
                        continue
                    if says_answers:
                        saying.extend(_saying_duplicates(writer, cask, number, documents))
                    _merge_shard(writer, cask, number, documents, report, link=link, verify=verify)
                    if progress is not None:
                        progress(cask.entries[number].bytes)
    report.answers_left_out = _without_answers(target, saying)
    return report


def _saying_duplicates(writer: CaskWriter, cask: Cask, number: int, documents: ShardDocuments) -> list[bytes]:
    """Documents of a shard that the target has already and that say which of their tokens are answers."""
    ids = [identity.tobytes() for identity in documents.ids]
    duplicates = [row for row, document_id in enumerate(ids) if writer.has(document_id)]
    if not duplicates or (answers := cask.shard(number).lists.answers) is None:
        return []
    return [ids[row] for row in duplicates if len(answers.stored(row))]


def _without_answers(target: Path | str, saying: list[bytes]) -> int:
    """How many of some documents do not say in the target which of their tokens are answers."""
    if not saying:
        return 0
    count = 0
    with open_source(str(target)) as merged:
        for document_id in saying:
            number = merged.find(document_id)
            count += number is not None and merged.read(number).answer_ranges_R2 is None
    return count


def _merge_shard(
    writer: CaskWriter,
    cask: Cask,
    number: int,
    documents: ShardDocuments,
    report: MergeReport,
    *,
    link: bool,
    verify: bool,
) -> None:
    entry, added = cask.entries[number], 0
    rows = _missing(writer, documents)
    # A cask may name the same teacher otherwise (another folder name, say); its shards then carry another digest.
    same_name = entry.identity == writer.manifest.identity_digest()
    # A packed shard can be read with the rank table alone that packed it.
    same_ranks = entry.carrier != PackedCarrier.name or cask.manifest.rank_table == writer.manifest.rank_table
    if same_name and same_ranks and len(rows) == entry.documents:
        with cask.location.held(entry) as path:
            if verify:
                _require_content(path, entry)
            with _hints_of(cask, entry, verify=verify) as hints:
                linked = writer.adopt(entry, path, documents, link=link, hints=hints)
        if linked is None:
            # Another writer has published one of these documents in the meantime.
            rows = _missing(writer, documents)
        else:
            report.linked += linked
            report.copied += not linked
            rows, added = [], entry.documents
    elif not rows:
        report.skipped += 1
    if rows:
        shard = cask.shard(number)
        for row in rows:
            shard.verify(row)
        columns = cask.columns_with_hints(number)
        published = writer.publish_columns(gather_rows([(columns, row) for row in rows], cask.layout))
        added = published.documents if published else 0
        report.rewritten += 1
    report.documents += added
    report.duplicates += entry.documents - added


@contextmanager
def _hints_of(cask: Cask, entry: ShardEntry, *, verify: bool) -> Iterator[Path | None]:
    """The file of hints beside a shard, proved if wanted; None where it has none."""
    if entry.hints is None or cask.manifest.capture.hints is None:
        yield None
        return
    with cask.location.held_hints(entry) as path:
        if verify:
            copy_hints(path, entry, None)
        yield path


def _missing(writer: CaskWriter, documents: ShardDocuments) -> list[int]:
    return [row for row, identity in enumerate(documents.ids) if not writer.has(identity.tobytes())]


def _require_content(path: Path, entry: ShardEntry) -> None:
    if (digest := sha256_of(path)) != entry.sha256:
        raise CaskCorruptionError(
            f"{path}: SHA-256 should be {entry.sha256}, it is {digest}. Run `logitcask cask repair` on this cask first."
        )
