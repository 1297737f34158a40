"""Plans: figures worked out by hand, options out of range, and limits."""

import math
from typing import Any

import pytest
from typer.testing import CliRunner

from logitcask_schemas.cli.plan import app
from logitcask_schemas.errors import OptionError
from logitcask_schemas.planning.accelerators import ACCELERATORS, accelerator_named
from logitcask_schemas.planning.plan import CAPTURE_RATIO, Request, make_plan
from logitcask_schemas.planning.teacher import TeacherShape
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import parse_hints

SPEC = CaptureSpec(tau=1 / 35)


def plan(**changes):
    fields: dict[str, Any] = {
        "tokens": 1e12,
        "teacher_params": 70e9,
        "gpu": "h100",
        "spec": SPEC,
        "layers": 80,
        "width": 8192,
    }
    return make_plan(Request(**(fields | changes)))


def test_time_by_hand() -> None:
    made = plan(document_tokens=2048.0, mfu=0.5)
    flops = 2 * 70e9 + 2 * 80 * 8192 * 2048
    assert made.flops == pytest.approx(1e12 * flops)
    rate = 989.4e12 * 0.5 / flops * CAPTURE_RATIO
    assert made.tokens_per_gpu_second == pytest.approx(rate)
    assert made.gpu_days == pytest.approx(1e12 / rate / 86400)
    assert (made.gpus_per_replica, made.limit) == (4, "compute"), "140 GB do not fit into 2 x 64"
    assert made.frontend_core_days == pytest.approx(1e12 * 2.894e-6 / 86400)
    assert made.price is made.fleet is made.failures is None


def test_fp8_takes_half_the_memory_and_twice_the_peak() -> None:
    half, whole = plan(dtype="fp8"), plan()
    assert half.gpus_per_replica == 2
    assert half.gpu_days == pytest.approx(whole.gpu_days / 2, rel=1e-3)
    with pytest.raises(OptionError, match="a100 has no fp8 units"):
        plan(gpu="a100", dtype="fp8")


def test_small_steps_are_limited_by_memory() -> None:
    made = plan(step_tokens=64)
    assert made.limit == "memory"
    assert made.tokens_per_gpu_second == pytest.approx(64 / (140e9 / 3.35e12) * CAPTURE_RATIO)


def test_mixtures_of_experts_read_all_and_compute_a_part() -> None:
    made = plan(active_params=10e9, document_tokens=2.0, step_tokens=1 << 20)
    assert made.flops == pytest.approx(1e12 * (20e9 + 2 * 80 * 8192 * 2))
    assert made.gpus_per_replica == plan().gpus_per_replica
    with pytest.raises(OptionError, match="--active-params 8e"):
        plan(active_params=8e10)


def test_a_shape_is_estimated() -> None:
    """Within a tenth of layers times width of the Llama 3 family."""
    for params, product in ((8e9, 32 * 4096), (70e9, 80 * 8192), (405e9, 126 * 16384)):
        shape = TeacherShape.of(params)
        assert shape.layers * shape.width == pytest.approx(product, rel=0.2)
    assert TeacherShape.of(12 * 10 * 100**2, width=100).layers == 10
    assert TeacherShape.of(12 * 10 * 100**2, layers=10).width == 100


def test_a_fleet_uses_whole_replicas() -> None:
    made = plan(gpus=1023, price_per_gpu_hour=2.0)
    assert made.fleet is not None
    assert (made.fleet.gpus, made.fleet.replicas) == (1020, 255)
    assert made.fleet.days == pytest.approx(made.gpu_days / 1020)
    assert made.fleet.tokens_per_second == pytest.approx(made.tokens_per_gpu_second * 1020)
    written = made.fleet.written_bytes_per_second * made.fleet.days * 86400
    assert written == pytest.approx(made.cask.record_bytes)
    assert made.price == pytest.approx(made.gpu_days * 24 * 2)
    with pytest.raises(OptionError, match="--gpus 3: one replica of the teacher needs 4"):
        plan(gpus=3)
    # A shard is one replica's work: 64 of them keep 64 replicas busy, however many there are.
    small = plan(tokens=1e7, gpus=4096)
    assert small.fleet is not None
    assert (small.cask.shards, small.fleet.replicas, small.fleet.gpus) == (64, 64, 256)
    assert small.fleet.days * 86400 == pytest.approx(small.chunk_seconds)


