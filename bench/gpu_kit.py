"""What this repository says of GPUs, tried on one: `make gpu`, or `python bench/gpu_kit.py [--device cpu --quick]`.

One run of about ten minutes, without network and without a model of anybody's: capture on the device against capture
on the CPU, what a row of capture costs against log_softmax with top-k and against the memory's speed, the fused losses
against cross-entropy, a step of a student of a billion parameters with its loader, and the transformers engine against
a plain forward pass. vLLM and Liger take part where they are installed.

Each section runs by itself: one that fails is reported and the others go on; the exit code is then 1. Figures go to
`gpu_kit.csv`, and with device, versions and ratios to `gpu_kit.md`. `--quick` is for tests: small shapes, figures that
say nothing.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from gpu_kit_run import Kit, device_name, markdown
from report import RESULTS, Report

SECTIONS = {
    "capture equality": ("gpu_kit_capture", "capture_equality"),
    "capture speed": ("gpu_kit_capture", "capture_speed"),
    "fused losses": ("gpu_kit_training", "fused_losses"),
    "student step": ("gpu_kit_training", "student_step"),
    "transformers engine": ("gpu_kit_capture", "transformers_engine"),
    "vLLM engine": ("gpu_kit_capture", "vllm_engine"),
}
"""Module and function of each, in their order; imported one by one, since an environment may lack what one needs."""


def section(name: str) -> Callable[[Kit], None]:
    """A section's function, imported when it is called."""
    module, function = SECTIONS[name]

    def run(kit: Kit) -> None:
        getattr(import_module(module), function)(kit)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", help="torch device (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="small shapes, seconds: to see that the kit runs")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="sections to run (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of gpu_kit.csv and gpu_kit.md")
    arguments = parser.parse_args()
    try:
        device = torch.device(arguments.device)
    except RuntimeError:
        parser.error(f"--device {arguments.device}: expected a torch device: cuda, cuda:1 or cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here: run the kit on a machine that has one, or try it with --device cpu --quick")
    if unknown := set(arguments.only or ()) - SECTIONS.keys():
        sys.exit(f"no section {sorted(unknown)}; there are {list(SECTIONS)}")
    report = Report(__file__, "torch")
    report.path = arguments.out / report.path.name
    kit = Kit(device=device, quick=arguments.quick, report=report)
    for name in arguments.only or SECTIONS:
        kit.run(name, section(name))
    for row in report.rows:
        row["device"] = device_name(device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    report.write()
    report.path.with_suffix(".md").write_text(markdown(kit), encoding="utf-8")
    print("\n".join(f"{name}: {state}" for name, state in kit.states.items()))
    sys.exit(1 if kit.failed else 0)


if __name__ == "__main__":
    main()
