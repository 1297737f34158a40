"""Whole runs of a student with its own tokenizer: the loss falls, batches may be split anyhow, mistakes are named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from logitcask_consumer.config import TrainConfig, TrainConfigError
from logitcask_consumer.cross_tokenizer import AlignedDocuments, ChunkObjective, CrossTokenizerMethod
from logitcask_consumer.data import open_casks
from logitcask_consumer.losses import LossMismatchError, LossParameterError, UnknownLossError
from logitcask_consumer.report.config import ReportConfig
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.student.loading import load_model, load_tokenizer
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_consumer.training.trainer import DistillTrainer
from logitcask_schemas.cask import Cask, CaskWriter
from logitcask_schemas.errors import IdentityMismatchError, ModelError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.extent import Extent
from logitcask_schemas.record.identity import tokenizer_fingerprint
from tests.support.consumer.cask_builder import build_cask, tiny_model
from tests.support.consumer.text_tokenizers import byte_level, corpus
from tests.support.consumer.two_processes import train_in_two_processes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small teacher that has learned the docstrings, casks of them, and a student with fewer tokens."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = byte_level(500)
    texts = [text[:160] for text in corpus() if len(text) > 60][:60]
    documents = [np.array(tokenizer(text)["input_ids"], dtype=np.uint16) for text in texts]
    teacher = tiny_model(vocab_size=512, initializer_range=0.05).train()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for step in range(150):
        ids = torch.from_numpy(documents[step % len(documents)].astype(np.int64))[None]
        loss = teacher(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    teacher.eval().save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    fields: dict[str, Any] = {"vocab_size": 512, "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    build_cask(folder / "cask", teacher, documents[:48], per_shard=20, **fields)
    build_cask(folder / "held", teacher, documents[48:], **fields)
    build_cask(folder / "topk", teacher, documents[:4], spec=CaptureSpec(mode="topk", k=5), **fields)
    tiny_model(vocab_size=336, layers=2, initializer_range=0.05, seed=1).save_pretrained(folder / "student")
    byte_level(330, bos=True).save_pretrained(folder / "student")
    return folder


@pytest.fixture
def config(place, tmp_path):
    return TrainConfig(
        casks=(place / "cask",),
        student=str(place / "student"),
        teacher=place / "teacher",
        output=tmp_path / "out",
        loss="alm",
        seq_len=64,
        overlap=16,
        batch_tokens=512,
        micro_tokens=512,
        epochs=4,
        lr=5e-3,
        save_steps=100,
    )


def held_out(config, student, folder):
    """Bits per byte of student and teacher, and of how many bytes, on held-out documents."""
    model, casks = load_model(Path(student)), open_casks(config.casks[0].parent / "held", tokenizer_fingerprint=None)
    documents = AlignedDocuments.of(
        model,
        load_tokenizer(Path(student)),
        casks,
        teacher=config.teacher,
        folder=folder,
        seq_len=64,
        overlap=16,
    )
    columns = documents.measure(model)
    bits = np.log(2.0) * columns.bytes_C.sum()
    return columns.student_nats_C.sum() / bits, columns.teacher_nats_C.sum() / bits, columns.bytes_C.sum()


@pytest.mark.parametrize("loss", ["alm", "1.5*uld + cross_entropy"])
def test_a_run_lowers_its_loss_and_the_bits_per_byte_of_unseen_text(config, tmp_path, loss):
    config, said = replace(config, loss=loss), []
    result = train(config, say=said.append)
    lines = read_metrics(result.output / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.85 * lines[0]["loss"]
    assert lines[-1]["kd"] < lines[0]["kd"]
    assert sum(line["positions"] for line in lines) == result.run["result"]["positions"]
    assert ("loss/uld" in lines[0]) == ("uld" in loss)
    before, teacher, _ = held_out(config, config.student, tmp_path / "aligned")
    after, same_teacher, size = held_out(config, result.output, tmp_path / "aligned")
    assert after < 0.85 * before
    assert same_teacher == teacher < before
    assert size > 1000
    assert AutoTokenizer.from_pretrained(result.output).get_vocab() == byte_level(330, bos=True).get_vocab()
    assert json.loads((result.output / "logitcask.json").read_text())["status"] == "finished"
    assert any("chunks" in line for line in said)


def test_the_step_does_not_depend_on_the_micro_batches_and_resumes(config, tmp_path):
    config = replace(config, loss="alm + 0.5*cross_entropy + uld", epochs=2)
    whole = train(config)
    split = train(replace(config, output=tmp_path / "split", micro_tokens=64))
    lines, others = (read_metrics(run.output / "metrics.jsonl") for run in (whole, split))
    for one, other in zip(lines, others, strict=True):
        for name in ("loss", "kd", "ce", "bits_per_byte", "teacher_bits_per_byte", "chunks", "positions"):
            assert one[name] == pytest.approx(other[name], rel=2e-3), name
    assert train(config).already_finished
    broken = replace(config, output=tmp_path / "broken", save_steps=3)
    train(broken)
    last = max((broken.output / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    if len(list((broken.output / "checkpoints").iterdir())) > 1:
        shutil.rmtree(last)
    document = json.loads((broken.output / "logitcask.json").read_text())
    (broken.output / "logitcask.json").write_text(json.dumps({**document, "status": "running"}))
    again = train(broken)
    assert again.resumed_from is not None
    for one, other in zip(lines, read_metrics(again.output / "metrics.jsonl"), strict=True):
        assert one["kd"] == pytest.approx(other["kd"], rel=1e-5)


def test_documents_with_records_of_some_positions_are_refused(config, place, tmp_path):
    whole = Cask.open(place / "cask")
    teacher = whole.manifest.teacher
    mask = np.arange(len(whole.read(0).token_ids_L) - 1) > 3
    document = whole.read(0)
    part = replace(document, records=document.records.select(mask), extent=Extent.of_mask(mask))
    with CaskWriter.create(tmp_path / "part", teacher=teacher, capture=whole.manifest.capture, version=2) as writer:
        writer.publish([part])
    with pytest.raises(LossMismatchError, match=r"part: 1 document with records of some positions only"):
        train(replace(config, casks=(tmp_path / "part",)))


@pytest.fixture
def own_teacher(place, tmp_path):
    """A teacher with the student's tokenizer, and its cask of the same texts."""
    tokenizer = load_tokenizer(place / "student")
    texts = [text[:160] for text in corpus() if len(text) > 60][:48]
    documents = [np.array(tokenizer(text)["input_ids"], dtype=np.uint16) for text in texts]
    teacher = tiny_model(vocab_size=336, seed=3)
    fields: dict[str, Any] = {"vocab_size": 336, "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}
    build_cask(tmp_path / "own", teacher, documents, **fields)
    teacher.save_pretrained(tmp_path / "own-teacher")
    tokenizer.save_pretrained(tmp_path / "own-teacher")
    return tmp_path


def test_teachers_of_two_tokenizers_train_one_student(config, place, own_teacher):
    """On token ids where these are the teacher's, and chunk by chunk where they are not."""
    casks = (f"{own_teacher / 'own'}:3", f"{place / 'cask'}:1:alm")
    config = replace(config, casks=casks, loss="forward_kl", micro_tokens=256, epochs=8)
    result = train(config)
    lines = read_metrics(result.output / "metrics.jsonl")
    assert lines[-1]["kl/own"] < 0.9 * lines[0]["kl/own"]
    assert lines[-1]["kd/cask"] < lines[0]["kd/cask"]
    assert {"bits_per_byte/cask", "positions/own", "positions"} <= lines[0].keys()
    assert (result.output / "aligned" / "cask").is_dir()


def test_of_several_teachers_the_one_with_the_cask_s_tokenizer_is_read(config, place, own_teacher):
    casks = (f"{own_teacher / 'own'}:0.5", f"{place / 'cask'}:1:alm")
    config = replace(config, casks=casks, loss="forward_kl", teacher=own_teacher / "own-teacher", epochs=1)
    with pytest.raises(IdentityMismatchError, match="name the folder of the teacher that the cask was made with"):
        train(config)
    assert train(replace(config, other_teachers=(place / "teacher",))).run["status"] == "finished"
    own = own_teacher / "own-teacher"
    with pytest.raises(IdentityMismatchError, match="name the folder of its teacher with --teacher too"):
        train(replace(config, other_teachers=(own,), output=own_teacher / "other"))


def test_a_report_on_teachers_of_two_tokenizers_takes_the_teacher_of_each(place, own_teacher, tmp_path):
    config = ReportConfig(
        casks=(own_teacher / "own", place / "held"),
        models=(("student", place / "student"),),
        output=tmp_path / "report",
        teacher=own_teacher / "own-teacher",
    )
    with pytest.raises(IdentityMismatchError, match=r"held .* name the folder of its teacher with --teacher"):
        make_report(config)
    assert not (tmp_path / "report").exists(), "refused before anything was measured"
    own, held = make_report(replace(config, other_teachers=(place / "teacher",)))["teachers"]
    assert own["models"][0]["metrics"]["kl"]["value"] > 0
    assert held["models"][0]["metrics"] == {}
    assert held["models"][0]["bytes"]["bits_per_byte"]["value"] > 0
    assert "bits per byte" in (tmp_path / "report" / "report.md").read_text()
    # Of one teacher's casks too the fitting folder is taken, wherever it stands.
    alone = replace(config, casks=config.casks[1:], other_teachers=(place / "teacher",), output=tmp_path / "alone")
    assert make_report(alone)["models"] == held["models"]


def test_two_processes_train_as_one(config, tmp_path):
    """DDP over gloo: same loss per step."""
    alone = train(replace(config, epochs=1, loss="alm + cross_entropy"))
    config = replace(config, epochs=1, loss="alm + cross_entropy", output=tmp_path / "pair", micro_tokens=256)
    pair = train_in_two_processes(config)
    lines, others = (read_metrics(folder / "metrics.jsonl") for folder in (alone.output, pair))
    for one, other in zip(lines, others, strict=True):
        for name in ("kd", "ce", "chunks", "positions", "bits_per_byte"):
            assert one[name] == pytest.approx(other[name], rel=2e-3), name


def test_the_trainer_evaluates_on_chunks(config, place, tmp_path):
    """The mean over the student's tokens, whatever the batches; training in between, in a trainer of one's own."""
    tokenizer, casks = load_tokenizer(place / "student"), open_casks(place / "cask", tokenizer_fingerprint=None)
    objective = ChunkObjective.parse("alm + 0.5*cross_entropy")
    method = CrossTokenizerMethod.of(objective, tokenizer, teacher=config.teacher, folder=tmp_path / "aligned")
    dataset = method.bound(casks).dataset(casks, seq_len=64, overlap=16, packing="best_fit", seed=0)
    args = DistillConfig(str(tmp_path / "run"), max_steps=4, report_to="none", use_cpu=True, save_strategy="no")
    trainer = DistillTrainer(load_model(place / "student"), args, dataset, dataset, tokenizer, method=method)
    whole = trainer.evaluate()
    trainer.args.per_device_eval_batch_size = 3
    assert trainer.evaluate()["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-5)
    assert whole["eval_loss"] == pytest.approx(whole["eval_loss/alm"] + 0.5 * whole["eval_ce"], rel=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < whole["eval_loss"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*tie.*:UserWarning")
@pytest.mark.parametrize("part", [{"lora": "rank=4,targets=q_proj+lm_head"}, {"freeze_head": True}], ids=str)
def test_a_part_of_the_student_may_be_trained(config, place, part):
    """Adapters of body and head, or all but the head: the loss falls and the rest stays as it was."""
    if "lora" in part:
        pytest.importorskip("peft")
    result = train(replace(config, loss="alm + cross_entropy", lr=1e-2, **part))
    lines = read_metrics(result.output / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.97 * lines[0]["loss"]
    before, after = load_model(place / "student"), load_model(result.output)
    heads = [model.get_output_embeddings() for model in (before, after)]
    kept = [getattr(head, "base_layer", head).weight for head in heads]
    assert torch.equal(*kept)
    if "lora" in part:
        assert heads[1].lora_B["default"].weight.abs().max() > 0
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        change = before(input_ids=ids).logits - after(input_ids=ids).logits
    assert float(change.abs().max()) > 1e-3


def test_a_shared_tokenizer_may_be_aligned_too(config, place):
    """The chunks are then the tokens; a student of the teacher's family loses nothing by it."""
    result = train(replace(config, student="from-teacher:layers=1", epochs=1))
    lines = read_metrics(result.output / "metrics.jsonl")
    assert lines[-1]["kd"] < lines[0]["kd"]


def test_mistakes_are_named_with_the_way_out(config, place, tmp_path):
    with pytest.raises(IdentityMismatchError, match=r"alm.*--teacher.*docs/cross_tokenizer\.md"):
        train(replace(config, loss="forward_kl"))
    with pytest.raises(TrainConfigError, match="--teacher"):
        train(replace(config, teacher=None))
    with pytest.raises(UnknownLossError, match="there are: alm, cross_entropy, uld"):
        train(replace(config, loss="0.5*alm + 0.5*forward_kl"))
    with pytest.raises(LossMismatchError, match="debias=none"):
        train(replace(config, casks=(place / "topk",)))
    other = tmp_path / "other"
    byte_level(400).save_pretrained(other)
    with pytest.raises(IdentityMismatchError, match="the teacher that the cask was made with"):
        train(replace(config, teacher=other))
    small = tmp_path / "small"
    tiny_model(vocab_size=100).save_pretrained(small)
    byte_level(330).save_pretrained(small)
    with pytest.raises(ModelError, match="100 ids, its tokenizer 330"):
        train(replace(config, student=str(small)))
    with pytest.raises(TrainConfigError, match="weights"):
        train(replace(config, weights="entropy_top:keep=0.5"))


def test_objectives_are_read_as_those_of_one_tokenizer():
    mix = ChunkObjective.parse("linear(1,0)*alm:temperature=50,divergence=tvd + 0.3*cross_entropy")
    assert [(w, loss.spec) for w, loss in mix.terms(0.5)] == [
        (0.5, "alm:temperature=50,divergence=tvd"),
        (0.3, "cross_entropy"),
    ]
    assert mix.threshold == 0.1
    assert not mix.reads_top
    assert ChunkObjective.parse("uld").reads_top
    assert [w for w, _ in ChunkObjective.parse("alm").with_cross_entropy(0.25).terms(0.0)] == [0.75, 0.25]
    assert ChunkObjective.needs_chunks("0.1*uld + cross_entropy")
    assert not ChunkObjective.needs_chunks("forward_kl + 0.1*cross_entropy")
    for text, match in (
        ("alm:temperature=x", "is a number"),
        ("alm:debias=never", "one of space, none"),
        ("alm:tau=1", "cannot read 'tau=1'"),
        ("alm + 2*alm:debias=none", "twice"),
        ("-1*alm", "negative"),
    ):
        with pytest.raises(LossParameterError, match=match):
            ChunkObjective.parse(text)
    with pytest.raises(LossParameterError, match="no further share"):
        ChunkObjective.parse("alm + cross_entropy").with_cross_entropy(0.1)
