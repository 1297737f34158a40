"""Datasets of the Hub as corpora: their rows as JSON lines, as the library streams them; what is wrong is told."""

import io
import json
import sys
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import typer

from logitcask_schemas.errors import MissingExtraError
from logitcask_services.cli.hub_corpus import HubCorpus, hub_corpus

ROWS = [{"body": f"text {number} é\u2028", "label": number, "text": "no"} for number in range(5)]


class DatasetsError(Exception):
    """As the library's."""


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A stand-in for `datasets` that streams the Parquet files below this test's folder."""
    folder = tmp_path / "hub" / "owner" / "name"
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "train.parquet")

    def load_dataset(name, config, *, split, revision, streaming):
        assert streaming
        assert (config, revision) == (None, None)
        path = tmp_path / "hub" / name / f"{split}.parquet"
        if not path.exists():
            raise ValueError(f'Unknown split "{split}"')
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(2):
            yield from batch.to_pylist()

    module = SimpleNamespace(load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=DatasetsError))
    monkeypatch.setitem(sys.modules, "datasets", module)


def dataset(**changes):
    fields = {"name": "owner/name", "revision": None, "config": None, "split": "train", "text_column": "body"}
    return HubCorpus(**{**fields, **changes})


def lines(corpus):
    file = io.BytesIO()
    corpus.write(file)
    return [json.loads(line) for line in file.getvalue().splitlines()]


def test_a_column_is_the_text(library):
    assert lines(dataset()) == [{"text": row["body"]} for row in ROWS]


def test_columns_named_as_fields_are_fields(library):
    assert lines(dataset(text_column=None)) == [{"text": "no"}] * 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_column": "content"}, "has no column 'content'; it has body, label, text"),
        ({"split": "test"}, 'cannot be read: Unknown split "test"'),
        ({"name": "owner/other"}, "hf://owner/other cannot be read"),
    ],
)
def test_what_is_not_there_is_told(library, changes, words):
    with pytest.raises(typer.BadParameter, match=words):
        lines(dataset(**changes))


def test_rows_without_a_known_column_ask_for_one(library, tmp_path):
    table = pyarrow.Table.from_pylist([{"content": "x", "custom_id": "a"}])
    pyarrow.parquet.write_table(table, tmp_path / "hub" / "owner" / "name" / "test.parquet")
    with pytest.raises(typer.BadParameter, match=r"it has content, custom_id\. Name the column"):
        lines(dataset(split="test", text_column=None))


def test_without_the_library_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[hub\]"'):
        lines(dataset())


def test_names():
    options = {"config": None, "split": "train", "text_column": None}
    for argument in ("hf://owner/name", "hf:/owner/name", "hf://datasets/owner/name"):
        assert hub_corpus(argument, **options).name == "owner/name"
    assert hub_corpus("hf://owner/name@refs/pr/1", **options).revision == "refs/pr/1"
    assert hub_corpus("corpus.jsonl", config=None, split=None, text_column=None) is None
    for argument in ("hf://name", "hf://", "hf://a/b/c", "hf://owner/na me"):
        with pytest.raises(typer.BadParameter, match="expected hf://owner/name"):
            hub_corpus(argument, **options)
    with pytest.raises(typer.BadParameter, match="missing; such as"):
        hub_corpus("hf://owner/name", config=None, split=None, text_column=None)
    for option in ("config", "split", "text_column"):
        with pytest.raises(typer.BadParameter, match="goes with hf"):
            hub_corpus("corpus.jsonl", **{**dict.fromkeys(options), option: "x"})


def test_it_is_submitted(serve, run, library):
    server = serve()
    command = ("submit", "hf://owner/name", "--split", "train", "--text-column", "body", "--cask", "mine", "--wait")
    code, out, err = run(server, *command, "--json")
    assert code == 0, err
    assert json.loads(out)["documents"]["captured"] == 5
    (corpus,) = server.client.get("/v1/corpora").json()["data"]
    assert corpus["name"] == "hf://owner/name"
    code, _, err = run(server, "submit", "hf://owner/name", "--cask", "mine")
    assert (code, "such as" in err) == (2, True)
