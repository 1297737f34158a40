"""One student trained on every kind of record: how much of what dense distillation gains over cross-entropy is kept.

The teacher is SmolLM2-135M, the student 4 of its 30 layers (or what --student says), the text the demonstration's
corpus. A seed decides the order of the documents, the draws in the records, and the first weights of a fresh student.
Within a seed every row of the table sees the same batches, start, steps and learning rates, so that rows differ by
their targets alone.
Records are captured from the teacher's dense logits, published to a cask and read back as the trainer does it; the
dense control recomputes the teacher's logits in every step.

`full` is the dense KL. A row's share of the gap is (KL of `ce` - its KL) / (KL of `ce` - KL of `full`), on held-out
text against the teacher's dense distribution, within a seed.

    python bench/training_table.py                       # all rows, 3 seeds; resumes an interrupted run
    python bench/training_table.py --plot-only           # table and plot from results/training_table_runs.csv
    python bench/training_table.py --name training_long --steps 320 --documents 1280 --evaluate-every 40 \
        --seeds 1 --rows ce full 'threshold 1/20' 'threshold 1/50'   # does what is missing shrink with training?
    python bench/training_table.py --name training_epochs --documents 40 --rows ce full 'threshold 1/20' \
        'threshold 1/20, fresh draws'                    # four epochs over the same draws, or over new ones

Shape legend: T positions of a batch, R rows of a block, V vocabulary, D hidden size of the student, H of the teacher.
"""

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

import teacher_rows
from cask_bytes import captured
from logitcask_consumer.data import Batch, CaskDataset, Collator, target_of
from logitcask_consumer.data.dataset import open_casks
from logitcask_consumer.head import LMHead, base_model
from logitcask_consumer.losses import Objective
from logitcask_consumer.methods import DistillTask
from logitcask_consumer.student.forward import attach
from logitcask_consumer.student.students import StudentSpec
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import document_id
from logitcask_schemas.record.identity import TeacherIdentity
from report import RESULTS, Report
from seed_runs import LENGTH, TableSetting, finished, half_width, keep
from training_rows import ROWS, THRESHOLD_20, Row

CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Setting(TableSetting):
    """What all runs share."""

    student: str
    evaluate_every: int | None
    """Steps between evaluations on the way; without, there is the one at the end."""

    def __post_init__(self) -> None:
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"--evaluate-every needs at least one step, got {self.evaluate_every}")

    @property
    def curves(self) -> Path:
        """Where evaluations on the way are noted."""
        return RESULTS / f"{self.name}_curves.csv"

    def batches(self, seed: int) -> list[list[int]]:
        """Documents of every step: epoch after epoch, each in an order of its own."""
        random = np.random.default_rng(seed)
        epochs = -(-self.steps * self.batch // self.documents)
        order = np.concatenate([random.permutation(self.documents) for _ in range(epochs)])
        return order[: self.steps * self.batch].reshape(self.steps, self.batch).tolist()


class DenseKL(torch.autograd.Function):
    """KL(t || p) summed over positions with t from the teacher's hidden states: the control, chunked by rows."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, teacher_TH: Tensor, head_VH: Tensor) -> Tensor:
        grad_TD, grad_VD, total = torch.empty_like(hidden_TD), torch.zeros_like(weight_VD), hidden_TD.new_zeros(())
        for rows in _chunks(len(hidden_TD)):
            logp_RV = (hidden_TD[rows] @ weight_VD.T).log_softmax(-1)
            logt_RV = (teacher_TH[rows] @ head_VH.T).log_softmax(-1)
            t_RV = logt_RV.exp()
            total += (t_RV * (logt_RV - logp_RV)).sum()
            grad_RV = logp_RV.exp_().sub_(t_RV)
            grad_TD[rows] = grad_RV @ weight_VD
            grad_VD.addmm_(grad_RV.T, hidden_TD[rows])
        ctx.save_for_backward(grad_TD, grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_TD, grad_VD = ctx.saved_tensors
        return grad_TD * grad, grad_VD * grad, None, None


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, rows, CHUNK))


class Run:
    """Runs of one seed: its documents and their order, its casks."""

    def __init__(self, setting: Setting, rows: teacher_rows.TeacherRows, seed: int) -> None:
        self.setting, self.rows, self.seed = setting, rows, seed
        self.folder = tempfile.TemporaryDirectory()
        self.identity = TeacherIdentity(
            model="bench",
            weights_digest="0" * 64,
            dtype="float32",
            vocab_size=len(rows.head_VH),
            tokenizer_fingerprint="0" * 64,
            engine="transformers",
            engine_version="0",
        )

    def cask(self, row: Row, epoch: int) -> Cask:
        """The cask of this seed's documents, captured on first use; every epoch its own where draws are fresh."""
        seed = self.seed + (1000 * epoch if row.fresh else 0)
        spec = CaptureSpec(seed=seed, **row.capture or THRESHOLD_20)
        capture = row.capturing(spec, len(self.rows.head_VH))
        place = Path(self.folder.name) / f"{spec.digest()[:16]}-{row.draw_tau}"
        if not place.exists():
            with CaskWriter.create(place, teacher=self.identity, capture=spec) as writer:
                writer.publish(
                    [captured(self.rows.logits(n), ids_L, spec, capture) for n, ids_L in enumerate(self.rows.ids_DL)]
                )
        return open_casks([place], tokenizer_fingerprint=None)[0]

    def batches(self, row: Row) -> Iterator[tuple[Cask, Batch, list[int]]]:
        """Of every step: the cask, the collated batch, and the batch's documents as rows of the teacher."""
        setting = self.setting
        by_id = {document_id(ids_L): number for number, ids_L in enumerate(self.rows.ids_DL)}
        collate = Collator(seq_len=LENGTH - 1)
        opened = -1
        for step, chosen in enumerate(setting.batches(self.seed)):
            epoch = step * setting.batch // setting.documents if row.fresh else 0
            if epoch != opened:
                cask, opened = self.cask(row, epoch), epoch
                dataset = CaskDataset([cask], seq_len=LENGTH - 1, packing="none", seed=0)
                # Published in one order, so that numbers mean the same documents in every cask.
                ordered = [by_id[identity.tobytes()] for identity in cask.document_ids()]
            batch = collate(dataset.read(chosen))
            yield cask, batch, [ordered[number] for number in batch["documents"][:: LENGTH - 1].tolist()]

    def train(self, name: str, held: teacher_rows.TeacherRows) -> tuple[Any, float]:
        """The trained student and the records' bytes per token."""
        setting, row = self.setting, ROWS[name]
        student = StudentSpec.parse(setting.student).build(setting.teacher, seed=self.seed)
        attach(student.train())
        optimizer = torch.optim.AdamW(student.parameters(), lr=setting.lr, weight_decay=0.01, fused=True)
        terms = Objective.parse(row.loss).terms(0.0)
        for step, (cask, batch, documents) in enumerate(self.batches(row)):
            inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
            if row.capture is None:
                hidden_BSD = base_model(student)(**inputs, use_cache=False).last_hidden_state
                hidden_TD = hidden_BSD.flatten(0, 1).index_select(0, batch["slots"])
                teacher_TH = self.rows.hidden_DPH[documents].flatten(0, 1)
                head = LMHead.from_model(student)
                loss = DenseKL.apply(hidden_TD, head.weight_VD, teacher_TH, self.rows.head_VH)  # type: ignore[no-untyped-call]
            else:
                target = target_of(batch, sampled_tail=cask.manifest.capture.mode != "topk")
                task = DistillTask(target=target, slots_T=batch["slots"], terms=terms)
                loss = student(**inputs, distill=task)["loss"]
            (loss / len(batch["slots"])).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = setting.lr * rate(step, setting.steps)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            if setting.evaluate_every is not None and done % setting.evaluate_every == 0 and done < setting.steps:
                figures = evaluate(student.eval(), held)
                student.train()
                keep(setting.curves, {"row": name, "seed": self.seed, "step": done, **figures})
        return student.eval(), cask.num_bytes / cask.num_tokens


def rate(step: int, steps: int) -> float:
    """Warm-up over a tenth, then cosine to a tenth."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.inference_mode()
def evaluate(student: Any, rows: teacher_rows.TeacherRows) -> dict[str, float]:
    """Held-out figures against the teacher's dense distribution, means over positions."""
    sums: dict[str, float] = {"kl": 0.0, "nll": 0.0, "agreement": 0.0, "acceptance": 0.0}
    confidence, correct, positions = [], [], 0
    head = LMHead.from_model(student)
    for number, ids_L in enumerate(rows.ids_DL):
        ids = torch.from_numpy(ids_L.astype(np.int64))
        hidden_RD = base_model(student)(input_ids=ids[None, :-1], use_cache=False).last_hidden_state[0]
        logp_RV, logt_RV = head.logits(hidden_RD).log_softmax(-1), rows.logits(number).log_softmax(-1)
        p_RV, t_RV = logp_RV.exp(), logt_RV.exp()
        best_R, best_ids_R = p_RV.max(-1)
        sums["kl"] += float((t_RV * (logt_RV - logp_RV)).sum())
        sums["nll"] -= float(logp_RV.gather(1, ids[1:, None]).sum())
        sums["agreement"] += float((best_ids_R == t_RV.argmax(-1)).sum())
        sums["acceptance"] += float(torch.minimum(p_RV, t_RV).sum())
        confidence.append(best_R)
        correct.append(best_ids_R == ids[1:])
        positions += len(logp_RV)
    figures = {name: value / positions for name, value in sums.items()}
    return {**figures, "ece": calibration_error(torch.cat(confidence), torch.cat(correct))}


def calibration_error(confidence_N: Tensor, correct_N: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the top-1 prediction, equal-width bins."""
    bin_N = (confidence_N * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins).index_add_(0, bin_N, confidence_N - correct_N.to(confidence_N.dtype))
    return float(gap.abs().sum() / len(confidence_N))


def train_all(setting: Setting, seeds: list[int], names: list[str]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(setting.teacher)
    texts = {held: teacher_rows.mixed(held_out=held) for held in (True, False)}
    held_ids = teacher_rows.documents(tokenizer, texts[True], count=setting.held_out, length=LENGTH)
    ids = teacher_rows.documents(tokenizer, texts[False], count=setting.documents, length=LENGTH)
    held = teacher_rows.teacher_rows(setting.teacher, held_ids, setting.cache)
    rows = teacher_rows.teacher_rows(setting.teacher, ids, setting.cache)
    done = {(run["row"], int(run["seed"])) for run in finished(setting.runs)}
    for number, seed in enumerate(seeds):
        run = Run(setting, rows, seed)
        for name in names:
            if (name, seed) not in done:
                student, size = run.train(name, held)
                if name == "ce" and number == 0:
                    student.save_pretrained(setting.cache / "student-ce")
                size = {"ce": 2.0, "full": 2.0 * len(held.head_VH)}.get(name, size)
                keep(setting.runs, {"row": name, "seed": seed, "bytes_per_token": size, **evaluate(student, held)})


def table(setting: Setting) -> None:
    """Means over seeds with 95 % t-intervals, the share of the gap within each seed, and the plots."""
    from training_table_plot import Curves, draw, draw_curves

    runs: dict[str, dict[int, dict[str, float]]] = {}
    for run in finished(setting.runs):
        figures = {name: float(value) for name, value in run.items() if name not in ("row", "seed")}
        runs.setdefault(run["row"], {})[int(run["seed"])] = figures
    report = Report(f"{setting.name}.py", "torch", "transformers")
    what = f"{setting.steps} steps of {setting.batch} x {LENGTH - 1} positions, lr {setting.lr}, {setting.student}"
    for name, seeds in runs.items():
        for seed, figures in seeds.items():
            if {"ce", "full"} <= runs.keys() and seed in runs["ce"] and seed in runs["full"]:
                ce, full = runs["ce"][seed]["kl"], runs["full"][seed]["kl"]
                figures["gap closed (%)"] = 100 * (ce - figures["kl"]) / (ce - full)
        for metric in next(iter(seeds.values())):
            values = [figures[metric] for figures in seeds.values() if metric in figures]
            wide = half_width(values)
            unit = {"kl": "nats", "nll": "nats", "bytes_per_token": "bytes"}.get(metric, "")
            interval = {"mean": f"{np.mean(values):.5g}", "interval": f"{wide:.3g}"}
            report.add(metric, unit, values, what, row=name, **interval)
    report.write()
    name = setting.name.replace("_", "-")
    draw(runs, name)
    if curves := finished(setting.curves):
        by_row: Curves = {}
        for run in curves:
            by_row.setdefault(run["row"], {}).setdefault(int(run["seed"]), {})[int(run["step"])] = float(run["kl"])
        for row, seeds in runs.items():
            for seed, figures in seeds.items():
                by_row.setdefault(row, {}).setdefault(seed, {})[setting.steps] = figures["kl"]
        draw_curves(by_row, f"{name}-steps")


def main() -> None:
    from demo.fetch_teacher import fetch_model

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder of the teacher (default: SmolLM2-135M, fetched)")
    parser.add_argument("--cache", type=Path, default=Path("bench/cache"), help="where hidden states are kept")
    parser.add_argument("--student", default="from-teacher:layers=4", help="as `logitcask train` takes it")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4, help="documents of 256 positions")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--documents", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=32, help="documents")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--evaluate-every", type=int, help="steps between evaluations on the way (default: none)")
    parser.add_argument("--name", default="training_table", help="of the files with the results")
    parser.add_argument("--plot-only", action="store_true")
    arguments = vars(parser.parse_args())
    plot_only, seeds, names = (arguments.pop(name) for name in ("plot_only", "seeds", "rows"))
    setting = Setting(**{**arguments, "teacher": arguments["teacher"] or fetch_model("smollm2-135m")})
    if not plot_only:
        train_all(setting, seeds, names)
    table(setting)


if __name__ == "__main__":
    main()
