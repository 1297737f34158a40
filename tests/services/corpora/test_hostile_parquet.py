"""Parquet files that want more memory than they have bytes, or hold what no line can: each is refused in a sentence."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from logitcask_services.corpora import parquet_lines
from logitcask_services.corpora.parquet_lines import ParquetError, lines_of_parquet
from tests.support.services.parquet_files import nested, parquet_file, wide


def written(tmp_path, columns, **options):
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table(columns), path, **options)
    return path


def refusal(path):
    with pytest.raises(ParquetError) as raised:
        list(lines_of_parquet(path))
    return str(raised.value)


def rows_of(path):
    return [json.loads(line) for block in lines_of_parquet(path) for line in block.splitlines()]


BOMB = {
    "compression": "zstd",
    "dictionary_pagesize_limit": 1 << 30,
    "write_statistics": False,
    "data_page_size": 1 << 20,
}


def test_a_long_value_of_many_rows_is_read_a_row_at_a_time(tmp_path, monkeypatch):
    """64 rows of it at once would be 64 times as large."""
    text = "x" * (20 << 20)
    path = written(tmp_path, {"text": pa.DictionaryArray.from_arrays(pa.array([0] * 300), pa.array([text]))}, **BOMB)
    assert path.stat().st_size < 1 << 20
    asked = []
    iter_batches = pq.ParquetFile.iter_batches

    def watched(self, batch_size, **options):
        asked.append(batch_size)
        return iter_batches(self, batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    first = next(lines_of_parquet(path))
    assert len(first) == len(text) + len('{"text":""}\n')
    assert asked == [256 // 20]


def test_a_dictionary_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_lines, "MAX_DICTIONARY_BYTES", 1 << 20)
    values = pa.array(["x" * (2 << 20)])
    path = written(tmp_path, {"text": pa.DictionaryArray.from_arrays(pa.array([0, 0]), values)}, **BOMB)
    assert "column text of the Parquet file has a dictionary of 2097156 bytes, more than 1048576" in refusal(path)
    dotted = written(tmp_path, {"a.text": pa.DictionaryArray.from_arrays(pa.array([0, 0]), values)}, **BOMB)
    assert "column a.text of the Parquet file has a dictionary of 2097156 bytes" in refusal(dotted)
    deep = pa.array([[{"role": "user", "content": "y" * (2 << 20)}] * 3])
    assert "column messages.list.element.content" in refusal(written(tmp_path, {"messages": deep}, **BOMB))
    delta = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "compression": "zstd"}
    path = written(tmp_path, {"text": ["z" * (2 << 20)] * 50}, **delta)
    assert "column text" in refusal(path)


def test_ordinary_dictionaries_change_nothing(tmp_path):
    texts = [f"text {number % 7}" for number in range(5000)]
    assert [row["text"] for row in rows_of(written(tmp_path, {"text": texts}))] == texts
    plain = written(tmp_path, {"text": texts}, use_dictionary=False, data_page_version="2.0", compression="none")
    assert [row["text"] for row in rows_of(plain)] == texts


def test_too_many_row_groups_are_refused_before_they_are_read(tmp_path):
    """A row group is some 100 bytes of a footer, and far more in memory."""
    path = tmp_path / "corpus.parquet"
    table = pa.table({"text": ["a"]})
    with pq.ParquetWriter(path, table.schema, compression="none", write_statistics=False) as writer:
        for _ in range(2000):
            writer.write_table(table)
    assert len(rows_of(path)) == 2000
    content = bytearray(path.read_bytes())
    per_group = int.from_bytes(content[-8:-4], "little") // 2000
    assert per_group * 1_000_000 > parquet_lines.MAX_FOOTER_BYTES, "a million of them is refused"
    content[-8:-4] = (per_group * 1_000_000).to_bytes(4, "little")
    path.write_bytes(content)
    assert "too many row groups or columns" in refusal(path)


def test_many_columns_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_lines, "MAX_FOOTER_BYTES", 50_000)
    assert "footer of" in refusal(written(tmp_path, {f"column{number}": ["a"] for number in range(1000)}))


def test_columns_in_each_other_have_an_end(tmp_path):
    kind: pa.DataType = pa.string()
    value: object = "x"
    for _ in range(parquet_lines.MAX_DEPTH + 1):
        kind, value = pa.list_(kind), [value]
    path = written(tmp_path, {"text": pa.array([value], type=kind)})
    assert "lists and records in each other" in refusal(path)


class TestSchemas:
    """Footers of a few bytes for each level or column."""

    def of(self, tmp_path, schema):
        path = tmp_path / "corpus.parquet"
        path.write_bytes(parquet_file(schema))
        return path

    @pytest.mark.parametrize(("schema", "columns"), [(wide(1), 1), (wide(1000), 1000), (nested(3), 1)])
    def test_what_is_written_here_is_a_file(self, tmp_path, schema, columns):
        """Else the tests below would show nothing."""
        path = self.of(tmp_path, schema)
        assert rows_of(path) == []
        assert pq.ParquetFile(path).metadata.num_columns == columns

    @pytest.mark.parametrize("levels", [20, 1000, 100_000])
    def test_depth_has_an_end(self, tmp_path, levels):
        """In a thread, as the service reads, whose stack is small; pyarrow before 26.0.1 ended the process."""
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(refusal, self.of(tmp_path, nested(levels))).result()
        assert ("lists and records in each other" if levels == 20 else "too deeply nested") in told

    @pytest.mark.parametrize("columns", [2001, 5000, 100_000])
    def test_width_has_an_end(self, tmp_path, columns):
        words = f"the Parquet file has {columns} columns, more than 2000; write those that are needed"
        assert refusal(self.of(tmp_path, wide(columns))) == words

    def test_more_columns_than_a_footer_may_list(self, tmp_path):
        """Before any object is made of them."""
        assert "size limit" in refusal(self.of(tmp_path, wide(1_000_000))).lower()

    def test_a_wide_file_with_rows_is_read_and_a_wider_one_is_not(self, tmp_path):
        names = [f"column{number}" for number in range(2000)]
        (row,) = rows_of(written(tmp_path, {name: ["a"] for name in names}))
        assert list(row) == names
        path = written(tmp_path, {f"column{number}": ["a"] for number in range(3000)})
        assert refusal(path).endswith("write those that are needed")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": [b"bytes"]}, "the columns text (binary); expected `text`"),
        ({"text": pa.array([1], pa.timestamp("ms"))}, "text (timestamp[ms])"),
        ({"text": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}, "text (map"),
        ({}, "the columns none"),
    ],
)
def test_types_that_no_line_has(tmp_path, columns, words):
    assert words in refusal(written(tmp_path, columns))


def test_encrypted_files_are_told(tmp_path):
    path = written(tmp_path, {"text": ["a"]})
    content = path.read_bytes()
    path.write_bytes(b"PARE" + content[4:-4] + b"PARE")
    assert refusal(path) == "the Parquet file is encrypted; write it without encryption"


@pytest.mark.parametrize("size", [0, 3, 8, 12])
def test_stumps(tmp_path, size):
    path = tmp_path / "corpus.parquet"
    path.write_bytes(b"PAR1\xff\xff\xff\xffPAR1"[:size])
    assert refusal(path)


def test_headers_that_are_none(tmp_path):
    """Bytes changed at random: lines, or a sentence; never anything else."""
    whole = written(tmp_path, {"text": [f"text {number % 5}" for number in range(200)]}).read_bytes()
    path = tmp_path / "changed.parquet"
    for at in range(4, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(ParquetError):
            b"".join(lines_of_parquet(path))
