"""The recipes and templates that a service has, and what a request with one of them asks for.

Built-in recipes and templates are files beside this one, to be read and copied. An operator's folder adds to them; of
equal names the operator's wins. Files are read when they are asked for, so a change needs no restart.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, JsonValue, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from logitcask_schemas.api.generation import (
    GenerationPlan,
    GenerationRequest,
    RecipeSummary,
    StoredGeneration,
    StoredTemplate,
)
from logitcask_schemas.api.generation_steps import EmitRow, Generate, Grow, Score, Step, Verify
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.recipe_files import Recipe, Source, parse_recipe, read_text
from logitcask_services.generation.recipe_parameters import FilledEntry, fill, parameter_of

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NAME_RULE: Final = "1 to 64 small letters, digits, - or _, the first a letter or digit"
_STEP: Final[TypeAdapter[Step]] = TypeAdapter(Step)
_EMIT: Final = TypeAdapter(EmitRow)
_Entry = TypeVar("_Entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPlan:
    """What a plan comes to: no recipe, no parameter and no file is needed any more."""

    steps: list[Step]
    emit: list[EmitRow]
    templates: dict[str, StoredTemplate] = field(default_factory=dict)
    """All that the steps and emit rows name."""


class RecipeBook:
    """All recipes and templates of a service.

    Args:
        operator_folder: `NAME.yaml` are recipes, `NAME.md` templates; None: the built-in ones alone.

    Raises:
        RecipeError: There is no such folder.
    """

    def __init__(self, operator_folder: Path | None) -> None:
        if operator_folder is not None and not operator_folder.is_dir():
            raise RecipeError(f"the folder of templates and recipes, {operator_folder}, is not there; make it first")
        self._operator_folder = operator_folder

    def list(self) -> Sequence[RecipeSummary]:
        """All recipes, by name.

        Raises:
            RecipeError: A file of the operator's cannot be read as a recipe, or its name cannot be asked for.
        """
        recipes = [self._recipe(name) for name in sorted(self._files("recipes"))]
        return [
            RecipeSummary(
                name=recipe.name,
                description=recipe.description,
                lines=recipe.lines,
                parameters=recipe.parameters,
                required=list(recipe.required),
                source=recipe.source,
            )
            for recipe in recipes
        ]

    def template(self, name: str) -> StoredTemplate:
        """The text of a template as it is now, with its digest.

        Raises:
            RecipeError: There is none, or its file cannot be read.
        """
        files = self._files("templates")
        if name not in files:
            raise RecipeError(f"there is no template `{name}`; there are: {', '.join(sorted(files))}")
        path, source = files[name]
        text = read_text(path, _place("template", path, source))
        return StoredTemplate(text=text, sha256=hashlib.sha256(text.encode()).hexdigest())

    def resolve(self, request: GenerationRequest) -> StoredGeneration:
        """The request with its steps, emit rows and templates filled in, so that a changed file changes nothing.

        Raises:
            RecipeError: As `plan`.
        """
        resolved = self.plan(request)
        return StoredGeneration.model_validate(
            request.model_dump() | {"steps": resolved.steps, "emit": resolved.emit, "templates": resolved.templates}
        )

    def plan(self, plan: GenerationPlan) -> ResolvedPlan:
        """Steps, emit rows and templates of a plan. A plan with a recipe may bring its own `emit`.

        Raises:
            RecipeError: It has both a recipe and steps, or neither; the recipe, one of its parameters or a template is
                unknown, missing or wrong; a step cannot be as it is given.
        """
        if plan.recipe is not None and plan.steps is not None:
            raise RecipeError(f"both the recipe `{plan.recipe}` and `steps` are given; give one of the two")
        if plan.recipe is not None:
            steps, own_emit = self._of_recipe(plan.recipe, plan.parameters)
            emit: Sequence[EmitRow] = own_emit if plan.emit is None else plan.emit
        elif plan.steps is not None:
            if plan.parameters:
                raise RecipeError("`parameters` are those of a recipe; beside `steps` write the values into the steps")
            if not plan.emit:
                raise RecipeError(
                    "`steps` are given without `emit`: say what a row gives the corpus, in one row or more"
                )
            steps, emit = plan.steps, plan.emit
        else:
            raise RecipeError(f"give a `recipe` or `steps`; recipes: {', '.join(sorted(self._files('recipes')))}")
        if not steps:
            raise RecipeError("`steps` is empty; give at least one step")
        if not emit:
            raise RecipeError("`emit` is empty: say what a row gives the corpus, in one row or more")
        return ResolvedPlan(steps=[*steps], emit=[*emit], templates=self._templates(steps, emit))

    def _of_recipe(self, name: str, parameters: Mapping[str, JsonValue]) -> tuple[Sequence[Step], Sequence[EmitRow]]:
        recipe = self._recipe(name)
        filled = fill(recipe, parameters)
        return (
            [_checked(_STEP, entry, recipe, "steps") for entry in filled.steps],
            [_checked(_EMIT, entry, recipe, "emit") for entry in filled.emit],
        )

    def _templates(self, steps: Sequence[Step], emit: Sequence[EmitRow]) -> dict[str, StoredTemplate]:
        named = dict[str, str]()  # name to where it is first named
        for number, step in enumerate(steps):
            if isinstance(step, Generate | Score | Verify | Grow):
                named.setdefault(step.template, f"step {number} ({step.kind})")
        for number, row in enumerate(emit):
            for name in (row.prompt, row.completion_template):
                if name is not None:
                    named.setdefault(name, f"emit row {number}")
        templates = dict[str, StoredTemplate]()
        for name, where in named.items():
            try:
                templates[name] = self.template(name)
            except RecipeError as error:
                raise RecipeError(f"{where}: {error}") from error
        return templates

    # -- files -----------------------------------------------------------------------------------------------------

    def _recipe(self, name: str) -> Recipe:
        files = self._files("recipes")
        if name not in files:
            raise RecipeError(f"there is no recipe `{name}`; there are: {', '.join(sorted(files))}")
        path, source = files[name]
        place = _place("recipe", path, source)
        return parse_recipe(read_text(path, place), name=name, place=place, source=source)

    def _files(self, what: str) -> dict[str, tuple[Path, Source]]:
        """Name to file and source; `what` is recipes or templates."""
        suffix = ".yaml" if what == "recipes" else ".md"
        files = dict[str, tuple[Path, Source]]()
        for path in (_BUILT_IN / what).glob(f"*{suffix}"):
            files[path.stem] = path, "built-in"
        if self._operator_folder is None:
            return files
        try:
            entries = sorted(self._operator_folder.iterdir())
        except OSError as error:
            raise RecipeError(
                f"the folder {self._operator_folder} cannot be read: {error.strerror or error}"
            ) from error
        for path in entries:
            if path.suffix == suffix and _NAME.fullmatch(path.stem):
                files[path.stem] = path, "operator"
            elif what == "recipes" and path.suffix in (".yaml", ".yml"):
                raise RecipeError(f"recipe {path} needs another name: {_NAME_RULE}, then .yaml")
        return files  # what else is there, such as a README.md, is nobody's template


def _built_in_folder() -> Path:
    """Where the package lies. It is installed as files: wheels of this project are never run as archives."""
    folder = resources.files("logitcask_services.generation") / "built_in"
    if not isinstance(folder, Path):
        raise TypeError(
            f"the package's files must be files on disk, but are {type(folder).__name__}; install it unzipped"
        )
    return folder


_BUILT_IN: Final = _built_in_folder()


def _place(what: str, path: Path, source: Source) -> str:
    return f"built-in {what} {path.name}" if source == "built-in" else f"{what} {path}"


def _checked(adapter: TypeAdapter[_Entry], entry: FilledEntry, recipe: Recipe, part: str) -> _Entry:
    try:
        return adapter.validate_python(entry.values)
    except ValidationError as error:
        kind = entry.values.get("kind")
        where = f"{recipe.place}, `{part}` entry {entry.number}" + (f" ({kind})" if isinstance(kind, str) else "")
        sentences = [_sentence(details, entry) for details in error.errors()]
        raise RecipeError(f"{where}: {'; '.join(sentences)}") from error


def _sentence(details: ErrorDetails, entry: FilledEntry) -> str:
    """What pydantic found, with the parameter it came from."""
    path = [part for part in details["loc"] if part != entry.values.get("kind")]
    message = details["msg"].removeprefix("Value error, ")
    field_name = ".".join(str(part) for part in path)
    got = details["input"]
    shown = "" if isinstance(got, dict | BaseModel) else f", got {str(got)[:80]!r}"
    raw: JsonValue = dict(entry.raw)
    name = None
    for part in path:  # down to the `$name` that the value was, if it was one
        if isinstance(raw, dict) and isinstance(part, str):
            raw = raw.get(part)
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        name = parameter_of(raw) or name
    subject = f"`{field_name}`" if field_name else "the entry"
    return f"{subject}{f' (parameter `{name}`)' if name else ''}: {message}{shown}"
