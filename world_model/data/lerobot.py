"""LeRobot v3.0 datasets: export and import of states and actions. Needs the extra `data`.

A LeRobot frame pairs observation `t` with action `t`, so an episode of `T` steps becomes `T` frames, and its last
observation has no frame. Export stores that observation, source and seed in additional columns of `meta/episodes`, and
the `Spec` in `meta/wamtune.json`. LeRobot ignores both; `import_lerobot` restores every episode exactly. Other datasets
have neither: the last frame of an episode then gives its last observation, and the action of that frame is dropped.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.errors import UserError
from world_model.data.columns import Columns, rename
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import Episode
from world_model.extras import pip_line
from world_model.files import JSON_BYTES, TENSOR_BYTES, open_file, parse_json, read_file, write_folder
from world_model.spec import FASTEST, LATENTS, STATE, Feature, Spec

VERSION = "v3.0"
FILE = "chunk-000/file-000.parquet"
INFO, STATS, TASKS, OURS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/wamtune.json"
FINAL_STATE = "final.observation.state"

NARROWEST = 1e-3
"""Distance between the two bounds of an action that is constant in the dataset; bounds must differ."""

FREE_BYTES, EXPANSION = 64_000_000, 30
"""Memory that a parquet file may take: FREE_BYTES plus EXPANSION times its size on disk.

