"""A pool of instructions that the teacher lets grow: Self-Instruct (arXiv 2212.10560) and Evol-Instruct (2304.12244).

Each round's prompts follow from the job's seed, the round, and the pool as it stood when the round began; the pool
then takes up what the answers hold, in order of the requests. So equal answers give equal pools, in whatever order they
came.

What joins is a text of `min_words` to `max_words` words (as ROUGE-L counts them) with a letter in it, that was written
to its end, and is not too like any text of the pool, seeds included. Seeds are not compared with each other.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from logitcask_schemas.api.generation_steps import Grow
from logitcask_schemas.rouge_l import words_of
from logitcask_services.engines.generator import TeacherTask
from logitcask_services.generation.answers import find_items
from logitcask_services.generation.rouge_l import RougeIndex
from logitcask_services.generation.row_steps.stream import shown
from logitcask_services.generation.rows import Answer, Dropped, Refusal, Row, Staged, child_id

EVOLUTION_METHODS: Mapping[str, str] = {
    "constrain": "Add one more constraint or requirement.",
    "deepen": "Ask for more depth and breadth where it is shallow.",
    "concretize": "Replace general concepts by more specific ones.",
    "reason": "Ask so that several steps of reasoning are needed.",
    "complicate": "Add input that must be worked with, such as data, code or a formula.",
    "widen": "Write a quite new one of the same domain, but rarer.",
}
"""Name to what the teacher is told, after Evol-Instruct's in-depth evolving, and in-breadth evolving (`widen`)."""
IDLE_ROUNDS = 2
"""Growth ends after so many rounds in a row that brought nothing."""

RequestMaker = Callable[[Mapping[str, object], str], TeacherTask | Refusal]
"""From the values that the template sees, and the id that the text's seed is made from."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What one request shows: rows of the pool, by place in it, and for `evolve` the method's name."""

    shown: tuple[int, ...]
    method: str | None = None


class GrowingStep:
    """See `GrowStep`.

    The template sees `examples` (the fields of each) and `round`, where examples are shown; `parent` (the fields of
    one), `method` (a sentence of `EVOLUTION_METHODS`), `method_name` and `round`, where one is rewritten.
    """

    def __init__(self, step: Grow, number: int, request: RequestMaker, job_seed: int) -> None:
        """`number`: of the step, from 0.

        Raises:
            ValueError: no text could have a number of words within the bounds.
        """
        if step.min_words > step.max_words:
            raise ValueError(f"step {number}: min_words {step.min_words} is more than max_words {step.max_words}")
        self._step = step
        self._number = number
        self._request = request
        self._job_seed = job_seed

    @property
    def rounds_max(self) -> int:
        """Most rounds."""
        return self._step.rounds_max

    def begin(self, rows: Sequence[Row]) -> "InstructionPool":
        """The pool before the first round. `rows`: the seeds."""
        return InstructionPool(self._step, self._number, self._request, self._job_seed, rows)


