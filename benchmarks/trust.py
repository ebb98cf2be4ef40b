"""What the trust of a checkpoint is worth, on fresh episodes of tasks known and unknown to it, and what it costs.

    python benchmarks/trust.py [CHECKPOINT] [TASK ...]

Prints, over dreams of 4 chunks, the rank correlation of the expected with the true error, and that of the amount of
movement with it, each with its 95 % interval (episodes are resampled); the medians over the tasks that the model knows;
and the time of a dream that asks for trust in units of one that does not, taken in turn. The episodes are new to all of
the checkpoint: those of the expert, noisy ones, and of a task that it knows those of its own policy, half of them
exploring.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time

import torch

from rl.envs.sim import SimEnv
from rl.policies.wam import FlowPolicy
from rl.stages.collect import collect_policy, collect_scripted
from rl.statistics import correlation
from world_model.data.episodes import Episode
from world_model.dream_env import DreamEnv, StartStates
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model
from world_model.wam.trust import dream_of_real_actions, dreamed_movement, expected_error

UNSEEN = ("push-wall", "coffee-push")
N_EPISODES = 20  # of the expert, as many noisy ones, and as many of the policy
SEED = 800_000


def main() -> None:
    torch.set_num_threads(1)
    words = sys.argv[1:]
    model = load_model(words[0] if words else "metaworld-tuned")
    found: dict[str, list[float]] = {}
    for task in words[1:] or (*model.spec.tasks, *UNSEEN):
        known = "known" if task in model.spec.tasks else "never seen"
        episodes = [e for s in ("expert", "noisy") for e in collect_scripted(s, [task], N_EPISODES, seed=SEED)]
        episodes += by_policy(model, task) if task in model.spec.tasks else []
        retold = dream_of_real_actions(model, [e for e in episodes if e.length >= 32])
        with torch.no_grad():
            expected = expected_error(model, retold.given).mean(1)
        for name, score in (("expected error", expected), ("movement", dreamed_movement(retold.given).mean(1))):
            c = correlation(score, retold.errors.mean(1), retold.episode)
            found.setdefault(f"median of {known} tasks, {name}", []).append(c["rho"])
            interval = f"[{c['low']:+.2f}, {c['high']:+.2f}]"
            print(f"{task} ({known}), {len(retold.task)} dreams, {name}: {c['rho']:+.2f} {interval}", flush=True)
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):+.2f}")
    print(f"dream with trust / without: {cost(model, episodes):.2f} of the time")


def by_policy(model: WorldActionModel, task: str) -> list[Episode]:
    """Episodes of the policy of the checkpoint, the first half of them exploring."""
    n = N_EPISODES // 2
    env = SimEnv("metaworld", n, [task], task_names=model.spec.tasks, terminate_on_success=False)
    halves, policy = ((True, SEED), (False, SEED + n)), FlowPolicy(model, env)
    episodes = [e for explore, seed in halves for e in collect_policy(policy, env, n, explore, seed)]
    env.close()
    return episodes


def cost(model: WorldActionModel, episodes: list[Episode], n: int = 256, seconds: float = 5.0) -> float:
    """Time of a chunk dreamed with trust in units of one of a model that was never calibrated."""
    known = [e for e in episodes if e.task in model.spec.tasks] or collect_scripted("expert", [model.spec.tasks[0]], 1)
    starts = StartStates.from_episodes(known, model.spec.tasks, model.config.n_context_frames)
    without = copy.deepcopy(model)
    without.trust.given.fitted.fill_(False)
    dreams = [DreamEnv(each, n, starts, horizon=20) for each in (without, model)]
    actions = torch.rand(n, model.config.chunk_size, model.spec.action_dim) * 2 - 1
    spent = [0.0, 0.0]
    for dream in dreams:
        dream.reset()
    with torch.no_grad():
        while sum(spent) < seconds:
            for i, dream in enumerate(dreams):
                begun = time.perf_counter()
                dream.step_chunk(actions)
                spent[i] += time.perf_counter() - begun
    return spent[1] / spent[0]


if __name__ == "__main__":
    main()
