"""Policies: the likelihood of a chain, exploring and deciding, the queue of `predict`."""

import copy

import numpy as np
import pytest
import torch

from rl.policies.api import load_policy_state, names_of_today, policy_state
from rl.policies.chain import load_weights
from rl.policies.gaussian import GaussianPolicy
from rl.policies.wam import flow_policy
from world_model.flow import seeded_noise
from world_model.tree import rows
from world_model.wam import modes

N, STEPS, STD = 6, 4, 0.1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def env(make_point):
    env = make_point(N, seed=1)
    env.reset()
    return env


@pytest.fixture
def policy(model, env):
    return flow_policy(model, env, n_denoising_steps=STEPS, noise_std=STD, noise_correlation=0.0)


@pytest.fixture(params=["flow", "gaussian"])
def either(request, model, env):
    torch.manual_seed(0)
    return flow_policy(model, env) if request.param == "flow" else GaussianPolicy(env, chunk_size=4)


def log_prob_of(policy, context, chain):
    """The likelihood of stored chains under the current weights."""
    return policy.evaluate_actions(context, chain, policy.reference(context, chain)).log_prob


def reference_log_prob(policy, obs, chain):
    """In double precision and step by step: x' ~ N(x + (estimate - x) / (steps left), std ** 2)."""
    model = copy.deepcopy(policy.denoiser.model).double()
    chain = chain.double().view(len(chain), STEPS + 1, 2, 4)  # two tokens, with two actions each
    context = model.encode(obs["state"].double(), obs["task"])
    total = torch.zeros(len(chain), dtype=torch.float64)
    for i in range(STEPS):
        t = torch.full((len(chain),), 1 - i / STEPS, dtype=torch.float64)
        estimate = model.predict_action(context, chain[:, i], t)
        mean = chain[:, i] + (estimate - chain[:, i]) / (STEPS - i)
        total += torch.distributions.Normal(mean, STD).log_prob(chain[:, i + 1]).sum((1, 2))
    return total


@torch.no_grad()
def test_likelihood_of_a_chain_equals_a_double_reference(policy, env):
    obs = env.observe()
    context = policy.encode(obs)
    decision = policy.sample(context, seeded())
    chain, log_prob = decision.chain, decision.log_prob
    assert chain.shape == (N, STEPS + 1, 4, 2) and log_prob.dtype == torch.float32
    expected = reference_log_prob(policy, obs, chain)
    torch.testing.assert_close(log_prob.sum(1).double(), expected, atol=2e-3, rtol=1e-5)
    again = log_prob_of(policy, context, chain)
    torch.testing.assert_close(again, log_prob, atol=2e-4, rtol=1e-5)


