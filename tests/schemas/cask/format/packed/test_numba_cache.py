"""Packed shards are read whatever state Numba's cache is in; it is no damage of a cask."""

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest

bit_loops = pytest.importorskip("logitcask_schemas.cask.format.packed.bit_loops", reason="needs the extra `packed`")
GOLDEN = Path(__file__).parents[4] / "golden" / "cask-v3-packed"
ON_A_FULL_DISK = """
import sys
from numba.core.caching import IndexDataCacheFile

def full(self, name, data):
    raise OSError(28, "No space left on device", name)

IndexDataCacheFile._save_data = full
from logitcask_schemas.cli.main import main
main(["cask", "verify", sys.argv[1]])
"""


def test_a_full_disk_under_the_cache_is_no_damage(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, str(GOLDEN)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No space left on device" in done.stderr
    assert "NUMBA_CACHE_DIR" in done.stderr


@pytest.mark.parametrize(
    "error", [pickle.UnpicklingError("pickle data was truncated"), EOFError(), OSError(28, "full")]
)
def test_a_cache_that_raises_is_left_alone(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Loop:
        _cache: object = None

        def __call__(self, *arguments: object) -> None:
            calls.append(arguments)
            if self._cache is None:
                raise error

    calls: list[tuple[object, ...]] = []
    loop = Loop()
    monkeypatch.setattr(bit_loops, "unpack_documents", loop)
    monkeypatch.setattr(bit_loops, "_LOOPS", [loop])
    with caplog.at_level(logging.WARNING):
        bit_loops.prepare("words")
    assert calls == [(0, 0, "words")] * 2
    assert type(error).__name__ in caplog.text


def test_without_a_folder_for_a_cache_there_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    njit: Any = numba.njit

    def without_a_folder(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function 'double': no locator available")
        return njit(*arguments, **options)

    def double(number: int) -> int:
        return 2 * number

    monkeypatch.setattr(bit_loops.numba, "njit", without_a_folder)
    monkeypatch.setattr(bit_loops, "_LOOPS", [])
    assert bit_loops.compiled(double)(21) == 42
    assert "no locator available" in caplog.text
