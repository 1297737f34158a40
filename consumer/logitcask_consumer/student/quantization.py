"""Students with quantised layers, by torchao: `int4:group=32` or `fp8`.

While such a student is trained, every forward pass rounds the weights of its layers to what the scheme can hold, and
the gradients go straight through to the weights before rounding (fake quantisation, arXiv 1712.05877). What is saved
are the rounded weights, by the same code, so the saved student computes what was trained.

Only weights of linear layers within the student's blocks are rounded. Embeddings and head, which are often one matrix,
norms and biases stay as they are; so do experts that a family keeps in one tensor.

Shape legend: R rows of a weight (outputs), C its columns (inputs), G groups of a row.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from logitcask_consumer.notation import read_named, write_named
from logitcask_consumer.run_document import CHECKPOINTS_NAME, read_run, run_folder_of
from logitcask_consumer.student.layer_states import blocks_of
from logitcask_schemas.errors import MissingExtraError, ModelError, OptionError


class QuantizationError(OptionError, ValueError):
    """A quantisation is not known, or does not fit the student."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4:
    """Integers from -8 to 7, times a float32 scale for each group of a row: its largest absolute weight over 7.5."""

    group: int = 32
    """Weights of a row that share a scale; it divides C of every layer."""

    def __post_init__(self) -> None:
        """Refuse a group that is none.

        Raises:
            QuantizationError: `group` is below 2.
        """
        if self.group < 2:
            raise QuantizationError(f"int4: group is how many weights share a scale, at least 2, got {self.group}")

    def fake(self) -> Any:
        """How torchao rounds weights in a forward pass."""
        from torchao.quantization.qat import IntxFakeQuantizeConfig

        return IntxFakeQuantizeConfig(torch.int4, group_size=self.group, is_symmetric=True)  # type: ignore[attr-defined]

    def stored(self) -> Any:
        """How torchao stores such weights: integers in bytes, and scales."""
        from torchao.quantization import IntxWeightOnlyConfig, PerGroup

        kind = torch.int4  # type: ignore[attr-defined]
        return IntxWeightOnlyConfig(weight_dtype=kind, granularity=PerGroup(self.group))

    def require_fitting(self, layers: Mapping[str, nn.Linear]) -> None:
        """Refuse a group that does not divide the rows of every layer.

        Raises:
            QuantizationError: names a layer that does not fit, and a group that fits all.
        """
        for name, layer in layers.items():
            if layer.in_features % self.group:
                common = math.gcd(*(layer.in_features for layer in layers.values()))
                fitting = max(size for size in range(1, self.group + 1) if common % size == 0)
                raise QuantizationError(
                    f"int4: groups of {self.group} do not divide the rows of {name}, which have {layer.in_features} "
                    f"weights. Take {f'int4:group={fitting}' if fitting > 1 else 'fp8'}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8:
    """Numbers of float8_e4m3fn, times a float32 scale for each row: its largest absolute weight over 448."""

    def fake(self) -> Any:
        """How torchao rounds weights in a forward pass."""
        from torchao.quantization import PerRow
        from torchao.quantization.qat import Float8FakeQuantizeConfig

        # The scale of a row of zeros would be 0, and the row NaN.
        return Float8FakeQuantizeConfig(dtype=torch.float8_e4m3fn, granularity=PerRow(), hp_value_lb=1e-12)

    def stored(self) -> Any:
        """How torchao stores such weights."""
        from torchao.quantization import Float8WeightOnlyConfig

        return Float8WeightOnlyConfig(weight_dtype=torch.float8_e4m3fn, set_inductor_config=False)

    def require_fitting(self, layers: Mapping[str, nn.Linear]) -> None:
        """Every layer fits."""


Scheme: TypeAlias = Int4 | Fp8
SCHEMES: Final[dict[str, Scheme]] = {"int4": Int4(), "fp8": Fp8()}


def read_scheme(text: str, *, command: str = "logitcask train --quantize") -> Scheme:
    """Read `int4`, `int4:group=64` or `fp8`.

    Args:
        text: what was written.
        command: that it was written for, for messages.

    Raises:
        QuantizationError: there is no such scheme, or it has no such parameter.
        MissingExtraError: torchao is not installed.
    """
    scheme = read_named(
        text, SCHEMES, what="quantisation", unknown=QuantizationError, wrong=QuantizationError, kind=" of weights"
    )
    if find_spec("torchao") is None:
        raise MissingExtraError(command, "quantization", "torchao")
    return scheme


def quantized_layers(model: Any) -> dict[str, nn.Linear]:
    """The linear layers within the blocks of a causal LM, by their names in it.

    Raises:
        ModelError: it has none, or keeps its blocks where they are not found.
    """
    in_blocks = {id(module) for module in blocks_of(model).modules() if isinstance(module, nn.Linear)}
    layers = {name: module for name, module in model.named_modules() if id(module) in in_blocks}
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no torch.nn.Linear in its layers, and nothing else is quantised. Take another "
            "student, or leave --quantize out"
        )
    return layers


