"""Fingerprint of a tokenizer: two tokenizers with the same one give every token the same id."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Protocol


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