class InstructionPool:
    """See `GrowingPool`.

    Grown rows hold `field` and `round`; the check `grown` says where they come from: {round, request, item, examples
    (ids of the rows shown)}, and `method` where a row was rewritten. Codes of what is left out: `no_field` (a seed
    without text), `seed` (`with_seeds` is false), those of failed requests, `unparsed_answer`, `unfinished`,
    `too_short`, `too_long`, `no_letter`, `duplicate`, `target_reached`.
    """

    def __init__(self, step: Grow, number: int, request: RequestMaker, job_seed: int, rows: Sequence[Row]) -> None:
        self._step = step
        self._number = number
        self._request = request
        self._index = RougeIndex(step.rouge_l)
        self._pool: list[Row] = []
        self._dropped: list[Dropped] = []
        self._idle = 0
        for row in rows:
            text = row.fields.get(step.field)
            if isinstance(text, str) and text.strip():
                self._join(row, text)
            else:
                where = f"line {row.line}" if row.line else f"row {row.id[:12]}"
                message = f"{where}: expected text in `{step.field}` of a seed, got {shown(text)}"
                self._dropped.append(row.drop(number, "no_field", message))
        self._seeds = len(self._pool)
        ids = "".join(row.id for row in self._pool)
        self._root = hashlib.sha256(f"grow/{number}/{job_seed}/{ids}".encode()).hexdigest()

    @property
    def is_full(self) -> bool:
        """Whether the target is reached, two rounds in a row brought nothing, or there is no seed to show."""
        step = self._step
        shows_rows = step.mode == "evolve" or step.seeds_per_prompt + step.own_per_prompt > 0
        no_seed = shows_rows and not self._pool
        return len(self._pool) >= step.target or self._idle >= IDLE_ROUNDS or no_seed

    def requests(self, round_number: int) -> Sequence[TeacherTask | Refusal]:
        """`prompts_per_round` prompts, each `sampling.n` times, from the pool as it is now."""
        return [
            self._request(self._values(prompt, round_number), self._request_id(round_number, number))
            for number, prompt in enumerate(self._prompts(round_number))
        ]

    def accept(self, round_number: int, answers: Sequence[Answer]) -> None:
        """Take up what the teacher answered to these requests, in order.

        Raises:
            ValueError: these are not as many as were asked for.
        """
        prompts = self._prompts(round_number)
        if len(answers) != len(prompts):
            raise ValueError(f"round {round_number} asked for {len(prompts)} answers, got {len(answers)}")
        before = len(self._pool)
        # The pool grows in here; what the prompts showed are places in it, which stay.
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            self._accept_one(round_number, number, prompt, answer)
        self._idle = 0 if len(self._pool) > before else self._idle + 1

    def result(self) -> Sequence[Staged]:
        """Seeds, where asked for, and grown rows in order of their coming; then what was left out."""
        seeds: list[Staged] = list(self._pool[: self._seeds])
        if not self._step.with_seeds:
            message = "a seed: it was shown to the teacher, and with_seeds is false"
            seeds = [row.drop(self._number, "seed", message) for row in self._pool[: self._seeds]]
        return [*seeds, *self._pool[self._seeds :], *self._dropped]

    def _join(self, row: Row, text: str) -> None:
        self._pool.append(row)
        self._index.add(text)

    def _request_id(self, round_number: int, number: int) -> str:
        return child_id(self._root, round_number, number)

    def _prompts(self, round_number: int) -> list[_Prompt]:
        """A function of the pool, the job's seed and the round alone."""
        step = self._step
        digest = hashlib.sha256(f"{self._root}/{round_number}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "big"))
        if step.mode == "evolve":
            prompts = self._evolve(generator)
        else:
            prompts = [self._examples(generator) for _ in range(step.prompts_per_round)]
        return [prompt for prompt in prompts for _ in range(step.sampling.n)]

    def _examples(self, generator: np.random.Generator) -> _Prompt:
        """Seeds and grown rows, mixed. What has not grown yet is replaced by seeds, as in Self-Instruct's program."""
        step, grown = self._step, len(self._pool) - self._seeds
        own = min(step.own_per_prompt, grown)
        seeds = min(step.seeds_per_prompt + step.own_per_prompt - own, self._seeds)
        places = generator.choice(self._seeds, seeds, replace=False).tolist() if seeds else []
        if own:
            places += (self._seeds + generator.choice(grown, own, replace=False)).tolist()
        return _Prompt(tuple(places[place] for place in generator.permutation(len(places))))

    def _evolve(self, generator: np.random.Generator) -> list[_Prompt]:
        """Each prompt another row, until all had their turn."""
        parents: list[int] = []
        while self._pool and len(parents) < self._step.prompts_per_round:
            parents += generator.permutation(len(self._pool)).tolist()
        names = list(EVOLUTION_METHODS)
        chosen = generator.integers(len(names), size=self._step.prompts_per_round).tolist()
        return [_Prompt((parent,), names[name]) for parent, name in zip(parents, chosen, strict=False)]

    def _values(self, prompt: _Prompt, round_number: int) -> dict[str, object]:
        rows = [self._pool[place] for place in prompt.shown]
        fields = [dict(row.fields) for row in rows]
        if prompt.method is None:
            return {"examples": fields, "round": round_number}
        return {
            "parent": fields[0],
            "method": EVOLUTION_METHODS[prompt.method],
            "method_name": prompt.method,
            "round": round_number,
        }

    def _accept_one(self, round_number: int, number: int, prompt: _Prompt, answer: Answer) -> None:
        request_id = self._request_id(round_number, number)
        origin: dict[str, object] = {
            "round": round_number,
            "request": number,
            "examples": [self._pool[place].id for place in prompt.shown],
        }
        if prompt.method is not None:
            origin["method"] = prompt.method

        def row(item: int, text: str | None) -> Row:
            identity = child_id(request_id, self._number, item)
            fields = {"round": round_number} if text is None else {self._step.field: text, "round": round_number}
            checks = {"grown": {**origin, "item": item}}
            return Row(id=identity, parent=identity, line=0, fields=fields, checks=checks)

        def drop(item: int, text: str | None, code: str, message: str) -> None:
            where = f"round {round_number}, request {number}, item {item + 1}"
            self._dropped.append(row(item, text).drop(self._number, code, f"{where}: {message}"))

        if answer.error is not None:
            drop(0, None, *answer.error)
            return
        texts = self._texts(answer.text)
        if not texts:
            expected = "a numbered list" if self._step.answer == "list" else "text"
            drop(0, None, "unparsed_answer", f"expected {expected}, got {shown(answer.text)}")
            return
        for item, text in enumerate(texts):
            cut = answer.finish == "length" and item == len(texts) - 1
            problem = self._problem(text)
            if cut:
                problem = "unfinished", f"expected a finished text, got one cut by max_tokens: {shown(text)}"
            if problem is None:
                self._join(row(item, text), text)
            else:
                drop(item, text, *problem)

    def _texts(self, text: str) -> list[str]:
        if self._step.answer == "text":
            return [text.strip()] if text.strip() else []
        items = find_items(text)
        return [] if items is None else items.value

    def _problem(self, text: str) -> tuple[str, str] | None:
        """Why a text cannot join the pool: code and message."""
        step, words = self._step, len(words_of(text))
        if len(self._pool) >= step.target:
            return "target_reached", f"expected {step.target} rows, got more; raise `target` to keep them"
        if words < step.min_words:
            return "too_short", f"expected at least {step.min_words} words, got {words}: {shown(text)}"
        if words > step.max_words:
            return "too_long", f"expected at most {step.max_words} words, got {words}: {shown(text)}"
        if not any(character.isalpha() for character in text):
            return "no_letter", f"expected a letter, got {shown(text)}"
        if (like := self._index.nearest(text)) is not None:
            other = self._pool[like.number]
            return "duplicate", (
                f"expected a ROUGE-L of at most {step.rouge_l:g} with the pool, got {float(like.f1):.3f}: "
                f"{shown(text)} is like row {other.id[:12]}, {shown(other.fields[step.field])}"
            )
        return None
