"""What is done to whole casks, each on a small folder: repair, merge, split, compaction, import and export.

`CARES` names the cases; `Recorded` is one undisturbed run of a case with every file operation written down.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.storage.files import FileOperations
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.cask.transfer.split import SplitRule, split_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, assert_same, make_documents, make_teacher, unlisted
from tests.support.schemas.crash_model import Operation, RecordingFiles, crash, put_state

ONE, OTHER, MORE, LAST = (make_documents(lengths, n) for n, lengths in enumerate(([4, 9], [6, 30], [5, 3], [7])))
SHARED = [ONE[0], *make_documents([12], 9)]
DOCUMENTS = {document.id: document for document in [*ONE, *OTHER, *MORE, *LAST, *SHARED]}


def create(path: Path, files: FileOperations | None = None, carrier: str = "arrow") -> CaskWriter:
    return CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, files=files, carrier=carrier)


def make(path: Path, *shards: list[DocumentRecords], carrier: str = "arrow", index: bool = True) -> Path:
    writer = create(path, carrier=carrier)
    for shard in shards:
        writer.publish(shard)
    if index:
        writer.close()
    return path


def shard_of(cask: Path, document: DocumentRecords) -> Path:
    opened = Cask.open(cask)
    number = opened.find(document.id)
    assert number is not None
    return cask / "shards" / (opened.entries[opened.locate(number)[0]].name + ".arrow")


def flip(path: Path, needle: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(needle)] ^= 1
    path.unlink()
    path.write_bytes(content)


def damaged(folder: Path) -> None:
    """One shard whose file gives a document a wrong id, one with wrong records, one that is sound."""
    cask = make(folder / "cask", ONE, OTHER, MORE)
    flip(shard_of(cask, ONE[0]), ONE[1].records.head_logprobs_H.tobytes())
    flip(shard_of(cask, ONE[0]), ONE[0].id)
    flip(shard_of(cask, OTHER[0]), OTHER[0].records.head_logprobs_H.tobytes())


def ruined(folder: Path) -> None:
    """A shard that is missing, one cut short, one damaged together with its entry, one whose entry alone is damaged."""
    cask = make(folder / "cask", ONE, OTHER, MORE, LAST)
    shards = [shard_of(cask, documents[0]) for documents in (ONE, OTHER, MORE, LAST)]
    shards[0].unlink()
    content = shards[1].read_bytes()
    shards[1].unlink()
    shards[1].write_bytes(content[: len(content) // 2])
    flip(shards[2], MORE[1].records.head_logprobs_H.tobytes())
    for shard in shards[2:]:
        flip(shard.with_suffix(".json"), b'documents"')


def damaged_without_index(folder: Path) -> None:
    """Nothing but entries says what there is."""
    cask = make(folder / "cask", ONE, OTHER, MORE, index=False)
    flip(shard_of(cask, ONE[0]), ONE[1].records.head_logprobs_H.tobytes())
    flip(shard_of(cask, OTHER[0]), OTHER[0].records.head_logprobs_H.tobytes())


def damaged_entry(folder: Path) -> None:
    """All that is wrong is one entry; no index repeats it."""
    cask = make(folder / "cask", ONE, OTHER, index=False)
    flip(shard_of(cask, ONE[0]).with_suffix(".json"), b'documents"')


def repair(folder: Path, files: FileOperations) -> None:
    repair_cask(folder / "cask", files=files)


def sources(folder: Path) -> None:
    make(folder / "one", ONE, OTHER)
    make(folder / "other", SHARED)


def merge(folder: Path, files: FileOperations) -> None:
    merge_casks(folder / "all", [folder / "one", folder / "other"], files=files)


def merge_copies(folder: Path, files: FileOperations) -> None:
    """As on a file system without hard links."""
    merge_casks(folder / "all", [folder / "one", folder / "other"], files=files, link=False)


def sources_and_target(folder: Path) -> None:
    sources(folder)
    make(folder / "all", MORE, [ONE[1]])


def split(folder: Path, files: FileOperations) -> None:
    split_cask(folder / "one", (folder / "a", folder / "b"), SplitRule(fraction=0.5, seed=0), files=files)


def uncompacted(folder: Path) -> None:
    writer = create(folder / "cask")
    writer.publish(ONE)
    writer.close()
    writer.publish(OTHER)


def compact(folder: Path, files: FileOperations) -> None:
    create(folder / "cask", files).close()


def shipped(folder: Path) -> None:
    make(folder / "shipped", ONE, OTHER, carrier="zarr")


def import_(folder: Path, files: FileOperations) -> None:
    """As `logitcask cask import`."""
    list(export_cask(Cask.open(folder / "shipped"), LocalTarget(folder / "cask", files=files), "arrow"))


def shipped_twice(folder: Path) -> None:
    """Once before it grew, and brought home then."""
    make(folder / "shipped", ONE, carrier="zarr")
    import_(folder, RecordingFiles())
    make(folder / "shipped", OTHER, MORE, carrier="zarr")


def at_home(folder: Path) -> None:
    make(folder / "cask", ONE, OTHER)


def export(folder: Path, files: FileOperations) -> None:
    list(export_cask(Cask.open(folder / "cask"), LocalTarget(folder / "shipped", files=files), "zarr"))


@dataclass(frozen=True)
class Care:
    prepare: Callable[[Path], None]
    run: Callable[[Path, FileOperations], None]
    results: tuple[str, ...]
    documents: int
    whole: bool = False
    """Whether a result that opens at all holds every document."""

    def outcome(self, folder: Path) -> dict[Path, object]:
        """What the results hold, after requiring that they are sound; quarantines as the documents they list."""
        found: dict[Path, object] = {}
        for name in self.results:
            cask = Cask.open(folder / name)
            assert [problem for report in verify_shards(cask) for problem in report.problems] == []
            assert unlisted(cask) == []
            assert list((folder / name).rglob(".tmp-*")) == []
            found |= {
                path.relative_to(folder): path.read_bytes()
                for path in (folder / name).rglob("*")
                if path.is_file() and path.name not in ("cask.json", "cask.lock") and "quarantine" not in path.parts
            }
            for kind in ("requeue", "lost"):
                lists = [path.read_bytes() for path in (folder / name).glob(f"quarantine/*/{kind}.jsonl")]
                found[Path(name) / kind] = {line for text in lists for line in text.splitlines()}
        assert sum(len(Cask.open(folder / name)) for name in self.results) == self.documents
        return found


CARES = {
    "repair": Care(damaged, repair, ("cask",), 4),
    "repair of ruins": Care(ruined, repair, ("cask",), 2),
    "repair without an index": Care(damaged_without_index, repair, ("cask",), 4),
    "repair of an entry": Care(damaged_entry, repair, ("cask",), 4),
    "merge": Care(sources, merge, ("all",), 5),
    "merge into a cask": Care(sources_and_target, merge_copies, ("all",), 7),
    "split": Care(sources, split, ("a", "b"), 4),
    "compaction": Care(uncompacted, compact, ("cask",), 4),
    "import": Care(shipped, import_, ("cask",), 4, whole=True),
    "import of what is new": Care(shipped_twice, import_, ("cask",), 6),
    "export": Care(at_home, export, ("shipped",), 4, whole=True),
}


@contextmanager
def blamed(names: list[str]) -> Iterator[None]:
    """Errors of ours may come, and name one of these."""
    try:
        yield
    except CaskError as error:
        if not any(name in str(error) for name in names):
            raise


@dataclass(frozen=True)
class Seen:
    """What a reader gets of a cask."""

    cask: Cask
    lists: bool
    """Whether the documents' ids can be listed; where not, an error has named a shard."""
    readable: frozenset[bytes]

    def pickled(self) -> bytes:
        return pickle.dumps(self.cask)


