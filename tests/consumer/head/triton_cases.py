"""Triton's passes against torch's operators. `test_triton` runs this file in Triton's interpreter, and on CUDA.

The interpreter must be chosen before Triton is first imported, so the file has a process of its own:
`TRITON_INTERPRET=1 python -m pytest tests/consumer/head/triton_cases.py`.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logitcask_consumer.head import LMHead, distillation_loss
from logitcask_consumer.head import triton_passes as triton_dense
from logitcask_consumer.head import triton_passes as triton_kernels
from logitcask_consumer.head.dense import dense_passes, gradient_, reduce_
from logitcask_consumer.head.row_blocks import Scales, row_block_gradient
from logitcask_consumer.head.softmax import TritonPassesError
from logitcask_consumer.losses import LOSSES, SparseTarget
from logitcask_consumer.losses.student_rows import Needs
from tests.support.consumer.reference_sampler import random_positions, sample, to_target

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# Relative and absolute: float32's are some units in the last place of sums of up to some hundred terms.
TOLERANCE = {torch.float32: (2e-6, 2e-6), torch.float64: (1e-12, 1e-12)}
KERNELS = ("tile_sums", "row_sums", "rest_gradient")


@pytest.fixture(autouse=True)
def _quiet_numpy_and_small_tiles(monkeypatch):
    """The interpreter is numpy, which warns of log 0; small tiles give short rows several of them."""
    monkeypatch.setattr(triton_dense, "TILE", 64)
    with np.errstate(all="ignore"):
        yield


def close(got, want, dtype=None, *, message=""):
    rtol, atol = TOLERANCE[dtype or want.dtype]
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{message}: {text}")


def a_target(rng, rows, vocab, *, dtype, whole_heads=False):
    """Heads, draws and next tokens anywhere; weights do not matter to the passes."""
    heads = [rng.permutation(vocab)[: vocab if whole_heads else rng.integers(1, vocab + 1)] for _ in range(rows)]
    draws = [rng.integers(0, vocab, rng.integers(0, 4)) for _ in range(rows)]
    ends = [np.cumsum([0, *map(len, lists)]).astype(np.int64) for lists in (heads, draws)]
    return SparseTarget.from_columns(
        head_ids_H=torch.from_numpy(np.concatenate(heads)).to(DEVICE),
        head_logprobs_H=torch.zeros(int(ends[0][-1]), dtype=dtype, device=DEVICE),
        head_offsets_R1=ends[0],
        tail_ids_N=torch.from_numpy(np.concatenate(draws).astype(np.int64)).to(DEVICE),
        tail_offsets_R1=ends[1],
        log_tail_mass_R=torch.full((rows,), -1.0, dtype=dtype, device=DEVICE),
        next_ids_R=torch.from_numpy(rng.integers(0, vocab, rows)).to(DEVICE),
        sampled_tail=True,
        dtype=dtype,
    )


def passes(kind, logits_RV, target, needs):
    """Leaves, and the gradient of a formula that reads every leaf with a weight of its own."""
    with dense_passes(kind):
        rows = reduce_(logits_RV, target, needs, with_grad=True)
        generator = torch.Generator().manual_seed(3)
        leaves = [leaf.detach().clone() for leaf in rows.leaves.tensors()]
        total = sum(
            (leaf * torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)).sum()
            for leaf in rows.leaves.tensors()
        )
        assert isinstance(total, torch.Tensor)
        return leaves, gradient_(rows, total)


def both_agree(logits_RV, target, needs):
    leaves, grad_RV = passes("triton", logits_RV.clone(), target, needs)
    want_leaves, want_RV = passes("eager", logits_RV.clone(), target, needs)
    for number, (got, want) in enumerate(zip(leaves, want_leaves, strict=True)):
        close(got, want, message=f"leaf {number}")
    close(grad_RV, want_RV, message="gradient")
    return grad_RV


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name, dtype):
    rows, vocab = 4, 150
    positions = random_positions(rows, vocab)
    target = to_target(sample(positions, np.full(rows, 0.37)), positions.next_ids_R, documents=np.arange(rows) // 3)
    # A target reaches the device column by column, as a batch does.
    columns = {
        key: getattr(target, key).to(DEVICE) if isinstance(getattr(target, key), torch.Tensor) else getattr(target, key)
        for key in SparseTarget.__dataclass_fields__
    }
    target = SparseTarget(**columns).to_dtype(dtype)
    logits_RV = (torch.randn(rows, vocab, dtype=dtype) * 3).to(DEVICE)
    terms = [(1.0, LOSSES[name])]

    def run(kind):
        scales = Scales.of(terms, target)
        with dense_passes(kind):
            return row_block_gradient(logits_RV.clone(), target, terms, scales, weights_R=None, with_grad=True)

    got, want = run("triton"), run("eager")
    scale = 1.0 + float(want.terms_KR.abs().max())
    close(got.terms_KR / scale, want.terms_KR / scale)
    close(got.ce_R, want.ce_R)
    close(got.grad_RV, want.grad_RV)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 3),
    vocab=st.integers(1, 150),
    tile=st.sampled_from([16, 64, 256]),
    dtype=st.sampled_from(list(TOLERANCE)),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    banned=st.sampled_from([0.0, 0.3]),
    padding=st.integers(0, 3),
    tail=st.booleans(),
    powers=st.frozensets(st.sampled_from([0.3, 0.9, 1.0, 2.0]), max_size=2),
)
@example(0, 1, 1, 16, torch.float32, 1.0, 0.0, 0, True, frozenset({0.9}))  # nothing is left outside the head
@example(1, 2, 64, 64, torch.float32, 1.0, 0.3, 0, True, frozenset({0.9, 2.0}))
@example(2, 2, 65, 64, torch.float32, 1e4, 0.3, 2, False, frozenset({0.3}))
def test_any_shape(seed, rows, vocab, tile, dtype, scale, banned, padding, tail, powers):
    rng = np.random.default_rng(seed)
    target = a_target(rng, rows, vocab, dtype=dtype)
    wide = torch.from_numpy(rng.normal(size=(rows, vocab + padding)) * scale + scale).to(dtype).to(DEVICE)
    wide[torch.from_numpy(rng.random(wide.shape) < banned).to(DEVICE)] = -torch.inf
    kept, logits_RV = wide.clone(), wide[:, :vocab]
    needs = Needs(tail=tail, powers=powers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_dense, "TILE", tile)
        want_leaves, want_RV = passes("eager", logits_RV.clone(), target, needs)
        leaves, grad_RV = passes("triton", logits_RV, target, needs)
    for got, want in zip([*leaves, grad_RV], [*want_leaves, want_RV], strict=True):
        # Log-probabilities of thousands have units in the last place to match.
        size = want.nan_to_num(0.0, 0.0, 0.0).abs().max().clamp(min=1.0) if want.numel() else 1.0
        close(got / size, want / size, dtype)
    assert grad_RV.data_ptr() == wide.data_ptr(), "the gradient takes the logits' place"
    torch.testing.assert_close(wide[:, vocab:], kept[:, vocab:], rtol=0, atol=0)


@pytest.mark.parametrize("powers", [frozenset(), frozenset({0.9})])
def test_heads_of_the_whole_vocabulary(powers):
    rng = np.random.default_rng(0)
    target = a_target(rng, 3, 100, dtype=torch.float32, whole_heads=True)
    needs = Needs(tail=True, powers=powers)
    grad_RV = both_agree(torch.randn(3, 100).to(DEVICE), target, needs)
    assert grad_RV.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_no_distribution_is_nan_and_alone(bad):
    target = a_target(np.random.default_rng(0), 3, 100, dtype=torch.float32)
    logits_RV = torch.randn(3, 100)
    logits_RV[1, 90] = bad
    grad_RV = both_agree(logits_RV.to(DEVICE), target, Needs(powers=frozenset({0.9})))
    assert grad_RV[1].isnan().all()
    assert grad_RV[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kind", ["eager", "triton"])
@pytest.mark.parametrize("tail", [False, True])
def test_large_logits_keep_the_digits_of_log_q(kind, tail):
    """Against float64 of the same logits; a log-sum-exp in one float32 number would be off by 5e-4."""
    rng = np.random.default_rng(0)
    target = a_target(rng, 3, 100, dtype=torch.float32)
    needs = Needs(tail=tail, powers=frozenset({0.9}))
    logits_RV = torch.from_numpy(1e4 + 2 * rng.normal(size=(3, 100))).float().to(DEVICE)
    leaves, grad_RV = passes(kind, logits_RV.clone(), target, needs)
    want_leaves, want_RV = passes("eager", logits_RV.double(), target, needs)
    for got, want in zip([*leaves, grad_RV], [*want_leaves, want_RV], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)


def test_through_the_head_in_chunks():
    positions = random_positions(5, 80)
    target = to_target(sample(positions, np.full(5, 0.37)), positions.next_ids_R, dtype=torch.float32)
    if DEVICE != "cpu":
        pytest.skip("the target of this test lies on the host")
    hidden, weight = torch.randn(5, 7, requires_grad=True), torch.randn(80, 7, requires_grad=True)
    terms = [(0.5, LOSSES["ghost_kl"]), (0.3, LOSSES["alpha_beta"]), (0.2, LOSSES["cross_entropy"])]

    def run(kind):
        with dense_passes(kind):
            loss = distillation_loss(hidden, LMHead(weight_VD=weight), target, terms, block_rows=2).loss
        return loss, *torch.autograd.grad(loss, (hidden, weight))

    for got, want in zip(run("triton"), run("eager"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=5e-6)


def test_other_dtypes_and_exponents_are_refused():
    target = a_target(np.random.default_rng(0), 2, 30, dtype=torch.float32)
    logits_RV = torch.randn(2, 30).to(DEVICE)
    with dense_passes("triton"), pytest.raises(TritonPassesError, match="float32 or float64"):
        reduce_(logits_RV.bfloat16(), target, Needs(), with_grad=False)
    with dense_passes("triton"), pytest.raises(TritonPassesError, match="positive exponents"):
        reduce_(logits_RV, target, Needs(powers=frozenset({-0.5})), with_grad=False)


MUTANTS = [
    ('mask=at < width, other=-float("inf")', "mask=at < width, other=0.0"),  # what lies behind a row counts
    ("sums * tl.exp(shift)", "sums"),  # tiles are added as if they had one largest logit
    ("tile * TILE", "tile * (TILE - 1)"),  # tiles overlap
    ("log_power - EXPONENTS[k] * log_total", "log_power - log_total"),
    ("slope = EXPONENTS[k] * tl.load", "slope = tl.load"),
    ("factor -= slope", "factor -= 0.0 * slope"),
    ("+ powers, mask=at < width", "+ powers, mask=at < width - 1"),  # the last logit stays
    ("tl.static_range(1, len(EXPONENTS))", "tl.static_range(2, len(EXPONENTS))"),
]


@pytest.mark.parametrize(("right", "wrong"), [("", ""), *MUTANTS])
def test_a_broken_kernel_is_noticed(right, wrong, tmp_path, monkeypatch):
    """The control: the same comparison, with one place of the kernels changed (and once with none)."""
    source = Path(triton_kernels.__file__).read_text()
    assert right in source
    changed = tmp_path / "changed_kernels.py"
    changed.write_text(source.replace(right, wrong) if right else source)
    spec = importlib.util.spec_from_file_location("changed_kernels", changed)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for kernel in KERNELS:
        monkeypatch.setattr(triton_dense, kernel, getattr(module, kernel))
    target = a_target(np.random.default_rng(0), 2, 150, dtype=torch.float32)
    logits_RV, needs = (torch.randn(2, 150) - 5.0).to(DEVICE), Needs(powers=frozenset({0.9}))
    # The proof that the first use on a device makes is a control of its own.
    where = torch.device(DEVICE), torch.float32
    triton_dense.prove.cache_clear()
    if not right:
        both_agree(logits_RV, target, needs)
        triton_dense.prove(*where)
        return
    with pytest.raises(TritonPassesError, match=r"differ by .* dense_passes\('eager'\)"):
        triton_dense.prove(*where)
    with pytest.raises(AssertionError, match=r"^(leaf \d|gradient):"):
        both_agree(logits_RV, target, needs)
