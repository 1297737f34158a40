"""Students on several processes: the curve of one, what a process keeps (DDP against FSDP2), how reading scales.

Runs one student three ways on a made-up cask, over gloo on this machine: one process, two with a copy each (DDP), two
that share it (FSDP2). Figures of training: the largest difference of a step's loss to that of one process, relative;
bytes of parameters and optimizer that a process keeps; bytes of a checkpoint that it writes; milliseconds of a step.
Two processes on the cores of one machine say nothing of the speed on two GPUs: only the bytes carry over.

Figures of reading: tokens/s from a cask to tensors by N processes at once, each with its own part, over one process;
and which share of the documents' bytes a process touches in an epoch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import EMPTY, CaskDataset, Collator, StepSampler
from logitcask_consumer.processes import leave_processes, processes
from logitcask_consumer.training import run as run_module
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_schemas.cask import Cask
from made_up_cask import DOCSTRING_LENGTHS, made_up_teacher, make_cask
from report import Report

SEQ_LEN, STEP_SEQUENCES = 512, 12
WAYS = {"one": 1, "ddp": 2, "fsdp": 2}


def bytes_kept(trainer: DistillTrainer) -> dict[str, int]:
    """Bytes of parameters and of the optimizer's state that this process keeps between steps."""

    def own(value: Any) -> int:
        local = value.to_local() if isinstance(value, DTensor) else value
        return int(local.nbytes) if isinstance(local, torch.Tensor) else 0

    student: Any = trainer.model
    optimizer: Any = trainer.optimizer
    state = [value for values in optimizer.state.values() for value in values.values()]
    return {"parameters": sum(own(value) for value in student.parameters()), "optimizer": sum(own(v) for v in state)}


def train_and_note(settings: dict[str, Any], notes: Path) -> None:
    """One process of a run; writes down what it kept."""
    kept: dict[str, int] = {}
    plain: Any = DistillTrainer.train

    def train(self: DistillTrainer, **options: Any) -> Any:
        result = plain(self, **options)
        kept.update(bytes_kept(self))
        return result

    trainer: Any = DistillTrainer
    trainer.train = train
    places = {name: Path(settings[name]) for name in ("output", "teacher")}
    run_module.train(TrainConfig(**settings | places | {"casks": tuple(settings["casks"]), "report_to": ()}))
    (notes / f"{processes().process_index}.json").write_text(json.dumps(kept))
    leave_processes()


def launched(way: str, config: TrainConfig, notes: Path) -> None:
    """A run of training, under torchrun where it has several processes."""
    notes.mkdir()
    count = WAYS[way]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *launcher, __file__, "--settings", json.dumps(config.as_dict()), "--notes", str(notes)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def measure_training(report: Report, folder: Path, *, steps: int, layers: int) -> None:
    """One student three ways."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for way in WAYS:
        config = TrainConfig(
            casks=(folder / "cask",),
            student=str(folder / "student" / "config.json"),
            teacher=folder / "student",
            output=folder / way,
            seq_len=SEQ_LEN,
            batch_tokens=SEQ_LEN * STEP_SEQUENCES,
            micro_tokens=SEQ_LEN,
            max_steps=steps,
            save_steps=steps,
            precision="float32",
            fsdp=way == "fsdp",
        )
        launched(way, config, folder / f"{way}-notes")
        lines = curves[way] = read_metrics(folder / way / "metrics.jsonl")
        note = f"{layers} layers, {steps} steps"
        gaps = [abs(own["loss"] / line["loss"] - 1) for own, line in zip(lines, curves["one"], strict=True)]
        report.add("largest difference of the loss", "relative", [max(gaps)], note, way=way, processes=WAYS[way])
        kept = [json.loads(path.read_text()) for path in sorted((folder / f"{way}-notes").iterdir())]
        for name in ("parameters", "optimizer"):
            values = [part[name] for part in kept]
            report.add(f"{name} a process keeps", "bytes", values, note, way=way, processes=WAYS[way])
        checkpoint = folder / way / "checkpoints" / f"checkpoint-{steps}"
        parts = [path.stat().st_size for path in checkpoint.rglob("*.distcp")] or [
            sum((checkpoint / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
        ]
        report.add("checkpoint, each writer", "bytes", parts, note, way=way, processes=WAYS[way])
        rates = [SEQ_LEN * STEP_SEQUENCES / line["tokens_per_second"] * 1e3 for line in lines[1:]]
        report.add("step", "ms", rates, f"{os.cpu_count()} cores shared by all processes", way=way, processes=WAYS[way])


def read_epoch(cask: Path, *, process: int, count: int, epochs: int) -> None:
    """One of the processes that only read; prints tokens, seconds and the bytes of an epoch's batches."""
    torch.set_num_threads(1)
    dataset = CaskDataset([Cask.open(cask)], seq_len=SEQ_LEN)
    sampler = StepSampler(
        dataset.sources,
        seed=0,
        sequences=STEP_SEQUENCES,
        micro=STEP_SEQUENCES // count,
        accumulation=1,
        processes=count,
        process=process,
        steps_done=lambda: 0,
        steps_in_all=lambda: 1,
    )
    collate, batches = Collator(seq_len=SEQ_LEN), list(sampler)
    documents = {int(n) for batch in batches for n in dataset.read(batch).documents_W}  # proves them, too
    print("ready", flush=True)
    sys.stdin.readline()
    start, tokens = time.perf_counter(), 0
    for _ in range(epochs):
        for batch in batches:
            tokens += len(collate(dataset.read(batch))["slots"])
    own = sum(sequence != EMPTY for batch in batches for sequence in batch)
    print(json.dumps([tokens, time.perf_counter() - start, len(documents), own]), flush=True)


