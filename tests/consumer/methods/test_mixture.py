"""Several teachers in one run: the gradient of their mixture, each with its weight and loss, in any batches."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.data import EMPTY, CaskSource, MixedDataset, ShardBlockSampler, open_groups
from logitcask_consumer.losses import LossMismatchError, UnknownLossError
from logitcask_consumer.methods import MixtureMethod
from logitcask_consumer.report.build import ReportConfig
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.run_document import RunFolderError
from logitcask_consumer.student.forward import attach
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.choose_method import choose_method
from logitcask_consumer.training.run import train
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_schemas.errors import IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from tests.support.consumer.cask_builder import (
    VOCAB,
    build_cask,
    dense_positions,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)
from tests.support.consumer.two_processes import train_in_two_processes

DOCUMENTS = random_documents(5, low=4, high=20)
WHOLE = CaptureSpec(tau=1e-6, head_max=200, logprob_codec="f32")
"""Keeps all of a distribution over so few tokens."""
GRID = 40


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return [save_teacher(folder / str(seed), seed=seed) for seed in (0, 1)]


def mixture(paths, *, loss="forward_kl", weights=(0.7, 0.3), losses=(None, None), seq_len=64):
    """The method and dataset of casks with these weights and losses."""
    sources = [
        CaskSource(place=path, weight=weight, loss=own)
        for path, weight, own in zip(paths, weights, losses, strict=True)
    ]
    config = TrainConfig(casks=tuple(map(str, sources)), student="x", output=paths[0].parent / "out", loss=loss)
    groups = open_groups(sources, loss=loss)
    casks = [cask for group in groups for cask in group.casks]
    method = choose_method(config, groups, tiny_tokenizer()).bound(casks)
    return method, method.dataset(casks, seq_len=seq_len, overlap=0, packing="best_fit", seed=0)


def gradient(mixed, model):
    """Of the mean over all sequences in one batch, every parameter end to end."""
    method, dataset = mixed
    attach(model)
    loss = method.on(model, dataset)
    batch = loss.collator(dataset.read(list(range(len(dataset)))))
    value = loss.value(model, batch, 0.0)
    model.zero_grad()
    (value.loss / loss.counted(batch)).backward()
    return float(value.loss.detach() / loss.counted(batch)), torch.cat([p.grad.flatten() for p in model.parameters()])


def dense_gradient(teachers, model, weights):
    """Of KL(mixture || student), by plain forward passes; and the mean of weighted KL values."""
    model.zero_grad()
    total, value, positions = torch.zeros((), dtype=torch.float64), 0.0, 0
    for ids in DOCUMENTS:
        each = [torch.from_numpy(dense_positions(teacher, ids).probs_RV) for teacher in teachers]
        mixed = sum(weight * t for weight, t in zip(weights, each, strict=True)) / sum(weights)
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].double()
        logprobs = torch.log_softmax(logits, -1)
        total = total - (mixed * logprobs).sum()
        value -= float((mixed * logprobs).sum().detach())
        positions += len(ids) - 1
    (total / positions).backward()
    return value / positions, torch.cat([p.grad.flatten() for p in model.parameters()])


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("weights", [(0.7, 0.3), (3.0, 1.0)])
def test_forward_kl_on_several_teachers_has_the_gradient_of_their_mixture(tmp_path, teachers, weights):
    paths = [
        build_cask(tmp_path / name, teacher, DOCUMENTS, spec=WHOLE, weights_digest=name * 64)
        for name, teacher in zip("ab", teachers, strict=True)
    ]
    student = tiny_model(layers=2, seed=5)
    value, found = gradient(mixture(paths, weights=weights), student)
    expected_value, expected = dense_gradient(teachers, student, weights)
    assert value == pytest.approx(expected_value, rel=1e-5)
    assert relative(found, expected) < 1e-4
    # Controls: other weights, and one teacher alone, are far off.
    assert relative(gradient(mixture(paths, weights=weights[::-1]), student)[1], expected) > 0.05
    assert relative(dense_gradient(teachers, student, (1.0, 0.0))[1], expected) > 0.05


def test_with_few_draws_the_gradient_is_unbiased(tmp_path, teachers):
    """Averaged over a grid of the uniform behind the draws it is that of the dense mixture; one draw alone is not."""
    student, spec = tiny_model(layers=2, seed=5), CaptureSpec(tau=0.3, logprob_codec="f32")
    gradients = []
    for point in range(GRID):
        paths = [
            build_cask(
                tmp_path / f"{name}{point}",
                teacher,
                DOCUMENTS,
                spec=spec,
                uniform=(point + 0.5) / GRID,
                weights_digest=name * 64,
            )
            for name, teacher in zip("ab", teachers, strict=True)
        ]
        gradients.append(gradient(mixture(paths), student)[1])
    _, expected = dense_gradient(teachers, student, (0.7, 0.3))
    assert relative(torch.stack(gradients).mean(0), expected) < 0.02
    assert min(relative(each, expected) for each in gradients) > 0.05


def test_another_loss_for_a_cask_is_the_weighted_sum_of_both(tmp_path, teachers):
    spec = WHOLE.model_copy(update={"tail_logprobs": True})
    paths = [
        build_cask(tmp_path / name, teacher, DOCUMENTS, spec=spec, weights_digest=name * 64)
        for name, teacher in zip("ab", teachers, strict=True)
    ]
    student = tiny_model(layers=2, seed=5)
    _, both = gradient(mixture(paths, losses=(None, "js:beta=0.3")), student)
    # 0.7 and 0.3 of a mean over as many positions.
    alone = [
        gradient(mixture([path], weights=(1.0,), losses=(None,), loss=loss), student)[1]
        for path, loss in zip(paths, ("forward_kl", "js:beta=0.3"), strict=True)
    ]
    assert relative(both, 0.7 * alone[0] + 0.3 * alone[1]) < 1e-5
    assert relative(both, 0.5 * alone[0] + 0.5 * alone[1]) > 0.05


def test_every_part_of_an_epoch_has_its_share_of_every_source():
    sources = [np.array([40, 60]), np.array([10]), np.array([300, 90])]
    order = list(ShardBlockSampler(sources, seed=1, batch=7))
    assert sorted(order[:500]) == list(range(500))
    assert order[500:] == [EMPTY] * 4
    source = np.searchsorted([100, 110, 500], order[:500], side="right")
    for start in range(0, 500, 50):
        assert np.bincount(source[start : start + 50], minlength=3).tolist() == [10, 1, 39]
    assert list(ShardBlockSampler(sources[:1], seed=1)) == [number for number in order if 0 <= number < 100]


def test_a_part_without_a_sequence_in_a_batch_has_an_empty_one(tmp_path, teachers):
    paths = [
        build_cask(tmp_path / name, teacher, DOCUMENTS, weights_digest=name * 64)
        for name, teacher in zip("ab", teachers, strict=True)
    ]
    method, dataset = mixture(paths)
    assert isinstance(dataset, MixedDataset)
    student = tiny_model(layers=2, seed=5)
    attach(student)
    loss = method.on(student, dataset)
    for sequences, counts in (([0], [True, False]), ([len(dataset) - 1], [False, True]), ([EMPTY], [False, False])):
        batch = loss.collator(dataset.read(sequences))
        assert [bool(part["positions"]) for part in batch["parts"]] == counts
        value = loss.value(student, batch, 0.0)
        value.loss.backward()
        assert torch.isfinite(value.loss)
        assert len(value.sums) == loss.num_sums
        metrics = loss.metrics(value.sums.tolist())
        assert metrics["positions"] == loss.read(value.sums.tolist())
        # What was not measured is not there: a KL of 0 would be perfect agreement.
        assert [f"kl/{label}" in metrics for label in "ab"] == counts


@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_weights_count_whatever_a_step_holds(tmp_path, teachers, sequences):
    """What a step divides by counts positions, not weights, so that a step of one cask does not lose its weight."""
    paths = [
        build_cask(tmp_path / name, teacher, documents, spec=WHOLE, weights_digest=name * 64)
        for name, teacher, documents in (
            ("a", teachers[0], random_documents(12, low=30, high=60)),
            ("b", teachers[1], random_documents(3, low=30, high=60, seed=9)),
        )
    ]
    student = tiny_model(layers=2, seed=5)
    attach(student)
    method, dataset = mixture(paths, weights=(1.0, 20.0))
    loss = method.on(student, dataset)

    def summed(parts):
        student.zero_grad()
        for part in parts:
            batch = loss.collator(dataset.read(part))
            loss.value(student, batch, 0.0).loss.backward()
        return torch.cat([p.grad.flatten() for p in student.parameters()])

    order = [number for number in ShardBlockSampler(dataset.sources, seed=0, batch=sequences) if number != EMPTY]
    steps = [order[start : start + sequences] for start in range(0, len(order), sequences)]
    counted = [float(loss.counted(loss.collator(dataset.read(step)))) for step in steps]
    assert sum(counted) == dataset.num_positions
    whole = summed([order])
    assert relative(summed(steps), whole) < 1e-5
    # The mean weight of a position is 1, so that a step costs what one of a single teacher costs.
    positions = [part.num_positions for part in dataset.parts]
    assert sum(weight * count for weight, count in zip(loss.weights, positions, strict=True)) == pytest.approx(
        sum(positions)
    )
    method, dataset = mixture(paths, weights=(1.0, 1e-9))
    loss = method.on(student, dataset)
    assert relative(summed(steps), whole) > 0.1


def test_a_run_of_single_sequences_follows_the_weights(config):
    folder = config.output.parent
    casks = [((f"{folder / 'a'}:{a}", f"{folder / 'b'}:{b}")) for a, b in ((0.999, 0.001), (0.001, 0.999))]
    runs = [
        train(replace(config, casks=pair, loss="forward_kl", batch_tokens=64, epochs=2, output=folder / name))
        for pair, name in zip(casks, ("one", "two"), strict=True)
    ]
    one, two = (AutoModelForCausalLM.from_pretrained(run.output).state_dict() for run in runs)
    assert max(float((value - two[name]).abs().max()) for name, value in one.items()) > 1e-2


@pytest.fixture
def config(tmp_path_factory, teachers):
    folder = tmp_path_factory.mktemp("casks")
    for seed, (name, documents) in enumerate((("a", random_documents(20)), ("b", random_documents(12, seed=3)))):
        # Another width of the teacher's logits, another codec, more columns: what is read of the two has other types.
        more = {"tail_logprobs": True, "logprob_codec": "f32", "tau": 0.1} if seed else {}
        build_cask(folder / name, teachers[seed], documents, spec=CaptureSpec(**more), weights_digest=str(seed) * 64)
    teachers[0].save_pretrained(folder / "teacher")
    tiny_tokenizer().save_pretrained(folder / "teacher")
    return TrainConfig(
        casks=(f"{folder / 'a'}:0.7", f"{folder / 'b'}:2:forward_kl + 0.1*js"),
        student="from-teacher:layers=2",
        teacher=folder / "teacher",
        output=folder / "out",
        seq_len=64,
        batch_tokens=256,
        micro_tokens=256,
        epochs=8,
        lr=3e-3,
        save_steps=2,
    )


def test_a_run_on_two_teachers_lowers_the_loss_of_both_and_says_so(config):
    said = []
    result = train(config, say=said.append)
    lines = read_metrics(result.output / "metrics.jsonl")
    for name in ("kl/a", "kd/b", "ce/a", "ce/b"):
        measured = [line[name] for line in lines if name in line]
        assert measured[-1] < 0.95 * measured[0], name
    for line in lines:
        assert line["positions"] == line.get("positions/a", 0) + line.get("positions/b", 0)
        assert "kd" not in line, "losses of two kinds have no mean"
    assert {"kl/a", "kl/b", "ce"} <= result.run["result"]["closing"].keys()
    assert sum(line["positions"] for line in lines) == 8 * sum(cask["positions"] for cask in result.run["casks"])
    (of_a,) = [line for line in said if line.startswith("a: ")]
    assert "weight 0.7, loss forward_kl" in of_a
    assert [cask["capture"]["tau"] for cask in result.run["casks"]] == [0.05, 0.1]
    assert train(config).already_finished


def test_a_run_does_not_go_on_with_other_weights_or_losses(config):
    train(config)
    folder = config.output.parent
    for casks in ((f"{folder / 'a'}:0.6", config.casks[1]), (config.casks[0], f"{folder / 'b'}:2:forward_kl")):
        with pytest.raises(RunFolderError, match="mixture"):
            train(replace(config, casks=casks))


def test_a_run_does_not_go_on_where_a_cask_changed_its_group(config, teachers):
    """The same weights and losses, of other casks."""
    folder = config.output.parent
    build_cask(folder / "a2", teachers[0], random_documents(6, seed=8), weights_digest="0" * 64)
    begun = replace(config, casks=(f"{folder / 'a'}:0.01", f"{folder / 'a2'}:0.01", f"{folder / 'b'}:1:js"), epochs=1)
    train(begun)
    with pytest.raises(RunFolderError, match="mixture"):
        train(replace(begun, casks=(f"{folder / 'a'}:0.01", f"{folder / 'a2'}:1", f"{folder / 'b'}:1:js")))


def test_the_loss_of_a_run_is_read_even_where_every_cask_has_its_own(config):
    with pytest.raises(UnknownLossError, match="typo"):
        train(replace(config, loss="typo", casks=(f"{config.casks[0]}:forward_kl", config.casks[1])))


def test_a_loss_that_does_not_fit_names_its_cask(config):
    with pytest.raises(LossMismatchError, match=r"/a: loss 'js' needs"):
        train(replace(config, casks=(f"{config.casks[0]}:js", config.casks[1])))


def test_casks_and_teachers_may_be_given_as_objects(config):
    as_people_write: Any = {"output": "o", "other_teachers": "t"}
    given = TrainConfig(casks=(CaskSource(place="x", weight=0.5, loss="js"), "y:2"), student="s", **as_people_write)
    assert (given.casks, given.other_teachers) == (("x:0.5:js", "y:2"), (Path("t"),))
    assert json.dumps(given.as_dict())


def test_a_report_on_several_teachers_compares_them(config, tmp_path):
    result = train(config)
    folder, models = config.output.parent, (("be|fore", result.output / "initial"), ("after", result.output))
    document = make_report(
        ReportConfig(
            casks=(folder / "a", folder / "b"),
            models=models,
            output=tmp_path / "r",
            train_logs=(("run", result.output),),
        )
    )
    assert [(own["label"], own["folder"]) for own in document["teachers"]] == [("a", "a"), ("b", "b")]
    page = (tmp_path / "r" / "report.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1, "a table that Markdown reads"
    assert "[a](<a/report.md>)" in page
    alone = make_report(ReportConfig(casks=(folder / "b",), models=models, output=tmp_path / "alone"))
    assert alone["models"] == json.loads((tmp_path / "r" / "b" / "report.json").read_text())["models"]
    assert (tmp_path / "r" / "a" / "loss_curve.png").is_file()


def test_one_cask_with_a_weight_and_loss_is_a_plain_run_with_that_loss(config):
    folder = config.output.parent
    plain = train(replace(config, casks=(folder / "a",), loss="reverse_kl", output=folder / "plain"))
    written = train(replace(config, casks=(f"{folder / 'a'}:0.2:reverse_kl",), output=folder / "written"))
    of_plain, of_written = (AutoModelForCausalLM.from_pretrained(run.output).state_dict() for run in (plain, written))
    assert all(torch.equal(value, of_written[name]) for name, value in of_plain.items())
    assert train(replace(config, casks=(folder / "a",), loss="reverse_kl", output=folder / "written")).already_finished


@pytest.mark.parametrize("micro", [64, 128])
def test_micro_batches_do_not_change_what_is_learned(config, micro):
    folder = config.output.parent
    one = train(config)
    other = train(replace(config, micro_tokens=micro, output=folder / "other"))
    of_one, of_other = (AutoModelForCausalLM.from_pretrained(run.output).state_dict() for run in (one, other))
    for name, value in of_one.items():
        torch.testing.assert_close(value, of_other[name], rtol=2e-3, atol=2e-4)


def test_two_processes_learn_what_one_does(config):
    folder = config.output.parent
    one = train(config)
    two = train_in_two_processes(replace(config, output=folder / "two"))
    of_one, of_two = (AutoModelForCausalLM.from_pretrained(output).state_dict() for output in (one.output, two))
    for name, value in of_one.items():
        torch.testing.assert_close(value, of_two[name], rtol=2e-3, atol=2e-4)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(config):
    broken = replace(config, output=config.output.parent / "broken", keep_checkpoints=100)
    whole = train(config)
    train(broken)
    checkpoints = broken.output / "checkpoints"
    last = max(checkpoints.iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    shutil.rmtree(last)
    document = json.loads((broken.output / "logitcask.json").read_text())
    (broken.output / "logitcask.json").write_text(json.dumps({**document, "status": "running"}))
    resumed = train(broken)
    assert resumed.resumed_from is not None
    assert resumed.resumed_from.name != last.name
    of_whole, of_resumed = (AutoModelForCausalLM.from_pretrained(run.output).state_dict() for run in (whole, resumed))
    assert all(torch.equal(value, of_resumed[name]) for name, value in of_whole.items())


def test_a_trainer_of_ones_own_needs_the_method(config):
    method, dataset = mixture([config.output.parent / name for name in "ab"])
    model = tiny_model(layers=2)
    arguments = DistillConfig(output_dir=str(config.output), use_cpu=True, report_to=[])
    with pytest.raises(TypeError, match="MixtureMethod"):
        DistillTrainer(model, arguments, dataset)
    assert isinstance(method, MixtureMethod)
    trainer = DistillTrainer(model, arguments, dataset, dataset, method=method)
    assert trainer.evaluate()["eval_kl/a"] > 0
    plain = dataset.parts[0]
    for one, other in ((dataset, plain), (plain, dataset), (MixedDataset(dataset.parts[:1]), None)):
        with pytest.raises(TypeError, match="a MixtureMethod"):
            DistillTrainer(model, arguments, one, other, method=method)
    with pytest.raises(TypeError, match="MixtureMethod"):
        DistillTrainer(model, arguments, plain, {"b": dataset})


def test_a_teacher_with_another_tokenizer_is_refused_by_a_loss_on_tokens(tmp_path, teachers, config):
    build_cask(tmp_path / "foreign", teachers[1], DOCUMENTS, tokenizer_fingerprint="f" * 64)
    casks = (config.casks[0], f"{tmp_path / 'foreign'}:0.5")
    with pytest.raises(IdentityMismatchError, match=r"foreign: tokenizer_fingerprint: .* --loss alm"):
        train(replace(config, casks=casks))


def test_vocabularies_of_other_widths_may_be_mixed(tmp_path, teachers):
    """Models of one family pad their vocabulary to other sizes; beyond 65,536 ids are stored in two planes."""
    paths = [
        build_cask(tmp_path / "a", teachers[0], DOCUMENTS, spec=WHOLE),
        build_cask(tmp_path / "b", teachers[1], DOCUMENTS, spec=WHOLE, vocab_size=70_000, tokenizer_size=VOCAB),
    ]
    student = tiny_model(layers=2, seed=5)
    _, expected = dense_gradient(teachers, student, (0.7, 0.3))
    assert relative(gradient(mixture(paths), student)[1], expected) < 1e-4
