"""Generations for tests: requests without recipes, a generator that obeys words of its prompts, a service around it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from logitcask_schemas.api.generation import StoredGeneration, StoredTemplate
from logitcask_schemas.record.extent import IdArray
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.jobs.loaded_teacher import Role, Teacher
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from tests.support.services.fake_generator import FakeGenerator
from tests.support.services.fake_teacher import FakeEngine, FakeTokenizer

QUESTION = "---\nkind: text\ndescription: a question\nfields: [question]\n---\nQ: {{ question }}\nA:"
GENERATE = {"kind": "generate", "template": "ask", "sampling": {"n": 2, "temperature": 1.0, "max_tokens": 64}}
QUESTIONS = [{"question": f"what is {number}?", "custom_id": f"q{number}"} for number in range(150)]
FINAL = ("completed", "failed", "cancelled")


@dataclass
class ObedientGenerator(FakeGenerator):
    """A prompt with the word `poison` fails, one with `killer` kills the teacher, one with `hangs` hangs."""

    def _act_out(self, ids: IdArray) -> str | None:
        prompt = bytes(int(token) for token in ids if token < 256)
        if b"killer" in prompt:
            raise RuntimeError("killed by a request, as scripted")
        return "poisoned, as scripted" if b"poison" in prompt and not self.harmless else None


def stored_generation(corpus_id: str, **changes: Any) -> StoredGeneration:
    """Two samples of each question, all kept."""
    templates = {
        name: StoredTemplate(text=text, sha256=sha256(text.encode()).hexdigest())
        for name, text in {"ask": QUESTION, **changes.pop("templates", {})}.items()
    }
    fields: dict[str, Any] = {
        "corpus_id": corpus_id,
        "steps": [GENERATE],
        "emit": [{"completion": "output"}],
        "templates": templates,
    }
    return StoredGeneration.model_validate({**fields, **changes})


def put_corpus(service: Service, lines: Sequence[Any]) -> str:
    """The id of a corpus of these lines."""
    with service.storage.receive() as upload:
        upload.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        row, _ = service.corpora.add(upload.finish(), None, None)
    return row.id


def teacher_of(generator: FakeGenerator, loads: list[Role] | None = None) -> Callable[[Role], Teacher]:
    """Loads one role at a time, and notes which."""

    def load(role: Role) -> Teacher:
        if loads is not None:
            loads.append(role)
        tokenizer = FakeTokenizer()
        generator.closed = False
        if role == "generate":
            return Teacher(tokenizer=tokenizer, generator=generator)
        return Teacher(tokenizer=tokenizer, engine=FakeEngine(max_model_len=generator.max_model_len))

    return load


def wait_until_ended(service: Service, generation_id: str, seconds: float = 30.0) -> Any:
    """The `GenerationRow`, once it has ended; what a test finds None fails without a check of its own."""
    deadline = time.monotonic() + seconds
    while (row := service.generations.get(generation_id)).status not in FINAL:
        assert time.monotonic() < deadline, (row.status, row.waiting)
        time.sleep(0.01)
    return row


def corpus_lines(service: Service, row: GenerationRow, suffix: str = "") -> list[dict[str, Any]]:
    """The lines of a corpus that a generation wrote."""
    (made,) = (entry for entry in row.corpora or () if entry["suffix"] == suffix)
    return [json.loads(line) for line in service.storage.path(made["sha256"]).read_bytes().splitlines()]


def failures(service: Service, row: GenerationRow) -> list[tuple[int, str]]:
    """Line and code of everything that was left out."""
    return [(failure["line"], failure["code"]) for page in service.log.failures(row) for failure in page]


def start(settings: ServiceSettings, load: Callable[[Role], Teacher]) -> Service:
    """A service that runs; whoever starts it stops it."""
    service = Service(settings, load)
    service.start()
    return service


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
