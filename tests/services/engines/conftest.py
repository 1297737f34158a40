"""Tiny random models in the Hugging Face layout, made on the spot."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 300


def save_tokenizer(folder, vocab_size=VOCAB):
    """A word-level tokenizer of the given size with a chat template."""
    vocabulary = {f"w{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w1")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def tokenizer_saver():
    """`save_tokenizer`, for models that a test makes itself."""
    return save_tokenizer


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """Folder of a two-layer Llama with random weights, vocabulary 300, 128 positions."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    return folder
