"""The images' steps as far as they go without a container engine: `python scripts/rehearse_images.py`.

For each Dockerfile a folder gets what its COPY lines name and nothing else, and a fresh virtual environment gets the
package from there, without dependencies. What is missing in the image is so found before anyone builds it.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = ("services/Dockerfile", "consumer/Dockerfile")


@dataclass
class Stage:
    """What one FROM begins: its image, and the last USER, ENTRYPOINT and CMD. `copies` are sources in the context."""

    name: str
    image: str
    copies: list[str] = field(default_factory=list)
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def stages(dockerfile: Path) -> list[Stage]:
    """The stages of a Dockerfile in order. Raises ValueError for an instruction before the first FROM, ARG excepted."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    result: list[Stage] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            image, _, name = rest.partition(" AS ")
            result.append(Stage(name=name or dockerfile.parent.name, image=image))
        elif not result:
            if instruction != "ARG":
                raise ValueError(f"{dockerfile}: expected ARG or FROM first, got {instruction}")
        elif instruction == "COPY":
            result[-1].copies += rest.split()[:-1]
        elif instruction == "USER":
            result[-1].user = rest
        elif instruction == "ENTRYPOINT":
            result[-1].entrypoint = json.loads(rest)
        elif instruction == "CMD":
            result[-1].command = json.loads(rest)
    return result


def missing_sources(context: Path, parsed: list[Stage]) -> list[str]:
    """Sources of COPY that the build context does not have."""
    return sorted({source for stage in parsed for source in stage.copies if not (context / source).exists()})


def rehearse(stage: Stage, folder: Path) -> None:
    """Installs the stage's files, and only these, into a new environment in `folder`.

    Raises CalledProcessError where pip or the installed command fails.
    """
    context = folder / "context"
    context.mkdir()
    for source in stage.copies:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / source, context / source)
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "."], cwd=context, check=True)
    check = (
        "import importlib.metadata as m, pathlib\n"
        "files = [str(f) for f in m.files('logitcask')]\n"
        "missing = [p for p in ('logitcask_schemas/', 'logitcask_services/', 'logitcask_consumer/',\n"
        "    'logitcask_services/http/pages/static/vendor/') if not any(f.startswith(p) for f in files)]\n"
        "raise SystemExit(f'not in the wheel: {missing}' if missing else 0)\n"
    )
    subprocess.run([python, "-c", check], cwd=folder, check=True)
    for name in stage.entrypoint:
        if not (environment / "bin" / name).exists():
            raise FileNotFoundError(f"the image's entry point {name} was not installed by {context}")


def main() -> int:
    """Rehearses every stage, those that copy the same files once; 1 where a source is missing."""
    rehearsed: set[tuple[str, ...]] = set()
    for path in DOCKERFILES:
        parsed = stages(ROOT / path)
        if missing := missing_sources(ROOT, parsed):
            print(f"{path}: COPY names what is not there: {', '.join(missing)}", file=sys.stderr)
            return 1
        for stage in parsed:
            if tuple(stage.copies) not in rehearsed:
                with tempfile.TemporaryDirectory() as folder:
                    rehearse(stage, Path(folder))
                rehearsed.add(tuple(stage.copies))
            print(f"{path} ({stage.name}): installs, with the page's assets")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
