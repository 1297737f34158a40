"""Sealed documents: no single flipped bit, cut or insertion passes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcask_schemas.cask.format.sealed_json import seal, unseal
from logitcask_schemas.errors import CaskCorruptionError

WHERE = Path("cask.json")
DOCUMENT = {"format": "logitcask", "version": 1, "tau": 0.05, "name": "é", "list": [1, 2, {"a": None}]}


def test_round_trip_and_pinned_bytes() -> None:
    data = seal(DOCUMENT)
    assert unseal(data, where=WHERE, advice="") == DOCUMENT
    assert data == seal(DOCUMENT)
    assert data.startswith(b'{"checksum":"')


def test_every_single_bit_flip_is_found() -> None:
    data = seal(DOCUMENT)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CaskCorruptionError, match="advice here"):
            unseal(bytes(flipped), where=WHERE, advice="advice here")


@given(st.data())
def test_cuts_and_insertions_are_found(data: st.DataObject) -> None:
    sealed = seal(DOCUMENT)
    at = data.draw(st.integers(0, len(sealed) - 1))
    extra = data.draw(st.binary(max_size=4))
    changed = sealed[:at] + extra + sealed[at + data.draw(st.integers(0, 4)) :]
    if changed != sealed:
        with pytest.raises(CaskCorruptionError):
            unseal(changed, where=WHERE, advice="")


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CaskCorruptionError):
        unseal(data, where=WHERE, advice="")
