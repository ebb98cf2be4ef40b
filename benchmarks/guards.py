"""Measure the cost of checks for bad numbers and of saves for resuming, as shares of the time of a round.

    python benchmarks/guards.py [key=value ...]

Post-trains the built-in checkpoint (`mix` on box-close by default) as `wamtune train` does, and times every check and
every save. The table shows the median share over the rounds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rl.ppo.update
import world_model.env
import world_model.wam.training
from rewards import RewardManager
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.rounds.loop import PostTraining
from rl.runs.folder import RunFolder
from rl.verbs.prepare import prepare
from rl.verbs.train import _Saver

GUARDS: list[tuple[Any, str]] = [
    (world_model.env, "checked_actions"),
    (world_model.env, "check_advance"),
    (RewardManager, "_check_values"),
    (rl.ppo.update, "_check_finite"),
    (rl.ppo.update, "check_loss"),
    (rl.ppo.update, "check_gradients"),
    (rl.ppo.update, "policy_state"),  # the copy to restore if an update diverges
    (world_model.wam.training, "check_loss"),
    (world_model.wam.training, "check_gradients"),
]


class Clock:
    """Adds up the seconds spent in the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begun

        return timed


def main() -> None:
    words = "env.tasks=box-close n_rounds=4 dream.n_rounds=2 eval.n_episodes=32".split()
    config = compose("mix", [*words, *sys.argv[1:]], TrainConfig)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    guards, saves = Clock(), Clock()
    for owner, name in GUARDS:
        setattr(owner, name, guards.around(getattr(owner, name)))
    rounds: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as root, RunFolder.create(root, "guards", 0, to_yaml(config)) as folder:
        post = prepare(config)
        post.safe = saves.around(_Saver(post, folder, {"runs": []}, 0.0))
        measure(post, guards, saves, rounds)
        post.run()
        post.close()
        size = sum(file.stat().st_size for file in Path(folder.path, "checkpoints/state").iterdir()) / 1e6
    seconds, checked, saved = (statistics.median(column) for column in zip(*rounds, strict=True))
    shares = [statistics.median(row[k] / row[0] for row in rounds) for k in (1, 2)]
    print("| a round | guards | share | saves | share | size of a state |\n| ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {seconds:.1f} s | {checked:.2f} s | {100 * shares[0]:.2f} % | {saved:.2f} s | {100 * shares[1]:.2f} % "
        f"| {size:.0f} MB |"
    )


def measure(post: PostTraining, guards: Clock, saves: Clock, rounds: list[tuple[float, float, float]]) -> None:
    """After each round of `post`, append (seconds in all, in checks, in saves) to `rounds`."""
    safe, n_phases = post.safe, [len(post.phases_of(i)) for i in range(post.config.n_rounds)]
    ends = [sum(n_phases[:i]) for i in range(len(n_phases) + 1)]  # phases before each round, and in all
    begun = [0.0, 0.0, 0.0]

    def ended(is_end: bool) -> None:
        safe(is_end)
        if is_end and post.state.n_phases in ends:
            now = time.perf_counter(), guards.seconds, saves.seconds
            if post.state.n_phases > 0:  # else the first evaluation has ended, and the first round begins
                rounds.append(tuple(b - a for a, b in zip(begun, now, strict=True)))  # type: ignore[arg-type]
            begun[:] = now

    post.safe = ended


if __name__ == "__main__":
    main()
