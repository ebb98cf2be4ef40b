"""A checkpoint of two Meta-World tasks, small enough to be made while the tests run, with its demonstrations."""

from pathlib import Path

import pytest
import torch

from rl.collect import collect_scripted
from rl.envs.sim import make_spec
from world_model.episodes import Episode, EpisodeStore
from world_model.model import ModelConfig, WorldActionModel
from world_model.store import save_model
from world_model.training import StageConfig, fit_statistics, train_stage
from world_model.windows import Windows

TASKS = ("button-press-topdown", "push")
CONFIG = ModelConfig(width=32, action_width=32, n_layers=2, n_heads=2)


@pytest.fixture(scope="session")
def demonstrations() -> list[Episode]:
    return collect_scripted("expert", TASKS, 6)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, demonstrations: list[Episode]) -> Path:
    """Folder of a model that presses the button now and then."""
    torch.manual_seed(0)
    model = WorldActionModel(CONFIG, make_spec("metaworld", TASKS))
    windows = Windows(demonstrations, TASKS, CONFIG.n_context_frames, CONFIG.chunk_size)
    fit_statistics(model, windows, n=1000)
    config = StageConfig(n_steps=STEPS, batch_size=16, demo_batch_size=64, learning_rate=3e-3, warmup_steps=10)
    train_stage("tune", model, windows, config, windows)
    folder = tmp_path_factory.mktemp("checkpoints")
    EpisodeStore(folder / "episodes").append(demonstrations, model.spec)
    shards = {shard.name: shard.read_bytes() for shard in EpisodeStore(folder / "episodes").shards}
    save_model(folder / "tiny", model, "tune", extra=shards)
    return folder / "tiny"
