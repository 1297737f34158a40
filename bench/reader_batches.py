"""Training batches from a memory-mapped cask: tokens per second of one process, from shard to torch tensors.

Sequences of 2,048 slots, 8 to a batch, in shuffled order; a token counts when it carries loss. Measured on documents
of 2,049 tokens, on documents as short as docstrings (several packed into a sequence), and with a vocabulary of 151,936,
whose ids lie in two planes; reading and collating, then with the sparse target built too, and the first pass, which
proves every document's checksum and identity. Target: 200,000 tokens/s. Everything is in the page cache.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from logitcask_consumer.data import Batch, CaskDataset, Collator, ShardBlockSampler, target_of
from logitcask_schemas.cask import Cask
from made_up_cask import DOCSTRING_LENGTHS, make_cask
from report import Report

SEQ_LEN, SEQUENCES = 2_048, 8
TARGET = 200_000


def batches(dataset: CaskDataset) -> Iterator[list[int]]:
    """Sequence numbers of one batch after the other, epoch after epoch."""
    sampler = ShardBlockSampler(dataset.sources, seed=0)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        order = list(sampler)
        yield from (order[i : i + SEQUENCES] for i in range(0, len(order) - SEQUENCES + 1, SEQUENCES))
        epoch += 1


def rates(dataset: CaskDataset, work: Callable[[Batch], Any], repeats: int) -> list[float]:
    """Tokens per second of each batch."""
    collate, found = Collator(seq_len=SEQ_LEN), []
    for numbers in batches(dataset):
        start = time.perf_counter()
        batch = collate(dataset.read(numbers))
        work(batch)
        found.append(len(batch["slots"]) / (time.perf_counter() - start))
        if len(found) == repeats:
            return found
    raise AssertionError("the sampler never ends")


def measure(report: Report, name: str, path: Path, repeats: int) -> float:
    """Rows for one kind of cask; the median rate of collated batches."""

    def fresh() -> CaskDataset:
        return CaskDataset([Cask.open(path)], seq_len=SEQ_LEN)

    start = time.perf_counter()
    dataset = fresh()
    planned = dataset.num_positions / (time.perf_counter() - start)
    first = rates(dataset, lambda batch: None, len(dataset) // SEQUENCES)
    note = f"{dataset.fill:.1%} of slots used"
    report.add("open and plan", "tokens/s", [planned], note, cask=name)
    report.add("first pass, everything proved", "tokens/s", first, note, cask=name)
    collated = report.add("collated batches", "tokens/s", rates(dataset, lambda batch: None, repeats), note, cask=name)
    found = rates(dataset, lambda batch: target_of(batch, sampled_tail=True), repeats)
    report.add("collated batches and targets", "tokens/s", found, note, cask=name)
    return collated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each cask")
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    long = [SEQ_LEN + 1] * (arguments.tokens // SEQ_LEN)
    short = list(DOCSTRING_LENGTHS) * (arguments.tokens // sum(DOCSTRING_LENGTHS))
    report, medians = Report(__file__, "numpy", "torch"), []
    with tempfile.TemporaryDirectory() as folder:
        for name, lengths, vocab in (
            ("documents of 2,049", long, 49_152),
            ("docstrings, packed", short, 49_152),
            ("vocabulary of 151,936", long, 151_936),
        ):
            make_cask(Path(folder) / name, lengths, vocab_size=vocab)
            medians.append(measure(report, name, Path(folder) / name, arguments.repeats))
    report.write()
    print(f"slowest: {min(medians):,.0f} tokens/s, {min(medians) / TARGET:.1f} times the target")


if __name__ == "__main__":
    main()
