"""Make hostile messages for both ends of `wamtune serve`. A seed repeats each of them exactly.

A message is made from a good one: cut, with bytes changed, repeated, or with fields of other types and sizes. Others
are no messages at all. `hostile_lines.py` sends thousands of them, the tests a few hundred.
"""

from __future__ import annotations

import pickle
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from rl.deploy.remote_client import pack

Message = Mapping[str, Any]

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**64 - 1, -(2**63), 0.5, 1e300, float("nan"), float("inf")),
    *("", "act", "reset", "x" * 5000, "\x00\n\x1b[2J", b"", b"x" * 5000, [], [1], [[[]]], {}, {"a": 1}, {b"b": [None]}),
    *([0] * 4000, ["x"] * 300, {str(i): i for i in range(300)}),
    pickle.dumps(ValueError("x")),
)
"""Values of other types than a field has."""

ARRAYS: tuple[dict[bytes, Any], ...] = tuple(
    {b"__ndarray__": True, b"dtype": dtype, b"shape": shape, b"data": data}
    for dtype, shape, data in (
        *(("|O", [1], bytes(8)), ("|V8", [1], bytes(8)), ("<c8", [1], bytes(8)), (">f4", [1], bytes(4))),
        *(("<f4", [2**40], b""), ("<f4", [-1], b""), ("<f4", [0, 2**62], b""), ("<f4", [2**31, 2**33], bytes(4))),
        *(("<f4", [1] * 9, bytes(4)), ("<f4", [2], bytes(4)), ("<f4", [True], bytes(4)), ("<f4", "1", bytes(4))),
        *(("<f4", [1.0], bytes(4)), ("<f4", [1], [0] * 4), ("<f4", None, bytes(4)), (None, [1], bytes(4))),
        *((b"<f4", [1], bytes(4)), (["<f4"], [1], bytes(4)), ("|b1", [3], b"\x00\x01\x07"), ("<f4", [], bytes(4))),
        *(("<f4", [1], struct.pack("<f", float("nan"))), ("<f8", [1], struct.pack("<d", float("inf")))),
    )
) + ({b"__ndarray__": True}, {b"__npgeneric__": True, b"data": {}, b"dtype": "|O"})
"""Maps that describe arrays wrongly, or arrays that are of no use."""

