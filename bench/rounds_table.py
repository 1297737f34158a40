"""On-policy rounds against the same steps offline, and against online distillation with the teacher in memory.

Teacher: SmolLM2-135M-Instruct behind the service. Student: ten of its layers, trained on the standard library's text
(`start`; --start names another, such as the demonstration's). From there, with equal steps, batches and learning rate:

* `offline`: `logitcask train`, forward KL on the corpus's own continuations of the prompts (the control);
* `rounds lambda=1`: `logitcask rounds --recipe gkd`, JS at 1/2 on the student's texts alone;
* `rounds lambda=0.5`: half of every step from the offline control's cask, with its loss.

Measured densely, with both models at hand: KL(p || t) and acceptance (sum of min(t, p)) on texts that the student
writes after held-out prompts, and KL(t || p) on held-out text. Then where a round's time goes; trained tokens per
second of a round and of `online`, a plain loop that samples, asks a teacher in the same process and steps (36 texts a
step like the rounds); and the peak memory of each process (`results/rounds_pace.csv`).

    python bench/rounds_table.py [--quick] [--seeds 1 2 3] [--start STUDENT] [--folder WORK] [--without-pace]

Each part leaves its result in the work folder, and a second call goes on behind the last one. The teacher's
environment is asked for with --teacher-python; --engine transformers does without vLLM.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import transformers

sys.path.append(str(Path(__file__).resolve().parent.parent))
from demo import corpus
from demo.fetch_teacher import fetch_model
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_schemas.record.capture_spec import CaptureSpec
from report import Report
from rounds_parts import PROMPT, SEQUENCE

ROOT: Final = Path(__file__).resolve().parent.parent


def pieces(tokenizer: Any, count: int, *, held_out: bool) -> list[list[int]]:
    """The first tokens of documents of the standard library, one prompt and one continuation long."""
    chosen = list[list[int]]()
    for text in corpus.documents(held_out=held_out):
        ids = tokenizer(text).input_ids[:SEQUENCE]
        if len(ids) == SEQUENCE:
            chosen.append(ids)
        if len(chosen) == count:
            return chosen
    raise SystemExit(f"expected {count} documents of {SEQUENCE} tokens, the standard library gives {len(chosen)}")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# The service


@contextmanager
def service(options: argparse.Namespace, teacher: Path) -> Iterator[tuple[str, int]]:
    """The teacher service, up and ready; its URL and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "import sys; from logitcask_schemas.cli.main import main; main(sys.argv[1:])"
    command = [
        options.teacher_python, "-c", program, "serve", "--teacher", teacher, "--cask-root", options.folder / "casks",
        "--data-dir", options.folder / "service", "--port", port, "--engine", options.engine,
    ]  # fmt: skip
    url, log_path = f"http://127.0.0.1:{port}", options.folder / "service.log"
    with log_path.open("ab") as log, subprocess.Popen(list(map(str, command)), stdout=log, stderr=log) as process:
        try:
            while not is_ready(url):
                if process.poll() is not None:
                    raise SystemExit(f"the service ended; see {log_path}")
                time.sleep(1)
            yield url, process.pid
        finally:
            process.terminate()


