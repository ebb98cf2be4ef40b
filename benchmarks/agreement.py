"""Measure how well single dreamed episodes agree with simulated ones, before and after a refit.

    python benchmarks/agreement.py [CHECKPOINT] [--tasks TASK ...] [--n-refit 256] [--n-test 200] [--steps 700]
                                   [--read-out]

Agreement is φ, the correlation of both outcomes over episodes of one task. Columns:

| column | says |
|---|---|
| `sim` | success of the checkpoint's policy in the simulator, on the test episodes |
| `sim/sim` | φ of the simulator with itself under 1 mm of noise on observations, which bounds what a dream can reach |
| `replay` | φ and dreamed success when the *actions executed* in the test episodes are dreamed again |
| `false` | share of the failed test episodes that succeed when their actions are dreamed again |
| `policy` | φ and dreamed success when the policy acts in the dream, from the same starts |

The refit uses `--n-refit` exploring episodes of the policy, which end at their first success as those of a run do. The
test episodes are others, and go on after a success, as their dreams do: an episode that is cut at the first frame of
success has no margin at all. The last line has the medians over the tasks.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from rl.compose import compose
from rl.config import DreamConfig, TrainConfig
from rl.envs.recorded import refit_read_out
from rl.envs.sim import SimEnv
from rl.policies.api import Policy
from rl.policies.chain import ChainPolicy
from rl.policies.wam import flow_policy
from rl.rounds.evaluate import EpisodeResult, Exploring, evaluate_dream, evaluate_sim, first_states, whole_episodes
from world_model.data.episodes import Episode
from world_model.replays import agreement, replay_episodes
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model

TASKS = ("assembly", "box-close", "hand-insert", "hammer", "peg-insert-side", "pick-place-wall")
REFIT, TEST = 7_000_000, 7_100_000
"""Seeds of the first episodes; no checkpoint was trained, selected or evaluated on these episodes."""


def main() -> None:
    dream = DreamConfig()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="metaworld-tuned")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--n-refit", type=int, default=256, help="exploring episodes for the refit")
    parser.add_argument("--n-test", type=int, default=200, help="test episodes")
    parser.add_argument("--steps", type=int, default=dream.refit_steps, help="of the refit")
    parser.add_argument("--learning-rate", type=float, default=dream.refit_learning_rate, help="of the refit")
    parser.add_argument("--read-out", action="store_true", help="with the refit of dream.refit_read_out=all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = "sim", "sim/sim", "replay", "dreamed", "false", "policy", "dreamed"
    print(f"{'task':>20} {'':>6}", *(f"{name:>8}" for name in columns))
    found: dict[str, list[list[float]]] = {"before": [], "after": []}
    for task in options.tasks:
        model = load_model(options.checkpoint)
        env = simulator(model, task, options.n_test)
        policy = flow_policy(model, env)
        seeds = range(TEST, TEST + options.n_test)
        on = simulator(model, task, options.n_test, terminate_on_success=False)
        real, tests = record(policy, on, seeds)
        noisy = simulator(model, task, options.n_test, obs_noise=0.001)
        again, _ = record(policy, noisy, seeds)
        exploring = Exploring(policy, torch.Generator().manual_seed(REFIT))
        _, training = record(exploring, env, range(REFIT, REFIT + options.n_refit))
        for when in found:
            if when == "after":
                model.refit(training, options.steps, options.learning_rate, seed=0)
                if options.read_out:
                    keys = ["name=agreement", f"checkpoint={options.checkpoint}", "dream.refit_read_out=all"]
                    refit_read_out(compose(None, keys, TrainConfig), model, training, seed=0)
            row = [share(real), agreement(again, real), *judge(model, env, policy, seeds, tests, real)]
            found[when].append(row)
            print(f"{task:>20} {when:>6}", *(f"{value:>8.2f}" for value in row), flush=True)
        for each in (env, on, noisy):
            each.close()
    for when, rows in found.items():
        print(
            f"{'median':>20} {when:>6}", *(f"{statistics.median(column):>8.2f}" for column in zip(*rows, strict=True))
        )


def simulator(model: WorldActionModel, task: str, n_test: int, **settings: float) -> SimEnv:
    """Return a simulator of one task with the features that the model reads."""
    return SimEnv(
        "metaworld",
        min(n_test, 64),
        [task],
        model.n_context_frames,
        task_names=model.spec.tasks,
        features=model.spec.features,
        cameras=model.cameras,
        **settings,
    )


def record(policy: Policy, env: SimEnv, seeds: Sequence[int]) -> tuple[Tensor, list[Episode]]:
    """Run the episodes of `seeds`; return their success (n,) bool, and the recordings in the same order."""
    env.record(True)
    success = by_seed(evaluate_sim(policy, env, seeds), seeds)
    recorded = {episode.seed: episode for episode in env.record(False)}
    return success, [recorded[seed] for seed in seeds]


def judge(
    model: WorldActionModel,
    env: SimEnv,
    policy: ChainPolicy,
    seeds: Sequence[int],
    tests: list[Episode],
    real: Tensor,
) -> list[float]:
    """Return the columns from `replay` on."""
    replayed = replay_episodes(model, tests).success
    # The refit changes the world decoder alone, so the policy of `model` is the same before and after it.
    dreamt = evaluate_dream(policy, whole_episodes(model, env, policy, first_states(env, seeds)))
    acted = by_seed(dreamt, seeds)
    false = float(replayed[~real].float().mean())
    return [agreement(replayed, real), share(replayed), false, agreement(acted, real), share(acted)]


def share(success: Tensor) -> float:
    """Return the success rate of outcomes (n,) bool."""
    return float(success.float().mean())


def by_seed(results: list[EpisodeResult], seeds: Sequence[int]) -> Tensor:
    """Return success in the order of `seeds` (n,) bool."""
    success = {result.seed: result.success for result in results}
    return torch.tensor([success[seed] for seed in seeds])


if __name__ == "__main__":
    main()
