"""Distil on one or many devices with Accelerate: `accelerate launch accelerate_loop.py CASK STUDENT OUTPUT`."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitcask import CaskDataset, Collator, SparseTargetLoss, attach


def main() -> None:
    """Read the arguments, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cask", help="folder or URL of a cask")
    parser.add_argument("student", type=Path, help="folder of a causal LM with the teacher's tokenizer")
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=512)
    options = parser.parse_args()

    accelerator = Accelerator(gradient_accumulation_steps=2)
    tokenizer = AutoTokenizer.from_pretrained(options.student)
    model = AutoModelForCausalLM.from_pretrained(options.student, dtype=torch.float32).train()
    attach(model)  # before it is wrapped: the loss is made within the forward that DDP and FSDP wrap
    dataset = CaskDataset.open(options.cask, tokenizer=tokenizer, seq_len=options.seq_len)
    loss = SparseTargetLoss("forward_kl", capture=dataset.manifest.capture)
    loader = DataLoader(dataset, batch_size=2, shuffle=True, collate_fn=Collator(seq_len=options.seq_len))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for _ in range(options.epochs):
        for batch in loader:
            with accelerator.accumulate(model):
                value = loss.through(model, batch)
                accelerator.backward(value)
                optimizer.step()
                optimizer.zero_grad()
            accelerator.print(f"{value.item():.3f} nats")
    accelerator.unwrap_model(model).save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    accelerator.end_training()


if __name__ == "__main__":
    main()
