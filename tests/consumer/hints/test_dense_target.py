"""`--target dense`: losses on a cask's last hidden states are those on a live teacher's whole distribution."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from logitcask_consumer.config import TrainConfig, TrainConfigError
from logitcask_consumer.data import CaskDataset, Collator, open_casks, target_of
from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.hints import HintMismatchError
from logitcask_consumer.hints.dense import DENSE_LOSSES, DenseTeacher
from logitcask_consumer.hints.teacher_folder import TeacherShape, read_head
from logitcask_consumer.losses import LOSSES, LossMismatchError, Objective
from logitcask_consumer.methods import TokenMethod
from logitcask_consumer.student.forward import attach
from logitcask_consumer.training.callbacks import read_metrics
from logitcask_consumer.training.run import train
from logitcask_consumer.weights import Weights
from logitcask_schemas.errors import IdentityMismatchError, ModelError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec
from tests.support.consumer.cask_builder import VOCAB, build_cask, random_documents, save_teacher, tiny_model

LAST = HintSpec(layers=(2, 4))
DOCUMENTS = random_documents(12, low=5, high=40, seed=3)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "capped": {"kind": "gemma2", "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    "scaled": {"kind": "granite", "logits_scaling": 4.0},
}


@pytest.fixture(scope="module", params=KINDS)
def place(request, tmp_path_factory):
    """A teacher, and a cask of it with what its head reads."""
    folder = tmp_path_factory.mktemp(request.param)
    teacher = save_teacher(folder / "teacher", **KINDS[request.param])
    build_cask(folder / "cask", teacher, DOCUMENTS, spec=CaptureSpec(tau=0.05, hints=LAST))
    return folder, teacher


@pytest.fixture(scope="module")
def plain_place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    teacher = save_teacher(folder / "teacher")
    for name, codec in (("cask", "f16"), ("i8", "i8"), ("proj", "proj:16")):
        spec = CaptureSpec(tau=0.05, hints=LAST.model_copy(update={"codec": codec}))
        build_cask(folder / name, teacher, DOCUMENTS, spec=spec)
    topk = CaptureSpec(mode="topk", k=4, hints=LAST)
    build_cask(folder / "topk", teacher, DOCUMENTS, spec=topk)
    middle = CaptureSpec(tau=0.05, hints=HintSpec(layers=(2,)))
    build_cask(folder / "middle", teacher, DOCUMENTS, spec=middle)
    return folder, teacher


def dataset_of(place, **options):
    return CaskDataset(open_casks(place, tokenizer_fingerprint=None), seq_len=64, hints=True, **options)


def dense_of(folder, dataset, loss="forward_kl"):
    head = read_head(folder / "teacher", vocab_size=VOCAB)
    return DenseTeacher.of(dataset.casks, TeacherShape.read(folder / "teacher"), head, Objective.parse(loss))


def live_logprobs(teacher, dataset, batch):
    """[T, V] of the live teacher, in the batch's order."""
    documents = [cask.read(number).token_ids_L for cask in dataset.casks for number in range(len(cask))]
    rows = []
    for number in torch.unique_consecutive(batch["documents"]).tolist():
        ids = torch.from_numpy(documents[number].astype(np.int64))[None]
        with torch.no_grad():
            rows.append(torch.log_softmax(teacher(input_ids=ids).logits[0, :-1].double(), -1))
    return torch.cat(rows)


REFERENCE = {
    "forward_kl": lambda t, p: -(t.exp() * p).sum(-1),
    "reverse_kl": lambda t, p: (p.exp() * (p - t)).sum(-1),
    "js:beta=0.3": lambda t, p: jensen_shannon(t, p, 0.3),
    "skew_kl:alpha=0.2": lambda t, p: (t.exp() * (t - (0.2 * t.exp() + 0.8 * p.exp()).log())).sum(-1),
    "skew_reverse_kl:alpha=0.2": lambda t, p: (p.exp() * (p - (0.8 * t.exp() + 0.2 * p.exp()).log())).sum(-1),
    "js:beta=0.3,tail=ghost": lambda t, p: jensen_shannon(t, p, 0.3),
    "forward_kl:tail_weight=2": lambda t, p: -(t.exp() * p).sum(-1),
    "tvd": lambda t, p: 0.5 * (t.exp() - p.exp()).abs().sum(-1),
    "forward_kl:temperature=2": lambda t, p: 4 * -(soft(t).exp() * soft(p)).sum(-1),
}


def soft(logprobs):
    return torch.log_softmax(logprobs / 2, -1)


def jensen_shannon(t, p, beta):
    middle = (beta * t.exp() + (1 - beta) * p.exp()).log()
    return beta * (t.exp() * (t - middle)).sum(-1) + (1 - beta) * (p.exp() * (p - middle)).sum(-1)


