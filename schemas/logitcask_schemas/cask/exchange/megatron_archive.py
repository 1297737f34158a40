"""One archive of Megatron-LM's offline distillation: what its `_meta.json` says, and the arrays of its members.

Everything that a file can get wrong is found here, and becomes a CaskError that names archive and member: what is
handed on are arrays of one shape, with the types and ranges that the format has.

Shape legend: S sequence length of the run, B samples of a micro-batch or member, K entries of a position.
"""

import io
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitcask_schemas.errors import CaskError

META_NAME: Final = "_meta.json"
LEFT_OUT: Final = -999.0
"""Log-probabilities from here down mark entries that top-p left out."""
VERSIONS: Final = (1, 2)
_NAMES: Final = ("values", "indices_low", "bit_17")
_VALUE_TYPES: Final = frozenset({"float16", "bfloat16", "float32", "float64"})
_LOW_TYPES: Final = frozenset({"uint16", "int32", "int64"})
_HIGH_TYPES: Final = frozenset({"bool", "uint8"})
_CHUNK: Final = 1 << 20

Count = Annotated[int, Field(strict=True, ge=1, le=1 << 40)]


class Saver(BaseModel):
    """What the run wrote, and how; what is not named here changes neither values nor their order."""

    model_config = ConfigDict(frozen=True)

    format_version: Annotated[int, Field(strict=True)] = 1
    k: Count | None = None
    p: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None
    min_k: Annotated[int, Field(strict=True)] | None = None
    save_dtype: str | None = None
    mbs_save: Count = 1
    """Samples of a micro-batch of the teacher's run."""
    dp_size_save: Count | None = None
    """Data-parallel ranks of it."""


class ArchiveMeta(BaseModel):
    """An archive's `_meta.json`."""

    model_config = ConfigDict(frozen=True)

    hash: str | None = None
    """Which data set in which order the run went through."""
    saver: Saver = Saver()

    @classmethod
    def read(cls, path: Path) -> "ArchiveMeta":
        """That of an archive; CaskError where there is none, or it is of another version."""
        name, content = next(members(path), ("nothing", b""))
        if name != META_NAME:
            raise CaskError(
                f"{path}: expected {META_NAME} as first member, got {name}; this is no archive of Megatron-LM"
            )
        try:
            meta = cls.model_validate_json(content)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}"
                for each in error.errors(include_input=False, include_url=False)
            )
            raise CaskError(f"{path}: {META_NAME} cannot be used ({faults}); bring the archive again") from error
        if meta.saver.format_version not in VERSIONS:
            raise CaskError(
                f"{path}: format_version {meta.saver.format_version}, expected one of {VERSIONS}; a newer logitcask "
                "may know it"
            )
        return meta

    def require_same_run(self, path: Path, other: "ArchiveMeta", other_path: Path) -> None:
        """Refuse two archives that are not of one run, saved in one way: the numbers of their samples do not fit."""
        mine, theirs = ({"hash": meta.hash, **meta.saver.model_dump()} for meta in (self, other))
        if differing := [name for name in mine if mine[name] != theirs[name]]:
            listing = "; ".join(f"{name} {mine[name]!r} and {theirs[name]!r}" for name in differing)
            raise CaskError(
                f"{path} and {other_path.name} are not of one run ({listing}), so their samples cannot be counted "
                "together; convert each run from a folder of its own, with its own --tokens"
            )


