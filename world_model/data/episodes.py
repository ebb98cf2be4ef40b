"""Recorded episodes: tensors in memory, safetensors shards on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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
from world_model.spec import LATENTS, STATE, Feature, Spec

SCHEMA_VERSION = 2
"""2: a tensor for each feature. In version 1 the codes of images are the end of the state vector."""

SHARD_BYTES = TENSOR_BYTES // 4
"""Largest size of a shard of imported episodes, well below the limit for reading one."""

WAIT_S = 30.0
"""Seconds that `append` waits for another process that writes to the folder."""
POLICY, PERSON, BLEND = range(3)  # who acted in a step, see `Episode.control`


@dataclass
class Episode:
    """One recorded episode of `T` steps: action `t` leads from frame `t` to frame `t + 1`.

    A feature with one value per frame has T + 1 rows. A slower one, with a new value every `every[name]` steps, has
    rows for frames 0, every, 2 * every, ... and for the last frame; see `rows_of`.
    """

    obs: dict[str, Tensor]  # feature -> (rows, *shape): `state` float32, `images.CAMERA` uint8, `latents` float32
    action: Tensor  # (T, action_dim) float32, as executed, within bounds
    success: Tensor  # (T,) bool, whether frame t + 1 solves the task
    task: str
    source: str  # "expert", "noisy", "random", "policy", "import"
    seed: int
    task_reward: Tensor | None = None  # (T,) float32, the simulator's own reward
    every: dict[str, int] = field(default_factory=dict)  # feature -> steps between its rows, if more than 1
    control: Tensor | None = None  # (T,) uint8, who acted: POLICY, PERSON or a BLEND of both; None: unknown

    @property
    def state(self) -> Tensor:
        """The state vectors (T + 1, state_dim)."""
        return self.obs[STATE]

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.action.shape[0]

    @property
    def is_success(self) -> bool:
        """Whether any step is a success."""
        return bool(self.success.any())

    def rows_of(self, name: str) -> Tensor:
        """Return for each frame (T + 1,) the row of a feature that holds its value."""
        every = self.every.get(name, 1)
        rows = torch.arange(self.length + 1, device=self.action.device) // every
        rows[-1] = -(-self.length // every)  # the last frame has a row of its own
        return rows

    def cut(self, first: int, last: int) -> Episode:
        """Return the part from frame `first` to frame `last`; `first` is a frame in which every feature has a row."""
        obs = {}
        for name, values in self.obs.items():
            every, rows = self.every.get(name, 1), self.rows_of(name)
            frames = [*range(first, last, every), last]
            obs[name] = values[rows[frames]]
        return replace(
            self,
            obs=obs,
            action=self.action[first:last],
            success=self.success[first:last],
            task_reward=None if self.task_reward is None else self.task_reward[first:last],
            control=None if self.control is None else self.control[first:last],
        )

    def only(self, names: Collection[str]) -> Episode:
        """Return the episode with those of its features that are in `names`."""
        obs = {name: values for name, values in self.obs.items() if name in names}
        return replace(self, obs=obs, every={name: every for name, every in self.every.items() if name in names})

    def check_fits(self, spec: Spec, where: str) -> None:
        """Check features, shapes, task and numbers against `spec`; `where` names the episode in the message.

        Raises:
            UserError: a feature is missing, a shape or the task does not fit, there are no steps, or a number is not
                finite.
        """
        steps = self.length
        expected = {"action": (self.action, (steps, spec.action_dim)), "success": (self.success, (steps,))}
        for name, feature in spec.features.items():
            if name not in self.obs:
                raise UserError(f"{where}: it has no {name!r}, it has {', '.join(self.obs)}; leave the episode out")
            n_rows = -(-steps // self.every.get(name, 1)) + 1
            expected = {name: (self.obs[name], (n_rows, *feature.shape)), **expected}
        if self.task_reward is not None:
            expected["task_reward"] = (self.task_reward, (steps,))
        if self.control is not None:
            expected["control"] = (self.control, (steps,))
        if steps == 0:
            raise UserError(f"{where}: the episode has no steps; leave it out")
        if self.task not in spec.tasks:
            known = ", ".join(spec.tasks)
            raise UserError(f"{where}: task {self.task!r:.80} is unknown; the known tasks are {known:.500}")
        for name, (tensor, shape) in expected.items():
            if tensor.shape != shape:
                raise UserError(f"{where}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
            finite = torch.isfinite(tensor) if tensor.dim() == 1 else torch.isfinite(tensor).flatten(1).all(1)
            if tensor.is_floating_point() and not finite.all():
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
        """Spec of the stored episodes, with the tasks and instructions of all shards; `UserError` without episodes."""
        specs = [Spec.from_dict(header["spec"]) for header in self._headers()]
        if not specs:
            raise UserError(f"{self.folder}: no episodes here; collect some or name another folder")
        instructions = {task: text for spec in reversed(specs) for task, text in spec.instructions.items()}
        wordings = {task: texts for spec in reversed(specs) for task, texts in spec.wordings.items()}
        tasks = tuple(dict.fromkeys(task for spec in specs for task in spec.tasks))
        return replace(specs[0], tasks=tasks, instructions=instructions, wordings=wordings)

    def check_fits(self, spec: Spec, where: str) -> None:
        """Check that a model with this `spec` can read the episodes; `where` begins the message.

        The episodes may have more features, which `load` leaves out, and other tasks.

        Raises:
            UserError: a feature of `spec` is missing or has another size, or the action bounds or the rate differ.
        """
        mine = self.spec
        for name, feature in spec.features.items():
            recorded = mine.features.get(name)
            if recorded is None or (recorded.shape != feature.shape and name in spec.images):
                has = f"have {_size(recorded)}" if recorded else f"have only {', '.join(mine.features)}"
                raise UserError(
                    f"{where}: the checkpoint reads {name} of size {_size(feature)}, its episodes {has}; name other "
                    "episodes, or record or import them with these images"
                )
        if not _same(replace(mine, features={name: mine.features[name] for name in spec.features}), spec):
            raise UserError(f"{where}: recorded with other features, bounds or rate than the checkpoint's")

    def __len__(self) -> int:
        return sum(len(header["episodes"]) for header in self._headers())

    def count(self) -> Counter[tuple[str, str, bool]]:
        """Count episodes by (task, source, is_success)."""
        rows = (row for header in self._headers() for row in header["episodes"])
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
        if shards and not _same(Spec.from_dict(_header(shards[0])["spec"]), spec):
            raise UserError(f"{self.folder}: its episodes have other features, bounds or rate; choose another folder")

    def load(
        self,
        tasks: Collection[str] | None = None,
        sources: Collection[str] | None = None,
        features: Collection[str] | None = None,
    ) -> list[Episode]:
        """Read the episodes of the given tasks and sources (None: all), in the order in which they were appended.

        `features` are the features to keep (None: all); others, such as large images, then take no memory.

        Raises:
            UserError: a shard is damaged; the message names it.
        """
        return [episode for shard in self.shards for episode in read_shard(shard, tasks, sources, features)]

    def files(self) -> dict[str, bytes]:
        """Return the bytes of all shards by file name, to store them with other files, such as a checkpoint."""
        return {shard.name: read_file(shard, TENSOR_BYTES) for shard in self.shards}

    def _headers(self) -> list[dict[str, Any]]:
        return [_header(shard) for shard in self.shards]


def in_shards(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """Yield episodes in groups of about `SHARD_BYTES` at most, since a shard is read as a whole."""
    size, group = 0, list[Episode]()
    for episode in episodes:
        # float32 actions, and two values per step.
        added = 4 * (episode.action.numel() + 2 * episode.length) + sum(x.nbytes for x in episode.obs.values())
        if group and size + added > SHARD_BYTES:
            yield group
            size, group = 0, []
        size += added
        group.append(episode)
    yield group


def pack_episodes(episodes: list[Episode], spec: Spec) -> bytes:
    """Return the bytes of one shard, for an `EpisodeStore` or to store it with other files, such as a checkpoint.

    The tensors of all episodes are concatenated. Their lengths and everything else are in a JSON header, which has its
    own sha256.
    """
    # An episode without rewards of the simulator gets zeros; `task_reward` in its row tells the two cases apart.
    rewards = [torch.zeros(e.length) if e.task_reward is None else e.task_reward for e in episodes]
    tensors = {
        **{OBSERVATION + name: torch.cat([e.obs[name] for e in episodes]) for name in episodes[0].obs},
        "action": torch.cat([e.action for e in episodes]).float(),
        "next.success": torch.cat([e.success for e in episodes]).bool(),
        "next.reward": torch.cat(rewards).float(),
    }
    who = [torch.zeros(e.length) if e.control is None else e.control for e in episodes]
    tensors |= {"control": torch.cat(who).to(torch.uint8)} if any(e.control is not None for e in episodes) else {}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    rows = [
        {
            "task": e.task,
            "source": e.source,
            "seed": e.seed,
            "length": e.length,
            "is_success": e.is_success,
            "task_reward": e.task_reward is not None,
            "every": e.every,
            "control": e.control is not None,
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


OBSERVATION = "observation."
"""Beginning of the name of a feature in files, as in LeRobot's datasets; the rest is its name in an observation."""

