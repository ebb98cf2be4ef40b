"""Recorded episodes: in memory tensors, on disk safetensors shards."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load, save
from torch import Tensor

from rewards.errors import UserError
from world_model.files import (
    TENSOR_BYTES,
    cannot_write,
    lock,
    open_file,
    parse_json,
    read_all,
    read_file,
    update,
    write_atomically,
)
from world_model.spec import Spec

SCHEMA_VERSION = 1

WAIT_S = 30.0
"""How long `append` waits for another process that writes to the folder."""


@dataclass
class Episode:
    """One recorded episode of `T` steps: frame `t`, then action `t`, then frame `t + 1`."""

    state: Tensor  # (T + 1, state_dim) float32
    action: Tensor  # (T, action_dim) float32, as executed, within bounds
    success: Tensor  # (T,) bool, after step t
    task: str
    source: str  # "expert", "noisy", "random", "policy", "import"
    seed: int
    task_reward: Tensor | None = None  # (T,) float32, the simulator's own
    picture_every: int = 1  # steps between new pictures, where frames end in codes of them

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.action.shape[0]

    @property
    def is_success(self) -> bool:
        """Success was seen at some step."""
        return bool(self.success.any())

    def check_fits(self, spec: Spec, where: str) -> None:
        """Raise `UserError` if a size, the task or a number does not fit `spec`; `where` names the episode."""
        steps = self.length
        expected = {
            "state": (self.state, (steps + 1, spec.state_dim)),
            "action": (self.action, (steps, spec.action_dim)),
            "success": (self.success, (steps,)),
        }
        if self.task_reward is not None:
            expected["task_reward"] = (self.task_reward, (steps,))
        if steps == 0:
            raise UserError(f"{where}: the episode has no steps; leave it out")
        if self.task not in spec.tasks:
            raise UserError(f"{where}: task {self.task!r} is unknown; the known tasks are {', '.join(spec.tasks)}")
        for name, (tensor, shape) in expected.items():
            if tensor.shape != shape:
                raise UserError(f"{where}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
            finite = torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
            if not finite.all():
                step = int((~finite).nonzero()[0])
                raise UserError(f"{where}: {name} is not finite at step {step}; leave the episode out")


class EpisodeStore:
    """A folder of episodes, one safetensors shard for every `append`. Several may read it while one writes."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._is_locked = False  # by `writer`

    @property
    def shards(self) -> list[Path]:
        """Finished shards, oldest first; an unfinished one has a hidden name."""
        return sorted(self.folder.glob("episodes-*.safetensors"))

    @property
    def spec(self) -> Spec:
        """Spec of the stored episodes, with the tasks of all of them."""
        specs = [Spec.from_dict(header["spec"]) for header in self._headers()]
        if not specs:
            raise UserError(f"{self.folder}: no episodes here; collect some or name another folder")
        tasks = dict.fromkeys(task for spec in specs for task in spec.tasks)
        return replace(specs[0], tasks=tuple(tasks))

    def check_fits(self, spec: Spec, where: str) -> None:
        """Raise `UserError` unless the episodes were recorded on what a model of `spec` acts on; tasks may differ."""
        if replace(self.spec, tasks=spec.tasks) != spec:
            raise UserError(f"{where}: recorded with other features, bounds or rate than the checkpoint's")

    def __len__(self) -> int:
        return sum(len(header["episodes"]) for header in self._headers())

    def count(self) -> Counter[tuple[str, str, bool]]:
        """Count episodes by task, source and whether success was seen."""
        rows = [row for header in self._headers() for row in header["episodes"]]
        return Counter((row["task"], row["source"], row["is_success"]) for row in rows)

    @contextmanager
    def writer(self, spec: Spec) -> Iterator[None]:
        """Be the one writer of the folder, and see before there is anything to write that episodes of `spec` can be.

        Raises:
            UserError: another process writes to it, it cannot be written to, or its episodes are of another robot.
        """
        with lock(self.folder):
            try:
                tempfile.TemporaryFile(dir=self.folder).close()
            except OSError as error:
                raise cannot_write(self.folder, error) from error
            self._check_same(spec)
            self._is_locked = True
            try:
                yield
            finally:
                self._is_locked = False

    def append(self, episodes: list[Episode], spec: Spec) -> None:
        """Write `episodes` as one new shard; after a crash it is there whole or not at all."""
        if not episodes:
            return
        for i, episode in enumerate(episodes):
            episode.check_fits(spec, f"{self.folder}: episode {i} of {len(episodes)} (task {episode.task})")
        with nullcontext() if self._is_locked else lock(self.folder, WAIT_S):
            self._check_same(spec)
            # A manual copy, such as `episodes-000001 (copy)`, has no number.
            numbers = [int(name) for shard in self.shards if (name := shard.stem.removeprefix("episodes-")).isdecimal()]
            number = max(numbers, default=-1) + 1
            write_atomically(self.folder / f"episodes-{number:06d}.safetensors", pack_episodes(episodes, spec))

    def _check_same(self, spec: Spec) -> None:
        shards = self.shards
        if shards and replace(Spec.from_dict(_header(shards[0])["spec"]), tasks=spec.tasks) != spec:
            raise UserError(f"{self.folder}: its episodes have other features, bounds or rate; choose another folder")

    def load(self, tasks: Collection[str] | None = None, sources: Collection[str] | None = None) -> list[Episode]:
        """Read the episodes of these tasks and sources, all by default, in the order in which they were appended.

        Raises:
            UserError: a shard is damaged; it is named.
        """
        return [episode for shard in self.shards for episode in read_shard(shard, tasks, sources)]

    def files(self) -> dict[str, bytes]:
        """Return the shards by name, to be kept beside other files, such as those of a checkpoint."""
        return {shard.name: read_file(shard, TENSOR_BYTES) for shard in self.shards}

    def _headers(self) -> list[dict[str, Any]]:
        return [_header(shard) for shard in self.shards]


