"""Publishing a shard: MB/s from records in memory to a durable, named shard, and what the file system is asked to do.

The writer checks records and identities, hashes every document and the file, writes, fsyncs and renames. Operations are
counted through the writer's own interface to the file system (`FileOperations`), so the counts are exact and the same
on every machine; times depend on the disk. `compute` is the same without waiting for the disk.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.storage.files import LocalFiles
from logitcask_schemas.record.capture_spec import CaptureSpec
from made_up_cask import UnsyncedFiles, made_up_teacher, make_document
from report import Report

VOCAB, TOKENS = 49_152, 2_049


class CountedFiles(LocalFiles):
    """Counts what is asked of the file system, and the seconds that it takes to sync."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0

    def open_new(self, path: Path) -> BinaryIO:
        """One more file."""
        self.counts["files written"] += 1
        return super().open_new(path)

    def sync_file(self, file: BinaryIO) -> None:
        """One more fsync."""
        self.counts["fsync of a file"] += 1
        start = time.perf_counter()
        super().sync_file(file)
        self.seconds += time.perf_counter() - start

    def sync_directory(self, path: Path) -> None:
        """One more fsync."""
        self.counts["fsync of a directory"] += 1
        start = time.perf_counter()
        super().sync_directory(path)
        self.seconds += time.perf_counter() - start

    def rename(self, source: Path, target: Path) -> None:
        """One more."""
        self.counts["renames"] += 1
        super().rename(source, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, default=24)
    parser.add_argument("--documents", type=int, default=256, help=f"of {TOKENS:,} tokens, in each shard")
    arguments = parser.parse_args()
    report = Report(__file__, "numpy", "pyarrow", "xxhash")
    made = [
        [make_document(TOKENS, VOCAB, shard * arguments.documents + i) for i in range(arguments.documents)]
        for shard in range(arguments.shards)
    ]
    note = f"{arguments.documents} documents of {TOKENS:,} tokens a shard"
    for carrier in CARRIERS:
        for name, files in (("durable", CountedFiles()), ("compute", UnsyncedFiles())):
            rates, waits, counts = [], [], []
            with tempfile.TemporaryDirectory() as folder:
                options: dict[str, Any] = {"teacher": made_up_teacher(VOCAB), "capture": CaptureSpec(), "files": files}
                with CaskWriter.create(Path(folder) / "cask", carrier=carrier, **options) as writer:
                    for documents in made if carrier == "arrow" else made[:4]:
                        before = (Counter(files.counts), files.seconds) if isinstance(files, CountedFiles) else None
                        start = time.perf_counter()
                        entry = writer.publish(documents)
                        spent = time.perf_counter() - start
                        assert entry is not None
                        rates.append(entry.bytes / spent / 1e6)
                        if isinstance(files, CountedFiles) and before is not None:
                            counts.append(files.counts - before[0])
                            waits.append((files.seconds - before[1]) / spent)
            report.add(f"publish, {name}", "MB/s", rates, note, carrier=carrier)
            if waits:
                report.add("share of the time in fsync", "ratio", waits, note, carrier=carrier)
            for what in sorted({what for count_of in counts for what in count_of}):
                report.add(what, "per shard", [count_of[what] for count_of in counts], carrier=carrier)
    report.write()


if __name__ == "__main__":
    main()
