"""Ids by frequency: the rank table of a cask, with which packed shards write frequent ids in few bits.

Stored is one class per id, 2 log2(1 + count) rounded down: all that a code by octaves can use of a count. Ids are
ranked by class, the largest first, and by id within a class; tokenizers give frequent tokens low ids.

Shape legend: V ids of the vocabulary.
"""

import base64
import hashlib
import zlib
from functools import cached_property
from typing import Annotated, Final, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

_MAX_IDS: Final = 1 << 24
_HALVES: Final = 2
"""Classes per doubling of a count."""
_LEVEL: Final = 9

Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RankTable(BaseModel):
    """`rank_table` of cask.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    tokenizer_fingerprint: Sha256Hex
    """Whose ids are ranked."""
    digest: Sha256Hex
    """Over fingerprint and classes; packed shards name the table that they need by it."""
    classes: str
    """One byte per id, compressed by zlib, as base64."""

    @classmethod
    def fitted(cls, counts_V: NDArray[np.integer], tokenizer_fingerprint: str) -> Self:
        """The table of ids that occurred so often.

        Args:
            counts_V: how often each id of the vocabulary occurred, [V].
            tokenizer_fingerprint: of the tokenizer that they are ids of.
        """
        classes_V = np.floor(_HALVES * np.log2(1.0 + counts_V)).astype(np.uint8)
        return cls(
            tokenizer_fingerprint=tokenizer_fingerprint,
            digest=_digest(tokenizer_fingerprint, classes_V.tobytes()),
            classes=base64.b64encode(zlib.compress(classes_V.tobytes(), _LEVEL)).decode("ascii"),
        )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        try:
            compressed = base64.b64decode(self.classes, validate=True)
            decompress = zlib.decompressobj()
            classes = decompress.decompress(compressed, _MAX_IDS + 1)
        except (ValueError, zlib.error) as error:
            raise ValueError(f"classes of ids cannot be decoded ({error})") from error
        if not decompress.eof or decompress.unused_data or not 0 < len(classes) <= _MAX_IDS:
            raise ValueError(f"classes of 1 to {_MAX_IDS} ids were expected, got {len(classes)} bytes of them or more")
        if (computed := _digest(self.tokenizer_fingerprint, classes)) != self.digest:
            raise ValueError(f"the rank table's digest is {self.digest}, fingerprint and classes give {computed}")
        return self

    @cached_property
    def classes_V(self) -> NDArray[np.uint8]:
        """Of each id, [V]."""
        return np.frombuffer(zlib.decompress(base64.b64decode(self.classes)), dtype=np.uint8)

    @cached_property
    def id_of_rank_V(self) -> NDArray[np.uint32]:
        """The id of each rank, [V]."""
        # Stable, so that ids of one class keep their order; of 255 less the class, so that the largest comes first.
        return np.argsort(255 - self.classes_V, kind="stable").astype(np.uint32)

    @cached_property
    def rank_of_id_V(self) -> NDArray[np.uint32]:
        """The rank of each id, [V]."""
        ranks = np.empty(len(self.id_of_rank_V), dtype=np.uint32)
        ranks[self.id_of_rank_V] = np.arange(len(ranks), dtype=np.uint32)
        return ranks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RankTable) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _digest(tokenizer_fingerprint: str, classes: bytes) -> str:
    return hashlib.sha256(tokenizer_fingerprint.encode("ascii") + classes).hexdigest()
