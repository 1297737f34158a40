"""What the training table compares: kinds of record, and the losses on them.

`draws 1/50` beside `head 1/20` takes the two thresholds apart that a capture spec holds together: tokens from 1/20 on
are stored exactly, and a draw stands for at most 1/50 of mass.
"""

from dataclasses import dataclass
from typing import Any

import torch

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.capture import RecordCapture


class SplitCapture(RecordCapture):
    """Capture whose draws follow a threshold of their own."""

    def __init__(self, spec: CaptureSpec, vocab_size: int, *, draw_tau: float) -> None:
        super().__init__(spec, vocab_size)
        self.draws = RecordCapture(spec.model_copy(update={"tau": draw_tau}), vocab_size)

    def _draw_counts(self, tail_mass_R: torch.Tensor) -> torch.Tensor:
        return self.draws._draw_counts(tail_mass_R)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: how records are captured, and the loss on them; without a capture the dense control."""

    loss: str = "forward_kl"
    capture: dict[str, Any] | None = None
    draw_tau: float | None = None
    """Mass that one draw stands for at most, where it is not the head's threshold."""
    fresh: bool = False
    """Every epoch trains on draws of its own."""

    def capturing(self, spec: CaptureSpec, vocab_size: int) -> RecordCapture:
        """What makes this row's records."""
        if self.draw_tau is None:
            return RecordCapture(spec, vocab_size)
        return SplitCapture(spec, vocab_size, draw_tau=self.draw_tau)


THRESHOLD_20: dict[str, Any] = {"tau": 1 / 20}
ROWS = {
    "ce": Row(loss="cross_entropy", capture=THRESHOLD_20),
    "full": Row(),
    "threshold 1/20": Row(capture=THRESHOLD_20),
    "threshold 1/20, fresh draws": Row(capture=THRESHOLD_20, fresh=True),
    # With the limit on draws that was the default when these were run first.
    "threshold 1/35 u8": Row(capture={"tau": 1 / 35, "logprob_codec": "u8", "tail_max": 32}),
    "threshold 1/50": Row(capture={"tau": 1 / 50, "tail_max": 32}),
    "threshold 1/50, up to 255 draws": Row(capture={"tau": 1 / 50, "tail_max": 255}),
    "threshold 1/100, up to 255 draws": Row(capture={"tau": 1 / 100, "tail_max": 255}),
    "threshold 1/150, up to 255 draws": Row(capture={"tau": 1 / 150, "tail_max": 255}),
    "threshold head 1/20, draws 1/50": Row(capture={"tau": 1 / 20, "tail_max": 255}, draw_tau=1 / 50),
    "threshold head 1/50, draws 1/20": Row(capture={"tau": 1 / 50, "tail_max": 255}, draw_tau=1 / 20),
    # Hundreds of exact entries: what is missing here would be the fault of the sparse path, not of the record's noise.
    "threshold 1/2000": Row(capture={"tau": 1 / 2000, "head_max": 250, "tail_max": 255}),
    "threshold 1/20, tail_weight 0.5": Row(loss="forward_kl:tail_weight=0.5", capture=THRESHOLD_20),
    "RS-KD, 50 draws": Row(capture={"mode": "sampled", "draws": 50, "sampler": "multinomial"}),
    "ghost top-50": Row(loss="ghost_kl", capture={"mode": "topk", "k": 50}),
    "ghost top-12": Row(loss="ghost_kl", capture={"mode": "topk", "k": 12}),
    "renormalised top-50": Row(loss="topk_renorm", capture={"mode": "topk", "k": 50}),
    "renormalised top-12": Row(loss="topk_renorm", capture={"mode": "topk", "k": 12}),
}
