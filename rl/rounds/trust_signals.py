"""Trust signals: each returns weights for the chunks of a dreamed rollout, and their product weighs the update.

Two are built in: `expected_error` trusts less where the world model expects larger errors, `redream` dreams each
success again and gives weight 0 to one that does not happen twice. Others are plug-ins, named in `dream.trust`.
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
    """Weights of the chunks of a dreamed rollout; a function, or a class that is built with its params.

    It keeps nothing from one rollout to the next, and draws random numbers from `seed` alone, so that a run repeats and
    an interrupted one goes on exactly.
    """

    def __call__(self, rollout: Rollout, world_model: WorldModel, seed: int) -> Tensor:
        """Return (n_steps, num_envs): 1 to learn fully from a chunk, less to learn less, 0 to learn nothing from it."""


@dataclass(frozen=True)
class Signal:
    """A trust signal of a config, whose values are checked."""

    name: str
    func: str
    weight: float  # the power to which its values are raised
    call: TrustSignal
    at: str  # FILE:LINE of a plug-in; empty: a built-in

    @torch.no_grad()
    def __call__(self, rollout: Rollout, world_model: WorldModel, seed: int) -> Tensor:
        """Return the weight of each chunk (n_steps, num_envs), of the dtype of `rollout.weight`.

        A plug-in gets copies of the tensors, so that nothing else sees what it writes there.

        Raises:
            UserError: it raised an exception, or returned another shape.
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
    """Build the trust signals that are on: those of `dream.weigh_by_trust` and `dream.redream`, and of `dream.trust`.

    Raises:
        UserError: one is unknown or malformed, or its params do not fit.
    """
    return [_build(name, written, _builtins(config)) for name, written in config.dream.signals.items()]


def signal_files(config: TrainConfig) -> dict[str, Path | None]:
    """Return the source file of each trust signal that is on, by name; None for a built-in."""
    builtins, found = _builtins(config), {}
    for name, written in config.dream.signals.items():
        who = f"trust signal {name!r}"
        func = read_entry(who, name, written, default_weight=1.0).func
        found[name] = source_file("trust_signal", func, builtins, who)
    return found


def expected_error(rollout: Rollout, world_model: WorldModel, seed: int) -> Tensor:
    """Weigh chunks by `trust_weights` of their expected error. Shape: (n_steps, num_envs), with a mean of 1."""
    return trust_weights(rollout.expected_error)


def redream(
    rollout: Rollout, world_model: WorldModel, seed: int, n_denoising_steps: int = 1, action_delay: int = 0
) -> Tensor:
    """Believe nothing of a success that is not seen again when it is dreamed again. Shape: (n_steps, num_envs), 0 or 1.

    Args:
        rollout: a dreamed one.
        world_model: that dreamed it.
        seed: of the new noise.
        n_denoising_steps: of the first dream; the second takes one more.
        action_delay: steps between a command and its execution, in the first dream.
    """
    return (~flipped(world_model, rollout, n_denoising_steps, seed, action_delay)).to(rollout.weight)


def _builtins(config: TrainConfig) -> Builtins:
    """Return the built-in signals; `redream` dreams as the run does."""
    n_denoising_steps, action_delay = config.dream.n_denoising_steps, config.env.action_delay
    again = partial(redream, n_denoising_steps=n_denoising_steps, action_delay=action_delay)
    return {"expected_error": expected_error, "redream": again}


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
    return replace(rollout, **tensors)


def trust_weights(expected_error: Tensor) -> Tensor:
    """Weights of chunks (any shape): half of the largest at the median of the expected error, with a mean of 1."""
    weights = 1 / (1 + expected_error / expected_error.median().clamp(min=1e-12))
    return weights / weights.mean()


@torch.no_grad()
def flipped(model: WorldModel, rollout: Rollout, n_denoising_steps: int, seed: int, action_delay: int) -> Tensor:
    """Dream each success of a dreamed rollout again, with the same actions, new noise and one more denoising step.

    Returns (n_steps, num_envs) bool: chunks that led to a success which was not seen again in as many chunks.
    """
    marks = torch.zeros_like(rollout.success)
    last, env = rollout.success.nonzero().unbind(1)
    if len(last) == 0:
        return marks
    first = _first_chunks(rollout.terminated | rollout.truncated)[last, env]
    n, longest = len(last), int((last - first).max()) + 1
    seeds = seed + torch.arange(n, device=first.device)
    starts = StartStates(rollout.frames[first, env], rollout.task[first, env], seeds)
    most = longest * model.chunk_size
    dream = DreamEnv(model, n, starts, longest, n_denoising_steps + 1, most, in_order=True, action_delay=action_delay)
    dream.reset()
    again = torch.zeros_like(first, dtype=torch.bool)
    for t in range(longest):
        step = dream.step_chunk(rollout.actions[(first + t).clamp(max=last), env])
        again |= step.is_success & (first + t <= last)
    for i in (~again).nonzero().squeeze(1):
        marks[first[i] : last[i] + 1, env[i]] = True
    return marks


def _first_chunks(done: Tensor) -> Tensor:
    """Index of the chunk that each chunk's episode began with, from ends (n_steps, num_envs)."""
    n_steps = len(done)
    number = torch.arange(n_steps, device=done.device).unsqueeze(1).expand_as(done)
    begins = torch.cat([torch.ones_like(done[:1]), done[:-1]])
    return torch.where(begins, number, 0).cummax(0).values
