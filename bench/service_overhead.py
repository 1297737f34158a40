"""What the service costs beside its engine: CPU microseconds per token, and the rate of uploads.

The Python sources of the standard library, cut into pieces, go through a whole service: upload over HTTP, validation
with the teacher's real tokenizer, feeding, putting chunks together, publishing, committing. The engine is made up: it
returns records of real size at once, and the time it takes to make them is measured in its thread and taken off.

* upload: MB/s of one client in a process of its own, and the server's CPU per MB
* prepare: reading lines, JSON, tokenizing, hashing, the token store (process CPU per token while validating)
* run: everything from the store to the committed shard (process CPU per token, less the engine's)
* total: the two together; the promise is <= 5 us

Rows go to bench/results/service_overhead.csv.
"""

import argparse
import csv
import json
import multiprocessing
import platform
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import uvicorn

from demo.fetch_teacher import default_folder
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.objects import Event
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from logitcask_services.engines.engine import CaptureResult, CaptureTask
from logitcask_services.http.app import create_app
from logitcask_services.http.server import bind
from logitcask_services.jobs.loaded_teacher import Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from made_up_cask import make_document

VOCAB = 49_152
PIECE = 2_000  # characters
RESULTS = Path(__file__).parent / "results" / "service_overhead.csv"
IDENTITY = TeacherIdentity(
    model="made-up",
    weights_digest="0" * 64,
    dtype="float32",
    vocab_size=VOCAB,
    tokenizer_fingerprint="0" * 64,
    engine="transformers",
    engine_version="0",
)


class MadeUpEngine:
    """Records of real size for any tokens; `seconds` is the CPU time its own thread spent on making them."""

    def __init__(self) -> None:
        self.identity = IDENTITY
        self.max_model_len = 4096
        self.seconds = 0.0

    @property
    def hint_shape(self) -> None:
        """It gives none."""

    def gives_hints(self, hints: HintSpec) -> bool:
        """It gives none."""
        return False

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        for task in filter(None, tasks):
            start = time.thread_time()
            model = make_document(len(task.token_ids_L), VOCAB, seed=0)
            records = model.records
            records.head_ids_H[np.cumsum(records.head_counts_P, dtype=np.int64) - 1] = task.token_ids_L[1:]
            document = DocumentRecords(token_ids_L=task.token_ids_L, records=records)
            self.seconds += time.thread_time() - start
            yield CaptureResult(key=task.key, document=document)

    def interrupt(self) -> bool:
        """It computes in this process."""
        return False

    def close(self) -> None:
        pass


def write_corpus(path: Path, megabytes: float) -> None:
    """Pieces of the standard library's sources, repeated with a number in front until it is large enough."""
    sources = [source.read_text(errors="ignore") for source in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    text = "".join(sources)
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    written = 0
    with path.open("w") as file:
        for number in range(10**9):
            written += file.write(json.dumps({"text": f"{number}\n{pieces[number % len(pieces)]}"}) + "\n")
            if written >= megabytes * 1e6:
                return


def upload(url: str, path: str, answer: "multiprocessing.connection.Connection") -> None:
    """The client's process: seconds of wall clock."""
    with ServiceClient(url) as client:
        start = time.perf_counter()
        corpus = client.upload(Path(path))
        answer.send((time.perf_counter() - start, corpus.id))


def measure(folder: Path, tokenizer: HuggingFaceTokenizer, megabytes: float) -> dict[str, float]:
    """One round on fresh folders."""
    engine = MadeUpEngine()
    settings = ServiceSettings(teacher=folder, cask_root=folder / "casks", disk_floor_bytes=0)
    service = Service(settings, lambda role: Teacher(engine=engine, tokenizer=tokenizer))
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    corpus, large = folder / "corpus.jsonl", folder / "large.jsonl"
    write_corpus(corpus, megabytes)
    write_corpus(large, 256)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    figures: dict[str, float] = {}
    corpus_id = ""
    for path in (large, corpus):
        ours, theirs = context.Pipe()
        client = context.Process(target=upload, args=(url, str(path), theirs))
        client.start()
        cpu = time.process_time()
        seconds, corpus_id = ours.recv()
        cpu = time.process_time() - cpu
        client.join()
        if path is large:
            size = path.stat().st_size / 1e6
            figures |= {"upload (MB/s)": size / seconds, "upload (CPU us/MB)": 1e6 * cpu / size}
    started = time.process_time()
    with ServiceClient(url) as http:
        job = http.submit({"corpus_id": corpus_id, "cask": "cask"})
        moments = {}
        for event in http.follow(job.id):
            if isinstance(event, Event) and event.type == "status":
                moments[event.data["status"]] = time.process_time()
        done = http.extraction(job.id)
    server.should_exit = True
    thread.join()
    tokens = done.usage.tokens_captured
    assert done.status == "completed", done
    figures["prepare (CPU us/token)"] = 1e6 * (moments["queued"] - started) / tokens
    figures["run (CPU us/token)"] = 1e6 * (moments["completed"] - moments["queued"] - engine.seconds) / tokens
    figures["total (CPU us/token)"] = figures["prepare (CPU us/token)"] + figures["run (CPU us/token)"]
    figures["tokens"] = tokens
    figures["bytes/token"] = done.usage.bytes_written / tokens
    return figures


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokenizer", type=Path, default=default_folder("smollm2-135m"))
    parser.add_argument("--megabytes", type=float, default=4.0, help="size of the corpus that is extracted")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = HuggingFaceTokenizer.load(arguments.tokenizer)
    rounds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(measure(Path(folder), tokenizer, arguments.megabytes))
            print({name: round(value, 2) for name, value in rounds[-1].items()}, flush=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["metric", "p20", "p50", "p80", "rounds", "timestamp", "cpu", "cores", "python"])
        for name in rounds[0]:
            values = np.percentile([figures[name] for figures in rounds], [20, 50, 80])
            shown = [f"{value:.4g}" for value in values] if name != "tokens" else [f"{value:.0f}" for value in values]
            stamp = datetime.now(UTC).isoformat(timespec="seconds")
            cores = multiprocessing.cpu_count()
            rows.writerow([name, *shown, len(rounds), stamp, cpu, cores, platform.python_version()])
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
