"""Students whose logits are wider or narrower than the teacher's: vocabularies of one tokenizer, padded differently.

Shape legend: V ids of the student, H head entries, N tail draws, P positions, W windows, L tokens.

Models of one family round their vocabulary up to different multiples (49,152 and 49,280 ids, 151,936 and 152,064), with
one tokenizer of n tokens. Ids mean the same up to n; beyond, they mean nothing.

- A wider student: its extra ids have t = 0. They are part of its softmax, and training takes their mass away (`keep`);
  or its distribution is the one over the teacher's ids, and the extra ids are neither computed nor trained (`mask`).
- A narrower student: it must have every token of the tokenizer, and no record that is trained may hold an id beyond its
  width. What the records' tails hold there without a draw cannot be known: it counts as tail.
- Ids that a student gives no probability at all (a bias of -inf): no record may hold them, either.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from logitcask_consumer.data.dataset import CaskDataset
from logitcask_consumer.head import LMHead
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.beyond_tokens import beyond_tokens
from logitcask_schemas.record.records import Records

ExtraIds = Literal["keep", "mask"]
"""What becomes of a student's ids beyond the teacher's."""


LOOKED_AT: Final = 200_000
"""Positions whose records are searched for ids that are no tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentVocabulary:
    """Which ids a student can predict, and which the records may hold."""

    width: int
    """V: ids of its logits, at most those of its embeddings."""
    teacher: int
    """Ids of the teacher's logits."""
    closed_V: NDArray[np.bool_] | None = None
    """Whether an id has no probability; None where all have some."""

    @classmethod
    def of(cls, model: Any, teacher: int) -> Self:
        """Read a causal LM's head and embeddings.

        Args:
            model: a causal LM.
            teacher: ids of the teacher's logits.

        Raises:
            ModelError: it has no linear head.
        """
        head = LMHead.from_model(model)
        embedded = model.get_input_embeddings()
        rows = getattr(embedded, "num_embeddings", head.vocab_size)
        bias, closed = head.bias_V, None
        if bias is not None:
            whole_V = (
                bias.full_tensor() if hasattr(bias, "full_tensor") else bias
            )  # a shard does not tell of the others
            closed_V = torch.isneginf(whole_V.detach()).cpu().numpy()
            closed = closed_V if closed_V.any() else None
        return cls(width=min(head.vocab_size, int(rows)), teacher=teacher, closed_V=closed)

    @property
    def holds_everything(self) -> bool:
        """Whether no id of a record can be wrong."""
        return self.width >= self.teacher and self.closed_V is None

    def masked_width(self, extra_ids: ExtraIds) -> int | None:
        """Ids of the student's distribution where it ends before V; None where it does not."""
        return self.teacher if extra_ids == "mask" and self.width > self.teacher else None

    def require_tokens(self, tokens: int | None) -> None:
        """Refuse a student that lacks tokens of the tokenizer that the teacher has.

        Args:
            tokens: one more than the largest id of the tokenizer; None where it is not known, and every id of the
                teacher's is asked for.

        Raises:
            IdentityMismatchError: it has fewer ids.
        """
        needed = self.teacher if tokens is None else min(tokens, self.teacher)
        if self.width < needed:
            raise IdentityMismatchError(
                f"the student's vocabulary has {self.width:,} ids, the teacher's logits had {self.teacher:,}, and the "
                f"tokenizer has {needed:,} of them: some tokens would have no logit. Take a student of the teacher's "
                f"family, or resize its embeddings to {needed:,} ids or more (resize_token_embeddings)"
            )

    def require_records(self, records: Records, documents_P: NDArray[np.int32]) -> None:
        """Refuse records that hold an id which the student cannot predict.

        Args:
            records: of P positions.
            documents_P: number of the document of each position.

        Raises:
            IdentityMismatchError: names a document and the id.
        """
        if self.holds_everything:
            return
        for ids, counts_P in (
            (records.head_ids_H, records.head_counts_P),
            (records.tail_ids_N, records.tail_counts_P),
        ):
            at = self._first_wrong(ids)
            if at is not None:
                position = int(np.searchsorted(np.cumsum(counts_P, dtype=np.int64), at, side="right"))
                self._refuse(int(ids[at]), int(documents_P[position]))

    def require_tokens_of(
        self, token_ids_L: NDArray[Any], offsets_W1: NDArray[np.int64], documents_W: NDArray[Any]
    ) -> None:
        """Refuse input tokens that the student has no embedding for.

        Raises:
            IdentityMismatchError: names a document and the id.
        """
        if self.width >= self.teacher:
            return
        beyond = np.flatnonzero(token_ids_L >= self.width)
        if len(beyond):
            window = int(np.searchsorted(offsets_W1, beyond[0], side="right")) - 1
            self._refuse(int(token_ids_L[beyond[0]]), int(documents_W[window]))

    def _first_wrong(self, ids: NDArray[Any]) -> int | None:
        wrong = ids >= self.width
        if self.closed_V is not None:
            wrong = wrong | self.closed_V[np.minimum(ids, self.width - 1)]
        return int(np.argmax(wrong)) if wrong.any() else None

    def _refuse(self, number: int, document: int) -> None:
        if number >= self.width:
            why = f"the student has {self.width:,} ids (the teacher had {self.teacher:,})"
            advice = f"Resize its embeddings to {self.teacher:,} ids (resize_token_embeddings)"
        else:
            why, advice = "the student gives it no probability (a bias of -inf)", "Give it a finite bias"
        raise IdentityMismatchError(
            f"document {document}: its tokens or records hold id {number:,}; {why}. {advice}, or leave the document out"
        )


def beyond_tokens_note(dataset: CaskDataset, tokens: int) -> str | None:
    """What the teacher says of ids that are no tokens, in the first positions of the casks; None where it says nothing.

    Args:
        dataset: windows of the casks.
        tokens: one more than the largest id of the tokenizer.
    """
    if dataset.manifest.teacher.vocab_size <= tokens:
        return None
    sequences = range(0, min(len(dataset), max(1, LOOKED_AT // dataset.seq_len)), 16)
    blocks = (dataset.read(range(at, min(at + 16, len(dataset)))).windows.records for at in sequences)
    seen = beyond_tokens(blocks, tokens)
    if not seen.records:
        return None
    return (
        f"{seen.records:,} of {seen.positions:,} records looked at hold ids from {tokens:,} on, which are no tokens of "
        f"the tokenizer (up to {seen.largest_id:,}); the teacher puts {seen.mass:.2g} of its mass there"
    )


def token_count(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer, added tokens among them."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1
