"""Features, action bounds, tasks and control rate of an environment or a model, as stored in `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from math import isclose
from typing import Any

from rewards.errors import UserError, closest_or_known

STATE, LATENTS = "state", "latents"
"""Names of two features: the state vector, which every environment has, and the codes that a world model makes of
images."""

ENVIRONMENT_STATE = "environment_state"
"""Name of a feature: the part of a simulator's state that the robot does not measure itself, such as where objects are.

Policies of LeRobot read it beside `state`, which is then the robot alone.
"""

VECTORS = (STATE, ENVIRONMENT_STATE)
"""The features that hold the numbers of a simulator's state, in the order in which they are joined."""

IMAGES = "images."
"""Beginning of the name of an image feature, such as `images.front`; the rest is the name of the camera."""


@dataclass(frozen=True)
class Feature:
    """One observed quantity: the state vector, the image of a camera, or codes of images.

    `slices` names parts of a vector by (start, stop), such as `{"object_pos": (4, 7)}`; reward terms use these names.
    `names` has what the robot calls each number of a vector, such as `elbow_flex.pos`; empty if that is not known.
    """

    shape: tuple[int, ...]
    unit: str = ""
    slices: dict[str, tuple[int, int]] = field(default_factory=dict)
    dtype: str = "float32"  # float32, or uint8 for an image of shape (height, width, 3)
    every: int = 1  # steps between new values, for a camera slower than the control loop; they repeat in between
    names: tuple[str, ...] = field(default=(), compare=False)


def periods(features: Mapping[str, Feature]) -> dict[str, int]:
    """Return `every` of the features that are slower than the control loop, by name; see `Episode.every`."""
    return {name: feature.every for name, feature in features.items() if feature.every > 1}


