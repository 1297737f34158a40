"""Learning curves of students of equal size: fewer layers, narrower layers, and both.

The teacher is SmolLM2-135M; every student has about half of the parameters of its layers (53 of 106 million), and all
of its embeddings. Arms see the same documents in the same order, with the same steps and learning rates:

* `depth`: 15 of 30 layers, whole, evenly spread;
* `depth by importance`: the 15 that cost most where each is left out alone;
* `depth by change`: the 15 behind which the cosine with what they are given is least (ShortGPT, arXiv 2403.03853);
* `both`: 20 layers of 6 heads and 1,194 MLP channels, evenly spread;
* `both by importance`: the 20 of these narrow layers that cost most;
* `width`: 30 layers of 6 heads and 682 MLP channels;
* `mlp`: 30 layers of all 9 heads and 512 MLP channels;
* `width at random`: as `width`, its heads and channels drawn. The control.

Measured is the dense KL(t || p) on held-out text, before training and after every so many steps. Arms are compared
within a seed.

    python bench/width_depth.py                            # all arms, 3 seeds; resumes an interrupted table
    python bench/width_depth.py --table-only               # from results/width_depth_runs.csv

Shape legend: N layers, H heads, I channels of an MLP, D hidden channels.
"""

import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers

sys.path.append(str(Path(__file__).resolve().parent.parent))
import teacher_rows
from cask_bytes import captured
from logitcask_consumer.run_document import INITIAL_NAME, checkpoints_in
from logitcask_consumer.student.importance import Importance
from logitcask_consumer.student.kept_units import KeptUnits, Widths, require_known
from logitcask_consumer.student.layer_importance import most_important
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.narrow import narrowed
from logitcask_consumer.training.run import train
from logitcask_consumer.training.starting_student import cask_texts
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import TeacherIdentity, tokenizer_fingerprint
from report import Report
from seed_runs import LENGTH, TableSetting, finished, interval, keep, shared, table_options, table_parser, whole
from training_table import evaluate

ARMS: Final = {
    "depth": "layers=15",
    "depth by importance": "layers=15,by=importance",
    "depth by change": "layers=",
    "both": "layers=20,heads=6,mlp=1194",
    "both by importance": "layers=20,by=importance,heads=6,mlp=1194",
    "width": "heads=6,mlp=682",
    "mlp": "mlp=512",
    "width at random": None,
}
"""What is kept of the teacher; None: `RANDOM`, drawn; `layers=`: `CHANGING`, by how much they change."""
RANDOM: Final = Widths(heads=6, mlp=682)
CHANGING: Final = 15


@dataclass(frozen=True, kw_only=True)
class Setting(TableSetting):
    """What all arms share."""

    every: int
    tokens: int


def made_cask(teacher: Path, rows: teacher_rows.TeacherRows, tokenizer: Any, folder: Path) -> Path:
    """A cask of the documents."""
    spec = CaptureSpec(tau=0.05)
    identity = TeacherIdentity(
        model=teacher.name,
        weights_digest="0" * 64,
        dtype="float32",
        vocab_size=len(rows.head_VH),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        engine="transformers",
        engine_version="0",
    )
    with CaskWriter.create(folder / "cask", teacher=identity, capture=spec) as writer:
        for start in range(0, len(rows.ids_DL), 16):
            block = rows.ids_DL[start : start + 16]
            writer.publish([captured(rows.logits(start + n), ids_L, spec) for n, ids_L in enumerate(block)])
    return folder / "cask"


