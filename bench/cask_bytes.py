"""Bytes per token of what a real teacher said: capture thresholds and codecs in every carrier, against other schemes.

One pass of SmolLM2-135M (unless --teacher says otherwise) over sources of the standard library; every scheme gets the
same logits.

* `record`: mode threshold at tau = 1/20, 1/50, 1/100 with codecs f16, u8 and f32. Everything is counted: token ids,
  counts, tail mass, entropy, document ids, checksums, offsets, and the carriers' own framing. The last is a few
  kilobytes per shard, so on the few tokens here it weighs more than in a real shard; `columns` and `zarr chunks` leave
  it out.
* `sampling-50`: random-sampling distillation as published (50 draws, 3 bytes per distinct token).
* `top-50`, `top-128`: ids in 2 or 3 bytes and float16, the usual logit store.

Beside the bytes stands what they buy: the squared error of the training target, sum over the vocabulary of (t̂ - t)²,
averaged over positions. Sampling schemes are unbiased, so theirs is gradient noise; that of a top-k is bias.
"""

import argparse
import importlib
import inspect
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from numpy.typing import NDArray

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.format.codec_u8 import decode_u8, encode_u8
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import document_id
from logitcask_schemas.record.identity import TeacherIdentity
from logitcask_schemas.record.records import DocumentRecords, Records
from logitcask_schemas.record.wire import decode_wire
from logitcask_services.capture import RecordCapture, pack_wire
from report import Report

DOCUMENT_TOKENS = 512
MODULES = ("argparse", "ast", "difflib", "tarfile", "typing", "inspect", "pydoc", "zipfile", "doctest", "subprocess")
THRESHOLDS = (20, 50, 100)
CODECS = ("f16", "u8", "f32")
SAMPLES = 50
ZSTD_LEVEL = 3


