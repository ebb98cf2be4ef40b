"""Build the reward terms from the `rewards:` section of a config, check them once, and compute them at every step."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewards import builtin
from rewards.api import ALWAYS_PROVIDED, ImageModel, Transition
from rewards.errors import BadNumbers, UserError, blamed, defined_at, did_you_mean
from rewards.plugins import MAX_MAGNITUDE, check_params, instance_of, load_term, read_entry, read_weight
from rewards.transitions import VECTORS


@dataclass
class RewardStep:
    """Reward of each row of a transition; 0 in rows that were not executed."""

    total: Tensor  # (N,), sum of weighted
    raw: dict[str, Tensor]  # term -> (N,), value as returned by the term
    weighted: dict[str, Tensor]  # term -> (N,), raw times the weight


@dataclass
class _Term:
    """One active reward term."""

    name: str
    func: str
    weight: float
    requires: tuple[str, ...]
    call: Callable[[Transition], Tensor]
    stateful: Any  # the object with `reset(mask)` if the term keeps state between steps, else None
    is_builtin: bool  # trusted not to change the tensors of a transition
    at: str = ""  # FILE:LINE of a plug-in; empty for a built-in

    def message(self, problem: str) -> str:
        """Return an error message about `problem` of this term, with the place where it is defined."""
        return f"reward term {self.name!r} {problem}" + (f"; see {self.at}" if self.at else "")

    def blamed(self) -> AbstractContextManager[None]:
        """Return a context that converts exceptions to a `UserError` about this term, with file and line."""
        return blamed(f"reward term {self.name!r}", self.at.rpartition(":")[0])


ISAAC = "isaac"
"""Requirement of reward functions of Isaac Lab; only a place that can compute them provides it."""


def isaac_terms(terms: Mapping[str, Mapping[str, Any] | None]) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return function and params of each active term of Isaac Lab; the environment of Isaac Lab computes these."""
    found = {}
    for name, term in terms.items():
        if term is not None and _weight(name, term) != 0.0:
            func = load_term(name, term.get("func") or name)
            if is_isaac_term(func):
                found[name] = func, dict(term.get("params") or {})
    return found


def is_isaac_term(func: Callable[..., Any]) -> bool:
    """Whether `func` is a reward function of Isaac Lab: its first parameter is `env`, not a transition."""
    parameters = [*inspect.signature(func).parameters] if inspect.isfunction(func) else []
    return parameters[:1] == ["env"]


