"""Many engines of one teacher: which GPUs each gets on this machine, and what a Ray cluster is asked for."""

import importlib.util
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, cast

from logitcask_schemas.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcask_schemas.model_source import ModelSource
    from logitcask_schemas.record.hint_spec import HintSpec
    from logitcask_services.engines.engine import Engine
    from logitcask_services.engines.process.fleet import EngineFleet
    from logitcask_services.jobs.executors.chunk_orders import WorkerTeam
    from logitcask_services.settings import ServiceSettings


def parallel_of(settings: "ServiceSettings") -> int:
    """GPUs over which one engine is parallel."""
    if settings.engine != "vllm":
        return 1
    sizes = (settings.engine_options.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
    return math.prod(size for size in sizes if isinstance(size, int))


@cache
def gpu_count() -> int:
    """How many GPUs torch sees from here. It is asked in a process of its own: the service's goes without torch."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_torch_gpu_count).result()


def _torch_gpu_count() -> int:
    import torch

    return torch.cuda.device_count()  # nothing is set up on them by that


def visible_devices() -> list[str]:
    """GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them; empty where there are none."""
    count = gpu_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if named is None else named.split(",")[:count]


def device_shares(settings: "ServiceSettings", engines: int, *, option: str) -> list[tuple[str, ...]]:
    """The GPUs of each engine, disjoint; each empty on a machine without any.

    Args:
        settings: How one engine is loaded.
        engines: On this machine, at once.
        option: How they were asked for, for the message.

    Raises:
        OptionError: there are fewer GPUs than the engines take.
    """
    devices, each = visible_devices(), parallel_of(settings)
    if not devices:
        return [()] * engines
    if len(devices) < engines * each:
        takes = f"{each} GPUs each" if each > 1 else "a GPU each"
        raise OptionError(
            f"{option} {engines}: expected {takes}, {engines * each} in all; {len(devices)} can be seen here "
            f"(CUDA_VISIBLE_DEVICES={','.join(devices)}). Ask for at most {len(devices) // each}"
        )
    return [tuple(devices[place * each : (place + 1) * each]) for place in range(engines)]


def require_team(settings: "ServiceSettings") -> None:
    """Raise OptionError, MissingExtraError or CaptureStoppedError where what was asked for cannot be had here."""
    if settings.executor == "ray":
        require_ray("logitcask serve --executor ray", settings.ray_address)
    elif settings.engines > 1 and settings.engine != "openai":
        device_shares(settings, settings.engines, option="--engines")


def require_ray(command: str, address: str | None) -> None:
    """Raise MissingExtraError or CaptureStoppedError where there is no Ray here, or no cluster that lets us in.

    Args:
        command: That asks for it.
        address: Of the cluster; None: see `RayOptions`.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError(command, "ray", "ray")
    from logitcask_services.jobs.executors.ray_head import require_answer

    require_answer(address)


def load_team(
    settings: "ServiceSettings", source: "ModelSource", hints: "HintSpec | None", load: "Callable[..., Engine]"
) -> "tuple[Engine, WorkerTeam | None]":
    """The engine of a teacher that captures, and the team that captures corpora where it is not that engine alone.

    Args:
        settings: Where and how.
        source: The teacher.
        hints: Whose layers are given.
        load: Loads an engine here; with more than one of them it is told its `devices`.
    """
    if settings.engine == "openai" or (settings.engines == 1 and settings.executor == "local"):
        return load(), None
    if settings.executor == "ray":
        from logitcask_services.jobs.executors.ray_pool import RayOptions, RayTeam

        options = RayOptions(
            address=settings.ray_address,
            num_gpus=settings.gpus_per_engine,
            num_cpus=1.0 if settings.cpus_per_engine is None else settings.cpus_per_engine,
            parallel=parallel_of(settings),
        )
        source = replace(source, folder=source.folder.absolute())
        return load(), RayTeam(partial(_engine_on_node, settings, source, hints), options, settings.engines)
    from logitcask_services.jobs.executors.local_pool import LocalTeam

    fleet = fleet_of(settings, settings.engines, load, option="--engines").load()
    return fleet, LocalTeam(fleet)


def fleet_of(
    settings: "ServiceSettings", engines: int, load: "Callable[..., Engine]", *, option: str, keeps: bool = True
) -> "EngineFleet":
    """Engines of this machine that are not loaded yet, each with its GPUs; arguments and errors as above."""
    from logitcask_services.engines.process.fleet import EngineFleet, OwnEngine

    shares = device_shares(settings, engines, option=option)
    # The settings say that engines have processes of their own.
    return EngineFleet(lambda place: cast("OwnEngine", load(devices=shares[place])), engines, keeps=keeps)


def _engine_on_node(settings: "ServiceSettings", source: "ModelSource", hints: "HintSpec | None") -> "Engine":
    """On a node of a cluster: from the folder of the service's machine where it is seen, else from the Hub."""
    from logitcask_services.cli.serve import engine_loader, require_teacher

    return engine_loader(settings, source if source.folder.is_dir() else require_teacher(settings), hints)()
