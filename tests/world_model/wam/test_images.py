"""ImageData as codes: shapes and order, what the autoencoder learns, what is measured; frames that end in codes."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch

from rewards import Transition
from rewards.builtin import GoalImage
from rewards.errors import UserError
from world_model.view import View
from world_model.wam.codec import PatchCodec, VectorCodec
from world_model.wam.config import ModelConfig
from world_model.wam.images import ImageCodec, ImageData, image_loss, moving, peak_signal_to_noise

SIZE = 32


def squares(n: int) -> torch.Tensor:
    """ImageData (n, 1, SIZE, SIZE, 3) of a table with a white square that is somewhere else in each."""
    images = torch.full((n, 1, SIZE, SIZE, 3), 60, dtype=torch.uint8)
    for i in range(n):
        x, y = 4 * (i % 6), 4 * (i // 6 % 6)
        images[i, 0, y : y + 8, x : x + 8] = 220
    return images


def test_shapes_and_one_code_a_patch():
    codec = ImageCodec(2, SIZE, 5)
    images = squares(3).repeat(1, 2, 1, 1, 1)
    codes = codec.encode(images)
    assert codes.shape == (3, 2 * 4 * 5) and codec.code_dim == 40 and codec.n_tokens == 8
    assert codec.decode(codes).shape == images.shape and codec.decode(codes).dtype == torch.uint8


def test_the_codec_begins_with_what_is_always_seen_and_learns_the_rest():
    torch.manual_seed(0)
    images = squares(36)
    codec = ImageCodec(1, SIZE, 8, widths=(16, 16, 16))
    everything = ImageData([images[:18], images[18:]])
    codec.fit(everything)
    usual = everything.usual.float().mean(0)
    torch.testing.assert_close((255 * (codec.always + 0.5)).permute(0, 2, 3, 1), usual)
    optimizer, generator = torch.optim.Adam(codec.parameters(), 3e-3), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(150):
        loss = image_loss(codec, everything.sample(16, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    # Where the square moved, drawing the code beats repeating the image before.
    with torch.no_grad():
        drawn, mask = codec.decode(codec.encode(images[1:])), moving(images[:-1], images[1:])
    gained = peak_signal_to_noise(drawn, images[1:], mask) - peak_signal_to_noise(images[:-1], images[1:], mask)
    assert gained > 3


def test_a_batch_has_the_mean_of_its_own_task():
    dark, light = squares(4) // 4, squares(4)
    batch = ImageData([dark, light]).sample(32, torch.Generator().manual_seed(1))
    for image, usual in zip(batch.images, batch.usual, strict=True):
        expected = (dark if image.max() < 100 else light).float().mean(0).round()
        assert torch.equal(usual.float(), expected)


def test_peak_signal_to_noise_by_hand():
    truth = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    drawn = truth.clone()
    drawn[0, 0, 0] = 51  # a fifth of the range: 1 / 25 of its square
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 0, :] = True  # two pixels, one of them right
    assert peak_signal_to_noise(drawn, truth, mask) == pytest.approx(10 * math.log10(50), abs=1e-4)
    assert moving(truth, drawn).tolist() == [[[True, False], [False, False]]]


def patch_codec() -> tuple[PatchCodec, torch.Tensor, torch.Tensor]:
    """A codec of 2 numbers and 3 patches of 4 numbers, fitted, with frames before (16, 2, 14) and after (16, 4, 14)."""
    torch.manual_seed(0)
    codec = PatchCodec(VectorCodec(2, [], 2, 4, 4, 8, 12), 3, 4, 8, 12)
    context, future = torch.randn(16, 2, 14), torch.randn(16, 4, 14)
    future[:, :-1, 2:] = context[:, -1:, 2:]  # a image stays until the chunk ends
    codec.fit(context, future)
    return codec, context, future


def test_frames_of_a_chunk_come_back_from_their_codes():
    codec, context, future = patch_codec()
    codes = codec.encode_future(context, future)
    assert codes.shape == (16, codec.n_future_tokens, codec.code_dim) == (16, 1 + 3, 8)
    assert (codes[:, 1:, 4:] == 0).all()
    torch.testing.assert_close(codec.decode_future(context, codes), future)


def test_tokens_and_what_a_refit_trains():
    codec, context, future = patch_codec()
    assert codec.embed_context(context).shape == (16, 4, 8)
    tokens = codec.embed_future(context, codec.encode_future(context, future))
    assert tokens.shape == (16, 4, 12)
    assert codec.predict_future(tokens).shape == (16, 4, 8)
    trained = {id(p) for p in codec.future_parameters()}
    named = {name for name, p in codec.named_parameters() if id(p) in trained}
    assert {name.rsplit(".", 1)[0] for name in named} == {
        "future_in",
        "future_out",
        "vector.future_in",
        "vector.future_out",
    }


def test_each_patch_of_an_image_has_its_token():
    codec, context, _ = patch_codec()
    other = context.clone()
    other[:, -1, 2 + 4 : 2 + 8] += 1.0  # the second patch
    changed = (codec.embed_context(other) - codec.embed_context(context)).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, False]


def test_views_survive_the_config_of_a_checkpoint():
    config = ModelConfig(views={"front": View(), "hand": View(camera="gripperPOV", shows_goal=False)})
    assert ModelConfig.from_dict(asdict(config)) == config
    assert ModelConfig.from_dict({"width": 160}).views == {}


def test_a_size_that_has_no_whole_patches_is_refused():
    with pytest.raises(UserError, match=r"model\.image_size=40: expected a multiple of 16"):
        ModelConfig(image_size=40).check()


class Cameras:
    """What a reward term may use of a model with two cameras; see `rewards.api.ImageModel`."""

    n_cameras = 2

    def __init__(self, codec: ImageCodec) -> None:
        self.encode_file = codec.encode_file


def test_a_goal_image_is_near_itself_and_what_is_no_image_is_refused(tmp_path: Path):
    torch.manual_seed(0)
    codec, images = ImageCodec(2, SIZE, 4), squares(2)
    iio.imwrite(tmp_path / "goal.png", images[0, 0].numpy())
    both = codec.encode(images.repeat(1, 2, 1, 1, 1))
    state, nothing = torch.zeros(2, 3), torch.zeros(2)
    t = Transition(
        *(state, state, torch.zeros(2, 4), torch.zeros(2, 3, 4), nothing.bool(), nothing.bool(), nothing, nothing),
        slices={},
        features={"latents": both},
        images=Cameras(codec),
    )
    for view in (0, 1):
        distance = GoalImage(str(tmp_path / "goal.png"), view)(t)
        assert distance[0].item() == pytest.approx(0, abs=1e-6) and distance[1] > 1e-4
    with pytest.raises(UserError, match="view=2: the model has 2 cameras"):
        GoalImage(str(tmp_path / "goal.png"), 2)(t)
    with pytest.raises(UserError, match=r"no\.png: no image can be read there"):
        GoalImage(str(tmp_path / "no.png"))(t)
    iio.imwrite(tmp_path / "small.png", images[0, 0, :8].numpy())
    with pytest.raises(UserError, match=r"small\.png: \(8, 32, 3\), expected an image of 32 x 32"):
        GoalImage(str(tmp_path / "small.png"))(t)
