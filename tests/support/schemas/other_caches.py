"""Caches as DistillKit and Megatron-LM write them, made from their formats' descriptions, one position at a time.

Shape legend: L tokens of a document, P = L - 1 positions, V vocabulary size, K entries.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.exchange.conversion import ConversionReport, NamedTeacher, convert, imported_spec
from logitcask_schemas.cask.exchange.top_k_rows import TopKSource

VOCAB = 97
TEACHER = NamedTeacher(model="big", vocab_size=VOCAB, tokenizer_size=VOCAB, tokenizer_fingerprint="f" * 64)
EXACT: dict[str, Any] = {"d": VOCAB + 1, "k": 12, "exact_k": 12, "exact_dtype": "float32", "residual_bins": []}
RECOMMENDED: dict[str, Any] = {
    "d": VOCAB + 1,
    "k": 32,
    "exact_k": 8,
    "exact_dtype": "bfloat16",
    "polynomial_terms": [0, 1, "sqrt"],
    "term_dtype": "float32",
    "residual_bins": [],
    "delta_encoding": False,
}
BINNED: dict[str, Any] = {
    "d": VOCAB + 1,
    "k": 24,
    "exact_k": 4,
    "exact_dtype": "float16",
    "polynomial_terms": [0, 1, 2],
    "term_dtype": "float64",
    "normalize_t": True,
    "residual_bins": [
        {"scale_dtype": "float16", "element_bits": 7, "num_elements": 9},
        {"scale_dtype": "float32", "element_bits": 3, "num_elements": 6},
        {"scale_dtype": "float32", "element_bits": 1, "num_elements": 2},
    ],
    "delta_encoding": True,
}


@dataclass(frozen=True)
class DenseDocument:
    """A text of a made-up teacher, sampled from it, with its whole distributions."""

    tokens_L: np.ndarray
    logprobs_PV: np.ndarray
    """float64."""

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and log-probabilities of the k largest, [P, k], descending."""
        ids = np.argsort(-self.logprobs_PV, axis=1, kind="stable")[:, :k]
        return ids, np.take_along_axis(self.logprobs_PV, ids, axis=1)


def dense_documents(lengths: Sequence[int], *, seed: int = 0, sharpness: float = 2.5) -> list[DenseDocument]:
    """Texts whose next tokens are drawn from the distributions, ids from 2 (0 pads, 1 ends)."""
    random = np.random.default_rng(seed)
    documents = []
    for length in lengths:
        logits = sharpness * random.standard_normal((length - 1, VOCAB))
        logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        drawn = [random.choice(VOCAB, p=np.exp(row)) for row in logprobs]
        documents.append(DenseDocument(np.array([random.integers(2, VOCAB), *drawn]), logprobs))
    return documents


def pack_bits(values: Sequence[int], bits: int) -> bytes:
    """Integers as one string of binary digits, highest first, filled up with zeros to whole bytes."""
    digits = "".join(format(int(value), f"0{bits}b") for value in values)
    digits += "0" * (-len(digits) % 8)
    return bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8))


