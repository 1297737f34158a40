"""Packed copies: rounded once and without bias, the same whichever way they are made, refused with a foreign table."""

import json
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import carrier_of
from logitcask_schemas.cask.format.manifest import CaskManifest, manifest_bytes
from logitcask_schemas.cask.format.packed.rank_table import RankTable
from logitcask_schemas.cask.integrity.verify import verify_shards
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.merge import merge_casks
from logitcask_schemas.cask.transfer.packing import export_packed
from logitcask_schemas.cask.transfer.split import SplitRule, split_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.cli.main import main
from logitcask_schemas.errors import CaskCorruptionError, CaskError, IdentityMismatchError, InvalidRecordError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.schemas.cask_samples import assert_same, make_documents, make_teacher

pytest.importorskip("numba", reason="packed shards need the extra `packed`")
SHARDS = ([2, 3, 40, 7, 300], [11, 2, 64], [9])
SPECS = [
    CaptureSpec(),
    CaptureSpec(logprob_codec="f32", tail_logprobs=True, temperatures=(2.0, 4.0)),
    CaptureSpec(logprob_codec="u8", tail_logprobs=True, seed=3),
    CaptureSpec(logprob_codec="u8all", seed=3),
]


def make_cask(path: Path, spec: CaptureSpec = SPECS[0], vocab_size: int = 300, seed: int = 0, **options) -> Path:
    with CaskWriter.create(path, teacher=make_teacher(vocab_size), capture=spec, version=2) as writer:
        for number, lengths in enumerate(SHARDS):
            writer.publish(make_documents(lengths, seed + number, vocab_size=vocab_size, spec=spec, **options))
    return path


def pack(source: Path, target: Path) -> Cask:
    list(export_packed(Cask.open(source), LocalTarget(target)))
    return Cask.open(target)


def flatten(source: Path, target: Path) -> Cask:
    list(export_cask(Cask.open(source), LocalTarget(target), "arrow"))
    return Cask.open(target)


def files_of(path: Path) -> dict[str, bytes]:
    files = {file for file in path.rglob("*") if file.is_file() and file.name != "cask.lock"}
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def problems(cask: Cask) -> list[str]:
    return [problem for report in verify_shards(cask) for problem in report.problems]


@pytest.mark.parametrize("vocab_size", [300, 70_000])
@pytest.mark.parametrize("spec", SPECS, ids=[spec.logprob_codec for spec in SPECS])
def test_ids_and_counts_stay_and_values_move_by_less_than_a_step(
    tmp_path: Path, spec: CaptureSpec, vocab_size: int
) -> None:
    source = Cask.open(make_cask(tmp_path / "source", spec, vocab_size, extents=True))
    packed = pack(tmp_path / "source", tmp_path / "packed")
    assert {entry.carrier for entry in packed.entries} == {"packed"}
    assert packed.manifest.capture.logprob_codec == "u8all"
    assert packed.manifest.version == 3
    assert not problems(packed)
    for number in range(len(source)):
        before = source.read(number)
        found = packed.find(before.id)
        assert found is not None
        after = packed.read(found)
        assert after.extent.is_whole == before.extent.is_whole
        np.testing.assert_array_equal(after.token_ids_L, before.token_ids_L)
        mine, theirs = after.records, before.records
        for name in ("head_counts_P", "head_ids_H", "tail_counts_P", "tail_ids_N"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)
        # Log-probabilities of the samples lie between 0 and -8, where steps are at most 1/8; entropies below 8.
        for name in ("head_logprobs_H", "tail_logprobs_N"):
            if (values := getattr(theirs, name)) is not None:
                assert np.abs(getattr(mine, name).astype(float) - values.clip(-23.5, 0)).max(initial=0) <= 0.5
        with np.errstate(invalid="ignore"):
            moved = np.abs(mine.log_tail_mass_P.astype(float) - theirs.log_tail_mass_P)
        assert np.nanmax(moved, initial=0) <= 1 / 8
        np.testing.assert_array_equal(np.isneginf(mine.log_tail_mass_P), np.isneginf(theirs.log_tail_mass_P))
        assert np.abs(mine.entropy_P.astype(float) - theirs.entropy_P).max() <= 1 / 16


