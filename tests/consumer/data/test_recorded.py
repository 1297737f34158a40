"""Training on documents of which some positions are recorded: these positions, each once, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import CaskDataset, Collator, open_casks
from logitcask_consumer.data.recorded import RecordedPositions
from logitcask_consumer.methods import SparseTargetLoss
from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.student.forward import attach
from logitcask_consumer.training.run import train
from logitcask_consumer.weights import StoredAnswers, Weights
from logitcask_schemas.cask import Cask
from tests.support.consumer.cask_builder import (
    build_cask,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)

DOCUMENTS = random_documents(24, low=3, high=90, seed=4)


def masks(seed):
    """Of four documents one whole, one from the middle on, one here and there, one with a single position."""
    random, result = np.random.default_rng(seed), []
    for number, ids in enumerate(DOCUMENTS):
        positions = len(ids) - 1
        mask = [
            None,
            np.arange(positions) >= positions // 2,
            random.random(positions) < 0.3,
            np.arange(positions) == random.integers(positions),
        ][number % 4]
        if mask is not None and not mask.any():
            mask[-1] = True
        result.append(None if mask is None or mask.all() else mask)
    return result


MASKS = masks(0)
ANSWERS = [[[len(ids) // 3, len(ids)]] if number % 3 else [] for number, ids in enumerate(DOCUMENTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("recorded")
    teacher = save_teacher(place / "teacher")
    build_cask(place / "whole", teacher, DOCUMENTS, answers=ANSWERS)
    build_cask(place / "partial", teacher, DOCUMENTS, answers=ANSWERS, recorded=MASKS)
    return place


def dataset_of(path, *, weights=None, **options):
    casks = open_casks(path, tokenizer_fingerprint=None)
    bound = Weights.parse(weights).bind(tiny_tokenizer(), StoredAnswers.of(casks)) if weights else None
    return CaskDataset(casks, weights=bound, **{"seq_len": 64, **options})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_counts_are_those_of_the_masks(folder, data):
    casks = [Cask.open(folder / "partial"), Cask.open(folder / "whole"), Cask.open(folder / "partial")]
    recorded = RecordedPositions.of(casks)
    documents = [cask.read(number) for cask in casks for number in range(len(cask))]
    questions = []
    for _ in range(data.draw(st.integers(1, 5))):
        number = data.draw(st.integers(0, len(documents) - 1))
        last = len(documents[number].token_ids_L) - 1
        start = data.draw(st.integers(0, last))
        questions.append((number, start, data.draw(st.integers(start, last))))
    found = recorded.between(*(np.array(column, dtype=np.int64) for column in zip(*questions, strict=True)))
    for count, (number, start, stop) in zip(found.tolist(), questions, strict=True):
        positions = documents[number].extent.positions(len(documents[number].token_ids_L))
        assert count == int(((positions >= start) & (positions < stop)).sum())


@pytest.mark.parametrize(("seq_len", "overlap"), [(128, 0), (16, 0), (16, 5), (7, 6), (1, 0)])
@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_an_epoch_trains_every_recorded_position_once(folder, seq_len, overlap, packing):
    dataset = dataset_of(folder / "partial", seq_len=seq_len, overlap=overlap, packing=packing)
    cask = dataset.casks[0]
    expected = sorted(
        (number, int(document.token_ids_L[position]), int(document.token_ids_L[position + 1]))
        for number, document in ((number, cask.read(number)) for number in range(len(cask)))
        for position in document.extent.positions(len(document.token_ids_L)).tolist()
    )
    assert dataset.num_positions == len(expected)
    collate, found = Collator(seq_len=seq_len), []
    for sequences in np.array_split(np.arange(len(dataset)), 4):
        batch = collate(dataset.read(sequences.tolist()))
        inputs = batch["input_ids"].flatten()[batch["slots"]].tolist()
        found += zip(batch["documents"].tolist(), inputs, batch["next_ids"].tolist(), strict=True)
        assert int((batch["labels"] != -100).sum()) == len(inputs)
        # One sequence at a time, joined, is the same batch.
        parts = collate([dataset[sequence] for sequence in sequences.tolist()])
        assert torch.equal(parts["slots"], batch["slots"])
        assert torch.equal(parts["next_ids"], batch["next_ids"])
    assert sorted(found) == expected


def test_the_gradient_is_that_of_a_whole_cask_with_the_other_positions_masked(folder, tmp_path):
    """The same positions by another way: all of them stored, and those without a record weighted 0."""
    import json

    whole, partial = Cask.open(folder / "whole"), Cask.open(folder / "partial")
    by_tokens = {partial.read(number).token_ids_L.tobytes(): partial.read(number) for number in range(len(partial))}
    lines = []
    for number in range(len(whole)):
        document = whole.read(number)
        positions = by_tokens[document.token_ids_L.tobytes()].extent.positions(len(document.token_ids_L))
        ranges = [[position + 1, position + 2] for position in positions.tolist()]
        lines.append(json.dumps({"document_id": document.id.hex(), "ranges": ranges}))
    (tmp_path / "ranges.jsonl").write_text("\n".join(lines))
    model = tiny_model(layers=2, seed=3)
    attach(model)
    gradients = []
    for dataset in (
        dataset_of(folder / "partial"),
        dataset_of(folder / "whole", weights=f'ranges:file="{tmp_path / "ranges.jsonl"}"'),
    ):
        loss = SparseTargetLoss(capture=dataset.manifest.capture, weights=dataset.weights)
        batch = Collator(seq_len=64)(dataset.read(list(range(len(dataset)))))
        model.zero_grad()
        loss.through(model, batch).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    assert float((gradients[0] - gradients[1]).norm()) < 1e-4 * float(gradients[1].norm())


@pytest.mark.parametrize("weights", ["assistant_only", "teacher_entropy", "completion_only"])
@pytest.mark.parametrize("seq_len", [128, 16])
def test_weights_are_those_that_the_positions_have_in_the_whole_document(folder, weights, seq_len):
    found = []
    for name in ("partial", "whole"):
        dataset = dataset_of(folder / name, weights=weights, seq_len=seq_len, overlap=seq_len // 4)
        cask = dataset.casks[0]
        weight_of = {}
        for sequence in range(len(dataset)):
            read = dataset.read([sequence])
            weights_P = np.ones(read.windows.records.num_positions) if read.weights_P is None else read.weights_P
            for window, (first, stop) in enumerate(
                zip(read.windows.position_offsets_B1[:-1], read.windows.position_offsets_B1[1:], strict=True)
            ):
                number = int(dataset.packs.take([sequence]).windows_W[window])
                document = cask.read(int(read.documents_W[window]))
                positions = document.extent.positions(len(document.token_ids_L))
                inside = positions[
                    (positions >= dataset.windows.trained_W[number]) & (positions < dataset.windows.stop_W[number])
                ]
                for position, value in zip(inside.tolist(), weights_P[first:stop].tolist(), strict=True):
                    weight_of[document.token_ids_L.tobytes(), position] = value
        found.append(weight_of)
    partial, whole = found
    assert len(partial) < len(whole)
    assert {key: whole[key] for key in partial} == pytest.approx(partial)


def test_a_run_and_a_report_on_them(folder, tmp_path):
    config = TrainConfig(
        casks=(folder / "partial",),
        student="from-teacher:layers=2",
        teacher=folder / "teacher",
        output=tmp_path / "out",
        seq_len=32,
        batch_tokens=128,
        micro_tokens=64,
        epochs=3,
        lr=3e-3,
    )
    result = train(config)
    positions = sum(cask["positions"] for cask in result.run["casks"])
    assert positions == sum(
        len(ids) - 1 if mask is None else int(mask.sum()) for ids, mask in zip(DOCUMENTS, MASKS, strict=True)
    )
    assert result.run["result"]["positions"] == 3 * positions
    assert result.run["result"]["last"]["kl"] < result.run["result"]["first"]["kl"]
    models = (("before", tmp_path / "out" / "initial"), ("after", tmp_path / "out"))
    short, long = (
        make_report(ReportConfig(casks=(folder / "partial",), models=models, output=tmp_path / name, seq_len=seq_len))
        for name, seq_len in (("short", 1000), ("long", None))
    )
    assert short["cask"]["positions"] == positions
    for one, other in zip(short["models"], long["models"], strict=True):
        assert one["metrics"]["kl"]["value"] == pytest.approx(other["metrics"]["kl"]["value"], rel=1e-5)
