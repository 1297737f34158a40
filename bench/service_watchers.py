"""What 200 watchers of a running job cost: other requests beside them, and the service's memory.

Each watcher is a connection of its own that reads the job's event stream. By turns, nobody watches and all of them do,
and one client asks for what people and programs ask for; milliseconds are those of one request on a kept connection.
Then all watch for a while, and the service's resident memory is noted each second: it must not grow. The teacher is
made up and needs 5 ms for a document, so there is progress to be told each second and a chunk every half of one.
"""

import argparse
import json
import selectors
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from report import Report
from tests.support.services.server_process import ServerProcess

DOCUMENTS, TOKENS = 200_000, 20
"""Of the job: it is still running at the end."""
Request = Callable[[], object]
ROUNDS, REQUESTS = 5, 40
EDGE_SECONDS = 10
"""At the beginning and at the end of the time in which memory is noted."""


class Watchers:
    """Connections that read an event stream; what comes is counted and forgotten."""

    def __init__(self, address: tuple[str, int], path: str, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()
        self.received: dict[socket.socket, int] = {}
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
        for _ in range(count):
            connection = socket.create_connection(address, timeout=30)
            connection.sendall(head)
            connection.setblocking(False)
            self.received[connection] = 0
            self._selector.register(connection, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        while not all(self.received.values()):
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        for connection in self.received:
            connection.close()
        self._selector.close()

    def _read(self) -> None:
        while not self._over.is_set():
            for key, _ in self._selector.select(0.1):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                content = connection.recv(1 << 16)
                if not content:
                    raise RuntimeError("the service ended a stream of a job that runs")
                self.received[connection] += len(content)


def resident_mebibytes(pid: int) -> float:
    """Of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def begun(client: httpx2.Client) -> str:
    """The path of a job that runs."""
    lines = b"".join(
        json.dumps({"input_ids": [number % 997, number // 997, *range(TOKENS - 2)]}).encode() + b"\n"
        for number in range(DOCUMENTS)
    )
    corpus = client.post("/v1/corpora", content=lines).raise_for_status().json()["id"]
    job = client.post("/v1/extractions", json={"corpus_id": corpus, "cask": "cask"}).raise_for_status().json()["id"]
    path = f"/v1/extractions/{job}"
    while client.get(path).json()["documents"]["captured"] == 0:
        time.sleep(0.2)
    return path


def main() -> None:
    """Write bench/results/service_watchers.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=120, help="for which memory is noted")
    arguments = parser.parse_args()
    report = Report(__file__, "uvicorn", "starlette")
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder) / "run", {"chunk_positions": 2000}, seconds_per_document=0.005)
        try:
            measure(server, report, arguments.watchers, arguments.seconds)
        finally:
            server.end()
    report.write()


def measure(server: ServerProcess, report: Report, count: int, seconds: int) -> None:
    """Ask with watchers and without, then note the memory."""
    client, number = server.client, 0
    path = begun(client)
    address = ("127.0.0.1", client.base_url.port or 80)

    def upload() -> None:
        nonlocal number
        number += 1
        client.post("/v1/corpora", content=b'{"text": "%d"}\n' % number).raise_for_status()

    asked: dict[str, Request] = {
        "GET /health": lambda: client.get("/health").raise_for_status(),
        "GET the job": lambda: client.get(path).raise_for_status(),
        "GET 20 jobs": lambda: client.get("/v1/extractions?limit=20").raise_for_status(),
        "GET /metrics": lambda: client.get("/metrics").raise_for_status(),
        "POST a corpus of a line": upload,
    }
    milliseconds: dict[tuple[int, str], list[float]] = {}

    def ask(watching: int) -> None:
        for _ in range(REQUESTS):
            for name, request in asked.items():
                start = time.perf_counter()
                request()
                milliseconds.setdefault((watching, name), []).append((time.perf_counter() - start) * 1e3)

    ask(0)
    milliseconds.clear()  # the first of each kind loads what it needs
    for _ in range(ROUNDS):
        ask(0)
        with Watchers(address, f"{path}/events", count):
            ask(count)
    alone = [resident_mebibytes(server.pid)]
    with Watchers(address, f"{path}/events", count) as watchers:
        memory = []
        for _ in range(seconds):
            time.sleep(1.0)
            memory.append(resident_mebibytes(server.pid))
        least = min(watchers.received.values())
    assert client.get(path).json()["status"] == "in_progress", "the job ended before the measurement did"
    client.post(f"{path}/cancel").raise_for_status()
    for name in asked:
        for watching in (0, count):
            report.add(name, "ms", milliseconds[watching, name], watchers=watching)
    report.add("resident memory", "MiB", alone, "between two crowds of watchers", watchers=0)
    note = f"of {seconds} s in which each watcher received at least {least / 1024:.0f} KiB"
    report.add(f"resident memory, first {EDGE_SECONDS} s", "MiB", memory[:EDGE_SECONDS], note, watchers=count)
    report.add(f"resident memory, last {EDGE_SECONDS} s", "MiB", memory[-EDGE_SECONDS:], note, watchers=count)


if __name__ == "__main__":
    main()
