"""What older versions left behind can be loaded: one folder for each schema version, see `tests/fixtures/make.py`."""

from pathlib import Path

import pytest
import torch

from rl.compose import compose
from rl.config import TrainConfig
from world_model.checkpoint import SCHEMA_VERSION, load_training_state
from world_model.data.episodes import EpisodeStore
from world_model.wam.store import load_model

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_everything_of_a_schema_version_loads(version: int) -> None:
    folder = FIXTURES / f"schema-{version}"
    model = load_model(folder / "checkpoint")
    (episode,) = EpisodeStore(folder / "episodes").load()
    assert model.spec.tasks == ("reach", "rest") and (episode.length, episode.seed) == (20, 3)
    obs = {"state": episode.state[:2].unsqueeze(0), "task": torch.tensor([0])}
    actions = model.action_codec.decode(torch.zeros(1, 4, 4))
    assert torch.isfinite(model.observe(obs).features).all() and torch.isfinite(actions).all()
    state = load_training_state(folder / "checkpoint")
    assert (state["step"], state["pair"], state["flag"]) == (3, (1, 0.1), None)
    assert state["weights"][0].tolist() == [0.0, 1.0, 2.0]
    config = compose(folder / "config.yaml", [], TrainConfig)
    assert (config.name, config.seed) == ("fixture", 7)
