"""Datasets over real casks: what comes out is what was recorded, for every way of packing, and damage is an error."""

import pickle
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import (
    EMPTY,
    CaskDataset,
    Collator,
    EmptyCaskError,
    ShardBlockSampler,
    open_casks,
    target_of,
)
from logitcask_consumer.data.collate import _require_next_token
from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.errors import (
    CaskCorruptionError,
    CaskNotFoundError,
    DocumentMismatchError,
    IdentityMismatchError,
)
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import tokenizer_fingerprint
from tests.support.consumer.cask_builder import build_cask, identity, random_documents, save_teacher, tiny_tokenizer
from tests.support.consumer.reference_sampler import total_mass


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def cask_path(teacher, tmp_path_factory):
    return build_cask(tmp_path_factory.mktemp("data") / "cask", teacher, random_documents(30))


def batch_of(dataset, sequences=None):
    sequences = range(len(dataset)) if sequences is None else sequences
    return Collator(seq_len=dataset.seq_len)(dataset.read(sequences))


def assert_same_batch(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, column in theirs.items():
        if isinstance(column, dict):
            assert_same_batch(mine[name], column)
        elif column is None or isinstance(column, int):
            assert mine[name] == column, name
        else:
            assert mine[name].dtype == column.dtype, name
            np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(column), err_msg=name)


@pytest.mark.parametrize(("seq_len", "overlap"), [(64, 0), (16, 0), (16, 5), (7, 3)])
@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_a_batch_holds_every_record_unchanged(cask_path, seq_len, overlap, packing):
    [cask] = open_casks([cask_path], tokenizer_fingerprint=tokenizer_fingerprint(tiny_tokenizer()))
    dataset = CaskDataset([cask], seq_len=seq_len, overlap=overlap, packing=packing)
    batch = batch_of(dataset)
    assert dataset.num_positions == cask.num_positions == len(batch["slots"])
    found = {}
    flat_ids, flat_positions = batch["input_ids"].flatten(), batch["position_ids"].flatten()
    for row, (slot, document) in enumerate(zip(batch["slots"].tolist(), batch["documents"].tolist(), strict=True)):
        head = slice(batch["head_offsets"][row], batch["head_offsets"][row + 1])
        tail = slice(batch["tail_offsets"][row], batch["tail_offsets"][row + 1])
        context = flat_ids[slot - int(flat_positions[slot]) : slot + 1].tolist()
        found.setdefault(document, []).append(
            (
                context,
                int(batch["next_ids"][row]),
                batch["head_ids"][head].tolist(),
                batch["head_logprobs"][head].tolist(),
                batch["tail_ids"][tail].tolist(),
                float(batch["position_columns"]["log_tail_mass"][row]),
                float(batch["position_columns"]["entropy"][row]),
            )
        )
    assert len(found) == sum(cask.document_lengths() > 1)
    for document, rows in found.items():
        stored = cask.read(document)
        tokens, records = stored.token_ids_L.tolist(), stored.records
        heads = np.concatenate([[0], np.cumsum(records.head_counts_P, dtype=np.int64)])
        tails = np.concatenate([[0], np.cumsum(records.tail_counts_P, dtype=np.int64)])
        by_content = {}
        for row in rows:
            by_content.setdefault((row[1], *row[2]), []).append(row)
        for i in range(len(tokens) - 1):
            head, tail = slice(heads[i], heads[i + 1]), slice(tails[i], tails[i + 1])
            matches = [
                row
                for row in by_content[(tokens[i + 1], *records.head_ids_H[head].tolist())]
                if row[0] == tokens[i + 1 - len(row[0]) : i + 1]
                and row[3] == records.head_logprobs_H[head].tolist()
                and row[4] == records.tail_ids_N[tail].tolist()
                and row[5] == float(records.log_tail_mass_P[i])
                and row[6] == float(records.entropy_P[i])
            ]
            assert len(matches) == 1
            assert len(matches[0][0]) == i + 1 or len(matches[0][0]) > overlap


