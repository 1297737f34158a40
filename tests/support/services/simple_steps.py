"""Steps of a generation as simple as can be: what is tested with them is around them, not in them.

`generate` asks with the template's text, `{{ field }}` replaced; `keep` with `matches` drops; other kinds pass rows on.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from logitcask_schemas.api.generation_steps import Generate, Keep, Step
from logitcask_services.engines.generator import GenerationTask
from logitcask_services.generation.compile import StepResources
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.rows import (
    Answer,
    CompiledStep,
    Dropped,
    Refusal,
    Row,
    Staged,
    Written,
    child_id,
    request_seed,
)

TEMPLATE = """---
kind: text
description: Asks.
fields: [question]
---
Q: {{ question }}
A:"""
STEPS: list[dict[str, Any]] = [
    {"kind": "generate", "template": "ask", "sampling": {"n": 2, "temperature": 1, "max_tokens": 30}},
    {"kind": "keep", "of": "output", "matches": "[05]"},
]
EMIT: list[dict[str, Any]] = [{"completion": "output"}]


class _Generate:
    def __init__(self, number: int, step: Generate, resources: StepResources) -> None:
        self._number, self._step, self._resources = number, step, resources
        self.requests_per_row = step.sampling.n

    def request(self, row: Row, number: int) -> GenerationTask | Refusal:
        text = self._resources.templates[self._step.template].text.split("---\n")[-1]
        for name in re.findall(r"{{ (\w+) }}", text):
            if name not in row.fields:
                return Refusal(code="unknown_field", message=f"the row has no field {name}")
            text = text.replace(f"{{{{ {name} }}}}", str(row.fields[name]))
        ids = self._resources.tokenizer.encode([text], special_tokens=False)[0]
        seed = request_seed(child_id(row.id, self._number, number), self._resources.job_seed)
        return GenerationTask(key=None, prompt_ids_C=np.array(ids, np.uint32), sampling=self._step.sampling, seed=seed)

    def join(self, row: Row, answers: Sequence[Answer]) -> Iterator[Staged]:
        for sample, answer in enumerate(answers):
            child = Row(
                id=child_id(row.id, self._number, sample),
                parent=row.id,
                line=row.line,
                custom_id=row.custom_id,
                fields=row.fields,
            )
            if answer.error is not None:
                yield child.drop(self._number, *answer.error)
                continue
            written = Written(
                token_ids=answer.token_ids,
                text=answer.text,
                finish=answer.finish,
                logprob=answer.logprob,
                sample=sample,
                seed=0,
                template=self._step.template,
                template_sha256="",
                prompt_ids=lambda: [],
            )
            yield Row(
                id=child.id,
                parent=row.id,
                line=row.line,
                custom_id=row.custom_id,
                fields={**row.fields, self._step.into: answer.text},
                written={self._step.into: written},
                checks={"short": len(answer.text) < 20},
            )


class _Keep:
    def __init__(self, number: int, step: Step) -> None:
        self._number, self._step = number, step

    def apply(self, stream: Iterator[Staged]) -> Iterator[Staged]:
        pattern = self._step.matches if isinstance(self._step, Keep) else None
        for row in stream:
            if isinstance(row, Dropped) or pattern is None or re.search(pattern, str(row.fields["output"])):
                yield row
            else:
                yield row.drop(self._number, "no_match", f"the text does not match {pattern}")


def compile_simply(steps: Sequence[Step], resources: StepResources) -> list[CompiledStep]:
    compiled: list[CompiledStep] = []
    for number, step in enumerate(steps):
        if isinstance(step, Generate):
            if "kind: chat" in resources.templates[step.template].text and not getattr(
                resources.tokenizer, "template", True
            ):
                raise RecipeError(f"step {number} (generate): the teacher's tokenizer has no chat template")
            compiled.append(("teacher", _Generate(number, step, resources)))
        else:
            compiled.append(("row", _Keep(number, step)))
    return compiled


class SimpleEmitter:
    """A line of question and text for each kept row, under each suffix."""

    def __init__(self, emit: Any, resources: Any, provenance: Any) -> None:
        self._suffixes = [entry.suffix for entry in emit]

    def lines(self, row: Row) -> list[tuple[str, bytes]]:
        line = {"prompt": str(row.fields["question"]), "completion": str(row.fields["output"])}
        return [(suffix, json.dumps(line).encode() + b"\n") for suffix in self._suffixes]


def use_simple_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put these steps in the place of the service's."""
    for module in ("http.generation_work", "http.generation_preview", "jobs.generation_work"):
        monkeypatch.setattr(f"logitcask_services.{module}.compile_steps", compile_simply)
    monkeypatch.setattr("logitcask_services.jobs.generation_corpora.Emitter", SimpleEmitter)
