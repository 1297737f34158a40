"""From a cask's hints to a batch's losses: rows lie at their positions, whatever is packed, cut, weighted or unread."""

import shutil

import numpy as np
import pytest
import torch

from logitcask_consumer.data import CaskDataset, Collator, open_casks
from logitcask_consumer.data.hint_rows import decoded_layer, hint_tensors
from logitcask_consumer.hints import HintMismatchError, HintObjective
from logitcask_consumer.methods import TokenMethod
from logitcask_consumer.weights import Weights
from logitcask_schemas.errors import CaskCorruptionError, CaskNotFoundError, HintsDroppedError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows
from tests.support.consumer.cask_builder import build_cask, tiny_model, tiny_tokenizer
from tests.support.consumer.hinted_casks import (
    DOCUMENTS,
    HIDDEN,
    dataset_of,
    distinct_documents,
    documents_in,
    positions_of,
)
from tests.support.consumer.live_states import live_states

CODECS = {"f16": 1e-3, "i8": 2e-2}
"""Largest error of a value, as a share of the largest of its row."""


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("seq_len", [64, 24])
def test_a_batch_holds_the_states_of_its_positions(casks, teacher, codec, packing, seq_len):
    """Windows, packing and several sequences: by document and position they are those of the live teacher."""
    dataset = dataset_of(casks / codec, seq_len=seq_len, overlap=8, packing=packing)
    batch = Collator(seq_len=seq_len)(dataset.read(range(len(dataset))))
    seen = 0
    starts = positions_of(dataset, batch)
    for column, layer in enumerate(HIDDEN.layers):
        got = decoded_layer(batch["hints"], column)
        for number, document in enumerate(documents_in(dataset)):
            rows = batch["documents"] == number
            expected = live_states(teacher[1], document, HIDDEN)[starts[rows], column]
            error = (got[rows] - expected).abs().amax(1) / expected.abs().amax(1)
            assert float(error.max()) < CODECS[codec], f"layer {layer} of document {number}"
            shifted = live_states(teacher[1], document, HIDDEN)[starts[rows] + 1, column]
            assert float(((got[rows] - shifted).abs().amax(1) / shifted.abs().amax(1)).min()) > 0.05
            seen += int(rows.sum())
    assert seen == 3 * sum(len(document) - 1 for document in DOCUMENTS)


@pytest.mark.parametrize("codec", ["f16", "i8", "proj:24"])
@pytest.mark.parametrize("width", [3, 64, 200])
def test_a_layers_numbers_are_those_of_the_whole_row(codec, width):
    """As `HintRows.decode` has them, to the bit: with a channel of 25,000, and a row of zeros."""
    values = np.random.default_rng(1).normal(size=(5, 3, width)).astype(np.float32)
    values[0, 1, 2], values[3] = 25_000, 0
    rows = HintRows.encode(values, HintSpec(layers=(1, 2, 3), codec=codec))
    for column in range(3):
        got = decoded_layer(hint_tensors(rows), column)
        torch.testing.assert_close(got.numpy(), rows.decode()[:, column], rtol=0, atol=0)


def test_positions_without_weight_have_no_rows(casks):
    weights = Weights.parse("teacher_entropy").bind(None)
    dataset = dataset_of(casks / "f16", weights=weights)
    read = dataset.read([0, 1])
    assert read.weights_P is not None
    read.weights_P[::3] = 0
    batch = Collator(seq_len=64)(read)
    kept = read.weights_P > 0
    assert len(batch["hints"]["codes"]) == int(kept.sum()) == len(batch["slots"])
    torch.testing.assert_close(batch["hints"]["codes"].numpy(), read.hints.codes_RKW[kept], rtol=0, atol=0)


def test_documents_recorded_in_part_have_the_rows_of_their_records(teacher, tmp_path):
    masks = [np.arange(len(document) - 1) % 4 > 0 for document in DOCUMENTS]
    place = build_cask(
        tmp_path / "cask", teacher[1], DOCUMENTS, spec=CaptureSpec(tau=0.05, hints=HIDDEN), recorded=masks
    )
    dataset = dataset_of(place, seq_len=24, overlap=8)
    batch = Collator(seq_len=24)(dataset.read(range(len(dataset))))
    assert len(batch["slots"]) == sum(int(mask.sum()) for mask in masks)
    starts = positions_of(dataset, batch)
    for number, document in enumerate(documents_in(dataset)):
        rows = batch["documents"] == number
        expected = live_states(teacher[1], document, HIDDEN)[starts[rows], 1]
        torch.testing.assert_close(decoded_layer(batch["hints"], 1)[rows], expected, rtol=1e-3, atol=1e-2)


def test_an_empty_sequence_and_several_reads_are_joined(casks):
    dataset = dataset_of(casks / "i8")
    collate = Collator(seq_len=64)
    whole = collate(dataset.read([0, 1]))
    apart = collate([dataset.read([0]), dataset.read([1])])
    for name, tensor in whole["hints"].items():
        torch.testing.assert_close(apart["hints"][name], tensor, rtol=0, atol=0)
    assert len(collate(dataset.read([-1]))["hints"]["codes"]) == 0


