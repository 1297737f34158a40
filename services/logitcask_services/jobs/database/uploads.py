"""Uploads in parts, in the job database. A row of a part is written when the part is whole on the disk."""

import secrets
import time
from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from logitcask_schemas.api.uploads import MAX_PARTS, UploadRequest, UploadStatus
from logitcask_schemas.errors import LogitcaskError
from logitcask_services.corpora.uploads import StoredCorpus
from logitcask_services.jobs.database.corpora import add_corpus, recall, remember
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.tables import CorpusRow, PartRow, UploadRow
from logitcask_services.jobs.extraction import IdempotencyKey, NotFoundError


class UploadStateError(LogitcaskError, ValueError):
    """An upload is not in the state, or does not have the parts, that a request needs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UploadStore:
    """The uploads in parts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, request: UploadRequest, seconds: float, key: IdempotencyKey | None) -> tuple[UploadRow, bool]:
        """A new upload that may take so many seconds, and whether it is new. Raises IdempotencyConflictError."""
        now = time.time()
        with self._database.write() as session:
            if (object_id := recall(session, key)) is not None:
                return _row(session, object_id), False
            row = UploadRow(
                id=f"upload-{secrets.token_hex(12)}",
                filename=request.filename,
                purpose=request.purpose,
                bytes=request.bytes,
                status="pending",
                created_at=now,
                expires_at=now + seconds,
            )
            session.add(row)
            remember(session, key, row.id)
            return row, True

    def get(self, upload_id: str) -> UploadRow:
        """The upload with this id. Raises NotFoundError."""
        with self._database.read() as session:
            return _row(session, upload_id)

    def parts(self, row: UploadRow) -> Sequence[PartRow]:
        """The parts that are here, in the order in which they came."""
        with self._database.read() as session:
            return session.scalars(select(PartRow).where(PartRow.upload == row.number).order_by(PartRow.number)).all()

    def require_pending(self, upload_id: str) -> UploadRow:
        """An upload that takes parts. Raises NotFoundError, UploadStateError."""
        row = self.get(upload_id)
        _require_pending(row)
        return row

    def add_part(self, upload_id: str, part_id: str, size: int, sha256: str) -> PartRow:
        """Note a part that is on the disk.

        Raises:
            NotFoundError: There is no such upload.
            UploadStateError: It is not pending, has too many parts, or more than twice its bytes.
        """
        with self._database.write() as session:
            row = _row(session, upload_id)
            _require_pending(row)
            query = select(func.count(), func.sum(PartRow.bytes)).where(PartRow.upload == row.number)
            count, total = session.execute(query).one()
            if count >= MAX_PARTS:
                raise UploadStateError(
                    "too_many_parts", f"{row.id} has {count} parts, the most there may be; send larger ones"
                )
            if (total or 0) + size > 2 * row.bytes:  # once, and once more where parts were sent again
                raise UploadStateError(
                    "parts_too_large",
                    f"the parts of {row.id} are more than twice the {row.bytes} bytes that were announced",
                )
            part = PartRow(id=part_id, upload=row.number, bytes=size, sha256=sha256, created_at=time.time())
            session.add(part)
            return part

    def ordered(self, upload_id: str, part_ids: Sequence[str]) -> tuple[UploadRow, list[PartRow]]:
        """The upload and the parts with these ids, which make its bytes.

        Raises:
            NotFoundError: There is no such upload.
            UploadStateError: It was cancelled or has expired, a part is not its own or comes twice, or bytes miss.
        """
        with self._database.read() as session:
            row = _row(session, upload_id)
            here = {part.id: part for part in session.scalars(select(PartRow).where(PartRow.upload == row.number))}
        if row.status == "completed":
            return row, []
        _require_pending(row)
        unknown = [part_id for part_id in part_ids if part_id not in here]
        if unknown:
            raise UploadStateError(
                "unknown_part", f"{unknown[0][:64]!r} is no part of {row.id}; it has {len(here)} parts"
            )
        if len(set(part_ids)) < len(part_ids):
            raise UploadStateError("part_twice", "a part is named twice in part_ids")
        total = sum(here[part_id].bytes for part_id in part_ids)
        if total != row.bytes:
            raise UploadStateError(
                "wrong_size", f"the {len(part_ids)} parts have {total} bytes together, {row.bytes} were announced"
            )
        return row, [here[part_id] for part_id in part_ids]

    def complete(self, upload_id: str, stored: StoredCorpus) -> CorpusRow:
        """Pending -> completed, with its corpus, all at once; again: the same corpus. Raises UploadStateError."""
        with self._database.write() as session:
            row = _row(session, upload_id)
            if row.status != "completed":
                _require_pending(row)
                corpus, _ = add_corpus(session, stored, row.filename)
                session.flush()
                row.status, row.corpus_id = "completed", corpus.id
                session.execute(delete(PartRow).where(PartRow.upload == row.number))
            return session.scalars(select(CorpusRow).where(CorpusRow.id == row.corpus_id)).one()

    def end(self, upload_id: str, status: UploadStatus) -> UploadRow:
        """Pending -> cancelled or expired; its parts are no more. Raises NotFoundError, UploadStateError."""
        with self._database.write() as session:
            row = _row(session, upload_id)
            if row.status != status:
                _require_pending(row, may_be_late=True)
                row.status = status
                session.execute(delete(PartRow).where(PartRow.upload == row.number))
            return row

    def expired(self) -> list[str]:
        """Ids of pending uploads whose time is over."""
        query = select(UploadRow.id).where(UploadRow.status == "pending", UploadRow.expires_at <= time.time())
        with self._database.read() as session:
            return list(session.scalars(query))

    def part_ids(self) -> dict[str, set[str]]:
        """Of each pending upload, the parts that are here."""
        with self._database.read() as session:
            pending = session.execute(select(UploadRow.number, UploadRow.id).where(UploadRow.status == "pending")).all()
            names: dict[int, str] = dict(pending)
            parts: dict[str, set[str]] = {name: set() for name in names.values()}
            for number, part_id in session.execute(select(PartRow.upload, PartRow.id)):
                if number in names:
                    parts[names[number]].add(part_id)
            return parts


def _row(session: Session, upload_id: str) -> UploadRow:
    row = session.scalar(select(UploadRow).where(UploadRow.id == upload_id))
    if row is None:
        raise NotFoundError("upload", upload_id)
    return row


def _require_pending(row: UploadRow, *, may_be_late: bool = False) -> None:
    if row.status != "pending":
        raise UploadStateError(f"upload_{row.status}", f"{row.id} is {row.status}; begin another upload")
    if row.expires_at <= time.time() and not may_be_late:
        raise UploadStateError("upload_expired", f"the time of {row.id} is over; begin another upload")
