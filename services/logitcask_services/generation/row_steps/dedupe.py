"""Drop rows whose text is too like that of an earlier row that stayed."""

import json
from collections.abc import Iterator

from logitcask_schemas.api.generation_steps import Dedupe
from logitcask_services.generation.rouge_l import RougeIndex
from logitcask_services.generation.row_steps.stream import place, shown
from logitcask_services.generation.rows import Dropped, Staged


class DedupeStep:
    """Code: `duplicate`. Rows whose field is null or absent stay: there is nothing to compare.

    Values other than text are compared as JSON. Memory grows with the texts that stay: some 20 bytes a word.
    """

    def __init__(self, step: Dedupe, number: int) -> None:
        self._step = step
        self._number = number

    def apply(self, stream: Iterator[Staged]) -> Iterator[Staged]:
        """See `RowStep`."""
        index = RougeIndex(self._step.rouge_l)
        places: list[str] = []
        for staged in stream:
            value = None if isinstance(staged, Dropped) else staged.fields.get(self._step.field)
            if isinstance(staged, Dropped) or value is None:
                yield staged
                continue
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            like = index.nearest(text)
            if like is None:
                index.add(text)
                places.append(place(staged))
                yield staged
                continue
            bound = f"at most {self._step.rouge_l:g}" if self._step.rouge_l < 1 else "less than 1"
            message = (
                f"{place(staged)}: expected a ROUGE-L of {bound} with the `{self._step.field}` of every earlier row, "
                f"got {float(like.f1):.3f} with that of {places[like.number]}: {shown(value)}"
            )
            yield staged.drop(self._number, "duplicate", message)
