"""What a report's figures must not depend on, and what it says of windows and of documents seen in training."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.held_out.overlap import trained_on
from logitcask_consumer.held_out.reading import ContextError
from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.run_document import write_origin
from logitcask_consumer.training.run import train
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

DOCUMENTS = random_documents(14, low=30, high=90, seed=3)
HELD_OUT = DOCUMENTS[8:]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    teacher = save_teacher(folder / "teacher")
    build_cask(folder / "train", teacher, DOCUMENTS[:8], per_shard=3)
    # One document of the training cask among others, in a shard of another name.
    build_cask(folder / "leaking", teacher, [*HELD_OUT, DOCUMENTS[2]])
    build_cask(folder / "held", teacher, HELD_OUT)
    build_cask(folder / "measured", teacher, HELD_OUT, spec=CaptureSpec(tail_logprobs=True))
    students: dict[str, dict[str, Any]] = {"wide": {}, "short": {"max_position_embeddings": 32}}
    for name, options in students.items():
        tiny_model(seed=9, **options).save_pretrained(folder / name)
    recurrent: dict[str, Any] = {"state_size": 4, "num_hidden_layers": 2, "layers": 2}
    tiny_model("mamba", seed=9, **recurrent).save_pretrained(folder / "recurrent")
    for name in ("wide", "short", "recurrent"):
        tiny_tokenizer().save_pretrained(folder / name)
    train(
        TrainConfig(
            casks=(folder / "train",),
            student=str(folder / "wide"),
            output=folder / "trained",
            seq_len=96,
            batch_tokens=192,
            lr=1e-4,
        )
    )
    return folder


def report(place, out, cask, *names, **options):
    models = tuple((name, place / name) for name in names)
    return make_report(ReportConfig(casks=(place / cask,), models=models, output=out, **options))


def dense_truth(place, name):
    """KL and acceptance over the held-out documents, from the dense distributions in float64."""
    from logitcask_consumer.student.loading import load_model

    teacher, student = load_model(place / "teacher").eval(), load_model(place / name).eval()
    kl, accepted, greedy = [], [], []
    for ids in HELD_OUT:
        t = dense_positions(teacher, ids).probs_RV
        with torch.no_grad():
            logits = student(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].double()
        p = torch.softmax(logits, -1).numpy()
        kl.append((t * np.log(t / p)).sum(1))
        accepted.append(np.minimum(t, p).sum(1))
        greedy.append(t[np.arange(len(t)), p.argmax(1)])
    return {name: float(np.concatenate(values).mean()) for name, values in
            {"kl": kl, "acceptance": accepted, "greedy_acceptance": greedy}.items()}  # fmt: skip


def test_a_models_figures_do_not_depend_on_the_models_beside_it(place, tmp_path):
    alone = report(place, tmp_path / "alone", "held", "wide")
    beside = report(place, tmp_path / "beside", "held", "short", "wide")
    assert beside["models"][1]["metrics"] == alone["models"][0]["metrics"]
    assert beside["models"][1]["reading"] == alone["models"][0]["reading"]
    assert beside["teacher"] == alone["teacher"]
    short = report(place, tmp_path / "short", "held", "short")
    assert short["models"][0]["metrics"] == beside["models"][0]["metrics"]
    # The dense truth, within what the tail draws of 350 positions leave.
    expected, kl = dense_truth(place, "wide"), alone["models"][0]["metrics"]["kl"]
    assert abs(kl["value"] - expected["kl"]) < 4 * kl["standard_error"]


def test_windows_are_stated_with_the_share_that_sees_less_context(place, tmp_path):
    document = report(place, tmp_path, "held", "wide", "short")
    wide, short = (model["reading"] for model in document["models"])
    longest = max(map(len, HELD_OUT)) - 1
    assert wide == {
        "seq_len": longest,
        "overlap": longest // 2,
        "packing": "best_fit",
        "share_with_less_context": 0.0,
        "extra_ids": "keep",
    }
    positions = np.array([len(ids) - 1 for ids in HELD_OUT])
    assert (short["seq_len"], short["overlap"]) == (32, 16)
    assert short["share_with_less_context"] == pytest.approx(np.maximum(positions - 32, 0).sum() / positions.sum())
    text = (tmp_path / "report.md").read_text()
    assert f"- wide: windows of at most {longest} tokens; 0.0% of the positions see less context" in text
    assert "- short: windows of at most 32 tokens; " in text


def test_the_change_is_paired_by_position_also_between_models_of_other_windows(place, tmp_path):
    """Columns that did not line up would pair positions of different documents."""
    document = report(place, tmp_path, "held", "short", "wide")
    short, wide = (model["metrics"]["kl"] for model in document["models"])
    change = document["change"]["metrics"]["kl"]
    assert change["value"] == pytest.approx(wide["value"] - short["value"], abs=1e-6)
    unpaired = np.hypot(wide["standard_error"], short["standard_error"])
    assert change["standard_error"] < 0.9 * unpaired


def test_a_sequence_length_beyond_a_models_context_is_refused(place, tmp_path):
    with pytest.raises(ContextError, match=r"--seq-len 64 is beyond the context of short, 32 tokens"):
        report(place, tmp_path / "out", "held", "wide", "short", seq_len=64)
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_keep_packed_documents_apart_is_measured_one_window_to_a_sequence(place, tmp_path):
    document = report(place, tmp_path, "measured", "recurrent")
    model = document["models"][0]
    assert model["reading"]["packing"] == "none"
    expected = dense_truth(place, "recurrent")
    for name in ("kl", "acceptance", "greedy_acceptance"):
        estimate = model["metrics"][name]
        assert abs(estimate["value"] - expected[name]) < 4 * estimate["standard_error"] + 1e-3, name


def test_acceptance_is_an_estimate_with_tail_logprobs_and_a_bracket_without(place, tmp_path):
    expected = dense_truth(place, "wide")["acceptance"]
    measured = report(place, tmp_path / "measured", "measured", "wide")["models"][0]
    assert measured["metrics"]["acceptance"]["value"] == pytest.approx(expected, abs=0.02)
    assert "acceptance_bracket" not in measured
    without = report(place, tmp_path / "without", "held", "wide")["models"][0]
    assert not {"acceptance", "tvd"} & without["metrics"].keys()
    bracket = without["acceptance_bracket"]
    assert bracket["low"] < expected < bracket["high"]


def test_documents_that_a_model_was_trained_on_are_named(place, tmp_path):
    said = []
    config = ReportConfig(casks=(place / "leaking",), models=(("s", place / "trained"),), output=tmp_path / "leaking")
    document = make_report(config, say=said.append)
    assert document["models"][0]["trained_on"] == {"status": "checked", "documents": 1, "unread": [], "chosen_by": 0}
    assert document["warnings"][0].startswith("s was trained on 1 of the 7 documents of this report")
    assert document["warnings"][0] in said
    assert "was trained on 1 of the 7" in (tmp_path / "leaking" / "report.md").read_text()
    clean = report(place, tmp_path / "clean", "held", "trained", "wide")
    assert clean["warnings"] == []
    assert [model["trained_on"]["status"] for model in clean["models"]] == ["checked", "untrained"]
    assert "that no training run of these models saw" in (tmp_path / "clean" / "report.md").read_text()
    whole = report(place, tmp_path / "whole", "train", "trained")
    assert whole["models"][0]["trained_on"]["documents"] == 8


def test_documents_that_a_student_was_chosen_by_are_named(place, tmp_path):
    shared: dict[str, Any] = {
        "casks": (place / "train",),
        "student": str(place / "wide"),
        "seq_len": 96,
        "max_steps": 2,
    }
    shared |= {"eval_casks": (place / "held",), "eval_every": 1}
    train(TrainConfig(**shared, output=tmp_path / "chosen", save_steps=1, load_best=True))
    train(TrainConfig(**shared, output=tmp_path / "last", save_steps=1))
    first = tmp_path / "chosen" / "checkpoints" / "checkpoint-1"
    models = (("chosen", tmp_path / "chosen"), ("last", tmp_path / "last"), ("first", first))
    config = ReportConfig(casks=(place / "held",), models=models, output=tmp_path / "out", cards=("chosen", "last"))
    document = make_report(config)
    documents = document["cask"]["documents"]
    assert [model["trained_on"]["chosen_by"] for model in document["models"]] == [documents, 0, 0]
    (warning,) = document["warnings"]
    assert warning.startswith(f"chosen comes of a choice among checkpoints by {documents} of the {documents} documents")
    assert "that no training run of these models saw" not in (tmp_path / "out" / "report.md").read_text()
    said = f"comes of a choice among checkpoints by {documents} of these {documents} documents"
    assert said in (tmp_path / "chosen" / "README.md").read_text()
    assert "choice among" not in (tmp_path / "last" / "README.md").read_text()
    other = make_report(ReportConfig(casks=(place / "measured",), models=models[:1], output=tmp_path / "other"))
    shared_texts = set(map(bytes, Cask.open(place / "held").document_ids()))
    expected = sum(bytes(row) in shared_texts for row in Cask.open(place / "measured").document_ids())
    assert other["models"][0]["trained_on"]["chosen_by"] == expected
    held = [Cask.open(place / "held")]
    further = {**shared, "student": str(tmp_path / "chosen"), "eval_casks": (), "eval_every": None}
    train(TrainConfig(**further, output=tmp_path / "further"))
    measured = {**shared, "student": str(tmp_path / "chosen"), "output": tmp_path / "measured"}
    notes = list[str]()
    train(TrainConfig(**measured), say=notes.append)
    assert any("the student comes of a choice among checkpoints by" in note for note in notes)
    made = tmp_path / "made"
    made.mkdir()
    write_origin(made, tmp_path / "further")
    assert [trained_on(folder, held)["chosen_by"] for folder in (tmp_path / "further", made)] == [documents] * 2


def test_a_training_cask_that_is_gone_is_said_and_shard_names_still_tell(place, tmp_path):
    run = json.loads((place / "trained" / "logitcask.json").read_text())
    moved = tmp_path / "moved"
    tiny_model(seed=9).save_pretrained(moved)
    tiny_tokenizer().save_pretrained(moved)
    (moved / "logitcask.json").write_text(json.dumps(run | {"places": [str(tmp_path / "nowhere")]}))
    document = make_report(ReportConfig(casks=(place / "train",), models=(("s", moved),), output=tmp_path / "out"))
    known = document["models"][0]["trained_on"]
    assert (known["status"], known["documents"]) == ("unchecked", 8)
    assert "could not be checked" in document["warnings"][1]


def test_a_training_cask_in_an_object_store_is_looked_into(place, tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="object stores need the extra `remote`")
    run = json.loads((place / "trained" / "logitcask.json").read_text())
    fsspec.filesystem("memory").put(f"{place / 'train'}/", "memory://reading/train/", recursive=True)
    (tmp_path / "logitcask.json").write_text(json.dumps(run | {"places": ["memory://reading/train"]}))
    try:
        known = trained_on(tmp_path, [Cask.open(place / "train")])
    finally:
        fsspec.filesystem("memory").rm("memory://reading", recursive=True)
    assert (known["status"], known["unread"]) == ("checked", [])
    assert known["documents"] == len(Cask.open(place / "train"))


def test_documents_of_every_run_behind_a_model_are_looked_for(place, tmp_path):
    """A checkpoint belongs to its run, and a model that a run went on from was trained before."""
    (checkpoint,) = (place / "trained" / "checkpoints").glob("checkpoint-*")
    config = TrainConfig(
        casks=(place / "held",), student=str(checkpoint), output=tmp_path / "again", seq_len=96, max_steps=1
    )
    train(config)
    models = (("checkpoint", checkpoint), ("again", tmp_path / "again"))
    document = make_report(ReportConfig(casks=(place / "train",), models=models, output=tmp_path / "out"))
    expected = {"status": "checked", "documents": 8, "unread": [], "chosen_by": 0}
    assert [model["trained_on"] for model in document["models"]] == [expected, expected]


def test_another_cask_at_the_place_of_the_training_cask_is_no_proof(place, tmp_path):
    lent, teacher = tmp_path / "lent", AutoModelForCausalLM.from_pretrained(place / "teacher")
    build_cask(lent, teacher, HELD_OUT)
    train(TrainConfig(casks=(lent,), student=str(place / "wide"), output=tmp_path / "trained", seq_len=96, max_steps=1))
    build_cask(tmp_path / "other", teacher, DOCUMENTS[:8])
    shutil.rmtree(lent)
    (tmp_path / "other").rename(lent)
    config = ReportConfig(casks=(place / "leaking",), models=(("s", tmp_path / "trained"),), output=tmp_path / "out")
    known = make_report(config)["models"][0]["trained_on"]
    assert (known["status"], known["documents"]) == ("unchecked", 0)
    assert "shards that the run read are no longer in it" in known["unread"][0]


@pytest.mark.parametrize("output", ["teacher/config.json", "teacher/config.json/below"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_read(place, output):
    config = ReportConfig(casks=(place / "gone",), models=(("s", place / "wide"),), output=place / output)
    with pytest.raises(ReportError, match="cannot be made or written"):
        make_report(config)


@pytest.mark.parametrize("output", ["leaking", "leaking/report", "leaking/shards/a/b", "link", "link/report"])
def test_a_report_within_a_cask_is_refused(place, output, tmp_path):
    (tmp_path / "leaking").symlink_to(place / "leaking")
    (tmp_path / "link").symlink_to(place / "leaking" / "shards")
    before = sorted(place.rglob("*"))
    config = ReportConfig(casks=(place / "gone",), models=(("s", place / "wide"),), output=tmp_path / output)
    with pytest.raises(ReportError, match=r"lies in the cask .*leaking, which holds nothing else; name another folder"):
        make_report(config)
    assert sorted(place.rglob("*")) == before


def test_the_name_of_the_teachers_column_is_refused(place, tmp_path):
    with pytest.raises(ReportError, match="the label 'teacher' is that of the teacher's own column"):
        make_report(ReportConfig(casks=(place / "held",), models=(("teacher", place / "wide"),), output=tmp_path / "o"))


def test_a_negative_seed_of_the_bootstrap_is_refused(place, tmp_path):
    config = ReportConfig(casks=(place / "held",), models=(("s", place / "wide"),), output=tmp_path / "out", seed=-1)
    with pytest.raises(ReportError, match="seed must be at least 0"):
        make_report(config)


def test_a_model_that_gives_no_numbers_at_some_positions_is_refused(place, tmp_path):
    """Its means would be none; what is tried at the start does not read the token whose embedding is damaged."""
    shutil.copytree(place / "teacher", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    token = int(next(ids for ids in HELD_OUT if ids[0] > 20)[0])
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    models = (("good", place / "wide"), ("broken", tmp_path / "broken"))
    with pytest.raises(ReportError, match=r"broken gives no probability that is a number at \d+ of \d+ positions"):
        make_report(ReportConfig(casks=(place / "held",), models=models, output=tmp_path / "out"))
    assert not (tmp_path / "out" / "report.json").exists()
