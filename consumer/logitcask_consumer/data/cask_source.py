"""Casks to train on, as they are written: PLACE, PLACE:WEIGHT or PLACE:WEIGHT:LOSS; and those that go together.

Casks of one teacher and capture spec, with one weight and one loss, are packed and trained as if they were one.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from logitcask_consumer.data.dataset import EmptyCaskError
from logitcask_consumer.data.sampled_dataset import SampledTexts
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.storage.object_store import is_url
from logitcask_schemas.errors import IdentityMismatchError, OptionError

_AFTER_PLACE: Final = re.compile(
    r"(?P<weight>\d*\.?\d+(?:[eE][+-]?\d+)?)(?::(?P<loss>(?!\d*\.?\d+(?:[eE][+-]?\d+)?(?::|$)).+))?", re.DOTALL
)
"""A loss is no number, and none with a colon behind it, which tells it from a part of a name such as `T10:00`."""
_UNUSABLE_LABELS: Final = frozenset({"", ".", "..", "report.md", "report.json", "report.html"})
"""Labels name folders of reports, and metrics."""


class CaskSourceError(OptionError, ValueError):
    """A cask to train on was written in a way that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaskSource:
    """A cask of a run, with what it counts."""

    place: Path | str
    """Folder, or URL of an object store."""
    weight: float | None = None
    """Of each of its positions, beside those of other casks; None where nobody said, which is 1."""
    loss: str | None = None
    """Of its positions; None for the run's."""

    def __post_init__(self) -> None:
        """Raise CaskSourceError unless the weight is above 0 and finite."""
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise CaskSourceError(
                f"cask {str(self.place)!r}: its weight must be above 0 and finite, got {self.weight}; leave out a cask "
                "of weight 0"
            )

    @classmethod
    def parse(cls, written: Path | str) -> Self:
        """Read PLACE, PLACE:WEIGHT or PLACE:WEIGHT:LOSS; a folder that has the whole text as its name goes first.

        Raises:
            CaskSourceError: it is none of these, or the weight is not above 0.
        """
        text = str(written)
        is_there = os.path.exists(text)  # noqa: PTH110 - of a text too long for a path, Path raises
        if not is_there and (divided := _divided(text)) is not None:
            place, weight, loss = divided
            return cls(place=place if is_url(place) else Path(place), weight=weight, loss=loss)
        if not is_there and ":" in text.rstrip("/").rpartition("/")[2]:
            raise CaskSourceError(
                f"cask {text!r}: expected a place, place:weight or place:weight:loss, such as casks/a:0.7 or "
                "casks/a:1:js"
            )
        return cls(place=text if is_url(text) else Path(text))

    def __str__(self) -> str:
        """As `parse` reads it."""
        if self.weight is None and self.loss is None:
            return str(self.place)
        weight = f"{self.place}:{1.0 if self.weight is None else self.weight!r}"
        return weight if self.loss is None else f"{weight}:{self.loss}"


def _divided(text: str) -> tuple[str, float, str | None] | None:
    """Place, weight and loss; of several ways to read them one whose place is there, else the first."""
    readings = []
    for colon in re.finditer(":", text):
        place, match = text[: colon.start()], _AFTER_PLACE.fullmatch(text, colon.end())
        if place and match is not None:
            readings.append((place, float(match["weight"]), match["loss"]))
    there = [reading for reading in readings if os.path.exists(reading[0])]  # noqa: PTH110 - as above
    return next(iter([*there, *readings]), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaskGroup:
    """Casks of one teacher and spec, with one weight and loss."""

    casks: tuple[Cask, ...]
    weight: float
    loss: str
    label: str
    """Name of the first cask, different from those of other groups."""
    samples: SampledTexts | None = None
    """Where the documents are texts that the student sampled, what is known of them."""


def open_groups(
    sources: Sequence[CaskSource],
    *,
    loss: str,
    cache: Path | None = None,
    cache_bytes: int | None = None,
) -> list[CaskGroup]:
    """Open the casks of a run, in the order in which they are written, and put together what goes together.

    Args:
        sources: at least one.
        loss: of those that name none.
        cache: for URLs: local folder for fetched shards.
        cache_bytes: for URLs: most bytes that each cask keeps there.

    Raises:
        EmptyCaskError: no cask was named.
        CaskSourceError: a cask is named twice.
        IdentityMismatchError: teachers or capture specs differ, and not every cask says what it counts.
        CaskNotFoundError, CaskCorruptionError: a cask cannot be opened.
    """
    if not sources:
        raise EmptyCaskError("no cask was named; give at least one")
    casks = [
        Cask.open(source.place, tokenizer_fingerprint=None, cache=cache, cache_bytes=cache_bytes) for source in sources
    ]
    places = [_place_of(cask) for cask in casks]
    if twice := [place for number, place in enumerate(places) if place in places[:number]]:
        raise CaskSourceError(f"cask {twice[0]} is named twice; its documents would count twice. Name it once")
    groups: list[list[int]] = []
    for number, source in enumerate(sources):
        alike = [group for group in groups if _counts(sources[group[0]], loss) == _counts(source, loss)]
        same = next((group for group in alike if _same_records(casks[group[0]], casks[number])), None)
        if same is None:
            groups.append([number])
        else:
            same.append(number)
    if any(source.weight is None for source in sources):
        _require_one_teacher(casks)
    labels = _labels([casks[group[0]] for group in groups])
    return [
        CaskGroup(
            casks=tuple(casks[number] for number in group),
            weight=_counts(sources[group[0]], loss)[0],
            loss=_counts(sources[group[0]], loss)[1],
            label=label,
        )
        for group, label in zip(groups, labels, strict=True)
    ]


def _place_of(cask: Cask) -> str:
    return cask.place if is_url(cask.place) else str(cask.path.resolve())


def _counts(source: CaskSource, loss: str) -> tuple[float, str]:
    """Weight and loss of a cask, where it says nothing those of the run."""
    return source.weight or 1.0, source.loss or loss


def _same_records(first: Cask, second: Cask) -> bool:
    try:
        first.manifest.require_same(second.manifest.teacher, second.manifest.capture, where=str(first.path))
    except IdentityMismatchError:
        return False
    return True


def _require_one_teacher(casks: Sequence[Cask]) -> None:
    """Raise IdentityMismatchError where casks differ in teacher or spec: perhaps one was named by mistake."""
    for cask in casks[1:]:
        try:
            casks[0].manifest.require_same(cask.manifest.teacher, cask.manifest.capture, where=str(casks[0].path))
        except IdentityMismatchError as error:
            raise IdentityMismatchError(
                f"{error} To train on records of both, say of every cask what its positions count: "
                f"{casks[0].path}:0.5 and {cask.path}:0.5"
            ) from error


def _labels(casks: Sequence[Cask]) -> list[str]:
    labels = list[str]()
    for cask in casks:
        name = _place_of(cask).rstrip("/").rpartition("/")[2]
        name = "cask" if name in _UNUSABLE_LABELS else name
        number, label = 1, name
        while label in labels:
            number += 1
            label = f"{name}-{number}"
        labels.append(label)
    return labels
