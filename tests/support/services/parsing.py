"""Texts through a parse step."""

from typing import Any

from logitcask_schemas.api.generation_steps import Parse
from logitcask_services.generation.row_steps import compile_row_step
from logitcask_services.generation.rows import Row, Staged


def row_of(text: object, **more: Any) -> Row:
    """A row with a text of the teacher's."""
    return Row(id="a" * 64, parent="a" * 64, line=7, fields={"output": text, **more})


def parse(text: object, **options: Any) -> Staged:
    """What step 3, a parse step of these options, makes of a text; `sandbox`: the command."""
    sandbox = options.pop("sandbox", None)
    (result,) = compile_row_step(Parse(**options), 3, sandbox=sandbox).apply(iter([row_of(text)]))
    return result


def answer_of(text: object, **options: Any) -> object:
    """The answer in a text."""
    result = parse(text, **options)
    assert isinstance(result, Row), result
    return result.fields["answer"]
