"""How fast the service takes a corpus, beside a trivial sink: `python bench/upload_speed.py [--megabytes 500]`.

By turns, so that both see the same machine: a Starlette application that reads the body and forgets it, one that also
writes it to a file, and the service with plain lines, gzip, zstd, Parquet and parts: MB/s of what is sent,
MB/s of lines, and the service's peak of resident memory.
"""

import argparse
import gzip
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

sys.path.append(str(Path(__file__).resolve().parent.parent))
from report import Report
from tests.support.services.server_process import ServerProcess

BLOCK = 1 << 20


def sink(folder: str | None, port: int) -> None:
    async def take(request: Request) -> Response:
        if folder is None:
            async for _ in request.stream():
                pass
        else:
            with (Path(folder) / "sunk").open("wb") as file:
                async for part in request.stream():
                    file.write(part)
        return Response()

    app = Starlette(routes=[Route("/", take, methods=["POST"])])
    uvicorn.run(app, port=port, log_level="error", http="httptools")


def blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def lines_of(size: int, salt: int) -> Iterator[bytes]:
    written = number = 0
    while written < size:
        text = " ".join(f"word{(number * at + salt) % 9973}" for at in range(1, 120))
        line = json.dumps({"text": text, "custom_id": f"{salt}-{number}"}).encode() + b"\n"
        written, number = written + len(line), number + 1
        yield line


def make(kind: str, folder: Path, size: int, salt: int) -> Path:
    path = folder / f"{kind}-{salt}"
    lines = lines_of(size, salt)
    if kind == "gzip":
        with gzip.open(path, "wb", compresslevel=1) as file:
            for line in lines:
                file.write(line)
    elif kind == "zstd":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            for line in lines:
                stream.write(line)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in lines]), path, row_group_size=10_000)
    else:
        with path.open("wb") as plain:
            plain.writelines(lines)
    return path


def post(client: httpx2.Client, url: str, path: Path) -> float:
    begun = time.perf_counter()
    client.post(
        url, content=blocks(path), headers={"Content-Type": "application/jsonl"}, timeout=600
    ).raise_for_status()
    return time.perf_counter() - begun


def in_parts(client: httpx2.Client, path: Path) -> float:
    begun = time.perf_counter()
    body = {"bytes": path.stat().st_size, "filename": "x", "purpose": "batch"}
    upload = client.post("/v1/uploads", json=body).raise_for_status().json()["id"]
    ids = []
    with path.open("rb") as file:
        while part := file.read(64 * BLOCK):
            answer = client.post(
                f"/v1/uploads/{upload}/parts", content=part, headers={"Content-Type": "application/octet-stream"}
            )
            ids.append(answer.raise_for_status().json()["id"])
    client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": ids}, timeout=600).raise_for_status()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = options.megabytes * 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spawn = multiprocessing.get_context("spawn")
        sinks = {18_431: None, 18_432: name}
        processes = [spawn.Process(target=sink, args=(where, port), daemon=True) for port, where in sinks.items()]
        for process in processes:
            process.start()
        server = ServerProcess(folder / "service")
        time.sleep(3)
        client = server.client
        ways: dict[str, tuple[str, Callable[[Path], float]]] = {
            "sink": ("plain", lambda path: post(client, "http://127.0.0.1:18431/", path)),
            "sink to a file": ("plain", lambda path: post(client, "http://127.0.0.1:18432/", path)),
            "plain": ("plain", lambda path: post(client, "/v1/corpora", path)),
            "parts": ("parts", lambda path: in_parts(client, path)),
            "gzip": ("gzip", lambda path: post(client, "/v1/corpora", path)),
            "zstd": ("zstd", lambda path: post(client, "/v1/corpora", path)),
            "parquet": ("parquet", lambda path: post(client, "/v1/corpora", path)),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        sent: dict[str, int] = {}
        for round_ in range(options.rounds):
            for number, (way, (kind, send)) in enumerate(ways.items()):
                path = make(kind, folder, size, 100 * round_ + number)
                seconds[way].append(send(path))
                sent[way] = path.stat().st_size
                path.unlink()
            for corpus in (folder / "service" / "state" / "corpora").glob("*.jsonl"):
                corpus.unlink()
        report = Report(__file__, "starlette", "uvicorn", "logitcask")
        for way, taken in seconds.items():
            report.add("sent", "MB/s", [sent[way] / 1e6 / value for value in taken], way=way)
            report.add("lines", "MB/s", [options.megabytes / value for value in taken], way=way)
        for way in ("plain", "parts"):
            ratios = [sunk / own for sunk, own in zip(seconds["sink to a file"], seconds[way], strict=True)]
            report.add("over a sink to a file", "ratio", ratios, "of the same round", way=way)
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
        report.add("peak resident memory of the service", "MB", [peak], way="all")
        report.write()
        server.end()
        for process in processes:
            process.terminate()


if __name__ == "__main__":
    main()
