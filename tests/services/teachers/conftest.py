"""The tiny model of the engines' tests, and copies of it."""

import shutil

import pytest

from tests.services.engines.conftest import tiny_llama, tokenizer_saver

__all__ = ["tiny_llama", "tokenizer_saver"]


@pytest.fixture
def students(tmp_path, tiny_llama):
    """A folder with one student, `one`."""
    folder = tmp_path / "students"
    shutil.copytree(tiny_llama, folder / "one")
    return folder
