"""The page of a student, README.md in its folder: what it was made of, how good it is, how to load it.

Its metadata are those of the Hugging Face Hub, written by its own library.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from huggingface_hub import EvalResult, ModelCardData

from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.markdown import models_table
from logitcask_consumer.report.task_tables import task_tables
from logitcask_consumer.run_document import read_run, replace_file
from logitcask_consumer.student.adapters import ADAPTER_NAME
from logitcask_schemas.cask.exchange.hub_card import heading_name, public_name
from logitcask_schemas.terminal import counted

CARD_NAME: Final = "README.md"
CARD_MARK: Final = "<!-- Made by `logitcask report --card`, which replaces this page while this line is in it. -->"
_RESULTS: Final = {
    "kl": "KL to the teacher, nats/token",
    "perplexity": "perplexity",
    "agreement": "same top token as the teacher",
    "acceptance": "expected acceptance as a draft model",
    "greedy_acceptance": "expected acceptance of greedy drafts",
}


def require_cards(config: ReportConfig) -> None:
    """Refuse cards that cannot be made, or would replace what a person wrote; before anything is measured.

    Raises:
        ReportError: a label is unknown, its folder is not the output of a finished run, or holds another README.md.
    """
    folders = dict(config.models)
    for label in config.cards:
        if label not in folders:
            raise ReportError(f"--card {label}: there is no model of this label, only {', '.join(folders)}")
        run, path = read_run(folders[label]), folders[label] / CARD_NAME
        if run is None or run["status"] != "finished":
            raise ReportError(
                f"--card {label}: {folders[label]} is not the output of a finished `logitcask train`, so what it was "
                "trained on is not known"
            )
        if path.exists() and CARD_MARK not in path.read_text(errors="replace"):
            raise ReportError(f"--card {label}: {path} was written by somebody else; move it away")


def write_cards(config: ReportConfig, documents: Sequence[dict[str, Any]]) -> None:
    """Write the cards of a report that has been made, one document for each teacher."""
    for label in config.cards:
        folder = dict(config.models)[label]
        replace_file(folder / CARD_NAME, model_card(label, folder, documents))


def model_card(label: str, folder: Path, documents: Sequence[dict[str, Any]]) -> str:
    """The page of one model.

    Args:
        label: of the model in the documents.
        folder: the output of the run that made it.
        documents: of the report, one for each teacher.
    """
    run = read_run(folder)
    assert run is not None, "require_cards has read it"
    adapters = not (folder / "config.json").is_file() and (folder / ADAPTER_NAME).is_file()
    teachers = list(dict.fromkeys(heading_name(cask["teacher"]["model"]) for cask in run["casks"]))
    name = heading_name(folder.resolve().name)
    sections = [
        f"---\n{_metadata(name, label, run, documents, adapters=adapters)}\n---",
        CARD_MARK,
        f"# {name}",
        _what_it_is(run, teachers),
        "## Use",
        _how_to_load(adapters=adapters),
        *_needs(folder),
        "## Results",
        *(_results(label, document) for document in documents),
        *_tasks(label, documents[0]),  # the same of every teacher
        "## Training",
        _training(run),
        *(_cask(described) for described in run["casks"]),
    ]
    return "\n\n".join(sections) + "\n"


def _learns_from_teacher(run: dict[str, Any]) -> bool:
    """Whether a run's losses read anything of the teacher but the text; of several casks each may have its own loss."""
    settings = run["settings"]
    return (
        settings["loss"] != "cross_entropy"
        or settings.get("hints") is not None
        or any(":" in written.rstrip("/").rpartition("/")[2] for written in settings["casks"])
    )


def _what_it_is(run: dict[str, Any], teachers: Sequence[str]) -> str:
    """What it was trained on, and how much of the teacher was in that."""
    if not _learns_from_teacher(run):
        return (
            f"Trained with logitcask by cross-entropy alone, on documents that {' and '.join(teachers)} was recorded "
            "on: nothing of what the teacher gave to other tokens was used."
        )
    is_unbiased = all(cask["capture"]["mode"] != "topk" for cask in run["casks"])
    records = "sparse and unbiased records" if is_unbiased else "sparse records"
    return (
        f"A student of {' and '.join(teachers)}, distilled with logitcask from {records} of the distribution "
        "that it gave to every next token."
    )


