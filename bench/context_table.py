"""Context distillation: a student of records made under demonstrations against one of records of the text alone.

The teacher is SmolLM2-135M-Instruct as it comes, the text word problems with their reasoning, the context a few other
problems with theirs. Both students see the same texts, without the demonstrations, in the same batches, and are trained
on the records of the reasoning's positions by `logitcask train`'s own trainer; the records differ:

* `context`: what the teacher says where it has read the demonstrations;
* `alone`: what it says of the text without them (the control).

Measured is the dense KL(t || p) in nats per position of the reasoning, on texts with other numbers: t the teacher with
the demonstrations, p the student without. `before` is the student that was not trained; `teacher alone` the teacher
without demonstrations, as what the context is worth. The student is the teacher itself unless --student takes fewer of
its 30 layers: then `alone` has nothing to teach it, and what it gains under the context is the context's alone.

    python bench/context_table.py [--student from-teacher:layers=24] [--seeds 1 2 3]

Shape legend: C tokens of a context, L of a document, P positions of its reasoning, V vocabulary.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))
from demo.fetch_teacher import fetch_model
from logitcask_consumer.config import TrainConfig
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.run import train
from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.corpora.context_tokens import ContextTokens
from logitcask_services.engines.engine import CaptureTask, Engine
from logitcask_services.engines.factory import load_engine
from report import Report
from seed_runs import interval, whole
from word_problems import WordProblem, word_problems

SEQUENCE: Final = 96
"""Slots of a training sequence; a document has up to 85 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A problem as the student reads it."""

    token_ids_L: NDArray[np.uint32]
    first: int
    """Position whose next token is the reasoning's first."""

    @property
    def recorded_R2(self) -> NDArray[np.uint32]:
        """The positions of the reasoning, as one range."""
        return np.array([[self.first, len(self.token_ids_L) - 1]], np.uint32)


def document(tokenizer: Any, one: WordProblem) -> Document:
    """Tokens of question and reasoning; the reasoning ends with an empty line, as demonstrations do."""
    prompt = tokenizer(f"Question: {one.question}\nAnswer:").input_ids
    reasoning = tokenizer(f" {one.rationale}\n\n", add_special_tokens=False).input_ids
    return Document(token_ids_L=np.array(prompt + reasoning, np.uint32), first=len(prompt) - 1)


def tasks(documents: Sequence[Document], context_C: NDArray[np.uint32] | None) -> list[CaptureTask]:
    """What the teacher is asked to record."""
    context = None if context_C is None else ContextTokens(token_ids_C=context_C)
    return [
        CaptureTask(key=n, token_ids_L=one.token_ids_L, recorded_R2=one.recorded_R2, context=context)
        for n, one in enumerate(documents)
    ]


def capture(engine: Engine, place: Path, asked: Sequence[CaptureTask]) -> Path:
    """A cask of the documents' records.

    Raises:
        RuntimeError: the teacher could not give one.
    """
    spec = CaptureSpec(tau=0.05)
    results = list(engine.capture(asked, spec))
    if errors := [result.error for result in results if result.error is not None]:
        raise RuntimeError(f"expected a record of every document, {len(errors)} have none, such as: {errors[0]}")
    with CaskWriter.create(place, teacher=engine.identity, capture=spec, version=2) as writer:
        writer.publish([result.document for result in results if result.document is not None])
    return place


@torch.inference_mode()
def log_probabilities(model: Any, one: Document, context_C: NDArray[np.uint32] | None = None) -> Tensor:
    """Log-probabilities at the reasoning's positions, float32 [P, V]."""
    before_C = np.empty(0, np.uint32) if context_C is None else context_C
    ids = torch.from_numpy(np.concatenate([before_C, one.token_ids_L]).astype(np.int64))
    hidden_LD = model.get_decoder()(input_ids=ids[None, :-1], use_cache=False).last_hidden_state[0]
    logits_PV = model.get_output_embeddings()(hidden_LD[len(before_C) + one.first :])
    logprobs_PV: Tensor = logits_PV.float().log_softmax(-1)
    return logprobs_PV


