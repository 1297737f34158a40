"""What a process of its own costs an engine: capture through it over capture in this process, by turns.

Two measures, each with both engines loaded once and used one after the other, so that a slow moment meets both:

* teacher: tokens/s of transformers on SmolLM2-135M over texts of the standard library; the promise is >= 0.98
* wire: an engine that computes nothing, CPU microseconds per document of both processes beside those of one: what
  frames, copies and the second process's Python cost in full, with records of real size

    python bench/engine_process.py [--rounds 7] [--documents 24]

Rows go to bench/results/engine_process.csv.
"""

import argparse
import gc
import inspect
import os
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from demo.fetch_teacher import default_folder
from logitcask_schemas.model_source import ModelSource
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords
from logitcask_services.engines.engine import CaptureResult, CaptureTask, Engine
from logitcask_services.engines.factory import load_engine
from logitcask_services.engines.process.door import ProcessEngine, start_engine
from logitcask_services.engines.process.process import EngineProcess
from made_up_cask import make_document
from report import Report

VOCAB = 49_152
LENGTHS = (64, 512)
"""Tokens of a document that is made up."""


class MadeUpEngine:
    """Records of real size, made once for each length."""

    def __init__(self) -> None:
        self.identity = TeacherIdentity(
            model="made-up",
            weights_digest="0" * 64,
            dtype="float32",
            vocab_size=VOCAB,
            tokenizer_fingerprint="0" * 64,
            engine="transformers",
            engine_version="0",
        )
        self.max_model_len = 4096
        self.hint_shape = None
        self._records = {length: make_document(length, VOCAB, seed=0).records for length in LENGTHS}

    def gives_hints(self, hints: HintSpec) -> bool:
        """It gives none."""
        return False

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """The same records for all."""
        for task in filter(None, tasks):
            records = self._records[len(task.token_ids_L)]
            document = DocumentRecords(token_ids_L=task.token_ids_L, records=records)
            yield CaptureResult(key=task.key, document=document)

    def interrupt(self) -> bool:
        """It computes here."""
        return False

    def close(self) -> None:
        """Nothing to free."""


def load_made_up(document: dict[str, Any]) -> MadeUpEngine:
    """In the process."""
    return MadeUpEngine()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seconds_of(engine: Engine, tasks: list[CaptureTask]) -> float:
    """Of one capture of all tasks."""
    gc.collect()
    start = time.perf_counter()
    for result in engine.capture(tasks, CaptureSpec()):
        assert result.error is None, result.error
    return time.perf_counter() - start


def by_turns(engines: dict[str, Engine], tasks: list[CaptureTask], rounds: int) -> dict[str, list[float]]:
    """Seconds of each engine, which take turns in going first."""
    names, seconds = list(engines), {name: list[float]() for name in engines}
    for name in names:
        seconds_of(engines[name], tasks[:4])
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            seconds[name].append(seconds_of(engines[name], tasks))
    return seconds


def measure_teacher(report: Report, rounds: int, documents: int) -> None:
    """A real one."""
    from transformers import AutoTokenizer

    folder = default_folder("smollm2-135m")
    source = ModelSource(folder=folder, name=folder.name)
    ids = AutoTokenizer.from_pretrained(folder)(inspect.getsource(textwrap) * 4).input_ids
    tasks = [CaptureTask(key=n, token_ids_L=np.array(ids[n * 128 :][:256], np.uint16)) for n in range(documents)]
    engines: dict[str, Engine] = {
        "in this process": load_engine("transformers", source, max_model_len=1024),
        "in its own": start_engine("transformers", source, max_model_len=1024),
    }
    seconds = by_turns(engines, tasks, rounds)
    tokens = sum(len(task.token_ids_L) for task in tasks)
    for name, values in seconds.items():
        report.add("capture", "tokens/s", [tokens / value for value in values], engine=name)
    ratios = [here / there for here, there in zip(*seconds.values(), strict=True)]
    report.add("own process / this one", "ratio", ratios, "of the same round", engine="both")
    for engine in engines.values():
        engine.close()


def measure_wire(report: Report, rounds: int) -> None:
    """One that computes nothing."""
    made_up, process = MadeUpEngine(), ProcessEngine(EngineProcess(f"{Path(__file__).stem}:load_made_up", {}))
    for length in LENGTHS:
        ids = make_document(length, VOCAB, seed=0).token_ids_L
        tasks = [CaptureTask(key=n, token_ids_L=ids) for n in range(2000)]
        seconds_of(process, tasks[:100])
        here, there, rate = list[float](), list[float](), list[float]()
        for _ in range(rounds):
            start = time.process_time()
            seconds_of(made_up, tasks)
            here.append((time.process_time() - start) / len(tasks) * 1e6)
            start, child = time.process_time(), cpu_seconds(process.pid)
            rate.append(len(tasks) / seconds_of(process, tasks))
            used = time.process_time() - start + cpu_seconds(process.pid) - child
            there.append(used / len(tasks) * 1e6)
        labels = {"engine": f"made up, {length} tokens"}
        report.add("in this process", "us/document", here, **labels)
        report.add("both processes", "us/document", there, "CPU time", **labels)
        report.add("both processes", "us/token", [value / length for value in there], "CPU time", **labels)
        report.add("through the process", "documents/s", rate, **labels)
    process.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--documents", type=int, default=24)
    options = parser.parse_args()
    report = Report(__file__, "torch", "transformers")
    measure_wire(report, options.rounds)
    measure_teacher(report, options.rounds, options.documents)
    report.write()


if __name__ == "__main__":
    main()
