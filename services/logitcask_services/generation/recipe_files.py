"""Recipe files: YAML that a person wrote, read as JSON values and nothing else.

description: One line.
lines: What the corpus' lines hold.  # may be left out
parameters: {name: default, ...}     # null: given by the caller, or left out
required: [name, ...]                # of the parameters; these have no default
steps: [...]                         # see logitcask_schemas.api.generation_steps
emit: [...]
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import yaml
from pydantic import JsonValue

from logitcask_services.generation.errors import RecipeError

MAX_FILE_BYTES: Final = 256 * 1024
"""Of a recipe or a template."""
_DEEPEST: Final = 32
"""Lists and mappings within one another."""
_TEXT_TAG: Final = "tag:yaml.org,2002:str"
_PARTS: Final = ("description", "lines", "parameters", "required", "steps", "emit")

Source = Literal["built-in", "operator"]
Mapping = dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe as its file has it: parameters not yet put in, steps not yet checked."""

    name: str
    place: str
    """The file, for messages."""
    source: Source
    description: str
    lines: str = ""
    """The fields of lines that it reads, in words; empty where its author does not say."""
    parameters: Mapping = field(default_factory=dict)
    """Name to default; null for those without."""
    required: tuple[str, ...] = ()
    steps: list[Mapping]
    emit: list[Mapping]


def read_text(path: Path, place: str) -> str:
    """The text of a file of at most `MAX_FILE_BYTES`, in UTF-8.

    Raises:
        RecipeError: It cannot be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{place} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise RecipeError(f"{place} is larger than {MAX_FILE_BYTES:,} bytes, the most that is read; make it shorter")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{place} is not UTF-8: byte {error.start} is {content[error.start]:#04x}") from error


def strict_yaml(text: str, place: str) -> JsonValue:
    """What YAML holds, as JSON values.

    Args:
        text: the YAML, of bounded size.
        place: where it is from, for messages.

    Raises:
        RecipeError: It is not YAML, or holds tags, aliases, keys twice, dates, or numbers that JSON does not have.
    """
    try:
        _refuse_surprises(text)
        loaded = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{place}{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that cannot be one
        raise RecipeError(f"{place}: {error}") from error
    return _json_value(loaded, place)


def parse_recipe(text: str, *, name: str, place: str, source: Source) -> Recipe:
    """The recipe in a file's text.

    Raises:
        RecipeError: A part is missing, unknown or of the wrong type.
    """
    content = strict_yaml(text, place)
    if not isinstance(content, dict):
        raise RecipeError(f"{place}: expected a mapping with {', '.join(_PARTS)}; got {_type_name(content)}")
    if unknown := sorted(content.keys() - set(_PARTS)):
        raise RecipeError(f"{place}: unknown `{unknown[0]}`; a recipe has {', '.join(_PARTS)}")
    description = content.get("description")
    if not isinstance(description, str) or not description.strip():
        raise RecipeError(f"{place}: `description` must be a text, got {_type_name(description)}; say what it makes")
    lines = content.get("lines", "")
    if not isinstance(lines, str):
        raise RecipeError(f"{place}: `lines` must be a text, got {_type_name(lines)}; say which fields lines have")
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RecipeError(f"{place}: `parameters` must be a mapping of names to defaults, got {_type_name(parameters)}")
    for parameter in parameters:
        if not parameter.isidentifier():
            raise RecipeError(f"{place}: parameter {parameter!r} must have a name of letters, digits and _")
    required = content.get("required", [])
    if not isinstance(required, list):
        raise RecipeError(f"{place}: `required` must be a list of parameters, got {_type_name(required)}")
    for entry in required:
        if not isinstance(entry, str) or entry not in parameters:
            raise RecipeError(f"{place}: `required` names {entry!r}, which is not among `parameters`; add it there")
        if parameters[entry] is not None:
            raise RecipeError(f"{place}: parameter `{entry}` is required, so its default must be null")
    return Recipe(
        name=name,
        place=place,
        source=source,
        description=" ".join(description.split()),
        lines=" ".join(lines.split()),
        parameters=parameters,
        required=tuple(str(entry) for entry in required),
        steps=_mappings(content, "steps", place),
        emit=_mappings(content, "emit", place),
    )


def _refuse_surprises(text: str) -> None:
    """Raise MarkedYAMLError for aliases, which can grow without bound, deep nesting, and keys given twice."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _surprise("aliases (*name) are not read; write the value out", event)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise _surprise(f"more than {_DEEPEST} lists and mappings within one another", event)
    nodes = [yaml.compose(text, yaml.SafeLoader)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            seen = set[str]()
            for key, value in node.value:
                if key.tag != _TEXT_TAG:
                    raise _surprise(f"a key must be a text, got {key.value!r}; put it in quotes", key)
                if key.value in seen:
                    raise _surprise(f"the key {key.value!r} is given twice", key)
                seen.add(key.value)
                nodes.append(value)


def _surprise(problem: str, at: "yaml.Event | yaml.Node") -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _mappings(content: Mapping, part: str, place: str) -> list[Mapping]:
    entries = content.get(part)
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{place}: `{part}` must be a list with at least one entry, got {_type_name(entries)}")
    mappings = list[Mapping]()
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise RecipeError(f"{place}, `{part}` entry {number}: expected a mapping, got {_type_name(entry)}")
        mappings.append(entry)
    return mappings


def _json_value(value: object, place: str) -> JsonValue:
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case list():
            return [_json_value(entry, place) for entry in value]
        case dict():
            return {str(key): _json_value(entry, place) for key, entry in value.items()}
        case _:
            raise RecipeError(f"{place}: {value} is no JSON value; put it in quotes if a text is meant")


def _type_name(value: object) -> str:
    if value is None:
        return "nothing"
    return "an empty list" if value == [] else f"a {type(value).__name__}"
