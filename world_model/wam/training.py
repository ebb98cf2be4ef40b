"""The training stages before RL, and the refits during it: one loop for six stages.

`codec`: train the image codec of a model with images; it is frozen afterwards.
`pretrain`: train prediction and inverse dynamics on all episodes, without imitation.
`tune`: train the action decoder on a few demonstrations; encoder and world decoder stay bit-equal.
`refit`: train world decoder and read-outs on newer episodes; encoder and action decoder stay bit-equal.
`dynamics`: train the world decoder alone, on dreams of several chunks (`rollout_losses`). Episodes of PPO end at their
first success, so they have too few frames of solved tasks to train a success read-out as `refit` does.
`read_out`: train the read-outs alone, on tasks that the checkpoint was never trained on; see `wam.read_out`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from world_model.data.windows import Batch, Windows
from world_model.guards import check_gradients, check_loss
from world_model.processes import ALONE, Share
from world_model.wam.features import joined
from world_model.wam.images import ImageBatch, ImageData, image_loss
from world_model.wam.layers import Stack
from world_model.wam.losses import rollout_losses, stage_losses
from world_model.wam.network import Network
from world_model.wam.read_out import FrameBatch, FrameData, frame_losses
from world_model.wam.sharding import clip_gradients, is_sharded, scattered, whole_ones
from world_model.wam.training_config import StageConfig

Log = Callable[[int, dict[str, float]], None]
"""Called with (step, mean losses and learning rate since the last call)."""

Save = Callable[[int, dict[str, Any]], None]
"""Called with (step, state of the training for `resume`)."""


def fit_statistics(model: Network, windows: Windows, n: int = 50_000) -> None:
    """Set the normaliser statistics before pre-training, from `n` random windows; rows without actions are ignored."""
    if model.image_codec is not None:
        n //= 5  # to save memory: a window with images is a hundred times as large
    batch = windows.sample(n, torch.Generator(model.device).manual_seed(0))
    acted = batch.actions.isfinite().flatten(1).all(1)
    model.codec.fit(joined(batch.context)[acted], joined(batch.future)[acted])
    model.action_codec.action.fit(batch.actions[acted].flatten(0, 1))


def train_stage(
    stage: str,
    model: Network,
    windows: Windows | ImageData | FrameData,
    config: StageConfig,
    log: Log | None = None,
    save: Save | None = None,
    resume: dict[str, Any] | None = None,
    share: Share = ALONE,
) -> None:
    """Train `model` in place for `config.n_steps` optimizer steps.

    Args:
        stage: codec, pretrain, tune, refit, dynamics or read_out; see the top of this file.
        model: the model.
        windows: of all episodes; for tune of the demonstrations; for the stage codec, images instead. For dynamics
            they may be several chunks long, and padded. For read_out frames instead.
        config: settings of the stage.
        log: called every `config.log_every` steps.
        save: called every `config.save_every` steps and at the end.
        resume: a state that `save` got; a training continued from it ends with the same weights.
        share: of this process in each batch; `config.seed` must then be different in each process.

    Raises:
        UserError: a loss or gradient is not finite; the weights are those before this step.
    """
    config.check()
    had_gradients = [p.requires_grad for p in model.parameters()]
    try:
        _train(stage, model, windows, config, log, save, resume, share)
    finally:  # restore, because a policy may share the model and trains other parts of it
        model.eval()
        for parameter, had in zip(model.parameters(), had_gradients, strict=True):
            parameter.requires_grad_(had)


def _train(
    stage: str,
    model: Network,
    windows: Windows | ImageData | FrameData,
    config: StageConfig,
    log: Log | None,
    save: Save | None,
    resume: dict[str, Any] | None,
    share: Share,
) -> None:
    fused = not is_sharded(model)  # the fused kernel cannot mix whole tensors and parts
    # Only parameters of the stage are in the optimizer; all others are frozen.
    optimizer = torch.optim.AdamW(
        _groups(model, trained_parameters(stage, model), config),
        betas=(0.9, 0.95),
        weight_decay=config.weight_decay,
        fused=fused,
        foreach=False,
    )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    generator, first = torch.Generator(model.device).manual_seed(config.seed), 0
    sums: dict[str, float] = {}
    if resume is not None:
        optimizer.load_state_dict(scattered(resume["optimizer"], parameters))
        for group in optimizer.param_groups:
            group["fused"] = fused  # the state may have been saved with other processes
        generator.set_state(resume["generator"])
        first, sums = resume["step"], dict(resume["sums"])
    model.train()
    for stack in model.modules():
        if isinstance(stack, Stack):
            stack.recomputes = config.recompute
    for step in range(first, config.n_steps):
        # `generator` draws windows, noise levels and noise; its state is saved, so that a resumed run is exact.
        rate, remedy = schedule(step, config), f"lower learning_rate (step {step})"
        has_gradient = share.n_processes > 1
        optimizer.zero_grad()
        for _ in range(config.n_parts):
            batch = windows.sample(-(-share.of(config.batch_size) // config.n_parts), generator)
            losses = _losses(stage, model, batch, config, generator)
            total = torch.stack([*losses.values()]).sum() / config.n_parts
            check_loss(total, remedy)  # before the weights change
            # Without a gradient no row of the batch has a loss in this stage; those of other processes may have one.
            if total.requires_grad:
                total.backward()
                has_gradient = True
            # Running means for the log.
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / (config.log_every * config.n_parts)
        if has_gradient:
            _step(optimizer, rate, config, remedy, share)
        if log is not None and (step + 1) % config.log_every == 0:
            log(step + 1, {**sums, "learning_rate": config.learning_rate * rate})
            sums = {}
        # Save after the step and after the log, so that a resumed training repeats neither.
        if save is not None and ((step + 1) % config.save_every == 0 or step + 1 == config.n_steps):
            state = {"optimizer": optimizer.state_dict(), "generator": generator.get_state()}
            save(step + 1, state | {"step": step + 1, "sums": dict(sums)})


def _losses(
    stage: str, model: Network, batch: Batch | ImageBatch | FrameBatch, config: StageConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    if isinstance(batch, FrameBatch):
        return frame_losses(model, batch)
    if not isinstance(batch, ImageBatch):
        if stage == "dynamics":
            return rollout_losses(model, batch, generator)
        return stage_losses(stage, model, batch, config.atoms, generator)
    assert model.image_codec is not None
    return {"image": image_loss(model.image_codec, batch, model.config.image_noise, generator)}


def trained_parameters(stage: str, model: Network) -> list[nn.Parameter]:
    """Freeze all parameters except those that the stage trains, and return these.

    No stage trains the critic or the trust heads: PPO and `trust.calibrate` do.
    """
    # Critic, trust heads and image codec are trained separately.
    apart = "value.", "trust.", "pictures."  # the image codec, under its name in the `state_dict`
    everything = (p for name, p in model.named_parameters() if not name.startswith(apart))
    trained = {
        "codec": () if model.image_codec is None else model.image_codec.parameters(),
        "pretrain": everything,
        "tune": model.action_parameters(),
        "refit": chain(model.dynamics_parameters(), model.read_out.parameters()),
        "dynamics": model.dynamics_parameters(),
        "read_out": model.read_out.parameters(),
    }
    parameters = list(trained[stage])
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def schedule(step: int, config: StageConfig) -> float:
    """Return the share of the learning rate at `step`: a linear warm-up times a half cosine from 1 to 0.01."""
    progress = step / config.n_steps
    return min(1.0, (step + 1) / config.warmup_steps) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def _groups(model: Network, parameters: list[nn.Parameter], config: StageConfig) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimizer.

    Read-outs get their own learning rate and gradient clipping; without this they miss half of the successes.
    """
    apart = {id(p) for p in model.read_out.parameters()}
    groups = [
        {"params": [p for p in parameters if id(p) not in apart], "peak": config.learning_rate},
        {"params": [p for p in parameters if id(p) in apart], "peak": config.read_out_learning_rate},
    ]
    return [group for group in groups if group["params"]]


def _step(optimizer: torch.optim.Optimizer, rate: float, config: StageConfig, remedy: str, share: Share) -> None:
    """Take one optimizer step at `rate` of the learning rate; `BadNumbers` if a gradient is not finite."""
    share.average_gradients(
        whole_ones([parameter for group in optimizer.param_groups for parameter in group["params"]])
    )
    norms = []
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate
        # Each group is clipped on its own, see `_groups`.
        norms.append(clip_gradients(group["params"], config.max_grad_norm))
    check_gradients(norms, remedy)  # before the weights change
    optimizer.step()
