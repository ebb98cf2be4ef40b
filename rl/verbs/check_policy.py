"""The part of `wamtune check` for a policy that somebody brings: can PPO trust it, and does it fit the environment?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from rewards.errors import UserError
from rl.build import device_of, find_simulator, make_denoiser, make_policy, make_sim, tasks_of
from rl.config import TrainConfig
from rl.envs.features import given_spec
from rl.envs.names import shown_name
from rl.envs.simulator import Simulator
from rl.policies.api import Denoiser
from rl.policies.chain import ChainPolicy
from rl.runs.progress import show
from world_model.env import Obs
from world_model.spec import IMAGES, Spec
from world_model.tree import Tree, n_bytes, rows

MOST_DIFFERENT = 1e-4
"""Largest accepted difference of an action between the chain without noise and the policy's own sampler."""

MOST_RATIO = 1e-3
"""Largest accepted distance from 1 of the likelihood ratio before an update; PPO clips it at 0.2."""

N_ENVS = 4


@dataclass
class Line:
    """One line of the result."""

    ok: bool
    what: str
    found: str


def check_policy(config: TrainConfig) -> None:
    """Check the policy of `config` and print one line for each property.

    Raises:
        UserError: the policy cannot be loaded, or a line is red; the first one is named.
    """
    denoiser = make_denoiser(config.actor, device_of(config), config.n_action_steps)
    assert denoiser is not None
    show(_features(config, denoiser))
    lines = []
    for line in _lines(config, denoiser):
        print(f"{'ok ' if line.ok else 'RED'}  {line.what:<12} {line.found}", flush=True)
        lines.append(line)
    if red := [line for line in lines if not line.ok]:
        raise UserError(f"policy={config.starts_from}: {red[0].what}: {red[0].found}")


def _lines(config: TrainConfig, denoiser: Denoiser) -> Iterator[Line]:
    yield _weights(denoiser)
    env = make_sim(config, None, tasks_of(config, None), N_ENVS, rewards=False, denoiser=denoiser)
    with closing(env):
        policy = make_policy(config, None, env, denoiser)
        obs = env.reset(seed=config.seed)
        encoded = policy.encode(obs)
        yield _sampler(policy, obs, encoded)
        yield _ratio(policy, encoded)
        yield _gradient(policy, encoded)
        yield _imitation(policy, encoded)
        yield _memory(config, encoded)
        yield _time(policy, obs)
        yield _rollout(policy, env)


def _features(config: TrainConfig, denoiser: Denoiser) -> Table:
    """Return a table of the features that the policy reads, beside those of the environment."""
    table = Table(title=f"features of policy={config.starts_from}", title_justify="left")
    for column in ("the policy reads", "as", "shape", shown_name(config.env)):
        table.add_column(column)
    simulator = find_simulator(config.env)
    early = simulator.early_spec(id=config.env.id, tasks=tasks_of(config, None))
    try:
        given = None if early is None else given_spec(early, denoiser.reads, robot_slices=simulator.robot_slices)
    except UserError:
        given = early
    names = {ours: theirs for theirs, ours in getattr(denoiser, "names", {}).items()}
    for name, feature in denoiser.reads.items():
        found = "?" if given is None else _compared(name, feature.shape, given)
        table.add_row(names.get(name, name), name, str(list(feature.shape)), found)
    return table


def _compared(name: str, shape: tuple[int, ...], given: Spec) -> str:
    """Return what the environment has in place of a feature, with the remedy if it does not fit."""
    feature = given.features.get(name)
    if feature is not None and feature.shape == shape:
        return "the same"
    same_kind = [other for other in given.features if other.startswith(IMAGES) == name.startswith(IMAGES)]
    fitting = [other for other in same_kind if given.features[other].shape == shape and other != name]
    if fitting:
        return f"RED: set policy.params.rename={{{name}: {fitting[0]}}}"
    has = "nothing of that name" if feature is None else str(list(feature.shape))
    return f"RED: {has}; it has {', '.join(f'{n} {list(f.shape)}' for n, f in given.features.items())}"


def _weights(denoiser: Denoiser) -> Line:
    trained = sum(parameter.numel() for parameter in denoiser.action_parameters())
    total = sum(parameter.numel() for parameter in denoiser.parameters())
    found = f"{total:,} parameters, {trained:,} of them trained; numbers finite, statistics present"
    return Line(trained > 0, "weights", found)


