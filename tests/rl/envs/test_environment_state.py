"""The state in two parts, that of the robot and the rest: the same episodes, rewards and noise as with the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rewards import RewardManager, Transition, reward
from rewards.errors import UserError
from rl.build import make_rewards
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.adapters import flatten_obs, observation_space, unflatten_obs
from rl.envs.sim import SimEnv
from world_model.data.episodes import EpisodeStore
from world_model.spec import Feature

APART = {"state": Feature((4,)), "environment_state": Feature((17,))}
TASKS = ("push", "drawer-open")
REACH = "{func: %s:reach, weight: 1.0}"


@reward(requires=("object_pos", "hand_pos"))
def reach(t: Transition) -> torch.Tensor:
    """Distance from hand to object after the action, and how far the object moved."""
    moved = (t.next_state - t.state)[:, t.slices["object_pos"]].norm(dim=1)
    return (t["object_pos"] - t["hand_pos"]).norm(dim=1) + moved


def make(features: dict[str, Feature] | None = APART, **options: Any) -> SimEnv:
    return SimEnv("metaworld", 2, TASKS, features=features, **options)


@pytest.fixture(params=[0, 2])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[SimEnv, SimEnv]]:
    """An environment with two parts, whose workers are in other processes or not, and one with the whole state."""
    apart = make(n_workers=request.param, max_steps=12, obs_noise=0.01)
    yield apart, make(None, max_steps=12, obs_noise=0.01)
    apart.close()


def joined(of: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([of["state"], of["environment_state"]], dim=-1)


def chunks(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 5, 4, generator=generator) * 2 - 1 for _ in range(n)]


def test_both_parts_together_are_the_whole_state(pair: tuple[SimEnv, SimEnv]) -> None:
    apart, whole = pair
    assert apart.spec.slices == {"hand_pos": slice(0, 3), "gripper": slice(3, 4)}
    assert apart.spec.vector_slices == whole.spec.slices
    manager = [RewardManager({"reach": {"func": f"{__file__}:reach", "weight": 2.0}}, whole.spec.slices, "sim")]
    apart.rewards = whole.rewards = manager[0]
    one, other = apart.reset(seed=1), whole.reset(seed=1)
    assert one.keys() == {"state", "environment_state", "task"}
    assert torch.equal(joined(one), other["state"])  # with the noise
    for actions in chunks(4):  # into the next episodes
        assert torch.equal(apart.expert_actions(), whole.expert_actions())
        step, expected = apart.step_chunk(actions), whole.step_chunk(actions)
        assert torch.equal(joined(step.frames), expected.frames["state"])
        assert torch.equal(joined(step.obs), expected.obs["state"])
        assert torch.equal(joined(step.final_obs), expected.final_obs["state"])
        assert torch.equal(step.reward, expected.reward) and step.reward.any()
        assert torch.equal(joined(apart.context), whole.context["state"])


def test_resume_is_exact() -> None:
    env = make(max_steps=12, obs_noise=0.01, action_delay=1)
    env.reset(seed=2)
    env.record(True)
    first, *rest = chunks(4)
    env.step_chunk(first)
    saved, again = env.state_dict(), make(max_steps=12, obs_noise=0.01, action_delay=1)
    again.load_state_dict(saved)
    for actions in rest:
        assert torch.equal(env.expert_actions(), again.expert_actions())
        one, other = env.step_chunk(actions), again.step_chunk(actions)
        for name in ("state", "environment_state"):
            assert torch.equal(one.obs[name], other.obs[name]) and torch.equal(one.frames[name], other.frames[name])
    ours, theirs = env.record(False), again.record(False)
    assert ours and all(
        torch.equal(a.obs["environment_state"], b.obs["environment_state"]) for a, b in zip(ours, theirs, strict=True)
    )


def test_recorded_episodes_have_both_parts(tmp_path: Any) -> None:
    env = make(max_steps=6)
    env.reset(seed=3)
    env.record(True)
    for actions in chunks(2):
        env.step_chunk(actions)
    store = EpisodeStore(tmp_path)
    store.append(env.record(False), env.spec)
    first, second = store.load()
    assert (first.task, second.task) == TASKS
    assert first.state.shape == (7, 4) and first.obs["environment_state"].shape == (7, 17)
    _, last = SimEnv.replay(id="", episode=first, cameras={})
    assert torch.equal(torch.from_numpy(last), joined({name: x[-1] for name, x in first.obs.items()}))


def test_a_term_that_needs_what_the_place_lacks_is_refused() -> None:
    config = compose("sim", [f"rewards.reach={REACH % __file__}"], TrainConfig)
    assert make_rewards(config, make().spec, "sim", None).names == ["success", "reach"]
    robot_alone = make({"state": Feature((4,))}).spec
    with pytest.raises(UserError, match="'reach' requires 'object_pos', which the sim cannot provide"):
        make_rewards(config, robot_alone, "sim", None)


def test_a_bad_number_in_the_environment_state_is_found() -> None:
    env = make()
    env.reset(seed=0)
    kept = env._kept

    def broken(state: torch.Tensor) -> dict[str, torch.Tensor]:
        found = kept(state)
        found["environment_state"][1, 2, 5] = torch.nan
        return found

    env._kept = broken  # type: ignore[method-assign]
    with pytest.raises(
        UserError, match=r"environment 1 \(task drawer-open\) returned a state that is not finite .* step 3"
    ):
        env.step_chunk(chunks(1)[0])


def test_adapters_flatten_both_parts_and_take_them_apart() -> None:
    env = make(n_context_frames=3)
    env.reset(seed=0)
    obs = env.step_chunk(chunks(1)[0]).obs
    flat = flatten_obs(obs, env.spec)
    assert flat.shape == (2, 3 * 21 + 2) and observation_space(env).shape == (65,)
    back = unflatten_obs(flat, env.spec, 3)
    assert back.keys() == obs.keys() and all(torch.equal(back[name], obs[name]) for name in obs)
