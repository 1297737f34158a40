"""`--target dense`: the teacher's whole distribution from the last hidden states of a cask and the teacher's head.

Shape legend: T positions, D width of the teacher's states, H head entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor

from logitcask_consumer.data import Batch, CaskDataset, Collator, target_of
from logitcask_consumer.data.hint_rows import decoded_layer, hint_columns
from logitcask_consumer.head import DenseTarget, LMHead
from logitcask_consumer.hints.hint_loss import HintMismatchError
from logitcask_consumer.hints.teacher_folder import TeacherShape
from logitcask_consumer.losses import LossMismatchError, Objective
from logitcask_schemas.cask import Cask
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec

DENSE_LOSSES: Final = frozenset(
    {
        "alpha_beta",
        "cross_entropy",
        "forward_kl",
        "js",
        "reverse_kl",
        "skew_kl",
        "skew_reverse_kl",
        "tvd",
    }
)
"""Losses that are sums over the whole distribution, whatever their way with a tail, of which there is none. The others
speak of heads and draws, which it has not."""
ALLOWED_GAP: Final = 0.25
"""Nats by which log-probabilities may differ from the records' on average: codec i8 and a teacher in bfloat16 make up
to a tenth; another head, layer or scale several."""
_PROVED_SEQUENCES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTeacher:
    """The teacher's head, and where its states lie in the hints."""

    head: LMHead
    column: int
    temperature: float | None

    @classmethod
    def of(cls, casks: Sequence[Cask], shape: TeacherShape, head: LMHead, objective: Objective) -> Self:
        """Find the layer that the head reads.

        Raises:
            HintMismatchError: the casks have no such hints.
            LossMismatchError: a loss speaks of heads and tails.
        """
        require_dense(objective, casks[0].manifest.capture)
        hints = casks[0].manifest.capture.hints
        assert hints is not None, "require_dense has asked for them"
        if hints.layers[-1] != shape.blocks:
            raise HintMismatchError(
                f"target dense needs layer {shape.blocks} of the teacher, what its head reads; {casks[0].place} has "
                f"hints of layers {list(hints.layers)}: capture with hints.layers [-1]"
            )
        return cls(head=head, column=len(hints.layers) - 1, temperature=objective.temperature)

    def target(self, batch: Batch) -> DenseTarget:
        """The target of a batch, on its device."""
        hints, device = batch["hints"], batch["slots"].device

        def states(at: Any) -> Tensor:
            index = torch.arange(len(batch["slots"]), device=device)[at] if isinstance(at, slice) else at
            return decoded_layer(hint_columns(hints, index), self.column)

        return DenseTarget.of(
            states,
            self._head_on(device),
            next_ids_R=batch["next_ids"],
            documents_R=batch["documents"],
            temperature=self.temperature,
        )

    def _head_on(self, device: torch.device) -> LMHead:
        """The head on a device; moved there once."""
        weight_VD, bias_V = self.head.weight_VD, self.head.bias_V
        if weight_VD.device != device:
            weight_VD.data = weight_VD.data.to(device)
            if bias_V is not None:
                bias_V.data = bias_V.data.to(device)
        return self.head

    def prove(self, dataset: CaskDataset) -> float:
        """Compare the log-probabilities of the first sequences with those that the records hold.

        Returns:
            The mean difference over head entries, each counting its probability, nats.

        Raises:
            IdentityMismatchError: they are not those of the records: another head, or states of another layer.
        """
        numbers = list(range(min(_PROVED_SEQUENCES, len(dataset))))
        batch = Collator(seq_len=dataset.seq_len)(dataset.read(numbers))
        if not len(batch["slots"]):
            return 0.0
        records = target_of(batch, sampled_tail=dataset.manifest.capture.mode != "topk")
        logprobs_TV = self.target(batch).log_probs(slice(0, min(records.num_rows, 256)))
        records = records.rows(0, len(logprobs_TV))
        stored_H = batch["head_logprobs"][: len(records.head_ids_H)].to(torch.float32)
        gap_H = (logprobs_TV[records.head_rows_H, records.head_ids_H] - stored_H).abs()
        gap = float((gap_H * stored_H.exp()).sum() / stored_H.exp().sum().clamp(min=1e-12))
        if not gap <= ALLOWED_GAP:
            raise IdentityMismatchError(
                f"target dense: the log-probabilities that the teacher's head makes of the cask's last hidden states "
                f"are {gap:.2g} nats from those of its records; {ALLOWED_GAP} are allowed. The folder of --teacher is "
                f"not that of {dataset.manifest.teacher.model}, or its config.json has changed since"
            )
        return gap


def cost_note(casks: Sequence[Cask], teacher: TeacherShape) -> str:
    """What a dense target costs beside the sparse records, a sentence."""
    positions = max(sum(cask.num_positions for cask in casks), 1)
    hints = sum(entry.hints.bytes for cask in casks for entry in cask.entries if entry.hints is not None)
    records = sum(cask.num_bytes for cask in casks)
    head = 4 * teacher.hidden * casks[0].manifest.teacher.vocab_size
    return (
        f"target dense: {hints / positions:,.0f} bytes of hints per token beside {records / positions:,.0f} of sparse "
        f"record, and the teacher's head of {head / 2**20:,.0f} MiB in memory"
    )


def require_dense(objective: Objective, capture: CaptureSpec) -> None:
    """Refuse what a dense target cannot serve.

    Raises:
        LossMismatchError: a loss speaks of heads and tails.
        HintMismatchError: the cask has no last hidden states as they are.
    """
    for loss in objective.losses:
        if loss.name not in DENSE_LOSSES:
            raise LossMismatchError(
                f"loss {loss.spec!r} speaks of heads, tails or draws of a sparse record; target dense has the whole "
                f"distribution. Losses that it serves: {', '.join(sorted(DENSE_LOSSES))}"
            )
    hints = capture.hints
    if hints is None or hints.of != "hidden" or hints.positions != "all" or hints.projected is not None:
        stored = "no hints" if hints is None else f"hints {hints.model_dump(mode='json')}"
        raise HintMismatchError(
            "target dense needs the teacher's last hidden states of every position (capture with hints.layers [-1], "
            f"hints.of hidden, hints.codec f16 or i8); this cask has {stored}"
        )
