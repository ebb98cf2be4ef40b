"""PPO over chunks: exact before its first update, only its own side moves, nothing broken is learned, and it learns."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from rewards import RewardManager
from rewards.errors import UserError
from rl.config import PPOConfig
from rl.policies.api import Evaluation
from rl.policies.gaussian import GaussianPolicy
from rl.policies.wam import flow_policy
from rl.ppo.buffer import Samples
from rl.ppo.update import PPO, _normalised
from world_model.dream_env import DreamEnv, StartStates
from world_model.wam import modes
from world_model.wam.losses import policy_loss

CONFIG = PPOConfig(
    n_steps=4, batch_size=16, n_epochs=2, learning_rate=1e-3, gamma=0.9, bc_coef=0.0, ref_kl_coef=0.0, target_kl=None
)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def evaluation(ratios):
    """An `evaluate_actions` with given likelihoods (n, n_action_steps), for samples whose log-likelihood is 0."""
    return lambda context, chain, reference: Evaluation(ratios.log(), torch.zeros(len(ratios)), torch.zeros(()))


def samples(ppo, rollout):
    return Samples.from_rollout(rollout, ppo.config.gamma, ppo.config.gae_lambda)


@pytest.fixture
def make_ppo(model, make_point):
    def make(config=CONFIG, num_envs=8, policy="flow", imitation=None, **options):
        env = make_point(num_envs, seed=2, **options)
        torch.manual_seed(0)
        if policy == "flow":
            chosen = flow_policy(model, env, n_denoising_steps=3, noise_std=0.5)
        else:
            chosen = GaussianPolicy(env, chunk_size=4)
        ppo = PPO(chosen, config, imitation=imitation, seed=1)
        ppo.batched = env  # where these tests collect
        return ppo

    return make


@pytest.mark.parametrize("policy", ["flow", "gaussian"])
def test_the_ratio_is_one_before_the_first_update(make_ppo, policy):
    """Also where the executed action was clamped, and where the episode ended inside the chunk."""
    ppo = make_ppo(replace(CONFIG, n_steps=8, n_epochs=1, batch_size=64), policy=policy, max_steps=10)
    rollout = ppo.collect(ppo.batched, 8)
    assert (rollout.n_executed < 4).any() and (rollout.actions.abs() == 1).any()
    batch = samples(ppo, rollout)
    with torch.no_grad():
        log_prob = ppo.policy.evaluate_actions(batch.context, batch.chain, batch.reference).log_prob
    torch.testing.assert_close(log_prob - batch.log_prob, torch.zeros(64, 4), atol=5e-5, rtol=0)
    stats = ppo.update(batch)
    assert stats["clip_fraction"] == 0 and abs(stats["approx_kl"]) < 1e-6 and stats["ref_kl"] == 0
    assert abs(stats["policy_gradient_loss"]) < 1e-4  # the mean of normalised advantages


class Copies(TorchFunctionMode):
    """Notes what takes more than one number from the device to the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("numpy", "tolist", "cpu", "__array__") and args[0].numel() > 1:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_dreamed_rollout_and_its_update_copy_nothing_to_the_host(model, episodes):
    starts = StartStates.from_episodes(episodes, model.spec.tasks, model.config.n_context_frames)
    dream = DreamEnv(model, 8, starts, rewards=RewardManager({"success": {"weight": 1.0}}, (), "dream"))
    ppo = PPO(flow_policy(model, dream, n_denoising_steps=3), CONFIG, seed=1)
    with Copies() as copies:
        rollout = ppo.collect(dream, 6)
        ppo.update(samples(ppo, rollout))
    assert rollout.truncated.any() and copies.seen == []
    with Copies() as copies:
        torch.zeros(2).tolist()
        torch.zeros(2).numpy()
    assert copies.seen == ["tolist", "numpy"]


