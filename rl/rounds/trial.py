"""Call every plug-in once before a run measures anything: a bug in one shows in seconds, not minutes."""

from __future__ import annotations

from rl.build import make_rewards
from rl.config import TrainConfig
from rl.envs.simulator import Simulator
from rl.ppo.update import PPO
from rl.rounds.dreams import Dreams
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import BatchedEnv
from world_model.wam.model import WorldActionModel


def try_rewards(config: TrainConfig, model: WorldActionModel | None, sim: Simulator, dreams: bool) -> StartStates:
    """Pay one step of every environment in `sim`, and one from the same starts in the dream where the run `dreams`.

    The terms are built for this alone, and the random numbers of `sim` are put back: what follows is as without it.
    Returns where these episodes began.

    Raises:
        UserError: a term of the config raised an exception, or returned what is not a reward.
    """
    generator, terms, recorder = sim.generator.get_state(), sim.rewards, sim.recorder
    sim.rewards, sim.recorder = make_rewards(config, sim.spec, sim.place, model), None
    try:
        sim.reset()
        starts = StartStates(sim.context.clone(), sim.task.clone(), sim.episode_seed.clone())
        _stand_still(sim)
    finally:
        sim.rewards, sim.recorder, sim.begun = terms, recorder, False
        sim.generator.set_state(generator)
    if dreams and model is not None:
        rewards = make_rewards(config, model.spec, DreamEnv.place, model)
        dream = DreamEnv(model, len(starts), starts, n_denoising_steps=config.dream.n_denoising_steps, rewards=rewards)
        dream.reset()
        _stand_still(dream)
    return starts


def try_signals(dreams: Dreams, ppo: PPO, starts: StartStates) -> None:
    """Weigh a dreamed rollout of one chunk from `starts` with each trust signal that is a plug-in.

    The random numbers of `ppo` are put back: what follows is as without it.

    Raises:
        UserError: a signal raised an exception, or returned what is no trust.
    """
    signals = [signal for signal in dreams.signals if signal.at]
    if not signals:
        return
    generator, n_denoising_steps = ppo.generator.get_state(), dreams.config.dream.n_denoising_steps
    dream = DreamEnv(dreams.model, len(starts), starts, n_denoising_steps=n_denoising_steps)
    rollout = ppo.collect(dream, n_steps=1, fresh=True)
    ppo.generator.set_state(generator)
    for signal in signals:
        signal(rollout, dreams.model, seed=0)


def _stand_still(env: BatchedEnv) -> None:
    """Execute one action, the middle of its range, in every environment."""
    middle = (env.action_low + env.action_high) / 2
    env.step_chunk(middle.expand(env.num_envs, 1, -1))
