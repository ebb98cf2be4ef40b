"""Post-training, round by round: PPO in the simulator and in the dream, a gate after each, a verdict at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from rl.buffer import Rollout, Samples
from rl.build import make_policy, make_sim, tasks_of
from rl.config import TrainConfig
from rl.dreams import Dreams
from rl.envs.simulator import Simulator
from rl.evaluate import Acts, EpisodeResult, Exploring, evaluate_sim, first_states, success_rate
from rl.gate import judge
from rl.imitation import Imitation
from rl.outcome import Outcome, Part, Weights
from rl.policy import load_policy_state, policy_state
from rl.ppo import ChunkPPO
from world_model.dream_env import StartStates
from world_model.episodes import Episode
from world_model.model import WorldActionModel

START_SEED = 100_000_000
"""First seed of the resets that dreams begin from; training draws its own, gates and evaluations are far below."""

EXPLORE_SEED = 50_000_000
"""First seed of the episodes that are collected for a refit."""

Log = Callable[[int, dict[str, float]], None]


class PostTraining:
    """One run of `wamtune train`, from a start policy to an evaluated champion.

    Args:
        config: everything there is to choose.
        model: the checkpoint; None for policy=gaussian.
        imitation: demonstrations for the anchor.
        log: hears (executed simulator steps, values).
        say: hears a line for people.
        tick: hears how far it is: parts done, parts in all, and what is being done.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: WorldActionModel | None,
        imitation: Imitation | None,
        log: Log,
        say: Callable[[str], None] = print,
        tick: Callable[[float, int, str], None] = lambda done, total, doing: None,
    ) -> None:
        self.config, self.model, self.imitation = config, model, imitation
        self.log, self.say, self.tick = log, say, tick
        tasks = tasks_of(config, model)
        self.sim = make_sim(config, model, tasks, config.env.n_envs, rewards=True)
        # One for each task, so that a seed names one episode.
        alone = [[task] for task in tasks] or [[]]
        n_each = -(-config.env.n_envs // len(alone))
        # Where there can be no second simulator, who trains and who is judged share it, and both begin afresh.
        self.arenas = (
            [self.sim] if self.sim.alone else [make_sim(config, model, task, n_each, rewards=False) for task in alone]
        )
        self.policy = make_policy(config, model, self.sim)
        self.ppo = ChunkPPO(self.policy, self.sim, config.ppo, self._imitate, config.seed)
        self.champion = policy_state(self.policy)
        self.sim_steps = self.gate_steps = self.gate_episodes = self.explored = 0
        self.real: Samples | None = None  # Monte-Carlo returns of the last rollout in the simulator
        # Built now, so that a term that a dream cannot serve is refused before anything runs.
        self.dreams = None if config.env.kind == "sim" or model is None else Dreams(config, model)
        self.sim.record(self.dreams is not None)
        self.ref_kl_coef = config.dream.ref_kl_coef  # as strict as the gates have taught
        # A control has no use for a critic, and its first rollout teaches as every other.
        self._critic_is_new = config.ppo.critic_warmup_steps > 0 and config.ppo.pg_coef > 0
        self._begun = time.monotonic()
        self._n_done = self._n_in_all = 0

    def places(self, round_index: int) -> list[str]:
        """What a round consists of, in order; imitation is a part of the first one alone."""
        places = {"sim": ("imitation", "sim"), "dream": ("imitation", "dream"), "mix": ("sim", "imitation", "dream")}
        imitates = self.imitation is not None and self.config.ppo.imitation_steps > 0 and round_index == 0
        return [place for place in places[self.config.env.kind] if place != "imitation" or imitates]

    def run(self, before: list[EpisodeResult] | None = None) -> Outcome:
        """Evaluate, train, evaluate every champion on the same seeds; `before` spares the first evaluation."""
        # What there is to do: first evaluation, training and gate of each part of a round, last evaluation.
        rounds = [self.places(i) for i in range(self.config.n_rounds)]
        self._n_done, self._n_in_all = 0, 2 + 2 * sum(map(len, rounds))
        before = before or self.evaluate()
        self.log(0, {"eval/success": success_rate(before)})
        self._n_done += 1
        parts = []
        train = {"imitation": self._train_imitation, "sim": self._train_sim, "dream": self._train_dream}
        for round_index, places in enumerate(rounds):
            if self.dreams is not None and self.config.dream.n_episodes > 0:
                self._explore(self.config.dream.n_episodes)
            for place in places:
                if place == "dream" and self.dreams is not None and self.dreams.end:
                    self.say(f"round {round_index + 1}: the gap widens, there are no more dreams in this run")
                    self._n_done += 2
                    continue
                self.policy.set_reference()
                train[place](round_index)
                self._n_done += 1
                parts.append(self._gate(place, round_index))
                self._n_done += 1
        outcome = Outcome(before, parts, self.sim_steps, self.gate_steps)
        self._evaluate_champions(outcome)
        load_policy_state(self.policy, self.champion)
        return outcome

    def evaluate(self) -> list[EpisodeResult]:
        """Success of the present policy on the seeds of `config.eval`."""
        first = self.config.eval.seed
        return self._episodes(range(first, first + self.config.eval.n_episodes), "evaluation")

    def close(self) -> None:
        """End the simulator's processes."""
        for env in {self.sim, *self.arenas}:
            env.close()

    def _episodes(self, seeds: Sequence[int], doing: str, policy: Acts | None = None) -> list[EpisodeResult]:
        """Run the episodes of `seeds`, dealt out to the tasks in turn."""
        results: list[EpisodeResult] = []
        for arena, share in self._dealt(seeds):
            tick = partial(self._tick_episodes, doing, len(results), len(seeds))
            results += evaluate_sim(policy or self.policy, arena, share, tick)
        return results

    def _dealt(self, seeds: Sequence[int]) -> list[tuple[Simulator, Sequence[int]]]:
        """Deal seeds out to the tasks in turn; a task that gets none is left out."""
        n = len(self.arenas)
        return [(arena, seeds[j::n]) for j, arena in enumerate(self.arenas[: len(seeds)])]

    def _tick_episodes(self, doing: str, before: int, total: int, n: int, _: int) -> None:
        self._tick(doing, (before + n) / total)

    def _tick(self, doing: str, share: float) -> None:
        self.tick(self._n_done + min(share, 1.0), self._n_in_all, doing)

    def _train_imitation(self, round_index: int) -> None:
        """Take over what is quickly learned: the demonstrations of these tasks alone, and what has succeeded so far."""
        self._tick(f"round {round_index + 1}, imitation", 0.0)
        self.ppo.imitate(self.config.ppo.imitation_steps)

    def _train_sim(self, round_index: int) -> None:
        config = self.config
        begun, goal = self.sim_steps, config.total_timesteps * (round_index + 1) / config.n_rounds
        rollout_size = config.env.n_envs * config.ppo.n_steps * config.n_action_steps
        # To the nearest rollout: short episodes leave each a little under its size, which is no reason for one more.
        while goal - self.sim_steps > min(rollout_size, config.total_timesteps) / 2:
            self._tick(f"round {round_index + 1}, PPO in sim", (self.sim_steps - begun) / (goal - begun))
            self._learn("sim", self._collect_sim(config.ppo.n_steps))

    def _train_dream(self, round_index: int) -> None:
        assert self.dreams is not None
        config, doing = self.config.dream, f"round {round_index + 1}, PPO in the dream"
        if not self.config.learns_from_dreams:
            n_batches = -(-config.n_envs * config.horizon // self.config.ppo.batch_size)
            self.ppo.imitate(config.n_updates * config.n_epochs * n_batches)
            return
        self._tick(f"round {round_index + 1}, refit of the dream", 0.0)
        if (error := self.dreams.error()) is not None:
            self.log(self.sim_steps, {"dream/error": error})
        self.dreams.refit()
        dream = self.dreams.env(self._starts(round_index))
        for i in range(config.n_updates + self._critic_is_new):
            self._tick(doing, i / (config.n_updates + 1))
            rollout = self.ppo.collect(dream, config.horizon, fresh=True)
            seen = self.dreams.weigh(rollout, i)
            self.log(self.sim_steps, {f"dream/{name}": value for name, value in seen.items()})
            if self.imitation is not None:
                self.imitation.add_successes(rollout, "dream")
            self._learn("dream", rollout)
        if self.imitation is not None:
            self.imitation.forget_dream()

    def _explore(self, n: int) -> None:
        """Collect `n` episodes with the present policy, exploring, for the dream to be refitted on."""
        first = EXPLORE_SEED + self.explored
        results = self._recorded(range(first, first + n), "exploring", Exploring(self.policy, self.ppo.generator))
        self.explored += n
        self.sim_steps += sum(r.n_steps for r in results)

    def _starts(self, round_index: int) -> StartStates:
        """Reset the simulator to see where episodes begin."""
        n = self.config.dream.n_starts
        first = START_SEED + (1000 * self.config.seed + round_index) * n
        return StartStates.join([first_states(arena, seeds) for arena, seeds in self._dealt(range(first, first + n))])

    def _collect_sim(self, n_steps: int) -> Rollout:
        rollout = self.ppo.collect(self.sim, n_steps)
        self.sim_steps += int(rollout.n_executed.sum())
        if self.imitation is not None:
            self.imitation.add_successes(rollout, "sim")
        if self.dreams is not None:
            self.dreams.episodes += self.sim.record(True)
            self.real = Samples.from_rollout(rollout, self.config.ppo.gamma, gae_lambda=1.0)
        return rollout

    def _learn(self, place: str, rollout: Rollout) -> None:
        """Update from a rollout; the very first one of a run only shows the critic what there is to expect."""
        if not self._critic_is_new:
            self._update(place, rollout)
            return
        variance = self.ppo.fit_critic(rollout, self.config.ppo.critic_warmup_steps)
        self._critic_is_new = False
        self.log(self.sim_steps, {"critic/heldout_explained_variance": variance})
        self.say(f"critic: held-out explained variance {variance:.2f} on a first rollout in {place}")

    def _update(self, place: str, rollout: Rollout) -> None:
        samples = Samples.from_rollout(rollout, self.config.ppo.gamma, self.config.ppo.gae_lambda)
        dream = self.config.dream
        elsewhere = (self.real, dream.n_epochs, self.ref_kl_coef) if place == "dream" else ()
        stats = self.ppo.update(samples, *elsewhere)
        ends = (rollout.terminated | rollout.truncated).sum().clamp(min=1)
        values = {f"train/{name}": value for name, value in stats.items()}
        values[f"rollout/{place}_success"] = success = float(rollout.success.sum() / ends)
        if place == "dream" and self.dreams is not None:
            self.dreams.success = success
        values[f"rollout/{place}_reward"] = float(rollout.reward.mean())
        values |= {f"reward/{name}": value for name, value in rollout.terms.items()}
        self.log(self.sim_steps, values)

    def _imitate(self, generator: torch.Generator) -> Tensor | None:
        return None if self.imitation is None else self.imitation.loss(generator)

    def _gate(self, place: str, round_index: int) -> Part:
        gate, verdict = self.config.gate, None
        challenger = policy_state(self.policy)
        if gate.enabled and place in gate.places:
            contests = partial(self._contest, self.champion), partial(self._contest, challenger)
            n_gates = sum(p in gate.places for i in range(self.config.n_rounds) for p in self.places(i))
            alpha = gate.alpha / n_gates
            verdict = judge(*contests, gate.seed + self.gate_episodes, gate.n_episodes, gate.max_episodes, alpha)
            self.gate_episodes += verdict.n_episodes
            self.say(f"round {round_index + 1}, {place}: {verdict}")
            seen = {"champion": verdict.champion, "challenger": verdict.challenger, "accepted": verdict.accepted}
            seen |= {"won": verdict.won, "lost": verdict.lost}
            seen |= {f"in_{name}": place == name for name in ("imitation", "dream")}
            seen["episodes"] = self.gate_episodes
            self.log(self.sim_steps, {f"gate/{name}": float(value) for name, value in seen.items()})
            if place == "dream" and self.dreams is not None:
                self.dreams.judge(verdict.challenger)
        if verdict is None or verdict.accepted:
            self.champion = challenger
        elif place == "dream":
            self.ref_kl_coef *= self.config.dream.rollback_factor
        load_policy_state(self.policy, self.champion)
        return Part(place, verdict, self.champion, self.sim_steps, self.gate_steps, time.monotonic() - self._begun)

    def _contest(self, weights: Weights, seeds: list[int]) -> list[EpisodeResult]:
        load_policy_state(self.policy, weights)
        results = self._recorded(seeds, "gate")
        self.gate_steps += sum(r.n_steps for r in results)
        return results

    def _recorded(self, seeds: Sequence[int], doing: str, policy: Acts | None = None) -> list[EpisodeResult]:
        """Run episodes that imitation and dream may learn from."""
        for arena in self.arenas:
            arena.record(True)
        results = self._episodes(seeds, doing, policy)
        # Where there are more environments than seeds, the last one was run again and again: the first time counts.
        episodes: dict[tuple[str, int], Episode] = {}
        for arena in self.arenas:
            recorded = arena.record(arena is self.sim and self.dreams is not None)
            episodes |= {(e.task, e.seed): e for e in reversed(recorded) if e.seed in seeds}
        if self.imitation is not None:
            self.imitation.add_episodes([*episodes.values()])
        if self.dreams is not None:
            self.dreams.episodes += episodes.values()
        return results

    def _evaluate_champions(self, outcome: Outcome) -> None:
        results = outcome.before
        self._n_in_all = self._n_done + sum(part.accepted for part in outcome.parts)
        for part in outcome.parts:
            if part.accepted:
                load_policy_state(self.policy, part.champion)
                results = self.evaluate()
                self._n_done += 1
            part.evaluation = results
            self.log(part.sim_steps, {"eval/success": success_rate(results)})
