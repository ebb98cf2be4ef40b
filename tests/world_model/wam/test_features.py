"""Images and latents: what is encoded, how often, and that frames, features and episodes convert into each other."""

from dataclasses import replace

import pytest
import torch

from world_model.data.episodes import Episode
from world_model.spec import Feature, Spec
from world_model.view import View
from world_model.wam.config import ModelConfig
from world_model.wam.features import frame_vectors, joined, split
from world_model.wam.model import WorldActionModel

SPEC = Spec({"state": Feature((4,), "m", {"hand_pos": (0, 3)})}, (-1.0,) * 2, (1.0,) * 2, ("push",), 80.0)
CAMERAS = ("images.front", "images.hand")


@pytest.fixture
def image_model() -> WorldActionModel:
    """A tiny model with two cameras, which has learned nothing."""
    torch.manual_seed(0)
    sizes = {"width": 16, "world_width": 16, "action_width": 16, "n_layers": 1, "n_heads": 2}
    views = {"front": View(), "hand": View(camera="gripperPOV")}
    return WorldActionModel(ModelConfig(**sizes, views=views, image_size=32, patch_dim=2), SPEC).eval()


def images(n: int, n_frames: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, n_frames, 32, 32, 3)
    return {name: torch.randint(256, shape, generator=generator).to(torch.uint8) for name in CAMERAS}


def test_a_model_reads_images_and_predicts_latents(image_model: WorldActionModel) -> None:
    assert image_model.spec.features["images.hand"] == Feature((32, 32, 3), dtype="uint8", every=8)
    n_codes = 2 * (32 // 16) ** 2 * 2  # cameras, patches, numbers of a code
    assert image_model.predicted_spec.features["latents"] == Feature((n_codes,), "codes", every=8)
    assert image_model.predicted_spec.images == () and image_model.frame_dim == 4 + n_codes
    again = WorldActionModel.from_config(image_model.to_config())
    assert again.spec == image_model.spec and again.predicted_spec == image_model.predicted_spec


def test_latents_are_the_codes_of_both_cameras_and_equal_images_are_encoded_once(
    image_model: WorldActionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = images(2, 3)
    for of in frames.values():
        of[0, 1] = of[0, 0]  # the first row has a new image in frame 2, the second one in every frame
    codec, encoded = image_model.image_codec, []
    assert codec is not None
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda x: encoded.append(len(x)) or encode(x))
    task = torch.zeros(2, dtype=torch.long)
    obs = image_model.encode_obs({"state": torch.zeros(2, 3, 4), **frames, "task": task})
    assert obs.keys() == {"state", "latents", "task"} and encoded == [5]
    stacked = torch.stack([frames[name] for name in CAMERAS], dim=2)
    expected = encode(stacked.flatten(0, 1)).view(2, 3, -1)
    torch.testing.assert_close(obs["latents"], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(obs["latents"][0, 0], obs["latents"][0, 1])
    assert image_model.encode_obs(obs) == obs  # latents are not encoded again


def test_images_of_latents_are_decoded_only_where_they_are_asked_for(image_model: WorldActionModel) -> None:
    frames = {"state": torch.zeros(2, 3, 4), **images(2, 3)}
    latents = image_model.encode_obs(frames)
    assert image_model.decode_obs(latents, ["state"]) == {}
    (name,) = decoded = image_model.decode_obs(latents, ["images.hand"])
    assert name == "images.hand" and decoded[name].shape == (2, 3, 32, 32, 3) and decoded[name].dtype == torch.uint8
    # Reward terms ask for features by name: what is there stays, what is not a feature is ignored.
    asked = image_model.with_features(frames, ["latents", "images.front", "progress"])
    assert asked.keys() == {"state", *CAMERAS, "latents"} and asked["images.front"] is frames["images.front"]
    assert image_model.with_features(latents, ["images.hand"]).keys() == {"state", "latents", "images.hand"}


def test_an_episode_with_images_becomes_one_with_latents(image_model: WorldActionModel) -> None:
    steps, every = 11, 8
    rows = {name: of[0] for name, of in images(1, 3).items()}  # new in frames 0, 8 and 11
    episode = Episode(
        obs={"state": torch.randn(steps + 1, 4), **rows},
        action=torch.zeros(steps, 2),
        success=torch.zeros(steps, dtype=torch.bool),
        task="push",
        source="policy",
        seed=0,
        every=dict.fromkeys(CAMERAS, every),
    )
    episode.check_fits(image_model.spec, "here")
    (encoded,) = image_model.encode_episodes([episode])
    encoded.check_fits(image_model.predicted_spec, "here")
    assert encoded.every == {"latents": every} and encoded.obs["latents"].shape[0] == 3
    assert image_model.encode_episodes([encoded]) == [encoded]
    vectors = frame_vectors(encoded)
    assert vectors.shape == (steps + 1, image_model.frame_dim)
    assert torch.equal(vectors[3, 4:], encoded.obs["latents"][0])
    assert torch.equal(vectors[11, 4:], encoded.obs["latents"][2])
    # Windows take both, with the same result.
    for of in ([episode], [encoded]):
        batch = image_model.windows(of, ends=True).at(torch.tensor([0, 1]))
        assert torch.equal(joined(batch.context)[:, -1], vectors[[0, 8]])
    assert replace(encoded, every={}).rows_of("latents").tolist() == list(range(12))


def test_joined_and_split_are_inverse() -> None:
    frames = {"state": torch.randn(2, 3, 4), "latents": torch.randn(2, 3, 5)}
    back = split(joined(frames), state_dim=4)
    assert back.keys() == frames.keys() and all(torch.equal(back[name], frames[name]) for name in frames)
    assert split(frames["state"], state_dim=4).keys() == {"state"}
    assert joined({"state": frames["state"]}) is frames["state"]
