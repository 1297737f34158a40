"""Memory of the trainer's reader while it goes through a shuffled epoch: it must not grow with the cask.

Two casks, one four times the other, are read by the packed and shuffled training dataset, in the process itself and in
two forked workers. Each run is a process of its own whose address space is limited (RLIMIT_AS, what `ulimit -v` sets)
to less than the large cask; a second run without limit shows what the limit changes. Anonymous memory is the process's
own; file memory is page cache that the process has mapped, shared with others and taken back by the system at will. It
is sampled while batches come; of two workers the larger one counts.
"""

import argparse
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from logitcask_consumer.data import CaskDataset, Collator, ShardBlockSampler, open_casks
from made_up_cask import UnsyncedFiles, make_cask
from report import Report

VOCAB, SEQ_LEN, SEQUENCES, PER_SHARD = 49_152, 2_048, 8, 128
KINDS = {"RssAnon": "anonymous", "RssFile": "mapped files"}
SAMPLE_EVERY = 25


def memory_of(process: int | str) -> dict[str, float]:
    """Resident MiB by kind."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    values_of = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return {kind: int(values_of[kind].split()[0]) / 1024 for kind in KINDS}


def read_epoch(path: Path, workers: int, limit: int) -> None:
    """In a process of its own: print samples of its memory, or its workers', as JSON."""
    torch.set_num_threads(1)
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    dataset = CaskDataset(open_casks([path], tokenizer_fingerprint=None), seq_len=SEQ_LEN)
    loader: Any = DataLoader(
        dataset,
        batch_size=SEQUENCES,
        sampler=ShardBlockSampler(dataset.sources, seed=0, batch=SEQUENCES),
        collate_fn=Collator(seq_len=SEQ_LEN),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
    positions = 0
    for number, batch in enumerate(loader):
        positions += len(batch["slots"])
        if number % SAMPLE_EVERY == 0 or number == len(loader) - 1 - 2 * workers:
            readers: list[Any] = [child.pid for child in multiprocessing.active_children()] if workers else ["self"]
            seen = [memory_of(reader) for reader in readers]
            for kind, values in samples.items():
                values.append(max(sample[kind] for sample in seen))
    assert positions == dataset.num_positions
    print(json.dumps(samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=48_000, help="of 2,049 tokens, in the large cask")
    parser.add_argument("--limit-mib", type=int, default=2_560, help="of the address space")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read_epoch(arguments.read, arguments.workers, arguments.limit_mib << 20)
        return
    report = Report(__file__, "numpy", "pyarrow", "torch")
    with tempfile.TemporaryDirectory() as folder:
        casks = {}
        for name, documents in (("small", arguments.documents // 4), ("large", arguments.documents)):
            lengths = [SEQ_LEN + 1] * documents
            options: Any = {"vocab_size": VOCAB, "per_shard": PER_SHARD, "files": UnsyncedFiles()}
            casks[name] = make_cask(Path(folder) / name, lengths, **options)
            report.add("size", "MiB", [casks[name].num_bytes / 2**20], cask=name, reader="", limit="")
        for limit in (arguments.limit_mib, 0):
            for workers in (0, 2):
                reader = {
                    "reader": f"{workers} forked workers" if workers else "one process",
                    "limit": f"{limit} MiB" if limit else "none",
                }
                peaks: dict[tuple[str, str], float] = {}
                for name, cask in casks.items():
                    command = [sys.executable, __file__, "--read", str(cask.path), "--workers", str(workers)]
                    command += ["--limit-mib", str(limit)]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    for kind, values in json.loads(done.stdout).items():
                        peaks[name, kind] = max(values)
                        note = f"peak {max(values):.0f}, first batch {values[0]:.0f}"
                        report.add(f"resident, {KINDS[kind]}", "MiB", values, note, cask=name, **reader)
                for kind, title in KINDS.items():
                    ratio = peaks["large", kind] / peaks["small", kind]
                    report.add(f"ratio of peaks, {title}", "ratio", [ratio], cask="large / small", **reader)
    report.write()


if __name__ == "__main__":
    main()
