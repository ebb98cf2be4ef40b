"""Export of episodes as a LeRobot v3.0 dataset.

Images become PNG in the data files, and a slow camera repeats its image in each frame. Latents become a vector, as the
state is, because only the model that made them can make them again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import UserError
from world_model.data.columns import Columns
from world_model.data.episodes import OBSERVATION, Episode
from world_model.data.images import count_levels, encode_png, level_stats
from world_model.data.lerobot.layout import EVERY, FILE, FINAL, INFO, OURS, STATS, TASKS, VERSION
from world_model.data.parquet import import_pyarrow, to_parquet
from world_model.files import write_folder
from world_model.spec import IMAGES, Feature, Spec

DATA_BYTES, CHUNK_FILES = 100_000_000, 1000
"""A new data file begins after so many bytes, and a new folder of them after so many files."""

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def export_lerobot(episodes: Iterable[Episode], spec: Spec, folder: str | Path, fps: float | None = None) -> int:
    """Write `episodes` as a LeRobot v3.0 dataset into the new folder `folder`, and return their number.

    They may come from an iterator that makes each when it is needed: images are kept in memory for one data file only.
    `fps` is `spec.control_hz` by default. `next.reward` is the simulator's own reward; for an episode without one it is
    1 for success and 0 otherwise. The task of a frame is the instruction, a sentence.

    Raises:
        UserError: there are no episodes, one does not fit `spec`, the folder is not empty, or pyarrow is missing.
    """
    import_pyarrow()
    final = Path(folder)
    if final.exists() and (final.is_file() or any(final.iterdir())):
        raise UserError(f"{final}: it exists already; choose a new folder")
    export = _Export(final, spec, spec.control_hz if fps is None else fps)
    write_folder(final, export.files(episodes))
    return len(export.rows)


class _Export:
    """A dataset while it is written: what the files of `meta` need to know of the episodes so far.

    Args:
        final: folder of the dataset, for messages.
        spec: of the episodes.
        fps: frames per second.
    """

    def __init__(self, final: Path, spec: Spec, fps: float) -> None:
        self.final, self.spec, self.fps = final, spec, fps
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
            episode.check_fits(self.spec, f"{self.final}: episode {number} (task {episode.task})")
            frames = _frames(episode, number, self.n_frames, self)
            added = sum(sum(map(len, c)) if c.dtype == object else c.nbytes for c in frames.values())
            if size and size + added > DATA_BYTES:
                yield _data_path(file), to_parquet(_joined(waiting))
                waiting, file, size = [], file + 1, 0
            waiting.append(frames)
            size += added
            self._add(episode, number, frames, file)
        if not self.rows:
            raise UserError(f"{self.final}: there are no episodes to export; collect some first")
        yield _data_path(file), to_parquet(_joined(waiting))
        yield INFO, _json(self._info())
        yield STATS, _json(_stats(_joined(self.vectors), self.levels, self.n_frames))
        yield OURS, _json({"schema_version": 2, "spec": self.spec.to_dict()})
        yield TASKS, _tasks_parquet(self.sentences)
        yield f"meta/episodes/{FILE}", to_parquet({key: [row[key] for row in self.rows] for key in self.rows[0]})

    def _add(self, episode: Episode, number: int, frames: Columns, file: int) -> None:
        """Keep what `meta` says of an episode, whose columns are `frames`, in data file `file`; no images."""
        levels = {
            OBSERVATION + name: count_levels(episode.obs[name][episode.rows_of(name)[:-1]]) for name in self.spec.images
        }
        vectors = {name: column for name, column in frames.items() if name not in levels}
        self.levels = {name: self.levels.get(name, 0) + counts for name, counts in levels.items()}
        self.vectors.append(vectors)
        self.features = self.features or _features(frames, self.spec)
        self.n_frames += episode.length
        stats = _stats(vectors, levels, episode.length)
        self.rows.append(_row(episode, number, file, self.n_frames, self.spec, stats))

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


def _data_path(file: int) -> str:
    return DATA_PATH.format(chunk_index=file // CHUNK_FILES, file_index=file % CHUNK_FILES)


def _frames(episode: Episode, number: int, first: int, export: _Export) -> Columns:
    """Return the columns of `data` for episode `number`, one row per step; the last frame is left out.

    `first` is the number of frames before it in the dataset.
    """
    steps, spec = np.arange(episode.length), export.spec
    reward = episode.success if episode.task_reward is None else episode.task_reward
    return {
        **{OBSERVATION + name: _values(episode, name) for name in spec.features},
        "action": episode.action.float().cpu().numpy(),
        "next.reward": reward.float().cpu().numpy(),
        "next.success": episode.success.cpu().numpy(),
        "next.done": steps == episode.length - 1,
        "timestamp": (steps / export.fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(episode.length, number),
        "task_index": np.full(episode.length, export.sentences.index(spec.instruction(episode.task))),
        "index": first + steps,
    }


def _values(episode: Episode, name: str) -> np.ndarray:
    """Return the value of a feature in each frame but the last: a vector, or the bytes of a PNG file."""
    rows = episode.rows_of(name)[:-1].numpy()
    if name.startswith(IMAGES):
        return np.array([encode_png(image) for image in episode.obs[name][:-1]], dtype=object)[rows]
    return episode.obs[name].float().cpu().numpy()[rows]


def _joined(parts: list[Columns]) -> Columns:
    """Concatenate the columns of episodes."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _row(
    episode: Episode, number: int, file: int, end: int, spec: Spec, stats: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the row of `meta/episodes` for an episode in data file `file`; `end` is the first frame after it."""
    return {
        "episode_index": number,
        "tasks": [spec.instruction(episode.task)],
        "length": episode.length,
        "data/chunk_index": file // CHUNK_FILES,
        "data/file_index": file % CHUNK_FILES,
        "dataset_from_index": end - episode.length,
        "dataset_to_index": end,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        **{FINAL + OBSERVATION + name: _final(episode, name) for name in spec.features},
        **{EVERY + OBSERVATION + name: episode.every.get(name, 1) for name in spec.features},
        "task_name": episode.task,
        "source": episode.source,
        "seed": episode.seed,
        "has_task_reward": episode.task_reward is not None,
        **{f"stats/{name}/{key}": value for name, of in stats.items() for key, value in of.items()},
    }


def _final(episode: Episode, name: str) -> np.ndarray | bytes:
    """Return the value of a feature in the last frame, as `_values` returns the others."""
    value = episode.obs[name][-1]
    return encode_png(value) if name.startswith(IMAGES) else value.float().cpu().numpy()


def _features(columns: Columns, spec: Spec) -> dict[str, Any]:
    """Return the `features` of info.json: type, shape and names of the dimensions of each column."""
    names = {OBSERVATION + name: _dimensions(name, spec.features[name]) for name in spec.vectors}
    names["action"] = [f"action_{i}" for i in range(spec.action_dim)]
    found: dict[str, Any] = {
        name: {"dtype": str(column.dtype), "shape": list(column.shape[1:]) or [1], "names": names.get(name)}
        for name, column in columns.items()
    }
    for name in spec.images:
        shape = list(spec.features[name].shape)
        found[OBSERVATION + name] = {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
    return found


def _dimensions(name: str, feature: Feature) -> list[str]:
    """Return names of the dimensions of a vector: those of its slices, numbered, or of the feature itself."""
    names = [f"{name}_{i}" for i in range(feature.shape[0])]
    for part, (first, last) in feature.slices.items():
        names[first:last] = [f"{part}_{i}" for i in range(last - first)]
    return names


def _stats(vectors: Columns, levels: dict[str, np.ndarray], n_frames: int) -> dict[str, dict[str, Any]]:
    """Return the statistics that LeRobot stores: of vectors per dimension, of images per channel from `levels`."""
    images = {name: level_stats(counts, n_frames) for name, counts in levels.items()}
    return {name: _vector_stats(column) for name, column in vectors.items()} | images


def _vector_stats(column: np.ndarray) -> dict[str, list[float]]:
    values = column.reshape(len(column), -1).astype(np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    for name, share in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
        stats[name] = np.quantile(values, share, axis=0)
    return {name: value.tolist() for name, value in stats.items()} | {"count": [len(values)]}


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=4) + "\n").encode()


def _tasks_parquet(sentences: tuple[str, ...]) -> bytes:
    # LeRobot reads this file with pandas and looks tasks up in the index: this metadata makes `task` the index.
    column = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    note = {"index_columns": ["task"], "column_indexes": [], "columns": [column], "pandas_version": "2.0.0"}
    return to_parquet({"task_index": np.arange(len(sentences)), "task": list(sentences)}, {"pandas": json.dumps(note)})
