"""A plan: what a capture takes in GPU time, bytes, files, money, failures, processors and network. Formulas alone.

Nothing is measured when a plan is made. Each number that goes in is published by a maker, measured by a benchmark of
this project, assumed, or given by whoever asks; `Plan.basis` says which. docs/planning.md has the formulas.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from logitcask_schemas.errors import OptionError
from logitcask_schemas.planning.accelerators import BYTES_PER_WEIGHT, ComputeDtype, accelerator_named
from logitcask_schemas.planning.cask_size import PACKED_RATIO, CaskSize, cask_size
from logitcask_schemas.planning.entries import MEASURED_ENTROPY
from logitcask_schemas.planning.failures import failure_costs
from logitcask_schemas.planning.teacher import WEIGHTS_SHARE, TeacherShape, pace
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.hint_spec import HintSpec

PREPARE_MICROSECONDS: Final = 1.699
RUN_MICROSECONDS: Final = 1.195
"""CPU per token of the service: reading and tokenizing; feeding, publishing and bookkeeping."""
CAPTURE_RATIO: Final = 0.969
"""Throughput with capture at tau = 1/20 over the same engine that drops its logits, on a CPU."""
TEXT_BYTES_PER_TOKEN: Final = 4.0
DEFAULT_MFU: Final = 0.4
DEFAULT_RESTART_SECONDS: Final = 600.0
DEFAULT_STEP_TOKENS: Final = 8192
DEFAULT_DOCUMENT_TOKENS: Final = 2048.0
DEFAULT_VOCAB_SIZE: Final = 128_256
DAY: Final = 86_400.0
HOUR: Final = 3_600.0
_LARGEST: Final = 1e30
"""Products of numbers below it are numbers."""

Kind = Literal["given", "published", "measured", "assumed"]
T = TypeVar("T", bound=float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be planned. None: as the defaults above, or not known."""

    tokens: float
    teacher_params: float
    gpu: str
    spec: CaptureSpec
    dtype: ComputeDtype = "bf16"
    mfu: float | None = None
    active_params: float | None = None
    layers: int | None = None
    width: int | None = None
    vocab_size: int | None = None
    document_tokens: float | None = None
    entropy: float | None = None
    bytes_per_token: float | None = None
    packed: bool = False
    hints: HintSpec | None = None
    hint_width: int | None = None
    shard_tokens: float | None = None
    step_tokens: int | None = None
    gpus: int | None = None
    price_per_gpu_hour: float | None = None
    mtbf_hours: float | None = None
    """Of one GPU with its share of the machine."""
    restart_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """One number that a plan stands on."""

    name: str
    value: float | str
    kind: Kind
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """With a stated time between failures."""

    expected: float
    """Failures of the whole capture."""
    lost_gpu_seconds: float
    """Work that one failure destroys, on all GPUs of its replica, mean."""
    restart_gpu_seconds: float
    """What its restart takes of them."""
    slowdown: float
    """Time with failures over time without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """With a stated number of GPUs."""

    gpus: int
    """In use: a whole number of replicas, each with a shard to work on."""
    replicas: int
    days: float
    tokens_per_second: float
    frontend_cores: float
    """Busy with tokenizing, feeding and publishing."""
    written_bytes_per_second: float
    """Shards and hints."""
    text_bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What it takes."""

    cask: CaskSize
    shape: TeacherShape
    flops: float
    """Of all tokens."""
    tokens_per_gpu_second: float
    gpus_per_replica: int
    limit: str
    """`compute` or `memory`."""
    gpu_days: float
    """Failures included, where they are known."""
    chunk_seconds: float
    """Of a shard on one replica."""
    frontend_core_days: float
    failures: Failures | None
    fleet: Fleet | None
    price: float | None
    """Of the GPU-days, in the currency of the price per hour."""
    basis: tuple[Basis, ...]


