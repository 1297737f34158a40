"""Fetch the page's JavaScript and CSS: `python scripts/fetch_assets.py [--check]`. Standard library only.

services/package.json names the npm packages, their exact versions, and which of their files the page loads
(`vendored`); services/package-lock.json holds the SHA-512 of each archive. An archive with another digest is refused,
nothing of a package is run, and what is there already is not fetched again. The registry is npm's own unless
`NPM_CONFIG_REGISTRY` (or `npm config get registry`) says otherwise.

    services/logitcask_services/http/pages/static/vendor/PACKAGE/FILE
    services/logitcask_services/http/pages/static/vendor/fetched.json    what they were made from, written last
"""

import argparse
import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "services" / "package.json"
LOCK = ROOT / "services" / "package-lock.json"
TARGET = ROOT / "services" / "logitcask_services" / "http" / "pages" / "static" / "vendor"
STAMP = "fetched.json"
PUBLIC_REGISTRY = "https://registry.npmjs.org/"
TIMEOUT_SECONDS = 60


class AssetError(RuntimeError):
    """An archive cannot be fetched, or is not the one that was locked."""


def registry() -> str:
    """Where npm would look, with a slash at the end."""
    configured = os.environ.get("NPM_CONFIG_REGISTRY")
    if not configured and (npm := shutil.which("npm")) is not None:
        answer = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, check=False)
        configured = answer.stdout.strip() if answer.returncode == 0 else None
    return (configured or PUBLIC_REGISTRY).rstrip("/") + "/"


def locked() -> dict[str, tuple[str, str]]:
    """Package to (version, integrity). Raises AssetError where package.json and its lock disagree."""
    wanted = json.loads(PACKAGES.read_text(encoding="utf-8"))["dependencies"]
    packages = json.loads(LOCK.read_text(encoding="utf-8"))["packages"]
    pins = {}
    for name, version in wanted.items():
        entry = packages.get(f"node_modules/{name}", {})
        if entry.get("version") != version or not entry.get("integrity", "").startswith("sha512-"):
            raise AssetError(
                f"{LOCK}: {name} {version} of {PACKAGES.name} is not locked with a SHA-512 there; run "
                "`npm install --package-lock-only --ignore-scripts` in its folder"
            )
        pins[name] = (version, entry["integrity"])
    return pins


def require_integrity(content: bytes, integrity: str, what: str) -> None:
    """Raise AssetError where bytes are not those of a `sha512-...` string of npm's lock."""
    digest = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if digest != integrity:
        raise AssetError(f"{what}: the archive is {digest}, the lock says {integrity}; it is not used")


def download(name: str, version: str, source: str) -> bytes:
    """The archive of a package. Raises AssetError."""
    url = f"{source}{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise AssetError(
            f"{url} cannot be fetched ({error}); set NPM_CONFIG_REGISTRY to a registry that this machine reaches"
        ) from error
    return content


def members(archive: bytes, files: list[str], what: str) -> dict[str, bytes]:
    """Some files of a package's archive. Raises AssetError where one is missing."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        contents = {}
        for file in files:
            try:
                member = tar.extractfile(f"package/{file}")
            except KeyError:
                member = None
            if member is None:
                raise AssetError(f"{what} holds no file {file}")
            contents[file] = member.read()
    return contents


def stamp() -> dict[str, Any]:
    """What the files are made from; another stamp means that they must be fetched anew."""
    vendored = json.loads(PACKAGES.read_text(encoding="utf-8"))["vendored"]
    return {name: [version, integrity, vendored[name]] for name, (version, integrity) in locked().items()}


def is_there(target: Path = TARGET) -> bool:
    """Whether all files are there, of the locked versions."""
    marker = target / STAMP
    if not marker.exists():
        return False
    current = stamp()
    files = [target / name / Path(file).name for name, (_, _, own) in current.items() for file in own]
    return bool(json.loads(marker.read_text(encoding="utf-8")) == current and all(map(Path.is_file, files)))


def fetch(target: Path = TARGET) -> None:
    """Put the files in place. Raises AssetError, before anything of what was there is removed."""
    current, source = stamp(), registry()
    contents: dict[Path, bytes] = {}
    for name, (version, integrity, files) in current.items():
        archive = download(name, version, source)
        require_integrity(archive, integrity, f"{name} {version} from {source}")
        for file, content in members(archive, files, f"{name} {version}").items():
            contents[Path(name) / Path(file).name] = content
    shutil.rmtree(target, ignore_errors=True)
    for place, content in contents.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_bytes(content)
    (target / STAMP).write_text(json.dumps(current, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Fetch what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="fetch nothing; exit 1 where files are missing")
    arguments = parser.parse_args()
    if is_there():
        return
    if arguments.check:
        sys.exit(f"the page's assets are not in {TARGET}; run `python scripts/fetch_assets.py`")
    fetch()
    print(f"fetched the page's assets into {TARGET}")


if __name__ == "__main__":
    try:
        main()
    except AssetError as error:
        sys.exit(f"error: {error}")
