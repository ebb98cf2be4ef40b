"""The cameras of the simulated arm, in a process of their own: drawing an image never delays a step of the arm.

The arm writes where everything is after each of its steps (`Scene`). Each camera draws the newest of these at its own
rate, and its image has the time of the step that it shows.
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
from dataclasses import dataclass

import numpy as np

from rl.deploy.stops import SIGNALS
from rl.envs.cameras import CameraUse
from rl.envs.mailbox import Address, Mailbox, forget, new_mailbox
from rl.envs.metaworld.scene import Scene
from rl.envs.workers import end, start

Array = np.ndarray

FIRST_S = 60.0
"""Seconds to wait for the first image: the model is compiled and OpenGL starts."""

NICENESS = 5
"""Drawing yields to the arm and to the control loop when there are more processes than cores."""


@dataclass(frozen=True)
class Filmed:
    """A camera, its rate and its latency."""

    use: CameraUse
    hz: float  # images a second
    latency_s: float = 0.0  # seconds after which an image arrives; its time is that of what it shows


class CameraProcess:
    """The process that draws, seen from the robot.

    Args:
        task: of Meta-World.
        cameras: name -> camera.
        scene: where the arm writes its scene, see `Scene`.
    """

    def __init__(self, task: str, cameras: Mapping[str, Filmed], scene: Address) -> None:
        shapes = {name: (camera.use.height, camera.use.width, 3) for name, camera in cameras.items()}
        addresses = {name: new_mailbox(shape, "uint8") for name, shape in shapes.items()}
        self._images = {name: Mailbox(address) for name, address in addresses.items()}
        self._process: subprocess.Popen[bytes] = start("rl.envs.metaworld.robot_cameras")
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            pickle.dump((task, dict(cameras), scene, addresses), self._process.stdin)
            self._process.stdin.flush()
            self._process.stdout.readline()  # it has opened the mailboxes
        finally:
            for address in addresses.values():
                forget(address)

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def newest(self) -> tuple[dict[str, Array], dict[str, float]]:
        """Return the newest image of each camera, and when it was taken, in seconds of `time.monotonic`."""
        found = {name: mailbox.read() for name, mailbox in self._images.items()}
        return {name: image for name, (image, _) in found.items()}, {name: at for name, (_, at) in found.items()}

    def wait(self, since_s: float) -> None:
        """Wait until each camera has an image of what was there at `since_s` or later.

        Raises:
            ConnectionError: one has none in time, or the process has ended.
        """
        last = time.monotonic() + FIRST_S
        while min(self.newest()[1].values()) < since_s:
            if not self.is_running or time.monotonic() > last:
                raise ConnectionError("the cameras of the simulated robot give no images")
            time.sleep(0.005)

    def close(self) -> None:
        """End the process."""
        end(self._process)


def serve() -> None:
    """Run the process: draw each camera at its rate until the pipe closes."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent handles the signals; the closing pipe ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # everything printed goes to the error stream
    task, cameras, scene_address, addresses = pickle.load(sys.stdin.buffer)
    scene, images = Mailbox(scene_address), {name: Mailbox(address) for name, address in addresses.items()}
    answers.write(b"ready\n")
    answers.flush()
    os.nice(NICENESS)
    _draw(task, cameras, scene, images)


def _draw(task: str, cameras: Mapping[str, Filmed], scene: Mailbox, images: Mapping[str, Mailbox]) -> None:
    import mujoco

    from rl.envs.metaworld.camera import Camera
    from rl.envs.metaworld.fast_sawyer import fast_class

    model = fast_class(f"{task}-v3")(True).model
    drawn = {
        name: Camera(model, camera.use.view, camera.use.height, camera.use.width) for name, camera in cameras.items()
    }
    data = mujoco.MjData(model)
    everything, due = Scene(data), dict.fromkeys(cameras, time.monotonic())
    on_the_way: dict[str, deque[tuple[float, Array, float]]] = {name: deque() for name in cameras}
    while True:
        name = min(due, key=lambda camera: due[camera])
        arrivals = [waiting[0][0] for waiting in on_the_way.values() if waiting]
        # The pipe is readable when it closes.
        next_s = min([due[name], *arrivals]) - time.monotonic()
        if select.select([sys.stdin.buffer], [], [], max(next_s, 0.0))[0]:
            return
        _deliver(on_the_way, images)
        if time.monotonic() < due[name]:
            continue
        values, taken_s = scene.read()
        everything.write(values)
        camera = cameras[name]
        image = drawn[name].render(data, light=camera.use.light)
        on_the_way[name].append((taken_s + camera.latency_s, image, taken_s))
        _deliver(on_the_way, images)
        # A camera that is late skips images instead of hurrying.
        due[name] = max(due[name] + 1 / camera.hz, time.monotonic())


def _deliver(on_the_way: Mapping[str, deque[tuple[float, Array, float]]], images: Mapping[str, Mailbox]) -> None:
    """Write each image that has arrived to the mailbox of its camera, the newest one last."""
    for name, waiting in on_the_way.items():
        while waiting and waiting[0][0] <= time.monotonic():
            _, image, taken_s = waiting.popleft()
            images[name].write(image, taken_s)
