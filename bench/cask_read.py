"""Reading a cask: 2,048-position windows in random order to torch tensors, in one process and in two.

The same made-up records (see `made_up_cask`) are read

* from the cask as views and as collated torch tensors (`Cask.collate`, every column), from documents of one window and
  from windows at random places of documents of 65,536 positions,
* from a raw file of the same bytes through a numpy memmap, one copy for each window: the bound for anything that moves
  these bytes,
* from Parquet (zstd, one row per 2,048-position document), each row as Python lists, as most stores hand them out.

Figures that make a ratio are taken in turns. Two processes beside one are measured for the cask and for the memmap,
which tells what the machine's memory gives. Everything is in the page cache: the disk is not what is measured.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.batches import CollatedRecords
from logitcask_schemas.record.records import Records
from made_up_cask import make_cask
from report import Report

WINDOW = 2_048
BATCHES = (8, 32)
VOCAB = 49_152
Batches = Iterator[list[int]]


def columns_of(records: Records) -> list[np.ndarray]:
    fields = [getattr(records, name) for name in Records.__dataclass_fields__ if name != "position_columns"]
    return [column for column in [*fields, *records.position_columns.values()] if column is not None]


def tensors(batch: CollatedRecords) -> list[torch.Tensor]:
    columns = columns_of(batch.records)
    return [torch.from_numpy(column) for column in (batch.token_ids_L, *columns)]


def random_batches(documents: int, windows: int) -> Batches:
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(documents)
        yield from (order[i : i + windows].tolist() for i in range(0, documents - windows + 1, windows))


def rate(work: Callable[[list[int]], int], batch: list[int]) -> float:
    """Tokens per second: `work` on a batch of windows returns its tokens."""
    start = time.perf_counter()
    tokens = work(batch)
    return tokens / (time.perf_counter() - start)


def write_raw(path: Path, cask: Cask) -> None:
    """The bytes of every document, column after column."""
    with path.open("wb") as file:
        for number in range(len(cask)):
            document = cask.read(number)
            file.writelines(
                column.tobytes()
                for column in (document.token_ids_L, *columns_of(document.records))
                if column is not None
            )


def cask_reader(path: Path) -> Callable[[list[int]], int]:
    """Every document of it has been touched when this returns."""
    cask = Cask.open(path)
    for number in range(len(cask)):
        cask.read(number)
    return lambda batch: len(tensors(cask.collate(batch))[0])


def memmap_reader(path: Path, documents: int) -> Callable[[list[int]], int]:
    """Copies one contiguous piece for each window, of the average size."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    raw.sum()
    size = len(raw) // documents

    def read(batch: list[int]) -> int:
        np.concatenate([raw[number * size : (number + 1) * size] for number in batch])
        return len(batch) * (WINDOW + 1)

    return read


def bench_one_process(report: Report, cask: Cask, raw: Path, repeats: int) -> float:
    documents = len(cask)

    def first_touch(_: list[int]) -> int:
        fresh = Cask.open(cask.path)
        return sum(len(fresh.read(number).token_ids_L) for number in range(documents))

    report.add("cask: every checksum proved (first touch)", "tokens/s", [rate(first_touch, []) for _ in range(5)])
    collated, copied = cask_reader(cask.path), memmap_reader(raw, documents)
    reader = Cask.open(cask.path)

    def views(batch: list[int]) -> int:
        return sum(len(reader.read(number).token_ids_L) for number in batch)

    rate(views, list(range(documents)))
    batches = random_batches(documents, BATCHES[0])
    report.add("cask: views", "tokens/s", [rate(views, next(batches)) for _ in range(repeats)])
    best = 0.0
    for windows in BATCHES:
        batches = random_batches(documents, windows)
        pairs = [(rate(collated, next(batches)), rate(copied, next(batches))) for _ in range(repeats)]
        note = f"{windows} windows a batch"
        best = max(best, report.add("cask: collated torch tensors", "tokens/s", [mine for mine, _ in pairs], note))
        report.add("numpy memmap: the same bytes, copied", "tokens/s", [bound for _, bound in pairs], note)
        report.add("ratio: torch tensors / memmap copy", "ratio", [mine / bound for mine, bound in pairs], note)
    return best


