"""Any number of models, every two of them compared, and where they differ: against dense float64 computations."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.report.buckets import ENTROPY_BUCKETS, entropy_buckets, frequency_buckets
from logitcask_consumer.report.config import ReportConfig, ReportError, models_of_run
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.training.run import train
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    build_cask,
    dense_positions,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)

DOCUMENTS = random_documents(18, low=20, high=60, seed=3)
HELD_OUT = DOCUMENTS[8:]
WHOLE = CaptureSpec(tau=1e-6, head_max=254, tail_logprobs=True, logprob_codec="f32")
"""Every token that is likelier than 1e-6 stands in the head."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparisons")
    teacher = save_teacher(folder / "teacher")
    build_cask(folder / "train", teacher, DOCUMENTS[:8])
    build_cask(folder / "whole", teacher, HELD_OUT, spec=WHOLE)
    build_cask(folder / "sparse", teacher, HELD_OUT, spec=CaptureSpec(tau=0.05, logprob_codec="f32"))
    for seed in (7, 8, 9):
        tiny_model(seed=seed).save_pretrained(folder / f"student{seed}")
        tiny_tokenizer().save_pretrained(folder / f"student{seed}")
    config = TrainConfig(
        casks=(folder / "train",),
        student=str(folder / "student9"),
        output=folder / "run",
        seq_len=64,
        batch_tokens=128,
        max_steps=5,
        save_steps=2,
        keep_checkpoints=9,
    )
    train(config)
    return folder


def dense_of(folder):
    """Distributions of a model at every held-out position, float64 [P, V], by document, then position."""
    model, parts = load_model(folder).eval(), []
    for ids in HELD_OUT:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].double()
        parts.append(torch.softmax(logits, -1).numpy())
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def dense(place):
    teacher = load_model(place / "teacher").eval()
    return {
        "t": np.concatenate([dense_positions(teacher, ids).probs_RV for ids in HELD_OUT]),
        "y": np.concatenate([ids[1:].astype(np.int64) for ids in HELD_OUT]),
        "document": np.repeat(np.arange(len(HELD_OUT)), [len(ids) - 1 for ids in HELD_OUT]),
        **{name: dense_of(place / name) for name in ("student7", "student8", "student9")},
    }


def kl_of(dense, name):
    t, p = dense["t"], dense[name]
    return (t * np.log(t / p)).sum(1)


