"""The phases of a round: imitation, PPO in the simulator, PPO in the dream.

A phase trains the policy in place. It does not judge the result: the gate of the schedule in `rl.rounds.loop` does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rl.config import TrainConfig
from rl.envs.simulator import Simulator
from rl.policies.api import critic_state
from rl.ppo.buffer import Rollout, Samples
from rl.ppo.callbacks import RunCallbacks
from rl.ppo.imitation import Imitation
from rl.ppo.update import PPO
from rl.rounds.budget import rollout_size
from rl.rounds.dreams import Dreams
from rl.rounds.eval_envs import EvalEnvs
from rl.rounds.outcome import RunState
from rl.rounds.task_shares import TaskShares
from rl.seeds import START
from world_model.data.episodes import Episode
from world_model.dream_env import DreamEnv
from world_model.env import BatchedEnv


@dataclass(frozen=True)
class Hooks:
    """What a phase calls while it trains; the schedule provides the functions."""

    log: Callable[[dict[str, float]], None]  # called with the values of one row, by tag
    say: Callable[[str], None]  # called with a line of text for the user
    tick: Callable[[str, float], None]  # called with the name of the activity and the share of the phase that is done
    progress: Callable[[float], None]  # called with the share of the phase that is done, for the schedules of PPO
    safe: Callable[[], None]  # called where the state of the run is complete, so that it can be saved


class Phase(Protocol):
    """One phase of a round."""

    def train(self, round_index: int) -> None:
        """Train the policy in place, as round `round_index` (from 0) asks for, and update the state of the run."""


class Learner:
    """Rollouts and updates, as the phases in simulator and dream share them.

    The first rollout of a run with a new critic trains the critic alone.

    Args:
        config: of the run.
        ppo: of the run.
        callbacks: of the run; one of them may end the training.
        state: updated here are `n_updates`, `critic_is_new` and `stopped_by`.
        hooks: for log and messages.
        tasks: counts the success of each task.
        chunk_size: actions in a chunk, in which `ppo.n_steps` and `dream.horizon` count.
    """

    def __init__(
        self,
        config: TrainConfig,
        ppo: PPO,
        callbacks: RunCallbacks,
        state: RunState,
        hooks: Hooks,
        tasks: TaskShares,
        chunk_size: int,
    ) -> None:
        self.config, self.ppo, self.callbacks, self.state, self.hooks = config, ppo, callbacks, state, hooks
        self.tasks, self.chunk_size = tasks, chunk_size

    def collect(self, env: BatchedEnv, n_steps: int, fresh: bool) -> Rollout:
        """Collect a rollout of `n_steps` decisions per environment, with `fresh` from a reset.

        If a callback ends it, it is shorter, and `state.stopped_by` is set.
        """
        rollout = self.callbacks.collect(env, n_steps, fresh, self.state.n_updates)
        if self.callbacks.stopped_by:
            self.state.stopped_by = self.callbacks.stopped_by
            self.hooks.say(
                f"callback {self.state.stopped_by!r} ended the training after {self.state.n_updates} updates"
            )
        return rollout

    def learn(
        self,
        place: str,
        rollout: Rollout,
        fresh: bool,
        real: Samples | None = None,
        n_epochs: int | None = None,
        ref_kl_coef: float | None = None,
    ) -> float | None:
        """Learn from a rollout: warm up a new critic with it, or update the policy.

        Args:
            place: where it was collected, for the log: "sim" or "dream".
            rollout: of any number of steps.
            fresh: whether each of its environments began a new episode.
            real: samples of the simulator for the loss of the critic, see `PPO.update`.
            n_epochs: in place of `ppo.n_epochs`, if given.
            ref_kl_coef: in place of `ppo.ref_kl_coef`, if given.

        Returns:
            The success rate of the rollout, or None if it was used for the critic alone.

        Raises:
            BadNumbers: a sample, loss or gradient is not finite.
        """
        success = None
        of_tasks = self.tasks.count(place, rollout, fresh)
        if self.state.critic_is_new:
            self._warm_up_critic(place, rollout)
        else:
            config = self.config.ppo
            samples = Samples.from_rollout(rollout, config.gamma, config.gae_lambda)
            stats = self.ppo.update(samples, real=real, n_epochs=n_epochs, ref_kl_coef=ref_kl_coef)
            self.state.n_updates += 1
            success = rollout.success_rate(fresh, self.ppo.distributed.sum)
            self._log_update(place, rollout, stats, of_tasks | {f"rollout/{place}_success": success})
        self.callbacks.dump()
        return success

    def _warm_up_critic(self, place: str, rollout: Rollout) -> None:
        variance = self.ppo.fit_critic(rollout, self.config.ppo.critic_warmup_steps)
        self.state.critic_is_new = False
        # If this phase is rolled back, the next one begins with the trained critic, which does not act.
        self.state.champion.update(critic_state(self.ppo.policy))
        self.hooks.log({"critic/heldout_explained_variance": variance})
        self.hooks.say(f"critic: held-out explained variance {variance:.2f} on a first rollout in {place}")

    def _log_update(self, place: str, rollout: Rollout, stats: dict[str, float], success: dict[str, float]) -> None:
        values = {f"train/{name}": value for name, value in stats.items()} | success
        seen = {f"rollout/{place}_reward": float(rollout.reward.mean())}
        seen |= {f"reward/{name}": value for name, value in rollout.terms.items()}
        self.hooks.log(values | self.ppo.distributed.mean(seen))


class ImitationPhase:
    """Imitation of the demonstrations of the trained tasks and of the successes collected so far, without PPO.

    Args:
        n_steps: optimizer steps.
        ppo: of the run; it holds the imitation loss.
        state: updated here is `n_updates`.
        hooks: for the display.
    """

    def __init__(self, n_steps: int, ppo: PPO, state: RunState, hooks: Hooks) -> None:
        self.n_steps, self.ppo, self.state, self.hooks = n_steps, ppo, state, hooks

    def train(self, round_index: int) -> None:
        """Take all optimizer steps; they count as one update."""
        self.hooks.tick(f"round {round_index + 1}, imitation", 0.0)
        self.ppo.imitate(self.n_steps)
        self.state.n_updates += 1


class SimPhase:
    """PPO in the simulator, for an equal share of `total_timesteps` in each round that has this phase.

    Args:
        config: of the run.
        sim: the simulator to train in.
        learner: collects the rollouts and learns from them.
        imitation: keeps the successes of the rollouts; None: they are not imitated.
        keep_episodes: called with the episodes that ended in a rollout; None: the run has no dream that needs them.
        state: updated here are `sim_steps` and `real`.
        hooks: for progress and safe points.
    """

    def __init__(
        self,
        config: TrainConfig,
        sim: Simulator,
        learner: Learner,
        imitation: Imitation | None,
        keep_episodes: Callable[[list[Episode]], None] | None,
        state: RunState,
        hooks: Hooks,
    ) -> None:
        self.config, self.sim, self.learner, self.imitation = config, sim, learner, imitation
        self.keep_episodes, self.state, self.hooks = keep_episodes, state, hooks

    def train(self, round_index: int) -> None:
        """Alternate rollouts and updates until the steps planned for this and all earlier rounds are executed."""
        config, state, chunk_size = self.config, self.state, self.learner.chunk_size
        rounds = [i for i in range(config.n_rounds) if "sim" in config.places(i, can_imitate=True)]
        begun, size = state.sim_steps, config.total_timesteps / len(rounds)
        goal = config.total_timesteps * (1 + rounds.index(round_index)) / len(rounds)
        # Round to the nearest rollout: short episodes make rollouts a little smaller than planned, and a small rest
        # should not cost a whole extra rollout.
        while goal - state.sim_steps > rollout_size(config, chunk_size) / 2:
            done = (state.sim_steps - begun) / (goal - begun)
            self.hooks.tick(f"round {round_index + 1}, PPO in sim", done)
            self.hooks.progress(1 - (goal - state.sim_steps) / size)  # from planned sizes: the same after a resume
            rollout = self.collect(config.n_decisions(config.ppo.n_steps, chunk_size))
            if state.stopped_by:
                break
            self.learner.learn("sim", rollout, fresh=config.ppo.fresh_rollouts)
            self.hooks.safe()

    def collect(self, n_steps: int) -> Rollout:
        """Collect a rollout of `n_steps` decisions per environment, and keep what imitation and dream use of it."""
        config = self.config.ppo
        rollout = self.learner.collect(self.sim, n_steps, config.fresh_rollouts)
        self.state.sim_steps += int(self.learner.ppo.distributed.sum(rollout.n_executed.sum()))
        if self.imitation is not None:
            self.imitation.add_successes(rollout, "sim")
        if self.keep_episodes is not None:
            self.keep_episodes(self.sim.record(True))
            self.state.real = Samples.from_rollout(rollout, config.gamma, gae_lambda=1.0)
        return rollout


class DreamPhase:
    """PPO in the dream, after a refit of the world model on the episodes recorded so far.

    Args:
        config: of the run.
        dreams: the dream to train in, and its episodes.
        eval_envs: give the first states of real episodes, in which dreams begin.
        learner: collects the rollouts and learns from them.
        imitation: keeps the dreamed successes for the duration of this phase; None: they are not imitated.
        state: read here are `real` and `ref_kl_coef`; a control updates `n_updates`.
        hooks: for log and progress.
    """

    def __init__(
        self,
        config: TrainConfig,
        dreams: Dreams,
        eval_envs: EvalEnvs,
        learner: Learner,
        imitation: Imitation | None,
        state: RunState,
        hooks: Hooks,
    ) -> None:
        self.config, self.dreams, self.eval_envs, self.learner = config, dreams, eval_envs, learner
        self.imitation, self.state, self.hooks = imitation, state, hooks

    def train(self, round_index: int) -> None:
        """Refit the dream, then alternate rollouts and `dream.n_updates` updates in it.

        A control whose losses use no dreamed rollout does not dream, see `imitate_instead`.

        Raises:
            UserError: a trust signal failed, or the trust of the model was never calibrated, see `Dreams`.
            BadNumbers: all chunks of a rollout got weight 0, or an update met a value that is not finite.
        """
        if not self.config.learns_from_dreams:
            self.imitate_instead()
            return
        if self.config.dream.imitation_steps:
            self.hooks.tick(f"round {round_index + 1}, imitation", 0.0)
            self.learner.ppo.imitate(self.config.dream.imitation_steps)
            # Else the KL penalty would pull the policy back to what it was before it imitated.
            self.learner.ppo.policy.set_reference()
        self._refit(f"round {round_index + 1}, refit of the dream")
        self._train_in(self._dream(round_index), f"round {round_index + 1}, PPO in the dream")
        if self.imitation is not None:
            self.imitation.forget_dream()

    def imitate_instead(self) -> None:
        """For a control: take as many optimizer steps as PPO would, of imitation alone."""
        config = self.config.dream
        n_batches = -(-config.n_envs * self._horizon // self.config.ppo.batch_size)  # rounded up
        self.learner.ppo.imitate(config.n_updates * config.n_epochs * n_batches)
        self.state.n_updates += config.n_updates

    @property
    def _horizon(self) -> int:
        """Decisions per environment in a dreamed rollout."""
        return self.config.n_decisions(self.config.dream.horizon, self.learner.chunk_size)

    def _refit(self, doing: str) -> None:
        """Measure the world model on new episodes before they are trained on, then refit it."""
        self.hooks.tick(doing, 0.0)
        if (error := self.dreams.error()) is not None:
            self.hooks.log({"dream/error": error})
        # The first refit takes about as long as all updates together, so a refit is half of the phase.
        self.dreams.refit(lambda share: self.hooks.tick(doing, share / 2))

    def _dream(self, round_index: int) -> DreamEnv:
        """Build the dream, which begins where episodes of fresh seeds begin in the simulator."""
        n_starts = self.config.dream.n_starts
        block = (1000 * self.config.seed + round_index) % (len(START) // n_starts)
        first = START.start + block * n_starts
        return self.dreams.env(self.eval_envs.starts(range(first, first + n_starts)))

    def _train_in(self, dream: DreamEnv, doing: str) -> None:
        config, state = self.config.dream, self.state
        n_rollouts = config.n_updates + state.critic_is_new  # one more for the warm-up of a new critic
        for i in range(n_rollouts):
            self.hooks.tick(doing, (1 + i / (config.n_updates + 1)) / 2)
            self.hooks.progress(i / n_rollouts)
            self.learner.tasks.steer_dream(dream)
            rollout = self.learner.collect(dream, self._horizon, fresh=True)
            if state.stopped_by:
                break
            seen = self.dreams.weigh(rollout, i)
            self.hooks.log({f"dream/{name}": value for name, value in seen.items()})
            if self.imitation is not None:
                self.imitation.add_successes(rollout, "dream")
            success = self.learner.learn(
                "dream",
                rollout,
                fresh=True,
                real=state.real,
                n_epochs=config.n_epochs,
                ref_kl_coef=state.ref_kl_coef,
            )
            if success is not None:
                self.dreams.success = success


def make_phases(
    config: TrainConfig,
    sim: Simulator,
    dreams: Dreams | None,
    eval_envs: EvalEnvs,
    learner: Learner,
    imitation: Imitation | None,
    keep_episodes: Callable[[list[Episode]], None] | None,
) -> dict[str, Phase]:
    """Return the phases that a run can have, by name; the arguments are those of their classes."""
    state, hooks = learner.state, learner.hooks
    phases: dict[str, Phase] = {
        "imitation": ImitationPhase(config.ppo.imitation_steps, learner.ppo, state, hooks),
        "sim": SimPhase(config, sim, learner, imitation, keep_episodes, state=state, hooks=hooks),
    }
    if dreams is not None:
        phases["dream"] = DreamPhase(config, dreams, eval_envs, learner, imitation, state=state, hooks=hooks)
    return phases