def divergence(model: Any, documents: Sequence[Document], logt_NPV: Sequence[Tensor]) -> float:
    """KL(t || p) of a model without the context, in nats, mean over positions."""
    total, positions = 0.0, 0
    for one, logt_PV in zip(documents, logt_NPV, strict=True):
        logp_PV = log_probabilities(model, one)
        total += float((logt_PV.exp() * (logt_PV - logp_PV)).sum())
        positions += len(logp_PV)
    return total / positions


def trained(options: argparse.Namespace, teacher: Path, cask: Path, seed: int) -> Any:
    """A student of a cask."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            casks=(cask,),
            student=options.student,
            teacher=teacher,
            output=Path(folder) / "student",
            max_steps=options.steps,
            seq_len=SEQUENCE,
            packing="none",
            batch_tokens=SEQUENCE * options.batch,
            lr=options.lr,
            warmup=0.1,
            seed=seed,
            precision="bfloat16",
            save_steps=10_000,
        )
        return transformers.AutoModelForCausalLM.from_pretrained(whole(train(config)), dtype=torch.float32).eval()  # type: ignore[no-untyped-call]


def measure(options: argparse.Namespace, teacher: Path, report: Report) -> None:
    """Capture twice, train with every seed, and note every figure."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(teacher)
    texts = word_problems(options.documents + options.shown, seed=31, part="student")
    shown, texts = texts[: options.shown], texts[options.shown :]
    context_C = np.concatenate([document(tokenizer, one).token_ids_L for one in shown])
    documents = [document(tokenizer, one) for one in texts]
    held = [document(tokenizer, one) for one in word_problems(options.held_out, seed=32, part="test")]
    note = (
        f"{options.shown} demonstrations of {len(context_C)} tokens, {options.documents} documents, {options.steps} "
        f"steps of {options.batch}, lr {options.lr:g}, {options.student}, {options.held_out} held-out documents"
    )
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    logt_NPV = [log_probabilities(model, one, context_C) for one in held]
    for kind, rows in (("under the context", logt_NPV), ("alone", [log_probabilities(model, one) for one in held])):
        entropy = [-float((row.exp() * row).sum(-1).mean()) for row in rows]
        report.add("teacher's entropy", "nats", [float(np.mean(entropy))], note, records=kind)
    report.add("KL", "nats", [divergence(model, held, logt_NPV)], note, records="teacher alone")
    before = StudentSpec.parse(options.student).build(teacher, seed=0).eval()
    report.add("KL", "nats", [divergence(before, held, logt_NPV)], note, records="before")
    del model, before
    with tempfile.TemporaryDirectory() as folder:
        casks = {}
        engine = load_engine("transformers", teacher, dtype="float32", options={"device": "cpu"})
        try:
            for name, context in (("context", context_C), ("alone", None)):
                started = time.monotonic()
                casks[name] = capture(engine, Path(folder) / name, tasks(documents, context))
                print(f"captured {name}: {time.monotonic() - started:.0f} s", flush=True)
        finally:
            engine.close()
        found: dict[str, list[float]] = {name: [] for name in casks}
        for seed in options.seeds:
            for name, cask in casks.items():
                started = time.monotonic()
                found[name].append(divergence(trained(options, teacher, cask, seed), held, logt_NPV))
                print(
                    f"seed {seed}, {name}: {found[name][-1]:.4f} nats, {time.monotonic() - started:.0f} s", flush=True
                )
    for name, values in found.items():
        report.add("KL", "nats", values, note, records=name, **interval(values))
    less = [alone - under for alone, under in zip(found["alone"], found["context"], strict=True)]
    report.add("context is nearer by", "nats", less, note, records="alone - context", **interval(less))


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder (default: SmolLM2-135M-Instruct, fetched)")
    parser.add_argument("--student", default="from-teacher:layers=30", help="as `logitcask train` takes it")
    parser.add_argument("--shown", type=int, default=3, help="demonstrations")
    parser.add_argument("--documents", type=int, default=128)
    parser.add_argument("--held-out", type=int, default=32, help="documents")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="documents")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--quick", action="store_true", help="one seed, two steps, few documents: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.batch, options.documents, options.held_out = 2, 4, 8, 4
        options.seeds = options.seeds[:1]
    report = Report(__file__, "torch", "transformers")
    measure(options, options.teacher or fetch_model("smollm2-135m"), report)
    if not options.quick:
        report.write()


if __name__ == "__main__":
    main()
