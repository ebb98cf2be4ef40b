"""Send hostile messages to a policy server and to its client; count what breaks, and measure the memory.

    python benchmarks/hostile_lines.py [N] [SEED]

N messages (10,000 by default) go to `wamtune serve metaworld-tuned dream=true` with a token, and N messages of a server
that lies go to the client, most of them while it runs a fake robot. The messages are those of `hostile_messages.py`:
all sizes and types, cut, changed and repeated ones. To the server they come one by one, as floods whose answers nobody
reads, in fragments, with pings, over lines that are cut, from clients that do not know the token, and as bytes that
are no websocket at all; the client gets floods too, silence, and answers that nobody asked for.

Meanwhile another client asks the server for the same actions again and again, and every command of the robot is
compared with its limits. Prints two tables; the exit code is 1 if an entry of the last lines is not 0, or if a process
needed more than MOST_MB more than before.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

from rewards.errors import UserError
from rl.deploy import loop, remote_client, remote_pilot, session
from rl.deploy.remote_client import PROTOCOL, Client, Refused, pack, unpack
from rl.deploy.remote_pilot import TOKEN, RemotePilot
from rl.deploy.robot_config import RobotConfig
from rl.deploy.safety import Limits
from rl.deploy.session import run_session
from rl.robots.fake import FakeRobot
from rl.runs.progress import Progress
from world_model.spec import Feature, Spec

MOST_MB = 100
"""Limit on the memory that either side may need beyond what it needed for good messages."""

SECRET = "a token of this benchmark"
CHECKPOINT, STATE_DIM, CHUNK, ACTION_DIM = "metaworld-tuned", 21, 8, 4
SPEC = Spec(
    {"state": Feature((4,), "m", {"joints": (0, 2), "goal": (2, 4)})},
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    tasks=("reach",),
    control_hz=50.0,
)
LIMITS = Limits(low=(-1.0,) * 2, high=(1.0,) * 2, max_change=(0.3,) * 2, still=(0.0,) * 2, max_age_s=60.0)
CLIENT_BYTES = 1 << 20
"""Largest message that the client reads here, so that larger ones are quickly made."""


def main() -> int:
    """Run both halves; return the exit code."""
    n, seed = (*map(int, sys.argv[1:]), *(10_000, 0)[len(sys.argv) - 1 :])
    logging.getLogger("websockets").setLevel(logging.CRITICAL + 1)  # lines that are cut are no news here
    failed = to_server(n, seed)
    return int(to_client(n, seed) or failed)


def to_server(n: int, seed: int) -> bool:
    """Send `n` messages to a server in another process; return whether something went wrong."""
    os.environ[TOKEN] = SECRET
    command = [sys.executable, "-m", "rl.cli", "serve", CHECKPOINT, "dream=true", "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = None
            while found is None:
                found = re.search(r"listening at (ws://\S+),", line := process.stdout.readline())
                assert line, "the server has not started"
            return _attack(found[1], process, n, seed)
        finally:
            process.kill()


def _attack(url: str, process: subprocess.Popen[str], n: int, seed: int) -> bool:
    from benchmarks.hostile_messages import hostile

    count: Counter[str] = Counter()
    with Client(url, SECRET) as other, Progress("to the server") as progress:
        obs, max_bytes = {"state": np.zeros((1, 2, STATE_DIM), "f4")}, other.server["max_bytes"]
        expected = other.act(obs, ["push"])
        before = _reset_peak(process.pid)
        sent = 0
        while sent < n and process.poll() is None:
            draw = random.Random(f"{seed} server {sent}")
            kind = draw.choice(LINES)
            good = (_act, _reset, _step_chunk)[draw.randrange(3)]
            messages = [hostile(good(1 + i), draw, max_bytes) for i in range(draw.choice([1, 5, 40]))]
            kind(url, messages, draw, count)
            sent += len(messages)
            with suppress(ConnectionError):
                count["asked meanwhile"] += 1
                count["answered meanwhile"] += bool((other.act(obs, ["push"]) == expected).all())
            progress.update(min(sent, n), n)
        grown = _peak(process.pid) - before
    wrong = {
        "the server ended": int(process.poll() is not None),
        "let in without the token": count.pop("LET IN", 0),
        "others not answered, or otherwise": count.pop("asked meanwhile") - count["answered meanwhile"],
        f"memory beyond {MOST_MB} MB": int(grown > MOST_MB),
    }
    _print(
        "to the server", {"messages": sent, **dict(sorted(count.items())), "memory grown by, MB": round(grown)}, wrong
    )
    return any(wrong.values())


def _act(number: int) -> dict[str, Any]:
    return {
        "op": "act",
        "id": number,
        "obs": {"state": np.zeros((1, 2, STATE_DIM), "<f4")},
        "task": np.zeros(1, "<i8"),
        "noise": np.zeros((1, 1, 32), "<f4"),
        "held": np.zeros((1, CHUNK, ACTION_DIM), "<f4"),
        "n_held": np.zeros(1, "<i8"),
    }


def _reset(number: int) -> dict[str, Any]:
    return {"op": "reset", "id": number, "n_envs": 16, "seed": 0}


def _step_chunk(number: int) -> dict[str, Any]:
    return {"op": "step_chunk", "id": number, "actions": np.zeros((16, CHUNK, ACTION_DIM), "<f4")}


def _one_by_one(url: str, messages: list[bytes | str], draw: random.Random, count: Counter[str]) -> None:
    """Send each message and read its answer; go on over another line when one is closed."""
    left = list(messages)
    while left:
        with suppress(ConnectionClosed, TimeoutError), _line(url) as connection:
            connection.recv(timeout=30)
            if draw.random() < 0.5:  # so that a dream can be stepped
                connection.send(pack(_reset(1)))
                connection.recv(timeout=30)
            while left:
                connection.send(left.pop())
                answer = connection.recv(timeout=30)
                said = {"error": answer} if isinstance(answer, str) else unpack(answer)
                count["refused in a line" if "error" in said else "answered"] += 1
            continue
        count["lines closed by the server"] += 1


def _flood(url: str, messages: list[bytes | str], draw: random.Random, count: Counter[str]) -> None:
    """Send all messages, and some of them again, without reading an answer; then go without a word."""
    with suppress(ConnectionClosed, OSError), _line(url) as connection:
        for message in messages:
            for _ in range(draw.choice([1, 10])):
                connection.send(message)
            if draw.random() < 0.2:
                connection.ping()
        count["floods"] += 1
        connection.socket.close()


def _in_fragments(url: str, messages: list[bytes | str], draw: random.Random, count: Counter[str]) -> None:
    with suppress(ConnectionClosed, OSError), _line(url) as connection:
        for message in messages:
            size = max(len(message) // 50, 1)
            connection.send([message[i : i + size] for i in range(0, len(message), size)] or [message])
            connection.recv(timeout=30)
            count["answered or refused, in fragments"] += 1


def _without_token(url: str, messages: list[bytes | str], draw: random.Random, count: Counter[str]) -> None:
    wrong = draw.choice([None, "Bearer", "Bearer x", "Bearer " + "x" * 4000, "Api-Key \xff", f"Basic {SECRET}"])
    try:
        with connect(url, additional_headers={"Authorization": wrong} if wrong else None, compression=None):
            count["LET IN"] += 1
    except (InvalidStatus, ConnectionClosed, OSError):
        count["sent away without the token"] += 1


def _no_websocket(url: str, messages: list[bytes | str], draw: random.Random, count: Counter[str]) -> None:
    """Send bytes to the port: requests that are cut, too long or none, and frames that are none."""
    port = int(url.rpartition(":")[2])
    hello = (
        f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nAuthorization: Bearer {SECRET}\r\n"
    )
    hello += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n\r\n"
    heads = (hello.encode(), hello.encode()[:60], b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000, b"\x16\x03\x01", b"")
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as line:
        line.sendall(draw.choice(heads))
        for message in messages:
            line.sendall(draw.randbytes(20) + (message.encode() if isinstance(message, str) else message))
        count["lines that are no websocket"] += 1


def _pings(url: str, messages: list[bytes | str], draw: random.Random, count: Counter[str]) -> None:
    """Send a megabyte of pings, and no answer is read."""
    with suppress(ConnectionClosed, OSError), _line(url) as connection:
        for i in range(8000):
            connection.ping(b"%125d" % i)
        for message in messages:
            connection.send(message)
        count["floods of pings"] += 1


LINES = (_one_by_one,) * 12 + (_flood, _flood, _in_fragments, _without_token, _no_websocket, _pings)
"""How messages come to the server; the most frequent way is repeated."""


def _line(url: str) -> Any:
    headers = {"Authorization": f"Bearer {SECRET}"}
    return connect(url, additional_headers=headers, compression=None, close_timeout=0.2, open_timeout=30)


def to_client(n: int, seed: int) -> bool:
    """Let a client meet `n` messages of a server that lies, in another process; return whether something went wrong."""
    remote_pilot.PATIENCE_S = remote_client.CLOSE_S = 0.05
    loop.PERIODS = 1000
    context = multiprocessing.get_context("spawn")
    sent, port = context.Value("i", 0), context.Value("i", 0)
    liar = context.Process(target=lie, args=(seed, sent, port), daemon=True)
    liar.start()
    while port.value == 0:
        time.sleep(0.01)
    url, count, i = f"ws://127.0.0.1:{port.value}", Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder, Progress("to the client") as progress:
        os.chdir(folder)
        before = _reset_peak(os.getpid())
        while sent.value < n:
            try:
                (_dream if i % 4 == 3 else _session)(url, i, count)
            except (UserError, Refused, ConnectionError):
                count["refused in a line"] += 1
            except Exception as error:  # to be counted and shown
                count["OTHER ERRORS"] += 1
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            i += 1
            progress.update(min(sent.value, n), n)
        grown = _peak(os.getpid()) - before
        os.chdir("/")
    liar.kill()
    wrong = {
        "commands beyond the limits": count.pop("beyond", 0),
        "other errors": count.pop("OTHER ERRORS", 0),
        f"memory beyond {MOST_MB} MB": int(grown > MOST_MB),
    }
    shown = {"messages": sent.value, **dict(sorted(count.items())), "memory grown by, MB": round(grown)}
    _print("to the client", shown, wrong)
    return any(wrong.values())


class Checked(FakeRobot):
    """A robot that counts its commands, and those beyond the limits; it waits for them."""

    real_time = False

    def __init__(self, count: Counter[str]) -> None:
        super().__init__(SPEC)
        self.count, self.last = count, np.zeros(2)

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Compare a command with the limits."""
        command = np.array([*action.values()], float)
        fits = (np.abs(command) <= 1).all() and (np.abs(command - self.last) <= LIMITS.max_change[0] + 1e-9).all()
        self.count["commands"] += 1
        self.count["beyond"] += not fits
        self.last = command
        return super().send_action(action)


