"""Tables of a LeRobot v3.0 dataset: the columns of `data`, the rows of `meta/episodes`, and statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from world_model.data.columns import Columns
from world_model.data.episodes import PERSON, Episode
from world_model.data.images import QUANTILES, encode_png, level_stats
from world_model.data.lerobot.layout import EVERY, FINAL
from world_model.data.parquet import to_parquet
from world_model.data.shards import OBSERVATION
from world_model.spec import IMAGES, Feature, Spec

CHUNK_FILES = 1000
"""A new folder of files begins after so many."""

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def path_of(template: str, file: int, **fields: str) -> str:
    """Fill a path template with the number of a file."""
    return template.format(chunk_index=file // CHUNK_FILES, file_index=file % CHUNK_FILES, **fields)


def frames_of(episode: Episode, number: int, first: int, spec: Spec, sentences: Sequence[str], fps: float) -> Columns:
    """Return the columns of `data` for an episode, one row per step; the last frame is left out.

    Args:
        episode: must fit `spec`.
        number: of the episode.
        first: number of frames before it in the dataset.
        spec: the features to write.
        sentences: instructions of the dataset, whose index a frame has.
        fps: frames per second.
    """
    steps = np.arange(episode.length)
    reward = episode.success if episode.task_reward is None else episode.task_reward
    control: Columns = {}
    if episode.control is not None:
        who = episode.control.long().cpu().numpy()
        control = {"control": who, "intervention": who == PERSON}  # LeRobot marks the steps of a person by the latter
    return {
        **{OBSERVATION + name: _values(episode, name) for name in spec.features},
        **control,
        "action": episode.action.float().cpu().numpy(),
        "next.reward": reward.float().cpu().numpy(),
        "next.success": episode.success.cpu().numpy(),
        "next.done": steps == episode.length - 1,
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(episode.length, number),
        "task_index": np.full(episode.length, sentences.index(spec.instruction(episode.task))),
        "index": first + steps,
    }


def _values(episode: Episode, name: str) -> np.ndarray:
    """Return the value of a feature in each frame but the last: a vector, or the bytes of a PNG file."""
    rows = episode.rows_of(name)[:-1].numpy()
    if name.startswith(IMAGES):
        return np.array([encode_png(image) for image in episode.obs[name][:-1]], dtype=object)[rows]
    return episode.obs[name].float().cpu().numpy()[rows]


def joined(parts: list[Columns]) -> Columns:
    """Concatenate the columns of episodes."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def row_of(
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


def features_of(columns: Columns, spec: Spec) -> dict[str, Any]:
    """Return the `features` of info.json: type, shape and names of the dimensions of each column."""
    names = {OBSERVATION + name: _dimensions(name, spec.features[name]) for name in spec.vectors}
    names["action"] = list(spec.action_names) or [f"action_{i}" for i in range(spec.action_dim)]
    found: dict[str, Any] = {
        name: {"dtype": str(column.dtype), "shape": list(column.shape[1:]) or [1], "names": names.get(name)}
        for name, column in columns.items()
    }
    for name in spec.images:
        shape = list(spec.features[name].shape)
        found[OBSERVATION + name] = {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
    return found


def _dimensions(name: str, feature: Feature) -> list[str]:
    """Return names of the dimensions of a vector: its own, or those of its slices or of the feature, numbered."""
    if feature.names:
        return list(feature.names)
    names = [f"{name}_{i}" for i in range(feature.shape[0])]
    for part, (first, last) in feature.slices.items():
        names[first:last] = [f"{part}_{i}" for i in range(last - first)]
    return names


def stats_of(vectors: Columns, levels: dict[str, np.ndarray], n_frames: int) -> dict[str, dict[str, Any]]:
    """Return the statistics that LeRobot stores: of vectors per dimension, of images per channel from `levels`."""
    images = {name: level_stats(counts, n_frames) for name, counts in levels.items()}
    return {name: _vector_stats(column) for name, column in vectors.items()} | images


def combine_stats(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the statistics of two parts of a dataset together, each as `stats_of` returns them.

    Quantiles are averaged, weighted by the number of frames, as LeRobot does; the others are exact.
    """
    found = {}
    for name in other:
        a, b = ({key: np.array(value) for key, value in part[name].items()} for part in (one, other))
        n, m = int(a["count"][0]), int(b["count"][0])
        share = n / (n + m)
        mean, square = (share * of(a) + (1 - share) * of(b) for of in (_mean, _square))
        combined = {"min": np.minimum(a["min"], b["min"]), "max": np.maximum(a["max"], b["max"]), "mean": mean}
        combined["std"] = np.sqrt(np.maximum(square - mean**2, 0.0))
        combined |= {key: share * a[key] + (1 - share) * b[key] for key, _ in QUANTILES}
        found[name] = {key: value.tolist() for key, value in combined.items()} | {"count": [n + m]}
    return found


def _mean(stats: Mapping[str, np.ndarray]) -> np.ndarray:
    return stats["mean"]


def _square(stats: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the mean of the squares."""
    return stats["std"] ** 2 + stats["mean"] ** 2


def _vector_stats(column: np.ndarray) -> dict[str, list[float]]:
    values = column.reshape(len(column), -1).astype(np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    for name, share in QUANTILES:
        stats[name] = np.quantile(values, share, axis=0)
    return {name: value.tolist() for name, value in stats.items()} | {"count": [len(values)]}


def json_bytes(data: Any) -> bytes:
    """Return the bytes of a JSON file."""
    return (json.dumps(data, indent=4) + "\n").encode()


def tasks_parquet(sentences: Sequence[str]) -> bytes:
    """Return the bytes of `meta/tasks.parquet`."""
    # LeRobot reads this file with pandas and looks tasks up in the index: this metadata makes `task` the index.
    column = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    note = {"index_columns": ["task"], "column_indexes": [], "columns": [column], "pandas_version": "2.0.0"}
    return to_parquet({"task_index": np.arange(len(sentences)), "task": list(sentences)}, {"pandas": json.dumps(note)})
