"""Damage of every kind is an error that names what is wrong and that `verify` finds; never wrong records."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.format.manifest import CaskManifest
from logitcask_schemas.cask.format.sealed_json import seal, unseal
from logitcask_schemas.cask.format.shard_entry import ShardEntry
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from tests.support.schemas.cask_samples import SPEC, assert_same, columns_of, make_documents, make_teacher, unlisted

DOCUMENTS = make_documents([2, 3, 40, 7], 1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "cask"
    with CaskWriter.create(path, teacher=make_teacher(), capture=SPEC) as writer:
        writer.publish(DOCUMENTS)
    return path


@pytest.fixture
def cask(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "cask"))


def shard_of(cask: Path) -> Path:
    return next((cask / "shards").glob("*.arrow"))


def problems(cask: Path) -> list[str]:
    return [problem for report in verify_shards(Cask.open(cask)) for problem in report.problems]


def overwrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def test_no_cask(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file" / "below"):
        with pytest.raises(CaskNotFoundError, match=r"cask\.json"):
            Cask.open(path)


def test_missing_shard(cask: Path) -> None:
    shard = shard_of(cask)
    size = shard.stat().st_size
    shard.unlink()
    with pytest.raises(CaskNotFoundError, match=rf"{shard.stem} of {size} bytes with 4 documents is missing.*Restore"):
        Cask.open(cask).read(0)
    assert len(problems(cask)) == 1
    with pytest.raises(CaskNotFoundError, match="missing"):
        CaskWriter.create(cask, teacher=make_teacher(), capture=SPEC)


def test_missing_folder_of_shards(cask: Path) -> None:
    shutil.rmtree(cask / "shards")
    with pytest.raises(CaskNotFoundError, match="shards: the folder of shards is missing"):
        Cask.open(cask)


def test_missing_entry_file_is_found_by_verify(cask: Path) -> None:
    shard_of(cask).with_suffix(".json").unlink()
    assert_same(Cask.open(cask).read(0), DOCUMENTS[0])  # the index still knows it
    assert "entry file is missing" in problems(cask)[0]


@pytest.mark.parametrize("keep", [0, 1, 8, 1000, -1])
def test_truncated_shard(cask: Path, keep: int) -> None:
    data = shard_of(cask).read_bytes()
    overwrite(shard_of(cask), data[:keep])
    with pytest.raises(CaskCorruptionError, match=rf"should have {len(data)} bytes, it has {len(data[:keep])}\. Rest"):
        Cask.open(cask).read(0)
    assert problems(cask)


def test_lengthened_shard(cask: Path) -> None:
    overwrite(shard_of(cask), shard_of(cask).read_bytes() + b"\0")
    with pytest.raises(CaskCorruptionError, match="should have"):
        Cask.open(cask).read(0)


def test_zeros_and_noise_instead_of_a_shard(cask: Path) -> None:
    size = shard_of(cask).stat().st_size
    for data in (b"\0" * size, b"ARROW1\0\0" + b"\xff" * (size - 14) + b"ARROW1"):
        overwrite(shard_of(cask), data)
        with pytest.raises(CaskCorruptionError, match="not a readable Arrow IPC file"):
            Cask.open(cask).read(0)


def read_or_error(cask: Cask, number: int) -> DocumentRecords | CaskCorruptionError:
    try:
        return cask.read(number)
    except CaskCorruptionError as error:
        return error


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_an_error_or_harmless(sound: Path, cask: Path, data: st.DataObject) -> None:
    """Reading raises, or gives exactly the right records (padding and redundant metadata); `verify` always finds it."""
    path = cask  # one copy for all examples: each replaces the shard by another damaged one
    content = bytearray(shard_of(sound).read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    overwrite(shard_of(path), bytes(content))
    opened = Cask.open(path)
    for number, document in enumerate(DOCUMENTS):
        outcome = read_or_error(opened, number)
        if isinstance(outcome, CaskCorruptionError):
            assert str(shard_of(path)) in str(outcome)
        else:
            assert_same(outcome, document)
    assert problems(path)


def test_every_bit_of_a_record_is_covered(cask: Path) -> None:
    """Exhaustive over one document's stored bytes: read() finds each flip and names the document."""
    shard = Cask.open(cask).shard(0)
    content = shard_of(cask).read_bytes()
    covered = 0
    for column in columns_of(Cask.open(cask).read(0)).values():
        start = content.find(column.tobytes()) if column.nbytes >= 4 else -1
        if start < 0:
            continue
        for bit in range(column.nbytes * 8):
            flipped = bytearray(content)
            flipped[start + bit // 8] ^= 1 << bit % 8
            overwrite(shard_of(cask), bytes(flipped))
            damaged = Cask.open(cask)
            with pytest.raises(CaskCorruptionError, match=shard.document_ids[0].tobytes().hex()[:16]):
                damaged.read(0)
            covered += 1
    assert covered > 100


def test_only_the_damaged_document_is_lost(cask: Path) -> None:
    content = bytearray(shard_of(cask).read_bytes())
    at = bytes(content).find(DOCUMENTS[2].records.head_ids_H.tobytes())
    content[at] ^= 1
    overwrite(shard_of(cask), bytes(content))
    opened = Cask.open(cask)
    for number in (0, 1, 3):
        assert_same(opened.read(number), DOCUMENTS[number])
    (report,) = verify_shards(opened)
    assert report.lost_documents == [DOCUMENTS[2].id.hex()]


def test_swapped_shards(cask_path: Path) -> None:
    one, other = sorted((cask_path / "shards").glob("*.arrow"))
    one.rename(cask_path / "x")
    other.rename(one)
    (cask_path / "x").rename(other)
    for number in range(2):
        with pytest.raises(CaskCorruptionError):
            Cask.open(cask_path).shard(number)


def test_foreign_shard_with_its_entry(cask: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    CaskWriter.create(foreign, teacher=make_teacher(), capture=CaptureSpec(tau=0.02)).publish(DOCUMENTS)
    for file in (foreign / "shards").iterdir():
        shutil.copy(file, cask / "shards")
    with pytest.raises(CaskCorruptionError, match=r"foreign shard.*Move"):
        Cask.open(cask)
    with pytest.raises(CaskCorruptionError, match="foreign shard"):
        CaskWriter.create(cask, teacher=make_teacher(), capture=SPEC)


def test_foreign_file_under_a_forged_entry(cask: Path, tmp_path: Path) -> None:
    """Entry and size fit, the identity inside the shard does not."""
    foreign = tmp_path / "foreign"
    entry = CaskWriter.create(foreign, teacher=make_teacher(engine_version="1"), capture=SPEC).publish(DOCUMENTS)
    assert entry is not None
    shutil.copy(foreign / "shards" / f"{entry.name}.arrow", cask / "shards")
    identity = Cask.open(cask).manifest.identity_digest()
    forged = entry.model_copy(update={"identity": identity}).model_dump(mode="json")
    (cask / "shards" / f"{entry.name}.json").write_bytes(seal(forged))
    opened = Cask.open(cask)
    number = next(i for i, known in enumerate(opened.entries) if known.name == entry.name)
    with pytest.raises(CaskCorruptionError, match="foreign shard"):
        opened.shard(number)


@pytest.mark.parametrize("name", ["cask.json", "index.json", "shards/{}.json"])
def test_every_bit_of_the_documents_is_covered(cask: Path, name: str) -> None:
    path = cask / name.format(shard_of(cask).stem)
    (cask / "index.json").unlink(missing_ok=name.startswith("shards"))
    content = path.read_bytes() if path.exists() else b""
    if name == "index.json":
        CaskWriter.create(cask, teacher=make_teacher(), capture=SPEC).close()
        content = path.read_bytes()
    for bit in range(0, len(content) * 8, 3):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        overwrite(path, bytes(flipped))
        with pytest.raises(CaskCorruptionError, match=path.name):
            Cask.open(cask)


def test_documents_from_the_future(cask: Path) -> None:
    path = cask / "cask.json"
    document = unseal(path.read_bytes(), where=path, advice="")
    overwrite(path, seal({**document, "version": 4, "novelty": 1}))
    with pytest.raises(CaskError, match=r"version 4; this program reads versions 1 to 3\. Upgrade"):
        Cask.open(cask)
    overwrite(path, seal({**document, "format": "zipfile"}))
    with pytest.raises(CaskError, match='format is "zipfile"'):
        Cask.open(cask)
    overwrite(path, seal({**document, "novelty": 1}))
    with pytest.raises(CaskCorruptionError, match="novelty"):
        Cask.open(cask)


def test_unknown_carrier(cask: Path) -> None:
    path = shard_of(cask).with_suffix(".json")
    (cask / "index.json").unlink()
    document = unseal(path.read_bytes(), where=path, advice="")
    overwrite(path, seal({**document, "carrier": "stone"}))
    with pytest.raises(CaskError, match=r"'stone'; this version reads .*Upgrade"):
        Cask.open(cask).shard(0)


def test_entry_that_disagrees_with_its_shard(cask: Path) -> None:
    path = shard_of(cask).with_suffix(".json")
    (cask / "index.json").unlink()
    document = unseal(path.read_bytes(), where=path, advice="")
    overwrite(path, seal({**document, "head_entries": document["head_entries"] + 1}))
    with pytest.raises(CaskCorruptionError, match="its entry says"):
        Cask.open(cask).shard(0)


def test_renamed_shard_and_entry(cask: Path) -> None:
    (cask / "index.json").unlink()
    shard = shard_of(cask)
    for file in (shard, shard.with_suffix(".json")):
        file.rename(file.with_stem("0" * 32))
    with pytest.raises(CaskCorruptionError, match="holds the entry of shard"):
        Cask.open(cask)


def test_unlisted_files_are_reported(cask: Path) -> None:
    (cask / "shards" / "notes.txt").write_text("")
    (cask / "shards" / ("1" * 32 + ".arrow")).write_text("")
    assert unlisted(Cask.open(cask)) == ["1" * 32 + ".arrow", "notes.txt"]


@pytest.mark.parametrize("name", ["../" + "a" * 29, "a" * 31, "A" * 32, "a" * 32 + "/x"])
def test_names_that_leave_the_folder_are_no_names(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        ShardEntry(
            name=name,
            bytes=1,
            sha256="a" * 64,
            identity="b" * 64,
            documents=1,
            tokens=2,
            positions=1,
            head_entries=1,
            tail_entries=0,
        )


@given(vocab=st.integers(-5, 0) | st.integers((1 << 24) + 1, 1 << 40))
def test_vocabularies_beyond_the_format_are_refused(vocab: int) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        CaskManifest(teacher=make_teacher(vocab), capture=SPEC, created_by="", created_at="")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    document=st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_sealed_nonsense_is_refused(tmp_path: Path, document) -> None:
    path = tmp_path
    (path / "shards").mkdir(exist_ok=True)
    content = document if isinstance(document, dict) else {"format": "logitcask", "version": 1, "teacher": document}
    content.pop("checksum", None)
    (path / "cask.json").write_bytes(seal(content))
    with pytest.raises(CaskError):
        Cask.open(path)
    assert json.dumps(content)
