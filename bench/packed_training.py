"""Training from a packed cask: tokens per second from shards to tensors, in the order in which training reads.

Documents of 513 tokens in shards of 140,000, sequences of 512 slots, 8 to a batch, the sequences of eight shards mixed;
made-up records. Rates are those of whole epochs. The first epoch of a process decodes and proves every document.
`arrow` is the same cask, mapped. `packed` keeps what it decoded, as long as that fits into the process's limit;
`packed, large shards` has a limit of a 16th of a shard, so that every document is decoded by itself, each time.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from logitcask_consumer.data import CaskDataset, Collator, ShardBlockSampler
from logitcask_schemas.cask import Cask, lazy_shard
from logitcask_schemas.cask.transfer.packing import export_packed
from logitcask_schemas.cask.transfer.targets import LocalTarget
from made_up_cask import make_cask
from report import Report

LENGTH, PER_SHARD, SEQ_LEN, SEQUENCES = 513, 280, 512, 8


def epoch_rate(dataset: CaskDataset) -> float:
    """Tokens per CPU second of one epoch."""
    collate, tokens, begun = Collator(seq_len=SEQ_LEN), 0, time.process_time()
    order = list(ShardBlockSampler(dataset.sources, seed=0))
    for start in range(0, len(order), SEQUENCES):
        tokens += len(collate(dataset.read(order[start : start + SEQUENCES]))["slots"])
    return tokens / (time.process_time() - begun)


def measure(report: Report, name: str, path: Path, repeats: int) -> None:
    first, later = [], []
    for _ in range(repeats):
        lazy_shard.DECODED.clear()
        dataset = CaskDataset([Cask.open(path)], seq_len=SEQ_LEN)
        first.append(epoch_rate(dataset))
        later.append(epoch_rate(dataset))
    note = f"{Cask.open(path).num_tokens:,} tokens"
    report.add("first epoch", "tokens/CPU s", first, note, cask=name)
    report.add("later epoch", "tokens/CPU s", later, note, cask=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report(__file__, "numpy", "numba", "torch")
    with tempfile.TemporaryDirectory() as folder:
        arrow, packed = Path(folder) / "arrow", Path(folder) / "packed"
        cask = make_cask(arrow, [LENGTH] * (PER_SHARD * arguments.shards), vocab_size=49_152, per_shard=PER_SHARD)
        list(export_packed(cask, LocalTarget(packed)))
        Cask.open(packed).read(0)  # compiles the decoder
        measure(report, "arrow", arrow, arguments.repeats)
        measure(report, "packed", packed, arguments.repeats)
        lazy_shard.DECODED.max_bytes = cask.num_bytes // arguments.shards // 16
        measure(report, "packed, large shards", packed, arguments.repeats)
    report.write()


if __name__ == "__main__":
    main()
