"""Many teachers: what Ray and the publishing cost beside a bare loop over the engine, and what a second teacher brings.

The engine computes on one core for each document (SHA-256, which lets go of the interpreter as a real engine's process
does) and makes made-up records, so two workers on two cores can be nearly twice as fast as one: as two bare loops at
once are, which is measured, too. At 2,000 tokens a second it is about as fast as a large model on one GPU; what a
document costs beside the engine weighs less the slower that is. Rates count from the first teacher that is ready to the
end. `python bench/fleet_capture.py`, on a quiet machine of two cores or more;
`--documents 400 --repeats 1 --dry` rehearses it.
"""

import argparse
import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.engines.engine import CaptureResult, CaptureTask
from logitcask_services.jobs.chunks import capture_task
from logitcask_services.jobs.executors.corpus_capture import CorpusCapture, missing_of
from logitcask_services.jobs.executors.local_pool import LocalPool
from logitcask_services.jobs.executors.prepared_corpus import PreparedCorpus
from logitcask_services.jobs.executors.ray_pool import RayOptions, RayPool
from logitcask_services.jobs.extraction import planned_chunks
from report import Report
from tests.support.services.corpus_captures import FACTS, job_of, prepare
from tests.support.services.fake_teacher import FakeEngine
from tests.support.services.ray_cluster import RayCluster

TOKENS, CHUNK_DOCUMENTS = 60, 100
"""Of a document, which the tests' teacher takes no longer than 64; of a chunk."""
_BUFFER = bytes(1 << 20)


class ComputingEngine(FakeEngine):
    """Hashes a mebibyte so many times for each document."""

    def __init__(self, rounds: int) -> None:
        super().__init__(in_flight=16)
        self._rounds = rounds

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """See the class."""
        for result in super().capture(tasks, spec):
            for _ in range(self._rounds):
                hashlib.sha256(_BUFFER).digest()
            yield result


def documents(count: int) -> list[dict[str, list[int]]]:
    """Documents of `TOKENS` tokens, no two alike."""
    return [
        {"input_ids": [at % 600, at // 600, *((at * 7 + place) % 600 for place in range(TOKENS - 2))]}
        for at in range(count)
    ]


def bare(prepared: PreparedCorpus, rounds: int) -> float:
    """Tokens per second of a loop over the engine that drops what comes."""
    engine, tokens = ComputingEngine(rounds), prepared.tokens
    began = time.perf_counter()
    for _ in engine.capture((capture_task(tokens, at) for at in range(tokens.num_documents)), CaptureSpec()):
        pass
    return tokens.num_tokens / (time.perf_counter() - began)


def bare_two(prepared: PreparedCorpus, rounds: int) -> float:
    """Tokens per second of two such loops, half of the documents each, in a process each: what there is to have.

    Two processes of one machine share its memory and, often, a core's units; nobody can be faster than this.
    """
    context = multiprocessing.get_context("fork")
    ready, seconds = context.Barrier(2), context.Queue()
    half = prepared.tokens.num_documents // 2
    loops = [
        context.Process(target=_bare_part, args=(prepared, rounds, range(start, start + half), ready, seconds))
        for start in (0, half)
    ]
    for loop in loops:
        loop.start()
    slowest = max(float(seconds.get()) for _ in loops)
    for loop in loops:
        loop.join()
    return prepared.tokens.num_tokens / slowest


def _bare_part(prepared: PreparedCorpus, rounds: int, documents: range, ready: Any, seconds: Any) -> None:
    engine = ComputingEngine(rounds)
    ready.wait()
    began = time.perf_counter()
    for _ in engine.capture((capture_task(prepared.tokens, at) for at in documents), CaptureSpec()):
        pass
    seconds.put(time.perf_counter() - began)


def captured(prepared: PreparedCorpus, rounds: int, teachers: int, address: str | None) -> float:
    """Tokens per second into a cask; without an address in this process."""
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(prepared, Path(folder) / "cask")
        chunks = planned_chunks(prepared.tokens.offsets_D1, None, None, CHUNK_DOCUMENTS * TOKENS)
        load = partial(ComputingEngine, rounds)
        pool = LocalPool(job, load) if address is None else RayPool(job, load, RayOptions(address=address))
        try:
            missing = missing_of(prepared, chunks, job, FACTS)
            done = CorpusCapture(
                pool, teachers, missing.chunks, missing.left_out, is_published=lambda chunk: False
            ).run()
        finally:
            pool.close()
        assert done.documents == prepared.tokens.num_documents
        return done.tokens / done.seconds


def main() -> None:
    """Measure, print, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=32, help="mebibytes that are hashed for each document")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="write no CSV")
    arguments = parser.parse_args()
    report = Report(__file__, "ray", "logitcask")
    with tempfile.TemporaryDirectory(prefix="lc-ray-", dir="/tmp") as folder:
        prepared = prepare(Path(folder) / "corpus", documents(arguments.documents))
        cluster = RayCluster(Path(folder) / "ray")
        cluster.start()
        try:
            rates: dict[str, list[float]] = {"bare": [], "bare 2": [], "local": [], "ray 1": [], "ray 2": []}
            for _ in range(arguments.repeats):
                rates["bare"].append(bare(prepared, arguments.rounds))
                rates["bare 2"].append(bare_two(prepared, arguments.rounds))
                rates["local"].append(captured(prepared, arguments.rounds, 1, None))
                rates["ray 1"].append(captured(prepared, arguments.rounds, 1, cluster.address))
                rates["ray 2"].append(captured(prepared, arguments.rounds, 2, cluster.address))
        finally:
            cluster.stop()
    note = json.dumps({"documents": arguments.documents, "rounds": arguments.rounds, "tokens": TOKENS})
    for name, values in rates.items():
        report.add("rate", "tokens/s", values, note, run=name)
    for name, over in (
        ("bare 2", "bare"),
        ("local", "bare"),
        ("ray 1", "bare"),
        ("ray 2", "ray 1"),
        ("ray 2", "bare 2"),
    ):
        ratios = [mine / theirs for mine, theirs in zip(rates[name], rates[over], strict=True)]
        report.add(f"over {over}", "ratio", ratios, note, run=name)
    if not arguments.dry:
        report.write()


if __name__ == "__main__":
    main()
