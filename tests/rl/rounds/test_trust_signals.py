"""What a dreamed chunk counts: by its expected error, and nothing for a success that flips."""

import pytest
import torch

import rl.rounds.trust_signals
from rewards.errors import UserError
from rl.build import make_policy, make_sim
from rl.compose import compose
from rl.config import TrainConfig
from rl.ppo.buffer import Rollout
from rl.ppo.update import PPO
from rl.rounds.dreams import Dreams
from rl.rounds.trust_signals import flipped, trust_weights
from world_model.dream_env import DreamEnv, StartStates


def test_trust_weighs_by_hand() -> None:
    # the median is 1: 1/2, 1/2, 1/4, of mean 5/12
    torch.testing.assert_close(trust_weights(torch.tensor([[1.0], [1.0], [3.0]])), torch.tensor([[1.2], [1.2], [0.6]]))
    torch.testing.assert_close(trust_weights(torch.zeros(2, 2)), torch.ones(2, 2))


@pytest.fixture
def rollout(model, make_point) -> Rollout:
    """Four chunks in three branches; the actions of chunk t in branch j are all (t + 4 j) / 12."""
    env = make_point(3, seed=0)
    config = compose("sim", ["ppo.n_steps=4", "ppo.batch_size=4"], TrainConfig)
    found = PPO(make_policy_of(model, env), config.ppo).collect(env, 4)
    numbers = torch.arange(4).view(4, 1) + 4 * torch.arange(3)
    found.actions = (numbers / 12).view(4, 3, 1, 1).expand_as(found.actions).clone()
    for name in ("success", "terminated", "truncated"):
        setattr(found, name, torch.zeros(4, 3, dtype=torch.bool))
    # Branch 0 succeeds in its second chunk and begins anew; branch 1 is truncated first, then succeeds; 2 never ends.
    found.success[1, 0] = found.terminated[1, 0] = True
    found.truncated[0, 1] = found.success[3, 1] = found.terminated[3, 1] = True
    return found


def make_policy_of(model, env):
    from rl.policies.wam import FlowPolicy

    return FlowPolicy(model, env, n_denoising_steps=2, noise_std=0.1)


@pytest.mark.parametrize(
    ("seen_again", "lost"),
    [
        ({0: 1, 1: 2}, []),  # each in its last chunk
        ({0: 0, 1: 0}, []),  # sooner is as good
        ({1: 2}, [0]),
        ({0: 1}, [1]),
        ({0: 2, 1: 2}, [0]),  # after the chunks of the success were over
    ],
)
def test_a_success_that_flips_is_marked_from_its_first_chunk_on(model, rollout, monkeypatch, seen_again, lost) -> None:
    told: list[torch.Tensor] = []
    begun: list[StartStates] = []

    class Again(DreamEnv):
        def __init__(self, model, n, starts, horizon, n_denoising_steps, *rest, **options) -> None:
            assert n_denoising_steps == 2 and options == {"in_order": True, "action_delay": 2}
            begun.append(starts)
            super().__init__(model, n, starts, horizon, n_denoising_steps, *rest, **options)

        def step_chunk(self, actions):
            step = super().step_chunk(actions)
            step.is_success = torch.tensor([seen_again.get(i) == len(told) for i in range(2)])
            told.append(actions[:, 0, 0])
            return step

    monkeypatch.setattr(rl.rounds.trust_signals, "DreamEnv", Again)
    marks = flipped(model, rollout, 1, seed=5, action_delay=2)
    (starts,) = begun
    contexts = [rollout.frames[0, 0], rollout.frames[1, 1]]
    assert torch.equal(starts.context, torch.stack(contexts)) and starts.seed.tolist() == [5, 6]
    # The chunks of branch 0 are 0 and 1, the last one repeated; those of branch 1 are 5, 6 and 7.
    torch.testing.assert_close(torch.stack(told) * 12, torch.tensor([[0.0, 5.0], [1.0, 6.0], [1.0, 7.0]]))
    expected = torch.zeros(4, 3, dtype=torch.bool)
    if 0 in lost:
        expected[:2, 0] = True
    if 1 in lost:
        expected[1:, 1] = True
    assert torch.equal(marks, expected)


def test_without_success_there_is_nothing_to_dream_again(model, rollout) -> None:
    rollout.success[:] = False
    assert not flipped(model, rollout, 1, seed=0, action_delay=0).any()


def test_trust_that_was_never_calibrated_decides_nothing(tiny) -> None:
    from world_model.wam.store import load_model

    config = compose("dream", [*tiny, "dream.weigh_by_trust=true"], TrainConfig)
    model = load_model(config.checkpoint)
    nowhere = StartStates(*(torch.zeros(0) for _ in range(3)))
    with pytest.raises(UserError, match=r"dream.max_expected_error, dream.weigh_by_trust: .* was never calibrated"):
        Dreams(config, model).env(nowhere)


def test_what_flips_counts_nothing_and_is_no_success(tiny, monkeypatch) -> None:
    from world_model.wam.store import load_model

    config = compose("dream", [*tiny, "dream.redream=true", "dream.weigh_by_trust=true"], TrainConfig)
    model = load_model(config.checkpoint)
    sim = make_sim(config, model, ["button-press-topdown"], 4, rewards=False)
    found = PPO(make_policy(config, model, sim), config.ppo).collect(sim, 2)
    sim.close()
    found.success = torch.tensor([[False, True, False, False], [True, False, False, False]])
    found.expected_error = torch.ones(2, 4)
    marks = torch.tensor([[True, False, False, False], [True, False, False, False]])
    monkeypatch.setattr("rl.rounds.dreams.flipped", lambda *_: marks)
    seen = Dreams(config, model).weigh(found, 0)
    assert seen == {"expected_error": 1.0, "flipped": 0.5}
    assert torch.equal(found.weight, (~marks).float())
    assert found.success.tolist() == [[False, True, False, False], [False] * 4]
