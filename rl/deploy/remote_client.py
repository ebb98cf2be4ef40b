"""A client of `wamtune serve` in one file, to be copied to a robot: it needs numpy, msgpack and websockets, no torch.

    with Client("ws://localhost:8000") as client:
        actions = client.act({"state": frames[None]}, ["push"])  # (1, chunk_size, action_dim)

A message is one msgpack map. An array in it is a map with the keys of openpi-client, all of them bytes: `__ndarray__`
(true), `dtype` (one of `DTYPES`), `shape` and `data`. The server speaks first and describes itself; after that each
request has an `op` and an `id`, and its answer the same `id`. docs/serve.md lists them.

Both sides read messages with `unpack` and `checked`: sizes and types are checked before an array is made, and no
message can name code.
"""

from __future__ import annotations

import importlib
import logging
import math
import socket
import ssl
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

Array = np.ndarray
Shape = tuple[int | None, ...]
"""Sizes of an array; None: any."""

PROTOCOL = 1
"""Version of the messages; client and server must have the same."""

DTYPES = ("|b1", "|u1", "<i4", "<i8", "<f4", "<f8")
"""Types of numbers that a message may hold, as numpy writes them: all little-endian."""

MAX_BYTES = 16 << 20
"""Largest message in bytes that a client reads if it is not told otherwise."""

MAX_OBJECTS, MAX_LENGTH, MAX_TEXT, MAX_DIMENSIONS = 100_000, 4096, 100_000, 8
"""Most values in a message, most values in a list or map, longest text, most dimensions of an array."""

LARGEST, MOST_NUMBERS = 10_000, 10_000_000
"""Upper limits of what a server may declare: a size, and the numbers of an array."""

CLOSE_S = 1.0
"""Seconds that the other side gets to say goodbye."""


class Malformed(ValueError):
    """A message cannot be read, or a value in it has another type or size than expected."""


class Refused(ValueError):
    """The server refused a request or the connection; the message is its reason."""


class BadAnswer(ConnectionError):
    """The other side does not speak as `wamtune serve` does; the line is closed."""


@dataclass(frozen=True)
class Step:
    """The result of a dreamed chunk of `k` actions; the arrays are those of `world_model.env.ChunkStep`."""

    obs: dict[str, Array]  # feature -> (n_envs, n_context_frames, *shape), and task (n_envs,)
    reward: Array  # (n_envs, k)
    executed: Array  # (n_envs, k) bool
    terminated: Array  # (n_envs,) bool
    truncated: Array  # (n_envs,) bool
    is_success: Array  # (n_envs,) bool
    final_obs: dict[str, Array]  # like obs, but before the restart of those that ended
    frames: dict[str, Array]  # feature -> (n_envs, k, *shape)
    actions: Array  # (n_envs, k, action_dim), as they were executed
    success: Array  # (n_envs, k) bool


