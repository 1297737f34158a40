"""Tasks put to a model by lm-evaluation-harness: which of the questions it answers rightly.

The harness makes prompts, asks and scores. Its templates are rendered in Jinja's sandbox here: in its own environment a
template can reach Python's internals, so that a task file alone could run code.
"""

import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from typing import Any, Final

import lm_eval.utils
import numpy as np
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from numpy.typing import NDArray

from logitcask_consumer.student.layer_proof import FAILURES, first_line
from logitcask_consumer.tasks.questions import TaskError, names_a_choice
from logitcask_consumer.tasks.task_file import TaskFile

# Its warnings are of what is refused here, or meant: a model that is loaded already.
logging.getLogger("lm_eval").setLevel(logging.ERROR)
_FAULTS: Final = (*FAILURES, TemplateError, SyntaxError, re.error, OSError)
"""What the harness raises where a task and its data do not go together."""


class LoadedTask(ConfigurableTask):  # type: ignore[misc]
    """A task of the harness whose data are there already."""

    def __init__(self, config: dict[str, Any], splits: dict[str, Any]) -> None:
        self._splits = splits
        # It keeps and changes what it gets.
        super().__init__(config={**deepcopy(config), "dataset_kwargs": None})
        if self.config.num_fewshot is None:
            self.set_config(key="num_fewshot", value=0)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Nothing is fetched."""
        del dataset_kwargs, kwargs
        self.dataset = self._splits


def load_task(file: TaskFile) -> LoadedTask:
    """The task, after every prompt has been made once and every answer looked up.

    Raises:
        TaskError: the harness cannot make it, a template cannot be rendered, or an answer is none of the choices.
    """
    try:
        with _quiet(), sandboxed_templates():
            task = LoadedTask(file.config, file.splits)
            requests_of(task)
            _check_answers(file, task)
    except TaskError:
        raise
    except _FAULTS as error:
        raise TaskError(f"{file.path}: lm-evaluation-harness cannot make this task: {first_line(error)}") from error
    return task


def with_questions(file: TaskFile, name: str, rows: Sequence[dict[str, Any]]) -> LoadedTask:
    """The task under another name, with other questions in its split.

    Args:
        file: of the task.
        name: of the new one.
        rows: the questions, of the same columns; at least one.
    """
    from datasets import Dataset

    dataset = Dataset.from_list(list(rows), features=file.splits[file.asked].features)
    with _quiet(), sandboxed_templates():
        return LoadedTask({**file.config, "task": name}, {**file.splits, file.asked: dataset})


def requests_of(task: LoadedTask) -> list[tuple[str, str | dict[str, Any]]]:
    """Context and continuation, or settings of a generation, of each request of a task, in the order of questions."""
    with _quiet(), sandboxed_templates():
        task.set_fewshot_seed(0)
        task.build_all_requests()
    return [request.args for request in task.instances]


def chance_of(task: LoadedTask) -> float | None:
    """Accuracy of guesses; None where there are no choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    with sandboxed_templates():
        return float(np.mean([1 / len(task.doc_to_choice(doc)) for doc in task.eval_docs]))


def ask(
    model: Any, tokenizer: Any, tasks: Sequence[LoadedTask], metrics: dict[str, str], *, batch: int, context: int
) -> dict[str, NDArray[np.bool_]]:
    """Put tasks to a model.

    Args:
        model: a causal LM on the device it shall run on.
        tokenizer: the model's; it may be given a token for padding.
        tasks: of different names.
        metrics: name of each -> the metric by which its answers are right or wrong.
        batch: requests per forward pass.
        context: tokens that the model takes.

    Returns:
        Name of each -> whether each question was answered rightly, [N].

    Raises:
        TaskError: the harness cannot score what the model said, or scores it as neither right nor wrong.
    """
    try:
        with _quiet(), sandboxed_templates():
            reader = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch, max_length=context)
            for task in tasks:
                task.set_fewshot_seed(0)
            loaded = {"tasks": {task.config.task: task for task in tasks}}
            results = evaluate(reader, loaded, bootstrap_iters=0, log_samples=True)
    except _FAULTS as error:
        names = ", ".join(task.config.task for task in tasks)
        raise TaskError(f"lm-evaluation-harness failed at {names}: {first_line(error)}") from error
    return {name: _right(name, samples, metrics[name]) for name, samples in results["samples"].items()}


@contextmanager
def sandboxed_templates() -> Iterator[None]:
    """The harness' templates in Jinja's sandbox, with the harness' own settings and filters."""
    plain = lm_eval.utils.env
    sandbox = ImmutableSandboxedEnvironment(
        undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandbox.filters.update(plain.filters)
    lm_eval.utils.env = sandbox
    try:
        yield
    finally:
        lm_eval.utils.env = plain


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness' bars and prints among our own lines."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _right(name: str, samples: list[dict[str, Any]], metric: str) -> NDArray[np.bool_]:
    """Whether each question was answered rightly, of the first of the task's filters."""
    chosen = sorted(
        (each for each in samples if each["filter"] == samples[0]["filter"]), key=lambda each: each["doc_id"]
    )
    values_N = np.array([float(each[metric]) for each in chosen])
    if not np.isin(values_N, (0.0, 1.0)).all():
        raise TaskError(f"the task {name}: its metric {metric} has values other than 0 and 1, so no answer is right")
    right_N: NDArray[np.bool_] = values_N == 1.0
    return right_N


def _check_answers(file: TaskFile, task: LoadedTask) -> None:
    """Refuse answers that are none of the choices, which the harness would count as wrong.

    Raises:
        TaskError: there is one.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    for number, doc in enumerate(task.eval_docs):
        choices = task.doc_to_choice(doc)
        # Where a context stands before each choice, the harness takes the answer from its text.
        right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        for answer in right if isinstance(right, list) else [right]:
            if not names_a_choice(answer, choices) or len(choices) < 2:
                raise TaskError(
                    f"{file.path}: the answer {answer!r} to question {number} is none of its {len(choices)} choices"
                )
