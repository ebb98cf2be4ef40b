"""Twelve kinds of bad numbers in five places: each is caught in the step that brings it, and no weight moves."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from rewards import RewardManager
from rewards.errors import BadNumbers, UserError
from rl.config import PPOConfig
from rl.envs.sim import SimEnv
from rl.policies.api import policy_state
from rl.policies.gaussian import GaussianPolicy
from rl.ppo.buffer import Samples
from rl.ppo.update import PPO

WHEN = 3
"""The step of an episode that goes wrong."""

BAD: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "minus inf": float("-inf"),
    "absurd": 1e30,
    "minus absurd": -1e30,
    "more than float32 holds": 1e300,
    "none": None,
    "text": "much",
    "complex": 1 + 2j,
    "two": [0.0, 1.0],
    "nothing": [],
    "ragged": [[0.0], [1.0, 2.0]],
}


class Poison(gymnasium.Env[Any, Any]):
    """Two numbers that do not move; at step `WHEN` of an episode one thing that it returns is `value`."""

    observation_space, action_space = Box(-10, 10, (3,)), Box(-1, 1, (2,))

    def __init__(self, what: str, value: Any) -> None:
        self.what, self.value, self.n = what, value, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.n = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.n += 1
        obs: Any = np.full(3, 0.5, np.float32)
        reward: Any = 0.25
        info: dict[str, Any] = {"success": False}
        if self.n == WHEN:
            if self.what == "observation":
                obs = [0.5, 0.5, self.value] if np.isscalar(self.value) or self.value is None else self.value
            elif self.what == "reward":
                reward = self.value
            elif self.what == "info":
                info["success"] = self.value
        return obs, reward, False, False, info


@pytest.fixture
def make_ppo(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PPO]:
    def make(what: str = "", value: Any = None, imitation: Any = None) -> PPO:
        registered = gymnasium.envs.registration.EnvSpec("Poison-v0", Poison, kwargs={"what": what, "value": value})
        monkeypatch.setitem(gymnasium.registry, "Poison-v0", registered)
        rewards = RewardManager({"task_reward": {"weight": 0.1}}, {"task_reward"}, "sim")
        sim = SimEnv("Poison-v0", 2, n_context_frames=1, max_steps=8, rewards=rewards)
        config = PPOConfig(n_steps=4, batch_size=8, n_epochs=1, critic_warmup_steps=0)
        ppo = PPO(GaussianPolicy(sim, chunk_size=2), config, imitation)
        ppo.batched = sim  # type: ignore[attr-defined] # where these tests collect
        return ppo

    return make


def learn(ppo: PPO, n_updates: int = 4) -> None:
    for _ in range(n_updates):
        rollout = ppo.collect(ppo.batched, ppo.config.n_steps)  # type: ignore[attr-defined]
        ppo.update(Samples.from_rollout(rollout, ppo.config.gamma, ppo.config.gae_lambda))


def unchanged(ppo: PPO, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in policy_state(ppo.policy).items())


@pytest.mark.parametrize("what", ["observation", "reward", "info"])
@pytest.mark.parametrize("kind", BAD)
def test_what_an_environment_returns(what: str, kind: str, make_ppo: Callable[..., PPO]) -> None:
    ppo = make_ppo(what, BAD[kind])
    before = policy_state(ppo.policy)
    with pytest.raises(UserError) as caught:
        learn(ppo)
    line = str(caught.value)
    name = {"observation": "(state|observation)", "reward": "reward", "info": "success in its info"}[what]
    assert re.search(rf"environment 0.*{name}.* at step {WHEN}; ", line), line
    assert ppo.batched.elapsed.tolist() == [2, 2]  # the chunk before it was executed, that one was not
    assert isinstance(caught.value, BadNumbers) and unchanged(ppo, before)


@pytest.mark.parametrize("kind", BAD)
def test_what_a_policy_does(kind: str, make_ppo: Callable[..., PPO]) -> None:
    ppo = make_ppo()
    before, sample = policy_state(ppo.policy), ppo.policy.sample

    def bad_sample(*given: Any) -> Any:
        decision = sample(*given)
        actions, value = decision.actions, BAD[kind]
        if kind in ("none", "text", "ragged"):
            return replace(decision, actions=value)
        if kind == "complex":
            return replace(decision, actions=actions + value)
        if kind in ("two", "nothing"):
            return replace(decision, actions=torch.tensor(value))
        actions = actions.double()
        actions[1, 1, 0] = value
        return replace(decision, actions=actions)

    ppo.policy.sample = bad_sample  # type: ignore[method-assign]
    with pytest.raises(UserError) as caught:
        learn(ppo)
    expected = (
        r"actions (are|have shape)"
        if kind in BAD and not isinstance(BAD[kind], float)
        else "action for environment 1, step 1"
    )
    assert re.search(f"sim: .*{expected}", str(caught.value))
    assert ppo.batched.elapsed.tolist() == [0, 0] and unchanged(ppo, before)


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind != "none"] + ["integer"])
def test_what_is_added_to_the_loss(kind: str, make_ppo: Callable[..., PPO]) -> None:
    """None is no bad number here: there is nothing to imitate."""
    value = {**BAD, "integer": 3}[kind]
    as_tensor = kind not in ("text", "ragged")
    ppo = make_ppo(imitation=lambda generator: torch.tensor(value) if as_tensor else value)
    before = policy_state(ppo.policy)
    with pytest.raises(BadNumbers, match=r"^the loss (is|became) .*; nothing of it was learned; "):
        learn(ppo)
    assert unchanged(ppo, before)


def test_nothing_is_wrong_with_good_numbers(make_ppo: Callable[..., PPO]) -> None:
    ppo = make_ppo("reward", np.array([0.25]), imitation=lambda generator: torch.tensor(0.5))
    before = policy_state(ppo.policy)
    learn(ppo, 1)
    assert not unchanged(ppo, before)


def test_what_led_to_it_is_kept(make_ppo: Callable[..., PPO]) -> None:
    ppo = make_ppo("observation", float("nan"))
    with pytest.raises(BadNumbers) as caught:
        learn(ppo)
    tensors = caught.value.tensors
    assert tensors["context"].shape == (2, 1, 3) and tensors["actions"].shape == (2, 2, 2)
    assert torch.isnan(tensors["frames"][:, 0, 2]).all() and tensors["elapsed"].tolist() == [2, 2]


def test_an_update_that_explodes_is_taken_back(make_ppo: Callable[..., PPO]) -> None:
    ppo = make_ppo()
    before = policy_state(ppo.policy)
    rollout = ppo.collect(ppo.batched, 8)
    rollout.reward[0] = 1.0  # something to learn from
    samples = Samples.from_rollout(rollout, gamma=0.9, gae_lambda=0.9)
    ppo.config = replace(ppo.config, target_kl=1e-9)
    assert ppo.update(samples)["taken_back"] == 1.0 and unchanged(ppo, before)
    ppo.config = replace(ppo.config, target_kl=10.0)
    assert ppo.update(samples)["taken_back"] == 0.0 and not unchanged(ppo, before)
