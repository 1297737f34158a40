"""Loss on the assistant's turns of conversations."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.answer_mask import answer_mask
from logitcask_consumer.weights.spans import TokenIds, inside_spans
from logitcask_consumer.weights.turns import TurnLimits, proved_limits
from logitcask_consumer.weights.weight import Positions, RecordWeight, StoredAnswers, WeightParameterError, register

_EXPLICIT: Final = (
    'Capture them again from {"messages": ...} lines, or give both texts: '
    'assistant_only:after="TEXT BEFORE THE ASSISTANT\'S WORDS",until="TEXT THAT ENDS THE TURN"'
)


@register
@dataclass(frozen=True, kw_only=True)
class AssistantOnly(RecordWeight):
    """1 for the tokens of the assistant's turns, the end of the turn among them, 0 for all others.

    Documents that say which of their tokens are answers are believed, whatever their text looks like. In the others
    turns are looked for as tokens, from the text `after` to the next text `until`, which is trained too: the student
    must learn to stop. Both come from the tokenizer's chat template, which must prove that they give exactly the
    answers, or are given here; given ones also narrow the stored answers. A position counts by the token it predicts.
    """

    name: ClassVar[str] = "assistant_only"
    after: str = ""
    until: str = ""
    after_ids: TokenIds = field(default=(), repr=False)
    until_ids: TokenIds = field(default=(), repr=False)

    def bind(self, tokenizer: Any, answers: StoredAnswers | None = None) -> Self:
        """Find the turn's limits and tokenise them, where documents need them; see `Weight.bind`."""
        if bool(self.after) != bool(self.until):
            raise WeightParameterError(f"weight 'assistant_only' takes after and until together. {_EXPLICIT}")
        if self.after:
            limits = TurnLimits.of_texts(tokenizer, self.after, self.until)
        elif answers is not None and not answers.silent:
            return self
        else:
            try:
                limits = proved_limits(tokenizer)
            except WeightParameterError as error:
                which = f" {answers.silence}." if answers is not None else ""
                raise WeightParameterError(f"{error}.{which} {_EXPLICIT}") from error
        return replace(self, after_ids=limits.after_ids, until_ids=limits.until_ids)

    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """Whether the next token belongs to a turn of the assistant, [P]."""
        spans_L = None
        if self.after_ids:
            spans_L = inside_spans(positions.token_ids_L, positions.token_offsets_W1, self.after_ids, self.until_ids)
        return answer_mask(positions, spans_L, narrow=bool(self.after))[positions.targets_P]

    def notes(self, answers: StoredAnswers) -> list[str]:
        """What it means that some documents do not say which tokens are answers."""
        if self.after or not answers.silent:
            return []
        return [
            f"assistant_only: {answers.say:,} of {answers.documents:,} documents say which of their tokens are "
            f"answers; in the other {answers.silent:,} turns are looked for by the text around them: a document "
            "without turns, such as plain text, trains nothing, and a user's text that imitates a turn is trained too"
        ]

    def never(self, answers: StoredAnswers) -> bool:
        """Whether every document says which tokens are answers, and none are."""
        return not self.after and not answers.silent and not answers.positions

    def why_nothing(self, answers: StoredAnswers) -> str:
        """Why no document has an answer or a turn."""
        if not answers.silent and not answers.positions:
            return f"none of the {answers.documents:,} documents has an answer"
        if self.after:
            return f"no turn begins with the text {self.after!r}"
        return f"{answers.silence}, and none has a turn as the chat template writes it"