Robot data hardly compresses. A file that grows a thousandfold was made to exhaust the memory.
"""

TEMPLATE = re.compile(r"\{(video_key|chunk_index|file_index)(?::0?(\d))?d?\}")
"""A field in a path of info.json, such as {chunk_index:03d}."""


def export_lerobot(episodes: list[Episode], spec: Spec, folder: str | Path, fps: float | None = None) -> None:
    """Write `episodes` as a LeRobot v3.0 dataset into the new folder `folder`.

    `fps` is `spec.control_hz` by default. `next.reward` is the simulator's own reward; for an episode without one it is
    1 for success and 0 otherwise.

    Raises:
        UserError: there are no episodes, one does not fit `spec`, the folder is not empty, or pyarrow is missing.
    """
    _pyarrow()
    final = Path(folder)
    if not episodes:
        raise UserError(f"{final}: there are no episodes to export; collect some first")
    if final.exists() and (final.is_file() or any(final.iterdir())):
        raise UserError(f"{final}: it exists already; choose a new folder")
    for i, episode in enumerate(episodes):
        episode.check_fits(spec, f"{final}: episode {i} (task {episode.task})")
    write_folder(final, _dataset(episodes, spec, spec.control_hz if fps is None else fps))


def import_lerobot(folder: str | Path, columns: ColumnsConfig | None = None) -> tuple[list[Episode], Spec]:
    """Read states, actions and successes of a LeRobot v3.0 dataset; images and videos are ignored.

    `columns` has the names of these columns in the dataset. Datasets that wamtune did not export have no action bounds,
    source or seed: the bounds become the smallest and largest action (`NARROWEST` apart for a constant action), the
    source "import", the seed the number of the episode. Without a success column no step is a success. The last frame
    is dropped as a step, so a success there is moved to the step before it.

    Raises:
        UserError: the dataset is missing, damaged or of another version, or a column does not fit.
    """
    root = Path(folder)
    info = read_info(root)
    frames, rows = read_parquet(root, "data"), read_parquet(root, "meta/episodes")
    _check_columns(f"{root}: the dataset", frames, "episode_index", "frame_index")
    _check_columns(f"{root}: meta/episodes", rows, "episode_index", "length", "tasks")
    for columns_of in (frames, rows):
        for name in {"episode_index", "frame_index", "length"} & columns_of.keys():
            _check_whole(f"{root}: {name}", columns_of[name])
    if len(np.unique(rows["episode_index"])) < len(rows["episode_index"]):
        raise UserError(f"{root}: meta/episodes has an episode twice; download the dataset again")
    if "next.reward" in frames:
        _check_numbers(f"{root}: next.reward", frames["next.reward"])
    columns = columns or ColumnsConfig()
    if FINAL_STATE in rows and (columns.state, columns.action) != (ColumnsConfig.state, ColumnsConfig.action):
        raise UserError(f"{root}: wamtune exported it, so it has observation.state and action; leave both keys out")
    # Files need not be in order: sort by episode, then by frame.
    order = np.lexsort((frames["frame_index"], frames["episode_index"]))
    frames = {name: column[order] for name, column in frames.items()}
    frames = rename(str(root), frames, rows, columns)
    spec = _read_spec(root, info, frames, rows)
    episodes = []
    for i, number in enumerate(rows["episode_index"].tolist()):
        start, stop = np.searchsorted(frames["episode_index"], (number, number + 1))
        if stop - start != rows["length"][i]:
            raise UserError(
                f"{root}: episode {number} has {stop - start} frames, meta/episodes says {rows['length'][i]}; "
                f"download the dataset again"
            )
        part = {name: column[start:stop] for name, column in frames.items()}
        try:
            episode = _episode(part, {name: column[i] for name, column in rows.items()})
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{root}: meta/episodes does not describe episode {number} ({error!r:.80}); download the dataset again"
            ) from error
        if episode.length > 0:
            episode.check_fits(spec, f"{root}: episode {number}")
            episodes.append(episode)
    if not episodes:
        raise UserError(f"{root}: no episode has two frames or more, so there is no step to learn from")
    return episodes, spec


def fill_template(root: Path, template: object, **fields: object) -> Path:
    """Fill the fields of a path template of info.json, such as `videos/{video_key}/file-{file_index:03d}.mp4`.

    Returns the path below `root`.

    Raises:
        UserError: the template has other fields than `fields`, or leads out of `root`.
    """

    def value(match: re.Match[str]) -> str:
        width = int(match[2] or 0)
        return str(fields[match[1]]).rjust(width, "0")

    name = TEMPLATE.sub(value, template) if isinstance(template, str) else "{"  # "{": refused below
    path = Path(name)
    # A brace that is left is an unknown field.
    if set(name) & set("{}\0\\") or path.is_absolute() or ".." in path.parts:
        known = ", ".join(f"{{{field}}}" for field in fields)
        raise UserError(
            f"{root / INFO}: the path {str(template)[:80]!r} leads out of the dataset or has other fields than "
            f"{known}; download the dataset again"
        )
    return root / path


def _check_columns(where: str, columns: Columns, *needed: str) -> None:
    for key in needed:
        if key not in columns:
            raise UserError(f"{where} has no {key}; it has {', '.join(sorted(columns))}")


def _check_numbers(where: str, column: np.ndarray) -> None:
    if column.dtype.kind not in "fiub" or column.ndim > 2:
        raise UserError(f"{where} is not as many numbers in each frame; convert the dataset with LeRobot first")


def _check_whole(where: str, column: np.ndarray) -> None:
    if (
        column.dtype.kind not in "iu"
        or column.ndim != 1
        or (len(column) and not 0 <= column.min() <= column.max() < 2**40)
    ):
        raise UserError(f"{where} is not a whole number of at least 0 in each row; download the dataset again")


def _dataset(episodes: list[Episode], spec: Spec, fps: float) -> dict[str, bytes]:
    """Return all files of the dataset: relative path -> bytes."""
    frames = [_frames(episode, i, spec, fps) for i, episode in enumerate(episodes)]
    ends = np.cumsum([episode.length for episode in episodes]).tolist()
    for columns, end in zip(frames, ends, strict=True):
        columns["index"] = np.arange(end - len(columns["frame_index"]), end)
    together = {name: np.concatenate([columns[name] for columns in frames]) for name in frames[0]}
    info = {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": len(episodes),
        "total_frames": ends[-1],
        "total_tasks": len(spec.tasks),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": int(fps) if float(fps).is_integer() else fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": _features(together, spec),
    }
    rows = [_row(e, i, end, columns) for i, (e, end, columns) in enumerate(zip(episodes, ends, frames, strict=True))]
    return {
        INFO: _json(info),
        STATS: _json({name: _stats(column) for name, column in together.items()}),
        OURS: _json({"schema_version": 1, "spec": spec.to_dict()}),
        TASKS: _tasks_parquet(spec.tasks),
        f"meta/episodes/{FILE}": _parquet({key: [row[key] for row in rows] for key in rows[0]}),
        f"data/{FILE}": _parquet(together),
    }


def _frames(episode: Episode, number: int, spec: Spec, fps: float) -> Columns:
    """Return the columns of `data` for episode `number`, one row per step; the last frame is left out."""
    steps = np.arange(episode.length)
    reward = episode.success if episode.task_reward is None else episode.task_reward
    return {
        "observation.state": episode.state[:-1].float().cpu().numpy(),
        "action": episode.action.float().cpu().numpy(),
        "next.reward": reward.float().cpu().numpy(),
        "next.success": episode.success.cpu().numpy(),
        "next.done": steps == episode.length - 1,
        "timestamp": (steps / fps).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(episode.length, number),
        "task_index": np.full(episode.length, spec.tasks.index(episode.task)),
    }


def _row(episode: Episode, number: int, end: int, frames: Columns) -> dict[str, Any]:
    """Return the row of `meta/episodes` for episode `number`, whose frames end before index `end` of the dataset."""
    stats = {f"stats/{name}/{key}": value for name, column in frames.items() for key, value in _stats(column).items()}
    return {
        "episode_index": number,
        "tasks": [episode.task],
        "length": episode.length,
        "data/chunk_index": 0,
        "data/file_index": 0,
        "dataset_from_index": end - episode.length,
        "dataset_to_index": end,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        FINAL_STATE: episode.state[-1].float().cpu().numpy(),
        "source": episode.source,
        "seed": episode.seed,
        "has_task_reward": episode.task_reward is not None,
        **stats,
    }


def _features(columns: Columns, spec: Spec) -> dict[str, Any]:
    """Return the `features` of info.json: type, shape and names of the dimensions of each column."""
    state_names = [f"state_{i}" for i in range(spec.state_dim)]
    for name, part in spec.slices.items():
        state_names[part] = [f"{name}_{i}" for i in range(part.stop - part.start)]
    names = {"observation.state": state_names, "action": [f"action_{i}" for i in range(spec.action_dim)]}
    return {
        name: {"dtype": str(column.dtype), "shape": list(column.shape[1:]) or [1], "names": names.get(name)}
        for name, column in columns.items()
    }


def _stats(column: np.ndarray) -> dict[str, list[float]]:
    """Return the statistics that LeRobot stores of a column, per dimension."""
    values = column.reshape(len(column), -1).astype(np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    for name, share in (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99)):
        stats[name] = np.quantile(values, share, axis=0)
    return {name: value.tolist() for name, value in stats.items()} | {"count": [len(values)]}


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=4) + "\n").encode()


def _tasks_parquet(tasks: tuple[str, ...]) -> bytes:
    # LeRobot reads this file with pandas and looks tasks up in the index: this metadata makes `task` the index.
    column = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    note = {"index_columns": ["task"], "column_indexes": [], "columns": [column], "pandas_version": "2.0.0"}
    return _parquet({"task_index": np.arange(len(tasks)), "task": list(tasks)}, {"pandas": json.dumps(note)})


def _parquet(columns: dict[str, Any], metadata: dict[str, str] | None = None) -> bytes:
    pa, pq = _pyarrow()
    arrays = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray) and column.ndim == 2 and column.shape[1] > 1:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])
        else:  # LeRobot stores shape (1,) as plain numbers
            arrays[name] = pa.array(column.reshape(-1) if isinstance(column, np.ndarray) else column)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue())


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"LeRobot datasets need pyarrow; install it with {pip_line('data')}") from error
    return pyarrow, pyarrow.parquet


def read_info(root: Path) -> dict[str, Any]:
    """Read info.json of a LeRobot v3.0 dataset.

    Raises:
        UserError: it is missing or damaged, has another version, or its fps is impossible.
    """
    try:
        info = parse_json(read_file(root / INFO, JSON_BYTES))
        version, fps = info["codebase_version"], info["fps"]
    except FileNotFoundError as error:
        raise UserError(f"{root}: no {INFO} in it; name the folder of a LeRobot v3.0 dataset") from error
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{root / INFO}: it cannot be read; download the dataset again") from error
    if not str(version).startswith("v3."):
        found = str(version)[:20]
        raise UserError(f"{root / INFO}: version {found}, expected v3.0; convert the dataset with LeRobot first")
    if type(fps) not in (int, float) or not 0 < fps <= FASTEST:
        raise UserError(f"{root / INFO}: fps={str(fps)[:20]}, expected a number above 0, at most {FASTEST:g}")
    return dict(info)


def read_parquet(root: Path, part: str) -> Columns:
    """Read the columns of `data` or `meta/episodes`, without statistics and images.

    Raises:
        UserError: there is no file, or one is damaged or would take too much memory for its size.
    """
    pa, _ = _pyarrow()
    paths = sorted((root / part).glob("*/*.parquet"))
    if not paths:
        raise UserError(f"{root / part}: no parquet files in it; download the dataset again")
    try:
        table = pa.concat_tables([_read_table(path) for path in paths])
        return {name: _to_numpy(table[name].combine_chunks()) for name in table.column_names}
    except (pa.ArrowException, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{root / part}: its files have different columns; download the dataset again") from error


def _read_table(path: Path) -> Any:
    _, pq = _pyarrow()
    try:
        with open_file(path, TENSOR_BYTES) as file:
            # Read texts as dictionaries: equal texts are then stored once in memory.
            texts = [c.path for c in pq.ParquetFile(file).schema if c.physical_type == "BYTE_ARRAY"]
            parquet = pq.ParquetFile(file, read_dictionary=texts)
            names = [name for name in parquet.schema_arrow.names if _is_read(name)]
            size, limit = _memory(parquet.metadata), FREE_BYTES + EXPANSION * path.stat().st_size
            if size > limit:
                raise UserError(f"{path}: it takes {size:,} bytes of memory, at most {limit:,} for a file of its size")
            return parquet.read(columns=names)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise UserError(f"{path}: the file is damaged; download the dataset again") from error


def _is_read(name: str) -> bool:
    return not name.startswith(("stats/", "observation.image"))


def _memory(metadata: Any) -> int:
    """Estimate from its metadata how many bytes the columns of a parquet file take in memory."""
    size = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        chunks = [group.column(j) for j in range(group.num_columns)]
        # Parquet stores equal values once, so its uncompressed size can be too small. Count at least 8 bytes per value.
        size += sum(max(c.total_uncompressed_size, 8 * c.num_values) for c in chunks if _is_read(c.path_in_schema))
    return max(size, 8 * metadata.num_rows)


def _to_numpy(column: Any) -> np.ndarray:
    """Convert an arrow column to (rows,), or to (rows, size) if it holds lists of equal length.

    Lists of different lengths become an object array (rows,) of arrays.
    """
    if not hasattr(column.type, "value_type") or hasattr(column, "dictionary"):
        return _flat(column)
    import pyarrow.compute as pc

    sizes, values = pc.list_value_length(column).to_numpy(zero_copy_only=False), _flat(column.flatten())
    if len(sizes) and (sizes == sizes[0]).all():
        return values.reshape(len(column), int(sizes[0]))
    ends = np.nan_to_num(sizes).astype(int).cumsum()
    rows = np.empty(len(column), dtype=object)
    rows[:] = [values[start:end] for start, end in zip((0, *ends), ends, strict=False)]
    return rows


def _flat(column: Any) -> np.ndarray:
    """Convert an arrow column without lists to (rows,); equal texts share one object."""
    if not hasattr(column, "dictionary"):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    texts = np.array([*column.dictionary.to_pylist(), None], dtype=object)
    return np.asarray(texts[column.indices.fill_null(len(texts) - 1).to_numpy(zero_copy_only=False)])


def _read_spec(root: Path, info: dict[str, Any], frames: Columns, rows: Columns) -> Spec:
    """Return the spec that wamtune exported; for another dataset, build one from its data."""
    try:
        return Spec.from_dict(parse_json(read_file(root / OURS, JSON_BYTES))["spec"])
    except FileNotFoundError:
        pass
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{root / OURS}: it cannot be read; delete it to import the dataset without it") from error
    state, action = frames["observation.state"], frames["action"]
    if not len(action):
        raise UserError(f"{root}: the dataset has no frames; download it again")
    low, high = action.min(0).astype(float), action.max(0).astype(float)
    still = NARROWEST / 2 * (low == high)
    try:
        names = dict.fromkeys(str(tasks[0]) for tasks in rows["tasks"])
    except (IndexError, TypeError) as error:
        raise UserError(f"{root}: meta/episodes names no task for an episode; download the dataset again") from error
    found = Spec(
        features={"state": Feature((state.shape[1],))},
        action_low=tuple((low - still).tolist()),
        action_high=tuple((high + still).tolist()),
        tasks=tuple(names),
        control_hz=float(info["fps"]),
    )
    try:
        return Spec.from_dict(found.to_dict())  # with its checks
    except UserError as error:
        raise UserError(f"{root}: {error}") from error


def _episode(frames: Columns, row: dict[str, Any]) -> Episode:
    """Build an episode from its frames and its row of `meta/episodes`; see the top of this file."""
    state, action = frames["observation.state"], frames["action"]
    success = frames.get("next.success", np.zeros(len(action))).astype(bool).reshape(-1)
    reward = frames.get("next.reward")
    if FINAL_STATE in row:  # exported by wamtune
        state = np.concatenate([state, np.reshape(row[FINAL_STATE], (1, -1))])
        reward = reward if row["has_task_reward"] else None
    else:  # the last frame becomes the last observation; its success moves to the step before it
        late = success[-1:].any()
        action, success, reward = action[:-1], success[:-1], None if reward is None else reward[:-1]
        success[-1:] |= late
    seed, every = int(row.get("seed", row["episode_index"])), int(row.get("picture_every", 1))
    if not -(2**63) <= seed < 2**63 or every < 1:
        raise ValueError(f"seed={seed}, picture_every={every}")
    return Episode(
        obs={STATE: torch.tensor(state, dtype=torch.float32)},
        action=torch.tensor(action, dtype=torch.float32),
        success=torch.tensor(success),
        task=str(row["tasks"][0]),
        source=str(row.get("source", "import")),
        seed=seed,
        task_reward=None if reward is None else torch.tensor(reward, dtype=torch.float32).reshape(-1),
        every={} if every == 1 else {LATENTS: every},
    )