class RewardManager:
    """The active reward terms of one place.

    Args:
        terms: name -> `{func, weight, params}`. Without `func` the term is the built-in of that name. A term that is
            None or has weight 0 is off.
        provides: slices of the state, other features and optional fields (`progress`, `task_reward`) that the place
            can provide.
        place: `sim`, `dream` or `real`, for messages.
        images: the world model, if it reads images: it makes those features that a term requires and a place lacks.

    Raises:
        UserError: a term is unknown, malformed, or requires what the place cannot provide.
    """

    def __init__(
        self,
        terms: Mapping[str, Mapping[str, Any] | None],
        provides: Collection[str],
        place: str,
        images: ImageModel | None = None,
    ) -> None:
        if not isinstance(terms, Mapping):
            raise UserError(f"rewards: expected terms by name, got {terms!r}; write {{success: {{weight: 1.0}}}}")
        self.place, self.images = place, images
        self._terms = [
            _build(name, term) for name, term in terms.items() if term is not None and _weight(name, term) != 0.0
        ]
        for term in self._terms:
            _check_provided(term, ALWAYS_PROVIDED | set(provides), place)
        self.names = [term.name for term in self._terms]
        self.weights = {term.name: term.weight for term in self._terms}
        self._stateful = {term.name: term.stateful for term in self._terms if term.stateful is not None}
        self.requires = frozenset(name for term in self._terms for name in term.requires)

    def with_features(self, frames: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the vectors and the features that terms require, of `frames`, each (num_envs, k, *shape)."""
        made = frames if self.images is None else self.images.with_features(frames, self.requires)
        return {name: values for name, values in made.items() if name in VECTORS or name in self.requires}

    @torch.no_grad()
    def compute(self, t: Transition, executed: Tensor | None = None, n_steps: int = 1) -> RewardStep:
        """Compute the reward of each row of `t` (N rows); rows where `executed` (N,) bool is False get 0.

        To compute a whole chunk in one call, `t` holds for each environment `n_steps` consecutive rows, in order.

        Raises:
            UserError: a term raised an exception, or returned a wrong shape, or a value that is not finite or exceeds
                `MAX_MAGNITUDE`.
        """
        raw = t.next_state.new_zeros(len(self._terms), t.next_state.shape[0])
        for row, term in zip(raw, self._terms, strict=True):
            calls = n_steps if term.stateful else 1  # a term with state must get the steps one by one
            for step in range(calls):
                row[step::calls].copy_(_call(term, _rows_for(term, t, slice(step, None, calls))))
        if executed is not None:
            raw.masked_fill_(~executed, 0.0)  # not a product: a term may return NaN for a row that was not executed
        # Check before weighting, so that the message shows the value that the term returned.
        self._check_values(raw, t, n_steps)
        weighted = raw * raw.new_tensor([term.weight for term in self._terms])[:, None]
        return RewardStep(
            total=weighted.sum(0),
            raw=dict(zip(self.names, raw, strict=True)),
            weighted=dict(zip(self.names, weighted, strict=True)),
        )

    def reset(self, mask: Tensor) -> None:
        """Reset the state of terms where an episode begins: `mask` (num_envs,) bool."""
        for term in self._terms:
            if term.stateful is not None:
                with term.blamed():
                    term.stateful.reset(mask.clone())

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state of all terms that have one: their attributes that are tensors or numbers."""
        attributes = {name: vars(target).items() for name, target in self._stateful.items()}
        kept = Tensor | float | int
        return {name: {k: copy.deepcopy(v) for k, v in of if isinstance(v, kept)} for name, of in attributes.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore a state from `state_dict`; tensors move to the device of those that they replace."""
        for name, target in self._stateful.items():
            for key, value in state[name].items():
                now, restored = getattr(target, key, None), copy.deepcopy(value)
                setattr(target, key, restored.to(now.device) if isinstance(now, Tensor) else restored)

    def describe(self) -> list[tuple[str, str, float, tuple[str, ...]]]:
        """Return (name, func, weight, requires) of each active term, in order."""
        return [(term.name, term.func, term.weight, term.requires) for term in self._terms]

    def _check_values(self, raw: Tensor, t: Transition, n_steps: int) -> None:
        """Raise `BadNumbers` if a value of `raw` (terms, N) is not finite or exceeds `MAX_MAGNITUDE`."""
        bad = ~(raw.abs() <= MAX_MAGNITUDE)  # also true for NaN
        if bad.any():
            i, row = bad.nonzero()[0].tolist()
            problem = (
                f"returned {raw[i, row].item():g} in environment {row // n_steps} at step {int(t.elapsed[row])}; "
                f"expected a finite value within ±{MAX_MAGNITUDE:g}"
            )
            raise BadNumbers(f"{self.place}: {self._terms[i].message(problem)}")


def _build(name: str, term: Mapping[str, Any]) -> _Term:
    """Load and check the term that a config describes."""
    who = f"reward term {name!r}"
    entry = read_entry(who, name, term)
    func, params = entry.func, entry.params
    found = load_term(name, func)
    if is_isaac_term(found):  # computed by Isaac Lab: only look up the result
        return _Term(
            name=name,
            func=func,
            weight=entry.weight,
            requires=(ISAAC,),
            call=lambda t: t.own_rewards[name],
            stateful=None,
            is_builtin=True,
        )
    # Check the params against the signature first, which gives a better message than a failing call.
    is_class = inspect.isclass(found)
    check_params(who, func, found, params, n_given=0 if is_class else 1)  # a function gets the transition first
    is_builtin = getattr(found, "__module__", "") == builtin.__name__
    target = instance_of(who, func, found, params, call="__call__(t)", ours=is_builtin)
    return _Term(
        name=name,
        func=func,
        weight=entry.weight,
        requires=_requires(name, getattr(target, "requires", ())),
        call=target if is_class or not params else partial(target, **params),
        stateful=target if hasattr(target, "reset") else None,
        is_builtin=is_builtin,
        at="" if is_builtin else defined_at(target),
    )


def _weight(name: str, term: Mapping[str, Any]) -> float:
    return read_weight(f"reward term {name!r}", term)


def _requires(name: str, declared: Iterable[str]) -> tuple[str, ...]:
    """Check what a term declares with `requires`, and return it without duplicates."""
    if isinstance(declared, str):  # a common mistake: requires=("action") without a comma is a string
        raise UserError(f"reward term {name!r}: requires is {declared!r}, expected a tuple; write ({declared!r},)")
    if not isinstance(declared, Iterable) or not all(isinstance(need, str) for need in declared):
        raise UserError(f"reward term {name!r}: requires is {declared!r}, expected a tuple of names")
    # A place that provides `progress` provides `next_progress` as well.
    return tuple(dict.fromkeys("progress" if need == "next_progress" else need for need in declared))


def _check_provided(term: _Term, provided: Collection[str], place: str) -> None:
    """Raise `UserError` if the term requires something that the place does not provide."""
    for need in term.requires:
        if need not in provided:
            hint = did_you_mean(need, provided) or f"; it provides {', '.join(sorted(provided))}"
            raise UserError(
                f"reward term {term.name!r} requires {need!r}, which the {place} cannot provide; "
                f"remove it or set its weight to 0{hint}"
            )


def _rows_for(term: _Term, t: Transition, rows: slice) -> Transition:
    """Return the given rows of a transition; a plug-in gets a copy, so that it cannot change the original."""

    def chosen(value: Tensor) -> Tensor:
        return value[rows] if term.is_builtin else value[rows].clone()

    values = ((f.name, getattr(t, f.name)) for f in fields(t))
    tensors: dict[str, Any] = {name: chosen(value) for name, value in values if isinstance(value, Tensor)}
    own_rewards, features = ({name: chosen(value) for name, value in of.items()} for of in (t.own_rewards, t.features))
    return replace(t, **tensors, own_rewards=own_rewards, features=features, slices=dict(t.slices))


def _call(term: _Term, t: Transition) -> Tensor:
    """Call a term and check type and shape of the result (N,)."""
    expected = (t.next_state.shape[0],)
    with term.blamed():
        value = term.call(t)
    problem = ""
    if not isinstance(value, Tensor):
        problem = f"a {type(value).__name__}, expected a tensor of shape {expected}"
    elif value.shape != expected:
        problem = f"shape {tuple(value.shape)}, expected {expected}: one number for each environment"
    elif value.is_complex():
        problem = f"{value.dtype}, expected real numbers"
    if problem:
        raise UserError(term.message(f"returned {problem}"))
    return value