@dataclass(frozen=True)
class Spec:
    """Observation features, action bounds, tasks and rate: the contract between a model and an environment.

    `features` has the keys of an observation: `state`, and one `images.CAMERA` for each camera; `action_low` and
    `action_high` have one number for each action dimension; `control_hz` is the number of actions per second.
    `instructions` says in a sentence what the robot is asked to do, by the name of the task; see `instruction`.
    `wordings` has further sentences for the same tasks, for the training of models that read sentences. `action_names`
    has what the robot calls each number of an action; empty if that is not known.
    """

    features: dict[str, Feature]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    tasks: tuple[str, ...]
    control_hz: float
    instructions: dict[str, str] = field(default_factory=dict, compare=False)
    wordings: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    action_names: tuple[str, ...] = field(default=(), compare=False)

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the image features, such as `images.front`."""
        return tuple(name for name in self.features if name.startswith(IMAGES))

    def instruction(self, task: str) -> str:
        """Return what the robot is asked to do in a task; without an entry in `instructions`, the words of its name.

        An empty sentence there stays empty: then a policy is not told what to do.
        """
        return self.instructions.get(task, task.replace("-", " ").replace("_", " "))

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

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the features in `VECTORS` that there are: `state`, and `environment_state` where it is apart."""
        return tuple(name for name in VECTORS if name in self.features)

    @property
    def vector_slices(self) -> dict[str, slice]:
        """Named parts of the vectors, joined in the order of `vectors`; without `environment_state` those of `slices`.

        Reward terms use these names, so that a part has one name whichever feature it is in.
        """
        found: dict[str, slice] = {}
        begin = 0
        for feature in (self.features[name] for name in self.vectors):
            found |= {name: slice(begin + a, begin + b) for name, (a, b) in feature.slices.items()}
            begin += feature.shape[0]
        return found

    @property
    def parts(self) -> dict[str, slice]:
        """The `vector_slices`, for the limits of a robot; a state without any, as of joints, is the part `state`."""
        whole = {} if self.slices else {STATE: slice(0, self.state_dim)}
        return whole | self.vector_slices

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
                key: Feature(
                    tuple(f["shape"]),
                    f["unit"],
                    {k: (v[0], v[1]) for k, v in f["slices"].items()},
                    f.get("dtype", "float32"),  # older specs have neither dtype nor every nor names
                    f.get("every", 1),
                    tuple(f.get("names", ())),
                )
                for key, f in data["features"].items()
            }
            return Spec(
                features=_named(features),
                action_low=tuple(data["action_low"]),
                action_high=tuple(data["action_high"]),
                tasks=tuple(data["tasks"]),
                control_hz=float(data["control_hz"]),
                instructions=dict(data.get("instructions", {})),
                wordings={task: tuple(of) for task, of in data.get("wordings", {}).items()},
                action_names=tuple(data.get("action_names", ())),
            )
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"spec: it does not describe features, bounds, tasks and rate: {error!r:.80}") from error

    def check_fits(self, env: Spec, where: str, what: str = "checkpoint") -> None:
        """Check that a model with this spec can act in an environment with spec `env`.

        The environment may have more features and wider action bounds. Its rate must be the same, and the model must
        know all its tasks. `where` begins the message, and `what` is the word for the model.

        Raises:
            UserError: it cannot; the message has both values.
        """
        for name, mine, theirs in (
            ("observation", self.state_dim, env.state_dim),
            ("action", self.action_dim, env.action_dim),
        ):
            if mine != theirs:
                raise UserError(
                    f"{where}: the {what} has {name} size {mine}, the environment has {name} size {theirs}; "
                    f"choose a {what} trained on this environment, or name that of the {what} (env.simulator, env.id)"
                )
        self._check_others(env, where, what)
        for i, (low, high, least, most) in enumerate(
            zip(self.action_low, self.action_high, env.action_low, env.action_high, strict=True)
        ):
            if low < least - _slack(least) or high > most + _slack(most):
                raise UserError(
                    f"{where}: action {i} of the {what} is from {low:g} to {high:g}, the environment clips it to "
                    f"{least:g} to {most:g}; widen the bounds of the environment or choose a {what} trained on it"
                )
        if not isclose(self.control_hz, env.control_hz, rel_tol=SAME):
            raise UserError(
                f"{where}: the {what} acts at {self.control_hz:g} Hz, the environment runs at "
                f"{env.control_hz:g} Hz; change the rate of the environment or choose a {what} trained on it"
            )
        unknown = sorted(set(env.tasks) - set(self.tasks))
        if unknown:
            raise UserError(
                f"{where}: task {unknown[0]!r} is unknown to the {what}; {closest_or_known(unknown[0], self.tasks)}"
            )

    def _check_others(self, env: Spec, where: str, what: str) -> None:
        """Require every feature of the model except the state vector (the images) in the environment, just the same."""
        for name, feature in self.features.items():
            theirs = env.features.get(name)
            if name == STATE:
                continue
            if theirs is None or theirs.shape != feature.shape:
                has = f"has {list(theirs.shape)}" if theirs else "has none"
                raise UserError(
                    f"{where}: the {what} reads {name!r} of shape {list(feature.shape)}, the environment {has}; "
                    f"choose a {what} trained on this environment, or name that of the {what} (env.simulator, env.id)"
                )
            if theirs.every != feature.every:
                raise UserError(
                    f"{where}: the {what} reads a new {name!r} every {feature.every} steps, the environment has "
                    f"one every {theirs.every}; change `every` of that feature of the environment"
                )


SAME = 1e-3
"""Relative difference up to which bounds and rates count as equal, because a file may hold rounded values."""

FASTEST = 10_000.0
"""Highest accepted rate, in steps per second."""

MOST_ACTIONS, MOST_TASKS = 10_000, 100_000
"""Largest accepted number of action dimensions, and of tasks."""

