"""Sequence-level distillation: a student of the teacher's texts against a student of the corpus's own texts.

Prompts are first sentences of docstrings of the standard library, held out by module. The teacher goes on from them
greedily (SmolLM2-135M-Instruct as it comes); the corpus with the docstring's next words, as many tokens. Both
students are the same layers of the teacher, trained with the cross-entropy of the continuation for the same steps:

* `teacher`: on what the teacher wrote (SeqKD, Kim & Rush 2016, arXiv:1606.07947);
* `corpus`: on what the docstring says.

Measured is ROUGE-L (F1, `rouge_score`) of the student's greedy text to the teacher's, on held-out prompts; `before` is
the student that was not trained. As a control the trained students' texts are also compared with the teacher's texts
for other prompts: what is left there is the manner alone.

    python bench/seqkd_table.py [--student from-teacher:layers=20] [--seeds 1 2 3]
"""

import argparse
import ast
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from rouge_score.rouge_scorer import RougeScorer

sys.path.append(str(Path(__file__).resolve().parent.parent))
import black_box
from black_box import Example
from demo import corpus
from demo.fetch_teacher import fetch_model
from logitcask_consumer.student.students import StudentSpec
from report import Report
from seed_runs import interval

MIN_WORDS: Final = 5
"""Of a first sentence."""


def docstrings(*, held_out: bool) -> Iterator[tuple[str, str]]:
    """(first sentence, what follows it) of the training or the held-out modules, each sentence once, in hash order."""
    found: dict[str, str] = {}
    for path in corpus.module_files():
        if (corpus.digest(path.name) / 2**64 < corpus.HELD_OUT_SHARE) != held_out:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                sentence = re.match(r"[A-Z][^.\n]*\.(?=\s)", text)
                if sentence and len(sentence[0].split()) >= MIN_WORDS:
                    found.setdefault(sentence[0], text[sentence.end() :].strip())
    yield from sorted(found.items(), key=lambda item: corpus.digest(item[0]))


def chosen(tokenizer: Any, count: int, length: int, *, held_out: bool) -> tuple[list[tuple[int, ...]], list[Example]]:
    """Prompts, and with each the docstring's next `length` tokens.

    Raises:
        ValueError: there are not so many docstrings that long.
    """
    rows = []
    for sentence, rest in docstrings(held_out=held_out):
        prompt = tuple(tokenizer(sentence + "\n\n", add_special_tokens=False).input_ids)
        following = tuple(tokenizer(rest, add_special_tokens=False).input_ids[:length])
        if len(following) == length:
            rows.append(Example(prompt_ids=prompt, completion_ids=following))
        if len(rows) == count:
            return [row.prompt_ids for row in rows], rows
    raise ValueError(f"expected {count} docstrings with {length} tokens behind the first sentence, found {len(rows)}")


def texts(tokenizer: Any, written: Sequence[tuple[int, ...]]) -> list[str]:
    """What was written, as text."""
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in written]


def rouge_l(scorer: Any, references: Sequence[str], written: Sequence[str]) -> float:
    """ROUGE-L F1 in percent, mean over texts."""
    pairs = zip(references, written, strict=True)
    return 100 * float(np.mean([scorer.score(reference, text)["rougeL"].fmeasure for reference, text in pairs]))


def measure(options: argparse.Namespace, teacher: Path, report: Report) -> None:
    """Let the teacher write, train with every seed, and note every figure."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(teacher)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    prompts, from_corpus = chosen(tokenizer, options.prompts, options.length, held_out=False)
    held, from_held = chosen(tokenizer, options.held_out, options.length, held_out=True)

    def write(model: Any, asked: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return black_box.write(model, tokenizer, asked, temperature=0.0, max_new_tokens=options.length)

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16).eval()  # type: ignore[no-untyped-call]
    started = time.monotonic()
    written = write(model, prompts)
    references = texts(tokenizer, write(model, held))
    print(f"the teacher wrote for {time.monotonic() - started:.0f} s; such as {references[0]!r}", flush=True)
    del model
    arms = {
        "teacher": [Example(prompt_ids=p, completion_ids=ids) for p, ids in zip(prompts, written, strict=True)],
        "corpus": from_corpus,
    }
    note = (
        f"{options.prompts} prompts, {options.steps} steps of {options.batch}, lr {options.lr:g}, "
        f"{options.length} tokens, {options.student}, {options.held_out} held-out prompts"
    )
    docs = texts(tokenizer, [row.completion_ids for row in from_held])
    report.add("ROUGE-L", "%", [rouge_l(scorer, references, docs)], note, student="the docstrings themselves")
    found: dict[str, list[float]] = {name: [] for name in arms}
    others: dict[str, list[float]] = {name: [] for name in arms}
    for seed in options.seeds:
        for name, rows in arms.items():
            started = time.monotonic()
            student = StudentSpec.parse(options.student).build(teacher, seed=seed)
            if name == "teacher" and seed == options.seeds[0]:
                before = texts(tokenizer, write(student.eval(), held))
                report.add("ROUGE-L", "%", [rouge_l(scorer, references, before)], note, student="before")
            black_box.fine_tune(
                student, rows, steps=options.steps, batch=options.batch, lr=options.lr, seed=seed, say=lambda line: None
            )
            said = texts(tokenizer, write(student.to(torch.bfloat16), held))
            found[name].append(rouge_l(scorer, references, said))
            others[name].append(rouge_l(scorer, references[1:] + references[:1], said))
            print(f"seed {seed}, {name}: {found[name][-1]:.1f} %, {time.monotonic() - started:.0f} s", flush=True)
            print(f"  such as {said[0]!r}", flush=True)
    for name, values in found.items():
        report.add("ROUGE-L", "%", values, note, student=name, **interval(values))
        report.add("ROUGE-L to other texts", "%", others[name], note, student=name, **interval(others[name]))
    more = [seqkd - own for seqkd, own in zip(found["teacher"], found["corpus"], strict=True)]
    report.add("SeqKD is nearer by", "points", more, note, student="teacher - corpus", **interval(more))


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder (default: SmolLM2-135M-Instruct, fetched)")
    parser.add_argument("--student", default="from-teacher:layers=20", help="as `logitcask train` takes it")
    parser.add_argument("--prompts", type=int, default=320)
    parser.add_argument("--length", type=int, default=40, help="tokens behind a prompt")
    parser.add_argument("--held-out", type=int, default=50, help="prompts")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--quick", action="store_true", help="one seed, two steps, few prompts: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.prompts, options.held_out, options.length = 2, 8, 4, 16
        options.seeds = options.seeds[:1]
    report = Report(__file__, "torch", "transformers", "rouge-score")
    measure(options, options.teacher or fetch_model("smollm2-135m"), report)
    if not options.quick:
        report.write()


if __name__ == "__main__":
    main()
