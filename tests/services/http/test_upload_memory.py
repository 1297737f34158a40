"""Memory of the service while it takes uploads: the same for short and long ones, however they are packed."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.services.server_process import ServerProcess

MEBI = 1 << 20
TEXT = "".join(chr(97 + (number * number) % 26) for number in range(1000))
LINE = f'{{"text": "{TEXT}"}}\n'.encode()
MAX_GROWTH = 120 * MEBI
"""Buffers, a thread pool, Arrow's own memory; measured are 20 to 60 MiB."""


def peak(server: ServerProcess) -> int:
    """Most bytes that were resident, so far."""
    text = Path(f"/proc/{server.pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) << 10


def packed(kind: str, folder: Path, lines: int) -> Path:
    path = folder / f"corpus.{kind}"
    match kind:
        case "gzip":
            with gzip.open(path, "wb", compresslevel=1) as file:
                for number in range(lines):
                    file.write(LINE.replace(b"abc", str(number).encode(), 1))
        case "zstd":
            with pa.CompressedOutputStream(str(path), "zstd") as stream:
                for _ in range(lines):
                    stream.write(LINE)
        case _:  # one row group for all
            texts = pa.array([f"{number} {TEXT}" for number in range(lines)])
            pq.write_table(pa.table({"text": texts}), path, row_group_size=lines, use_dictionary=False)
    return path


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd", "parquet"])
def test_memory_is_flat(tmp_path, kind):
    """150 MiB of lines would be seen, were they in memory at once."""
    lines = 150 * MEBI // len(LINE)
    server = ServerProcess(tmp_path / "run", settings={"max_unpack_ratio": 1e6})
    try:
        before = peak(server)
        if kind == "plain":
            answer = server.client.post("/v1/corpora", content=(LINE * 1000 for _ in range(lines // 1000)), timeout=120)
        else:
            with packed(kind, tmp_path, lines).open("rb") as file:
                answer = server.client.post("/v1/corpora", content=file, timeout=120)
        assert answer.status_code == 201, answer.text
        assert answer.json()["bytes"] > 140 * MEBI
        assert peak(server) - before < MAX_GROWTH
    finally:
        server.end()
