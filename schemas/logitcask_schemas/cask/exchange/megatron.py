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

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.exchange.megatron_archive import ArchiveMeta, MemberReader, members
from logitcask_schemas.cask.exchange.top_k_rows import TopKRows
from logitcask_schemas.errors import CaskError, InvalidRecordError, MissingExtraError

_ARCHIVE: Final = re.compile(r"(?:cp(?P<cp>\d+)_)?dp(?P<dp>\d+)__\d+(?:-\d+)?\.tar", re.ASCII)
_MEMBER: Final = re.compile(r"(?P<first>\d{1,18})(?:-(?P<end>\d{1,18}))?\.pt\.zst", re.ASCII)
_BYTES_PER_ENTRY: Final = 17
"""At most: 8 of a value, 8 of an id, 1 of its 17th bit."""
_BYTES_PER_SAMPLE: Final = 4096
"""At most, for the names and edges of its tensors."""
_BYTES_PER_MEMBER: Final = 1 << 20
_MAX_PLAIN_BYTES: Final = 4 << 30
"""Of a member, where the archives do not say how many entries a position has."""


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
        self._meta = self._one_run()
        saver = self._meta.saver
        ranks = set(self._ranks.values())
        self._dp = saver.dp_size_save or max(ranks) + 1
        if len(ranks) != self._dp or max(ranks) >= self._dp:
            raise CaskError(
                f"{place}: archives of the data-parallel ranks {sorted(ranks)}, expected 0 to {self._dp - 1}; bring "
                "the others, or the numbers of samples cannot be told"
            )
        self._tokens = _tokens(tokens)
        self._tokens_path = tokens
        self._reader = MemberReader(torch)
        self.skipped: dict[str, int] = {"members_without_samples": 0}
        self.k = saver.k or self._first_width()

    @property
    def version(self) -> str:
        """Of the archives."""
        return str(self._meta.saver.format_version)

    @property
    def options(self) -> Mapping[str, Any]:
        """k, top-p and the type of stored numbers, where the archives say them."""
        stated = self._meta.saver.model_dump(exclude_unset=True, include={"k", "p", "min_k", "save_dtype"})
        return {f"saver.{name}": value for name, value in stated.items()}

    @property
    def num_bytes(self) -> int:
        """Of all archives."""
        return sum(path.stat().st_size for path in self._ranks)

    def documents(self) -> Iterator[tuple[TopKRows, float]]:
        """See `TopKSource.documents`; a sample is a document."""
        for path, rank in self._ranks.items():
            for name, content in members(path):
                match = _MEMBER.fullmatch(name)
                if match is None:
                    continue
                samples = self._samples(content, match, rank, f"{path}: {name}")
                self.skipped["members_without_samples"] += not samples
                for rows in samples:
                    yield rows, len(content) / len(samples)

    def _one_run(self) -> ArchiveMeta:
        """What all archives say; a sample of another run would silently get the place of one of this."""
        (first_path, first), *others = [(path, ArchiveMeta.read(path)) for path in self._ranks]
        for path, meta in others:
            first.require_same_run(first_path, meta, path)
        return first

    def _first_width(self) -> int:
        for path in self._ranks:
            for name, content in members(path):
                if (match := _MEMBER.fullmatch(name)) is not None:
                    batches = self._batches(content, match, f"{path}: {name}")
                    return int(batches[0][0].shape[-1])
        raise CaskError(f"{next(iter(self._ranks)).parent}: the archives hold no iteration")

    def _batches(
        self, content: bytes, match: re.Match[str], where: str
    ) -> list[tuple[NDArray[np.float64], NDArray[np.uint32]]]:
        """The micro-batches of a member; see `MemberReader.read`."""
        samples, width = self._tokens.shape
        if match["end"] is not None:
            self._require_tokens(int(match["first"]), int(match["end"]), where)
            samples = max(int(match["end"]) - int(match["first"]), 0)
        limit, k = _MAX_PLAIN_BYTES, self._meta.saver.k
        if k is not None:
            of_rank = -(-samples // self._dp)
            limit = of_rank * ((width - 1) * k * _BYTES_PER_ENTRY + _BYTES_PER_SAMPLE) + _BYTES_PER_MEMBER
        batches = self._reader.read(content, self._meta.saver.format_version, limit, where)
        if k is not None and (wider := [logprobs.shape[2] for logprobs, _ in batches if logprobs.shape[2] > k]):
            raise CaskError(f"{where}: {wider[0]} entries of a position, at most {k} by k of its archive's metadata")
        return batches

    def _samples(self, content: bytes, match: re.Match[str], rank: int, where: str) -> list[TopKRows]:
        batches = self._batches(content, match, where)
        sizes = [logprobs.shape[1] for logprobs, _ in batches]
        is_list = self._meta.saver.format_version == 1
        micro = sizes[0] if is_list else self._meta.saver.mbs_save
        total = sum(sizes)
        if total == 0:
            return []
        if micro == 0 or total % micro or (is_list and set(sizes) != {micro}):
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
            self._require_tokens(first, first + total * self._dp, where)
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

    def _require_tokens(self, first: int, end: int, where: str) -> None:
        if end > len(self._tokens):
            raise InvalidRecordError(
                f"{where}: holds parts of sample {first} to {end - 1}, {self._tokens_path} ends at "
                f"{len(self._tokens) - 1}; name the tokens of all samples of the run, in its order"
            )

    def _tokens_of(self, number: int, positions: int, where: str) -> NDArray[np.integer[Any]]:
        width = self._tokens.shape[1]
        if width != positions + 1:
            raise InvalidRecordError(
                f"{where}: {positions} positions need {positions + 1} tokens a sample (the last position's label "
                f"included), {self._tokens_path} has {width}"
            )
        tokens_L: NDArray[np.integer[Any]] = np.asarray(self._tokens[number])
        return tokens_L


def _tokens(path: Path) -> NDArray[np.integer[Any]]:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, TokenError, RecursionError, MemoryError) as error:
        # numpy advises to read pickled files in the way that runs code: not to be passed on.
        reason = error.strerror if isinstance(error, OSError) else "it is no whole array of numbers"
        raise CaskError(f"--tokens {path} cannot be read as .npy ({reason}); numpy.save writes one") from error
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape[1] < 2:
        shape = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
        raise CaskError(f"--tokens {path} should hold integers of shape [samples, sequence + 1], got {shape}")
    return tokens
