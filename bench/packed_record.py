"""Packed records: bytes per token in each form, and tokens per second from a packed file to collated tensors.

Of every source the even documents fit the rank table, the odd ones are measured, so the table knows nothing of them.
The codes stand in the shard and are counted. `shards` is the shards' files per token; `everything` adds entries, index,
table of documents and `cask.json` with the rank table, much for some thousand tokens and nothing in a real cask.

Speed: the measured documents, each many times over with another first token, in one packed shard in the page cache.
`decode` decodes every document; `to tensors` also proves each document and collates batches of 16 to
torch tensors. One process, per second of its CPU time; both include what is done once a shard.

Sources are casks, or with --teacher records of a model's own: standard library sources captured at tau = 1/20, 1/50
and 1/95, and as 50 draws.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.cask.format.columns import ShardColumns, document_checksum, document_slices, gather_rows
from logitcask_schemas.cask.format.layout import LEVELS, RecordLayout
from logitcask_schemas.cask.format.packed.rank_table import RankTable
from logitcask_schemas.cask.transfer.packing import CODEC, converted
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import document_id
from made_up_cask import made_up_teacher
from report import Report

COPIES, BATCH, REPEATS = 16, 16, 9


def half(cask: Cask, first: int) -> ShardColumns:
    """Every other document."""
    rows = [(cask.shard(number).columns, row) for number, row in map(cask.locate, range(first, len(cask), 2))]
    return gather_rows(rows, cask.layout)


def table_of(columns: ShardColumns, cask: Cask) -> RankTable:
    vocab_size = cask.manifest.teacher.vocab_size
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for name in ("token_ids", "head_ids", "tail_ids"):
        counts_V += np.bincount(np.asarray(columns.arrays[name]), minlength=vocab_size)
    return RankTable.fitted(counts_V, cask.manifest.teacher.tokenizer_fingerprint)


def written(folder: Path, columns: ShardColumns, cask: Cask, spec: CaptureSpec, carrier: str, table: Any) -> Cask:
    """A cask of these documents."""
    teacher = cask.manifest.teacher
    with CaskWriter.create(folder, teacher=teacher, capture=spec, carrier=carrier, rank_table=table) as writer:
        writer.publish_columns(columns)
    return Cask.open(folder)


def copies(columns: ShardColumns, layout: RecordLayout) -> ShardColumns:
    """The documents many times over; other first tokens make them other documents."""
    rows = [(columns, row) for _ in range(COPIES) for row in range(len(columns.document_ids))]
    many = gather_rows(rows, layout)
    starts = many.offsets["token"][:-1]
    tokens = np.array(many.arrays["token_ids"])
    tokens[starts] = np.repeat(np.arange(COPIES), len(columns.document_ids))
    arrays = {**many.arrays, "token_ids": tokens}
    ids = [document_id(tokens[start:stop]) for start, stop in zip(starts, many.offsets["token"][1:], strict=True)]
    sizes = np.stack([np.diff(many.offsets[level]) for level in LEVELS], axis=1).tolist()
    checksums = [
        document_checksum(identity, sizes[row], document_slices(arrays, many.offsets, layout, row, many.lists))
        for row, identity in enumerate(ids)
    ]
    return replace(
        many,
        arrays=arrays,
        document_ids=np.frombuffer(b"".join(ids), dtype=np.uint8).reshape(-1, 32),
        checksums=np.array(checksums, dtype=np.uint64),
    )


def to_tensors(folder: Path) -> int:
    cask = Cask.open(folder)
    values = 0
    for start in range(0, len(cask), BATCH):
        batch = cask.collate(range(start, min(start + BATCH, len(cask))))
        records = batch.records
        tensors = [records.head_logprobs_H, records.head_ids_H, records.tail_ids_N, *records.position_columns.values()]
        values += sum(torch.from_numpy(array).numel() for array in tensors)
    return values


def seconds(work: Callable[[], Any], clock: Callable[[], float]) -> list[float]:
    """Time of each call by this clock."""
    spent = []
    for _ in range(REPEATS):
        start = clock()
        work()
        spent.append(clock() - start)
    return spent


THRESHOLDS = (20, 50, 95)
"""1/tau of what is captured from a teacher; the last one is what 40 bytes a token buy."""
CLOCKS: dict[str, Callable[[], float]] = {
    # All threads of the process together.
    "tokens/CPU s": time.process_time,
    "tokens/s": time.perf_counter,
}


def measure(report: Report, cask: Cask, name: str) -> None:
    spec = cask.manifest.capture.model_copy(update={"logprob_codec": CODEC})
    layout = RecordLayout.for_capture(spec, cask.manifest.teacher.vocab_size)
    stored, table = half(cask, 1), table_of(half(cask, 0), cask)
    in_bytes = converted(stored, cask.layout, layout)
    note = f"{int(stored.offsets['token'][-1]):,} tokens, {len(stored.document_ids)} documents, tau {spec.tau:.3g}"
    forms = {
        f"flat {cask.manifest.capture.logprob_codec}": (stored, cask.manifest.capture, "arrow", None),
        f"flat {CODEC}": (in_bytes, spec, "arrow", None),
        f"packed {CODEC}": (in_bytes, spec, "packed", table),
        f"packed {CODEC}, no rank table": (in_bytes, spec, "packed", None),
    }
    with tempfile.TemporaryDirectory() as temporary:
        for number, (form, (columns, capture, carrier, ranks)) in enumerate(forms.items()):
            folder = Path(temporary) / str(number)
            made = written(folder, columns, cask, capture, carrier, ranks)
            everything = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            for what, size in (("shards", made.num_bytes), ("everything", everything)):
                report.add(what, "bytes/token", [size / made.num_tokens], note, source=name, form=form)
        fast = Path(temporary) / "fast"
        tokens = written(fast, copies(in_bytes, layout), cask, spec, "packed", table).num_tokens
        for what, work in (
            ("decode", lambda: Cask.open(fast).shard(0).columns),
            ("to tensors", lambda: to_tensors(fast)),
        ):
            work()
            for unit, clock in CLOCKS.items():
                rates = [tokens / spent for spent in seconds(work, clock)]
                report.add(
                    what, unit, rates, f"{tokens:,} tokens, tau {spec.tau:.3g}", source=name, form=f"packed {CODEC}"
                )


@torch.inference_mode()
def captured_casks(teacher: Path, count: int, folder: Path) -> Iterator[tuple[str, Cask]]:
    """Casks of a model's records at each threshold."""
    import transformers

    from cask_bytes import captured, real_documents

    documents = real_documents(transformers.AutoTokenizer.from_pretrained(teacher), count)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    specs = {f"1/{inverse}": CaptureSpec(tau=1 / inverse, logprob_codec=CODEC) for inverse in THRESHOLDS}
    specs["RS-KD 50"] = CaptureSpec(mode="sampled", draws=50, sampler="multinomial", logprob_codec=CODEC)
    writers = {
        name: CaskWriter.create(folder / name.replace("/", "-"), teacher=made_up_teacher(vocab_size), capture=spec)
        for name, spec in specs.items()
    }
    for ids in documents:
        logits = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1]
        for name, spec in specs.items():
            writers[name].publish([captured(logits, ids, spec)])
    for name, writer in writers.items():
        writer.close()
        yield f"{teacher.name} {name}", Cask.open(writer.path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("casks", type=Path, nargs="*", help="casks of a vocabulary up to 65,536")
    parser.add_argument("--teacher", type=Path, help="folder of a model to capture from")
    parser.add_argument("--documents", type=int, default=40, help="of 512 tokens, with --teacher")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report(__file__, "numpy", "numba", "pyarrow", "torch")
    for path in arguments.casks:
        measure(report, Cask.open(path), path.name)
    if arguments.teacher is not None:
        with tempfile.TemporaryDirectory() as folder:
            for name, cask in captured_casks(arguments.teacher, arguments.documents, Path(folder)):
                measure(report, cask, name)
    report.write()


if __name__ == "__main__":
    main()
