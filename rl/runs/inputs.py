"""What a run of `wamtune train` began with beside its config: checkpoint and plug-ins, by their sha256.

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
from rewards.plugins import source_file, source_of
from rl.config import TrainConfig
from rl.rounds.trust_signals import signal_files
from rl.ppo.callbacks import callback_files
from rl.ppo.schedules import schedule_file
from world_model.checkpoint import MANIFEST, find_checkpoint
from world_model.files import sha256, write_atomically

PLUGINS = "plugins"
"""Folder of a run folder with a copy of each plug-in's source, named by hash and file name."""

Inputs = dict[str, str]
"""Key of the config -> sha256 of what it names: a source file, or the manifest of a checkpoint."""


def inputs_of(config: TrainConfig) -> Inputs:
    """Hash what the config names now."""
    found = {key: sha256(file) for key, file in _sources(config).items()}
    if config.policy == "flow":
        manifest = find_checkpoint(config.checkpoint) / MANIFEST
        found["checkpoint"] = sha256(manifest) if manifest.is_file() else "missing"
    return found


def keep_sources(config: TrainConfig, folder: Path) -> None:
    """Copy the source of every plug-in into a run folder."""
    for file in _sources(config).values():
        data = file.read_bytes()
        write_atomically(_copy(folder, hashlib.sha256(data).hexdigest(), file), data)


def check_inputs(config: TrainConfig, folder: Path, before: Mapping[str, str]) -> None:
    """Refuse to go on with other inputs than a run began with.

    Raises:
        UserError: naming the first of them, and what to do.
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
        if key not in sources:
            raise UserError(f"{key}: what the run began with is not there any more; put it back, {anew}")
        copy = _copy(folder, fingerprint, sources[key])
        raise UserError(f"{key}: {sources[key]} has changed since the run began; restore it from {copy}, {anew}")


def _sources(config: TrainConfig) -> dict[str, Path]:
    """Key of the config -> file of the plug-in that it names."""
    found = {f"rewards.{name}": source_of(name, term) for name, term in config.rewards.items()}
    if ":" in config.env.simulator:
        found["env.simulator"] = source_file("simulator", config.env.simulator, {}, key="env.simulator")
    if config.env.kind != "sim":  # without a dream, trust signals are not used
        found |= {f"dream.trust.{name}": file for name, file in signal_files(config).items()}
    found |= callback_files(config.callbacks)
    for key in ("learning_rate", "clip_range"):
        found[f"ppo.{key}"] = schedule_file(f"ppo.{key}", getattr(config.ppo, key))
    module, colon, _ = config.env.id.partition(":")
    if colon:  # gymnasium imports it before it makes the environment
        with suppress(ImportError, ValueError):  # which the environment will say
            spec = importlib.util.find_spec(module)
            found["env.id"] = Path(spec.origin) if spec is not None and spec.origin else None
    return {key: file for key, file in found.items() if file is not None}


def _copy(folder: Path, fingerprint: str, file: Path) -> Path:
    return folder / PLUGINS / f"{fingerprint[:8]}-{file.name}"
