"""Reading a cask: 2,048-position windows in random order, in one process and two, and opening a cask of 10,000 shards.

The same made-up records (a head of 1 to 12 entries, 0 to 9 draws: about 40 bytes per token) are read

* from the cask as views and as collated torch tensors (`Cask.collate`, 8 windows a batch, every column), from documents
  of one window and from windows at random places of documents of 65,536 positions,
* from a raw file of the same bytes through a numpy memmap, copied: the bound for anything that moves these bytes,
* from Parquet (zstd, one row per 2,048-position document), each row as Python lists, as most stores hand them out.

Everything is in the page cache: the disk is not what is measured. Rows go to bench/results/cask_read.csv.
"""

import argparse
import csv
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.collation import CollatedRecords
from logitcask_schemas.cask.files import LocalFiles
from logitcask_schemas.identity import TeacherIdentity
from logitcask_schemas.records import DocumentRecords, Records

WINDOW = 2_048
BATCH = 8
VOCAB = 49_152
RESULTS = Path(__file__).parent / "results" / "cask_read.csv"
TEACHER = TeacherIdentity(
    model="made-up",
    weights_digest="0" * 64,
    dtype="float32",
    vocab_size=VOCAB,
    tokenizer_fingerprint="0" * 64,
    engine="transformers",
    engine_version="0",
)


class UnsyncedFiles(LocalFiles):
    """For setting the stage only: ten thousand shards without waiting for the disk."""

    def sync_file(self, file: BinaryIO) -> None:
        """Only empty the buffer."""
        file.flush()

    def sync_directory(self, path: Path) -> None:
        """Nothing."""


def make_document(length: int, seed: int) -> DocumentRecords:
    random = np.random.default_rng(seed)
    positions = length - 1
    head_counts = random.integers(1, 13, positions).astype(np.uint8)
    tail_counts = random.integers(0, 10, positions).astype(np.uint8)
    token_ids = random.integers(0, VOCAB, length).astype(np.uint16)
    head_ids = random.integers(0, VOCAB, int(head_counts.sum())).astype(np.uint16)
    head_ids[np.cumsum(head_counts, dtype=np.int64) - 1] = token_ids[1:]
    tail_ids = random.integers(0, VOCAB, int(tail_counts.sum())).astype(np.uint16)
    tail_ids = tail_ids[np.lexsort((tail_ids, np.repeat(np.arange(positions), tail_counts)))]
    return DocumentRecords(
        token_ids_L=token_ids,
        records=Records(
            head_counts_P=head_counts,
            head_ids_H=head_ids,
            head_logprobs_H=(-8 * random.random(len(head_ids))).astype(np.float16),
            tail_counts_P=tail_counts,
            tail_ids_N=tail_ids,
            log_tail_mass_P=(-8 * random.random(positions)).astype(np.float16),
            entropy_P=(4 * random.random(positions)).astype(np.float16),
        ),
    )


def columns_of(document: DocumentRecords) -> list[np.ndarray[Any, Any]]:
    fields = (getattr(document.records, name) for name in Records.__dataclass_fields__)
    return [document.token_ids_L, *(field for field in fields if field is not None)]


def tensors(batch: CollatedRecords) -> list[torch.Tensor]:
    columns = (getattr(batch.records, name) for name in Records.__dataclass_fields__)
    return [torch.from_numpy(column) for column in (batch.token_ids_L, *columns) if column is not None]


def read_for_seconds(path: Path, seconds: float, seed: int, start: Any, results: Any) -> None:
    """A worker process: batches in random order until the time is up; puts its tokens and time."""
    torch.set_num_threads(1)
    cask = Cask.open(path)
    cask.collate(range(len(cask)))
    order, tokens = np.random.default_rng(seed), 0
    start.wait()
    begin = time.perf_counter()
    while (now := time.perf_counter()) < begin + seconds:
        tokens += len(tensors(cask.collate(order.integers(0, len(cask), BATCH).tolist()))[0])
    results.put(tokens / (now - begin))


