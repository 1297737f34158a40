"""scripts/fetch_assets.py: only what the lock says comes into the page, and it says what is wrong."""

import base64
import hashlib
import io
import json
import runpy
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fetch_assets.py"


def archive(**files: bytes) -> bytes:
    """A package's archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def assets(tmp_path):
    """The script's names, over a package `tiny` whose archive is at `archives`."""
    names = runpy.run_path(str(SCRIPT))
    scope = names["fetch"].__globals__
    content = archive(**{"tiny.js": b"1;"})
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    package = {"dependencies": {"tiny": "1.0.0"}, "vendored": {"tiny": ["dist/tiny.js"]}}
    lock = {"packages": {"node_modules/tiny": {"version": "1.0.0", "integrity": integrity}}}
    scope |= {"PACKAGES": tmp_path / "package.json", "LOCK": tmp_path / "package-lock.json"}
    scope["PACKAGES"].write_text(json.dumps(package))
    scope["LOCK"].write_text(json.dumps(lock))
    scope["download"] = lambda name, version, source: content
    scope["registry"] = lambda: "https://registry.invalid/"
    return SimpleNamespace(scope=scope, lock=lock, package=package, target=tmp_path / "vendor", **names)


def test_files_are_fetched_once(assets):
    assert not assets.is_there(assets.target)
    assets.fetch(assets.target)
    assert (assets.target / "tiny" / "tiny.js").read_bytes() == b"1;"
    assert assets.is_there(assets.target)


def test_a_changed_archive_is_refused_and_what_was_there_stays(assets):
    assets.fetch(assets.target)
    assets.scope["download"] = lambda name, version, source: archive(**{"tiny.js": b"evil;"})
    with pytest.raises(assets.AssetError, match="the lock says sha512-"):
        assets.fetch(assets.target)
    assert (assets.target / "tiny" / "tiny.js").read_bytes() == b"1;"


def test_a_missing_file_of_a_package_is_named(assets):
    assets.package["vendored"]["tiny"] = ["dist/other.js"]
    assets.scope["PACKAGES"].write_text(json.dumps(assets.package))
    with pytest.raises(assets.AssetError, match=r"holds no file dist/other\.js"):
        assets.fetch(assets.target)
    assert not assets.target.exists()


@pytest.mark.parametrize("change", [{"version": "2.0.0"}, {"integrity": "sha1-x"}, {"integrity": ""}])
def test_a_package_must_be_locked(assets, change):
    assets.lock["packages"]["node_modules/tiny"] |= change
    assets.scope["LOCK"].write_text(json.dumps(assets.lock))
    with pytest.raises(assets.AssetError, match=r"tiny 1\.0\.0 .* is not locked"):
        assets.fetch(assets.target)


def test_another_lock_or_a_removed_file_means_that_they_are_fetched_anew(assets):
    assets.fetch(assets.target)
    (assets.target / "tiny" / "tiny.js").unlink()
    assert not assets.is_there(assets.target)
    assets.fetch(assets.target)
    assets.lock["packages"]["node_modules/tiny"]["integrity"] = "sha512-another"
    assets.scope["LOCK"].write_text(json.dumps(assets.lock))
    assert not assets.is_there(assets.target)


def test_a_registry_that_is_not_there_is_named():
    names = runpy.run_path(str(SCRIPT))
    with pytest.raises(names["AssetError"], match="set NPM_CONFIG_REGISTRY"):
        names["download"]("tiny", "1.0.0", "http://127.0.0.1:9/")


def test_the_registry_is_that_of_npm(monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://mirror.example/npm")
    assert runpy.run_path(str(SCRIPT))["registry"]() == "https://mirror.example/npm/"


def test_the_lock_of_this_repository_names_every_package():
    names = runpy.run_path(str(SCRIPT))
    assert set(names["locked"]()) == {"htmx.org", "uplot"}
    vendored = json.loads(names["PACKAGES"].read_text())["vendored"]
    assert all(any(file.startswith("LICENSE") for file in files) for files in vendored.values())
