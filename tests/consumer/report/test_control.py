"""The control: the same run without the teacher; and the card of a student."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.report import control as control_module
from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.control import Control, gap_closed
from logitcask_consumer.report.evaluate import Columns
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.report.model_card import CARD_MARK
from logitcask_consumer.student.from_teacher import StudentSpecError
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.training.run import train
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    build_cask,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)

DOCUMENTS = random_documents(24, low=20, high=60, seed=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    teacher = save_teacher(folder / "teacher")
    build_cask(folder / "train", teacher, DOCUMENTS[:16])
    build_cask(folder / "held", teacher, DOCUMENTS[16:], spec=CaptureSpec(tau=0.05, tail_logprobs=True))
    tiny_model(seed=9).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    train(run_of(folder, folder / "student"))
    return folder


def run_of(folder, output, **options):
    fields = {"loss": "forward_kl", "ce_weight": 0.25, "seed": 3, "max_steps": 6, "lr": 3e-3}
    return TrainConfig(
        casks=(folder / "train",),
        student=str(folder / "base"),
        output=output,
        seq_len=64,
        batch_tokens=128,
        **{**fields, **options},
    )


def config_of(place, output, **options):
    fields = {"models": (("before", place / "base"), ("after", place / "student")), "control": "ce"}
    return ReportConfig(casks=(place / "held",), output=output, **{**fields, **options})


def weights_of(folder):
    return load_model(folder).state_dict()


def test_the_control_is_the_run_with_cross_entropy(place, tmp_path):
    """Weight for weight the one that a person would train by hand."""
    document = make_report(config_of(place, tmp_path / "out"))
    assert [model["label"] for model in document["models"]] == ["before", "after without teacher (ce)", "after"]
    train(run_of(place, tmp_path / "by-hand", loss="cross_entropy", ce_weight=0.0))
    made, by_hand = weights_of(tmp_path / "out" / "control-ce"), weights_of(tmp_path / "by-hand")
    student = weights_of(place / "student")
    assert made.keys() == by_hand.keys()
    assert all(torch.equal(made[name], by_hand[name]) for name in made)
    assert any(not torch.equal(made[name], student[name]) for name in made), "negative control: not the student"
    control, own = (model["metrics"] for model in document["models"][1:])
    closed = document["control"]["closed"]
    kl = (control["kl"]["value"] - own["kl"]["value"]) / control["kl"]["value"]
    assert closed["kl"]["share"]["value"] == pytest.approx(kl, rel=1e-4)
    gap = control["nll"]["value"] - document["teacher"]["nll"]["value"]
    assert closed["nll"]["gap"]["value"] == pytest.approx(gap, rel=1e-3)
    assert closed["nll"]["share"] is None, "the documents are random: nobody foretells them better than the control"
    assert closed["kl"]["share"]["low"] < closed["kl"]["share"]["value"] < closed["kl"]["share"]["high"]
    assert "What the teacher brought" in (tmp_path / "out" / "report.md").read_text()
    said = []
    again = make_report(config_of(place, tmp_path / "out"), say=said.append)
    assert again["control"] == document["control"]
    assert any("is finished; nothing to do" in line for line in said), "it is trained once"


def test_a_student_without_a_tokenizer_takes_the_teachers(place, tmp_path, monkeypatch):
    """From the report's --teacher, or from where the run had it; without either the error says what to name."""
    bare = tmp_path / "bare"
    tiny_model(seed=9).save_pretrained(bare)
    run = run_of(place, tmp_path / "student", max_steps=1)
    train(replace(run, student=str(bare), teacher=place / "teacher"))
    base = config_of(place, tmp_path / "out", models=(("after", tmp_path / "student"),))
    assert Control.of(base).run.teacher == place / "teacher"
    assert Control.of(replace(base, teacher=place / "base")).run.teacher == place / "base"
    Control.of(base).trained(lambda message: None)
    monkeypatch.setattr(control_module, "_teacher", lambda config, run: None)
    with pytest.raises(StudentSpecError, match="name the teacher's folder with --teacher"):
        Control.of(replace(base, output=tmp_path / "other")).trained(lambda message: None)


