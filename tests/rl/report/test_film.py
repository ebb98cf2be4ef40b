"""The film of a report: where a camera sees a position, which episode is shown, and what happens without a renderer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.sim import SimEnv
from rl.policies.api import policy_state
from rl.policies.wam import flow_policy
from rl.report import film, pairs
from rl.report.film import MOST_FRAMES, SIZE, projected, rendered, side_by_side
from rl.report.pairs import Untrained, champion_pairs
from rl.report.videos import gif_of
from rl.rounds.evaluate import evaluate_sim
from world_model.data.episodes import Episode
from world_model.view import View
from world_model.wam.store import load_model


def test_where_a_camera_sees_a_position() -> None:
    """A camera 2 m before the origin looks along y, with a field of view of 45 degrees: half of it is tan(22.5)."""
    view = View(lookat=(0.0, 0.0, 0.0), distance=2.0, azimuth=90.0, elevation=0.0)
    edge = 2 * math.tan(math.radians(22.5))
    seen = projected(np.array([[0, 0, 0], [edge, 0, 0], [0, 0, edge], [edge, 2, 0]]), view, 100)
    # centre, right edge, upper edge; twice as far away it is half as far from the centre
    assert seen == pytest.approx(np.array([[50, 50], [100, 50], [50, 0], [75, 50]]))
    above = View(lookat=(0.0, 0.0, 0.0), distance=2.0, azimuth=90.0, elevation=-60.0)
    assert projected(np.array([[0.0, 0.1, 0.0]]), above, 100)[0, 1] < 50  # what is farther away is higher in the image


def test_a_video_that_ends_early_stays_and_small_images_are_enlarged() -> None:
    short, long = (
        np.full((2, SIZE // 2, SIZE // 2, 3), 7, np.uint8),
        np.zeros((3 * MOST_FRAMES, SIZE, SIZE, 3), np.uint8),
    )
    short[-1] = 9
    frames = side_by_side([short, long])
    assert len(frames) == MOST_FRAMES and frames[0].shape == (SIZE, 2 * SIZE, 3)
    assert (frames[0][:, :SIZE] == 7).all() and (frames[-1][:, :SIZE] == 9).all() and not frames[0][:, SIZE:].any()


def test_the_film_shows_an_episode_that_training_solved(
    checkpoint: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights before training are zero, so that nothing is solved with them; those of the champion stay."""
    model = load_model(str(checkpoint))
    config = compose("mix", [*tiny, "eval.n_paired=4"], TrainConfig)
    sim = SimEnv("metaworld", 4, ["button-press-topdown"], task_names=model.spec.tasks, max_steps=config.env.max_steps)
    policy = flow_policy(model, sim)
    champion = policy_state(policy)
    untrained = Untrained({name: torch.zeros_like(value) for name, value in champion.items()}, results := [])
    shown: list[Episode] = []

    def render(config: TrainConfig, episode: Episode) -> np.ndarray:
        shown.append(episode)
        return np.zeros((5, SIZE, SIZE, 3), np.uint8)

    monkeypatch.setattr(pairs, "rendered", render)
    solved = {result.seed: result.success for result in evaluate_sim(policy, sim, config.eval.seeds[:4])}
    results += [pairs.EpisodeResult("button-press-topdown", seed, False, 64, 0.0) for seed in solved]
    sim.close()
    found = champion_pairs(config, policy, model, untrained=untrained)["film"]
    before, after = shown
    assert before.seed == after.seed and solved[after.seed] == any(solved.values())
    assert not torch.equal(before.action[:8], after.action[:8])
    assert [panel.partition(":")[0] for panel in found["panels"]] == [
        "before training",
        "after training",
        "in the dream",
    ]
    assert found["panels"][1].endswith("solved") == solved[after.seed]
    assert gif_of(found["gif"])[:3] == b"GIF"
    assert all(torch.equal(value, champion[name]) for name, value in policy_state(policy).items())


def test_without_a_renderer_there_is_no_film(episode: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        @staticmethod
        def replay(**_: object) -> None:
            raise RuntimeError("no OpenGL")

    monkeypatch.setattr(film, "find_simulator", lambda env: Blind)
    assert rendered(compose("mix", [], TrainConfig), episode) is None


def test_an_episode_that_runs_otherwise_is_not_shown(episode: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {"images.film": torch.zeros(3, 4, 4, 3, dtype=torch.uint8)}
    last = episode.obs["state"][-1].numpy()

    class Other:
        @staticmethod
        def replay(**_: object) -> tuple[dict[str, torch.Tensor], np.ndarray]:
            return images, last

    monkeypatch.setattr(film, "find_simulator", lambda env: Other)
    config = compose("mix", [], TrainConfig)
    assert rendered(config, episode) is not None
    last = last + 0.02  # two centimetres
    assert rendered(config, episode) is None


@pytest.fixture
def episode() -> Episode:
    return Episode(
        {"state": torch.zeros(4, 6)}, torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), "push", "policy", 1
    )
