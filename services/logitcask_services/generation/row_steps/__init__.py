"""Steps that need no teacher. All stream: rows in, rows out, one at a time, or the samples of one row together."""

from collections.abc import Sequence

from logitcask_schemas.api.generation_steps import Check, Dedupe, Keep, Parse, Vote
from logitcask_services.generation.row_steps.check import CheckStep
from logitcask_services.generation.row_steps.dedupe import DedupeStep
from logitcask_services.generation.row_steps.keep import KeepStep
from logitcask_services.generation.row_steps.parse import ParseStep
from logitcask_services.generation.row_steps.vote import VoteStep
from logitcask_services.generation.rows import RowStep

__all__ = ["compile_row_step"]


def compile_row_step(
    step: Parse | Check | Vote | Keep | Dedupe, number: int, *, sandbox: Sequence[str] | None = None
) -> RowStep:
    """The step that a document describes.

    Args:
        step: As checked by its schema.
        number: Of the step, from 0; dropped rows name it.
        sandbox: Program and arguments that run programs which are more than arithmetic; null: these are refused.

    Raises:
        ValueError: a regular expression that cannot be compiled, or a bound that is no number.
    """
    match step:
        case Parse():
            return ParseStep(step, number, sandbox=sandbox)
        case Check():
            return CheckStep(step, number)
        case Vote():
            return VoteStep(step, number)
        case Keep():
            return KeepStep(step, number)
        case Dedupe():
            return DedupeStep(step, number)