def test_the_control_of_a_run_that_chose_its_student_chooses_by_the_same_rule(place, tmp_path):
    settings = {"eval_casks": (place / "held",), "eval_every": 2, "load_best": True, "patience": 5}
    train(run_of(place, tmp_path / "student", **settings))
    run = Control.of(config_of(place, tmp_path / "out", models=(("after", tmp_path / "student"),))).run
    assert run.eval_casks == (str(place / "held"),)
    assert (run.eval_every, run.load_best, run.patience, run.loss) == (2, True, 5, "cross_entropy")


def columns(kl, nll):
    documents = np.repeat(np.arange(10), 5).astype(np.int32)
    values = {name: np.asarray(value, dtype=np.float32) for name, value in (("kl", kl), ("nll", nll))}
    return Columns(documents_P=documents, values=values)


def test_the_share_of_the_gap_in_float64():
    rng = np.random.default_rng(0)
    teacher_nll, control_kl, student_kl = rng.gamma(2.0, size=50), 1 + rng.random(50), rng.random(50)
    teacher = columns(np.zeros(50), teacher_nll)
    control, student = columns(control_kl, teacher_nll + 0.5), columns(student_kl, teacher_nll + 0.1)
    closed = gap_closed(teacher, control, student, {"kl": "unbiased", "nll": "exact"}, seed=0)
    assert closed["nll"]["share"]["value"] == pytest.approx(0.8, rel=1e-5)
    assert closed["nll"]["gap"]["value"] == pytest.approx(0.5, rel=1e-5)
    assert closed["kl"]["share"]["value"] == pytest.approx(1 - student_kl.sum() / control_kl.sum(), rel=1e-5)


def test_a_gap_that_is_none_has_no_share():
    """A control that foretells the text better than the teacher does, as on text of another kind than the teacher's."""
    teacher, zeros = columns(np.zeros(50), np.full(50, 2.0)), np.zeros(50)
    closed = gap_closed(
        teacher, columns(zeros, np.full(50, 1.5)), columns(zeros, np.full(50, 1.6)), {"nll": "exact"}, seed=0
    )
    assert closed == {"nll": {"gap": closed["nll"]["gap"], "share": None}}
    bound = gap_closed(teacher, teacher, teacher, {"kl_bound": "lower bound", "nll": "exact"}, seed=0)
    assert "kl" not in bound, "two bounds give no share"


def test_what_has_no_control_is_refused_before_work(place, tmp_path):
    good = config_of(place, tmp_path / "out")
    for wrong, words in (
        (replace(good, control="kd"), "there is no control 'kd', only ce"),
        (replace(good, models=good.models[:1]), "is not the output of a finished `logitcask train`"),
    ):
        with pytest.raises(ReportError, match=words):
            make_report(wrong)
    copy = tmp_path / "copy"
    shutil.copytree(place / "student", copy)
    run = json.loads((copy / "logitcask.json").read_text())
    for change, words in (
        ({"phases": []}, "was trained in rounds"),
        ({"places": None}, "does not say where its casks lie"),
        ({"places": [str(tmp_path / "gone")]}, "cannot be read"),
        ({"casks": [run["casks"][0] | {"shards": ["other"]}]}, "has other shards than when"),
        ({"settings": run["settings"] | {"casks": [f"{place / 'train'}:0.5"]}}, "with weights of their own"),
        ({"settings": run["settings"] | {"weights": "teacher_entropy:most=3"}}, "teacher_entropy"),
        ({"student": {"spec": str(tmp_path / "no-base"), "revision": None}}, "the student before training"),
    ):
        (copy / "logitcask.json").write_text(json.dumps(run | change))
        with pytest.raises(ReportError, match=words):
            Control.of(replace(good, models=(("copy", copy),)))
    assert not good.output.exists()


