"""Damaged and hostile checkpoints, one after the other: how many are detected, how many crash or hang the loader.

    python benchmarks/corruption.py [N] [SEED]

Every mutant is a copy of a small checkpoint with one thing wrong. Flips, cuts, inserted bytes and swapped tensors leave
the manifest as it was; hostile configs and headers come with a manifest that is right for them, as somebody would write
who means harm: those have to be refused, or be a checkpoint that does no harm. Anything but `UserError` is a crash.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load, save

from rewards.errors import UserError
from world_model.checkpoint import CONFIG, MANIFEST, MODEL
from world_model.model import WorldActionModel
from world_model.model_config import ModelConfig
from world_model.spec import Feature, Spec
from world_model.store import load_model, save_model

Files = dict[str, bytes]
HOSTILE = ["NaN", "1e999", "-1", "0", "1e12", "10000000000", '"x"', "null", "[]", "{}", "true", "[" * 3000 + "]" * 3000]
SLOW = 10.0  # seconds


def main() -> None:
    n, seed = (int(word) for word in (*sys.argv[1:], *("20000", "0")[len(sys.argv) - 1 :]))
    rng, found = random.Random(seed), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoint"
        spec = Spec({"state": Feature((6,), "m", {"object_pos": (0, 3)})}, (-1.0,) * 2, (1.0,) * 2, ("a", "b"), 20.0)
        sizes = ModelConfig(width=16, world_width=16, action_width=16, n_layers=1, n_heads=2)
        save_model(folder, WorldActionModel(sizes, spec), "tune")
        good = {path.name: path.read_bytes() for path in folder.iterdir()}
        for i in range(n):
            kind = rng.choice(list(KINDS))
            files = KINDS[kind](dict(good), rng)
            if meaning(files) == meaning(good):
                continue  # a blank less in the manifest is no damage
            for file, data in files.items():
                (folder / file).write_bytes(data)
            found[kind, outcome(folder)] += 1
            if (i + 1) % 2000 == 0:
                print(f"{i + 1:,} of {n:,}", file=sys.stderr, flush=True)
    words = sorted({word for _, word in found})
    print("| | " + " | ".join(words) + " |\n| --- |" + " ---: |" * len(words))
    for kind in KINDS:
        print(f"| {kind} | " + " | ".join(f"{found[kind, word]:,}" for word in words) + " |")


def outcome(folder: Path) -> str:
    """Load it, and say in a word what happened."""
    begun = time.perf_counter()
    try:
        load_model(folder)
        word = "loaded"
    except UserError as error:
        word = "refused" if "\n" not in str(error) else "refused in many lines"
    except Exception as error:
        word = f"crashed: {type(error).__name__}"
    return word if time.perf_counter() - begun < SLOW else "hung"


def meaning(files: Files) -> object:
    """Files as bytes, but the manifest as what it says."""
    try:
        return files | {MANIFEST: json.loads(files[MANIFEST])}
    except ValueError:
        return files


def flip(files: Files, rng: random.Random) -> Files:
    """Change a few bits."""
    name = rng.choice(list(files))
    data = bytearray(files[name])
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return files | {name: bytes(data)}


def cut(files: Files, rng: random.Random) -> Files:
    """Lose the end, or something in the middle."""
    name = rng.choice(list(files))
    data, at = files[name], rng.randrange(len(files[name]))
    return files | {name: data[:at] + (b"" if rng.random() < 0.5 else data[at + rng.randint(1, 99) :])}


def insert(files: Files, rng: random.Random) -> Files:
    """Put bytes in."""
    name = rng.choice(list(files))
    data, at = files[name], rng.randrange(len(files[name]))
    return files | {name: data[:at] + rng.randbytes(rng.randint(1, 99)) + data[at:]}


def swap(files: Files, rng: random.Random) -> Files:
    """Give two tensors of one shape each other's values."""
    tensors = load(files[MODEL])
    one = rng.choice(list(tensors))
    other = rng.choice([name for name in tensors if tensors[name].shape == tensors[one].shape])
    return files | {MODEL: save(tensors | {one: tensors[other].clone(), other: tensors[one].clone()})}


def hostile_config(files: Files, rng: random.Random) -> Files:
    """Replace a value anywhere in config.json, with a manifest that is right for it."""
    config = json.loads(files[CONFIG])
    mark = "a value that is replaced"
    node, way = config, []
    while isinstance(node, dict | list) and node and (not way or rng.random() < 0.8):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        way.append((node, key))
        node = node[key]
    parent, key = way[-1]
    parent[key] = mark
    return signed(files | {CONFIG: json.dumps(config).replace(json.dumps(mark), rng.choice(HOSTILE)).encode()})


def hostile_header(files: Files, rng: random.Random) -> Files:
    """Let the header of the weights claim other sizes, with a manifest that is right for it."""
    data = files[MODEL]
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    if rng.random() < 0.5:
        entry["shape"] = [rng.choice([0, -1, 10**9, 10**18])] * rng.randint(1, 3)
    else:
        entry["data_offsets"] = [rng.choice([0, -1, 10**12]), rng.choice([0, 10**12, 2**63])]
    text = json.dumps(header).encode()
    claimed = len(text) if rng.random() < 0.8 else rng.choice([2**63, 10**12, 0])
    return signed(files | {MODEL: claimed.to_bytes(8, "little") + text + data[8 + size :]})


def signed(files: Files) -> Files:
    """Make the manifest right for the files."""
    prints = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in files.items()
        if name != MANIFEST
    }
    return files | {MANIFEST: json.dumps({"files": prints}).encode()}


KINDS: dict[str, Callable[[Files, random.Random], Files]] = {
    "flipped bits": flip,
    "cut": cut,
    "inserted bytes": insert,
    "swapped tensors": swap,
    "hostile config": hostile_config,
    "hostile header": hostile_header,
}


if __name__ == "__main__":
    main()