def read_all(cask: Cask) -> Seen:
    """Read everything; whatever is wrong, or said without the name of the shard that is to blame, fails."""
    names = [entry.name for entry in cask.entries]
    listed: list[bytes] | None = None
    with blamed(names):
        listed = [identity.tobytes() for identity in cask.document_ids()]
    if listed is not None:
        assert set(listed) <= DOCUMENTS.keys(), "a document was invented"
        found = [cask.find(identity) for identity in listed]
        assert [None if number is None else listed[number] for number in found] == listed
    with blamed(names):
        lengths = cask.document_lengths().tolist()
        assert listed is None or [len(DOCUMENTS[identity].token_ids_L) for identity in listed] == lengths
    readable = set()
    for number in range(len(cask)):
        with blamed([names[cask.locate(number)[0]]]):
            document = cask.read(number)
            assert_same(document, DOCUMENTS[document.id])
            assert listed is None or listed[number] == document.id
            readable.add(document.id)
    return Seen(cask, listed is not None, frozenset(readable))


def looked_at(path: Path) -> Seen | None:
    """What a new reader gets; None where it is told that there is no cask."""
    try:
        cask = Cask.open(path)
    except CaskNotFoundError:
        return None
    return read_all(cask)


def seen_before(path: Path) -> Seen | None:
    """What a new reader gets; None also where damage keeps the cask from opening."""
    try:
        return looked_at(path)
    except CaskCorruptionError:
        return None


