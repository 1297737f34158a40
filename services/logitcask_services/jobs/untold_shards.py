"""Shards that a cancelled extraction published and nobody lived to count, found in its ledger and in the cask.

A run that goes on adopts them. Nobody takes up a cancelled job, so they are counted when it ends: a kill, a service
that stops or a disk that is full may stand between the publication of a shard and the transaction that counts it.
"""

import logging

import numpy as np

from logitcask_schemas.cask.directory import read_entry
from logitcask_schemas.errors import CaskNotFoundError, LogitcaskError
from logitcask_services.corpora.token_store import TokenStore
from logitcask_services.jobs.chunk_publication import ShardLedger
from logitcask_services.jobs.context import JobContext
from logitcask_services.jobs.database.tables import ExtractionRow

logger = logging.getLogger(__name__)


def count_untold(context: JobContext, row: ExtractionRow) -> None:
    """Count what a cancelled extraction published. Idempotent, until its tokens and its ledger are dropped.

    Where the cask cannot be read now the counts stay too small, and the log says so.
    """
    try:
        if announced := ShardLedger(context.folders.ledger(row.id)).names():
            _count(context, row, announced - context.chunks.shard_names(row.id))
    except (LogitcaskError, OSError) as error:
        logger.warning("%s: what it published last is not in its counts, the cask cannot be read: %s", row.id, error)


def _count(context: JobContext, row: ExtractionRow, names: set[str]) -> None:
    cask, began = context.folders.casks.open(row.request.cask), min(row.timestamps.values())
    tokens = TokenStore(context.folders.token_store(row.id))
    for name in sorted(names):
        if context.chunks.owner_of_shard(name, row.request.cask, since=began) is not None:
            continue  # another extraction's, which published it after this one was about to and did not live to
        try:
            entry = read_entry(cask.location.directory, name)
        except CaskNotFoundError:
            continue  # it was about to be published
        first_id = cask.location.read_documents([entry], cask.layout)[name].ids[0]
        places = np.flatnonzero((tokens.document_ids_D32 == first_id).all(axis=1))
        if len(places):  # else of an earlier validation, which gave other documents
            logger.info("extraction %s: shard %s was published, and not yet counted", row.id, name)
            context.chunks.count_shard(row.id, int(places[0]), entry.model_dump(mode="json"))
