"""Calibration of trust at the end of a stage: what its figures are measured on."""

from dataclasses import replace

import pytest
import torch

from rl.stages import trust as stage_trust
from rl.stages.trust import FOLDS, calibrate_trust
from tests.conftest import CONFIG, SPEC, point_episodes
from world_model.data.episodes import Episode
from world_model.wam.model import WorldActionModel
from world_model.wam.trust import ActionReplays

TASKS = ("reach", "push", "press")


@pytest.fixture
def model() -> WorldActionModel:
    return WorldActionModel(CONFIG, replace(SPEC, tasks=TASKS))


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The tasks of each fold; what is dreamed of an episode is made up."""
    found: list[list[str]] = []

    def dream(model: WorldActionModel, episodes: list[Episode]) -> ActionReplays:
        found.append([e.task for e in episodes])
        generator = torch.Generator().manual_seed(len(found))
        given = torch.randn(len(episodes), 4, model.trust.given.mean.shape[0], generator=generator)
        task = torch.tensor([TASKS.index(e.task) for e in episodes])
        return ActionReplays(given, given[..., 0].exp(), task, torch.arange(len(episodes)))

    monkeypatch.setattr(stage_trust, "dream_of_real_actions", dream)
    return found


def in_turn(n: int, tasks: tuple[str, ...]) -> list[Episode]:
    return [replace(e, task=tasks[i % len(tasks)]) for i, e in enumerate(point_episodes(n, "random"))]


def test_every_task_is_in_every_fold(model: WorldActionModel, folds: list[list[str]]) -> None:
    """Collected in turn, as many tasks as folds would otherwise leave each fold one, which its heads never saw."""
    shares: list[float] = []
    rows = calibrate_trust(model, in_turn(6 * FOLDS, TASKS), 5, shares.append)
    assert shares == pytest.approx([i / 20 for i in range(1, 21)])  # 5 steps for each of 3 folds, then for all
    assert [sorted(fold) for fold in folds] == [sorted(2 * TASKS)] * FOLDS
    assert set(rows) == {*TASKS, "median"} and rows["median"]["n"] == 6 * FOLDS


def test_the_median_of_an_even_number_of_tasks_lies_between_them(
    model: WorldActionModel, folds: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = iter([0.2, 0.3, 0.6, 0.5])  # expected error and movement of one task, then of the other
    monkeypatch.setattr(stage_trust, "spearman", lambda a, b: next(ranks))
    rows = calibrate_trust(model, in_turn(6, TASKS[:2]), n_steps=5)
    assert (rows["median"]["rho"], rows["median"]["movement"]) == pytest.approx((0.4, 0.4))
