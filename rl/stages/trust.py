"""Calibration of trust at the end of a stage, and how well it ranks dreams by their true error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch

from rl.statistics import spearman
from world_model.data.episodes import Episode
from world_model.wam.model import WorldActionModel
from world_model.wam.trust import HORIZON, Retold, calibrate, dream_of_real_actions, dreamed_movement, expected_error

FOLDS = 3
"""Parts of the held-out episodes: trust is measured on each after calibration on the others."""


def calibrate_trust(model: WorldActionModel, episodes: Sequence[Episode], n_steps: int) -> dict[str, dict[str, float]]:
    """Calibrate `model.trust` on held-out `episodes`; returns by task how well it ranks dreams of `HORIZON` chunks.

    Rank correlation with the true error of the expected one (`rho`) and of the amount of movement that is dreamed
    (`movement`, the baseline), and the number of dreams (`n`), each measured on episodes outside the calibration.
    Nothing is done where too few episodes are long enough.
    """
    # Sorted, so that each task is in each fold: with the tasks in turn, every third could be of the same ones.
    long = sorted((e for e in episodes if e.length >= HORIZON * model.config.chunk_size), key=lambda e: e.task)
    if n_steps == 0 or len(long) < 2 * FOLDS:
        return {}
    parts = [dream_of_real_actions(model, long[i::FOLDS]) for i in range(FOLDS)]
    found = []
    for i, part in enumerate(parts):
        _calibrate(model, parts[:i] + parts[i + 1 :], n_steps)
        with torch.no_grad():
            said = expected_error(model, part.given).mean(1)
        found.append((said, dreamed_movement(part.given).mean(1), part.errors.mean(1), part.task))
    _calibrate(model, parts, n_steps)
    said, moved, true, task = (torch.cat(column) for column in zip(*found, strict=True))
    rows = {}
    for index in task.unique().tolist():
        of = task == index
        rho, movement = (spearman(x[of], true[of]) for x in (said, moved))
        rows[model.spec.tasks[index]] = {"rho": rho, "movement": movement, "n": float(of.sum())}
    medians = {name: _median([row[name] for row in rows.values()]) for name in ("rho", "movement")}
    return {**rows, "median": {**medians, "n": float(len(task))}}


def _median(values: Sequence[float]) -> float:
    return statistics.median([v for v in values if not math.isnan(v)] or [math.nan])


def _calibrate(model: WorldActionModel, parts: Sequence[Retold], n_steps: int) -> None:
    given, errors = (torch.cat([getattr(part, name).flatten(0, 1) for part in parts]) for name in ("given", "errors"))
    calibrate(model, given, errors, n_steps)
