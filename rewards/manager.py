"""From the `rewards:` section of a config to numbers: check the terms once, then pay every step."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rewards.api import ALWAYS_PROVIDED, Transition
from rewards.errors import BadNumbers, UserError, did_you_mean
from rewards.loading import load_term

MAX_MAGNITUDE = 1e6
"""A larger weight or value is a mistake: one such reward ruins a critic without ever being NaN."""


@dataclass
class RewardStep:
    """What each row of a transition is paid. Rows that were not executed are 0 everywhere."""

    total: Tensor  # (N,), sum of weighted
    raw: dict[str, Tensor]  # term -> (N,), as returned
    weighted: dict[str, Tensor]  # term -> (N,), times its weight


@dataclass
class _Term:
    name: str
    func: str
    weight: float
    requires: tuple[str, ...]
    call: Callable[[Transition], Tensor]
    keeper: Any  # the object with `reset(mask)` of a term that keeps state, else None


ISAAC = "isaac"
"""What a place provides that can compute reward functions of Isaac Lab."""


def isaac_terms(terms: Mapping[str, Mapping[str, Any] | None]) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return the active terms that are functions of Isaac Lab, with their params: its environment computes them."""
    found = {}
    for name, term in terms.items():
        if term is not None and _weight(name, term) != 0.0:
            func = load_term(name, term.get("func") or name)
            if is_isaac_term(func):
                found[name] = func, dict(term.get("params") or {})
    return found


def is_isaac_term(func: Callable[..., Any]) -> bool:
    """Whether a reward function is one of Isaac Lab: it takes the environment, where ours take a transition."""
    parameters = [*inspect.signature(func).parameters] if inspect.isfunction(func) else []
    return parameters[:1] == ["env"]


class RewardManager:
    """The active reward terms of one place.

    Args:
        terms: name -> `{func, weight, params}`; without `func` the built-in of that name; weight 0 or None is off.
        provides: slices of the state and optional fields (`progress`, `task_reward`) that the place can provide.
        place: `sim`, `dream` or `real`, for messages.

    Raises:
        UserError: a term is unknown, malformed, or requires what the place cannot provide.
    """

    def __init__(self, terms: Mapping[str, Mapping[str, Any] | None], provides: Collection[str], place: str) -> None:
        if not isinstance(terms, Mapping):
            raise UserError(f"rewards: expected terms by name, got {terms!r}; write {{success: {{weight: 1.0}}}}")
        self.place = place
        self._terms = [
            _build(name, term) for name, term in terms.items() if term is not None and _weight(name, term) != 0.0
        ]
        for term in self._terms:
            _check_provided(term, ALWAYS_PROVIDED | set(provides), place)
        self.names = [term.name for term in self._terms]
        self.weights = {term.name: term.weight for term in self._terms}
        self._keepers = {term.name: term.keeper for term in self._terms if term.keeper is not None}
        self.requires = frozenset(name for term in self._terms for name in term.requires)

    @torch.no_grad()
    def compute(self, t: Transition, executed: Tensor | None = None, n_steps: int = 1) -> RewardStep:
        """Pay each row of `t` (N rows); rows where `executed` (N,) bool is False get 0.

        A whole chunk is paid in one call when `t` holds `n_steps` consecutive rows of each environment, in order.

        Raises:
            UserError: a term returned a wrong shape, a value that is not finite or one beyond `MAX_MAGNITUDE`.
        """
        raw = t.next_state.new_zeros(len(self._terms), t.next_state.shape[0])
        for row, term in zip(raw, self._terms, strict=True):
            calls = n_steps if term.keeper else 1  # a term that keeps state must see the steps one by one
            for step in range(calls):
                row[step::calls].copy_(_call(term, _rows(t, slice(step, None, calls))))
        if executed is not None:
            raw.masked_fill_(~executed, 0.0)  # not a product: what a term makes of a dead row may be NaN
        self._check_values(raw, t, n_steps)
        weighted = raw * raw.new_tensor([term.weight for term in self._terms])[:, None]
        return RewardStep(
            total=weighted.sum(0),
            raw=dict(zip(self.names, raw, strict=True)),
            weighted=dict(zip(self.names, weighted, strict=True)),
        )

    def reset(self, mask: Tensor) -> None:
        """Tell the terms that keep state which episodes begin. `mask`: (num_envs,) bool."""
        for keeper in self._keepers.values():
            keeper.reset(mask)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return what the terms that keep state remember: those of their attributes that are tensors or numbers."""
        attributes = {name: vars(keeper).items() for name, keeper in self._keepers.items()}
        kept = Tensor | float | int
        return {name: {k: copy.deepcopy(v) for k, v in of if isinstance(v, kept)} for name, of in attributes.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `state_dict` gave."""
        for name, keeper in self._keepers.items():
            for key, value in state[name].items():
                now, restored = getattr(keeper, key, None), copy.deepcopy(value)
                setattr(keeper, key, restored.to(now.device) if isinstance(now, Tensor) else restored)

    def describe(self) -> list[tuple[str, str, float, tuple[str, ...]]]:
        """Return (name, func, weight, requires) of each active term, in order."""
        return [(term.name, term.func, term.weight, term.requires) for term in self._terms]

    def _check_values(self, raw: Tensor, t: Transition, n_steps: int) -> None:
        bad = ~(raw.abs() <= MAX_MAGNITUDE)  # also true for NaN
        if bad.any():
            i, row = bad.nonzero()[0].tolist()
            raise BadNumbers(
                f"{self.place}: reward term {self.names[i]!r} returned {raw[i, row].item():g} in environment "
                f"{row // n_steps} at step {int(t.elapsed[row])}; expected a finite value within ±{MAX_MAGNITUDE:g}"
            )


