"""Tasks of reasoning-gym through the service: reasoning that is checked, and votes, scored by reasoning-gym as well.

    pip install '.[bench]'
    .venv/teacher/bin/python bench/reasoning_tasks.py [--tasks 40] [--kinds letters]

A second set beside the rule-made word problems, made and scored by others (https://github.com/open-thought/reasoning-gym,
Apache-2.0). Kinds and sizes are the least that it makes, for a teacher of 135 million parameters; six demonstrations,
whose reasoning is made here by rule, are other tasks of the kind. Of each kind:

* recipe `cot`: share of samples that the check keeps;
* recipe `self-consistency`: share of samples that agree with the majority, right answers among single samples and among
  majorities, and what voting adds. A sample without an answer, and a question without a majority, is wrong;
* `disagreements`: answers that our check and reasoning-gym's scorer (full score, nothing less) judge differently. As a
  control, each is also judged against the next task's answer: `right answers to another task`.

Intervals are 95 % Wilson intervals of so many tasks: samples of one task are alike, so they count as one. That of what
voting adds is a bootstrap over tasks.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import reasoning_gym

sys.path.append(str(Path(__file__).resolve().parent.parent))
from demo.fetch_teacher import default_folder, fetch_model
from generation_recipes import finished, put
from logitcask_schemas.api.generation import GeneratedRow, GenerationRequest
from logitcask_schemas.model_source import find_model
from logitcask_services.cli.serve import load_teacher
from logitcask_services.generation.numbers import as_number
from logitcask_services.generation.recipes import RecipeBook
from logitcask_services.http.generated_rows import RowReaders, rows_page
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from report import Report

DEMONSTRATIONS: Final = 6
TASK_SEED, DEMONSTRATION_SEED = 1, 1_000_000
"""Far apart: reasoning-gym makes its task i from the seed plus i."""
SPARE: Final = 5
"""Times as many tasks are made as are wanted, for small ones come twice."""
Entry = Mapping[str, Any]
"""A task: `question`, `answer` and `metadata`."""


@dataclass(frozen=True, slots=True)
class TaskKind:
    """A kind of task: what reasoning-gym is told, and how one is reasoned about."""

    dataset: str
    settings: Mapping[str, Any]
    rationale: Callable[[Entry], str]


def sum_rationale(entry: Entry) -> str:
    """Step by step: `4 - 1 = 3. 3 - 7 = -4`."""
    parts = entry["metadata"]["expression"].split()
    total, steps = int(parts[0]), []
    for sign, term in zip(parts[1::2], parts[2::2], strict=True):
        reached = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total} {sign} {term} = {reached}.")
        total = reached
    return require_answer(entry, total, " ".join(steps))


def letter_rationale(entry: Entry) -> str:
    """Word by word: `hundred has 1, thousand has 1: 1 + 1 = 2`."""
    letter, words = entry["metadata"]["target_letter"], entry["metadata"]["span"]
    counts = [word.lower().count(letter.lower()) for word in words]
    said = ", ".join(f"{word} has {count}" for word, count in zip(words, counts, strict=True))
    return require_answer(entry, sum(counts), f"{said}: {' + '.join(map(str, counts))} = {sum(counts)}.")


def require_answer(entry: Entry, reached: int, rationale: str) -> str:
    """The rationale. Raises ValueError where it does not lead to the task's answer."""
    if str(reached) != entry["answer"]:
        raise ValueError(f"expected reasoning that ends in {entry['answer']}, got {rationale!r}")
    return rationale


KINDS: Final[Mapping[str, TaskKind]] = {
    "two terms": TaskKind(
        "chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, sum_rationale
    ),
    "three terms": TaskKind(
        "chain_sum", {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}, sum_rationale
    ),
    "letters": TaskKind("letter_counting", {"min_words": 2, "max_words": 3}, letter_rationale),
}


