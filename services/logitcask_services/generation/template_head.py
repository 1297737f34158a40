"""The head of a template's file: what kind it is of, what it is for, which fields of a row it needs."""

import json
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitcask_schemas.api.generation_steps import FieldName, Sampling
from logitcask_services.generation.errors import RecipeError

Kind = Literal["text", "chat", "ids"]


class TemplateHead(BaseModel):
    """What stands between the two lines `---`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    description: str = Field(min_length=1, max_length=1000)
    stop: tuple[str, ...] = ()
    fields: tuple[FieldName, ...]


def split_head(name: str, text: str) -> tuple[TemplateHead, str, int]:
    """Head, body, and number of the body's first line. Raises RecipeError."""
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != "---":
        raise RecipeError(
            f"template {name}, line 1: {json.dumps(lines[0][:40])}; expected `---`, and the head behind it"
        )
    end = next((at for at, line in enumerate(lines[1:], start=1) if line.rstrip() == "---"), None)
    if end is None:
        raise RecipeError(f"template {name}: the head that begins in line 1 has no end; put `---` behind it")
    try:
        values = yaml.safe_load("\n".join(lines[1:end]))
        head = TemplateHead.model_validate(values if isinstance(values, dict) else {})
        Sampling(stop=head.stop)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"template {name}, lines 1 to {end + 1}: the head's `{place}`: {first['msg']}. Expected kind (text, "
            "chat or ids), description, fields, and stop where texts end what is written"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 2 if mark is not None else 1
        problem = getattr(error, "problem", None) or type(error).__name__
        raise RecipeError(f"template {name}, line {line}: the head is not YAML: {problem}") from error
    return head, "\n".join(lines[end + 1 :]), end + 2


def only_field(name: str, head: TemplateHead, body: str) -> tuple[str, ...]:
    """The field of an `ids` template. Raises RecipeError."""
    if body.strip() or len(head.fields) != 1:
        raise RecipeError(
            f"template {name}: of kind ids it has one field, which holds the token ids, and nothing behind the head; "
            f"got the fields {list(head.fields)}" + (" and a body" if body.strip() else "")
        )
    return head.fields