@pytest.mark.parametrize("loss", REFERENCE)
def test_losses_are_those_of_the_live_teachers_whole_distribution(place, loss):
    """Values and gradients, for heads that are tied, capped and scaled; f16 states. In blocks of one row and of all."""
    folder, teacher = place
    dataset = dataset_of(folder / "cask")
    dense = dense_of(folder, dataset, loss)
    assert dense.prove(dataset) < 0.01
    batch = Collator(seq_len=64)(dataset.read([0, 1]))
    student = tiny_model(layers=1, seed=6).double()
    head = LMHead.from_model(student)
    torch.manual_seed(2)
    hidden = torch.randn(len(batch["slots"]), 32, dtype=torch.float64, requires_grad=True)
    live = live_logprobs(teacher, dataset, batch)
    expected = REFERENCE[loss](live, torch.log_softmax(head.logits(hidden), -1))
    [gradient] = torch.autograd.grad(expected.sum(), hidden)
    for rows in (1, None):
        target = dense.target(batch)
        result = distillation_loss(hidden, head, target, Objective.parse(loss).terms(0.0), block_rows=rows)
        torch.testing.assert_close(result.terms_KT[0], expected.detach(), rtol=5e-3, atol=5e-3)
        [got] = torch.autograd.grad(result.loss, hidden)
        torch.testing.assert_close(got, gradient, rtol=2e-2, atol=5e-3)
        entropy = -(live.exp() * live).sum(-1)
        torch.testing.assert_close(target.entropy_R, entropy, rtol=5e-3, atol=5e-3)


def test_blocks_hold_fewer_rows_than_those_of_records(plain_place):
    """An entry of a head of all ids costs some twenty logits."""
    folder, _ = plain_place
    dataset = dataset_of(folder / "cask")
    target = dense_of(folder, dataset).target(Collator(seq_len=64)(dataset.read([0])))
    assert target.block_rows == 64 * 2**20 // (80 * VOCAB)
    rows = target.rows(2, 5)
    assert rows.num_rows == 3
    assert len(rows.head_ids_H) == 3 * VOCAB
    assert target.entropy_R.count_nonzero() == 3, "no other row was read"


def test_every_loss_that_dense_serves_is_checked_here_or_has_no_teacher(plain_place):
    folder, teacher = plain_place
    checked = {name.partition(":")[0] for name in REFERENCE}
    assert DENSE_LOSSES - checked == {"alpha_beta", "cross_entropy"}
    assert set(LOSSES) >= DENSE_LOSSES
    dataset = dataset_of(folder / "cask")
    batch = Collator(seq_len=64)(dataset.read([0]))
    student = tiny_model(layers=1, seed=6).double()
    head, hidden = LMHead.from_model(student), torch.randn(len(batch["slots"]), 32, dtype=torch.float64)
    live, own = live_logprobs(teacher, dataset, batch), torch.log_softmax(head.logits(hidden), -1)
    objective = Objective.parse("cross_entropy + alpha_beta:alpha=0.5,beta=0.25")
    result = distillation_loss(hidden, head, dense_of(folder, dataset).target(batch), objective.terms(0.0))
    ce = -own.gather(1, batch["next_ids"].long()[:, None])[:, 0]
    torch.testing.assert_close(result.terms_KT[0], ce.detach())
    t, p, a, b = live.exp(), own.exp(), 0.5, 0.25
    cross = t**a * p**b - a / (a + b) * t ** (a + b) - b / (a + b) * p ** (a + b)
    torch.testing.assert_close(result.terms_KT[1], (-cross.sum(-1) / (a * b)).detach(), rtol=1e-2, atol=1e-2)


def test_the_sparse_record_is_the_dense_target_in_expectation(plain_place, tmp_path):
    """Records at 200 offsets of their draws: the mean of their gradients is that of the dense target."""
    folder, teacher = plain_place
    documents, gradients, single = DOCUMENTS[:2], list[torch.Tensor](), 0.0
    dense_gradient = torch.zeros(0)
    student = tiny_model(layers=1, seed=6).double()
    head = LMHead.from_model(student)
    generator = torch.Generator().manual_seed(1)
    for number in range(200):
        spec = CaptureSpec(tau=0.2, hints=LAST, logprob_codec="f32")
        build_cask(tmp_path / f"{number}", teacher, documents, spec=spec, uniform=(number + 0.5) / 200)
        dataset = dataset_of(tmp_path / f"{number}")
        batch = Collator(seq_len=64)(dataset.read(range(len(dataset))))
        hidden = torch.randn(len(batch["slots"]), 32, dtype=torch.float64, generator=generator.manual_seed(1))
        hidden.requires_grad_()
        sparse = target_of(batch, sampled_tail=True)
        loss = distillation_loss(hidden, head, sparse, Objective.parse("forward_kl").terms(0.0)).loss
        gradients.append(torch.autograd.grad(loss, hidden)[0])
        if number == 0:
            target = dense_of(folder, dataset).target(batch)
            whole = distillation_loss(hidden, head, target, Objective.parse("forward_kl").terms(0.0)).loss
            [dense_gradient] = torch.autograd.grad(whole, hidden)
            single = float((gradients[0] - dense_gradient).norm())
    gap = float((torch.stack(gradients).mean(0) - dense_gradient).norm())
    assert gap < 0.05 * single, "one record alone errs many times more"


