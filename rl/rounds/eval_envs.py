"""Evaluation environments: simulators that run episodes by seed, for gates, evaluations, exploring and dream starts.

Several processes share the seeds and exchange what they find. An episode depends on its seed alone, so together they
find what one process finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from rl.build import find_simulator, make_sim
from rl.config import TrainConfig
from rl.envs.simulator import Simulator
from rl.policies.api import Denoiser, Policy
from rl.ppo.distributed import Distributed
from rl.rounds.evaluate import EpisodeResult, evaluate_sim, first_states
from world_model.api import WorldModel
from world_model.data.episodes import Episode
from world_model.dream_env import StartStates
from world_model.tree import join, rows

MOST_WITH_WORKERS = 8
"""Largest number of tasks with worker processes. Each task has its own simulator, and each worker takes 0.2 GB."""

SAME_ROUNDING = 4
"""With fewer rows a matrix product is rounded in another way, so that an episode would no longer repeat to the bit."""


def count_simulators(config: TrainConfig, n_tasks: int) -> int:
    """Return in how many simulators the episodes of `n_tasks` tasks run: one for each, or a single one for all."""
    return 1 if find_simulator(config.env).alone else n_tasks


class EvalEnvs:
    """One simulator per task, so that a seed names exactly one episode; seeds are assigned to the tasks in turn.

    Args:
        config: of the run; in several processes, of the share of this one.
        model: as in `make_sim`.
        tasks: one simulator for each.
        denoiser: as in `make_sim`.
        sim: the simulator that PPO trains in. It is used here as well if a process can hold only one simulator, or if
            PPO trains in the dream alone and there is a single task. Then each use resets it.
        distributed: the processes that share the seeds. None: there is one process.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: WorldModel | None,
        tasks: Sequence[str],
        sim: Simulator,
        denoiser: Denoiser | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        self.distributed = distributed or Distributed()
        one_task_each = [[task] for task in tasks] or [[]]
        n_each = -(-config.env.n_envs * self.distributed.world_size // len(one_task_each))  # rounded up
        n_each = max(self.distributed.share.of(n_each), min(n_each, SAME_ROUNDING))
        self.tasks = tuple(tasks)
        # Share the simulator where a second one is impossible, or where PPO never steps it.
        shared = sim.alone or (config.env.kind == "dream" and len(one_task_each) == 1 and sim.num_envs >= n_each)
        n_workers = 0 if len(one_task_each) > MOST_WITH_WORKERS else None
        make = partial(make_sim, config, model, n_envs=n_each, rewards=False, denoiser=denoiser, n_workers=n_workers)
        self.envs = [sim] if shared else [make(task) for task in one_task_each]

    def run(
        self,
        policy: Policy,
        seeds: Sequence[int],
        tick: Callable[[float], None],
        tasks: Sequence[str] | None = None,
    ) -> list[EpisodeResult]:
        """Run the episodes of `seeds`, task after task; `tick` is called with the share of them that is done here.

        With `tasks`, run all seeds in each of these; this needs a simulator for each task.
        """
        if tasks is None:
            assigned = self._assigned(seeds)
        else:
            assigned = [(self.envs[self.tasks.index(task)], seeds) for task in tasks]
        n_all = sum(len(own_seeds) for _, own_seeds in assigned)
        results: list[list[EpisodeResult]] = []  # of this process, for each task
        for env, own_seeds in assigned:
            n_before = sum(map(len, results))

            def count(n: float, _: int, n_before: int = n_before) -> None:
                tick(min((n_before + n) * self.distributed.world_size / n_all, 1.0))

            results.append(evaluate_sim(policy, env, self.distributed.shard(own_seeds), count))
        return [result for of_task in results for result in self.distributed.gather(of_task)]

    def record(
        self,
        policy: Policy,
        seeds: Sequence[int],
        tick: Callable[[float], None],
        tasks: Sequence[str] | None = None,
    ) -> tuple[list[EpisodeResult], list[Episode]]:
        """Run the episodes of `seeds` as `run` does; return the results, and the recordings of this process."""
        was_recording = [env.recorder is not None for env in self.envs]
        for env in self.envs:
            env.record(True)
        results = self.run(policy, seeds, tick, tasks)
        # `record` returns what was recorded so far; a simulator that recorded before goes on with it.
        recorded = [env.record(goes_on) for env, goes_on in zip(self.envs, was_recording, strict=True)]
        # Environments without a seed left go on with episodes that were not asked for; drop those.
        return results, [episode for of_env in recorded for episode in of_env if episode.seed in seeds]

    def starts(self, seeds: Sequence[int]) -> StartStates:
        """Reset to the episodes of `seeds` and return their first states; this executes no step."""
        assigned = self._assigned(seeds)
        shares = [(env, self.distributed.shard(own_seeds)) for env, own_seeds in assigned]
        parts = self.distributed.gather([first_states(env, share) for env, share in shares if share])
        starts = join(parts)
        # Those of a process follow each other here; put them in the order of one process.
        row_of = {seed: row for row, seed in enumerate(starts.seed.tolist())}
        order = [row_of[seed] for _, own_seeds in assigned for seed in own_seeds]
        return rows(starts, torch.tensor(order, device=starts.seed.device))

    @contextmanager
    def with_noise(self, obs_noise: float) -> Iterator[None]:
        """Add white noise to all observations meanwhile, of at least this standard deviation, as `env.obs_noise`."""
        own = [env.obs_noise for env in self.envs]
        for env in self.envs:
            env.obs_noise = max(env.obs_noise, obs_noise)
        try:
            yield
        finally:
            for env, noise in zip(self.envs, own, strict=True):
                env.obs_noise = noise

    def close(self) -> None:
        """Close every simulator and its worker processes."""
        for env in self.envs:
            env.close()

    def _assigned(self, seeds: Sequence[int]) -> list[tuple[Simulator, Sequence[int]]]:
        """Assign seed i to simulator i mod n; a simulator without a seed is left out."""
        n = len(self.envs)
        return [(env, seeds[j::n]) for j, env in enumerate(self.envs[: len(seeds)])]
