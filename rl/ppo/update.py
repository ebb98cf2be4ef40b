"""PPO over action chunks (Schulman et al., 1707.06347).

What differs from the textbook: a step is a chunk of 1..k environment steps (`chunk_gae`), the likelihood is that of a
denoising chain, observations stay torch tensors, and a rollout may come from the simulator or from a dream. The loss
adds imitation of demonstrations (`bc_coef`) and of own successes (`success_bc_coef`), with small weights, to the policy
gradient (`pg_coef`); a penalty on the distance to a reference policy (`ref_kl_coef`) is optional.

The ratio is clipped separately for each action of a chunk, given the actions before it, as is done for tokens of
language models. The ratio of a whole chunk leaves the clip range after one or two optimizer steps, and a clipped ratio
has no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rewards.errors import BadNumbers
from rl.config import PPOConfig
from rl.policies.api import TrainablePolicy, load_policy_state, policy_state
from rl.ppo.buffer import Rollout, Samples, explained_variance
from rl.ppo.distributed import Distributed
from rl.ppo.schedules import load_schedule
from world_model.env import BatchedEnv, ChunkStep, discounted
from world_model.guards import check_gradients, check_loss
from world_model.tree import rows, tensors

ADVANTAGE_FLOOR = 0.02
"""Smallest standard deviation that advantages are divided by.

