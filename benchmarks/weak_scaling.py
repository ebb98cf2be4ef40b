"""Measure weak scaling: how much slower the same work for each process becomes when there are more processes.

    python benchmarks/weak_scaling.py [--processes 2] [--turns 3]

Each process has one thread and the same work, whatever their number: 256 dreams of two chunks and the PPO update on
them; twenty chunks in 32 simulators; 20 steps of pre-training with a batch of 128. Both numbers of processes take
turns in one run. Efficiency is the time of one process divided by the time of several; 1 means that nothing is lost.
`exchange` is the share of the time that a process spends in exchanges, where it also waits for the slowest one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rl.config import PPOConfig
from rl.envs.sim import SimEnv
from rl.policies.wam import flow_policy
from rl.ppo.buffer import Samples
from rl.ppo.distributed import Distributed
from rl.ppo.update import PPO
from rl.stages.collect import collect_scripted
from world_model.dream_env import DreamEnv, StartStates
from world_model.wam.store import load_model
from world_model.wam.training import train_stage
from world_model.wam.training_config import StageConfig

TASK, CHECKPOINT = "push", "metaworld-tuned"
PARTS = "dream and update", "simulator", "pre-training"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="how often each number of processes is measured")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # this is one of the processes
    options = parser.parse_args()
    if options.work:
        work()
        return
    counts = (1, options.processes)
    found: dict[int, list[dict[str, list[float]]]] = {n: [] for n in counts}
    for _ in range(options.turns):
        for n in counts:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
            done = subprocess.run([*command, __file__, "--work"], capture_output=True, text=True, check=True)
            found[n].append(json.loads(done.stdout.splitlines()[-1]))
    titles = "1 process, s", f"{options.processes} processes, s", "efficiency", "exchange"
    print(f"{'part':>18}", *(f"{title:>14}" for title in titles))
    for part in PARTS:
        alone, several = (statistics.median(turn[part][0] for turn in found[n]) for n in counts)
        exchange = statistics.median(turn[part][1] for turn in found[counts[1]])
        print(f"{part:>18} {alone:>14.2f} {several:>14.2f} {100 * alone / several:>12.0f} % {100 * exchange:>12.1f} %")


def work() -> None:
    """Do the work of one process; process 0 prints the seconds and the share of exchanges of each part, as JSON."""
    torch.set_num_threads(1)
    with Distributed.join() as distributed, distributed.together():
        model = load_model(CHECKPOINT)
        sim = SimEnv("metaworld", 32, [TASK], task_names=model.spec.tasks, seed=distributed.rank)
        policy = flow_policy(model, sim)
        ppo = PPO(policy, PPOConfig(n_steps=2, batch_size=256, n_epochs=2), distributed=distributed)
        sim.record(True)
        ppo.collect(sim, 19)
        starts = StartStates.from_episodes(sim.record(False), model.spec.tasks, model.config.n_context_frames)
        dream = DreamEnv(model, 256, starts, horizon=2)
        windows = model.windows(collect_scripted("expert", [TASK], 10))
        stage = StageConfig(n_steps=20, batch_size=128 * distributed.world_size)
        pretrained = load_model(CHECKPOINT)

        def update() -> None:
            ppo.update(Samples.from_rollout(ppo.collect(dream, 2), 0.999, 0.95))

        def simulate() -> None:
            with torch.no_grad():
                for _ in range(20):
                    sim.step_chunk(torch.rand(32, 8, 4) * 2 - 1)

        def pretrain() -> None:
            train_stage("pretrain", pretrained, windows, stage, share=distributed.share)

        rows = {name: timed(job, distributed) for name, job in zip(PARTS, (update, simulate, pretrain), strict=True)}
    print(json.dumps(rows))


def timed(job: Callable[[], None], distributed: Distributed) -> tuple[float, float]:
    """Return the seconds of a job, mean of three, and the share of them that exchanges take."""
    job()  # warms up
    inside, exchange = 0.0, distributed.sum

    def sum_and_time(values: Tensor) -> Tensor:
        nonlocal inside
        begun = time.perf_counter()
        total = exchange(values)
        inside += time.perf_counter() - begun
        return total

    distributed.any(False)  # all begin together
    distributed.sum = sum_and_time  # type: ignore[method-assign]
    begun = time.perf_counter()
    for _ in range(3):
        job()
    distributed.any(False)  # the slowest one counts
    seconds = time.perf_counter() - begun
    distributed.sum = exchange  # type: ignore[method-assign]
    return seconds / 3, inside / seconds


if __name__ == "__main__":
    main()
