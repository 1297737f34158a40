"""Describing a document for people: each position with the teacher's alternatives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcask_schemas.cask.carriers.arrow import ArrowCarrier
from logitcask_schemas.cask.format.lists import list_sizes
from logitcask_schemas.cask.reader import Cask
from logitcask_schemas.errors import CaskNotFoundError


def find_document(cask: Cask, name: str) -> int:
    """The number of a document given its number in decimal, or at least eight leading hex digits of its id.

    Raises:
        CaskNotFoundError: No such document, or an ambiguous prefix.
    """
    if name.isdecimal() and len(name) < 8:
        if not len(cask):
            raise CaskNotFoundError(f"{cask.place} holds no document yet")
        if int(name) >= len(cask):
            raise CaskNotFoundError(f"{cask.place}: document {name} of {len(cask)}; numbers start at 0")
        return int(name)
    matches = _starting_with(cask, name.lower()) if 8 <= len(name) <= 64 else []
    if len(matches) != 1:
        raise CaskNotFoundError(
            f"{cask.place}: {len(matches)} documents have an id starting with {name!r}; give a number below "
            f"{len(cask)} or at least 8 leading hex digits of an id"
        )
    return matches[0]


def _starting_with(cask: Cask, digits: str) -> list[int]:
    """Numbers of the documents whose id starts with these hex digits; compared in numpy, for casks of millions."""
    try:
        prefix = np.frombuffer(bytes.fromhex(digits + "0" * (len(digits) % 2)), dtype=np.uint8)
    except ValueError:
        return []
    ids = cask.document_ids()[:, : len(prefix)]
    same = (ids[:, : len(digits) // 2] == prefix[: len(digits) // 2]).all(axis=1)
    if len(digits) % 2:
        same &= ids[:, -1] >> 4 == prefix[-1] >> 4
    return [int(number) for number in np.flatnonzero(same)]


def describe_positions(
    cask: Cask, number: int, *, start: int, count: int, alternatives: int, text: Callable[[int], str] | None
) -> dict[str, Any]:
    """A window of a document as plain Python values.

    Args:
        cask: An open cask.
        number: The document.
        start: First position.
        count: Most positions.
        alternatives: Most head entries per position, in stored order (most probable first).
        text: From token id to what stands for it; None keeps the id.

    Returns:
        `id` (hex), `tokens`, `answers` (how many of the tokens are answers; None where the document does not say),
        `recorded` (how many positions have records), `context` (tokens that the teacher read before the document), and
        `positions`: for each that has a record its number, token, next token, whether that is of an answer, probability
        of the next token (None where an imported record lacks it), entropy (nats), probability of the head, number of
        tail draws, and head entries as (token, probability).
    """
    name = text or str
    shard_number, row = cask.locate(number)
    shard = cask.shard(shard_number)
    length = int(np.diff(shard.token_offsets[row : row + 2])[0]) - 1
    if start >= length:
        raise CaskNotFoundError(f"{cask.place}: position {start} of document {number}, which has {length}")
    window = shard.read_window(row, start, min(start + count, length))
    records = window.records
    stops = np.cumsum(records.head_counts_P, dtype=np.int64)
    positions: list[dict[str, Any]] = []
    answers_R2, extent = shard.answer_ranges(row), shard.extent(row)
    for i, stop in zip(window.extent.positions(len(window.token_ids_L)).tolist(), stops.tolist(), strict=True):
        at = len(positions)
        entries = slice(stop - int(records.head_counts_P[at]), stop)
        # One entry of every head is the token that really came next; an imported one may lack it.
        realised = records.head_logprobs_H[entries][records.head_ids_H[entries] == window.token_ids_L[i + 1]]
        ids = records.head_ids_H[entries][:alternatives]
        probabilities = np.exp(records.head_logprobs_H[entries][:alternatives].astype(np.float64))
        positions.append(
            {
                "position": start + i,
                "token": name(int(window.token_ids_L[i])),
                "next": name(int(window.token_ids_L[i + 1])),
                "answer": None if answers_R2 is None else _is_inside(start + i + 1, answers_R2),
                "probability": float(np.exp(realised.astype(np.float64)).sum()) if len(realised) else None,
                "entropy": float(records.entropy_P[at]),
                "captured": 1.0 - float(np.exp(np.float64(records.log_tail_mass_P[at]))),
                "draws": int(records.tail_counts_P[at]),
                "head": [(name(int(j)), float(p)) for j, p in zip(ids, probabilities, strict=True)],
            }
        )
    return {
        "id": shard.document_ids[row].tobytes().hex(),
        "tokens": length + 1,
        "answers": None if answers_R2 is None else int(np.diff(answers_R2.astype(np.int64)).sum()),
        "recorded": extent.num_positions(length + 1),
        "context": 0 if extent.context is None else extent.context.length,
        "positions": positions,
    }


def _is_inside(token: int, ranges_R2: NDArray[np.uint32]) -> bool:
    return bool(((ranges_R2[:, 0] <= token) & (token < ranges_R2[:, 1])).any())


@dataclass(frozen=True, slots=True, kw_only=True)
class CaskStats:
    """Counts are sums over all shards; bytes per token divide by the number of tokens."""

    shards: int
    documents: int
    tokens: int
    positions: int
    head_entries: int
    tail_entries: int
    answer_documents: int
    """Documents that say which of their tokens are answers, or that none is."""
    answer_positions: int
    """Positions that predict a token of an answer of these."""
    recorded_documents: int
    """Documents with records of some of their positions only."""
    context_documents: int
    """Documents that the teacher read after others' tokens."""
    bytes: int
    """Of the shards' files, everything included but hints."""
    hints: dict[str, Any] | None
    """What is kept beside the distributions: `layers`, `of`, `codec`, `positions`, in how many `shards` it is there,
    `bytes` of their files and `bytes_per_token`. None where nothing is."""
    bytes_per_token: float
    head_entries_per_position: float
    tail_draws_per_position: float
    column_bytes_per_token: dict[str, float]
    """Per column, values only, before compression; `overhead` is the rest: offsets, ids, checksums, file headers.
    Where a carrier compresses, the rest is `overhead - compression`, mostly negative."""


