"""Trust signals: each returns a weight per dreamed chunk, and an update weighs the chunk by their product.

Two are built in: `expected_error` lowers the weight where the world model expects larger errors; `redream` dreams each
success again and gives weight 0 if it does not succeed a second time. Others are plug-ins, named in `dream.trust`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rewards.errors import BadNumbers, UserError, blamed, defined_at
from rewards.plugins import MAX_MAGNITUDE, Builtins, check_params, instance_of, load, read_entry, source_file
from rl.config import TrainConfig
from rl.ppo.buffer import Rollout
from world_model.api import WorldModel
from world_model.dream_env import DreamEnv, StartStates


class TrustSignal(Protocol):
    """Weight of each chunk of a dreamed rollout; a function, or a class that is built with its params.

    It must keep no state between rollouts and draw random numbers from `seed` only, so that a run can be repeated and
    resumed exactly.
    """

    def __call__(self, rollout: Rollout, world_model: WorldModel, seed: int) -> Tensor:
        """Return weights (n_steps, num_envs): 1 trusts a chunk fully, less lowers its weight, 0 drops it."""


@dataclass(frozen=True)
class Signal:
    """A trust signal of a config; its values are checked at every call."""

    name: str
    func: str
    weight: float  # exponent: the values are raised to this power
    call: TrustSignal
    at: str  # FILE:LINE of a plug-in; empty: a built-in

    @torch.no_grad()
    def __call__(self, rollout: Rollout, world_model: WorldModel, seed: int) -> Tensor:
        """Return the weight of each chunk (n_steps, num_envs), with the dtype of `rollout.weight`.

        A plug-in gets copies of the tensors, so that it cannot change the rollout by mistake.

        Raises:
            UserError: it raised an exception, or returned another type or shape.
            BadNumbers: a value is negative or not finite.
        """
        with blamed(self._who, self.at.rpartition(":")[0]):
            found = self.call(_copied(rollout) if self.at else rollout, world_model, seed)
        expected = tuple(rollout.weight.shape)
        if not isinstance(found, Tensor):
            raise self._wrong(f"a {type(found).__name__}, expected a tensor of shape {expected}")
        if tuple(found.shape) != expected:
            raise self._wrong(f"shape {tuple(found.shape)}, expected {expected}: one number for each chunk")
        if found.is_complex():
            raise self._wrong(f"{found.dtype}, expected real numbers or true and false")
        trust = found.detach().to(rollout.weight)
        if (bad := ~((trust >= 0) & (trust <= MAX_MAGNITUDE))).any():  # also true for NaN
            step, env = bad.nonzero()[0].tolist()
            value = f"{trust[step, env].item():g} for chunk {step} of environment {env}"
            raise self._wrong(f"{value}; expected 0 to {MAX_MAGNITUDE:g}, where 1 means full weight", BadNumbers)
        return trust if self.weight == 1 else trust**self.weight

    @property
    def _who(self) -> str:
        return f"trust signal {self.name!r}"

    def _wrong(self, problem: str, kind: type[UserError] = UserError) -> UserError:
        return kind(f"{self._who} returned {problem}" + (f"; see {self.at}" if self.at else ""))


def make_signals(config: TrainConfig) -> list[Signal]:
    """Build the active trust signals: those of `dream.weigh_by_trust`, `dream.redream` and `dream.trust`.

    Raises:
        UserError: one is unknown or malformed, or its params do not fit.
    """
    return [_build(name, written, _builtins(config)) for name, written in config.dream.signals.items()]


def signal_files(config: TrainConfig) -> dict[str, Path | None]:
    """Return the source file of each active trust signal, by name; None for a built-in."""
    builtins, found = _builtins(config), {}
    for name, written in config.dream.signals.items():
        who = f"trust signal {name!r}"
        func = read_entry(who, name, written, default_weight=1.0).func
        found[name] = source_file("trust_signal", func, builtins, who)
    return found


def expected_error(rollout: Rollout, world_model: WorldModel, seed: int) -> Tensor:
    """Weigh chunks by `trust_weights` of their expected error. Shape: (n_steps, num_envs), with a mean of 1."""
    return trust_weights(rollout.expected_error)


def redream(rollout: Rollout, world_model: WorldModel, seed: int, action_delay: int = 0) -> Tensor:
    """Return 0 for chunks of successes that fail when dreamed again, else 1. Shape: (n_steps, num_envs).

    Args:
        rollout: a dreamed rollout.
        world_model: the model that dreamed it; the second dream is that of its `refined`.
        seed: of the new noise.
        action_delay: steps between a command and its execution, as in the first dream.
    """
    return (~flipped(world_model, rollout, seed, action_delay)).to(rollout.weight)


def trust_weights(expected_error: Tensor) -> Tensor:
    """Return weights (same shape) proportional to 1 / (1 + error / median error), scaled to a mean of 1."""
    weights = 1 / (1 + expected_error / expected_error.median().clamp(min=1e-12))
    return weights / weights.mean()


@torch.no_grad()
def flipped(model: WorldModel, rollout: Rollout, seed: int, action_delay: int) -> Tensor:
    """Dream each success of a dreamed rollout again, with the same actions, new noise and the `refined` model.

    Returns (n_steps, num_envs) bool: chunks that led to a success which did not occur again within as many chunks.
    """
    marks = torch.zeros_like(rollout.success)
    # `last`, `env` (n,): the chunk with each success and its environment; `first` (n,): the chunk its episode began in.
    last, env = rollout.success.nonzero().unbind(1)
    if len(last) == 0:
        return marks
    first = _first_chunks(rollout.terminated | rollout.truncated)[last, env]
    n, longest = len(last), int((last - first).max()) + 1
    seeds = seed + torch.arange(n, device=first.device)
    context = {name: frames[first, env] for name, frames in rollout.frames.items()}
    starts = StartStates(context, rollout.task[first, env], seeds)
    dream = DreamEnv(
        model.refined(),
        num_envs=n,
        starts=starts,
        horizon=longest,
        max_steps=longest * model.chunk_size,  # not reached before the horizon
        in_order=True,
        action_delay=action_delay,
    )
    dream.reset()
    again = torch.zeros_like(first, dtype=torch.bool)
    for t in range(longest):
        # Successes of different length run side by side: a shorter one repeats its last chunk, which does not count.
        step = dream.step_chunk(rollout.actions[(first + t).clamp(max=last), env])
        again |= step.is_success & (first + t <= last)
    for i in (~again).nonzero().squeeze(1):
        marks[first[i] : last[i] + 1, env[i]] = True
    return marks


def _builtins(config: TrainConfig) -> Builtins:
    """Return the built-in signals; `redream` gets the action delay of the run."""
    return {"expected_error": expected_error, "redream": partial(redream, action_delay=config.env.action_delay)}


def _build(name: str, written: dict[str, Any], builtins: Builtins) -> Signal:
    who = f"trust signal {name!r}"
    entry = read_entry(who, name, written, default_weight=1.0)
    if entry.weight < 0:
        raise UserError(f"{who}: weight is {entry.weight:g}, expected at least 0: it is a power; 0 switches it off")
    found = load("trust_signal", entry.func, builtins, who)
    ours, is_class = entry.func in builtins, inspect.isclass(found)
    check_params(who, entry.func, found, entry.params, n_given=0 if is_class else 3)
    target = instance_of(who, entry.func, found, entry.params, call="__call__(rollout, world_model, seed)", ours=ours)
    call: Callable[..., Any] = target if is_class else partial(target, **entry.params)
    return Signal(name, entry.func, entry.weight, call, "" if ours else defined_at(target))


def _copied(rollout: Rollout) -> Rollout:
    tensors: dict[str, Any] = {n: value.clone() for n, value in vars(rollout).items() if isinstance(value, Tensor)}
    return replace(rollout, frames={n: value.clone() for n, value in rollout.frames.items()}, **tensors)


def _first_chunks(done: Tensor) -> Tensor:
    """Return for each chunk the index of the first chunk of its episode, from ends (n_steps, num_envs)."""
    n_steps = len(done)
    number = torch.arange(n_steps, device=done.device).unsqueeze(1).expand_as(done)
    # A chunk begins an episode if it is the first of the rollout or follows an end.
    begins = torch.cat([torch.ones_like(done[:1]), done[:-1]])
    return torch.where(begins, number, 0).cummax(0).values
