"""Held-out KL with hint losses and without, by loss and codec.

The teacher is SmolLM2-135M, the student 10 of its 30 layers (or what --student says), the text the demonstration's
corpus. Every arm is a run of `logitcask train`'s own trainer on the same documents, batches, steps and learning rates;
records are the same in every cask, which differ in their hints. A seed decides the order of the documents and what is
learned beside the student.

* `none`: the records alone;
* `cosine`, `pkd`, `mse`: that hint loss beside them, in float16; `mse` normalised, with a learned projection;
* `pkd i8`, `pkd proj`: of hints in bytes, and projected to 64 numbers;
* `dense`: no hints, but the whole distribution as the target.

Measured is the dense KL(t || p) on held-out text, and bytes of hints per token. Arms are compared within a seed.

    python bench/hint_table.py                            # all arms, 3 seeds; resumes an interrupted table
    python bench/hint_table.py --table-only               # from results/hint_table_runs.csv

Shape legend: L tokens of a document, K layers of the hints, D width of the teacher's states.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parent.parent))
import teacher_rows
from cask_bytes import captured
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.run import train
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from logitcask_schemas.record.hints import HintRows
from logitcask_schemas.record.identity import TeacherIdentity, tokenizer_fingerprint
from report import Report
from seed_runs import LENGTH, TableSetting, finished, interval, keep, shared, table_options, table_parser, whole
from training_table import evaluate


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What a run is trained with."""

    codec: str = "f16"
    hints: str | None = None
    dense: bool = False


ARMS: Final = {
    "none": Arm(),
    "cosine": Arm(hints="cosine:layer=last@1.0"),
    "pkd": Arm(hints="pkd:map=uniform@1.0"),
    "mse": Arm(hints="mse:map=uniform,norm=layer,projection=learned@1.0"),
    "pkd i8": Arm(codec="i8", hints="pkd:map=uniform@1.0"),
    "pkd proj": Arm(codec="proj:64", hints="pkd:map=uniform@1.0"),
    "dense": Arm(dense=True),
}


@dataclass(frozen=True, kw_only=True)
class Setting(TableSetting):
    """What all arms share."""

    student: str
    layers: tuple[int, ...]


@torch.inference_mode()
def states_of(teacher: Any, ids_L: NDArray[np.uint16], layers: Sequence[int]) -> NDArray[np.float32]:
    """Hidden states at the positions of a document, [L - 1, K, D]."""
    ids_1L = torch.from_numpy(ids_L[None, :-1].astype(np.int64))
    states = teacher.get_decoder()(input_ids=ids_1L, use_cache=False, output_hidden_states=True).hidden_states
    stacked: NDArray[np.float32] = torch.stack([states[layer][0] for layer in layers], 1).numpy()
    return stacked


