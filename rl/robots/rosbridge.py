"""A robot behind rosbridge: its topics as numbers and images, over one websocket. This side does not need ROS.

The protocol is rosbridge v2: one JSON object per message, with `op` subscribe, advertise, publish or call_service.
It needs the extra `ros`.
"""

from __future__ import annotations

import json
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rewards.errors import UserError
from rl.robots.api import NumberRobot
from rl.robots.errors import Stop
from rl.robots.ros_images import decode, read_cameras
from world_model.extras import import_extra

Array = np.ndarray
Path = tuple[str | int, ...]
"""Path to a number in a message: names of fields and indices of lists."""

MAX_BYTES = 1 << 20
"""Largest message in bytes; a longer one cannot be a robot's observation, and the connection is closed."""

_PART = re.compile(r"\.(\w+)|\[(\d{1,3})\]")


class RosbridgeRobot(NumberRobot):
    """A robot whose numbers are named by topic and path, such as `/joint_states.position[0]`.

    Args:
        url: of the rosbridge server, such as ws://localhost:9090.
        state: names of the observed numbers.
        action: names of the commanded numbers; all numbers of a topic are published in one message. The indices of a
            list start at 0 and leave none out.
        types: message types of the commanded topics, such as {/cmd: std_msgs/Float64MultiArray}.
        success: name of a boolean that is true when the task is solved; empty: none.
        stamp: name of the time at which the state was measured, such as /joint_states.header.stamp. It has fields sec
            and nanosec, from a clock that is synchronised with this computer's. Topics of the state without it, which
            are all if it is empty, count from their arrival, which does not show delays on the way. The time of an
            observation is the oldest of these.
        reset: service of type std_srvs/Empty that prepares an episode; empty: none.
        hz: control rate, which is compared with the rate of the policy; None: unknown.
        patience_s: seconds to wait for the first message of a topic, or for the answer of a service.
        cameras: name -> topic, height and width, such as {front: {topic: /camera/image/compressed, height: 480,
            width: 640}}. If `stamp` is given, the time of an image is that in its header, else its arrival.

    Raises:
        TypeError: a name is not of that form, a commanded topic has no type or a list with a gap, or a camera is not
            described.
    """

    def __init__(
        self,
        url: str,
        state: Sequence[str],
        action: Sequence[str],
        types: dict[str, str],
        success: str = "",
        stamp: str = "",
        reset: str = "",
        hz: float | None = None,
        patience_s: float = 5.0,
        cameras: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.url, self.state, self.action, self.types = url, tuple(state), tuple(action), dict(types)
        self._places = {name: _place(name) for name in (*state, *action, success, stamp) if name}
        self._commanded = list(dict.fromkeys(self._places[name][0] for name in action))
        if untyped := [topic for topic in self._commanded if topic not in types]:
            raise TypeError(f"types has nothing of the commanded topic {untyped[0]!r}")
        _check_lists(self._places[name] for name in action)
        self._success, self._stamp, self._reset, self._patience_s = success, stamp, reset, patience_s
        if hz is not None:
            self.control_hz = hz
        self._subscribed = sorted({self._places[name][0] for name in (*state, success, stamp) if name})
        self._newest: dict[str, tuple[Any, float]] = {}  # topic -> (newest message, its arrival by `time.monotonic`)
        self._stamped: tuple[Any, float] = (None, math.nan)  # (newest stamp, the same time by `time.monotonic`)
        self.cameras = read_cameras(cameras or {})
        self._filmed = {camera.topic: name for name, camera in self.cameras.items()}
        # Camera -> (newest image, or why it cannot be read; when it was taken, by `time.monotonic`).
        self._images: dict[str, tuple[Array | str, float]] = {}
        self._begun = 0.0  # time of the last reset
        self._call, self._answer = "", False  # id of the pending service call ("": none), and whether it succeeded
        self._changed = threading.Condition()
        self._exit = ExitStack()
        self._connection: Any = None
        self._lost = ""

    @property
    def observation_features(self) -> dict[str, Any]:
        """One number per entry of the state, and the shape of each image."""
        return super().observation_features | {name: (c.height, c.width, 3) for name, c in self.cameras.items()}

    @property
    def is_connected(self) -> bool:
        """Whether the connection to the server is open."""
        return self._connection is not None and not self._lost

    def connect(self) -> None:
        """Connect, subscribe to the observed topics, and wait for the first message of each needed topic.

        Raises:
            UserError: websockets is missing, there is no server, or a topic sends nothing in time.
        """
        client, broken = (
            import_extra(f"websockets.{name}", "ros", "rosbridge needs websockets")
            for name in ("sync.client", "exceptions")
        )
        try:
            # Open the socket here, so that the connection goes to the host in the url, never to a proxy or redirect.
            address = urlsplit(self.url)
            port = address.port or (443 if address.scheme == "wss" else 80)
            opened = self._exit.enter_context(socket.create_connection((address.hostname, port), self._patience_s))
            opened.settimeout(None)
            largest = max([MAX_BYTES, *(camera.max_message for camera in self.cameras.values())])
            options = {"sock": opened, "open_timeout": self._patience_s, "max_size": largest}
            self._connection = self._exit.enter_context(client.connect(self.url, **options))
        except (OSError, ValueError, broken.WebSocketException) as error:
            self._exit.close()
            raise UserError(f"{self.url}: there is no rosbridge ({error}); start it or name another url") from error
        self._lost = ""
        threading.Thread(target=self._listen, daemon=True).start()
        needed = {self._places[name][0] for name in (*self.state, self._stamp) if name}
        # Milliseconds between messages: two per control period are enough.
        throttle = int(500 / self.control_hz) if hasattr(self, "control_hz") else 0
        for topic in (*self._subscribed, *self._filmed):
            self._send({"op": "subscribe", "topic": topic, "queue_length": 1, "throttle_rate": throttle})
        for topic in self._commanded:
            self._send({"op": "advertise", "topic": topic, "type": self.types[topic]})
        if not self._wait(lambda: needed <= self._newest.keys() and self.cameras.keys() <= self._images.keys()):
            dark = [camera.topic for name, camera in self.cameras.items() if name not in self._images]
            silent = sorted({*(needed - self._newest.keys()), *dark})
            self.disconnect()
            raise UserError(f"{self.url}: nothing came on {', '.join(silent)} within {self._patience_s:g} s")

    def reset(self, scene: int) -> None:
        """Call the reset service, if there is one; a success message from before the reset no longer counts.

        Raises:
            ConnectionError: the service did not answer in time, or answered that it failed.
        """
        if self._reset:
            self._call, self._answer = f"reset {scene} {time.monotonic()}", False
            self._send({"op": "call_service", "service": self._reset, "id": self._call, "args": {}})
            if not self._wait(lambda: not self._call) or not self._answer:
                raise ConnectionError(f"the service {self._reset} did not answer that the robot is ready")
        self._begun = time.monotonic()

    def get_observation(self) -> dict[str, Any]:
        """Return the newest numbers, their time, and the newest images and theirs.

        Raises:
            ConnectionError: the connection is closed.
            Stop: the newest image of a camera cannot be read.
        """
        with self._changed:
            self._check()
            newest, images, taken = dict(self._newest), dict(self._images), self._taken()
        found: dict[str, Any] = {name: _look_up(newest, *self._places[name]) for name in self.state}
        found["timestamp"] = taken
        for name, (image, _) in images.items():
            if isinstance(image, str):
                raise Stop(f"{self.cameras[name].topic}: {image}")
            found[name] = image
        if images:
            found["timestamps"] = {name: at for name, (_, at) in images.items()}
        if self._success:
            topic, path = self._places[self._success]
            is_new = newest.get(topic, (None, 0.0))[1] >= self._begun
            found["success"] = is_new and _look_up(newest, topic, path) is True
        return found

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Publish one message on each commanded topic; return the action unchanged.

        Raises:
            ConnectionError: the connection is closed.
        """
        messages: dict[str, Any] = {topic: {} for topic in self._commanded}
        for name in self.action:
            topic, path = self._places[name]
            _put(messages[topic], path, float(action[name]))
        for topic, message in messages.items():
            self._send({"op": "publish", "topic": topic, "msg": message})
        return action

    def disconnect(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._exit.close()
            self._connection = None

    def _taken(self) -> float:
        """Return when the oldest part of the state was measured, in seconds of `time.monotonic`.

        A topic without the robot's stamp counts from its arrival. NaN if the stamp is invalid.
        """
        times = [self._stamped[1]] if self._stamp else []
        stamped = self._places[self._stamp][0] if self._stamp else ""
        topics = {self._places[name][0] for name in self.state}
        times += [self._newest[topic][1] for topic in topics if topic != stamped]
        return float(np.min(times))  # not `min`, which may ignore NaN

    def _note_stamp(self, now: float) -> None:
        """Convert the newest stamp to seconds of `time.monotonic`.

        Each stamp is converted only once: a second conversion would give another time if the wall clock was adjusted.
        """
        stamp = _look_up(self._newest, *self._places[self._stamp])
        if stamp != self._stamped[0]:
            self._stamped = stamp, _converted(stamp, now)

    def _note_image(self, name: str, message: Any, now: float) -> None:
        """Decode a message of a camera; this runs in the thread that listens, so the control loop does not wait."""
        image: Array | str
        try:
            image = decode(message, self.cameras[name])
        except ValueError as error:
            image = str(error)
        taken = now
        if self._stamp:
            header = message.get("header") if isinstance(message, dict) else None
            taken = _converted(header.get("stamp") if isinstance(header, dict) else None, now)
        with self._changed:
            self._images[name] = image, taken
            self._changed.notify_all()

    def _listen(self) -> None:
        """Receive messages in a thread until the connection ends."""
        connection = self._connection
        try:
            for text in connection:
                self._receive(text)
            reason = "it closed the connection"
        except Exception as error:  # any error ends the observations, so the connection counts as lost
            reason = repr(error)
        with self._changed:
            self._lost = reason
            self._changed.notify_all()

    def _receive(self, text: str | bytes) -> None:
        """Store an observation, or the answer of the pending service call; ignore everything else."""
        try:
            message = json.loads(text)
            op, topic, answer = (message.get(key) for key in ("op", "topic", "id"))
        except (ValueError, AttributeError, RecursionError):
            return  # skip an unreadable message; without readable ones, observations get stale and the guard stops
        if op == "publish" and topic in self._filmed:
            self._note_image(self._filmed[topic], message.get("msg"), time.monotonic())
            return
        with self._changed:
            if op == "publish" and topic in self._subscribed:  # a server cannot fill the memory with other topics
                now = time.monotonic()
                self._newest[topic] = message.get("msg"), now
                if self._stamp and topic == self._places[self._stamp][0]:
                    self._note_stamp(now)
            elif op == "service_response" and self._call and answer == self._call:
                self._call, self._answer = "", message.get("result") is True
            self._changed.notify_all()

    def _send(self, message: dict[str, Any]) -> None:
        self._check()
        try:
            self._connection.send(json.dumps(message, allow_nan=False))
        except Exception as error:
            raise ConnectionError(f"{self.url}: {error!r}") from error

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Wait until `condition` holds; return False after `patience_s` or when the connection is lost."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._lost or condition(), self._patience_s)) and not self._lost

    def _check(self) -> None:
        if not self.is_connected:
            raise ConnectionError(f"{self.url}: not connected; {self._lost or 'it never was'}")


def _converted(stamp: Any, now: float) -> float:
    """Return a stamp of ROS in seconds of `time.monotonic`, which is `now`; NaN if it is none."""
    try:
        return now - time.time() + float(stamp["sec"]) + 1e-9 * float(stamp["nanosec"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return math.nan


def _place(name: str) -> tuple[str, Path]:
    """Split a name such as `/joint_states.position[0]` into the topic and the path in its messages."""
    topic, parts = name, ""
    if (cut := re.search(r"[.\[]", name)) is not None:
        topic, parts = name[: cut.start()], name[cut.start() :]
    found = list(_PART.finditer(parts))
    if not topic.startswith("/") or not found or "".join(part[0] for part in found) != parts or found[0][1] is None:
        raise TypeError(f"{name!r} is not of the form /topic.field[0]")
    return topic, tuple(part[1] if part[1] is not None else int(part[2]) for part in found)


def _check_lists(places: Iterable[tuple[str, Path]]) -> None:
    """Check that the commanded numbers leave out no index of a list: what is left out would be published as 0.

    Raises:
        TypeError: one is left out.
    """
    lists: dict[tuple[str, Path], set[int]] = {}  # (topic, path of a list) -> indices in it
    for topic, path in places:
        for i, key in enumerate(path):
            if isinstance(key, int):
                lists.setdefault((topic, path[:i]), set()).add(key)
    for (topic, path), indices in lists.items():
        if gaps := set(range(max(indices))) - indices:
            name = topic + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in (*path, min(gaps)))
            raise TypeError(f"action has nothing of {name}, which would be published as 0; name every index from 0 on")


def _look_up(newest: dict[str, tuple[Any, float]], topic: str, path: Path) -> Any:
    """Return the value at a path of the newest message; None if it is missing, and the guard then stops the robot."""
    value = newest.get(topic, (None, 0.0))[0]
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _put(message: Any, path: Path, value: float) -> None:
    """Set a number in a message; create the lists and objects on its path."""
    for key, following in zip(path, (*path[1:], None), strict=True):
        # An index: make the list long enough; the other numbers of `action` fill it, see `_check_lists`.
        if isinstance(key, int):
            message.extend([0.0] * (key + 1 - len(message)))
        if following is None:
            message[key] = value
            return
        # The next key decides whether a list or an object comes here.
        new: Any = [] if isinstance(following, int) else {}
        if isinstance(key, int):
            message[key] = message[key] or new
        else:
            message.setdefault(key, new)
        message = message[key]