def test_the_clipped_objective_by_hand(make_ppo, monkeypatch):
    """Two chunks of two actions with ratios 1.1, 1.5 | .5, 1.0 and advantages 1, -1; clip .2."""
    ppo = make_ppo(replace(CONFIG, n_steps=2, batch_size=2), num_envs=1)
    batch = samples(ppo, ppo.collect(ppo.batched, 2))
    batch.log_prob, batch.advantage = torch.zeros(2, 2), torch.tensor([1.0, -1.0])
    ratios = torch.tensor([[1.1, 1.5], [0.5, 1.0]])
    monkeypatch.setattr(ppo.policy, "evaluate_actions", evaluation(ratios))
    _, stats = ppo._policy_loss(batch, 0.0)
    # A gain is clipped from above, a loss from below.
    assert stats["policy_gradient_loss"] == pytest.approx(-(1.1 + 1.2 - 0.8 - 1.0) / 4, abs=1e-6)
    assert stats["clip_fraction"] == 0.5
    assert stats["approx_kl"] == pytest.approx(float((ratios - 1 - ratios.log()).sum(1).mean()), abs=1e-6)
    batch.weight = torch.tensor([0.5, 0.0])
    _, stats = ppo._policy_loss(batch, 0.0)
    assert stats["policy_gradient_loss"] == pytest.approx(-0.5 * (1.1 + 1.2) / 4, abs=1e-6)


def test_a_rollout_by_hand(make_ppo):
    """Each step costs 1: a chunk of n executed steps pays -(1 + .9 + ... + .9 ** (n - 1))."""
    ppo = make_ppo(max_steps=6, rewards=RewardManager({"time_cost": {"weight": -1.0}}, (), "sim"), obs_noise=0.0)
    ppo.batched.terminate_on_success = False
    rollout = ppo.collect(ppo.batched, 3)
    assert rollout.n_executed.tolist() == [[4] * 8, [2] * 8, [4] * 8]
    assert rollout.truncated.tolist() == [[False] * 8, [True] * 8, [False] * 8] and not rollout.terminated.any()
    paid = torch.tensor([-(1 + 0.9 + 0.81 + 0.729), -(1 + 0.9), -(1 + 0.9 + 0.81 + 0.729)])
    torch.testing.assert_close(rollout.reward, paid[:, None].expand(3, 8))
    assert ppo.batched.elapsed.tolist() == [4] * 8  # 4 and 2 to the end, then 4 of the next episode
    # The state after a chunk is valued before any restart, the next decision is taken after it.
    torch.testing.assert_close(rollout.next_value[0], rollout.value[1])
    assert not torch.allclose(rollout.next_value[1], rollout.value[2])
    more = ppo.collect(ppo.batched, 1)
    assert more.n_executed[0].tolist() == [2] * 8  # going on, up to the end of the episode
    assert ppo.collect(ppo.batched, 1, fresh=True).n_executed[0].tolist() == [4] * 8


def test_a_value_penalty_is_subtracted_from_the_bootstrap_value(make_ppo):
    sure, penalised = make_ppo(), make_ppo()
    penalised.batched.value_penalty = torch.linspace(0, 0.7, 8)
    one, other = sure.collect(sure.batched, 3), penalised.collect(penalised.batched, 3)
    torch.testing.assert_close(other.next_value, one.next_value - torch.linspace(0, 0.7, 8))
    assert torch.equal(one.value, other.value)


def test_imitation_leaves_the_optimizer_of_ppo_alone(make_ppo):
    ppo = make_ppo()
    ppo.imitation = lambda generator: ppo.policy.denoiser.model.action.out.weight.square().sum()
    before = weights(ppo.policy.denoiser.model.action)
    ppo.imitate(2)
    assert not ppo.optimizer.state and not same(weights(ppo.policy.denoiser.model.action), before)


