"""A cask of 100,000 shards, published by 64 writers at once: how fast, how it opens, what verify has to plan, memory.

The shards are tiny (two documents of eight tokens), because what is measured depends on how many there are. Every
writer is a process with a `CaskWriter` of its own that knows nothing of the others but what the cask says. They do not
wait for the disk, so the rates are those of the program; the same with fsync says as much of the disk. Everything is in
the page cache. All writers share this machine's cores, and each reads what all others publish: on many machines, that
is done by as many.

Rates need some thousands of shards; the 100,000 are staged: entries, index and table are written without publishing
them, their files being holes.

* publications/s: of all writers together, over the whole run, its first and its last tenth
* open: `Cask.open` in a process that has imported everything, as writers leave a cask (some entries are loose), after a
  writer has closed it, and without index.json
* plan of verify: `survey`, then the order of shards; nothing of a shard is read
* publication beside another writer: two writers in one process by turns, each of which has to learn what the other did
* memory: what opening adds to the process's resident set, and the largest resident set among the writers

What one process does alone is told in CPU seconds: it has one thread and waits for nothing, so on an idle machine that
is the time it takes. `--staged` leaves the rates out.

Target: opening 100,000 shards < 2 s.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.directory import write_entry, write_index
from logitcask_schemas.cask.documents import ShardDocuments, write_document_table
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.integrity.verify import survey
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_schemas.record.capture_spec import CaptureSpec
from made_up_cask import UnsyncedFiles, made_up_teacher, make_document
from report import Report

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from multiprocessing.queues import SimpleQueue

VOCAB, TOKENS, DOCUMENTS = 49_152, 8, 2
FORK = multiprocessing.get_context("fork")


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def write(path: Path, first: int, shards: int, durable: bool, results: "SimpleQueue[Any]") -> None:
    """One writer: publishes its shards; tells when each was stored, how long it took, and its largest resident set."""
    files = LocalFiles() if durable else UnsyncedFiles()
    writer = CaskWriter.create(path, teacher=made_up_teacher(VOCAB), capture=CaptureSpec(), files=files)
    ends, durations = np.empty(shards), np.empty(shards)
    for shard in range(first, first + shards):
        made = [make_document(TOKENS, VOCAB, DOCUMENTS * shard + i) for i in range(DOCUMENTS)]
        start = time.perf_counter()
        assert writer.publish(made) is not None
        ends[shard - first] = time.perf_counter()
        durations[shard - first] = ends[shard - first] - start
    results.put((ends, durations, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def publish(report: Report, path: Path, shards: int, writers: int, *, durable: bool) -> None:
    """Publish so many shards by so many writers at once."""
    each, results = shards // writers, FORK.SimpleQueue()
    CaskWriter.create(path, teacher=made_up_teacher(VOCAB), capture=CaptureSpec())
    processes: list[BaseProcess] = [
        FORK.Process(target=write, args=(path, number * each, each, durable, results)) for number in range(writers)
    ]
    start = time.perf_counter()
    for process in processes:
        process.start()
    told = [results.get() for _ in processes]
    for process in processes:
        process.join()
    ends = np.sort(np.concatenate([ends for ends, _, _ in told])) - start
    durations = 1e3 * np.concatenate([durations for _, durations, _ in told])
    labels: dict[str, Any] = {"writers": writers, "shards": len(ends), "fsync": "yes" if durable else "no"}
    tenth = len(ends) // 10
    report.add("publications, all", "per s", [len(ends) / ends[-1]], **labels)
    report.add("publications, first tenth", "per s", [tenth / ends[tenth - 1]], **labels)
    report.add("publications, last tenth", "per s", [tenth / (ends[-1] - ends[-tenth - 1])], **labels)
    report.add("a writer's publication, waiting included", "ms", durations.tolist(), **labels)
    report.add("resident set of a writer, at most", "MiB", [size / 2**20 for _, _, size in told], **labels)


def in_new_process(work: Callable[[], Any]) -> Any:
    """What `work` returns in a process of its own, so that memory is not that of earlier work."""
    results: SimpleQueue[Any] = FORK.SimpleQueue()
    process = FORK.Process(target=lambda: results.put(work()))
    process.start()
    result = results.get()
    process.join()
    return result


def memory_of_opening(path: Path) -> float:
    before = resident_bytes()
    cask = Cask.open(path)
    assert len(cask)
    return (resident_bytes() - before) / 2**20


def plan_of_verify(path: Path) -> None:
    found = survey(LocalFolder(folder=path))
    assert not found.problems
    assert found.table is not None
    list(found.cask.entries)


def stage(path: Path, shards: int) -> None:
    """A cask of so many shards, of which a tenth is not in the index; the shards themselves are empty."""
    random, files = np.random.default_rng(0), UnsyncedFiles()
    writer = CaskWriter.create(path, teacher=made_up_teacher(VOCAB), capture=CaptureSpec(), files=files)
    ids = random.integers(0, 256, (shards, DOCUMENTS, 32), np.uint8)
    lengths = np.full(DOCUMENTS, TOKENS, np.uint32)
    entries, documents = list[ShardEntry](), dict[str, ShardDocuments]()
    for number in range(shards):
        name, sha256 = ids[number, 0, :16].tobytes().hex(), ids[number, 1].tobytes().hex()
        entry = ShardEntry(
            name=name,
            bytes=4096,
            sha256=sha256,
            identity=writer.manifest.identity_digest() if not entries else entries[0].identity,
            documents=DOCUMENTS,
            tokens=DOCUMENTS * TOKENS,
            positions=DOCUMENTS * (TOKENS - 1),
            head_entries=40,
            tail_entries=110,
        )
        with (path / "shards" / f"{name}.arrow").open("xb") as file:
            file.truncate(entry.bytes)
        write_entry(files, path, entry)
        entries.append(entry)
        documents[name] = ShardDocuments(ids=ids[number], lengths=lengths)
    write_document_table(files, path, documents)
    write_index(files, path, entries[: shards - shards // 10])


def cpu_seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of this process's CPU that each call takes."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return found


def beside_another(report: Report, path: Path, **labels: Any) -> None:
    """Two writers by turns."""
    options: dict[str, Any] = {"teacher": made_up_teacher(VOCAB), "capture": CaptureSpec(), "files": UnsyncedFiles()}
    writers, timings = [CaskWriter.create(path, **options) for _ in range(2)], []
    for number in range(60):
        made = [make_document(TOKENS, VOCAB, (1 << 40) + DOCUMENTS * number + i) for i in range(DOCUMENTS)]
        timings += cpu_seconds(partial(writers[number % 2].publish, made), 1)
    report.add("publication beside another writer", "CPU ms", [1e3 * each for each in timings[2:]], **labels)


def look(report: Report, path: Path, shards: int, repeats: int, **labels: Any) -> None:
    """Open and survey the cask that the writers left."""
    labels = {"shards": shards, **labels}
    listing = Cask.open(path).location.read_listing()
    loose = f"{len(listing.loose):,} entries not in the index"
    report.add("open, as the writers left it", "CPU s", cpu_seconds(lambda: Cask.open(path), repeats), loose, **labels)
    beside_another(report, path, **labels)
    closing = cpu_seconds(
        CaskWriter.create(path, teacher=made_up_teacher(VOCAB), capture=CaptureSpec(), files=UnsyncedFiles()).close, 1
    )
    report.add("folding all into index and table", "CPU s", closing, **labels)
    report.add("open", "CPU s", cpu_seconds(lambda: Cask.open(path), repeats), **labels)
    report.add("open, all lengths", "CPU s", cpu_seconds(lambda: Cask.open(path).document_lengths(), repeats), **labels)
    memory = [in_new_process(lambda: memory_of_opening(path)) for _ in range(3)]
    report.add("memory that opening takes", "MiB", memory, **labels)
    report.add("plan of verify", "CPU s", cpu_seconds(lambda: plan_of_verify(path), repeats), **labels)
    report.add("size of index.json", "MB", [(path / "index.json").stat().st_size / 1e6], **labels)
    (path / "index.json").unlink()
    report.add("open without its index, entry by entry", "CPU s", cpu_seconds(lambda: Cask.open(path), 1), **labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, default=100_000, help="staged")
    parser.add_argument("--published", type=int, default=3_200, help="for the rates, with and without fsync")
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--staged", action="store_true", help="without the rates")
    arguments = parser.parse_args()
    report = Report(__file__, "numpy", "pyarrow")
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.staged:
            for durable in (True, False):
                name = "durable" if durable else "unsynced"
                publish(report, Path(folder) / name, arguments.published, arguments.writers, durable=durable)
        stage(Path(folder) / "small", 100)
        beside_another(report, Path(folder) / "small", shards=100, how="staged")
        stage(Path(folder) / "cask", arguments.shards)
        look(report, Path(folder) / "cask", arguments.shards, arguments.repeats, how="staged")
    report.write()


if __name__ == "__main__":
    main()
