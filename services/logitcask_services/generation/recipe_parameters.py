"""Parameters of a recipe, put into its steps.

template: $template                    the parameter's value, whatever its JSON type
when: $check                           the step (or emit row) is left out where it is null, false, 0 or empty
unless: $demonstrations                and here where it is not; a mapping within a step becomes null
equal: {case: $answer, number: number, choice: text}      one of several values, by a parameter
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.recipe_files import Recipe

_CONDITIONS: Final = ("when", "unless")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledEntry:
    """A step or emit row with all parameters put in."""

    number: int
    """In the file, from 0."""
    raw: Mapping[str, JsonValue]
    """As the file has it."""
    values: dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilledRecipe:
    """The steps and emit rows that these parameters leave."""

    steps: Sequence[FilledEntry]
    emit: Sequence[FilledEntry]


def fill(recipe: Recipe, given: Mapping[str, JsonValue]) -> FilledRecipe:
    """Put parameters into a recipe.

    Args:
        recipe: as read.
        given: parameters of the request; the others have their defaults.

    Raises:
        RecipeError: A parameter is unknown, missing or of another type than its default, or would change nothing
            because all that uses it is left out.
    """
    values = _values(recipe, given)
    filling = _Filling(recipe, values)
    filled = FilledRecipe(steps=filling.entries("steps", recipe.steps), emit=filling.entries("emit", recipe.emit))
    for name, value in given.items():
        if name not in filling.used and value != recipe.parameters[name]:
            raise RecipeError(
                f"recipe `{recipe.name}`, parameter `{name}`: it changes nothing, since the steps that use it are left "
                f"out with these parameters; see `when` and `unless` in {recipe.place}, or do not give it"
            )
    return filled


def _values(recipe: Recipe, given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    if unknown := sorted(given.keys() - recipe.parameters.keys()):
        known = ", ".join(sorted(recipe.parameters)) or "none"
        raise RecipeError(f"recipe `{recipe.name}` has no parameter `{unknown[0]}`; it has: {known}")
    if missing := [name for name in recipe.required if given.get(name) is None]:
        raise RecipeError(f"recipe `{recipe.name}` needs the parameter `{missing[0]}`, which has no default; give it")
    for name, value in given.items():
        default = recipe.parameters[name]
        if not _is_like(value, default):
            raise RecipeError(
                f"recipe `{recipe.name}`, parameter `{name}`: expected {_kind(default)} (its default is {default!r}), "
                f"got {_kind(value)}: {str(value)[:80]!r}"
            )
    return {**recipe.parameters, **given}


def _is_like(value: JsonValue, default: JsonValue) -> bool:
    """Whether a value may stand for a default. Where either is null, the steps that it goes into tell."""
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    return isinstance(value, type(default))


def _kind(value: JsonValue) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "a mapping"


class _Filling:
    """Parameters going into one recipe; notes which were used."""

    def __init__(self, recipe: Recipe, values: Mapping[str, JsonValue]) -> None:
        self.used = set[str]()
        self._recipe = recipe
        self._values = values

    def entries(self, part: str, raw: Sequence[Mapping[str, JsonValue]]) -> list[FilledEntry]:
        filled = list[FilledEntry]()
        for number, entry in enumerate(raw):
            where = f"{self._recipe.place}, `{part}` entry {number}"
            if self._stays(entry, where):
                filled.append(FilledEntry(number=number, raw=entry, values=self._mapping(entry, where)))
        if not filled:
            raise RecipeError(f"{self._recipe.place}: with these parameters no entry of `{part}` is left")
        return filled

    def _stays(self, entry: Mapping[str, JsonValue], where: str) -> bool:
        for condition in _CONDITIONS:
            if condition in entry:
                name = parameter_of(entry[condition])
                if name is None:
                    raise RecipeError(
                        f"{where}: `{condition}` must be `$name` of a parameter, got {entry[condition]!r}"
                    )
                if bool(self._parameter(name, where)) != (condition == "when"):
                    return False
        return True

    def _value(self, value: JsonValue, where: str) -> JsonValue:
        if (name := parameter_of(value)) is not None:
            return self._parameter(name, where)
        if isinstance(value, list):
            return [self._value(entry, where) for entry in value]
        if isinstance(value, dict):
            if "case" in value:
                return self._case(value, where)
            return self._mapping(value, where) if self._stays(value, where) else None
        return value

    def _mapping(self, mapping: Mapping[str, JsonValue], where: str) -> dict[str, JsonValue]:
        return {key: self._value(value, where) for key, value in mapping.items() if key not in _CONDITIONS}

    def _case(self, cases: Mapping[str, JsonValue], where: str) -> JsonValue:
        name = parameter_of(cases["case"])
        if name is None:
            raise RecipeError(f"{where}: `case` must be `$name` of a parameter, got {cases['case']!r}")
        value = self._parameter(name, where)
        others = [key for key in cases if key != "case"]
        if not isinstance(value, str) or value not in others:
            raise RecipeError(
                f"recipe `{self._recipe.name}`, parameter `{name}`: expected one of {', '.join(others)}; got {value!r}"
            )
        return self._value(cases[value], where)

    def _parameter(self, name: str, where: str) -> JsonValue:
        if name not in self._values:
            raise RecipeError(f"{where}: `${name}` is not among `parameters`; add it there with a default")
        self.used.add(name)
        return self._values[name]


def parameter_of(value: JsonValue) -> str | None:
    """The parameter that a value of a recipe stands for: the name behind `$`; None where it is a value itself."""
    if isinstance(value, str) and value.startswith("$") and value[1:].isidentifier():
        return value[1:]
    return None