def is_ready(url: str) -> bool:
    """Whether the service can capture."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def capture(url: str, lines: Path, cask: str) -> None:
    """A cask of a corpus, unless it is there."""
    with ServiceClient(url) as client:
        request = ExtractionRequest(
            corpus_id=client.upload(lines).id, cask=cask, capture=CaptureSpec(tail_logprobs=True)
        )
        job = client.submit(request, idempotency_key=f"bench-{cask}")
        for _ in client.follow(job.id):
            pass
        if (ended := client.extraction(job.id)).status != "completed":
            raise SystemExit(f"expected a cask {cask}, its extraction has {ended.status}: {ended.error}")


def peak_of(pid: int) -> int:
    """Bytes: the sum of what a process and its children had in memory at most."""
    total, waiting = 0, [pid]
    while waiting:
        own = waiting.pop()
        try:
            status = Path(f"/proc/{own}/status").read_text()
            for thread in Path(f"/proc/{own}/task").iterdir():  # an engine is a child of the thread that loaded it
                waiting += map(int, (thread / "children").read_text().split())
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    return total


def part(options: argparse.Namespace, name: str, kind: str, **job: Any) -> dict[str, Any]:
    """The result of a part, which is made unless it is there."""
    path = options.folder / "parts" / f"{name}.json"
    if not path.with_suffix(".result").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"part": kind, **job}, default=str))
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, Path(__file__).with_name("rounds_parts.py"), path], check=True, env=os.environ)
    result: dict[str, Any] = json.loads(path.with_suffix(".result").read_text())
    return result


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and a few steps: shows that it works, no more")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5], help="lambda of each kind of rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a round")
    parser.add_argument("--batch", type=int, default=36, help="texts of a step")
    parser.add_argument("--held-out", type=int, default=144, help="documents to measure on")
    parser.add_argument("--tokens", type=int, default=100_000, help="of the text that `start` is trained on")
    parser.add_argument("--start", type=Path, help="a student's folder, instead of training one")
    parser.add_argument("--name", default="rounds_table", help="of the file with the students' figures")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo-output" / "rounds-table")
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--teacher-python", type=Path, default=ROOT / ".venv" / "teacher" / "bin" / "python")
    parser.add_argument("--without-pace", action="store_true", help="students alone: the machine has other work")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.rounds, options.steps, options.batch = options.seeds[:1], 2, 2, 6
        options.held_out, options.tokens = 6, 2_000
    options.folder = options.folder.absolute() / ("quick" if options.quick else "full")
    return options


def main() -> None:
    """Make all parts, then write the table."""
    options = arguments()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    teacher = fetch_model("smollm2-135m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(teacher)
    texts = pieces(tokenizer, options.rounds * options.steps * options.batch, held_out=False)
    held = write_lines(
        folder / "held.jsonl", [{"input_ids": ids} for ids in pieces(tokenizer, options.held_out, held_out=True)]
    )
    prompts = write_lines(folder / "prompts.jsonl", [{"input_ids": ids[:PROMPT]} for ids in texts])
    fixed = write_lines(
        folder / "fixed.jsonl", [{"input_ids": ids, "recorded": [[PROMPT - 1, SEQUENCE - 1]]} for ids in texts]
    )
    with service(options, teacher) as (url, pid):
        capture(url, fixed, "fixed")
        start = options.start
        if start is None:
            corpus.write(folder / "start.jsonl", options.tokens, held_out=False)
            capture(url, folder / "start.jsonl", "start")
            start = folder / "start"
            part(
                options, "start", "start", cask=folder / "casks/start", teacher=teacher, output=start,
                epochs=3.0,
            )  # fmt: skip
        common = {
            "start": str(start), "cask": str(folder / "casks/fixed"), "rounds": options.rounds, "steps": options.steps,
            "batch": options.batch, "teacher": str(teacher), "held": str(held), "prompts": str(prompts),
            "cask_root": str(folder / "casks"),
        }  # fmt: skip
        made = list[dict[str, Any]]()
        students: dict[str, list[Path]] = {"start": [start], "offline": []}
        for seed in options.seeds:
            output = folder / f"offline-{seed}"
            part(options, output.name, "offline", **common, seed=seed, output=output)
            students["offline"].append(output)
            for share in options.shares:
                output = folder / f"rounds-{share:g}-{seed}"
                made.append(
                    part(options, output.name, "rounds", **common, seed=seed, share=share, output=output, url=url)
                )
                students.setdefault(f"rounds lambda={share:g}", []).append(output)
        kept = folder / "service-peak.json"  # of the calls before: one that only goes on asks little of the service
        service_peak = max(peak_of(pid), int(json.loads(kept.read_text())) if kept.exists() else 0)
        kept.write_text(json.dumps(service_peak))
    reports = [tell_students(options, students, common)]
    if not options.without_pace:
        reports.append(tell_pace(made, part(options, "online", "online", **common), service_peak))
    if options.quick:
        print("a quick run writes no results")
        return
    for report in reports:
        report.write()


def tell_students(options: argparse.Namespace, students: dict[str, list[Path]], common: dict[str, Any]) -> Report:
    """What every student became, measured with both models at hand; folders are in the order of the seeds."""
    report = Report(f"{options.name}.py", "torch", "transformers", "logitcask")
    note = f"{options.rounds} rounds of {options.steps} steps of {options.batch} texts"
    measured = {
        name: [part(options, f"measure-{own.name}", "measure", **common, student=own) for own in folders]
        for name, folders in students.items()
    }
    for name, figures in measured.items():
        for metric, unit in (("own_kl", "nats"), ("own_acceptance", ""), ("held_kl", "nats"), ("held_acceptance", "")):
            report.add(metric, unit, [values[metric] for values in figures], note, student=name)
    [start] = measured["start"]
    for name in [name for name in measured if name != "start"]:
        ratios = [values["own_kl"] / start["own_kl"] for values in measured[name]]
        report.add("own_kl over that of start", "ratio", ratios, note, student=name)
        over = [
            values["held_kl"] - offline["held_kl"]
            for values, offline in zip(measured[name], measured["offline"], strict=True)
        ]
        report.add("held_kl less that of offline", "nats", over, note, student=name)
    return report


def tell_pace(made: list[dict[str, Any]], online: dict[str, Any], service_peak: int) -> Report:
    """Where the time of rounds went, and what they cost beside online distillation."""
    report = Report("rounds_pace.py", "torch", "transformers", "logitcask")
    for stage in ("sample", "capture", "train"):
        shares = [own["seconds"][stage] / sum(own["seconds"].values()) for own in made]
        report.add(f"share of a round's time: {stage}", "", shares, student="rounds")
    paces = [own["trained"] / sum(own["seconds"].values()) for own in made]
    pace = report.add("trained tokens per second", "1/s", paces, student="rounds")
    online_pace = report.add(
        "trained tokens per second", "1/s", [online["trained"] / online["seconds"]], student="online"
    )
    report.add("pace of rounds over online", "", [pace / online_pace], student="rounds")
    report.add("peak memory of the trainer", "GB", [own["peak"] / 1e9 for own in made], student="rounds")
    report.add("peak memory of the service", "GB", [service_peak / 1e9], student="rounds")
    report.add("peak memory of the trainer", "GB", [online["peak"] / 1e9], student="online")
    return report


if __name__ == "__main__":
    main()