class Client:
    """A connection to a policy, and to its dream if the server offers it. One thread at a time may use it.

    Args:
        url: such as ws://localhost:8000, or wss:// for an encrypted line.
        token: that the server printed; empty: none.
        sha256: of the checkpoint that is expected; empty: any.
        timeout_s: seconds to wait for the connection, and for each answer.
        cafile: PEM file of the certificate to trust, if the system does not know it.
        max_bytes: largest message that is read.

    Attributes:
        server: how the server describes itself, see docs/serve.md.
        tasks: names of the tasks.

    Raises:
        Refused: the token is wrong, or the server has another checkpoint.
        BadAnswer: it is not `wamtune serve`, or one of another version.
        ConnectionError: there is no server, or it is full.
        ImportError: msgpack or websockets is missing.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        sha256: str = "",
        timeout_s: float = 10.0,
        cafile: str = "",
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.url, self.timeout_s = url, timeout_s
        self._last = 0  # id of the newest request
        self._n_envs = 0  # of the dream; 0: there was no reset
        self._line = ExitStack()  # closing it closes the connection
        self._connection = _connected(self._line, url, token, timeout_s, cafile, max_bytes)
        try:
            self.server = self._described(sha256)
        except BaseException:
            self.close()
            raise
        self.tasks: tuple[str, ...] = tuple(self.server["spec"]["tasks"])

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def act(
        self,
        obs: Mapping[str, Array],
        tasks: Sequence[str] | Array,
        noise: Array | None = None,
        held: Array | None = None,
        n_held: Array | None = None,
        instruction: str = "",
    ) -> Array:
        """Return chunks of actions (n, chunk_size, action_dim) float32, in the units of the environment.

        The answer depends on the arguments alone, so a request can be repeated.

        Args:
            obs: features of the server's `spec`, each (n, n_context_frames, *shape), the newest frame last. Numbers are
                sent as float32, images are uint8.
            tasks: of each row, by name, or as indices (n,).
            noise: start of the sampler (n, *noise_shape), standard normal; None: zeros.
            held: chunks (n, chunk_size, action_dim) whose first `n_held` actions are fixed, since they will be executed
                before the answer arrives; None: nothing is held.
            n_held: (n,), how many actions of each row are held; None: as many as `held` has.
            instruction: sentence for all rows, of a server that has `reads_sentences`; empty: those of the tasks.

        Raises:
            Refused: the server says that the request is wrong.
            ConnectionError: the line is lost, or there was no answer in time.
            BadAnswer: the answer has another shape, or numbers that are not finite.
        """
        task = self._indices(tasks)
        n, chunk = len(task), (len(task), self.server["chunk_size"], len(self.server["spec"]["action_low"]))
        filled = np.zeros(chunk, "<f4")
        if held is not None:
            filled[:, : held.shape[1]] = held
        if n_held is None:
            n_held = np.full(n, 0 if held is None else held.shape[1])
        answer = self._ask(
            "act",
            obs={name: _plain(values) for name, values in obs.items()},
            task=task,
            noise=np.zeros((n, *self.server["noise_shape"]), "<f4") if noise is None else _plain(noise),
            held=filled,
            n_held=np.asarray(n_held, "<i8"),
            **({"instruction": instruction} if instruction else {}),
        )
        return self._read(answer, "actions", "<f4", chunk)

    def reset(self, n_envs: int, seed: int = 0) -> dict[str, Array]:
        """Begin `n_envs` dreams from recorded states; return their observations, as in `Step.obs`.

        Raises:
            Refused: the server offers no dream, or not so many of them.
            ConnectionError: see `act`.
        """
        answer = self._ask("reset", n_envs=n_envs, seed=seed)
        self._n_envs = n_envs
        return self._read_obs(answer, "obs")

    def step_chunk(self, actions: Array) -> Step:
        """Execute a chunk of actions (n_envs, k, action_dim) in the dreams; what has ended begins anew.

        Raises:
            Refused: there was no `reset`, or the actions have another shape or are not finite.
            ConnectionError: see `act`. The dreams are lost with the line, so `reset` comes next.
        """
        answer = self._ask("step_chunk", actions=_plain(actions))
        n, k = self._n_envs, actions.shape[1]
        bools = {name: self._read(answer, name, "|b1", (n, k)) for name in ("executed", "success")}
        bools |= {name: self._read(answer, name, "|b1", (n,)) for name in ("terminated", "truncated", "is_success")}
        return Step(
            obs=self._read_obs(answer, "obs"),
            reward=self._read(answer, "reward", "<f4", (n, k)),
            final_obs=self._read_obs(answer, "final_obs"),
            frames=self._read_all(answer, "frames", (n, k)),
            actions=self._read(answer, "actions", "<f4", (n, k, actions.shape[2])),
            **bools,
        )

    def close(self) -> None:
        """Close the line."""
        self._line.close()

    def _indices(self, tasks: Sequence[str] | Array) -> Array:
        """Return tasks as indices (n,) int64.

        Raises:
            Refused: the server does not know a task.
        """
        if unknown := [task for task in tasks if isinstance(task, str) and task not in self.tasks]:
            raise Refused(f"{self.url}: task {unknown[0]!r}: expected one of {', '.join(self.tasks):.200}")
        return np.array([self.tasks.index(t) if isinstance(t, str) else t for t in tasks], "<i8")

    def _described(self, sha256: str) -> dict[str, Any]:
        """Read and check the first message of the server."""
        about = self._receive(time.monotonic() + self.timeout_s)
        found = about.get("wamtune")
        if type(found) is not int or found != PROTOCOL:  # the type first: it may be an array
            has = f"version {found} of the messages" if isinstance(found, int) else "another protocol"
            raise BadAnswer(f"{self.url}: the server speaks {has}, expected wamtune's version {PROTOCOL}")
        try:
            _check_description(about)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadAnswer(f"{self.url}: the server describes itself wrongly: {error!r:.200}") from error
        if sha256 and about["sha256"] != sha256:
            raise Refused(f"{self.url}: its checkpoint has sha256 {about['sha256'][:16]}..., expected {sha256[:16]}...")
        return about

    def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return its answer."""
        self._last += 1
        end = time.monotonic() + self.timeout_s
        try:
            self._connection.send(pack({"op": op, "id": self._last, **fields}))
        except Exception as error:  # of the library or of the socket: whatever it is, the line is of no use any more
            raise ConnectionError(f"{self.url}: the line is lost: {_words(error)}") from error
        while True:
            answer = self._receive(end)
            number = answer.get("id")
            if type(number) is int and number == self._last:
                break
            # An earlier request may have been given up, and its answer comes now. Everything else was not asked for.
            if type(number) is not int or not 0 < number < self._last:
                self._bad("it answers what was not asked")
        if "error" in answer:
            raise Refused(f"{self.url}: {answer['error']!s:.500}")
        return answer

    def _receive(self, end: float) -> dict[str, Any]:
        """Return the next message, which must arrive before `end`, in seconds of `time.monotonic`."""
        try:
            data = self._connection.recv(timeout=max(end - time.monotonic(), 0.0))
        except TimeoutError as error:
            raise ConnectionError(f"{self.url}: no answer within {self.timeout_s:g} s") from error
        except Exception as error:  # as in `_ask`
            raise ConnectionError(f"{self.url}: the line is lost: {_words(error)}") from error
        if isinstance(data, str):  # this is how errors are sent that belong to no request
            raise Refused(f"{self.url}: {data:.500}")
        try:
            return unpack(data)
        except Malformed as error:
            self._bad(str(error))

    def _read_obs(self, answer: Mapping[str, Any], name: str) -> dict[str, Array]:
        """Return a batch of observations of the dream."""
        n = self._n_envs
        found = self._read_all(answer, name, (n, self.server["dream"]["n_context_frames"]))
        return found | {"task": self._read(answer[name], "task", "<i8", (n,))}

    def _read_all(self, answer: Mapping[str, Any], name: str, batch: Shape) -> dict[str, Array]:
        """Return the features of the dream in a field of an answer, each (*batch, *shape)."""
        dream, fields = self.server["dream"], answer.get(name)
        if not isinstance(fields, dict) or dream is None:
            self._bad(f"{name} is missing in its answer")
        of_images = {} if name == "frames" else dream["images"]
        features: dict[str, Any] = {**dream["spec"]["features"], **of_images}
        return {key: self._read(fields, key, _dtype(of), (*batch, *of["shape"])) for key, of in features.items()}

    def _read(self, answer: Mapping[str, Any], name: str, dtype: str, shape: Shape) -> Array:
        try:
            return checked(answer.get(name), name, dtype, shape)
        except Malformed as error:
            self._bad(str(error))

    def _bad(self, why: str) -> NoReturn:
        self.close()
        raise BadAnswer(f"{self.url}: the server sends what a client does not expect: {why}")


