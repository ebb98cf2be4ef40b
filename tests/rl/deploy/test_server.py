"""The server on its line: who is let in, what is read, and that nobody can keep the others from being answered."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from benchmarks.hostile_messages import KINDS, hostile
from rewards.errors import UserError
from rl.deploy import server
from rl.deploy.remote_client import Client, Refused, pack, unpack
from rl.deploy.served import Dream, Served
from rl.deploy.server import Endpoint, serving
from rl.policies.wam import ModelPilot
from world_model.data.episodes import Episode
from world_model.dream_env import StartStates
from world_model.wam.model import WorldActionModel

OBS = {"state": np.zeros((1, 2, 4), "f4")}
N_HOSTILE = 300


@pytest.fixture
def served(trained: WorldActionModel, episodes: list[Episode]) -> Served:
    starts = StartStates.from_episodes(episodes[:8], trained.spec.tasks, trained.n_context_frames)
    return Served(ModelPilot(trained, 2), "tiny", "ab" * 32, dream=Dream(trained, starts, horizon=2, max_steps=12))


@pytest.fixture
def url(served: Served) -> Iterator[str]:
    with serving(served, Endpoint(max_clients=3)) as url:
        yield url


def good(served: Served, number: int) -> dict[str, Any]:
    return {
        "op": "act",
        "id": number,
        "obs": OBS,
        "task": np.zeros(1, "<i8"),
        "noise": np.zeros((1, *served.pilot.noise_shape), "<f4"),
        "held": np.zeros((1, 4, 2), "<f4"),
        "n_held": np.zeros(1, "<i8"),
    }


def test_a_client_and_its_dream_over_the_line(url: str, served: Served) -> None:
    with Client(url) as client:
        assert client.server == unpack(served.greeting)
        noise = np.random.default_rng(0).normal(size=(2, *served.pilot.noise_shape)).astype("f4")
        obs = {"state": np.random.default_rng(1).normal(size=(2, 2, 4))}
        free = client.act(obs, ["reach", "rest"], noise)
        held = client.act(obs, np.array([0, 1]), noise, held=free[:, :2])
        assert (held[:, :2] == free[:, :2]).all()
        assert (client.act(obs, ["reach", "rest"]) != free).any()  # without noise
        assert served.dream is not None
        here = served.dream.env(2)
        expected = here.reset(5)
        found = client.reset(2, seed=5)
        assert (found["state"] == expected["state"].numpy()).all() and found["task"].tolist() == [0, 0]
        step = client.step_chunk(free)
        assert step.frames["state"].shape == (2, 4, 4) and step.executed.dtype == bool
        with pytest.raises(Refused, match="step_chunk: actions is float32"):
            client.step_chunk(free[:1])
        assert (client.step_chunk(free).obs["state"] != step.obs["state"]).any()


def test_a_token_is_needed_where_there_is_one(served: Served) -> None:
    with serving(served, Endpoint(token="secret")) as url:
        with Client(url, "secret") as client:
            assert client.act(OBS, ["rest"]).shape == (1, 4, 2)
        for wrong in ("", "Secret", "secret2", "secre"):
            with pytest.raises(Refused, match="the token is missing or wrong; take the one that wamtune serve printed"):
                Client(url, wrong)
        for header in ("secret", "Basic secret", "Bearer", "Bearer  ", "bearer secret", "Bearer \xff\xfe"):
            with pytest.raises(InvalidStatus, match="401"):
                connect(url, additional_headers={"Authorization": header}, compression=None).close()
        twice = [("Authorization", "Bearer secret")] * 2
        with pytest.raises(InvalidStatus, match="401"):
            connect(url, additional_headers=twice, compression=None).close()
        with connect(url, additional_headers={"Authorization": "Api-Key secret"}, compression=None) as connection:
            assert unpack(bytes(connection.recv()))["checkpoint"] == "tiny"  # as clients of openpi write it
        health = urllib.request.urlopen(url.replace("ws://", "http://") + "/healthz")
        assert health.read() == b"OK\n"


def test_a_web_page_is_not_let_in(url: str) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        connect(url, origin="https://example.com", compression=None).close()


def test_no_more_clients_than_allowed(url: str) -> None:
    clients = [Client(url) for _ in range(3)]
    with pytest.raises(ConnectionError, match="there are 3 clients already; try again later"):
        Client(url)
    for client in clients:
        client.close()
    # Whoever leaves makes room.
    for _ in range(100):
        try:
            with Client(url) as client:
                client.act(OBS, ["rest"])
            break
        except ConnectionError:
            continue
    else:
        pytest.fail("there is no room for a client, although all have left")


def test_an_encrypted_line(served: Served, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate of this test")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    with serving(served, Endpoint(certificate=str(certificate), key=str(key))) as url:
        assert url.startswith("wss://")
        with Client(url, cafile=str(certificate)) as client:
            assert client.act(OBS, ["rest"]).shape == (1, 4, 2)
        for wrong in (lambda: Client(url), lambda: Client(url.replace("wss", "ws"), timeout_s=5.0)):
            with pytest.raises(ConnectionError, match="there is no wamtune serve"):
                wrong()
    with pytest.raises(UserError, match=r"^certificate=\S+ key=\S*: cannot use them \(.*\); expected PEM files of a"):
        with serving(served, Endpoint(certificate=str(key))):
            pass


def test_an_address_that_is_in_use_is_one_line(served: Served, url: str) -> None:
    port = int(url.rpartition(":")[2])
    with pytest.raises(UserError, match=rf"^host=127\.0\.0\.1 port={port}: cannot listen there \("):
        with serving(served, Endpoint(port=port)):
            pass


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("robot", False)],
)
def test_what_is_this_computer_alone(host: str, is_loopback: bool) -> None:
    assert Endpoint(host).is_loopback == is_loopback


def test_what_cannot_be_read_ends_the_line_of_its_sender_alone(url: str, served: Served) -> None:
    with Client(url) as other:
        for data, code in ((b"\xc1", 1007), ("text", 1003), (bytes(served.max_bytes + 1), 1009)):
            with connect(url, compression=None) as connection:
                connection.recv()
                connection.send(data)
                with pytest.raises(ConnectionClosed) as closed:
                    for _ in range(3):
                        said = connection.recv()
                        assert isinstance(said, str) and said.startswith("the message cannot be read: ")
                assert closed.value.rcvd is not None and closed.value.rcvd.code == code
            assert other.act(OBS, ["rest"]).shape == (1, 4, 2)


def test_an_error_of_the_policy_does_not_end_the_server(
    url: str, served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, Client(url) as client:
        patch.setattr(served.pilot, "act", lambda *given: 1 / 0)
        with pytest.raises(Refused, match="the server failed: ZeroDivisionError; see what it printed"):
            client.act(OBS, ["rest"])
    assert "wamtune serve: unexpected ZeroDivisionError" in capsys.readouterr().err
    with Client(url) as client:
        assert client.act(OBS, ["rest"]).shape == (1, 4, 2)


def test_a_client_that_does_not_read_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks and pings without reading an answer, and is the only client: another one gets in once its line is cut."""
    monkeypatch.setattr(server, "SEND_S", 0.2)
    with serving(served, Endpoint(max_clients=1)) as url, raw_line(url) as line:
        for number in range(1, 10_000):
            # Not all of it may be taken, so frames may be cut: that is as good.
            with suppress(OSError):
                line.sendall(frame(0x9, b"ping" * 30) * 100 + frame(0x2, pack(good(served, number))))
            with suppress(ConnectionError), Client(url) as client:
                assert client.act(OBS, ["rest"]).shape == (1, 4, 2)
                return
        pytest.fail("the line was not cut")


