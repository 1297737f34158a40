"""On-policy rounds against the same steps offline, and against online distillation with the teacher in memory.

Teacher: SmolLM2-135M-Instruct behind the service. Student: ten of its layers, trained on the standard library's text
(`start`; --start names another, such as the demonstration's). From there, with equal steps, batches and learning rate:

* `offline`: `logitcask train`, forward KL on the corpus's own continuations of the prompts (the control);
* `rounds lambda=1`: `logitcask rounds --recipe gkd`, JS at 1/2 on the student's texts alone;
* `rounds lambda=0.5`: half of every step from the offline control's cask, with its loss.

Measured densely, with both models at hand: KL(p || t) and acceptance (sum of min(t, p)) on texts that the student
writes after held-out prompts, and KL(t || p) on held-out text. Then where a round's time goes; trained tokens per
second of a round and of `online`, a plain loop that samples, asks a teacher in the same process and steps (36 texts a
step like the rounds); and the peak memory of each process.

    python bench/rounds_table.py [--quick] [--seeds 1 2 3] [--start STUDENT] [--folder WORK]

Each part leaves its result in the work folder, and a second call goes on behind the last one. The teacher's
environment is asked for with --teacher-python; --engine transformers does without vLLM.

Shape legend: B texts, S tokens, P positions, V vocabulary.
"""

import argparse
import gc
import json
import math
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
import transformers
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))
from demo import corpus
from demo.fetch_teacher import fetch_model
from logitcask_consumer.config import TrainConfig
from logitcask_consumer.rounds.config import RoundsConfig
from logitcask_consumer.rounds.driver import run_rounds
from logitcask_consumer.rounds.sampler import Sampling, ends_of, pad_of, write_chunk
from logitcask_consumer.training.run import train
from logitcask_schemas.api.client import ServiceClient
from logitcask_schemas.api.requests import ExtractionRequest
from logitcask_schemas.record.capture_spec import CaptureSpec
from report import Report

ROOT: Final = Path(__file__).resolve().parent.parent
PROMPT: Final = 32
"""Tokens of a prompt."""
NEW: Final = 64
"""Tokens behind it."""
SEQUENCE: Final = PROMPT + NEW
"""Slots of a training sequence: one text."""
LR: Final = 1e-4
MICRO: Final = 18 * SEQUENCE


class Written(Protocol):
    """A text, and which of its positions are asked for."""

    @property
    def input_ids(self) -> list[int]:
        """Token ids."""

    @property
    def recorded(self) -> list[int]:
        """Positions [start, stop)."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A text of which all positions are asked for."""

    input_ids: list[int]

    @property
    def recorded(self) -> list[int]:
        """All."""
        return [0, len(self.input_ids) - 1]


def load(folder: Path) -> Any:
    """A model in float32, to be measured."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]


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
            waiting += map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    return total


# Parts, each in a process of its own


def part_start(job: dict[str, Any]) -> dict[str, Any]:
    """The student that all begin with."""
    train(
        TrainConfig(
            casks=(job["cask"],),
            student="from-teacher:layers=10",
            teacher=Path(job["teacher"]),
            output=Path(job["output"]),
            epochs=job["epochs"],
            seq_len=256,
            micro_tokens=2048,
            seed=0,
            precision="float32",
        )
    )
    return {}


def part_offline(job: dict[str, Any]) -> dict[str, Any]:
    """The control: equal steps on the corpus's continuations."""
    began = time.monotonic()
    train(
        TrainConfig(
            casks=(job["cask"],),
            student=job["start"],
            output=Path(job["output"]),
            loss="forward_kl",
            max_steps=job["rounds"] * job["steps"],
            seq_len=SEQUENCE,
            batch_tokens=job["batch"] * SEQUENCE,
            micro_tokens=MICRO,
            lr=LR,
            seed=job["seed"],
            precision="float32",
            save_steps=10_000,
        )
    )
    return {"seconds": time.monotonic() - began}


