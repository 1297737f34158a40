"""Opening a cask of 10,000 shards, up to the first batch of the trainer, and what publishing so many costs each.

The shards are small (16 documents of 8 to 64 tokens), because what is measured depends on how many there are: reading
the index, planning the packed and shuffled order of all documents, mapping and proving what the first batch needs.
Everything is in the page cache; publishing does not wait for the disk, see `cask_publish` for that.
Targets: open < 1 s; first batch, opening included, < 2 s.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from logitcask_consumer.data import Batch, CaskDataset, Collator, ShardBlockSampler, open_casks
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from made_up_cask import UnsyncedFiles, made_up_teacher, make_document
from report import Report, seconds

VOCAB, SEQ_LEN, SEQUENCES = 49_152, 2_048, 8


def publish(report: Report, path: Path, shards: int, documents: int) -> None:
    random, timings = np.random.default_rng(0), []
    writer = CaskWriter.create(
        path, teacher=made_up_teacher(VOCAB), capture=CaptureSpec(), files=UnsyncedFiles(), carrier="arrow"
    )
    for shard in range(shards):
        lengths = random.integers(8, 65, documents).tolist()
        made = [make_document(length, VOCAB, shard * documents + i) for i, length in enumerate(lengths)]
        start = time.perf_counter()
        writer.publish(made)
        timings.append(1e3 * (time.perf_counter() - start))
    writer.close()
    tenth, note = max(1, shards // 10), f"{documents} small documents a shard, no fsync"
    report.add(f"publish a shard, first {tenth:,} of {shards:,}", "ms", timings[:tenth], note)
    report.add(f"publish a shard, last {tenth:,} of {shards:,}", "ms", timings[-tenth:], note)


def first_random_batch(path: Path) -> None:
    cask = Cask.open(path)
    cask.document_lengths()
    cask.collate(np.random.default_rng(1).integers(0, len(cask), SEQUENCES).tolist())


def plan(path: Path) -> CaskDataset:
    return CaskDataset(open_casks([path], tokenizer_fingerprint="0" * 64), seq_len=SEQ_LEN)


def first_training_batch(path: Path) -> Batch:
    dataset = plan(path)
    order = iter(ShardBlockSampler(dataset.sources, seed=0, batch=SEQUENCES))
    return Collator(seq_len=SEQ_LEN)(dataset.read([next(order) for _ in range(SEQUENCES)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--documents", type=int, default=16, help="of each shard")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report(__file__, "numpy", "pyarrow", "torch")
    with tempfile.TemporaryDirectory() as folder:
        path, repeats = Path(folder) / "cask", arguments.repeats
        publish(report, path, arguments.shards, arguments.documents)
        dataset = plan(path)
        size = f"{arguments.shards:,} shards, {dataset.num_documents:,} documents"
        batch = f"{len(first_training_batch(path)['slots']):,} positions"
        report.add("open", "s", seconds(lambda: Cask.open(path), repeats), size)
        report.add("open, all lengths", "s", seconds(lambda: Cask.open(path).document_lengths(), repeats), size)
        report.add("open, all lengths, 8 documents at random", "s", seconds(lambda: first_random_batch(path), repeats))
        report.add("open, plan the packed order", "s", seconds(lambda: plan(path), repeats), size)
        timings = seconds(lambda: first_training_batch(path), repeats)
        report.add("open, plan, first shuffled training batch", "s", timings, batch)
        (path / "index.json").unlink()
        report.add("open without its index, entry by entry", "s", seconds(lambda: Cask.open(path), 3), size)
    report.write()


if __name__ == "__main__":
    main()
