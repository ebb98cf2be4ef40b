"""Shards of recorded episodes."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load, save

from benchmarks.crafted.checkpoints import SPEC
from benchmarks.crafted.spoil import with_value
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.shards import digest_of
from world_model.spec import Feature


def episodes(n: int = 3) -> list[Episode]:
    """Return short episodes filled with random numbers."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(n):
        state, action = torch.randn(6, 6, generator=generator), torch.rand(5, 2, generator=generator)
        success, reward = torch.arange(5) == 4, torch.zeros(5)
        made.append(Episode({"state": state}, action, success, SPEC.tasks[i % 2], "noisy", i, reward))
    return made


def make_shards(folder: Path) -> None:
    """Write an episode store with two shards, with images of a camera slower than the control loop."""
    spec = replace(SPEC, features=SPEC.features | {"images.front": Feature((2, 3, 3), dtype="uint8", every=2)})
    for part in (episodes(2), episodes(3)):
        images = torch.arange(4 * 2 * 3 * 3, dtype=torch.uint8).view(4, 2, 3, 3)  # of frames 0, 2, 4 and 5
        every = {"images.front": 2}
        EpisodeStore(folder).append([replace(e, obs=e.obs | {"images.front": images}, every=every) for e in part], spec)


def hostile_shard(folder: Path, rng: random.Random) -> None:
    """Replace a value in the header of a shard or some of its tensors, and correct the checksums."""
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors, text = load(data), header["__metadata__"]["wamtune"]
    if rng.random() < 0.6:
        text = with_value(json.loads(text), rng)
    else:
        name = rng.choice(list(tensors))
        wrong = torch.tensor([rng.choice([float("nan"), 1e39, 1e300])], dtype=torch.float64).float()
        value = tensors[name]
        tensors[name] = rng.choice([value[:-1], value.flatten(), value.double(), value.long(), value * 0 + wrong])
        if rng.random() < 0.3:
            del tensors[name]
        content = json.loads(text)
        content["sha256"] = digest_of(tensors)
        text = json.dumps(content)
    metadata = {"wamtune": text, "sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}
    path.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}, metadata=metadata))


def read_shards(folder: Path) -> None:
    """Read everything that a store offers."""
    store = EpisodeStore(folder)
    store.count()
    assert store.spec is not None
    store.load()
    store.files()
