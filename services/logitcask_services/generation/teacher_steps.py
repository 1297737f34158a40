"""Steps that ask the teacher: to write, to score, to judge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from logitcask_schemas.api.generation_steps import Generate, Sampling, Score, Verify
from logitcask_schemas.record.extent import IdArray
from logitcask_services.engines.generator import GenerationTask, ScoreTask, TeacherTask
from logitcask_services.generation.demonstrations import DemonstrationChooser
from logitcask_services.generation.patterns import Pattern
from logitcask_services.generation.prompting import Prompter, place_of
from logitcask_services.generation.rows import (
    Answer,
    Dropped,
    Refusal,
    Row,
    Staged,
    Written,
    child_id,
    request_seed,
)
from logitcask_services.generation.templates import PromptTemplate, RenderError

_NO_DEMONSTRATIONS: Final[tuple[Row, ...]] = ()


@dataclass(slots=True)
class _Latest:
    """Prompt and demonstrations of the row that was asked for last: the samples of a row share them."""

    row: Row | None = None
    prompt: "RowPrompt | Refusal | None" = None
    chosen_for: Row | None = None
    shown: tuple[Row, ...] | Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPrompt:
    """A prompt that was rendered for a row."""

    token_ids_C: IdArray
    demonstrations: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a step asks: its template and demonstrations, for one teacher."""

    step: int
    kind: str
    template: PromptTemplate
    chooser: DemonstrationChooser | None
    prompter: Prompter
    job_seed: int
    _latest: _Latest = field(default_factory=_Latest, repr=False)

    def where(self, row: Row) -> str:
        """Which row and step a message is about."""
        return place_of(row, self.step, self.kind)

    def prompt(self, row: Row, room: int) -> RowPrompt | Refusal:
        """The prompt for a row, with room for so many tokens behind it."""
        if self._latest.row is row and self._latest.prompt is not None:
            return self._latest.prompt
        shown = self.demonstrations(row)
        prompt = shown if isinstance(shown, Refusal) else self.prompt_showing(row, shown, room)
        self._latest.row, self._latest.prompt = row, prompt
        return prompt

    def demonstrations(self, row: Row) -> tuple[Row, ...] | Refusal:
        """What is shown to the teacher for a row."""
        if self.chooser is None:
            return _NO_DEMONSTRATIONS
        if self._latest.chosen_for is not row or self._latest.shown is None:
            self._latest.shown = self.chooser.choose(row, where=self.where(row))
            self._latest.chosen_for = row
        return self._latest.shown

    def prompt_showing(self, row: Row, shown: tuple[Row, ...], room: int) -> RowPrompt | Refusal:
        """The prompt with these demonstrations."""
        fields = [demonstration.fields for demonstration in shown]
        ids = self.prompter.prompt(self.template, row.fields, fields, room=room, where=self.where(row))
        return ids if isinstance(ids, Refusal) else RowPrompt(token_ids_C=ids, demonstrations=shown)

    def task(self, row: Row, number: int, sampling: Sampling) -> TeacherTask | Refusal:
        """The request for one sample; its seed is that of its own id."""
        prompt = self.prompt(row, sampling.max_tokens)
        if isinstance(prompt, Refusal):
            return prompt
        stops = tuple(dict.fromkeys((*self.template.stop, *sampling.stop)))
        return GenerationTask(
            key=(row.id, number),
            prompt_ids_C=prompt.token_ids_C,
            sampling=sampling.model_copy(update={"stop": stops}),
            seed=self.seed(row, number),
        )

    def seed(self, row: Row, number: int) -> int:
        """The seed of a sample."""
        return request_seed(child_id(row.id, self.step, number), self.job_seed)

    def written(self, row: Row, number: int, answer: Answer) -> Written:
        """What the teacher wrote for a row."""
        shown = self.demonstrations(row)
        if isinstance(shown, Refusal):
            raise RenderError(shown.code, shown.message)  # it was asked, so there were demonstrations

        def prompt_ids() -> Sequence[int]:
            return self.prompter.prompt_ids(self.template, row.fields, [entry.fields for entry in shown])

        def bare_prompt_ids() -> Sequence[int]:
            return self.prompter.prompt_ids(self.template, row.fields)

        return Written(
            token_ids=tuple(answer.token_ids),
            text=answer.text,
            finish=answer.finish,
            logprob=answer.logprob,
            sample=number,
            seed=self.seed(row, number),
            template=self.template.name,
            template_sha256=self.template.sha256,
            demonstrations=tuple(entry.id for entry in shown),
            prompt_ids=prompt_ids,
            bare_prompt_ids=bare_prompt_ids if shown else None,
        )

    def failed(self, row: Row, error: tuple[str, str]) -> Dropped:
        """The row as one whose request was refused or failed."""
        code, message = error
        where = self.where(row)
        return row.drop(self.step, code, message if message.startswith(where) else f"{where}: {message}")