def test_empty_sequences_carry_no_position(cask_path):
    dataset = CaskDataset(open_casks([cask_path], tokenizer_fingerprint=None), seq_len=64)
    nothing, mixed = batch_of(dataset, [EMPTY, EMPTY]), batch_of(dataset, [EMPTY, 0])
    assert nothing["input_ids"].shape == (2, 8)
    assert len(nothing["slots"]) == len(nothing["head_ids"]) == 0
    assert target_of(nothing, sampled_tail=True).num_rows == 0
    alone = batch_of(dataset, [0])
    assert torch.equal(mixed["input_ids"][1], alone["input_ids"][0])
    assert torch.equal(mixed["slots"], alone["slots"] + mixed["input_ids"].shape[1])


@pytest.mark.parametrize("optional", [False, True])
def test_sequences_read_one_by_one_give_the_batch_of_all(teacher, cask_path, tmp_path, optional):
    spec = CaptureSpec(tail_logprobs=True)
    path = build_cask(tmp_path / "more", teacher, random_documents(9), spec=spec) if optional else cask_path
    dataset = CaskDataset(open_casks([path], tokenizer_fingerprint=None), seq_len=32, overlap=4)
    numbers = [2, EMPTY, 0, 1]
    one_by_one = Collator(seq_len=32)([dataset[number] for number in numbers])
    assert (one_by_one["tail_logprobs"] is not None) == optional
    assert_same_batch(one_by_one, batch_of(dataset, numbers))


def test_packing_fills_sequences(cask_path):
    dataset = CaskDataset(open_casks([cask_path], tokenizer_fingerprint=None), seq_len=128)
    alone = CaskDataset(open_casks([cask_path], tokenizer_fingerprint=None), seq_len=128, packing="none")
    assert len(dataset) < len(alone)
    assert dataset.fill > 0.8 > alone.fill


def test_target_mass_is_one_through_the_whole_path(cask_path):
    dataset = CaskDataset(open_casks([cask_path], tokenizer_fingerprint=None), seq_len=64)
    target = target_of(batch_of(dataset), sampled_tail=True)
    assert float((total_mass(target) - 1).abs().max()) < 1e-6


def test_casks_of_one_teacher_are_read_together(cask_path, teacher, tmp_path):
    more = build_cask(tmp_path / "more", teacher, random_documents(5, seed=9))
    both = CaskDataset(open_casks([cask_path, more], tokenizer_fingerprint=None), seq_len=64)
    batch = batch_of(both)
    assert both.num_documents == 35
    assert set(batch["documents"].tolist()) == set(range(35))


def loaded(dataset, *, epoch=0, **options):
    sampler = ShardBlockSampler(dataset.sources, seed=5)
    sampler.set_epoch(epoch)
    collator = Collator(seq_len=dataset.seq_len)
    return list(DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=collator, **options))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # of a machine with one processor
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_batches(cask_path, method):
    dataset = CaskDataset(open_casks([cask_path], tokenizer_fingerprint=None), seq_len=64)
    here = loaded(dataset)  # maps the shards in this process first, so that forked workers inherit the maps
    there = loaded(dataset, num_workers=2, multiprocessing_context=method)
    assert len(here) == len(there) > 1
    for mine, theirs in zip(there, here, strict=True):
        assert_same_batch(mine, theirs)


def test_the_plan_depends_on_the_seed_only(cask_path):
    datasets = [CaskDataset(open_casks([cask_path], tokenizer_fingerprint=None), seq_len=64, seed=s) for s in (1, 1, 2)]
    plans = [dataset.packs.windows_W.tolist() for dataset in datasets]
    assert plans[0] == plans[1] != plans[2]
    clone = pickle.loads(pickle.dumps(datasets[0]))
    assert torch.equal(batch_of(clone)["input_ids"], batch_of(datasets[0])["input_ids"])


def test_another_tokenizer_is_refused(cask_path):
    with pytest.raises(IdentityMismatchError, match="tokenizer"):
        open_casks([cask_path], tokenizer_fingerprint=tokenizer_fingerprint(tiny_tokenizer("x")))


def test_casks_of_different_teachers_are_refused(cask_path, teacher, tmp_path):
    other = build_cask(tmp_path / "other", teacher, random_documents(2), weights_digest="1" * 64)
    with pytest.raises(IdentityMismatchError, match="weights_digest"):
        open_casks([cask_path, other], tokenizer_fingerprint=None)
    spec = build_cask(tmp_path / "spec", teacher, random_documents(2), spec=CaptureSpec(tau=0.1))
    with pytest.raises(IdentityMismatchError, match="tau"):
        open_casks([cask_path, spec], tokenizer_fingerprint=None)


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(EmptyCaskError, match="at least one"):
        open_casks([], tokenizer_fingerprint=None)
    CaskWriter.create(tmp_path / "empty", teacher=identity(), capture=CaptureSpec()).close()
    with pytest.raises(EmptyCaskError, match="none of two tokens"):
        CaskDataset(open_casks([tmp_path / "empty"], tokenizer_fingerprint=None), seq_len=8)


