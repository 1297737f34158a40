"""What a model costs on this machine: parameters, bytes, tokens per second and memory.

The most that a process has held cannot be told for one of several models in it, so every model is measured in a process
of its own: `python -m logitcask_consumer.report.cost FOLDER THREADS` prints one JSON object. All compute in float32, as
the report does.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from logitcask_consumer.student.adapters import ADAPTER_NAME, base_folder
from logitcask_consumer.student.checks import context_of
from logitcask_consumer.student.generation import plain_generation
from logitcask_consumer.student.loading import load_model
from logitcask_consumer.student.sharded_state import has_shards
from logitcask_schemas.errors import ModelError

READ_TOKENS: Final = 512
WRITTEN_TOKENS: Final = 32
REPEATS: Final = 3


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how much was read and written."""
    device = _device()
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_gpu else (platform.processor() or platform.machine()),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "dtype": "float32",
        "read_tokens": READ_TOKENS,
        "written_tokens": WRITTEN_TOKENS,
        "repeats": REPEATS,
    }


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model, not only its tokenizer."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def cost_of(label: str, folder: Path) -> dict[str, Any]:
    """Measure a model in a process of its own; see `measure`.

    Args:
        label: for messages.
        folder: of a causal LM.

    Raises:
        ModelError: the process ended without an answer.
    """
    command = [sys.executable, "-m", __name__, str(folder), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise ModelError(
            f"--speed: the process that measured {label} ended with code {done.returncode} ({last}); below 0 it was "
            "killed, perhaps for want of memory. Free memory, or leave out --speed"
        )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(folder: Path) -> dict[str, Any]:
    """Measure a model in this process, which should have done nothing else.

    Args:
        folder: of a causal LM.

    Returns:
        `parameters`; `bytes` of its files of weights, the base of adapters among them; `read_tokens_per_second`: one
        sequence of `READ_TOKENS`, or the model's context, in one pass; `written_tokens_per_second`: `WRITTEN_TOKENS`,
        one by one with a cache; both are medians of `REPEATS`; `memory_bytes`: the most held while it loads, reads and
        writes, on a GPU there, else of the process, less what it held before, with its libraries.
    """
    device = _device()
    _rehearse(device)
    if (folder / ADAPTER_NAME).is_file():
        import peft

        del peft
    before = _peak_bytes(device)
    model = load_model(folder).to(device).eval()
    length = min(READ_TOKENS, context_of(model.config) or READ_TOKENS)
    ids_1L = torch.arange(length, device=device)[None] % int(model.config.get_text_config().vocab_size)
    written = max(1, min(WRITTEN_TOKENS, length - 1))
    with torch.inference_mode():
        reading = _seconds(lambda: model(input_ids=ids_1L, use_cache=False), device)
        writing = _seconds(lambda: _write(model, ids_1L[:, :1], written), device)
    return {
        "parameters": int(model.num_parameters()),
        "bytes": _bytes_of(folder, model),
        "read_tokens_per_second": length / reading,
        "written_tokens_per_second": written / writing,
        "memory_bytes": _peak_bytes(device) - before,
    }


def _rehearse(device: torch.device) -> None:
    """Load, read and write with next to nothing: what libraries hold for themselves, 250 MB, is not the model's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=1, pad_token_id=0)  # type: ignore[arg-type]  # numbers all
    with tempfile.TemporaryDirectory(prefix="logitcask-cost-") as place, torch.inference_mode():
        LlamaForCausalLM(config).save_pretrained(place)
        model, ids_1L = load_model(Path(place)).to(device).eval(), torch.zeros((1, 2), dtype=torch.long, device=device)
        model(input_ids=ids_1L, use_cache=False)
        _write(model, ids_1L, 2)


def _bytes_of(folder: Path, model: Any) -> int:
    """Of the files of a model's weights. Of a checkpoint in parts, which hold the optimizer too: of the weights."""
    if has_shards(folder):
        return sum(weight.nbytes for weight in model.parameters())
    folders = [folder, *([base_folder(folder)] if (folder / ADAPTER_NAME).is_file() else [])]
    return sum(path.stat().st_size for each in folders for path in each.glob("*.safetensors"))


def _write(model: Any, ids_11: torch.Tensor, tokens: int) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(do_sample=False, max_new_tokens=tokens, pad_token_id=0)  # type: ignore[no-untyped-call]
    with plain_generation(model):
        model.generate(input_ids=ids_11, attention_mask=torch.ones_like(ids_11), generation_config=config)


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median over `REPEATS`, after one that does not count."""
    spent = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent[1:])


def _peak_bytes(device: torch.device) -> int:
    """The most that was held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(measure(Path(sys.argv[1]))))