def part_rounds(job: dict[str, Any]) -> dict[str, Any]:
    """Rounds; a second call goes on with them."""
    result = run_rounds(
        RoundsConfig(
            recipe="gkd",
            prompts=Path(job["prompts"]),
            student=job["start"],
            server=job["url"],
            output=Path(job["output"]),
            cask_root=job["cask_root"],
            casks=(job["cask"],) if job["share"] < 1 else (),
            share=job["share"],
            fixed_loss="forward_kl",
            rounds=job["rounds"],
            steps_per_round=job["steps"],
            prompts_per_round=job["batch"] * job["steps"],
            max_new_tokens=NEW,
            sample_batch=job["batch"],
            max_looping=1.0,
            seq_len=SEQUENCE,
            batch_tokens=job["batch"] * SEQUENCE,
            micro_tokens=MICRO,
            lr=LR,
            seed=job["seed"],
            precision="float32",
            save_steps=10_000,
        ),
        say=print,
    )
    if result.stopped:
        raise SystemExit("a signal ended the rounds; the same command goes on")
    lines = [json.loads(line) for line in (Path(job["output"]) / "metrics.jsonl").read_text().splitlines()]
    seconds = {
        stage: sum(own.seconds[stage] for own in result.state.rounds) for stage in ("sample", "capture", "train")
    }
    written = sum(own.sampled.tokens for own in result.state.rounds if own.sampled is not None)
    return {"seconds": seconds, "written": written, "trained": sum(line["positions"] for line in lines)}