def bench_parquet(report: Report, cask: Cask, folder: Path, collated: float) -> None:
    documents = [cask.read(number) for number in range(len(cask))]
    table = {"token_ids": [one.token_ids_L for one in documents]}
    table |= {
        str(number): list(columns)
        for number, columns in enumerate(zip(*(columns_of(document.records) for document in documents), strict=True))
    }
    pq.write_table(pa.table(table), folder / "rows.parquet", compression="zstd", row_group_size=8)
    file = pq.ParquetFile(folder / "rows.parquet", memory_map=True)

    def rows(batch: list[int]) -> int:
        tokens = 0
        for number in batch:
            row = file.read_row_group(number // 8).slice(number % 8, 1).to_pylist()[0]
            made = [torch.tensor(column) for column in row.values()]
            tokens += len(made[0])
        return tokens

    batches = random_batches(len(cask), BATCHES[0])
    rates = [rate(rows, next(batches)) for _ in range(10)]
    lists = report.add("Parquet: rows as Python lists, to torch tensors", "tokens/s", rates)
    report.add("ratio: torch tensors / Parquet rows", "ratio", [collated / lists])


def read_for_seconds(make: Any, arguments: Any, seed: int, documents: int, start: Any, results: Any) -> None:
    """A worker process: batches in random order for a second; puts its rate, and the share of a CPU that it got."""
    torch.set_num_threads(1)
    read, order, tokens = make(*arguments), np.random.default_rng(seed), 0
    results.put(None)  # ready
    start.wait()
    begin, cpu = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) < begin + 1.0:
        tokens += read(order.integers(0, documents, BATCHES[0]).tolist())
    results.put((tokens / (now - begin), (time.process_time() - cpu) / (now - begin)))


def together(processes: int, seed: int, *what: Any) -> tuple[float, float]:
    """Sum of the rates of processes that read at the same time, and the smallest share of a CPU that one got."""
    context = get_context("spawn")
    start, results = context.Event(), context.Queue()
    workers = [
        context.Process(target=read_for_seconds, args=(*what[:2], seed + number, *what[2:], start, results))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        results.get()
    start.set()
    rates = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rate for rate, _ in rates), min(share for _, share in rates)


def bench_processes(report: Report, cask: Cask, raw: Path, repeats: int = 5) -> None:
    """Figures from a machine that is busy with something else tell nothing; the note shows whether it was."""
    documents = len(cask)
    readers = {
        "cask: collated torch tensors": (cask_reader, (cask.path,)),
        "numpy memmap: the same bytes, copied": (memmap_reader, (raw, documents)),
    }
    for name, what in readers.items():
        rounds = [
            [together(processes, 10 * repeat, *what, documents) for processes in (1, 2)] for repeat in range(repeats)
        ]
        for number, processes in enumerate((1, 2)):
            share = np.median([one[number][1] for one in rounds])
            note = f"{share:.0%} of a CPU for each"
            report.add(f"{name}, {processes} processes", "tokens/s", [one[number][0] for one in rounds], note)
        ratios = [two[0] / one[0] for one, two in rounds]
        report.add(f"ratio: 2 processes / 1 process, {name}", "ratio", ratios)


def bench_long_documents(report: Report, folder: Path, repeats: int) -> None:
    length = 32 * WINDOW
    cask = make_cask(folder / "long", [length + 1] * 8, vocab_size=VOCAB, per_shard=1)
    random, windows = np.random.default_rng(0), BATCHES[0]
    for number in range(8):
        cask.read(number)

    def read(_: list[int]) -> int:
        starts = random.integers(0, length - WINDOW, windows)
        return len(tensors(cask.collate(random.integers(0, 8, windows), starts, starts + WINDOW))[0])

    rates = [rate(read, []) for _ in range(repeats)]
    report.add("cask: windows anywhere in 65,536 positions, to torch tensors", "tokens/s", rates, f"{windows} a batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=1024, help="of 2,049 tokens each")
    parser.add_argument("--repeats", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report(__file__, "numpy", "pyarrow", "torch")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lengths = [WINDOW + 1] * arguments.documents
        cask = make_cask(folder / "cask", lengths, vocab_size=VOCAB, per_shard=128)
        write_raw(folder / "raw", cask)
        report.add("cask size", "bytes/token", [cask.num_bytes / cask.num_tokens])
        collated = bench_one_process(report, cask, folder / "raw", arguments.repeats)
        bench_processes(report, cask, folder / "raw")
        bench_parquet(report, cask, folder, collated)
        bench_long_documents(report, folder, arguments.repeats)
    report.write()


if __name__ == "__main__":
    main()