DTYPES = {"F32": torch.float32, "BOOL": torch.bool, "U8": torch.uint8}
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
        for row in header["episodes"] if version == 1 else ():
            every = row.pop("picture_every", 1)  # the oldest shards have no images
            row["every"] = {} if every == 1 else {LATENTS: every}
        _check_rows(header["episodes"])
        _spec(shard, header["spec"])
    except UserError:
        file.close()
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        file.close()
        raise _damaged(shard) from error
    return file, entries, header


def _check_rows(rows: list[dict[str, Any]]) -> None:
    """Raise `ValueError` if a row of the header is not as `pack_episodes` writes it."""
    for row in rows:
        fits = type(row["length"]) is int and row["length"] >= 1 and type(row["seed"]) is int
        fits = fits and abs(row["seed"]) < 2**63 and all(isinstance(row[key], str) for key in ("task", "source"))
        fits = fits and type(row["is_success"]) is type(row["task_reward"]) is bool
        every = row["every"]
        fits = fits and all(isinstance(name, str) for name in every) and all(type(n) is int for n in every.values())
        if not fits or any(n < 1 for n in every.values()):
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
    shard: Path,
    tasks: Collection[str] | None = None,
    sources: Collection[str] | None = None,
    features: Collection[str] | None = None,
) -> list[Episode]:
    """Read the episodes of one shard; arguments and errors are those of `EpisodeStore.load`."""
    # The header is small: skip the tensors of a shard that has none of the wanted episodes.
    rows = _header(shard)["episodes"]
    wanted = [(tasks is None or row["task"] in tasks) and (sources is None or row["source"] in sources) for row in rows]
    if not any(wanted):
        return []
    header, tensors = _read(shard)
    spec, lengths = _spec(shard, header["spec"]), [row["length"] for row in rows]
    if header["schema_version"] == 1:
        tensors = _with_latents(tensors, spec, rows)
    names = [name.removeprefix(OBSERVATION) for name in tensors if name.startswith(OBSERVATION)]
    if features is not None:
        names = [name for name in names if name in features]
        spec = replace(spec, features={name: of for name, of in spec.features.items() if name in features})
    tensors.setdefault("control", torch.zeros(sum(lengths), dtype=torch.uint8))
    try:
        parts = zip(
            *(tensors[name].split(lengths) for name in ("action", "next.success", "next.reward", "control")),
            *(
                tensors[OBSERVATION + name].split([-(-row["length"] // row["every"].get(name, 1)) + 1 for row in rows])
                for name in names
            ),
            strict=True,
        )
    except (KeyError, RuntimeError) as error:
        raise _damaged(shard) from error
    episodes = []
    for row, keep, (action, success, reward, control, *obs) in zip(rows, wanted, parts, strict=True):
        if not keep:
            continue
        # Clone, because a view would keep the whole shard in memory.
        episode = Episode(
            obs={name: values.clone() for name, values in zip(names, obs, strict=True)},
            action=action.clone(),
            success=success.clone(),
            task=row["task"],
            source=row["source"],
            seed=row["seed"],
            task_reward=reward.clone() if row["task_reward"] else None,
            every={name: every for name, every in row["every"].items() if name in names},
            control=control.clone() if row.get("control") else None,
        )
        episode.check_fits(spec, f"{shard}: episode of seed {episode.seed}")
        episodes.append(episode)
    return episodes


def _with_latents(tensors: dict[str, Tensor], spec: Spec, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Give the codes at the end of the state vectors of a shard of version 1 their own tensor, without repeats."""
    if LATENTS not in spec.features:
        return tensors
    try:
        state, latents = tensors[OBSERVATION + STATE].split([spec.state_dim, *spec.features[LATENTS].shape], dim=1)
    except (KeyError, RuntimeError, IndexError):  # reported where the tensors are split into episodes
        return tensors
    kept, offset = [], 0
    for row in rows:
        length, every = row["length"], row["every"].get(LATENTS, 1)
        kept += [offset + step for step in (*range(0, length, every), length)]
        offset += length + 1
    if offset != len(latents):
        return tensors
    return tensors | {OBSERVATION + STATE: state.contiguous(), OBSERVATION + LATENTS: latents[torch.tensor(kept)]}


def _same(a: Spec, b: Spec) -> bool:
    """Whether features, action bounds and rate are equal; tasks and the periods of cameras may differ."""
    shapes = [{name: (f.shape, f.dtype, f.unit, f.slices) for name, f in spec.features.items()} for spec in (a, b)]
    others = [(spec.action_low, spec.action_high, spec.control_hz) for spec in (a, b)]
    return shapes[0] == shapes[1] and others[0] == others[1]


def _size(feature: Feature) -> str:
    """Return the shape of a feature in words."""
    return " x ".join(map(str, feature.shape))


def _damaged(shard: Path) -> UserError:
    return UserError(f"{shard}: the file is damaged; delete it and collect its episodes again")
