"""CrossTokenizerTrainer: the trainer's loop with chunk losses on a `CrossTokenizerDataset`."""

import math
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.cross_tokenizer.collate import ChunkBatch, ChunkCollator, target_of_chunks
from logitcask_consumer.cross_tokenizer.dataset import CrossTokenizerDataset
from logitcask_consumer.cross_tokenizer.forward import ChunkTask, attach_chunks
from logitcask_consumer.cross_tokenizer.losses import ChunkObjective
from logitcask_consumer.processes import processes
from logitcask_consumer.training.arguments import training_arguments
from logitcask_consumer.training.trainer import DistillTrainer, kept_use_cache


class CrossTokenizerTrainer(DistillTrainer):
    """Trains a student with its own tokenizer.

    The loss of an optimizer step is the sum of its terms over all micro-batches and processes, divided by the number of
    student tokens that they predict. Everything else is the base class'.
    """

    def __init__(
        self,
        model: Any,
        dataset: CrossTokenizerDataset,
        config: TrainConfig,
        *,
        objective: ChunkObjective,
        collator: ChunkCollator,
        closing_V: NDArray[np.bool_],
        checkpoints: Path,
        tokenizer: Any,
        callbacks: list[TrainerCallback] | None = None,
        sequences_per_step: int | None = None,
    ) -> None:
        """Prepare training.

        Args:
            model: a causal LM; its forward learns to yield losses.
            dataset: what to train on.
            config: the run.
            objective: what the run minimises.
            collator: of teacher and student.
            closing_V: the student's tokens that begin a new word.
            checkpoints: folder for checkpoints.
            tokenizer: the student's, saved beside the weights.
            callbacks: besides those of transformers.
            sequences_per_step: as in the base class.
        """
        self.distill_config = config
        self.chunk_objective = objective
        attach_chunks(model)
        self.sequences_per_step = sequences_per_step or config.step_sequences(
            processes().num_processes, slots=len(dataset) * dataset.seq_len
        )
        # The base class' own preparation is for records of the student's tokens.
        with kept_use_cache(model):
            Trainer.__init__(
                self,
                model=model,
                args=training_arguments(config, checkpoints, sequences=self.sequences_per_step),
                train_dataset=cast("Any", dataset),
                data_collator=cast("Any", collator),
                processing_class=tokenizer,
                callbacks=callbacks,
            )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # as in the base class
        self._closing_V = torch.from_numpy(closing_V).to(self.args.device)
        # Terms, ce, then the batch's counts, since the last log; on the device, so that no step waits for them.
        self._sums = torch.zeros(len(self.chunk_objective.losses) + 6, dtype=torch.float64, device=self.args.device)
        self._since = time.monotonic()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of one micro-batch, already divided by the counted rows of the whole optimizer step."""
        batch: ChunkBatch = inputs
        task = ChunkTask(
            target=target_of_chunks(batch),
            slots_R=batch["slots"],
            terms=self.chunk_objective.terms(self.state.global_step / max(self.state.max_steps, 1)),
            closing_V=self._closing_V,
            chunk_rows=self.distill_config.chunk_rows,
        )
        out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)
        if model.training:
            found = torch.cat([out["terms_K"], out["ce"][None]]).to(torch.float64)
            self._sums += torch.cat([found, batch["counts"].to(found.device)])
        if num_items_in_batch is None:
            loss = out["loss"] / batch["counts"][0].clamp(min=1.0).to(out["loss"].dtype)
        else:
            # DDP averages gradients over processes; the divisor already counts the rows of all of them.
            loss = out["loss"] * (self.accelerator.num_processes / num_items_in_batch).to(out["loss"].dtype)
        return (loss, out) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Counted rows of all micro-batches of an optimizer step, over all processes; a float64 scalar."""
        own = torch.stack([batch["counts"][0].to(device) for batch in batch_samples]).sum()
        return self._over_processes(own).clamp(min=1.0)

    def _with_metrics(self, logs: dict[str, float]) -> dict[str, float]:
        sums = self.accelerator.reduce(self._sums, reduction="sum").tolist()
        *terms, ce, rows, text_bytes, chunks, chunk_bytes, teacher_nats = sums
        now = time.monotonic()
        each = max(rows, 1.0)
        more = {"kd": terms[0] / each, "ce": ce / each}
        if len(terms) > 1:
            names = (loss.spec for loss in self.chunk_objective.losses)
            more |= {f"loss/{name}": value / each for name, value in zip(names, terms, strict=True)}
        more |= {
            # Per byte, since a token of one side is not a token of the other.
            "bits_per_byte": _bits(ce, text_bytes),
            "teacher_bits_per_byte": _bits(teacher_nats, chunk_bytes),
            "chunks": chunks,
            "positions": rows,
            "tokens_per_second": rows / max(now - self._since, 1e-9),
        }
        self._sums.zero_()
        self._since = now
        renamed = {"learning_rate": "lr"}
        return {renamed.get(name, name): value for name, value in logs.items()} | more


def _bits(nats: float, text_bytes: float) -> float:
    return nats / (math.log(2.0) * max(text_bytes, 1.0))
