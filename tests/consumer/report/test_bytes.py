"""Bits per byte in the report: students of any tokenizer beside their teacher, against forward passes done by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from logitcask_consumer.cli.report import app
from logitcask_consumer.cross_tokenizer import AlignedDocuments, ChunkColumns
from logitcask_consumer.data import open_casks
from logitcask_consumer.report.build import _on_common_documents
from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.document import Measured
from logitcask_consumer.report.estimates import DocumentBootstrap
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.student.loading import load_model, load_tokenizer
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.identity import tokenizer_fingerprint
from tests.support.consumer.cask_builder import build_cask, tiny_model
from tests.support.consumer.text_tokenizers import byte_level, corpus, sentencepiece_like

STUDENTS = {
    "same": (lambda: byte_level(500), 512),
    "foreign": (lambda: byte_level(330, bos=True), 336),
    "pieces": (lambda: sentencepiece_like(700), 704),
}


def make_place(folder, *, bos):
    """A teacher, its records of ASCII docstrings, students with its tokenizer, another and one that adds a space."""
    tokenizer = byte_level(500, bos=bos)
    tokenizer.save_pretrained(folder / "teacher")
    texts = [text[:120] for text in corpus() if len(text) > 60 and text.isascii()][:12]
    documents = [np.array(tokenizer(text)["input_ids"], dtype=np.uint16) for text in texts]
    teacher = tiny_model(vocab_size=512)
    fields: dict[str, Any] = {"vocab_size": 512, "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    build_cask(folder / "cask", teacher, documents, per_shard=5, **fields)
    for name, (own, width) in STUDENTS.items():
        tiny_model(vocab_size=width, layers=2, seed=1).save_pretrained(folder / name)
        own().save_pretrained(folder / name)
    return folder, texts, teacher


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("bytes"), bos=False)


@pytest.fixture(scope="module")
def place_with_bos(tmp_path_factory):
    """The teacher's documents begin with a special token, so the first token of a text is predicted too."""
    return make_place(tmp_path_factory.mktemp("bos"), bos=True)


