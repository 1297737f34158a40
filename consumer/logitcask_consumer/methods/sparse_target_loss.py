"""The loss on the teacher's sparse records: of hidden states in a plain loop, or within a student's forward.

Shape legend: B sequences, S slots, T trained positions, D hidden size, K terms of a mix.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitcask_consumer.data import Batch, target_of
from logitcask_consumer.head import DenseTarget, LMHead, distillation_loss
from logitcask_consumer.losses import Objective, SparseTarget
from logitcask_consumer.losses.loss import Terms
from logitcask_consumer.losses.target import take_target
from logitcask_consumer.student.forward import StateTask
from logitcask_consumer.student.router_loss import with_router_loss
from logitcask_consumer.weights import EntropyTop, Weights
from logitcask_schemas.errors import IdentityMismatchError, ModelError
from logitcask_schemas.record.capture_spec import CaptureSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillTask:
    """What the LM head needs to yield the loss of T positions; a `HeadTask`."""

    target: SparseTarget
    slots_T: Tensor
    """Flat index b·S + s of each trained position, int64."""
    terms: Terms
    """Losses and their weights."""
    max_id: int = 0
    """Largest id of the records and of the realised tokens, as far as it is known."""
    weights_T: Tensor | None = None
    """Weight of each position; None for 1."""
    selection: EntropyTop | None = None
    """Which of the positions are trained, by the student's entropy; None for all."""
    block_rows: int | None = None
    """Rows of logits held at a time; None chooses what fits the device, see `default_rows`."""
    width: int | None = None
    """Ids of the student's distribution, where it ends before those of the head; see `vocabulary`."""
    dense: DenseTarget | None = None
    """The teacher's whole distribution of the rows, in place of `target`."""
    states: StateTask | None = None
    """Hint losses."""

    def at_head(self, hidden_TD: Tensor, head: LMHead, sequences_T: Tensor) -> dict[str, Tensor | None]:
        """The summed loss, and of the positions that are trained terms [K, T], ce, entropy, weights and numbers [T].

        Raises:
            IdentityMismatchError: a record holds an id that the student cannot predict.
        """
        if self.max_id >= (ids := min(head.vocab_size, self.width or head.vocab_size)):
            raise IdentityMismatchError(
                f"the batch holds id {self.max_id:,}, the student predicts {ids:,} ids. Take a student with the "
                "teacher's ids (resize_token_embeddings), or leave such documents out; a Collator that is given the "
                "student's `vocabulary` names them"
            )
        head, weights_T = head.narrowed(self.width), self.weights_T
        target: SparseTarget | DenseTarget = self.target if self.dense is None else self.dense
        rows: Tensor | None = None
        if self.selection is not None:
            rows = self.selection.choose(hidden_TD, head, sequences_T, self.block_rows)
            hidden_TD = hidden_TD.index_select(0, rows)
            target = target.take(rows) if isinstance(target, DenseTarget) else take_target(target, rows)
            weights_T = None if weights_T is None else weights_T.index_select(0, rows)
        result = distillation_loss(hidden_TD, head, target, self.terms, weights_T=weights_T, block_rows=self.block_rows)
        return {
            "loss": result.loss,
            "terms_KT": result.terms_KT,
            "ce_T": result.ce_T,
            "entropy_T": target.entropy_R,
            "weights_T": weights_T,
            "rows_T": rows,
        }