def _build(name: str, term: Mapping[str, Any]) -> _Term:
    func, params = term.get("func") or name, term.get("params") or {}
    if not isinstance(func, str):
        raise UserError(f"reward term {name!r}: func is {func!r}, expected a name, module:function or path.py:function")
    if not isinstance(params, Mapping):
        raise UserError(
            f"reward term {name!r}: params are {params!r}, expected names and values; write {{name: value}}"
        )
    found = load_term(name, func)
    if is_isaac_term(found):
        return _Term(name, func, _weight(name, term), (ISAAC,), lambda t: t.own_rewards[name], None)
    is_class = inspect.isclass(found)
    _check_params(name, func, found, params, is_class)
    if is_class:
        try:
            target = found(**params)
        except (TypeError, ValueError) as error:
            raise UserError(f"reward term {name!r}: params {params} do not fit {func}: {error}") from error
        if not callable(target):
            raise UserError(f"reward term {name!r}: the class {func} has no __call__(t); write one")
        call = target
    else:
        target = copy.deepcopy(found)  # an instance must not share its state between sim and dream
        call = partial(target, **params) if params else target
    requires = _requires(name, getattr(target, "requires", ()))
    return _Term(name, func, _weight(name, term), requires, call, target if hasattr(target, "reset") else None)


def _weight(name: str, term: Mapping[str, Any]) -> float:
    """Check the keys of a term and return its weight."""
    if not isinstance(term, Mapping):
        raise UserError(f"reward term {name!r}: expected func, weight and params, got {term!r}; write {{weight: 1.0}}")
    for key in term:
        if key not in ("func", "weight", "params"):
            hint = did_you_mean(str(key), ("func", "weight", "params"))
            raise UserError(f"reward term {name!r}: unknown key {key!r}, expected func, weight or params{hint}")
    weight = term.get("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"reward term {name!r}: weight is {weight!r}, expected a number; 0 switches the term off")
    if not math.isfinite(weight) or abs(weight) > MAX_MAGNITUDE:
        raise UserError(f"reward term {name!r}: weight is {weight}, expected a finite number within ±{MAX_MAGNITUDE:g}")
    return float(weight)


def _check_params(name: str, func: str, found: Callable[..., Any], params: Mapping[str, Any], is_class: bool) -> None:
    first = () if is_class else (None,)  # a function gets the transition first, a class its params alone
    signature = inspect.signature(found)
    try:
        signature.bind(*first, **params)
    except TypeError as error:
        takes = ", ".join(list(signature.parameters)[len(first) :]) or "none"
        raise UserError(f"reward term {name!r}: params of {func}: {error}; it takes {takes}") from error


def _requires(name: str, declared: Iterable[str]) -> tuple[str, ...]:
    if isinstance(declared, str):  # requires=("action") has no comma
        raise UserError(f"reward term {name!r}: requires is {declared!r}, expected a tuple; write ({declared!r},)")
    # Progress before and after a step come together.
    return tuple(dict.fromkeys("progress" if need == "next_progress" else need for need in declared))


def _check_provided(term: _Term, provided: Collection[str], place: str) -> None:
    for need in term.requires:
        if need not in provided:
            raise UserError(
                f"reward term {term.name!r} requires {need!r}, which the {place} cannot provide; "
                f"remove it or set its weight to 0{did_you_mean(need, provided)}"
            )


def _rows(t: Transition, rows: slice) -> Transition:
    if rows == slice(0, None, 1):
        return t
    values = ((f.name, getattr(t, f.name)) for f in fields(t))
    chosen: dict[str, Any] = {name: value[rows] for name, value in values if isinstance(value, Tensor)}
    chosen["own_rewards"] = {name: value[rows] for name, value in t.own_rewards.items()}
    return replace(t, **chosen)


def _call(term: _Term, t: Transition) -> Tensor:
    try:
        value = term.call(t)
    except UserError as error:
        raise UserError(f"reward term {term.name!r}: {error}") from error
    except Exception as error:
        error.add_note(f"in reward term {term.name!r} ({term.func}), which declares requires={term.requires}")
        raise
    expected = (t.next_state.shape[0],)
    if not isinstance(value, Tensor):
        raise UserError(
            f"reward term {term.name!r} returned a {type(value).__name__}, expected a tensor of shape {expected}"
        )
    if value.shape != expected:
        raise UserError(
            f"reward term {term.name!r} returned shape {tuple(value.shape)}, expected {expected}: "
            f"one number for each environment"
        )
    if value.is_complex():
        raise UserError(f"reward term {term.name!r} returned {value.dtype}, expected real numbers")
    return value
