"""Which passes are taken when, the Triton kernels in the interpreter, and that they compile for GPUs.

`triton_cases` compares the two kinds of passes; it runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from logitcask_consumer.head import dense
from logitcask_consumer.head.dense import dense_passes, gradient_, reduce_
from logitcask_consumer.head.softmax import EagerRest, TritonPassesError
from logitcask_consumer.losses.student_rows import Needs
from tests.support.consumer.reference_sampler import random_positions, sample, to_target

ROWS, VOCAB = 4, 300
CASES = Path(__file__).with_name("triton_cases.py")
NEEDS = {
    "entries": Needs(),
    "tail": Needs(tail=True),
    "power": Needs(powers=frozenset({0.9})),
}


@pytest.fixture
def target():
    positions = random_positions(ROWS, VOCAB)
    return to_target(sample(positions, np.full(ROWS, 0.37)), positions.next_ids_R, dtype=torch.float32)


def sum_of_leaves(rows):
    return sum(leaf.sum() for leaf in rows.leaves.tensors())


def run_cases(environment):
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(
        command, env=inherited | environment, cwd=CASES.parents[3], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_in_the_interpreter():
    pytest.importorskip("triton")
    run_cases({"TRITON_INTERPRET": "1"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the kernels run in the interpreter only")
def test_on_cuda():
    run_cases({})


class TestTheChoice:
    """One rule, in `dense`."""

    def test_the_cpu_takes_the_operators(self, target):
        rows = reduce_(torch.randn(ROWS, VOCAB), target, Needs(), with_grad=False)
        assert isinstance(rows.rest, EagerRest)

    @pytest.mark.parametrize(
        ("is_cuda", "dtype", "installed", "expected"),
        [
            (True, torch.float32, True, True),
            (True, torch.float64, True, True),
            (True, torch.float32, False, False),
            (True, torch.bfloat16, True, False),
            (False, torch.float32, True, False),
        ],
    )
    def test_auto(self, is_cuda, dtype, installed, expected, monkeypatch):
        monkeypatch.setattr(dense, "_has_triton", lambda: installed)
        logits: Any = SimpleNamespace(is_cuda=is_cuda, dtype=dtype)
        assert dense._takes_triton(logits) is False, "nothing that has not run on a GPU is a default"
        with dense_passes("auto"):
            assert dense._takes_triton(logits) is expected

    def test_what_is_forced_holds_inside_only(self, monkeypatch):
        monkeypatch.setattr(dense, "_has_triton", lambda: True)
        logits = torch.zeros(1, 1)
        with dense_passes("triton"):
            assert dense._takes_triton(logits)
            with dense_passes("eager"):
                assert not dense._takes_triton(logits)
            assert dense._takes_triton(logits)
        assert not dense._takes_triton(logits)

    def test_forced_where_it_cannot_serve_is_an_error(self, target, monkeypatch):
        logits_RV = torch.randn(ROWS, VOCAB)
        with monkeypatch.context() as patch, dense_passes("triton"):
            patch.setattr(dense, "_has_triton", lambda: False)
            with pytest.raises(TritonPassesError, match="not installed"):
                reduce_(logits_RV, target, Needs(), with_grad=False)
        pytest.importorskip("triton")
        with dense_passes("triton"), pytest.raises(TritonPassesError, match="CUDA device, got logits on cpu"):
            reduce_(logits_RV, target, Needs(), with_grad=False)

    def test_there_are_no_other_passes(self):
        name: Any = "cuda"
        with pytest.raises(ValueError, match="auto, eager, triton, got 'cuda'"), dense_passes(name):
            pass


@pytest.mark.parametrize("name", NEEDS)
def test_the_operators_take_strided_rows(name, target):
    wide = torch.randn(ROWS, VOCAB + 5)
    kept = wide.clone()
    got, want = (
        gradient_(rows, sum_of_leaves(rows))
        for rows in (
            reduce_(logits_RV, target, NEEDS[name], with_grad=True)
            for logits_RV in (wide[:, :VOCAB], kept[:, :VOCAB].contiguous())
        )
    )
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(wide[:, VOCAB:], kept[:, VOCAB:], rtol=0, atol=0)


class PassCounter(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts tensors of the buffer's size that operators take and give, each as one pass."""

    def __init__(self, size):
        super().__init__()
        self.size, self.passes = size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        # Views move nothing; gathers and scatters move entries, not the buffer.
        if not function._schema.name.removeprefix("aten::").startswith(
            ("as_strided", "slice", "index", "select", "unsqueeze", "gather", "view", "detach")
        ):
            items = [*args, *(out if isinstance(out, tuple | list) else (out,))]
            self.passes += sum(isinstance(item, torch.Tensor) and item.numel() == self.size for item in items)
        return out


@pytest.mark.parametrize(("name", "expected"), [("entries", 6), ("tail", 7), ("power", 20)])
def test_passes_of_the_operators(name, expected, target):
    """The figures of decision 0011."""
    logits_RV = torch.randn(ROWS, VOCAB)
    with PassCounter(ROWS * VOCAB) as counter:
        rows = reduce_(logits_RV, target, NEEDS[name], with_grad=True)
        gradient_(rows, sum_of_leaves(rows))
    assert counter.passes == expected


@pytest.fixture
def compile_only(monkeypatch, tmp_path):
    """Kernels are compiled for the capability that is asked for, as a launch would; none is launched."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from logitcask_consumer.head import triton_passes as triton_dense

    try:
        _ = triton.knobs.nvidia.ptxas.path
    except RuntimeError as error:
        pytest.skip(f"this build of Triton brings no ptxas: {error}")
    if not isinstance(triton_dense.tile_sums, triton.JITFunction):
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    run, compiled = triton.JITFunction.run, {}

    def compile_it(self, *args, grid, warmup, **options):
        del grid, warmup
        compiled[self.__name__] = run(self, *args, grid=None, warmup=True, **options)

    def for_capability(capability):
        driver = SimpleNamespace(
            get_current_device=lambda: -capability,  # no real device's cache is touched
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", capability, 32),
        )
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)
        monkeypatch.setattr(triton.JITFunction, "run", compile_it)
        monkeypatch.setattr(triton_dense, "_check", lambda logits_RV, exponents: None)
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        return compiled

    return for_capability


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in NEEDS), ("power", torch.float64)])
def test_kernels_compile(name, dtype, capability, compile_only, target):
    """And touch the buffer in three passes: the sums read it, the gradient reads and writes it."""
    compiled = compile_only(capability)
    logits_RV = torch.zeros(ROWS, VOCAB, dtype=dtype)
    with dense_passes("triton"):
        rows = reduce_(logits_RV, target.to_dtype(dtype), NEEDS[name], with_grad=True)
        gradient_(rows, sum_of_leaves(rows))
    assert set(compiled) == {"tile_sums", "row_sums", "rest_gradient"}
    for kernel in compiled.values():
        assert f".target sm_{capability}" in kernel.asm["ptx"]
        assert kernel.asm["cubin"].startswith(b"\x7fELF")

    def passes(kernel, operation):
        lines = compiled[kernel].asm["ttir"].splitlines()
        return sum(operation in line and "tensor<4096x!tt.ptr" in line for line in lines)

    assert [passes("tile_sums", "tt.load"), passes("tile_sums", "tt.store")] == [1, 0]
    assert [passes("rest_gradient", "tt.load"), passes("rest_gradient", "tt.store")] == [1, 1]
