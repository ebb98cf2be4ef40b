"""Save and load a world-action model: weights, architecture and spec in one checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rewards.errors import UserError
from world_model.checkpoint import checked_weights, load_checkpoint, save_checkpoint
from world_model.wam.model import WorldActionModel


def save_model(
    folder: str | Path,
    model: WorldActionModel,
    stage: str,
    parent: str = "",
    about: dict[str, Any] | None = None,
    readme: str = "",
    extra: dict[str, bytes] | None = None,
    half: bool = False,
) -> None:
    """Write a checkpoint.

    Args:
        folder: destination; an existing checkpoint there is replaced.
        model: the model.
        stage: pretrain, tune or rl.
        parent: checkpoint from which this one was trained.
        about: further entries of `config.json`.
        readme: the model card.
        extra: further files by name.
        half: store the weights, not the statistics, in float16. After `half_precision` this is exact.
    """
    config = {**model.to_config(), "stage": stage, "parent": parent, **(about or {})}
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    if half:
        tensors |= {name: parameter.detach().half() for name, parameter in model.named_parameters()}
    save_checkpoint(folder, config, tensors, readme=readme, extra=extra)


def load_model(name_or_path: str | Path) -> WorldActionModel:
    """Load and verify a checkpoint by built-in name or folder; return the model in evaluation mode, on the CPU.

    Raises:
        UserError: it is missing or damaged, or its tensors do not fit its config.
    """
    return load_model_and_config(name_or_path)[0]


def load_model_and_config(name_or_path: str | Path) -> tuple[WorldActionModel, dict[str, Any]]:
    """Load a model like `load_model`, and return it with its complete config."""
    config, tensors = load_checkpoint(name_or_path)
    if config.get("policy") == "gaussian":
        raise UserError(
            f"{name_or_path}: it holds a Gaussian policy and no world model; `wamtune eval` measures it, "
            "`wamtune deploy ... export` writes it as ONNX; for anything else choose a world-action model"
        )
    for name in ("stage", "parent"):
        if not isinstance(config.get(name, ""), str):
            raise UserError(f"{name_or_path}/config.json: {name} is {str(config[name])[:40]}, expected a word")
    try:
        # On the device "meta" the model takes no memory: its shapes are compared with the weights first.
        with torch.device("meta"):
            expected = WorldActionModel.from_config(config).state_dict()
    except UserError:
        raise
    except Exception as error:  # sizes from an unknown config can raise anything
        raise UserError(f"{name_or_path}/config.json does not describe a world-action model: {error!r}") from error
    # Names and shapes of all tensors must match before memory is allocated for the model.
    for name in sorted(expected.keys() ^ tensors.keys()):
        where = "missing from" if name in expected else "unexpected in"
        raise UserError(
            f"{name_or_path}: tensor {name!r} is {where} model.safetensors; the checkpoint does not fit its config"
        )
    for name, value in tensors.items():
        shape, expected_shape = tuple(value.shape), tuple(expected[name].shape)
        if shape != expected_shape:
            raise UserError(f"{name_or_path}: tensor {name!r} has shape {shape}, config.json says {expected_shape}")
    model = WorldActionModel.from_config(config)
    # Weights may be stored in float16 to save space; they are always used in float32.
    model.load_state_dict(checked_weights(name_or_path, tensors))
    return model.eval(), config


def half_precision(model: WorldActionModel) -> WorldActionModel:
    """Round the weights, not the statistics, to float16 in place, so that `save_model` with `half` is exact."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model
