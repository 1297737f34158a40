"""Engines for a process of their own: what it loads by name, with faults that are real ones.

The fake engine's records are a function of the token ids alone, so that a cask is the same bytes whatever the process
has gone through.
"""

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import Counter

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.engines.engine import CaptureResult, CaptureTask
from logitcask_services.engines.metrics import EngineMetrics, metrics_of_process
from logitcask_services.engines.process.door import ProcessEngine, ProcessGenerator
from logitcask_services.engines.process.process import EngineProcess
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import KILLER, FakeEngine

FAULTS = ("killed", "hung", "memory", "raised", "stopped")


class FaultyEngine(FakeEngine):
    """Meets the next fault of a file after some documents: one line is one fault, taken by one life of the engine.

    A document with `KILLER` kills it by a signal.

    Args:
        faults: File with one name of `FAULTS` a line; a life takes the first one away.
        after: Documents of a life before its fault.
    """

    def __init__(self, faults: Path, after: int, **script: Any) -> None:
        super().__init__(**script)
        lines = faults.read_text().split()
        faults.write_text("\n".join(lines[1:]))
        self._fault, self._after = lines[0] if lines else None, after

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        for result in super().capture(tasks, spec):
            if self._fault is not None and self.given > self._after:
                meet(self._fault)
            yield result

    def _finish(self, task: CaptureTask, spec: CaptureSpec) -> CaptureResult:
        if KILLER in task.token_ids_L:
            meet("killed")
        return super()._finish(task, spec)


def meet(fault: str) -> None:
    """A real fault; returns where it is none of `FAULTS`."""
    match fault:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hung":
            threading.Event().wait()
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "memory":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20),) * 2)
            np.zeros(1 << 30, np.uint8)
        case "raised":
            raise RuntimeError("a fault of the engine's own, as scripted")


def load_fake(document: dict[str, Any]) -> FakeEngine:
    """A `FakeEngine`, or a `FaultyEngine` where there are faults."""
    if "hints" in document:
        document["hints"] = HintSpec.model_validate(document["hints"])
    if "log" in document:
        document["log"] = Path(document["log"])
    if "faults" in document:
        return FaultyEngine(Path(document.pop("faults")), document.pop("after"), **document)
    return FakeEngine(**document)


def load_writer(document: dict[str, Any]) -> FakeGenerator:
    """A `FakeGenerator`."""
    if "log" in document:
        document["log"] = Path(document["log"])
    return FakeGenerator(**document)


def load_slowly(document: dict[str, Any]) -> FakeEngine:
    """Never comes to an end, and leaves a process of its own behind, as an engine may; their ids are in a file."""
    if not (child := os.fork()):
        time.sleep(600)
        os._exit(0)
    Path(document["pids"]).write_text(f"{os.getpid()} {child}")
    threading.Event().wait()
    raise AssertionError("nobody sets it")


def load_part(document: dict[str, Any]) -> FakeEngine | FakeGenerator:
    """What captures, or with `writes` what writes, once a file `hold` is gone; its id is in a file beside that one."""
    if (hold := document.pop("hold")) is not None:
        Path(f"{hold}.pid").write_text(str(os.getpid()))
        while Path(hold).exists():
            time.sleep(0.01)
    if (fault := document.pop("fault")) is not None:
        meet(fault)
    document["identity"] = TeacherIdentity.model_validate(document["identity"])
    if "log" in document:
        document["log"] = Path(document["log"])
    if document.pop("writes"):
        return FakeGenerator(**document)
    if document.get("hints") is not None:
        document["hints"] = HintSpec.model_validate(document["hints"])
    return FakeEngine(**document)


class MeasuredEngine(FaultyEngine):
    """Keeps metrics in the registry of its process, as vLLM does; of `requests`, one for each that there ever was."""

    def __init__(self, requests: int, **script: Any) -> None:
        super().__init__(**script)
        self._documents = Counter("vllm:num_documents", "Documents given", ["model_name"]).labels("fake")
        of_requests = Counter("vllm:of_requests", "By request", ["request"])
        for number in range(requests):
            of_requests.labels(str(number))

    def own_metrics(self) -> EngineMetrics:
        return metrics_of_process("vllm:")

    def _finish(self, task: CaptureTask, spec: CaptureSpec) -> CaptureResult:
        self._documents.inc()
        return super()._finish(task, spec)


def load_measured(document: dict[str, Any]) -> FakeEngine:
    """A `MeasuredEngine`, whose metrics are told ten times a second."""
    setattr(sys.modules["__main__"], "METRICS_SECONDS", 0.1)  # noqa: B010 - where the engine's process runs its module
    faults = Path(document.get("faults", os.devnull))
    return MeasuredEngine(document.get("requests", 0), faults=faults, after=document.get("after", 0))


class TalkativeEngine(FakeEngine):
    """Prints so many bytes with each document, in lines of a length; without any line's end where that is 0."""

    def __init__(self, size: int, line: int) -> None:
        super().__init__(max_model_len=512)
        self._says = (b"x" * (line - 1) + b"\n") * (size // line) if line else b"x" * size

    def _finish(self, task: CaptureTask, spec: CaptureSpec) -> CaptureResult:
        sys.stdout.buffer.write(self._says)
        sys.stdout.buffer.flush()
        return super()._finish(task, spec)


def load_talkative(document: dict[str, Any]) -> FakeEngine:
    """A `TalkativeEngine`."""
    return TalkativeEngine(**document)


class BabblingEngine(FakeEngine):
    """Says bytes of the test's own to the service in the middle of its work."""

    def __init__(self, says: bytes) -> None:
        super().__init__()
        self._says = says

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        for number, result in enumerate(super().capture(tasks, spec)):
            if number == 1:
                os.write(int(sys.argv[1]), self._says)
            yield result


def load_babbling(document: dict[str, Any]) -> FakeEngine:
    """A `BabblingEngine`."""
    return BabblingEngine(bytes.fromhex(document["says"]))


def load_flooding(document: dict[str, Any]) -> FakeEngine:
    """Prints a lot before it is there."""
    for _ in range(document["blocks"]):
        os.write(1, b"a line of the engine\n" * 3000)
    return FakeEngine()


def load_noting(document: dict[str, Any]) -> FakeEngine:
    """Writes a variable of its environment into a file."""
    Path(document["file"]).write_text(os.environ[document["variable"]])
    return FakeEngine()


def load_nothing(document: dict[str, Any]) -> FakeEngine:
    """Raises, or ends the process."""
    meet(document["fault"])
    raise AssertionError(f"{document['fault']} is no fault")


def fake_engine(loader: str = "load_fake", **document: Any) -> ProcessEngine:
    """What a loader of this module gives, in a process of its own."""
    return ProcessEngine(EngineProcess(f"{__name__}:{loader}", document))


def fake_writer(loader: str = "load_writer", **document: Any) -> ProcessGenerator:
    """A `FakeGenerator`, or what another loader of this module gives, in a process of its own."""
    return ProcessGenerator(EngineProcess(f"{__name__}:{loader}", document))


def engines_of(pid: int) -> list[int]:
    """Processes that a service has started, and all in their groups."""
    groups = dict[int, list[int]]()
    leaders = set[int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        groups.setdefault(int(fields[2]), []).append(number)
        if int(fields[1]) == pid:
            leaders.add(number)
    return [each for leader in leaders for each in groups.get(leader, ())]


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