def fitting_layers(model: Any, scheme: Scheme) -> dict[str, nn.Linear]:
    """Those layers, which the scheme fits.

    Raises:
        QuantizationError: the scheme does not fit a layer.
        ModelError: as `quantized_layers`.
    """
    layers = quantized_layers(model)
    scheme.require_fitting(layers)
    return layers


class _RoundedWeight(torch.autograd.Function):
    """A weight [R, C] rounded; its gradient is that of the rounded one."""

    @staticmethod
    def forward(ctx: Any, weight_RC: Tensor, rounding: nn.Module) -> Tensor:
        rounded_RC: Tensor = rounding(weight_RC)
        return rounded_RC

    @staticmethod
    def backward(ctx: Any, grad_RC: Tensor) -> tuple[Tensor, None]:
        return grad_RC, None


class StraightThrough(nn.Module):
    """Torchao's rounding with gradients that pass as they are, and nothing kept for them.

    Torchao's own gradients are another for fp8: they go through float8 themselves, where those of weights, times the
    small scale, are all 0. For int4 they are the same, but for weights that are cut off at the highest level.
    """

    def __init__(self, rounding: nn.Module) -> None:
        """Wrap a fake quantiser of torchao."""
        super().__init__()
        self.rounding = rounding

    def forward(self, weight_RC: Tensor) -> Tensor:
        """The rounded weight, float32 [R, C]."""
        rounded_RC: Tensor = _RoundedWeight.apply(weight_RC, self.rounding)  # type: ignore[no-untyped-call]
        return rounded_RC


def fake_quantize(model: Any, scheme: Scheme) -> None:
    """Let the layers round their weights in every forward pass; parameters, and their names, stay what they are.

    Args:
        model: a causal LM whose weights are float32.
        scheme: what to round to.

    Raises:
        QuantizationError, ModelError: as `fitting_layers`.
    """
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    layers = fitting_layers(model, scheme)
    config = QATConfig(weight_config=scheme.fake(), step="prepare")
    quantize_(model, config, filter_fn=lambda _, name: name in layers)
    for layer in quantized_layers(model).values():
        rounded: Any = layer
        rounded.weight_fake_quantizer = StraightThrough(rounded.weight_fake_quantizer)


@torch.no_grad()
def round_weights(model: Any, scheme: Scheme) -> None:
    """Replace the weights of the layers by those that a fake-quantised forward pass computes with.

    Args:
        model: a causal LM whose weights are float32.
        scheme: what to round to.

    Raises:
        QuantizationError, ModelError: as `fitting_layers`.
    """
    from torchao.quantization.qat import FakeQuantizerBase

    layers = fitting_layers(model, scheme)
    rounding = FakeQuantizerBase.from_config(scheme.fake())
    for layer in layers.values():
        layer.weight.copy_(rounding(layer.weight))


