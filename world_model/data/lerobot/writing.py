"""Export of episodes as a LeRobot v3.0 dataset.

Images become PNG in the data files, and a slow camera repeats its image in each frame. Latents become a vector, as the
state is, because only the model that made them can make them again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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
from world_model.spec import IMAGES, Spec

DATA_BYTES, CHUNK_FILES = 100_000_000, 1000
"""A new data file begins after so many bytes, and a new folder of them after so many files."""

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def export_lerobot(episodes: list[Episode], spec: Spec, folder: str | Path, fps: float | None = None) -> None:
    """Write `episodes` as a LeRobot v3.0 dataset into the new folder `folder`.

    `fps` is `spec.control_hz` by default. `next.reward` is the simulator's own reward; for an episode without one it is
    1 for success and 0 otherwise. The task of a frame is the instruction, a sentence.

    Raises:
        UserError: there are no episodes, one does not fit `spec`, the folder is not empty, or pyarrow is missing.
    """
    import_pyarrow()
    final = Path(folder)
    if not episodes:
        raise UserError(f"{final}: there are no episodes to export; collect some first")
    if final.exists() and (final.is_file() or any(final.iterdir())):
        raise UserError(f"{final}: it exists already; choose a new folder")
    for i, episode in enumerate(episodes):
        episode.check_fits(spec, f"{final}: episode {i} (task {episode.task})")
    write_folder(final, _dataset(episodes, spec, spec.control_hz if fps is None else fps))


@dataclass
class _Part:
    """One episode as it is written."""

    number: int
    episode: Episode
    frames: Columns  # its columns of `data`
    levels: dict[str, np.ndarray]  # column of images -> how often each value of a pixel occurs, see `count_levels`
    end: int  # index, in the dataset, of the first frame after it
    file: int  # number of its data file


def _dataset(episodes: list[Episode], spec: Spec, fps: float) -> dict[str, bytes]:
    """Return all files of the dataset: relative path -> bytes."""
    sentences = tuple(dict.fromkeys(map(spec.instruction, spec.tasks)))  # two tasks may have the same instruction
    parts = _parts(episodes, spec, sentences, fps)
    together = _joined(parts)
    levels = {name: np.sum([part.levels[name] for part in parts], axis=0) for name in parts[0].levels}
    info = {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": parts[-1].end,
        "total_tasks": len(sentences),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": DATA_BYTES // 1_000_000,
        "video_files_size_in_mb": 500,
        "fps": int(fps) if float(fps).is_integer() else fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": _features(together, spec),
    }
    rows = [_row(part, spec) for part in parts]
    files = {
        INFO: _json(info),
        STATS: _json(_stats(together, levels)),
        OURS: _json({"schema_version": 2, "spec": spec.to_dict()}),
        TASKS: _tasks_parquet(sentences),
        f"meta/episodes/{FILE}": to_parquet({key: [row[key] for row in rows] for key in rows[0]}),
    }
    for file in range(parts[-1].file + 1):
        path = DATA_PATH.format(chunk_index=file // CHUNK_FILES, file_index=file % CHUNK_FILES)
        files[path] = to_parquet(_joined([part for part in parts if part.file == file]))
    return files


def _parts(episodes: list[Episode], spec: Spec, sentences: tuple[str, ...], fps: float) -> list[_Part]:
    """Convert episodes, and distribute them over files of about `DATA_BYTES` at most."""
    parts: list[_Part] = []
    end = file = size = 0
    for number, episode in enumerate(episodes):
        frames = _frames(episode, number, spec, sentences, fps)
        frames["index"] = np.arange(end, end + episode.length)
        end += episode.length
        added = sum(sum(map(len, c)) if c.dtype == object else c.nbytes for c in frames.values())
        if size and size + added > DATA_BYTES:
            file, size = file + 1, 0
        size += added
        levels = {
            OBSERVATION + name: count_levels(episode.obs[name][episode.rows_of(name)[:-1]])
            for name in spec.features
            if name.startswith(IMAGES)
        }
        parts.append(_Part(number=number, episode=episode, frames=frames, levels=levels, end=end, file=file))
    return parts


def _frames(episode: Episode, number: int, spec: Spec, sentences: tuple[str, ...], fps: float) -> Columns:
    """Return the columns of `data` for episode `number`, one row per step; the last frame is left out."""
    steps = np.arange(episode.length)
    reward = episode.success if episode.task_reward is None else episode.task_reward
    return {
        **{OBSERVATION + name: _values(episode, name) for name in spec.features},
        "action": episode.action.float().cpu().numpy(),
        "next.reward": reward.float().cpu().numpy(),
        "next.success": episode.success.cpu().numpy(),
        "next.done": steps == episode.length - 1,
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(episode.length, number),
        "task_index": np.full(episode.length, sentences.index(spec.instruction(episode.task))),
    }


def _values(episode: Episode, name: str) -> np.ndarray:
    """Return the value of a feature in each frame but the last: a vector, or the bytes of a PNG file."""
    rows = episode.rows_of(name)[:-1].numpy()
    if name.startswith(IMAGES):
        return np.array([encode_png(image) for image in episode.obs[name][:-1]], dtype=object)[rows]
    return episode.obs[name].float().cpu().numpy()[rows]


def _joined(parts: list[_Part]) -> Columns:
    """Concatenate the columns of episodes."""
    return {name: np.concatenate([part.frames[name] for part in parts]) for name in parts[0].frames}


def _row(part: _Part, spec: Spec) -> dict[str, Any]:
    """Return the row of `meta/episodes` for an episode."""
    episode = part.episode
    stats = _stats(part.frames, part.levels)
    return {
        "episode_index": part.number,
        "tasks": [spec.instruction(episode.task)],
        "length": episode.length,
        "data/chunk_index": part.file // CHUNK_FILES,
        "data/file_index": part.file % CHUNK_FILES,
        "dataset_from_index": part.end - episode.length,
        "dataset_to_index": part.end,
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
    state_names = [f"state_{i}" for i in range(spec.state_dim)]
    for name, part in spec.slices.items():
        state_names[part] = [f"{name}_{i}" for i in range(part.stop - part.start)]
    names = {"observation.state": state_names, "action": [f"action_{i}" for i in range(spec.action_dim)]}
    found: dict[str, Any] = {
        name: {"dtype": str(column.dtype), "shape": list(column.shape[1:]) or [1], "names": names.get(name)}
        for name, column in columns.items()
    }
    for name in spec.images:
        shape = list(spec.features[name].shape)
        found[OBSERVATION + name] = {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
    return found


def _stats(columns: Columns, levels: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the statistics that LeRobot stores of columns, per dimension; of images per channel, from `levels`."""
    return {
        name: level_stats(levels[name], len(column)) if name in levels else _vector_stats(column)
        for name, column in columns.items()
    }


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