@dataclass(frozen=True, kw_only=True)
class GenerateStep:
    """The teacher writes `n` texts for each row.

    With n above 1 each row becomes n, which are its samples. With n = 1 it stays the row, or the sample, that it is: a
    later vote is among the same samples.
    """

    step: Generate
    asking: Asking

    @property
    def requests_per_row(self) -> int:
        """One for each sample."""
        return self.step.sampling.n

    def request(self, row: Row, number: int) -> TeacherTask | Refusal:
        """The request for sample `number`."""
        return self.asking.task(row, number, self.step.sampling)

    def join(self, row: Row, answers: Sequence[Answer]) -> Iterator[Staged]:
        """The samples, or those that failed, in order."""
        for number, answer in enumerate(answers):
            sample = row
            if self.step.sampling.n > 1:
                sample = _sample_of(row, self.asking.step, number)
            if answer.error is not None:
                yield self.asking.failed(sample, answer.error)
            else:
                yield _with_text(sample, self.step.into, self.asking.written(row, number, answer))


@dataclass(frozen=True, kw_only=True)
class VerifyStep:
    """The teacher judges each row."""

    step: Verify
    asking: Asking
    accept: Pattern

    @property
    def requests_per_row(self) -> int:
        """One."""
        return 1

    def request(self, row: Row, number: int) -> TeacherTask | Refusal:
        """The request for the verdict."""
        return self.asking.task(row, number, self.step.sampling)

    def join(self, row: Row, answers: Sequence[Answer]) -> Iterator[Staged]:
        """The row with its verdict; `checks` say under the field's name whether it was accepted."""
        (answer,) = answers
        if answer.error is not None:
            yield self.asking.failed(row, answer.error)
            return
        accepted = self.accept.search(answer.text) is not None
        judged = _with_text(row, self.step.into, self.asking.written(row, 0, answer)).noted(self.step.into, accepted)
        if accepted or self.step.otherwise == "mark":
            yield judged
        else:
            yield judged.drop(
                self.asking.step,
                "not_accepted",
                f"{self.asking.where(row)}: the verdict {_short(answer.text)} does not match {self.step.accept!r}; set "
                "`otherwise: mark` to keep such rows",
            )


@dataclass(frozen=True, kw_only=True)
class ScoreStep:
    """The teacher scores a text of each row, or each of several demonstrations by the text's score behind it."""

    step: Score
    asking: Asking
    candidates: DemonstrationChooser | None

    @property
    def requests_per_row(self) -> int:
        """One, or one for each candidate."""
        return 1 if self.step.candidates is None else self.step.candidates.k

    def request(self, row: Row, number: int) -> TeacherTask | Refusal:
        """The request for the text's score, under candidate `number` where there are any."""
        scored = self._scored_ids(row)
        if isinstance(scored, Refusal):
            return scored
        if self.candidates is None:
            prompt = self.asking.prompt(row, len(scored))
        else:
            among = self.candidates.choose(row, where=self.asking.where(row))
            if isinstance(among, Refusal):
                return among
            prompt = self.asking.prompt_showing(row, (among[number],), len(scored))
        if isinstance(prompt, Refusal):
            return prompt
        ids_L = np.concatenate([prompt.token_ids_C, np.array(scored, dtype=np.uint32)])
        return ScoreTask(key=(row.id, number), token_ids_L=ids_L, first=len(prompt.token_ids_C))

    def _scored_ids(self, row: Row) -> Sequence[int] | Refusal:
        name, where = self.step.of, self.asking.where(row)
        if name in row.written:
            ids = row.written[name].token_ids
        else:
            text = row.fields.get(name)
            if isinstance(text, int | float) and not isinstance(text, bool):
                text = str(text)  # a corpus may have its answers as numbers; templates say them so
            if not isinstance(text, str):
                got = f"is a {type(text).__name__}" if name in row.fields else "is not there"
                there = ", ".join(sorted(row.fields)[:32]) or "no fields"
                expected = f"the field `{name}` to be scored {got}; expected a text or number"
                message = f"{where}: {expected}. The row has {there}"
                return Refusal(code="unknown_field", message=message)
            try:
                ids = self.asking.prompter.words_ids(text, name=f"the field `{name}`")
            except RenderError as error:
                return Refusal(code=error.code, message=f"{where}: {error}")
        if not ids:
            return Refusal(code="nothing_to_score", message=f"{where}: the field `{name}` has no tokens to be scored")
        return ids

    def join(self, row: Row, answers: Sequence[Answer]) -> Iterator[Staged]:
        """The row with its scores. A candidate whose request failed has the score null and is not among the best."""
        errors = [answer.error for answer in answers if answer.error is not None]
        if len(errors) == len(answers):
            yield self.asking.failed(row, errors[0])
            return
        scores = [None if answer.error else answer.logprob / answer.scored_tokens for answer in answers]
        into = self.step.into
        if self.candidates is None:
            yield row.put(into, scores[0])
            return
        among = self.candidates.choose(row, where=self.asking.where(row))
        if isinstance(among, Refusal):
            yield self.asking.failed(row, (among.code, among.message))
            return
        known = [(score, at) for at, score in enumerate(scores) if score is not None]
        best = sorted(known, key=lambda entry: (-entry[0], entry[1]))[: self.step.keep]
        yield row.put(into, [among[at].id for _, at in best]).put(f"{into}_scores", scores)


def _sample_of(row: Row, step: int, number: int) -> Row:
    return replace(row, id=child_id(row.id, step, number), parent=row.id, sample=number)


def _with_text(row: Row, into: str, written: Written) -> Row:
    return replace(row.put(into, written.text), written={**row.written, into: written})


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")