def as_stored(folder: Path, model: Any, scheme: Scheme) -> Any:
    """A model of a folder, its layers quantised as torchao stores them; transformers saves and loads it as such.

    Args:
        folder: of a causal LM in float32.
        model: the same, loaded.
        scheme: how its layers are quantised.
    """
    from transformers import AutoModelForCausalLM, TorchAoConfig

    layers = quantized_layers(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config: Any = TorchAoConfig(scheme.stored(), modules_to_not_convert=[name for name in linear if name not in layers])
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        quantization_config=config,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )


def require_same_weights(stored: Any, rounded: Any) -> None:
    """Prove that what torchao stores stands for the weights that were trained with.

    Args:
        stored: from `as_stored`.
        rounded: the same model after `round_weights`.

    Raises:
        ModelError: names the first layer that differs.
    """
    for name, layer in quantized_layers(rounded).items():
        stored_RC, weight_RC = stored.get_submodule(name).weight.dequantize().detach(), layer.weight.detach()
        if not torch.equal(stored_RC, weight_RC):
            raise ModelError(
                f"torchao stores {name} otherwise than it was rounded in training (up to "
                f"{float((stored_RC - weight_RC).abs().max()):g}): leave --save-quantized out, and report this"
            )


def quantization_note(model: Any, scheme: Scheme) -> str:
    """How much of a student is rounded, for people."""
    layers = quantized_layers(model)
    rounded = sum(layer.weight.numel() for layer in layers.values())
    name = next(name for name, default in SCHEMES.items() if type(default) is type(scheme))
    return (
        f"quantised to {write_named(name, scheme)}: {rounded:,} of {model.num_parameters():,} parameters, in "
        f"{len(layers):,} linear layers; the others stay as they are"
    )


def require_unquantized(folder: Path, *, what: str) -> None:
    """Refuse a model whose weights are stored quantised: they cannot be trained, nor cut to a student.

    Args:
        folder: of a model.
        what: it is to be, for messages.

    Raises:
        ModelError: its config.json has a `quantization_config`, or is none of a model.
    """
    path = folder / "config.json"
    if not path.is_file():  # adapters
        return
    try:
        method = json.loads(path.read_text()).get("quantization_config")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is not the JSON of a model's config ({error})") from error
    if method is not None and not isinstance(method, dict):
        raise ModelError(
            f"{path}: `quantization_config` should be an object that names a quant_method, got "
            f"{json.dumps(method)[:60]}; remove it where the weights are floating-point numbers, or "
            f"fetch the {what} again"
        )
    if method is not None:
        raise ModelError(
            f"the {what} {folder} is quantised already ({method.get('quant_method', 'unknown method')}): name the "
            "model that it was made of, whose weights are floating-point numbers"
        )


def require_unrounded(folder: Path, *, what: str) -> None:
    """Refuse the student of a run with --quantize: its weights are rounded, and rounding them again would move them.

    Args:
        folder: of a model.
        what: it is to be, for messages.

    Raises:
        ModelError: names the run's checkpoints, whose weights are those before rounding.
        RunFolderError: the run's document is damaged.
    """
    run = read_run(folder)
    if run is not None and (scheme := run["settings"].get("quantize")) is not None:
        raise ModelError(
            f"the {what} {folder} was quantised by its run already ({scheme}), and rounding it again would change it. "
            f"Name one of {folder / CHECKPOINTS_NAME}, which hold the weights before rounding"
        )


def scheme_of_checkpoint(folder: Path) -> Scheme | None:
    """What a run rounds the weights of its checkpoint to, which holds those before rounding; None where it does not.

    Raises:
        RunFolderError: the run's document is damaged.
        MissingExtraError: torchao is not installed.
    """
    output = run_folder_of(folder)
    run = None if output == folder else read_run(output)
    text = None if run is None else run["settings"].get("quantize")
    return None if text is None else read_scheme(text, command="logitcask report --checkpoints")