class TaskSet:
    """Tasks of a kind, no two with the same question, and demonstrations that are none of them."""

    def __init__(self, name: str, count: int) -> None:
        """Make them. Raises ValueError where reasoning-gym makes too few different ones."""
        self.kind = KINDS[name]
        make = partial(reasoning_gym.create_dataset, self.kind.dataset, **self.kind.settings)
        self._scorer: Any = make(size=SPARE * count, seed=TASK_SEED)
        self.entries: list[Entry] = list({entry["question"]: entry for entry in self._scorer}.values())[:count]
        asked = {entry["question"] for entry in self.entries}
        others = make(size=SPARE * (count + DEMONSTRATIONS), seed=DEMONSTRATION_SEED)
        shown = {entry["question"]: entry for entry in others if entry["question"] not in asked}
        self.demonstrations: list[Entry] = list(shown.values())[:DEMONSTRATIONS]
        if len(self.entries) < count or len(self.demonstrations) < DEMONSTRATIONS:
            raise ValueError(
                f"{name}: expected {count} tasks and {DEMONSTRATIONS} demonstrations, all different; got "
                f"{len(self.entries)} and {len(self.demonstrations)}; ask for fewer, or make larger ones"
            )

    def lines(self) -> list[dict[str, Any]]:
        """The corpus of questions."""
        return [line_of(entry) for entry in self.entries]

    def shown(self) -> list[dict[str, Any]]:
        """The corpus of demonstrations."""
        rationale = self.kind.rationale
        return [{**line_of(entry), "rationale": rationale(entry)} for entry in self.demonstrations]

    def is_right(self, number: int, answer: object) -> bool:
        """Whether reasoning-gym gives an answer to task `number` its full score."""
        return answer is not None and self._scorer.score_answer(answer=str(answer), entry=self.entries[number]) == 1.0

    def equals(self, number: int, answer: object) -> bool:
        """Whether it is the same number, as the step `check` compares."""
        value = as_number(answer)
        return value is not None and value == as_number(self.entries[number]["answer"])


def line_of(entry: Entry) -> dict[str, Any]:
    """Question and answer of a task."""
    return {"question": entry["question"], "answer": entry["answer"]}


def wilson(share: float, total: int) -> tuple[float, float]:
    """95 % interval of a share of so many."""
    z = 1.96
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return middle - half, middle + half


