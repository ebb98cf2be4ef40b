"""Inputs of a run of `wamtune train` apart from its config: checkpoint and plug-ins, identified by sha256.

The hashes are part of the run's state, and the sources of the plug-ins are copied into the run folder, so that a run
that goes on must have the same inputs, or the input that changed is named.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from rewards.errors import UserError
from rewards.plugins import names_file, source_file, source_of
from rl.build import find_policy
from rl.config import TrainConfig
from rl.policies.lerobot.loading import WEIGHTS
from rl.policies.saving import sha256_of_any
from rl.ppo.callbacks import callback_files
from rl.ppo.schedules import schedule_file
from rl.rounds.trust_signals import signal_files
from rl.world_models import world_model_source
from world_model.checkpoint import MANIFEST, find_checkpoint
from world_model.files import sha256, write_atomically

PLUGINS = "plugins"
"""Folder inside a run folder with a copy of each plug-in's source, named by hash and file name."""

Inputs = dict[str, str]
"""Key of the config -> sha256 of its file: the source of a plug-in, or the manifest of a checkpoint."""


def inputs_of(config: TrainConfig) -> Inputs:
    """Hash the checkpoint and the plug-ins that the config names, as they are now."""
    found = {key: sha256(file) for key, file in _sources(config).items()}
    if config.uses_model:
        manifest = find_checkpoint(config.checkpoint) / MANIFEST
        found["checkpoint"] = sha256(manifest) if manifest.is_file() else "missing"
    if config.actor.func == "lerobot":
        found["policy"] = sha256_of_any(find_policy(str(config.actor.params.get("checkpoint", ""))) / WEIGHTS)
    return found


def keep_sources(config: TrainConfig, folder: Path) -> None:
    """Copy the source file of every plug-in into a run folder."""
    for file in _sources(config).values():
        data = file.read_bytes()
        write_atomically(_copy(folder, hashlib.sha256(data).hexdigest(), file), data)


def check_inputs(config: TrainConfig, folder: Path, before: Mapping[str, str]) -> None:
    """Refuse to continue a run if its inputs have changed; `before` are those it began with.

    Raises:
        UserError: an input has changed; the first one is named, with the remedy.
    """
    now, sources = inputs_of(config), _sources(config)
    for key, fingerprint in before.items():
        if now.get(key) == fingerprint:
            continue
        anew = f"or begin a new run: wamtune train {folder / 'config.yaml'}"
        if key == "checkpoint":
            raise UserError(
                f"checkpoint={config.checkpoint}: these are not the weights that the run began with; "
                f"put those back, {anew}"
            )
        if key == "policy" and config.actor.func == "lerobot":
            what = "these are not the weights that the run began with"
            raise UserError(f"policy={config.starts_from}: {what}; put those back, {anew}")
        if key not in sources:
            raise UserError(f"{key}: what the run began with is not there any more; put it back, {anew}")
        copy = _copy(folder, fingerprint, sources[key])
        raise UserError(f"{key}: {sources[key]} has changed since the run began; restore it from {copy}, {anew}")


def _sources(config: TrainConfig) -> dict[str, Path]:
    """Return {key of the config: source file of the plug-in it names}."""
    found = {f"rewards.{name}": source_of(name, term) for name, term in config.rewards.items()}
    if ":" in config.env.simulator:
        found["env.simulator"] = source_file("simulator", config.env.simulator, {}, key="env.simulator")
    if config.actor.func not in ("flow", "gaussian", "lerobot"):
        found["policy"] = source_file("policy", config.actor.func, {}, key="policy")
    if config.env.kind != "sim":  # world models and trust signals are used in dreams only
        if (brought := config.dream.brought) is not None:
            found["dream.world_model"] = world_model_source(brought)
        found |= {f"dream.trust.{name}": file for name, file in signal_files(config).items()}
    found |= callback_files(config.callbacks)
    for key in ("learning_rate", "clip_range"):
        found[f"ppo.{key}"] = schedule_file(f"ppo.{key}", getattr(config.ppo, key))
    module, colon, _ = config.env.id.partition(":")
    if names_file(config.env.id):
        found["env.id"] = source_file("simulator", config.env.id, {}, key="env.id")
    elif colon:  # "module:Env-v0": gymnasium imports the module before it makes the environment
        with suppress(ImportError, ValueError):  # building the environment will report it
            spec = importlib.util.find_spec(module)
            found["env.id"] = Path(spec.origin) if spec is not None and spec.origin else None
    return {key: file for key, file in found.items() if file is not None}


def _copy(folder: Path, fingerprint: str, file: Path) -> Path:
    return folder / PLUGINS / f"{fingerprint[:8]}-{file.name}"
