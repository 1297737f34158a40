"""The yardstick of bench/capture.py: the capturing model with a second way through its pooler that keeps nothing.

A request whose spec has the seed `DROP_SEED` gets every position's logits computed, in the very same chunks, and
dropped. So one engine, one model and one batch schedule serve both sides of the ratio.
"""

from typing import Any

import torch

from logitcask_services.capture import RecordColumns
from logitcask_services.engines.vllm import plugin as vllm_wrapper
from logitcask_services.engines.vllm.pooler import CapturePooler
from logitcask_services.engines.vllm.request import parse_spec

DROP_SEED = 4_242_424_242


class DroppingPooler(CapturePooler):
    """Captures, or computes logits for nothing, as the request's seed says."""

    def _capture(self, hidden_SD: torch.Tensor, spec_json: str, runs: list[Any]) -> RecordColumns | None:
        if parse_spec(spec_json).seed != DROP_SEED:
            return super()._capture(hidden_SD, spec_json, runs)
        rows_R = torch.cat([run.rows_R for run in runs])
        first = 0
        while first < len(rows_R):
            some = slice(first, first + self._chunk_rows(hidden_SD.device))
            logits = self._compute_logits(hidden_SD.index_select(0, rows_R[some]))
            assert logits is not None
            self._vocab_size = logits.shape[1]
            first = some.stop
        nothing = torch.zeros(len(rows_R), dtype=torch.float16)
        return RecordColumns(
            head_counts_R=torch.ones(len(rows_R), dtype=torch.uint8),
            head_ids_H=torch.zeros(len(rows_R), dtype=torch.int32),
            head_logprobs_H=nothing,
            tail_counts_R=torch.zeros(len(rows_R), dtype=torch.uint8),
            tail_ids_N=torch.zeros(0, dtype=torch.int32),
            tail_logprobs_N=None,
            position_columns={"log_tail_mass": nothing, "entropy": nothing},
        )


class DroppingLlama(vllm_wrapper.LogitcaskLlamaForCausalLM):  # type: ignore[misc]
    """The capturing Llama with the pooler above."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pooler = DroppingPooler(self.compute_logits)
