"""Rows of a generation as the lines of a corpus, which an extraction captures.

A line holds token ids: the prompt that the student is asked with, and the completion, as it was sampled. Its positions
to record are those that predict the completion. Under the context `teacher` it also says what the teacher read in place
of the student's prompt. All else that is known of the row stands under `logitcask`, which readers of a corpus leave
alone.

Shape legend: L tokens of a line.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from logitcask_schemas.api.generation_steps import EmitRow
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.lines import MAX_CUSTOM_ID, ChatLine
from logitcask_services.corpora.token_rows import IGNORED
from logitcask_services.generation.prompting import Prompter, chat_parts
from logitcask_services.generation.rows import Dropped, Row, Written
from logitcask_services.generation.templates import PromptTemplate, RenderError


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What all rows of a generation have in common."""

    generation: str
    """Its id."""
    recipe: str | None
    corpus_sha256: str
    """Of the corpus that the rows come from, hex."""
    teacher: Mapping[str, Any]
    """Who wrote: JSON values."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a row gives: ids of the student's prompt and of the completion, and the completion's text."""

    prompt_ids: list[int]
    completion_ids: list[int]
    text: str
    written: Written | None = None


@dataclass(kw_only=True)
class Emitter:
    """Writes the lines of one corpus, in order of the rows: `emit` are the rows of a request of one suffix.

    `custom_id` is the source's, or `line-N`; with the number of the sample behind it where there are several of a row;
    with a further number where it was there before.
    """

    emit: Sequence[EmitRow]
    templates: Mapping[str, PromptTemplate]
    prompter: Prompter
    origin: Origin
    step: int
    """Number that rows which cannot be written are dropped under: one above the last step's."""
    _used: dict[str, int] = field(default_factory=dict)
    _copies: Counter[bytes] = field(default_factory=Counter)

    @property
    def num_documents(self) -> int:
        """How many different documents have been written: a cask keeps equal ones once."""
        return len(self._copies)

    def lines(self, row: Row) -> Iterator[bytes | Dropped]:
        """The lines of a row, each with its line end; or why there is none: a refused prompt, or no completion.

        Codes: those of prompts, `no_completion`, `empty_completion`, `empty_prompt`, `prompt_changes` and
        `answers_unproved`.
        """
        for emit in self.emit:
            try:
                yield self._line(row, emit)
            except RenderError as error:
                where = f"line {row.line}" if row.line else f"grown row {row.id[:12]}"
                yield row.drop(self.step, error.code, f"{where}, emit: {error}")

    def _line(self, row: Row, emit: EmitRow) -> bytes:
        said = self._written(row, emit) if emit.completion is not None else self._rendered(row, emit)
        prompt, completion = said.prompt_ids, said.completion_ids
        if not completion:
            raise RenderError("empty_completion", "the completion has no tokens; keep rows with `min_tokens: 1`")
        if not prompt:
            raise RenderError(
                "empty_prompt", "the prompt has no tokens, so nothing predicts the completion's first one"
            )
        entry: dict[str, Any] = {
            "input_ids": [*prompt, *completion],
            "labels": [*[IGNORED] * len(prompt), *completion],
            "recorded": [[len(prompt) - 1, len(prompt) + len(completion) - 1]],
            "custom_id": self._custom_id(row),
        }
        if emit.context == "teacher" and said.written is not None:
            entry |= context_of_prompts(list(said.written.prompt_ids()), prompt)
        entry["logitcask"] = {**self._provenance(row, said), "copy": self._copy_number(entry)}
        return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"

    def _written(self, row: Row, emit: EmitRow) -> _Said:
        written = row.written.get(emit.completion or "")
        if written is None:
            raise RenderError("no_completion", f"the teacher wrote no field `{emit.completion}` for the row")
        if emit.prompt is not None:
            prompt = self.prompter.prompt_ids(self.templates[emit.prompt], row.fields)
        else:
            prompt = list((written.bare_prompt_ids or written.prompt_ids)())
        return _Said(prompt, list(written.token_ids), written.text, written)

    def _rendered(self, row: Row, emit: EmitRow) -> _Said:
        assert emit.prompt is not None  # EmitRow requires both
        assert emit.completion_template is not None
        template = self.templates[emit.prompt]
        text = self.templates[emit.completion_template].text(row.fields).text
        if template.kind == "chat":
            return self._chat_answer(row, template, text)
        prompt = self.prompter.prompt_ids(template, row.fields)
        completion = self.prompter.words_ids(text, name="the completion") if text else []
        end = self.prompter.tokenizer.end_id
        if completion and end is not None:
            completion = [*completion, end]
        return _Said(prompt, completion, text)

    def _chat_answer(self, row: Row, template: PromptTemplate, text: str) -> _Said:
        """A text as the assistant's turn, with what ends it. Raises RenderError."""
        prompt = self.prompter.prompt_ids(template, row.fields)
        if not text:
            return _Said(prompt, [], text)
        parts = chat_parts(template, row.fields)
        answer = {"role": "assistant", "content": parts.prefix + text}
        line = ChatLine(messages=[*map(dict, parts.messages), answer], first_answer=len(parts.messages))
        (whole,) = self.prompter.tokenizer.chat([line])
        if isinstance(whole, LineProblem):
            raise RenderError(whole.code, f"template {template.name}: {whole.message}")
        if whole.token_ids[: len(prompt)] != prompt:
            raise RenderError(
                "prompt_changes",
                f"template {template.name}: with the answer behind it, the teacher's chat template writes the prompt "
                "in another way; use a prompt template of kind text",
            )
        if not whole.answers:
            raise RenderError(
                "answers_unproved",
                f"template {template.name}: it is not proved where the teacher's chat template ends the answer; use a "
                "prompt template of kind text",
            )
        return _Said(prompt, whole.token_ids[len(prompt) : whole.answers[-1][1]], text)

    def _copy_number(self, entry: Mapping[str, Any]) -> int:
        """How many lines before this one are the same document: what is read, and what is recorded of it."""
        read = [entry.get(name) for name in ("input_ids", "recorded", "context_ids", "context_replaces")]
        identity = hashlib.sha256(json.dumps(read).encode()).digest()[:16]
        self._copies[identity] += 1
        return self._copies[identity] - 1

    def _custom_id(self, row: Row) -> str:
        name = row.custom_id or (f"line-{row.line}" if row.line else f"row-{row.id[:12]}")
        if row.parent != row.id:
            name = f"{name}-{row.sample}"
        name = name[-(MAX_CUSTOM_ID - 16) :]
        while name in self._used:
            self._used[name] += 1
            name = f"{name}-{self._used[name]}"
        self._used[name] = 0
        return name

    def _provenance(self, row: Row, said: _Said) -> dict[str, Any]:
        decode = self.prompter.tokenizer.decode
        provenance: dict[str, Any] = {
            "generation": self.origin.generation,
            "recipe": self.origin.recipe,
            "source": {"sha256": self.origin.corpus_sha256, "line": row.line},
            "teacher": dict(self.origin.teacher),
            "row": row.id,
            "fields": {name: value for name, value in row.fields.items() if name not in row.written},
            "written": {name: _described(written) for name, written in row.written.items()},
            "checks": dict(row.checks),
            "prompt": decode(said.prompt_ids),
            "completion": said.text,
        }
        return provenance


def _described(written: Written) -> dict[str, Any]:
    return {
        "text": written.text,
        "tokens": len(written.token_ids),
        "finish": written.finish,
        "mean_logprob": written.mean_logprob,
        "sample": written.sample,
        "seed": written.seed,
        "template": f"{written.template}@{written.template_sha256}",
        "demonstrations": list(written.demonstrations),
    }


def context_of_prompts(read: Sequence[int], asked: Sequence[int]) -> dict[str, Any]:
    """What a line says about the teacher's prompt: nothing where it is the student's.

    Args:
        read: the teacher's prompt.
        asked: the student's.

    Returns:
        `context_ids` and `context_replaces` (see `corpora.lines`): the teacher reads these, then the student's prompt
        from there on. As much of the two as is alike is left to the student's, so that rows share their contexts.
    """
    if list(read) == list(asked):
        return {}
    shared, most = 0, min(len(read) - 1, len(asked))
    while shared < most and read[-1 - shared] == asked[-1 - shared]:
        shared += 1
    return {"context_ids": list(read[: len(read) - shared]), "context_replaces": len(asked) - shared}
