"""What a policy that somebody brings does not say, from the robot and the config: names, bounds, task, rate.

A policy of LeRobot, or a class of your own, knows only the sizes of what it reads. LeRobot builds the vectors of its
datasets from the robot's numbers in the order of `observation_features` and `action_features`, so that order is used
unless `map` gives another one. The bounds of the actions are the limits of the commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from rewards.errors import UserError, blamed, file_of
from rl.deploy.pilots import Pilot
from rl.deploy.robot_config import RobotConfig
from rl.policies.api import Denoiser
from rl.policies.pilot import DenoiserPilot
from rl.robots.api import Robot, slices_of
from world_model.spec import IMAGES, STATE, VECTORS, Feature, Spec


def fit_to_robot(denoiser: Denoiser, name: str, config: RobotConfig, robot: Robot) -> tuple[DenoiserPilot, RobotConfig]:
    """Return the pilot of a policy for a robot, and the config with the names and the rate that the robot gives.

    The policy computes one chunk here, so that one which cannot act is refused before the robot is connected.

    Args:
        denoiser: the policy.
        name: of the policy, for messages.
        config: of the session.
        robot: not connected yet. LeRobot's robots describe their features without a connection.

    Raises:
        UserError: something is not known, and the message names the key to set; robot and policy do not fit; or the
            policy fails.
    """
    known = _describe(robot, config)
    sizes = _vector_sizes(denoiser.reads, name)
    if len(known.state) != sum(sizes.values()):
        raise UserError(
            f"map.state: {name} reads {sum(sizes.values())} numbers, and there are {len(known.state)}: "
            f"{', '.join(known.state):.200}; name those that it reads, in the order of its training"
        )
    _check_cameras(denoiser.reads, name, config, known.cameras)
    spec = Spec(
        features={**denoiser.reads, **_vectors(sizes, known.state)},
        action_low=config.limits.low,
        action_high=config.limits.high,
        tasks=(config.task,),
        control_hz=known.hz,
        instructions={config.task: known.instruction} if known.instruction else {},
    )
    _check_bounds(config, len(known.action), spec)
    pilot = DenoiserPilot(denoiser, spec, config.n_denoising_steps)
    try_out(pilot, name, file_of(denoiser))
    names = replace(config.map, state=known.state, action=known.action)
    return pilot, replace(config, hz=known.hz, map=names)


@dataclass(frozen=True)
class _Description:
    """What config and robot say together; the config comes first."""

    state: tuple[str, ...]  # the robot's names of the numbers of the state
    action: tuple[str, ...]
    cameras: tuple[str, ...]
    hz: float
    instruction: str  # empty: none


def _describe(robot: Robot, config: RobotConfig) -> _Description:
    """Return what is known of a robot without a connection.

    Raises:
        UserError: task or rate is not known, or the robot fails.
    """
    if not config.task:
        raise UserError("task=: a policy that you bring does not say which tasks it knows; name one, such as task=push")
    with blamed(f"robot={config.robot}", file_of(robot)):
        observed, commanded = dict(robot.observation_features), dict(robot.action_features)
        hz = config.hz or float(getattr(robot, "control_hz", 0.0))
        sentence = config.instruction or str(getattr(robot, "instructions", {}).get(config.task, ""))
    if not hz:
        raise UserError("hz=0: neither the policy nor the robot says the rate; set it to that of the recorded episodes")
    return _Description(
        state=config.map.state or tuple(name for name, kind in observed.items() if kind is float),
        action=config.map.action or tuple(name for name, kind in commanded.items() if kind is float),
        cameras=tuple(name for name, kind in observed.items() if kind is not float),
        hz=hz,
        instruction=sentence,
    )


def _vector_sizes(reads: Mapping[str, Feature], name: str) -> dict[str, int]:
    """Return the vectors that a policy reads, in the order in which a robot's state holds them, and their sizes."""
    for feature in reads:
        if feature not in VECTORS and not feature.startswith(IMAGES):
            raise UserError(
                f"{name} reads {feature!r}, which a robot does not give; expected {', '.join(VECTORS)} or {IMAGES}..."
            )
    if STATE not in reads:
        raise UserError(f"{name} reads no {STATE!r}, which the limits of a robot need; add it to `reads` of the policy")
    return {vector: reads[vector].shape[0] for vector in VECTORS if vector in reads}


def _vectors(sizes: Mapping[str, int], names: Sequence[str]) -> dict[str, Feature]:
    """Return the vectors that a policy reads, with their named parts; `names` are those of all their numbers."""
    vectors, first = {}, 0
    for vector, size in sizes.items():
        vectors[vector], first = Feature((size,), slices=slices_of(names[first : first + size])), first + size
    return vectors


def _check_cameras(reads: Mapping[str, Feature], name: str, config: RobotConfig, cameras: Sequence[str]) -> None:
    for feature in (feature for feature in reads if feature.startswith(IMAGES)):
        camera = feature.removeprefix(IMAGES)
        if config.map.images.get(camera, camera) not in cameras:
            raise UserError(
                f"map.images: {name} reads {feature!r}, and the robot's cameras are {', '.join(cameras) or 'none'}; "
                f"name one with map.images.{camera}=CAMERA, or add it to the robot, in the simulated one with "
                f"'params.cameras={{{camera}: {{}}}}'"
            )


def _check_bounds(config: RobotConfig, action_dim: int, spec: Spec) -> None:
    """Check that the limits, which bound the actions of the policy, are complete, and that each action can move."""
    config.limits.check_fits(action_dim, spec.parts)
    for i, (low, high) in enumerate(zip(config.limits.low, config.limits.high, strict=True)):
        if low == high:
            raise UserError(f"limits: action {i} is from {low:g} to {high:g}; for this policy, choose low below high")


def try_out(pilot: Pilot, name: str, file: str) -> None:
    """Compute one chunk of an observation of zeros, with one held action.

    Args:
        pilot: the policy.
        name: of the policy, for messages.
        file: of its class, for messages.

    Raises:
        UserError: the policy fails.
    """
    rows = {
        feature: torch.zeros(1, pilot.n_context_frames, *of.shape, dtype=getattr(torch, of.dtype))
        for feature, of in pilot.spec.features.items()
    }
    rows["task"] = torch.zeros(1, dtype=torch.long)
    chunk = torch.zeros(1, pilot.chunk_size, pilot.spec.action_dim)
    with blamed(f"policy={name}", file):
        pilot.act(rows, torch.zeros(1, *pilot.noise_shape), chunk, torch.ones(1, dtype=torch.long))