def pack(message: Mapping[str, Any]) -> bytes:
    """Return a message as bytes; its arrays must have one of `DTYPES`."""
    packed: bytes = importlib.import_module("msgpack").packb(message, default=_packed)
    return packed


def unpack(data: bytes) -> dict[Any, Any]:
    """Return a message, with writable arrays in place of what `pack` made of them.

    Raises:
        Malformed: it is not one msgpack map, too large, nested too deeply, or an array in it is not as described.
    """
    n_objects = 0

    def count(values: Any) -> Any:
        nonlocal n_objects
        n_objects += 1 + len(values)
        if n_objects > MAX_OBJECTS:
            raise Malformed(f"it has more than {MAX_OBJECTS:,} values")
        return _array_of(values) if isinstance(values, dict) else values

    msgpack = importlib.import_module("msgpack")
    try:
        message = msgpack.unpackb(
            data,
            object_hook=count,
            list_hook=count,
            ext_hook=_refuse_extension,
            max_str_len=MAX_TEXT,
            max_bin_len=len(data),
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
        )
    except Malformed:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"it is not one msgpack message: {_words(error)}") from error
    if not isinstance(message, dict):
        raise Malformed(f"it is {_kind(message)}, expected a map")
    return message


def checked(values: Any, name: str, dtype: str, shape: Shape) -> Array:
    """Return `values` if they are an array of this type and shape with finite numbers.

    Args:
        values: from a message.
        name: for the error.
        dtype: one of `DTYPES`.
        shape: expected sizes; None: any size.

    Raises:
        Malformed: they are not; the message has both sides.
    """
    fits = isinstance(values, np.ndarray) and values.dtype.str == dtype and values.ndim == len(shape)
    if not fits or any(want not in (None, size) for want, size in zip(shape, values.shape, strict=True)):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise Malformed(f"{name} is {_kind(values)}, expected {np.dtype(dtype).name} of shape ({sizes})")
    if dtype in ("<f4", "<f8") and not np.isfinite(values).all():
        raise Malformed(f"{name} has numbers that are not finite")
    found: Array = values
    return found


