"""Robots with the members of LeRobot's `Robot`, found by name, and the mapping between their numbers and a policy's."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from rewards.errors import UserError, blamed, did_you_mean, file_of
from rewards.plugins import check_params, known, load
from rl.robots.errors import NOT_NUMBERS, Stop
from rl.robots.images import cameras_of, check_image, fitted_image, image_differences, is_image
from world_model.spec import IMAGES, STATE, Spec

Array = np.ndarray

BUILTIN = {
    "fake": "rl.robots.fake:FakeRobot",
    "sim": "rl.envs.metaworld.robot:SimRobot",
    "rosbridge": "rl.robots.rosbridge:RosbridgeRobot",
}
"""Built-in robots: name -> module:class, imported only when one is used."""

MEMBERS = (
    *("observation_features", "action_features", "is_connected"),
    *("connect", "get_observation", "send_action", "disconnect"),
)
"""Members that a class must have to be a `Robot`."""


class Robot(Protocol):
    """The members of LeRobot's `Robot` that this project uses. Observations and actions are dicts: name -> number.

    An observation may also hold images: name of a camera -> (height, width, 3) uint8.

    Optional members:

    - `control_hz`: it is compared with the rate of the policy.
    - `reset(scene)`: prepares an episode; if the robot can repeat a start, the same number gives the same start.
    - `real_time`: False for a robot that waits for each command, as a simulator can.
    - `instructions`: name of a task -> sentence, for policies that read language.

    Optional keys of an observation: `timestamp`, when it was taken, in seconds of `time.monotonic`; `timestamps`, when
    the image of each camera was taken, as a dict by its name; `success` and `failure`, which end the episode if true.
    """

    @property
    def observation_features(self) -> dict[str, Any]:
        """Name -> `float` for a number, or the shape of an image."""

    @property
    def action_features(self) -> dict[str, Any]:
        """Name -> `float`."""

    @property
    def is_connected(self) -> bool:
        """Whether the robot is connected."""

    def connect(self) -> None:
        """Connect; also calibrate and configure the robot if it needs that, as LeRobot's robots do."""

    def get_observation(self) -> dict[str, Any]:
        """Return the newest observation."""

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Send a command; return the action that was really sent, in the same units. That one is recorded."""

    def disconnect(self) -> None:
        """Disconnect; the robot stands still by then."""


class NumberRobot:
    """Base class of robots that only have numbers, with the names in `state` and `action`."""

    state: tuple[str, ...]
    action: tuple[str, ...]

    @property
    def observation_features(self) -> dict[str, Any]:
        """One number per entry of the state."""
        return dict.fromkeys(self.state, float)

    @property
    def action_features(self) -> dict[str, Any]:
        """One number per entry of an action."""
        return dict.fromkeys(self.action, float)


@dataclass(frozen=True)
class RobotMap:
    """The robot's names for the numbers of the policy, in the policy's order, and their scales and offsets."""

    state: tuple[str, ...] = ()  # a name for each entry of the state; empty: the names of the spec, see `names_of`
    action: tuple[str, ...] = ()  # a name for each entry of an action; empty: those of the spec as well
    scale: dict[str, float] = field(default_factory=dict)  # by the robot's name: policy = scale * robot + offset
    offset: dict[str, float] = field(default_factory=dict)  # by the robot's name, see scale
    images: dict[str, str] = field(default_factory=dict)  # camera of the policy -> camera of the robot, if they differ
    # Camera of the policy -> top, left, height, width of a part of the robot's image, in pixels. The policy sees the
    # largest middle part of it with the shape of its own image, scaled down. By default, of the whole image.
    crop: dict[str, list[int]] = field(default_factory=dict)


def names_of(spec: Spec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the default names of state and action: those in the recordings that the policy was trained on.

    Without names there: the slice and the index in it, such as `hand_pos.0`, and `action.0`, `action.1`, ...
    """
    names = [f"state.{i}" for i in range(spec.state_dim)]
    for name, part in spec.slices.items():
        for i in range(part.start, part.stop):
            names[i] = f"{name}.{i - part.start}"
    actions = tuple(f"action.{i}" for i in range(spec.action_dim))
    return spec.features[STATE].names or tuple(names), spec.action_names or actions