def _sampler(policy: ChainPolicy, obs: Obs, encoded: Tree) -> Line:
    """Compare the chain without noise with the policy's own sampler, from the same starting noise."""
    denoiser = policy.denoiser
    own: Callable[[Obs, Tensor], Tensor] | None = getattr(denoiser, "own_chunk", None)
    if own is None:
        return Line(True, "sampler", "not compared: the class has no method own_chunk(obs, noise)")
    if denoiser.is_stochastic:
        return Line(True, "sampler", "not compared: it draws noise in each step (DDPM)")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(N_ENVS, denoiser.horizon, denoiser.chain_dim, generator=generator).to(policy.device)
    with torch.no_grad():
        prepared, x = denoiser.prepare(encoded), torch.zeros_like(noise) if denoiser.starts_at_zero else noise
        for i in range(denoiser.n_denoising_steps):
            x, _ = denoiser.step(prepared, x, i, denoiser.n_denoising_steps)
        difference = float((denoiser.to_actions(encoded, x) - own(obs, noise)).abs().max())
    found = f"without noise its actions differ by {difference:.1e} from those of the policy's own sampler"
    return Line(difference <= MOST_DIFFERENT, "sampler", found)


def _ratio(policy: ChainPolicy, encoded: Tree) -> Line:
    """Compute the likelihood of the same decisions again, also in another minibatch."""
    decision = policy.sample(encoded, torch.Generator(policy.device).manual_seed(0))
    reference, apart = policy.reference(encoded, decision.chain), []
    with torch.no_grad():
        for index in (torch.arange(N_ENVS), torch.tensor([N_ENVS - 1, 0])):
            part = index.to(policy.device)
            found = policy.evaluate_actions(rows(encoded, part), decision.chain[part], reference[part])
            apart.append(((found.log_prob - decision.log_prob[part]).exp() - 1).abs())
    worst = float(torch.cat(apart).max())  # NaN if one is, unlike Python's max
    return Line(worst <= MOST_RATIO, "ratio", f"1 ± {worst:.1e} before an update, in any minibatch")


def _gradient(policy: ChainPolicy, encoded: Tree) -> Line:
    """Look which weights a policy gradient reaches."""
    decision = policy.sample(encoded, torch.Generator(policy.device).manual_seed(0))
    reference = policy.reference(encoded, decision.chain)
    policy.zero_grad()
    (policy.evaluate_actions(encoded, decision.chain, reference).log_prob.sum()).backward()
    actor = {id(parameter) for parameter in policy.actor_parameters()}
    touched = [parameter for parameter in policy.denoiser.parameters() if parameter.grad is not None]
    inside = sum(id(parameter) in actor for parameter in touched)
    outside = len(touched) - inside
    policy.zero_grad()
    found = f"reaches {inside} of {len(actor)} trained tensors, and {outside} others"
    return Line(inside > 0 and outside == 0, "gradient", found)


def _imitation(policy: ChainPolicy, encoded: Tree) -> Line:
    """Compute the imitation loss of the policy's own decisions."""
    seed = torch.arange(N_ENVS, device=policy.device)
    with torch.no_grad():
        actions = policy.decide(encoded, seed, seed)
        missing = policy.chunk_size - actions.shape[1]
        chunk = torch.cat([actions, actions[:, -1:].expand(-1, missing, -1)], dim=1)
        loss = float(policy.imitation_loss(encoded, chunk, torch.Generator(policy.device).manual_seed(0)))
    return Line(math.isfinite(loss), "imitation", f"loss {loss:.3g} on its own actions")


def _memory(config: TrainConfig, encoded: Tree) -> Line:
    each = n_bytes(encoded) / N_ENVS
    rollout = each * config.env.n_envs * config.ppo.n_steps
    return Line(True, "memory", f"{each / 1e3:,.1f} kB a decision, {rollout / 1e6:,.0f} MB a rollout of ppo.n_steps")


def _time(policy: ChainPolicy, obs: Obs) -> Line:
    seed = torch.arange(N_ENVS, device=policy.device)
    with torch.no_grad():
        policy.decide(policy.encode(obs), seed, seed)  # warm up
        begun = time.perf_counter()
        policy.decide(policy.encode(obs), seed, seed)
        took = time.perf_counter() - begun
    return Line(True, "time", f"{1000 * took:.0f} ms for the chunks of {N_ENVS} environments")


def _rollout(policy: ChainPolicy, env: Simulator) -> Line:
    """Execute one chunk of decisions."""
    obs = env.reset()
    actions = policy.sample(policy.encode(obs), torch.Generator(policy.device).manual_seed(0)).actions
    step = env.step_chunk(actions)
    share = float((actions.abs() >= env.action_high - 1e-6).float().mean())
    found = f"{int(step.executed.sum())} steps executed; {100 * share:.0f} % of the actions at a bound"
    # Actions that are nearly all at a bound have wrong units.
    return Line(share < 0.9, "rollout", found)