def cask_stats(cask: Cask) -> CaskStats:
    """Figures of a cask; reads no shard."""
    units = {
        "token": cask.num_tokens,
        "position": cask.num_positions,
        "head": sum(entry.head_entries for entry in cask.entries),
        "tail": sum(entry.tail_entries for entry in cask.entries),
    }
    tokens, positions = max(units["token"], 1), max(units["position"], 1)
    columns = {column.name: units[column.level] * column.bytes_per_unit for column in cask.layout.columns}
    for entry in cask.entries:
        for name, numbers in list_sizes(entry.list_counts).items():
            columns[name] = columns.get(name, 0) + 4 * numbers
    rest = "overhead" if all(entry.carrier == ArrowCarrier.name for entry in cask.entries) else "overhead - compression"
    columns[rest] = cask.num_bytes - sum(columns.values())
    return CaskStats(
        shards=len(cask.entries),
        documents=len(cask),
        tokens=units["token"],
        positions=units["position"],
        head_entries=units["head"],
        tail_entries=units["tail"],
        answer_documents=sum(entry.answer_documents for entry in cask.entries),
        answer_positions=sum(entry.answer_positions for entry in cask.entries),
        recorded_documents=sum(entry.recorded_documents for entry in cask.entries),
        context_documents=sum(entry.context_documents for entry in cask.entries),
        bytes=cask.num_bytes,
        hints=describe_hints(cask),
        bytes_per_token=cask.num_bytes / tokens,
        head_entries_per_position=units["head"] / positions,
        tail_draws_per_position=units["tail"] / positions,
        column_bytes_per_token={name: size / tokens for name, size in columns.items()},
    )


def describe_hints(cask: Cask) -> dict[str, Any] | None:
    """What a cask keeps beside its distributions, see `CaskStats.hints`; opens no file of them."""
    spec = cask.manifest.capture.hints
    if spec is None:
        return None
    described = [entry for entry in cask.entries if entry.hints is not None]
    size = sum(entry.hints.bytes for entry in described if entry.hints is not None)
    return {
        **spec.model_dump(mode="json"),
        "shards": len(described),
        "bytes": size,
        "bytes_per_token": size / max(sum(entry.tokens for entry in described), 1),
    }


def hints_text(hints: dict[str, Any]) -> str:
    """What `describe_hints` gives, in a line."""
    layers = ", ".join(map(str, hints["layers"]))
    rows = "each position" if hints["positions"] == "all" else "the last token of each document"
    size = f"{hints['bytes_per_token']:,.0f} bytes per token" if hints["shards"] else "dropped"
    return f"{hints['of']} of layers {layers} at {rows}, codec {hints['codec']}, {size}"