def part_online(job: dict[str, Any]) -> dict[str, Any]:
    """Online distillation by a plain loop: sample, ask the teacher here, step."""
    student, teacher = load(Path(job["start"])), load(Path(job["teacher"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["start"])
    prompts = [json.loads(line)["input_ids"] for line in Path(job["prompts"]).read_text().splitlines()]
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    ends, pad, batch = ends_of(student, tokenizer), pad_of(tokenizer), job["batch"]
    tokens, began = 0, time.monotonic()
    for step in range(job["steps"]):
        chosen = [(at, prompts[at % len(prompts)]) for at in range(step * batch, (step + 1) * batch)]
        texts = write_chunk(student, chosen, Sampling(max_new_tokens=NEW), seed=step, ends=ends, pad=pad)
        student.train()
        total = sum(text.sampled for text in texts)
        for first in range(0, batch, 18):
            own = texts[first : first + 18]
            logp_PV, logt_PV = (log_probabilities(model, own) for model in (student, teacher))
            torch.autograd.backward(js_of(logt_PV, logp_PV).sum() / total)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += total
    return {"seconds": time.monotonic() - began, "trained": tokens}


def log_probabilities(model: Any, texts: Sequence[Written]) -> Tensor:
    """Log-probabilities at all positions of some texts that are asked for, float32 [P, V]; a graph in training only."""
    with torch.set_grad_enabled(model.training):
        ids_BS = torch.nn.utils.rnn.pad_sequence([torch.tensor(text.input_ids) for text in texts], batch_first=True)
        # What fills a text up stands behind it, where nothing before it looks.
        hidden_BSD = model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
        hidden_PD = torch.cat([own_SD[slice(*text.recorded)] for own_SD, text in zip(hidden_BSD, texts, strict=True)])
        logits_PV: Tensor = model.get_output_embeddings()(hidden_PD)
        logprobs_PV: Tensor = logits_PV.float().log_softmax(-1)
    return logprobs_PV


def js_of(logt_PV: Tensor, logp_PV: Tensor) -> Tensor:
    """Jensen-Shannon divergence at 1/2, [P]."""
    logm_PV = torch.logaddexp(logt_PV, logp_PV) - math.log(2.0)
    divergence_P: Tensor = 0.5 * (logt_PV.exp() * (logt_PV - logm_PV) + logp_PV.exp() * (logp_PV - logm_PV)).sum(-1)
    return divergence_P


def part_measure(job: dict[str, Any]) -> dict[str, Any]:
    """What a student is worth: on texts of its own after held-out prompts, and on held-out text."""
    student, teacher = load(Path(job["student"])), load(Path(job["teacher"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["teacher"])
    held = [json.loads(line)["input_ids"] for line in Path(job["held"]).read_text().splitlines()]
    sums: dict[str, list[float]] = {name: [] for name in ("own_kl", "own_acceptance", "held_kl", "held_acceptance")}
    ends, pad, size = ends_of(student, tokenizer), pad_of(tokenizer), 36
    for first in range(0, len(held), size):
        prompts = [(at, ids[:PROMPT]) for at, ids in enumerate(held[first : first + size])]
        texts = write_chunk(student, prompts, Sampling(max_new_tokens=NEW), seed=first, ends=ends, pad=pad)
        for text in texts:
            logp, logt = log_probabilities(student, [text]), log_probabilities(teacher, [text])
            sums["own_kl"] += (logp.exp() * (logp - logt)).sum(-1).tolist()
            sums["own_acceptance"] += torch.minimum(logp, logt).exp().sum(-1).tolist()
    for ids in held:
        whole = Whole(input_ids=ids)
        logp, logt = log_probabilities(student, [whole]), log_probabilities(teacher, [whole])
        sums["held_kl"] += (logt.exp() * (logt - logp)).sum(-1).tolist()
        sums["held_acceptance"] += torch.minimum(logp, logt).exp().sum(-1).tolist()
    return {name: float(np.mean(values)) for name, values in sums.items()}


PARTS: Final = {
    "start": part_start,
    "offline": part_offline,
    "rounds": part_rounds,
    "online": part_online,
    "measure": part_measure,
}


def run_part(path: Path) -> None:
    """Do what a job's file says; its result with the peak memory of this process stands beside it."""
    job = json.loads(path.read_text())
    result = PARTS[job["part"]](job)
    gc.collect()
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    partial.rename(path.with_suffix(".result"))


def part(options: argparse.Namespace, name: str, kind: str, **job: Any) -> dict[str, Any]:
    """The result of a part, which is made unless it is there."""
    path = options.folder / "parts" / f"{name}.json"
    if not path.with_suffix(".result").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"part": kind, **job}, default=str))
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, __file__, "--run-part", str(path)], check=True, env=os.environ)
    result: dict[str, Any] = json.loads(path.with_suffix(".result").read_text())
    return result


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and a few steps: shows that it works, no more")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of a round")
    parser.add_argument("--batch", type=int, default=36, help="texts of a step")
    parser.add_argument("--held-out", type=int, default=144, help="documents to measure on")
    parser.add_argument("--tokens", type=int, default=100_000, help="of the text that `start` is trained on")
    parser.add_argument("--start", type=Path, help="a student's folder, instead of training one")
    parser.add_argument("--folder", type=Path, default=ROOT / "demo-output" / "rounds-table")
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--teacher-python", type=Path, default=ROOT / ".venv" / "teacher" / "bin" / "python")
    parser.add_argument("--run-part", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.rounds, options.steps, options.batch = options.seeds[:1], 2, 2, 6
        options.held_out, options.tokens = 6, 2_000
    options.folder = options.folder.absolute() / ("quick" if options.quick else "full")
    return options


def main() -> None:
    """Make all parts, then write the table."""
    options = arguments()
    if options.run_part is not None:
        run_part(options.run_part)
        return
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
    report = Report(__file__, "torch", "transformers", "logitcask")
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
        students: dict[str, list[Path]] = {
            "start": [start],
            "offline": [],
            "rounds lambda=1": [],
            "rounds lambda=0.5": [],
        }
        for seed in options.seeds:
            output = folder / f"offline-{seed}"
            part(options, output.name, "offline", **common, seed=seed, output=output)
            students["offline"].append(output)
            for share in (1.0, 0.5):
                output = folder / f"rounds-{share:g}-{seed}"
                made.append(
                    part(options, output.name, "rounds", **common, seed=seed, share=share, output=output, url=url)
                )
                students[f"rounds lambda={share:g}"].append(output)
        kept = folder / "service-peak.json"  # of the calls before: one that only goes on asks little of the service
        service_peak = max(peak_of(pid), int(json.loads(kept.read_text())) if kept.exists() else 0)
        kept.write_text(json.dumps(service_peak))
    online = part(options, "online", "online", **common)
    for name, folders in students.items():
        measured = [part(options, f"measure-{own.name}", "measure", **common, student=own) for own in folders]
        for metric, unit in (("own_kl", "nats"), ("own_acceptance", ""), ("held_kl", "nats"), ("held_acceptance", "")):
            report.add(metric, unit, [values[metric] for values in measured], student=name)
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
    if options.quick:
        print("a quick run writes no results")
    else:
        report.write()


if __name__ == "__main__":
    main()
