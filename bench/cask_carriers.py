"""The same records in each carrier: publishing, size, opening, and 2,048-position windows in random order.

Records are made up (their ids and values are random, so they compress less than a teacher's).
Every read is a whole document of 2,049 tokens, collated to numpy arrays, all columns, checked before. `zarr-python`
reads the columns of the same windows from the same archive. All of it lies in the page cache. Zarr and Parquet decode
the whole shard when it is opened; their windows come from memory.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import CARRIERS
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.record.capture_spec import CaptureSpec
from made_up_cask import made_up_teacher, make_document
from report import Report, seconds

VOCAB, TOKENS = 49_152, 2_049


def timed(work: Callable[[int], Any], repeats: int) -> list[float]:
    """Seconds of each call, which is told its number."""
    turns = iter(range(repeats))
    return seconds(lambda: work(next(turns)), repeats)


def zarr_python_reader(cask: Cask) -> Callable[[int], Any]:
    """Reads every column of a document with zarr-python; strict where its version can be."""
    shard = cask.shard(0)
    group = zarr.open_group(zarr.storage.ZipStore(shard.path, mode="r"), mode="r")
    offsets = shard.columns.offsets
    arrays: list[tuple[Any, Any]] = [(group[column.name], offsets[column.level]) for column in cask.layout.columns]
    return lambda row: [array[int(cut[row]) : int(cut[row + 1])] for array, cut in arrays]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--documents", type=int, default=128, help=f"of {TOKENS:,} tokens, in one shard")
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    documents = [make_document(TOKENS, VOCAB, seed) for seed in range(arguments.documents)]
    order = np.random.default_rng(0).integers(0, arguments.documents, arguments.repeats)
    rows = Report(__file__, "numpy", "pyarrow", "zarr")
    note = f"{arguments.documents} documents of {TOKENS:,} tokens"

    def report(carrier: str, metric: str, spent: Sequence[float], per: float) -> None:
        """A metric's name ends with its unit in brackets."""
        name, _, unit = metric.removesuffix(")").rpartition(" (")
        rows.add(name, unit, [per / amount for amount in spent], note, carrier=carrier)

    def publish(writer: CaskWriter, _: int) -> None:
        writer.publish(documents)

    def open_first(path: Path, _: int) -> None:
        Cask.open(path).shard(0)

    def read_one(cask: Cask, turn: int) -> None:
        cask.collate([int(order[turn])])

    def read_by_zarr(reader: Callable[[int], Any], turn: int) -> None:
        reader(int(order[turn]))

    def export(source: Cask, target: LocalTarget, carrier: str, _: int) -> None:
        list(export_cask(source, target, carrier))

    with tempfile.TemporaryDirectory() as folder:
        for carrier in CARRIERS:
            path = Path(folder) / carrier
            writer = CaskWriter.create(path, teacher=made_up_teacher(VOCAB), capture=CaptureSpec(), carrier=carrier)
            spent = timed(partial(publish, writer), 1)
            writer.close()
            cask = Cask.open(path)
            arrow_bytes = Cask.open(Path(folder) / "arrow").num_bytes
            report(carrier, "publish (MB/s of Arrow form)", spent, arrow_bytes / 1e6)
            report(carrier, "size (bytes/token)", [1.0], cask.num_bytes / cask.num_tokens)
            opening = 50 if carrier == "arrow" else 3
            report(carrier, "open a shard (per s)", timed(partial(open_first, path), opening), 1)
            for row in range(len(cask)):
                cask.read(row)
            read = timed(partial(read_one, cask), arguments.repeats)
            report(carrier, "windows, random order (tokens/s)", read, TOKENS)
            if carrier == "zarr":
                read = timed(partial(read_by_zarr, zarr_python_reader(cask)), min(arguments.repeats, 20))
                report("zarr-python", "windows, random order (tokens/s)", read, TOKENS)
        for carrier in ("zarr", "parquet"):
            target = LocalTarget(Path(folder) / f"export-{carrier}")
            source = Cask.open(Path(folder) / "arrow")
            spent = timed(partial(export, source, target, carrier), 1)
            report(carrier, "export from Arrow (MB/s)", spent, source.num_bytes / 1e6)
            back, exported = LocalTarget(Path(folder) / f"back-{carrier}"), Cask.open(target.path)
            spent = timed(partial(export, exported, back, "arrow"), 1)
            report(carrier, "import to Arrow (MB/s)", spent, source.num_bytes / 1e6)
    rows.write()


if __name__ == "__main__":
    main()