MOST_WORDINGS = 10_000
"""Largest accepted number of further wordings of a task."""

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
        ("tasks", 0 < len(tasks) <= MOST_TASKS and not isinstance(tasks, str) and all(map(_is_name, tasks)), "names"),
        ("features", STATE in data["features"], "one that is named state"),
        ("features", all(map(_is_feature, data["features"].values())), "a shape of 1 to 100,000, slices within it"),
        ("features", all(map(_is_typed, *zip(*data["features"].items(), strict=True))), "images of uint8 (., ., 3)"),
        ("instructions", _are_sentences(data.get("instructions", {})), "task -> sentence"),
        ("wordings", _are_wordings(data.get("wordings", {})), "task -> list of sentences"),
        ("action_names", _are_names(data.get("action_names", ()), len(low)), "none, or one for each number, each once"),
    ):
        if not holds:
            raise UserError(f"spec.{name}: {str(data.get(name, (low, high)))[:80]}, expected {expected}")


def _slack(bound: float) -> float:
    """Return the absolute tolerance of an action bound; it stays above 0 for a bound of 0."""
    return SAME * max(abs(bound), SAME)


def _named(features: dict[str, Feature]) -> dict[str, Feature]:
    """Give codes of images a feature of their own; older specs have them as the last slice of the state vector."""
    old = "image"
    state = features[STATE]
    if old not in state.slices:
        return features
    first, last = state.slices[old]
    if last != state.shape[0]:
        return features
    slices = {name: part for name, part in state.slices.items() if name != old}
    vector = replace(state, shape=(first,), unit=state.unit.partition("; image")[0], slices=slices)
    rest = {name: feature for name, feature in features.items() if name not in (STATE, old)}
    return {STATE: vector, LATENTS: Feature((last - first,), "codes"), **rest}


def _is_feature(feature: dict[str, Any]) -> bool:
    shape, slices = feature["shape"], feature["slices"]
    # An environment with images alone has a state vector of length 0.
    sizes = len(shape) > 0 and all(type(size) is int and 0 <= size <= 100_000 for size in shape)
    inside = sizes and len(slices) <= 1000 and all(map(_is_part, slices.values(), repeat(shape[0])))
    return inside and isinstance(feature["unit"], str) and _are_names(feature.get("names", ()), shape[0])


def _is_typed(name: str, feature: dict[str, Any]) -> bool:
    """Whether type and period of a feature are possible: images are uint8 (height, width, 3), the others float32."""
    every, dtype, shape = feature.get("every", 1), feature.get("dtype", "float32"), feature["shape"]
    image = dtype == "uint8" and len(shape) == 3 and shape[2] == 3 and min(shape) > 0
    return type(every) is int and every >= 1 and (image if name.startswith(IMAGES) else dtype == "float32")


def _is_name(name: Any) -> bool:
    return isinstance(name, str)


def _are_names(names: Any, n: int) -> bool:
    """Whether `names` is empty or has `n` names, each once."""
    return isinstance(names, list | tuple) and all(map(_is_name, names)) and len(names) == len({*names}) in (0, n)


def _are_sentences(instructions: Any) -> bool:
    """Whether `instructions` maps names to sentences."""
    return isinstance(instructions, dict) and all(isinstance(x, str) for pair in instructions.items() for x in pair)


def _are_wordings(wordings: Any) -> bool:
    """Whether `wordings` maps names to at most `MOST_WORDINGS` sentences each."""
    return isinstance(wordings, dict) and all(
        isinstance(task, str)
        and isinstance(of, list | tuple)
        and len(of) <= MOST_WORDINGS
        and all(isinstance(sentence, str) for sentence in of)
        for task, of in wordings.items()
    )


def _is_part(bounds: Any, size: int) -> bool:
    """Whether `bounds` is a non-empty slice (start, stop) of a dimension of `size`."""
    a, b = bounds
    return type(a) is type(b) is int and 0 <= a < b <= size


def _number(value: Any) -> bool:
    """Whether `value` is an int or float (not a bool) that is finite in float32; false for NaN."""
    return type(value) in (int, float) and abs(value) <= MOST_NUMBER
