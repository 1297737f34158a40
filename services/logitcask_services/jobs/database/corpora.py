"""Corpora and idempotency keys in the job database."""

import secrets
import time
from collections.abc import Sequence

from sqlalchemy import JSON, Text, cast, delete, select, type_coerce
from sqlalchemy.orm import Session

from logitcask_schemas.errors import LogitcaskError
from logitcask_services.corpora.uploads import StoredCorpus
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.tables import CorpusRow, IdempotencyRow, JobRow
from logitcask_services.jobs.extraction import IdempotencyConflictError, IdempotencyKey, NotFoundError

IDEMPOTENCY_SECONDS = 30 * 24 * 3600
"""How long a key is remembered."""


def recall(session: Session, key: IdempotencyKey | None) -> str | None:
    """The object an earlier request with this key made, or None. Raises IdempotencyConflictError on another request."""
    row = session.get(IdempotencyRow, (key.scope, key.key)) if key else None
    if row is None or key is None:
        return None
    if row.fingerprint != key.fingerprint:
        raise IdempotencyConflictError(
            f"Idempotency-Key {key.key!r} was used for another request, which made {row.object_id}; use a new key"
        )
    return row.object_id


def remember(session: Session, key: IdempotencyKey | None, object_id: str) -> None:
    """Tie a key to the object its request made, in the transaction that makes it."""
    if key:
        session.add(
            IdempotencyRow(
                scope=key.scope, key=key.key, fingerprint=key.fingerprint, object_id=object_id, created_at=time.time()
            )
        )


def forget_old_keys(session: Session) -> None:
    """Drop keys older than IDEMPOTENCY_SECONDS."""
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < time.time() - IDEMPOTENCY_SECONDS))


def add_corpus(session: Session, stored: StoredCorpus, name: str | None) -> tuple[CorpusRow, bool]:
    """The corpus with this content and whether it is new, within the caller's transaction."""
    row = session.scalar(select(CorpusRow).where(CorpusRow.sha256 == stored.sha256))
    if row is not None:
        is_back, row.deleted_at = row.deleted_at is not None, None
        if is_back:
            row.created_at, row.name = time.time(), name
        return row, is_back
    row = CorpusRow(
        id=f"corpus-{secrets.token_hex(12)}",
        sha256=stored.sha256,
        bytes=stored.bytes,
        lines=stored.lines,
        name=name,
        created_at=time.time(),
    )
    session.add(row)
    return row, True


class CorpusInUseError(LogitcaskError, RuntimeError):
    """A corpus cannot be deleted: `users` are the ids of jobs that need it."""

    def __init__(self, corpus_id: str, users: Sequence[str]) -> None:
        named = ", ".join(users[:8]) + (", ..." if len(users) > 8 else "")
        super().__init__(
            f"{corpus_id} is in use by {named}: let them end or cancel them; a failed one may be resumed, delete "
            "it first"
        )
        self.users = list(users)


def _users(session: Session, corpus_id: str, since: float | None = None) -> list[str]:
    """Ids of jobs that name a corpus, also as demonstrations, and may still need it; or ended since a moment."""
    named = (JobRow.corpus_id == corpus_id) | cast(type_coerce(JobRow.request, JSON), Text).contains(corpus_id)
    rows = session.execute(select(JobRow.id, JobRow.status, JobRow.timestamps).where(named).order_by(JobRow.number))
    return [
        job_id
        for job_id, status, timestamps in rows
        if status not in ("completed", "cancelled") or (since is not None and max(timestamps.values()) >= since)
    ]


class CorpusRegistry:
    """The corpora the service knows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, stored: StoredCorpus, name: str | None, key: IdempotencyKey | None) -> tuple[CorpusRow, bool]:
        """The corpus with this content and whether it is new. Raises IdempotencyConflictError."""
        with self._database.write() as session:
            recall(session, key)  # same key and same content lead to the same row below
            row, created = add_corpus(session, stored, name)
            if key and session.get(IdempotencyRow, (key.scope, key.key)) is None:
                remember(session, key, row.id)
            return row, created

    def get(self, corpus_id: str) -> CorpusRow:
        """The corpus with this id. Raises NotFoundError."""
        with self._database.read() as session:
            row = session.scalar(select(CorpusRow).where(CorpusRow.id == corpus_id, CorpusRow.deleted_at.is_(None)))
        if row is None:
            raise NotFoundError("corpus", corpus_id)
        return row

    def lookup(self, corpus_id: str) -> CorpusRow | None:
        """The corpus with this id, or None."""
        try:
            return self.get(corpus_id)
        except NotFoundError:
            return None

    def with_content(self, sha256: str) -> CorpusRow | None:
        """The corpus with this digest, or None."""
        with self._database.read() as session:
            return session.scalar(select(CorpusRow).where(CorpusRow.sha256 == sha256, CorpusRow.deleted_at.is_(None)))

    def digests(self) -> set[str]:
        """Of all contents that are kept."""
        with self._database.read() as session:
            return set(session.scalars(select(CorpusRow.sha256).where(CorpusRow.deleted_at.is_(None))))

    def delete(self, corpus_id: str) -> CorpusRow:
        """Forget a corpus; the row stays for ended jobs that name it, its content is the caller's to delete.

        Raises:
            NotFoundError: There is none.
            CorpusInUseError: A job that has not ended, or failed and may be resumed, needs it.
        """
        with self._database.write() as session:
            row = session.scalar(select(CorpusRow).where(CorpusRow.id == corpus_id, CorpusRow.deleted_at.is_(None)))
            if row is None:
                raise NotFoundError("corpus", corpus_id)
            if users := _users(session, corpus_id):
                raise CorpusInUseError(corpus_id, users)
            row.deleted_at = time.time()
            return row

    def unused_since(self, moment: float) -> list[str]:
        """Ids of corpora that came, and whose last job ended, before a moment."""
        with self._database.read() as session:
            query = select(CorpusRow.id).where(CorpusRow.deleted_at.is_(None), CorpusRow.created_at < moment)
            old = list(session.scalars(query))
            return [corpus_id for corpus_id in old if not _users(session, corpus_id, since=moment)]

    def page(self, *, after: str | None, limit: int) -> Sequence[CorpusRow]:
        """Up to `limit` corpora, newest first, older than `after`."""
        query = select(CorpusRow).where(CorpusRow.deleted_at.is_(None)).order_by(CorpusRow.number.desc()).limit(limit)
        if after is not None:
            query = query.where(CorpusRow.number < self.get(after).number)
        with self._database.read() as session:
            return session.scalars(query).all()
