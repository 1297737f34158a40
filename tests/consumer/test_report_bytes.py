"""Bits per byte in the report: students of any tokenizer beside their teacher, against forward passes done by hand."""

import json

import numpy as np
import pytest
import torch
from cask_builder import build_cask, tiny_model
from text_tokenizers import byte_level, corpus
from typer.testing import CliRunner

from logitcask_consumer.cli.report import app
from logitcask_consumer.report.build import ReportConfig, make_report
from logitcask_consumer.report.estimates import DocumentBootstrap
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.tokenizer_fingerprint import tokenizer_fingerprint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A teacher, its records of ASCII docstrings, a student with its tokenizer and one with another."""
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer = byte_level(500)
    tokenizer.save_pretrained(folder / "teacher")
    texts = [text[:120] for text in corpus() if len(text) > 60 and text.isascii()][:12]
    documents = [np.array(tokenizer(text)["input_ids"], dtype=np.uint16) for text in texts]
    teacher = tiny_model(vocab_size=512)
    fields = {"vocab_size": 512, "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    build_cask(folder / "cask", teacher, documents, per_shard=5, **fields)
    for name, own, width in (("same", tokenizer, 512), ("foreign", byte_level(330, bos=True), 336)):
        tiny_model(vocab_size=width, layers=2, seed=1).save_pretrained(folder / name)
        own.save_pretrained(folder / name)
    return folder, texts, teacher


def ends_of(tokenizer, text):
    """Token ids, and the byte at which each token ends; ASCII, so a character is a byte."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    return encoded["input_ids"], [stop for _, stop in encoded["offset_mapping"]]


def nats_after(model, ids, ends, first, last):
    """-log of the likelihood of the bytes from `first` to `last`, which are ends of tokens."""
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).double()
    return sum(-float(logp[j - 1, ids[j]]) for j in range(1, len(ids)) if first < ends[j] <= last)


def by_hand(place, name):
    """Bits per byte of model and teacher after the first end that both tokenizers share, and the bytes."""
    _, texts, teacher = place
    own = byte_level(500) if name == "same" else byte_level(330, bos=True)
    model = tiny_model(vocab_size=512 if name == "same" else 336, layers=2, seed=1)
    student = teachers = total = 0.0
    for text in texts:
        (ids, ends), (other_ids, other_ends) = ends_of(own, text), ends_of(byte_level(500), text)
        first, last = min((set(ends) & set(other_ends)) - {0}), len(text)
        student += nats_after(model, ids, ends, first, last)
        teachers += nats_after(teacher, other_ids, other_ends, first, last)
        total += last - first
    return student / total / np.log(2), teachers / total / np.log(2), total


def test_students_of_any_tokenizer_are_measured_on_the_teachers_bytes(place, tmp_path):
    folder = place[0]
    arguments = ["--cask", folder / "cask", "--model", folder / "same", "--model", folder / "foreign"]
    arguments += ["--teacher", folder / "teacher", "--output", tmp_path / "out"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    for model in document["models"]:
        student, teacher, size = by_hand(place, model["label"])
        found = model["bytes"]
        assert found["bytes"] == size
        assert found["documents"] == 12
        assert found["bits_per_byte"]["value"] == pytest.approx(student, rel=1e-5)
        assert found["teacher_bits_per_byte"]["value"] == pytest.approx(teacher, rel=1e-3)
        assert found["difference"]["value"] == pytest.approx(student - teacher, rel=2e-2)
        assert found["bits_per_byte"]["low"] < student < found["bits_per_byte"]["high"]
    same, foreign = document["models"]
    assert same["metrics"]["nll"]["value"] > 0
    assert foreign["metrics"] == {}
    assert "change" not in document, "one model alone can be compared per token"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Bits per byte" in text
    assert f"| bytes | {same['bytes']['bytes']:,} | {foreign['bytes']['bytes']:,} |" in text
    shown = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert "bits per byte" in shown.stdout


def test_a_report_may_hold_foreign_students_alone(place, tmp_path):
    folder = place[0]
    config = ReportConfig(
        casks=(folder / "cask",),
        models=(("a", folder / "foreign"),),
        output=tmp_path / "out",
        teacher=folder / "teacher",
        seq_len=16,
    )
    document = make_report(config)
    # Windows of 16 slots with 8 of context see less; every byte still counts once.
    assert document["models"][0]["bytes"]["bytes"] == by_hand(place, "foreign")[2]
    assert (tmp_path / "out" / "entropy.png").exists()


def test_the_way_out_is_named(place, tmp_path):
    folder = place[0]
    config = ReportConfig(casks=(folder / "cask",), models=(("a", folder / "foreign"),), output=tmp_path / "out")
    with pytest.raises(IdentityMismatchError, match="--teacher"):
        make_report(config)
    with pytest.raises(IdentityMismatchError, match="the teacher that the cask was made with"):
        make_report(
            ReportConfig(casks=config.casks, models=config.models, output=config.output, teacher=folder / "foreign")
        )


def test_a_ratio_is_of_sums_and_its_error_that_of_the_delta_method():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(200), rng.integers(3, 9, 200))
    below = rng.integers(1, 9, len(documents)).astype(np.float64)
    above = below * (1 + 0.3 * rng.normal(size=200)[documents]) + rng.normal(size=len(documents))
    found = DocumentBootstrap(documents).ratio(above, below)
    above_D, below_D = (np.bincount(documents, weights=values) for values in (above, below))
    value = above_D.sum() / below_D.sum()
    assert found.value == pytest.approx(value)
    residual_D = above_D - value * below_D
    assert found.standard_error == pytest.approx(np.sqrt((residual_D**2).sum()) / below_D.sum(), rel=0.1)
    assert abs((above_D / below_D).mean() - value) > 1e-4, "the mean of the documents' ratios is something else"
