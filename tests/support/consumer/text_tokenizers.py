"""Small tokenizers of the usual kinds, trained on text of the standard library."""

import functools
import inspect
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_fast: Any = PreTrainedTokenizerFast  # untyped where it is made


@functools.cache
def corpus() -> list[str]:
    """Docstrings of modules that every Python has."""
    import argparse
    import ast
    import collections
    import decimal
    import difflib
    import heapq
    import logging
    import pathlib
    import random
    import statistics
    import subprocess
    import threading

    texts = []
    modules = (argparse, ast, collections, decimal, difflib, heapq, logging, pathlib, random, statistics, subprocess)
    for module in (*modules, threading):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                texts.append(textwrap.dedent(text))
    return texts


def byte_level(vocab_size: int = 600, *, bos: bool = False, texts: Sequence[str] | None = None) -> Any:
    """Byte-level BPE, as GPT-2's; with `bos` it begins every text with its special token."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<end>", "<begin>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    core.train_from_iterator(corpus() if texts is None else texts, trainer)
    options = {"eos_token": "<end>", "pad_token": "<end>"}
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 1)])
        options["bos_token"] = "<begin>"
    return _fast(tokenizer_object=core, **options)


def single_bytes() -> Any:
    """One token per byte: a refinement of every other tokenizer."""
    return byte_level(258, texts=["a"])


def sentencepiece_like(vocab_size: int = 700) -> Any:
    """BPE with a sign for the space, a space put before the text, and bytes for unknown characters, as Llama's."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False
    )
    core.train_from_iterator(corpus(), trainer)
    # Bytes are pieces of the model, not added tokens that a text could spell.
    state = json.loads(core.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    core = Tokenizer.from_str(json.dumps(state))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _fast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def with_added_word(tokenizer: Any, word: str) -> Any:
    """The tokenizer with a word of its own, not special."""
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False)])
    return tokenizer