def test_several_casks_are_read_by_their_own_numbers(casks, teacher, tmp_path):
    """The second cask's documents have numbers of their own in it."""
    spec = CaptureSpec(tau=0.05, hints=HIDDEN)
    others = distinct_documents(6, seed=9)
    second = build_cask(tmp_path / "second", teacher[1], others, spec=spec, per_shard=4)
    dataset = dataset_of([casks / "f16", second])
    batch = Collator(seq_len=64)(dataset.read(range(len(dataset))))
    for number, document in enumerate(documents_in(dataset)):
        rows = batch["documents"] == number
        expected = live_states(teacher[1], document, HIDDEN)[:-1, 2]
        torch.testing.assert_close(decoded_layer(batch["hints"], 2)[rows], expected, rtol=1e-3, atol=1e-2)


def test_training_without_hints_never_opens_their_files(teacher, tmp_path):
    """The files are gone; only who asks for hints notices."""
    place = build_cask(tmp_path / "cask", teacher[1], DOCUMENTS, spec=CaptureSpec(tau=0.05, hints=HIDDEN))
    files = list((place / "shards").glob("*.hints.arrow"))
    assert files, "there was something to leave alone"
    for file in files:
        file.unlink()
    dataset = dataset_of(place, hints=False)
    batch = Collator(seq_len=64)(dataset.read(range(len(dataset))))
    assert "hints" not in batch
    with pytest.raises(CaskNotFoundError, match="hints"):
        dataset_of(place)


def test_a_damaged_file_is_noticed(teacher, tmp_path):
    place = build_cask(tmp_path / "cask", teacher[1], DOCUMENTS, spec=CaptureSpec(tau=0.05, hints=HIDDEN))
    [file] = sorted((place / "shards").glob("*.hints.arrow"))[:1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(CaskCorruptionError, match="checksum"):
        read_whole(place)


def test_a_cask_some_of_whose_shards_have_no_hints_is_refused_before_the_first_step(casks):
    """As a repair leaves it that took a damaged file away: not where training comes upon the shard, hours later."""
    opened = open_casks(casks / "i8", tokenizer_fingerprint=None)
    entries = opened[0].entries
    entries[-1] = entries[-1].model_copy(update={"hints": None})
    with pytest.raises(HintsDroppedError, match=rf"{entries[-1].name} has no hints"):
        CaskDataset(opened, seq_len=64, hints=True)
    assert len(CaskDataset(opened, seq_len=64))


def test_a_missing_file_is_noticed_before_the_first_step(teacher, tmp_path):
    place = build_cask(tmp_path / "cask", teacher[1], DOCUMENTS, spec=CaptureSpec(tau=0.05, hints=HIDDEN), per_shard=5)
    opened = open_casks(place, tokenizer_fingerprint=None)
    last = opened[0].entries[-1]
    (place / "shards" / last.hints_name).unlink()
    with pytest.raises(CaskNotFoundError, match=f"hints of shard {last.name} are missing"):
        CaskDataset(opened, seq_len=64, hints=True)


def read_whole(place):
    dataset = dataset_of(place)
    return dataset.read(range(len(dataset)))


def test_a_shard_whose_vectors_have_another_width_is_named(tmp_path):
    """A teacher has one width: no writer of one makes such a cask, and no batch can hold both."""
    folders = [tmp_path / "narrow", tmp_path / "wide"]
    spec = CaptureSpec(tau=0.05, hints=HintSpec(layers=(2,)))
    for folder, width in zip(folders, (32, 48), strict=True):
        build_cask(folder, tiny_model(hidden_size=width, seed=width), distinct_documents(3, seed=width), spec=spec)
    for file in (folders[1] / "shards").iterdir():
        shutil.copy(file, folders[0] / "shards" / file.name)
    for folder in folders:
        (folder / "index.json").unlink(missing_ok=True)
    with pytest.raises(CaskCorruptionError, match=r"document \d: hints of width (32|48), the others have (32|48)"):
        read_whole(folders[0])


def test_casks_without_hints_are_refused(casks):
    with pytest.raises(HintsDroppedError, match="without hints"):
        dataset_of(casks / "none")
    with pytest.raises(HintMismatchError, match=r"'pkd' needs hints .*; this cask has no hints"):
        TokenMethod(hints="pkd", tokenizer=tiny_tokenizer()).bound(
            open_casks(casks / "none", tokenizer_fingerprint=None)
        )


@pytest.mark.parametrize(
    ("cask", "hints", "says"),
    [
        ("f16", "relation", r"'relation' needs hints of v or qkv .*Hint losses that fit: cosine, mse, pkd, ted"),
        ("v", "pkd", r"'pkd' needs hints of hidden .*Hint losses that fit: relation"),
        ("proj", "ted", "needs states as they are"),
    ],
)
def test_losses_that_the_hints_cannot_serve_are_refused(casks, cask, hints, says):
    spec = open_casks(casks / cask, tokenizer_fingerprint=None)[0].manifest.capture
    with pytest.raises(HintMismatchError, match=says):
        HintObjective.parse(hints).require(spec)


def test_a_vector_per_document_is_no_hint_loss(casks):
    spec = CaptureSpec(hints=HintSpec(layers=(4,), positions="last"))
    with pytest.raises(HintMismatchError, match="last is for `logitcask cask nearest`"):
        HintObjective.parse("cosine").require(spec)