def ends_of(tokenizer, text):
    """Token ids, and the byte at which each token ends; ASCII, so a character is a byte."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    return encoded["input_ids"], [stop for _, stop in encoded["offset_mapping"]]


def nats_after(model, ids, ends, first, last):
    """-log of the likelihood of the bytes from `first` to `last`, which are ends of tokens."""
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).double()
    return sum(-float(logp[j - 1, ids[j]]) for j in range(1, len(ids)) if first < ends[j] <= last)


def by_hand(place, name, *, bos=False):
    """Nats of model and teacher after the first end that both tokenizers share, and the bytes, of each document."""
    _, texts, teacher = place
    own, width = STUDENTS[name]
    model, rows = tiny_model(vocab_size=width, layers=2, seed=1), []
    for text in texts:
        (ids, ends), (other_ids, other_ends) = ends_of(own(), text), ends_of(byte_level(500, bos=bos), text)
        first, last = min((set(ends) & set(other_ends)) - ({0} if ends[0] or other_ends[0] else set())), len(text)
        nats = nats_after(model, ids, ends, first, last), nats_after(teacher, other_ids, other_ends, first, last)
        rows.append((*nats, last - first))
    return np.array(rows)


def bits(rows):
    student, teacher, size = rows.sum(0)
    return student / size / np.log(2), teacher / size / np.log(2), size


def test_students_of_any_tokenizer_are_measured_on_the_teachers_bytes(place, tmp_path):
    folder = place[0]
    arguments = ["--cask", folder / "cask", "--model", folder / "same", "--model", folder / "foreign"]
    arguments += ["--teacher", folder / "teacher", "--output", tmp_path / "out"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    for model in document["models"]:
        student, teacher, size = bits(by_hand(place, model["label"]))
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
    expected = foreign["bytes"]["bits_per_byte"]["value"] - same["bytes"]["bits_per_byte"]["value"]
    assert document["bytes_change"]["bits_per_byte"]["value"] == pytest.approx(expected)
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
    assert document["models"][0]["bytes"]["bytes"] == bits(by_hand(place, "foreign"))[2]
    assert (tmp_path / "out" / "entropy.png").exists()


@pytest.mark.parametrize("name", ["foreign", "pieces"])
def test_a_first_token_that_both_predict_counts_without_the_space_that_a_tokenizer_adds(place_with_bos, tmp_path, name):
    folder = place_with_bos[0]
    casks = open_casks([folder / "cask"], tokenizer_fingerprint=None)
    model = load_model(folder / name)
    options = {"teacher": folder / "teacher", "folder": tmp_path, "seq_len": 256, "overlap": 64}
    found = AlignedDocuments.of(model, load_tokenizer(folder / name), casks, **options).measure(model)
    assert_documents(found, by_hand(place_with_bos, name, bos=True), casks[0], student=True)


def test_a_chunk_belongs_to_the_document_of_its_window(place, tmp_path):
    """Several windows of a document, several sequences of a batch."""
    folder = place[0]
    casks = open_casks([folder / "cask"], tokenizer_fingerprint=None)
    model = load_model(folder / "foreign")
    options = {"teacher": folder / "teacher", "folder": tmp_path, "seq_len": 16, "overlap": 8}
    aligned = AlignedDocuments.of(model, load_tokenizer(folder / "foreign"), casks, **options)
    assert len(aligned.dataset) > 24
    assert_documents(aligned.measure(model, batch_tokens=64), by_hand(place, "foreign"), casks[0], student=False)


def assert_documents(found, expected, cask, *, student):
    """Sums of each document; documents of the cask are numbered in the order of their shards."""
    sums = [np.bincount(found.documents_C, column) for column in (found.student_nats_C, found.teacher_nats_C)]
    sizes = np.bincount(found.documents_C, found.bytes_C)
    tokens = byte_level(500).decode
    texts = [tokens(cask.read(n).token_ids_L.tolist(), skip_special_tokens=True) for n in range(len(cask))]
    order = np.array([[text[:120] for text in corpus()].index(text) for text in texts])
    rank = np.argsort(np.argsort(order))
    np.testing.assert_array_equal(sizes, expected[rank, 2])
    np.testing.assert_allclose(sums[1], expected[rank, 1], rtol=1e-3)
    if student:
        np.testing.assert_allclose(sums[0], expected[rank, 0], rtol=1e-5)


def test_what_cannot_be_measured_is_refused_before_anything_is(place, tmp_path):
    folder, said = place[0], []
    config = ReportConfig(
        casks=(folder / "cask",),
        models=(("a", folder / "same"), ("b", folder / "same")),
        output=tmp_path / "out",
        teacher=folder / "foreign",
        seq_len=16384,
    )
    with pytest.raises(IdentityMismatchError, match="the teacher that the cask was made with"):
        make_report(config, say=said.append)
    assert not any("measuring" in line for line in said)
    short = ReportConfig(
        casks=config.casks, models=(("a", folder / "foreign"),), output=config.output, teacher=folder / "teacher"
    )
    document = make_report(replace(short, seq_len=16384))
    assert document["models"][0]["bytes"]["documents"] == 12


def test_models_are_compared_on_the_documents_that_all_can_be_aligned_with():
    def columns(documents):
        documents_C = np.array(documents)
        values = documents_C + 1.0
        return ChunkColumns(
            documents_C=documents_C, bytes_C=np.ones(len(values)), student_nats_C=values, teacher_nats_C=values
        )

    models = [
        Measured(label=str(n), path=Path(), columns=None, chunks=chunks)
        for n, chunks in enumerate((columns([0, 0, 1, 3]), columns([0, 1, 2])))
    ]
    first, second = (model.chunks for model in _on_common_documents(models))
    assert first.documents_C.tolist() == [0, 0, 1]
    assert second.student_nats_C.tolist() == [1.0, 2.0]
    other = Measured(label="x", path=Path(), columns=None, chunks=columns([5]))
    with pytest.raises(ReportError, match="every model"):
        _on_common_documents([*models, other])
    with pytest.raises(ValueError, match="same documents"):
        DocumentBootstrap(np.array([0, 1])).ratio_change(
            np.ones(2), np.ones(2), DocumentBootstrap(np.array([0, 1, 2])), np.ones(3), np.ones(3)
        )


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
