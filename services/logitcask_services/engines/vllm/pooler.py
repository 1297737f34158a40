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

from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_services.capture import RecordCapture, RecordColumns, capture_uniforms, pack_wire
from logitcask_services.capture.hint_tensors import HintTensors, encode_hints, pack_hints
from logitcask_services.capture.plan import Scratch, plan_for
from logitcask_services.engines.vllm.hint_layers import HintLayers
from logitcask_services.engines.vllm.request import TASK, parse_spec, read_request

CPU_LOGIT_BYTES = 48 * 2**20
"""Bound on one chunk of float32 logits on a CPU: small, so that capture finds it half in the cache. On an accelerator
a chunk is a run of the capture's plan."""
_FEWEST_ROWS = 128
"""Rows computed at a time at least, whatever their width: below, the head's matrix product loses speed."""
_HINT_BYTES = 64 * 2**20
"""Bound on the float32 vectors that are coded at a time."""
_KEPT_CAPTURES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The scheduled rows of one request that get a record."""

    request: int
    rows_R: torch.Tensor
    """Among all scheduled rows."""
    positions_R: torch.Tensor
    """In the document."""
    next_ids_R: torch.Tensor
    doc_key: int
    hint_rows_R: torch.Tensor
    """Among all scheduled rows: those of the positions, or of the last token where it was scheduled."""


@dataclass(slots=True)
class _Step:
    """What one step computed of a request."""

    stop: int
    """Tokens of the request up to its end."""
    columns: RecordColumns | None = None
    hints: HintTensors | None = None
    """Coded at once: a long prompt waits with what is stored of it, and no hidden state."""


class CapturePooler(Pooler):
    """Computes logits in bounded chunks and reduces them to records, spec by spec."""

    def __init__(
        self,
        compute_logits: Callable[[torch.Tensor], torch.Tensor | None],
        *,
        hints: HintLayers | None = None,
        hidden_width: int | None = None,
    ) -> None:
        """Take the model's own head, so that whatever it does to its logits is done here too.

        Args:
            compute_logits: the head.
            hints: layers whose vectors follow the hidden states.
            hidden_width: D, needed with hints.
        """
        super().__init__()
        self._hints, self._hidden_width = hints, hidden_width
        self._compute_logits = compute_logits
        self._captures: dict[tuple[str, int], RecordCapture] = {}
        self._scratch = Scratch()
        self._vocab_size = 0
        self._has_logits = True
        """Until this rank has got none."""

    def get_supported_tasks(self) -> Set[PoolingTask]:
        """One output per token."""
        return {TASK}

    def get_pooling_updates(self, task: PoolingTask) -> PoolingParamsUpdate:
        """Ask vLLM for the prompt's token ids, which hold the realised next tokens."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: Any) -> list[torch.Tensor | None]:
        """Capture one step.

        Args:
            hidden_states: [S, D], the scheduled tokens of all requests end to end; wider by what `HintLayers` appends.
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
            asked = read_request(params.extra_kwargs)
            start, steps = seen - scheduled, states[request].hidden_states_cache
            if steps and steps[-1].stop != start:
                states[request].clean()  # a preempted request starts over
            steps.append(_Step(seen))
            positions = asked.positions(start, seen, len(prompts[request]))
            spec = parse_spec(asked.spec_json).hints
            is_last = spec is not None and spec.positions == "last" and seen == len(prompts[request])
            if len(positions) or is_last:
                positions_R = torch.from_numpy(positions)
                rows_R = positions_R + (row + asked.shift - start)
                run = _Run(
                    request=request,
                    rows_R=rows_R,
                    positions_R=positions_R,
                    next_ids_R=prompts[request][positions_R + (asked.shift + 1)],
                    doc_key=asked.doc_key,
                    hint_rows_R=_hint_rows(spec, rows_R, row + scheduled - 1 if is_last else None),
                )
                groups.setdefault(asked.spec_json, []).append(run)
            row += scheduled

        for spec_json, runs in groups.items():
            # On ranks that get no logits, no hints are coded either.
            if not self._note_records(hidden_states, spec_json, [run for run in runs if len(run.rows_R)], states):
                return [None] * len(states)
            self._note_hints(hidden_states, spec_json, [run for run in runs if len(run.hint_rows_R)], states)

        if not self._has_logits:
            return [None] * len(states)
        outputs: list[torch.Tensor | None] = []
        for state, finished in zip(states, cursor.get_finished_mask(), strict=True):
            outputs.append(self._packed(state.hidden_states_cache) if finished else None)
            if finished:
                state.clean()
        return outputs

    def _packed(self, steps: list[_Step]) -> torch.Tensor:
        """The wire buffer of a request that is done; without a byte where all its rows were in the prefix cache."""
        parts = [step.columns for step in steps if step.columns is not None]
        if not parts:
            return torch.empty(0, dtype=torch.uint8)
        packed = pack_wire(RecordColumns.join(parts), self._vocab_size)
        hints = [step.hints for step in steps if step.hints is not None]
        return torch.cat([packed, pack_hints(HintTensors.join(hints)).cpu()]) if hints else packed

    def _note_records(self, hidden_SX: torch.Tensor, spec_json: str, runs: list[_Run], states: list[Any]) -> bool:
        """Reduce the runs' rows to records, kept with their requests; False where this rank gets no logits."""
        if not runs:
            return self._has_logits
        hidden_SD = hidden_SX if self._hints is None else hidden_SX[:, : self._hidden_width]
        columns = self._capture(hidden_SD, spec_json, runs)
        if columns is None:
            self._has_logits = False
            return False
        for run, part in zip(runs, columns.split([len(run.rows_R) for run in runs]), strict=True):
            states[run.request].hidden_states_cache[-1].columns = part
        return True

    def _note_hints(self, hidden_SX: torch.Tensor, spec_json: str, runs: list[_Run], states: list[Any]) -> None:
        """Code the hints of the runs' rows, kept with their requests."""
        spec = parse_spec(spec_json).hints
        if spec is None or not runs:
            return
        assert self._hints is not None, "the engine was started without hints"
        assert self._hidden_width is not None, "hints need it"
        rows_R = torch.cat([run.hint_rows_R for run in runs]).to(hidden_SX.device)
        row_bytes = 4 * len(spec.layers) * max(self._hidden_width, hidden_SX.shape[1] - self._hidden_width)
        parts = [
            encode_hints(self._hints.values(hidden_SX, self._hidden_width, spec, some), spec)
            for some in torch.split(rows_R, max(1, _HINT_BYTES // row_bytes))
        ]
        split = HintTensors.join(parts).split([len(run.hint_rows_R) for run in runs])
        for run, part in zip(runs, split, strict=True):
            states[run.request].hidden_states_cache[-1].hints = part

    def _capture(self, hidden_SD: torch.Tensor, spec_json: str, runs: list[_Run]) -> RecordColumns | None:
        """Records of all rows of the runs, in order, in this machine's memory; None where this rank gets no logits."""
        counts = torch.tensor([len(run.rows_R) for run in runs])
        columns_4R = torch.stack(
            [
                torch.cat([run.rows_R for run in runs]),
                torch.cat([run.positions_R for run in runs]),
                torch.cat([run.next_ids_R for run in runs]),
                torch.tensor([run.doc_key for run in runs]).repeat_interleave(counts),
            ]
        )
        rows_R, positions_R, next_ids_R, doc_keys_R = _sent(columns_4R, hidden_SD.device)
        uniforms = capture_uniforms(parse_spec(spec_json), doc_keys_R, positions_R)
        parts = []
        first = 0
        while first < len(rows_R):
            some = slice(first, first + self._chunk_rows(hidden_SD.device))
            # The capture may write over these logits: they are this call's own.
            logits = self._compute_logits(hidden_SD.index_select(0, rows_R[some]))
            if logits is None:
                return None
            capture = self._capture_for(spec_json, logits)
            parts.append(capture(logits, next_ids_R[some], doc_keys_R[some], positions_R[some], uniforms[some]))
            first = some.stop
        # One transfer a step, and the rest is done here: a document's buffer takes a score of small operations.
        return RecordColumns.join(parts).on_host()

    def _chunk_rows(self, device: torch.device) -> int:
        """Rows of logits within the bound; few until the first logits have told the vocabulary's width."""
        if not self._vocab_size:
            return _FEWEST_ROWS
        if device.type == "cpu":
            return max(_FEWEST_ROWS, CPU_LOGIT_BYTES // (4 * self._vocab_size))
        return max(_FEWEST_ROWS, plan_for(device, self._vocab_size).rows)

    def _capture_for(self, spec_json: str, logits_RV: torch.Tensor) -> RecordCapture:
        """The capture module of a spec, kept for the next step."""
        self._vocab_size = logits_RV.shape[1]
        key = (spec_json, self._vocab_size)
        if key not in self._captures:
            if len(self._captures) >= _KEPT_CAPTURES:
                self._captures.pop(next(iter(self._captures)))
            self._captures[key] = RecordCapture(parse_spec(spec_json), self._vocab_size, scratch=self._scratch)
        return self._captures[key]


def _sent(columns: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers on a device, in one transfer, for which a CUDA device does not make this thread wait."""
    return columns.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else columns.to(device)


def _hint_rows(spec: HintSpec | None, rows_R: torch.Tensor, last: int | None) -> torch.Tensor:
    """Scheduled rows whose hints are kept; `last` is that of a request's last token."""
    if spec is None:
        return rows_R[:0]
    if spec.positions == "all":
        return rows_R
    return torch.tensor([] if last is None else [last], dtype=torch.int64)
