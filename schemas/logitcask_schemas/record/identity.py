"""Who the teacher was: everything that must agree before records may be mixed or trained on.

Members fall into four groups. Some are for people and never compared. Some say which ids the tokens are, some which
numbers the teacher gives. And some are recorded only since they exist: where one of two identities lacks such a member,
what it would have said is unknown, and unknown is not equal.
"""

import hashlib
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field

from logitcask_schemas.errors import IdentityMismatchError


class VocabularySource(Protocol):
    """The part of a transformers tokenizer that the fingerprint reads."""

    @property
    def all_special_ids(self) -> Sequence[int]:
        """Ids of begin, end, padding and the like, in any order."""
        ...

    def get_vocab(self) -> Mapping[str, int]:
        """The whole vocabulary, added tokens included, as token -> id."""
        ...


def tokenizer_fingerprint(tokenizer: VocabularySource) -> str:
    """SHA-256 (hex) over every (id, token) pair in order of id, then the special ids in ascending order.

    Each pair enters as u32 id, u32 length and the token's UTF-8 bytes, so no two vocabularies share an encoding.
    Names, file layout, versions and merge tables stay out: a record speaks of ids, and ids are what must agree.
    """
    digest = hashlib.sha256(b"logitcask-tokenizer-1\0")
    for token, token_id in sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0])):
        # Byte-level vocabularies may hold lone surrogates, which strict UTF-8 refuses.
        encoded = token.encode("utf-8", "surrogatepass")
        digest.update(struct.pack("<II", token_id, len(encoded)))
        digest.update(encoded)
    special = sorted(set(tokenizer.all_special_ids))
    digest.update(struct.pack(f"<I{len(special)}I", len(special), *special))
    return digest.hexdigest()


Accept = Literal["engine_version", "unrecorded"]
"""What a caller may accept knowingly: another version of the same engine, or what an older identity does not record."""
Differences = dict[str, tuple[object, object]]
"""Name of a member, or of a field inside one, with (mine, theirs)."""

_OF_TOKENS: Final = ("tokenizer_fingerprint", "template_hash")
_OF_NUMBERS: Final = ("dtype", "quantization", "vocab_size", "engine", "engine_version")
_ABSENT: Final = "default"
"""How a field that one side leaves at its default is shown."""


def _unset(value: object) -> bool:
    return value is None


