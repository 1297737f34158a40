"""The weights of a model folder: exactly the files that are loaded, and digests of what is in them.

Both engines load safetensors alone. Which of several files each of them takes differs where a folder is ambiguous, so
such folders are refused: what the identity covers must be what runs.
"""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from logitcask_schemas.errors import ModelError

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
_HASHING_THREADS: Final = 8
_READ_BYTES: Final = 8 * 2**20
_MAX_HEADER_BYTES: Final = 100 * 10**6
"""As safetensors itself has it."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor's bytes lie, as its file's header says."""

    name: str
    dtype: str
    """As safetensors spells it: F32, BF16, I8 ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that the engines load, in order of name.

    Raises:
        ModelError: the folder has none, or engines could take different ones; says which and what to do.
    """
    present = sorted(file.name for file in folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json), whose base model lies elsewhere; expected whole "
            "weights. Merge the adapter into its base (peft's merge_and_unload) and save the result."
        )
    if (folder / INDEX_NAME).is_file():
        names = _indexed(folder)
        if SINGLE_NAME in present and names != [SINGLE_NAME]:
            raise ModelError(
                f"{folder} is ambiguous: {INDEX_NAME} names {_listed(names)}, and {SINGLE_NAME} is there as well. "
                "Remove the one that is not the model."
            )
        return [folder / name for name in names]
    if present == [SINGLE_NAME]:
        return [folder / SINGLE_NAME]
    if SINGLE_NAME in present:
        others = [name for name in present if name != SINGLE_NAME]
        raise ModelError(
            f"{folder} is ambiguous: {_listed(others)} beside {SINGLE_NAME}, and no {INDEX_NAME} that says which "
            "belong to the model. Move the others away, or add the index."
        )
    raise ModelError(
        f"{folder} does not say which weights are the model's: expected {SINGLE_NAME}, or {INDEX_NAME} that names the "
        f"files, found {_listed(present)}. Rename a single file to {SINGLE_NAME}; other formats (.bin, .gguf) are "
        "never loaded: save the model again with save_pretrained."
    )


def stored_tensors(files: Sequence[Path]) -> list[StoredTensor]:
    """Every tensor of the files, from their headers, in order of name.

    Raises:
        ModelError: a file is damaged or no safetensors, or two files hold a tensor of one name.
    """
    tensors = sorted((tensor for file in files for tensor in _header(file)), key=lambda tensor: tensor.name)
    counts = Counter(tensor.name for tensor in tensors)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ModelError(f"{files[0].parent}: tensor {twice[0]!r} is in more than one weight file; expected each once")
    return tensors


def tensors_digest(tensors: Sequence[StoredTensor]) -> str:
    """SHA-256 (hex) over name, dtype, shape and SHA-256 of the bytes of every tensor, in order of name."""
    digest = hashlib.sha256(b"logitcask-tensors-1\0")
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:  # hashing and reading release the interpreter lock
        for tensor, content in zip(tensors, pool.map(_tensor_digest, tensors), strict=True):
            description = json.dumps([tensor.name, tensor.dtype, list(tensor.shape)]).encode()
            digest.update(struct.pack("<I", len(description)) + description + content)
    return digest.hexdigest()


def files_digest(files: Sequence[Path]) -> str:
    """SHA-256 (hex) over name, size and SHA-256 of every file, in order of name."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        for file, content in zip(files, pool.map(_file_digest, files), strict=True):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode() + content)
    return digest.hexdigest()


def floating_dtype(tensors: Sequence[StoredTensor]) -> str | None:
    """The dtype of most of the floating-point bytes: "float32", "bfloat16", "float16", or None where there is none."""
    names = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    bytes_of: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.dtype in names:
            bytes_of[names[tensor.dtype]] += tensor.stop - tensor.start
    return bytes_of.most_common(1)[0][0] if bytes_of else None


def _indexed(folder: Path) -> list[str]:
    try:
        weight_map = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / INDEX_NAME} is no index of weights (expected a `weight_map`): {error}") from error
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise ModelError(f"{folder / INDEX_NAME} should name .safetensors files beside it, it names {_listed(names)}")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(f"{folder} lacks {_listed(missing)}, which {INDEX_NAME} names; fetch the model again")
    return names


def _header(file: Path) -> list[StoredTensor]:
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            fields: dict[str, Any] = json.loads(stream.read(length))
        tensors = [
            StoredTensor(
                name, entry["dtype"], tuple(entry["shape"]), file, *(8 + length + at for at in entry["data_offsets"])
            )
            for name, entry in fields.items()
            if name != "__metadata__"
        ]
        if any(not 8 + length <= tensor.start <= tensor.stop <= size for tensor in tensors):
            raise ValueError("tensors that lie outside the file; it was cut short")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{file} is damaged or no safetensors file: {error}. Fetch the model again.") from error
    return tensors


def _tensor_digest(tensor: StoredTensor) -> bytes:
    digest, left = hashlib.sha256(), tensor.stop - tensor.start
    buffer = memoryview(bytearray(min(left, _READ_BYTES)))
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        while left:
            count = file.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise ModelError(f"{tensor.file} ended within tensor {tensor.name!r}; is it being written?")
            digest.update(buffer[:count])
            left -= count
    return digest.digest()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _listed(names: Sequence[object]) -> str:
    shown = ", ".join(map(str, names[:4])) or "none"
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
