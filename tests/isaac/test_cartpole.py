"""Isaac-Cartpole as NVIDIA ships it, in both workflows: every trap that a naive adapter falls into."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from rewards import RewardManager
from rewards.errors import UserError
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.isaac.env import IsaacEnv
from rl.policies.gaussian import GaussianPolicy
from rl.ppo.update import PPO
from rl.rounds.evaluate import evaluate_sim, first_states

N = 16
POLE = {"asset_cfg": {"name": "robot", "joint_names": ["cart_to_pole"]}}


@pytest.fixture(scope="module", params=["Isaac-Cartpole", "Isaac-Cartpole-Direct"])
def env(request) -> Iterator[IsaacEnv]:
    """One environment for all tests of a workflow: making one takes seconds."""
    own = None
    if request.param == "Isaac-Cartpole":
        from isaaclab.envs import mdp

        own = {"pole_speed": (mdp.joint_vel_l1, POLE)}
    env = IsaacEnv(request.param, N, success="time_out", terminate_on_success=False, own_rewards=own)
    yield env
    env.close()


@pytest.fixture
def manager_based(env) -> IsaacEnv:
    if env.env_id != "Isaac-Cartpole":
        pytest.skip("of the manager-based workflow")
    return env


def run_until_ends(env: IsaacEnv, k: int = 8):
    """Push everyone to the right until an episode ends in the middle of a chunk; a step and what was seen before it."""
    env.reset()
    for _ in range(40):
        before = env.observe()
        step = env.step_chunk(torch.ones(N, k, 1))
        if ((step.executed.sum(1) < k) & step.terminated).any():
            return before, step
    raise AssertionError("no episode ended")


def test_the_spec_is_read_off_the_task(env) -> None:
    assert env.spec.state_dim == 4 and env.spec.control_hz == pytest.approx(60) and env.max_steps == 300
    assert env.spec.action_low == (-1.0,) and env.spec.tasks == (env.env_id,)
    names = {} if "Direct" in env.env_id else {"joint_pos_rel": slice(0, 2), "joint_vel_rel": slice(2, 4)}
    assert env.spec.slices == names


def test_what_is_returned_belongs_to_the_caller(env) -> None:
    """Isaac Lab writes into the same buffers at every step."""
    env.reset()
    step = env.step_chunk(torch.ones(N, 1, 1))
    kept = {name: value.clone() for name, value in vars(step).items() if isinstance(value, torch.Tensor)}
    obs, frames = step.obs["state"].clone(), step.frames["state"].clone()
    for _ in range(200):
        env.step_chunk(torch.ones(N, 1, 1))
    for name, value in kept.items():
        assert torch.equal(getattr(step, name), value), name
    assert torch.equal(step.obs["state"], obs) and torch.equal(step.frames["state"], frames)


def test_a_chunk_ends_with_its_episode_and_the_next_one_begins_after_it(env) -> None:
    _, step = run_until_ends(env)
    early = (step.executed.sum(1) < 8) & step.terminated
    assert torch.equal(step.executed, step.executed.long().cumprod(1).bool())  # a prefix
    assert not step.reward[~step.executed].any()
    newest = step.obs["state"][early][:, -1]
    # Where a reset puts things; some steps under full thrust later they are elsewhere.
    assert (newest[:, 0].abs() <= 1).all() and (newest[:, 2].abs() <= 0.5).all()
    assert (env.elapsed[early] == 0).all()
    assert torch.equal(env._env.episode_length_buf[early], torch.zeros_like(env._env.episode_length_buf[early]))


def test_the_last_observation_of_an_episode_is_that_of_the_episode(env) -> None:
    """Isaac Lab leaves `final_obs` out unless asked, and elsewhere as it was at the last end."""
    _, step = run_until_ends(env)
    ended = step.terminated
    last, newest = step.final_obs["state"][:, -1], step.obs["state"][:, -1]
    assert (last[ended][:, 0].abs() > 3).all() and (newest[ended][:, 0].abs() <= 1).all()
    assert torch.equal(last[~ended], newest[~ended])
    assert torch.equal(last[ended], step.frames["state"][ended, step.executed[ended].sum(1) - 1])
    step = env.step_chunk(torch.zeros(N, 1, 1))
    goes_on = ~(step.terminated | step.truncated)  # what extras still hold for them is old
    assert goes_on.any() and torch.equal(step.frames["state"][goes_on, 0], step.obs["state"][goes_on, -1])


def test_a_time_limit_is_no_end(env) -> None:
    env.reset()
    env._env.episode_length_buf[:] = 297
    env.elapsed[:] = 297
    step = env.step_chunk(torch.zeros(N, 4, 1))
    assert step.executed.sum(1).tolist() == [3] * N
    assert step.truncated.all() and not step.terminated.any()
    assert step.is_success.all()  # to survive is to win here


def test_actions_stay_within_their_bounds(env) -> None:
    env.reset()
    state = env.state_dict()
    bounded = env.step_chunk(torch.ones(N, 3, 1)).frames["state"]
    env.load_state_dict(state)
    far_out = env.step_chunk(torch.full((N, 3, 1), 1e6)).frames["state"]
    assert (bounded - far_out).abs().max() < 1e-4
    env.load_state_dict(state)
    assert (bounded - env.step_chunk(torch.zeros(N, 3, 1)).frames["state"]).abs().max() > 0.01


def test_a_state_is_restored(env) -> None:
    env.reset()
    env.step_chunk(torch.ones(N, 5, 1))
    state = env.state_dict()
    actions = torch.rand(N, 8, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames = env.step_chunk(actions).frames["state"]
    env.step_chunk(actions)
    env.load_state_dict(state)
    assert torch.equal(env.observe()["state"], state["context"]["state"])
    assert (env.step_chunk(actions).frames["state"] - frames).abs().max() < 1e-4


def test_an_action_that_is_no_number_never_gets_there(env) -> None:
    env.reset()
    actions = torch.zeros(N, 2, 1)
    actions[3, 1] = torch.nan
    with pytest.raises(UserError, match="the action for environment 3, step 1 of the chunk is not finite"):
        env.step_chunk(actions)
    assert torch.isfinite(env.step_chunk(torch.zeros(N, 2, 1)).frames["state"]).all()


def test_rewards_are_by_the_step_not_by_the_second(manager_based) -> None:
    env = manager_based
    env.reset()
    step = env.step_chunk(torch.zeros(N, 1, 1))
    # alive 1, pole angle squared -1, cart speed -.01, pole speed -.005, all times 1/60 s
    position, velocity = step.frames["state"][:, 0].split(2, dim=1)
    expected = 1 - position[:, 1].square() - 0.01 * velocity[:, 0].abs() - 0.005 * velocity[:, 1].abs()
    torch.testing.assert_close(step.task_reward[:, 0], expected / 60, atol=1e-5, rtol=1e-3)


def test_a_reward_function_of_isaac_lab_is_a_term_of_ours(manager_based) -> None:
    env = manager_based
    term = {"func": "isaaclab.envs.mdp:joint_vel_l1", "weight": -2.0, "params": POLE}
    env.rewards = RewardManager({"pole_speed": term}, ("isaac",), "sim")
    try:
        env.reset()
        step = env.step_chunk(torch.ones(N, 4, 1))
    finally:
        env.rewards = None
    speed = step.frames["state"][..., 3].abs()
    torch.testing.assert_close(step.raw["pole_speed"], speed, atol=1e-4, rtol=1e-3)  # by the step: no hidden dt
    torch.testing.assert_close(step.reward, -2 * speed, atol=1e-4, rtol=1e-3)
    with pytest.raises(UserError, match=r"'pole_speed' requires 'isaac', which the dream cannot provide"):
        RewardManager({"pole_speed": term}, (), "dream")


def test_such_a_term_is_checked_from_the_command_line() -> None:
    """In a process of its own, where nobody has asked Isaac Lab's lazy module for the function before."""
    params = "{asset_cfg: {name: robot, joint_names: [cart_to_pole]}}"
    keys = {"func": "isaaclab.envs.mdp:joint_vel_l1", "weight": "-0.01", "params": params}
    words = [sys.executable, "-m", "rl.cli", "check", "isaac", *(f"rewards.spin.{k}={v}" for k, v in keys.items())]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    row = next(line for line in ran.stdout.splitlines() if "spin" in line)
    assert " … " in row, "the smallest and the largest value that it had"


