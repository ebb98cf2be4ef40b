"""rosbridge: numbers over a websocket, spoken with a server that knows the protocol and can misbehave."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response
from websockets.sync.server import serve

from rewards.errors import UserError
from rl.deploy import loop
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.session import run_session
from rl.policies.wam import ModelPilot
from rl.robots import rosbridge
from rl.robots.api import RobotMap, make_robot
from rl.robots.errors import Stop
from rl.robots.rosbridge import RosbridgeRobot
from world_model.data.episodes import EpisodeStore
from world_model.wam.model import WorldActionModel

LIMITS = Limits(low=(-1.0,) * 2, high=(1.0,) * 2, max_change=(0.5,) * 2, still=(0.0,) * 2, max_age_s=1.0)
STATE = ("/where.point.x", "/where.point.y", "/goal.data[0]", "/goal.data[1]")
ACTION = ("/cmd.twist.linear[0]", "/cmd.twist.linear[1]")


class Server:
    """A point that moves by its commands, behind the protocol of rosbridge."""

    def __init__(self) -> None:
        self.values = np.zeros(4)
        self.subscribed: set[str] = set()
        self.advertised: dict[str, str] = {}
        self.sent: list[dict[str, Any]] = []
        self.resets = 0
        self.misbehave: Callable[[str, Any], str | None] = lambda topic, text: text  # what is told of it; None: nothing
        self.ready, self.over, self.told = True, False, 0.0
        self.age = 0.0  # of the state, in seconds
        self.images: dict[str, Any] = {}  # topic -> message of a camera
        self._server = serve(self._speak, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.over = True
        self._server.shutdown()

    def _speak(self, connection: Any) -> None:
        while not self.over:
            if time.monotonic() - self.told > 0.01:
                self.told = time.monotonic()
                self._tell(connection)
            try:
                message = json.loads(connection.recv(timeout=0.002))
            except TimeoutError:
                continue
            except ConnectionClosed:
                return
            if message["op"] == "subscribe":
                self.subscribed.add(message["topic"])
            elif message["op"] == "advertise":
                self.advertised[message["topic"]] = message["type"]
            elif message["op"] == "publish":
                self.sent.append(message["msg"])
                self.values[:2] += 0.01 * np.array(message["msg"]["twist"]["linear"])
            elif message["op"] == "call_service":
                self.resets += 1
                answer = {"op": "service_response", "id": message["id"], "result": self.ready}
                connection.send(json.dumps(answer))

    def _tell(self, connection: Any) -> None:
        x, y, *goal = self.values.tolist()
        point = {"x": x, "y": y}
        taken = {"sec": int(time.time() - self.age), "nanosec": int(1e9 * ((time.time() - self.age) % 1))}
        where = {"point": point, "header": {"stamp": taken}}
        messages = {"/where": where, "/goal": {"data": goal}, "/done": {"data": x > 5}} | self.images
        for topic in sorted(self.subscribed):
            text = json.dumps({"op": "publish", "topic": topic, "msg": messages[topic]})
            if (told := self.misbehave(topic, text)) is not None:
                connection.send(told)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "PERIODS", 1000)
    server = Server()
    yield server
    server.close()


def params(server: Server, **changes: Any) -> dict[str, Any]:
    fields = {"url": server.url, "state": STATE, "action": ACTION, "types": {"/cmd": "mine/Twist"}, "reset": "/reset"}
    return {**fields, "success": "/done.data", **changes}


def config(server: Server, **changes: Any) -> RobotConfig:
    fields = {"robot": "rosbridge", "params": params(server), "task": "reach", "hz": 50.0, "max_steps": 10}
    fields |= {"n_action_steps": 2, "limits": LIMITS, "max_late": 1000, "map": RobotMap(state=STATE, action=ACTION)}
    return RobotConfig(**{**fields, **changes})


def run(trained: WorldActionModel, config: RobotConfig) -> Any:
    (lived,) = run_session(ModelPilot(trained, 2), config, say=lambda line: None)
    return lived


def test_a_session_over_it(trained: WorldActionModel, server: Server) -> None:
    lived = run(trained, config(server))
    assert lived.reason == "10 steps" and server.resets == 1
    assert server.advertised == {"/cmd": "mine/Twist"} and server.subscribed == {"/where", "/goal", "/done"}
    sent = np.array([message["twist"]["linear"] for message in server.sent])
    assert sent == pytest.approx(np.array([*lived.sent, [0.0, 0.0]]))  # and at the end it stands still
    (episode,) = EpisodeStore("runs/robot/rosbridge").load()
    assert episode.state[-1, :2].numpy() == pytest.approx(0.01 * sent.sum(0), abs=0.011)  # one may be on its way
    assert not episode.is_success


def test_the_robot_says_that_it_is_solved(trained: WorldActionModel, server: Server) -> None:
    server.values[0] = 6.0
    lived = run(trained, config(server))
    assert lived.reason == "success" and len(lived.sent) == 1


@pytest.mark.parametrize(
    ("misbehave", "reason"),
    [
        (lambda topic, text: None if topic == "/where" else text, "s old"),  # silence
        (lambda topic, text: text.replace('"x": ', '"x": NaN, "w": '), "entry 0 of the observation is not finite"),
        (lambda topic, text: text.replace('"x"', '"z"'), "no list of numbers|not finite"),
        (lambda topic, text: text.replace('"data": [', '"data": [[], '), "no list of numbers"),
        (lambda topic, text: text[: len(text) // 2], "s old"),
        (lambda topic, text: "[" * 100_000, "s old"),
        (lambda topic, text: "x" * (rosbridge.MAX_BYTES + 1), "not connected|exceeds limit"),
    ],
)
def test_what_it_must_not_act_on_stops_it(
    trained: WorldActionModel, server: Server, misbehave: Callable[[str, str], str | None], reason: str
) -> None:
    begun = time.monotonic()
    server.misbehave = lambda topic, text: misbehave(topic, text) if server.resets else text  # type: ignore[no-any-return]
    lived = run(trained, config(server, max_steps=1000, limits=LIMITS))
    assert lived.stopped and time.monotonic() - begun < 15
    assert re.search(reason, lived.reason), lived.reason
    assert not EpisodeStore("runs/robot/rosbridge").shards


def test_a_delay_shows_in_the_stamp(trained: WorldActionModel, server: Server) -> None:
    """Hours of delay and half an hour of patience: a busy machine changes neither."""
    patient = replace(LIMITS, max_age_s=2000.0)
    with_stamp = params(server, stamp="/where.header.stamp")
    assert not run(trained, config(server, params=with_stamp, limits=patient)).stopped
    server.age = 7000.0
    assert not run(trained, config(server, limits=patient)).stopped  # when a message came says nothing of it
    lived = run(trained, config(server, params=with_stamp, limits=patient))
    assert lived.stopped and re.search(r"the observation is 7\d+\.\d+ s old, at most 2000 s is allowed", lived.reason)
    lived = run(trained, config(server, params=params(server, stamp="/where.header.clock"), limits=patient))
    assert lived.stopped and "the observation is nan s old" in lived.reason


def test_a_message_that_is_read_twice_was_taken_once() -> None:
    robot = RosbridgeRobot("ws://nowhere", ["/s.x"], [], {}, stamp="/s.header.stamp")
    robot._connection = "open"
    begun = time.monotonic() - time.time()
    for second in (1000, 1001):
        message = {"x": 0.5, "header": {"stamp": {"sec": second, "nanosec": 500_000_000}}}
        times = set()
        for _ in range(5):  # sent again it is the same one, too
            robot._receive(json.dumps({"op": "publish", "topic": "/s", "msg": message}))
            times |= {robot.get_observation()["timestamp"] for _ in range(50)}
        assert len(times) == 1 and times.pop() == pytest.approx(begun + second + 0.5, abs=60)


def test_with_a_stamp_the_other_topics_still_get_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """The topic with the stamp goes on while another one is silent."""
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: 5000.0 + now[0])
    monkeypatch.setattr(rosbridge, "time", clock)
    robot = RosbridgeRobot("ws://nowhere", ["/s.x", "/goal.x", "/far.x"], [], {}, stamp="/s.header.stamp")
    robot._connection = "open"

    def receive(topic: str, stamp: Any) -> None:
        message = {"x": 0.5, "header": {"stamp": stamp}}
        robot._receive(json.dumps({"op": "publish", "topic": topic, "msg": message}))

    def taken_at(second: int) -> dict[str, int]:
        return {"sec": 5000 + second, "nanosec": 0}

    receive("/goal", None)
    for now[0] in (101.0, 102.0, 103.0):
        receive("/s", taken_at(int(now[0])))
        receive("/far", taken_at(0))  # only the stamp of the named topic counts
        assert robot.get_observation()["timestamp"] == 100.0
    receive("/goal", None)
    receive("/s", taken_at(98))
    assert robot.get_observation()["timestamp"] == pytest.approx(98.0)  # its stamp shows the delay
    receive("/s", "now")
    assert math.isnan(robot.get_observation()["timestamp"])


def test_what_nobody_asked_for_is_not_kept() -> None:
    robot = RosbridgeRobot("ws://nowhere", ["/s.x"], [], {})
    for i in range(100):
        robot._receive(json.dumps({"op": "publish", "topic": f"/spam{i}", "msg": {"data": "spam"}}))
        robot._receive(json.dumps({"op": "service_response", "id": f"spam{i}", "result": True}))
    assert "spam" not in repr(vars(robot))


def test_it_goes_where_the_url_says_and_nowhere_else(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Response(302, "Found", Headers(Location=server.url))
    redirecting = serve(lambda connection: None, "127.0.0.1", 0, process_request=lambda *_: elsewhere)
    threading.Thread(target=redirecting.serve_forever, daemon=True).start()
    robot = RosbridgeRobot(**params(server, url=f"ws://127.0.0.1:{redirecting.socket.getsockname()[1]}"))
    try:
        with pytest.raises(UserError, match="there is no rosbridge"):
            robot.connect()
    finally:
        redirecting.shutdown()
    assert not robot.is_connected and not server.subscribed
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    robot = RosbridgeRobot(**params(server))
    robot.connect()
    robot.disconnect()


def test_a_server_that_goes_away_stops_it(trained: WorldActionModel, server: Server) -> None:
    threading.Timer(0.5, server.close).start()
    lived = run(trained, config(server, max_steps=1000))
    assert lived.stopped and lived.reason.startswith(server.url)


def test_what_is_not_there_is_one_line(trained: WorldActionModel, server: Server) -> None:
    server.misbehave = lambda topic, text: text if topic == "/where" else None
    with pytest.raises(UserError, match=r"nothing came on /goal within 0.2 s"):
        run(trained, config(server, params=params(server, patience_s=0.2)))
    server.misbehave, server.ready = lambda topic, text: text, False
    with pytest.raises(UserError, match=r"robot=rosbridge: the service /reset did not answer that the robot is ready"):
        run(trained, config(server))
    server.close()
    with pytest.raises(UserError, match=r"there is no rosbridge .*; start it or name another url"):
        run(trained, config(server, params=params(server, url="ws://127.0.0.1:1")))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"state": ["where.x"]}, "'where.x' is not of the form /topic.field"),
        ({"state": ["/where"]}, "'/where' is not of the form /topic.field"),
        ({"state": ["/where[0]"]}, r"'/where\[0\]' is not of the form /topic.field"),
        ({"state": ["/where.x[1"]}, r"'/where.x\[1' is not of the form /topic.field"),
        ({"types": {}}, "types has nothing of the commanded topic '/cmd'"),
        ({"action": ACTION[1:]}, r"nothing of /cmd.twist.linear\[0\], which would be published as 0; name every index"),
        ({"action": ["/cmd.j[0].v", "/cmd.j[2].v"]}, r"nothing of /cmd.j\[1\], which would be published as 0"),
        ({"action": ["/cmd.j[0].v[0]", "/cmd.j[1].v[1]"]}, r"nothing of /cmd.j\[1\].v\[0\], which would be"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_names_that_mean_nothing(server: Server, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_robot("rosbridge", params(server, **changes))


@pytest.mark.parametrize("success", ["/done.data", "/s.done"])
def test_a_success_of_the_episode_before_is_forgotten(success: str) -> None:
    robot = RosbridgeRobot("ws://nowhere", ["/s.x"], [], {}, success=success)
    robot._connection = "open"
    for heard, expected in ((True, True), (None, False), (False, False), (True, True)):
        if heard is None:
            robot.reset(3)
        else:
            robot._receive(json.dumps({"op": "publish", "topic": "/s", "msg": {"x": 0.5, "done": heard}}))
            robot._receive(json.dumps({"op": "publish", "topic": "/done", "msg": {"data": heard}}))
        seen = robot.get_observation()
        assert seen["success"] is expected and seen["/s.x"] == 0.5


def test_messages_are_built_from_places() -> None:
    robot = RosbridgeRobot("ws://nowhere", ["/s.x"], ["/a.j[1].v", "/a.j[0].v", "/a.k"], {"/a": "t"})
    told: list[dict[str, Any]] = []
    robot._send = told.append  # type: ignore[method-assign]
    robot.send_action({"/a.j[1].v": 2.0, "/a.j[0].v": 1.0, "/a.k": 3.0})
    assert told == [{"op": "publish", "topic": "/a", "msg": {"j": [{"v": 1.0}, {"v": 2.0}], "k": 3.0}}]
    with pytest.raises(ConnectionError, match="not connected; it never was"):
        robot.get_observation()


def image_of(level: int, side: int = 8) -> dict[str, Any]:
    """Return a message of a camera with an image of one level, whose stamp is that many seconds after 1970."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(file, "PNG")
    stamp = {"sec": level, "nanosec": 0}
    return {"header": {"stamp": stamp}, "format": "png", "data": base64.b64encode(file.getvalue()).decode()}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_images_come_with_their_time_and_a_damaged_one_is_a_stop(server: Server) -> None:
    cameras = {"front": {"topic": "/front/compressed", "height": 8, "width": 8}}
    server.images = {"/front/compressed": image_of(1)}
    robot = RosbridgeRobot(**params(server, cameras=cameras))
    assert robot.observation_features["front"] == (8, 8, 3)
    robot.connect()
    try:
        found = robot.get_observation()
        assert (found["front"] == 1).all() and abs(time.monotonic() - found["timestamps"]["front"]) < 5
        server.images = {"/front/compressed": image_of(2)}
        until(lambda: (robot.get_observation()["front"] == 2).all())
        server.images = {"/front/compressed": image_of(3, side=9)}
        reason = "/front/compressed: the image is 9 x 9, expected 8 x 8"
        with pytest.raises(Stop) as stop:
            until(lambda: robot.get_observation() is None)
        assert str(stop.value) == reason
    finally:
        robot.disconnect()


def test_with_a_stamp_an_image_is_as_old_as_its_header_says(server: Server) -> None:
    cameras = {"front": {"topic": "/front/compressed", "height": 8, "width": 8}}
    server.images = {"/front/compressed": image_of(100)}
    robot = RosbridgeRobot(**params(server, cameras=cameras, stamp="/where.header.stamp"))
    robot.connect()
    try:
        taken = robot.get_observation()["timestamps"]["front"]
        assert time.monotonic() - taken == pytest.approx(time.time() - 100, abs=5)
    finally:
        robot.disconnect()


def test_a_camera_that_sends_nothing_is_one_line(server: Server) -> None:
    cameras = {"front": {"topic": "/dark", "height": 8, "width": 8}}
    server.misbehave = lambda topic, text: None if topic == "/dark" else text
    server.images = {"/dark": image_of(1)}
    robot = RosbridgeRobot(**params(server, cameras=cameras, patience_s=0.5))
    with pytest.raises(UserError, match=r"nothing came on /dark within 0\.5 s"):
        robot.connect()