def pack_episodes(episodes: list[Episode], spec: Spec) -> bytes:
    """Return a shard of an `EpisodeStore`, to be kept beside other files, such as those of a checkpoint."""
    rewards = [torch.zeros(e.length) if e.task_reward is None else e.task_reward for e in episodes]
    tensors = {
        "observation.state": torch.cat([e.state for e in episodes]).float(),
        "action": torch.cat([e.action for e in episodes]).float(),
        "next.success": torch.cat([e.success for e in episodes]).bool(),
        "next.reward": torch.cat(rewards).float(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    rows = [
        {
            "task": e.task,
            "source": e.source,
            "seed": e.seed,
            "length": e.length,
            "is_success": e.is_success,
            "task_reward": e.task_reward is not None,
            "picture_every": e.picture_every,
        }
        for e in episodes
    ]
    header = json.dumps(
        {"schema_version": SCHEMA_VERSION, "sha256": _digest(tensors), "spec": spec.to_dict(), "episodes": rows}
    )
    return save(tensors, metadata={"wamtune": header, "sha256": hashlib.sha256(header.encode()).hexdigest()})


def _digest(tensors: dict[str, Tensor]) -> str:
    # safetensors has no checksum: without this one a flipped bit would be trained on.
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(_line(name, tensor.dtype, tensor.shape))
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _line(name: str, dtype: torch.dtype, shape: Sequence[int]) -> bytes:
    return f"{name} {dtype} {tuple(shape)}".encode()


DTYPES = {"F32": torch.float32, "BOOL": torch.bool}
"""Names of safetensors for the kinds of numbers in a shard."""

HEADER_BYTES = 64_000_000


def _open(shard: Path) -> tuple[BinaryIO, dict[str, Any], dict[str, Any]]:
    """Return the file behind its header, what the header says of the tensors, and what we wrote into it."""
    try:
        file = open_file(shard, TENSOR_BYTES)
    except FileNotFoundError as error:
        raise _damaged(shard) from error
    try:
        size = int.from_bytes(file.read(8), "little")
        entries = parse_json(file.read(size)) if size <= HEADER_BYTES else {}
        metadata = entries.pop("__metadata__")
        if 8 + size + max(entry["data_offsets"][1] for entry in entries.values()) != os.fstat(file.fileno()).st_size:
            raise _damaged(shard)
        text = metadata["wamtune"]
        if hashlib.sha256(text.encode()).hexdigest() != metadata["sha256"]:
            raise _damaged(shard)
        header: dict[str, Any] = parse_json(text)
        version = header["schema_version"]
        if version > SCHEMA_VERSION:
            raise UserError(f"{shard}: schema_version {version}, known up to {SCHEMA_VERSION}; upgrade wamtune")
        _check_rows(header["episodes"])
        _spec(shard, header["spec"])
    except UserError:
        file.close()
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        file.close()
        raise _damaged(shard) from error
    return file, entries, header


def _check_rows(rows: list[dict[str, Any]]) -> None:
    """Refuse what `pack_episodes` never writes of an episode, as a ValueError."""
    for row in rows:
        fits = type(row["length"]) is int and row["length"] >= 1 and type(row["seed"]) is int
        fits = fits and abs(row["seed"]) < 2**63 and all(isinstance(row[key], str) for key in ("task", "source"))
        fits = fits and type(row["is_success"]) is type(row["task_reward"]) is bool
        every = row.get("picture_every", 1)  # older shards have no pictures
        if not fits or type(every) is not int or every < 1:
            raise ValueError("a row of episodes")


def _spec(shard: Path, spec: dict[str, Any]) -> Spec:
    try:
        return Spec.from_dict(spec)
    except UserError as error:
        raise UserError(f"{shard}: {error}; delete it and collect its episodes again") from error


def _header(shard: Path) -> dict[str, Any]:
    file, _, header = _open(shard)
    file.close()
    return header


def _read(shard: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return header and tensors of a shard; no memory is taken for them before their checksum is right."""
    file, entries, header = _open(shard)
    with file:
        digest, start = hashlib.sha256(), file.tell()
        try:
            for name, entry in sorted(entries.items()):
                digest.update(_line(name, DTYPES[entry["dtype"]], entry["shape"]))
                first, last = entry["data_offsets"]
                file.seek(start + first)
                update(digest, file, last - first)
            if digest.hexdigest() != header["sha256"]:
                raise _damaged(shard)
            file.seek(0)
            return header, load(read_all(file))
        except UserError:
            raise
        except Exception as error:  # whatever a damaged header makes the reader say
            raise _damaged(shard) from error


def read_shard(
    shard: Path, tasks: Collection[str] | None = None, sources: Collection[str] | None = None
) -> list[Episode]:
    """Read one shard of a store, see `EpisodeStore.load`."""
    rows = _header(shard)["episodes"]
    wanted = [(tasks is None or row["task"] in tasks) and (sources is None or row["source"] in sources) for row in rows]
    if not any(wanted):
        return []
    header, tensors = _read(shard)
    spec, lengths = _spec(shard, header["spec"]), [row["length"] for row in rows]
    try:
        parts = zip(
            tensors["observation.state"].split([length + 1 for length in lengths]),
            *(tensors[name].split(lengths) for name in ("action", "next.success", "next.reward")),
            strict=True,
        )
    except (KeyError, RuntimeError) as error:
        raise _damaged(shard) from error
    episodes = []
    for row, keep, (state, action, success, reward) in zip(rows, wanted, parts, strict=True):
        if not keep:
            continue
        # Clones: an episode that is kept must not keep the whole shard in memory.
        episode = Episode(
            state=state.clone(),
            action=action.clone(),
            success=success.clone(),
            task=row["task"],
            source=row["source"],
            seed=row["seed"],
            task_reward=reward.clone() if row["task_reward"] else None,
            picture_every=row.get("picture_every", 1),  # older shards have no pictures
        )
        episode.check_fits(spec, f"{shard}: episode of seed {episode.seed}")
        episodes.append(episode)
    return episodes


def _damaged(shard: Path) -> UserError:
    return UserError(f"{shard}: the file is damaged; delete it and collect its episodes again")
