"""A whole extraction over HTTP beside the bare loop of its engine: upload, tokens, jobs, shards, bookkeeping.

One real engine (SmolLM2-135M, in a process of its own) serves both sides, which take turns in going first:

* bare: tokens are at hand, the engine captures them, and the records are thrown away
* service: from the first byte of the upload until the client has heard that the cask is complete

    python bench/service_capture.py [--engine vllm] [--rounds 5] [--documents 48]

The promise is >= 0.97 of the bare loop's tokens/s. Rows go to bench/results/service_capture.csv.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn

from demo import corpus
from demo.fetch_teacher import default_folder
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.corpora.tokenizer import HuggingFaceTokenizer
from logitcask_services.engines.engine import CaptureTask, Engine
from logitcask_services.engines.process.door import start_engine
from logitcask_services.http.app import create_app
from logitcask_services.http.server import bind
from logitcask_services.jobs.loaded_teacher import Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from report import Report

CHARACTERS = 2_000
"""Of a document, about 600 tokens of Python sources."""


def texts_of(round_number: int, documents: int) -> list[str]:
    """Documents of the standard library with the round's number in front, so that no round repeats another's."""
    chosen = list[str]()
    for text in corpus.documents(held_out=False):
        chosen.append(f"# {round_number}\n{text[:CHARACTERS]}")
        if len(chosen) == documents:
            return chosen
    raise SystemExit(f"expected {documents} documents, the standard library gives {len(chosen)}")


def bare_seconds(engine: Engine, tasks: list[CaptureTask]) -> float:
    """Of the engine alone."""
    start = time.perf_counter()
    for result in engine.capture(tasks, CaptureSpec()):
        assert result.error is None, result.error
    return time.perf_counter() - start


def service_seconds(url: str, path: Path, name: str, tokens: int) -> float:
    """Of an extraction as a client sees it."""
    start = time.perf_counter()
    with ServiceClient(url) as client:
        job = client.submit({"corpus_id": client.upload(path).id, "cask": name})
        for _ in client.follow(job.id):
            pass
        seconds = time.perf_counter() - start
        ended = client.extraction(job.id)
    assert ended.status == "completed", ended
    assert ended.usage.tokens_captured == tokens, (ended.usage, tokens)
    return seconds


def measure(engine: Engine, folder: Path, rounds: int, documents: int) -> tuple[list[int], list[float], list[float]]:
    """Tokens, and seconds of both sides, of each round; the one before them warms up and is not counted."""
    tokenizer = HuggingFaceTokenizer.load(default_folder("smollm2-135m"))
    settings = ServiceSettings(teacher=folder, cask_root=folder / "casks", data_dir=folder / "data", disk_floor_bytes=0)
    service = Service(settings, lambda role: Teacher(engine=engine, tokenizer=tokenizer))
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    counts, bare, whole = list[int](), list[float](), list[float]()
    for number in range(rounds + 1):
        texts = texts_of(number, documents)
        path = folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        ids = [np.array(tokens, np.uint16) for tokens in tokenizer.encode(texts, special_tokens=True)]
        tasks = [CaptureTask(key=key, token_ids_L=own) for key, own in enumerate(ids)]
        tokens = sum(map(len, ids))
        if number % 2:
            bare.append(bare_seconds(engine, tasks))
        whole.append(service_seconds(url, path, f"cask-{number}", tokens))
        if not number % 2:
            bare.append(bare_seconds(engine, tasks))
        counts.append(tokens)
        print(f"round {number}: {tokens} tokens, bare {bare[-1]:.1f} s, service {whole[-1]:.1f} s", flush=True)
    server.should_exit = True
    thread.join()
    return counts[1:], bare[1:], whole[1:]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=48)
    options = parser.parse_args()
    report = Report(__file__, "torch", "transformers", "logitcask")
    folder = default_folder("smollm2-135m")
    engine = start_engine(
        options.engine, ModelSource(folder=folder, name=folder.name), dtype="float32", max_model_len=2048
    )
    with tempfile.TemporaryDirectory() as work:
        counts, bare, whole = measure(engine, Path(work), options.rounds, options.documents)
    engine.close()
    for name, seconds in (("bare loop", bare), ("service", whole)):
        report.add("capture", "tokens/s", [own / value for own, value in zip(counts, seconds, strict=True)], side=name)
    ratios = [here / there for here, there in zip(bare, whole, strict=True)]
    report.add("service / bare loop", "ratio", ratios, "of the same round", side="both")
    report.write()


if __name__ == "__main__":
    main()
