"""A teacher, and casks of it with hints of every kind."""

import pytest

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.consumer.cask_builder import build_cask, save_teacher
from tests.support.consumer.hinted_casks import DOCUMENTS, HIDDEN


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hints") / "teacher"
    return folder, save_teacher(folder)


@pytest.fixture(scope="module")
def casks(teacher, tmp_path_factory):
    """Casks of the same documents by a name each."""
    folder, specs = tmp_path_factory.mktemp("casks"), {"f16": HIDDEN, "i8": HIDDEN.model_copy(update={"codec": "i8"})}
    specs["v"] = HintSpec(layers=(2, 4), of="v")
    specs["qkv"] = HintSpec(layers=(4,), of="qkv")
    specs["proj"] = HintSpec(layers=(4,), codec="proj:8", seed=5)
    for name, spec in specs.items():
        build_cask(folder / name, teacher[1], DOCUMENTS, spec=CaptureSpec(tau=0.05, hints=spec), per_shard=5)
    build_cask(folder / "none", teacher[1], DOCUMENTS, per_shard=5)
    return folder
