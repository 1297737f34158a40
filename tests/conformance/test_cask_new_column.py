"""A column of positions is declared once: a made-up one goes from capture to a training batch without other changes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from logitcask_consumer.data import CaskDataset, Collator
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.transfer.export import export_cask, target_of
from logitcask_schemas.cask.transfer.split import SplitRule, split_cask
from logitcask_schemas.record import position_columns
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.position_columns import PositionColumn
from logitcask_schemas.record.records import DocumentRecords
from logitcask_schemas.record.wire import decode_wire
from logitcask_services.capture import RecordCapture, RecordColumns, pack_wire
from tests.support.schemas.cask_samples import make_teacher

VOCAB, LENGTHS = 300, (9, 30, 17)
SPEC = CaptureSpec(temperatures=(2.0, 3.0))


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest two logits of each position, whatever they may be good for."""
    column = PositionColumn(name="top_logits", width=2)
    monkeypatch.setattr(position_columns, "POSITION_COLUMNS", [*position_columns.POSITION_COLUMNS, column])

    def computed(capture: RecordCapture, scanned, z_R, tail_mass_R) -> torch.Tensor:
        return scanned.x_RW[:, :VOCAB].topk(2).values.to(torch.float64)

    monkeypatch.setattr(RecordCapture, "computed", {**RecordCapture.computed, "top_logits": computed})


def logits_of(length: int) -> torch.Tensor:
    return torch.randn(length - 1, VOCAB, generator=torch.Generator().manual_seed(length))


def captured(length: int) -> DocumentRecords:
    """In two parts, joined and cut again, as engines do."""
    ids = np.random.default_rng(length).integers(0, VOCAB, length).astype(np.uint16)
    capture, logits, positions = RecordCapture(SPEC, VOCAB), logits_of(length), torch.arange(length - 1)
    parts = [
        capture(
            logits[part].clone(), torch.from_numpy(ids[1:].astype(np.int64))[part], positions[part], positions[part]
        )
        for part in (slice(0, 4), slice(4, None))
    ]
    [columns] = RecordColumns.join(parts).split([length - 1])
    return DocumentRecords(token_ids_L=ids, records=decode_wire(pack_wire(columns, VOCAB).numpy(), SPEC))


def expected(length: int) -> np.ndarray:
    logits = logits_of(length).double()
    # The capture shifts logits by a number that is its own business; differences are what a column can promise.
    top = logits.topk(2).values
    return (top[:, 0] - top[:, 1]).numpy()


def gap(column: np.ndarray) -> np.ndarray:
    return column[:, 0].astype(np.float64) - column[:, 1].astype(np.float64)


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize("carrier", list(CARRIERS))
def test_it_goes_from_capture_to_a_training_batch(tmp_path: Path, carrier: str) -> None:
    with CaskWriter.create(
        tmp_path / "cask", teacher=make_teacher(vocab_size=VOCAB), capture=SPEC, carrier=carrier
    ) as writer:
        for length in LENGTHS:
            writer.publish([captured(length)])
    cask = Cask.open(tmp_path / "cask")
    assert [problem for report in verify_shards(cask) for problem in report.problems] == []
    list(export_cask(cask, target_of(str(tmp_path / "arrow")), "arrow"))
    split_cask(str(tmp_path / "arrow"), (tmp_path / "a", tmp_path / "b"), SplitRule(fraction=0.5, seed=1))
    by_length = {length: expected(length) for length in LENGTHS}
    for place in ("cask", "arrow", "a", "b"):
        part = Cask.open(tmp_path / place)
        for number in range(len(part)):
            records = part.read(number).records
            values = gap(records.position_columns["top_logits"])
            np.testing.assert_allclose(values, by_length[len(values) + 1], atol=0.01)
            window = part.read_window(number, 2, 5).records
            np.testing.assert_array_equal(gap(window.position_columns["top_logits"]), values[2:5])
    dataset = CaskDataset([Cask.open(tmp_path / "arrow")], seq_len=64)
    batch = Collator(seq_len=64)(dataset.read(range(len(dataset))))
    column = batch["position_columns"]["top_logits"]
    assert column.shape == (sum(LENGTHS) - len(LENGTHS), 2)
    for number in range(len(LENGTHS)):
        values = gap(column[batch["documents"] == number].numpy())
        np.testing.assert_allclose(values, by_length[len(values) + 1], atol=0.01)


@pytest.mark.usefixtures("declared")
def test_a_document_without_it_is_refused_and_so_is_one_of_no_declaration(tmp_path: Path) -> None:
    from logitcask_schemas.errors import InvalidRecordError

    with CaskWriter.create(tmp_path, teacher=make_teacher(vocab_size=VOCAB), capture=SPEC) as writer:
        document = captured(9)
        columns = dict(document.records.position_columns)
        unknown = DocumentRecords(
            token_ids_L=document.token_ids_L, records=document.records.select(np.ones(8, dtype=np.bool_))
        )
        columns.pop("top_logits")
        object.__setattr__(unknown.records, "position_columns", columns)
        with pytest.raises(InvalidRecordError, match="lacks top_logits"):
            writer.publish([unknown])
        object.__setattr__(
            unknown.records, "position_columns", {**document.records.position_columns, "more": columns["entropy"]}
        )
        with pytest.raises(InvalidRecordError, match="has more, which"):
            writer.publish([unknown])
