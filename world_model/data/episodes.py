"""Recorded episodes: tensors in memory, safetensors shards on disk."""

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
"""Seconds that `append` waits for another process that writes to the folder."""


@dataclass
class Episode:
    """One recorded episode of `T` steps: action `t` leads from frame `t` to frame `t + 1`."""

    state: Tensor  # (T + 1, state_dim) float32
    action: Tensor  # (T, action_dim) float32, as executed, within bounds
    success: Tensor  # (T,) bool, whether frame t + 1 solves the task
    task: str
    source: str  # "expert", "noisy", "random", "policy", "import"
    seed: int
    task_reward: Tensor | None = None  # (T,) float32, the simulator's own reward
    picture_every: int = 1  # steps between new images, if the frames end in codes of images

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.action.shape[0]

    @property
    def is_success(self) -> bool:
        """Whether any step is a success."""
        return bool(self.success.any())

    def check_fits(self, spec: Spec, where: str) -> None:
        """Check shapes, task and numbers against `spec`; `where` names the episode in the message.

        Raises:
            UserError: a shape or the task does not fit, there are no steps, or a number is not finite.
        """
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
    """A folder of episodes, one safetensors shard per `append`. One process may write while others read."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._is_locked = False  # True inside `writer`, so that `append` does not lock again

    @property
    def shards(self) -> list[Path]:
        """Paths of the finished shards, oldest first; an unfinished shard has a hidden name and is not listed."""
        return sorted(self.folder.glob("episodes-*.safetensors"))

    @property
    def spec(self) -> Spec:
        """Spec of the stored episodes, with the tasks of all shards; `UserError` if there are no episodes."""
        specs = [Spec.from_dict(header["spec"]) for header in self._headers()]
        if not specs:
            raise UserError(f"{self.folder}: no episodes here; collect some or name another folder")
        tasks = dict.fromkeys(task for spec in specs for task in spec.tasks)
        return replace(specs[0], tasks=tuple(tasks))

    def check_fits(self, spec: Spec, where: str) -> None:
        """Raise `UserError` unless features, action bounds and rate equal those of `spec`; tasks may differ."""
        if replace(self.spec, tasks=spec.tasks) != spec:
            raise UserError(f"{where}: recorded with other features, bounds or rate than the checkpoint's")

    def __len__(self) -> int:
        return sum(len(header["episodes"]) for header in self._headers())

    def count(self) -> Counter[tuple[str, str, bool]]:
        """Count episodes by (task, source, is_success)."""
        rows = [row for header in self._headers() for row in header["episodes"]]
        return Counter((row["task"], row["source"], row["is_success"]) for row in rows)

    @contextmanager
    def writer(self, spec: Spec) -> Iterator[None]:
        """Hold the write lock of the folder, after checking that episodes of `spec` can be appended to it.

        So a recording fails at its start, not after the first episodes.

        Raises:
            UserError: another process writes to the folder, it cannot be written, or its episodes have another spec.
        """
        with lock(self.folder):
            try:  # a temporary file shows a missing permission before anything is recorded
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
        """Write `episodes` as one new shard, atomically: after a crash the whole shard is there or nothing.

        Raises:
            UserError: an episode does not fit `spec`, the stored episodes have another spec, another process holds the
                lock for longer than `WAIT_S`, or the folder cannot be written.
        """
        if not episodes:
            return
        for i, episode in enumerate(episodes):
            episode.check_fits(spec, f"{self.folder}: episode {i} of {len(episodes)} (task {episode.task})")
        with nullcontext() if self._is_locked else lock(self.folder, WAIT_S):
            self._check_same(spec)
            # Skip manual copies such as `episodes-000001 (copy)`, which have no number.
            numbers = [int(name) for shard in self.shards if (name := shard.stem.removeprefix("episodes-")).isdecimal()]
            number = max(numbers, default=-1) + 1
            write_atomically(self.folder / f"episodes-{number:06d}.safetensors", pack_episodes(episodes, spec))

    def _check_same(self, spec: Spec) -> None:
        """Raise `UserError` if stored episodes differ from `spec` in more than their tasks; the first shard decides."""
        shards = self.shards
        if shards and replace(Spec.from_dict(_header(shards[0])["spec"]), tasks=spec.tasks) != spec:
            raise UserError(f"{self.folder}: its episodes have other features, bounds or rate; choose another folder")

    def load(self, tasks: Collection[str] | None = None, sources: Collection[str] | None = None) -> list[Episode]:
        """Read the episodes of the given tasks and sources (None: all), in the order in which they were appended.

        Raises:
            UserError: a shard is damaged; the message names it.
        """
        return [episode for shard in self.shards for episode in read_shard(shard, tasks, sources)]

    def files(self) -> dict[str, bytes]:
        """Return the bytes of all shards by file name, to store them with other files, such as a checkpoint."""
        return {shard.name: read_file(shard, TENSOR_BYTES) for shard in self.shards}

    def _headers(self) -> list[dict[str, Any]]:
        return [_header(shard) for shard in self.shards]


def pack_episodes(episodes: list[Episode], spec: Spec) -> bytes:
    """Return the bytes of one shard, for an `EpisodeStore` or to store it with other files, such as a checkpoint.

    The tensors of all episodes are concatenated. Their lengths and everything else are in a JSON header, which has its
    own sha256.
    """
    # An episode without rewards of the simulator gets zeros; `task_reward` in its row tells the two cases apart.
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
    """Return one sha256 of all tensors, with their names, types and shapes."""
    # safetensors has no checksum. Without this one, training would use damaged data.
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(_line(name, tensor.dtype, tensor.shape))
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _line(name: str, dtype: torch.dtype, shape: Sequence[int]) -> bytes:
    """Return what the digest includes about a tensor besides its data."""
    return f"{name} {dtype} {tuple(shape)}".encode()


DTYPES = {"F32": torch.float32, "BOOL": torch.bool}
"""Name of a type in a safetensors header -> torch type, for the types that occur in a shard."""

HEADER_BYTES = 64_000_000
"""Largest accepted size of a safetensors header, in bytes."""


def _open(shard: Path) -> tuple[BinaryIO, dict[str, Any], dict[str, Any]]:
    """Open and check a shard. Return the file, its safetensors entries, and our own JSON header.

    The file is positioned after the safetensors header, at the first byte of tensor data.
    """
    try:
        file = open_file(shard, TENSOR_BYTES)
    except FileNotFoundError as error:
        raise _damaged(shard) from error
    try:
        # Format of safetensors: 8 bytes with the size of the header, the header (JSON), the data of the tensors.
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
    """Raise `ValueError` if a row of the header is not as `pack_episodes` writes it."""
    for row in rows:
        fits = type(row["length"]) is int and row["length"] >= 1 and type(row["seed"]) is int
        fits = fits and abs(row["seed"]) < 2**63 and all(isinstance(row[key], str) for key in ("task", "source"))
        fits = fits and type(row["is_success"]) is type(row["task_reward"]) is bool
        every = row.get("picture_every", 1)  # older shards have no images
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
    """Return header and tensors of a shard. The checksum is verified piece by piece before the file is loaded."""
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
        except Exception as error:  # a damaged header can raise any exception
            raise _damaged(shard) from error


def read_shard(
    shard: Path, tasks: Collection[str] | None = None, sources: Collection[str] | None = None
) -> list[Episode]:
    """Read the episodes of one shard; arguments and errors are those of `EpisodeStore.load`."""
    # The header is small: skip the tensors of a shard that has none of the wanted episodes.
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
        # Clone, because a view would keep the whole shard in memory.
        episode = Episode(
            state=state.clone(),
            action=action.clone(),
            success=success.clone(),
            task=row["task"],
            source=row["source"],
            seed=row["seed"],
            task_reward=reward.clone() if row["task_reward"] else None,
            picture_every=row.get("picture_every", 1),  # older shards have no images
        )
        episode.check_fits(spec, f"{shard}: episode of seed {episode.seed}")
        episodes.append(episode)
    return episodes


def _damaged(shard: Path) -> UserError:
    return UserError(f"{shard}: the file is damaged; delete it and collect its episodes again")
