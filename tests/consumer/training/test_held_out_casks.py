"""What a run is measured on: a sample of documents, bound to the run, and refused where it cannot be measured on."""

from dataclasses import replace

import pytest

from logitcask_consumer.config import TrainConfigError
from logitcask_consumer.data import EmptyCaskError
from logitcask_consumer.held_out.documents import HeldOutDocuments, UnmeasurableCaskError
from logitcask_consumer.held_out.overlap import NotHeldOutError
from logitcask_consumer.run_document import RunFolderError
from logitcask_consumer.training import train_to_end
from logitcask_consumer.training.run import train
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.errors import CaskNotFoundError, IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    HELD_OUT,
    build_cask,
    identity,
    random_documents,
    tiny_model,
    tiny_tokenizer,
)
from tests.support.consumer.resume_worker import Stop


def test_documents_are_a_sample_that_follows_from_their_text(held, place, teacher, tmp_path):
    def chosen(path, count=None):
        documents = HeldOutDocuments.open([path], tokenizer=tiny_tokenizer(), documents=count)
        return {row.tobytes() for row in documents.ids_N32}, documents

    every, _ = chosen(held)
    few, documents = chosen(held, 4)
    assert few == set(sorted(every)[:4])
    turned = build_cask(tmp_path / "turned", teacher, HELD_OUT[::-1], spec=CaptureSpec(tail_logprobs=True))
    same, other = chosen(turned, 4)
    assert same == few
    assert documents.binding() == other.binding() != chosen(held)[1].binding()
    model = tiny_model(layers=2)
    assert documents.reading(model, "none").packing == "none"
    dataset = documents.dataset(documents.reading(model, "best_fit"))
    lengths = Cask.open(held).document_lengths()
    assert dataset.num_positions == sum(int(lengths[number]) - 1 for number in documents.numbers_N)
    assert chosen(held, 99)[0] == every


def test_what_is_measured_on_belongs_to_the_run(config, held, teacher, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_to_end, "LogWhenSaving", lambda: Stop(4))
        with pytest.raises(KeyboardInterrupt):
            train(config)
    for changed in ({"eval_documents": 3}, {"eval_every": 1}, {"patience": 1}, {"eval_casks": (), "eval_every": None}):
        with pytest.raises(RunFolderError, match="other settings"):
            train(replace(config, **changed))
    moved = build_cask(tmp_path / "moved", teacher, HELD_OUT, spec=CaptureSpec(tail_logprobs=True))
    assert train(replace(config, eval_casks=(moved,))).run["result"]["steps"] == 10, "where it lies is free"


def test_what_cannot_be_measured_on_is_said_before_anything_is_made(config, place, teacher, tmp_path):
    with CaskWriter.create(tmp_path / "empty", teacher=identity(), capture=CaptureSpec(tau=0.05)):
        pass
    build_cask(tmp_path / "foreign", teacher, HELD_OUT[:2], tokenizer_fingerprint="other")
    build_cask(tmp_path / "other", teacher, HELD_OUT[:2], spec=CaptureSpec(tau=0.1))
    bound = CaptureSpec(mode="topk", k=4, entropy="at_least")
    build_cask(tmp_path / "bound", teacher, HELD_OUT[:2], spec=bound)
    imported = CaptureSpec(mode="topk", k=4, imported=True)
    build_cask(tmp_path / "imported", teacher, HELD_OUT[:2], spec=imported)
    held = config.eval_casks[0]
    cases = [
        ((tmp_path / "gone",), CaskNotFoundError, "gone"),
        ((tmp_path / "empty",), EmptyCaskError, "--eval-cask .*empty: 0 documents.*wait for its first shard"),
        ((tmp_path / "foreign",), IdentityMismatchError, "--eval-cask .*foreign: tokenizer_fingerprint.*bits per byte"),
        ((held, tmp_path / "other"), IdentityMismatchError, "capture"),
        ((tmp_path / "bound",), UnmeasurableCaskError, "--eval-cask: .* a lower bound is known"),
        ((tmp_path / "imported",), UnmeasurableCaskError, "--eval-cask: .* was imported from another tool's top-k"),
        ((place / "cask",), NotHeldOutError, "trains on every one of its documents"),
    ]
    before = sorted(tmp_path.rglob("*"))
    for casks, error, message in cases:
        with pytest.raises(error, match=message) as refusal:
            train(replace(config, eval_casks=casks))
        assert "\n" not in str(refusal.value)
        assert sorted(tmp_path.rglob("*")) == before, message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_every": 5}, "eval_every needs held-out documents: name them with eval_cask"),
        ({"load_best": True}, "load_best needs held-out documents"),
        ({"patience": 2, "min_improvement": 0.1}, "patience, min_improvement needs held-out documents"),
        ({"eval_casks": ("x",), "min_improvement": 0.1}, "min_improvement says what patience waits for"),
        ({"eval_casks": ("x",), "eval_every": 0}, "eval_every must be at least 1, got 0"),
        ({"eval_casks": ("x",), "patience": 0}, "patience must be at least 1, got 0"),
        ({"eval_casks": ("x",), "patience": 1, "min_improvement": float("nan")}, "min_improvement must be at least 0"),
    ],
)
def test_settings_that_do_nothing_are_refused(run_config, settings, message):
    with pytest.raises(TrainConfigError, match=message):
        run_config(**settings)


def test_a_document_that_is_trained_on_is_said(config, place, teacher, tmp_path):
    """In this run, and in an earlier one of the student."""
    training = random_documents(40)
    build_cask(tmp_path / "leaking", teacher, [*HELD_OUT, *training[:2]], spec=CaptureSpec(tail_logprobs=True))
    said = []
    first = train(replace(config, max_steps=1, eval_casks=(tmp_path / "leaking",), eval_every=None), say=said.append)
    assert any("trains on 2 of the 13 held-out documents" in line for line in said), said
    build_cask(tmp_path / "second", teacher, random_documents(5, seed=77))
    said.clear()
    train(
        replace(
            config,
            casks=(tmp_path / "second",),
            student=str(first.output),
            output=tmp_path / "again",
            eval_casks=(tmp_path / "leaking",),
            max_steps=1,
            eval_every=None,
        ),
        say=said.append,
    )
    assert any(line.startswith("earlier runs trained the student on 2 documents of ") for line in said), said
    assert not any("this run trains on" in line for line in said)
