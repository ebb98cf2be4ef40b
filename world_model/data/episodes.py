"""Recorded episodes and the folders that hold them: what code outside this room imports, `Episode` included."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from world_model.data.episode import BLEND, PERSON, POLICY, Episode
from world_model.data.shards import pack_episodes, read_header, read_shard
from world_model.files import TENSOR_BYTES, cannot_write, lock, read_file, write_atomically
from world_model.spec import Feature, Spec

__all__ = ["BLEND", "PERSON", "POLICY", "Episode", "EpisodeStore"]

WAIT_S = 30.0
"""Seconds that `append` waits for another process that writes to the folder."""


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
        if other := _difference(replace(mine, features={name: mine.features[name] for name in spec.features}), spec):
            raise UserError(
                f"{where}: recorded with other features, bounds or rate than the checkpoint's: {other}; "
                "name other episodes, or another checkpoint"
            )

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
        if shards and (other := _difference(Spec.from_dict(read_header(shards[0])["spec"]), spec)):
            raise UserError(
                f"{self.folder}: its episodes have other features, bounds or rate: {other}; choose another folder"
            )

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
        return [read_header(shard) for shard in self.shards]


def _difference(a: Spec, b: Spec) -> str:
    """Return the first difference of features, action bounds and rate as `a, not b`; empty if there is none.

    Tasks and the periods of cameras may differ.
    """
    rows: list[tuple[str, Any, Any]] = [("features", sorted(a.features), sorted(b.features))]
    for name in a.features.keys() & b.features.keys():
        mine, theirs = a.features[name], b.features[name]
        rows += [
            (f"{name} of size", _size(mine), _size(theirs)),
            (f"{name} of type", mine.dtype, theirs.dtype),
            (f"{name} in units", mine.unit, theirs.unit),
            (f"{name} with slices", mine.slices, theirs.slices),
        ]
        if mine.names and theirs.names:
            rows.append((f"{name} of", mine.names, theirs.names))
    if a.action_names and b.action_names:
        rows.append(("actions of", a.action_names, b.action_names))
    rows += [(key, getattr(a, key), getattr(b, key)) for key in ("action_low", "action_high", "control_hz")]
    return next((f"{what} {mine!s:.100}, not {theirs!s:.100}" for what, mine, theirs in rows if mine != theirs), "")


def _size(feature: Feature) -> str:
    """Return the shape of a feature in words."""
    return " x ".join(map(str, feature.shape))
