"""DistillKit's rows: packing, padding, and what is refused with row and position."""

import numpy as np
import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.exchange.distillkit import DistillKitSource
from logitcask_schemas.errors import CaskError, InvalidRecordError
from tests.support.schemas.other_caches import (
    EXACT,
    DenseDocument,
    assert_is_dense,
    dense_documents,
    distillkit_row,
    into_cask,
    write_distillkit,
)


def test_packed_rows_are_cut_at_their_documents(tmp_path):
    """Runs of the mask are documents, whose last row predicts a token that was cut off; zeros are padding."""
    first, second = dense_documents([20, 31])
    rows = [distillkit_row(document, EXACT) for document in (first, second)]
    # A packed row has a row of log-probabilities for each token: here any, for the token that was cut off.
    packed = {
        name: [*rows[0][name], *(rows[0][name][:1] * extra), *rows[1][name], *(rows[1][name][:1] * (extra + 2 * pad))]
        for name, extra, pad in (("input_ids", 0, 1), ("compressed_logprobs", 1, 1), ("bytepacked_indices", 1, 1))
    }
    packed["attention_mask"] = [1] * 20 + [2] * 31 + [0] * 2
    write_distillkit(tmp_path / "src", [packed], EXACT)
    into_cask(DistillKitSource(tmp_path / "src"), tmp_path / "cask")
    cask = Cask.open(tmp_path / "cask")
    assert_is_dense(cask, [first, second], 12, atol=3e-5)


def test_the_pad_token_that_the_capture_adds_is_left_out(tmp_path):
    (document,) = dense_documents([30])
    padded = DenseDocument(np.append(document.tokens_L, 0), np.vstack([document.logprobs_PV, document.logprobs_PV[:1]]))
    write_distillkit(tmp_path / "src", [distillkit_row(padded, EXACT)], EXACT)
    report = into_cask(DistillKitSource(tmp_path / "src", pad_id=0), tmp_path / "cask")
    assert report.skipped["added_pad_tokens"] == 1
    cask = Cask.open(tmp_path / "cask")
    assert_is_dense(cask, [document], 12, atol=3e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"input_ids": row["input_ids"][:-3]}, r"row 1: 27 tokens have 26 positions .* got 29"),
        (lambda row: row | {"input_ids": [*row["input_ids"][:-1], 500]}, r"row 1: token id 500 is outside .* 97"),
        (lambda row: row | {"input_ids": None}, "row 1 has no input_ids"),
        (
            lambda row: (
                row
                | {"compressed_logprobs": [*row["compressed_logprobs"][:4], [1, 2], *row["compressed_logprobs"][5:]]}
            ),
            "row 1: position 4 has 2 bytes in compressed_logprobs, the compression config says 48",
        ),
        (
            lambda row: row | {"bytepacked_indices": row["bytepacked_indices"][:-1]},
            "29 positions in compressed_logprobs, 28 in bytepacked_indices",
        ),
        (
            lambda row: row | {"bytepacked_indices": [[255] * 11, *row["bytepacked_indices"][1:]]},
            "position 0 holds id 127, outside the vocabulary of 97",
        ),
        (
            lambda row: row | {"bytepacked_indices": [[0] * 11, *row["bytepacked_indices"][1:]]},
            "position 0 holds id 0 twice",
        ),
        (
            lambda row: row | {"compressed_logprobs": [[0] * 48, *row["compressed_logprobs"][1:]]},
            "probabilities of position 0 add up to 12.0000",
        ),
        (
            lambda row: row | {"compressed_logprobs": [[0, 0, 128, 63] * 12, *row["compressed_logprobs"][1:]]},
            "position 0 has a log-probability of 12",
        ),
        (
            lambda row: row | {"compressed_logprobs": [[0, 0, 192, 127] * 12, *row["compressed_logprobs"][1:]]},
            "position 0 holds NaN",
        ),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_both_values(tmp_path, change, message):
    rows = [distillkit_row(document, EXACT) for document in dense_documents([30, 30])]
    write_distillkit(tmp_path / "src", [rows[0], change(rows[1])], EXACT)
    with pytest.raises(InvalidRecordError, match=message) as error:
        into_cask(DistillKitSource(tmp_path / "src"), tmp_path / "cask")
    assert "data_0.parquet: row 1" in str(error.value)
    assert not (tmp_path / "cask").exists()


