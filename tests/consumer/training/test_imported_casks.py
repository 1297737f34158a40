"""Training from casks that were made of other tools' caches: the loss against the dense one, and what is refused."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.cross_tokenizer.losses import ChunkObjective
from logitcask_consumer.data import CaskDataset, Collator
from logitcask_consumer.head import LMHead
from logitcask_consumer.losses import LOSSES, LossMismatchError
from logitcask_consumer.methods.sparse_target_loss import SparseTargetLoss
from logitcask_consumer.report.config import ReportConfig, ReportError
from logitcask_consumer.report.make_report import make_report
from logitcask_consumer.student.forward import hidden_states
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_consumer.weights import WeightParameterError, Weights
from logitcask_schemas.cask import Cask
from logitcask_schemas.cli.main import main
from tests.support.consumer.cask_builder import dense_positions, save_teacher, tiny_model
from tests.support.schemas.other_caches import (
    EXACT,
    VOCAB,
    DenseDocument,
    MegatronRun,
    distillkit_row,
    write_distillkit,
    write_megatron,
)

K = 12


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "teacher"
    return folder, save_teacher(folder)


def sampled_text(model, length, seed):
    """A text that the teacher itself writes, so that what it expects is what comes."""
    torch.manual_seed(seed)
    tokens = torch.tensor([[2 + seed]])
    with torch.no_grad():
        for _ in range(length - 1):
            chances = torch.softmax(model(input_ids=tokens).logits[0, -1], -1)
            tokens = torch.cat([tokens, torch.multinomial(chances, 1)[None]], dim=1)
    return tokens[0].numpy()


@pytest.fixture(scope="module")
def texts(teacher):
    documents = []
    for seed in range(6):
        tokens = sampled_text(teacher[1], 24 + seed, seed)
        probs = dense_positions(teacher[1], tokens).probs_RV
        documents.append(DenseDocument(tokens, np.log(probs)))
    return documents


@pytest.fixture(scope="module")
def imported(teacher, texts, tmp_path_factory):
    place = tmp_path_factory.mktemp("imported")
    write_distillkit(place / "src", [distillkit_row(text, EXACT) for text in texts], EXACT)
    convert(place / "src", place / "cask", teacher[0])
    return place / "cask"


def convert(source, destination, tokenizer, *more, code=0):
    words = ["cask", "convert", str(source), str(destination), "--from", "distillkit", "--tokenizer", str(tokenizer)]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--model", "tiny", "--codec", "f32", "--json", *more])
    assert stopped.value.code == code


def dense_ghost(texts, student):
    """sum_H t log(t / p) + r log(r / s), less the part that the student cannot change, over all positions: float64."""
    total, count = 0.0, 0
    for text in texts:
        with torch.no_grad():
            logits = student(input_ids=torch.from_numpy(text.tokens_L)[None]).logits[0, :-1].double()
        logp = torch.log_softmax(logits, -1).numpy()
        for position, row in enumerate(np.exp(text.logprobs_PV)):
            head = np.argsort(-row)[:K]
            rest = np.setdiff1d(np.arange(VOCAB), head)
            total -= (row[head] * logp[position, head]).sum()
            total -= row[rest].sum() * np.log(np.exp(logp[position, rest]).sum())
            count += 1
    return total / count


def loss_on(cask, student, loss="ghost_kl"):
    dataset = CaskDataset([Cask.open(cask)], seq_len=64, overlap=8, packing="none", seed=0)
    batch = Collator(seq_len=64)([dataset[at] for at in range(len(dataset))])
    objective = SparseTargetLoss(loss, capture=dataset.manifest.capture)
    hidden = hidden_states(student, batch["input_ids"], batch["position_ids"])
    return objective(hidden, LMHead.from_model(student), batch)


def test_the_loss_is_that_of_the_dense_distributions(imported, texts):
    student = tiny_model(layers=2, seed=5).double()
    assert float(loss_on(imported, student).detach()) == pytest.approx(dense_ghost(texts, student), rel=1e-4)


def test_rows_shifted_by_one_show_in_the_loss(imported, teacher, texts):
    """A negative control: of the teacher itself, whose loss is least on its own rows, a shift shows at once."""
    student = copy.deepcopy(teacher[1]).double()
    shifted = [DenseDocument(text.tokens_L, np.roll(text.logprobs_PV, 1, axis=0)) for text in texts]
    value = float(loss_on(imported, student).detach())
    assert value == pytest.approx(dense_ghost(texts, student), rel=1e-4)
    assert dense_ghost(shifted, student) > value + 1.0


def test_a_step_of_training_lowers_the_loss(imported):
    student = tiny_model(layers=2, seed=5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    before = loss_on(imported, student)
    before.backward()
    optimizer.step()
    assert float(loss_on(imported, student).detach()) < float(before.detach()) - 1e-3


def config(imported, teacher, tmp_path, **more):
    fields = {
        "casks": (imported,),
        "student": "from-teacher:layers=2",
        "teacher": teacher[0],
        "output": tmp_path / "out",
        "seq_len": 64,
        "overlap": 8,
        "batch_tokens": 128,
        "micro_tokens": 128,
        "epochs": 2,
        "loss": "ghost_kl",
    }
    return TrainConfig(**(fields | more))


def test_a_run_names_the_entropy_for_what_it_is(imported, teacher, tmp_path):
    result = train(config(imported, teacher, tmp_path, ce_weight=0.2))
    lines = read_metrics(result.output / "metrics.jsonl")
    assert lines
    assert all("teacher_entropy" not in line and line["teacher_entropy_at_least"] > 0 for line in lines)


def test_losses_that_need_more_refuse_and_name_the_ones_that_do_not(imported, teacher, tmp_path):
    with pytest.raises(LossMismatchError, match=r"imported from another tool's cache\. Losses that fit it: .*ghost_kl"):
        train(config(imported, teacher, tmp_path, loss="forward_kl"))
    capture = Cask.open(imported).manifest.capture
    fitting = {name for name, loss in LOSSES.items() if not loss.missing(capture)}
    assert {"ghost_kl", "topk_renorm", "cross_entropy"} <= fitting
    assert not {"forward_kl", "tail_aware", "adaptive_kl", "alpha_beta"} & fitting
    for loss in ("alm", "alm:debias=none", "uld"):
        with pytest.raises(LossMismatchError, match="imported from a top-k cache"):
            ChunkObjective.parse(loss).require(capture)
    captured = capture.model_copy(update={"imported": False})
    ChunkObjective.parse("alm:debias=none").require(captured)  # negative control: it is the import that is refused


@pytest.mark.parametrize("weight", ["teacher_entropy:most=3", "teacher_confidence"])
def test_weights_by_the_entropy_refuse(imported, teacher, tmp_path, weight):
    with pytest.raises(WeightParameterError, match="a lower bound is known only"):
        train(config(imported, teacher, tmp_path, weights=weight))
    Weights.parse("tail_mass:most=0.5").require(Cask.open(imported).manifest.capture, where="")


def test_reports_refuse(imported, teacher, tmp_path):
    with pytest.raises(ReportError, match="--held-out"):
        make_report(
            ReportConfig(casks=(imported,), models=(("same", teacher[0]),), output=tmp_path / "report"),
            say=lambda line: None,
        )


def test_the_command_says_what_is_lost(teacher, texts, tmp_path, capsys):
    write_distillkit(tmp_path / "src", [distillkit_row(text, EXACT) for text in texts], EXACT)
    convert(tmp_path / "src", tmp_path / "cask", teacher[0])
    figures = json.loads(capsys.readouterr().out)
    assert (figures["documents"], figures["k"], figures["from"]) == (6, K, "distillkit")
    assert figures["next_token_in_head"] > 0.8
    assert any("entropy is a lower bound" in sentence for sentence in figures["lost"])
    convert(tmp_path / "src", tmp_path / "cask", teacher[0])
    assert json.loads(capsys.readouterr().out)["present"] == 6


def test_positions_without_the_next_token_show_a_bound(imported, capsys):
    lacking = 0
    for document in range(len(Cask.open(imported))):
        words = ["cask", "show", str(imported), str(document), "--count", "100", "--alternatives", "100"]
        with pytest.raises(SystemExit):
            main([*words, "--json"])
        for position in json.loads(capsys.readouterr().out)["positions"]:
            in_head = position["next"] in [token for token, _ in position["head"]]
            assert (position["probability"] is None) == (not in_head)
            lacking += not in_head
        with pytest.raises(SystemExit):
            main([*words, "--color", "probability"])
        assert ("≤" in capsys.readouterr().out) == any_lacks(imported, document)
    assert lacking


def any_lacks(cask, number):
    document = Cask.open(cask).read(number)
    counts_P = document.records.head_counts_P.astype(int)
    heads = np.split(document.records.head_ids_H, np.cumsum(counts_P)[:-1])
    return any(token not in head for token, head in zip(document.token_ids_L[1:], heads, strict=True))


def test_a_repair_does_not_send_imported_documents_to_a_service(imported, tmp_path, capsys):
    shutil.copytree(imported, tmp_path / "cask")
    (shard,) = (tmp_path / "cask" / "shards").glob("*.arrow")
    content = bytearray(shard.read_bytes())
    values = Cask.open(imported).read(0).records.head_logprobs_H.tobytes()
    content[content.index(values) + 1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        main(["cask", "repair", str(tmp_path / "cask")])
    out = capsys.readouterr().out
    assert stopped.value.code == 3
    assert "convert the cache again into it" in out
    assert "logitcask submit" not in out


def test_the_command_reads_megatron_with_its_tokens(teacher, texts, tmp_path, capsys):
    run = MegatronRun(version=2, micro=1, ranks=2, batch=4)
    same = [DenseDocument(text.tokens_L[:20], text.logprobs_PV[:19]) for text in texts[:4]]
    source = write_megatron(tmp_path / "src", same, run)
    words = ["cask", "convert", str(source), str(tmp_path / "cask"), "--from", "megatron", "--model", "tiny"]
    words += ["--tokenizer", str(teacher[0]), "--json"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "hold no tokens" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--tokens", str(source / "tokens.npy")])
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 4
    assert float(loss_on(tmp_path / "cask", copy.deepcopy(teacher[1]).double()).detach()) == pytest.approx(
        dense_ghost(same, copy.deepcopy(teacher[1]).double()), rel=5e-3
    )  # the archive has float16


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--tokens", "t.npy"), 2, "leave it out"),
        (("--codec", "f8"), 2, "logprob_codec"),
        (("--excess-mass", "7"), 2, "--excess-mass"),
        (("--vocab-size", "40"), 1, "--vocab-size"),
        (("--compression-config", "no.yaml"), 1, "no.yaml cannot be read"),
    ],
)
def test_wrong_words_and_data_end_as_everywhere(teacher, texts, tmp_path, capsys, words, code, message):
    write_distillkit(tmp_path / "src", [distillkit_row(text, EXACT) for text in texts], EXACT)
    convert(tmp_path / "src", tmp_path / "cask", teacher[0], *words, code=code)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_folder_without_a_tokenizer_is_named(tmp_path, capsys):
    convert(tmp_path, tmp_path / "cask", tmp_path / "nowhere", code=1)
    assert "nowhere is no folder" in " ".join(capsys.readouterr().err.split())
