"""Run every benchmark in the environment it needs: `make bench`.

Each benchmark is a file of its own with a module docstring that says what it measures; it appends rows to
`bench/results/<name>.csv` with machine, versions and p20/p50/p80. The prefix of its name picks the environment.
"""

import argparse
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent
SIDES = {
    "capture": "teacher",
    "fleet": "teacher",
    "service": "teacher",
    "generation": "teacher",
    "cask": "trainer",
    "reader": "trainer",
    "train": "trainer",
    "toy": "trainer",
    "noise": "trainer",
    "store": "trainer",
}


def benchmarks() -> list[tuple[Path, str]]:
    """Benchmark files with the side they run on, in a fixed order."""
    found = [(path, path.stem.split("_")[0]) for path in sorted(BENCH.glob("*.py"))]
    return [(path, SIDES[prefix]) for path, prefix in found if prefix in SIDES]


def main() -> None:
    """Run all, or those named; a failing benchmark does not keep the others from running."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, required=True, help="python of the teacher's environment")
    parser.add_argument("--trainer", type=Path, required=True, help="python of the trainer's environment")
    parser.add_argument("names", nargs="*", help="file names without .py (default: all)")
    arguments = parser.parse_args()
    pythons = {"teacher": arguments.teacher, "trainer": arguments.trainer}
    failed = []
    for path, side in benchmarks():
        if arguments.names and path.stem not in arguments.names:
            continue
        print(f"== {path.stem} ({side})", flush=True)
        if subprocess.run([str(pythons[side]), str(path)], cwd=BENCH.parent, check=False).returncode:
            failed.append(path.stem)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
