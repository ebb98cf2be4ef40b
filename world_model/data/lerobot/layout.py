"""Layout of a LeRobot v3.0 dataset: names of files and columns, `info.json`, and where the videos of episodes are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from world_model.data.columns import Columns
from world_model.data.shards import OBSERVATION
from world_model.data.videos import LONGEST
from world_model.files import JSON_BYTES, parse_json, read_file
from world_model.spec import FASTEST, IMAGES, STATE

VERSION = "v3.0"
FILE = "chunk-000/file-000.parquet"
INFO, STATS, TASKS, OURS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet", "meta/wamtune.json"

FINAL, EVERY = "final.", "every."
"""Put before the name of a column of frames, names of columns that an export adds to `meta/episodes`: the value in the
last observation of the episode, and the number of steps from one new value to the next."""

FINAL_STATE = FINAL + OBSERVATION + STATE
"""Column that only datasets of wamtune have."""

TEMPLATE = re.compile(r"\{(video_key|chunk_index|file_index)(?::0?(\d))?d?\}")
"""A field in a path of info.json, such as {chunk_index:03d}."""


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


def cameras_of(root: str | Path) -> dict[str, str]:
    """Return camera -> column for all images of a dataset, such as {"front": "observation.images.front"}.

    Raises:
        UserError: see `read_info`.
    """
    columns = {name: feature.get("dtype") for name, feature in read_info(Path(root))["features"].items()}
    images = [name for name, dtype in columns.items() if dtype in ("image", "video")]
    return {name.removeprefix(OBSERVATION + IMAGES).removeprefix(OBSERVATION): name for name in images}


def shape_of_images(root: Path, info: dict[str, Any], column: str) -> tuple[int, int]:
    """Return height and width of the images of a column, as info.json says.

    Raises:
        UserError: it does not say them.
    """
    try:
        feature = info["features"][column]
        sizes = dict(zip(feature["names"], feature["shape"], strict=True))
        found = int(sizes["height"]), int(sizes["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{root / INFO}: it does not say height and width of {column}; set image_size") from error
    if not all(1 <= side <= 100_000 for side in found):
        raise UserError(f"{root / INFO}: {column} has the size {found}, which is impossible; set image_size")
    return found


def feature_of(info: dict[str, Any], column: str) -> dict[str, Any]:
    """Return what info.json says of a column, such as its type and names; {} if it says nothing."""
    features = info.get("features")
    feature = features.get(column) if isinstance(features, dict) else None
    return feature if isinstance(feature, dict) else {}


def names_of_columns(info: dict[str, Any], columns: Sequence[str], n: int) -> tuple[str, ...]:
    """Return the names of the `n` numbers of some columns together, such as those of motors, as info.json has them.

    They are a list, or in datasets of older versions of LeRobot an object with one list. Without `n` different names
    the result is empty: names are a help, and a dataset is complete without.
    """
    found: list[str] = []
    for column in columns:
        names = feature_of(info, column).get("names")
        if isinstance(names, dict) and len(names) == 1:
            (names,) = names.values()
        found += [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return tuple(found) if len(found) == len({*found}) == n else ()


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


def episode_videos(root: Path, info: dict[str, Any], rows: Columns, camera: str) -> list[tuple[Path, float, float]]:
    """Return for each row of meta/episodes the video file of a camera, and begin and end of the episode in it (s).

    Args:
        root: folder of the dataset.
        info: from `read_info`.
        rows: columns of meta/episodes.
        camera: name of the feature, such as `observation.images.front`.

    Raises:
        UserError: the dataset does not say it, or a path leads out of it.
    """
    names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    found = []
    try:
        columns = [rows[f"videos/{camera}/{name}"].tolist() for name in names]
        for chunk, file, begin, end in zip(*columns, strict=True):
            fields = {"video_key": camera, "chunk_index": int(chunk), "file_index": int(file)}
            path = fill_template(root, info["video_path"], **fields)
            if not 0 <= begin < end <= LONGEST:
                raise ValueError(f"from {begin} to {end} s")
            found.append((path, float(begin), float(end)))
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{root}: it does not say where the video of each episode is ({error!r:.80}); download it again"
        ) from error
    return found