def measure_reading(report: Report, cask: Path, *, repeats: int, epochs: int) -> None:
    """One, two and three processes that read at once, in turn."""
    rates: dict[int, list[float]] = {1: [], 2: [], 3: []}
    shares: dict[int, list[float]] = {1: [], 2: [], 3: []}
    documents = len(Cask.open(cask))
    for _ in range(repeats):
        for count in rates:
            command = [sys.executable, __file__, "--read", str(cask), "--epochs", str(epochs), "--rank"]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            readers: list[Any] = [
                subprocess.Popen([*command, str(n), "--of", str(count)], **pipes) for n in range(count)
            ]
            for reader in readers:
                reader.stdout.readline()
            for reader in readers:
                reader.stdin.write("\n")
                reader.stdin.flush()
            found = [json.loads(reader.communicate()[0]) for reader in readers]
            rates[count].append(sum(tokens for tokens, *_ in found) / max(seconds for _, seconds, *_ in found))
            shares[count] += [touched / documents for *_, touched, _ in found]
    for count, found_rates in rates.items():
        report.add("read and collated", "tokens/s", found_rates, way="read", processes=count)
        ratios = [rate / one for rate, one in zip(found_rates, rates[1], strict=True)]
        report.add("read and collated, over one process", "ratio", ratios, way="read", processes=count)
        report.add("documents that a process touches", "share", shares[count], way="read", processes=count)


def save_student(folder: Path, *, layers: int) -> None:
    """Config and tokenizer of a small Llama with a vocabulary that counts."""
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, PreTrainedTokenizerFast

    small = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    AutoConfig.for_model("llama", vocab_size=VOCAB, num_hidden_layers=layers, **small).save_pretrained(folder)
    fast: Any = PreTrainedTokenizerFast
    words = {f"w{number}": number for number in range(VOCAB)}
    fast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0"))).save_pretrained(folder)


VOCAB = 8_192


def main() -> None:
    """Everything, or as one of the processes that this starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=400_000, help="of the cask that is read")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5, help="of reading, in each repeat")
    for name in ("--settings", "--notes", "--read", "--rank", "--of"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.settings:
        train_and_note(json.loads(arguments.settings), Path(arguments.notes))
        return
    if arguments.read:
        read_epoch(Path(arguments.read), process=int(arguments.rank), count=int(arguments.of), epochs=arguments.epochs)
        return
    report = Report(__file__, "torch", "transformers", "accelerate")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_student(folder / "student", layers=arguments.layers)
        fingerprint = fingerprint_of(folder / "student")
        teacher = made_up_teacher(VOCAB).model_copy(update={"tokenizer_fingerprint": fingerprint})
        lengths = list(DOCSTRING_LENGTHS) * (arguments.tokens // sum(DOCSTRING_LENGTHS))
        make_cask(folder / "cask", lengths, vocab_size=VOCAB, teacher=teacher)
        measure_training(report, folder, steps=arguments.steps, layers=arguments.layers)
        measure_reading(report, folder / "cask", repeats=arguments.repeats, epochs=arguments.epochs)
    report.write()


def fingerprint_of(folder: Path) -> str:
    """Of a folder's tokenizer."""
    from logitcask_consumer.student.loading import load_tokenizer
    from logitcask_schemas.record.identity import tokenizer_fingerprint

    return tokenizer_fingerprint(load_tokenizer(folder))


if __name__ == "__main__":
    main()
