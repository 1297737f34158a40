"""Weights of positions: each formula by hand, masks against transformers' own, windows against whole documents."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcask_consumer.data import CaskDataset, Collator, open_casks, target_of
from logitcask_consumer.head import LMHead
from logitcask_consumer.losses import Objective
from logitcask_consumer.losses.target import take_target
from logitcask_consumer.methods import DistillTask
from logitcask_consumer.student.forward import attach
from logitcask_consumer.weights import (
    WEIGHTS,
    EntropyTop,
    UnknownWeightError,
    WeightParameterError,
    Weights,
    get_weight,
)
from logitcask_consumer.weights.entropy_top import student_entropy
from logitcask_consumer.weights.spans import inside_spans
from logitcask_schemas.record.extent import document_id
from tests.support.consumer.cask_builder import (
    VOCAB,
    build_cask,
    random_documents,
    save_teacher,
    tiny_model,
    tiny_tokenizer,
)

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}w5 w8 {{ m.content }} w7 {% else %}w5 w6 {% generation %}"
    "{{ m.content }} w7{% endgeneration %} {% endif %}{% endfor %}{% if add_generation_prompt %}w5 w6 {% endif %}"
)


@pytest.fixture(scope="module")
def documents():
    """Random ones, some longer than a window, with the tokens 5 6 and 7 of the template here and there."""
    documents, rng = random_documents(24, low=2, high=120), np.random.default_rng(5)
    for ids in documents:
        for start in rng.integers(0, len(ids), 3):
            ids[start : start + 2] = np.array([5, 6])[: len(ids) - start]
        ids[rng.integers(0, len(ids), 2)] = 7
    return documents


@pytest.fixture(scope="module")
def cask(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("weights")
    return open_casks(
        [build_cask(folder / "cask", save_teacher(folder / "teacher"), documents)], tokenizer_fingerprint=None
    )[0]


def chatty_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def bound(text, tokenizer=None):
    return Weights.parse(text).bind(tokenizer or chatty_tokenizer())


def weights_of(cask, text, *, seq_len=256, overlap=0):
    """(document, index of the predicted token) -> weight, over a whole cask."""
    dataset = CaskDataset([cask], seq_len=seq_len, overlap=overlap, weights=bound(text))
    read = dataset.read(range(len(dataset)))
    windows_W = dataset.packs.take(range(len(dataset))).windows_W
    where = [
        (int(document), position + 1)
        for window, document in zip(windows_W, read.documents_W, strict=True)
        for position in range(dataset.windows.trained_W[window], dataset.windows.stop_W[window])
    ]
    return dict(zip(where, read.weights_P.tolist(), strict=True))


def by_hand(ids, after, until):
    """Whether each token lies in a span, token by token."""
    inside, found = False, []
    for i in range(len(ids)):
        found.append(inside)
        if after == tuple(ids[max(0, i + 1 - len(after)) : i + 1]):
            inside = True
        elif until and until == tuple(ids[max(0, i + 1 - len(until)) : i + 1]):
            inside = False
    return found


@given(
    documents=st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=4),
    after=st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple),
    until=st.lists(st.integers(0, 3), max_size=2).map(tuple),
)
def test_spans_are_those_found_token_by_token(documents, after, until):
    flat = np.array([token for ids in documents for token in ids], dtype=np.uint16)
    offsets = np.cumsum([0, *map(len, documents)])
    expected = [inside for ids in documents for inside in by_hand(ids, after, until)]
    assert inside_spans(flat, offsets, after, until).tolist() == expected


def test_assistant_turns_are_those_that_transformers_masks():
    tokenizer = chatty_tokenizer()
    chat = [
        {"role": role, "content": content}
        for role, content in [("user", "w20 w21"), ("assistant", "w30"), ("user", "w22"), ("assistant", "w31 w6 w32")]
    ]
    encoded = tokenizer.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, add_special_tokens=False
    )
    ids, mask = np.array(encoded["input_ids"]), np.array(encoded["assistant_masks"], dtype=bool)
    [weight] = bound("assistant_only", tokenizer).factors
    assert (weight.after_ids, weight.until_ids) == ((5, 6), (7,))
    assert mask.any()
    np.testing.assert_array_equal(inside_spans(ids, np.array([0, len(ids)]), weight.after_ids, weight.until_ids), mask)


@pytest.mark.parametrize(
    ("text", "after", "until"),
    [
        ("assistant_only", (5, 6), (7,)),
        ('assistant_only:after="w5",until="w7 w7"', (5,), (7, 7)),
        ("completion_only:after=w7", (7,), ()),
    ],
)
@pytest.mark.parametrize(("seq_len", "overlap"), [(256, 0), (16, 0), (16, 5)])
def test_masks_see_the_whole_document_whatever_the_window(cask, text, after, until, seq_len, overlap):
    found = weights_of(cask, text, seq_len=seq_len, overlap=overlap)
    assert len(found) == cask.num_positions
    assert set(found.values()) == {0.0, 1.0}
    for document in range(len(cask)):
        ids = cask.read(document).token_ids_L.tolist()
        expected = by_hand(ids, after, until)
        assert [found[document, token] for token in range(1, len(ids))] == expected[1:]


def test_gates_follow_their_formulas(cask):
    records = [cask.read(document).records for document in range(len(cask))]
    entropy = np.concatenate([one.entropy_P for one in records]).astype(np.float32)
    mass = np.exp(np.concatenate([one.log_tail_mass_P for one in records]).astype(np.float32))
    middle = float(np.median(entropy))
    for text, expected in (
        (f"teacher_entropy:most={middle}", entropy <= middle),
        (f"teacher_entropy:least={middle}", entropy >= middle),
        ("tail_mass:most=0.02", mass <= 0.02),
        ("teacher_confidence", 1 - entropy / math.log(VOCAB)),
        ("teacher_confidence:power=2", (1 - entropy / math.log(VOCAB)) ** 2),
        ("tail_mass:most=0.02 * teacher_confidence", (mass <= 0.02) * (1 - entropy / math.log(VOCAB))),
    ):
        found = weights_of(cask, text)
        values = [found[key] for key in sorted(found)]
        np.testing.assert_allclose(values, expected, rtol=1e-5, err_msg=text)
        assert 0 < np.mean(np.array(values) > 0) <= 1, text


def test_tokens_are_skipped_as_targets(cask):
    found = weights_of(cask, 'skip_tokens:tokens="w5 w9"')
    for (document, token), weight in found.items():
        assert weight == float(cask.read(document).token_ids_L[token] not in (5, 9))
    [weight] = bound("skip_tokens").factors
    assert weight.token_ids == (0, 1), "all special tokens"


def test_ranges_come_from_a_file(cask, tmp_path):
    path = tmp_path / "ranges.jsonl"
    ids = [document_id(cask.read(document).token_ids_L).hex() for document in range(3)]
    lines = [{"document_id": ids[0], "ranges": [[1, 3], [2, 5]]}, {"document_id": ids[2], "ranges": [[0, 10**6]]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    for seq_len in (256, 16):
        found = weights_of(cask, f'ranges:file="{path}"', seq_len=seq_len)
        for (document, token), weight in found.items():
            assert weight == float((document == 0 and 1 <= token < 5) or document == 2)
    assert list(bound(f"ranges:file={path}").contents()) == ["ranges"]
    for line, message in (
        ("{", "should be"),
        ("[" * 100_000, "should be"),
        ('{"document_id": "ab", "ranges": []}', "64 hex"),
        (json.dumps({"document_id": ids[0], "ranges": [[3, 2]]}), "start <= stop"),
        (json.dumps({"document_id": ids[0], "ranges": [[1, 2, 3]]}), "should be"),
        (json.dumps(lines[0]) + "\n" + json.dumps(lines[0]), "twice"),
    ):
        path.write_text(line)
        with pytest.raises(WeightParameterError, match=message):
            bound(f"ranges:file={path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entropy_top:keep=0", "above 0"),
        ("entropy_top:keep=1.5", "between 0 and 1"),
        ("entropy_top:share=0.5", "its parameters are: keep"),
        ("entropy_top:keep=much", "a number"),
        ("entropy_top:", "cannot read ''"),
        ("teacher_entropy:least=3,most=2", "least <= most"),
        ("entropy_top * teacher_confidence", "0 and 1 only"),
        ("tail_mass * tail_mass", "twice"),
        ("entropy_top * entropy_top:keep=0.3", "twice"),
        ("completion_only", "needs after"),
        ('completion_only:after="w1', "double quote"),
        ('completion_only:after="zzz"', "no tokens"),
        ('completion_only:after=" "', "no tokens"),
        ('completion_only:after="\\q"', "no JSON text"),
        ("assistant_only:after=w5", "together"),
        ("skip_tokens:tokens=zzz", "no token 'zzz'"),
        ("ranges", "needs file"),
        ("ranges:file=gone.jsonl", "cannot be read"),
    ],
)
def test_what_a_weight_cannot_be_is_said(text, message):
    with pytest.raises(WeightParameterError, match=message):
        bound(text)


def test_unknown_names_and_missing_templates_are_said():
    for text in ("entropy", "entropy_top *", "", "* entropy_top"):
        with pytest.raises(UnknownWeightError, match="there are: assistant_only"):
            Weights.parse(text)
    with pytest.raises(WeightParameterError, match="no chat template"):
        bound("assistant_only", tiny_tokenizer())
    silent = tiny_tokenizer()
    silent.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(WeightParameterError, match="marks no start and end"):
        bound("assistant_only", silent)


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_a_weight_is_described_and_reads_back(name):
    assert WEIGHTS[name].summary.strip()
    assert get_weight(get_weight(name).spec) == get_weight(name)
    text = 'completion_only:after="a, b * c:\\n"'
    assert vars(get_weight(text))["after"] == "a, b * c:\n"
    assert get_weight(get_weight(text).spec) == get_weight(text)
    assert len(Weights.parse(text + " * entropy_top").factors) == 1


def test_positions_of_weight_zero_are_left_out_of_the_batch(cask):
    text = "assistant_only * teacher_confidence"
    plain, weighted = (
        Collator(seq_len=64)(dataset.read(range(len(dataset))))
        for dataset in (CaskDataset([cask], seq_len=64, overlap=8, weights=weights) for weights in (None, bound(text)))
    )
    found = {slot: row for row, slot in enumerate(plain["slots"].tolist())}
    rows = torch.tensor([found[slot] for slot in weighted["slots"].tolist()])
    assert 0 < len(rows) < len(found)
    assert (weighted["positions"], plain["positions"]) == (len(found), len(found))
    assert weighted["weights"] is not None
    assert float(weighted["weights"].min()) > 0
    assert plain["weights"] is None
    torch.testing.assert_close(weighted["input_ids"], plain["input_ids"])
    assert_same_target(target_of(weighted, sampled_tail=True), take_target(target_of(plain, sampled_tail=True), rows))
    joined = Collator(seq_len=64)(
        [dataset[number] for dataset in [CaskDataset([cask], seq_len=64, weights=bound(text))] for number in range(3)]
    )
    assert joined["weights"] is not None
    assert len(joined["weights"]) == len(joined["slots"])


def assert_same_target(one, other):
    for name in one.__dataclass_fields__:
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine is None:
            assert theirs is None, name
        else:
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs), err_msg=name)


@pytest.mark.parametrize("block_rows", [None, 3])
def test_entropy_is_that_of_the_dense_softmax(block_rows):
    hidden, weight = torch.randn(11, 8, dtype=torch.float64), 3 * torch.randn(VOCAB, 8, dtype=torch.float64)
    expected = torch.distributions.Categorical(logits=hidden @ weight.T).entropy()
    got = student_entropy(hidden, LMHead(weight_VD=weight), block_rows)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert len(student_entropy(hidden[:0], LMHead(weight_VD=weight))) == 0


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.5, 1.0])
def test_the_least_sure_share_of_each_sequence_is_chosen(keep):
    hidden, weight = torch.randn(40, 8), 3 * torch.randn(VOCAB, 8)
    head, sequences = LMHead(weight_VD=weight), torch.tensor([0] * 7 + [2] * 23 + [3] * 10)
    entropy = torch.distributions.Categorical(logits=hidden @ weight.T).entropy()
    expected = []
    for number in (0, 2, 3):
        rows = torch.nonzero(sequences == number)[:, 0].tolist()
        best = sorted(rows, key=lambda row: -float(entropy[row]))
        expected += sorted(best[: math.ceil(round(keep * len(rows), 6))])
    chosen = EntropyTop(keep=keep).choose(hidden, head, sequences)
    assert chosen.tolist() == expected
    assert len(chosen) == int(EntropyTop(keep=keep).kept(torch.bincount(sequences)).sum())
    assert EntropyTop(keep=keep).choose(hidden[:0], head, sequences[:0]).tolist() == []


def test_whole_shares_are_not_rounded_up():
    assert EntropyTop(keep=0.1).kept(torch.tensor([0, 10, 30, 70, 71])).tolist() == [0, 1, 3, 7, 8]


@pytest.mark.parametrize("text", ["teacher_confidence:power=3", "assistant_only * entropy_top:keep=0.3"])
def test_loss_and_gradients_are_those_of_dense_logits_with_the_weights(cask, text):
    weights = bound(text)
    dataset = CaskDataset([cask], seq_len=64, overlap=8, weights=weights)
    batch = Collator(seq_len=64)(dataset.read(range(len(dataset))))
    target, student = target_of(batch, sampled_tail=True), tiny_model(seed=3).double()
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    logp = torch.log_softmax(student(**inputs, use_cache=False).logits.flatten(0, 1)[batch["slots"]], -1)
    row = torch.zeros(len(batch["slots"]), dtype=torch.float64)
    row = row.index_add(0, target.head_rows_H, -target.head_weights_H * logp[target.head_rows_H, target.head_ids_H])
    row = row.index_add(0, target.tail_rows_N, -target.tail_weights_N * logp[target.tail_rows_N, target.tail_ids_N])
    of_row = batch["weights"].double()
    if weights.selection is not None:
        entropy, sequences = -(logp.exp() * logp).sum(1), batch["slots"] // batch["input_ids"].shape[1]
        for number in sequences.unique():
            rows = torch.nonzero(sequences == number)[:, 0]
            of_row[rows[entropy[rows].argsort(descending=True)[math.ceil(0.3 * len(rows) - 1e-9) :]]] = 0.0
    expected = (row * of_row).sum()
    want = torch.autograd.grad(expected, list(student.parameters()))
    attach(student)
    task = DistillTask(
        target=target,
        slots_T=batch["slots"],
        terms=Objective.parse("forward_kl").terms(0.0),
        weights_T=batch["weights"],
        selection=weights.selection,
        block_rows=7,
    )
    out = student(**inputs, distill=task)
    got = torch.autograd.grad(out["loss"], list(student.parameters()))
    torch.testing.assert_close(out["loss"], expected, rtol=1e-6, atol=0)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    total = weights.total(batch["weights"], batch["slots"], batch["input_ids"].shape[1])
    assert float(total) == pytest.approx(float(of_row.sum()))
    assert len(out["ce_T"]) == int((of_row > 0).sum()), "what is not trained is not computed"