def made_casks(
    setting: Setting, rows: teacher_rows.TeacherRows, codecs: Sequence[str], folder: Path
) -> dict[str, Path]:
    """A cask for each codec, of one pass of the teacher."""
    teacher: Any = transformers.AutoModelForCausalLM.from_pretrained(setting.teacher, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(setting.teacher)
    identity = TeacherIdentity(
        model=setting.teacher.name,
        weights_digest="0" * 64,
        dtype="float32",
        vocab_size=len(rows.head_VH),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        engine="transformers",
        engine_version="0",
    )
    bare = CaptureSpec(tau=0.05)
    specs = {codec: HintSpec(layers=setting.layers, codec=codec) for codec in codecs}
    writers = {
        codec: CaskWriter.create(
            folder / codec.replace(":", "-"), teacher=identity, capture=CaptureSpec(tau=0.05, hints=spec), version=2
        )
        for codec, spec in specs.items()
    }
    for start in range(0, len(rows.ids_DL), 16):
        block = rows.ids_DL[start : start + 16]
        records = [captured(rows.logits(start + n), ids_L, bare) for n, ids_L in enumerate(block)]
        states = [states_of(teacher, ids_L, setting.layers) for ids_L in block]
        for codec, spec in specs.items():
            writers[codec].publish(
                [
                    replace(record, hints=HintRows.encode(state, spec))
                    for record, state in zip(records, states, strict=True)
                ]
            )
    for writer in writers.values():
        writer.close()
    return {codec: folder / codec.replace(":", "-") for codec in codecs}


def trained(setting: Setting, cask: Path, arm: Arm, seed: int) -> Any:
    """The student of an arm."""
    with tempfile.TemporaryDirectory() as folder:
        config = setting.training(
            cask,
            Path(folder) / "student",
            seed,
            student=setting.student,
            teacher=setting.teacher,
            hints=arm.hints,
            target="dense" if arm.dense else "record",
            save_steps=10_000,
        )
        return load_model(whole(train(config, say=print))).eval()


def hint_bytes(cask: Path) -> float:
    """Bytes of hints per position."""
    opened = Cask.open(cask, tokenizer_fingerprint=None)
    return sum(entry.hints.bytes for entry in opened.entries if entry.hints is not None) / opened.num_positions


def train_all(setting: Setting, seeds: Sequence[int], names: Sequence[str]) -> None:
    """Train what is not noted yet."""
    done = {(run["arm"], int(run["seed"])) for run in finished(setting.runs)}
    if all((name, seed) in done for name in names for seed in seeds):
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(setting.teacher)
    counts = (setting.documents, setting.held_out)
    rows, held = teacher_rows.training_and_held_out(
        setting.teacher, tokenizer, setting.cache, counts=counts, length=LENGTH
    )
    with tempfile.TemporaryDirectory() as folder:
        casks = made_casks(setting, rows, list(dict.fromkeys(ARMS[name].codec for name in names)), Path(folder))
        for seed in seeds:
            for name in names:
                if (name, seed) in done:
                    continue
                started, arm = time.monotonic(), ARMS[name]
                student = trained(setting, casks[arm.codec], arm, seed)
                figures = {"arm": name, "seed": seed, **evaluate(student, held)}
                size = hint_bytes(casks[arm.codec]) if arm.hints or arm.dense else 0.0
                keep(setting.runs, {**figures, "hint_bytes": size, "train_s": round(time.monotonic() - started)})
        before = StudentSpec.parse(setting.student).build(setting.teacher, seed=0).eval()
        print("before:", evaluate(before, held), flush=True)


def table(setting: Setting) -> None:
    """Means over seeds, and each arm's KL over that of `none` within a seed."""
    by_arm: dict[str, dict[int, dict[str, float]]] = {}
    for run in finished(setting.runs):
        by_arm.setdefault(run["arm"], {})[int(run["seed"])] = {
            name: float(run[name]) for name in ("kl", "acceptance", "hint_bytes")
        }
    report = Report(f"{setting.name}.py", "torch", "transformers")
    note = (
        f"{setting.steps} steps of {setting.batch}, lr {setting.lr:g}, {setting.documents} documents, "
        f"{setting.student}, layers {','.join(map(str, setting.layers))}"
    )
    for arm, seeds in by_arm.items():
        for metric, unit in (("kl", "nats"), ("acceptance", "share"), ("hint_bytes", "B/token")):
            values = [figures[metric] for figures in seeds.values()]
            report.add(metric, unit, values, note, arm=arm, **interval(values))
        shared = sorted(seeds.keys() & by_arm.get("none", {}).keys())
        if arm != "none" and shared:
            ratio = [seeds[seed]["kl"] / by_arm["none"][seed]["kl"] for seed in shared]
            report.add("kl over none", "ratio", ratio, note, arm=arm, **interval(ratio))
    report.write()


def main() -> None:
    """Train every arm with every seed, then make the table."""
    parser = table_parser(__doc__, documents=320, held_out=40, steps=80, batch=8, lr=5e-4, name="hint_table")
    parser.add_argument("--student", default="from-teacher:layers=10", help="as `logitcask train` takes it")
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 20, 30], help="of the teacher")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = table_options(parser)
    options.layers = tuple(options.layers)
    setting = Setting(**shared(options, "student", "layers"))
    if not options.table_only:
        train_all(setting, options.seeds, options.arms)
    table(setting)
    if options.quick:
        setting.remove_results()


if __name__ == "__main__":
    main()