def bootstrapped(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of values [tasks], by 10,000 resamples of the tasks."""
    chosen = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.percentile(values[chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def samples_of(service: Service, row: GenerationRow, count: int) -> list[list[GeneratedRow]]:
    """By task, its samples behind the last step, those that were left out included."""
    page = rows_page(service, RowReaders(), row, step=None, after=0, limit=10**6, dropped=True)
    by_task: list[list[GeneratedRow]] = [[] for _ in range(count)]
    for sample in page.data:
        by_task[sample.line - 1].append(sample)
    return by_task


class KindReport:
    """Adds the figures of one kind to a report."""

    def __init__(self, report: Report, name: str, tasks: TaskSet) -> None:
        self._report, self._name, self._tasks = report, name, tasks

    def checked(self, samples: Sequence[Sequence[GeneratedRow]], note: str) -> None:
        """Figures of `cot`."""
        kept = [[sample.dropped is None for sample in group] for group in samples]
        self._add("cot", "kept", [np.mean(group) for group in kept], note)
        self._compare("cot", samples, [[(s.fields.get("predicted"), s.dropped is None) for s in g] for g in samples])

    def voted(self, samples: Sequence[Sequence[GeneratedRow]], note: str) -> None:
        """Figures of `self-consistency`."""
        recipe, tasks = "self-consistency", self._tasks
        kept = [np.mean([sample.dropped is None for sample in group]) for group in samples]
        answers = [[sample.fields.get("predicted") for sample in group] for group in samples]
        single = np.array([np.mean([tasks.is_right(n, a) for a in group]) for n, group in enumerate(answers)])
        majorities = [next((s.fields["majority"] for s in group if s.dropped is None), None) for group in samples]
        major = np.array([float(tasks.is_right(n, answer)) for n, answer in enumerate(majorities)])
        self._add(recipe, "kept", kept, note)
        self._add(recipe, "right single samples", single, note)
        self._add(recipe, "right majorities", major, note)
        more = major - single
        low, high = bootstrapped(more)
        self._row(recipe, "voting adds", "points", 100 * more.mean(), (low, high), note)
        self._compare(recipe, samples, [[(a, tasks.equals(n, a)) for a in g] for n, g in enumerate(answers)])

    def _compare(
        self,
        recipe: str,
        samples: Sequence[Sequence[GeneratedRow]],
        judged: Sequence[Sequence[tuple[object, bool]]],
    ) -> None:
        """Our verdict of each answer beside reasoning-gym's, and a control."""
        tasks, differing, answered, elsewhere = self._tasks, 0, 0, 0
        for number, (group, verdicts) in enumerate(zip(samples, judged, strict=True)):
            for sample, (answer, ours) in zip(group, verdicts, strict=True):
                if answer is None:
                    continue
                answered += 1
                elsewhere += tasks.is_right((number + 1) % len(samples), answer)
                if ours != tasks.is_right(number, answer):
                    differing += 1
                    expected = tasks.entries[number]["answer"]
                    print(f"judged differently: {answer!r} for {expected!r} in {sample.written['output']['text']!r}")
        note = f"of {answered} answers"
        self._report.add("disagreements", "answers", [differing], note, kind=self._name, recipe=recipe, interval="")
        share = 100 * elsewhere / max(answered, 1)
        self._report.add(
            "right answers to another task", "%", [share], note, kind=self._name, recipe=recipe, interval=""
        )

    def _add(self, recipe: str, metric: str, shares: Sequence[Any] | np.ndarray, note: str) -> None:
        mean = float(np.mean(shares))
        self._row(recipe, metric, "%", 100 * mean, wilson(mean, len(shares)), note)

    def _row(self, recipe: str, metric: str, unit: str, value: float, interval: tuple[float, float], note: str) -> None:
        said = " to ".join(f"{100 * bound:.1f}" for bound in interval)
        self._report.add(metric, unit, [value], note, kind=self._name, recipe=recipe, interval=said)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder (default: SmolLM2-135M-Instruct, fetched)")
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--tasks", type=int, default=40, help="of each kind")
    parser.add_argument("--tokens", type=int, default=64, help="written at most in a sample")
    parser.add_argument("--samples", type=int, nargs=2, default=[4, 5], help="of cot and of self-consistency")
    parser.add_argument("--quick", action="store_true", help="four tasks of one kind: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.kinds, options.tasks = options.kinds[:1], 4
    teacher = options.teacher or fetch_model("smollm2-135m", default_folder("smollm2-135m"))
    sets = {name: TaskSet(name, options.tasks) for name in options.kinds}
    recipes = {"cot": {"n": options.samples[0], "check": "answer"}, "self-consistency": {"n": options.samples[1]}}
    report = Report(__file__, "torch", "reasoning-gym")
    with tempfile.TemporaryDirectory() as folder:
        settings = ServiceSettings(
            teacher=teacher, cask_root=Path(folder), engine=options.engine, dtype="float32", max_model_len=1024
        )
        source = find_model(teacher)
        service = Service(settings, lambda role: load_teacher(settings, source, role))
        started = {}
        for name, tasks in sets.items():
            questions, shown = put(service, tasks.lines()), put(service, tasks.shown())
            for recipe, parameters in recipes.items():
                parameters = {**parameters, "demonstrations": shown, "max_tokens": options.tokens}
                request = GenerationRequest.model_validate(
                    {"corpus_id": questions, "recipe": recipe, "parameters": parameters}
                )
                started[name, recipe] = service.generations.create(RecipeBook(None).resolve(request), None)[0].id
        service.start()
        try:
            for (name, recipe), identity in started.items():
                began = time.monotonic()
                row = finished(service, identity)
                print(f"{name}, {recipe}: {row.status} after {time.monotonic() - began:.0f} s; {row.rows}", flush=True)
                if row.status != "completed" and (row.error or {}).get("code") != "nothing_kept":
                    raise RuntimeError(f"expected a generation that completes, got {row.status}: {row.error}")
                samples = samples_of(service, row, options.tasks)
                note = f"{teacher.name}, {options.engine}, {options.tasks} tasks, n {recipes[recipe]['n']}"
                kind = KindReport(report, name, sets[name])
                (kind.checked if recipe == "cot" else kind.voted)(samples, note)
        finally:
            service.stop()
    if not options.quick:
        report.write()


if __name__ == "__main__":
    main()
