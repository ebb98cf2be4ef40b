"""Evaluation environments: simulators of named episodes, for gates, evaluations, exploring and starts of dreams."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rl.build import make_sim
from rl.config import TrainConfig
from rl.envs.simulator import Simulator
from rl.rounds.evaluate import Acts, EpisodeResult, evaluate_sim, first_states
from world_model.data.episodes import Episode
from world_model.dream_env import StartStates
from world_model.wam.model import WorldActionModel


class EvalEnvs:
    """One simulator for each task, so that a seed names one episode; seeds are dealt out to the tasks in turn.

    Args:
        config, model, tasks: what is simulated.
        sim: where PPO trains. Where there can be no second simulator, who trains and who is judged share it, and both
            begin afresh; they also do where PPO only dreams of a single task.
    """

    def __init__(
        self, config: TrainConfig, model: WorldActionModel | None, tasks: Sequence[str], sim: Simulator
    ) -> None:
        alone = [[task] for task in tasks] or [[]]
        n_each = -(-config.env.n_envs // len(alone))
        shared = sim.alone or (config.env.kind == "dream" and len(alone) == 1)
        self.envs = [sim] if shared else [make_sim(config, model, task, n_each, rewards=False) for task in alone]

    def run(self, policy: Acts, seeds: Sequence[int], tick: Callable[[float], None]) -> list[EpisodeResult]:
        """Run the episodes of `seeds`; `tick` is called with the share of them that has ended."""
        results: list[EpisodeResult] = []
        for env, share in self._dealt(seeds):

            def report(n: int, _: int, before: int = len(results)) -> None:
                tick((before + n) / len(seeds))

            results += evaluate_sim(policy, env, share, report)
        return results

    def record(
        self, policy: Acts, seeds: Sequence[int], tick: Callable[[float], None]
    ) -> tuple[list[EpisodeResult], list[Episode]]:
        """Run episodes, and return what happened in them as well."""
        recording = [env.recorder is not None for env in self.envs]
        for env in self.envs:
            env.record(True)
        results = self.run(policy, seeds, tick)
        recorded = (env.record(goes_on) for env, goes_on in zip(self.envs, recording, strict=True))
        return results, [episode for of in recorded for episode in of if episode.seed in seeds]

    def starts(self, seeds: Sequence[int]) -> StartStates:
        """Reset to the episodes of `seeds`, which costs no step, and return where they begin."""
        return StartStates.join([first_states(env, share) for env, share in self._dealt(seeds)])

    def close(self) -> None:
        """End the processes."""
        for env in self.envs:
            env.close()

    def _dealt(self, seeds: Sequence[int]) -> list[tuple[Simulator, Sequence[int]]]:
        """Deal seeds out to the tasks in turn; a task that gets none is left out."""
        n = len(self.envs)
        return [(env, seeds[j::n]) for j, env in enumerate(self.envs[: len(seeds)])]