def _session(url: str, i: int, count: Counter[str]) -> None:
    """Run an episode of a robot whose policy is on the server."""
    pilot = RemotePilot(url, lambda name: Client(name, timeout_s=0.1, max_bytes=CLIENT_BYTES))
    try:
        robot = Checked(count)
        config = RobotConfig(robot="fake", task="reach", max_steps=12, n_action_steps=2, limits=LIMITS, episodes=str(i))
        session.make_robot = lambda name, params, task: robot
        (lived,) = run_session(pilot, config, say=lambda line: None)
        count["episodes that ended" if lived.ended else "episodes that were stopped"] += 1
    finally:
        pilot.close()


def _dream(url: str, i: int, count: Counter[str]) -> None:
    """Step the dream of the server, and act in it."""
    with Client(url, timeout_s=0.1, max_bytes=CLIENT_BYTES) as client:
        obs = client.reset(2, seed=i)
        for _ in range(5):
            step = client.step_chunk(np.zeros((2, 4, 2)))
            assert step.reward.shape == (2, 4) and obs["state"].shape == step.obs["state"].shape == (2, 1, 4)
            count["dreamed chunks"] += 1


def lie(seed: int, sent: Any, port: Any) -> None:
    """Run the server that lies; count its hostile messages in `sent`, and tell its `port`."""
    from benchmarks.hostile_messages import hostile

    part = {"spec": SPEC.to_dict(), "n_context_frames": 1, "chunk_size": 4}
    about = {"wamtune": PROTOCOL, "checkpoint": "x", "sha256": "", "noise_shape": [3], **part}
    about["dream"] = {**part, "images": {}}
    n_lines = 0

    def speak(connection: Any) -> None:
        nonlocal n_lines
        n_lines += 1
        draw = random.Random(f"{seed} client {n_lines}")

        def tell(message: bytes | str, times: int) -> None:
            with sent.get_lock():
                sent.value += times
            for _ in range(times):
                connection.send(message)

        with suppress(ConnectionClosed):
            if draw.random() < 0.2:
                tell(hostile(about, draw, CLIENT_BYTES), 1)
            else:
                connection.send(pack(about))
            n_good = draw.randrange(10)
            for data in connection:
                good = _answer(unpack(data), draw)
                if good["id"] <= n_good:
                    connection.send(pack(good))
                elif draw.random() < 0.05:
                    with sent.get_lock():
                        sent.value += 1  # silence
                else:
                    tell(hostile(good, draw, CLIENT_BYTES), draw.choice([1, 1, 1, 1, 30]))

    logging.getLogger("websockets").setLevel(logging.CRITICAL + 1)
    with serve(speak, "127.0.0.1", 0, compression=None, close_timeout=0.1) as server:
        port.value = server.socket.getsockname()[1]
        server.serve_forever()