class MemberReader:
    """Members of archives as arrays."""

    def __init__(self, torch: Any) -> None:
        """The module is the caller's to import: it is in an extra."""
        self._torch = torch

    def read(
        self, content: bytes, version: int, max_bytes: int, where: str
    ) -> list[tuple[NDArray[np.float64], NDArray[np.uint32]]]:
        """The micro-batches of a member (of version 2: one with all samples).

        Args:
            content: The member, as it is in the archive.
            version: That `_meta.json` says.
            max_bytes: The most that it may be without compression.
            where: Archive and member, for messages.

        Returns:
            For each log t (-inf where there is no entry) and ids, both [S, B, K], S and K at least 1.

        Raises:
            CaskError: The member is damaged, too large, or holds something else.
        """
        payload = self._payload(_decompressed(content, max_bytes, where), where)
        stated = payload.get("format_version", 1)
        if type(stated) is not int or stated != version:
            raise CaskError(
                f"{where}: format_version {stated!r:.40}, but {version} in {META_NAME}; versions do not mix"
            )
        columns = [payload[name] for name in _NAMES]
        if version == 1:
            lengths = [len(column) if isinstance(column, list) else -1 for column in columns]
            if lengths[0] < 1 or len(set(lengths)) != 1:
                raise CaskError(
                    f"{where}: expected lists of as many micro-batches in {', '.join(_NAMES)}, got "
                    f"{[length if length >= 0 else 'no list' for length in lengths]}; bring the archive again"
                )
            return [self._entries(where, *parts) for parts in zip(*columns, strict=True)]
        return [self._entries(where, *columns)]

    def _payload(self, plain: bytes, where: str) -> dict[str, Any]:
        """What `torch.save` wrote. `weights_only` lets torch read tensors and plain containers, and run nothing."""
        try:
            with zipfile.ZipFile(io.BytesIO(plain)) as archive:
                # torch would unpack what is compressed; it never writes such files itself.
                if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                    raise CaskError(f"{where} holds compressed records, which torch.save does not write; do not use it")
                if (damaged := archive.testzip()) is not None:
                    raise CaskError(f"{where} is damaged: {damaged} fails its checksum. Bring the archive again")
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
            if isinstance(error, CaskError):
                raise
            raise CaskError(
                f"{where} cannot be read: it is no whole file of torch.save ({error}). Bring the archive again"
            ) from error
        try:
            payload = self._torch.load(io.BytesIO(plain), weights_only=True, map_location="cpu")
        except (
            *(UnpicklingError, RuntimeError, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError),
            *(MemoryError, OSError, TypeError, ValueError, struct.error),
        ) as error:
            # torch advises to read the file in the way that runs code: not to be passed on.
            raise CaskError(
                f"{where} holds something other than tensors ({type(error).__name__}); do not trust this file. Bring "
                "the archive again from where the teacher ran"
            ) from error
        if not isinstance(payload, dict) or any(name not in payload for name in _NAMES):
            raise CaskError(f"{where}: expected tensors {', '.join(_NAMES)}; this is another version")
        if "cu_seqlens_padded" in payload:
            raise CaskError(
                f"{where} holds packed sequences (cu_seqlens_padded), whose documents cannot be told apart here; save "
                "the logits of sequences that are not packed"
            )
        return payload

    def _array(self, tensor: Any, name: str, types: frozenset[str], where: str) -> Any:
        """A tensor that holds its own elements, of one of these types."""
        torch = self._torch
        kind = type(tensor).__name__
        if isinstance(tensor, torch.Tensor):
            is_plain = tensor.layout == torch.strided and not tensor.is_quantized
            kind = str(tensor.dtype if is_plain else tensor.layout).removeprefix("torch.")
        if kind not in types:
            raise CaskError(f"{where}: {name} is {kind}, expected a tensor of {', '.join(sorted(types))}")
        if tensor.device.type != "cpu" or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CaskError(f"{where}: {name} has fewer numbers than its shape {list(tensor.shape)}; do not use it")
        return tensor.detach().resolve_neg()

    def _entries(self, where: str, values: Any, low: Any, high: Any) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
        values = self._array(values, "values", _VALUE_TYPES, where)
        low = self._array(low, "indices_low", _LOW_TYPES, where)
        bits = self._array(high, "bit_17", _HIGH_TYPES, where).numpy()
        logprobs: NDArray[np.float64] = values.to(self._torch.float64).numpy()
        if logprobs.ndim != 3 or tuple(low.shape) != logprobs.shape or 0 in (logprobs.shape[0], logprobs.shape[2]):
            raise CaskError(
                f"{where}: values of shape {list(logprobs.shape)} and indices_low of {list(low.shape)}, expected one "
                "shape [sequence, samples, k] with positions and entries"
            )
        if bits.dtype == np.uint8 and bits.shape == ((logprobs.size + 7) // 8,):
            bits = np.unpackbits(bits, count=logprobs.size).reshape(logprobs.shape)
        if bits.shape != logprobs.shape:
            raise CaskError(f"{where}: bit_17 of shape {list(bits.shape)} does not fit values {list(logprobs.shape)}")
        low_ids = low.numpy()
        for name, numbers, end in (("indices_low", low_ids, 1 << 16), ("bit_17", bits, 2)):
            least, largest = int(numbers.min(initial=0)), int(numbers.max(initial=0))
            if least < 0 or largest >= end:
                raise CaskError(f"{where}: {name} holds {least} to {largest}, expected 0 to {end - 1}")
        ids = low_ids.astype(np.uint32) | (bits.astype(np.uint32) << np.uint32(16))
        return np.where(logprobs <= LEFT_OUT, -np.inf, logprobs), ids


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive's plain files; links, devices and files with holes are passed over."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse() or (file := archive.extractfile(member)) is None:
                    continue
                content = file.read()
                if len(content) != member.size:
                    raise tarfile.ReadError(f"{member.name} ends after {len(content)} of {member.size} bytes")
                yield member.name, content
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise CaskError(
            f"{path} is no whole tar archive: {error}. Bring it again, or take it away (its samples are then left out)"
        ) from error


def _decompressed(content: bytes, max_bytes: int, where: str) -> bytes:
    plain = io.BytesIO()
    try:
        with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
            while chunk := stream.read(_CHUNK):
                plain.write(chunk)
                if plain.tell() > max_bytes:
                    raise CaskError(
                        f"{where} becomes larger than the {max_bytes:,} bytes that its samples can take by --tokens "
                        f"and {META_NAME}; it is not what it says, or they are another run's"
                    )
    except (pa.ArrowException, OSError) as error:
        raise CaskError(
            f"{where} cannot be read: {error}. It may be cut short: bring the archive again, or take it away"
        ) from error
    return plain.getvalue()