class SparseTargetLoss(nn.Module):
    """The distillation loss of a batch of a `CaskDataset`, for a training loop of one's own."""

    def __init__(
        self,
        loss: str = "forward_kl",
        *,
        capture: CaptureSpec,
        ce_weight: float = 0.0,
        weights: Weights | None = None,
        block_rows: int | None = None,
        width: int | None = None,
        dense: bool = False,
    ) -> None:
        """Read the loss and compare it with the records.

        Args:
            loss: a loss, or a mix of them; docs/losses.md has all.
            capture: how the records were made: `dataset.manifest.capture`.
            ce_weight: share of the cross-entropy with the realised tokens, 0 to 1.
            weights: those of the dataset, `dataset.weights`; None for 1.
            block_rows: rows of logits held at a time; None chooses what fits the device, see `default_rows`.
            width: ids of the student's distribution, where it is to end before those of the head.
            dense: the tasks will get a `DenseTarget`, so that records need not serve the loss.

        Raises:
            UnknownLossError, LossParameterError: the loss is not understood.
            LossMismatchError: the records lack what it needs.
        """
        super().__init__()
        self.objective = Objective.parse(loss).with_cross_entropy(ce_weight)
        if not dense:
            self.objective.require(capture)
        self.weights = weights or Weights()
        self.block_rows, self.width = block_rows, width
        temperature = self.objective.temperature
        self._sampled_tail = capture.mode != "topk"
        self.exact_entropy = dense or not capture.entropy_is_bound
        """Whether the records' entropy is H(t), and not a lower bound of it."""
        self._log_z_column = None if dense or temperature is None else capture.temperatures.index(temperature)

    def forward(
        self,
        hidden_BSD: Tensor,
        head: LMHead | Any,
        batch: Batch,
        *,
        num_items: Tensor | float | None = None,
        progress: float = 0.0,
    ) -> Tensor:
        """The loss of a batch in nats, a differentiable scalar.

        Args:
            hidden_BSD: last hidden states of the student's body, such as `student.forward.hidden_states` gives. A call
                of one's own needs `position_ids` and `use_cache=False`: with a cache, transformers lets packed
                documents see each other.
            head: the causal LM whose head is applied, or its `LMHead`.
            batch: from a `Collator`, on the same device.
            num_items: what to divide the sum by, where the batch is a part of a step: `counted` of all its batches;
                None takes the batch's own mean. Without weights that is the number of positions, as labels count it.
            progress: part of the run done, 0 to 1, for weights that follow a schedule.

        Raises:
            ValueError: `num_items` counts positions that have weights.
            IdentityMismatchError: a record holds an id that the student cannot predict.
        """
        task = self.task(batch, progress)
        hidden_TD = hidden_BSD.flatten(0, 1).index_select(0, task.slots_T)
        head = head if isinstance(head, LMHead) else LMHead.from_model(head)
        loss = task.at_head(hidden_TD, head, task.slots_T // hidden_BSD.shape[1])["loss"]
        assert loss is not None
        return self._divided(loss, batch, num_items)

    def through(
        self,
        model: Any,
        batch: Batch,
        *,
        num_items: Tensor | float | None = None,
        processes: int = 1,
        progress: float = 0.0,
    ) -> Tensor:
        """The loss of a batch, made within the student's own forward call, which DDP, FSDP and accelerate wrap.

        Args:
            model: a causal LM that `student.forward.attach` was called on, perhaps wrapped since.
            batch: from a `Collator`, on the same device.
            num_items: what to divide the sum by, see `forward`.
            processes: over how many `num_items` was counted, where the gradients are averaged over them.
            progress: part of the run done, 0 to 1, for weights that follow a schedule.

        Raises:
            ModelError: `attach` was not called on the model.
            ValueError, IdentityMismatchError: as `forward`.
        """
        task = self.task(batch, progress)
        out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        if not isinstance(out, dict) or out.get("loss") is None:
            raise ModelError(f"{type(model).__name__} makes no loss: call `attach(model)` once, before it is wrapped")
        loss = self._divided(with_router_loss(out, self.counted(batch)), batch, num_items)
        return loss if num_items is None else loss * processes

    def _divided(self, loss: Tensor, batch: Batch, num_items: Tensor | float | None) -> Tensor:
        if num_items is None:
            total = self.counted(batch)
        else:
            total = torch.as_tensor(num_items, device=loss.device)
            if self.weights and not total.is_floating_point():
                raise ValueError(
                    "num_items is a number of positions, and these have weights: give the sum of `loss.counted(batch)` "
                    "over the whole step, a float. Transformers counts labels; DistillTrainer counts weights"
                )
        # A batch without a trained position has the loss 0, and gradients of 0.
        return loss * torch.where(total > 0, 1.0 / total, 0.0).to(loss.dtype)

    def task(self, batch: Batch, progress: float) -> DistillTask:
        """What a student's forward needs, as `distill=`, to yield the loss of a batch; see `student.forward.attach`."""
        return DistillTask(
            target=target_of(batch, sampled_tail=self._sampled_tail, log_z_column=self._log_z_column),
            slots_T=batch["slots"],
            terms=self.objective.terms(progress),
            max_id=batch["max_id"],
            weights_T=batch["weights"],
            selection=self.weights.selection,
            block_rows=self.block_rows,
            width=self.width,
        )

    def counted(self, batch: Batch) -> Tensor:
        """Sum of the weights of the positions that will be trained; float64, a scalar."""
        return self.weights.total(batch["weights"], batch["slots"], batch["input_ids"].shape[1])
