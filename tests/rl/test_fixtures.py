"""What older versions left behind can be loaded: one folder for each schema version, see `tests/fixtures/make.py`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.compose import compose
from rl.config import TrainConfig
from rl.policies.chain import ChainPolicy
from rl.policies.wam import WamDenoiser
from rl.ppo.imitation import Imitation
from world_model.checkpoint import SCHEMA_VERSION, load_training_state, save_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.spec import Feature
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model
from world_model.wam.training import fit_statistics

FIXTURES = Path(__file__).parent.parent / "fixtures"
WITH_IMAGES = FIXTURES / "schema-1-images"


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


def test_codes_at_the_end_of_older_state_vectors_become_latents() -> None:
    """Two episodes of 10 and 8 steps, with a new image every 4 steps and in the last frame."""
    (shard,) = EpisodeStore(WITH_IMAGES / "episodes").shards
    vectors = load_file(shard)["observation.state"].split([11, 9])  # hand_pos and gripper, then 4 numbers of codes
    episodes = EpisodeStore(WITH_IMAGES / "episodes").load()
    assert [(e.task, e.seed, e.length) for e in episodes] == [("push", 3, 10), ("reach", 4, 8)]
    for episode, old, new_images in zip(episodes, vectors, ([0, 4, 8, 10], [0, 4, 8]), strict=True):
        assert episode.obs.keys() == {"state", "latents"} and episode.every == {"latents": 4}
        assert torch.equal(episode.state, old[:, :4]) and torch.equal(episode.obs["latents"], old[new_images, 4:])
        assert torch.equal(episode.obs["latents"][episode.rows_of("latents")], old[:, 4:])


def test_an_older_checkpoint_of_a_model_with_images_loads_and_imitates_its_demonstrations(tmp_path: Path) -> None:
    config, shapes = (json.loads((WITH_IMAGES / f"{name}.json").read_text()) for name in ("config", "tensors"))
    torch.manual_seed(0)
    start = WorldActionModel.from_config(config)
    assert {name: list(tensor.shape) for name, tensor in start.state_dict().items()} == shapes
    store = EpisodeStore(WITH_IMAGES / "episodes")
    fit_statistics(start, start.windows(store.load()))
    save_checkpoint(tmp_path / "checkpoint", config, start.state_dict(), extra=store.files())

    model, demonstrations = load_model(tmp_path / "checkpoint"), EpisodeStore(tmp_path / "checkpoint")
    assert model.spec.features.keys() == {"state", "images.front"} and model.spec.state_dim == 4
    assert model.spec.features["images.front"] == Feature((16, 16, 3), dtype="uint8", every=4)
    demonstrations.check_fits(model.predicted_spec, "demonstrations")
    policy = ChainPolicy(WamDenoiser(model), model.spec)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    imitation = Imitation(policy, demonstrations.load(), demo_coef=1.0, sim_coef=0.0, dream_coef=0.0, batch_size=4)
    loss = imitation.loss(torch.Generator().manual_seed(0))
    assert loss is not None and loss.isfinite()
    loss.backward()
    torch.optim.SGD(policy.actor_parameters(), lr=0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("action.") for name in changed)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
