"""Images from the simulator to the update, the recording and the dream; skipped where there is no OpenGL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rewards.errors import UserError
from rl.config import PPOConfig
from rl.envs.cameras import CameraUse
from rl.envs.sim import SimEnv
from rl.policies.wam import flow_policy
from rl.ppo.buffer import Samples
from rl.ppo.update import PPO
from world_model.dream_env import DreamEnv, StartStates
from world_model.wam.features import joined
from world_model.wam.model import WorldActionModel
from world_model.wam.training import fit_statistics

CHUNK = 8
MAX_STEPS = 2 * CHUNK + 4
IMAGES = "images.front"


@pytest.fixture
def sim(image_model: WorldActionModel) -> Iterator[SimEnv]:
    env = SimEnv(
        "metaworld",
        2,
        ["push", "door-open"],
        max_steps=MAX_STEPS,
        terminate_on_success=False,
        seed=1,
        features=image_model.spec.features,
        cameras=image_model.cameras,
    )
    try:
        env.reset()
    except UserError as error:
        pytest.skip(f"no OpenGL: {error}")
    yield env
    env.close()


def fit(model: WorldActionModel, sim: SimEnv) -> None:
    """Fit the statistics of a model to an episode of random actions in each environment."""
    generator = torch.Generator().manual_seed(0)
    sim.record(True)
    sim.reset()
    for _ in range(3):
        sim.step_chunk(2 * torch.rand(2, CHUNK, 4, generator=generator) - 1)
    fit_statistics(model, model.windows(sim.record(False)))


def codes(model: WorldActionModel, images: torch.Tensor) -> torch.Tensor:
    """Encode images (n, size, size, 3) of the only camera, straight by the codec."""
    assert model.image_codec is not None
    with torch.no_grad():
        return model.image_codec.encode(images.unsqueeze(1))


def test_images_are_seen_learned_from_recorded_and_dreamed_on(image_model: WorldActionModel, sim: SimEnv) -> None:
    assert sim.spec.features.keys() == image_model.spec.features.keys() == {"state", IMAGES}
    fit(image_model, sim)
    policy = flow_policy(image_model, sim)
    config = PPOConfig(n_steps=4, batch_size=4, n_epochs=1, learning_rate=1e-2, bc_coef=0.0, target_kl=None)
    ppo = PPO(policy, config, seed=1)
    before = {name: tensor.clone() for name, tensor in image_model.state_dict().items()}
    sim.record(True)
    sim.reset(seed=5)
    starts = StartStates.of(sim)

    # A rollout: chunks of 8, 8 and 4 steps to the end of an episode, and the first chunk of the next.
    rollout = ppo.collect(sim, 4)
    recorded = sim.record(False)
    assert rollout.n_executed.tolist() == [[8, 8], [8, 8], [4, 4], [8, 8]]
    seen = rollout.frames[IMAGES]
    assert seen.dtype == torch.uint8 and seen.shape == (4, 2, 2, 32, 32, 3)
    for context, images in zip(rollout.context, seen, strict=True):
        # The policy reads the latents of what is in front of the camera, without noise.
        torch.testing.assert_close(
            context.frames[:, -1, image_model.spec.state_dim :], codes(image_model, images[:, -1])
        )

    # An update changes action decoder and critic, and nothing that makes latents or dreams.
    ppo.update(Samples.from_rollout(rollout, config.gamma, config.gae_lambda))
    changed = {
        name.split(".")[0] for name, tensor in image_model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"action", "value"}

    # The recording has an image before each chunk, and a last one.
    assert [(e.task, e.length, e.every) for e in recorded] == [(t, 20, {IMAGES: CHUNK}) for t in ("push", "door-open")]
    encoded = image_model.encode_episodes(recorded)
    for i, (episode, its) in enumerate(zip(recorded, encoded, strict=True)):
        episode.check_fits(image_model.spec, "recorded")
        cameras = {f"images.{name}": CameraUse(view, 32, 32) for name, view in image_model.cameras.items()}
        again, _ = SimEnv.replay(id="", episode=episode, cameras=cameras)
        assert torch.equal(episode.obs[IMAGES], again[IMAGES][[0, 8, 16, 20]])
        assert torch.equal(episode.obs[IMAGES][:3], seen[:3, i, -1])
        its.check_fits(image_model.predicted_spec, "encoded")
        assert its.obs.keys() == {"state", "latents"} and its.every == {"latents": CHUNK}
        assert torch.equal(its.obs["latents"], codes(image_model, episode.obs[IMAGES]))
        assert torch.equal(its.state, episode.state)

    # A dream begins where the episodes began: with the latents of their first images.
    dream = DreamEnv(image_model, 2, starts, in_order=True)
    obs = dream.reset()
    assert dream.spec == image_model.predicted_spec and obs.keys() == {"state", "latents", "task"}
    assert torch.equal(obs["latents"], codes(image_model, starts.context[IMAGES][:, -1]).unsqueeze(1).expand(-1, 2, -1))
    first = torch.stack([episode.obs["latents"][0] for episode in encoded])
    torch.testing.assert_close(obs["latents"][:, -1], first)
    assert torch.equal(obs["state"], starts.context["state"])
    dreamed = ppo.collect(dream, 1)
    assert torch.equal(dreamed.frames["latents"][0], obs["latents"])
    assert joined(dream.context).isfinite().all() and dream.context["latents"].shape == obs["latents"].shape
