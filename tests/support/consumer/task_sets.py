"""Questions with known answers, a model that knows them all, and what any model answers by a dense computation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitcask_consumer.tasks.questions import Question
from logitcask_consumer.tasks.write_task import write_task
from tests.support.consumer.cask_builder import VOCAB, tiny_model, tiny_tokenizer

ASKED = range(2, 49)
"""Numbers of the words that questions end in; the answer is the word `STEP` further."""
STEP = 47
EOS = 1


def save_knowing_model(folder: Path) -> Any:
    """A model that says word N + 47 after a question that ends in word N, and nothing more.

    Embeddings are unit vectors and layers add nothing, so a row of the head says after which words its own comes.
    """
    model = tiny_model(layers=1, hidden_size=104)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedded, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embedded.copy_(torch.eye(VOCAB, embedded.shape[1]))
        head.zero_()
        for word in range(VOCAB):
            head[word + STEP if word in ASKED else EOS, word] = 1.0
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def knowable_questions(count: int, *, seed: int = 0, choices: int | None = 4, words: int = 6) -> list[Question]:
    """Questions that differ and whose answer follows from their last word, in choices at places drawn by a seed."""
    rng, questions = np.random.default_rng(seed), list[Question]()
    while len(questions) < count:
        asked = rng.choice(ASKED, words, replace=False).tolist()
        text, right = " ".join(f"w{word}" for word in asked), f"w{asked[-1] + STEP}"
        if choices is None:
            questions.append(Question(text=text, choices=None, answer=right))
            continue
        wrong = rng.choice([word + STEP for word in ASKED if word != asked[-1]], choices - 1, replace=False)
        offered = [right, *(f"w{word}" for word in wrong.tolist())]
        order = rng.permutation(choices).tolist()
        listed = tuple(offered[place] for place in order)
        questions.append(Question(text=text, choices=listed, answer=order.index(0)))
    return questions


def save_task(folder: Path, questions: Sequence[Question], name: str = "known", **options: Any) -> Path:
    """The questions as a task whose prompt is the question alone."""
    return write_task(questions, folder, name=name, **{"prompt": "{{question}}", **options})


def rewritten(path: Path, changes: dict[str, Any]) -> Path:
    """A task file with other keys; None takes one out. JSON is YAML."""
    import yaml

    config = {**yaml.safe_load(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


def dense_choice(model: Any, tokenizer: Any, prompt: str, choices: Sequence[str]) -> tuple[int, float]:
    """The likeliest choice after a prompt, in float64, one choice at a time; and how much likelier than the second."""
    before = len(tokenizer(prompt)["input_ids"])
    scores = []
    for choice in choices:
        ids = torch.tensor([tokenizer(f"{prompt} {choice}")["input_ids"]])
        with torch.inference_mode():
            logprobs = torch.log_softmax(model.double()(input_ids=ids).logits.double(), -1)
        said = logprobs[0, before - 1 : -1].gather(-1, ids[0, before:, None])
        scores.append(float(said.sum()))
    ordered = sorted(scores)
    return int(np.argmax(scores)), ordered[-1] - ordered[-2]
