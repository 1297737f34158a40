"""Merging stores each document once and keeps identity; splitting is by document, stable, and loses nothing."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.cask.transfer.split import SplitRule, split_cask
from logitcask_schemas.errors import CaskCorruptionError, CaskError, IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import (
    SPEC,
    assert_same,
    make_document,
    make_documents,
    make_teacher,
    specs,
    unlisted,
)

HALF = SplitRule(fraction=0.5, seed=0)


def make_cask(path: Path, *shards: list[DocumentRecords], spec: CaptureSpec = SPEC, carrier: str = "arrow") -> Path:
    with CaskWriter.create(path, teacher=make_teacher(), capture=spec, carrier=carrier) as writer:
        for documents in shards:
            writer.publish(documents)
    return path


def require_holds(path: Path, documents: list[DocumentRecords]) -> None:
    cask = Cask.open(path)
    assert [problem for report in verify_shards(cask) for problem in report.problems] == []
    assert unlisted(cask) == []
    assert len(cask) == len({document.id for document in documents})
    for document in documents:
        number = cask.find(document.id)
        assert number is not None
        assert_same(cask.read(number), document)


@pytest.mark.parametrize("link", [True, False])
def test_whole_shards_are_taken_over_and_shared_documents_stored_once(tmp_path: Path, link: bool) -> None:
    a, b, c = make_documents([5, 9], 1), make_documents([6], 2), make_documents([7, 8], 3)
    c = [replace(document, answer_ranges_R2=None) for document in c]  # shards with answers would come first
    b = [replace(document, answer_ranges_R2=None) for document in b]
    one, other = make_cask(tmp_path / "one", a, b), make_cask(tmp_path / "other", [b[0], *c], a)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    report = merge_casks(tmp_path / "all", [one, other], link=link)
    require_holds(tmp_path / "all", [*a, *b, *c])
    assert (report.linked, report.copied) == ((2, 0) if link else (0, 2))
    assert (report.rewritten, report.skipped, report.documents, report.duplicates) == (1, 1, 5, 3)
    for shard in (one / "shards").glob("*.arrow"):
        assert (shard.stat().st_ino == (tmp_path / "all" / "shards" / shard.name).stat().st_ino) == link
    assert {path: path.read_bytes() for path in before} == before
    again = merge_casks(tmp_path / "all", [other, one], link=link)
    assert (again.documents, again.skipped) == (0, 4)


def test_a_file_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(LocalFiles, "link", refuse)
    documents = make_documents([5, 9], 1)
    report = merge_casks(tmp_path / "all", [make_cask(tmp_path / "one", documents)])
    assert (report.linked, report.copied) == (0, 1)
    require_holds(tmp_path / "all", documents)


def test_other_identities_are_refused_with_their_fields(tmp_path: Path) -> None:
    one = make_cask(tmp_path / "one", make_documents([5], 1))
    other = make_cask(tmp_path / "other", make_documents([5], 1), spec=CaptureSpec(tau=0.02))
    with pytest.raises(IdentityMismatchError, match=r"tau: 0.05 here, 0.02 offered"):
        merge_casks(tmp_path / "all", [one, other])
    with pytest.raises(IdentityMismatchError, match=r"tau: 0.02 here, 0.05 offered"):
        merge_casks(other, [one])
    teacher = make_teacher(engine_version="1")
    CaskWriter.create(tmp_path / "third", teacher=teacher, capture=SPEC).publish(make_documents([5], 1))
    with pytest.raises(IdentityMismatchError, match=r"engine_version: '0' here, '1' offered"):
        merge_casks(tmp_path / "all", [one, tmp_path / "third"])
    with pytest.raises(CaskError, match="is a source"):
        merge_casks(one, [one])
    with pytest.raises(CaskError, match="at least one source"):
        merge_casks(one, [])


def test_damage_is_not_merged(tmp_path: Path) -> None:
    one = make_cask(tmp_path / "one", make_documents([50], 1))
    shard = next((one / "shards").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.unlink()
    shard.write_bytes(bytes(content))
    with pytest.raises(CaskCorruptionError, match=r"SHA-256.*cask repair"):
        merge_casks(tmp_path / "all", [one])
    assert len(Cask.open(tmp_path / "all")) == 0
    assert unlisted(Cask.open(tmp_path / "all")) == []


def test_another_writer_may_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It publishes a document after the merge found that the target lacks it, and before it takes the shard over."""
    documents = make_documents([5, 9, 12], 1)
    one = make_cask(tmp_path / "one", documents)

    def meanwhile(*_: object) -> None:
        make_cask(tmp_path / "all", [documents[1]])

    monkeypatch.setattr("logitcask_schemas.cask.transfer.merge._require_content", meanwhile)
    report = merge_casks(tmp_path / "all", [one])
    assert (report.linked, report.rewritten, report.documents, report.duplicates) == (0, 1, 2, 1)
    require_holds(tmp_path / "all", documents)


