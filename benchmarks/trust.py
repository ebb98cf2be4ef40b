"""Measure the quality and the cost of a checkpoint's expected error, on new episodes of known and unknown tasks.

    python benchmarks/trust.py [CHECKPOINT] [TASK ...]

Prints, over dreams of 4 chunks, the rank correlation of the expected error with the true error and, for comparison,
that of the amount of motion with the true error. Each has a 95 % interval from resampled episodes. Also prints the
medians over the tasks that the model knows, and the time of a dream with expected errors relative to a dream without,
measured in turns. No part of the checkpoint was trained on these episodes. They come from the expert, from the noisy
expert and, for known tasks, from the checkpoint's own policy, which explores in half of its episodes.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time

import torch

from rl.envs.sim import SimEnv
from rl.policies.wam import flow_policy
from rl.stages.collect import collect_from, collect_policy
from rl.statistics import correlation
from world_model.data.episodes import Episode
from world_model.dream_env import DreamEnv, StartStates
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model
from world_model.wam.trust import dream_of_real_actions, dreamed_movement, expected_errors

UNSEEN = ("push-wall", "coffee-push")
N_EPISODES = 20  # of each source: expert, noisy expert, policy
SEED = 800_000


def main() -> None:
    torch.set_num_threads(1)
    words = sys.argv[1:]
    model = load_model(words[0] if words else "metaworld-tuned")
    found: dict[str, list[float]] = {}
    for task in words[1:] or (*model.spec.tasks, *(() if model.cameras else UNSEEN)):
        known = "known" if task in model.spec.tasks else "never seen"
        episodes = by_scripts(model, task)
        episodes += by_policy(model, task) if task in model.spec.tasks else []
        replayed = dream_of_real_actions(model, [e for e in episodes if e.length >= 32])
        with torch.no_grad():
            expected = expected_errors(model, replayed.given).mean(1)
        for name, score in (("expected error", expected), ("movement", dreamed_movement(replayed.given).mean(1))):
            c = correlation(score, replayed.errors.mean(1), replayed.episode)
            found.setdefault(f"median of {known} tasks, {name}", []).append(c["rho"])
            interval = f"[{c['low']:+.2f}, {c['high']:+.2f}]"
            print(f"{task} ({known}), {len(replayed.task)} dreams, {name}: {c['rho']:+.2f} {interval}", flush=True)
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):+.2f}")
    print(f"dream with trust / without: {cost(model, episodes):.2f} of the time")


def by_scripts(model: WorldActionModel, task: str) -> list[Episode]:
    """Return episodes of the expert and of the noisy expert."""
    env = simulator(model, task, 1)
    episodes = [e for source in ("expert", "noisy") for e in collect_from(env, 1, source, N_EPISODES, SEED)]
    env.close()
    return episodes


def by_policy(model: WorldActionModel, task: str) -> list[Episode]:
    """Return episodes of the checkpoint's policy; it explores in the first half of them."""
    n = N_EPISODES // 2
    env = simulator(model, task, n)
    halves, policy = ((True, SEED), (False, SEED + n)), flow_policy(model, env)
    episodes = [e for explore, seed in halves for e in collect_policy(policy, env, n, explore, seed)]
    env.close()
    return episodes


def simulator(model: WorldActionModel, task: str, n: int) -> SimEnv:
    """Return `n` environments of a task, with what the model reads."""
    tasks = dict.fromkeys((*model.spec.tasks, task))
    return SimEnv(
        "metaworld",
        n,
        [task],
        n_context_frames=model.config.n_context_frames,
        task_names=tuple(tasks),
        features=model.spec.features,
        cameras=model.cameras,
        terminate_on_success=False,
    )


def cost(model: WorldActionModel, episodes: list[Episode], n: int = 256, seconds: float = 5.0) -> float:
    """Return the time of a dreamed chunk with expected errors, relative to a model that was never calibrated."""
    known = [e for e in episodes if e.task in model.spec.tasks] or by_scripts(model, model.spec.tasks[0])
    starts = StartStates.from_episodes(model.encode_episodes(known), model.spec.tasks, model.config.n_context_frames)
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
