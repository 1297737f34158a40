"""Who the teacher was: everything that must agree before records may be mixed or trained on."""

from typing import Self

from pydantic import BaseModel, ConfigDict

from logitcask_schemas.errors import IdentityMismatchError


class TeacherIdentity(BaseModel):
    """The teacher behind a record. Two records with equal identity and capture spec are interchangeable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Name for people: the folder's or repository's name, never a path of the machine."""
    weights_digest: str
    """SHA-256 (hex) over names and bytes of the weight files."""
    revision: str | None = None
    """Repository revision, where there is one."""
    dtype: str
    """Compute dtype, such as float32 or bfloat16."""
    quantization: str | None = None
    """Quantisation method, or None."""
    vocab_size: int
    """Width of the logits, which may exceed the tokenizer's vocabulary."""
    tokenizer_fingerprint: str
    """See `logitcask_schemas.tokenizer_fingerprint`."""
    template_hash: str | None = None
    """SHA-256 (hex) of the chat template that rendered `messages`, or None where the tokenizer has none."""
    engine: str
    """vllm or transformers."""
    engine_version: str

    def differences(self, other: Self) -> dict[str, tuple[object, object]]:
        """Fields that differ, each with (mine, theirs)."""
        return {
            name: (getattr(self, name), getattr(other, name))
            for name in type(self).model_fields
            if getattr(self, name) != getattr(other, name)
        }

    def require_same(self, other: Self, *, where: str) -> None:
        """Raise IdentityMismatchError naming every differing field with both values."""
        if found := self.differences(other):
            listing = "; ".join(f"{name}: {mine!r} here, {theirs!r} offered" for name, (mine, theirs) in found.items())
            raise IdentityMismatchError(
                f"{where} holds records of another teacher ({listing}). Use another cask for this teacher."
            )