@pytest.mark.parametrize("spec", SPECS, ids=[spec.logprob_codec for spec in SPECS])
def test_packed_flat_packed_is_byte_exact_and_so_is_packing_twice(tmp_path: Path, spec: CaptureSpec) -> None:
    source = make_cask(tmp_path / "source", spec)
    packed = pack(source, tmp_path / "packed")
    flat = flatten(tmp_path / "packed", tmp_path / "flat")
    again = pack(tmp_path / "flat", tmp_path / "again")
    pack(source, tmp_path / "twice")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "packed") == files_of(tmp_path / "twice")
    for number in range(len(packed)):
        assert_same(flat.read(number), packed.read(number))
    assert [entry.name for entry in again.entries] == [entry.name for entry in flat.entries]


def test_a_cask_of_codec_u8all_keeps_names_values_and_identity(tmp_path: Path) -> None:
    source = Cask.open(make_cask(tmp_path / "source", SPECS[3]))
    packed = pack(tmp_path / "source", tmp_path / "packed")
    assert [entry.name for entry in packed.entries] == [entry.name for entry in source.entries]
    assert packed.manifest.identity_digest() == source.manifest.identity_digest()
    for number in range(len(source)):
        assert_same(packed.read(number), source.read(number))


def test_a_copy_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    source = make_cask(tmp_path / "source")
    steps = export_packed(Cask.open(source), LocalTarget(tmp_path / "packed"))
    next(steps)
    assert isinstance(steps, Generator)
    steps.close()
    assert not (tmp_path / "packed" / "cask.json").exists()
    pack(source, tmp_path / "packed")
    pack(source, tmp_path / "at-once")
    assert files_of(tmp_path / "packed") == files_of(tmp_path / "at-once")


def test_it_is_not_copied_into_another_cask_or_itself(tmp_path: Path) -> None:
    source, other = make_cask(tmp_path / "source"), make_cask(tmp_path / "other", seed=50)
    with pytest.raises(CaskError, match="same cask"):
        pack(source, source)
    pack(other, tmp_path / "packed")
    with pytest.raises(IdentityMismatchError, match=r"rank_table: .* here, .* offered"):
        pack(source, tmp_path / "packed")


def with_table(path: Path, table: RankTable | None) -> None:
    """Give a cask another rank table, as a wrong copy of its manifest would."""
    stored = Cask.open(path).manifest
    fields = {name: getattr(stored, name) for name in ("teacher", "capture", "created_by", "created_at")}
    (path / "cask.json").write_bytes(manifest_bytes(CaskManifest(version=3, rank_table=table, **fields)))


@pytest.mark.parametrize("table", [None, RankTable.fitted(np.arange(300), "b" * 64)], ids=["none", "other"])
def test_another_rank_table_is_refused_by_name(tmp_path: Path, table: RankTable | None) -> None:
    make_cask(tmp_path / "source")
    pack(tmp_path / "source", tmp_path / "packed")
    with_table(tmp_path / "packed", table)
    cask = Cask.open(tmp_path / "packed")
    expected = "(none)" if table is None else table.digest
    with pytest.raises(CaskCorruptionError, match="packed with rank table") as refusal:
        cask.read(0)
    assert f"the cask's is {expected}" in str(refusal.value)


def test_a_rank_table_of_another_tokenizer_is_refused_when_the_cask_is_opened(tmp_path: Path) -> None:
    make_cask(tmp_path / "source")
    pack(tmp_path / "source", tmp_path / "packed")
    manifest = json.loads((tmp_path / "packed" / "cask.json").read_text())
    manifest.pop("checksum")
    manifest["rank_table"] = RankTable.fitted(np.arange(300), "c" * 64).model_dump()
    from logitcask_schemas.cask.format.sealed_json import seal

    (tmp_path / "packed" / "cask.json").write_bytes(seal(manifest))
    with pytest.raises(CaskCorruptionError, match=f"rank table is for tokenizer {'c' * 64}"):
        Cask.open(tmp_path / "packed")


