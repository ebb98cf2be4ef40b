"""What the world decoder is refitted on, and of which tasks a refit also teaches success."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from rl.compose import compose
from rl.config import DreamConfig, TrainConfig
from rl.rounds.dreams import Dreams
from rl.rounds.gate import Verdict
from tests.conftest import CONFIG, SPEC, point_episodes
from world_model.data.episodes import Episode, EpisodeStore
from world_model.wam.config import TextConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model
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


TEXT = replace(CONFIG, task_conditioning="text", text=TextConfig(n_buckets=64, width=16, n_layers=1, n_heads=2))


@pytest.fixture
def reads(model: WorldActionModel) -> WorldActionModel:
    """A model that reads sentences."""
    reads = WorldActionModel(TEXT, SPEC)
    reads.codec.load_state_dict(model.codec.state_dict())
    reads.action_codec.load_state_dict(model.action_codec.state_dict())
    return reads.eval()


def refit(model: WorldActionModel, folder: Path, chosen: str, task: str) -> tuple[bool, torch.Tensor]:
    """Refit a copy of `model`, which is stored in `folder` with its episodes, on others of `task`.

    Returns whether the read-outs have changed, and the weights of the world decoder.
    """
    if not folder.exists():
        save_model(folder, model, stage="tune")
        EpisodeStore(folder).append(point_episodes(4, "expert", seed=5), SPEC)
    model, before = copy.deepcopy(model), model.read_out.state_dict()
    if task not in model.spec.tasks:
        tasks, sentences = (*SPEC.tasks, task), {task: "Touch the goal."}
        model.tell(replace(model.spec, tasks=tasks, instructions=model.spec.instructions | sentences))
    dream = DreamConfig(refit_steps=2, refit_read_out=chosen)  # type: ignore[arg-type]
    dreams = Dreams(TrainConfig(name="x", checkpoint=str(folder), dream=dream), model)
    dreams.episodes = [replace(episode, task=task) for episode in point_episodes(4, "expert", seed=6)]
    dreams.refit()
    after = model.read_out.state_dict()
    weights = torch.cat([p.detach().flatten() for p in model.dynamics_parameters()])
    return any(not torch.equal(before[name], after[name]) for name in before), weights


def test_only_unseen_tasks_are_taught_to_the_read_out_of_success(
    model: WorldActionModel, reads: WorldActionModel, tmp_path: Path
) -> None:
    known, decoder = refit(model, tmp_path / "index", "unseen", "reach")
    taught, same = refit(model, tmp_path / "index", "all", "reach")
    assert not known and taught and torch.equal(decoder, same)  # the world decoder is as without it, to the bit
    assert not refit(reads, tmp_path / "text", "unseen", "reach")[0]
    taught, decoder = refit(reads, tmp_path / "text", "unseen", "touch")
    kept, same = refit(reads, tmp_path / "text", "none", "touch")
    assert taught and not kept and torch.equal(decoder, same)


def test_a_run_from_the_checkpoint_of_a_run_teaches_its_unseen_task_further(
    reads: WorldActionModel, tmp_path: Path
) -> None:
    told = replace(SPEC, tasks=(*SPEC.tasks, "touch"), instructions=SPEC.instructions | {"touch": "Touch the goal."})
    reads.tell(told)
    save_model(tmp_path / "run", reads, stage="rl")
    later = load_model(tmp_path / "run")
    assert refit(later, tmp_path / "text", "unseen", "touch")[0]
    assert not refit(later, tmp_path / "text", "unseen", "reach")[0]


def test_a_refit_shows_how_far_trust_is_calibrated(model: WorldActionModel) -> None:
    dreams = Dreams(TrainConfig(name="x", dream=DreamConfig(refit_steps=100, max_expected_error=0.1)), model)
    dreams.episodes, shares = point_episodes(4, "expert", seed=6), list[float]()
    dreams.refit(shares.append)
    # 40 steps of calibration, which count for a third, then 100 of the refit, of which every hundredth shows
    assert shares == pytest.approx([*(i / 120 for i in range(1, 41)), 1.0])


@pytest.mark.parametrize("by_reward", [False, True])
def test_dreams_end_after_two_wider_gaps_where_there_is_success(model: WorldActionModel, by_reward: bool) -> None:
    dreams = Dreams(TrainConfig(name="x"), model)
    widenings = []
    for dreamed, won, lost in ((0.6, 1, 2), (0.7, 1, 2), (0.65, 1, 2), (0.75, 1, 2), (0.8, 1, 1)):
        dreams.success = dreamed
        dreams.update_gap(Verdict(won > lost, 0.5, 0.5, won, lost, n_episodes=8, by_reward=by_reward))
        widenings.append(dreams.n_widenings)
    assert widenings == ([0, 0, 0, 0, 0] if by_reward else [0, 1, 0, 1, 2])
    assert dreams.are_over == (not by_reward)


def test_the_key_has_three_values() -> None:
    assert compose(None, ["name=x"], TrainConfig).dream.refit_read_out == "unseen"
    with pytest.raises(UserError, match=r"dream\.refit_read_out"):
        compose(None, ["name=x", "dream.refit_read_out=some"], TrainConfig)
