"""The part of a report that comes from tasks: accuracies, what perturbations cost, every two models compared."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.cost import has_weights
from logitcask_consumer.report.counted_work import which_of
from logitcask_consumer.report.estimates import CERTAIN, difference_right, share_right
from logitcask_consumer.tasks.suite import Answers, SuiteTask, TaskSuite

TEACHER: Final = "teacher"


def load_suite(config: ReportConfig, teachers: Sequence[Path]) -> TaskSuite:
    """The tasks of a report, with room for them in every model that will be asked.

    Args:
        config: of the report, with tasks.
        teachers: folders of teachers; those with weights are asked, too.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        TaskError: a task does not fit, or a model has no room for its questions.
        ModelError: a model's folder is none.
    """
    suite = TaskSuite.load(
        config.tasks,
        config.perturb,
        seed=config.seed,
        batch_tokens=config.batch_tokens,
        run_code=config.task_code,
    )
    asked = [*((TEACHER, folder) for folder in teachers if has_weights(folder)), *config.models]
    for label, folder in asked:
        suite.require_room(label, folder)
    return suite


def add_tasks(
    document: dict[str, Any], suite: TaskSuite, config: ReportConfig, device: Any, say: Callable[[str], None]
) -> None:
    """Put the tasks to teacher and models, and what comes of it into the document.

    Args:
        document: of the report; its models are those of the config.
        suite: the tasks.
        config: of the report.
        device: of torch.
        say: receives messages for people.
    """
    teacher = config.teacher if config.teacher is not None and has_weights(config.teacher) else None
    if teacher is None:
        say("the teacher is not asked the tasks: name a folder with its weights (--teacher)")
    folders = [*([(TEACHER, teacher)] if teacher is not None else []), *config.models]
    answers = {}
    for number, (label, folder) in enumerate(folders, start=1):
        questions = f"{sum(task.questions for task in suite.tasks):,} questions{_also(suite)}"
        say(f"asking {label} {questions}{which_of(number, len(folders))}")
        answers[label, folder] = suite.answers_of(label, folder, device)
    said = [answers[model] for model in config.models]
    for described, scores in zip(document["models"], said, strict=True):
        described["tasks"] = {task.file.name: _scores(scores[task.file.name], task) for task in suite.tasks}
    document["tasks"] = {
        "harness": f"lm-evaluation-harness {version('lm_eval')}",
        "seed": suite.seed,
        "perturbations": {each.kind: each.rate for each in suite.perturbations},
        "sets": [_described(task) for task in suite.tasks],
        "teacher": None,
        "pairs": _pairs(suite, [label for label, _ in config.models], said),
    }
    if teacher is not None:
        scores = answers[TEACHER, teacher]
        document["tasks"]["teacher"] = {task.file.name: _scores(scores[task.file.name], task) for task in suite.tasks}


def _also(suite: TaskSuite) -> str:
    """How many questions are asked again with changes."""
    again = sum(int(variant.changed_N.sum()) for task in suite.tasks for variant in task.variants.values())
    return f", {again:,} of them again with changes" if again else ""


def _described(task: SuiteTask) -> dict[str, Any]:
    """What a task is, JSON."""
    return {
        "name": task.file.name,
        "questions": task.questions,
        "metric": task.file.metric,
        "shots": int(task.file.config.get("num_fewshot") or 0),
        "chance": task.chance,
        "changed": {kind: int(variant.changed_N.sum()) for kind, variant in task.variants.items()},
    }


def _scores(answers: Answers, task: SuiteTask) -> dict[str, Any]:
    """A model's figures in a task, JSON: `accuracy`, and of each perturbation `accuracy` and `drop`."""
    perturbed = {}
    for kind, right_N in answers.perturbed.items():
        is_changed = bool(task.variants[kind].changed_N.any())
        drop = difference_right(answers.right_N, right_N) if is_changed else CERTAIN
        perturbed[kind] = {"accuracy": share_right(right_N).as_dict(), "drop": drop.as_dict()}
    return {"accuracy": share_right(answers.right_N).as_dict(), "perturbed": perturbed}


def _pairs(suite: TaskSuite, labels: Sequence[str], said: Sequence[Mapping[str, Answers]]) -> list[dict[str, Any]]:
    """What changes from each model to each later one, JSON."""
    return [
        {
            "from": before,
            "to": after,
            "difference": {
                name: difference_right(last[name].right_N, first[name].right_N).as_dict()
                for name in (task.file.name for task in suite.tasks)
            },
        }
        for (before, first), (after, last) in combinations(zip(labels, said, strict=True), 2)
    ]