def _answer(request: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return an answer of the right form; its actions are anything."""
    number, random_ = request["id"], np.random.default_rng(draw.getrandbits(32))
    if request["op"] == "act":
        wild = 10.0 ** draw.randrange(-2, 38) * random_.standard_normal((1, 4, 2))
        return {"id": number, "actions": wild.astype("<f4")}
    obs = {"state": np.zeros((2, 1, 4), "<f4"), "task": np.zeros(2, "<i8")}
    if request["op"] == "reset":
        return {"id": number, "obs": obs}
    bools = {name: np.zeros((2, 4), "|b1") for name in ("executed", "success")}
    bools |= {name: np.zeros(2, "|b1") for name in ("terminated", "truncated", "is_success")}
    frames, actions = {"state": np.zeros((2, 4, 4), "<f4")}, np.zeros((2, 4, 2), "<f4")
    reward = np.zeros((2, 4), "<f4")
    return {"id": number, "obs": obs, "final_obs": obs, "frames": frames, "actions": actions, "reward": reward, **bools}


def _reset_peak(pid: int) -> float:
    """Forget the largest memory that a process has needed; return what it needs now, in MB."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _peak(pid)


def _peak(pid: int) -> float:
    """Return the largest memory that a process has needed, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1000 if found else float("inf")


def _print(title: str, shown: dict[str, int], wrong: dict[str, int]) -> None:
    print(f"| {title} | |\n| --- | ---: |")
    for name, value in {**shown, **wrong}.items():
        print(f"| {name} | {value:,} |")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
