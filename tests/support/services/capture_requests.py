"""Requests of made-up documents for the capturing pooler, with the records that each must give."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.capture import RecordCapture, pack_wire
from logitcask_services.engines.vllm.request import CaptureRequest, document_key

VOCAB, HIDDEN = 300, 16
SPECS = [
    CaptureSpec(tau=0.02),
    CaptureSpec(mode="topk", k=5, logprob_codec="f32"),
    CaptureSpec(mode="sampled", seed=3),
    CaptureSpec(mode="sampled", sampler="multinomial", seed=3),
    CaptureSpec(tau=0.02, sampler="multinomial"),
]


class State(SimpleNamespace):
    """Stands for vLLM's `PoolingStates`."""

    def clean(self) -> None:
        """Forget what earlier steps left."""
        self.hidden_states_cache.clear()


class Request:
    """One request with a made-up hidden state per token, and how much of it has been scheduled."""

    def __init__(
        self,
        seed: int,
        length: int,
        spec: CaptureSpec,
        *,
        context: int = 0,
        replaced: int = 0,
        recorded: list[tuple[int, int]] | None = None,
    ) -> None:
        """Make up ids and hidden states from a seed."""
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, VOCAB, (length,), generator=generator)
        self.hidden = torch.randn(length, HIDDEN, generator=generator)
        self.spec = spec
        self.context, self.replaced = context, replaced
        self.recorded = recorded
        self.done = 0
        self.state = State(hidden_states_cache=[])
        self.output: Any = None

    @property
    def key(self) -> int:
        """Of the document, for the generator."""
        return document_key(self.ids[self.context :].numpy())

    @property
    def asked(self) -> CaptureRequest:
        """What the pooler is told."""
        recorded = None if self.recorded is None else np.array(self.recorded, dtype=np.int64)
        return CaptureRequest(
            spec_json=self.spec.model_dump_json(),
            doc_key=self.key,
            shift=self.context - self.replaced,
            recorded_R2=recorded,
        )

    def expected(self, head: Any, start: int = 0) -> torch.Tensor:
        """Records of all rows from `start` on that are asked for, counted by hand."""
        module = RecordCapture(self.spec, VOCAB)
        shift = self.context - self.replaced
        asked = [row - shift for row in range(len(self.ids) - 1) if row >= start and row >= shift]
        if self.recorded is not None:
            asked = [at for at in asked if any(first <= at < stop for first, stop in self.recorded)]
        if not asked:
            return torch.empty(0, dtype=torch.uint8)
        positions = torch.tensor(asked)
        rows = positions + shift
        columns = module(head(self.hidden[rows]), self.ids[rows + 1], torch.full_like(positions, self.key), positions)
        return pack_wire(columns, VOCAB)