def slices_of(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the named parts of a state, (start, stop) by name, from the names of its numbers; see `names_of`.

    A part is a run of names such as `hand_pos.0`, `hand_pos.1`.
    """
    parts: dict[str, tuple[int, int]] = {}
    for i, name in enumerate(names):
        part, _, index = name.rpartition(".")
        if part and index == "0" and part not in parts:
            parts[part] = (i, i + 1)
        elif part in parts and parts[part][1] == i and index == str(i - parts[part][0]):
            parts[part] = (parts[part][0], i + 1)
    return parts


class Interface:
    """Converts between a robot and a policy: frames and actions in the order, units and signs of the policy's training.

    Images are cropped and scaled down to the size that the policy reads.

    Args:
        robot: a connected robot.
        spec: of the policy.
        mapping: names, scales and offsets.
        hz: control rate of the loop.

    Raises:
        UserError: robot and policy differ, see `differences`.
    """

    def __init__(self, robot: Robot, spec: Spec, mapping: RobotMap, hz: float) -> None:
        self.robot, self.spec = robot, spec
        # The watchdog sends from its own thread, but few robots allow calls from two threads at the same time.
        self._calling, self._begun, self._patience_s = threading.Lock(), 0.0, 1 / hz
        if found := differences(robot, spec, mapping, hz):
            rows = "; ".join(f"{name}: expected {policy}, found {theirs}" for name, policy, theirs in found)
            raise UserError(f"the robot is not what the policy expects, nothing was sent: {rows}")
        self.state_names, self.action_names = _names(spec, mapping)
        self.camera_names = cameras_of(spec, mapping.images)  # feature -> camera of the robot
        offered = robot.observation_features
        self.cameras = {name: tuple(shape) for name, shape in offered.items() if is_image(shape)}  # all of the robot
        self._crops = {name: tuple(mapping.crop.get(name.removeprefix(IMAGES), ())) for name in self.camera_names}
        self._scale, self._offset = (
            {name: values.get(name, default) for name in (*self.state_names, *self.action_names)}
            for values, default in ((mapping.scale, 1.0), (mapping.offset, 0.0))
        )

    def observe(self) -> tuple[list[Any], dict[str, Array], Any, Mapping[str, Any]]:
        """Return the state, the images by feature, the time in seconds, and the robot's observation.

        The images have been checked, everything else is unchecked.

        Raises:
            Stop: the observation is not a dict, or an image that the policy reads is missing, or none in colour.
        """
        with self._turn():
            observation = self.robot.get_observation()
        if not isinstance(observation, Mapping):
            raise Stop(f"the observation is no dict of numbers by name: {repr(observation)[:60]}")
        state = [self._ours(name, observation.get(name)) for name in self.state_names]
        images = {}
        for name, camera in self.camera_names.items():
            check_image(name, observation.get(camera), self.cameras[camera])
            images[name] = fitted_image(name, observation[camera], self.spec.features[name].shape, self._crops[name])
        return state, images, observation.get("timestamp", time.monotonic()), observation

    def send(self, command: Array) -> list[Any]:
        """Send a command (action_dim,), converted to the names and units of the robot.

        Returns:
            The action (action_dim,) that the robot reports as sent, unchecked. An entry that it does not report counts
            as sent unchanged.
        """
        sent = dict(zip(self.action_names, command.tolist(), strict=True))
        with self._turn():
            taken = self.robot.send_action({n: (v - self._offset[n]) / self._scale[n] for n, v in sent.items()})
        if taken is None:
            return [*sent.values()]
        if not isinstance(taken, Mapping):
            return [repr(taken)]  # not a number, so the guard refuses it
        found = {name: self._ours(name, taken.get(name)) for name in sent}
        # None (v is None) and NaN (v != v) mean that the robot reports nothing for this entry.
        return [sent[n] if v is None or (isinstance(v, float) and v != v) else v for n, v in found.items()]

    def action_of(self, given: Mapping[str, Any]) -> list[Any]:
        """Return an action by the robot's names, in its units, as one of the policy (action_dim,), unchecked."""
        return [self._ours(name, given.get(name)) for name in self.action_names]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for another thread's call to return, but at most until that call has taken one period.

        A call that takes longer hangs. The watchdog must not wait for it, so it goes on without the lock.
        """
        left = self._begun + self._patience_s - time.monotonic()
        acquired = self._calling.acquire(timeout=min(max(left, 0.0), self._patience_s))
        self._begun = time.monotonic()
        try:
            yield
        finally:
            if acquired:
                self._calling.release()

    def _ours(self, name: str, value: Any) -> Any:
        """Convert a number of the robot to the policy's unit; return anything else unchanged, the guard refuses it."""
        if isinstance(value, bool | np.bool_ | str | bytes):  # `float` would accept these
            return value
        try:
            return self._scale[name] * float(value) + self._offset[name]
        except NOT_NUMBERS:
            return value


def differences(robot: Robot, spec: Spec, mapping: RobotMap, hz: float) -> list[tuple[str, str, str]]:
    """Return all differences between a robot and what a policy of `spec` expects, as rows (what, expected, found)."""
    found = []
    # Names: as many as the policy has entries, each once, and each a number of the robot.
    for what, names, size, features in zip(
        ("state", "action"),
        _names(spec, mapping),
        (spec.state_dim, spec.action_dim),
        (robot.observation_features, robot.action_features),
        strict=True,
    ):
        if len(names) != size:
            found.append((f"{what}, size", str(size), f"{len(names)} names in the map"))
        if twice := sorted({name for name in names if names.count(name) > 1}):
            found.append((f"{what}, names", "each once", f"{twice[0]} twice in the map"))
        found += _by_part(
            (name, "a number", _offer(name, features)) for name in names if features.get(name) is not float
        )
    found += image_differences(spec, mapping.images, mapping.crop, robot.observation_features)
    # Every action of the robot must be commanded; additional observations do no harm.
    state, action = _names(spec, mapping)
    found += [
        (name, "no such action", "one that has to be sent") for name in robot.action_features if name not in action
    ]
    theirs = getattr(robot, "control_hz", hz)
    if not np.isclose(theirs, hz):
        found.append(("rate", f"{hz:g} Hz", f"{theirs:g} Hz"))
    # Scales and offsets: for known names only, and invertible, since commands are converted back.
    for name in sorted({*mapping.scale, *mapping.offset}):
        scale, offset = mapping.scale.get(name, 1.0), mapping.offset.get(name, 0.0)
        if name not in (*state, *action):
            found.append((name, "no such name", "a scale or offset in the map"))
        elif scale == 0 or not np.isfinite([scale, offset]).all():
            found.append((name, "a scale that can be undone", f"{scale:g}, offset {offset:g}"))
    return found


def _by_part(rows: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """Merge neighbouring rows that differ only in the index: one row `image.0 ... image.511` instead of 512."""
    for (_, expected, found), group in groupby(rows, lambda row: (row[0].rpartition(".")[0] or row[0], *row[1:])):
        names = [name for name, _, _ in group]
        yield names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}", expected, found


def make_robot(name: str, params: Mapping[str, Any], task: str = "") -> Robot:
    """Return the robot that a config names.

    Args:
        name: `fake`, `sim`, `rosbridge`, `path.py:Class`, `module:Class`, an entry point of the group `wamtune.robots`,
            or the name of a robot of LeRobot.
        params: arguments of its constructor.
        task: of the session; it is passed to a constructor with a parameter `task`.

    Raises:
        UserError: there is no such robot, its parameters do not fit or name another task, or it lacks a member.
    """
    if ":" not in name and name not in known("robot", BUILTIN):
        return _from_lerobot(name, params)
    who = f"robot={name}"
    maker = load("robot", name, BUILTIN, who, key="robot")
    params = with_task(maker, params, task)
    if name in BUILTIN:
        return _built(name, maker, params)
    check_params(who, name, maker, params, n_given=0)
    with blamed(who, file_of(maker)):
        robot: Robot = maker(**params)
    # Check the class first: reading a property of the object may call the robot, which is not connected yet.
    if missing := [member for member in MEMBERS if not hasattr(type(robot), member) and not hasattr(robot, member)]:
        raise UserError(
            f"{who}: {type(robot).__name__} has no {', '.join(missing)}; "
            f"expected the members of LeRobot's Robot: {', '.join(MEMBERS)}"
        )
    return robot


def _built(name: str, maker: Callable[..., Robot], params: Mapping[str, Any]) -> Robot:
    try:
        return maker(**params)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"robot={name}: its parameters {dict(params)} do not fit: {error}") from error


