"""A Trainer of one's own, as docs/python.md has it; one of two processes: CASK OUTPUT."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from logitcask_consumer.data import CaskDataset, Collator, open_casks
from logitcask_consumer.methods import SparseTargetLoss
from logitcask_consumer.processes import leave_processes
from logitcask_consumer.student.forward import attach
from tests.support.consumer.cask_builder import tiny_model


class OwnTrainer(Trainer):
    distillation: SparseTargetLoss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        processes = self.accelerator.num_processes
        value = self.distillation.through(model, inputs, num_items=num_items_in_batch, processes=processes)
        return (value, {}) if return_outputs else value

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        dataset: Any = self.train_dataset
        return torch.utils.data.SequentialSampler(dataset)  # the same four sequences for any number of processes


def trained(cask: Path, folder: Path, *, micro: int) -> dict[str, Any]:
    """Loss, gradient norm and weights after one step on four sequences."""
    dataset = CaskDataset(open_casks(cask, tokenizer_fingerprint=None), seq_len=64)
    model = tiny_model(layers=2, seed=1)
    attach(model)
    args = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=micro,
        learning_rate=0.1,
        optim="sgd",
        report_to="none",
        lr_scheduler_type="constant",
        logging_steps=1,
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        max_grad_norm=100.0,
        disable_tqdm=True,
    )
    collator: Any = Collator(seq_len=64)
    trainer = OwnTrainer(model, args, collator, dataset)
    trainer.distillation = SparseTargetLoss(capture=dataset.manifest.capture)
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    return {"loss": line["loss"], "grad_norm": float(line["grad_norm"]), "weights": dict(model.state_dict())}


if __name__ == "__main__":
    cask, output = map(Path, sys.argv[1:3])
    torch.save(trained(cask, output, micro=2), f"{output}-{os.environ['RANK']}.pt")
    leave_processes()
