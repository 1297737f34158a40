"""One cask, one width of hints: a shard of another is refused, and told of casks that have it already."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.dropping import drop_hints
from logitcask_schemas.cask.hint_file import hints_path
from logitcask_schemas.cask.integrity.repair import repair_cask
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.cli.main import main
from logitcask_schemas.errors import InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import make_documents, make_teacher
from tests.support.schemas.hint_samples import assert_same_rows, with_hints

SPEC = HintSpec(layers=(1, 3), codec="i8")
PROJECTED = HintSpec(layers=(1, 3), codec="proj:5")


def documents(lengths: Sequence[int], seed: int, width: int, spec: HintSpec = SPEC) -> list[DocumentRecords]:
    return [with_hints(document, spec, width) for document in make_documents(lengths, seed)]


def writer_of(path: Path, spec: HintSpec = SPEC) -> CaskWriter:
    return CaskWriter.create(path, teacher=make_teacher(), capture=CaptureSpec(tau=0.05, hints=spec))


def cask_of_two_widths(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As casks were made before widths were compared: three documents of width 24, then one of 8."""
    with monkeypatch.context() as patch:
        patch.setattr("logitcask_schemas.cask.writer.require_stored_width", lambda *_: None)
        with writer_of(path) as writer:
            writer.publish(documents([5, 6, 7], 1, 24))
            writer.publish(documents([9], 2, 8))
    return path


@pytest.mark.parametrize("spec", [SPEC, PROJECTED])  # stored numbers are as many whatever the teacher's width
@pytest.mark.parametrize("anew", [False, True])
def test_a_shard_of_another_width_is_refused_with_both(tmp_path: Path, spec: HintSpec, anew: bool) -> None:
    writer = writer_of(tmp_path, spec)
    writer.publish(documents([5, 6], 1, 24, spec))
    if anew:
        writer.close()
        writer = writer_of(tmp_path, spec)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidRecordError, match=r"vectors of 24 numbers, those of the new shard have 8"):
        writer.publish(documents([9], 2, 8, spec))
    assert sorted(tmp_path.rglob("*")) == before
    writer.publish(documents([9], 2, 24, spec))
    assert len(Cask.open(tmp_path)) == 3


def test_another_writers_width_counts(tmp_path: Path) -> None:
    first, second = writer_of(tmp_path), writer_of(tmp_path)
    second.publish(documents([5], 1, 8))
    with pytest.raises(InvalidRecordError, match="of 8 numbers"):
        first.publish(documents([6], 2, 24))


def test_where_hints_were_dropped_or_are_damaged_any_width_may_come(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    entry = writer.publish(documents([5], 1, 24))
    assert entry is not None
    hints_path(tmp_path, entry).unlink()  # verify's to tell
    writer = writer_of(tmp_path)
    writer.publish(documents([6], 2, 8))
    drop_hints(tmp_path)
    writer.publish(documents([7], 3, 16))
    assert len(Cask.open(tmp_path)) == 3


@pytest.mark.parametrize("overlap", [False, True])  # a whole shard is taken over, or a part of it written anew
def test_casks_of_two_widths_are_not_merged(tmp_path: Path, overlap: bool) -> None:
    with writer_of(tmp_path / "wide") as writer:
        writer.publish(documents([5, 6], 1, 24))
    with writer_of(tmp_path / "narrow") as writer:
        writer.publish(documents([5, 6], 1, 8)[:1] + documents([9], 2, 8) if overlap else documents([9], 2, 8))
    with pytest.raises(InvalidRecordError, match=r"of 24 numbers, those of the new shard have 8"):
        merge_casks(tmp_path / "both", [tmp_path / "wide", tmp_path / "narrow"])


def test_verify_tells_of_two_widths_and_repair_keeps_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cask_of_two_widths(tmp_path / "cask", monkeypatch)
    before = Cask.open(path)
    odd = next(entry for entry in before.entries if entry.documents == 1)
    with pytest.raises(SystemExit) as ended:
        main(["cask", "verify", str(path)])
    assert ended.value.code == 3
    sentence = f"shard {odd.name}: its hints are vectors of 8 numbers, those of 3 documents of this cask have 24"
    assert sentence in capsys.readouterr().out
    report = repair_cask(path)
    assert report.without_hints == [odd.name]
    assert (report.lost, report.requeue) == ([], {})
    after = Cask.open(path)
    assert [entry.hints is None for entry in after.entries] == [entry == odd for entry in before.entries]
    for number in range(len(before)):
        if before.locate(number)[0] != before.entries.index(odd):
            assert_same_rows(after.hints(number), before.hints(number))
    assert repair_cask(path).quarantine is None


def test_a_cask_of_one_width_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with writer_of(tmp_path) as writer:
        for seed in range(3):
            writer.publish(documents([5, 6], seed, 24))
    with pytest.raises(SystemExit) as ended:
        main(["cask", "verify", str(tmp_path)])
    assert ended.value.code in (0, None)
    assert "sound" in capsys.readouterr().out
