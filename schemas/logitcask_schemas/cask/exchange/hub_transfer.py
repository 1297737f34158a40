"""A cask to the Hub, and back.

A push sends shards in commits of some at a time, each shard in one commit with its entry; the last commit brings index,
table of documents, page and manifest together. Without a manifest nobody takes the repository for a cask, so a push
that died is none. Run again, it asks what is there and sends what is not, by size and SHA-256.

A pull is an export out of the store: every shard's SHA-256 and every document's checksum are proved, the manifest comes
last, and run again it goes on.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.directory import StoreDirectory, entry_file, read_manifest
from logitcask_schemas.cask.documents import DOCUMENTS_NAME, write_document_table
from logitcask_schemas.cask.exchange.hub import DATASET, HubPlace, hub_client, hub_explained
from logitcask_schemas.cask.exchange.hub_card import CARD_MARK, CARD_NAME, hub_card
from logitcask_schemas.cask.format.layout import ENTRY_SUFFIX, INDEX_NAME, MANIFEST_NAME, SHARDS_NAME
from logitcask_schemas.cask.format.manifest import entry_bytes, index_bytes, manifest_bytes
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.location import CachedStore
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.cask.storage.files import LocalFiles, reads_explained
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.cask.transfer.export import ExportStep, export_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError

_COMMIT_SHARDS: Final = 50
_COMMIT_BYTES: Final = 4 << 30
"""Of the shards of a commit, at most; what a push that died sends again."""
_THEIRS: Final = {CARD_NAME, ".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", "LICENSE.txt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """How a cask goes to the Hub."""

    public: bool = False
    """Of a repository that is made; one that is there stays as it is, and if that is public it needs this consent."""
    licence: str | None = None
    """For the page, as the Hub spells it."""
    endpoint: str | None = None
    """Address of the Hub; None: what HF_ENDPOINT says."""
    commit_shards: int = _COMMIT_SHARDS
    quiet: bool = False
    """Whether the Hub's client shows no bars of its own."""


@dataclass(slots=True, kw_only=True)
class PushReport:
    """What a push did."""

    sent: int = 0
    """Shards."""
    skipped: int = 0
    """Shards that were there."""
    commit: str = ""
    """The last one."""
    private: bool = True
    """Whether only those whom its owner lets may read the repository."""
    card_kept: bool = False
    """Whether the page was somebody's own and stayed."""


@dataclass(slots=True)
class _Batch:
    """Shards of the next commit."""

    operations: list[Any] = field(default_factory=list)
    entries: list[ShardEntry] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)


def push_cask(
    cask: Cask, place: HubPlace, options: PushOptions, progress: Callable[[int], None] | None = None
) -> PushReport:
    """Bring a local cask into a data set of the Hub, which is made where it is missing.

    Args:
        cask: In a local folder.
        place: Without a revision: a push goes to the main branch.
        options: How.
        progress: Called with the bytes of shards that are there now.

    Raises:
        CaskError: The repository holds something else, or shards that the cask does not, or is public without
            `options.public`; the Hub refuses.
        IdentityMismatchError: It holds a cask of another teacher or capture spec.
        CaskCorruptionError, CaskNotFoundError: A shard of the cask is damaged or missing; what was sent stays.
        MissingExtraError: The Hub's client is not installed.
    """
    if place.revision is not None:
        raise CaskError(f"{place.url}: a push goes to the main branch; leave out @{place.revision}")
    client = hub_client(options.endpoint, quiet=options.quiet)
    for entry in cask.entries:
        _require_file(shard_path(cask.path, entry), entry)
    with hub_explained(place, client, writes=True):
        client.create_repo(place.repository, repo_type=DATASET, private=not options.public, exist_ok=True)
        info = client.repo_info(place.repository, repo_type=DATASET)
        head = info.sha
        files = client.list_repo_tree(place.repository, repo_type=DATASET, revision=head, recursive=True)
        there = {file.path: file for file in files if hasattr(file, "size")}
    store = RemoteStore(f"{place.url}@{head}", {"endpoint": options.endpoint} if options.endpoint else None)
    _require_part_of(cask, place, store, set(there))
    if not info.private and not options.public:
        raise CaskError(
            f"{place.url}: is public, and a private push was asked for. Say --public, or name a new data set"
        )
    report = PushReport(commit=head, private=info.private)
    for batch in _batches(cask, there, report, options.commit_shards, progress):
        with hub_explained(place, client, writes=True):
            _commit(client, place, batch.operations, f"Add {len(batch.entries)} shards", report)
        if progress is not None:
            progress(batch.bytes)
    last = _last_files(cask, place, options)
    if CARD_NAME in there and CARD_MARK not in store.read(CARD_NAME).decode(errors="replace"):
        del last[CARD_NAME]
        report.card_kept = True
    with hub_explained(place, client, writes=True):
        _commit(client, place, [_addition(name, content) for name, content in last.items()], "Publish", report)
    return report