@torch.no_grad()
def test_the_chain_is_never_clamped_and_the_action_is(policy, env):
    policy.noise_std = 3.0
    context = policy.encode(env.observe())
    decision = policy.sample(context, seeded())
    actions, chain, log_prob = decision.actions, decision.chain, decision.log_prob
    assert (actions.abs() == 1).any() and actions.abs().max() == 1
    decoded = policy.denoiser.to_actions(context, chain[:, -1])
    assert decoded.abs().max() > 1.5 and torch.equal(decoded.clamp(-1, 1), actions)
    again = log_prob_of(policy, context, chain)
    torch.testing.assert_close(again, log_prob, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_likelihood_of_correlated_noise_equals_a_double_reference(model, env):
    """Each step of each action dimension is a Gaussian over the chunk with covariance std ** 2 * .8 ** lag."""
    policy = flow_policy(model, env, n_denoising_steps=STEPS, noise_std=STD, noise_correlation=0.8)
    context = policy.encode(env.observe())
    decision = policy.sample(context, seeded())
    chain, log_prob = decision.chain, decision.log_prob
    means = policy.reference(context, chain)
    lag = (torch.arange(4)[:, None] - torch.arange(4)).abs().double()
    # Chains hold actions (n, K, chunk_size, action_dim) in order.
    x, mean = (chunks.double().transpose(2, 3) for chunks in (chain[:, 1:], means))
    normal = torch.distributions.MultivariateNormal(mean, STD**2 * 0.8**lag)
    torch.testing.assert_close(log_prob.sum(1).double(), normal.log_prob(x).sum((1, 2)), atol=5e-3, rtol=1e-5)
    # The likelihood of the third action is what the first three have beyond the first two.
    marginals = [
        torch.distributions.MultivariateNormal(mean[..., :n], STD**2 * 0.8 ** lag[:n, :n]).log_prob(x[..., :n])
        for n in (2, 3)
    ]
    third = (marginals[1] - marginals[0]).sum((1, 2))
    torch.testing.assert_close(log_prob[:, 2].double(), third, atol=5e-3, rtol=1e-5)
    shifted = torch.distributions.MultivariateNormal(mean + 0.05, STD**2 * 0.8**lag)
    kl = torch.distributions.kl_divergence(normal, shifted).sum((1, 2))
    found = policy.evaluate_actions(context, chain, means + 0.05).ref_kl
    torch.testing.assert_close(found.double(), kl, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_actions_that_are_never_executed_have_no_part_in_the_likelihood(model, env):
    whole, part = (flow_policy(model, env, STEPS, STD, n_action_steps=n) for n in (4, 3))
    context = part.encode(env.observe())
    decision = part.sample(context, seeded())
    chain, log_prob = decision.chain, decision.log_prob
    assert decision.actions.shape == (N, 3, 2) and log_prob.shape == (N, 3)
    torch.testing.assert_close(log_prob, log_prob_of(whole, context, chain)[:, :3], atol=1e-4, rtol=1e-5)
    step = part.denoiser.step

    def shifted(*given):
        mean, std = step(*given)
        return mean + torch.tensor([0.0, 0.0, 0.0, 1.0])[:, None], std

    part.denoiser.step = shifted
    torch.testing.assert_close(log_prob, log_prob_of(part, context, chain), atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_likelihood_of_a_gaussian_by_hand(env):
    policy = GaussianPolicy(env, chunk_size=2, log_std=-1.0)
    context = policy.encode(env.observe())
    decision = policy.sample(context, seeded())
    assert decision.chain.shape == (N, 2, 2, 2) and (decision.chain[:, 0] == 0).all()
    mean = policy.denoiser.actor(context).view(N, 2, 2).double()
    # Of the two actions of the chunk.
    each = torch.distributions.Normal(mean, float(np.exp(-1.0))).log_prob(decision.chain[:, 1].double()).sum(2)
    torch.testing.assert_close(decision.log_prob.double(), each, atol=1e-5, rtol=0)
    assert decision.actions.shape == (N, 2, 2)
    assert torch.equal(decision.actions, decision.chain[:, 1].clamp(-1, 1))


def test_exploring_repeats_with_the_generator_and_deciding_with_seed_and_counter(either, env):
    context = either.encode(env.observe())
    one, two = (either.sample(context, seeded(3)).actions for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, either.sample(context, seeded(4)).actions)
    seed, counter = torch.arange(N), torch.zeros(N, dtype=torch.long)
    decided = either.decide(context, seed, counter)
    assert torch.equal(decided, either.decide(context, seed, counter))
    assert decided.shape == (N, 4, 2) and decided.abs().max() <= 1
    # A row decides alike in any company.
    order = torch.tensor([4, 1])
    alone = either.decide(rows(context, order), seed[order], counter[order])
    torch.testing.assert_close(alone, decided[order], atol=1e-5, rtol=0)


def test_gradients_reach_the_action_side_alone(policy, env):
    context = policy.encode(env.observe())
    chain = policy.sample(context, seeded()).chain
    loss = log_prob_of(policy, context, chain).sum()
    (loss + policy.values(context).sum()).backward()
    touched = {name.split(".")[2] for name, p in policy.named_parameters() if p.grad is not None}  # denoiser.model.…
    assert touched == {"action", "value"}
    assert {id(p) for p in policy.actor_parameters()} == {id(p) for p in policy.denoiser.model.action_parameters()}


@torch.no_grad()
def test_distance_to_the_start_policy(policy, env):
    context = policy.encode(env.observe())
    chain = policy.sample(context, seeded()).chain
    reference = policy.reference(context, chain)
    assert (policy.evaluate_actions(context, chain, reference).ref_kl == 0).all()
    # Means that are off by d in all 4 * 4 * 2 = 32 numbers: 32 d^2 / (2 std^2).
    kl = policy.evaluate_actions(context, chain, reference + 0.05).ref_kl
    torch.testing.assert_close(kl, torch.full((N,), 32 * 0.05**2 / (2 * STD**2)), rtol=1e-3, atol=0)
    state = policy_state(policy)
    for parameter in policy.actor_parameters():
        parameter.add_(0.1)
    assert (policy.evaluate_actions(context, chain, reference).ref_kl > 0).all()
    assert torch.equal(policy.reference(context, chain), reference)
    load_policy_state(policy, state)
    assert (policy.evaluate_actions(context, chain, reference).ref_kl == 0).all()


@torch.no_grad()
def test_a_policy_may_execute_only_the_beginning_of_its_chunk(model, env):
    policy = flow_policy(model, env, n_denoising_steps=2, n_action_steps=3)
    context = policy.encode(env.observe())
    decision = policy.sample(context, seeded())
    assert decision.actions.shape == (N, 3, 2) and decision.chain.shape == (N, 3, 4, 2)
    assert policy.decide(context, torch.arange(N), torch.arange(N)).shape == (N, 3, 2)


def test_policy_mode_and_decide_are_one(policy, env):
    context, model = policy.encode(env.observe()), policy.denoiser.model
    seed, counter = torch.arange(N), torch.zeros(N, dtype=torch.long)
    noise = seeded_noise(seed, counter, (model.action_codec.n_tokens, model.action_codec.code_dim))
    assert torch.equal(policy.decide(context, seed, counter), modes.policy(model, context, noise, STEPS))


@torch.no_grad()
def test_weights_of_a_gaussian_policy_of_an_older_version_load(env):
    """It had its networks in itself, no copy for a reference, and scales that follow from the spec."""
    torch.manual_seed(1)
    policy, other = (GaussianPolicy(env, chunk_size=4) for _ in range(2))
    own = {name: value for name, value in policy.state_dict().items() if name.startswith("denoiser.")}
    older = {name.removeprefix("denoiser."): value for name, value in own.items()}
    older |= {"middle": torch.zeros(8), "reach": torch.ones(8)}
    load_weights(other, older)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in own.items())
    assert all(torch.equal(a, b) for a, b in zip(other.reference_weights, policy.actor_parameters(), strict=True))
    for wrong, named in (({**older, "extra": torch.zeros(1)}, "denoiser.extra"), (own, "color")):
        with pytest.raises(RuntimeError, match=f"^weights missing or unexpected: .*{named}"):
            load_weights(other, wrong)  # a state of this version must be complete
    del older["log_std"]
    with pytest.raises(RuntimeError, match=r"^weights missing or unexpected: denoiser\.log_std$"):
        load_weights(other, older)


def test_names_of_an_older_flow_policy(policy):
    """Its reference was a copy of the action decoder, and has the same order."""
    action = dict(policy.denoiser.model.action.named_parameters())
    older = {"color": policy.color, "whiten": policy.whiten}
    older |= {f"model.{name}": value for name, value in policy.denoiser.model.state_dict().items()}
    older |= {f"reference.{name}": value for name, value in action.items()}
    named = names_of_today(older)
    assert named.keys() == policy.state_dict().keys() and names_of_today(named) == named
    assert all(named[f"reference_weights.{i}"] is value for i, value in enumerate(action.values()))
