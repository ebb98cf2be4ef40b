"""Noise on observations while a model learns: its size by hand, and what is left alone."""

import re
from dataclasses import asdict, replace

import pytest
import torch

from rewards.errors import UserError
from world_model.wam.codec import VectorCodec
from world_model.wam.config import NO_IMAGE_NOISE, ImageNoise, ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.noise import noisy_images, noisy_vectors, shifted


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_deviation_of_each_row_is_uniform_up_to_the_limit() -> None:
    found = noisy_vectors(torch.zeros(2000, 2, 500), 0.004, generator()).flatten(1).std(1)
    assert found.max() < 0.0043 and found.min() < 0.0001
    assert found.mean() == pytest.approx(0.002, abs=0.0001)
    assert found.std() == pytest.approx(0.004 / 12**0.5, abs=0.0001)


def test_images_are_shifted_by_whole_pixels_and_edges_repeat() -> None:
    row = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4, 1).expand(3, 1, 2, 4, 3)
    moved = shifted(row, torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, -2]))
    assert moved[:, 0, 0, :, 0].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [2, 3, 3, 3]]
    column = row.transpose(2, 3)
    moved = shifted(column, torch.tensor([0, 1, -2]), torch.zeros(3, dtype=torch.long))
    assert moved[:, 0, :, 0, 0].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [2, 3, 3, 3]]


def test_each_part_of_the_image_noise_by_hand() -> None:
    images = torch.full((200, 1, 8, 8, 3), 100, dtype=torch.uint8)
    brighter = noisy_images(images, replace(NO_IMAGE_NOISE, brightness=0.1), generator()).float() - 100
    assert (brighter == brighter[:, :1, :1, :1, :1]).all()  # one change for all pixels of a moment
    assert brighter.min() < -20 and brighter.max() > 20 and brighter.abs().max() <= 26  # 0.1 of 255
    steeper = noisy_images(images, replace(NO_IMAGE_NOISE, contrast=0.2), generator()).float()
    # 127.5 + (100 - 127.5) * (1 +- 0.2) is between 94.5 and 105.5
    assert 94 <= steeper.min() < 96 and 104 < steeper.max() <= 106
    white = noisy_images(images, replace(NO_IMAGE_NOISE, pixel=0.04), generator()).float() - 100
    assert white.flatten(1).std(1).max() == pytest.approx(0.04 * 255, rel=0.2)
    assert torch.equal(noisy_images(images, NO_IMAGE_NOISE, generator()), images)


def test_one_camera_disturbs_all_frames_of_an_episode_alike() -> None:
    images = torch.randint(0, 256, (6, 2, 8, 8, 3), generator=generator(), dtype=torch.uint8)
    noise = replace(NO_IMAGE_NOISE, shift=3)
    one = noisy_images(images, noise, generator(4), one_camera=True)
    found = []
    for down in range(-3, 4):
        for right in range(-3, 4):
            moved = shifted(images, torch.full((6,), down), torch.full((6,), right))
            found += [(down, right)] if torch.equal(moved, one) else []
    assert len(found) == 1


def test_without_noise_frames_are_the_very_same(model: WorldActionModel) -> None:
    frames = torch.rand(3, 2, 4)
    model.config = replace(model.config, context_noise=0.0)
    before = (g := generator()).get_state()
    assert model.noisy(frames, g) is frames and torch.equal(g.get_state(), before)


def test_noise_is_on_what_is_measured_and_not_on_codes_of_images(model: WorldActionModel) -> None:
    model.config = replace(model.config, context_noise=0.01)
    model.codec.vector_dim = 3
    frames = torch.rand(3, 2, 4)
    noisy = model.noisy(frames, generator())
    assert (noisy[..., :3] != frames[..., :3]).all() and torch.equal(noisy[..., 3:], frames[..., 3:])


def test_a_millimetre_on_what_never_changes_is_no_large_number() -> None:
    """Feature 0 moves by decimetres, feature 1 never: with noise of 4 mm nothing is scaled by less than that."""
    frames = torch.zeros(100, 2, 2)
    frames[..., 0] = torch.randn(100, 2)
    codec = VectorCodec(2, [], 2, 2, 2, 8, 8, noise=0.004)
    codec.fit(frames, frames.clone())
    seen: list[torch.Tensor] = []
    codec.context_in.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    codec.embed_context(torch.zeros(1, 2, 2))
    codec.embed_context(torch.tensor([[[0.0, 0.0], [0.0, 0.001]]]))
    newest, change = (seen[1] - seen[0])[0, 1], (seen[1] - seen[0])[0, 3]
    assert newest == pytest.approx(0.25) and change == pytest.approx(0.25)  # a millimetre in units of 4 mm
    assert codec.change.std[0, 1] == pytest.approx(0.001)  # what is predicted keeps its scale


def test_a_checkpoint_from_before_had_no_noise() -> None:
    old = asdict(ModelConfig())
    del old["context_noise"], old["image_noise"]
    config = ModelConfig.from_dict(old)
    assert config.context_noise == 0.0 and config.image_noise == NO_IMAGE_NOISE
    assert ModelConfig.from_dict(asdict(ModelConfig())) == ModelConfig()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(context_noise=-0.1), "context_noise=-0.1: expected a finite number, at least 0"),
        (ModelConfig(context_noise=float("nan")), "context_noise=nan: expected a finite number, at least 0"),
        (ModelConfig(image_noise=ImageNoise(pixel=1.5)), "pixel=1.5: expected a share of the full range, from 0 to 1"),
        (ModelConfig(image_noise=ImageNoise(shift=65)), "shift=65: expected a whole number of pixels, from 0 to 64"),
    ],
)
def test_noise_that_means_nothing_is_refused(config: ModelConfig, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        config.check()
