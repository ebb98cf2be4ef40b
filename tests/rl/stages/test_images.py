"""Recorded images in the stages: slow cameras keep their images, and what does not fit is one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from rl.compose import compose
from rl.stages import run as stages
from rl.stages.config import TuneConfig
from rl.stages.images import of_each_frame, recorded_images
from world_model.data.episodes import Episode, EpisodeStore
from world_model.spec import Feature, Spec
from world_model.view import View
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel

SPEC = Spec({"state": Feature((2,))}, (-1.0,), (1.0,), ("push",), 10.0)
CONFIG = ModelConfig(
    width=32, world_width=48, action_width=32, n_layers=1, n_heads=2, chunk_size=4, frames_per_token=4,
    actions_per_token=4, views={"front": View()}, image_size=32, patch_dim=4,
)  # fmt: skip


@pytest.fixture
def model() -> WorldActionModel:
    torch.manual_seed(0)
    return WorldActionModel(CONFIG, SPEC)


def episode(seed: int, every: int, length: int = 9, size: int = 32) -> Episode:
    """An episode whose images are as bright as ten times the frame that they show."""
    frames = torch.tensor([*range(0, length, every), length])
    images = (10 * frames).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, size, size, 3)
    obs = {"state": torch.arange(length + 1.0)[:, None].repeat(1, 2), "images.front": images}
    never = torch.zeros(length, dtype=torch.bool)
    return Episode(obs, torch.zeros(length, 1), never, "push", "import", seed, every={"images.front": every})


def store_of(folder: Path, episodes: list[Episode], size: int = 32) -> EpisodeStore:
    store = EpisodeStore(folder)
    features = {**SPEC.features, "images.front": Feature((size, size, 3), dtype="uint8")}
    store.append(episodes, replace(SPEC, features=features))
    return store


@pytest.mark.parametrize("every", [1, 4])
def test_recorded_images_are_read_and_each_window_has_a_new_one(
    every: int, model: WorldActionModel, tmp_path: Path
) -> None:
    store = store_of(tmp_path, [episode(i, every) for i in range(6)])
    config = compose("own-tuned", ["env.simulator=recorded"], TuneConfig)
    image_data = stages._with_images(config, model, store)
    assert image_data is not None
    (learned, images), (heldout, _) = image_data
    assert (len(learned), len(heldout)) == (4, 2)
    assert learned[0].obs.keys() == {"state"} and images[0].shape == (10 if every == 1 else 4, 1, 32, 32, 3)
    held = [frame // every * every for frame in range(9)] + [9]
    shown = of_each_frame(model, learned[0], images[0])[:, 0, 0, 0, 0]
    assert shown.tolist() == [10 * frame for frame in held]
    # The newest image of a window is that of the frame in which it begins.
    train, _ = stages._read(config, model, store, image_data)
    windows = model.windows(train[:1])
    assert len(windows) == (6 if every == 1 else 2)
    batch = windows.at(torch.arange(len(windows)))
    with torch.no_grad():
        codes = model.image_codec.encode(images[0])
    rows = batch.context["state"][:, -1, 0].long() // every
    torch.testing.assert_close(batch.context["latents"][:, -1], codes[rows], atol=1e-5, rtol=1e-5)


def test_images_that_do_not_fit_are_one_line(model: WorldActionModel, tmp_path: Path) -> None:
    config = compose("own-tuned", ["env.simulator=recorded"], TuneConfig)

    def refused(store: EpisodeStore) -> str:
        with pytest.raises(UserError) as error:
            stages._with_images(config, model, store)
        assert "\n" not in str(error.value)
        return str(error.value)

    small = store_of(tmp_path / "small", [episode(i, 1, size=16) for i in range(2)], size=16)
    assert "the checkpoint reads images.front of size 32 x 32 x 3, its episodes have 16 x 16 x 3" in refused(small)
    blind = EpisodeStore(tmp_path / "blind")
    blind.append([replace(e, obs={"state": e.state}, every={}) for e in (episode(0, 1), episode(1, 1))], SPEC)
    assert "the checkpoint reads images.front of size 32 x 32 x 3, its episodes have only state" in refused(blind)
    two = WorldActionModel(replace(CONFIG, views={"front": View(), "side": View()}), SPEC)
    uneven = replace(episode(0, 1), every={"images.front": 1, "images.side": 2})
    uneven.obs["images.side"] = uneven.obs["images.front"][:6]
    with pytest.raises(UserError, match=r"here: its cameras have new images after different numbers of steps"):
        recorded_images(two, [uneven], "here")


def test_a_checkpoint_may_keep_few_demonstrations_with_an_image_a_chunk(model: WorldActionModel) -> None:
    demos = model.encode_episodes([episode(i, every=1) for i in range(3)])
    kept = stages.stored(demos, 2, model)
    assert [e.seed for e in kept] == [0, 1] and kept[0].every == {"latents": 4}
    torch.testing.assert_close(kept[0].obs["latents"], demos[0].obs["latents"][[0, 4, 8, 9]])
    assert len(kept[0].action) == len(kept[0].state) - 1 == 9
