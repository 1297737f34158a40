"""The teacher on plain transformers: reference and control for vLLM, and the engine of machines without it.

The logits of a whole batch exist at once, B x L x V values: keep `max_model_len` and `batch_documents` in proportion.

Shape legend: B documents of a batch, L tokens (padded), D hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from logitcask_schemas.errors import CaptureSpecError, ModelError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import IdArray
from logitcask_schemas.record.hint_spec import HintKind, HintSpec
from logitcask_schemas.record.hint_wire import decode_document
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_services.capture import RecordCapture, pack_wire
from logitcask_services.capture.hint_tensors import encode_hints, pack_hints
from logitcask_services.capture.plan import Scratch
from logitcask_services.engines.engine import CaptureResult, CaptureTask, refusal, require_hints, result_of
from logitcask_services.engines.hint_shape import HintShape
from logitcask_services.engines.model_folder import ModelFolder
from logitcask_services.engines.projections import Take, listen
from logitcask_services.engines.transformers_model import TransformersModel
from logitcask_services.engines.vllm.request import document_key

_KEPT_CAPTURES = 16


class TransformersEngine:
    """`Engine` on plain forward passes. Load with `load_engine`."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        dtype: str = "auto",
        max_model_len: int | None = None,
        device: str | None = None,
        batch_documents: int = 1,
    ) -> None:
        """Load the model.

        Args:
            folder: the teacher.
            dtype: compute dtype, or "auto": float32 on a CPU, the checkpoint's elsewhere.
            max_model_len: most tokens of a document; None: what the configuration declares.
            device: torch device; None: an accelerator where there is one, else the CPU.
            batch_documents: documents per forward pass, padded to the longest.

        Raises:
            ModelError: the folder's model is no causal language model that transformers can load.
        """
        loaded = TransformersModel.load(folder, dtype=dtype, max_model_len=max_model_len, device=device)
        self._model: Any = loaded.model
        self._device, self._max_model_len, self._identity = loaded.device, loaded.max_model_len, loaded.identity
        # Where the longest row of a batch matters, a document sees its own length alone.
        self._batch_documents = 1 if loaded.length_matters else batch_documents
        self._hint_shape = HintShape.of_config(folder.config)
        self.on_step: Callable[[], None] = lambda: None
        """Called after each layer: a long document on a slow machine takes long, and is no hang."""
        for layer in (
            layer for part in self._model.modules() if isinstance(part, torch.nn.ModuleList) for layer in part
        ):
            layer.register_forward_hook(lambda *_: self.on_step())

    @property
    def identity(self) -> TeacherIdentity:
        """Who the teacher is."""
        return self._identity

    @property
    def max_model_len(self) -> int:
        """Most tokens a document may have."""
        return self._max_model_len

    @property
    def hint_shape(self) -> HintShape | None:
        """What hints it could give."""
        return self._hint_shape

    def gives_hints(self, hints: HintSpec) -> bool:
        """All of them, whatever it was loaded for."""
        return self._hint_shape is not None

    def capture(self, tasks: Iterable[CaptureTask | None], spec: CaptureSpec) -> Iterator[CaptureResult]:
        """Yield one result per task, in order; see `Engine.capture`."""
        spec.require_vocabulary(self._identity.vocab_size)
        require_hints(self, spec)
        captures: dict[CaptureSpec, RecordCapture] = {}
        scratch = Scratch()
        for batch in _batches(tasks, self._batch_documents):
            sound = []
            for task in batch:
                reason = refusal(task, max_model_len=self._max_model_len, vocab_size=self._identity.vocab_size)
                if reason is None and task.spec is not None:
                    try:
                        require_hints(self, task.spec)
                    except CaptureSpecError as error:
                        reason = str(error)
                if reason is None:
                    sound.append(task)
                else:
                    yield CaptureResult(key=task.key, document=None, error=reason)
            wanted = {task.spec or spec for task in sound}
            if len(captures | dict.fromkeys(wanted)) > _KEPT_CAPTURES:
                captures = {}
            for each in wanted - captures.keys():
                captures[each] = RecordCapture(each, self._identity.vocab_size, scratch=scratch)
            if sound:
                yield from self._batch(sound, [captures[task.spec or spec] for task in sound])

    @torch.inference_mode()
    def logits(self, token_ids_L: IdArray) -> torch.Tensor:
        """Logits [L - 1, V] of a document's tokens from the second on, on the model's device.

        Raises:
            ModelError: the teacher cannot take the document.
        """
        task = CaptureTask(key=None, token_ids_L=token_ids_L)
        if reason := refusal(task, max_model_len=self._max_model_len, vocab_size=self._identity.vocab_size):
            raise ModelError(reason)
        input_ids_1L = torch.from_numpy(token_ids_L.astype("int64"))[None].to(self._device)
        logits_PV: torch.Tensor = self._model(input_ids=input_ids_1L, use_cache=False).logits[0, :-1]
        return logits_PV

    def interrupt(self) -> bool:
        """It computes in this process; see `Engine.interrupt`."""
        return False

    def close(self) -> None:
        """Let go of the model. Idempotent."""
        self._model = None

    @torch.inference_mode()
    def _batch(self, tasks: list[CaptureTask], captures: list[RecordCapture]) -> list[CaptureResult]:
        """Capture documents that the teacher can take, in one padded forward pass."""
        ids = [torch.from_numpy(task.read_ids.astype("int64")) for task in tasks]
        input_ids_BL = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(self._device)
        lengths_B1 = torch.tensor([len(document) for document in ids], device=self._device)[:, None]
        mask_BL = torch.arange(input_ids_BL.shape[1], device=self._device) < lengths_B1
        # Padding sits on the right, where causal attention keeps it from every real position.
        arguments = {"attention_mask": mask_BL} if len(tasks) > 1 else {}
        asked = [capture.spec.hints for capture in captures if capture.spec.hints is not None]
        heard, logits_BLV = self._heard(asked, {"input_ids": input_ids_BL, "use_cache": False, **arguments})
        return [
            self._reduce(task, captures[i], logits_BLV[i], ids[i], {layer: rows[i] for layer, rows in heard.items()})
            for i, task in enumerate(tasks)
        ]

    def _heard(
        self, asked: Sequence[HintSpec], arguments: dict[str, Any]
    ) -> tuple[dict[tuple[HintKind, int], torch.Tensor], torch.Tensor]:
        """A forward pass: what the hints ask for, by kind and layer, [B, L, D], and the logits [B, L, V]."""
        heard: dict[tuple[HintKind, int], torch.Tensor] = {}
        handles: list[Any] = []
        try:
            for of, layer in sorted({(hints.of, layer) for hints in asked for layer in hints.layers}):
                if of != "hidden":
                    assert self._hint_shape is not None  # gives_hints said so
                    take: Take = lambda number, rows, of=of: heard.update({(of, number): rows})  # type: ignore[misc]  # noqa: E731
                    handles += listen(self._model, layer, of, self._hint_shape, take)
            wants_hidden = any(hints.of == "hidden" for hints in asked)
            output = self._model(**arguments, **({"output_hidden_states": True} if wants_hidden else {}))
        finally:
            for handle in handles:
                handle.remove()
        if wants_hidden:
            heard |= {("hidden", layer): rows for layer, rows in enumerate(output.hidden_states)}
        return heard, output.logits

    def _reduce(
        self,
        task: CaptureTask,
        capture: RecordCapture,
        logits_LV: torch.Tensor,
        ids_L: torch.Tensor,
        heard: dict[tuple[HintKind, int], torch.Tensor],
    ) -> CaptureResult:
        """The records of a document, from the logits [L, V] of all that was read of it, L tokens.

        Its hints come from what was heard of each layer, [L, D], which may be longer.
        """
        positions_P = torch.from_numpy(task.extent.positions(len(task.token_ids_L)))
        rows_P = positions_P + task.shift
        keys_P = torch.full_like(positions_P, document_key(task.token_ids_L))
        # A copy of the rows where some are left out: the capture may write over what it is given.
        whole = task.recorded_R2 is None and task.context is None
        logits_PV = logits_LV[: len(ids_L) - 1] if whole else logits_LV[rows_P.to(self._device)]
        next_ids_P, keys_P, positions_P = (
            column.to(self._device) for column in (ids_L[rows_P + 1], keys_P, positions_P)
        )
        columns = capture(logits_PV, next_ids_P, keys_P, positions_P)
        packed, spec = pack_wire(columns.on_host(), self._identity.vocab_size), capture.spec.hints
        if spec is not None:
            at = (
                rows_P.to(self._device)
                if spec.positions == "all"
                else torch.tensor([len(ids_L) - 1], device=self._device)
            )
            values_RKD = torch.stack([heard[spec.of, layer][at] for layer in spec.layers], dim=1)
            packed = torch.cat([packed, pack_hints(encode_hints(values_RKD, spec)).cpu()])
        records, hints = decode_document(packed.numpy(), capture.spec)
        return result_of(task, records, self._identity.vocab_size, hints, spec)


def _batches(tasks: Iterable[CaptureTask | None], size: int) -> Iterator[list[CaptureTask]]:
    """So many tasks at a time, or as many as there are just now."""
    batch: list[CaptureTask] = []
    for task in tasks:
        if task is not None:
            batch.append(task)
        if batch and (task is None or len(batch) == size):
            yield batch
            batch = []
    if batch:
        yield batch
