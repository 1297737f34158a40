"""A reader written from docs/format.md alone, with no import of this project, reads the golden casks of every carrier.

It is the proof that the page is complete, and an example for readers in other languages.
"""

import base64
import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from tests.support.schemas.packed_reference import read_document

HERE = Path(__file__).parent
CASKS = sorted(path.name for path in HERE.glob("cask-v*") if path.is_dir())
LEVELS = {
    "token_ids": "token",
    "head_counts": "position",
    "head_ids": "head",
    "head_logprobs": "head",
    "tail_counts": "position",
    "tail_ids": "tail",
    "tail_logprobs": "tail",
    "log_tail_mass": "position",
    "entropy": "position",
    "log_z": "position",
    "answers": "answer",
    "recorded": "recorded",
    "context": "context",
}

STEPS = [1 / 64] * 128 + [1 / 32] * 64 + [1 / 8] * 32 + [1 / 2] * 31
U8_LEVELS = -np.cumsum([0, *STEPS])
CODED = {
    "head_logprobs": U8_LEVELS,
    "tail_logprobs": U8_LEVELS,
    "log_tail_mass": np.append(U8_LEVELS[:-1], -np.inf),
    "entropy": np.cumsum([0, *[1 / 32] * 128, *[1 / 16] * 64, *[1 / 4] * 63]),
}
"""What codes of one byte stand for, by column."""


