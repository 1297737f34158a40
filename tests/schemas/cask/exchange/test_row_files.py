"""Files of rows: columns and their places, extents, resuming, refusals, and what `datasets` makes of them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.exchange import row_files
from logitcask_schemas.cask.exchange.row_files import RowOptions, export_rows, largest_width
from logitcask_schemas.cask.exchange.row_schema import NO_LABEL
from logitcask_schemas.cli.cask import app
from logitcask_schemas.errors import (
    CaskCorruptionError,
    CaskError,
    CaskLockedError,
    DocumentMismatchError,
    OptionError,
)
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.schemas.cask_samples import SPEC, make_documents, make_teacher

SHARDS = [make_documents([5, 30, 9, 2], 0, extents=True), make_documents([17, 3], 1, extents=True)]


def make_cask(path, shards=SHARDS, spec=SPEC, carrier="arrow"):
    with CaskWriter.create(path, teacher=make_teacher(), capture=spec, carrier=carrier, version=2) as writer:
        for documents in shards:
            writer.publish(documents)
    return Cask.open(path)


def read(folder):
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["document_id"]: row for row in rows}


def test_every_document_has_a_row_of_full_length(tmp_path):
    cask = make_cask(tmp_path / "cask")
    width = largest_width(cask)
    list(export_rows(cask, tmp_path / "rows", RowOptions(width=width)))
    rows = read(tmp_path / "rows")
    for document in [document for shard in SHARDS for document in shard]:
        row, length = rows[document.id.hex()], len(document.token_ids_L)
        assert row["input_ids"] == document.token_ids_L.tolist()
        weights = np.array(row["target_weights"])
        assert weights.shape == np.array(row["target_ids"]).shape == (length, width)
        recorded = np.zeros(length, dtype=bool)
        recorded[document.extent.positions(length)] = True
        np.testing.assert_allclose(weights.sum(1), recorded, atol=1e-5)
        answers = np.ones(length, dtype=bool)
        if document.answer_ranges_R2 is not None:
            answers[:] = False
            for start, stop in document.answer_ranges_R2.tolist():
                answers[start:stop] = True
        expected = np.where(answers[1:] & recorded[:-1], document.token_ids_L[1:].astype(int), NO_LABEL)
        assert row["labels"] == [NO_LABEL, *expected.tolist()]


def test_width_is_the_least_that_needs_no_draws(tmp_path):
    cask = make_cask(tmp_path / "cask")
    width = largest_width(cask)
    runs = {"exact": (width, 0), "other": (width, 7), "less": (width - 1, 0), "drawn": (width - 1, 7)}
    for name, (slots, seed) in runs.items():
        list(export_rows(cask, tmp_path / name, RowOptions(width=slots, seed=seed)))
    assert read(tmp_path / "exact") == read(tmp_path / "other")
    assert read(tmp_path / "less") != read(tmp_path / "drawn")


def test_blocks_and_carriers_do_not_change_rows(tmp_path, monkeypatch):
    cask = make_cask(tmp_path / "cask")
    list(export_rows(cask, tmp_path / "whole", RowOptions(width=4)))
    monkeypatch.setattr(row_files, "_BLOCK_SLOTS", 40)
    list(export_rows(make_cask(tmp_path / "zarr", carrier="zarr"), tmp_path / "cut", RowOptions(width=4)))
    assert read(tmp_path / "cut") == read(tmp_path / "whole")
    assert pq.read_metadata(next((tmp_path / "cut").glob("*.parquet"))).num_row_groups > 1


def test_answers_only(tmp_path):
    documents = [document for shard in SHARDS for document in shard if document.answer_ranges_R2 is not None]
    cask = make_cask(tmp_path / "cask", [documents])
    list(export_rows(cask, tmp_path / "rows", RowOptions(width=40, answers_only=True)))
    for row in read(tmp_path / "rows").values():
        weighed = np.array(row["target_weights"]).sum(1)[:-1] > 0
        assert weighed.tolist() == [label != NO_LABEL for label in row["labels"][1:]]
    with pytest.raises(DocumentMismatchError, match="does not say which of its tokens are answers"):
        list(export_rows(make_cask(tmp_path / "all"), tmp_path / "more", RowOptions(width=40, answers_only=True)))


def test_an_unfinished_run_goes_on_and_is_no_dataset(tmp_path):
    cask, folder = make_cask(tmp_path / "cask"), tmp_path / "rows"
    run = export_rows(cask, folder, RowOptions(width=4))
    assert not next(run).skipped
    with pytest.raises(CaskLockedError, match="process id"):
        next(export_rows(cask, folder, RowOptions(width=4)))
    run.close()
    assert not folder.exists()
    with pytest.raises(CaskError, match="an earlier run began other rows"):
        next(export_rows(cask, folder, RowOptions(width=5)))
    assert [step.skipped for step in export_rows(cask, folder, RowOptions(width=4))] == [True, False]
    list(export_rows(cask, tmp_path / "again", RowOptions(width=4)))
    assert read(folder) == read(tmp_path / "again")
    assert not (folder / "cask.lock").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "cask", "rows"]
    with pytest.raises(CaskError, match="is there already"):
        next(export_rows(cask, folder, RowOptions(width=4)))


def test_damage_ends_the_run_before_its_file_is_there(tmp_path):
    cask = make_cask(tmp_path / "cask")
    path = tmp_path / "cask" / "shards" / f"{cask.entries[0].name}.arrow"
    content = bytearray(path.read_bytes())
    needle = cask.read(0).records.head_logprobs_H.tobytes()
    content[content.index(needle)] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(CaskCorruptionError, match="stored checksum"):
        list(export_rows(Cask.open(tmp_path / "cask"), tmp_path / "rows", RowOptions(width=4)))
    assert not (tmp_path / "rows").exists()
    assert {path.name for path in (tmp_path / ".rows.unfinished").iterdir()} == {"rows.json", "cask.lock"}


def test_top_k_needs_consent(tmp_path):
    documents = make_documents([8, 9], 4, tails=False)
    cask = make_cask(tmp_path / "cask", [documents], CaptureSpec(mode="topk", k=8))
    with pytest.raises(CaskError, match="keeps no draws of the tail"):
        list(export_rows(cask, tmp_path / "rows", RowOptions(width=40)))
    assert len(list(export_rows(cask, tmp_path / "rows", RowOptions(width=40, renormalize=True)))) == 1


@pytest.mark.parametrize(
    ("options", "words"), [({"width": 0}, "1 to 65,536"), ({"width": 1, "form": "trl"}, "axolotl")]
)
def test_options_that_mean_nothing(options, words):
    with pytest.raises(OptionError, match=words):
        RowOptions(**options)


def test_command(tmp_path, capsys):
    make_cask(tmp_path / "cask")
    app(["rows", str(tmp_path / "cask"), str(tmp_path / "rows"), "--k", "6", "--json"], standalone_mode=False)
    figures = json.loads(capsys.readouterr().out)
    assert (figures["files"], figures["documents"], figures["k"], figures["skipped"]) == (2, 6, 6, 0)
    app(["rows", str(tmp_path / "cask"), str(tmp_path / "more")], standalone_mode=False)
    assert "documents" in capsys.readouterr().out
    with pytest.raises(OptionError, match="expected a folder of this machine, got s3://bucket/rows"):
        app(["rows", str(tmp_path / "cask"), "s3://bucket/rows"], standalone_mode=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["rows", "axolotl"])
def test_datasets_loads_them(tmp_path, form):
    datasets = pytest.importorskip("datasets")
    cask = make_cask(tmp_path / "cask")
    list(export_rows(cask, tmp_path / "rows", RowOptions(width=6, form=form)))
    expected = read(tmp_path / "rows")
    ids = "target_ids" if form == "rows" else "target_token_ids"
    files = str(tmp_path / "rows" / "*.parquet")
    loaded = [
        datasets.load_dataset("parquet", data_files={"train": files}, split="train", cache_dir=str(tmp_path / "a")),
        datasets.load_dataset(str(tmp_path / "rows"), split="train", cache_dir=str(tmp_path / "b")),
    ]
    for dataset in loaded:
        assert dataset.num_rows == len(expected)
        assert dataset.features[ids] == datasets.List(datasets.List(datasets.Value("int32"), length=6))
        assert {row["document_id"]: row for row in dataset} == expected
    assert loaded[0].with_format("numpy")[0][ids].shape == (len(loaded[0][0]["input_ids"]), 6)


@pytest.mark.filterwarnings("ignore")
def test_datasets_loads_the_parquet_carrier_too(tmp_path):
    """Whole where all shards have the same columns, else by naming columns."""
    datasets = pytest.importorskip("datasets")
    cask = make_cask(tmp_path / "cask", [make_documents([5, 30], 0), make_documents([9, 8], 1)], carrier="parquet")
    files = [str(path) for path in (tmp_path / "cask" / "shards").glob("*.parquet")]
    dataset = datasets.load_dataset(
        "parquet", data_files={"train": files}, split="train", cache_dir=str(tmp_path / "a")
    )
    assert sorted(map(len, dataset["token_ids"])) == sorted(cask.document_lengths().tolist())
    assert {row["document_id"] for row in dataset} == {cask.read(number).id for number in range(len(cask))}


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seed_is_checked_before_anything_is_drawn(seed):
    with pytest.raises(OptionError, match="seed of rows"):
        RowOptions(width=4, seed=seed)


def test_an_empty_cask_has_no_rows(tmp_path):
    with pytest.raises(CaskError, match="has no documents"):
        list(export_rows(make_cask(tmp_path / "cask", shards=[]), tmp_path / "rows", RowOptions(width=4)))
    assert [path.name for path in tmp_path.iterdir()] == ["cask"]


def test_a_dangling_link_is_no_new_folder(tmp_path):
    (tmp_path / "rows").symlink_to(tmp_path / "gone")
    with pytest.raises(CaskError, match="is there already"):
        list(export_rows(make_cask(tmp_path / "cask"), tmp_path / "rows", RowOptions(width=4)))


@pytest.mark.parametrize(
    ("model", "shown"),
    [("org/big", "org/big"), ("/home/me/models/big", "big"), ("big\n# <b>not</b> mine", "big # b not /b mine")],
)
def test_the_page_has_a_heading_of_one_line_without_places_of_a_machine(tmp_path, model, shown):
    with CaskWriter.create(tmp_path / "cask", teacher=make_teacher(model=model), capture=SPEC) as writer:
        writer.publish(make_documents([4], 1))
    list(export_rows(Cask.open(tmp_path / "cask"), tmp_path / "rows", RowOptions(width=4)))
    (heading,) = (line for line in (tmp_path / "rows" / "README.md").read_text().splitlines() if line[:2] == "# ")
    assert heading == f"# What {shown} said about 1 documents"