def test_files_that_are_no_cache_of_distillkit_are_told_apart(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [distillkit_row(document, EXACT) for document in dense_documents([30, 30])]
    folder = write_distillkit(tmp_path / "src", rows, EXACT)
    path = folder / "data_0.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CaskError, match=r"data_0.parquet: row 0 or later cannot be read.*without its end"):
        into_cask(DistillKitSource(folder), tmp_path / "cask")
    pq.write_table(pa.table({"input_ids": [[1, 2]], "packed_indices": [[[1]]]}), path)
    with pytest.raises(CaskError, match="lacks the columns compressed_logprobs"):
        into_cask(DistillKitSource(folder), tmp_path / "cask")
    with pytest.raises(CaskError, match="holds no"):
        DistillKitSource(tmp_path)


# What a column holds


def rows_of(*lengths):
    return [distillkit_row(document, EXACT) for document in dense_documents(lengths)]


def write_typed(folder, rows, **types):
    """A cache whose columns have these types; its second row is in the second row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (plain,) = rows_of(30)
    write_distillkit(folder, [plain | {"attention_mask": [1] * 30}], EXACT)
    schema = pq.read_schema(folder / "data_0.parquet")
    schema = pa.schema([(name, types.get(name, schema.field(name).type)) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "data_0.parquet", row_group_size=1)
    return DistillKitSource(folder)


def first_byte(row, name, value):
    return row | {name: [row[name][0], [*row[name][1][:3], value, *row[name][1][4:]], *row[name][2:]]}


@pytest.mark.parametrize("name", ["compressed_logprobs", "bytepacked_indices"])
@pytest.mark.filterwarnings("error")
def test_a_null_is_no_byte(tmp_path, name):
    """Read as a number, it would be an id that nobody stored."""
    rows = rows_of(30, 30)
    with pytest.raises(InvalidRecordError, match=rf"row 1: position 1 has no byte 3 in {name}"):
        into_cask(
            write_typed(tmp_path / "byte", [rows[0], first_byte(rows[1], name, None)]),
            tmp_path / "cask",
        )
    without = rows[1] | {name: [*rows[1][name][:4], None, *rows[1][name][5:]]}
    with pytest.raises(InvalidRecordError, match=rf"row 1: position 4 has no {name}"):
        into_cask(write_typed(tmp_path / "position", [rows[0], without]), tmp_path / "cask")


@pytest.mark.parametrize("value", [300, -1])
def test_bytes_are_at_most_255_whatever_their_type(tmp_path, value):
    import pyarrow as pa

    rows, wide = rows_of(30, 30), pa.list_(pa.list_(pa.int64()))
    into_cask(write_typed(tmp_path / "whole", rows, compressed_logprobs=wide), tmp_path / "cask")
    damaged = [rows[0], first_byte(rows[1], "compressed_logprobs", value)]
    with pytest.raises(InvalidRecordError, match=rf"row 1: position 1 has {value} as byte 3 of compressed_logprobs"):
        into_cask(write_typed(tmp_path / "src", damaged, compressed_logprobs=wide), tmp_path / "other")


def test_tokens_and_masks_have_no_nulls(tmp_path):
    rows = [row | {"attention_mask": [1] * 30} for row in rows_of(30, 30)]
    for name in ("input_ids", "attention_mask"):
        damaged = rows[1] | {name: [*rows[1][name][:7], None, *rows[1][name][8:]]}
        with pytest.raises(InvalidRecordError, match=f"row 1: token 7 has no {name}"):
            into_cask(write_typed(tmp_path / name, [rows[0], damaged]), tmp_path / "cask")


def test_a_token_beyond_int64_is_named(tmp_path):
    rows = rows_of(30, 30)
    rows[1]["input_ids"][3] = 2**63 + 1
    with pytest.raises(InvalidRecordError, match="row 1: token id 9223372036854775809 is outside"):
        into_cask(write_typed(tmp_path / "src", rows), tmp_path / "cask")


def test_lists_of_every_layout_and_truth_values_as_masks_are_read(tmp_path):
    import pyarrow as pa

    documents = dense_documents([30, 30])
    rows = [distillkit_row(document, EXACT) | {"attention_mask": [True] * 30} for document in documents]
    types = {
        "input_ids": pa.large_list(pa.int32()),
        "compressed_logprobs": pa.list_(pa.list_(pa.uint8(), 48)),
        "bytepacked_indices": pa.large_list(pa.large_list(pa.uint8())),
        "attention_mask": pa.list_(pa.bool_()),
    }
    into_cask(write_typed(tmp_path / "src", rows, **types), tmp_path / "cask")
    assert_is_dense(Cask.open(tmp_path / "cask"), documents, 12, atol=3e-5)


@pytest.mark.parametrize(
    ("name", "column", "kind"),
    [
        ("compressed_logprobs", lambda pa: pa.array([[b"ab"]], pa.list_(pa.binary())), "binary"),
        ("compressed_logprobs", lambda pa: pa.array([[1]], pa.list_(pa.uint8())), "uint8"),
        ("bytepacked_indices", lambda pa: pa.array([b"ab"], pa.binary()), "binary"),
        ("bytepacked_indices", lambda pa: pa.array([[[0.5]]], pa.list_(pa.list_(pa.float64()))), "double"),
        ("input_ids", lambda pa: pa.array(["abc"]), "string"),
        ("input_ids", lambda pa: pa.array([1]), "int64"),
        ("input_ids", lambda pa: pa.array([["abc"]]), "string"),
        ("input_ids", lambda pa: pa.array([[84.5]]), "double"),
        ("input_ids", lambda pa: pa.array([[{"a": 1}]]), "struct"),
        ("attention_mask", lambda pa: pa.array([["1"]]), "string"),
    ],
)
def test_columns_of_other_types_are_named(tmp_path, name, column, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = write_distillkit(tmp_path / "src", [row | {"attention_mask": [1] * 9} for row in rows_of(9)], EXACT)
    table = pq.read_table(folder / "data_0.parquet")
    table = table.set_column(table.column_names.index(name), name, column(pa))
    pq.write_table(table, folder / "data_0.parquet")
    with pytest.raises(CaskError, match=rf"column {name} is of type .*{kind}.*, expected list of") as error:
        into_cask(DistillKitSource(folder), tmp_path / "cask")
    assert "without its end" not in str(error.value)
