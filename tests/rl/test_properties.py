"""What must hold for any numbers: configs, normaliser, likelihood of a chain, advantages, buffer."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.policies.wam import flow_policy
from rl.ppo.buffer import Rollout, Samples, chunk_gae
from world_model.api import Context
from world_model.tree import rows
from world_model.wam.normalizer import Normalizer

SEEDS = st.integers(0, 2**31 - 1)
FLOATS = st.floats(-1e6, 1e6, allow_nan=False)
OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 10**9),
        "total_timesteps": st.integers(1, 10**9),
        "ppo.gamma": st.floats(0, 1),
        "ppo.learning_rate": st.floats(1e-12, 1e3),
        "ppo.target_kl": st.none() | st.floats(1e-6, 1e6),
        "env.tasks": st.lists(st.sampled_from(["push", "hammer"]), unique=True),
        "env.terminate_on_success": st.booleans(),
        "env.kind": st.sampled_from(["sim", "dream", "mix"]),
        "rewards.x.weight": FLOATS,
    },
)


def as_words(values: dict) -> list[str]:
    """What one would type: `key=value` in YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=OVERRIDES, rng=st.randoms())
def test_a_config_is_what_was_written_in_any_order_and_from_its_own_yaml(values, rng, tmp_path_factory):
    words = ["name=x", *as_words(values)]
    config = compose(None, words, TrainConfig)
    rng.shuffle(words)
    assert compose(None, words, TrainConfig) == config
    path = tmp_path_factory.getbasetemp() / "properties.yaml"
    path.write_text(to_yaml(config))
    assert compose(path, [], TrainConfig) == config
    for key, value in values.items():
        found = config
        for part in key.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        assert found == (tuple(value) if isinstance(value, list) else value)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 40), st.floats(1e-3, 1e3), FLOATS)
def test_a_normaliser_goes_there_and_back_and_never_blows_up(seed, n, spread, middle):
    g = torch.Generator().manual_seed(seed)
    values = middle + spread * torch.randn(n, 3, generator=g, dtype=torch.float64)
    values[:, 2] = middle  # a feature that never moves
    normalizer = Normalizer((3,), floor=1e-2, name="x").double()
    normalizer.fit(values)
    normalised = normalizer(values)
    assert bool((normalizer.std >= 1e-2).all()) and float(normalised[:, 2].abs().max()) < 1e-3
    torch.testing.assert_close(normalizer.invert(normalised), values, rtol=1e-9, atol=1e-6)
    shuffled = Normalizer((3,), floor=1e-2, name="x").double()
    shuffled.fit(values[torch.randperm(n, generator=g)])
    torch.testing.assert_close(shuffled.std, normalizer.std, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=SEEDS, n_steps=st.integers(1, 4), std=st.floats(0.05, 1.0), correlation=st.floats(0.0, 0.9))
def test_likelihood_of_a_chain(seed, n_steps, std, correlation, model, make_point):
    """A row does not know its batch, and no chain is likelier than the one that follows its own means."""
    env = make_point(4, seed=seed)
    policy = flow_policy(model, env, n_denoising_steps=n_steps, noise_std=std, noise_correlation=correlation)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        context = policy.encode(env.reset())
        decision = policy.sample(context, g)
        chain, means = decision.chain, policy.reference(context, decision.chain)
        found = policy.evaluate_actions(context, chain, means)
        torch.testing.assert_close(found.log_prob, decision.log_prob, atol=1e-3, rtol=1e-4)
        order = torch.tensor([2, 0, 3, 1])
        shuffled = policy.evaluate_actions(rows(context, order), chain[order], means[order])
        torch.testing.assert_close(shuffled.log_prob, found.log_prob[order], atol=1e-4, rtol=1e-5)
        followed = chain.clone()
        for i in range(n_steps):
            followed[:, i + 1] = policy.reference(context, followed)[:, i]
        likeliest = policy.evaluate_actions(context, followed, means).log_prob
        assert bool((likeliest.sum(1) >= found.log_prob.sum(1) - 1e-3).all())
        assert bool((found.ref_kl == 0).all())
        assert bool((policy.evaluate_actions(context, chain, means - 0.1).ref_kl > 0).all())


def random_rollout(seed: int, n_steps: int, n_envs: int) -> Rollout:
    """A rollout of noise in which every field of a row tells its step and environment."""
    g = torch.Generator().manual_seed(seed)
    shape = n_steps, n_envs
    number = torch.arange(n_steps * n_envs).view(shape).float()
    ended, stopped = torch.rand(2, *shape, generator=g) < 0.2
    wide = number[..., None, None].expand(*shape, 2, 3)
    return Rollout(
        context=[Context(number[i, :, None, None], [], number[i, :, None]) for i in range(n_steps)],
        chain=wide,
        log_prob=wide[..., 0],
        value=torch.randn(shape, generator=g),
        reward=torch.randn(shape, generator=g),
        n_executed=torch.randint(1, 5, shape, generator=g),
        terminated=ended,
        truncated=stopped & ~ended,
        next_value=torch.randn(shape, generator=g),
        reference=wide,
        success=ended,
        frames={"state": wide},
        actions=wide,
        task=torch.zeros(shape),
        expected_error=torch.zeros(shape),
        weight=number,
    )


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(2, 7), st.integers(1, 5), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_what_comes_after_an_end_changes_no_advantage_before_it(seed, n_steps, n_envs, gamma, gae_lambda):
    rollout = random_rollout(seed, n_steps, n_envs)
    later = random_rollout(seed + 1, n_steps, n_envs)
    advantage, returns = rollout.advantages(gamma, gae_lambda)
    torch.testing.assert_close(returns, advantage + rollout.value)
    for cut in range(1, n_steps):
        ends = replace(rollout, truncated=rollout.truncated.clone())
        ends.truncated[cut - 1] = ~ends.terminated[cut - 1]
        first, _ = ends.advantages(gamma, gae_lambda)
        for name in ("reward", "value", "next_value"):
            value = getattr(ends, name).clone()
            value[cut:] = getattr(later, name)[cut:]
            setattr(ends, name, value)
        second, _ = ends.advantages(gamma, gae_lambda)
        assert torch.equal(first[:cut], second[:cut])


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.floats(-3, 3))
def test_advantages_are_linear_in_what_is_paid(seed, scale):
    rollout = random_rollout(seed, 5, 3)
    given_back = []
    for factor in (1.0, scale):
        parts = (factor * x.double() for x in (rollout.reward, rollout.value, rollout.next_value))
        done = rollout.terminated | rollout.truncated
        given_back.append(chunk_gae(*parts, rollout.n_executed, rollout.terminated, done, 0.97, 0.9)[0])
    torch.testing.assert_close(scale * given_back[0], given_back[1], rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 6), st.integers(1, 5))
def test_a_row_of_samples_is_one_chunk_of_one_environment(seed, n_steps, n_envs):
    samples = Samples.from_rollout(random_rollout(seed, n_steps, n_envs), 0.99, 0.95)
    n = n_steps * n_envs
    assert len(samples) == n
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rows = samples[order]
    for value in (rows.weight, rows.chain[:, 0, 0], rows.log_prob[:, 0], rows.context.features[:, 0]):
        assert value.tolist() == order.tolist()
    assert rows.returns.tolist() == pytest.approx((rows.advantage + rows.value).tolist(), abs=1e-5)
