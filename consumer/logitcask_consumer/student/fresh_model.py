"""A model of a config alone."""

from typing import Any

import torch


def fresh_model(config: Any) -> Any:
    """A causal LM with fresh float32 weights, of torch's generator; no code of a folder is run.

    Args:
        config: of transformers.
    """
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
