"""Save and load a world-action model: weights and what they expect, in one checkpoint folder."""

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
    """Write a checkpoint of `stage` pretrain, tune or rl; `parent` is what it grew from, `about` joins the config.

    With `half` the weights, not the statistics, take half the space; nothing is lost after `half_precision`.
    """
    config = {**model.to_config(), "stage": stage, "parent": parent, **(about or {})}
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    if half:
        tensors |= {name: parameter.detach().half() for name, parameter in model.named_parameters()}
    save_checkpoint(folder, config, tensors, readme=readme, extra=extra)


def load_model(name_or_path: str | Path) -> WorldActionModel:
    """Load a checkpoint by built-in name or folder, verified, in evaluation mode.

    Raises:
        UserError: it is missing, damaged, or its tensors do not fit its own config.
    """
    return load_model_and_config(name_or_path)[0]


def load_model_and_config(name_or_path: str | Path) -> tuple[WorldActionModel, dict[str, Any]]:
    """`load_model`, and the whole of its `config.json`."""
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
        with torch.device("meta"):  # its sizes alone: no memory is taken for what the weights do not confirm
            expected = WorldActionModel.from_config(config).state_dict()
    except UserError:
        raise
    except Exception as error:  # sizes from an unknown config can raise anything
        raise UserError(f"{name_or_path}/config.json does not describe a world-action model: {error!r}") from error
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
    # Weights may be stored in half precision to save space; they are always used in single precision.
    model.load_state_dict(checked_weights(name_or_path, tensors))
    return model.eval(), config


def half_precision(model: WorldActionModel) -> WorldActionModel:
    """Round the weights, not the statistics, in place to what half precision holds, so that storing them is exact."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model