def _connected(line: ExitStack, url: str, token: str, timeout_s: float, cafile: str, max_bytes: int) -> Any:
    """Open a websocket, which is closed with `line`.

    Raises:
        Refused: the server does not accept the token.
        ConnectionError: there is no server.
    """
    client, broken = (importlib.import_module(f"websockets.{name}") for name in ("sync.client", "exceptions"))
    try:
        address = urlsplit(url)
        if address.scheme not in ("ws", "wss") or not address.hostname:
            raise ValueError("expected ws://HOST:PORT or wss://HOST:PORT")
        port = address.port or (443 if address.scheme == "wss" else 80)
        # Open the socket here, so that the connection goes to the host in the url, never to a proxy or redirect.
        opened = socket.create_connection((address.hostname, port), timeout_s)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"{url}: there is no server ({_words(error)})") from error
    try:
        opened.settimeout(None)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A server that does not read must not block `send` for ever. The library has no limit for it, the socket has.
        seconds = math.ceil(timeout_s)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", seconds, 0))
        connecting = client.connect(
            url,
            sock=opened,
            ssl=ssl.create_default_context(cafile=cafile or None) if address.scheme == "wss" else None,
            additional_headers={"Authorization": f"Bearer {token}"} if token else None,
            compression=None,  # a small message must not become a large one
            open_timeout=timeout_s,
            close_timeout=CLOSE_S,
            max_size=max_bytes,
            max_queue=1,  # unread messages stay on the line, not in memory
            logger=logging.Logger("silent", logging.CRITICAL + 1),  # what goes wrong is raised; a server fills no log
        )
        return line.enter_context(connecting)
    except (OSError, ValueError, EOFError, broken.WebSocketException) as error:
        opened.close()
        if isinstance(error, broken.InvalidStatus) and error.response.status_code == 401:
            raise Refused(f"{url}: the token is missing or wrong; take the one that wamtune serve printed") from error
        raise ConnectionError(f"{url}: there is no wamtune serve ({_words(error)})") from error


