"""A run that was interrupted anywhere, and goes on with any number of processes, trains what an unbroken one does."""

import json
import logging
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from accelerate import skip_first_batches
from torch.utils.data import DataLoader

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import EMPTY, StepSampler, open_casks
from logitcask_consumer.run_document import RunFolderError
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from tests.support.consumer.cask_builder import tiny_model
from tests.support.consumer.resume_worker import recorded_train
from tests.support.consumer.two_processes import run_in_two_processes

FIRST, THIRD = 4, 14
"""Steps in which a run is killed: in its first epoch, and in its third."""
SIGNAL = 8
"""Step in which one process gets a SIGTERM."""


@pytest.fixture(scope="module")
def base(place):
    return TrainConfig(
        casks=(place / "cask",),
        student="from-teacher:layers=2",
        teacher=place / "teacher",
        output=place / "unset",
        seq_len=64,
        overlap=8,
        batch_tokens=256,
        micro_tokens=128,
        epochs=3,
        lr=3e-3,
        save_steps=3,
        keep_checkpoints=100,
    )


@pytest.fixture(scope="module")
def dropout(place):
    tiny_model(layers=2, attention_dropout=0.2).save_pretrained(place / "dropout")
    return str(place / "dropout")


@pytest.fixture(scope="module")
def runs(base, dropout, place):
    """Runs of every kind, each finished; one start of two processes makes all that need them."""
    calls = []

    def config(name, **more):
        return replace(base, output=place / name, **more)

    def alone(name, call, **more):
        recorded_train(config(name, **more), place / f"{name}.{call}-0.npz")

    def later(name, call, stop=None, at_signal=None, **more):
        settings = config(name, **more).as_dict()
        calls.append({"settings": settings, "stop": stop, "signal": at_signal, "record": str(place / f"{name}.{call}")})

    def killed(name, step, **more):
        assert recorded_train(config(name, **more), place / f"{name}.0-0.npz", stop=step) is None

    alone("whole1", 1)
    alone("auto", 1, batch_tokens=None, epochs=1)
    killed("auto12", 9, batch_tokens=None, epochs=1)
    later("auto12", 1, batch_tokens=None, epochs=1)
    later("whole2", 1)
    later("dropout2", 1, student=dropout)
    later("stopped2", 0, at_signal=SIGNAL)
    later("stopped2", 1)
    for step in (FIRST, THIRD):
        killed(f"1to1at{step}", step)
        alone(f"1to1at{step}", 1)
        killed(f"1to2at{step}", step)
        later(f"1to2at{step}", 1)
        later(f"2to2at{step}", 0, stop=step)
        later(f"2to2at{step}", 1)
        later(f"2to1at{step}", 0, stop=step)
    later("dropout22", 0, stop=FIRST, student=dropout, workers=1)
    later("dropout22", 1, student=dropout, workers=1)
    (place / "calls").write_text(json.dumps(calls))
    run_in_two_processes("resume_worker", place / "calls")
    for step in (FIRST, THIRD):
        alone(f"2to1at{step}", 1)
    results = [json.loads((place / f"calls-{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0] == results[1], "both processes stopped after the same steps"
    return place


def losses(folder):
    return [(line["step"], line["kd"], line["ce"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl")]


def trained(place, name):
    """Step -> sorted document * 1000 + position, by the call of the run that made the step last."""
    steps = {}
    for call in (0, 1):
        made = {}
        for path in sorted(place.glob(f"{name}.{call}-?.npz")):
            with np.load(path) as record:
                for step in record.files:
                    made.setdefault(int(step), []).append(record[step])
        steps |= {step: np.sort(np.concatenate(parts)) for step, parts in made.items()}
    return steps


def every_position(place):
    """Document * 1000 + position of the whole cask, sorted."""
    lengths = open_casks([place / "cask"], tokenizer_fingerprint=None)[0].document_lengths() - 1
    return np.concatenate([number * 1000 + np.arange(length) for number, length in enumerate(lengths)])


@pytest.mark.parametrize("step", [FIRST, THIRD])
@pytest.mark.parametrize("way", ["1to1", "1to2", "2to1", "2to2"])
def test_every_epoch_trains_each_position_once_wherever_and_however_a_run_went_on(runs, way, step):
    steps, per_epoch = trained(runs, f"{way}at{step}"), max(trained(runs, "whole1")) // 3
    assert per_epoch > FIRST, "the kills are where they are meant to be"
    assert 2 * per_epoch < THIRD - 2 < THIRD < 3 * per_epoch, "and the checkpoints before them"
    for epoch in range(3):
        epochs_steps = [steps[epoch * per_epoch + number] for number in range(1, per_epoch + 1)]
        np.testing.assert_array_equal(np.sort(np.concatenate(epochs_steps)), every_position(runs))
    for number, positions in trained(runs, "whole1").items():
        np.testing.assert_array_equal(steps[number], positions, err_msg=f"step {number}")
    whole, resumed = losses(runs / f"whole{way[0]}"), losses(runs / f"{way}at{step}")
    if way[0] == way[-1]:
        assert resumed == whole
    else:
        np.testing.assert_allclose(resumed, whole, rtol=1e-6)


def test_dropout_and_workers_do_not_change_a_run_of_two_processes(runs):
    assert losses(runs / "dropout22") == losses(runs / "dropout2")


def test_an_automatic_batch_stays_that_of_the_run_that_began(runs):
    """One sequence a step: the second process has none, but the steps are the same and all positions are trained."""
    whole, resumed = losses(runs / "auto"), losses(runs / "auto12")
    assert json.loads((runs / "auto12" / "logitcask.json").read_text())["batch_tokens"] == 64
    assert len(whole) == len(resumed) > 15
    np.testing.assert_allclose(resumed, whole, rtol=1e-5)
    np.testing.assert_array_equal(np.sort(np.concatenate(list(trained(runs, "auto12").values()))), every_position(runs))


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step_and_nothing_is_lost(runs):
    calls = json.loads((runs / "calls").read_text())
    stopped = next(number for number, call in enumerate(calls) if call["signal"])
    result = json.loads((runs / "calls-0.json").read_text())[str(stopped)]
    assert result == SIGNAL + 1, "the processes tell each other at the start of a step"
    assert (runs / "stopped2" / "checkpoints" / f"checkpoint-{result}").is_dir()
    assert losses(runs / "stopped2") == losses(runs / "whole2")


def test_dropout_does_not_depend_on_workers_nor_on_where_a_run_was_interrupted(base, dropout, tmp_path):
    whole = train(replace(base, student=dropout, output=tmp_path / "whole"))
    for step in (FIRST, THIRD):
        broken = replace(base, student=dropout, output=tmp_path / str(step), workers=1)
        assert recorded_train(broken, tmp_path / "record", stop=step) is None
        assert losses(train(broken).output) == losses(whole.output), f"killed in step {step}"


def test_the_control_a_sampler_that_is_told_its_epoch_repeats_the_first(base, tmp_path, monkeypatch):
    """What the tests above would let through if a resumed run did not know its epoch."""
    whole = train(replace(base, output=tmp_path / "whole"))
    broken = replace(base, output=tmp_path / "broken")
    recorded_train(broken, tmp_path / "record", stop=THIRD)
    plain = StepSampler.__init__

    def epoch_unknown(self, *args, **options):
        plain(self, *args, **{**options, "steps_done": lambda: 0})

    monkeypatch.setattr(StepSampler, "__init__", epoch_unknown)
    assert losses(train(broken).output) != losses(whole.output)


@pytest.mark.parametrize(
    ("sequences", "processes", "micro", "accumulation"), [(4, 2, 1, 2), (5, 2, 3, 1), (1, 3, 1, 1)]
)
def test_a_step_is_the_same_for_any_number_of_processes_and_skipping_keeps_the_epoch(
    sequences, processes, micro, accumulation
):
    def sampler(process, done, *, count=processes):
        shape = (micro, accumulation) if count > 1 else (sequences, 1)
        return StepSampler(
            [np.array([7, 6])],
            seed=3,
            sequences=sequences,
            micro=shape[0],
            accumulation=shape[1],
            processes=count,
            process=process,
            steps_done=lambda: done,
            steps_in_all=lambda: 100,
        )

    steps = sampler(0, 0).steps
    for epoch in (0, 2):
        alone = [sorted(step) for step in sampler(0, epoch * steps, count=1)]
        assert sorted(number for step in alone for number in step if number != EMPTY) == list(range(13))
        shared = [list(sampler(process, epoch * steps)) for process in range(processes)]
        for number, step in enumerate(alone):
            own = [part[number * accumulation : (number + 1) * accumulation] for part in shared]
            flat = sorted(sequence for part in own for micro_batch in part for sequence in micro_batch)
            assert [x for x in flat if x != EMPTY] == [x for x in step if x != EMPTY]
        documents: Any = range(13)
        loader: Any = DataLoader(documents, batch_sampler=sampler(1, epoch * steps + 1), collate_fn=list)
        skipped = skip_first_batches(loader, accumulation)
        assert list(skipped.batch_sampler) == shared[1][accumulation:], "accelerate's way of resuming"


def test_fractional_epochs_resume_in_the_half_one(base, tmp_path):
    config = replace(base, epochs=1.5, output=tmp_path / "whole")
    broken = replace(config, output=tmp_path / "broken")
    whole = train(config)
    last = losses(whole.output)[-1][0]
    recorded_train(broken, tmp_path / "record", stop=last - 1)
    assert losses(train(broken).output) == losses(whole.output)


def test_a_batch_that_is_not_the_checkpoints_is_refused_where_the_document_does_not_tell(base, tmp_path):
    """Documents of older versions do not hold the chosen batch."""
    broken = replace(base, batch_tokens=None, epochs=1, output=tmp_path)
    recorded_train(broken, tmp_path / "record", stop=9)
    document = json.loads((tmp_path / "logitcask.json").read_text())
    del document["batch_tokens"]
    document["settings"]["batch_tokens"] = 256
    (tmp_path / "logitcask.json").write_text(json.dumps(document))
    with pytest.raises(RunFolderError, match=r"has \d+ steps, with this batch it would have \d"):
        train(replace(broken, batch_tokens=256))


def test_going_on_from_an_earlier_checkpoint_replaces_the_later_ones(base, tmp_path):
    whole = train(replace(base, output=tmp_path / "whole"))
    broken = replace(base, output=tmp_path / "broken", keep_checkpoints=3, save_steps=2)
    recorded_train(broken, tmp_path / "record", stop=13)
    checkpoints = broken.output / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-12", "checkpoint-8"]
    resumed = train(replace(broken, resume=str(checkpoints / "checkpoint-8"), save_steps=5))
    assert losses(resumed.output) == losses(whole.output)
    last = losses(whole.output)[-1][0]
    assert {path.name for path in checkpoints.iterdir()} == {f"checkpoint-{step}" for step in (8, 10, 15, last)}
    shutil.rmtree(broken.output)


def test_a_run_that_goes_on_in_other_micro_batches_and_saves_elsewhere_is_not_warned(base, place):
    """Both are as they were asked for; transformers takes them for a mistake."""
    said = list[str]()

    class Hears(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    handler = Hears()
    config = replace(base, output=place / "unwarned", micro_tokens=256, save_steps=3, epochs=1)
    assert recorded_train(config, place / "unwarned.0-0.npz", stop=4) is None
    logging.getLogger("transformers").addHandler(handler)
    try:
        result = train(replace(config, micro_tokens=64, save_steps=1))
        saved = {folder.name for folder in (config.output / "checkpoints").iterdir()}
        logging.getLogger("transformers.trainer_utils").warning("something else")
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert result.resumed_from is not None
    assert result.resumed_from.name == "checkpoint-3"
    assert {"checkpoint-4", "checkpoint-5"} <= saved, "what was asked for holds"
    assert said == ["something else"]
