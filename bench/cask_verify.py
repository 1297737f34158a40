"""Proving a cask: `verify_shards` against checksum programs on the same files.

`verify` hashes every file (SHA-256, as sha256sum does), and checks every document's XXH3, its id, and the rules of the
format on top, two shards at a time. Everything is in the page cache, and the variants take turns. `xxhsum` (Debian:
xxhash) is left out, with a message, where it is not installed.
"""

import argparse
import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from logitcask_schemas.cask.integrity.verify import verify_shards
from made_up_cask import make_cask
from report import Report

VOCAB, TOKENS = 49_152, 2_049
BLOCK = 1 << 20


def hash_with(digest: Callable[[], Any], files: list[str]) -> None:
    for name in files:
        one = digest()
        with open(name, "rb") as file:  # noqa: PTH123
            while block := file.read(BLOCK):
                one.update(block)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cask verification benchmark")
    parser.add_argument("--documents", type=int, default=4096, help=f"of {TOKENS:,} tokens each")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    report = Report(__file__, "numpy", "pyarrow", "xxhash")
    with tempfile.TemporaryDirectory() as folder:
        cask = make_cask(Path(folder), [TOKENS] * arguments.documents, vocab_size=VOCAB)
        files = [str(path) for path in sorted((Path(folder) / "shards").glob("*.arrow"))]
        size, note = cask.num_bytes / 1e6, f"{len(files)} shards of {cask.num_bytes / len(files) / 1e6:.0f} MB"

        def verify() -> None:
            assert not [problem for report in verify_shards(cask) for problem in report.problems]

        def run(program: str) -> None:
            subprocess.run([program, *files], check=True, stdout=subprocess.DEVNULL)

        variants: dict[str, Callable[[], None]] = {
            "logitcask cask verify": verify,
            "SHA-256 alone (hashlib)": lambda: hash_with(hashlib.sha256, files),
            "XXH3 alone (python-xxhash)": lambda: hash_with(xxhash.xxh3_64, files),
        }
        for program in ("sha256sum", "xxhsum"):
            if shutil.which(program):
                variants[program] = partial(run, program)
            else:
                print(f"{program} is not installed: left out")
        rates: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(arguments.repeats):
            for name, work in variants.items():
                start = time.perf_counter()
                work()
                rates[name].append(size / (time.perf_counter() - start))
        for name, found in rates.items():
            report.add(name, "MB/s", found, note)
        mine = rates.pop("logitcask cask verify")
        for name, found in rates.items():
            ratios = [a / b for a, b in zip(mine, found, strict=True)]
            report.add(f"ratio: verify / {name}", "ratio", ratios)
    report.write()


if __name__ == "__main__":
    main()
