"""Build the world model that a config names, and save and restore the one that a run dreams in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewards.errors import UserError, blamed, file_of
from rewards.plugins import check_params, load, source_file
from rl.config import DreamConfig, WorldModelConfig
from rl.policies.saving import about_brought, save_brought
from world_model.api import WorldModel
from world_model.checked import CheckedWorldModel
from world_model.checkpoint import MODEL
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model

BUILTIN = {"wam": "world_model.wam.model:WorldActionModel"}
"""World models without a `:` in their name; `wam` is the one of `checkpoint`, as if none were named."""


def world_model_of(folder: Path) -> Path:
    """Return where a run leaves the world model that is no part of the policy in the checkpoint `folder`."""
    return folder.with_name(f"{folder.name}-world-model")


def make_world_model(
    dream: DreamConfig,
    seed: int,
    device: str,
    weights: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> WorldModel | None:
    """Build the world model of `dream.world_model`; None if it names none, and that of the checkpoint dreams.

    Args:
        dream: of the run.
        seed: of torch while it is built and pretrained, for new weights.
        device: of its weights.
        weights: folder of a run with weights of this class, which replace new ones; without such, it is pretrained.
        say: called with a line before a pretraining, which may take long.

    Raises:
        UserError: it cannot be loaded or built, is not a `WorldModel`, or what it declares cannot be used.
    """
    chosen = dream.brought
    if chosen is None:
        return None
    who = f"dream.world_model={chosen.func}"
    found = load("world_model", chosen.func, BUILTIN, who, key="world_model")
    check_params(who, chosen.func, found, chosen.params, n_given=0)
    with torch.random.fork_rng(devices=[]), blamed(who, file_of(found)):
        torch.manual_seed(seed)
        model = found(**copy.deepcopy(dict(chosen.params)))
    if not isinstance(model, WorldModel):
        raise UserError(
            f"{who}: expected a world_model.api.WorldModel, got {model!r:.80}; write one around your network, see "
            "docs/bring_your_own.md#a-world-model-of-your-own"
        )
    if isinstance(model, nn.Module):
        model.to(device).eval()
    model.n_denoising_steps = dream.n_denoising_steps
    checked = CheckedWorldModel(model, who)
    if weights is None or not load_world_model_weights(checked, weights):
        if checked.can_pretrain:
            say(f"{who}: pretrains" + (f", because {weights} holds no weights of it" if weights else ""))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            checked.pretrain(seed)
    return checked


def world_model_source(chosen: WorldModelConfig) -> Path | None:
    """Return the source file of a world model that somebody brings; None for a built-in."""
    return source_file("world_model", chosen.func, BUILTIN, f"dream.world_model={chosen.func}", key="world_model")


def world_model_state(model: WorldModel) -> dict[str, Tensor]:
    """Return the weights of a world model; {} if it has none."""
    assert isinstance(model, WorldActionModel | CheckedWorldModel)
    return dict(model.state_dict())


def load_world_model_state(model: WorldModel, state: Mapping[str, Tensor]) -> None:
    """Restore what `world_model_state` returned."""
    assert isinstance(model, WorldActionModel | CheckedWorldModel)
    model.load_state_dict(state)


def save_world_model(
    folder: Path, model: WorldModel, dream: DreamConfig, parent: str, about: dict[str, Any], readme: str
) -> None:
    """Write a world model as a checkpoint folder; one that somebody brings is written if it has weights.

    Args:
        folder: destination; an existing checkpoint there is replaced.
        model: the world model.
        dream: of the run, which names it.
        parent: the checkpoint that our own was trained from.
        about: further JSON-compatible values.
        readme: the model card.
    """
    if isinstance(model, WorldActionModel):
        save_model(folder, model, "rl", parent, about, readme)
    elif (state := world_model_state(model)) and dream.brought is not None:
        weights = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        named = {"world_model": asdict(dream.brought)}
        save_brought(folder, lambda into: save_file(weights, into / MODEL), named | about, readme)


def load_world_model_weights(model: WorldModel, folder: Path) -> bool:
    """Load the weights that `save_world_model` wrote for a world model of this class; False: it wrote none.

    Raises:
        UserError: they cannot be read, or do not fit the model.
    """
    if isinstance(model, WorldActionModel):
        model.load_state_dict(load_model(folder).state_dict())
        return True
    assert isinstance(model, CheckedWorldModel)
    if not (folder / MODEL).is_file() or not model.who.endswith(_class_of(about := about_brought(folder))):
        return False
    try:
        state = load_file(folder / MODEL, device=str(model.device))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / MODEL}: its weights cannot be read: {error!r:.200}") from error
    try:
        model.load_state_dict(state)
    except UserError as error:  # a message of torch names every tensor
        saved = ", ".join(f"{name}: {value}" for name, value in about["world_model"].get("params", {}).items())
        remedy = f"give it the params of the run, {{{saved:.300}}}" if saved else "the run gave it no params"
        raise UserError(f"{model.who}: the weights in {folder} do not fit it; {remedy}") from error
    return True


def _class_of(about: dict[str, Any]) -> str:
    """Return the name of the class whose weights a checkpoint holds, after the colon or as an entry point."""
    written = about.get("world_model")
    func = str(written.get("func", "")) if isinstance(written, dict) else ""
    return ":" + func.rpartition(":")[2] if ":" in func else f"={func}"