def test_a_card_is_read_by_the_library_of_the_hub(place, tmp_path):
    student = tmp_path / "my-student"
    shutil.copytree(place / "student", student)
    config = config_of(place, tmp_path / "out", control=None, cards=("after",))
    config = replace(config, models=(("before", place / "base"), ("after", student)))
    document = make_report(config)
    card = ModelCard.load(student / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "knowledge-distillation" in card.data.tags
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    metrics = document["models"][1]["metrics"]
    assert measured["kl"] == pytest.approx(metrics["kl"]["value"])
    assert measured.keys() <= metrics.keys()
    run = json.loads((student / "logitcask.json").read_text())
    for expected in (
        "# my-student",
        CARD_MARK,
        "AutoModelForCausalLM.from_pretrained",
        run["casks"][0]["identity"],
        '"tokenizer_fingerprint"',
        '"tau": 0.05',
        "| KL to the teacher, nats/token (unbiased) | 0.0000 |",
        "6 steps of 128 tokens",
    ):
        assert expected in card.text or expected in card.content
    assert "pypi.org" not in card.content, "no index has the package"
    assert str(tmp_path) not in card.content, "no paths of this machine"
    assert str(place) not in card.content
    assert "before" not in card.content.partition("## Results")[2].partition("## Training")[0]
    make_report(config)  # its own page may be replaced


def card_of(student, output, cask):
    """What the card of a student says, which is put into its folder."""
    shutil.rmtree(output, ignore_errors=True)
    config = ReportConfig(casks=(cask,), models=(("mine", student),), output=output, cards=("mine",))
    document = make_report(config)
    return ModelCard.load(student / "README.md"), document


def test_a_card_says_so_where_documents_were_trained_on_and_bounds_are_no_results(place, tmp_path):
    student = tmp_path / "mine"
    shutil.copytree(place / "student", student)
    seen, _ = card_of(student, tmp_path / "out", place / "train")
    assert "trained on 16 of these 16 documents" in seen.content
    assert seen.data.eval_results[0].dataset_name == "documents of tiny"
    held, _ = card_of(student, tmp_path / "out", place / "held")
    assert "of these" not in held.content
    assert held.data.eval_results[0].dataset_name == "held-out documents of tiny"
    assert "sparse and unbiased records" in held.content
    spec = CaptureSpec(mode="topk", k=3)
    build_cask(tmp_path / "topk", load_model(place / "teacher"), DOCUMENTS[16:], spec=spec)
    bound, document = card_of(student, tmp_path / "out", tmp_path / "topk")
    assert document["kinds"]["greedy_acceptance"] == "lower bound"
    assert "greedy_acceptance" in document["models"][0]["metrics"]
    assert {result.metric_type for result in bound.data.eval_results} == {"perplexity", "agreement"}
    (tmp_path / "topk").rename(tmp_path / "gone")
    run = json.loads((student / "logitcask.json").read_text())
    run["places"] = [str(tmp_path / "topk")]
    (student / "logitcask.json").write_text(json.dumps(run))
    unchecked, _ = card_of(student, tmp_path / "out", place / "held")
    assert "could not be checked" in unchecked.content
    assert str(tmp_path) not in unchecked.content


def test_the_card_of_a_control_does_not_say_that_it_was_distilled(place, tmp_path):
    train(run_of(place, tmp_path / "mine", loss="cross_entropy", ce_weight=0.0))
    card, _ = card_of(tmp_path / "mine", tmp_path / "out", place / "held")
    assert "by cross-entropy alone" in card.content
    assert "distilled" not in card.content
    assert "knowledge-distillation" not in card.data.tags


def test_cards_that_cannot_be_made_are_refused_before_work(place, tmp_path):
    student = tmp_path / "s"
    shutil.copytree(place / "student", student)
    good = replace(config_of(place, tmp_path / "out", control=None), models=(("base", place / "base"), ("s", student)))
    with pytest.raises(ReportError, match="no model of this label, only base, s"):
        make_report(replace(good, cards=("other",)))
    with pytest.raises(ReportError, match="what it was trained on is not known"):
        make_report(replace(good, cards=("base",)))
    (student / "README.md").write_text("# Mine\n")
    with pytest.raises(ReportError, match="was written by somebody else"):
        make_report(replace(good, cards=("s",)))
    assert (student / "README.md").read_text() == "# Mine\n"
    assert not good.output.exists()
