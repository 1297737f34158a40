"""The pooler of the capturing models: hidden states of scheduled tokens in, one packed record buffer per request out.

Runs inside vLLM's model runner, between the last layer and the way home. Hidden states never outlive the step: each
chunk of a prompt is reduced to records at once, and only those wait for the rest of the prompt.

Shape legend: S scheduled tokens of all requests, R of them with a next token (positions), D hidden width, V vocabulary.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate
from vllm.tasks import PoolingTask

from logitcask_services.capture import RecordCapture, RecordColumns, pack_wire
from logitcask_services.engines.vllm.request import TASK, parse_spec, read_request

LOGIT_BYTES = {"cpu": 48 * 2**20}
"""Bound on one chunk of float32 logits per device type; on a CPU small, so that capture finds it half in the cache."""
_LOGIT_BYTES_DEVICE = 256 * 2**20
_FEWEST_ROWS = 128
"""Rows computed at a time at least, whatever their width: below, the head's matrix product loses speed."""
_KEPT_CAPTURES = 4


@dataclass(frozen=True, slots=True)
class _Run:
    """The scheduled rows of one request that have a next token."""

    request: int
    first_row: int
    start: int
    """Position of the first row in the document."""
    count: int
    doc_key: int


class CapturePooler(Pooler):
    """Computes logits in bounded chunks and reduces them to records, spec by spec."""

    def __init__(self, compute_logits: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        """Take the model's own head, so that whatever it does to its logits is done here too."""
        super().__init__()
        self._compute_logits = compute_logits
        self._captures: dict[tuple[str, int], RecordCapture] = {}
        self._vocab_size = 0

    def get_supported_tasks(self) -> Set[PoolingTask]:
        """One output per token."""
        return {TASK}

    def get_pooling_updates(self, task: PoolingTask) -> PoolingParamsUpdate:
        """Ask vLLM for the prompt's token ids, which hold the realised next tokens."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: Any) -> list[torch.Tensor | None]:
        """Capture one step.

        Args:
            hidden_states: [S, D], the scheduled tokens of all requests end to end.
            pooling_metadata: vLLM's account of which token is whose.

        Returns:
            Per request its wire buffer (uint8) when its prompt is complete, else None. All None on ranks that get no
            logits under tensor parallelism.
        """
        cursor = pooling_metadata.get_pooling_cursor()
        prompts = pooling_metadata.get_prompt_token_ids_cpu()
        states = pooling_metadata.pooling_states
        groups: dict[str, list[_Run]] = {}
        row = 0
        for request, (scheduled, seen, params) in enumerate(
            zip(
                cursor.num_scheduled_tokens_cpu.tolist(),
                cursor.seq_lens_cpu.tolist(),
                pooling_metadata.pooling_params,
                strict=True,
            )
        ):
            spec_json, doc_key = read_request(params.extra_kwargs)
            start = seen - scheduled
            if start == 0:
                states[request].clean()  # a preempted request starts over
            count = min(scheduled, len(prompts[request]) - 1 - start)
            if count > 0:
                groups.setdefault(spec_json, []).append(_Run(request, row, start, count, doc_key))
            row += scheduled

        for spec_json, runs in groups.items():
            columns = self._capture(hidden_states, spec_json, runs, prompts)
            if columns is None:
                return [None] * len(states)
            for run, part in zip(runs, columns.split([run.count for run in runs]), strict=True):
                states[run.request].hidden_states_cache.append(part)

        outputs: list[torch.Tensor | None] = []
        for state, finished in zip(states, cursor.get_finished_mask(), strict=True):
            if finished and state.hidden_states_cache:
                outputs.append(pack_wire(RecordColumns.join(state.hidden_states_cache), self._vocab_size))
                state.clean()
            else:
                outputs.append(None)
        return outputs

    def _capture(
        self, hidden_SD: torch.Tensor, spec_json: str, runs: list[_Run], prompts: list[torch.Tensor]
    ) -> RecordColumns | None:
        """Records of all rows of the runs, in order; None where this rank gets no logits."""
        device = hidden_SD.device
        rows_R = torch.cat([torch.arange(run.first_row, run.first_row + run.count) for run in runs]).to(device)
        positions_R = torch.cat([torch.arange(run.start, run.start + run.count) for run in runs]).to(device)
        next_ids_R = torch.cat([prompts[run.request][run.start + 1 : run.start + 1 + run.count] for run in runs]).to(
            device
        )
        doc_keys_R = torch.tensor([run.doc_key for run in runs]).repeat_interleave(
            torch.tensor([run.count for run in runs])
        )
        doc_keys_R = doc_keys_R.to(device)
        parts = []
        first = 0
        while first < len(rows_R):
            some = slice(first, first + self._chunk_rows(device))
            # The capture may write over these logits: they are this call's own.
            logits = self._compute_logits(hidden_SD.index_select(0, rows_R[some]))
            if logits is None:
                return None
            capture = self._capture_for(spec_json, logits)
            parts.append(capture(logits, next_ids_R[some], doc_keys_R[some], positions_R[some]))
            first = some.stop
        return RecordColumns.join(parts)

    def _chunk_rows(self, device: torch.device) -> int:
        """Rows of logits within the bound; few until the first logits have told the vocabulary's width."""
        if not self._vocab_size:
            return _FEWEST_ROWS
        return max(_FEWEST_ROWS, LOGIT_BYTES.get(device.type, _LOGIT_BYTES_DEVICE) // (4 * self._vocab_size))

    def _capture_for(self, spec_json: str, logits_RV: torch.Tensor) -> RecordCapture:
        """The capture module of a spec, kept for the next step."""
        self._vocab_size = logits_RV.shape[1]
        key = (spec_json, self._vocab_size)
        if key not in self._captures:
            if len(self._captures) >= _KEPT_CAPTURES:
                self._captures.pop(next(iter(self._captures)))
            self._captures[key] = RecordCapture(parse_spec(spec_json), self._vocab_size)
        return self._captures[key]
