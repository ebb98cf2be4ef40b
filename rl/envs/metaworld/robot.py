"""A simulated Meta-World arm with the interface of a robot, for sim-to-real tests without hardware.

It runs in its own process and in real time. It can differ from the training simulator by fixed amounts: masses,
friction, damping, command gain, a varying delay and sensor noise. The process steps at its own rate: a late command
takes effect late, and without a command for two periods the arm stands still. Its cameras draw in yet another process,
each at its own rate, and can differ too: in position, light and latency.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from rl.deploy.stops import SIGNALS
from rl.envs.cameras import Cameras, CameraUse, Images
from rl.envs.mailbox import Address, Mailbox, forget, new_mailbox
from rl.envs.metaworld.camera_changes import DELAY, LIGHTS, UNCHANGED, changed
from rl.envs.metaworld.events import NOTHING, Event, Perturbed
from rl.envs.metaworld.robot_cameras import CameraProcess, Filmed
from rl.envs.metaworld.scene import Scene
from rl.envs.workers import end, start
from rl.robots.api import NumberRobot, names_of
from world_model.view import View

Array = np.ndarray

PERTURBATION = {"delay_s": 0.0, "jitter_s": 0.0} | {name: v for name, v in NOTHING.items() if name != "delay"}
"""Quantities that can differ from the simulator: those of `NOTHING`, with the delay and its jitter in seconds."""


CAMERA_HZ, MOST_HZ = 20.0, 1000.0
"""Images a second of a camera that runs in real time: by default, and at most."""

MOST_LATENCY_S, MOST_LIGHT = 2.0, 10.0
"""Largest latency of a camera in seconds, and largest factor of its light."""


class SimRobot(NumberRobot):
    """A robot with the members of LeRobot's `Robot`, simulated in another process.

    Args:
        task: of Meta-World.
        seed: of scene 0 and of the jitter; scene `i` has seed `seed + i`.
        hz: control rate; None: Meta-World's 80 Hz.
        paced: True: run in real time. False: step once per command, as fast as possible, with images of each step.
        cameras: name -> values of `View`, and `hz`, its images a second (`CAMERA_HZ` by default); `latency_s`, how late
            an image arrives; `light`, `red` and `blue`, see `camera_changes`. An observation then has the image of
            each, under its name.
        image_size: pixels along each side of an image.
        perturbation: see `PERTURBATION`.
    """

    def __init__(
        self,
        task: str,
        seed: int = 0,
        hz: float | None = None,
        paced: bool = True,
        cameras: Mapping[str, Mapping[str, Any]] | None = None,
        image_size: int = 64,
        **perturbation: float,
    ) -> None:
        from rl.envs.sim import make_spec

        if unknown := sorted(set(perturbation) - set(PERTURBATION)):
            raise TypeError(
                f"unknown {unknown[0]!r}; known: task, seed, hz, paced, cameras, image_size, {', '.join(PERTURBATION)}"
            )
        _check_values({"hz": hz or 1.0, "image_size": image_size, "paced": paced, "seed": seed, **perturbation})
        self.spec = make_spec("metaworld", [task])
        self.control_hz = hz or self.spec.control_hz
        self.instructions = self.spec.instructions
        self.state, self.action = names_of(self.spec)
        self._filmed = {name: _filmed(given, image_size) for name, given in (cameras or {}).items()}
        drawn_here = {} if paced else {name: camera.use for name, camera in self._filmed.items()}
        values = {**PERTURBATION, **perturbation}
        # Without pacing there is no clock, so an image is late by whole steps.
        late = {} if paced else {n: round(c.latency_s * self.control_hz) for n, c in self._filmed.items()}
        self._arguments = task, seed, self.control_hz, paced, values, drawn_here, bool(self._filmed), late
        self._process: subprocess.Popen[bytes] | None = None
        self._cameras: CameraProcess | None = None  # of an arm in real time with cameras
        self.task = task
        self.seed, self.real_time = seed, paced

    @property
    def observation_features(self) -> dict[str, Any]:
        """One number per entry of the state, and the shape of each image."""
        return super().observation_features | {
            name: (camera.use.height, camera.use.width, 3) for name, camera in self._filmed.items()
        }

    @property
    def is_connected(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def connect(self) -> None:
        """Start its process, which begins an episode."""
        self._process = start("rl.envs.metaworld.robot")
        self._ask("begin", *self._arguments)
        if self._filmed and self.real_time:
            scene = new_mailbox((self._ask("scene_size"),), "float64")
            self._ask("show_in", scene)
            try:
                self._cameras = CameraProcess(self.task, self._filmed, scene)
            finally:
                forget(scene)
            self._cameras.wait(0.0)

    def reset(self, scene: int) -> None:
        """Begin an episode; the same number gives the same start."""
        self._ask("reset", self.seed + scene)
        if self._cameras is not None:
            self._cameras.wait(time.monotonic())  # earlier images show the episode before

    def get_observation(self) -> dict[str, Any]:
        """Return the newest frame, its images, its time, and whether the task is solved."""
        frame, stamp, success, images = self._ask("observe")
        numbers = dict(zip(self.state, frame.tolist(), strict=True))
        if self._cameras is None:
            return {**numbers, **images, "timestamp": stamp, "success": success}
        images, stamps = self._cameras.newest()
        return {**numbers, **images, "timestamp": stamp, "timestamps": stamps, "success": success}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Send a command; return it unchanged, since the arm accepts every command."""
        self._ask("act", np.array([action[name] for name in self.action], np.float32))
        return action

    def disconnect(self) -> None:
        """Stop its processes."""
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None
        if self._process is not None:
            end(self._process)
            self._process = None

    def _ask(self, *message: Any) -> Any:
        """Send the name of a method of `Arm` with its arguments; return the answer."""
        process = self._process
        if process is None or process.poll() is not None:
            raise ConnectionError("the simulated robot is not connected")
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(message, process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise ConnectionError("the process of the simulated robot has ended") from error


class Arm:
    """The arm inside the process; without pacing, its clock counts its steps.

    Args:
        task, seed, hz, paced: see `SimRobot`.
        perturbation: a value for each key of `PERTURBATION`.
        cameras: that are drawn in this process, with each observation.
        filmed: whether there are cameras at all: the model then keeps everything that is visible.
        late: camera -> steps by which its images are late.
    """

    def __init__(
        self,
        task: str,
        seed: int,
        hz: float,
        paced: bool,
        perturbation: dict[str, float],
        cameras: Cameras,
        filmed: bool = False,
        late: Mapping[str, int] | None = None,
    ) -> None:
        from rl.envs.metaworld.tasks import MetaWorldTask

        events = {q: Event(q, "startup", v, v) for q, v in perturbation.items() if q in NOTHING}  # type: ignore[arg-type]
        for name, n in (late or {}).items():
            events[f"{name}_{DELAY}"] = Event("image_delay", "startup", n, n, camera=name)
        self.simulated = MetaWorldTask(task, looked_at=filmed)
        self.task, self.cameras = Perturbed(self.simulated, events), cameras
        self.shown: Mailbox | None = None  # where a camera process reads the scene
        self.period, self.paced, self.differs = 1 / hz, paced, perturbation
        self.random = np.random.default_rng(seed)
        self.coming: deque[tuple[float, Array]] = deque()  # (time at which it takes effect, command)
        self.command, self.commanded_at = np.zeros(4, np.float32), -np.inf
        self.newest: tuple[Array, float, bool] = (np.zeros(0), 0.0, False)
        self.reset(seed)
        self.task.images(self.cameras)  # the first image takes a second or two, later ones milliseconds

    def reset(self, seed: int) -> None:
        """Begin an episode; the arm stands still."""
        self._store(self.task.reset(seed), False)
        self.coming.clear()
        self.command, self.due, self.n_steps = np.zeros(4, np.float32), time.monotonic() + self.period, 0

    def observe(self) -> tuple[Array, float, bool, Images]:
        """Return the newest frame (state_dim,), its time in seconds, success, and the images."""
        (frame, stamp, success), images = self.newest, self.task.images(self.cameras)
        return frame, stamp if self.paced else time.monotonic(), success, images

    def act(self, command: Array) -> None:
        """Queue a command; it takes effect after the delay and a random part of the jitter."""
        now = self.commanded_at = self.now()
        self.coming.append((now + self.differs["delay_s"] + self.differs["jitter_s"] * self.random.random(), command))
        if not self.paced:
            self.step(now)

    def step(self, now: float) -> None:
        """Step once with the command that is in effect at `now`, in seconds."""
        while self.coming and self.coming[0][0] <= now + 1e-9:  # 1e-9: sums of periods have rounding errors
            self.command = self.coming.popleft()[1]
        # Two periods without a new command: stand still, once the delay and the jitter have passed too.
        patience = 2 * self.period + self.differs["delay_s"] + self.differs["jitter_s"]
        if self.paced and now - self.commanded_at > patience:
            self.command = np.zeros(4, np.float32)
        self.n_steps += 1
        frame, _, success, *_ = self.task.step(self.command)
        self._store(frame, success)

    def now(self) -> float:
        """Return the arm's time in seconds."""
        return time.monotonic() if self.paced else self.n_steps * self.period

    def _store(self, frame: Array, success: bool) -> None:
        self.newest = frame, time.monotonic(), success
        if self.shown is not None:
            self.shown.write(self.simulated.scene(), self.newest[1])

    def scene_size(self) -> int:
        """Return the count of numbers that say where everything is."""
        return Scene(self.simulated.data).size

    def show_in(self, scene: Address) -> None:
        """From now on write where everything is to a mailbox, after each step."""
        self.shown = Mailbox(scene)
        self.shown.write(self.simulated.scene(), self.newest[1])


def _check_values(values: Mapping[str, Any]) -> None:
    """Raise `TypeError` if a parameter is not of the type of its default, or a negative number."""
    for name, value in values.items():
        if name == "paced":
            fits, expected = isinstance(value, bool), "true or false"
        elif name in ("image_size", "seed"):
            fits, expected = type(value) is int and value >= 0, "a whole number of at least 0"
        else:
            fits, expected = type(value) in (int, float) and 0 <= value < float("inf"), "a number of at least 0"
        if not fits:
            raise TypeError(f"{name}={value!r:.80}: expected {expected}")


def _filmed(given: Mapping[str, Any], size: int) -> Filmed:
    """Return the camera with the values that a config gives; a list of numbers becomes a tuple."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    hz, latency_s = float(values.pop("hz", CAMERA_HZ)), float(values.pop("latency_s", 0.0))
    if not 0 < hz <= MOST_HZ:
        raise TypeError(f"hz={hz:g} of a camera, expected above 0, at most {MOST_HZ:g}")
    if not 0 <= latency_s <= MOST_LATENCY_S:
        raise TypeError(f"latency_s={latency_s:g} of a camera, expected 0 to {MOST_LATENCY_S:g}")
    lights = {name: float(values.pop(name, 1.0)) for name in LIGHTS}
    for name, factor in lights.items():
        if not 0 < factor <= MOST_LIGHT:
            raise TypeError(f"{name}={factor:g} of a camera, expected above 0, at most {MOST_LIGHT:g}")
    use = changed(CameraUse(View(**values), size, size), UNCHANGED | lights)
    return Filmed(use, hz, latency_s)


def serve() -> None:
    """Run the process: answer messages and step the arm on time, until the pipe closes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent handles the signals; the closing pipe ends this process
    # Use the pipe for answers only: everything printed goes to the error stream.
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    arm: Arm | None = None
    while True:
        # Wait for a message, but only until the next step is due.
        left = arm.due - time.monotonic() if arm is not None and arm.paced else None
        if select.select([requests], [], [], None if left is None else max(left, 0.0))[0]:
            try:
                name, *arguments = pickle.load(requests)
            except EOFError:
                return
            if name == "begin":
                arm, answer = Arm(*arguments), None
            else:
                answer = getattr(arm, name)(*arguments)
            pickle.dump(answer, answers)
            answers.flush()
        if arm is not None and arm.paced and time.monotonic() >= arm.due:
            arm.step(time.monotonic())
            arm.due += arm.period
