"""Post-training in rounds: PPO in the simulator and in the dream, a gate after each, an evaluation at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.build import make_policy, make_sim, tasks_of
from rl.compose import to_yaml
from rl.config import TrainConfig
from rl.envs.names import shown_name
from rl.envs.simulator import Simulator
from rl.policies.api import load_policy_state, policy_state
from rl.ppo.buffer import Rollout, Samples
from rl.ppo.callbacks import RunCallbacks
from rl.ppo.imitation import Imitation
from rl.ppo.update import PPO
from rl.rounds.dreams import Dreams
from rl.rounds.eval_envs import EvalEnvs
from rl.rounds.evaluate import Acts, EpisodeResult, Exploring
from rl.rounds.gate import judge
from rl.rounds.outcome import STEPS, Outcome, Part, Weights
from rl.rounds.trial import try_rewards, try_signals
from rl.seeds import EXPLORE, START
from rl.statistics import success_rate
from world_model.checkpoint import find_checkpoint, save_checkpoint
from world_model.data.episodes import EpisodeStore
from world_model.env import BatchedEnv
from world_model.wam.model import WorldActionModel
from world_model.wam.store import save_model

_WORK = {"imitation": 1.0, "sim": 4.0, "dream": 10.0}
"""Rough duration of each part of a round, in units of one evaluation or gate; used for the progress display alone."""

_STATE = (
    *("sim_steps", "gate_steps", "gate_episodes", "explored", "ref_kl_coef", "n_places", "under_way"),
    *("before", "parts", "champion", "real", "_critic_is_new", "n_updates", "stopped_by"),
)
"""Attributes of `PostTraining` that its saved state holds unchanged, under these names."""

Log = Callable[[int, dict[str, float]], None]


class PostTraining:
    """One run of `wamtune train`, from a start policy to an evaluated champion.

    Each round has parts (imitation, sim, dream). A part trains the champion further; the result is the challenger. The
    gate keeps the challenger or restores the champion. A state saved at a safe point resumes the run bit for bit, in
    this process or another.

    Args:
        config: of the run.
        model: the checkpoint; None for policy=gaussian.
        imitation: demonstrations for the anchor; None: no imitation.
        log: called with (updates so far, values); `time/total_timesteps` in them are the executed simulator steps.
        say: called with a line of text for the user.
        tick: called with (work done, total work, name of the current activity).
        safe: called at safe points, where `state_dict` is complete; True: a part has ended, False: only a rollout has.
        folder: run folder, in which callbacks write.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: WorldActionModel | None,
        imitation: Imitation | None,
        log: Log,
        say: Callable[[str], None] = print,
        tick: Callable[[float, float, str], None] = lambda done, total, doing: None,
        safe: Callable[[bool], None] = lambda ended: None,
        folder: Path = Path(),
    ) -> None:
        self.config, self.model, self.imitation = config, model, imitation
        self.log, self.say, self.tick, self.safe = log, say, tick, safe
        self._chunk_size = config.n_action_steps if model is None else model.config.chunk_size
        self._check_budget()
        tasks = tasks_of(config, model)
        self.sim = make_sim(config, model, tasks, config.env.n_envs, rewards=True)
        self.eval_envs = EvalEnvs(config, model, tasks, self.sim)
        self.policy = make_policy(config, model, self.sim)
        self.ppo = PPO(
            self.policy, config.ppo, lambda g: self.imitation.loss(g) if self.imitation else None, config.seed
        )
        self.callbacks = RunCallbacks(
            config.callbacks,
            ppo=self.ppo,
            env=self.sim,
            make_eval_env=self._make_eval_env,
            folder=folder,
            log=self._log,
            save=lambda path: self.save(path, f"# {config.name}\n\nAfter {self.sim_steps:,} simulator steps.\n"),
        )
        self.stopped_by = ""  # the callback that ended the training
        self.champion = policy_state(self.policy)
        self.sim_steps = self.gate_steps = self.gate_episodes = self.explored = self.n_updates = 0
        self.before: list[EpisodeResult] = []
        self.parts: list[Part] = []
        self.n_places, self.under_way = 0, False  # number of finished parts, and whether the next one has begun
        self.real: Samples | None = None  # Monte-Carlo returns of the last rollout in the simulator
        # Build the dream before anything runs, so that a reward term that it cannot compute fails at once.
        self.dreams = None if config.env.kind == "sim" or model is None else Dreams(config, model)
        self.sim.record(self.dreams is not None)
        self.ref_kl_coef = config.dream.ref_kl_coef  # grows when a gate rolls a dream back
        # Without policy gradient (a control) no critic is needed, so no rollout is spent on its warm-up.
        self._critic_is_new = config.ppo.critic_warmup_steps > 0 and config.ppo.pg_coef > 0
        self._begun = time.monotonic()
        self._work, self._step = [1.0], 0  # planned work items, in evaluations, and the index of the current one

    def places(self, round_index: int) -> list[str]:
        """Return the parts of a round, in order."""
        return self.config.places(round_index, self.imitation is not None)

    def run(self, before: list[EpisodeResult] | None = None) -> Outcome:
        """Evaluate, train, and evaluate every champion on the same seeds; `before` replaces the first evaluation."""
        # Plan the work: first evaluation, then training and gate of each part, then evaluations of champions.
        todo = [(place, i) for i in range(self.config.n_rounds) for place in self.places(i)]
        gate = float(self.config.gate.enabled)
        parts = [work for place, _ in todo for work in (_WORK[place], gate * (place in self.config.gate.places))]
        self._work, self._step = [1.0, *parts, float(len(todo))], 0
        if not self.before:
            if before is None:
                # Call every plug-in once, so that a bug in one shows before anything is measured.
                starts = try_rewards(self.config, self.model, self.sim, self.dreams is not None)
                if self.dreams is not None:
                    try_signals(self.dreams, self.ppo, starts)
            self.before = before or self.evaluate()
            self.log(0, {"eval/success": success_rate(self.before), "eval/total_timesteps": 0, "eval/rounds": 0.0})
            self.safe(True)
        self.callbacks.begin(total_timesteps=self.config.total_timesteps, tb_log_name=self.config.name)
        while self.n_places < len(todo) and not self.stopped_by:
            self._step = 1 + 2 * self.n_places
            self._run_part(*todo[self.n_places])
            self.n_places, self.under_way = self.n_places + 1, False
            self.safe(True)
        self.callbacks.end()
        self._step = len(self._work) - 1
        outcome = Outcome(
            self.before, self.parts, self.sim_steps, self.gate_steps, self.n_updates, stopped_by=self.stopped_by
        )
        # Champions are evaluated only now: these seeds must not influence the training.
        self._evaluate_champions(outcome)
        load_policy_state(self.policy, self.champion)
        return outcome

    def _run_part(self, place: str, round_index: int) -> None:
        """Train in `place` and run the gate; after a resume, go on with the part that had begun."""
        if not self.under_way:
            # Once per round, before its first part: collect episodes for the refit of the dream.
            dreams = self.dreams if "dream" in self.places(round_index) else None
            if dreams is not None and not dreams.end and place == self.places(round_index)[0]:
                self._explore(self.config.dream.n_episodes)
            if dreams is not None and dreams.end and place == "dream":
                self.say(f"round {round_index + 1}: the gap widens, there are no more dreams in this run")
                return
            self.policy.set_reference()  # the KL penalty measures the distance from the start of this part
            self.under_way = True
        self._progress(0.0)
        {"imitation": self._train_imitation, "sim": self._train_sim, "dream": self._train_dream}[place](round_index)
        self._step += 1
        self.parts.append(self._gate(place, round_index))

    def evaluate(self) -> list[EpisodeResult]:
        """Evaluate the current policy on the seeds of `config.eval`."""
        results = self.eval_envs.run(self.policy, self.config.eval.seeds, partial(self._tick, "evaluation"))
        # Where the simulator is shared, this drops the recordings of the evaluation: the dream must not train on them.
        self.sim.record(self.dreams is not None)
        return results

    def save(self, folder: Path, readme: str) -> None:
        """Write the current policy as a checkpoint folder, with its world model if it has one."""
        config = self.config
        about = {"config": to_yaml(config)}
        if self.model is None:
            spec = {"spec": self.sim.spec.to_dict(), "stage": "rl", "policy": "gaussian"}
            save_checkpoint(folder, spec | about, policy_state(self.policy), readme)
            return
        demonstrations = EpisodeStore(find_checkpoint(config.checkpoint)).files()
        save_model(folder, self.model, "rl", config.checkpoint, about, readme, demonstrations)

    def close(self) -> None:
        """Close simulators and callbacks, with their worker processes."""
        self.callbacks.close()
        self.sim.close()
        self.eval_envs.close()

    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the run depends on; valid at safe points only."""
        return {
            "run": {name: getattr(self, name) for name in _STATE},
            "seconds": time.monotonic() - self._begun,
            "weights": dict(self.policy.state_dict()),
            "optimizer": self.ppo.optimizer.state_dict(),
            "generator": self.ppo.generator.get_state(),
            "sim": self.sim.state_dict() if self.sim.begun and not self.sim.alone else None,
            "arenas": [env.generator.get_state() for env in self.eval_envs.envs],  # old name: states on disk have it
            "imitation": None if self.imitation is None else self.imitation.collected(),
            "dreams": None if self.dreams is None else self.dreams.state_dict(),
            "callbacks": self.callbacks.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; an environment of Isaac Lab begins its episodes anew."""
        # States of older versions have no `n_updates`; their log used simulator steps as its axis.
        older = "n_updates" not in state["run"]
        if older and self.config.n_action_steps < self._chunk_size:
            raise UserError(
                f"n_action_steps={self.config.n_action_steps}: an older version began this run, whose ppo.n_steps "
                "and dream.horizon counted the executed parts of chunks; finish it there, or begin a new one"
            )
        for name, value in state["run"].items():
            setattr(self, name, value)
        if older:
            self.n_updates = self.sim_steps  # continue the axis where it ended
        self.real = self.real and self.real.to(self.sim.device)
        self._begun = time.monotonic() - state["seconds"]
        self.policy.load_state_dict(state["weights"])
        self.ppo.optimizer.load_state_dict(state["optimizer"])
        self.ppo.generator.set_state(state["generator"])
        if state["sim"] is not None:
            self.sim.load_state_dict(state["sim"])
        for env, generator in zip(self.eval_envs.envs, state["arenas"], strict=True):
            env.generator.set_state(generator)
        if self.imitation is not None:
            self.imitation.collect_again(state["imitation"])
        if self.dreams is not None:
            self.dreams.load_state_dict(state["dreams"])
        self.callbacks.load_state_dict(state.get("callbacks"))  # an older state has none

    def _n_decisions(self, n_chunks: int) -> int:
        return self.config.n_decisions(n_chunks, self._chunk_size)

    @property
    def _rollout_size(self) -> int:
        """Largest number of steps that a rollout in the simulator executes."""
        config = self.config
        return config.env.n_envs * self._n_decisions(config.ppo.n_steps) * config.n_action_steps

    def _check_budget(self) -> None:
        config, size = self.config, self._rollout_size
        if config.env.kind != "dream" and config.total_timesteps < size:
            raise UserError(
                f"total_timesteps={config.total_timesteps}: a rollout executes {size:,} steps (env.n_envs="
                f"{config.env.n_envs}, ppo.n_steps={config.ppo.n_steps} chunks of {self._chunk_size}); "
                "expected at least one; raise it, or lower env.n_envs or ppo.n_steps"
            )

    def _log(self, values: dict[str, float]) -> None:
        self.log(self.n_updates, {STEPS: self.sim_steps, **values})

    def _tick(self, doing: str, share: float) -> None:
        done = sum(self._work[: self._step], 0.0) + self._work[self._step] * min(share, 1.0)
        self.tick(done, sum(self._work, 0.0), doing)

    def _progress(self, share: float) -> None:
        """Set the progress that schedules read; `share` of the current part is done. Imitation parts do not count."""
        places = [place for i in range(self.config.n_rounds) for place in self.places(i)]
        done = sum(place != "imitation" for place in places[: self.n_places])
        n_parts = sum(place != "imitation" for place in places)
        self.ppo.progress_remaining = 1.0 - (done + min(max(share, 0.0), 1.0)) / n_parts

    def _make_eval_env(self, n_episodes: int) -> Simulator:
        """Build a simulator with the training rewards, for callbacks that evaluate."""
        if self.sim.alone:
            problem = "there can be only one simulator in a process, and PPO trains in it"
            raise UserError(f"{shown_name(self.config.env)}: {problem}; leave callbacks that evaluate out")
        tasks = tasks_of(self.config, self.model)
        n_envs = max(min(n_episodes, self.config.env.n_envs), len(tasks), 1)
        # No worker processes: a callback steps few environments, and workers would hold memory for the whole run.
        config = replace(self.config, env=replace(self.config.env, n_workers=0))
        return make_sim(config, self.model, tasks, n_envs, rewards=True)

    def _collect(self, env: BatchedEnv, n_steps: int, fresh: bool) -> Rollout:
        """Collect a rollout; if a callback ends it, set `stopped_by`, which ends the training."""
        rollout = self.callbacks.collect(env, n_steps, fresh, self.n_updates)
        if self.callbacks.stopped_by:
            self.stopped_by = self.callbacks.stopped_by
            self.say(f"callback {self.stopped_by!r} ended the training after {self.n_updates} updates")
        return rollout

    def _train_imitation(self, round_index: int) -> None:
        """Imitate the demonstrations of the trained tasks and the successes collected so far, without PPO."""
        self._tick(f"round {round_index + 1}, imitation", 0.0)
        self.ppo.imitate(self.config.ppo.imitation_steps)
        self.n_updates += 1

    def _train_sim(self, round_index: int) -> None:
        config = self.config
        rounds = [i for i in range(config.n_rounds) if "sim" in self.places(i)]
        begun, size = self.sim_steps, config.total_timesteps / len(rounds)
        goal = config.total_timesteps * (1 + rounds.index(round_index)) / len(rounds)
        # Round to the nearest rollout: short episodes make rollouts a little smaller than planned, and a small rest
        # should not cost a whole extra rollout.
        while goal - self.sim_steps > self._rollout_size / 2:
            self._tick(f"round {round_index + 1}, PPO in sim", (self.sim_steps - begun) / (goal - begun))
            self._progress(1 - (goal - self.sim_steps) / size)  # from planned sizes alone: the same after a resume
            rollout = self._collect_sim(self._n_decisions(config.ppo.n_steps))
            if self.stopped_by:
                break
            self._learn("sim", rollout)
            self.safe(False)

    def _train_dream(self, round_index: int) -> None:
        assert self.dreams is not None
        config, doing = self.config.dream, f"round {round_index + 1}, PPO in the dream"
        horizon = self._n_decisions(config.horizon)
        if not self.config.learns_from_dreams:
            # A control: as many optimizer steps as PPO would take, of imitation alone.
            n_batches = -(-config.n_envs * horizon // self.config.ppo.batch_size)
            self.ppo.imitate(config.n_updates * config.n_epochs * n_batches)
            self.n_updates += config.n_updates
            return
        # Measure the world model on new episodes before they are trained on, then refit it.
        refit = f"round {round_index + 1}, refit of the dream"
        self._tick(refit, 0.0)
        if (error := self.dreams.error()) is not None:
            self._log({"dream/error": error})
        self.dreams.refit(lambda share: self._tick(refit, share / 2))  # takes about as long as all updates together
        # Dreams begin where episodes of fresh seeds begin in the simulator.
        first = START.start + (1000 * self.config.seed + round_index) * config.n_starts
        dream = self.dreams.env(self.eval_envs.starts(range(first, first + config.n_starts)))
        n_rollouts = config.n_updates + self._critic_is_new
        for i in range(n_rollouts):
            self._tick(doing, (1 + i / (config.n_updates + 1)) / 2)
            self._progress(i / n_rollouts)
            rollout = self._collect(dream, horizon, fresh=True)
            if self.stopped_by:
                break
            seen = self.dreams.weigh(rollout, i)
            self._log({f"dream/{name}": value for name, value in seen.items()})
            if self.imitation is not None:
                self.imitation.add_successes(rollout, "dream")
            self._learn("dream", rollout)
        if self.imitation is not None:
            self.imitation.forget_dream()

    def _explore(self, n: int) -> None:
        """Collect `n` exploring episodes with the current policy, for the refit of the dream."""
        first = EXPLORE.start + self.explored
        results = self._recorded(range(first, first + n), "exploring", Exploring(self.policy, self.ppo.generator))
        self.explored += n
        self.sim_steps += sum(r.n_steps for r in results)

    def _collect_sim(self, n_steps: int) -> Rollout:
        rollout = self._collect(self.sim, n_steps, self.config.ppo.fresh_rollouts)
        self.sim_steps += int(rollout.n_executed.sum())
        if self.imitation is not None:
            self.imitation.add_successes(rollout, "sim")
        if self.dreams is not None:
            self.dreams.episodes += self.dreams.model.encode_episodes(self.sim.record(True))
            self.real = Samples.from_rollout(rollout, self.config.ppo.gamma, gae_lambda=1.0)
        return rollout

    def _learn(self, place: str, rollout: Rollout) -> None:
        """Update from a rollout; the first one of a run is used for the warm-up of the critic alone."""
        if not self._critic_is_new:
            self._update(place, rollout)
        else:
            variance = self.ppo.fit_critic(rollout, self.config.ppo.critic_warmup_steps)
            self._critic_is_new = False
            self._log({"critic/heldout_explained_variance": variance})
            self.say(f"critic: held-out explained variance {variance:.2f} on a first rollout in {place}")
        self.callbacks.dump()

    def _update(self, place: str, rollout: Rollout) -> None:
        samples = Samples.from_rollout(rollout, self.config.ppo.gamma, self.config.ppo.gae_lambda)
        if place == "dream":
            stats = self.ppo.update(
                samples, real=self.real, n_epochs=self.config.dream.n_epochs, ref_kl_coef=self.ref_kl_coef
            )
        else:
            stats = self.ppo.update(samples)
        self.n_updates += 1
        values = {f"train/{name}": value for name, value in stats.items()}
        success = rollout.success_rate(fresh=place == "dream" or self.config.ppo.fresh_rollouts)
        values[f"rollout/{place}_success"] = success
        if place == "dream" and self.dreams is not None:
            self.dreams.success = success
        values[f"rollout/{place}_reward"] = float(rollout.reward.mean())
        values |= {f"reward/{name}": value for name, value in rollout.terms.items()}
        self._log(values)

    def _gate(self, place: str, round_index: int) -> Part:
        """Compare challenger and champion, keep the accepted one, and return what the part gave."""
        gate, verdict = self.config.gate, None
        challenger = policy_state(self.policy)
        if gate.enabled and place in gate.places:
            verdict = judge(
                run_champion=partial(self._contest, self.champion),
                run_challenger=partial(self._contest, challenger),
                first_seed=gate.seed + self.gate_episodes,  # every gate uses fresh seeds
                block=gate.n_episodes,
                most=gate.max_episodes,
                alpha=gate.alpha / self.config.n_gates(self.imitation is not None),  # Bonferroni over all gates
                z_loss=gate.z_loss,
            )
            self.gate_episodes += verdict.n_episodes
            self.say(f"round {round_index + 1}, {place}: {verdict}")
            where = {f"in_{name}": place == name for name in ("imitation", "dream")}
            seen = vars(verdict) | where | {"episodes": self.gate_episodes}
            self._log({f"gate/{name}": float(value) for name, value in seen.items()})
            if place == "dream" and self.dreams is not None:
                self.dreams.judge(verdict)
        if verdict is None or verdict.accepted:
            self.champion = challenger
        elif place == "dream":
            # The dream misled the policy, so the next one must stay closer to the reference.
            self.ref_kl_coef *= self.config.dream.rollback_factor
        load_policy_state(self.policy, self.champion)
        return Part(
            place,
            verdict,
            self.champion,
            self.sim_steps,
            self.gate_steps,
            seconds=time.monotonic() - self._begun,
            n_updates=self.n_updates,
            rounds=self._rounds_after(place, round_index),
        )

    def _rounds_after(self, place: str, round_index: int) -> float:
        """Return the rounds finished after a part, a fraction within a round.

        Imitation counts as a part even if a control skips it, so that all runs share one axis.
        """
        places = self.config.places(round_index, can_imitate=True)
        return round_index + (places.index(place) + 1) / len(places)

    def _contest(self, weights: Weights, seeds: list[int]) -> list[EpisodeResult]:
        """Run the policy with `weights` on the gate's seeds."""
        load_policy_state(self.policy, weights)
        results = self._recorded(seeds, "gate", self.policy, self.config.gate.record)
        if self.sim.place == "sim":  # if gates run in a dream, no simulator step is executed
            self.gate_steps += sum(r.n_steps for r in results)
        return results

    def _recorded(self, seeds: Sequence[int], doing: str, policy: Acts, learn: bool = True) -> list[EpisodeResult]:
        """Run and record episodes; with `learn`, add them to the data of imitation and dream."""
        # Exploring has no work item of its own: it precedes the training of a part, whose progress begins at 0.
        tick = partial(self._tick, doing) if doing == "gate" else lambda share: self._tick(doing, 0.0)
        results, recorded = self.eval_envs.record(policy, seeds, tick)
        episodes = recorded if self.model is None else self.model.encode_episodes(recorded)
        if learn and self.imitation is not None:
            self.imitation.add_episodes(episodes, self.config.env.action_delay)
        if learn and self.dreams is not None:
            self.dreams.episodes += episodes
        return results

    def _evaluate_champions(self, outcome: Outcome) -> None:
        """Evaluate the champion after each part; a part that was rolled back has the results of the one before."""
        results = outcome.before
        # The number of evaluations is known only now, so replace the planned work.
        self._work[self._step :] = [1.0] * max(sum(part.accepted for part in outcome.parts), 1)
        for part in outcome.parts:
            if part.accepted:
                load_policy_state(self.policy, part.champion)
                results = self.evaluate()
                self._step = min(self._step + 1, len(self._work) - 1)
            part.evaluation = results
            # Not under `STEPS`: that curve has ended already, and these values would run it backwards.
            values = {"eval/success": success_rate(results), "eval/total_timesteps": part.sim_steps}
            self.log(part.n_updates, values | {"eval/rounds": part.rounds})
