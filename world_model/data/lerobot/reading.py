"""Import of LeRobot v3.0 datasets, of wamtune's own and of others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.errors import UserError
from world_model.data.columns import Columns, matrix, rename
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import Episode
from world_model.data.images import ImageBlocks, read_images
from world_model.data.lerobot.layout import (
    EVERY,
    FINAL,
    FINAL_STATE,
    INFO,
    OURS,
    episode_videos,
    feature_of,
    names_of_columns,
    read_info,
    shape_of_images,
)
from world_model.data.parquet import read_parquet
from world_model.data.shards import OBSERVATION
from world_model.data.videos import Part, read_video
from world_model.files import JSON_BYTES, parse_json, read_file
from world_model.spec import IMAGES, LATENTS, STATE, Feature, Spec

NARROWEST = 1e-3
"""Distance between the two bounds of an action that is constant in the dataset; bounds must differ."""


def import_lerobot(folder: str | Path, columns: ColumnsConfig | None = None) -> tuple[list[Episode], Spec]:
    """Read states, actions, successes and instructions of a LeRobot v3.0 dataset, and the images that `columns` names.

    `columns` has the names of these columns in the dataset. Datasets that wamtune did not export have no action bounds,
    source or seed: the bounds become the smallest and largest action (`NARROWEST` apart for a constant action), the
    source "import", the seed the number of the episode. The sentence of a task is its name and its instruction. Without
    a success column no step is a success. The last frame is dropped as a step, so a success there is moved to the step
    before it. Each camera has one image per frame, the square in its middle, scaled down to `columns.image_size`.

    Raises:
        UserError: the dataset is missing, damaged or of another version, or a column or an image does not fit.
    """
    root, columns = Path(folder), columns or ColumnsConfig()
    data = _open(root, columns)
    spec, is_ours = _read_spec(data, columns)
    if LATENTS in spec.features and OBSERVATION + LATENTS not in data.frames:
        _split_latents(data, spec)
    own = spec.features if is_ours else {}
    cameras = {IMAGES + name: _read_camera(data, IMAGES + name, columns, own) for name in columns.images}
    for camera in cameras.values():
        data.frames, data.rows = data.frames | camera.frames, data.rows | camera.rows
    vectors = {name: feature for name, feature in spec.features.items() if not name.startswith(IMAGES)}
    spec = replace(spec, features=vectors | {name: camera.feature for name, camera in cameras.items()})
    _check_columns(f"{root}: the dataset", data.frames, *(OBSERVATION + name for name in spec.features))
    episodes = []
    for i, (start, stop) in enumerate(data.bounds):
        if start == stop:
            continue
        row = {name: column[i] for name, column in data.rows.items()}
        number = row["episode_index"]
        try:
            part = {name: column[start:stop] for name, column in data.frames.items()}
            episode = _episode(part, row, spec, {name: camera.blocks for name, camera in cameras.items()}, root)
        except UserError:
            raise
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


@dataclass
class _Dataset:
    """The tables of a dataset."""

    root: Path
    info: dict[str, Any]
    frames: Columns  # sorted by episode, then by frame
    rows: Columns  # of meta/episodes
    order: np.ndarray  # for each frame, its row in the data files
    bounds: list[tuple[int, int]]  # of the frames of each row of meta/episodes


@dataclass
class _Camera:
    """The images of one camera, and what they add to the tables, under the names that an export gives it."""

    feature: Feature
    blocks: ImageBlocks
    frames: Columns  # the number of the image of each frame
    rows: Columns  # of an export: the number of the last image of each episode, and how often there is a new one


def _open(root: Path, columns: ColumnsConfig) -> _Dataset:
    """Read and check the tables of a dataset; state, action and success get the names that an export gives them."""
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
    if FINAL_STATE in rows and (columns.state, columns.action) != (ColumnsConfig.state, ColumnsConfig.action):
        raise UserError(f"{root}: wamtune exported it, so it has observation.state and action; leave both keys out")
    # Files need not be in order: sort by episode, then by frame.
    order = np.lexsort((frames["frame_index"], frames["episode_index"]))
    frames = {name: column[order] for name, column in frames.items()}
    _check_no_images(root, info, *columns.state, *columns.action)
    frames = rename(str(root), frames, rows, columns)
    bounds = []
    for number, length in zip(rows["episode_index"].tolist(), rows["length"].tolist(), strict=True):
        start, stop = np.searchsorted(frames["episode_index"], (number, number + 1)).tolist()
        if stop - start != length:
            raise UserError(
                f"{root}: episode {number} has {stop - start} frames, meta/episodes says {length}; "
                f"download the dataset again"
            )
        bounds.append((start, stop))
    return _Dataset(root, info, frames, rows, order, bounds)


def _check_no_images(root: Path, info: dict[str, Any], *names: str) -> None:
    """Raise `UserError` if one of the columns whose numbers are read holds images."""
    for name in names:
        if feature_of(info, name).get("dtype") in ("image", "video"):
            raise UserError(
                f"{root}: {name} holds images, and state and action are numbers; name it as a camera, in "
                f"wamtune pretrain columns.images.{name.rpartition('.')[2]}={name}"
            )


def _read_spec(data: _Dataset, columns: ColumnsConfig) -> tuple[Spec, bool]:
    """Return the spec that wamtune exported, and True; for another dataset one built from its data, and False."""
    root, rows = data.root, data.rows
    try:
        return Spec.from_dict(parse_json(read_file(root / OURS, JSON_BYTES))["spec"]), True
    except FileNotFoundError:
        pass
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{root / OURS}: it cannot be read; delete it to import the dataset without it") from error
    state, action = data.frames["observation.state"], data.frames["action"]
    if not len(action):
        raise UserError(f"{root}: the dataset has no frames; download it again")
    low, high = action.min(0).astype(float), action.max(0).astype(float)
    still = NARROWEST / 2 * (low == high)
    try:
        names = dict.fromkeys(str(tasks[0]) for tasks in rows["tasks"])
    except (IndexError, TypeError) as error:
        raise UserError(f"{root}: meta/episodes names no task for an episode; download the dataset again") from error
    state_names = names_of_columns(data.info, columns.state, state.shape[1])
    found = Spec(
        features={"state": Feature((state.shape[1],), names=state_names)},
        action_low=tuple((low - still).tolist()),
        action_high=tuple((high + still).tolist()),
        tasks=tuple(names),
        control_hz=float(data.info["fps"]),
        instructions={name: name for name in names},
        action_names=names_of_columns(data.info, columns.action, action.shape[1]),
    )
    try:
        return Spec.from_dict(found.to_dict()), False  # with its checks
    except UserError as error:
        raise UserError(f"{root}: {error}") from error


def _split_latents(data: _Dataset, spec: Spec) -> None:
    """Give the latents of an older export, where they are the end of the state, columns of their own, in place."""
    n, state, latents = spec.state_dim, OBSERVATION + STATE, OBSERVATION + LATENTS
    for columns, prefix in ((data.frames, ""), (data.rows, FINAL)):
        if prefix + state in columns:
            whole = matrix(columns[prefix + state])
            columns[prefix + state], columns[prefix + latents] = whole[:, :n], whole[:, n:]
    if "picture_every" in data.rows:
        data.rows[EVERY + latents] = data.rows["picture_every"]


def _read_camera(data: _Dataset, name: str, columns: ColumnsConfig, own: dict[str, Feature]) -> _Camera:
    """Read the images of a camera.

    Args:
        data: the dataset.
        name: of the feature, such as `images.front`.
        columns: names the column of the camera, and the size of its images.
        own: features of the export if wamtune made the dataset; their images keep their size.

    Raises:
        UserError: there are no images of that name, or one cannot be read; see `read_images` and `read_video`.
    """
    column = columns.images[name.removeprefix(IMAGES)]
    feature = own.get(column.removeprefix(OBSERVATION))
    size = columns.image_size
    if feature is None and size == 0:
        height, width = shape_of_images(data.root, data.info, column)
        feature, crops = Feature((height, width, 3), dtype="uint8"), False
    elif feature is None:
        feature, crops = Feature((size, size, 3), dtype="uint8"), True
    else:
        crops = False
        if size not in (0, ColumnsConfig.image_size):
            raise UserError(f"{data.root}: wamtune exported it, so its images keep their size; leave image_size out")
    blocks = ImageBlocks(height=feature.shape[0], width=feature.shape[1], crops=crops)
    if _kind_of_images(data, column) == "video":
        numbers = _read_videos(data, column, blocks)
    else:
        numbers = read_images(data.root, "data", column, blocks)[data.order]
    rows: Columns = {}
    if FINAL_STATE in data.rows:
        rows[FINAL + OBSERVATION + name] = read_images(data.root, "meta/episodes", FINAL + column, blocks)
        if EVERY + column in data.rows:
            rows[EVERY + OBSERVATION + name] = data.rows[EVERY + column]
    return _Camera(feature, blocks, frames={OBSERVATION + name: numbers}, rows=rows)


def _kind_of_images(data: _Dataset, column: str) -> str:
    """Return "image" or "video", how a column of images is stored."""
    try:
        kinds = {name: feature["dtype"] for name, feature in data.info["features"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{data.root / INFO}: it does not describe its features; download the dataset again") from error
    images = [name for name, kind in kinds.items() if kind in ("image", "video")]
    if column not in images:
        raise UserError(
            f"{data.root}: the dataset has no images {column}; it has {', '.join(images) or 'none'}; name others with "
            "the key images"
        )
    return str(kinds[column])


def _read_videos(data: _Dataset, column: str, blocks: ImageBlocks) -> np.ndarray:
    """Read the image of each frame from the videos of a camera into `blocks`; return their numbers (frames,)."""
    numbers = np.zeros(len(data.order), dtype=np.int64)
    # Group the episodes by file, since each file is decoded only once.
    of_file: dict[Path, list[tuple[Part, int, int]]] = {}
    videos = episode_videos(data.root, data.info, data.rows, column)
    for (path, begin, end), (start, stop) in zip(videos, data.bounds, strict=True):
        of_file.setdefault(path, []).append((Part(begin, end, stop - start), start, stop))
    for path, parts in of_file.items():
        found = read_video(path, [part for part, _, _ in parts], float(data.info["fps"]), blocks)
        for (_, start, stop), of_part in zip(parts, found, strict=True):
            numbers[start:stop] = of_part
    return numbers


def _episode(frames: Columns, row: dict[str, Any], spec: Spec, blocks: dict[str, ImageBlocks], root: Path) -> Episode:
    """Build an episode from its frames and its row of `meta/episodes`; see the top of this file.

    The columns of the features in `blocks` hold numbers of images.
    """
    action = frames["action"]
    success = frames.get("next.success", np.zeros(len(action))).astype(bool).reshape(-1)
    reward = frames.get("next.reward")
    ours = FINAL_STATE in row
    if ours:
        reward = reward if row["has_task_reward"] else None
    else:  # the last frame becomes the last observation; its success moves to the step before it
        late = success[-1:].any()
        action, success, reward = action[:-1], success[:-1], None if reward is None else reward[:-1]
        success[-1:] |= late
    seed, obs, periods = int(row.get("seed", row["episode_index"])), {}, {}
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed={seed}")
    for name in spec.features:
        column = OBSERVATION + name
        values, periods[name] = frames[column], int(row.get(EVERY + column, 1))
        if ours:
            values = np.concatenate([values, np.reshape(row[FINAL + column], (1, *values.shape[1:]))])
        kept = values[[*range(0, len(action), periods[name]), len(action)]]
        if name in blocks:
            obs[name] = blocks[name].rows(kept.tolist(), f"{root}: {name}")
        else:
            obs[name] = torch.tensor(kept, dtype=torch.float32)
    return Episode(
        obs=obs,
        action=torch.tensor(action, dtype=torch.float32),
        success=torch.tensor(success),
        task=str(row["task_name"] if "task_name" in row else row["tasks"][0]),
        source=str(row.get("source", "import")),
        seed=seed,
        task_reward=None if reward is None else torch.tensor(reward, dtype=torch.float32).reshape(-1),
        every={name: every for name, every in periods.items() if every > 1},
        control=_control(frames, len(action)),
    )


def _control(frames: Columns, length: int) -> torch.Tensor | None:
    """Return who acted in each of the first `length` steps; other datasets mark only those of a person, as LeRobot."""
    values = frames.get("control", frames.get("intervention"))
    if values is None or values.dtype.kind not in "biu" or values.ndim > 2:
        return None
    return torch.tensor(values.reshape(len(values), -1)[:length, 0].astype(np.uint8))


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
