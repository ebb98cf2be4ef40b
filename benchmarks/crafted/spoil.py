"""Ways to spoil any file: damage, another kind of file, and other values in JSON."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "<zz9 onload=x>"
"""Markup that must not appear unescaped in a page."""

VICTIM = "victim.txt"
"""A file next to the folder of an input; no reader may change it."""

VALUES = (
    '0 -1 1 2.5 1e300 1e999 -1e999 NaN 1e12 2147483648 9223372036854775808 18446744073709551616 "" "x" null [] {} true '
    '[[]] [1] [null] {"a":1} "../../x" "/etc/hostname" "1e999" 0.1 "\\ud800" "$x^$" 100000000'
).split() + [
    json.dumps(MARK),
    "1" * 5000,
    "[" * 3000 + "]" * 3000,
    json.dumps("long " * 2000),
    "[" + "0," * 9999 + "0]",
]
"""Values that replace a value in a JSON file."""


def files(folder: Path) -> list[Path]:
    """Return every file of a folder, in order; a hidden one, such as the lock of a store, is never read."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def damaged(folder: Path, rng: random.Random) -> None:
    """Flip bits, cut, insert or repeat bytes, or replace the whole file."""
    path = rng.choice(files(folder))
    data = bytearray(path.read_bytes())
    at, n = rng.randrange(len(data) + 1), rng.randint(1, 99)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    inserted = data[:at] + rng.randbytes(n) + data[at:]
    path.write_bytes(
        rng.choice([data, data[:at], data[:at] + data[at + n :], inserted, rng.randbytes(n), b"", data * 2])
    )


def other_kind(folder: Path, rng: random.Random) -> None:
    """Replace a file by something else: a pipe, a device, a folder, a link, or an endless file."""
    path = rng.choice(files(folder))
    path.unlink()
    kind = rng.randrange(9)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path.parent)  # the path of a socket must be short
            server.bind(path.name)
            os.chdir(here)
    elif kind == 3:
        with path.open("wb") as file:
            file.truncate(rng.choice([10**9, 10**11]))
    elif kind < 8:
        path.symlink_to(("/dev/zero", "/dev/stdin", path.name, "nowhere")[kind - 4])


def json_value(name: str, sign: Callable[[Path], None] = lambda folder: None) -> Callable[[Path, random.Random], None]:
    """Return a function that replaces or removes a value in a JSON file; `sign` then corrects the checksums."""

    def spoil(folder: Path, rng: random.Random) -> None:
        path = folder / name
        path.write_text(with_value(json.loads(path.read_text()), rng))
        sign(folder)

    return spoil


def with_value(content: Any, rng: random.Random) -> str:
    """Return JSON with one value replaced or removed."""
    node, parent, key = content, content, next(iter(content))
    while isinstance(node, dict | list) and node and (node is content or rng.random() < 0.8):
        parent, key = node, rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = node[key]
    if rng.random() < 0.15:
        del parent[key]
        return json.dumps(content)
    parent[key] = "the value"
    return json.dumps(content).replace('"the value"', rng.choice(VALUES))