@contextmanager
def raw_line(url: str) -> Iterator[socket.socket]:
    """A connection to a server that reads nothing unless it is told to."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as line:
        key = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: " + "A" * 22 + "==\r\n"
        line.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Version: 13\r\n{key}\r\n".encode())
        line.recv(12)  # so that it is a client by now
        line.settimeout(0.05)
        yield line


def frame(opcode: int, data: bytes) -> bytes:
    """A frame of a websocket from a client, with a mask of zeros."""
    size = len(data)
    head = bytes([0x80 | opcode]) + (bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big"))
    return head + bytes(4) + data


def test_hostile_messages(url: str, served: Served) -> None:
    """Each is answered, or ends its line; after each of them others get the same actions as before."""
    with Client(url) as other:
        expected = other.act(OBS, ["rest"])
        connection: Any = None
        for i in range(N_HOSTILE):
            draw = random.Random(f"server {i}")
            data = KINDS[i % len(KINDS)](good(served, 1 + i), draw, served.max_bytes)
            try:
                if connection is None:
                    connection = connect(url, compression=None, close_timeout=1).__enter__()
                    connection.recv()
                for _ in range(1 if i % 20 else 3):  # the same again: a replay
                    connection.send(data)
                said = connection.recv()
                assert isinstance(said, str) or unpack(said).keys() & {"error", "actions"}
            except ConnectionClosed:
                connection = None
            if draw.random() < 0.1 and connection is not None:
                connection.close()
                connection = None
            if i % 10 == 0:
                assert (other.act(OBS, ["rest"]) == expected).all()
        if connection is not None:
            connection.close()
    assert {hostile(good(served, 1), random.Random(i), 1000).__class__ for i in range(50)} == {bytes, str}
