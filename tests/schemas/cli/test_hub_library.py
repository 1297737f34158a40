"""`logitcask submit hf://...` with the library itself, which streams a folder of Parquet as it does a dataset."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest
import typer

from logitcask_services.cli.hub_corpus import HubCorpus

pytest.importorskip("datasets")
ROWS = [{"body": f"text {number} é", "label": number} for number in range(5)]


def test_the_library_itself_streams_a_folder(tmp_path, monkeypatch):
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "train-00000.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dataset = HubCorpus(name="owner/name", revision=None, config=None, split="train", text_column="body")
    file = io.BytesIO()
    dataset.write(file)
    assert [json.loads(line) for line in file.getvalue().splitlines()] == [{"text": row["body"]} for row in ROWS]
    with pytest.raises(typer.BadParameter, match="cannot be read"):
        HubCorpus(name="owner/name", revision=None, config=None, split="test", text_column="body").write(file)
