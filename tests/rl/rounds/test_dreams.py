"""What the world decoder is refitted on."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from world_model.data.episodes import Episode
from world_model.wam.model import WorldActionModel
from world_model.wam.training import fit_statistics


def refitted(model: WorldActionModel, episode: Episode) -> torch.Tensor:
    """Weights of the world decoder after a few steps on one episode."""
    model = copy.deepcopy(model)
    model.refit([episode], n_steps=3, learning_rate=1e-3, seed=0)
    return torch.cat([p.detach().flatten() for p in model.dynamics_parameters()])


def test_a_refit_learns_from_the_last_steps_of_an_episode_with_images(image_model: WorldActionModel) -> None:
    generator = torch.Generator().manual_seed(0)
    size, n_steps = image_model.config.chunk_size, 2 * image_model.config.chunk_size + 3
    state = torch.randn(n_steps + 1, image_model.spec.state_dim, generator=generator)
    latents = torch.randn(
        4, *image_model.predicted_spec.features["latents"].shape, generator=generator
    )  # 0, 8, 16, the last
    action = torch.rand(n_steps, image_model.spec.action_dim, generator=generator)
    success = torch.arange(n_steps) == n_steps - 1
    obs = {"state": state, "latents": latents}
    episode = Episode(obs, action, success, "push", "policy", 0, every={"latents": size})
    fit_statistics(image_model, image_model.windows([episode]))
    weights = refitted(image_model, episode)
    assert weights.isfinite().all() and torch.equal(weights, refitted(image_model, episode))
    moved = state.clone()
    moved[-3:, 0] += 1.0  # three steps after the last whole chunk
    assert not torch.equal(weights, refitted(image_model, replace(episode, obs=obs | {"state": moved})))