@settings(max_examples=15, deadline=None)
@given(spec=specs(), carrier=st.sampled_from(sorted(CARRIERS)), shard_bytes=st.sampled_from([1, 3000, 1 << 30]))
def test_a_split_is_a_partition_as_stored(tmp_path_factory, spec: CaptureSpec, carrier: str, shard_bytes: int) -> None:
    folder = tmp_path_factory.mktemp("split")
    documents = make_documents([5, 9, 30, 4, 8, 17, 3, 6], 4, spec=spec)
    source = make_cask(folder / "all", documents[:5], documents[5:], spec=spec, carrier=carrier)
    report = split_cask(source, (folder / "a", folder / "b"), HALF, shard_bytes=shard_bytes)
    sides: list[list[DocumentRecords]] = [[], []]
    for document in documents:
        sides[0 if HALF.first(document.id) else 1].append(document)
    original = Cask.open(source)
    for side, name in enumerate("ab"):
        cask = Cask.open(folder / name)
        assert report.added[side] == len(cask) == len(sides[side])
        assert [problem for report in verify_shards(cask) for problem in report.problems] == []
        for document in sides[side]:
            found, kept = cask.find(document.id), original.find(document.id)
            assert found is not None
            assert kept is not None
            assert_same(cask.read(found), original.read(kept))
        assert cask.manifest.identity_digest() == original.manifest.identity_digest()
        assert {entry.carrier for entry in cask.entries} <= {carrier}
    merged = merge_casks(folder / "back", [folder / "a", folder / "b"])
    assert merged.documents == len(documents)


def test_growth_changes_nobodys_side(tmp_path: Path) -> None:
    documents = make_documents([4] * 60, 7)
    source, into = tmp_path / "all", (tmp_path / "a", tmp_path / "b")
    make_cask(source, documents[:20])
    split_cask(source, into, HALF)
    first = [{identity.tobytes() for identity in Cask.open(path).document_ids()} for path in into]
    make_cask(source, documents[20:])
    report = split_cask(source, into, HALF)
    grown = [{identity.tobytes() for identity in Cask.open(path).document_ids()} for path in into]
    assert all(before < after for before, after in zip(first, grown, strict=True))
    assert report.present == [len(side) for side in first]
    assert not grown[0] & grown[1]
    assert grown[0] | grown[1] == {document.id for document in documents}


def test_the_fraction_is_one_of_documents() -> None:
    """2,000 ids; a binomial count 5 standard deviations off has a probability of one in a million."""
    ids = [make_document(2, seed).id for seed in range(2000)]
    for fraction in (0.1, 0.5):
        rule = SplitRule(fraction=fraction, seed=3)
        count = sum(rule.first(identity) for identity in ids)
        assert abs(count - 2000 * fraction) < 5 * (2000 * fraction * (1 - fraction)) ** 0.5
    larger, smaller = SplitRule(fraction=0.2, seed=0), SplitRule(fraction=0.1, seed=0)
    assert all(larger.first(identity) for identity in ids if smaller.first(identity))
    other = SplitRule(fraction=0.1, seed=1)
    assert {identity for identity in ids if smaller.first(identity)} != {i for i in ids if other.first(i)}


def test_another_rule_may_not_mix_the_sides(tmp_path: Path) -> None:
    source, into = make_cask(tmp_path / "all", make_documents([4] * 30, 7)), (tmp_path / "a", tmp_path / "b")
    split_cask(source, into, HALF)
    with pytest.raises(CaskError, match="other cask"):
        split_cask(source, into, SplitRule(fraction=0.5, seed=1))
    with pytest.raises(CaskError, match="three different folders"):
        split_cask(source, (source, tmp_path / "c"), HALF)
    for fraction, seed in ((0.0, 0), (1.0, 0), (0.5, -1), (0.5, 1 << 64)):
        with pytest.raises(CaskError, match="fraction"):
            SplitRule(fraction=fraction, seed=seed)
