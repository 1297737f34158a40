"""Near documents: by brute force over the decoded vectors, in blocks and over shards, and what cannot be asked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask import nearest as module
from logitcask_schemas.cask.dropping import drop_hints
from logitcask_schemas.cask.nearest import NearestError, as_stored, nearest, read_vector, vector_of
from logitcask_schemas.cli.main import main
from logitcask_schemas.errors import CaskCorruptionError, CaskError, HintsDroppedError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintPositions, HintSpec
from logitcask_schemas.record.hints import HintRows, projection_DN
from tests.support.schemas.cask_samples import make_documents, make_teacher
from tests.support.schemas.hint_samples import WIDTH, cask_with_hints

LENGTHS = np.random.default_rng(1).permutation(np.arange(2, 32)).reshape(3, 10).tolist()
"""Of three shards' documents; made-up vectors follow from a document's length."""


def last_hints_cask(path: Path, *, codec: str, positions: HintPositions = "last") -> Path:
    return cask_with_hints(path, HintSpec(layers=(2, 5), codec=codec, positions=positions), LENGTHS)


@pytest.fixture(params=["f16", "i8", "proj:12"])
def cask(request: pytest.FixtureRequest, tmp_path: Path) -> Cask:
    """Thirty documents in three shards, layers 2 and 5."""
    return Cask.open(last_hints_cask(tmp_path / "cask", codec=request.param), tokenizer_fingerprint=None)


def vectors(cask: Cask, column: int) -> np.ndarray:
    return np.stack([cask.hints(number).decode()[0, column] for number in range(len(cask))]).astype(np.float64)


def by_force(cask: Cask, asked: np.ndarray, column: int) -> list[int]:
    rows = vectors(cask, column)
    cosine = rows @ asked / np.linalg.norm(rows, axis=1) / np.linalg.norm(asked)
    return np.argsort(-cosine, kind="stable").tolist()


@pytest.mark.parametrize(("layer", "column"), [(None, 1), (5, 1), (2, 0)])
def test_near_documents_are_those_of_brute_force(
    cask: Cask, layer: int | None, column: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = by_force(cask, vectors(cask, column)[7], column)
    assert expected[0] == 7
    asked = vector_of(cask, 7, layer=layer)
    for block in (module.BLOCK_BYTES, 4 * 2 * WIDTH * 3):
        monkeypatch.setattr(module, "BLOCK_BYTES", block)
        found = nearest(cask, asked, count=6, layer=layer, leave_out=7)
        assert [neighbour.document for neighbour in found] == expected[1:7]
        assert [neighbour.id for neighbour in found] == [cask.read(n).id.hex() for n in expected[1:7]]
        everything = nearest(cask, asked, count=1000, layer=layer)
        assert [neighbour.document for neighbour in everything] == expected
        assert everything[0].cosine == pytest.approx(1.0, abs=1e-6)


def test_a_vector_of_the_teachers_width_is_stored_as_the_casks_are(cask: Cask) -> None:
    asked = np.random.default_rng(4).normal(size=WIDTH).astype(np.float32)
    spec = cask.manifest.capture.hints
    assert spec is not None
    matrix = np.eye(WIDTH) if spec.projected is None else projection_DN(spec.seed, WIDTH, spec.projected)
    expected = by_force(cask, asked @ matrix, 1)
    found = nearest(cask, as_stored(cask, asked), count=4)
    assert [neighbour.document for neighbour in found] == expected[:4]


def test_a_vector_of_nothing_is_near_to_nothing(cask: Cask) -> None:
    found = nearest(cask, as_stored(cask, np.zeros(WIDTH)), count=3)
    assert [(neighbour.document, neighbour.cosine) for neighbour in found] == [(0, 0.0), (1, 0.0), (2, 0.0)]


def test_vectors_that_do_not_fit_are_refused(cask: Cask) -> None:
    with pytest.raises(NearestError, match=f"the vector has 7 numbers; those of .* have {WIDTH} numbers"):
        as_stored(cask, np.zeros(7))
    with pytest.raises(NearestError, match="not finite"):
        as_stored(cask, np.full(WIDTH, np.nan))
    with pytest.raises(NearestError, match="no layer 3; it has 2, 5"):
        nearest(cask, np.zeros(WIDTH, dtype=np.float32), count=1, layer=3)


def test_casks_without_a_row_per_document_are_refused(tmp_path: Path) -> None:
    every = last_hints_cask(tmp_path / "all", codec="f16", positions="all")
    with pytest.raises(NearestError, match="has a row per position"):
        vector_of(Cask.open(every, tokenizer_fingerprint=None), 0)
    with CaskWriter.create(tmp_path / "none", teacher=make_teacher(), capture=CaptureSpec(tau=0.05)) as writer:
        writer.publish(make_documents([5, 6], 0))
    with pytest.raises(NearestError, match="has no hints"):
        vector_of(Cask.open(tmp_path / "none", tokenizer_fingerprint=None), 0)


def test_damaged_and_dropped_files_are_noticed(tmp_path: Path) -> None:
    place = last_hints_cask(tmp_path / "cask", codec="f16")
    asked = vector_of(Cask.open(place, tokenizer_fingerprint=None), 0)
    file = sorted((place / "shards").glob("*.hints.arrow"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    with pytest.raises(CaskCorruptionError):
        nearest(Cask.open(place, tokenizer_fingerprint=None), asked, count=2)
    drop_hints(place)
    with pytest.raises(HintsDroppedError):
        nearest(Cask.open(place, tokenizer_fingerprint=None), asked, count=2)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_cosines_do_not_hang_on_the_size_of_vectors(cask: Cask, size: float) -> None:
    """Squares of both sizes lie beyond float32."""
    asked = vector_of(cask, 3)
    expected = nearest(cask, asked, count=3)
    assert expected[0].document == 3
    actual = nearest(cask, asked * np.float32(size / np.abs(asked).max()), count=3)
    assert [own.document for own in actual] == [own.document for own in expected]
    assert [own.cosine for own in actual] == pytest.approx([own.cosine for own in expected], abs=1e-5)


def test_rows_of_any_size_are_near_to_what_points_where_they_do(tmp_path: Path) -> None:
    spec = HintSpec(layers=(2,), positions="last")
    rows = [np.full((1, 1, WIDTH), size, dtype=np.float32) for size in (1e30, 1e-30, -1e30)]
    with CaskWriter.create(
        tmp_path / "cask", teacher=make_teacher(), capture=CaptureSpec(tau=0.05, hints=spec), version=2
    ) as writer:
        documents = make_documents([5, 6, 7], 0)
        writer.publish(
            [replace(own, hints=HintRows.encode(row, spec)) for own, row in zip(documents, rows, strict=True)]
        )
    found = nearest(Cask.open(tmp_path / "cask"), np.ones(WIDTH, dtype=np.float32), count=3)
    assert [own.cosine for own in found] == pytest.approx([1, 1, -1], abs=1e-3)


DEEP, LONG = pytest.param("[" * 100_000, id="deep"), pytest.param(f"[{'9' * 400}]", id="long")


@pytest.mark.parametrize("text", ["", "{}", "[]", '["a"]', "[[1, 2], [3, 4]]", "[true]", "null", "3", DEEP, LONG])
def test_files_that_hold_no_vector_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "vector.json").write_text(text)
    with pytest.raises(CaskError, match="holds no vector"):
        read_vector(tmp_path / "vector.json")


def npy(header: str) -> bytes:
    """A file of numpy with a header of its own, and one number."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }\n"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999999,), }\n"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (), }\n"),
    ],
    ids=["empty", "more than memory", "more than an address", "a number alone"],
)
def test_damaged_files_of_numpy_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vector.npy").write_bytes(content)
    with pytest.raises(CaskError, match="holds no vector"):
        read_vector(tmp_path / "vector.npy")


