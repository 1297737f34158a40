"""Files of options in the encodings that YAML has, whatever the machine's own is."""

from pathlib import Path

import pytest
import typer

from logitcask_consumer.cli.options_file import _read_yaml

TEXT = "output: runs/für-später\nseq-len: 64\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_as_it_was_written(tmp_path, monkeypatch, encoding):
    path = tmp_path / "run.yaml"
    path.write_bytes(TEXT.encode(encoding))
    monkeypatch.setattr(Path, "read_text", None)  # whose encoding is the locale's
    pairs = [(key, node.value) for key, node in _read_yaml(path)]
    assert pairs == [("output", "runs/für-später"), ("seq-len", "64")]


@pytest.mark.parametrize("content", [TEXT.encode("latin-1"), TEXT.encode("utf-16-le"), b"lr: 1\x00", b"\x89PNG\r\n"])
def test_other_bytes_are_refused(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(typer.BadParameter, match=r"run\.yaml cannot be read: "):
        _read_yaml(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seq-len: 64\n<<: {lr: 1e-4}\n", r"line 2: merge keys \(<<\) are not followed; write the options"),
        ("base: &base {lr: 1e-4}\n<<: *base\n", r"line 2: merge keys \(<<\) are not followed"),
        ("<<: [{lr: 1e-4}, {seed: 1}]\n", r"line 1: merge keys \(<<\) are not followed"),
        ("seq-len: 64\n? {lr: 1}\n: 2\n", "line 2: expected the name of an option"),
        ("[lr, seed]: 2\n", "line 1: expected the name of an option"),
    ],
)
def test_keys_that_are_no_names_are_told_with_their_line(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(typer.BadParameter, match=rf"run\.yaml: {message}"):
        _read_yaml(path)


def test_a_quoted_key_is_a_name(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("'<<': 1\n")
    assert [key for key, _ in _read_yaml(path)] == ["<<"]
