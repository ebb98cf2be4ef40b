"""Map the columns of a LeRobot dataset to state, action and success: each dataset uses its own column names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewards.errors import UserError
from world_model.data.columns_config import ALL, NONE, ColumnsConfig

Columns = dict[str, np.ndarray]
"""Feature name -> (frames,) or (frames, size)."""


def rename(where: str, frames: Columns, rows: Columns, config: ColumnsConfig) -> Columns:
    """Return `frames` with the configured columns under the names `observation.state`, `action` and `next.success`.

    Args:
        where: name of the dataset in errors.
        frames: columns of all frames, sorted by `episode_index`.
        rows: columns of meta/episodes, one row per episode.
        config: the names of the columns in this dataset.

    Raises:
        UserError: a column does not exist or does not hold numbers.
    """
    named = dict(frames)
    for name, columns in (("observation.state", config.state), ("action", config.action)):
        named[name] = _joined(where, frames, columns)
    success = _success(where, frames, rows, config)
    if success is None:
        named.pop("next.success", None)
    else:
        named["next.success"] = success
    return named


def matrix(column: np.ndarray) -> np.ndarray:
    """Return a column as (frames, size)."""
    return column.reshape(len(column), -1)


def _joined(where: str, frames: Columns, names: Sequence[str]) -> np.ndarray:
    """Concatenate columns to one of shape (frames, total size)."""
    parts = []
    for name in names:
        if name not in frames:
            raise UserError(
                f"{where}: the dataset has no {name}; it has {', '.join(sorted(frames))}; "
                "name others with the keys state and action"
            )
        parts.append(matrix(_numbers(where, name, frames[name])))
    return np.concatenate(parts, axis=1)


def _success(where: str, frames: Columns, rows: Columns, config: ColumnsConfig) -> np.ndarray | None:
    """Return for each frame whether it is a success (frames,); None if the dataset does not tell."""
    name = config.success or "next.success"
    # `all` and `none` name no column: they label all episodes at once.
    if name in (ALL, NONE):
        return _last_steps(frames, rows, np.full(len(rows["episode_index"]), name == ALL), config.success_steps)
    if name in frames:
        return _flags(where, name, frames[name])
    if name in rows:
        return _last_steps(frames, rows, _flags(where, name, rows[name]), config.success_steps)
    if not config.success:
        return None
    raise UserError(
        f"{where}: success={name} is no column; the dataset has {', '.join(sorted({*frames, *rows}))}; "
        f"expected one of them, {ALL} or {NONE}"
    )


def _last_steps(frames: Columns, rows: Columns, is_success: np.ndarray, n_steps: int) -> np.ndarray:
    """Mark the last `n_steps` frames of each episode for which `is_success` (rows,) is True. Shape: (frames,)."""
    marks = np.zeros(len(frames["episode_index"]), dtype=bool)
    for number in rows["episode_index"][is_success]:
        start, stop = np.searchsorted(frames["episode_index"], (number, number + 1))
        marks[max(start, stop - n_steps) : stop] = True
    return marks


def _flags(where: str, name: str, column: np.ndarray) -> np.ndarray:
    """Return which rows have a value other than 0. Shape: (rows,)."""
    values = matrix(_numbers(where, name, column))
    if not np.isfinite(values).all():
        raise UserError(f"{where}: column {name} is not finite everywhere; name another column, {ALL} or {NONE}")
    return (values != 0).any(1)


def _numbers(where: str, name: str, column: np.ndarray) -> np.ndarray:
    """Return `column` if it holds numbers; text, empty rows and lists of different lengths are refused.

    `Episode.check_fits` later checks that the numbers are finite.
    """
    if column.dtype.kind not in "biuf":  # bool, int, unsigned, float
        raise UserError(f"{where}: column {name} holds no numbers, or not as many in each row; name another column")
    return column