class TeacherIdentity(BaseModel):
    """The teacher behind a record. Records whose identities do not differ, nor their capture specs, may be mixed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Name for people: the folder's or repository's name, never a path of the machine. Not compared."""
    weights_digest: str
    """SHA-256 (hex) over names and bytes of the weight files. Compared where one side has no `tensors_digest`."""
    tensors_digest: Annotated[str | None, Field(exclude_if=_unset)] = None
    """SHA-256 (hex) over name, dtype, shape and bytes of every tensor, whatever files they lie in. Absent from casks
    made before it existed."""
    config: Annotated[dict[str, Any] | None, Field(exclude_if=_unset)] = None
    """Fields of the model's configuration that can change its numbers and are not at the default of its class, as
    dotted path -> JSON value. Absent from casks made before it existed."""
    engine_options: Annotated[dict[str, Any] | None, Field(exclude_if=_unset)] = None
    """Options of the engine that can change its numbers, as dotted path -> JSON value; absent where there are none."""
    revision: str | None = None
    """Repository revision, where there is one. Not compared: the weights are."""
    dtype: str
    """Compute dtype, such as float32 or bfloat16."""
    quantization: str | None = None
    """Quantisation method, or None."""
    vocab_size: int
    """Width of the logits, which may exceed the tokenizer's vocabulary."""
    tokenizer_size: Annotated[int | None, Field(exclude_if=_unset)] = None
    """One more than the tokenizer's largest id: logits from there on are padding. Not compared: the fingerprint is."""
    tokenizer_fingerprint: str
    """By `tokenizer_fingerprint`: SHA-256 (hex) of the vocabulary."""
    template_hash: str | None = None
    """SHA-256 (hex) of the chat template that rendered `messages`, or None where the tokenizer has none."""
    engine: str
    """vllm or transformers."""
    engine_version: str

    def differences(self, other: Self) -> Differences:
        """Every difference that matters, tokens first, each with (mine, theirs). What only one records is no part."""
        return self.tokens_differ(other) | self.numbers_differ(other)

    def tokens_differ(self, other: Self) -> Differences:
        """Differences that make token ids prepared for one teacher wrong for the other."""
        return self._members(other, _OF_TOKENS)

    def numbers_differ(self, other: Self) -> Differences:
        """Differences that can change the distributions. Fields of `config` are named `config.<path>`."""
        both_tensors = self.tensors_digest is not None and other.tensors_digest is not None
        differences = self._members(other, ("tensors_digest" if both_tensors else "weights_digest",))
        if self.config is not None and other.config is not None:
            differences |= _fields_differ("config", self.config, other.config)
        # Older identities record no options, but then the engine was never given any that matter.
        differences |= _fields_differ("engine_options", self.engine_options or {}, other.engine_options or {})
        return differences | self._members(other, _OF_NUMBERS)

    def unrecorded(self, other: Self) -> list[str]:
        """Members that only one of the two records, so that nothing can be said about them."""
        # Where one lacks `tensors_digest` the weight files are compared instead, which is no less strict.
        return ["config"] if (self.config is None) != (other.config is None) else []

    def explain(self, other: Self) -> str:
        """The differences as text, `name: mine here, theirs offered; ...`; empty where there are none."""
        return "; ".join(
            f"{name}: {mine!r} here, {theirs!r} offered" for name, (mine, theirs) in self.differences(other).items()
        )

    def require_same(self, other: Self, *, where: str, accept: Collection[Accept] = ()) -> None:
        """Raise IdentityMismatchError naming every differing field with both values, and everything unknown.

        Args:
            other: the identity offered.
            where: what holds records of this one, for the message.
            accept: what may differ all the same, because a person said so.
        """
        differences = self.differences(other)
        if "engine_version" in accept:
            differences.pop("engine_version", None)
        unknown = [] if "unrecorded" in accept else self.unrecorded(other)
        if not differences and not unknown:
            return
        if set(differences) == {"engine_version"} and not unknown:
            mine, theirs = differences["engine_version"]
            raise IdentityMismatchError(
                f"{where} holds records of this teacher by {self.engine} {mine}, this is {self.engine} {theirs} "
                f"(engine_version: {mine!r} here, {theirs!r} offered); versions may differ in the last digits or in "
                "more. Use another cask, or go on with this one knowingly: serve --accept-teacher engine_version."
            )
        listing = [f"{name}: {mine!r} here, {theirs!r} offered" for name, (mine, theirs) in differences.items()]
        listing += [f"{name}: recorded by {_who(self, name)} only" for name in unknown]
        if differences:
            raise IdentityMismatchError(
                f"{where} holds records of another teacher ({'; '.join(listing)}). Use another cask for this teacher."
            )
        raise IdentityMismatchError(
            f"{where} may hold records of another teacher ({'; '.join(listing)}): it is unknown whether rope scaling, "
            "norms, activation and the like were the same; all that both record agrees. Use another cask, or, if the "
            "teacher's config.json has not changed since, go on knowingly: serve --accept-teacher unrecorded."
        )

    def _members(self, other: Self, names: Collection[str]) -> Differences:
        return {
            name: (getattr(self, name), getattr(other, name))
            for name in names
            if getattr(self, name) != getattr(other, name)
        }


def _fields_differ(member: str, mine: dict[str, Any], theirs: dict[str, Any]) -> Differences:
    return {
        f"{member}.{name}": (mine.get(name, _ABSENT), theirs.get(name, _ABSENT))
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name, _ABSENT) != theirs.get(name, _ABSENT)
    }


def _who(mine: TeacherIdentity, name: str) -> str:
    return "the one offered" if getattr(mine, name) is None else "the one here"