def test_missing_truncated_and_flipped_shards_are_errors(teacher, tmp_path):
    def fresh(name):
        path = build_cask(tmp_path / name, teacher, random_documents(6), per_shard=6)
        [shard] = (path / "shards").glob("*.arrow")
        return path, shard

    path, shard = fresh("missing")
    shard.unlink()
    with pytest.raises(CaskNotFoundError):
        CaskDataset(open_casks([path], tokenizer_fingerprint=None), seq_len=64)
    path, shard = fresh("truncated")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CaskCorruptionError):
        CaskDataset(open_casks([path], tokenizer_fingerprint=None), seq_len=64)
    path, shard = fresh("flipped")
    column = open_casks([path], tokenizer_fingerprint=None)[0].read(0).records.head_logprobs_H.tobytes()
    data = shard.read_bytes()
    at = data.index(column[:16])
    shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    dataset = CaskDataset(open_casks([path], tokenizer_fingerprint=None), seq_len=64)
    with pytest.raises(CaskCorruptionError, match="checksum"):
        batch_of(dataset)


def test_records_shifted_by_one_position_are_refused(cask_path):
    sequence = CaskDataset(open_casks([cask_path], tokenizer_fingerprint=None), seq_len=64)[0]
    Collator(seq_len=64)(sequence)
    tokens = np.roll(sequence.windows.token_ids_L, 1)
    shifted = replace(sequence, windows=replace(sequence.windows, token_ids_L=tokens))
    with pytest.raises(DocumentMismatchError, match="next token"):
        Collator(seq_len=64)(shifted)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), max_size=12), st.data())
def test_the_next_token_is_found_wherever_it_stands_in_the_head(heads, data):
    next_ids = [data.draw(st.sampled_from(head) if data.draw(st.booleans()) else st.integers(0, 5)) for head in heads]
    arguments = (
        np.array([token for head in heads for token in head], dtype=np.uint16),
        np.cumsum([0, *map(len, heads)]),
        np.array(next_ids, dtype=np.uint16),
        np.arange(len(heads), dtype=np.int32),
    )
    absent = [row for row, (head, token) in enumerate(zip(heads, next_ids, strict=True)) if token not in head]
    if absent:
        message = f"document {absent[0]}: .* next token {next_ids[absent[0]]}\\."
        with pytest.raises(DocumentMismatchError, match=message):
            _require_next_token(*arguments)
    else:
        _require_next_token(*arguments)


def test_token_ids_of_another_document_are_refused(cask_path, monkeypatch):
    dataset = CaskDataset(open_casks([cask_path], tokenizer_fingerprint=None), seq_len=64)
    monkeypatch.setattr("logitcask_schemas.record.records.document_id", lambda ids, extent: b"\0" * 32)
    with pytest.raises(DocumentMismatchError, match="identity"):
        dataset[0]


def test_a_shard_that_is_cut_while_it_is_trained_from_is_an_error_not_the_end_of_the_process(place, tmp_path):
    """Reading its lost pages would raise SIGBUS."""
    shutil.copytree(place / "cask", tmp_path / "cask")
    dataset = CaskDataset(open_casks(str(tmp_path / "cask"), tokenizer_fingerprint=None), seq_len=64)
    dataset.read(range(len(dataset)))
    path = dataset.casks[0].shard(0).path
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(CaskCorruptionError, match="by now it has 4096"):
        dataset.read(range(len(dataset)))


def test_one_place_is_one_cask(place):
    for casks in (str(place / "cask"), place / "cask", [place / "cask"]):
        [cask] = open_casks(casks, tokenizer_fingerprint=None)
        assert cask.path == place / "cask"
    path: Any = str(place / "cask")  # as in a file of settings
    assert TrainConfig(casks=path, student="x", output=place).casks == (str(place / "cask"),)
    with pytest.raises(EmptyCaskError):
        open_casks([], tokenizer_fingerprint=None)
