"""Export of episodes as a LeRobot v3.0 dataset.

Images become PNG in the data files, and a slow camera repeats its image in each frame. Latents become a vector, as the
state is, because only the model that made them can make them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.errors import UserError
from world_model.data.columns import Columns
from world_model.data.episodes import Episode
from world_model.data.images import count_levels
from world_model.data.lerobot.layout import FILE, INFO, OURS, STATS, TASKS, VERSION
from world_model.data.lerobot.tables import (
    CHUNK_FILES,
    DATA_PATH,
    features_of,
    frames_of,
    joined,
    json_bytes,
    path_of,
    row_of,
    stats_of,
    tasks_parquet,
)
from world_model.data.parquet import import_pyarrow, to_parquet
from world_model.data.shards import OBSERVATION
from world_model.files import write_folder
from world_model.spec import Spec

DATA_BYTES = 100_000_000
"""A new data file begins after so many bytes."""


def export_lerobot(episodes: Iterable[Episode], spec: Spec, folder: str | Path) -> int:
    """Write `episodes` as a LeRobot v3.0 dataset into the new folder `folder`, and return their number.

    They may come from an iterator that makes each when it is needed: images are kept in memory for one data file only.
    `next.reward` is the simulator's own reward; for an episode without one it is
    1 for success and 0 otherwise. The task of a frame is the instruction, a sentence.

    Raises:
        UserError: there are no episodes, one does not fit `spec`, the folder is not empty, or pyarrow is missing.
    """
    import_pyarrow()
    final = Path(folder)
    if final.exists() and (final.is_file() or any(final.iterdir())):
        raise UserError(f"{final}: it exists already; choose a new folder")
    export = _Export(final, spec)
    write_folder(final, export.files(episodes))
    return len(export.rows)


class _Export:
    """A dataset while it is written: what the files of `meta` need to know of the episodes so far.

    Args:
        final: folder of the dataset, for messages.
        spec: of the episodes.
    """

    def __init__(self, final: Path, spec: Spec) -> None:
        self.final, self.spec, self.fps = final, spec, spec.control_hz
        self.sentences = tuple(dict.fromkeys(map(spec.instruction, spec.tasks)))  # two tasks may have the same one
        self.rows: list[dict[str, Any]] = []  # of `meta/episodes`
        self.levels: dict[str, np.ndarray] = {}  # column of images -> how often each value of a pixel occurs
        self.vectors: list[Columns] = []  # of each episode the columns that are no images
        self.features: dict[str, Any] = {}  # of info.json
        self.n_frames = 0

    def files(self, episodes: Iterable[Episode]) -> Iterator[tuple[str, bytes]]:
        """Yield path and bytes of each file of the dataset; see `export_lerobot`."""
        waiting: list[Columns] = []  # episodes of the data file that is being filled
        file = size = 0
        for number, episode in enumerate(episodes):
            episode = self._marked(episode, f"{self.final}: episode {number} (task {episode.task})")
            frames = frames_of(episode, number, self.n_frames, self.spec, self.sentences, self.fps)
            added = sum(sum(map(len, c)) if c.dtype == object else c.nbytes for c in frames.values())
            if size and size + added > DATA_BYTES:
                yield path_of(DATA_PATH, file), to_parquet(joined(waiting))
                waiting, file, size = [], file + 1, 0
            waiting.append(frames)
            size += added
            self._add(episode, number, frames, file)
        if not self.rows:
            raise UserError(f"{self.final}: there are no episodes to export; collect some first")
        yield path_of(DATA_PATH, file), to_parquet(joined(waiting))
        yield INFO, json_bytes(self._info())
        yield STATS, json_bytes(stats_of(joined(self.vectors), self.levels, self.n_frames))
        yield OURS, json_bytes({"schema_version": 2, "spec": self.spec.to_dict()})
        yield TASKS, tasks_parquet(self.sentences)
        yield f"meta/episodes/{FILE}", to_parquet({key: [row[key] for row in self.rows] for key in self.rows[0]})

    def _marked(self, episode: Episode, where: str) -> Episode:
        """Return an episode after its checks; all episodes say who acted, or none.

        Raises:
            UserError: it does not fit the spec, or says who acted where the first one does not.
        """
        episode.check_fits(self.spec, where)
        if self.rows and (episode.control is None) != ("control" not in self.features):
            if episode.control is not None:
                raise UserError(
                    f"{where} says who acted in each step, and those before it do not; move their shards apart"
                )
            return replace(episode, control=torch.zeros(episode.length, dtype=torch.uint8))
        return episode

    def _add(self, episode: Episode, number: int, frames: Columns, file: int) -> None:
        """Keep what `meta` says of an episode, whose columns are `frames`, in data file `file`; no images."""
        levels = {
            OBSERVATION + name: count_levels(episode.obs[name][episode.rows_of(name)[:-1]]) for name in self.spec.images
        }
        vectors = {name: column for name, column in frames.items() if name not in levels}
        self.levels = {name: self.levels.get(name, 0) + counts for name, counts in levels.items()}
        self.vectors.append(vectors)
        self.features = self.features or features_of(frames, self.spec)
        self.n_frames += episode.length
        stats = stats_of(vectors, levels, episode.length)
        self.rows.append(row_of(episode, number, file, self.n_frames, self.spec, stats))

    def _info(self) -> dict[str, Any]:
        """Return the content of info.json."""
        return {
            "codebase_version": VERSION,
            "robot_type": None,
            "total_episodes": len(self.rows),
            "total_frames": self.n_frames,
            "total_tasks": len(self.sentences),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_BYTES // 1_000_000,
            "video_files_size_in_mb": 500,
            "fps": int(self.fps) if float(self.fps).is_integer() else self.fps,
            "splits": {"train": f"0:{len(self.rows)}"},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": self.features,
        }