def pull_cask(
    place: HubPlace, target: Path, *, endpoint: str | None = None, planned: Callable[[int], None] | None = None
) -> Iterator[ExportStep]:
    """Copy a cask of the Hub into a local folder, shards as they are, proving everything.

    Args:
        place: Its revision is resolved to a commit once.
        target: A new folder, or one in which an earlier pull did not finish.
        endpoint: Address of the Hub; None: what HF_ENDPOINT says.
        planned: Called once with the bytes of all shards.

    Yields:
        One step per shard, when it is durable.

    Raises:
        CaskNotFoundError: There is no such data set or revision, or it is no cask.
        CaskError: The Hub refuses or does not answer; else as `export_cask`.
        MissingExtraError: The Hub's client is not installed.
    """
    client = hub_client(endpoint)
    with hub_explained(place, client):
        commit = client.repo_info(place.repository, repo_type=DATASET, revision=place.revision).sha
    url = HubPlace(repository=place.repository, revision=commit).url
    with tempfile.TemporaryDirectory(prefix="logitcask-pull-") as cache:
        cask = Cask.open(url, cache=Path(cache), store_options={"endpoint": endpoint} if endpoint else None)
        assert isinstance(cask.location, CachedStore)
        if planned is not None:
            planned(cask.num_bytes)
        # Each shard is needed once: keep the one being copied and the one before it.
        largest = max((entry.bytes for entry in cask.entries), default=1)
        limited = Cask(cask.location.limited(2 * largest), cask.manifest, cask.entries)
        yield from export_cask(limited, LocalTarget(target), None)


def _require_part_of(cask: Cask, place: HubPlace, store: RemoteStore, names: set[str]) -> None:
    """Require of a repository that it is empty, or this cask, or a part of it."""
    ours = {MANIFEST_NAME, INDEX_NAME, DOCUMENTS_NAME}
    if MANIFEST_NAME in names:
        manifest = read_manifest(StoreDirectory(store=store))
        manifest.require_same(cask.manifest.teacher, cask.manifest.capture, where=place.url)
    elif strange := sorted(name for name in names - ours - _THEIRS if not name.startswith(f"{SHARDS_NAME}/")):
        raise CaskError(f"{place.url}: holds {strange[0]!r} and no {MANIFEST_NAME}: not a cask. Name a new data set")
    expected = {entry_file(entry.name) for entry in cask.entries}
    entries = {name for name in names if name.startswith(f"{SHARDS_NAME}/") and name.endswith(ENTRY_SUFFIX)}
    if strange := sorted(entries - expected):
        raise CaskError(
            f"{place.url}: holds {len(strange)} shards that {cask.place} does not, such as {strange[0]}. Name a new "
            "data set; or pull it, merge both into a new folder, and push that to a new one"
        )


def _batches(
    cask: Cask, there: dict[str, Any], report: PushReport, most: int, progress: Callable[[int], None] | None
) -> Iterator[_Batch]:
    """Commits of the shards that are missing, each proved right before it is sent."""
    batch = _Batch()
    for entry in cask.entries:
        path = shard_path(cask.path, entry)
        shard_name, entry_name = f"{SHARDS_NAME}/{path.name}", entry_file(entry.name)
        if _has_entry(there.get(entry_name), entry) and _is_there(there.get(shard_name), entry):
            report.skipped += 1
            if progress is not None:
                progress(entry.bytes)
            continue
        _prove(path, entry)
        batch.operations += [_addition(shard_name, path), _addition(entry_name, entry_bytes(_sent(entry)))]
        batch.entries.append(entry)
        report.sent += 1
        if len(batch.entries) >= most or batch.bytes >= _COMMIT_BYTES:
            yield batch
            batch = _Batch()
    if batch.entries:
        yield batch


def _sent(entry: ShardEntry) -> ShardEntry:
    """An entry as the Hub gets it: the file of hints beside a shard stays where it is."""
    return entry.model_copy(update={"hints": None})


def _has_entry(file: Any, entry: ShardEntry) -> bool:
    """Whether the Hub has an entry's bytes: of small files it says the id that Git gives them."""
    content = entry_bytes(_sent(entry))
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return file is not None and file.blob_id == blob


def _is_there(file: Any, entry: ShardEntry) -> bool:
    """Whether the Hub has a shard's bytes: it says the SHA-256 of all but small files."""
    return file is not None and file.size == entry.bytes and file.lfs is not None and file.lfs.sha256 == entry.sha256


def _require_file(path: Path, entry: ShardEntry) -> None:
    """Before anything is made on the Hub: the file is there and has the bytes that its entry tells of."""
    try:
        with reads_explained(path):
            size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CaskNotFoundError(
            f"{path}: the shard is missing. Run `logitcask cask verify`; nothing was sent"
        ) from error
    if size != entry.bytes:
        raise CaskCorruptionError(
            f"{path}: should have {entry.bytes} bytes, it has {size}. Run `logitcask cask verify`; nothing was sent"
        )


def _prove(path: Path, entry: ShardEntry) -> None:
    with reads_explained(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        raise CaskCorruptionError(
            f"{path}: SHA-256 should be {entry.sha256}, it is {digest}. Run `logitcask cask verify`; nothing of this "
            "shard was sent."
        )


def _addition(name: str, content: Path | bytes) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)


def _commit(client: Any, place: HubPlace, operations: list[Any], message: str, report: PushReport) -> None:
    """One commit on top of the last one that this push knows: another push in between makes the Hub refuse."""
    info = client.create_commit(
        place.repository,
        operations,
        commit_message=f"{message} (logitcask)",
        repo_type=DATASET,
        parent_commit=report.commit,
    )
    report.commit = info.oid


def _last_files(cask: Cask, place: HubPlace, options: PushOptions) -> dict[str, bytes]:
    """What makes the shards a cask."""
    names = (entry.name for entry in cask.entries)
    with tempfile.TemporaryDirectory(prefix="logitcask-push-") as folder:
        write_document_table(LocalFiles(), Path(folder), dict(zip(names, cask.shard_documents(), strict=True)))
        table = (Path(folder) / DOCUMENTS_NAME).read_bytes()
    return {
        DOCUMENTS_NAME: table,
        INDEX_NAME: index_bytes([_sent(entry) for entry in cask.entries]),
        CARD_NAME: hub_card(cask, place, options.licence).encode(),
        MANIFEST_NAME: manifest_bytes(cask.manifest),
    }
