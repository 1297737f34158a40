"""The entry of a shard: what shards/<name>.json says of it, whose presence makes the shard part of the cask."""

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
MAX_VALUES: Final = 2**31 - 1
"""Of one column of a shard: Arrow's list offsets are int32."""
Count = Annotated[int, Field(ge=0, le=MAX_VALUES)]
ListCount = Annotated[int, Field(ge=0, le=MAX_VALUES, exclude_if=lambda count: count == 0)]
"""Not written where it is 0, so that entries of shards without lists keep their bytes."""
_LIST_MEMBERS: Final = (
    "answer_documents",
    "answer_ranges",
    "answer_positions",
    "recorded_documents",
    "recorded_ranges",
    "context_documents",
)


class HintsFile(BaseModel):
    """The file beside a shard that holds what is kept of a teacher besides its distributions; see `hints_name`.

    Whoever copies a shard without it leaves the member out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: Annotated[int, Field(ge=1, lt=2**63)]
    """Size of the file."""
    sha256: Sha256Hex
    """Over the file."""


class ShardEntry(BaseModel):
    """shards/<name>.json: one shard, as its writer published it. Its presence makes the shard part of the cask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Given by the first writer from the SHA-256 of the Arrow form; the file is shards/<name><carrier's suffix>."""
    carrier: Annotated[str, Field(pattern=r"^[a-z0-9]{1,16}$")] = "arrow"
    """File format of the shard."""
    bytes: Annotated[int, Field(ge=0, lt=2**63)]
    """Size of the shard's file."""
    sha256: Sha256Hex
    """Over the shard's file."""
    identity: Sha256Hex
    """`CaskManifest.identity_digest` of the cask it was written for."""
    documents: Annotated[int, Field(ge=1, le=MAX_VALUES)]
    tokens: Count
    """Sum of L over the documents."""
    positions: Count
    """Sum of L - 1."""
    head_entries: Count
    tail_entries: Count
    """Tail draws."""
    answer_documents: ListCount = 0
    """Documents that say which of their tokens are answers, or that none is."""
    answer_ranges: ListCount = 0
    """Ranges of such tokens, with an empty one for each document that has no answer."""
    answer_positions: ListCount = 0
    """Positions that predict a token of an answer."""
    recorded_documents: ListCount = 0
    """Documents with records of some of their positions only."""
    recorded_ranges: ListCount = 0
    """Ranges of such positions."""
    context_documents: ListCount = 0
    """Documents that the teacher read under a context."""
    hints: Annotated[HintsFile | None, Field(exclude_if=lambda hints: hints is None)] = None

    @property
    def hints_name(self) -> str:
        """Of the file that `hints` describes, among the shards."""
        return f"{self.name}.hints.arrow"

    @property
    def list_counts(self) -> dict[str, int]:
        """What it says of the shard's lists, by member; see `format.lists`."""
        return {name: getattr(self, name) for name in _LIST_MEMBERS}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        whole = self.tokens - self.documents
        if self.positions == whole and not any(getattr(self, name) for name in _LIST_MEMBERS):
            return self  # nearly all are such, and an index may have 100,000 of them
        if self.recorded_documents:
            # Each leaves a position out, and each range has one.
            plausible = self.recorded_ranges <= self.positions <= whole - self.recorded_documents
        else:
            plausible = self.positions == whole
        if not plausible or not _has_ranges(self.documents, self.recorded_documents, self.recorded_ranges):
            raise ValueError(
                f"{self.documents} documents of {self.tokens} tokens have {whole} positions, the entry says "
                f"{self.positions}, with {self.recorded_ranges} ranges of {self.recorded_documents} documents"
            )
        if not _has_ranges(self.documents, self.answer_documents, self.answer_ranges) or self.answer_positions > whole:
            raise ValueError(
                f"{self.answer_documents} of {self.documents} documents cannot have {self.answer_ranges} ranges of "
                f"answers with {self.answer_positions} of {whole} positions"
            )
        if self.context_documents > self.documents:
            raise ValueError(f"{self.context_documents} of {self.documents} documents cannot have a context")
        return self


def _has_ranges(documents: int, with_ranges: int, ranges: int) -> bool:
    """Whether so many of the documents can have so many ranges, each at least one."""
    return with_ranges <= min(documents, ranges) and bool(ranges) == bool(with_ranges)
