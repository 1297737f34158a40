"""Training data is what a plain reader finds in the cask, whatever carries it, in forked and in spawned workers."""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.schemas.cask_samples import SPEC, VOCABS, make_documents, make_teacher, specs

torch = pytest.importorskip("torch", reason="training data needs the trainer extra")
from logitcask_consumer.data import EMPTY, CaskDataset, Collator, open_casks  # noqa: E402

EVERYTHING = CaptureSpec(logprob_codec="u8", tail_logprobs=True, temperatures=(2.0, 4.0))
PAD, MULTIPLE = 0, 8
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # of a machine with one processor
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


ID_COLUMNS = ("head_ids", "tail_ids", "next_ids")


def plain_batch(dataset: CaskDataset, numbers: list[int]) -> dict[str, Any]:
    """The batch that a reader without haste makes: window by window, position by position, in lists."""
    pieces: dict[str, list[Any]] = {}
    rows: list[tuple[list[int], list[int]]] = []
    slots: list[tuple[int, int]] = []

    def add(name: str, values: Any) -> None:
        pieces.setdefault(name, []).extend(np.asarray(values).tolist())

    for sequence, number in enumerate(numbers):
        row: tuple[list[int], list[int]] = ([], [])
        rows.append(row)
        for window in [] if number == EMPTY else dataset.packs[number].tolist():
            index = document = int(dataset.windows.document_W[window])
            cask = dataset.casks[0]
            if index >= len(cask):
                index, cask = index - len(cask), dataset.casks[1]
            start, trained, stop = (
                int(column[window])
                for column in (dataset.windows.start_W, dataset.windows.trained_W, dataset.windows.stop_W)
            )
            slots += [(sequence, len(row[0]) + i) for i in range(trained - start, stop - start)]
            tokens = cask.read_window(index, start, stop).token_ids_L
            row[0].extend(tokens[:-1].tolist())
            row[1].extend(range(stop - start))
            records = cask.read_window(index, trained, stop).records
            add("next_ids", tokens[trained - start + 1 :])
            add("documents", [document] * (stop - trained))
            for name, column in (
                ("head_ids", records.head_ids_H),
                ("head_logprobs", records.head_logprobs_H),
                ("head_counts", records.head_counts_P),
                ("tail_ids", records.tail_ids_N),
                ("tail_counts", records.tail_counts_P),
                ("tail_logprobs", records.tail_logprobs_N),
                *records.position_columns.items(),
            ):
                if column is not None:
                    add(name, column)
    longest = max(len(ids) for ids, _ in rows)
    width = min(max(1, -(-longest // MULTIPLE)) * MULTIPLE, dataset.seq_len)
    labels = [[-100] * width for _ in rows]
    for (sequence, slot), next_id in zip(slots, pieces.get("next_ids", []), strict=True):
        labels[sequence][slot] = next_id
    return {
        "labels": labels,
        "shift_labels": labels,
        "input_ids": [ids + [PAD] * (width - len(ids)) for ids, _ in rows],
        "position_ids": [positions + [0] * (width - len(positions)) for _, positions in rows],
        "slots": [sequence * width + slot for sequence, slot in slots],
        "positions": len(slots),
        "max_id": max((int(token) for name in ID_COLUMNS for token in pieces.get(name, [])), default=0),
        "head_offsets": np.cumsum([0, *pieces.pop("head_counts", [])]).tolist(),
        "tail_offsets": np.cumsum([0, *pieces.pop("tail_counts", [])]).tolist(),
        **pieces,
    }


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    spec=specs(),
    vocab=st.sampled_from(VOCABS[:4]),
    carrier=st.sampled_from(sorted(CARRIERS)),
    seq_len=st.sampled_from([5, 24, 64]),
    packing=st.sampled_from(["best_fit", "none"]),
)
def test_a_batch_is_what_a_plain_reader_finds(
    data: st.DataObject, spec: CaptureSpec, vocab: int, carrier: str, seq_len: int, packing: Any
) -> None:
    overlap = data.draw(st.integers(0, seq_len - 1))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "a", Path(folder) / "b"]
        for seed, path in enumerate(paths):
            with CaskWriter.create(path, teacher=make_teacher(vocab), capture=spec, carrier=carrier) as writer:
                writer.publish(make_documents([2, 60, 9], seed, vocab_size=vocab, spec=spec))
                writer.publish(make_documents([33, 5], 10 + seed, vocab_size=vocab, spec=spec))
        casks = open_casks(paths, tokenizer_fingerprint=None)
        dataset = CaskDataset(casks, seq_len=seq_len, overlap=overlap, packing=packing)
        numbers = data.draw(st.lists(st.integers(EMPTY, len(dataset) - 1), min_size=1, max_size=6))
        batch = Collator(seq_len=seq_len, multiple_of=MULTIPLE)(dataset.read(numbers))
        expected = plain_batch(dataset, numbers)
        for name, column in flat(batch).items():
            if column is None:
                assert name not in expected
            else:
                found = np.asarray(column)
                np.testing.assert_array_equal(found, np.reshape(expected.get(name, []), found.shape), err_msg=name)
        stored = casks[0].read(0).records
        assert batch["head_logprobs"].numpy().dtype == stored.head_logprobs_H.dtype
        assert batch["tail_ids"].numpy().dtype == stored.tail_ids_N.dtype
        assert (batch["tail_logprobs"] is None) == (not spec.tail_logprobs)
        assert ("log_z" in batch["position_columns"]) == bool(spec.temperatures)


def test_negative_control_the_plain_reader_notices_another_sequence(tmp_path: Path) -> None:
    with CaskWriter.create(tmp_path, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish(make_documents([40, 30], 1))
    dataset = CaskDataset(open_casks([tmp_path], tokenizer_fingerprint=None), seq_len=40)
    batch = Collator(seq_len=40)(dataset.read([0]))
    assert batch["next_ids"].tolist() == plain_batch(dataset, [0])["next_ids"] != plain_batch(dataset, [1])["next_ids"]


def flat(batch: Any) -> dict[str, Any]:
    """With the columns of positions beside the others."""
    return {
        **{name: column for name, column in batch.items() if name != "position_columns"},
        **batch["position_columns"],
    }


def batches(path: Path, workers: str | None) -> list[dict[str, Any]]:
    dataset = CaskDataset(open_casks([path], tokenizer_fingerprint=None), seq_len=64, overlap=8)
    options = {} if workers is None else {"num_workers": 2, "multiprocessing_context": workers}
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=Collator(seq_len=64), **options)
    return list(loader)


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        mine, theirs = flat(mine), flat(theirs)
        assert mine.keys() == theirs.keys()
        for name, column in theirs.items():
            if column is None or isinstance(column, int):
                assert mine[name] == column, name
            else:
                np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(column), err_msg=name)
                assert mine[name].dtype == column.dtype, name


CASES = {"f16": (SPEC, 49_152), "u8, every column, wide ids": (EVERYTHING, 262_144)}


@pytest.mark.parametrize(
    ("carrier", "case", "workers"),
    [
        *itertools.product(["zarr", "parquet", "packed"], CASES, [None, "fork"]),
        # Each worker takes seconds to start.
        ("zarr", "f16", "spawn"),
        ("packed", "u8, every column, wide ids", "spawn"),
    ],
)
def test_batches_are_those_of_arrow(tmp_path: Path, carrier: str, case: str, workers: str | None) -> None:
    spec, vocab = CASES[case]
    with CaskWriter.create(tmp_path / "arrow", teacher=make_teacher(vocab), capture=spec) as writer:
        for seed in range(3):
            writer.publish(make_documents([40, 300, 7, 129], seed, spec=spec, vocab_size=vocab))
    list(export_cask(Cask.open(tmp_path / "arrow"), LocalTarget(tmp_path / carrier), carrier))
    expected = batches(tmp_path / "arrow", None)
    assert len(expected) > 3
    assert_equal(batches(tmp_path / carrier, workers), expected)