class Report:
    """Collects rows and prints them as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.common = {
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "torch": torch.__version__,
        }

    def add(self, metric: str, unit: str, values: list[float], note: str = "") -> float:
        """Note a metric's repeats; returns their median."""
        p20, p50, p80 = np.percentile(values, [20, 50, 80])
        self.rows.append(
            {"metric": metric, "unit": unit, "p20": f"{p20:.4g}", "p50": f"{p50:.4g}", "p80": f"{p80:.4g}"}
            | {"repeats": len(values), "note": note}
            | self.common
        )
        print(f"{metric:<58} {p50:>12,.4g} {unit}  (p20 {p20:,.4g}, p80 {p80:,.4g})  {note}", flush=True)
        return float(p50)

    def write(self, path: Path = RESULTS) -> None:
        """Replace the results' file."""
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def rates(work: Callable[[list[int]], int], batches: Iterator[list[int]], repeats: int) -> list[float]:
    """Tokens per second of each repeat: `work` on a batch of windows returns its tokens."""
    found = []
    for _ in range(repeats):
        batch = next(batches)
        start = time.perf_counter()
        tokens = work(batch)
        found.append(tokens / (time.perf_counter() - start))
    return found


def random_batches(count: int) -> Iterator[list[int]]:
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(count)
        yield from (order[i : i + BATCH].tolist() for i in range(0, count - BATCH + 1, BATCH))


def bench_publishing(report: Report, folder: Path, made: list[DocumentRecords]) -> Cask:
    writer = CaskWriter.create(folder / "cask", teacher=TEACHER, capture=CaptureSpec())
    seconds = []
    for i in range(0, len(made), 128):
        start = time.perf_counter()
        entry = writer.publish(made[i : i + 128])
        assert entry is not None
        seconds.append(entry.bytes / (time.perf_counter() - start) / 1e6)
    writer.close()
    report.add(
        "publish: records to durable shard, checks and hashes included", "MB/s", seconds, "128 documents a shard"
    )
    cask = Cask.open(folder / "cask")
    report.add("cask size", "bytes/token", [cask.num_bytes / cask.num_tokens])
    return cask


