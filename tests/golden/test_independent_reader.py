"""A reader written from docs/format.md alone, with no import of this project, reads the golden casks.

It is the proof that the page is complete, and an example for readers in other languages.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

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
}


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


def read_shard(path: Path, entry: dict[str, Any]) -> list[dict[str, Any]]:
    content = path.read_bytes()
    assert len(content) == entry["bytes"]
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert entry["sha256"].startswith(entry["name"])
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    metadata = reader.schema.metadata
    assert metadata[b"logitcask.format"] == b"logitcask-shard"
    assert metadata[b"logitcask.version"] == b"1"
    assert metadata[b"logitcask.identity"].decode() == entry["identity"]
    assert reader.num_record_batches == 1
    batch = reader.get_batch(0)
    columns: dict[str, tuple[Any, Any]] = {}
    for field in batch.schema:
        if pa.types.is_list(field.type):
            listed = batch.column(field.name)
            values = listed.values
            if pa.types.is_fixed_size_list(values.type):
                flat = values.values.to_numpy().reshape(-1, values.type.list_size)
            else:
                flat = values.to_numpy(zero_copy_only=True)
            columns[field.name] = (np.asarray(listed.offsets), flat)
    documents = []
    for row in range(batch.num_rows):
        parts = {name: flat[cut[row] : cut[row + 1]] for name, (cut, flat) in columns.items()}
        identity = batch.column("document_id")[row].as_py()
        sizes = np.array([len(parts[n]) for n in ("token_ids", "head_counts", "head_ids", "tail_ids")], "<u8")
        proof = xxhash.xxh3_64(identity + sizes.tobytes() + b"".join(part.tobytes() for part in parts.values()))
        assert proof.intdigest() == batch.column("checksum")[row].as_py()
        for name in ("token_ids", "head_ids", "tail_ids"):
            if name + "_high" in parts:
                parts[name] = parts[name].astype(np.uint32) + 65_536 * parts.pop(name + "_high").astype(np.uint32)
        assert hashlib.sha256(parts["token_ids"].astype("<u4").tobytes()).digest() == identity
        assert len(parts["token_ids"]) == len(parts["head_counts"]) + 1
        assert parts["head_counts"].sum() == len(parts["head_ids"])
        assert parts["tail_counts"].sum() == len(parts["tail_ids"])
        assert set(parts) <= LEVELS.keys()
        documents.append({"id": identity.hex(), **parts})
    return documents


@pytest.mark.parametrize("name", CASKS)
def test_the_format_page_is_enough(name: str) -> None:
    cask = HERE / name
    manifest = read_sealed(cask / "cask.json")
    assert (manifest["format"], manifest["version"]) == ("logitcask", 1)
    entries = read_entries(cask)
    assert len(entries) == 2
    found = [one for entry in entries for one in read_shard(cask / "shards" / f"{entry['name']}.arrow", entry)]
    expected = json.loads((HERE / f"{name}.expected.json").read_text())
    assert sum(entry["documents"] for entry in entries) == len(found) == len(expected)
    for mine, theirs in zip(sorted(found, key=lambda one: one["id"]), expected, strict=True):
        assert mine.keys() == theirs.keys()
        for column, values in theirs.items():
            if column != "id":
                np.testing.assert_array_equal(mine[column].astype(np.float64), np.array(values, dtype=np.float64))
        assert mine["id"] == theirs["id"]


def test_there_are_golden_casks() -> None:
    assert CASKS == ["cask-v1-u16-f16", "cask-v1-u24-f32"]
