"""Reading the archives of Megatron-LM's offline distillation: tar files of the top-k of whole training iterations.

Layout, from Megatron-LM's `megatron/training/distillation`: archives `dp{D}__{...}.tar` (older ones
`cp0_dp{D}__{...}`), one per data-parallel rank and checkpoint; first member `_meta.json`, then `{iteration}.pt.zst`,
newer `{first sample}-{end}.pt.zst`: zstd around a file of `torch.save` with `values` (log t), `indices_low` (16 bits of
each id) and `bit_17`. Version 1 has a list of micro-batches [sequence, micro-batch, K]; version 2 one tensor
[sequence, samples, K], whose 17th bits are booleans or packed eight to a byte. What top-p left out is marked by a
log-probability of -1e3 or below.

An archive holds no tokens: a student of Megatron-LM replays the teacher's data. Here the tokens come beside it.

Shape legend: S sequence length of the run, B samples of a member, K entries of a position.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from logitcask_schemas.cask.exchange.top_k_rows import TopKRows
from logitcask_schemas.errors import CaskError, InvalidRecordError, MissingExtraError

_ARCHIVE: Final = re.compile(r"(?:cp(?P<cp>\d+)_)?dp(?P<dp>\d+)__\d+(?:-\d+)?\.tar")
_MEMBER: Final = re.compile(r"(?P<first>\d+)(?:-(?P<end>\d+))?\.pt\.zst")
_META: Final = "_meta.json"
_LEFT_OUT: Final = -999.0
"""Log-probabilities from here down mark entries that top-p left out."""
_VERSIONS: Final = (1, 2)


class MegatronSource:
    """A folder of archives, with the tokens of the run's samples."""

    tool: Final = "megatron"

    def __init__(self, place: Path, *, tokens: Path) -> None:
        """Find the archives and read what they say of the run.

        Args:
            place: the run's folder of archives.
            tokens: a `.npy` of integers [samples, S + 1]: row g holds the tokens of the run's sample g, the label of
                its last position included, in the order of the run (samples 0, 1, ... of iteration 0, and so on).

        Raises:
            CaskError: there are no archives, one is cut short or of another version, ranks are missing, or the tokens
                cannot be read.
            MissingExtraError: torch is not installed.
        """
        try:
            import torch
        except ModuleNotFoundError as error:
            raise MissingExtraError("logitcask cask convert --from megatron", "trainer", "torch") from error
        self._torch: Any = torch
        named = {path: _ARCHIVE.fullmatch(path.name) for path in sorted(place.glob("*.tar"))}
        self._ranks = {path: int(match["dp"]) for path, match in named.items() if match is not None}
        if not self._ranks:
            raise CaskError(
                f"{place} holds no archive of Megatron-LM (dp0__100.tar, dp0__0-800.tar); name the folder of "
                "its --save-logits option"
            )
        if parts := [path.name for path, match in named.items() if match is not None and int(match["cp"] or 0)]:
            raise CaskError(
                f"{place / parts[0]} holds a context-parallel part of each sequence; only archives of whole sequences "
                "(cp0, or no cp in the name) can be taken over"
            )
        saver: dict[str, Any] = self._meta(next(iter(self._ranks))).get("saver", {})
        self._format = saver.get("format_version", 1)
        if self._format not in _VERSIONS:
            raise CaskError(
                f"{place}: format_version {self._format}, expected one of {_VERSIONS}; a newer logitcask may know it"
            )
        ranks = set(self._ranks.values())
        self._dp = int(saver.get("dp_size_save", max(ranks) + 1))
        if ranks != set(range(self._dp)):
            raise CaskError(
                f"{place}: archives of the data-parallel ranks {sorted(ranks)}, expected 0 to {self._dp - 1}; bring "
                "the others, or the numbers of samples cannot be told"
            )
        self._saver = saver
        self._tokens = _tokens(tokens)
        self._tokens_path = tokens
        self.k = int(saver["k"]) if "k" in saver else self._first_width()
        self.skipped: dict[str, int] = {}

    @property
    def version(self) -> str:
        """Of the archives."""
        return str(self._format)

    @property
    def options(self) -> Mapping[str, Any]:
        """k, top-p and the type of stored numbers, where the archives say them."""
        return {f"saver.{name}": self._saver[name] for name in ("k", "p", "min_k", "save_dtype") if name in self._saver}

    @property
    def num_bytes(self) -> int:
        """Of all archives."""
        return sum(path.stat().st_size for path in self._ranks)

    def documents(self) -> Iterator[tuple[TopKRows, float]]:
        """See `TopKSource.documents`; a sample is a document."""
        for path, rank in self._ranks.items():
            for name, content in _members(path):
                match = _MEMBER.fullmatch(name)
                if match is None:
                    continue
                where = f"{path}: {name}"
                samples = self._samples(self._payload(content, where), match, rank, where)
                for rows in samples:
                    yield rows, len(content) / len(samples)

    def _meta(self, path: Path) -> dict[str, Any]:
        name, content = next(_members(path), ("nothing", b""))
        if name != _META:
            raise CaskError(f"{path}: expected {_META} as first member, got {name}; this is no archive of Megatron-LM")
        try:
            meta = json.loads(content)
        except ValueError as error:
            raise CaskError(f"{path}: {_META} is no JSON: {error}") from error
        if not isinstance(meta, dict) or not isinstance(meta.get("saver", {}), dict):
            raise CaskError(f"{path}: {_META} should hold an object with `saver`")
        return meta

    def _first_width(self) -> int:
        for path in self._ranks:
            for name, content in _members(path):
                if _MEMBER.fullmatch(name):
                    values = self._payload(content, f"{path}: {name}")["values"]
                    return int((values[0] if isinstance(values, list) else values).shape[-1])
        raise CaskError(f"{next(iter(self._ranks)).parent}: the archives hold no iteration")

    def _payload(self, content: bytes, where: str) -> dict[str, Any]:
        """The tensors of a member. `weights_only` lets torch read tensors and plain containers, and run nothing."""
        try:
            with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
                plain = stream.read()
            payload = self._torch.load(io.BytesIO(plain), weights_only=True)
        except (pa.ArrowInvalid, OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise CaskError(
                f"{where} cannot be read: {error}. It may be cut short: bring the archive again, or take it away"
            ) from error
        if not isinstance(payload, dict) or not {"values", "indices_low", "bit_17"} <= payload.keys():
            raise CaskError(f"{where}: expected tensors values, indices_low and bit_17; this is another version")
        if "cu_seqlens_padded" in payload:
            raise CaskError(
                f"{where} holds packed sequences (cu_seqlens_padded), whose documents cannot be told apart here; save "
                "the logits of sequences that are not packed"
            )
        return payload

    def _samples(self, payload: dict[str, Any], match: re.Match[str], rank: int, where: str) -> list[TopKRows]:
        version = int(payload.get("format_version", 1))
        if version != self._format:
            raise CaskError(f"{where}: format_version {version}, but {self._format} in {_META}; versions do not mix")
        if version == 1:
            parts = zip(payload["values"], payload["indices_low"], payload["bit_17"], strict=True)
            batches = [self._entries(values, low, high, where) for values, low, high in parts]
        else:
            batches = [self._entries(payload["values"], payload["indices_low"], payload["bit_17"], where)]
        sizes = [logprobs.shape[1] for logprobs, _ in batches]
        micro = sizes[0] if version == 1 else int(self._saver.get("mbs_save", 1))
        total = sum(sizes)
        if total % micro or (version == 1 and set(sizes) != {micro}):
            raise CaskError(f"{where}: {sizes} samples are no whole micro-batches of {micro}")
        if match["end"] is not None:
            first, end = int(match["first"]), int(match["end"])
            if end - first != total * self._dp:
                raise CaskError(
                    f"{where}: names {end - first} samples of {self._dp} ranks, which are {(end - first) / self._dp:g} "
                    f"of each, but holds {total}"
                )
        else:
            first = int(match["first"]) * total * self._dp
        # Rank d has the micro-batches d, d + D, d + 2 D, ... of an iteration.
        rows_B = np.arange(total)
        numbers_B = first + ((rows_B // micro) * self._dp + rank) * micro + rows_B % micro
        columns = [(part, at) for part, size in enumerate(sizes) for at in range(size)]
        return [
            TopKRows(
                token_ids_L=self._tokens_of(int(number), batches[part][0].shape[0], where),
                ids_PK=batches[part][1][:, at],
                logprobs_PK=batches[part][0][:, at],
                where=f"{where}, sample {number}",
            )
            for number, (part, at) in zip(numbers_B, columns, strict=True)
        ]

    def _entries(self, values: Any, low: Any, high: Any, where: str) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
        """Values log t (-inf where there is no entry) and ids, both [S, B, K]."""
        logprobs: NDArray[np.float64] = values.to(self._torch.float64).numpy()
        if logprobs.ndim != 3 or tuple(low.shape) != logprobs.shape:
            raise CaskError(
                f"{where}: values of shape {list(logprobs.shape)} and indices_low of {list(low.shape)}, expected one "
                "shape [sequence, samples, k]"
            )
        bits = high.numpy()
        if bits.dtype == np.uint8 and bits.shape == ((logprobs.size + 7) // 8,):
            bits = np.unpackbits(bits, count=logprobs.size).reshape(logprobs.shape)
        if bits.shape != logprobs.shape:
            raise CaskError(f"{where}: bit_17 of shape {list(bits.shape)} does not fit values {list(logprobs.shape)}")
        ids = low.numpy().astype(np.uint32) | (bits.astype(np.uint32) << np.uint32(16))
        return np.where(logprobs <= _LEFT_OUT, -np.inf, logprobs), ids

    def _tokens_of(self, number: int, positions: int, where: str) -> NDArray[np.integer[Any]]:
        samples, width = self._tokens.shape
        if number >= samples:
            raise InvalidRecordError(
                f"{where}: holds sample {number}, {self._tokens_path} ends at {samples - 1}; name the tokens of all "
                "samples of the run, in its order"
            )
        if width != positions + 1:
            raise InvalidRecordError(
                f"{where}: {positions} positions need {positions + 1} tokens a sample (the last position's label "
                f"included), {self._tokens_path} has {width}"
            )
        tokens_L: NDArray[np.integer[Any]] = np.asarray(self._tokens[number])
        return tokens_L


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive's files."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if (file := archive.extractfile(member)) is not None:
                    content = file.read()
                    if len(content) != member.size:
                        raise tarfile.ReadError(f"{member.name} ends after {len(content)} of {member.size} bytes")
                    yield member.name, content
    except (tarfile.TarError, OSError) as error:
        raise CaskError(
            f"{path} is no whole tar archive: {error}. Bring it again, or take it away (its samples are then left out)"
        ) from error


def _tokens(path: Path) -> NDArray[np.integer[Any]]:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CaskError(f"--tokens {path} cannot be read as .npy: {error}") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        shape = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
        raise CaskError(f"--tokens {path} should hold integers of shape [samples, sequence + 1], got {shape}")
    return tokens
