"""`make demo`: the whole line on this machine. Nothing here that a user would not type; see `demo.steps`."""

import os
import subprocess
import sys
import time
from pathlib import Path

from demo import corpus, steps

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run every step, say what each leaves behind, end with the report's table."""
    os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})  # nothing may reach for a hub
    places = steps.Places(
        output=ROOT / "demo-output",
        teacher_bin=ROOT / ".venv" / "teacher" / "bin",
        trainer_bin=ROOT / ".venv" / "trainer" / "bin",
    )
    started = time.monotonic()
    places.output.mkdir(exist_ok=True)

    steps.say("1/5 a teacher: SmolLM2-135M, real weights")
    teacher = steps.fetch_teacher(places)
    steps.say("2/5 a corpus: docstrings and sources of this machine's standard library, a seventh held out")
    corpora = steps.write_corpora(places, corpus.TOKEN_BUDGET)
    steps.say("3/5 capture: the teacher service on vLLM reads it once")
    steps.capture(places, teacher, corpora)
    steps.say("4/5 train: two thirds of the heads and channels of every layer, from the cask alone")
    steps.train(places, teacher)
    steps.say("5/5 report: on the held-out documents")
    steps.report(places)

    print((places.report / "report.md").read_text())
    print(f"finished in {(time.monotonic() - started) / 60:.1f} minutes")
    for what, where in (
        ("teacher", teacher),
        ("casks", places.casks),
        ("student", places.student),
        ("report and plots", places.report),
        ("service log", places.output / "service.log"),
    ):
        print(f"  {what:<18}{where}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failure:
        sys.exit(f"stopped: `{' '.join(map(str, failure.cmd))}` ended with exit status {failure.returncode}")
    except KeyboardInterrupt:
        sys.exit("interrupted; `make demo` goes on from here")
