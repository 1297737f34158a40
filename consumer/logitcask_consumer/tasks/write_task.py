"""Questions as a task of lm-evaluation-harness: a YAML file and the JSONL files that it names, in one folder."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from logitcask_consumer.run_document import replace_file
from logitcask_consumer.tasks.questions import LEAST_QUESTIONS, LETTERS, Question, TaskError
from logitcask_schemas.cask.publication import cask_around

PROMPT: Final = "Question: {{question}}\nAnswer:"
_LETTERED: Final = (
    "Question: {{question}}\n{% for choice in choices %}{{ '" + LETTERS + "'[loop.index0] }}. {{ choice }}\n"
    "{% endfor %}Answer:"
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def write_task(
    questions: Sequence[Question],
    folder: Path,
    *,
    name: str,
    shots: int = 0,
    lettered: bool = False,
    prompt: str | None = None,
) -> Path:
    """Write NAME.yaml and NAME.jsonl, with shots NAME.shots.jsonl too; the path of the first.

    Args:
        questions: of one kind.
        folder: where; made where it is missing.
        name: of the task.
        shots: so many of the first questions stand with their answers before each of the others, and are not asked.
        lettered: the choices are listed under the question, and the answer is a letter; else it is the choice itself.
        prompt: Jinja template of the question; None for `PROMPT`, or for one that lists the choices.

    Raises:
        TaskError: the name is none, too few questions are left, letters were asked for without choices, or the folder
            lies in a cask.
    """
    if not _NAME.fullmatch(name):
        raise TaskError(f"the name of a task is of letters, digits, - and _, got {name!r}; name it with --name")
    if len(questions) - shots < LEAST_QUESTIONS:
        raise TaskError(
            f"{shots} of {len(questions)} questions are shown with their answers; at least {LEAST_QUESTIONS} must be "
            "left to ask"
        )
    choices = questions[0].choices is not None
    if lettered and (not choices or max(len(question.choices or ()) for question in questions) > len(LETTERS)):
        raise TaskError(f"letters need questions with choices, at most {len(LETTERS)}")
    if lettered and prompt is not None:
        raise TaskError("a prompt of your own lists the choices itself; leave out --letters, or --prompt")
    if (cask := cask_around(folder)) is not None:
        raise TaskError(f"--output {folder}: lies in the cask {cask}, which holds nothing else; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = {"test": f"{name}.jsonl"} | ({"train": f"{name}.shots.jsonl"} if shots else {})
    parts = {"test": questions[shots:], "train": questions[:shots]}
    for split, file in files.items():
        lines = (json.dumps(question.row(), ensure_ascii=False) for question in parts[split])
        replace_file(folder / file, "\n".join(lines) + "\n")
    template = (_LETTERED if lettered else PROMPT) if prompt is None else prompt
    document = _document(name, files, template, choices=choices, lettered=lettered, shots=shots)
    replace_file(folder / f"{name}.yaml", yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    return folder / f"{name}.yaml"


def _document(
    name: str, files: dict[str, str], prompt: str, *, choices: bool, lettered: bool, shots: int
) -> dict[str, Any]:
    """The task as lm-evaluation-harness describes one."""
    kind = _multiple_choice(lettered=lettered) if choices else _exact_match()
    shown = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}} if shots else {}
    fields = {"question": "question", "answer": "answer"} | ({"choices": "choices"} if choices else {})
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        **shown,
        "num_fewshot": shots,
        "doc_to_text": prompt,
        "doc_to_target": "answer",
        **kind,
        "metadata": {"version": 1, "fields": fields},
    }


def _multiple_choice(*, lettered: bool) -> dict[str, Any]:
    letters = "{{ " + repr(list(LETTERS)) + "[:choices | length] }}"
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": letters if lettered else "choices",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _exact_match() -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 32},
        "filter_list": [{"name": "line", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
