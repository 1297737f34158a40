"""Bytes per token to expect of a capture spec before anything is captured: bounds, and a figure where one is known."""

import math
from itertools import pairwise
from typing import Final

from logitcask_schemas.api.objects import BytesPerToken
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.format.layout import RecordLayout
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.engines.hint_shape import HintShape, hint_bytes_per_document, hint_bytes_per_position

ID_BYTES: Final = 2
"""Of a token that has no record, about."""
_MEASURED: Final = (
    (5, 1.57, 2.40),
    (10, 1.94, 3.67),
    (20, 2.67, 5.74),
    (30, 3.35, 7.51),
    (50, 4.50, 10.68),
    (75, 5.81, 14.15),
    (100, 7.03, 17.29),
    (150, 9.30, 22.90),
    (200, 11.43, 27.91),
    (300, 15.40, 36.78),
    (400, 19.08, 44.58),
)
"""1/tau, head entries and draws per position: SmolLM2-135M on Python sources and documentation (docs/capture.md)."""


def expected_bytes(spec: CaptureSpec, vocab_size: int) -> BytesPerToken:
    """From the spec alone; a token is taken for a position."""
    units = RecordLayout.for_capture(spec, vocab_size).bytes_per_unit
    pinned = len(spec.pinned_ids)

    def total(head: float, draws: float) -> float:
        return units["token"] + units["position"] + units["head"] * head + units["tail"] * draws

    if spec.mode == "topk":
        low, high = total(spec.k, 0), total(spec.k + 1 + pinned, 0)
        return BytesPerToken(low=low, high=high, expected=None, basis="bounds")
    if spec.mode == "sampled":
        high = total(1 + pinned, spec.draws)
        return BytesPerToken(low=total(1, 0), high=high, expected=None, basis="bounds")
    max_head = min(spec.head_max, math.floor(1 / spec.tau) or 1) + 1 + pinned
    max_draws = min(math.ceil(1 / spec.tau), spec.tail_max)
    low, high = total(1, 0), total(max_head, max_draws)
    inverse = 1 / spec.tau
    if not _MEASURED[0][0] <= inverse <= _MEASURED[-1][0] or pinned:
        return BytesPerToken(low=low, high=high, expected=None, basis="bounds")
    head, draws = _between(inverse)
    expected = total(min(head, max_head), min(draws, max_draws))
    return BytesPerToken(low=low, high=high, expected=expected, basis="measured_elsewhere")


def with_hints(figures: BytesPerToken, hints: HintSpec | None, shape: HintShape | None) -> BytesPerToken:
    """The figures with what hints take beside the records.

    Args:
        figures: Of the records.
        hints: What is kept beside them.
        shape: Of the teacher; None where it gives no hints.
    """
    return figures.model_copy(
        update={
            "hints": hint_bytes_per_position(hints, shape),
            "hints_per_document": float(hint_bytes_per_document(hints, shape)),
        }
    )


def with_cask(bounds: BytesPerToken, opened: Cask, spec: CaptureSpec) -> BytesPerToken:
    """What the shards of an existing cask took per token, where it has this spec and holds something."""
    if not opened.num_tokens or opened.manifest.capture.digest() != spec.digest():
        return bounds
    # Of tokens with a record; those without take their id.
    without = sum(entry.tokens - entry.documents - entry.positions for entry in opened.entries)
    measured = (opened.num_bytes - ID_BYTES * without) / (opened.num_tokens - without)
    return BytesPerToken(low=bounds.low, high=bounds.high, expected=measured, basis="cask")


def _between(inverse: float) -> tuple[float, float]:
    """Head entries and draws at 1/tau, linear in its logarithm between measured ones."""
    for (left, *low), (right, *high) in pairwise(_MEASURED):
        if inverse <= right:
            share = (math.log(inverse) - math.log(left)) / (math.log(right) - math.log(left))
            return low[0] + share * (high[0] - low[0]), low[1] + share * (high[1] - low[1])
    return _MEASURED[-1][1], _MEASURED[-1][2]
