"""Index and table of documents of a cask in a store: many may make them anew at once, and nothing may get lost.

Both only repeat what entries and shards say, so a writer whose turn another one takes loses nothing but time. What it
puts, it puts in place of what it has read (`If-Match`): an index that was made from an older list of entries never
replaces a newer one, nor brings back what was dropped.
"""

import random
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from logitcask_schemas.cask.directory import StoreDirectory, read_listing, write_index
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, DocumentTable, ShardDocuments, write_document_table
from logitcask_schemas.cask.format.layout import INDEX_NAME
from logitcask_schemas.cask.storage.shared_store import SharedStore
from logitcask_schemas.cask.store_documents import read_table
from logitcask_schemas.cask.store_publication import STAGING, StagingFiles

_TRIES: Final = 12
_LONGEST_PAUSE: Final = 2.0
_FIRST_PAUSE: Final = 0.05


def compact_store(store: SharedStore, documents: Mapping[str, ShardDocuments]) -> DocumentTable | None:
    """Fold all entries of a cask into its index, and these documents into its table.

    Where others do the same at the same time, and are faster again and again, they have the last word: entries and
    shards are complete without it, and the next compaction takes up what theirs lacks.

    Args:
        store: The cask's folder.
        documents: By name, of the shards of which the caller knows them.

    Returns:
        The table; None where there are no documents.

    Raises:
        CaskCorruptionError: Index, table or an entry is damaged.
        CaskWriteError: The temporary folder is full.
        StoreError: The store does not answer, or refuses.
    """
    table = None
    for attempt in range(_TRIES):
        done, table = _compact_once(store, documents)
        if done:
            break
        time.sleep(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)))
    return table


def _compact_once(store: SharedStore, documents: Mapping[str, ShardDocuments]) -> tuple[bool, DocumentTable | None]:
    """Whether nobody was in the way, and the table."""
    # Tags before contents: what changes in between is then noticed when it is replaced.
    table_tag, index_tag = store.tag(DOCUMENTS_NAME), store.tag(INDEX_NAME)
    listing = read_listing(StoreDirectory(store=store))
    table, entries = read_table(store), {entry.name: entry for entry in listing.entries}
    listed = dict[str, ShardDocuments]()
    if table is not None:
        listed = {name: table.shard(name) for name in table.shard_names()}
    wanted = {name: shard for name, shard in (listed | dict(documents)).items() if name in entries}
    files = StagingFiles()
    with TemporaryDirectory(prefix=STAGING) as temporary:
        folder = Path(temporary)
        # The table first: it may list shards whose entries are loose, not the other way round for long.
        if wanted.keys() != listed.keys():
            write_document_table(files, folder, wanted)
            if not store.replace(DOCUMENTS_NAME, folder / DOCUMENTS_NAME, table_tag):
                return False, table
            table = DocumentTable.open(folder)
        if listing.loose or listing.index is None:
            write_index(files, folder, entries.values())
            if not store.replace(INDEX_NAME, folder / INDEX_NAME, index_tag):
                return False, table
    return True, table