def test_an_archive_of_arrays_is_no_vector(tmp_path: Path) -> None:
    with (tmp_path / "vector.npy").open("wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(CaskError, match=r"an archive \(.npz\)"):
        read_vector(tmp_path / "vector.npy")


def test_numbers_beyond_float32_are_no_vector(cask: Cask, tmp_path: Path) -> None:
    (tmp_path / "vector.json").write_text(json.dumps([1e300] * WIDTH))
    with pytest.raises(NearestError, match="not finite"):
        as_stored(cask, read_vector(tmp_path / "vector.json"))


def test_vectors_are_read_from_numpy_and_json(tmp_path: Path) -> None:
    np.save(tmp_path / "vector.npy", np.array([[1.5, -2.0]]))
    (tmp_path / "vector.json").write_bytes(b"\xef\xbb\xbf[1.5, -2]")  # with a mark, as some editors write it
    for name in ("vector.npy", "vector.json"):
        assert read_vector(tmp_path / name).tolist() == [1.5, -2.0]
    with pytest.raises(CaskError, match="holds no vector"):
        read_vector(tmp_path / "absent.npy")


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["cask", "nearest", *arguments])
    return int(stopped.value.code or 0)


def test_the_command_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = last_hints_cask(tmp_path / "cask", codec="i8")
    opened = Cask.open(place, tokenizer_fingerprint=None)
    expected = by_force(opened, vectors(opened, 1)[3], 1)
    assert command(str(place), "--to", opened.read(3).id.hex()[:10], "-k", "4", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [neighbour["document"] for neighbour in listed] == expected[1:5]
    assert listed[0]["cosine"] >= listed[1]["cosine"]
    np.save(tmp_path / "vector.npy", vectors(opened, 1)[3])
    assert command(str(place), "--vector", str(tmp_path / "vector.npy"), "-k", "1") == 0
    assert opened.read(3).id.hex()[:16] in capsys.readouterr().out
    for wrong in ((), ("--to", "0", "--vector", str(tmp_path / "vector.npy")), ("--to", "0", "-k", "0")):
        assert command(str(place), *wrong) == 2
