"""What the GPU kit's sections share: the device, timing, figures, and what became of each section."""

import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from report import Report

PACKAGES = ("torch", "transformers", "triton", "liger-kernel", "vllm")


class SkippedError(Exception):
    """A section cannot run here, and says why; that is no failure."""


@dataclass(kw_only=True)
class Kit:
    """Where the sections run, and what they found."""

    device: torch.device
    quick: bool
    report: Report
    section: str = ""
    states: dict[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """Of models and logits: bfloat16, and float32 on a CPU, where the former is emulated."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def seconds(self, work: Callable[[], object], *, repeats: int = 7) -> list[float]:
        """Seconds of each call, the device's work included; two calls go first."""
        taken = []
        for _ in range(2 if self.quick else repeats + 2):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            taken.append(time.perf_counter() - start)
        return taken[1:] if self.quick else taken[2:]

    def add(self, metric: str, unit: str, values: list[float], note: str = "", **labels: object) -> float:
        """Note a figure of the present section; returns its median."""
        return self.report.add(metric, unit, values, note, section=self.section, **labels)

    def ratio(self, metric: str, mine: list[float], others: list[float], **labels: Any) -> None:
        """Note how many times longer something takes, call by call."""
        self.add(metric, "ratio", [a / b for a, b in zip(mine, others, strict=True)], **labels)

    def require(self, holds: bool, sentence: str) -> None:
        """Fail the section where something does not hold."""
        if not holds:
            raise AssertionError(sentence)

    def run(self, name: str, section: Callable[["Kit"], None]) -> None:
        """Run a section; whatever goes wrong in it is noted, and ends no other."""
        self.section = name
        print(f"== {name}", flush=True)
        try:
            section(self)
        except SkippedError as reason:
            self.states[name] = f"skipped: {reason}"
        except Exception as error:  # noqa: BLE001  (of any library: the next section must have its turn)
            traceback.print_exc()
            self.states[name] = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            self.states[name] = "passed"
        print(f"   {self.states[name]}", flush=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def failed(self) -> bool:
        """Whether any section did."""
        return any(state.startswith("FAILED") for state in self.states.values())

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def device_name(device: torch.device) -> str:
    """The device as its maker calls it."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
    return f"{device.type} ({platform.processor() or platform.machine()})"


def versions() -> dict[str, str]:
    """Of the packages that matter, where they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    return found


def markdown(kit: Kit) -> str:
    """The findings for a person: where, what held, and the medians."""
    lines = [
        "# GPU kit",
        "",
        f"Device: {device_name(kit.device)}{' (quick: no figure counts)' if kit.quick else ''}",
        "",
    ]
    lines += [
        ", ".join(f"{name} {number}" for name, number in versions().items()),
        "",
        "| section | result |",
        "|---|---|",
    ]
    lines += [f"| {name} | {state} |" for name, state in kit.states.items()]
    shown = ("p50", "unit", "section", "metric")
    lines += ["", "| section | of | figure | median | unit |", "|---|---|---|---:|---|"]
    facts = {"p20", "p80", "repeats", "note", "timestamp", "cpu", "cores", "python", "torch", "device", *shown}
    for row in kit.report.rows:
        labels = ", ".join(f"{name} {value}" for name, value in row.items() if name not in facts)
        lines.append(f"| {row['section']} | {labels} | {row['metric']} | {row['p50']} | {row['unit']} |")
    return "\n".join([*lines, ""])
