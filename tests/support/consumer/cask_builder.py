"""Casks for tests: documents of a tiny teacher, recorded by the reference sampler and published by the real writer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Extent
from logitcask_schemas.record.identity import TeacherIdentity, tokenizer_fingerprint
from logitcask_schemas.record.records import DocumentRecords, Records
from tests.support.consumer.live_states import hint_rows
from tests.support.consumer.reference_sampler import DensePositions, sample

VOCAB = 97


def tiny_tokenizer(prefix: str = "w") -> Any:
    words = {"<pad>": 0, "<eos>": 1, **{f"{prefix}{i}": i for i in range(2, VOCAB)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<eos>")


def tiny_model(kind: str = "llama", *, layers: int = 4, seed: int = 0, **more: Any) -> Any:
    small: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "initializer_range": 0.3,  # attention that matters, unlike that of a usual fresh model
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    torch.manual_seed(seed)
    auto: Any = AutoModelForCausalLM
    return auto.from_config(AutoConfig.for_model(kind, **{**small, **more})).eval()


def save_teacher(folder: Path, **options: Any) -> Any:
    """A tiny teacher with sharp distributions, as a Hugging Face folder."""
    model = tiny_model(**options)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def identity(**more: Any) -> TeacherIdentity:
    fields: dict[str, Any] = {
        "model": "tiny",
        "weights_digest": "0" * 64,
        "dtype": "float32",
        "vocab_size": VOCAB,
        "tokenizer_fingerprint": tokenizer_fingerprint(tiny_tokenizer()),
        "engine": "transformers",
        "engine_version": "test",
    }
    return TeacherIdentity(**{**fields, **more})


def random_documents(count: int, *, low: int = 2, high: int = 60, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, VOCAB, rng.integers(low, high)).astype(np.uint16) for _ in range(count)]


HELD_OUT = random_documents(11, seed=9)
"""Of runs that are measured while they train."""


def dense_positions(teacher: Any, token_ids: np.ndarray) -> DensePositions:
    with torch.no_grad():
        logits = teacher(input_ids=torch.from_numpy(token_ids.astype(np.int64))[None]).logits[0, :-1].double()
    return DensePositions(torch.softmax(logits, -1).numpy(), token_ids[1:].astype(np.int64))


def record(
    dense: DensePositions, token_ids: np.ndarray, spec: CaptureSpec, *, seed: int = 0, uniform: float | None = None
) -> DocumentRecords:
    """Records of a document; `uniform` is the same number for the draws of all positions, else they are random."""
    positions = len(dense.next_ids_R)
    u = np.random.default_rng(seed).random(positions) if uniform is None else np.full(positions, uniform)
    columns = sample(
        dense,
        u,
        mode=spec.mode,
        tau=spec.tau,
        head_max=spec.head_max,
        tail_max=spec.tail_max,
        k=spec.k,
        draws=spec.draws,
    )
    value: Any = np.float16 if spec.logprob_codec == "f16" else np.float32  # the writer rounds to bytes
    tails = np.concatenate([*columns.tail_ids, np.zeros(0)]).astype(np.int64)
    rows = np.repeat(np.arange(len(columns.tail_ids)), [len(x) for x in columns.tail_ids])
    with np.errstate(divide="ignore"):
        return DocumentRecords(
            token_ids_L=token_ids,
            records=Records(
                head_counts_P=np.array([len(x) for x in columns.head_ids], dtype=np.uint8),
                head_ids_H=np.concatenate([*columns.head_ids, np.zeros(0)]).astype(np.uint16),
                head_logprobs_H=np.log(np.concatenate([*columns.head_probs, np.zeros(0)])).astype(value),
                tail_counts_P=np.array([len(x) for x in columns.tail_ids], dtype=np.uint8),
                tail_ids_N=tails.astype(np.uint16),
                position_columns={
                    "log_tail_mass": np.log(np.array(columns.tail_mass)).astype(value),
                    "entropy": dense.entropy_R.astype(value),
                    **({"log_z": _log_z(dense, spec).astype(value)} if spec.temperatures else {}),
                },
                tail_logprobs_N=np.log(dense.probs_RV[rows, tails]).astype(value) if spec.tail_logprobs else None,
            ),
        )


def _log_z(dense: DensePositions, spec: CaptureSpec) -> np.ndarray:
    return np.stack([np.log((dense.probs_RV ** (1 / t)).sum(1)) for t in spec.temperatures], axis=1)


def build_cask(
    path: Path,
    teacher: Any,
    documents: Sequence[np.ndarray],
    *,
    spec: CaptureSpec | None = None,
    per_shard: int = 8,
    answers: Sequence[Sequence[Sequence[int]] | None] | None = None,
    uniform: float | None = None,
    recorded: Sequence[np.ndarray | None] | None = None,
    **identity_fields: Any,
) -> Path:
    """Publish the documents' records, some per shard.

    `answers` has the ranges of each, None where it does not say; `uniform` as in `record`; `recorded` has a mask over
    the positions of each, None for all.
    """
    spec = spec or CaptureSpec(tau=0.05)
    records = [
        record(dense_positions(teacher, ids), ids, spec, seed=n, uniform=uniform) for n, ids in enumerate(documents)
    ]
    if spec.hints is not None:
        hints = [hint_rows(teacher, ids, spec.hints) for ids in documents]
        records = [dataclasses.replace(own, hints=rows) for own, rows in zip(records, hints, strict=True)]
    for n, ranges in enumerate(answers or []):
        if ranges is not None:
            ranges_R2 = np.array(ranges, dtype=np.uint32).reshape(-1, 2)
            records[n] = dataclasses.replace(records[n], answer_ranges_R2=ranges_R2)
    for n, mask in enumerate(recorded or []):
        if mask is not None:
            kept, rows = records[n].records.select(mask), records[n].hints
            if rows is not None and rows.num_rows == len(mask):
                rows = rows.select(mask)
            records[n] = dataclasses.replace(records[n], records=kept, extent=Extent.of_mask(mask), hints=rows)
    version: Any = 1 if recorded is None else 2
    with CaskWriter.create(path, teacher=identity(**identity_fields), capture=spec, version=version) as writer:
        for start in range(0, len(records), per_shard):
            writer.publish(records[start : start + per_shard])
    return path