def make_plan(request: Request) -> Plan:
    """Work a plan out.

    Raises:
        OptionError: A value outside its range, an unknown GPU, or fewer GPUs than one replica needs.
    """
    _require_ranges(request)
    gpu = accelerator_named(request.gpu)
    document_tokens = _either(request.document_tokens, DEFAULT_DOCUMENT_TOKENS)
    vocab_size = _either(request.vocab_size, DEFAULT_VOCAB_SIZE)
    shape = TeacherShape.of(
        request.teacher_params, active_params=request.active_params, layers=request.layers, width=request.width
    )
    size = cask_size(
        request.tokens,
        request.spec,
        vocab_size=vocab_size,
        document_tokens=document_tokens,
        entropy=_either(request.entropy, MEASURED_ENTROPY),
        packed=request.packed,
        measured_bytes_per_token=request.bytes_per_token,
        hints=request.hints,
        hint_width=_either(request.hint_width, shape.width),
        shard_tokens=request.shard_tokens,
    )
    speed = pace(
        shape,
        gpu,
        dtype=request.dtype,
        mfu=_either(request.mfu, DEFAULT_MFU),
        document_tokens=document_tokens,
        step_tokens=_either(request.step_tokens, DEFAULT_STEP_TOKENS),
        capture_ratio=CAPTURE_RATIO,
    )
    replica_rate = speed.tokens_per_gpu_second * speed.gpus_per_replica
    chunk_seconds = size.shard_tokens / replica_rate
    gpu_seconds = request.tokens / speed.tokens_per_gpu_second
    failures = None
    if request.mtbf_hours is not None:
        failures = _failures(request, request.mtbf_hours, chunk_seconds, speed.gpus_per_replica, gpu_seconds)
    gpu_seconds *= 1.0 if failures is None else failures.slowdown
    fleet = None
    if request.gpus is not None:
        fleet = _fleet(request, request.gpus, size, speed.gpus_per_replica, gpu_seconds)
    price = request.price_per_gpu_hour
    return Plan(
        cask=size,
        shape=shape,
        flops=request.tokens * shape.flops_per_token(document_tokens),
        tokens_per_gpu_second=speed.tokens_per_gpu_second,
        gpus_per_replica=speed.gpus_per_replica,
        limit=speed.limit,
        gpu_days=gpu_seconds / DAY,
        chunk_seconds=chunk_seconds,
        frontend_core_days=request.tokens * (PREPARE_MICROSECONDS + RUN_MICROSECONDS) / 1e6 / DAY,
        failures=failures,
        fleet=fleet,
        price=None if price is None else gpu_seconds / HOUR * price,
        basis=tuple(_basis(request, shape)),
    )


def _either(given: T | None, default: T) -> T:
    return default if given is None else given


def _require_ranges(request: Request) -> None:
    positive = {
        "--tokens": request.tokens,
        "--teacher-params": request.teacher_params,
        "--active-params": request.active_params,
        "--layers": request.layers,
        "--width": request.width,
        "--vocab-size": request.vocab_size,
        "--bytes-per-token": request.bytes_per_token,
        "--hint-width": request.hint_width,
        "--shard-tokens": request.shard_tokens,
        "--step-tokens": request.step_tokens,
        "--gpus": request.gpus,
        "--price-per-gpu-hour": request.price_per_gpu_hour,
        "--mtbf-hours": request.mtbf_hours,
    }
    for option, value in positive.items():
        if value is not None and not 0 < value < _LARGEST:
            raise OptionError(f"{option} {value:g}: expected a number above 0 and below {_LARGEST:g}")
    if request.mfu is not None and not 0 < request.mfu <= 1:
        raise OptionError(f"--mfu {request.mfu:g}: expected a share of the peak, above 0 and up to 1")
    document_tokens = _either(request.document_tokens, DEFAULT_DOCUMENT_TOKENS)
    if not 2 <= document_tokens < _LARGEST:
        raise OptionError(f"--document-tokens {document_tokens:g}: a document has at least 2 tokens")
    if request.shard_tokens is not None and request.shard_tokens < document_tokens:
        raise OptionError(
            f"--shard-tokens {request.shard_tokens:g}: a shard holds whole documents, which have {document_tokens:g} "
            "tokens on average (--document-tokens)"
        )
    if request.restart_seconds is not None and not 0 <= request.restart_seconds < _LARGEST:
        raise OptionError(f"--restart-seconds {request.restart_seconds:g}: expected 0 or more, and below {_LARGEST:g}")
    if request.hint_width is not None and request.hints is None:
        raise OptionError("--hint-width: is the width of --hints; add them, or leave it out")
    if request.restart_seconds is not None and request.mtbf_hours is None:
        raise OptionError("--restart-seconds: follow a failure; add --mtbf-hours, or leave them out")
    if request.spec.mode != "threshold":
        raise OptionError(f"a plan is for mode threshold, this spec has {request.spec.mode}")


