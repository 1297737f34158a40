"""How long lists take when there is much to list: 10,000 corpora, 1,000 queued extractions, and memory while asked.

The rows are put into the job database as the service would put them, then a service is started on it whose teacher
never gets ready, so that everything stays queued. One client asks for pages, from the newest to the oldest, and for
what operators look at; milliseconds are those of one request on a kept connection.

The promise is < 200 ms for each, and memory that does not grow with the number of requests.
"""

import argparse
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import uvicorn

from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_services.http.app import create_app
from logitcask_services.http.server import bind
from logitcask_services.jobs.database.extractions import new_extraction
from logitcask_services.jobs.database.jobs import add_job, move
from logitcask_services.jobs.database.tables import CorpusRow
from logitcask_services.jobs.loaded_teacher import Role, Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings

PAGES = 20


def fill(service: Service, corpora: int, jobs: int) -> None:
    """Rows of corpora, and of extractions that are queued."""
    with service.database.write() as session:
        for number in range(corpora):
            session.add(
                CorpusRow(
                    id=f"corpus-{number:024x}",
                    sha256=secrets.token_hex(32),
                    bytes=1_000_000,
                    lines=1_000,
                    name=f"corpus {number}",
                    created_at=time.time(),
                )
            )
        session.flush()
        for number in range(jobs):
            request = ExtractionRequest(corpus_id=f"corpus-{number:024x}", cask="docs", metadata={"team": "a"})
            row = new_extraction(request)
            row.documents, row.tokens_total = 1_000, 1_000_000
            add_job(session, row, "extraction")
            move(session, row, "queued")


def resident_megabytes() -> float:
    """Of this process, which is client and server."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def milliseconds(ask: Callable[[], None], times: int) -> tuple[float, float]:
    """Median and largest of one request's time."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken), max(taken)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1_000)
    arguments = parser.parse_args()
    over = threading.Event()

    def load(_: Role) -> Teacher:
        over.wait()
        raise SystemExit

    with tempfile.TemporaryDirectory() as folder:
        settings = ServiceSettings(teacher=Path(folder), cask_root=Path(folder) / "casks", disk_floor_bytes=0)
        service = Service(settings, load)
        fill(service, arguments.corpora, arguments.jobs)
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, access_log=False, loop="asyncio"))
        listener = bind("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
                while not server.started:
                    time.sleep(0.05)
                measure(client)
        finally:
            over.set()
            server.should_exit = True
            thread.join()


def measure(client: httpx2.Client) -> None:
    """Ask, and print a line for each kind of request."""

    def get(path: str) -> dict[str, object]:
        document: dict[str, object] = client.get(path).raise_for_status().json()
        return document

    def pages(path: str) -> Callable[[], None]:
        last = ""

        def ask() -> None:
            nonlocal last
            page = get(f"{path}limit=100{last}")
            data = page["data"]
            assert isinstance(data, list)
            last = f"&after={data[-1]['id']}" if page["has_more"] else ""

        return ask

    def look(path: str) -> Callable[[], None]:
        def ask() -> None:
            client.get(path)

        return ask

    rows = [
        ("corpora, pages of 100", pages("/v1/corpora?")),
        ("extractions, pages of 100", pages("/v1/extractions?")),
        ("queued extractions, pages of 100", pages("/v1/extractions?status=queued&")),
        ("generations (none)", pages("/v1/generations?")),
        ("/metrics", look("/metrics")),
        ("/health/ready", look("/health/ready")),
    ]
    print(f"{'':36}median ms   max ms")
    for name, ask in rows:
        ask()
        median, most = milliseconds(ask, PAGES)
        print(f"{name:36}{median:9.1f}{most:9.1f}")
    before = resident_megabytes()
    for _ in range(10):
        for _, ask in rows:
            milliseconds(ask, PAGES)
    print(f"memory: {before:.0f} MB, after {10 * PAGES * len(rows):,} requests {resident_megabytes():.0f} MB")


if __name__ == "__main__":
    main()
