"""Students of what a teacher wrote: checked reasoning against answers alone, unchecked reasoning, and two controls.

Every arm trains the same student for the same steps, batches and learning rates; a seed decides the order of the rows.

* `checked`: samples of the teacher whose answer is right;
* `label`: the answers of the same rows, without the reasoning;
* `unchecked`: all samples;
* `wrong`: only samples whose answer is wrong (negative control);
* `shuffled`: the checked rows, each with the answer of another question (negative control).

Measured is the share of right answers to held-out questions, written greedily (bfloat16, as training computes); the
numbers of those questions occur in no training question. The student is SmolLM2-135M-Instruct as it comes, which was
not trained on rule-made rationales, unlike the teacher of `word_problem_teacher.py`; --student takes layers of it.

    # corpora of the service, lines with input_ids and labels; the other arms are made of these two:
    python bench/black_box_table.py --corpus checked=C.jsonl --corpus unchecked=U.jsonl
    # casks that it captured from them, through `logitcask train`'s own trainer:
    python bench/black_box_table.py --cask checked=casks/words --cask label=casks/words.label --loss cross_entropy
    # without a service, the teacher sampled by transformers:
    python bench/black_box_table.py --rehearse --teacher models/teacher-words
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
import transformers

sys.path.append(str(Path(__file__).resolve().parent.parent))
import black_box
from black_box import Example
from demo.fetch_teacher import fetch_model
from logitcask_consumer.config import TrainConfig
from logitcask_consumer.student.students import StudentSpec
from logitcask_consumer.training.run import train
from report import RESULTS, Report
from seed_runs import finished, interval, keep, whole
from word_problems import MARKER, answer_in, word_problems

ARMS: Final = ("checked", "label", "unchecked", "wrong", "shuffled")
QUESTION_SEED, TEST_SEED = 21, 22
MAX_NEW_TOKENS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms share."""

    base: Path
    student: str
    steps: int
    batch: int
    lr: float
    tests: int
    loss: str
    name: str

    @property
    def runs(self) -> Path:
        """Where finished runs are noted, so that an interrupted table goes on."""
        return RESULTS / f"{self.name}_runs.csv"


def rehearsed(teacher: Path, questions: int, temperature: float) -> tuple[list[Example], list[Example]]:
    """Right samples and all samples of a teacher that is sampled here, one text for each training question."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(teacher)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16)
    problems = word_problems(questions, seed=QUESTION_SEED, part="student")
    prompts = [black_box.chat_prompt(tokenizer, one.question) for one in problems]
    started = time.monotonic()
    written = black_box.write(model, tokenizer, prompts, temperature=temperature, max_new_tokens=MAX_NEW_TOKENS)
    ended = [
        (one, Example(prompt_ids=prompt, completion_ids=ids))
        for one, prompt, ids in zip(problems, prompts, written, strict=True)
        if ids[-1] == tokenizer.eos_token_id
    ]
    right = [(one, row) for one, row in ended if answer_in(_text(tokenizer, row)) == one.answer]
    seconds = time.monotonic() - started
    print(f"{len(problems)} questions, {len(ended)} texts ended, {len(right)} right, {seconds:.0f} s", flush=True)
    return [row for _, row in right], [row for _, row in ended]


def arms_of(tokenizer: Any, checked: Sequence[Example], unchecked: Sequence[Example]) -> dict[str, list[Example]]:
    """The rows of every arm, from the samples whose answer is right and from all."""
    kept = set(checked)
    answers = [f"{MARKER} {answer_in(_text(tokenizer, row))}." for row in checked]
    end = tokenizer.eos_token_id
    return {
        "checked": list(checked),
        "label": [
            replace(row, completion_ids=(*_ids(tokenizer, answer), end))
            for row, answer in zip(checked, answers, strict=True)
        ],
        "unchecked": list(unchecked),
        "wrong": [row for row in unchecked if row not in kept],
        "shuffled": shuffled(tokenizer, checked),
    }


def shuffled(tokenizer: Any, rows: Sequence[Example]) -> list[Example]:
    """The rows with their answers exchanged, each for one of another value; the reasoning stays as it was."""
    texts = [_text(tokenizer, row).rpartition(MARKER)[0] for row in rows]
    answers = [answer_in(_text(tokenizer, row)) for row in rows]
    draw = random.Random(0)
    others = [draw.choice([answer for answer in answers if answer != own]) for own in answers]
    end = tokenizer.eos_token_id
    return [
        replace(row, completion_ids=(*_ids(tokenizer, f"{text}{MARKER} {answer}."), end))
        for row, text, answer in zip(rows, texts, others, strict=True)
    ]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _text(tokenizer: Any, row: Example) -> str:
    return str(tokenizer.decode(row.completion_ids, skip_special_tokens=True))


def from_rows(setting: Setting, rows: Sequence[Example], seed: int) -> Any:
    """The student, trained on exact token ids with the cross-entropy of the completions."""
    student = StudentSpec.parse(setting.student).build(setting.base, seed=seed)
    black_box.fine_tune(
        student, rows, steps=setting.steps, batch=setting.batch, lr=setting.lr, seed=seed, say=lambda line: None
    )
    return student


def from_cask(setting: Setting, cask: str, seed: int) -> Any:
    """The student, trained on a cask's records by `logitcask train`'s trainer; recorded positions alone count."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            casks=(cask,),
            student=setting.student,
            teacher=setting.base,
            output=Path(folder) / "student",
            loss=setting.loss,
            max_steps=setting.steps,
            seq_len=128,
            packing="none",
            batch_tokens=128 * setting.batch,
            lr=setting.lr,
            warmup=0.1,
            seed=seed,
            precision="bfloat16",
            save_steps=10_000,
        )
        return transformers.AutoModelForCausalLM.from_pretrained(whole(train(config)), dtype=torch.float32)


