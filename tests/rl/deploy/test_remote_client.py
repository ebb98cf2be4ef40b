"""Messages are read with care, and a client believes nothing that a server says; the server here lies."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from benchmarks.hostile_messages import ARRAYS, RAW
from rl.deploy import remote_client
from rl.deploy.remote_client import (
    DTYPES,
    MAX_LENGTH,
    MAX_OBJECTS,
    PROTOCOL,
    BadAnswer,
    Client,
    Malformed,
    Refused,
    checked,
    pack,
    unpack,
)

SPEC = {
    "features": {"state": {"shape": [4], "dtype": "float32"}},
    "action_low": [-1.0, -1.0],
    "tasks": ["reach", "rest"],
}
ABOUT = {
    "wamtune": PROTOCOL,
    "checkpoint": "tiny",
    "sha256": "ab" * 32,
    "spec": SPEC,
    "n_context_frames": 2,
    "chunk_size": 4,
    "noise_shape": [3],
    "dream": None,
}
OBS = {"state": np.zeros((1, 2, 4), "f4")}
ACTIONS = np.zeros((1, 4, 2), "<f4")

Answer = Callable[[dict[str, Any]], list[bytes | str]]


class Liar:
    """A server that says what it is told to say."""

    def __init__(self) -> None:
        self.greeting: bytes | str = pack(ABOUT)
        self.answer: Answer = lambda request: [pack({"id": request["id"], "actions": ACTIONS})]
        self._server = serve(self._speak, "127.0.0.1", 0, compression=None)
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()

    def _speak(self, connection: Any) -> None:
        try:
            connection.send(self.greeting)
            for data in connection:
                for answer in self.answer(unpack(data)):
                    connection.send(answer)
        except ConnectionClosed:
            pass


@pytest.fixture
def liar() -> Iterator[Liar]:
    liar = Liar()
    yield liar
    liar.close()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3, 1)])
def test_arrays_arrive_bit_for_bit(dtype: str, shape: tuple[int, ...]) -> None:
    sent = np.asarray(100 * np.random.default_rng(0).normal(size=shape)).astype(dtype)
    got = unpack(pack({"of": {"x": sent}}))["of"]["x"]
    assert got.dtype == sent.dtype and got.shape == shape and got.tobytes() == sent.tobytes() and got.flags.writeable


@pytest.mark.parametrize("array", [np.array([{}]), np.array([1j]), np.zeros(2, ">f4"), np.array(["x"])])
def test_other_types_are_not_sent(array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="cannot be sent; expected an array of"):
        pack({"x": array})


def test_numbers_of_numpy_arrive_as_plain_numbers() -> None:
    assert unpack(pack({"x": np.float32(0.5)})) == {"x": 0.5}
    assert unpack(msgpack.packb({"x": {b"__npgeneric__": True, b"data": 3, b"dtype": "<i8"}})) == {"x": 3}


@pytest.mark.parametrize("data", [*RAW, b"\x91\x01", b"\xc0", pack({"x": 1}) * 2], ids=lambda data: repr(data)[:20])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    if data == b"\x82\xa2id\x01\xa2id\x02":  # a key twice: the second one counts
        assert unpack(data) == {"id": 2}
        return
    with pytest.raises(Malformed):
        unpack(data)


@pytest.mark.parametrize("array", ARRAYS, ids=range(len(ARRAYS)))
def test_an_array_is_as_it_is_described_or_refused(array: dict[bytes, Any]) -> None:
    try:
        value = unpack(msgpack.packb({"x": array}))["x"]
    except Malformed:
        return
    if not isinstance(value, np.ndarray):
        with pytest.raises(Malformed):
            checked(value, "x", "<f4", (1,))
    elif value.dtype == bool:
        assert value.tolist() == [False, True, True]  # whatever its bytes were
    elif not np.isfinite(value).all():
        with pytest.raises(Malformed, match="x has numbers that are not finite"):
            checked(value, "x", value.dtype.str, (None,))


def test_a_small_message_does_not_become_many_values() -> None:
    many = [[0] * 1000 for _ in range(MAX_OBJECTS // 1000)]
    with pytest.raises(Malformed, match="it has more than 100,000 values"):
        unpack(msgpack.packb({"x": many}))
    with pytest.raises(Malformed):
        unpack(msgpack.packb({"x": [0] * (MAX_LENGTH + 1)}))


def test_what_is_wrong_with_an_array_is_said_with_both_sides() -> None:
    with pytest.raises(Malformed, match=r"^x is float64 of shape \(2, 3\), expected float32 of shape \(any, 3\)$"):
        checked(np.zeros((2, 3)), "x", "<f4", (None, 3))
    with pytest.raises(Malformed, match=r"^x is missing, expected uint8 of shape \(1\)$"):
        checked(None, "x", "|u1", (1,))
    with pytest.raises(Malformed, match=r"^x is a list, expected"):
        checked([1], "x", "|u1", (1,))


def test_the_file_stands_alone(tmp_path: Path) -> None:
    """Copied to another place it loads without torch and without anything of ours."""
    (tmp_path / "client.py").write_text(Path(remote_client.__file__).read_text())
    code = (
        "import sys, client; client.unpack(client.pack({'x': client.np.zeros(3)})); "
        "assert not {'torch', 'rl', 'rewards', 'world_model'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_a_client_reads_how_the_server_describes_itself(liar: Liar) -> None:
    with Client(liar.url, sha256="ab" * 32) as client:
        assert client.server == ABOUT and client.tasks == ("reach", "rest")
        assert client.act(OBS, ["rest"]).shape == (1, 4, 2)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"wamtune": 2}, "the server speaks version 2 of the messages, expected wamtune's version 1"),
        ({"wamtune": None}, "the server speaks another protocol, expected wamtune's version 1"),
        ({"wamtune": np.ones(2)}, "the server speaks another protocol"),
        ({"spec": {**SPEC, "features": {"state": {"shape": [4], "dtype": np.ones(2)}}}}, "a dtype that is no text"),
        ({"chunk_size": 10**9}, "the server describes itself wrongly: .*'chunk_size' has sizes beyond 10,000"),
        ({"chunk_size": -1}, "the server describes itself wrongly"),
        ({"noise_shape": [10_000, 10_000]}, "the server describes itself wrongly: .* or more than 10,000,000 numbers"),
        ({"noise_shape": [1] * 70}, "the server describes itself wrongly"),
        ({"spec": {**SPEC, "features": {"state": {"shape": [10**7]}}}}, "the server describes itself wrongly"),
        ({"spec": {**SPEC, "tasks": "reach"}}, "the server describes itself wrongly: .*lists of action bounds"),
        ({"spec": None}, "the server describes itself wrongly"),
        ({"sha256": 1}, "the server describes itself wrongly: .*sha256 is a int, expected text"),
        ({"spec": np.ones(2)}, "the server describes itself wrongly"),
        ({"dream": np.ones(2)}, "the server describes itself wrongly"),
        ({"dream": {}}, "the server describes itself wrongly"),
    ],
)
def test_a_server_with_another_schema_is_refused(liar: Liar, changes: dict[str, Any], line: str) -> None:
    liar.greeting = pack({**ABOUT, **changes})
    with pytest.raises(BadAnswer, match=line):
        Client(liar.url)


def test_a_server_with_another_checkpoint_is_refused(liar: Liar) -> None:
    with pytest.raises(Refused, match=r"its checkpoint has sha256 abababababababab\.\.\., expected cdcdcdcdcdcdcdcd"):
        Client(liar.url, sha256="cd" * 32)


@pytest.mark.parametrize(
    ("actions", "line"),
    [
        (np.full((1, 4, 2), np.nan, "<f4"), "actions has numbers that are not finite"),
        (np.zeros((1, 5, 2), "<f4"), r"actions is float32 of shape \(1, 5, 2\), expected float32 of shape \(1, 4, 2\)"),
        (np.zeros((1, 4, 2), "<f8"), "actions is float64"),
        ([[0.0, 0.0]] * 4, "actions is a list"),
    ],
)
def test_actions_that_no_policy_sends_are_refused(liar: Liar, actions: Any, line: str) -> None:
    liar.answer = lambda request: [pack({"id": request["id"], "actions": actions})]
    client = Client(liar.url)
    with pytest.raises(BadAnswer, match=line):
        client.act(OBS, ["rest"])
    with pytest.raises(ConnectionError, match="the line is lost"):  # it was closed
        client.act(OBS, ["rest"])


def test_an_answer_to_an_earlier_request_is_passed_over(liar: Liar) -> None:
    """A request that was given up is answered later; the client takes the answer to the newest one."""
    late: list[bytes] = []

    def answer(request: dict[str, Any]) -> list[bytes | str]:
        number = request["id"]
        mine = pack({"id": number, "actions": ACTIONS + number})
        if number == 1:
            late.append(mine)
            return []
        return [*late, *late, mine]

    liar.answer = answer
    with Client(liar.url, timeout_s=0.3) as client:
        with pytest.raises(ConnectionError, match=r"no answer within 0\.3 s"):
            client.act(OBS, ["rest"])
        client.timeout_s = 10.0
        assert (client.act(OBS, ["rest"]) == 2).all()


@pytest.mark.parametrize("number", [7, 0, -1, True, None, "1", 1.0, np.ones(2)], ids=str)
def test_an_answer_that_nobody_asked_for_ends_the_line(liar: Liar, number: Any) -> None:
    liar.answer = lambda request: [pack({"id": number, "actions": ACTIONS})]
    with Client(liar.url) as client, pytest.raises(BadAnswer, match="it answers what was not asked"):
        client.act(OBS, ["rest"])


def test_errors_of_the_server_are_one_line(liar: Liar) -> None:
    with Client(liar.url) as client:
        liar.answer = lambda request: [pack({"id": request["id"], "error": "too hot"})]
        with pytest.raises(Refused, match="too hot"):
            client.act(OBS, ["rest"])
        liar.answer = lambda request: ["x" * 10_000]
        with pytest.raises(Refused, match="xxx") as raised:
            client.act(OBS, ["rest"])
        assert len(str(raised.value)) < 600
        liar.answer = lambda request: [b"\xc1"]
        with pytest.raises(BadAnswer, match="it is not one msgpack message"):
            client.act(OBS, ["rest"])


def test_a_task_that_the_server_does_not_know(liar: Liar) -> None:
    with Client(liar.url) as client, pytest.raises(Refused, match="task 'raech': expected one of reach, rest"):
        client.act(OBS, ["raech"])


def test_a_message_that_is_too_large_is_not_read(liar: Liar) -> None:
    liar.answer = lambda request: [bytes(100_000)]
    with Client(liar.url, max_bytes=50_000) as client, pytest.raises(ConnectionError, match="the line is lost"):
        client.act(OBS, ["rest"])


def test_where_there_is_no_server() -> None:
    for url, line in (("ws://127.0.0.1:1", "there is no server"), ("http://x", "expected ws://HOST:PORT")):
        with pytest.raises(ConnectionError, match=line):
            Client(url)
