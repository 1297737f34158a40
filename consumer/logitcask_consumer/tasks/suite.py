"""All tasks of a report, as they are and perturbed, for any number of models one after the other.

Of a perturbed task only the questions that changed are asked again; the others have the answer they had. So nothing but
a change can make a difference, not even the rounding of another batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.held_out.reading import load_reader
from logitcask_consumer.student.adapters import base_folder
from logitcask_consumer.student.checks import context_of
from logitcask_consumer.student.loading import load_config, load_tokenizer
from logitcask_consumer.tasks.perturbations import Perturbation
from logitcask_consumer.tasks.questions import TaskError
from logitcask_schemas.errors import MissingExtraError

if TYPE_CHECKING:
    from logitcask_consumer.tasks.harness import LoadedTask
    from logitcask_consumer.tasks.task_file import TaskFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a model made of a task of N questions."""

    right_N: NDArray[np.bool_]
    perturbed: dict[str, NDArray[np.bool_]]
    """Kind of perturbation -> the same of the perturbed questions."""


@dataclass(kw_only=True)
class Variant:
    """A task with the questions that a perturbation changed."""

    task: "LoadedTask | None"
    """None where it changed none."""
    changed_N: NDArray[np.bool_]


@dataclass(kw_only=True)
class SuiteTask:
    """A task and its perturbed variants."""

    file: "TaskFile"
    task: "LoadedTask"
    chance: float | None
    """Accuracy of guesses."""
    variants: dict[str, Variant] = field(default_factory=dict)
    """By kind; a kind that does not apply to the task has none."""

    @property
    def questions(self) -> int:
        """How many there are."""
        return len(self.task.eval_docs)

    def loaded(self) -> list["LoadedTask"]:
        """The task, and its variants with questions."""
        return [self.task, *(variant.task for variant in self.variants.values() if variant.task is not None)]


