"""The same records in each carrier: publishing, size, opening, and 2,048-position windows in random order.

Records are made up (about 40 bytes per token; their ids and values are random, so they compress less than a teacher's).
Every read is a whole document of 2,049 tokens, collated to numpy arrays, all columns, checked before. `zarr-python`
reads the columns of the same windows from the same archive. All of it lies in the page cache, and in the first Zarr
row also in the cache of decoded chunks. Parquet decodes the whole shard when it is opened; its windows come from
memory. Rows go to bench/results/cask_carriers.csv.
"""

import argparse
import csv
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr

from cask_read import TEACHER, make_document
from logitcask_schemas.capture_spec import CaptureSpec
from logitcask_schemas.cask import Cask, CaskWriter, zarr_chunks
from logitcask_schemas.cask.carriers import CARRIERS
from logitcask_schemas.cask.export import export_cask
from logitcask_schemas.cask.export_targets import LocalTarget

RESULTS = Path(__file__).resolve().parent / "results" / "cask_carriers.csv"
TOKENS = 2_049


def timed(work: Callable[[int], Any], repeats: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for turn in range(repeats):
        start = time.perf_counter()
        work(turn)
        seconds.append(time.perf_counter() - start)
    return seconds


def zarr_python_reader(cask: Cask) -> Callable[[int], Any]:
    """Reads every column of a document with zarr-python; strict where its version can be."""
    shard = cask.shard(0)
    group = zarr.open_group(zarr.storage.ZipStore(shard.path, mode="r"), mode="r")
    arrays = [(group[column.name], shard.columns.offsets[column.level]) for column in cask.layout.columns]
    return lambda row: [array[int(cut[row]) : int(cut[row + 1])] for array, cut in arrays]


def undecoded(cask: Cask, number: int) -> Any:
    """Read with an empty cache of decoded chunks, as in a cask far larger than that cache."""
    zarr_chunks._CACHE._chunks.clear()
    return cask.collate([number])


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        model = next(line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
    versions = {"numpy": np.__version__, "pyarrow": pa.__version__, "zarr": zarr.__version__}
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **versions, "date": date}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=128, help=f"of {TOKENS:,} tokens, in one shard")
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    documents = [make_document(TOKENS, seed) for seed in range(arguments.documents)]
    order = np.random.default_rng(0).integers(0, arguments.documents, arguments.repeats)
    rows: list[dict[str, Any]] = []

    def report(carrier: str, metric: str, seconds: list[float], per: float) -> None:
        p20, p50, p80 = (per / value for value in np.percentile(seconds, [80, 50, 20]))
        rows.append(
            {"carrier": carrier, "metric": metric, "p20": f"{p20:.4g}", "p50": f"{p50:.4g}", "p80": f"{p80:.4g}"}
        )
        print(f"{carrier:12s} {metric:38s} p20 {p20:12.4g}  p50 {p50:12.4g}  p80 {p80:12.4g}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for carrier in CARRIERS:
            path = Path(folder) / carrier
            writer = CaskWriter.create(path, teacher=TEACHER, capture=CaptureSpec(), carrier=carrier)
            seconds = timed(lambda _, writer=writer: writer.publish(documents), 1)
            writer.close()
            cask = Cask.open(path)
            arrow_bytes = Cask.open(Path(folder) / "arrow").num_bytes
            report(carrier, "publish (MB/s of Arrow form)", seconds, arrow_bytes / 1e6)
            report(carrier, "size (bytes/token)", [1.0], cask.num_bytes / cask.num_tokens)
            opening = 3 if carrier == "parquet" else 50
            report(carrier, "open a shard (per s)", timed(lambda _, p=path: Cask.open(p).shard(0), opening), 1)
            for row in range(len(cask)):
                cask.read(row)
            read = timed(lambda turn, cask=cask: cask.collate([int(order[turn])]), arguments.repeats)
            report(carrier, "windows, random order (tokens/s)", read, TOKENS)
            if carrier == "zarr":
                read = timed(lambda turn, cask=cask: undecoded(cask, int(order[turn])), arguments.repeats)
                report(carrier, "windows, each decoded anew (tokens/s)", read, TOKENS)
                by_zarr = zarr_python_reader(cask)
                read = timed(lambda turn, by_zarr=by_zarr: by_zarr(int(order[turn])), min(arguments.repeats, 20))
                report("zarr-python", "windows, random order (tokens/s)", read, TOKENS)
        for carrier in ("zarr", "parquet"):
            target = LocalTarget(Path(folder) / f"export-{carrier}")
            source = Cask.open(Path(folder) / "arrow")
            seconds = timed(lambda _, t=target, s=source, c=carrier: list(export_cask(s, t, c)), 1)
            report(carrier, "export from Arrow (MB/s)", seconds, source.num_bytes / 1e6)
            back, exported = LocalTarget(Path(folder) / f"back-{carrier}"), Cask.open(target.path)
            seconds = timed(lambda _, t=back, s=exported: list(export_cask(s, t, "arrow")), 1)
            report(carrier, "import to Arrow (MB/s)", seconds, source.num_bytes / 1e6)
    facts = {"documents": arguments.documents, **machine()}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        writer.writerows({**row, **facts} for row in rows)


if __name__ == "__main__":
    main()
