"""Post-training in rounds: the schedule of phases, a gate after each of them, and an evaluation of every champion."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rewards.errors import UserError
from rl.build import device_of, make_denoiser, make_policy, make_sim, save_policy, tasks_of
from rl.compose import to_yaml
from rl.config import TrainConfig
from rl.envs.names import shown_name
from rl.envs.simulator import Simulator
from rl.policies.api import Denoiser, Policy, load_policy_state, policy_state
from rl.ppo.callbacks import RunCallbacks
from rl.ppo.distributed import Distributed
from rl.ppo.imitation import Imitation
from rl.ppo.precision import matmul_precision
from rl.ppo.update import PPO
from rl.rounds.budget import block_of, checked_plan, pairs_of_gate
from rl.rounds.dreams import Dreams
from rl.rounds.eval_envs import EvalEnvs, count_simulators
from rl.rounds.evaluate import EpisodeResult, logged
from rl.rounds.exploring import BorrowedTasks, explore
from rl.rounds.gate import Dreamed, Side, Verdict, judge
from rl.rounds.guard import Guard
from rl.rounds.outcome import STEPS, Outcome, PhaseResult, RunState, Weights
from rl.rounds.phases import Hooks, Learner, make_phases
from rl.rounds.process_share import share_of, tasks_from
from rl.rounds.process_state import ProcessState
from rl.rounds.shared_state import SharedState
from rl.rounds.task_shares import TaskShares
from rl.rounds.trial import try_rewards, try_signals
from rl.rounds.twins import make_twins
from rl.rounds.work import Work
from rl.seeds import GUARD
from rl.world_models import save_world_model, world_model_of
from world_model.api import WorldModel
from world_model.data.episodes import Episode

Log = Callable[[int, dict[str, float]], None]


class PostTraining:
    """One run of `wamtune train`, from a start policy to an evaluated champion.

    Each round has phases (imitation, sim, dream). A phase trains the champion further; the result is the challenger.
    The gate keeps the challenger or restores the champion. A state saved at a safe point resumes the run bit for bit,
    in this process or another.

    Args:
        config: of the run.
        model: the world model, which dreams; our own also holds the policy `flow`. None: the run needs none.
        demonstrations: episodes for the anchor, may be empty; None: no imitation, of collected successes neither.
        folder: run folder, in which callbacks write.
        denoiser: acts, if the policy `flow` is trained in the dream of another world model; None: as the config says.
        distributed: the processes that do the run together, each with its share; None: there is one process.
        built: called with the finished share of what takes minutes to build, see `Request.tick`.

    The caller may replace these attributes before a run:

    * `log` is called with (updates so far, values); `time/total_timesteps` in them are the executed simulator steps.
    * `say` is called with a line of text for the user.
    * `tick` is called with (work done, total work, name of the current activity).
    * `safe` is called at safe points, where `state_dict` is complete; True: a phase has ended, False: only a rollout.
    * `phases` holds the phases that the run can have, by name; what is in it is what a round runs.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: WorldModel | None,
        demonstrations: list[Episode] | None,
        folder: Path = Path(),
        denoiser: Denoiser | None = None,
        distributed: Distributed | None = None,
        built: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.config, self.model = config, model
        self.distributed = distributed = distributed or Distributed()
        self._own = own = share_of(config, distributed)  # with the sizes and the seed of this process
        self.log: Log = lambda step, values: None
        self.say: Callable[[str], None] = print
        self.tick: Callable[[float, float, str], None] = lambda done, total, doing: None
        self.safe: Callable[[bool], None] = lambda ended: None
        self._chunk_size = config.n_action_steps if model is None else model.chunk_size
        tasks = tasks_of(config, model)
        self._n_tasks = len(tasks) or 1
        self.budget_plan = self._plan_budget(can_imitate=demonstrations is not None)  # in words
        torch.manual_seed(config.seed)  # for a policy that begins with random weights
        # None: the policy is made of the model, or a new Gaussian MLP.
        self.denoiser = denoiser or make_denoiser(config.actor, device_of(config), config.n_action_steps)
        own_tasks = tasks_from(tasks, distributed.rank * own.env.n_envs)  # each as often in all processes together
        self.sim = make_sim(own, model, own_tasks, own.env.n_envs, rewards=True, denoiser=self.denoiser, tick=built)
        self.eval_envs = EvalEnvs(own, model, tasks, self.sim, self.denoiser, distributed)
        self.policy = make_policy(config, model, self.sim, self.denoiser)
        self.imitation = None if demonstrations is None else self._make_imitation(demonstrations)
        loss = None if self.imitation is None else self.imitation.loss
        self.ppo = PPO(self.policy, own.ppo, loss, own.seed, distributed)
        self.callbacks = self._make_callbacks(folder)
        self.state = RunState(
            champion=policy_state(self.policy),
            ref_kl_coef=config.dream.ref_kl_coef,
            # Without policy gradient (a control) no critic is needed, so no rollout is spent on its warm-up.
            critic_is_new=config.ppo.critic_warmup_steps > 0 and config.ppo.pg_coef > 0,
        )
        self._process_state = ProcessState(self.ppo, self.sim, self.eval_envs, self.imitation, self.state)
        # Build the dream before anything runs, so that a reward term that it cannot compute fails at once.
        self.dreams = None
        if config.env.kind != "sim" and model is not None:
            self.dreams = Dreams(own, model, self.policy.images, distributed)
        self.sim.record(self.dreams is not None)
        self.twins = make_twins(config, self.dreams, self.eval_envs, self.sim, self.policy)
        # The caller may replace `say` and `safe`, so they are looked up at each call.
        self._hooks = Hooks(
            log=self._log,
            say=lambda line: self.say(line),
            tick=self._tick,
            progress=self._progress,
            safe=lambda: self.safe(False),
        )
        self.tasks = TaskShares(self.sim.spec.tasks, tasks, config.steer, self.state, distributed)
        self.learner = Learner(config, self.ppo, self.callbacks, self.state, self._hooks, self.tasks, self._chunk_size)
        # Imitation takes the successes from the rollout instead.
        keep = None if self.dreams is None else partial(self.add_episodes, imitate=False)
        self.phases = make_phases(config, self.sim, self.dreams, self.eval_envs, self.learner, self.imitation, keep)
        distributed.copy_from_first(dict(self.policy.state_dict()))
        self._begun, self._work = time.monotonic(), Work()

    def phases_of(self, round_index: int) -> list[str]:
        """Return the names of the phases of a round, in order."""
        return self.config.places(round_index, self.imitation is not None)

    def run(self, before: list[EpisodeResult] | None = None) -> Outcome:
        """Evaluate, train, and evaluate every champion on the same seeds; `before` replaces the first evaluation."""
        state = self.state
        todo = self._schedule()
        self._work.plan([name for name, _ in todo], self.config.gate.places if self.config.gate.enabled else ())
        if not state.before:
            if before is None:
                # Call every plug-in once, so that a bug in one shows before anything is measured.
                starts = try_rewards(self.config, self.model, self.sim, self.dreams is not None)
                if self.dreams is not None:
                    try_signals(self.dreams, self.ppo, starts)
            state.before = before or self.evaluate()
            self.log(0, {**logged(state.before), "eval/total_timesteps": 0, "eval/rounds": 0.0})
            self.safe(True)
        self.callbacks.begin(total_timesteps=self.config.total_timesteps, tb_log_name=self.config.name)
        while state.n_phases < len(todo) and not state.stopped_by:
            self._work.begin_phase(state.n_phases)
            self._run_phase(*todo[state.n_phases])
            state.n_phases, state.under_way = state.n_phases + 1, False
            self.safe(True)
        self.callbacks.end()
        outcome = Outcome(
            before=state.before,
            results=state.results,
            sim_steps=state.sim_steps,
            gate_steps=state.gate_steps,
            n_updates=state.n_updates,
            stopped_by=state.stopped_by,
        )
        # Champions are evaluated only now: these seeds must not influence the training.
        self.evaluate_champions(outcome)
        load_policy_state(self.policy, state.champion)
        if self.config.evaluated_noise:
            outcome.with_noise = self.evaluate(self.config.evaluated_noise)
        return outcome

    def gate(self, phase: str, round_index: int) -> PhaseResult:
        """Compare challenger and champion after a phase, keep the accepted one, and return what the phase gave."""
        config, state, verdict = self.config.gate, self.state, None
        challenger = policy_state(self.policy)
        if config.enabled and phase in config.places:
            verdict = self._judged(challenger)
            self._report(verdict, phase, round_index)
            if phase == "dream" and self.dreams is not None:
                self.dreams.update_gap(verdict)
        if verdict is None or verdict.accepted:
            state.champion = challenger
        elif phase == "dream":
            # The dream misled the policy, so the next one must stay closer to the reference.
            state.ref_kl_coef *= self.config.dream.rollback_factor
        load_policy_state(self.policy, state.champion)
        return PhaseResult(
            phase,
            verdict,
            state.champion,
            state.sim_steps,
            state.gate_steps,
            seconds=time.monotonic() - self._begun,
            n_updates=state.n_updates,
            rounds=self._rounds_after(phase, round_index),
        )

    def dream_for_gate(self, weights: Weights, seeds: list[int]) -> Dreamed:
        """Dream the twins of episodes of the gate, and others, with the policy of `weights`."""
        load_policy_state(self.policy, weights)
        assert self.twins is not None
        return self.twins.dream(self.policy, seeds)

    def run_for_gate(
        self, weights: Weights, seeds: list[int], tasks: Sequence[str] | None = None
    ) -> list[EpisodeResult]:
        """Run the policy with `weights` on seeds of the gate; with `gate.record`, keep the episodes as data.

        With `tasks` all seeds run in each of these.
        """
        load_policy_state(self.policy, weights)
        config = self.config.gate
        n_before = config.max_episodes if tasks else seeds[0] - config.seed - self.state.gate_episodes

        def tick(share: float) -> None:
            self._tick("gate", (n_before + share * len(seeds)) / config.max_episodes)

        results = self.record_episodes(self.policy, seeds, tick, config.record, tasks)
        if self.sim.place == "sim":  # if gates run in a dream, no simulator step is executed
            self.state.gate_steps += sum(r.n_steps for r in results)
        return results

    def evaluate(self, obs_noise: float = 0.0) -> list[EpisodeResult]:
        """Evaluate the current policy on the seeds of `config.eval`, with at least this noise on observations."""
        with self.eval_envs.with_noise(obs_noise):
            results = self.eval_envs.run(self.policy, self.config.eval.seeds, partial(self._tick, "evaluation"))
        # Where the simulator is shared, this drops the recordings of the evaluation: the dream must not train on them.
        self.sim.record(self.dreams is not None)
        return results

    def evaluate_champions(self, outcome: Outcome) -> None:
        """Evaluate the champion after each phase; a phase that was rolled back has the results of the one before."""
        evaluation = outcome.before
        n_more = int(self.config.evaluated_noise > 0)
        self._work.begin_evaluations(sum(result.accepted for result in outcome.results) + n_more)
        for result in outcome.results:
            if result.accepted:
                load_policy_state(self.policy, result.champion)
                evaluation = self.evaluate()
                self._work.go_on()
            result.evaluation = evaluation
            # Not under `STEPS`: that curve has ended already, and these values would run it backwards.
            values = {**logged(evaluation), "eval/total_timesteps": result.sim_steps}
            self.log(result.n_updates, values | {"eval/rounds": result.rounds})

    def record_episodes(
        self,
        policy: Policy,
        seeds: Sequence[int],
        tick: Callable[[float], None],
        learn: bool = True,
        tasks: Sequence[str] | None = None,
    ) -> list[EpisodeResult]:
        """Run and record the episodes of `seeds`; with `learn`, add them to the data of imitation and dream.

        `tick` is called with the share of the episodes that have ended; `tasks` as in `EvalEnvs.run`.
        """
        results, episodes = self.eval_envs.record(policy, seeds, tick, tasks)
        if learn:
            self.add_episodes(episodes, self.config.env.action_delay)
        return results

    def add_episodes(self, episodes: list[Episode], delay: int = 0, imitate: bool = True) -> None:
        """Add episodes of this process to the data of the dream's refit and, with `imitate`, to those of imitation.

        A dream is refitted on the episodes of all processes.
        `delay` is the number of steps between the command and the execution of an action, see `Imitation.add_episodes`.
        """
        recorded = episodes
        if self.model is not None:
            episodes = self.model.encode_episodes(episodes)  # once: images take more memory than their latents
        if imitate and self.imitation is not None:
            self.imitation.add_episodes(recorded if self.policy.images else episodes, delay)
        if self.dreams is not None:
            self.dreams.episodes += self.distributed.gather(episodes)

    def save(self, folder: Path, readme: str, metrics: dict[str, Any] | None = None) -> None:
        """Write the current policy as a checkpoint folder, and beside it the world model if that is another network.

        `metrics` are its measurements, as in the config of a checkpoint of `wamtune tune`.
        """
        config = self.config
        about: dict[str, Any] = {"config": to_yaml(config), **({"metrics": metrics} if metrics else {})}
        save_policy(folder, config, self.policy, about, readme)
        if (apart := self.world_model_apart) is not None:
            card = f"# {config.name}\n\nThe world model in whose dreams the policy in {folder.name} was trained.\n"
            save_world_model(world_model_of(folder), apart, config.dream, config.checkpoint, about, card)

    @property
    def world_model_apart(self) -> WorldModel | None:
        """The world model, if there is one and it is another network than the policy; else None."""
        is_policy = self.denoiser is None and self.config.actor.func == "flow"
        return None if is_policy else self.model

    def close(self) -> None:
        """Close simulators and callbacks, with their worker processes."""
        self.callbacks.close()
        self.sim.close()
        self.eval_envs.close()

    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the run depends on; valid at safe points only.

        All processes must call it. The result in process 0 has what is different in each of them, and is to be saved.
        """
        own = self._process_state.state_dict()
        return {
            **self._shared_state().state_dict(),
            "seconds": time.monotonic() - self._begun,
            **own,
            "others": self.distributed.gather_to_first(own)[1:],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned in process 0, also in an older version.

        With another number of processes the run goes on from the champion. An environment of Isaac Lab begins its
        episodes anew.

        Raises:
            UserError: an older version began the run, and counted its chunks in another way.
        """
        self._shared_state().load_state_dict(state)
        self._begun = time.monotonic() - state["seconds"]
        parts = [state, *state.get("others", [])]
        if len(parts) == self.distributed.world_size:
            self._process_state.load_state_dict(parts[self.distributed.rank])
        else:
            self.say(
                f"the saved state is that of {len(parts)} processes, and there are {self.distributed.world_size} now: "
                "the run goes on from its champion, with new episodes"
            )
            self._process_state.go_on_from_champion(parts)

    def _shared_state(self) -> SharedState:
        return SharedState(
            chunk_size=self._chunk_size,
            n_action_steps=self.config.n_action_steps,
            ppo=self.ppo,
            denoiser=self.denoiser,
            world_model=self.world_model_apart,
            dreams=self.dreams,
            callbacks=self.callbacks,
            state=self.state,
        )

    def _schedule(self) -> list[tuple[str, int]]:
        """Return the name and the round of every phase of the run, in order."""
        return [(name, i) for i in range(self.config.n_rounds) for name in self.phases_of(i)]

    def _plan_budget(self, can_imitate: bool) -> str:
        n_simulators = count_simulators(self.config, self._n_tasks)
        return checked_plan(self.config, self._chunk_size, self._n_tasks, n_simulators, can_imitate)

    def _judged(self, challenger: Weights) -> Verdict:
        """Judge a challenger against the champion, on episodes that no gate has used."""
        config, state = self.config.gate, self.state
        n_simulators = len(self.eval_envs.envs)  # one for each task, or one that has the episodes of all
        most, n_guard = self._most_pairs(n_simulators)
        verdict = judge(
            champion=self._side(state.champion),
            challenger=self._side(challenger),
            first_seed=config.seed + state.gate_episodes,  # every gate uses fresh seeds
            block=block_of(self.config, n_simulators),
            most=most // n_simulators * n_simulators or most,  # every task equally often
            alpha=config.alpha / self.config.n_gates(self.imitation is not None),  # Bonferroni over all gates
            z_loss=config.z_loss,
            cycle=n_simulators,
            guard=self._guard(challenger, n_guard) if n_simulators > 1 and n_guard > 0 else None,
        )
        state.gate_episodes += verdict.n_episodes
        return verdict

    def _report(self, verdict: Verdict, phase: str, round_index: int) -> None:
        """Print and log a verdict."""
        self.say(f"round {round_index + 1}, {phase}: {verdict}")
        where = {f"in_{name}": float(phase == name) for name in ("imitation", "dream")}
        seen = verdict.numbers() | where | {"episodes": float(self.state.gate_episodes)}
        self._log({f"gate/{name}": value for name, value in seen.items()})

    def _side(self, weights: Weights) -> Side:
        """Return how the gate runs the policy with `weights`."""
        # A twin has the success that the dream shows, which says nothing if the simulator reports none.
        has_success = all(result.has_success for result in self.state.before)
        dream = partial(self.dream_for_gate, weights) if self.twins is not None and has_success else None
        return Side(partial(self.run_for_gate, weights), dream)

    def _guard(self, challenger: Weights, n_pairs: int) -> Guard:
        """Return the guard of the next gate, with fresh seeds."""
        config, gates = self.config.gate, self.config.n_gates(self.imitation is not None)
        n_before = sum(result.verdict is not None for result in self.state.results)
        return Guard(
            champion=partial(self.run_for_gate, self.state.champion),
            challenger=partial(self.run_for_gate, challenger),
            first_seed=GUARD.start + n_before * config.n_guard,
            n_pairs=n_pairs,
            alpha=config.alpha / gates,
        )

    def _most_pairs(self, n_simulators: int) -> tuple[int, int]:
        """Return the pairs that this gate may use, and those of each task for its guard: its share of the budget."""
        config = self.config.gate
        if self.sim.place != "sim":  # gates that run in a dream use no real episodes
            return config.max_episodes, config.n_guard
        n_gates = sum(name in config.places for name, _ in self._schedule()[self.state.n_phases :])  # and those to come
        return pairs_of_gate(self.config, self._chunk_size, self._n_tasks, self.state, n_gates, n_simulators)

    def _make_callbacks(self, folder: Path) -> RunCallbacks:
        name = self.config.name
        return RunCallbacks(
            self.config.callbacks,
            ppo=self.ppo,
            env=self.sim,
            make_eval_env=self._make_eval_env,
            folder=folder,
            log=self._log,
            save=lambda path: self.save(path, f"# {name}\n\nAfter {self.state.n_updates:,} updates.\n"),
        )

    def _make_imitation(self, demonstrations: list[Episode]) -> Imitation:
        ppo = self.config.ppo
        if self.denoiser is not None and self.config.demonstrations:
            spec = replace(self.policy.spec, features=dict(self.denoiser.reads))
            for i, episode in enumerate(demonstrations):
                episode.check_fits(spec, f"demonstrations={self.config.demonstrations}: episode {i}")
        return Imitation(
            self.policy,
            demonstrations,
            demo_coef=ppo.bc_coef,
            sim_coef=ppo.success_bc_coef,
            dream_coef=self.config.dream.success_bc_coef,
            batch_size=self._own.ppo.bc_batch_size,
            distributed=self.distributed,
        )

    def _make_eval_env(self, n_episodes: int) -> Simulator:
        """Build a simulator with the training rewards, for callbacks that evaluate."""
        if self.sim.alone:
            problem = "there can be only one simulator in a process, and PPO trains in it"
            raise UserError(f"{shown_name(self.config.env)}: {problem}; leave callbacks that evaluate out")
        tasks = tasks_of(self.config, self.model)
        n_envs = max(min(n_episodes, self.config.env.n_envs), len(tasks), 1)
        # No worker processes: a callback steps few environments, and workers would hold memory for the whole run.
        return make_sim(self.config, self.model, tasks, n_envs, rewards=True, denoiser=self.denoiser, n_workers=0)

    def _run_phase(self, name: str, round_index: int) -> None:
        """Train in one phase and run the gate; after a resume, go on with the phase that had begun."""
        if not self.state.under_way:
            names = self.phases_of(round_index)
            dreams = self.dreams if "dream" in names else None
            # Once per round, before its first phase: collect episodes for the refit of the dream.
            if dreams is not None and not dreams.are_over and name == names[0]:
                self._explore(dreams)
            if dreams is not None and dreams.are_over and name == "dream":
                self.say(f"round {round_index + 1}: the gap widens, there are no more dreams in this run")
                return
            if name == "sim":
                self.tasks.steer_sim(self.sim)
            self.policy.set_reference()  # the KL penalty measures the distance from the start of this phase
            self.state.under_way = True
        self._progress(0.0)
        with matmul_precision(self.config.matmul_precision):
            self.phases[name].train(round_index)
        self._work.go_on()
        self.state.results.append(self.gate(name, round_index))

    def _explore(self, dreams: Dreams) -> None:
        """Collect episodes that explore, for the refit of the dream."""
        config, borrowed = self.config, None
        if config.dream.explore_as == "known" and self.model is not None:
            borrowed = BorrowedTasks(config, self.model, tasks_of(config, self.model), dreams, self.state)
        explore(config, self.ppo, self.state, self.record_episodes, self._hooks, borrowed)

    def _rounds_after(self, phase: str, round_index: int) -> float:
        """Return the rounds finished after a phase, a fraction within a round.

        Imitation counts as a phase even if a control skips it, so that all runs share one axis.
        """
        phases = self.config.places(round_index, can_imitate=True)
        return round_index + (phases.index(phase) + 1) / len(phases)

    def _log(self, values: dict[str, float]) -> None:
        self.log(self.state.n_updates, {STEPS: self.state.sim_steps, **values})

    def _tick(self, doing: str, share: float) -> None:
        self.tick(*self._work.done(share), doing)

    def _progress(self, share: float) -> None:
        """Set the progress that schedules read; `share` of the current phase is done. Imitation does not count."""
        phases = [name != "imitation" for name, _ in self._schedule()]
        done, n_phases = sum(phases[: self.state.n_phases]), sum(phases)
        self.ppo.progress_remaining = 1.0 - (done + min(max(share, 0.0), 1.0)) / n_phases