def with_task(maker: Callable[..., Any], params: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """Add the session's task to the parameters if the constructor has a parameter `task`.

    Raises:
        UserError: the parameters name another task.
    """
    if not task or "task" not in inspect.signature(maker).parameters:
        return params
    if (theirs := params.get("task", task)) != task:
        raise UserError(
            f"params.task={theirs}: expected {task}, the task that the session runs and records; "
            f"leave params.task out, and say task={theirs} if that is what you mean"
        )
    return {**params, "task": task}


def _from_lerobot(name: str, params: Mapping[str, Any]) -> Robot:
    try:
        robots = importlib.import_module("lerobot.robots")
    except ImportError as error:
        names = known("robot", BUILTIN)
        raise UserError(
            f"robot={name}: expected {', '.join(names)}, or a robot of LeRobot (pip install lerobot)"
            f"{did_you_mean(name, names)}; for your own write robot=path.py:Class or robot=module:Class"
        ) from error
    import_modules(robots)  # LeRobot registers a robot when its module is imported, and third-party robots by a call
    with suppress(ImportError, AttributeError):
        importlib.import_module("lerobot.utils.import_utils").register_third_party_plugins()
    choices = robots.RobotConfig.get_known_choices()
    if name not in choices:
        hint = did_you_mean(name, [*known("robot", BUILTIN), *choices])
        raise UserError(f"robot={name}: unknown to LeRobot, which knows {', '.join(sorted(choices))}{hint}")
    try:
        make, choice = robots.make_robot_from_config, robots.RobotConfig.get_choice_class(name)
        return _built(name, lambda **values: make(choice(**values)), params)
    except ImportError as error:
        raise UserError(f"robot={name}: {error}") from error


def import_modules(package: ModuleType) -> None:
    """Import the modules of a package, except those that need a library which is missing."""
    for module in pkgutil.iter_modules(package.__path__):
        with suppress(ImportError):
            importlib.import_module(f"{package.__name__}.{module.name}")


def _names(spec: Spec, mapping: RobotMap) -> tuple[tuple[str, ...], tuple[str, ...]]:
    state, action = names_of(spec)
    return mapping.state or state, mapping.action or action


def _offer(name: str, features: Mapping[str, Any]) -> str:
    if name not in features:
        return f"no such; it has {', '.join(features)}"[:80]
    return f"an image {features[name]}" if is_image(features[name]) else "a number"