@pytest.fixture(scope="module")
def document(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    models = tuple((name, place / name) for name in ("student7", "student8", "student9"))
    config = ReportConfig(casks=(place / "whole",), models=models, output=out, draft_lengths=(1, 4))
    return make_report(config) | {"folder": str(out)}


def test_every_two_models_are_compared_position_by_position(document, dense):
    pairs = document["pairs"]
    names = ["student7", "student8", "student9"]
    assert [(pair["from"], pair["to"]) for pair in pairs] == list(combinations(names, 2))
    t, y = dense["t"], dense["y"]
    for pair in pairs:
        before, after = dense[pair["from"]], dense[pair["to"]]
        expected = {
            "kl": (kl_of(dense, pair["to"]) - kl_of(dense, pair["from"])).mean(),
            "nll": np.log(before[np.arange(len(y)), y] / after[np.arange(len(y)), y]).mean(),
            "agreement": ((after.argmax(1) == t.argmax(1)).mean() - (before.argmax(1) == t.argmax(1)).mean()),
            "acceptance": (np.minimum(t, after) - np.minimum(t, before)).sum(1).mean(),
        }
        for name, value in expected.items():
            found = pair["metrics"][name]
            assert found["value"] == pytest.approx(value, abs=2e-5)
            assert found["low"] <= found["value"] <= found["high"]
    assert document["change"] == pairs[1], "the last model less the first"


def test_the_interval_of_a_pair_is_that_of_resampled_documents(document, dense):
    """The same bootstrap by hand: draw documents, take the mean of the difference over their positions."""
    difference, by = kl_of(dense, "student8") - kl_of(dense, "student7"), dense["document"]
    sums, sizes = (np.bincount(by, weights=values) for values in (difference, np.ones(len(by))))
    rng = np.random.default_rng(11)
    drawn = rng.integers(0, len(sums), (20_000, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
    found = document["pairs"][0]["metrics"]["kl"]
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_top_five_agreement_and_drafts_of_whole_records_are_exact(document, dense):
    t = dense["t"]
    first = np.argsort(-t, axis=1)[:, :5]
    for model in document["models"]:
        best = dense[model["label"]].argmax(1)
        expected = (first == best[:, None]).any(1).mean()
        assert model["metrics"]["top5_agreement"]["value"] == pytest.approx(expected, abs=1e-6)
        greedy = t[np.arange(len(t)), best].mean()
        assert model["metrics"]["greedy_acceptance"]["value"] == pytest.approx(greedy, abs=1e-5)
        assert model["brackets"].keys() <= {"greedy_acceptance"}, "tokens below 1e-6 stand in no head"
        sampled = np.minimum(t, dense[model["label"]]).sum(1).mean()
        one, four = model["speculative"]
        assert (one["drafted"], four["drafted"]) == (1, 4)
        assert one["sampled"]["value"] == pytest.approx(1 + sampled, abs=1e-4)
        assert four["greedy"]["value"] == pytest.approx(sum(greedy**n for n in range(5)), abs=1e-4)
    assert document["kinds"]["top5_agreement"] == "exact"


def test_sparse_records_enclose_what_they_do_not_say(place, dense, tmp_path):
    models = tuple((name, place / name) for name in ("student7", "student8"))
    document = make_report(ReportConfig(casks=(place / "sparse",), models=models, output=tmp_path / "out"))
    t = dense["t"]
    first = np.argsort(-t, axis=1)[:, :5]
    for model in document["models"]:
        p = dense[model["label"]]
        best = p.argmax(1)
        truth = {
            "acceptance": np.minimum(t, p).sum(1).mean(),
            "greedy_acceptance": t[np.arange(len(t)), best].mean(),
            "top5_agreement": (first == best[:, None]).any(1).mean(),
        }
        assert model["brackets"].keys() == truth.keys()
        for name, value in truth.items():
            assert model["brackets"][name]["low"] < value < model["brackets"][name]["high"]
        (step,) = model["speculative"]
        expected = sum(truth["acceptance"] ** n for n in range(5))
        assert step["sampled"]["low"] < expected < step["sampled"]["high"]
        assert step["greedy"]["low"] < sum(truth["greedy_acceptance"] ** n for n in range(5)) < step["greedy"]["high"]
    assert "top5_agreement" not in document["kinds"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "top token is among the teacher's five (lies between)" in text
    assert "| 4 drafted, sampled | between " in text


def test_buckets_hold_every_position_once_and_the_mean_over_them(document, dense):
    t, y = dense["t"], dense["y"]
    entropy = -(t * np.log(t)).sum(1)
    kl = {name: kl_of(dense, name) for name in ("student7", "student8", "student9")}
    parts = np.array_split(np.argsort(entropy, kind="stable"), ENTROPY_BUCKETS)
    assert len(document["buckets"]["entropy"]) == ENTROPY_BUCKETS
    for bucket, part in zip(document["buckets"]["entropy"], parts, strict=True):
        assert bucket["positions"] == len(part)
        assert (bucket["low"], bucket["high"]) == pytest.approx((entropy[part].min(), entropy[part].max()), rel=1e-4)
        assert bucket["documents"] == len(np.unique(dense["document"][part]))
        for name, values in kl.items():
            found = bucket["models"][name]
            assert found["value"] == pytest.approx(values[part].mean(), abs=1e-4)
            assert found["low"] <= found["value"] <= found["high"]
    occurrences = np.bincount(y)[y]
    assert sum(bucket["positions"] for bucket in document["buckets"]["frequency"]) == len(y)
    for bucket in document["buckets"]["frequency"]:
        part = (occurrences >= bucket["low"]) & (occurrences <= bucket["high"])
        assert bucket["positions"] == part.sum()
        for name, values in kl.items():
            assert bucket["models"][name]["value"] == pytest.approx(values[part].mean(), abs=1e-4)


def test_buckets_of_a_few_values():
    entropy = np.array([0.3, 0.1, 0.2], dtype=np.float32)
    assert [bucket.positions_K.tolist() for bucket in entropy_buckets(entropy)] == [[1], [2], [0]]
    occurrences = np.array([1, 9, 10, 1000, 9], dtype=np.float32)
    found = [(bucket.low, bucket.high, bucket.positions_K.tolist()) for bucket in frequency_buckets(occurrences)]
    assert found == [(1, 9, [0, 1, 4]), (10, 99, [2]), (1000, 9999, [3])]


def test_all_checkpoints_of_a_run(place, tmp_path):
    assert [label for label, _ in models_of_run("s", place / "run")] == ["s@2", "s@4", "s"]
    config = ReportConfig(
        casks=(place / "whole",),
        models=(("before", place / "student9"),),
        runs=(("s", place / "run"),),
        output=tmp_path / "out",
    )
    document = make_report(config)
    assert [model["label"] for model in document["models"]] == ["before", "s@2", "s@4", "s"]
    assert len(document["pairs"]) == 6
    by_step = [model["metrics"]["nll"]["value"] for model in document["models"]]
    assert len(set(by_step)) == 4, "four different models"
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == document


def test_runs_that_give_no_model_are_refused(place, tmp_path):
    with pytest.raises(ReportError, match="holds no training run"):
        models_of_run("s", place / "student9")
    (tmp_path / "logitcask.json").write_text(json.dumps({"format": "logitcask-run", "version": 1, "status": "running"}))
    with pytest.raises(ReportError, match="without a checkpoint yet"):
        models_of_run("s", tmp_path)


def test_draft_lengths_of_nothing_are_refused(place, tmp_path):
    config = ReportConfig(
        casks=(place / "whole",), models=(("a", place / "student7"),), output=tmp_path / "out", draft_lengths=(0,)
    )
    with pytest.raises(ReportError, match="draft lengths must be at least 1, got 0"):
        make_report(config)


def test_the_page_stands_alone(document):
    from html.parser import HTMLParser
    from pathlib import Path

    text = (Path(document["folder"]) / "report.html").read_text()

    class Seen(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.ids, self.links = [], [], []

        def handle_starttag(self, tag, attributes):
            named = dict(attributes)
            self.tags.append(tag)
            self.ids += [named["id"]] if "id" in named else []
            self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    seen = Seen()
    seen.feed(text)
    assert seen.tags.count("svg") == 4  # headlines, captured mass, entropy, frequency
    assert not {"img", "script", "link", "iframe"} & set(seen.tags)
    assert len(seen.ids) == len(set(seen.ids)), "plots share no ids"
    assert all(link.startswith("#") and link[1:] in seen.ids for link in seen.links)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "#2563eb" not in text.partition("<body>")[2], "plots take the page's colours"
    assert "Every two models" in text


def test_casks_that_hold_nothing_or_something_else_are_refused_in_a_line(place, tmp_path):
    from logitcask_consumer.data import EmptyCaskError
    from logitcask_schemas.errors import CaskError, CaskNotFoundError

    teacher = load_model(place / "teacher")
    build_cask(tmp_path / "empty", teacher, [])
    build_cask(tmp_path / "later", teacher, HELD_OUT[:2])
    (tmp_path / "later" / "cask.json").write_text('{"format": "logitcask", "version": 99}')
    (tmp_path / "nothing").mkdir()
    for name, kind, words in (
        ("empty", EmptyCaskError, "0 documents, none of two tokens or more. If it is still being written, wait"),
        ("later", CaskError, "cask.json"),
        ("nothing", CaskNotFoundError, "not a cask"),
    ):
        config = ReportConfig(casks=(tmp_path / name,), models=(("a", place / "student7"),), output=tmp_path / "out")
        with pytest.raises(kind, match=words) as refused:
            make_report(config)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_one_document_gives_no_interval_and_the_report_says_so(place, tmp_path):
    build_cask(tmp_path / "one", load_model(place / "teacher"), HELD_OUT[:1])
    models = tuple((name, place / name) for name in ("student7", "student8"))
    document = make_report(ReportConfig(casks=(tmp_path / "one",), models=models, output=tmp_path / "out"))
    assert document["warnings"] == ["there is one document only, so no number has an interval: hold out more"]
    assert document["pairs"][0]["metrics"]["kl"]["low"] is None
    assert (tmp_path / "out" / "report.html").is_file()