def test_the_learning_rate_warms_up(make_ppo):
    ppo = make_ppo()
    rates = []
    for _ in range(25):
        ppo._step(ppo.policy.denoiser.model.action.out.weight.square().sum(), ppo.optimizer)
        rates.append(ppo.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(CONFIG.learning_rate / 20) and rates[10] == pytest.approx(
        CONFIG.learning_rate * 0.525
    )
    assert rates[20] == rates[24] == pytest.approx(CONFIG.learning_rate)


def test_the_dream_is_bit_equal_before_and_after_an_update(make_ppo, windows):
    ppo = make_ppo()
    model = ppo.policy.denoiser.model
    batch = windows.sample(8, torch.Generator().manual_seed(0))
    noise = modes.video_noise(model, 8, torch.Generator().manual_seed(1))

    @torch.no_grad()
    def dream():
        frames = modes.dream(model, model.observe(batch.obs), batch.actions, noise, 2)
        return [frames, *model.read_frames(frames.flatten(0, 1), batch.task.repeat_interleave(4))]

    frames, actor, critic = dream(), weights(model.action), weights(model.value)
    ppo.update(samples(ppo, ppo.collect(ppo.batched, 4)))
    assert same(dream(), frames)
    assert not same(weights(model.action), actor) and not same(weights(model.value), critic)


def test_target_kl_stops_the_epochs(make_ppo):
    free = make_ppo(replace(CONFIG, n_epochs=20, learning_rate=1e-2))
    rollout = samples(free, free.collect(free.batched, 4))
    stats = free.update(rollout)
    assert stats["early_stop"] == 0 and stats["approx_kl"] > 0.05
    held = make_ppo(replace(CONFIG, n_epochs=20, learning_rate=1e-2, target_kl=0.01))
    stats = held.update(samples(held, held.collect(held.batched, 4)))
    assert stats["early_stop"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_reaches_no_weight(make_ppo, bad):
    ppo = make_ppo()
    rollout = ppo.collect(ppo.batched, 4)
    rollout.reward[1, 3] = bad
    before = weights(ppo.policy)
    with pytest.raises(UserError, match="a reward or value of the rollout is not finite"):
        ppo.update(samples(ppo, rollout))
    with pytest.raises(UserError, match="not finite"):
        ppo.fit_critic(rollout, n_steps=400)
    assert same(weights(ppo.policy), before)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_reaches_no_weight(make_ppo, bad):
    def imitation(generator):
        parameter = ppo.policy.actor_parameters()[0].sum()
        # The second is 0, with the derivative 0 * inf.
        return parameter * torch.nan if bad == "loss" else (0 * parameter).square().sqrt()

    ppo = make_ppo(replace(CONFIG, bc_coef=1.0), imitation=imitation)
    rollout = samples(ppo, ppo.collect(ppo.batched, 4))
    before = weights(ppo.policy)
    with pytest.raises(UserError, match=f"{bad}.*nothing of it was learned; lower ppo.learning_rate"):
        ppo.update(rollout)
    assert same(weights(ppo.policy), before)


def test_anchors_hold_the_policy(make_ppo, windows):
    """The distance to the start policy stays smaller with its coefficient, and imitation lowers its own loss."""
    free, held = make_ppo(replace(CONFIG, n_epochs=10)), make_ppo(replace(CONFIG, n_epochs=10, ref_kl_coef=10.0))
    distances = []
    for ppo in (free, held):
        ppo.policy.denoiser = copy.deepcopy(ppo.policy.denoiser)
        env, ppo = ppo.batched, PPO(ppo.policy, ppo.config, seed=1)
        rollout = samples(ppo, ppo.collect(env, 4))
        ppo.update(rollout)
        with torch.no_grad():
            found = ppo.policy.evaluate_actions(rollout.context, rollout.chain, rollout.reference)
            distances.append(float(found.ref_kl.mean()))
    assert distances[1] < 0.5 * distances[0]

    def imitation(generator):
        model, batch = ppo.policy.denoiser.model, windows.sample(32, generator)
        return policy_loss(model, model.observe(batch.obs), batch.actions, generator)

    ppo = make_ppo(replace(CONFIG, pg_coef=0.0, n_epochs=10), imitation=imitation)
    rollout = samples(ppo, ppo.collect(ppo.batched, 4))
    losses = [ppo.update(rollout)["bc_loss"] for _ in range(3)]
    assert losses[2] < losses[0]


def test_advantages_are_normalised(make_ppo):
    ppo = make_ppo(replace(CONFIG, n_steps=8, n_epochs=1, batch_size=64))
    batch = samples(ppo, ppo.collect(ppo.batched, 4))
    batch.advantage = 1000 * batch.advantage + 500
    assert abs(ppo.update(batch)["policy_gradient_loss"]) < 1e-3  # their mean is 0
    # By hand: a mean of (1 + 2 + 2 * 3.5) / 4 = 2.5, of squares from it (2.25 + 0.25 + 2 * 1) / 4 = 1.125
    batch = batch[torch.arange(3)]
    batch.advantage, batch.weight = torch.tensor([1.0, 2.0, 3.5]), torch.tensor([1.0, 1.0, 2.0])
    torch.testing.assert_close(_normalised(batch).advantage, torch.tensor([-1.5, -0.5, 1.0]) / 1.125**0.5)
    batch.advantage = torch.tensor([5.0, 5.0, 5.0])  # nothing to choose from: no division by 0
    assert _normalised(batch).advantage.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("policy", "n_steps"), [("flow", 100), ("gaussian", 400)])
def test_the_critic_learns_what_can_be_predicted(make_ppo, policy, n_steps):
    """The farther the goal, the smaller the return."""
    ppo = make_ppo(replace(CONFIG, critic_learning_rate=3e-3), num_envs=128, policy=policy)
    ppo.batched.terminate_on_success = False
    rollout = ppo.collect(ppo.batched, 2)
    newest = rollout.frames["state"][:, :, -1]
    rollout.reward = -(newest[..., 0] - newest[..., 2]).abs()
    actor = [p.detach().clone() for p in ppo.policy.actor_parameters()]
    assert ppo.fit_critic(rollout, n_steps) > 0.5
    assert same(ppo.policy.actor_parameters(), actor)


def test_a_chunk_without_weight_does_not_train_the_critic(make_ppo):
    """Such is a dreamed success that failed when it was dreamed again."""
    ppo = make_ppo(replace(CONFIG, critic_learning_rate=3e-3), num_envs=64, policy="gaussian")
    rollout = ppo.collect(ppo.batched, 2)
    rollout.reward[:] = 0.0
    rollout.reward[:, 32:], rollout.weight[:, 32:] = 100.0, 0.0
    ppo.fit_critic(rollout, n_steps=200)
    assert ppo.policy.values(samples(ppo, rollout).context).abs().max() < 2


def test_real_returns_stay_in_the_loss_of_the_critic(make_ppo):
    ppo = make_ppo(replace(CONFIG, n_epochs=10))
    dreamed = samples(ppo, ppo.collect(ppo.batched, 4))
    real = copy.copy(dreamed)
    real.returns = dreamed.returns + 100.0
    ppo.update(dreamed)
    before = ppo.policy.values(dreamed.context).mean()
    ppo.update(dreamed, real)
    assert ppo.policy.values(dreamed.context).mean() > before + 0.5


def test_the_critic_of_a_single_environment_can_be_fitted(make_ppo):
    ppo = make_ppo(num_envs=1, policy="gaussian")
    for n_chunks in (10, 1):
        assert np.isfinite(ppo.fit_critic(ppo.collect(ppo.batched, n_chunks), n_steps=5))


def test_a_plain_policy_learns_to_reach_the_goal(make_ppo):
    config = replace(CONFIG, n_steps=8, batch_size=128, n_epochs=4, learning_rate=3e-3, critic_learning_rate=3e-3)
    rewards = RewardManager({"task_reward": {"weight": 1.0}, "success": {"weight": 1.0}}, ("task_reward",), "sim")
    ppo = make_ppo(config, num_envs=64, policy="gaussian", rewards=rewards)

    @torch.no_grad()
    def success():
        env = copy.copy(ppo.batched)
        obs, solved = env.reset(seed=99), torch.zeros(64, dtype=torch.bool)
        for _ in range(3):
            context = ppo.policy.encode(obs)
            step = env.step_chunk(ppo.policy.decide(context, env.episode_seed, env.elapsed))
            solved |= step.is_success
            obs = step.obs
        return float(solved.float().mean())

    before = success()
    for _ in range(25):
        ppo.update(samples(ppo, ppo.collect(ppo.batched, 8, fresh=True)))
    assert before < 0.4 and success() > before + 0.4


def test_the_same_seed_learns_the_same(make_ppo):
    learned = []
    for _ in range(2):
        ppo = make_ppo(policy="gaussian")
        for _ in range(2):
            ppo.update(samples(ppo, ppo.collect(ppo.batched, 4)))
        learned.append(weights(ppo.policy))
    assert same(*learned)


def test_a_rollout_ends_where_its_observer_says_so(make_ppo):
    ppo, seen = make_ppo(), []

    def on_step(actions, step):
        seen.append((actions, step))
        return len(seen) < 3

    rollout = ppo.collect(ppo.batched, 8, on_step=on_step)
    assert len(seen) == 3 and rollout.value.shape == (3, 8)
    assert torch.equal(torch.stack([actions for actions, _ in seen]), rollout.actions)
    assert torch.equal(seen[1][1].executed.sum(1), rollout.n_executed[1])


def test_schedules_change_the_rate_and_the_clip_range(make_ppo):
    """From 1e-3 to 2e-4, and from .2 to .1: at a quarter of the training 8e-4 and .175."""
    rate = {"func": "linear", "params": {"start": 1e-3, "end": 2e-4}}
    clip = {"func": "linear", "params": {"start": 0.2, "end": 0.1}}
    ppo = make_ppo(replace(CONFIG, n_epochs=1, learning_rate=rate, clip_range=clip))
    batch = samples(ppo, ppo.collect(ppo.batched, 4))
    assert ppo.optimizer.param_groups[0]["peak"] == 1e-3
    ppo.progress_remaining = 0.75
    stats = ppo.update(batch)
    assert stats["learning_rate"] == ppo.optimizer.param_groups[0]["peak"] == pytest.approx(8e-4)
    assert stats["clip_range"] == pytest.approx(0.175)
    assert ppo.optimizer.param_groups[1]["peak"] == CONFIG.critic_learning_rate
    plain = make_ppo().update(batch)
    assert not {"learning_rate", "clip_range"} & plain.keys()


def test_the_clip_range_of_now_is_the_one_that_clips(make_ppo, monkeypatch):
    """Ratio 1.15, advantage 1: not clipped at .2, clipped to 1.1 where half of the training is done."""
    clip = {"func": "linear", "params": {"start": 0.2, "end": 0.0}}
    ppo = make_ppo(replace(CONFIG, n_steps=1, batch_size=1, clip_range=clip), num_envs=1)
    batch = samples(ppo, ppo.collect(ppo.batched, 1))
    batch.log_prob, batch.advantage = torch.zeros(1, 4), torch.tensor([1.0])
    monkeypatch.setattr(ppo.policy, "evaluate_actions", evaluation(torch.full((1, 4), 1.15)))
    assert ppo._policy_loss(batch, 0.0)[1]["policy_gradient_loss"] == pytest.approx(-1.15, abs=1e-6)
    ppo.progress_remaining = 0.5
    assert ppo._policy_loss(batch, 0.0)[1]["policy_gradient_loss"] == pytest.approx(-1.1, abs=1e-6)
