"""The exploring before a dream: episodes of the simulator with the noise of exploration, to refit and to imitate.

On a task that its checkpoint was never trained on, a policy hardly touches the object, and noise does not change that.
What it does on the tasks that it knows is often closer to what is needed. So with `dream.explore_as=known` such an
episode acts as on another task, with the sentence or the number of that task, until one has succeeded. These tasks are
what options are in reinforcement learning (Sutton, Precup and Singh, 1999): each explores another part of the states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice

from torch import Tensor

from rl.build import make_rewards
from rl.config import TrainConfig
from rl.policies.api import Policy
from rl.ppo.update import PPO
from rl.rounds.corrections import step_rewards
from rl.rounds.dreams import Dreams
from rl.rounds.evaluate import EpisodeResult, Exploring
from rl.rounds.noise import fit_noise
from rl.rounds.outcome import RunState
from rl.rounds.phases import Hooks
from rl.seeds import EXPLORE
from world_model.api import WorldModel
from world_model.dream_env import DreamEnv
from world_model.env import Obs

Record = Callable[[Policy, Sequence[int], Callable[[float], None]], list[EpisodeResult]]
"""Called with (policy, seeds, tick): runs these episodes, keeps their recordings as data, and returns the results."""

N_BEST = 10
"""Tasks that are acted as again, once each has been tried: those with the highest returns."""


def explore(
    config: TrainConfig,
    ppo: PPO,
    state: RunState,
    record: Record,
    hooks: Hooks,
    borrowed: BorrowedTasks | None = None,
) -> None:
    """Collect `dream.n_episodes` episodes with the noise of exploration, on fresh seeds, for the refit of a dream.

    Their steps count as training; `state.explored` and `state.sim_steps` are updated. With `dream.noise_keeps` the
    first half of them has no noise, and the noise of the policy is set to what both halves show. With `borrowed`,
    episodes of unseen tasks act as on known ones.
    """
    n_episodes, keeps = config.dream.n_episodes, config.dream.noise_keeps
    first = EXPLORE.start + state.explored
    seeds = range(first, first + n_episodes)
    plans = {} if borrowed is None else borrowed.plans(n_episodes)

    def run(acting: Policy, part: range) -> list[EpisodeResult]:
        if borrowed is not None and plans:
            acting = _Borrowing(acting, lambda task, seed: borrowed.index(plans, task, seed, seeds))
        # Exploring has no work item of its own: it precedes the training of a phase, whose progress begins at 0.
        results = record(acting, part, lambda share: hooks.tick("exploring", 0.0))
        state.sim_steps += sum(result.n_steps for result in results)
        return results

    n_without = 0 if keeps is None else n_episodes // 2
    without = run(ppo.policy, seeds[:n_without]) if n_without else []
    exploring = run(Exploring(ppo.policy, ppo.generator), seeds[n_without:])
    if borrowed is not None:
        borrowed.count(plans, seeds)
    state.explored += n_episodes
    if keeps is not None and without:
        fitted = fit_noise(ppo.policy.noise_std, without, exploring, keeps, config.ppo.noise_std)
        state.noise_std = ppo.policy.noise_std = fitted.noise_std
        hooks.log({"dream/noise_std": fitted.noise_std})
        hooks.say(str(fitted))


class BorrowedTasks:
    """Chooses the task whose sentence or number the policy gets in each exploring episode of an unseen task.

    First each known task and the unseen task itself, once. Then the `N_BEST` of these whose episodes had the highest
    returns, equally often. As soon as an episode has succeeded, only the unseen task itself: successes are imitated.

    Args:
        config: of the run; its reward terms make the returns.
        model: of the checkpoint, which says what it was trained on.
        tasks: of the run.
        dreams: hold all recorded episodes, those of the exploring as well.
        state: updated here is `tried`.
    """

    def __init__(
        self, config: TrainConfig, model: WorldModel, tasks: Sequence[str], dreams: Dreams, state: RunState
    ) -> None:
        self.model, self.tasks, self.dreams, self.state = model, tasks, dreams, state
        self.known = [task for task in model.spec.tasks if task not in model.unseen_tasks]
        self.rewards = make_rewards(config, model.predicted_spec, DreamEnv.place, model)

    def plans(self, n_episodes: int) -> dict[str, list[str]]:
        """Return unseen task -> the tasks that its next `n_episodes` act as, in order; solved tasks are left out."""
        solved = {episode.task for episode in self.dreams.episodes if episode.is_success}
        new = [task for task in self.tasks if task in self.model.unseen_tasks and task not in solved]
        return {task: self._plan(task, n_episodes) for task in new}

    def acted_as(self, plans: Mapping[str, Sequence[str]], task: str, number: int) -> str:
        """Return the task that episode `number` of this exploring, one of `task`, acts as; tasks take turns."""
        return plans[task][number // len(self.tasks)] if task in plans else task

    def index(self, plans: Mapping[str, Sequence[str]], task: int, seed: int, seeds: range) -> int:
        """Return the index of the task that the episode `seed` of task number `task` acts as."""
        names = self.model.spec.tasks
        # Environments without an episode of `seeds` run on, and their results are dropped.
        return names.index(self.acted_as(plans, names[task], seed - seeds.start)) if seed in seeds else task

    def count(self, plans: Mapping[str, Sequence[str]], seeds: range) -> None:
        """Keep the returns of the episodes of `seeds`, which have been recorded."""
        spec, read_out = self.model.predicted_spec, self.model.frame_read_out
        for episode in self.dreams.episodes:
            if episode.seed in seeds and episode.task in plans:
                tried = self.state.tried.setdefault(episode.task, {})
                total = float(step_rewards(episode, self.rewards, spec, read_out, self.model.device).sum())
                tried.setdefault(self.acted_as(plans, episode.task, episode.seed - seeds.start), []).append(total)

    def _plan(self, task: str, n_episodes: int) -> list[str]:
        tried = self.state.tried.get(task, {})
        untried = [of for of in (*self.known, task) if of not in tried]
        best = sorted(tried, key=lambda of: -sum(tried[of]) / len(tried[of]))[:N_BEST]
        return [*untried, *islice(cycle(best or untried), n_episodes)][:n_episodes]


class _Borrowing:
    """A policy whose observations name another task than that of the episode."""

    def __init__(self, policy: Policy, index: Callable[[int, int], int]) -> None:
        self.policy, self.index = policy, index

    def encode(self, obs: Obs) -> Obs:
        """Return the observations: only `decide` gets the seeds of the episodes, so it encodes."""
        return obs

    def decide(self, encoded: Obs, seed: Tensor, counter: Tensor) -> Tensor:
        """Encode and decide with the tasks that the episodes act as."""
        rows = zip(encoded["task"].tolist(), seed.tolist(), strict=True)
        task = encoded["task"].new_tensor([self.index(*row) for row in rows])
        return self.policy.decide(self.policy.encode({**encoded, "task": task}), seed, counter)
