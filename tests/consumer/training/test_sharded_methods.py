"""Runs with --fsdp over gloo of losses on chunks, and of several teachers: curve and student of one process."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_schemas.record.identity import tokenizer_fingerprint
from tests.support.consumer.cask_builder import build_cask, random_documents, save_teacher, tiny_model, tiny_tokenizer
from tests.support.consumer.text_tokenizers import byte_level, corpus
from tests.support.consumer.two_processes import run_in_two_processes

FAMILIES = ("alm", "uld", "teachers", "tied-teachers")


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, TrainConfig]:
    folder = tmp_path_factory.mktemp("methods")
    tokenizer = byte_level(500)
    texts = [text[:160] for text in corpus() if len(text) > 60][:12]
    documents = [np.array(tokenizer(text)["input_ids"], dtype=np.uint16) for text in texts]
    fields: dict[str, Any] = {"vocab_size": 512, "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    build_cask(folder / "text", save_teacher(folder / "bytes", vocab_size=512), documents, **fields)
    tokenizer.save_pretrained(folder / "bytes")
    tiny_model(vocab_size=336, layers=2, seed=1).save_pretrained(folder / "other")
    byte_level(330, bos=True).save_pretrained(folder / "other")
    for seed, name in enumerate("ab"):
        teacher = save_teacher(folder / f"teacher-{name}", seed=seed)
        build_cask(folder / name, teacher, random_documents(14 - 8 * seed, seed=seed), weights_digest=str(seed) * 64)
    tiny_model(layers=2, seed=5, tie_word_embeddings=True).save_pretrained(folder / "tied")
    tiny_tokenizer().save_pretrained(folder / "tied")
    base = TrainConfig(
        casks=(folder / "text",),
        student=str(folder / "other"),
        teacher=folder / "bytes",
        output=folder,
        seq_len=64,
        overlap=8,
        batch_tokens=256,
        micro_tokens=64,
        max_steps=4,
        lr=3e-3,
        save_steps=100,
    )
    mixed = replace(
        base,
        casks=(f"{folder / 'a'}:0.7", f"{folder / 'b'}:2:forward_kl + 0.1*reverse_kl"),
        student="from-teacher:layers=2",
        teacher=folder / "teacher-a",
    )
    return {
        "alm": replace(base, loss="alm + cross_entropy"),
        "uld": replace(base, loss="uld"),
        "teachers": mixed,
        "tied-teachers": replace(mixed, student=str(folder / "tied")),
    }


@pytest.fixture(scope="module")
def runs(configs):
    """The folder with the runs of one process and of two."""
    folder = configs["alm"].output
    for name, config in configs.items():
        train(replace(config, output=folder / f"one-{name}"))
    shared = [replace(config, output=folder / f"two-{name}", fsdp=True) for name, config in configs.items()]
    run_in_two_processes("ddp_worker", *(json.dumps(config.as_dict()) for config in shared))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_that_share_a_student_train_as_one(runs, family):
    alone, shared = runs / f"one-{family}", runs / f"two-{family}"
    expected, lines = (read_metrics(folder / "metrics.jsonl") for folder in (alone, shared))
    assert len(lines) == len(expected) == 4
    for line, other in zip(expected, lines, strict=True):
        for name in ("loss", "grad_norm", "ce", "positions"):
            assert other[name] == pytest.approx(line[name], rel=1e-4), name
    weights, others = (load_file(folder / "model.safetensors") for folder in (alone, shared))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert float((others[name] - value).abs().max()) <= 1e-4, name