def right_share(setting: Setting, student: Any) -> dict[str, float]:
    """Percent of held-out questions with a right answer, and with any."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(setting.base)
    problems = word_problems(setting.tests, seed=TEST_SEED, part="test")
    prompts = [black_box.chat_prompt(tokenizer, one.question) for one in problems]
    student = student.to(torch.bfloat16).eval()
    written = black_box.write(student, tokenizer, prompts, temperature=0.0, max_new_tokens=MAX_NEW_TOKENS)
    answers = [stated(tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
    right = sum(answer == one.answer for answer, one in zip(answers, problems, strict=True))
    return {
        "right": 100 * right / len(problems),
        "answered": 100 * sum(answer is not None for answer in answers) / len(problems),
    }


def stated(text: str) -> int | None:
    """The answer of a text: the number behind the marker, or the whole text where it is nothing but a number."""
    bare = text.strip().removesuffix(".")
    return int(bare) if bare.isdecimal() and len(bare) < 10 else answer_in(text)


def table(setting: Setting) -> None:
    """Means over seeds, and the differences from `checked` within a seed, with 95 % t-intervals."""
    by_arm: dict[str, dict[int, float]] = {}
    for run in finished(setting.runs):
        by_arm.setdefault(run["arm"], {})[int(run["seed"])] = float(run["right"])
    report = Report(f"{setting.name}.py", "torch", "transformers")
    who = setting.student if setting.student.startswith("from-teacher") else "all layers"
    note = f"{setting.steps} steps of {setting.batch}, lr {setting.lr:g}, {setting.tests} questions, {who}"
    for arm, seeds in by_arm.items():
        report.add("right answers", "%", list(seeds.values()), note, arm=arm, **interval(list(seeds.values())))
        shared = sorted(seeds.keys() & by_arm.get("checked", {}).keys())
        if arm != "checked" and shared:
            less = [by_arm["checked"][seed] - seeds[seed] for seed in shared]
            report.add("checked is better by", "points", less, note, arm=arm, **interval(less))
    report.write()


def _named(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not equals or not name or not place:
        raise argparse.ArgumentTypeError(f"expected ARM=PATH, got {text!r}")
    return name, place


def main() -> None:
    """Train every arm with every seed, then make the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=_named, action="append", default=[], metavar="ARM=PATH")
    parser.add_argument("--cask", type=_named, action="append", default=[], metavar="ARM=PATH")
    parser.add_argument("--rehearse", action="store_true", help="sample --teacher here, without a service")
    parser.add_argument("--teacher", type=Path, help="of --rehearse")
    parser.add_argument("--questions", type=int, default=240, help="of --rehearse")
    parser.add_argument("--temperature", type=float, default=0.7, help="of --rehearse")
    parser.add_argument("--base", type=Path, help="folder of SmolLM2-135M-Instruct (default: fetched)")
    parser.add_argument("--student", help="as `logitcask train` takes it, layers of --base (default: --base itself)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--loss", default="cross_entropy", help="of --cask")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="not of --cask")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--name", default="black_box_table", help="of the files with the results")
    parser.add_argument("--quick", action="store_true", help="one seed, two steps, four tests: does it run?")
    options = parser.parse_args()
    if options.rehearse != (options.teacher is not None) or options.rehearse == bool(options.corpus or options.cask):
        parser.error("give --corpus or --cask, or --rehearse with --teacher")
    if options.corpus and not {"checked", "unchecked"} <= dict(options.corpus).keys():
        parser.error("of corpora give checked=PATH and unchecked=PATH; the other arms are made of them unless given")
    if options.quick:
        options.steps, options.tests, options.questions, options.seeds = 2, 4, 40, options.seeds[:1]
        options.name += "_quick"
    base = options.base or fetch_model("smollm2-135m")
    setting = Setting(
        base=base,
        student=options.student or str(base),
        **{name: getattr(options, name) for name in ("steps", "batch", "lr", "tests", "loss", "name")},
    )
    corpora = {arm: black_box.read_examples(Path(path)) for arm, path in options.corpus}
    if options.rehearse:
        corpora["checked"], corpora["unchecked"] = rehearsed(options.teacher, options.questions, options.temperature)
    rows = {}
    if corpora:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        made = arms_of(tokenizer, corpora["checked"], corpora["unchecked"]) | corpora
        rows = {arm: made[arm] for arm in options.arms}
    casks = dict(options.cask)
    done = {(run["arm"], int(run["seed"])) for run in finished(setting.runs)}
    for seed in options.seeds:
        for arm in (*rows, *casks):
            if (arm, seed) in done:
                continue
            started = time.monotonic()
            student = from_rows(setting, rows[arm], seed) if arm in rows else from_cask(setting, casks[arm], seed)
            trained = time.monotonic()
            figures = {"arm": arm, "seed": seed, "rows": len(rows.get(arm, ())), **right_share(setting, student)}
            times = {"train_s": round(trained - started), "test_s": round(time.monotonic() - trained)}
            keep(setting.runs, {**figures, **times})
    table(setting)


if __name__ == "__main__":
    main()
