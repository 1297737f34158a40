"""A student's KL at each token: what the report's mean is of, in the order of the cask's own positions."""

import json

import numpy as np
import pytest
import torch

from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.student.loading import load_model
from logitcask_schemas.cask import Cask
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    build_cask,
    dense_positions,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)

DOCUMENTS = random_documents(6, low=30, high=90, seed=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    teacher = save_teacher(folder / "teacher")
    build_cask(folder / "first", teacher, DOCUMENTS[:4], per_shard=3)
    build_cask(folder / "second", teacher, DOCUMENTS[4:])
    build_cask(folder / "top", teacher, DOCUMENTS, spec=CaptureSpec(mode="topk", k=8, logprob_codec="f32"))
    tiny_model(seed=9, max_position_embeddings=48).save_pretrained(folder / "student")
    tiny_tokenizer().save_pretrained(folder / "student")
    return folder


def scores(place, output, *casks, **options):
    """The report's document, and the scores of the model."""
    models = (("student", place / "student"),)
    config = ReportConfig(casks=tuple(place / cask for cask in casks), models=models, output=output, **options)
    document = make_report(config)
    path = output / "token-scores-1.jsonl"
    return document, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else None


def test_scores_are_what_the_reports_mean_is_of(place, tmp_path):
    document, lines = scores(place, tmp_path / "out", "first", "second", token_scores=True)
    casks = [Cask.open(place / "first"), Cask.open(place / "second")]
    stored = {cask.read(number).id.hex(): cask.read(number) for cask in casks for number in range(len(cask))}
    assert {line["id"] for line in lines} == stored.keys()
    for line in lines:
        assert len(line["kl"]) == stored[line["id"]].records.num_positions
        assert line["kind"] == "unbiased"
    mean = np.concatenate([line["kl"] for line in lines]).mean()
    assert mean == pytest.approx(document["models"][0]["metrics"]["kl"]["value"], rel=1e-5)


def test_bounds_are_those_of_each_position(place, tmp_path):
    """Of the head and of one bucket for all else, from the dense distributions in float64; windows of 48 tokens."""
    _, lines = scores(place, tmp_path / "out", "top", token_scores=True, seq_len=48)
    cask, teacher = Cask.open(place / "top"), load_model(place / "teacher").eval()
    student = load_model(place / "student").eval()
    by_id = {line["id"]: line for line in lines}
    for number in range(len(cask)):
        document = cask.read(number)
        ids, records = document.token_ids_L, document.records
        t_PV = dense_positions(teacher, ids).probs_RV
        with torch.no_grad():
            logits = student(input_ids=torch.from_numpy(ids[:48].astype(np.int64))[None]).logits[0].double()
        p_PV = torch.softmax(logits, -1).numpy()
        stops = np.cumsum(records.head_counts_P, dtype=np.int64)
        line = by_id[document.id.hex()]
        assert line["kind"] == "lower bound"
        for position in range(min(len(p_PV), records.num_positions)):  # what the first window reads
            head = records.head_ids_H[stops[position] - records.head_counts_P[position] : stops[position]]
            t, p = t_PV[position, head], p_PV[position, head]
            r, s = 1 - t.sum(), 1 - p.sum()
            bound = (t * np.log(t / p)).sum() + r * np.log(r / s)
            assert line["kl"][position] == pytest.approx(bound, rel=1e-3, abs=1e-4)


def test_no_scores_unless_asked_for(place, tmp_path):
    assert scores(place, tmp_path / "out", "first")[1] is None
