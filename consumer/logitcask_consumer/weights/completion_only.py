"""Loss on the completion alone, as in prompt-completion fine-tuning."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.registry import register
from logitcask_consumer.weights.spans import TokenIds, inside_spans, tokenise
from logitcask_consumer.weights.weight import Positions, RecordWeight, WeightParameterError


@register
@dataclass(frozen=True, kw_only=True)
class CompletionOnly(RecordWeight):
    """1 for every token after the first occurrence of the text `after` in its document, 0 before.

    A position counts by the token it predicts, so the first trained position is the one at the last token of `after`.
    The text is tokenised by the student's tokenizer and looked for as tokens; a document without it is not trained.
    """

    name: ClassVar[str] = "completion_only"
    after: str = ""
    after_ids: TokenIds = field(default=(), repr=False)

    def bind(self, tokenizer: Any) -> Self:
        """Tokenise `after`; see `Weight.bind`."""
        if not self.after:
            raise WeightParameterError("weight 'completion_only' needs after=\"TEXT\", the text before a completion")
        return replace(self, after_ids=tokenise(tokenizer, self.after, what="completion_only:after"))

    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """See `RecordWeight.of`."""
        assert self.after_ids, "bind comes first"
        return inside_spans(positions.token_ids_L, positions.token_offsets_W1, self.after_ids)[positions.targets_P]
