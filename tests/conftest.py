"""A point in the plane pushed by its action, and a tiny world-action model of it: the toy that many tests share."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from world_model.data.episodes import Episode
from world_model.data.windows import Windows
from world_model.env import Advance, BatchedEnv, Start
from world_model.spec import Feature, Spec
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.training import StageConfig, fit_statistics, train_stage

torch.set_num_threads(1)

SPEC = Spec(
    {"state": Feature((4,), "m", {"point": (0, 2), "goal": (2, 4)})},
    (-1.0, -1.0),
    (1.0, 1.0),
    ("reach", "rest"),
    control_hz=10.0,
)
CONFIG = ModelConfig(
    n_context_frames=2,
    chunk_size=4,
    frames_per_token=2,
    actions_per_token=2,
    width=32,
    world_width=48,
    action_width=32,
    n_layers=2,
    n_heads=2,
)
STEP, REACHED = 0.1, 0.1


class Point(BatchedEnv):
    """State: point and goal. An action moves the point by STEP; success within REACHED of the goal."""

    place = "sim"

    def __init__(self, num_envs: int, **options) -> None:
        super().__init__(SPEC, num_envs, n_context_frames=2, **{"max_steps": 12, **options})

    def _restart(self, mask):
        m = int(mask.sum())
        frame = torch.rand(m, 4, generator=self.generator) - 0.5
        return Start(
            context={"state": frame[:, None].repeat(1, 2, 1)},
            task=torch.zeros(m, dtype=torch.long),
            seed=torch.randint(1000, (m,), generator=self.generator),
        )

    def _advance(self, actions, limit):
        newest = self.context["state"][:, -1:]
        frames = newest.repeat(1, actions.shape[1], 1)
        frames[..., :2] += STEP * actions.cumsum(1)
        distance = torch.cat([newest, frames], dim=1)
        distance = (distance[..., :2] - distance[..., 2:]).norm(dim=-1)
        never = torch.zeros(frames.shape[:2], dtype=torch.bool)
        closer = distance[:, :-1] - distance[:, 1:]
        return Advance({"state": frames}, distance[:, 1:] < REACHED, never, never, task_reward=closer)


def point_episodes(n: int, source: str, seed: int = 0, length: int = 16) -> list[Episode]:
    """`n` episodes of `length` steps: "expert" walks to the goal, "random" drifts."""
    generator = torch.Generator().manual_seed(seed)
    env = Point(n, max_steps=length + 1, terminate_on_success=False, seed=seed)
    frame = env.reset()["state"][:, -1:]
    frames, actions, success, drift = [frame], [], [], torch.zeros(n, 2)
    for _ in range(length):
        drift = 0.8 * drift + 0.6 * torch.randn(n, 2, generator=generator)
        action = drift if source == "random" else (frame[:, 0, 2:] - frame[:, 0, :2]) / STEP
        step = env.step(action)
        frame = step.frames["state"]
        frames.append(frame)
        actions.append(action.clamp(-1, 1)[:, None])
        success.append(step.success)
    states, acted, solved = (torch.cat(parts, dim=1) for parts in (frames, actions, success))
    return [Episode({"state": states[i]}, acted[i], solved[i], "reach", source, seed=i) for i in range(n)]


@pytest.fixture
def make_point() -> Callable[..., Point]:
    return Point


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    """Random and expert ones."""
    return point_episodes(64, "random", seed=1) + point_episodes(32, "expert", seed=2)


@pytest.fixture(scope="session")
def windows(episodes) -> Windows:
    return Windows(episodes, SPEC.tasks, CONFIG.n_context_frames, CONFIG.chunk_size)


@pytest.fixture(scope="session")
def demos() -> Windows:
    return Windows(point_episodes(32, "expert", seed=3), SPEC.tasks, CONFIG.n_context_frames, CONFIG.chunk_size)


@pytest.fixture(scope="session")
def heldout() -> Windows:
    held = point_episodes(16, "random", seed=4)
    return Windows(held, SPEC.tasks, CONFIG.n_context_frames, CONFIG.chunk_size)


@pytest.fixture
def model(windows) -> WorldActionModel:
    """Fresh weights, fitted statistics."""
    torch.manual_seed(0)
    model = WorldActionModel(CONFIG, SPEC)
    fit_statistics(model, windows, n=2000)
    return model.eval()


@pytest.fixture(scope="session")
def _trained(windows, demos) -> WorldActionModel:
    torch.manual_seed(0)
    model = WorldActionModel(CONFIG, SPEC)
    fit_statistics(model, windows, n=2000)
    config = StageConfig(n_steps=160, batch_size=32, learning_rate=3e-3, warmup_steps=10)
    train_stage("pretrain", model, windows, config)
    train_stage("tune", model, demos, replace(config, n_steps=400, batch_size=64, atoms=(0.0, 0.5, 0.0, 0.5, 0.0)))
    return model


@pytest.fixture
def trained(_trained) -> WorldActionModel:
    """The model after some training of both sides; yours to change."""
    return copy.deepcopy(_trained)