In a rollout without success the advantages are noise; dividing by their tiny deviation would amplify it.
"""

EXPLODED = 10.0
"""If the KL of a minibatch exceeds this many times `target_kl`, the whole update is undone."""

REMEDY = "lower ppo.learning_rate"

WARMUP_STEPS = 20
"""Optimizer steps over which the learning rate rises to its configured value."""

HELD_OUT = 0.2
"""Share of the environments of a rollout on which a new critic is tested and not trained."""

OnStep = Callable[[Tensor, ChunkStep], bool]
"""Called after each chunk with its actions (num_envs, k, action_dim) and the result; False ends the rollout."""


class PPO:
    """PPO whose actions are chunks. The same update is an algorithm of Stable-Baselines3 in `rl.ppo.sb3`.

    Args:
        policy: acts, and is trained in place.
        config: hyper-parameters.
        imitation: draws a weighted loss to add, such as `Imitation.loss`; it may return None.
        seed: of every random choice made here.
        distributed: the processes that train this policy together, each on samples of its own. `config` holds the share
            of this process. None: there is one process.

    Raises:
        UserError: a schedule of the config is unknown or does not fit.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        config: PPOConfig,
        imitation: Callable[[torch.Generator], Tensor | None] | None = None,
        seed: int = 0,
        distributed: Distributed | None = None,
    ) -> None:
        self.policy, self.config, self.imitation = policy, config, imitation
        self.distributed = distributed or Distributed()
        self.learning_rate = load_schedule("ppo.learning_rate", config.learning_rate)
        self.clip_range = load_schedule("ppo.clip_range", config.clip_range)
        self.progress_remaining = 1.0  # what the schedules read: 1 at the start of the training, 0 at its end
        self.generator = torch.Generator(policy.device).manual_seed(seed)
        self.optimizer = self._fresh_optimizer()

    @torch.no_grad()
    def collect(self, env: BatchedEnv, n_steps: int, fresh: bool = False, on_step: OnStep | None = None) -> Rollout:
        """Run `n_steps` chunks in each environment of `env`, from its current state or, with `fresh`, from a reset.

        Observations get the same noise as in training, see `TrainablePolicy.encode`. If `on_step` returns False, the
        rollout ends with that chunk.
        """
        policy, contexts, observed, steps, terms = self.policy, [], [], [], dict[str, float]()
        obs = env.observe() if env.begun and not fresh else env.reset()
        context = policy.encode(obs, self.generator)
        for _ in range(n_steps):
            decision = policy.sample(context, self.generator)
            frames = {name: values.clone() for name, values in env.context.items()}  # before the step changes it
            step = env.step_chunk(decision.actions)
            following = policy.encode(step.obs, self.generator)
            contexts.append(context)
            observed.append(frames)
            steps.append(
                {
                    "chain": decision.chain,
                    "log_prob": decision.log_prob,
                    "value": policy.values(context),
                    "reward": discounted(step.reward, self.config.gamma),
                    "n_executed": step.executed.sum(1),
                    "terminated": step.terminated,
                    "truncated": step.truncated,
                    # A dream lowers this value where it ends a branch because the expected error is too large.
                    "next_value": policy.values_after(step, following) - env.value_penalty,
                    "reference": policy.reference(context, decision.chain),
                    "success": step.is_success,
                    "actions": decision.actions,
                    "task": obs["task"],
                    "expected_error": torch.zeros(env.num_envs, device=env.device) + env.expected_error,
                    "weight": torch.ones(env.num_envs, device=env.device),
                }
            )
            # Sum the reward terms for the log: `name` weighted, `name_raw` as the term returned it.
            for name in step.raw:
                terms[f"{name}_raw"] = terms.get(f"{name}_raw", 0.0) + float(step.raw[name].sum())
                terms[name] = terms.get(name, 0.0) + float(step.weighted[name].sum())
            # `following` is the context after any restart, so the next decision continues from it.
            obs, context = step.obs, following
            if on_step is not None and not on_step(decision.actions, step):
                break
        stacked = {k: torch.stack([s[k] for s in steps]) for k in steps[0]}
        frames = {name: torch.stack([of[name] for of in observed]) for name in observed[0]}
        n_executed = int(stacked["n_executed"].sum())
        means = {k: total / n_executed for k, total in terms.items()}
        return Rollout(context=contexts, frames=frames, terms=means, **stacked)

    def update(
        self,
        samples: Samples,
        real: Samples | None = None,
        n_epochs: int | None = None,
        ref_kl_coef: float | None = None,
    ) -> dict[str, float]:
        """Run all epochs of one update over the samples of a rollout; return the mean statistics.

        The critic's loss includes the returns of `real` samples, because values in a dream may be wrong. `n_epochs` and
        `ref_kl_coef` replace those of the config if given.

        Raises:
            BadNumbers: a sample, loss or gradient is not finite; no optimizer step was taken with it.
        """
        samples = _normalised(samples, self.distributed.sum)
        _check_finite(samples)
        # Keep the weights, so that an update that explodes can be undone.
        before, target_kl = policy_state(self.policy), self.config.target_kl or math.inf
        self.optimizer.param_groups[0]["peak"] = self.learning_rate(self.progress_remaining)  # group 0 is the actor
        seen: dict[str, list[float]] = {}
        stop = exploded = False
        for _ in range(n_epochs or self.config.n_epochs):
            # Every epoch visits each row once, in a new random order.
            order = torch.randperm(len(samples), generator=self.generator, device=self.generator.device)
            for index in order.split(self.config.batch_size):
                losses, stats = self._losses(samples[index], real, ref_kl_coef)
                stats = self._backward(losses, self.optimizer, stats)  # of all processes, which then decide alike
                for name, value in stats.items():
                    seen.setdefault(name, []).append(value)
                # Early stop as in SB3: check the KL before the step, and skip the rest of the update.
                kl = stats.get("approx_kl", 0.0)
                stop, exploded = kl > 1.5 * target_kl, kl > EXPLODED * target_kl
                if stop:
                    break
                self._step(losses, self.optimizer)
            if stop:
                break
        means = {name: sum(values) / len(values) for name, values in seen.items()}
        if exploded:  # the optimizer's moments stay as they are
            load_policy_state(self.policy, before)
        variance = {"explained_variance": explained_variance(samples.value, samples.returns)}
        ends = {"early_stop": float(stop), "taken_back": float(exploded), **self.distributed.mean(variance)}
        return means | ends | self._scheduled()

    def imitate(self, n_steps: int) -> None:
        """Take `n_steps` optimizer steps on the imitation loss alone, before PPO or instead of it.

        This uses an optimizer of its own. Gradients of imitation are small; if PPO continued with Adam's second moments
        from here, its first steps would be ten times too long.
        """
        optimizer = self._fresh_optimizer()
        for _ in range(n_steps):
            if (loss := self._bc_loss()) is not None:
                self._backward(loss, optimizer)
                self._step(loss, optimizer)

    def fit_critic(self, rollout: Rollout, n_steps: int) -> float:
        """Fit the critic to the Monte-Carlo returns of a rollout; return the explained variance on held-out chunks."""
        # With lambda 1, GAE's returns are the discounted sums of rewards; a cut episode bootstraps.
        samples = Samples.from_rollout(rollout, self.config.gamma, gae_lambda=1.0)
        _check_finite(samples)
        n_chunks, n_envs = rollout.value.shape
        # Hold out whole environments, since chunks that follow each other are too similar to test on. With a single
        # environment, hold out its first chunks.
        n = n_envs if n_envs > 1 else n_chunks
        n_held = max(1, int(HELD_OUT * n)) if n > 1 else 0
        held = torch.arange(len(samples), device=samples.returns.device) % n < n_held
        train = samples[(~held).nonzero().squeeze(1)]
        optimizer = torch.optim.Adam(self.policy.critic_parameters(), lr=self.config.critic_learning_rate)
        for _ in range(n_steps):
            loss = self._value_loss(train, self.distributed.share.of(512))
            optimizer.zero_grad()
            loss.backward()
            self.distributed.average_gradients(self.policy.critic_parameters())
            optimizer.step()
        held = held if n_held else ~held  # a single chunk is fitted and measured
        with torch.no_grad():
            variance = explained_variance(self.policy.values(rows(samples.context, held)), samples.returns[held])
        return self.distributed.mean({"variance": variance})["variance"]

    def _scheduled(self) -> dict[str, float]:
        """Return the current values of scheduled hyper-parameters; constant ones are not logged."""
        schedules = {"learning_rate": self.learning_rate, "clip_range": self.clip_range}
        changing = (name for name in schedules if not isinstance(getattr(self.config, name), int | float))
        return {name: schedules[name](self.progress_remaining) for name in changing}

    def _losses(
        self, batch: Samples, real: Samples | None, ref_kl_coef: float | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the total loss of a minibatch and the statistics to log."""
        config, policy = self.config, self.policy
        ref_kl_coef = config.ref_kl_coef if ref_kl_coef is None else ref_kl_coef
        # Critic: squared error to the returns, weighted like the policy loss; then as many rows of real samples. The
        # change of the value is not clipped, which does not help (Andrychowicz et al., 2006.05990).
        value_loss = (batch.weight * (policy.values(batch.context) - batch.returns).square()).mean()
        if real is not None:
            value_loss = value_loss + self._value_loss(real, len(batch))
        loss, stats = config.vf_coef * value_loss, {"value_loss": float(value_loss.detach())}
        # Without any policy term (a control), the chain need not be evaluated.
        if config.pg_coef > 0 or ref_kl_coef > 0 or config.ent_coef > 0:
            policy_loss, policy_stats = self._policy_loss(batch, ref_kl_coef)
            loss, stats = loss + policy_loss, stats | policy_stats
        if (bc_loss := self._bc_loss()) is not None:
            loss = loss + bc_loss
            stats["bc_loss"] = float(bc_loss.detach())
        return loss, stats

    def _bc_loss(self) -> Tensor | None:
        loss = None if self.imitation is None else self.imitation(self.generator)
        if loss is not None:
            check_loss(loss, REMEDY)
        return loss

    def _policy_loss(self, batch: Samples, ref_kl_coef: float) -> tuple[Tensor, dict[str, float]]:
        """Return the clipped policy loss with KL penalty and entropy bonus, and the statistics to log."""
        config, policy = self.config, self.policy
        found = policy.evaluate_actions(batch.context, batch.chain, batch.reference)
        log_ratio = found.log_prob - batch.log_prob
        ratio, advantage = log_ratio.exp(), batch.advantage.unsqueeze(1)  # (n, n_action_steps), (n, 1)
        clip = self.clip_range(self.progress_remaining)
        # PPO's clipped objective, with one ratio per action and the advantage of the whole chunk.
        gain = torch.min(advantage * ratio, advantage * ratio.clamp(1 - clip, 1 + clip))
        pg_loss = -(batch.weight.unsqueeze(1) * gain).mean()
        ref_kl = found.ref_kl.mean()
        with torch.no_grad():
            stats = {
                # Unbiased, non-negative estimate of KL(old || new), (r - 1) - log r, as in SB3 (the estimator k3 of
                # Schulman, "Approximating KL divergence", 2020); summed over the actions of a chunk
                "approx_kl": float((ratio - 1 - log_ratio).sum(1).mean()),
                "clip_fraction": float(((ratio - 1).abs() > clip).float().mean()),
                "policy_gradient_loss": float(pg_loss),
                "ref_kl": float(ref_kl),
            }
        return config.pg_coef * pg_loss + ref_kl_coef * ref_kl - config.ent_coef * found.entropy, stats

    def _value_loss(self, samples: Samples, n: int) -> Tensor:
        """Return the critic's loss on `n` rows of `samples`, drawn at random, weighted as in `_losses`."""
        index = torch.randint(len(samples), (n,), generator=self.generator, device=samples.returns.device)
        features, returns = self.policy.features(samples.context)[index], samples.returns[index]
        return (samples.weight[index] * (self.policy.value(features) - returns).square()).mean()

    def _fresh_optimizer(self) -> torch.optim.Adam:
        """Return an Adam optimizer with the groups actor, critic; `_step` warms the learning rate up to `peak`.

        Adam's first steps have full length however small the gradient is, so they need a lower learning rate.
        """
        policy, actor_rate = self.policy, self.learning_rate(self.progress_remaining)
        return torch.optim.Adam(
            [
                {"params": policy.actor_parameters(), "peak": actor_rate, "n_steps": 0},
                {"params": policy.critic_parameters(), "peak": self.config.critic_learning_rate, "n_steps": 0},
            ]
        )

    def _backward(
        self, loss: Tensor, optimizer: torch.optim.Adam, stats: Mapping[str, float] | None = None
    ) -> dict[str, float]:
        """Compute the gradients of a loss; average them and the statistics over all processes, in one exchange."""
        optimizer.zero_grad()
        if loss.requires_grad:  # it does not in a process without examples, while others imitate theirs
            loss.backward()
        # A bad number of one process is then in the gradients of all of them, before any weight changes.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return self.distributed.average_gradients(parameters, stats)

    def _step(self, loss: Tensor, optimizer: torch.optim.Adam) -> None:
        """Take one optimizer step with the gradients of `loss`, clipped for actor and critic separately.

        Raises:
            BadNumbers: loss or gradients are not finite; the weights are unchanged.
        """
        check_loss(loss, REMEDY)
        norms = [
            nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm) for group in optimizer.param_groups
        ]
        check_gradients(norms, REMEDY)
        for group in optimizer.param_groups:
            # Linear warm-up from peak / WARMUP_STEPS to peak.
            group["lr"] = (
                group["peak"] * (1 + (WARMUP_STEPS - 1) * min(1, group["n_steps"] / WARMUP_STEPS)) / WARMUP_STEPS
            )
            # The counter is kept in the group, so that the optimizer's saved state contains it.
            group["n_steps"] += 1
        optimizer.step()


def _check_finite(samples: Samples) -> None:
    """Raise BadNumbers, with the samples attached for inspection, if a return, advantage or value is not finite."""
    found = {"returns": samples.returns, "advantage": samples.advantage, "value": samples.value}
    if not all(torch.isfinite(v).all() for v in found.values()):
        problem = "a reward or value of the rollout is not finite; nothing of it was learned; check the rewards"
        raise BadNumbers(problem, chain=samples.chain, **found, **dict(tensors(samples.context, "context")))


def _normalised(samples: Samples, total: Callable[[Tensor], Tensor] = lambda values: values) -> Samples:
    """Return the samples with advantages of weighted mean 0 and, above `ADVANTAGE_FLOOR`, weighted deviation 1.

    Over the whole rollout, where SB3 normalises each minibatch: so one scale holds for all steps of an update.
    `total` sums a tensor over the processes that train together.
    """
    # Weighted statistics, so that chunks of weight 0 have no influence on the others.
    share = samples.weight / total(samples.weight.sum())
    advantage = samples.advantage - total((share * samples.advantage).sum())
    scale = total((share * advantage.square()).sum()).sqrt().clamp(min=ADVANTAGE_FLOOR)
    return Samples(**{**vars(samples), "advantage": advantage / scale})
