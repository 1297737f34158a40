"""The methods that rounds follow: which loss on whose text, and how much of it is the student's own."""

from dataclasses import dataclass
from typing import Final, Literal

from logitcask_consumer.losses import Objective
from logitcask_schemas.errors import OptionError

RecipeName = Literal["gkd", "minillm", "distillm", "f-distill"]


class RecipeError(OptionError, ValueError):
    """A method was asked for something that it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A method in rounds."""

    name: str
    paper: str
    loss: str | None
    """On the student's texts; None where the caller names it."""
    fixed_loss: str | None
    """On the fixed cask; None for that of the student's texts."""
    share: float
    """Of the student's texts, where there is a fixed cask; without one it is 1."""
    buffer: int = 1
    """Rounds whose texts a phase trains on."""
    adaptive: bool = False
    """Whether the share rises where the held-out loss does."""
    losses: tuple[str, ...] | None = None
    """Losses that the method may have, by name; None for any."""


RECIPES: Final[dict[str, Recipe]] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="gkd", paper="arXiv 2306.13649", loss="js:beta=0.5", fixed_loss=None, share=0.5),
        Recipe(
            name="minillm",
            paper="arXiv 2306.08543",
            loss="reverse_kl + policy_rkl",
            fixed_loss="cross_entropy",
            share=0.5,
        ),
        Recipe(
            name="distillm",
            paper="arXiv 2402.03898",
            loss="skew_reverse_kl:alpha=0.1",
            fixed_loss=None,
            share=0.0,
            buffer=3,
            adaptive=True,
        ),
        Recipe(
            name="f-distill",
            paper="arXiv 2307.15190",
            loss=None,
            fixed_loss=None,
            share=0.5,
            losses=("reverse_kl", "js", "tvd", "ghost_js", "ghost_tvd"),
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """A recipe by its name.

    Raises:
        RecipeError: there is none of this name; lists those there are.
    """
    if name not in RECIPES:
        raise RecipeError(f"there is no recipe {name!r}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]


def losses_of(recipe: Recipe, loss: str | None, fixed_loss: str | None) -> tuple[str, str]:
    """The loss on the student's texts and the one on the fixed cask.

    Args:
        recipe: the method.
        loss: in place of the recipe's own on the student's texts.
        fixed_loss: in place of the recipe's own on the fixed cask.

    Raises:
        RecipeError: the method has no such loss, or none was named for one that has none of its own.
        UnknownLossError, LossParameterError: a loss is not understood.
    """
    own = loss or recipe.loss
    if own is None:
        names = " or ".join(f"--loss {name}" for name in (recipe.losses or ())[:3])
        raise RecipeError(f"recipe {recipe.name} takes the divergence that is named: {names}")
    named = Objective.parse(own)
    if recipe.losses is not None and (
        strange := [each.name for each in named.losses if each.name not in recipe.losses]
    ):
        why = (
            "the forward KL needs the teacher's texts alone, which is `logitcask generate --recipe seqkd` and "
            "`logitcask train`"
            if strange[0].endswith("forward_kl")
            else f"its divergences on the student's texts are {', '.join(recipe.losses[:3])}"
        )
        raise RecipeError(f"recipe {recipe.name} ({recipe.paper}) has no loss {strange[0]}: {why}")
    fixed = fixed_loss or recipe.fixed_loss or own
    if Objective.parse(fixed).needs_samples:
        raise RecipeError(
            f"the loss on the fixed cask ({fixed}) needs how likely the student was to write its texts, which it did "
            "not; name another with --fixed-loss"
        )
    return own, fixed
