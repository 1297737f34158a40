"""A teacher that can do the word problems: SmolLM2-135M-Instruct, fine-tuned on a few hundred of them with reasoning.

The model as it comes is measured, too, with --measure-base. All its weights are trained for a dozen steps on rule-made
rationales of problems whose numbers come neither in what students train on nor in tests. It is right mostly, not
always, and more often wrong at a higher temperature: what a check of its samples is for must be there to find.

    python bench/word_problem_teacher.py --to models/teacher-words

Figures: share of right answers on held-out questions, greedy and at temperature 0.7, with 95 % Wilson intervals.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

sys.path.append(str(Path(__file__).resolve().parent.parent))
import black_box
from demo.fetch_teacher import fetch_model
from report import Report
from word_problems import WordProblem, answer_in, word_problems

MAX_NEW_TOKENS = 64
"""Rationales have up to 47."""
TRAIN_SEED, TEST_SEED = 11, 12


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, share = 1.96, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return middle - half, middle + half


def right_answers(model: Any, tokenizer: Any, problems: Sequence[WordProblem], temperature: float) -> list[bool]:
    """Whether each problem's written answer is right; texts without one are wrong."""
    prompts = [black_box.chat_prompt(tokenizer, one.question) for one in problems]
    written = black_box.write(model, tokenizer, prompts, temperature=temperature, max_new_tokens=MAX_NEW_TOKENS)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
    for one, text in list(zip(problems, texts, strict=True))[:3]:
        print(f"  {one.question!r} -> {text!r}", flush=True)
    return [answer_in(text) == one.answer for one, text in zip(problems, texts, strict=True)]


def main() -> None:
    """Train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, help="folder of SmolLM2-135M-Instruct (default: fetched)")
    parser.add_argument("--to", type=Path, required=True, help="folder for the teacher")
    parser.add_argument("--problems", type=int, default=160)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs=1, default=[1], help="of the order of the problems")
    parser.add_argument("--measure-base", action="store_true", help="measure the model before it is trained, too")
    parser.add_argument("--quick", action="store_true", help="two steps, four tests: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.tests = 2, 4
    base = options.base or fetch_model("smollm2-135m")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    report = Report(__file__, "torch", "transformers")
    tests = word_problems(options.tests, seed=TEST_SEED, part="test")

    def measure(who: str, note: str) -> None:
        for temperature in (0.0, 0.7):
            right = right_answers(model, tokenizer, tests, temperature)
            low, high = (f"{100 * bound:.1f}" for bound in wilson(sum(right), len(right)))
            labels = {"model": who, "temperature": temperature, "low": low, "high": high}
            report.add("right answers", "%", [100 * sum(right) / len(right)], note, **labels)

    if options.measure_base:
        measure("SmolLM2-135M-Instruct", f"{options.tests} held-out questions")
    train = word_problems(options.problems, seed=TRAIN_SEED, part="teacher")
    examples = [black_box.example(tokenizer, one.question, one.rationale) for one in train]
    started = time.monotonic()
    black_box.fine_tune(
        model, examples, steps=options.steps, batch=options.batch, lr=options.lr, seed=options.seeds[0], say=_say
    )
    seconds = time.monotonic() - started
    model.save_pretrained(options.to)
    tokenizer.save_pretrained(options.to)
    note = (
        f"{options.tests} held-out questions; all weights, {options.steps} steps of {options.batch} of "
        f"{options.problems} problems, lr {options.lr:g}, {seconds:.0f} s"
    )
    measure("fine-tuned", note)
    if not options.quick:
        report.write()


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
