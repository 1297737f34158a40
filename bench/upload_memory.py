"""Memory of the service while it takes 5 GB: `python bench/upload_memory.py [--gigabytes 5]`; it should not grow.

The lines are made while they are sent and lie on no disk but the service's own, which needs room for them twice. They
go as one body, gzipped in one body, and in parts of 60 MiB, which the service joins. Resident memory is noted ten times
a second, together with the peak that the kernel knows of; a service begins anew for each way.
"""

import argparse
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2

from report import Report
from tests.support.services.server_process import ServerProcess

BLOCK = 1 << 20
PART = 60 << 20
TEXT = " ".join(f"word{number * number % 9973}" for number in range(120))


def blocks(size: int) -> Iterator[bytes]:
    """Lines of so many bytes, no two blocks alike."""
    line = f'{{"text": "{TEXT}"}}\n'
    sent = number = 0
    while sent < size:
        first = f'{{"text": "block {number} {TEXT}"}}\n'
        block = (first + line * (BLOCK // len(line))).encode()
        yield block
        sent, number = sent + len(block), number + 1


def gzipped(size: int) -> Iterator[bytes]:
    """The same, as it is packed."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    for block in blocks(size):
        if packed := packer.compress(block):
            yield packed
    yield packer.flush()


def in_one(client: httpx2.Client, content: Iterator[bytes]) -> int:
    """The bytes that the service says it has."""
    answer = client.post("/v1/corpora", content=content, timeout=3600).raise_for_status()
    return int(answer.json()["bytes"])


def in_parts(client: httpx2.Client, size: int) -> int:
    """The same, in parts, each made when it is sent."""
    source, ids = blocks(size), list[str]()
    left = sum(map(len, blocks(size)))
    body = {"bytes": left, "filename": "x", "purpose": "batch"}
    upload = client.post("/v1/uploads", json=body).raise_for_status().json()["id"]

    def part() -> Iterator[bytes]:
        nonlocal left
        sent = 0
        while sent < PART and left:
            block = next(source)
            sent, left = sent + len(block), left - len(block)
            yield block

    headers = {"Content-Type": "application/octet-stream"}
    while left:
        answer = client.post(f"/v1/uploads/{upload}/parts", content=part(), headers=headers, timeout=3600)
        ids.append(answer.raise_for_status().json()["id"])
    done = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": ids}, timeout=3600).raise_for_status()
    return int(done.json()["file"]["bytes"])


def resident_mebibytes(pid: int, what: str) -> float:
    """`VmRSS`, or `VmHWM`, of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def main() -> None:
    """Write bench/results/upload_memory.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--ways", type=int, default=3, help="how many of the three, in this order")
    arguments = parser.parse_args()
    size = int(arguments.gigabytes * 1e9)
    report = Report(__file__, "uvicorn", "starlette")
    ways: dict[str, Callable[[httpx2.Client], int]] = {
        "one body": lambda client: in_one(client, blocks(size)),
        "one body, gzip": lambda client: in_one(client, gzipped(size)),
        "parts of 60 MiB": lambda client: in_parts(client, size),
    }
    for way, send in list(ways.items())[: arguments.ways]:
        with tempfile.TemporaryDirectory() as folder:
            measure(report, way, send, Path(folder))
    report.write()


def measure(report: Report, way: str, send: Callable[[httpx2.Client], int], folder: Path) -> None:
    """One upload to a service of its own."""
    server, memory, over = ServerProcess(folder / "run", {"max_unpack_ratio": 1e6}), list[float](), threading.Event()

    def note() -> None:
        while not over.wait(0.1):
            memory.append(resident_mebibytes(server.pid, "VmRSS"))

    watching = threading.Thread(target=note)
    before = resident_mebibytes(server.pid, "VmRSS")
    watching.start()
    try:
        start = time.perf_counter()
        size = send(server.client)
        seconds = time.perf_counter() - start
    finally:
        over.set()
        watching.join()
    peak = resident_mebibytes(server.pid, "VmHWM")
    server.end()
    report.add("resident memory", "MiB", memory, f"{size / 1e9:.2f} GB of lines; {before:.0f} MiB before", way=way)
    report.add("peak of resident memory", "MiB", [peak], "as the kernel noted it", way=way)
    report.add("lines taken", "MB/s", [size / 1e6 / seconds], "made, sent, checked and written", way=way)


if __name__ == "__main__":
    main()
