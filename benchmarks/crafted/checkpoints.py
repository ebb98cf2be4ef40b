"""Checkpoints: a small model, and hostile weights, headers and sizes."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load, save

from benchmarks.crafted.spoil import MARK, files
from world_model.checkpoint import CONFIG, MANIFEST, MODEL, checkpoint_files
from world_model.spec import Feature, Spec
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model

SPEC = Spec({"state": Feature((6,), "m", {"object_pos": (0, 3)})}, (-1.0,) * 2, (1.0,) * 2, ("a", "b"), 20.0)

SIZES = ModelConfig(width=16, world_width=16, action_width=16, n_layers=1, n_heads=2)


def make_checkpoint(folder: Path) -> None:
    """Write a small untrained model."""
    torch.manual_seed(0)
    save_model(folder, WorldActionModel(SIZES, SPEC), "tune")


def signed(folder: Path) -> None:
    """Update the manifest to match the files."""
    found = {p.name: p.read_bytes() for p in files(folder) if p.name != MANIFEST}
    prints = {n: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for n, data in found.items()}
    (folder / MANIFEST).write_text(json.dumps({"files": prints}))


def hostile_weights(folder: Path, rng: random.Random) -> None:
    """Write tensors with other dtypes, non-finite values, other shapes or other names."""
    path = folder / MODEL
    tensors = load(path.read_bytes())
    name = rng.choice(list(tensors))
    value = tensors[name]
    huge = torch.full(value.shape, rng.choice([1e300, float("nan"), float("inf"), 1e30]), dtype=torch.float64)
    kinds = torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64, torch.uint8, torch.bool
    cast = value.float().to(rng.choice(kinds))
    other = rng.choice([huge, huge, cast, value.flatten(), value[:0] if value.dim() else value, value[None]])
    path.write_bytes(save(tensors | {rng.choice([name, name, name, MARK]): other.contiguous().clone()}))
    signed(folder)


def hostile_header(folder: Path, rng: random.Random) -> None:
    """Write other sizes into the header of the weights."""
    path = folder / MODEL
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    if rng.random() < 0.3:
        entry["shape"] = [rng.choice([0, -1, 10**9, 10**18])] * rng.randint(1, 3)
    elif rng.random() < 0.5:
        entry["data_offsets"] = [rng.choice([0, -1, 10**12]), rng.choice([0, 10**12, 2**63])]
    else:
        entry["dtype"] = rng.choice(["F64", "F4", "E8M0", "I64", "C64", "X", ""])
    text = json.dumps(header).encode()
    claimed = len(text) if rng.random() < 0.8 else rng.choice([2**63, 10**12, 0])
    path.write_bytes(claimed.to_bytes(8, "little") + text + data[8 + size :])
    signed(folder)


def hostile_sizes(folder: Path, rng: random.Random) -> None:
    """Write the config of a model that is far too large, or almost too large."""
    path = folder / CONFIG
    config = json.loads(path.read_text())
    for name in rng.sample(sorted(set(asdict(SIZES)) - {"views", "bfloat16"}), rng.randint(1, 3)):
        config["model"][name] = rng.choice([64, 128, 1024, 8192, 10**9])
    config["spec"]["features"]["state"]["shape"] = rng.choice([[6], [100_000], [10**9]])
    path.write_text(json.dumps(config))
    signed(folder)


def read_checkpoint(folder: Path) -> None:
    """Load the checkpoint, and read everything that copying it would read."""
    load_model(folder)
    checkpoint_files(folder)
