"""Proving a cask: `verify_shards` against the system's checksum programs on the same files.

`verify` hashes every file (SHA-256, as sha256sum does), and checks every document's XXH3, its id, and the rules of the
format on top. Everything is in the page cache. Rows go to bench/results/cask_verify.csv.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import xxhash

from cask_read import TEACHER, WINDOW, Report, make_document
from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.verify import verify_shards

RESULTS = Path(__file__).parent / "results" / "cask_verify.csv"


def timed(work: Callable[[], None], megabytes: float, repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(megabytes / (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Cask verification benchmark")
    parser.add_argument("--documents", type=int, default=4096, help="of 2,049 tokens each")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        with CaskWriter.create(Path(folder), teacher=TEACHER, capture=CaptureSpec()) as writer:
            for first in range(0, arguments.documents, 512):
                writer.publish([make_document(WINDOW + 1, first + i) for i in range(512)])
        cask = Cask.open(Path(folder))
        files = [str(path) for path in sorted((Path(folder) / "shards").glob("*.arrow"))]
        size, note = cask.num_bytes / 1e6, f"{len(files)} shards of {cask.num_bytes / len(files) / 1e6:.0f} MB"

        def verify() -> None:
            assert not [problem for one in verify_shards(cask) for problem in one.problems]

        def hash_with(program: str) -> None:
            subprocess.run([program, *files], check=True, stdout=subprocess.DEVNULL)

        def xxh3() -> None:
            for name in files:
                digest = xxhash.xxh3_64()
                with open(name, "rb") as file:  # noqa: PTH123
                    while block := file.read(1 << 20):
                        digest.update(block)

        mine = report.add("logitcask cask verify", "MB/s", timed(verify, size, arguments.repeats), note)
        other = report.add("sha256sum", "MB/s", timed(lambda: hash_with("sha256sum"), size, arguments.repeats), note)
        if shutil.which("xxhsum"):
            report.add("xxhsum", "MB/s", timed(lambda: hash_with("xxhsum"), size, arguments.repeats), note)
        report.add("xxh3 alone (python-xxhash)", "MB/s", timed(xxh3, size, arguments.repeats), note)
        report.add("ratio: verify / sha256sum", "ratio", [mine / other])
    report.write(RESULTS)


if __name__ == "__main__":
    main()
