"""Corpora and idempotency keys in the job database."""

import secrets
import time
from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from logitcask_services.corpora.uploads import StoredCorpus
from logitcask_services.jobs.database.database import Database
from logitcask_services.jobs.database.tables import CorpusRow, IdempotencyRow
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
            return session.scalar(
                select(CorpusRow).where(CorpusRow.sha256 == sha256, CorpusRow.deleted_at.is_(None))
            )

    def digests(self) -> set[str]:
        """Of all contents that are kept."""
        with self._database.read() as session:
            return set(session.scalars(select(CorpusRow.sha256).where(CorpusRow.deleted_at.is_(None))))

    def page(self, *, after: str | None, limit: int) -> Sequence[CorpusRow]:
        """Up to `limit` corpora, newest first, older than `after`."""
        query = select(CorpusRow).where(CorpusRow.deleted_at.is_(None)).order_by(CorpusRow.number.desc()).limit(limit)
        if after is not None:
            query = query.where(CorpusRow.number < self.get(after).number)
        with self._database.read() as session:
            return session.scalars(query).all()
