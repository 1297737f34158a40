"""Dense float64 truth for the capture tests, and hypothesis strategies for specs and logits."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import Records
from logitcask_schemas.record.wire import decode_wire
from logitcask_services.capture import RecordCapture, pack_wire
from logitcask_services.capture.plan import cpu_plan


def dense(logits: Any) -> np.ndarray:
    """Distribution in float64 by the definition, [R, V]."""
    x = np.asarray(logits, dtype=np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    probabilities: np.ndarray = e / e.sum(-1, keepdims=True)
    return probabilities


@dataclass
class Position:
    """One position of a Records object, cut out."""

    head_ids: np.ndarray
    head_logprobs: np.ndarray
    tail_ids: np.ndarray
    tail_mass: float
    entropy: float

    def target(self, vocab_size: int) -> np.ndarray:
        """The sparse target t-hat, float64 [V]."""
        estimate = np.zeros(vocab_size)
        estimate[self.head_ids] = np.exp(self.head_logprobs)
        if len(self.tail_ids):
            np.add.at(estimate, self.tail_ids, self.tail_mass / len(self.tail_ids))
        return estimate


def cut(records: Records) -> list[Position]:
    """Positions of a Records object."""
    heads = np.split(np.arange(len(records.head_ids_H)), np.cumsum(records.head_counts_P)[:-1])
    tails = np.split(np.arange(len(records.tail_ids_N)), np.cumsum(records.tail_counts_P)[:-1])
    return [
        Position(
            records.head_ids_H[head].astype(np.int64),
            records.head_logprobs_H[head].astype(np.float64),
            records.tail_ids_N[tail].astype(np.int64),
            float(np.exp(np.float64(records.log_tail_mass_P[i]))),
            float(records.entropy_P[i]),
        )
        for i, (head, tail) in enumerate(zip(heads, tails, strict=True))
    ]


def run(
    spec: CaptureSpec,
    logits: Any,
    next_ids: Any = None,
    uniforms: Any = None,
    *,
    rows: int = 32,
    doc_key: int = -7,
    start: int = 0,
) -> Records:
    """Capture, pack and decode: Records of [R, V] float32 logits."""
    logits = torch.as_tensor(logits, dtype=torch.float32)
    count, vocab = logits.shape
    next_ids = torch.zeros(count, dtype=torch.int64) if next_ids is None else torch.as_tensor(next_ids)
    plan = replace(cpu_plan(vocab), rows=rows, rows_of_passes=max(1, rows // 2))
    module = RecordCapture(spec, vocab, plan=plan)
    columns = module(
        logits.clone(),
        next_ids,
        torch.full((count,), doc_key),
        torch.arange(start, start + count),
        None if uniforms is None else torch.as_tensor(uniforms, dtype=torch.float64),
    )
    return decode_wire(pack_wire(columns, vocab).numpy(), spec)


@st.composite
def specs(draw: Any, vocab_size: int = 300) -> CaptureSpec:
    """Any valid spec over a small vocabulary."""
    pinned = draw(st.lists(st.integers(0, vocab_size - 1), unique=True, max_size=4))
    return CaptureSpec(
        mode=draw(st.sampled_from(["threshold", "topk", "sampled"])),
        tau=draw(st.floats(0.002, 1.0)),
        head_max=draw(st.integers(1, 100)),
        tail_max=draw(st.integers(1, 100)),
        k=draw(st.integers(1, 200)),
        draws=draw(st.integers(1, 120)),
        sampler=draw(st.sampled_from(["systematic", "multinomial"])),
        pinned_ids=tuple(pinned),
        seed=draw(st.integers(0, 2**63 - 1)),
        logprob_codec="f32",
        tail_logprobs=draw(st.booleans()),
        temperatures=tuple(draw(st.sampled_from([(), (2.0,), (0.5, 4.0)]))),
    )


def logits_rows(
    seed: int, rows: int, vocab_size: int, *, scale: float = 3.0, ties: bool = False, masked: float = 0.0
) -> np.ndarray:
    """Random logits [rows, V], optionally on a coarse grid (ties) and with a share of masked entries."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(rows, vocab_size)) * scale
    if ties:
        values = np.round(values)
    if masked:
        values[generator.random(values.shape) < masked] = -np.inf
        values[:, 1] = 0.0  # never a row without any token
    return values.astype(np.float32)
