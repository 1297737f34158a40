"""Captures without the service, with the fake teacher: prepared corpora, pools of workers, drivers to be killed."""

import os
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.corpora.prepare import DocumentLimits
from logitcask_services.engines.engine import Engine
from logitcask_services.jobs.executors.chunk_orders import CaptureJob
from logitcask_services.jobs.executors.corpus_capture import (
    Captured,
    CorpusCapture,
    Missing,
    Part,
    missing_of,
)
from logitcask_services.jobs.executors.local_pool import LocalPool
from logitcask_services.jobs.executors.prepared_corpus import PreparedCorpus, prepared_corpus
from logitcask_services.jobs.executors.ray_pool import RayOptions, RayPool
from logitcask_services.jobs.extraction import planned_chunks
from logitcask_services.jobs.loaded_teacher import TeacherFacts
from tests.support.services.fake_teacher import VOCAB_SIZE, FakeEngine, FakeTokenizer
from tests.support.services.service_harness import jsonl

CHUNK_POSITIONS = 200
FACTS = TeacherFacts(
    model="fake-teacher",
    vocab_size=VOCAB_SIZE,
    tokenizer_fingerprint="f" * 64,
    template_hash=None,
    max_model_len=64,
    tokenizer=FakeTokenizer(),
)


def some_documents(count: int = 300, *, repeated: int = 30) -> list[dict[str, Any]]:
    """Documents of 4 to 60 tokens, a third under a context, a fifth recorded in part; the last ones repeat others."""
    source = random.Random(7)
    documents: list[dict[str, Any]] = [
        {"input_ids": [source.randrange(600) for _ in range(source.randrange(4, 60))]} for _ in range(count)
    ]
    for document in documents[::3]:
        document["context_ids"] = [source.randrange(4), 7]
    for document in documents[::5]:
        document["recorded"] = [[0, 1], [2, len(document["input_ids"]) - 1]]
    return documents + documents[50 : 50 + repeated]


def prepare(folder: Path, documents: Sequence[dict[str, Any]]) -> PreparedCorpus:
    """The corpus of these lines, ready in a folder."""
    folder.mkdir(exist_ok=True)
    corpus = folder / "corpus.jsonl"
    corpus.write_bytes(jsonl([*documents]))
    return reopen(folder)


def reopen(folder: Path, say: Callable[[str], None] = lambda line: None) -> PreparedCorpus:
    """The same again, as another process sees it."""
    limits = DocumentLimits(
        vocab_size=VOCAB_SIZE, max_length=64, window=64, overflow="truncate", max_line_bytes=8 << 20
    )
    return prepared_corpus(folder / "corpus.jsonl", folder / "work", FACTS, limits, say=say)


def missing(prepared: PreparedCorpus, cask: Path | str, part: Part | None = None) -> Missing:
    """What of a part is not in a cask."""
    chunks = planned_chunks(prepared.tokens.offsets_D1, None, None, CHUNK_POSITIONS)
    return missing_of(prepared, (part or Part()).of(chunks), job_of(prepared, cask), FACTS)


def job_of(prepared: PreparedCorpus, cask: Path | str) -> CaptureJob:
    """A capture of it."""
    return CaptureJob(
        tokens=prepared.tokens_folder, cask=cask, spec=CaptureSpec(), needs_extents=prepared.tokens.has_extents
    )


def capture(
    prepared: PreparedCorpus,
    cask: Path | str,
    *,
    part: Part | None = None,
    load: Callable[[], Engine] = FakeEngine,
    ray_address: str | None = None,
    teachers: int = 1,
    restarts: int = 5,
    say: Callable[[str], None] = lambda line: None,
) -> Captured:
    """Capture what is missing, here or on a Ray cluster."""
    job, left = job_of(prepared, cask), missing(prepared, cask, part)
    options = RayOptions(address=ray_address, num_cpus=0.5)
    pool = LocalPool(job, load) if ray_address is None else RayPool(job, load, options)
    try:
        return CorpusCapture(
            pool,
            teachers,
            left.chunks,
            left.left_out,
            is_published=lambda chunk: not missing_of(prepared, [chunk], job, FACTS).chunks,
            say=say,
            restarts=restarts,
            first_pause=0.01,
        ).run()
    finally:
        pool.close()


def drive(folder: Path, cask: Path, address: str, script: dict[str, Any]) -> None:
    """A driver in a process of its own, to be killed; what it says is in a file of the folder."""
    with (folder / "driver.log").open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
        os.dup2(file.fileno(), sys.stdout.fileno())
    script = {name: Path(value) if name == "log" else value for name, value in script.items()}
    capture(reopen(folder), cask, load=partial(FakeEngine, **script), ray_address=address, teachers=2)


def files_of(cask: Path) -> dict[str, bytes]:
    """All of a cask but its manifest, which says when it was made, and its lock."""
    return {
        str(path.relative_to(cask)): path.read_bytes()
        for path in sorted(cask.rglob("*"))
        if path.is_file() and path.name not in ("cask.json", "cask.lock")
    }


def captures(log: Path) -> list[tuple[int, int]]:
    """Process and document of each that a teacher was given, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(pid), int(key)) for pid, key, _ in map(str.split, lines)]