RAW: tuple[bytes, ...] = (
    b"",
    *(b"\x81\xa1a" * n for n in (500, 2000, 20_000)),  # maps within maps
    *(b"\x91" * n for n in (500, 2000, 20_000)),  # lists within lists
    b"\x90" * 20_000,  # many empty lists: more than one message
    b"\xdc\x0f\xff" + b"\x90" * 4095,  # a list of empty lists
    (b"\xdc\x0f\xff" * 600) + b"\xc0",  # lists that claim thousands of values each
    *(head + b"\xff\xff\xff\xff" for head in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")),  # sizes of 4 GB
    b"\xd6\xff\x00\x00\x00\x00",  # a time stamp
    b"\xc7\x04\x05abcd",  # an extension
    b"\xc1",  # a byte that means nothing
    b"\xa2\xff\xfe",  # text that is none
    b"\x82\xa2id\x01\xa2id\x02",  # a key twice
    b"\x81\x01\x02",  # a number as key
    b"\x81\x90\x02",  # a list as key
    pickle.dumps({"op": "act"}),
    b'{"op": "act"}',
    b"GET / HTTP/1.1\r\n\r\n",
)
"""Bytes that are no message, or one that takes much memory."""


def hostile(good: Message, draw: random.Random, max_bytes: int) -> bytes | str:
    """Return a hostile message.

    Args:
        good: a message that the other side accepts.
        draw: chooses.
        max_bytes: largest message that the other side reads; some are larger.
    """
    return draw.choice(KINDS)(good, draw, max_bytes)


def _cut(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    data = pack(good)
    return data[: draw.randrange(len(data))]


def _changed(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    data = bytearray(pack(good))
    for _ in range(draw.choice([1, 3, 30])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def _repeated(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    """Return the good message as it was, which has been answered, or twice in one."""
    return pack(good) * draw.choice([1, 2])


def _with_another_value(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    wrong = _copied(good)
    where = _somewhere(wrong, draw)
    key = draw.choice([*where]) if where else "x"
    where[key] = draw.choice([*VALUES, *ARRAYS])
    return msgpack.packb(_described(wrong))


def _with_another_array(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    """Return a message with an array of another shape or type, or with numbers that are not finite or are huge."""
    wrong = _copied(good)
    where = _somewhere(wrong, draw)
    arrays = [key for key, value in where.items() if isinstance(value, np.ndarray)]
    if arrays:
        key = draw.choice(arrays)
        where[key] = draw.choice(CHANGES)(where[key])
    return msgpack.packb(_described(wrong))


def _with_other_keys(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    wrong = _copied(good)
    where = _somewhere(wrong, draw)
    if where and draw.random() < 0.5:
        del where[draw.choice([*where])]
    else:
        where[draw.choice(["x", "", "op ", "__class__", b"op", b"__ndarray__", "a" * 3000])] = draw.choice(VALUES)
    return msgpack.packb(_described(wrong))


def _noise(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    return draw.randbytes(draw.choice([1, 10, 100, 10_000]))


def _raw(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    return draw.choice(RAW)


def _large(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    """Return a message as large as possible, or larger than that."""
    size = max_bytes + draw.choice([-30, 0, 1, 10_000])
    return msgpack.packb({**_described(good), "x": bytes(max(size - len(pack(good)), 0))})


def _text(good: Message, draw: random.Random, max_bytes: int) -> str:
    return draw.choice(["", "act", '{"op": "act"}', "x" * 10_000, "\x00", "🤖" * 100])


def _for_openpi(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    """Return an observation as clients of openpi send it, with something wrong."""
    deep: dict[Any, Any] = {}
    for _ in range(draw.choice([1, 5, 200])):
        deep = {draw.choice(["observation", "images", "a/b"]): deep}
    observation: dict[Any, Any] = {
        "state": draw.choice([*VALUES, *ARRAYS]),
        "prompt": draw.choice(VALUES),
        "deep": deep,
    }
    del observation[draw.choice([*observation])]
    return msgpack.packb(observation)


def _with_a_new_prompt(good: Message, draw: random.Random, max_bytes: int) -> bytes:
    """Return an observation as clients of openpi send it, with a sentence that nobody has sent before."""
    n_words, n_letters = draw.choice([1, 8, 50]), draw.choice([1, 10, 300])
    words = ("".join(draw.choices("abcdefgh_.🤖é", k=n_letters)) for _ in range(n_words))
    obs = {name: rows[0] for name, rows in good.get("obs", {}).items()}
    return msgpack.packb(_described({**obs, "prompt": " ".join(words)}))


KINDS: tuple[Callable[[Message, random.Random, int], bytes | str], ...] = (
    _cut,
    _changed,
    _repeated,
    _with_another_value,
    _with_another_array,
    _with_other_keys,
    _noise,
    _raw,
    _large,
    _text,
    _for_openpi,
    _with_a_new_prompt,
)
"""All ways to make a hostile message."""

CHANGES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda a: a[None],
    lambda a: a[:0],
    lambda a: np.repeat(a, 3, axis=0),
    lambda a: a.reshape(-1),
    lambda a: a.astype("<f8"),
    lambda a: np.zeros(a.shape, "<i8"),
    lambda a: np.ones(a.shape, "|u1"),
    lambda a: np.full_like(a, np.nan) if a.dtype.kind == "f" else a + 1,
    lambda a: np.full_like(a, np.inf) if a.dtype.kind == "f" else np.full_like(a, 2**7 - 1),
    lambda a: np.full_like(a, 3e38) if a.dtype.kind == "f" else a,
    lambda a: np.full_like(a, -1e9) if a.dtype.kind == "f" else a,
)


def _copied(good: Message) -> dict[Any, Any]:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in good.items()}


def _somewhere(message: dict[Any, Any], draw: random.Random) -> dict[Any, Any]:
    """Return the message itself, or a map in it."""
    inner = [value for value in message.values() if isinstance(value, dict)]
    return _somewhere(draw.choice(inner), draw) if inner and draw.random() < 0.5 else message


def _described(message: Message) -> dict[Any, Any]:
    """Return a message with arrays as the maps that describe them."""
    found: dict[Any, Any] = {}
    for key, value in message.items():
        if isinstance(value, np.ndarray):
            value = {
                b"__ndarray__": True,
                b"dtype": value.dtype.str,
                b"shape": list(value.shape),
                b"data": value.tobytes(),
            }
        found[key] = _described(value) if isinstance(value, dict) else value
    return found
