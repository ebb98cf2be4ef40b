"""What a pre-training would take on this machine, as `wamtune doctor size=l` prints it."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from rl.build import build_simulator, device_of
from rl.stages.config import PretrainConfig
from rl.stages.episodes import simulates
from rl.stages.images import model_spec
from world_model.data.episodes import EpisodeStore
from world_model.spec import Spec
from world_model.wam.cost import step_cost

GB = 1e9
"""Bytes."""

SHARED_BY = (2, 8, 64)
"""Numbers of processes for which the memory with shard=true is shown."""


def training_cost(config: PretrainConfig) -> str:
    """Return memory and time of a pre-training in one process, as lines of text.

    Raises:
        UserError: the simulator or the episodes of `config` are not there.
    """
    spec = _spec(config)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    device = torch.device(device_of(config))
    architecture, stage = config.model.of_size(config.size), config.stage
    cost = step_cost(architecture, spec, stage, device)
    memory, there = cost.memory(), _memory(device)
    needed = sum(memory.values())
    fits = "enough" if needed < there else "NOT ENOUGH; set stage.n_parts, stage.recompute=true or shard=true"
    shared = ", ".join(f"{sum(cost.memory(n).values()) / GB:.2f} GB on {n}" for n in SHARED_BY)
    hours = f"{stage.n_steps:,} steps: {cost.seconds * stage.n_steps / 3600:,.1f} hours"
    lines = [
        f"size {config.size or 'of the preset'}: {cost.n_weights:,} weights, {architecture.n_layers} layers",
        *(f"{name:>12} {n_bytes / GB:8.2f} GB" for name, n_bytes in memory.items()),
        f"{'together':>12} {needed / GB:8.2f} GB; {device} has {there / GB:.1f} GB: {fits}",
        f"{'shard=true':>12} in each: {shared} processes, with as many windows in each",
        f"{'a step':>12} {cost.seconds:8.2f} s of {stage.batch_size} windows; {hours}",
    ]
    return "\n".join(lines)


def _spec(config: PretrainConfig) -> Spec:
    """Return the spec that the model will have."""
    if not simulates(config):
        return EpisodeStore(config.episode_folder).spec
    tasks = config.env.tasks
    env = build_simulator(
        config.env,
        tasks[:1],
        1,
        model=None,
        known_tasks=tasks[:1],
        n_context_frames=config.model.n_context_frames,
        max_steps=config.model.chunk_size,
    )
    env.close()
    return model_spec(replace(env.spec, tasks=tasks or env.spec.tasks), config.model)


def _memory(device: torch.device) -> int:
    """Return the bytes of memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
