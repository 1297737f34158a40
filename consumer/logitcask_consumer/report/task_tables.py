"""Tables in Markdown of the tasks of a report."""

from typing import Any

from logitcask_consumer.report.tables import cell, escaped, short_cell, signed, table
from logitcask_schemas.terminal import counted

_SHARE = "{:.1%}"


def task_tables(document: dict[str, Any], heading: str = "## Tasks") -> list[str]:
    """Accuracies of teacher and models, what perturbations cost them, and every two models compared."""
    if "tasks" not in document:
        return []
    tasks = document["tasks"]
    labels = ["teacher", *(escaped(model["label"]) for model in document["models"])]
    said = (
        f"Questions of {counted(len(tasks['sets']), 'task')}, by {tasks['harness']}: the share of right answers, with "
        "95 % score intervals over the questions of each."
    )
    lines = [
        [*_set(task), *(cell(scores["accuracy"], _SHARE) if scores else "" for scores in _columns(document, task))]
        for task in tasks["sets"]
    ]
    return [
        heading,
        said,
        table(["", "questions", "by chance", *labels], lines),
        *_drops(document, labels),
        *_pairs(document),
    ]


def task_rows(document: dict[str, Any]) -> list[list[str]]:
    """Rows for a terminal: the accuracy of teacher and models in each task."""
    if "tasks" not in document:
        return []
    return [
        [
            f"right answers of {task['name']}",
            *(short_cell(scores["accuracy"], _SHARE) if scores else "" for scores in _columns(document, task)),
        ]
        for task in document["tasks"]["sets"]
    ]


def _columns(document: dict[str, Any], task: dict[str, Any]) -> list[dict[str, Any] | None]:
    """Figures of teacher and models in a task; None of a teacher that was not asked."""
    teacher, name = document["tasks"]["teacher"], task["name"]
    return [None if teacher is None else teacher[name], *(model["tasks"][name] for model in document["models"])]


def _set(task: dict[str, Any]) -> list[str]:
    shots = f", {task['shots']} shown with answers" if task["shots"] else ""
    chance = "" if task["chance"] is None else _SHARE.format(task["chance"])
    return [f"{escaped(task['name'])} ({task['metric']}{shots})", f"{task['questions']:,}", chance]


def _drops(document: dict[str, Any], labels: list[str]) -> list[str]:
    """What perturbed questions cost."""
    tasks = document["tasks"]
    lines = [
        [
            f"{escaped(task['name'])}, {kind}",
            f"{task['changed'][kind]:,}",
            *(cell(scores["perturbed"][kind]["drop"], _SHARE) if scores else "" for scores in _columns(document, task)),
        ]
        for task in tasks["sets"]
        for kind in task["changed"]
    ]
    if not lines:
        return []
    rates = ", ".join(f"{kind} at {rate:.0%}" for kind, rate in tasks["perturbations"].items())
    said = (
        f"The same questions with changes made by rule ({rates} of the places; seed {tasks['seed']}): right answers "
        "lost, in points of all questions, paired by question. Above 0 the model answers worse."
    )
    return [said, table(["", "changed", *labels], lines)]


def _pairs(document: dict[str, Any]) -> list[str]:
    """What changes from each model to each later one."""
    tasks = document["tasks"]
    if not tasks["pairs"]:
        return []
    names = [task["name"] for task in tasks["sets"]]
    lines = [
        [
            f"{escaped(pair['from'])} → {escaped(pair['to'])}",
            *(cell(pair["difference"][name], signed(_SHARE)) for name in names),
        ]
        for pair in tasks["pairs"]
    ]
    return ["The second model less the first, paired by question:", table(["", *map(escaped, names)], lines)]
