"""Distil in a `transformers.Trainer` of one's own: `python own_trainer.py CASK STUDENT OUTPUT [--steps N]`.

`logitcask.DistillTrainer` does more (exact resumption, the same result for any number of processes); this is for those
who have a Trainer already.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from logitcask import CaskDataset, Collator, SparseTargetLoss, attach


class StudentTrainer(Trainer):
    """Any Trainer; only the loss is ours."""

    distillation: SparseTargetLoss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Divided by what transformers counts over the whole step, so that accumulation changes nothing."""
        processes = self.accelerator.num_processes
        loss = self.distillation.through(model, inputs, num_items=num_items_in_batch, processes=processes)
        return (loss, {}) if return_outputs else loss


def main() -> None:
    """Read the arguments, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cask", help="folder or URL of a cask")
    parser.add_argument("student", type=Path, help="folder of a causal LM with the teacher's tokenizer")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seq-len", type=int, default=512)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.student)
    model = AutoModelForCausalLM.from_pretrained(options.student, dtype=torch.float32)
    attach(model)
    dataset = CaskDataset.open(options.cask, tokenizer=tokenizer, seq_len=options.seq_len)
    args = TrainingArguments(
        str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-4,
        logging_steps=1,
        report_to="none",
        remove_unused_columns=False,  # the batch holds records, which no forward of transformers knows
        save_strategy="no",
    )
    collator: Any = Collator(seq_len=options.seq_len)  # a batch is read in one go, not a list of examples
    trainer = StudentTrainer(model, args, collator, dataset, processing_class=tokenizer)
    trainer.distillation = SparseTargetLoss("forward_kl", capture=dataset.manifest.capture)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