def bench_windows(report: Report, folder: Path, documents: int, repeats: int) -> None:
    made = [make_document(WINDOW + 1, seed) for seed in range(documents)]
    cask = bench_publishing(report, folder, made)

    def first_touch(_: list[int]) -> int:
        fresh = Cask.open(folder / "cask")
        return sum(len(fresh.read(number).token_ids_L) for number in range(len(fresh)))

    def views(batch: list[int]) -> int:
        return sum(len(cask.read(number).token_ids_L) for number in batch)

    def collated_tensors(batch: list[int]) -> int:
        return len(tensors(cask.collate(batch))[0])

    batches = random_batches(documents)
    report.add("cask: every checksum proved (first touch)", "tokens/s", rates(first_touch, batches, 5))
    for number in range(documents):
        cask.read(number)  # from here on every document has been touched
    report.add("cask: views", "tokens/s", rates(views, batches, repeats))
    (folder / "raw").write_bytes(b"".join(column.tobytes() for one in made for column in columns_of(one)))
    raw = np.memmap(folder / "raw", dtype=np.uint8, mode="r")
    size = len(raw) // documents

    def memmap(batch: list[int]) -> int:
        np.concatenate([raw[number * size : (number + 1) * size] for number in batch])
        return len(batch) * (WINDOW + 1)

    # In turns, so that what else runs on the machine slows both alike.
    pairs = [(rates(collated_tensors, batches, 1)[0], rates(memmap, batches, 1)[0]) for _ in range(repeats)]
    collated = report.add("cask: collated torch tensors", "tokens/s", [mine for mine, _ in pairs])
    report.add("numpy memmap: the same bytes, copied", "tokens/s", [bound for _, bound in pairs])
    report.add("ratio: torch tensors / memmap copy", "ratio", [mine / bound for mine, bound in pairs])
    bench_processes(report, cask.path)

    names = ["token_ids", *Records.__dataclass_fields__]
    table = pa.table(
        {name: [columns_of(one)[i] for one in made] for i, name in enumerate(names[: len(columns_of(made[0]))])}
    )
    pq.write_table(table, folder / "rows.parquet", compression="zstd", row_group_size=8)
    file = pq.ParquetFile(folder / "rows.parquet", memory_map=True)

    def parquet(batch: list[int]) -> int:
        tokens = 0
        for number in batch:
            row = file.read_row_group(number // 8).slice(number % 8, 1).to_pylist()[0]
            made = [torch.tensor(column) for column in row.values()]
            tokens += len(made[0])
        return tokens

    lists = report.add("Parquet: rows as Python lists, to torch tensors", "tokens/s", rates(parquet, batches, 10))
    report.add("ratio: torch tensors / Parquet rows", "ratio", [collated / lists])


def bench_processes(report: Report, path: Path, seconds: float = 1.0) -> None:
    context, sums = get_context("spawn"), {}
    for processes in (1, 2):
        sums[processes] = []
        for repeat in range(3):
            start, results = context.Event(), context.Queue()
            workers = [
                context.Process(target=read_for_seconds, args=(path, seconds, 10 * repeat + seed, start, results))
                for seed in range(processes)
            ]
            for worker in workers:
                worker.start()
            time.sleep(4)  # until all have opened and touched the cask
            start.set()
            sums[processes].append(sum(results.get() for _ in workers))
            for worker in workers:
                worker.join()
        report.add(f"cask: collated torch tensors, {processes} processes", "tokens/s", sums[processes])
    report.add("ratio: 2 processes / 1 process", "ratio", [b / a for a, b in zip(sums[1], sums[2], strict=True)])


def bench_long_documents(report: Report, folder: Path, repeats: int) -> None:
    length = 32 * WINDOW
    with CaskWriter.create(folder / "long", teacher=TEACHER, capture=CaptureSpec()) as writer:
        for seed in range(8):
            writer.publish([make_document(length + 1, seed)])
    cask, random = Cask.open(folder / "long"), np.random.default_rng(0)
    for number in range(8):
        cask.read(number)

    def windows(_: list[int]) -> int:
        starts = random.integers(0, length - WINDOW, BATCH)
        return len(tensors(cask.collate(random.integers(0, 8, BATCH).tolist(), starts, starts + WINDOW))[0])

    found = rates(windows, random_batches(BATCH), repeats)
    report.add("cask: windows anywhere in 65,536 positions, to torch tensors", "tokens/s", found)


def bench_opening(report: Report, folder: Path, shards: int) -> None:
    path = folder / "many"
    writer = CaskWriter.create(path, teacher=TEACHER, capture=CaptureSpec(), files=UnsyncedFiles())
    seconds = []
    for seed in range(shards):
        document = make_document(16, seed)
        start = time.perf_counter()
        writer.publish([document])
        seconds.append(1e3 * (time.perf_counter() - start))
    writer.close()
    note = "one tiny document a shard, no fsync"
    report.add(f"publish a shard, first 1,000 of {shards:,}", "ms", seconds[:1000], note)
    report.add(f"publish a shard, last 1,000 of {shards:,}", "ms", seconds[-1000:], note)

    def timed(work: Callable[[], Any], repeats: int = 10) -> list[float]:
        found = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
        return found

    def first_batch() -> None:
        cask = Cask.open(path)
        cask.document_lengths()
        tensors(cask.collate(np.random.default_rng(1).integers(0, len(cask), BATCH).tolist()))

    report.add(f"open a cask of {shards:,} shards", "s", timed(lambda: Cask.open(path)))
    report.add(f"open it, get all lengths, read a first random batch of {BATCH}", "s", timed(first_batch))
    report.add("open it and get all document lengths", "s", timed(lambda: Cask.open(path).document_lengths(), 3))
    (path / "index.json").unlink()
    report.add("open it without its index, entry by entry", "s", timed(lambda: Cask.open(path), 3))


def main() -> None:
    parser = argparse.ArgumentParser(description="Cask reading benchmark")
    parser.add_argument("--documents", type=int, default=1024, help="of 2,049 tokens each")
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        bench_windows(report, Path(folder), arguments.documents, arguments.repeats)
        bench_long_documents(report, Path(folder), arguments.repeats)
        bench_opening(report, Path(folder), arguments.shards)
    report.write()


if __name__ == "__main__":
    main()