def test_failures() -> None:
    made = plan(mtbf_hours=100.0, restart_seconds=60.0)
    assert made.failures is not None
    mean, w = 100 * 3600 / 4, made.chunk_seconds
    slowdown = math.expm1(w / mean) * (mean + 60) / w
    assert made.failures.slowdown == pytest.approx(slowdown)
    assert made.gpu_days == pytest.approx(plan().gpu_days * slowdown)
    # As many as captures of a chunk that had to be begun again.
    assert made.failures.expected == pytest.approx(made.cask.shards * math.expm1(w / mean))
    with pytest.raises(OptionError, match="none would ever be finished"):
        plan(mtbf_hours=0.001)


def test_shards_are_those_of_the_service() -> None:
    assert plan().cask.shards == 119_210
    assert plan(document_tokens=512.0).cask.shards == math.ceil(1e12 / (4096 * 512)), "4,096 documents at most"
    assert plan(tokens=1e6).cask.shards == 64
    assert plan(shard_tokens=1e10).cask.shards == 100


def test_hints() -> None:
    hints = parse_hints("layers=10,-1 codec=f16")
    made = plan(hints=hints)
    assert made.cask.hint_bytes_per_position == 2 * (2 * 8192 + 4)
    assert made.cask.hint_bytes == made.cask.positions * made.cask.hint_bytes_per_position
    assert made.cask.shard_tokens * made.cask.hint_bytes_per_position == pytest.approx(256 << 20, rel=1e-3)
    last = plan(hints=parse_hints("layers=-1 positions=last"), hint_width=100)
    assert last.cask.hint_bytes == pytest.approx(last.cask.documents * 204)


def test_what_it_stands_on_is_told() -> None:
    basis = {each.name: each for each in plan(mfu=0.3, price_per_gpu_hour=3.0).basis}
    assert (basis["MFU"].value, basis["MFU"].kind) == (0.3, "given")
    assert {each.name: each.kind for each in plan().basis}["MFU"] == "assumed"
    assert basis["price per GPU-hour"].kind == "given"
    assert all(each.source or each.kind == "given" for each in basis.values())
    assert all(each.source for each in ACCELERATORS.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0.0}, "--tokens 0: expected a number above 0"),
        ({"tokens": math.inf}, "--tokens inf"),
        ({"mfu": 1.5}, "--mfu 1.5: expected a share"),
        ({"document_tokens": 1.0}, "at least 2 tokens"),
        ({"entropy": 9.0}, "up to 3.23"),
        ({"packed": True}, "give --codec u8all"),
        ({"gpu": "abacus"}, "--gpu abacus: unknown; there are a100"),
        ({"restart_seconds": -1.0}, "--restart-seconds -1"),
        ({"shard_tokens": 2047.0}, "a shard holds whole documents, which have 2048 tokens on average"),
        ({"teacher_params": 1e308}, r"--teacher-params 1e\+308: expected a number above 0 and below 1e\+30"),
        ({"hint_width": 64}, "--hint-width: is the width of --hints"),
        ({"restart_seconds": 5.0}, "--restart-seconds: follow a failure; add --mtbf-hours"),
        ({"spec": CaptureSpec(mode="topk")}, "mode threshold"),
    ],
)
def test_bad_options(changes, message) -> None:
    with pytest.raises(OptionError, match=message):
        plan(**changes)


def test_names_of_gpus_in_any_case() -> None:
    assert accelerator_named("H100") is ACCELERATORS["h100"]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (
            "--tokens 5e7 --teacher-params 135e6 --gpu a100 --gpus 16",
            {
                "teacher's time": "129 GPU-seconds",
                "a replica": "1 GPU",
                "frontend": "145 core-seconds",
                "with 16 GPUs": "8.0 s",
                "money": "0.0715",
            },
        ),
        (
            "--tokens 1e9 --teacher-params 7e9 --gpu l40s --gpus 1",
            {"teacher's time": "28.8 GPU-hours", "with 1 GPU": "1.2 days", "money": "57.7"},
        ),
        ("--tokens 1e12 --teacher-params 7e9 --gpu l40s", {"frontend": "33 core-days", "money": "57,682"}),
    ],
)
def test_a_small_capture_does_not_take_nothing(options: str, rows: dict[str, str]) -> None:
    said = CliRunner().invoke(app, [*options.split(), "--price-per-gpu-hour", "2"])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    for what, much in rows.items():
        assert any(line.startswith(f"{what} ") and f" {much} " in line for line in lines), (what, much)
