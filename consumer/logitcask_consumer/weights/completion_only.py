"""Loss on the completion alone, as in prompt-completion fine-tuning."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.answer_mask import answer_mask
from logitcask_consumer.weights.spans import TokenIds, inside_spans, tokenise
from logitcask_consumer.weights.weight import Positions, RecordWeight, StoredAnswers, WeightParameterError, register


@register
@dataclass(frozen=True, kw_only=True)
class CompletionOnly(RecordWeight):
    """1 for the tokens of a document's answer, or for every token after the first occurrence of the text `after`.

    Without `after` documents must say which of their tokens are answers, as those captured from prompts and
    completions do. With it the text is tokenised by the student's tokenizer and looked for as tokens; a document
    without it is not trained, nor is what is no answer of a document that says so. A position counts by the token it
    predicts, so the first trained position is the one at the last token before the completion.
    """

    name: ClassVar[str] = "completion_only"
    after: str = ""
    after_ids: TokenIds = field(default=(), repr=False)

    def bind(self, tokenizer: Any, answers: StoredAnswers | None = None) -> Self:
        """Tokenise `after`; see `Weight.bind`."""
        if not self.after:
            if answers is not None and not answers.silent:
                return self
            which = f": {answers.silence}" if answers is not None else ""
            raise WeightParameterError(
                f"weight 'completion_only' needs after=\"TEXT\", the text before a completion{which}"
            )
        return replace(self, after_ids=tokenise(tokenizer, self.after, what="completion_only:after"))

    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """Whether the next token belongs to a completion, [P]."""
        spans_L = None
        if self.after_ids:
            spans_L = inside_spans(positions.token_ids_L, positions.token_offsets_W1, self.after_ids)
        return answer_mask(positions, spans_L, narrow=True)[positions.targets_P]

    def never(self, answers: StoredAnswers) -> bool:
        """Whether every document says which tokens are answers, and none are."""
        return not self.after and not answers.silent and not answers.positions

    def why_nothing(self, answers: StoredAnswers) -> str:
        """Why no document has a completion."""
        if not answers.silent and not answers.positions:
            return f"none of the {answers.documents:,} documents has an answer"
        return f"no document has the text {self.after!r}, or nothing behind it"
