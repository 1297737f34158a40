"""What the figures of texts that a teacher writes share: prompts as token ids, fine-tuning, writing, counting answers.

Plain PyTorch and transformers, so that a figure does not rest on the code that it is about. Where a corpus comes from
the service, its lines are read here too: exact ids of prompt and completion, never tokenised again.

Shape legend: B examples of a batch, L tokens of the longest, C completion tokens of a batch, D hidden size.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

DEFAULT_SEQUENCES: Final = 50
"""Texts that are written at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What a student is asked, and what it shall say, end of the turn included."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


def chat_prompt(tokenizer: Any, question: str) -> tuple[int, ...]:
    """A question as the chat template asks it, up to where the answer begins; the service's template `question`."""
    messages = [{"role": "user", "content": question}]
    return tuple(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def example(tokenizer: Any, question: str, completion: str) -> Example:
    """A question with a completion that ends its turn."""
    ids = tokenizer(completion, add_special_tokens=False).input_ids
    return Example(prompt_ids=chat_prompt(tokenizer, question), completion_ids=(*ids, tokenizer.eos_token_id))


def read_examples(path: Path) -> list[Example]:
    """Examples of a corpus that a generation wrote: lines with `input_ids` and `labels` (-100 where nothing is asked).

    Raises:
        ValueError: a line has none of them, or its labels are not one run up to the end.
    """
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        if not isinstance(row.get("input_ids"), list) or not isinstance(row.get("labels"), list):
            raise ValueError(f"{path}, line {number}: expected lists input_ids and labels, got {sorted(row)}")
        ids, labels = row["input_ids"], row["labels"]
        start = next((n for n, label in enumerate(labels) if label != -100), len(labels))
        if labels[start:] != ids[start:] or not 0 < start < len(ids):
            raise ValueError(f"{path}, line {number}: expected labels that are a completion at the end of input_ids")
        examples.append(Example(prompt_ids=tuple(ids[:start]), completion_ids=tuple(ids[start:])))
    return examples


def batches(examples: Sequence[Example], *, steps: int, batch: int, seed: int) -> Iterator[list[Example]]:
    """`steps` batches, epoch after epoch, each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < batch:
            order += torch.randperm(len(examples), generator=generator).tolist()
        yield [examples[number] for number in order[:batch]]
        del order[:batch]


def completion_loss(model: Any, chosen: Sequence[Example]) -> Tensor:
    """Mean cross-entropy of the completions' tokens, in nats."""
    rows = [torch.tensor(one.prompt_ids + one.completion_ids) for one in chosen]
    ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    places = [
        (number, position)
        for number, one in enumerate(chosen)
        for position in range(len(one.prompt_ids), len(one.prompt_ids) + len(one.completion_ids))
    ]
    row_C, position_C = torch.tensor(places).T
    # Padding sits on the right, where causal attention keeps it from every real position.
    hidden_BLD = model.get_decoder()(input_ids=ids_BL, use_cache=False).last_hidden_state
    logits_CV = model.get_output_embeddings()(hidden_BLD[row_C, position_C - 1])
    return torch.nn.functional.cross_entropy(logits_CV.float(), ids_BL[row_C, position_C])


def fine_tune(
    model: Any,
    examples: Sequence[Example],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    say: Callable[[str], None] = print,
) -> None:
    """Train in place: AdamW, warm-up over a tenth of the steps, then cosine to a tenth of the rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    model.train()
    for step, chosen in enumerate(batches(examples, steps=steps, batch=batch, seed=seed)):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(step, steps)
        # Weights and gradients stay float32; on a CPU with bfloat16 instructions this halves the time.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = completion_loss(model, chosen)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            say(f"step {step + 1} of {steps}: {loss.item():.4f} nats")
    model.eval()


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.inference_mode()
def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int = 0,
    sequences: int = DEFAULT_SEQUENCES,
) -> list[tuple[int, ...]]:
    """A text for each prompt, as token ids with the end of the turn where it came; temperature 0 is greedy."""
    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    options: dict[str, Any] = {"do_sample": False} if temperature == 0 else {"do_sample": True, "top_k": 0}
    if temperature:
        options["temperature"] = temperature
    written = []
    for first in range(0, len(prompts), sequences):
        some = prompts[first : first + sequences]
        width = max(map(len, some))
        ids_BL = torch.tensor([[end] * (width - len(one)) + list(one) for one in some])
        mask_BL = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in some])
        made = model.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            max_new_tokens=max_new_tokens,
            eos_token_id=end,
            pad_token_id=end,
            **options,
        )
        for row in made[:, width:].tolist():
            written.append(tuple(row[: row.index(end) + 1] if end in row else row))
    return written