def read_sealed(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    document = json.loads(data)
    blank = data.replace(document["checksum"].encode(), b"0" * 64, 1)
    assert hashlib.sha256(blank).hexdigest() == document.pop("checksum")
    return document


def read_entries(cask: Path) -> list[dict[str, Any]]:
    entries = {}
    if (cask / "index.json").exists():
        index = read_sealed(cask / "index.json")
        assert (index["format"], index["version"]) == ("logitcask-index", 1)
        entries = {entry["name"]: entry for entry in index["entries"]}
    for path in (cask / "shards").glob("*.json"):
        if not path.name.startswith("."):
            entry = read_sealed(path)
            assert entries.setdefault(entry["name"], entry) == entry
    return [entries[name] for name in sorted(entries)]


Columns = dict[str, tuple[Any, Any]]
"""Per field, where documents start and end, and all values end to end."""


def read_batch(batch: Any) -> tuple[Any, Any, Columns]:
    columns: Columns = {}
    for field in batch.schema:
        if pa.types.is_list(field.type):
            listed = batch.column(field.name)
            values = listed.values
            if pa.types.is_fixed_size_list(values.type):
                flat = values.values.to_numpy().reshape(-1, values.type.list_size)
            else:
                flat = values.to_numpy(zero_copy_only=True)
            columns[field.name] = (np.asarray(listed.offsets), flat)
    return batch.column("document_id").to_pylist(), batch.column("checksum").to_pylist(), columns


def read_arrow(path: Path) -> tuple[Any, Any, Any, Columns]:
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    assert reader.num_record_batches == 1
    return {key.decode(): value.decode() for key, value in reader.schema.metadata.items()}, *read_batch(
        reader.get_batch(0)
    )


def read_parquet(path: Path) -> tuple[Any, Any, Any, Columns]:
    file = pq.ParquetFile(path, page_checksum_verification=True)
    assert file.num_row_groups == 1
    (batch,) = file.read().to_batches()
    return {key.decode(): value.decode() for key, value in file.metadata.metadata.items()}, *read_batch(batch)


def read_zarr(path: Path) -> tuple[Any, Any, Any, Columns]:
    zarr = pytest.importorskip("zarr")
    store = zarr.storage.ZipStore(path, mode="r")
    group = zarr.open_group(store, mode="r")
    order = [name for name in zipped_arrays(path) if not name.endswith("_offsets")]
    columns = {
        name: (group[f"{LEVELS[name.removesuffix('_high')]}_offsets"][:], group[name][:])
        for name in order
        if name not in ("document_id", "checksum")
    }
    ids = [one.tobytes() for one in group["document_id"][:]]
    attributes, checksums = dict(group.attrs), group["checksum"][:].tolist()
    store.close()
    return attributes, ids, checksums, columns


def zipped_arrays(path: Path) -> list[str]:
    """Names of the arrays in the order of the archive, which is the order of the schema."""
    names = zipfile.ZipFile(path).namelist()
    return [name.partition("/")[0] for name in names if name.endswith("/zarr.json")]


def read_packed(path: Path) -> tuple[Any, Any, Any, Columns]:
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    metadata = {key.decode(): value.decode() for key, value in batch.schema.metadata.items()}
    manifest = read_sealed(path.parent.parent / "cask.json")
    id_of_rank, digest = list(range(manifest["teacher"]["vocab_size"])), ""
    if "rank_table" in manifest:
        table = manifest["rank_table"]
        classes, digest = zlib.decompress(base64.b64decode(table["classes"])), table["digest"]
        assert hashlib.sha256(table["tokenizer_fingerprint"].encode() + classes).hexdigest() == digest
        id_of_rank.sort(key=lambda one: -classes[one])
    assert metadata["logitcask.ranks"] == digest
    listed = dict(column.split(": ") for column in metadata["logitcask.columns"].split(", "))
    ids, checksums, beside = read_batch(batch)
    word_cut, words = beside.pop("words")
    in_bytes = {
        level: [name for name in listed if LEVELS.get(name) == level and listed[name] == "uint8"]
        for level in ("position", "head", "tail")
    }
    in_bytes["position"].remove("tail_counts")
    documents = []
    for row in range(len(ids)):
        sizes = [batch.column(name)[row].as_py() for name in ("tokens", "positions", "head_entries", "tail_entries")]
        cut, ranges = beside.get("recorded", (np.zeros(len(ids) + 1, int), np.zeros(0, int)))
        pairs = ranges[cut[row] : cut[row + 1]].reshape(-1, 2).tolist() or [[0, sizes[0] - 1]]
        following = [position + 1 for start, stop in pairs for position in range(start, stop)]
        documents.append(
            read_document(
                words[word_cut[row] : word_cut[row + 1]].tolist(),
                json.loads(metadata["logitcask.codes"]),
                tuple(sizes),
                following,
                id_of_rank,
                in_bytes,
                "log_tail_mass" in in_bytes["position"],
            )
        )
    columns: Columns = {}
    for name, dtype in listed.items():
        if name in beside:
            columns[name] = beside.pop(name)
            continue
        parts = [np.array(document[name.removesuffix("_high")], np.int64) for document in documents]
        flat = np.concatenate(parts) >> (16 if name.endswith("_high") else 0)
        bits = 16 if dtype == "uint16" else 8
        columns[name] = (np.cumsum([0, *map(len, parts)]), (flat & ((1 << bits) - 1)).astype(dtype))
    return metadata, ids, checksums, columns | beside


CARRIERS = {
    "arrow": (".arrow", read_arrow),
    "zarr": (".zarr.zip", read_zarr),
    "parquet": (".parquet", read_parquet),
    "packed": (".packed", read_packed),
}


def read_shard(folder: Path, entry: dict[str, Any]) -> list[dict[str, Any]]:
    suffix, read = CARRIERS[entry["carrier"]]
    path = folder / (entry["name"] + suffix)
    content = path.read_bytes()
    assert len(content) == entry["bytes"]
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    if entry["carrier"] == "arrow":
        assert entry["sha256"].startswith(entry["name"])
    metadata, ids, checksums, columns = read(path)
    beyond_answers = {"recorded", "context"} & columns.keys()
    version = "3" if beyond_answers else "2" if "answers" in columns else "1"
    is_packed = entry["carrier"] == "packed"
    assert metadata["logitcask.format"] == ("logitcask-packed-shard" if is_packed else "logitcask-shard")
    assert metadata["logitcask.version"] == ("1" if is_packed else version)
    cut, flat = columns.get("recorded", (np.zeros(len(ids) + 1), np.zeros(0)))
    assert entry.get("recorded_documents", 0) == np.count_nonzero(np.diff(cut))
    assert entry.get("recorded_ranges", 0) == len(flat) // 2
    cut, flat = columns.get("context", (np.zeros(len(ids) + 1), np.zeros(0)))
    assert entry.get("context_documents", 0) == np.count_nonzero(np.diff(cut)) == len(flat) / 9
    cut, flat = columns.get("answers", (np.zeros(len(ids) + 1), np.zeros(0)))
    starts, stops = flat.reshape(-1, 2).astype(np.int64).T
    assert entry.get("answer_documents", 0) == np.count_nonzero(np.diff(cut))
    assert entry.get("answer_ranges", 0) == len(starts)
    assert entry.get("answer_positions", 0) == (np.maximum(stops, 1) - np.maximum(starts, 1)).sum()
    assert metadata["logitcask.identity"] == entry["identity"]
    documents = []
    for row, identity in enumerate(ids):
        parts = {name: flat[cut[row] : cut[row + 1]] for name, (cut, flat) in columns.items()}
        sizes = np.array([len(parts[n]) for n in ("token_ids", "head_counts", "head_ids", "tail_ids")], "<u8")
        proof = xxhash.xxh3_64(identity + sizes.tobytes() + b"".join(part.tobytes() for part in parts.values()))
        assert proof.intdigest() == checksums[row]
        for name in ("token_ids", "head_ids", "tail_ids"):
            if name + "_high" in parts:
                parts[name] = parts[name].astype(np.uint32) + 65_536 * parts.pop(name + "_high").astype(np.uint32)
        for name, levels in CODED.items():
            if name in parts and parts[name].dtype == np.uint8:
                parts[name] = levels[parts[name]]
        recorded, context = (parts.pop(name, np.zeros(0, "<u4")) for name in ("recorded", "context"))
        proof = parts["token_ids"].astype("<u4").tobytes()
        positions = np.arange(len(parts["token_ids"]) - 1)
        if len(recorded) or len(context):
            numbers = [0xFFFFFFFF, len(recorded) // 2, *recorded.tolist(), *(context[:1].tolist() or [0])]
            proof += np.array(numbers, "<u4").tobytes() + context[1:].tobytes()
        if len(recorded):
            positions = np.concatenate([np.arange(a, b) for a, b in recorded.reshape(-1, 2).tolist()])
            parts["recorded"] = recorded
        if len(context):
            parts["context"] = context
        assert hashlib.sha256(proof).digest() == identity
        assert len(positions) == len(parts["head_counts"])
        ends = np.cumsum(parts["head_counts"].astype(np.int64))
        for end, count, position in zip(ends, parts["head_counts"], positions, strict=True):
            assert parts["token_ids"][position + 1] in parts["head_ids"][end - count : end]
        assert parts["head_counts"].sum() == len(parts["head_ids"])
        assert parts["tail_counts"].sum() == len(parts["tail_ids"])
        assert set(parts) <= LEVELS.keys()
        said = parts.pop("answers", np.zeros(0)).reshape(-1, 2)
        if len(said):
            parts["answers"] = said[said[:, 0] < said[:, 1]].reshape(-1)
        documents.append({"id": identity.hex(), **parts})
    return documents


@pytest.mark.parametrize("name", CASKS)
def test_the_format_page_is_enough(name: str) -> None:
    cask = HERE / name
    manifest = read_sealed(cask / "cask.json")
    assert (manifest["format"], manifest["version"]) == ("logitcask", int(name[len("cask-v")]))
    entries = read_entries(cask)
    assert len(entries) == 2
    documents = [document for entry in entries for document in read_shard(cask / "shards", entry)]
    expected = json.loads((HERE / f"{name}.expected.json").read_text())
    assert sum(entry["documents"] for entry in entries) == len(documents) == len(expected)
    for mine, theirs in zip(sorted(documents, key=lambda document: document["id"]), expected, strict=True):
        assert mine.keys() == theirs.keys()
        for column, values in theirs.items():
            if column != "id":
                np.testing.assert_array_equal(mine[column].astype(np.float64), np.array(values, dtype=np.float64))
        assert mine["id"] == theirs["id"]


def test_there_are_golden_casks() -> None:
    assert CASKS == [
        "cask-v1-answers",
        "cask-v1-answers-parquet",
        "cask-v1-answers-zarr",
        "cask-v1-hints-f16",
        "cask-v1-hints-i8",
        "cask-v1-hints-proj",
        "cask-v1-parquet",
        "cask-v1-u16-f16",
        "cask-v1-u24-f32",
        "cask-v1-u8",
        "cask-v1-zarr",
        "cask-v2-extents",
        "cask-v2-extents-parquet",
        "cask-v2-extents-zarr",
        "cask-v3-packed",
        "cask-v3-packed-extents",
    ]


def read_hints(cask: Path, entry: dict[str, Any], spec: dict[str, Any]) -> dict[bytes, np.ndarray]:
    """Vectors [R, K, W] by document id, as section 4.6 of the page has them."""
    path = cask / "shards" / f"{entry['name']}.hints.arrow"
    content = path.read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["hints"]["bytes"], entry["hints"]["sha256"])
    metadata, ids, checksums, columns = read_arrow(path)
    width, layers = int(metadata.pop("logitcask.width")), len(spec["layers"])
    assert metadata == {
        "logitcask.format": "logitcask-hints",
        "logitcask.version": "1",
        "logitcask.identity": entry["identity"],
        "logitcask.shard": entry["name"],
    }
    vectors = {}
    for row, identity in enumerate(ids):
        parts = {name: flat[cut[row] : cut[row + 1]] for name, (cut, flat) in columns.items()}
        rows = len(parts["codes"])
        sizes = np.array([rows, width], "<u8").tobytes()
        proof = xxhash.xxh3_64(identity + sizes + b"".join(part.tobytes() for part in parts.values()))
        assert proof.intdigest() == checksums[row]
        codes = parts["codes"].reshape(rows, layers, -1).astype(np.float32)
        scales = parts["scales"].reshape(rows, layers, -1)
        for channel in range(codes.shape[2]):
            codes[:, :, channel] *= scales[:, :, channel // 64 if spec["codec"] == "i8" else 0]
        if spec["codec"] == "i8":
            channels = parts["outlier_channels"].reshape(rows, layers, -1)
            for at in np.ndindex(channels.shape):
                codes[at[0], at[1], channels[at]] = parts["outlier_values"].reshape(channels.shape)[at]
        vectors[identity] = codes
    return vectors


@pytest.mark.parametrize("name", [name for name in CASKS if "hints" in name])
def test_the_format_page_is_enough_for_hints(name: str) -> None:
    manifest = read_sealed(HERE / name / "cask.json")
    spec, seen = manifest["capture"]["hints"], 0
    for entry in read_entries(HERE / name):
        lengths = {
            bytes.fromhex(document["id"]): len(document["token_ids"])
            for document in read_shard(HERE / name / "shards", entry)
        }
        for identity, vectors in read_hints(HERE / name, entry, spec).items():
            # The numbers of make_casks.py, by its formula.
            rows = lengths[identity] - 1 if spec["positions"] == "all" else 1
            assert vectors.shape[:2] == (rows, len(spec["layers"]))
            numbers = np.arange(rows * len(spec["layers"]) * 70, dtype=np.int64) * 7919 + 104_729 * lengths[identity]
            expected = ((numbers % 199 - 99) / 8).reshape(rows, -1, 70)
            expected[:, 0, 5], expected[:, 0, 66] = 25_800, -70_000
            if spec["codec"] == "proj:4":
                words = np.random.Philox(key=[spec["seed"], 70]).random_raw(5)
                bits = [int(words[at // 64]) >> (at % 64) & 1 for at in range(4 * 70)]
                expected = expected @ (np.array(bits).reshape(4, 70).T - 0.5)
            bound = {"f16": 2.0**-11, "i8": 1 / 253, "proj:4": 2.0**-11}[spec["codec"]]
            largest = np.abs(expected).max(axis=2, keepdims=True)
            if spec["codec"] == "i8":
                assert (vectors[:, 0, [5, 66]] == [25_800, -70_000]).all()
                largest = np.full_like(largest, 99 / 8)
            assert (np.abs(vectors - expected) <= largest * bound).all()
            seen += 1
    assert seen == 4
