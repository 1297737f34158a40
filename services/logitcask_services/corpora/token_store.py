"""The tokens of one extraction: an immutable folder of flat memory-mapped columns.

Shape legend: D documents, N tokens, A ranges of answers and P ranges of recorded positions over all of them, R ranges
of one document; K contexts, which documents share, of M tokens together.

    store.json    format, version, D, N: written last, with the folder's rename as publication
    tokens.u32    [N]      token ids, document after document
    offsets.u64   [D + 1]  document d is tokens[offsets[d] : offsets[d + 1]]
    ids.sha256    [D, 32]  document identities
    lines.u64     [D, 2]   line number in the corpus (from 1), byte at which that line starts
    answers.u32   [A, 2]   ranges [start, stop) of tokens that the assistant says
    places.i64    [D, 2]   a document's first range and how many it has; -1 ranges where nobody knows
    recorded.u32  [P, 2]   ranges [start, stop) of positions to record
    extents.i64   [D, 4]   a document's first range and how many it has, -1 ranges where all are recorded; its context,
                           -1 where it has none, and how many of its tokens that replaces
    contexts.u32  [M]      token ids, context after context
    bounds.u64    [K + 1]  context k is contexts[bounds[k] : bounds[k + 1]]

All little-endian. Version 1 has no answers, version 2 neither recorded positions nor contexts.
A store is never changed: a restart finds the same documents in the same order.
"""

import contextlib
import json
import mmap
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.storage import files
from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.record.extent import WHOLE, Extent, document_id
from logitcask_services.corpora.context_tokens import ContextTokens

FORMAT, VERSION = "logitcask-tokens", 3
VERSIONS = (1, 2, 3)
COLUMNS = {"tokens.u32": 4, "offsets.u64": 8, "ids.sha256": 32, "lines.u64": 16}
ANSWER_COLUMNS = {"answers.u32": 8, "places.i64": 16}
EXTENT_COLUMNS = {"recorded.u32": 8, "extents.i64": 32, "contexts.u32": 4, "bounds.u64": 8}
_UNKNOWN = -1
_REMEMBERED_CONTEXTS = 4096
"""Contexts that are stored once although documents between them have others."""


class TokenStoreError(LogitcaskError, ValueError):
    """A token store is not complete or not of this version."""


