"""Bad numbers are stopped in the step that brings them, before anything is learned from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from rewards.errors import BadNumbers, UserError

MOST = 1e9
"""What is larger is no measurement: one such number ruins a critic without ever being NaN."""

MOST_LOSS = 1e20
"""Losses are squares of what `MOST` allows, and more than that is not learned from either."""


def checked_actions(actions: Tensor, low: Tensor, high: Tensor, place: str, context: Tensor) -> Tensor:
    """Return `actions` (num_envs, k, action_dim) within their bounds `low` and `high` (action_dim,).

    `place` and `context` (num_envs, n_context_frames, state_dim) say where they were to be executed.

    Raises:
        UserError: they are no tensor of that shape, or one of them is not finite or absurd; environment and step are
            named.
    """
    num_envs, action_dim = len(context), len(low)
    expected = f"({num_envs}, k, {action_dim})"
    if not isinstance(actions, Tensor) or not actions.is_floating_point():
        kind = str(actions.dtype) if isinstance(actions, Tensor) else type(actions).__name__
        raise BadNumbers(f"{place}: actions are {kind}, expected a tensor of floats {expected}")
    fits = actions.dim() == 3 and actions.shape[::2] == (num_envs, action_dim) and actions.shape[1] > 0
    if not fits:
        raise UserError(f"{place}: actions have shape {tuple(actions.shape)}, expected {expected}")
    bad = _beyond(actions).any(-1)
    if bad.any():
        which, step = bad.nonzero()[0].tolist()
        raise BadNumbers(
            f"{place}: the action for environment {which}, step {step} of the chunk is not finite or beyond "
            f"±{MOST:g}; nothing was executed",
            context=context,
            actions=actions,
        )
    return actions.to(low.dtype).clamp(low, high)


def check_advance(
    frames: Tensor,
    task_reward: Tensor | None,
    executed: Tensor,
    place: str,
    tasks: Sequence[str],
    task: Tensor,
    elapsed: Tensor,
) -> None:
    """Check what an environment returned in its executed steps.

    Args:
        frames: (num_envs, k, state_dim).
        task_reward: (num_envs, k), where there is one.
        executed: (num_envs, k) bool.
        place: where it happened.
        tasks: names of tasks.
        task: (num_envs,), index of the task of each environment.
        elapsed: (num_envs,), steps before these.

    Raises:
        BadNumbers: a state or reward is not finite or absurd; environment, task and step are named.
    """
    bad = {"state": _beyond(frames).any(-1) & executed}
    if task_reward is not None:
        bad["reward"] = _beyond(task_reward) & executed
    for what, marks in bad.items():
        if marks.any():
            which, j = marks.nonzero()[0].tolist()
            name, step = tasks[int(task[which])], int(elapsed[which]) + j + 1
            raise BadNumbers(
                f"{place}: environment {which} (task {name}) returned a {what} that is not finite or beyond "
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
