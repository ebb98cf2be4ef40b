"""Checks for NaN, infinite and absurdly large numbers; they raise before anything is learned from such a number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from rewards.errors import BadNumbers, UserError

MOST = 1e9
"""Largest accepted absolute value of states, rewards and actions. A larger, finite one would ruin a critic as well."""

MOST_LOSS = 1e20
"""Largest accepted loss: well above the square of `MOST`, because losses are squared errors."""


def checked_actions(actions: Tensor, low: Tensor, high: Tensor, place: str, context: Tensor) -> Tensor:
    """Check actions and clamp them to their bounds.

    Args:
        actions: (num_envs, k, action_dim), float.
        low, high: bounds (action_dim,).
        place: where they would be executed, for messages: "sim" or "dream".
        context: (num_envs, n_context_frames, state_dim), the current observation; attached to the error.

    Raises:
        UserError: `actions` has another shape.
        BadNumbers: it is not a float tensor, or a value is not finite or exceeds `MOST`; the message names environment
            and step.
    """
    num_envs, action_dim = len(context), len(low)
    expected = f"({num_envs}, k, {action_dim})"
    if not isinstance(actions, Tensor) or not actions.is_floating_point():
        kind = str(actions.dtype) if isinstance(actions, Tensor) else type(actions).__name__
        raise BadNumbers(f"{place}: actions are {kind}, expected a tensor of floats {expected}")
    fits = actions.dim() == 3 and actions.shape[::2] == (num_envs, action_dim) and actions.shape[1] > 0
    if not fits:
        raise UserError(f"{place}: actions have shape {tuple(actions.shape)}, expected {expected}")
    # Check before the clamp, which would turn an infinite action into a legal one.
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
    """Check the states and rewards that an environment returned; steps that were not executed are ignored.

    Args:
        frames: (num_envs, k, state_dim).
        task_reward: (num_envs, k), or None if the environment has no reward of its own.
        executed: (num_envs, k) bool.
        place: name of the environment, for messages: "sim" or "dream".
        tasks: names of tasks.
        task: (num_envs,), index of the task of each environment.
        elapsed: (num_envs,), steps of each episode before this chunk.

    Raises:
        BadNumbers: a state or reward is not finite or exceeds `MOST`; the message names environment, task and step.
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
    """Check a loss before its backward pass.

    Raises:
        BadNumbers: it is not a single finite real number, or exceeds `MOST_LOSS`; the message ends with `remedy`.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        kind = f"{tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise BadNumbers(f"the loss is {kind}, expected one real number; nothing of it was learned; {remedy}")
    if not loss.abs() <= MOST_LOSS:
        raise BadNumbers(f"the loss became {float(loss.detach()):g}; nothing of it was learned; {remedy}")


def check_gradients(norms: list[Tensor], remedy: str) -> None:
    """Check the norms of all gradients before the optimizer step.

    Raises:
        BadNumbers: a norm is not finite; the message ends with `remedy`.
    """
    if not math.isfinite(sum(norms)):  # for parameters without gradients, torch returns a norm of 0 on the CPU
        raise BadNumbers(f"a gradient is not finite; nothing of it was learned; {remedy}")


def _beyond(values: Tensor) -> Tensor:
    """Mark values that exceed `MOST` or are NaN. Shape: that of `values`."""
    return ~(values.abs() <= MOST)  # not `abs() > MOST`, which is false for NaN