class TokenStoreWriter:
    """Writes a store beside its place; `finish` publishes it, leaving the block without that deletes it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.with_name(f"{target.name}.tmp-{secrets.token_hex(8)}")
        self._temporary.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {
            name: (self._temporary / name).open("xb", buffering=1 << 20)
            for name in (*COLUMNS, *ANSWER_COLUMNS, *EXTENT_COLUMNS)
        }
        self.documents = 0
        self.tokens = 0
        self.recorded_positions = 0
        self.context_tokens = 0
        """Of all documents; a context counts as often as it is read."""
        self._ranges = self._recorded_ranges = self._contexts = self._stored_context_tokens = 0
        self._context_numbers: dict[bytes, int] = {}
        self._files["offsets.u64"].write(bytes(8))
        self._files["bounds.u64"].write(bytes(8))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            # After `finish` nothing is left to write; before it, a full disk may refuse what is being thrown away.
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def append(
        self,
        token_ids: list[int],
        *,
        line: int,
        line_start: int,
        answers: Sequence[tuple[int, int]] | None = None,
        extent: Extent = WHOLE,
        context: ContextTokens | None = None,
    ) -> bytes:
        """Add one document; its identity in a cask.

        Args:
            token_ids: the document's.
            line: number of its line in the corpus.
            line_start: byte at which that begins.
            answers: ranges of its tokens, ascending, apart, not empty; None where nobody knows.
            extent: what of it is recorded, and the identity of `context`.
            context: what the teacher reads before it.
        """
        ids_L = np.array(token_ids, dtype="<u4")
        self.tokens += len(ids_L)
        self.documents += 1
        self._files["tokens.u32"].write(ids_L.tobytes())
        self._files["offsets.u64"].write(self.tokens.to_bytes(8, "little"))
        identity = document_id(ids_L, extent)
        self._files["ids.sha256"].write(identity)
        self._files["lines.u64"].write(line.to_bytes(8, "little") + line_start.to_bytes(8, "little"))
        count = _UNKNOWN if answers is None else len(answers)
        self._files["places.i64"].write(np.array([self._ranges, count], dtype="<i8").tobytes())
        if answers:
            self._ranges += len(answers)
            self._files["answers.u32"].write(np.array(answers, dtype="<u4").tobytes())
        self._append_extent(extent, context)
        self.recorded_positions += extent.num_positions(len(ids_L))
        return identity

    def _append_extent(self, extent: Extent, context: ContextTokens | None) -> None:
        ranges_R2 = extent.recorded_R2
        count = _UNKNOWN if ranges_R2 is None else len(ranges_R2)
        number, replaced = (_UNKNOWN, 0) if context is None else (self._context_number(context), context.replaced)
        numbers = np.array([self._recorded_ranges, count, number, replaced], dtype="<i8")
        self._files["extents.i64"].write(numbers.tobytes())
        if ranges_R2 is not None:
            self._recorded_ranges += len(ranges_R2)
            self._files["recorded.u32"].write(ranges_R2.astype("<u4").tobytes())

    def _context_number(self, context: ContextTokens) -> int:
        """Number of a context, which is written unless it is remembered."""
        ids_C = np.ascontiguousarray(context.token_ids_C, dtype="<u4")
        self.context_tokens += len(ids_C)
        digest = document_id(ids_C)
        number = self._context_numbers.pop(digest, None)
        if number is None:
            number = self._contexts
            self._contexts += 1
            self._stored_context_tokens += len(ids_C)
            self._files["contexts.u32"].write(ids_C.tobytes())
            self._files["bounds.u64"].write(self._stored_context_tokens.to_bytes(8, "little"))
            if len(self._context_numbers) >= _REMEMBERED_CONTEXTS:
                self._context_numbers.pop(next(iter(self._context_numbers)))
        self._context_numbers[digest] = number  # behind all others: it was used last
        return number

    def finish(self) -> None:
        """Flush everything to the disk and publish the store, in place of any that no one refers to yet."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        head = self._temporary / "store.json"
        with head.open("x", encoding="utf-8") as text:
            sizes = {
                "documents": self.documents,
                "tokens": self.tokens,
                "answers": self._ranges,
                "recorded": self._recorded_ranges,
                "contexts": self._contexts,
                "context_tokens": self._stored_context_tokens,
            }
            json.dump({"format": FORMAT, "version": VERSION, **sizes}, text)
            text.flush()
            os.fsync(text.fileno())
        files.LocalFiles().sync_directory(self._temporary)
        if self._target.exists():
            shutil.rmtree(self._target)
        files.publish_path(self._temporary, self._target)