def _failures(request: Request, mtbf_hours: float, chunk_seconds: float, replica: int, gpu_seconds: float) -> Failures:
    restart = _either(request.restart_seconds, DEFAULT_RESTART_SECONDS)
    costs = failure_costs(chunk_seconds, mtbf_hours * HOUR / replica, restart)
    if math.isinf(costs.slowdown):
        raise OptionError(
            f"a shard takes a replica {chunk_seconds / HOUR:,.1f} hours, which fails every {mtbf_hours / replica:g} "
            "hours: none would ever be finished. Plan smaller ones with --shard-tokens"
        )
    return Failures(
        expected=gpu_seconds * costs.slowdown / (mtbf_hours * HOUR + restart * replica),
        lost_gpu_seconds=costs.lost_seconds * replica,
        restart_gpu_seconds=restart * replica,
        slowdown=costs.slowdown,
    )


def _fleet(request: Request, gpus: int, size: CaskSize, replica: int, gpu_seconds: float) -> Fleet:
    replicas = gpus // replica
    if not replicas:
        raise OptionError(f"--gpus {gpus}: one replica of the teacher needs {replica} (its weights, see --dtype)")
    replicas = min(replicas, size.shards)  # a shard is one replica's work
    seconds = gpu_seconds / (replicas * replica)
    rate = request.tokens / seconds
    return Fleet(
        gpus=replicas * replica,
        replicas=replicas,
        days=seconds / DAY,
        tokens_per_second=rate,
        frontend_cores=rate * (PREPARE_MICROSECONDS + RUN_MICROSECONDS) / 1e6,
        written_bytes_per_second=(size.record_bytes + size.hint_bytes) / seconds,
        text_bytes_per_second=rate * TEXT_BYTES_PER_TOKEN,
    )


def _basis(request: Request, shape: TeacherShape) -> list[Basis]:
    gpu = accelerator_named(request.gpu)
    bases = list[Basis]()

    def add(name: str, value: float | str, kind: Kind, source: str) -> None:
        bases.append(Basis(name=name, value=value, kind=kind, source=source))

    def either(name: str, given: float | None, default: float, source: str, kind: Kind = "assumed") -> None:
        add(name, default, kind, source) if given is None else add(name, given, "given", "")

    add(f"peak {request.dtype} FLOP/s", gpu.flops(request.dtype), "published", gpu.source)
    add("memory, bytes", gpu.memory_bytes, "published", gpu.source)
    add("memory, bytes/s", gpu.memory_bandwidth, "published", gpu.source)
    either("MFU", request.mfu, DEFAULT_MFU, "not measured; a pilot on your GPUs tells (--mfu)")
    add("throughput with capture / without", CAPTURE_RATIO, "measured", "bench/results/capture.csv, on a CPU")
    add("bytes per weight", BYTES_PER_WEIGHT[request.dtype], "assumed", f"weights are {request.dtype}")
    add("share of memory for weights", WEIGHTS_SHARE, "assumed", "the rest is for keys, values and logits")
    either("tokens per step", request.step_tokens, DEFAULT_STEP_TOKENS, "max_num_batched_tokens of the engine")
    either("layers", request.layers, shape.layers, "from params = 12 layers width²")
    either("width", request.width, shape.width, "from params = 12 layers width²")
    either("tokens per document", request.document_tokens, DEFAULT_DOCUMENT_TOKENS, "mean length")
    either("vocabulary", request.vocab_size, DEFAULT_VOCAB_SIZE, "ids of more than 16 bits take 3 bytes")
    if request.bytes_per_token is not None:
        add("bytes per token", request.bytes_per_token, "given", "")
    else:
        fitted = "fits SmolLM2-135M on Python sources, docs/capture.md; sharper teachers have less"
        either("mean entropy, nats", request.entropy, MEASURED_ENTROPY, fitted, "measured")
        if request.packed:
            add("packed / flat", PACKED_RATIO, "measured", "bench/results/packed_record.csv")
    source = "bench/results/service_overhead.csv, one core of an AMD EPYC"
    add("tokenizing, CPU us/token", PREPARE_MICROSECONDS, "measured", source)
    add("feeding and publishing, CPU us/token", RUN_MICROSECONDS, "measured", source)
    add("text, bytes/token", TEXT_BYTES_PER_TOKEN, "assumed", "English in UTF-8")
    if request.mtbf_hours is not None:
        add("hours between failures of a GPU", request.mtbf_hours, "given", "")
        either("restart, s", request.restart_seconds, DEFAULT_RESTART_SECONDS, "new machine, weights loaded")
    if request.price_per_gpu_hour is not None:
        add("price per GPU-hour", request.price_per_gpu_hour, "given", "")
    return bases
