"""What the figures of written texts rest on: the loss, the batches, the writing and the corpus reader of bench/."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
from black_box import Example, batches, completion_loss, fine_tune, rate, read_examples, write

VOCABULARY, END = 40, 2
EXAMPLES = [
    Example(prompt_ids=(5, 6, 7), completion_ids=(8, 9, END)),
    Example(prompt_ids=(5, 11), completion_ids=(12, END)),
    Example(prompt_ids=(13, 14, 15, 16), completion_ids=(17, 18, 19, END)),
]
TOKENIZER = SimpleNamespace(eos_token_id=END)


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=END,
        pad_token_id=END,
    )
    return LlamaForCausalLM(config).eval()


def alone(model, one):
    """Sum of the cross-entropy of a completion, by a forward pass of its own without padding."""
    ids = torch.tensor([one.prompt_ids + one.completion_ids])
    logp_LV = model(ids).logits[0].log_softmax(-1)
    start = len(one.prompt_ids)
    return -sum(logp_LV[start + n - 1, token] for n, token in enumerate(one.completion_ids))


def test_the_loss_is_the_mean_over_completion_tokens_of_each_example_alone(model):
    tokens = sum(len(one.completion_ids) for one in EXAMPLES)
    expected = sum(alone(model, one) for one in EXAMPLES) / tokens
    torch.testing.assert_close(completion_loss(model, EXAMPLES), expected)


def test_prompts_do_not_count_beyond_being_read(model):
    whole = [
        Example(prompt_ids=one.prompt_ids[:1], completion_ids=one.prompt_ids[1:] + one.completion_ids)
        for one in EXAMPLES
    ]
    assert not torch.isclose(completion_loss(model, whole), completion_loss(model, EXAMPLES))


def test_training_teaches_what_is_written_greedily(model):
    prompts = [one.prompt_ids for one in EXAMPLES]
    expected = [one.completion_ids for one in EXAMPLES]
    assert write(model, TOKENIZER, prompts, temperature=0, max_new_tokens=6) != expected
    lines = []
    fine_tune(model, EXAMPLES, steps=60, batch=3, lr=1e-2, seed=1, say=lines.append)
    assert write(model, TOKENIZER, prompts, temperature=0, max_new_tokens=6) == expected
    assert [line.partition(":")[0] for line in lines] == [f"step {n} of 60" for n in range(10, 61, 10)]


def test_texts_do_not_depend_on_how_many_are_written_at_a_time(model):
    prompts = [one.prompt_ids for one in EXAMPLES]
    together = write(model, TOKENIZER, prompts, temperature=0, max_new_tokens=5)
    assert together == write(model, TOKENIZER, prompts, temperature=0, max_new_tokens=5, sequences=1)
    assert all(len(text) <= 5 for text in together)


def test_batches_go_through_all_examples_in_every_epoch():
    chosen = list(batches(EXAMPLES, steps=6, batch=2, seed=3))
    assert [len(some) for some in chosen] == [2] * 6
    flat = [one for some in chosen for one in some]
    for epoch in range(4):
        assert set(flat[3 * epoch : 3 * epoch + 3]) == set(EXAMPLES)
    assert chosen == list(batches(EXAMPLES, steps=6, batch=2, seed=3))
    assert chosen != list(batches(EXAMPLES, steps=6, batch=2, seed=4))


def test_the_rate_rises_to_its_peak_and_falls_to_a_tenth():
    rates = [rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_a_generated_corpus_is_read_as_prompt_and_completion(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [{"input_ids": [5, 6, 8, 2], "labels": [-100, -100, 8, 2], "custom_id": "a"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_examples(path) == [Example(prompt_ids=(5, 6), completion_ids=(8, 2))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 1: expected lists input_ids and labels, got \\['text'\\]"),
        ({"input_ids": [5, 6], "labels": None}, "expected lists"),
        ({"input_ids": [5, 6], "labels": [-100, -100]}, "a completion at the end"),
        ({"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}, "a completion at the end"),
        ({"input_ids": [5, 6], "labels": [-100, 7]}, "a completion at the end"),
        ({"input_ids": [5, 6], "labels": [5, 6]}, "a completion at the end"),
        ({"input_ids": [5, 6], "labels": [-100, 6, 6]}, "a completion at the end"),
    ],
)
def test_lines_that_are_no_examples_are_refused(tmp_path, row, message):
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        read_examples(path)
