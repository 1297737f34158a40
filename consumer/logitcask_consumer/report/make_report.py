"""A report on held-out casks of one teacher, or of several: then one of each teacher, and a page that compares them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from logitcask_consumer.data import CaskGroup, CaskSource, open_groups
from logitcask_consumer.report.build import report_on
from logitcask_consumer.report.config import (
    ReportConfig,
    ReportError,
    check_config,
    explained_output,
    require_writable,
    with_checkpoints,
    with_folders,
)
from logitcask_consumer.report.control import Control
from logitcask_consumer.report.counted_work import Counting, uncounted
from logitcask_consumer.report.markdown import kl_by_teacher
from logitcask_consumer.report.model_card import require_cards, write_cards
from logitcask_consumer.report.page import to_page
from logitcask_consumer.report.readers import foreign_models
from logitcask_consumer.report.task_scores import load_suite
from logitcask_consumer.report.texts import require_answers
from logitcask_consumer.student.loading import folder_with_tokenizer, load_tokenizer
from logitcask_schemas.record.identity import tokenizer_fingerprint
from logitcask_schemas.terminal import counted

FORMAT: Final = {"format": "logitcask-reports", "version": 1}


def make_report(
    config: ReportConfig, *, say: Callable[[str], None] = lambda message: None, counting: Counting = uncounted
) -> dict[str, Any]:
    """Measure models on held-out casks and write report.md, .html, .json and plots; returns the document.

    Casks of several teachers, or of several capture specs, give a report each, in a folder named after the first of its
    casks. The document then has `teachers`, a list of their documents, each with its `label` and `folder`.

    Args:
        config: the report.
        say: receives messages for people.
        counting: shows how far each model is.

    Raises:
        ReportError: no model was named, two share a label, a training log is missing, the output folder cannot be
            written; a control or a model's card cannot be made.
        ContextError: a model cannot take the sequence length that was asked for.
        IdentityMismatchError: a model has its own tokenizer and no teacher was named, or another teacher's.
        NothingAlignedError: no document can be aligned with a model's own tokens.
        CaskError, ModelError: casks or models cannot be opened, or do not belong together.
        TaskError, MissingExtraError: a task cannot be asked.
    """
    config = with_checkpoints(config)
    check_config(config)
    require_writable(config.output)
    config = with_folders(config)
    require_cards(config)
    control = None if config.control is None else Control.of(config)
    if control is not None and control.label in dict(config.models):
        raise ReportError(f"the label {control.label!r} is that of the control; give the model another")
    teachers = [folder for folder in (config.teacher, *config.other_teachers) if folder is not None]
    suite = load_suite(config, teachers) if config.tasks else None
    # A weight says that several teachers are no mistake: they are not mixed here.
    groups = open_groups([CaskSource(place=place, weight=1.0) for place in config.casks], loss="")
    for group in groups if config.generate else []:
        require_answers(group.casks)
    if len(groups) == 1:
        # A single teacher is taken at its word: where it is another's, the report says so.
        of_group = _with_teacher(config, groups[0]) if config.other_teachers else config
        document = report_on(
            of_group, groups[0].casks, say, part=groups[0].label, control=control, suite=suite, counting=counting
        )
        write_cards(config, [document])
        return document
    documents, configs = (
        [],
        [
            replace(
                _with_teacher(config, group),
                casks=tuple(Path(cask.place) for cask in group.casks),
                output=config.output / group.label,
            )
            for group in groups
        ],
    )
    fingerprints = {label: tokenizer_fingerprint(load_tokenizer(folder)) for label, folder in config.models}
    for of_group, group in zip(configs, groups, strict=True):  # before anything is measured
        foreign_models(of_group, group.casks[0], fingerprints)
    for of_group, group in zip(configs, groups, strict=True):
        say(f"{group.label}: {counted(len(group.casks), 'cask')} of {group.casks[0].manifest.teacher.model}")
        document = report_on(
            of_group, group.casks, say, part=group.label, control=control, suite=suite, counting=counting
        )
        documents.append({"label": group.label, "folder": group.label, **document})
    page = {**FORMAT, "teachers": documents}
    with explained_output(config.output):
        (config.output / "report.json").write_text(json.dumps(page, indent=2) + "\n")
        text = kl_by_teacher(documents)
        (config.output / "report.md").write_text(text)
        (config.output / "report.html").write_text(to_page(text.replace("/report.md>", "/report.html>"), {}))
    write_cards(config, documents)
    return page


def _with_teacher(config: ReportConfig, group: CaskGroup) -> ReportConfig:
    """The report with the teacher, of those that were named, whose tokenizer is that of a group's casks."""
    teachers = [folder for folder in (config.teacher, *config.other_teachers) if folder is not None]
    expected = group.casks[0].manifest.teacher.tokenizer_fingerprint
    return replace(config, teacher=folder_with_tokenizer(teachers, expected), other_teachers=())
