"""A dataset of the Hugging Face Hub as a corpus: `logitcask submit hf://owner/name --split train --text-column text`.

Rows are streamed and written as JSON lines, so that memory stays flat and the service gets what it gets of a file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Final

import typer

from logitcask_schemas.errors import MissingExtraError
from logitcask_schemas.terminal import printable

PREFIX: Final = "hf:/"
"""Of a path: its own rules make one slash of two."""
FIELDS: Final = (
    "text",
    "messages",
    "tools",
    "prompt",
    "completion",
    "input_ids",
    "attention_mask",
    "labels",
    "context",
    "context_ids",
    "custom_id",
)
"""Columns that mean what the fields of lines mean."""
_NAME: Final = re.compile(r"hf:/{1,2}(?:datasets/)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCorpus:
    """A split of a dataset of the Hub."""

    name: str
    """`owner/name`."""
    revision: str | None
    config: str | None
    split: str
    text_column: str | None
    """The column that is the text; None: columns named as the fields of lines are taken as these."""

    def write(self, file: IO[bytes]) -> None:
        """Write its rows as JSON lines, one after another as they come.

        Raises:
            typer.BadParameter: The dataset, split or column is not there, or no column is known.
            MissingExtraError: `datasets` is not installed.
        """
        for row in self._rows():
            file.write(json.dumps(self._line(row)).encode() + b"\n")

    def _rows(self) -> Iterator[Mapping[str, object]]:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise MissingExtraError("logitcask submit hf://", "hub", "datasets") from error
        try:
            yield from datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:  # not there, no such split, cut off
            raise _refuse(f"hf://{self.name} cannot be read: {error}") from error

    def _line(self, row: Mapping[str, object]) -> dict[str, object]:
        if self.text_column is not None:
            if self.text_column not in row:
                raise _refuse(
                    f"hf://{self.name} has no column {self.text_column!r}; it has {', '.join(sorted(row))}",
                    hint="--text-column",
                )
            return {"text": row[self.text_column]}
        line = {name: row[name] for name in FIELDS if row.get(name) is not None}
        if not line.keys() - {"custom_id", "tools", "attention_mask", "labels", "context", "context_ids"}:
            raise _refuse(
                f"hf://{self.name} has none of the columns text, messages, prompt and completion, input_ids; it has "
                f"{', '.join(sorted(row))}. Name the column of the text",
                hint="--text-column",
            )
        return line


def hub_corpus(argument: str, *, config: str | None, split: str | None, text_column: str | None) -> HubCorpus | None:
    """The dataset that an argument names; None of anything else.

    Raises:
        typer.BadParameter: It names none although it begins like one, lacks its split, or options of one go elsewhere.
    """
    if not argument.startswith(PREFIX):
        if given := [name for name, value in (("--split", split), ("--config", config)) if value is not None]:
            raise _refuse("goes with hf://owner/name", hint=given[0])
        if text_column is not None:
            raise _refuse("goes with hf://owner/name", hint="--text-column")
        return None
    if (matched := _NAME.fullmatch(argument)) is None:
        raise _refuse(f"{argument}: expected hf://owner/name, or hf://owner/name@revision")
    if split is None:
        raise _refuse("missing; such as `train`", hint="--split")
    name, revision = matched.groups()
    return HubCorpus(name=name, revision=revision, config=config, split=split, text_column=text_column)


def _refuse(message: str, *, hint: str = "CORPUS") -> typer.BadParameter:
    return typer.BadParameter(printable(message), param_hint=hint)
