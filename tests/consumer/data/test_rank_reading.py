"""What each process of a run reads: its own sequences, each document once an epoch, in the order of one process.

Documents and bytes are counted for 1, 2 and 3 processes, with packing and without; no processes are started.
"""

import itertools

import numpy as np
import pytest

from logitcask_consumer.data import EMPTY, CaskDataset, StepSampler, dataset, open_casks
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher

SEQUENCES = 12
"""Of a step, over all processes."""


@pytest.fixture(scope="module")
def cask(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return build_cask(folder / "cask", save_teacher(folder / "teacher"), random_documents(150, high=40), per_shard=16)


class Rank:
    """One process of some: its dataset, opened by itself, and what it has read."""

    def __init__(self, cask, monkeypatch, *, process, processes, packing):
        self.dataset = CaskDataset(open_casks([cask], tokenizer_fingerprint=None), seq_len=64, packing=packing)
        self.steps_done = 0
        self.opened = set()
        """Documents whose bytes it has touched: each is proved before it is read."""
        accumulation = 2
        own = -(-SEQUENCES // processes)
        sampler = StepSampler(
            self.dataset.sources,
            seed=3,
            sequences=SEQUENCES,
            micro=-(-own // accumulation),
            accumulation=accumulation,
            processes=processes,
            process=process,
            steps_done=lambda: self.steps_done,
            steps_in_all=lambda: 10**6,
        )
        batches = list(sampler)
        self.steps = [batches[at : at + accumulation] for at in range(0, len(batches), accumulation)]
        """Of an epoch, its micro-batches."""
        plain = dataset._prove

        def noted(shard, row):
            self.opened.add((shard.path, row))
            plain(shard, row)

        with monkeypatch.context() as patch:
            patch.setattr(dataset, "_prove", noted)
            read = [self.dataset.read(batch) for batch in batches]
        self.documents = np.concatenate([part.documents_W for part in read])
        self.bytes = sum(_bytes(part.windows) for part in read)


def _bytes(windows):
    records = windows.records
    columns = [windows.token_ids_L, records.head_ids_H, records.head_logprobs_H, records.tail_ids_N]
    return sum(column.nbytes for column in [*columns, *records.position_columns.values()])


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("processes", [2, 3])
def test_a_process_reads_its_part_only_and_together_they_read_what_one_does(cask, monkeypatch, processes, packing):
    alone = Rank(cask, monkeypatch, process=0, processes=1, packing=packing)
    ranks = [
        Rank(cask, monkeypatch, process=process, processes=processes, packing=packing) for process in range(processes)
    ]
    # The order of one process, step by step: micro-batches in turn, of each the processes in turn.
    expected = [_numbers(step) for step in alone.steps]
    shared = [
        _numbers([batch for at in zip(*parts, strict=True) for batch in at])
        for parts in zip(*(rank.steps for rank in ranks), strict=True)
    ]
    assert shared == expected
    # Every document once, by one process.
    opened = [rank.opened for rank in ranks]
    assert all(not one & other for one, other in itertools.combinations(opened, 2))
    assert set.union(*opened) == alone.opened
    assert len(alone.opened) == 150
    np.testing.assert_array_equal(np.sort(np.concatenate([rank.documents for rank in ranks])), np.sort(alone.documents))
    # And its bytes: all together those of one, none much more than its share.
    assert sum(rank.bytes for rank in ranks) == alone.bytes
    assert max(rank.bytes for rank in ranks) < 1.3 * alone.bytes / processes


def test_the_control_processes_that_do_not_know_their_number_all_read_everything(cask, monkeypatch):
    ranks = [Rank(cask, monkeypatch, process=0, processes=1, packing="best_fit") for _ in range(2)]
    assert ranks[0].opened == ranks[1].opened


def _numbers(batches):
    return [sequence for batch in batches for sequence in batch if sequence != EMPTY]
