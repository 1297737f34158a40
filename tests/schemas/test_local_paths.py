"""Addresses of object stores are told from paths, also where a path has eaten one of their slashes."""

from pathlib import Path

import pytest

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.cask.transfer.export import target_of
from logitcask_schemas.errors import OptionError
from logitcask_schemas.local_paths import local_path, url_in
from tests.support.schemas.cask_samples import SPEC, make_teacher


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        (Path("s3://bucket/run"), "s3://bucket/run"),
        ("S3:/bucket/run/", "S3://bucket/run"),
        ("casks/s3:/run", None),
        (Path("/data/s3:/run"), None),
        ("c:/windows", None),
        ("a folder: of mine", None),
        ("", None),
    ],
)
def test_addresses(place: Path | str, url: str | None) -> None:
    assert url_in(place) == url


def test_what_lies_here_is_a_path() -> None:
    assert local_path("casks/mine") == Path("casks/mine")
    with pytest.raises(OptionError, match="--work: expected a folder of this machine, got s3://bucket/work"):
        local_path(Path("s3://bucket/work"), "--work")


@pytest.mark.parametrize("place", ["s3:/bucket/cask", Path("s3://bucket/cask")])
def test_no_cask_is_written_into_a_folder_that_is_called_s3(place: Path | str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=r"got s3://bucket/cask\. Write it so"):
        CaskWriter.create(place, teacher=make_teacher(), capture=SPEC)
    with pytest.raises(OptionError, match=r"got s3://bucket/cask\. Write it so"):
        target_of(str(place))
    assert not list(tmp_path.iterdir())
