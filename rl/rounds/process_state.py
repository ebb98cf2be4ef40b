"""The part of a saved state that is different in each process of a run: random numbers, episodes and successes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rl.envs.simulator import Simulator
from rl.policies.api import load_policy_state
from rl.ppo.imitation import Imitation
from rl.ppo.update import PPO
from rl.rounds.eval_envs import EvalEnvs
from rl.rounds.outcome import RunState


@dataclass(frozen=True)
class ProcessState:
    """What a process has of its own, in the objects of its run."""

    ppo: PPO
    sim: Simulator
    eval_envs: EvalEnvs
    imitation: Imitation | None
    state: RunState  # of it only `real` is different in each process

    def state_dict(self) -> dict[str, Any]:
        """Return the part of this process."""
        return {
            "generator": self.ppo.generator.get_state(),
            "sim": self.sim.state_dict() if self.sim.begun and not self.sim.alone else None,
            "sim_generator": self.sim.generator.get_state(),  # of the next episodes, where none has begun
            "arenas": [env.generator.get_state() for env in self.eval_envs.envs],  # old name: states on disk have it
            "imitation": None if self.imitation is None else self.imitation.collected(),
            "real": self.state.real,
        }

    def load_state_dict(self, own: dict[str, Any]) -> None:
        """Restore what `state_dict` returned in this process; in an older version `real` is in the state of the run."""
        self.ppo.generator.set_state(own["generator"])
        if own["sim"] is not None:
            self.sim.load_state_dict(own["sim"])
        elif "sim_generator" in own:  # older states have none
            self.sim.generator.set_state(own["sim_generator"])
        for env, generator in zip(self.eval_envs.envs, own["arenas"], strict=True):
            env.generator.set_state(generator)
        if self.imitation is not None:
            self.imitation.collect_again(own["imitation"])
        real = own.get("real", self.state.real)
        self.state.real = None if real is None else real.to(self.sim.device)

    def go_on_from_champion(self, parts: Sequence[dict[str, Any]]) -> None:
        """Go on with another number of processes than that of the saved parts.

        Policy and environments begin anew, and the collected successes are dealt out.
        """
        load_policy_state(self.ppo.policy, self.state.champion)
        self.state.real = None
        if self.imitation is not None:
            self.imitation.deal([part["imitation"] for part in parts])
