"""Call every plug-in once before a run measures anything, so that a bug in one shows in seconds, not minutes."""

from __future__ import annotations

from rl.build import make_rewards
from rl.config import TrainConfig
from rl.envs.simulator import Simulator
from rl.ppo.update import PPO
from rl.rounds.dreams import Dreams
from world_model.api import WorldModel
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import BatchedEnv


def try_rewards(config: TrainConfig, model: WorldModel | None, sim: Simulator, dreams: bool) -> StartStates:
    """Compute the rewards of one step in `sim`, and of one dreamed chunk from the same states if the run `dreams`.

    This does not change the run: the reward terms are built for the trial alone, and the random state of `sim` is
    restored. Returns the states in which these episodes began.

    Raises:
        UserError: a term of the config raised an exception, or did not return a valid reward.
    """
    # Use new reward terms, since terms may keep a state, and record nothing.
    generator, terms, recorder = sim.generator.get_state(), sim.rewards, sim.recorder
    sim.rewards, sim.recorder = make_rewards(config, sim.spec, sim.place, model), None
    try:
        sim.reset()
        starts = StartStates.of(sim)
        _stand_still(sim)
    finally:
        sim.rewards, sim.recorder, sim.begun = terms, recorder, False
        sim.generator.set_state(generator)
    if dreams and model is not None:
        rewards = make_rewards(config, model.predicted_spec, DreamEnv.place, model)
        dream = DreamEnv(model, len(starts), starts, rewards=rewards)
        dream.reset()
        _stand_still(dream)
    return starts


def try_signals(dreams: Dreams, ppo: PPO, starts: StartStates) -> None:
    """Call each trust signal that is a plug-in on a dreamed rollout of one chunk from `starts`.

    This does not change the run: the random state of `ppo` is restored.

    Raises:
        UserError: a signal raised an exception, or did not return valid trust values.
    """
    signals = [signal for signal in dreams.signals if signal.at]
    if not signals:
        return
    generator = ppo.generator.get_state()
    dream = DreamEnv(dreams.model, len(starts), starts, images=dreams.images)
    rollout = ppo.collect(dream, n_steps=1, fresh=True)
    ppo.generator.set_state(generator)
    for signal in signals:
        signal(rollout, dreams.model, seed=0)


def _stand_still(env: BatchedEnv) -> None:
    """Execute the action in the middle of its range in every environment, for a step, or for a chunk of a dream."""
    middle = (env.action_low + env.action_high) / 2
    n_steps = env.chunk_size if isinstance(env, DreamEnv) else 1  # some simulators are dreams, too
    env.step_chunk(middle.expand(env.num_envs, n_steps, -1))
