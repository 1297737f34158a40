"""The demonstration's steps. Each leaves a mark when it is done, so that a second run resumes instead of repeating."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import corpus

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the demonstration keeps things."""

    output: Path
    """Everything the demonstration writes."""
    teacher_bin: Path
    """Programs of the teacher's environment."""
    trainer_bin: Path
    """Programs of the trainer's environment."""

    @property
    def casks(self) -> Path:
        """The service's cask root."""
        return self.output / "casks"

    @property
    def student(self) -> Path:
        """The student, trained; with the student before training in its folder `initial`."""
        return self.output / "student"

    @property
    def report(self) -> Path:
        """The report."""
        return self.output / "report"


def say(text: str) -> None:
    """One line of the demonstration's story."""
    print(f"\n\033[1m==> {text}\033[0m" if sys.stdout.isatty() else f"\n==> {text}", flush=True)


def run(program: Path, *arguments: str | Path) -> None:
    """Run a command with its progress shown; its failure ends the demonstration."""
    print("   $", program.name, *arguments, flush=True)
    subprocess.run([str(program), *map(str, arguments)], check=True, cwd=ROOT)


def fetch_teacher(places: Places) -> Path:
    """Real weights of SmolLM2-135M, fetched and converted once."""
    folder = places.output / "teacher"
    run(places.teacher_bin / "python", "-m", "demo.fetch_teacher", "smollm2-135m", "--to", folder)
    return folder


def write_corpora(places: Places, tokens: int) -> dict[str, Path]:
    """The training and the held-out corpus, from this machine's standard library."""
    paths = {name: places.output / "corpus" / f"{name}.jsonl" for name in ("train", "heldout")}
    held_out = int(tokens * corpus.HELD_OUT_SHARE)
    for name, budget in (("train", tokens - held_out), ("heldout", held_out)):
        if not paths[name].exists():
            count = corpus.write(paths[name], budget, held_out=name == "heldout")
            print(f"   {paths[name]}: {count} documents")
    return paths


def free_port() -> int:
    """A port nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ready(url: str) -> bool:
    """Whether the service can capture."""
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@contextmanager
def service(places: Places, teacher: Path) -> Iterator[str]:
    """The teacher service, up and ready; stopped on leaving. Yields its address."""
    url_port = free_port()
    log_path = places.output / "service.log"
    command = [
        places.teacher_bin / "logitcask", "serve", "--teacher", teacher, "--cask-root", places.casks,
        "--data-dir", places.output / "service", "--port", url_port,
    ]  # fmt: skip
    url = f"http://127.0.0.1:{url_port}"
    print("   $", *map(str, command), f"> {log_path}", flush=True)
    with log_path.open("ab") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
        try:
            started = time.monotonic()
            while not ready(url):
                if process.poll() is not None or time.monotonic() - started > 600:
                    tail = log_path.read_text(errors="replace")[-3000:]
                    sys.exit(f"the teacher service did not get ready; the end of {log_path}:\n{tail}")
                time.sleep(1)
            print(f"   the teacher was ready after {time.monotonic() - started:.0f} s at {url}")
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def capture(places: Places, teacher: Path, corpora: dict[str, Path]) -> None:
    """Every position's record into two casks; skipped where both were completed before."""
    marks = {name: places.output / f"captured-{name}.json" for name in corpora}
    if all(mark.exists() for mark in marks.values()):
        print("   both casks were captured before; the teacher is not started")
        return
    with service(places, teacher) as url:
        for name, path in corpora.items():
            # With the key, a second run joins the extraction that an interrupted one began.
            command = [
                places.teacher_bin / "logitcask", "submit", path, "--cask", name, "--server", url, "--tau", "0.05",
                "--idempotency-key", f"demo-{name}", "--wait", "--json", *(["--held-out"] if name == "heldout" else []),
            ]  # fmt: skip
            print("   $", *map(str, command), flush=True)
            answer = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
            marks[name].write_text(answer.stdout)


def train(places: Places, teacher: Path, *options: str) -> None:
    """Two thirds of every layer of the teacher, trained in an environment without vLLM, no teacher in memory."""
    run(
        places.trainer_bin / "logitcask", "train", "--cask", places.casks / "train", "--teacher", teacher,
        "--student", "from-teacher:heads=6,mlp=1024,tokens=4096", "--epochs", "1", "--lr", "2.5e-4",
        "--output", places.student, "--save-steps", "25", *options,
    )  # fmt: skip


def report(places: Places) -> dict[str, Any]:
    """The student before and after, against the teacher's records of documents it never saw."""
    run(
        places.trainer_bin / "logitcask", "report", "--cask", places.casks / "heldout",
        "--model", f"before={places.student / 'initial'}", "--model", f"after={places.student}",
        "--train-log", f"after={places.student}", "--output", places.report,
    )  # fmt: skip
    loaded: dict[str, Any] = json.loads((places.report / "report.json").read_text())
    return loaded
