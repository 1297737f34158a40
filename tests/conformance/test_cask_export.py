"""Export and import: byte-exact round trips over every carrier, resumable, atomic, never of a damaged shard."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.transfer.export import ExportStep, export_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.cli.main import main
from logitcask_schemas.errors import CaskCorruptionError, CaskError, CaskNotFoundError, IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.schemas.cask_samples import (
    SPEC,
    VOCABS,
    assert_same,
    make_document,
    make_documents,
    make_teacher,
    specs,
    unlisted,
)

LENGTHS = ([2, 3, 40, 7, 500], [11, 2, 64], [9])


def make_cask(path: Path, carrier: str = "arrow", vocab_size: int = 49_152, spec: CaptureSpec = SPEC) -> Path:
    with CaskWriter.create(path, teacher=make_teacher(vocab_size), capture=spec, carrier=carrier) as writer:
        for seed, lengths in enumerate(LENGTHS):
            writer.publish(make_documents(lengths, seed, vocab_size=vocab_size, spec=spec))
    return path


def copy(source: Path, target: Path, carrier: str) -> list[ExportStep]:
    return list(export_cask(Cask.open(source), LocalTarget(target), carrier))


def files_of(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "cask.lock"
    }


def problems(path: Path) -> list[str]:
    return [problem for report in verify_shards(Cask.open(path)) for problem in report.problems]


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(CARRIERS, 2)))
def test_there_and_back_gives_the_very_same_files(tmp_path: Path, first: str, second: str) -> None:
    source = make_cask(tmp_path / "source", first)
    copy(source, tmp_path / "there", second)
    copy(tmp_path / "there", tmp_path / "back", first)
    assert files_of(tmp_path / "back") == files_of(source)
    there, cask = Cask.open(tmp_path / "there"), Cask.open(source)
    assert {entry.carrier for entry in there.entries} == {second}
    assert [entry.name for entry in there.entries] == [entry.name for entry in cask.entries]
    assert there.manifest == cask.manifest
    for number in range(len(cask)):
        assert_same(there.read(number), cask.read(number))
    assert not problems(tmp_path / "there")
    assert not unlisted(there)


@settings(max_examples=25, deadline=None)
@given(vocab_size=st.sampled_from(VOCABS), spec=specs(), seed=st.integers(0, 99))
def test_any_spec_survives_the_round_of_all_carriers(tmp_path_factory: Any, vocab_size: int, spec, seed: int) -> None:
    folder = tmp_path_factory.mktemp("round")
    with CaskWriter.create(folder / "arrow", teacher=make_teacher(vocab_size), capture=spec) as writer:
        writer.publish(make_documents([2, 30, 3], seed, vocab_size=vocab_size, spec=spec))
    copy(folder / "arrow", folder / "zarr", "zarr")
    copy(folder / "zarr", folder / "parquet", "parquet")
    copy(folder / "parquet", folder / "back", "arrow")
    assert files_of(folder / "back") == files_of(folder / "arrow")
    shutil.rmtree(folder)


def test_the_same_carrier_copies_bytes(tmp_path: Path) -> None:
    source = make_cask(tmp_path / "source")
    copy(source, tmp_path / "copy", "arrow")
    assert files_of(tmp_path / "copy") == files_of(source)


def test_a_second_run_skips_what_is_there_and_brings_what_is_new(tmp_path: Path) -> None:
    source, target = make_cask(tmp_path / "source"), tmp_path / "target"
    assert [step.skipped for step in copy(source, target, "zarr")] == [False] * 3
    before = {file: file.stat().st_mtime_ns for file in (target / "shards").iterdir()}
    assert [step.skipped for step in copy(source, target, "zarr")] == [True] * 3
    assert {file: file.stat().st_mtime_ns for file in (target / "shards").iterdir()} == before
    CaskWriter.create(source, teacher=make_teacher(), capture=SPEC).publish([make_document(5, 999)])
    assert sum(not step.skipped for step in copy(source, target, "zarr")) == 1
    assert len(Cask.open(target)) == len(Cask.open(source))


def test_an_export_that_was_stopped_goes_on(tmp_path: Path) -> None:
    source, target = make_cask(tmp_path / "source"), tmp_path / "target"
    running: Any = export_cask(Cask.open(source), LocalTarget(target), "zarr")
    next(running)
    running.close()
    with pytest.raises(CaskNotFoundError, match=r"an export into it has not finished \(run it again\)"):
        Cask.open(target)
    with pytest.raises(CaskError, match=r"holds shards, but no cask\.json: an export .* not finished \(run it again\)"):
        CaskWriter.create(target, teacher=make_teacher(), capture=SPEC)
    (target / "shards" / ".tmp-left-over").write_bytes(b"half a shard")
    assert [step.skipped for step in copy(source, target, "zarr")] == [True, False, False]
    assert not unlisted(Cask.open(target))
    copy(source, tmp_path / "at once", "zarr")
    assert files_of(target) == files_of(tmp_path / "at once")


def test_a_lost_or_short_file_is_made_again(tmp_path: Path) -> None:
    source, target = make_cask(tmp_path / "source"), tmp_path / "target"
    copy(source, target, "zarr")
    expected = files_of(target)
    lost, short, _ = sorted((target / "shards").glob("*.zarr.zip"))
    lost.unlink()
    content = short.read_bytes()
    short.unlink()
    short.write_bytes(content[:100])
    assert sum(not step.skipped for step in copy(source, target, "zarr")) == 2
    assert files_of(target) == expected


@pytest.mark.parametrize("carrier", CARRIERS)
def test_damage_does_not_travel(tmp_path: Path, carrier: str) -> None:
    source = make_cask(tmp_path / "source")
    shard = sorted((source / "shards").glob("*.arrow"))[1]
    sound = shard.read_bytes()
    content = bytearray(sound)
    content[len(content) // 2] ^= 4
    shard.unlink()
    shard.write_bytes(content)
    with pytest.raises(CaskCorruptionError, match=shard.stem):
        copy(source, tmp_path / "target", carrier)
    with pytest.raises(CaskNotFoundError, match="not a cask"):
        Cask.open(tmp_path / "target")
    assert len(list((tmp_path / "target" / "shards").glob("*.json"))) == 1
    shard.unlink()
    shard.write_bytes(sound)
    assert [step.skipped for step in copy(source, tmp_path / "target", carrier)] == [True, False, False]
    assert not problems(tmp_path / "target")


def test_an_unfinished_export_of_another_cask_is_left_alone(tmp_path: Path) -> None:
    """Its entries say whose it is, before there is a manifest."""
    source, target = make_cask(tmp_path / "source"), tmp_path / "target"
    other = make_cask(tmp_path / "other", spec=CaptureSpec(seed=5))
    running: Any = export_cask(Cask.open(other), LocalTarget(target), "zarr")
    next(running)
    running.close()
    before = files_of(target)
    with pytest.raises(CaskError, match=r"unfinished export of another cask\? Name an empty folder"):
        copy(source, target, "zarr")
    assert files_of(target) == before


def test_what_a_destination_must_not_be(tmp_path: Path) -> None:
    source, other = make_cask(tmp_path / "source"), tmp_path / "other"
    with pytest.raises(CaskError, match="same cask"):
        copy(source, tmp_path / "x" / ".." / "source", "zarr")
    CaskWriter.create(other, teacher=make_teacher(), capture=SPEC).publish([make_document(4, 77)])
    with pytest.raises(CaskError, match=r"holds 1 shards that .* does not"):
        copy(source, other, "arrow")
    CaskWriter.create(tmp_path / "spec", teacher=make_teacher(), capture=CaptureSpec(seed=5))
    with pytest.raises(IdentityMismatchError, match="seed: 5 here, 0 offered"):
        copy(source, tmp_path / "spec", "zarr")
    copy(source, tmp_path / "zarr", "zarr")
    with pytest.raises(CaskError, match="as zarr, asked for parquet"):
        copy(source, tmp_path / "zarr", "parquet")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear reader")
    with pytest.raises(CaskError, match=r"holds 'letter\.txt' and no cask\.json: not a cask"):
        copy(source, tmp_path / "full", "zarr")
    (tmp_path / "file").write_text("")
    with pytest.raises(CaskError, match="a file is in the way"):
        copy(source, tmp_path / "file", "zarr")
    with pytest.raises(CaskError, match="no carrier 'hdf5'"):
        copy(source, tmp_path / "new", "hdf5")
    assert not (tmp_path / "new").exists()


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code  # type: ignore[return-value]


@pytest.mark.usefixtures("_registered")
def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_cask(tmp_path / "source")
    assert run("cask", "export", source, tmp_path / "zarr", "--carrier", "zarr", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["shards"], figures["skipped"], figures["documents"]) == (3, 0, 9)
    assert figures["source_bytes"] == Cask.open(source).num_bytes
    assert figures["destination_bytes"] == Cask.open(tmp_path / "zarr").num_bytes
    assert run("cask", "import", tmp_path / "zarr", tmp_path / "back") == 0
    assert "9" in capsys.readouterr().out
    assert files_of(tmp_path / "back") == files_of(source)
    assert run("cask", "export", source, tmp_path / "zarr", "--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 3
    assert run("cask", "export", tmp_path / "absent", tmp_path / "y") == 1
    assert "not a cask" in capsys.readouterr().err
    assert run("cask", "export", source, tmp_path / "y", "--carrier", "hdf5") == 1
    assert "choose one of arrow, zarr, parquet" in capsys.readouterr().err


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cask commands, whether or not the package is installed."""
    import importlib.metadata

    point = importlib.metadata.EntryPoint("cask", "logitcask_schemas.cli.cask:app", "logitcask.commands")
    monkeypatch.setattr("logitcask_schemas.cli.main.importlib.metadata.entry_points", lambda **_: [point])