def test_codec_i8_is_near(plain_place):
    folder, _ = plain_place
    dataset = dataset_of(folder / "i8")
    assert 1e-4 < dense_of(folder, dataset).prove(dataset) < 0.1


def test_topk_casks_serve_losses_that_their_records_could_not(plain_place):
    folder, _ = plain_place
    method = TokenMethod(target="dense", teacher=folder / "teacher")
    dataset = dataset_of(folder / "topk")
    student = tiny_model(layers=1, seed=6)
    attach(student)
    loss = method.on(student, dataset)
    value = loss.value(student, loss.collator(dataset.read([0])), 0.0)
    metrics = loss.metrics(value.sums.tolist())
    assert metrics["kl"] > 0
    with pytest.raises(LossMismatchError, match="draws from the tail"):
        TokenMethod().on(student, dataset)


def test_a_selection_of_positions_keeps_their_states(plain_place):
    folder, _ = plain_place
    method = TokenMethod(target="dense", teacher=folder / "teacher")
    student = tiny_model(layers=1, seed=6).double()
    attach(student)
    whole, chosen = (
        method.on(student, dataset_of(folder / "cask", weights=weights))
        for weights in (None, Weights.parse("entropy_top:keep=0.25"))
    )
    batch = whole.collator(dataset_of(folder / "cask").read([0]))
    with torch.no_grad():
        every = run(whole, student, batch)
        some = run(chosen, student, batch)
    rows = some["rows_T"]
    assert 0 < len(rows) < len(batch["slots"])
    torch.testing.assert_close(some["terms_KT"], every["terms_KT"][:, rows])
    torch.testing.assert_close(some["entropy_T"], every["entropy_T"][rows])


def run(loss, student, batch):
    task = replace(loss.loss.task(batch, 0.0), dense=loss.dense.target(batch))
    return student(input_ids=batch["input_ids"], position_ids=batch["position_ids"], distill=task)


def config(folder, output, **changes):
    settings = {"casks": (folder / "cask",), "student": "from-teacher:layers=2", "teacher": folder / "teacher"}
    settings |= {"seq_len": 64, "batch_tokens": 256, "micro_tokens": 256, "epochs": 4, "lr": 3e-3, "target": "dense"}
    return TrainConfig(**{**settings, "output": output, **changes})


def test_a_run_on_the_dense_target_says_what_it_costs(plain_place, tmp_path):
    folder, _ = plain_place
    said = []
    result = train(config(folder, tmp_path / "out"), say=said.append)
    lines = read_metrics(result.output / "metrics.jsonl")
    assert lines[-1]["kl"] < 0.7 * lines[0]["kl"]
    [note] = [line for line in said if line.startswith("target dense: ")]
    assert "bytes of hints per token beside" in note
    with_hints = train(config(folder, tmp_path / "both", hints="pkd"))
    assert read_metrics(with_hints.output / "metrics.jsonl")[0]["hint/pkd"] > 0


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"loss": "topk_renorm"}, LossMismatchError, "speaks of heads, tails or draws"),
        ({"loss": "0.5*forward_kl + 0.5*ghost_kl"}, LossMismatchError, "'ghost_kl' speaks of heads, tails or draws"),
        ({"casks": "proj"}, HintMismatchError, "hints.codec f16 or i8"),
        ({"casks": "middle"}, HintMismatchError, r"needs layer 4 of the teacher.*hints of layers \[2\]"),
    ],
)
def test_what_a_dense_target_cannot_serve_is_refused(plain_place, tmp_path, changes, error, says):
    folder, _ = plain_place
    if "casks" in changes:
        changes = {"casks": (folder / changes["casks"],)}
    with pytest.raises(error, match=says):
        train(config(folder, tmp_path / "out", **changes))


def test_the_teachers_folder_must_be_named_and_be_the_teachers(plain_place, tmp_path):
    folder, _ = plain_place
    save_teacher(tmp_path / "other", seed=9)
    save_teacher(tmp_path / "student", layers=2)
    named = {"student": str(tmp_path / "student")}
    with pytest.raises(TrainConfigError, match="target dense needs the matrix of the teacher's head"):
        train(config(folder, tmp_path / "out", teacher=None, **named))
    with pytest.raises(IdentityMismatchError, match=r"nats from those of its records; 0\.25 are allowed"):
        train(config(folder, tmp_path / "out2", teacher=tmp_path / "other", **named))
    save_teacher(tmp_path / "wider", vocab_size=VOCAB + 3)
    with pytest.raises(ModelError, match="its head has 100 ids, the cask's teacher 97"):
        read_head(tmp_path / "wider", vocab_size=VOCAB)
    (tmp_path / "other" / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="no safetensors weights can be read"):
        read_head(tmp_path / "other", vocab_size=VOCAB)
    with pytest.raises(ModelError, match=r"holds no config\.json of a causal LM"):
        TeacherShape.read(tmp_path)


def test_a_head_in_several_files_is_found(plain_place, tmp_path):
    _, teacher = plain_place
    teacher.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    head = read_head(tmp_path / "sharded", vocab_size=VOCAB)
    torch.testing.assert_close(head.weight_VD, teacher.lm_head.weight.detach(), rtol=0, atol=0)