@dataclass(kw_only=True)
class TaskSuite:
    """Tasks that are checked and ready to be asked."""

    tasks: list[SuiteTask]
    perturbations: tuple[Perturbation, ...]
    seed: int
    batch_tokens: int
    """Tokens per forward pass."""
    _contexts: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Folder -> tokens of the longest request, and those that the model takes."""
    _answers: dict[Path, dict[str, Answers]] = field(default_factory=dict)
    """Folder -> what its model answered: in a report on several teachers every model is asked once."""

    @classmethod
    def load(
        cls,
        paths: Sequence[Path],
        perturbations: Sequence[Perturbation],
        *,
        seed: int,
        batch_tokens: int,
        run_code: bool,
    ) -> Self:
        """Read task files, or folders of them, and perturb their questions.

        Args:
            paths: YAML files, or folders with some.
            perturbations: to ask the same questions under.
            seed: of the perturbations.
            batch_tokens: tokens per forward pass.
            run_code: follow `!function` of the files.

        Raises:
            MissingExtraError: lm-evaluation-harness is not installed.
            TaskError: a file does not fit, two tasks have one name, or a task does not say what to perturb.
        """
        if find_spec("lm_eval") is None:
            raise MissingExtraError("logitcask report --tasks", "tasks", "lm_eval")
        from logitcask_consumer.tasks.harness import chance_of, load_task
        from logitcask_consumer.tasks.task_file import read_task

        files = [read_task(path, run_code=run_code) for path in _files(paths)]
        names: dict[str, Path] = {}
        for file in files:
            if file.name in names:
                raise TaskError(f"{names[file.name]} and {file.path} are both of the task {file.name}; rename one")
            names[file.name] = file.path
            if perturbations:
                _require_perturbable(file)
        loaded = [(file, load_task(file)) for file in files]
        tasks = [SuiteTask(file=file, task=task, chance=chance_of(task)) for file, task in loaded]
        for task in tasks if perturbations else []:
            if task.file.config.get("process_docs") is not None:
                raise TaskError(
                    f"{task.file.path}: process_docs may leave questions out or make others, so they cannot be paired "
                    "with perturbed ones; leave out --perturb"
                )
            task.variants = {
                perturbation.kind: _variant(task.file, perturbation, seed)
                for perturbation in perturbations
                if task.file.fields is not None and perturbation.applies_to(task.file.fields)
            }
        return cls(tasks=tasks, perturbations=tuple(perturbations), seed=seed, batch_tokens=batch_tokens)

    def require_room(self, label: str, folder: Path) -> None:
        """Refuse a model that cannot take the longest question, before any is loaded.

        Args:
            label: of the model, for messages.
            folder: of the model.

        Raises:
            TaskError: its context is too short, or its tokenizer joins a question with its answer.
            ModelError: the folder holds no model or no tokenizer.
        """
        place = folder if (folder / "config.json").is_file() else base_folder(folder)
        context = context_of(load_config(place))
        tokenizer, longest, of_task = load_tokenizer(folder), 0, ""
        for task in self.tasks:
            for loaded in task.loaded():
                if (tokens := _longest(loaded, tokenizer, label)) > longest:
                    longest, of_task = tokens, task.file.name
        if context is not None and longest > context:
            raise TaskError(
                f"{label} takes {context} tokens, but the longest question of the task {of_task} needs {longest} with "
                "its answer; leave the task out, or show fewer questions with answers (num_fewshot)"
            )
        self._contexts[folder] = (longest, longest if context is None else context)

    def answers_of(self, label: str, folder: Path, device: Any) -> dict[str, Answers]:
        """What a model answers, by name of the task; it is in memory only meanwhile.

        Args:
            label: of the model, for messages.
            folder: of the model.
            device: of torch, to compute on.

        Raises:
            TaskError: the harness cannot score what it says.
            ModelError: it cannot be loaded.
        """
        if folder not in self._answers:
            if folder not in self._contexts:
                self.require_room(label, folder)
            self._answers[folder] = self._asked(folder, device)
        return self._answers[folder]

    def _asked(self, folder: Path, device: Any) -> dict[str, Answers]:
        from logitcask_consumer.tasks.harness import ask

        longest, context = self._contexts[folder]
        loaded = [each for task in self.tasks for each in task.loaded()]
        metrics = {each.config.task: task.file.metric for task in self.tasks for each in task.loaded()}
        model = load_reader(folder, "none").to(device).eval()  # with rounded weights, where its run trains them so
        batch = max(1, self.batch_tokens // longest)
        right = ask(model, load_tokenizer(folder), loaded, metrics, batch=batch, context=context)
        answers = {}
        for task in self.tasks:
            perturbed = {}
            for kind, variant in task.variants.items():
                right_N = right[task.file.name].copy()
                if variant.task is not None:
                    right_N[variant.changed_N] = right[variant.task.config.task]
                perturbed[kind] = right_N
            answers[task.file.name] = Answers(right_N=right[task.file.name], perturbed=perturbed)
        return answers


def _files(paths: Sequence[Path]) -> list[Path]:
    """Task files, those of folders among them."""
    files = list[Path]()
    for path in paths:
        inside = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
        if not inside:
            raise TaskError(f"the folder {path} holds no task, a file NAME.yaml")
        files += inside
    return files


def _require_perturbable(file: "TaskFile") -> None:
    """Refuse a task whose questions cannot be changed, or whose examples would change with them."""
    if file.fields is None:
        raise TaskError(
            f"{file.path} does not say which columns of its data hold the question, its choices and its answer, so it "
            "cannot be perturbed: add `metadata: {fields: {question: ..., choices: ..., answer: ...}}`, or leave out "
            "--perturb"
        )
    shown = file.config.get("fewshot_config") or {}
    if file.config.get("num_fewshot") and (
        shown.get("sampler") != "first_n" or file.config.get("fewshot_split") in (None, file.asked)
    ):
        raise TaskError(
            f"{file.path} shows questions with answers that would change with --perturb: take them from a split of "
            "their own (fewshot_split) in its order (fewshot_config: {sampler: first_n}), or leave out --perturb"
        )


def _variant(file: "TaskFile", perturbation: Perturbation, seed: int) -> Variant:
    """The questions that a perturbation changes, as a task."""
    from logitcask_consumer.tasks.harness import with_questions

    assert file.fields is not None
    rows = [dict(row) for row in file.splits[file.asked]]
    changed = [perturbation.of(row, file.fields, seed=seed) for row in rows]
    changed_N = np.array([after != before for before, after in zip(rows, changed, strict=True)])
    kept = [row for row, is_changed in zip(changed, changed_N, strict=True) if is_changed]
    task = with_questions(file, f"{file.name}~{perturbation.kind}", kept) if kept else None
    return Variant(task=task, changed_N=changed_N)


def _longest(task: "LoadedTask", tokenizer: Any, label: str) -> int:
    """Tokens of the longest request that a model would have to take."""
    from logitcask_consumer.tasks.harness import requests_of

    longest = 0
    for text, rest in requests_of(task):
        before = len(tokenizer(text.rstrip())["input_ids"])  # the harness counts blanks at its end to the answer
        if isinstance(rest, str):
            whole = len(tokenizer(text + rest)["input_ids"])
            if whole <= before:
                raise TaskError(
                    f"the tokenizer of {label} makes no token of the answer {rest!r} to a question of "
                    f"{task.config.task}; see its target_delimiter"
                )
            longest = max(longest, whole - 1)
        else:
            longest = max(longest, before + int(rest.get("max_gen_toks", 256)))
    return longest
