"""What a kept row gives the corpus that is written at the end: token ids, what is recorded, and where it comes from.

Shape legend: L tokens of a document, C tokens of what the teacher reads before it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitcask_schemas.api.generation_steps import EmitRow
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.lines import MAX_CUSTOM_ID, ChatLine
from logitcask_services.corpora.token_rows import IGNORED
from logitcask_services.generation.compile import StepResources
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.prompting import chat_parts
from logitcask_services.generation.rows import Dropped, Row, Written
from logitcask_services.generation.templates import PromptTemplate, RenderError


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What all lines of one generation have in common."""

    generation_id: str
    recipe: str | None
    corpus_sha256: str
    teacher: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    teacher_ids: Sequence[int] | None
    """What the teacher reads before the completion, where that is another prompt."""
    written: Written | None


class Emitter:
    """Makes the lines of kept rows. Raises RecipeError where a template is not there."""

    def __init__(self, emit: Sequence[EmitRow], resources: StepResources, provenance: Provenance) -> None:
        self._emit = emit
        self._resources = resources
        self._provenance = provenance
        self._last: tuple[str, int] = ("", 0)

    def lines(self, row: Row) -> list[tuple[str, bytes]] | Dropped:
        """Suffix and line of each `EmitRow`, in order; a drop where one of them cannot be made."""
        made = []
        for number, emit in enumerate(self._emit):
            try:
                document = self._document(row, emit)
            except RenderError as error:
                return self._dropped(row, number, error.code, str(error))
            if not document.completion_ids:
                return self._dropped(row, number, "empty_completion", "the completion has no tokens; drop such rows")
            if not document.prompt_ids:
                return self._dropped(row, number, "empty_prompt", "the student's prompt has no tokens; give another")
            entry = self._entry(row, document)
            line = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
            made.append((emit.suffix, line))
        return made

    def _dropped(self, row: Row, number: int, code: str, message: str) -> Dropped:
        where = f"line {row.line}" if row.line else f"grown row {row.id[:12]}"
        # The step behind the last one, which has no number of its own.
        return row.drop(10_000 + number, code, f"{where}, emit row {number}: {message}")

    def _document(self, row: Row, emit: EmitRow) -> _Document:
        prompter = self._resources.prompter
        if emit.completion is None:
            assert emit.prompt is not None  # the schema says so
            assert emit.completion_template is not None
            prompt, completion = self._template(emit.prompt), self._template(emit.completion_template)
            prompt_ids, completion_ids = self._rendered(row, prompt, completion)
            return _Document(prompt_ids=prompt_ids, completion_ids=completion_ids, teacher_ids=None, written=None)
        written = row.written.get(emit.completion)
        if written is None:
            raise RenderError("unknown_field", f"the field {emit.completion!r} is no text that the teacher wrote")
        teacher_ids = written.prompt_ids()
        if emit.prompt is not None:
            prompt_ids = prompter.prompt_ids(self._template(emit.prompt), row.fields)
        else:
            prompt_ids = list(teacher_ids if written.bare_prompt_ids is None else written.bare_prompt_ids())
        differs = emit.context == "teacher" and list(teacher_ids) != prompt_ids
        return _Document(
            prompt_ids=prompt_ids,
            completion_ids=written.token_ids,
            teacher_ids=teacher_ids if differs else None,
            written=written,
        )

    def _template(self, name: str) -> PromptTemplate:
        if (template := self._resources.parsed.get(name)) is None:
            raise RecipeError(f"emit: there is no template {name!r}; there are {sorted(self._resources.parsed)}")
        return template

    def _rendered(self, row: Row, prompt: PromptTemplate, completion: PromptTemplate) -> tuple[list[int], list[int]]:
        """Prompt and completion of templates alone; the completion ends as the student shall end."""
        prompter, tokenizer = self._resources.prompter, self._resources.tokenizer
        text = completion.text(row.fields).text
        prompt_ids = prompter.prompt_ids(prompt, row.fields)
        if prompt.kind == "text":
            end = [] if tokenizer.end_id is None else [tokenizer.end_id]
            return prompt_ids, [*prompter.words_ids(text, name=f"template {completion.name}"), *end]
        parts = chat_parts(prompt, row.fields)
        messages: list[dict[str, Any]] = [
            *parts.messages,
            {"role": "assistant", "content": parts.prefix + text},
        ]
        (whole,) = tokenizer.chat([ChatLine(messages=messages, first_answer=len(messages) - 1)])
        if isinstance(whole, LineProblem):
            raise RenderError(whole.code, whole.message)
        if whole.token_ids[: len(prompt_ids)] != prompt_ids:
            raise RenderError(
                "template_differs",
                "the chat template writes the prompt in another way when an answer follows; use templates of kind text",
            )
        stop = whole.answers[-1][1] if whole.answers else len(whole.token_ids)
        return prompt_ids, whole.token_ids[len(prompt_ids) : stop]

    def _entry(self, row: Row, document: _Document) -> dict[str, Any]:
        prompt_ids, completion_ids = list(document.prompt_ids), list(document.completion_ids)
        length = len(prompt_ids) + len(completion_ids)
        entry: dict[str, Any] = {
            "input_ids": prompt_ids + completion_ids,
            "labels": [IGNORED] * len(prompt_ids) + completion_ids,
            "recorded": [[len(prompt_ids) - 1, length - 1]],
            "custom_id": self._custom_id(row, document.written),
            "logitcask": self._origin(row, document),
        }
        if document.teacher_ids is not None:
            context_ids, replaced = context_between(document.teacher_ids, prompt_ids)
            entry |= {"context_ids": context_ids, "context_replaces": replaced}
        return entry

    def _custom_id(self, row: Row, written: Written | None) -> str:
        """The source's, with a number behind it where the source gives several rows."""
        name = row.custom_id if row.custom_id is not None else (f"line-{row.line}" if row.line else row.id[:16])
        if row.parent == row.id:
            return name
        sample = f"-{written.sample}" if written is not None else f"-{row.id[:8]}"
        return name[: MAX_CUSTOM_ID - len(sample)] + sample

    def _origin(self, row: Row, document: _Document) -> dict[str, Any]:
        origin, written, tokenizer = self._provenance, document.written, self._resources.tokenizer
        about: dict[str, Any] = {
            "generation": origin.generation_id,
            "recipe": origin.recipe,
            "source": {"sha256": origin.corpus_sha256, "line": row.line},
            "row": row.id,
            "teacher": origin.teacher,
            "fields": dict(row.fields),
            "checks": dict(row.checks),
            "written": {name: _about(entry) for name, entry in row.written.items()},
            "prompt": tokenizer.decode(list(document.prompt_ids)),
            "completion": tokenizer.decode(list(document.completion_ids)),
        }
        if written is not None:
            about |= _about(written)
        return about


def context_between(teacher_ids: Sequence[int], prompt_ids: Sequence[int]) -> tuple[list[int], int]:
    """What the teacher reads in place of the first tokens of a student's prompt, and of how many.

    Both prompts end alike from some token on, as early a one as possible; one token at least is context.
    """
    shared = 0
    for theirs, ours in zip(reversed(teacher_ids), reversed(prompt_ids), strict=False):
        if theirs != ours:
            break
        shared += 1
    shared = min(shared, len(teacher_ids) - 1)
    return list(teacher_ids[: len(teacher_ids) - shared]), len(prompt_ids) - shared


def _about(written: Written) -> Mapping[str, Any]:
    return {
        "template": f"{written.template}@{written.template_sha256}",
        "demonstrations": list(written.demonstrations),
        "sample": written.sample,
        "seed": written.seed,
        "finish": written.finish,
        "tokens": len(written.token_ids),
        "mean_logprob": round(written.mean_logprob, 6),
    }