def test_named_episodes_repeat_whatever_was_drawn_before(env) -> None:
    starts = first_states(env, range(7, 7 + N)).context["state"]
    torch.rand(5)
    env.reset()
    again = first_states(env, range(7, 7 + N)).context["state"]
    other = first_states(env, range(8, 8 + N)).context["state"]
    assert torch.equal(starts, again) and not torch.equal(starts, other)


def test_a_seed_restarts_every_random_choice(env) -> None:
    starts = []
    for seed in (3, 3, 4):
        starts.append(env.reset(seed=seed)["state"])
        torch.rand(5)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_no_more_episodes_are_named_than_there_are_names(env) -> None:
    env.set_episode_seeds([7, 8])
    env.reset()
    assert env.episode_seed.tolist() == [7, 8, *[-1] * (N - 2)]
    env.set_episode_seeds([])


def test_evaluation_runs_in_waves_and_repeats(env) -> None:
    torch.manual_seed(0)
    policy = GaussianPolicy(env)
    seeds = range(100, 100 + N + 4)  # a full batch and a quarter of one
    results = evaluate_sim(policy, env, seeds)
    assert [r.seed for r in results] == list(seeds)
    assert [r.n_steps for r in evaluate_sim(policy, env, seeds)] == [r.n_steps for r in results]


def test_there_is_one_environment_in_a_process(env) -> None:
    with pytest.raises(UserError) as caught:
        IsaacEnv("Isaac-Cartpole", N, success="time_out")
    assert str(caught.value) == (
        f"sim: this process already holds {env.env_id}, and Isaac Lab can hold one; close it first"
    )
    assert env.step_chunk(torch.zeros(N, 1, 1)).executed.all()


def test_ppo_collects_and_updates(env) -> None:
    config = compose("isaac", ["ppo.batch_size=64"], TrainConfig)
    ppo = PPO(GaussianPolicy(env), config.ppo)
    rollout = ppo.collect(env, 16)
    assert rollout.n_executed.sum() == 16 * N
    from rl.ppo.buffer import Samples

    stats = ppo.update(Samples.from_rollout(rollout, 0.99, 0.95))
    assert 0 < stats["approx_kl"] < 1
