"""What an environment offers and a model expects, in words that fit into `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import repeat
from math import isclose
from typing import Any

from rewards.errors import UserError, closest_or_known


@dataclass(frozen=True)
class Feature:
    """One observed quantity, such as the state vector.

    `slices` names parts of it, `{"object_pos": (4, 7)}`; reward terms address them by that name.
    """

    shape: tuple[int, ...]
    unit: str = ""
    slices: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """Observation features, action bounds, tasks and rate: the contract between a model and an environment.

    `features` is keyed like an observation (`state`, later `image`); `action_low` and `action_high` have one number a
    dimension; `control_hz` is the number of actions a second.
    """

    features: dict[str, Feature]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    tasks: tuple[str, ...]
    control_hz: float

    @property
    def state_dim(self) -> int:
        """Length of one frame of the state vector."""
        return self.features["state"].shape[0]

    @property
    def action_dim(self) -> int:
        """Length of one action."""
        return len(self.action_low)

    @property
    def slices(self) -> dict[str, slice]:
        """Named parts of the state vector."""
        return {name: slice(*bounds) for name, bounds in self.features["state"].slices.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Spec:
        """Rebuild what `to_dict` gave; a `UserError` names what cannot be of any environment."""
        try:
            _check(data)
            features = {
                key: Feature(tuple(f["shape"]), f["unit"], {k: (v[0], v[1]) for k, v in f["slices"].items()})
                for key, f in data["features"].items()
            }
            bounds = tuple(data["action_low"]), tuple(data["action_high"])
            return Spec(features, *bounds, tuple(data["tasks"]), float(data["control_hz"]))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"spec: it does not describe features, bounds, tasks and rate: {error!r:.80}") from error

    def check_fits(self, env: Spec, where: str) -> None:
        """Raise `UserError` with both values when a model of this spec cannot act in an environment of spec `env`.

        The environment may have more features and wider action bounds than the model knows, but not another rate.
        """
        for name, mine, theirs in (
            ("observation", self.state_dim, env.state_dim),
            ("action", self.action_dim, env.action_dim),
        ):
            if mine != theirs:
                raise UserError(
                    f"{where}: the checkpoint has {name} size {mine}, the environment has {name} size {theirs}; "
                    f"choose a checkpoint trained on this environment"
                )
        self._check_images(env, where)
        for i, (low, high, least, most) in enumerate(
            zip(self.action_low, self.action_high, env.action_low, env.action_high, strict=True)
        ):
            if low < least - _slack(least) or high > most + _slack(most):
                raise UserError(
                    f"{where}: action {i} of the checkpoint is from {low:g} to {high:g}, the environment clips it to "
                    f"{least:g} to {most:g}; widen the bounds of the environment or choose a checkpoint trained on it"
                )
        if not isclose(self.control_hz, env.control_hz, rel_tol=SAME):
            raise UserError(
                f"{where}: the checkpoint acts at {self.control_hz:g} Hz, the environment runs at "
                f"{env.control_hz:g} Hz; change the rate of the environment or choose a checkpoint trained on it"
            )
        unknown = sorted(set(env.tasks) - set(self.tasks))
        if unknown:
            raise UserError(
                f"{where}: task {unknown[0]!r} is unknown to the checkpoint; {closest_or_known(unknown[0], self.tasks)}"
            )

    def _check_images(self, env: Spec, where: str) -> None:
        for name, feature in self.features.items():
            theirs = env.features[name].shape if name in env.features else None
            if name != "state" and theirs != feature.shape:
                has = f"has {list(theirs)}" if theirs else "has none"
                raise UserError(
                    f"{where}: the checkpoint reads {name!r} of shape {list(feature.shape)}, the environment {has}; "
                    f"choose a checkpoint trained on this environment"
                )


SAME = 1e-3
"""Relative difference up to which bounds and rates are the same: they may have been rounded on their way."""

FASTEST = 10_000.0
"""Highest accepted rate, in steps a second."""

MOST_ACTIONS, MOST_TASKS = 10_000, 100_000

MOST_NUMBER = 3.4028235e38
"""The largest in single precision, in which bounds are used."""


def _check(data: dict[str, Any]) -> None:
    """Refuse sizes, bounds and rates that no robot could live with, wherever they come from."""
    low, high, hz, tasks = (data[name] for name in ("action_low", "action_high", "control_hz", "tasks"))
    bounds = len(low) == len(high) and 0 < len(low) <= MOST_ACTIONS
    bounds = bounds and all(_number(a) and _number(b) and a < b for a, b in zip(low, high, strict=True))
    for name, holds, expected in (
        ("action_low, action_high", bounds, "as many finite numbers in both, each low below its high"),
        ("control_hz", _number(hz) and 0 < hz <= FASTEST, f"a finite number above 0, at most {FASTEST:g}"),
        ("tasks", 0 < len(tasks) <= MOST_TASKS and all(isinstance(task, str) for task in tasks), "names"),
        ("features", "state" in data["features"], "one that is named state"),
        ("features", all(map(_is_feature, data["features"].values())), "a shape of 1 to 100,000, slices within it"),
    ):
        if not holds:
            raise UserError(f"spec.{name}: {str(data.get(name, (low, high)))[:80]}, expected {expected}")


def _slack(bound: float) -> float:
    return SAME * max(abs(bound), SAME)


def _is_feature(feature: dict[str, Any]) -> bool:
    shape, slices = feature["shape"], feature["slices"]
    sizes = len(shape) > 0 and all(type(size) is int and 0 < size <= 100_000 for size in shape)
    inside = sizes and len(slices) <= 1000 and all(map(_is_part, slices.values(), repeat(shape[0])))
    return inside and isinstance(feature["unit"], str)


def _is_part(bounds: Any, size: int) -> bool:
    a, b = bounds
    return type(a) is type(b) is int and 0 <= a < b <= size


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MOST_NUMBER