class TokenStore:
    """A published store, mapped. Raises TokenStoreError where it is not whole."""

    def __init__(self, folder: Path) -> None:
        self._maps: list[mmap.mmap] = []
        try:
            head: dict[str, Any] = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TokenStoreError(f"{folder} is not a token store: {error}; submit the extraction again") from error
        if head.get("format") != FORMAT or head.get("version") not in VERSIONS:
            raise TokenStoreError(
                f"{folder} is {head.get('format')} version {head.get('version')}; expected {FORMAT} version "
                f"{VERSIONS[0]} to {VERSIONS[-1]}. Submit the extraction again"
            )
        has_answers, has_extents = head["version"] >= 2, head["version"] >= 3
        self.num_documents: int = head["documents"]
        self.num_tokens: int = head["tokens"]
        rows = {
            "tokens.u32": self.num_tokens,
            "offsets.u64": self.num_documents + 1,
            "ids.sha256": self.num_documents,
            "lines.u64": self.num_documents,
        }
        if has_answers:
            rows |= {"answers.u32": head["answers"], "places.i64": self.num_documents}
        if has_extents:
            rows |= {"recorded.u32": head["recorded"], "extents.i64": self.num_documents}
            rows |= {"contexts.u32": head["context_tokens"], "bounds.u64": head["contexts"] + 1}
        widths = COLUMNS | ANSWER_COLUMNS | EXTENT_COLUMNS
        for name in rows:
            expected, got = rows[name] * widths[name], (folder / name).stat().st_size
            if expected != got:
                raise TokenStoreError(f"{folder / name} should have {expected} bytes, it has {got}; submit again")
        self.token_ids_N: NDArray[np.uint32] = self._map(folder / "tokens.u32", "<u4", (self.num_tokens,))
        self.offsets_D1: NDArray[np.uint64] = self._map(folder / "offsets.u64", "<u8", (self.num_documents + 1,))
        self._ids_D32: NDArray[np.uint8] = self._map(folder / "ids.sha256", "u1", (self.num_documents, 32))
        self._lines_D2: NDArray[np.uint64] = self._map(folder / "lines.u64", "<u8", (self.num_documents, 2))
        self._answers_A2: NDArray[np.uint32] | None = None
        if has_answers:
            self._answers_A2 = self._map(folder / "answers.u32", "<u4", (head["answers"], 2))
            self._places_D2: NDArray[np.int64] = self._map(folder / "places.i64", "<i8", (self.num_documents, 2))
        self._extents_D4: NDArray[np.int64] | None = None
        if has_extents and (head["recorded"] or head["contexts"]):
            self._extents_D4 = self._map(folder / "extents.i64", "<i8", (self.num_documents, 4))
            self._recorded_P2: NDArray[np.uint32] = self._map(folder / "recorded.u32", "<u4", (head["recorded"], 2))
            self._contexts_M: NDArray[np.uint32] = self._map(folder / "contexts.u32", "<u4", (head["context_tokens"],))
            self._bounds_K1: NDArray[np.uint64] = self._map(folder / "bounds.u64", "<u8", (head["contexts"] + 1,))

    def release(self) -> None:
        """Let go of the pages that were read; they come back from the disk when they are asked for."""
        for column in self._maps:
            column.madvise(mmap.MADV_DONTNEED)

    def tokens(self, document: int) -> NDArray[np.uint32]:
        """Token ids [L] of a document, a view of the map."""
        return self.token_ids_N[int(self.offsets_D1[document]) : int(self.offsets_D1[document + 1])]

    def document_id(self, document: int) -> bytes:
        """The document's identity, 32 bytes."""
        identity: bytes = self._ids_D32[document].tobytes()
        return identity

    @property
    def document_ids_D32(self) -> NDArray[np.uint8]:
        """Identities of all documents, [D, 32], a view of the map."""
        return self._ids_D32

    def answers(self, document: int) -> NDArray[np.uint32] | None:
        """Ranges [start, stop) of the document's tokens that are answers, [R, 2]; None where nobody knows."""
        if self._answers_A2 is None:
            return None
        first, count = map(int, self._places_D2[document])
        return None if count < 0 else self._answers_A2[first : first + count]

    @property
    def has_extents(self) -> bool:
        """Whether a document is recorded in part, or read under a context."""
        return self._extents_D4 is not None

    def recorded(self, document: int) -> NDArray[np.uint32] | None:
        """Ranges [start, stop) of the positions to record, [R, 2]; None where all are."""
        if self._extents_D4 is None:
            return None
        first, count = map(int, self._extents_D4[document, :2])
        return None if count < 0 else self._recorded_P2[first : first + count]

    def context(self, document: int) -> ContextTokens | None:
        """What the teacher reads before a document, ids a view of the map; None where that is nothing."""
        if self._extents_D4 is None:
            return None
        number, replaced = map(int, self._extents_D4[document, 2:])
        if number < 0:
            return None
        token_ids_C = self._contexts_M[int(self._bounds_K1[number]) : int(self._bounds_K1[number + 1])]
        return ContextTokens(token_ids_C=token_ids_C, replaced=replaced)

    def line(self, document: int) -> tuple[int, int]:
        """The corpus line a document came from: number (from 1) and first byte."""
        return int(self._lines_D2[document, 0]), int(self._lines_D2[document, 1])

    def first_document_of(self, line: int) -> int | None:
        """The first document that a corpus line gave; None where it gave none."""
        at = int(np.searchsorted(self._lines_D2[:, 0], line))  # documents are in order of their lines
        return at if at < self.num_documents and self.line(at)[0] == line else None

    def _map(self, path: Path, dtype: str, shape: tuple[int, ...]) -> Any:
        if 0 in shape:  # an empty file cannot be mapped
            return np.empty(shape, dtype=dtype)
        with path.open("rb") as file:
            column = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(column)
        return np.frombuffer(column, dtype=dtype).reshape(shape)