def _check_description(about: Mapping[str, Any]) -> None:
    """Check the first message of a server, so that nothing it declares takes much memory.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is not as expected.
    """
    for name in ("checkpoint", "sha256"):
        if not isinstance(about[name], str):
            raise Malformed(f"{name} is {_kind(about[name])}, expected text")
    _check_part(about)
    _check_sizes("noise_shape", about["noise_shape"])
    if about["dream"] is not None:
        _check_part(about["dream"])
        for name, feature in about["dream"]["images"].items():
            _check_sizes(name, feature["shape"])


def _check_part(about: Mapping[str, Any]) -> None:
    """Check the spec and the counts of a policy, or of a dream."""
    for name in ("n_context_frames", "chunk_size"):
        _check_sizes(name, [about[name]])
    spec = about["spec"]
    low, tasks, features = spec["action_low"], spec["tasks"], spec["features"]
    if not isinstance(low, list) or not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise Malformed("spec needs lists of action bounds and of names of tasks")
    _check_sizes("a chunk", [about["chunk_size"], len(low)])
    for name, feature in features.items():
        if not isinstance(feature.get("dtype", ""), str):
            raise Malformed("a feature has a dtype that is no text")
        _check_sizes(name, [about["n_context_frames"], *feature["shape"]])


def _check_sizes(name: str, sizes: Any) -> None:
    fits = isinstance(sizes, list) and all(type(size) is int and 0 <= size <= LARGEST for size in sizes)
    fits = fits and len(sizes) < MAX_DIMENSIONS
    if not fits or math.prod(sizes) > MOST_NUMBERS:
        raise Malformed(f"{name!r:.60} has sizes beyond {LARGEST:,}, or more than {MOST_NUMBERS:,} numbers")


def _packed(value: Any) -> Any:
    """Return an array or number of numpy as plain msgpack values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.str in DTYPES:
        return {b"__ndarray__": True, b"dtype": value.dtype.str, b"shape": list(value.shape), b"data": value.tobytes()}
    raise TypeError(f"{_kind(value)} cannot be sent; expected an array of {', '.join(DTYPES)}")


def _array_of(values: dict[Any, Any]) -> Any:
    """Return the array that a map describes; a map that describes none stays as it is."""
    if b"__npgeneric__" in values:  # one number of numpy, as openpi-client packs it
        return values.get(b"data")
    if b"__ndarray__" not in values:
        return values
    dtype, shape, data = (values.get(key) for key in (b"dtype", b"shape", b"data"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Malformed(f"an array has dtype {dtype!r:.40}, expected one of {', '.join(DTYPES)}")
    if not isinstance(data, bytes) or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise Malformed(f"an array needs a shape of at most {MAX_DIMENSIONS} sizes, and its data as bytes")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise Malformed("an array has a size that is no whole number of at least 0")
    if math.prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise Malformed(f"an array of shape {shape} and dtype {dtype} does not have {len(data):,} bytes")
    if dtype == "|b1":  # other bytes than 0 and 1 are no valid truth values
        return (np.frombuffer(data, "|u1") != 0).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _refuse_extension(code: int, data: bytes) -> Any:
    raise Malformed(f"it has an extension of type {code}, expected plain values")


def _plain(values: Any) -> Array:
    """Return numbers as float32 and bytes as uint8."""
    array = np.asarray(values)
    return np.ascontiguousarray(array if array.dtype == np.uint8 else array.astype("<f4"))


def _dtype(feature: Mapping[str, Any]) -> str:
    return "|u1" if feature.get("dtype") == "uint8" else "<f4"


def _kind(value: Any) -> str:
    """Describe a value that may be large or hostile, in few words."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} of shape ({', '.join(map(str, value.shape))})"
    return "missing" if value is None else f"a {type(value).__name__}"


def _words(error: BaseException) -> str:
    """Return an error in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
