"""Train a student from a cask in a plain PyTorch loop: `python plain_loop.py CASK STUDENT OUTPUT [--steps N]`."""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from logitcask import CaskDataset, Collator, SparseTargetLoss, hidden_states


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
    model = AutoModelForCausalLM.from_pretrained(options.student, dtype=torch.float32).train()
    dataset = CaskDataset.open(options.cask, tokenizer=tokenizer, seq_len=options.seq_len)
    loss = SparseTargetLoss("forward_kl", capture=dataset.manifest.capture)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = DataLoader(dataset, batch_size=4, shuffle=True, collate_fn=Collator(seq_len=options.seq_len))
    step = 0
    while step < options.steps:
        for batch in batches:
            hidden = hidden_states(model, batch["input_ids"], batch["position_ids"])
            value = loss(hidden, model, batch)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            print(f"step {step}: {value.item():.3f} nats")
            if step == options.steps:
                break
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
