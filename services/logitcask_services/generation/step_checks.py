"""Whether steps fit together, found out before anything runs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from logitcask_schemas.api.generation_steps import (
    Check,
    Dedupe,
    Demonstrations,
    EmitRow,
    Generate,
    Grow,
    Keep,
    Parse,
    Score,
    Step,
    Verify,
    Vote,
)
from logitcask_services.generation.errors import RecipeError
from logitcask_services.generation.patterns import Pattern
from logitcask_services.generation.templates import PromptTemplate

GROW_VALUES: Final[Mapping[str, frozenset[str]]] = {
    "like": frozenset({"examples", "round"}),
    "evolve": frozenset({"parent", "method", "method_name", "round"}),
}
"""What a `grow` step's template sees, by the step's mode."""


def check_steps(
    steps: Sequence[Step],
    emit: Sequence[EmitRow],
    templates: Mapping[str, PromptTemplate],
    fields: Collection[str] | None,
) -> None:
    """Require that each step finds what it needs, and that what is written at the end was made.

    Args:
        steps: of the recipe, in order.
        emit: what is written at the end.
        templates: by name.
        fields: of the corpus's rows; None where they are not known, so that any might be there.

    Raises:
        RecipeError: they do not fit; the message names the step's number (from 0) and kind, and says what to do.
    """
    checker = _Checker(templates, None if fields is None else set(fields))
    for number, step in enumerate(steps):
        checker.where = f"step {number} ({step.kind})"
        checker.step(step)
    for number, row in enumerate(emit):
        checker.where = f"emit {number}"
        checker.emit(row)


@dataclass
class _Checker:
    """What is known of the rows that reach a step."""

    templates: Mapping[str, PromptTemplate]
    fields: set[str] | None
    """None: any might be there."""
    generated: set[str] = field(default_factory=set)
    """Fields that hold what the teacher wrote, with its token ids."""
    ranked: set[str] = field(default_factory=set)
    """Fields that name the best candidates of a score step."""
    is_sampled: bool = False
    """Whether there are several samples of a row."""
    where: str = ""

    def step(self, step: Step) -> None:
        match step:
            case Generate() | Verify():
                self._asks(step.template, step.demonstrations)
                if isinstance(step, Verify):
                    Pattern(step.accept, f"{self.where}: `accept`")
                self._makes(step.into, written=True)
                self.is_sampled |= step.sampling.n > 1
            case Score():
                self._score(step)
            case Parse():
                self._needs("of", step.of)
                if step.pattern is not None:
                    Pattern(step.pattern, f"{self.where}: `pattern`")
                for name in (step.into, step.rationale):
                    if name is not None:
                        self._makes(name)
            case Check():
                self._needs("of", step.of)
                self._needs("against", step.against)
            case Vote():
                self._needs("by", step.by)
                self._needs_samples("votes are among the samples of a row")
                for name in (step.into, f"{step.into}_share"):
                    self._makes(name)
            case Keep():
                self._keep(step)
            case Dedupe():
                self._needs("field", step.field)
            case Grow():
                self._grow(step)

    def emit(self, row: EmitRow) -> None:
        if row.completion is not None and row.completion not in self.generated:
            raise self._problem(
                f"`completion` is {row.completion!r}, which no generate or verify step writes; expected one of "
                f"{_listed(self.generated)}, or a `completion_template`"
            )
        for option, name in (("prompt", row.prompt), ("completion_template", row.completion_template)):
            if name is not None:
                self._fields_of(option, self._template(option, name))
        if row.completion_template is not None:
            template = self._template("completion_template", row.completion_template)
            if template.kind != "text" or template.needs_demonstrations:
                raise self._problem(
                    f"`completion_template` {template.name} should be of kind text and without demonstrations: it is "
                    "what the student says"
                )

    def _score(self, step: Score) -> None:
        self._needs("of", step.of)
        if step.candidates is None:
            self._asks(step.template, step.demonstrations)
            self._makes(step.into)
            return
        if step.demonstrations is not None:
            raise self._problem("`candidates` are shown one at a time; leave `demonstrations` out")
        if step.keep > step.candidates.k:
            raise self._problem(f"`keep` is {step.keep}, and there are {step.candidates.k} candidates; lower it")
        self._asks(step.template, step.candidates, option="candidates")
        for name in (step.into, f"{step.into}_scores"):
            self._makes(name)
        self.ranked.add(step.into)

    def _keep(self, step: Keep) -> None:
        bounds = ("finish", "min_tokens", "max_tokens", "min_mean_logprob")
        given = [name for name in bounds if getattr(step, name) is not None]
        if given and step.of not in self.generated:
            raise self._problem(
                f"`{given[0]}` is about what the teacher wrote, and no generate or verify step writes `of`, "
                f"{step.of!r}; expected one of {_listed(self.generated)}"
            )
        if step.matches is not None:
            self._needs("of", step.of)
            Pattern(step.matches, f"{self.where}: `matches`")
        for option, name in (("more", step.more), ("than", step.than)):
            if name is not None:
                self._needs(option, name)
        if step.best is not None:
            self._needs_samples("`best` is among the samples of a row")

    def _grow(self, step: Grow) -> None:
        template = self._template("template", step.template)
        if template.needs_demonstrations:
            raise self._problem(f"template {template.name} shows demonstrations; a pool's rows are `examples`")
        seen = GROW_VALUES[step.mode]
        if unknown := sorted(template.fields - seen):
            raise self._problem(
                f"template {template.name} uses {unknown}; in mode {step.mode} it sees {_listed(seen)} and nothing else"
            )
        if step.min_words > step.max_words:
            raise self._problem(f"min_words {step.min_words} is more than max_words {step.max_words}")
        self._needs("field", step.field)
        # Grown rows have these fields and no others; nothing of the steps before it reaches those behind it.
        self.fields, self.generated, self.ranked, self.is_sampled = {step.field, "round"}, set(), set(), False

    def _asks(self, name: str, shown: Demonstrations | None, *, option: str = "demonstrations") -> None:
        template = self._template("template", name)
        self._fields_of("template", template)
        # A chat's turns for each demonstration are none where there are none; a text's words around them would stay.
        if template.needs_demonstrations and shown is None and template.kind == "text":
            raise self._problem(f"template {name} shows demonstrations; say with `demonstrations` where they are")
        if shown is None:
            return
        if not template.needs_demonstrations:
            raise self._problem(f"template {name} shows no demonstrations; leave `{option}` out, or take another")
        if shown.choose == "bm25":
            self._needs(f"{option}.query", shown.query)
        if shown.choose == "field" and shown.query not in self.ranked:
            raise self._problem(
                f"`{option}.query` is {shown.query!r}; with `choose: field` it is what a score step with `candidates` "
                f"put there before: expected one of {_listed(self.ranked)}"
            )

    def _template(self, option: str, name: str) -> PromptTemplate:
        if name not in self.templates:
            raise self._problem(f"`{option}`: there is no template {name!r}; expected one of {_listed(self.templates)}")
        return self.templates[name]

    def _fields_of(self, option: str, template: PromptTemplate) -> None:
        for name in sorted(template.fields):
            self._needs(f"{option} {template.name}", name)

    def _needs(self, option: str, name: str) -> None:
        if self.fields is not None and name not in self.fields:
            raise self._problem(
                f"`{option}` needs the field {name!r}, which neither the corpus has nor a step before makes; there are "
                f"{_listed(self.fields)}"
            )

    def _needs_samples(self, why: str) -> None:
        if not self.is_sampled:
            raise self._problem(f"{why}, and no step before it writes several; set `n` above 1 in a generate step")

    def _makes(self, name: str, *, written: bool = False) -> None:
        if name in self.generated and not written:
            raise self._problem(f"it would hide {name!r}, which the teacher wrote; choose another field")
        if self.fields is not None:
            self.fields.add(name)
        self.ranked.discard(name)
        if written:
            self.generated.add(name)

    def _problem(self, message: str) -> RecipeError:
        return RecipeError(f"{self.where}: {message}")


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:32]) or "none"
