"""Features, action bounds, tasks and control rate of an environment or a model, as stored in `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import repeat
from math import isclose
from typing import Any

from rewards.errors import UserError, closest_or_known


@dataclass(frozen=True)
class Feature:
    """One observed quantity, such as the state vector.

    `slices` names parts of it by (start, stop), such as `{"object_pos": (4, 7)}`; reward terms use these names.
    """

    shape: tuple[int, ...]
    unit: str = ""
    slices: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """Observation features, action bounds, tasks and rate: the contract between a model and an environment.

    `features` has the keys of an observation (`state`, image features); `action_low` and `action_high` have one number
    for each action dimension; `control_hz` is the number of actions per second.
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
        """Rebuild a spec from the result of `to_dict`.

        Raises:
            UserError: a key is missing, or a size, bound or rate is impossible.
        """
        try:
            _check(data)
            features = {
                key: Feature(tuple(f["shape"]), f["unit"], {k: (v[0], v[1]) for k, v in f["slices"].items()})
                for key, f in data["features"].items()
            }
            return Spec(
                features=features,
                action_low=tuple(data["action_low"]),
                action_high=tuple(data["action_high"]),
                tasks=tuple(data["tasks"]),
                control_hz=float(data["control_hz"]),
            )
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"spec: it does not describe features, bounds, tasks and rate: {error!r:.80}") from error

    def check_fits(self, env: Spec, where: str) -> None:
        """Check that a model with this spec can act in an environment with spec `env`.

        The environment may have more features and wider action bounds. Its rate must be the same, and the model must
        know all its tasks. `where` begins the message.

        Raises:
            UserError: it cannot; the message has both values.
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
        """Require every feature of the model except the state vector (the images) in the environment, same shape."""
        for name, feature in self.features.items():
            theirs = env.features[name].shape if name in env.features else None
            if name != "state" and theirs != feature.shape:
                has = f"has {list(theirs)}" if theirs else "has none"
                raise UserError(
                    f"{where}: the checkpoint reads {name!r} of shape {list(feature.shape)}, the environment {has}; "
                    f"choose a checkpoint trained on this environment"
                )


SAME = 1e-3
"""Relative difference up to which bounds and rates count as equal, because a file may hold rounded values."""

FASTEST = 10_000.0
"""Highest accepted rate, in steps per second."""

MOST_ACTIONS, MOST_TASKS = 10_000, 100_000
"""Largest accepted number of action dimensions, and of tasks."""

MOST_NUMBER = 3.4028235e38
"""Largest finite number in single precision (float32), the type of the action bounds in use."""


def _check(data: dict[str, Any]) -> None:
    """Raise `UserError` for impossible sizes, bounds or rates: `data` may come from a damaged or hostile file."""
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
    """Return the absolute tolerance of an action bound; it stays above 0 for a bound of 0."""
    return SAME * max(abs(bound), SAME)


def _is_feature(feature: dict[str, Any]) -> bool:
    shape, slices = feature["shape"], feature["slices"]
    sizes = len(shape) > 0 and all(type(size) is int and 0 < size <= 100_000 for size in shape)
    inside = sizes and len(slices) <= 1000 and all(map(_is_part, slices.values(), repeat(shape[0])))
    return inside and isinstance(feature["unit"], str)


def _is_part(bounds: Any, size: int) -> bool:
    """Whether `bounds` is a non-empty slice (start, stop) of a dimension of `size`."""
    a, b = bounds
    return type(a) is type(b) is int and 0 <= a < b <= size


def _number(value: Any) -> bool:
    """Whether `value` is an int or float (not a bool) that is finite in float32; false for NaN."""
    return type(value) in (int, float) and abs(value) <= MOST_NUMBER
