"""Start an Isaac Lab task with the settings that `BatchedEnv` needs, and read its spec."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor

from rewards.errors import UserError
from rl.envs.isaac.graph import replayed_physics
from world_model.spec import IMAGES, STATE, Feature, Spec

OWN = "wamtune_"
"""Prefix in the names of reward terms that this project adds to a task."""

IsaacTerm = tuple[Callable[..., Any], Mapping[str, Any]]
"""A function of Isaac Lab and its params."""


def launch(
    env_id: str,
    num_envs: int,
    seed: int,
    overrides: Sequence[str],
    own: Mapping[str, IsaacTerm],
    device: str,
    only_seen: tuple[str, dict[str, Tensor]] | None,
) -> tuple[Any, contextlib.ExitStack]:
    """Start Isaac Lab and build a task.

    Args:
        env_id: registered id of the task.
        num_envs: number of environments.
        seed: of the task's config.
        overrides: changes to the task's config, in Isaac Lab's syntax.
        own: reward functions to add, name -> (function, params).
        device: to simulate on.
        only_seen: name of a termination term that must not end episodes, and the dict that receives its values.

    Returns:
        The environment, and the stack that shuts Isaac Lab down when it is closed.

    Raises:
        UserError: Isaac Lab, the task or an asset is missing, or a direct task was given reward functions.
    """
    try:
        import isaaclab_tasks  # noqa: F401 - registers the ids
        from isaaclab.app import launch_simulation
        from isaaclab_tasks.utils import parse_env_cfg

        import rl.envs.isaac.push  # noqa: F401 - registers the ids of this project
    except ImportError as error:
        raise UserError(
            f"env.id={env_id} needs Isaac Lab ({error}); see docs/isaac_lab.md, or make isaac for one without a GPU"
        ) from error
    try:
        gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        raise UserError(f"env.id={env_id} is no task of Isaac Lab: {error}") from error
    stack = contextlib.ExitStack()
    with _quiet():
        cfg: Any = parse_env_cfg(env_id, device=device, num_envs=num_envs, overrides=list(overrides))
        # Without `compute_final_obs`, the last observation of an episode is lost: Isaac Lab restarts within the step.
        cfg.seed, cfg.compute_final_obs = seed, True
        _add_rewards(cfg, own, env_id)
        if only_seen is not None and (term := getattr(getattr(cfg, "terminations", None), only_seen[0], None)):
            term.func = _only_seen(term.func, only_seen[1])
        try:
            stack.enter_context(replayed_physics(device))
            stack.enter_context(launch_simulation(cfg))
            return gymnasium.make(env_id, cfg=cfg).unwrapped, stack
        except BaseException as error:
            stack.close()  # before the error leaves this block: else Isaac Lab's launcher prints its traceback as well
            if isinstance(error, FileNotFoundError):
                raise UserError(
                    f"env.id={env_id}: {error}; assets come from NVIDIA's store or, without a network, from the folder "
                    f"that ISAACSIM_ASSET_ROOT names; python -m rl.envs.isaac.assets FOLDER lays out some"
                ) from error
            raise


def _only_seen(func: Callable[..., Tensor], seen: dict[str, Tensor]) -> Callable[..., Tensor]:
    """Return a termination term that never ends an episode and stores the values of `func` in `seen` instead."""

    @functools.wraps(func)  # Isaac Lab compares the signature with the params
    def term(env: Any, **params: Any) -> Tensor:
        seen["success"] = func(env, **params).clone()
        return torch.zeros_like(seen["success"])

    return term


def _add_rewards(cfg: Any, own: Mapping[str, IsaacTerm], env_id: str) -> None:
    """Add reward functions to the config of a manager-based task."""
    if own and not hasattr(cfg, "rewards"):
        name = next(iter(own))
        raise UserError(f"rewards.{name}: {env_id} is a direct task, without reward terms of Isaac Lab; set it to null")
    for name, (func, params) in own.items():
        setattr(cfg.rewards, OWN + name, _reward_term(func, params))


def _reward_term(func: Callable[..., Any], params: Mapping[str, Any]) -> Any:
    """Return a term with weight 1, as our manager applies the weight; a mapping param becomes a `SceneEntityCfg`."""
    from isaaclab.managers import RewardTermCfg, SceneEntityCfg

    given = {key: SceneEntityCfg(**value) if isinstance(value, Mapping) else value for key, value in params.items()}
    return RewardTermCfg(func=func, weight=1.0, params=given)


def read_spec(env: Any, obs: Mapping[str, Any], groups: Sequence[str], env_id: str, action_bound: float) -> Spec:
    """Read the spec of a running task.

    Raises:
        UserError: an observation group does not exist, or the groups contain no vector.
    """
    slices: dict[str, tuple[int, int]] = {}
    size = 0
    for group in groups:
        if group not in obs:
            raise UserError(f"env.options.groups: {env_id} has no observation group {group!r}; it has {', '.join(obs)}")
        for name, width in widths(env, obs, group):
            if name:
                slices[name] = (size, size + width)
            size += width
    if size == 0:
        raise UserError(f"env.id={env_id}: no vector in its observation groups {', '.join(groups)}; add one")
    n_actions = env.single_action_space.shape[-1]
    bounds = (-action_bound,) * n_actions, (action_bound,) * n_actions
    images = {
        name: Feature(tuple(image.shape[1:]), dtype="uint8") for name, image in images_of(env, obs, groups).items()
    }
    return Spec({STATE: Feature((size,), "", slices), **images}, *bounds, (env_id,), 1 / env.step_dt)


def widths(env: Any, obs: Mapping[str, Any], group: str) -> Iterator[tuple[str, int]]:
    """Yield name and width of each vector of a group; the name is empty if Isaac Lab has none."""
    manager = getattr(env, "observation_manager", None)
    if isinstance(obs[group], Mapping) or manager is None:
        yield from ((name, part.shape[1]) for name, part in parts_of(env, obs, [group]) if part.dim() == 2)
    elif obs[group].dim() == 2:
        dims = manager.group_obs_term_dim[group]
        yield from ((name, dim[0]) for name, dim in zip(manager.active_terms[group], dims, strict=True))


def images_of(env: Any, obs: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Tensor]:
    """Return the images in colour (num_envs, height, width, 3) of observation groups, as features `images.NAME`.

    The name is that of the term, or of the group if its parts have no names.
    """
    return {
        IMAGES + (name or group): part
        for group in groups
        for name, part in parts_of(env, obs, [group])
        if part.dim() == 4 and part.shape[3] == 3
    }


def as_bytes(image: Tensor) -> Tensor:
    """Return a copy of images as uint8.

    Raises:
        UserError: their values are no whole numbers from 0 to 255.
    """
    if image.dtype == torch.uint8:
        return image.clone()
    rounded = image.round()
    if not bool(((image == rounded) & (image >= 0) & (image <= 255)).all()):
        raise UserError(
            "sim: an image has values that are no whole numbers from 0 to 255; set normalize=False in its term"
        )
    return rounded.to(torch.uint8)


def parts_of(env: Any, obs: Mapping[str, Any], groups: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor (num_envs, ...) of each part of observation groups; the name is empty if there is none."""
    manager = getattr(env, "observation_manager", None)
    for group in groups:
        if isinstance(obs[group], Mapping):
            yield from obs[group].items()
        else:
            # A group of one term is that term; several terms are concatenated to one tensor.
            terms = manager.active_terms[group] if manager is not None else []
            yield terms[0] if len(terms) == 1 else "", obs[group]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence standard output: Isaac Lab prints a page of tables for each environment that it makes."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
