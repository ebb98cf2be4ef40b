"""Bad numbers are stopped in the step that brings them, before anything is learned from it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from rewards.errors import BadNumbers, UserError

if TYPE_CHECKING:
    from world_model.env import Advance, BatchedEnv

MOST = 1e9
"""What is larger is no measurement: one such number ruins a critic without ever being NaN."""

MOST_LOSS = 1e20
"""Losses are squares of what `MOST` allows, and more than that is not learned from either."""


def checked_actions(env: BatchedEnv, actions: Tensor) -> Tensor:
    """Return `actions` (num_envs, k, action_dim) within their bounds.

    Raises:
        UserError: they are no tensor of that shape, or one of them is not finite or absurd; environment and step are
            named.
    """
    expected = f"({env.num_envs}, k, {env.spec.action_dim})"
    if not isinstance(actions, Tensor) or not actions.is_floating_point():
        kind = str(actions.dtype) if isinstance(actions, Tensor) else type(actions).__name__
        raise BadNumbers(f"{env.place}: actions are {kind}, expected a tensor of floats {expected}")
    fits = actions.dim() == 3 and actions.shape[::2] == (env.num_envs, env.spec.action_dim) and actions.shape[1] > 0
    if not fits:
        raise UserError(f"{env.place}: actions have shape {tuple(actions.shape)}, expected {expected}")
    bad = _beyond(actions).any(-1)
    if bad.any():
        which, step = bad.nonzero()[0].tolist()
        raise BadNumbers(
            f"{env.place}: the action for environment {which}, step {step} of the chunk is not finite or beyond "
            f"±{MOST:g}; nothing was executed",
            context=env.context,
            actions=actions,
        )
    return actions.to(env.action_low.dtype).clamp(env.action_low, env.action_high)


def check_advance(env: BatchedEnv, advance: Advance, executed: Tensor) -> None:
    """Look at what an environment returned in its executed steps (num_envs, k).

    Raises:
        BadNumbers: a state or reward is not finite or absurd; environment, task and step are named.
    """
    bad = {"state": _beyond(advance.frames).any(-1) & executed}
    if advance.task_reward is not None:
        bad["reward"] = _beyond(advance.task_reward) & executed
    for what, marks in bad.items():
        if marks.any():
            which, j = marks.nonzero()[0].tolist()
            task, step = env.spec.tasks[int(env.task[which])], int(env.elapsed[which]) + j + 1
            raise BadNumbers(
                f"{env.place}: environment {which} (task {task}) returned a {what} that is not finite or beyond "
                f"±{MOST:g} at step {step}; nothing was learned from it"
            )


def check_loss(loss: object, remedy: str) -> None:
    """Refuse a loss that is no finite real number, before it has a gradient.

    Raises:
        BadNumbers: saying what it is, with `remedy`.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        kind = f"{tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise BadNumbers(f"the loss is {kind}, expected one real number; nothing of it was learned; {remedy}")
    if not loss.abs() <= MOST_LOSS:
        raise BadNumbers(f"the loss became {float(loss.detach()):g}; nothing of it was learned; {remedy}")


def check_gradients(norms: list[Tensor], remedy: str) -> None:
    """Refuse gradients whose norms are not finite, before a step is taken.

    Raises:
        BadNumbers: one is not, with `remedy`.
    """
    if not math.isfinite(sum(norms)):  # torch says 0 on the CPU where there is no gradient
        raise BadNumbers(f"a gradient is not finite; nothing of it was learned; {remedy}")


def _beyond(values: Tensor) -> Tensor:
    return ~(values.abs() <= MOST)  # also true for NaN
