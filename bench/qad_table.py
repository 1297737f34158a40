"""What training with rounded weights gains over rounding afterwards: a student with int4 or fp8 layers, from a cask.

The student is the teacher itself, SmolLM2-135M, so what is measured is what quantisation costs and nothing else. Its
layers have 106 of its 135 million parameters; embeddings and head stay as they are. By scheme:

* `before`: not quantised, so the teacher itself;
* `rounded`: its weights are rounded, without training (post-training quantisation, by round-to-nearest);
* `trained`: trained from a cask of the teacher's records with rounded weights (quantisation-aware distillation); the
  teacher is not in memory. A seed decides the order of the documents;
* `trained, then rounded`: as many steps on the same documents with the weights as they are, then rounded. The control.

Measured is the dense KL(t || p) on held-out text, against the teacher's own logits.

The packaged weights of this teacher are 4-bit numbers already (Q4_1 in GGUF: 16 levels for each 32 weights, between
their least and their largest). They are no numbers of torchao's int4, whose levels are symmetric about 0.

    python bench/qad_table.py                            # all arms, 3 seeds; resumes an interrupted table
    python bench/qad_table.py --table-only               # from results/qad_table_runs.csv
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import transformers

sys.path.append(str(Path(__file__).resolve().parent.parent))
import teacher_rows
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.quantization import read_scheme, round_weights
from logitcask_consumer.training.run import train
from report import Report
from seed_runs import LENGTH, TableSetting, finished, interval, keep, shared, table_options, table_parser, whole
from training_table import evaluate
from width_depth import made_cask

BEFORE: Final = "before"
ROUNDED: Final = "rounded"
TRAINED: Final = "trained"
CONTROL: Final = "trained, then rounded"


def trained(setting: TableSetting, cask: Path, seed: int, quantize: str | None, output: Path) -> Any:
    """The teacher trained on its own records, with rounded weights or with plain ones."""
    config = setting.training(
        cask, output, seed, student=str(setting.teacher), save_steps=setting.steps, quantize=quantize
    )
    return load_model(whole(train(config, say=print)))


def rounded(model: Any, scheme: str) -> Any:
    """The model with rounded weights."""
    round_weights(model, read_scheme(scheme))
    return model


def measure_all(setting: TableSetting, schemes: Sequence[str], seeds: Sequence[int], arms: Sequence[str]) -> None:
    """Measure what is not noted yet."""
    done = {(run["arm"], run["scheme"], int(run["seed"])) for run in finished(setting.runs)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(setting.teacher)
    counts = (setting.documents, setting.held_out)
    rows, held = teacher_rows.training_and_held_out(
        setting.teacher, tokenizer, setting.cache, counts=counts, length=LENGTH
    )

    def note(model: Any, arm: str, scheme: str, seed: int) -> None:
        keep(setting.runs, {"arm": arm, "scheme": scheme, "seed": seed, **evaluate(model.eval(), held)})

    if (BEFORE, "", 0) not in done:
        note(load_model(setting.teacher), BEFORE, "", 0)
    for scheme in schemes:
        if (ROUNDED, scheme, 0) not in done:
            note(rounded(load_model(setting.teacher), scheme), ROUNDED, scheme, 0)
    with tempfile.TemporaryDirectory() as folder:
        cask = made_cask(setting.teacher, rows, tokenizer, Path(folder))
        for seed in seeds:
            for number, scheme in enumerate(schemes):
                if TRAINED in arms and (TRAINED, scheme, seed) not in done:
                    output = Path(folder) / f"{number}-{seed}"
                    note(trained(setting, cask, seed, scheme, output), TRAINED, scheme, seed)
            missing = [scheme for scheme in schemes if (CONTROL, scheme, seed) not in done]
            if CONTROL in arms and missing:
                plain = Path(folder) / f"plain-{seed}"
                trained(setting, cask, seed, None, plain)
                for scheme in missing:
                    note(rounded(load_model(plain), scheme), CONTROL, scheme, seed)


def table(setting: TableSetting) -> None:
    """Means over seeds, and each arm's KL over that of `rounded` with the same scheme."""
    figures: dict[tuple[str, str], list[dict[str, str]]] = {}
    for run in finished(setting.runs):
        figures.setdefault((run["arm"], run["scheme"]), []).append(run)
    report = Report(f"{setting.name}.py", "torch", "transformers", "torchao")
    note = f"{setting.steps} steps of {setting.batch} x {LENGTH - 1} positions, lr {setting.lr:g}"
    for (arm, scheme), runs in figures.items():
        for metric, unit in (("kl", "nats"), ("agreement", "share"), ("nll", "nats")):
            values = [float(run[metric]) for run in runs]
            report.add(metric, unit, values, note, arm=arm, scheme=scheme, **interval(values))
        if arm in (TRAINED, CONTROL):
            ratio = [float(run["kl"]) / float(figures[ROUNDED, scheme][0]["kl"]) for run in runs]
            report.add("kl over rounded", "ratio", ratio, note, arm=arm, scheme=scheme, **interval(ratio))
    report.write()


def main() -> None:
    """Measure every arm with every seed, then make the table."""
    parser = table_parser(__doc__, documents=160, held_out=32, steps=40, batch=4, lr=5e-5, name="qad_table")
    parser.add_argument("--schemes", nargs="+", default=["int4:group=32"], help="as --quantize takes them")
    parser.add_argument("--arms", nargs="+", choices=[TRAINED, CONTROL], default=[TRAINED, CONTROL])
    options = table_options(parser)
    setting = TableSetting(**shared(options))
    if not options.table_only:
        measure_all(setting, options.schemes, options.seeds, options.arms)
    table(setting)
    if options.quick:
        setting.remove_results()


if __name__ == "__main__":
    main()
