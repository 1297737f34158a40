"""What a teacher reads before a document and the student does not: demonstrations, a system prompt, a passage.

Shape legend: L tokens of a document, C tokens of its context.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from logitcask_schemas.record.extent import Context, IdArray
from logitcask_services.corpora.line_problems import LineProblem
from logitcask_services.corpora.spans import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextTokens:
    """Tokens that stand before a document, or in place of its first ones, when the teacher reads it."""

    token_ids_C: IdArray
    replaced: int = 0
    """First tokens of the document that the teacher does not read."""

    @property
    def shift(self) -> int:
        """How much farther behind each token of the document stands for the teacher."""
        return len(self.token_ids_C) - self.replaced

    @property
    def first_position(self) -> int:
        """The document's first position whose next token the teacher reads in the same place as the student."""
        return max(self.replaced - 1, 0)

    def identity(self) -> Context:
        """The context as a cask names it."""
        return Context.of(self.token_ids_C, self.replaced)


def context_of(read: Sequence[int], token_ids: Sequence[int]) -> ContextTokens:
    """The context of a document, from all that the teacher reads.

    Both end alike: with the document's tokens from some token on, as early a one as possible. What the teacher reads
    before them is the context, so a beginning that a tokenizer or template writes once need not stand there twice.

    Args:
        read: what the teacher reads, context and document.
        token_ids: the document alone, as the student reads it.

    Raises:
        LineProblem: they do not end alike, or nothing stands before the document.
    """
    shared = min(len(read), len(token_ids))
    ends_R, ends_L = np.array(read[len(read) - shared :]), np.array(token_ids[len(token_ids) - shared :])
    differing = np.flatnonzero(ends_R != ends_L)
    if len(differing):
        shared -= int(differing[-1]) + 1
    replaced = len(token_ids) - shared
    if replaced >= len(token_ids):
        raise LineProblem(
            "context_changes_all",
            "with its context the line ends in other tokens than without: no position could be recorded. Does the "
            "template write the context at the end?",
        )
    if len(read) == shared:
        raise LineProblem("context_empty", "`context` gives no tokens; leave it out")
    return ContextTokens(token_ids_C=np.array(read[: len(read) - shared], dtype=np.uint32), replaced=replaced)


def require_answers_alike(
    context: ContextTokens, answers: Sequence[Span] | None, answers_read: Sequence[Span] | None
) -> None:
    """Raise LineProblem where the teacher does not read an answer as the student says it, or reads more of it.

    Args:
        context: of the document.
        answers: ranges of the document's tokens.
        answers_read: ranges of all that the teacher reads, where it is known which of that is an answer.
    """
    shifted = [(start + context.shift, stop + context.shift) for start, stop in answers or ()]
    differs = bool(shifted) and shifted[0][0] < len(context.token_ids_C)
    # Thoughts that a template shows the teacher alone belong to an answer, and are no context.
    differs = differs or bool(shifted and answers_read and shifted != list(answers_read))
    if differs:
        raise LineProblem(
            "context_changes_answers",
            "with its context the line's answers have other tokens: the teacher would not have read what the student "
            "says. Does the template write thoughts, or the last turn, in another way? Give what comes before the last "
            "turn as `prompt`, take thoughts out of the messages, or leave the context out",
        )