def test_casks_of_other_tables_are_merged_and_split_by_packing_anew(tmp_path: Path) -> None:
    casks = [make_cask(tmp_path / f"source{seed}", seed=seed) for seed in (0, 50)]
    for number, cask in enumerate(casks):
        pack(cask, tmp_path / f"packed{number}")
    report = merge_casks(tmp_path / "merged", [tmp_path / "packed0", tmp_path / "packed1"])
    assert report.linked + report.copied == len(SHARDS)
    assert report.rewritten == len(SHARDS)
    merged = Cask.open(tmp_path / "merged")
    assert len(merged) == 2 * sum(map(len, SHARDS))
    assert not problems(merged)
    split_cask(tmp_path / "merged", (tmp_path / "a", tmp_path / "b"), SplitRule(fraction=0.5, seed=1))
    sides = [Cask.open(tmp_path / side) for side in ("a", "b")]
    assert sum(map(len, sides)) == len(merged)
    assert not [problem for side in sides for problem in problems(side)]


def run(*arguments: str) -> int | str | None:
    """Its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(["cask", "export", *arguments])
    return ended.value.code


def test_the_command_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cask(tmp_path / "source")
    arguments = (str(tmp_path / "source"), str(tmp_path / "packed"), "--record", "packed", "--json")
    assert run(*arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["codec"] == "u8all, rounded at random from f16"
    assert figures["destination_bytes_per_token"] > 0
    assert run(str(tmp_path / "packed"), str(tmp_path / "flat"), "--record", "flat") == 0
    assert {entry.carrier for entry in Cask.open(tmp_path / "flat").entries} == {"arrow"}
    assert run(*arguments, "--carrier", "zarr") == 2


def test_a_refused_copy_leaves_the_destination_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another source of the same teacher, spec and rank table: its records are the only difference."""
    table = RankTable.fitted(np.ones(300, dtype=np.int64), "b" * 64)
    monkeypatch.setattr("logitcask_schemas.cask.transfer.packing.RankTable.fitted", lambda *_: table)
    first, second = make_cask(tmp_path / "first"), make_cask(tmp_path / "second", seed=50)
    pack(first, tmp_path / "packed")
    before = files_of(tmp_path / "packed")
    with pytest.raises(CaskError, match=r"made from another cask. Name an empty folder"):
        pack(second, tmp_path / "packed")
    assert files_of(tmp_path / "packed") == before
    assert len(pack(first, tmp_path / "packed").entries) == len(SHARDS)


def test_imported_records_are_refused_in_words(tmp_path: Path) -> None:
    spec = CaptureSpec(mode="topk", k=4, imported=True)
    with CaskWriter.create(tmp_path / "cask", teacher=make_teacher(300), capture=spec) as writer:
        writer.publish(make_documents([5], 1, vocab_size=300, spec=spec))
    with pytest.raises(CaskError, match=r"another tool made cannot be packed.*--carrier zarr"):
        pack(tmp_path / "cask", tmp_path / "packed")
    assert not list(tmp_path.glob("packed/**/*.packed"))
    with pytest.raises(InvalidRecordError, match=r"another tool made cannot be packed"):
        list(export_cask(Cask.open(tmp_path / "cask"), LocalTarget(tmp_path / "other"), "packed"))


@pytest.mark.parametrize("form", ["packed", "arrow"])
@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_columns_are_no_shard(tmp_path: Path, form: str, compression: str) -> None:
    """A few bytes may unpack into any number of them."""
    source = make_cask(tmp_path / "cask")
    cask = pack(source, tmp_path / "packed") if form == "packed" else Cask.open(source)
    entry = cask.entries[0]
    path = cask.path / "shards" / f"{entry.name}{carrier_of(entry).suffix}"
    reader = pa.ipc.open_file(path.read_bytes())
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(path), reader.schema, options=options) as writer:
        writer.write_batch(reader.get_batch(0))
    with pytest.raises(CaskCorruptionError, match="its columns are compressed, which no writer does"):
        carrier_of(entry).open(path, cask.layout, cask.manifest.identity_digest())