def require_right(care: Care, folder: Path, before: dict[str, Seen | None]) -> None:
    """Require of new readers of the results what they had before, and right records."""
    for name, seen in before.items():
        now = seen_before(folder / name) if seen is None else looked_at(folder / name)
        if seen is not None:
            assert now is not None
            assert now.lists or not seen.lists, "the documents could be listed before"
            assert now.readable >= seen.readable, "a document could be read before"
        elif now is not None:
            assert now.lists
            assert len(now.readable) == len(now.cask)
            assert len(now.cask) == care.documents or not care.whole, "half a cask passes for a whole one"


class Recorded:
    """One undisturbed run with every file operation written down."""

    def __init__(self, care: Care, folder: Path) -> None:
        self.care, self.folder, files = care, folder, RecordingFiles()
        care.prepare(folder)
        self.before = contents(folder)
        self.seen_before = {name: seen_before(folder / name) for name in care.results}
        # A reader that has opened the cask and mapped nothing yet.
        self.live = {name: seen.pickled() for name, seen in self.seen_before.items() if seen is not None}
        care.run(folder, files)
        self.operations = files.operations
        self.expected = care.outcome(folder)

    def crash(
        self, length: int, reached_disk: Callable[[Operation], bool], surviving: Callable[[int, int], int]
    ) -> None:
        """Put the folder into a state that a crash after so many operations may leave."""
        left = crash(self.operations[:length], self.before, reached_disk=reached_disk, surviving_bytes=surviving)
        put_state(self.folder, left)

    def crashes(
        self, reached_disk: Callable[[Operation, int], bool], surviving: Callable[[int, int], int]
    ) -> Iterator[int]:
        """Put the folder into the state after every prefix of the operations; states that are equal come once."""
        seen: set[int] = set()
        for length in range(len(self.operations) + 1):

            def reached(operation: Operation, length: int = length) -> bool:
                return reached_disk(operation, length)

            left = crash(self.operations[:length], self.before, reached_disk=reached, surviving_bytes=surviving)
            if (state := hash(frozenset(left.items()))) not in seen:
                seen.add(state)
                put_state(self.folder, left)
                yield length

    def require_right_readers(self) -> None:
        """Whoever opens a result now, or has opened it before, gets right records only, and no document is lost."""
        require_right(self.care, self.folder, self.seen_before)
        for pickled in self.live.values():
            read_all(pickle.loads(pickled))

    def require_repeatable(self) -> None:
        """A second run ends where the undisturbed one did, and the sources stay as they were."""
        self.care.run(self.folder, RecordingFiles())
        assert self.care.outcome(self.folder) == self.expected
        for path, data in self.before.items():
            if path.relative_to(self.folder).parts[0] not in self.care.results and "shards" in path.parts:
                assert path.read_bytes() == data


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "cask.lock"}