def real_documents(tokenizer: Any, count: int) -> list[NDArray[np.uint16]]:
    ids = [tokenizer(inspect.getsource(importlib.import_module(name))).input_ids for name in MODULES]
    cut = [one[start : start + DOCUMENT_TOKENS] for one in ids for start in range(0, len(one), DOCUMENT_TOKENS)]
    whole = [np.array(one, np.uint16) for one in cut if len(one) == DOCUMENT_TOKENS]
    return whole[:: max(1, len(whole) // count)][:count]


def captured(
    logits: torch.Tensor, ids: NDArray[np.uint16], spec: CaptureSpec, capture: RecordCapture | None = None
) -> DocumentRecords:
    positions = torch.arange(len(logits))
    key = int.from_bytes(document_id(ids)[:8], "little", signed=True)
    next_ids = torch.from_numpy(ids[1:].astype(np.int64))
    columns = (capture or RecordCapture(spec, logits.shape[1]))(
        logits.clone(), next_ids, torch.full_like(positions, key), positions
    )
    records = decode_wire(pack_wire(columns, logits.shape[1]).numpy(), spec)
    return DocumentRecords(token_ids_L=ids, records=records)


def target_error(document: DocumentRecords, codec: str, t: NDArray[np.float64]) -> float:
    """Mean over positions of the squared error of the target as training builds it from the stored columns."""
    records, rows = document.records, np.arange(len(t))
    logprobs, log_mass = stored(records, codec, document.id)
    head_rows, tail_rows = np.repeat(rows, records.head_counts_P), np.repeat(rows, records.tail_counts_P)
    mass = np.where(records.tail_counts_P > 0, np.exp(log_mass), 0.0)
    head = np.exp(logprobs)
    head *= ((1 - mass) / np.bincount(head_rows, head, len(t)))[head_rows]
    draw = (mass / np.maximum(records.tail_counts_P, 1))[tail_rows]
    flat = np.concatenate([head_rows, tail_rows]) * t.shape[1] + np.concatenate(
        [records.head_ids_H, records.tail_ids_N]
    )
    return sparse_error(flat, np.concatenate([head, draw]), t)


def stored(records: Records, codec: str, identity: bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log t of the head and log r after the codec, from float32 records."""
    logprobs, log_mass = records.head_logprobs_H, records.log_tail_mass_P
    if codec == "u8":
        codes = encode_u8(logprobs, column="head_logprobs", seed=0, document_id=identity)
        return decode_u8(codes).astype(np.float64), log_mass.astype(np.float16).astype(np.float64)
    value = {"f16": np.float16, "f32": np.float32}[codec]
    return logprobs.astype(value).astype(np.float64), log_mass.astype(value).astype(np.float64)


def sparse_error(flat: NDArray[np.int64], weights: NDArray[np.float64], t: NDArray[np.float64]) -> float:
    """Mean over positions of sum_j (t̂_j - t_j)², t̂ given by weights at flat indices, repeated ones added up."""
    where, inverse = np.unique(flat, return_inverse=True)
    estimate, true = np.bincount(inverse, weights), t.reshape(-1)[where]
    return float(((t**2).sum() + ((estimate - true) ** 2 - true**2).sum()) / len(t))


class Sizes:
    """Sums over documents of bytes, raw and compressed column by column."""

    def __init__(self) -> None:
        self.raw = self.compressed = 0
        self.errors: list[float] = []

    def add(self, columns: Iterable[NDArray[Any]], error: float) -> None:
        codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL)
        for column in columns:
            self.raw += column.nbytes
            self.compressed += len(codec.compress(np.ascontiguousarray(column).tobytes()))
        self.errors.append(error)


def sampling(t: NDArray[np.float64], random: np.random.Generator) -> tuple[list[NDArray[Any]], float]:
    """Random-sampling distillation: distinct ids in 17 bits with counts in 7, 3 bytes in all, and 1 for how many."""
    running = t.cumsum(1)
    points = random.random((len(t), SAMPLES)) * running[:, -1:]
    drawn = np.stack([np.searchsorted(row, point, side="right") for row, point in zip(running, points, strict=True)])
    flat, counts = np.unique(np.arange(len(t))[:, None] * t.shape[1] + drawn, return_counts=True)
    packed = ((flat % t.shape[1]) << 7 | counts).astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3]
    per_position = np.bincount(flat // t.shape[1], minlength=len(t)).astype(np.uint8)
    return [packed, per_position], sparse_error(flat, counts / SAMPLES, t)


def topk(t: NDArray[np.float64], k: int, id_bytes: int) -> tuple[list[NDArray[Any]], float]:
    """The k largest, ids and log-probabilities; as a target renormalised to one."""
    ids = np.argsort(-t, axis=1)[:, :k]
    kept = np.take_along_axis(t, ids, 1)
    planes = ids.astype("<u4").reshape(-1, 1).view(np.uint8)[:, :id_bytes]
    flat = np.arange(len(t))[:, None] * t.shape[1] + ids
    error = sparse_error(flat.reshape(-1), (kept / kept.sum(1, keepdims=True)).reshape(-1), t)
    return [planes, np.log(kept).astype(np.float16)], error


def measure_cask(documents: list[DocumentRecords], spec: CaptureSpec, vocab_size: int) -> dict[str, float]:
    """Bytes per token of a real cask of these documents in each carrier."""
    teacher = TeacherIdentity(
        model="bench",
        weights_digest="0" * 64,
        dtype="float32",
        vocab_size=vocab_size,
        tokenizer_fingerprint="0" * 64,
        engine="transformers",
        engine_version=transformers.__version__,
    )
    figures_of: dict[str, float] = {}
    for carrier in CARRIERS:
        with tempfile.TemporaryDirectory() as folder:
            with CaskWriter.create(Path(folder), teacher=teacher, capture=spec, carrier=carrier) as writer:
                writer.publish(documents)
            cask = Cask.open(Path(folder))
            figures_of[f"{carrier} (bytes/token)"] = cask.num_bytes / cask.num_tokens
            if carrier == "zarr":
                with zipfile.ZipFile(cask.shard(0).path) as archive:
                    chunks = sum(member.file_size for member in archive.infolist() if "/c/" in member.filename)
                figures_of["zarr chunks (bytes/token)"] = chunks / cask.num_tokens
            if carrier == "arrow":
                units = {level: int(cut[-1]) for level, cut in cask.shard(0).columns.offsets.items()}
                values = sum(units[column.level] * column.bytes_per_unit for column in cask.layout.columns)
                per_document = 32 + 8 + 4 * len(cask.layout.columns)
                figures_of["columns (bytes/token)"] = (values + per_document * len(cask)) / cask.num_tokens
                figures_of["head entries/position"] = units["head"] / units["position"]
                figures_of["tail draws/position"] = units["tail"] / units["position"]
    return figures_of


@torch.inference_mode()
def measure(teacher: Path, count: int) -> dict[str, dict[str, float]]:
    documents = real_documents(transformers.AutoTokenizer.from_pretrained(teacher), count)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    specs = {one: CaptureSpec(tau=1 / one, logprob_codec="f32") for one in THRESHOLDS}
    kept: dict[int, list[DocumentRecords]] = defaultdict(list)
    errors: dict[tuple[int, str], list[float]] = defaultdict(list)
    others: dict[str, Sizes] = defaultdict(Sizes)
    random = np.random.default_rng(0)
    for ids in documents:
        logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1]
        t = logits.to(torch.float64).softmax(-1).numpy()
        for threshold, spec in specs.items():
            document = captured(logits, ids, spec)
            kept[threshold].append(document)
            for codec in CODECS:
                errors[threshold, codec].append(target_error(document, codec, t))
        others[f"sampling-{SAMPLES}"].add(*sampling(t, random))
        for k in (50, 128):
            for id_bytes in (2, 3):
                others[f"top-{k} u{8 * id_bytes}+f16"].add(*topk(t, k, id_bytes))
        print(f"{len(kept[THRESHOLDS[0]])} of {len(documents)} documents", flush=True)
    figures_of = {}
    for threshold, codec in errors:
        spec = CaptureSpec(tau=1 / threshold, logprob_codec=codec)
        figures = measure_cask([stored_as(one, codec) for one in kept[threshold]], spec, vocab_size)
        figures["squared error of target"] = float(np.mean(errors[threshold, codec]))
        figures_of[f"record 1/{threshold} {codec}"] = figures
    tokens = sum(map(len, documents))
    for name, sizes in others.items():
        figures_of[name] = {
            "raw (bytes/token)": sizes.raw / tokens,
            "zstd (bytes/token)": sizes.compressed / tokens,
            "squared error of target": float(np.mean(sizes.errors)),
        }
    return figures_of


def stored_as(document: DocumentRecords, codec: str) -> DocumentRecords:
    """float32 records with values as capture hands them over for this codec."""
    if codec != "f16":
        return document
    columns = {name: getattr(document.records, name) for name in Records.__dataclass_fields__}
    halved = {name: _halved(column) for name, column in columns.items()}
    return DocumentRecords(token_ids_L=document.token_ids_L, records=Records(**halved))


def _halved(column: Any) -> Any:
    if isinstance(column, dict):
        return {name: _halved(values) for name, values in column.items()}
    return column.astype(np.float16) if column is not None and column.dtype == np.float32 else column


def main() -> None:
    from demo.fetch_teacher import fetch_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder of a teacher (default: SmolLM2-135M, fetched)")
    parser.add_argument("--documents", type=int, default=6, help=f"of {DOCUMENT_TOKENS} tokens")
    arguments = parser.parse_args()
    teacher = arguments.teacher or fetch_model("smollm2-135m")
    report = Report(__file__, "numpy", "pyarrow", "torch", "transformers")
    note = f"{teacher.name}, {arguments.documents * DOCUMENT_TOKENS:,} tokens"
    for variant, figures in measure(teacher, arguments.documents).items():
        for metric, value in figures.items():
            name, _, unit = metric.removesuffix(")").partition(" (")
            report.add(name, unit, [value], note, variant=variant)
    report.write()


if __name__ == "__main__":
    main()
