"""What the trust of a checkpoint is worth and what it costs: on tasks that its world side never saw, and in time.

    python benchmarks/trust.py [CHECKPOINT] [TASK ...]

Prints, over dreams of 4 chunks, the rank correlation of the expected with the true error, and that of the amount of
movement with it, each with its 95 % interval; and the time of a dream that asks for trust in units of one that does
not, taken in turn. Tasks that the model knows stand in its card, measured on episodes outside the calibration.
"""

from __future__ import annotations

import copy
import sys
import time

import torch

from rl.report_pairs import correlation
from rl.stage_collect import collect_scripted
from world_model.dream_env import DreamEnv, StartStates
from world_model.episodes import Episode
from world_model.model import WorldActionModel
from world_model.store import load_model
from world_model.trust import dream_of_real_actions, dreamed_movement, expected_error

UNSEEN = ("push-wall", "coffee-push")
N_EPISODES = 20  # of the expert, and as many noisy ones
SEED = 800_000


def main() -> None:
    torch.set_num_threads(1)
    words = sys.argv[1:]
    model = load_model(words[0] if words else "metaworld-tuned")
    for task in words[1:] or UNSEEN:
        known = "known" if task in model.spec.tasks else "never seen"
        episodes = [e for s in ("expert", "noisy") for e in collect_scripted(s, [task], N_EPISODES, seed=SEED)]
        retold = dream_of_real_actions(model, [e for e in episodes if e.length >= 32])
        with torch.no_grad():
            expected = expected_error(model, retold.given).mean(1)
        for name, score in (("expected error", expected), ("movement", dreamed_movement(retold.given).mean(1))):
            found = correlation(score, retold.errors.mean(1), retold.episode)
            interval = f"[{found['low']:+.2f}, {found['high']:+.2f}]"
            print(f"{task} ({known}), {len(retold.task)} dreams, {name}: {found['rho']:+.2f} {interval}")
    print(f"dream with trust / without: {cost(model, episodes):.2f} of the time")


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
