"""Calibrate trust at the end of a stage, and measure how well it ranks dreams by their true error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import torch

from rl.statistics import spearman
from world_model.data.episodes import Episode
from world_model.wam.model import WorldActionModel
from world_model.wam.trust import (
    HORIZON,
    ActionReplays,
    calibrate,
    dream_of_real_actions,
    dreamed_movement,
    expected_errors,
)

FOLDS = 3
"""Number of folds for cross-validation: trust is measured on each fold after calibration on the others."""


def calibrate_trust(
    model: WorldActionModel,
    episodes: Sequence[Episode],
    n_steps: int,
    tick: Callable[[float], None] = lambda share: None,
) -> dict[str, dict[str, float]]:
    """Calibrate `model.trust` on held-out `episodes`; return by task how well it ranks dreams of `HORIZON` chunks.

    Each row has `rho`, the rank correlation of the expected error with the true one; `movement`, the same for the
    amount of dreamed movement, as a baseline; and `n`, the number of dreams. They are measured by cross-validation.
    With too few episodes of sufficient length, nothing is calibrated and the result is empty. `tick` is called with the
    finished share of all calibrations.
    """
    # Sort by task, so that each fold has every task: if the tasks alternate, every third episode could be of one task.
    long = sorted((e for e in episodes if e.length >= HORIZON * model.config.chunk_size), key=lambda e: e.task)
    if n_steps == 0 or len(long) < 2 * FOLDS:
        return {}
    model.renew_trust()  # a checkpoint from which the stage began may have older heads
    parts = [dream_of_real_actions(model, long[i::FOLDS]) for i in range(FOLDS)]
    found = []

    def after(n: int) -> Callable[[float], None]:
        return lambda share: tick((n + share) / (FOLDS + 1))

    for i, part in enumerate(parts):
        _calibrate(model, parts[:i] + parts[i + 1 :], n_steps, after(i))
        with torch.no_grad():
            expected = expected_errors(model, part.given).mean(1)
        found.append((expected, dreamed_movement(part.given).mean(1), part.errors.mean(1), part.task))
    # The final calibration uses all folds.
    _calibrate(model, parts, n_steps, after(FOLDS))
    expected, moved, true, task = (torch.cat(column) for column in zip(*found, strict=True))
    rows = {}
    for index in task.unique().tolist():
        of = task == index
        rho, movement = (spearman(x[of], true[of]) for x in (expected, moved))
        rows[model.spec.tasks[index]] = {"rho": rho, "movement": movement, "n": float(of.sum())}
    medians = {name: _median([row[name] for row in rows.values()]) for name in ("rho", "movement")}
    return {**rows, "median": {**medians, "n": float(len(task))}}


def _median(values: Sequence[float]) -> float:
    return statistics.median([v for v in values if not math.isnan(v)] or [math.nan])


def _calibrate(
    model: WorldActionModel, parts: Sequence[ActionReplays], n_steps: int, tick: Callable[[float], None]
) -> None:
    given, errors = (torch.cat([getattr(part, name) for part in parts]) for name in ("given", "errors"))
    calibrate(model, given, errors, n_steps, tick)
