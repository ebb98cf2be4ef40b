"""A place that is known from recorded episodes alone: where no simulator stands in for the robot.

It begins where recorded episodes began and dreams what follows, with a world decoder of its own that is refitted on
all of them and that no policy is trained in. A success counts where trust expects no larger error than it does on what
was recorded. That keeps a policy from going where nobody has been; which policy is better, the robot has to say
(`wamtune deploy ... compare`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from rewards.errors import UserError
from rl.config import TrainConfig
from rl.envs.names import NoOptions, typed_options
from rl.envs.simulator import OwnTerms, Simulator
from rl.seeds import JUDGE_REFIT
from world_model.api import WorldModel
from world_model.data.episodes import Episode, EpisodeStore
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import Start

DREAMED = ("seed", "max_steps", "terminate_on_success", "action_delay", "obs_noise")
"""Arguments of `BatchedEnv` that are not the model's."""


def recorded_episodes(config: TrainConfig, model: WorldModel, tasks: tuple[str, ...]) -> list[Episode]:
    """Read the episodes that the config names.

    Raises:
        UserError: there are none of `tasks`, or one, or what it was recorded on, does not fit the checkpoint.
    """
    store = EpisodeStore(config.episodes)
    episodes = store.load(tasks=tasks)
    if not episodes:
        raise UserError(
            f"episodes={config.episodes}: there are none of {', '.join(tasks)}; record some, or name others"
        )
    store.check_fits(model.spec, f"episodes={config.episodes}")
    for i, episode in enumerate(episodes):
        episode.check_fits(model.spec, f"{config.episodes}: episode {i}")
    return episodes


class Recorded(DreamEnv, Simulator):
    """Episodes that begin as recorded ones, dreamed by a judge; a seed names the start and the noise.

    Args:
        config: of the run; `episodes` names the folder.
        model: which the judge is a copy of.
        tasks: of the episodes.
        options: see `DreamEnv`.

    Raises:
        UserError: see `recorded_episodes`; or there are too few steps to calibrate trust on.
    """

    alone = True  # one judge, for training to see where episodes begin and for gates

    @classmethod
    def build(
        cls,
        *,
        id: str,
        tasks: Sequence[str],
        n_envs: int,
        options: Mapping[str, Any],
        known_tasks: Sequence[str],
        n_workers: int = 0,
        model: WorldModel | None = None,
        own_rewards: OwnTerms | None = None,
        run: TrainConfig | None = None,
        **common: Any,
    ) -> Self:
        """Build environments as a config asks for them; see `Simulator.build`."""
        cls.check_options(options)
        if id:
            raise UserError(f"env.id={id}: simulator recorded has no ids; leave it out")
        if model is None:
            raise UserError("env.simulator=recorded: policy=gaussian has no dream to judge it in; use policy=flow")
        if run is None or not run.episodes:
            raise UserError("env.simulator=recorded: there is no folder of episodes; train with episodes=FOLDER")
        kept = {name: common[name] for name in DREAMED if name in common}
        return cls(run, model, tuple(tasks), n_envs, **kept)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse any option: there are none."""
        typed_options("recorded", options, NoOptions)

    @classmethod
    def describe_tasks(cls) -> str:
        """Return which tasks there are."""
        return "no simulator: the tasks that were recorded"

    def __init__(
        self, config: TrainConfig, model: WorldModel, tasks: tuple[str, ...], num_envs: int, **options: Any
    ) -> None:
        episodes = recorded_episodes(config, model, tasks)
        judge = copy.deepcopy(model)
        judge.calibrate_trust(episodes)
        dream = config.dream
        if dream.refit_steps > 0:
            judge.refit(episodes, dream.refit_steps, dream.refit_learning_rate, config.seed + JUDGE_REFIT)
        most = float(judge.expected_errors(episodes).max())
        starts = StartStates.from_episodes(episodes, model.spec.tasks, model.n_context_frames)
        never = 10**9  # chunks: an episode ends by its steps alone
        super().__init__(judge, num_envs, starts, never, max_expected_error=most, **options)

    def _restart(self, mask: Tensor) -> Start:
        start = super()._restart(mask)
        start.seed = self._next_seeds(int(mask.sum()))
        index = start.seed % len(self.starts)
        start.context, start.task = self.starts.context[index], self.starts.task[index]
        return start

    def record(self, on: bool) -> list[Episode]:
        """Nothing: what is dreamed is not recorded as if it had happened."""
        return []