def float_bytes(values: Any, name: str) -> bytes:
    values = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if name != "bfloat16":
        return values.astype(np.dtype(name).newbyteorder("<")).tobytes()
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def compress(logprobs_K: np.ndarray, config: dict[str, Any]) -> bytes:
    """One position's log-probabilities, descending, as DistillKit's bytes."""
    delta = config.get("delta_encoding", True)
    values = np.diff(logprobs_K, prepend=0.0) if delta else logprobs_K.copy()
    exact = config["exact_k"]
    content = float_bytes(values[:exact], config["exact_dtype"]) if exact else b""
    rest = values[exact : config["k"]]
    if terms := config.get("polynomial_terms"):
        points = np.linspace(0, 1, len(rest)) if config.get("normalize_t") else np.arange(len(rest), dtype=float)
        curve = np.stack(
            [points**term if isinstance(term, int) else getattr(np, term)(points) for term in terms], axis=1
        )
        coefficients = np.linalg.lstsq(curve, rest, rcond=None)[0].astype(config["term_dtype"])
        content += float_bytes(coefficients, config["term_dtype"])
        rest = rest - curve @ coefficients.astype(np.float64)
    at = 0
    for part in config["residual_bins"]:
        bits, residuals = part["element_bits"], rest[at : at + part["num_elements"]]
        scale = np.abs(residuals).max() / (1.0 if bits == 1 else 2.0 ** (bits - 1))
        stored = float_bytes(scale or 1.0, part["scale_dtype"])
        low, high = (0, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        codes = np.clip(np.round(residuals / (scale or 1.0)), low, high) - low
        content += stored + pack_bits(codes.astype(int).tolist(), bits)
        at += part["num_elements"]
    return content


def distillkit_row(document: DenseDocument, config: dict[str, Any], *, cut: int = 0) -> dict[str, Any]:
    """A row of a Parquet file; `cut` leaves out so many of its last positions."""
    ids, logprobs = document.top(config["k"])
    bits = int(np.ceil(np.log2(config["d"])))
    rows = range(len(ids) - cut)
    return {
        "input_ids": document.tokens_L.tolist(),
        "compressed_logprobs": [list(compress(logprobs[i], config)) for i in rows],
        "bytepacked_indices": [list(pack_bits(ids[i].tolist(), bits)) for i in rows],
    }


def write_distillkit(folder: Path, rows: Sequence[dict[str, Any]], config: dict[str, Any], *, files: int = 1) -> Path:
    """A folder as `sample_logits` leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    types = {
        "input_ids": pa.list_(pa.uint64()),
        "compressed_logprobs": pa.list_(pa.list_(pa.uint8())),
        "bytepacked_indices": pa.list_(pa.list_(pa.uint8())),
        "attention_mask": pa.list_(pa.int64()),
    }
    schema = pa.schema([(name, types[name]) for name in rows[0]])
    for number in range(files):
        pq.write_table(
            pa.Table.from_pylist(list(rows[number::files]), schema=schema), folder / f"data_{number}.parquet"
        )
    return folder


@dataclass(frozen=True, kw_only=True)
class MegatronRun:
    """How a run of Megatron-LM is cut into ranks and iterations."""

    version: int = 2
    micro: int = 1
    ranks: int = 1
    batch: int = 4
    """Samples of an iteration, of all ranks."""
    k: int = 12
    p: float | None = None
    packed_bits: bool = False
    """Version 2 with the 17th bits eight to a byte."""


def write_megatron(folder: Path, documents: Sequence[DenseDocument], run: MegatronRun) -> Path:
    """A folder of archives, one per rank, of documents of one length; beside it `tokens.npy`."""
    import torch

    folder.mkdir(exist_ok=True)
    np.save(folder / "tokens.npy", np.stack([document.tokens_L for document in documents]))
    saver: dict[str, Any] = {"k": run.k, "p": run.p, "min_k": 1, "save_dtype": "fp16"}
    if run.version == 2:
        saver |= {
            "format_version": 2,
            "mbs_save": run.micro,
            "dp_size_save": run.ranks,
            "gbs_save": run.batch,
        }
    iterations = len(documents) // run.batch
    for rank in range(run.ranks):
        members = {"_meta.json": json.dumps({"hash": "0" * 32, "identifiers": {}, "saver": saver}).encode()}
        for iteration in range(iterations):
            parts = []
            for step in range(run.batch // (run.micro * run.ranks)):
                first = iteration * run.batch + (step * run.ranks + rank) * run.micro
                tops = [_nucleus(document, run) for document in documents[first : first + run.micro]]
                ids = torch.from_numpy(np.stack([top[0] for top in tops], axis=1))
                values = torch.from_numpy(np.stack([top[1] for top in tops], axis=1)).to(torch.float16)
                parts.append((values, (ids & 0xFFFF).to(torch.uint16), (ids >> 16).to(torch.bool)))
            payload: dict[str, Any] = {
                name: [part[at] for part in parts] for at, name in enumerate(("values", "indices_low", "bit_17"))
            }
            name = f"{iteration}.pt.zst"
            if run.version == 2:
                payload = {key: torch.cat(tensors, dim=1) for key, tensors in payload.items()}
                if run.packed_bits:
                    payload["bit_17"] = torch.from_numpy(np.packbits(payload["bit_17"].numpy().reshape(-1)))
                payload["format_version"] = 2
                name = f"{iteration * run.batch}-{(iteration + 1) * run.batch}.pt.zst"
            buffer = io.BytesIO()
            torch.save(payload, buffer)
            members[name] = zstd(buffer.getvalue())
        last = iterations - 1
        path = f"cp0_dp{rank}__{last}.tar" if run.version == 1 else f"dp{rank}__0-{iterations * run.batch}.tar"
        write_tar(folder / path, members)
    return folder


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _nucleus(document: DenseDocument, run: MegatronRun) -> tuple[np.ndarray, np.ndarray]:
    """Top-k, with what lies beyond top-p marked by id -1 and log-probability -1e4."""
    ids, logprobs = document.top(run.k)
    if run.p is None:
        return ids, logprobs
    probs = np.exp(logprobs)
    kept = (np.cumsum(probs, axis=1) - probs) < run.p
    return np.where(kept, ids, -1), np.where(kept, logprobs, -1e4)


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def into_cask(
    source: TopKSource,
    destination: Path,
    *,
    k: int | None = None,
    codec: str = "f32",
    teacher: NamedTeacher = TEACHER,
    **options: Any,
) -> ConversionReport:
    """Convert a cache of the made-up teacher."""
    return convert(source, destination, teacher=teacher, spec=imported_spec(source, k=k, codec=codec), **options)


def assert_is_dense(cask: Cask, documents: Sequence[DenseDocument], k: int, *, atol: float) -> None:
    """Every document of the cask, by its tokens, is what the dense distributions say."""
    by_tokens = {tuple(document.tokens_L.tolist()): document for document in documents}
    assert len(cask) == len(by_tokens)
    for number in range(len(cask)):
        stored = cask.read(number)
        dense = by_tokens[tuple(stored.token_ids_L.tolist())]
        ids, logprobs = dense.top(k)
        assert stored.records.head_counts_P.tolist() == [k] * len(ids)
        assert stored.records.head_ids_H.reshape(ids.shape).tolist() == ids.tolist()
        np.testing.assert_allclose(stored.records.head_logprobs_H.reshape(ids.shape), logprobs, atol=atol)
        rest = np.sort(np.exp(dense.logprobs_PV), axis=1)[:, : VOCAB - k].sum(axis=1)
        np.testing.assert_allclose(np.exp(stored.records.log_tail_mass_P), rest, atol=atol)
        entropy = -(np.exp(dense.logprobs_PV) * dense.logprobs_PV).sum(axis=1)
        bound = -(np.exp(logprobs) * logprobs).sum(axis=1) - rest * np.log(rest)
        assert (bound <= entropy).all()
        np.testing.assert_allclose(stored.records.entropy_P, bound, atol=20 * atol)
        assert len(stored.records.tail_ids_N) == 0
