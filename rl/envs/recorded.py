"""Environments made from recorded episodes, for a robot without a simulator.

Episodes start at the first frames of recorded episodes. A world model, called the judge, predicts what follows. The
judge is a copy of the policy's world model, refitted on all recorded episodes; no policy trains in the judge. A
success counts only if the expected error of its chunk is at most the largest one on the recorded episodes. So a policy
gains nothing by leaving the recorded region. To learn which of two policies is better, compare them on the robot
(`wamtune deploy ... compare`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor

from rewards.errors import UserError
from rl.config import TrainConfig
from rl.envs.names import NoOptions, typed_options
from rl.envs.simulator import Request, Simulator
from rl.seeds import JUDGE_REFIT
from world_model.api import WorldModel
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import Episode, EpisodeStore
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import Start
from world_model.replays import chunk_errors, dreamed_episodes
from world_model.spec import LATENTS, Spec
from world_model.tree import rows

DREAMED = ("seed", "max_steps", "terminate_on_success", "action_delay", "obs_noise")
"""Arguments of `BatchedEnv` that the judge's dream takes from its caller; the others come from the model."""


def recorded_episodes(config: TrainConfig, model: WorldModel, tasks: tuple[str, ...]) -> list[Episode]:
    """Read the episodes that the config names.

    Raises:
        UserError: there are no episodes of `tasks`, or an episode or its recording setup does not fit the checkpoint.
    """
    store = EpisodeStore(config.episodes)
    spec = stored_spec(store, model)
    episodes = store.load(tasks=tasks, features=spec.features)
    if not episodes:
        raise UserError(
            f"episodes={config.episodes}: there are none of {', '.join(tasks)}; record some, or name others"
        )
    store.check_fits(spec, f"episodes={config.episodes}")
    for i, episode in enumerate(episodes):
        episode.check_fits(spec, f"{config.episodes}: episode {i}")
    return model.encode_episodes(episodes)


def refit_read_out(config: TrainConfig, model: WorldModel, episodes: list[Episode], seed: int) -> None:
    """Teach a model what a success looks like in recorded episodes of the tasks that `dream.refit_read_out` names.

    Args:
        config: of the run; its `checkpoint` has the episodes of the tasks that must stay as they are.
        model: is trained, if it learns success.
        episodes: with the features that it predicts.
        seed: of the batches.
    """
    chosen = {"unseen": model.unseen_tasks, "all": {episode.task for episode in episodes}, "none": ()}
    tasks = chosen[config.dream.refit_read_out]
    learned = [episode for episode in episodes if episode.task in tasks]
    if not learned:
        return
    own: list[Episode] = []
    if config.dream.brought is None:  # else the checkpoint is that of the policy alone
        store = EpisodeStore(find_checkpoint(config.checkpoint))
        own = store.load(tasks=model.spec.tasks, features=stored_spec(store, model).features)
    # Success is asked of dreamed frames. So it is learned from them, with the outcomes that their actions really had.
    model.refit_read_out(dreamed_episodes(model, learned), model.encode_episodes(own), tasks, seed)


def stored_spec(store: EpisodeStore, model: WorldModel) -> Spec:
    """Return the spec of what a model reads of stored episodes, which hold images or the latents of this model."""
    has_latents = bool(store.shards) and LATENTS in store.spec.features
    return model.predicted_spec if has_latents else model.spec


class Recorded(DreamEnv, Simulator):
    """Episodes that start like recorded ones and are dreamed by the judge; a seed fixes the start and the noise.

    Args:
        config: of the run; `episodes` names the folder.
        model: the model that the judge is copied from.
        tasks: of the episodes.
        num_envs: see `DreamEnv`.
        tick: called with the finished share of the judge's training, which takes minutes.
        options: see `DreamEnv`.

    Raises:
        UserError: see `recorded_episodes`; or there are too few steps to calibrate the expected error.
    """

    alone = True  # training (for start states) and gates share one judge

    @classmethod
    def build(cls, request: Request, **common: Any) -> Self:
        """Build environments as a config asks for them; see `Simulator.build`."""
        cls.check_options(request.options)
        run, model = request.run, request.model
        if request.id:
            raise UserError(f"env.id={request.id}: simulator recorded has no ids; leave it out")
        if model is None:
            raise UserError("env.simulator=recorded: policy=gaussian has no dream to judge it in; use policy=flow")
        if run is None or not run.episodes:
            raise UserError(
                "env.simulator=recorded: there is no folder of episodes; wamtune train has one, episodes=FOLDER, "
                "and other verbs need a simulator"
            )
        kept = {name: common[name] for name in DREAMED if name in common}
        return cls(run, model, request.tasks, request.n_envs, request.tick, **kept)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse every option; this simulator has none."""
        typed_options("recorded", options, NoOptions)

    def __init__(
        self,
        config: TrainConfig,
        model: WorldModel,
        tasks: tuple[str, ...],
        num_envs: int,
        tick: Callable[[float], None] = lambda share: None,
        **options: Any,
    ) -> None:
        episodes = recorded_episodes(config, model, tasks)
        judge = copy.deepcopy(model)  # a copy, so the refit does not change the model of the policy
        judge.n_denoising_steps = 1  # as for the expected error
        dream, seed = config.dream, config.seed + JUDGE_REFIT
        # With the default steps and a state vector, the calibration takes a third of the time and the refit the rest.
        judge.calibrate_trust(episodes, lambda share: tick(share / 3))
        if dream.refit_steps > 0:
            n_steps, learning_rate = dream.refit_steps, dream.refit_learning_rate
            judge.refit(episodes, n_steps, learning_rate, seed, lambda share: tick((1 + 2 * share) / 3))
            refit_read_out(config, judge, episodes, seed)
        tick(1.0)
        # Successes above the largest expected error on recorded data do not count.
        expected = chunk_errors(judge, episodes).expected if judge.estimates_error else None
        most = None if expected is None else float(expected.max())
        starts = StartStates.from_episodes(episodes, model.spec.tasks, model.n_context_frames)
        no_horizon = 10**9  # chunks: only `max_steps` truncates an episode
        super().__init__(judge, num_envs, starts, no_horizon, max_expected_error=most, **options)

    def _restart(self, mask: Tensor) -> Start:
        start = super()._restart(mask)
        # Replace the random start by the one that the episode's seed names, so an evaluation can be repeated.
        start.seed = self._next_seeds(int(mask.sum()))
        chosen = rows(self.starts, start.seed % len(self.starts))
        start.context, start.task = chosen.context, chosen.task
        return start

    def record(self, on: bool) -> list[Episode]:
        """Return no episodes: dreamed episodes must not be stored as real ones."""
        return []
