"""Whether the capture waits for publishing: how busy the engine is while shards take longer and longer to publish.

A whole service extracts a corpus with a made-up engine that needs a fixed time for every document, as a device would,
and waits for nothing else: its busy share is that time over the time from its first document to its last result.
Publishing is made slow by sleeping in it for a part of the time in which the engine captures a chunk; beyond a whole
chunk's time no queue can help, and the engine has to wait, as the last rows show. Target: the same share as without.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from demo.fetch_teacher import default_folder
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from logitcask_services.engines.engine import CaptureResult, CaptureTask
from logitcask_services.http.app import create_app
from logitcask_services.http.server import bind
from logitcask_services.jobs.loaded_teacher import Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from made_up_cask import made_up_teacher, make_document
from report import Report
from service_overhead import write_corpus

VOCAB = 49_152
DELAYS = (0.0, 0.5, 0.9, 2.0)
"""How much longer a publication takes, in chunks' capture times."""


class PacedEngine:
    """Takes `pace` seconds per document, as if on a device; counts busy time, and the time from first to last."""

    def __init__(self, pace: float) -> None:
        self.identity = made_up_teacher(VOCAB)
        self.max_model_len = 4096
        self.pace = pace
        self.busy = self.span = 0.0
        self.documents = 0

    @property
    def hint_shape(self) -> None:
        """It gives none."""

    def gives_hints(self, hints: HintSpec) -> bool:
        """It gives none."""
        return False

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        begin = 0.0
        for task in filter(None, tasks):
            start = time.perf_counter()
            begin = begin or start
            model = make_document(len(task.token_ids_L), VOCAB, seed=0).records
            model.head_ids_H[np.cumsum(model.head_counts_P, dtype=np.int64) - 1] = task.token_ids_L[1:]
            document = DocumentRecords(token_ids_L=task.token_ids_L, records=model)
            time.sleep(max(0.0, self.pace - (time.perf_counter() - start)))
            now = time.perf_counter()
            self.busy += now - start
            self.span = now - begin
            self.documents += 1
            yield CaptureResult(key=task.key, document=document)

    def interrupt(self) -> bool:
        """It computes in this process."""
        return False

    def close(self) -> None:
        """Nothing to free."""


def extract(folder: Path, tokenizer: HuggingFaceTokenizer, engine: PacedEngine, chunk_positions: int) -> int:
    """Run one extraction; returns the number of shards."""
    settings = ServiceSettings(
        teacher=folder, cask_root=folder / "casks", disk_floor_bytes=0, chunk_positions=chunk_positions
    )
    service = Service(settings, lambda role: Teacher(engine=engine, tokenizer=tokenizer))
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    corpus = folder / "corpus.jsonl"
    write_corpus(corpus, 0.5)
    with ServiceClient(f"http://127.0.0.1:{listener.getsockname()[1]}") as http:
        job = http.submit({"corpus_id": http.upload(corpus).id, "cask": "cask"})
        for _ in http.follow(job.id):
            pass
        done = http.extraction(job.id)
    server.should_exit = True
    thread.join()
    assert done.status == "completed", done
    return len(list((folder / "casks" / "cask" / "shards").glob("*.arrow")))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokenizer", type=Path, default=default_folder("smollm2-135m"))
    parser.add_argument("--pace", type=float, default=0.02, help="seconds of the engine per document")
    parser.add_argument("--chunk-positions", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer, report = HuggingFaceTokenizer.load(arguments.tokenizer), Report(__file__, "numpy", "sqlalchemy")
    publish: Any = CaskWriter.publish
    shares: dict[float, list[float]] = {delay: [] for delay in DELAYS}
    chunk = arguments.pace
    for number in range(arguments.rounds + 1):
        for delay in DELAYS:
            seconds = delay * chunk

            def slow(self: CaskWriter, documents: Any, seconds: float = seconds, **options: Any) -> Any:
                time.sleep(seconds)
                return publish(self, documents, **options)

            engine = PacedEngine(arguments.pace)
            CaskWriter.publish = slow  # type: ignore[method-assign]
            with tempfile.TemporaryDirectory() as folder:
                shards = extract(Path(folder), tokenizer, engine, arguments.chunk_positions)
            if number:
                shares[delay].append(engine.busy / engine.span)
            elif delay == 0.0:  # the first round warms up, and tells how long a chunk takes
                chunk = engine.busy / shards
    CaskWriter.publish = publish  # type: ignore[method-assign]
    note = f"{engine.documents} documents in {shards} shards, {chunk:.2f} s of capture each"
    for delay, values in shares.items():
        report.add(f"engine's busy share, publishing {delay:g} chunks slower", "ratio", values, note)
    for delay in DELAYS[1:]:
        ratios = [mine / free for mine, free in zip(shares[delay], shares[0.0], strict=True)]
        report.add(f"ratio: publishing {delay:g} chunks slower / not slower", "ratio", ratios)
    report.write()


if __name__ == "__main__":
    main()
