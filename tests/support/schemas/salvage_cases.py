"""A cask of two shards, the damage done to it, and what must hold of what a repair leaves."""

import re
from pathlib import Path

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import shard_path
from logitcask_schemas.cask.integrity.repair import RepairReport, repair_cask
from logitcask_schemas.cask.integrity.verify import survey, verify_shards
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, assert_same, make_documents, make_teacher, unlisted

FIRST, SECOND = make_documents([4, 9, 17, 3], 1), make_documents([6, 30], 2)
DOCUMENTS = {document.id: document for document in [*FIRST, *SECOND]}


def make_cask(path: Path, carrier: str = "arrow", *, index: bool = False, table: bool = True) -> Path:
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC, carrier=carrier) as writer:
        writer.publish(FIRST)
        writer.publish(SECOND)
    if not index:
        (path / "index.json").unlink()
    if not table:
        (path / "documents.bin").unlink()
    return path


def files_of(cask: Path, document: DocumentRecords) -> tuple[Path, Path]:
    """The shard's file and its entry's."""
    opened = Cask.open(cask)
    number = opened.find(document.id)
    assert number is not None
    shard = shard_path(cask, opened.entries[opened.locate(number)[0]])
    return shard, shard.with_name(shard.name.partition(".")[0] + ".json")


def overwrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    overwrite(path, bytes(content))


def change_number(entry: Path, field: str) -> None:
    """Another last digit."""
    content = entry.read_bytes()
    found = re.search(rb'"%s":\d*(\d)' % field.encode(), content)
    assert found is not None
    flip(entry, found.start(1))


def require_sound(cask: Path, report: RepairReport) -> set[bytes]:
    """Ids of what is left, which is right; nothing is listed that is there, and nothing twice."""
    opened = Cask.open(cask)
    assert [problem for report in verify_shards(opened) for problem in report.problems] == []
    assert unlisted(opened) == []
    assert survey(LocalFolder(folder=cask)).problems == []
    ids = [identity.tobytes() for identity in opened.document_ids()]
    assert len(ids) == len(set(ids))
    for number, identity in enumerate(ids):
        assert_same(opened.read(number), DOCUMENTS[identity])
    requeued = [bytes.fromhex(identity) for identity in report.requeue]
    lost = [bytes.fromhex(identity) for identity in report.lost]
    assert len({*ids, *requeued, *lost}) == len(ids) + len(requeued) + len(lost)
    assert {*requeued, *lost} <= DOCUMENTS.keys()
    for identity, document in report.requeue.items():
        assert document.token_ids_L.tolist() == DOCUMENTS[bytes.fromhex(identity)].token_ids_L.tolist()
    assert repair_cask(cask).quarantine is None
    return set(ids)
