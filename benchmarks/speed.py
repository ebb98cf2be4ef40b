"""Measure the speed of the parts, with ratios taken in one run on the same cores.

    python benchmarks/speed.py [CHECKPOINT]

Prints environment steps per second of the dream, of our simulator and of stock Meta-World push-v3; the share of a PPO
round spent outside model and simulator; and the action chunks per second that the policy decodes. For the simulator's
ratios on all 12 tasks, and its equality to stock, see `metaworld_speed.py`.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.config import PPOConfig
from rl.envs.sim import SimEnv
from rl.policies.chain import ChainPolicy
from rl.policies.wam import flow_policy
from rl.ppo.buffer import Samples
from rl.ppo.update import PPO
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import Obs
from world_model.wam.store import load_model

SECONDS = 3.0
TASK = "push"


def main() -> None:
    torch.set_num_threads(1)
    model = load_model(sys.argv[1] if len(sys.argv) > 1 else "metaworld-tuned")
    sim = SimEnv("metaworld", 32, [TASK], task_names=model.spec.tasks)
    policy = flow_policy(model, sim)
    ppo = PPO(policy, PPOConfig(n_steps=20, batch_size=320))
    sim.record(True)
    ppo.collect(sim, 19)
    starts = StartStates.from_episodes(sim.record(False), model.spec.tasks, model.config.n_context_frames)
    dream = DreamEnv(model, 512, starts, horizon=2)
    chunk = torch.rand(32, 8, 4) * 2 - 1
    chunks = torch.rand(512, 8, 4) * 2 - 1
    sim.reset()
    dream.reset()
    with torch.no_grad():
        rates = in_turn(
            {
                "stock push-v3": stock_push(),
                "our simulator": lambda: int(sim.step_chunk(chunk).executed.sum()),
                "dream": lambda: int(dream.step_chunk(chunks).executed.sum()),
            }
        )
    for name, rate in rates.items():
        print(f"{name:>15}: {rate:9.0f} environment steps/s, {rate / rates['stock push-v3']:5.1f} x stock")
    print(f"dream / our simulator: {rates['dream'] / rates['our simulator']:.1f}")
    obs = sim.reset()
    seeds = torch.arange(32)
    with torch.no_grad():
        for n in (1, 32):
            part = {key: value[:n] for key, value in obs.items()}
            rate = in_turn({"decode": lambda n=n, part=part: decode_chunks(policy, part, seeds[:n])})
            print(f"policy, {n:2d} at a time: {rate['decode']:.0f} chunks/s on one core")
    for place, env, n_steps in (("simulator", sim, 19), ("dream", dream, 2)):
        print(f"PPO round in the {place}: {100 * outside_share(ppo, env, n_steps):.1f} % outside model and simulator")


def in_turn(works: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Run the workloads in turn, several times, so that disturbances affect all of them; return units per second."""
    seconds, done = dict.fromkeys(works, 0.0), dict.fromkeys(works, 0)
    for work in works.values():
        work()
    while min(seconds.values()) < SECONDS:
        for name, work in works.items():
            begun = time.perf_counter()
            while time.perf_counter() - begun < SECONDS / 10:
                done[name] += work()
            seconds[name] += time.perf_counter() - begun
    return {name: done[name] / seconds[name] for name in works}


def decode_chunks(policy: ChainPolicy, obs: Obs, seeds: Tensor) -> int:
    """Decode one chunk per row."""
    return len(policy.decide(policy.encode(obs), seeds, seeds))


def stock_push() -> Callable[[], int]:
    """Run steps of stock Meta-World, including resets, like those of our simulator."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    warnings.filterwarnings("ignore")
    env = ALL_V3_ENVIRONMENTS["push-v3"]()
    env._partially_observable, env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = (
        False,
        False,
        True,
        True,
    )
    del env.sawyer_observation_space
    env.seed(0)
    env.reset()
    rng, steps = np.random.default_rng(0), 0

    def work() -> int:
        nonlocal steps
        for _ in range(10):
            env.step(rng.uniform(-1, 1, 4).astype(np.float32))
        steps += 10
        if steps % 150 == 0:
            env.reset()
        return 10

    return work


def outside_share(ppo: PPO, env: Any, n_steps: int) -> float:
    """Return the share of the time of one collection and update that is outside the model and the simulator."""
    clock = Clock()
    policy = ppo.policy
    model = policy.denoiser.model
    patched = [(model, name) for name in ("encode", "predict_action", "read_frames", "predict_future")]
    patched += [(policy, "_means"), (policy, "value"), (torch.Tensor, "backward"), (ppo.optimizer, "step")]
    if env.place == "sim":
        patched += [(env._envs, "advance"), (env._envs, "reset")]
    with clock.around(patched):
        begun = time.perf_counter()
        for _ in range(3):
            ppo.update(Samples.from_rollout(ppo.collect(env, n_steps), ppo.config.gamma, ppo.config.gae_lambda))
        total = time.perf_counter() - begun
    return 1 - clock.inside / total


class Clock:
    """Adds up the time spent inside patched callables; a call within a call counts once."""

    def __init__(self) -> None:
        self.inside, self._depth = 0.0, 0

    @contextmanager
    def around(self, targets: list[tuple[Any, str]]) -> Iterator[None]:
        """Time `getattr(owner, name)` of each target."""
        originals = [(owner, name, owner.__dict__.get(name)) for owner, name in targets]
        for owner, name in targets:
            setattr(owner, name, self._timed(getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, original in originals:
                delattr(owner, name) if original is None else setattr(owner, name, original)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.inside += time.perf_counter() - begun

        return call


if __name__ == "__main__":
    main()
