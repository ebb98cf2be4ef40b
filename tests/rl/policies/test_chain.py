"""A policy made of any denoiser, by hand: likelihood, reference, critic, noise, and which parts of a chain count."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewards.errors import UserError
from rl.policies.api import Decision, Denoiser, Evaluation
from rl.policies.chain import STEP_SEED, ChainPolicy
from world_model.env import Obs
from world_model.flow import seeded_noise
from world_model.spec import STATE, Feature, Spec
from world_model.tree import rows

SPEC = Spec({STATE: Feature((4,))}, (-1.0, -1.0), (1.0, 1.0), ("reach",), control_hz=10.0)
N, STD = 5, 0.5


class Linear(Denoiser):
    """Each step halves the chunk and adds a linear function of the state; rows and columns do not mix."""

    def __init__(self, std: float | None = None, padding: int = 0, has_critic: bool = False, **attributes: Any) -> None:
        super().__init__()
        self.reads, self.horizon, self.chain_dim, self.n_features = SPEC.features, 4, 2 + padding, 4
        for name, value in attributes.items():
            setattr(self, name, value)
        self.frozen, self.net = nn.Linear(4, 4), nn.Linear(4, 4 * self.chain_dim)
        self.log_std = None if std is None else nn.Parameter(torch.full((4, self.chain_dim), math.log(std)))
        if has_critic:
            self.critic = nn.Linear(4, 1)

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Tensor:
        return self.frozen(obs[STATE][:, -1])

    def features(self, encoded: Tensor) -> Tensor:
        return encoded

    def step(self, prepared: Tensor, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        return x / 2 + self.net(prepared).view_as(x), None if self.log_std is None else self.log_std.exp()

    def to_actions(self, encoded: Tensor, x: Tensor) -> Tensor:
        return 3 * x[:, self.first :, :2]

    def imitation_loss(self, encoded: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        return self.net(encoded).square().mean()

    def action_parameters(self) -> list[nn.Parameter]:
        return [*self.net.parameters(), *([] if self.log_std is None else [self.log_std])]


def make(
    n_denoising_steps: int = 2,
    noise_std: float = STD,
    n_action_steps: int | None = None,
    noise_correlation: float = 0.0,
    **options: Any,
) -> ChainPolicy:
    torch.manual_seed(0)
    return ChainPolicy(Linear(**options), SPEC, n_denoising_steps, noise_std, n_action_steps, noise_correlation)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observed() -> Obs:
    return {STATE: torch.randn(N, 1, 4, generator=seeded(9)), "task": torch.zeros(N, dtype=torch.long)}


def drawn(policy: ChainPolicy) -> tuple[Tensor, Decision]:
    """An encoded observation and a decision there."""
    encoded = policy.encode(observed())
    return encoded, policy.sample(encoded, seeded())


def evaluated(policy: ChainPolicy, encoded: Tensor, chain: Tensor) -> Evaluation:
    return policy.evaluate_actions(encoded, chain, policy.reference(encoded, chain))


def double_means(policy: ChainPolicy, encoded: Tensor, chain: Tensor) -> Tensor:
    """The means of the steps, worked out in double precision: (n, K, 4, chain_dim)."""
    net = policy.denoiser.net
    moved = encoded.double() @ net.weight.double().T + net.bias.double()
    return chain[:, :-1].double() / 2 + moved.view(N, 1, *chain.shape[2:])


# --- likelihood ---


@torch.no_grad()
@pytest.mark.parametrize("std", [None, 0.7])
def test_likelihood_of_each_action_equals_one_in_double_precision(std: float | None) -> None:
    policy = make(std=std)
    encoded, decision = drawn(policy)
    assert decision.chain.shape == (N, 3, 4, 2) and decision.log_prob.dtype == torch.float32
    mean = double_means(policy, encoded, decision.chain)
    normal = torch.distributions.Normal(mean, std or STD)
    expected = normal.log_prob(decision.chain[:, 1:].double()).sum((1, 3))  # over the steps and the dimensions
    torch.testing.assert_close(decision.log_prob.double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_correlated_noise_is_that_of_a_multivariate_normal() -> None:
    policy = make(noise_correlation=0.8)
    encoded, decision = drawn(policy)
    lag = (torch.arange(4)[:, None] - torch.arange(4)).abs().double()
    x, mean = decision.chain[:, 1:].double().transpose(2, 3), double_means(policy, encoded, decision.chain)
    for n in range(1, 5):  # the first n actions together
        normal = torch.distributions.MultivariateNormal(mean.transpose(2, 3)[..., :n], (STD**2 * 0.8**lag)[:n, :n])
        expected = normal.log_prob(x[..., :n]).sum((1, 2))
        torch.testing.assert_close(decision.log_prob[:, :n].sum(1).double(), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_likelihood_in_numbers() -> None:
    """With weights of 0 a mean is half of the chunk before: 0, then .25. The chain has .5 and .75: one deviation off.

    Each of the 2 * 2 numbers of an action gives -1/2 - log(.5) - log(2 pi) / 2 = -.725791.
    """
    policy = make()
    for parameter in policy.denoiser.action_parameters():
        parameter.zero_()
    chain = torch.tensor([0.0, 0.5, 0.75])[:, None, None].expand(N, 3, 4, 2)
    found = evaluated(policy, policy.encode(observed()), chain)
    torch.testing.assert_close(found.log_prob, torch.full((N, 4), 4 * -0.725791), atol=1e-5, rtol=0)
    assert found.entropy == 0


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"noise_correlation": 0.8}, {"std": 0.7}, {"padding": 3}, {"first": 1}])
def test_the_ratio_is_one_before_an_update(options: dict[str, Any]) -> None:
    policy = make(**options)
    encoded, decision = drawn(policy)
    found = evaluated(policy, encoded, decision.chain)
    assert torch.equal(found.log_prob, decision.log_prob) and (found.ref_kl == 0).all()
    some = torch.tensor([3, 1])
    found = evaluated(policy, rows(encoded, some), decision.chain[some])
    torch.testing.assert_close(found.log_prob, decision.log_prob[some], atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("std", [None, 0.7])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_padding_the_past_and_what_is_not_executed_have_no_part(std: float | None, correlation: float) -> None:
    """Rows 1 and 2 of 4 are executed, columns 2 to 4 are padding."""
    policy = make(std=std, noise_correlation=correlation, padding=3, first=1, n_action_steps=2)
    encoded, decision = drawn(policy)
    assert policy.chunk_size == 3 and decision.chain.shape == (N, 3, 4, 5)
    assert decision.actions.shape == (N, 2, 2) and decision.log_prob.shape == (N, 2)
    assert torch.equal(decision.actions, (3 * decision.chain[:, -1, 1:3, :2]).clamp(-1, 1))
    reference, changed = policy.reference(encoded, decision.chain), decision.chain.clone()
    changed[:, :, 0], changed[:, :, 3], changed[..., 2:] = 7.0, 7.0, 7.0
    found = evaluated(policy, encoded, changed)
    torch.testing.assert_close(found.log_prob, decision.log_prob, atol=1e-5, rtol=0)
    changed[:, -1, 1, 0] += 0.1
    assert not torch.allclose(evaluated(policy, encoded, changed).log_prob, decision.log_prob, atol=1e-3)
    # Padding has no part in the distance to the reference either.
    reference[..., 2:] += 1.0
    assert (policy.evaluate_actions(encoded, decision.chain, reference).ref_kl == 0).all()


@torch.no_grad()
def test_noise_of_the_past_does_not_reach_the_actions() -> None:
    policy = make(noise_correlation=0.8, first=1, n_denoising_steps=1, noise_std=1.0)
    encoded = torch.zeros(20_000, 4)
    decision = policy.sample(encoded, seeded())
    noise = (decision.chain[:, 1] - policy.reference(encoded, decision.chain)[:, 0])[..., 0]
    expected = torch.tensor([[1, 0, 0, 0], [0, 1, 0.8, 0.64], [0, 0.8, 1, 0.8], [0, 0.64, 0.8, 1]])
    torch.testing.assert_close(noise.T.corrcoef(), expected, atol=0.03, rtol=0)


@torch.no_grad()
def test_own_deviations_have_a_floor() -> None:
    """A deviation of 1e-4 would make likelihoods explode; it is raised to `noise_std`."""
    policy = make(std=1e-4)
    encoded, decision = drawn(policy)
    mean = double_means(policy, encoded, decision.chain)
    expected = torch.distributions.Normal(mean, STD).log_prob(decision.chain[:, 1:].double()).sum((1, 3))
    torch.testing.assert_close(decision.log_prob.double(), expected, atol=1e-5, rtol=0)
    assert (decision.chain[:, 1:] - mean).std() > 0.3
    # 2 steps of 4 * 2 numbers.
    assert float(evaluated(policy, encoded, decision.chain).entropy) == pytest.approx(16 * math.log(STD))


# --- reference ---


@torch.no_grad()
@pytest.mark.parametrize("std", [None, 0.7])
def test_distance_to_the_reference_by_hand(std: float | None) -> None:
    """A bias that is .1 higher in all 2 * 4 * 2 numbers: 16 * .1 ** 2 / (2 std ** 2)."""
    policy = make(std=std)
    encoded, decision = drawn(policy)
    reference = policy.reference(encoded, decision.chain)
    policy.denoiser.net.bias.add_(0.1)
    found = policy.evaluate_actions(encoded, decision.chain, reference).ref_kl
    torch.testing.assert_close(found, torch.full((N,), 0.08 / (std or STD) ** 2), atol=1e-5, rtol=0)


@torch.no_grad()
def test_distance_under_correlated_noise_is_that_of_the_distributions() -> None:
    policy = make(noise_correlation=0.8)
    encoded, decision = drawn(policy)
    reference, bias = policy.reference(encoded, decision.chain), torch.randn(4, 2, generator=seeded(1))
    policy.denoiser.net.bias.add_(bias.flatten())
    lag = (torch.arange(4)[:, None] - torch.arange(4)).abs().double()
    one, other = (
        torch.distributions.MultivariateNormal(mean, STD**2 * 0.8**lag) for mean in (bias.double().T, torch.zeros(2, 4))
    )
    expected = 2 * torch.distributions.kl_divergence(one, other).sum()  # in each of 2 steps
    found = policy.evaluate_actions(encoded, decision.chain, reference).ref_kl
    torch.testing.assert_close(found.double(), expected.expand(N), atol=0, rtol=1e-4)


@torch.no_grad()
def test_the_reference_stays_until_it_is_set_again() -> None:
    policy = make(std=0.7)
    encoded, decision = drawn(policy)
    first = policy.reference(encoded, decision.chain)
    for parameter in policy.actor_parameters():
        parameter.add_(0.1)
    moved = [parameter.clone() for parameter in policy.actor_parameters()]
    assert torch.equal(policy.reference(encoded, decision.chain), first)
    # The weights that act are in place again.
    assert all(torch.equal(a, b) for a, b in zip(policy.actor_parameters(), moved, strict=True))
    assert (policy.evaluate_actions(encoded, decision.chain, first).ref_kl > 0).all()
    policy.set_reference()
    assert not torch.equal(policy.reference(encoded, decision.chain), first)
    assert (evaluated(policy, encoded, decision.chain).ref_kl == 0).all()


# --- what is trained ---


@pytest.mark.parametrize("has_critic", [False, True])
@pytest.mark.parametrize("std", [None, 0.7])
def test_gradients_reach_action_parameters_and_critic_alone(has_critic: bool, std: float | None) -> None:
    policy = make(std=std, has_critic=has_critic)
    encoded, decision = drawn(policy)
    assert not encoded.requires_grad and not policy.reference(encoded, decision.chain).requires_grad
    found = evaluated(policy, encoded, decision.chain)
    (found.log_prob.sum() + policy.values(encoded).sum()).backward()
    touched = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    critic = "denoiser.critic." if has_critic else "own_critic."
    actor = {"denoiser.net.weight", "denoiser.net.bias"} | ({"denoiser.log_std"} if std else set())
    assert {name for name in touched if not name.startswith(critic)} == actor
    assert touched == {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    for parameters, names in ((policy.actor_parameters(), actor), (policy.critic_parameters(), touched - actor)):
        assert {id(p) for p in parameters} == {id(p) for name, p in policy.named_parameters() if name in names}


def test_a_critic_is_made_where_the_denoiser_has_none() -> None:
    policy, other = make(), make(has_critic=True)
    assert policy.own_critic is not None and other.own_critic is None
    encoded = policy.encode(observed())
    assert policy.values(encoded).shape == (N,)  # a column (n, 1) of a critic becomes (n,)
    expected = encoded @ other.denoiser.critic.weight[0] + other.denoiser.critic.bias
    torch.testing.assert_close(other.values(encoded), expected)


# --- acting ---


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"std": 0.7}, {"std": 0.7, "is_stochastic": True}, {"starts_at_zero": True}])
def test_deciding_repeats_row_by_row(options: dict[str, Any]) -> None:
    policy = make(n_action_steps=3, **options)
    encoded, seed, counter = policy.encode(observed()), torch.arange(N), torch.arange(N) * 3
    decided = policy.decide(encoded, seed, counter)
    assert decided.shape == (N, 3, 2) and torch.equal(decided, policy.decide(encoded, seed, counter))
    some = torch.tensor([4, 0])
    alone = policy.decide(rows(encoded, some), seed[some], counter[some])
    torch.testing.assert_close(alone, decided[some], atol=1e-6, rtol=0)
    for other in (policy.decide(encoded, seed + 1, counter), policy.decide(encoded, seed, counter + 1)):
        assert torch.equal(other, decided) == bool(options.get("starts_at_zero"))


@torch.no_grad()
def test_what_is_decided_in_numbers() -> None:
    """Without a network two steps leave a quarter of the starting noise, of which actions are three times as much."""
    seed, counter = torch.arange(N), torch.zeros(N, dtype=torch.long)
    noises = [seeded_noise(seed + STEP_SEED * i, counter, (4, 2)) for i in range(3)]
    expected = {
        "flow": noises[0] / 4,
        "is_stochastic": noises[0] / 4 + 0.7 * noises[1] / 2 + 0.7 * noises[2],
        "starts_at_zero": 0 * noises[0],
    }
    for name, chunk in expected.items():
        policy = make(**({} if name == "flow" else {"std": 0.7, name: True}))
        for parameter in policy.denoiser.net.parameters():
            parameter.zero_()
        decided = policy.decide(policy.encode(observed()), seed, counter)
        torch.testing.assert_close(decided, (3 * chunk).clamp(-1, 1), atol=1e-6, rtol=0)


@torch.no_grad()
def test_actions_are_clamped_and_the_chain_is_not() -> None:
    policy = make(noise_std=3.0)
    encoded, decision = drawn(policy)
    assert decision.actions.abs().max() == 1 and decision.chain[:, -1].abs().max() > 3
    assert torch.equal(decision.actions, (3 * decision.chain[:, -1]).clamp(-1, 1))
    assert torch.equal(evaluated(policy, encoded, decision.chain).log_prob, decision.log_prob)


@torch.no_grad()
def test_a_chain_starts_with_noise_or_with_zeros() -> None:
    assert (drawn(make(starts_at_zero=True, std=0.7))[1].chain[:, 0] == 0).all()
    start = drawn(make())[1].chain[:, 0]
    assert torch.equal(start, torch.randn(N, 4, 2, generator=seeded()))


@torch.no_grad()
def test_frames_that_only_a_world_model_reads_are_left_out() -> None:
    class TwoFrames(Linear):
        n_context_frames = 2

        def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Tensor:
            assert obs[STATE].shape == (N, 2, 4) and obs["task"].shape == (N,)
            return obs[STATE][:, 0]

    frames = torch.randn(N, 3, 4, generator=seeded())
    policy = ChainPolicy(TwoFrames(), SPEC)
    assert torch.equal(policy.encode({STATE: frames, "task": torch.zeros(N, dtype=torch.long)}), frames[:, 1])


# --- sizes ---


def test_numbers_that_nobody_gives_are_those_of_the_denoiser() -> None:
    policy = ChainPolicy(Linear(n_denoising_steps=3, n_action_steps=2), SPEC)
    assert (policy.n_denoising_steps, policy.n_action_steps, policy.chunk_size) == (3, 2, 4)
    assert ChainPolicy(Linear(first=1), SPEC).n_action_steps == 3


def test_action_steps_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(UserError) as error:
        make(n_action_steps=4, first=1)
    assert str(error.value) == "n_action_steps=4 exceeds the chunk of 3 actions; set n_action_steps=3 or less"
    rare = Linear()
    rare.reads = {**SPEC.features, "images.front": replace(Feature((8, 8, 3), dtype="uint8"), every=2)}
    assert ChainPolicy(rare, SPEC, n_action_steps=2).images == ("images.front",)
    with pytest.raises(UserError) as error:
        ChainPolicy(rare, SPEC, n_action_steps=3)
    assert str(error.value) == (
        "n_action_steps=3: the policy gets a new images.front every 2 steps; use a multiple of 2"
    )


def test_actions_of_another_size_than_the_environments_are_one_line() -> None:
    wide = replace(SPEC, action_low=(-1.0,) * 3, action_high=(1.0,) * 3)
    policy = ChainPolicy(Linear(), wide)
    with pytest.raises(UserError) as error:
        policy.decide(policy.encode(observed()), torch.arange(N), torch.arange(N))
    assert str(error.value) == (
        "the policy returned actions of shape (5, 4, 2), the environment expects (5, 4, 3) (rows, actions of a chunk, "
        "action_dim); check to_actions of the policy"
    )


def test_weights_go_to_a_folder_and_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    one, other, wider = Linear(has_critic=True), Linear(has_critic=True), Linear(padding=1, has_critic=True)
    one.save(tmp_path)
    other.load_weights(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    line = rf"^{tmp_path}/model\.safetensors: its weights do not fit this network: RuntimeError\("
    for wrong in (wider, Linear(), Linear(std=0.7, has_critic=True)):
        with pytest.raises(UserError, match=line) as error:
            wrong.load_weights(tmp_path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(UserError, match=r"absent/model\.safetensors: its weights do not fit this network: FileNot"):
        one.load_weights(tmp_path / "absent")
