"""Tokens that are not trained, wherever they stand."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_consumer.weights.spans import TokenIds
from logitcask_consumer.weights.weight import Positions, RecordWeight, StoredAnswers, WeightParameterError, register


@register
@dataclass(frozen=True, kw_only=True)
class SkipTokens(RecordWeight):
    """0 where the next token is one of `tokens`, else 1.

    `tokens` are pieces of the student's vocabulary as it spells them, separated by spaces: `skip_tokens:tokens="<s>
    </s>"`. Without any, all special tokens of the tokenizer (BOS, EOS, padding, roles).
    """

    name: ClassVar[str] = "skip_tokens"
    tokens: str = ""
    token_ids: TokenIds = field(default=(), repr=False)

    def bind(self, tokenizer: Any, answers: StoredAnswers | None = None) -> Self:
        """Look the tokens up; see `Weight.bind`."""
        del answers
        vocabulary = tokenizer.get_vocab()
        pieces = self.tokens.split()
        if missing := [piece for piece in pieces if piece not in vocabulary]:
            raise WeightParameterError(f"weight 'skip_tokens': the student's vocabulary has no token {missing[0]!r}")
        ids = [vocabulary[piece] for piece in pieces] if pieces else tokenizer.all_special_ids
        return replace(self, token_ids=tuple(sorted(set(ids))))

    def of(self, positions: Positions) -> NDArray[np.floating[Any] | np.bool_]:
        """Whether the next token is none of the tokens, [P]."""
        return ~np.isin(positions.next_ids_P, self.token_ids)