def _metadata(
    name: str, label: str, run: dict[str, Any], documents: Sequence[dict[str, Any]], *, adapters: bool
) -> str:
    """YAML of the Hub: where the student comes from, and its figures."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="logitcask",
            dataset_name=_documents_name(model, document),
            dataset_config=document.get("label"),  # the library joins results of one type and config
            metric_type=metric,
            metric_name=_RESULTS[metric],
            metric_value=model["metrics"][metric]["value"],
        )
        for document in documents
        for model in document["models"]
        if model["label"] == label
        for metric in _RESULTS
        if metric in model["metrics"] and document["kinds"][metric] in ("exact", "unbiased")  # a bound is no result
    ]
    results += [
        EvalResult(
            task_type="text-generation",
            dataset_type="logitcask",
            dataset_name=f"task {heading_name(name)}",
            dataset_config=heading_name(name),
            metric_type="accuracy",
            metric_name="share of right answers",
            metric_value=scores["accuracy"]["value"],
        )
        for name, scores in _model(label, documents[0]).get("tasks", {}).items()
    ]
    student = run["student"]
    data = ModelCardData(
        model_name=name,
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-generation",
        tags=["logitcask", *(["knowledge-distillation"] if _learns_from_teacher(run) else [])],
        # Only repositories of the Hub have a revision.
        base_model=student["spec"].partition("@")[0] if student.get("revision") else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _documents_name(model: dict[str, Any], document: dict[str, Any]) -> str:
    """What a model was measured on; held out is what no run is known to have trained on."""
    kind = "documents" if _history(model)["documents"] else "held-out documents"
    return f"{kind} of {heading_name(document['cask']['teacher']['model'])}"


def _history(model: dict[str, Any]) -> dict[str, Any]:
    """What is known of the documents that a model was trained on, see `trained_on`."""
    history: dict[str, Any] = model.get("trained_on", {"documents": 0, "unread": [], "chosen_by": 0})
    return history


def _needs(folder: Path) -> list[str]:
    """What else has to be installed to load it."""
    config = folder / "config.json"
    if config.is_file() and "quantization_config" in json.loads(config.read_text()):
        return ["Its weights are stored as torchao stores them: `pip install torchao` first."]
    return []


def _how_to_load(*, adapters: bool) -> str:
    kind, module = ("AutoPeftModelForCausalLM", "peft") if adapters else ("AutoModelForCausalLM", "transformers")
    return f"""```python
from {module} import {kind}
from transformers import AutoTokenizer

folder = "."  # this folder, or the repository it lies in
model = {kind}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
```"""


def _results(label: str, document: dict[str, Any]) -> str:
    cask = document["cask"]
    alone = document | {"models": [_model(label, document)]}
    said = (
        f"On {cask['positions']:,} positions of {counted(cask['documents_with_positions'], 'document')}, with "
        f"{document['confidence_level']:.0%} intervals (bootstrap over documents):"
    )
    return "\n\n".join([said, *_cautions(label, document), models_table(alone)])


def _cautions(label: str, document: dict[str, Any]) -> list[str]:
    """What a reader must know before the figures; without places of this machine, which the report's warnings name."""
    history, documents = _history(_model(label, document)), document["cask"]["documents"]
    lines = []
    if history["documents"]:
        lines.append(
            f"> **Note**: the student was trained on {history['documents']:,} of these {documents:,} documents; these "
            "figures are not those of held-out text."
        )
    if history["chosen_by"]:
        lines.append(
            f"> **Note**: the student comes of a choice among checkpoints by {history['chosen_by']:,} of these "
            f"{documents:,} documents; on other text its figures are a little worse."
        )
    if history["unread"]:
        lines.append("> **Note**: whether the student was trained on these documents could not be checked.")
    if documents == 1:
        lines.append("> **Note**: there is one document only, so no number has an interval.")
    return lines


def _tasks(label: str, document: dict[str, Any]) -> list[str]:
    """What the model, and the teacher, made of the report's tasks."""
    if "tasks" not in document:
        return []
    alone = {"models": [_model(label, document)], "tasks": document["tasks"] | {"pairs": []}}
    return task_tables(alone, "### Tasks")


def _model(label: str, document: dict[str, Any]) -> dict[str, Any]:
    """The part of a document that is about a model."""
    model: dict[str, Any] = next(model for model in document["models"] if model["label"] == label)
    return model


def _training(run: dict[str, Any]) -> str:
    settings = {name: value for name, value in run["settings"].items() if name != "casks" and value is not None}
    steps = run["result"]["steps"]
    of_step = run["result"].get("student_step", steps)
    best = "" if of_step == steps else f", the student being that after {of_step:,}, the best on held-out documents"
    return (
        f"{steps:,} steps of {run['batch_tokens']:,} tokens{best}; {run['student']['parameters']:,} "
        f"parameters; begun from `{public_name(run['student']['spec'])}`; logitcask {run['logitcask']}.\n\n"
        f"```json\n{_json(settings | {'student': public_name(run['student']['spec'])})}\n```"
    )


def _cask(described: dict[str, Any]) -> str:
    teacher = described["teacher"] | {"model": public_name(described["teacher"]["model"])}
    return (
        f"Data: {counted(described['documents'], 'document')}, {described['positions']:,} positions; identity of the "
        f"cask `{described['identity']}`. Its teacher and what was kept of it:\n\n"
        f"```json\n{_json({'teacher': teacher, 'capture': described['capture']})}\n```"
    )


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2).replace("```", "` ` `")
