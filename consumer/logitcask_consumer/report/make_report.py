"""A report on held-out casks of one teacher, or of several: then one of each teacher, and a page that compares them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from logitcask_consumer.data import CaskSource, open_groups
from logitcask_consumer.report.build import (
    ReportConfig,
    check_config,
    explained_output,
    report_on,
    require_writable,
    with_folders,
)
from logitcask_consumer.report.markdown import kl_by_teacher
from logitcask_schemas.terminal import counted

FORMAT: Final = {"format": "logitcask-reports", "version": 1}


def make_report(config: ReportConfig, *, say: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
    """Measure models on held-out casks and write report.md, report.json and plots; returns the document.

    Casks of several teachers, or of several capture specs, give a report each, in a folder named after the first of its
    casks. The document then has `teachers`, a list of their documents, each with its `label` and `folder`.

    Args:
        config: the report.
        say: receives messages for people.

    Raises:
        ReportError: no model was named, two share a label, a training log is missing, or the output folder cannot be
            written.
        ContextError: a model cannot take the sequence length that was asked for.
        IdentityMismatchError: a model has its own tokenizer and no teacher was named, or another teacher's.
        NothingAlignedError: no document can be aligned with a model's own tokens.
        CaskError, ModelError: casks or models cannot be opened, or do not belong together.
    """
    check_config(config)
    require_writable(config.output)
    config = with_folders(config)
    # A weight says that several teachers are no mistake: they are not mixed here.
    groups = open_groups([CaskSource(place=place, weight=1.0) for place in config.casks], loss="")
    if len(groups) == 1:
        return report_on(config, groups[0].casks, say)
    documents = []
    for group in groups:
        say(f"{group.label}: {counted(len(group.casks), 'cask')} of {group.casks[0].manifest.teacher.model}")
        own = replace(config, casks=tuple(Path(cask.place) for cask in group.casks), output=config.output / group.label)
        documents.append({"label": group.label, "folder": group.label, **report_on(own, group.casks, say)})
    document = {**FORMAT, "teachers": documents}
    with explained_output(config.output):
        (config.output / "report.json").write_text(json.dumps(document, indent=2) + "\n")
        (config.output / "report.md").write_text(kl_by_teacher(documents))
    return document