def drawn_student(teacher: Path, folder: Path, seed: int) -> str:
    """A student of heads and channels that nobody chose."""
    model, draw = load_model(teacher), torch.Generator().manual_seed(seed)
    shape = require_known(model, "model.layers")
    scores = Importance(
        heads_NH=torch.rand(shape.layers, shape.heads, generator=draw),
        neurons_NI=torch.rand(shape.layers, shape.mlp, generator=draw),
        channels_D=torch.rand(shape.hidden, generator=draw),
        shares={},
    )
    student = narrowed(model, "model.layers", shape, KeptUnits.of(scores, RANDOM, shape), {})
    student.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def changing_layers(teacher: Path, cask: Path, tokens: int) -> str:
    """Numbers of the layers that change most what they are given, by its cosine with what they yield."""
    model = load_model(teacher).eval()
    count = model.config.num_hidden_layers
    texts = cask_texts([Cask.open(cask)], tokens // count, longest=LENGTH)
    changes_N = torch.zeros(count, dtype=torch.float64)
    for text in texts:
        states = model(input_ids=torch.from_numpy(text.astype("int64"))[None], output_hidden_states=True).hidden_states
        for number, (before, behind) in enumerate(itertools.pairwise(states)):
            changes_N[number] += (1 - torch.cosine_similarity(before[0], behind[0], dim=-1)).sum()
    return ",".join(map(str, most_important(changes_N, CHANGING)))


def curve(
    setting: Setting, cask: Path, arm: str, seed: int, held: teacher_rows.TeacherRows
) -> Iterator[dict[str, Any]]:
    """Figures of a student before training, and after every so many steps."""
    kept = ARMS[arm]
    with tempfile.TemporaryDirectory() as folder:
        if kept == "layers=":
            kept += changing_layers(setting.teacher, cask, setting.tokens)
        drawn = Path(folder) / "drawn"
        output = Path(folder) / "student"
        config = setting.training(
            cask,
            output,
            seed,
            student=drawn_student(setting.teacher, drawn, seed) if kept is None else described(setting, kept),
            teacher=setting.teacher,
            save_steps=setting.every,
            keep_checkpoints=10_000,
        )
        whole(train(config, say=print))
        before = drawn if kept is None else output / INITIAL_NAME
        places = [
            (0, before),
            *((int(path.name.split("-")[1]), path) for path in checkpoints_in(output / "checkpoints")),
        ]
        for step, place in places:
            model = load_model(place).eval()
            layers = model.num_parameters() - model.get_input_embeddings().weight.numel()
            yield {"arm": arm, "seed": seed, "step": step, "parameters": layers, **evaluate(model, held)}
            if step:
                shutil.rmtree(place)


def described(setting: Setting, kept: str) -> str:
    """The student as `logitcask train` takes it."""
    chosen = f",tokens={setting.tokens}" if any(name in kept for name in ("heads", "mlp", "by=")) else ""
    return f"from-teacher:{kept}{chosen}"


def train_all(setting: Setting, seeds: Sequence[int], names: Sequence[str]) -> None:
    """Train what is not noted yet."""
    done = {(run["arm"], int(run["seed"])) for run in finished(setting.runs) if int(run["step"]) == setting.steps}
    if all((name, seed) in done for name in names for seed in seeds):
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(setting.teacher)
    counts = (setting.documents, setting.held_out)
    rows, held = teacher_rows.training_and_held_out(
        setting.teacher, tokenizer, setting.cache, counts=counts, length=LENGTH
    )
    with tempfile.TemporaryDirectory() as folder:
        cask = made_cask(setting.teacher, rows, tokenizer, Path(folder))
        for seed in seeds:
            for name in names:
                if (name, seed) not in done:
                    for figures in list(curve(setting, cask, name, seed, held)):
                        keep(setting.runs, figures)


def table(setting: Setting) -> None:
    """Means over seeds at every step, and each arm's KL over that of `depth` within a seed."""
    kl_of_seeds: dict[tuple[str, int], dict[int, float]] = {}
    for run in finished(setting.runs):
        kl_of_seeds.setdefault((run["arm"], int(run["step"])), {})[int(run["seed"])] = float(run["kl"])
    report = Report(f"{setting.name}.py", "torch", "transformers")
    note = f"{setting.steps} steps of {setting.batch}, lr {setting.lr:g}, {setting.documents} documents"
    for (arm, step), seeds in kl_of_seeds.items():
        values = list(seeds.values())
        report.add("kl", "nats", values, note, arm=arm, step=step, **interval(values))
        depth = kl_of_seeds.get(("depth", step), {})
        ratio = [value / depth[seed] for seed, value in seeds.items() if seed in depth]
        if arm != "depth" and ratio:
            report.add("kl over depth", "ratio", ratio, note, arm=arm, step=step, **interval(ratio))
    report.write()


def main() -> None:
    """Train every arm with every seed, then make the table."""
    parser = table_parser(__doc__, documents=320, held_out=40, steps=80, batch=8, lr=5e-4, name="width_depth")
    parser.add_argument("--every", type=int, default=20, help="steps between two points of the curve")
    parser.add_argument("--tokens", type=int, default=32_768, help="of text by which parts are chosen")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = table_options(parser, every=1, tokens=512)
    setting = Setting(**shared(options, "every", "tokens"))
    if not options.table_only:
        train_all(setting, options.seeds, options.arms)
    table(setting)
    if options.quick:
        setting.remove_results()


if __name__ == "__main__":
    main()
