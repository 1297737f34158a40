"""Golden casks: every release reads them, and the writer still makes the very same bytes.

But for Zarr: the wording of `zarr.json` and the zstd frames are zarr-python's and change with it. The names of its
shards come from their content, so they stay. And but for the compressed bytes of a rank table, which are zlib's.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.directory import LocalDirectory, read_manifest
from logitcask_schemas.cask.integrity.verify import survey, verify_shards
from logitcask_schemas.cask.location import LocalFolder
from logitcask_schemas.record.hints import HintRows
from tests.golden.make_casks import CASES, as_json, hint_values, make_cask
from tests.support.schemas.hint_samples import assert_same_rows

HERE = Path(__file__).parent
WRITTEN_BY_PYARROW = "26"
"""Arrow's and Parquet's framing and the zstd inside may change between its major versions; what they hold may not."""


@pytest.mark.parametrize("name", CASES)
def test_they_are_read(name: str) -> None:
    cask = Cask.open(HERE / name, tokenizer_fingerprint="1" * 64)
    expected = json.loads((HERE / f"{name}.expected.json").read_text())
    stored = sorted((as_json(cask.read(number)) for number in range(len(cask))), key=lambda columns: columns["id"])
    assert len(stored) == len(expected)
    for mine, theirs in zip(stored, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for column, values in theirs.items():
            if column != "id":
                np.testing.assert_array_equal(mine[column], np.array(values, dtype=np.float64))
    assert survey(LocalFolder(folder=cask.path)).unlisted_files == []
    assert not [problem for report in verify_shards(cask) for problem in report.problems]


@pytest.mark.parametrize("name", [name for name in CASES if "hints" in name])
def test_their_hints_are_read(name: str) -> None:
    cask = Cask.open(HERE / name)
    spec = cask.manifest.capture.hints
    assert spec is not None
    for number in range(len(cask)):
        assert_same_rows(cask.hints(number), HintRows.encode(hint_values(cask.read(number), spec), spec))


def contents(path: Path) -> list[str]:
    cask = Cask.open(path)
    return [json.dumps(as_json(cask.read(number))) for number in range(len(cask))]


@pytest.mark.parametrize("name", CASES)
def test_the_writer_makes_the_same_bytes(name: str, tmp_path: Path) -> None:
    make_cask(tmp_path / name, name)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    golden = {path.relative_to(HERE): path.read_bytes() for path in (HERE / name).rglob("*") if path.is_file()}
    if CASES[name][2] == "zarr":
        assert made.keys() == golden.keys()
        assert contents(tmp_path / name) == contents(HERE / name)
        return
    if pa.__version__.partition(".")[0] != WRITTEN_BY_PYARROW:
        pytest.skip(f"golden shards were framed by pyarrow {WRITTEN_BY_PYARROW}, this is {pa.__version__}")
    if CASES[name][2] == "packed":
        manifest = Path(name) / "cask.json"
        assert read_manifest(LocalDirectory(path=tmp_path / name)) == read_manifest(LocalDirectory(path=HERE / name))
        del made[manifest], golden[manifest]
    assert made == golden
