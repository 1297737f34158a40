"""LoRA and DoRA adapters of a student, by peft: `rank=16,alpha=32,targets=q_proj+v_proj,kind=dora`.

The base stays as it is and is not saved again; what is trained and saved are the adapters, in peft's format.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from torch import nn

from logitcask_consumer.notation import read_parameters
from logitcask_consumer.run_document import INITIAL_NAME, run_folder_of, run_of
from logitcask_schemas.errors import MissingExtraError, ModelError, OptionError

ADAPTER_NAME: Final = "adapter_config.json"
_ALL: Final = "all-linear"
_OF_BASE: Final = ("embed_tokens.weight", "lm_head.weight", "base_layer.weight")
"""Ends of the names of weights that are the base's own."""


class AdapterError(OptionError, ValueError):
    """An adapter's description cannot be followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """Adapters W + (alpha / rank) B A of linear layers; LoRA, arXiv 2106.09685.

    DoRA, arXiv 2402.09353, trains the length of each row of that sum beside it.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = _ALL
    """Names of the adapted layers joined by "+"; `all-linear` is every linear layer but the head."""
    kind: Literal["lora", "dora"] = "lora"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `name=value` pairs joined by commas.

        Raises:
            AdapterError: a name is not known, or a value out of range.
        """
        parameters = read_parameters(text, cls, subject=f"lora {text!r}", wrong=AdapterError) if text else {}
        spec = cls(**parameters)
        if spec.rank < 1 or spec.alpha <= 0 or not 0 <= spec.dropout < 1 or not spec.targets:
            raise AdapterError(
                f"lora {text!r}: rank is at least 1, alpha above 0, dropout from 0 to below 1, with targets"
            )
        if _ALL in spec.targets.split("+")[1:] or spec.targets.startswith(f"{_ALL}+"):
            raise AdapterError(
                f"lora {text!r}: {_ALL} is every linear layer but the head, and stands alone: name the layers one by "
                "one, or leave the others out"
            )
        if spec.kind == "dora" and "lm_head" in spec.targets.split("+"):
            raise AdapterError(
                f"lora {text!r}: the head is applied in blocks of rows, and DoRA needs its whole matrix. Leave lm_head "
                "out of the targets, or take kind=lora"
            )
        return spec

    def applied(self, model: Any, *, base: Path, seed: int) -> Any:
        """The model with fresh adapters; only these are trained.

        Args:
            model: a transformers causal LM.
            base: folder of the model as it is, for whoever loads the adapters.
            seed: of A; B starts at 0.

        Raises:
            MissingExtraError: peft is not installed.
            ModelError: the model has no such layers.
        """
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise MissingExtraError("logitcask train --lora", "lora", "peft") from error
        self._require_layers(model)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets if self.targets == _ALL else self.targets.split("+"),
            task_type="CAUSAL_LM",
            use_dora=self.kind == "dora",
        )
        torch.manual_seed(seed)
        try:
            with _quiet_peft():
                adapted: Any = get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(f"{type(model).__name__} cannot be given adapters of {self.targets!r}: {error}") from error
        adapted.peft_config["default"].base_model_name_or_path = str(base.resolve())
        # Where the head has an adapter peft would save its base weights too, which nothing changes.
        adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
        return adapted

    def _require_layers(self, model: Any) -> None:
        """Refuse names of no layer. Peft passes over them where it finds others.

        Raises:
            ModelError: names the first, and those there are.
        """
        linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        for target in [] if self.targets == _ALL else self.targets.split("+"):
            if not any(f".{name}".endswith(f".{target}") for name, _ in model.named_modules()):
                there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
                raise ModelError(
                    f"lora: {type(model).__name__} has no layer {target!r} that adapters could be given to; among its "
                    f"linear layers are {there or 'none'}"
                )


def holds_adapters_alone(folder: Path) -> bool:
    """Whether a folder holds adapters without the model that they belong to."""
    return (folder / ADAPTER_NAME).is_file() and not (folder / "config.json").is_file()


def base_folder(folder: Path) -> Path:
    """The folder of the model that adapters belong to, wherever their own folder has been moved.

    A base that a run made lies in the run's folder, and is looked for there first: another run may have taken the place
    that this one was moved from. Any other is where `adapter_config.json` says, counted from its own folder where that
    is a relative path.

    Raises:
        ModelError: it is not there.
        RunFolderError: the run's document is damaged.
    """
    try:
        named = json.loads((folder / ADAPTER_NAME).read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder / ADAPTER_NAME} does not say which model the adapters belong to: {error}") from error
    places = [folder / str(named)]  # an absolute path stays what it is
    if Path(str(named)).name == INITIAL_NAME:
        run, initial = run_of(folder), run_folder_of(folder) / INITIAL_NAME
        if run is None:
            places.append(initial)
        elif Path(run["student"]["spec"]).name != INITIAL_NAME:  # else it began from another run's student, or a copy
            places.insert(0, initial)
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ModelError(
        f"the adapters in {folder} belong to the model in {named}, which is not there. Put it back, or write its "
        f"folder into base_model_name_or_path of {folder / ADAPTER_NAME}"
    )


def with_adapters(model: Any, folder: Path) -> Any:
    """The model with the adapters of a folder, in safetensors; modules are replaced in place.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: the adapters do not fit the model.
    """
    return _loaded(model, folder).get_base_model()


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without the warning that peft asks transformers for something by an old name, of which no user can do anything.

    Warnings that are filtered inside come back at its end.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _loaded(base: Any, folder: Path) -> Any:
    """Peft's model of a base and the adapters of a folder, every weight of which has its place.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: the adapters do not fit the model.
    """
    if find_spec("peft") is None:
        raise MissingExtraError("reading adapters", "lora", "peft")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} holds no adapter_model.safetensors; other formats of adapters are not read")
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    try:
        with _quiet_peft():
            # Peft warns of what is missing and passes over what is too much; both are refused below.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            # Not by transformers' load_adapter, which does not find the lengths of DoRA under the name that peft saves.
            adapted: Any = PeftModel.from_pretrained(base, str(folder), local_files_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"the adapters in {folder} cannot be loaded into {type(base).__name__}: {error}") from error
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        # Peft saves the base's embeddings beside adapters of them.
        stored = {name for name in file.keys() if not name.endswith(_OF_BASE)}  # noqa: SIM118
    for names, what in ((expected - stored, "lack"), (stored - expected, "hold")):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            beyond = "" if what == "lack" else f", which {type(base).__name__} has no place for"
            raise ModelError(
                f"the adapters in {folder} {what} {min(names)}{others}{beyond}: file and adapter_config.json do not "
                "belong together, or the base is another model. Save them anew, or name their base"
            )
    return adapted


def require_mergeable(adapted: Any, *, asked: str = "--merge") -> None:
    """Refuse adapters that would change more than their layer when they are merged into it.

    Args:
        adapted: a model with adapters.
        asked: what they are merged for.

    Raises:
        AdapterError: the head or the input embedding has one, and they share their weights.
    """
    both = {"lm_head": adapted.get_output_embeddings(), "the input embedding": adapted.get_input_embeddings()}
    own, other = (getattr(module, "base_layer", module).weight for module in both.values())
    with_adapter = [name for name, module in both.items() if hasattr(module, "base_layer")]
    if own is other and with_adapter:
        raise AdapterError(
            f"{asked} would change lm_head and the input embedding together: {' and '.join(with_adapter)} has an "
            f"adapter, and they share their weights. Leave it out of the targets, or leave {asked} out"
        )


def merged(base: Any, folder: Path, *, asked: str = "--merge") -> Any:
    """The model that the adapters of a folder make of their base, without adapters; all of it may be trained.

    Args:
        base: the model that they belong to, in float32; its weights are changed.
        folder: of the adapters, as peft saves them.
        asked: what they are merged for, for messages.

    Raises:
        AdapterError: see `require_mergeable`.
        MissingExtraError: peft is not installed.
        ModelError: the adapters do not fit the model.
    """
    adapted = _loaded(base, folder)
    require_mergeable(adapted, asked=asked)
    return adapted.merge_and_unload(safe_merge=True).requires_grad_(True)


def freeze_head(model: Any) -> None:
    """The output embedding is trained no more, nor the input embedding where both share their weights.

    Raises:
        AdapterError: nothing would be left to train.
    """
    model.get_output_embeddings().requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise AdapterError(f"{type(model).__name__} has nothing to train but its head, which was to be frozen")
