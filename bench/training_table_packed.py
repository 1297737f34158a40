"""Bytes per token of the training table's records as packed records: the same documents, every value in a byte.

The shards' files over tokens, with the rank table in `cask.json` counted beside them as `everything`: much for these
41,120 tokens, and nothing in a real cask. The table is fitted on the same documents, so `no rank table` bounds what
one of other documents gives.

    python bench/training_table_packed.py
"""

import argparse
import tempfile
from pathlib import Path

import transformers

import teacher_rows
from cask_bytes import captured
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.carriers.registry import carrier_named
from logitcask_schemas.cask.transfer.export import export_cask
from logitcask_schemas.cask.transfer.packing import export_packed
from logitcask_schemas.cask.transfer.targets import LocalTarget
from logitcask_schemas.record.capture_spec import CaptureSpec
from made_up_cask import made_up_teacher
from report import Report
from seed_runs import LENGTH
from training_rows import ROWS

NAMES = (
    "threshold 1/20",
    "threshold 1/50, up to 255 draws",
    "threshold 1/100, up to 255 draws",
    "threshold 1/150, up to 255 draws",
    "RS-KD, 50 draws",
)


def main() -> None:
    from demo.fetch_teacher import fetch_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder of the teacher (default: SmolLM2-135M, fetched)")
    parser.add_argument("--cache", type=Path, default=Path("bench/cache"), help="where hidden states are kept")
    parser.add_argument("--documents", type=int, default=160)
    arguments = parser.parse_args()
    teacher = arguments.teacher or fetch_model("smollm2-135m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    texts = teacher_rows.mixed(held_out=False)
    ids = teacher_rows.documents(tokenizer, texts, count=arguments.documents, length=LENGTH)
    rows = teacher_rows.teacher_rows(teacher, ids, arguments.cache)
    report = Report(__file__, "numpy", "pyarrow", "torch")
    for name in NAMES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            spec = CaptureSpec(seed=1, **{**(ROWS[name].capture or {}), "logprob_codec": "u8all"})
            with CaskWriter.create(folder / "flat", teacher=made_up_teacher(len(rows.head_VH)), capture=spec) as writer:
                writer.publish([captured(rows.logits(n), ids_L, spec) for n, ids_L in enumerate(rows.ids_DL)])
            flat = Cask.open(folder / "flat")
            list(export_packed(flat, LocalTarget(folder / "packed")))
            list(export_cask(flat, LocalTarget(folder / "unranked"), carrier_named("packed").name))
            packed, unranked = Cask.open(folder / "packed"), Cask.open(folder / "unranked")
            everything = sum(path.stat().st_size for path in (folder / "packed").rglob("*") if path.is_file())
            note = f"{flat.num_tokens:,} tokens, codec u8all"
            sizes = {
                "flat": flat.num_bytes,
                "packed": packed.num_bytes,
                "packed, everything": everything,
                "packed, no rank table": unranked.num_bytes,
            }
            for form, size in sizes.items():
                report.add("shards", "bytes/token", [size / flat.num_tokens], note, row=name, form=form)
    report.write()


if __name__ == "__main__":
    main()
