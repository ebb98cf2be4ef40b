"""A robot behind rosbridge: its topics as numbers, over one websocket, with no ROS on this side.

The protocol is rosbridge v2: a JSON object a message, with `op` subscribe, advertise, publish and call_service. Needs
the extra `ros`.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

from rewards.errors import UserError
from rl.robots.api import NumberRobot
from world_model.extras import pip_line

Path = tuple[str | int, ...]
"""Where a number stands in a message: names of fields and places in lists."""

MAX_BYTES = 1 << 20
"""A longer message is no observation of a robot; the connection is closed."""

_PART = re.compile(r"\.(\w+)|\[(\d{1,3})\]")


class RosbridgeRobot(NumberRobot):
    """Numbers by where they stand: `/joint_states.position[0]` is a topic and a place in its messages.

    Args:
        url: of the rosbridge server, such as ws://localhost:9090.
        state: what is observed.
        action: what is commanded; everything of a topic is published in one message.
        types: of the topics that are commanded, such as {/cmd: std_msgs/Float64MultiArray}.
        success: where the robot says that the task is solved; empty: nowhere.
        stamp: where the time is at which the state was taken, with sec and nanosec of a clock that agrees with the one
            here, such as /joint_states.header.stamp; empty: when the oldest message came, which does not show a delay.
        reset: service, of type std_srvs/Empty, that makes it ready for an episode; empty: there is none.
        hz: of its control, to be compared with that of the policy; None: unknown.
        patience_s: how long a first message, or the answer of a service, may take.

    Raises:
        TypeError: a name is not of that form, or a topic has no type.
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
    ) -> None:
        self.url, self.state, self.action, self.types = url, tuple(state), tuple(action), dict(types)
        self._places = {name: _place(name) for name in (*state, *action, success, stamp) if name}
        self._commanded = list(dict.fromkeys(self._places[name][0] for name in action))
        if untyped := [topic for topic in self._commanded if topic not in types]:
            raise TypeError(f"types has nothing of the commanded topic {untyped[0]!r}")
        self._success, self._stamp, self._reset, self._patience_s = success, stamp, reset, patience_s
        if hz is not None:
            self.control_hz = hz
        self._subscribed = sorted({self._places[name][0] for name in (*state, success, stamp) if name})
        self._heard: dict[str, tuple[Any, float]] = {}  # by topic: message, and when it came
        self._stamped: tuple[Any, float] = (None, math.nan)  # the newest stamp, and the same by the clock of here
        self._begun = 0.0  # when it was made ready for the episode
        self._call, self._answer = "", False  # the newest call of a service, and its answer
        self._changed = threading.Condition()
        self._exit = ExitStack()
        self._connection: Any = None
        self._lost = ""

    @property
    def is_connected(self) -> bool:
        """Whether the server is there."""
        return self._connection is not None and not self._lost

    def connect(self) -> None:
        """Subscribe to what is observed, and wait for a message of each topic."""
        try:
            client, broken = (importlib.import_module(f"websockets.{name}") for name in ("sync.client", "exceptions"))
        except ImportError as error:
            raise UserError(f"rosbridge needs websockets; install it with {pip_line('ros')}") from error
        try:
            # With a socket of ours it goes where the url says: through no proxy, and after no redirect.
            address = urlsplit(self.url)
            port = address.port or (443 if address.scheme == "wss" else 80)
            opened = self._exit.enter_context(socket.create_connection((address.hostname, port), self._patience_s))
            opened.settimeout(None)
            options = {"sock": opened, "open_timeout": self._patience_s, "max_size": MAX_BYTES}
            self._connection = self._exit.enter_context(client.connect(self.url, **options))
        except (OSError, ValueError, broken.WebSocketException) as error:
            self._exit.close()
            raise UserError(f"{self.url}: there is no rosbridge ({error}); start it or name another url") from error
        self._lost = ""
        threading.Thread(target=self._listen, daemon=True).start()
        needed = {self._places[name][0] for name in (*self.state, self._stamp) if name}
        throttle = int(500 / self.control_hz) if hasattr(self, "control_hz") else 0  # ms; more often tells no more
        for topic in self._subscribed:
            self._tell({"op": "subscribe", "topic": topic, "queue_length": 1, "throttle_rate": throttle})
        for topic in self._commanded:
            self._tell({"op": "advertise", "topic": topic, "type": self.types[topic]})
        if not self._wait(lambda: needed <= self._heard.keys()):
            silent = sorted(needed - self._heard.keys())
            self.disconnect()
            raise UserError(f"{self.url}: nothing came on {', '.join(silent)} within {self._patience_s:g} s")

    def reset(self, scene: int) -> None:
        """Ask for an episode to be made ready, if there is a service for it; a success from before is forgotten."""
        if self._reset:
            self._call, self._answer = f"reset {scene} {time.monotonic()}", False
            self._tell({"op": "call_service", "service": self._reset, "id": self._call, "args": {}})
            if not self._wait(lambda: not self._call) or not self._answer:
                raise ConnectionError(f"the service {self._reset} did not answer that the robot is ready")
        self._begun = time.monotonic()

    def get_observation(self) -> dict[str, Any]:
        """Return the newest numbers, and when they were taken."""
        with self._changed:
            self._check()
            heard, taken = dict(self._heard), self._taken()
        found: dict[str, Any] = {name: _look_up(heard, *self._places[name]) for name in self.state}
        found["timestamp"] = taken
        if self._success:
            topic, path = self._places[self._success]
            is_new = heard.get(topic, (None, 0.0))[1] >= self._begun
            found["success"] = is_new and _look_up(heard, topic, path) is True
        return found

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Publish a message on each topic that is commanded."""
        messages: dict[str, Any] = {topic: {} for topic in self._commanded}
        for name in self.action:
            topic, path = self._places[name]
            _put(messages[topic], path, float(action[name]))
        for topic, message in messages.items():
            self._tell({"op": "publish", "topic": topic, "msg": message})
        return action

    def disconnect(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._exit.close()
            self._connection = None

    def _taken(self) -> float:
        """When the state was taken, seconds of `time.monotonic`; nan where the robot does not say it as it should."""
        if self._stamp:
            return self._stamped[1]
        return min(self._heard[self._places[name][0]][1] for name in self.state)

    def _note_stamp(self, now: float) -> None:
        """Turn the newest stamp into seconds of `time.monotonic`, once: read again, it must not be another time."""
        stamp = _look_up(self._heard, *self._places[self._stamp])
        if stamp == self._stamped[0]:
            return
        try:
            taken = now - time.time() + float(stamp["sec"]) + 1e-9 * float(stamp["nanosec"])
        except (KeyError, TypeError, ValueError, OverflowError):
            taken = math.nan
        self._stamped = stamp, taken

    def _listen(self) -> None:
        connection = self._connection
        try:
            for text in connection:
                self._hear(text)
            reason = "it closed the connection"
        except Exception as error:  # whatever it is, the robot cannot be seen any more
            reason = repr(error)
        with self._changed:
            self._lost = reason
            self._changed.notify_all()

    def _hear(self, text: str | bytes) -> None:
        try:
            message = json.loads(text)
            op, topic, answer = (message.get(key) for key in ("op", "topic", "id"))
        except (ValueError, AttributeError, RecursionError):
            return  # what cannot be read is not seen; if it goes on, observations are stale and stop the robot
        with self._changed:
            if op == "publish" and topic in self._subscribed:  # nothing else is kept, whatever is sent
                now = time.monotonic()
                self._heard[topic] = message.get("msg"), now
                if self._stamp and topic == self._places[self._stamp][0]:
                    self._note_stamp(now)
            elif op == "service_response" and self._call and answer == self._call:
                self._call, self._answer = "", message.get("result") is True
            self._changed.notify_all()

    def _tell(self, message: dict[str, Any]) -> None:
        self._check()
        try:
            self._connection.send(json.dumps(message, allow_nan=False))
        except Exception as error:
            raise ConnectionError(f"{self.url}: {error!r}") from error

    def _wait(self, there: Any) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._lost or there(), self._patience_s)) and not self._lost

    def _check(self) -> None:
        if not self.is_connected:
            raise ConnectionError(f"{self.url}: not connected; {self._lost or 'it never was'}")


def _place(name: str) -> tuple[str, Path]:
    """Split `/joint_states.position[0]` into the topic and where the number stands."""
    topic, parts = name, ""
    if (cut := re.search(r"[.\[]", name)) is not None:
        topic, parts = name[: cut.start()], name[cut.start() :]
    found = list(_PART.finditer(parts))
    if not topic.startswith("/") or not found or "".join(part[0] for part in found) != parts or found[0][1] is None:
        raise TypeError(f"{name!r} is not of the form /topic.field[0]")
    return topic, tuple(part[1] if part[1] is not None else int(part[2]) for part in found)


def _look_up(heard: dict[str, tuple[Any, float]], topic: str, path: Path) -> Any:
    """The value at a place; None where there is none, at which the guard stops the robot."""
    value = heard.get(topic, (None, 0.0))[0]
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _put(message: Any, path: Path, value: float) -> None:
    """Set a number in a message, and what leads to it."""
    for key, following in zip(path, (*path[1:], None), strict=True):
        if isinstance(key, int):
            message.extend([0.0] * (key + 1 - len(message)))
        if following is None:
            message[key] = value
            return
        new: Any = [] if isinstance(following, int) else {}
        if isinstance(key, int):
            message[key] = message[key] or new
        else:
            message.setdefault(key, new)
        message = message[key]
